"""Configuration: `qcase.toml` and `qemu-<arch>.toml` become frozen models here, once, and no dict travels further.

    find_workspace         the folder with qcase.toml, from a folder upwards
    load_workspace_config  qcase.toml        → WorkspaceConfig  strict: an unknown key is an error
    load_case_config       qemu-<arch>.toml  → CaseConfig       axbuild's keys; an unknown one is a warning, in [qcase] an error
    compile_pattern        a pattern of a case, as the console matches it

A file is read in three steps: bytes → text → TOML (one error, it ends there), shapes (pydantic, strict: no "5" for 5), and
what shapes cannot say (patterns compile, a command has a prompt). All errors of the last two steps are reported together,
each with file, line, key and a hint; the lines come from a scanner over the text that runs only when something is wrong.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import re
import stat
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import re2
import tomli
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from qcase.errors import ConfigError, Problem, UsageError
from qcase.model import Arch

WORKSPACE_FILE = "qcase.toml"

Accel = Literal["tcg", "kvm", "auto"]
Network = Literal["restricted", "user", "none"]
CacheWrite = Literal["auto", "always", "never"]
Match = Literal["any", "all"]
MatchFrom = Literal["start", "prompt"]
Build = Literal["named", "all"]


def find_workspace(start: Path) -> Path:
    """The nearest folder from `start` upwards that holds a `qcase.toml`. Raises `UsageError` where there is none."""
    start = start.resolve()
    for folder in (start, *start.parents):
        try:
            if (folder / WORKSPACE_FILE).is_file():
                return folder
        except OSError:  # a folder that we may not look into is no workspace of ours
            continue
    raise UsageError(
        f"no {WORKSPACE_FILE} in {start} or above",
        hint="go to the workspace, name it with --workspace, or make one with `qcase init`",
    )


def load_workspace_config(path: Path) -> WorkspaceConfig:
    """The models of `qcase.toml`. Raises `ConfigError` with all that is wrong."""
    document = _read(path, Path.cwd())
    model, problems, _ = _validate(WorkspaceConfig, document)
    if problems:
        raise _config_error(problems)
    assert model is not None
    if not model.suite.name:
        model = model.model_copy(update={"suite": model.suite.model_copy(update={"name": path.resolve().parent.name})})
    return model


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as data. Raises `ConfigError` where it cannot be read as such."""
    return _read(path, Path.cwd()).data


def load_case_config(path: Path, *, placeholders: Placeholders) -> CaseConfig:
    """The model of one `qemu-<arch>.toml`; unknown keys are in its `warnings`. Raises `ConfigError` with all that is wrong."""
    document = _read(path, placeholders.workspace)
    warnings = tuple(
        document.problem((key,), "unknown key", _nearest(key, _CaseFile.model_fields))
        for key in document.data
        if key not in _CaseFile.model_fields
    )
    model, problems, broken = _validate(_CaseFile, document)
    if model is None:  # look at the rest all the same, so that every error shows at once
        rest = {key: value for key, value in document.data.items() if key not in broken}
        model = _CaseFile.model_validate(rest)
    config = _resolve_case(model, document, placeholders, frozenset(broken), problems, warnings)
    if problems:
        # A warning is often the cause: a misspelt `success_regex` leaves the case without one.
        raise _config_error([*problems, *warnings])
    return config


# ---- qcase.toml


def _error(what: str, hint: str = "") -> PydanticCustomError:
    return PydanticCustomError("qcase", "{what}", {"what": what, "hint": hint})


def _matching(pattern: str, what: str, hint: str = "") -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):  # compiled at the first use: most files set few of these keys
            raise _error(what, hint)
        return value

    return AfterValidator(check)


def _only_string(what: str, hint: str = "") -> BeforeValidator:
    def check(value: object) -> object:
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise _error(what, hint)
        return value

    return BeforeValidator(check)


def _check_pattern(value: str) -> str:
    try:
        compile_pattern(value)
    except PatternError as e:
        raise _error(e.what, e.hint) from None
    return value


def _check_append(value: str) -> str:
    if not value.isprintable():
        raise _error("must be one line of printable characters")
    if re.search(r"\bpanic\b", value):
        raise _error("must not contain the word 'panic': the guest prints its command line, and cases look for that word")
    return value


# TOML has arrays, our models have tuples; the items stay strict.
Strings = Annotated[tuple[str, ...], Strict(False)]

VariableName = Annotated[
    str, _matching(r"[A-Za-z_][A-Za-z0-9_]*", "must be a variable's name: letters, digits and '_', no digit first")
]
Prefix = Annotated[str, _matching(r"[A-Za-z_][A-Za-z0-9_]*", "must consist of letters, digits and '_', no digit first")]
Marker = Annotated[str, _matching(r"[!-~]([ -~]*[!-~])?", "must be one line of printable ASCII, without blanks around it")]
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_size(text: str) -> int:
    """Bytes, from a number and a unit: "20 GiB", "1.5GB", "0 B". Raises `ValueError` for anything else."""
    found = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no size")
    return int(float(found[1]) * _UNITS[found[2]])


