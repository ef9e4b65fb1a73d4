"""File locks that can be handed on to a child, on files that may be renamed and removed while one waits for them.

All are `flock`s. They belong to the open file, so a child that inherits the descriptor holds the lock for as long as it lives,
and the system lets go when the last holder is gone, however it went. No process ids are compared, so it makes no difference that
ids are used again, or that a container has ids of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qcase import process
from qcase.errors import InfraError

if TYPE_CHECKING:
    from filelock import FileLock

CACHE_DIR_VARIABLE = "QCASE_CACHE_DIR"

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_POLL = 0.05  # seconds between two looks of who waits
_PATIENCE = 5.0  # seconds; nobody holds an entry exclusively for longer than a rename takes


def flock(fd: int, operation: int, path: Path) -> bool:
    """`flock`, False where somebody else is in the way. Raises `InfraError` where the filesystem has no locks."""
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
    """Make a lock file and hold it shared. None if the name is taken, or a sweeper took ours for a leftover before we held it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return None
    held = False
    try:
        held = flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, path) and is_at(fd, path)
        if not held:
            return None
        os.fchmod(fd, 0o644)  # whatever the umask says: another user's reader opens it
        return fd
    except BaseException:
        held = False
        path.unlink(missing_ok=True)
        raise
    finally:
        if not held:
            os.close(fd)


def sole(path: Path) -> int | None:
    """The descriptor of a lock file, held exclusively. None if somebody holds it; `FileNotFoundError` if it is not there."""
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
    """A descriptor to lock a file exclusively; None where there is none. Writable if it may be: NFS asks for that."""
    try:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None


def share(lock: Path) -> int | None:
    """The descriptor of an entry's lock, held shared. None where there is no entry, or it is just being taken away."""
    patience = time.monotonic() + _PATIENCE
    while True:
        try:
            fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        held = False
        try:
            # Shared fails while a collector holds it; it will have renamed the entry in a moment. And the lock may be that of
            # an entry which was taken away between the two calls: then it is not the one at this path any more.
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
    """Whether a descriptor is that of the file at a path."""
    try:
        there = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    own = os.fstat(fd)
    return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)


def try_lock(lock: FileLock) -> bool:
    """Acquire, without waiting.

    A lock whose file was removed between its opening and its locking counts as not acquired: filelock looks, since 3.21.
    """
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def wait(lock: FileLock) -> None:
    """Acquire, however long that takes. Raises `StoppedError` as soon as the run is stopped."""
    while not try_lock(lock):
        process.pause(_POLL)


def close(fd: int | None) -> None:
    """Close a descriptor, and by that let go of its lock unless a child has it too."""
    if fd is not None:
        os.close(fd)
