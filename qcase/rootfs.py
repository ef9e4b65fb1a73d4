"""Root filesystem images: their digest, a fast copy, and writing an overlay into one.

Writing goes through four hands, so that only the middle one needs a container:

    plan(base, overlay)       host       overlay folder + base image  → operations with canonical paths, sorted
    stage(job, base, build)   host       build/image.img (a copy of the base), build/write.debugfs
    shell(job)                container  grow (resize2fs), write (debugfs -w), check (e2fsck -fn); logs into build/
    verify(build, plan, …)    host       logs, then every file with `qcase.ext4`, which shares no code with e2fsprogs

    /qcase/build/                        what the step sees there
      image.img  write.debugfs           in
      steps.log                          "<step> <exit status>" for each step that ran
      <step>.out  <step>.err             of base-check, resize, write, check

debugfs exits with 0 when the image is full, when it cannot read a name, and when a command fails. Therefore: names are
quoted, or refused where it has no quoting; every line that it prints is expected or an error; every file is read back.

The same overlay on the same base gives the same bytes, on every machine: operations are sorted, owner is 0:0, all times
are one constant, and nothing that decides the layout is read from the host, such as how many blocks a sparse file has there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shlex
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from qcase.errors import BuildError, InfraError
from qcase.ext4 import Ext4Image, Kind, Node, Superblock, UnresolvedError
from qcase.keys import read_fully

# The times of everything that is written. Not 0: libext2fs before 1.47.1 takes 0 for "not given" and asks the clock.
EPOCH = 1
BUILD_DIR = "/qcase/build"
OVERLAY_DIR = "/qcase/overlay"
IMAGE = "image.img"
SCRIPT = "write.debugfs"
INJECTOR_VERSION = 1  # part of every image key: count it up when the same overlay would give other bytes

GROWTH_STEP = 64 << 20  # an image grows to a multiple of this
DIGEST_BLOCK = 64 << 10
CHUNK = 4 << 20
RACY_SECONDS = 2.0


class Action(StrEnum):
    MKDIR = "mkdir"
    WRITE = "write"
    SYMLINK = "symlink"


@dataclass(frozen=True)
class Operation:
    """One thing to make in the image. `replaces` is what lies at `path` in the base and is removed first."""

    action: Action
    path: str  # canonical, in the image
    source: str  # relative to the overlay: what asks for it
    mode: int  # permission bits with setuid, setgid and sticky
    size: int = 0  # of a file
    target: str = ""  # of a symlink
    replaces: Kind | None = None
    blank: bool = False  # a file of nothing but zeros; asked for only where the base has inline data

    @property
    def parent(self) -> str:
        return self.path.rpartition("/")[0] or "/"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class InjectionPlan:
    """What it takes to write an overlay into a base image. `grow_to_bytes`: the size it needs, None where it fits as it is."""

    operations: tuple[Operation, ...]
    grow_to_bytes: int | None
    epoch: int = EPOCH
    inline_data: bool = False  # the base keeps small files in their inodes


@dataclass(frozen=True)
class InjectionJob:
    """The part that runs in a container: the commands for debugfs, the size to grow to first, the time to write."""

    script: str
    grow_to_bytes: int | None
    epoch: int


# --- digest -------------------------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    """sha256 that covers a file's size and every byte of it, as hex.

    It is taken over a tag, the size, and each 64 KiB block that is not all zero, with its offset. So holes need not be read,
    and how a file is sparse makes no difference.
    """
    try:
        with _opened(path) as descriptor:
            return _digest(descriptor)
    except OSError as error:
        raise InfraError(f"cannot read: {error.strerror}", where=str(path)) from None


def remembered_digest(path: Path, memory: Path) -> str:
    """As `digest`, remembered in the folder `memory` by device, inode, size, mtime and ctime: the second time reads nothing.

    Every later run believes what is remembered, so these are not:

    - a file that changed less than two seconds ago, see `is_young`;
    - one on a filesystem whose times say nothing, see `_times_tell`;
    - one with pages that somebody has written through a mapping and the disk has not got: the times move at the first store
      into a clean page and not at the next. So these are flushed first. Of a file that is remembered already no page is
      dirty, unless the times have moved since.
    """
    try:
        with _opened(path) as descriptor:
            before = os.fstat(descriptor)
            note = memory / f"{before.st_dev:x}-{before.st_ino:x}.json"
            known = _recall(note, _identity(before))
            if known is not None:
                return known
            rests = not is_young(before) and _times_tell(before) and _flushed(descriptor)
            before = os.fstat(descriptor)
            rests = rests and not is_young(before)
            result = _digest(descriptor)
            after = os.fstat(descriptor)
    except OSError as error:
        raise InfraError(f"cannot read: {error.strerror}", where=str(path)) from None
    if rests and _identity(before) == _identity(after):
        # A memory that cannot be written (full disk, read-only) costs time, nothing else.
        with contextlib.suppress(OSError):
            _note(note, {**_identity(before), "digest": result})
    return result


def identity(path: Path) -> dict[str, int]:
    """What changes when a file does, or another one takes its place. Raises `InfraError` if it is not there."""
    return identity_of(facts_of(path))


def identity_of(facts: os.stat_result) -> dict[str, int]:
    return {"device": facts.st_dev, "inode": facts.st_ino, **_identity(facts)}


def facts_of(path: Path) -> os.stat_result:
    """Raises `InfraError` if a file is not there."""
    try:
        return path.stat()
    except OSError as error:
        raise InfraError(f"cannot read: {error.strerror}", where=str(path)) from None


def is_young(facts: os.stat_result) -> bool:
    """Whether a file changed so short a while ago that it may change again and look the same.

    The clock of a filesystem ticks in steps of milliseconds, on some of seconds, and a write within the same tick as our
    reading would leave size and times as we noted them. It is the ctime that tells: nobody can set it.
    """
    return facts.st_ctime >= time.time() - RACY_SECONDS


# Filesystems where a file can change and its times stay. On those in memory a store through a mapping moves none. An image
# that is made anew and mounted in the place of the old one has the inodes and the times that its maker gave it. And a ctime
# that is the mtime, or whatever a FUSE server says, is none.
_TIMELESS = {"tmpfs", "devtmpfs", "ramfs", "squashfs", "erofs", "cramfs", "romfs", "iso9660", "udf", "msdos", "vfat", "exfat"}


def _times_tell(facts: os.stat_result) -> bool:
    """Whether a file's ctime moves with every change of it, as far as one can tell."""
    if facts.st_ctime_ns % 10**9 == 0:  # made up: clocks that count whole seconds have become rare
        return False
    kind = _filesystem(facts.st_dev)
    return kind is not None and kind not in _TIMELESS and not kind.startswith("fuse")