def parse_scale(text: str) -> float:
    """A factor for limits of time: "2", "0.5". Raises `ValueError` for what is no number greater than 0."""
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 0 < scale < math.inf:
        raise ValueError(f"{text!r} is no factor")
    return scale


def _check_size(value: str) -> str:
    try:
        parse_size(value)
    except ValueError:
        raise _error("must be a size with its unit", 'such as "20 GiB" or "500 MB"') from None
    return value


Pattern = Annotated[str, AfterValidator(_check_pattern)]
Size = Annotated[str, AfterValidator(_check_size)]
PackageName = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9_][A-Za-z0-9._+:/-]*((?:[<>]=?|[=~])[A-Za-z0-9._+~-]+)?",
        "must name a package",
        'as apk takes it: "zlib-dev", "python3~3.12"',
    ),
]
FileName = Annotated[str, _matching(r"[A-Za-z0-9_][A-Za-z0-9._-]*", "must be a file name of letters, digits, '.', '_' and '-'")]
GuestPath = Annotated[str, _matching(r"/[!-~]+", "must be an absolute path in the guest, without blanks")]
FolderName = Annotated[str, _matching(r"(?!\.\.?$)[^/\0]+", "must be the name of a folder right below the suite's root")]
PathString = Annotated[str, _matching(r"[^\0]+", "must be a path")]
Hostname = Annotated[
    str,
    _matching(
        r"(?=.{1,63}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*",
        "is no valid hostname",
        "letters, digits and '-', at most 63 of them",
    ),
]
PinnedImage = Annotated[
    str,
    _matching(
        r"[^\s@]+@sha256:[0-9a-f]{64}",
        "a foreign image must be pinned by its digest",
        "write name@sha256:<64 hex digits>",
    ),
]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class SuiteConfig(_Model):
    """`[suite]`. `root` is relative to the workspace."""

    name: str = ""  # the folder's name, once loaded
    root: PathString = "test-suit"
    default_group: FolderName = "normal"


class GroupedRunner(_Model):
    """`[grouped]`: the script that runs a grouped case's commands in the guest, and what it prints.

    Everything follows from `prefix` unless it is set by name:

        <P>_GROUPED_TEST_BEGIN: CMD      begin_marker
        <P>_GROUPED_TEST_PASSED: CMD     passed_marker
        <P>_GROUPED_TEST_FAILED: CMD …   failed_marker, and fail_regex `(?m)^<failed_marker>:`
        <P>_GROUPED_TESTS_PASSED         all_passed_marker, and success_regex `(?m)^<all_passed_marker>\\s*$`
        <P>_GROUPED_TESTS_FAILED         all_failed_marker
    """

    prefix: Prefix = "QCASE"
    runner_name: FileName = Field(default_factory=lambda d: f"{d['prefix'].lower().replace('_', '-')}-run-case-tests")
    runner_path: GuestPath = Field(default_factory=lambda d: f"/usr/bin/{d['runner_name']}")
    begin_marker: Marker = Field(default_factory=lambda d: f"{d['prefix']}_GROUPED_TEST_BEGIN")
    passed_marker: Marker = Field(default_factory=lambda d: f"{d['prefix']}_GROUPED_TEST_PASSED")
    failed_marker: Marker = Field(default_factory=lambda d: f"{d['prefix']}_GROUPED_TEST_FAILED")
    all_passed_marker: Marker = Field(default_factory=lambda d: f"{d['prefix']}_GROUPED_TESTS_PASSED")
    all_failed_marker: Marker = Field(default_factory=lambda d: f"{d['prefix']}_GROUPED_TESTS_FAILED")
    success_regex: Pattern = Field(default_factory=lambda d: rf"(?m)^{re2.escape(d['all_passed_marker'])}\s*$")
    fail_regex: Pattern = Field(default_factory=lambda d: rf"(?m)^{re2.escape(d['failed_marker'])}:")

    @model_validator(mode="after")
    def _distinct(self) -> GroupedRunner:
        _require_distinct(self, [name for name in type(self).model_fields if name.endswith("_marker")])
        return self


class ScriptEnv(_Model):
    """`[script_env]`: the names of the variables that scripts of a case find; `<prefix>_…` unless set by name."""

    prefix: Prefix = "QCASE"
    staging_root: VariableName = Field(default_factory=lambda d: f"{d['prefix']}_STAGING_ROOT")
    case_dir: VariableName = Field(default_factory=lambda d: f"{d['prefix']}_CASE_DIR")
    case_c_dir: VariableName = Field(default_factory=lambda d: f"{d['prefix']}_CASE_C_DIR")
    case_work_dir: VariableName = Field(default_factory=lambda d: f"{d['prefix']}_CASE_WORK_DIR")
    case_build_dir: VariableName = Field(default_factory=lambda d: f"{d['prefix']}_CASE_BUILD_DIR")
    case_overlay_dir: VariableName = Field(default_factory=lambda d: f"{d['prefix']}_CASE_OVERLAY_DIR")

    @model_validator(mode="after")
    def _distinct(self) -> ScriptEnv:
        _require_distinct(self, [name for name in type(self).model_fields if name != "prefix"])
        return self


