"""Reports for programs: what stands in them, and that it is what their schemas say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
import typer
import xmlschema

import qcase.cli.main  # noqa: F401 - it registers the commands
from qcase import events
from qcase.arch import Arch
from qcase.cli import app
from qcase.console.group import Group
from qcase.console.judge import Judge
from qcase.console.rules import Rules
from qcase.errors import InfraError, UsageError
from qcase.model import (
    Cache,
    CaseResult,
    Fault,
    KernelBuildResult,
    KnownFailure,
    LimitUse,
    Phase,
    Pipeline,
    SubtestResult,
    SubtestStatus,
    Verdict,
)
from qcase.report import at_end, html_report, junit_report, output_file, results
from qcase.report.json_report import EventsReport, JsonReport, event_document, results_document
from qcase.run import run_case
from tests.unit.report.test_reports import BROKEN, FAILED, GROUP, OOPS, OOPSED, PASSED, told

XSD = xmlschema.XMLSchema(Path(__file__).with_name("junit-10.xsd"))
NASTY = "red \x1b[31m, bell \x07, nul \0, \ufffe, lone \udcff, ]]> & <tag> \"'"
FLAKY = replace(PASSED, case="normal/epoll", earlier=(replace(FAILED, case="normal/epoll"),), path="suite/normal/epoll")
TWICE = replace(FAILED, case="normal/eventfd", earlier=(FAILED, FAILED))
SKIPPED = CaseResult("normal/zz", Arch.X86_64, Verdict.SKIPPED, Fault.NONE, "not run, because 1 case has failed")
PANICKED = replace(
    GROUP,
    case="stress/deep/grouped",
    verdict=Verdict.PANIC,
    reason="the guest's kernel panicked",
    details="Kernel panic - not syncing",
    limits=(LimitUse("timeout", 60.0, 4.5), LimitUse("idle_timeout", 5.0, 5.0, True)),
    subtests=(
        SubtestResult("a", "a", SubtestStatus.PASS, 0, 0.2),
        SubtestResult("b", "b\nc", SubtestStatus.BROKEN, reason="began and did not end"),
        SubtestResult("d", "d", SubtestStatus.NOT_RUN),
    ),
)
BUILD = replace(
    GROUP,
    case="normal/half",
    verdict=Verdict.BUILD_ERROR,
    reason="did not build: normal/half/x",
    subtests=(SubtestResult("a", "a", SubtestStatus.PASS, 0, 0.2),),
)
EVIL = replace(FAILED, case="normal/evil", reason=NASTY, excerpt=NASTY, details=NASTY, console_tail=(NASTY,), warnings=(NASTY,))
ROOT = replace(PASSED, case="alone")
OOPSED_GROUP = replace(BUILD, case="normal/oopsed", verdict=Verdict.PASS, fault=Fault.NONE, reason="", kernel_trouble=(OOPS,))
ALL = (
    PASSED,
    FAILED,
    GROUP,
    BROKEN,
    FLAKY,
    TWICE,
    SKIPPED,
    PANICKED,
    BUILD,
    EVIL,
    ROOT,
    replace(OOPSED, case="normal/o"),
    OOPSED_GROUP,
)
KERNEL = KernelBuildResult(
    "bad", Arch.X86_64, 4.0, "its build ended with status 2", "", f"error: {NASTY}", "target/kernel.log", NASTY
)
STARTED = events.RunStarted(
    Arch.X86_64, "x86_64-unknown-none", tuple(r.label for r in ALL), workspace="/w/linux", jobs=2, at=1_700_000_000.5
)
FINISHED = events.RunFinished(ALL, 74.2)


def loaded(*found: CaseResult, started: events.RunStarted | None = None) -> results.Results:
    started = started or replace(STARTED, cases=tuple(result.label for result in found))
    return results.of_document(results_document(started, events.RunFinished(found, 1.5)))


# --- JUnit ----------------------------------------------------------------------------------------------------------------


def cases_of(*found: CaseResult) -> dict[str, ElementTree.Element]:
    text = junit_report.render(loaded(*found))
    XSD.validate(text)
    return {f"{test.get('classname')} {test.get('name')}": test for test in ElementTree.fromstring(text).iter("testcase")}


def test_a_kernel_that_was_not_built_is_one_error_in_every_report(tmp_path: Path) -> None:
    good = KernelBuildResult("good", Arch.X86_64, 2.5, log="target/good.log")
    cases = [replace(BROKEN, case=f"bad/{name}", fault=Fault.CASE, reason="the kernel of bad was not built") for name in "ab"]
    finished = events.RunFinished(tuple(cases), 9.0)
    run = results.of_document(results_document(STARTED, finished, (good, KERNEL)))
    assert [(build.label, build.seconds, bool(build.error)) for build in run.kernels] == [
        ("good", 2.5, False),
        ("bad", 4.0, True),
    ]
    text = junit_report.render(run)
    XSD.validate(text)
    tests = {f"{test.get('classname')} {test.get('name')}": test for test in ElementTree.fromstring(text).iter("testcase")}
    assert tests["x86_64.kernels good"].find("error") is None
    fault = tests["x86_64.kernels bad"].find("error")
    assert fault is not None
    assert (fault.get("message") or "").startswith("its build ended with status 2: error: ")
    page = html_report.render(run)
    assert page.count("its build ended with status 2") == 1
    assert "<script>alert" not in page
    path = tmp_path / "r.json"
    report = JsonReport(path)
    for event in (STARTED, events.KernelBuildFinished(good), events.KernelBuildFinished(KERNEL), finished):
        report(event)
    assert [build.label for build in results.load(path).kernels] == ["good", "bad"]


def test_junit_is_what_its_schema_says_whatever_happened() -> None:
    text = junit_report.render(loaded(*ALL))
    XSD.validate(text)
    whole = ElementTree.fromstring(text)
    assert [suite.get("name") for suite in whole] == ["normal", "stress/deep", "alone"]
    assert (
        sum(int(suite.get("tests", "0")) for suite in whole) == len(list(whole.iter("testcase"))) == int(whole.get("tests", "0"))
    )
    assert whole.get("name") == "linux"
    assert whole[0].get("timestamp") == "2023-11-14T22:13:20"
    XSD.validate(junit_report.render(loaded()))


def test_a_failure_in_junit() -> None:
    limited = replace(FAILED, limits=(LimitUse("timeout", 60.0, 4.5), LimitUse("idle_timeout", 5.0, 5.01, True)))
    (test,) = cases_of(limited).values()
    (failure,) = test.findall("failure")
    assert "limits: timeout 4.5 of 60 s; idle_timeout 5 of 5 s, which ended it" in (failure.text or "")
    assert failure.get("type") == "fail"
    assert failure.get("message") == "matched the fail pattern '^FAIL'"
    assert "FAIL: woken 2 of 3" in (failure.text or "")
    assert "test-futex" in (test.findtext("system-out") or "")
    assert "timout" in (test.findtext("system-err") or "")
    assert test.get("time") == "216.2"


def test_commands_of_a_group_in_junit() -> None:
    found = cases_of(GROUP)
    assert list(found) == [f"x86_64.normal.syscalls /usr/bin/{name}" for name in "abc"]  # the group shows nothing else
    assert [[child.tag for child in test] for test in found.values()] == [[], ["failure"], ["skipped"]]
    failure = found["x86_64.normal.syscalls /usr/bin/b"].find("failure")
    assert failure is not None
    assert failure.text == "/usr/bin/b\nwanted 3\ngot \ufffd[2J 4"
    found = cases_of(PANICKED)
    broken = found["x86_64.stress.deep.grouped b"].find("failure")
    assert broken is not None
    assert broken.get("message") == "began and did not end: the guest's kernel panicked"
    assert len(found) == 3
    # What no command shows, the group says itself.
    found = cases_of(BUILD)
    assert [child.tag for child in found["x86_64.normal half"]] == ["failure"]
    assert len(found) == 2


def test_attempts_in_junit() -> None:
    (flaky,) = cases_of(FLAKY).values()
    assert [child.tag for child in flaky] == ["flakyFailure"]
    (suite,) = ElementTree.fromstring(junit_report.render(loaded(FLAKY, ROOT))).iterfind("testsuite[@file]")
    assert (suite.get("name"), suite.get("file")) == ("normal", "suite/normal")
    (twice,) = cases_of(TWICE).values()
    assert [child.tag for child in twice if child.tag.endswith("ailure")] == ["failure", "rerunFailure", "rerunFailure"]


def test_what_a_kernel_reports_of_itself_in_junit() -> None:
    (test,) = cases_of(OOPSED).values()
    said = test.findtext("system-err") or ""
    assert said.startswith("warning: kernel trouble (oops): Oops [#1]\n")
    assert said.endswith("\n".join(OOPS.block))
    group = cases_of(OOPSED_GROUP)["x86_64.normal oopsed"]
    assert [child.tag for child in group] == ["system-err"]
    (flaky,) = cases_of(replace(PASSED, earlier=(replace(FAILED, kernel_trouble=(OOPS,)),))).values()
    assert OOPS.block[1] in "".join(flaky.itertext())


@pytest.mark.parametrize(("complete", "why"), [(True, "interrupted"), (False, "killed")])
def test_a_case_that_did_not_end_is_an_error_in_junit(complete: bool, why: str) -> None:
    started = replace(STARTED, cases=("normal/smoke", "normal/deep/b", "alone", "stress/a#2"))
    document = results_document(started, events.RunFinished((PASSED,), 1.0, interrupted=complete))
    run = results.of_document({**document, "complete": complete})
    text = junit_report.render(run)
    XSD.validate(text)
    found = {f"{test.get('classname')} {test.get('name')}": test for test in ElementTree.fromstring(text).iter("testcase")}
    assert [child.tag for child in found.pop("x86_64.normal smoke")] == []
    assert list(found) == ["x86_64.normal.deep b", "x86_64.alone alone", "x86_64.stress a#2"]
    for test in found.values():
        (error,) = test.findall("error")
        assert error.get("message") == f"the run was {why} before the case had"
    page = html_report.render(run)
    assert "1 of 4" in page
    assert "without a result: 3" in page
    assert "all passed" not in page


def test_a_case_that_did_not_end_on_one_of_two_architectures() -> None:
    targets = ((Arch.X86_64, "t"), (Arch.AARCH64, "u"))
    started = replace(STARTED, targets=targets, cases=("normal/smoke@x86_64", "normal/smoke@aarch64"))
    document = results_document(started, events.RunFinished((replace(PASSED, variant="x86_64"),), 1.0, interrupted=True))
    (unfinished,) = results.of_document(document).unfinished
    assert (unfinished.name, unfinished.arch) == ("normal/smoke", Arch.AARCH64)
    tests = ElementTree.fromstring(junit_report.render(results.of_document(document))).iter("testcase")
    assert [(test.get("classname"), len(test)) for test in tests] == [("x86_64.normal", 0), ("aarch64.normal", 1)]


def test_what_ended_the_guest_is_told_beside_a_command_that_had_failed_before() -> None:
    """Between two commands nothing is broken: the panic has to stand for itself."""
    subtests = (SubtestResult("a", "a", SubtestStatus.FAIL, 1, 0.2), SubtestResult("b", "b", SubtestStatus.NOT_RUN))
    for verdict in (Verdict.PANIC, Verdict.TIMEOUT, Verdict.EXITED, Verdict.ERROR):
        found = cases_of(replace(PANICKED, verdict=verdict, subtests=subtests))
        assert len(found) == 3
        assert next(child.tag for child in found["x86_64.stress.deep grouped"]) in ("failure", "error")


@pytest.mark.parametrize("make", [at_end.junit, at_end.html])
def test_a_run_that_is_killed_leaves_no_green_report_of_an_earlier_one(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_text("all is green")
    report = make(path)
    assert path.read_text() == "all is green"  # nothing was begun
    report(STARTED)
    text = path.read_text()
    assert "the run was killed" in text or "This run was killed" in text
    assert all(result.case in text or result.case.rpartition("/")[2] in text for result in ALL)
    report(FINISHED)
    assert "killed" not in path.read_text()


def test_an_error_and_what_was_not_run_in_junit() -> None:
    found = cases_of(BROKEN, SKIPPED)
    assert [[child.tag for child in test] for test in found.values()] == [["error"], ["skipped"]]


def same(case: str, *statuses: SubtestStatus, label: str = "flip") -> CaseResult:
    return replace(GROUP, case=case, subtests=tuple(SubtestResult(label, label, status) for status in statuses))


@pytest.mark.parametrize(
    "found",
    [
        (same("normal/dup", SubtestStatus.PASS, SubtestStatus.FAIL),),  # of an older qcase
        (replace(PASSED, case="normal/a.b/c"), replace(FAILED, case="normal/a/b/c")),
        (replace(PASSED, case="normal/a\x01"), replace(FAILED, case="normal/a\x02"), replace(FAILED, case="normal/a\ufffd")),
        (replace(PASSED, case="normal/a b"), replace(FAILED, case="normal/a\nb"), replace(FAILED, case="normal/a\tb")),
        (same("normal/a", SubtestStatus.PASS, label="b"), replace(FAILED, case="normal/a/b")),
        (replace(PASSED, case="x", repetition=1), replace(FAILED, case="x#1"), replace(FAILED, case="x", repetition=2)),
        (PASSED, replace(FAILED, case=PASSED.case, arch=Arch.AARCH64), replace(FAILED, case=PASSED.case)),
        (replace(TWICE, case="normal/x"), replace(FLAKY, case="normal/x")),
        (replace(BUILD, case="normal/half"), replace(PASSED, case="normal/half")),
    ],
)
def test_no_name_is_there_twice(found: tuple[CaseResult, ...]) -> None:
    text = junit_report.render(loaded(*found))
    XSD.validate(text)
    tests = [(test.get("classname"), test.get("name")) for test in ElementTree.fromstring(text).iter("testcase")]
    assert len(set(tests)) == len(tests) >= len(found)
    assert junit_report.render(loaded(*found)) == text
    alone = [(test.get("classname"), test.get("name")) for test in cases_of(found[0]).values()]
    assert tests[: len(alone)] == alone


def test_two_equal_commands_are_two_in_the_events_of_a_run() -> None:
    group = Group("B", "P", "F", "ALL", "NONE", ("flip", "flip"), ("flip", "flip"), ("flip", "flip (2)"))
    judge = Judge(Rules("$ ", "run", ("(?m)^ALL$",), (), group=group), started=0.0)
    heard: list[events.Event] = []
    watch = run_case._Watch("normal/dup", judge, heard.append)
    for now, text in enumerate(("$ ", "", "run\n", "B: flip\nP: flip\n", "B: flip\nF: flip status=1\n", "NONE\n")):
        judge.feed(text.encode(), float(now))
        judge.input()
        watch()
    said = [event.subtest for event in heard if isinstance(event, events.SubtestFinished)]
    assert [(one.name, one.status.value) for one in said] == [("flip", "pass"), ("flip (2)", "fail")]
    assert judge.subtests() == tuple(said)


def test_what_xml_cannot_hold_is_replaced() -> None:
    (test,) = cases_of(EVIL).values()
    said = test.findtext("system-out") or ""
    assert said.startswith("red \ufffd[31m, bell \ufffd, nul \ufffd, \ufffd, lone ")
    assert said.endswith("]]> & <tag> \"'")


# --- JSON and events --------------------------------------------------------------------------------------------------------


def every_event() -> list[events.Event]:
    return [
        STARTED,
        events.AccelChosen("tcg", "KVM does not answer"),
        events.CaseStarted("normal/smoke"),
        events.PhaseStarted("normal/smoke", Phase.PREPARE, "build c"),
        events.Missed("normal/smoke", "the overlay", ("sources: x changed",)),
        events.ImageReady("normal/smoke", Pipeline.C, Cache.HIT, "/s/image.img", 0.2),
        events.KernelBuildStarted("normal"),
        events.KernelBuildFinished(KERNEL),
        events.ConsoleLine("normal/smoke", NASTY),
        events.SubtestFinished("normal/syscalls", GROUP.subtests[1]),
        events.Retried("normal/epoll", 1, FAILED),
        events.Warned(NASTY),
        events.Progress("fetching"),
        events.CaseFinished(FLAKY),
        FINISHED,
    ]


def test_every_event_has_a_schema_and_keeps_to_it() -> None:
    schema = json.loads(results.json_schema("events"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for event in every_event():
        validator.validate(json.loads(json.dumps(event_document(event))))
    known = {line["properties"]["event"]["const"] for line in schema["oneOf"]}
    assert known == {event_document(event)["event"] for event in every_event()}
    assert len(known) == len(events.Event.__args__)


def test_results_keep_to_their_schema_also_those_of_a_run_that_was_killed(tmp_path: Path) -> None:
    schema = json.loads(results.json_schema("results"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    path = tmp_path / "r.json"
    report = JsonReport(path)
    seen: list[Any] = []
    happened: list[events.Event] = [STARTED, *map(events.CaseFinished, ALL), FINISHED]
    for event in happened:
        report(event)
        document = json.loads(path.read_text(encoding="utf-8"))
        validator.validate(document)
        seen.append((document["complete"], len(document["cases"])))
        assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]
    assert seen == [*((False, count) for count in range(len(ALL) + 1)), (True, len(ALL))]
    assert results.load(path).cases[4].flaky


def test_events_are_lines_that_are_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    report = EventsReport(path)
    for count, event in enumerate(every_event(), 1):
        report(event)
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) == count
        json.loads(lines[-1])
    report.close()


def test_events_that_cannot_be_written_are_said_at_the_end() -> None:
    report = EventsReport(Path("/dev/full"))
    for event in every_event()[:-1]:
        report(event)
    with pytest.raises(InfraError, match="No space left on device"):
        report(FINISHED)
    report.close()


@pytest.mark.parametrize("make", [JsonReport, EventsReport, at_end.junit, at_end.html])
def test_a_place_that_cannot_be_is_said_before_anything_runs(make: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its folder does not exist"):
        make(tmp_path / "gone" / "file")
    with pytest.raises(UsageError, match="is a folder"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{", "is no JSON"),
        ("[]", "are no results of a run"),
        ('{"format": 99}', "has the format 99; this version knows 1"),
        ('{"format": 1, "cases": []}', "are no results of a run: qcase: Field required"),
    ],
)
def test_a_file_that_holds_no_results(text: str, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UsageError, match=wanted):
        results.load(tmp_path / "r.json")
    with pytest.raises(UsageError, match="cannot be read"):
        results.load(tmp_path / "gone.json")


def shard(number: int, *found: CaseResult, **changed: object) -> tuple[Path, results.Results]:
    document = results_document(replace(STARTED, shard=f"{number}/2", partition="5e1f"), events.RunFinished(found, 1.5 * number))
    return Path(f"{number}.json"), results.of_document({**document, **changed})


def test_the_shards_of_a_run_are_one_run() -> None:
    one, two = shard(1, FLAKY, BROKEN), shard(2, PASSED, FAILED)
    together = results.whole([two, one])
    assert [case.case for case in together.cases] == ["normal/epoll", "normal/futex", "normal/smoke", "normal/sysctl"]
    assert (together.seconds, together.jobs, together.exit_code, together.complete, together.shard) == (3.0, 4, 2, True, "")
    XSD.validate(junit_report.render(together))
    killed = results.whole([one, shard(2, complete=False, exit_code=None)])
    assert (killed.complete, killed.exit_code) == (False, None)
    assert results.whole([one]) == one[1]


@pytest.mark.parametrize(
    ("second", "wanted"),
    [
        (shard(1, PASSED), "are of shard 1/2, as are 1.json"),
        (shard(2, PASSED, partition="0bad"), "are of the partition 0bad, 1.json of 5e1f"),
        (shard(2, PASSED, arch="aarch64"), "are of the architecture aarch64, 1.json of x86_64"),
        (shard(2, PASSED, target="x"), "are of the target x, 1.json of x86_64-unknown-none"),
        (shard(2, PASSED, shard=""), "are not those of a shard"),
    ],
)
def test_results_that_are_not_of_one_run_are_not_put_together(second: tuple[Path, results.Results], wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted):
        results.whole([shard(1, FLAKY), second])


def test_a_shard_that_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match="no results of shard 1/4, 3/4 are given"):
        results.whole([shard(2, PASSED, shard="2/4"), shard(2, PASSED, shard="4/4")])


# --- HTML -----------------------------------------------------------------------------------------------------------------


def test_a_page_shows_every_case_and_nothing_that_a_guest_says_does_anything(tmp_path: Path) -> None:
    report = at_end.html(tmp_path / "r.html")
    report(STARTED)
    report(FINISHED)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<pre>wanted 3\ngot " in page  # what a command that failed printed
    for result in ALL:
        assert f">{result.label}" in page
    assert "&lt;tag&gt;" in page
    assert "<tag>" not in page
    assert "attempt 1 of 2 ended with fail" in page
    assert "limits: timeout 4.5 of 60 s; idle_timeout 5 of 5 s, which ended it" in page
    assert "http" not in page.replace("https://json-schema.org", "")  # nothing is fetched


def test_a_page_of_repetitions_and_of_a_run_that_was_killed() -> None:
    again = tuple(replace(PASSED if n > 1 else FAILED, case="normal/x", repetition=n) for n in (1, 2, 3))
    page = html_report.render(loaded(*again))
    assert "33.3 %" in page
    assert "normal/x#3" in page
    killed = results.of_document({**results_document(STARTED, FINISHED), "complete": False, "exit_code": None})
    assert "This run was killed" in html_report.render(killed)


def test_a_report_of_what_is_not_a_whole_run_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = replace(STARTED, cases=("normal/smoke", "normal/b"), shard="2/5", partition="p")
    document = results_document(started, events.RunFinished((PASSED,), 1.0, interrupted=True))
    (tmp_path / "r.json").write_text(json.dumps(document))
    command = typer.main.get_command(app.app)
    command(["report", str(tmp_path / "r.json"), "--junit", str(tmp_path / "j.xml")], standalone_mode=False)
    assert capsys.readouterr().err.splitlines() == [
        "warning: these are the results of shard 2/5 alone",
        "warning: the run was interrupted: 1 case did not end",
    ]
    assert 'errors="1"' in (tmp_path / "j.xml").read_text()


@pytest.mark.parametrize("leads", ["file", "fifo", "device"])
def test_a_link_that_a_strangers_tree_has_in_the_place_of_a_report_is_replaced(leads: str, tmp_path: Path) -> None:
    """Neither is a file of the user written over, nor a device written to, nor a fifo waited for."""
    target = Path("/dev/full") if leads == "device" else tmp_path / "outside"
    if leads == "file":
        target.write_text("precious")
    elif leads == "fifo":
        os.mkfifo(target)
    for name in ("results.json", "events.jsonl"):
        (tmp_path / name).symlink_to(target)
    output_file.write(tmp_path / "results.json", "results", "--json")
    with output_file.opened(tmp_path / "events.jsonl") as file:
        file.write(b"event")
        assert (tmp_path / "events.jsonl").read_text() == "event"
    assert (tmp_path / "results.json").read_text() == "results"
    assert not (tmp_path / "results.json").is_symlink()
    if leads == "file":
        assert target.read_text() == "precious"
    assert not list(tmp_path.glob(".*"))


def test_a_report_to_a_stream_goes_there_whatever_that_is(tmp_path: Path) -> None:
    """/dev/stdout is a link, also to a file; nothing may take its place."""
    program = (
        "from pathlib import Path; from qcase.report import output_file; output_file.write(Path('/dev/stdout'), 'x', '--json')"
    )
    before = Path("/dev/stdout").readlink()
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "x"
    assert Path("/dev/stdout").readlink() == before


KNOWN = KnownFailure("known.toml:3", "not there yet", link="https://example.org/1")
KNOWN_CASE = replace(
    FAILED, verdict=Verdict.KNOWN_FAIL, fault=Fault.NONE, excused=Verdict.FAIL, known=(KNOWN,), warnings=(), console_tail=()
)
KNOWN_TEST = replace(
    GROUP,
    verdict=Verdict.KNOWN_FAIL,
    fault=Fault.NONE,
    excused=Verdict.FAIL,
    known=(KNOWN,),
    subtests=(GROUP.subtests[0], replace(GROUP.subtests[1], status=SubtestStatus.KNOWN_FAIL, known=KNOWN.told)),
)
SKIPPED = replace(PASSED, case="normal/nvme", verdict=Verdict.SKIPPED, reason="no test ran: 1 was skipped")


def test_known_failures_and_skipped_cases_in_junit() -> None:
    found = cases_of(KNOWN_CASE, KNOWN_TEST, SKIPPED)
    messages = {name: None if (skip := test.find("skipped")) is None else skip.get("message") for name, test in found.items()}
    assert messages == {
        "x86_64.normal futex": f"known-fail: {KNOWN.told}: matched the fail pattern '^FAIL'",
        "x86_64.normal.syscalls /usr/bin/a": None,
        "x86_64.normal.syscalls /usr/bin/b": f"known-fail: {KNOWN.told}",
        "x86_64.normal nvme": "no test ran: 1 was skipped",
    }
    assert not any(test.find("failure") is not None or test.find("error") is not None for test in found.values())
    red = cases_of(replace(SKIPPED, fault=Fault.CASE), replace(PASSED, verdict=Verdict.FAIL, fault=Fault.CASE, stale=(KNOWN,)))
    assert all(test.find("failure") is not None for test in red.values())


def test_known_failures_are_counted_apart_on_the_terminal_and_the_page() -> None:
    said = told(PASSED, KNOWN_CASE, KNOWN_TEST, SKIPPED)
    assert "known: not there yet (https://example.org/1) [known.toml:3]" in said
    assert "4 cases in 74.2 s: 1 passed, 2 known to fail, 1 skipped\n" in said
    assert "repeat just" not in said
    assert "skipped      normal/nvme" in said
    assert told(SKIPPED).endswith("1 case in 74.2 s: 1 skipped\nnothing was tested: the case was skipped\n")
    page = html_report.render(loaded(PASSED, KNOWN_CASE))
    assert "<title>linux: 1 known-fail, 1 pass</title>" in page
    assert "known: not there yet (https://example.org/1) [known.toml:3]" in page


def test_a_known_failure_that_passes_is_in_the_summary_unless_another_repetition_failed() -> None:
    stale = replace(PASSED, stale=(KNOWN,))
    assert "a known failure passes now: normal/smoke [known.toml:3]\n" in told(stale)
    again = replace(PASSED, verdict=Verdict.KNOWN_FAIL, known=(KNOWN,), repetition=2)
    said = told(replace(stale, repetition=1), again)
    assert "a known failure passes now" not in said
    assert re.search(r"(?m)^normal/smoke +2 +0 +0\.0 % +1$", said), said
