"""Rules by the end of QEMU, where a case says what it means.

    console     pass, fail, panic, skip, or nothing yet ─┐
                                                         ├─► ruling     the graver of the two; a pass needs both
    QEMU's end  a word that `exits` names, or none      ─┘

The word is a status that the guest has set, or "poweroff". An end that is nobody's word (a signal, a reset, a QEMU that failed)
is the empty one, and says nothing.
"""

from __future__ import annotations

from qcase.console.inner_tests import InnerTests
from qcase.console.pending import Pending
from qcase.console.rules import Rules, Ruling
from qcase.console.text import Pattern
from qcase.model import Phase, Verdict


class ExitWatch:
    """The meaning of QEMU's end for one case. Does nothing where the rules name no end."""

    def __init__(self, rules: Rules, inner: InnerTests, pending: Pending, success: list[Pattern]) -> None:
        self.wanted = bool(rules.exits)
        self._outcomes = {word: outcome for outcome, word in rules.exits}
        self._match_all = rules.match_all
        self._inner = inner
        self._pending = pending
        self._success = success
        self._over = False
        self._word = ""

    def note(self, word: str) -> None:
        """Record that QEMU has ended with this word."""
        self._over = True
        self._word = word

    def heed(self, now: float, phase: Phase) -> None:
        """Let the success patterns that matched count, once QEMU has ended. They still have to stand."""
        if self.wanted and self._over and not self._inner.wanted and self._pending.ruling is None and not self._lacks:
            self._pending.replace_by(Ruling(Verdict.PASS, "", phase), [*self._pending.matched.values()], now)

    @property
    def _lacks(self) -> str:
        """A success pattern that has to match and did not; empty if there is none."""
        return self._success[0].source if self._success and (self._match_all or not self._pending.matched) else ""

    def combined(self, console: Ruling | None, how: str, phase: Phase) -> Ruling | None:
        """Return the ruling by the console and by QEMU's end; the console's own where no end is named."""
        if not self.wanted or (console is not None and not console.good):
            return console
        outcome = self._outcomes.get(self._word)
        ended = f"QEMU ended with {how}"
        if outcome is None:
            named = ", ".join(self._outcomes)
            return Ruling(Verdict.EXITED, f"{ended}, which is none of the ends in [qcase.exit] ({named}){self._known}", phase)
        said = f"{ended}, which is in [qcase.exit] {outcome}"
        if outcome == "fail":
            return Ruling(Verdict.FAIL, f"{said}{self._known}", phase)
        if console is None and self._inner.wanted and (outcome == "pass" or self._inner.began):
            return Ruling(Verdict.EXITED, f"{said}, and the results are not complete{self._known}", phase)
        if outcome == "skip":
            return Ruling(Verdict.SKIPPED, said, phase)
        if console is None:
            return Ruling(Verdict.EXITED, f"{said}, and there was no match of {self._first!r}", phase)
        return console

    @property
    def _first(self) -> str:
        return self._success[0].source if self._success else "a success pattern"

    @property
    def _known(self) -> str:
        """The state of inner tests, to stand behind a reason."""
        return f"; {self._inner.progress()}" if self._inner.wanted else ""