def _require_distinct(model: BaseModel, names: Sequence[str]) -> None:
    """Two markers, or two variables, of one name could not be told apart."""
    first: dict[str, str] = {}
    for name in names:
        value = getattr(model, name)
        if value in first:
            raise _error(f"{first[value]} and {name} are both {value!r}", "give each a value of its own")
        first[value] = name


class CacheConfig(_Model):
    """`[cache]`. `env`: variables whose values enter every key.

    `keep_images`: without, an image lives for one run, and overlays are all that is stored. After a run that added something,
    what was not used for longest goes until the store takes no more than `max_size`, and its disk has `min_free` left.
    """

    env: Annotated[tuple[VariableName, ...], Strict(False)] = ()
    write: CacheWrite = "auto"
    keep_images: bool = True
    max_size: Size = "20 GiB"
    min_free: Size = "1 GiB"


class CToolchain(_Model):
    """`[toolchain.c]`. `image`: a foreign image, pinned by digest, in place of qcase's own."""

    compiler: Literal["gcc", "clang"] = "gcc"
    image: PinnedImage | None = None


class Toolchain(_Model):
    """`[toolchain.<name>]` of an image of which there is nothing else to choose."""

    image: PinnedImage | None = None


class Toolchains(_Model):
    """`[toolchain.<name>]`, one field a toolchain image."""

    c: CToolchain = CToolchain()
    rust: Toolchain = Toolchain()
    alpine: Toolchain = Toolchain()

    def image(self, name: str) -> str | None:
        """The foreign image to take instead of qcase's own of that name."""
        chosen: str | None = getattr(getattr(self, name, None), "image", None)
        return chosen


# COMPAT's, and what names a build: the nearest build-<target>.toml and the folder that it is in.
KERNEL_PLACEHOLDERS = ("workspace", "workspaceFolder", "package", "tmpDir", "arch", "target", "build_group", "build_config")


class PackagesConfig(_Model):
    """`[packages]`: where packages come from. None: from where the guest's base image says.

    `repositories`: addresses, or folders relative to the workspace. `keys`: files of the keys that sign them.
    """

    repositories: Annotated[tuple[PathString, ...], Strict(False), Field(min_length=1)] | None = None
    keys: Annotated[tuple[PathString, ...], Strict(False), Field(min_length=1)] | None = None


class Hooks(_Model):
    """`[hooks]`. `prepare_staging_root`: a shell script of the workspace, run once for each base image with the staging root.

    `guest_package_env`: variables that this script, prebuild scripts and the steps that deal with packages see.
    """

    prepare_staging_root: PathString | None = None
    guest_package_env: dict[VariableName, str] = {}


class RunConfig(_Model):
    """`[run]`. `network`: what `-netdev user` gives the guest. `timeout_scale` multiplies every case's timeout."""

    accel: Accel = "tcg"
    network: Network = "restricted"
    timeout_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


