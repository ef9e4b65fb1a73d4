"""UEFI firmware for a case with `uefi = true`: found as QEMU's own tools find it, or named by path.

Distributions describe their firmware in JSON files (QEMU's docs/interop/firmware.json). qcase searches these folders; a file
hides files of the same name in the folders below:

    $XDG_CONFIG_HOME/qemu/firmware/*.json     a user's
    /etc/qemu/firmware/*.json                 the administrator's
    /usr/share/qemu/firmware/*.json           the distribution's
    $QCASE_FIRMWARE_PATH                      folders of such files that a package of qcase brings, as Nix's does

qcase takes the first one by name that is for the architecture, in flash, without Secure Boot. The code is attached read-only. The
variables are a template that is never written: `-snapshot` gives each run a copy of its own, which ends with the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcase import parsing
from qcase.arch import OTHER_PE_MACHINES, Arch, UefiSpec
from qcase.errors import InfraError, KernelError, UsageError
from qcase.host import file_state

_UNWANTED = {"secure-boot", "enrolled-keys", "requires-smm"}
_PE_MACHINES = {**OTHER_PE_MACHINES, **{arch.spec.uefi.pe_machine: arch.value for arch in Arch if arch.spec.uefi}}


@dataclass(frozen=True)
class Firmware:
    """Files for two flash devices. `variables`: None if the code file holds them, or there are none. `sha256`: of the code.

    `facts`: stat data of the code file when it was read.
    """

    code: Path
    variables: Path | None
    sha256: str
    facts: Mapping[str, int] = field(default_factory=dict, compare=False)


def uefi_of(arch: Arch) -> UefiSpec:
    """Return the row of an architecture's UEFI. Raises `UsageError` if it has none."""
    if arch.spec.uefi is None:
        raise UsageError(f"{arch} has no UEFI", where="uefi", hint="leave out uefi")
    return arch.spec.uefi


def check_qemu(arch: Arch, version: tuple[int, int]) -> None:
    """Check that a QEMU can start firmware from flash. Raises `InfraError` that names the first version that can."""
    needed = uefi_of(arch).since
    if version < needed:
        raise InfraError(
            f"QEMU {version[0]}.{version[1]} does not start UEFI firmware for {arch}",
            where="uefi",
            hint=f"it takes QEMU {needed[0]}.{needed[1]} or newer, or leave out uefi",
        )


def named(code: Path, variables: Path | None, arch: Arch) -> Firmware:
    """Return the firmware at given paths. Raises `UsageError` for a missing file."""
    for path, key in ((code, "firmware"), (variables, "firmware_vars")):
        if path is not None and not path.is_file():
            raise UsageError("there is no such file", where=f"[guest.{arch}] {key}: {path}")
    return _read(code, variables)


def find(arch: Arch, environ: Mapping[str, str], folders: Sequence[Path] | None = None) -> Firmware:
    """Find the firmware of this machine. Raises `InfraError` if there is none for the architecture."""
    package = uefi_of(arch).package
    looked = search_path(environ) if folders is None else folders
    for path in descriptors(looked):
        found = _described(path, arch)
        if found is not None and all(file is None or file.is_file() for file in found):
            code, variables = found
            return _read(code, variables)
    raise InfraError(
        f"there is no UEFI firmware for {arch} on this machine",
        where="uefi",
        hint=f"install it (Debian: apt-get install {package}), or name it: [guest.{arch}] firmware",
    )


def current(found: Firmware) -> Firmware:
    """Return firmware in its current state: read again if it was replaced, as by an update of the machine during a run."""
    return found if file_state.is_as_recorded(found.code.resolve(), found.facts) else _read(found.code, found.variables)


def _read(code: Path, variables: Path | None) -> Firmware:
    try:
        record = file_state.read(code.resolve())
    except OSError as error:
        raise InfraError(f"cannot be read: {error.strerror}", where=str(code)) from None
    return Firmware(code, variables, record["sha256"], record["facts"])


def search_path(environ: Mapping[str, str]) -> list[Path]:
    home = environ.get("XDG_CONFIG_HOME") or (f"{environ['HOME']}/.config" if environ.get("HOME") else "")
    own = [Path(home, "qemu/firmware")] if home else []
    brought = [Path(folder) for folder in environ.get("QCASE_FIRMWARE_PATH", "").split(":") if folder]
    return [*own, Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"), *brought]


def descriptors(folders: Sequence[Path]) -> list[Path]:
    """Return all descriptions, ordered by name; an empty file hides files of its name in later folders."""
    by_name: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            by_name.setdefault(path.name, path)
    return [path for _, path in sorted(by_name.items())]


def _described(path: Path, arch: Arch) -> tuple[Path, Path | None] | None:
    """Return code and variables of a matching description, else None. A broken one is skipped, as other tools do."""
    try:
        described: dict[str, Any] = parsing.from_json(path.read_bytes())
        mapping = described["mapping"]
        targets = {target["architecture"] for target in described["targets"]}
        usable = "uefi" in described["interface-types"] and mapping["device"] == "flash" and arch.value in targets
        if not usable or _UNWANTED & set(described["features"]) or mapping["executable"]["format"] != "raw":
            return None
        template = mapping.get("nvram-template")
        if template is not None and template["format"] != "raw":
            return None
        return Path(mapping["executable"]["filename"]), Path(template["filename"]) if template is not None else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def check_program(kernel: Path, arch: Arch, where: str) -> None:
    """Check that a kernel is an EFI application for an architecture. Raises `KernelError` that names its actual type."""
    with kernel.open("rb") as file:
        head = file.read(4096)
    at = int.from_bytes(head[0x3C:0x40], "little")
    if head[:2] != b"MZ" or head[at : at + 4] != b"PE\0\0":
        what = "an ELF file" if head[:4] == b"\x7fELF" else "something else"
        raise KernelError(
            f"uefi starts the kernel as an EFI application, and {kernel} is {what}",
            where=where,
            hint="build a PE file, or an ELF whose raw binary is one and set to_bin, or leave out uefi",
        )
    machine = int.from_bytes(head[at + 4 : at + 6], "little")
    found = _PE_MACHINES.get(machine, f"machine {machine:#x}")
    if found != arch.value:
        raise KernelError(f"{kernel} is an EFI application for {found}, not for {arch}", where=where)
