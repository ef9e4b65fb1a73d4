"""The consoles of a case in steps beside that of its current step.

Each has its text, and a judge that waits for nothing: it looks for panics, fail patterns of the case and the kernel's reports.
A console whose step begins leaves here, and the one of the step before comes, each with the border behind its own evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from qcase.console.console import Console
from qcase.console.judge import Judge
from qcase.console.keyboard import Keyboard
from qcase.console.rules import Limits, Rules, Ruling
from qcase.model import KernelTrouble


@dataclass
class Side:
    """A console without a step. `border`: the end of its last step's evidence. `keyboard`: that of its last typed command."""

    console: Console
    judge: Judge
    border: int
    keyboard: Keyboard | None = None


class SideConsoles:
    """Consoles by name; the empty name is the console of QEMU itself."""

    def __init__(self, rules: Rules, started: float, names: Iterable[str]) -> None:
        self._rules = rules
        self._started = started
        self._sides: dict[str, Side] = {}
        for name in names:
            self.park(name, Console(rules, started), 0, None)

    def park(self, name: str, console: Console, border: int, keyboard: Keyboard | None) -> None:
        """Take a console whose step has ended."""
        console.begin_step(None, border)
        rules = replace(self._rules, prompt=None, command=None, success=(), fail=(), fail_always=self._rules.fail, steps=())
        rules = replace(rules, part=True, goes_on=True)
        judge = Judge(rules, started=self._started, limits=Limits(), console=console, since=border, keyboard=keyboard)
        self._sides[name] = Side(console, judge, border, keyboard)

    def take(self, name: str) -> Side:
        """Remove and return a console, for its next step."""
        return self._sides.pop(name)

    def feed(self, name: str, data: bytes, now: float) -> None:
        """Process bytes of a console that no step has; those of an unknown one are dropped."""
        if side := self._sides.get(name):
            side.judge.feed(data, now)

    def tick(self, now: float) -> None:
        for side in self._sides.values():
            side.judge.tick(now)

    def close(self, now: float) -> None:
        """Rule on all text so far: no more of it comes of this boot."""
        for side in self._sides.values():
            side.judge.close(now)

    def begin_boot(self) -> None:
        """Let no text so far be evidence: the machine starts again."""
        for side in self._sides.values():
            side.border = side.console.transcript.written.end

    def note_booted(self) -> None:
        """Record that a prompt has come, on whatever console."""
        for side in self._sides.values():
            side.console.booted = True

    def ruling(self) -> Ruling | None:
        """Return the ruling by one of the consoles, with the name of the console in its reason; None if all are open."""
        for name, side in self._sides.items():
            if side.judge.ruling is not None:
                where = f"on the console {name}" if name else "on the first console"
                return replace(side.judge.ruling, reason=f"{side.judge.ruling.reason} {where}")
        return None

    def wakes(self) -> Iterator[float]:
        """Yield the times at which a judge has work."""
        yield from (wake for side in self._sides.values() if (wake := side.judge.next_wake()) is not None)

    def last_data(self) -> float:
        return max((side.console.times.last_data for side in self._sides.values()), default=float("-inf"))

    def kernel_trouble(self) -> tuple[KernelTrouble, ...]:
        return tuple(found for side in self._sides.values() for found in side.judge.kernel_trouble())

    def more_trouble(self) -> int:
        return sum(side.judge.more_trouble for side in self._sides.values())
