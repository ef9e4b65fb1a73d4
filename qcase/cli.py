"""The commands; the one place that prints an error and picks the exit code.

Exit codes of `qcase run`: 0 all passed; 1 some case did not; 2 usage or configuration; 3 infrastructure; 130 interrupted.
"""

from __future__ import annotations

import gc
import io
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

# pydantic looks through all installed distributions for plugins of its own, which takes 20 ms. There are none for us.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import typer

from qcase import process
from qcase.errors import QcaseError, UsageError
from qcase.model import Arch, Pipeline

if TYPE_CHECKING:
    from qcase.config import CacheConfig
    from qcase.events import Emit, Event
    from qcase.runner import Plan
    from qcase.scaffold import NewCase
    from qcase.selection import Filters
    from qcase.store import Store
    from qcase.suite import BrokenCase, Case, Workspace

INTERRUPTED = 130
INTERNAL = 3
_COMPLETE = "_QCASE_COMPLETE"
_HELP = ["-h", "--help"]

app = typer.Typer(
    name="qcase",
    help="Run the test cases of an operating system in QEMU, hermetically.",
    epilog="\b\nExamples:\n  qcase init\n  qcase doctor\n  qcase run\n  qcase run --help",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": _HELP},
)
cache_app = typer.Typer(
    name="cache", help="The store: what it keeps, and what goes.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(cache_app)
images_app = typer.Typer(name="images", help="The toolchain images.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(images_app)

_debug = False
_interrupted_at = float("-inf")
_PATIENCE = 5.0  # seconds in which one interrupt is enough


def _offer_cases(context: typer.Context, incomplete: str) -> list[str]:
    from qcase import completion

    return completion.cases(incomplete, context.params.get("workspace"), context.params.get("group") or "")


def _offer_groups(context: typer.Context, incomplete: str) -> list[str]:
    from qcase import completion

    return completion.groups(incomplete, context.params.get("workspace"))


def _offer_tags(context: typer.Context, incomplete: str) -> list[str]:
    from qcase import completion

    return completion.tags(incomplete, context.params.get("workspace"))


def _offer(*words: str) -> Callable[[str], list[str]]:
    def offer(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return offer


_offer_arches = _offer(*Arch)
_offer_pipelines = _offer(*Pipeline)

ArchOption = Annotated[
    str,
    typer.Option("--arch", "-a", metavar="ARCH", autocompletion=_offer_arches, help="x86_64, aarch64, riscv64 or loongarch64."),
]
TargetOption = Annotated[
    str, typer.Option("--target", "-t", metavar="TRIPLE", help="The kernel's target; default: the architecture's usual one.")
]
GroupOption = Annotated[
    str, typer.Option("--group", "-g", metavar="NAME", autocompletion=_offer_groups, help="A first-level folder of the suite.")
]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option("--workspace", "-w", metavar="DIR", help="The folder with qcase.toml; default: from here upwards."),
]
CacheOption = Annotated[
    str, typer.Option("--cache-dir", metavar="DIR", help="The store; default: $QCASE_CACHE_DIR, else ~/.cache/qcase.")
]
ReadonlyOption = Annotated[
    bool, typer.Option("--cache-readonly", help="Write nothing to the store; what it does not have is built for this run alone.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")]
TagOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tag",
        metavar="TAG",
        autocompletion=_offer_tags,
        help="Only cases with this tag, or with '!TAG' those without; may be repeated.",
    ),
]
PipelineOption = Annotated[
    list[str] | None,
    typer.Option(
        "--pipeline", metavar="NAME", autocompletion=_offer_pipelines, help="Only cases of this pipeline; may be repeated."
    ),
]
FailedOption = Annotated[bool, typer.Option("--failed", help="Only cases that did not pass when they last ran.")]
ChangedOption = Annotated[
    str | None,
    typer.Option(
        "--changed", metavar="[REV]", help="Only cases whose sources differ from a git revision, HEAD if none is named."
    ),
]
ScaleOption = Annotated[
    str,
    typer.Option(
        "--timeout-scale",
        metavar="FACTOR",
        help="Multiplies every limit of time; default: $QCASE_TIMEOUT_SCALE, else [run] timeout_scale.",
    ),
]
NewArchOption = Annotated[
    list[str] | None,
    typer.Option(
        "--arch",
        "-a",
        metavar="ARCH",
        autocompletion=_offer_arches,
        help="What it is for; may be repeated. Default: what most cases are for.",
    ),
]
KernelOption = Annotated[
    Path | None, typer.Option("--kernel", metavar="FILE", help="Boot this kernel, whatever the configuration says.")
]
JUnitOption = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write a report as JUnit XML.")]
HtmlOption = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a report as one HTML page.")]
CaseOption = Annotated[
    list[str] | None,
    typer.Option("--case", "-c", metavar="CASE", autocompletion=_offer_cases, help="The same as CASE; may be repeated."),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and the commit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    global _debug
    _debug = debug
    if version:
        with _reported():
            from qcase.version import describe

            print(describe())
        raise typer.Exit


@app.command("run")
def run_command(
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="CASE", autocompletion=_offer_cases, help="Names or globs; default: all.")
    ] = None,
    case: CaseOption = None,
    arch: ArchOption = Arch.X86_64.value,
    target: TargetOption = "",
    group: GroupOption = "",
    tag: TagOption = None,
    pipeline: PipelineOption = None,
    failed: FailedOption = False,
    changed: ChangedOption = None,
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
    cache_readonly: ReadonlyOption = False,
    kernel: KernelOption = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", metavar="N", min=1, help="So many cases at once; default: what fits the machine."),
    ] = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", "-x", help="Start nothing new after a case that did not pass.")
    ] = False,
    max_fail: Annotated[
        int, typer.Option("--max-fail", metavar="N", min=0, help="Start nothing new after N cases that did not pass; 0: run all.")
    ] = 0,
    retries: Annotated[
        int | None,
        typer.Option(
            "--retries", metavar="N", min=0, help="Try a case up to N times more; default: [qcase] retries of each case."
        ),
    ] = None,
    repeat: Annotated[
        int, typer.Option("--repeat", metavar="N", min=1, help="Run every case N times, and show how often each failed.")
    ] = 1,
    shard: Annotated[str, typer.Option("--shard", metavar="I/N", help="Only the I-th of N parts of these cases.")] = "",
    times: Annotated[
        Path | None, typer.Option("--times", metavar="FILE", help="Balance the shards by the times in these --json results.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON, anew as each case ends.")
    ] = None,
    events_file: Annotated[
        Path | None, typer.Option("--events", metavar="FILE", help="Write what happens, as it happens, as lines of JSON.")
    ] = None,
    junit_file: JUnitOption = None,
    html_file: HtmlOption = None,
    timeout_scale: ScaleOption = "",
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing: guests, images, packages have to be there.")] = False,
    locked: Annotated[
        bool, typer.Option("--locked", help="Refuse a toolchain image that is not as images/lock.toml has it.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show only what did not pass, and the summary.")] = False,
    verbose: Annotated[
        int,
        typer.Option("--verbose", "-v", count=True, help="Say why something is built; -vv: phases, and what the guests say."),
    ] = 0,
) -> None:
    """Build, boot and judge cases."""
    with _reported():
        from qcase.runner import Plan

        wanted = [*(cases or []), *(case or [])]
        filters = _filters(tag, pipeline, failed, changed)
        plan = Plan(jobs, retries, repeat, 1 if fail_fast else max_fail, shard=shard)
        options = _RunOptions(
            filters=filters,
            plan=plan,
            arch=arch,
            target=target,
            group=group,
            workspace=workspace,
            cache_dir=cache_dir,
            readonly=cache_readonly,
            timeout_scale=timeout_scale,
            times=times,
            files=ReportFiles(json=json_file, events=events_file, junit=junit_file, html=html_file),
            kernel=kernel,
            offline=offline,
            locked=locked,
            verbosity=-1 if quiet else verbose,
        )
        raise typer.Exit(_run(wanted, options))


