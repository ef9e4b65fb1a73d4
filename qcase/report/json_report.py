"""Machine-readable reports of a run: its results as one JSON document, and its events as JSON lines.

    {"format": 1, "qcase": "0.1.0", "arch": …, "target": …, "seconds": …, "complete": true, "interrupted": false, "exit_code": 1,
     "cases": [{"case": "normal/smoke", "arch": "x86_64", "pipeline": "plain", "cache": "none", "verdict": "pass", …,
                "booted": {"kernel": "/…/kernel", "kernel_sha256": …, "accel": "tcg", "firmware": null, "firmware_sha256": null,
                           "template": null, "cold": ""},
                "times": {"prepare": 0.01, "boot": 3.9, "command": 0.6, "total": 4.6},
                "limits": [{"name": "timeout", "seconds": 60, "used": 4.5, "ended": false}],
                "subtests": [{"name": …, "command": …, "status": "pass", "exit_status": 0, "seconds": 0.2, "reason": "",
                              "output": []}]}]}

    {"event": "run-started", "time": 1700000000.0, "format": 1, …}
    {"event": "case-finished", "time": …, "case": "normal/smoke", "result": {…, as above}}

The document is replaced as each case ends, so after a KILL it holds the cases that had finished; `complete` is false then. Each
line is one write, made when its event happens. All fields: `qcase.report.results`, `docs/reports.md`.
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
from qcase.model import CaseResult, KernelBuildResult, SubtestResult
from qcase.report import inert, output_file
from qcase.report.results import RESULTS_FORMAT

_LARGE = 4 << 20  # characters; a larger document is replaced less often
_SHARE = 20  # … so that writing it takes at most a twentieth of the time


class JsonReport:
    """Listens to events; writes `path` whole or not at all. Raises `UsageError` at once if it could not."""

    def __init__(self, path: Path) -> None:
        output_file.check(path, "--json")
        self._path = path
        self._head: dict[str, Any] = {}
        self._began = 0.0
        self._cases: list[str] = []
        self._kernels: list[dict[str, Any]] = []
        self._next = 0.0
        self._broken = False

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            self._head = run_document(event)
            self._began = time.monotonic()
            self._so_far()
        elif isinstance(event, events.KernelBuildFinished):
            self._kernels.append(kernel_document(event.build))
        elif isinstance(event, events.CaseFinished):
            self._cases.append(_text(case_document(event.result)))
            self._so_far()
        elif isinstance(event, events.RunFinished):
            cases = [_text(case_document(result)) for result in event.results]
            output_file.write(self._path, self._whole(finish_document(event), cases), "--json")

    def _so_far(self) -> None:
        """Write the cases finished so far, in case qcase is killed. An error here is reported by the last write."""
        began = time.monotonic()
        if self._broken or output_file.special(self._path) or began < self._next:
            return
        text = self._whole(unfinished_document(began - self._began), self._cases)
        try:
            output_file.write(self._path, text, "--json")
        except InfraError:
            self._broken = True
        now = time.monotonic()
        self._next = now + _SHARE * (now - began) if len(text) > _LARGE else 0.0

    def _whole(self, tail: dict[str, Any], cases: Sequence[str]) -> str:
        head = _text({**self._head, **tail, "kernels": self._kernels, "cases": []}).removesuffix("[]\n}")
        listed = ",\n".join(cases)
        return f"{head}[\n{listed}\n]\n}}\n" if cases else f"{head}[]\n}}\n"


class EventsReport:
    """Listens to events; writes a line for each to `path`. Raises `UsageError` at once if it could not.

    After a failed write no more lines are written. The error is raised when the run ends: the cases go on.
    """

    def __init__(self, path: Path) -> None:
        output_file.check(path, "--events")
        self._path = path
        self._file: BinaryIO | None = None
        self._trouble: OSError | None = None

    def __call__(self, event: events.Event) -> None:
        if self._trouble is None:
            try:
                if self._file is None:
                    self._file = output_file.opened(self._path)
                line = inert.json(json.dumps(event_document(event), ensure_ascii=False, separators=(",", ":"))) + "\n"
                self._file.write(line.encode("utf-8", "backslashreplace"))
            except OSError as error:
                self._trouble = error
        if isinstance(event, events.RunFinished) and self._trouble is not None:
            if isinstance(self._trouble, BrokenPipeError):
                raise self._trouble
            raise InfraError(f"cannot be written: {self._trouble.strerror}", where=f"--events {self._path}")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def results_document(
    started: events.RunStarted, finished: events.RunFinished, kernels: Sequence[KernelBuildResult] = ()
) -> dict[str, Any]:
    """Return the whole document."""
    cases = [case_document(result) for result in finished.results]
    return {**run_document(started), **finish_document(finished), "kernels": [*map(kernel_document, kernels)], "cases": cases}


def kernel_document(build: KernelBuildResult) -> dict[str, Any]:
    return {**asdict(build), "seconds": round(build.seconds, 3)}


def run_document(event: events.RunStarted) -> dict[str, Any]:
    """Return the facts of a run that are known when it starts."""
    return {
        "format": RESULTS_FORMAT,
        "qcase": __version__,
        "arch": event.arch,
        "target": event.target,
        "targets": dict(event.every),
        "accel": event.accel,
        "workspace": event.workspace,
        "started": round(event.at, 3),
        "jobs": event.jobs,
        "shard": event.shard,
        "partition": event.partition,
        "wanted": list(event.cases),
        "not_run": [{"case": one.case, "arches": list(one.arches), "why": one.why} for one in event.not_run],
    }


def unfinished_document(seconds: float) -> dict[str, Any]:
    """Return the end fields of an unfinished run. They stay in the document if qcase is killed."""
    return {"seconds": round(seconds, 3), "complete": False, "interrupted": False, "exit_code": None}


def finish_document(event: events.RunFinished) -> dict[str, Any]:
    """Return the facts of a run that are known when it has ended."""
    return {
        "seconds": round(event.seconds, 3),
        "complete": True,
        "interrupted": event.interrupted,
        "exit_code": event.exit_code,
        "repeats": [asdict(rate) for rate in events.flake_rates(event.results)],
    }


def event_document(event: events.Event) -> dict[str, Any]:
    """Return an event as JSON: its name in `event`, its time (seconds since 1970) in `time`, and its fields."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(event).__name__).lower()
    special = _FIELDS.get(type(event))
    return {"event": name, "time": round(time.time(), 3), **(asdict(event) if special is None else special(event))}


