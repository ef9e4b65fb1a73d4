"""Known failures: what of a result its entries excuse, and what the entries say that is no longer so.

    result ─► entries of its case ─► known-fail   all that is wrong is excused, by entries that name it
                                  ─► as it was    whatever is left; excused tests are marked all the same

An entry without `test` excuses a case as a whole, for the verdicts that it names. Entries with `test` excuse a case that would
have passed without its failed tests: each of them has to be excused. A failure of qcase's own or of the machine, a wrong file and
a skipped case are never excused, and an entry that has expired excuses nothing.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from glob import escape
from typing import Final

from qcase.config.known_file import KNOWN_FILE, OF_CASES, Known
from qcase.config.load import load_known
from qcase.model import CaseResult, Fault, KnownFailure, SubtestResult, SubtestStatus, Verdict
from qcase.suite.cases import BrokenCase, Case, Workspace

_WORDS: Final = {SubtestStatus.FAIL: "fail", SubtestStatus.BROKEN: "broken"}
_NAMED: Final = 5  # failed tests that a reason names
_COUNTED: Final = re.compile(r"\d+ of (\d+) (tests|commands) failed")
# What a test says of itself that has failed because a test in it has: nothing, or the status by which kselftest says so.
_OF_NESTED: Final = ("", "exit=1")


@dataclass(frozen=True)
class KnownFailures:
    """The known failures of a suite. `strict`: a known failure that passes fails its case. `today`: the day, in UTC."""

    entries: tuple[Known, ...] = ()
    strict: bool = False
    today: date = date.min

    @classmethod
    def load(cls, workspace: Workspace, *, strict: bool = False, day: date | None = None) -> KnownFailures:
        """Load `known.toml` of the workspace and of the suite's root. Raises `ConfigError` with all faults of a file."""
        folders = dict.fromkeys((workspace.root, workspace.suite_root))
        entries = tuple(entry for folder in folders for entry in load_known(folder / KNOWN_FILE, workspace.root))
        return cls(entries, strict, day or today())

    def of(self, case: Case | BrokenCase) -> tuple[Known, ...]:
        """Return the entries that are about a case."""
        if isinstance(case, BrokenCase):
            return ()
        names = names_of(case)
        listed = (one for one in self.entries if any(matches(one.case, name) for name in names))
        return tuple(one for one in (*listed, *case.config.known) if not one.arches or case.arch in one.arches)

    def judged(self, result: CaseResult, case: Case) -> CaseResult:
        """Return the result of an attempt as its entries leave it."""
        entries = self.of(case)
        if not entries:
            return result
        live = [one for one in entries if not one.expired(self.today)]
        judged = excused(result, live)
        if judged.red and len(live) < len(entries) and not (other := excused(result, entries)).red:
            over = {shown(one) for one in entries if one.expired(self.today)} & set(other.known)
            told = (f"{one.entry} has expired ({one.until}) and excuses nothing" for one in other.known if one in over)
            judged = replace(judged, warnings=(*judged.warnings, *told))
        return judged

    def heeded(self, result: CaseResult) -> CaseResult:
        """Return a case's last result with what is to be said of known failures that passed: a warning, or a fail."""
        if not result.stale:
            return result
        told = [f"{one.entry}: {_subject(one)} passes now, take the entry out ({one.reason})" for one in result.stale]
        if not self.strict or result.verdict not in (Verdict.PASS, Verdict.KNOWN_FAIL):
            return replace(result, warnings=(*result.warnings, *told))
        return replace(result, verdict=Verdict.FAIL, fault=Fault.CASE, reason="; ".join(told), excused=None, by_tests=False)


def today() -> date:
    """Return the day by which entries expire."""
    return datetime.now(UTC).date()


def expired(known: KnownFailures, cases: Iterable[Case | BrokenCase]) -> list[str]:
    """Return what is to be told of entries that have expired: those of the suite, and those of these cases."""
    entries = dict.fromkeys((*known.entries, *(one for case in cases if isinstance(case, Case) for one in case.config.known)))
    return [
        f"{one.place}: expired on {one.until}, and excuses nothing: mend what it says, or take it out ({one.reason})"
        for one in entries
        if one.expired(known.today)
    ]


