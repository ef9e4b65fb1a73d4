"""The suite: which cases there are, what they are called, and which of them a command means.

    <suite root>/<group>/…/<build group>/…/<case>/qemu-<arch>.toml
                 │          │               │     c/ sh/ python/ rust/        at most one of them, or test_commands
                 │          │               └ a grouped case's children with c/, rust/, sh/ or python/ are its subcases
                 │          └ the first folder going down with build-<target>.toml; may be a case itself; may be missing
                 └ a folder right below the suite's root

Names: a case is called by its path below its build group, and shown as `<build group>/<name>`, the build group being its path
below the group. A build group that is a case has one name for both. Without a build group around it, a case is called by its path
below the group and shown as `<group>/<name>`. A group that is itself a build group, or a case, lends its own name.

A folder below a build group of another target only is for that target, as a case without this arch's file is for another arch:
passed over, and named when it is asked for.

One scan of a group reads every folder once; nothing below a case, nor `c`, `sh`, `python`, `rust`, is entered. A symbolic
link to a folder is followed when the real folders are done, and only to where no one has been. What is wrong in one place
becomes a `BrokenCase` there and nothing elsewhere.
"""

from __future__ import annotations

import difflib
import fnmatch
import gc
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from qcase import parsed
from qcase.config import (
    CaseConfig,
    Placeholders,
    WorkspaceConfig,
    find_workspace,
    load_workspace_config,
    printable,
)
from qcase.errors import ConfigError, Problem, QcaseError, UsageError
from qcase.model import Arch, Pipeline

# Folders of a case that hold its sources, and the pipeline that each one means; in the order in which errors name them.
SOURCE_FOLDERS: Mapping[str, Pipeline] = {
    "c": Pipeline.C,
    "sh": Pipeline.SH,
    "python": Pipeline.PYTHON,
    "rust": Pipeline.RUST,
}

LIST_FORMAT = 1  # of `qcase list --json`

ARCHES: Mapping[str, Arch] = {arch.value: arch for arch in Arch}


@dataclass(frozen=True)
class Workspace:
    """The folder with `qcase.toml`, and what stands in there."""

    root: Path  # without symbolic links
    config: WorkspaceConfig

    @classmethod
    def open(cls, start: Path) -> Workspace:
        """The workspace around `start`. Raises `UsageError` where there is none, `ConfigError` where its file is wrong."""
        root = find_workspace(start)
        return cls(root, load_workspace_config(root / "qcase.toml"))

    def scaled(self, timeout_scale: float) -> Workspace:
        """With every limit of time multiplied by so much, whatever its file says."""
        run = self.config.run.model_copy(update={"timeout_scale": timeout_scale})
        return replace(self, config=self.config.model_copy(update={"run": run}))

    @property
    def suite_root(self) -> Path:
        return self.root / self.config.suite.root

    def relative(self, path: Path) -> str:
        """`path` as a person reads it in this workspace."""
        return printable(str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path))


@dataclass(frozen=True)
class Subcase:
    """A part of a grouped case that brings its own sources: `path` holds the folder that `kind` is named after."""

    name: str
    path: Path
    kind: Pipeline


@dataclass(frozen=True)
class Case:
    """A case that can be prepared and run on `arch`. `build_group` is empty where there is none."""

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
    only: str = ""  # the name of the one subcase whose commands are run, where it was chosen as `<group>/<subcase>`

    is_group: bool = False  # a group or a build group as well: only below such a case there are others
    repetition: int = 0  # counts from 1 where a case runs several times in one run; then `#<n>` ends its display name

    @property
    def plain_name(self) -> str:
        """The display name, whichever repetition this is."""
        return self.display_name.removesuffix(f"#{self.repetition}") if self.repetition else self.display_name

    @property
    def whole(self) -> str:
        """The display name of the case that this is a part of; its own for a whole case."""
        return self.plain_name.removesuffix(f"/{self.only}") if self.only else self.plain_name

    def part(self, subcase: Subcase) -> Case:
        """This grouped case with the commands of one subcase alone."""
        return replace(
            self, name=f"{self.name}/{subcase.name}", display_name=f"{self.display_name}/{subcase.name}", only=subcase.name
        )


@dataclass(frozen=True)
class BrokenCase:
    """A place in the suite where something is wrong. `whole_tree`: what is below it could not be looked at."""

    name: str
    display_name: str
    group: str
    build_group: str
    path: Path
    error: QcaseError
    whole_tree: bool = False


@dataclass(frozen=True)
class OtherCase:
    """A case that this discovery passed over: it is for other arches, or in build groups of other targets."""

    name: str
    display_name: str
    arches: tuple[Arch, ...]
    targets: tuple[str, ...] = ()  # of the build group around it; empty where the arch alone is the reason


