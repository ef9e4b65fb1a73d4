"""Ingredients of a case: all files and folders of the user on which its keys or its verdict depend.

Keys are computed from the files that the functions here name, and `--changed` compares the same files with git's changes. A new
input of a case must be added here, or `tests/torture/test_ingredients.py` fails.

    case        its folder; qemu-<arch>.toml; the sources of its overlays, with the targets of their links
    build group build-<target>.toml of every folder above it
    workspace   qcase.toml, qcase.lock, qcase-images.lock, the hook, keys and folders of packages
    guest       rootfs, or the case's own root filesystem, other disks, kernel, initrd, firmware
    arguments   files that `args` name

Not ingredients: QEMU, the container engine, firmware and environment variables of this machine, and qcase itself.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qcase.arch import Arch
from qcase.config import image_lock
from qcase.config.known_file import KNOWN_FILE
from qcase.config.services_table import Service
from qcase.config.workspace_file import WORKSPACE_FILE
from qcase.model import Pipeline
from qcase.pipelines import sources as sources_module
from qcase.pipelines.sources import Source, check_inside, find, reach, steps
from qcase.suite import root_images
from qcase.suite.cases import BrokenCase, Case, Workspace
from qcase.suite.discover import others_within
from qcase.suite.ignored import Ignored
from qcase.suite.scan import PROJECT_FILE


@dataclass(frozen=True)
class Place:
    """The source folder of one overlay. `subcase`: the name of its subcase.

    `project`: a CMake project in the group's own folder, for all its subcases in C.
    """

    path: Path
    pipeline: Pipeline
    others: frozenset[Path]
    subcase: str = ""
    project: bool = False

    @property
    def folder(self) -> str:
        """The name of the source folder's child for this pipeline; empty for a project."""
        return "" if self.project else self.pipeline.value

    def sources(self, workspace: Workspace, ignored: Ignored) -> tuple[Source, ...]:
        """Return the files that a build sees, for the key and the copy. Raises the errors of `sources.find`."""
        found = find(self.path, self.folder, workspace.root, self.others, ignored)
        if workspace.config.run.trust == "sandboxed":
            check_inside(found, workspace.root)
        return found

    def place(self, workspace: Workspace) -> str:
        """Return the position of the folder within its source files, see `sources.place`."""
        return sources_module.place(self.path, self.folder, workspace.root)

    def reach(self, workspace: Workspace, ignored: Ignored) -> set[Path]:
        """Return the paths of the sources for a comparison with git's changes, see `sources.reach`."""
        return reach(self.path, self.folder, workspace.root, self.others, ignored)


def source_places(case: Case) -> list[Place]:
    """Return all source folders of a case. A CMake project in a group's own folder replaces the group's subcases in C."""
    if case.pipeline in (Pipeline.PLAIN, Pipeline.KTEST):
        return []
    if case.pipeline is not Pipeline.GROUPED:
        return [Place(case.path, case.pipeline, others_within(case, case.path))]
    found = []
    if (case.path / PROJECT_FILE).is_file():
        found.append(Place(case.path, Pipeline.C, others_within(case, case.path, project=True), project=True))
    return found + [
        Place(subcase.path, subcase.kind, others_within(case, subcase.path), subcase.name)
        for subcase in case.subcases
        if not (found and subcase.kind is Pipeline.C)
    ]


def of_case(
    case: Case | BrokenCase, workspace: Workspace, environ: Mapping[str, str], ignored: Ignored | None = None
) -> frozenset[Path]:
    """Return the files and folders whose change may change a case's keys or verdict. A folder stands for all its contents.

    The paths need not exist. No path leads through a link: links are listed themselves, as by `sources.steps`. The exceptions
    in the case's folder are the files of `other_configurations`.
    """
    found = set(workspace_files(workspace, environ))
    # `case.path` is the resolved folder, also for a case that is found through a link.
    shown = case.display_name.removeprefix(case.prefix)
    for named in (case.path, workspace.suite_root / shown, workspace.suite_root / case.group / shown):
        found |= steps(named)
    if isinstance(case, BrokenCase):
        return frozenset(found)
    for path in (*_configurations(case), *build_configurations(case, workspace, case.arch.default_target)):
        found |= steps(path)
    for place in source_places(case):
        found |= place.reach(workspace, ignored or Ignored())
    for path in (
        *guest_files(workspace, case.arch).values(),
        *root_images.files(case, workspace),
        *_in_arguments(case, workspace),
        *_served(case, workspace),
    ):
        found |= steps(path)
    return frozenset(found)


def _configurations(case: Case) -> tuple[Path, ...]:
    """Return the files of a case's configuration: two for a profile of a group."""
    return (case.config_path,) if case.group_config is None else (case.config_path, case.group_config)


