"""Last result of each case, with its durations.

    <workspace>/target/qcase/last-run.json
        {"format": 1, "runs": {"x86_64 x86_64-unknown-none": {"normal/smoke": {"verdict": "pass", "prepare": 0.002, "boot": 3.4,
                                                                              "command": 0.2, "total": 3.6, "at": 1700000000}}}}

Written at the end of each run: a case that ran replaces its own entry, all other entries stay. So `--failed` still includes a
case that failed the day before yesterday and was not run since. The file affects only the selection and the order of cases: if it
is missing or broken, no results are known.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcase import events, parsing
from qcase.arch import Arch
from qcase.host import beneath
from qcase.host.files import write_aside
from qcase.host.workspace_folders import own_folder
from qcase.model import CaseResult, Verdict
from qcase.suite import known_failures
from qcase.suite.cases import BrokenCase, Case

HISTORY_FORMAT = 1
_TESTS = 1_000  # maximum number of tests inside a case that are remembered
_EXCUSES = 1_000  # maximum number of failed tests of a case that are remembered
_PATIENCE = 10.0  # seconds for another run of this workspace to write its own results


@dataclass(frozen=True)
class Remembered:
    """Last result of one case. Times in seconds; None for a phase that was not reached."""

    verdict: Verdict
    prepare: float | None = None
    boot: float | None = None
    command: float | None = None
    total: float = 0.0
    at: float = 0.0  # when it ended, in seconds since 1970
    excuses: tuple[tuple[str, tuple[str, ...]], ...] = ()  # the known failures that would excuse it, see `known_failures.wanted`
    tests: tuple[str, ...] = ()  # the tests inside, where one can be run alone

    @property
    def passed(self) -> bool:
        return self.verdict is Verdict.PASS

    @property
    def red(self) -> bool:
        """Tell whether the case made its run fail."""
        return self.verdict not in (Verdict.PASS, Verdict.KNOWN_FAIL)

    @property
    def in_guest(self) -> float | None:
        """Time in seconds that counts against a case's `timeout`; None if the guest reached no verdict."""
        return None if self.boot is None or self.verdict is Verdict.TIMEOUT else self.boot + (self.command or 0.0)


def place(workspace: Path) -> Path:
    return own_folder(workspace) / "last-run.json"


def recall(workspace: Path, arch: Arch, target: str) -> Mapping[str, Remembered]:
    """Return the last results of an architecture's and a target's cases, by display name; empty if none are known."""
    known = _read(place(workspace)).get(_run(arch, target), {})
    found = {}
    for case, facts in known.items():
        with contextlib.suppress(TypeError, ValueError, AttributeError):
            times = {name: facts.get(name) for name in ("prepare", "boot", "command")}
            found[case] = Remembered(
                Verdict(facts["verdict"]),
                **{name: None if value is None else float(value) for name, value in times.items()},
                total=float(facts.get("total", 0.0)),
                at=float(facts.get("at", 0.0)),
                excuses=tuple((str(test), tuple(map(str, words))) for test, words in facts.get("excuses", ())),
                tests=tuple(map(str, facts.get("tests", ()))),
            )
    return found


class Memory:
    """Event listener that writes the results of a run's cases at its end. It never fails a run: it warns.

    `other_names`: further names of cases, by display name. A run of several groups has other display names than one of a group.
    `selectable`: the display names of the cases of which one test can be run alone.
    """

    def __init__(
        self,
        workspace: Path,
        targets: Mapping[Arch, str],
        warn: Callable[[str], None],
        other_names: Mapping[str, Sequence[str]] | None = None,
        selectable: Collection[str] = (),
    ) -> None:
        self._selectable = selectable
        self._path = place(workspace)
        self._other_names = other_names or {}
        self._targets = targets
        self._warn = warn

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.RunFinished) and event.results:
            try:
                self._write(event.results)
            except OSError as error:
                self._warn(f"what became of the cases could not be noted for the next run: {error}")

    def _write(self, results: tuple[CaseResult, ...]) -> None:
        from filelock import FileLock

        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._path.with_suffix(".lock"), timeout=_PATIENCE):
            runs = _read(self._path)
            for (arch, name), result in _by_case(results).items():
                known = runs.setdefault(_run(arch, self._targets[arch]), {})
                facts = _facts(result, tests=name in self._selectable)
                known |= dict.fromkeys((name, *self._other_names.get(name, ())), facts)
            write_aside(self._path, json.dumps({"format": HISTORY_FORMAT, "runs": runs}, separators=(",", ":")).encode())


def other_names(cases: Sequence[Case | BrokenCase]) -> dict[str, tuple[str, ...]]:
    """Return the further names under which a run remembers its cases, without those that mean several cases of the run."""
    found = {case.display_name: case.other_names for case in cases if isinstance(case, Case)}
    count = Counter(name for names in found.values() for name in names)
    return {shown: tuple(name for name in names if count[name] == 1 and name not in found) for shown, names in found.items()}


def _by_case(results: Sequence[CaseResult]) -> dict[tuple[Arch, str], CaseResult]:
    """Return the result of each case; for repetitions, the first of the gravest: red, a known failure, a pass."""
    found: dict[tuple[Arch, str], CaseResult] = {}
    for result in results:
        name = result.arch, result.case.removesuffix(f"#{result.repetition}") if result.repetition else result.case
        if (result.red or result.verdict is not Verdict.SKIPPED) and (
            name not in found or _gravity(found[name]) < _gravity(result)
        ):
            found[name] = result
    return found


def _gravity(result: CaseResult) -> int:
    return 2 if result.red else int(result.verdict is Verdict.KNOWN_FAIL)


def _run(arch: Arch, target: str) -> str:
    return f"{arch.value} {target}"


def selectable(cases: Sequence[Case | BrokenCase]) -> frozenset[str]:
    """Return the display names of the cases of which one test can be run alone, without those that are run so."""
    return frozenset(case.display_name for case in cases if isinstance(case, Case) and case.config.select and not case.test)


def _facts(result: CaseResult, *, tests: bool) -> dict[str, Any]:
    times = {name: getattr(result, name) for name in ("prepare", "boot", "command", "total")}
    rounded = {name: None if value is None else round(value, 3) for name, value in times.items()}
    excuses = {"excuses": found} if (found := known_failures.wanted(result)[:_EXCUSES]) else {}
    names = {"tests": [one.name for one in result.subtests[:_TESTS]]} if tests and result.subtests else {}
    return {"verdict": result.verdict.value, **rounded, "at": round(time.time(), 1), **excuses, **names}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Read the runs in the file; empty if it is missing, broken or of another format."""
    try:
        document = parsing.from_json(beneath.read(path))
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict) or document.get("format") != HISTORY_FORMAT or not isinstance(document.get("runs"), dict):
        return {}
    return {name: known for name, known in document["runs"].items() if isinstance(known, dict)}
