"""Known failures that `qcase lint` reports: faults of the files, and entries that excuse nothing.

    no case, no test     a name or a glob that matches nothing in the suites
    another machine      `arch` names none for which these cases are
    a day that is over   `until`
    told twice           an entry with the subject of an earlier one

The tests inside a command are known once it has run. So only commands of groups and steps are looked up, and cases with neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from qcase.arch import Arch
from qcase.config.known_file import KNOWN_FILE, Known
from qcase.config.load import load_known
from qcase.errors import ConfigError, Problem
from qcase.inputs.findings import Finding, error, warning
from qcase.pipelines import group_commands, group_script
from qcase.suite.cases import Case, Workspace
from qcase.suite.catalogue import Catalogue, CatalogueEntry
from qcase.suite.known_failures import matches, names_of, today
from qcase.suite.select import is_glob
from qcase.text import nearest

CHECK = "known"


@dataclass(frozen=True)
class _Listed:
    """A case of the catalogue: its names, and itself for each architecture, where its file could be read."""

    names: frozenset[str]
    cases: Mapping[Arch, Case]


def findings(suites: Sequence[tuple[Workspace, Catalogue]]) -> Iterator[Finding]:
    """Yield what is to be told of the known failures of all suites of a workspace."""
    day = today()
    listed = [(suite, [_listed(entry) for entries in found.groups.values() for entry in entries]) for suite, found in suites]
    files: dict[Path, list[_Listed]] = {}
    for suite, cases in listed:
        for folder in dict.fromkeys((suite.root, suite.suite_root)):
            files.setdefault(folder / KNOWN_FILE, []).extend(cases)
    for path, cases in files.items():
        try:
            entries = load_known(path, suites[0][0].root)
        except ConfigError as fault:
            yield from (error("config", problem) for problem in fault.problems)
            continue
        yield from _expired(entries, day)
        yield from _of_file(entries, cases)
    for case in (case for _, cases in listed for one in cases for case in one.cases.values()):
        yield from _expired(case.config.known, day)
        for entry in case.config.known:
            yield from _tests(entry, [case])


def _expired(entries: Sequence[Known], day: date) -> Iterator[Finding]:
    for entry in entries:
        if entry.expired(day):
            what = f"has expired on {entry.until}, and excuses nothing"
            yield _told(entry, what, "until", "mend what it says, or take it out")


def _listed(entry: CatalogueEntry) -> _Listed:
    own = frozenset((entry.name, entry.display_name))
    return _Listed(own.union(*(names_of(case) for case in entry.cases.values())), entry.cases)


def _of_file(entries: Sequence[Known], listed: Sequence[_Listed]) -> Iterator[Finding]:
    seen: dict[tuple[object, ...], Known] = {}
    for entry in entries:
        found = [one for one in listed if any(matches(entry.case, name) for name in one.names)]
        if not found:
            every = sorted(name for one in listed for name in one.names)
            hint = "" if is_glob(entry.case) else nearest(entry.case, every, fallback=False)
            yield _told(entry, f"no case is called {entry.case!r}", "case", hint)
            continue
        subject = (entry.case, entry.test, entry.arches, entry.excuses)
        if (first := seen.setdefault(subject, entry)) is not entry:
            yield _told(entry, f"is about the same as {first.place}", "case", "keep one of them")
        cases = [case for one in found for case in one.cases.values() if not entry.arches or case.arch in entry.arches]
        if any(one.cases for one in found) and not cases:
            arches = ", ".join(sorted({arch for one in found for arch in one.cases}))
            yield _told(entry, f"{entry.case!r} is not for {', '.join(entry.arches)}", "arch", f"it is for {arches}")
        yield from _tests(entry, cases)


def _tests(entry: Known, cases: Sequence[Case]) -> Iterator[Finding]:
    """Report an entry about a test that none of the cases has."""
    names = [_test_names(case) for case in cases]
    if not entry.test or not cases or any(known is None or any(matches(entry.test, one) for one in known) for known in names):
        return
    every = [name for known in names for name in known or ()]
    shown = ", ".join(sorted({case.plain_name for case in cases}))
    hint = nearest(entry.test, every, fallback=False) if every else "leave `test` out: the case as a whole is known to fail"
    yield _told(entry, f"there is no test {entry.test!r} in {shown}", "test", hint)


def _test_names(case: Case) -> Sequence[str] | None:
    """Return the names of a case's tests; None where only a run tells them."""
    config = case.config
    if config.results or config.markers:
        return None
    if config.is_grouped:
        return group_commands.distinct([group_script.label(command) for command in config.test_commands])
    return [step.name for step in config.steps]


def _told(entry: Known, what: str, key: str, hint: str = "") -> Finding:
    file, _, line = entry.place.rpartition(":")
    return warning(CHECK, Problem(what, file, int(line), key, hint))