@app.command("report")
def report_command(
    results_files: Annotated[
        list[Path], typer.Argument(metavar="RESULTS.json", help="What `qcase run --json` wrote: one, or that of every shard.")
    ],
    junit_file: JUnitOption = None,
    html_file: HtmlOption = None,
) -> None:
    """Make other reports of the results of a run, or of all shards of one."""
    with _reported():
        from qcase.report import results, whole

        if junit_file is None and html_file is None:
            raise UsageError("no report is asked for", hint="add --junit FILE or --html FILE")
        run = results.whole([(path, results.load(path)) for path in results_files])
        wanted = ((junit_file, whole.junit), (html_file, whole.html))
        for report in [make(path) for path, make in wanted if path is not None]:  # none is written where one cannot be
            report.write(run)


@app.command("list")
def list_command(
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="CASE", autocompletion=_offer_cases, help="Names or globs; default: all.")
    ] = None,
    arch: Annotated[
        str, typer.Option("--arch", "-a", metavar="ARCH", autocompletion=_offer_arches, help="Only cases for this architecture.")
    ] = "",
    group: GroupOption = "",
    tag: TagOption = None,
    pipeline: PipelineOption = None,
    failed: FailedOption = False,
    changed: ChangedOption = None,
    workspace: WorkspaceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """Show the suite as a tree: groups, build groups, cases and subcases, with pipelines, architectures and tags."""
    with _reported():
        import json

        from qcase import selection, suite

        only = _arch(arch) if arch else None
        opened = suite.Workspace.open(workspace or Path.cwd())
        listed = suite.catalogue(opened, group or None)
        listed = listed if only is None else listed.only(only)
        if cases:
            listed = suite.named(listed, cases)
        if filters := _filters(tag, pipeline, failed, changed):
            listed = selection.listed(opened, listed, filters)
        if as_json:
            print(json.dumps(suite.document(opened, listed), indent=1))
            return
        for line in suite.listing(listed):
            print(line)
        for problem in listed.warnings:
            print(f"warning: {problem}", file=sys.stderr)