def _filesystem(device: int) -> str | None:
    """The type of the filesystem on a device, as /proc/self/mountinfo names it: empty for a device that is not in there (a
    subvolume of btrfs has one of its own), None where there is no such file."""
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


def _flushed(descriptor: int) -> bool:
    """Have the disk get all that was written to a file. False where that cannot be done."""
    try:
        os.fsync(descriptor)
    except OSError:
        return False
    return True


def _identity(facts: os.stat_result) -> dict[str, int]:
    """What changes when a file does; device and inode are in the name of the note."""
    return {"format": 1, "size": facts.st_size, "mtime_ns": facts.st_mtime_ns, "ctime_ns": facts.st_ctime_ns}


def _digest(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    sha = hashlib.sha256(b"qcase image digest 1\0" + size.to_bytes(8, "little"))
    zero = bytes(DIGEST_BLOCK)
    done = 0
    for start, end in _data_ranges(descriptor, 0, size):
        position = max(done, start - start % DIGEST_BLOCK)
        stop = min(size, end + -end % DIGEST_BLOCK)
        while position < stop:
            piece = read_fully(descriptor, min(CHUNK, stop - position), position)
            for at in range(0, len(piece), DIGEST_BLOCK):
                block = piece[at : at + DIGEST_BLOCK]
                if block != zero[: len(block)]:
                    sha.update((position + at).to_bytes(8, "little"))
                    sha.update(block)
            position += len(piece)
        done = max(done, stop)
    return sha.hexdigest()


def _recall(note: Path, identity: dict[str, int]) -> str | None:
    """The digest that was noted for this state of a file. None where there is none, or it cannot be understood."""
    try:
        known = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(known, dict):
        return None
    found = known.pop("digest", None)
    return found if known == identity and isinstance(found, str) and re.fullmatch("[0-9a-f]{64}", found) else None


def _note(note: Path, facts: dict[str, int | str]) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    descriptor, staged = tempfile.mkstemp(dir=note.parent, prefix=f".{note.name}-")
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(facts, file)
        Path(staged).replace(note)
    except BaseException:
        Path(staged).unlink(missing_ok=True)
        raise


# --- copy ---------------------------------------------------------------------------------------------------------------

_FICLONE = 0x40049409
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def copy_file_fast(src: Path, dst: Path) -> None:
    """Copy a regular file: share its blocks where the filesystem can (reflink), else copy the data and keep the holes.

    Of a file without holes, or on a filesystem that does not tell them (FUSE, NFS before 4.2), zeros become holes.

    `dst` must not exist; it gets the permissions of any new file. On an error nothing of it is left. Raises `OSError`, so that
    the caller can tell a full disk (`ENOSPC`) from the rest.
    """
    with _opened(src) as source:
        facts = os.fstat(source)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(src))
        target = os.open(dst, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if not _clone(source, target):
                _copy_data(source, target, facts.st_size)
            os.close(target)
        except BaseException:
            with contextlib.suppress(OSError):  # closed already, when it was closing that failed
                os.close(target)
            dst.unlink(missing_ok=True)
            raise


def _clone(source: int, target: int) -> bool:
    """Reflink. False where the filesystem has none, or the two files are on different ones."""
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        return False
    return True


def _copy_data(source: int, target: int, size: int) -> None:
    os.ftruncate(target, size)
    ranges = _data_ranges(source, 0, size)
    if next(ranges, None) == (0, size):
        _copy_what_is_not_zero(source, target, size)
        return
    in_kernel = True
    for position, end in _data_ranges(source, 0, size):
        while position < end:
            copied = 0
            if in_kernel:
                try:
                    copied = os.copy_file_range(source, target, end - position, position, position)
                except OSError as error:
                    if error.errno in _NO_ROOM:
                        raise
                # Not between these two filesystems, or (0 bytes) not from this one.
                in_kernel = copied > 0
            if not in_kernel:
                copied = os.pwrite(target, read_fully(source, min(CHUNK, end - position), position), position)
            position += copied


_ZEROS = bytes(64 << 10)


def _copy_what_is_not_zero(source: int, target: int, size: int) -> None:
    """Copy to a file that is one hole; pieces of 64 KiB that are zeros stay one."""
    for position in range(0, size, CHUNK):
        chunk = read_fully(source, min(CHUNK, size - position), position)
        start = 0  # of what is to be written
        for at in range(0, len(chunk), len(_ZEROS)):
            length = min(len(_ZEROS), len(chunk) - at)
            if chunk.startswith(_ZEROS[:length], at):
                _write_fully(target, memoryview(chunk)[start:at], position + start)
                start = at + length
        _write_fully(target, memoryview(chunk)[start:], position + start)


def _write_fully(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, position)
        data, position = data[written:], position + written


# --- plan ---------------------------------------------------------------------------------------------------------------


def plan(base: Ext4Image, overlay: Path, epoch: int = EPOCH) -> InjectionPlan:
    """What it takes to write the folder `overlay` into `base`, whose paths it takes as it is laid out like the guest.

    - A folder of the overlay goes where the base's symlinks lead (`lib/x` to `/usr/lib/x` where `/lib` is `usr/lib`). One that
      exists keeps its mode and owner.
    - A file or symlink replaces a file or symlink; never is anything written through a link.
    - A symlink replaces an empty folder. A folder that is not empty is left alone where the symlink leads to it, else refused.
    - New things belong to 0:0, with the permission bits that they have in the overlay. Hard links become files of their own.

    Raises `BuildError` for what cannot be written as it is: a file over a folder or the reverse, two paths that land on the
    same one with different contents, a device, fifo or socket, a name that debugfs cannot quote, a file that cannot be read.
    No symlink of the overlay is followed, so nothing outside it is ever read.
    """
    planner = _Planner(base, overlay)
    operations = planner.operations()
    return InjectionPlan(operations, _growth(base, operations, overlay), epoch, planner.inline_data)


class _Planner:
    """Collects operations by canonical path and refuses those that contradict each other."""

    def __init__(self, base: Ext4Image, overlay: Path) -> None:
        self.base = base
        self.overlay = overlay
        self.inline_data = "inline_data" in base.superblock.features
        self.found: dict[str, Operation] = {}
        self.implied: set[str] = set()  # folders that no overlay path names, only a dangling symlink of the base
        self.kept: set[str] = set()  # symlinks that the base has already, with the same target: nothing to do
        self.folders: dict[str, str] = {}  # folders of the base that the overlay has too → overlay path
        self.crossed: dict[str, str] = {}  # symlink of the base that a path went through → that path

    def operations(self) -> tuple[Operation, ...]:
        """Walk the overlay. A folder's canonical path is known before its entries are looked at."""
        folders = [("", "/")]
        while folders:
            folder, canonical = folders.pop()
            below = []
            for name, facts in _entries(self.overlay, folder):
                source = f"{folder}/{name}" if folder else name
                wanted = f"{canonical.rstrip('/')}/{name}"
                _check_name(source, name)
                if stat.S_ISDIR(facts.st_mode):
                    below.append((source, self._folder(source, wanted, facts)))
                elif stat.S_ISREG(facts.st_mode):
                    self._file(source, wanted, facts)
                elif stat.S_ISLNK(facts.st_mode):
                    self._symlink(source, wanted)
                else:
                    what = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}.get(stat.S_IFMT(facts.st_mode), "device node")
                    raise _refusal(source, f"is a {what}", "a case may bring folders, files and symlinks")
            folders.extend(reversed(below))
        for path in self.kept:
            self.found.pop(path)  # only now: until here, another overlay path for the same place is a contradiction
        self._check_folders()
        return tuple(self.found[path] for path in sorted(self.found, key=lambda path: path.split("/")))

    def _folder(self, source: str, wanted: str, facts: os.stat_result) -> str:
        """Plan a folder of the overlay and return its canonical path."""
        try:
            trace = self.base.trace(wanted)
        except UnresolvedError as error:
            raise _refusal(source, f"cannot be a folder there: {error.what}") from None
        for link in trace.links:
            self.crossed.setdefault(link, source)
        if trace.node is None:
            self._parents(trace.path, source)
            self._add(Operation(Action.MKDIR, trace.path, source, stat.S_IMODE(facts.st_mode)))
        elif trace.node.kind is Kind.DIR:
            self.folders.setdefault(trace.path, source)
        else:
            raise _refusal(source, f"is a folder, and the base image has a {trace.node.kind} at {trace.path!r}")
        return trace.path

    def _parents(self, path: str, source: str) -> None:
        """Plan the folders above `path` that nobody asked for: a dangling symlink of the base may name several at once."""
        parent = path.rpartition("/")[0]
        while parent and parent not in self.found and self.base.lookup(parent, follow=False) is None:
            self.found[parent] = Operation(Action.MKDIR, parent, source, 0o755)
            self.implied.add(parent)
            parent = parent.rpartition("/")[0]

    def _file(self, source: str, wanted: str, facts: os.stat_result) -> None:
        there = self._there(wanted)
        if there is not None and there.kind is Kind.DIR:
            raise _refusal(source, f"is a file, and the base image has a folder at {wanted!r}", "install it under another name")
        with _open_source(self.overlay, source) as descriptor:  # so it can be read
            blank = self.inline_data and facts.st_size > 0 and _all_zero(descriptor, 0, facts.st_size)
        self._add(
            Operation(
                Action.WRITE,
                wanted,
                source,
                stat.S_IMODE(facts.st_mode),
                size=facts.st_size,
                replaces=None if there is None else there.kind,
                blank=blank,
            )
        )

    def _symlink(self, source: str, wanted: str) -> None:
        target = _read_link(self.overlay, source)
        _check_target(source, target, self.base.superblock.block_size)
        there = self._there(wanted)
        if there is not None and there.kind is Kind.SYMLINK and self.base.readlink(there) == target:
            self.kept.add(wanted)
        if there is not None and there.kind is Kind.DIR and self.base.listdir(there):
            leads_to = target if target.startswith("/") else f"{wanted.rpartition('/')[0]}/{target}"
            if self.base.lookup(leads_to) == there:
                return
            raise _refusal(
                source,
                f"is a symlink to {target!r}, and the base image has a folder with files at {wanted!r}",
                f"make it a folder: what is in it is then added to {wanted!r}",
            )
        self._add(Operation(Action.SYMLINK, wanted, source, 0o777, target=target, replaces=None if there is None else there.kind))

    def _there(self, canonical: str) -> Node | None:
        return self.base.lookup(canonical, follow=False)

    def _add(self, operation: Operation) -> None:
        if len(os.fsencode(operation.path)) > 4000:
            raise _refusal(operation.source, "lands at a path longer than 4000 bytes in the image")
        other = self.found.get(operation.path)
        if operation.path in self.implied and operation.action is Action.MKDIR:
            self.implied.discard(operation.path)  # now an overlay path names it, and says its mode
        elif other is not None:
            if not self._same(operation, other):
                raise BuildError(
                    f"{other.source!r} and {operation.source!r} both land at {operation.path!r} in the image, and differ",
                    where="overlay",
                    hint="on the way of one of them is a symlink of the base image; install it once",
                )
            return
        self.found[operation.path] = operation

    def _same(self, one: Operation, other: Operation) -> bool:
        if replace(one, source="") != replace(other, source=""):
            return False
        if one.action is not Action.WRITE:
            return True
        with _open_source(self.overlay, one.source) as first, _open_source(self.overlay, other.source) as second:
            for position in range(0, one.size, CHUNK):
                length = min(CHUNK, one.size - position)
                if os.pread(first, length, position) != os.pread(second, length, position):
                    return False
        return True

    def _check_folders(self) -> None:
        """A folder that something is put into must not turn into something else, nor the symlink that led to it."""
        for operation in self.found.values():
            if operation.path in self.folders:
                raise BuildError(
                    f"{self.folders[operation.path]!r} and {operation.source!r} both land at {operation.path!r} in the image, "
                    "and only one of them is a folder",
                    where="overlay",
                )
            above = self.found.get(operation.parent)
            if above is not None and above.action is not Action.MKDIR:
                raise BuildError(
                    f"overlay path {operation.source!r} lands at {operation.path!r}, below {above.source!r}, which is no folder",
                    where="overlay",
                )
            through = self.crossed.get(operation.path)
            if operation.replaces is Kind.SYMLINK and through is not None:
                raise BuildError(
                    f"overlay path {operation.source!r} replaces the symlink {operation.path!r}, "
                    f"through which {through!r} goes to its place",
                    where="overlay",
                )


