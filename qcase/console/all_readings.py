"""Search of a case's patterns in all readings of one guest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from qcase.console.search import Gate, Lines, TornLines, find_unfinished, is_beside_echo, unfinished_start
from qcase.console.text import WINDOW, Pattern, Text
from qcase.console.transcript import Transcript

EXCERPT: Final = 240  # characters of an excerpt (axbuild)
# End of a row that waits for input, and the text allowed between a match and that end: a folder, for instance.
PROMPT_LIKE: Final = re.compile(rb"[:#$>][ \t]*\Z")
_PROMPT_TAIL: Final = re.compile(rb"(?:(?<=[:@~/])[^\s\0]*[#$>])?\s*\Z")


class AllReadings:
    """The readings of one transcript, each with what was searched of it."""

    def __init__(self, transcript: Transcript) -> None:
        self._transcript = transcript
        self._text = transcript.written
        readings = transcript.readings
        self.written = Lines(transcript.written)
        self.shown = Lines(readings.shown, readings.source_of_shown)
        self.states = Lines(readings.states, readings.source_of_state)
        self.joined = TornLines(readings.joined)
        self.shown_joined = TornLines(readings.shown_joined, readings.source_of_shown)
        self.bared = TornLines(readings.bared, readings.source_of_shown)
        self._all: tuple[Lines | TornLines, ...] = (
            self.written,
            self.shown,
            self.states,
            self.joined,
            self.shown_joined,
            self.bared,
        )
        self._torn = readings.joined
        self._line_gate = Gate()

    def begin(self, now: float, *, every: bool) -> bool:
        """Prepare a search of the new text. Return whether to search the unfinished line, too. See `Lines.begin`."""
        for lines in self._all:
            lines.begin(now, every=every)
        text = self._text
        return text.end > text.line_start and (self._line_gate.opens(now, text.end - text.line_start, text.end) or every)

    def end(self) -> None:
        """Record that all patterns have searched, and drop text that no pattern needs any more."""
        whole = self.written.open
        for lines in self._all:
            lines.end()
        if whole:
            self._transcript.readings.trim()

    def again(self) -> None:
        """Search all text that is kept once more."""
        for lines in self._all:
            lines.again(lines.text.base)

    @contextmanager
    def showing(self, stretches: list[tuple[int, int]], now: float) -> Iterator[None]:
        """Search for a while with these hidden stretches shown, and with all possible echo as output."""
        text = self._text
        soft, text.soft = text.soft, {}
        for stretch in stretches:
            text.restore(*stretch)
        self._derive_again(soft)
        self.begin(now, every=True)
        yield
        text.soft = soft
        for stretch in stretches:
            text.blank(*stretch)
        self._derive_again(soft)

    def _derive_again(self, soft: dict[int, int]) -> None:
        self._text.changed = min([self._text.changed, *soft])
        self._transcript.readings.update()
        self.again()

    def arm(self, position: int, *, opens: bool = False) -> None:
        """Let the case's patterns search from a position in the written text on. `opens`: also those that hold in all steps."""
        self._transcript.readings.arm(position)
        self.written.arm(position)
        for lines in self._all[1:]:
            lines.arm(lines.text.end)
        for lines in self._all if opens else ():
            lines.opened = lines.armed

    def end_of(self, lines: Lines | TornLines, found: tuple[int, int]) -> int:
        """Return the position in the written text behind a match; the end of its row where it is not known better."""
        if lines is not self.shown:
            ended = self._text.find(b"\n", lines.source(max(found[1] - 1, found[0])))
            return self._text.end if ended < 0 else ended + 1
        if found[1] > lines.text.end:
            return self._transcript.place_on_open_row(found[1] - lines.text.end)
        return self._transcript.readings.end_of_shown(found[1])

    def find_panic(self, pattern: Pattern, sure_to: int) -> tuple[int, int] | None:
        """Return the first match as a range of the written text."""
        for lines in (self.written, self.joined, self.states):  # an unfinished escape swallows a line
            if found := lines.find(pattern, boot=True):
                start, end = lines.source(found[0]), lines.source(found[1])
                return (start, end) if lines is self.written else self._words_of(pattern, start, end)
        return self.find_unfinished(pattern, 0, sure_to, whole=False)

    def _words_of(self, pattern: Pattern, start: int, end: int) -> tuple[int, int]:
        """Return the range of a match in the written text, of which another reading gives only the rows."""
        over = self._text.find(b"\n", max(end - 1, start))
        over = self._text.end if over < 0 else over
        words = pattern.search(self._text.slice(start, over))
        return (start, max(end, over)) if words is None else (start + words[0], start + words[1])

    def find_any_panic(self, patterns: Iterable[Pattern], sure_to: int) -> tuple[int, int] | None:
        """Return the first match of the first of some patterns; see `find_panic`."""
        return next((found for pattern in patterns if (found := self.find_panic(pattern, sure_to))), None)

    def find_open_panic(self, patterns: Iterable[Pattern], sure_to: int) -> tuple[int, int] | None:
        """Return a panic on the written text's unfinished line: a kernel that panicked may not come to its end."""
        text = self._text
        start = max(text.line_start, text.end - EXCERPT * 16)
        line = text.view_slice(start, sure_to)
        found = next((found for pattern in patterns if (found := pattern.search(line))), None)
        return None if found is None else (start + found[0], start + found[1])

    def torn_line(self, sure_to: int) -> bytes:
        """Return the written text's unfinished line with the part before it that a kernel's line or echo tore off; else empty."""
        return self._torn.open_line(self._text.view_slice(self._text.line_start, sure_to)) if sure_to else b""

    def find_fails(self, pattern: Pattern, sure_to: int, *, quiet: bool) -> list[tuple[Lines | TornLines, tuple[int, int]]]:
        """Return the first match in each reading of everything ever written, and one on the unfinished line that stands."""
        readings: list[Lines | TornLines] = [self.written, self.joined, self.shown_joined, self.states, self.bared]
        # Without states the shown text equals the written text, but for lines that became neighbours.
        if self.states.text.end or (pattern.spans_lines and self._transcript.returned):
            readings.append(self.shown)
        found = [(lines, match) for lines in readings if (match := lines.find(pattern))]
        if unfinished := self.find_unfinished(pattern, self.written.since(pattern), sure_to, whole=quiet):
            found.append((self.written, unfinished))
        return found

    def find_open_fail(self, pattern: Pattern, torn: bytes, sure_to: int, *, quiet: bool) -> bytes:
        """Return the text that holds a match on the unfinished line or row as it is shown, or joined with what was torn off it.

        Nothing if there is no match.
        """
        if torn and pattern.search_unfinished(torn, 0):
            return torn
        if quiet and (across := self._find_across_kernel_lines(pattern, sure_to)):
            return across
        return self._find_on_open_row(pattern) if sure_to == self._text.end else b""

    def find_success(self, pattern: Pattern, *, quiet: bool) -> tuple[Lines | TornLines, tuple[int, int]] | None:
        """Return a match in rows that have ended, or on the unfinished row if it is a prompt that waits for input."""
        for lines in (self.shown, self.shown_joined):
            found = lines.find(pattern)
            while found and is_beside_echo(lines.text, pattern, found):
                found = lines.find(pattern, found[0] + 1)
            if found:
                return lines, found
        found = self.find_waiting(pattern) if quiet else None
        return None if found is None else (self.shown, found)

    def find_unfinished(self, pattern: Pattern, armed: int, sure_to: int, *, whole: bool) -> tuple[int, int] | None:
        """Return a match on the written text's unfinished line that no continuation could undo, before any possible echo."""
        start = unfinished_start(self._text, armed, whole=whole and pattern.spans_lines)
        return find_unfinished(self._text, pattern, start, sure_to) if start < sure_to else None

    def _find_across_kernel_lines(self, pattern: Pattern, sure_to: int) -> bytes:
        """Return the text without the kernel's lines, up to the unfinished line, if a pattern of several lines matches there."""
        lines = self.joined
        if not pattern.spans_lines or not sure_to or not lines.open:
            return b""
        line = self._text.view_slice(self._text.line_start, sure_to)
        text = lines.text
        start = max(lines.since(pattern), text.base + 1 if text.base else 0, text.end - WINDOW // 4)
        found = text.view_slice(start, text.end) + (self._torn.open_line(line) or line)
        return found if pattern.search_unfinished(found, 0) else b""

    def _find_on_open_row(self, pattern: Pattern) -> bytes:
        """Return the rows that end with an unfinished one that was not written from left to right, if a pattern matches there."""
        view = self._transcript.open_moved_row()
        if not view:
            return b""
        text = self.shown.text
        start = min(max(self.shown.since(pattern), text.end - (WINDOW // 4 if pattern.spans_lines else 0), text.base), text.end)
        found = text.view_slice(start, text.end) + view
        return found if pattern.search_unfinished(found, 0) else b""

    def find_waiting(self, pattern: Pattern) -> tuple[int, int] | None:
        """Return a match at the end of a row that looks like a prompt, has nothing overwritten, and that no text could undo."""
        _, view, rewritten = self._transcript.open_row()
        looks = PROMPT_LIKE.search(view)
        if rewritten or looks is None or 0 in view:
            return None
        text = self.shown.text
        start = max(self.shown.armed, text.base + 1 if text.base else 0, text.end - (WINDOW if pattern.spans_lines else 0))
        before = text.view_slice(min(start, text.end), text.end)
        skip = max(start - text.end, 0)
        # A shell's prompt is complete; behind a colon a value may come.
        search = pattern.search_unfinished if looks[0][:1] == b":" else pattern.search
        found = search(before + view, skip)
        if found is None or found[1] <= len(before) or not _PROMPT_TAIL.match(before + view, found[1]):
            return None
        return min(start, text.end) + found[0], min(start, text.end) + found[1]


def excerpt_of(text: Text, start: int, end: int) -> str:
    """Return the line or lines of a match, at most `EXCERPT` characters, with the match inside."""
    low = text.raw.rfind(b"\n", 0, max(start - text.base, 0)) + 1
    high = text.raw.find(b"\n", max(end - text.base, 0))
    high = len(text.raw) if high < 0 else high
    low = max(low, start - text.base - EXCERPT)
    high = min(high, end - text.base + EXCERPT)
    whole = bytes(text.raw[low:high]).decode(errors="replace").strip("\n")
    if len(whole) <= EXCERPT:
        return whole
    at = len(bytes(text.raw[low : start - text.base]).decode(errors="replace"))
    begin = max(0, min(at - EXCERPT // 4, len(whole) - EXCERPT + 1))
    front = "…" if begin else ""
    back = "…" if begin + EXCERPT < len(whole) else ""
    return front + whole[begin : begin + EXCERPT - len(front) - len(back)] + back
