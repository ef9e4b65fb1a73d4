"""Configuration: `qcase.toml` and `qemu-<arch>.toml` become frozen models here, once, and no dict travels further.

    find_workspace         the folder with qcase.toml, from a folder upwards
    load_workspace_config  qcase.toml        → WorkspaceConfig  strict: an unknown key is an error
    load_case_config       qemu-<arch>.toml  → CaseConfig       axbuild's keys; an unknown one is a warning, in [qcase] an error
    compile_pattern        a pattern of a case, as the console matches it

A file is read in three steps: bytes → text → TOML (one error ends this step), shapes (pydantic, strict: no "5" for 5), and rules
beyond shapes (patterns compile, a command has a prompt). All errors of the last two steps are reported together, each with file,
line, key and a hint; the lines come from a scanner over the text that runs only on errors.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import re2
from pydantic import AfterValidator, BaseModel, Discriminator, Field, Strict, Tag, create_model, model_validator

from qcase import plugins
from qcase.arch import Arch
from qcase.config.fields import (
    Accel,
    Branch,
    CacheWrite,
    DiskName,
    FileName,
    FolderName,
    GuestPath,
    Hostname,
    KernelTroubleIs,
    Marker,
    Model,
    Network,
    PathString,
    Pattern,
    PinnedImage,
    Prefix,
    Size,
    SuiteName,
    TcgThreads,
    Trust,
    VariableName,
    check_append,
    error,
    matching,
    only_string,
    require_distinct,
)
from qcase.model import Pipeline
from qcase.text import any_of, nearest, shown

WORKSPACE_FILE = "qcase.toml"


class SuiteConfig(Model):
    """Table `[suite]`. `root` is relative to the workspace."""

    name: str = ""  # the folder's name, once loaded
    root: PathString = "test-suit"
    default_group: FolderName = "normal"


class GroupedRunner(Model):
    """Table `[grouped]`: the script that runs a grouped case's commands in the guest, and its markers.

    The markers follow from `prefix` unless they are set by name:

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
        require_distinct(self, [name for name in type(self).model_fields if name.endswith("_marker")])
        return self


class ScriptEnv(Model):
    """Table `[script_env]`: names of the variables for a case's scripts; `<prefix>_…` unless set by name.

    `grouped_c_subcases` is a variable of CMake: the subcases that the project of a group is to build, where it is not all.
    """

    prefix: Prefix = "QCASE"
    staging_root: VariableName = Field(default_factory=lambda d: f"{d['prefix']}_STAGING_ROOT")
    case_dir: VariableName = Field(default_factory=lambda d: f"{d['prefix']}_CASE_DIR")
    case_c_dir: VariableName = Field(default_factory=lambda d: f"{d['prefix']}_CASE_C_DIR")
    case_work_dir: VariableName = Field(default_factory=lambda d: f"{d['prefix']}_CASE_WORK_DIR")
    case_build_dir: VariableName = Field(default_factory=lambda d: f"{d['prefix']}_CASE_BUILD_DIR")
    case_overlay_dir: VariableName = Field(default_factory=lambda d: f"{d['prefix']}_CASE_OVERLAY_DIR")
    grouped_c_subcases: VariableName = Field(default_factory=lambda d: f"{d['prefix']}_GROUPED_C_SUBCASES")

    @model_validator(mode="after")
    def _distinct(self) -> ScriptEnv:
        require_distinct(self, [name for name in type(self).model_fields if name != "prefix"])
        return self


class CacheConfig(Model):
    """Table `[cache]`. `env`: variables whose values enter every key.

    `keep_images`: if false, an image lives for one run, and only overlays are stored. After a run that added an entry, the least
    recently used entries are removed until the store takes no more than `max_size`, and its disk has `min_free` left.
    """

    env: Annotated[tuple[VariableName, ...], Strict(False)] = ()
    write: CacheWrite = "auto"
    keep_images: bool = True
    max_size: Size = "20 GiB"
    min_free: Size = "1 GiB"


