"""A FAT file system of a few files, for the firmware to boot from: written whole, the same bytes for the same files.

FAT16, or FAT32 where that is too small, laid out as in Microsoft's specification of 2000 ("FAT: General Overview of On-Disk
Format"), 512 bytes a sector:

    boot sector (FAT32: FSInfo, and their copies at 6) ─ FAT ─ FAT ─ root folder (FAT16) ─ clusters from number 2

There is no partition table: UEFI firmware takes a file system on a bare disk. Names that are no 8.3 names get a long name.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

SECTOR = 512
_CLUSTER = 4096  # bytes
_PER_CLUSTER = _CLUSTER // SECTOR
_ROOT_ENTRIES = 512  # of FAT16
_FAT16 = range(4085, 65_525)  # clusters; fewer are FAT12, more FAT32
_DATE = 0x0021  # 1 January 1980, the earliest there is
_VOLUME_ID = 0x71636173
_END16, _END32 = 0xFFFF, 0x0FFFFFFF


@dataclass
class _Folder:
    files: dict[str, bytes] = field(default_factory=dict)
    folders: dict[str, _Folder] = field(default_factory=dict)


def image(files: Mapping[str, bytes]) -> bytes:
    """Build the file system from files by path (`EFI/BOOT/BOOTX64.EFI`), as bytes. Names are of printable ASCII."""
    root = _Folder()
    for path, data in sorted(files.items()):
        *above, name = path.split("/")
        folder = root
        for part in above:
            folder = folder.folders.setdefault(part, _Folder())
        folder.files[name] = data
    writer = _Writer()
    content = _tree(root, writer, parent=0, is_root=True)
    wide = len(writer.clusters) + 1 >= _FAT16.stop
    first = writer.store(content) if wide else 0
    return _lay_out(writer, content, first, wide)


class _Writer:
    """Allocator of clusters, in order, with the chains of the FAT. Numbers begin at 2."""

    def __init__(self) -> None:
        self.clusters: list[bytes] = []
        self.next: list[int] = []  # of each cluster; 0 ends a chain

    def store(self, data: bytes) -> int:
        """Write data into new clusters. Returns the first one; 0 for no data."""
        first = self.reserve(len(data))
        if first:
            self.fill(first, data)
        return first

    def reserve(self, size: int) -> int:
        count = -(-size // _CLUSTER)
        first = len(self.clusters) + 2
        self.clusters += [b""] * count
        self.next += [first + number + 1 for number in range(count - 1)] + [0] * bool(count)
        return first if count else 0

    def fill(self, first: int, data: bytes) -> None:
        for number in range(-(-len(data) // _CLUSTER)):
            self.clusters[first - 2 + number] = data[number * _CLUSTER : (number + 1) * _CLUSTER].ljust(_CLUSTER, b"\0")


def _tree(folder: _Folder, writer: _Writer, parent: int, *, is_root: bool) -> bytes:
    """Return the entries of a folder, after writing the files and folders below it."""
    names = sorted([*folder.files, *folder.folders])
    size = 32 * (sum(len(_long_name(name, _short_name(name, number))) // 32 + 1 for number, name in enumerate(names)) + 2)
    own = 0 if is_root else writer.reserve(size)
    entries = bytearray()
    if not is_root:
        entries += _entry(b".          ", 0x10, own, 0) + _entry(b"..         ", 0x10, parent, 0)
    for number, name in enumerate(names):
        short = _short_name(name, number)
        entries += _long_name(name, short)
        if name in folder.files:
            data = folder.files[name]
            entries += _entry(short, 0x20, writer.store(data), len(data))
        else:
            first = _tree_at(folder.folders[name], writer, own)
            entries += _entry(short, 0x10, first, 0)
    if not is_root:
        writer.fill(own, bytes(entries))
    return bytes(entries)


def _tree_at(folder: _Folder, writer: _Writer, parent: int) -> int:
    first = len(writer.clusters) + 2
    _tree(folder, writer, parent, is_root=False)
    return first


def _entry(name: bytes, attributes: int, first: int, size: int) -> bytes:
    return struct.pack("<11sBBBHHHHHHHI", name, attributes, 0, 0, 0, _DATE, _DATE, first >> 16, 0, _DATE, first & 0xFFFF, size)


def _short_name(name: str, number: int) -> bytes:
    """Return the padded 8.3 name; a generated one where the name is not 8.3. `number` makes it unique in its folder."""
    base, _, extension = name.rpartition(".") if "." in name else (name, "", "")
    if _fits(name):
        return base.encode().ljust(8) + extension.encode().ljust(3)
    kept = "".join(c for c in base.upper() if c.isalnum())[:5]
    return f"{kept}~{number % 10}".encode().ljust(8) + "".join(c for c in extension.upper() if c.isalnum())[:3].encode().ljust(3)


def _fits(name: str) -> bool:
    base, dot, extension = name.partition(".")
    allowed = all(c.isalnum() or c in "_-$~!#%&" for c in base + extension)
    return name == name.upper() and allowed and 1 <= len(base) <= 8 and len(extension) <= 3 and bool(extension) == bool(dot)


def _long_name(name: str, short: bytes) -> bytes:
    """Return the entries that hold a long name, last part first; none for an 8.3 name."""
    if _fits(name):
        return b""
    checksum = 0
    for byte in short:
        checksum = ((checksum & 1) << 7) + (checksum >> 1) + byte & 0xFF
    units = name.encode("utf-16-le") + (b"\0\0" if len(name) % 13 else b"")
    units = units.ljust(-(-len(units) // 26) * 26, b"\xff")
    parts = [units[at : at + 26] for at in range(0, len(units), 26)]
    out = b""
    for order in range(len(parts), 0, -1):
        part = parts[order - 1]
        last = 0x40 if order == len(parts) else 0
        out += struct.pack("<B10sBBB12sH4s", order | last, part[:10], 0x0F, 0, checksum, part[10:22], 0, part[22:])
    return out


def _lay_out(writer: _Writer, root: bytes, root_first: int, wide: bool) -> bytes:
    """Return the sectors in front of the clusters, and the clusters."""
    count = max(len(writer.clusters), _FAT16.stop if wide else _FAT16.start) + 16
    width, end = (4, _END32) if wide else (2, _END16)
    fat_sectors = -(-(count + 2) * width // SECTOR)
    reserved = 32 if wide else 1
    root_sectors = 0 if wide else _ROOT_ENTRIES * 32 // SECTOR
    sectors = reserved + 2 * fat_sectors + root_sectors + count * _PER_CLUSTER

    chain = [end & ~7, end, *(following or end for following in writer.next)]
    fat = struct.pack(f"<{len(chain)}{'I' if wide else 'H'}", *chain).ljust(fat_sectors * SECTOR, b"\0")

    boot = struct.pack(
        "<3s8sHBHBHHBHHHII",
        b"\xeb\x58\x90" if wide else b"\xeb\x3c\x90",
        b"MSWIN4.1",
        SECTOR,
        _PER_CLUSTER,
        reserved,
        2,
        0 if wide else _ROOT_ENTRIES,
        0 if wide or sectors > 0xFFFF else sectors,
        0xF8,
        0 if wide else fat_sectors,
        32,
        64,
        0,
        sectors if wide or sectors > 0xFFFF else 0,
    )
    if wide:
        boot += struct.pack("<IHHIHH12s", fat_sectors, 0, 0, root_first, 1, 6, b"")
    boot += struct.pack("<BBBI11s8s", 0x80, 0, 0x29, _VOLUME_ID, b"NO NAME    ", b"FAT32   " if wide else b"FAT16   ")
    boot = boot.ljust(510, b"\0") + b"\x55\xaa"
    head = boot
    if wide:
        free = count - len(writer.clusters)
        info = struct.pack("<I480xIII12xI", 0x41615252, 0x61417272, free, len(writer.clusters) + 2, 0xAA550000)
        head = ((boot + info).ljust(6 * SECTOR, b"\0") + boot + info).ljust(reserved * SECTOR, b"\0")
    body = b"".join(cluster.ljust(_CLUSTER, b"\0") for cluster in writer.clusters)
    table = b"" if wide else root.ljust(root_sectors * SECTOR, b"\0")
    return (head + fat + fat + table + body).ljust(sectors * SECTOR, b"\0")
