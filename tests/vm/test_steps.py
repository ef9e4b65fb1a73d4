"""Cases in steps, in real machines: our own kernel types, restarts, powers off, and listens to QEMU's monitor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qcase.arch import Arch
from tests import kernel
from tests.vm.workspaces import ARGS, PROMPT, Workspace, run

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


SHELL = "PS1='second> ' setsid sh -i </dev/{0} >/dev/{0} 2>&1 &"
PORTS = {
    Arch.X86_64: ("ttyS1", ["-serial", "mon:stdio", "-serial", "chardev:second"]),
    Arch.AARCH64: ("hvc0", ["-device", "virtio-serial-pci", "-device", "virtconsole,chardev=second"]),
}


@pytest.mark.parametrize("arch", list(PORTS))
def test_steps_on_a_second_console(arch: Arch, tmp_path: Path, test_cache: Path) -> None:
    port, args = PORTS[arch]
    made = Workspace.make(tmp_path / "w")
    shell = {"name": "a shell", "prompt": PROMPT, "command": SHELL.format(port)}
    write = {"name": "write", "console": "second", "prompt": "second>", "command": "tty; echo two >/note; echo wr''ote"}
    read = {"name": "read", "command": "cat /note", "success_regex": ["^two$"]}
    again = {"name": "again", "console": "second", "command": "uname -m", "success_regex": [f"^{arch}$"]}
    panics = {"name": "panic", "prompt": PROMPT, "command": "(sleep 1; echo c >/proc/sysrq-trigger) & sleep 0"}
    waits = {"name": "wait", "console": "second", "success_regex": ["^never$"]}
    cases: dict[str, list[dict[str, Any]]] = {
        "talks": [shell, {**write, "success_regex": ["^wrote$"]}, read, again],
        "waits-on-the-wrong-one": [
            shell,
            {**write, "success_regex": ["^wrote$"]},
            {**read, "console": "second", "command": "true"},
        ],
        "panics": [shell, panics, waits],
    }
    for name, steps in cases.items():
        whole = {"args": [*ARGS[arch], *args], "timeout": 60 if name == "waits-on-the-wrong-one" else 120}
        lines = [f"{key} = {json.dumps(value)}" for key, value in whole.items()]
        for step in steps:
            lines += ["[[qcase.steps]]", *(f"{key} = {_toml(value)}" for key, value in step.items())]
        made.broken(name, "\n".join(lines) + "\n", arch=arch)
    outcome = run(made, "-j", "2", arch=arch, store=test_cache)
    assert outcome.verdicts == {"talks": "pass", "waits-on-the-wrong-one": "timeout", "panics": "panic"}, outcome.said
    assert [one["status"] for one in outcome.case("talks")["subtests"]] == ["pass"] * 4
    logs = made.root / Path(outcome.case("talks")["console_log"]).parent
    assert "wrote" in (logs / "console-second.log").read_text()
    assert f"/dev/{port}" in (logs / "console-second.log").read_text()
    assert "wrote" not in (logs / "console.log").read_text()
