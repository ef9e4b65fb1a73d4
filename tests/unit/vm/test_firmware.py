"""Finding firmware as its descriptions say, and what is no EFI application."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qcase.arch import Arch
from qcase.errors import InfraError, KernelError, UsageError
from qcase.guests import kernel_files
from qcase.vm import firmware


def describe(folder: Path, name: str, code: Path, arch: str = "x86_64", *, kind: str = "uefi", **changes: Any) -> None:
    """A description as Debian has it."""
    folder.mkdir(parents=True, exist_ok=True)
    code.write_bytes(f"code of {name}".encode())
    code.with_suffix(".vars").write_bytes(b"variables")
    described = {
        "interface-types": [kind],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(code), "format": "raw"},
            "nvram-template": {"filename": str(code.with_suffix(".vars")), "format": "raw"},
        },
        "targets": [{"architecture": arch, "machines": ["pc-q35-*"]}],
        "features": ["acpi-s3", "amd-sev"],
        **changes,
    }
    (folder / f"{name}.json").write_text(json.dumps(described))


def test_the_first_by_name_that_fits_is_taken(tmp_path: Path) -> None:
    etc, usr = tmp_path / "etc", tmp_path / "usr"
    describe(usr, "40-secure", tmp_path / "a.fd", features=["secure-boot"])
    describe(usr, "50-bios", tmp_path / "b.fd", kind="bios")
    describe(usr, "51-other", tmp_path / "c.fd", arch="aarch64")
    describe(usr, "52-hidden", tmp_path / "d.fd")
    etc.mkdir()
    (etc / "52-hidden.json").touch()
    (usr / "53-broken.json").write_text("{")
    (usr / "54-odd.json").write_text('["uefi"]')
    describe(usr, "55-memory", tmp_path / "e.fd", mapping={"device": "memory", "filename": "x"})
    describe(usr, "56-gone", tmp_path / "f.fd")
    (tmp_path / "f.fd").unlink()
    describe(usr, "60-good", tmp_path / "good.fd")
    describe(usr, "70-later", tmp_path / "later.fd")
    found = firmware.find(Arch.X86_64, {}, [tmp_path / "none", etc, usr])
    assert found == firmware.Firmware(tmp_path / "good.fd", tmp_path / "good.vars", kernel_files.digest(tmp_path / "good.fd"))
    assert firmware.find(Arch.AARCH64, {}, [etc, usr]).code == tmp_path / "c.fd"


def test_an_administrators_description_goes_before_the_distributions(tmp_path: Path) -> None:
    describe(tmp_path / "usr", "60-x", tmp_path / "theirs.fd")
    describe(tmp_path / "etc", "60-x", tmp_path / "ours.fd")
    assert firmware.find(Arch.X86_64, {}, [tmp_path / "etc", tmp_path / "usr"]).code == tmp_path / "ours.fd"


def test_a_machine_without_firmware_is_told_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="there is no UEFI firmware for riscv64 on this machine") as caught:
        firmware.find(Arch.RISCV64, {}, [tmp_path])
    assert "qemu-efi-riscv64" in caught.value.hint
    assert "[guest.riscv64] firmware" in caught.value.hint


def test_where_it_is_looked_for() -> None:
    assert firmware.search_path({"HOME": "/home/me"})[0] == Path("/home/me/.config/qemu/firmware")
    assert firmware.search_path({"HOME": "/home/me", "XDG_CONFIG_HOME": "/cfg"})[0] == Path("/cfg/qemu/firmware")
    assert firmware.search_path({}) == [Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware")]
    assert firmware.search_path({"QCASE_FIRMWARE_PATH": "/nix/a:/nix/b"})[2:] == [Path("/nix/a"), Path("/nix/b")]


def test_firmware_that_is_replaced_during_a_run_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "code.fd").write_bytes(b"old")
    (tmp_path / "link.fd").symlink_to("code.fd")
    found = firmware.named(tmp_path / "link.fd", None, Arch.X86_64)
    assert firmware.current(found) is found
    (tmp_path / "code.fd").write_bytes(b"new")
    assert firmware.current(found).sha256 == kernel_files.digest(tmp_path / "code.fd") != found.sha256
    (tmp_path / "code.fd").unlink()
    with pytest.raises(InfraError, match="cannot be read"):
        firmware.current(found)


def test_firmware_by_path(tmp_path: Path) -> None:
    code = tmp_path / "code.fd"
    code.write_bytes(b"code")
    assert firmware.named(code, None, Arch.X86_64).variables is None
    with pytest.raises(UsageError, match=r"^\[guest.x86_64\] firmware_vars: .*/vars.fd: there is no such file$"):
        firmware.named(code, tmp_path / "vars.fd", Arch.X86_64)
    with pytest.raises(UsageError, match=r"firmware: .*none: there is no such file"):
        firmware.named(tmp_path / "none", None, Arch.X86_64)


def pe(machine: int) -> bytes:
    return (
        b"MZ".ljust(0x3C, b"\0")
        + (0x80).to_bytes(4, "little")
        + bytes(0x40)
        + b"PE\0\0"
        + machine.to_bytes(2, "little")
        + bytes(64)
    )


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x7fELF" + bytes(100), "is an ELF file"),
        (b"MZ" + bytes(100), "is something else"),
        (b"", "is something else"),
        (pe(0xAA64), "is an EFI application for aarch64, not for x86_64"),
        (pe(0x1234), "is an EFI application for machine 0x1234, not for x86_64"),
    ],
)
def test_what_is_no_efi_application_is_refused(data: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(data)
    with pytest.raises(KernelError, match=what):
        firmware.check_program(tmp_path / "kernel", Arch.X86_64, "normal/one")


def test_an_efi_application_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(pe(0x8664))
    firmware.check_program(tmp_path / "kernel", Arch.X86_64, "normal/one")


def test_a_qemu_that_is_too_old_is_named() -> None:
    with pytest.raises(InfraError, match=r"QEMU 7\.2 does not start UEFI firmware for riscv64") as caught:
        firmware.check_qemu(Arch.RISCV64, (7, 2))
    assert "QEMU 8.1 or newer" in caught.value.hint
    firmware.check_qemu(Arch.RISCV64, (8, 1))
    firmware.check_qemu(Arch.X86_64, (7, 2))
