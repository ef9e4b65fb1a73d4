"""Streams of LTP, libtest, Unity, markers of one's own, and of a dialect that is not named."""

from __future__ import annotations

import pytest

from qcase.config.patterns import compile_pattern
from qcase.results.dialects import READERS
from qcase.results.markers import MarkersReader
from qcase.results.reader import Reader
from tests.unit.results.streams import faults, read, statuses

LTP = """\
tst_test.c:1741: TINFO: Timeout per run is 0h 00m 30s
open01.c:64: TPASS: sticky bit is set
open01.c:64: TPASS: sticky bit is set
open01.c:70: TFAIL: open() succeeded
df01 1 TCONF: no mkfs
open01.c:80: TBROK: mount failed: EPERM (1)

Summary:
passed   2
failed   1
broken   1
skipped  1
warnings 0
"""


def test_ltp() -> None:
    reader = read("ltp", LTP)
    assert statuses(reader) == [
        "pass open01.c:64",
        "pass open01.c:64 (2)",
        "fail open01.c:70",
        "skip df01 1",
        "broken open01.c:80",
    ]
    assert [one.reason for one in reader.listed()][2:4] == ["open() succeeded", "no mkfs"]
    assert faults(reader) == []
    assert reader.finished


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("passed   2", "passed   3", "the summary says 3 passed, 2 were counted"),
        ("skipped  1\n", "", "the summary does not say how many skipped"),
        ("broken   1\n", "", "the summary says 0 broken, 1 were counted"),
        ("failed   1\n", "failed   0\nfailed   1\n", "the summary says twice how many failed"),
        ("warnings 0\n", "", "the last summary is not whole"),
        ("failed   1", "hello", "a summary is not whole"),
        ("warnings 0", "warnings 0\nopen02.c:1: TPASS: yes", "the last program has no summary"),
        ("warnings 0", "warnings 0\nopen02.c:1: TINFO: hello", "the last program has no summary"),
    ],
)
def test_a_summary_of_ltp_that_does_not_agree(before: str, after: str, fault: str) -> None:
    assert fault in faults(read("ltp", LTP.replace(before, after)))


def test_a_program_of_ltp_that_ends_without_a_summary() -> None:
    begins = "tst_test.c:1833: TINFO: LTP version: 20240524\n"
    assert faults(read("ltp", begins + LTP)) == []
    assert faults(read("ltp", LTP + begins + "Segmentation fault\n" + begins + LTP)) == [
        "a program began before the summary of the one before it"
    ]


def test_a_summary_of_ltp_without_what_is_broken() -> None:
    said = "a.c:1: TPASS: yes\nSummary:\npassed   1\nfailed   0\nskipped  0\nwarnings 0\n"
    assert faults(read("ltp", said)) == []


def test_ltp_of_the_old_kind() -> None:
    assert statuses(read("ltp", "open01    1  TPASS  :  fine\nopen01    2  TWARN  :  odd\n")) == [
        "pass open01 1",
        "broken open01 2",
    ]


LIBTEST = """\

running 4 tests
test fs::open ... ok
test fs::seek ... FAILED
test fs::slow ... ignored, too slow
test fs::bad - should panic ... ok <0.250s>

failures:

---- fs::seek stdout ----
left: 1
right: 2

failures:
    fs::seek

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s
"""


def test_libtest() -> None:
    reader = read("libtest", LIBTEST)
    assert statuses(reader) == ["pass fs::open", "fail fs::seek", "skip fs::slow", "pass fs::bad"]
    _, seek, slow, bad = reader.listed()
    assert (seek.output, slow.reason, bad.duration) == (("left: 1", "right: 2"), "too slow", 0.25)
    assert faults(reader) == []
    assert reader.finished


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("2 passed", "3 passed", "the summary says that 3 passed, 2 were counted"),
        ("running 4", "running 5", "5 tests were to run, 4 ended"),
        ("result: FAILED", "result: ok", "the summary says ok, 1 failed"),
        ("test result", "result", "4 tests were to run, 4 ended, and no summary came"),
        ("seek ... FAILED", "seek ... hello", "fs::seek began and did not end"),
        ("running 4 tests\n", "", "a summary came without the tests that it is about"),
    ],
)
def test_a_summary_of_libtest_that_does_not_agree(before: str, after: str, fault: str) -> None:
    assert fault in faults(read("libtest", LIBTEST.replace(before, after)))


def test_a_test_of_libtest_whose_output_is_shown() -> None:
    head = "running 2 tests\ntest a ... hello\nworld\n"
    reader = read("libtest", f"{head}FAILED\ntest b ... \n")
    assert statuses(reader) == ["fail a", "broken b"]
    assert reader.listed()[0].output == ("test a ... hello", "world")
    assert reader.running == "b"
    forged = read(
        "libtest",
        f"{head}ok\nFAILED\ntest b ... ok\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n",
    )
    assert faults(forged)  # the program itself printed `ok`


