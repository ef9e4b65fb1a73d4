"""Events of a run, as values. The runner emits them to listeners (terminal, JSON, tests).

RunStarted
  CaseStarted
    PhaseStarted(prepare) Missed* ImageReady PhaseStarted(boot) ConsoleLine* PhaseStarted(command) SubtestFinished* [Retried …]
  CaseFinished
RunFinished

A KernelBuildStarted and its KernelBuildFinished stand anywhere behind the first CaseStarted.

Cases run in parallel, so their events are interleaved. `case` is the label of the case, see `CaseResult.label`. A case that was
not run has only a CaseFinished.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qcase.arch import Arch
from qcase.model import Cache, CaseResult, KernelBuildResult, NotRun, Phase, Pipeline, SubtestResult, Verdict, labelled


@dataclass(frozen=True)
class RunStarted:
    """Start of a run. `cases`: the labels of all cases, in the order of the results. `at`: seconds since 1970. `workspace`: its
    folder. `targets`: all architectures and their targets if there are several; `arch` and `target` are the first.

    `shard`: the part of the partition that this run executes, as "2/5"; `partition`: the fingerprint of the whole partition.
    Both are empty without shards. `not_run`: the cases of these groups that a run without names leaves out.
    """

    arch: Arch
    target: str
    cases: tuple[str, ...]
    accel: str = "tcg"  # as configured: tcg, kvm or auto
    workspace: str = ""
    jobs: int = 1
    shard: str = ""
    partition: str = ""
    at: float = 0.0
    targets: tuple[tuple[Arch, str], ...] = ()
    not_run: tuple[NotRun, ...] = ()

    @property
    def every(self) -> tuple[tuple[Arch, str], ...]:
        """All architectures, each with its target."""
        return self.targets or ((self.arch, self.target),)


@dataclass(frozen=True)
class AccelChosen:
    """Result of `accel = "auto"`: QEMU's accelerator from now on. `why`: the reason why KVM does not work."""

    accel: str
    why: str = ""


@dataclass(frozen=True)
class CaseStarted:
    case: str


@dataclass(frozen=True)
class PhaseStarted:
    """A case enters a phase. `detail`: the current work, e.g. "build c", "waiting for pid 71, which builds this image"."""

    case: str
    phase: Phase
    detail: str = ""


@dataclass(frozen=True)
class Missed:
    """A cache miss: an entry of a case is not in the store, and is built now. `what`: its name; `reasons`: one change a line."""

    case: str
    what: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ImageReady:
    """The disk image of a case is ready for boot. `seconds`: duration of the preparation."""

    case: str
    pipeline: Pipeline
    cache: Cache
    image: str
    seconds: float


@dataclass(frozen=True)
class KernelBuildStarted:
    """A command begins to build a kernel, for one case or for the cases of a build group. `kernel`: its label, see
    `KernelBuildResult`.
    """

    kernel: str


@dataclass(frozen=True)
class KernelBuildFinished:
    """The build of a kernel has ended. Its time is no part of the times of cases."""

    build: KernelBuildResult


@dataclass(frozen=True)
class ConsoleLine:
    """A complete line of the guest's console, without escapes. The terminal shows it as the last output of a running case."""

    case: str
    line: str


@dataclass(frozen=True)
class Retried:
    """An attempt did not pass, and the case starts again. `attempt` counts from 1; `result` is the result of that attempt."""

    case: str
    attempt: int
    result: CaseResult


@dataclass(frozen=True)
class SubtestFinished:
    case: str
    subtest: SubtestResult


@dataclass(frozen=True)
class Warned:
    """A warning for the user that does not change the result. `case` is empty for a warning about the whole run."""

    message: str
    case: str = ""


@dataclass(frozen=True)
class Progress:
    """Progress of long work outside any case, e.g. the build of an image or the download of a guest."""

    message: str


@dataclass(frozen=True)
class CaseFinished:
    result: CaseResult


@dataclass(frozen=True)
class RunFinished:
    results: tuple[CaseResult, ...]
    seconds: float
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """The exit code of the run: 130 if interrupted, else the highest of the cases: 3 infrastructure, 2 configuration, 1 not
        passed.
        """
        return 130 if self.interrupted else max((result.fault.exit_code for result in self.results), default=0)


@dataclass(frozen=True)
class FlakeRate:
    """Flake rate of a repeated case: `failed` of `runs` repetitions did not pass at the first attempt, and `known` others failed
    as is known.
    """

    case: str
    runs: int
    failed: int
    known: int = 0

    @property
    def rate(self) -> float:
        return self.failed / self.runs


def flake_rates(results: Sequence[CaseResult]) -> list[FlakeRate]:
    """Return the flake rates of all repeated cases, the highest first."""
    counts: dict[str, list[CaseResult]] = {}
    for result in results:
        if result.repetition and result.verdict is not Verdict.SKIPPED:
            counts.setdefault(labelled(result.case, result.variant), []).append(result)
    rates = [
        FlakeRate(
            case,
            len(found),
            sum(one.red or bool(one.earlier) for one in found),
            sum(one.verdict is Verdict.KNOWN_FAIL and not one.earlier for one in found),
        )
        for case, found in counts.items()
    ]
    return sorted(rates, key=lambda rate: (-rate.rate, rate.case))


def stale(results: Sequence[CaseResult]) -> list[str]:
    """Return the known failures that passed and that excused nothing in another repetition, each with its case, in one line."""
    used = {(result.case, result.variant, entry) for result in results for entry in result.known}
    found = [(result.case, result.variant, entry) for result in results for entry in result.stale]
    return [
        f"{labelled(case, variant)}{f', {entry.test}' if entry.test else ''} [{entry.entry}]"
        for case, variant, entry in dict.fromkeys(found)
        if (case, variant, entry) not in used
    ]


Event = (
    RunStarted
    | AccelChosen
    | CaseStarted
    | PhaseStarted
    | Missed
    | ImageReady
    | KernelBuildStarted
    | KernelBuildFinished
    | ConsoleLine
    | Retried
    | SubtestFinished
    | Warned
    | Progress
    | CaseFinished
    | RunFinished
)
Emit = Callable[[Event], None]


def ignore(*_: object) -> None:
    """Drop an event: the listener for runs without one."""


def one_at_a_time(emit: Emit) -> Emit:
    """Return a thread-safe `emit`: a lock serialises the events, so that listeners need no locks of their own."""
    lock = threading.RLock()

    def locked(event: Event) -> None:
        with lock:
            emit(event)

    return locked


def of_variant(emit: Emit, variant: str) -> Emit:
    """Return an `emit` for the events of one of several architectures: it replaces case names by labels."""

    def renamed(event: Any) -> None:
        if case := getattr(event, "case", ""):
            event = replace(event, case=labelled(case, variant))
        if isinstance(event, KernelBuildStarted):
            event = replace(event, kernel=labelled(event.kernel, variant))
        elif isinstance(event, KernelBuildFinished):
            event = replace(event, build=replace(event.build, variant=variant))
        elif isinstance(event, Retried):
            event = replace(event, result=replace(event.result, variant=variant))
        emit(event)

    return renamed if variant else emit
