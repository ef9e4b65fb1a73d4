"""One walk over the folders of a group."""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from qcase.arch import Arch
from qcase.errors import ConfigError, Problem, QcaseError, UsageError
from qcase.host import beneath
from qcase.suite.cases import ARCHES, BrokenCase, Workspace, path_name, source_folders
from qcase.text import printable

PROJECT_FILE = "CMakeLists.txt"  # in the folder of a grouped case: one project for all its subcases in C
IGNORE_FILE = ".ignore"
_DEEPEST_IN_SOURCES = 2  # levels of folders of sources in which a case is noticed
_DEEPEST = 4  # folders between a group and a subcase of its project


def names(workspace: Workspace, group: Sequence[str] = ()) -> Iterator[tuple[str, str, Callable[[], list[str]]]]:
    """Yield name, display name and a function that lists the subcases, for every case of groups (empty: the default ones).

    No file is read. Any `build-*.toml` makes a build group.
    """
    wanted = wanted_groups(workspace, group)
    everything = [found for name in wanted.names for found in scan_group(workspace, name, None, None).found]
    for found in sorted(everything, key=lambda found: found.name):
        yield found.name, found.path_name if wanted.several else found.display_name, partial(_children, found)


def _children(found: Found) -> list[str]:
    """Return the folders of a case that would be its subcases if it is a grouped one."""
    has_project = (found.path / PROJECT_FILE).is_file()
    children: list[str] = []
    for name in found.folders:
        if name in source_folders():
            continue
        if any((found.path / name / kind).is_dir() for kind in source_folders()):
            children.append(name)
        elif has_project:
            children += flat_folders(found.path / name, name)
    return children


def flat_folders(folder: Path, name: str) -> list[str]:
    """Return the names of a CMake project's parts in `folder`, itself called `name`: the topmost folders with a build file.

    A folder without one is a category of subcases, or none at all. Hidden folders and links are not searched.
    """
    found: list[str] = []
    todo = [(os.fspath(folder), name)]
    while todo:
        here, relative = todo.pop()
        try:
            with os.scandir(here) as entries:
                children = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError:
            continue
        if any(child.name == PROJECT_FILE and child.is_file() for child in children):
            found.append(relative)
        elif relative.count("/") < _DEEPEST:
            todo += [
                (child.path, f"{relative}/{child.name}")
                for child in children
                if not child.name.startswith(".") and child.is_dir(follow_symlinks=False)
            ]
    return found


def groups(workspace: Workspace) -> list[str]:
    """Return the suite's first-level folders, sorted. Raises `UsageError` if there are none."""
    return groups_below(workspace)


def misplaced(workspace: Workspace, group: str) -> list[QcaseError]:
    """Return the errors that keep folders of a group from being searched, for each architecture and its default target."""
    broken = [b for arch in Arch for b in scan_group(workspace, group, arch, arch.default_target).broken]
    return [case.error for case in broken]


# ---- the scan


@dataclass(frozen=True)
class Found:
    """A case, or one variant of it, as scanned, before any file is read. The case itself has the variant ""."""

    name: str
    display_name: str
    group: str
    build_group: str
    path: Path
    configs: Mapping[Arch, str]  # file names
    strays: tuple[str, ...]  # files named like a configuration of an unknown arch
    folders: tuple[str, ...]
    foreign_targets: tuple[str, ...]
    variant: str = ""
    below: str = ""  # its path below the group, with the variant

    @property
    def path_name(self) -> str:
        """The display name in a run of several groups."""
        return path_name(self.group, self.below)


@dataclass
class _Scan:
    found: list[Found]
    broken: list[BrokenCase]


@dataclass(frozen=True)
class _Folder:
    """A folder to visit. `path` has no symbolic links in it; `relative` is its path below the group, "" for the group itself."""

    path: str
    relative: str
    build: str | None = None  # the path below the group of the build group around it
    foreign_targets: tuple[str, ...] = ()  # of that build group, where it is for others only
    build_variants: tuple[str, ...] = ()  # variants of cases for which it has a build-<target>-<variant>.toml all the same
    sources: bool = False  # named like a folder of sources: of interest only as a build group

    @property
    def in_build_group(self) -> bool:
        return self.build is not None and not self.foreign_targets

    def build_group(self, group: str) -> str:
        return "" if self.build is None else self.build or group


@dataclass(frozen=True)
class _Link:
    """A symbolic link to a folder, deferred until the real folders are done."""

    path: str
    folder: _Folder  # as which its target will be visited


