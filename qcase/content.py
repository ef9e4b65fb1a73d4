"""What an entry of the store holds: its digest, how its files look, and how they get to the disk and away again.

An image is one file, `image.img`; an overlay is a folder, `content/`, with the guest's modes in it, and so is a download.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from qcase import keys
from qcase.errors import InfraError

_COARSE_CLOCK = 5  # Linux's CLOCK_REALTIME_COARSE, which stamps files; Python has no name for it

Facts = list[list[keys.JSON]]


class Kind(StrEnum):
    OVERLAY = "overlay"
    IMAGE = "image"
    DOWNLOAD = "download"

    @property
    def content(self) -> str:
        """The name of what an entry holds."""
        return "image.img" if self is Kind.IMAGE else "content"

    @property
    def is_folder(self) -> bool:
        return self is not Kind.IMAGE


def digest_of(kind: Kind, content: Path) -> tuple[str, list[list[str]]]:
    if kind is Kind.IMAGE:
        return keys.file_digest(content), []
    listing = keys.overlay_listing(content)
    return keys.digest(listing), listing


def facts_of(content: Path) -> Facts:
    """`[name, size, mode, mtime, ctime, inode]` of everything in an entry, by name; times in nanoseconds. No byte is read.

    ctime, because it is what nobody can set back: an edit that keeps size and mtime still shows. A folder's size is the
    filesystem's affair and its mtime follows from what is in it; both are left out.
    """
    rows: Facts = []
    pending: list[tuple[bytes, bytes]] = []

    def add(name: bytes, full: bytes, about: os.stat_result) -> None:
        mode, ctime, inode = about.st_mode, about.st_ctime_ns, about.st_ino
        shown = name.decode("utf-8", "surrogateescape")
        if stat.S_ISDIR(mode):
            rows.append([shown, 0, mode, 0, ctime, inode])
            pending.append((name + b"/" if name else b"", full))
        else:
            rows.append([shown, about.st_size, mode, about.st_mtime_ns, ctime, inode])

    root = os.fsencode(content)
    about = os.lstat(root)
    if stat.S_IFMT(about.st_mode) != (stat.S_IFDIR if content.name == Kind.OVERLAY.content else stat.S_IFREG):
        raise InfraError("is not what was to be built", where=str(content))
    add(b"", root, about)
    while pending:
        prefix, folder = pending.pop()
        with os.scandir(folder) as found:
            for item in found:
                add(prefix + item.name, item.path, item.stat(follow_symlinks=False))
    rows.sort(key=lambda row: str(row[0]).encode("utf-8", "surrogateescape"))
    return rows


def settle(facts: Facts) -> bool:
    """Wait until any later change would show in the facts. False for files that changed in the future.

    The clock that stamps files ticks every few milliseconds, and two changes within a tick look like one: it must have moved on
    since the newest of them before the content is read. Each change moves ctime; mtime is what somebody has set it to, and a
    build that sets it to the year 2100 has not made a file that will change until then.
    """
    newest = max(ctime for *_, ctime, _ in facts if isinstance(ctime, int))
    patience = time.monotonic() + 0.02
    while time.clock_gettime_ns(_COARSE_CLOCK) <= newest:
        if time.monotonic() > patience:
            return False
        time.sleep(0.001)
    return True


def first_change(old: Facts, new: Facts) -> str:
    """The first thing that differs between two lists of facts, in words."""
    before = {str(row[0]): row[1:] for row in old}
    after = {str(row[0]): row[1:] for row in new}
    for name in sorted({*before, *after}):
        shown = keys.printable(name) if name else "its content"
        if name not in after:
            return f"{shown} is gone"
        if name not in before:
            return f"{shown} was added"
        if before[name][0] != after[name][0]:
            return f"{shown} has {after[name][0]} bytes, not {before[name][0]}"
        if before[name] != after[name]:
            return f"{shown} was changed after it was stored"
    return ""


def restore_modes(content: Path, listing: list[list[str]]) -> None:
    """Give an overlay its modes back: an archive that was unpacked with a umask has lost some."""
    for path, type_, mode, _ in reversed(listing):  # what is in a folder before the folder itself
        if type_ != "link":
            full = os.path.join(os.fsencode(content), path.encode("utf-8", "surrogateescape"))  # noqa: PTH118
            if not stat.S_ISLNK(os.lstat(full).st_mode):
                with contextlib.suppress(PermissionError):
                    os.chmod(full, int(mode, 8))  # noqa: PTH101


# --- files ----------------------------------------------------------------------------------------------------------------------


def write_flushed(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, 0o444)
        file.flush()
        os.fsync(fd)


def write_aside(path: Path, data: bytes) -> None:
    """Replace a small file whose loss would not matter, but which nobody may see half-written."""
    new = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        new.write_bytes(data)
        new.rename(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def flush(path: Path | bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def flush_tree(content: Path) -> None:
    """fsync every file, then its folder."""
    if not content.is_dir():
        flush(content)
        return
    for folder, _, files in os.walk(os.fsencode(content), topdown=False):
        for name in files:
            full = os.path.join(folder, name)  # noqa: PTH118 - a Path cannot hold bytes
            if stat.S_ISREG(os.lstat(full).st_mode):
                flush(full)
        flush(folder)


def copy_tree(source: Path, target: Path, *, there: bool = False, copy: Callable[[str, str], object] = shutil.copy2) -> None:
    """Copy a folder, symlinks as they are; with `there`, into one that is there.

    Raises `OSError` for the first thing that failed: `shutil` has a list of all of them, which knows errors as text alone.
    """
    try:
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=there, copy_function=copy)
    except shutil.Error as error:
        failed = error.args[0]
        if not isinstance(failed, list) or not failed:
            raise
        _, path, why = failed[0]
        number = re.match(r"\[Errno (\d+)\]", str(why))
        if number is None:
            raise OSError(errno.EIO, str(why), path) from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), path) from error


def remove_tree(path: Path) -> None:
    """Remove a file or a folder, also one whose folders are not writable. Links are not followed, and nothing there is fine."""
    _remove(os.fsencode(path))


def _remove(path: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):  # somebody else removes it, too
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)  # noqa: PTH108
            return
        os.chmod(path, 0o700)  # noqa: PTH101
        with os.scandir(path) as found:
            names = [item.path for item in found]
        for name in names:
            _remove(name)
        os.rmdir(path)  # noqa: PTH106


def listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