def test_several_programs_of_libtest_some_of_them_empty() -> None:
    empty = "running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n"
    assert faults(read("libtest", empty + LIBTEST + empty)) == []
    assert faults(read("libtest", empty)) == ["no result of a test came"]


UNITY = """\
test/test_ring.c:12:test_push:PASS
test/test_ring.c:20:test_pop:FAIL: Expected 1 Was 0
test/test_ring.c:31:test_wrap:IGNORE: not yet

-----------------------
3 Tests 1 Failures 1 Ignored
FAIL
"""


def test_unity() -> None:
    reader = read("unity", UNITY)
    assert statuses(reader) == ["pass test_push", "fail test_pop", "skip test_wrap"]
    assert [one.reason for one in reader.listed()] == ["", "Expected 1 Was 0", "not yet"]
    assert faults(reader) == []
    assert reader.finished


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("3 Tests", "4 Tests", "the summary says that 2 are PASS, 1 were counted"),
        ("\nFAIL\n", "\nOK\n", "FAIL was due behind the summary"),
        ("\nFAIL\n", "\n", "no FAIL came behind the summary"),
        ("3 Tests 1 Failures 1 Ignored\nFAIL\n", "", "the last program has no summary (N Tests N Failures N Ignored)"),
    ],
)
def test_a_summary_of_unity_that_does_not_agree(before: str, after: str, fault: str) -> None:
    assert fault in faults(read("unity", UNITY.replace(before, after)))


OWN = {
    "begin": r"^X_BEGIN (?P<name>\S+)$",
    "pass": r"^X_PASSED (?P<name>\S+)",
    "fail": r"^X_FAILED (?P<name>\S+)(?: (?P<reason>.*))?$",
    "skip": r"^X_SKIPPED (?P<name>\S+)",
    "summary": r"^X_SUMMARY total=(?P<total>\d+) passed=(?P<passed>\d+) failed=(?P<failed>\d+)$",
}


def own(text: str, patterns: dict[str, str] = OWN) -> Reader:
    reader = MarkersReader({key: compile_pattern(pattern) for key, pattern in patterns.items()})
    for second, line in enumerate(text.splitlines()):
        reader.take(line, float(second))
    return reader


def test_markers_of_ones_own() -> None:
    summary = "X_SUMMARY total=3 passed=1 failed=1"
    reader = own(f"X_BEGIN a\nhello\nX_PASSED a\nX_BEGIN b\nodd\nX_FAILED b status=3\nX_BEGIN c\nX_SKIPPED c\n{summary}\n")
    assert statuses(reader) == ["pass a", "fail b", "skip c"]
    assert reader.listed()[1].output == ("odd", "X_FAILED b status=3")
    assert reader.listed()[1].reason == "status=3"
    assert faults(reader) == []
    assert reader.finished


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("X_BEGIN a\nX_PASSED a\n", "no summary came"),
        ("X_BEGIN a\nX_PASSED a\nX_SUMMARY total=2 passed=1 failed=0\n", "the summary says that 2 ran, 1 were counted"),
        ("X_BEGIN a\nX_BEGIN b\nX_PASSED b\nX_SUMMARY total=1 passed=1 failed=0\n", "a began and did not end"),
        ("X_BEGIN a\nX_PASSED b\nX_SUMMARY total=1 passed=1 failed=0\n", "a began, and b ended"),
        ("X_PASSED b\nX_SUMMARY total=1 passed=1 failed=0\n", "a result came of a test that had not begun: b"),
        ("X_BEGIN a\nX_SUMMARY total=0 passed=0 failed=0\n", "a began and did not end"),
        ("X_SUMMARY total=0 passed=0 failed=0\n", "no result of a test came"),
    ],
)
def test_markers_that_do_not_account_for_themselves(text: str, fault: str) -> None:
    assert fault in faults(own(text))


def test_markers_without_a_begin() -> None:
    assert (
        faults(own("X_PASSED a\nX_SUMMARY total=1 passed=1 failed=0\n", {key: OWN[key] for key in OWN if key != "begin"})) == []
    )


@pytest.mark.parametrize("text", ["KTAP version 1\n1..1\nok 1 a\n", "1..1\nok 1 a\n", LTP, LIBTEST, UNITY])
def test_a_dialect_that_is_not_named_is_found(text: str) -> None:
    reader = read("auto", text)
    assert reader.listed()
    assert faults(reader) == []
    assert reader.finished


def test_no_dialect_hides_the_failures_of_another() -> None:
    assert "fail test_pop" in statuses(read("auto", f"1..1\nok 1 a\n{UNITY}"))
    assert faults(read("auto", "1..2\nok 1 a\n" + LTP)) == ["the plan says 2 tests, 1 came"]
    assert faults(read("auto", "hello\n")) == ["no result of a test came"]


@pytest.mark.parametrize("dialect", sorted(READERS))
def test_output_that_is_nothings_result(dialect: str) -> None:
    reader = read(dialect, "hello\n\n  world\n# x\n\x00\x1b\n[x]\n" + "a" * 10_000)
    assert reader.listed() == []
    assert faults(reader) == ["no result of a test came"]
    assert not reader.finished
