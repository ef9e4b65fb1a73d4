"""Groups whose commands lie, die and signal: a script that the test plays, and the real one in real shells."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcase.config.case_file import CaseConfig
from qcase.config.workspace_file import GroupedRunner
from qcase.console.group import OUTPUT_LINE, OUTPUT_LINES, PROBE_DELAY
from qcase.console.judge import Judge
from qcase.console.rules import Limits
from qcase.model import SubtestResult, SubtestStatus, Verdict
from qcase.run import boot_plan
from tests.tools.group_console import PROMPT, WORD, Place, Played

RUNNER = GroupedRunner()
NAME = RUNNER.runner_name
PASS, FAIL, BROKEN, NOT_RUN = SubtestStatus.PASS, SubtestStatus.FAIL, SubtestStatus.BROKEN, SubtestStatus.NOT_RUN


class Script:
    """A guest whose script the test plays. The console echoes unless `echo` is False."""

    def __init__(
        self, *commands: str, fail: tuple[str, ...] = (), word: str = WORD, echo: bool = True, skips: tuple[int, ...] = ()
    ) -> None:
        self.commands = commands
        config = CaseConfig(shell_prefix=PROMPT, test_commands=commands, fail_regex=fail, skip_status=skips)
        self.judge = Judge(boot_plan.group_rules(config, RUNNER, word), started=0.0, limits=Limits(whole=100))
        self.echo = echo
        self.typed = ""
        self.now = 0.0
        self.prints(f"{PROMPT}/# ").waits(2)
        if word:
            self.prints(f"\r\n{NAME}: ask 77\r\n")

    def prints(self, text: str) -> Script:
        self.now += 0.01
        self.judge.feed(text.encode(), self.now)
        return self.types()

    def types(self) -> Script:
        while keys := self.judge.input():
            self.typed += keys.decode()
            if self.echo:
                self.now += 0.001
                self.judge.feed(keys.replace(b"\n", b"\r\n"), self.now)
        return self

    def waits(self, seconds: float) -> Script:
        until = self.now + seconds
        while self.judge.ruling is None and (wake := self.judge.next_wake()) is not None and wake <= until:
            self.now = max(self.now, wake)
            self.judge.tick(self.now)
            self.types()
        self.now = until
        self.judge.tick(until)
        return self.types()

    def says(self, what: str) -> Script:
        return self.prints(f"\r\n{NAME}: {WORD} {what}\r\n")

    def begins(self, number: int) -> Script:
        return self.says(f"begin {number}").prints(f"{RUNNER.begin_marker}: {self.commands[number - 1]}\r\n")

    def ends(self, number: int, status: int = 0) -> Script:
        self.says(f"end {number} {status}")
        marker = f"{RUNNER.failed_marker}: {{}} status={status}" if status else f"{RUNNER.passed_marker}: {{}}"
        return self.prints(f"{marker.format(self.commands[number - 1])}\r\n")

    def runs(self, number: int, output: str = "", status: int = 0) -> Script:
        return self.begins(number).prints(output).ends(number, status) if output else self.begins(number).ends(number, status)

    def done(self, *statuses: int) -> Script:
        self.says(f"done {' '.join(map(str, statuses))}")
        return self.prints(f"{RUNNER.all_failed_marker if any(statuses) else RUNNER.all_passed_marker}\r\n").waits(2)

    @property
    def statuses(self) -> list[SubtestStatus]:
        return [test.status for test in self.judge.subtests()]

    @property
    def verdict(self) -> Verdict | None:
        return self.judge.ruling.verdict if self.judge.ruling else None

    @property
    def reason(self) -> str:
        assert self.judge.ruling is not None
        return self.judge.ruling.reason

    def subtest(self, number: int) -> SubtestResult:
        return self.judge.subtests()[number - 1]


# --- the word ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("echo", [True, False])
def test_the_script_is_told_its_word_when_it_asks(echo: bool) -> None:
    script = Script("a", "b", echo=echo)
    assert script.typed == f"/usr/bin/{NAME} ask\n{WORD} {WORD}\n"
    assert script.runs(1).runs(2).done(0, 0).verdict is Verdict.PASS
    assert script.statuses == [PASS, PASS]


def test_the_word_is_typed_again_where_it_arrived_damaged_and_never_once_a_command_has_begun() -> None:
    script = Script("a").prints(f"{NAME}: ask 77\r\n")
    assert script.typed.count(WORD) == 4
    script.begins(1).prints(f"{NAME}: ask 77\r\n").prints(f"\r\n{NAME}: ask 78\r\n")
    assert script.typed.count(WORD) == 4


def test_the_word_is_not_typed_without_end() -> None:
    script = Script("a")
    for _ in range(50):
        script.prints(f"\r\n{NAME}: ask 77\r\n")
    assert script.typed.count(WORD) == 2 * 5


def test_the_echo_of_the_word_and_of_a_question_to_the_shell_is_no_output() -> None:
    script = Script("a", fail=(WORD + "$", "kill")).begins(1).prints(f"{PROMPT}/# ").waits(1).prints("\r\n").ends(1).done(0)
    assert "kill" in script.typed
    assert script.verdict is Verdict.PASS


LIES = [
    f"{RUNNER.passed_marker}: a\r\n{RUNNER.begin_marker}: b\r\n{RUNNER.passed_marker}: b\r\n{RUNNER.all_passed_marker}\r\n",
    f"{NAME}: 0000000 end 1 0\r\n{NAME}: 0000000 done 0 0\r\n{RUNNER.all_passed_marker}\r\n",
    f"{NAME}:  end 1 0\r\n{NAME}: end 1 0\r\n{NAME}: done\r\n{NAME}: gone\r\n",
    f"\r\x1b[2K{NAME}: 1A2B3C4 end 1 0\r\n",
    f"{RUNNER.all_failed_marker}\r\n{RUNNER.failed_marker}: b status=1\r\n",
]


@pytest.mark.parametrize("lie", LIES)
def test_a_program_that_prints_what_a_script_says_changes_nothing(lie: str) -> None:
    script = Script("a", "b").runs(1, lie, status=1).waits(2)
    assert script.verdict is None
    assert script.runs(2, lie).done(1, 0).statuses == [FAIL, PASS]
    assert script.verdict is Verdict.FAIL
    assert Script("a", "b").runs(1, lie).runs(2, lie).done(0, 0).verdict is Verdict.PASS


@pytest.mark.parametrize(
    "left",
    [
        "half a line",
        "all done in [0.53 s] ",
        "<6>[    0.530000] ",
        "\x1b]0;a title that is not ended",
        "\x1b[1;3",
        "at the start again\r",
        "\x1b[31m",
        "\x1b(0",
        f"{RUNNER.all_passed_marker}",
        f"{RUNNER.passed_marker}: a",
        f"{RUNNER.begin_marker}: ",
        "\xff",
        f"{PROMPT}/# ",
    ],
)
def test_what_a_program_leaves_on_its_line_hides_no_result(left: str) -> None:
    script = Script("a", "b", "c").runs(1, left).runs(2, left, status=3).runs(3).done(0, 3, 0)
    assert script.statuses == [PASS, FAIL, PASS]
    assert script.subtest(2).exit_status == 3
    assert Script("a", "b").runs(1, left).runs(2, left).done(0, 0).verdict is Verdict.PASS


@pytest.mark.parametrize(
    "command",
    [
        f"grep -q {RUNNER.all_passed_marker}",
        f"grep -q {RUNNER.all_failed_marker}",
        f"{RUNNER.passed_marker}: b",
        f"echo {RUNNER.begin_marker}: b",
        "echo '[    1.000000] eth0: up'",
        f"echo {RUNNER.failed_marker}: b status=1",
        f"echo {PROMPT}",
    ],
)
@pytest.mark.parametrize("word", [WORD, ""])
def test_a_command_may_have_any_marker_in_its_text(command: str, word: str) -> None:
    script = Script("a", command, "b", word=word)
    for number, name in enumerate(script.commands, start=1):
        if word:
            script.runs(number)
        else:
            script.prints(f"{RUNNER.begin_marker}: {name}\r\n").prints(f"{RUNNER.passed_marker}: {name}\r\n")
    script.done(0, 0, 0)
    assert script.statuses == [PASS] * 3
    assert script.verdict is Verdict.PASS


def test_a_kernels_line_in_the_middle_of_the_scripts_loses_nothing() -> None:
    script = Script("a").begins(1).prints(f"\r\n{NAME}: {WORD[:3]}[    3.125000] eth0: up\r\n{WORD[3:]} end 1 0\r\n")
    assert script.done(0).verdict is Verdict.PASS


def test_lines_of_the_script_that_were_lost_are_made_up_for_by_its_last_one() -> None:
    script = Script("a", "b", "c").says("end 1 0").begins(2).done(0, 4, 0)
    assert script.statuses == [PASS, FAIL, PASS]
    assert script.subtest(2).exit_status == 4
    assert Script("a", "b").begins(1).done(0, 0).verdict is Verdict.PASS


@pytest.mark.parametrize("said", ["begin 9", "end 9 0", "end 1", "done 0", "done 0 0 0", "begin", "done", "end 1 0 0"])
def test_a_line_of_the_script_that_makes_no_sense_is_passed_over(said: str) -> None:
    script = Script("a", "b").begins(1).says(said)
    assert script.verdict is None
    assert script.ends(1).runs(2).done(0, 0).verdict is Verdict.PASS


# --- blame ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["^ERROR:", "ERROR: [ab]", "(?s)ERROR.*wrong", r"ERROR:\s+\w"])
def test_a_fail_pattern_blames_every_command_whose_output_it_matches(pattern: str) -> None:
    script = Script("a", "b", "c", fail=(pattern,))
    script.runs(1, "fine\r\nERROR: a went wrong\r\nERROR: a again\r\n").runs(2, "ERROR: b went wrong\r\n").runs(3, "fine\r\n")
    assert script.done(0, 0, 0).statuses == [FAIL, FAIL, PASS]
    assert script.reason == "2 of 3 commands failed: a, b"
    assert script.subtest(2).reason == f"matched the fail pattern {pattern!r}"
    assert script.subtest(2).output == ("ERROR: b went wrong",)


def test_all_in_one_piece_blames_the_same_commands() -> None:
    script = Script("a", "b", "c", "d", fail=("^ERROR:",))
    pieces = []
    script.prints, whole = (lambda text: pieces.append(text) or script), script.prints  # type: ignore[func-returns-value, method-assign]
    script.runs(1, "ERROR: a\r\n").runs(2).runs(3, "ERROR: c", status=1).runs(4, "ERROR: d\r\n")
    script.prints = whole  # type: ignore[method-assign]
    assert script.prints("".join(pieces)).done(0, 0, 1, 0).statuses == [FAIL, PASS, FAIL, FAIL]
    assert [test.status for test in script.judge.finished_subtests()] == [FAIL, PASS, FAIL, FAIL]


def test_a_pattern_matches_a_line_that_a_program_did_not_end() -> None:
    script = Script("a", "b", fail=("^ERROR$",)).runs(1, "ERROR").runs(2, "ERROR").done(0, 0)
    assert script.statuses == [FAIL, FAIL]


def test_what_comes_between_commands_fails_the_group_and_nobody_in_it() -> None:
    script = Script("a", "b", fail=("^ERROR",)).runs(1).prints("ERROR: of a service\r\n").runs(2).done(0, 0)
    assert (script.verdict, script.statuses) == (Verdict.FAIL, [PASS, PASS])


def test_a_status_and_a_fail_pattern_are_both_said() -> None:
    script = Script("a", fail=("^ERROR",)).runs(1, "ERROR\r\n", status=139).done(139)
    assert script.subtest(1).reason == "killed by signal 11; matched the fail pattern '^ERROR'"


# --- output -----------------------------------------------------------------------------------------------------------


def test_a_command_that_failed_has_its_last_lines_and_no_line_of_the_scripts() -> None:
    script = Script("a", "b").runs(1, "of a\r\n").runs(2, "\r\nfirst\r\nsecond\r\n\r\nwithout end", status=1).done(0, 1)
    assert script.subtest(1).output == ()
    assert script.subtest(2).output == ("first", "second", "", "without end")


def test_a_line_that_matched_before_it_ended_stands_in_the_output_once() -> None:
    script = Script("a", fail=("^ERROR:",)).begins(1).prints("ERROR:").waits(0.6).prints(" three\r\n").ends(1).done(0)
    assert script.subtest(1).output == ("ERROR: three",)


def test_the_output_is_bounded_and_has_what_was_matched_wherever_that_stood() -> None:
    script = Script("a", fail=("^ERROR",))
    script.begins(1).prints("ERROR: early\r\n" + "".join(f"{i} {'x' * 5000}\r\n" for i in range(100))).ends(1).done(0)
    output = script.subtest(1).output
    assert output[:2] == ("ERROR: early", "…")
    assert len(output) == OUTPUT_LINES + 2
    assert output[-1].startswith("99 x")
    assert max(map(len, output)) == OUTPUT_LINE


def test_a_command_that_hangs_has_also_the_line_that_it_did_not_end() -> None:
    script = Script("a", "b").runs(1, "of a\r\n").begins(2).prints("one\r\nwaiting for ").waits(200)
    assert script.verdict is Verdict.TIMEOUT
    assert script.subtest(2).status is BROKEN
    assert script.subtest(2).output == ("one", "waiting for")


# --- a script that is gone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "fail", "verdict", "tests"),
    [
        ((0, 4), (), Verdict.PASS, "pass skip"),
        ((4, 4), (), Verdict.SKIPPED, "skip skip"),
        ((4, 7), (), Verdict.FAIL, "skip fail"),
        ((5, 0), (), Verdict.FAIL, "fail pass"),
        ((4, 4), ("^out",), Verdict.FAIL, "fail fail"),
    ],
)
def test_a_status_by_which_a_command_is_skipped(
    statuses: tuple[int, int], fail: tuple[str, ...], verdict: Verdict, tests: str
) -> None:
    script = Script("a", "b", skips=(4,), fail=fail)
    for number, status in enumerate(statuses, 1):
        script.runs(number, "out\r\n", status)
    script.says(f"done {statuses[0]} {statuses[1]}").prints(RUNNER.all_failed_marker + "\r\n").waits(3)
    assert script.judge.ruling is not None
    assert script.judge.ruling.verdict is verdict
    assert " ".join(one.status for one in script.judge.subtests()) == tests
    if verdict is Verdict.SKIPPED:
        assert script.judge.ruling.reason == "all 2 commands were skipped"


def test_a_group_tells_whether_its_commands_alone_are_the_reason_of_a_fail() -> None:
    def by_tests(script: Script) -> bool:
        script.waits(3)
        assert script.judge.ruling is not None
        assert script.judge.ruling.verdict is Verdict.FAIL
        return script.judge.ruling.by_tests

    done = Script("a", "b").runs(1, status=1).runs(2).says("done 1 0")
    assert by_tests(done)
    assert by_tests(Script("a", "b", fail=("^BAD",)).runs(1, "BAD\r\n").runs(2).says("done 0 0"))
    assert not by_tests(Script("a", "b", fail=("^BAD",)).runs(1, status=1).says("done 1 1").prints("BAD\r\n"))
    assert not by_tests(Script("a", fail=("^BAD",)).prints("BAD\r\n").runs(1, status=1).says("done 1"))
    gone = Script("a", "b").runs(1, status=1).begins(2).prints(f"{PROMPT}/# ").waits(5).prints(f"{NAME}: gone\r\n")
    assert not by_tests(gone)


def test_a_prompt_that_comes_back_has_the_shell_asked_and_a_script_that_is_gone_ends_the_group() -> None:
    script = Script("a", "kill -9 -1", "b").runs(1).begins(2).prints(f"\r\n{PROMPT}/# ").waits(PROBE_DELAY + 0.1)
    assert script.typed.endswith(f"kill -CONT 77 2>/dev/null || echo {NAME}: g''one\n")
    assert script.verdict is None
    script.prints(f"{NAME}: gone\r\n{PROMPT}/# ").waits(1)
    assert script.reason == "kill -9 -1 ended the group's script"
    assert script.statuses == [PASS, BROKEN, NOT_RUN]
    assert script.subtest(2).reason == "it ended the group's script"


def test_a_program_that_prints_a_prompt_has_the_shell_asked_a_few_times_and_nothing_more() -> None:
    script = Script("a").begins(1)
    for _ in range(20):
        script.prints(f"{PROMPT}/# ").waits(1)
    assert script.typed.count("kill") == 3
    assert script.ends(1).done(0).verdict is Verdict.PASS


def test_a_prompt_behind_which_the_script_goes_on_at_once_has_nobody_asked() -> None:
    script = Script("a", "b").begins(1).prints(f"{PROMPT}/# ").ends(1).waits(3).runs(2).done(0, 0)
    assert "kill" not in script.typed
    assert script.verdict is Verdict.PASS


def test_a_script_that_cannot_be_started_ends_the_group_at_once() -> None:
    script = Script("a", word="")
    assert script.prints(f"sh: {NAME}: not found\r\n{PROMPT}/# ").waits(3).verdict is None  # its suite may call it otherwise
    config = CaseConfig(shell_prefix=PROMPT, test_commands=("a",))
    script.judge = Judge(boot_plan.group_rules(config, RUNNER, WORD), started=script.now, limits=Limits(whole=100))
    script.prints(f"{PROMPT}/# ").waits(2).prints(f"sh: {NAME}: not found\r\n{PROMPT}/# ").waits(1)
    assert script.typed.endswith(f"echo {NAME}: g''one\n")
    script.prints(f"{NAME}: gone\r\n").waits(1)
    assert (script.verdict, script.reason) == (Verdict.FAIL, "the group's script did not start")
    assert script.statuses == [NOT_RUN]


def test_a_script_that_is_told_nothing_ends_the_group_and_no_command_can_say_so() -> None:
    script = Script("a").prints(f"{NAME}: no answer\r\n").waits(1)
    assert (script.verdict, script.statuses) == (Verdict.FAIL, [NOT_RUN])
    assert "did not reach it" in script.reason
    assert Script("a").runs(1, f"{NAME}: no answer\r\n").done(0).verdict is Verdict.PASS


def test_a_fail_pattern_and_a_script_that_is_gone_are_both_said() -> None:
    script = Script("a", "b", fail=("^ERROR",)).runs(1, "ERROR\r\n").begins(2).prints(f"{PROMPT}/# ").waits(1)
    script.prints(f"{NAME}: gone\r\n").waits(1)
    assert script.reason == "b ended the group's script; 1 of 2 commands failed: a"


# --- a runner that is called in a way of its own ----------------------------------------------------------------------


def test_a_runner_that_is_called_in_a_way_of_its_own_needs_no_word() -> None:
    script = Script("a", "b", word="")
    for name in script.commands:
        script.prints(f"{RUNNER.begin_marker}: {name}\r\nx\r\n{RUNNER.passed_marker}: {name}\r\n")
    script.prints(f"{RUNNER.all_passed_marker}\r\n").waits(1)
    assert script.verdict is Verdict.PASS
    assert script.typed == f"/usr/bin/{NAME}\n"


@pytest.mark.parametrize("word", [WORD, ""])
def test_a_status_of_more_digits_than_an_int_is_read_from_is_no_status(word: str) -> None:
    script = Script("a", word=word).begins(1) if word else Script("a", word="").prints(f"{RUNNER.begin_marker}: a\r\n")
    script.prints(f"{RUNNER.failed_marker}: a status={'9' * 6000}\r\n{NAME}: {word} end 1 {'9' * 6000}x\r\n")
    assert script.subtest(1).status is BROKEN


# --- the real script --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shell:
    name: str
    terminal: bool = True
    echo: bool = True

    def play(self, folder: Path, *commands: str, fail: tuple[str, ...] = (), limit: float | None = None) -> Played:
        command = {"dash": ("dash",), "bash": ("bash", "--norc", "--posix")}[self.name]
        place = Place(command, terminal=self.terminal, echo=self.echo)
        return place.play(folder, *commands, fail=fail, limits=Limits(whole=60, command=limit))

    def __str__(self) -> str:
        return f"{self.name}{'' if self.terminal else ', no terminal'}{'' if self.echo else ', no echo'}"


SHELLS = [Shell("dash"), Shell("bash"), Shell("dash", terminal=False), Shell("dash", echo=False)]
every_shell = pytest.mark.parametrize("shell", SHELLS, ids=str)


@every_shell
def test_commands_that_signal_print_and_leave_things_behind_have_each_their_own_result(shell: Shell, tmp_path: Path) -> None:
    script = f"{tmp_path}/usr/bin/{NAME}"
    commands = {
        "echo ERROR: one": 0,
        "kill -HUP 0; echo not reached": 129,
        "trap '' HUP; kill -HUP 0; echo ERROR: two": 0,
        "kill -TERM $PPID; kill -HUP $PPID; kill -USR1 $PPID; exit 3": 3,
        "printf 'all done in [0.53 s] '": 0,
        f"(sleep 0.3; printf '{RUNNER.all_passed_marker}\\n{RUNNER.passed_marker}: x\\nhalf\\r') & exit 5": 5,
        f"grep -q {RUNNER.all_passed_marker} {script}": 0,
        f"printf 'exit 0\\n' >{script}; sleep 0.5": 0,
        "stty raw 2>/dev/null; printf 'no end'": 0,
        "printf '\\033]0;open'": 0,
        "set -a; word=0000000; PATH=/nowhere; ulimit -n 1; false": 1,
        "exec 1>&- 2>&-; exit 4": 4,
        "/nowhere/program": 127,
        "echo last": 0,
    }
    played = shell.play(tmp_path, *commands, fail=("^ERROR:",))
    assert [test.exit_status for test in played.subtests] == list(commands.values()), played.text
    failed = [test.name for test in played.subtests if test.status is FAIL]
    assert failed == [c for c, status in commands.items() if status or "ERROR" in c]
    assert played.ruling.verdict is Verdict.FAIL
    assert played.seconds < 30


@every_shell
def test_no_program_can_read_the_word(shell: Shell, tmp_path: Path) -> None:
    """It is in no command line and no environment, nor in a file of the script's folder; the control finds what is there."""
    seek = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c"
    pattern = f"{WORD[:3]}[{WORD[3]}]{WORD[4:]}"
    control = f"[ $({seek} MARK={tmp_path}) -gt 2 ]"
    played = shell.play(tmp_path, f"{seek} '{pattern}'", control, f"grep -r '{pattern}' .")
    assert [test.exit_status for test in played.subtests] == [1, 0, 1], played.text