@dataclass(frozen=True)
class Discovery:
    """What a group holds for one arch and target, sorted by display name. `warnings` belong to no case in `cases`."""

    group: str
    arch: Arch
    target: str
    cases: tuple[Case | BrokenCase, ...]
    others: tuple[OtherCase, ...] = ()
    warnings: tuple[Problem, ...] = ()


def discover(workspace: Workspace, arch: Arch, target: str, group: str | None = None) -> Discovery:
    """The cases of `group` (None: `[suite] default_group`) for `arch`, with the build groups of `target`.

    Raises `UsageError` for a suite that is not there and for an unknown group; all else that is wrong is in the result.
    """
    group = _known_group(workspace, group)
    scan = _scan(workspace, group, arch, target)
    cases: list[Case | BrokenCase] = list(scan.broken)
    others: list[OtherCase] = []
    warnings: list[Problem] = []
    with _reader(workspace) as reader:
        for found in scan.found:
            strays = _strays(workspace, found)
            if arch in found.configs and not found.foreign_targets:
                cases.append(_load(workspace, found, arch, reader, strays))
            else:
                others.append(OtherCase(found.name, found.display_name, tuple(found.configs), found.foreign_targets))
                warnings += strays
    return Discovery(
        group,
        arch,
        target,
        tuple(_unique(workspace, cases)),
        tuple(sorted(others, key=lambda case: case.display_name)),
        tuple(warnings),
    )


def others_within(case: Case, folder: Path, *, project: bool = False) -> frozenset[Path]:
    """What is in `folder`, a case's own or that of a subcase, and belongs to other cases: their folders, and links to those.

    No link is on the way to any of these paths. What a case is does not depend on arch and target here, as no key may move for
    what another one has. With `project` the folders of subcases are the case's own, and only the configurations in them are not.
    """
    if not case.is_group:
        return frozenset()
    top = os.path.realpath(folder)
    found: set[Path] = set()
    seen = {top}
    todo = [] if top != os.path.realpath(case.path) and _configurations(top) else [top]
    while todo:
        here = todo.pop()
        try:
            with os.scandir(here) as entries:
                folders, _ = _sorted_entries(entries)
        except OSError:
            continue  # whoever reads the sources says so
        for name in folders:
            path = f"{here}/{name}"
            real = os.path.realpath(path)
            if name in SOURCE_FOLDERS or f"{top}/".startswith(f"{real.rstrip('/')}/"):
                continue
            configurations = _configurations(real)
            if not configurations:
                todo += {real} - seen
                seen.add(real)
            elif project and here == top and any(Path(path, kind).is_dir() for kind in SOURCE_FOLDERS):
                found |= {Path(real, file) for file in configurations}
            else:
                found |= {Path(path), Path(real)}
    return frozenset(found)


def _configurations(folder: str) -> list[str]:
    """What makes a folder a case; empty where it is none."""
    try:
        with os.scandir(folder) as entries:
            _, files = _sorted_entries(entries)
    except OSError:
        return []
    return files if any(name.startswith("qemu-") and not name.startswith("qemu-base-") for name in files) else []


def select(discovery: Discovery, patterns: Sequence[str]) -> tuple[Case | BrokenCase, ...]:
    """The cases that `patterns` mean, all of them where there are no patterns; in the order of the discovery.

    A pattern is a name or a display name, a folder above one, or a glob (`*` also matches `/`). Where it means no grouped case
    as a whole but a subcase of it, `<group>/<subcase>`, it means the commands of that subcase. Raises `UsageError`: a path
    that is absolute or has `..`; an unknown case; a case that is not for this arch; no case at all for this arch.
    """
    if not patterns:
        if not discovery.cases:
            raise _nothing_for(discovery)
        return discovery.cases
    chosen: set[str] = set()
    parts: dict[str, Case] = {}
    candidates = _Candidates(discovery.cases)
    for pattern in patterns:
        wanted = _checked(pattern)
        cases = candidates.of(wanted)
        matching = {case.display_name for case in cases if _matches(wanted, case)}
        some = {part.display_name: part for case in cases for part in _parts(wanted, case)}
        if not matching and not some:
            matching = {c.display_name for c in discovery.cases if isinstance(c, BrokenCase) and _is_inside(wanted, c)}
        if not matching and not some:
            raise _no_match(discovery, wanted)
        chosen |= matching
        parts |= some
    picked: list[Case | BrokenCase] = [case for case in discovery.cases if case.display_name in chosen]
    picked += [part for part in parts.values() if part.whole not in chosen]
    return tuple(sorted(picked, key=lambda case: case.display_name))