def scan_group(workspace: Workspace, group: str, arch: Arch | None, target: str | None) -> _Scan:
    """Visit every folder of `group` once. Without arch and target any `build-*.toml` makes a build group."""
    result = _Scan([], [])
    top = os.path.realpath(workspace.suite_root / group)
    todo = [_Folder(top, "")]
    links: list[_Link] = []
    seen: set[str] = set()
    while todo or links:
        if todo:
            folder = todo.pop()
        else:
            # Real folders were visited first, so that a case with two paths is named by its real one.
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
    """Visit one folder: add its findings to `result` and return the folders to visit next."""
    try:
        with os.scandir(folder.path) as entries:
            folders, files = sorted_entries(entries)
    except OSError as e:
        problem = Problem(f"cannot be read: {e.strerror}", workspace.relative(Path(folder.path)))
        result.broken.append(_broken(group, folder, ConfigError([problem]), whole_tree=True))
        return [], []

    targets = tuple(name[len("build-") : -len(".toml")] for name in files if name.startswith("build-"))
    heads_build_group = bool(targets) and not folder.in_build_group  # of whatever target
    if heads_build_group and (target is None or target in targets):
        folder = replace(folder, build=folder.relative, foreign_targets=(), sources=False)
    elif folder.sources:
        result.broken += _cases_in_sources(workspace, group, folder, arch)
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
            variants = tuple(name.removeprefix(f"{target}-") for name in targets if name.startswith(f"{target}-"))
            folder = replace(folder, build=folder.relative, foreign_targets=targets, build_variants=variants)

    configs = [name for name in files if name.startswith("qemu-") and not name.startswith("qemu-base-")]
    if configs:
        _add_case(workspace, group, folder, configs, tuple(folders), result)
        if folder.relative and not heads_build_group:
            return [], []
    below: list[_Folder] = []
    links: list[_Link] = []
    for name, is_link in folders.items():
        sources = name in source_folders()
        if sources and folder.in_build_group and configs:
            continue
        relative = f"{folder.relative}/{name}" if folder.relative else name
        child = replace(folder, path=f"{folder.path}/{name}", relative=relative, sources=sources)
        if is_link:
            links.append(_Link(child.path, child))
        else:
            below.append(child)
    return below, links


def _cases_in_sources(workspace: Workspace, group: str, folder: _Folder, arch: Arch | None) -> Iterator[BrokenCase]:
    """Yield an error for each case in a folder that is called like sources: it would never run, and nobody would know.

    The folder itself and two levels below it are looked at.
    """
    for here, folders, files in os.walk(folder.path):
        below = os.path.relpath(here, folder.path)
        if below.count("/") == _DEEPEST_IN_SOURCES - 1:
            folders.clear()
        arches = {name[len("qemu-") : -len(".toml")].partition("-")[0] for name in files if name.startswith("qemu-")}
        if any(name in ARCHES and arch in (None, ARCHES[name]) for name in arches):
            what = f"is no case: a folder called '{Path(folder.path).name}' has the sources of one, and is not searched"
            problem = Problem(what, workspace.relative(Path(here)), hint="call that folder otherwise")
            relative = os.path.normpath(f"{folder.relative}/{below}")
            yield _broken(group, replace(folder, path=here, relative=relative), ConfigError([problem]))


def sorted_entries(entries: Iterable[os.DirEntry[str]]) -> tuple[dict[str, bool], list[str]]:
    """Return the folders, each with a flag for symbolic links, and the names of possible configuration files of any file type."""
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
        except OSError:  # a link to itself, or to a place without read permission
            continue
    return folders, files


def _add_case(
    workspace: Workspace, group: str, folder: _Folder, configs: Sequence[str], folders: tuple[str, ...], result: _Scan
) -> None:
    if not folder.relative.isprintable():
        problem = Problem("the name of the folder has characters that cannot be printed", workspace.relative(Path(folder.path)))
        result.broken.append(_broken(group, folder, ConfigError([problem])))
        return
    by_variant: dict[str, dict[Arch, str]] = {}
    strays: list[str] = []
    for file in configs:
        text, dash, variant = file[len("qemu-") : -len(".toml")].partition("-")
        if text not in ARCHES or (dash and not variant) or not variant.isprintable():
            strays.append(file)
        else:
            by_variant.setdefault(variant, {})[ARCHES[text]] = file
    name, display_name = names_of_folder(group, folder)
    for variant in sorted(by_variant) or [""]:
        suffix = f"-{variant}" if variant else ""
        result.found.append(
            Found(
                name + suffix,
                display_name + suffix,
                group,
                folder.build_group(group),
                Path(folder.path),
                {arch: by_variant[variant][arch] for arch in Arch if arch in by_variant.get(variant, ())},
                tuple(strays),
                folders,
                () if variant in folder.build_variants else folder.foreign_targets,
                variant,
                folder.relative + suffix,
            )
        )
        strays = []


