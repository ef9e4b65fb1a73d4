"""Models of `qemu-<arch>.toml`."""

from __future__ import annotations

import itertools
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import ConfigDict, Field, Strict

from qcase.config import ktest_table, steps_table
from qcase.config.exit_table import ExitTable
from qcase.config.fields import (
    Build,
    BuildSystem,
    Cargo,
    GuestFolder,
    KernelTroubleIs,
    Match,
    MatchFrom,
    Model,
    Network,
    PackageName,
    PathString,
    Pattern,
    PlacePattern,
    Results,
    Strings,
    VariableName,
    Words,
    matching,
)
from qcase.config.known_file import Known, Tables
from qcase.config.matrix import MatrixRow
from qcase.config.services_table import HostHttpServer, ServiceTables
from qcase.config.skip_table import Requirements, SkipTable
from qcase.config.steps_table import ShellCheckSteps, StepConfig, Steps, decoded, texts
from qcase.errors import Problem

# ---- qemu-<arch>.toml


class Wrong(Protocol):
    """Notes a fault of a case's file: the key's place in it, the fault, and a hint."""

    def __call__(self, loc: tuple[str | int, ...], what: str, hint: str = "") -> None: ...


@dataclass(frozen=True)
class Placeholders:
    """Values of `${workspace}`, `${workspaceFolder}`, `${package}`, `${tmpDir}`, `${env:NAME}` and `${env:NAME:-default}`, and
    `more` by name.

    `package` is axbuild's kernel crate; in a workspace without one, the workspace itself. `environment`: None for a case that may
    not read the environment.
    """

    workspace: Path
    package: Path | None = None
    tmp_dir: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    environment: Mapping[str, str] | None = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)

    def replace(self, text: str) -> str:
        """Replace the placeholders of `text` in one pass; an unset variable becomes empty, an unknown placeholder stays."""
        return _PLACEHOLDER.sub(self._value, text) if "${" in text else text

    def _value(self, match: re.Match[str]) -> str:
        name = match[1]
        if name.startswith("env:"):
            variable, _, default = name.removeprefix("env:").partition(":-")
            return (self.environment or {}).get(variable, "") or default
        if name in self.more:
            return self.more[name]
        values = {"tmpDir": self.tmp_dir, "package": self.package or self.workspace}
        values |= {"workspace": self.workspace, "workspaceFolder": self.workspace}
        return str(values.get(name, match[0]))


_PLACEHOLDER = re.compile(r"\$\{(env:[^}]+|[A-Za-z_]+)\}")


def smp(args: Sequence[str]) -> int:
    """Return the number of processors in QEMU's arguments: `-smp 4`, `-smp cpus=4,…`, `-smp sockets=2,cores=2`. Default: 1."""
    value = ""
    for option, argument in itertools.pairwise(args):
        if option in ("-smp", "--smp"):
            value = argument  # QEMU takes the last one
    if not value:
        return 1
    counts: dict[str, int] = {}
    for part in value.split(","):
        key, _, text = part.rpartition("=")
        if re.fullmatch(r"0*[1-9][0-9]{0,5}", text):
            counts[key or "cpus"] = int(text)
    if "cpus" in counts:
        return counts["cpus"]
    return math.prod(counts.get(level, 1) for level in ("drawers", "books", "sockets", "dies", "clusters", "cores", "threads"))


def memory(args: Sequence[str]) -> int:
    """Return the bytes of memory in QEMU's arguments: `-m 512`, `-m 1G`, `-m size=2G,slots=2`. Default: QEMU's 128 MiB."""
    value = ""
    for option, argument in itertools.pairwise(args):
        if option in ("-m", "--m"):
            value = argument
    for part in value.split(","):
        if found := re.fullmatch(r"(?:size=)?([0-9]{1,12})([bkmgtBKMGT]?)", part):
            return int(found[1]) << {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40}[found[2].lower() or "m"]
    return 128 << 20


