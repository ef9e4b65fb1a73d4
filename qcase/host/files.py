"""Files and folders: written at once, flushed, listed and removed."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from qcase.host.trees import Tree

FEW_FILES = 64  # of an entry, flushed one by one: that does not wait for other processes' writes to the same disk


# --- files ----------------------------------------------------------------------------------------------------------------------


def write_flushed(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, 0o444)
        file.flush()
        os.fsync(fd)


@contextlib.contextmanager
def replacing(path: Path, *, flushed: bool = False) -> Iterator[Path]:
    """Give the hidden name of a new file beside `path`. It replaces `path` at the end, and is removed on an error.

    `flushed`: the file and its name are flushed, so that it is complete or absent even after a crash of the machine.
    """
    new = path.with_name(f".{path.name[:100]}.{os.getpid()}-{os.urandom(8).hex()}")
    try:
        yield new
        put(new, path) if flushed else new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def write_aside(path: Path, data: bytes, *, flushed: bool = False) -> None:
    """Replace a small file atomically. By default it is not flushed: its loss would not matter."""
    with replacing(path, flushed=flushed) as new, os.fdopen(create(new), "wb") as file:
        file.write(data)


def create(path: Path) -> int:
    """Create a file and return its descriptor. Nothing may be there, not even a link. Raises `OSError`."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def put(staged: Path, path: Path) -> None:
    """Flush a file, rename it to `path`, and flush the folder."""
    flush(staged)
    staged.replace(path)
    flush(path.parent)


def flush(path: Path | bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def flush_tree(content: Tree) -> None:
    """Flush every file and every folder of an entry to the disk.

    A tree of many files is flushed by one syncfs(2) of its file system: each fsync waits for the disk, and a staging root has
    thousands of files.
    """
    if content.is_file():
        with content.opened() as fd:
            os.fsync(fd)
        return
    files, folders = [], [content]
    for path, about in content.walk():
        if stat.S_ISDIR(about.st_mode):
            folders.append(content / path)
        elif stat.S_ISREG(about.st_mode):
            files.append(content / path)
    if len(files) > FEW_FILES and _flush_file_system(content):
        return
    for file in files:
        with file.opened() as fd:
            os.fsync(fd)
    for place in reversed(folders):
        with place.folder() as fd:
            os.fsync(fd)


def _flush_file_system(content: Tree) -> bool:
    """Flush all of the file system that holds a folder. False where each file has to be flushed by itself.

    Before Linux 5.8, syncfs does not report data that could not be written. An error may be another file's; an fsync of each file
    reports it again if it is one of this entry.
    """
    release = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
    if release < (5, 8):
        return False
    import ctypes  # 3 ms, which a warm run does not need

    with content.folder() as fd:
        return int(ctypes.CDLL(None, use_errno=True).syncfs(fd)) == 0


def listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
