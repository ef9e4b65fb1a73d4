"""Memory of file digests: remembers a file's sha256 together with its stat data, and hashes it again only when the data changed.

A *record* holds a file's sha256, and its *facts*: stat data that cannot all stay the same when the file is written to. While the
facts are unchanged, the file has not been changed since it was read. Three things could make that untrue:

    a clock that has not ticked since the last change     `settle` waits for it, `is_young` refuses
    file systems whose times tell nothing                 `times_tell` refuses
    dirty pages of a mapping, whose writes move no time   `flushed` before the facts are taken
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from qcase import canonical

Facts = dict[str, int]


def facts(path: Path) -> Facts | None:
    """Return the stat data that changes when a file does. None if there is no such regular file."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return {
        "device": found.st_dev,
        "inode": found.st_ino,
        "mode": found.st_mode,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }


def sha256(path: Path, limit: int | None = None) -> str:
    """Return the digest of a regular file of at most `limit` bytes. It never blocks. Raises `OSError`."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "Not a file", str(path))
        if limit is not None and about.st_size > limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return hashlib.file_digest(file, "sha256").hexdigest()


class Record(TypedDict):
    """Recorded sha256 and facts of a file. `facts`: empty where they would be unreliable."""

    sha256: str
    facts: Facts


def read(path: Path) -> Record:
    """Make a file's record, by reading all of it. Raises `OSError`.

    The facts are those from before it was read, so that a change meanwhile shows. The facts are left empty if the file changed
    meanwhile, or could change without a change of its facts: then it is read again at its next use.
    """
    on_disk = _flush(path)
    before = facts(path)
    settled = before is not None and settle([["", 0, 0, before["mtime_ns"], before["ctime_ns"], 0]])
    digest = sha256(path)
    return {"sha256": digest, "facts": before if on_disk and before and settled and is_as_recorded(path, before) else {}}


def is_as_recorded(path: Path, recorded: Mapping[str, int]) -> bool:
    """Tell whether a file has the facts that were recorded, and lies where these tell of every change."""
    found = facts(path)
    return found is not None and found == recorded and times_tell(found["device"], found["ctime_ns"])


def _flush(path: Path) -> bool:
    with path.open("rb") as file:
        return flushed(file.fileno())


def is_record(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("sha256"), str) and isinstance(value.get("facts"), dict)


_COARSE_CLOCK = 5  # Linux's CLOCK_REALTIME_COARSE, which stamps files; Python has no name for it

Stat = list[list[canonical.JSON]]


def settle(facts: Stat) -> bool:
    """Wait until the kernel's coarse clock has passed the newest ctime, so that a later write must change it.

    False if a ctime lies in the future. The clock that stamps files ticks every few milliseconds, and two changes within a tick
    have the same time: it must have moved on since the newest of them before the content is read. Each change moves ctime. mtime
    does not count: any process can set it, and a build that sets it to the year 2100 has not made a file that will change until
    then.
    """
    newest = max(ctime for *_, ctime, _ in facts if isinstance(ctime, int))
    patience = time.monotonic() + 0.02
    while time.clock_gettime_ns(_COARSE_CLOCK) <= newest:
        if time.monotonic() > patience:
            return False
        time.sleep(0.001)
    return True


RACY_SECONDS = 2.0


def is_young(facts: os.stat_result) -> bool:
    """Tell whether a file changed so recently that another change could leave the same size and times.

    The clock of a filesystem ticks in steps of milliseconds, on some of seconds, and a write within the same tick as our reading
    would leave size and times as we noted them. The ctime is compared, because no process can set it.
    """
    return facts.st_ctime >= time.time() - RACY_SECONDS


# Filesystems where a file can change while its times stay. On those in memory a store through a mapping moves none. An image
# that is made anew and mounted in the place of the old one has the inodes and the times that its maker gave it. And a ctime
# that equals the mtime, or that a FUSE server makes up, is not reliable.
_TIMELESS = {"tmpfs", "devtmpfs", "ramfs", "squashfs", "erofs", "cramfs", "romfs", "iso9660", "udf", "msdos", "vfat", "exfat"}


def times_tell(device: int, ctime_ns: int) -> bool:
    """Tell whether a file's ctime moves with every change of it, as far as that can be determined."""
    if ctime_ns % 10**9 == 0:  # synthetic times: clocks that count whole seconds have become rare
        return False
    kind = _filesystem(device)
    return kind is not None and kind not in _TIMELESS and not kind.startswith("fuse")


@functools.lru_cache(maxsize=64)  # each file of a warm run is asked for
def _filesystem(device: int) -> str | None:
    """Return the type of the filesystem on a device, as /proc/self/mountinfo names it.

    Empty for a device that is not listed there (a subvolume of btrfs has one of its own), None where there is no such file.
    """
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    for line in text.splitlines():
        mount, _, described = line.partition(" - ")
        if mount.split(" ")[2] == wanted:
            return described.split(" ")[0]
    return ""


def flushed(descriptor: int) -> bool:
    """Flush a file to the disk. False where that cannot be done."""
    try:
        os.fsync(descriptor)
    except OSError:
        return False
    return True
