"""What shells are offered: asked as bash, zsh and fish ask, and by a real bash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qcase import events
from qcase.arch import Arch
from qcase.model import CaseResult, Fault, SubtestResult, SubtestStatus, Verdict
from qcase.suite import completion, history
from tests.conftest import ROOT

QCASE = Path(sys.executable).with_name("qcase")
LINUX = ROOT / "examples" / "linux"


def ask(words: str, cwd: Path = LINUX, shell: str = "bash") -> list[str]:
    count = len(words.split()) - (not words.endswith(" "))
    env = {**os.environ, "_QCASE_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    env |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run([QCASE], env=env, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_names_of_cases_their_groups_and_subcases() -> None:
    assert completion.cases("s", LINUX, "") == ["signals", "smoke", "smp", "syscalls", "sysctl"]
    assert completion.cases("normal/sm", LINUX, "normal") == ["normal/smoke", "normal/smp"]
    assert completion.cases("syscalls/e", LINUX, "") == ["syscalls/eventfd"]
    assert completion.cases("nothing", LINUX, "") == []
    assert completion.groups("", LINUX) == ["normal"]
    assert completion.tags("", LINUX) == ["machine", "smoke"]
    assert completion.tags("!s", LINUX) == ["!smoke"]


def test_where_something_is_broken_nothing_is_said(tmp_path: Path) -> None:
    assert completion.cases("", tmp_path, "") == []
    (tmp_path / "qcase.toml").write_text("[")
    assert completion.cases("", tmp_path, "") == []
    (tmp_path / "qcase.toml").write_text('[suite]\nroot = "suite"\n')
    assert completion.groups("", tmp_path) == []
    case = tmp_path / "suite" / "normal" / "a"
    case.mkdir(parents=True)
    (case / "qemu-x86_64.toml").write_text("= tags")
    assert completion.cases("", tmp_path, "") == ["a"]
    assert completion.cases("", tmp_path, "other") == []
    for text in ("= tags", "qcase = 'tags'", "[qcase]\ntags = 3", "[qcase]\ntags = ['good', 3, 'two words']"):
        (case / "qemu-x86_64.toml").write_text(text)
        assert completion.tags("", tmp_path) == (["good"] if "good" in text else [])


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("qcase li", ["list", "lint"]),
        ("qcase cache g", ["gc"]),
        ("qcase run fu", ["futex"]),
        ("qcase list --group ", ["normal"]),
        ("qcase run --tag ", ["machine", "smoke"]),
        ("qcase run --pipeline p", ["plain", "python"]),
        ("qcase explain --arch a", ["aarch64"]),
        ("qcase schema ", ["qcase", "qemu", "results", "events"]),
    ],
)
def test_bash(words: str, wanted: list[str]) -> None:
    assert ask(words) == wanted


def test_tests_inside_a_case_as_they_last_ran(tmp_path: Path) -> None:
    root = tmp_path / "w"
    folder = root / "suite" / "normal" / "files"
    folder.mkdir(parents=True)
    (root / "qcase.toml").write_text('[suite]\nroot = "suite"\n')
    (folder / "qemu-x86_64.toml").write_text("")
    assert ask("qcase run files::", root, "fish") == [""]
    subtests = tuple(SubtestResult(name, "", SubtestStatus.PASS) for name in ("links/hard", "links", "zeros"))
    ran = CaseResult("normal/files", Arch.AARCH64, Verdict.PASS, Fault.NONE, subtests=subtests)
    memory = history.Memory(root, {Arch.AARCH64: Arch.AARCH64.default_target}, pytest.fail, selectable={"normal/files"})
    memory(events.RunFinished((ran,), 1.0))
    assert ask("qcase run files::l", root, "fish") == ["files::links/hard", "files::links"]
    assert ask("qcase run normal/files::z", root, "fish") == ["normal/files::zeros"]
    assert ask("qcase run other::z", root, "fish") == [""]
    # bash takes each colon for the end of a word
    assert ask("qcase run files :: z", root) == ["zeros"]


def test_another_workspace() -> None:
    assert ask(f"qcase run -w {LINUX} fu", cwd=Path("/")) == ["futex"]


def test_fish_and_zsh_get_descriptions() -> None:
    assert ask("qcase doc", shell="fish")[0].startswith("doctor\tCheck whether a run would work.")
    assert '"doctor":"Check whether a run would work."' in ask("qcase doc", shell="zsh")[0]
    assert ask("qcase run fu", shell="fish") == ["futex"]


def test_a_real_bash_completes() -> None:
    script = "source <(qcase completion bash); COMP_WORDS=(qcase run smo); COMP_CWORD=2; _qcase_completion qcase"
    script += '; echo "${COMPREPLY[@]}"'
    env = {**os.environ, "PATH": f"{QCASE.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=env, cwd=LINUX, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("smoke\n", "")


def test_a_shell_that_there_is_no_script_for() -> None:
    done = subprocess.run([QCASE, "completion", "tcsh"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "there is one for bash, zsh and fish" in done.stderr
