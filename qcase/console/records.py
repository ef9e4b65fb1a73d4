"""Records of the rows that ended, and of their earlier states, as long as they can still change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from qcase.console.row import Row

RECORDS_MAX: Final = 4096  # maximum number of records (rows, or stretches of plain rows) that can still change
_CELLS_MAX: Final = 1 << 20  # maximum cells of rows that can still change


@dataclass(slots=True)
class Record:
    """Rows that ended, or a state of one. `row` is None for plain rows, which stand unchanged in the written text."""

    start: int
    end: int
    row: Row | None
    shows: bool  # a row, not a state
    # Rows of several lines, each line written over those before: start of the last line if it covers them (else -1), end of row.
    returned: tuple[tuple[int, int], ...] = ()
    at: int = 0  # end of its reading before it was added


@dataclass
class Records:
    """The records of one reading: rows for the shown text, or states. `next`: index of the first one not in the reading yet."""

    all: list[Record] = field(default_factory=list)
    next: int = 0
    cells: int = 0

    def note(self, record: Record) -> None:
        self.all.append(record)
        self.cells += 0 if record.row is None else len(record.row.chars)
        if self.next >= RECORDS_MAX or (self.next > 1 and self.cells > _CELLS_MAX):
            drop = (self.next + 1) // 2
            del self.all[:drop]
            self.next -= drop
            self.cells = sum(len(r.row.chars) for r in self.all if r.row is not None)

    def stale(self, changed: int) -> int:
        """Return the index of the first record to add (again) to the reading, given that text changed from a position on."""
        at = self.next
        while at and self.all[at - 1].end > changed:
            at -= 1
        return at

    def take_later(self, position: int) -> list[Record]:
        """Remove and return the records that are not in the reading yet and end behind a position."""
        later = [record for record in self.all[self.next :] if record.end > position]
        del self.all[len(self.all) - len(later) :]
        return later


def overlay(lines: bytes) -> bytes:
    """Return the final text of a row that was written several times from its start."""
    out = bytearray()
    for line in lines[:-1].split(b"\n"):
        out[: len(line)] = line
    return bytes(out) + b"\n"
