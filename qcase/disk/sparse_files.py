"""Sparse files: copied and read by their extents."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from qcase.host.holes import CHUNK, data_ranges, read_fully, write_all

# --- copy ---------------------------------------------------------------------------------------------------------------

_FICLONE = 0x40049409
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def copy_file_fast(src: Path, dst: Path) -> None:
    """Copy a regular file: share its blocks where the filesystem can (reflink), else copy the data and keep the holes.

    If the file has no holes, or its filesystem does not report them (FUSE, NFS before 4.2), zeros become holes.

    `dst` must not exist; it gets the permissions of any new file. On an error nothing of it is left. Raises `OSError`, so that
    the caller can tell a full disk (`ENOSPC`) from the rest.
    """
    with opened(src) as source:
        facts = os.fstat(source)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(src))
        target = os.open(dst, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if not _clone(source, target):
                _copy_data(source, target, facts.st_size)
            os.close(target)
        except BaseException:
            with contextlib.suppress(OSError):  # already closed, if closing failed
                os.close(target)
            dst.unlink(missing_ok=True)
            raise


def _clone(source: int, target: int) -> bool:
    """Reflink. False where the filesystem has none, or the two files are on different ones."""
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        return False
    return True


def _copy_data(source: int, target: int, size: int) -> None:
    os.ftruncate(target, size)
    ranges = data_ranges(source, 0, size)
    if next(ranges, None) == (0, size):
        _copy_what_is_not_zero(source, target, size)
        return
    in_kernel = True
    for position, end in data_ranges(source, 0, size):
        while position < end:
            copied = 0
            if in_kernel:
                try:
                    copied = os.copy_file_range(source, target, end - position, position, position)
                except OSError as error:
                    if error.errno in _NO_ROOM:
                        raise
                # Not between these two filesystems, or (0 bytes) not from this one.
                in_kernel = copied > 0
            if not in_kernel:
                copied = os.pwrite(target, read_fully(source, min(CHUNK, end - position), position), position)
            position += copied


_ZEROS = bytes(64 << 10)


def _copy_what_is_not_zero(source: int, target: int, size: int) -> None:
    """Copy to a file that is one hole; pieces of 64 KiB that are zeros stay holes."""
    for position in range(0, size, CHUNK):
        chunk = read_fully(source, min(CHUNK, size - position), position)
        start = 0  # offset in `chunk` of the data still to be written
        for at in range(0, len(chunk), len(_ZEROS)):
            length = min(len(_ZEROS), len(chunk) - at)
            if chunk.startswith(_ZEROS[:length], at):
                write_all(target, memoryview(chunk)[start:at], position + start)
                start = at + length
        write_all(target, memoryview(chunk)[start:], position + start)


def all_zero(descriptor: int, start: int, end: int) -> bool:
    for position, stop in data_ranges(descriptor, start, end):
        while position < stop:
            piece = read_fully(descriptor, min(CHUNK, stop - position), position)
            if piece.count(0) != len(piece):
                return False
            position += len(piece)
    return True


# --- reading files of the host --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