def unmatched(
    known: KnownFailures, ran: Sequence[tuple[Case, CaseResult]], names: Callable[[], Iterable[tuple[str, str]]]
) -> list[str]:
    """Return what is to be told of entries that match nothing, after a run of all cases of a group.

    `names`: name and display name of each case of the suite. An entry that may be about a case that did not run is passed over.
    """
    told = []
    everything: list[tuple[str, str]] | None = None
    by_entry: dict[Known, list[CaseResult]] = {one: [] for one in known.entries}
    for case, result in ran:
        for entry in known.of(case):
            by_entry.setdefault(entry, []).append(result)
    arches, known_names = {case.arch for case, _ in ran}, frozenset[str]().union(*(names_of(case) for case, _ in ran))
    for entry, results in by_entry.items():
        if (entry.arches and not set(entry.arches) & arches) or any(_may_match(entry, one) for one in results):
            continue
        everything = list(names()) if everything is None else everything
        meant = {display for name, display in everything if matches(entry.case, name) or matches(entry.case, display)}
        # The machines of a matrix stand in files that were not read.
        machine = any(entry.case.startswith(f"{name}-") for both in everything for name in both)
        if entry.case and not (meant or machine or results):
            told.append(f"{entry.place}: no case is called {entry.case!r}")
        elif results and meant <= known_names:
            told.append(f"{entry.place}: there is no test {entry.test!r} in {', '.join(sorted({one.case for one in results}))}")
    return told


def _may_match(entry: Known, result: CaseResult) -> bool:
    """Tell whether an entry is about a result, or about one of its tests, as far as these are known."""
    if not entry.test or not (result.verdict is Verdict.PASS or result.by_tests):
        return True
    return any(matches(entry.test, one.name) for one in result.subtests)


def _subject(entry: KnownFailure) -> str:
    return f"the test {entry.test!r}" if entry.test else "the case"


def names_of(case: Case) -> frozenset[str]:
    """Return the names of the whole case: its name, and its display names in runs of one group and of several."""
    names = (case.name, case.plain_name, *replace(case, test="", display_name=case.plain_name, repetition=0).other_names)
    return frozenset(name.removesuffix(f"/{case.only}") if case.only else name for name in names)


def matches(pattern: str, name: str) -> bool:
    """Tell whether a glob, in which `*` also stands for `/`, or a name itself means a name."""
    return pattern == name or fnmatch.fnmatchcase(name, pattern)


def shown(entry: Known) -> KnownFailure:
    """Return an entry as reports show it."""
    until = entry.until.isoformat() if entry.until else ""
    return KnownFailure(entry.place, entry.reason, entry.test, entry.link, until)


def excused(result: CaseResult, entries: Sequence[Known]) -> CaseResult:
    """Return a result as these entries leave it: excused, or with those of its subtests marked that are."""
    if result.fault not in (Fault.NONE, Fault.CASE) or result.verdict in (Verdict.ERROR, Verdict.SKIPPED):
        return result
    of_tests, of_case = [one for one in entries if one.test], [one for one in entries if not one.test]
    marks = _marks(result.subtests, of_tests)
    bad = [at for at, one in enumerate(result.subtests) if one.status in _WORDS]
    used = list(dict.fromkeys(one for at in sorted(marks) for one in marks[at]))
    complete = result.verdict is Verdict.PASS or (result.by_tests and not result.unbuilt)
    stale = [one for one in of_tests if complete and one not in used and _passed(one, result.subtests)]
    if result.verdict is Verdict.PASS:
        return replace(result, stale=tuple(shown(one) for one in (*of_case, *stale)))
    by_tests = complete and bool(bad) and all(at in marks for at in bad)
    covering = [] if by_tests else _covering(result, of_case)
    if covering:
        marks = {at: marks.get(at, covering) for at in bad}
        used = [*used, *covering]
    subtests = tuple(
        replace(one, status=SubtestStatus.KNOWN_FAIL, known="; ".join(shown(entry).told for entry in marks[at]))
        if at in marks
        else one
        for at, one in enumerate(result.subtests)
    )
    marked = replace(result, subtests=subtests, known=tuple(shown(one) for one in used), stale=tuple(shown(one) for one in stale))
    if by_tests or covering:
        return replace(marked, verdict=Verdict.KNOWN_FAIL, fault=Fault.NONE, excused=result.verdict)
    return replace(marked, reason=_reason(marked)) if marks and result.by_tests else marked


