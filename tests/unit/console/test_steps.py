"""Cases in steps: what ends a step, what counts for which, and what holds through all of them."""

from __future__ import annotations

import pytest

from qcase.console.group import Group
from qcase.console.judge import DRAIN, PROMPT_DELAY, Judge
from qcase.console.rules import Limits, Rules, Step
from qcase.console.steps import StepsJudge
from qcase.model import SubtestStatus, Verdict

PROMPT = "root@x:/# "
NO_LIMITS = Limits()


class Guest:
    """A guest in steps that is played by the test. It echoes what is typed, unless told otherwise."""

    def __init__(
        self, *steps: Step, fail: tuple[str, ...] = (), limits: Limits = NO_LIMITS, echo: bool = True, **rules: object
    ) -> None:
        self.judge = StepsJudge(Rules(fail=fail, steps=steps, **rules), started=0.0, limits=limits)  # type: ignore[arg-type]
        self.now = 0.0
        self.echo = echo
        self.typed = b""
        self.types_on = ""

    def prints(self, *parts: str, on: str = "") -> Guest:
        for part in parts:
            self.now += 0.01
            self.judge.feed(part.encode(), self.now, on)
            self._take()
        return self

    def waits(self, seconds: float = PROMPT_DELAY + DRAIN + 0.6) -> Guest:
        until = self.now + seconds
        for _ in range(10_000):
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

    def resets(self, **how: object) -> Guest:
        self.judge.reset(self.now, **how)  # type: ignore[arg-type]
        return self

    def _take(self) -> None:
        for name in ("", *self.judge.consoles):
            while data := self.judge.input(name):
                self.typed += data if name == self.types_on else name.encode() + data
                self.types_on = name
                if self.echo:
                    self.now += 0.001
                    self.judge.feed(data.replace(b"\n", b"\r\n"), self.now, name)

    @property
    def verdict(self) -> Verdict | None:
        return self.judge.ruling.verdict if self.judge.ruling else None

    @property
    def reason(self) -> str:
        return self.judge.ruling.reason if self.judge.ruling else ""

    @property
    def states(self) -> list[str]:
        return [step.status.value for step in self.judge.subtests()]


def types(command: str, *success: str, prompt: str = "root@x:", **more: object) -> Step:
    return Step(command, prompt=prompt, command=command, success=success, **more)  # type: ignore[arg-type]


def waits_for(*success: str, **more: object) -> Step:
    return Step("wait", success=success, **more)  # type: ignore[arg-type]


# --- one after the other ------------------------------------------------------------------------------------------------


def test_each_step_types_behind_the_prompt_that_came_behind_the_step_before() -> None:
    guest = Guest(types("./a", "^A done$"), types("./b", "^B done$")).prints("boot\r\n", PROMPT).waits()
    assert guest.typed == b"./a\n"
    guest.prints("A done\r\n").waits()
    assert guest.typed == b"./a\n", "no prompt came"
    guest.prints(PROMPT).waits()
    assert guest.typed == b"./a\n./b\n"
    guest.prints("B done\r\n" + PROMPT).waits()
    assert guest.verdict is Verdict.PASS
    assert guest.states == ["pass", "pass"]


def test_a_prompt_in_the_same_read_as_the_success_before_is_seen() -> None:
    guest = Guest(types("./a", "^A$"), types("./b", "^B$")).prints(PROMPT).waits().prints(f"A\r\n{PROMPT}").waits()
    assert guest.typed == b"./a\n./b\n"
    assert guest.prints(f"B\r\n{PROMPT}").waits().verdict is Verdict.PASS


def test_what_was_printed_before_its_command_was_typed_is_no_success() -> None:
    guest = Guest(types("./a", "^A$"), types("./b", "^B$")).prints(PROMPT).waits().prints(f"A\r\nB\r\n{PROMPT}").waits()
    assert guest.typed == b"./a\n./b\n"
    assert guest.waits(9).verdict is None
    assert guest.prints("B\r\n").waits().verdict is Verdict.PASS


