"""Commands `run` and `report`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcase.arch import DEFAULT, Arch
from qcase.cli.app import ArchesOption, Chosen, TrustOption, app, exclude, targets_of
from qcase.cli.options import (
    CacheOption,
    CaseOption,
    CasesArgument,
    ChangedOption,
    ColdOption,
    EventsOption,
    FailedOption,
    FailFastOption,
    GroupsOption,
    HtmlOption,
    JobsOption,
    JsonOption,
    JUnitOption,
    KernelOption,
    LockedOption,
    MaxFailOption,
    OfflineOption,
    PipelineOption,
    QuietOption,
    ReadonlyOption,
    RepeatOption,
    ReportOption,
    RetriesOption,
    ScaleOption,
    ShardOption,
    StrictKnownOption,
    StrictSkipsOption,
    SuiteOption,
    TagOption,
    TargetOption,
    TimesOption,
    VerboseOption,
    WorkspaceOption,
    arches_named,
    filters_of,
    kernel_file,
    open_store,
    scaled,
    store_root_of,
)
from qcase.cli.output import counted, give_to_reports, reported, terminal_report, warn
from qcase.errors import UsageError

if TYPE_CHECKING:
    from qcase.events import Emit
    from qcase.inputs.case_filters import Filters
    from qcase.model import CaseResult
    from qcase.run.run_cases import Plan
    from qcase.suite.cases import BrokenCase, Case, Workspace
    from qcase.suite.history import Memory
    from qcase.suite.known_failures import KnownFailures


@app.command("run")
def run_command(
    cases: CasesArgument = None,
    case: CaseOption = None,
    arch: ArchesOption = None,
    target: TargetOption = "",
    group: GroupsOption = None,
    suite: SuiteOption = "",
    tag: TagOption = None,
    pipeline: PipelineOption = None,
    failed: FailedOption = False,
    changed: ChangedOption = None,
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
    cache_readonly: ReadonlyOption = False,
    kernel: KernelOption = None,
    jobs: JobsOption = None,
    fail_fast: FailFastOption = False,
    max_fail: MaxFailOption = 0,
    retries: RetriesOption = None,
    repeat: RepeatOption = 1,
    cold: ColdOption = False,
    shard: ShardOption = "",
    times: TimesOption = None,
    strict_known: StrictKnownOption = False,
    strict_skips: StrictSkipsOption = False,
    json_file: JsonOption = None,
    events_file: EventsOption = None,
    junit_file: JUnitOption = None,
    html_file: HtmlOption = None,
    report: ReportOption = None,
    timeout_scale: ScaleOption = "",
    trust: TrustOption = "",
    offline: OfflineOption = False,
    locked: LockedOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Build, boot and judge cases."""
    with reported():
        options = _RunOptions(
            filters=replace(filters_of(tag, pipeline, failed, changed), kernel=kernel),
            plan=_plan(jobs, retries, repeat, shard, cold=cold, fail_fast=fail_fast, max_fail=max_fail),
            arches=arches_named(arch) or [DEFAULT],
            target=target,
            groups=tuple(group or ()),
            suite=suite,
            workspace=workspace,
            cache_dir=cache_dir,
            readonly=cache_readonly,
            timeout_scale=timeout_scale,
            trust=trust,
            times=times,
            strict=(strict_known, strict_skips),
            files=ReportFiles(json=json_file, events=events_file, junit=junit_file, html=html_file, others=tuple(report or ())),
            kernel=kernel,
            offline=offline,
            locked=locked,
            verbosity=_verbosity(verbose, quiet=quiet),
        )
        raise typer.Exit(run_suite([*(cases or []), *(case or [])], options))


def _verbosity(verbose: int, *, quiet: bool) -> int:
    exclude("--quiet", quiet, "--verbose", verbose)
    return -1 if quiet else verbose


def _plan(jobs: int | None, retries: int | None, repeat: int, shard: str, *, cold: bool, fail_fast: bool, max_fail: int) -> Plan:
    from qcase.run.run_cases import Plan

    exclude("--fail-fast", fail_fast, "--max-fail", max_fail)
    return Plan(jobs, retries, repeat, 1 if fail_fast else max_fail, shard=shard, cold=cold)


