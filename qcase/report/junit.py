"""A run as JUnit XML, as Jenkins and GitLab read it (`junit-10.xsd` of Jenkins' xunit plugin, which surefire's is close to).

    <testsuites name="linux">
      <testsuite name="normal" file="suite/normal" …>          one for each folder of cases
        <testcase classname="x86_64.normal" name="smoke" time="4.6"/>
        <testcase classname="x86_64.normal.syscalls" name="/usr/bin/epoll" …>      each command of a grouped case
          <failure type="fail" message="status 7">…</failure>
          <system-out>the console's last lines</system-out>

A grouped case stands for itself only where something is wrong that no command of it shows. A `fail`, `panic`, `timeout`, `exited`
or `build-error` is a failure, an `error` an error. What passed at a later attempt has a `flakyFailure` for each one before; what
did not, a `rerunFailure`. A testcase has no `file`: that plugin refuses a report with one. XML 1.0 has no way to write most
control characters, not even escaped: they become U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from qcase.model import SubtestStatus, Verdict
from qcase.report.results import CaseReport, Results, Subtest

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(run: Results) -> str:
    """The report's text."""
    from junitparser import xunit2 as junit

    suites: dict[str, Any] = {}
    whole = junit.JUnitXml(_clean(Path(run.workspace).name or "qcase"))
    for case in run.cases:
        name = str(PurePosixPath(case.case).parent)
        name = case.case if name == "." else name
        suite = suites.get(name)
        if suite is None:
            suite = suites[name] = _suite(name)
            if run.started:
                suite.timestamp = datetime.fromtimestamp(run.started, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            suite.hostname = "localhost"
            if case.path:
                suite.file = _clean(case.path if case.case == name else str(PurePosixPath(case.path).parent))
        for test in _tests(case, name):
            suite.add_testcase(test)
    for suite in suites.values():
        suite.update_statistics()
        whole.add_testsuite(suite)
    whole.update_statistics()  # type: ignore[no-untyped-call]
    return str(whole.tostring().decode("utf-8")) + "\n"  # type: ignore[no-untyped-call]


def _suite(name: str) -> Any:
    from junitparser import Attr
    from junitparser import xunit2 as junit

    class TestSuite(junit.TestSuite):
        file = Attr()

    return TestSuite(_clean(name))  # type: ignore[no-untyped-call]


def _tests(case: CaseReport, folder: str) -> Iterator[Any]:
    for subtest in case.subtests:
        yield _subtest(case, subtest)
    blamed = any(subtest.status in (SubtestStatus.FAIL, SubtestStatus.BROKEN) for subtest in case.subtests)
    if not case.subtests or (case.verdict is not Verdict.PASS and not blamed) or case.earlier:
        yield _whole(case, folder)


def _whole(case: CaseReport, folder: str) -> Any:
    """The test case of a case as a whole."""
    import junitparser
    from junitparser import xunit2 as junit

    name = case.label if case.case == folder else case.label.removeprefix(f"{folder}/")
    test = _test(name, f"{case.arch}.{folder.replace('/', '.')}", case.times.total)
    if case.verdict is Verdict.SKIPPED:
        test.append(junitparser.Skipped(_clean(case.reason)))
    elif case.verdict is not Verdict.PASS:
        kind = junitparser.Error if case.verdict is Verdict.ERROR else junitparser.Failure
        test.append(_fault(kind, case))
    for attempt in case.earlier:
        test.append(_fault(junit.FlakyFailure if case.flaky else junit.RerunFailure, attempt))
    _say(test, case)
    return test


def _subtest(case: CaseReport, subtest: Subtest) -> Any:
    import junitparser

    test = _test(subtest.name, f"{case.arch}.{case.label.replace('/', '.')}", subtest.seconds or 0.0)
    if subtest.status is SubtestStatus.NOT_RUN:
        test.append(junitparser.Skipped(_clean(subtest.reason or f"not run: {_first_line(case)}")))
    elif subtest.status is not SubtestStatus.PASS:
        what = subtest.reason or (f"status {subtest.exit_status}" if subtest.exit_status else "")
        if subtest.status is SubtestStatus.BROKEN:
            what = f"{what}: {_first_line(case)}".removeprefix(": ")
        fault = junitparser.Failure(_clean(what or subtest.status), str(subtest.status))
        fault.text = _clean("\n".join(part for part in (subtest.command, case.excerpt or "", case.details) if part))
        test.append(fault)
        _say(test, case)
    return test


def _test(name: str, classname: str, seconds: float) -> Any:
    from junitparser import xunit2 as junit

    return junit.TestCase(_clean(name), _clean(classname), round(seconds, 3))


def _fault(kind: Any, case: CaseReport) -> Any:
    fault = kind(_clean(_first_line(case)), case.verdict.value)
    limits = f"limits: {'; '.join(limit.shown for limit in case.limits)}" if case.limits else ""
    text = _clean("\n".join(part for part in (case.reason, case.excerpt or "", case.details, limits) if part))
    if kind.__name__.startswith(("Flaky", "Rerun")):
        fault.stack_trace = text
        if case.console_tail:
            fault.system_out = _clean("\n".join(case.console_tail))
    else:
        fault.text = text
    return fault


def _say(test: Any, case: CaseReport) -> None:
    if case.console_tail:
        test.system_out = _clean("\n".join(case.console_tail))
    if case.warnings:
        test.system_err = _clean("\n".join(f"warning: {line}" for line in case.warnings))


def _first_line(case: CaseReport) -> str:
    return case.reason.partition("\n")[0] or case.verdict.value


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