@app.command("explain")
def explain_command(
    case: Annotated[str, typer.Argument(metavar="CASE", autocompletion=_offer_cases, help="A name or a glob.")],
    arch: ArchOption = Arch.X86_64.value,
    target: TargetOption = "",
    group: GroupOption = "",
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """Say of a case what the store has, all parts of its keys, and what changed since it was last built."""
    with _reported():
        import json

        from qcase import explain, store, suite
        from qcase.prepare import Session

        opened = suite.Workspace.open(workspace or Path.cwd())
        known = _arch(arch)
        triple = target or known.default_target
        chosen = suite.select(suite.discover(opened, known, triple, group or None), [case])
        looked = store.Store(_store_root(cache_dir), readonly=True)
        gathered: dict[str, object] = {}
        with Session(opened, known, triple, looked, lambda _: None, looking=True) as session:
            for one in chosen:
                if isinstance(one, suite.BrokenCase):
                    raise one.error
                if as_json:
                    gathered[one.display_name] = [explain.as_json(found) for found in explain.explain(one, session)]
                    continue
                for line in explain.lines(one, session):
                    print(line)
        if as_json:
            print(json.dumps(gathered, indent=1))


@app.command("argv")
def argv_command(
    case: Annotated[str, typer.Argument(metavar="CASE", autocompletion=_offer_cases, help="A name or a glob.")],
    arch: ArchOption = Arch.X86_64.value,
    target: TargetOption = "",
    group: GroupOption = "",
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
    kernel: KernelOption = None,
) -> None:
    """Print the QEMU command of a case, ready to paste; what it boots is built if need be."""
    with _reported():
        from qcase import events, qemu, runner, suite
        from qcase.prepare import Session
        from qcase.report.terminal import TerminalReport

        opened = suite.Workspace.open(workspace or Path.cwd())
        known = _arch(arch)
        triple = target or known.default_target
        chosen = suite.select(suite.discover(opened, known, triple, group or None), [case])
        emit = TerminalReport(sys.stderr, lambda _: "")
        store = _store(opened, _store_root(cache_dir))
        with Session(opened, known, triple, store, emit, kernel_file=_kernel(kernel)) as session:
            for one in chosen:
                if isinstance(one, suite.BrokenCase):
                    raise one.error
                emit(events.CaseStarted(one.display_name))
                command, image = runner.command_of(one, session)
                if len(chosen) > 1:
                    print(f"# {one.display_name}")
                print(qemu.pasteable(command))
                if not image.exists():
                    _warn(
                        emit, f"{one.display_name}: its image is not kept, see [cache] write: run it with `qcase shell` instead"
                    )


@app.command("shell")
def shell_command(
    case: Annotated[str, typer.Argument(metavar="CASE", autocompletion=_offer_cases, help="A name, or a glob that fits one.")],
    arch: ArchOption = Arch.X86_64.value,
    target: TargetOption = "",
    group: GroupOption = "",
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
    kernel: KernelOption = None,
    gdb: Annotated[bool, typer.Option("--gdb", help="Wait for a debugger; the line to attach it with is printed.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave what was made for this run, and a command that boots it.")] = False,
) -> None:
    """Boot a case's image with its console on this terminal; nothing is typed, and nothing judged. Ctrl-A X ends it."""
    with _reported():
        from qcase import shell, suite
        from qcase.prepare import Session
        from qcase.report.terminal import TerminalReport

        opened = suite.Workspace.open(workspace or Path.cwd())
        known = _arch(arch)
        triple = target or known.default_target
        chosen = suite.select(suite.discover(opened, known, triple, group or None), [case])
        if len(chosen) > 1:
            names = ", ".join(one.display_name for one in chosen[:4])
            raise UsageError(f"{len(chosen)} cases fit: {names}", where=case, hint="name one")
        emit = TerminalReport(sys.stderr, lambda _: "")
        store = _store(opened, _store_root(cache_dir))
        with Session(opened, known, triple, store, emit, kernel_file=_kernel(kernel)) as session:
            code = shell.shell(chosen[0], session, shell.Wishes(gdb, keep))
        raise typer.Exit(code)


@cache_app.command("path")
def cache_path(cache_dir: CacheOption = "") -> None:
    """Print the folder of the store."""
    with _reported():
        print(_store_root(cache_dir))


@cache_app.command("list")
def cache_list(cache_dir: CacheOption = "") -> None:
    """Show what is stored, what was not used for longest first: size on the disk, last use, the case that made it."""
    with _reported():
        from qcase import cache

        for line in cache.listing(_looked_at(cache_dir), narrow=_narrow()):
            print(_wrapped(line, " " * 35))


@cache_app.command("size")
def cache_size(cache_dir: CacheOption = "") -> None:
    """Show how much of the disk the store takes; holes do not count."""
    with _reported():
        from qcase import cache

        for line in cache.sizes(_looked_at(cache_dir)):
            print(line)


@cache_app.command("gc")
def cache_gc(
    max_size: Annotated[str, typer.Option(metavar="SIZE", help="Of the store; default: [cache] max_size, else 20 GiB.")] = "",
    max_age: Annotated[str, typer.Option(metavar="AGE", help='Of what is not used, e.g. "30d"; default: any.')] = "",
    min_free: Annotated[str, typer.Option(metavar="SIZE", help="On its disk; default: [cache] min_free, else 1 GiB.")] = "",
    dry_run: DryRunOption = False,
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
) -> None:
    """Sweep leftovers, and take away what was not used for longest until the limits are kept. Nothing that is in use."""
    with _reported():
        from qcase import cache, gc, store

        default = _cache_config(workspace)
        limits = gc.Limits(
            max_size=_size(max_size or default.max_size, "--max-size"),
            min_free=_size(min_free or default.min_free, "--min-free"),
            max_age=cache.parse_age(max_age) if max_age else None,
        )
        done = gc.collect(store.Store(_store_root(cache_dir)), limits, dry_run=dry_run)
        for line in cache.collected(done, dry_run=dry_run):
            print(line)


@cache_app.command("verify")
def cache_verify(
    repair: Annotated[bool, typer.Option("--repair", help="Throw away what is broken.")] = False, cache_dir: CacheOption = ""
) -> None:
    """Read everything in full. Exit code 1 if something is broken and still there."""
    with _reported():
        from qcase import cache, store

        opened = store.Store(_store_root(cache_dir)) if repair else _looked_at(cache_dir)
        found = False
        for line, broken in cache.verify(opened, repair=repair):
            found |= broken
            print(line)
        raise typer.Exit(int(found))


@cache_app.command("clear")
def cache_clear(
    everything: Annotated[
        bool, typer.Option("--all", help="Guests and records of toolchain images too; guests have to be fetched again.")
    ] = False,
    dry_run: DryRunOption = False,
    cache_dir: CacheOption = "",
) -> None:
    """Take away all overlays and images that are not in use."""
    with _reported():
        from qcase import cache, gc, store

        done = gc.clear(store.Store(_store_root(cache_dir)), everything=everything, dry_run=dry_run)
        for line in cache.collected(done, dry_run=dry_run):
            print(line)


@images_app.command("build")
def images_build(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The image, e.g. c.")],
    fresh: Annotated[bool, typer.Option("--fresh", help="Build anew, from a new base and with today's packages.")] = False,
    cache_dir: CacheOption = "",
) -> None:
    """Build a toolchain image, if the one that is there was not built from this recipe."""
    with _reported():
        from qcase import images
        from qcase.containers import Engine

        emit = _terminal([])
        with Engine.connect() as engine:
            root = _store_root(cache_dir)
            image = images.build(name, engine, root, emit, fresh=True) if fresh else images.ensure(name, engine, root, emit)
        print(f"{image.name}: {image.id}, identity {image.identity}, {len(image.packages)} packages")


NamesArgument = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="The images; default: all.")]


