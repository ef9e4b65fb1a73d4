"""Runner: takes one case from start to verdict (`run_case`), and many cases in parallel (`run_cases`, `run_batches`).

    main thread     order ─► start cases that fit ─► wait for a case's end, or an interrupt ─► …
    executor        run_case(case, session, retries) ─► CaseResult         threads; the arguments can be pickled

Each fault becomes a verdict: the case's own fault, a wrong file of the suite, or our infrastructure. Only an interrupt ends the
run, and the runner still reports the finished cases then.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qcase import events
from qcase.arch import Arch
from qcase.errors import BuildError, ConfigError, KernelError, QcaseError
from qcase.host import process
from qcase.model import CaseResult, Fault, Phase, SubtestResult, SubtestStatus, Verdict
from qcase.prepare.prepare_case import prepare_case_assets
from qcase.prepare.prepared import BrokenBuild, PreparedCase
from qcase.prepare.run_folders import case_asset_layout
from qcase.prepare.session import Session
from qcase.run import requirements
from qcase.run.boot_plan import Logs, booted, logs_below, machine_spec, services_running
from qcase.run.booting import Booting, Origin
from qcase.suite.cases import BrokenCase, Case
from qcase.suite.known_failures import matches
from qcase.vm import arguments
from qcase.vm.console_log import ConsoleLog

if TYPE_CHECKING:
    from qcase.console.judge import Judge
    from qcase.console.steps import StepsJudge


_TAIL = 40  # lines of the console in a result
_DETAILS = 40  # lines of a build's output in a result
_LINE_INTERVAL = 0.1  # seconds between two events for the last line of a console
SAME_KEY = 0.25  # seconds in which several interrupts count as one: a terminal and `make` both send it
_RETRIED = (Verdict.FAIL, Verdict.PANIC, Verdict.TIMEOUT, Verdict.EXITED)  # verdicts that another attempt may change


class Inbox:
    """Queue of the main thread. Other threads put numbers of ended cases, or a listener's error; an interrupt puts None.

    A thread that waits for a lock misses a signal that arrived just before the wait. In an incident, only the next case that
    ended by its timeout woke the main thread, and the run reported that case as failed. So the main thread waits for a byte on a
    socket, and Python's own signal handler writes such a byte, too.
    """

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()  # a `put` may be interrupted by another
        self._out, self._in = socket.socketpair()
        self._in.setblocking(False)

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.set_wakeup_fd(self._in.fileno(), warn_on_full_buffer=False)

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._before)
        self._out.close()
        self._in.close()

    def put(self, item: int | Exception | None) -> None:
        self._items.put(item)
        with contextlib.suppress(OSError):  # the socket is full, so the main thread wakes up anyway; or it is closed
            self._in.send(b"\0")

    def get(self) -> int | Exception | None:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._items.get_nowait()
            self._out.recv(1 << 10)


def run_case(case: Case | BrokenCase, session: Session, retries: int = 0) -> CaseResult:
    """Run one case from sources to verdict. A case that does not pass is run again, at most `retries` times.

    A fault becomes a verdict, never an exception (except for an interrupt).
    """
    began = time.monotonic()
    if isinstance(case, Case):
        logs_below(session, case.display_name).clear()
    earlier: list[CaseResult] = []
    while True:
        result = _attempt(case, session, again=bool(earlier))
        if result.verdict is Verdict.EXITED and process.stops_within(SAME_KEY):
            break  # the end of a whole service or job sends its signal to QEMU, too; that is no failure of the case
        if result.verdict not in _RETRIED or len(earlier) >= retries or process.stopped():
            break
        assert isinstance(case, Case)
        earlier.append(logs_below(session, case.display_name).put_by(result, len(earlier) + 1))
        session.emit(events.Retried(case.display_name, len(earlier), earlier[-1]))
    if result.verdict is Verdict.SKIPPED and session.strict_skips:
        result = replace(result, fault=Fault.CASE)
    return session.known.heeded(replace(result, earlier=tuple(earlier), total=_taken(began, case, session)))


def _taken(began: float, case: Case | BrokenCase, session: Session) -> float:
    """Return the seconds since the beginning, without those in which the case waited for the build of its kernel."""
    waited = session.kernels.waited(case) if isinstance(case, Case) else 0.0
    return max(0.0, time.monotonic() - began - waited)


def _attempt(case: Case | BrokenCase, session: Session, *, again: bool) -> CaseResult:
    began = time.monotonic()
    if isinstance(case, BrokenCase):
        broken = _faulty(case.display_name, session.arch, case.error, 0.0)
        return replace(broken, path=session.workspace.relative(case.path))
    logs = logs_below(session, case.display_name)
    try:
        missing = requirements.missing(case, session)
        result = _skipped(case, session, missing) if missing else _run(case, session, logs, again=again)
    except _LacksKvmError as lacks:
        result = _skipped(case, session, str(lacks))
    except QcaseError as error:
        result = _faulty(case.display_name, session.arch, error, 0.0)
        result = replace(result, pipeline=case.pipeline)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        result = CaseResult(
            case.display_name,
            session.arch,
            Verdict.ERROR,
            Fault.INFRA,
            f"{place}{error.strerror or error}",
            pipeline=case.pipeline,
        )
    except Exception as error:
        result = replace(own_fault(case.display_name, session.arch, error), pipeline=case.pipeline)
    warnings = tuple(str(problem) for problem in case.warnings)
    path = session.workspace.relative(case.path)
    result = replace(
        result, total=_taken(began, case, session), warnings=warnings + result.warnings, path=path, config=case.config_path.name
    )
    return session.known.judged(result, case)


def own_fault(case: str, arch: Arch, error: BaseException) -> CaseResult:
    """Return the result for a fault of qcase itself: an `error` verdict with the traceback, so that the other cases still run."""
    reason = f"qcase has a fault: {type(error).__name__}: {error}\nhint: please report it, with the lines below"
    details = "".join(traceback.format_exception(error)[-6:])
    return CaseResult(case, arch, Verdict.ERROR, Fault.INFRA, reason, details=details)


def _run(case: Case, session: Session, logs: Logs, *, again: bool) -> CaseResult:
    emit = session.emit
    name = case.display_name
    logs.folder.mkdir(parents=True, exist_ok=True)
    emit(events.PhaseStarted(name, Phase.PREPARE))
    layout = case_asset_layout(session.workspace.root, session.target, name)
    with ExitStack() as stack:
        prepared = stack.enter_context(prepare_case_assets(case, layout, session, logs.build))
        emit(events.ImageReady(name, prepared.pipeline, prepared.cache, _shown(prepared.image), prepared.seconds))
        emit(events.PhaseStarted(name, Phase.BOOT))
        if prepared.commands is not None:
            case = replace(case, config=replace(case.config, test_commands=prepared.commands))
        try:
            judge, said, origin = _boot(case, prepared, session, logs, again=again)
        except QcaseError as error:
            failed = _faulty(name, session.arch, error, 0.0)
            return replace(
                failed,
                pipeline=prepared.pipeline,
                cache=prepared.cache,
                phase=Phase.BOOT,
                prepare=prepared.seconds,
                image=_shown(prepared.image) or None,
                booted=booted(case, prepared, session),
            )
    assert judge.ruling is not None
    ruling = judge.ruling
    ended = time.monotonic()
    decided = judge.matched_at if judge.matched_at is not None else ended
    passed, skipped = ruling.verdict is Verdict.PASS, ruling.verdict is Verdict.SKIPPED
    result = CaseResult(
        name,
        session.arch,
        ruling.verdict,
        Fault.NONE if passed or skipped else Fault.CASE,
        ruling.reason,
        pipeline=prepared.pipeline,
        cache=prepared.cache,
        phase=ruling.phase,
        pattern=ruling.pattern,
        excerpt=ruling.excerpt,
        prepare=prepared.seconds,
        boot=(judge.prompt_at or decided) - judge.started,
        command=None if judge.prompt_at is None else max(0.0, decided - judge.prompt_at),
        subtests=judge.subtests(),
        console_log=f"{logs.shown}/console.log",
        console_tail=() if passed else judge.tail(_TAIL),
        image=_shown(prepared.image) or None,
        warnings=judge.warnings,
        kernel_trouble=judge.kernel_trouble(),
        details="\n".join(ruling.block) or _last_lines(said),
        limits=judge.limits_used(ended),
        by_tests=ruling.by_tests,
        booted=replace(booted(case, prepared, session), template=origin.template, cold=origin.cold),
    )
    result = of_selected(result, case.test)
    if prepared.broken:
        result = _with_broken_builds(result, prepared.broken)
    return _with_left_out(result, prepared) if prepared.unbuilt else result


def _shown(image: Path | None) -> str:
    return "" if image is None else str(image)


def of_selected(result: CaseResult, test: str) -> CaseResult:
    """Return a result, as a fail if a test was selected and its command ran others. Nothing that is known excuses that.

    A pass needs a test of that name that passed; what is skipped, or fails by its tests, one of whatever status.
    """
    tests = [one for one in result.subtests if test in one.name or matches(test, one.name)]
    if result.verdict is Verdict.PASS:
        tests = [one for one in tests if one.status is SubtestStatus.PASS]
    decided = result.verdict is Verdict.PASS or (result.subtests and (result.by_tests or result.verdict is Verdict.SKIPPED))
    if not test or tests or not decided:
        return result
    ended = "passed" if result.verdict is Verdict.PASS else "ran"
    what = f"no test {ended} that is called {test!r}: the command ran others"
    reason = f"{what}; {result.reason}" if result.verdict is Verdict.FAIL else what
    return replace(result, verdict=Verdict.FAIL, fault=Fault.CASE, reason=reason, by_tests=False)


def _skipped(case: Case, session: Session, why: str) -> CaseResult:
    """Return the result of a case that this machine lacks something for."""
    return CaseResult(
        case.display_name, session.arch, Verdict.SKIPPED, Fault.NONE, why, pipeline=case.pipeline, phase=Phase.PREPARE
    )


class _LacksKvmError(Exception):
    """Raised if KVM, which the case requires, turned out not to work."""


def _boot(
    case: Case, prepared: PreparedCase, session: Session, logs: Logs, *, again: bool
) -> tuple[Judge | StepsJudge, str, Origin]:
    """Boot the image and judge its console. Return the judge, QEMU's own output at its end, and where the boot began."""
    spec = machine_spec(case, prepared, session)
    with services_running(case, session, logs) as forwards:
        return _boot_with(replace(spec, forwards=forwards), case, prepared, session, logs, again=again)


