"""Situations on a console and the verdicts that they must give. Time is what the test says it is."""

from __future__ import annotations

import pytest

from qcase.console.echo_text import CHUNK
from qcase.console.group import Group
from qcase.console.judge import DRAIN, EXCERPT, PROMPT_DELAY, QUIET, Judge
from qcase.console.panics import PANIC_PATTERNS, PanicPattern
from qcase.console.rules import Limits, Rules
from qcase.console.text import WINDOW
from qcase.console.times import RESET_BURST, RESET_SILENCE, RESETS
from qcase.console.transcript import Transcript
from qcase.model import Phase, SubtestStatus, Verdict

PROMPT = "root@qcase:/root# "
NO_LIMITS = Limits()


class Guest:
    """A guest that is played by the test: it prints, and it may echo what is typed."""

    def __init__(self, rules: Rules, *, echo: bool = True, limits: Limits = NO_LIMITS) -> None:
        self.judge = Judge(rules, started=0.0, limits=limits)
        self.now = 0.0
        self.echo = echo
        self.typed = b""

    def prints(self, *parts: bytes | str, after: float = 0.01) -> Guest:
        for part in parts:
            self.now += after
            self.judge.feed(part.encode() if isinstance(part, str) else part, self.now)
            self._take()
        return self

    def waits(self, seconds: float) -> Guest:
        """Time passes; the judge is woken as often as it asks to be."""
        until = self.now + seconds
        for _ in range(100_000):
            wake = self.judge.next_wake()
            if self.judge.ruling is not None or wake is None or wake > until:
                break
            self.now = max(self.now, wake)
            self.judge.tick(self.now)
            self._take()
        else:
            raise AssertionError("the judge asks to be woken without end")
        self.now = until
        self.judge.tick(until)
        self._take()
        return self

    def _take(self) -> None:
        while data := self.judge.input():
            self.typed += data
            if self.echo:
                self.now += 0.001
                self.judge.feed(data.replace(b"\n", b"\r\n"), self.now)

    def verdict(self) -> Verdict | None:
        return self.judge.ruling.verdict if self.judge.ruling else None


def shell(success: str = "^PASS$", *, fail: str = "^FAIL", command: str = "/usr/bin/test", from_prompt: bool = False) -> Rules:
    return Rules(prompt=PROMPT.strip(), command=command, success=(success,), fail=(fail,), from_prompt=from_prompt)


def booted(rules: Rules, *, echo: bool = True) -> Guest:
    return Guest(rules, echo=echo).prints("Linux version 6\r\nRun /init\r\n", PROMPT).waits(PROMPT_DELAY + 2)


# --- typing -----------------------------------------------------------------------------------------------------------


def test_the_command_is_typed_100_ms_after_the_prompt_with_one_line_end() -> None:
    guest = Guest(shell(command="ls -l\n\r\n")).prints(PROMPT).waits(PROMPT_DELAY - 0.02)
    assert guest.typed == b""
    guest.waits(0.05)
    assert guest.typed == b"ls -l\n"


def test_inner_line_ends_of_a_command_are_kept() -> None:
    assert booted(shell(command="cat <<E\none\n\ntwo\nE\n")).typed == b"cat <<E\none\n\ntwo\nE\n"


def test_a_prompt_fires_once() -> None:
    guest = booted(shell(command="ls")).prints(PROMPT, PROMPT).waits(1)
    assert guest.typed == b"ls\n"


def test_a_prompt_that_comes_in_pieces_and_with_escapes_is_seen() -> None:
    guest = Guest(shell(command="ls")).prints(b"\x1b[1;32mroot@q", b"case\x1b", b"[0m:/root#").waits(1)
    assert guest.typed == b"ls\n"


def test_a_long_command_is_typed_in_chunks_each_after_the_echo_of_the_last() -> None:
    command = "echo " + "x" * 100
    guest = Guest(shell(command=command), echo=False).prints(PROMPT).waits(PROMPT_DELAY)
    assert guest.typed == command.encode()[:CHUNK]
    guest.prints(command[: CHUNK - 1])
    assert len(guest.typed) == CHUNK, "an echo that is not complete yet was taken for one"
    guest.prints(command[CHUNK - 1])
    assert guest.typed == command.encode()[: 2 * CHUNK]


def test_a_guest_that_does_not_echo_gets_the_command_all_the_same() -> None:
    guest = booted(shell(command="x" * 50), echo=False)
    assert guest.typed == b"x" * 50 + b"\n"
    assert guest.prints("\r\nPASS\r\n").waits(1).verdict() is Verdict.PASS


def test_an_echo_that_lost_characters_is_told() -> None:
    command = "a" * CHUNK + "b" * CHUNK
    guest = Guest(shell(command=command), echo=False).prints(PROMPT).waits(PROMPT_DELAY).prints("a" * CHUNK, "bbb").waits(3)
    assert guest.typed.endswith(b"\n")
    assert "echoed only a part" in guest.judge.warnings[0]


# --- echo -------------------------------------------------------------------------------------------------------------


def test_a_pattern_that_stands_in_the_typed_command_does_not_match_its_echo() -> None:
    guest = booted(shell("PASS", command="test && echo PASS || echo FAIL", fail="FAIL")).waits(5)
    assert guest.verdict() is None
    assert guest.prints("PASS\r\n").waits(1).verdict() is Verdict.PASS


def test_an_echo_that_the_terminal_breaks_at_its_width_is_none_the_less_an_echo() -> None:
    command = "test && echo PASS " + "y" * 90
    guest = Guest(shell("PASS", command=command), echo=False).prints(PROMPT).waits(PROMPT_DELAY)
    while not guest.typed.endswith(b"\n"):
        guest.prints(guest.typed[-CHUNK:][:10] + b"\r\n" + guest.typed[-CHUNK:][10:])
    assert guest.prints("\r\n").waits(5).verdict() is None


def test_an_echo_that_comes_long_after_the_line_end_is_none_the_less_an_echo() -> None:
    guest = Guest(shell("PASS", command="echo PASS"), echo=False).prints(PROMPT).waits(10)
    assert guest.typed == b"echo PASS\n"
    assert guest.prints("echo PASS\r\n").waits(5).verdict() is None
    assert guest.prints("PASS\r\n").waits(1).verdict() is Verdict.PASS


def test_a_late_echo_in_pieces_with_pauses_is_none_the_less_an_echo() -> None:
    guest = Guest(shell("PASS", command="echo PASS && echo more"), echo=False).prints(PROMPT).waits(10)
    guest.prints("echo PASS").waits(QUIET + DRAIN + 1)
    assert guest.verdict() is None
    assert guest.prints(" && echo more\r\n").waits(5).verdict() is None


