"""What became of each case when it last ran, and how long it took.

    <workspace>/target/qcase/last-run.json
        {"format": 1, "runs": {"x86_64 x86_64-unknown-none": {"normal/smoke": {"verdict": "pass", "prepare": 0.002, "boot": 3.4,
                                                                              "command": 0.2, "total": 3.6, "at": 1700000000}}}}

Written at the end of each run: a case that ran replaces what was known of it, all others keep what they have. So `--failed` still
means a case that failed the day before yesterday and was not run since. Nothing rests on this file but a choice and an order:
where it is missing or broken, nothing is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcase import events
from qcase.model import Arch, CaseResult, Verdict

FORMAT = 1
_PATIENCE = 10.0  # seconds for another run of this workspace to write its own results


@dataclass(frozen=True)
class Remembered:
    """One case, as it was when it last ran. Times in seconds; None for a phase that was not reached."""

    verdict: Verdict
    prepare: float | None = None
    boot: float | None = None
    command: float | None = None
    total: float = 0.0
    at: float = 0.0  # when it ended, in seconds since 1970

    @property
    def passed(self) -> bool:
        return self.verdict is Verdict.PASS

    @property
    def in_guest(self) -> float | None:
        """The time that a case's `timeout` is about; None where it did not come to a verdict in the guest."""
        return None if self.boot is None or self.verdict is Verdict.TIMEOUT else self.boot + (self.command or 0.0)


def place(workspace: Path) -> Path:
    return workspace / "target" / "qcase" / "last-run.json"


def recall(workspace: Path, arch: Arch, target: str) -> Mapping[str, Remembered]:
    """What is known of the cases of an architecture and a target, by display name; empty where nothing is."""
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
            )
    return found


class Memory:
    """Listens to events, and writes down at the end of a run what became of its cases. It never fails a run: it warns."""

    def __init__(self, workspace: Path, target: str, warn: Callable[[str], None]) -> None:
        self._path = place(workspace)
        self._target = target
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
            for name, result in _by_case(results).items():
                runs.setdefault(_run(result.arch, self._target), {})[name] = _facts(result)
            staged = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
            try:
                staged.write_text(json.dumps({"format": FORMAT, "runs": runs}, separators=(",", ":")), encoding="utf-8")
                staged.replace(self._path)
            except OSError:
                staged.unlink(missing_ok=True)
                raise


def _by_case(results: Sequence[CaseResult]) -> dict[str, CaseResult]:
    """What became of each case; of its repetitions the first that did not pass, where there is one."""
    found: dict[str, CaseResult] = {}
    for result in results:
        name = result.case.removesuffix(f"#{result.repetition}") if result.repetition else result.case
        if result.verdict is not Verdict.SKIPPED and (name not in found or found[name].passed):
            found[name] = result
    return found


def _run(arch: Arch, target: str) -> str:
    return f"{arch.value} {target}"


def _facts(result: CaseResult) -> dict[str, Any]:
    times = {name: getattr(result, name) for name in ("prepare", "boot", "command", "total")}
    rounded = {name: None if value is None else round(value, 3) for name, value in times.items()}
    return {"verdict": result.verdict.value, **rounded, "at": round(time.time(), 1)}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The runs in the file; none where it is missing, broken or of another format."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict) or document.get("format") != FORMAT or not isinstance(document.get("runs"), dict):
        return {}
    return {name: known for name, known in document["runs"].items() if isinstance(known, dict)}
