"""The plan of an injection: which files, folders and links an overlay brings into an image."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from qcase.disk.ext4 import Ext4Image, Kind, Node, Superblock, UnresolvedError
from qcase.disk.sparse_files import all_zero
from qcase.errors import BuildError, InfraError
from qcase.host.holes import CHUNK, data_ranges, read_fully
from qcase.host.trees import Tree

# The times of everything that is written. Not 0: libext2fs before 1.47.1 takes 0 for "not given" and asks the clock.
EPOCH = 1
GROWTH_STEP = 64 << 20  # an image grows to a multiple of this


class Action(StrEnum):
    MKDIR = "mkdir"
    WRITE = "write"
    SYMLINK = "symlink"
    LINK = "link"  # another name of a file


@dataclass(frozen=True)
class Operation:
    """One write operation in the image. `replaces` is the kind of the node at `path` in the base, which is removed first."""

    action: Action
    path: str  # canonical, in the image
    source: str  # relative to the overlay: the entry that this operation writes
    mode: int  # permission bits with setuid, setgid and sticky
    size: int = 0  # of a file
    target: str = ""  # of a symlink; of a hard link, the file's path in the image
    links: int = 1  # names of a file
    replaces: Kind | None = None
    blank: bool = False  # the file is all zeros; computed only where the base has inline data

    @property
    def parent(self) -> str:
        return self.path.rpartition("/")[0] or "/"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class InjectionPlan:
    """Operations that write an overlay into a base image. `grow_to_bytes`: the size it needs, None where it fits as it is."""

    operations: tuple[Operation, ...]
    grow_to_bytes: int | None
    epoch: int = EPOCH
    inline_data: bool = False  # the base keeps small files in their inodes


# --- plan ---------------------------------------------------------------------------------------------------------------


def plan(base: Ext4Image, overlay: Tree, modes: Mapping[str, int] | None = None, epoch: int = EPOCH) -> InjectionPlan:
    """Plan the operations that write the folder `overlay` into `base`. Paths of the overlay are paths of the guest.

    `modes`: those of the guest by overlay path, where they differ from those on the disk of the host (see `qcase.store`).

    - A folder of the overlay goes where the base's symlinks lead (`lib/x` to `/usr/lib/x` where `/lib` is `usr/lib`). One that
      exists keeps its mode and owner.
    - A file or symlink replaces a file or symlink; nothing is ever written through a link.
    - A symlink replaces an empty folder. A folder that is not empty is left alone where the symlink leads to it, else refused.
    - New nodes belong to 0:0, with the permission bits that they have in the overlay. Hard links stay hard links.

    Raises `BuildError` for an entry that cannot be written as it is: a file over a folder or the reverse, two paths that land on
    the same one with different contents, a device, fifo or socket, a name that debugfs cannot quote, a file that cannot be read.
    No symlink of the overlay is followed, so nothing outside it is ever read.
    """
    planner = _Planner(base, overlay, modes or {})
    if not overlay.is_dir():
        raise InfraError("cannot read the overlay: it is not there", where=str(overlay))
    operations = planner.operations()
    return InjectionPlan(operations, _growth(base, operations, overlay), epoch, planner.inline_data)


class _Planner:
    """Collector of operations by canonical path. It refuses operations that contradict each other."""

    def __init__(self, base: Ext4Image, overlay: Tree, modes: Mapping[str, int]) -> None:
        self.base = base
        self.overlay = overlay
        self.modes = modes
        self.names: dict[tuple[int, int], list[str]] = {}  # of a file with several names: their paths in the image
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
            for name, facts in (self.overlay / folder if folder else self.overlay).listing():
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
        self._join_names()
        return tuple(self.found[path] for path in sorted(self.found, key=_by_component))

    def _join_names(self) -> None:
        """Write a file with several names once, under its first name, and plan hard links for the others."""
        for paths in self.names.values():
            first, *others = sorted({path for path in paths if path in self.found}, key=_by_component)
            whole = replace(self.found[first], links=1 + len(others))
            self.found[first] = whole
            for path in others:
                self.found[path] = replace(self.found[path], action=Action.LINK, target=first, links=whole.links)

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
            self._add(Operation(Action.MKDIR, trace.path, source, self._mode(source, facts)))
        elif trace.node.kind is Kind.DIR:
            self.folders.setdefault(trace.path, source)
        else:
            raise _refusal(source, f"is a folder, and the base image has a {trace.node.kind} at {trace.path!r}")
        return trace.path

    def _parents(self, path: str, source: str) -> None:
        """Plan the missing folders above `path`: a dangling symlink of the base may name several at once."""
        parent = path.rpartition("/")[0]
        while parent and parent not in self.found and self.base.lookup(parent, follow=False) is None:
            self.found[parent] = Operation(Action.MKDIR, parent, source, 0o755)
            self.implied.add(parent)
            parent = parent.rpartition("/")[0]

    def _file(self, source: str, wanted: str, facts: os.stat_result) -> None:
        there = self._there(wanted)
        if there is not None and there.kind is Kind.DIR:
            raise _refusal(source, f"is a file, and the base image has a folder at {wanted!r}", "install it under another name")
        if facts.st_nlink > 1:
            self.names.setdefault((facts.st_dev, facts.st_ino), []).append(wanted)
        with (self.overlay / source).opened() as descriptor:  # so it can be read
            blank = self.inline_data and facts.st_size > 0 and all_zero(descriptor, 0, facts.st_size)
        self._add(
            Operation(
                Action.WRITE,
                wanted,
                source,
                self._mode(source, facts),
                size=facts.st_size,
                replaces=None if there is None else there.kind,
                blank=blank,
            )
        )

    def _symlink(self, source: str, wanted: str) -> None:
        target = (self.overlay / source).readlink()
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

    def _mode(self, source: str, facts: os.stat_result) -> int:
        return self.modes.get(source, stat.S_IMODE(facts.st_mode))

    def _there(self, canonical: str) -> Node | None:
        return self.base.lookup(canonical, follow=False)

    def _add(self, operation: Operation) -> None:
        if len(os.fsencode(operation.path)) > 4000:
            raise _refusal(operation.source, "lands at a path longer than 4000 bytes in the image")
        other = self.found.get(operation.path)
        if operation.path in self.implied and operation.action is Action.MKDIR:
            self.implied.discard(operation.path)  # now an overlay path names it, and gives its mode
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
        with (self.overlay / one.source).opened() as first, (self.overlay / other.source).opened() as second:
            for position in range(0, one.size, CHUNK):
                length = min(CHUNK, one.size - position)
                if os.pread(first, length, position) != os.pread(second, length, position):
                    return False
        return True

    def _check_folders(self) -> None:
        """Check that no folder with new entries is replaced by another kind of node, nor the symlink that led to it."""
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


def _by_component(path: str) -> list[str]:
    return path.split("/")


def _check_name(source: str, name: str) -> None:
    """Refuse a name that debugfs cannot read: it reads a line up to the first CR or LF, and names are in double quotes."""
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


def _growth(base: Ext4Image, operations: tuple[Operation, ...], overlay: Tree) -> int | None:
    """Compute the size that the image needs, None where everything fits.

    It depends on contents alone, so it is the same everywhere.

    All counts are upper bounds. First by file sizes; only if that does not fit, by reading which blocks are not zero, as debugfs
    leaves holes for those that are. When the image grows, the guest finds as much free space as in the base.
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
    """Return upper bounds of the blocks and inodes that the operations take."""
    size, ratio = facts.block_size, facts.cluster_ratio
    blocks = 0
    names: dict[str, int] = {}  # folder → bytes of its new entries
    for operation in operations:
        names[operation.parent] = names.get(operation.parent, 0) + 12 + len(os.fsencode(operation.name))
        if operation.action is Action.MKDIR:
            blocks += ratio
        elif operation.action is Action.LINK:
            continue
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
    """Return the image's size in bytes after growth.

    It has room for everything beside the base's free space, and for the tables of new groups.
    """
    tables = -(-facts.inodes_per_group * facts.inode_size // facts.block_size)
    overhead = 3 + tables + facts.block_size // 4  # superblock, bitmaps, inode table, descriptors
    usable = max(1, facts.blocks_per_group - overhead)
    groups = max(-(-blocks // usable), -(-max(0, inodes - facts.free_inodes) // facts.inodes_per_group))
    total = facts.block_count + blocks + (groups + 1) * overhead
    if inodes > facts.free_inodes:
        total = max(total, (facts.group_count + groups) * facts.blocks_per_group + facts.first_data_block)
    return -(-total * facts.block_size // GROWTH_STEP) * GROWTH_STEP


def _blocks(overlay: Tree, operation: Operation, block_size: int) -> int:
    """Count the blocks of a file that are not all zero."""
    count = 0
    zero = bytes(block_size)
    with (overlay / operation.source).opened() as descriptor:
        done = 0
        for start, end in data_ranges(descriptor, 0, operation.size):
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
