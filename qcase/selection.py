"""Which cases a command means: names and globs (see `qcase.suite`), and filters that each take some of them away.

    --tag T        cases with the tag T; `!T`, those without. Several: cases with any of the tags, and none of the `!` ones
    --pipeline P   cases of a pipeline; several: of any of them
    --failed       cases that did not pass when they last ran (see `qcase.history`)
    --changed REV  cases whose sources differ from a git revision, and those that git does not know yet

A case whose file is broken has no tags and no pipeline that anybody could know. It might be one that is meant, so it stays: an
error that was not asked for is better than a case that was left out in silence.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qcase import history, process
from qcase.config import KernelBuild, printable
from qcase.errors import InfraError, UsageError
from qcase.model import Arch, Pipeline
from qcase.suite import BrokenCase, Case, Catalogue, Discovery, Workspace, select

HEAD = "HEAD"
_GIT_TIMEOUT = 60.0  # seconds

Keep = Callable[[Case | BrokenCase], bool]


@dataclass(frozen=True)
class Filters:
    """What the options say. `changed`: a revision, None without the option."""

    tags: tuple[str, ...] = ()
    pipelines: tuple[str, ...] = ()
    failed: bool = False
    changed: str | None = None

    def __bool__(self) -> bool:
        return bool(self.tags or self.pipelines or self.failed or self.changed is not None)


@dataclass(frozen=True)
class Chosen:
    """The cases, in the order of the discovery. `note` says why there are none, where that is no error."""

    cases: tuple[Case | BrokenCase, ...]
    note: str = ""


def choose(workspace: Workspace, discovery: Discovery, patterns: Sequence[str], filters: Filters) -> Chosen:
    """The cases of `discovery` that `patterns` mean and every filter keeps.

    Raises `UsageError` for a pattern, a tag, a pipeline or a revision that means nothing, and where no run is remembered.
    """
    chosen = select(discovery, patterns)
    failed: frozenset[str] = frozenset()
    if filters.failed:
        failed = _failed(workspace, discovery)
        parts = {part for case in discovery.cases if isinstance(case, Case) for part in _parts(case)} & failed
        if parts and not patterns:  # what failed when its subcase ran alone
            chosen += tuple(case for case in select(discovery, sorted(parts)) if isinstance(case, Case) and case.only)
    if filters.tags:
        _check_tags(filters.tags, chosen)
    for keep in _filters(workspace, filters):
        chosen = tuple(case for case in chosen if keep(case))
    if filters.failed:
        whole = {case.display_name for case in chosen} & failed
        chosen = tuple(case for case in chosen if case.display_name in failed and not _is_part_of(case, whole))
    return Chosen(chosen, "" if chosen else _nothing(filters))


def listed(workspace: Workspace, everything: Catalogue, filters: Filters) -> Catalogue:
    """What the filters keep of a listing, over all arches. What last failed is that of each arch's usual target."""
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
        checks.append(_by_change(workspace, filters.changed))
    return checks


def _nothing(filters: Filters) -> str:
    if filters.failed:
        return "nothing to run: all of these cases passed when they last ran, or have not run yet"
    if filters.changed is not None:
        return f"nothing to run: no case that was asked for differs from {filters.changed}"
    raise UsageError("no case has all that was asked for", hint="`qcase list` shows tags and pipelines")


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
    """A tag that no case has is a slip of the pen, unless there is one that cannot be read: it might have it."""
    known: set[str] = set()
    for case in cases:
        if not isinstance(case, Case):
            return
        known.update(case.config.tags)
    for tag in tags:
        if tag.removeprefix("!") not in known:
            raise UsageError(f"no case here has the tag '{printable(tag.removeprefix('!'))}'", hint=near(tag, known, "tags"))


def _by_pipeline(names: Sequence[str]) -> Keep:
    for name in names:
        if name not in list(Pipeline):
            raise UsageError(f"unknown pipeline '{printable(name)}'", where="--pipeline", hint=near(name, Pipeline, "pipelines"))
    return lambda case: isinstance(case, BrokenCase) or case.pipeline in names


def near(name: str, known: Iterable[str], what: str) -> str:
    """A hint: the known one that `name` was probably meant to be, and all there are."""
    everything = sorted(known)
    if not everything:
        return f"there are no {what}"
    found = difflib.get_close_matches(name, everything, n=1)
    shown = f"known {what}: {', '.join(everything[:20])}{', …' if len(everything) > 20 else ''}"
    return f"did you mean '{found[0]}'? {shown}" if found else shown


# ---- what failed


def _failed(workspace: Workspace, discovery: Discovery) -> frozenset[str]:
    known = history.recall(workspace.root, discovery.arch, discovery.target)
    if not known:
        raise _no_history()
    return frozenset(case for case in known if _did_not_pass(known, case))


