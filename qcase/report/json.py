"""A run for programs: its results as one JSON document, and what happens in it as JSON lines.

    {"format": 1, "qcase": "0.1.0", "arch": …, "target": …, "seconds": …, "complete": true, "interrupted": false, "exit_code": 1,
     "cases": [{"case": "normal/smoke", "arch": "x86_64", "pipeline": "plain", "cache": "none", "verdict": "pass", …,
                "booted": {"kernel": "/…/kernel", "kernel_sha256": …, "accel": "tcg", "firmware": null, "firmware_sha256": null},
                "times": {"prepare": 0.01, "boot": 3.9, "command": 0.6, "total": 4.6},
                "limits": [{"name": "timeout", "seconds": 60, "used": 4.5, "ended": false}],
                "subtests": [{"name": …, "command": …, "status": "pass", "exit_status": 0, "seconds": 0.2, "reason": ""}]}]}

    {"event": "run-started", "time": 1700000000.0, "format": 1, …}
    {"event": "case-finished", "time": …, "case": "normal/smoke", "result": {…, as above}}

The document is replaced as each case ends, so that of a run that was killed with KILL it holds what had finished; `complete` is
false then. A line is one write, and is there when the event has been. All fields: `qcase.report.results`, `docs/reports.md`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from qcase import __version__, events
from qcase.errors import InfraError
from qcase.model import CaseResult, SubtestResult
from qcase.report import files

FORMAT = 1
_LARGE = 4 << 20  # characters; a larger document is replaced less often
_SHARE = 20  # … so that writing it takes a twentieth of the time at most


class JsonReport:
    """Listens to events; writes `path` whole or not at all. Raises `UsageError` at once where it could not."""

    def __init__(self, path: Path) -> None:
        files.check(path, "--json")
        self._path = path
        self._head: dict[str, Any] = {}
        self._began = 0.0
        self._cases: list[str] = []
        self._next = 0.0
        self._broken = False

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            self._head = run_document(event)
            self._began = time.monotonic()
            self._so_far()
        elif isinstance(event, events.CaseFinished):
            self._cases.append(_text(case_document(event.result)))
            self._so_far()
        elif isinstance(event, events.RunFinished):
            cases = [_text(case_document(result)) for result in event.results]
            files.write(self._path, self._whole(finish_document(event), cases), "--json")

    def _so_far(self) -> None:
        """What had finished, should we be killed. Not being able to write it is said at the end."""
        began = time.monotonic()
        if self._broken or files.special(self._path) or began < self._next:
            return
        tail = {"seconds": round(began - self._began, 3), "complete": False, "interrupted": False, "exit_code": None}
        text = self._whole(tail, self._cases)
        try:
            files.write(self._path, text, "--json")
        except InfraError:
            self._broken = True
        now = time.monotonic()
        self._next = now + _SHARE * (now - began) if len(text) > _LARGE else 0.0

    def _whole(self, tail: dict[str, Any], cases: Sequence[str]) -> str:
        head = _text({**self._head, **tail, "cases": []}).removesuffix("[]\n}")
        listed = ",\n".join(cases)
        return f"{head}[\n{listed}\n]\n}}\n" if cases else f"{head}[]\n}}\n"


class EventsReport:
    """Listens to events; writes a line for each to `path`. Raises `UsageError` at once where it could not.

    A line that cannot be written ends the file, and is said when the run ends: the cases go on.
    """

    def __init__(self, path: Path) -> None:
        files.check(path, "--events")
        self._path = path
        self._file: BinaryIO | None = None
        self._trouble = ""

    def __call__(self, event: events.Event) -> None:
        if not self._trouble:
            try:
                if self._file is None:
                    self._file = self._path.open("wb", buffering=0)
                line = json.dumps(event_document(event), ensure_ascii=False, separators=(",", ":")) + "\n"
                self._file.write(line.encode("utf-8", "backslashreplace"))
            except OSError as error:
                self._trouble = error.strerror or str(error)
        if isinstance(event, events.RunFinished) and self._trouble:
            raise InfraError(f"cannot be written: {self._trouble}", where=f"--events {self._path}")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def results_document(started: events.RunStarted, finished: events.RunFinished) -> dict[str, Any]:
    """The whole document."""
    cases = [case_document(result) for result in finished.results]
    return {**run_document(started), **finish_document(finished), "cases": cases}


def run_document(event: events.RunStarted) -> dict[str, Any]:
    """What is known of a run when it starts."""
    return {
        "format": FORMAT,
        "qcase": __version__,
        "arch": event.arch,
        "target": event.target,
        "accel": event.accel,
        "workspace": event.workspace,
        "started": round(event.at, 3),
        "jobs": event.jobs,
        "shard": event.shard,
        "partition": event.partition,
    }


def finish_document(event: events.RunFinished) -> dict[str, Any]:
    """What is known of it when it has ended."""
    return {
        "seconds": round(event.seconds, 3),
        "complete": True,
        "interrupted": event.interrupted,
        "exit_code": event.exit_code,
        "repeats": [asdict(rate) for rate in events.flake_rates(event.results)],
    }


def event_document(event: events.Event) -> dict[str, Any]:
    """An event as JSON: its name in `event`, when it was in `time`, and its fields."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(event).__name__).lower()
    special = _FIELDS.get(type(event))
    return {"event": name, "time": round(time.time(), 3), **(asdict(event) if special is None else special(event))}


_FIELDS: dict[type, Callable[[Any], dict[str, Any]]] = {
    events.RunStarted: lambda event: {**run_document(event), "cases": list(event.cases)},
    events.SubtestFinished: lambda event: {"case": event.case, "subtest": subtest_document(event.subtest)},
    events.Retried: lambda event: {"case": event.case, "attempt": event.attempt, "result": case_document(event.result)},
    events.CaseFinished: lambda event: {"case": event.result.label, "result": case_document(event.result)},
    events.RunFinished: finish_document,
}


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False)


def case_document(result: CaseResult) -> dict[str, Any]:
    return {
        "case": result.case,
        "repetition": result.repetition,
        "arch": result.arch,
        "path": result.path,
        "pipeline": result.pipeline,
        "cache": result.cache,
        "verdict": result.verdict,
        "flaky": result.flaky,
        "fault": result.fault,
        "phase": result.phase,
        "reason": result.reason,
        "pattern": result.pattern,
        "excerpt": result.excerpt,
        "details": result.details,
        "warnings": list(result.warnings),
        "times": {
            "prepare": _rounded(result.prepare),
            "boot": _rounded(result.boot),
            "command": _rounded(result.command),
            "total": _rounded(result.total),
        },
        "limits": [
            {"name": use.name, "seconds": use.limit, "used": _rounded(use.used), "ended": use.ended} for use in result.limits
        ],
        "subtests": [subtest_document(subtest) for subtest in result.subtests],
        "image": result.image,
        "booted": None if result.booted is None else asdict(result.booted),
        "console_log": result.console_log,
        "console_tail": list(result.console_tail),
        "earlier": [case_document(attempt) for attempt in result.earlier],
    }


def subtest_document(subtest: SubtestResult) -> dict[str, Any]:
    return {
        "name": subtest.name,
        "command": subtest.command,
        "status": subtest.status,
        "exit_status": subtest.exit_status,
        "seconds": _rounded(subtest.duration),
        "reason": subtest.reason,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
