"""Typed model of the results document of a run, its schema, and its loader. JUnit and HTML are rendered from it.

New fields may be added at any time, and readers ignore unknown fields. A field that is removed or changes its meaning requires a
new `format`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from qcase import parsing
from qcase.arch import Arch
from qcase.errors import UsageError
from qcase.model import Cache, Fault, Phase, Pipeline, SubtestStatus, Verdict, labelled

RESULTS_FORMAT = 1


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class Times(_Document):
    """Seconds; null where a phase was not reached. `total` is that of all attempts."""

    prepare: float | None
    boot: float | None
    command: float | None
    total: float


class Subtest(_Document):
    """A command of a grouped case, or a test inside a command, which has an empty `command`; names of nested tests are joined by
    `/`. `known`: why a `known-fail` is one. `output`: the last lines that it printed; empty for one that passed.
    """

    name: str
    command: str
    status: SubtestStatus
    exit_status: int | None
    seconds: float | None
    reason: str
    known: str = ""
    output: tuple[str, ...] = ()


class Limit(_Document):
    """A limit of time, and how near the case came."""

    name: str
    seconds: float
    used: float | None
    ended: bool

    @property
    def shown(self) -> str:
        """Text such as `boot_timeout 4.5 of 30 s`, with a note if this limit ended the case."""
        used = min(self.used or 0.0, self.seconds)
        return f"{self.name} {used:.3g} of {self.seconds:g} s{', which ended it' if self.ended else ''}"


class Trouble(_Document):
    """A report of the guest's kernel about itself, short of a panic."""

    kind: str
    line: str
    block: tuple[str, ...]


class Boot(_Document):
    """Files and arguments that QEMU was given to boot."""

    kernel: str
    kernel_sha256: str
    accel: str
    firmware: str | None = None
    firmware_sha256: str | None = None
    template: float | None = None
    cold: str = ""


class Known(_Document):
    """An entry of the known failures: its file and line, the glob of its tests (empty for a whole case), and its last day."""

    entry: str
    reason: str
    test: str = ""
    link: str = ""
    until: str = ""

    @property
    def told(self) -> str:
        return f"{self.reason}{f' ({self.link})' if self.link else ''} [{self.entry}]"


class CaseReport(_Document):
    """One case, or one repetition of it, or an attempt at it that did not pass (in `earlier`).

    `excused`: the verdict of a `known-fail` without its entries. `known`: the entries that excused it, or subtests of it.
    `stale`: entries that name what passed. `variant`: the architecture where the run has several, else empty.
    """

    case: str
    repetition: int = 0
    variant: str = ""
    arch: Arch
    path: str = ""
    config: str = ""
    pipeline: Pipeline | None
    cache: Cache | None
    verdict: Verdict
    flaky: bool = False
    fault: Fault
    phase: Phase | None
    excused: Verdict | None = None
    known: tuple[Known, ...] = ()
    stale: tuple[Known, ...] = ()
    reason: str
    pattern: str | None
    excerpt: str | None
    details: str
    warnings: tuple[str, ...]
    kernel_trouble: tuple[Trouble, ...] = ()
    times: Times
    subtests: tuple[Subtest, ...]
    limits: tuple[Limit, ...] = ()
    image: str | None
    booted: Boot | None = None
    console_log: str | None
    console_tail: tuple[str, ...]
    earlier: tuple[CaseReport, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.case}#{self.repetition}" if self.repetition else self.case

    @property
    def label(self) -> str:
        return labelled(self.name, self.variant)

    @property
    def red(self) -> bool:
        """Tell whether the case made the run fail."""
        return self.fault is not Fault.NONE or self.verdict not in (Verdict.PASS, Verdict.KNOWN_FAIL, Verdict.SKIPPED)

    @property
    def word(self) -> str:
        """The verdict, or `flaky`."""
        return "flaky" if self.flaky else self.verdict.value


class KernelBuild(_Document):
    """The build of a kernel, for a build group or for one case (`kernel`). `error` is empty for one that was built.

    `first_error`: the first line of the compiler's error. `details`: the last lines of the log, if it failed. The times of cases
    do not include it.
    """

    kernel: str
    arch: Arch
    variant: str = ""
    seconds: float
    error: str = ""
    hint: str = ""
    first_error: str = ""
    log: str = ""
    details: str = ""

    @property
    def label(self) -> str:
        return labelled(self.kernel, self.variant)


