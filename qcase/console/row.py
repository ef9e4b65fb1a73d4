"""Rows of a terminal, the receiver of rows that ended, the modes of writing, and widths of characters."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Final, Protocol

BLANK: Final = -1  # position of a cell that the guest did not write


@dataclass(slots=True)
class Row:
    """One row. `at`: position in the written text of each cell's character. `start`: position at which the row began."""

    start: int
    chars: list[str] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    dirty: bool = False  # something was written since the last state was reported
    rewritten: bool = False  # something on it was overwritten by other text, or erased
    uncertain: bool = False  # unknown text may stand on it, too
    uneven: bool = False  # it may have characters that take more than one cell, or none
    moved: bool = False  # its text was not written strictly from left to right

    @property
    def text(self) -> str:
        return "".join(self.chars)


class Rows(Protocol):
    """Receiver of the rows that ended, of states, and of requests for rows above."""

    def row_ended(self, row: Row) -> None: ...

    def state(self, row: Row, low: int, high: int) -> None: ...

    def reopen(self, count: int) -> list[Row]: ...

    def lose(self, count: int) -> int: ...

    def start_over(self) -> None: ...


class NoRows:
    """A receiver that ignores everything."""

    def row_ended(self, row: Row) -> None:
        """See `Rows`."""

    def state(self, row: Row, low: int, high: int) -> None:
        """See `Rows`."""

    def reopen(self, count: int) -> list[Row]:  # noqa: ARG002
        """See `Rows`."""
        return []

    def lose(self, count: int) -> int:  # noqa: ARG002
        """See `Rows`."""
        return 0

    def start_over(self) -> None:
        """See `Rows`."""


@dataclass(slots=True)
class Modes:
    """Modes of a terminal in which a written character is not simply put into its cell."""

    insert: bool = False
    graphics: bool = False
    shifted: bool = False
    g1_graphics: bool = False
    concealed: bool = False

    @property
    def special(self) -> bool:
        """Tell whether any of the modes is on."""
        return self.insert or self.graphics or self.concealed or self.shifted


# Characters that take exactly one cell: progress bars and messages in most languages consist of them.
NARROW: Final = re.compile(
    r"[\x20-\x7e\xa0-\xac\xae-\u02ff\u0370-\u0377\u037a-\u037f\u0384-\u038a\u038c\u038e-\u03a1\u03a3-\u0482\u2010-\u2027\u2030-\u205e\u2500-\u25fc\ufffd]*"
)


def is_narrow(text: str) -> bool:
    """Tell whether each character takes exactly one cell."""
    return "\t" not in text if text.isascii() else NARROW.fullmatch(text) is not None


def cells_of(char: str) -> int:
    """Return the number of cells that a character takes."""
    if char.isascii():
        return 1
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1