def test_a_variable_of_the_guests_environment_that_is_called_like_the_words_keeps_it_from_nobody(tmp_path: Path) -> None:
    place = Place(("dash",), environment={"word": "x", "again": "y", "rest": "z", "WORD": "w"})
    played = place.play(tmp_path, f"env | grep {WORD} && exit 1; true")
    assert played.ruling.verdict is Verdict.PASS, played.text


@every_shell
def test_a_command_that_kills_the_script_ends_the_group_at_once(shell: Shell, tmp_path: Path) -> None:
    played = shell.play(tmp_path, "echo a", "kill -9 $PPID; sleep 0.2; echo late", "echo b")
    if shell.name == "bash":  # there it is a subshell that is killed
        assert [test.exit_status for test in played.subtests] == [0, 137, 0], played.text
        return
    assert played.statuses == [PASS, BROKEN, NOT_RUN], played.text
    assert played.subtests[1].reason == "it ended the group's script"
    assert played.seconds < 20


@pytest.mark.parametrize("shell", SHELLS[:3], ids=str)
def test_a_command_that_takes_too_long_is_killed_with_its_process_group(shell: Shell, tmp_path: Path) -> None:
    commands = (
        "trap '' TERM INT; while :; do :; done",
        "(sleep 1971 & exec sleep 1972) & sleep 1973",
        "kill -STOP $$",
        "echo last",
    )
    played = shell.play(tmp_path, *commands, limit=1)
    assert [test.exit_status for test in played.subtests][:2] == [124, 124], played.text
    assert played.subtests[0].reason == "killed after its limit of 1 s"
    assert played.statuses == [FAIL, FAIL, FAIL, PASS]
    assert played.seconds < 30


