"""Files of an unexpected kind that a build left: the error, and its words."""

from __future__ import annotations

import errno
import os
import stat

from qcase.errors import BuildError

HINT = "a build may leave regular files and folders there, which their owner can read, and no links on the way to them"
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}
# Errors caused by files that a step has left, and not by the machine.
PLANTED = {
    *(errno.ELOOP, errno.EXDEV, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EACCES, errno.EPERM),
    *(errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.EINVAL, errno.EMLINK),
}


class PlantedError(BuildError):
    """A build left a file of an unexpected kind, or more data than qcase accepts."""


def kind_of(mode: int) -> str:
    """Return a file's type in words, with its article."""
    return _KINDS.get(stat.S_IFMT(mode), "something unknown")


def printable(path: str) -> str:
    """Escape the unprintable characters of a path, for display on any terminal."""
    return path if path.isprintable() and path else ascii(path)


def obstacle(error: OSError, about: os.stat_result, above: str) -> str:
    """Describe a file that made a call fail; empty if it did not. `above`: its path, where it lies on the way to the place."""
    kind = stat.S_IFMT(about.st_mode)
    if kind == stat.S_IFLNK or (above and kind != stat.S_IFDIR):
        where = f"cannot be reached: {printable(above)} is" if above else "is"
        return f"{where} {kind_of(kind)}, and qcase follows none" if kind == stat.S_IFLNK else f"{where} {kind_of(kind)}"
    if error.errno == errno.EACCES and kind != stat.S_IFLNK:
        needed = 0o500 if kind == stat.S_IFDIR else 0o400
        if about.st_mode & needed != needed:
            return f"has the mode {stat.S_IMODE(about.st_mode):04o}: it cannot be read, and so not be stored"
    if not above and error.errno in (errno.EISDIR, errno.ENOTDIR, errno.ENXIO, errno.EEXIST):
        return f"is {kind_of(kind)}, which is in the way"
    return ""
