"""Sparse files: their data is read and copied, their holes stay holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

CHUNK = 4 << 20


def read_fully(fd: int, length: int, offset: int) -> bytes:
    """Read exactly `length` bytes, in however many pieces. Raises `OSError` where the file has become shorter meanwhile."""
    piece = os.pread(fd, length, offset)
    while len(piece) < length:
        more = os.pread(fd, length - len(piece), offset + len(piece))
        if not more:
            raise OSError(errno.EIO, "the file became shorter while it was read")
        piece += more
    return piece


def data_ranges(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file between `start` and `end` that may hold anything but zeros, as (start, end)."""
    while start < end:
        try:
            data = os.lseek(descriptor, start, os.SEEK_DATA)
            hole = os.lseek(descriptor, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            yield start, end  # a filesystem that does not report holes
            return
        if data >= end:
            return
        yield data, min(hole, end)
        start = hole


def write_all(fd: int, data: bytes | memoryview, position: int | None = None) -> None:
    """Write all of `data`, at `position` or where the descriptor is."""
    view = memoryview(data)
    while view:
        written = os.write(fd, view) if position is None else os.pwrite(fd, view, position)
        view = view[written:]
        position = None if position is None else position + written


def copy_data(source: int, target: int) -> None:
    """Copy a file from descriptor to descriptor; holes that the file system reports stay holes."""
    size = os.fstat(source).st_size
    for start, end in data_ranges(source, 0, size):
        for position in range(start, end, CHUNK):
            write_all(target, read_fully(source, min(CHUNK, end - position), position), position)
    os.ftruncate(target, size)