def test_a_command_has_the_terminal(tmp_path: Path) -> None:
    """It is in the foreground of the terminal, which it can open and would read from, and signals have their usual effect."""
    foreground = 'read -r line </proc/$$/stat; set -- ${line##*) }; [ "$3" = "$6" ]'
    commands = ("echo there >/dev/tty", foreground, "[ -t 0 ] && [ -t 1 ]", "kill -INT $$", "stty size >/dev/null", "kill -INT 0")
    for shell in SHELLS[:2]:
        folder = tmp_path / shell.name
        folder.mkdir()
        played = shell.play(folder, *commands)
        assert [test.exit_status for test in played.subtests] == [0, 0, 0, 130, 0, 130], played.text


def test_a_guest_without_setsid_stty_and_sleep_runs_a_group(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for program in ("dash", "sh", "cat"):
        (bare / program).symlink_to(shutil.which(program) or "")
    for terminal in (True, False):
        folder = tmp_path / str(terminal)
        folder.mkdir()
        played = Place(("dash",), terminal=terminal, path=str(bare)).play(folder, "cat /dev/null", "exit 3", "echo x")
        assert played.statuses == [PASS, FAIL, PASS], played.text
        assert played.ruling.verdict is Verdict.FAIL


def test_a_group_of_which_all_pass_passes_in_every_shell(tmp_path: Path) -> None:
    for number, shell in enumerate(SHELLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        played = shell.play(folder, "echo a", "x=1\necho $x", "cat /proc/self/stat", limit=20)
        assert (played.ruling.verdict, played.statuses, played.warnings) == (Verdict.PASS, [PASS] * 3, ()), played.text


@pytest.mark.parametrize("shell", [*SHELLS[:3]], ids=str)
def test_a_limit_costs_no_time_and_says_nothing(shell: Shell, tmp_path: Path) -> None:
    """A watchdog that is called off before it is ready would sleep to its end."""
    played = shell.play(tmp_path, *["true"] * 100, limit=50)
    assert (played.ruling.verdict, played.statuses) == (Verdict.PASS, [PASS] * 100), played.text
    assert played.seconds < 45
    said = played.text.replace("\r", "").partition(f"{WORD} begin 1\n")[2].partition(f"{WORD} done")[0]
    others = [line for line in said.splitlines() if line and not line.startswith(("QCASE_GROUPED_", f"{NAME}: {WORD} "))]
    assert others == [f"{NAME}: "]  # what stands before the last one


def test_a_commands_own_text_is_no_output_that_a_fail_pattern_sees() -> None:
    script = Script("test FAIL", "b", fail=("FAIL",))
    assert script.runs(1, "fine\r\n").runs(2, "fine\r\n").done(0, 0).statuses == [PASS, PASS]
    script = Script("test FAIL", "b", fail=("FAIL",))
    for number in (1, 2):
        for marker in (RUNNER.begin_marker, RUNNER.passed_marker):
            script.says(f"begin {number}" if marker == RUNNER.begin_marker else f"end {number} 0")
            for part in f"{marker}: {script.commands[number - 1]}\r\n":
                script.prints(part)
    assert script.done(0, 0).statuses == [PASS, PASS]
    script = Script("test FAIL", "b", fail=("FAIL",))
    assert script.runs(1, "QCASE_GROUPED_TEST_BEGIN: test FAIL\r\n").runs(2, "fine\r\n").done(0, 0).statuses == [FAIL, PASS]
