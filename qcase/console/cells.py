"""The cells of the row on which a terminal's cursor stands: what is written into them, and reports of earlier states."""

from __future__ import annotations

from itertools import accumulate
from typing import Final

from qcase.console.row import BLANK, Modes, Row, Rows, cells_of, is_narrow

MOVE_MAX: Final = 1024  # maximum cells by which one control moves the cursor
_STATE_MAX: Final = 4096  # characters reported of a row's earlier state
_STATE_SHARE: Final = 64  # maximum ratio of characters reported in earlier states to characters written
_ROW_MAX: Final = 1 << 17  # maximum cells of a row; of a longer row the last half of that is kept
_MARKS_MAX: Final = 64  # maximum characters in one cell: the first one and its combining marks
_GRAPHICS: Final = "\ufffd"  # stands for a letter that the terminal draws as a line or a box


class Cells:
    """Writes into the current row of `open`, the unfinished rows."""

    def __init__(self, rows: Rows) -> None:
        self._to = rows
        self.open = [Row(0)]
        self._row = 0
        self._column = 0
        self.modes = Modes()
        self._gone_back = False  # the cursor went back since the last reported state
        self._last = ""
        self._written = 0
        self._told = 0

    @property
    def current(self) -> Row:
        return self.open[self._row]

    @property
    def column(self) -> int:
        return self._column

    def _settle(self) -> None:
        """Go to the position at which the next character is written."""
        raise NotImplementedError

    # --- text -----------------------------------------------------------------------------------------------------------

    def write(self, text: str, at: int) -> None:
        """Write printable text and tabs. `at`: position of its start in the written text."""
        self._settle()
        row = self.current
        self._pad(row)
        self._written += len(text)
        if not self.modes.special and is_narrow(text) and not row.uneven:
            self._write_narrow(row, text, at)
        else:
            row.uneven = True
            self._tell_before(row, text)
            for char in text:
                self._put(row, char, at)
                at += 0 if at == BLANK else len(char.encode(errors="replace"))
        row.dirty = True
        self._last = text[-1:]
        self._bound(row)

    def _bound(self, row: Row) -> None:
        """Drop the beginning of a row that grows without end. The row is no evidence any more; its states are still reported."""
        drop = len(row.chars) - _ROW_MAX // 2
        if drop <= _ROW_MAX // 2:
            return
        self._tell(row)
        row.chars[:drop], row.at[:drop] = ["\ufffd"], [BLANK]
        row.dirty = row.uncertain = row.moved = True
        self._column = max(0, self._column - drop + 1)

    def _write_narrow(self, row: Row, text: str, at: int) -> None:
        """Write text of one-cell characters onto one-cell characters."""
        end = self._column + len(text)
        if self._column < len(row.chars):
            self._tell_before(row, text)
            row.moved = True
            old = row.chars[self._column : end]
            row.rewritten = row.rewritten or old != list(text[: len(old)])
        row.chars[self._column : end] = text
        if at == BLANK:
            row.at[self._column : end] = [BLANK] * len(text)
        elif text.isascii():
            row.at[self._column : end] = range(at, at + len(text))
        else:
            row.at[self._column : end] = accumulate([len(char.encode()) for char in text[:-1]], initial=at)
        self._column = end

    def _put(self, row: Row, char: str, at: int) -> None:
        if char == "\t":
            width = 8 - self._column % 8
            if self._column >= len(row.chars):  # a tab over text only moves the cursor
                row.chars += ["\t", *[""] * (width - 1)]
                row.at += [at, *[BLANK] * (width - 1)]
            self._column += width
            self._pad(row)
            return
        width = cells_of(char)
        if width == 0:
            if self._column and self._column <= len(row.chars) and len(row.chars[self._column - 1]) < _MARKS_MAX:
                row.chars[self._column - 1] += char
            return
        if self.modes.concealed:
            row.moved = True
            shown, at = " ", BLANK
        elif (self.modes.graphics or self.modes.shifted) and "_" <= char <= "~":
            shown = _GRAPHICS
        else:
            shown = char
        cells, places = [shown, *[""] * (width - 1)], [at, *[BLANK] * (width - 1)]
        self._pad(row)
        if self.modes.insert:
            row.moved = row.rewritten = True
            row.chars[self._column : self._column] = cells
            row.at[self._column : self._column] = places
        else:
            self._break_up(row, self._column, self._column + width)
            row.moved = row.moved or self._column < len(row.chars)
            if self._column < len(row.chars) and row.chars[self._column : self._column + width] != cells:
                row.rewritten = True
            row.chars[self._column : self._column + width] = cells
            row.at[self._column : self._column + width] = places
        self._column += width

    def _pad(self, row: Row) -> None:
        if (missing := self._column - len(row.chars)) > 0:
            row.moved = True
            row.chars += " " * missing
            row.at += [BLANK] * missing

    def _break_up(self, row: Row, low: int, high: int) -> None:
        """Replace a partly overwritten tab or wide character with blanks."""
        for edge in (low, high):
            if not 0 < edge < len(row.chars) or row.chars[edge]:
                continue
            begin = edge
            while begin > 0 and not row.chars[begin]:
                begin -= 1
            end = edge
            while end < len(row.chars) and not row.chars[end]:
                end += 1
            if begin > 0 or row.chars[begin] != "":
                row.chars[begin:end] = " " * (end - begin)
                row.at[begin:end] = [BLANK] * (end - begin)

    # --- states ---------------------------------------------------------------------------------------------------------

    def _tell_before(self, row: Row, text: str) -> None:
        """Report a row's state before the cursor, which has gone back, changes something on the row.

        Reports once each time that the cursor goes back: states between two characters depend on how the bytes are split.
        """
        if not self._gone_back:
            return
        there = row.chars[self._column : self._column + len(text)]
        if self.modes.insert or there != list(text[: len(there)]):
            self._gone_back = False
            self._tell(row)

    def _tell(self, row: Row) -> None:
        """Report the text of a row, if it is new. Of a long row only the part around the cursor is reported."""
        if not row.dirty:
            return
        row.dirty = False
        most = _STATE_MAX if self._told < _STATE_SHARE * (self._written + _STATE_MAX) else _STATE_SHARE
        low, high = 0, len(row.chars)
        if high > most:
            low = max(0, min(self._column - most // 2, high - most))
            high = low + most
        self._told += high - low
        self._to.state(row, low, high)

    def _changed(self, row: Row) -> None:
        """Report a row's state before a part of it is erased."""
        self._tell(row)
        row.rewritten = row.moved = True
