"""Streams of TAP and its forms: tests, and what makes a stream no evidence of success."""

from __future__ import annotations

import pytest

from qcase.model import SubtestStatus
from qcase.results.kunit import KunitReader
from qcase.results.tap import TapReader
from tests.unit.results.streams import faults, read, statuses

NESTED = """\
KTAP version 1
1..3
  KTAP version 1
  # Subtest: epoll
  1..2
  waited 3 ms
  not ok 1 wait
  ok 2 ctl # SKIP no such device
not ok 1 epoll
ok 2 - futex
not ok 3 mm # TODO later
"""


def test_nested_tests_have_names_joined_by_a_slash() -> None:
    reader = read("ktap", NESTED)
    assert statuses(reader) == ["fail epoll/wait", "skip epoll/ctl", "fail epoll", "pass futex", "todo mm"]
    assert faults(reader) == []
    assert reader.finished
    reasons = {one.name: one.reason for one in reader.listed()}
    assert (reasons["epoll/ctl"], reasons["mm"]) == ("no such device", "later")


def test_a_test_has_its_own_lines_and_its_time() -> None:
    wait, _, epoll, futex, _ = read("ktap", NESTED).listed()
    assert wait.output == ("  waited 3 ms",)
    assert (wait.duration, epoll.duration, futex.duration) == (4.0, 8.0, 1.0)
    assert futex.output == ()


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        ("1..2\nok 1 a\n", "the plan says 2 tests, 1 came"),
        ("1..1\nok 1 a\nok 2 b\n", "the plan says 1 test, 2 came"),
        ("ok 1 a\nok 2 b\n", "no plan (1..N) came"),
        ("1..3\nok 1 a\nok 3 b\nok 3 c\n", "a second result 3 came"),
        ("1..3\nok 1 a\nok 3 b\nok 2 c\n", "result 3 came where 2 was due"),
        ("1..1\nok 0 a\n", "result 0 came where 1 was due"),
        ("1..1\nok 1 a\n1..1\n", "a second plan came: 1..1"),
        ("ok 1 a\n1..2\nok 2 b\n", "result 2 came behind the plan"),
        ("1..2\nok 1 a\nBail out! no memory\nok 2 b\n", "Bail out! no memory"),
        ("1..1\nok 1 a\nnot ok b\n", "a result without a number: not ok b"),
        ("1..1\n  1..2\n  ok 1 x\nok 1 a\n", "the plan of the nested test 1 says 2 tests, 1 came"),
        ("1..1\n  # Subtest: n\n  ok 1 x\nok 1 a\n", "'n' has no plan (1..N)"),
        ("1..1\nok 1 a\n  1..1\n  ok 1 x\n", "the nested test 2 began and did not end"),
        (
            "1..1\nok 1 a\n  1..1\n  ok 1 x\n# done\nKTAP version 1\n1..1\nok 1 b\n",
            "results of a nested test came without one of its own: x",
        ),
        ("1..1\nok 1 a\n  ---\n  x: 1\n", "a YAML block has no end"),
        ("1..1\nok 1 a\n  ---\n  x: 1\nhello\n", "a YAML block has no end"),
        ("KTAP version 1\n1..2\nok 1 a\nKTAP version 1\n1..1\nok 1 b\n", "the plan says 2 tests, 1 came"),
        ("KTAP version 1\n", "no plan (1..N) came"),
        ("1..1\n  not ok x\nok 1 a\n", "a result without a number: not ok x"),
        ("1..1\n" + " " * 20 + "not ok 1 x\nok 1 a\n", "the nested test 1 has no plan (1..N)"),
        (
            "".join(f"{' ' * depth}1..1\n" for depth in range(17)) + " " * 16 + "not ok 1 x\n",
            "a test is nested more than 15 deep: not ok 1 x",
        ),
        ("hello\n", "no result of a test came"),
        ("", "no result of a test came"),
        ("1..0\n", "the plan says that no test runs: it is 1..0"),
    ],
)
def test_a_stream_that_does_not_account_for_itself_says_why(stream: str, fault: str) -> None:
    assert fault in faults(read("ktap", stream))


