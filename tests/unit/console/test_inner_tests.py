"""Cases that pass by the tests inside their command: consoles and the verdicts that they must give."""

from __future__ import annotations

import pytest

from qcase.console.inner_tests import AT_PROMPT, COMPLETE
from qcase.console.judge import DRAIN
from qcase.console.rules import Limits, Rules
from qcase.console.text import WINDOW
from qcase.model import Verdict
from tests.unit.console.test_console import PROMPT, Guest, booted

TWO = "KTAP version 1\r\n1..2\r\nok 1 a\r\nok 2 b\r\n"


def rules(
    results: str = "ktap", *, command: str | None = "./run", success: tuple[str, ...] = (), match_all: bool = False
) -> Rules:
    prompt = PROMPT.strip() if command is not None else None
    return Rules(prompt=prompt, command=command, success=success, fail=("^BAD",), match_all=match_all, results=results)


def ran(text: str, given: Rules | None = None, *, seconds: float = AT_PROMPT + DRAIN + 0.1) -> Guest:
    """A guest whose command printed a text, and whose prompt is back."""
    return booted(given or rules()).prints(text, PROMPT).waits(seconds)


def inner(guest: Guest) -> list[str]:
    return [f"{one.status} {one.name}" for one in guest.judge.subtests()]


def reason(guest: Guest) -> str:
    assert guest.judge.ruling is not None
    return guest.judge.ruling.reason


def test_it_passes_when_its_plan_is_met_and_the_prompt_is_back() -> None:
    guest = ran(TWO, seconds=COMPLETE + DRAIN + 0.1)
    assert guest.verdict() is Verdict.PASS
    assert inner(guest) == ["pass a", "pass b"]
    assert [one.name for one in guest.judge.finished_subtests()] == ["a", "b"]
    assert guest.judge.finished_subtests() == []


@pytest.mark.parametrize("text", ["dhcp: bound\r\n", "[1]+  Done  daemon\r\n", "x"])
def test_what_others_write_behind_the_prompt_does_not_keep_it_from_its_end(text: str) -> None:
    guest = booted(rules()).prints(TWO, PROMPT).waits(COMPLETE / 2).prints(text).waits(AT_PROMPT - 0.1)
    assert guest.verdict() is None
    assert guest.waits(DRAIN + 0.2).verdict() is Verdict.PASS
    failed = booted(rules()).prints(TWO.replace("ok 2", "not ok 2"), PROMPT, text).waits(AT_PROMPT + DRAIN + 0.1)
    assert failed.verdict() is Verdict.FAIL


@pytest.mark.parametrize("results", ["ktap", "auto"])
@pytest.mark.parametrize(
    "printed",
    [
        (TWO.replace("1..2", "1..3"), PROMPT, "x\r\n"),  # the results are not complete
        (TWO, "x\r\n"),  # no prompt came
        ("\r\n", PROMPT, "x\r\n", TWO),  # nor did one behind the results
        ("\r\n", PROMPT, TWO),
    ],
)
def test_a_command_has_not_ended_without_a_prompt_behind_its_results(printed: tuple[str, ...], results: str) -> None:
    assert booted(rules(results)).prints(*printed).waits(AT_PROMPT + DRAIN + 9).verdict() is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (TWO.replace("ok 2", "not ok 2"), "1 of 2 tests failed: b"),
        (TWO.replace("1..2", "1..3"), "the plan says 3 tests, 2 came"),
        (TWO.replace("ok 2", "ok 1"), "a second result 1 came"),
        (TWO + "Bail out!\r\n", "Bail out!"),
        (TWO.replace("1..2", "1..1").replace("ok 2 b", "hello"), ""),
        ("hello\r\n", "no result of a test came"),
        ("", "no result of a test came"),
        ("1..0\r\n", "the plan says that no test runs: it is 1..0"),
    ],
)
def test_it_fails_and_says_why(text: str, why: str) -> None:
    guest = ran(text)
    assert guest.verdict() is (Verdict.FAIL if why else Verdict.PASS)
    assert reason(guest).startswith(why)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1..1\r\nok 1 a # SKIP no card\r\n", "no test ran: 1 was skipped: no card"),
        ("1..2\r\nok 1 a # SKIP\r\nok 2 b # SKIP no card\r\n", "no test ran: all 2 were skipped: no card"),
        ("1..2\r\nok 1 a # SKIP\r\nnot ok 2 b # TODO\r\n", "no test ran: all 2 were todo or skipped"),
        ("1..0 # SKIP no card\r\n", "the plan says that no test runs: no card"),
    ],
)
def test_it_is_skipped_if_no_test_decides_anything(text: str, why: str) -> None:
    guest = ran(text)
    assert (guest.verdict(), reason(guest)) == (Verdict.SKIPPED, why)


