"""Rules that a console is judged by, and the ruling."""

from __future__ import annotations

from dataclasses import dataclass

from qcase.console.group import Group
from qcase.model import Phase, Verdict


@dataclass(frozen=True)
class Rules:
    """Prompt, command and deciding patterns of a case. Patterns are RE2.

    With `results`, a case passes by the tests inside its command, and its success patterns have to match besides.
    """

    prompt: str | None = None
    command: str | None = None
    success: tuple[str, ...] = ()
    fail: tuple[str, ...] = ()
    match_all: bool = False
    from_prompt: bool = False
    group: Group | None = None
    results: str = ""  # the dialect of the results of the command's own tests; empty if the patterns alone decide
    markers: tuple[tuple[str, str], ...] = ()  # patterns of that dialect, if it is the case's own, by their keys
    resets: bool = False  # the guest may reset its machine, which then starts again
    time_stamps: bool = False  # the kernel is known to write time stamps
    kernel_trouble: str = "warn"  # or "fail" or "ignore": effect of the kernel's reports short of a panic


@dataclass(frozen=True)
class Limits:
    """Limits in seconds, already scaled; None for no limit. `command`: from the prompt on, or for each command of a group."""

    whole: float | None = None
    boot: float | None = None
    command: float | None = None
    idle: float | None = None

    @property
    def given_up(self) -> float | None:
        """Seconds after which the judge ends a group's command that the guest itself should have ended."""
        return None if self.command is None else self.command * 1.5 + 15


@dataclass(frozen=True)
class Ruling:
    """A verdict and its reason. `limit`: name of the limit that ended the case. `block`: the lines of a panic."""

    verdict: Verdict
    reason: str
    phase: Phase
    pattern: str | None = None
    excerpt: str | None = None
    limit: str | None = None
    block: tuple[str, ...] = ()