def test_a_success_before_the_first_prompt_is_none() -> None:
    guest = Guest(types("./a", "^A$")).prints("A\r\n", PROMPT).waits().waits(9)
    assert guest.verdict is None
    assert guest.prints("A\r\n").waits().verdict is Verdict.PASS


@pytest.mark.parametrize(
    "text",
    [
        "one\r\ntwo\r\n",
        "one two\r\n",
        "one\r\n\r\nx\r\ntwo\r\n",
        "x\rone two\r\n",
        "99%\r100%\r\nx\r\rone\r\nxxx\rtwo\r\n",
        "\x1b[32mone\x1b[0m\x08e two\r\n",
        "one[    2.040000] x\r\n\r\ntwo\r\n",
    ],
)
def test_what_a_waiting_step_waits_for_may_come_right_behind_the_match_before_it(text: str) -> None:
    assert Guest(waits_for("one"), waits_for("two")).prints(text).waits().waits().verdict is Verdict.PASS
    single = Guest(waits_for("one"), waits_for("two"))
    assert single.prints(*text).waits().waits().verdict is Verdict.PASS


def test_no_output_is_evidence_twice() -> None:
    assert Guest(waits_for("^up$"), waits_for("^up$")).prints("up\r\n").waits(9).verdict is None
    assert Guest(waits_for("^up$"), waits_for("^up$")).prints("up\r\nup\r\n").waits(9).verdict is Verdict.PASS
    assert Guest(waits_for("up"), waits_for("up")).prints("up up\r\n").waits(9).verdict is Verdict.PASS
    assert Guest(waits_for("up"), waits_for("[a-z]+")).prints("up\r\n").waits(9).verdict is None
    assert Guest(waits_for("(?s)one.*two"), waits_for("two")).prints("one\r\ntwo\r\n").waits(9).verdict is None
    assert Guest(waits_for("two"), waits_for("one")).prints("one\r\ntwo\r\n").waits(9).verdict is None


def test_rows_of_before_that_the_cursor_comes_back_to_are_no_evidence() -> None:
    assert (
        Guest(waits_for("^a$"), waits_for("^b$")).prints("b\r\na\r\n").waits().prints("\x1b[2A\x1b[2B").waits(9).verdict is None
    )


# --- echo ---------------------------------------------------------------------------------------------------------------


def test_the_echo_of_a_command_is_no_evidence_of_the_step_that_waits_behind_it() -> None:
    guest = Guest(types("echo UP"), waits_for("UP")).prints(PROMPT).waits()
    assert guest.waits(9).verdict is None
    assert guest.prints("UP\r\n").waits().verdict is Verdict.PASS


def test_a_late_echo_is_no_evidence_of_the_step_that_waits_behind_it() -> None:
    guest = Guest(types("echo UP"), waits_for("UP"), echo=False).prints(PROMPT).waits().waits(9)
    assert guest.prints("echo UP\r\n").waits(9).verdict is None
    assert guest.prints("UP\r\n").waits().verdict is Verdict.PASS


def test_the_echo_of_an_earlier_step_that_comes_again_is_no_evidence() -> None:
    guest = Guest(types("echo B ok"), types("./b", "B ok"), echo=False).prints(PROMPT).waits().prints("\r\n", PROMPT).waits()
    assert guest.typed == b"echo B ok\n./b\n"
    assert guest.prints(f"{PROMPT}echo B ok\r\n").waits(9).verdict is None


def test_a_fail_pattern_in_a_command_fails_nothing() -> None:
    guest = Guest(types("grep FAIL log || true", "^ok$"), types("echo FAIL >x", "^ok$"), fail=("FAIL",))
    assert guest.prints(PROMPT).waits().prints(f"ok\r\n{PROMPT}").waits().prints("ok\r\n").waits().verdict is Verdict.PASS


def test_a_password_is_typed_without_an_echo() -> None:
    guest = Guest(types("root", prompt="login:"), types("secret", prompt="Password:"), types("id", "^uid=0"))
    guest.prints("x login: ").waits()
    guest.echo = False
    guest.prints("Password: ").waits().waits(3)
    assert guest.typed == b"root\nsecret\n"
    guest.echo = True
    assert guest.prints("\r\n" + PROMPT).waits().prints("uid=0(root)\r\n").waits().verdict is Verdict.PASS


