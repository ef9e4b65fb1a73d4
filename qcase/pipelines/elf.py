"""Reader for the parts of an ELF file that the dynamic loader uses. The file comes from a build and is untrusted.

`elftools` walks every table that a file claims to have, and reads names until they end: a crafted file keeps it busy for a day,
or fills the memory with one name. This reader parses only the parts that the loader reads, within Linux's own bounds: 64 KiB of
program headers, one interpreter of a path's length, one dynamic section. A file beyond these bounds does not run anywhere.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

MAGIC = b"\x7fELF"
HEADERS = 64 << 10  # bytes of program headers, as in Linux
DYNAMIC = 1 << 20  # bytes of a dynamic section; a large program has hundreds
NAME = 4096  # bytes of a name, as of a path
SEARCH = 64 << 10  # bytes of a list of folders
LIBRARIES = 512  # that one file may need
FOLDERS = 128  # in which one file may have them looked for

_LOAD, _DYNAMIC, _INTERP = 1, 2, 3
_NULL, _NEEDED, _STRTAB, _RPATH, _RUNPATH = 0, 1, 5, 15, 29


class ElfError(ValueError):
    """Defect of a file that begins like an ELF file."""


@dataclass(frozen=True)
class Wants:
    """Machine, interpreter and libraries of an ELF file. `interpreter` is None for a static program and for most libraries."""

    machine: str
    interpreter: str | None = None
    needed: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


def wants(fd: int) -> Wants | None:
    """Read the requirements of an ELF file; None for other files and for relocatable objects. Raises `ElfError`."""
    head = os.pread(fd, 64, 0)
    if head[:4] != MAGIC:
        return None
    file = _File.of(fd, head)
    if file is None:
        return None
    dynamic = list(file.tags())
    names = next((file.offset_of(value) for tag, value in dynamic if tag == _STRTAB), None)
    needed = [file.name(names, value, NAME) for tag, value in dynamic if tag == _NEEDED]
    lists = [file.name(names, value, SEARCH) for tag, value in dynamic if tag in (_RPATH, _RUNPATH)]
    search = [folder for one in lists for folder in one.split(":")]
    if len(needed) > LIBRARIES or len(search) > FOLDERS:
        raise ElfError(
            f"it asks for {len(needed)} libraries in {len(search)} folders, and qcase looks for {LIBRARIES} in {FOLDERS}"
        )
    return Wants(_machines().get(file.machine, f"machine {file.machine}"), file.interpreter(), tuple(needed), tuple(search))


@dataclass
class _File:
    fd: int
    order: str  # of bytes, as `struct` has it
    wide: bool
    machine: int
    segments: list[tuple[int, int, int, int]] = field(default_factory=list)  # type, offset, address, bytes in the file

    @classmethod
    def of(cls, fd: int, head: bytes) -> _File | None:
        if len(head) < 52 or head[4] not in (1, 2) or head[5] not in (1, 2):
            raise ElfError("its header is cut short, or of no known class")
        order, wide = "<" if head[5] == 1 else ">", head[4] == 2
        kind, machine = struct.unpack_from(f"{order}HH", head, 16)
        if kind not in (2, 3):
            return None
        if wide and len(head) < 64:
            raise ElfError("its header is cut short")
        start = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", head, 32 if wide else 28)[0]
        size, count = struct.unpack_from(f"{order}HH", head, 54 if wide else 42)
        if count and (size != (56 if wide else 32) or count * size > HEADERS):
            raise ElfError(f"it has {count} program headers of {size} bytes")
        file = cls(fd, order, wide, machine)
        raw = file.read(start, count * size)
        for at in range(0, len(raw), size or 1):
            if wide:
                type_, _, offset, address, _, length, _, _ = struct.unpack_from(f"{order}IIQQQQQQ", raw, at)
            else:
                type_, offset, address, _, length, _, _, _ = struct.unpack_from(f"{order}IIIIIIII", raw, at)
            file.segments.append((type_, offset, address, length))
        return file

    def read(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self.fd, length, offset) if length else b""
        except (OSError, OverflowError):
            data = b""
        if len(data) != length:
            raise ElfError(f"it is cut short: {length} bytes at {offset} are not there")
        return data

    def interpreter(self) -> str | None:
        for kind, offset, _, length in self.segments:
            if kind == _INTERP:
                if length > NAME:
                    raise ElfError(f"its interpreter has a name of {length} bytes")
                return os.fsdecode(self.read(offset, length).partition(b"\0")[0]) or None
        return None

    def tags(self) -> Iterator[tuple[int, int]]:
        """Yield the entries of the dynamic section. Of several sections the last one counts, as in musl."""
        places = [(offset, length) for kind, offset, _, length in self.segments if kind == _DYNAMIC]
        if not places:
            return
        offset, length = places[-1]
        entry = struct.Struct(f"{self.order}{'qQ' if self.wide else 'iI'}")
        if length > DYNAMIC:
            raise ElfError(f"its dynamic section has {length} bytes")
        for tag, value in entry.iter_unpack(self.read(offset, length - length % entry.size)):
            if tag == _NULL:
                return
            yield tag, value

    def offset_of(self, address: int) -> int | None:
        """Convert an address of the program into an offset in the file; None if no segment contains the address."""
        for kind, offset, start, length in self.segments:
            if kind == _LOAD and start <= address < start + length:
                return offset + address - start
        return None

    def name(self, table: int | None, at: int, limit: int) -> str:
        """Read a zero-terminated name from the string table."""
        if table is None:
            raise ElfError("its names are nowhere in the file")
        try:
            data = os.pread(self.fd, limit, table + at)
        except (OSError, OverflowError):
            data = b""
        name, end, _ = data.partition(b"\0")
        if not end:
            raise ElfError(f"a name in it is longer than {limit} bytes, or cut short")
        return os.fsdecode(name)


@cache
def _machines() -> dict[int, str]:
    """Map machine numbers to names without the `EM_`."""
    from elftools.elf.enums import ENUM_E_MACHINE

    return {
        number: name.removeprefix("EM_") for name, number in reversed(list(ENUM_E_MACHINE.items())) if isinstance(number, int)
    }
