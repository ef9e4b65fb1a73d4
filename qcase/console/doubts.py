"""Drops a pending ruling that rests on what may be echo as well as output."""

from __future__ import annotations

import re
from typing import Final

from qcase.console.all_readings import AllReadings
from qcase.console.joined import KERNEL_LINE
from qcase.console.keyboard import Keyboard
from qcase.console.panics import LINUX, Suspects
from qcase.console.pending import Evidence, Pending
from qcase.console.search import TornLines, find_between
from qcase.console.text import Pattern, Text
from qcase.model import Verdict

_PANIC_WORDS: Final = 12  # bytes of a panic that tell whether its words were typed


class Doubts:
    """The reason for which a ruling was dropped.

    `pattern`: the fail pattern, or "a panic", that matches possible echo; or the success that needs it to be echo; or empty.
    """

    def __init__(self, pending: Pending, suspects: Suspects, search: AllReadings, text: Text) -> None:
        self.pattern = ""
        self._suspects = suspects
        self._search = search
        self._pending = pending
        self._text = text

    def drop_pass(self, keyboard: Keyboard, patterns: list[Pattern], now: float, *, over: bool) -> bool:
        """Drop a success or a skip that is none if what may be echo is output: a fail pattern or a panic matches then, or no
        success. So with one by a text that was typed, as long as its echo may come. Tell whether it was dropped.
        """
        self.pattern = ""
        if not self._pending.passes:
            return False
        doubts = keyboard.echo.hidden_doubts()
        if doubts or self._text.soft:
            with self._search.showing(doubts, now):
                self.pattern = self._objection(doubts, patterns)
        if not self.pattern and not keyboard.echo.complete:
            typed = (one for one in self._pending.unkept() if keyboard.echo.may_be_echo(_said(one), now, over=over))
            self.pattern = next((one.pattern.source for one in typed), "")
        if self.pattern:
            self._pending.want_again()
            self._pending.drop()
        return bool(self.pattern)

    def _objection(self, doubts: list[tuple[int, int]], patterns: list[Pattern]) -> str:
        """Return what stands against a pass while these stretches are shown; empty for nothing."""
        for pattern in patterns:
            if self._search.find_fails(pattern, self._text.end, quiet=True):
                return pattern.source
        for start, end in doubts:
            low = self._text.start_of_line(start)
            at = self._text.view_slice(low, end + len(LINUX)).find(LINUX, max(start - low - len(LINUX) + 1, 0))
            if at >= 0:
                return "a panic"
        for evidence in self._pending.unkept():
            if self._search.find_success(evidence.pattern, quiet=True) is None:
                return evidence.pattern.source
        return ""

    def drop_fail(self, keyboard: Keyboard, now: float, *, over: bool) -> bool:
        """Drop a failure or a panic by a text that was typed and that may be its echo, or by the border of what may be one."""
        if self._pending.ruling is None or self._pending.ruling.good:
            return False
        if self._pending.ruling.verdict is Verdict.PANIC and self._pending.panic_at is not None:
            if self._suspects.ended or self._suspects.find_end(self._text, self._pending.panic_at):
                return False
            said = self._text.slice(self._pending.panic_at, min(self._pending.panic_to, self._pending.panic_at + _PANIC_WORDS))
            doubt = keyboard.echo.may_be_echo(said, now, over=over)
        elif self._pending.evidence:
            doubt = any(
                _evidence_may_be_echo(keyboard, evidence, now, over=over) or self._needs_doubt(keyboard, evidence)
                for evidence in self._pending.evidence
            )
        else:
            doubt = self._pending.said is not None and _may_be_echo(keyboard, *self._pending.said, 0, now, over=over)
        if doubt:
            self.pattern = self._pending.ruling.pattern or "a panic"
            self._pending.drop()
        return doubt

    def _needs_doubt(self, keyboard: Keyboard, evidence: Evidence) -> bool:
        """Tell whether a fail text is one only if what may be output as well as echo is left out of it."""
        lines, text = evidence.lines, self._text
        if (
            not isinstance(lines, TornLines)
            or (found := find_between(lines.text, evidence.pattern, evidence.start, lines.text.end)) is None
        ):
            return False
        start = text.start_of_line(lines.source(found[0]))
        end = text.find(b"\n", lines.source(max(found[1] - 1, found[0])))
        end = text.end if end < 0 else end
        said = text.view_slice(start, end)
        whole = _without(list(KERNEL_LINE.finditer(said)), said)
        return keyboard.echo.in_doubt(start, end) and evidence.pattern.search(whole) is None


def _said(evidence: Evidence) -> bytes:
    """Return the text that a success matched."""
    text = evidence.lines.text
    found = find_between(text, evidence.pattern, evidence.start, text.end)
    return b"" if found is None else text.view_slice(*found)


def _evidence_may_be_echo(keyboard: Keyboard, evidence: Evidence, now: float, *, over: bool) -> bool:
    text = evidence.lines.text
    start = max(text.start_of_line(evidence.start), text.base)
    return _may_be_echo(keyboard, evidence.pattern, text.view_slice(start, text.end), evidence.start - start, now, over=over)


def _may_be_echo(keyboard: Keyboard, pattern: Pattern, said: bytes, start: int, now: float, *, over: bool) -> bool:
    """Tell whether the first match in a text behind `start` may be echo, or is none if the echo beside it is part of a word."""
    found = pattern.search(said, start)
    if found is None:
        return False
    if keyboard.echo.may_be_echo(said[found[0] : found[1]], now, over=over):
        return True
    if said[found[0] - 1 : found[0]] != b"\0" and said[found[1] : found[1] + 1] != b"\0":
        return False
    return pattern.search(said.replace(b"\0", b"_"), start) is None


def _without(kernels: list[re.Match[bytes]], text: bytes) -> bytes:
    """Return a text without the kernel's lines, so that what one of them tore is whole."""
    parts, at = [], 0
    for found in kernels:
        parts.append(text[at : found.start()])
        at = found.end() + 1
    return b"".join(parts) + text[at:]