@pytest.mark.parametrize(
    ("line", "status", "name", "reason"),
    [
        ("ok 1 a", "pass", "a", ""),
        ("ok 1", "pass", "1", ""),
        ("ok 1 - a - b", "pass", "a - b", ""),
        ("ok 1 opens #1", "pass", "opens #1", ""),
        ("ok 1 a # time=3ms", "pass", "a", ""),
        (r"ok 1 a \# SKIP", "pass", "a # SKIP", ""),
        ("not ok 1 a # exit=2", "fail", "a", "exit=2"),
        ("not ok 1 dup # skips the second one", "fail", "dup", "skips the second one"),
        ("not ok 1 a # note # TODO not a directive", "fail", "a", "note # TODO not a directive"),
        ("not ok 1 a#TODO", "fail", "a#TODO", ""),
        ("ok 1 a # skip: none here", "skip", "a", "none here"),
        ("ok 1 # SKIP a", "skip", "a", "a"),
        ("ok 1 a # SKIPPED", "skip", "a", ""),
        ("not ok 1 a # SKIP", "skip", "a", ""),
        ("not ok 1 a # TODO", "todo", "a", ""),
        ("ok 1 a # XFAIL known", "todo", "a", "XFAIL known"),
        ("not ok 1 a # TIMEOUT 45 seconds", "fail", "a", "TIMEOUT 45 seconds"),
        ("ok 1 a # TIMEOUT", "fail", "a", "TIMEOUT"),
        ("not ok 1 a # ERROR no memory", "broken", "a", "ERROR no memory"),
    ],
)
def test_directives(line: str, status: str, name: str, reason: str) -> None:
    (one,) = read("ktap", f"1..1\n{line}\n").listed()
    assert (one.status, one.name, one.reason) == (status, name, reason)


@pytest.mark.parametrize(
    "line", ["okay", "ok: 1", "not okay", "nok 1", "OK 1", "ok", "ok then", "x ok 1 a", "#ok 1 a", "1..x", "1.."]
)
def test_lines_that_are_no_results(line: str) -> None:
    assert read("ktap", f"1..1\nok 1 a\n{line}\n").listed()[1:] == []


def test_directives_of_the_kernel_are_none_in_tap() -> None:
    (one,) = read("tap", "1..1\nnot ok 1 a # XFAIL\n").listed()
    assert one.status is SubtestStatus.FAIL


def test_tap_needs_no_numbers_and_may_plan_at_its_end() -> None:
    reader = read("tap", "ok - a\nnot ok - b\n# why\n#   because\nok\n1..3\n")
    assert statuses(reader) == ["pass a", "fail b", "pass 3"]
    assert reader.listed()[1].output == ("# why", "#   because")
    assert faults(reader) == []


def test_tap_14_nests_by_four_blanks_and_names_the_nested_test_before() -> None:
    inner = "    ok 1 - read\n    not ok 2 - write\n      ---\n      ok 1\n      ...\n    1..2\n"
    reader = read("tap", f"TAP version 14\n# Subtest: io\n{inner}not ok 1 - io\n1..1\n")
    assert statuses(reader) == ["pass io/read", "fail io/write", "fail io"]
    assert faults(reader) == []


def test_a_failed_nested_test_counts_though_the_test_around_it_passed() -> None:
    reader = read("ktap", "1..1\n  1..1\n  not ok 1 x\nok 1 a\n")
    assert statuses(reader) == ["fail a/x", "pass a"]
    assert reader.counted()[SubtestStatus.FAIL] == 1


