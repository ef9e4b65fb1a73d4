"""Cases that are skipped for want of something, known failures of a group's commands, a group that the guest itself starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qcase.arch import Arch
from qcase.config.workspace_file import GroupedRunner
from tests import kernel
from tests.vm.workspaces import Workspace, run

pytestmark = pytest.mark.vm

NOTHING: dict[str, Any] = {"success_regex": ["^never$"]}
# What a case requires, and with which reason it is skipped; none if it runs and passes.
REQUIRED: dict[str, tuple[list[str], str]] = {
    "all-there": (["nvme", "virtio-blk", "cpus >= 1", "memory >= 1 MiB", "qemu >= 4.2"], ""),
    "kvm": (["kvm"], 'needs KVM, and this run uses tcg: see [run] accel = "auto"'),
    "network": (["network"], 'needs a network, and its network is "none"'),
    "device": (["nvmf"], "needs the device nvmf, which qemu-system-{} does not have (it has nvme)"),
    "cpus": (["cpus >= 4096"], "needs 4096 processors, and there are "),
    "memory": (["memory >= 4096 TiB"], "needs 4096 TiB of free memory, and there are "),
    "qemu": (["qemu >= 99"], "needs QEMU 99, and this one is "),
    "several": (["qemu >= 99", "nvme", "network"], "needs QEMU 99, and this one is "),
}


@pytest.mark.parametrize("arch", kernel.ARCHES)
def test_what_a_machine_lacks_skips_a_case_before_anything_is_built(
    arch: Arch, kernels: Mapping[Arch, Path], tmp_path: Path, test_cache: Path
) -> None:
    made = kernel.workspace(tmp_path / "w", kernels, '\naccel = "tcg"\n')
    for name, (requires, _) in REQUIRED.items():
        kernel.case(made, name, "say PASS", arch=arch, qcase={"requires": requires})
    own = {"pipeline": "ktest", "requires": ["nvmf"], "kernel": {"build": "touch built; false", "output": "out"}}
    kernel.case(made, "ktest", None, arch=arch, qcase=own)
    # What the guest itself says: the line decides, whatever a success pattern would; but a fail pattern comes first.
    skip: dict[str, Any] = {"skip": {"regex": ["^SKIP: "]}}
    kernel.case(made, "says", "say SKIP: no card ; say PASS", arch=arch, qcase=skip)
    kernel.case(made, "fails", "say FAIL ; say SKIP: no card", arch=arch, qcase=skip, fail_regex=["^FAIL"])
    kernel.case(made, "silent", "say PASS", arch=arch, qcase=skip)
    outcome = run(made, "-j", "2", arch=arch, store=test_cache)
    wanted = {name: "skipped" if reason else "pass" for name, (_, reason) in REQUIRED.items()}
    wanted |= {"ktest": "skipped", "says": "skipped", "fails": "fail", "silent": "pass"}
    assert outcome.verdicts == wanted, outcome.said
    for name, (_, reason) in REQUIRED.items():
        assert outcome.case(name)["reason"].startswith(reason.format(arch)), name
    assert outcome.case("says")["reason"] == "matched the skip pattern '^SKIP: '"
    assert "; needs a network" in outcome.case("several")["reason"]
    assert not (made.root / "built").exists()
    strict = run(made, "kvm", "all-there", "--strict-skips", arch=arch, store=test_cache)
    assert (strict.exit_code, strict.verdicts) == (1, {"kvm": "skipped", "all-there": "pass"}), strict.said
    empty = run(made, "kvm", "says", arch=arch, store=test_cache)
    assert empty.exit_code == 0
    assert "nothing was tested" in empty.said, empty.said


GROUP_KNOWN = """\
[[known]]
case = "group"
test = "exit 3"
reason = "three is not there yet"

[[known]]
case = "normal/new"
test = "false*"
reason = "false is a failure"
"""


def test_commands_of_a_group_are_skipped_by_status_and_known_to_fail(tmp_path: Path, test_cache: Path) -> None:
    made = Workspace.make(tmp_path / "w")
    (made.root / "known.toml").write_text(GROUP_KNOWN)
    skip: dict[str, Any] = {"skip": {"status": [77]}}
    made.case("group", test_commands=["true", "echo no nvme; exit 77", "exit 3"], qcase=skip)
    made.case("new", test_commands=["true", "false # known", "exit 3"], qcase=skip)
    made.case("none", test_commands=["exit 77", "exit 77 # again"], qcase=skip)
    made.case("unread", test_commands=["true", "exit 77"])
    outcome = run(made, "-j", "2", "--junit", str(tmp_path / "junit"), store=test_cache)
    verdicts = {"group": "known-fail", "new": "fail", "none": "skipped", "unread": "fail"}
    assert outcome.verdicts == verdicts, outcome.said
    states = {name: [one["status"] for one in outcome.case(name)["subtests"]] for name in verdicts}
    assert states == {
        "group": ["pass", "skip", "known-fail"],
        "new": ["pass", "known-fail", "fail"],
        "none": ["skip", "skip"],
        "unread": ["pass", "fail"],
    }
    assert outcome.case("group")["known"][0]["entry"] == "known.toml:1"
    assert outcome.case("new")["reason"].endswith("; 1 more is known to fail"), outcome.said
    alone = run(made, "group", "none", store=test_cache)
    assert alone.exit_code == 0, alone.said
    strict = run(made, "group", "none", "--strict-skips", store=test_cache)
    assert strict.exit_code == 1, strict.said


# A login shell runs what is in profile.d, and then ends: init starts it again, and the script a second time.
PROFILE = f"[ -e /run/started ] || {{ touch /run/started; {GroupedRunner().runner_path}; }}\n"
INSTALL = """\
cmake_minimum_required(VERSION 3.16)
project(service NONE)
install(FILES start.sh DESTINATION etc/profile.d)
"""


def test_a_group_that_the_guest_itself_starts(tmp_path: Path, test_cache: Path) -> None:
    made = Workspace.make(tmp_path / "w")
    service = {"service/c/CMakeLists.txt": INSTALL, "service/c/start.sh": PROFILE}
    good = {"tools/sh/good": "#!/bin/sh\necho good\n"}
    keys: dict[str, Any] = {"shell_prefix": "", "qcase": {"build": "all"}}
    made.case("starts", {**service, **good}, test_commands=["good", "test -d /proc/self"], **keys)
    made.case("fails", {**service, **good}, test_commands=["good", "exit 4", "true"], **keys)
    made.case("nobody", good, test_commands=["good"], **{**keys, "timeout": 20})
    outcome = run(made, "-j", "2", store=test_cache)
    assert outcome.verdicts == {"starts": "pass", "fails": "fail", "nobody": "timeout"}, outcome.said
    assert [(one["name"], one["status"]) for one in outcome.case("starts")["subtests"]] == [
        ("good", "pass"),
        ("test -d /proc/self", "pass"),
    ]
    failed = outcome.case("fails")["subtests"]
    assert [one["status"] for one in failed] == ["pass", "fail", "pass"]
    assert failed[1]["exit_status"] == 4
    assert [one["status"] for one in outcome.case("nobody")["subtests"]] == ["not-run"]
