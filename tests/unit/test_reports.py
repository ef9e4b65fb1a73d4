"""What a person and what a program is told of a run, from events alone."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qcase import events
from qcase.errors import QcaseError
from qcase.model import Arch, Booted, Cache, CaseResult, Fault, Phase, Pipeline, SubtestResult, SubtestStatus, Verdict
from qcase.report.json import JsonReport, case_document
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
        SubtestResult("/usr/bin/b", "/usr/bin/b", SubtestStatus.FAIL, 7, 1.5),
        SubtestResult("/usr/bin/c", "/usr/bin/c", SubtestStatus.NOT_RUN),
    ),
)
BROKEN = CaseResult(
    "normal/sysctl", Arch.X86_64, Verdict.ERROR, Fault.CONFIG, "suite/normal/sysctl/qemu-x86_64.toml:1: is not TOML"
)


def told(*results: CaseResult, interrupted: bool = False) -> str:
    stream = io.StringIO()
    report = TerminalReport(stream, lambda cases: "qcase run " + " ".join(cases))
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
    assert "interrupted" in out
    assert "qcase run normal/futex normal/syscalls normal/sysctl" in out


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
    report = TerminalReport(stream, lambda _: "", verbosity=1)
    report(events.RunStarted(Arch.X86_64, "x86_64-unknown-none", (result.case,), "auto"))
    report(events.AccelChosen("tcg", "KVM hung"))
    report(events.CaseStarted(result.case))
    report(events.CaseFinished(result))
    said = stream.getvalue()
    assert "accel auto\n" in said
    assert "accel auto: tcg, since KVM hung\n" in said
    assert "kernel /ws/out/kernel (a1b2c3d4e5f6), by tcg, firmware /usr/share/OVMF/OVMF_CODE_4M.fd (ffffffffffff)\n" in said
    assert "a1b2c3d4e5f6" not in told(result)