class Rate(_Document):
    """Rate at which a case that ran several times did not pass at its first attempt; `known`: it failed as is known."""

    case: str
    runs: int
    failed: int
    known: int = 0


class LeftOut(_Document):
    """A case that the run left out, and why. `arches`: the architectures that it is for."""

    case: str
    arches: tuple[Arch, ...]
    why: str


class Results(_Document):
    """A run. `complete`: it ended in its own way; else it was killed, and `cases` are those that had finished.

    `shard` is "2/5", and `partition` the same for all shards of one whole; both empty without. `started`: seconds since 1970.
    `targets`: the target of each architecture of the run; `arch` and `target` are the first. `wanted`: the labels of all cases
    that were to run. `not_run`: the cases of the same groups that a run without names left out.
    """

    format: Literal[1]
    qcase: str
    arch: Arch
    target: str
    targets: dict[Arch, str] = {}
    accel: str = ""
    workspace: str = ""
    started: float = 0.0
    jobs: int = 1
    shard: str = ""
    partition: str = ""
    seconds: float
    complete: bool = True
    interrupted: bool
    exit_code: int | None
    wanted: tuple[str, ...] = ()
    not_run: tuple[LeftOut, ...] = ()
    kernels: tuple[KernelBuild, ...] = ()
    cases: tuple[CaseReport, ...]
    repeats: tuple[Rate, ...] = ()

    @property
    def every(self) -> str:
        """All architectures, each with its target, as text."""
        return "; ".join(f"{arch}, {target}" for arch, target in (self.targets or {self.arch: self.target}).items())

    @property
    def unfinished(self) -> tuple[Unfinished, ...]:
        """Cases of the run without a result, because the run was interrupted or killed."""
        done = {case.label for case in self.cases}
        found = []
        for label in self.wanted:
            if label not in done:
                name, _, variant = label.rpartition("@") if len(self.targets) > 1 else (label, "", "")
                found.append(Unfinished(label, name, Arch(variant) if variant else self.arch))
        return tuple(found)

    @property
    def broken_off(self) -> str:
        """Reason why the run ended before its cases did; empty if it completed."""
        if self.complete and not self.interrupted:
            return ""
        return f"the run was {'interrupted' if self.interrupted else 'killed'}"


class Unfinished(NamedTuple):
    """A case without a result. `name`: with its repetition, and without its architecture."""

    label: str
    name: str
    arch: Arch


