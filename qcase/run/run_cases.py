"""Many cases on one machine: order, slots, repetitions, interrupts."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from qcase import events
from qcase.host import process
from qcase.model import CaseResult, Fault, NotRun, Verdict, labelled
from qcase.prepare.session import Session
from qcase.run import schedule
from qcase.run.run_case import SAME_KEY, Inbox, own_fault, run_case
from qcase.run.schedule import Budget, Need
from qcase.suite.cases import BrokenCase, Case

_PATIENCE = 10.0  # timeout in seconds for cases to end after an interrupt; the others end with the process


@dataclass(frozen=True)
class Plan:
    """Options of a run. `jobs`: limit of parallel cases, None for the machine's capacity. `retries`: for every case, None for the
    value of the case's file. `repeat`: runs of each case. `max_failures`: number of failures after which no case is started; 0
    for no limit. `notes`: returns warnings about the run as a whole, from its results. `seconds`: last durations of the cases, by
    display name, or by label with several architectures. `cold`: every case boots from the start. `shard`, `partition`,
    `not_run`: see `events.RunStarted`.
    """

    jobs: int | None = None
    retries: int | None = None
    repeat: int = 1
    max_failures: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    shard: str = ""
    partition: str = ""
    cold: bool = False
    not_run: tuple[NotRun, ...] = ()
    notes: Callable[[Sequence[CaseResult]], Sequence[str]] = lambda _: ()


def run_cases(
    cases: Sequence[Case | BrokenCase], session: Session, plan: Plan | None = None, executor: Executor | None = None
) -> events.RunFinished:
    """Run cases of one architecture, see `run_batches`."""
    return run_batches([Batch(session, cases)], session.emit, plan, executor)


@dataclass(frozen=True)
class Batch:
    """The cases of one architecture. `variant`: the architecture's name if there are several batches, else empty."""

    session: Session
    cases: Sequence[Case | BrokenCase]
    variant: str = ""


def run_batches(
    batches: Sequence[Batch], emit: events.Emit, plan: Plan | None = None, executor: Executor | None = None
) -> events.RunFinished:
    """Run cases. A failing case never stops the others, nor hides the summary. The results are in the order of the cases.

    `emit` gets the events of all cases. The session of a batch with a variant sends its events through `events.of_variant`.
    `executor` replaces our own threads.
    """
    plan = plan or Plan()
    tasks = [
        _Task(case, repetition, batch) for batch in batches for case in batch.cases for repetition in _repetitions(plan.repeat)
    ]
    alone = any(batch.session.kernels.builds_for_strangers(batch.cases) for batch in batches)
    budget = Budget(1 if alone else plan.jobs, schedule.machine())
    with ExitStack() as stack:
        if executor is None:
            slots = max(1, min(budget.slots, len(tasks)))
            executor = ThreadPoolExecutor(slots, thread_name_prefix="case")
            stack.callback(executor.shutdown, wait=False, cancel_futures=True)
        return _Run(tasks, [batch.session for batch in batches], emit, plan, budget, executor).go()


def _repetitions(count: int) -> Sequence[int]:
    return range(1, count + 1) if count > 1 else (0,)


@dataclass(frozen=True)
class _Task:
    """One case to run. Each repetition has its own name, and so its own logs and run folder."""

    case: Case | BrokenCase
    repetition: int
    batch: Batch

    @property
    def name(self) -> str:
        return f"{self.case.display_name}#{self.repetition}" if self.repetition else self.case.display_name

    @property
    def label(self) -> str:
        """The task's name in this run, see `CaseResult.label`."""
        return labelled(self.name, self.batch.variant)

    @property
    def measured_as(self) -> str:
        return labelled(self.case.display_name, self.batch.variant)

    @property
    def named(self) -> Case | BrokenCase:
        if isinstance(self.case, Case):
            return replace(self.case, display_name=self.name, repetition=self.repetition)
        return replace(self.case, display_name=self.name)

    def result(self, result: CaseResult) -> CaseResult:
        return replace(result, case=self.case.display_name, repetition=self.repetition, variant=self.batch.variant)

    def without_run(self, verdict: Verdict, fault: Fault, reason: str) -> CaseResult:
        return self.result(CaseResult(self.name, self.batch.session.arch, verdict, fault, reason))


