"""Results by a case's own patterns: `[qcase.markers]`.

A pattern's group `name` is the test's name, `reason` the reason. `summary` has `total`, `passed`, `failed` or `skipped`, each a
number that has to agree with what was counted since the summary before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

from qcase.model import SubtestResult, SubtestStatus
from qcase.results.reader import Fault, Reader, inner_test

COUNTS: Final = ("total", "passed", "failed", "skipped")
_STATUS: Final = {"pass": SubtestStatus.PASS, "fail": SubtestStatus.FAIL, "skip": SubtestStatus.SKIP}
_COUNTED: Final = {"pass": "passed", "fail": "failed", "skip": "skipped"}


@dataclass(frozen=True)
class Markers:
    """Patterns (RE2) of a case; empty for none. `passed` and `summary` are always there."""

    passed: str
    summary: str
    begin: str = ""
    failed: str = ""
    skipped: str = ""


class MarkersReader(Reader):
    """`compiled`: the patterns by their keys in the case's file."""

    def __init__(self, compiled: dict[str, Any]) -> None:
        super().__init__()
        self._patterns = compiled
        self._open = ""
        self._counted = dict.fromkeys(_COUNTED.values(), 0)
        self._summaries = 0

    @property
    def finished(self) -> bool:
        return self._summaries > 0 and not self._open and not any(self._counted.values())

    @property
    def running(self) -> str:
        return self._open

    def copy(self) -> Self:
        other = super().copy()
        other._counted = dict(self._counted)
        return other

    def open_tests(self) -> list[SubtestResult]:
        output = tuple(self._said)
        return [inner_test(self._open, SubtestStatus.BROKEN, "began and did not end", output=output)] if self._open else []

    def _missing(self) -> Iterator[Fault]:
        if self._open:
            yield Fault(f"{self._open} began and did not end")
        if any(self._counted.values()) or not self._summaries:
            yield Fault("no summary came")

    def _read(self, line: str, at: float) -> bool:
        for key in ("fail", "skip", "pass", "summary", "begin"):  # a line that several match is the worst of them
            pattern = self._patterns.get(key)
            found = pattern.search(line) if pattern is not None else None
            if found is None:
                continue
            self.begun = True
            given = {name: value or "" for name, value in found.groupdict().items()}
            if key == "summary":
                self._compare(given, line)
            elif key == "begin":
                self._begin(given.get("name", ""), line, at)
            else:
                self._end(key, given, line, at)
            return True
        return False

    def _begin(self, name: str, line: str, at: float) -> None:
        if self._open:
            self._fault(f"{self._open} began and did not end", line)
        self._own_lines()
        self._since = at
        self._open = name or line.strip()

    def _end(self, key: str, given: dict[str, str], line: str, at: float) -> None:
        name = given.get("name", "")
        if "begin" in self._patterns and not self._open:
            self._fault(f"a result came of a test that had not begun: {name or line.strip()}", line)
        elif self._open and name and name != self._open and self._patterns["begin"].groupindex.get("name"):
            self._fault(f"{self._open} began, and {name} ended", line)
        name = name or self._open or line.strip()
        self._open = ""
        self._counted[_COUNTED[key]] += 1
        self._add(inner_test(name, _STATUS[key], given.get("reason", ""), self._took(at), (*self._own_lines(), line)))

    def _compare(self, given: dict[str, str], line: str) -> None:
        if self._open:
            self._fault(f"{self._open} began and did not end", line)
            self._open = ""
        ours = {**self._counted, "total": sum(self._counted.values())}
        for word in COUNTS:
            said = given.get(word, "")
            if said.isdecimal() and int(said) != ours[word]:
                verb = "ran" if word == "total" else word
                self._fault(f"the summary says that {int(said)} {verb}, {ours[word]} were counted", line)
            elif word in given and said and not said.isdecimal():
                self._fault(f"the summary's {word} is no number: {said}", line)
        self._counted = dict.fromkeys(self._counted, 0)
        self._summaries += 1
