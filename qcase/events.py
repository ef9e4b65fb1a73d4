"""What happens during a run, as values. The runner says them, listeners (terminal, JSON, tests) hear them.

RunStarted
  CaseStarted
    PhaseStarted(prepare) Missed* ImageReady PhaseStarted(boot) ConsoleLine* PhaseStarted(command) SubtestFinished* [Retried …]
  CaseFinished
RunFinished

Cases run at the same time, so those of one stand between those of others. `case` is what the case is called while it runs, see
`CaseResult.label`. What was not run has a CaseFinished alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qcase.model import Arch, Cache, CaseResult, Phase, Pipeline, SubtestResult, Verdict


@dataclass(frozen=True)
class RunStarted:
    """`cases`: the labels of all that is to run, in the order of the results. `at`: seconds since 1970. `workspace`: its folder.

    `shard`: which part of how many this is, as "2/5", and the fingerprint of the whole partition; empty without.
    """

    arch: Arch
    target: str
    cases: tuple[str, ...]
    accel: str = "tcg"  # as it was asked for: tcg, kvm or auto
    workspace: str = ""
    jobs: int = 1
    shard: str = ""
    partition: str = ""
    at: float = 0.0


@dataclass(frozen=True)
class AccelChosen:
    """What QEMU is run with from now on, where that was to be found out; `why` it is not KVM."""

    accel: str
    why: str = ""


@dataclass(frozen=True)
class CaseStarted:
    case: str


@dataclass(frozen=True)
class PhaseStarted:
    """A case enters a phase. `detail` says what is being done, e.g. "build c", "waiting for pid 71, which builds this image"."""

    case: str
    phase: Phase
    detail: str = ""


@dataclass(frozen=True)
class Missed:
    """Something that a case needs is not in the store and is built now. `what` names it; `reasons`: what changed, a line each."""

    case: str
    what: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ImageReady:
    """The image that QEMU will boot is there. `seconds` is the time that preparing it took."""

    case: str
    pipeline: Pipeline
    cache: Cache
    image: str
    seconds: float


@dataclass(frozen=True)
class ConsoleLine:
    """A whole line that the guest wrote, without escapes. Shown as the last sign of life of a running case."""

    case: str
    line: str


@dataclass(frozen=True)
class Retried:
    """An attempt did not pass, and the case begins anew. `attempt` counts from 1; it ended as `result` says."""

    case: str
    attempt: int
    result: CaseResult


@dataclass(frozen=True)
class SubtestFinished:
    case: str
    subtest: SubtestResult


@dataclass(frozen=True)
class Warned:
    """Something that did not change the result but that the user should know. `case` is empty where it concerns the run."""

    message: str
    case: str = ""


@dataclass(frozen=True)
class Progress:
    """Work outside any case that takes a while: an image is built, a guest is fetched."""

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
        """130 interrupted; else the gravest of the cases: 3 infrastructure before 2 configuration before 1 not passed."""
        return 130 if self.interrupted else max((result.fault.exit_code for result in self.results), default=0)


@dataclass(frozen=True)
class FlakeRate:
    """How often a case that ran several times did not pass at its first attempt."""

    case: str
    runs: int
    failed: int

    @property
    def rate(self) -> float:
        return self.failed / self.runs


def flake_rates(results: Sequence[CaseResult]) -> list[FlakeRate]:
    """Of every case that was asked for several times, the most often failed ones first."""
    counts: dict[str, list[bool]] = {}
    for result in results:
        if result.repetition and result.verdict is not Verdict.SKIPPED:
            counts.setdefault(result.case, []).append(not result.passed or result.flaky)
    rates = [FlakeRate(case, len(failed), sum(failed)) for case, failed in counts.items()]
    return sorted(rates, key=lambda rate: (-rate.rate, rate.case))


Event = (
    RunStarted
    | AccelChosen
    | CaseStarted
    | PhaseStarted
    | Missed
    | ImageReady
    | ConsoleLine
    | Retried
    | SubtestFinished
    | Warned
    | Progress
    | CaseFinished
    | RunFinished
)
Emit = Callable[[Event], None]


def unheard(*_: object) -> None:
    """A listener that does not listen."""


def one_at_a_time(emit: Emit) -> Emit:
    """`emit` for many threads: listeners need no locks of their own."""
    lock = threading.RLock()

    def locked(event: Event) -> None:
        with lock:
            emit(event)

    return locked