class _Candidates:
    """The cases that a name can mean, found by a table. A run of what failed may name a thousand of ten thousand cases."""

    def __init__(self, cases: Sequence[Case | BrokenCase]) -> None:
        self._all = cases
        self._by_path: dict[str, list[Case | BrokenCase]] = {}
        self._by_name: dict[str, list[Case | BrokenCase]] = {}
        self._trees = [case for case in cases if isinstance(case, BrokenCase) and case.whole_tree]
        for case in cases:
            for path in {path for name in (case.name, case.display_name) for path in _with_parents(name)}:
                self._by_path.setdefault(path, []).append(case)
            for name in {case.name, case.display_name}:
                self._by_name.setdefault(name, []).append(case)

    def of(self, wanted: str) -> Sequence[Case | BrokenCase]:
        if _is_glob(wanted):
            return self._all
        # Of a subcase, the case above; of anything, the places below which nobody could look.
        above = self._by_name.get(wanted.rpartition("/")[0], ())
        return [*self._by_path.get(wanted, ()), *above, *self._trees]


def _parts(wanted: str, case: Case | BrokenCase) -> Iterator[Case]:
    """The subcases of a grouped case that `wanted` means, unless it means the whole case."""
    if not isinstance(case, Case) or not case.subcases or _matches(wanted, case):
        return
    for subcase in case.subcases:
        if _means_part(wanted, case, subcase):
            yield case.part(subcase)


def _means_part(wanted: str, case: Case | OtherCase, subcase: Subcase) -> bool:
    names = (f"{case.name}/{subcase.name}", f"{case.display_name}/{subcase.name}")
    return wanted in names or (_is_glob(wanted) and any(fnmatch.fnmatchcase(name, wanted) for name in names))


def _is_inside(wanted: str, case: Case | BrokenCase | OtherCase) -> bool:
    """Whether `wanted` would be below `case`, as a subcase is."""
    return any(wanted.startswith(f"{name}/") for name in (case.name, case.display_name))


def resolve_pipeline(name: str, config: CaseConfig, folders: Collection[str], *, path: Path, workspace: Workspace) -> Pipeline:
    """The one pipeline of a case with these child folders. Raises `ConfigError`, which names them all, where there are more."""
    pipelines = [Pipeline.GROUPED] if config.is_grouped else []
    pipelines += [pipeline for folder, pipeline in SOURCE_FOLDERS.items() if folder in folders]
    if len(pipelines) > 1:
        raise ConfigError(
            [
                Problem(
                    f"case '{name}' has more than one pipeline: {', '.join(pipelines)}",
                    workspace.relative(path),
                    hint="keep one of test_commands, c/, sh/, python/ and rust/",
                )
            ]
        )
    return pipelines[0] if pipelines else Pipeline.PLAIN


@dataclass(frozen=True)
class CatalogueEntry:
    """A case for the listing, all arches together. `broken`: what is wrong, by arch; under "" what concerns them all."""

    name: str
    display_name: str
    build_group: str
    cases: Mapping[Arch, Case] = field(default_factory=dict)
    broken: Mapping[str, QcaseError] = field(default_factory=dict)
    path: Path = Path()

    @property
    def pipelines(self) -> Mapping[Arch, Pipeline]:
        return {arch: case.pipeline for arch, case in self.cases.items()}

    @property
    def subcases(self) -> tuple[Subcase, ...]:
        """Those of all arches: they are folders, so they differ only where one arch's file makes the case no grouped one."""
        return max((case.subcases for case in self.cases.values()), key=len, default=())

    @property
    def tags(self) -> Mapping[Arch, tuple[str, ...]]:
        return {arch: case.config.tags for arch, case in self.cases.items() if case.config.tags}


@dataclass(frozen=True)
class Catalogue:
    """Every case of every asked-for group, for every arch and target."""

    suite: str
    groups: Mapping[str, tuple[CatalogueEntry, ...]]
    warnings: tuple[Problem, ...] = ()

    def only(self, arch: Arch) -> Catalogue:
        """The cases that are for `arch`, and those that are broken for all."""
        groups = {
            group: tuple(e for e in entries if arch in e.cases or arch.value in e.broken or "" in e.broken)
            for group, entries in self.groups.items()
        }
        return replace(self, groups=groups)

    def where(self, keep: Callable[[Case | BrokenCase], bool]) -> Catalogue:
        """The cases that `keep` keeps, each for the arches for which it does."""
        groups: dict[str, tuple[CatalogueEntry, ...]] = {}
        for group, entries in self.groups.items():
            kept: list[CatalogueEntry] = []
            for entry in entries:
                cases = {arch: case for arch, case in entry.cases.items() if keep(case)}
                broken = {
                    arch: error
                    for arch, error in entry.broken.items()
                    if keep(BrokenCase(entry.name, entry.display_name, group, entry.build_group, entry.path, error))
                }
                if cases or broken:
                    kept.append(replace(entry, cases=cases, broken=broken))
            if kept:
                groups[group] = tuple(kept)
        return replace(self, groups=groups)


