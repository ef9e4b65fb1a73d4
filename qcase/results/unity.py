"""Results of Unity, the harness of many C projects for small machines.

test/test_ring.c:12:test_push:PASS
test/test_ring.c:20:test_pop:FAIL: Expected 1 Was 0
test/test_ring.c:31:test_wrap:IGNORE: not yet

-----------------------
3 Tests 1 Failures 1 Ignored
FAIL                                           or OK
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Self

from qcase.model import SubtestStatus
from qcase.results.reader import Fault, Reader, inner_test

_RESULT: Final = re.compile(r"\S[^:]*:\d+:(\w[^:]*):(PASS|FAIL|IGNORE)(?::\s*(.*?))?(?: \((\d{1,9}) ms\))?")
_SUMMARY: Final = re.compile(r"(\d{1,9}) Tests (\d{1,9}) Failures (\d{1,9}) Ignored")
_STATUS: Final = {"PASS": SubtestStatus.PASS, "FAIL": SubtestStatus.FAIL, "IGNORE": SubtestStatus.SKIP}


class UnityReader(Reader):
    def __init__(self) -> None:
        super().__init__()
        self._counted = dict.fromkeys(_STATUS, 0)
        self._programs = 0
        self._word_due = ""  # the word that has to follow the summary

    @property
    def finished(self) -> bool:
        return self._programs > 0 and not any(self._counted.values()) and not self._word_due

    def copy(self) -> Self:
        other = super().copy()
        other._counted = dict(self._counted)
        return other

    def _missing(self) -> Iterator[Fault]:
        if any(self._counted.values()):
            yield Fault("the last program has no summary (N Tests N Failures N Ignored)")
        elif self._word_due:
            yield Fault(f"no {self._word_due} came behind the summary")

    def _read(self, line: str, at: float) -> bool:
        if self._word_due and line:
            due, self._word_due = self._word_due, ""
            if line != due:
                self._fault(f"{due} was due behind the summary", line)
            if line in ("OK", "FAIL"):
                return True
        if found := _RESULT.fullmatch(line):
            self.begun = True
            name, word, reason, milliseconds = found.groups()
            self._counted[word] += 1
            took = self._took(at)
            seconds = int(milliseconds) / 1000 if milliseconds else took
            self._add(inner_test(name, _STATUS[word], reason or "", seconds, (*self._own_lines(), line)))
            return True
        if found := _SUMMARY.fullmatch(line):
            self.begun = True
            tests, failures, ignored = map(int, found.groups())
            said = {"PASS": tests - failures - ignored, "FAIL": failures, "IGNORE": ignored}
            for word, ours in self._counted.items():
                if said[word] != ours:
                    self._fault(f"the summary says that {said[word]} are {word}, {ours} were counted", line)
            self._counted = dict.fromkeys(_STATUS, 0)
            self._word_due = "FAIL" if failures else "OK"
            self._programs += 1
            return True
        return False
