"""The times of a case on its console, and its limits of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qcase.console.rules import Limits, Rules
from qcase.model import LimitUse


@dataclass
class Times:
    """Times of what happened, in seconds of the caller's clock. `command_at`: the first line end was typed."""

    started: float
    last_data: float
    prompt_at: float | None = None
    command_at: float | None = None
    longest_silence: float = 0.0

    def heard(self, now: float) -> None:
        """Record that the guest wrote something."""
        self.longest_silence = max(self.longest_silence, now - self.last_data)
        self.last_data = now

    def begin_step(self) -> None:
        """Wait for the prompt of the next step, which types a command of its own."""
        self.prompt_at = self.command_at = None

    def deadlines(self, limits: Limits, *, group: bool, command_began: float | None) -> list[tuple[str, float, float]]:
        """Return the running limits as (name, time at which it is up, seconds), the earliest first.

        `group`: the limit of the command holds for each command of a group, of which the last one began then.
        """
        found = [("timeout", self.started, limits.whole), ("idle_timeout", self.last_data, limits.idle)]
        if self.prompt_at is None:
            found.append(("boot_timeout", self.started, limits.boot))
        elif not group:
            found.append(("command_timeout", self.prompt_at, limits.command))
        elif self.command_at is not None:
            found.append(("command_timeout", max(self.command_at, command_began or 0.0), limits.given_up))
        return sorted(((name, since + limit, limit) for name, since, limit in found if limit is not None), key=lambda x: x[1])

    def used(self, limits: Limits, end: float, longest: float | None, ended: str | None) -> tuple[LimitUse, ...]:
        """Return the used part of each limit, in the order of the documentation.

        `longest`: seconds of a group's longest command; `ended`: the limit that ended the case.
        """
        command = 0.0 if self.prompt_at is None else end - self.prompt_at
        if longest is not None:
            command = longest
        silence = max(self.longest_silence, end - self.last_data)
        boot = (end if self.prompt_at is None else self.prompt_at) - self.started
        uses = (
            ("timeout", limits.whole, end - self.started),
            ("boot_timeout", limits.boot, boot),
            ("command_timeout", limits.command, command),
            ("idle_timeout", limits.idle, silence),
        )
        return tuple(LimitUse(name, limit, used, name == ended) for name, limit, used in uses if limit is not None)


def limit_reached(
    name: str, limit: float, rules: Rules, running: str | None, missing: str, doubted: str, tests: str, *, booting: bool
) -> str:
    """Say in words what did not happen within a limit.

    `running`: the command of a group; `missing`: success patterns without a match; `doubted`: see `Doubts`; `tests`: how
    far those inside the command are.
    """
    if name == "idle_timeout":
        return f"nothing was printed for {limit:g} s" + (f"; {running} was running" if running else "")
    if rules.prompt is not None and booting:
        return f"the prompt {rules.prompt!r} did not come within {limit:g} s"
    if rules.group is not None and rules.prompt is None and booting:
        return f"nothing started the group's script within {limit:g} s, and there is no shell_prefix to type it at"
    if rules.group is not None and name == "command_timeout":
        return f"{running or 'the next command'} did not end within {limit:g} s, nor could the guest end it"
    if rules.group is not None:
        return f"the group did not end within {limit:g} s" + (f"; {running} was running" if running else "")
    if rules.exits:
        return f"QEMU did not end within {limit:g} s, as [qcase.exit] waits for" + (f": {tests}" if tests else "")
    if tests:
        return f"the tests did not end within {limit:g} s: {tests}"
    if doubted:
        return f"within {limit:g} s nothing told whether what matches {doubted!r} is echo or output"
    return f"no match of {missing} within {limit:g} s"


RESETS: Final = 3  # resets that do not count as a loop, where a case allows resets
RESET_BURST: Final = 0.25  # seconds within which several resets count as one; RESET_SILENCE if no output came in between
RESET_SILENCE: Final = 1.0


class Resets:
    """Counts the resets of a guest's machine. `expected`: resets that the case itself asks for."""

    def __init__(self, expected: int = 0) -> None:
        self._allowed = RESETS + expected
        self._count = 0
        self._at = float("-inf")
        self._banners = 0

    def note(self, now: float, last_data: float, *, burst: float = RESET_BURST, silence: float = RESET_SILENCE) -> bool:
        """Count a reset; False if it belongs to the one before: within `burst`, or within `silence` without output in between.

        After a reset that a PC's guest asked for, SeaBIOS finds that it has run before and asks for more resets, by each way that
        it knows: QEMU 7.2 reports two to six in a row, before the firmware prints anything (seen in a quarter of all reboots).
        """
        since = now - self._at
        if since < burst or (since < silence and last_data <= self._at):
            return False
        self._at = now
        self._count += 1
        return True

    def note_banner(self) -> None:
        """Count a banner of firmware, which comes again behind each reset."""
        self._banners += 1

    @property
    def too_many(self) -> int:
        """The number of resets if they are too many; else 0."""
        times = max(self._count, self._banners - 1)
        return times if times > self._allowed else 0
