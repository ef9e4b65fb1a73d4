"""What happens during a run, as values. The runner says them, listeners (terminal, JSON, tests) hear them.

RunStarted
  CaseStarted
    PhaseStarted(prepare) Missed* ImageReady PhaseStarted(boot) ConsoleLine* PhaseStarted(command) SubtestFinished*
  CaseFinished
RunFinished
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qcase.model import Arch, Cache, CaseResult, Phase, Pipeline, SubtestResult


@dataclass(frozen=True)
class RunStarted:
    arch: Arch
    target: str
    cases: tuple[str, ...]
    accel: str = "tcg"  # as it was asked for: tcg, kvm or auto


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


Event = (
    RunStarted
    | AccelChosen
    | CaseStarted
    | PhaseStarted
    | Missed
    | ImageReady
    | ConsoleLine
    | SubtestFinished
    | Warned
    | Progress
    | CaseFinished
    | RunFinished
)
Emit = Callable[[Event], None]
