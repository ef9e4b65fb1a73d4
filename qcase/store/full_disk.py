"""Full disks told apart from other errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qcase.errors import BuildError, InfraError, QcaseError
from qcase.host.locks import CACHE_DIR_VARIABLE
from qcase.store import keys
from qcase.store.content import Kind

_ROOM = 64 << 20  # bytes; with less than that the disk counts as full
_FULL = (errno.ENOSPC, errno.EDQUOT)


class StoreFullError(Exception):
    """The store's disk is full. Nothing is stored, and the run continues."""


# --- errors -----------------------------------------------------------------------------------------------------------------


@contextmanager
def guarded(root: Path) -> Iterator[None]:
    """Turn system errors about the store into one message."""
    try:
        yield
    except OSError as error:
        if is_full(error, root):
            raise full_disk("the store cannot be written", root) from error
        where = error.filename2 or error.filename or root
        raise InfraError(
            f"the store cannot be used: {error.strerror or error}",
            where=os.fsdecode(where) if isinstance(where, (str, bytes, os.PathLike)) else str(root),
            hint=f"set {CACHE_DIR_VARIABLE} to a folder on a local disk that you may write to, or use --cache-readonly",
        ) from error


@contextmanager
def full_is_no_failure(root: Path, kind: Kind, key: keys.Key) -> Iterator[None]:
    try:
        yield
    except (OSError, QcaseError) as error:
        if not is_full(error, root):
            raise
        free = _free(root)
        raise StoreFullError(f"the disk of {root} is full ({free} free): the {kind} {key.short} is not stored") from error


def errno_of(error: BaseException | None) -> int | None:
    """Return the number of the system error behind an error."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error.errno if isinstance(error, OSError) else None


def is_full(error: BaseException | None, place: Path) -> bool:
    """Tell whether a full disk is the cause of an error. A step in a container can only report it in its output.

    The output of a case's own build may be about anything, a test of a full disk or a small /tmp: it is trusted only if the disk
    of the folder `place` has no room either.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if isinstance(error, QcaseError):
            said = error.what + (error.log if isinstance(error, BuildError) else "")
            says_so = os.strerror(errno.ENOSPC) in said or os.strerror(errno.EDQUOT) in said
            if says_so and not (isinstance(error, BuildError) and _has_room(place)):
                return True
        error = error.__cause__ or error.__context__
    return False


def _has_room(place: Path) -> bool:
    """Tell whether a disk has room, by writing to it, so that a quota shows as well. The failed build's own files still exist."""
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=place) as file:
            os.posix_fallocate(file.fileno(), 0, _ROOM)
    except OSError as error:
        return error.errno not in _FULL
    return True


def full_disk(what: str, place: Path) -> InfraError:
    return InfraError(
        f"{os.strerror(errno.ENOSPC)}: {what}, {_free(place)} free",
        where=str(place),
        hint=f"free some, or set {CACHE_DIR_VARIABLE}",
    )


def _free(place: Path) -> str:
    while not place.exists() and place != place.parent:
        place = place.parent
    about = os.statvfs(place)
    return f"{about.f_bavail * about.f_frsize / 2**20:.1f} of {about.f_blocks * about.f_frsize / 2**20:.1f} MiB"