@dataclass(frozen=True)
class CaseConfig:
    """Content of one `qemu-<arch>.toml`: placeholders are replaced, patterns are known to compile.

    The four timeouts in seconds, before any scale; None for none. `reset`: the guest may reset its machine. `branch`: the case
    may go on from a template of its machine. `network` and `kernel_trouble`: None leaves the choice to `[run]`. `rootfs`: a name
    in `[guest.<arch>] disks`, or a value of `[guest.<arch>] rootfs`; None for the image that the drive names.

    `results`: the dialect in which the command's own tests tell their results, "markers" for the case's own `markers` (each as
    `<key>\\t<pattern>`); empty if the patterns alone decide.

    `steps_as_json`: the steps of a case that has some, see `steps`.

    `services`: of the host, each as `services_table.Service.text`. `smp` and `memory`: the number of processors and the bytes in
    `args`. `retries`: the number of further attempts for a case that does not pass. `cargo_options`: for the build in Rust;
    `cmake`, `meson`, `configure`, `make`: for builds in C. `build_system`: one of several that sources in C have, if chosen.
    `install`: additional files of those builds to install, each as `<folder>\\t<pattern>`. `preserve_commands`: a subcase that
    runs alone runs with all commands of its group.
    `matrix`: the machines of the case, each as `<name>\\0<argument>\\0…`; empty for `args` alone. `profiles`: other files for
    some subcases, each as `<name>\\0<prefix of the subcases>\\0<file>`.
    `kernel_env`: variables of the build of the case's kernel, each as `<name>=<value>`. `ktest`: the case is its kernel's own
    tests; `own_kernel`: command, output and place of its build, empty for that of the guest, and `kernel_args` words for
    the command.
    `exits`: what an end of QEMU says, each as `<outcome>\\t<word>`.
    """

    args: tuple[str, ...] = ()
    shell_prefix: str | None = None
    shell_init_cmd: str | None = None
    test_commands: tuple[str, ...] = ()
    success_regex: tuple[str, ...] = ()
    fail_regex: tuple[str, ...] = ()
    timeout: float | None = None
    match: Match = "any"
    match_from: MatchFrom = "start"
    results: str = ""
    markers: tuple[str, ...] = ()
    steps_as_json: tuple[str, ...] = ()
    network: Network | None = None
    kernel_trouble: KernelTroubleIs | None = None
    boot_timeout: float | None = None
    command_timeout: float | None = None
    idle_timeout: float | None = None
    reset: bool = False
    branch: bool = True
    tags: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    rootfs: str | None = None
    retries: int = 0
    build: Build = "named"
    cargo: Cargo = "build"
    cargo_options: tuple[str, ...] = ()
    cmake: tuple[str, ...] = ()
    meson: tuple[str, ...] = ()
    configure: tuple[str, ...] = ()
    make: tuple[str, ...] = ()
    build_system: tuple[BuildSystem, ...] = ()
    install: tuple[str, ...] = ()
    preserve_commands: bool = False
    matrix: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    kernel_env: tuple[str, ...] = ()
    ktest: bool = False
    own_kernel: tuple[str, ...] = ()
    kernel_args: tuple[str, ...] = ()
    exits: tuple[str, ...] = ()
    smp: int = 1
    to_bin: bool = False
    uefi: bool = False
    memory: int = 128 << 20
    services: tuple[str, ...] = ()
    known: tuple[Known, ...] = ()
    requires: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    skip_status: tuple[int, ...] = ()
    select: str = ""
    warnings: tuple[Problem, ...] = ()

    @property
    def steps(self) -> tuple[StepConfig, ...]:
        return tuple(map(decoded, self.steps_as_json))

    @property
    def stops_at_reset(self) -> bool:
        """Tell whether the machine is to stand still when it resets or powers off, since a step follows on it."""
        return steps_table.stops_at_reset(self.steps)

    @property
    def first_prompt(self) -> str | None:
        """The prompt that the guest shows first; None if the case waits for none."""
        return next((step.prompt for step in self.steps if step.prompt is not None), self.shell_prefix)

    @property
    def is_grouped(self) -> bool:
        return bool(self.test_commands)


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Markers(Model):
    """Table `[qcase.markers]`: patterns (RE2) for the lines of tests inside the command."""

    begin: Pattern | None = None
    passed: Pattern | None = Field(default=None, alias="pass")
    fail: Pattern | None = None
    skip: Pattern | None = None
    summary: Pattern | None = None