def test_keys_are_typed_as_they_are() -> None:
    guest = Guest(types("sleep 100"), Step("stop it", keys="\x03", success=(r"\^C",)), types("echo", "^$x|^back$"))
    guest.prints(PROMPT).waits()
    assert guest.typed == b"sleep 100\n\x03"
    assert guest.waits(9).verdict is None, "the echo of a key is no evidence"


# --- fail, panic, timeout -----------------------------------------------------------------------------------------------


def test_a_fail_pattern_of_a_step_counts_in_that_step_alone() -> None:
    steps = types("./a", "^A$", fail=("^bad$",)), types("./b", "^B$")
    early = Guest(*steps).prints("bad\r\n", PROMPT).waits().prints(f"A\r\n{PROMPT}").waits()
    assert early.prints("bad\r\nB\r\n").waits().verdict is Verdict.PASS
    bad = Guest(*steps).prints(PROMPT).waits().prints("bad\r\n").waits()
    assert bad.verdict is Verdict.FAIL
    assert bad.states == ["fail", "not-run"]
    assert "step 1 of 2" in bad.reason
    assert Guest(*steps).prints(PROMPT).waits().prints("A\r\nbad\r\n").waits().verdict is Verdict.FAIL, "in the same output"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("FAIL: x\r\n", Verdict.FAIL),
        ("FAIL: x\r        \r", Verdict.FAIL),
        ("[    2.04] x\r\n", None),
        ("Kernel panic - not syncing: x\r\n---[ end Kernel panic - not syncing: x ]---\r\n", Verdict.PANIC),
    ],
)
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_fail_patterns_of_the_case_and_panics_hold_at_any_time(text: str, right: Verdict | None, at: int) -> None:
    guest = Guest(types("./a", "^A$"), types("./b"), types("./c", "^C$"), fail=("FAIL",))
    for number, said in enumerate((PROMPT, f"A\r\n{PROMPT}", PROMPT)):
        if number == at:
            guest.prints(text)
        guest.prints(said).waits()
    if at == 3:
        guest.prints(text)
    assert guest.prints("C\r\n").waits(3).verdict is (right or Verdict.PASS)


def test_a_step_that_is_late_is_a_timeout() -> None:
    guest = Guest(types("./a", "^A$", timeout=3.0), types("./b", "^B$", timeout=3.0), limits=Limits(whole=60.0))
    guest.prints(PROMPT).waits().prints("A\r\n").waits(20)
    assert guest.verdict is None, "the limit counts from the sending on"
    guest.prints(PROMPT).waits(9)
    assert guest.verdict is Verdict.TIMEOUT
    assert guest.states == ["pass", "broken"]
    assert guest.reason == "step 2 of 2 (./b): no match of '^B$' within 3 s"


def test_a_prompt_that_does_not_come_is_named() -> None:
    guest = Guest(types("./a", "^A$"), types("./b", "^B$", prompt="login:"), limits=Limits(whole=9.0))
    guest.prints(PROMPT).waits().prints("A\r\n").waits(20)
    assert guest.reason == "step 2 of 2 (./b): the prompt 'login:' did not come within 9 s"


def test_a_step_has_not_ended_before_all_of_it_is_typed() -> None:
    guest = Guest(types("echo A\nsleep 1\n./b", "^A$"), types("./c", "^C$"), echo=False).prints(PROMPT).waits(0.2)
    guest.prints("echo A\r\nA\r\n").waits(9)
    assert guest.typed.startswith(b"echo A\nsleep 1\n./b\n")


def test_silence_ends_a_step() -> None:
    guest = Guest(types("./a", silence=3.0), types("./b", "^B$")).prints(PROMPT).waits(2)
    guest.prints("x\r\n", PROMPT).waits(2.9)
    assert guest.typed == b"./a\n"
    guest.waits(1)
    assert guest.typed == b"./a\n./b\n", "at the prompt that came since"
    assert guest.prints(f"B\r\n{PROMPT}").waits().verdict is Verdict.PASS