def names_of_folder(group: str, folder: _Folder) -> tuple[str, str]:
    """Return the name and the display name of a case in `folder`."""
    if folder.build is None:
        return (folder.relative, f"{group}/{folder.relative}") if folder.relative else (group, group)
    build_group = folder.build_group(group)
    if folder.relative == folder.build:
        return build_group, build_group
    name = folder.relative[len(folder.build) :].removeprefix("/")
    return name, f"{build_group}/{name}"


def _broken(group: str, folder: _Folder, error: QcaseError, *, whole_tree: bool = False) -> BrokenCase:
    name, display_name = names_of_folder(group, folder)
    return BrokenCase(
        printable(name),
        printable(display_name),
        group,
        folder.build_group(group),
        Path(folder.path),
        error,
        whole_tree,
        below=printable(folder.relative),
    )


# ---- groups


def groups_below(workspace: Workspace) -> list[str]:
    """Return the suite's first-level folders, sorted; hidden ones are no groups."""
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


@dataclass(frozen=True)
class Wanted:
    """The groups that are meant. `several`: they were named by a pattern, or one by one; then a case is shown by its path below
    the suite's root, since two groups may have cases of one name. What the pattern matches today does not change the names.
    """

    names: tuple[str, ...]
    several: bool = False

    def __str__(self) -> str:
        shown = [printable(name) for name in self.names]
        return f"group '{shown[0]}'" if len(shown) == 1 else f"the groups {', '.join(shown)}"


def wanted_groups(workspace: Workspace, given: str | Sequence[str] | None = None) -> Wanted:
    """Return the groups that names and globs mean, in the order of the suite; without any, those of `[suite] default_group`.

    Raises `UsageError` for a name or a glob without a group.
    """
    named = tuple(dict.fromkeys([given] if isinstance(given, str) else given or ()))
    found: set[str] = set()
    groups = groups_below(workspace)
    for name in named or (workspace.config.suite.default_group,):
        fitting = [name] if name in groups else [group for group in groups if fnmatch.fnmatchcase(group, name)]
        found |= set(fitting or [_known(groups, name, is_default=not named)])
    several = len(named) > 1 or not found.issuperset(named or (workspace.config.suite.default_group,))
    return Wanted(tuple(group for group in groups if group in found), several)


def ignored(workspace: Workspace) -> Callable[[Path], bool]:
    """Return a test for the folders of cases that a run without names leaves out, as `.ignore` says.

    The file lies in the suite's root or in a folder above it, within the workspace. A line is a path relative to the workspace
    or to the file's folder, or a glob for one; `#` begins a comment.
    """
    patterns: list[str] = []
    for folder in (workspace.suite_root, *workspace.suite_root.parents):
        if folder.is_relative_to(workspace.root) or folder == workspace.suite_root:
            with suppress(OSError):
                lines = [line.strip().strip("/") for line in beneath.text(folder / IGNORE_FILE).splitlines()]
                named = [line for line in lines if line and not line.startswith("#")]
                patterns += [f"{os.path.realpath(top)}/{line}" for line in named for top in {workspace.root, folder}]
    literal = frozenset(patterns)

    def test(path: Path) -> bool:
        above = [str(folder) for folder in (path, *path.parents)]
        return not literal.isdisjoint(above) or any(fnmatch.fnmatchcase(one, pattern) for pattern in patterns for one in above)

    return test if patterns else lambda _: False


def _known(groups: Sequence[str], wanted: str, *, is_default: bool) -> str:
    known = f"known groups: {', '.join(map(printable, groups))}"
    if is_default:
        raise UsageError(f"the default group '{wanted}' is not there", hint=f"{known}; choose one with --group")
    near = difflib.get_close_matches(wanted, groups, n=1)
    raise UsageError(
        f"unknown group '{printable(wanted)}'", hint=f"did you mean '{printable(near[0])}'? {known}" if near else known
    )
