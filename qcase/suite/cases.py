"""Cases, groups and workspaces."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from qcase import plugins
from qcase.arch import Arch
from qcase.config.case_file import CaseConfig, memory, smp
from qcase.config.fields import Trust
from qcase.config.load import find_workspace, load_workspace_config
from qcase.config.workspace_file import WorkspaceConfig
from qcase.errors import ConfigError, Problem, QcaseError, UsageError
from qcase.model import Pipeline
from qcase.text import printable

# The pipelines of a folder of sources, which has the pipeline's name; in the order in which errors name them.
_FOLDERS = (Pipeline.C, Pipeline.SH, Pipeline.PYTHON, Pipeline.RUST)
ARCHES: Mapping[str, Arch] = {arch.value: arch for arch in Arch}


@functools.cache
def source_folders() -> Mapping[str, Pipeline]:
    """Return the names of folders that hold a case's sources, and the pipeline that each one means."""
    added = plugins.names(plugins.PIPELINES, tuple(Pipeline))
    return {name: Pipeline(name) for name in (*(pipeline.value for pipeline in _FOLDERS), *added)}


def pipeline_names() -> list[str]:
    """Return the names of all pipelines, those of qcase first."""
    return [*Pipeline, *plugins.names(plugins.PIPELINES, tuple(Pipeline))]


def keep_one_folder(also: str = "") -> str:
    """Return the hint for a case of several pipelines. `also`: another thing that is one of a kind with the folders."""
    *first, last = (f"{name}/" for name in source_folders())
    return f"keep one of {', '.join([also, *first] if also else first)} and {last}"


@dataclass(frozen=True)
class Workspace:
    """Folder with `qcase.toml`, and its configuration."""

    root: Path  # without symbolic links
    config: WorkspaceConfig  # that counts for the suite
    suite: str = ""  # the name of the suite, if it is one of `[suites.<name>]`

    @classmethod
    def open(cls, start: Path) -> Workspace:
        """Open the workspace around `start`. Raises `UsageError` if there is none, `ConfigError` if its file is invalid."""
        root = find_workspace(start)
        opened = cls(root, load_workspace_config(root / "qcase.toml"))
        return opened.trusted(os.environ.get("QCASE_TRUST", ""), "QCASE_TRUST")

    def trusted(self, trust: str, where: str) -> Workspace:
        """Return this workspace with another trust than its file sets; itself if `trust` is empty.

        Raises `UsageError` for an unknown word.
        """
        if not trust:
            return self
        if trust not in get_args(Trust):
            raise UsageError(f"{trust!r} is no trust", where=where, hint=f"there are: {', '.join(get_args(Trust))}")
        run = self.config.run.model_copy(update={"trust": trust})
        return replace(self, config=self.config.model_copy(update={"run": run}))

    @property
    def sandboxed(self) -> bool:
        return self.config.run.trust == "sandboxed"

    def keeps(self, path: Path) -> bool:
        """Tell whether a path of the workspace ends in it, wherever links lead."""
        return Path(os.path.realpath(path)).is_relative_to(self.root)

    def check_target(self) -> None:
        """Raise `ConfigError` for a stranger's workspace whose `target/` is elsewhere."""
        if self.sandboxed and not self.keeps(self.root / "target"):
            what = 'leads out of the workspace: refused under trust = "sandboxed"'
            raise ConfigError([Problem(what, "target", hint="remove the link")])

    def scaled(self, timeout_scale: float) -> Workspace:
        """Return this workspace with every timeout multiplied by `timeout_scale`, in place of its file's factor."""
        run = self.config.run.model_copy(update={"timeout_scale": timeout_scale})
        return replace(self, config=self.config.model_copy(update={"run": run}))

    def cold(self) -> Workspace:
        """Return this workspace with every case booted from the start."""
        run = self.config.run.model_copy(update={"branch": "never"})
        return replace(self, config=self.config.model_copy(update={"run": run}))

    def of_suite(self, name: str) -> Workspace:
        """Return this workspace with one of its further suites; itself for the empty name.

        Raises `UsageError` for an unknown one.
        """
        if not name:
            return self
        if name not in self.config.suites:
            known = ", ".join(self.config.suites)
            hint = f"there are: {known}" if known else "[suites.<name>] in qcase.toml makes one"
            raise UsageError(f"there is no suite {printable(name)!r}", where="--suite", hint=hint)
        return replace(self, config=self.config.of_suite(name), suite=name)

    @property
    def suites(self) -> tuple[Workspace, ...]:
        """Workspaces of all suites, that of `[suite]` first."""
        return (self, *(self.of_suite(name) for name in self.config.suites)) if not self.suite else (self,)

    @property
    def prefix(self) -> str:
        """The beginning of all display names: they are unique in the workspace, whatever its suites have."""
        return f"{self.suite}/" if self.suite else ""

    @property
    def suite_root(self) -> Path:
        return self.root / self.config.suite.root

    def relative(self, path: Path) -> str:
        """Return `path` for messages: relative to the workspace if it lies within, and printable."""
        return printable(str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path))


def path_name(group: str, below: str) -> str:
    """Return the path of a case below the suite's root: its display name in a run of several groups.

    `below` is just the variant or the machine of a case in the group's own folder: `-nvme`.
    """
    return f"{group}/{below}" if below and not below.startswith("-") else f"{group}{below}"


@dataclass(frozen=True)
class Subcase:
    """A part of a grouped case with sources of its own: `path` contains the folder that `kind` is named after.

    `flat`: `path` holds the sources themselves, as a part of the CMake project in the group's own folder. Its name is its path
    below the group.
    """

    name: str
    path: Path
    kind: Pipeline
    flat: bool = False

    @property
    def sources(self) -> Path:
        """The folder with the subcase's build file or scripts."""
        return self.path if self.flat else self.path / self.kind.value


