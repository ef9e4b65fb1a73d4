"""How a case's files are made: one module a pipeline, and what they share.

Each pipeline has a `CRAFT`: what has to be known of it before it builds (what enters its keys), and its `build(source, overlay,
workshop)`, which fills an empty overlay folder, laid out as in the guest, or raises `BuildError`. `qcase.pipelines.crafts` is
the table of them. `source` is a copy of the case's folder (`qcase.pipelines.sources`) that nobody edits meanwhile, and in which
the build may write.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.config import WorkspaceConfig
from qcase.errors import BuildError
from qcase.keys import JSON, Key
from qcase.model import Arch

if TYPE_CHECKING:
    from qcase.containers import Engine
    from qcase.packages import Supply

# Where a step finds its things, on every host. No path of the host reaches an output.
SRC = "/qcase/src"
STAGING = "/qcase/staging"
BUILD = "/qcase/build"
OVERLAY = "/qcase/overlay"

STEP_TIMEOUT = 1800.0  # seconds
STEP_MEMORY = 4 << 30  # bytes
STEP_PIDS = 2048

_PLAIN = 1 << 20  # bytes that are read of what a step wrote for us


@dataclass(frozen=True)
class Workshop:
    """What a build works with. `scratch` is a fresh folder of its own; `log` takes what the build says.

    `engine` and `image` connect to the container engine and find (or build) a toolchain image, by its name, when they are first
    called, `staging` unpacks the base image, `supply` gets packages and `apk` unpacks the program: a build that needs none of
    them does not wait for them. `packages`: what the case's own configuration asks for. `download` gives what is kept in the
    store under a key and a name, fetching it on a miss, unless this run is `offline`. `environment` is for build steps;
    `environ`, the user's own, for fetch steps alone.
    """

    case: str
    arch: Arch
    scratch: Path
    log: Path
    config: WorkspaceConfig
    base: Path
    staging: Callable[[], Path]
    engine: Callable[[], Engine]
    image: Callable[[str], str]
    environment: dict[str, str]
    environ: Mapping[str, str]
    offline: bool
    download: Callable[[Key, str, Callable[[Path], None]], Path]
    say: Callable[[str], None]
    warn: Callable[[str], None]
    supply: Callable[[], Supply]
    apk: Callable[[], Path]
    packages: tuple[str, ...] = ()


def _nothing(_arch: Arch, _config: WorkspaceConfig) -> Mapping[str, JSON]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Craft:
    """What `qcase.prepare` needs of a pipeline.

    `recipe` enters every key: a number that is raised when the same sources would give another overlay. `image`: the toolchain
    image, whose identity enters the key; None where no container is needed. `reads_staging`: the build looks into the staging
    root, so what that is made of enters the key. `settings`: what else of the configuration reaches a build, by name.
    `prebuild`: the folder in which a script may stand that asks for packages. `packages`: what each case needs in the guest.
    """

    recipe: int | str
    image: str | None = None
    reads_staging: bool = False
    settings: Callable[[Arch, WorkspaceConfig], Mapping[str, JSON]] = _nothing
    prebuild: str | None = None
    packages: tuple[str, ...] = ()
    build: Callable[[Path, Path, Workshop], None]


def make_folders(overlay: Path, path: str) -> Path:
    """The folder `path` of an overlay, and those above it: 0755 in the guest, whatever our umask is.

    A link is not followed: a build may have put it there, and it leads out of the overlay. Raises `BuildError` for one.
    """
    folder = overlay
    for name in path.split("/"):
        folder = folder / name
        if folder.is_symlink():  # a build planted it, and it may lead anywhere on the host
            what = f"{folder.relative_to(overlay)} is a link in the overlay, and files of ours have to go there"
            raise BuildError(what, hint="install into the folder that it leads to")
        if not folder.is_dir():
            folder.mkdir()
            folder.chmod(0o755)
    return folder


def require_folder(path: Path, case: str) -> None:
    if not path.is_dir():
        raise BuildError(f"there is no folder {path.name}/", where=case)


def read_plain(path: Path) -> str:
    """What a step wrote into a file, and nothing where there is none. A link that a build put in its place is not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        return file.read(_PLAIN).decode("utf-8", "replace") if stat.S_ISREG(os.fstat(descriptor).st_mode) else ""
