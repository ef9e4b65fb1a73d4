"""Commands that read or write a suite: `list`, `explain`, `argv`, `shell`, `lock`, `lint`, `init`, `new`."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcase.arch import DEFAULT, Arch
from qcase.cli.app import ArchesOption, app, targets_of
from qcase.cli.options import (
    ArchOption,
    CacheOption,
    ChangedOption,
    FailedOption,
    GroupOption,
    GroupsOption,
    KernelOption,
    NewArchOption,
    PipelineOption,
    SuiteOption,
    TagOption,
    TargetOption,
    WorkspaceOption,
    arch_named,
    arches_named,
    filters_of,
    kernel_file,
    offer_arches,
    offer_cases,
    offer_pipelines,
    open_store,
    pipeline_named,
    store_root_of,
)
from qcase.cli.output import SEVERITIES, coloured, counted, reported, terminal_report, warn, wrapped
from qcase.errors import UsageError
from qcase.kinds import labelled
from qcase.report import inert

if TYPE_CHECKING:
    from qcase.inputs.new_case import NewCase
    from qcase.prepare.session import Session
    from qcase.suite.cases import BrokenCase, Case, Workspace


@app.command("list")
def list_command(
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="CASE", autocompletion=offer_cases, help="Names or globs; default: all.")
    ] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            "--arch",
            "-a",
            metavar="ARCH",
            autocompletion=offer_arches,
            help="Only cases for this one; may be repeated.",
        ),
    ] = None,
    group: GroupsOption = None,
    suite: SuiteOption = "",
    tag: TagOption = None,
    pipeline: PipelineOption = None,
    failed: FailedOption = False,
    changed: ChangedOption = None,
    workspace: WorkspaceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """Show the suite as a tree: groups, build groups, cases and subcases, with pipelines, architectures and tags."""
    with reported():
        import json

        from qcase.inputs import case_filters
        from qcase.suite import cases as cases_module
        from qcase.suite import catalogue, select

        only = arches_named(arch)
        opened = cases_module.Workspace.open(workspace or Path.cwd()).of_suite(suite)
        listed = catalogue.catalogue(opened, group)
        listed = listed.only(only) if only else listed
        if cases:
            listed = select.named(listed, cases)
        if filters := filters_of(tag, pipeline, failed, changed):
            listed = case_filters.listed(opened, listed, filters)
        if as_json:
            print(inert.json(json.dumps(catalogue.document(opened, listed), indent=1)))
            return
        for line in catalogue.listing(listed):
            print(line)
        for problem in listed.warnings:
            print(f"warning: {problem}", file=sys.stderr)


@app.command("explain")
def explain_command(
    case: Annotated[str, typer.Argument(metavar="CASE", autocompletion=offer_cases, help="A name or a glob.")],
    arch: ArchesOption = None,
    target: TargetOption = "",
    group: GroupsOption = None,
    suite: SuiteOption = "",
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """Say of a case what the store has, all parts of its keys, and what changed since it was last built."""
    with reported():
        import json

        from qcase.prepare import explain
        from qcase.prepare.session import Session
        from qcase.store import store
        from qcase.suite import cases as cases_module
        from qcase.suite import discover, select

        opened = cases_module.Workspace.open(workspace or Path.cwd()).of_suite(suite)
        targets = targets_of(arches_named(arch) or [DEFAULT], target)
        looked = store.Store(store_root_of(cache_dir), readonly=True)
        gathered: dict[str, object] = {}
        for known, triple in targets.items():
            chosen = select.select(discover.discover(opened, known, triple, group), [case])
            variant = known.value if len(targets) > 1 else ""
            with Session(opened, known, triple, looked, lambda _: None, read_only_inspection=True) as session:
                for one in chosen:
                    if isinstance(one, cases_module.BrokenCase):
                        raise one.error
                    if as_json:
                        label = labelled(one.display_name, variant)
                        gathered[label] = [explain.as_json(found) for found in explain.explain(one, session)]
                        continue
                    if variant:
                        print(f"# {variant}")
                    for line in explain.lines(one, session):
                        print(line)
        if as_json:
            print(inert.json(json.dumps(gathered, indent=1)))


@app.command("argv")
def argv_command(
    case: Annotated[str, typer.Argument(metavar="CASE", autocompletion=offer_cases, help="A name or a glob.")],
    arch: ArchOption = DEFAULT.value,
    target: TargetOption = "",
    group: GroupsOption = None,
    suite: SuiteOption = "",
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
    kernel: KernelOption = None,
) -> None:
    """Print the QEMU command of a case, ready to paste; what it boots is built if need be."""
    with reported():
        from qcase import events
        from qcase.run import boot_plan
        from qcase.suite.cases import BrokenCase
        from qcase.vm import arguments

        with _cases_to_boot(case, arch, target, group, suite, workspace, cache_dir, kernel) as (chosen, session):
            for one in chosen:
                if isinstance(one, BrokenCase):
                    raise one.error
                session.emit(events.CaseStarted(one.display_name))
                command, image = boot_plan.command_of(one, session)
                if len(chosen) > 1:
                    print(f"# {one.display_name}")
                print(arguments.pasteable(command))
                if image is not None and not image.exists():
                    instead = f"`qcase shell {shlex.quote(one.display_name)} --arch {one.arch}`"
                    what = f"{one.display_name}: its image is not kept, see [cache] write: run it with {instead} instead"
                    warn(session.emit, what)


@contextmanager
def _cases_to_boot(
    case: str,
    arch: str,
    target: str,
    group: Sequence[str] | None,
    suite: str,
    workspace: Path | None,
    cache_dir: str,
    kernel: Path | None,
    *,
    one: bool = False,
) -> Iterator[tuple[Sequence[Case | BrokenCase], Session]]:
    """Open a session for the cases that a name or a glob fits. Its messages go to standard error.

    Raises `UsageError` if no case fits, and with `one` if several do.
    """
    from qcase.prepare.session import Session
    from qcase.report.terminal import TerminalReport
    from qcase.suite import discover, select
    from qcase.suite.cases import Workspace

    opened = Workspace.open(workspace or Path.cwd()).of_suite(suite)
    known = arch_named(arch)
    triple = target or known.default_target
    chosen = select.select(discover.discover(opened, known, triple, group), [case])
    if one and len(chosen) > 1:
        names = ", ".join(found.display_name for found in chosen[:4])
        raise UsageError(f"{len(chosen)} cases fit: {names}", where=case, hint="name one")
    emit = TerminalReport(sys.stderr, lambda *_: "")
    store = open_store(opened, store_root_of(cache_dir))
    with Session(opened, known, triple, store, emit, kernel_file=kernel_file(kernel)) as session:
        yield chosen, session


@app.command("shell")
def shell_command(
    case: Annotated[str, typer.Argument(metavar="CASE", autocompletion=offer_cases, help="A name, or a glob that fits one.")],
    arch: ArchOption = DEFAULT.value,
    target: TargetOption = "",
    group: GroupsOption = None,
    suite: SuiteOption = "",
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
    kernel: KernelOption = None,
    gdb: Annotated[bool, typer.Option("--gdb", help="Wait for a debugger, and print the command that attaches it.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the files of this run, and print a command that boots them.")
    ] = False,
) -> None:
    """Boot a case's image with its console on this terminal; nothing is typed, and nothing judged. Ctrl-A X ends it."""
    with reported():
        from qcase.run import shell

        with _cases_to_boot(case, arch, target, group, suite, workspace, cache_dir, kernel, one=True) as (chosen, session):
            code = shell.shell(chosen[0], session, shell.ShellOptions(gdb, keep))
        raise typer.Exit(code)