def catalogue(workspace: Workspace, group: str | None = None) -> Catalogue:
    """All cases of `group` (None: of all groups). A folder with any `build-*.toml` counts as a build group."""
    with _reader(workspace) as reader:
        return _catalogue(workspace, group, reader)


def _catalogue(workspace: Workspace, group: str | None, reader: parsed.Reader) -> Catalogue:
    groups: dict[str, tuple[CatalogueEntry, ...]] = {}
    warnings: list[Problem] = []
    for name in [_known_group(workspace, group)] if group is not None else _groups(workspace):
        scan = _scan(workspace, name, None, None)
        entries = [CatalogueEntry(b.name, b.display_name, b.build_group, {}, {"": b.error}, b.path) for b in scan.broken]
        for found in scan.found:
            loaded = {arch: _load(workspace, found, arch, reader, ()) for arch in found.configs}
            entries.append(
                CatalogueEntry(
                    found.name,
                    found.display_name,
                    found.build_group,
                    {arch: case for arch, case in loaded.items() if isinstance(case, Case)},
                    {arch.value: case.error for arch, case in loaded.items() if isinstance(case, BrokenCase)},
                    found.path,
                )
            )
            warnings += _strays(workspace, found)
        groups[name] = tuple(sorted(entries, key=lambda entry: entry.display_name))
    return Catalogue(workspace.config.suite.name, groups, tuple(warnings))


def named(listed: Catalogue, patterns: Sequence[str]) -> Catalogue:
    """The cases of a catalogue that `patterns` mean, as `select` has it. Raises `UsageError` for one that means none."""
    found: dict[str, list[CatalogueEntry]] = {group: [] for group in listed.groups}
    wanted = [_checked(pattern) for pattern in patterns]
    used: set[str] = set()
    for group, entries in listed.groups.items():
        for entry in entries:
            stand_in = OtherCase(entry.name, entry.display_name, ())
            whole = {pattern for pattern in wanted if _matches(pattern, stand_in)}
            parts = {
                subcase.name: {pattern for pattern in wanted if _means_part(pattern, stand_in, subcase)}
                for subcase in entry.subcases
            }
            used |= whole.union(*parts.values())
            if whole:
                found[group].append(entry)
            elif any(parts.values()):
                cases = {
                    arch: replace(case, subcases=tuple(s for s in case.subcases if parts.get(s.name)))
                    for arch, case in entry.cases.items()
                }
                found[group].append(replace(entry, cases=cases))
    for pattern in wanted:
        if pattern not in used:
            everything = sorted(
                {name for entries in listed.groups.values() for e in entries for name in (e.name, e.display_name)}
            )
            near = difflib.get_close_matches(pattern, everything, n=1)
            kind = "no case matches" if _is_glob(pattern) else "unknown case"
            raise UsageError(f"{kind} '{printable(pattern)}'", hint=f"did you mean '{near[0]}'?" if near else "")
    return replace(listed, groups={group: tuple(entries) for group, entries in found.items() if entries})


def listing(listed: Catalogue) -> list[str]:
    """The lines of `qcase list`: suite, groups, build groups and cases as a tree; of each case pipeline and arches."""
    root = _Node(listed.suite)
    for group, entries in listed.groups.items():
        group_node = root.child(group)
        for entry in entries:
            parent = group_node
            if entry.build_group and entry.build_group != group:
                parent = group_node.child(entry.build_group)
                parent.note = parent.note or "build group"
            # A group or a build group that is itself a case is on its own line.
            node = parent if entry.name == entry.display_name else parent.child(entry.name)
            node.note = f"{node.note}  {_note(entry)}".lstrip()
            for subcase in entry.subcases:
                node.child(subcase.name).note = subcase.kind
            node.details = [
                f"{arch + ': ' if arch else ''}{line}" for arch, e in entry.broken.items() for line in _message(e).splitlines()
            ]
        if not entries:
            group_node.note = "no cases"
    return list(root.lines())


def names(workspace: Workspace, group: str | None = None) -> Iterator[tuple[str, str, Callable[[], list[str]]]]:
    """Name and display name of every case of a group (None: the default one), and what tells the names of its subcases.

    No file is read. Any `build-*.toml` makes a build group.
    """
    for found in sorted(_scan(workspace, _known_group(workspace, group), None, None).found, key=lambda found: found.name):
        yield found.name, found.display_name, partial(_children, found)