def other_configurations(case: Case | BrokenCase) -> frozenset[Path]:
    """Return the configuration files of other architectures and variants in a case's folder."""
    if isinstance(case, BrokenCase):
        return frozenset()
    return frozenset(
        {*(case.path / f"qemu-{arch}.toml" for arch in Arch), *case.path.glob("qemu-*.toml")} - {*_configurations(case)}
    )


def build_configurations(case: Case | BrokenCase, workspace: Workspace, target: str) -> list[Path]:
    """Return the possible paths of a case's `build-<target>.toml`, nearest first, in a folder that of its variant first."""
    tops = (workspace.root, Path(os.path.realpath(workspace.suite_root)))  # a suite may lie outside of the workspace
    folders = [folder for folder in (case.path, *case.path.parents) if any(folder.is_relative_to(top) for top in tops)]
    variant = case.variant if isinstance(case, Case) else ""
    names = [f"{target}-{variant}", target] if variant else [target]
    return [folder / f"build-{name}.toml" for folder in folders for name in names]


def workspace_files(workspace: Workspace, environ: Mapping[str, str]) -> frozenset[Path]:
    """Return the ingredients that all cases of a workspace share, see `sources.steps`."""
    from qcase.guests.packages import lock, repositories

    named = [workspace.root / name for name in (WORKSPACE_FILE, lock.LOCK_FILE, image_lock.FILE)]
    named += [folder / KNOWN_FILE for folder in (workspace.root, workspace.suite_root)]
    if (script := hook(workspace)) is not None:
        named.append(script)
    lines, keys = repositories.named(workspace.config, workspace.root, environ)
    named += [Path(line) for line in lines or () if not repositories.is_remote(line)]
    named += keys or ()
    return frozenset(step for path in named for step in steps(path))


def closed(workspace: Workspace, arch: Arch) -> frozenset[Path]:
    """Return the resolved paths of a sandboxed workspace that qcase reads after a kernel build. No build may write to them."""
    from qcase.guests.packages import lock

    named = [workspace.root / WORKSPACE_FILE, workspace.root / lock.LOCK_FILE, *guest_files(workspace, arch).values()]
    named += [workspace.root / source for source in workspace.config.guest[arch].disks.values() if isinstance(source, str)]
    config = workspace.config.packages
    named += [workspace.root / name for name in (*(config.repositories or ()), *(config.keys or ())) if "://" not in name]
    if (script := hook(workspace)) is not None:
        named.append(script)
    named += [workspace.suite_root] if workspace.suite_root != workspace.root else _with_cases(workspace.root)
    return frozenset(Path(os.path.realpath(path)) for path in named)


def _with_cases(root: Path) -> Iterator[Path]:
    """Yield the direct subfolders of a suite's root that contain cases."""
    for folder in root.iterdir():
        if (
            not folder.name.startswith(".")
            and folder.name != "target"
            and folder.is_dir()
            and next(folder.rglob("qemu-*.toml"), None) is not None
        ):
            yield folder


def hook(workspace: Workspace) -> Path | None:
    """Return the path of the script that prepares the staging root, None without one. The file need not exist."""
    name = workspace.config.hooks.prepare_staging_root
    return None if name is None else workspace.root / name


def guest_files(workspace: Workspace, arch: Arch) -> dict[str, Path]:
    """Return the workspace's files of a guest, by their keys in `[guest.<arch>]`; empty for built-in guests."""
    guest = workspace.config.guest[arch]
    named = {key: getattr(guest, key) for key in ("rootfs", "kernel", "initrd", "firmware", "firmware_vars")}
    return {key: workspace.root / value for key, value in named.items() if isinstance(value, str)}


def _in_arguments(case: Case, workspace: Workspace) -> Iterator[Path]:
    """Yield the parts of QEMU's arguments that look like paths. An extra path costs a run of the case, a missing one gives a
    wrong result.
    """
    for argument in case.config.args:
        for word in (argument, *argument.split(",")):
            for value in (word, word.partition("=")[2], word.rpartition("=")[2], word.partition(":")[2]):
                named = "/" in value and "\0" not in value and not value.startswith("/dev/")
                if named or (value and (workspace.root / value).is_file()):
                    yield workspace.root / value


def _served(case: Case, workspace: Workspace) -> Iterator[Path]:
    """Yield the folders that the host's services give to the guest."""
    for text in case.config.services:
        if (folder := Service.parse(text).folder) is not None:
            yield workspace.root / folder


def covers(ingredients: Collection[Path], path: Path) -> bool:
    """Tell whether a path is one of the ingredients, or inside one."""
    return any(above in ingredients for above in (path, *path.parents))