def _check_name(source: str, name: str) -> None:
    """Refuse what debugfs cannot be told: it reads a line up to the first CR or LF, and names are in double quotes."""
    bad = next((word for sign, word in _UNQUOTABLE.items() if sign in name), None)
    if bad:
        raise _refusal(source, f"has {bad} in its name", "rename it: debugfs, which writes the image, cannot quote that")
    if len(os.fsencode(source)) > 3800:
        raise _refusal(source[:80] + "…", "has a path longer than 3800 bytes")


def _check_target(source: str, target: str, block_size: int) -> None:
    bad = next((word for sign, word in _UNQUOTABLE.items() if sign in target), None)
    if bad:
        raise _refusal(
            source, f"is a symlink whose target {target!r} has {bad} in it", "debugfs, which writes the image, cannot quote that"
        )
    if len(os.fsencode(target)) >= min(block_size, 4096):
        raise _refusal(source, f"is a symlink with a target of {len(os.fsencode(target))} bytes, more than the image can hold")


_UNQUOTABLE = {"\n": "a newline", "\r": "a carriage return", '"': "a double quote"}


def _refusal(source: str, what: str, hint: str = "") -> BuildError:
    return BuildError(f"{source!r} {what}", where="overlay", hint=hint)


# --- room ---------------------------------------------------------------------------------------------------------------


