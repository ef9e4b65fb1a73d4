"""Options that several commands share, and what their values mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcase.arch import Arch
from qcase.arch import names as arch_names
from qcase.errors import UsageError
from qcase.kinds import Pipeline

if TYPE_CHECKING:
    from qcase.config.image_lock import Lock
    from qcase.config.workspace_file import CacheConfig
    from qcase.inputs.case_filters import Filters
    from qcase.store.store import Store
    from qcase.suite.cases import Workspace


def offer_cases(context: typer.Context, incomplete: str) -> list[str]:
    from qcase.suite import completion
    from qcase.suite.inner_selection import SIGN

    workspace = context.params.get("workspace")
    given = list(context.params.get("cases") or ())
    if given[1:] and given[-1] == SIGN:  # bash takes each colon for the end of a word
        return completion.tests(given[-2], incomplete, workspace)
    return completion.cases(incomplete, workspace, tuple(context.params.get("group") or ()))


def _offer_groups(context: typer.Context, incomplete: str) -> list[str]:
    from qcase.suite import completion

    return completion.groups(incomplete, context.params.get("workspace"))


def _offer_tags(context: typer.Context, incomplete: str) -> list[str]:
    from qcase.suite import completion

    return completion.tags(incomplete, context.params.get("workspace"))


def offer(*words: str) -> Callable[[str], list[str]]:
    def offer(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return offer


offer_arches = offer(*Arch)


def offer_pipelines(incomplete: str) -> list[str]:
    from qcase.suite import completion

    return completion.pipelines(incomplete)


ArchOption = Annotated[
    str,
    typer.Option("--arch", "-a", metavar="ARCH", autocompletion=offer_arches, help=f"{arch_names()}."),
]
TargetOption = Annotated[
    str, typer.Option("--target", "-t", metavar="TRIPLE", help="The kernel's target; default: the architecture's usual one.")
]
GroupOption = Annotated[
    str, typer.Option("--group", "-g", metavar="NAME", autocompletion=_offer_groups, help="A first-level folder of the suite.")
]
SuiteOption = Annotated[
    str, typer.Option("--suite", metavar="NAME", help="A further suite of the workspace, of [suites.NAME]; default: [suite].")
]
GroupsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        "-g",
        metavar="NAME",
        autocompletion=_offer_groups,
        help="A first-level folder of the suite, or a glob: '*'; may be repeated.",
    ),
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
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")]
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
        "--pipeline", metavar="NAME", autocompletion=offer_pipelines, help="Only cases of this pipeline; may be repeated."
    ),
]
FailedOption = Annotated[bool, typer.Option("--failed", help="Only cases that did not pass when they last ran.")]
ChangedOption = Annotated[
    str | None,
    typer.Option(
        "--changed", metavar="[REV]", help="Only cases of which a file differs from a git revision, HEAD if none is named."
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
        autocompletion=offer_arches,
        help="An architecture of the case; may be repeated. Default: those of most cases.",
    ),
]
KernelOption = Annotated[
    Path | None, typer.Option("--kernel", metavar="FILE", help="Boot this kernel, whatever the configuration says.")
]
JUnitOption = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write a report as JUnit XML.")]
ReportOption = Annotated[
    list[str] | None,
    typer.Option("--report", metavar="NAME=FILE", help="Write the report of a plug-in; may be repeated."),
]
HtmlOption = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a report as one HTML page.")]
CaseOption = Annotated[
    list[str] | None,
    typer.Option("--case", "-c", metavar="CASE", autocompletion=offer_cases, help="The same as CASE; may be repeated."),
]
NamesArgument = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="The images; default: all.")]


def image_lock_of(workspace: Path | None) -> Lock:
    """Return the lock of the toolchain images: the workspace's own if it has one, else the lock that qcase ships."""
    from qcase.toolchains import records

    opened = workspace_around(workspace)
    trusted = opened is None or opened.config.run.trust != "sandboxed"
    return records.lock_of(None if opened is None else opened.root, trusted=trusted)


def workspace_around(named: Path | None) -> Workspace | None:
    """Open the named workspace, else the workspace around the current folder; None if there is none."""
    from qcase.config import load
    from qcase.suite import cases

    if named is None:
        try:
            load.find_workspace(Path.cwd())
        except UsageError:
            return None
    return cases.Workspace.open(named or Path.cwd())


def filters_of(tag: list[str] | None, pipeline: list[str] | None, failed: bool, changed: str | None) -> Filters:
    from qcase.inputs.case_filters import Filters

    return Filters(tuple(tag or ()), tuple(pipeline or ()), failed, changed)


def scaled(workspace: Workspace, option: str) -> Workspace:
    """Return the workspace with all timeouts multiplied by the factor of the command line, else of the environment."""
    from qcase.config.fields import parse_scale

    for where, text in (("--timeout-scale", option), ("QCASE_TIMEOUT_SCALE", os.environ.get("QCASE_TIMEOUT_SCALE", ""))):
        if text:
            try:
                return workspace.scaled(parse_scale(text))
            except ValueError as error:
                raise UsageError(str(error), where=where, hint="write a number greater than 0: 2, 0.5") from None
    return workspace


