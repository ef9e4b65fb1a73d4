"""Cases by name and glob."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qcase.arch import Arch
from qcase.errors import UsageError
from qcase.suite.cases import BrokenCase, Case, Discovery, OtherCase, Subcase
from qcase.text import printable

if TYPE_CHECKING:
    from qcase.suite.catalogue import Catalogue, CatalogueEntry


def select(discovery: Discovery, patterns: Sequence[str]) -> tuple[Case | BrokenCase, ...]:
    """Select the cases that match `patterns`, or all cases without patterns but those of `.ignore`, in the discovery's order.

    A pattern is a name or a display name, a folder above one, or a glob (`*` also matches `/`). If it matches no whole grouped
    case but a subcase, `<group>/<subcase>`, it selects the commands of that subcase. Raises `UsageError` for an absolute path or
    one with `..`, for an unknown case, for a case that is not for this arch, and if there is no case at all for this arch.
    """
    if not patterns:
        if not discovery.cases:
            raise _nothing_for(discovery)
        return tuple(case for case in discovery.cases if case.display_name not in discovery.ignored)
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
    """Index of cases by name. A run of failed cases may name a thousand of ten thousand cases."""

    def __init__(self, cases: Sequence[Case | BrokenCase]) -> None:
        self._all = cases
        self._by_path: dict[str, list[Case | BrokenCase]] = {}
        self._by_name: dict[str, list[Case | BrokenCase]] = {}
        self._trees = [case for case in cases if isinstance(case, BrokenCase) and case.whole_tree]
        for case in cases:
            for path in {path for name in _names(case) for path in _with_parents(name)}:
                self._by_path.setdefault(path, []).append(case)
            for name in set(_names(case)):
                self._by_name.setdefault(name, []).append(case)

    def of(self, wanted: str) -> Sequence[Case | BrokenCase]:
        if is_glob(wanted):
            return self._all
        # More candidates: for the name of a subcase the case above it, for any name the folders that could not be read.
        above = [case for path in parents(wanted) for case in self._by_name.get(path, ())]
        return [*self._by_path.get(wanted, ()), *above, *self._trees]


def _parts(wanted: str, case: Case | BrokenCase) -> Iterator[Case]:
    """Yield the subcases of a grouped case that `wanted` selects, unless it selects the whole case."""
    if not isinstance(case, Case) or not case.subcases or _matches(wanted, case):
        return
    for subcase in case.subcases:
        if _means_part(wanted, case, subcase):
            yield case.part(subcase)


def _means_part(wanted: str, case: Case | OtherCase, subcase: Subcase) -> bool:
    names = [f"{name}/{subcase.name}" for name in _names(case)]
    if any(name == wanted or name.startswith(f"{wanted}/") for name in names):
        return True
    return is_glob(wanted) and any(fnmatch.fnmatchcase(name, wanted) for name in names)


def _is_inside(wanted: str, case: Case | BrokenCase | OtherCase) -> bool:
    """Tell whether `wanted` is a name below `case`, like that of a subcase."""
    return any(wanted.startswith(f"{name}/") for name in _names(case))


def named(listed: Catalogue, patterns: Sequence[str]) -> Catalogue:
    """Select the cases of a catalogue that match `patterns`, by the rules of `select`.

    Raises `UsageError` for a pattern without a match.
    """
    found: dict[str, list[CatalogueEntry]] = {group: [] for group in listed.groups}
    wanted = [_checked(pattern) for pattern in patterns]
    used: set[str] = set()
    for group, entries in listed.groups.items():
        for entry in entries:
            stand_in: Case | OtherCase = next(iter(entry.cases.values()), OtherCase(entry.name, entry.display_name, ()))
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
            kind = "no case matches" if is_glob(pattern) else "unknown case"
            raise UsageError(f"{kind} '{printable(pattern)}'", hint=f"did you mean '{near[0]}'?" if near else "")
    return replace(listed, groups={group: tuple(entries) for group, entries in found.items() if entries})


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
    """Tell whether `wanted` is a name of `case`, a folder above it, or a glob for one of them."""
    names = _names(case)
    if any(name == wanted or name.startswith(f"{wanted}/") for name in names):
        return True
    if isinstance(case, BrokenCase) and case.whole_tree and _is_inside(wanted, case):
        return True  # the case may be in there: the fault is more useful than "unknown case"
    return is_glob(wanted) and any(fnmatch.fnmatchcase(path, wanted) for name in names for path in _with_parents(name))


def _names(case: Case | BrokenCase | OtherCase) -> tuple[str, ...]:
    """Return the names by which a case is chosen."""
    names: tuple[str, ...] = (case.name, case.display_name, *([case.in_group] if case.in_group else ()))
    names += tuple(name.removeprefix(case.prefix) for name in names[1:]) if case.prefix else ()
    for ending in (case.machine, case.profile) if isinstance(case, Case) else ():
        if ending:
            names = (*names, *(name.removesuffix(f"-{ending}") for name in names))
    return names


def is_glob(text: str) -> bool:
    """Tell whether a name is a pattern."""
    return any(c in text for c in "*?[")


def _with_parents(name: str) -> Iterator[str]:
    """Yield a path and its parents: `a/b/c`, `a/b`, `a`."""
    while name:
        yield name
        name = name.rpartition("/")[0]


def parents(name: str) -> Iterator[str]:
    """Yield the parents of a path: `a/b` and `a` for `a/b/c`."""
    return _with_parents(name.rpartition("/")[0])


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
    everything = {name for case in (*discovery.cases, *discovery.others) for name in _names(case)}
    for case in discovery.cases:
        if isinstance(case, Case):
            everything |= {f"{name}/{part.name}" for part in case.subcases for name in _names(case)}
    near = difflib.get_close_matches(wanted, sorted(everything | {p for name in everything for p in _with_parents(name)}), n=1)
    hint = f"did you mean '{near[0]}'?" if near else "`qcase list` shows them all"
    kind = "no case matches" if is_glob(wanted) else "unknown case"
    return UsageError(f"{kind} '{shown}' in {discovery.scope}", hint=hint)


def _nothing_for(discovery: Discovery) -> UsageError:
    has = "has" if len(discovery.groups) == 1 else "have"
    what = f"{discovery.scope} {has} no case for {discovery.arch}"
    if not discovery.others:
        return UsageError(f"{what}, nor for any other architecture", hint="a case is a folder with a qemu-<arch>.toml")
    arches = {arch for case in discovery.others for arch in case.arches}
    if discovery.arch in arches:
        targets = sorted({target for case in discovery.others for target in case.targets})
        return UsageError(f"{what} and {discovery.target}", hint=f"there are cases for the target {', '.join(targets)}")
    return UsageError(what, hint=f"there are cases for {_arches(arches)}" if arches else "")


def _arches(arches: Collection[Arch]) -> str:
    return ", ".join(arch for arch in Arch if arch in arches)
