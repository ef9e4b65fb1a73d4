"""One case from start to verdict, and many of them at once, each a function of its own.

    main thread     order ─► start what fits ─► wait for an end, or an interrupt ─► …
    executor        run_case(case, session, retries) ─► CaseResult         threads; the arguments can be pickled

What goes wrong becomes a verdict: the case's own fault, a wrong file of the suite, or our infrastructure. Only an interrupt
ends the run, and then what had finished is still reported.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import re
import secrets
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from qcase import events, process, qemu, schedule
from qcase.errors import BuildError, ConfigError, InfraError, KernelError, QcaseError
from qcase.model import Arch, Booted, CaseResult, Fault, Phase, SubtestResult, SubtestStatus, Verdict
from qcase.pipelines import grouped
from qcase.prepare import BrokenBuild, PreparedCase, Session, case_asset_layout, prepare_case_assets
from qcase.schedule import Budget, Need
from qcase.suite import BrokenCase, Case

if TYPE_CHECKING:
    from qcase.console import Judge, Limits, Rules

_TAIL = 40  # lines of the console in a result
_DETAILS = 40  # lines of what a build said
_LINE_INTERVAL = 0.1  # seconds between two events for the last line of a console
_SAME_KEY = 0.25  # seconds in which several interrupts are one: a terminal and `make` both pass it on
_PATIENCE = 10.0  # seconds for cases to end after an interrupt; what has not by then goes with the process
_LOG_NAMES = ("build.log", "console.log", "qemu.sh")
_RETRIED = (Verdict.FAIL, Verdict.PANIC, Verdict.TIMEOUT, Verdict.EXITED)  # what another attempt may end otherwise


@dataclass(frozen=True)
class Plan:
    """How cases are to be run. `jobs`: so many at once, None for what the machine carries. `retries`: of every case, None for
    what its file says. `repeat`: how often each case runs. `max_failures`: after so many, nothing new is started; 0 for all.
    `seconds`: what cases took the last time, by display name. `shard`, `partition`: see `events.RunStarted`.
    """

    jobs: int | None = None
    retries: int | None = None
    repeat: int = 1
    max_failures: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    shard: str = ""
    partition: str = ""


def run_cases(
    cases: Sequence[Case | BrokenCase], session: Session, plan: Plan | None = None, executor: Executor | None = None
) -> events.RunFinished:
    """Run cases. One bad case never stops the others, nor hides the summary; results are in the order of `cases`.

    `executor` takes the place of our own threads.
    """
    plan = plan or Plan()
    tasks = [_Task(case, repetition) for case in cases for repetition in _repetitions(plan.repeat)]
    budget = Budget(plan.jobs, schedule.machine())
    with ExitStack() as stack:
        if executor is None:
            places = max(1, min(budget.places, len(tasks)))
            executor = ThreadPoolExecutor(places, thread_name_prefix="case")
            stack.callback(executor.shutdown, wait=False, cancel_futures=True)
        return _Run(tasks, session, plan, budget, executor).go()


def _repetitions(count: int) -> Sequence[int]:
    return range(1, count + 1) if count > 1 else (0,)


@dataclass(frozen=True)
class _Task:
    """One case to run. A repetition goes by a name of its own, so that it has logs and a run folder of its own."""

    case: Case | BrokenCase
    repetition: int

    @property
    def label(self) -> str:
        return f"{self.case.display_name}#{self.repetition}" if self.repetition else self.case.display_name

    @property
    def labelled(self) -> Case | BrokenCase:
        if isinstance(self.case, Case):
            return replace(self.case, display_name=self.label, repetition=self.repetition)
        return replace(self.case, display_name=self.label)

    def result(self, result: CaseResult) -> CaseResult:
        return replace(result, case=self.case.display_name, repetition=self.repetition)


class _Run:
    """Starts cases, and gathers what becomes of them."""

    def __init__(self, tasks: Sequence[_Task], session: Session, plan: Plan, budget: Budget, executor: Executor) -> None:
        self._tasks = tasks
        self._session = session
        self._plan = plan
        self._budget = budget
        self._executor = executor
        # Told by other threads, and by the handler of a signal: its `put` may be interrupted by another one.
        self._ended: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()
        self._results: dict[int, CaseResult] = {}
        self._running: dict[int, tuple[Future[CaseResult], Need]] = {}
        self._lock = threading.Lock()  # a case that ends is either reported whole, or interrupted
        self._interrupted = False

    def go(self) -> events.RunFinished:
        session, plan = self._session, self._plan
        began = time.monotonic()
        with _interrupts(self._ended):
            labels = tuple(task.label for task in self._tasks)
            session.emit(
                events.RunStarted(
                    session.arch,
                    session.target,
                    labels,
                    session.accel_asked,
                    str(session.workspace.root),
                    min(self._budget.places, len(labels)),
                    plan.shard,
                    plan.partition,
                    time.time(),
                )
            )
            try:
                self._work()
            finally:
                self._stop()
            if not self._interrupted:
                self._skip_the_rest()
            results = tuple(self._results[at] for at in sorted(self._results))
            finished = events.RunFinished(results, time.monotonic() - began, self._interrupted)
            session.emit(finished)
        return finished

    def _work(self) -> None:
        waiting = list(range(len(self._tasks)))
        if self._budget.places > 1:  # one after the other they take as long in any order
            waiting = schedule.order([task.case for task in self._tasks], self._plan.seconds)
        while True:
            if not self._enough():
                waiting = [at for at in waiting if not self._started(at)]
            if not self._running:
                return
            ended = self._ended.get()
            if ended is None:
                with self._lock:
                    self._interrupted = True
                return
            if isinstance(ended, Exception):
                raise ended
            _, need = self._running.pop(ended)
            self._budget.give(need)

    def _enough(self) -> bool:
        failures = sum(not result.passed for result in list(self._results.values()))
        return 0 < self._plan.max_failures <= failures

    def _started(self, at: int) -> bool:
        """Start a case if there is room for it now."""
        task = self._tasks[at]
        need = self._budget.take(task.case)
        if need is None:
            return False
        retries = self._plan.retries
        if retries is None:
            retries = task.case.config.retries if isinstance(task.case, Case) else 0
        self._session.emit(events.CaseStarted(task.label))
        future = self._executor.submit(run_case, task.labelled, self._session, retries)
        self._running[at] = future, need
        future.add_done_callback(lambda future: self._finish(at, future))
        return True

    def _finish(self, at: int, future: Future[CaseResult]) -> None:
        """Called where the case ran, so that no interrupt comes between a result and its report."""
        try:
            with self._lock:
                if self._interrupted or future.cancelled():
                    return
                task = self._tasks[at]
                error = future.exception()
                result = future.result() if error is None else _own_fault(task.label, self._session.arch, error)
                self._results[at] = task.result(result)
                self._session.emit(events.CaseFinished(self._results[at]))
        except Exception as error:  # a listener's: nobody can be told any more, and the run ends
            self._ended.put(error)
        finally:
            self._ended.put(at)

    def _stop(self) -> None:
        """End what still runs: after an interrupt, or where nobody listens any more."""
        if not self._running:
            return
        with self._lock:
            self._interrupted = True
        self._session.stop()
        if not wait_for([future for future, _ in self._running.values()], _PATIENCE).not_done:
            process.go_on()

    def _skip_the_rest(self) -> None:
        failures = sum(not result.passed for result in self._results.values())
        reason = f"not run, because {failures} case{' has' if failures == 1 else 's have'} failed"
        for at, task in enumerate(self._tasks):
            if at not in self._results:
                skipped = CaseResult(task.label, self._session.arch, Verdict.SKIPPED, Fault.NONE, reason)
                self._results[at] = task.result(skipped)
                self._session.emit(events.CaseFinished(self._results[at]))


@contextmanager
def _interrupts(inbox: queue.SimpleQueue[int | Exception | None]) -> Iterator[None]:
    """Interrupts go to `inbox`, as None: they never come in the middle of something. The second one ends everything at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def interrupt(*_: object) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            inbox.put(None)
        elif now > first[0] + _SAME_KEY:
            process.leave_at_once()

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_case(case: Case | BrokenCase, session: Session, retries: int = 0) -> CaseResult:
    """Run one case from sources to verdict, again if it does not pass, at most `retries` times.

    A fault becomes a verdict, never an exception (but for an interrupt).
    """
    began = time.monotonic()
    if isinstance(case, Case):
        _logs(session, case.display_name).clear()
    earlier: list[CaseResult] = []
    while True:
        result = _attempt(case, session)
        if result.verdict not in _RETRIED or len(earlier) >= retries or process.stopped():
            break
        assert isinstance(case, Case)
        earlier.append(_logs(session, case.display_name).put_by(result, len(earlier) + 1))
        session.emit(events.Retried(case.display_name, len(earlier), earlier[-1]))
    return replace(result, earlier=tuple(earlier), total=time.monotonic() - began)


