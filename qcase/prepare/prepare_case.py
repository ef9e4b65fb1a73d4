"""Preparation of a case: find the disk image that QEMU boots in the store, or build it.

    plain      the base image itself
    others     overlay key ─► overlay (built on a miss) ─┐
               … one for each subcase of a group …       ├─► image key ─► image (injected on a miss)
               the group's script                       ─┘

A run folder holds the temporary files of one run. Nothing in it outlives the run:

    <workspace>/target/<target>/qemu-cases/<display name>/runs/<pid>-<n>/    see `qcase.prepare.run_folders`
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from qcase.config import disk_kinds, qemu_options
from qcase.errors import BuildError, ConfigError, InfraError, Problem, QcaseError, StoppedError, UsageError
from qcase.guests.guest import Guest
from qcase.host.trees import Tree
from qcase.model import Cache
from qcase.prepare.base_guest import InputsMovedError
from qcase.prepare.build import CaseBuilder
from qcase.prepare.image import Overlay
from qcase.prepare.once import T
from qcase.prepare.overlays import alone, has_overlays, overlay_plans, subcase_plans
from qcase.prepare.prepared import BrokenBuild, PreparedCase
from qcase.prepare.run_folders import CaseLayout, case_asset_layout
from qcase.prepare.session import Session
from qcase.suite.cases import Case
from qcase.suite.scan import PROJECT_FILE

ATTEMPTS = 5  # attempts to prepare a case whose inputs change during the build


@contextmanager
def prepare_case_assets(case: Case, layout: CaseLayout, session: Session, build_log: Path | Tree) -> Iterator[PreparedCase]:
    """Prepare a case for boot: guest, kernel, firmware, disks and image. Builds the image if the store does not have it.

    Raises `BuildError` if the sources do not build, `InfraError` for a fault of the infrastructure. The run folder is created
    for the first build and removed at the end of the `with`.
    """
    began = time.monotonic()
    session = session.for_case(case)
    if case.config.ktest:
        yield _alone(case, session, began)
        return
    session.base_guest.check()
    guest = booted_guest(case, session)
    others = session.disks(case)
    before = session.kernels.waited(case)
    kernel = session.kernels.kernel(case)
    began += session.kernels.waited(case) - before
    uefi = session.kernels.uefi(case, kernel)
    with ExitStack() as stack:
        if not has_overlays(case):
            seconds = time.monotonic() - began
            plain = PreparedCase(guest.rootfs, guest, kernel, case.pipeline, Cache.NONE, seconds, keep_open=session.keep_open)
            yield replace(plain, uefi=uefi, disks=others)
            return
        prepared = _prepared_from_settled_inputs(case, layout, session, build_log, stack)
        uefi = session.kernels.uefi(case, prepared.kernel)  # checked again, because a build may have taken minutes
        yield replace(prepared, guest=guest, seconds=time.monotonic() - began, uefi=uefi, disks=others)


def _alone(case: Case, session: Session, began: float) -> PreparedCase:
    """Prepare a kernel that is tested alone: no guest is fetched or made for it."""
    before = session.kernels.waited(case)
    kernel = session.kernels.kernel(case)
    began += session.kernels.waited(case) - before
    uefi, disks = session.kernels.uefi(case, kernel), session.disks(case)
    seconds = time.monotonic() - began
    return PreparedCase(
        None, None, kernel, case.pipeline, Cache.NONE, seconds, keep_open=session.keep_open, uefi=uefi, disks=disks
    )


def booted_guest(case: Case, session: Session) -> Guest:
    """Return the guest of a case with the initramfs for its disks."""
    guest = session.guest
    return guest if guest.source is None else session.base_guest.for_disks(disks_of(case, session))


def disks_of(case: Case, session: Session) -> disk_kinds.Disks:
    """Return the disks of a case that boots a built-in guest. Raises `ConfigError` if the guest could not find its root."""
    try:
        return disk_kinds.of(qemu_options.split(case.config.args), case.arch.machine)
    except qemu_options.ArgumentError as error:
        file = session.workspace.relative(case.config_path)
        raise ConfigError([Problem(str(error), file, key="args", hint=error.hint)]) from None


def _prepared_from_settled_inputs(
    case: Case, layout: CaseLayout, session: Session, build_log: Path | Tree, stack: ExitStack
) -> PreparedCase:
    return _with_settled_inputs(case, lambda: _prepare(CaseBuilder(case, layout, session, build_log, stack), case, session))


def _with_settled_inputs(case: Case, attempt: Callable[[], T]) -> T:
    """Run `attempt`, and again with new keys after `InputsMovedError`. Raises `InfraError` after `ATTEMPTS` attempts."""
    for _ in range(ATTEMPTS):
        try:
            return attempt()
        except InputsMovedError as error:
            moved = str(error)
    raise InfraError(
        f"{moved} changed {ATTEMPTS} times while it was built", where=case.display_name, hint="wait until nothing writes there"
    )


def _prepare(builder: CaseBuilder, case: Case, session: Session) -> PreparedCase:
    if case.only:
        return _prepare_part(builder, case, session)
    broken: list[BrokenBuild] = []
    plans = overlay_plans(case, session, broken=broken)
    overlays: list[Overlay] = []
    image = None if broken else builder.stored_image(plans)
    hit = image is not None
    if image is None:
        overlays = builder.overlays(plans, broken)
        if any(not one.optional for one in broken) and not any(overlay.is_part for overlay in overlays):
            raise _nothing_built(broken)
        image = builder.image(overlays)
        hit = image.hit and not broken and all(overlay.entry.hit for overlay in overlays)
    session.base_guest.check()
    unbuilt = tuple(one for one in broken if one.optional)
    return PreparedCase(
        image.image,
        session.guest,
        session.kernels.kernel(case),
        case.pipeline,
        Cache.HIT if hit else Cache.MISS,
        keep_open=(*image.pass_fds, *session.keep_open),
        broken=tuple(one for one in broken if not one.optional),
        unbuilt=unbuilt,
        untrusted=builder.untrusted(overlays, unbuilt) if unbuilt else (),
    )


def _nothing_built(broken: Sequence[BrokenBuild]) -> QcaseError:
    """Return the error for a group without a single built subcase: the gravest of the errors, with the names of the subcases."""
    worst = max(broken, key=lambda one: one.error.exit_code).error
    names = ", ".join(one.subcase for one in broken)
    what = f"nothing of it was built, so it was not booted: {worst.what} ({names})"
    if isinstance(worst, BuildError):
        log = "\n".join(f"{one.subcase}: {one.error.what}\n{getattr(one.error, 'log', '')}".rstrip() for one in broken)
        return BuildError(what, where=worst.where, hint=worst.hint, log=log)
    return type(worst)(what, where=worst.where, hint=worst.hint) if type(worst) in (InfraError, UsageError) else worst


def _prepare_part(builder: CaseBuilder, case: Case, session: Session) -> PreparedCase:
    """Prepare the image of the whole group with a script that runs only the commands of one subcase.

    The commands are known after the build of all subcases. Another subcase that does not build is a warning, as long as each
    chosen command is one program with its arguments: only a shell construct could run other programs, too.
    """
    from qcase.pipelines import group_commands

    if (reduced := alone(case, session.workspace)) is not None:
        return _prepare_alone(builder, reduced, session)
    programs: dict[str, list[str]] = {}
    broken: list[BrokenBuild] = []
    plans = subcase_plans(case, session, broken)
    for one in broken:
        if one.name == case.only:
            raise one.error
        builder.say_broken(one.subcase, one.error)
    for plan in plans:
        try:
            programs[plan.subcase] = _programs(builder.overlay(plan).entry.content)
        except QcaseError as error:
            if plan.subcase == case.only or isinstance(error, StoppedError):
                raise
            builder.say_broken(plan.subcase or PROJECT_FILE, error)
    commands = case.config.test_commands
    if not case.config.preserve_commands:
        commands = group_commands.commands_of(case.only, commands, programs)
    whole = replace(case.entire(), config=replace(case.config, test_commands=commands, build="all"))
    prepared = _prepare(builder, whole, session)
    counts = not all(group_commands.is_simple(command) for command in commands)
    return replace(prepared, commands=commands, broken=prepared.broken if counts else ())


def _prepare_alone(builder: CaseBuilder, case: Case, session: Session) -> PreparedCase:
    """Prepare the image of one subcase of a group's CMake project, see `overlays.alone`. No other subcase is built."""
    from qcase.pipelines import group_commands

    (plan,) = subcase_plans(case, session)
    programs = _programs(builder.overlay(plan).entry.content)
    commands = case.config.test_commands
    if not case.config.preserve_commands:
        commands = group_commands.commands_for(case.subcases[0].name, commands, programs)
    prepared = _prepare(builder, replace(case, config=replace(case.config, test_commands=commands)), session)
    return replace(prepared, commands=commands)


def _programs(overlay: Tree) -> list[str]:
    """Return the guest paths of an overlay's programs: executable files and links, sorted."""
    return sorted(
        f"/{path}"
        for path, about in overlay.walk()
        if stat.S_ISLNK(about.st_mode) or (stat.S_ISREG(about.st_mode) and about.st_mode & stat.S_IXUSR)
    )


def record_packages(case: Case, session: Session, build_log: Path | Tree) -> None:
    """Record the packages of a case in `session.record_into`. Builds run only until their package requests are recorded.

    Raises the same errors as `prepare_case_assets`.
    """
    session = session.for_case(case)
    layout = case_asset_layout(session.workspace.root, session.target, case.display_name)
    with ExitStack() as stack:

        def attempt() -> None:
            builder = CaseBuilder(case, layout, session, build_log, stack)
            plans = [plan for plan in overlay_plans(case, session, everything=True) if plan.may_ask]
            for plan in plans:
                if session.record_into is not None:
                    session.record_into.pop((session.arch, plan.asks_as), None)  # record of an earlier, failed attempt
            for plan in plans:
                builder.record(plan)

        _with_settled_inputs(case, attempt)