def _boot_with(
    spec: arguments.MachineSpec, case: Case, prepared: PreparedCase, session: Session, logs: Logs, *, again: bool
) -> tuple[Judge | StepsJudge, str, Origin]:
    argv = arguments.arguments(spec)
    if why := requirements.lacks_kvm(case.config, argv):
        raise _LacksKvmError(why)
    with logs.fresh("qemu.sh") as file:
        file.write(arguments.pasteable(argv).encode() + b"\n")
    with ExitStack() as stack:
        log = ConsoleLog(stack.enter_context(logs.fresh("console.log")))
        for name in spec.consoles:
            log.others[name] = ConsoleLog(stack.enter_context(logs.fresh(f"console-{name}.log")))
        again = again or bool(case.repetition)

        def watch(judge: Judge | StepsJudge) -> _Watch:
            return _Watch(case.display_name, judge, session.emit, lambda one: _trusted(one, prepared))

        judge, said, origin = Booting(case, prepared, session, spec, tuple(argv), again, watch).boot(log)
        log.close()
    if log.cut:
        judge.warnings += (f"{log.cut} bytes of the console are not in console.log",)
    if judge.more_trouble:
        judge.warnings += (f"the kernel reported trouble {judge.more_trouble} more times at least, see console.log",)
    return judge, said, origin


