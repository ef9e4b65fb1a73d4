"""The catalogue of a suite: what `qcase list` shows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qcase.arch import Arch
from qcase.errors import Problem, QcaseError
from qcase.model import Pipeline
from qcase.suite import case_file_cache
from qcase.suite.cases import BrokenCase, Case, Subcase, Workspace
from qcase.suite.discover import case_reader, load, stray_warnings
from qcase.suite.profiles import without_doubles
from qcase.suite.scan import groups_below, scan_group, wanted_groups
from qcase.text import printable

LIST_FORMAT = 1  # of `qcase list --json`


@dataclass(frozen=True)
class CatalogueEntry:
    """A case in the listing, for all arches. `broken`: its error by arch; the key "" stands for all arches."""

    name: str
    display_name: str
    build_group: str
    cases: Mapping[Arch, Case] = field(default_factory=dict)
    broken: Mapping[str, QcaseError] = field(default_factory=dict)
    path: Path = Path()

    @property
    def is_group(self) -> bool:
        """Tell whether the case is a group or a build group as well."""
        return self.name == self.display_name or any(case.is_group and not case.machine for case in self.cases.values())

    @property
    def pipelines(self) -> Mapping[Arch, Pipeline]:
        return {arch: case.pipeline for arch, case in self.cases.items()}

    @property
    def subcases(self) -> tuple[Subcase, ...]:
        """Subcases of all arches. They are folders, so they differ only if one arch's file makes the case no grouped one."""
        return max((case.subcases for case in self.cases.values()), key=len, default=())

    @property
    def tags(self) -> Mapping[Arch, tuple[str, ...]]:
        return {arch: case.config.tags for arch, case in self.cases.items() if case.config.tags}


@dataclass(frozen=True)
class Catalogue:
    """Every case of the requested groups, for every arch and target."""

    suite: str
    groups: Mapping[str, tuple[CatalogueEntry, ...]]
    warnings: tuple[Problem, ...] = ()

    def only(self, arches: Collection[Arch]) -> Catalogue:
        """Return the catalogue of the cases for one of `arches`, and of those that are broken for all arches."""
        wanted = {"", *(arch.value for arch in arches)}
        groups = {
            group: tuple(e for e in entries if not wanted.isdisjoint((*map(str, e.cases), *e.broken)))
            for group, entries in self.groups.items()
        }
        return replace(self, groups=groups)

    def where(self, keep: Callable[[Case | BrokenCase], bool]) -> Catalogue:
        """Return the catalogue of the cases for which `keep` is true, each for those arches alone."""
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


def catalogue(workspace: Workspace, group: str | Sequence[str] | None = None) -> Catalogue:
    """List all cases of groups, by name or glob (none: of all). A folder with any `build-*.toml` counts as a build group."""
    with case_reader(workspace) as reader:
        return _catalogue(workspace, group, reader)


def _catalogue(workspace: Workspace, group: str | Sequence[str] | None, reader: case_file_cache.Reader) -> Catalogue:
    groups: dict[str, tuple[CatalogueEntry, ...]] = {}
    warnings: list[Problem] = []
    for name in groups_below(workspace) if group is None else wanted_groups(workspace, group).names:
        scan = scan_group(workspace, name, None, None)
        entries = [
            CatalogueEntry(b.name, workspace.prefix + b.display_name, b.build_group, {}, {"": b.error}, b.path)
            for b in scan.broken
        ]
        everything = [(found, arch, load(workspace, found, arch, reader, ())) for found in scan.found for arch in found.configs]
        counted = dict(without_doubles((found.path / found.configs[arch], cases) for found, arch, cases in everything))
        for found in scan.found:
            paths = {arch: found.path / file for arch, file in found.configs.items()}
            loaded = [(arch, case) for arch, path in paths.items() for case in counted.get(path, ())]
            if paths and not loaded:
                continue  # the file of a profile, which is no variant
            names = dict.fromkeys((case.name, case.display_name) for _, case in loaded)
            names = names or {(found.name, workspace.prefix + found.display_name): None}
            for shown in names:
                here = {arch: case for arch, case in loaded if shown == (case.name, case.display_name)}
                entries.append(
                    CatalogueEntry(
                        *shown,
                        found.build_group,
                        {arch: case for arch, case in here.items() if isinstance(case, Case)},
                        {arch.value: case.error for arch, case in here.items() if isinstance(case, BrokenCase)},
                        found.path,
                    )
                )
            warnings += stray_warnings(workspace, found)
        groups[name] = tuple(sorted(entries, key=lambda entry: entry.display_name))
    return Catalogue(workspace.config.suite.name, groups, tuple(warnings))


def listing(listed: Catalogue) -> list[str]:
    """Yield the lines of `qcase list`: a tree of suite, groups, build groups and cases, with each case's pipeline and arches."""
    root = _Node(listed.suite)
    for group, entries in listed.groups.items():
        group_node = root.child(group)
        for entry in entries:
            parent = group_node
            if entry.build_group and entry.build_group != group:
                parent = group_node.child(entry.build_group)
                parent.note = parent.note or "build group"
            # A group or a build group that is itself a case is on its own line.
            node = parent if entry.is_group else parent.child(entry.name)
            node.note = f"{node.note}  {_note(entry)}".lstrip()
            for subcase in entry.subcases:
                node.child(subcase.name).note = subcase.kind
            node.details = [
                f"{arch + ': ' if arch else ''}{line}" for arch, e in entry.broken.items() for line in _message(e).splitlines()
            ]
        if not entries:
            group_node.note = "no cases"
    return list(root.lines())


def document(workspace: Workspace, listed: Catalogue) -> dict[str, object]:
    """Return the catalogue as JSON for `qcase list --json`. Paths are relative to the workspace."""
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
    """Format pipeline, arches and tags of a case: `c  x86_64, aarch64  #slow`; if arches differ, `sh  x86_64; plain  aarch64`."""
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
