"""Boots a prepared case, cold or from a template of its machine, and has its console judged."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.prepare.prepared import PreparedCase
from qcase.prepare.session import Session
from qcase.run.boot_plan import limits_of, rules_of
from qcase.suite.cases import Case
from qcase.vm.arguments import MachineSpec
from qcase.vm.console_log import ConsoleLog
from qcase.vm.machine import Machine, converse, start
from qcase.vm.template import NoTemplateError, Start, Template, branch
from qcase.vm.templates import Choice

if TYPE_CHECKING:
    from qcase.console.judge import Judge
    from qcase.console.rules import Limits
    from qcase.console.steps import StepsJudge

MARK = b"\n[qcase: up to here the console of the machine's template, from here that of the case]\n"

_ROOM = 2.0  # times the seconds of the template

Watch = Callable[["Judge | StepsJudge"], Callable[[], None]]


@dataclass(frozen=True)
class Origin:
    """The beginning of a boot. `template`: seconds of the template's boot, None for a cold boot. `cold`: why it was cold, if
    templates are asked for.
    """

    template: float | None = None
    cold: str = ""


@dataclass(frozen=True)
class Booting:
    """A case to boot. `again`: it has run before in this run. `watch`: makes the listener to a judge's progress."""

    case: Case
    prepared: PreparedCase
    session: Session
    spec: MachineSpec
    argv: tuple[str, ...]
    again: bool
    watch: Watch

    def boot(self, log: ConsoleLog) -> tuple[Judge | StepsJudge, str, Origin]:
        """Boot the machine and judge its console. Return the judge, QEMU's own output at its end, and where the boot began."""
        choice = self._choice()
        why = choice.cold
        if choice.template is not None:
            try:
                return self._from_template(choice.template, log)
            except NoTemplateError as error:
                why = str(error)
                self.session.templates.refuse(choice.key, why)
            except _Unfit as unfit:
                why = str(unfit)
        judge, said = self._cold(log)
        self.session.templates.booted_cold(choice.key, (judge.prompt_at or time.monotonic()) - judge.started)
        return judge, said, Origin(cold=why)

    @property
    def _start(self) -> Start:
        root = self.session.workspace.root
        return Start(self.case.arch, self.argv, self.prepared.keep_open, root, self.spec.stranger)

    def _choice(self) -> Choice:
        if self.session.templates.asked == "never":
            return Choice()
        if not self.case.config.branch:
            return Choice(cold="[qcase] branch = false")
        if self.spec.consoles:
            return Choice(cold="a template has one console")
        if self.again:
            return Choice(cold="a repetition or another attempt boots cold")
        program = shutil.which(self.argv[0])
        return self.session.templates.choose(
            self.spec, self._start, None if program is None else Path(program), self.case.config.first_prompt
        )

    def _cold(self, log: ConsoleLog) -> tuple[Judge | StepsJudge, str]:
        how = self._start
        started = time.monotonic()
        consoles = self.spec.consoles
        with start(how.arch, how.argv, keep_open=how.keep_open, cwd=how.cwd, alone=how.alone, consoles=consoles) as machine:
            judge = self._judge(started)
            return judge, converse(machine, judge, log, self.watch(judge))

    def _from_template(self, template: Template, log: ConsoleLog) -> tuple[Judge | StepsJudge, str, Origin]:
        """Go on from a template. The judge sees the template's console first, at the times at which it came."""
        if not has_room(limits_of(self.case, self.session), template.seconds):
            raise _Unfit("its template took much of its limit of time")
        with ExitStack() as stack:
            machine: Machine = stack.enter_context(branch(self._start, template))
            began = time.monotonic() - template.seconds
            judge = self._judge(began)
            for at, data in template.console:
                judge.feed(data, began + at)
            judge.tick(began + template.seconds)
            if judge.ruling is not None or judge.prompt_at is not None or judge.matched_at is not None or _asks(judge):
                raise _Unfit("its console decides or asks something before its guest reads the disk")
            for _, data in template.console:
                log.write(data)
            log.write(MARK)
            watch = self.watch(judge)
            machine.go()
            said = converse(machine, judge, log, watch)
        return judge, said, Origin(template.seconds)

    def _judge(self, started: float) -> Judge | StepsJudge:
        from qcase.console.steps import judge_of  # 25 ms the first time, in which the guest boots

        return judge_of(rules_of(self.case, self.session), started=started, limits=limits_of(self.case, self.session))


def has_room(limits: Limits, seconds: float) -> bool:
    """Tell whether the limits of a case leave room beside a template's boot, which may have been one on a busy machine."""
    return min((limit for limit in (limits.whole, limits.boot) if limit is not None), default=math.inf) >= _ROOM * seconds


class _Unfit(Exception):  # noqa: N818 - no fault
    """A case that needs the boot itself, and so boots cold."""


def _asks(judge: Judge | StepsJudge) -> bool:
    """Tell whether a judge has keys or requests for the machine, or a step or test that has ended."""
    requests = judge.steps.requests() if judge.steps is not None else ()
    return bool(judge.input() or requests or judge.finished_subtests())