def _check_kernel_text(value: str) -> str:
    """What a kernel's build is told: a placeholder that nobody knows would end up in a command or in a file's name."""
    if not value.strip() or "\0" in value:
        raise _error("must not be empty")
    for name in re.findall(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", value):
        if name not in KERNEL_PLACEHOLDERS:
            hint = _nearest(name, KERNEL_PLACEHOLDERS)
            raise _error(f"unknown placeholder ${{{name}}}", f"{hint}; a variable of the environment is ${{env:{name}}}")
    return value


def _check_where(value: str) -> str:
    places = ("host", *Toolchains.model_fields)
    if value not in places:
        raise _error(f"must be {_or(places)}, not {_shown(value)}")
    return value


class Download(_Model):
    """A file by its address. It is fetched once and kept in the store."""

    url: Annotated[str, _matching(r"(https?|file)://\S+", "must be an address that begins with https://, http:// or file://")]
    sha256: Annotated[str, _matching(r"[0-9a-f]{64}", "must be 64 hexadecimal digits", "`sha256sum FILE` prints it")]


KernelText = Annotated[str, AfterValidator(_check_kernel_text)]


class KernelBuild(_Model):
    """A kernel that a command makes, once for each build group and run.

    `build` is run by `sh -eu` in the workspace; `output` is the file that it leaves, relative to the workspace. `where`: "host",
    or the toolchain image in which it is run. `KERNEL_PLACEHOLDERS` are replaced in `build`, `output` and the values of `env`.
    """

    build: KernelText
    output: KernelText
    env: dict[VariableName, KernelText] = {}
    where: Annotated[str, AfterValidator(_check_where)] = "host"


# A value that is a word or a table. pydantic puts the tag of the form that was tried into the place of an error.
_FORMS: Mapping[str, type[BaseModel] | None] = {"<text>": None, "<download>": Download, "<build>": KernelBuild}


def _form(value: object) -> str:
    if isinstance(value, (Mapping, BaseModel)):
        names = value if isinstance(value, Mapping) else type(value).model_fields
        return "<download>" if "url" in names or "sha256" in names else "<build>"
    return "<text>"


_AnyDownload = Annotated[Download, Tag("<download>")]


def _file_or_download(value: object) -> str:
    return "<download>" if isinstance(value, (Mapping, BaseModel)) else "<text>"


_ROOTFS = Annotated[str, _only_string('must be "alpine", "debian", a path, or { url, sha256 }'), Tag("<text>")]
_KERNEL = Annotated[str, _only_string('must be "alpine", "debian", a path, { build, output }, or { url, sha256 }'), Tag("<text>")]
_INITRD = Annotated[str | None, _only_string("must be a path, or { url, sha256 }"), Tag("<text>")]
RootfsSource = Annotated[_ROOTFS | _AnyDownload, Discriminator(_file_or_download)]
KernelSource = Annotated[_KERNEL | _AnyDownload | Annotated[KernelBuild, Tag("<build>")], Discriminator(_form)]
InitrdSource = Annotated[_INITRD | _AnyDownload, Discriminator(_file_or_download)]


class GuestConfig(_Model):
    """`[guest.<arch>]`. `rootfs` and `kernel`: "alpine" or "debian", the built-in guests, a path relative to the workspace, or a
    file by its address; `kernel` also a command that makes it.

    `kernel` is that of a rootfs that is built in, else that of the architecture's built-in guest. `initrd`: a path or an address;
    None with a built-in kernel means qcase's own initramfs, with another kernel none at all. `append` is added to the kernel's
    command line. `firmware`: of cases with `uefi`, a path; None for what this machine has.
    """

    rootfs: RootfsSource = "alpine"
    kernel: KernelSource = Field(default_factory=lambda d: d["rootfs"] if d["rootfs"] in ("alpine", "debian") else "alpine")
    initrd: InitrdSource = None
    hostname: Hostname = "qcase"
    append: Annotated[str, AfterValidator(_check_append)] = ""
    firmware: PathString | None = None
    firmware_vars: PathString | None = None


class _DebianConfig(GuestConfig):
    """Of an architecture for which there is no guest `alpine`."""

    rootfs: RootfsSource = "debian"
    kernel: KernelSource = "debian"


class Guests(_Model):
    """`[guest.<arch>]`, one field an architecture."""

    x86_64: GuestConfig = GuestConfig()
    aarch64: GuestConfig = GuestConfig()
    riscv64: _DebianConfig = _DebianConfig()
    loongarch64: _DebianConfig = _DebianConfig()

    def __getitem__(self, arch: Arch) -> GuestConfig:
        guest: GuestConfig = getattr(self, arch.value)
        return guest


class WorkspaceConfig(_Model):
    """`qcase.toml`. An empty file is a valid one."""

    suite: SuiteConfig = SuiteConfig()
    grouped: GroupedRunner = GroupedRunner()
    script_env: ScriptEnv = ScriptEnv()
    cache: CacheConfig = CacheConfig()
    toolchain: Toolchains = Toolchains()
    packages: PackagesConfig = PackagesConfig()
    hooks: Hooks = Hooks()
    run: RunConfig = RunConfig()
    guest: Guests = Guests()


# ---- qemu-<arch>.toml


@dataclass(frozen=True)
class Placeholders:
    """What `${workspace}`, `${workspaceFolder}`, `${package}`, `${tmpDir}` and `${env:NAME}` stand for, and `more` by name.

    `package` is axbuild's kernel crate; a workspace without one has nothing better to offer than itself.
    """

    workspace: Path
    package: Path | None = None
    tmp_dir: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    environment: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)

    def replace(self, text: str) -> str:
        """`text` with its placeholders replaced, in one pass; an unset variable is empty, an unknown placeholder stays."""
        return _PLACEHOLDER.sub(self._value, text) if "${" in text else text

    def _value(self, match: re.Match[str]) -> str:
        name = match[1]
        if name.startswith("env:"):
            return self.environment.get(name.removeprefix("env:"), "")
        if name in self.more:
            return self.more[name]
        values = {"tmpDir": self.tmp_dir, "package": self.package or self.workspace}
        values |= {"workspace": self.workspace, "workspaceFolder": self.workspace}
        return str(values.get(name, match[0]))


_PLACEHOLDER = re.compile(r"\$\{(env:[^}]+|[A-Za-z_]+)\}")


