"""Watches what ends a group: its script's last line, a prompt behind it; and blames commands by fail patterns."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from qcase.console.all_readings import AllReadings
from qcase.console.group import Subtests
from qcase.console.pending import Pending, ruling_on
from qcase.console.rules import Rules, Ruling
from qcase.console.search import Lines, TornLines
from qcase.console.text import Pattern, Text
from qcase.model import Phase, Verdict

# Last character of a prompt, and maximum length of a prompt behind the part that the case names.
_PROMPT: Final = re.compile(rb"[#$>%]")
_PROMPT_MAX: Final = 80
_BLAMES: Final = 1000  # maximum matches blamed in one piece of text


class GroupWatch:
    """The script of a grouped case. `fail`: the first fail that was found; the group runs to its end all the same.

    `by_itself`: the group failed by more than its commands.
    """

    def __init__(
        self, rules: Rules, subtests: Subtests, pending: Pending, search: AllReadings, text: Text, success: list[Pattern]
    ) -> None:
        self.fail: Ruling | None = None
        self.by_itself = False
        self._group = rules.group
        self._prompt = (rules.prompt or "").encode()
        self._subtests = subtests
        self._pending = pending
        self._search = search
        self._text = text
        self._success = success
        self._muted: dict[tuple[Pattern, int], int] = {}  # position up to which a pattern has been blamed, in each reading
        self._prompts_from = 0  # start of the next search for a prompt, once the command was typed

    def note_typed(self) -> None:
        """Record that the command is typed: prompts from here on count."""
        self._prompts_from = self._text.end

    def take(self, lines: list[bytes], now: float) -> None:
        """Process these whole lines, the last ones of the text."""
        position = self._text.line_start - sum(len(line) + 1 for line in lines)
        for line in lines:
            echo = 0 if self._subtests.is_label(line) else self._subtests.echo_at(line)
            self._subtests.take(line, position, now)
            self._watch_end(now)
            if echo >= 0:
                self._text.blank(position + echo, position + len(line))
            position += len(line) + 1

    def input(self, now: float) -> bytes:
        """Return what is to be typed for the script, which a prompt shows to be gone."""
        self._watch_prompt(now)
        return self._subtests.input(now)

    def blame(self, pattern: Pattern, lines: Lines | TornLines, first: tuple[int, int], phase: Phase) -> None:
        """Blame each command whose output a fail pattern matches. The group itself runs to its end."""
        found: tuple[int, int] | None = first
        key = pattern, id(lines)
        for _ in range(_BLAMES):
            if found is None:
                return
            at = lines.source(found[0])
            following = self._subtests.after(self._muted[key]) if key in self._muted else 0
            if following is None:
                return
            if at >= following:
                self._muted[key] = at
                ruling = ruling_on(Verdict.FAIL, phase, pattern, lines.text, found, self._text)
                self.fail = self.fail or ruling
                self.by_itself |= not self._subtests.blame(at, ruling.reason, ruling.excerpt or "")
                following = self._subtests.after(at)
            start = max(found[1], found[0] + 1)
            if lines is self._search.written:
                if following is None:
                    return
                start = max(found[0] + 1, following)
            found = lines.find(pattern, start)

    def _watch_end(self, now: float) -> None:
        """End the case at the group's last marker; no marker may come behind it."""
        passing = self._pending.ruling is not None and self._pending.ruling.good
        if self._subtests.end is not None and (self._pending.ruling is None or (passing and self._subtests.end.broken_off)):
            line = f"{self._subtests.end.line}\n".encode()  # the script prints this line, even if it has not come yet
            self._success[:] = [p for p in self._success if p.search(line) is None]
            self.end(now)

    def _watch_prompt(self, now: float) -> None:
        """Tell the group about each prompt of the guest that came while it ran: its script may be gone."""
        prompt, text = self._prompt, self._text
        while prompt and (at := text.find(prompt, self._prompts_from)) >= 0:
            row = text.slice(at, min(at + len(prompt) + _PROMPT_MAX, text.end)).partition(b"\n")
            if _PROMPT.search(row[0], len(prompt) - 1):
                self._subtests.prompted(now)
            elif not row[1] and len(row[0]) < len(prompt) + _PROMPT_MAX:
                self._prompts_from = at  # the rest of the prompt is still to come
                return
            self._prompts_from = at + len(prompt)
        self._prompts_from = max(self._prompts_from, text.end - len(prompt) + 1)

    def fail_whole(self, ruling: Ruling) -> None:
        """Fail the group, whatever its commands do."""
        self.fail = self.fail or ruling
        self.by_itself = True

    def settled(self, ruling: Ruling) -> Ruling:
        """Return the ruling that counts, now that all output is drained."""
        by_tests = ruling.by_tests and (self._group is None or (self._subtests.fails_by_commands() and not self.by_itself))
        return ruling if by_tests == ruling.by_tests else replace(ruling, by_tests=by_tests)

    def end(self, now: float) -> None:
        """Make what came of the commands the pending ruling."""
        fail = self.fail
        if reason := self._subtests.failure():
            pattern, excerpt = (fail.pattern, fail.excerpt) if fail else (None, None)
            line = f"{self._group.all_passed}\n".encode() if self._group else b""
            by_tests = all(pattern.search(line) is not None for pattern in self._success)
            self._pending.pend(Ruling(Verdict.FAIL, reason, Phase.COMMAND, pattern, excerpt, by_tests=by_tests), now)
        elif fail is None and (skipped := self._subtests.all_skipped()):
            self._pending.pend(Ruling(Verdict.SKIPPED, skipped, Phase.COMMAND), now)
        else:
            self._pending.pend(fail or Ruling(Verdict.PASS, "", Phase.COMMAND), now)
