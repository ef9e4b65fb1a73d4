"""Read ext2, ext3 and ext4 images, in pure Python, without an engine, root or a tool of the host.

The initramfs of a guest is made from its image with this, and debugfs' writes are verified with it, independently of e2fsprogs.
(PyPI's `ext4` is compiled and pins its dependencies exactly, so this is our own.) Nothing is ever written.

    0       1024         first_data_block + 1
    | boot  | superblock | group descriptors |  bitmaps, inode tables and blocks of group 0  |  group 1  | …
                                 |                        |
                                 +-- inode table ---------+-- inode --+-- extent tree, or block map --> data blocks
                                                                      +-- inline data, fast symlink

Supported: all feature sets that mke2fs makes, without verifying checksums. Refused with the feature's name: compression,
encrypted files, an external journal, a journal that still has to be replayed (its blocks would be stale).

An image is untrusted input. Every number read from it is checked before it is used: work and memory are bounded by the size of
the image, and an inconsistency is an `InfraError` that says where.

Names are `str`, with bytes that are not UTF-8 as surrogates (`os.fsdecode`).
"""

from __future__ import annotations

import os
import stat
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from qcase.errors import InfraError

ROOT_INODE = 2
SYMLINK_LIMIT = 40  # as Linux has it
PATH_MAX = 4096
READ_LIMIT = 256 << 20  # bytes that `read` takes into memory
CHUNK = 1 << 20  # bytes that one read of the image takes


class Kind(StrEnum):
    """Type of an inode."""

    FILE = "file"
    DIR = "folder"
    SYMLINK = "symlink"
    CHAR = "character device"
    BLOCK = "block device"
    FIFO = "fifo"
    SOCKET = "socket"


@dataclass(frozen=True)
class Node:
    """An inode. `mode` holds the permission bits with setuid, setgid and sticky; times are in nanoseconds since 1970."""

    inode: int
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    crtime_ns: int  # 0 where the image does not keep it
    major: int  # of a device
    minor: int
    flags: int = field(repr=False)
    acl_block: int = field(repr=False)  # of extended attributes outside the inode; 0: none
    block: bytes = field(repr=False)  # i_block: root of the extent tree, block map, or data

    @property
    def mtime(self) -> int:
        """Return the mtime in seconds since 1970."""
        return self.mtime_ns // 1_000_000_000