def _children(found: _Found) -> list[str]:
    """The folders of a case that would be subcases if it is a grouped one."""
    return [
        name
        for name in found.folders
        if name not in SOURCE_FOLDERS and any((found.path / name / kind).is_dir() for kind in SOURCE_FOLDERS)
    ]


def groups(workspace: Workspace) -> list[str]:
    """The suite's first-level folders, sorted. Raises `UsageError` where there are none."""
    return _groups(workspace)


def misplaced(workspace: Workspace, group: str) -> list[QcaseError]:
    """What keeps folders of a group from being searched for some architecture and its usual target."""
    broken = [b for arch in Arch for b in _scan(workspace, group, arch, arch.default_target).broken]
    return [case.error for case in broken]


def document(workspace: Workspace, listed: Catalogue) -> dict[str, object]:
    """The same for a program: `qcase list --json`. Paths are relative to the workspace."""
    cases: list[dict[str, object]] = []
    for group, entries in listed.groups.items():
        for entry in entries:
            arches = {
                arch.value: {
                    "pipeline": case.pipeline.value,
                    "tags": list(case.config.tags),
                    "timeout": case.config.timeout,
                    "config": workspace.relative(case.config_path),
                    "warnings": [str(problem) for problem in case.warnings],
                }
                for arch, case in entry.cases.items()
            }
            cases.append(
                {
                    "case": entry.display_name,
                    "name": entry.name,
                    "group": group,
                    "build_group": entry.build_group or None,
                    "path": workspace.relative(entry.path),
                    "arches": arches,
                    "subcases": [{"name": subcase.name, "pipeline": subcase.kind.value} for subcase in entry.subcases],
                    "broken": {arch: _message(error) for arch, error in entry.broken.items()},
                }
            )
    return {
        "format": LIST_FORMAT,
        "suite": listed.suite,
        "groups": list(listed.groups),
        "cases": cases,
        "warnings": [str(problem) for problem in listed.warnings],
    }


# ---- the scan


@dataclass(frozen=True)
class _Found:
    """A case folder as the scan saw it, before any file was read."""

    name: str
    display_name: str
    group: str
    build_group: str
    path: Path
    configs: Mapping[Arch, str]  # file names
    strays: tuple[str, ...]  # files that look like a configuration of an arch that we do not know
    folders: tuple[str, ...]
    foreign_targets: tuple[str, ...]


@dataclass
class _Scan:
    found: list[_Found]
    broken: list[BrokenCase]


@dataclass(frozen=True)
class _Folder:
    """A folder to visit. `path` has no symbolic links in it; `relative` is its path below the group, "" for the group itself."""

    path: str
    relative: str
    build: str | None = None  # the path below the group of the build group around it
    foreign_targets: tuple[str, ...] = ()  # of that build group, where it is for others only
    sources: bool = False  # named like a folder of sources: of interest only as a build group

    @property
    def in_build_group(self) -> bool:
        return self.build is not None and not self.foreign_targets

    def build_group(self, group: str) -> str:
        return "" if self.build is None else self.build or group


@dataclass(frozen=True)
class _Link:
    """A symbolic link to a folder, put off until the real folders are done."""

    path: str
    folder: _Folder  # as which its target will be visited


def _scan(workspace: Workspace, group: str, arch: Arch | None, target: str | None) -> _Scan:
    """Visits every folder of `group` once. Without arch and target any `build-*.toml` makes a build group."""
    result = _Scan([], [])
    top = os.path.realpath(workspace.suite_root / group)
    todo = [_Folder(top, "")]
    links: list[_Link] = []
    seen: set[str] = set()
    while todo or links:
        if todo:
            folder = todo.pop()
        else:
            # The real folders have been here first, so that a case found on two ways keeps its own name.
            links.sort(key=lambda link: link.folder.relative, reverse=True)
            link = links.pop()
            folder = replace(link.folder, path=os.path.realpath(link.path))
            if f"{top}/".startswith(f"{folder.path.rstrip('/')}/"):
                continue  # up and out of the group: everything again, and other groups' cases
        if folder.path not in seen:
            seen.add(folder.path)
            below, linked = _visit(workspace, group, arch, target, folder, result)
            todo += reversed(below)
            links += linked
    return result


