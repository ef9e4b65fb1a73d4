"""Kernels of build groups, from the command that makes them to the report; `--kernel`, `to_bin`; our own stands for theirs."""

from __future__ import annotations

import gzip
import hashlib
import json
import shlex
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.containers.engine import Engine
from qcase.guests import guest
from qcase.toolchains.records import Image
from tests import kernel
from tests.vm import workspaces
from tests.vm.workspaces import QCASE, Workspace

pytestmark = pytest.mark.vm

TARGET = Arch.AARCH64.default_target


def workspace(folder: Path, kernels: Mapping[Arch, Path], setting: str) -> Workspace:
    """A workspace whose kernel is `setting`, with the real kernel beside it under the name `ours`."""
    made = Workspace.make(folder / "w", f'[run]\nnetwork = "none"\n[guest.aarch64]\nrootfs = "root.img"\nkernel = {setting}\n')
    (made.root / "root.img").write_bytes(bytes(1 << 16))
    (made.root / "ours").write_bytes(kernels[Arch.AARCH64].read_bytes())
    return made


def build_group(made: Workspace, name: str, *cases: str) -> None:
    made.path(name).mkdir(parents=True)
    (made.path(name) / f"build-{TARGET}.toml").touch()
    for case in cases:
        kernel.case(made, f"{name}/{case}", "pass")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_each_build_group_boots_its_own_kernel_and_a_broken_one_spoils_only_its_own(
    kernels: Mapping[Arch, Path], tmp_path: Path
) -> None:
    build = (
        "echo building ${build_group} for ${target}; echo ${build_group} >>count; sleep 0.6;"
        " if grep nonsense ${build_config}; then exit 1; fi; cp ours out; printf %s ${build_group} >>out"
    )
    made = workspace(tmp_path, kernels, json.dumps(build).join(("{ build = ", ', output = "out" }')))
    build_group(made, "one", "a", "b")
    build_group(made, "two", "third")
    build_group(made, "bad", "d", "e")
    (made.path("bad") / f"build-{TARGET}.toml").write_text("nonsense = 1\n")
    outcome = workspaces.run(made, store=tmp_path / "store")
    assert outcome.verdicts == {"one/a": "pass", "one/b": "pass", "two/third": "pass", "bad/d": "error", "bad/e": "error"}
    assert outcome.exit_code == 1
    assert outcome.report is not None
    builds = {build["kernel"]: build for build in outcome.report["kernels"]}
    assert {name: bool(build["error"]) for name, build in builds.items()} == {"one": False, "two": False, "bad": True}
    assert builds["bad"]["error"] == "its build ended with status 1"
    assert "building bad for" in builds["bad"]["details"]
    assert outcome.said.count("its build ended with status 1") == 1
    assert all(build["seconds"] >= 0.6 for build in builds.values())
    assert sorted((made.root / "count").read_text().split()) == ["bad", "one", "two"]
    for case in ("bad/d", "bad/e"):
        failed = outcome.case(case)
        assert failed["fault"] == "case"
        assert failed["reason"] == "the kernel of bad was not built: see target/qcase/logs/aarch64/bad/kernel.log"
        assert failed["details"] == ""
        assert failed["times"]["total"] < 0.5, "the build's time is not the case's"
        assert failed["booted"] is None
    for case, group in (("one/a", "one"), ("two/third", "two")):
        booted = outcome.case(case)["booted"]
        whole = kernels[Arch.AARCH64].read_bytes() + group.encode()
        assert booted["kernel_sha256"] == hashlib.sha256(whole).hexdigest() == sha256(Path(booted["kernel"]))
        assert booted["accel"] == "tcg"
    log = made.root / "target/qcase/logs/aarch64/one/kernel.log"
    assert log.read_text() == f"building one for {TARGET}\n"


def test_a_kernel_on_the_command_line_wins(kernels: Mapping[Arch, Path], tmp_path: Path) -> None:
    made = workspace(tmp_path, kernels, '{ build = "exit 1", output = "never" }')
    kernel.case(made, "one", "pass")
    mine = tmp_path / "mine"
    mine.write_bytes(kernels[Arch.AARCH64].read_bytes() + b"mine")
    outcome = workspaces.run(made, "--kernel", str(mine), store=tmp_path / "store")
    assert outcome.verdicts == {"one": "pass"}
    assert outcome.case("one")["booted"]["kernel_sha256"] == sha256(mine)