@dataclass(frozen=True)
class Superblock:
    """Parsed superblock. Counts of blocks are in blocks, also where the image allocates clusters."""

    block_size: int
    block_count: int
    free_blocks: int
    inode_count: int
    free_inodes: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    first_data_block: int
    first_meta_bg: int
    cluster_ratio: int
    backup_groups: tuple[int, int]
    compat: int
    incompat: int
    ro_compat: int
    uuid: uuid.UUID
    label: str

    @property
    def size(self) -> int:
        """Return the size of the filesystem in bytes."""
        return self.block_size * self.block_count

    @property
    def group_count(self) -> int:
        return -(-(self.block_count - self.first_data_block) // self.blocks_per_group)

    @property
    def features(self) -> frozenset[str]:
        """Return the features by the names that mke2fs gives them; an unknown one as e.g. `incompat:0x1000000`."""
        found = set()
        for word, flags, names in (
            ("compat", self.compat, COMPAT),
            ("incompat", self.incompat, INCOMPAT),
            ("ro_compat", self.ro_compat, RO_COMPAT),
        ):
            for bit in range(32):
                if flags >> bit & 1:
                    found.add(names.get(1 << bit, f"{word}:{1 << bit:#x}"))
        return frozenset(found)


@dataclass(frozen=True)
class Trace:
    """Result of following a path: the canonical path, its node (None: nothing yet), and the symlinks on the way, in order.

    `from_nothing`: the path leads by `..` out of a folder that does not exist. Linux would fail there.
    """

    path: str
    node: Node | None
    links: tuple[str, ...]
    from_nothing: bool = False


class UnresolvedError(InfraError):
    """A path cannot be followed: a component is no folder (`blocker` is its canonical path), or symlinks go in circles."""

    def __init__(self, what: str, *, where: str, blocker: str) -> None:
        super().__init__(what, where=where)
        self.blocker = blocker


class Ext4Image:
    """An open image. Use as a context manager: `with Ext4Image.open(path) as image:`."""

    def __init__(self, path: Path, descriptor: int, superblock: Superblock) -> None:
        self.path = path
        self.superblock = superblock
        self._fd = descriptor
        self._tables: dict[int, int] = {}  # group → first block of its inode table
        self._folders: dict[int, dict[str, int]] = {}  # inode of a folder → its entries
        self._cached = 0  # entries in _folders

    @classmethod
    def open(cls, path: Path | str) -> Ext4Image:
        """Open an image. Raises `InfraError` if it is missing, truncated, not ext2/3/4, or has an unsupported feature."""
        path = Path(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InfraError(f"cannot open the image: {error.strerror}", where=str(path)) from None
        try:
            raw = os.pread(descriptor, 1024, 1024)
            superblock = _superblock(raw, str(path))
            length = os.lseek(descriptor, 0, os.SEEK_END)
            if superblock.size > length:
                raise InfraError(
                    f"the image is cut short: its filesystem has {superblock.size} bytes, the file {length}", where=str(path)
                )
        except OSError as error:
            os.close(descriptor)
            raise InfraError(f"cannot read the image: {error.strerror}", where=str(path)) from None
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, superblock)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Ext4Image:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- paths ---

    def lookup(self, path: str, *, follow: bool = True) -> Node | None:
        """Return the node at a path, None if there is none.

        Symlinks are followed within the image, the last one only with `follow`.
        """
        try:
            trace = self.trace(path, follow=follow)
        except UnresolvedError:
            return None
        return None if trace.from_nothing else trace.node

    def resolve(self, path: str) -> str:
        """Return the canonical path at which a new node at `path` would land.

        Each symlink to a folder is followed, also as the last component (`/lib` may be `/usr/lib`); one to a file, or to nothing,
        is not, as the last component: the new node replaces it. Components that do not exist yet are appended as they are. Raises
        `UnresolvedError` where a component on the way is no folder.
        """
        itself = self.trace(path, follow=False)
        if itself.node is not None and itself.node.kind is Kind.SYMLINK:
            target = self.lookup(path)
            if target is not None and target.kind is Kind.DIR:
                return self.trace(path).path
        return itself.path

    def trace(self, path: str, *, follow: bool = True) -> Trace:
        """Follow a path, component by component; the last one only with `follow`.

        Components that do not exist yet are appended as they are, so a dangling symlink leads to the path that it names. Raises
        `UnresolvedError` where a component on the way is no folder, or after 40 symlinks.
        """
        pending = path.split("/")[::-1]
        at: list[tuple[str, Node | None]] = [("", self.node(ROOT_INODE))]
        links: list[str] = []
        from_nothing = False

        def here(*more: str) -> str:
            return "/".join([*(name for name, _ in at), *more]) or "/"

        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            parent = at[-1][1]
            if parent is not None and parent.kind is not Kind.DIR:
                raise UnresolvedError(f"{here()!r} is a {parent.kind}, not a folder", where=str(self.path), blocker=here())
            if part == "..":
                from_nothing = from_nothing or parent is None
                if len(at) > 1:
                    at.pop()
                continue
            inode = None if parent is None else self._entries(parent).get(part)
            child = None if inode is None else self.node(inode)
            if child is not None and child.kind is Kind.SYMLINK and (follow or any(p not in ("", ".") for p in pending)):
                links.append(here(part))
                if len(links) > SYMLINK_LIMIT:
                    raise UnresolvedError(f"too many symlinks on the way to {path!r}", where=str(self.path), blocker=here(part))
                target = self.readlink(child)
                pending.extend(target.split("/")[::-1])
                if target.startswith("/"):
                    del at[1:]
                continue
            at.append((part, child))
        return Trace(here(), at[-1][1], tuple(links), from_nothing)

    def listdir(self, node: Node) -> dict[str, Node]:
        """Return the entries of a folder, without `.` and `..`, sorted by name."""
        entries = self._entries(node)
        return {name: self.node(entries[name]) for name in sorted(entries)}

    def walk(self, path: str = "/") -> Iterator[tuple[str, Node]]:
        """Yield `path` and everything below it, as (canonical path, node): a folder before its entries, those sorted by name.

        Symlinks are not followed. Yields nothing if `path` does not exist.
        """
        start = self.trace(path)
        if start.node is None or start.from_nothing:
            return
        seen: set[int] = set()
        stack = [(start.path, start.node)]
        while stack:
            where, node = stack.pop()
            yield where, node
            if node.kind is not Kind.DIR:
                continue
            if node.inode in seen:
                raise self._corrupt(f"folder {where!r} (inode {node.inode}) is linked more than once")
            seen.add(node.inode)
            base = "" if where == "/" else where
            stack.extend((f"{base}/{name}", child) for name, child in reversed(self.listdir(node).items()))

    # --- contents ---

    def read(self, node: Node, limit: int = READ_LIMIT) -> bytes:
        """Read a file into memory. Raises `InfraError` above `limit` bytes: use `segments` or `copy_out`."""
        if node.size > limit:
            raise InfraError(f"file of {node.size} bytes is too large to hold (inode {node.inode})", where=str(self.path))
        data = bytearray(node.size)
        for offset, piece in self.segments(node):
            data[offset : offset + len(piece)] = piece
        return bytes(data)

    def segments(self, node: Node) -> Iterator[tuple[int, bytes]]:
        """Yield a file's content as (offset, bytes), ascending, in pieces of at most 1 MiB. Omitted ranges are zero."""
        if node.kind is not Kind.FILE:
            raise InfraError(f"inode {node.inode} is a {node.kind}, not a file", where=str(self.path))
        yield from self._data(node)

    def copy_out(self, node: Node, target: BinaryIO, limit: int | None = None) -> int:
        """Write a file's content into an empty file of the host. Holes stay holes. Returns the number of bytes outside of holes.

        Files may share blocks, and one may have any number of names: `limit` is the byte budget left of a caller that copies
        many.
        """
        copied = 0
        for offset, piece in self.segments(node):
            copied += len(piece)
            if limit is not None and copied > limit:
                raise InfraError("its files are more than can be unpacked", where=str(self.path))
            target.seek(offset)
            target.write(piece)
        try:
            target.truncate(node.size)
        except OSError as error:
            raise InfraError(f"cannot write {node.size} bytes: {error.strerror}", where=str(self.path)) from error
        target.seek(node.size)
        return copied

    def readlink(self, node: Node) -> str:
        """Return the target of a symlink."""
        if node.kind is not Kind.SYMLINK:
            raise InfraError(f"inode {node.inode} is a {node.kind}, not a symlink", where=str(self.path))
        if not 0 < node.size < max(PATH_MAX, 61):
            raise self._corrupt(f"symlink of {node.size} bytes (inode {node.inode})")
        if node.size < 60 and not node.flags & (EXTENTS | INLINE):
            return os.fsdecode(node.block[: node.size])
        data = bytearray(node.size)
        for offset, piece in self._data(node):
            data[offset : offset + len(piece)] = piece
        return os.fsdecode(bytes(data))

    # --- inodes ---

    def node(self, inode: int) -> Node:
        """Read the inode with a number."""
        raw = self._inode(inode)
        (
            (mode, uid, size, atime, ctime, mtime, _dtime, gid, links, _blocks, flags, _osd),
            block,
            (_generation, acl, size_high, _fragment, _blocks_high, acl_high, uid_high, gid_high, _checksum, _reserved),
        ) = (
            _INODE_HEAD.unpack_from(raw),
            raw[0x28:0x64],
            _INODE_TAIL.unpack_from(raw, 0x64),
        )
        kind = _KINDS.get(stat.S_IFMT(mode))
        if kind is None or links == 0:
            raise self._corrupt(f"inode {inode} is in use but not valid (mode {mode:#o}, {links} links)")
        if kind is Kind.FILE or (kind is Kind.DIR and self.superblock.incompat & LARGEDIR):
            size |= size_high << 32
        extra = struct.unpack_from("<H", raw, 0x80)[0] if len(raw) >= 0xA0 else 0
        ctime_extra, mtime_extra, atime_extra = struct.unpack_from("<III", raw, 0x84) if extra >= 0x10 else (0, 0, 0)
        crtime, crtime_extra = struct.unpack_from("<iI", raw, 0x90) if extra >= 0x18 else (0, 0)
        major, minor = _device(block) if kind in (Kind.CHAR, Kind.BLOCK) else (0, 0)
        return Node(
            inode=inode,
            kind=kind,
            mode=stat.S_IMODE(mode),
            uid=uid | uid_high << 16,
            gid=gid | gid_high << 16,
            size=size,
            links=links,
            atime_ns=_time(atime, atime_extra),
            mtime_ns=_time(mtime, mtime_extra),
            ctime_ns=_time(ctime, ctime_extra),
            crtime_ns=_time(crtime, crtime_extra),
            major=major,
            minor=minor,
            flags=flags,
            acl_block=acl | acl_high << 32,
            block=block,
        )

    def _inode(self, inode: int) -> bytes:
        """Read the bytes of an inode."""
        facts = self.superblock
        if not 0 < inode <= facts.inode_count:
            raise self._corrupt(f"inode {inode} does not exist")
        group, index = divmod(inode - 1, facts.inodes_per_group)
        if group not in self._tables:
            self._tables[group] = self._inode_table(group)
        offset = self._tables[group] * facts.block_size + index * facts.inode_size
        return self._pread(offset, facts.inode_size, f"inode {inode}")

    def _inode_table(self, group: int) -> int:
        """Return the block where a group's inode table begins."""
        facts = self.superblock
        if group >= facts.group_count:
            raise self._corrupt(f"group {group} does not exist")
        per_block = facts.block_size // facts.descriptor_size
        index, slot = divmod(group, per_block)
        # The superblock lies in block 1 where blocks have 1 KiB, also where clusters make the first data block 0.
        first = 1 if facts.block_size == 1024 else 0
        if facts.incompat & META_BG and index >= facts.first_meta_bg:
            owner = index * per_block
            start = facts.first_data_block + owner * facts.blocks_per_group
            block = first + 1 if owner == 0 else start + int(_has_superblock(facts, owner))
        else:
            block = first + 1 + index
        offset = block * facts.block_size + slot * facts.descriptor_size
        raw = self._pread(offset, facts.descriptor_size, f"descriptor of group {group}")
        table: int = struct.unpack_from("<I", raw, 8)[0]
        if facts.descriptor_size >= 64:
            table |= struct.unpack_from("<I", raw, 0x28)[0] << 32
        if not 0 < table < facts.block_count:
            raise self._corrupt(f"inode table of group {group} lies outside")
        return table

    # --- from an inode to its data ---

    def _data(self, node: Node) -> Iterator[tuple[int, bytes]]:
        """Yield the data of a file, folder or symlink as (offset, bytes), without holes, cut at its size."""
        self._readable(node)
        if node.flags & INLINE:
            data = self._inline(node)
            if node.size > len(data):
                raise self._corrupt(f"inline data of inode {node.inode} is shorter than its size")
            if node.size:
                yield 0, data[: node.size]
            return
        block_size = self.superblock.block_size
        if node.size > self._addressable(node) * block_size:
            raise self._corrupt(f"inode {node.inode} has an impossible size, {node.size} bytes")
        for logical, physical, count in self._runs(node):
            offset = logical * block_size
            end = min(offset + count * block_size, node.size)
            position = physical * block_size
            while offset < end:
                length = min(CHUNK, end - offset)
                yield offset, self._pread(position, length, f"data of inode {node.inode}")
                offset += length
                position += length

    def _readable(self, node: Node) -> None:
        if node.flags & ENCRYPTED:
            raise InfraError(f"inode {node.inode} is encrypted, which is not supported", where=str(self.path))
        if node.flags & COMPRESSED:
            raise InfraError(f"inode {node.inode} is compressed, which is not supported", where=str(self.path))

    def _addressable(self, node: Node) -> int:
        """Return the maximal number of blocks of a file with this layout."""
        if node.flags & EXTENTS:
            return 1 << 32
        width = self.superblock.block_size // 4
        return 12 + width + width**2 + width**3

    def _runs(self, node: Node) -> Iterator[tuple[int, int, int]]:
        """Yield the mapped blocks as (logical, physical, count), ascending. Together never more than the image has."""
        facts = self.superblock
        mapped, last = 0, -1
        for logical, physical, count in self._extents(node) if node.flags & EXTENTS else self._block_map(node):
            if logical <= last or not facts.first_data_block <= physical <= facts.block_count - count:
                raise self._corrupt(f"block map of inode {node.inode}")
            last = logical + count - 1
            mapped += count
            if mapped > facts.block_count and not facts.ro_compat & SHARED_BLOCKS:
                raise self._corrupt(f"inode {node.inode} has more blocks than the image")
            yield logical, physical, count

    def _extents(self, node: Node) -> Iterator[tuple[int, int, int]]:
        """Yield the leaves of the extent tree.

        A tree block is visited once at most, so that loops and shared blocks end the walk.
        """
        seen: set[int] = set()
        stack: list[tuple[int, int | None]] = [(0, None)]  # 0 stands for the root, which is in the inode
        while stack:
            at, expected = stack.pop()
            raw = self._block(at, node) if at else node.block
            magic, entries, _limit, depth = struct.unpack_from("<HHHH", raw)
            bad_depth = depth > 5 if expected is None else depth != expected
            if magic != 0xF30A or bad_depth or 12 + entries * 12 > len(raw):
                raise self._corrupt(f"extent tree of inode {node.inode}")
            if depth == 0:
                for index in range(entries):
                    logical, length, high, low = struct.unpack_from("<IHHI", raw, 12 + index * 12)
                    if length <= 32768:  # longer: allocated, never written, so zero
                        yield logical, low | high << 32, length
                continue
            children = []
            for index in range(entries):
                _logical, low, high = struct.unpack_from("<IIH", raw, 12 + index * 12)
                block = low | high << 32
                if block in seen:
                    raise self._corrupt(f"extent tree of inode {node.inode} goes in circles")
                seen.add(block)
                children.append(block)
            stack.extend((block, depth - 1) for block in reversed(children))

    def _block_map(self, node: Node) -> Iterator[tuple[int, int, int]]:
        """Yield the classic map: 12 direct blocks, then trees of depth 1, 2 and 3; 0 is a hole. Neighbours are joined to runs."""
        run: tuple[int, int, int] | None = None
        for logical, physical in self._mapped_blocks(node):
            if run is not None and run[0] + run[2] == logical and run[1] + run[2] == physical:
                run = (run[0], run[1], run[2] + 1)
                continue
            if run is not None:
                yield run
            run = (logical, physical, 1)
        if run is not None:
            yield run

    def _mapped_blocks(self, node: Node) -> Iterator[tuple[int, int]]:
        width = self.superblock.block_size // 4
        roots = struct.unpack("<15I", node.block)
        starts = (*range(12), 12, 12 + width, 12 + width + width**2)
        seen: set[int] = set()
        # (block, depth of the tree below it, first logical block it maps)
        stack = [(block, max(0, index - 11), starts[index]) for index, block in reversed(list(enumerate(roots))) if block]
        while stack:
            block, depth, logical = stack.pop()
            if depth == 0:
                yield logical, block
                continue
            if block in seen:
                raise self._corrupt(f"block map of inode {node.inode} goes in circles")
            seen.add(block)
            step = width ** (depth - 1)
            pointers = struct.unpack(f"<{width}I", self._block(block, node))
            stack.extend((pointers[i], depth - 1, logical + i * step) for i in range(width - 1, -1, -1) if pointers[i])

    def _inline(self, node: Node) -> bytes:
        """Return inline data: the 60 bytes of the block map, then the attribute `system.data` in the inode's tail."""
        raw = self._inode(node.inode)
        start = 0x80 + struct.unpack_from("<H", raw, 0x80)[0] if len(raw) > 0x80 else len(raw)
        if start + 4 > len(raw) or struct.unpack_from("<I", raw, start)[0] != 0xEA020000:
            return node.block
        first = start + 4
        at = first
        while at + 16 <= len(raw) and raw[at : at + 4] != b"\0\0\0\0":
            name_length, index, offset, value_inode, size = struct.unpack_from("<BBHII", raw, at)
            name = raw[at + 16 : at + 16 + name_length]
            if index == 7 and name == b"data":
                if value_inode or first + offset + size > len(raw):
                    raise self._corrupt(f"inline data of inode {node.inode}")
                return node.block + raw[first + offset : first + offset + size]
            at += 16 + (name_length + 3 & ~3)
        return node.block

    # --- folders ---

    def _entries(self, node: Node) -> dict[str, int]:
        """Return name → inode of a folder's entries.

        Hashed folders too are read from end to end: their index looks like a hole.
        """
        if node.kind is not Kind.DIR:
            raise InfraError(f"inode {node.inode} is a {node.kind}, not a folder", where=str(self.path))
        known = self._folders.get(node.inode)
        if known is not None:
            return known
        found: dict[str, int] = {}
        for raw in self._folder_blocks(node):
            for name, inode in self._parse(raw, node):
                text = os.fsdecode(name)
                if not name or b"/" in name or b"\0" in name or text in found:
                    raise self._corrupt(f"folder with inode {node.inode} has an invalid or repeated name {text!r}")
                if name not in (b".", b".."):
                    found[text] = inode
        if self._cached > 500_000:
            self._folders.clear()
            self._cached = 0
        self._folders[node.inode] = found
        self._cached += len(found)
        return found

    def _folder_blocks(self, node: Node) -> Iterator[bytes]:
        """Yield the regions of consecutive entries in a folder: its blocks; of an inline one, the two parts of its data."""
        block_size = self.superblock.block_size
        if node.flags & INLINE:
            self._readable(node)
            data = self._inline(node)
            yield data[4:60]  # after the number of the parent
            if len(data) > 60:
                yield data[60:]
            return
        if node.size % block_size or node.size > self.superblock.size or node.size == 0:
            raise self._corrupt(f"folder with inode {node.inode} has an impossible size, {node.size} bytes")
        expected = 0
        for offset, piece in self._data(node):
            if offset != expected:
                break
            expected += len(piece)
            for start in range(0, len(piece), block_size):
                yield piece[start : start + block_size]
        if expected != node.size:
            raise self._corrupt(f"folder with inode {node.inode} has a hole")

    def _parse(self, raw: bytes, node: Node) -> Iterator[tuple[bytes, int]]:
        typed = self.superblock.incompat & FILETYPE
        at = 0
        while at < len(raw):
            if at + 8 > len(raw):
                raise self._corrupt(f"folder with inode {node.inode}")
            inode, length, name_length = struct.unpack_from("<IHH", raw, at)
            if typed:
                name_length &= 0xFF  # the upper byte is the type; the inode knows it better
            if len(raw) >= 65536:
                length = len(raw) if length in (0, 65535) else length & 0xFFFC | (length & 3) << 16
            if length < 8 or length % 4 or at + length > len(raw) or (inode and 8 + name_length > length):
                raise self._corrupt(f"folder with inode {node.inode}")
            if inode:
                yield raw[at + 8 : at + 8 + name_length], inode
            at += length

    # --- bytes ---

    def _block(self, block: int, node: Node) -> bytes:
        size = self.superblock.block_size
        if not 0 < block < self.superblock.block_count:
            raise self._corrupt(f"block map of inode {node.inode} points outside")
        return self._pread(block * size, size, f"block map of inode {node.inode}")

    def _pread(self, offset: int, length: int, what: str) -> bytes:
        try:
            raw = os.pread(self._fd, length, offset)
        except (OSError, OverflowError) as error:
            raise InfraError(f"cannot read the image ({what}): {error}", where=str(self.path)) from None
        if len(raw) != length:
            raise self._corrupt(f"{what} lies outside")
        return raw

    def _corrupt(self, what: str) -> InfraError:
        return InfraError(f"the filesystem is damaged: {what}", where=str(self.path), hint="check it with e2fsck -fn")


# --- the format's numbers -----------------------------------------------------------------------------------------------

FILETYPE, RECOVER, META_BG, INCOMPAT_64BIT, LARGEDIR = 0x2, 0x4, 0x10, 0x80, 0x4000  # incompat
SPARSE_SUPER, BIGALLOC, SHARED_BLOCKS = 0x1, 0x200, 0x4000  # ro_compat
SPARSE_SUPER2 = 0x200  # compat
COMPRESSED, ENCRYPTED, EXTENTS, INLINE = 0x4, 0x800, 0x80000, 0x10000000  # flags of an inode

COMPAT = {
    0x1: "dir_prealloc",
    0x2: "imagic_inodes",
    0x4: "has_journal",
    0x8: "ext_attr",
    0x10: "resize_inode",
    0x20: "dir_index",
    0x200: "sparse_super2",
    0x400: "fast_commit",
    0x800: "stable_inodes",
    0x1000: "orphan_file",
}
INCOMPAT = {
    0x1: "compression",
    0x2: "filetype",
    0x4: "needs_recovery",
    0x8: "journal_dev",
    0x10: "meta_bg",
    0x40: "extent",
    0x80: "64bit",
    0x100: "mmp",
    0x200: "flex_bg",
    0x400: "ea_inode",
    0x1000: "dirdata",
    0x2000: "metadata_csum_seed",
    0x4000: "large_dir",
    0x8000: "inline_data",
    0x10000: "encrypt",
    0x20000: "casefold",
}
RO_COMPAT = {
    0x1: "sparse_super",
    0x2: "large_file",
    0x8: "huge_file",
    0x10: "uninit_bg",
    0x20: "dir_nlink",
    0x40: "extra_isize",
    0x100: "quota",
    0x200: "bigalloc",
    0x400: "metadata_csum",
    0x1000: "read-only",
    0x2000: "project",
    0x4000: "shared_blocks",
    0x8000: "verity",
    0x10000: "orphan_present",
}
# `encrypt` and `casefold` are about single files, which are refused, or compared exactly, one by one.
_REFUSED = {"compression", "needs_recovery", "journal_dev", "dirdata"}

_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIR,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}
_INODE_HEAD = struct.Struct("<HHIiiiiHHIII")
_INODE_TAIL = struct.Struct("<IIIIHHHHHH")