@dataclass(frozen=True)
class CaseConfig:
    """One `qemu-<arch>.toml`, placeholders replaced, patterns known to compile.

    The four timeouts in seconds, before any scale; None for none. `reset`: the guest may reset its machine. `network`: None
    leaves it to `[run] network`. `smp` and `memory`: the processors and the bytes that `args` ask for. `retries`: how often a
    case that does not pass is tried again.
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
    network: Network | None = None
    boot_timeout: float | None = None
    command_timeout: float | None = None
    idle_timeout: float | None = None
    reset: bool = False
    tags: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    retries: int = 0
    build: Build = "named"
    smp: int = 1
    to_bin: bool = False
    uefi: bool = False
    memory: int = 128 << 20
    warnings: tuple[Problem, ...] = ()

    @property
    def is_grouped(self) -> bool:
        return bool(self.test_commands)


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _QcaseTable(_Model):
    """`[qcase]`. `boot_timeout`: until the prompt; `command_timeout`: from there, or for each command of a group;
    `idle_timeout`: without a byte from the guest. 0 is none. `reset`: the guest may reset its machine, which else ends it.
    `build`: the subcases of which a command names something, or all.
    """

    match: Match = "any"
    match_from: MatchFrom = "start"
    network: Network | None = None
    boot_timeout: Seconds = 0.0
    command_timeout: Seconds = 0.0
    idle_timeout: Seconds = 0.0
    reset: bool = False
    tags: Annotated[tuple[Annotated[str, _matching(r"\S+", "must be a word without blanks")], ...], Strict(False)] = ()
    packages: Annotated[tuple[PackageName, ...], Strict(False)] = ()
    retries: Annotated[int, Field(ge=0)] = 0
    build: Build = "named"


class _CaseFile(_Model):
    """The shape of `qemu-<arch>.toml`; what it means is `CaseConfig`."""

    model_config = ConfigDict(extra="ignore")  # unknown keys warn, see load_case_config

    args: Strings = ()
    uefi: bool = False
    to_bin: bool = False
    shell_prefix: str = ""
    shell_init_cmd: str = ""
    test_commands: Strings = ()
    success_regex: Strings = ()
    fail_regex: Strings = ()
    timeout: Seconds = 0.0
    qcase: _QcaseTable = _QcaseTable()


def _resolve_case(
    file: _CaseFile,
    document: _Document,
    placeholders: Placeholders,
    broken: frozenset[str],
    problems: list[Problem],
    warnings: tuple[Problem, ...],
) -> CaseConfig:
    """What `file` means. Adds what is wrong to `problems`; rules that rest on a key in `broken` are left out."""

    def wrong(loc: tuple[str | int, ...], what: str, hint: str = "") -> None:
        problems.append(document.problem(loc, what, hint))

    args = tuple(placeholders.replace(arg) for arg in file.args)
    prefix = placeholders.replace(file.shell_prefix).strip() or None
    command = placeholders.replace(file.shell_init_cmd).strip() or None
    test_commands = tuple(text.strip() for text in file.test_commands)

    for key, value in (("shell_prefix", prefix), ("shell_init_cmd", command)):
        if value and "\0" in value:
            wrong((key,), "must not contain a NUL character")
    for key, values in (("args", args), ("test_commands", test_commands)):
        for index, value in enumerate(values):
            if "\0" in value:
                wrong((key, index), "must not contain a NUL character")
    for index, text in enumerate(test_commands):
        if not text:
            wrong(("test_commands", index), "must not be empty")
    if test_commands and command:
        wrong(("shell_init_cmd",), "cannot stand beside test_commands: the grouped runner is the command")
    if not prefix and "shell_prefix" not in broken:
        for key, present in (("shell_init_cmd", command), ("test_commands", test_commands)):
            if present:
                wrong((key,), "needs shell_prefix, the prompt to wait for before it is typed")

    patterns: dict[str, tuple[str, ...]] = {}
    for key, values, outcome in (("success_regex", file.success_regex, "pass"), ("fail_regex", file.fail_regex, "fail")):
        patterns[key] = tuple(placeholders.replace(value) for value in values)
        for index, pattern in enumerate(patterns[key]):
            try:
                compile_pattern(pattern, would=outcome)
            except PatternError as e:
                wrong((key, index), e.what, e.hint)
    if not patterns["success_regex"] and not test_commands and not broken & {"success_regex", "test_commands"}:
        wrong(("success_regex",), "no success_regex: the case can never pass", "say what the guest prints when all is well")

    return CaseConfig(
        args=args,
        shell_prefix=prefix,
        shell_init_cmd=command,
        test_commands=test_commands,
        success_regex=patterns["success_regex"],
        fail_regex=patterns["fail_regex"],
        timeout=file.timeout or None,
        match=file.qcase.match,
        match_from=file.qcase.match_from,
        network=file.qcase.network,
        boot_timeout=file.qcase.boot_timeout or None,
        command_timeout=file.qcase.command_timeout or None,
        idle_timeout=file.qcase.idle_timeout or None,
        reset=file.qcase.reset,
        tags=file.qcase.tags,
        packages=file.qcase.packages,
        retries=file.qcase.retries,
        build=file.qcase.build,
        smp=smp(args),
        to_bin=file.to_bin,
        uefi=file.uefi,
        memory=memory(args),
        warnings=warnings,
    )


def smp(args: Sequence[str]) -> int:
    """How many processors QEMU's arguments ask for: `-smp 4`, `-smp cpus=4,…`, `-smp sockets=2,cores=2`. 1 where they don't."""
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
    """How many bytes of memory QEMU's arguments ask for: `-m 512`, `-m 1G`, `-m size=2G,slots=2`. QEMU's 128 MiB where none."""
    value = ""
    for option, argument in itertools.pairwise(args):
        if option in ("-m", "--m"):
            value = argument
    for part in value.split(","):
        if found := re.fullmatch(r"(?:size=)?([0-9]{1,12})([bkmgtBKMGT]?)", part):
            return int(found[1]) << {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40}[found[2].lower() or "m"]
    return 128 << 20


# ---- patterns


class PatternError(ValueError):
    """A pattern that does not mean what its author meant."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