def _attempt(case: Case | BrokenCase, session: Session) -> CaseResult:
    began = time.monotonic()
    if isinstance(case, BrokenCase):
        broken = _faulty(case.display_name, session.arch, case.error, 0.0)
        return replace(broken, path=session.workspace.relative(case.path))
    logs = _logs(session, case.display_name)
    try:
        result = _run(case, session, logs)
    except QcaseError as error:
        result = _faulty(case.display_name, session.arch, error, time.monotonic() - began)
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
        result = replace(_own_fault(case.display_name, session.arch, error), pipeline=case.pipeline)
    warnings = tuple(str(problem) for problem in case.warnings)
    path = session.workspace.relative(case.path)
    return replace(result, total=time.monotonic() - began, warnings=warnings + result.warnings, path=path)


def _own_fault(case: str, arch: Arch, error: BaseException) -> CaseResult:
    """A fault of qcase's own. It must not take the other cases with it, nor look like the case's."""
    reason = f"qcase has a fault: {type(error).__name__}: {error}\nhint: please report it, with the lines below"
    details = "".join(traceback.format_exception(error)[-6:])
    return CaseResult(case, arch, Verdict.ERROR, Fault.INFRA, reason, details=details)


@dataclass(frozen=True)
class Logs:
    """Where a case's logs are kept from run to run: `target/qcase/logs/<arch>/<display name>/`."""

    folder: Path
    shown: str  # the folder, as a person is told it

    @property
    def build(self) -> Path:
        return self.folder / "build.log"

    def clear(self) -> None:
        """Remove the logs of earlier runs: by name, because the folder of a case below this one may be in here."""
        for old in self.folder.glob("*.*"):
            if re.fullmatch(rf"({'|'.join(map(re.escape, _LOG_NAMES))})(\.attempt-\d+)?", old.name) and not old.is_dir():
                old.unlink(missing_ok=True)

    def put_by(self, result: CaseResult, attempt: int) -> CaseResult:
        """Keep the logs of an attempt that is followed by another one, beside those of that."""
        for name in _LOG_NAMES:
            with contextlib.suppress(FileNotFoundError):
                (self.folder / name).rename(self.folder / f"{name}.attempt-{attempt}")
        kept = f"{result.console_log}.attempt-{attempt}" if result.console_log else None
        return replace(result, console_log=kept)

    @contextmanager
    def fresh(self, name: str) -> Iterator[IO[bytes]]:
        """A new file under an old name: another run of the same case, now or before, keeps its own to write to."""
        staged = self.folder / f".{name}.{process.run_id()}"
        with staged.open("wb", buffering=0) as file:
            staged.replace(self.folder / name)
            try:
                yield file
            except OSError as error:
                # A write knows no file name. Nothing else that is done with a log open can fill a disk.
                if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise InfraError(f"cannot be written: {error.strerror}", where=f"{self.shown}/{name}") from None


