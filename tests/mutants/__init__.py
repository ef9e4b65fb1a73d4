"""Mutants: kernels, programs and suites that are broken on purpose, each with the one verdict that is right.

    kernels.toml     the test kernel (tests/kernel), one boot a mutant, all of an architecture in one `qcase run`
    programs.toml    programs on Linux, one boot a mutant, or several as the commands of a group; all in one `qcase run`
    suites.toml      workspaces, each with a `qcase run` of its own, since what is broken is how it is run

Each table is a list of `[[mutant]]`: `name`, `kind`, `broken` (how, in a sentence), `right` (what has to come of it), and what
it is made of. A mutant's name is stable: the pages of the documentation name it as their proof.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from qcase.arch import Arch

FOLDER = Path(__file__).parent

# The kinds that issue 13 lists, in its order; and others.
LISTED = (
    "typing",
    "panic",
    "unfinished",
    "torn",
    "provisional",
    "root-disk",
    "rootfs",
    "group",
    "c-build",
    "changed",
    "arches",
    "paused",
    "trouble",
    "network",
    "junit",
)
OTHERS = ("silence", "reset", "end", "echo", "prompt", "rubbish", "flood", "program", "suite", "limit")


@dataclass(frozen=True)
class Right:
    """What has to come of a mutant. Empty: it does not matter. `reason` and `warns` are words that stand in there.

    `subtests`: each command's status. `without`: a text that must not stand in QEMU's command line. Of a suite: `verdicts` by a
    case's name, or by its name and its architecture, and `exit_code`.
    """

    verdict: str = ""
    phase: str = ""
    fault: str = ""
    reason: str = ""
    warns: str = ""
    without: str = ""
    subtests: tuple[str, ...] = ()
    verdicts: Mapping[str, str] = field(default_factory=dict)
    exit_code: int = 0

    def wrong(self, case: Mapping[str, Any]) -> list[str]:
        """How a case of a report differs."""
        told = {"verdict": self.verdict, "phase": self.phase, "fault": self.fault}
        found = [f"{key} is {case[key]!r}, not {want!r}" for key, want in told.items() if want and want != case[key]]
        if self.reason not in case["reason"]:
            found.append(f"reason is {case['reason']!r}, without {self.reason!r}")
        if self.warns not in "\n".join(map(str, case["warnings"])):
            found.append(f"warnings are {case['warnings']}, without {self.warns!r}")
        statuses = tuple(subtest["status"] for subtest in case["subtests"])
        if self.subtests and self.subtests != statuses:
            found.append(f"subtests are {statuses}, not {self.subtests}")
        return found


@dataclass(frozen=True, eq=False, kw_only=True)
class Row:
    """What all tables have."""

    name: str
    kind: str
    broken: str
    right: Right


@dataclass(frozen=True, eq=False, kw_only=True)
class Mutant(Row):
    """A kernel or a program. `boot`: what the test kernel runs first. `case`: keys of its file. `files`: of its folder."""

    arch: Arch = Arch.AARCH64
    boot: str = ""
    types: str = ""
    case: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Suite(Row):
    """A workspace, and how it is run. `cases`: keys of their files, by name. `files`: what it has besides; see suites.toml.

    `guest`: keys of `[guest.<arch>]`. `room`: how much the guest may write. `unchanged`: files that are the same afterwards.
    """

    cases: Mapping[str, Mapping[str, Any]]
    linux: bool = False
    guest: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    edits: Mapping[str, str] = field(default_factory=dict)
    unchanged: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    room: str = ""


def mutants(table: str) -> tuple[Mutant, ...]:
    """The rows of `kernels` or `programs`."""
    return tuple(
        Mutant(
            **{
                **row,
                "arch": Arch(row.get("arch", Arch.AARCH64)),
                "boot": _spelled(row.get("boot", "")),
                "types": _spelled(row.get("types", "")) if table == "kernels" else row.get("types", ""),
                "files": {name: text.lstrip("\n") for name, text in row.get("files", {}).items()},
            }
        )
        for row in _rows(table)
    )


def suites() -> tuple[Suite, ...]:
    """The rows of `suites`."""
    lists = ("unchanged", "arguments")
    return tuple(Suite(**{**row, **{key: tuple(row.get(key, ())) for key in lists}}) for row in _rows("suites"))


def every() -> tuple[Row, ...]:
    """The rows of all tables."""
    return (*mutants("kernels"), *mutants("programs"), *suites())


def _rows(table: str) -> Iterator[dict[str, Any]]:
    data = tomli.loads((FOLDER / f"{table}.toml").read_text(encoding="utf-8"))
    assert set(data) == {"mutant"}, table
    for row in data["mutant"]:
        right = {**row["right"], "subtests": tuple(row["right"].get("subtests", ()))}
        yield {**row, "right": Right(**right)}


def _spelled(commands: str) -> str:
    """Commands of the test kernel, with the digits of each `{text}`, in which Python's escapes stand for their bytes."""

    def digits(found: re.Match[str]) -> str:
        return found[1].encode("latin-1").decode("unicode_escape").encode("latin-1").hex()

    return re.sub(r"\{([^}]*)\}", digits, commands)