def test_a_nested_test_may_be_indented_by_tabs() -> None:
    for dialect in ("ktap", "tap", "kselftest", "auto"):
        reader = read(dialect, "TAP version 14\n1..1\n\t1..1\n\tnot ok 1 x\nok 1 a\n")
        assert (statuses(reader), faults(reader)) == (["fail a/x", "pass a"], [])


def test_nested_tests_of_a_todo_are_todo() -> None:
    assert statuses(read("ktap", "1..1\n  1..1\n  not ok 1 x\nnot ok 1 a # TODO\n")) == ["todo a/x", "todo a"]


def test_several_documents_each_account_for_themselves() -> None:
    reader = read("ktap", "KTAP version 1\n1..1\nok 1 a\nKTAP version 1\n1..1\nok 1 a\n")
    assert statuses(reader) == ["pass a", "pass a (2)"]
    assert faults(reader) == []


def test_tests_that_did_not_come_are_not_run() -> None:
    reader = read("ktap", "1..3\nok 1 a\n  # Subtest: b\n  1..2\n  ok 1 x\nhello\n")
    assert statuses(reader) == ["pass a", "pass b/x", "broken b", "not-run 3", "not-run b/2"]
    assert reader.open_tests()[-1].output == ("hello",)
    assert reader.running == "b"


def test_a_plan_of_millions_is_not_listed() -> None:
    assert len(read("ktap", "1..999999999\nok 1 a\n").open_tests()) == 1000


KSELFTEST = """\
TAP version 13
1..3
# selftests: net: a
# TAP version 13
# 1..2
# ok 1 x
# # Totals: pass:1 fail:0 xfail:0 xpass:0 skip:0 error:0
# not ok 2 y # SKIP
ok 1 selftests: net: a
# selftests: net: b
# expected 1..3, and ok
not ok 2 selftests: net: b # exit=1
# selftests: net: c
# hello
"""


def test_kselftest_nests_by_hashes_and_says_what_begins() -> None:
    reader = read("kselftest", KSELFTEST)
    a, b, c = "selftests: net: a", "selftests: net: b", "selftests: net: c"
    assert statuses(reader) == [f"pass {a}/x", f"skip {a}/y", f"pass {a}", f"fail {b}", f"broken {c}"]
    assert reader.listed()[3].output == (f"# {b}", "# expected 1..3, and ok")
    assert reader.running == c
    assert faults(reader) == ["the plan says 3 tests, 2 came"]


def bare(results: str) -> list[str]:
    """Faults of a stream in which a program says results without a plan before them."""
    return faults(read("kselftest", f"TAP version 13\n1..1\n# selftests: net: a\n{results}ok 1 selftests: net: a\n"))


def test_a_failure_that_no_plan_is_for_counts() -> None:
    assert bare("# ok 1 x\n# ok 2 y\n") == []
    assert bare("# ok 1 x\n# not ok 2 y\n") == ["a nested test failed that no plan is for: y"]
    assert bare("# ok 1 x\n# not ok 2 y # SKIP\n") == []
    assert bare("  ok 1 x\n  not ok 2 y\n") != []  # what no runner has printed


def test_a_nested_document_may_be_indented_behind_its_hash() -> None:
    for indent in ("  ", "\t", "    "):
        text = f"TAP version 13\n1..1\n# KTAP version 1\n# 1..1\n# {indent}1..1\n# {indent}not ok 1 x\n# ok 1 b\nok 1 a\n"
        assert (statuses(read("kselftest", text)), faults(read("kselftest", text))) == (["fail a/b/x", "pass a/b", "pass a"], [])
    assert bare("#   ok 1 x\n#   not ok 2 y\n") == ["a nested test failed that no plan is for: y"]


def test_a_plan_behind_results_is_about_them() -> None:
    assert bare("# ok 1 x\n# ok 2 y\n# 1..2\n") == []
    assert bare("# ok 1 x\n# 1..2\n") == ["the plan of 'selftests: net: a' says 2 tests, 0 came"]


