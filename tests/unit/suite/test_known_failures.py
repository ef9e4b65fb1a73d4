"""Known failures: what entries excuse and what they do not, against a slow reference."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config.case_file import CaseConfig
from qcase.config.known_file import Known
from qcase.config.load import load_known
from qcase.errors import ConfigError
from qcase.model import CaseResult, Fault, KnownFailure, Pipeline, SubtestResult, SubtestStatus, Verdict
from qcase.suite import known_failures
from qcase.suite.cases import Case
from qcase.suite.known_failures import KnownFailures, excused, shown, wanted

TODAY = date(2026, 11, 30)
TOLD = {"bad": SubtestStatus.FAIL, "broken": SubtestStatus.BROKEN, "skip": SubtestStatus.SKIP, "good": SubtestStatus.PASS}


def entry(test: str = "", excuses: str = "fail", case: str = "normal/futex", until: date | None = None) -> Known:
    return Known(f"known.toml:{len(test)}", "it is known", case, test, until=until, excuses=frozenset(excuses.split()))


def result(*subtests: str, verdict: Verdict | None = None, by_tests: bool | None = None) -> CaseResult:
    """A case by its tests, each as `<name> <status>`."""
    tests = tuple(SubtestResult(name, "", TOLD[status]) for name, status in (one.split() for one in subtests))
    bad = [one.name for one in tests if one.status in (SubtestStatus.FAIL, SubtestStatus.BROKEN)]
    verdict = verdict or (Verdict.FAIL if bad else Verdict.PASS)
    reason = f"{len(bad)} of {len(tests)} tests failed: {', '.join(bad)}" if bad else ""
    alone = bool(bad) and verdict is Verdict.FAIL if by_tests is None else by_tests
    fault = Fault.NONE if verdict in (Verdict.PASS, Verdict.SKIPPED) else Fault.CASE
    return CaseResult("normal/futex", Arch.X86_64, verdict, fault, reason, subtests=tests, by_tests=alone)


def case(display: str = "normal/futex", name: str = "futex", *entries: Known) -> Case:
    config = CaseConfig(known=entries)
    path = Path("/w/x")
    return Case(name, display, "normal", "", path, Arch.X86_64, path / "qemu-x86_64.toml", config, Pipeline.PLAIN, below=name)


def outcome(given: CaseResult, *entries: Known) -> list[str]:
    found = excused(given, entries)
    return [found.verdict.value, *(one.name for one in found.subtests if one.status is SubtestStatus.KNOWN_FAIL)]


def test_a_case_that_fails_as_is_known_is_green_and_never_a_pass() -> None:
    found = excused(result("a good", "b bad"), [entry("b")])
    assert (found.verdict, found.fault, found.red, found.passed) == (Verdict.KNOWN_FAIL, Fault.NONE, False, False)
    assert (found.excused, found.known) == (Verdict.FAIL, (shown(entry("b")),))
    assert found.subtests[1].known == "it is known [known.toml:1]"


@pytest.mark.parametrize(
    ("given", "entries", "found"),
    [
        (result("a good", "b bad"), [entry("*")], ["known-fail", "b"]),
        (result("a bad", "b bad"), [entry("b")], ["fail", "b"]),
        (result("a bad", "b bad"), [entry("b"), entry()], ["known-fail", "a", "b"]),
        (result("a bad", "b broken"), [entry("*")], ["fail", "a"]),
        (result("a bad", "b broken"), [entry("*", "fail broken")], ["known-fail", "a", "b"]),
        (result("a bad", by_tests=False), [entry("a")], ["fail", "a"]),
        (result("a bad", by_tests=False), [entry()], ["known-fail", "a"]),
        (replace(result("a bad"), unbuilt=True), [entry("a")], ["fail", "a"]),
        (replace(result("a bad"), unbuilt=True), [entry()], ["fail"]),
        (replace(result("a bad"), unbuilt=True), [entry(excuses="fail build-error")], ["known-fail", "a"]),
        (replace(result("a bad"), fault=Fault.INFRA), [entry(), entry("a")], ["fail"]),
        (result(verdict=Verdict.PANIC), [entry()], ["panic"]),
        (result("a bad", verdict=Verdict.PANIC), [entry("a"), entry()], ["panic", "a"]),
        (result(verdict=Verdict.PANIC), [entry(excuses="panic")], ["known-fail"]),
        (result(verdict=Verdict.TIMEOUT), [entry(excuses="panic")], ["timeout"]),
        (result(verdict=Verdict.EXITED), [entry(excuses="timeout exited")], ["known-fail"]),
        (result(verdict=Verdict.BUILD_ERROR), [entry(excuses="build-error")], ["known-fail"]),
        (result(verdict=Verdict.ERROR), [entry(excuses="fail panic timeout exited build-error")], ["error"]),
        (result(verdict=Verdict.SKIPPED), [entry()], ["skipped"]),
        (result("a good"), [entry(), entry("a")], ["pass"]),
    ],
)
def test_what_entries_excuse(given: CaseResult, entries: list[Known], found: list[str]) -> None:
    assert outcome(given, *entries) == found


def test_the_reason_of_a_case_names_what_is_left() -> None:
    assert excused(result("a bad", "b bad", "c good"), [entry("a")]).reason == "1 of 3 tests failed: b; 1 more is known to fail"


@pytest.mark.parametrize(
    ("status", "reason", "nested", "verdict"),
    [
        (SubtestStatus.FAIL, "", 1, "known-fail"),
        (SubtestStatus.FAIL, "exit=1", 1, "known-fail"),
        (SubtestStatus.FAIL, "exit=139", 1, "fail"),
        (SubtestStatus.FAIL, "TIMEOUT 45", 1, "fail"),
        (SubtestStatus.FAIL, "", 0, "fail"),
        (SubtestStatus.BROKEN, "", 1, "fail"),
    ],
)
def test_a_test_that_failed_because_one_in_it_did_needs_no_entry(
    status: SubtestStatus, reason: str, nested: int, verdict: str
) -> None:
    given = result("files/open bad", "files bad")
    files = replace(given.subtests[1], status=status, reason=reason, nested=nested)
    assert excused(replace(given, subtests=(given.subtests[0], files)), [entry("files/open")]).verdict == verdict


def test_entries_whose_failure_did_not_come_are_stale() -> None:
    assert excused(result("a good"), [entry(), entry("a"), entry("b")]).stale == (shown(entry()), shown(entry("a")))
    assert excused(result("a good", "b bad"), [entry("*"), entry("a")]).stale == (shown(entry("a")),)
    assert excused(result("a good", verdict=Verdict.PANIC), [entry("a")]).stale == ()


def test_a_known_failure_that_passes_is_told_and_with_strict_it_is_red() -> None:
    given = excused(result("a good"), [entry("a")])
    told = KnownFailures().heeded(given)
    assert (told.verdict, told.red, told.warnings) == (
        Verdict.PASS,
        False,
        ("known.toml:1: the test 'a' passes now, take the entry out (it is known)",),
    )
    strict = KnownFailures(strict=True).heeded(given)
    assert (strict.verdict, strict.fault, strict.reason) == (Verdict.FAIL, Fault.CASE, told.warnings[0])


def test_an_entry_excuses_through_its_last_day_and_a_failure_tells_that_it_has_expired() -> None:
    given, one = result("a bad"), entry("a", until=TODAY)
    assert KnownFailures((one,), today=TODAY).judged(given, case()).verdict is Verdict.KNOWN_FAIL
    found = KnownFailures((one,), today=date(2026, 12, 1)).judged(given, case())
    assert (found.verdict, found.warnings) == (
        Verdict.FAIL,
        ("known.toml:1 has expired (2026-11-30) and excuses nothing",),
    )
    told = known_failures.expired(KnownFailures((one,), today=date(2026, 12, 1)), [])
    assert told == ["known.toml:1: expired on 2026-11-30, and excuses nothing: mend what it says, or take it out (it is known)"]


def test_entries_mean_cases_by_name_display_name_or_glob_and_architecture() -> None:
    names = ["futex", "normal/futex", "normal/*", "f?tex"]
    others = ["fute", "normal", "normal/futex/", "stress/futex", "FUTEX"]
    known = KnownFailures(tuple(entry(case=name) for name in (*names, *others)))
    assert [one.case for one in known.of(case())] == names
    part = replace(case("normal/futex/wait", "futex/wait"), only="wait")
    assert [one.case for one in known.of(part)] == names
    repeated = replace(case("normal/futex#3"), repetition=3)
    assert [one.case for one in known.of(repeated)] == names
    assert KnownFailures((replace(entry(), arches=(Arch.AARCH64,)),)).of(case()) == ()
    own = entry("a", case="")
    assert KnownFailures((entry(case="x"),)).of(case("normal/futex", "futex", own)) == (own,)


def test_entries_that_match_nothing_are_told_if_nothing_that_did_not_run_could_match() -> None:
    entries = (
        entry(case="futx"),
        entry("a"),
        entry("nope"),
        entry("nope", case="*"),
        entry(case="smoke"),
        entry("x", case="smoke"),
    )
    known = KnownFailures(entries)
    ran = [(case(), result("a bad", "b good"))]
    names = [("futex", "normal/futex"), ("smoke", "normal/smoke")]
    told = ["known.toml:0: no case is called 'futx'", "known.toml:4: there is no test 'nope' in normal/futex"]
    assert known_failures.unmatched(known, ran, lambda: names) == told
    panicked = [(case(), result("b good", verdict=Verdict.PANIC))]
    assert known_failures.unmatched(known, panicked, lambda: names) == told[:1]


# ---- against a reference


def reference(given: CaseResult, entries: list[Known]) -> bool:
    """Whether a result is excused, word by word as the documentation has it, without nested tests."""
    if given.verdict.value not in ("fail", "panic", "timeout", "exited", "build-error") or given.fault is not Fault.CASE:
        return False
    wrong = {given.verdict.value} | ({"build-error"} if given.unbuilt else set())
    if all(any(not one.test and word in one.excuses for one in entries) for word in wrong):
        return True
    if given.verdict is not Verdict.FAIL or not given.by_tests or given.unbuilt:
        return False
    words = {SubtestStatus.FAIL: "fail", SubtestStatus.BROKEN: "broken"}
    bad = [one for one in given.subtests if one.status in words]
    return bool(bad) and all(
        any(
            one.test and words[test.status] in one.excuses and (one.test == test.name or fnmatchcase(test.name, one.test))
            for one in entries
        )
        for test in bad
    )


def anything(chance: random.Random) -> tuple[CaseResult, list[Known]]:
    names = ["a", "b", "a/b", "a b", "x[1]", "*", "wait?"]
    tests = [f"{name} {chance.choice([*TOLD, 'good', 'good'])}" for name in names if chance.random() < 0.5 and " " not in name]
    verdict = chance.choice([None, None, None, *(one for one in Verdict if one is not Verdict.KNOWN_FAIL)])
    given = result(*tests, verdict=verdict, by_tests=None if chance.random() < 0.8 else False)
    given = replace(given, unbuilt=chance.random() < 0.1)
    if given.red and chance.random() < 0.1:
        given = replace(given, fault=chance.choice([Fault.INFRA, Fault.CONFIG]))
    entries = []
    for _ in range(chance.randrange(5)):
        test = chance.choice(["", "", *names, "a*", "?", "*[1]"])
        words = ("fail", "broken") if test else ("fail", "panic", "timeout", "exited", "build-error")
        entries.append(
            entry(test, " ".join(chance.sample(words, chance.randrange(1, len(words))) if chance.random() < 0.7 else words))
        )
    return given, entries


def test_excuses_agree_with_the_reference() -> None:
    chance = random.Random(9)
    green = 0
    for _ in range(8_000):
        given, entries = anything(chance)
        found = excused(given, entries)
        assert (found.verdict is Verdict.KNOWN_FAIL) == reference(given, entries), (given, entries)
        assert found.verdict in (Verdict.KNOWN_FAIL, given.verdict)
        assert found.red == (given.red and found.verdict is not Verdict.KNOWN_FAIL)
        assert found.passed == given.passed
        left = [one for one in found.subtests if one.status in (SubtestStatus.FAIL, SubtestStatus.BROKEN)]
        assert not (left and found.verdict is Verdict.KNOWN_FAIL)
        assert excused(given, []) == given
        green += found.verdict is Verdict.KNOWN_FAIL
    assert green > 1_000


def test_the_entries_that_a_result_wants_excuse_it_and_none_is_too_many() -> None:
    chance = random.Random(5)
    count = 0
    for _ in range(5_000):
        given, _ = anything(chance)
        entries = [entry(test, " ".join(words)) for test, words in wanted(given)]
        count += bool(entries)
        assert (excused(given, entries).verdict is Verdict.KNOWN_FAIL) == (
            given.red and given.fault is Fault.CASE and bool(entries)
        )
        assert bool(entries) == (
            given.fault is Fault.CASE and given.verdict not in (Verdict.ERROR, Verdict.SKIPPED, Verdict.PASS)
        )
        for at in range(len(entries)):
            assert excused(given, entries[:at] + entries[at + 1 :]).red
    assert count > 500


# ---- the file


def test_a_file_of_known_failures(tmp_path: Path) -> None:
    path = tmp_path / "known.toml"
    assert load_known(path, tmp_path) == ()
    path.write_text(
        '[[known]]\ncase = "fs/*"\nreason = "later"\n\n[[known]]\ncase = "futex"\ntest = "wait"\nreason = "x"\n'
        'arch = "aarch64"\nlink = "https://example.org/1"\nuntil = 2027-01-31\nexcuses = ["fail", "broken"]\n'
    )
    first, second = load_known(path, tmp_path)
    assert first == Known("known.toml:1", "later", "fs/*")
    assert (second.place, second.arches, second.until) == ("known.toml:5", (Arch.AARCH64,), date(2027, 1, 31))
    assert shown(second) == KnownFailure("known.toml:5", "x", "wait", "https://example.org/1", "2027-01-31")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[[known]]\ncase = "a"\n', "known.toml:1: known[0].reason: is missing"),
        ('[[known]]\ncase = "a"\nreason = " "\n', "known.toml:3: known[0].reason: must be a text in one line"),
        ('[[known]]\ncase = "a"\nreason = "x"\nuntil = "soon"\n', 'known.toml:4: known[0].until: must be a date such'),
        ('[[known]]\ncase = "a"\nreson = "x"\nreason = "x"\n', "known.toml:3: known[0].reson: unknown key (did you mean"),
        ('[[known]]\ncase = "a"\nreason = "x"\ntest = "b"\nexcuses = ["panic"]\n', "`test` excuses fail, broken, and not panic"),
        ('[[known]]\ncase = "a"\nreason = "x"\nexcuses = []\n', "known.toml:4: known[0].excuses: must not be empty"),
        ('[[known]]\ncase = "a"\nreason = "x"\narch = "arm"\n', "unknown architecture 'arm'"),
        ('[known]\ncase = "a"\n', "must be an array of tables (write [[known]] above each entry)"),
        ("known", "is not TOML"),
    ],
)  # fmt: skip
def test_a_wrong_file_says_what_is_wrong(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "known.toml").write_text(text)
    with pytest.raises(ConfigError) as found:
        load_known(tmp_path / "known.toml", tmp_path)
    assert what in str(found.value)