def test_the_last_step_without_patterns_passes_once_its_output_is_drained() -> None:
    steps = types("./a", "^A$"), types("poweroff")
    guest = Guest(*steps, fail=("FAIL",)).prints(PROMPT).waits().prints(f"A\r\n{PROMPT}").waits(0.7)
    assert guest.typed == b"./a\npoweroff\n"
    assert guest.verdict is None
    assert guest.prints("FAIL\r\n").waits().verdict is Verdict.FAIL
    assert Guest(*steps).prints(PROMPT).waits().prints(f"A\r\n{PROMPT}").waits(3).verdict is Verdict.PASS


def test_the_limit_of_the_boot_ends_with_the_first_prompt() -> None:
    guest = Guest(types("reboot", expect="reboot"), types("./b", "^B$"), resets=True, limits=Limits(boot=5.0, whole=90.0))
    guest.prints(PROMPT).waits().waits(20).resets().prints("x\r\n").waits(20)
    assert guest.prints(PROMPT).waits().prints("B\r\n").waits().verdict is Verdict.PASS
    assert Guest(waits_for("^up$"), limits=Limits(boot=5.0)).prints("x\r\n").waits(9).verdict is Verdict.TIMEOUT


def test_fail_patterns_from_the_prompt_on_hold_where_no_step_has_a_prompt() -> None:
    whole = Guest(waits_for("^up$"), waits_for("^there$"), fail=("FAIL",), from_prompt=True)
    assert whole.prints("up\r\nFAIL\r\n").waits(3).verdict is Verdict.FAIL
    early = Guest(types("./a", "^A$"), fail=("FAIL",), from_prompt=True).prints("FAIL\r\n", PROMPT).waits()
    assert early.prints("A\r\n").waits().verdict is Verdict.PASS
    late = Guest(types("./a", "^A$"), types("./b", "^B$"), fail=("FAIL",), from_prompt=True).prints("FAIL\r\n", PROMPT).waits()
    assert late.prints(f"A\r\n{PROMPT}").waits().prints("FAIL\r\n").waits().verdict is Verdict.FAIL


# --- the machine --------------------------------------------------------------------------------------------------------

BOOTS = types("reboot", expect="reboot"), types("./b", "^B$")


def test_the_boot_behind_an_expected_reset_begins_anew() -> None:
    guest = Guest(*BOOTS, resets=True).prints(PROMPT).waits().prints(f"B\r\nRestarting\r\n{PROMPT}B").resets().waits()
    assert guest.typed == b"reboot\n", "the prompt was one of the first boot"
    guest.prints("SeaBIOS\r\n", PROMPT).waits()
    assert guest.typed == b"reboot\n./b\n"
    assert guest.waits(9).verdict is None
    assert guest.prints("B\r\n").waits().verdict is Verdict.PASS
    assert guest.states == ["pass", "pass"]


def test_the_reboot_of_a_panic_is_none_that_was_expected() -> None:
    guest = Guest(*BOOTS, resets=True).prints(PROMPT).waits().prints("Kernel panic - not syncing: x\r\n").resets().waits()
    assert guest.verdict is Verdict.PANIC
    unfinished = Guest(*BOOTS, resets=True).prints(PROMPT).waits().prints("Kernel panic - not syncing: x").resets().waits()
    assert unfinished.verdict is Verdict.PANIC
    fault = Guest(*BOOTS, resets=True).prints(PROMPT).waits().resets(fault="triple fault")
    assert fault.verdict is Verdict.PANIC


def test_a_reset_that_no_step_expects_ends_the_case() -> None:
    assert Guest(*BOOTS, resets=True).prints("boot\r\n").resets().verdict is Verdict.PANIC
    behind = Guest(*BOOTS, resets=True).prints(PROMPT).waits().resets().waits(2).prints("x\r\n").waits(2).resets()
    assert behind.verdict is Verdict.PANIC, "in the second boot, before its prompt"
    later = Guest(types("./a", "^A$"), *BOOTS, resets=True).prints(PROMPT).waits().resets()
    assert later.verdict is Verdict.EXITED