def test_a_shell_that_paints_the_line_again_behind_its_prompt_does_not_pass_on_it() -> None:
    guest = booted(shell("PASS", command="echo PASS")).prints("\r\n", PROMPT, "echo PA", "SS\r\n").waits(5)
    assert guest.verdict() is None


def test_a_repainted_line_that_stops_half_way_does_not_pass() -> None:
    guest = booted(shell("PASS", command="echo PASS; true")).prints("\r\n", PROMPT, "echo PASS").waits(5)
    assert guest.verdict() is None


def test_lines_typed_ahead_are_echoed_twice_and_pass_on_neither() -> None:
    guest = Guest(shell("^DONE$", command="cat <<E\nDONE\nE")).prints(PROMPT).waits(3)
    assert guest.prints("> DONE\r\n> E\r\n").waits(3).verdict() is None
    assert guest.prints("DONE\r\n").waits(1).verdict() is Verdict.PASS


def test_output_that_is_the_same_as_the_command_still_counts() -> None:
    """A program called `ok` that prints `ok`: the echo is the first of the two."""
    guest = booted(shell("^ok$", command="ok"))
    assert guest.waits(2).verdict() is None
    assert guest.prints("ok\r\n").waits(1).verdict() is Verdict.PASS


def test_a_kernel_line_in_the_middle_of_the_echo_does_not_make_it_output() -> None:
    guest = Guest(shell("^PASS$", command="echo PASS"), echo=False).prints(PROMPT).waits(PROMPT_DELAY)
    guest.prints("echo [    2.1] eth0: up\r\nPASS\r\n").waits(0.3)
    assert guest.verdict() is None


def test_a_late_echo_that_a_kernel_line_cuts_is_none_the_less_an_echo() -> None:
    guest = Guest(shell("^PASS$", command="echo PASS"), echo=False).prints(PROMPT).waits(5)
    assert guest.prints("echo [    2.1] eth0: up\r\nPASS\r\n").waits(5).verdict() is None
    assert guest.prints("PASS\r\n").waits(1).verdict() is Verdict.PASS


@pytest.mark.parametrize("line_break", ["\r\n", " \r", "\r\r\n"])
def test_a_late_echo_that_a_line_editor_breaks_is_none_the_less_an_echo(line_break: str) -> None:
    guest = Guest(shell("ASS", command="echo PASS"), echo=False).prints(PROMPT).waits(5)
    assert guest.prints(f"echo P{line_break}ASS\r\n").waits(5).verdict() is None


def test_what_comes_while_keys_are_pressed_is_echo_whatever_it_is() -> None:
    guest = Guest(shell("PASS", command="true && echo PASS"), echo=False).prints(PROMPT).waits(PROMPT_DELAY)
    guest.prints("tre && echo PASS\r<& echo PASS\x08\x08").waits(8)
    assert guest.typed.endswith(b"\n")
    assert guest.verdict() is None


def test_a_panic_while_keys_are_pressed_is_one() -> None:
    guest = Guest(shell(command="echo PASS"), echo=False).prints(PROMPT).waits(PROMPT_DELAY)
    assert guest.prints("ec[    9.1] Kernel panic - not syncing: x\r\n").waits(2).verdict() is Verdict.PANIC


def test_a_line_painted_again_behind_another_prompt_does_not_pass() -> None:
    guest = Guest(shell("PASS", command="cd /tmp; PS1='/tmp# '\nsleep 1\ntrue PASS")).prints(PROMPT).waits(3)
    assert guest.prints("/tmp# sleep 1\r\n", "/tmp# true PA", "SS\r\n", "/tmp# ").waits(3).verdict() is None


def test_one_typed_line_that_begins_as_another_does_not_uncover_it() -> None:
    guest = Guest(shell("PASS", command="sleep 1\ntrue PASS\ntrue PASS again"), echo=False).prints(PROMPT).waits(9)
    guest.prints("sleep 1\r\n").waits(1)
    assert guest.prints("/tmp# true PASS\r\n/tmp# ", "true PASS again\r\n").waits(3).verdict() is None


def test_a_heredocs_text_is_output_when_it_comes_again() -> None:
    guest = Guest(shell("^x PASS$", command="cat <<E\nx PASS\nE"), echo=False).prints(PROMPT)
    for line in ("cat <<E", "x PASS", "E"):
        guest.waits(0.2).prints(line).waits(0.01).prints("\r\n> ")
    assert guest.verdict() is None
    assert guest.prints("\r\nx PASS\r\n").waits(1).verdict() is Verdict.PASS


def test_output_behind_the_prompts_text_that_begins_as_the_command_is_output() -> None:
    guest = booted(Rules(prompt="#", command="test", success=("^# tests 5$",)))
    assert guest.prints("# te", "sts 5\r\n").waits(2).verdict() is Verdict.PASS


def test_output_that_begins_with_the_commands_name_is_output_also_without_echo() -> None:
    guest = booted(Rules(prompt="#", command="/bin/test", success=("^/bin/test: ok$",)), echo=False)
    assert guest.prints("\r\n/bin/test: ok\r\n").waits(2).verdict() is Verdict.PASS


def test_a_chunk_never_ends_in_the_middle_of_a_character() -> None:
    guest = Guest(shell(command="echo 0123456789é" + "日本語" * 9)).prints(PROMPT).waits(PROMPT_DELAY + 0.2)
    assert guest.typed.endswith(b"\n"), "an echo was waited for that can not come"


@pytest.mark.parametrize("echo", ["echo a\tb '\tPASS'", "echo a  b '       PASS'", "echo ab 'PASS'"])
def test_tabs_may_be_echoed_as_blanks_or_not_at_all(echo: str) -> None:
    guest = Guest(shell("PASS", command="echo a\tb '\tPASS'"), echo=False).prints(PROMPT).waits(5)
    assert guest.prints(echo + "\r\n").waits(3).verdict() is None


def test_control_characters_may_be_echoed_with_a_caret() -> None:
    guest = Guest(shell("PASS", command="echo \x01 PASS"), echo=False).prints(PROMPT).waits(5)
    assert guest.prints("echo ^A PASS\r\n").waits(3).verdict() is None


def test_a_match_of_nothing_but_hidden_echo_is_none() -> None:
    rules = Rules(prompt="login", command="echo PASS", success=("[^a-z\\n]{5,}",))
    assert Guest(rules).prints("login").waits(3).verdict() is None


# --- patterns and lines -----------------------------------------------------------------------------------------------


def test_a_success_pattern_passes() -> None:
    guest = booted(shell()).prints("PASS\r\n").waits(DRAIN + 0.1)
    assert guest.verdict() is Verdict.PASS
    assert guest.judge.ruling is not None
    assert guest.judge.ruling.excerpt == "PASS"
    assert guest.judge.ruling.phase is Phase.COMMAND


