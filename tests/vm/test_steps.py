"""Cases in steps, in real machines: our own kernel types, restarts, powers off, and listens to QEMU's monitor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qcase.arch import Arch
from tests import kernel
from tests.vm.workspaces import run

pytestmark = pytest.mark.vm

UP = {"name": "up", "success_regex": ["qcase test kernel on "]}
REBOOT = {"prompt": kernel.PROMPT, "command": "reboot", "expect": "reboot"}
CHECK = {"prompt": kernel.PROMPT, "command": "say again", "success_regex": ["^again$"]}
RESET = {"name": "press reset", "qmp": {"execute": "system_reset"}, "expect": "reboot"}
OFF = {"prompt": kernel.PROMPT, "command": "off", "expect": "poweroff"}
KTAP = "say KTAP version 1 ; say 1..2 ; say ok 1 a"
TESTS = {"name": "tests", "prompt": kernel.PROMPT, "command": f"{KTAP} ; say ok 2 b", "results": "ktap"}

CASES: dict[str, tuple[list[dict[str, Any]], str, list[str]]] = {
    "talks": ([UP, {"prompt": kernel.PROMPT, "command": "say one"}, {"success_regex": ["^one$"]}, CHECK], "pass", ["pass"] * 4),
    "restarts": ([{**CHECK, "command": "say again ; sleep 300"}, REBOOT, CHECK, OFF], "pass", ["pass"] * 4),
    "is-off-and-on": ([CHECK, OFF, CHECK, REBOOT, CHECK], "pass", ["pass"] * 5),
    "is-reset": ([UP, RESET, UP, RESET, CHECK], "pass", ["pass"] * 5),
    "says-it-too-early": (
        [
            {"prompt": kernel.PROMPT, "command": "say again ; say x", "success_regex": ["^x$"]},
            REBOOT,
            {**CHECK, "command": "say y", "timeout": 3},
        ],
        "timeout",
        ["pass", "pass", "broken"],
    ),
    "panics": ([{**REBOOT, "command": "panic linux ; reboot"}, CHECK], "panic", ["broken", "not-run"]),
    "restarts-by-itself": ([{**CHECK, "command": "reboot"}, CHECK], "exited", ["broken", "not-run"]),
    "refuses": ([{"qmp": {"execute": "device_del", "arguments": {"id": "x"}}}, CHECK], "fail", ["fail", "not-run"]),
    "has-tests": ([TESTS, REBOOT, {**TESTS, "name": "again"}, CHECK], "pass", ["pass"] * 8),
    "has-bad-tests": (
        [{**TESTS, "command": f"{KTAP} ; say not ok 2 b"}, REBOOT, CHECK],
        "fail",
        ["pass", *["fail"] * 2, *["pass"] * 2],
    ),
    "is-silent": ([{"prompt": kernel.PROMPT, "command": "say a", "silence": 1}, CHECK], "pass", ["pass"] * 2),
}


@pytest.mark.parametrize("arch", kernel.ARCHES)
def test_steps_of_a_real_machine(arch: Arch, kernels: Mapping[Arch, Path], tmp_path: Path, test_cache: Path) -> None:
    made = kernel.workspace(tmp_path / "w", kernels)
    # QEMU 7.2 ends at a power-off of riscv64's machine.
    cases = {name: case for name, case in CASES.items() if arch is not Arch.RISCV64 or name != "is-off-and-on"}
    for name, (steps, _, _) in cases.items():
        whole = {"args": kernel.ARGS[arch], "fail_regex": ["^FAIL"], "timeout": 60}
        lines = [f"{key} = {json.dumps(value)}" for key, value in whole.items()]
        for step in steps:
            lines += ["[[qcase.steps]]", *(f"{key} = {_toml(value)}" for key, value in step.items())]
        made.broken(name, "\n".join(lines) + "\n", arch=arch)
    outcome = run(made, "-j", "2", f"--junit={tmp_path / 'junit'}", arch=arch, store=test_cache)
    assert outcome.verdicts == {name: verdict for name, (_, verdict, _) in cases.items()}, outcome.said
    for name, (_, _, states) in cases.items():
        subtests = outcome.case(name)["subtests"]
        assert [one["status"] for one in subtests] == states, name
        assert all(one["seconds"] is not None for one in subtests if one["status"] == "pass")
    assert outcome.case("refuses")["reason"].startswith("step 1 of 2 (qmp device_del): QEMU refused")
    names = [one["name"] for one in outcome.case("is-reset")["subtests"]]
    assert names == ["up", "press reset", "up (2)", "press reset (2)", "say again"]
    assert "press reset" in (tmp_path / "junit").read_text()


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)