class QcaseTable(Model):
    """Table `[qcase]`.

    Timeouts in seconds, 0 for none. `boot_timeout`: until the prompt; `command_timeout`: from there, or for each command of a
    group; `idle_timeout`: without a byte from the guest. `reset`: the guest may reset its machine, which otherwise ends QEMU.
    `branch`: the case may go on from a template of its machine. `build`: "named" for the subcases that a command names, or
    "all". `cargo_options`, `cmake`, `meson`, `configure`, `make`: additions to the command lines of builds. `build_system`: one
    of several that sources in C have. `install`: files of a build in C, by the folder in the guest.
    """

    match: Match = "any"
    match_from: MatchFrom = "start"
    results: Results | None = None
    network: Network | None = None
    kernel_trouble: KernelTroubleIs | None = None
    boot_timeout: Seconds = 0.0
    command_timeout: Seconds = 0.0
    idle_timeout: Seconds = 0.0
    reset: bool = False
    branch: bool = True
    tags: Annotated[tuple[Annotated[str, matching(r"\S+", "must be a word without blanks")], ...], Strict(False)] = ()
    packages: Annotated[tuple[PackageName, ...], Strict(False)] = ()
    rootfs: PathString | None = None
    retries: Annotated[int, Field(ge=0)] = 0
    build: Build = "named"
    cargo: Cargo = "build"
    cargo_options: Words = ()
    cmake: Words = ()
    meson: Words = ()
    configure: Words = ()
    make: Words = ()
    build_system: BuildSystem | None = None
    install: dict[GuestFolder, Annotated[tuple[PlacePattern, ...], Strict(False)]] = Field(default={})
    pipeline: ktest_table.Named | None = None
    kernel_env: dict[VariableName, str] = Field(default={})
    kernel: ktest_table.KernelTable = ktest_table.KernelTable()
    matrix: Annotated[tuple[MatrixRow, ...], Strict(False)] = ()
    services: ServiceTables = ()
    markers: _Markers = _Markers()
    steps: Steps = ()
    known: Tables = ()
    requires: Requirements = ()
    skip: SkipTable = SkipTable()
    exit: ExitTable = ExitTable()
    select: Annotated[str, matching(r"[^\0\r\n]*\S[^\0\r\n]*", "must be a command in one line")] | None = None


class GroupedProfile(Model):
    """Table `[[grouped_qemu_profiles]]`: the subcases whose names begin with `subcase_prefix` run with another file, `config`.

    What that file does not say is as in the group's own.
    """

    name: Annotated[str, matching(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", "must be a word of letters, digits and . _ + -")]
    subcase_prefix: Annotated[str, matching(r"[^\0]+", "must not be empty")]
    config: PathString


class CaseFile(Model):
    """Shape of `qemu-<arch>.toml`, before its rules; `CaseConfig` is the result."""

    model_config = ConfigDict(extra="ignore")  # unknown keys warn, see load_case_config

    args: Strings = ()
    cmdline: str = ""
    uefi: bool = False
    to_bin: bool = False
    shell_prefix: str = ""
    shell_init_cmd: str = ""
    test_commands: Strings = ()
    grouped_qemu_profiles: Annotated[tuple[GroupedProfile, ...], Strict(False)] = ()
    grouped_command_selection: Literal["named", "preserve_all"] = "named"
    success_regex: Strings = ()
    fail_regex: Strings = ()
    timeout: Seconds = 0.0
    shell_check_steps: ShellCheckSteps = ()
    snapshot: bool = True
    rootfs_write_policy: Literal["discard", "persist"] = "discard"
    host_http_server: HostHttpServer = HostHttpServer()
    qcase: QcaseTable = QcaseTable()


def refuse_environment(file: CaseFile, wrong: Wrong) -> None:
    """Refuse variables of the host's environment in a stranger's case."""
    for key in ("args", "cmdline", "success_regex", "fail_regex", "shell_prefix", "shell_init_cmd"):
        value = getattr(file, key)
        if any("${env:" in text for text in ([value] if isinstance(value, str) else value)):
            wrong((key,), 'names a variable of the environment: refused under trust = "sandboxed"', "write its value")
    if any("${env:" in text for text in file.qcase.kernel_env.values()):
        wrong(
            ("qcase", "kernel_env"), 'names a variable of the environment: refused under trust = "sandboxed"', "write its value"
        )
    for key in ("build", "output"):
        if "${env:" in (getattr(file.qcase.kernel, key) or ""):
            wrong(
                ("qcase", "kernel", key),
                'names a variable of the environment: refused under trust = "sandboxed"',
                "write its value",
            )
    for at, row in enumerate(file.qcase.matrix):
        if any("${env:" in text for text in row.texts):
            what = 'names a variable of the environment: refused under trust = "sandboxed"'
            wrong(("qcase", "matrix", at), what, "write its value")
    for place, text in texts(file.shell_check_steps, file.qcase.steps):
        if "${env:" in text:
            wrong(place, 'names a variable of the environment: refused under trust = "sandboxed"', "write its value")