def test_nothing_passes_without_a_match() -> None:
    guest = booted(shell()).prints("all is well\r\n").waits(30)
    guest.judge.timed_out(60.0, 60)
    assert guest.verdict() is Verdict.TIMEOUT


@pytest.mark.parametrize(
    ("pattern", "output", "passes"),
    [
        ("^PASS$", "PASS\n", True),
        ("^PASS$", "PASS\r\n", True),
        ("^PASS$", "PASS\r", False),
        ("^PASS$", "PASS\r\r\n", True),
        ("^PASS$", "some PASS\n", False),
        ("^PASS$", "PASS some\n", False),
        (r"(?m)^PASS\s*$", "PASS  \r\n", True),
        ("PASS", "it is a PASS, really\n", True),
        ("one\ntwo", "one\r\ntwo\r\n", True),
        ("(?s)BEGIN.*END", "BEGIN\r\n" + "x" * 5000 + "\r\nEND\r\n", True),
        (r"\APASS", "PASS\n", False),
        ("grün", "grün\n", True),
        ("a\ufffdb", b"a\xffb\n", True),
        ("^red$", b"\x1b[31mred\x1b[0m\n", True),
        ("^red$", b"\x1b[3\x18red\n", True),
        ("^red$", b"\x1b]0;title\x1ared\n", True),
        ("^red$", b"x\b\x1b(\x18red\n", True),
        ("^red$", b"\x1b\x1ared\n", True),
        ("^red$", b"\x1b]0;title\x07red\x1b[K\n", True),
        ("^red$", b"\x1b]0;title\x1b\\red\n", True),
        ("FAIL", b"\x1b]never ended\nFAIL\n", True),
        ("(?i)pass", "PaSs\n", True),
        ("ab", b"a\x00b\n", True),
    ],
)
def test_patterns_see_lines_as_a_person_does(pattern: str, output: str | bytes, passes: bool) -> None:
    guest = booted(shell(pattern, fail="^never$")).prints(output).waits(QUIET + DRAIN + 0.2)
    assert guest.verdict() is (Verdict.PASS if passes else None)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_it_does_not_matter_how_bytes_are_split(size: int) -> None:
    data = "\x1b[1mgr\u00fcn\x1b[0m: \x1b]0;t\x1b\\P\x1b[32mASS\x1b[0m\r\n".encode()
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert booted(shell("^grün: PASS$")).prints(*pieces, after=0.001).waits(1).verdict() is Verdict.PASS


def test_an_unfinished_line_does_not_match_what_its_end_could_undo() -> None:
    guest = booted(shell(r"^RESULT: PASS\b")).prints("RESULT: PASS")
    assert guest.judge.matched_at is None
    assert guest.prints("ED-NOT\r\n").waits(3).verdict() is None


def test_an_unfinished_line_matches_what_nothing_can_undo() -> None:
    guest = booted(shell(fail="^RESULT: FAIL")).prints("RESULT: FAIL and")
    assert guest.judge.matched_at is not None
    guest = booted(shell("^RESULT: PASS")).prints("RESULT: PASS and").waits(5)
    assert guest.verdict() is None, "the row could still be overwritten"


def test_a_prompt_without_line_end_matches_once_it_is_quiet() -> None:
    guest = booted(shell(r"second# $")).prints("second# ")
    assert guest.judge.matched_at is None
    assert guest.waits(QUIET + DRAIN + 0.1).verdict() is Verdict.PASS


def test_a_quiet_line_that_may_go_on_decides_nothing() -> None:
    guest = booted(shell(r"^RESULT: PASS$")).prints("RESULT: PASS").waits(QUIET + 3)
    assert guest.judge.matched_at is None
    assert guest.prints("ED? no\r\n").waits(5).verdict() is None
    assert guest.prints("RESULT: PASS\r\n").waits(1).verdict() is Verdict.PASS


@pytest.mark.parametrize("pattern", ["one\ntwo", r"one\012two", r"one\x0atwo", r"one\p{Cc}two", "one(?s:.)two", r"one\Wtwo"])
def test_a_pattern_that_matches_a_line_end_sees_the_line_before(pattern: str) -> None:
    assert booted(shell(pattern)).prints("one\r\n", "two\r\n").waits(1).verdict() is Verdict.PASS


def test_a_quiet_line_that_matched_a_fail_pattern_may_go_on_too() -> None:
    guest = booted(shell(fail="FAIL$")).prints("FAIL").waits(QUIET + 0.1).prints("OVER worked\r\n", "PASS\r\n").waits(2)
    assert guest.verdict() is Verdict.PASS


def test_with_match_all_a_quiet_match_that_is_undone_does_not_count() -> None:
    rules = Rules(prompt="#", command="x y z", success=("^one$", "^two$"), match_all=True)
    guest = booted(rules).prints("one").waits(QUIET + 0.1).prints("more\r\n").waits(1).prints("two\n").waits(2)
    assert guest.verdict() is None
    assert guest.prints("one\n").waits(1).verdict() is Verdict.PASS


def test_a_line_of_200_kib_is_one_line() -> None:
    line = "x" * 200_000
    guest = booted(shell("^x+ PASS$")).prints(*(line[i : i + 4096] for i in range(0, len(line), 4096)), " PASS\r\n")
    assert guest.waits(1).verdict() is Verdict.PASS


def test_a_line_of_10_mib_is_one_line_of_which_the_end_is_seen() -> None:
    chunk = b"x" * 65_536
    for wanted, passes in (("^PASS", False), ("xPASS$", True), ("^x", True)):
        guest = booted(shell(wanted)).prints(*[chunk] * 160, after=0.001).prints("PASS\r\n").waits(1)
        assert guest.verdict() is (Verdict.PASS if passes else None)
    guest = booted(shell()).prints(*[chunk] * 160, after=0.001).prints("\r\nPASS\r\n").waits(1)
    assert guest.verdict() is Verdict.PASS


def test_a_failure_at_the_beginning_of_a_line_that_outgrows_the_window_is_not_forgotten() -> None:
    guest = booted(shell()).prints("FAIL: ", *[b"x" * 65_536] * 60, "\r\nPASS\r\n", after=0.001).waits(2)
    assert guest.verdict() is Verdict.FAIL


