"""Pipelines, which build the overlays of cases: one module a pipeline, and their shared parts.

Each pipeline has a `SPEC`: its description (`PipelineSpec`), which enters its keys, with its `build(source, overlay, context)`.
The build fills an empty overlay folder, laid out as in the guest, or raises `BuildError`. `qcase.pipelines.registry` is the
table of pipelines. `source` is a copy of the case's folder (`qcase.pipelines.sources`); no other process edits it, and
the build may write to it. Every folder that a step may write to is a `qcase.host.trees.Tree`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qcase.arch import Arch
from qcase.canonical import JSON
from qcase.config.fields import Cargo
from qcase.config.workspace_file import WorkspaceConfig
from qcase.errors import BuildError
from qcase.host.trees import PlantedError, Tree
from qcase.model import Pipeline
from qcase.store.keys import Key
from qcase.suite.templates import Sources

if TYPE_CHECKING:
    from qcase.containers.engine import Engine
    from qcase.containers.step import Step, StepResult
    from qcase.crates.pool import Pool
    from qcase.guests.packages.supply import PackageSupplier


# Paths inside a step's container, the same on every host. No path of the host reaches an output.
SRC = "/qcase/src"
STAGING = "/qcase/staging"
BUILD = "/qcase/build"
OVERLAY = "/qcase/overlay"
WHOLE = "/qcase/whole"  # the sources once more, where something beside the case belongs to them

SCRIPT = "prebuild.sh"  # runs before a build, if the sources have it

STEP_TIMEOUT = 1800.0  # seconds
STEP_MEMORY = 4 << 30  # bytes
STEP_PIDS = 2048

_PLAIN = 1 << 20  # bytes read of a file that a step wrote for qcase


class BuildServices(Protocol):
    """Services of the run for a build. Each is made on first use: a build that needs no engine does not wait for one."""

    def say(self, what: str) -> None:
        """Tell the user what the build does now."""

    def warn(self, message: str) -> None:
        """Show a warning."""

    def engine(self) -> Engine:
        """Return the container engine, connected on first use."""
        ...

    def run(self, step: Step) -> StepResult:
        """Run a step that reads nothing but the common input of the case's builds.

        It may run in a container that has run another build's step, see `qcase.containers.reuse`.
        """
        ...

    def image(self, name: str) -> str:
        """Return the id of a toolchain image, built if it is missing."""
        ...

    def identity(self, name: str) -> str:
        """Return the name of a toolchain image in keys."""
        ...

    def staging(self) -> Tree:
        """Return the staging root: the unpacked base image, after the workspace's hook script ran on it."""
        ...

    def supply(self) -> PackageSupplier:
        """Return the supplier of packages."""
        ...

    def apk(self) -> Tree:
        """Return apk and its libraries, unpacked from the built-in Alpine guest."""
        ...

    def checks(self) -> Tree | None:
        """Return the results of CMake's compiler checks, made once per toolchain; None if there are none."""
        ...

    def download(self, key: Key, name: str, fetch: Callable[[Tree], None]) -> Tree:
        """Return the content of the store under a key and a name. On a miss `fetch` gets it, unless the run is `offline`."""
        ...


@dataclass(frozen=True)
class BuildContext:
    """The build of one overlay: its settings, its folders, and the services of the run.

    `scratch` is a fresh folder of its own; `log` receives the build's output. `packages`: the packages that the case's
    configuration requests. `options`: command-line options of build systems, by name. `pool` is the cache of crates. `cargo`: the
    cargo command for a crate. `place`: the case's folder in the sources, see `sources.place`. `origin`: the case's folder in the
    workspace. `environment` is for build steps; `environ`, the user's own, for fetch steps alone.
    """

    case: str
    arch: Arch
    scratch: Path
    log: Path | Tree
    config: WorkspaceConfig
    base: Path
    environment: dict[str, str]
    environ: Mapping[str, str]
    offline: bool
    services: BuildServices
    pool: Pool
    packages: tuple[str, ...] = ()
    cargo: Cargo = "build"
    place: str = ""
    origin: str = "."
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def folder(self, name: str, what: str = "", *, there: bool = False) -> Tree:
        """Create a folder in `scratch` for steps to write to. `what`: its name in messages.

        `there`: the caller creates the folder itself.
        """
        tree = Tree(self.scratch / name, what=what or f"the {name} folder")
        if not there:
            tree.mkdir()
        return tree


def _nothing(_arch: Arch, _config: WorkspaceConfig) -> Mapping[str, JSON]:
    return {}


