"""Examine random guests, many at a time. A process that is spawned has to find these by the name of their module."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.fuzz.group import GroupGuest
from tests.fuzz.guest import ECHOES, Guest
from tests.fuzz.log import Script
from tests.fuzz.oracle_group import opinion
from tests.fuzz.play import Source, play

BATCH = 500


class Kind(StrEnum):
    """How a verdict and the oracle disagree. The first two are never right; a judge that is in doubt may wait for the end."""

    WRONG_PASS = "wrong pass"
    WRONG_FAIL = "wrong fail"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Disagreement:
    """One guest whose verdict the oracle does not accept. `echo`: how its shell echoes; "group" for a group."""

    seed: int
    kind: Kind
    echo: str
    complaint: str
    script: Script


@dataclass
class Batch:
    """Figures of some guests. `guests`: how many, by echo. `memory`: the most that the process has had, in KiB."""

    verdicts: Counter[str]
    guests: Counter[str]
    found: list[Disagreement]
    memory: int


def guest(seed: int, echoes: Sequence[str] = ECHOES) -> Source:
    """One guest in eight runs a group."""
    return GroupGuest(seed) if seed % 8 == 7 else Guest(seed, echoes)


def kind_of(complaint: str) -> Kind:
    """Classify what the oracle says of a verdict; a verdict that is right but late counts as undecided."""
    words = complaint.split()
    said = (
        words[3].rstrip(",")
        if words[0] == "command"
        else {"passes": "pass"}.get(words[2], words[2])
        if words[0] == "a"
        else words[0]
    )
    if complaint.endswith("only when the time was up") or said.rstrip(",") in ("timeout", "exited", "nothing", "verdict"):
        return Kind.UNDECIDED
    return Kind.WRONG_PASS if said.rstrip(",") == "pass" else Kind.WRONG_FAIL


def echo_of(source: Source) -> str:
    """Name the echo of a guest's shell."""
    if isinstance(source, GroupGuest):
        return "group"
    return source.shell_echo if isinstance(source, Guest) else "-"


def examine(seed: int, echoes: Sequence[str] = ECHOES) -> tuple[str, str, Script]:
    """One guest: its verdict, and what is wrong with it."""
    log, script = play(guest(seed, echoes))
    return log.verdict, opinion(log).complaint(), script


def batch(task: tuple[range, Sequence[str]]) -> Batch:
    seeds, echoes = task
    found = Batch(Counter(), Counter(), [], 0)
    for seed in seeds:
        source = guest(seed, echoes)
        echo = echo_of(source)
        log, script = play(source)
        found.verdicts[log.verdict] += 1
        found.guests[echo] += 1
        if complaint := opinion(log).complaint():
            found.found.append(Disagreement(seed, kind_of(complaint), echo, complaint, script))
    found.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


def batches(first: int, count: int, jobs: int, seconds: float | None, echoes: Sequence[str] = ECHOES) -> Iterator[Batch]:
    until = None if seconds is None else time.monotonic() + seconds
    parts = [(range(at, min(at + BATCH, first + count)), echoes) for at in range(first, first + count, BATCH)]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for done in pool.imap_unordered(batch, parts):
            yield done
            if until is not None and time.monotonic() > until:
                pool.terminate()
                return
