"""Rules by a line of the guest that says that a case cannot run there."""

from __future__ import annotations

from qcase.console.all_readings import AllReadings
from qcase.console.pending import Evidence, Pending, ruling_on
from qcase.console.rules import Rules
from qcase.console.text import Pattern, Text
from qcase.model import Phase, Verdict


class SkipWatch:
    """Skip patterns of a case. A match is evidence by the rules of a success; it wins over one, and a fail or a panic over it."""

    def __init__(self, rules: Rules, search: AllReadings, pending: Pending, text: Text) -> None:
        self._patterns = [Pattern(source) for source in rules.skip]
        self._search = search
        self._pending = pending
        self._text = text

    def look(self, now: float, phase: Phase, *, quiet: bool) -> None:
        """Search rows that have ended, as a terminal shows them."""
        for pattern in self._patterns:
            if (match := self._search.find_success(pattern, quiet=quiet)) is not None:
                lines, found = match
                ruling = ruling_on(Verdict.SKIPPED, phase, pattern, lines.text, found, self._text)
                self._pending.replace_by(ruling, [Evidence(lines, pattern, found[0], now)], now)
                return
