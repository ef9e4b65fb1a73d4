"""The text that patterns search, and patterns.

A `Text` is one reading of a guest's output, of which at least the last `WINDOW` bytes are kept. Its `raw` is the text as it came.
Its `view` has the same length, with echo blanked out: patterns search the view.
"""

from __future__ import annotations

import re
from typing import Final

from qcase.config.patterns import compile_pattern

WINDOW: Final = 1 << 20  # minimum bytes of text that a pattern sees
NOWHERE: Final = 1 << 62

# Parts of a pattern through which it can match a line end. Too broad on purpose: a false hit costs time, a missed line end costs
# a verdict. Literal, by escape (octal too), by a class that may hold it (`\p{Cc}` does), by `(?s)`; and the text's own ends.
_LINE_END = re.compile(r"\n|\\[nsDWPpxCzAQ0-7]|\[|\(\?[a-zA-Z-]*s")
# Possible next output of a guest. A match that stays the same with each of them does not depend on the next output.
_CONTINUATIONS: Final = (b"a", b" ", "\ufffd".encode(), b"\n")
_NOTHING: Final = re.compile(rb"[\0\1\s]*")  # hidden text, and text that does not count


class Pattern:
    """One RE2 pattern over bytes of UTF-8. `^` and `$` match at line ends, as if the pattern began with `(?m)`.

    `always`: it is one of the whole case and searches through all of its steps.
    """

    def __init__(self, source: str, *, always: bool = False) -> None:
        self._compiled = compile_pattern(source)
        self.always = always
        self.source = source
        self.spans_lines = bool(_LINE_END.search(source))  # only such a pattern is tried again on lines that were searched before

    def search(self, text: bytes | bytearray, start: int = 0, end: int | None = None) -> tuple[int, int] | None:
        """Return the first match at or behind `start`, as byte offsets. `^` and `\\b` see the text before `start`.

        Matches of only blanks and blanked out text, or text that does not count, are skipped.
        """
        while match := self._compiled.search(text, start, len(text) if end is None else end):
            low, high = match.span()
            if not (blank := _NOTHING.match(text, low, high)) or blank.end() < high or not {0, 1} & {*text[low:high]}:
                return low, high
            start = high
        return None

    def search_unfinished(self, text: bytes, start: int) -> tuple[int, int] | None:
        """Return the first match that no continuation of `text` could undo."""
        found = None
        for continuation in _CONTINUATIONS:
            span = self.search(text + continuation, start)
            if span is None or span[1] > len(text):
                return None
            found = found or span
        return found


class Text:
    """The last part of a reading: at least `WINDOW` bytes, at most about twice as many."""

    def __init__(self) -> None:
        self.base = 0  # position of the first byte kept
        self.raw = bytearray()
        self.view = bytearray()
        self.line_start = 0  # start of the unfinished line
        self.rewound = NOWHERE  # lowest position of a truncation since the owner reset this
        self.undone = NOWHERE  # the same for the reader of inner tests
        self.soft: dict[int, int] = {}  # start to end of stretches that may be echo: a success there is no evidence
        self.gone: dict[int, int] = {}  # the same of stretches that were returned over: a success there is no evidence
        self.changed = NOWHERE  # lowest position of a change of the view since the owner reset this

    @property
    def end(self) -> int:
        return self.base + len(self.raw)

    def append(self, data: bytes, view: bytes | None = None) -> list[bytes]:
        """Add text. Return the lines that it completes."""
        before = self.line_start - self.base
        self.extend(data, view)
        last = self.raw.rfind(b"\n", len(self.raw) - len(data))
        if last < 0:
            return []
        self.line_start = self.base + last + 1
        return bytes(self.raw[max(before, 0) : last]).split(b"\n")

    def extend(self, data: bytes, view: bytes | None = None) -> None:
        """Add text without searching it for lines."""
        self.raw += data
        if self.view is not self.raw:
            self.view += data if view is None else view

    def extend_lines(self, lines: bytes, view: bytes | None = None) -> None:
        """Add whole lines."""
        self.extend(lines, view)
        self.line_start = self.end

    def truncate(self, end: int) -> None:
        """Remove the text behind a position, which is the start of a line."""
        self.rewound = min(self.rewound, end)
        self.undone = min(self.undone, end)
        del self.raw[max(end - self.base, 0) :]
        if self.view is not self.raw:
            del self.view[max(end - self.base, 0) :]
        self.base = min(self.base, end)
        self.line_start = end

    def trim(self) -> None:
        if len(self.raw) > 2 * WINDOW:
            cut = len(self.raw) - WINDOW
            del self.raw[:cut]
            if self.view is not self.raw:
                del self.view[:cut]
            self.base += cut

    def blank(self, start: int, end: int) -> None:
        """Hide a stretch from patterns. A line end is kept: blanking must not join two lines."""
        a, b = max(start - self.base, 0), max(end - self.base, 0)
        self.changed = min(self.changed, start)
        self.view[a:b] = b"\n".join(bytes(len(part)) for part in self.raw[a:b].split(b"\n"))

    def restore(self, start: int, end: int) -> None:
        a, b = max(start - self.base, 0), max(end - self.base, 0)
        self.changed = min(self.changed, start)
        self.view[a:b] = self.raw[a:b]

    def soften(self, start: int, end: int) -> None:
        """Mark a stretch as possible echo."""
        self.soft[start] = end
        self.changed = min(self.changed, start)

    def harden(self, start: int | None = None) -> None:
        """Clear the mark of possible echo, from all stretches or from the one that begins at a position."""
        if start is None:
            self.changed = min([self.changed, *self.soft])
            self.soft.clear()
        elif self.soft.pop(start, None) is not None:
            self.changed = min(self.changed, start)

    def view_slice(self, start: int, end: int) -> bytes:
        return bytes(self.view[max(start - self.base, 0) : max(end - self.base, 0)])

    def find(self, wanted: bytes, start: int) -> int:
        at = self.raw.find(wanted, max(start - self.base, 0))
        return -1 if at < 0 else self.base + at

    def rfind(self, wanted: bytes) -> int:
        at = self.raw.rfind(wanted)
        return -1 if at < 0 else self.base + at

    def search(self, pattern: re.Pattern[bytes], start: int) -> tuple[int, int] | None:
        found = pattern.search(self.raw, max(start - self.base, 0))
        return None if found is None else (self.base + found.start(), self.base + found.end())

    def match(self, pattern: re.Pattern[bytes], at: int) -> int | None:
        """Return the end of a match that begins at `at`."""
        found = pattern.match(self.raw, at - self.base)
        return None if found is None else self.base + found.end()

    def slice(self, start: int, end: int) -> bytes:
        return bytes(self.raw[max(start - self.base, 0) : max(end - self.base, 0)])

    def start_of_line(self, at: int) -> int:
        """Return the start of the line that contains `at` (or of the text, where trimming cut that line)."""
        return self.base + self.raw.rfind(b"\n", 0, max(at - self.base, 0)) + 1