def logs_of(case: Case, session: Session) -> Logs:
    """The place of a case's logs, which is there from now on."""
    logs = _logs(session, case.display_name)
    logs.folder.mkdir(parents=True, exist_ok=True)
    return logs


def _logs(session: Session, case: str) -> Logs:
    folder = session.workspace.root / "target" / "qcase" / "logs" / session.arch / case
    return Logs(folder, session.workspace.relative(folder))


def rules(case: Case, session: Session) -> Rules:
    """What the console waits for, types and decides by."""
    from qcase.console import Rules

    config = case.config
    if config.is_grouped:
        limit = limits(case, session).command
        return grouped.rules(config, session.workspace.config.grouped, secrets.token_hex(4), limit)
    return Rules(
        prompt=config.shell_prefix,
        command=config.shell_init_cmd,
        success=config.success_regex,
        fail=config.fail_regex,
        match_all=config.match == "all",
        from_prompt=config.match_from == "prompt",
        resets=config.reset,
    )


def limits(case: Case, session: Session) -> Limits:
    """The limits of a case's time, scaled."""
    from qcase.console import Limits

    scale = session.workspace.config.run.timeout_scale
    config = case.config
    given = (config.timeout, config.boot_timeout, config.command_timeout, config.idle_timeout)
    return Limits(*(None if limit is None else limit * scale for limit in given))