def test_resets_in_a_row_are_one() -> None:
    guest = Guest(*BOOTS, resets=True).prints(PROMPT).waits().resets()
    for _ in range(5):
        guest.waits(0.6).resets(fault="triple fault")
    assert guest.verdict is None
    assert guest.prints(PROMPT).waits().typed == b"reboot\n./b\n"


def test_a_reset_soon_behind_an_expected_one_is_another_if_the_guest_wrote_or_the_case_asked_for_it() -> None:
    guest = Guest(Step("reboot", expect="reboot"), waits_for("^up$")).resets().prints("no root\r\n").resets()
    assert guest.verdict is Verdict.EXITED
    button = Step("press reset", qmp='{"execute": "system_reset"}', expect="reboot")
    twice = Guest(button, button, waits_for("^up$"))
    for _ in range(2):
        assert len(twice.judge.requests()) == 1
        twice.resets(by_guest=False)
    assert twice.prints("up\r\n").waits().verdict is Verdict.PASS


def test_a_reset_ends_the_step_before_whose_output_is_being_drained() -> None:
    steps = types("reboot", "Restarting"), Step("the next boot", expect="reboot"), waits_for("^up$")
    guest = Guest(*steps, resets=True).prints(PROMPT).waits().prints("Restarting\r\n").resets().waits()
    assert guest.states == ["pass", "pass", "broken"]
    assert guest.prints("up\r\n").waits().verdict is Verdict.PASS


def test_a_power_off_that_is_expected_passes() -> None:
    guest = (
        Guest(types("./a", "^A$"), types("poweroff", expect="poweroff")).prints(PROMPT).waits().prints(f"A\r\n{PROMPT}").waits()
    )
    guest.prints("Power down\r\n").judge.ended(guest.now, "status 0", off=True)
    assert guest.verdict is Verdict.PASS
    early = Guest(types("./a", "^A$"), types("poweroff", expect="poweroff")).prints(PROMPT).waits()
    early.judge.ended(early.now, "status 0", off=True)
    assert early.verdict is Verdict.EXITED
    assert early.states == ["broken", "not-run"]


def test_the_next_boot_behind_a_power_off() -> None:
    steps = types("poweroff", expect="poweroff"), types("./b", "^B$")
    guest = Guest(*steps, resets=True).prints(PROMPT).waits().prints(f"B\r\n{PROMPT}B")
    guest.judge.powered_off(guest.now)
    guest.waits(2).resets().prints("SeaBIOS\r\n", PROMPT).waits()
    assert guest.typed == b"poweroff\n./b\n"
    assert guest.waits(9).verdict is None
    assert guest.prints("B\r\n").waits().verdict is Verdict.PASS
    gone = Guest(*steps, resets=True).prints(PROMPT).waits()
    gone.judge.ended(gone.now, "status 0", off=True)
    assert gone.verdict is Verdict.EXITED, "QEMU itself is gone"
    early = Guest(*steps, resets=True).prints("boot\r\n")
    early.judge.powered_off(early.now)
    assert early.verdict is Verdict.EXITED
    panicked = Guest(*steps, resets=True).prints(PROMPT).waits().prints("Kernel panic - not syncing: x")
    panicked.judge.powered_off(panicked.now)
    assert panicked.verdict is Verdict.PANIC


def test_a_command_for_the_monitor() -> None:
    guest = Guest(Step("unplug", qmp='{"execute": "device_del"}'), waits_for("^gone$"))
    assert guest.judge.requests() == ['{"execute": "device_del"}']
    assert guest.waits(3).states == ["broken", "not-run"]
    guest.judge.answered("", guest.now)
    assert guest.prints("gone\r\n").waits().verdict is Verdict.PASS
    guest = Guest(Step("unplug", qmp='{"execute": "device_del"}'), waits_for("^gone$"))
    guest.judge.answered("Device 'x' not found", guest.now)
    assert guest.verdict is Verdict.FAIL
    assert guest.states == [SubtestStatus.FAIL, SubtestStatus.NOT_RUN]