@app.command("lock")
def lock_command(
    arch: Annotated[
        list[str] | None,
        typer.Option("--arch", "-a", metavar="ARCH", help="Only for this architecture; may be repeated. Default: all."),
    ] = None,
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
) -> None:
    """Pin the packages of all cases, as the repositories have them today, in qcase.lock beside qcase.toml."""
    with reported():
        from qcase.guests.packages import lock
        from qcase.host.workspace_folders import target_of
        from qcase.prepare import prepare_case
        from qcase.prepare import session as session_module
        from qcase.suite import cases as cases_module
        from qcase.suite import discover, scan

        opened = cases_module.Workspace.open(workspace or Path.cwd())
        chosen = [arch_named(name) for name in arch or []] or list(Arch)
        old = lock.read_lock(opened.root)
        recorded = {key: found for key, found in (old.cases if old is not None else {}).items() if key[0] not in chosen}
        emit = terminal_report([])
        store = open_store(opened, store_root_of(cache_dir))
        for part, one in itertools.product(opened.suites, chosen):
            found = [discover.discover(part, one, one.default_target, group).cases for group in scan.groups(part)]
            with session_module.Session(part, one, one.default_target, store, emit, record_into=recorded) as session:
                for case in (case for cases in found for case in cases):
                    if isinstance(case, cases_module.BrokenCase):
                        raise case.error
                    prepare_case.record_packages(case, session, target_of(opened.root) / "qcase/logs/lock.log")
        for line in lock.lock_differences(old, recorded):
            print(line)
        count = len({(key[0], package) for key, found in recorded.items() for package in found})
        print(f"{lock.write_lock(opened.root, recorded)}: {count} packages of {len(recorded)} cases")


