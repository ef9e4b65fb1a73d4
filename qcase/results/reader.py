"""A reader of results, and what the readers of all dialects share.

    lines of the console ─► Reader (one dialect) ─► tests with status, reason, time and their own lines; faults of the stream

A reader takes whole lines, without the kernel's lines and without echo, and asks for no time, file or process. It believes a
stream only as far as the stream accounts for itself: by its plan, its numbers and its summary.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

from qcase.model import SubtestResult, SubtestStatus

OUTPUT_LINES: Final = 20  # last lines of a test's output that are kept
OUTPUT_LINE: Final = 240  # characters of such a line, of a name, and of a reason
LISTED: Final = 20_000  # maximum number of tests that are listed; passed ones beyond that are only counted
NOT_RUN_LISTED: Final = 1_000  # maximum number of tests that a plan promised and that are listed as not run
FAULTS: Final = 20  # maximum number of faults of a stream that are kept

BAD: Final = (SubtestStatus.FAIL, SubtestStatus.BROKEN)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class Fault:
    """A reason why a stream is no evidence of success. `line`: the line that shows it; empty if it is a line that is missing."""

    what: str
    line: str = ""


class Reader(ABC):
    """Reads the lines of one command's output. `copy` makes an independent reader in the same state.

    `begun`: a line of this dialect came. `reads_kernel`: it wants the kernel's lines, too.
    """

    reads_kernel = False

    def __init__(self) -> None:
        self.begun = False
        self.results: list[SubtestResult] = []  # tests that ended, in the order of the console
        self.counts: dict[SubtestStatus, int] = {}
        self._unlisted = 0
        self._names: dict[str, int] = {}
        self._faults: list[Fault] = []
        self._said: deque[str] = deque(maxlen=OUTPUT_LINES)  # lines since the last result
        self._since: float | None = None  # time of the last result, or of the line before the first one

    # --- queries -------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Tell whether the stream says of itself that it is at its end, whatever its results."""

    @property
    def running(self) -> str:
        """Name of the test that began and did not end, as far as the dialect tells; else empty."""
        return ""

    @property
    def unlisted(self) -> int:
        """Number of tests that passed and that are not listed."""
        return self._unlisted

    def listed(self) -> list[SubtestResult]:
        """Return the tests that ended, in the order of the console."""
        return self.results

    def counted(self) -> dict[SubtestStatus, int]:
        """Return the number of tests that ended, by status."""
        return self.counts

    def faults(self) -> list[Fault]:
        """Return why the stream, if it ended here, would be no evidence of success, apart from failed tests."""
        found = [*self._faults, *self._missing()]
        if not found and not any(self.counts.values()) and not self._skips_all():
            found.append(Fault(self._nothing()))
        return found

    def all_skipped(self) -> str:
        """Return the reason if the stream accounts for itself and all its tests are skipped or todo; else empty."""
        counts = self.counted()
        if self.faults() or any(counts.get(status) for status in (SubtestStatus.PASS, *BAD)):
            return ""
        if not any(counts.values()):
            return self._skips_all()
        why = next((one.reason for one in self.listed() if one.status is SubtestStatus.SKIP and one.reason), "")
        count, word = sum(counts.values()), "todo or skipped" if counts.get(SubtestStatus.TODO) else "skipped"
        return f"no test ran: {'all ' if count > 1 else ''}{count} {'were' if count > 1 else 'was'} {word}{why and f': {why}'}"

    def _skips_all(self) -> str:
        """Return the reason by which the stream says that none of its tests runs; empty if it does not."""
        return ""

    def open_tests(self) -> list[SubtestResult]:
        """Return the tests that began and did not end, and those that a plan promised and that did not come."""
        return []

    @abstractmethod
    def _missing(self) -> Iterator[Fault]:
        """Return the faults of the stream if it ended here."""

    def _nothing(self) -> str:
        return "no result of a test came"

    # --- input ---------------------------------------------------------------------------------------------------------

    def take(self, line: str, at: float) -> None:
        """Process a whole line that came at a time in seconds."""
        if self._since is None:
            self._since = at
        if not self._read(line.rstrip(), at):
            self._said.append(line[:OUTPUT_LINE].rstrip())

    def take_kernel(self, line: str, at: float, *, stamped: bool) -> None:  # noqa: B027
        """Process a line of the console with the kernel's part of it; `stamped`: what the kernel wrote behind its time stamp."""

    @abstractmethod
    def _read(self, line: str, at: float) -> bool:
        """Process a line. Return False if it is a test's output."""

    def copy(self) -> Self:
        other = copy.copy(self)
        other.results = list(self.results)
        other.counts = dict(self.counts)
        other._names = dict(self._names)
        other._faults = list(self._faults)
        other._said = self._said.copy()
        return other

    # --- for the dialects ----------------------------------------------------------------------------------------------

    def _fault(self, what: str, line: str = "") -> None:
        if len(self._faults) < FAULTS:
            self._faults.append(Fault(what, line[:OUTPUT_LINE]))

    def _own_lines(self) -> tuple[str, ...]:
        """Return the lines since the last result without blank ones around them, and begin anew."""
        lines = list(self._said)
        self._said.clear()
        while lines and not lines[-1]:
            lines.pop()
        while lines and not lines[0]:
            del lines[0]
        return tuple(lines)

    def _took(self, at: float) -> float | None:
        """Return the seconds since the last result, and begin anew."""
        since, self._since = self._since, at
        return None if since is None else at - since

    def _add(self, result: SubtestResult) -> None:
        """Add a test that ended, under a name that no test has yet."""
        self.counts[result.status] = self.counts.get(result.status, 0) + 1
        if len(self.results) >= LISTED and result.status is SubtestStatus.PASS:
            self._unlisted += 1
            return
        self.results.append(replace(result, name=self._distinct(result.name)))

    def _distinct(self, name: str) -> str:
        """Return a name, with a number behind it if a test has that name."""
        wanted = name
        while wanted in self._names:
            self._names[name] += 1
            wanted = f"{name} ({self._names[name]})"
        self._names[wanted] = 1
        return wanted


def inner_test(
    name: str,
    status: SubtestStatus,
    reason: str = "",
    seconds: float | None = None,
    output: Sequence[str] = (),
) -> SubtestResult:
    """Make the result of one inner test. One that passed or was skipped keeps no output."""
    kept = () if status in (SubtestStatus.PASS, SubtestStatus.SKIP) else tuple(output)[-OUTPUT_LINES:]
    return SubtestResult(plain(name) or "test", "", status, None, seconds, plain(reason), kept)


def plain(text: str) -> str:
    """Return text for a name or a reason: one line without control characters, not too long."""
    text = _CONTROL.sub("\ufffd", text).strip()
    return text if len(text) <= OUTPUT_LINE else text[: OUTPUT_LINE - 1] + "…"
