"""Cases with `uefi`, by real firmware: an EFI application of our own from a disk, Linux with an initrd and a command line."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.containers.engine import Engine
from qcase.containers.step import Mount, Step
from qcase.toolchains.records import Image
from tests import kernel
from tests.vm import workspaces
from tests.vm.workspaces import Workspace

pytestmark = [pytest.mark.vm, pytest.mark.container]

SOURCES = Path(__file__).parent.parent / "uefi"
BUILD = """
for arch in x86_64 aarch64; do
    clang --target=$arch-unknown-windows -O2 -std=c17 -Wall -Wextra -Werror -ffreestanding -fshort-wchar -mno-stack-arg-probe \
        -nostdlib -fuse-ld=lld -Wl,-entry:efi_main -Wl,-subsystem:efi_application -o app-$arch.efi /qcase/src/app.c
done
"""


@pytest.fixture(scope="module")
def made(shared_engine: Engine, toolchain_c: Image, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace whose kernel is an EFI application."""
    workspace = Workspace.make(tmp_path_factory.mktemp("uefi") / "w", '[run]\nnetwork = "none"\n')
    root = workspace.root
    shared_engine.check(
        Step(
            image=toolchain_c.id,
            argv=("sh", "-euc", BUILD),
            mounts=(Mount(SOURCES, "/qcase/src"), Mount(root, "/qcase/build", read_only=False)),
            workdir="/qcase/build",
            timeout=120,
            name="build the EFI application",
        )
    )
    (root / "root.img").write_bytes(bytes(1 << 16))
    with (root / "qcase.toml").open("a") as file:
        for arch in (Arch.X86_64, Arch.AARCH64):
            file.write(f'[guest.{arch}]\nrootfs = "root.img"\nkernel = "app-{arch}.efi"\n')
    return workspace


@pytest.mark.parametrize("arch", [Arch.X86_64, Arch.AARCH64])
def test_firmware_starts_the_kernel_from_a_disk(arch: Arch, made: Workspace, tmp_path: Path) -> None:
    # Debian 12's firmware for aarch64 once fell silent behind its first line under QEMU 7.2, and in none of 18 boots tried since.
    keys = {"timeout": 120, "qcase": {"retries": 1}}
    kernel.case(made, "boots", None, arch=arch, uefi=True, args=[*kernel.ARGS[arch], "-m", "128M"], **keys)
    outcome = workspaces.run(made, store=tmp_path / "store", arch=arch)
    assert outcome.verdicts == {"boots": "pass"}, outcome.said
    booted = outcome.case("boots")["booted"]
    firmware = Path(booted["firmware"])
    assert booted["firmware_sha256"] == hashlib.sha256(firmware.read_bytes()).hexdigest()
    assert booted["kernel_sha256"] == hashlib.sha256((made.root / f"app-{arch}.efi").read_bytes()).hexdigest()


def test_linux_gets_its_initrd_and_its_command_line_through_the_firmware(test_cache: Path, tmp_path: Path) -> None:
    workspace = Workspace.make(tmp_path / "w")
    workspace.case("linux", uefi=True, shell_init_cmd="ls /sys/firmware/efi; hostname", success_regex=["^qcase$"])
    outcome = workspaces.run(workspace, store=workspaces.fresh_store(tmp_path / "store", test_cache))
    assert outcome.verdicts == {"linux": "pass"}, outcome.said
    log = (workspace.root / outcome.case("linux")["console_log"]).read_bytes()
    assert b"systab" in log, "the kernel was started by UEFI, and its services are there"


def test_what_is_no_efi_application_and_firmware_that_is_not_there(
    kernels: Mapping[Arch, Path], made: Workspace, tmp_path: Path
) -> None:
    kernel.case(made, "boots", None, uefi=True)
    elf = workspaces.run(made, "--kernel", str(kernels[Arch.AARCH64]), store=tmp_path / "store")
    assert elf.exit_code == 1
    assert "uefi starts the kernel as an EFI application, and " in elf.case("boots")["reason"]
    assert "is an ELF file" in elf.case("boots")["reason"]
    other = workspaces.run(made, "--kernel", str(made.root / "app-x86_64.efi"), store=tmp_path / "store")
    assert "is an EFI application for x86_64, not for aarch64" in other.case("boots")["reason"]
    without = Workspace(tmp_path / "without")
    shutil.copytree(made.root, without.root, ignore=shutil.ignore_patterns("target"))
    text = (without.root / "qcase.toml").read_text()
    (without.root / "qcase.toml").write_text(text.replace("[guest.aarch64]", '[guest.aarch64]\nfirmware = "none.fd"'))
    gone = workspaces.run(without, store=tmp_path / "store")
    assert gone.exit_code == 2
    assert "[guest.aarch64] firmware: " in gone.case("boots")["reason"]
    assert "none.fd: there is no such file" in gone.case("boots")["reason"]