def test_totals_of_kselftest_have_to_agree() -> None:
    reader = read("kselftest", "1..2\nok 1 a\nok 2 b # SKIP\n# Totals: pass:2 fail:0 xfail:0 xpass:0 skip:0 error:0\n")
    assert faults(reader) == [
        "the summary says that 2 passed, 1 were counted",
        "the summary says that 0 were skipped, 1 were counted",
    ]


def test_a_suite_of_kunit_has_to_agree_with_what_it_says_of_itself() -> None:
    text = "KTAP version 1\n1..1\n    # Subtest: s\n    1..1\n    not ok 1 a\n# s: pass:1 fail:0 skip:0 total:1\nnot ok 1 s\n"
    assert faults(read("ktap", text))[0] == "the summary says that 1 passed, 0 were counted"
    assert faults(read("ktap", text.replace("# s: pass", "    # s: pass")))[0] == "the summary says that 1 passed, 0 were counted"
    assert faults(read("ktap", text.replace("# s: pass", "# other: pass"))) == []


PARAMETERS = """\
KTAP version 1
1..1
    KTAP version 1
    # Subtest: example
    1..2
        KTAP version 1
        # Subtest: several
        ok 1 three
        ok 2 two
    # several: pass:2 fail:0 skip:0 total:2
    ok 1 several
        KTAP version 1
        # Subtest: one
        ok 1 alone
    ok 2 one
# example: pass:2 fail:0 skip:0 total:2
# Totals: pass:3 fail:0 skip:0 total:3
ok 1 example
"""


def kunit(text: str) -> list[str]:
    reader = KunitReader()
    for line in text.splitlines():
        reader.take_kernel(line, 0.0, stamped=True)
    return faults(reader)


def test_parameters_of_a_kunit_test_are_counted_in_place_of_a_plan() -> None:
    assert kunit(PARAMETERS) == []
    assert kunit(PARAMETERS.replace("        ok 2 two\n", "")) == ["the summary says that 2 passed, 1 were counted"]
    assert kunit(PARAMETERS.replace("    # several: pass:2 fail:0 skip:0 total:2\n", "")) == ["'several' has no plan (1..N)"]
    assert kunit(PARAMETERS.replace("    1..2\n", "")) == []  # the suite's own counts are as good


def test_kunit_reads_the_kernels_lines_and_no_others() -> None:
    reader = KunitReader()
    for line in ("KTAP version 1", "1..1", "    # Subtest: s", "    1..1", "    ok 1 a", "ok 1 s"):
        reader.take_kernel("ok 1 forged", 0.0, stamped=False)
        reader.take_kernel(f"[    T1] {line}" if line == "1..1" else line, 0.0, stamped=True)
    assert statuses(reader) == ["pass s/a", "pass s"]
    assert faults(reader) == []


def test_kunit_without_time_stamps() -> None:
    reader = KunitReader()
    for line in ("booting", "KTAP version 1", "1..1", "ok 1 s"):
        reader.take_kernel(line, 0.0, stamped=False)
    assert statuses(reader) == ["pass s"]


def test_more_tests_than_are_listed_are_counted() -> None:
    count = 20_100
    reader = read("ktap", f"1..{count}\n" + "".join(f"ok {number}\n" for number in range(1, count)) + f"not ok {count} last\n")
    assert (reader.unlisted, statuses(reader)[-1]) == (99, "fail last")
    assert sum(reader.counted().values()) == count


def test_a_copy_reads_on_by_itself() -> None:
    first = read("ktap", "1..2\n  1..1\n  ok 1 x\n")
    other = first.copy()
    other.take("ok 1 a", 9.0)
    assert statuses(other)[:2] == ["pass a/x", "pass a"]
    first.take("not ok 1 b", 9.0)
    assert statuses(first)[:2] == ["pass b/x", "fail b"]
    assert isinstance(other, TapReader)
