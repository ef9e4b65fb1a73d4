"""Open a path below a folder, and nowhere else: through no link, and never above it.

Python has no name for openat2(2); where the kernel (before 5.6) or a container's filter has none either, each component is opened
by itself. Both are safe against a folder that is swapped for a link meanwhile.

`read` is for files of a workspace, which may be links to anything: a device, an endless log of the kernel's, a disk.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import struct
from typing import Any

_OPENAT2 = 437  # on all architectures
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
_RESOLVE = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS
_RACES = 64  # attempts: the kernel gives up where something is renamed meanwhile

LARGEST = 16 << 20  # bytes of a file that is read whole

_kernel_has_it = True


def read(path: str | os.PathLike[str], limit: int = LARGEST) -> bytes:
    """Read a regular file of at most `limit` bytes. It never blocks. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "Not a file", os.fspath(path))
        data = b""
        while about.st_size <= limit and len(data) <= limit:
            piece = os.read(fd, min(1 << 20, limit + 1 - len(data)))
            if not piece:
                return data
            data += piece
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
    finally:
        os.close(fd)


def text(path: str | os.PathLike[str], limit: int = 1 << 20) -> str:
    """Read a file of UTF-8, of at most `limit` bytes, that is no link. Raises `OSError`, or `ValueError` for other bytes."""
    if os.path.islink(path):  # noqa: PTH114 - as `read`
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    return read(path, limit).decode("utf-8")


def open_beneath(folder: int, path: bytes, flags: int) -> int:
    """Open a path below a folder's descriptor, through no link and never outside. Raises `OSError`."""
    global _kernel_has_it
    if b"/" not in path and path not in (b".", b".."):
        return os.open(path, flags | os.O_NOFOLLOW, dir_fd=folder)  # one component needs no more
    if _kernel_has_it:
        try:
            return _openat2(folder, path, flags)
        except OSError as error:
            # EPERM: a container's filter that does not know the call. For any other cause, the fallback reports the error again.
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
            _kernel_has_it = error.errno != errno.ENOSYS
        except ImportError:  # a Python without ctypes
            _kernel_has_it = False
    return _open_by_component(folder, path, flags)


def _openat2(folder: int, path: bytes, flags: int) -> int:
    import ctypes  # 3 ms, which a warm run does not need

    call = _system_call()
    how = ctypes.create_string_buffer(struct.pack("=QQQ", flags | os.O_NOFOLLOW, 0, _RESOLVE), 24)
    for _ in range(_RACES):
        fd: int = call(
            ctypes.c_long(_OPENAT2), ctypes.c_int(folder), ctypes.c_char_p(path), ctypes.byref(how), ctypes.c_size_t(24)
        )
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number), os.fsdecode(path))


@functools.cache
def _system_call() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True).syscall


def _open_by_component(folder: int, path: bytes, flags: int) -> int:
    *above, name = path.split(b"/")
    if b".." in (*above, name):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), os.fsdecode(path))
    here = os.dup(folder)
    try:
        for part in above:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = below
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=here)
    finally:
        os.close(here)