def _visit(
    workspace: Workspace, group: str, arch: Arch | None, target: str | None, folder: _Folder, result: _Scan
) -> tuple[list[_Folder], list[_Link]]:
    """Looks at one folder: what it is goes to `result`, where to go on is returned."""
    try:
        with os.scandir(folder.path) as entries:
            folders, files = _sorted_entries(entries)
    except OSError as e:
        problem = Problem(f"cannot be read: {e.strerror}", workspace.relative(Path(folder.path)))
        result.broken.append(_broken(group, folder, ConfigError([problem]), whole_tree=True))
        return [], []

    targets = tuple(name[len("build-") : -len(".toml")] for name in files if name.startswith("build-"))
    heads_build_group = bool(targets) and not folder.in_build_group  # of whatever target
    if heads_build_group and (target is None or target in targets):
        folder = replace(folder, build=folder.relative, foreign_targets=(), sources=False)
    elif folder.sources:
        return [], []
    elif not folder.in_build_group and target is not None and arch is not None:
        legacy = [name for name in (f".build-{target}.toml", f"build-{arch}.toml", f".build-{arch}.toml") if name in files]
        if legacy:
            problem = Problem(
                "unsupported legacy name of a build file",
                workspace.relative(Path(folder.path) / legacy[0]),
                hint=f"call it build-{target}.toml",
            )
            result.broken.append(_broken(group, folder, ConfigError([problem]), whole_tree=True))
            return [], []
        if heads_build_group:
            folder = replace(folder, build=folder.relative, foreign_targets=targets)

    configs = [name for name in files if name.startswith("qemu-") and not name.startswith("qemu-base-")]
    if configs:
        _add_case(workspace, group, folder, configs, tuple(folders), result)
        if folder.relative and not heads_build_group:
            return [], []
    below: list[_Folder] = []
    links: list[_Link] = []
    for name, is_link in folders.items():
        sources = name in SOURCE_FOLDERS
        if sources and folder.in_build_group:
            continue
        relative = f"{folder.relative}/{name}" if folder.relative else name
        child = replace(folder, path=f"{folder.path}/{name}", relative=relative, sources=sources)
        if is_link:
            links.append(_Link(child.path, child))
        else:
            below.append(child)
    return below, links


def _sorted_entries(entries: Iterable[os.DirEntry[str]]) -> tuple[dict[str, bool], list[str]]:
    """The folders, and whether each is a symbolic link; the names of what may be a configuration, of whatever type."""
    folders: dict[str, bool] = {}
    files: list[str] = []
    for entry in sorted(entries, key=lambda entry: entry.name):
        name = entry.name
        if name.endswith(".toml") and name.startswith(("qemu-", "build-", ".build-")):
            files.append(name)
            continue
        try:
            if entry.is_dir():
                folders[name] = entry.is_symlink()
        except OSError:  # a link to itself, or to where we may not look
            continue
    return folders, files


def _add_case(
    workspace: Workspace, group: str, folder: _Folder, configs: Sequence[str], folders: tuple[str, ...], result: _Scan
) -> None:
    if not folder.relative.isprintable():
        problem = Problem("the name of the folder has characters that cannot be printed", workspace.relative(Path(folder.path)))
        result.broken.append(_broken(group, folder, ConfigError([problem])))
        return
    by_arch = {name[len("qemu-") : -len(".toml")]: name for name in configs}
    name, display_name = _names(group, folder)
    result.found.append(
        _Found(
            name,
            display_name,
            group,
            folder.build_group(group),
            Path(folder.path),
            {arch: by_arch[text] for text, arch in ARCHES.items() if text in by_arch},
            tuple(by_arch[text] for text in by_arch if text not in ARCHES),
            folders,
            folder.foreign_targets,
        )
    )


def _names(group: str, folder: _Folder) -> tuple[str, str]:
    """The name and the display name of a case in `folder`."""
    if folder.build is None:
        return (folder.relative, f"{group}/{folder.relative}") if folder.relative else (group, group)
    build_group = folder.build_group(group)
    if folder.relative == folder.build:
        return build_group, build_group
    name = folder.relative[len(folder.build) :].removeprefix("/")
    return name, f"{build_group}/{name}"


def _broken(group: str, folder: _Folder, error: QcaseError, *, whole_tree: bool = False) -> BrokenCase:
    name, display_name = _names(group, folder)
    return BrokenCase(
        printable(name), printable(display_name), group, folder.build_group(group), Path(folder.path), error, whole_tree
    )


# ---- from a folder to a case


def _load(
    workspace: Workspace, found: _Found, arch: Arch, reader: parsed.Reader, warnings: Sequence[Problem]
) -> Case | BrokenCase:
    config_path = found.path / found.configs[arch]
    try:
        config = reader.load(config_path)
        pipeline = resolve_pipeline(found.display_name, config, found.folders, path=config_path, workspace=workspace)
        subcases = _subcases(workspace, found) if pipeline is Pipeline.GROUPED else ()
    except QcaseError as e:
        return BrokenCase(found.name, found.display_name, found.group, found.build_group, found.path, e)
    return Case(
        found.name,
        found.display_name,
        found.group,
        found.build_group,
        found.path,
        arch,
        config_path,
        config,
        pipeline,
        subcases,
        (*config.warnings, *warnings),
        is_group=found.name == found.display_name,
    )


