"""Root filesystems of cases: selects the image of a case's root disk, and of each of its other disks.

[qcase] rootfs                       the case's own word, first of all
[guest.<arch>] disks                 by the file name of the drive
axbuild's names, or no name          [guest.<arch>] rootfs: rootfs-<arch>.img, rootfs-<arch>-alpine.img, …
a file that is there                 that file
disk.img, rootfs.img                 [guest.<arch>] rootfs, where no such file is there
anything else                        an error: the guest would lack what the case needs
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from qcase.arch import Arch
from qcase.config import qemu_options, root_disk
from qcase.config.workspace_file import Download, GuestConfig, guest_words, is_guest
from qcase.errors import ConfigError, Problem
from qcase.suite.cases import Case, Workspace

Source = str | Download

GENERIC = ("disk.img", "rootfs.img")  # the names of examples, of no particular root filesystem


def root(case: Case, workspace: Workspace) -> Source | None:
    """Return the image of a case's root disk; None for `[guest.<arch>] rootfs`. Raises `ConfigError` for an unknown name."""
    if case.config.ktest:
        return None
    guest = workspace.config.guest[case.arch]
    if (name := case.config.rootfs) is not None:
        if name in guest.disks or is_guest(name) or (workspace.root / name).exists():
            return guest.disks.get(name, name)
        raise _unknown(
            f"there is no file {name!r}, and nothing says what stands in for it", "qcase.rootfs", name, case, workspace
        )
    drive, _ = _drives(case.config.args)
    if drive is None or drive.file is None:
        return None
    return _of_file(drive.file, case, workspace)


def others(case: Case, workspace: Workspace) -> Mapping[str, Source | None]:
    """Return the images of a case's other disks by file name, except existing files; None as with `root`. All disks of a ktest
    case are such.

    Raises `ConfigError` likewise.
    """
    found: dict[str, Source | None] = {}
    first, rest = _drives(case.config.args)
    for drive in (*rest, *([first] if first is not None and case.config.ktest else [])):
        if drive.file is not None and not _is_special(drive.file):
            source = _of_file(drive.file, case, workspace)
            if source != str(workspace.root / drive.file):
                found[root_disk.named(drive.file)] = source
    return found


def files(case: Case, workspace: Workspace) -> list[Path]:
    """Return the files of the workspace among the images of a case's disks."""
    try:
        sources = [root(case, workspace), *others(case, workspace).values()]
    except ConfigError:
        return []
    return [workspace.root / source for source in sources if isinstance(source, str) and not is_guest(source)]


def usual_names(arch: Arch, guest: GuestConfig) -> frozenset[str]:
    """Return the file names that mean the guest's own root filesystem: axbuild's names, and the name of the configured image."""
    own = guest.rootfs.url if isinstance(guest.rootfs, Download) else guest.rootfs
    names = {f"rootfs-{arch}.img", f"rootfs-{arch}-alpine.img", root_disk.named(own)}
    return frozenset(names | ({f"rootfs-{arch}-{own}.img"} if is_guest(own) else set()))


@functools.lru_cache(maxsize=256)  # the cases of a suite have few sets of arguments
def _drives(args: tuple[str, ...]) -> tuple[root_disk.Drive | None, tuple[root_disk.Drive, ...]]:
    """Return the root disk and the other disks that arguments name."""
    options = qemu_options.split(args)
    return root_disk.root(options), tuple(root_disk.others(options))


def _of_file(file: str, case: Case, workspace: Workspace) -> Source | None:
    name = root_disk.named(file)
    guest = workspace.config.guest[case.arch]
    if name in guest.disks:
        return guest.disks[name]
    if name in usual_names(case.arch, guest):
        return None
    path = workspace.root / file
    if path.exists():
        return str(path)
    if name in GENERIC:
        return None
    what = f"a disk names {file!r}, which is not there, and nothing says what stands in for it"
    raise _unknown(what, "args", name, case, workspace)


def _unknown(what: str, key: str, name: str, case: Case, workspace: Workspace) -> ConfigError:
    hint = f'[guest.{case.arch}] disks = {{ "{name}" = … }} does, with {guest_words()}, a path or {{ url, sha256 }}'
    return ConfigError([Problem(what, workspace.relative(case.config_path), key=key, hint=hint)])


def _is_special(file: str) -> bool:
    """Tell whether a disk's file is a QEMU protocol address or a device."""
    return ":" in file or file.startswith("/dev/")