@images_app.command("list")
def images_list(cache_dir: CacheOption = "") -> None:
    """Show the toolchain images: whether they are built, and as the lock has them."""
    with _reported():
        from qcase import images

        root = _store_root(cache_dir)
        pins = images.read_lock()
        for name in images.names():
            image = images.known(name, root)
            if image is None:
                state = "not built"
            else:
                differs = name in pins and images.differences(pins[name], image, images.recipe_digest(name))
                locked = "not pinned" if name not in pins else "not as pinned" if differs else "as pinned"
                state = f"{image.identity[:12]}  {len(image.packages)} packages, {locked}"
            print(f"{name:<8}  {state}")


@images_app.command("lock")
def images_lock(names: NamesArgument = None, cache_dir: CacheOption = "") -> None:
    """Pin toolchain images as they are, in images/lock.toml; those that are not there are built."""
    with _reported():
        from qcase import images
        from qcase.containers import Engine

        emit = _terminal([])
        pins = images.read_lock()
        with Engine.connect() as engine:
            for name in names or images.names():
                image = images.ensure(name, engine, _store_root(cache_dir), emit)
                before = pins.get(name)
                pins[name] = images.pin(image)
                changes = images.differences(before, image, pins[name].recipe) if before is not None else []
                print(f"{name}: {f'{len(changes)} changes' if changes else 'as it was' if before is not None else 'new'}")
                for line in changes:
                    print(f"  {line}")
        print(f"written: {images.write_lock(pins)}")


@images_app.command("verify")
def images_verify(names: NamesArgument = None, cache_dir: CacheOption = "") -> None:
    """Read back what is installed in toolchain images, and compare it with images/lock.toml. Exit code 1 where it differs."""
    with _reported():
        from qcase import images
        from qcase.containers import Engine

        pins = images.read_lock()
        good = True
        with Engine.connect() as engine:
            for name in names or images.names():
                image = images.reread(name, engine, _store_root(cache_dir))
                if name not in pins:
                    lines = ["is not pinned"]
                elif image is None:
                    lines = ["is not built from the recipe as it is now"]
                else:
                    lines = images.differences(pins[name], image, images.recipe_digest(name))
                print(f"{name}: {'not as pinned' if lines else 'as pinned'}")
                for line in lines:
                    print(f"  {line}")
                good &= not lines
        raise typer.Exit(int(not good))


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
    with _reported():
        from qcase import packages, prepare, suite

        opened = suite.Workspace.open(workspace or Path.cwd())
        chosen = [_arch(name) for name in arch or []] or list(Arch)
        old = packages.read_lock(opened.root)
        recorded = {key: found for key, found in (old.cases if old is not None else {}).items() if key[0] not in chosen}
        emit = _terminal([])
        store = _store(opened, _store_root(cache_dir))
        for one in chosen:
            found = [suite.discover(opened, one, one.default_target, group).cases for group in suite.groups(opened)]
            with prepare.Session(opened, one, one.default_target, store, emit, recorded=recorded) as session:
                for case in (case for cases in found for case in cases):
                    if isinstance(case, suite.BrokenCase):
                        raise case.error
                    prepare.record_packages(case, session, opened.root / "target" / "qcase" / "logs" / "lock.log")
        for line in packages.lock_differences(old, recorded):
            print(line)
        count = len({(key[0], package) for key, found in recorded.items() for package in found})
        print(f"{packages.write_lock(opened.root, recorded)}: {count} packages of {len(recorded)} cases")


@app.command("init")
def init_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The new workspace; default: this folder.")] = Path(),
    pipeline: Annotated[
        str, typer.Option("--pipeline", metavar="NAME", autocompletion=_offer_pipelines, help="Of the first case.")
    ] = "plain",
    case: Annotated[str, typer.Option("--case", "-c", metavar="CASE", help="The first case's name.")] = "hello",
    arch: NewArchOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what qcase.toml would say.")] = False,
) -> None:
    """Make a workspace: a qcase.toml with all keys commented out, and a first case. Nothing is overwritten.

    Where the folder has a tree that was written for axbuild, its qcase.toml is the one that runs this tree.
    """
    with _reported():
        from qcase import scaffold, suite
        from qcase.config import WORKSPACE_FILE

        root = folder.resolve()
        if not root.is_dir():
            raise UsageError("there is no such folder", where=str(folder), hint="make it first")
        kind = _pipeline(pipeline)
        proposal = scaffold.propose(root)
        if proposal is None:
            text = scaffold.workspace_file({"suite.name": root.name, "suite.root": "suite"})
        else:
            text = scaffold.workspace_file(proposal.values, kernel=proposal.arches[0])
        if dry_run:
            print(text, end="")
            return
        scaffold.write_new(root / WORKSPACE_FILE, text)
        print(f"{WORKSPACE_FILE}: written")
        opened = suite.Workspace.open(root)
        if proposal is None:
            first = scaffold.new_case(opened, case, kind, _arches(arch) or scaffold.usual_arches(opened))
            _write_case(first, opened)
            print(f"next: qcase doctor; {first.command}")
            return
        for reason in proposal.reasons:
            print(_wrapped(f"  {reason}", "    "))
        listed = suite.catalogue(opened)
        entries = [entry for found in listed.groups.values() for entry in found]
        print(f"{_count(len(entries), 'case')}: {scaffold.by_pipeline(p for e in entries for p in set(e.pipelines.values()))}")
        broken = sum(bool(entry.broken) for entry in entries)
        print(f"next: qcase lint{f' ({broken} broken)' if broken else ''}; qcase run")