_FIELDS: dict[type, Callable[[Any], dict[str, Any]]] = {
    events.RunStarted: lambda event: {**run_document(event), "cases": list(event.cases)},  # `wanted` is the name in results
    events.SubtestFinished: lambda event: {"case": event.case, "subtest": subtest_document(event.subtest)},
    events.KernelBuildFinished: lambda event: {"build": kernel_document(event.build)},
    events.Retried: lambda event: {"case": event.case, "attempt": event.attempt, "result": case_document(event.result)},
    events.CaseFinished: lambda event: {"case": event.result.label, "result": case_document(event.result)},
    events.RunFinished: finish_document,
}


def _text(document: dict[str, Any]) -> str:
    return inert.json(json.dumps(document, indent=1, ensure_ascii=False))


def case_document(result: CaseResult) -> dict[str, Any]:
    return {
        "case": result.case,
        "repetition": result.repetition,
        "variant": result.variant,
        "arch": result.arch,
        "path": result.path,
        "config": result.config,
        "pipeline": result.pipeline,
        "cache": result.cache,
        "verdict": result.verdict,
        "flaky": result.flaky,
        "fault": result.fault,
        "phase": result.phase,
        "excused": result.excused,
        "known": [asdict(entry) for entry in result.known],
        "stale": [asdict(entry) for entry in result.stale],
        "reason": result.reason,
        "pattern": result.pattern,
        "excerpt": result.excerpt,
        "details": result.details,
        "warnings": list(result.all_warnings),
        "kernel_trouble": [
            {"kind": trouble.kind, "line": trouble.line, "block": list(trouble.block)} for trouble in result.kernel_trouble
        ],
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
        "known": subtest.known,
        "output": list(subtest.output),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