@functools.lru_cache(maxsize=256)  # the cases of a suite share most of their fail patterns
def compile_pattern(pattern: str, *, would: str = "") -> Any:
    """An RE2 expression of `pattern`, in which `^` and `$` are the ends of a line. Raises `PatternError`.

    Suites are written for Rust's regex dialect. What RE2 refuses gets a hint; what it would silently read differently is
    refused here. A pattern that matches nothing at all would always `would` ("pass", "fail").
    """
    for construct, meaning, at in _read_differently(pattern):
        raise PatternError(f"pattern {pattern!r}: {construct} has another meaning in RE2, at character {at + 1}", meaning)
    try:
        compiled = re2.compile("(?m)" + pattern, _RE2_OPTIONS)
    except re2.error as e:
        said = e.args[0].decode(errors="replace") if e.args and isinstance(e.args[0], bytes) else str(e)
        said = said.replace("(?m)" + pattern, pattern)  # the fragment is at times the whole
        place = _place_of_error(pattern, said)
        where = "" if place is None else f", at character {place + 1}"
        raise PatternError(f"pattern {pattern!r}: {said}{where}", _hint_for(said)) from None
    except UnicodeEncodeError:
        raise PatternError(f"pattern {pattern!r}: not UTF-8", "a placeholder stands for a name that is not UTF-8") from None
    if compiled.search("") is not None:
        consequence = f"so it would always {would}" if would else "so it would match everything"
        raise PatternError(f"pattern {pattern!r} matches the empty string, {consequence}")
    return compiled


def _re2_options() -> Any:
    options = re2.Options()
    options.log_errors = False  # RE2 writes to standard error by default
    return options


_RE2_OPTIONS = _re2_options()

_CONSTRUCTS = re.compile(
    r"""
    (?P<quote>\\Q.*?(?:\\E|\Z))           # RE2's literal text
    | (?P<boundary>\\b\{[a-z-]+\})        # Rust: \b{start} and friends
    | (?P<word>\\[<>])                    # Rust: start and end of a word
    | (?P<escape>\\.)
    | (?P<open>\[\^?\]?)
    """,
    re.VERBOSE | re.DOTALL,
)
_IN_CLASS = re.compile(
    r"(?P<escape>\\.)|(?P<posix>\[:\^?[a-z]+:\])|(?P<operation>&&|--|~~)|(?P<nested>\[)|(?P<close>\])|(?P<other>.)", re.DOTALL
)


def _place_of_error(pattern: str, said: str) -> int | None:
    """Where in a pattern that RE2 refuses the trouble is, from 0. RE2 names a fragment, or where a parenthesis is wrong, all."""
    kind, _, fragment = said.partition(": ")
    if fragment and fragment != pattern and pattern.count(fragment) == 1:
        return pattern.index(fragment)
    opened: list[int] = []
    position = 0
    while position < len(pattern):
        if found := _CONSTRUCTS.match(pattern, position):
            start, position = position, found.end()
            if found.lastgroup == "open":
                while (inner := _IN_CLASS.match(pattern, position)) and inner.lastgroup != "close":
                    position = inner.end()
                if inner is None:
                    return start  # a class that is not closed
                position = inner.end()
            continue
        if pattern[position] == "(":
            opened.append(position)
        elif pattern[position] == ")":
            if not opened:
                return position
            opened.pop()
        position += 1
    if opened and ("missing )" in kind or "parenthesis" in kind):
        return opened[-1]
    if kind.startswith("trailing"):
        return len(pattern) - 1
    return pattern.index(fragment) if fragment and fragment in pattern else None


def _read_differently(pattern: str) -> Iterable[tuple[str, str, int]]:
    """What RE2 accepts but reads otherwise than Rust's regex crate, with a hint and its place each."""
    position = 0
    while found := _CONSTRUCTS.search(pattern, position):
        position = found.end()
        if found.lastgroup == "boundary":
            yield found[0], r"write \b", found.start()
        elif found.lastgroup == "word":
            yield found[0], rf"write \b for the edge of a word, {found[0][1]} for the character", found.start()
        elif found.lastgroup == "open":
            while inner := _IN_CLASS.match(pattern, position):
                position = inner.end()
                if inner.lastgroup == "operation":
                    sign = inner[0][0]
                    yield (
                        f"{inner[0]} in a character class",
                        rf"write the class out; write \{sign} for the character",
                        inner.start(),
                    )
                elif inner.lastgroup == "nested":
                    yield "[ in a character class", r"RE2 has no nested classes; write \[ for the character", inner.start()
                elif inner.lastgroup == "close":
                    break


_HINTS: tuple[tuple[str, str], ...] = (
    (r"invalid perl operator: \(\?<?[=!]", "neither RE2 nor Rust's regex has look-around"),
    (r"invalid escape sequence: \\[1-9]", "neither RE2 nor Rust's regex has back-references"),
    (r"invalid perl operator: \(\?[a-zA-Z-]*x", "RE2 has no verbose mode (?x): leave out its blanks and comments"),
    (r"invalid perl operator: \(\?[a-zA-Z-]*[uR]", "RE2 has no flags u and R: leave them out"),
    (r"invalid escape sequence: \\[uU]", r"write \x{…}"),
    (r"invalid escape sequence: \\h", r"write [0-9A-Fa-f] for a hex digit, [ \t] for a blank"),
    (r"invalid escape sequence: \\Z", r"write \z"),
    (r"invalid repetition size", "RE2 repeats at most 1000 times"),
    (r"invalid character class range: \\[pP]", r"RE2 knows general categories and scripts: \p{Lu}, \p{Greek}"),
)