def _no_programs(_folder: Path) -> set[str]:
    return set()


def _unknown(_folder: Path) -> None:
    return None


def _none_unread(_case: Path, _workspace: Path) -> list[str]:
    return []


@dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """Specification of a pipeline. Its name is that of the folder of a case that holds its sources, as in `c/`.

    `build` fills an empty overlay from the copy of a case's sources, or raises `BuildError`. `recipe` enters every key: a number
    that is raised when the same sources would give another overlay. `image`: the toolchain image, whose identity enters the key;
    None if no container is needed. `reads_staging`: the build reads the staging root, so its identity enters the key.
    `settings`: further configuration that a build uses, by name. `prebuild`: the folder that may contain a script with package
    requests. `packages`: packages that each case needs in the guest. `options`: the keys of `[qcase]` with additions to the
    pipeline's command lines.

    `project_files`: `qcase lint` misses one of these in the folder; without any, a file of any name. `programs`: the names of the
    programs that a folder builds, for lint, if its files state them literally, else an empty set. `installs`: the names of all
    programs that a folder installs, None if that is not certain or if it installs other files too: a group leaves such a subcase
    out if no command can run one (`qcase.pipelines.group_installs`). `copies`: the folder's files are installed unchanged.
    `unread`: files above a case, in the workspace, that the same tools would read outside of qcase, and a build does not.
    `template`: the files of a new case. `recipes`: the folder with `<image>/Containerfile`, None for an image of qcase's own.
    """

    name: Pipeline
    recipe: int | str
    image: str | None = None
    reads_staging: bool = False
    settings: Callable[[Arch, WorkspaceConfig], Mapping[str, JSON]] = _nothing
    prebuild: str | None = None
    packages: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    project_files: tuple[str, ...] = ()
    programs: Callable[[Path], set[str]] = _no_programs
    installs: Callable[[Path], Collection[str] | None] = _unknown
    copies: bool = False
    unread: Callable[[Path, Path], Sequence[str]] = _none_unread
    template: Callable[[str], Sources] | None = None
    recipes: Path | None = None
    build: Callable[[Tree, Tree, BuildContext], None]


def hint_without(wanted: Sequence[str], names: Collection[str]) -> str:
    """Return advice about a folder without any of the `wanted` project files. `names`: the names of what is in the folder."""
    made = next(
        (name for name in ("configure.ac", "configure.in", "autogen.sh") if name in names and "configure" in wanted), None
    )
    if made is not None:
        return (
            f"it has {made}: its authors' tools, run once outside (autoreconf -i), make the script configure that a release has"
        )
    return f"a project is built by one of {', '.join(wanted)}" if len(wanted) > 1 else ""


def make_folders(overlay: Tree, path: str) -> Tree:
    """Create the folder `path` of an overlay and its parents, mode 0755 in the guest regardless of qcase's umask, and return it.

    A link is not followed: a build may have put it there, and it leads out of the overlay. Raises `BuildError` for one.
    """
    folder = overlay / path
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def in_own_paths(context: BuildContext, *others: str) -> Iterator[None]:
    """Have a `BuildError` name sources by their paths in the workspace, in place of those in a container.

    `others`: further paths by which a build's messages name `SRC`, relative to its own folder.
    """
    try:
        yield
    except BuildError as error:
        error.what, error.log = (_own_paths(text, context, others) for text in (error.what, error.log))
        raise


def _own_paths(text: str, context: BuildContext, others: Sequence[str]) -> str:
    own = "" if context.origin == "." else f"{context.origin}/"
    above = own.removesuffix(f"{context.place}/") if context.place else own
    for place in (SRC, *others):
        text = text.replace(f"{place}/", own)
    return text.replace(f"{WHOLE}/", above)


def require_folder(folder: Tree, case: str) -> None:
    if not folder.is_dir():
        raise BuildError(f"there is no folder {folder.name}/", where=case)


def stage_of(file: Tree) -> str:
    """Return the name of the stage in which a step failed, as the step wrote it; "the container" if it is not printable.

    The text is untrusted: control characters in it could be read as commands, for instance by a CI service.
    """
    said = read_plain(file, 200)
    return said if said and said.isprintable() else "the container"


def read_plain(file: Tree, largest: int = _PLAIN) -> str:
    """Read at most `largest` bytes of a file that a step wrote; the empty string if the file does not exist or cannot be read."""
    try:
        return file.read_bytes(largest).decode("utf-8", "replace")
    except (OSError, PlantedError):
        return ""