@pytest.mark.parametrize("text", ["1..2\r\nok 1 a # SKIP\r\n", "1..1\r\nok 1 a # SKIP\r\nBail out!\r\n", "ok 1 a # SKIP\r\n"])
def test_what_does_not_account_for_itself_is_no_skip(text: str) -> None:
    assert ran(text).verdict() is Verdict.FAIL


@pytest.mark.parametrize(
    ("text", "success", "alone"),
    [
        (TWO.replace("ok 2", "not ok 2"), (), True),
        (TWO.replace("ok 2", "not ok 2").replace("1..2", "1..3"), (), False),
        (TWO.replace("ok 2", "not ok 2"), ("^never$",), False),
        (TWO.replace("ok 2", "not ok 2") + "BAD\r\n", (), False),
    ],
)
def test_a_fail_tells_whether_its_tests_alone_are_the_reason(text: str, success: tuple[str, ...], alone: bool) -> None:
    ruling = ran(text, rules(success=success)).judge.ruling
    assert ruling is not None
    assert (ruling.verdict, ruling.by_tests) == (Verdict.FAIL, alone)


def test_what_comes_behind_failed_tests_wins_over_them() -> None:
    failed = TWO.replace("ok 2", "not ok 2")
    for late, verdict in (("BAD\r\n", Verdict.FAIL), ("Kernel panic - not syncing: x\r\n", Verdict.PANIC)):
        guest = booted(rules()).prints(failed, PROMPT).waits(COMPLETE + 0.1).prints("\r\n", late).waits(5)
        assert guest.judge.ruling is not None
        assert (guest.verdict(), guest.judge.ruling.by_tests) == (verdict, False)


def test_it_does_not_pass_before_its_command_has_ended() -> None:
    guest = booted(rules()).prints(TWO).waits(60)
    assert guest.verdict() is None
    guest.prints("not ok 3 c\r\n", PROMPT).waits(AT_PROMPT + 1)
    assert guest.verdict() is Verdict.FAIL


def test_a_result_within_the_drain_takes_the_pass_back() -> None:
    guest = booted(rules()).prints(TWO, PROMPT).waits(COMPLETE + DRAIN / 2).prints("\r\nnot ok 3 c\r\n", PROMPT)
    assert guest.waits(AT_PROMPT + DRAIN + 1).verdict() is Verdict.FAIL


def test_what_a_daemon_writes_behind_the_prompt_takes_nothing_back() -> None:
    guest = booted(rules()).prints(TWO, PROMPT).waits(COMPLETE + DRAIN / 2).prints("syslogd: started\r\n").waits(DRAIN)
    assert guest.verdict() is Verdict.PASS


def test_a_prompt_that_goes_on_is_no_end() -> None:
    guest = booted(rules()).prints(TWO.replace("1..2", "1..3"), PROMPT, "ls\r\n").waits(60)
    assert guest.verdict() is None
    guest.prints("ok 3 c\r\n", PROMPT).waits(COMPLETE + DRAIN + 0.1)
    assert guest.verdict() is Verdict.PASS


def test_results_that_are_not_complete_wait_longer_at_the_prompt() -> None:
    guest = booted(rules()).prints("1..2\r\nok 1 a\r\n", PROMPT).waits(AT_PROMPT - 0.1)
    assert guest.judge.ruling is None
    guest.prints("\r\nok 2 b\r\n", PROMPT).waits(COMPLETE + DRAIN + 0.1)
    assert guest.verdict() is Verdict.PASS