# --- groups that start themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "right", "states"),
    [
        ("P: b\r\nALL", Verdict.PASS, ["pass", "pass"]),
        ("F: b status=1\r\nNONE", Verdict.FAIL, ["pass", "fail"]),
        ("P: b\r\nNONE", Verdict.FAIL, ["pass", "pass"]),
        ("ALL", Verdict.FAIL, ["pass", "broken"]),
        ("x", None, ["pass", "broken"]),
    ],
)
def test_a_group_that_the_guest_starts_is_judged_by_its_markers(second: str, right: Verdict | None, states: list[str]) -> None:
    group = Group("B", "P", "F", "ALL", "NONE", ("a", "b"), ("a", "b"))
    judge = Judge(Rules(success=("^ALL$",), group=group), started=0.0, limits=Limits(whole=60.0, boot=20.0, command=10.0))
    for number, said in enumerate(("init\r\nB: a\r\n", "P: a\r\n", f"B: b\r\n{second}\r\n"), 1):
        judge.feed(said.encode(), float(number))
        assert judge.input() == b""
    assert judge.prompt_at == 1.0
    judge.tick(9.0)
    assert (judge.ruling.verdict if judge.ruling else None) is right
    assert [test.status.value for test in judge.subtests()] == states
    judge.tick(60.0)
    if right is None:
        assert judge.ruling is not None
        assert judge.ruling.verdict is Verdict.TIMEOUT
        assert judge.ruling.limit == "command_timeout"


def test_a_group_that_nothing_starts_says_so() -> None:
    group = Group("B", "P", "F", "ALL", "NONE", ("a",), ("a",))
    judge = Judge(Rules(success=("^ALL$",), group=group), started=0.0, limits=Limits(whole=9.0))
    judge.feed(b"root@x:/# ", 1.0)
    judge.tick(9.0)
    assert judge.ruling is not None
    assert judge.ruling.reason.startswith("nothing started the group's script within 9 s")


# --- tests in steps -----------------------------------------------------------------------------------------------------

KTAP = "KTAP version 1\r\n1..2\r\nok 1 a\r\n{} 2 b\r\n"


def runs(name: str, *success: str, results: str = "ktap", command: str = "./tests") -> Step:
    return Step(name, prompt="root@x:", command=command, success=success, results=results)


def test_a_step_ends_at_the_prompt_behind_its_tests() -> None:
    guest = Guest(runs("one"), types("./b", "^B$"), runs("two")).prints("boot\r\n", PROMPT).waits()
    assert guest.typed == b"./tests\n"
    guest.prints(*KTAP.format("ok")).waits(9)
    assert guest.typed == b"./tests\n", "the prompt is not back"
    assert [one.name for one in guest.judge.finished_subtests()] == ["one/a", "one/b"]
    guest.prints(PROMPT).waits()
    assert guest.typed == b"./tests\n./b\n"
    guest.prints(f"B\r\n{PROMPT}").waits().prints(KTAP.format("ok"), PROMPT).waits()
    assert guest.verdict is Verdict.PASS
    assert [one.name for one in guest.judge.subtests()] == ["one/a", "one/b", "one", "./b", "two/a", "two/b", "two"]
    assert [one.name for one in guest.judge.finished_subtests()] == ["one", "./b", "two/a", "two/b", "two"]
    assert [one.nested for one in guest.judge.subtests()] == [0, 0, 2, 0, 0, 0, 2]


def test_failed_tests_of_a_step_fail_the_case_when_all_steps_have_ended() -> None:
    guest = Guest(runs("one"), types("./b", "^B$")).prints(PROMPT).waits().prints(KTAP.format("not ok"), PROMPT).waits(3)
    assert guest.typed == b"./tests\n./b\n"
    assert guest.verdict is None
    assert guest.prints("B\r\n").waits().verdict is Verdict.FAIL
    assert guest.reason == "1 of 2 tests failed: one/b"
    assert guest.judge.ruling is not None
    assert guest.judge.ruling.by_tests
    assert guest.states == ["pass", "fail", "fail", "pass"]
    assert guest.judge.subtests()[2].reason == ""
    last = Guest(types("./b", "^B$"), runs("one")).prints(PROMPT).waits().prints(f"B\r\n{PROMPT}").waits()
    assert last.prints(KTAP.format("not ok"), PROMPT).waits(3).reason == "1 of 2 tests failed: one/b"


