"""Results of the Linux Test Project's programs.

open01.c:64: TPASS: sticky bit is set          a result; the place in the source is its name
df01 1 TFAIL: df failed                        a result of a script
Summary:                                       ends each program, with the counts of its results
passed   1
failed   1
broken   0
skipped  0
warnings 0
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Self

from qcase.model import SubtestStatus
from qcase.results.reader import Fault, Reader, inner_test

_RESULT: Final = re.compile(r"(?:(\S+?:\d+)|(\S+)\s+(\d+)|(\S+)):?\s+(TPASS|TFAIL|TBROK|TCONF|TWARN)\s*:\s*(.*)")
_BEGIN: Final = re.compile(r"\S.*\bTINFO\s*:\s*LTP version: .*")  # the first line of each program of newer LTP
_OTHER: Final = re.compile(r"\S.*\b(?:TINFO|TDEBUG)\s*:.*")
_SUMMARY: Final = re.compile(r"(passed|failed|broken|skipped|warnings)\s+(\d{1,9})")
_STATUS: Final = {
    "TPASS": SubtestStatus.PASS,
    "TFAIL": SubtestStatus.FAIL,
    "TBROK": SubtestStatus.BROKEN,
    "TCONF": SubtestStatus.SKIP,
    "TWARN": SubtestStatus.BROKEN,
}
_COUNTED: Final = {"TPASS": "passed", "TFAIL": "failed", "TBROK": "broken", "TCONF": "skipped", "TWARN": "warnings"}
_WORDS: Final = tuple(_COUNTED.values())
_ALWAYS: Final = ("passed", "failed", "skipped", "warnings")  # older LTP has no line of what is broken


class LtpReader(Reader):
    def __init__(self) -> None:
        super().__init__()
        self._counted: dict[str, int] = {}  # results since the last summary
        self._programs = 0
        self._said_counts: dict[str, int] | None = None  # the summary that is being read
        self._talks = False  # a program said something since the last summary

    @property
    def finished(self) -> bool:
        return self._programs > 0 and not self._counted and not self._talks and self._said_counts is None

    def copy(self) -> Self:
        other = super().copy()
        other._counted = dict(self._counted)
        other._said_counts = None if self._said_counts is None else dict(self._said_counts)
        return other

    def _missing(self) -> Iterator[Fault]:
        if self._said_counts is not None:
            yield Fault("the last summary is not whole")
        elif self._counted or self._talks:
            yield Fault("the last program has no summary")

    def _read(self, line: str, at: float) -> bool:
        if self._said_counts is not None and (found := _SUMMARY.fullmatch(line)):
            if found[1] in self._said_counts:
                self._fault(f"the summary says twice how many {found[1]}", line)
            self._said_counts[found[1]] = int(found[2])
            if found[1] == _WORDS[-1]:
                self._compare(self._said_counts, line)
            return True
        if self._said_counts is not None and line:
            self._fault("a summary is not whole", line)
            self._said_counts = None
        if line == "Summary:":
            self.begun = True
            self._said_counts = {}
            return True
        if found := _RESULT.fullmatch(line):
            self.begun = True
            place, script, number, bare, word, message = found.groups()
            name = place or (f"{script.rstrip(':')} {number}" if script else bare.rstrip(":"))
            self._counted[_COUNTED[word]] = self._counted.get(_COUNTED[word], 0) + 1
            output = self._own_lines()
            self._add(inner_test(name, _STATUS[word], message, self._took(at), (*output, line)))
            return True
        if (self._counted or self._talks) and _BEGIN.fullmatch(line):
            self._fault("a program began before the summary of the one before it", line)
            self._counted.clear()
        if _OTHER.fullmatch(line):
            self.begun = self._talks = True
        return False

    def _compare(self, said: dict[str, int], line: str) -> None:
        for word in _WORDS:
            if word not in said and word in _ALWAYS:
                self._fault(f"the summary does not say how many {word}", line)
            elif said.get(word, 0) != self._counted.get(word, 0):
                self._fault(f"the summary says {said.get(word, 0)} {word}, {self._counted.get(word, 0)} were counted", line)
        self._said_counts = None
        self._counted.clear()
        self._talks = False
        self._programs += 1
