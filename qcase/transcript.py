"""What a guest wrote, as text, and patterns that look for something in it.

    bytes ─► Terminal ─► clean text ─► Text.raw    as it came
                                       Text.view   the same length, echo blanked out: what a Pattern sees

Text is what a person would read: UTF-8 with replacement characters, escape sequences removed, CR LF and CR made LF.
Positions count bytes from the guest's first one, and stay what they are when old text is dropped.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

from qcase.config import compile_pattern

WINDOW: Final = 1 << 20  # bytes of text that a pattern sees at least

# What may stand in a pattern through which it can match a line end. Rather too much: it costs time, a line end missed costs
# a verdict. Literally, by escape (octal too), by a class that may hold it (`\p{Cc}` does), by `(?s)`; and text's own ends.
_LINE_END = re.compile(r"\n|\\[nsDWPpxCzAQ0-7]|\[|\(\?[a-zA-Z-]*s")
# What a guest may write next. A match that stays the same with each of them does not depend on it.
_CONTINUATIONS: Final = (b"a", b" ", "\ufffd".encode(), b"\n")
_NOTHING: Final = re.compile(rb"[\0\s]*")


class Pattern:
    """One RE2 pattern over bytes of UTF-8. `^` and `$` are line ends, as if it began with `(?m)`."""

    def __init__(self, source: str) -> None:
        self._compiled = compile_pattern(source)
        self.source = source
        self.spans_lines = bool(_LINE_END.search(source))  # only such a pattern is tried on lines that were there before

    def search(self, text: bytes | bytearray, start: int = 0, end: int | None = None) -> tuple[int, int] | None:
        """The first match at or behind `start`, as byte offsets. What stands before `start` is seen by `^` and `\\b`.

        A match of nothing but blanked out text is none.
        """
        while match := self._compiled.search(text, start, len(text) if end is None else end):
            low, high = match.span()
            if not (blank := _NOTHING.match(text, low, high)) or blank.end() < high or 0 not in text[low:high]:
                return low, high
            start = high
        return None

    def search_unfinished(self, text: bytes, start: int) -> tuple[int, int] | None:
        """The first match that no continuation of `text` could undo."""
        found = None
        for continuation in _CONTINUATIONS:
            span = self.search(text + continuation, start)
            if span is None or span[1] > len(text):
                return None
            found = found or span
        return found


class Terminal:
    """Makes clean text of a guest's bytes, however they are split."""

    # One that another escape breaks off is gone with all that it had; any other broken one loses the escape character alone.
    # A string sequence (OSC, DCS, …) ends at its terminator; a guest that forgets it must not swallow what follows, so it
    # also ends at a line end.
    _ESCAPE = re.compile(
        r"\x1b(?:\[[0-?]*[ -/]*(?:[@-~]|(?=\x1b))|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\|(?=[\n\x1b]))"
        r"|[ -/]+(?:[0-~]|(?=\x1b))|[0-OQ-WYZ\\`-~]|(?=\x1b))|[\x00\x07\x08\x1b\x7f]"
    )
    _UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b\n]*\x1b?|[ -/]*)?\Z")
    _HELD_MAX = 4096

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # the beginning of an escape sequence
        self._returned = False  # the clean text ended in CR, which may be half of a line end

    def feed(self, data: bytes, *, final: bool = False) -> str:
        text = self._held + self._decoder.decode(data, final)
        self._held = ""
        if not final and (begun := self._UNFINISHED.search(text)) and len(text) - begun.start() <= self._HELD_MAX:
            self._held = text[begun.start() :]
            text = text[: begun.start()] + "\x1b"  # what stands before is over where this one begins
        if "\x1b" in text or "\x07" in text or "\x00" in text or "\x08" in text or "\x7f" in text:
            text = self._ESCAPE.sub("", text)
        if self._returned:
            text = "\r" + text
        self._returned = not final and text.endswith("\r")
        if self._returned:
            text = text.rstrip("\r")
        if "\r" in text:
            text = re.sub(r"\r+\n?", "\n", text)
        return text


class Text:
    """The last part of what the guest wrote: at least `WINDOW` bytes, at most about twice as many."""

    def __init__(self) -> None:
        self.base = 0  # the position of the first byte that is still there
        self.raw = bytearray()
        self.view = bytearray()
        self.line_start = 0  # where the unfinished line begins

    @property
    def end(self) -> int:
        return self.base + len(self.raw)

    def append(self, data: bytes) -> list[bytes]:
        """Add text; returns the lines that it completes."""
        before = self.line_start - self.base
        self.raw += data
        self.view += data
        last = self.raw.rfind(b"\n", len(self.raw) - len(data))
        if last < 0:
            return []
        self.line_start = self.base + last + 1
        return bytes(self.raw[max(before, 0) : last]).split(b"\n")

    def trim(self) -> None:
        if len(self.raw) > 2 * WINDOW:
            cut = len(self.raw) - WINDOW
            del self.raw[:cut]
            del self.view[:cut]
            self.base += cut

    def blank(self, start: int, end: int) -> None:
        """Hide a stretch from patterns. A line end stays one: blanking must not make one line of two."""
        a, b = max(start - self.base, 0), max(end - self.base, 0)
        self.view[a:b] = b"\n".join(bytes(len(part)) for part in self.raw[a:b].split(b"\n"))

    def restore(self, start: int, end: int) -> None:
        a, b = max(start - self.base, 0), max(end - self.base, 0)
        self.view[a:b] = self.raw[a:b]

    def find(self, wanted: bytes, start: int) -> int:
        at = self.raw.find(wanted, max(start - self.base, 0))
        return -1 if at < 0 else self.base + at

    def search(self, pattern: re.Pattern[bytes], start: int) -> tuple[int, int] | None:
        found = pattern.search(self.raw, max(start - self.base, 0))
        return None if found is None else (self.base + found.start(), self.base + found.end())

    def match(self, pattern: re.Pattern[bytes], at: int) -> int | None:
        """Where a match that begins at `at` ends."""
        found = pattern.match(self.raw, at - self.base)
        return None if found is None else self.base + found.end()

    def slice(self, start: int, end: int) -> bytes:
        return bytes(self.raw[max(start - self.base, 0) : max(end - self.base, 0)])

    def start_of_line(self, at: int) -> int:
        """Where the line begins in which `at` is (or the text, where that was cut)."""
        return self.base + self.raw.rfind(b"\n", 0, max(at - self.base, 0)) + 1