def test_a_later_step_that_fails_rules_beside_failed_tests() -> None:
    guest = Guest(runs("one"), types("./b", "^B$", fail=("^bad",))).prints(PROMPT).waits()
    guest.prints(KTAP.format("not ok"), PROMPT).waits(3).prints("bad\r\n").waits()
    assert guest.verdict is Verdict.FAIL
    assert guest.reason == "step 2 of 2 (./b): matched the fail pattern '^bad'"
    assert guest.judge.ruling is not None
    assert not guest.judge.ruling.by_tests


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("KTAP version 1\r\n1..3\r\nok 1 a\r\n", "the plan says 3 tests, 1 came"),
        ("nothing\r\n", "no result of a test came"),
        ("KTAP version 1\r\n1..2\r\nok 1 a\r\nok 1 a\r\n", "1"),
    ],
)
def test_results_that_do_not_account_for_themselves_end_the_case(said: str, reason: str) -> None:
    guest = Guest(runs("one"), types("./b", "^B$")).prints(PROMPT).waits().prints(said, PROMPT).waits(9)
    assert guest.verdict is Verdict.FAIL
    assert guest.reason.startswith("step 1 of 2 (one): ")
    assert reason in guest.reason
    assert guest.typed == b"./tests\n"
    assert guest.states[-1] == "not-run"


def test_a_case_is_skipped_if_all_tests_of_all_steps_are() -> None:
    skipped = "1..1\r\nok 1 a # SKIP no card\r\n"
    guest = Guest(runs("one"), runs("two")).prints(PROMPT).waits().prints(skipped, PROMPT).waits(3).prints(skipped, PROMPT)
    assert guest.waits(3).verdict is Verdict.SKIPPED
    assert guest.states == ["skip"] * 4
    guest = Guest(runs("one"), runs("two")).prints(PROMPT).waits().prints(skipped, PROMPT).waits(3)
    assert guest.prints(KTAP.format("ok"), PROMPT).waits(3).verdict is Verdict.PASS
    assert guest.states == ["skip", "skip", "pass", "pass", "pass"]


def test_a_pattern_beside_the_tests_of_a_step_has_to_match_as_well() -> None:
    step, later = runs("one", "^all there$"), types("./b", "^B$")
    guest = Guest(step, later).prints(PROMPT).waits().prints(f"all there\r\n{KTAP.format('ok')}", PROMPT).waits(3)
    assert guest.typed == b"./tests\n./b\n"
    guest = Guest(step, later).prints(PROMPT).waits().prints(KTAP.format("ok"), PROMPT).waits(9)
    assert guest.verdict is Verdict.FAIL
    assert "'^all there$' did not match" in guest.reason


def test_results_of_a_step_are_none_of_another() -> None:
    guest = Guest(types("./b", "^B$"), runs("one")).prints(PROMPT).waits().prints(f"{KTAP.format('ok')}B\r\n{PROMPT}").waits()
    assert guest.typed == b"./b\n./tests\n"
    assert guest.prints(PROMPT).waits(9).verdict is Verdict.FAIL
    assert "no test" in guest.reason or "no result" in guest.reason


def test_a_step_whose_tests_hang_is_broken_and_lists_what_did_not_run() -> None:
    step = Step("one", prompt="root@x:", command="./tests", results="ktap", timeout=5)
    guest = Guest(step, types("./b", "^B$")).prints(PROMPT).waits().prints("KTAP version 1\r\n1..2\r\nok 1 a\r\n").waits(20)
    assert guest.verdict is Verdict.TIMEOUT
    assert guest.states == ["pass", "not-run", "broken", "not-run"]
    assert guest.judge.subtests()[2].name == "one"


