"""A case in steps: one judge for each step, over the same console.

    border ─► Judge of step 1 ─► evidence ─► border ─► Judge of step 2 ─► … ─► ruling of the last one: that of the case

A step that types waits for its prompt behind the border, and its patterns see what came since its first key. A step that does not
type sees what came behind the border. The border is the end of the evidence of the step before, so no output is evidence twice.
Whatever is not a pass of a step is the ruling of the case, but for failed or skipped tests of a step with `results`: the next
step begins at the prompt behind them, and they decide at the end. Panics, the fail patterns of the whole case and the kernel's
reports are looked for in all text, across borders.

A step that is to end with a reboot ends when QEMU tells of the reset; the next step sees what came behind that. `StepsJudge` has
the methods of `Judge`, and two more for QEMU's monitor.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Final

from qcase.console.console import Console
from qcase.console.inner_tests import told_failed
from qcase.console.judge import Judge
from qcase.console.keyboard import Keyboard
from qcase.console.rules import Limits, Rules, Ruling, Step, consoles, stops_at_reset
from qcase.console.side_consoles import SideConsoles
from qcase.model import KernelTrouble, LimitUse, Phase, SubtestResult, SubtestStatus, Verdict

_OUTPUT: Final = 20  # last lines of the console in the result of a step that did not pass
_EXPECTS: Final = {"reboot": "reset its machine", "poweroff": "power off"}


def judge_of(rules: Rules, *, started: float, limits: Limits = Limits()) -> Judge | StepsJudge:
    """Return the judge of a case with or without steps."""
    return (StepsJudge if rules.steps else Judge)(rules, started=started, limits=limits)


class StepsJudge:
    """Reads one guest's console step by step and comes to a ruling. `ruling` is None while it is open."""

    def __init__(self, rules: Rules, *, started: float, limits: Limits = Limits()) -> None:
        self.rules = rules
        self.limits = limits
        self.started = started
        self.ruling: Ruling | None = None
        self.prompt_at: float | None = None  # time at which the first prompt came
        self.warnings: tuple[str, ...] = ()
        self._console = Console(rules, started)
        self._on = rules.steps[0].console  # the console of the current step
        self._resets = self._console.resets
        self._sides = SideConsoles(rules, started, {*consoles(rules.steps), ""} - {self._on})
        self._number = 0
        self._tests: list[SubtestResult] = []  # those in steps, of `_results`
        self._recorded = 0  # number of steps in `_results`
        self._results: list[SubtestResult] = []
        self._by_tests: list[Ruling] = []  # of the steps whose tests decide
        self._news: list[SubtestResult] = []  # what `finished_subtests` is to return
        self._longest = 0.0
        self._requests: list[str] = []
        self._asked = self._answered = False
        self._acted_end: int | None = None
        self._keyboard: Keyboard | None = None
        self._outbox: dict[str, bytearray] = {}  # what is to be typed, by the console
        self._begin(started, 0)

    # --- queries of the caller -----------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        return self._judge.phase if self.prompt_at is None else Phase.COMMAND

    @property
    def matched_at(self) -> float | None:
        """Time at which the deciding match was seen."""
        return self._judge.matched_at

    @property
    def steps(self) -> StepsJudge:
        """Return this judge, to whom the caller has more to tell than to a `Judge`."""
        return self

    @property
    def stops_at_reset(self) -> bool:
        """Tell whether the machine is to stand still at a reset or power-off, until what came before was judged."""
        return stops_at_reset(self.rules.steps)

    @property
    def asks_monitor(self) -> bool:
        return any(step.qmp for step in self.rules.steps)

    @property
    def more_trouble(self) -> int:
        """See `Judge`."""
        return self._judge.more_trouble + self._sides.more_trouble()

    @property
    def consoles(self) -> tuple[str, ...]:
        """Return the names of the further consoles."""
        return consoles(self.rules.steps)

    def kernel_trouble(self) -> tuple[KernelTrouble, ...]:
        """See `Judge`."""
        return (*self._judge.kernel_trouble(), *self._sides.kernel_trouble())

    def tail(self, lines: int) -> tuple[str, ...]:
        """See `Judge`."""
        return self._judge.tail(lines)

    def input(self, console: str = "") -> bytes:
        """Return the bytes to type on a console now; each byte is returned once."""
        self._collect()
        return bytes(self._outbox.pop(console, b""))

    def _collect(self) -> None:
        """Keep what the current step types, for its console."""
        if data := self._judge.input():
            self._outbox.setdefault(self._on, bytearray()).extend(data)

    def requests(self) -> list[str]:
        """Return the commands (JSON) for QEMU's monitor; each one is returned once."""
        requests, self._requests = self._requests, []
        self._asked = self._asked or bool(requests)
        return requests

    def finished_subtests(self) -> list[SubtestResult]:
        """Return the steps, and the tests in them, that ended since the last call."""
        self._hear_of_tests()
        news, self._news = self._news, []
        return news

    def subtests(self) -> tuple[SubtestResult, ...]:
        """Return all steps, also those that did not end or never began. Tests in a step come before it."""
        rest = self.rules.steps[self._recorded :]
        running = rest[:1] if self.ruling is None else ()
        later = rest[len(running) :]
        return (
            *self._results,
            *(self._inner() if running else ()),
            *(_result(step, SubtestStatus.BROKEN) for step in running),
            *(_result(step, SubtestStatus.NOT_RUN) for step in later),
        )

    def next_wake(self) -> float | None:
        """See `Judge`."""
        times = [
            self._judge.next_wake(),
            *self._sides.wakes(),
            *(at for at in (self._silent_at, self._late_at) if at is not None),
        ]
        return min((at for at in times if at is not None), default=None)

    def limits_used(self, now: float) -> tuple[LimitUse, ...]:
        """See `Judge`."""
        end = self._judge.matched_at if self._judge.matched_at is not None else now
        times = replace(self._console.times, prompt_at=self.prompt_at)
        longest = max(self._longest, end - self._acted_at if self._acted_at is not None else 0.0)
        return times.used(self.limits, end, longest, None if self.ruling is None else self.ruling.limit)

    # --- input from the caller -----------------------------------------------------------------------------------------

    def feed(self, data: bytes, now: float, console: str = "") -> None:
        """Process bytes from the guest, in the order in which they came on a console."""
        if self.ruling is None:
            if console == self._on:
                self._judge.feed(data, now)
            else:
                self._sides.feed(console, data, now)
            self._go_on(now)

    def tick(self, now: float) -> None:
        """Process the passing of time."""
        if self.ruling is not None:
            return
        self._judge.tick(now)
        self._sides.tick(now)
        self._go_on(now)
        late = self._late_at
        if self.ruling is None and late is not None and now >= late:
            self._judge.timed_out(now, self._limit or 0.0, "command_timeout" if self._step.timeout is None else "step_timeout")
            self._go_on(now)

    def answered(self, error: str, now: float) -> None:
        """Take the answer of QEMU's monitor to the last request. `error`: its message if it refused; else empty."""
        if self.ruling is None and error:
            self._rule(Ruling(Verdict.FAIL, f"QEMU refused {json.loads(self._step.qmp)['execute']}: {error}", self.phase), now)
        self._answered = True
        self.tick(now)

    def reset(self, now: float, *, fault: str = "", by_guest: bool = True) -> None:
        """Take a reset of the machine, which starts again. All text from before it was fed. `fault`: its cause, if it is one."""
        # On a busy machine firmware asks for its further resets late, but before it writes anything. What wrote has booted.
        again = not self._resets.note(now, self._last_data, burst=0.0, silence=float("inf"))
        if self.ruling is not None or (again and by_guest):
            return
        self._close(now)
        if self.ruling is None and self._step.expect == "reboot" and self._acted and not fault:
            self._finish_at_end(now)
        elif self.ruling is None and by_guest and (fault or not self.rules.resets_freely):
            self.ended(now, "the guest reset its machine", reset=True, fault=fault)
        elif self.ruling is None:
            self._judge.watch_resets()
            self._go_on(now)

    def powered_off(self, now: float, *, fault: str = "") -> None:
        """Take a power-off of the machine, which can start again. All text from before it was fed."""
        self._resets.note(now, self._last_data)
        self._close(now)
        if self.ruling is None and self._step.expect == "poweroff" and self._acted and not fault:
            self._finish_at_end(now)
        elif self.ruling is None:
            self.ended(now, "the guest powered off", fault=fault)

    def ended(self, now: float, how: str, *, reset: bool = False, fault: str = "", off: bool = False) -> None:
        """See `Judge`. `off`: the guest powered off."""
        self._close(now)
        if self.ruling is None and off and self._last and self._step.expect == "poweroff" and self._acted and not fault:
            self._finish_at_end(now)
        if self.ruling is None:
            self._judge.ended(now, how, reset=reset, fault=fault)
            self._go_on(now, over=True)
            if self.ruling is None:  # the last output ended a step, and others would follow
                self._rule(Ruling(Verdict.EXITED, f"QEMU ended before a verdict, {how}", self.phase), now)

    # --- steps ---------------------------------------------------------------------------------------------------------

    @property
    def _last_data(self) -> float:
        """Time at which the guest last wrote, on any console."""
        return max(self._console.times.last_data, self._sides.last_data())

    @property
    def _step(self) -> Step:
        return self.rules.steps[self._number]

    @property
    def _last(self) -> bool:
        return self._number == len(self.rules.steps) - 1

    @property
    def _limit(self) -> float | None:
        return self.limits.command if self._step.timeout is None else self._step.timeout

    @property
    def _acted(self) -> bool:
        """Tell whether the step has typed or asked all that it is to. A reset may come before the answer to what asks for it."""
        if self._step.qmp:
            return self._answered or (self._asked and bool(self._step.expect))
        return self._step.typed is None or self._judge.typed_all

    @property
    def _acted_at(self) -> float | None:
        """Time from which on the timeout of the step counts."""
        if self._step.typed is None:
            return self._since
        return self._judge.command_at

    @property
    def _late_at(self) -> float | None:
        if self._limit is None or self._acted_at is None or self._judge.matched_at is not None:
            return None
        return self._acted_at + self._limit

    @property
    def _silent_at(self) -> float | None:
        if self._step.silence is None or not self._acted or self._judge.matched_at is not None:
            return None
        return max(self._console.times.last_data, self._acted_at or 0.0) + self._step.silence

    def _begin(self, now: float, border: int) -> None:
        """Begin the current step behind a position in the text."""
        step = self._step
        if step.console != self._on:
            border = self._change_console(border)
        self._since = now
        self._asked = self._answered = False
        # End of the text when the step had done what it is to do: what came since is for the next one, if no evidence ends it.
        self._acted_end = None if step.typed is not None or step.qmp else border
        if step.typed is not None:
            if self._keyboard is not None:
                self._console.drop_keyboard(self._keyboard)
            self._keyboard = None
        prompt = step.prompt if step.typed is not None else None
        self._console.begin_step(prompt, border)
        rules = replace(
            self.rules,
            prompt=prompt,
            command=step.command,
            keys=step.keys,
            success=step.success,
            fail=step.fail,
            results=step.results,
            fail_always=self.rules.fail,
            steps=(),
            part=True,
            goes_on=not self._last,
        )
        limits = replace(self.limits, command=None, boot=self.limits.boot if self.prompt_at is None else None)
        self._judge = Judge(
            rules, started=self.started, limits=limits, console=self._console, since=border, keyboard=self._keyboard
        )
        if step.qmp:
            self._requests.append(step.qmp)

    def _change_console(self, border: int) -> int:
        """Leave the console of the step before behind its evidence; return the border on that of the current step."""
        self._sides.park(self._on, self._console, border, self._keyboard)
        self._on = self._step.console
        side = self._sides.take(self._on)
        self._console, self._keyboard = side.console, side.keyboard
        return side.border

    def _go_on(self, now: float, *, over: bool = False) -> None:
        """Go on to the next step, as often as one has ended."""
        while self.ruling is None:
            if self.prompt_at is None and self._judge.prompt_at is not None:
                self.prompt_at = self._judge.prompt_at
                self._sides.note_booted()
            if (beside := self._sides.ruling()) is not None:
                self._rule(beside, now)
                return
            self._keyboard = self._judge.keyboard
            if self._acted_end is None and self._acted:
                self._acted_end = self._console.transcript.written.end
            if self._judge.ruling is None and self._done(now):
                if self._last:
                    self._judge.complete(now)
                    return
                if not over:
                    self._next(now, -1 if self._acted_end is None else self._acted_end)
                    self._judge.begin(now)
                    continue
            ruling = self._judge.ruling
            if ruling is None:
                return
            tests = bool(self._step.results) and _is_by_tests(ruling)
            if tests:
                self._by_tests.append(ruling)
            if self._last or not (tests or ruling.verdict is Verdict.PASS):
                self._rule(ruling, now)
                return
            self._next(now, self._judge.evidence_end, ruling)
            self._judge.begin(now)

    def _done(self, now: float) -> bool:
        """Tell whether a step without success patterns has ended."""
        step = self._step
        if step.success or step.results or step.expect or self._judge.matched_at is not None or not self._acted:
            return False
        return step.silence is None or (self._silent_at is not None and now >= self._silent_at)

    def _next(self, now: float, border: int, ruling: Ruling | None = None) -> None:
        """Record that the current step passed, or how its tests ended, and begin the next one."""
        decided = self._judge.matched_at if self._judge.matched_at is not None else now
        self._record_as(ruling, decided)
        self._add_warnings()
        self._collect()
        self._number += 1
        self._begin(decided, border if border >= 0 else self._console.transcript.written.end)

    def _record_as(self, ruling: Ruling | None, at: float) -> None:
        """Record a step that passed, or whose tests say something else: then these have the reason."""
        status = SubtestStatus.PASS if ruling is None else _STATUSES.get(ruling.verdict, SubtestStatus.PASS)
        self._record(status, at, "" if ruling is None or ruling.by_tests else ruling.reason)

    def _record(self, status: SubtestStatus, at: float, reason: str = "") -> None:
        if self._acted_at is not None:
            self._longest = max(self._longest, at - self._acted_at)
        self._hear_of_tests()
        inner = self._inner()
        output = () if status is SubtestStatus.PASS or inner else self.tail(_OUTPUT)
        ended = at if status is not SubtestStatus.BROKEN else None
        duration = None if ended is None else max(0.0, ended - self._since)
        step = replace(_result(self._step, status, duration, reason, output), nested=len(inner))
        self._tests += inner
        self._results += [*inner, step]
        self._news.append(step)
        self._recorded = self._number + 1

    def _inner(self) -> list[SubtestResult]:
        """Return the tests in the current step."""
        return [_in_step(self._step, test) for test in self._judge.subtests()]

    def _hear_of_tests(self) -> None:
        """Note the tests in the current step that have ended since."""
        if self._recorded == self._number:
            self._news += [_in_step(self._step, test) for test in self._judge.finished_subtests()]

    def _close(self, now: float) -> None:
        """Let what has matched so far end its steps: the machine stops or starts again, and nothing more comes of this boot."""
        while self.ruling is None:
            before = self._number
            self._judge.close(now)
            self._sides.close(now)
            self._go_on(now, over=True)
            if self._number == before:
                return

    def _finish_at_end(self, now: float) -> None:
        """End the step whose machine did what it was to do. What the guest said before was judged."""
        if not self._last:
            self._console.booted = False
            self._sides.begin_boot()
            self._next(now, self._console.transcript.written.end)
            self._judge.begin(now)
        else:
            self._rule(Ruling(Verdict.PASS, "", self.phase), now)

    def _rule(self, ruling: Ruling, now: float) -> None:
        """Rule on the case, by the ruling on its current step."""
        step = self._step
        self._add_warnings()
        if ruling.verdict is Verdict.PASS or (step.results and _is_by_tests(ruling)):
            decided = self._judge.matched_at if self._judge.matched_at is not None else now
            self._record_as(ruling, decided)
            self.ruling = self._by_all_tests(ruling)
            return
        reason = self._lacking(ruling)
        status = _STATUSES.get(ruling.verdict, SubtestStatus.BROKEN)
        self._record(status, now, reason)
        where = f"step {self._number + 1} of {len(self.rules.steps)} ({step.name})"
        self.ruling = replace(ruling, reason=f"{where}: {reason}")

    def _by_all_tests(self, ruling: Ruling) -> Ruling:
        """Return the ruling of a case whose steps have ended: a fail if a test failed, a skip if all of them were skipped."""
        if any(one.by_tests for one in self._by_tests):
            return Ruling(Verdict.FAIL, told_failed(self._tests, len(self._tests)), self.phase, by_tests=True)
        if self._by_tests and all(one.verdict is Verdict.SKIPPED for one in self._by_tests):
            return Ruling(Verdict.SKIPPED, self._by_tests[0].reason, self.phase)
        return replace(ruling, verdict=Verdict.PASS, reason="")

    def _lacking(self, ruling: Ruling) -> str:
        """Return the reason of a ruling, in the words of the step where its time was up."""
        step = self._step
        if ruling.verdict is not Verdict.TIMEOUT or ruling.limit == "idle_timeout":
            return ruling.reason
        within = ruling.reason[ruling.reason.rfind(" within ") :]
        if step.typed is not None and step.prompt is not None and self._judge.prompt_at is None:
            return f"the prompt {step.prompt!r} did not come{within}"
        if step.expect:
            return f"the guest did not {_EXPECTS[step.expect]}{within}"
        if step.silence is not None and not step.success:
            return f"the guest was not silent for {step.silence:g} s{within}"
        return ruling.reason

    def _add_warnings(self) -> None:
        self.warnings = tuple(dict.fromkeys((*self.warnings, *self._judge.warnings)))


_STATUSES: Final = {Verdict.FAIL: SubtestStatus.FAIL, Verdict.SKIPPED: SubtestStatus.SKIP}


def _is_by_tests(ruling: Ruling) -> bool:
    """Tell whether the tests of a command say how a step ended, and nothing else is wrong."""
    return ruling.by_tests or ruling.verdict is Verdict.PASS or (ruling.verdict is Verdict.SKIPPED and ruling.pattern is None)


def _in_step(step: Step, test: SubtestResult) -> SubtestResult:
    return replace(test, name=f"{step.name}/{test.name}")


def _result(
    step: Step, status: SubtestStatus, duration: float | None = None, reason: str = "", output: tuple[str, ...] = ()
) -> SubtestResult:
    command = step.typed if step.typed is not None else step.qmp
    return SubtestResult(step.name, command, status, duration=duration, reason=reason, output=output)
