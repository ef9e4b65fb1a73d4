"""The log of one guest: each write with its author, what was typed, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class By(IntEnum):
    """The author of a write. The judge does not know it; the oracle does."""

    OUT = 0  # programs, services, firmware, the kernel without time stamps
    KERNEL = 1  # one line of a kernel's log, with its time stamp
    PROMPT = 2
    ECHO = 3
    PANIC = 4  # lines of a kernel's panic
    CRATE = 5  # the panic of a Rust program's thread
    SCRIPT = 6  # a group's script


@dataclass(frozen=True)
class Write:
    at: float
    by: By
    data: bytes


@dataclass(frozen=True)
class Wants:
    """The rules of a case, without qcase's types. `whole`, `command_limit` and `idle` are limits in seconds."""

    prompt: str | None = None
    command: str | None = None
    success: tuple[str, ...] = ()
    fail: tuple[str, ...] = ()
    match_all: bool = False
    from_prompt: bool = False
    labels: tuple[str, ...] = ()  # of a group's commands
    word: str = ""  # the secret that is told to the group's script
    whole: float | None = None
    command_limit: float | None = None
    idle: float | None = None


@dataclass(frozen=True)
class Script:
    """All that a guest will write, at fixed times, and when it ends (None: never). Enough to play it again."""

    wants: Wants
    writes: tuple[Write, ...]
    ends: float | None = None
    reset: bool = False  # it ends because the machine was reset


@dataclass(frozen=True)
class Log:
    """The part of a script that the judge read before it ruled.

    `results`: of a group's commands, in one word each.
    `over`: the case came to its end (limit or exit), so that what stood on the console counts.
    """

    wants: Wants
    writes: tuple[Write, ...]
    typed: tuple[tuple[float, bytes], ...]
    verdict: str
    at: float
    over: bool
    results: tuple[str, ...] = ()
    reset: bool = False
