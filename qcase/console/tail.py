"""The last lines of a console, for reports."""

from __future__ import annotations

from collections import deque
from typing import Final

from qcase.console.panics import LINE_SHOWN, shown
from qcase.console.text import Text

TAIL_LINES: Final = 200  # last lines kept for the failure report


class Tail:
    """The last whole lines, and the one that has not ended."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._lines: deque[bytes] = deque(maxlen=TAIL_LINES)

    def add(self, lines: list[bytes]) -> None:
        """Add whole lines."""
        for line in lines[-TAIL_LINES:]:
            self._lines.append(line[: 4 * LINE_SHOWN])

    def open_line(self) -> bytes:
        """Return the line that has not ended, or the end of it."""
        return self._text.slice(max(self._text.line_start, self._text.end - 4 * LINE_SHOWN), self._text.end)

    def last(self, count: int) -> tuple[str, ...]:
        """Return the last lines, including an unfinished one."""
        rest = self.open_line()
        kept = [*self._lines, rest] if rest.strip() else list(self._lines)
        return tuple(shown(line) for line in kept[-count:]) if count else ()

    def last_line(self) -> str | None:
        """Return the last line that is not blank."""
        return next((line for line in reversed(self.last(TAIL_LINES)) if line.strip()), None)