def machine_spec(case: Case, prepared: PreparedCase, session: Session) -> qemu.Spec:
    """What the machine of a case is made of. Raises `InfraError` where KVM has to work and does not."""
    guest = prepared.guest
    spec = qemu.Spec(
        arch=case.arch,
        args=case.config.args,
        image=prepared.image,
        kernel=prepared.kernel.path,
        initrd=guest.initrd,
        append=guest.append,
        network=case.config.network or session.workspace.config.run.network,
        processors=case.config.smp,
        reset=case.config.reset,
    )
    if prepared.uefi is not None:
        firmware = prepared.uefi.firmware
        flash = (firmware.code,) if firmware.variables is None else (firmware.code, firmware.variables)
        spec = replace(spec, flash=flash, system_partition=prepared.uefi.partition)
    if qemu.names_accelerator(spec.args):
        return spec
    return replace(spec, accel=session.accelerator(case, prepared.kernel, spec))


def booted(case: Case, prepared: PreparedCase, session: Session) -> Booted:
    """For reports: what was booted, and by what."""
    try:
        used = qemu.accelerator(qemu.arguments(machine_spec(case, prepared, session)))
    except InfraError:  # KVM, which had to work
        used = session.accel_asked
    firmware = prepared.uefi.firmware if prepared.uefi is not None else None
    return Booted(
        str(prepared.kernel.path),
        prepared.kernel.sha256,
        used,
        str(firmware.code) if firmware is not None else None,
        firmware.sha256 if firmware is not None else None,
    )


def command_of(case: Case, session: Session) -> tuple[list[str], Path]:
    """The QEMU command of a case, with all that it boots prepared, and the image that it names."""
    logs = _logs(session, case.display_name)
    logs.folder.mkdir(parents=True, exist_ok=True)
    layout = case_asset_layout(session.workspace.root, session.target, case.display_name)
    with prepare_case_assets(case, layout, session, logs.build) as prepared:
        return qemu.arguments(machine_spec(case, prepared, session)), prepared.image


def _run(case: Case, session: Session, logs: Logs) -> CaseResult:
    emit = session.emit
    name = case.display_name
    logs.folder.mkdir(parents=True, exist_ok=True)
    emit(events.PhaseStarted(name, Phase.PREPARE))
    layout = case_asset_layout(session.workspace.root, session.target, name)
    with ExitStack() as stack:
        prepared = stack.enter_context(prepare_case_assets(case, layout, session, logs.build))
        emit(events.ImageReady(name, prepared.pipeline, prepared.cache, str(prepared.image), prepared.seconds))
        emit(events.PhaseStarted(name, Phase.BOOT))
        if prepared.commands is not None:
            case = replace(case, config=replace(case.config, test_commands=prepared.commands))
        try:
            judge, said = _boot(case, prepared, session, logs)
        except QcaseError as error:
            failed = _faulty(name, session.arch, error, 0.0)
            return replace(
                failed,
                pipeline=prepared.pipeline,
                cache=prepared.cache,
                phase=Phase.BOOT,
                prepare=prepared.seconds,
                image=str(prepared.image),
                booted=booted(case, prepared, session),
            )
    assert judge.ruling is not None
    ruling = judge.ruling
    ended = time.monotonic()
    decided = judge.matched_at if judge.matched_at is not None else ended
    passed = ruling.verdict is Verdict.PASS
    result = CaseResult(
        name,
        session.arch,
        ruling.verdict,
        Fault.NONE if passed else Fault.CASE,
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
        image=str(prepared.image),
        warnings=judge.warnings,
        details="\n".join(ruling.block) or _last_lines(said),
        limits=judge.limits_used(ended),
        booted=booted(case, prepared, session),
    )
    return _with_broken_builds(result, prepared.broken) if prepared.broken else result