def _subcases(workspace: Workspace, found: _Found) -> tuple[Subcase, ...]:
    subcases: list[Subcase] = []
    problems: list[Problem] = []
    for name in found.folders:
        path = found.path / name
        try:
            with os.scandir(path) as entries:
                present = {entry.name for entry in entries if entry.name in SOURCE_FOLDERS and entry.is_dir()}
        except OSError as e:
            problems.append(Problem(f"cannot be read: {e.strerror}", workspace.relative(path)))
            continue
        kinds = [pipeline for folder, pipeline in SOURCE_FOLDERS.items() if folder in present]
        if len(kinds) > 1:
            what = f"subcase '{printable(name)}' has more than one pipeline: {', '.join(kinds)}"
            problems.append(Problem(what, workspace.relative(path), hint="keep one of c/, sh/, python/ and rust/"))
        elif kinds and not name.isprintable():
            problems.append(Problem("the name of the subcase has characters that cannot be printed", workspace.relative(path)))
        elif kinds:
            subcases.append(Subcase(name, path, kinds[0]))
    if problems:
        raise ConfigError(problems)
    return tuple(subcases)


def _unique(workspace: Workspace, cases: Iterable[Case | BrokenCase]) -> list[Case | BrokenCase]:
    """The cases by display name. Two of one name would share run folder and report: both give way to an error."""
    unique: dict[str, Case | BrokenCase] = {}
    for case in sorted(cases, key=lambda case: (case.display_name, case.path)):
        if other := unique.get(case.display_name):
            what = f"two cases are called '{case.display_name}'"
            problem = Problem(what, workspace.relative(case.path), hint=f"the other one is {workspace.relative(other.path)}")
            error = ConfigError([problem])
            unique[case.display_name] = BrokenCase(case.name, case.display_name, case.group, case.build_group, case.path, error)
        else:
            unique[case.display_name] = case
    return list(unique.values())


def _strays(workspace: Workspace, found: _Found) -> tuple[Problem, ...]:
    """Warnings for files that are called like a configuration, for an architecture that we do not know."""
    warnings = []
    for file in found.strays:
        text = file[len("qemu-") : -len(".toml")]
        if any(text.startswith(f"{arch}-") for arch in ARCHES):
            hint = "variants of an architecture are not read"
        elif near := difflib.get_close_matches(text, ARCHES, n=1):
            hint = f"did you mean 'qemu-{near[0]}.toml'?"
        else:
            hint = f"known: {', '.join(ARCHES)}"
        what = f"ignored: '{printable(text)}' is no architecture"
        warnings.append(Problem(what, workspace.relative(found.path / file), hint=hint))
    return tuple(warnings)


@contextmanager
def _reader(workspace: Workspace) -> Iterator[parsed.Reader]:
    """Reads case files. Meanwhile the garbage collector rests: of what ten thousand files become, nothing is garbage."""
    resting = gc.isenabled()
    gc.disable()
    try:
        with parsed.reader(workspace.root, Placeholders(workspace.root, environment=os.environ)) as reader:
            yield reader
    finally:
        if resting:
            gc.enable()


# ---- groups


def _groups(workspace: Workspace) -> list[str]:
    """The suite's first-level folders, sorted; hidden ones are no groups."""
    root = workspace.suite_root
    try:
        with os.scandir(root) as entries:
            groups = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as e:
        raise UsageError(
            f"the suite's folder cannot be read: {e.strerror}",
            where=workspace.relative(root),
            hint="[suite] root in qcase.toml names it",
        ) from None
    if not groups:
        raise UsageError("the suite has no groups", where=workspace.relative(root), hint="a group is a folder right below it")
    return groups


def _known_group(workspace: Workspace, group: str | None) -> str:
    groups = _groups(workspace)
    wanted = workspace.config.suite.default_group if group is None else group
    if wanted in groups:
        return wanted
    known = f"known groups: {', '.join(map(printable, groups))}"
    if group is None:
        raise UsageError(f"the default group '{wanted}' is not there", hint=f"{known}; choose one with --group")
    near = difflib.get_close_matches(wanted, groups, n=1)
    raise UsageError(
        f"unknown group '{printable(wanted)}'", hint=f"did you mean '{printable(near[0])}'? {known}" if near else known
    )


# ---- selection


def _checked(pattern: str) -> str:
    if pattern.startswith("/"):
        raise UsageError(f"'{pattern}' is an absolute path", hint="name a case by its path below its build group")
    parts = [part for part in pattern.split("/") if part]
    if ".." in parts or "." in parts:
        raise UsageError(f"'{pattern}' has '{'..' if '..' in parts else '.'}' in it", hint="name a case as `qcase list` shows it")
    if not parts:
        raise UsageError("an empty name selects no case", hint="name a case as `qcase list` shows it")
    return "/".join(parts)