@app.command("new")
def new_command(
    case: Annotated[str, typer.Argument(metavar="CASE", help="Its name, e.g. futex or fs/rename.")],
    pipeline: Annotated[
        str,
        typer.Option(
            "--pipeline", metavar="NAME", autocompletion=_offer_pipelines, help="plain, sh, c, python, rust or grouped."
        ),
    ],
    arch: NewArchOption = None,
    group: GroupOption = "",
    workspace: WorkspaceOption = None,
) -> None:
    """Make a case that passes, to be changed into one that tests something. Nothing is overwritten."""
    with _reported():
        from qcase import scaffold, suite

        kind = _pipeline(pipeline)
        opened = suite.Workspace.open(workspace or Path.cwd())
        made = scaffold.new_case(opened, case, kind, _arches(arch) or scaffold.usual_arches(opened), group)
        _write_case(made, opened)
        print(f"next: {made.command}")


@app.command("doctor")
def doctor_command(
    arch: ArchOption = Arch.X86_64.value,
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """Look at this machine: engine, QEMU, disk, guests, images, store. Exit code 0 only if `qcase run` would work.

    Nothing is fetched, built or cleared away.
    """
    with _reported():
        import json

        from qcase import doctor

        known = _arch(arch)
        lines = []
        width = max(len(f"qemu {one}") for one in Arch)
        for line in doctor.examine(workspace, known, _store_root(cache_dir)):
            lines.append(line)
            if as_json:
                continue
            narrow = _narrow()
            head = f"{line.state:<8} {line.what}: " if narrow else f"{line.state:<8} {line.what:<{width}}  "
            indent = " " * (9 if narrow else len(head))
            shown = _wrapped(f"{head}{line.says}", indent)
            print(shown.replace(line.state, _coloured(line.state, _SEVERITIES[line.state.value]), 1))
            if line.hint:
                print(_wrapped(f"{indent}hint: {line.hint}", f"{indent}      "))
            sys.stdout.flush()
        works = doctor.works(lines)
        if as_json:
            print(json.dumps(doctor.document(lines, known), indent=1))
        else:
            bad = dict.fromkeys(line.what for line in lines if line.state is doctor.State.BAD)
            print(
                f"qcase run --arch {known} would work" if works else f"qcase run --arch {known} would not work: {', '.join(bad)}"
            )
        raise typer.Exit(0 if works else INTERNAL)


@app.command("lint")
def lint_command(
    workspace: WorkspaceOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if there are warnings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """Check all files of the suite, and say all at once what is wrong with them, and what is probably not meant.

    Exit code 2 if there are errors.
    """
    with _reported():
        import json

        from qcase import lint

        found = lint.lint(workspace or Path.cwd())
        said = lint.document(found)
        if as_json:
            print(json.dumps(said, indent=1))
        else:
            for one in found:
                shown = _wrapped(str(one), "  ")
                print(shown.replace(one.severity, _coloured(one.severity, _SEVERITIES[one.severity.value]), 1))
            print(f"{_count(said['errors'], 'error')}, {_count(said['warnings'], 'warning')}")
        raise typer.Exit(2 if said["errors"] else int(strict and bool(said["warnings"])))


@app.command("schema")
def schema_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            autocompletion=_offer("qcase", "qemu", "results", "events"),
            help="qcase: of qcase.toml; qemu: of qemu-<arch>.toml; results, events: of what --json and --events write.",
        ),
    ],
    as_toml: Annotated[bool, typer.Option("--toml", help="All keys with their defaults and meanings, as TOML.")] = False,
) -> None:
    """Print the JSON Schema of a configuration file, for editors that complete and check it, or of a report."""
    with _reported():
        from qcase import schema
        from qcase.report import results

        if name in results.SCHEMAS:
            if as_toml:
                raise UsageError(f"{name} are JSON, and no file that is written by hand", where="--toml", hint="leave out --toml")
            print(results.json_schema(name), end="")
            return
        print(schema.toml(name) if as_toml else schema.json_schema(name), end="")


@app.command("completion")
def completion_command(
    shell: Annotated[
        str, typer.Argument(metavar="SHELL", autocompletion=_offer("bash", "zsh", "fish"), help="bash, zsh or fish.")
    ],
) -> None:
    """Print the script with which a shell completes commands, options, and names of cases, groups and tags."""
    with _reported():
        from typer.completion import get_completion_script  # type: ignore[attr-defined]

        if shell not in ("bash", "zsh", "fish"):
            raise UsageError(f"there is no completion for {shell!r}", hint="there is one for bash, zsh and fish")
        print(get_completion_script(prog_name="qcase", complete_var=_COMPLETE, shell=shell))


