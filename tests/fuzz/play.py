"""Play a guest against the judge, in simulated time."""

from __future__ import annotations

from typing import Protocol

from qcase.config.workspace_file import GroupedRunner
from qcase.console.group import Group
from qcase.console.judge import Judge
from qcase.console.rules import Limits, Rules
from tests.fuzz.log import Log, Script, Wants, Write

PATIENCE = 300.0  # simulated seconds after which a judge that has not ruled never will


class Source(Protocol):
    """A guest: what it writes next, and what it does with keys."""

    wants: Wants
    reset: bool  # its end is a reset of the machine

    def next_at(self) -> float | None: ...
    def write(self) -> Write | None:
        """The write that is due; None: the guest ends now."""
        ...

    def keys(self, data: bytes, now: float) -> None: ...


class Recorded:
    """A guest that does what a script says, whatever is typed."""

    def __init__(self, script: Script) -> None:
        self.wants = script.wants
        self.reset = script.reset
        self._writes = list(script.writes)
        self._ends = script.ends
        self._at = 0

    def next_at(self) -> float | None:
        return self._writes[self._at].at if self._at < len(self._writes) else self._ends

    def write(self) -> Write | None:
        if self._at >= len(self._writes):
            self._ends = None
            return None
        self._at += 1
        return self._writes[self._at - 1]

    def keys(self, data: bytes, now: float) -> None:
        pass


def group_of(wants: Wants) -> Group | None:
    if not wants.labels:
        return None
    runner = GroupedRunner()
    return Group(
        begin=runner.begin_marker,
        passed=runner.passed_marker,
        failed=runner.failed_marker,
        all_passed=runner.all_passed_marker,
        all_failed=runner.all_failed_marker,
        commands=wants.labels,
        labels=wants.labels,
        runner=runner.runner_name,
        word=wants.word,
    )


def judge_of(wants: Wants) -> Judge:
    rules = Rules(
        prompt=wants.prompt,
        command=wants.command,
        success=wants.success,
        fail=wants.fail,
        match_all=wants.match_all,
        from_prompt=wants.from_prompt,
        group=group_of(wants),
    )
    return Judge(rules, started=0.0, limits=Limits(whole=wants.whole, command=wants.command_limit, idle=wants.idle))


def play(guest: Source) -> tuple[Log, Script]:
    """Let the guest run until the judge rules. Returns what the judge saw, and a script that repeats it."""
    judge = judge_of(guest.wants)
    now = 0.0
    writes: list[Write] = []
    typed: list[tuple[float, bytes]] = []
    ends: float | None = None
    while judge.ruling is None:
        due, wake = guest.next_at(), judge.next_wake()
        times = [at for at in (due, wake) if at is not None]
        if not times or min(times) > PATIENCE:
            break
        now = max(now, min(times))
        if wake is not None and (due is None or wake <= due):
            judge.tick(now)
        else:
            write = guest.write()
            if write is None:
                ends = now
                judge.ended(now, "status 0", reset=guest.reset)
                break
            if write.data:
                writes.append(write)
                judge.feed(write.data, now)
        if keys := judge.input():
            typed.append((now, keys))
            guest.keys(keys, now)
    wants = guest.wants
    limits = [wants.whole]
    if wants.idle is not None:
        limits.append((writes[-1].at if writes else 0.0) + wants.idle)
    if wants.command_limit is not None and judge.prompt_at is not None:
        limits.append(judge.prompt_at + wants.command_limit)
    over = ends is not None or any(limit is not None and now >= limit - 1e-9 for limit in limits)
    verdict = "nothing" if judge.ruling is None else judge.ruling.verdict.value
    results = tuple(test.status.value for test in judge.subtests())
    reset = ends is not None and guest.reset
    log = Log(wants, tuple(writes), tuple(typed), verdict, now, over, results, reset)
    return log, Script(wants, tuple(writes), ends, reset)
