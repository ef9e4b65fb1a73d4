"""Kernels that test themselves: built for each case, booted alone, and judged by their console and by QEMU's end."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qcase.arch import Arch
from tests import kernel
from tests.conftest import ROOT
from tests.vm import workspaces
from tests.vm.workspaces import QCASE, Workspace

pytestmark = pytest.mark.vm

TESTS = "say KTAP version 1 ; say 1..2 ; say ok 1 heap ; say ok 2 stack"
ARGS = {**kernel.ARGS, Arch.X86_64: [*kernel.ARGS[Arch.X86_64], "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]}
STATUS = {Arch.X86_64: ("out f4 10", 33), Arch.RISCV64: ("out 0 21", 33)}
BUILD = {"build": "echo ${case} ${args} >>built; cp ours ${args}", "output": "out"}


def workspace(root: Path, kernels: Mapping[Arch, Path], arch: Arch) -> Workspace:
    """A workspace without a guest. Its cases have a kernel that is built for each."""
    made = Workspace.make(root)
    (made.root / "ours").write_bytes(kernels[arch].read_bytes())
    return made


def ktest(made: Workspace, arch: Arch, name: str, commands: str, *, own: Any = None, args: Any = None, **qcase: Any) -> None:
    table = {"pipeline": "ktest", "kernel": {**BUILD, "args": ["out"], **(own or {})}, **qcase}
    keys: dict[str, Any] = {"args": args or ARGS[arch], "cmdline": f"qk={commands}", "timeout": 20}
    keys |= {"shell_prefix": "", "shell_init_cmd": ""}
    made.case(name, arch=arch, qcase=table, **keys)


@pytest.mark.parametrize("arch", list(STATUS))
def test_a_kernel_ends_qemu_with_its_own_status(arch: Arch, kernels: Mapping[Arch, Path], tmp_path: Path) -> None:
    made = workspace(tmp_path / "w", kernels, arch)
    ends, status = STATUS[arch]
    good = {"exit": {"pass": [status], "fail": [status + 2], "skip": [status + 4]}}
    ktest(made, arch, "good", f"say hello ; {ends}", **good)
    ktest(made, arch, "tested", f"{TESTS} ; {ends}", results="ktap", **good)
    ktest(made, arch, "bad", f"{TESTS} ; {ends}", exit={"pass": [status + 2], "fail": [status]})
    ktest(made, arch, "left", f"say hello ; {ends}", exit={"pass": [status + 2], "skip": [status]})
    ktest(made, arch, "other", f"say hello ; {ends}", exit={"pass": [status + 2]})
    ktest(made, arch, "half", f"say KTAP version 1 ; say 1..2 ; say ok 1 a ; {ends}", results="ktap", **good)
    ktest(made, arch, "panics", f"panic linux ; {ends}", **good)
    ktest(made, arch, "reboots", "say hello ; reboot", **good)
    ktest(made, arch, "off", "say hello ; off", **good)
    outcome = workspaces.run(made, store=tmp_path / "store", arch=arch)
    assert outcome.verdicts == {
        "good": "pass",
        "tested": "pass",
        "bad": "fail",
        "left": "skipped",
        "other": "exited",
        "half": "exited",
        "panics": "panic",
        "reboots": "exited",
        "off": "exited",
    }, outcome.said
    assert [one["name"] for one in outcome.case("tested")["subtests"]] == ["heap", "stack"]
    assert outcome.case("good")["image"] is None
    assert sorted((made.root / "built").read_text().split("\n"))[1:] == sorted(
        f"normal/{name} out" for name in outcome.verdicts
    ), "a kernel for each case"


def test_a_power_off_counts_beside_the_console(kernels: Mapping[Arch, Path], tmp_path: Path) -> None:
    """Also where no device of the machine gives a status, and where the kernel is not made."""
    arch = Arch.AARCH64
    made = workspace(tmp_path / "w", kernels, arch)
    off = {"exit": {"pass": "poweroff"}, "results": "ktap"}
    ktest(made, arch, "good", f"{TESTS} ; off", **off)
    ktest(made, arch, "silent", "say hello ; off", **off)
    ktest(made, arch, "reboots", f"{TESTS} ; reboot", **off)
    ktest(made, arch, "nothing", f"{TESTS} ; off", own={"build": "echo error: no ${args} >&2; exit 3"}, **off)
    ktest(made, arch, "lost", f"{TESTS} ; off", own={"build": ": ${args}", "output": "nowhere"}, **off)
    outcome = workspaces.run(made, store=tmp_path / "store", arch=arch)
    assert outcome.verdicts == {
        "good": "pass",
        "silent": "exited",
        "reboots": "exited",
        "nothing": "build-error",
        "lost": "build-error",
    }, outcome.said
    assert outcome.report is not None
    builds = {build["kernel"]: build for build in outcome.report["kernels"]}
    assert builds["normal/nothing"]["error"] == "its build ended with status 3"
    assert builds["normal/nothing"]["first_error"] == "error: no out"
    assert builds["normal/lost"]["error"] == "its build succeeded and left no nowhere"
    assert outcome.case("nothing")["reason"].startswith("the kernel of normal/nothing was not built: see ")


def test_semihosting_ends_qemu_and_opens_no_file_of_the_host(kernels: Mapping[Arch, Path], tmp_path: Path) -> None:
    arch = Arch.AARCH64
    made = workspace(tmp_path / "w", kernels, arch)
    canary, new = tmp_path / "canary", made.root / "new"
    canary.write_text("canary")
    args = [*ARGS[arch], "-semihosting"]
    good = {"pass": [33, 0], "fail": [1]}
    ktest(made, arch, "good", f"{TESTS} ; out 0 21", args=args, exit=good, results="ktap")
    ktest(made, arch, "zero", f"{TESTS} ; out 0 0", args=args, exit=good, results="ktap")
    ktest(made, arch, "bad", f"{TESTS} ; out 0 1", args=args, exit=good, results="ktap")
    ktest(made, arch, "off", f"{TESTS} ; off", args=args, exit=good, results="ktap")
    system = Path("/usr/bin/env")  # what QEMU itself may read
    rows = (("reads", 0, canary), ("writes", 4, canary), ("makes", 4, new), ("system", 0, system), ("edits", 4, system))
    for name, mode, path in rows:
        made.case(
            name,
            arch=arch,
            args=args,
            cmdline=f"qk=file {mode} {path} ; out 0 21",
            timeout=20,
            shell_prefix="",
            shell_init_cmd="",
            success_regex=["^opened /" if name == "system" else "^refused /"],
            qcase={"pipeline": "ktest", "kernel": {**BUILD, "args": ["out"]}, "exit": good},
        )
    outcome = workspaces.run(made, store=tmp_path / "store", arch=arch)
    assert outcome.verdicts == {
        "good": "pass",
        "zero": "pass",
        "bad": "fail",
        "off": "exited",
        "reads": "pass",
        "writes": "pass",
        "makes": "pass",
        "system": "pass",
        "edits": "pass",
    }, outcome.said
    assert canary.read_text() == "canary"
    assert not new.exists()


@pytest.mark.parametrize("arch", kernel.ARCHES)
def test_the_example_and_what_new_writes_boot(arch: Arch, toolchain_c: object, tmp_path: Path, test_cache: Path) -> None:
    root = tmp_path / "w"
    shutil.copytree(ROOT / "examples" / "ktest", root, ignore=shutil.ignore_patterns("target"))
    argv = [str(QCASE), "new", "written", "--pipeline", "ktest", "--arch", arch]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    outcome = workspaces.run(root, store=test_cache, arch=arch)
    assert outcome.verdicts == {f"unit/{case}": "pass" for case in ("heap", "words", "written")}, outcome.said
    tests = {case: [one["name"] for one in outcome.case(case)["subtests"]] for case in outcome.verdicts}
    assert tests == {
        "unit/heap": ["gives_and_takes", "neighbours_become_one", "refuses_what_does_not_fit"],
        "unit/words": ["lengths", "comparisons", "numbers"],
        "unit/written": ["adds", "remembers"],
    }
    broken = root / "kernel" / "heap.c"
    broken.write_text(broken.read_text().replace("sizeof *at + at->next->size;", "at->next->size;"))
    again = workspaces.run(root, "heap", store=test_cache, arch=arch)
    assert again.verdicts == {"unit/heap": "fail"}, again.said
    failed = [one for one in again.case("unit/heap")["subtests"] if one["status"] == "fail"]
    assert [one["name"] for one in failed] == ["gives_and_takes", "neighbours_become_one"]
    assert "# does not hold: line " in "\n".join(failed[0]["output"])