@app.command("report")
def report_command(
    results_files: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS.json", help="Results of `qcase run --json results.json`: of one run, or of every shard."),
    ],
    junit_file: JUnitOption = None,
    html_file: HtmlOption = None,
) -> None:
    """Make other reports of the results of a run, or of all shards of one."""
    with reported():
        from qcase.report import at_end, results

        if junit_file is None and html_file is None:
            raise UsageError("no report is asked for", hint="add --junit FILE or --html FILE")
        run = results.whole([(path, results.load(path)) for path in results_files])
        if run.shard:
            print(f"warning: these are the results of shard {run.shard} alone", file=sys.stderr)
        if run.broken_off:
            print(f"warning: {run.broken_off}: {counted(len(run.unfinished), 'case')} did not end", file=sys.stderr)
        give_to_reports([("--junit", junit_file), ("--html", html_file)])
        wanted = ((junit_file, at_end.junit), (html_file, at_end.html))
        for report in [make(path) for path, make in wanted if path is not None]:  # none is written where one cannot be
            report.write(run)


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Destinations of reports, beside the terminal."""

    json: Path | None = None
    events: Path | None = None
    junit: Path | None = None
    html: Path | None = None
    others: Sequence[str] = ()  # NAME=FILE

    def listeners(self) -> list[Emit]:
        """Return the listeners that write them. Raises `UsageError` for a file that cannot be written."""
        from qcase.report.json_report import EventsReport, JsonReport

        give_to_reports(
            [("--json", self.json), ("--events", self.events), ("--junit", self.junit), ("--html", self.html)],
        )
        found: list[Emit] = []
        if self.json is not None:
            found.append(JsonReport(self.json))
        if self.events is not None:
            found.append(EventsReport(self.events))
        if self.junit is not None:
            from qcase.report import at_end

            found.append(at_end.junit(self.junit))
        if self.html is not None:
            from qcase.report import at_end

            found.append(at_end.html(self.html))
        if self.others:
            from qcase.report import added

            found += [added.listener(asked) for asked in self.others]
        return found


@dataclass(frozen=True, kw_only=True)
class _RunOptions:
    """Options of `qcase run`, besides the names of cases."""

    filters: Filters
    plan: Plan
    arches: Sequence[Arch]
    target: str
    groups: Sequence[str]
    suite: str
    workspace: Path | None
    cache_dir: str
    readonly: bool
    timeout_scale: str
    trust: str
    times: Path | None
    strict: tuple[bool, bool]  # --strict-known, --strict-skips
    files: ReportFiles
    kernel: Path | None
    offline: bool
    locked: bool
    verbosity: int

    def again(self, names: Sequence[str], arch: Arch) -> str:
        """Return the command that runs only these cases again."""
        options = [("--arch", arch.value if arch is not DEFAULT else ""), ("--target", self.target)]
        options += [("--suite", self.suite), *(("--group", group) for group in self.groups)]
        options += [("--workspace", str(self.workspace) if self.workspace else ""), ("--cache-dir", self.cache_dir)]
        options += [
            ("--timeout-scale", self.timeout_scale),
            ("--trust", self.trust),
            ("--kernel", str(self.kernel) if self.kernel else ""),
        ]
        command = ["qcase", "run", *(word for name, value in options if value for word in (name, value))]
        flags = [("--cache-readonly", self.readonly), ("--offline", self.offline), ("--locked", self.locked)]
        flags += [("--cold", self.plan.cold)]
        flags += zip(("--strict-known", "--strict-skips"), self.strict, strict=True)
        return shlex.join([*command, *(flag for flag, given in flags if given), *names])


def run_suite(wanted: Sequence[str], options: _RunOptions) -> int:
    from contextlib import ExitStack

    from qcase import events
    from qcase.inputs import case_filters, not_run
    from qcase.prepare.session import Session
    from qcase.run import run_cases
    from qcase.suite import cases, discover, history, known_failures

    targets = targets_of(options.arches, options.target)
    several = len(targets) > 1
    opened = cases.Workspace.open(options.workspace or Path.cwd()).trusted(options.trust, "--trust")
    suites = opened.suites
    opened = scaled(opened.of_suite(options.suite), options.timeout_scale)
    opened = opened.cold() if options.plan.cold else opened
    known = known_failures.KnownFailures.load(opened, strict=options.strict[0])
    discoveries = [discover.discover(opened, arch, target, options.groups) for arch, target in targets.items()]
    chosen = case_filters.choose_all(opened, discoveries, wanted, options.filters)
    batches = [Chosen(arch, arch.value if several else "", one.cases) for arch, one in zip(targets, chosen, strict=True)]
    batches, plan = _share(batches, options.plan, options.times)
    listeners = options.files.listeners()
    waited_for = bool(listeners)
    listeners.append(_memory(opened, targets, [case for batch in batches for case in batch.cases]))
    emit = events.one_at_a_time(terminal_report(listeners, options.again, verbosity=options.verbosity, to_the_end=waited_for))
    problems = [str(problem) for discovery in discoveries for problem in discovery.warnings]
    problems += known_failures.expired(known, [case for batch in batches for case in batch.cases])
    for problem in dict.fromkeys(problems):
        warn(emit, problem)
    store = open_store(opened, store_root_of(options.cache_dir), readonly=options.readonly)
    for note in dict.fromkeys(one.note for one in chosen if one.note):
        warn(emit, note)
    with ExitStack() as stack:
        first: Session | None = None
        running = []
        for batch in batches:
            session = Session(
                opened,
                batch.arch,
                targets[batch.arch],
                store,
                events.of_variant(emit, batch.variant),
                offline=options.offline,
                locked=options.locked,
                kernel_file=kernel_file(options.kernel),
                known=known,
                strict_skips=options.strict[1],
                beside=first,
            )
            first = first or session
            running.append(run_cases.Batch(stack.enter_context(session), batch.cases, batch.variant))
        seconds = {
            batch.label(name): one.total
            for batch in batches
            for name, one in history.recall(opened.root, batch.arch, targets[batch.arch]).items()
        }
        if not (wanted or options.filters or plan.shard):
            left_out = not_run.not_run(discoveries, [case for one in batches for case in one.cases])
            plan = replace(plan, notes=lambda results: _unmatched(suites, known, batches, results), not_run=left_out)
        return run_cases.run_batches(running, emit, replace(plan, seconds=seconds)).exit_code


def _memory(workspace: Workspace, targets: Mapping[Arch, str], cases: Sequence[Case | BrokenCase]) -> Memory:
    """Return the listener that remembers results for the next run."""
    from qcase.suite import history

    def told(message: str) -> None:
        print(f"warning: {message}", file=sys.stderr)

    return history.Memory(workspace.root, targets, told, history.other_names(cases), history.selectable(cases))


def _unmatched(
    suites: Sequence[Workspace], known: KnownFailures, batches: Sequence[Chosen], results: Sequence[CaseResult]
) -> Sequence[str]:
    """Return what is to be told of known failures that match nothing, after a run of all cases."""
    from contextlib import suppress

    from qcase.suite import known_failures, scan
    from qcase.suite.cases import Case

    cases = {(case.display_name, batch.arch): case for batch in batches for case in batch.cases if isinstance(case, Case)}
    ran = [(cases[one.case, one.arch], one) for one in results if (one.case, one.arch) in cases]

    def names() -> Iterator[tuple[str, str]]:
        for suite in suites:
            with suppress(UsageError):  # a suite that is not there
                for group in scan.groups(suite):
                    yield from ((name, display) for name, display, _ in scan.names(suite, [group]))

    return known_failures.unmatched(known, ran, names)


def _share(batches: Sequence[Chosen], plan: Plan, times: Path | None) -> tuple[list[Chosen], Plan]:
    """Return the cases of this machine's shard. This machine's history has no influence: other machines have another one."""
    from qcase.run import schedule

    if not plan.shard:
        if times is not None:
            raise UsageError("without --shard there is nothing to balance", where=f"--times {times}")
        return list(batches), plan
    shard = schedule.parse_shard(plan.shard)
    known = schedule.read_times(times) if times is not None else {}
    names = [batch.label(case.display_name) for batch in batches for case in batch.cases]
    parts = schedule.partition(names, shard.count, known)
    mine = set(parts[shard.index - 1])
    plan = replace(plan, shard=str(shard), partition=schedule.fingerprint(parts))
    kept = [replace(batch, cases=[c for c in batch.cases if batch.label(c.display_name) in mine]) for batch in batches]
    return kept, plan