def test_a_panic_in_the_tests_of_a_step_is_one() -> None:
    guest = Guest(runs("one"), types("./b", "^B$")).prints(PROMPT).waits().prints("KTAP version 1\r\n1..2\r\nok 1 a\r\n")
    guest.prints("[    1.000000] Kernel panic - not syncing: no\r\n").waits(9)
    assert guest.verdict is Verdict.PANIC


# --- further consoles ---------------------------------------------------------------------------------------------------

ABOVE = "login# "


def second(command: str, *success: str, **more: object) -> Step:
    return types(command, *success, prompt="login#", console="2:", **more)


def test_a_step_types_and_looks_at_its_own_console_alone() -> None:
    guest = Guest(types("./a", "^A$"), second("./b", "^B$"), types("./c", "^C$")).prints(PROMPT, "boot\r\n").waits()
    guest.prints(f"A\r\n{PROMPT}{ABOVE}").waits()
    assert guest.typed == b"./a\n", "the prompt of the second console came on the first"
    guest.prints(ABOVE, on="2:").waits()
    assert guest.typed == b"./a\n2:./b\n"
    guest.prints("B\r\n").waits(3)
    assert guest.verdict is None
    guest.prints(f"B\r\n{ABOVE}", on="2:").waits()
    assert guest.typed == b"./a\n2:./b\n./c\n", "its prompt stood there already"
    assert guest.prints("C\r\n", on="2:").waits(3).verdict is None
    assert guest.prints("C\r\n").waits(3).verdict is Verdict.PASS


def test_what_came_on_a_console_while_no_step_had_it_counts_for_a_step_that_does_not_type() -> None:
    guest = Guest(waits_for("^up$", console="2:"), types("./a", "^A$"), waits_for("^later$", console="2:"))
    guest.prints("up\r\nlater\r\n", on="2:").waits().prints(PROMPT).waits().prints("A\r\n").waits()
    assert guest.verdict is Verdict.PASS
    again = Guest(waits_for("^up$", console="2:"), types("./a", "^A$"), waits_for("^up$", console="2:"))
    again.prints("up\r\n", on="2:").waits().prints(PROMPT).waits().prints("A\r\n").waits(9)
    assert again.verdict is None, "no output is evidence twice"
    assert again.prints("up\r\n", on="2:").waits(3).verdict is Verdict.PASS


@pytest.mark.parametrize("on", ["", "2:"])
def test_a_panic_and_the_fail_patterns_of_the_case_count_on_all_consoles(on: str) -> None:
    steps = (types("./a", "^A$"), second("./b", "^B$")) if on else (second("./b", "^B$"), types("./a", "^A$"))
    panicked = Guest(*steps).prints("[    1.000000] Kernel panic - not syncing: no\r\n", on=on).waits(9)
    assert panicked.verdict is Verdict.PANIC
    failed = Guest(*steps, fail=("^BAD$",)).prints("BAD\r\n", on=on).waits(9)
    assert failed.verdict is Verdict.FAIL
    assert failed.reason.endswith("on the console 2:" if on else "on the first console")
    assert Guest(*steps, fail=("^BAD$",)).prints("GOOD\r\n", on=on).waits(9).verdict is None


def test_the_echo_on_one_console_is_no_evidence_on_it() -> None:
    guest = Guest(types("./a", "^A$"), second("echo B", "B"), types("./c", "^C$")).prints(PROMPT).waits().prints("A\r\n", PROMPT)
    guest.waits().prints(ABOVE, on="2:").waits(3)
    assert guest.typed == b"./a\n2:echo B\n"
    assert guest.prints(f"B\r\n{ABOVE}", on="2:").waits().typed.endswith(b"./c\n")


def test_what_a_console_said_before_an_expected_reset_is_no_evidence_behind_it() -> None:
    reboot = Step("reboot", prompt="root@x:", command="reboot", expect="reboot")
    guest = Guest(reboot, waits_for("^up$", console="2:")).prints(PROMPT).waits().prints("up\r\n", on="2:").resets().waits(9)
    assert guest.verdict is None
    assert guest.prints("up\r\n", on="2:").waits(3).verdict is Verdict.PASS
