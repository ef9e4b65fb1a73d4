"""Results of KUnit: KTAP that the kernel itself prints, behind its time stamps if it writes any."""

from __future__ import annotations

import re
from typing import Final

from qcase.results.tap import TapReader

_VERSION: Final = re.compile(r"(?:TAP|KTAP) version \d{1,3}")
_CALLER: Final = re.compile(r"\[ *[TC]\d+\] ?")


class KunitReader(TapReader):
    """Reads the kernel's lines alone once the version line came as one: a program's results are not the kernel's.

    `stamped`: whether the kernel writes time stamps; None if the version line tells.
    """

    reads_kernel = True
    lone_needs_no_plan = True  # the tests of a parameterized one have no plan, and the kernel counts those of several alone

    def __init__(self, *, stamped: bool | None = None) -> None:
        super().__init__()
        self._stamped = stamped

    def take(self, line: str, at: float) -> None:
        """Ignore a line of a program."""

    def take_kernel(self, line: str, at: float, *, stamped: bool) -> None:
        if stamped:
            line = _CALLER.sub("", line, count=1) if line.startswith("[") else line
        if self._stamped is None and _VERSION.fullmatch(line.strip()):
            self._stamped = stamped
        if self._stamped is stamped:
            super().take(line, at)
