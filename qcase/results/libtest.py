"""Results of Rust's libtest, the harness of `cargo test`.

running 2 tests
test fs::open ... ok
test fs::seek ... FAILED
---- fs::seek stdout ----                      the failed test's own lines
test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, Self

from qcase.model import SubtestResult, SubtestStatus
from qcase.results.reader import NOT_RUN_LISTED, OUTPUT_LINE, OUTPUT_LINES, Fault, Reader, inner_test

_RUNNING: Final = re.compile(r"running (\d{1,9}) tests?")
_TEST: Final = re.compile(r"test (\S.*?)(?: - should panic)? \.\.\. ?(.*)")
_STATUS: Final = re.compile(r"(ok|FAILED|ignored|bench: .*)(?:, (.*?))?(?: <([\d.]+)s>)?")
_RESULT: Final = re.compile(
    r"test result: (ok|FAILED)\. (\d{1,9}) passed; (\d{1,9}) failed; (\d{1,9}) ignored; (\d{1,9}) measured; "
    r"(\d{1,9}) filtered out(?:; finished in [\d.]+s)?"
)
_SECTION: Final = re.compile(r"---- (\S.*?) (?:stdout|stderr) ----")


class LibtestReader(Reader):
    def __init__(self) -> None:
        super().__init__()
        self._promised: int | None = None  # number of tests of the current program
        self._open = ""  # the test that began
        self._counted = {"passed": 0, "failed": 0, "ignored": 0, "measured": 0}
        self._programs = 0
        self._places: dict[str, int] = {}  # index of each failed test in `results`
        self._section: int | None = None

    @property
    def finished(self) -> bool:
        return self._programs > 0 and self._promised is None

    @property
    def running(self) -> str:
        return self._open

    def copy(self) -> Self:
        other = super().copy()
        other._counted = dict(self._counted)
        other._places = dict(self._places)
        return other

    def open_tests(self) -> list[SubtestResult]:
        found = []
        if self._open:
            found.append(inner_test(self._open, SubtestStatus.BROKEN, "began and did not end", output=tuple(self._said)))
        if self._promised is not None:
            ended = sum(self._counted.values())
            numbers = range(ended + 1 + bool(self._open), self._promised + 1)[:NOT_RUN_LISTED]
            found += [inner_test(str(number), SubtestStatus.NOT_RUN) for number in numbers]
        return found

    def _missing(self) -> Iterator[Fault]:
        if self._open:
            yield Fault(f"{self._open} began and did not end")
        if self._promised is not None:
            yield Fault(f"{self._promised} tests were to run, {sum(self._counted.values())} ended, and no summary came")

    def _read(self, line: str, at: float) -> bool:
        if found := _RUNNING.fullmatch(line):
            if self._promised is not None:
                self._fault("a program began before the summary of the one before it", line)
            self._begin(int(found[1]), at)
            return True
        if found := _RESULT.fullmatch(line):
            self._compare(found, line)
            return True
        if self._promised is None:
            if self.begun and (found := _TEST.fullmatch(line)) and _STATUS.fullmatch(found[2]):
                self._fault(f"{found[1]} ended outside of any program", line)
            return False
        if found := _SECTION.fullmatch(line):
            self._section = self._places.get(found[1])
            return True
        if self._section is not None and line not in ("", "failures:"):
            one = self.results[self._section]
            self.results[self._section] = replace(one, output=(*one.output, line[:OUTPUT_LINE])[-OUTPUT_LINES:])
            return True
        self._section = None
        if (found := _TEST.fullmatch(line)) and (status := _STATUS.fullmatch(found[2])):
            self._end(found[1], status, at)
            return True
        if found:
            if self._open:
                self._fault(f"{self._open} began and did not end", line)
            self._open = found[1]
            return not found[2]
        if self._open and (status := _STATUS.fullmatch(line)):
            self._end(self._open, status, at)
            self._open = ""
            return True
        return False

    def _begin(self, count: int, at: float) -> None:
        self.begun = True
        self._promised = count
        self._counted = dict.fromkeys(self._counted, 0)
        self._open = ""
        self._section = None
        self._since = at

    def _end(self, name: str, status: re.Match[str], at: float) -> None:
        word, reason, seconds = status.groups()
        took = self._took(at)
        took = float(seconds) if seconds and seconds.count(".") <= 1 else took
        key, means = _MEANS.get(word, ("measured", SubtestStatus.PASS))
        self._counted[key] += 1
        self._add(inner_test(name, means, reason or "", took, self._own_lines()))
        if means is SubtestStatus.FAIL:
            self._places[name] = len(self.results) - 1

    def _compare(self, found: re.Match[str], line: str) -> None:
        if self._promised is None:
            self.begun = True
            self._fault("a summary came without the tests that it is about", line)
            return
        if self._open:
            self._fault(f"{self._open} began and did not end", line)
        for (word, ours), theirs in zip(self._counted.items(), found.groups()[1:5], strict=True):
            if int(theirs) != ours:
                self._fault(f"the summary says that {theirs} {word}, {ours} were counted", line)
        if self._promised != sum(self._counted.values()):
            self._fault(f"{self._promised} tests were to run, {sum(self._counted.values())} ended", line)
        if (found[1] == "ok") != (self._counted["failed"] == 0):
            self._fault(f"the summary says {found[1]}, {self._counted['failed']} failed", line)
        self._promised = None
        self._open = ""
        self._programs += 1


_MEANS: Final = {
    "ok": ("passed", SubtestStatus.PASS),
    "FAILED": ("failed", SubtestStatus.FAIL),
    "ignored": ("ignored", SubtestStatus.SKIP),
}
