"""Builds of one case: the overlays that are missing, then the image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.errors import QcaseError, StoppedError
from qcase.guests.guest import alpine_guest
from qcase.host.trees import Tree
from qcase.model import Pipeline
from qcase.pipelines.pipeline import BuildContext
from qcase.prepare.base_guest import InputsMovedError
from qcase.prepare.case_work import CaseWork
from qcase.prepare.image import ImageBuilder, Overlay
from qcase.prepare.overlays import OverlayPlan, cache_env
from qcase.prepare.prepared import BrokenBuild
from qcase.prepare.run_folders import CaseLayout
from qcase.prepare.services import BUILDS_AT_ONCE, RunServices
from qcase.prepare.staging import StagingRoots
from qcase.store import keys
from qcase.store.content import Entry, Kind
from qcase.suite.cases import Case
from qcase.toolchains import recipes

if TYPE_CHECKING:
    from qcase.containers import reuse
    from qcase.containers.engine import Engine
    from qcase.containers.step import Step, StepResult
    from qcase.guests.packages.supply import PackageSupplier


class CaseBuilder:
    """Fetches the overlays and the image of one case from the store, or builds them."""

    def __init__(self, case: Case, layout: CaseLayout, run: RunServices, build_log: Path | Tree, stack: ExitStack) -> None:
        self._case = case
        self._run = run
        self._work = CaseWork(case, layout, run.workspace.root, run.arch, run.store, run.emit, build_log, stack)
        self._toolchain_changes = run.toolchains.changes
        self._containers: reuse.Containers | None = None
        self._images = ImageBuilder(self._work, run.base_guest, lambda: run.engine, self.toolchain)
        self._staging = StagingRoots(self._work, run.workspace, run.base_guest, lambda: run.engine, self.toolchain)

    def toolchain(self, name: str) -> str:
        """Return the id of a toolchain image. Raises `InputsMovedError` if the identity of one changed since the keys of this
        case were computed.
        """
        image = self._run.toolchains.image(name)
        if self._run.toolchains.changes != self._toolchain_changes:
            raise InputsMovedError("the toolchain image")
        return image.id

    def overlays(self, plans: Sequence[OverlayPlan], broken: list[BrokenBuild]) -> list[Overlay]:
        """Return all overlays of a case; those of a group are built in parallel. A subcase that fails is added to `broken`.

        The failure of one subcase does not stop the others, whether its sources, packages or toolchain are at fault.
        """
        from qcase.containers import reuse

        if self._case.pipeline is not Pipeline.GROUPED:
            return [self.overlay(plan) for plan in plans]
        # More threads than builds: while one thread flushes its result to disk, another one's compiler runs.
        pool = ThreadPoolExecutor(2 * BUILDS_AT_ONCE, thread_name_prefix=f"build {self._case.display_name}")
        run = self._run
        with reuse.Containers(lambda: run.engine, self._work.scratch, run.emit, self._case.display_name) as self._containers:
            try:
                building = [pool.submit(self.overlay, plan) for plan in plans]
                wait(building)
            except BaseException:  # an interrupt must not wait for compilers
                pool.shutdown(wait=False, cancel_futures=True)
                run.stop()
                raise
            finally:
                pool.shutdown()
        overlays = []
        for plan, done in zip(plans, building, strict=True):
            try:
                overlays.append(done.result())
            except QcaseError as error:
                if not plan.is_part or isinstance(error, StoppedError):
                    raise
                broken.append(BrokenBuild(plan.name, error, plan.subcase, optional=plan.optional))
        return overlays

    def overlay(self, plan: OverlayPlan) -> Overlay:
        """Return one overlay, from the store or built now."""

        def build(path: Tree) -> None:
            with self._run.building:
                log = self._log_of(plan)
                try:
                    plan.build(path, self._context(plan, log))
                finally:
                    self._work.gather(log, plan.name)

        return Overlay(plan.name, self._work.fetch(Kind.OVERLAY, plan.key, build, plan.name), plan.is_part)

    def stored_image(self, plans: Sequence[OverlayPlan]) -> Entry | None:
        """Return the stored image of these overlays, None unless the image and all overlays are stored."""
        return self._images.stored([plan.key for plan in plans])

    def image(self, overlays: Sequence[Overlay]) -> Entry:
        """Return the base image with the overlays injected in their order, from the store or built now."""
        return self._images.built(overlays)

    def record(self, plan: OverlayPlan) -> None:
        """Run a build until its package requests are recorded. The build stops there."""
        from qcase.pipelines import prebuild

        overlay = Tree(self._work.emptied("recorded"), what="the overlay")
        with contextlib.suppress(prebuild.RecordedError):
            plan.build(overlay, self._context(plan, self._work.log))

    def untrusted(self, overlays: Sequence[Overlay], unbuilt: Sequence[BrokenBuild]) -> tuple[str, ...]:
        """Return the test commands that could have run a program of a subcase that did not build."""
        from qcase.pipelines import group_installs

        case = self._case
        kinds = {subcase.name: subcase.kind for subcase in case.subcases}
        would = [group_installs.programs(kinds[one.name], case.path / one.name) for one in unbuilt]

        def built(path: str) -> bool:
            return any(overlay.entry.content.leads_to(path) for overlay in overlays)

        return tuple(group_installs.doubtful(case.config.test_commands, built, would, group_installs.scripts(kinds, case.path)))

    def say_broken(self, subcase: str, error: QcaseError) -> None:
        self._work.warn(f"{subcase}, another subcase of the group, did not build: {error.what}")

    def _log_of(self, plan: OverlayPlan) -> Path | Tree:
        """Return the log file of a build. Subcases build in parallel, so each writes to a log of its own first."""
        if self._case.pipeline is not Pipeline.GROUPED:
            return self._work.log
        return self._work.emptied(f"log-{plan.key.short}") / "build.log"

    def _context(self, plan: OverlayPlan, log: Path | Tree) -> BuildContext:
        from qcase.crates import pool

        run = self._run
        return BuildContext(
            case=plan.asks_as,
            arch=run.arch,
            scratch=self._work.emptied(f"overlay-{plan.key.short}"),
            log=log,
            config=run.workspace.config,
            base=run.base_guest.current.rootfs,
            environment={name: value for name, value in cache_env(run).items() if value is not None},
            environ=run.environ,
            offline=run.offline,
            services=_Services(self._work, run, self._staging, self.toolchain, plan, self._containers),
            pool=pool.Pool(run.store.root / "downloads", run.store.readonly),
            packages=plan.packages,
            options=plan.options,
        )


class _Services:
    """The services of a run for one build: see `qcase.pipelines.pipeline.BuildServices`."""

    def __init__(
        self,
        work: CaseWork,
        run: RunServices,
        roots: StagingRoots,
        toolchain: Callable[[str], str],
        plan: OverlayPlan,
        containers: reuse.Containers | None,
    ) -> None:
        self._work = work
        self._run = run
        self._roots = roots
        self._toolchain = toolchain
        self._plan = plan
        self._containers = containers

    def engine(self) -> Engine:
        return self._run.engine

    def run(self, step: Step) -> StepResult:
        return self.engine().run(step) if self._containers is None else self._containers.run(step)

    def image(self, name: str) -> str:
        return self._toolchain(name)

    def identity(self, name: str) -> str:
        return self._run.toolchains.identity(name)

    def staging(self) -> Tree:
        assert self._plan.root is not None, f"the key of {self._plan.name} has no staging root"
        return self._roots.root(self._plan.root)

    def supply(self) -> PackageSupplier:
        return self._run.supply

    def download(self, key: keys.Key, name: str, fetch: Callable[[Tree], None]) -> Tree:
        return self._work.fetch(Kind.DOWNLOAD, key, fetch, name).content

    def apk(self) -> Tree:
        from qcase.pipelines import apk_requests, prebuild

        run = self._run
        guest = alpine_guest(recipes.GUEST_ARCH, run.store.root, offline=run.offline, emit=run.emit)
        made_of = {"kind": "apk", "recipe": prebuild.recipe(), "guest": guest.digests["rootfs.img"]}

        def build(path: Tree) -> None:
            apk_requests.unpack_apk(guest.rootfs, path)

        return self._work.fetch(Kind.OVERLAY, keys.key(made_of), build, "apk").content

    def checks(self) -> Tree | None:
        from qcase.pipelines import c, compiler_checks

        tools = c.tools_of(self._run.arch, self._run.workspace.config)
        key = compiler_checks.key(tools, self.identity(c.IMAGE))

        def build(path: Tree) -> None:
            self.say("checking the compilers")
            scratch = Tree(self._work.emptied(f"checks-{key.short}"))
            compiler_checks.make(tools, self._toolchain(c.IMAGE), self.engine(), scratch, path)

        return self._work.read_by_all(key, build, "checks of the compilers")

    def say(self, what: str) -> None:
        self._work.say(what)

    def warn(self, message: str) -> None:
        self._work.warn(message)