def _hint_for(said: str) -> str:
    for sign, hint in _HINTS:
        if re.search(sign, said):
            return hint
    return ""


# ---- from bytes to models, and errors with their places

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class _Document:
    """A TOML file that was read: its text, and the text as data. In messages its path is relative to `base`."""

    path: Path
    base: Path
    text: str
    data: dict[str, Any]

    @cached_property
    def file(self) -> str:
        return _human(self.path, self.base)

    @cached_property
    def lines(self) -> dict[tuple[str | int, ...], int]:
        return key_lines(self.text)

    def problem(self, loc: tuple[str | int, ...], what: str, hint: str = "") -> Problem:
        """A problem at `loc`; the line is that of the key, or of the nearest one around it that has one."""
        line = next((self.lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in self.lines), 0)
        return Problem(what, self.file, line, dotted(loc), hint)


def _read(path: Path, base: Path) -> _Document:
    def wrong(what: str, line: int = 0, hint: str = "") -> ConfigError:
        return ConfigError([Problem(what, _human(path, base), line, hint=hint)])

    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for ever
            raise wrong("is not a file")
        raw = path.read_bytes()
    except OSError as e:
        raise wrong(f"cannot be read: {e.strerror}") from None
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise wrong(f"is not UTF-8: byte 0x{raw[e.start]:02x}", line, "save it as UTF-8") from None
    try:
        return _Document(path, base, text, tomli.loads(text))
    except tomli.TOMLDecodeError as e:
        what = str(e)
        place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", what)
        if place is None:
            raise wrong(f"is not TOML: {what}") from None
        line = int(place[1]) if place[1] else len(text.splitlines())
        where = f", column {place[2]}" if place[2] else ", at the end of the file"
        raise wrong(f"is not TOML: {what[: place.start()]}{where}", line) from None
    except RecursionError:
        raise wrong("is not TOML: nested too deeply") from None


def _validate(model: type[M], document: _Document) -> tuple[M | None, list[Problem], set[str]]:
    """The model, or what is wrong and which top-level keys are concerned."""
    try:
        return model.model_validate(document.data), [], set()
    except ValidationError as e:
        # A default that follows from a broken key is no error of its own.
        errors = [error for error in e.errors(include_url=False) if error["type"] != "default_factory_not_called"]
    problems = [_problem(model, document, error) for error in errors]
    return None, problems, {str(error["loc"][0]) for error in errors}


def _problem(model: type[BaseModel], document: _Document, error: ErrorDetails) -> Problem:
    place, given = error["loc"], error.get("input")
    loc = tuple(part for part in place if part not in _FORMS and part != "[key]")
    context = error.get("ctx", {})
    kind = error["type"]
    if kind == "extra_forbidden":
        return document.problem(loc, "unknown key", _nearest(str(loc[-1]), _fields_at(model, place[:-1])))
    if kind == "qcase":
        return document.problem(loc, context["what"], context["hint"])
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        hint = _nearest(given, choices, fallback=False) if isinstance(given, str) else ""
        return document.problem(loc, f"must be {_or(choices)}, not {_shown(given)}", hint)
    if kind == "missing":
        return document.problem(loc, "is missing")
    if kind in _SHAPES:
        return document.problem(loc, f"must be {_SHAPES[kind]}, not {_shown(given)}")
    if kind in ("greater_than", "greater_than_equal"):
        bound = f"greater than {context['gt']:g}" if kind == "greater_than" else f"{context['ge']:g} or more"
        return document.problem(loc, f"must be {bound}, not {_shown(given)}")
    return document.problem(loc, error["msg"])


_SHAPES: Mapping[str, str] = {
    "string_type": "a string",
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
    "finite_number": "a finite number",
    "tuple_type": "an array of strings",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table",
}

_TOML_KINDS: tuple[tuple[type, str], ...] = ((list, "an array"), (dict, "a table"))


