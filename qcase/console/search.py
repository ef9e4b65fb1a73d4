"""Search of patterns in the readings of a guest's output.

A pattern that cannot match a line end is tried once on each line. A pattern that can is tried on the whole window again whenever
enough new text has come, so the total work on a flood stays linear in its size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from qcase.console.joined import Bared, Joined
from qcase.console.text import WINDOW, Pattern, Text

_NOWHERE: Final = 1 << 62


class Gate:
    """Rate limiter for searches: small text always passes, more only after it grew by 1/16 or 0.1 s went by."""

    SMALL: Final = 1 << 16

    def __init__(self, share: int = 16, pause: float = 0.1) -> None:
        self._share = share
        self._pause = pause
        self._at = 0.0
        self._to = 0

    def opens(self, now: float, size: int, end: int) -> bool:
        """Tell whether to search a text of `size` bytes that ends at position `end` now."""
        if size > self.SMALL and 0 <= (end - self._to) * self._share < size and now < self._at + self._pause:
            return False
        self._at, self._to = now, end
        return True


class Lines:
    """Searches the whole lines of one text. The case's own patterns begin to search at position `armed`.

    A pattern that holds through all steps of a case begins at `opened`.
    """

    def __init__(self, text: Text, source: Callable[[int], int] | None = None) -> None:
        self.text = text
        self.armed = 0
        self.opened = 0
        self._source = source
        self._scanned = 0  # the one-line patterns have searched up to this position
        self._gate = Gate()
        self.open = False

    def begin(self, now: float, *, every: bool) -> None:
        """Prepare a search of the new text. With `every`, patterns that span lines search, too, whatever the cost."""
        text = self.text
        self._scanned = min(self._scanned, text.rewound)
        self.armed = min(self.armed, text.rewound)
        self.opened = min(self.opened, text.rewound)
        text.rewound = _NOWHERE
        self.open = self._gate.opens(now, len(text.view), text.end) or every

    def arm(self, position: int) -> None:
        """Let the case's own patterns search from a position on, before which the text is final."""
        self._scanned = min(self._scanned, self.text.rewound)
        self.opened = min(self.opened, self.text.rewound)
        self.text.rewound = _NOWHERE
        self.armed = position

    def since(self, pattern: Pattern) -> int:
        """Return the position at which a pattern of the case begins to search."""
        return self.opened if pattern.always else self.armed

    def again(self, position: int) -> None:
        """Search the lines from a position on again."""
        self._scanned = min(self._scanned, position)

    def find(self, pattern: Pattern, start: int = 0, *, boot: bool = False) -> tuple[int, int] | None:
        """Return the first match in whole lines, from `start` on. With `boot`, search also before `armed`."""
        text = self.text
        # Where trimming cut the text in the middle of a line, its first byte is not the start of a line.
        begin = max(start, 0 if boot else self.since(pattern), text.base + 1 if text.base else 0)
        if not pattern.spans_lines:
            begin = max(begin, self._scanned)
        elif not self.open:
            return None
        return find_between(text, pattern, begin, text.line_start) if begin < text.line_start else None

    def end(self) -> None:
        """Record that all patterns have searched the whole lines."""
        self._scanned = max(self._scanned, self.text.line_start)

    def source(self, position: int) -> int:
        """Map a position in this text to the position of its source in the written text."""
        return position if self._source is None else self._source(position)


class TornLines:
    """Searches a reading without the kernel's lines and without echo: only the lines that differ from the other reading."""

    def __init__(self, joined: Joined | Bared, source: Callable[[int], int] | None = None) -> None:
        self.joined = joined
        self._source = source
        self.text = joined.text
        self.armed = 0
        self.opened = 0
        self._gate = Gate(share=4, pause=0.5)
        self.open = False

    def begin(self, now: float, *, every: bool) -> None:
        """See `Lines`."""
        self.armed = min(self.armed, self.text.rewound)
        self.opened = min(self.opened, self.text.rewound)
        self.text.rewound = _NOWHERE
        differs = self.joined.differs >= max(self.text.base, self.opened)
        self.open = differs and (self._gate.opens(now, len(self.text.view), self.text.end) or every)

    def arm(self, position: int) -> None:
        """See `Lines`."""
        self.opened = min(self.opened, self.text.rewound)
        self.text.rewound = _NOWHERE
        self.armed = position

    def since(self, pattern: Pattern) -> int:
        """See `Lines`."""
        return self.opened if pattern.always else self.armed

    def again(self, position: int) -> None:
        """See `Lines`."""
        self.joined.fresh.insert(0, (max(position, self.text.base), self.text.end))

    def find(self, pattern: Pattern, start: int = 0, *, boot: bool = False) -> tuple[int, int] | None:
        """See `Lines`."""
        begin = max(start, 0 if boot else self.since(pattern), self.text.base + 1 if self.text.base else 0)
        if pattern.spans_lines:
            return find_between(self.text, pattern, begin, self.text.line_start) if self.open and begin < self.text.end else None
        for low, high in self.joined.fresh:
            if max(low, begin) < high and (found := find_between(self.text, pattern, max(low, begin), high)):
                return found
        return None

    def end(self) -> None:
        """See `Lines`."""
        self.joined.fresh.clear()

    def source(self, position: int) -> int:
        """See `Lines`."""
        found = self.joined.source(position)
        return found if self._source is None else self._source(found)


def find_between(text: Text, pattern: Pattern, start: int, end: int) -> tuple[int, int] | None:
    """Return the first match between two positions. `end` counts as the end of the text; `^` sees the text before `start`."""
    found = pattern.search(text.view, start - text.base, end - text.base)
    return None if found is None else (text.base + found[0], text.base + found[1])


def is_beside_echo(text: Text, pattern: Pattern, found: tuple[int, int]) -> bool:
    """Tell whether a match is none if the echo beside it is the rest of its word."""
    if 0 not in text.view_slice(found[0] - 1, found[0]) + text.view_slice(found[1], found[1] + 1):
        return False
    start, end = text.start_of_line(found[0]), text.find(b"\n", found[1])
    said = text.view_slice(start, text.end if end < 0 else end).replace(b"\0", b"_")
    again = pattern.search(said, found[0] - start)
    return again is None or again[0] != found[0] - start


def find_unfinished(text: Text, pattern: Pattern, start: int, end: int) -> tuple[int, int] | None:
    """Return a match on the unfinished line that no continuation could undo."""
    before = 1 if start > text.base else 0
    part = text.view_slice(start - before, end)
    found = pattern.search_unfinished(part, before)
    return None if found is None else (start - before + found[0], start - before + found[1])


def unfinished_start(text: Text, armed: int, *, whole: bool) -> int:
    """Return the position at which to start the search for a match that ends on the unfinished line."""
    oldest = text.base + 1 if text.base else 0
    if whole:
        return max(armed, oldest, text.end - WINDOW)
    return max(text.line_start, armed, oldest, text.end - WINDOW // 4)
