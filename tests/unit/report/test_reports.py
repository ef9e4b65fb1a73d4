"""What a person and what a program is told of a run, from events alone."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from qcase import events
from qcase.arch import Arch
from qcase.errors import QcaseError
from qcase.model import (
    Booted,
    Cache,
    CaseResult,
    Fault,
    KernelBuildResult,
    KernelTrouble,
    NotRun,
    Phase,
    Pipeline,
    SubtestResult,
    SubtestStatus,
    Verdict,
)
from qcase.report.json_report import JsonReport, case_document
from qcase.report.terminal import TerminalReport

PASSED = CaseResult(
    "normal/smoke",
    Arch.X86_64,
    Verdict.PASS,
    Fault.NONE,
    pipeline=Pipeline.PLAIN,
    cache=Cache.NONE,
    phase=Phase.COMMAND,
    prepare=0.0041,
    boot=3.911,
    command=0.62,
    total=4.6,
)
FAILED = CaseResult(
    "normal/futex",
    Arch.X86_64,
    Verdict.FAIL,
    Fault.CASE,
    "matched the fail pattern '^FAIL'",
    pipeline=Pipeline.C,
    cache=Cache.MISS,
    phase=Phase.COMMAND,
    pattern="^FAIL",
    excerpt="FAIL: woken 2 of 3",
    prepare=12.3,
    boot=3.9,
    command=200.0,
    total=216.2,
    console_log="target/qcase/logs/x86_64/normal/futex/console.log",
    console_tail=("root@qcase:/# test-futex", "", "", "FAIL: woken 2 of 3 \x1b[2J \x07"),
    warnings=("suite/normal/futex/qemu-x86_64.toml:3: unknown key 'timout'",),
)
GROUP = CaseResult(
    "normal/syscalls",
    Arch.X86_64,
    Verdict.FAIL,
    Fault.CASE,
    "1 of 3 commands failed: /usr/bin/b (status 7)",
    pipeline=Pipeline.GROUPED,
    cache=Cache.HIT,
    subtests=(
        SubtestResult("/usr/bin/a", "/usr/bin/a", SubtestStatus.PASS, 0, 0.25),
        SubtestResult("/usr/bin/b", "/usr/bin/b", SubtestStatus.FAIL, 7, 1.5, output=("wanted 3", "got \x1b[2J 4")),
        SubtestResult("/usr/bin/c", "/usr/bin/c", SubtestStatus.NOT_RUN),
    ),
)
BROKEN = CaseResult(
    "normal/sysctl", Arch.X86_64, Verdict.ERROR, Fault.CONFIG, "suite/normal/sysctl/qemu-x86_64.toml:1: is not TOML"
)


def told(*results: CaseResult, interrupted: bool = False) -> str:
    stream = io.StringIO()
    report = TerminalReport(stream, lambda cases, _: "qcase run " + " ".join(cases))
    report(events.RunStarted(Arch.X86_64, "x86_64-unknown-none", tuple(result.case for result in results)))
    for result in results:
        report(events.CaseStarted(result.case))
        report(events.PhaseStarted(result.case, Phase.BOOT))
        report(events.ConsoleLine(result.case, "a line that only a terminal shows"))
        report(events.CaseFinished(result))
    report(events.RunFinished(results, 74.2, interrupted))
    return stream.getvalue()


def test_a_result_is_one_line_with_pipeline_hit_or_miss_and_times_apart() -> None:
    lines = told(PASSED).splitlines()
    assert lines[0] == "1 case on x86_64, target x86_64-unknown-none, accel tcg"
    assert lines[1] == "pass         normal/smoke  plain            prepare 0.004 s   boot 3.91 s   command 0.62 s"
    assert lines[2:] == ["1 case in 74.2 s: 1 passed"]


def test_a_failure_says_pattern_excerpt_warnings_last_lines_and_where_the_rest_is() -> None:
    out = told(FAILED)
    assert "fail         normal/futex  c, miss          prepare 12.3 s   boot 3.90 s   command 3 min 20 s" in out
    for line in (
        "matched the fail pattern '^FAIL'",
        "> FAIL: woken 2 of 3",
        "warning: suite/normal/futex/qemu-x86_64.toml:3: unknown key 'timout'",
        "| root@qcase:/# test-futex",
        "all of it: target/qcase/logs/x86_64/normal/futex/console.log",
    ):
        assert f"\n             {line}\n" in out
    assert "repeat just the failures: qcase run normal/futex\n" in out


def test_subtests_of_a_failure_are_listed_with_status_and_time() -> None:
    out = told(GROUP)
    assert "             pass     /usr/bin/a  0.25 s\n" in out
    assert "             fail     /usr/bin/b (status 7)  1.50 s\n" in out
    assert "             not-run  /usr/bin/c\n" in out


def test_a_command_that_failed_shows_what_it_printed() -> None:
    assert "(status 7)  1.50 s\n                      | wanted 3\n                      | got \ufffd[2J 4\n" in told(GROUP)


def inner(name: str, status: SubtestStatus, reason: str = "") -> SubtestResult:
    return SubtestResult(name, "", status, duration=0.1, reason=reason)


def test_of_many_subtests_those_that_did_not_pass_are_listed_and_the_others_counted() -> None:
    tests = [inner(f"t{number}", SubtestStatus.PASS) for number in range(30)]
    tests += [inner("bad", SubtestStatus.FAIL), inner("off", SubtestStatus.SKIP, "no card"), inner("31", SubtestStatus.NOT_RUN)]
    text = told(replace(FAILED, subtests=tuple(tests)))
    assert "33 subtests: 30 pass, 1 fail, 1 skip, 1 not-run" in text
    assert re.search(r"^ +fail +bad  0\.10 s$", text, re.MULTILINE)
    assert re.search(r"^ +skip +off: no card  0\.10 s$", text, re.MULTILINE)
    assert not re.search(r"^ +(pass +t1|not-run +31)\b", text, re.MULTILINE)
    many = tuple(inner(f"bad{number}", SubtestStatus.FAIL) for number in range(70))
    text = told(replace(FAILED, subtests=many))
    assert "the first 50 that did not pass" in text
    assert "bad49" in text
    assert "bad50" not in text


def test_a_case_that_passed_says_that_some_of_its_tests_did_not() -> None:
    text = told(replace(PASSED, subtests=(inner("a", SubtestStatus.PASS), inner("b", SubtestStatus.SKIP))))
    assert "2 subtests: 1 pass, 1 skip" in text
    assert "subtests" not in told(replace(PASSED, subtests=(inner("a", SubtestStatus.PASS),)))


def test_what_a_guest_prints_cannot_steer_the_terminal_or_a_pipe() -> None:
    out = told(FAILED)
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "FAIL: woken 2 of 3 \ufffd[2J \ufffd" in out


def test_without_a_terminal_there_are_no_live_lines_and_no_line_is_broken() -> None:
    long = "x" * 500
    out = told(PASSED, BROKEN.__class__(**{**BROKEN.__dict__, "reason": long}))
    assert "a line that only a terminal shows" not in out
    assert long in out


def test_blank_lines_of_a_console_are_squeezed() -> None:
    tail = re.findall(r"^ +\|.*$", told(FAILED), re.MULTILINE)
    assert len(tail) == 3


def test_the_summary_counts_every_verdict_and_says_when_it_was_interrupted() -> None:
    out = told(PASSED, FAILED, GROUP, BROKEN, interrupted=True)
    assert "4 cases in 74.2 s: 1 passed, 2 failed, 1 in error" in out
    assert "interrupted; this had finished by then:" in out
    assert "qcase run normal/futex normal/syscalls normal/sysctl" in out


def test_an_interrupted_run_says_how_much_of_it_did_not_end() -> None:
    stream = io.StringIO()
    report = TerminalReport(stream, lambda *_: "")
    report(events.RunStarted(Arch.X86_64, "t", ("normal/smoke", "normal/b", "normal/c")))
    report(events.RunFinished((PASSED,), 74.2, True))
    assert "interrupted; 2 of 3 did not end; this had finished by then:\n1 case in 74.2 s: 1 passed\n" in stream.getvalue()


def test_colours_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[32mpass" in told(PASSED)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", told(PASSED))


def write_json(path: Path, *results: CaseResult, interrupted: bool = False) -> dict[str, object]:
    report = JsonReport(path)
    report(events.RunStarted(Arch.X86_64, "x86_64-unknown-none", ()))
    report(events.RunFinished(results, 1.0, interrupted))
    document = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def test_json_holds_all_that_the_terminal_says(tmp_path: Path) -> None:
    document = write_json(tmp_path / "r.json", PASSED, FAILED, GROUP)
    assert document["format"] == 1
    assert document["exit_code"] == 1
    cases = document["cases"]
    assert isinstance(cases, list)
    assert [case["verdict"] for case in cases] == ["pass", "fail", "fail"]
    assert cases[0]["times"] == {"prepare": 0.0041, "boot": 3.911, "command": 0.62, "total": 4.6}
    assert (cases[0]["pipeline"], cases[0]["cache"]) == ("plain", "none")
    assert (cases[1]["pattern"], cases[1]["excerpt"]) == ("^FAIL", "FAIL: woken 2 of 3")
    assert cases[2]["subtests"][1] == {
        "name": "/usr/bin/b",
        "command": "/usr/bin/b",
        "status": "fail",
        "exit_status": 7,
        "seconds": 1.5,
        "reason": "",
        "known": "",
        "output": ["wanted 3", "got \x1b[2J 4"],
    }


@pytest.mark.parametrize(
    ("results", "interrupted", "code"),
    [
        ((), False, 0),
        ((PASSED,), False, 0),
        ((PASSED, FAILED), False, 1),
        ((FAILED, BROKEN), False, 2),
        ((BROKEN, CaseResult("x", Arch.X86_64, Verdict.ERROR, Fault.INFRA), FAILED), False, 3),
        ((PASSED,), True, 130),
    ],
)
def test_the_gravest_exit_code_wins(results: tuple[CaseResult, ...], interrupted: bool, code: int) -> None:
    assert events.RunFinished(results, 1.0, interrupted).exit_code == code


def test_json_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("the old one")
    report = JsonReport(path)
    report(events.RunStarted(Arch.X86_64, "t", ()))
    assert json.loads(path.read_text()) | {"complete": False, "cases": []} == json.loads(path.read_text())
    report(events.RunFinished((PASSED,), 1.0))
    assert json.loads(path.read_text())["cases"]
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_folder_that_is_not_there_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(QcaseError):
        JsonReport(tmp_path / "gone" / "r.json")


def test_a_device_is_written_to_and_never_replaced() -> None:
    report = JsonReport(Path("/dev/full"))
    report(events.RunStarted(Arch.X86_64, "t", ()))
    with pytest.raises(QcaseError, match="No space left on device"):
        report(events.RunFinished((PASSED,), 1.0))
    assert Path("/dev/full").is_char_device()


def test_what_was_booted_is_in_the_report_and_said_by_a_verbose_run(tmp_path: Path) -> None:
    booted = Booted("/ws/out/kernel", "a1b2c3d4e5f6" + "0" * 52, "tcg", "/usr/share/OVMF/OVMF_CODE_4M.fd", "f" * 64)
    result = replace(PASSED, booted=booted)
    document = case_document(result)["booted"]
    assert document["kernel_sha256"] == booted.kernel_sha256
    assert document["firmware_sha256"] == "f" * 64
    stream = io.StringIO()
    report = TerminalReport(stream, lambda *_: "", verbosity=1)
    report(events.RunStarted(Arch.X86_64, "x86_64-unknown-none", (result.case,), "auto"))
    report(events.AccelChosen("tcg", "KVM hung"))
    report(events.CaseStarted(result.case))
    report(events.CaseFinished(result))
    said = stream.getvalue()
    assert "accel auto\n" in said
    assert "accel auto: tcg, since KVM hung\n" in said
    assert "kernel /ws/out/kernel (a1b2c3d4e5f6), by tcg, firmware /usr/share/OVMF/OVMF_CODE_4M.fd (ffffffffffff)\n" in said
    assert "a1b2c3d4e5f6" not in told(result)


OOPS = KernelTrouble(
    "oops", "Oops [#1]", ("[    2.043210] Oops [#1]", "[    2.043211] Call Trace:", "[    2.043212]  foo+0x1/0x2 ##[x]")
)
OOPSED = replace(PASSED, kernel_trouble=(OOPS,))


@pytest.mark.parametrize("verbosity", [-1, 0, 2])
def test_what_a_kernel_reports_of_itself_is_told_with_its_lines(verbosity: int, tmp_path: Path) -> None:
    stream = io.StringIO()
    report = TerminalReport(stream, lambda *_: "", verbosity=verbosity)
    report(events.RunStarted(Arch.X86_64, "t", (OOPSED.case,)))
    report(events.CaseFinished(OOPSED))
    report(events.RunFinished((OOPSED,), 1.0))
    out = stream.getvalue()
    assert "warning: kernel trouble (oops): Oops [#1]\n" in out
    assert "| [    2.043211] Call Trace:\n" in out
    assert "1 case in 1.00 s: 1 passed, 1 with kernel trouble\n" in out
    write_json(tmp_path / "r.json", OOPSED)
    (case,) = json.loads((tmp_path / "r.json").read_text())["cases"]
    assert case["warnings"] == ["kernel trouble (oops): Oops [#1]"]
    assert case["kernel_trouble"] == [{"kind": "oops", "line": "Oops [#1]", "block": list(OOPS.block)}]


def test_a_long_report_of_a_kernel_is_cut_in_its_middle_and_says_where_it_is() -> None:
    block = tuple(f"[    2.043210] line {n}" for n in range(60))
    out = told(replace(OOPSED, kernel_trouble=(replace(OOPS, block=block),), console_log="target/console.log"))
    assert re.findall(r"\| .*line (\d+)", out) == [str(n) for n in (*range(16), *range(56, 60))]
    assert "  40 more lines, all of them in target/console.log\n" in out


def test_an_attempt_before_keeps_its_warnings() -> None:
    earlier = replace(OOPSED, verdict=Verdict.FAIL, fault=Fault.CASE, warnings=("of the file", "lost characters"))
    out = told(replace(PASSED, earlier=(earlier,), warnings=("of the file",)))
    assert out.count("warning: of the file") == 1
    assert "warning: lost characters" in out
    assert "warning: kernel trouble (oops): Oops [#1]" in out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


LONG = "one two  three " + "word" * 40 + " ends\u00a0here \u4e16\u754c" * 3 + " last"
WORDY = replace(
    FAILED,
    reason=f"reason {LONG}",
    excerpt=f"excerpt {LONG}",
    details=f"details {LONG}",
    console_tail=(f"tail {LONG}",),
    warnings=(f"first {LONG}", f"second {LONG}"),
    kernel_trouble=(replace(OOPS, line=f"line {LONG}", block=(f"block1 {LONG}", f"block2 {LONG}")),),
    subtests=(SubtestResult(f"name {LONG}", "x", SubtestStatus.FAIL, 1, 2.0, f"why {LONG}"),),
)


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_nothing_is_lost_on_a_narrow_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    report = TerminalReport(out, lambda *_: "", verbosity=1)
    report(events.RunStarted(Arch.X86_64, "t", (WORDY.case,)))
    report.close()  # without the live lines, which are drawn over
    report(events.Warned(f"warned {LONG}", WORDY.case))
    report(events.Missed(WORDY.case, f"what {LONG}", (f"because {LONG}",)))
    passed = replace(WORDY, verdict=Verdict.PASS, fault=Fault.NONE, earlier=(WORDY,))
    for result in (WORDY, passed):
        report(events.CaseFinished(result))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    said = re.sub(r"\s|\n *[|>] ", "", re.sub(r"\n *[|>] ", "", text))
    long = re.sub(r"\s", "", LONG.replace("\u00a0", "\ufffd"))
    for word, times in {
        "warned": 1,
        "what": 1,
        "because": 1,
        "reason": 2,
        "excerpt": 2,
        "details": 2,
        "tail": 2,
        "first": 2,
    }.items():
        assert said.count(f"{word}{long}") == times, word
    for word in ("second", "line", "block1", "block2", "name", "why"):
        assert said.count(f"{word}{long}") >= 2, word
    assert all(cell_len(line) <= columns for line in text.split("\n") if not line.lstrip().startswith("all of it:"))


def test_what_several_cases_wait_for_is_told_once_without_a_terminal() -> None:
    stream, verbose = io.StringIO(), io.StringIO()
    for report in (TerminalReport(stream, lambda *_: ""), TerminalReport(verbose, lambda *_: "", verbosity=2)):
        report(events.RunStarted(Arch.X86_64, "t", ("a", "b")))
        for case in ("a", "b"):
            report(events.CaseStarted(case))
            for detail in ("build c", "waiting for the kernel of g"):
                report(events.PhaseStarted(case, Phase.PREPARE, detail))
    assert [line.strip() for line in stream.getvalue().splitlines()[1:]] == [
        "a: build c",
        "a: waiting for the kernel of g",
        "b: build c",
    ]
    assert verbose.getvalue().count("waiting for the kernel of g") == 2


def test_cases_that_are_not_run_are_told_by_reason() -> None:
    left_out = (
        NotRun("normal/a", (Arch.AARCH64,), "for aarch64 alone"),
        NotRun("normal/b", (Arch.AARCH64,), "for aarch64 alone"),
        NotRun("normal/c", (Arch.X86_64,), "in .ignore"),
    )
    for verbosity, wanted in ((-1, 0), (0, 1), (1, 4)):
        stream = io.StringIO()
        report = TerminalReport(stream, lambda *_: "", verbosity=verbosity)
        report(events.RunStarted(Arch.X86_64, "t", ("d",), not_run=left_out))
        told = [line.strip() for line in stream.getvalue().splitlines() if "not run" in line]
        assert len(told) == wanted
        assert (
            told[:2] == ["not run: 3 cases: 2 for aarch64 alone, 1 in .ignore", "not run: normal/a, for aarch64 alone"][:wanted]
        )


def test_a_kernel_is_a_line_of_its_own_and_its_error_is_said_once() -> None:
    stream = io.StringIO()
    report = TerminalReport(stream, lambda *_: "")
    report(events.RunStarted(Arch.X86_64, "t", ("bad/a", "bad/b")))
    report(events.KernelBuildStarted("good"))
    report(events.KernelBuildFinished(KernelBuildResult("good", Arch.X86_64, 62.04)))
    report(events.KernelBuildStarted("bad"))
    failed = KernelBuildResult(
        "bad", Arch.X86_64, 4.0, "its build ended with status 2", "", "a.c:1: error: no", "target/k.log", "tail"
    )
    report(events.KernelBuildFinished(failed))
    assert stream.getvalue().splitlines()[1:] == [
        "             building the kernel of good",
        "kernel       good   built, 62.0 s",
        "             building the kernel of bad",
        "kernel       bad    not built, 4.00 s",
        "             its build ended with status 2",
        "             > a.c:1: error: no",
        "             all of it: target/k.log",
    ]
    quiet = io.StringIO()
    report = TerminalReport(quiet, lambda *_: "", verbosity=-1)
    report(events.RunStarted(Arch.X86_64, "t", ("bad/a",)))
    report(events.KernelBuildFinished(KernelBuildResult("good", Arch.X86_64, 62.04)))
    report(events.KernelBuildFinished(replace(failed, first_error="", hint="do that", log="")))
    assert quiet.getvalue().splitlines() == [
        "kernel       bad    not built, 4.00 s",
        "             its build ended with status 2",
        "             | tail",
        "             hint: do that",
    ]
