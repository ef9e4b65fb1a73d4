"""One case from start to verdict, and many of them, each a function of its own.

What goes wrong becomes a verdict: the case's own fault, a wrong file of the suite, or our infrastructure. Only an interrupt
ends the run, and then what had finished is still reported.
"""

from __future__ import annotations

import errno
import secrets
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from qcase import events, process, qemu
from qcase.console import Judge, Limits, Rules
from qcase.errors import BuildError, ConfigError, InfraError, KernelError, QcaseError
from qcase.model import Arch, Booted, CaseResult, Fault, Phase, SubtestResult, SubtestStatus, Verdict
from qcase.pipelines import grouped
from qcase.prepare import BrokenBuild, PreparedCase, Session, case_asset_layout, prepare_case_assets
from qcase.suite import BrokenCase, Case

_TAIL = 40  # lines of the console in a result
_DETAILS = 40  # lines of what a build said
_LINE_INTERVAL = 0.1  # seconds between two events for the last line of a console


def run_cases(cases: Sequence[Case | BrokenCase], session: Session) -> events.RunFinished:
    """Run cases one after the other. One bad case never stops the others, nor hides the summary."""
    emit = session.emit
    began = time.monotonic()
    emit(events.RunStarted(session.arch, session.target, tuple(case.display_name for case in cases), session.accel_asked))
    results: list[CaseResult] = []
    interrupted = False
    try:
        for case in cases:
            emit(events.CaseStarted(case.display_name))
            result = run_case(case, session)
            results.append(result)
            emit(events.CaseFinished(result))
    except KeyboardInterrupt:
        interrupted = True
    finished = events.RunFinished(tuple(results), time.monotonic() - began, interrupted)
    emit(finished)
    return finished


def run_case(case: Case | BrokenCase, session: Session) -> CaseResult:
    """Run one case from sources to verdict. A fault becomes a verdict, never an exception (but for an interrupt)."""
    began = time.monotonic()
    if isinstance(case, BrokenCase):
        return _faulty(case.display_name, session.arch, case.error, 0.0)
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
        # A fault of qcase's own. It must not take the other cases with it, nor look like the case's.
        reason = f"qcase has a fault: {type(error).__name__}: {error}\nhint: please report it, with the lines below"
        result = CaseResult(
            case.display_name,
            session.arch,
            Verdict.ERROR,
            Fault.INFRA,
            reason,
            pipeline=case.pipeline,
            details="".join(traceback.format_exception(error)[-6:]),
        )
    warnings = tuple(str(problem) for problem in case.warnings)
    return replace(result, total=time.monotonic() - began, warnings=warnings + result.warnings)


@dataclass(frozen=True)
class Logs:
    """Where a case's logs are kept from run to run: `target/qcase/logs/<arch>/<display name>/`."""

    folder: Path
    shown: str  # the folder, as a person is told it

    @property
    def build(self) -> Path:
        return self.folder / "build.log"

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
    if qemu.names_accelerator(spec.args):
        return spec
    return replace(spec, accel=session.accelerator(case, prepared.kernel, spec))


def booted(case: Case, prepared: PreparedCase, session: Session) -> Booted:
    """For reports: what was booted, and by what."""
    used = qemu.accelerator(qemu.arguments(machine_spec(case, prepared, session)))
    return Booted(str(prepared.kernel.path), prepared.kernel.sha256, used)


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
    for old in ("build.log", "console.log", "qemu.sh"):  # by name: the folder of a case below this one may be in here
        (logs.folder / old).unlink(missing_ok=True)
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
        judge = Judge(rules(case, session), started=time.monotonic(), limits=limits(case, session))
        with qemu.start(case.arch, argv, keep_open=prepared.keep_open) as machine:
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
