"""The ruling that stands if nothing worse comes while the output is drained, and the matches on which it rests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qcase.console.all_readings import AllReadings, excerpt_of
from qcase.console.panics import Suspects
from qcase.console.rules import Ruling
from qcase.console.search import Lines, TornLines, find_between, is_beside_echo
from qcase.console.text import Pattern, Text
from qcase.console.transcript import Transcript
from qcase.model import Phase, Verdict

DRAIN: Final = 0.5  # seconds of output read after the match that decides (axbuild)
PANIC_DRAIN: Final = 1.5  # maximum seconds of output read after a panic, as long as more of it comes


@dataclass(frozen=True)
class Evidence:
    """A match that counts as long as it stands. `start` is a position in the text of `lines`."""

    lines: Lines | TornLines
    pattern: Pattern
    start: int
    at: float = 0.0  # time at which it was seen


class Pending:
    """The pending ruling. `success`: patterns that have not matched yet; they come back when a match does not stand."""

    def __init__(self, success: list[Pattern], search: AllReadings, transcript: Transcript) -> None:
        self.ruling: Ruling | None = None
        self.evidence: list[Evidence] = []  # evidence of the pending ruling
        self.said: tuple[Pattern, bytes] | None = None  # the same of a fail that no more text could undo: a text with a match
        self.since = 0.0
        self.matched: dict[str, Evidence] = {}  # success patterns that have matched, if all have to match
        self.matched_at: float | None = None  # time at which the deciding match was seen
        self.panic_at: int | None = None  # start of the panic's line
        self.panic_to = 0
        self._panic_hidden = 0  # characters in between that were hidden as echo when it was found
        self._kept: set[Evidence] = set()  # evidence that stood until its output was drained
        self._outdone: tuple[Ruling, list[Evidence]] | None = None  # the pass that a fail replaced while the output was drained
        self._success = success
        self._search = search
        self._text = transcript.written

    @property
    def passes(self) -> bool:
        """Tell whether the pending ruling is a pass, or a skip by the same evidence."""
        return self.ruling is not None and self.ruling.good

    def replace_by(self, ruling: Ruling, evidence: list[Evidence], now: float, said: tuple[Pattern, bytes] | None = None) -> None:
        """Make a ruling pending if it is worse than the one that is."""
        if self.ruling is not None and self.ruling.weight >= ruling.weight:
            return
        self._outdone = (self.ruling, self.evidence) if self.ruling else None
        self.evidence, self.said = evidence, said
        self.pend(ruling, now)

    def pend(self, ruling: Ruling, now: float) -> None:
        """Make a ruling pending, on the evidence of the one that is."""
        if self.ruling is None or ruling.verdict is Verdict.PANIC:
            self.since = now
        if self.ruling is None:
            self.matched_at = now
        self.ruling = ruling

    def drained_at(self, last_data: float, *, suspicious: bool) -> float:
        """Time at which enough output was read behind the deciding match. A panic's lines are read as long as they come."""
        if self.ruling is not None and self.ruling.verdict is Verdict.PANIC:
            return min(max(last_data, self.since) + DRAIN, self.since + PANIC_DRAIN)
        return self.since + (PANIC_DRAIN if suspicious else DRAIN)

    def suspicious(self, suspects: Suspects) -> bool:
        """Tell whether words of a panic came behind the deciding match, and nothing since shows that the guest goes on."""
        if not self.passes or not suspects.open:
            return False
        rows = [evidence.lines.source(evidence.start) for evidence in self.evidence]
        return bool(suspects.silent(self._text, max(rows, default=None)))

    def note_panic(self, found: tuple[int, int]) -> None:
        """Record the place of a panic in the written text."""
        self.panic_at, self.panic_to = found
        self._panic_hidden = self._text.view_slice(*found).count(0)

    def drop(self) -> None:
        """Drop the pending ruling, and the one that it replaced."""
        self.ruling, self.evidence, self._outdone, self.matched_at = None, [], None, None

    def want_again(self) -> None:
        """Let the patterns of the evidence search again."""
        for evidence in self.evidence if self.ruling is None or self.ruling.verdict is Verdict.PASS else ():
            self._want(evidence)

    def _want(self, evidence: Evidence) -> None:
        if evidence.pattern not in self._success:
            self._success.append(evidence.pattern)
            self.matched.pop(evidence.pattern.source, None)

    def due(self, now: float, drain: float) -> list[Evidence]:
        """Return the matches of single patterns whose output was drained for `drain` seconds and that are not kept yet."""
        return [one for one in self.matched.values() if one not in self._kept and now >= one.at + drain]

    def keep(self, due: list[Evidence]) -> None:
        """Keep those matches that still stand, whatever comes later."""
        self._kept.update(evidence for evidence in due if self._still_matches(evidence))

    def unkept(self) -> list[Evidence]:
        """Return the evidence that counts only as long as it stands."""
        return [one for one in self.evidence if one not in self._kept]

    def stands(self) -> bool:
        """Tell whether each deciding match still stands: not overwritten, not erased, and not found to be echo."""
        if self.ruling is not None and self.ruling.verdict is Verdict.PANIC and self.panic_at is not None:
            return self._text.view_slice(self.panic_at, self.panic_to).count(0) <= self._panic_hidden
        return all(self._still_matches(evidence) for evidence in self.evidence)

    def end(self) -> int:
        """Return the position in the written text behind all evidence of the pending ruling; -1 for none."""
        ends = [-1]
        for evidence in self.evidence:
            text, start = evidence.lines.text, evidence.start
            found = find_between(text, evidence.pattern, start, text.line_start) if text.base <= start < text.line_start else None
            if not _begins_at(start, found) and text is self._search.shown.text:
                found = self._search.find_waiting(evidence.pattern)
            ends.append(self._text.end if found is None else self._search.end_of(evidence.lines, found))
        return max(ends)

    def _still_matches(self, evidence: Evidence) -> bool:
        if evidence in self._kept:
            return True
        text, start = evidence.lines.text, evidence.start
        if start < text.base:
            return True  # so much text has come since that this part is dropped
        found = find_between(text, evidence.pattern, start, text.line_start) if start < text.line_start else None
        if found and found[0] == start:
            return not (self.passes and is_beside_echo(text, evidence.pattern, found))
        if text is self._text:
            return _begins_at(start, find_between(text, evidence.pattern, start, text.end))
        waits = text is self._search.shown.text and start >= text.line_start
        return waits and self._search.find_waiting(evidence.pattern) is not None

    def take_back(self) -> None:
        """Drop a pending ruling that no longer stands. The ruling that it replaced is pending again; patterns search again."""
        if self.ruling is not None and self.ruling.verdict is Verdict.PASS:
            for evidence in self.evidence:
                if not self._still_matches(evidence):
                    self._want(evidence)
        before, self._outdone = self._outdone, None
        self.ruling, self.evidence = before or (None, [])
        if self.ruling is None:
            self.matched_at = None
        self._search.again()


def _begins_at(start: int, found: tuple[int, int] | None) -> bool:
    return found is not None and found[0] == start


def ruling_on(verdict: Verdict, phase: Phase, pattern: Pattern, text: Text, found: tuple[int, int], written: Text) -> Ruling:
    """Return the ruling by a match in a text. Its excerpt is from there, or from the unfinished line of the written text."""
    excerpt = excerpt_of(text, *found) or excerpt_of(written, written.line_start, written.end)
    kind = "skip" if verdict is Verdict.SKIPPED else "fail"
    reason = "" if verdict is Verdict.PASS else f"matched the {kind} pattern {pattern.source!r}"
    return Ruling(verdict, reason, phase, pattern.source, excerpt)