def kernel_file(named: Path | None) -> Path | None:
    """Return the file that `--kernel` names. A missing file stops the run before anything is built."""
    if named is not None and not named.is_file():
        raise UsageError("there is no such file", where=f"--kernel {named}", hint="it is looked for from the current folder")
    return None if named is None else named.absolute()


def arch_named(name: str) -> Arch:
    try:
        return Arch(name)
    except ValueError:
        import difflib

        known = f"known are {', '.join(Arch)}"
        close = difflib.get_close_matches(name, list(Arch), n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? {known}" if close else known
        raise UsageError(f"unknown architecture {name!r}", where="--arch", hint=hint) from None


def arches_named(names: Sequence[str] | None) -> list[Arch]:
    return list(dict.fromkeys(arch_named(name) for name in names or ()))


def pipeline_named(name: str) -> Pipeline:
    from qcase.inputs import case_filters
    from qcase.suite.cases import pipeline_names

    if name not in (known := pipeline_names()):
        hint = case_filters.near(name, known, "pipelines")
        raise UsageError(f"unknown pipeline {name!r}", where="--pipeline", hint=hint)
    return Pipeline(name)


def looked_at(cache_dir: str) -> Store:
    """Open a store for reading. It need not exist."""
    from qcase.store import store

    return store.Store(store_root_of(cache_dir), readonly=True)


def cache_config(workspace: Path | None) -> CacheConfig:
    """Return `[cache]` of the workspace; the defaults if no workspace is found."""
    from qcase.config.load import find_workspace
    from qcase.config.workspace_file import CacheConfig
    from qcase.suite import cases

    if workspace is None:
        try:
            find_workspace(Path.cwd())
        except UsageError:
            return CacheConfig()
    return cases.Workspace.open(workspace or Path.cwd()).config.cache


def size_named(text: str, option: str) -> int:
    from qcase.config.fields import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(str(error), where=option, hint='write a number and its unit: "10 GiB"') from None


def store_root_of(cache_dir: str) -> Path:
    from qcase.store import policy

    return policy.resolve_root(cache_dir, os.environ) if cache_dir else policy.default_root(os.environ)


def open_store(workspace: Workspace, root: Path, *, readonly: bool = False) -> Store:
    from qcase.host.workspace_folders import own_folder
    from qcase.store import content, policy, store

    cache = workspace.config.cache
    if readonly and not (root / f"v{content.ENTRY_FORMAT}").is_dir():
        what = f"there is no store of the format v{content.ENTRY_FORMAT} here, and nothing may be written"
        raise UsageError(what, where=str(root), hint="leave out --cache-readonly")
    return store.Store(
        root,
        writes=policy.policy(os.environ, cache.write, keep_images=cache.keep_images),
        readonly=readonly,
        notes=own_folder(workspace.root) / "memory",
    )


# Options of `qcase run` alone.
CasesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="CASE", autocompletion=offer_cases, help="Names or globs; default: all.")
]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", "-j", metavar="N", min=1, help="Run N cases at once; default: as many as fit the machine."),
]
FailFastOption = Annotated[bool, typer.Option("--fail-fast", "-x", help="Start nothing new after a case that did not pass.")]
MaxFailOption = Annotated[
    int, typer.Option("--max-fail", metavar="N", min=0, help="Start nothing new after N cases that did not pass; 0: run all.")
]
RetriesOption = Annotated[
    int | None,
    typer.Option("--retries", metavar="N", min=0, help="Try a case up to N times more; default: [qcase] retries of each case."),
]
RepeatOption = Annotated[
    int, typer.Option("--repeat", metavar="N", min=1, help="Run every case N times, and show how often each failed.")
]
StrictKnownOption = Annotated[
    bool, typer.Option("--strict-known", help="Fail a case if a known failure passes: its entry must be removed.")
]
StrictSkipsOption = Annotated[
    bool, typer.Option("--strict-skips", help="Fail if a case was skipped because something is missing.")
]
ColdOption = Annotated[bool, typer.Option("--cold", help="Boot every case from the start, whatever [run] branch says.")]
ShardOption = Annotated[str, typer.Option("--shard", metavar="I/N", help="Only the I-th of N parts of these cases.")]
TimesOption = Annotated[
    Path | None, typer.Option("--times", metavar="FILE", help="Balance the shards by the times in these --json results.")
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the results as JSON, anew as each case ends; - is standard output."),
]
EventsOption = Annotated[
    Path | None, typer.Option("--events", metavar="FILE", help="Write what happens, as it happens, as lines of JSON.")
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Fetch nothing: guests, images, packages have to be there.")]
LockedOption = Annotated[bool, typer.Option("--locked", help="Refuse a toolchain image that differs from its pin in the lock.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show only what did not pass, and the summary.")]
VerboseOption = Annotated[
    int,
    typer.Option("--verbose", "-v", count=True, help="Say why something is built; -vv: phases, and what the guests say."),
]
