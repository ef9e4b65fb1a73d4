"""File locks that can be handed on to a child, on files that may be renamed and removed while a process waits for them.

All are `flock`s. They belong to the open file, so a child that inherits the descriptor holds the lock for as long as it lives,
and the system releases it when the last holder has ended, in any way. No process ids are compared, so it makes no difference that
ids are used again, or that a container has ids of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.errors import InfraError
from qcase.host import process

if TYPE_CHECKING:
    from filelock import FileLock


CACHE_DIR_VARIABLE = "QCASE_CACHE_DIR"

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_POLL = 0.05  # seconds between two polls while waiting
_PATIENCE = 5.0  # seconds; no process holds an entry exclusively for longer than a rename takes


def flock(fd: int, operation: int, path: Path) -> bool:
    """Call `flock`; False where another process holds the lock. Raises `InfraError` where the filesystem has no locks."""
    try:
        fcntl.flock(fd, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise InfraError(
                f"the file system has no file locks ({error.strerror})",
                where=str(path),
                hint=f"set {CACHE_DIR_VARIABLE} to a folder on a local disk",
            ) from None
        raise
    return True


def claim(path: Path) -> int | None:
    """Make a lock file and hold it shared. None if the name is taken, or a sweeper removed the file before the lock was held."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return None
    held = False
    try:
        held = flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, path) and is_at(fd, path)
        if not held:
            return None
        os.fchmod(fd, 0o644)  # regardless of the umask: another user's reader opens it
        return fd
    except BaseException:
        held = False
        path.unlink(missing_ok=True)
        raise
    finally:
        if not held:
            os.close(fd)


def sole(path: Path) -> int | None:
    """Lock a file exclusively and return its descriptor.

    None if another process holds it; `FileNotFoundError` if it is missing.
    """
    fd = open_lock(path)
    if fd is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    held = False
    try:
        held = flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, path) and is_at(fd, path)
        return fd if held else None
    finally:
        if not held:
            os.close(fd)


def open_lock(path: Path) -> int | None:
    """Open a file to lock it exclusively; None if it is missing. Opened for writing if permitted, because NFS requires that."""
    try:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None


def share(lock: Path) -> int | None:
    """Lock an entry's lock file shared and return its descriptor. None where there is no entry, or it is just being removed."""
    patience = time.monotonic() + _PATIENCE
    while True:
        try:
            fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        held = False
        try:
            # Shared fails while a collector holds it; it will have renamed the entry in a moment. And the lock may be that of
            # an entry that was removed between the two calls: then it is not the one at this path any more.
            held = flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, lock) and is_at(fd, lock)
            if held:
                return fd
        finally:
            if not held:
                os.close(fd)
        if time.monotonic() > patience:
            raise InfraError("somebody holds this entry for themselves alone", where=str(lock))
        time.sleep(0.005)


def is_at(fd: int, path: Path) -> bool:
    """Tell whether a descriptor is that of the file at a path."""
    try:
        there = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    own = os.fstat(fd)
    return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)


def try_lock(lock: FileLock) -> bool:
    """Acquire a lock without waiting. False if another process holds it.

    A lock whose file was removed between its opening and its locking counts as not acquired: filelock checks that since 3.21.
    """
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def attempts(lock: FileLock, holder: Callable[[], str], say: Callable[[str], None]) -> Iterator[bool]:
    """Try to acquire a lock until that succeeds, and yield the outcome of each attempt. Say for whom this process waits.

    `holder` describes the process that holds the lock, empty while unknown; each description is said once. Raises
    `StoppedError` as soon as the run is stopped. The caller releases the lock.
    """
    told = ""
    while True:
        got = try_lock(lock)
        yield got
        if got:
            return
        if (now := holder()) not in ("", told):
            told = now
            say(f"waiting for {now}")
        process.pause(_POLL)


@contextmanager
def held(path: Path, holder: Callable[[], str] = lambda: "", say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold the lock file `path` for this process alone. Wait for it as `attempts` does, by default in silence."""
    from filelock import FileLock  # 40 ms that a warm run does not need

    lock = FileLock(path)
    for _ in attempts(lock, holder, say):
        pass
    try:
        yield
    finally:
        lock.release()


def close(fd: int | None) -> None:
    """Close a descriptor, and release its lock unless a child has it too."""
    if fd is not None:
        os.close(fd)
