"""Plans of overlays: the inputs and the key of each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qcase import canonical
from qcase.config.case_file import CaseConfig
from qcase.errors import BuildError, InfraError, QcaseError, StoppedError, UsageError
from qcase.host.trees import Tree
from qcase.inputs import ingredients
from qcase.inputs.ingredients import Place
from qcase.model import Pipeline
from qcase.pipelines import sources
from qcase.pipelines.pipeline import SCRIPT, BuildContext, PipelineSpec
from qcase.pipelines.registry import PIPELINES
from qcase.prepare.base_guest import InputsMovedError
from qcase.prepare.prepared import BrokenBuild
from qcase.prepare.services import RunServices
from qcase.prepare.staging import StagingInputs
from qcase.store import keys, listings
from qcase.suite import profiles
from qcase.suite.cases import Case, Subcase, Workspace
from qcase.suite.scan import PROJECT_FILE
from qcase.toolchains import recipes


def overlay_plans(
    case: Case, run: RunServices, *, everything: bool = False, broken: list[BrokenBuild] | None = None
) -> list[OverlayPlan]:
    """Return the build jobs of a case's overlays, in the order of injection.

    A group with `build = "named"` leaves out subcases that no test command can use, unless `everything` is set. `broken`
    collects the subcases whose key cannot be computed; without it the error is raised.
    """
    optional: set[str] = set()
    if case.pipeline is Pipeline.GROUPED and not everything and case.config.build == "named":
        apart = {place.subcase for place in ingredients.source_places(case)}  # the others are of one CMake project
        case = replace(case, subcases=tuple(one for one in case.subcases if one.name in apart))
        named = set(_named_subcases(case))
        case = replace(case, subcases=tuple(one for one in case.subcases if one.name in named or _may_matter(one, case)))
        optional = {one.name for one in case.subcases} - named
    asked = case.config.packages
    kinds = [subcase.kind for subcase in case.subcases] if case.pipeline is Pipeline.GROUPED else [case.pipeline]
    needed = dict.fromkeys(name for kind in kinds if kind in PIPELINES for name in (*PIPELINES[kind].packages, *asked))
    plans = [_packages_plan(case, tuple(needed) or asked, run)] if needed or asked else []
    if case.pipeline is Pipeline.PLAIN:
        return plans
    if case.pipeline is not Pipeline.GROUPED:
        return [*plans, *(pipeline_plan(case.stored_as, place, case.config, run) for place in ingredients.source_places(case))]
    subcases = [replace(plan, optional=plan.subcase in optional) for plan in subcase_plans(case, run, broken)]
    if broken:
        broken[:] = [replace(one, optional=one.name in optional) for one in broken]
    return [*plans, _script_plan(case, run), *subcases]


def subcase_plans(case: Case, run: RunServices, broken: list[BrokenBuild] | None = None) -> list[OverlayPlan]:
    """Return the build jobs of a group's subcases. A CMake project in the case's own folder replaces the subcases in C."""
    plans = []
    for place in ingredients.source_places(case):
        name = f"{case.stored_whole}: {PROJECT_FILE}" if place.project else f"{case.stored_whole}/{place.subcase}"
        try:
            plan = pipeline_plan(name, place, case.config, run)
        except QcaseError as error:
            if broken is None or isinstance(error, StoppedError):
                raise
            broken.append(BrokenBuild(name, error, place.subcase))
        else:
            plans.append(replace(plan, subcase=place.subcase, is_part=True))
    return plans


def alone(case: Case, workspace: Workspace) -> Case | None:
    """Return a part of a group, reduced to its one subcase, if the CMake project of the group can build it alone.

    The project is told by a variable which subcase is wanted. None if the subcase has a build of its own.
    Raises `UsageError` if the project does not read the variable: the build would have all subcases in it.
    """
    (subcase,) = (one for one in case.subcases if one.name == case.only)
    if subcase.kind is not Pipeline.C or not (case.path / PROJECT_FILE).is_file():
        return None
    variable = workspace.config.script_env.grouped_c_subcases
    if not profiles.reads_variable(case, variable):
        raise UsageError(
            f"one subcase cannot be built alone: {PROJECT_FILE} of the group does not read {variable}",
            where=case.display_name,
            hint=f"let it add only the folders in {variable} where that is defined, or run the whole group",
        )
    config = replace(case.config, cmake=(*case.config.cmake, f"-D{variable}={subcase.name}"), build="all")
    return replace(case.entire(), subcases=(subcase,), config=config)


def has_overlays(case: Case) -> bool:
    """Tell whether the case adds overlays to the base image."""
    return case.pipeline not in (Pipeline.PLAIN, Pipeline.KTEST) or bool(case.config.packages)


def _named_subcases(case: Case) -> Iterator[str]:
    """Yield the names of subcases that may install a program of a test command, and of all that build without a container and
    without packages.
    """
    from qcase.pipelines import group_commands

    named = group_commands.names(case.config.test_commands)
    for subcase in case.subcases:
        spec = PIPELINES.get(subcase.kind)
        cheap = spec is not None and spec.image is None and not spec.packages
        if named is None or cheap or group_commands.may_install(subcase.path, named):
            yield subcase.name


def _may_matter(subcase: Subcase, case: Case) -> bool:
    from qcase.pipelines import group_installs

    return bool(case.config.cmake) or not group_installs.cannot_matter(
        case.config.test_commands, subcase.name, subcase.kind, case.path
    )


@dataclass(frozen=True)
class OverlayPlan:
    """The build job of one overlay: its key and its build function. `root`: the staging root that enters the key."""

    name: str
    key: keys.Key
    build: Callable[[Tree, BuildContext], None]
    packages: tuple[str, ...] = ()
    subcase: str = ""
    is_part: bool = False  # the overlay of a group's subcase
    optional: bool = False  # no test command names its programs: the case runs even if this build fails
    may_ask: bool = False  # the build may request packages
    root: StagingInputs | None = None
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: Callable[[], tuple[str, ...]] = tuple
    unread: Callable[[], tuple[str, ...]] = tuple  # files above the case, see `PipelineSpec.unread`

    @property
    def asks_as(self) -> str:
        """The name of its packages in the lock file."""
        return self.name.removesuffix(": packages")


def _script_plan(case: Case, run: RunServices) -> OverlayPlan:
    """Return the build job of the overlay with a group's script."""
    from qcase.pipelines import group_script

    runner = run.workspace.config.grouped
    key = keys.overlay_key(
        pipeline=Pipeline.GROUPED,
        recipe_version=group_script.SCRIPT_RECIPE,
        arch=run.arch,
        target=run.target,
        sources=(),
        config_fields={"test_commands": case.config.test_commands},
        env=cache_env(run),
        extra={"runner_name": runner.runner_name, "script": group_script.runner_script(case.config.test_commands, runner)},
    )

    def build(overlay: Tree, context: BuildContext) -> None:
        context.services.say("writing the group's script")
        group_script.write_runner_script(overlay, case.config.test_commands, runner)

    return OverlayPlan(f"{case.stored_as}: the group's script", key, build)


