"""A session: what the cases of one run share."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcase import events
from qcase.arch import Arch
from qcase.errors import QcaseError
from qcase.events import Emit
from qcase.guests.guest import Guest, Tools
from qcase.guests.kernel_files import Kernel
from qcase.host import process
from qcase.inputs import trust
from qcase.prepare.base_guest import BaseGuest
from qcase.prepare.case_kernel import INJECTOR, CaseKernels
from qcase.prepare.once import Once, shared_property
from qcase.prepare.services import BUILDS_AT_ONCE
from qcase.prepare.store_upkeep import StoreUpkeep
from qcase.prepare.toolchain_choice import Pins, ToolchainChoice
from qcase.store.store import Store
from qcase.suite import root_images
from qcase.suite.cases import Case, Workspace
from qcase.suite.ignored import Ignored
from qcase.suite.known_failures import KnownFailures
from qcase.vm.accelerator import AcceleratorChoice
from qcase.vm.arguments import Accel, MachineSpec
from qcase.vm.templates import Templates

if TYPE_CHECKING:
    from qcase.containers.engine import Engine
    from qcase.guests.packages.lock import Package
    from qcase.guests.packages.supply import PackageSupplier


@dataclass
class Session:
    """Shared state of the cases of one run, in parts: `base_guest`, `kernels`, `toolchains`, `accelerators`, `templates`, and
    here the engine and the packages. Each finds what it gives on first use, see `Once`.

    The start of the session removes leftovers of dead runs. Its end runs the garbage collector if the store has grown.
    `read_only_inspection`: the session fetches, builds and removes nothing. `offline`: the session fetches nothing. `locked`: the
    session refuses a toolchain image that differs from its pin. `record_into`: see `PackageSupplier`.

    The session is thread-safe. It can be pickled for a process that runs cases. The copy starts with an empty cache, and its
    events reach no listener.
    """

    workspace: Workspace
    arch: Arch
    target: str
    store: Store
    emit: Emit
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    read_only_inspection: bool = False
    kernel_file: Path | None = None  # the file of --kernel; takes precedence over the configuration
    offline: bool = False
    locked: bool = False
    record_into: dict[tuple[Arch, str], tuple[Package, ...]] | None = None
    known: KnownFailures = field(default_factory=KnownFailures)
    strict_skips: bool = False  # a case that is skipped for want of something fails
    beside: Session | None = None  # session of another architecture in the same run; owns the state of the whole run

    def __post_init__(self) -> None:
        self.emit = events.one_at_a_time(self.emit)
        trust.check(self.workspace)
        self._assemble()

    def _assemble(self) -> None:
        """Make the parts. None of them looks for anything yet."""
        config, trusted = self.workspace.config, self.workspace.config.run.trust != "sandboxed"

        def engine() -> Engine:
            return self.engine

        def base_image() -> str:
            from qcase.toolchains import base

            return base.base(self.engine, self.store.root, self.emit, self.pins.lock)

        self._stack = ExitStack()
        self._has_containers: Callable[[], None] = events.ignore
        self.once = Once()
        self.pins = Pins(self.workspace.root, trusted, self.locked, self.emit, self.once)
        if self.beside is not None:
            self.pins = self.beside.pins
        self.toolchains = ToolchainChoice(
            config, self.store.root, self.pins, self.once, engine, self.emit, self.read_only_inspection, self.offline
        )
        tools = Tools(
            engine=engine,
            base=base_image,
            toolchain=lambda: self.toolchains.image(INJECTOR).id,
            environ=self.environ,
        )
        self.base_guest = BaseGuest(
            self.workspace,
            self.arch,
            self.store,
            self.emit,
            self.once,
            tools,
            hold=lambda: self.keep_open,
            has_kernel=self.kernel_file is not None,
            offline=self.read_only_inspection or self.offline,
        )
        self.kernels = CaseKernels(
            self.workspace,
            self.arch,
            self.target,
            self.environ,
            self.emit,
            self.once,
            self.base_guest,
            self.toolchains,
            engine,
            self.kernel_file,
        )
        self.accelerators = AcceleratorChoice(config.run.accel, self.emit)
        self.templates = Templates(config.run.branch)
        self._stack.callback(self.templates.close)
        self._upkeep = StoreUpkeep(self.workspace, self.store, self.emit)

    def __getstate__(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"emit": events.ignore, "beside": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._assemble()

    def __enter__(self) -> Session:
        if self.beside is not None:
            self._has_containers = self.beside._has_containers
        elif not self.read_only_inspection:
            self._upkeep.begin()
            self._has_containers = self._stack.enter_context(self.store.leases.announced_run(process.run_id()))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        # An interrupt must not wait for the garbage collector. The next run that adds an entry collects.
        if kind is None and self.beside is None:
            self._upkeep.end()

    def stop(self) -> None:
        """Stop all child processes and containers of the run. For an interrupt: the errors of the stopped cases are not reported.

        Errors of the engine are ignored: the guardian removes leftover containers.
        """
        process.stop()
        engine = self.once.known("engine")
        if engine is not None:
            with contextlib.suppress(QcaseError, OSError):  # the guardian removes leftovers
                engine.cancel()

    @shared_property
    def keep_open(self) -> tuple[int, ...]:
        """Descriptors of the lock that keeps the garbage collector away from the guests. QEMU inherits them."""
        fd = self._stack.enter_context(self.store.leases.guests_in_use())
        return () if fd is None else (fd,)

    @property
    def guest(self) -> Guest:
        return self.base_guest.current

    def for_case(self, case: Case) -> Session:
        """Return a view of this session whose guest has the case's root filesystem, or the session itself for the default.

        Raises `ConfigError` for an unknown root filesystem, and for a case that breaks the rules of `trust = "sandboxed"`.
        """
        trust.check_case(case, self.workspace)
        source = root_images.root(case, self.workspace)
        if source is None:
            return self
        view = object.__new__(type(self))
        guest = self.base_guest.with_root(source)
        view.__dict__.update(self.__dict__, base_guest=guest, kernels=replace(self.kernels, guest=guest))
        return view

    def disks(self, case: Case) -> dict[str, Path]:
        """Return the images of a case's additional disks, keyed by their file names in the case's arguments."""
        found = {}
        for name, source in root_images.others(case, self.workspace).items():
            guest = self.base_guest.with_root(self.workspace.config.guest[self.arch].rootfs if source is None else source)
            guest.check()
            found[name] = guest.current.rootfs
        return found

    def accelerator(self, case: Case, kernel: Kernel, spec: MachineSpec) -> Accel:
        """Choose the accelerator for a case's machine, `spec`. Raises `InfraError` if KVM is required and does not work."""
        return self.accelerators.choose(kernel.sha256, lambda: self.kernels.proof_of_kvm(case, kernel, spec))

    @shared_property
    def supply(self) -> PackageSupplier:
        """The package supply of the session: resolves, downloads and records packages."""
        from qcase.guests.packages import downloads, repositories
        from qcase.guests.packages.lock import read_lock
        from qcase.guests.packages.supply import PackageSupplier

        config, root = self.workspace.config, self.workspace.root
        return PackageSupplier(
            arch=self.arch,
            config=config,
            sources=repositories.Sources.of(config, root, self.environ),
            downloads=downloads.Downloads(self.store.root / "downloads", self.store.readonly),
            lock=read_lock(root),
            engine=lambda: self.engine,
            image=lambda name: self.toolchains.image(name).id,
            emit=self.emit,
            environ=self.environ,
            offline=self.offline,
            record_into=self.record_into,
        )

    @shared_property
    def ignored(self) -> Ignored:
        """The git-ignored files of the workspace."""
        return Ignored() if self.beside is None else self.beside.ignored

    @shared_property
    def building(self) -> threading.BoundedSemaphore:
        """Semaphore that limits the parallel builds of a run to `BUILDS_AT_ONCE`."""
        if self.beside is not None:
            return self.beside.building
        return threading.BoundedSemaphore(BUILDS_AT_ONCE)

    @shared_property
    def engine(self) -> Engine:
        """The container engine, connected on first use."""
        from qcase.containers.engine import Engine

        if self.beside is not None:
            return self.beside.engine
        self._has_containers()
        engine = Engine.connect(self.workspace.root)
        self._stack.callback(engine.close)
        for needed in (self.workspace.root, self.store.root):  # run folders lie in one, entries in the other
            engine.host_paths.seen(needed)
        return engine
