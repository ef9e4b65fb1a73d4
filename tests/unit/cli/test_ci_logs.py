"""What CI services are told in a log, and that a guest cannot tell them anything."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest

from qcase import events
from qcase.arch import Arch
from qcase.model import CaseResult, Fault, KnownFailure, Phase, Verdict
from qcase.report.terminal import TerminalReport
from tests.unit.report.test_reports import FAILED, OOPSED, PASSED

EVIL = replace(
    FAILED,
    reason="matched the fail pattern '::error::x'",
    excerpt="::set-output name=a::b",
    details="##[add-path]/tmp",
    console_tail=("::warning::from a guest", "##[error]likewise"),
    path="suite/normal/futex",
)


def told(*results: CaseResult, verbosity: int = 0) -> str:
    stream = io.StringIO()
    report = TerminalReport(stream, lambda cases, _: "qcase run " + " ".join(cases), verbosity=verbosity)
    report(events.RunStarted(Arch.X86_64, "t", tuple(result.label for result in results), workspace="/repo/examples/linux"))
    for result in results:
        report(events.CaseStarted(result.label))
        report(events.CaseFinished(result))
    report(events.RunFinished(results, 1.0))
    return stream.getvalue()


def test_github_gets_groups_and_annotations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", "/repo")
    said = told(PASSED, EVIL)
    (error,) = re.findall(r"(?m)^::error .*$", said)
    assert error == (
        "::error title=fail%3A normal/futex (x86_64),file=examples/linux/suite/normal/futex/qemu-x86_64.toml::"
        "matched the fail pattern '::error::x'%0A: :set-output name=a::b"
    )
    assert said.count("::group::normal/futex: what it said last") == said.count("::endgroup::") == 1
    flaky = told(replace(PASSED, earlier=(EVIL,)))
    assert re.search(r"(?m)^::warning title=flaky%3A normal/smoke", flaky)


def test_github_gets_a_warning_of_what_a_kernel_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (warning,) = re.findall(r"(?m)^::warning .*$", told(OOPSED))
    assert warning.startswith("::warning title=pass%3A normal/smoke (x86_64),file=")
    assert warning.endswith("::kernel trouble (oops): Oops [#1]")


def test_nothing_that_a_guest_says_is_a_command_to_github(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    stopped = ""
    tokens = set()
    for line in told(EVIL, EVIL).splitlines():
        if stopped:
            stopped = "" if line == f"::{stopped}::" else stopped
        elif match := re.fullmatch("::stop-commands::([0-9a-f]{32})", line):
            stopped = match[1]
            tokens.add(stopped)
        else:
            assert "##[" not in line
            assert not line.startswith("::") or re.match("::(group|endgroup|error)", line)
            assert "from a guest" not in line
    assert not stopped
    assert len(tokens) == 4


def test_gitlab_gets_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITLAB_CI", "true")
    said = told(EVIL)
    (begin,) = re.findall(r"\x1b\[0Ksection_start:\d+:(\w+)\[collapsed=true\]\r\x1b\[0Knormal/futex: what it said last\n", said)
    assert re.findall(r"\x1b\[0Ksection_end:\d+:(\w+)\r\x1b\[0K\n", said) == [begin]


def test_elsewhere_there_are_neither() -> None:
    said = told(EVIL)
    assert "\n::" not in said
    assert "section_" not in said


def test_quiet_shows_what_did_not_pass_and_the_summary() -> None:
    said = told(PASSED, EVIL, replace(PASSED, case="normal/f", earlier=(FAILED,)), verbosity=-1)
    assert re.findall(r"(?m)^(pass|fail|flaky) ", said) == ["fail", "flaky"]
    assert said.splitlines()[-2].startswith("3 cases in 1.00 s: 2 passed, 1 of them flaky, 1 failed")
    assert "on x86_64" not in said


def test_very_verbose_shows_phases_and_what_guests_say() -> None:
    stream = io.StringIO()
    report = TerminalReport(stream, lambda *_: "", verbosity=2)
    report(events.RunStarted(Arch.X86_64, "t", ("normal/a",)))
    report(events.CaseStarted("normal/a"))
    report(events.PhaseStarted("normal/a", Phase.BOOT))
    report(events.ConsoleLine("normal/a", "hello \x1b[2J"))
    assert "normal/a: boot\n" in stream.getvalue()
    assert "normal/a | hello \ufffd[2J\n" in stream.getvalue()


def test_the_slowest_cases_are_named_where_there_are_many() -> None:
    results = [replace(PASSED, case=f"normal/c{n}", total=float(n)) for n in range(8)]
    assert "slowest: normal/c7 7.00 s, normal/c6 6.00 s, normal/c5 5.00 s\n" in told(*results)
    assert "slowest" not in told(*results[:4])


def test_known_failures_and_skipped_cases_are_notices_and_stale_entries_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    known = KnownFailure("known.toml:3", "later")
    failed = replace(FAILED, verdict=Verdict.KNOWN_FAIL, fault=Fault.NONE, known=(known,))
    said = told(failed, replace(PASSED, stale=(known,)), replace(PASSED, verdict=Verdict.SKIPPED, reason="no card"))
    titles = re.findall(r"(?m)^::(\w+) title=([^,]*),", said)
    assert titles == [
        ("notice", "known-fail%3A normal/futex (x86_64)"),
        ("warning", "pass%3A normal/smoke (x86_64)"),
        ("notice", "skipped%3A normal/smoke (x86_64)"),
    ]
    assert "known: later [known.toml:3]%0A" in said
