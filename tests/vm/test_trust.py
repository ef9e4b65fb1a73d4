"""Suites of strangers: a confined QEMU boots what any other boots, and opens nothing but its own files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.vm import arguments, confine, sandbox
from tests import kernel
from tests.vm import workspaces
from tests.vm.workspaces import Workspace

pytestmark = pytest.mark.vm

SANDBOXED = 'trust = "sandboxed"\n'


def test_a_confined_qemu_boots_every_architecture(kernels: Mapping[Arch, Path], tmp_path: Path) -> None:
    made = kernel.workspace(tmp_path / "w", {}, SANDBOXED)
    for arch, path in kernels.items():
        (made.root / path.name).write_bytes(path.read_bytes())
        with (made.root / "qcase.toml").open("a") as file:
            file.write(f'\n[guest.{arch}]\nrootfs = "root.img"\nkernel = "{path.name}"\n')
    for arch in kernels:
        kernel.case(made, f"on-{arch}", "pass", arch=arch)
        outcome = workspaces.run(made, store=tmp_path / "store", arch=arch)
        assert outcome.verdicts[f"on-{arch}"] == "pass", outcome.said
    assert not list(Path(tmp_path / "w.outside" / "tmp").glob("qcase-machine-*"))


@pytest.mark.parametrize("arch", [Arch.X86_64, Arch.AARCH64])
def test_a_confined_linux_writes_its_disk_and_cases_that_ask_for_the_host_are_refused(
    arch: Arch, test_cache: Path, tmp_path: Path
) -> None:
    workspaces.provide(test_cache)
    made = Workspace.make(tmp_path / "w", f"[run]\n{SANDBOXED}")
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    canary = tmp_path / "canary.img"
    canary.write_bytes(b"canary" * 1000)
    args = workspaces.ARGS[arch]
    writes = "dd if=/dev/zero of=/root/x bs=1M count=8 2>/dev/null; sync; ls /sys/class/net; ec''ho done"
    made.case("writes", arch=arch, args=[*args, "-m", "256M"], shell_init_cmd=writes, success_regex=["^done$"])
    second = ["-drive", f"if=virtio,format=raw,file={canary}", "-drive", "if=none,id=disk0"]
    runs = ["-netdev", f"user,id=net0,guestfwd=tcp:10.0.2.100:80-cmd:touch {tmp_path}/pwned"]
    for name, asked in (("reads", second), ("runs", runs)):
        made.case(name, arch=arch, args=[*args, *asked], shell_init_cmd="true", success_regex=["^x"])
    outcome = workspaces.run(made, store=store, arch=arch)
    assert outcome.verdicts == {"writes": "pass", "reads": "error", "runs": "error"}, outcome.said
    assert 'is no file of the workspace under trust = "sandboxed"' in outcome.case("reads")["reason"]
    assert "guestfwd" in outcome.case("runs")["reason"]
    assert not (tmp_path / "pwned").exists()


def test_what_a_confined_qemu_cannot_open(kernels: Mapping[Arch, Path], tmp_path: Path) -> None:
    """The allow-list is passed by here: these are files that only a QEMU that is broken into would ask for."""
    own, canary, folder = tmp_path / "own.img", tmp_path / "canary.img", tmp_path / "machine"
    for path in (own, canary):
        path.write_bytes(bytes(1 << 16))
    folder.mkdir()
    spec = arguments.MachineSpec(Arch.AARCH64, tuple(kernel.ARGS[Arch.AARCH64]), own, kernels[Arch.AARCH64], network="none")
    argv = arguments.arguments(spec)
    # The rules are those of the first command line; the second one asks for more.
    rules = sandbox.confined(argv, folder, tmp_path)
    asks = {
        "reads": ["-drive", f"if=none,id=x,format=raw,file={canary}"],
        "writes": ["-chardev", f"file,id=x,path={tmp_path}/new"],
        "logs": ["-D", f"{tmp_path}/log", "-d", "int"],
        "environment": ["-drive", f"if=none,id=x,format=raw,file=/proc/{os.getpid()}/environ"],
        "connects": ["-chardev", "socket,id=x,host=127.0.0.1,port=1"],
        "binds": ["-chardev", "socket,id=x,host=127.0.0.1,port=0,server=on,wait=off"],
    }
    monitor = ["-S", "-display", "none", "-serial", "none", "-monitor", "stdio"]

    def said(command: list[str]) -> str:
        environ = {**os.environ, "TMPDIR": str(folder)}
        done = subprocess.run(command, input="quit\n", capture_output=True, text=True, timeout=60, env=environ, check=False)
        return "" if done.returncode == 0 else done.stderr

    assert said([*rules, *monitor]) == ""
    for name, more in asks.items():
        assert "Permission denied" in said([*rules, *monitor, *more]), name
        assert "Permission denied" not in said([*argv, *monitor, *more]), name  # so it is the confinement that refuses
    assert not (tmp_path / "new").read_bytes()  # made by the free one alone
    if sandbox.has_seccomp(Arch.AARCH64):
        assert said([*rules, *monitor, "-sandbox", sandbox.SECCOMP]) == ""


def test_a_disk_that_is_exchanged_for_a_link_is_not_read(kernels: Mapping[Arch, Path], tmp_path: Path) -> None:
    """A stranger's kernel build may do so to another case, after its arguments were looked at and before QEMU opens the disk."""
    made, folder, outside = tmp_path / "w", tmp_path / "machine", tmp_path / "outside.img"
    for path in (made / "disks", folder):
        path.mkdir(parents=True)
    for path in (outside, tmp_path / "root.img", made / "second.img", made / "disks/third.img"):
        path.write_bytes(bytes(1 << 16))
    named = [f"if=none,id={id_},format=raw,file={file}" for id_, file in (("b", "second.img"), ("c", "disks/third.img"))]
    args = (*kernel.ARGS[Arch.AARCH64], "-drive", "if=none,id=disk0", "-drive", named[0], "-drive", named[1])
    spec = arguments.MachineSpec(Arch.AARCH64, args, tmp_path / "root.img", kernels[Arch.AARCH64], network="none", stranger=made)
    monitor = ["-S", "-display", "none", "-serial", "none", "-monitor", "stdio"]

    def said(command: list[str]) -> str:
        environ = {**os.environ, "TMPDIR": str(folder)}
        done = subprocess.run(
            [*command, *monitor], input="quit\n", capture_output=True, text=True, timeout=60, cwd=made, env=environ, check=False
        )
        return "" if done.returncode == 0 else done.stderr

    argv = arguments.arguments(spec)
    command = sandbox.confined(argv, folder, made)
    assert said(command) == ""
    (made / "disks/third.img").rename(made / "third.img")
    (made / "disks/third.img").symlink_to(outside)
    assert "Permission denied" in said(command)
    assert "Permission denied" in said(sandbox.confined(argv, folder, made))
    (made / "third.img").replace(made / "disks/third.img")
    assert said(command) == ""
    (made / "disks").rename(made / "others")
    (made / "disks").symlink_to(tmp_path)
    outside.rename(tmp_path / "third.img")
    assert "Permission denied" in said(command)
    (made / "disks").unlink()
    (made / "others").rename(made / "disks")
    (made / "second.img").rename(made / "real.img")
    (made / "second.img").symlink_to("real.img")  # a link within the workspace is one of its files
    assert said(sandbox.confined(argv, folder, made)) == ""


def test_a_program_without_a_rule_reads_nothing(tmp_path: Path) -> None:
    assert confine.version() >= 1
    (tmp_path / "canary").write_text("canary")
    (tmp_path / "open").write_text("open")
    rules = json.dumps({"read": ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", str(tmp_path / "open")], "write": ["/dev/null"]})
    launch = [sys.executable, "-I", "-S", confine.__file__, rules]
    allowed = subprocess.run([*launch, "/bin/cat", str(tmp_path / "open")], capture_output=True, text=True, check=False)
    assert allowed.stdout == "open", allowed.stderr
    for attempt in (
        ["/bin/cat", str(tmp_path / "canary")],
        ["/bin/ls", str(tmp_path)],
        ["/usr/bin/touch", str(tmp_path / "new")],
    ):
        refused = subprocess.run([*launch, *attempt], capture_output=True, text=True, check=False)
        assert "Permission denied" in refused.stderr, attempt
