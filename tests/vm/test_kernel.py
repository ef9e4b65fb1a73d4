"""Our own kernel under every verdict, on three architectures, as whole runs of the program."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qcase.arch import Arch
from tests import kernel
from tests.vm import workspaces
from tests.vm.workspaces import Outcome

pytestmark = pytest.mark.vm

SLACK = 30.0  # seconds that a machine with other work may take longer

EXPECTED = {
    "passes": "pass",
    "boots": "pass",
    "fails": "fail",
    "panics": "panic",
    "panics-like-linux": "panic",
    "panics-at-boot": "panic",
    "resets-at-boot": "panic",
    "resets-for-ever": "panic",
    "faults": "panic",
    "hangs": "timeout",
    "never-prompts": "timeout",
    "floods-for-ever": "timeout",
    "falls-silent": "timeout",
    "powers-off": "exited",
    "resets": "exited",
    "resets-and-goes-on": "pass",
    "floods": "pass",
    "garbles": "pass",
    "loses-a-key": "pass",
    "misfits": "error",
}


@pytest.fixture(scope="module", params=kernel.ARCHES)
def outcome(request: pytest.FixtureRequest, kernels: Mapping[Arch, Path], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    arch = request.param
    made = kernel.workspace(tmp_path_factory.mktemp("kernel") / "w", kernels)

    def case(name: str, command: str | None, *args: str, **keys: Any) -> None:
        kernel.case(made, name, command, arch=arch, **{"fail_regex": ["^FAIL"], "args": [*kernel.ARGS[arch], *args], **keys})

    case("passes", "pass", qcase={"boot_timeout": 20, "command_timeout": 20, "idle_timeout": 20})
    case("boots", None, success_regex=[rf"qcase test kernel on {arch}$"])
    case("fails", "fail")
    case("panics", "say before ; panic arceos")
    case("panics-like-linux", "panic oops")
    case("panics-at-boot", "pass", "-append", "qk=panic rust")
    case("resets-at-boot", "pass", "-append", "qk=reboot")
    case("resets-for-ever", "pass", "-append", "qk=reboot", qcase={"reset": True})
    case("faults", "fault")
    case("hangs", "say begun ; hang", timeout=2)
    case("never-prompts", "pass", shell_prefix="other>", qcase={"boot_timeout": 1.5})
    case("floods-for-ever", "flood", qcase={"command_timeout": 1.5, "idle_timeout": 1.4})
    case("falls-silent", "say begun ; hang", qcase={"idle_timeout": 1.5})
    case("powers-off", "off")
    case("resets", "reboot")
    case("resets-and-goes-on", "reboot", qcase={"reset": True}, success_regex=[rf"(?s)kernel on {arch}$.*kernel on {arch}$"])
    case("floods", "flood 512 ; pass")
    case("garbles", "garble 64 ; pass")
    case("loses-a-key", "say it is well ; pass", "-append", "qk=lose 9")
    case("misfits", "pass", "-device", "no-such-device")
    return workspaces.run(made, "--jobs", "4", store=tmp_path_factory.mktemp("kernel-store"), arch=arch)


def test_every_verdict(outcome: Outcome) -> None:
    assert outcome.report is not None
    # The others have no fault that the machine would report: there the kernel resets instead.
    faults = "panic" if outcome.report["arch"] == Arch.X86_64 else "exited"
    assert outcome.verdicts == EXPECTED | {"faults": faults}
    assert outcome.exit_code == 3


def test_a_line_that_did_not_arrive_is_typed_again(outcome: Outcome) -> None:
    assert outcome.case("loses-a-key")["warnings"] == [
        "the guest lost characters of what was typed, so it was typed again: 'say it is well ; pass'"
    ]
    assert outcome.case("passes")["warnings"] == []


def test_it_boots_at_once(outcome: Outcome) -> None:
    """What many tests rest on; the limit is generous, the machine may be busy."""
    assert outcome.case("passes")["times"]["boot"] < SLACK


def test_a_panic_comes_with_its_block_of_lines(outcome: Outcome) -> None:
    lines = outcome.case("panics-like-linux")["details"].splitlines()
    assert lines[0].endswith("BUG: kernel NULL pointer dereference, address: 0000000000000000")
    assert "---[ end Kernel panic" in lines[-1]
    assert len(lines) == 7
    assert outcome.case("panics")["details"].splitlines()[1] == "as told"
    assert outcome.case("panics-at-boot")["phase"] == "boot"


def test_a_reset_that_nobody_asked_for(outcome: Outcome) -> None:
    assert outcome.case("resets-at-boot")["reason"] == "the guest's machine was reset while it booted"
    assert outcome.case("resets-for-ever")["reason"] == "the guest's machine was reset 4 times"
    assert outcome.case("resets")["reason"] == "QEMU ended before a verdict, status 0: the guest reset its machine"
    off = "QEMU ended before a verdict, status 0: the guest powered off"
    # The board's own way to power off, which OpenSBI uses, ends QEMU 7.2 before its monitor says why, and QEMU 10 after that.
    unsaid = [off.removesuffix(": the guest powered off")] if outcome.case("faults")["arch"] == Arch.RISCV64 else []
    assert outcome.case("powers-off")["reason"] in [off, *unsaid]
    if outcome.case("faults")["arch"] == Arch.X86_64:
        assert outcome.case("faults")["reason"] == "the guest's machine was reset by a triple fault"


def test_the_report_says_which_limit_ended_a_case_and_how_near_the_others_were(outcome: Outcome) -> None:
    ended = {
        "hangs": ("timeout", "no match of '^PASS$' within 2 s"),
        "never-prompts": ("boot_timeout", "the prompt 'other>' did not come within 1.5 s"),
        "floods-for-ever": ("command_timeout", "no match of '^PASS$' within 1.5 s"),
        "falls-silent": ("idle_timeout", "nothing was printed for 1.5 s"),
    }
    for name, (limit, reason) in ended.items():
        case = outcome.case(name)
        assert case["reason"] == reason
        assert [use["name"] for use in case["limits"] if use["ended"]] == [limit]
        for use in case["limits"]:
            assert 0 <= use["used"] <= use["seconds"] + SLACK
    assert {use["name"] for use in outcome.case("passes")["limits"]} == {
        "timeout",
        "boot_timeout",
        "command_timeout",
        "idle_timeout",
    }
    assert re.search(r"limits: timeout [\d.]+ of 30 s, idle_timeout 1.5 of 1.5 s\n", outcome.stdout)


def test_qemu_that_refuses_its_arguments_is_an_error_with_its_own_words(outcome: Outcome) -> None:
    case = outcome.case("misfits")
    assert case["fault"] == "infra"
    assert case["reason"].startswith("QEMU did not start the guest (status 1): qemu-system-")
    assert "'no-such-device' is not a valid device model name" in case["reason"]


@pytest.mark.parametrize(
    ("arguments", "env", "factor"),
    [
        ((), {}, 1.0),
        ((), {"QCASE_TIMEOUT_SCALE": "0.75"}, 0.75),
        (("--timeout-scale", "0.5"), {"QCASE_TIMEOUT_SCALE": "9"}, 0.5),
    ],
)
def test_a_factor_for_all_limits(
    arguments: tuple[str, ...], env: dict[str, str], factor: float, kernels: Mapping[Arch, Path], tmp_path: Path
) -> None:
    made = kernel.workspace(tmp_path / "w", kernels)
    kernel.case(made, "hangs", "hang", timeout=20, qcase={"command_timeout": 3})
    outcome = workspaces.run(made, *arguments, store=tmp_path / "store", env=env)
    limits = {use["name"]: use["seconds"] for use in outcome.case("hangs")["limits"]}
    assert limits == {"timeout": 20 * factor, "command_timeout": 3 * factor}
    assert 3 * factor <= outcome.case("hangs")["times"]["command"] < 3 * factor + SLACK
    if arguments:
        assert "repeat just the failures: qcase run " in outcome.stdout
        assert " --timeout-scale 0.5 " in outcome.stdout


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "many", "1,5"])
def test_a_factor_that_is_none(text: str, kernels: Mapping[Arch, Path], tmp_path: Path) -> None:
    made = kernel.workspace(tmp_path / "w", kernels)
    kernel.case(made, "passes", "pass")
    for arguments, env, where in (
        ((f"--timeout-scale={text}",), {}, "--timeout-scale"),
        ((), {"QCASE_TIMEOUT_SCALE": text}, "QCASE_TIMEOUT_SCALE"),
    ):
        outcome = workspaces.run(made, *arguments, store=tmp_path / "store", env=env)
        assert outcome.exit_code == 2
        assert outcome.stderr == f"error: {where}: '{text}' is no factor\nhint: write a number greater than 0: 2, 0.5\n"