class CToolchain(Model):
    """Table `[toolchain.c]`. `image`: a foreign image, pinned by digest, in place of qcase's own."""

    compiler: Literal["gcc", "clang"] = "gcc"
    image: PinnedImage | None = None


class Toolchain(Model):
    """Table `[toolchain.<name>]` of an image without further settings."""

    image: PinnedImage | None = None


class Toolchains(Model):
    """Tables `[toolchain.<name>]`, one field for each toolchain image."""

    c: CToolchain = CToolchain()
    rust: Toolchain = Toolchain()
    alpine: Toolchain = Toolchain()

    def image(self, name: str) -> str | None:
        """Return the foreign image that replaces qcase's own of that name; None if there is none."""
        fields = {(field.alias or key): key for key, field in type(self).model_fields.items()}
        chosen: str | None = getattr(self, fields[name]).image if name in fields else None
        return chosen


def added_toolchains() -> tuple[str, ...]:
    """Return the names of tables `[toolchain.<name>]` that pipelines of plug-ins add."""
    return plugins.names(plugins.PIPELINES, tuple(Pipeline))


# COMPAT's, those of a build (the nearest build-<target>.toml and its folder), and those of a case with a kernel of its own.
KERNEL_PLACEHOLDERS = (
    *("workspace", "workspaceFolder", "package", "tmpDir", "arch", "target", "build_group", "build_config"),
    *("case", "case_dir", "args"),
)


class PackagesConfig(Model):
    """Table `[packages]`: the sources of packages. None: those that the guest's base image names.

    `repositories`: addresses, or folders relative to the workspace. `keys`: files of the keys that sign them.
    """

    repositories: Annotated[tuple[PathString, ...], Strict(False), Field(min_length=1)] | None = None
    keys: Annotated[tuple[PathString, ...], Strict(False), Field(min_length=1)] | None = None


class Hooks(Model):
    """Table `[hooks]`.

    `prepare_staging_root`: a shell script of the workspace, run once for each base image with the staging root.

    `guest_package_env`: environment variables of this script, of prebuild scripts and of the steps that handle packages.
    """

    prepare_staging_root: PathString | None = None
    guest_package_env: dict[VariableName, str] = Field(default={})


class RunConfig(Model):
    """Table `[run]`. `network`: the networks that a guest's card reaches. `timeout_scale` multiplies every case's timeout.

    `tcg_threads`: whether TCG runs the processors of a guest in one host thread or in several; "auto" is one where kernels patch
    their own code, as on x86.

    `branch`: whether cases go on from a template of their machine, see `qcase.vm.templates`.

    `kernel_trouble`: the verdict for a case whose kernel reports an error of its own and goes on. `trust`: see
    `qcase.inputs.trust`.
    """

    accel: Accel = "tcg"
    network: Network = "restricted"
    kernel_trouble: KernelTroubleIs = "warn"
    trust: Trust = "suite"
    tcg_threads: TcgThreads = "auto"
    timeout_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    branch: Branch = "never"