class _Watch:
    """Emits events about a running guest: phases, finished subtests, and its last line every `_LINE_INTERVAL` seconds."""

    def __init__(
        self,
        case: str,
        judge: Judge | StepsJudge,
        emit: events.Emit,
        trusted: Callable[[SubtestResult], SubtestResult] = lambda one: one,
    ) -> None:
        self._case = case
        self._trusted = trusted
        self._judge = judge
        self._emit = emit
        self._phase = Phase.BOOT
        self._said_at = 0.0

    def __call__(self) -> None:
        if self._judge.phase is not self._phase:
            self._phase = self._judge.phase
            self._emit(events.PhaseStarted(self._case, self._phase))
        for subtest in self._judge.finished_subtests():
            self._emit(events.SubtestFinished(self._case, self._trusted(subtest)))
        now = time.monotonic()
        if now >= self._said_at + _LINE_INTERVAL:
            self._said_at = now
            if lines := self._judge.tail(1):
                self._emit(events.ConsoleLine(self._case, lines[0]))


def _with_broken_builds(result: CaseResult, broken: Sequence[BrokenBuild]) -> CaseResult:
    """Add the failed builds of subcases to a group's result. The group does not pass, since its commands lack programs.

    The gravest fault of the builds sets verdict and exit code, as it does for a single case.
    """
    names = ", ".join(build.subcase for build in broken)
    subtests = tuple(_blame(subtest, names) for subtest in result.subtests)
    what = f"did not build: {names}"
    verdict, reason = result.verdict, result.reason
    worst = _faulty(result.case, result.arch, max((build.error for build in broken), key=lambda error: error.exit_code), 0.0)
    if worst.fault is not Fault.CASE:
        what = f"{what}: {worst.reason}"
    others = [s for s in subtests if s.status is not SubtestStatus.PASS and not s.reason.startswith("not found; ")]
    if verdict in (Verdict.PASS, Verdict.SKIPPED) or (verdict is Verdict.FAIL and not others):
        verdict, reason = worst.verdict, what
    else:
        reason = f"{reason}; {what}"
    said = "\n".join(f"{build.subcase}: {_said(build.error)}" for build in broken)
    result = replace(result, verdict=verdict, fault=worst.fault, reason=reason, subtests=subtests, details=said)
    return replace(result, by_tests=False, unbuilt=True)


