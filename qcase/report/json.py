"""The results of a run for programs: one JSON document, written when the run ends.

    {"format": 1, "qcase": "0.1.0", "arch": …, "target": …, "seconds": …, "interrupted": false, "exit_code": 1,
     "cases": [{"case": "normal/smoke", "arch": "x86_64", "pipeline": "plain", "cache": "none", "verdict": "pass", …,
                "booted": {"kernel": "/…/kernel", "kernel_sha256": …, "accel": "tcg", "firmware": null, "firmware_sha256": null},
                "times": {"prepare": 0.01, "boot": 3.9, "command": 0.6, "total": 4.6},
                "limits": [{"name": "timeout", "seconds": 60, "used": 4.5, "ended": false}],
                "subtests": [{"name": …, "command": …, "status": "pass", "exit_status": 0, "seconds": 0.2, "reason": ""}]}]}

Times are in seconds; null where a phase was not reached.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qcase import __version__, events
from qcase.errors import InfraError, UsageError
from qcase.model import CaseResult

FORMAT = 1


class JsonReport:
    """Listens to events; writes `path` whole or not at all. Raises `UsageError` at once where it could not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started: events.RunStarted | None = None
        if not path.parent.is_dir():
            raise UsageError("its folder does not exist", where=f"--json {path}", hint="make the folder first")
        if path.is_dir():
            raise UsageError("is a folder", where=f"--json {path}", hint="name a file in it")

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            self._started = event
        elif isinstance(event, events.RunFinished):
            self._write(event)

    def _write(self, event: events.RunFinished) -> None:
        assert self._started is not None
        document = {
            "format": FORMAT,
            "qcase": __version__,
            "arch": self._started.arch,
            "target": self._started.target,
            "seconds": round(event.seconds, 3),
            "interrupted": event.interrupted,
            "exit_code": event.exit_code,
            "cases": [case_document(result) for result in event.results],
        }
        # A device or a pipe is written to. As root, renaming over /dev/full would take the device away.
        special = self._path.exists() and not self._path.is_file()
        staged = self._path if special else self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            # A name that is not UTF-8 comes as lone surrogates: their escapes in Python are those of JSON.
            text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
            staged.write_text(text, encoding="utf-8", errors="backslashreplace")
            if not special:
                staged.replace(self._path)
        except OSError as error:
            if not special:
                staged.unlink(missing_ok=True)
            raise InfraError(f"cannot be written: {error.strerror}", where=f"--json {self._path}") from None


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
        "subtests": [
            {
                "name": subtest.name,
                "command": subtest.command,
                "status": subtest.status,
                "exit_status": subtest.exit_status,
                "seconds": _rounded(subtest.duration),
                "reason": subtest.reason,
            }
            for subtest in result.subtests
        ],
        "image": result.image,
        "booted": None if result.booted is None else asdict(result.booted),
        "console_log": result.console_log,
        "console_tail": list(result.console_tail),
        "earlier": [case_document(attempt) for attempt in result.earlier],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