def _boot(case: Case, prepared: PreparedCase, session: Session, logs: Logs) -> tuple[Judge, str]:
    """Boot the image and judge what comes of it; and what QEMU itself said when it ended."""
    argv = qemu.arguments(machine_spec(case, prepared, session))
    with logs.fresh("qemu.sh") as file:
        file.write(qemu.pasteable(argv).encode() + b"\n")
    with logs.fresh("console.log") as file:
        log = qemu.ConsoleLog(file)
        started = time.monotonic()
        with qemu.start(case.arch, argv, keep_open=prepared.keep_open) as machine:
            from qcase.console import Judge  # 25 ms the first time, in which the guest boots

            judge = Judge(rules(case, session), started=started, limits=limits(case, session))
            said = qemu.converse(machine, judge, log, _Watch(case.display_name, judge, session.emit))
        log.close()
    if log.cut:
        judge.warnings += (f"{log.cut} bytes of the console are not in console.log",)
    return judge, said


class _Watch:
    """Says what a running guest does, as often as a person can read it."""

    def __init__(self, case: str, judge: Judge, emit: events.Emit) -> None:
        self._case = case
        self._judge = judge
        self._emit = emit
        self._phase = Phase.BOOT
        self._said_at = 0.0

    def __call__(self) -> None:
        if self._judge.phase is not self._phase:
            self._phase = self._judge.phase
            self._emit(events.PhaseStarted(self._case, self._phase))
        for subtest in self._judge.finished_subtests():
            self._emit(events.SubtestFinished(self._case, subtest))
        now = time.monotonic()
        if now >= self._said_at + _LINE_INTERVAL:
            self._said_at = now
            if lines := self._judge.tail(1):
                self._emit(events.ConsoleLine(self._case, lines[0]))


def _with_broken_builds(result: CaseResult, broken: Sequence[BrokenBuild]) -> CaseResult:
    """A group of which a subcase did not build: its commands could not pass, and nor does the group."""
    names = ", ".join(build.subcase for build in broken)
    subtests = tuple(_blame(subtest, names) for subtest in result.subtests)
    what = f"did not build: {names}"
    verdict, reason = result.verdict, result.reason
    others = [s for s in subtests if s.status is not SubtestStatus.PASS and not s.reason.startswith("not found; ")]
    if verdict is Verdict.PASS or (verdict is Verdict.FAIL and not others):
        verdict, reason = Verdict.BUILD_ERROR, what
    else:
        reason = f"{reason}; {what}"
    said = "\n".join(f"{build.subcase}: {build.error.what}\n{_last_lines(build.error.log)}".rstrip() for build in broken)
    return replace(result, verdict=verdict, fault=Fault.CASE, reason=reason, subtests=subtests, details=said)


def _blame(subtest: SubtestResult, names: str) -> SubtestResult:
    """126 and 127 are the shell's words for a program that is not there: most likely the one that did not build."""
    if subtest.exit_status not in (126, 127):
        return subtest
    return replace(subtest, reason=f"not found; did not build: {names}")


def _faulty(case: str, arch: Arch, error: QcaseError, seconds: float) -> CaseResult:
    """The result of a case that did not come to boot, or whose QEMU did not."""
    if isinstance(error, BuildError):
        verdict, fault, details = Verdict.BUILD_ERROR, Fault.CASE, _last_lines(error.log)
    elif isinstance(error, KernelError):  # whose tests these are: neither the configuration nor the machine is wrong
        verdict, fault, details = Verdict.ERROR, Fault.CASE, _last_lines(error.log)
    else:
        verdict, fault, details = Verdict.ERROR, Fault.CONFIG if error.exit_code == ConfigError.exit_code else Fault.INFRA, ""
    where = f"{error.where}: " if error.where and error.where != case else ""
    hint = f"\nhint: {error.hint}" if error.hint else ""
    return CaseResult(
        case, arch, verdict, fault, f"{where}{error.what}{hint}", phase=Phase.PREPARE, details=details, total=seconds
    )


def _last_lines(log: str) -> str:
    return "\n".join(log.strip().splitlines()[-_DETAILS:])
