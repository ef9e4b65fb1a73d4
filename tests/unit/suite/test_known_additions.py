"""`qcase known add` and `qcase known list`: entries for what failed in the last run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import typer.testing

import qcase.cli.main  # noqa: F401 - it registers the commands
from qcase import events
from qcase.arch import Arch
from qcase.cli.app import app
from qcase.config.load import load_known
from qcase.model import CaseResult, Fault, SubtestResult, SubtestStatus, Verdict
from qcase.suite import history
from qcase.suite.known_failures import excused

TARGET = Arch.X86_64.default_target
BAD = SubtestResult("wait [1]", "", SubtestStatus.FAIL)
FUTEX = CaseResult("normal/futex", Arch.X86_64, Verdict.FAIL, Fault.CASE, "1 of 1 tests failed", subtests=(BAD,), by_tests=True)
OOPS = CaseResult("normal/oops", Arch.X86_64, Verdict.PANIC, Fault.CASE, "the guest's kernel panicked")
ERROR = CaseResult("normal/error", Arch.X86_64, Verdict.ERROR, Fault.INFRA, "the disk is full")
PASSED = CaseResult("normal/smoke", Arch.X86_64, Verdict.PASS, Fault.NONE)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    for case in ("futex", "oops", "error", "smoke"):
        (tmp_path / "suite/normal" / case).mkdir(parents=True)
        (tmp_path / "suite/normal" / case / "qemu-x86_64.toml").write_text("args = []\n")
    (tmp_path / "qcase.toml").write_text('[suite]\nroot = "suite"\n')
    finished = events.RunFinished((FUTEX, OOPS, ERROR, PASSED), 1.0)
    history.Memory(tmp_path, dict.fromkeys(Arch, TARGET), pytest.fail)(finished)
    return tmp_path


def known(workspace: Path, *words: str) -> tuple[int, str]:
    done = typer.testing.CliRunner().invoke(app, ["known", *words, "--workspace", str(workspace)])
    return done.exit_code, done.output


def test_what_failed_is_added_and_excuses_just_that(workspace: Path) -> None:
    code, said = known(workspace, "add", "--reason", 'it\'s "later"', "--until", "2027-01-31", "--link", "https://example.org/1")
    assert (code, said) == (
        0,
        "normal/error: how it ended is nothing that an entry can excuse\n"
        "normal/futex, wait [[]1]: fail\nnormal/oops: panic\nknown.toml: 2 entries added\n",
    )
    entries = load_known(workspace / "known.toml", workspace)
    assert [(one.case, one.test, sorted(one.excuses), one.arches) for one in entries] == [
        ("normal/futex", "wait [[]1]", ["fail"], (Arch.X86_64,)),
        ("normal/oops", "", ["panic"], (Arch.X86_64,)),
    ]
    assert {one.reason for one in entries} == {'it\'s "later"'}
    assert excused(FUTEX, entries[:1]).verdict is excused(OOPS, entries[1:]).verdict is Verdict.KNOWN_FAIL
    assert excused(replace(FUTEX, subtests=(replace(BAD, name="wait 1"),)), entries[:1]).red


@pytest.mark.parametrize("before", ["# ours\n[[known]] # first\nreason = 'x'\ncase = 'a'", "\r\n# ours\r\n", ""])
def test_what_stands_in_the_file_stays_as_it_is(before: str, workspace: Path) -> None:
    path = workspace / "known.toml"
    path.write_bytes(before.encode())
    assert known(workspace, "add", "oops", "--reason", "later")[0] == 0
    text = path.read_bytes().decode()
    assert text.startswith(before)
    assert ("\r\n" in text) == ("\r\n" in before)
    assert "\n" not in text.replace("\r\n", "") or "\r\n" not in before
    assert load_known(path, workspace)[-1].case == "normal/oops"


def test_a_link_in_place_of_the_file_stays_one(workspace: Path) -> None:
    (workspace / "shared.toml").write_text("# shared\n")
    (workspace / "known.toml").symlink_to("shared.toml")
    assert known(workspace, "add", "futex", "--reason", "later")[0] == 0
    assert (workspace / "known.toml").is_symlink()
    assert (workspace / "shared.toml").read_text().startswith("# shared\n")


def test_a_dry_run_writes_nothing(workspace: Path) -> None:
    code, said = known(workspace, "add", "oops", "--reason", "later", "--dry-run")
    assert code == 0
    assert '[[known]]\ncase = "normal/oops"\narch = "x86_64"\nreason = "later"\nexcuses = ["panic"]\n' in said
    assert not (workspace / "known.toml").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["oops"], "a known failure needs a reason"),
        (["smoke", "--reason", "x"], "no failure of 'smoke' on x86_64 is remembered"),
        (["--reason", "x", "--until", "soon"], "'soon' is no date"),
        (["oops", "--reason", "x\ny"], "the entries cannot be added"),
        (["oops", "--reason", "x", "--arch", "aarch64"], "no run is remembered"),
    ],
)
def test_what_cannot_be_added_is_one_clear_error(words: list[str], what: str, workspace: Path) -> None:
    code, said = known(workspace, "add", *words)
    assert (code, what in said) == (2, True), said
    assert not (workspace / "known.toml").exists()


def test_a_file_that_is_wrong_or_written_in_another_way_is_left_alone(workspace: Path) -> None:
    path = workspace / "known.toml"
    for text in ("known = 3\n", 'known = [{ case = "a", reason = "x" }]\n'):
        path.write_text(text)
        code, said = known(workspace, "add", "oops", "--reason", "x")
        assert (code, path.read_text()) == (2, text), said


def test_a_list_shows_all_entries(workspace: Path) -> None:
    assert "no known failures" in known(workspace, "list")[1]
    (workspace / "known.toml").write_text('[[known]]\ncase = "a"\ntest = "t"\nreason = "later"\nuntil = 2020-01-01\n')
    assert known(workspace, "list")[1] == "known.toml:1  a  t  fail\n    later, expired 2020-01-01\n"
    assert '"expired": true' in known(workspace, "list", "--json")[1]
