"""Shared data model of all modules: results and their parts. Frozen values without other behaviour. `kinds` has their words."""

from __future__ import annotations

from dataclasses import dataclass

from qcase.arch import Arch
from qcase.kinds import Cache as Cache
from qcase.kinds import Fault as Fault
from qcase.kinds import Phase as Phase
from qcase.kinds import Pipeline as Pipeline
from qcase.kinds import SubtestStatus as SubtestStatus
from qcase.kinds import Verdict as Verdict
from qcase.kinds import labelled as labelled


@dataclass(frozen=True)
class SubtestResult:
    """Result of one command of a grouped case, or of one test inside a command. `duration`: seconds between the arrival of its
    markers at the host, or since the result before it; None if it never ended.

    `command`: empty for a test inside a command. `output`: the last lines of a subtest that did not pass, after the match of a
    fail pattern if there is one. `known`: why a known failure is one, in one line. `nested`: the number of subtests right before
    it that are nested in it.
    """

    name: str
    command: str
    status: SubtestStatus
    exit_status: int | None = None
    duration: float | None = None
    reason: str = ""
    output: tuple[str, ...] = ()
    known: str = ""
    nested: int = 0


@dataclass(frozen=True)
class KnownFailure:
    """An entry of the known failures, as reports show it. `entry`: file and line. `test`: the glob of its tests; empty for a case
    as a whole. `until`: the last day on which it excuses, as `YYYY-MM-DD`; empty for no end.
    """

    entry: str
    reason: str
    test: str = ""
    link: str = ""
    until: str = ""

    @property
    def told(self) -> str:
        """The entry, in one line."""
        return f"{self.reason}{f' ({self.link})' if self.link else ''} [{self.entry}]"


@dataclass(frozen=True)
class LimitUse:
    """A timeout of a case and the time used of it, in seconds. `ended`: this timeout ended the case."""

    name: str
    limit: float
    used: float
    ended: bool = False


@dataclass(frozen=True)
class Booted:
    """The booted files with their sha256, and the accelerator ("tcg", "kvm").

    `template`: seconds of the boot of the machine's template, from which the case went on; None for a cold boot. `cold`: the
    reason for a cold boot, in a run with templates.
    """

    kernel: str
    kernel_sha256: str
    accel: str
    firmware: str | None = None
    firmware_sha256: str | None = None
    template: float | None = None
    cold: str = ""

    @property
    def origin(self) -> str:
        """Description of where the boot began, in one line; empty in a run without templates."""
        if self.template is not None:
            return f"from a template of {self.template:.2f} s"
        return f"booted cold: {self.cold}" if self.cold else ""


@dataclass(frozen=True)
class KernelBuildResult:
    """Result of one build of a kernel. `kernel`: the build group, or the case that it is for; `variant`: see `CaseResult`.

    `error`: empty for a kernel that was made. `first_error`: the first line of the compiler's error in its log. `details`: the
    last lines of the log, if it failed.
    """

    kernel: str
    arch: Arch
    seconds: float
    error: str = ""
    hint: str = ""
    first_error: str = ""
    log: str = ""
    details: str = ""
    variant: str = ""

    @property
    def label(self) -> str:
        """The kernel's name during the run, unique among architectures."""
        return labelled(self.kernel, self.variant)


@dataclass(frozen=True)
class NotRun:
    """A case that a run leaves out. `arches`: the architectures that it is for."""

    case: str
    arches: tuple[Arch, ...]
    why: str


@dataclass(frozen=True)
class KernelTrouble:
    """An error report of the guest's kernel, short of a panic. `line`: its main line without time stamp; `block`: all lines."""

    kind: str
    line: str
    block: tuple[str, ...]

    @property
    def told(self) -> str:
        """The warning, in one line."""
        return f"kernel trouble ({self.kind}): {self.line}"


@dataclass(frozen=True)
class CaseResult:
    """Result of one case. Times in seconds; None if the case did not reach the phase.

    `prepare`: from the start to an image that QEMU can boot. `boot`: from QEMU's start to the prompt (to the end, for a
    case without a command). `command`: from the prompt to the verdict.

    `by_tests`: the case would have passed if its failed subtests had. `unbuilt`: programs of a group did not build. `excused`:
    the verdict of a known failure without its entries. `known`: the entries that excused it, or subtests of it; `stale`: entries
    whose failure did not come, though what they name passed.

    `earlier`: the attempts before this one, which did not pass, first to last; `total` is the time of all. `repetition` counts
    from 1 if the run repeats each case, else it is 0. `path`: the case's folder, relative to the workspace; `config`: the
    name of its configuration in there. `variant`: the architecture if the run has several, else empty.
    """

    case: str
    arch: Arch
    verdict: Verdict
    fault: Fault
    reason: str = ""
    pipeline: Pipeline | None = None
    cache: Cache | None = None
    phase: Phase | None = None
    pattern: str | None = None
    excerpt: str | None = None
    prepare: float | None = None
    boot: float | None = None
    command: float | None = None
    total: float = 0.0
    subtests: tuple[SubtestResult, ...] = ()
    console_log: str | None = None
    console_tail: tuple[str, ...] = ()
    image: str | None = None
    details: str = ""  # output of a build or of QEMU, may have several lines
    warnings: tuple[str, ...] = ()
    kernel_trouble: tuple[KernelTrouble, ...] = ()
    limits: tuple[LimitUse, ...] = ()
    booted: Booted | None = None  # None if the case was not booted
    by_tests: bool = False
    unbuilt: bool = False
    excused: Verdict | None = None
    known: tuple[KnownFailure, ...] = ()
    stale: tuple[KnownFailure, ...] = ()
    earlier: tuple[CaseResult, ...] = ()
    repetition: int = 0
    path: str = ""
    config: str = ""
    variant: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict is Verdict.PASS

    @property
    def red(self) -> bool:
        """Tell whether the case makes the run fail: it neither passed nor failed as known, nor was it skipped as it may be."""
        return self.fault is not Fault.NONE or self.verdict not in (Verdict.PASS, Verdict.KNOWN_FAIL, Verdict.SKIPPED)

    @property
    def flaky(self) -> bool:
        """Tell whether the case passed, but not at the first attempt."""
        return self.passed and bool(self.earlier)

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """All warnings of the case, including kernel trouble. They do not change the verdict."""
        return (*self.warnings, *(trouble.told for trouble in self.kernel_trouble))

    @property
    def name(self) -> str:
        """The case's name, with `#<n>` for a repetition."""
        return f"{self.case}#{self.repetition}" if self.repetition else self.case

    @property
    def label(self) -> str:
        """The case's name during the run, unique among repetitions and architectures."""
        return labelled(self.name, self.variant)