class _Run:
    """Starts cases and collects their results."""

    def __init__(
        self,
        tasks: Sequence[_Task],
        sessions: Sequence[Session],
        emit: events.Emit,
        plan: Plan,
        budget: Budget,
        executor: Executor,
    ) -> None:
        self._tasks = tasks
        self._sessions = sessions
        self._emit = emit
        self._plan = plan
        self._budget = budget
        self._executor = executor
        self._ended = Inbox()
        self._results: dict[int, CaseResult] = {}
        self._running: dict[int, tuple[Future[CaseResult], Need]] = {}
        self._lock = threading.Lock()  # an ending case is either reported completely, or counts as interrupted
        self._interrupted = False

    def go(self) -> events.RunFinished:
        session, plan = self._sessions[0], self._plan
        began = time.monotonic()
        with self._ended, _interrupts(self._ended):
            labels = tuple(task.label for task in self._tasks)
            self._emit(
                events.RunStarted(
                    session.arch,
                    session.target,
                    labels,
                    session.accelerators.asked,
                    str(session.workspace.root),
                    min(self._budget.slots, len(labels)),
                    plan.shard,
                    plan.partition,
                    time.time(),
                    tuple((one.arch, one.target) for one in self._sessions),
                    plan.not_run,
                )
            )
            try:
                self._work()
            finally:
                self._stop()
            if not self._interrupted:
                self._skip_the_rest()
            results = tuple(self._results[at] for at in sorted(self._results))
            for note in () if self._interrupted else plan.notes(results):
                self._emit(events.Warned(note))
            finished = events.RunFinished(results, time.monotonic() - began, self._interrupted)
            self._emit(finished)
        return finished

    def _work(self) -> None:
        waiting = list(range(len(self._tasks)))
        if self._budget.slots > 1:  # the order has no effect on the duration of a sequential run
            waiting = schedule.order([task.measured_as for task in self._tasks], self._plan.seconds)
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
        failures = sum(result.red for result in list(self._results.values()))
        return 0 < self._plan.max_failures <= failures

    def _started(self, at: int) -> bool:
        """Start a case if the budget allows it now. Return False if not."""
        task = self._tasks[at]
        need = self._budget.take(task.case, task.batch.session.workspace.config.tcg_threads(task.batch.session.arch))
        if need is None:
            return False
        retries = self._plan.retries
        if retries is None:
            retries = task.case.config.retries if isinstance(task.case, Case) else 0
        self._emit(events.CaseStarted(task.label))
        future = self._executor.submit(run_case, task.named, task.batch.session, retries)
        self._running[at] = future, need
        future.add_done_callback(lambda future: self._finish(at, future))
        return True

    def _finish(self, at: int, future: Future[CaseResult]) -> None:
        """Store and report the result of a case. Runs in the case's thread, so that no interrupt comes between the two."""
        try:
            with self._lock:
                if self._interrupted:
                    return
                task = self._tasks[at]
                if future.cancelled():  # not by us: the executor lost it
                    self._lose(at, "its execution was cancelled, and nobody knows what became of it")
                    return
                error = future.exception()
                result = future.result() if error is None else own_fault(task.name, task.batch.session.arch, error)
                self._results[at] = task.result(result)
                self._emit(events.CaseFinished(self._results[at]))
        except Exception as error:  # an error of a listener: no event can be delivered, so the run ends
            self._ended.put(error)
        finally:
            self._ended.put(at)

    def _stop(self) -> None:
        """Stop the running cases, after an interrupt or an error of a listener."""
        if not self._running:
            return
        with self._lock:
            self._interrupted = True
        for session in self._sessions:
            session.stop()
        if not wait_for([future for future, _ in self._running.values()], _PATIENCE).not_done:
            process.go_on()

    def _lose(self, at: int, reason: str) -> None:
        """Report an infrastructure error for a case without a result, so that the case does not look passed."""
        self._results[at] = self._tasks[at].without_run(Verdict.ERROR, Fault.INFRA, reason)
        self._emit(events.CaseFinished(self._results[at]))

    def _skip_the_rest(self) -> None:
        enough = self._enough()
        failures = sum(result.red for result in self._results.values())
        reason = f"not run, because {failures} case{' has' if failures == 1 else 's have'} failed"
        for at, task in enumerate(self._tasks):
            if at not in self._results and not enough:
                self._lose(at, "it was never started: qcase has a fault")
            elif at not in self._results:
                self._results[at] = task.without_run(Verdict.SKIPPED, Fault.NONE, reason)
                self._emit(events.CaseFinished(self._results[at]))


@contextmanager
def _interrupts(inbox: Inbox) -> Iterator[None]:
    """Turn interrupt signals into None in `inbox`, so that they never break into other code. The second one exits at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def interrupt(*_: object) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            inbox.put(None)
        elif now > first[0] + SAME_KEY:
            process.leave_at_once()

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