def _marks(subtests: Sequence[SubtestResult], entries: Sequence[Known]) -> dict[int, list[Known]]:
    """Return the entries that excuse each subtest, by its position. Tests in a test come before it."""
    marks: dict[int, list[Known]] = {}
    for at, one in enumerate(subtests):
        if (word := _WORDS.get(one.status)) is None:
            continue
        found = [entry for entry in entries if word in entry.excuses and matches(entry.test, one.name)]
        if not found and (inside := _failed_inside(subtests, at)) and all(n in marks for n in inside):
            found = list(dict.fromkeys(entry for n in inside for entry in marks[n]))
        if found:
            marks[at] = found
    return marks


def _failed_inside(subtests: Sequence[SubtestResult], at: int) -> list[int]:
    """Return the positions of the failed tests in a test, if that has failed and says no reason of its own."""
    one = subtests[at]
    if one.status is not SubtestStatus.FAIL or one.reason not in _OF_NESTED:
        return []
    return [n for n in range(max(at - one.nested, 0), at) if subtests[n].status in _WORDS]


def _covering(result: CaseResult, entries: Sequence[Known]) -> list[Known]:
    """Return the entries about the case as a whole that excuse all that is wrong with it; none if something is left."""
    wrong = _wrong(result)
    covered = frozenset[str]().union(*(one.excuses for one in entries))
    return [one for one in entries if one.excuses & wrong] if wrong <= covered else []


def _wrong(result: CaseResult) -> set[str]:
    return {result.verdict.value} | ({Verdict.BUILD_ERROR.value} if result.unbuilt else set())


def _passed(entry: Known, subtests: Iterable[SubtestResult]) -> bool:
    """Tell whether a test that an entry names passed, and none of those failed."""
    statuses = {one.status for one in subtests if matches(entry.test, one.name)}
    return SubtestStatus.PASS in statuses and not statuses & set(_WORDS)


def _reason(result: CaseResult) -> str:
    """Return the reason of a case that failed by its tests, of which some are known to fail."""
    found = _COUNTED.match(result.reason)
    bad = [one for one in result.subtests if one.status in _WORDS]
    if found is None or not bad:
        return result.reason
    known = sum(one.status is SubtestStatus.KNOWN_FAIL for one in result.subtests)
    names = [f"{one.name} (status {one.exit_status})" if one.exit_status else one.name for one in bad[:_NAMED]]
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    told = f"{len(bad)} of {found[1]} {found[2]} failed: {', '.join(names)}{more}"
    return f"{told}; {known} more {'is' if known == 1 else 'are'} known to fail"


def wanted(result: CaseResult) -> list[tuple[str, tuple[str, ...]]]:
    """Return the entries that would excuse a result, each as the glob of its test and what it excuses; none if nothing can."""
    if result.fault is not Fault.CASE or result.verdict.value not in OF_CASES:
        return []
    if result.verdict is Verdict.FAIL and result.by_tests and not result.unbuilt:
        tests = result.subtests
        bad = (one for at, one in enumerate(tests) if one.status in _WORDS and not _failed_inside(tests, at))
        return list(dict.fromkeys((escape(one.name), (_WORDS[one.status],)) for one in bad))
    return [("", tuple(sorted(_wrong(result))))]