def _matches(wanted: str, case: Case | BrokenCase | OtherCase) -> bool:
    """Whether `wanted` is a name of `case`, a folder above it, or a glob for one of them."""
    names = (case.name, case.display_name)
    if any(name == wanted or name.startswith(f"{wanted}/") for name in names):
        return True
    if isinstance(case, BrokenCase) and case.whole_tree and _is_inside(wanted, case):
        return True  # it may well be in there: better the reason than "unknown case"
    return _is_glob(wanted) and any(fnmatch.fnmatchcase(path, wanted) for name in names for path in _with_parents(name))


def _is_glob(text: str) -> bool:
    return any(c in text for c in "*?[")


def _with_parents(name: str) -> Iterator[str]:
    """`a/b/c`, `a/b`, `a`."""
    while name:
        yield name
        name = name.rpartition("/")[0]


def _no_match(discovery: Discovery, wanted: str) -> UsageError:
    shown = printable(wanted)
    others = [case for case in discovery.others if _matches(wanted, case)]
    others = others or [case for case in discovery.others if _is_inside(wanted, case)]
    if others:
        arches = {arch for case in others for arch in case.arches}
        if discovery.arch in arches:
            targets = sorted({target for case in others for target in case.targets})
            return UsageError(
                f"case '{shown}' belongs to a build group that has no build-{discovery.target}.toml",
                hint=f"it is for the target {', '.join(targets)}",
            )
        known = f"it is for {_arches(arches)}" if arches else "it is for no architecture that qcase knows"
        return UsageError(f"case '{shown}' is not for {discovery.arch}", hint=known)
    if not discovery.cases and not discovery.others:
        return _nothing_for(discovery)
    everything = {name for case in (*discovery.cases, *discovery.others) for name in (case.name, case.display_name)}
    for case in discovery.cases:
        if isinstance(case, Case):
            everything |= {f"{name}/{part.name}" for part in case.subcases for name in (case.name, case.display_name)}
    near = difflib.get_close_matches(wanted, sorted(everything | {p for name in everything for p in _with_parents(name)}), n=1)
    hint = f"did you mean '{near[0]}'?" if near else "`qcase list` shows them all"
    kind = "no case matches" if _is_glob(wanted) else "unknown case"
    return UsageError(f"{kind} '{shown}' in group '{printable(discovery.group)}'", hint=hint)


def _nothing_for(discovery: Discovery) -> UsageError:
    what = f"group '{printable(discovery.group)}' has no case for {discovery.arch}"
    if not discovery.others:
        return UsageError(f"{what}, nor for any other architecture", hint="a case is a folder with a qemu-<arch>.toml")
    arches = {arch for case in discovery.others for arch in case.arches}
    if discovery.arch in arches:
        targets = sorted({target for case in discovery.others for target in case.targets})
        return UsageError(f"{what} and {discovery.target}", hint=f"there are cases for the target {', '.join(targets)}")
    return UsageError(what, hint=f"there are cases for {_arches(arches)}" if arches else "")


def _arches(arches: Collection[Arch]) -> str:
    return ", ".join(arch for arch in Arch if arch in arches)


# ---- the tree


@dataclass
class _Node:
    label: str
    note: str = ""
    details: list[str] = field(default_factory=list)
    children: dict[str, _Node] = field(default_factory=dict)

    def child(self, label: str) -> _Node:
        return self.children.setdefault(label, _Node(label))

    def lines(self, first: str = "", rest: str = "") -> Iterator[str]:
        yield f"{first}{printable(self.label)}{'  ' + self.note if self.note else ''}"
        for line in self.details:
            yield f"{rest}{'│ ' if self.children else '  '}  {line}"
        children = list(self.children.values())
        for node in children:
            last = node is children[-1]
            yield from node.lines(rest + ("└── " if last else "├── "), rest + ("    " if last else "│   "))


def _note(entry: CatalogueEntry) -> str:
    """`c  x86_64, aarch64  #slow`; where arches differ, `sh  x86_64; plain  aarch64`."""
    notes = []
    kinds: dict[tuple[Pipeline, tuple[str, ...]], list[str]] = {}
    for arch, case in entry.cases.items():
        kinds.setdefault((case.pipeline, case.config.tags), []).append(arch)
    for (pipeline, tags), arches_of_kind in kinds.items():
        notes.append(f"{pipeline}  {', '.join(arches_of_kind)}{''.join(f'  #{printable(tag)}' for tag in tags)}")
    if entry.broken:
        arches = ", ".join(arch for arch in entry.broken if arch)
        notes.append(f"broken  {arches}".rstrip())
    return "; ".join(notes) or "for no known architecture"


def _message(error: QcaseError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)