def test_a_kernels_line_in_the_middle_of_a_result_does_not_undo_it() -> None:
    torn = TWO.replace("ok 2 b", "o[    2.123456] eth0: link is up\r\nk 2 b")
    assert ran(torn).verdict() is Verdict.PASS
    failed = TWO.replace("ok 2 b", "not o[    2.123456] eth0: link is up\r\nk 2 b")
    assert inner(ran(failed)) == ["pass a", "fail b"]
    behind = booted(rules()).prints(TWO, PROMPT + "[    2.123456] eth0: link is up\r\n").waits(COMPLETE + DRAIN + 0.1)
    assert behind.verdict() is Verdict.PASS


def test_a_last_result_without_a_line_end_counts() -> None:
    assert ran(TWO.removesuffix("\r\n")).verdict() is Verdict.PASS


def test_a_result_that_only_the_prompt_ends_behind_a_kernels_line_counts() -> None:
    torn = "not ok 3[    2.123456] eth0: link is up\r\n"
    guest = ran(TWO + torn)
    assert guest.verdict() is Verdict.FAIL
    assert inner(guest) == ["pass a", "pass b", "fail 3"]
    torn = TWO.replace("ok 2 b\r\n", "ok 2 b[    2.123456] eth0: link is up\r\n")
    assert ran(torn).verdict() is Verdict.PASS


def test_the_echo_of_the_command_is_no_result() -> None:
    command = r"printf 'KTAP version 1\n1..1\nok 1 a\n' > /dev/null"
    guest = ran("", rules(command=command))
    assert guest.verdict() is Verdict.FAIL
    assert inner(guest) == []


@pytest.mark.parametrize("echo", ["root@qcase:/root# ok 1 a\r\n", "> ok 1 a\r\n"])
def test_what_is_echoed_in_rows_is_no_result(echo: str) -> None:
    command = "cat <<E; ok 1 a; E"
    guest = booted(rules(command=command), echo=False).prints("cat <<E; \r\n", "ok 1 a; E\r\n", "1..1\r\n", PROMPT).waits(5)
    assert guest.verdict() is Verdict.FAIL, echo


def test_what_came_before_the_command_is_no_result() -> None:
    guest = Guest(rules()).prints("KTAP version 1\r\n1..1\r\nok 1 boot\r\n", PROMPT).waits(3).prints(PROMPT).waits(AT_PROMPT + 1)
    assert inner(guest) == []


@pytest.mark.parametrize("undo", ["one\r\n\x1b[A\x1b[2Ktwo\r\n", "one\r\ntwo\x1b[A\rthree\r\n\r\n", "\x1b[2J\x1b[H"])
@pytest.mark.parametrize("again", ["", "\x1b[3A\x1b[3B"])
def test_rows_before_the_command_that_were_written_again_are_no_results(undo: str, again: str) -> None:
    guest = Guest(rules()).prints(f"{undo}{TWO}{undo}{PROMPT}").waits(0.2)
    assert guest.prints(f"hello{again}\r\n{PROMPT}").waits(AT_PROMPT + DRAIN + 0.1).verdict() is Verdict.FAIL
    assert reason(guest) == "no result of a test came"


def test_a_result_that_is_rewritten_counts_as_it_is_shown() -> None:
    guest = ran(TWO.replace("ok 2 b", "testing b\rok 2 b     "))
    assert (guest.verdict(), inner(guest)) == (Verdict.PASS, ["pass a", "pass b"])
    guest = booted(rules()).prints(TWO.replace("1..2", "1..3"), "ok 3 c\r\n\x1b[Anot ok 3 c\r\n", PROMPT).waits(5)
    assert (guest.verdict(), inner(guest)) == (Verdict.FAIL, ["pass a", "pass b", "fail c"])


def test_a_daemons_result_counts() -> None:
    guest = booted(rules()).prints(TWO.replace("1..2", "1..3")).waits(5).prints("ok 3 of a daemon\r\n", PROMPT)
    assert guest.waits(COMPLETE + DRAIN + 0.1).verdict() is Verdict.PASS


def test_fail_patterns_and_panics_win() -> None:
    assert reason(ran(TWO + "BAD\r\n")) == "matched the fail pattern '^BAD'"
    assert ran(TWO + "Kernel panic - not syncing: x\r\n").verdict() is Verdict.PANIC
    guest = booted(rules()).prints(TWO, PROMPT).waits(COMPLETE + DRAIN / 2).prints("\r\nBAD\r\n").waits(3)
    assert reason(guest) == "matched the fail pattern '^BAD'"


