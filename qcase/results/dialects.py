"""The dialects by name, and the reader that finds out by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Self

from qcase.model import SubtestResult, SubtestStatus
from qcase.results.kunit import KunitReader
from qcase.results.libtest import LibtestReader
from qcase.results.ltp import LtpReader
from qcase.results.markers import MarkersReader
from qcase.results.reader import Fault, Reader
from qcase.results.tap import TapReader
from qcase.results.unity import UnityReader

READERS: Final[dict[str, Callable[[], Reader]]] = {
    "ktap": TapReader,
    "tap": lambda: TapReader(kernels=False, comments_follow=True),
    "kselftest": lambda: TapReader(hashes=True),
    "ltp": LtpReader,
    "kunit": KunitReader,
    "libtest": LibtestReader,
    "unity": UnityReader,
    "auto": lambda: AutoReader(),
}
_AUTO: Final = ("kselftest", "ltp", "libtest", "unity", "kunit")


def reader_of(dialect: str, markers: dict[str, Any] | None = None) -> Reader:
    """Return a new reader. `markers`: compiled patterns, for the dialect `markers`."""
    return MarkersReader(markers or {}) if dialect == "markers" else READERS[dialect]()


class AutoReader(Reader):
    """Reads all dialects at once. Each of which a line came has to account for itself: none hides the failures of another."""

    reads_kernel = True

    def __init__(self) -> None:
        super().__init__()
        self._parts = [READERS[name]() for name in _AUTO[:-1]]
        self._parts.append(KunitReader(stamped=True))

    @property
    def _heard(self) -> list[Reader]:
        return [part for part in self._parts if part.begun]

    @property
    def finished(self) -> bool:
        return bool(self._heard) and all(part.finished for part in self._heard)

    @property
    def running(self) -> str:
        return next((part.running for part in self._heard if part.running), "")

    @property
    def unlisted(self) -> int:
        return sum(part.unlisted for part in self._parts)

    def listed(self) -> list[SubtestResult]:
        return [result for part in self._heard for result in part.listed()]

    def counted(self) -> dict[SubtestStatus, int]:
        counts: dict[SubtestStatus, int] = {}
        for part in self._heard:
            for status, count in part.counted().items():
                counts[status] = counts.get(status, 0) + count
        return counts

    def open_tests(self) -> list[SubtestResult]:
        return [result for part in self._heard for result in part.open_tests()]

    def faults(self) -> list[Fault]:
        if not self._heard:
            return [Fault(self._nothing())]
        return [fault for part in self._heard for fault in part.faults()]

    def _skips_all(self) -> str:
        return next((why for part in self._heard if (why := part.all_skipped())), "")

    def _missing(self) -> Iterator[Fault]:
        yield from ()

    def take(self, line: str, at: float) -> None:
        for part in self._parts[:-1]:
            part.take(line, at)
        self.begun = bool(self._heard)

    def take_kernel(self, line: str, at: float, *, stamped: bool) -> None:
        self._parts[-1].take_kernel(line, at, stamped=stamped)
        self.begun = bool(self._heard)

    def _read(self, line: str, at: float) -> bool:  # noqa: ARG002
        return False

    def copy(self) -> Self:
        other = super().copy()
        other._parts = [part.copy() for part in self._parts]
        return other