# What stands at the end of each command's help. A test parses every line.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "qcase run",
        "qcase run futex 'fs/*' --arch aarch64",
        "qcase run syscalls/eventfd",
        "qcase run --failed",
        "qcase run --changed main --tag '!slow'",
        "qcase run -j 4 --retries 1 --junit junit.xml",
        "qcase run --json results.json --events events.jsonl",
        "qcase run futex --repeat 100",
    ),
    "report": ("qcase report results.json --junit junit.xml --html report.html",),
    "list": ("qcase list", "qcase list --arch aarch64 --tag fs", "qcase list --pipeline c --json"),
    "explain": ("qcase explain futex", "qcase explain 'fs/*' --arch aarch64 --json"),
    "argv": ("qcase argv futex",),
    "shell": ("qcase shell futex", "qcase shell futex --arch riscv64 --gdb"),
    "init": ("qcase init", "qcase init --pipeline sh --case first", "qcase init ../kernel --dry-run"),
    "new": ("qcase new futex --pipeline c", "qcase new fs/rename --pipeline grouped --arch x86_64 --arch riscv64"),
    "doctor": ("qcase doctor", "qcase doctor --arch aarch64 --json"),
    "lint": ("qcase lint", "qcase lint --strict --json"),
    "schema": ("qcase schema qcase", "qcase schema qemu --toml"),
    "completion": ("source <(qcase completion bash)", "qcase completion fish"),
    "cache path": ("qcase cache path",),
    "cache list": ("qcase cache list",),
    "cache size": ("qcase cache size",),
    "cache gc": ("qcase cache gc --dry-run", "qcase cache gc --max-size '10 GiB' --max-age 30d"),
    "cache verify": ("qcase cache verify", "qcase cache verify --repair"),
    "cache clear": ("qcase cache clear --dry-run", "qcase cache clear --all"),
    "lock": ("qcase lock", "qcase lock --arch x86_64"),
    "images build": ("qcase images build c", "qcase images build c --fresh"),
    "images list": ("qcase images list",),
    "images lock": ("qcase images lock", "qcase images lock c"),
    "images verify": ("qcase images verify",),
}


# What stands beside each command in the list of all; an uncut line even on a narrow terminal.
SUMMARIES: dict[str, str] = {
    "run": "Build, boot and judge cases.",
    "report": "Other reports of results.",
    "list": "Show the suite as a tree.",
    "explain": "What a case's keys are made of.",
    "argv": "A case's QEMU command, to be pasted.",
    "shell": "A case's image by hand.",
    "init": "Make a workspace.",
    "new": "Make a case.",
    "doctor": "Would a run work here?",
    "lint": "Check all files of the suite.",
    "schema": "JSON Schemas of the configuration.",
    "completion": "Scripts that make shells complete.",
    "cache path": "The folder of the store.",
    "cache list": "What is stored.",
    "cache size": "How much of the disk it takes.",
    "cache gc": "Sweep, and keep to the limits.",
    "cache verify": "Read everything in full.",
    "cache clear": "Take away all that is not in use.",
    "lock": "Pin the packages of all cases.",
    "images build": "Build a toolchain image.",
    "images list": "Which are there, and as pinned.",
    "images lock": "Pin them as they are.",
    "images verify": "Are they as pinned?",
}


def _add_examples(commands: typer.Typer, above: str = "") -> None:
    for command in commands.registered_commands:
        command.short_help = SUMMARIES.get(f"{above}{command.name}")
        if lines := EXAMPLES.get(f"{above}{command.name}"):
            command.epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
    for group in commands.registered_groups:
        assert group.typer_instance is not None
        _add_examples(group.typer_instance, f"{above}{group.typer_instance.info.name} ")


_add_examples(app)


def program() -> NoReturn:
    """The program as it is installed: `main`, and out at once. All is put away by then, and Python's own end takes 30 ms.

    After an interrupt Python would also wait for each thread, even one that waits for the engine. The guardian comes behind us.
    """
    gc.set_threshold(50_000)  # imports make many things and drop few: looking through them over and over takes 20 ms
    code: object = 0
    try:
        main()
    except SystemExit as leaving:
        code = leaving.code or 0
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError:
        if code != INTERRUPTED:
            sys.exit(code)  # type: ignore[arg-type]  # Python has words for it
    if not isinstance(code, int):
        sys.exit(str(code))
    os._exit(code)


def main() -> None:
    """All that the program does. Ends with `SystemExit`."""
    if _COMPLETE in os.environ:  # a shell asks what may stand here
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    _fill_standard_streams()
    # What ends a run from outside is an interrupt like Ctrl-C: everything is put away, and what had finished is reported.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` and a shell's background jobs have it
            signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a guest's words must not fail on a terminal that has no such characters
    try:
        words = arguments(sys.argv[1:])
        program, name, words = _helped(command(words[:1]), words)
        program(words, prog_name=name, help_option_names=_HELP)
    finally:
        if _interrupted_at > 0:  # while Python ends, it takes our handlers away
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)


def command(words: Sequence[str] = ()) -> Any:
    """All commands, or the one that `words` begin with: typer takes a millisecond for each.

    Their help names an argument by what it is, without Python's type behind it.
    """
    commands, groups = app.registered_commands, app.registered_groups
    try:
        if words and any(one.name == words[0] for one in commands):
            app.registered_commands = [one for one in commands if one.name == words[0]]
            app.registered_groups = []
        whole = typer.main.get_command(app)
    finally:
        app.registered_commands, app.registered_groups = commands, groups
    pending: list[Any] = [whole]
    while pending:
        one = pending.pop()
        pending += getattr(one, "commands", {}).values()
        for parameter in one.params:
            if parameter.param_type_name == "argument":
                parameter.display_type_rich = lambda ctx: None  # noqa: ARG005
    return whole


def _helped(whole: Any, words: list[str]) -> tuple[Any, str, list[str]]:
    """What to call, under which name, with which words: the command itself where only its help is asked for.

    On the way through the program typer makes values of its options, and imports pydantic to do so: a tenth of a second.
    """
    one, path = whole, ["qcase"]
    for word in words:
        if word not in getattr(one, "commands", {}):
            break
        one = one.commands[word]
        path.append(word)
    if words[len(path) - 1 :] in [[option] for option in _HELP]:
        return one, " ".join(path), ["--help"]
    return whole, "qcase", words


