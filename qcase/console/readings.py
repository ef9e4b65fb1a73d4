"""Readings derived from the written text, row by row, and derived again from the first change when echo is found late."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import replace
from typing import Final

from qcase.console.joined import UNARMED, Bared, Joined, KernelRuns
from qcase.console.records import Record, Records, overlay
from qcase.console.row import Row
from qcase.console.screen import Screen
from qcase.console.text import NOWHERE, Text

_UNARMED_TEXT: Final = re.compile(rb"[^\n]")


class Readings:
    """All readings of a guest's output but the written text, from which they are derived. Receives the rows of a screen."""

    def __init__(self, written: Text, prompt: bytes, *, resets: bool) -> None:
        self.written = written
        self.shown = Text()
        self.states = Text()
        runs = KernelRuns()
        self.joined = Joined(prompt, runs, inside=True)
        self.shown_joined = Joined(prompt, runs, inside=False)
        self.bared = Bared()
        self.sent_back: deque[int] = deque(maxlen=64)  # starts of rows at which the cursor was sent back before any text came
        self._prompt = prompt
        self._resets = resets
        self._gone = 0  # rows that ended before this position cannot change any more
        self._rows = Records()
        self._told = Records()  # records of states
        self._joined_to = 0
        self._typed: tuple[bytes, ...] = ()  # lines that were typed
        self._typed_again: re.Pattern[bytes] | None = None
        self._typed_low: tuple[bytes, ...] = ()  # the first one, and those of other steps, in lower case
        self._flushed_at = -1  # end of the written text when torn lines were ended
        self._armed = 0  # text written before this position does not count, wherever it is shown later

    # --- rows -----------------------------------------------------------------------------------------------------------

    def row_ended(self, row: Row) -> None:
        """See `row.Rows`."""
        if row.uncertain:
            self.state(row, 0, len(row.chars))
            return
        self.note(Record(row.start, self.written.end, row, shows=True))

    def state(self, row: Row, low: int, high: int) -> None:
        """See `row.Rows`."""
        self.note(Record(row.start, self.written.end, Row(row.start, row.chars[low:high], row.at[low:high]), shows=False))

    def reopen(self, count: int) -> list[Row]:
        """Return the last rows that ended, as far as they are still known, and remove them; see `row.Rows`."""
        rows: list[Row] = []
        records = self._rows.all
        while len(rows) < count and records and records[-1].end > self._gone:
            self._rewind_to(len(records) - 1)
            record = records.pop()
            if record.row is not None:
                self._rows.cells -= len(record.row.chars)
                rows.append(record.row)
            elif record.returned:
                before = record.returned[:-1]
                start = before[-1][1] if before else record.start
                if before:
                    records.append(replace(record, end=start, returned=before))
                text = overlay(self.written.slice(start, record.end))[:-1].decode(errors="replace")
                place = start if record.end <= self._armed else -1
                rows.append(Row(start, list(text), [place] * len(text), moved=True))
            else:
                rows += self._reopen_plain(record, count - len(rows))
        return rows[::-1]

    def start_over(self) -> None:
        """Make the rows so far final: the terminal is reset, by firmware where the machine may start again. See `row.Rows`."""
        if self._resets:
            self._gone = self.written.end

    def _reopen_plain(self, record: Record, count: int) -> list[Row]:
        """Return the last of several plain rows, from below; the rows above stay."""
        rows: list[Row] = []
        end = record.end - 1  # behind the text of the row
        while len(rows) < count and end >= record.start >= self.written.base:
            start = max(record.start, self.written.start_of_line(end))
            rows.append(Screen.row_of(self.written.slice(start, end).decode(errors="replace"), start))
            end = start - 1
        if end >= record.start:
            self._rows.all.append(Record(record.start, end + 1, None, shows=True))
        return rows

    def lose(self, count: int) -> int:
        """Drop the last rows, which may be gone from the screen. Return their number. See `row.Rows`."""
        lost = len(self.reopen(count))
        self._gone = self.written.line_start  # rows further up are out of reach
        return lost

    def note(self, record: Record) -> None:
        (self._rows if record.shows else self._told).note(record)

    # --- readings -------------------------------------------------------------------------------------------------------

    def end_torn_at_prompt(self) -> None:
        """See `Joined.end_at_prompt`."""
        self.joined.end_at_prompt()
        self.shown_joined.end_at_prompt()

    def flush_torn(self) -> None:
        """End a torn line where it was torn: no more text comes."""
        self._flushed_at = self.written.end
        self.update()

    def use_prompt(self, prompt: bytes) -> None:
        """Take another text for the guest's prompt from here on."""
        self._prompt = prompt
        self.joined.use_prompt(prompt)
        self.shown_joined.use_prompt(prompt)

    def arm(self, position: int) -> None:
        """Let only text count that was written behind a position. Before that, bring the readings up to the row before it."""
        start = self.written.start_of_line(position)
        self._rewind_behind(start)
        for number, record in enumerate(self._rows.all):
            if record.row is None and record.start < start < record.end:
                split = start
                if record.returned:  # its row may have begun earlier
                    split = max((end for _, end in record.returned if end <= start), default=record.start)
                if split > record.start:
                    before = replace(record, end=split, returned=tuple(row for row in record.returned if row[1] <= split))
                    after = replace(record, start=split, returned=record.returned[len(before.returned) :])
                    self._rows.all[number : number + 1] = [before, after]
        rows, states = self._rows.take_later(start), self._told.take_later(start)
        self._update(start)
        self._rows.all += rows
        self._told.all += states
        self._armed = position
        self.joined.arm()
        self.shown_joined.arm()

    def _rewind_behind(self, position: int) -> None:
        """Remove what was derived from text behind a position, so that it is derived again."""
        if position < self._joined_to and (again := self.joined.rewind(position)) is not None:
            self._joined_to = max(again, self.written.base)
        self._rewind_to(self._rows.stale(position))
        if (at := self._told.stale(position)) < self._told.next:
            self.states.truncate(self._told.all[at].at)
            self._told.next = at

    def update(self) -> None:
        """Bring all readings up to the current written text and its hidden parts."""
        self._update(self.written.line_start)
        if self._flushed_at == self.written.end:
            self.joined.flush()
            self.shown_joined.flush()

    def _update(self, end: int) -> None:
        written = self.written
        changed, written.changed = written.changed, NOWHERE
        self._rewind_behind(changed)
        for record in self._rows.all[self._rows.next :]:
            self._derive_row(record)
        self._rows.next = len(self._rows.all)
        for number in range(self._told.next, len(self._told.all)):
            record, before = self._told.all[number], self._told.all[number - 1] if number else None
            self._derive_state(record, apart=before is not None and before.end < record.start)
        self._told.next = len(self._told.all)
        if self._joined_to < end:
            start = max(self._joined_to, written.base)
            self.joined.take(self.disarm(written.view_slice(start, end), start), start)
            self._joined_to = end

    def source_of_shown(self, position: int) -> int:
        """Return the position in the written text at which a row of the shown text began."""
        after = self.shown.end
        for record in reversed(self._rows.all[: self._rows.next]):
            if record.at <= position and record.returned:
                number = len(record.returned) - self.shown.slice(position, after).count(b"\n")
                return record.returned[number - 1][1] if number > 0 else record.start
            if record.at <= position:
                return record.start + (position - record.at if record.row is None else 0)
            after = record.at
        return 0

    def end_of_shown(self, position: int) -> int:
        """Return the position in the written text behind a match that ends at a position of the shown text."""
        for record in reversed(self._rows.all[: self._rows.next]):
            if record.at >= position:
                continue
            if record.row is not None:
                return self.place_on(record.row, position - record.at, record.end)
            if record.returned:
                return self._place_on_returned(record, self.shown.slice(record.at, position))
            return record.start + position - record.at
        return self.written.end

    def _place_on_returned(self, record: Record, before: bytes) -> int:
        """Return the position in the written text behind all that shows as the first rows and bytes of a record."""
        number = before.count(b"\n") - before.endswith(b"\n")
        start, end = record.start if number == 0 else record.returned[number - 1][1], record.returned[number][1]
        if before.endswith(b"\n"):
            return end
        offset, found = len(before) - before.rfind(b"\n") - 1, start
        for part in self.written.slice(start, end - 1).split(b"\n"):  # a later part stands over those before it
            if part and offset:
                found = start + min(len(part), offset)
            start += len(part) + 1
        return found

    def place_on(self, row: Row, offset: int, end: int) -> int:
        """Return the position in the written text behind all that shows as the first bytes of a row. `end`: that of the row."""
        found, size = row.start, 0
        for char, at in zip(row.chars, row.at, strict=True):
            if size >= offset:
                return found
            width = len(char.encode(errors="replace"))
            size += width
            found = max(found, at + width)
        return end if size < offset else found

    def source_of_state(self, position: int) -> int:
        """Return the position in the written text at which the row of a state began."""
        states = reversed(self._told.all[: self._told.next])
        return next((record.start for record in states if record.at <= position), 0)

    def note_typed(self, lines: tuple[bytes, ...], *, new: int) -> None:
        """Record the typed lines, the last `new` of them of this command: rows with the whole first line are no evidence.

        Nor are rows with the whole of a line that was typed for another step before.
        """
        self._typed = lines
        firsts = lines[: len(lines) - new + 1]
        self._typed_low = tuple(line.lower() for line in firsts)
        several = b"|".join(re.escape(line) for line in firsts if b" " in line)
        if several:
            prompt = rb"(?:[^\n]*" + re.escape(self._prompt) + rb"[^\s]*)?[ >]*" if self._prompt else rb"[ >]*"
            self._typed_again = re.compile(rb"(?mi)^" + prompt + rb"(?:" + several + rb")[ \r]*$")

    def trim(self) -> None:
        """Drop the text that is older than the window of patterns."""
        for text in (self.written, self.shown, self.states, self.joined.text, self.shown_joined.text, self.bared.text):
            text.trim()

    def _rewind_to(self, at: int) -> None:
        """Remove the rows from index `at` on from the readings."""
        if at >= self._rows.next:
            return
        record = self._rows.all[at]
        self.shown.truncate(record.at)
        self.shown_joined.rewind(record.at)
        self.bared.rewind(record.at)
        self._rows.next = at

    def _derive_row(self, record: Record) -> None:
        record.at = self.shown.end
        if record.row is None:
            raw = self.written.slice(record.start, record.end)
            view = self.disarm(self.hide_soft(self.written.view_slice(record.start, record.end), record.start), record.start)
            if record.returned:
                hidden = view != raw
                raw, view = self._overlaid(record, raw), self._overlaid(record, view) if hidden else b""
                view = view if hidden else raw
        else:
            raw, view = self.render(record.row, soft=True)
            raw, view = raw + b"\n", view + b"\n"
        if 0 in view or (self._typed and self._prompt and self._prompt in raw):
            view = self._hide_again(raw, view)
        if self._typed and self._repeats(raw):
            lines = zip(raw[:-1].split(b"\n"), view[:-1].split(b"\n"), strict=True)
            view = b"".join((bytes(len(two)) if self._repeats(one) else two) + b"\n" for one, two in lines)
        if raw:
            self.shown.extend_lines(raw, view)
            moved = bool(record.returned) or (record.row is not None and record.row.moved) or record.start in self.sent_back
            if moved:
                self.shown_joined.carry = b""  # a row that the cursor went back on does not go on where it was torn
            if not moved or 0 not in view:  # else echo may stand on text that it hides
                self.shown_joined.take(view, record.at)
            if 0 in view:
                self.bared.take(view, record.at)
            for low, high in self.shown_joined.continued:
                self.shown.blank(low, high)
            self.shown_joined.continued.clear()

    def _overlaid(self, record: Record, lines: bytes) -> bytes:
        """Return each row of a record as it stands at its end."""
        start = low = record.start
        rows = []
        for last, end in record.returned:
            rows.append(lines[last - start : end - start] if last >= 0 else overlay(lines[low - start : end - start]))
            low = end
        return b"".join(rows)

    def _derive_state(self, record: Record, *, apart: bool) -> None:
        record.at = self.states.end
        if apart:  # rows stood in between: a text of several lines does not go on here
            self.states.extend_lines(UNARMED + b"\n")
        if record.row is None:
            self._derive_states(self.written.slice(record.start, record.end))
            return
        raw, view = self.render(record.row, soft=False)
        self.states.extend_lines(raw + b"\n", view + b"\n")

    def _derive_states(self, lines: bytes) -> None:
        """Add the states of rows that were written several times, except those that are lines of the written text anyway."""
        out = bytearray()
        for line in lines[:-1].split(b"\n"):
            if len(line) < len(out):
                out[: len(line)] = line
                self.states.extend_lines(bytes(out) + b"\n")
            else:
                out[:] = line

    def _hide_again(self, raw: bytes, view: bytes) -> bytes:
        """Blank out each typed line in rows that have echo, or that end with it behind the prompt: a guest may echo it twice."""
        if raw.count(b"\n") > 1:
            lines = zip(raw[:-1].split(b"\n"), view[:-1].split(b"\n"), strict=True)
            return b"".join(self._hide_again(one + b"\n", two + b"\n") for one, two in lines)
        row, behind = raw.rstrip(), raw.find(self._prompt) + len(self._prompt) if self._prompt in raw else len(raw)
        for line in self._typed:
            at = raw.find(line) if 0 in view else raw.find(line, max(behind, len(row) - len(line)))
            while at >= 0:
                view = view[:at] + bytes(len(line)) + view[at + len(line) :]
                at = raw.find(line, at + 1)
        return view

    def disarm(self, view: bytes, start: int) -> bytes:
        """Replace the part of a stretch that was written before patterns began to search."""
        count = min(self._armed - start, len(view))
        return view if count <= 0 else _UNARMED_TEXT.sub(UNARMED, view[:count]) + view[count:]

    def _repeats(self, raw: bytes) -> bool:
        """Tell whether rows contain the whole typed line of several words, in any case of letters: a repeated echo."""
        if self._typed_again is None:
            return False
        low = raw.lower()
        return any(line in low for line in self._typed_low) and self._typed_again.search(raw) is not None

    def hide_soft(self, view: bytes, start: int) -> bytes:
        """Blank out possible echo: it is no evidence of success."""
        for low, high in (*self.written.soft.items(), *self.written.gone.items()):
            low, high = max(low - start, 0), min(high - start, len(view))
            if low < high:
                view = view[:low] + b"\n".join(bytes(len(part)) for part in view[low:high].split(b"\n")) + view[high:]
        return view

    def render(self, row: Row, *, soft: bool) -> tuple[bytes, bytes]:
        """Return a row as it came, and with echo blanked out."""
        raw = row.text.encode(errors="replace")
        written = self.written
        low, high = min(row.at, default=-1), max(row.at, default=-1) + 4
        if low < written.base:
            low = min((at for at in row.at if at >= written.base), default=high)
        if low >= high:
            return raw, raw
        view = written.view_slice(low, high)
        if soft:
            view = self.hide_soft(view, low)
        if 0 not in view and low >= self._armed:
            return raw, raw
        out = bytearray()
        for char, at in zip(row.chars, row.at, strict=True):
            cell = char.encode(errors="replace")
            if low <= at < self._armed:
                cell = UNARMED * len(cell)
            out += bytes(len(cell)) if at >= low and view[at - low] == 0 else cell
        return raw, bytes(out)
