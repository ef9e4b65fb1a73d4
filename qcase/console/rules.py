"""Rules that a console is judged by, and the ruling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qcase.console.group import Group
from qcase.model import Phase, Verdict


@dataclass(frozen=True)
class Step:
    """One step of a case: what is typed or asked of QEMU, and what ends the step. Patterns are RE2, the timeout is scaled.

    It types a `command` at its prompt, or `keys` as they are, or gives QEMU's monitor a command (`qmp`, JSON), or does nothing.
    It ends with a match of `success`, with the tests of its command (`results`: their dialect), else with `silence` (seconds
    without output), else with what it expects of the machine ("reboot", "poweroff"), else when what it does is done. `fail`
    counts until then.
    """

    name: str
    prompt: str | None = None
    command: str | None = None
    keys: str | None = None
    qmp: str = ""
    success: tuple[str, ...] = ()
    fail: tuple[str, ...] = ()
    results: str = ""
    silence: float | None = None
    expect: str = ""
    timeout: float | None = None
    console: str = ""  # the name of a further console of the machine; empty for the first

    @property
    def typed(self) -> str | None:
        return self.command if self.keys is None else self.keys


def stops_at_reset(steps: Sequence[Step]) -> bool:
    """Tell whether a machine is to stand still when it resets or powers off, since a step follows on it."""
    return any(step.expect == "reboot" or (step.expect and number < len(steps)) for number, step in enumerate(steps, 1))


def consoles(steps: Sequence[Step]) -> tuple[str, ...]:
    """Return the names of the further consoles that steps have."""
    return tuple(dict.fromkeys(step.console for step in steps if step.console))


@dataclass(frozen=True)
class Rules:
    """Prompt, command and deciding patterns of a case. Patterns are RE2.

    With `results`, a case passes by the tests inside its command, and its success patterns have to match besides.

    With `steps`, each step has a prompt, a command and success patterns of its own; `fail` holds through all. The rules of one
    step have `part`: its own patterns search from the first key on, and `fail_always` are those of the whole case.
    """

    prompt: str | None = None
    command: str | None = None
    success: tuple[str, ...] = ()
    fail: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    match_all: bool = False
    from_prompt: bool = False
    group: Group | None = None
    results: str = ""  # the dialect of the results of the command's own tests; empty if the patterns alone decide
    markers: tuple[tuple[str, str], ...] = ()  # patterns of that dialect, if it is the case's own, by their keys
    resets: bool = False  # the guest may reset its machine, which then starts again
    time_stamps: bool = False  # the kernel is known to write time stamps
    steps: tuple[Step, ...] = ()
    keys: str | None = None  # typed as they are, in place of a command
    resets_freely: bool = False  # of a case in steps: also a reset that no step expects
    part: bool = False
    goes_on: bool = False  # another step follows
    fail_always: tuple[str, ...] = ()
    exits: tuple[tuple[str, str], ...] = ()  # (outcome, word) of the ends of QEMU that decide besides
    kernel_trouble: str = "warn"  # or "fail" or "ignore": effect of the kernel's reports short of a panic

    @property
    def typed(self) -> str | None:
        """Text to type: a command, or keys."""
        return self.command if self.keys is None else self.keys


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
    """A verdict and its reason. `limit`: name of the limit that ended the case. `block`: the lines of a panic. `by_tests`: the
    case fails by its subtests alone, and would pass if they had passed.
    """

    verdict: Verdict
    reason: str
    phase: Phase
    pattern: str | None = None
    excerpt: str | None = None
    limit: str | None = None
    block: tuple[str, ...] = ()
    by_tests: bool = False

    @property
    def good(self) -> bool:
        """Tell whether the ruling rests on a text that has to stand: a pass, or a skip by the same evidence."""
        return self.verdict in (Verdict.PASS, Verdict.SKIPPED)

    @property
    def weight(self) -> int:
        """The rank of a ruling among those of one case: a graver one replaces it while the output is drained."""
        return _WEIGHTS[self.verdict] - self.by_tests


_WEIGHTS: Final = {Verdict.PASS: 0, Verdict.SKIPPED: 1, Verdict.FAIL: 3, Verdict.PANIC: 4}