def _packages_plan(case: Case, asked: tuple[str, ...], run: RunServices) -> OverlayPlan:
    """Return the build job of the overlay with the files of a case's packages."""
    from qcase.guests.packages import fetch_step
    from qcase.pipelines import package_overlay

    root = StagingInputs.of(run.workspace, run.base_guest, run.toolchains)
    come = run.supply.part(case.stored_as)
    key = keys.overlay_key(
        pipeline="packages",
        recipe_version=package_overlay.OVERLAY_RECIPE,
        arch=run.arch,
        target=run.target,
        sources=(),
        toolchain_identity=run.toolchains.identity(fetch_step.IMAGE),
        env=cache_env(run),
        base_digest=root.base,
        extra={
            "packages": {"asked": list(asked), **come},
            "staging": root.part,
        },
    )

    def build(overlay: Tree, context: BuildContext) -> None:
        package_overlay.install_packages(overlay, context)
        run.base_guest.check_digest(root.base)
        _check_supply(case.stored_as, come, run)

    return OverlayPlan(f"{case.stored_as}: packages", key, build, asked, may_ask=True, root=root)


def _check_supply(name: str, come: canonical.JSON, run: RunServices) -> None:
    """Check that the package supply still matches the key. Raises `InputsMovedError` if not: a repository may be a folder
    whose contents change during the build.
    """
    if run.supply.part(name) != come:
        raise InputsMovedError("a repository of packages")


def _packages_part(
    spec: PipelineSpec, name: str, source: Path, asked: tuple[str, ...], run: RunServices
) -> dict[str, dict[str, canonical.JSON]]:
    """Return the key part for the packages of a build: the configured ones, and the source of those that a script may request.
    Empty for a build without packages.
    """
    scripted = spec.prebuild is not None and (source / spec.prebuild / SCRIPT).is_file()
    if not spec.reads_staging or not (asked or scripted):
        return {}
    from qcase.guests import alpine
    from qcase.guests.packages import fetch_step
    from qcase.pipelines import prebuild

    part: dict[str, canonical.JSON] = {
        "asked": list(asked),
        "recipe": hashlib.sha256(prebuild.recipe().encode()).hexdigest(),
        "image": run.toolchains.identity(fetch_step.IMAGE),
        "apk": alpine.alpine_sha256(recipes.GUEST_ARCH),  # the guest image from which the script's apk is taken
        "from": run.supply.part(name),
    }
    return {"packages": part}


