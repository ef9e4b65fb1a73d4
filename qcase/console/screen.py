"""Rows of a terminal: the final text of each row, and its earlier states.

A row is a list of cells. Each cell has the position in the written text from which its character came, so that echo found
later can be hidden here, too. The terminal is as wide as a row needs. Rows scroll off upwards. The number of rows of the real
terminal is unknown, so a guest that addresses the screen as a whole (`ESC[5;1H`, `ESC[2J`) invalidates the last rows: their
content is unknown from then on.

`Screen` handles only rows with controls. A row of plain text never comes in here. `controls` reads escape sequences and calls the
operations of a screen.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from qcase.console.cells import MOVE_MAX, Cells
from qcase.console.row import BLANK, NoRows, Row, Rows

LOST_ROWS: Final = 128  # last rows that a guest which addresses the whole screen may have overwritten


class _Main(NamedTuple):
    """The main screen while the alternate one is shown; see `Screen`."""

    open: list[Row]
    row: int
    column: int
    uncertain: int
    above: int


class Screen(Cells):
    """The unfinished rows, with the cursor on one of them."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        self._saved: tuple[int, int] | None = None  # number of the row since the start, column
        self._below: int | None = None  # rows from the saved one on, if the guest has addressed the screen since it saved it
        self._passed = 0  # ended rows since the start; plain rows count only while `counts`
        self._elsewhere: int | None = None  # column of an absolute position that the guest addressed and has not used yet
        self._named: int | None = None  # row of that position
        self._number: int | None = None  # screen row of the cursor, if the guest addressed it
        self._uncertain = 0  # number of rows, from the current one on, that may hold unknown text
        self._above = 0  # number of ended rows that were uncertain, since the guest last addressed the screen
        self._main: _Main | None = None  # the main screen, while the alternate one is shown

    @property
    def plain(self) -> bool:
        """Tell whether the cursor is at the start of an empty row with no special mode switched on."""
        row = self.open[0]
        only = len(self.open) == 1 and not row.chars and self._column == 0 and self._elsewhere is None
        return only and self._main is None and not self.modes.special and not self._uncertain

    @property
    def hidden(self) -> bool:
        """Tell whether text written now never shows on the main screen."""
        return self._main is not None

    @staticmethod
    def row_of(text: str, at: int) -> Row:
        """Return a row of plain text that begins at position `at` of the written text."""
        screen = Screen(NoRows())
        screen.begin(Row(at), text, at)
        return screen.current

    def begin(self, row: Row, text: str, at: int) -> None:
        """Continue a row that was plain so far, with the cursor behind its text. `at`: position of its first character."""
        self.open = [row]
        self._row = self._column = 0
        if text[:1] == "\ufffd":
            row.chars, row.at, self._column = ["\ufffd"], [BLANK], 1
            text = text[1:]
        if text:
            self.write(text, at)

    # --- controls -------------------------------------------------------------------------------------------------------

    def _mark_start(self) -> None:
        """Note that the cursor was sent back on an empty row: its text does not go on where a kernel's line tore another one."""
        row = self.current
        row.moved = row.moved or not (row.chars or row.rewritten)

    def carriage_return(self) -> None:
        self._gone_back = True
        self._mark_start()
        self._column = 0
        if self._elsewhere is not None:
            self._elsewhere = 0

    def backspace(self) -> None:
        self._gone_back = True
        self._mark_start()
        self._column = max(0, self._column - 1)

    def line_feed(self, at: int, *, column: int | None = 0) -> None:
        """End the row. `at`: position in the written text of the next row's start. `column`: None keeps the cursor's column."""
        self._settle()
        kept = min(self._column, MOVE_MAX) if column is None else column  # without the limit each row would be longer
        self._number = None
        ended, self.open = self.open[: self._row + 1], self.open[self._row + 1 :]
        self._passed += len(ended)
        for row in ended:
            if self._main is None:
                self._finish(row)
        self._row = 0
        self._column = kept
        if not self.open:
            if self._uncertain:
                self._uncertain -= 1
                self._above += 1
            self.open = [Row(at, uncertain=self._uncertain > 0)]

    def _finish(self, row: Row) -> None:
        if row.moved:
            row.dirty = True
            self._tell(row)
        self._to.row_ended(row)

    def finish(self, at: int) -> None:
        """End all rows as they stand: no more text comes."""
        if self._main is not None:
            self._to_main(self._main)
        for row in self.open:
            if row.chars or row is not self.open[-1]:
                self._finish(row)
        self.open = [Row(at)]
        self._row = self._column = 0
        self._elsewhere = None

    @property
    def at_row_end(self) -> bool:
        """Tell whether the cursor stands behind all text of its row."""
        return self._column >= len(self.current.chars)

    def split(self, column: int) -> tuple[Row, Row]:
        """End the current row before a column; the text from there on begins a new row. Return both."""
        row = self.current
        rest = Row(row.start, row.chars[column:], row.at[column:], row.dirty, uncertain=row.uncertain, uneven=row.uneven)
        del row.chars[column:], row.at[column:]
        row.dirty = True
        self._tell(row)
        self._to.row_ended(row)
        self.open[self._row] = rest
        self._column = max(0, self._column - column)
        return row, rest

    def shift(self, *, out: bool) -> None:
        self.modes.shifted = out and self.modes.g1_graphics

    def start_over(self) -> None:
        """Reset the terminal: no row on it is certain any more, and no mode is on."""
        self._to.start_over()
        self.lose_screen(0)
        self.modes.insert = self.modes.graphics = self.modes.shifted = self.modes.concealed = False
        self._main = None

    def address(self, row: int, column: int) -> bool:
        """Go to an absolute position. Return False if the cursor stays on its row."""
        if self._elsewhere is None and self._number == row:
            self._gone_back = True
            self._column = column
            return False
        self._named = row
        self._elsewhere = column
        return True

    def address_unknown_row(self, column: int) -> None:
        """Go to a column of a row that cannot be told."""
        self._named = None
        self._elsewhere = column

    def rows_up(self, count: int, *, to_start: bool) -> None:
        """Move the cursor up, to the start of its row if asked."""
        self._column = 0 if to_start else self._column
        self.up(count)

    def show_alternate(self, at: int) -> bool:
        """Switch to the alternate screen. Return False if it is shown already."""
        self._named = self._number = None
        if self._main is not None:
            return False
        self._settle()
        self._main = _Main(self.open, self._row, self._column, self._uncertain, self._above)
        self.open, self._row, self._column = [Row(at)], 0, min(self._column, MOVE_MAX)
        self._uncertain = self._above = 0
        return True

    def show_main(self, *, restores: bool) -> bool:
        """Switch back to the main screen, and the cursor to its place if `restores`. Return False if it is shown already."""
        self._named = self._number = None
        if self._main is None:
            return False
        alone = len(self.open) == 1 and not self.open[0].chars and self._elsewhere is None
        unmoved = alone and self._column == self._main.column
        self._to_main(self._main)
        self._elsewhere = None if unmoved or restores else 0
        return True

    def _to_main(self, main: _Main) -> None:
        self.open, self._row, self._column, self._uncertain, self._above = main
        self._main = None

    def repeat(self, count: int) -> None:
        if self._last:
            self.write(self._last * count, BLANK)
            self.current.moved = True

    def save(self) -> None:
        self._settle()
        self._saved = (self._passed + self._row, min(self._column, MOVE_MAX))
        self._below = None

    def restore(self) -> None:
        self._number = None
        self._gone_back = True
        self._elsewhere = None
        if self._saved is None:
            return
        if self._below is not None and self._main is None:
            below = self._below + self._above
            self.lose_screen(self._saved[1], cleared=False)
            self._above = max(self._uncertain - below, 0)
            self._uncertain -= self._above
            self._saved = (self._passed + self._row, self._saved[1])
            self._below = self._uncertain
            return
        self._mark_start()
        up = self._passed + self._row - self._saved[0]
        if up > 0:
            self.up(up)
        elif -up < len(self.open) - self._row:
            self._row -= up
        self._column = self._saved[1]

    @property
    def counts(self) -> bool:
        """Tell whether the number of ended rows matters."""
        return self._saved is not None

    def pass_rows(self, count: int) -> None:
        """Count rows of plain text that have ended."""
        self._passed += count

    def move(self, count: int) -> None:
        self._gone_back = self._gone_back or count < 0
        self._column = max(0, min(self._column + count, MOVE_MAX + len(self.current.chars)))
        self.current.moved = self.current.moved or count < 0 or self._column < len(self.current.chars)
        self._mark_start()
        if self._elsewhere is not None:
            self._elsewhere = max(0, min(self._elsewhere + count, MOVE_MAX))

    def up(self, count: int) -> None:
        if self._main is not None:
            self._changed(self.current)
            return
        self._settle()
        self._number = None
        self._gone_back = True
        if (missing := min(count, LOST_ROWS) - self._row) > 0:
            again = self._to.reopen(missing)
            self._passed -= len(again)
            unknown = min(missing - len(again), self._above)
            self._above -= unknown
            self.open[:0] = [*(Row(self.open[0].start, uncertain=True) for _ in range(unknown)), *again]
            self._row = 0
        else:
            self._row -= min(count, LOST_ROWS)
        for row in self.open:
            row.rewritten = row.moved = row.dirty = True

    def _settle(self) -> None:
        """Go to the absolute position: text on the screen may be overwritten from now on."""
        if self._elsewhere is not None:
            column, self._elsewhere = self._elsewhere, None
            if self._saved is not None and self._main is None:
                # Each place that is addressed may be one behind the saved one.
                since = self._passed + self._row - self._saved[0]
                rows = max(len(self.open) - self._row, self._uncertain) + max(since, 0)
                self._below = 1 + (rows if self._below is None else self._below + self._above)
            self.lose_screen(column, cleared=False)
            self._number = self._named

    def lose_screen(self, column: int, *, cleared: bool = True) -> None:
        """Handle a change of the whole screen: no row on it is certain any more.

        Unless the guest cleared the screen, the rows that follow overwrite others.
        """
        self._elsewhere = self._number = None
        for row in self.open:
            row.dirty = row.dirty or row.rewritten
            self._tell(row)
        there = sum(bool(row.chars) and not row.uncertain for row in self.open) + self._uncertain + self._above
        if self._main is None:
            there += self._to.lose(LOST_ROWS)
        self._uncertain, self._above = 0 if cleared else min(there, LOST_ROWS), 0
        self.open = [Row(self.open[-1].start, uncertain=self._uncertain > 0)]
        self._row = 0
        self._column = min(column, MOVE_MAX)  # without the limit each row would be longer than the last

    def erase_screen(self, which: int) -> None:
        if which == 0 and self._elsewhere is None:
            self.erase_line(0)
            for row in self.open[self._row + 1 :]:
                self._tell(row)
            del self.open[self._row + 1 :]
        else:
            self.lose_screen(self._column if self._elsewhere is None else self._elsewhere)

    def erase_line(self, which: int) -> None:
        self._settle()
        row = self.current
        if which:
            self._mark_start()
        if which == 0:
            if self._column < len(row.chars):
                self._changed(row)
                self._break_up(row, self._column, self._column)
                del row.chars[self._column :], row.at[self._column :]
        elif which == 1:
            self.blank(0, self._column + 1)
        elif row.chars:
            self._changed(row)
            row.chars.clear()
            row.at.clear()

    def blank(self, low: int, high: int) -> None:
        self._settle()
        row = self.current
        high = min(high, len(row.chars))
        if low >= high:
            return
        self._changed(row)
        self._break_up(row, low, high)
        row.chars[low:high] = " " * (high - low)
        row.at[low:high] = [BLANK] * (high - low)

    def delete(self, count: int) -> None:
        self._settle()
        row = self.current
        if self._column < len(row.chars):
            self._changed(row)
            self._break_up(row, self._column, min(self._column + count, len(row.chars)))
            del row.chars[self._column : self._column + count], row.at[self._column : self._column + count]

    def insert_blanks(self, count: int) -> None:
        self._settle()
        row = self.current
        if self._column < len(row.chars):
            self._changed(row)
            self._break_up(row, self._column, self._column)
            row.chars[self._column : self._column] = " " * count
            row.at[self._column : self._column] = [BLANK] * count
            self._bound(row)

    def delete_rows(self, count: int, at: int) -> None:
        self._settle()
        self._number = None
        for row in self.open[self._row : self._row + count]:
            row.dirty = row.dirty or row.rewritten
            self._tell(row)
        del self.open[self._row : self._row + count]
        if self._row >= len(self.open):
            self.open.append(Row(at))
        self._column = 0