def _said(error: QcaseError) -> str:
    hint = f"\nhint: {error.hint}" if error.hint else ""
    return f"{error.what}{hint}\n{_last_lines(getattr(error, 'log', ''))}".rstrip()


def _with_left_out(result: CaseResult, prepared: PreparedCase) -> CaseResult:
    """Add warnings for failed subcases that no command names to a group's result. A passed command that could have run one of
    their programs becomes `broken`, and the group does not pass.
    """
    names = ", ".join(build.subcase for build in prepared.unbuilt)
    warnings = [f"{build.subcase}, which no command names, is left out: {build.error.what}" for build in prepared.unbuilt]
    result = replace(result, warnings=(*result.warnings, *warnings))
    if not any(subtest.command in prepared.untrusted for subtest in result.subtests):
        return result
    subtests = tuple(_trusted(subtest, prepared) for subtest in result.subtests)
    said = "\n".join(f"{build.subcase}: {_said(build.error)}" for build in prepared.unbuilt)
    worst = max((build.error for build in prepared.unbuilt), key=lambda error: error.exit_code)
    failed = _faulty(result.case, result.arch, worst, 0.0)
    what = f"did not build: {names}"
    if result.verdict not in (Verdict.PASS, Verdict.SKIPPED):
        reason = result.reason if failed.fault is Fault.CASE else f"{result.reason}; {what}: {failed.reason}"
        return replace(result, subtests=subtests, by_tests=False, unbuilt=True, reason=reason, fault=failed.fault)
    return replace(result, verdict=failed.verdict, fault=failed.fault, reason=what, subtests=subtests, details=said)


def _trusted(subtest: SubtestResult, prepared: PreparedCase) -> SubtestResult:
    """Return a subtest, as `broken` if it passed or was skipped, but could have run a program that did not build."""
    if subtest.status not in (SubtestStatus.PASS, SubtestStatus.SKIP) or subtest.command not in prepared.untrusted:
        return subtest
    names = ", ".join(build.subcase for build in prepared.unbuilt)
    return replace(subtest, status=SubtestStatus.BROKEN, reason=f"may run what {names} installs, which does not build")


def _blame(subtest: SubtestResult, names: str) -> SubtestResult:
    """Add the names of failed builds to a subtest with exit status 126 or 127, the shell's statuses for a missing program."""
    if subtest.exit_status not in (126, 127):
        return subtest
    return replace(subtest, reason=f"not found; did not build: {names}")


def _faulty(case: str, arch: Arch, error: QcaseError, seconds: float) -> CaseResult:
    """Return the result of a case that failed before boot, or whose QEMU failed."""
    if isinstance(error, BuildError):
        verdict, fault, details = Verdict.BUILD_ERROR, Fault.CASE, _last_lines(error.log)
    elif isinstance(error, KernelError):  # the case tests this kernel: neither the configuration nor the machine is at fault
        verdict = Verdict.BUILD_ERROR if error.of_case else Verdict.ERROR
        fault, details = Fault.CASE, _last_lines(error.log)
    else:
        verdict, fault, details = Verdict.ERROR, Fault.CONFIG if error.exit_code == ConfigError.exit_code else Fault.INFRA, ""
    where = f"{error.where}: " if error.where and error.where != case else ""
    hint = f"\nhint: {error.hint}" if error.hint else ""
    return CaseResult(
        case, arch, verdict, fault, f"{where}{error.what}{hint}", phase=Phase.PREPARE, details=details, total=seconds
    )


def _last_lines(log: str) -> str:
    return "\n".join(log.strip().splitlines()[-_DETAILS:])