def pipeline_plan(name: str, place: Place, config: CaseConfig, run: RunServices) -> OverlayPlan:
    """Return the build job of the overlay for one source folder."""
    spec = _project() if place.project else PIPELINES[place.pipeline]
    asked = config.packages

    def find() -> tuple[sources.Source, ...]:
        return place.sources(run.workspace, run.ignored)

    found = find()
    root = StagingInputs.of(run.workspace, run.base_guest, run.toolchains) if spec.reads_staging else None
    settings = dict(spec.settings(run.arch, run.workspace.config))
    if (plugin := PIPELINES.plugin(place.pipeline)) is not None:
        settings["plugin"] = plugin
    if root is not None:
        settings["staging"] = root.part
    if place.pipeline is Pipeline.RUST and config.cargo != "build":
        settings["cargo"] = config.cargo
    if inner := place.place(run.workspace):
        settings["place"] = inner
    part = _packages_part(spec, name, place.path, asked, run)
    options = {option: words for option in spec.options if (words := getattr(config, option, ()))}
    key = keys.overlay_key(
        pipeline=place.pipeline,
        recipe_version=spec.recipe,
        arch=run.arch,
        target=run.target,
        sources=[one.entry for one in found],
        toolchain_identity=None if spec.image is None else run.toolchains.identity(spec.image),
        config_fields={option: list(words) for option, words in options.items()},
        env=cache_env(run),
        base_digest=None if root is None else root.base,
        extra=settings | part,
    )

    def left_out() -> tuple[str, ...]:
        return tuple(sources.left_out(place.path, place.folder, run.ignored))

    def unread() -> tuple[str, ...]:
        return tuple(spec.unread(place.path, run.workspace.root))

    def build(overlay: Tree, context: BuildContext) -> None:
        origin = os.path.relpath(os.path.realpath(place.path), os.path.realpath(run.workspace.root))
        try:
            spec.build(_frozen(found, find, context), overlay, replace(context, cargo=config.cargo, place=inner, origin=origin))
        except BuildError as error:
            error.hint = error.hint or _left_out_hint(left_out()) or _unread_hint(unread())
            raise
        if root is not None:
            run.base_guest.check_digest(root.base)
        if "packages" in part:
            _check_supply(name, part["packages"]["from"], run)

    packages = asked if spec.reads_staging else ()
    return OverlayPlan(
        name, key, build, packages, may_ask=bool(part), root=root, options=options, left_out=left_out, unread=unread
    )


def _project() -> PipelineSpec:
    from qcase.pipelines import c  # of no use in other runs, and 25 ms

    return c.PROJECT


def _left_out_hint(left_out: Sequence[str]) -> str:
    """Return a hint for a failed build that names files excluded from the sources; empty without such files."""
    if not left_out:
        return ""
    more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    return f"what git ignores and caches are no sources, here {', '.join(left_out[:3])}{more}; `git add -f` makes one a source"


def _unread_hint(unread: Sequence[str]) -> str:
    """Return a hint for a failed build that names files above the case that it did not read; empty without such files."""
    if not unread:
        return ""
    return f"{' and '.join(unread[:2])}, above the case, {'are' if unread[1:] else 'is'} not read; a copy in the case's folder is"


def _frozen(
    found: tuple[sources.Source, ...], find_again: Callable[[], tuple[sources.Source, ...]], context: BuildContext
) -> Tree:
    """Copy a case's sources for a build, and check that the copy matches the sources of the key.

    Minutes can pass between key and copy, while this build waits for another builder or for a toolchain image. If a user edits
    a file in that time, the new contents must not be stored under the old key. Raises `InputsMovedError` then, `InfraError`
    if the copy fails.
    """
    copy = context.scratch / "sources"
    try:
        sources.copy(found, copy)
    except OSError as error:
        if find_again() == found:
            raise InfraError(f"cannot copy the sources: {error.strerror}", where=context.case) from error
        raise InputsMovedError("its sources") from None
    if listings.tree_listing(copy) != tuple(one.entry for one in found):
        raise InputsMovedError("its sources")
    return Tree(copy, what="the copy of the sources")


def cache_env(run: RunServices) -> dict[str, str | None]:
    return {name: run.environ.get(name) for name in run.workspace.config.cache.env}