@dataclass(frozen=True)
class Case:
    """A case that can be prepared and run on `arch`. `build_group` is empty for a case outside of build groups."""

    name: str
    display_name: str
    group: str
    build_group: str
    path: Path
    arch: Arch
    config_path: Path
    config: CaseConfig
    pipeline: Pipeline
    subcases: tuple[Subcase, ...] = ()
    warnings: tuple[Problem, ...] = ()
    variant: str = ""  # of `qemu-<arch>-<variant>.toml`; its name ends with it
    only: str = ""  # the name of the one subcase whose commands are run, where it was chosen as `<group>/<subcase>`

    is_group: bool = False  # a group or a build group as well: only below such a case there are others
    below: str = ""  # its path below the group, with the variant and the subcase
    in_group: str = ""  # its display name in a run of its group alone, if that is another one
    machine: str = ""  # of `[[qcase.matrix]]`; its name ends with it
    profile: str = ""  # of `[[grouped_qemu_profiles]]`; its name ends with it
    group_config: Path | None = None  # of a profile: the file of the group, whose keys count where `config_path` has none
    prefix: str = ""  # of its display names: the name of one of the further suites, and a slash
    test: str = ""  # the one test inside that is run, where it was chosen as `<case>::<test>`
    repetition: int = 0  # counts from 1 where a case runs several times in one run; then `#<n>` ends its display name

    @property
    def plain_name(self) -> str:
        """The display name without the number of the repetition and without a test inside."""
        name = self.display_name.removesuffix(f"#{self.repetition}") if self.repetition else self.display_name
        return name.removesuffix(f"::{self.test}") if self.test else name

    @property
    def whole(self) -> str:
        """The display name of the whole case of which this is a part; its own for a whole case."""
        return self.plain_name.removesuffix(f"/{self.only}") if self.only else self.plain_name

    @property
    def stored_as(self) -> str:
        """The name in the lock of packages and in the store's notes, the same for a run of one group and of several."""
        return self.in_group or self.plain_name

    @property
    def stored_whole(self) -> str:
        return self.stored_as.removesuffix(f"/{self.only}") if self.only else self.stored_as

    def entire(self) -> Case:
        """Return the whole case of which this is a part."""
        return replace(self, only="", display_name=self.whole, in_group=self.in_group.removesuffix(f"/{self.only}"))

    @property
    def other_names(self) -> tuple[str, ...]:
        """The display name in a run of several groups, and that in a run of its group alone, as far as they are others."""
        if self.test:
            return ()  # its result is not that of the case
        return tuple({self.prefix + path_name(self.group, self.below), self.in_group} - {"", self.plain_name})

    def by_path(self) -> Case:
        """Return this case as a run of several groups shows it."""
        return replace(self, display_name=self.prefix + path_name(self.group, self.below), in_group=self.display_name)

    def in_suite(self, prefix: str) -> Case:
        """Return this case as one of a further suite shows it."""
        return replace(self, display_name=prefix + self.display_name, prefix=prefix)

    def machines(self) -> tuple[Case, ...]:
        """Return the cases of `[[qcase.matrix]]`; this one if there is no matrix."""
        found = []
        for row in self.config.matrix:
            machine, *args = row.split("\0")
            config = replace(self.config, args=tuple(args), smp=smp(args), memory=memory(args), matrix=())
            name, shown, below = (f"{name}-{machine}" for name in (self.name, self.display_name, self.below))
            found.append(replace(self, name=name, display_name=shown, below=below, machine=machine, config=config))
        return tuple(found) or (self,)

    def part(self, subcase: Subcase) -> Case:
        """Return this grouped case with the commands of one subcase alone."""

        def named(name: str) -> str:
            return f"{name}/{subcase.name}" if name else ""

        return replace(
            self,
            name=named(self.name),
            display_name=named(self.display_name),
            only=subcase.name,
            below=named(self.below) or subcase.name,
            in_group=named(self.in_group),
        )


@dataclass(frozen=True)
class BrokenCase:
    """An invalid place in the suite. `whole_tree`: the folders below it could not be read."""

    name: str
    display_name: str
    group: str
    build_group: str
    path: Path
    error: QcaseError
    whole_tree: bool = False
    below: str = ""
    in_group: str = ""

    prefix: str = ""

    def by_path(self) -> BrokenCase:
        return replace(self, display_name=self.prefix + path_name(self.group, self.below), in_group=self.display_name)

    def in_suite(self, prefix: str) -> BrokenCase:
        return replace(self, display_name=prefix + self.display_name, prefix=prefix)


@dataclass(frozen=True)
class OtherCase:
    """A case that this discovery skipped: it is for other arches, or in build groups of other targets."""

    name: str
    display_name: str
    arches: tuple[Arch, ...]
    targets: tuple[str, ...] = ()  # of the build group around it; empty where the arch alone is the reason
    in_group: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class Discovery:
    """Cases of groups for one arch and target, sorted by display name. `warnings` belong to no case in `cases`.

    `scope`: the groups in words. `ignored`: the display names of cases that only a run by name includes.
    """

    groups: tuple[str, ...]
    scope: str
    arch: Arch
    target: str
    cases: tuple[Case | BrokenCase, ...]
    others: tuple[OtherCase, ...] = ()
    ignored: frozenset[str] = frozenset()
    warnings: tuple[Problem, ...] = ()
