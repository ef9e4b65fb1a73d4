"""The stretches of the text that are hidden as echo, with what is known of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from qcase.console.echo_text import Trace
from qcase.console.text import Text
from qcase.console.typed_command import TypedCommand

TRACES: Final = 64  # places that are watched at a time


class Hidden:
    """Hides and shows stretches. `restored` is the start of text that came into view again."""

    def __init__(self, command: TypedCommand, text: Text) -> None:
        self.restored: int | None = None
        self.traces: dict[tuple[int, int], Trace] = {}  # by line and place
        self.surely: deque[tuple[int, int]] = deque(maxlen=TRACES)  # the last stretches that surely were echo
        self.mixed: list[tuple[int, int]] = []  # hidden stretches of lines that hold more than echo
        self.whole: dict[int, int] = {}  # parts of lines that may be echo as a whole
        self.parts: dict[int, int] = {}  # those that stay hidden
        self.soft_runs: list[int] = []  # where runs of typed characters begin that are no evidence until it is known better
        self.doubts: list[tuple[int, int]] = []  # what may be echo, by an alignment
        self.outputs: list[tuple[int, int]] = []  # what surely is output, by that
        self._command = command
        self._text = text

    def note_restored(self, position: int) -> None:
        """Record that text from a position on came into view again."""
        self.restored = position if self.restored is None else min(self.restored, position)

    def take_restored(self) -> int | None:
        """Return the start of text that came into view again since the last call."""
        restored, self.restored = self.restored, None
        return restored

    def hide_surely(self, start: int, end: int) -> None:
        """Hide a stretch that is echo, whatever else is found."""
        self._text.blank(start, end)
        self.surely.append((start, end))

    def restore_line(self, start: int, end: int) -> bool:
        """Show a stretch, but for what is echo for another reason. Return True."""
        self.show_again(start, end)
        low = max(start, self._text.base)
        self.note_restored(low)
        return True

    def show_output(self, start: int, end: int) -> bool:
        """Show what surely is output, where it was hidden since it might have been echo."""
        changed = False
        for low, high in list(self._text.soft.items()):
            if start <= low and high <= end:
                self._text.harden(low)
                changed = True
        for low, high in [*self.parts.items(), *self.mixed, *self.whole.items()]:
            low, high = max(low, start), min(high, end)
            if low < high and 0 in self._text.view_slice(low, high):
                self._text.restore(low, high)
                self.note_restored(low)
                changed = True
        self.parts = {low: high for low, high in self.parts.items() if low < start or end < high}
        for key, trace in list(self.traces.items()):
            if any(low < end and start < high for low, high in trace.hidden):
                del self.traces[key]
                changed = True
                for low, high in trace.hidden:
                    self.show_again(low, high)
                    self.note_restored(low)
        return changed

    def show(self, undone: Iterable[Trace]) -> None:
        """Show what these traces hid, which were no echo, but for what is echo for another reason."""
        shown: list[tuple[int, int]] = []
        for low, high in (span for trace in undone for span in trace.hidden):
            # What came while keys were pressed stays hidden whatever it is.
            shown += [(low, min(high, self._command.began)), (max(low, self._command.ran), high)]
        shown = [(low, high) for low, high in shown if low < high]
        if not shown:
            return
        self.note_restored(min(low for low, _ in shown))
        for low, high in shown:
            self.show_again(low, high)

    def show_again(self, start: int, end: int) -> None:
        """Show a stretch, but for what is echo for another reason."""
        self._text.restore(start, end)
        for low, high in (
            *self.surely,
            *self.parts.items(),
            *self.doubts,
            *(span for trace in self.traces.values() for span in trace.hidden),
        ):
            if low < end and start < high:
                self._text.blank(max(low, start), min(high, end))
