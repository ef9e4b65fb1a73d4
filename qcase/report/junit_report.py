"""A run as JUnit XML, as Jenkins and GitLab read it (`junit-10.xsd` of Jenkins' xunit plugin, which surefire's is close to).

    <testsuites name="linux">
      <testsuite name="normal" file="suite/normal" …>          one for each folder of cases
        <testcase classname="x86_64.normal" name="smoke" time="4.6"/>
        <testcase classname="x86_64.normal.syscalls" name="/usr/bin/epoll" …>      each command of a grouped case
          <failure type="fail" message="status 7">…</failure>
          <system-out>the console's last lines</system-out>

The builds of kernels are a testsuite of their own, `kernels`: one that failed is an error there.

A pair of classname and name is unique in a file, since readers keep only one of two: a name that collides, as `a.b/c` and `a/b/c`
do, gets the case's own name appended. A grouped case has a testcase of its own only for a fault that none of its commands shows.
A `fail`, `panic`, `timeout`, `exited` or `build-error` is a failure. An `error` is an error, and so is a case that did not end
because the run was interrupted or killed. A `known-fail` is skipped, with a message that begins so, since readers count failures.
A case that passed at a later attempt has a `flakyFailure` for each attempt before; a
case that did not pass has a `rerunFailure` for each. A testcase has no `file`: that plugin refuses a report with one. XML 1.0
cannot contain most control characters, not even escaped: they become U+FFFD, and in names an escape.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from qcase.model import SubtestStatus, Verdict
from qcase.report import inert
from qcase.report.results import CaseReport, KernelBuild, Results, Subtest, Unfinished

KERNELS = "kernels"  # the suite of the builds of kernels
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(run: Results) -> str:
    """Render the report's text."""
    from junitparser import xunit2 as junit

    suites: dict[str, Any] = {}
    taken: set[tuple[str, str]] = set()
    whole = junit.JUnitXml(_clean(Path(run.workspace).name or "qcase"))
    for case in run.cases:
        name = _folder(case.case)
        suite = suites.get(name)
        if suite is None:
            suite = suites[name] = _suite(name)
            if run.started:
                suite.timestamp = datetime.fromtimestamp(run.started, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            suite.hostname = "localhost"
            if case.path:
                suite.file = _clean(case.path if case.case == name else str(PurePosixPath(case.path).parent))
        for test in _tests(case, name):
            test.name = _once(test.classname, test.name, case.label, taken)
            suite.add_testcase(test)
    for unfinished in run.unfinished:
        name = _folder(unfinished.name)
        suite = suites.setdefault(name, _suite(name))
        suite.add_testcase(_unfinished(unfinished, name, f"{run.broken_off or 'the run ended'} before the case had", taken))
    if run.kernels:
        suites[KERNELS] = suite = _suite(KERNELS)
        for build in run.kernels:
            suite.add_testcase(_kernel(build, taken))
    for suite in suites.values():
        suite.update_statistics()
        whole.add_testsuite(suite)
    whole.update_statistics()  # type: ignore[no-untyped-call]
    return inert.xml(str(whole.tostring().decode("utf-8"))) + "\n"  # type: ignore[no-untyped-call]


def _folder(case: str) -> str:
    """Return the folder of a case, which becomes its test suite; a case without a folder is its own suite."""
    name = str(PurePosixPath(case).parent)
    return case if name == "." else name


def _once(classname: str, name: str, label: str, taken: set[tuple[str, str]]) -> str:
    """Return a name that is not taken yet: unchanged, with the case's name, or with a number."""
    numbered = (f"{name} ({_name(label)}) ({number})" for number in itertools.count(2))
    for wanted in itertools.chain((name, f"{name} ({_name(label)})"), numbered):
        if (classname, wanted) not in taken:
            taken.add((classname, wanted))
            return wanted
    raise AssertionError


def _suite(name: str) -> Any:
    from junitparser import Attr
    from junitparser import xunit2 as junit

    class TestSuite(junit.TestSuite):
        file = Attr()

    return TestSuite(_clean(name))  # type: ignore[no-untyped-call]


def _tests(case: CaseReport, folder: str) -> Iterator[Any]:
    for subtest in case.subtests:
        yield _subtest(case, subtest)
    # The running command shows the reason why the guest ended; a command that failed earlier does not.
    telling = {SubtestStatus.BROKEN}
    if case.verdict in (Verdict.FAIL, Verdict.BUILD_ERROR):
        telling.add(SubtestStatus.FAIL)
    blamed = any(subtest.status in telling for subtest in case.subtests)
    faulty = any(not subtest.command for subtest in case.subtests)  # the reason may be a fault of the results themselves
    known = any(subtest.status is SubtestStatus.KNOWN_FAIL for subtest in case.subtests)
    silent = case.verdict in (Verdict.PASS, Verdict.SKIPPED) or (case.verdict is Verdict.KNOWN_FAIL and known)
    if case.red or not silent:
        silent = blamed and not faulty
    if not case.subtests or not silent or case.earlier or case.warnings:
        yield _whole(case, folder)


def _whole(case: CaseReport, folder: str) -> Any:
    """Make the test case for a case as a whole."""
    import junitparser
    from junitparser import xunit2 as junit

    name = case.name if case.case == folder else case.name.removeprefix(f"{folder}/")
    test = _test(name, f"{case.arch}.{folder.replace('/', '.')}", case.times.total)
    if case.verdict is Verdict.KNOWN_FAIL:
        told = "; ".join(entry.told for entry in case.known)
        test.append(junitparser.Skipped(_clean(f"known-fail: {told}: {_first_line(case)}")))
    elif case.verdict is Verdict.SKIPPED and not case.red:
        test.append(junitparser.Skipped(_clean(case.reason)))
    elif case.verdict is not Verdict.PASS:
        kind = junitparser.Error if case.verdict is Verdict.ERROR else junitparser.Failure
        test.append(_fault(kind, case))
    for attempt in case.earlier:
        test.append(_fault(junit.RerunFailure if case.red else junit.FlakyFailure, attempt))
    _say(test, case)
    return test


def _unfinished(case: Unfinished, folder: str, why: str, taken: set[tuple[str, str]]) -> Any:
    """Make the test case for a case that did not end: the report must show it although all others passed."""
    import junitparser

    test = _test(case.name.removeprefix(f"{folder}/"), f"{case.arch}.{folder.replace('/', '.')}", 0.0)
    test.name = _once(test.classname, test.name, case.label, taken)
    test.append(junitparser.Error(why, "unfinished"))
    return test


def _kernel(build: KernelBuild, taken: set[tuple[str, str]]) -> Any:
    """Make the test case for the build of a kernel: an error that is told once for all its cases."""
    import junitparser

    test = _test(build.kernel, f"{build.arch}.{KERNELS}", build.seconds)
    test.name = _once(test.classname, test.name, build.label, taken)
    if build.error:
        what = f"{build.error}: {build.first_error}".removesuffix(": ")
        fault = junitparser.Error(_clean(what.partition("\n")[0]), "kernel")
        parts = (build.error, build.first_error, build.hint, build.details)
        fault.text = _clean("\n".join(part for part in parts if part))
        test.append(fault)
    return test


def _subtest(case: CaseReport, subtest: Subtest) -> Any:
    import junitparser

    test = _test(subtest.name, f"{case.arch}.{case.name.replace('/', '.')}", subtest.seconds or 0.0)
    if subtest.status is SubtestStatus.KNOWN_FAIL:
        test.append(junitparser.Skipped(_clean(f"known-fail: {subtest.known}")))
    elif subtest.status in (SubtestStatus.SKIP, SubtestStatus.TODO):
        said = f"{subtest.status}: {subtest.reason}".removesuffix(": ")
        test.append(junitparser.Skipped(_clean(said)))
    elif subtest.status is SubtestStatus.NOT_RUN:
        test.append(junitparser.Skipped(_clean(subtest.reason or f"not run: {_first_line(case)}")))
    elif subtest.status is not SubtestStatus.PASS:
        what = subtest.reason or (f"status {subtest.exit_status}" if subtest.exit_status else "")
        if subtest.status is SubtestStatus.BROKEN:
            what = f"{what}: {_first_line(case)}".removeprefix(": ")
        fault = junitparser.Failure(_clean(what or subtest.status), str(subtest.status))
        said = "\n".join(subtest.output) or case.excerpt or ""
        fault.text = _clean("\n".join(part for part in (subtest.command, said, case.details) if part))
        test.append(fault)
        _say(test, case)
    return test


def _test(name: str, classname: str, seconds: float) -> Any:
    from junitparser import xunit2 as junit

    return junit.TestCase(_name(name), _name(classname), round(seconds, 3))


def _fault(kind: Any, case: CaseReport) -> Any:
    fault = kind(_clean(_first_line(case)), case.verdict.value)
    limits = f"limits: {'; '.join(limit.shown for limit in case.limits)}" if case.limits else ""
    retried = kind.__name__.startswith(("Flaky", "Rerun"))
    warnings = _warnings(case) if retried else ""  # warnings of the last attempt have an element of their own
    text = _clean("\n".join(part for part in (case.reason, case.excerpt or "", case.details, limits, warnings) if part))
    if retried:
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
        test.system_err = _clean(_warnings(case))


def _warnings(case: CaseReport) -> str:
    """Return the warnings, and the blocks of the kernel's reports."""
    lines = [f"warning: {line}" for line in case.warnings]
    for trouble in case.kernel_trouble:
        lines += ["", f"the kernel's report ({trouble.kind}):", *trouble.block]
    return "\n".join(lines)


def _first_line(case: CaseReport) -> str:
    return case.reason.partition("\n")[0] or case.verdict.value


def _name(text: str) -> str:
    """Return a name with escapes for characters that XML cannot hold, so that two names stay different.

    Line ends are escaped, too: XML readers turn them into blanks.
    """
    return re.sub(f"{_NOT_XML.pattern}|[\t\n\r]", lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _clean(text: str) -> str:
    # Jenkins' junit-attachments and GitLab interpret `[[ATTACHMENT|path]]` in a test's output as a file of the CI machine.
    return _NOT_XML.sub("\ufffd", text).replace("[[ATTACHMENT", "[ [ATTACHMENT")
