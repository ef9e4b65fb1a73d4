"""What a program's loader asks for: the same as `elftools` says of honest files, and at once of dishonest ones."""

from __future__ import annotations

import os
import struct
import sys
import time
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from qcase.arch import Arch
from qcase.errors import BuildError
from qcase.host.trees import Tree
from qcase.pipelines import elf, elf_libraries

HONEST = [Path(sys.executable).resolve(), *sorted(Path("/usr/bin").glob("[a-f]*"))[:120]]


def header(*, start: int = 64, count: int = 1, size: int = 56, kind: int = 3) -> bytes:
    rest = (kind, 62, 1, 0, start, start + count * size, 0, 64, size, count, 64, 0, 0)
    return b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", *rest)


def segment(kind: int, offset: int, length: int, address: int = 0) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, 4, offset, address, 0, length, length, 8)


def tags(*rows: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<qQ", *row) for row in (*rows, (0, 0)))


def with_tags(*rows: tuple[int, int], names: bytes = b"\0liba.so\0") -> bytes:
    table = tags(*rows, (5, 0))
    body = header(count=2) + segment(1, 64 + 112 + len(table), len(names)) + segment(2, 64 + 112, len(table))
    return body + table + names


def test_honest_files_say_the_same_to_elftools() -> None:
    compared = 0
    for path in HONEST:
        if not path.is_file() or path.read_bytes()[:4] != elf.MAGIC or path.stat().st_size > 20 << 20:
            continue
        with path.open("rb") as file:
            known = ELFFile(file)
            interpreter, needed, search = None, [], []
            for one in known.iter_segments():
                if isinstance(one, InterpSegment):
                    interpreter = one.get_interp_name()
                elif isinstance(one, DynamicSegment):
                    needed += [tag.needed for tag in one.iter_tags("DT_NEEDED")]  # type: ignore[attr-defined]
                    lists = [tag.runpath for tag in one.iter_tags("DT_RUNPATH")]  # type: ignore[attr-defined]
                    search += [part for found in lists for part in found.split(":")]
            wanted = elf.Wants(known["e_machine"].removeprefix("EM_"), interpreter, tuple(needed), tuple(search))
            assert elf.wants(file.fileno()) == wanted, path
            compared += 1
    assert compared > 20


DISHONEST = {
    "headers without end": (header(count=60_000) + segment(2, 64, 160_000) * 60_000, "60000 program headers"),
    "headers of no size": (header(count=2, size=0), "program headers of 0 bytes"),
    "headers beyond the end": (header(start=1 << 62), "cut short"),
    "an interpreter without end": (header() + segment(3, 120, 1 << 40) + b"A" * 8000, "interpreter has a name of 1099511627776"),
    "a table without end": (header() + segment(2, 120, 1 << 40), "dynamic section has 1099511627776"),
    "a table that is not there": (header() + segment(2, 120, 16), "cut short"),
    "a name without end": (with_tags((1, 1), names=b"\0" + b"A" * 9000), "longer than 4096 bytes"),
    "a name beyond the end": (with_tags((1, 1 << 63)), "cut short"),
    "names nowhere": (header() + segment(2, 120, 48) + tags((1, 1), (5, 1 << 40)), "names are nowhere"),
    "too many libraries": (with_tags(*[(1, 1)] * 600), "600 libraries"),
    "too many folders": (with_tags((29, 1), names=b"\0" + b":" * 500 + b"\0"), "501 folders"),
    "a header cut short": (b"\x7fELF\2\1", "cut short"),
}


@pytest.mark.parametrize("what", DISHONEST)
def test_dishonest_files_are_build_errors_at_once(what: str, tmp_path: Path) -> None:
    data, said = DISHONEST[what]
    (tmp_path / "x").write_bytes(data)
    began = time.monotonic()
    with pytest.raises(BuildError, match=said):
        list(elf_libraries.elf_files(Tree(tmp_path)))
    assert time.monotonic() - began < 60


def test_what_is_read_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(with_tags((1, 1), (29, 9), names=b"\0liba.so\0/a:/b\0"))
    (tmp_path / "object").write_bytes(header(kind=1))
    (found,) = elf_libraries.elf_files(Tree(tmp_path))
    assert (found.machine, found.interpreter, found.needed, found.search) == ("X86_64", None, ("liba.so",), ("/a", "/b"))


def test_files_that_ask_for_more_than_anybody_needs(tmp_path: Path) -> None:
    """Each is within bounds, and together they would be looked for until tomorrow."""
    from tests.processes.test_ext4 import mkfs

    overlay = tmp_path / "overlay"
    overlay.mkdir()
    names = b"\0liba.so\0" + b":".join([b"/x"] * 100) + b"\0"
    (overlay / "x").write_bytes(with_tags(*[(1, 1)] * 500, (29, 9), names=names))
    for number in range(9):
        os.link(overlay / "x", overlay / f"x{number}")
    base = mkfs(tmp_path / "base.img", 4 << 20, None)
    began = time.monotonic()
    with pytest.raises(BuildError, match="at 515000 places"):
        elf_libraries.complete(Tree(overlay), base, Arch.X86_64, "normal/x")
    assert time.monotonic() - began < 60