def load(path: Path) -> Results:
    """Read results that `--json` wrote. Raises `UsageError` for a file without results, or with another format."""
    try:
        document = parsing.from_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValueError as error:
        raise UsageError(
            f"is no JSON: {error}", where=str(path), hint="give it what `qcase run --json results.json` wrote"
        ) from None
    if isinstance(document, dict) and isinstance(document.get("format"), int) and document["format"] != RESULTS_FORMAT:
        raise UsageError(f"has the format {document['format']}; this version knows {RESULTS_FORMAT}", where=str(path))
    try:
        return of_document(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        hint = "give it what `qcase run --json results.json` wrote"
        raise UsageError(f"are no results of a run: {place}: {first['msg']}", where=str(path), hint=hint) from None


def whole(parts: Sequence[tuple[Path, Results]]) -> Results:
    """Merge the results of all shards of a run. Raises `UsageError` for shards of different runs, or if one is missing."""
    first_path, first = parts[0]
    if len(parts) == 1:
        return first
    by_number: dict[int, Path] = {}
    count = 0
    for path, part in parts:
        if not part.shard:
            hint = "results of one run need no others; several are put together where each is of a --shard"
            raise UsageError("are not those of a shard", where=str(path), hint=hint)
        for what, ours, others in (
            ("architecture", part.arch, first.arch),
            ("target", part.target, first.target),
            ("targets", part.every, first.every),
            ("partition", part.partition, first.partition),
        ):
            if ours != others:
                hint = "all shards need the same cases, the same N and the same --times" if what == "partition" else ""
                raise UsageError(f"are of the {what} {ours}, {first_path} of {others}", where=str(path), hint=hint)
        number, count = (int(number) for number in part.shard.split("/"))
        if number in by_number:
            raise UsageError(f"are of shard {part.shard}, as are {by_number[number]}", where=str(path))
        by_number[number] = path
    if missing := [f"{number}/{count}" for number in range(1, count + 1) if number not in by_number]:
        hint = "what did not run must not look as if it had passed"
        raise UsageError(f"no results of shard {', '.join(missing)} are given", hint=hint)
    runs = [part for _, part in parts]
    codes = [run.exit_code for run in runs if run.exit_code is not None]
    return first.model_copy(
        update={
            "started": min(run.started for run in runs),
            "jobs": sum(run.jobs for run in runs),
            "shard": "",
            "partition": "",
            "seconds": max(run.seconds for run in runs),
            "complete": all(run.complete for run in runs),
            "interrupted": any(run.interrupted for run in runs),
            "exit_code": max(codes) if len(codes) == len(runs) else None,
            "wanted": tuple(label for run in runs for label in run.wanted),
            "kernels": tuple(build for run in runs for build in run.kernels),
            "cases": tuple(sorted((case for run in runs for case in run.cases), key=_order)),
            "repeats": tuple(rate for run in runs for rate in run.repeats),
        }
    )


def _order(case: CaseReport) -> tuple[str, str, int]:
    return case.case, case.variant, case.repetition


def of_document(document: Any) -> Results:
    """Return the results in a JSON document; text that is not UTF-8 is replaced. Raises `ValidationError`."""
    return Results.model_validate(_clean(document))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode() if not value.isascii() else value
    if isinstance(value, dict):
        return {key: _clean(member) for key, member in value.items()}
    return [_clean(member) for member in value] if isinstance(value, list) else value


# --- schemas --------------------------------------------------------------------------------------------------------------

SCHEMAS = ("results", "events")

_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_TEXTS = {"type": "array", "items": _TEXT}
_CASE = {"$ref": "#/$defs/CaseReport"}
# Fields of each event besides `event` and `time`, by the event's name.
_EVENTS: dict[str, dict[str, Any]] = {
    "run-started": {
        "format": {"const": RESULTS_FORMAT},
        "targets": {"type": "object", "additionalProperties": _TEXT},
        **dict.fromkeys(("qcase", "arch", "target", "accel", "workspace", "shard", "partition"), _TEXT),
        "started": _NUMBER,
        "jobs": {"type": "integer"},
        "cases": _TEXTS,
        "not_run": {"type": "array", "items": {"$ref": "#/$defs/LeftOut"}},
    },
    "accel-chosen": {"accel": _TEXT, "why": _TEXT},
    "case-started": {"case": _TEXT},
    "phase-started": {"case": _TEXT, "phase": {"enum": [phase.value for phase in Phase]}, "detail": _TEXT},
    "missed": {"case": _TEXT, "what": _TEXT, "reasons": _TEXTS},
    "image-ready": {**dict.fromkeys(("case", "pipeline", "cache", "image"), _TEXT), "seconds": _NUMBER},
    "kernel-build-started": {"kernel": _TEXT},
    "kernel-build-finished": {"build": {"$ref": "#/$defs/KernelBuild"}},
    "console-line": {"case": _TEXT, "line": _TEXT},
    "subtest-finished": {"case": _TEXT, "subtest": {"$ref": "#/$defs/Subtest"}},
    "retried": {"case": _TEXT, "attempt": {"type": "integer"}, "result": _CASE},
    "warned": {"message": _TEXT, "case": _TEXT},
    "progress": {"message": _TEXT},
    "case-finished": {"case": _TEXT, "result": _CASE},
    "run-finished": {
        "seconds": _NUMBER,
        "complete": {"const": True},
        "interrupted": {"type": "boolean"},
        "exit_code": {"type": "integer"},
        "repeats": {"type": "array", "items": {"$ref": "#/$defs/Rate"}},
    },
}


def json_schema(name: str) -> str:
    """Return the JSON Schema of the results, or of one line of the events."""
    whole = Results.model_json_schema()
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    if name == "results":
        return json.dumps({**dialect, **whole, "title": "qcase run --json"}, indent=2) + "\n"
    lines = [
        {
            "title": event,
            "type": "object",
            "properties": {"event": {"const": event}, "time": _NUMBER, **fields},
            "required": ["event", "time", *fields],
        }
        for event, fields in _EVENTS.items()
    ]
    document = {**dialect, "title": "a line of qcase run --events", "oneOf": lines, "$defs": whole["$defs"]}
    return json.dumps(document, indent=2) + "\n"
