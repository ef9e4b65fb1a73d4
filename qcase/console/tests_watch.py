"""Rules by the tests inside a case's command."""

from __future__ import annotations

from qcase.console.inner_tests import InnerTests
from qcase.console.pending import Pending
from qcase.console.rules import Rules, Ruling
from qcase.console.text import Pattern


class TestsWatch:
    """The ruling by the results of the command's own tests. `last_data`: time at which the guest last wrote."""

    def __init__(self, rules: Rules, inner: InnerTests, pending: Pending, success: list[Pattern]) -> None:
        self._match_all = rules.match_all
        self._inner = inner
        self._pending = pending
        self._success = success

    def heed(self, now: float, last_data: float, *, typed: bool) -> None:
        """Rule on the tests once the command has ended."""
        if self._pending.ruling is None and (ruling := self._ruling(now, last_data, typed=typed)) is not None:
            self._pending.replace_by(ruling, list(self._pending.matched.values()), now)
            self._pending.matched_at = last_data

    def settle(self, now: float, last_data: float, *, typed: bool) -> None:
        """Rule once more before the ruling counts, if it is by the tests: their results may have changed since."""
        if self._inner.is_own(self._pending.ruling):
            self._pending.ruling = self._ruling(now, last_data, typed=typed)
            if self._pending.ruling is None:
                self._pending.drop()

    def _ruling(self, now: float, last_data: float, *, typed: bool) -> Ruling | None:
        lacks = self._success[0].source if self._success and (self._match_all or not self._pending.matched) else ""
        return self._inner.ruling(now, last_data, typed=typed, lacks=lacks)