def _superblock(raw: bytes, where: str) -> Superblock:
    """Parse the superblock. Refuses unsupported features and impossible values."""
    if len(raw) < 1024 or raw[0x38:0x3A] != b"\x53\xef":
        raise InfraError("this is no ext2, ext3 or ext4 image", where=where)

    def word(offset: int) -> int:
        value: int = struct.unpack_from("<I", raw, offset)[0]
        return value

    def half(offset: int) -> int:
        value: int = struct.unpack_from("<H", raw, offset)[0]
        return value

    dynamic = word(0x4C) >= 1
    compat, incompat, ro_compat = (word(0x5C), word(0x60), word(0x64)) if dynamic else (0, 0, 0)
    wide = bool(incompat & INCOMPAT_64BIT)
    log_block, log_cluster = word(0x18), word(0x1C)
    damaged = InfraError("the filesystem is damaged: superblock", where=where, hint="check it with e2fsck -fn")
    if log_block > 6 or (ro_compat & BIGALLOC and not log_block <= log_cluster <= 20):
        raise damaged
    ratio = 1 << (log_cluster - log_block) if ro_compat & BIGALLOC else 1
    facts = Superblock(
        block_size=1024 << log_block,
        block_count=word(0x4) | (word(0x150) << 32 if wide else 0),
        free_blocks=(word(0xC) | (word(0x158) << 32 if wide else 0)) * ratio,
        inode_count=word(0x0),
        free_inodes=word(0x10),
        blocks_per_group=word(0x20),
        inodes_per_group=word(0x28),
        inode_size=half(0x58) if dynamic else 128,
        descriptor_size=half(0xFE) if wide else 32,
        first_data_block=word(0x14),
        first_meta_bg=word(0x104),
        cluster_ratio=ratio,
        backup_groups=(word(0x24C), word(0x250)),
        compat=compat,
        incompat=incompat,
        ro_compat=ro_compat,
        uuid=uuid.UUID(bytes=raw[0x68:0x78]),
        label=raw[0x78:0x88].split(b"\0")[0].decode(errors="replace"),
    )
    unread = sorted(name for name in facts.features if name in _REFUSED or name.startswith("incompat:"))
    if "needs_recovery" in unread:
        raise InfraError(
            "the image was not unmounted cleanly: its journal has to be replayed first",
            where=where,
            hint=f"run e2fsck -fy {where}",
        )
    if unread:
        raise InfraError(f"the filesystem uses {', '.join(unread)}, which is not supported", where=where)
    if not (
        facts.first_data_block < 2
        and facts.first_data_block < facts.block_count
        and facts.inode_count > 0
        and 0 < facts.inodes_per_group <= 8 * facts.block_size
        and 0 < facts.blocks_per_group <= 8 * facts.block_size * ratio
        and _power_of_two(facts.inode_size)
        and 128 <= facts.inode_size <= facts.block_size
        and _power_of_two(facts.descriptor_size)
        and (64 if wide else 32) <= facts.descriptor_size <= 1024
    ):
        raise damaged
    return facts


def _power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _has_superblock(facts: Superblock, group: int) -> bool:
    """Tell whether a group begins with a copy of the superblock."""
    if group == 0:
        return True
    if facts.compat & SPARSE_SUPER2:
        return group in facts.backup_groups
    if group == 1 or not facts.ro_compat & SPARSE_SUPER:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def _time(seconds: int, extra: int) -> int:
    """Decode a time to nanoseconds. The two low bits of the extra word extend the seconds, the others are nanoseconds."""
    return (seconds + ((extra & 3) << 32)) * 1_000_000_000 + (extra >> 2)


def _device(block: bytes) -> tuple[int, int]:
    """Decode a device's major and minor: the old 16-bit encoding in the first word, else the new one in the second."""
    old, new = struct.unpack_from("<II", block)
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00
