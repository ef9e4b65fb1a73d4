"""Watches over a running step: disk that it fills, processes that it forks."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from qcase.containers.step import FREE_FLOOR, INODE_FLOOR, LOG_LIMIT, TAIL_LIMIT, Mount
from qcase.errors import InfraError
from qcase.host.trees import Tree

DISK_LOOK = 0.5  # seconds between two checks of the disks
CROWD_INTERVAL = 2.0  # seconds between two checks of a step's process count
CROWD_LOOKS = 3  # consecutive checks near the process limit (CROWD_SHARE) that mean a fork bomb; no build behaves so
CROWD_SHARE = 0.9
STILL_LOOKS = 10  # consecutive checks with a constant count above STILL_SHARE of the limit: a fork bomb that hit another limit
STILL_SHARE = 0.25


class ForkBombDetector:
    """Detects a fork bomb from samples of a step's process count.

    A fork bomb never ends by itself: it would keep the machine busy until the step's timeout, half an hour for a build. Its
    process count stays at the limit, or below it if another limit comes first. With fuse-overlayfs each process takes a dozen
    of the driver's open files, and the bomb goes on with processes that cannot open their files.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._full = 0
        self._still = 0
        self._before = 0

    def look(self, count: int) -> bool:
        """Add a sample of the process count. Return True for a fork bomb."""
        same = abs(count - self._before) <= self._limit / 100
        self._full = self._full + 1 if count >= self._limit * CROWD_SHARE else 0
        self._still = self._still + 1 if count >= self._limit * STILL_SHARE and same else 0
        self._before = count
        return self._full >= CROWD_LOOKS or self._still >= STILL_LOOKS


# --- the disk -----------------------------------------------------------------------------------------------------------


class DiskWatch:
    """Stops a step that fills a disk: the engine does not limit the size of files in mounts.

    The check runs in its own thread, so it also covers a step that closed its output. On a disk that was nearly full before, a
    step may use half of the free space.
    """

    def __init__(self, mounts: tuple[Mount, ...], stop: Callable[[], None]) -> None:
        self.full: Path | None = None
        self._stop = stop
        self._over = threading.Event()
        self._floors: dict[int, tuple[Path, int, int]] = {}
        for mount in mounts:
            if not mount.read_only and (disk := self._disk(mount.place)) is not None:
                room = min(FREE_FLOOR, disk.f_blocks * disk.f_frsize // 20, disk.f_bavail * disk.f_frsize // 2)
                files = min(INODE_FLOOR, disk.f_files // 20, disk.f_favail // 2)  # 0: a file system without an inode limit
                self._floors[mount.place.stat().st_dev] = (mount.place, room, files)
        self._thread = threading.Thread(target=self._watch, name="disks", daemon=True)

    def __enter__(self) -> DiskWatch:
        if self._floors:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> Path | None:
        """Return a mount whose disk has too little free space or inodes, else None."""
        for path, room, files in self._floors.values():
            disk = self._disk(path)
            if disk is not None and (disk.f_bavail * disk.f_frsize < room or disk.f_favail < files):
                self.full = path
        return self.full

    def _watch(self) -> None:
        while not self._over.wait(DISK_LOOK):
            if self.look() is not None:
                with contextlib.suppress(InfraError):  # the engine went away: the step's own thread reports that
                    self._stop()
                return

    @staticmethod
    def _disk(path: Path) -> os.statvfs_result | None:
        """Return the `statvfs` data of a folder's file system, None on an error."""
        try:
            return os.statvfs(path)
        except OSError:
            return None


# --- the stream ---------------------------------------------------------------------------------------------------------


class CappedLog:
    """Log of a step's output: a file of at most `limit` bytes with head and tail, and the last `TAIL_LIMIT` bytes in memory.

    The head goes to the file at once, so that a user can watch it. The tail is kept in memory and written at the end.
    """

    def __init__(self, path: Path | Tree | None, limit: int = LOG_LIMIT) -> None:
        self.path = path
        self.total = 0
        self._head = limit * 3 // 4
        self._keep = limit - self._head
        self._late = bytearray()
        self._cut = 0
        self._recent = bytearray()
        self._file = None
        if path is not None:
            with self._writing():
                if isinstance(path, Path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                opened = path.appended() if isinstance(path, Tree) else path
                self._file = open(opened, "ab", buffering=0)  # noqa: SIM115, PTH123 - a build may take several steps

    def __enter__(self) -> CappedLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        self.total += len(data)
        self._recent += data
        if len(self._recent) > 2 * TAIL_LIMIT:
            del self._recent[:-TAIL_LIMIT]
        if self._file is None:
            return
        if self._head > 0:
            head, data = data[: self._head], data[self._head :]
            self._head -= len(head)
            self._put(head)
        self._late += data
        if len(self._late) > 2 * self._keep:
            self._trim()

    def tail(self) -> str:
        """Return the last `TAIL_LIMIT` bytes as text. A cut text starts at the beginning of a line."""
        recent = bytes(self._recent[-TAIL_LIMIT:])
        if self.total > len(recent):
            recent = recent[recent.find(b"\n") + 1 :]
        return recent.decode(errors="replace")

    def close(self) -> None:
        if self._file is None:
            return
        try:
            if len(self._late) > self._keep:
                self._trim()
            if self._cut:
                self._put(f"\n[qcase: {self._cut} bytes of output were cut out here]\n".encode())
            self._put(self._late)
        finally:
            self._file.close()
            self._file = None

    def _trim(self) -> None:
        surplus = len(self._late) - self._keep
        self._cut += surplus
        del self._late[:surplus]

    def _put(self, data: bytes | bytearray) -> None:
        assert self._file is not None
        view = memoryview(bytes(data))
        with self._writing():
            while view:
                view = view[self._file.write(view) :]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InfraError(f"cannot write the log: {error.strerror}", where=str(self.path)) from None


class Frames:
    """Parser for the engine's multiplexed stream. A frame is a header of 8 bytes (stream, three zeros, length) and its data."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the output in `data`. A frame may arrive in pieces."""
        while data:
            if self._left == 0:
                missing = 8 - len(self._head)
                self._head, data = self._head + data[:missing], data[missing:]
                if len(self._head) == 8:
                    self._left = struct.unpack(">4xL", self._head)[0]
                    self._head = b""
            else:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                yield piece
