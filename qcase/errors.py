"""Errors, by whose fault they are.

Three kinds of "not green" never mix. The user erred (`UsageError`, `ConfigError`: exit code 2), our infrastructure broke
(`InfraError`: exit code 3), or the case's own sources do not build (`BuildError`: the verdict `build-error`, exit code 1). A
kernel under test that cannot be had is nobody's fault but its authors' (`KernelError`: the verdict `error`, or `build-error` for
the kernel of one case, exit code 1).
A case that fails in the guest is no exception at all, it is a verdict.

An error says what, where, and what to do. It is raised deep and printed once, by `qcase.cli`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class QcaseError(Exception):
    """An error with a message for a person: `what`, `where` it is (file, key, command), and a `hint` what to do."""

    exit_code = 3

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class UsageError(QcaseError):
    """The command line asks for something that is not there or makes no sense."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One fault in a configuration file. `line` counts from 1; 0 where it is not known."""

    what: str
    file: str
    line: int = 0
    key: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        key = f" {self.key}:" if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}:{key} {self.what}{hint}"


class ConfigError(QcaseError):
    """A configuration file is wrong. All that is wrong with it is in `problems`."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class InfraError(QcaseError):
    """Our own infrastructure broke: the engine, QEMU, the disk, the package index."""

    exit_code = 3


class StoppedError(InfraError):
    """Work was not begun or not finished, because the whole run ends: an interrupt."""


class BuildError(QcaseError):
    """The case's own sources do not build. `log` is the tail of what the build said."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "", log: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.log = log


class KernelError(QcaseError):
    """The kernel that a build group tests cannot be had: its build fails, or leaves something else. `log`: what it said last.

    `of_case`: the kernel is the case's own, and its sources are those of the case.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "", log: str = "", of_case: bool = False) -> None:
        super().__init__(what, where=where, hint=hint)
        self.log = log
        self.of_case = of_case