def _did_not_pass(known: Mapping[str, history.Remembered], case: str) -> bool:
    """Whether a case did not pass when it last ran. What came of a subcase alone holds until its whole group has run."""
    one = known.get(case)
    if one is None or one.passed:
        return False
    group = known.get(case.rpartition("/")[0])
    return group is None or group.at <= one.at


def _is_part_of(case: Case | BrokenCase, whole: Collection[str]) -> bool:
    return isinstance(case, Case) and bool(case.only) and case.whole in whole


def _parts(case: Case) -> list[str]:
    return [case.part(subcase).display_name for subcase in case.subcases]


def _arches(case: Case | BrokenCase) -> Sequence[Arch]:
    return [case.arch] if isinstance(case, Case) else list(Arch)


def _no_history() -> UsageError:
    return UsageError("no run is remembered", where="--failed", hint="run the cases once without it")


# ---- what changed


def _by_change(workspace: Workspace, revision: str) -> Keep:
    changed = changed_paths(workspace.root, revision)
    if str(workspace.root / "qcase.toml") in changed:
        return lambda _: True  # it says how every case is built and booted
    folders = _with_parents(changed)
    build_groups = {str(Path(path).parent) for path in changed if fnmatch.fnmatchcase(Path(path).name, "build-*.toml")}
    guests = {arch: _guest_files(workspace, arch) for arch in Arch}
    # Nobody knows of what a command makes a kernel; what is no case of the suite may be its source.
    sources = any(not Path(path).is_relative_to(workspace.suite_root) for path in changed)

    def check(case: Case | BrokenCase) -> bool:
        if isinstance(case, Case) and changed & guests[case.arch]:
            return True
        if isinstance(case, Case) and sources and isinstance(workspace.config.guest[case.arch].kernel, KernelBuild):
            return True
        path = str(case.path)
        if any(str(above) in changed for above in (case.path, *case.path.parents)):
            return True  # all of a folder, as git tells of a submodule
        if any(str(above) in build_groups for above in (case.path, *case.path.parents)):
            return True
        if path not in folders:
            return False
        return isinstance(case, BrokenCase) or bool(folders[path] - _of_other_arches(case))

    return check


def changed_paths(root: Path, revision: str) -> frozenset[str]:
    """The absolute paths of all files that differ from `revision`, and of those that git does not know and does not ignore.

    What was added, edited, or taken away, committed or not. Raises `UsageError` outside of a repository, and for what is no
    revision.
    """
    git = ["git", "-C", str(root), "-c", "core.quotePath=off"]
    try:
        top = process.run([*git, "rev-parse", "--show-toplevel"], check=False, timeout=_GIT_TIMEOUT)
    except InfraError as error:
        raise UsageError(f"git cannot be asked: {error.what}", where="--changed", hint="install git, or name the cases") from None
    if top.returncode != 0:
        said = top.output.removeprefix("fatal: ").splitlines()
        raise UsageError(f"git says: {said[0] if said else 'nothing'}", where="--changed", hint="name the cases instead")
    repository = Path(os.fsdecode(top.stdout).rstrip("\n"))
    wanted = f"{revision}^{{commit}}"
    known = process.run([*git, "rev-parse", "--verify", "--quiet", "--end-of-options", wanted], check=False, timeout=_GIT_TIMEOUT)
    if known.returncode != 0:
        raise UsageError(
            f"git knows no revision '{printable(revision)}' here",
            where="--changed",
            hint="without a revision it is HEAD; cases to be named beside it go before it, or after --",
        )
    commit = known.stdout.decode().strip()
    git[2] = str(repository)
    found: set[str] = set()
    for command in (
        ["diff", "--name-only", "-z", "--no-renames", "--no-ext-diff", commit, "--"],
        ["ls-files", "-z", "--others", "--exclude-standard"],
    ):
        listed = process.run([*git, *command], timeout=_GIT_TIMEOUT).stdout
        found.update(str(repository / os.fsdecode(name)) for name in listed.split(b"\0") if name)
    return frozenset(found)


def _with_parents(paths: Collection[str]) -> dict[str, set[str]]:
    """For each folder above a path, the paths below it."""
    folders: dict[str, set[str]] = {}
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder:
            folders.setdefault(folder, set()).add(path)
            folder = folder.rpartition("/")[0]
    return folders


def _of_other_arches(case: Case) -> set[str]:
    return {str(case.path / f"qemu-{arch}.toml") for arch in Arch if arch is not case.arch}


def _guest_files(workspace: Workspace, arch: Arch) -> set[str]:
    guest = workspace.config.guest[arch]
    return {
        os.path.normpath(workspace.root / name) for name in (guest.rootfs, guest.kernel, guest.initrd) if isinstance(name, str)
    }
