"""Findings of `qcase lint`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from qcase.errors import ConfigError, Problem, QcaseError


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    severity: Severity
    check: str
    problem: Problem

    def __str__(self) -> str:
        return f"{self.severity}: {self.problem}"


def error(check: str, problem: Problem) -> Finding:
    return Finding(Severity.ERROR, check, problem)


def warning(check: str, problem: Problem) -> Finding:
    return Finding(Severity.WARNING, check, problem)


def problems(fault: QcaseError, where: str) -> Iterator[Problem]:
    """Yield all problems of an error. `where`: the place of one that names none."""
    if isinstance(fault, ConfigError):
        yield from fault.problems
    else:
        yield Problem(fault.what, fault.where or where, hint=fault.hint)