def _growth(base: Ext4Image, operations: tuple[Operation, ...], overlay: Path) -> int | None:
    """The size that the image needs, None where everything fits. Decided by contents alone, so the same on each machine.

    All counts are upper bounds. First by file sizes; only if that does not fit, by reading which blocks are not zero, as
    debugfs leaves holes for those that are. When the image grows, the guest finds as much free space as in the base.
    """
    facts = base.superblock
    extents = "extent" in facts.features
    needed, inodes = _room(facts, operations, extents, lambda operation: -(-operation.size // facts.block_size))
    if _fits(facts, needed, inodes):
        return None
    needed, inodes = _room(facts, operations, extents, lambda operation: _blocks(overlay, operation, facts.block_size))
    if _fits(facts, needed, inodes):
        return None
    return _grown(facts, needed, inodes)


def _room(
    facts: Superblock, operations: tuple[Operation, ...], extents: bool, data_blocks: Callable[[Operation], int]
) -> tuple[int, int]:
    """Blocks and inodes that the operations take at most."""
    size, ratio = facts.block_size, facts.cluster_ratio
    blocks = 0
    names: dict[str, int] = {}  # folder → bytes of its new entries
    for operation in operations:
        names[operation.parent] = names.get(operation.parent, 0) + 12 + len(os.fsencode(operation.name))
        if operation.action is Action.MKDIR:
            blocks += ratio
        elif operation.action is Action.SYMLINK:
            blocks += ratio if len(os.fsencode(operation.target)) >= 60 else 0
        else:
            data = data_blocks(operation)
            # Leaves of an extent tree may be half full; a block map has one pointer a block, and a few blocks above those.
            held, per_leaf, above = (4, size // 24, 1) if extents else (12, size // 8, 3)
            index = 0 if data <= held else above + data // per_leaf
            blocks += -(-(data + index) // ratio) * ratio
    # An entry does not cross blocks, so up to 263 bytes of each are wasted; a hashed folder splits its blocks in half.
    blocks += sum(1 + 2 * -(-length // (size - 300)) for length in names.values()) * ratio
    return blocks + blocks // 64 + 64 * ratio, len(operations) + 8


def _fits(facts: Superblock, blocks: int, inodes: int) -> bool:
    return blocks <= facts.free_blocks and inodes <= facts.free_inodes


def _grown(facts: Superblock, blocks: int, inodes: int) -> int:
    """Bytes of the image after growth: room for everything beside what the base has free, and for the new groups' tables."""
    tables = -(-facts.inodes_per_group * facts.inode_size // facts.block_size)
    overhead = 3 + tables + facts.block_size // 4  # superblock, bitmaps, inode table, descriptors
    usable = max(1, facts.blocks_per_group - overhead)
    groups = max(-(-blocks // usable), -(-max(0, inodes - facts.free_inodes) // facts.inodes_per_group))
    total = facts.block_count + blocks + (groups + 1) * overhead
    if inodes > facts.free_inodes:
        total = max(total, (facts.group_count + groups) * facts.blocks_per_group + facts.first_data_block)
    return -(-total * facts.block_size // GROWTH_STEP) * GROWTH_STEP


def _blocks(overlay: Path, operation: Operation, block_size: int) -> int:
    """How many blocks of a file are not all zero."""
    count = 0
    zero = bytes(block_size)
    with _open_source(overlay, operation.source) as descriptor:
        done = 0
        for start, end in _data_ranges(descriptor, 0, operation.size):
            position = max(done, start - start % block_size)
            stop = min(operation.size, end + -end % block_size)
            while position < stop:
                piece = read_fully(descriptor, min(CHUNK, stop - position), position)
                for at in range(0, len(piece), block_size):
                    block = piece[at : at + block_size]
                    count += block != zero[: len(block)]
                position += len(piece)
            done = max(done, stop)
    return count


# --- the step in the container -------------------------------------------------------------------------------------------


def script(plan: InjectionPlan) -> str:
    """The commands for `debugfs -w -f`, one a line. Bytes that are not UTF-8 are surrogates: write it with `os.fsencode`."""
    lines: list[str] = []
    folder = ""
    for operation in plan.operations:
        # `write` takes a bare name, which it would not split at slashes. A name such as <12> means inode 12 to the commands
        # that take a path, hence `./`.
        if operation.parent != folder:
            folder = operation.parent
            lines.append(f'cd "{folder}"')
        name, itself = f'"{operation.name}"', f'"./{operation.name}"'
        if operation.replaces is not None:
            lines.append(f"{'rmdir' if operation.replaces is Kind.DIR else 'rm'} {itself}")
        if operation.action is Action.WRITE:
            lines.append(f'write "{OVERLAY_DIR}/{operation.source}" {name}')  # takes the source's mode
            if plan.inline_data:
                # debugfs makes each file inline at first, and ends it after its last block that is not zero. One without any
                # such block stays inline, whatever its size, so it has to become a file that is one hole.
                if operation.blank:
                    lines += [f"ea_rm {itself} system.data", f"sif {itself} flags 0"]
                lines.append(f"sif {itself} size {operation.size}")
        elif operation.action is Action.SYMLINK:
            lines.append(f'symlink {name} "{operation.target}"')
        else:
            lines.append(f"mkdir {name}")
            if operation.mode != 0o755:
                lines.append(f"sif {itself} mode 0{stat.S_IFDIR | operation.mode:o}")
    return "".join(f"{line}\n" for line in lines)


def injection_job(plan: InjectionPlan) -> InjectionJob:
    """The part of a plan that runs in the container."""
    return InjectionJob(script(plan), plan.grow_to_bytes, plan.epoch)


def stage(job: InjectionJob, base: Path, build: Path) -> None:
    """Put into the folder `build` what the container step needs. Raises `OSError` (`ENOSPC`: the disk is full)."""
    copy_file_fast(base, build / IMAGE)
    (build / SCRIPT).write_bytes(os.fsencode(job.script))


def shell(job: InjectionJob) -> str:
    """The program for `sh -eu -c` in the container. `/qcase/build` is the staged folder, `/qcase/overlay` the overlay, read-only.

    It exits with 0 also when a step failed: what happened is in the logs, and `verify` tells it better than an exit status.
    """
    grow = ""
    if job.grow_to_bytes is not None:
        # -f: resize2fs wants a fresh e2fsck, which would write the time of the check; base-check has just found it clean.
        grow = f"truncate -s {job.grow_to_bytes} {IMAGE}\nstep resize resize2fs -f {IMAGE}\n"
    return (
        f"cd {shlex.quote(BUILD_DIR)}\n"
        f"export E2FSPROGS_FAKE_TIME={job.epoch} SOURCE_DATE_EPOCH={job.epoch} LC_ALL=C.UTF-8 TZ=UTC\n"
        "step() {\n"
        "  name=$1 status=0\n"
        "  shift\n"
        '  "$@" >"$name.out" 2>"$name.err" || status=$?\n'
        '  echo "$name $status" >>steps.log\n'
        '  [ "$status" -eq 0 ] || exit 0\n'
        "}\n"
        f"step base-check e2fsck -fn {IMAGE}\n"
        f"{grow}"
        f"step write debugfs -w -f {SCRIPT} {IMAGE}\n"
        f"step check e2fsck -fn {IMAGE}\n"
    )


# --- verification ---------------------------------------------------------------------------------------------------------


def verify(build: Path, plan: InjectionPlan, overlay: Path) -> Path:
    """See that the image holds exactly what the plan says, and return its path.

    Looks at what every step printed, then at each file in the image: type, mode, owner, times, size, content. Raises
    `InfraError` that names the first difference.
    """
    _verify_steps(build, plan)
    _verify_output(build, script(plan))
    image = build / IMAGE
    with Ext4Image.open(image) as written:
        if plan.grow_to_bytes is not None and image.stat().st_size != plan.grow_to_bytes:
            raise InfraError(f"the image has not the size {plan.grow_to_bytes} that was asked for", where=str(image))
        for operation in plan.operations:
            wrong = _difference(written, operation, overlay, plan.epoch)
            if wrong:
                raise InfraError(f"{operation.path!r} was not written as it should be: {wrong}", where=str(image))
    return image


def _verify_steps(build: Path, plan: InjectionPlan) -> None:
    expected = ["base-check", *(["resize"] if plan.grow_to_bytes is not None else []), "write", "check"]
    log = build / "steps.log"
    seen = [line.rpartition(" ") for line in log.read_text().splitlines()] if log.exists() else []
    for name, (step, _, status) in zip(expected, seen, strict=False):
        if (step, status) == (name, "0"):
            continue
        what = {
            "base-check": "the base image is damaged",
            "resize": "the image could not be made larger",
            "write": "debugfs could not open the image",
            "check": "the image is damaged after writing",
        }[name]
        raise InfraError(
            f"{what}\n{_tail(build, name)}",
            where=f"injection, step {name} (status {status})",
            hint="repair it with e2fsck -fy" if name == "base-check" else "",
        )
    if len(seen) < len(expected):
        missing = expected[len(seen)]
        raise InfraError(f"step {missing!r} did not end\n{_tail(build, missing)}".strip(), where="injection")


def _tail(build: Path, step: str) -> str:
    """The last lines of what a step printed."""
    printed = b"".join(path.read_bytes() for end in ("out", "err") if (path := build / f"{step}.{end}").exists())
    return "\n".join(printed.decode(errors="replace").strip().splitlines()[-12:])


def _verify_output(build: Path, commands: str) -> None:
    """debugfs echoes each command, `write` names the inode that it took. Anything else is a complaint."""
    errors = (build / "write.err").read_text(errors="replace").splitlines()
    complaints = [line for line in errors if line.strip() and not re.fullmatch(r"debugfs \d+(\.\d+)+.* \(.*\)", line)]
    if complaints:
        raise InfraError("debugfs: " + "\n".join(complaints[:12]), where="injection, step write")
    echoed = iter(os.fsencode(commands).split(b"\n")[:-1])
    after_write = False
    for line in (build / "write.out").read_bytes().split(b"\n"):
        if line.startswith(b"debugfs: "):
            if line[len(b"debugfs: ") :] != next(echoed, None):
                raise InfraError(f"debugfs read a command that was not given: {line!r}", where="injection, step write")
            after_write = line.startswith(b"debugfs: write ")
        elif after_write and re.fullmatch(rb"Allocated inode: \d+", line):
            after_write = False
        elif line:
            raise InfraError(f"debugfs said something unexpected: {line!r}", where="injection, step write")
    left = next(echoed, None)
    if left is not None:
        raise InfraError(f"debugfs stopped before the command {left!r}", where="injection, step write")


def _difference(image: Ext4Image, operation: Operation, overlay: Path, epoch: int) -> str:
    """What about a node is not as planned; empty where all is."""
    node = image.lookup(operation.path, follow=False)
    kind = {Action.MKDIR: Kind.DIR, Action.WRITE: Kind.FILE, Action.SYMLINK: Kind.SYMLINK}[operation.action]
    if node is None:
        return "it is not there"
    if node.kind is not kind:
        return f"it is a {node.kind}, not a {kind}"
    if node.mode != operation.mode:
        return f"its mode is {node.mode:04o}, not {operation.mode:04o}"
    if (node.uid, node.gid) != (0, 0):
        return f"its owner is {node.uid}:{node.gid}, not 0:0"
    times = {node.atime_ns, node.mtime_ns, node.ctime_ns} | ({node.crtime_ns} if node.crtime_ns else set())
    if times != {epoch * 1_000_000_000}:
        return f"its times are {sorted(times)} ns, not {epoch} s"
    if kind is not Kind.DIR and node.links != 1:
        return f"it has {node.links} links"
    if node.acl_block:
        return "it has extended attributes"
    if kind is Kind.SYMLINK and image.readlink(node) != operation.target:
        return f"it points to {image.readlink(node)!r}, not {operation.target!r}"
    if kind is Kind.FILE:
        return _content_difference(image, node, operation, overlay)
    return ""


def _content_difference(image: Ext4Image, node: Node, operation: Operation, overlay: Path) -> str:
    if node.size != operation.size:
        return f"it has {node.size} bytes, not {operation.size}"
    with _open_source(overlay, operation.source) as source:
        position = 0
        for offset, piece in image.segments(node):
            if not _all_zero(source, position, offset) or os.pread(source, len(piece), offset) != piece:
                return f"its content differs, at or after byte {position}"
            position = offset + len(piece)
        if not _all_zero(source, position, operation.size):
            return f"its content differs, at or after byte {position}"
    return ""


def _all_zero(descriptor: int, start: int, end: int) -> bool:
    for position, stop in _data_ranges(descriptor, start, end):
        while position < stop:
            piece = read_fully(descriptor, min(CHUNK, stop - position), position)
            if piece.count(0) != len(piece):
                return False
            position += len(piece)
    return True


# --- reading files of the host --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _data_ranges(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a file between `start` and `end` that may hold anything but zeros, as (start, end)."""
    while start < end:
        try:
            data = os.lseek(descriptor, start, os.SEEK_DATA)
            hole = os.lseek(descriptor, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            yield start, end  # a filesystem that does not know holes
            return
        if data >= end:
            return
        yield data, min(hole, end)
        start = hole


@contextlib.contextmanager
def _folder_of(overlay: Path, folder: str) -> Iterator[int]:
    """A descriptor of a folder in the overlay. Every component is opened by itself, and none through a symlink."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        descriptor = os.open(overlay, flags)
    except OSError as error:
        raise InfraError(f"cannot read the overlay: {error.strerror}", where=str(overlay)) from None
    try:
        for part in folder.split("/") if folder else []:
            try:
                below = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError as error:
                raise _unreadable(folder, error) from None
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _entries(overlay: Path, folder: str) -> list[tuple[str, os.stat_result]]:
    """The entries of a folder of the overlay, sorted, with what `lstat` says."""
    with _folder_of(overlay, folder) as descriptor:
        try:
            names = sorted(os.listdir(descriptor))  # noqa: PTH208 - of a descriptor
            return [(name, os.stat(name, dir_fd=descriptor, follow_symlinks=False)) for name in names]
        except OSError as error:
            raise _unreadable(folder or ".", error) from None


@contextlib.contextmanager
def _open_source(overlay: Path, source: str) -> Iterator[int]:
    """A descriptor of a regular file in the overlay."""
    folder, _, name = source.rpartition("/")
    with _folder_of(overlay, folder) as parent:
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent)
        except OSError as error:
            raise _unreadable(source, error) from None
    try:
        yield descriptor
    except OSError as error:
        raise _unreadable(source, error) from None
    finally:
        os.close(descriptor)


def _read_link(overlay: Path, source: str) -> str:
    folder, _, name = source.rpartition("/")
    with _folder_of(overlay, folder) as parent:
        try:
            return os.readlink(name, dir_fd=parent)
        except OSError as error:
            raise _unreadable(source, error) from None


def _unreadable(source: str, error: OSError) -> BuildError:
    hint = "its owner needs permission to read it" if error.errno == errno.EACCES else ""
    return _refusal(source, f"cannot be read: {error.strerror}", hint)