def arguments(argv: Sequence[str]) -> list[str]:
    """The words of a command line, the value that an option may go without filled in: `--changed` is `--changed HEAD`."""
    words = list(argv)
    for index, word in enumerate(words):
        if word == "--":
            break
        following = words[index + 1] if index + 1 < len(words) else "-"
        if word == "--changed" and following.startswith("-"):
            words[index] = "--changed=HEAD"
    return words


def _fill_standard_streams() -> None:
    """Whoever starts us without one of the three gets one that leads nowhere.

    Else the next file that is opened takes its number, and a lock that is called 0 would be closed by QEMU's own standard input.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _interrupt(*_: object) -> None:
    """The first one interrupts. The next ones are the same impatience, and must not cut short what clears away."""
    global _interrupted_at
    now = time.monotonic()
    if now >= _interrupted_at + _PATIENCE:
        _interrupted_at = now
        raise KeyboardInterrupt


def _filters(tag: list[str] | None, pipeline: list[str] | None, failed: bool, changed: str | None) -> Filters:
    from qcase.selection import Filters

    return Filters(tuple(tag or ()), tuple(pipeline or ()), failed, changed)


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where reports go, beside the terminal."""

    json: Path | None = None
    events: Path | None = None
    junit: Path | None = None
    html: Path | None = None

    def listeners(self) -> list[Emit]:
        """Those who write them. Raises `UsageError` for one that cannot be written."""
        from qcase.report.json import EventsReport, JsonReport

        found: list[Emit] = []
        if self.json is not None:
            found.append(JsonReport(self.json))
        if self.events is not None:
            found.append(EventsReport(self.events))
        if self.junit is not None:
            from qcase.report import whole

            found.append(whole.junit(self.junit))
        if self.html is not None:
            from qcase.report import whole

            found.append(whole.html(self.html))
        return found


@dataclass(frozen=True, kw_only=True)
class _RunOptions:
    """What `qcase run` was asked for, besides the names of cases."""

    filters: Filters
    plan: Plan
    arch: str
    target: str
    group: str
    workspace: Path | None
    cache_dir: str
    readonly: bool
    timeout_scale: str
    times: Path | None
    files: ReportFiles
    kernel: Path | None
    offline: bool
    locked: bool
    verbosity: int

    def again(self, names: Sequence[str]) -> str:
        """The command that runs just these cases again."""
        options = [("--arch", self.arch if self.arch != Arch.X86_64 else ""), ("--target", self.target), ("--group", self.group)]
        options += [("--workspace", str(self.workspace) if self.workspace else ""), ("--cache-dir", self.cache_dir)]
        options += [("--timeout-scale", self.timeout_scale), ("--kernel", str(self.kernel) if self.kernel else "")]
        command = ["qcase", "run", *(word for name, value in options if value for word in (name, value))]
        flags = [("--cache-readonly", self.readonly), ("--offline", self.offline), ("--locked", self.locked)]
        return shlex.join([*command, *(flag for flag, given in flags if given), *names])


def _run(wanted: Sequence[str], options: _RunOptions) -> int:
    from qcase import history, runner, selection, suite
    from qcase.prepare import Session

    arch = _arch(options.arch)
    opened = _scaled(suite.Workspace.open(options.workspace or Path.cwd()), options.timeout_scale)
    triple = options.target or arch.default_target
    discovery = suite.discover(opened, arch, triple, options.group or None)
    chosen = selection.choose(opened, discovery, wanted, options.filters)
    cases, plan = _share(chosen.cases, options.plan, options.times)
    remembered = history.recall(opened.root, arch, triple)
    plan = replace(plan, seconds={name: one.total for name, one in remembered.items()})
    listeners = options.files.listeners()
    waited_for = bool(listeners)
    listeners.append(history.Memory(opened.root, triple, lambda message: print(f"warning: {message}", file=sys.stderr)))
    emit = _terminal(listeners, options.again, verbosity=options.verbosity, to_the_end=waited_for)
    for problem in discovery.warnings:
        _warn(emit, str(problem))
    store = _store(opened, _store_root(options.cache_dir), readonly=options.readonly)
    if chosen.note:
        _warn(emit, chosen.note)
    session = Session(
        opened,
        arch,
        triple,
        store,
        emit,
        offline=options.offline,
        locked=options.locked,
        kernel_file=_kernel(options.kernel),
    )
    with session:
        return runner.run_cases(cases, session, plan).exit_code


def _share(chosen: Sequence[Case | BrokenCase], plan: Plan, times: Path | None) -> tuple[Sequence[Case | BrokenCase], Plan]:
    """The cases of this machine's shard. What this machine itself remembers has no say: another one remembers something else."""
    from qcase import schedule

    if not plan.shard:
        if times is not None:
            raise UsageError("without --shard there is nothing to balance", where=f"--times {times}")
        return chosen, plan
    shard = schedule.parse_shard(plan.shard)
    known = schedule.read_times(times) if times is not None else {}
    parts = schedule.partition([case.display_name for case in chosen], shard.count, known)
    mine = set(parts[shard.index - 1])
    plan = replace(plan, shard=str(shard), partition=schedule.fingerprint(parts))
    return [case for case in chosen if case.display_name in mine], plan


def _scaled(workspace: Workspace, option: str) -> Workspace:
    """The workspace with the factor that the command line, else the environment, gives to every limit of time."""
    from qcase.config import parse_scale

    for where, text in (("--timeout-scale", option), ("QCASE_TIMEOUT_SCALE", os.environ.get("QCASE_TIMEOUT_SCALE", ""))):
        if text:
            try:
                return workspace.scaled(parse_scale(text))
            except ValueError as error:
                raise UsageError(str(error), where=where, hint="write a number greater than 0: 2, 0.5") from None
    return workspace