@app.command("init")
def init_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of the new workspace; default: this folder.")
    ] = Path(),
    pipeline: Annotated[
        str, typer.Option("--pipeline", metavar="NAME", autocompletion=offer_pipelines, help="The pipeline of the first case.")
    ] = "plain",
    case: Annotated[str, typer.Option("--case", "-c", metavar="CASE", help="The first case's name.")] = "hello",
    arch: NewArchOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the text of qcase.toml.")] = False,
) -> None:
    """Make a workspace: a qcase.toml with all keys commented out, and a first case. Nothing is overwritten.

    Where the folder has a tree that was written for axbuild, its qcase.toml is the one that runs this tree.
    """
    with reported():
        from qcase.config.workspace_file import WORKSPACE_FILE
        from qcase.inputs import new_case
        from qcase.suite import cases as cases_module
        from qcase.suite import catalogue, new_workspace

        root = folder.resolve()
        if not root.is_dir():
            raise UsageError("there is no such folder", where=str(folder), hint="make it first")
        kind = pipeline_named(pipeline)
        proposal = new_workspace.propose(root)
        if proposal is None:
            text = new_workspace.workspace_file({"suite.name": root.name, "suite.root": "suite"})
        else:
            text = new_workspace.workspace_file(proposal.values, kernel=proposal.arches[0])
        if dry_run:
            print(text, end="")
            return
        new_workspace.write_new(root / WORKSPACE_FILE, text)
        print(f"{WORKSPACE_FILE}: written")
        if said := new_workspace.ignore_results(root):
            print(said)
        opened = cases_module.Workspace.open(root)
        if proposal is None:
            first = new_case.new_case(opened, case, kind, arches_named(arch) or new_workspace.usual_arches(opened))
            _write_case(first, opened)
            print(f"next: qcase doctor; {first.command}")
            return
        for reason in proposal.reasons:
            print(wrapped(f"  {reason}", "    "))
        for line in proposal.untranslated:
            print(wrapped(f"  not translated: {line}", "    "))
        broken = 0
        for part in opened.suites:
            entries = [entry for found in catalogue.catalogue(part).groups.values() for entry in found]
            pipelines = new_workspace.by_pipeline(p for e in entries for p in set(e.pipelines.values()))
            print(f"{f'{part.suite}: ' if part.suite else ''}{counted(len(entries), 'case')}: {pipelines}")
            broken += sum(bool(entry.broken) for entry in entries)
        others = "".join(f"; qcase run --suite {part.suite}" for part in opened.suites if part.suite)
        print(f"next: qcase lint{f' ({broken} broken)' if broken else ''}; qcase run{others}")


@app.command("new")
def new_command(
    case: Annotated[str, typer.Argument(metavar="CASE", help="Its name, e.g. futex or fs/rename.")],
    pipeline: Annotated[
        str,
        typer.Option("--pipeline", metavar="NAME", autocompletion=offer_pipelines, help="plain, sh, c, python, rust or grouped."),
    ],
    steps: Annotated[bool, typer.Option("--steps", help="In steps: run the command, restart, run it again.")] = False,
    arch: NewArchOption = None,
    group: GroupOption = "",
    workspace: WorkspaceOption = None,
) -> None:
    """Make a case that passes, to be changed into one that tests something. Nothing is overwritten."""
    with reported():
        from qcase.inputs import new_case
        from qcase.suite import cases as cases_module
        from qcase.suite import new_workspace

        kind = pipeline_named(pipeline)
        opened = cases_module.Workspace.open(workspace or Path.cwd())
        arches = arches_named(arch) or new_workspace.usual_arches(opened)
        made = new_case.new_case(opened, case, kind, arches, group, steps=steps)
        _write_case(made, opened)
        print(f"next: {made.command}")


@app.command("lint")
def lint_command(
    workspace: WorkspaceOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if there are warnings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """Check all files of the suite, and say all at once what is wrong with them, and what is probably not meant.

    Exit code 2 if there are errors.
    """
    with reported():
        import json

        from qcase.inputs import lint

        found = lint.lint(workspace or Path.cwd())
        said = lint.document(found)
        if as_json:
            print(inert.json(json.dumps(said, indent=1)))
        else:
            for one in found:
                shown = wrapped(str(one), "  ")
                print(shown.replace(one.severity, coloured(one.severity, SEVERITIES[one.severity.value]), 1))
            print(f"{counted(said['errors'], 'error')}, {counted(said['warnings'], 'warning')}")
        raise typer.Exit(2 if said["errors"] else int(strict and bool(said["warnings"])))


def _write_case(case: NewCase, workspace: Workspace) -> None:
    from qcase.suite import new_workspace

    for path in new_workspace.write(case.folder, case.plan):
        print(f"{workspace.relative(path)}: written")