def _shown(value: object) -> str:
    """A value as it stands in the file, where that is short; else its kind."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 40 and value.isprintable() else "this string"
    return next((name for kind, name in _TOML_KINDS if isinstance(value, kind)), str(value)[:40])


def _fields_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> Iterable[str]:
    for key, form in zip(loc, (*loc[1:], ""), strict=False):
        if key in _FORMS:
            continue
        annotation = _FORMS.get(str(form)) or model.model_fields[str(key)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return model.model_fields


def _nearest(name: str, known: Iterable[str], *, fallback: bool = True) -> str:
    """A hint: the known name that `name` was probably meant to be, else all of them."""
    import difflib  # only where something is wrong

    known = list(known)
    lower = {key.lower(): key for key in known}
    if near := difflib.get_close_matches(name.lower(), lower, n=1):
        return f"did you mean '{lower[near[0]]}'?"
    return f"known here: {', '.join(known)}" if fallback else ""


def _or(choices: Sequence[str]) -> str:
    quoted = [f'"{choice}"' for choice in choices]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else quoted[0]


def _config_error(problems: Sequence[Problem]) -> ConfigError:
    return ConfigError(sorted(problems, key=lambda problem: problem.line))


def _human(path: Path, base: Path) -> str:
    """`path` below `base` as a relative one, any other as it is; always printable."""
    shown = str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
    return printable(shown)


def printable(text: str) -> str:
    """`text` fit for a terminal: what is not printable (line ends, bytes that are not UTF-8) is escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def dotted(loc: Iterable[str | int]) -> str:
    """A key as TOML writes it: `guest.x86_64.kernel`, `success_regex[0]`."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        bare = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else '"' + printable(part) + '"'
        text += f".{bare}" if text else bare
    return text


# ---- where the keys of a TOML file stand


def key_lines(text: str) -> dict[tuple[str | int, ...], int]:
    """The line, from 1, of every key, table and array element of `text`, which must be valid TOML."""
    return _Scanner(text).run()


class _Scanner:
    """Walks over valid TOML and notes where each key begins. Of values it knows only where they end."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.newlines = [i for i, c in enumerate(text) if c == "\n"]
        self.lines: dict[tuple[str | int, ...], int] = {}
        self.elements: dict[tuple[str | int, ...], int] = {}  # how many [[tables]] an array has so far

    def run(self) -> dict[tuple[str | int, ...], int]:
        table: tuple[str | int, ...] = ()
        while self._skip_blank():
            start = self.at
            if self.text[self.at] == "[":
                double = self.text.startswith("[[", self.at)
                self.at += 2 if double else 1
                table = self._table(self._key(), double)
                self._note(table, start)
                self.at = self.text.index("]", self.at) + (2 if double else 1)
            else:
                self._pair(table)
        return self.lines

    def _table(self, key: tuple[str, ...], double: bool) -> tuple[str | int, ...]:
        """The place of a table's header: an array of tables on the way stands for its last element."""
        loc: tuple[str | int, ...] = ()
        for n, part in enumerate(key, 1):
            loc += (part,)
            if n == len(key) and double:
                index = self.elements.get(loc, 0)
                self.elements[loc] = index + 1
                loc += (index,)
            elif loc in self.elements:
                loc += (self.elements[loc] - 1,)
        return loc

    def _pair(self, table: tuple[str | int, ...]) -> None:
        start = self.at
        loc = table + self._key()
        self._note(loc, start, table)
        self.at = self.text.index("=", self.at) + 1
        self._value(loc)

    def _note(self, loc: tuple[str | int, ...], start: int, table: tuple[str | int, ...] = ()) -> None:
        """`loc` begins at `start`, and so do the tables that only its dotted key names."""
        line = bisect.bisect_left(self.newlines, start) + 1
        for n in range(len(table) + 1, len(loc) + 1):
            self.lines.setdefault(loc[:n], line)

    def _key(self) -> tuple[str, ...]:
        """The parts of a dotted key; stops at what follows it."""
        parts: list[str] = []
        while True:
            self._skip(" \t")
            if self.text[self.at] in "\"'":
                start = self.at
                self._string()
                parts.append(next(iter(tomli.loads(self.text[start : self.at] + " = 0"))))
            else:
                start = self.at
                while self.text[self.at].isalnum() or self.text[self.at] in "_-":
                    self.at += 1
                parts.append(self.text[start : self.at])
            self._skip(" \t")
            if self.text[self.at] != ".":
                return tuple(parts)
            self.at += 1

    def _value(self, loc: tuple[str | int, ...]) -> None:
        self._skip_blank()
        opening = self.text[self.at]
        if opening in "\"'":
            self._string()
        elif opening == "[":
            self.at += 1
            index = 0
            while self._inside("]"):
                self._note((*loc, index), self.at, loc)
                self._value((*loc, index))
                index += 1
        elif opening == "{":
            self.at += 1
            while self._inside("}"):
                self._pair(loc)
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\n":
                self.at += 1

    def _inside(self, closing: str) -> bool:
        """Whether another element follows; steps over commas, and over `closing`."""
        while True:
            self._skip_blank()
            self.at += 1
            if self.text[self.at - 1] == closing:
                return False
            if self.text[self.at - 1] != ",":
                self.at -= 1
                return True

    def _string(self) -> None:
        quote = self.text[self.at]
        fence = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.at += len(fence)
        while not self.text.startswith(fence, self.at):
            self.at += 2 if quote == '"' and self.text[self.at] == "\\" else 1
        self.at += len(fence)
        if len(fence) == 3:  # up to two quotes may stand right before the closing ones
            self._skip(quote)

    def _skip(self, characters: str) -> None:
        while self.at < len(self.text) and self.text[self.at] in characters:
            self.at += 1

    def _skip_blank(self) -> bool:
        """Over blanks, line ends and comments; whether something follows."""
        while True:
            self._skip(" \t\n")
            if not self.text.startswith("#", self.at):
                return self.at < len(self.text)
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end