def test_success_patterns_have_to_match_besides() -> None:
    given = rules(success=("^done$",))
    assert ran(TWO, given).verdict() is Verdict.FAIL
    assert reason(ran(TWO, given)) == "the tests passed, and '^done$' did not match"
    assert ran(TWO + "done\r\n", given).verdict() is Verdict.PASS
    assert ran("done\r\n" + TWO.replace("ok 2", "not ok 2"), given).verdict() is Verdict.FAIL
    one_of = rules(success=("^done$", "^never$"))
    assert ran(TWO + "done\r\n", one_of).verdict() is Verdict.PASS
    assert ran(TWO + "done\r\n", rules(success=("^done$", "^never$"), match_all=True)).verdict() is Verdict.FAIL


def test_a_timeout_says_what_had_come() -> None:
    guest = Guest(rules(), limits=Limits(whole=30)).prints("boot\r\n", PROMPT).waits(2)
    guest.prints("KTAP version 1\r\n1..4\r\nok 1 a\r\nnot ok 2 b\r\n  # Subtest: c\r\n  1..2\r\nhello\r\n").waits(30)
    assert guest.verdict() is Verdict.TIMEOUT
    assert reason(guest).startswith("the tests did not end within 30 s: 2 tests ended; 1 of 2 tests failed: b; c was running")
    assert inner(guest) == ["pass a", "fail b", "broken c", "not-run 4", "not-run c/1", "not-run c/2"]


def test_qemu_that_ends_ends_the_command() -> None:
    guest = booted(rules()).prints(TWO)
    guest.judge.ended(guest.now, "with status 0")
    assert guest.verdict() is Verdict.PASS
    guest = booted(rules()).prints(TWO.replace("1..2", "1..3"))
    guest.judge.ended(guest.now, "with status 0")
    assert guest.verdict() is Verdict.EXITED
    assert "the plan says 3 tests, 2 came" in reason(guest)
    assert inner(guest) == ["pass a", "pass b", "not-run 3"]


def test_a_case_without_a_command_passes_when_its_results_are_complete_and_silent() -> None:
    guest = Guest(rules(command=None)).prints("firmware\r\nKTAP version 1\r\n1..2\r\nok 1 a\r\n").waits(30)
    assert guest.verdict() is None
    assert guest.prints("ok 2 b\r\n").waits(COMPLETE + DRAIN + 0.1).verdict() is Verdict.PASS
    guest = Guest(rules(command=None)).prints(TWO).waits(COMPLETE + DRAIN / 2).prints("not ok 3 c\r\n").waits(3)
    assert guest.verdict() is Verdict.FAIL


def test_kunit_reads_the_lines_of_the_kernel() -> None:
    lines = ("KTAP version 1", "1..1", "    # Subtest: s", "    1..1", "    ok 1 a", "ok 1 s")
    text = "".join(f"[    1.23456{n}] {line}\r\n" for n, line in enumerate(lines))
    assert inner(ran(text + "ok 1 forged\r\n", rules("kunit"))) == ["pass s/a", "pass s"]
    assert ran(text, rules("kunit")).verdict() is Verdict.PASS
    assert ran(text, rules("auto")).verdict() is Verdict.PASS
    assert ran(text, rules("ktap")).verdict() is Verdict.FAIL


def test_more_results_than_the_window_holds_count() -> None:
    count = 3 * WINDOW // 80
    guest = booted(rules()).prints(f"KTAP version 1\r\n1..{count}\r\n")
    for low in range(1, count + 1, 500):
        guest.prints("".join(f"ok {n} {'x' * 60}\r\n" for n in range(low, min(low + 500, count + 1))))
    assert guest.prints(PROMPT).waits(COMPLETE + DRAIN + 0.1).verdict() is Verdict.PASS
    assert len(guest.judge.subtests()) == min(count, 20_000)


def test_it_does_not_matter_how_bytes_are_split() -> None:
    text = (TWO.replace("ok 2 b", "no[    2.123456] x\r\nt ok 2 b") + PROMPT).encode()
    for size in (1, 2, 3, 7, 100):
        guest = booted(rules())
        for at in range(0, len(text), size):
            guest.prints(text[at : at + size], after=0.001)
        assert inner(guest.waits(5)) == ["pass a", "fail b"]