def test_a_multi_line_pattern_sees_the_last_mebibyte() -> None:
    filler = "y" * 99 + "\n"
    guest = booted(shell("(?s)^BEGIN$.*^END$")).prints("BEGIN\n")
    guest.prints(*[filler * 100] * ((WINDOW - 20_000) // (100 * len(filler)))).prints("END\n")
    assert guest.waits(1).verdict() is Verdict.PASS


def test_a_line_that_was_cut_at_the_window_has_no_start_in_its_middle() -> None:
    guest = booted(shell("^x"))
    guest.prints(*[b"." + b"x" * 65_535, *[b"x" * 65_536] * 60])
    assert guest.waits(3).verdict() is None


def test_memory_stays_bounded_in_a_flood() -> None:
    guest = booted(shell())
    guest.prints(*[b"z" * 65_536] * 100)
    assert len(guest.judge._text.raw) <= 2 * WINDOW + 65_536
    assert guest.prints("\nPASS\n").waits(1).verdict() is Verdict.PASS


@pytest.mark.parametrize("line", ["/usr/bin/te\n", "/\n\n\n", PROMPT, "x"])
def test_a_flood_that_looks_like_echo_is_watched_at_few_places(line: str) -> None:
    guest = booted(shell(), echo=False).prints(*[line * (8192 // len(line))] * 40, after=0.001)
    assert guest.judge.keyboard is not None
    assert len(guest.judge.keyboard.hidden.traces) <= 64
    assert guest.prints("\nPASS\n").waits(1).verdict() is Verdict.PASS


def test_every_pattern_has_to_match_with_match_all() -> None:
    rules = Rules(prompt="#", command="x y z", success=("^one$", "^two$"), match_all=True)
    guest = booted(rules).prints("two\n").waits(3)
    assert guest.verdict() is None
    assert guest.prints("one\n").waits(1).verdict() is Verdict.PASS


def test_a_case_without_a_command_is_judged_by_its_boot() -> None:
    guest = Guest(Rules(success=("^Run /init",))).prints("Linux\nRun /init as init process\n").waits(1)
    assert guest.verdict() is Verdict.PASS
    assert guest.judge.ruling is not None
    assert guest.judge.ruling.phase is Phase.BOOT


def test_patterns_armed_at_the_prompt_do_not_see_the_boot() -> None:
    boot = "Command line: console=ttyS0 panic=-1\n"
    rules = shell(fail=r"\bpanic\b", from_prompt=True)
    assert Guest(rules).prints(boot, PROMPT).waits(2).prints("PASS\n").waits(1).verdict() is Verdict.PASS
    assert Guest(shell(fail=r"\bpanic\b")).prints(boot).waits(1).verdict() is Verdict.FAIL


# --- fail and panic ---------------------------------------------------------------------------------------------------


def test_a_fail_pattern_fails_with_pattern_and_excerpt() -> None:
    guest = booted(shell()).prints("FAIL: got 3\n").waits(1)
    assert guest.verdict() is Verdict.FAIL
    assert guest.judge.ruling is not None
    assert guest.judge.ruling.pattern == "^FAIL"
    assert guest.judge.ruling.excerpt == "FAIL: got 3"


def test_fail_comes_before_success_in_the_same_output() -> None:
    assert booted(shell()).prints("PASS\nFAIL\n").waits(1).verdict() is Verdict.FAIL


def test_a_fail_pattern_while_draining_wins() -> None:
    assert booted(shell()).prints("PASS\n").waits(DRAIN - 0.1).prints("FAIL\n").waits(1).verdict() is Verdict.FAIL


def test_a_fail_pattern_after_draining_is_too_late() -> None:
    guest = booted(shell()).prints("PASS\n").waits(DRAIN + 0.01)
    assert guest.prints("FAIL\n").verdict() is Verdict.PASS


def test_an_excerpt_is_at_most_240_characters_and_holds_the_match() -> None:
    guest = booted(shell(fail="needle")).prints("x" * 1000 + "needle" + "y" * 1000 + "\n").waits(1)
    assert guest.judge.ruling is not None
    assert guest.judge.ruling.excerpt is not None
    assert len(guest.judge.ruling.excerpt) <= EXCERPT
    assert "needle" in guest.judge.ruling.excerpt


@pytest.mark.parametrize(
    "line",
    [
        "[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs",
        "Kernel panic - not syncing: Attempted to kill init!",
        "half a line[   12.000001][    T1] Kernel panic - not syncing: sysrq",
        "<0>Kernel panic - not syncing: x",
        "[  0.100000 0:2 axruntime::lang_items:5] panicked at modules/axhal/src/lib.rs:10:5:",
        "panicked at 'index out of bounds', kernel/src/main.rs:3:1",
        "[kernel] Panicked at src/trap/mod.rs:75 Unsupported trap",
        "[ERROR] [kernel] Panicked: out of memory",
        "ERROR: Uncaught panic:",
        "Non-resettable panic! PanicInfo {",
    ],
)
def test_a_kernels_panic_is_a_panic_without_any_pattern(line: str) -> None:
    guest = Guest(Rules(prompt="never", command="x", success=("^PASS$",))).prints(line + "\r\n").waits(2)
    assert guest.verdict() is Verdict.PANIC
    assert guest.judge.ruling is not None
    assert guest.judge.ruling.excerpt == line


@pytest.mark.parametrize(
    "line",
    [
        "Command line: console=ttyS0 panic=-1 oops=panic",
        "thread 'main' panicked at src/main.rs:2:5:",
        "thread 'worker' (71) panicked at src/main.rs:2:5:",
        "grep: Kernel panic - not syncing: no such file",
        "[kernel] Panicked at src/task/mod.rs:139 All applications completed!",
    ],
)
def test_what_is_no_kernels_panic_is_none(line: str) -> None:
    assert booted(shell()).prints(line + "\n", "PASS\n").waits(1).verdict() is Verdict.PASS


def test_a_panic_wins_over_pass_and_fail() -> None:
    panic = "[    9.1] Kernel panic - not syncing: x\n"
    assert booted(shell()).prints("PASS\n").waits(0.2).prints(panic).waits(1).verdict() is Verdict.PANIC
    assert booted(shell()).prints("FAIL\n").waits(0.2).prints(panic).waits(1).verdict() is Verdict.PANIC


def test_a_typed_panic_is_no_panic() -> None:
    guest = booted(shell(command="echo 'x [ 1.0] Kernel panic - not syncing: y' >/dev/null")).waits(3)
    assert guest.verdict() is None


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_timeout_says_in_which_phase() -> None:
    guest = Guest(shell()).prints("Linux\n")
    guest.judge.timed_out(30.0, 30)
    assert guest.judge.ruling is not None
    assert (guest.verdict(), guest.judge.ruling.phase) == (Verdict.TIMEOUT, Phase.BOOT)
    assert "prompt" in guest.judge.ruling.reason
    guest = booted(shell())
    guest.judge.timed_out(30.0, 30)
    assert guest.judge.ruling is not None
    assert (guest.verdict(), guest.judge.ruling.phase) == (Verdict.TIMEOUT, Phase.COMMAND)


def test_what_matched_just_before_the_time_was_up_counts() -> None:
    guest = booted(shell()).prints("PASS\n")
    guest.judge.timed_out(guest.now + 0.1, 30)
    assert guest.verdict() is Verdict.PASS


def test_half_a_line_is_no_evidence_when_the_time_is_up() -> None:
    guest = booted(shell("^RESULT: PASS$")).prints("RESULT: PASS")
    guest.judge.timed_out(guest.now + 0.01, 30)
    assert guest.verdict() is Verdict.TIMEOUT


def test_a_match_that_was_undone_does_not_pass_when_the_time_is_up() -> None:
    guest = booted(shell("^RESULT: PASS$")).prints("RESULT: PASS").waits(QUIET + 0.1).prints("ED? no")
    guest.judge.timed_out(guest.now + 0.01, 30)
    assert guest.verdict() is Verdict.TIMEOUT


def test_qemu_that_ends_without_a_match_exited_also_with_status_0() -> None:
    guest = booted(shell()).prints("reboot: Power down\n")
    guest.judge.ended(guest.now, "status 0")
    assert guest.verdict() is Verdict.EXITED
    assert guest.judge.ruling is not None
    assert "status 0" in guest.judge.ruling.reason


def test_qemu_that_ends_right_after_a_match_does_not_undo_it() -> None:
    for last in ("PASS\n", "PASS"):
        guest = booted(shell()).prints(last)
        guest.judge.ended(guest.now, "status 0")
        assert guest.verdict() is Verdict.PASS


def test_qemu_that_ends_while_the_command_is_typed_does_not_pass_on_the_echo() -> None:
    guest = Guest(shell("PASS", command="echo PASS and more of it, and more")).prints(PROMPT).waits(PROMPT_DELAY)
    guest.judge.ended(guest.now, "status 0")
    assert guest.verdict() is Verdict.EXITED


def test_the_tail_holds_the_last_lines_and_the_unfinished_one() -> None:
    guest = booted(shell()).prints("".join(f"line {i}\r\n" for i in range(500)) + "half")
    assert guest.judge.tail(3) == ("line 498", "line 499", "half")


# --- groups -----------------------------------------------------------------------------------------------------------

MARKERS = Group("B", "P", "F", "ALL_P", "ALL_F", ("/bin/a", "/bin/b --x"), ("/bin/a", "/bin/b --x"))


def group(*, fail: tuple[str, ...] = ()) -> Guest:
    rules = Rules(prompt="#", command="/usr/bin/run-all", success=(r"^ALL_P\s*$",), fail=fail, group=MARKERS)
    return Guest(rules).prints("# ").waits(1)


def statuses(guest: Guest) -> list[SubtestStatus]:
    return [subtest.status for subtest in guest.judge.subtests()]


def test_a_group_passes_when_each_command_did() -> None:
    guest = group().prints("B: /bin/a\nx\nP: /bin/a\n", after=0.5).prints("B: /bin/b --x\nP: /bin/b --x\nALL_P\n").waits(1)
    assert guest.verdict() is Verdict.PASS
    assert statuses(guest) == [SubtestStatus.PASS, SubtestStatus.PASS]


def test_a_group_runs_to_its_end_after_a_command_failed() -> None:
    guest = group().prints("B: /bin/a\nF: /bin/a status=3\n").waits(2)
    assert guest.verdict() is None
    guest.prints("B: /bin/b --x\n", after=1).prints("P: /bin/b --x\nALL_F\n", after=2.5).waits(1)
    assert guest.verdict() is Verdict.FAIL
    first, second = guest.judge.subtests()
    assert (first.status, first.exit_status) == (SubtestStatus.FAIL, 3)
    assert second.status is SubtestStatus.PASS
    assert second.duration == pytest.approx(2.5)
    assert guest.judge.ruling is not None
    assert guest.judge.ruling.reason == "1 of 2 commands failed: /bin/a (status 3)"


@pytest.mark.parametrize(
    "output",
    [
        "ALL_P\n",  # not one command was heard of
        "B: /bin/a\nP: /bin/a\nALL_P\n",  # one is missing
        "B: /bin/a\nP: /bin/b --x\nB: /bin/b --x\nP: /bin/b --x\nALL_P\n",  # the wrong name
        "B: /bin/a\nF: /bin/a status=1\nB: /bin/b --x\nP: /bin/b --x\nALL_P\n",  # it contradicts itself
        "B: /bin/a\nP: /bin/a\nB: /bin/b --x\nP: /bin/b --x\nALL_F\n",
        "B: /bin/a\nP: /bin/a\nB: /bin/b --x\nP: /bin/b --x\nxALL_P\n",  # not a line of its own
    ],
)
def test_a_group_never_passes_on_half_of_the_evidence(output: str) -> None:
    assert group().prints(output).waits(1).verdict() is Verdict.FAIL


def test_markers_are_found_behind_a_line_that_a_program_did_not_end() -> None:
    guest = group().prints("B: /bin/a\nhalfF: /bin/a status=9\nB: /bin/b --x\nhalfP: /bin/b --x\nALL_F\n").waits(1)
    assert statuses(guest) == [SubtestStatus.FAIL, SubtestStatus.PASS]


def test_a_fail_pattern_fails_the_command_in_whose_output_it_stands_and_the_group_goes_on() -> None:
    guest = group(fail=("Segfault",)).prints("B: /bin/a\nSegfault\nP: /bin/a\nB: /bin/b --x\n").waits(1)
    assert guest.verdict() is None
    guest.prints("P: /bin/b --x\nALL_P\n").waits(1)
    assert guest.verdict() is Verdict.FAIL
    assert statuses(guest) == [SubtestStatus.FAIL, SubtestStatus.PASS]


@pytest.mark.parametrize(
    "torn", ["BAD\r[    3.000000] random: x\r\nEND\n", "BA[    3.000000] random: x\r\nD\nEND\n", "xxx\rBAD\nEND\n"]
)
@pytest.mark.parametrize("first", ["a", "b"])
def test_a_fail_text_in_each_reading_fails_its_command(torn: str, first: str) -> None:
    plain = "BAD\nEND\n"
    one, two = (plain, torn) if first == "a" else (torn, plain)
    guest = group(fail=("BAD\nEND",)).prints(f"B: /bin/a\n{one}P: /bin/a\n").waits(1)
    assert guest.prints(f"B: /bin/b --x\n{two}P: /bin/b --x\nALL_P\n").waits(1).verdict() is Verdict.FAIL
    assert statuses(guest) == [SubtestStatus.FAIL, SubtestStatus.FAIL]


def test_a_marker_that_a_kernel_line_cuts_is_found() -> None:
    guest = group().prints("B: /bin/a\nP: /bi[    3.000] random: x\r\nn/a\nB: /bin/b --x\nP: /bin/b --x\n")
    assert guest.prints("ALL_P[  3.1] y\r\n\r\n").waits(2).verdict() is Verdict.PASS


def test_a_program_that_prints_the_other_marker_does_not_pass() -> None:
    guest = group().prints("B: /bin/a\nP: /bin/a\nF: /bin/a status=1\nB: /bin/b --x\nP: /bin/b --x\nALL_F\n").waits(2)
    assert guest.verdict() is Verdict.FAIL
    assert statuses(guest) == [SubtestStatus.FAIL, SubtestStatus.PASS]


def test_a_program_that_prints_all_the_markers_does_not_pass() -> None:
    guest = group().prints("B: /bin/a\nP: /bin/a\nB: /bin/b --x\nP: /bin/b --x\nALL_P\n").waits(0.2)
    assert guest.prints("P: /bin/a\nB: /bin/b --x\n").waits(1).verdict() is Verdict.FAIL


def test_a_panic_ends_a_group_and_leaves_what_ran_broken() -> None:
    guest = group().prints("B: /bin/a\n[    3.0] Kernel panic - not syncing: x\n").waits(1)
    assert guest.verdict() is Verdict.PANIC
    assert statuses(guest) == [SubtestStatus.BROKEN, SubtestStatus.NOT_RUN]


def test_a_group_that_hangs_says_which_command_was_running() -> None:
    guest = group().prints("B: /bin/a\nP: /bin/a\nB: /bin/b --x\n")
    guest.judge.timed_out(60, 60)
    assert guest.verdict() is Verdict.TIMEOUT
    assert guest.judge.ruling is not None
    assert "/bin/b --x was running" in guest.judge.ruling.reason


def test_a_command_that_was_killed_after_its_limit_says_so() -> None:
    guest = group().prints("B: /bin/a\nF: /bin/a status=124 limit=5\nB: /bin/b --x\nP: /bin/b --x\nALL_F\n").waits(1)
    assert guest.judge.subtests()[0].reason == "killed after its limit of 5 s"
    assert guest.judge.subtests()[0].exit_status == 124


# --- limits -----------------------------------------------------------------------------------------------------------


def limited(limits: Limits, *parts: str, rules: Rules | None = None) -> Guest:
    return Guest(rules or shell(), limits=limits).prints(*parts)


@pytest.mark.parametrize(
    ("limits", "booted", "at", "ended_by", "reason"),
    [
        (Limits(whole=20), True, 20, "timeout", "no match of '^PASS$' within 20 s"),
        (Limits(whole=20), False, 20, "timeout", f"the prompt '{PROMPT.strip()}' did not come within 20 s"),
        (Limits(whole=20, boot=5), False, 5, "boot_timeout", f"the prompt '{PROMPT.strip()}' did not come within 5 s"),
        (Limits(whole=20, boot=5), True, 20, "timeout", "no match of '^PASS$' within 20 s"),
        (Limits(whole=20, command=4), True, 4, "command_timeout", "no match of '^PASS$' within 4 s"),
        (Limits(whole=20, command=4), False, 20, "timeout", f"the prompt '{PROMPT.strip()}' did not come within 20 s"),
        (Limits(whole=20, idle=3), True, 3, "idle_timeout", "nothing was printed for 3 s"),
        (Limits(whole=3, boot=9, command=9, idle=9), True, 3, "timeout", "no match of '^PASS$' within 3 s"),
    ],
)
def test_the_limit_that_is_up_first_ends_the_case(limits: Limits, booted: bool, at: float, ended_by: str, reason: str) -> None:
    guest = limited(limits, PROMPT if booted else "Linux\r\n").waits(at - 0.3)
    assert guest.verdict() is None
    guest.waits(0.5)
    assert guest.verdict() is Verdict.TIMEOUT
    assert guest.judge.ruling is not None
    assert (guest.judge.ruling.limit, guest.judge.ruling.reason) == (ended_by, reason)
    uses = guest.judge.limits_used(guest.now)
    assert [use.name for use in uses if use.ended] == [ended_by]
    assert all(0 <= use.used <= use.limit + 0.6 for use in uses)


def test_a_console_that_never_stops_ends_at_its_limit() -> None:
    guest = limited(Limits(whole=3, idle=1), PROMPT)
    while guest.verdict() is None:
        guest.prints("y\r\n" * 100, after=0.05)
        assert guest.now < 3.2
    assert guest.verdict() is Verdict.TIMEOUT


def test_what_has_matched_is_drained_before_any_limit_counts() -> None:
    guest = limited(Limits(whole=5, idle=1), PROMPT).waits(0.5).prints("x\r\n", after=0.9).waits(0.9)
    assert guest.prints("PASS\r\n").waits(0.3).verdict() is None
    assert guest.prints("FAIL\r\n").waits(3).verdict() is Verdict.FAIL
    guest = limited(Limits(whole=2), PROMPT).waits(1.8).prints("PASS\r\n").waits(1)
    assert guest.verdict() is Verdict.PASS
    (use,) = guest.judge.limits_used(guest.now)
    assert use.used == pytest.approx(1.82, abs=0.05)


def test_each_command_of_a_group_has_the_limit_for_itself_and_the_guest_is_given_time_to_end_it() -> None:
    rules = Rules(prompt="#", command="/run", success=(r"^ALL_P\s*$",), group=MARKERS)
    limits = Limits(command=8)
    assert limits.given_up == 27
    guest = limited(limits, "# ", rules=rules).waits(1).prints("B: /bin/a\n").waits(12).prints("P: /bin/a\nB: /bin/b --x\n")
    assert guest.waits(26).verdict() is None
    assert guest.waits(2).verdict() is Verdict.TIMEOUT
    assert guest.judge.ruling is not None
    assert guest.judge.ruling.reason == "/bin/b --x did not end within 27 s, nor could the guest end it"
    assert statuses(guest) == [SubtestStatus.PASS, SubtestStatus.BROKEN]


# --- panics and resets ------------------------------------------------------------------------------------------------


def test_a_panics_block_begins_where_the_kernel_began_and_ends_where_it_ended() -> None:
    guest = booted(shell()).prints("fine\r\n[    1.0] usb: fine\r\n").waits(0.1)
    oops = [
        "[    2.0] BUG: kernel NULL pointer dereference, address: 0",
        "[    2.1] RIP: 0010:x+0x1/0x2",
        "[    2.2] Kernel panic - not syncing: Fatal exception",
        "[    2.3] Kernel Offset: disabled",
        "[    2.4] ---[ end Kernel panic - not syncing: Fatal exception ]---",
    ]
    guest.prints(*(f"{line}\r\n" for line in oops), "firmware again\r\n").waits(2)
    assert guest.judge.ruling is not None
    assert guest.judge.ruling.block == tuple(oops)


def test_a_rust_panics_block_has_its_message_also_if_it_takes_a_second_to_come() -> None:
    guest = booted(shell()).prints("panicked at src/main.rs:1:2:\r\n", after=0.1).prints("index out of bounds\r\n", after=0.4)
    guest.prints("stack:\r\n", after=0.4).prints("  0: f\r\n", after=0.4).waits(0.35).prints("late\r\n").waits(1)
    assert guest.judge.ruling is not None
    assert guest.judge.ruling.block == ("panicked at src/main.rs:1:2:", "index out of bounds", "stack:", "  0: f")


def test_a_block_is_of_80_lines_at_most() -> None:
    guest = booted(shell()).prints("panicked at src/main.rs:1:2:\r\n" + "x\r\n" * 1000).waits(2)
    assert guest.judge.ruling is not None
    assert len(guest.judge.ruling.block) == 80


BANNERS = ["SeaBIOS (version 1.16.2-debian-1.16.2-1)", "OpenSBI v1.1", "UEFI firmware (version 2022.11-6 built at 20:17)"]


@pytest.mark.parametrize("banner", BANNERS)
def test_firmware_that_comes_again_and_again_is_a_reset_loop_where_resets_are_allowed(banner: str) -> None:
    for resets, verdict in ((True, Verdict.PANIC), (False, None)):
        guest = Guest(Rules(prompt="never", command="x", success=("^PASS$",), resets=resets))
        guest.prints(*[f"{banner}\r\nbooting\r\n"] * (RESETS + 1)).waits(1)
        assert guest.verdict() is None
        assert guest.prints(f"{banner}\r\n").waits(1).verdict() is verdict


def test_a_program_that_speaks_of_firmware_is_no_reset_loop() -> None:
    rules = Rules(prompt="#", command="x", success=("^PASS$",), resets=True)
    guest = booted(rules).prints(*["BIOS: SeaBIOS (version 1)\r\nOpenSBI vendor\r\n"] * 20).waits(1)
    assert guest.verdict() is None


def test_resets_that_the_machine_counts_are_a_loop_too() -> None:
    guest = booted(shell())
    for _ in range(RESETS):
        guest.waits(RESET_SILENCE).judge.reset(guest.now)
    assert guest.verdict() is None
    guest.waits(RESET_SILENCE).judge.reset(guest.now)
    assert guest.verdict() is Verdict.PANIC
    assert guest.judge.ruling is not None
    assert guest.judge.ruling.reason == "the guest's machine was reset 4 times"


def test_resets_in_a_row_with_nothing_said_are_one() -> None:
    """What SeaBIOS makes of a reboot."""
    guest = booted(shell())
    for _ in range(4 * RESETS):
        guest.judge.reset(guest.now)
        guest.waits(0.03)
    for _ in range(RESETS - 1):
        guest.waits(RESET_BURST).prints("booting\r\n").judge.reset(guest.now)
    assert guest.verdict() is None
    guest.waits(RESET_BURST).prints("booting\r\n").judge.reset(guest.now)
    assert guest.verdict() is Verdict.PANIC


def test_a_reset_before_the_prompt_is_a_panic_and_later_an_end() -> None:
    guest = Guest(shell()).prints("Linux\r\n")
    guest.judge.ended(guest.now, "status 0", reset=True)
    assert guest.verdict() is Verdict.PANIC
    guest = booted(shell())
    guest.judge.ended(guest.now, "status 0", reset=True)
    assert guest.verdict() is Verdict.EXITED
    guest = booted(shell())
    guest.judge.ended(guest.now, "status 0", reset=True, fault="triple fault")
    assert guest.verdict() is Verdict.PANIC
    guest = booted(shell()).prints("PASS\r\n")
    guest.judge.ended(guest.now, "status 0", reset=True, fault="triple fault")
    assert guest.verdict() is Verdict.PANIC


# --- the terminal by itself -------------------------------------------------------------------------------------------


def test_an_escape_that_never_ends_swallows_nothing_but_itself() -> None:
    transcript = Transcript()
    transcript.feed(b"\x1b]0;" + b"x" * 10_000 + b"\nlater\n")
    assert b"later\n" in transcript.written.raw


def test_a_flood_without_line_ends_is_handed_on() -> None:
    transcript = Transcript()
    for _ in range(4):
        transcript.feed(b"\x1b]" + b"x" * 65_536)
    assert len(transcript.written.raw) > 3 * 65_536


def test_rows_before_a_reset_of_the_machine_stay_evidence() -> None:
    """SeaBIOS begins each start with these."""
    rules = Rules(success=("(?s)^kernel$.*^kernel$",), resets=True)
    guest = Guest(rules).prints("kernel\r\n").waits(1).prints("\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1)\r\n", "kernel\r\n")
    assert guest.waits(1).verdict() is Verdict.PASS


def test_a_success_that_was_drained_counts_with_match_all_whatever_clears_the_screen() -> None:
    rules = Rules(success=("^one$", "^two$"), match_all=True)
    guest = Guest(rules).prints("one\r\n").waits(1).prints("\x1b[2J\x1b[H").prints("two\r\n").waits(1)
    assert guest.verdict() is Verdict.PASS
    guest = Guest(rules).prints("one\r\n").waits(0.1).prints("\x1b[2J\x1b[H").prints("two\r\n").waits(1)
    assert guest.verdict() is None


@pytest.mark.parametrize(
    "back", ["\x1b7PASS\r\n\x1b8BUSY\r\n", "\x1b[sPASS\r\nx\r\n\x1b[uBUSY\r\n", "PASS\r\n\x1b[A\x1b[2Kno\r\n"]
)
def test_a_row_that_the_cursor_comes_back_to_is_no_evidence(back: str) -> None:
    assert Guest(Rules(success=("^PASS$",))).prints(back).waits(2).verdict() is None


def test_the_rest_of_a_line_that_a_kernel_tore_is_no_line() -> None:
    guest = Guest(Rules(success=("^PASS$",))).prints("did not ", "[    2.040000] eth0: up\r\n", "PASS\r\n")
    assert guest.waits(2).verdict() is None
    assert guest.prints("PASS\r\n").waits(1).verdict() is Verdict.PASS


def test_output_is_no_echo_of_keys_that_come_later() -> None:
    rules = Rules(
        prompt=PROMPT.strip(), command="pass ; say for a while no F, no A, no I, no L", success=("^PASS$",), fail=("FAIL",)
    )
    guest = Guest(rules, echo=False).prints(PROMPT).waits(PROMPT_DELAY).prints("pass ", "\r\nFAIL\r\n")
    assert guest.waits(2).verdict() is Verdict.FAIL


def test_output_is_no_echo_of_keys_that_have_come_back_elsewhere() -> None:
    rules = Rules(
        prompt=PROMPT.strip(), command="pass ; say F, then A, then I, then L, and more", success=("^PASS$",), fail=("FAIL",)
    )
    guest = Guest(rules, echo=False).prints(PROMPT).waits(PROMPT_DELAY)
    for part in ("pass ; say F, th", "en A, then I, th", "en L, and more"):
        guest.prints(part)
        if part.startswith("en A"):
            guest.prints("\r\nFAIL\r\n")
    assert guest.prints("\r\nPASS\r\n").waits(2).verdict() is Verdict.FAIL


LONG = "cd /t && ./run --all && echo PASS || echo FAIL"


@pytest.mark.parametrize(
    "echo",
    [
        LONG.upper() + "\r\n",
        "cd t && ./run -all && eco PASS || ech FAIL\r\n",
        "cd /t && ./run -cd /t && ./run --all && echo PAS-all && echo PASS || echo FAILS || echo FAIL\r\n\r\n",
    ],
    ids=["in capitals", "with losses", "each part twice"],
)
def test_a_late_echo_that_is_not_what_was_typed_passes_and_fails_nothing(echo: str) -> None:
    guest = Guest(shell("PASS", fail="FAIL", command=LONG), echo=False).prints(PROMPT).waits(6)
    assert guest.typed == LONG.encode() + b"\n"
    assert guest.prints(echo[:20]).waits(0.7).prints(echo[20:]).waits(3).verdict() is None


def test_a_fail_text_that_may_be_echo_decides_only_when_the_rest_of_the_echo_can_no_longer_come() -> None:
    guest = Guest(shell("ok", fail="FAIL", command="FAIL=1 ./t"), echo=False).prints(PROMPT).waits(0.5)
    assert guest.prints("FAILtest result: ok\r\n").waits(9).verdict() is None
    guest.judge.timed_out(guest.now, 10)
    assert guest.verdict() is Verdict.FAIL


def test_the_whole_typed_line_once_more_decides_nothing() -> None:
    guest = booted(shell("ok", fail="FAIL", command="FAIL=1 ./t"))
    assert guest.prints("FAIL=1 ./t\r\n", "ok\r\n").waits(9).verdict() is None
    assert guest.prints("FAIL=1\r\n").waits(1).verdict() is Verdict.FAIL


def test_a_counter_that_ends_in_a_failure_is_a_timeout_where_no_fail_pattern_says_more() -> None:
    """That the prompt is back says nothing: a program in the background may still print what is waited for."""
    guest = Guest(Rules(prompt=PROMPT.strip(), command="t-count", success=(r"^passed \d+, failed 0$",))).prints(PROMPT).waits(1)
    guest.prints("passed 1, failed 0\r").waits(1).prints("passed 2, failed 0\r").waits(1).prints("passed 2, failed 1\r\n", PROMPT)
    assert guest.waits(30).verdict() is None
    guest.judge.timed_out(guest.now, 40)
    assert guest.verdict() is Verdict.TIMEOUT


def test_a_service_that_prints_the_typed_line_in_the_middle_of_its_echo_decides_nothing() -> None:
    guest = Guest(shell("PASS", command="raw #PASS ; sleep 2000 ; off"), echo=False).prints(PROMPT).waits(0.12)
    guest.prints("raw #", "\r\nraw #PASS ; sleep 2000 ; off\r\n", "PASS ; slee").waits(0.01).prints("p 2000 ; off").waits(0.01)
    assert guest.typed.endswith(b"\n")
    assert guest.prints("\r\n").waits(9).verdict() is None


@pytest.mark.parametrize(
    ("before", "kernels"),
    [
        ("thread 'main' ", False),
        ("w\0\0read 'main' ", False),
        ("\0\0\0\0\0\0\0\0main' (7) ", False),
        ("\0" * 16, True),
        ("x ", True),
    ],
)
def test_a_thread_s_panic_is_one_though_its_first_letters_are_hidden_as_echo(before: str, kernels: bool) -> None:
    pattern = PanicPattern(PANIC_PATTERNS[1])
    assert (pattern.search(f"{before}panicked at src/main.rs:2:5:".encode()) is not None) is kernels


def test_a_panic_on_a_line_that_never_ends_wins_over_a_success_before_it() -> None:
    guest = booted(shell("PASS"))
    assert guest.prints("PASS\r\n[kernel] Panicked at src/trap.rs:10 page fault").waits(2).verdict() is Verdict.PANIC


def test_an_unfinished_line_that_a_prompt_ended_is_no_success_if_it_is_returned_over() -> None:
    guest = booted(shell("^PASS$")).waits(2)
    assert guest.prints("PASS", PROMPT).waits(0.6).prints("\x1b[1K").waits(2).verdict() is None


@pytest.mark.parametrize("back", ["\r", "\b", "\x1b[2D", "\x1b[G", "\x1b[2K"])
def test_a_row_on_which_the_cursor_goes_back_does_not_go_on_where_a_kernel_line_tore_it(back: str) -> None:
    guest = booted(shell("PASS")).waits(2)
    assert guest.prints("PAS[    3.100000] eth0: up\r\n", f"{back}S\r\n").waits(2).verdict() is None


def test_a_success_that_an_echo_tears_is_none() -> None:
    guest = Guest(shell("ok: all", command="./a\n./b"), echo=False).prints(PROMPT).waits(0.15).prints("./a\r\nok: ").waits(0.05)
    assert guest.prints("./b\r\n").waits(0.05).prints("all\r\n").waits(2).verdict() is None


def test_a_success_that_needs_possible_echo_to_be_echo_is_none() -> None:
    guest = Guest(Rules(prompt="#", command="echo it; ./t", success=("^[^a-z]*PASS$",)), echo=False).prints("# ").waits(0.15)
    assert guest.prints("ech").waits(0.1).prints("PASS\r\n").waits(4).verdict() is None
    assert guest.prints("PASS\r\n").waits(2).verdict() is Verdict.PASS


def test_a_prompt_that_a_kernel_line_tears_is_not_typed_at() -> None:
    guest = Guest(shell("PASS"))
    assert guest.prints(PROMPT[:4], "[    3.100000] eth0: up\r\n", PROMPT[4:]).waits(3).typed == b""


def test_an_echo_in_capitals_with_nothing_lost_is_surely_echo() -> None:
    guest = Guest(shell("^PASS$", fail="FAIL", command="raw #fail ; pass"), echo=False).prints(PROMPT).waits(0.15)
    assert guest.prints("RAW #FAIL ; PASS").waits(2).prints("\r\nPASS\r\n").waits(2).verdict() is Verdict.PASS
