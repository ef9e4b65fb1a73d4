"""The words that every room shares: architectures, pipelines, verdicts, results. Frozen values, no behaviour beyond them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Arch(StrEnum):
    """A guest architecture. What differs between architectures is here, and nowhere else."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"
    RISCV64 = "riscv64"
    LOONGARCH64 = "loongarch64"

    @property
    def qemu(self) -> str:
        """The name of QEMU's program."""
        return f"qemu-system-{self.value}"

    @property
    def machine(self) -> str:
        """QEMU's `-machine` where a case names none."""
        return "q35" if self is Arch.X86_64 else "virt"

    @property
    def default_target(self) -> str:
        """The Rust target triple that axbuild uses for kernels of this architecture."""
        return {
            Arch.X86_64: "x86_64-unknown-none",
            Arch.AARCH64: "aarch64-unknown-none-softfloat",
            Arch.RISCV64: "riscv64gc-unknown-none-elf",
            Arch.LOONGARCH64: "loongarch64-unknown-none-softfloat",
        }[self]

    @property
    def musl_loader(self) -> str:
        """The file name of musl's dynamic loader."""
        return f"ld-musl-{self.value}.so.1"


class Pipeline(StrEnum):
    """How a case's files are made. Exactly one for each case."""

    PLAIN = "plain"
    GROUPED = "grouped"
    C = "c"
    SH = "sh"
    PYTHON = "python"
    RUST = "rust"


class Verdict(StrEnum):
    """The outcome of a case, in one word."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    PANIC = "panic"
    TIMEOUT = "timeout"
    EXITED = "exited"
    BUILD_ERROR = "build-error"
    SKIPPED = "skipped"
    ERROR = "error"


class Phase(StrEnum):
    """Where a case is, in order."""

    PREPARE = "prepare"
    BOOT = "boot"
    COMMAND = "command"


class Fault(StrEnum):
    """Whose fault a verdict other than `pass` is; it decides the exit code."""

    NONE = "none"
    CASE = "case"
    CONFIG = "config"
    INFRA = "infra"

    @property
    def exit_code(self) -> int:
        return {Fault.NONE: 0, Fault.CASE: 1, Fault.CONFIG: 2, Fault.INFRA: 3}[self]


class Cache(StrEnum):
    """Whether a case's image came from the store. `none`: a plain case boots the base image, nothing is looked up."""

    HIT = "hit"
    MISS = "miss"
    NONE = "none"


class SubtestStatus(StrEnum):
    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    BROKEN = "broken"  # began and never ended: the guest panicked, hung or went away
    NOT_RUN = "not-run"


@dataclass(frozen=True)
class SubtestResult:
    """One command of a grouped case. `duration` in seconds, as the host saw the markers arrive; None where it never ended."""

    name: str
    command: str
    status: SubtestStatus
    exit_status: int | None = None
    duration: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class LimitUse:
    """A limit of time that a case had, and how near it came. Seconds; `ended`: it is what ended the case."""

    name: str
    limit: float
    used: float
    ended: bool = False


@dataclass(frozen=True)
class Booted:
    """What QEMU was given to boot: files with their sha256, and by what it was run ("tcg", "kvm")."""

    kernel: str
    kernel_sha256: str
    accel: str
    firmware: str | None = None
    firmware_sha256: str | None = None


@dataclass(frozen=True)
class CaseResult:
    """What became of one case. Times in seconds; None where the phase was not reached.

    `prepare`: from the start to an image that QEMU can boot. `boot`: from QEMU's start to the prompt (to the end, for a
    case without a command). `command`: from the prompt to the verdict.

    `earlier`: the attempts before this one, which did not pass, first to last; `total` is the time of all. `repetition` counts
    from 1 where each case was asked for several times, else it is 0. `path`: the case's folder, relative to the workspace.
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
    details: str = ""  # what a build or QEMU said, more than one line
    warnings: tuple[str, ...] = ()
    limits: tuple[LimitUse, ...] = ()
    booted: Booted | None = None  # None where it did not come to that
    earlier: tuple[CaseResult, ...] = ()
    repetition: int = 0
    path: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict is Verdict.PASS

    @property
    def flaky(self) -> bool:
        """It passed, and not at the first attempt."""
        return self.passed and bool(self.earlier)

    @property
    def label(self) -> str:
        """What the case is called while it runs: two repetitions of one case are told apart."""
        return f"{self.case}#{self.repetition}" if self.repetition else self.case