def _check_kernel_text(value: str) -> str:
    """Check a text of a kernel's build: an unknown placeholder would end up in a command or in a file's name."""
    if not value.strip() or "\0" in value:
        raise error("must not be empty")
    for name in re.findall(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", value):
        if name not in KERNEL_PLACEHOLDERS:
            hint = nearest(name, KERNEL_PLACEHOLDERS)
            raise error(f"unknown placeholder ${{{name}}}", f"{hint}; a variable of the environment is ${{env:{name}}}")
    return value


def check_where(value: str) -> str:
    places = ("host", *Toolchains.model_fields, *added_toolchains())
    if value not in places:
        raise error(f"must be {any_of(places)}, not {shown(value)}")
    return value


class Download(Model):
    """A file from an address. It is fetched once and kept in the store."""

    url: Annotated[str, matching(r"(https?|file)://\S+", "must be an address that begins with https://, http:// or file://")]
    sha256: Annotated[str, matching(r"[0-9a-f]{64}", "must be 64 hexadecimal digits", "`sha256sum FILE` prints it")]


KernelText = Annotated[str, AfterValidator(_check_kernel_text)]


class KernelBuild(Model):
    """A kernel that a command builds, once for each build group and run.

    `build` is run by `sh -eu` in the workspace; `output` is the file that it leaves, relative to the workspace. `where`: "host",
    or the toolchain image in which it is run. `KERNEL_PLACEHOLDERS` are replaced in `build`, `output` and the values of `env`.
    """

    build: KernelText
    output: KernelText
    env: dict[VariableName, KernelText] = Field(default={})
    where: Annotated[str, AfterValidator(check_where)] = "host"


BUILT_IN_GUESTS = ("alpine", "debian")


def is_guest(value: object) -> bool:
    """Tell whether a value of `rootfs` or `kernel` names a guest: a built-in one, or that of a plug-in."""
    if not isinstance(value, str):
        return False
    return value in BUILT_IN_GUESTS or value in plugins.names(plugins.GUESTS, BUILT_IN_GUESTS)


def guest_words() -> str:
    """Return the names of all guests for a person: `"alpine", "debian"`, and those of plug-ins."""
    return ", ".join(f'"{name}"' for name in (*BUILT_IN_GUESTS, *plugins.names(plugins.GUESTS, BUILT_IN_GUESTS)))


# A value that is a word or a table. pydantic puts the tag of the form that was tried into the place of an error.
FORMS: Mapping[str, type[BaseModel] | None] = {"<text>": None, "<download>": Download, "<build>": KernelBuild}


def _form(value: object) -> str:
    if isinstance(value, (Mapping, BaseModel)):
        names = value if isinstance(value, Mapping) else type(value).model_fields
        return "<download>" if "url" in names or "sha256" in names else "<build>"
    return "<text>"


_AnyDownload = Annotated[Download, Tag("<download>")]


def _file_or_download(value: object) -> str:
    return "<download>" if isinstance(value, (Mapping, BaseModel)) else "<text>"


_ROOTFS = Annotated[str, only_string(lambda: f"must be {guest_words()}, a path, or {{ url, sha256 }}"), Tag("<text>")]
_KERNEL = Annotated[
    str, only_string(lambda: f"must be {guest_words()}, a path, {{ build, output }}, or {{ url, sha256 }}"), Tag("<text>")
]
_INITRD = Annotated[str | None, only_string("must be a path, or { url, sha256 }"), Tag("<text>")]
RootfsSource = Annotated[_ROOTFS | _AnyDownload, Discriminator(_file_or_download)]
KernelSource = Annotated[_KERNEL | _AnyDownload | Annotated[KernelBuild, Tag("<build>")], Discriminator(_form)]
InitrdSource = Annotated[_INITRD | _AnyDownload, Discriminator(_file_or_download)]


class GuestConfig(Model):
    """Table `[guest.<arch>]`.

    `rootfs` and `kernel`: "alpine" or "debian", the built-in guests, a path relative to the workspace, or a file by its address;
    `kernel` also a command that builds it. The default of `kernel` is that of a built-in rootfs, else that of the architecture's
    built-in guest. `initrd`: a path or an address; None with a built-in kernel means qcase's own initramfs, with another kernel
    none at all. `append` is added to the kernel's command line. `firmware`: a path, for cases with `uefi`; None for the firmware
    of this machine. `tcg_threads`: None leaves the choice to `[run]`. `disks`: the images for the files that the drives of
    cases name, by file name.
    """

    rootfs: RootfsSource = "alpine"
    kernel: KernelSource = Field(default_factory=lambda d: d["rootfs"] if is_guest(d["rootfs"]) else "alpine")
    initrd: InitrdSource = None
    hostname: Hostname = "qcase"
    append: Annotated[str, AfterValidator(check_append)] = ""
    firmware: PathString | None = None
    firmware_vars: PathString | None = None
    tcg_threads: TcgThreads | None = None
    disks: dict[DiskName, RootfsSource] = Field(default={})


class _DebianConfig(GuestConfig):
    """Table `[guest.<arch>]` of an architecture without a guest `alpine`."""

    rootfs: RootfsSource = "debian"
    kernel: KernelSource = "debian"


class _GuestTables(Model):
    """Tables `[guest.<arch>]`. `Guests` adds a field for each architecture."""

    def __getitem__(self, arch: Arch) -> GuestConfig:
        guest: GuestConfig = getattr(self, arch.value)
        return guest


_FORMS: Mapping[str, type[GuestConfig]] = {"alpine": GuestConfig, "debian": _DebianConfig}

if TYPE_CHECKING:
    Guests = _GuestTables
else:
    _FIELDS = {arch.value: (_FORMS[arch.spec.rootfs], _FORMS[arch.spec.rootfs]()) for arch in Arch}
    Guests = create_model(
        "Guests", __base__=_GuestTables, __module__=__name__, __doc__="Tables `[guest.<arch>]`, one field for each.", **_FIELDS
    )


class OtherSuite(Model):
    """Table `[suites.<name>]`: a further suite of the workspace, that of `--suite <name>`.

    `grouped`, `script_env` and `guest` take the place of the workspace's own tables, `guest` for each architecture by itself.
    """

    root: PathString
    default_group: FolderName = "normal"
    grouped: GroupedRunner | None = None
    script_env: ScriptEnv | None = None
    guest: Guests | None = None


class WorkspaceConfig(Model):
    """Content of `qcase.toml`. An empty file is valid."""

    suites: dict[SuiteName, OtherSuite] = Field(default={})
    suite: SuiteConfig = SuiteConfig()
    grouped: GroupedRunner = GroupedRunner()
    script_env: ScriptEnv = ScriptEnv()
    cache: CacheConfig = CacheConfig()
    toolchain: Toolchains = Toolchains()
    packages: PackagesConfig = PackagesConfig()
    hooks: Hooks = Hooks()
    run: RunConfig = RunConfig()
    guest: Guests = Guests()

    def of_suite(self, name: str) -> WorkspaceConfig:
        """Return the configuration that counts for one of `suites`."""
        other = self.suites[name]
        update: dict[str, object] = {"suite": SuiteConfig(name=name, root=other.root, default_group=other.default_group)}
        update |= {key: table for key in ("grouped", "script_env") if (table := getattr(other, key)) is not None}
        if other.guest is not None:
            update["guest"] = self.guest.model_copy(
                update={key: getattr(other.guest, key) for key in other.guest.model_fields_set}
            )
        return self.model_copy(update=update)

    def tcg_threads(self, arch: Arch) -> TcgThreads:
        """Return the setting for the host threads of guests, that of the guest before that of `[run]`."""
        return self.guest[arch].tcg_threads or self.run.tcg_threads


def workspace_model(data: Mapping[str, object]) -> type[WorkspaceConfig]:
    """Return the model for the content of a `qcase.toml`: with `[toolchain.<name>]` of plug-ins if it has such tables."""
    tables = data.get("toolchain")
    named = tables.keys() - Toolchains.model_fields.keys() if isinstance(tables, Mapping) else ()
    return _with_toolchains(tuple(name for name in added_toolchains() if name in named)) if named else WorkspaceConfig


def whole_model() -> type[WorkspaceConfig]:
    """Return the model of a `qcase.toml` with the tables of all plug-ins."""
    return _with_toolchains(added_toolchains())


@functools.cache
def _with_toolchains(names: tuple[str, ...]) -> type[WorkspaceConfig]:
    if not names:
        return WorkspaceConfig
    # By an alias: pydantic has attributes of its own, such as `copy` and `json`.
    added: dict[str, Any] = {f"added_{at}": (Toolchain, Field(Toolchain(), alias=name)) for at, name in enumerate(names)}
    tables = create_model("Toolchains", __base__=Toolchains, __module__=__name__, **added)
    fields: dict[str, Any] = {"toolchain": (tables, tables())}
    return create_model("WorkspaceConfig", __base__=WorkspaceConfig, __module__=__name__, **fields)


# ---- from bytes to models, and errors with their places

M = TypeVar("M", bound=BaseModel)
