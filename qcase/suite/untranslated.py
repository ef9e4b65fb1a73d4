"""Parts of a tree for axbuild that qcase does not know. `qcase init` tells them, so that nobody counts on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qcase.arch import Arch
from qcase.config import qemu_options, root_disk
from qcase.config.case_file import CaseFile
from qcase.config.qemu_options import ArgumentError
from qcase.config.toml_document import read_toml
from qcase.config.workspace_file import GuestConfig
from qcase.errors import QcaseError
from qcase.suite.root_images import GENERIC, usual_names
from qcase.text import printable

OF_DEBIAN = (Arch.X86_64, Arch.AARCH64, Arch.RISCV64)  # that the guest `debian` is there for, see `qcase.guests.debian`


def small_disks(root: Path, configs: Sequence[str]) -> list[tuple[Arch, str]]:
    """Return axbuild's small root filesystem, busybox alone, for each architecture whose cases have it as a disk."""
    found = {(_arch(path), name) for path in configs for name in _disks(_read(root / path).get("args"), _arch(path))}
    return sorted((arch, name) for arch, name in found if name == _small(arch) and arch in OF_DEBIAN)


def _small(arch: Arch) -> str:
    return f"rootfs-{arch}-busybox.img"


def find(root: Path, configs: Sequence[str], boards: Sequence[str]) -> list[str]:
    """Return the unknown keys of cases' files, disks of which nothing is known, and files for other machines than QEMU's."""
    keys: dict[str, list[str]] = {}
    disks: dict[str, list[str]] = {}
    for path in configs:
        data = _read(root / path)
        for key in data.keys() - CaseFile.model_fields.keys():
            keys.setdefault(printable(key), []).append(path)
        arch = _arch(path)
        for name in _disks(data.get("args"), arch) - {_small(arch)}:
            disks.setdefault(f"[guest.{arch}] disks has to say what {printable(name)} is", []).append(path)
    found = [f"the key {key} means nothing to qcase: {_files(paths)}" for key, paths in sorted(keys.items())]
    found += [f"{said}: {_files(paths)}" for said, paths in sorted(disks.items())]
    if boards:
        found.append(f"cases for boards are not run, only those for QEMU: {_files(boards)}")
    return found


def _read(path: Path) -> Mapping[str, Any]:
    """Read a case's file; empty for one that is no TOML, which `qcase lint` reports."""
    try:
        return read_toml(path)
    except QcaseError:
        return {}


def _arch(path: str) -> Arch:
    return Arch(path.rpartition("/")[2].removeprefix("qemu-").removesuffix(".toml").partition("-")[0])


def _disks(args: object, arch: Arch) -> set[str]:
    """Return the names of the files of disks that are not a root filesystem by its usual name."""
    if not isinstance(args, list) or not all(isinstance(arg, str) for arg in args):
        return set()
    try:
        drives = root_disk.drives(qemu_options.split(args))
    except ArgumentError:
        return set()
    known = usual_names(arch, GuestConfig()) | {"", *GENERIC}
    return {root_disk.named(drive.file) for drive in drives} - known


def _files(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{len(paths)} files, the first is {paths[0]}"
