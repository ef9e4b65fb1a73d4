"""Leases: who uses guests and downloads, so that no collection removes them meanwhile, and which runs have ended."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qcase.errors import InfraError
from qcase.host import locks
from qcase.host.files import listed
from qcase.store.full_disk import guarded
from qcase.store.layout import Layout


class Leases:
    """Locks of a store that processes hold while they use guests, and while they run."""

    def __init__(self, layout: Layout, *, readonly: bool) -> None:
        self._layout = layout
        self._readonly = readonly

    @contextmanager
    def guests_in_use(self) -> Iterator[int | None]:
        """Hold `guests.lock`, so that no guest is collected. Gives its descriptor for QEMU; None where no lock file can be made.

        A process that cannot make one may not write here. The file is missing, so no other process has collected guests yet.
        """
        lock = self._layout.guests_lock
        with guarded(self._layout.root):
            fd = locks.share(lock)
            while fd is None and not self._readonly:
                try:
                    lock.parent.mkdir(parents=True, exist_ok=True)
                    os.close(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                        raise
                    break
                fd = locks.share(lock)
        try:
            yield fd
        finally:
            locks.close(fd)

    @contextmanager
    def take_guests(self) -> Iterator[bool]:
        """Hold `guests.lock` exclusively. False, and not held, while a run or a QEMU uses guests."""
        fd = None
        with guarded(self._layout.root):
            try:
                fd = locks.sole(self._layout.guests_lock)
                free = fd is not None
            except FileNotFoundError:
                free = False  # no process with a right to write has booted a guest from here yet
        try:
            yield free
        finally:
            locks.close(fd)

    @contextmanager
    def announced_run(self, run_id: str) -> Iterator[Callable[[], None]]:
        """Announce this run, so that later runs can detect its end: see `dead_runs`. Call it before the run's first container."""
        lock = self._layout.runs / f"{run_id}.lock"
        fd = None
        if not self._readonly:
            with contextlib.suppress(OSError, InfraError):  # a full disk must not end a run that may need no containers
                self._layout.runs.mkdir(parents=True, exist_ok=True)
                while fd is None and not lock.exists():  # a sweeper may take it for a leftover before the lock is held
                    fd = locks.claim(lock)

        def has_containers() -> None:
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.pwrite(fd, b"containers\n", 0)

        try:
            yield has_containers
        finally:
            if fd is not None:
                with contextlib.suppress(OSError):
                    lock.unlink()
                os.close(fd)

    @contextmanager
    def dead_runs(self) -> Iterator[dict[str, bool]]:
        """Give the announced runs that ended without removing their announcement, each with a flag: it may have left containers.

        The announcements are deleted at the end of the `with`, if it ends without an exception.
        """
        with ExitStack() as stack:
            dead: dict[str, bool] = {}
            for path in listed(self._layout.runs):
                with contextlib.suppress(OSError, InfraError):
                    fd = locks.sole(path)
                    if fd is not None:
                        stack.callback(os.close, fd)
                        dead[path.stem] = os.fstat(fd).st_size > 0
            yield dead
            for run_id in dead:
                with contextlib.suppress(OSError):
                    (self._layout.runs / f"{run_id}.lock").unlink()


@contextmanager
def unused(root: Path, *, looking: bool = False) -> Iterator[bool]:
    """Hold the lock of the download cache `root` exclusively, without waiting. False, and not held, while the cache is in use.

    `looking`: no lock file is made.
    """
    lock = root / "lock"
    fd = None
    free = False
    with contextlib.suppress(OSError):
        free = looking and not lock.exists()
        if not looking:
            make_lock(lock)
        if not free:
            fd = locks.sole(lock)
            free = fd is not None
    try:
        yield free
    finally:
        locks.close(fd)


def make_lock(lock: Path) -> None:
    if not lock.exists():
        lock.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
