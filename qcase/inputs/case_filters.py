"""Selection of cases for a command, by names and globs (see `qcase.suite`) and by filters. Each filter removes cases.

    --tag T        cases with the tag T; `!T`, cases without. Several: cases with any of the tags, and none of the `!` ones
    --pipeline P   cases of a pipeline; several: of any of them
    --failed       cases that did not pass in their last run (see `qcase.suite.history`)
    --changed REV  cases with an ingredient (see `qcase.inputs.ingredients`) that differs from a git revision

Tags and pipeline of a case with a broken file are unknown. The filters keep it: an unexpected error is better than a case that is
left out silently.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.arch import Arch
from qcase.config.workspace_file import KernelBuild
from qcase.errors import UsageError
from qcase.suite import history
from qcase.suite.cases import BrokenCase, Case, Discovery, Workspace, pipeline_names
from qcase.suite.catalogue import Catalogue
from qcase.suite.inner_selection import select_with_tests
from qcase.suite.select import parents, select
from qcase.text import printable

if TYPE_CHECKING:
    from qcase.inputs.revisions import Changes


HEAD = "HEAD"

Keep = Callable[[Case | BrokenCase], bool]


@dataclass(frozen=True)
class Filters:
    """Filter options of a command. `changed`: a revision, None without the option. `kernel`: the kernel file for all cases."""

    tags: tuple[str, ...] = ()
    pipelines: tuple[str, ...] = ()
    failed: bool = False
    changed: str | None = None
    kernel: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.tags or self.pipelines or self.failed or self.changed is not None)


@dataclass(frozen=True)
class Chosen:
    """The selected cases, in the order of the discovery. `note`: the reason for an empty selection that is no error, or the
    number of cases that a run without names leaves out.
    """

    cases: tuple[Case | BrokenCase, ...]
    note: str = ""


def choose(workspace: Workspace, discovery: Discovery, patterns: Sequence[str], filters: Filters) -> Chosen:
    """Return the cases of `discovery` that match `patterns` and pass all filters.

    Raises `UsageError` for an unknown pattern, tag, pipeline or revision, and for `--failed` without a recorded run.
    """
    chosen = select_with_tests(discovery, patterns)
    failed: frozenset[str] = frozenset()
    if filters.failed:
        failed = _failed(workspace, discovery)
        parts = {part for case in discovery.cases if isinstance(case, Case) for part in _parts(case)} & failed
        if parts and not patterns:  # subcases that failed when they ran alone
            chosen += tuple(case for case in select(discovery, sorted(parts)) if isinstance(case, Case) and case.only)
    if filters.tags:
        _check_tags(filters.tags, chosen)
    for keep in _filters(workspace, filters):
        chosen = tuple(case for case in chosen if keep(case))
    if filters.failed:
        whole = {case.display_name for case in chosen} & failed
        chosen = tuple(case for case in chosen if case.display_name in failed and not _is_part_of(case, whole))
    note = "" if chosen else _nothing(filters) if filters else "nothing to run: `.ignore` names all cases"
    return Chosen(chosen, "; ".join([*([note] if note else []), *([] if patterns else _left_out(discovery))]))


def _left_out(discovery: Discovery) -> Iterator[str]:
    """Yield what a run without names leaves out: configurations for this architecture that are not run are told."""
    on = f"on {discovery.arch}"
    if count := len(discovery.ignored):
        yield f"{count} of {len(discovery.cases)} cases {on} are not run, as `.ignore` says: name them to run them"
    foreign = [case.display_name for case in discovery.others if discovery.arch in case.arches and case.targets]
    if foreign:
        are = "is 1 case" if len(foreign) == 1 else f"are {len(foreign)} cases"
        first = printable(foreign[0]) if len(foreign) == 1 else f"the first is {printable(foreign[0])}"
        yield f"there {are} {on} that no build-{discovery.target}.toml is for, not run: {first}"


def choose_all(workspace: Workspace, discoveries: Sequence[Discovery], patterns: Sequence[str], filters: Filters) -> list[Chosen]:
    """Return the selected cases of several architectures, in their order.

    A pattern must match a case of each architecture, else the requested case would silently not run there. Filters may remove
    all cases of one architecture. Raises `NothingFitsError` if they remove all cases of all architectures.
    """
    found: list[Chosen] = []
    faults: list[NothingFitsError] = []
    for discovery in discoveries:
        try:
            found.append(choose(workspace, discovery, patterns, filters))
        except NothingFitsError as error:
            faults.append(error)
            found.append(Chosen((), f"nothing to run on {discovery.arch}: {error.what}"))
    if faults and len(faults) == len(found):
        raise faults[0]
    return found


class NothingFitsError(UsageError):
    """Raised when the filters remove all cases."""


def listed(workspace: Workspace, everything: Catalogue, filters: Filters) -> Catalogue:
    """Return a listing of all architectures, filtered. `--failed` uses the history of each architecture's default target.

    Raises `UsageError` as `choose` does.
    """
    if filters.tags:
        of_entries = [[*entry.cases.values(), *entry.broken] for entries in everything.groups.values() for entry in entries]
        _check_tags(filters.tags, [case for cases in of_entries for case in cases])
    checks = _filters(workspace, filters)
    if filters.failed:
        known = {arch: history.recall(workspace.root, arch, arch.default_target) for arch in Arch}
        if not any(known.values()):
            raise _no_history()
        checks.append(lambda case: any(_did_not_pass(known[arch], case.display_name) for arch in _arches(case)))
    return everything.where(lambda case: all(check(case) for check in checks))


def _filters(workspace: Workspace, filters: Filters) -> list[Keep]:
    checks: list[Keep] = []
    if filters.tags:
        checks.append(_by_tag(filters.tags))
    if filters.pipelines:
        checks.append(_by_pipeline(filters.pipelines))
    if filters.changed is not None:
        checks.append(_by_change(workspace, filters))
    return checks


def _nothing(filters: Filters) -> str:
    if filters.failed:
        return "nothing to run: all of these cases passed when they last ran, or have not run yet"
    if filters.changed is not None:
        return f"nothing to run: no case that was asked for differs from {filters.changed}"
    raise NothingFitsError("no case has all that was asked for", hint="`qcase list` shows tags and pipelines")


# ---- tags and pipelines


def _by_tag(tags: Sequence[str]) -> Keep:
    wanted = {tag for tag in tags if not tag.startswith("!")}
    unwanted = {tag[1:] for tag in tags if tag.startswith("!")}

    def check(case: Case | BrokenCase) -> bool:
        if isinstance(case, BrokenCase):
            return True
        has = set(case.config.tags)
        return not has & unwanted and (not wanted or bool(has & wanted))

    return check


def _check_tags(tags: Sequence[str], cases: Iterable[object]) -> None:
    """Raise `NothingFitsError` for a tag that no case has, probably a typo. A broken case turns the check off: it might have
    the tag.
    """
    known: set[str] = set()
    for case in cases:
        if not isinstance(case, Case):
            return
        known.update(case.config.tags)
    for tag in tags:
        if tag.removeprefix("!") not in known:
            raise NothingFitsError(
                f"no case here has the tag '{printable(tag.removeprefix('!'))}'", hint=near(tag, known, "tags")
            )


def _by_pipeline(names: Sequence[str]) -> Keep:
    for name in names:
        if name not in (known := pipeline_names()):
            raise UsageError(f"unknown pipeline '{printable(name)}'", where="--pipeline", hint=near(name, known, "pipelines"))
    return lambda case: isinstance(case, BrokenCase) or case.pipeline in names


def near(name: str, known: Iterable[str], what: str) -> str:
    """Return a hint with the nearest known name and the list of known names."""
    everything = sorted(known)
    if not everything:
        return f"there are no {what}"
    found = difflib.get_close_matches(name, everything, n=1)
    shown = f"known {what}: {', '.join(everything[:20])}{', …' if len(everything) > 20 else ''}"
    return f"did you mean '{found[0]}'? {shown}" if found else shown


# ---- failed cases


def _failed(workspace: Workspace, discovery: Discovery) -> frozenset[str]:
    known = history.recall(workspace.root, discovery.arch, discovery.target)
    if not known:
        raise _no_history()
    return frozenset(case for case in known if _did_not_pass(known, case))


def _did_not_pass(known: Mapping[str, history.Remembered], case: str) -> bool:
    """Tell whether a case did not pass in its last run. The result of a single subcase is valid until its whole group runs."""
    one = known.get(case)
    if one is None or not one.red:
        return False
    groups = (known.get(above) for above in parents(case))
    return all(group is None or group.at <= one.at for group in groups)


def _is_part_of(case: Case | BrokenCase, whole: Collection[str]) -> bool:
    return isinstance(case, Case) and bool(case.only) and case.whole in whole


def _parts(case: Case) -> list[str]:
    return [case.part(subcase).display_name for subcase in case.subcases]


def _arches(case: Case | BrokenCase) -> Sequence[Arch]:
    return [case.arch] if isinstance(case, Case) else list(Arch)


def _no_history() -> UsageError:
    return UsageError("no run is remembered", where="--failed", hint="run the cases once without it")


# ---- changed cases


def _by_change(workspace: Workspace, filters: Filters) -> Keep:
    from qcase.inputs import ingredients, revisions
    from qcase.suite.ignored import Ignored

    assert filters.changed is not None
    changes = revisions.changes_since(workspace.root, filters.changed)
    shared = ingredients.workspace_files(workspace, os.environ)
    if any(changes.touch(path) for path in shared):
        return lambda _: True
    builds = {str(Path(path).parent) for path in changes.paths if fnmatch.fnmatchcase(Path(path).name, "build-*.toml")}
    strays = any(not _is_of_a_case(Path(path), workspace.suite_root) for path in changes.paths)

    ignored = Ignored()

    def check(case: Case | BrokenCase) -> bool:
        if any(str(above) in builds for above in (case.path, *case.path.parents)):
            return True
        if isinstance(case, Case):
            # The sources of a kernel build are unknown; any changed file outside the cases may be one.
            builds_kernel = bool(case.config.own_kernel) or isinstance(workspace.config.guest[case.arch].kernel, KernelBuild)
            if (strays and builds_kernel) or (filters.kernel is not None and _touch(changes, filters.kernel)):
                return True
        others = ingredients.other_configurations(case)
        made_of = ingredients.of_case(case, workspace, os.environ, ignored) - shared
        return any(changes.touch(path, others) for path in made_of)

    return check


def _touch(changes: Changes, path: Path) -> bool:
    from qcase.pipelines.sources import steps

    return any(changes.touch(step) for step in steps(path))


def _is_of_a_case(path: Path, suite_root: Path) -> bool:
    """Tell whether a path is in the folder of an existing case."""
    above = (folder for folder in path.parents if folder.is_relative_to(suite_root))
    return any(next(folder.glob("qemu-*.toml"), None) is not None for folder in above)
