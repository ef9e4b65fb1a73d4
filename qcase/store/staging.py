"""Folders in `staging/`: entries that are being made, and what is taken away. Their locks tell whether a process works there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from contextlib import ExitStack
from pathlib import Path

from qcase.host import locks
from qcase.host.crash_cleanup import remove_tree
from qcase.host.files import listed
from qcase.store.content import Kind
from qcase.store.layout import Layout


class Staging:
    """Stages entries, takes files and entries out of the way, and sweeps leftovers of dead processes."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._prepared = False

    def prepare(self) -> None:
        """Prepare for the first new entry: check that the filesystem has locks, and sweep leftovers."""
        if self._prepared:
            return
        self._layout.make()
        probe = self._layout.locks / "probe"
        fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            locks.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, probe)
        finally:
            os.close(fd)
        self.sweep()
        self._prepared = True

    def stage(self, kind: Kind, key: str, cleanup: ExitStack) -> tuple[Path, int]:
        """Make a private folder in `staging/`. Returns it and its lock's descriptor, held shared. `cleanup` removes both."""
        while True:
            # The process id is for display; another host or container may have the same.
            staged = self._layout.staging / f"{kind}-{key[:12]}-{os.getpid()}-{os.urandom(6).hex()}"
            lock = self.lock(staged)
            fd = locks.claim(lock)
            if fd is None:
                continue
            cleanup.callback(os.close, fd)
            cleanup.callback(lock.unlink, missing_ok=True)
            cleanup.callback(remove_tree, staged)
            staged.mkdir(mode=0o755)
            return staged, fd

    def lock(self, staged: Path) -> Path:
        """Return the lock file of a staged folder, which its maker holds."""
        return self._layout.staging / f"{staged.name}.lock"

    def throw_away(self, kind: Kind, key: str, *, broken: int | None = None) -> bool:
        """Rename an entry out of the way, and delete it once no process uses it. The builder's lock must be held.

        False if there is none, or if it is in use. The entry whose lock has the descriptor `broken` is removed even in use.
        """
        folder = self._layout.folder(kind, key)
        with ExitStack() as stack:
            fd = locks.open_lock(folder / "lock")
            if fd is not None:
                stack.callback(os.close, fd)
                is_broken = broken is not None and os.path.sameopenfile(fd, broken)
                if not is_broken and not locks.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, folder):
                    return False
            trash = f"trash-{kind}-{key[:12]}-{os.getpid()}-{os.urandom(6).hex()}"
            try:
                if not folder.is_symlink() and folder.is_dir():
                    folder.chmod(0o755)  # one that is not writable cannot be renamed into another one
                folder.rename(self._layout.staging / trash)
            except FileNotFoundError:
                return False
            with contextlib.suppress(OSError):
                self._layout.checked_facts(kind, key).unlink()
        self._sweep_one(trash)
        return True

    def trash(self, path: Path) -> bool:
        """Rename another file or folder below the root out of the way, and delete it. False if it does not exist."""
        name = f"trash-{path.name[:40]}-{os.getpid()}-{os.urandom(6).hex()}"
        self.prepare()
        try:
            path.rename(self._layout.staging / name)
        except FileNotFoundError:
            return False
        self._sweep_one(name)
        return True

    def sweep(self) -> int:
        """Remove leftovers of dead makers, and unfinished notes. Returns the number of the former."""
        swept = self.sweep_staged()
        for folder in (self._layout.locks, self._layout.checked, self._layout.last):
            for path in folder.glob(".*"):  # see `write_aside`; writing takes a moment, not an hour
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < time.time() - 3600:
                        path.unlink()
        return swept

    def sweep_staged(self) -> int:
        """Do as `sweep` for staged entries alone, which may be large. Where there are none, it reads one folder."""
        names = {path.name.removesuffix(".lock") for path in listed(self._layout.staging)}
        return sum(self._sweep_one(name) for name in sorted(names))

    def _sweep_one(self, name: str) -> bool:
        """Remove one leftover from `staging/` unless a process holds its lock."""
        folder = self._layout.staging / name
        lock = self._layout.staging / f"{name}.lock"
        with ExitStack() as stack:
            for path in (lock, folder / "lock"):  # in this order: the lock moves from the first to the second
                if (fd := locks.open_lock(path)) is None:
                    continue
                stack.callback(os.close, fd)
                if not locks.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, path):
                    return False
                break
            try:
                remove_tree(folder)
                lock.unlink(missing_ok=True)
            except PermissionError:
                return False  # another user's file, which that user sweeps
        return True