def test_a_kernel_that_is_packed_for_firmware_is_unpacked(test_cache: Path, tmp_path: Path) -> None:
    """QEMU before 8 does not start arm64's EFI zboot files."""
    alpine = guest.alpine_guest(Arch.AARCH64, test_cache, emit=lambda _: None)
    assert alpine.kernel is not None
    packed = gzip.compress(alpine.kernel.read_bytes(), 1)
    made = Workspace.make(
        tmp_path / "w", f'[guest.aarch64]\nkernel = "vmlinuz"\ninitrd = "{alpine.initrd}"\nappend = "{alpine.append}"\n'
    )
    head = b"MZ\0\0zimg" + struct.pack("<II8x32s", 64, len(packed), b"gzip")
    (made.root / "vmlinuz").write_bytes(head.ljust(64, b"\0") + packed)
    made.case("one", shell_init_cmd="uname -m", success_regex=["^aarch64$"])
    outcome = workspaces.run(made, store=workspaces.fresh_store(tmp_path / "store", test_cache))
    assert outcome.verdicts == {"one": "pass"}, outcome.said
    assert outcome.case("one")["booted"]["kernel_sha256"] == sha256(alpine.kernel)


def test_wrong_kernels_are_one_clear_error_each(kernels: Mapping[Arch, Path], tmp_path: Path) -> None:
    made = workspace(tmp_path, kernels, '"ours"')
    kernel.case(made, "one", "pass")
    store = tmp_path / "store"
    gone = workspaces.run(made, "--kernel", "nowhere", store=store)
    assert gone.exit_code == 2
    assert "error: --kernel nowhere: there is no such file" in gone.said
    other = workspaces.run(made, "--kernel", str(kernels[Arch.RISCV64]), store=store)
    assert other.exit_code == 2
    assert f"--kernel: {kernels[Arch.RISCV64]} is for riscv64, not for aarch64" in other.case("one")["reason"]
    (made.root / "ours").write_bytes(kernels[Arch.X86_64].read_bytes())
    path = workspaces.run(made, store=store)
    assert path.exit_code == 2
    assert "[guest.aarch64] kernel: " in path.case("one")["reason"]
    assert "is for x86_64, not for aarch64" in path.case("one")["reason"]


def test_a_kernel_by_its_address(kernels: Mapping[Arch, Path], tmp_path: Path) -> None:
    source = tmp_path / "kernel-by-address"
    source.write_bytes(kernels[Arch.AARCH64].read_bytes())
    made = workspace(tmp_path, kernels, f'{{ url = "{source.as_uri()}", sha256 = "{sha256(source)}" }}')
    kernel.case(made, "one", "pass")
    first = workspaces.run(made, store=tmp_path / "store")
    assert first.verdicts == {"one": "pass"}
    assert first.case("one")["booted"]["kernel_sha256"] == sha256(source)
    source.write_bytes(b"another")  # what is in the store is what was meant
    assert workspaces.run(made, store=tmp_path / "store").verdicts == {"one": "pass"}
    changed = workspaces.run(made, store=tmp_path / "other store")
    assert changed.exit_code == 3
    assert f"{source.as_uri()}: has the sha256 {sha256(source)}, expected" in changed.case("one")["reason"]
    source.unlink()
    missing = workspaces.run(made, store=tmp_path / "third store")
    assert "there is no such file" in missing.case("one")["reason"]


@pytest.mark.container
@pytest.mark.parametrize("arch", [Arch.AARCH64, Arch.RISCV64])
def test_to_bin_boots_a_raw_binary(
    arch: Arch, kernels: Mapping[Arch, Path], toolchain_c: Image, shared_engine: Engine, test_cache: Path, tmp_path: Path
) -> None:
    made = kernel.workspace(tmp_path / "w", kernels)
    kernel.case(made, "raw", "pass", arch=arch, to_bin=True)
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    outcome = workspaces.run(made, store=store, arch=arch)
    assert outcome.verdicts == {"raw": "pass"}, outcome.said
    booted = outcome.case("raw")["booted"]
    raw = Path(booted["kernel"])
    assert raw.name.startswith(f"kernel-{arch}-")
    assert raw.name.endswith(".bin")
    assert booted["kernel_sha256"] == sha256(raw)
    assert raw.read_bytes()[:4] != b"\x7fELF"


def test_the_command_of_a_case_can_be_pasted(kernels: Mapping[Arch, Path], tmp_path: Path) -> None:
    made = kernel.workspace(tmp_path / "a folder, with 'odd' signs", kernels)
    kernel.case(made, "one", "pass")
    argv: list[str | Path] = [QCASE, "argv", "one", "-a", "aarch64", "-w", made.root, "--cache-dir", tmp_path / "store"]
    home = workspaces.environment(tmp_path / "home")
    printed = subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True, env=home, timeout=60).stdout
    assert printed.count("\n") == 1
    assert shlex.split(printed)[0] == "qemu-system-aarch64"
    said = subprocess.run(
        ["sh", "-c", printed], input=b"pass\noff\n", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, timeout=60
    ).stdout
    assert b"PASS" in said