def _kernel(named: Path | None) -> Path | None:
    """What `--kernel` names. A file that is not there stops the run before anything is built."""
    if named is not None and not named.is_file():
        raise UsageError("there is no such file", where=f"--kernel {named}", hint="it is looked for from the current folder")
    return None if named is None else named.absolute()


def _terminal(
    listeners: Sequence[Emit],
    repeat: Callable[[Sequence[str]], str] = lambda _: "",
    *,
    verbosity: int = 0,
    to_the_end: bool = False,
) -> Emit:
    """Say events to the terminal and to the other listeners.

    `to_the_end`: somebody waits for what the others write, so a terminal that is gone does not end the run before it is over.
    """
    from qcase.events import RunFinished
    from qcase.report.terminal import TerminalReport

    # The person first: a file that cannot be written must not hide the summary.
    person = TerminalReport(sys.stdout, repeat, verbosity=verbosity)
    gone: list[OSError] = []

    def emit(event: Event) -> None:
        try:
            if not gone:
                person(event)
        except OSError as error:
            if not to_the_end:
                raise
            gone.append(error)
        trouble = None
        for listener in listeners:
            try:
                listener(event)
            except QcaseError as error:
                trouble = trouble or error  # that of one report must not cost the others
        if trouble is not None:
            raise trouble
        if gone and isinstance(event, RunFinished):
            raise gone[0]

    return emit


def _warn(emit: Emit, message: str) -> None:
    from qcase.events import Warned

    emit(Warned(message))


def _arch(name: str) -> Arch:
    try:
        return Arch(name)
    except ValueError:
        import difflib

        known = f"known are {', '.join(Arch)}"
        close = difflib.get_close_matches(name, list(Arch), n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? {known}" if close else known
        raise UsageError(f"unknown architecture {name!r}", where="--arch", hint=hint) from None


def _arches(names: Sequence[str] | None) -> list[Arch]:
    return list(dict.fromkeys(_arch(name) for name in names or ()))


def _pipeline(name: str) -> Pipeline:
    from qcase import selection

    if name not in list(Pipeline):
        hint = selection.near(name, Pipeline, "pipelines")
        raise UsageError(f"unknown pipeline {name!r}", where="--pipeline", hint=hint)
    return Pipeline(name)


def _write_case(case: NewCase, workspace: Workspace) -> None:
    from qcase import scaffold

    for path in scaffold.write(case.folder, case.plan):
        print(f"{workspace.relative(path)}: written")


def _looked_at(cache_dir: str) -> Store:
    """A store that is only looked at; it need not be there."""
    from qcase import store

    return store.Store(_store_root(cache_dir), readonly=True)


def _cache_config(workspace: Path | None) -> CacheConfig:
    """`[cache]` of the workspace; the defaults where there is none around us."""
    from qcase import suite
    from qcase.config import CacheConfig, find_workspace

    if workspace is None:
        try:
            find_workspace(Path.cwd())
        except UsageError:
            return CacheConfig()
    return suite.Workspace.open(workspace or Path.cwd()).config.cache


def _size(text: str, option: str) -> int:
    from qcase.config import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(str(error), where=option, hint='write a number and its unit: "10 GiB"') from None


def _store_root(cache_dir: str) -> Path:
    from qcase import store

    return store.resolve_root(cache_dir, os.environ) if cache_dir else store.default_root(os.environ)


def _store(workspace: Workspace, root: Path, *, readonly: bool = False) -> Store:
    from qcase import store

    cache = workspace.config.cache
    if readonly and not (root / f"v{store.FORMAT}").is_dir():
        what = f"there is no store of the format v{store.FORMAT} here, and nothing may be written"
        raise UsageError(what, where=str(root), hint="leave out --cache-readonly")
    return store.Store(
        root,
        writes=store.policy(os.environ, cache.write, keep_images=cache.keep_images),
        readonly=readonly,
        notes=workspace.root / "target" / "qcase" / "memory",
    )


@contextmanager
def _reported() -> Iterator[None]:
    """Print an error once, in one form, and leave with its exit code."""
    interrupted = False
    try:
        yield
    except typer.Exit as leaving:
        interrupted = leaving.exit_code == INTERRUPTED
        raise
    except QcaseError as error:
        if _debug:
            raise
        _print_error(error)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _stop_writing()
        raise typer.Exit(INTERNAL) from None
    except OSError as error:
        if _debug:
            raise
        _stop_writing()
        place = f"{error.filename}: " if error.filename else ""
        _print_error(QcaseError(f"{place}{error.strerror or error}"))
        raise typer.Exit(INTERNAL) from None
    finally:
        process.dismiss_guardian(sweep=interrupted)


_SEVERITIES = {"error": "31;1", "bad": "31;1", "warning": "33;1", "good": "32;1"}


def _coloured(text: str, code: str) -> str:
    """Text in a colour where standard output is a terminal that wants colours."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def _columns() -> int | None:
    """The columns of the terminal; None where there is none: then no line is broken."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _narrow() -> bool:
    columns = _columns()
    return columns is not None and columns < 80


def _wrapped(line: str, indent: str) -> str:
    """A line, broken between words where the terminal is too narrow for it; what follows begins with `indent`."""
    import textwrap

    columns = _columns()
    if columns is None or len(line) <= columns:
        return line
    return textwrap.fill(
        line, max(columns, 40), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


def _count(number: object, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _stop_writing() -> None:
    """Whoever read our output has gone, or its disk is full. Python would complain once more when it flushes at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(error: QcaseError) -> None:
    from qcase.report.terminal import print_error

    print_error(error)
