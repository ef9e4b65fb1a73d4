"""Closed sets of values that all modules share: pipelines, verdicts, phases, faults, states of the cache and of subtests.

The command line needs these alone; `model` has the results.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Pipeline(StrEnum):
    """Ways in which a case's files are made. Exactly one for each case."""

    PLAIN = "plain"
    GROUPED = "grouped"
    C = "c"
    SH = "sh"
    PYTHON = "python"
    RUST = "rust"
    KTEST = "ktest"

    @classmethod
    def _missing_(cls, value: object) -> Pipeline | None:
        """Return the pipeline of a plug-in, by its name: one object for each name. It is no member of the iteration."""
        if not isinstance(value, str) or re.fullmatch("[a-z][a-z0-9_-]*", value) is None:
            return None
        other = str.__new__(cls, value)
        other._name_ = value
        other._value_ = value
        return cls._value2member_map_.setdefault(value, other)  # type: ignore[return-value]


class Verdict(StrEnum):
    """The outcome of a case, in one word."""

    PASS = "pass"  # noqa: S105 - not a password
    KNOWN_FAIL = "known-fail"  # what was wrong is written down as known
    FAIL = "fail"
    PANIC = "panic"
    TIMEOUT = "timeout"
    EXITED = "exited"
    BUILD_ERROR = "build-error"
    SKIPPED = "skipped"
    ERROR = "error"


class Phase(StrEnum):
    """Phases of a case, in order."""

    PREPARE = "prepare"
    BOOT = "boot"
    COMMAND = "command"


class Fault(StrEnum):
    """Owner of the fault, for a verdict other than `pass`; it decides the exit code."""

    NONE = "none"
    CASE = "case"
    CONFIG = "config"
    INFRA = "infra"

    @property
    def exit_code(self) -> int:
        return {Fault.NONE: 0, Fault.CASE: 1, Fault.CONFIG: 2, Fault.INFRA: 3}[self]


class Cache(StrEnum):
    """Origin of a case's image: the store or a build. `none`: a plain case boots the base image, nothing is looked up."""

    HIT = "hit"
    MISS = "miss"
    NONE = "none"


class SubtestStatus(StrEnum):
    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    KNOWN_FAIL = "known-fail"  # it failed, which is written down as known
    SKIP = "skip"  # an inner test that says why it did not run
    TODO = "todo"  # an inner test that is known not to work yet; it decides nothing
    BROKEN = "broken"  # began and never ended: the guest panicked, hung or went away
    NOT_RUN = "not-run"


def labelled(name: str, variant: str) -> str:
    """Return the label of a case: its name, with `@<architecture>` if the run has several architectures. Labels are unique."""
    return f"{name}@{variant}" if variant else name
