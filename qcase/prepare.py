"""From a case to the image that QEMU boots, built only if the store does not have it.

    plain      the base image itself
    others     overlay key ─► overlay (built on a miss) ─┐
               … one for each subcase of a group …       ├─► image key ─► image (injected on a miss)
               the group's script                       ─┘

A run folder holds what one run makes and nothing that lasts:

    <workspace>/target/<target>/qemu-cases/<display name>/runs/<pid>-<n>/    see `qcase.runs`
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from qcase import accel, events, fat, firmware, gc, guests, images, kernels, keys, packages, process, qemu, rootfs, runs
from qcase.config import KernelBuild, parse_size
from qcase.content import Kind, copy_tree
from qcase.errors import BuildError, InfraError, QcaseError, UsageError
from qcase.events import Emit
from qcase.ext4 import Ext4Image
from qcase.firmware import Firmware
from qcase.guests import Guest
from qcase.kernels import Kernel
from qcase.model import Arch, Cache, Phase, Pipeline
from qcase.pipelines import BUILD, OVERLAY, STAGING, Craft, Workshop, brought, c, grouped, prebuild, sources, staging
from qcase.pipelines.crafts import CRAFTS
from qcase.store import Entry, Store
from qcase.suite import Case, Subcase, Workspace, others_within

if TYPE_CHECKING:
    from qcase.containers import Engine

T = TypeVar("T")

SNAPSHOT = "-snapshot"
PROJECT_FILE = "CMakeLists.txt"  # in the folder of a grouped case: one project for all that is in C
BUILDS_AT_ONCE = max(1, min(4, os.cpu_count() or 1))  # of all cases of a run; a compiler may take gigabytes
ATTEMPTS = 5  # at preparing a case whose sources somebody edits meanwhile
INJECTOR = "c"  # the image that holds e2fsprogs, with which overlays are injected

_run_numbers = itertools.count()


def resolve_target_dir(workspace: Path, target: str) -> Path:
    """Where a workspace keeps what is made for a target."""
    return workspace / "target" / target


def next_case_run_id() -> str:
    """`<pid>-<n>`, another one each time."""
    return f"{os.getpid()}-{next(_run_numbers)}"


@dataclass(frozen=True)
class CaseLayout:
    """The folders of one run of one case."""

    work_dir: Path
    run_dir: Path

    @property
    def runs_dir(self) -> Path:
        return self.run_dir.parent


def case_asset_layout(workspace: Path, target: str, display_name: str) -> CaseLayout:
    """The layout of a new run: another run folder each time. Nothing is made yet."""
    work_dir = resolve_target_dir(workspace, target) / "qemu-cases" / display_name
    return CaseLayout(work_dir, work_dir / "runs" / next_case_run_id())


@dataclass(frozen=True)
class BrokenBuild:
    """A subcase whose sources do not build. The rest of its group runs."""

    subcase: str
    error: BuildError


@dataclass(frozen=True)
class Uefi:
    """How firmware starts a kernel. `partition`: an image to boot from; None where the firmware gets the kernel from QEMU."""

    firmware: Firmware
    partition: Path | None


@dataclass(frozen=True)
class PreparedCase:
    """What QEMU needs of a case. Valid, and the image held in the store, as long as the `with` lasts that gave it.

    `keep_open`: descriptors that hold the image's shared lock; QEMU inherits them. `seconds`: the time it took. `commands`:
    those of a grouped case that are in the image, where they are not all.
    """

    image: Path
    guest: Guest
    kernel: Kernel
    pipeline: Pipeline
    cache: Cache
    seconds: float = 0.0
    keep_open: tuple[int, ...] = ()
    broken: tuple[BrokenBuild, ...] = ()
    commands: tuple[str, ...] | None = None
    extra_args: tuple[str, ...] = (SNAPSHOT,)
    uefi: Uefi | None = None


@dataclass
class _Cell:
    """A value that is made at most once. `error`: what making it failed by."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    done: bool = False
    value: Any = None
    error: Exception | None = None


class shared(Generic[T]):  # noqa: N801 - it is used as `property` is
    """A property of a session that is made once, see `Session.once`."""

    def __init__(self, make: Callable[[Session], T]) -> None:
        self._make = make
        self._name = make.__name__
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, session: None, owner: type) -> shared[T]: ...
    @overload
    def __get__(self, session: Session, owner: type) -> T: ...
    def __get__(self, session: Session | None, owner: type) -> shared[T] | T:
        return self if session is None else session.once(self._name, lambda: self._make(session))


@dataclass
class Session:
    """What the cases of one run share. The guest, the engine and the toolchains are looked for when they are first needed.

    At its start it clears away what dead runs left, at its end, if something was added to the store, what has become too much
    there. `looking`: nothing is fetched, built or cleared away. `offline`: nothing is fetched. `locked`: a toolchain image that
    is not as pinned is refused. `recorded`: see `packages.Supply`.

    Any number of threads may use it. It can be pickled, for a process that runs cases: what it found is found anew there, and
    nobody hears that process's events.
    """

    workspace: Workspace
    arch: Arch
    target: str
    store: Store
    emit: Emit
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    looking: bool = False
    kernel_file: Path | None = None  # what --kernel names; it wins over the configuration
    offline: bool = False
    locked: bool = False
    recorded: dict[tuple[Arch, str], tuple[packages.Package, ...]] | None = None
    _stack: ExitStack = field(default_factory=ExitStack)
    _cells: dict[str, _Cell] = field(default_factory=dict)
    _has_containers: Callable[[], None] = events.unheard
    _fetched: list[int] | None = None
    moves: int = 0  # toolchains that turned out to be others than those whose identity was known
    _guest_number: int = 0
    _proofs: dict[str, accel.Proof] = field(default_factory=dict)
    _accel_lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.emit = events.one_at_a_time(self.emit)

    def __getstate__(self) -> dict[str, Any]:
        unshared = {"_cells": {}, "emit": events.unheard, "_stack": None, "_accel_lock": None, "_has_containers": events.unheard}
        return {**self.__dict__, **unshared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _stack=ExitStack(), _proofs={}, _accel_lock=threading.Lock())

    def __enter__(self) -> Session:
        if not self.looking:
            self._clear_away()
            self._fetched = self._looks()
            self._has_containers = self._stack.enter_context(self.store.announced_run(process.run_id()))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        # Not after an interrupt, which must not wait for it; the next run that adds something does it.
        if kind is None and (self.store.added or self._has_fetched()):
            self._collect()

    def _has_fetched(self) -> bool:
        """Whether guests or packages came to the store meanwhile, by this run or another one."""
        return not self.store.readonly and self._fetched is not None and self._fetched != self._looks()

    def _looks(self) -> list[int]:
        """When something last came to the folders of what is fetched, or went; nothing in them is looked at."""
        looks = []
        for folder in (self.store.root / "guests", self.store.root / "downloads" / "packages"):
            with contextlib.suppress(OSError):
                looks.append(folder.stat().st_mtime_ns)
        return looks

    def _clear_away(self) -> None:
        """What is of no use to anybody: it must not be what a run fails by."""
        runs.sweep_folders(self.workspace.root)
        if self.store.readonly:
            return
        with contextlib.suppress(OSError, InfraError):
            self.store.sweep_staged()
        with contextlib.suppress(OSError, InfraError):
            gc.sweep_unfinished(self.store)
        with contextlib.suppress(OSError, InfraError):
            runs.sweep_runs(self.store)

    def _collect(self) -> None:
        cache = self.workspace.config.cache
        limits = gc.Limits(max_size=parse_size(cache.max_size), min_free=parse_size(cache.min_free))
        try:
            collected = gc.collect(self.store, limits)
        except (OSError, InfraError) as error:
            self.emit(events.Warned(f"the store could not be tidied up: {error}"))
            return
        if collected.gone:
            count, freed = len(collected.gone), collected.freed / 2**20
            self.emit(events.Progress(f"{count} of the store's entries are gone, {freed:.0f} MiB: {collected.gone[0].why}"))

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives. The first thread that asks for `name` makes it, the others wait.

        A fault is remembered like a value: what failed for one case would fail for all, after a download of 70 MB each. There
        is a lock for each name, so that a case which needs no engine does not wait until a toolchain is built.
        """
        cell = self._cells.setdefault(name, _Cell())
        with cell.lock:
            if not cell.done:
                try:
                    cell.value = make()
                except (QcaseError, OSError) as error:
                    cell.error = error
                cell.done = True
        if cell.error is not None:
            raise cell.error.with_traceback(None)
        value: T = cell.value
        return value

    @property
    def memory(self) -> Path:
        """Where digests of base images are remembered."""
        if self.store.readonly:
            return self.workspace.root / "target" / "qcase" / "memory"
        return self.store.root / "memory"

    @shared
    def keep_open(self) -> tuple[int, ...]:
        """Descriptors that keep the guests in the store; for QEMU, too."""
        fd = self._stack.enter_context(self.store.guests_in_use())
        return () if fd is None else (fd,)

    @property
    def guest(self) -> Guest:
        """The guest of this run's architecture, fetched if need be."""
        return self.once(f"guest {self._guest_number}", self._find_guest)

    def check_guest(self) -> None:
        """Have the guest read again, or made anew, if it does not look as it did when it was checked: a run may take hours."""
        number = self._guest_number
        if not self.guest.is_as_checked:
            self._guest_number = number + 1  # the same for all threads that see it

    def _find_guest(self) -> Guest:
        config = self.workspace.config.guest[self.arch]
        built = self.kernel_file is not None or isinstance(config.kernel, KernelBuild)
        spec = guests.GuestSpec(
            rootfs=config.rootfs,
            kernel=None if built or isinstance(config.kernel, KernelBuild) else config.kernel,
            initrd=config.initrd,
            hostname=config.hostname,
            append=config.append,
        )
        assert self.keep_open is not None  # before a collector can come between
        notes = self.memory / "guests" if self.store.readonly else None
        guest = guests.resolve(
            spec,
            self.arch,
            self.workspace.root,
            self.store.root,
            self.emit,
            offline=self.looking or self.offline,
            notes=notes,
            tools=self._guest_tools(),
        )
        for path in (guest.rootfs, guest.kernel, guest.initrd):
            if path is not None and path.parent.parent == self.store.root / "guests" and not self.store.readonly:
                with contextlib.suppress(OSError):
                    os.utime(path.parent)  # its last use
        return guest

    def kernel(self, case: Case) -> Kernel:
        """The kernel that a case is booted with: the one of the command line, one that is built now, or the guest's.

        Raises `KernelError` if it cannot be built, again for each case of a build group; `UsageError` for a file that cannot be
        one.
        """
        kernel = self._kernel(case)
        if not case.config.to_bin:
            return kernel if case.config.uefi else self._unpacked(kernel)
        made = kernels.raw_name(kernel, kernels.folder(self.workspace.root), self.toolchain_identity(INJECTOR))

        def make(staged: Path) -> None:
            self.emit(events.PhaseStarted(case.display_name, Phase.PREPARE, "making a raw binary of the kernel"))
            kernels.to_raw(kernel, staged, self.engine, self.toolchain(INJECTOR).id, case.display_name)

        return self._derived(made, make, "to_bin")

    def _derived(self, made: Path, make: Callable[[Path], object], where: str) -> Kernel:
        """A kernel that is made of another one."""
        sha256 = self._kept(made, make)
        if wrong := kernels.mismatch(made, self.arch):
            raise UsageError(f"{made} {wrong}", where=where, hint="take another file, or another --arch")
        return Kernel(made, sha256)

    def _kept(self, made: Path, make: Callable[[Path], object]) -> str:
        """A file that is made of a kernel: what fails for one case fails for all. Looked at each time: a run may take hours."""
        self.once(f"kept {made}", lambda: kernels.keep(made, make, self._warn))
        return kernels.keep(made, make, self._warn)

    def _warn(self, what: str) -> None:
        self.emit(events.Warned(what))

    def _unpacked(self, kernel: Kernel) -> Kernel:
        """A kernel that QEMU starts by itself: of one packed for firmware, what is in it."""
        if kernel.path == self.guest.kernel and kernel.path.name in self.guest.digests:
            return kernel  # built in, and unpacked when it was fetched: a warm run reads nothing of it

        if not self.once(f"packed kernel {kernel.path} {kernel.sha256}", lambda: kernels.is_zboot(kernel.path)):
            return kernel
        made = kernels.folder(self.workspace.root) / kernel.sha256 / f"{kernel.path.name}.unpacked"

        def make(staged: Path) -> None:
            staged.write_bytes(kernels.unpack_zboot(kernels.content(kernel), str(kernel.path)))

        return self._derived(made, make, str(kernel.path))

    def uefi(self, case: Case, kernel: Kernel) -> Uefi | None:
        """What a case with `uefi` boots by. Raises `InfraError` without firmware, `KernelError` for what is no EFI application.

        Firmware starts `EFI/BOOT/BOOT<arch>.EFI` of a disk without telling it anything. A kernel that is to have an initrd or a
        command line gets them from QEMU, and so does the firmware: it asks QEMU for all three, and starts the kernel likewise.
        """
        if not case.config.uefi:
            return None
        firmware.check_program(kernel.path, self.arch, case.display_name)
        guest = self.guest
        if guest.initrd is not None or guest.append or "-append" in case.config.args:
            return Uefi(self._firmware, None)
        made = kernels.folder(self.workspace.root) / kernel.sha256 / f"esp-{self.arch}.img"

        def make(staged: Path) -> None:
            staged.write_bytes(fat.image({firmware.DEFAULT_PROGRAM[self.arch]: kernels.content(kernel)}))

        self._kept(made, make)
        return Uefi(self._firmware, made)

    @property
    def _firmware(self) -> Firmware:
        return firmware.current(self._found_firmware)

    @shared
    def _found_firmware(self) -> Firmware:
        config = self.workspace.config.guest[self.arch]
        firmware.check_qemu(self.arch, qemu.version(self.arch))
        if config.firmware is None:
            return firmware.find(self.arch, self.environ)
        root = self.workspace.root
        return firmware.named(root / config.firmware, root / config.firmware_vars if config.firmware_vars else None, self.arch)

    def _kernel(self, case: Case) -> Kernel:
        chosen = self.workspace.config.guest[self.arch].kernel
        if self.kernel_file is not None:
            return self._kernel_file(self.kernel_file, "--kernel")
        if self._builder is not None:

            def say(what: str) -> None:
                self.emit(events.PhaseStarted(case.display_name, Phase.PREPARE, what))

            def line(said: str) -> None:
                self.emit(events.ConsoleLine(case.display_name, said))

            return self._builder.kernel(self._kernel_group(case), say, line)
        assert self.guest.kernel is not None
        if chosen in guests.BUILT_IN:
            return Kernel(self.guest.kernel, self.guest.digests["kernel"])
        return self._kernel_file(self.guest.kernel, f"[guest.{self.arch}] kernel")

    def _kernel_file(self, path: Path, where: str) -> Kernel:
        """A kernel that is a file, read once for each state of it: somebody may build it anew while a run goes on."""
        try:
            return self._of_state("kernel", path, lambda: kernels.of_file(path, self.arch, where))
        except InfraError as error:
            raise UsageError(error.what, where=f"{where} {path}") from None

    def _kernel_group(self, case: Case) -> kernels.Group:
        """What a kernel is built for: the build group of a case, and the nearest build-<target>.toml above it."""
        folders = [folder for folder in (case.path, *case.path.parents) if folder.is_relative_to(self.workspace.root)]
        configs = (folder / f"build-{self.target}.toml" for folder in folders)
        return kernels.Group(case.build_group, next((path for path in configs if path.is_file()), None), self.arch, self.target)

    @shared
    def _builder(self) -> kernels.Builder | None:
        recipe = self.workspace.config.guest[self.arch].kernel
        if not isinstance(recipe, KernelBuild):
            return None
        tools = kernels.Tools(
            self.workspace.root, self.environ, lambda: self.engine, lambda name: self.toolchain(name).id, self._warn
        )
        return kernels.Builder(recipe, tools)

    def _guest_tools(self) -> guests.Tools:
        return guests.Tools(
            engine=lambda: self.engine,
            base=lambda: images.base(self.engine, self.store.root, self.emit),
            toolchain=lambda: self.toolchain(INJECTOR).id,
            environ=self.environ,
        )

    @property
    def accel_asked(self) -> str:
        """What the run was asked for: "tcg", "kvm" or "auto"."""
        return self.workspace.config.run.accel

    def accelerator(self, case: Case, kernel: Kernel, spec: qemu.Spec) -> qemu.Accel:
        """What a case's machine is run with; `spec` is that machine. KVM is tried once for each kernel, and remembered.

        Raises `InfraError` where it has to be KVM, and KVM does not work.
        """
        if self.accel_asked == "tcg":
            return "tcg"
        with self._accel_lock:
            proof = self._proofs.get(kernel.sha256)
            if proof is None:
                proof = self._prove(case, kernel, spec)
                if proof is None:  # no prompt tells whether it booted
                    return "kvm" if self.accel_asked == "kvm" else "tcg"
                self._proofs[kernel.sha256] = proof
                if self.accel_asked == "auto":
                    self.emit(events.AccelChosen("kvm" if proof.works else "tcg", proof.why))
        if proof.works:
            return "kvm"
        if self.accel_asked == "auto":
            return "tcg"
        raise InfraError(
            f"KVM does not work here: {proof.why}", where='accel = "kvm"', hint='"auto" takes TCG where KVM does not work'
        )

    def _prove(self, case: Case, kernel: Kernel, spec: qemu.Spec) -> accel.Proof | None:
        """Whether KVM boots a kernel: a built-in guest's as it is, any other one as the case does, to the case's prompt.

        None where that cannot be told.
        """
        config = self.workspace.config.guest[self.arch]
        if self.kernel_file is None and config.kernel in guests.BUILT_IN and config.initrd is None:
            plain = replace(spec, args=("-nographic", "-m", "256M"), image=self.guest.rootfs, network="none", processors=1)
            return accel.prove(plain, kernel.sha256, f"root@{config.hostname}:", self.memory)
        if case.config.shell_prefix is None:
            why = accel.obstacle(self.arch)
            return accel.Proof(why) if why else None
        return accel.prove(spec, kernel.sha256, case.config.shell_prefix, self.memory)

    @property
    def base_digest(self) -> str:
        """The digest of the base image as it is now: a run may take hours, and somebody may write it meanwhile."""
        return self._of_state("base", self.guest.rootfs, lambda: rootfs.remembered_digest(self.guest.rootfs, self.memory))

    def _of_state(self, name: str, path: Path, make: Callable[[], T]) -> T:
        """What `make` reads of a file, read once for each state of it.

        A file that was written just now is read again, until two seconds have passed: it may be written once more and look
        the same. That is two seconds of reading at the most, and then once.
        """
        facts = rootfs.facts_of(path)
        if rootfs.is_young(facts):
            return make()
        return self.once(f"{name} {path} {sorted(rootfs.identity_of(facts).items())}", make)

    @shared
    def supply(self) -> packages.Supply:
        """What gets packages."""
        config, root = self.workspace.config, self.workspace.root
        return packages.Supply(
            arch=self.arch,
            config=config,
            sources=packages.Sources.of(config, root, self.environ),
            downloads=packages.Downloads(self.store.root / "downloads", self.store.readonly),
            lock=packages.read_lock(root),
            engine=lambda: self.engine,
            image=lambda name: self.toolchain(name).id,
            emit=self.emit,
            environ=self.environ,
            offline=self.offline,
            recorded=self.recorded,
        )

    @property
    def staging_part(self) -> dict[str, keys.JSON]:
        """What the staging root is made of besides the base image: enters the keys of whatever looks into it.

        The script is read as it is now: somebody may edit it while a run goes on.
        """
        hooks = self.workspace.config.hooks
        if hooks.prepare_staging_root is None:
            return {"recipe": staging.RECIPE}
        return {
            "recipe": staging.RECIPE,
            "hook": hashlib.sha256(self.hook.read_bytes()).hexdigest(),
            "variable": self.workspace.config.script_env.staging_root,
            "environment": dict(hooks.guest_package_env),
            "image": self.toolchain_identity(packages.IMAGE),
        }

    @property
    def hook(self) -> Path:
        """The script that prepares the staging root. Raises `UsageError` if it is not there."""
        name = self.workspace.config.hooks.prepare_staging_root
        assert name is not None
        path = self.workspace.root / name
        if not path.is_file():
            raise UsageError("there is no such script", where=f"[hooks] prepare_staging_root: {name}")
        return path

    def check_base(self, digest: str) -> None:
        """What was made of the base image just now was made of the one with this digest, or is not to be stored."""
        if self.base_digest != digest:
            raise _InputsMovedError("the base image")

    @shared
    def building(self) -> threading.BoundedSemaphore:
        """A place for each build that may run at once."""
        return threading.BoundedSemaphore(BUILDS_AT_ONCE)

    @shared
    def engine(self) -> Engine:
        from qcase.containers import Engine

        self._has_containers()
        engine = Engine.connect(self.workspace.root)
        self._stack.callback(engine.close)
        for needed in (self.workspace.root, self.store.root):  # run folders lie in one, entries in the other
            engine.places.seen(needed)
        return engine

    def toolchain_identity(self, name: str) -> str:
        """The identity of a toolchain image; the engine is asked only if it has not been built from this recipe."""

        def make() -> str:
            foreign = self.workspace.config.toolchain.image(name)
            if foreign is not None:
                known: str | None = images.foreign_identity(foreign)
            else:
                known = images.known_identity(name, self.store.root)
            if known is None and self.looking:
                raise InfraError(
                    f"the toolchain image {name} has not been built from this recipe, and its packages are part of the key",
                    hint=f"qcase images build {name}",
                )
            if known is not None and foreign is None and self.locked:
                found = images.known(name, self.store.root)
                images.refuse_other(found if found is not None else self.toolchain(name))
            return known if known is not None else self.toolchain(name).identity

        return self.once(f"identity of {name}", make)

    def toolchain(self, name: str) -> images.Image:
        """A toolchain image, built if need be; a foreign one where the workspace's configuration names one."""

        def make() -> images.Image:
            foreign = self.workspace.config.toolchain.image(name)
            if foreign is not None:
                image = images.foreign(foreign, self.engine, self.emit, offline=self.offline)
            else:
                image = self._own_toolchain(name)
            known = self._cells.get(f"identity of {name}")
            if known is not None and known.value not in (None, image.identity):
                # It was known, had been removed from the engine, and what was built in its place has other packages.
                self._cells[f"identity of {name}"] = _Cell(done=True, value=image.identity)
                self.moves += 1  # last: whoever sees the new number sees the new identity
            return image

        return self.once(f"toolchain {name}", make)

    def stop(self) -> None:
        """Let nothing go on that a case has begun. For an interrupt; the cases see errors, which nobody is to hear of."""
        process.stop()
        if (cell := self._cells.get("engine")) is not None and cell.value is not None:
            with contextlib.suppress(QcaseError, OSError):  # the guardian comes behind us
                cell.value.cancel()

    def _own_toolchain(self, name: str) -> images.Image:
        if self.offline:
            found = images.find(name, self.engine, self.store.root)
            if found is None:
                what = f"the toolchain image {name} is not built, and fetching is switched off"
                raise InfraError(what, hint=f"run once without --offline, or `qcase images build {name}`")
            image = found
        else:
            image = images.ensure(name, self.engine, self.store.root, self.emit)
        if self.locked:
            images.refuse_other(image)
        return image


class _InputsMovedError(Exception):
    """The keys that were computed so far name something that is no more: a toolchain, sources or a base image that changed."""


@contextmanager
def prepare_case_assets(case: Case, layout: CaseLayout, session: Session, build_log: Path) -> Iterator[PreparedCase]:
    """Everything that a case needs before it can boot.

    Raises `BuildError` if its sources do not build, `InfraError` if something of ours is missing or broken. The run folder is
    there only while something is built, and gone at the end.
    """
    began = time.monotonic()
    session.check_guest()
    guest = session.guest
    kernel = session.kernel(case)
    uefi = session.uefi(case, kernel)
    with ExitStack() as stack:
        if not _has_overlays(case):
            seconds = time.monotonic() - began
            plain = PreparedCase(guest.rootfs, guest, kernel, case.pipeline, Cache.NONE, seconds, keep_open=session.keep_open)
            yield replace(plain, uefi=uefi)
            return
        prepared = _persistently_prepared(case, layout, session, build_log, stack)
        uefi = session.uefi(case, prepared.kernel)  # looked at again: a build may have taken its time
        yield replace(prepared, seconds=time.monotonic() - began, uefi=uefi)


def _persistently_prepared(case: Case, layout: CaseLayout, session: Session, build_log: Path, stack: ExitStack) -> PreparedCase:
    return _persistently(case, lambda: _prepare(_Bench(case, layout, session, build_log, stack), case, session))


def _persistently(case: Case, attempt: Callable[[], T]) -> T:
    """Try again from new keys where something changed that the first ones were computed from."""
    for _ in range(ATTEMPTS):
        try:
            return attempt()
        except _InputsMovedError as error:
            moved = str(error)
    raise InfraError(
        f"{moved} changed {ATTEMPTS} times while it was built", where=case.display_name, hint="wait until nothing writes there"
    )


def _prepare(bench: _Bench, case: Case, session: Session) -> PreparedCase:
    if case.only:
        return _prepare_part(bench, case, session)
    works = _works(case, session)
    broken: tuple[BrokenBuild, ...] = ()
    image = bench.stored_image(works)
    hit = image is not None
    if image is None:
        overlays, broken = bench.overlays(works)
        if case.pipeline is Pipeline.GROUPED and not broken and bench.in_doubt(overlays):
            overlays, broken = bench.overlays(_works(case, session, everything=True))
        image = bench.image(overlays)
        hit = image.hit and not broken and all(overlay.entry.hit for overlay in overlays)
    session.check_guest()
    return PreparedCase(
        image.path,
        session.guest,
        session.kernel(case),
        case.pipeline,
        Cache.HIT if hit else Cache.MISS,
        keep_open=(*image.pass_fds, *session.keep_open),
        broken=broken,
    )


def _prepare_part(bench: _Bench, case: Case, session: Session) -> PreparedCase:
    """The commands of one subcase, in the image of the whole group: all is there that they have in a run of the group.

    Which commands these are is known when the subcases are built. Another one that does not build is a warning, as long as no
    chosen command could mean that one too.
    """
    programs: dict[str, list[str]] = {}
    for work in _subcase_works(case, session):
        try:
            programs[work.subcase] = _programs(bench.overlay(work).entry.path)
        except BuildError as error:
            if work.subcase == case.only:
                raise
            bench.say_broken(work.subcase or PROJECT_FILE, error)
    commands = grouped.commands_of(case.only, case.config.test_commands, programs)
    whole = replace(case, only="", display_name=case.whole, config=replace(case.config, test_commands=commands, build="all"))
    prepared = _prepare(bench, whole, session)
    broken = () if all(grouped.is_simple(command) for command in commands) else prepared.broken
    return replace(prepared, commands=commands, broken=broken)


def _programs(overlay: Path) -> list[str]:
    """The paths in the guest of what an overlay has to run: files that are executable, and links."""
    found = []
    for folder, _, names in os.walk(overlay):
        for name in names:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode) or (stat.S_ISREG(mode) and mode & stat.S_IXUSR):
                found.append(f"/{path.relative_to(overlay)}")
    return sorted(found)


def record_packages(case: Case, session: Session, build_log: Path) -> None:
    """Have `session.recorded` take down what packages a case comes to. What asks for packages is built as far as that goes.

    Raises as `prepare_case_assets` does.
    """
    layout = case_asset_layout(session.workspace.root, session.target, case.display_name)
    with ExitStack() as stack:

        def attempt() -> None:
            bench = _Bench(case, layout, session, build_log, stack)
            works = [work for work in _works(case, session, everything=True) if work.may_ask]
            for work in works:
                if session.recorded is not None:
                    session.recorded.pop((session.arch, work.asks_as), None)  # of an attempt that came to nothing
            for work in works:
                bench.record(work)

        _persistently(case, attempt)


@dataclass(frozen=True)
class Wanted:
    """Something that a case takes from the store. `made_for`: under which name the store remembers what it was built from."""

    kind: Kind
    name: str
    made_for: str
    key: keys.Key


def wanted(case: Case, session: Session) -> list[Wanted]:
    """What a case takes from the store: its overlays, then its image, if all overlays are there to tell its key."""
    if not _has_overlays(case):
        return []
    works = _works(case, session)
    if case.only:  # its image has the commands of its programs, which are not known before it is built
        works = [work for work in works if work.name == case.display_name]
    found = [Wanted(Kind.OVERLAY, work.name, _made_for(work.name, session), work.key) for work in works]
    digests = _stored_digests(works, session)
    if digests is not None and not case.only:
        name = case.display_name
        found.append(Wanted(Kind.IMAGE, name, _made_for(name, session), _image_key(digests, session)))
    return found


def _made_for(name: str, session: Session) -> str:
    return f"{name} {session.arch}"


def _stored_digests(works: list[_Work], session: Session) -> list[str] | None:
    """The digests of what the overlays hold, if all are stored: their manifests are read, and nothing else of them."""
    manifests = [session.store.manifest(Kind.OVERLAY, work.key.digest) for work in works]
    digests = [manifest.digest for manifest in manifests if manifest is not None]
    return digests if len(digests) == len(works) else None


def _image_key(overlays: list[str], session: Session) -> keys.Key:
    return keys.image_key(base_digest=session.base_digest, overlays=overlays, injector=rootfs.INJECTOR_VERSION)


def _works(case: Case, session: Session, *, everything: bool = False) -> list[_Work]:
    """The overlays of a case, in the order in which they are laid.

    Of a group those of which a command may name something, unless `everything` is wanted, or the case itself says so.
    """
    if case.pipeline is Pipeline.GROUPED and not everything and case.config.build == "named":
        case = replace(case, subcases=tuple(_named_subcases(case)))
    asked = case.config.packages
    kinds = [subcase.kind for subcase in case.subcases] if case.pipeline is Pipeline.GROUPED else [case.pipeline]
    needed = dict.fromkeys(name for kind in kinds if kind in CRAFTS for name in (*CRAFTS[kind].packages, *asked))
    works = [_packages_work(case, tuple(needed) or asked, session)] if needed or asked else []
    if case.pipeline is Pipeline.PLAIN:
        return works
    if case.pipeline is not Pipeline.GROUPED:
        return [*works, _pipeline_work(case.plain_name, case, case.pipeline, case.path, asked, session)]
    return [*works, _script_work(case, session), *_subcase_works(case, session)]


def _subcase_works(case: Case, session: Session) -> list[_Work]:
    """The overlays of a group's subcases. A project in the case's own folder takes the place of those in C."""
    asked = case.config.packages
    project = [PROJECT_FILE] if (case.path / PROJECT_FILE).is_file() else []
    works = [
        _pipeline_work(f"{case.whole}: {name}", case, Pipeline.C, case.path, asked, session, craft=c.PROJECT) for name in project
    ]
    for subcase in case.subcases:
        if not (project and subcase.kind is Pipeline.C):
            work = _pipeline_work(f"{case.whole}/{subcase.name}", case, subcase.kind, subcase.path, asked, session)
            works.append(replace(work, subcase=subcase.name))
    return works


def _has_overlays(case: Case) -> bool:
    """Whether something is laid over the base image."""
    return case.pipeline is not Pipeline.PLAIN or bool(case.config.packages)


def _named_subcases(case: Case) -> Iterator[Subcase]:
    """The subcases that may install what a command names. What needs no container and no packages is made in any case."""
    named = grouped.names(case.config.test_commands)
    for subcase in case.subcases:
        craft = CRAFTS.get(subcase.kind)
        cheap = craft is not None and craft.image is None and not craft.packages
        if named is None or cheap or grouped.may_install(subcase.path, named):
            yield subcase


@dataclass(frozen=True)
class _Root:
    """What a staging root is made of, as a key has it: the digest of the base image, and `Session.staging_part`."""

    base: str
    part: dict[str, keys.JSON]

    @classmethod
    def of(cls, session: Session) -> _Root:
        return cls(session.base_digest, session.staging_part)


@dataclass(frozen=True)
class _Work:
    """One overlay to be had: its key, and how to build it. `root`: the staging root that its key speaks of."""

    name: str
    key: keys.Key
    build: Callable[[Path, Workshop], None]
    packages: tuple[str, ...] = ()
    subcase: str = ""
    may_ask: bool = False  # for packages
    root: _Root | None = None

    @property
    def asks_as(self) -> str:
        """The name under which a lock has its packages."""
        return self.name.removesuffix(": packages")


@dataclass(frozen=True)
class _Overlay:
    name: str
    entry: Entry


def _script_work(case: Case, session: Session) -> _Work:
    """The overlay that holds a group's script."""
    runner = session.workspace.config.grouped
    key = keys.overlay_key(
        pipeline=Pipeline.GROUPED,
        recipe_version=grouped.RECIPE,
        arch=session.arch,
        target=session.target,
        sources=(),
        config_fields={"test_commands": case.config.test_commands},
        env=_cache_env(session),
        extra={"runner_name": runner.runner_name, "script": grouped.runner_script(case.config.test_commands, runner)},
    )

    def build(overlay: Path, workshop: Workshop) -> None:
        workshop.say("writing the group's script")
        grouped.write_runner_script(overlay, case.config.test_commands, runner)

    return _Work(f"{case.plain_name}: the group's script", key, build)


def _packages_work(case: Case, asked: tuple[str, ...], session: Session) -> _Work:
    """The overlay that holds what a case's packages bring."""
    root = _Root.of(session)
    come = session.supply.part(case.plain_name)
    key = keys.overlay_key(
        pipeline="packages",
        recipe_version=brought.RECIPE,
        arch=session.arch,
        target=session.target,
        sources=(),
        toolchain_identity=session.toolchain_identity(packages.IMAGE),
        env=_cache_env(session),
        base_digest=root.base,
        extra={
            "packages": {"asked": list(asked), **come},
            "staging": root.part,
        },
    )

    def build(overlay: Path, workshop: Workshop) -> None:
        brought.build(overlay, workshop)
        session.check_base(root.base)
        _check_supply(case.plain_name, come, session)

    return _Work(f"{case.plain_name}: packages", key, build, asked, may_ask=True, root=root)


def _check_supply(name: str, come: keys.JSON, session: Session) -> None:
    """What was installed came from where a key says: a repository may be a folder that somebody fills meanwhile."""
    if session.supply.part(name) != come:
        raise _InputsMovedError("a repository of packages")


def _packages_part(
    craft: Craft, name: str, source: Path, asked: tuple[str, ...], session: Session
) -> dict[str, dict[str, keys.JSON]]:
    """What enters a key where packages reach a build: those of its configuration, and those that a script may ask for."""
    scripted = craft.prebuild is not None and (source / craft.prebuild / prebuild.SCRIPT).is_file()
    if not craft.reads_staging or not (asked or scripted):
        return {}
    part: dict[str, keys.JSON] = {
        "asked": list(asked),
        "recipe": hashlib.sha256(prebuild.recipe().encode()).hexdigest(),
        "image": session.toolchain_identity(packages.IMAGE),
        "apk": guests.alpine_sha256(images.GUEST_ARCH),  # what a script is given
        "from": session.supply.part(name),
    }
    return {"packages": part}


def _pipeline_work(
    name: str,
    case: Case,
    pipeline: Pipeline,
    source: Path,
    asked: tuple[str, ...],
    session: Session,
    craft: Craft | None = None,
) -> _Work:
    """The overlay of one folder of sources. `craft`, in place of the pipeline's own, has the whole folder as its source."""
    folder = pipeline.value if craft is None else ""
    craft = craft or CRAFTS[pipeline]

    def find() -> tuple[sources.Source, ...]:
        return sources.find(source, folder, session.workspace.root, others_within(case, source, project=not folder))

    found = find()
    root = _Root.of(session) if craft.reads_staging else None
    settings = dict(craft.settings(session.arch, session.workspace.config))
    if root is not None:
        settings["staging"] = root.part
    part = _packages_part(craft, name, source, asked, session)
    key = keys.overlay_key(
        pipeline=pipeline,
        recipe_version=craft.recipe,
        arch=session.arch,
        target=session.target,
        sources=[one.entry for one in found],
        toolchain_identity=None if craft.image is None else session.toolchain_identity(craft.image),
        env=_cache_env(session),
        base_digest=None if root is None else root.base,
        extra=settings | part,
    )

    def build(overlay: Path, workshop: Workshop) -> None:
        craft.build(_frozen(found, find, workshop), overlay, workshop)
        if root is not None:
            session.check_base(root.base)
        if "packages" in part:
            _check_supply(name, part["packages"]["from"], session)

    return _Work(name, key, build, asked if craft.reads_staging else (), may_ask=bool(part), root=root)


def _frozen(found: tuple[sources.Source, ...], find_again: Callable[[], tuple[sources.Source, ...]], workshop: Workshop) -> Path:
    """A copy of a case's sources, for a build to work in, that is what its key was computed from.

    Minutes can lie between the two, while one waits for another builder or for a toolchain image; who edits a file in that time
    must not get the new bytes stored under the old key.
    """
    copy = workshop.scratch / "sources"
    try:
        sources.copy(found, copy)
    except OSError as error:
        if find_again() == found:
            raise InfraError(f"cannot copy the sources: {error.strerror}", where=workshop.case) from error
        raise _InputsMovedError("its sources") from None
    if keys.tree_listing(copy) != tuple(one.entry for one in found):
        raise _InputsMovedError("its sources")
    return copy


def _cache_env(session: Session) -> dict[str, str | None]:
    return {name: session.environ.get(name) for name in session.workspace.config.cache.env}


class _Bench:
    """Where one case's overlays and image are fetched from the store, or made."""

    def __init__(self, case: Case, layout: CaseLayout, session: Session, build_log: Path, stack: ExitStack) -> None:
        self._case = case
        self._layout = layout
        self._run_dir: Path | None = None
        self._session = session
        self._log = build_log
        self._stack = stack
        self._moves = session.moves
        self._lock = threading.Lock()

    def _toolchain(self, name: str) -> str:
        """The id of a toolchain image. Raises `_InputsMovedError` if one moved since this case's keys were computed."""
        image = self._session.toolchain(name)
        if self._session.moves != self._moves:
            raise _InputsMovedError("the toolchain image")
        return image.id

    def overlays(self, works: Sequence[_Work]) -> tuple[list[_Overlay], tuple[BrokenBuild, ...]]:
        """All overlays of a case, several built at once. Of a group, one that does not build does not stop the others."""
        if self._case.pipeline is not Pipeline.GROUPED:
            return [self.overlay(work) for work in works], ()
        pool = ThreadPoolExecutor(BUILDS_AT_ONCE, thread_name_prefix=f"build {self._case.display_name}")
        try:
            building = [pool.submit(self.overlay, work) for work in works]
            wait(building)
        except BaseException:  # an interrupt must not wait for compilers
            pool.shutdown(wait=False, cancel_futures=True)
            self._session.stop()
            raise
        finally:
            pool.shutdown()
        overlays, broken = [], []
        for work, done in zip(works, building, strict=True):
            try:
                overlays.append(done.result())
            except BuildError as error:
                broken.append(BrokenBuild(work.name, error))
        return overlays, tuple(broken)

    def in_doubt(self, overlays: Sequence[_Overlay]) -> bool:
        """Whether a command may run something that is in none of these overlays, nor in the guest."""
        with Ext4Image.open(self._session.guest.rootfs) as base:

            def exists(path: str) -> bool:
                return any(os.path.lexists(o.entry.path / path[1:]) for o in overlays) or base.lookup(path) is not None

            return grouped.in_doubt(self._case.config.test_commands, exists)

    def overlay(self, work: _Work) -> _Overlay:
        def build(path: Path) -> None:
            with self._session.building:
                log = self._log_of(work)
                try:
                    work.build(path, self._workshop(work, log))
                finally:
                    self._gather(log, work.name)

        entry = self._fetch(Kind.OVERLAY, work.key, build, work.name)
        return _Overlay(work.name, entry)

    def _log_of(self, work: _Work) -> Path:
        """Where a build writes to. Subcases are built at once, so each writes a log of its own first."""
        if self._case.pipeline is not Pipeline.GROUPED:
            return self._log
        return self._emptied(f"log-{work.key.short}") / "build.log"

    def _workshop(self, work: _Work, log: Path) -> Workshop:
        session = self._session
        return Workshop(
            case=work.asks_as,
            arch=session.arch,
            scratch=self._emptied(f"overlay-{work.key.short}"),
            log=log,
            config=session.workspace.config,
            base=session.guest.rootfs,
            staging=lambda: self._staging(work),
            engine=lambda: session.engine,
            image=self._toolchain,
            environment={name: value for name, value in _cache_env(session).items() if value is not None},
            environ=session.environ,
            offline=session.offline,
            download=self._download,
            say=self._say,
            warn=self._warn,
            supply=lambda: session.supply,
            apk=self._apk,
            packages=work.packages,
        )

    def record(self, work: _Work) -> None:
        """Build for the sake of the packages that it asks for; the rest of it is not even begun."""
        overlay = self._emptied("recorded")
        with contextlib.suppress(prebuild.RecordedError):
            work.build(overlay, self._workshop(work, self._log))

    def stored_image(self, works: list[_Work]) -> Entry | None:
        """The image of these overlays if it is stored, and they are."""
        digests = _stored_digests(works, self._session)
        if digests is None:
            return None
        key = _image_key(digests, self._session)
        store = self._session.store
        image = self._stack.enter_context(store.reader(Kind.IMAGE, key.digest, warn=self._warn))
        if image is not None:
            for work in works:  # after the image, so that it goes first: it is large, and soon made of them
                store.touch(Kind.OVERLAY, work.key.digest)
        return image

    def image(self, overlays: list[_Overlay]) -> Entry:
        """The base image with the overlays in it, in their order."""
        base = self._session.base_digest
        key = _image_key([overlay.entry.digest for overlay in overlays], self._session)

        def build(path: Path) -> None:
            self._session.check_base(base)
            self._say("writing the image")
            merged = self._merge(overlays)
            self._inject(path, merged)
            self._session.check_base(base)

        return self._fetch(Kind.IMAGE, key, build, self._case.plain_name)

    def _fetch(self, kind: Kind, key: keys.Key, build: Callable[[Path], None], name: str) -> Entry:
        store, made_for = self._session.store, _made_for(name, self._session)
        said: list[events.Missed] = []

        def build_and_say_why(path: Path) -> None:
            if not said:  # a full store has it built a second time
                why = store.why_missed(kind, key, made_for)
                said.append(events.Missed(self._case.display_name, f"the {kind} of {name}", tuple(why)))
                self._session.emit(said[0])
            build(path)

        return self._stack.enter_context(
            store.get_or_build(
                kind,
                key,
                build_and_say_why,
                scratch=self._scratch(),
                made_for=made_for,
                on_wait=self._say,
                warn=self._warn,
            )
        )

    def say_broken(self, subcase: str, error: BuildError) -> None:
        self._warn(f"{subcase}, another subcase of the group, did not build: {error.what}")

    def _gather(self, log: Path, name: str) -> None:
        """Put what the build of a subcase said into the log of its group."""
        if log == self._log or not log.is_file():
            return
        with self._lock, self._log.open("ab") as whole:
            whole.write(f"==== {name}\n".encode())
            with log.open("rb") as part:
                shutil.copyfileobj(part, whole)

    def _warn(self, message: str) -> None:
        self._session.emit(events.Warned(message, self._case.display_name))

    def _say(self, what: str) -> None:
        self._session.emit(events.PhaseStarted(self._case.display_name, Phase.PREPARE, what))

    def _scratch(self) -> Path:
        """The run folder. It is removed at the end, also by the guardian if qcase is killed."""
        with self._lock:
            if self._run_dir is None:
                self._run_dir = self._stack.enter_context(runs.claimed(self._layout.run_dir, next_case_run_id, self._warn))
            return self._run_dir

    def _emptied(self, name: str) -> Path:
        """An empty folder in the run folder. A build that met a full store is done a second time, elsewhere."""
        folder = self._scratch() / name
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        return folder

    def _staging(self, work: _Work) -> Path:
        """The base image unpacked: what packages and headers a build may look at. Made once for each base, kept in the store.

        It is made of what the key of `work` has, and not of what is there now: that may be edited, and edited back before
        the build ends.
        """
        base, root = self._session.guest.rootfs, work.root
        assert root is not None, f"the key of {work.name} has no staging root"
        key = keys.key({"kind": "staging", "recipe": staging.RECIPE, "base": root.base})

        def build(path: Path) -> None:
            self._say("unpacking the base image")
            staging.unpack(base, path)
            self._session.check_base(root.base)

        unpacked = self._fetch(Kind.OVERLAY, key, build, "the staging root").path
        return unpacked if self._session.workspace.config.hooks.prepare_staging_root is None else self._hooked(unpacked, root)

    def _hooked(self, unpacked: Path, root: _Root) -> Path:
        """The staging root as the workspace's own script prepares it."""
        from qcase.containers import Mount, Step

        session = self._session
        key = keys.key({"kind": "staging", "base": root.base, **root.part})

        def build(path: Path) -> None:
            self._say("preparing the staging root")
            scratch = self._emptied(f"hook-{key.short}")
            script = scratch / "hook.sh"
            shutil.copyfile(session.hook, script)
            if hashlib.sha256(script.read_bytes()).hexdigest() != root.part["hook"]:
                raise _InputsMovedError("the script of [hooks] prepare_staging_root")
            path.rmdir()
            prebuild.copy(unpacked, path)
            variable = session.workspace.config.script_env.staging_root
            step = Step(
                image=self._toolchain(packages.IMAGE),
                argv=("sh", "-eu", f"{BUILD}/hook.sh"),
                mounts=(Mount(scratch, BUILD, False), Mount(path, STAGING, False)),
                env={**session.workspace.config.hooks.guest_package_env, variable: STAGING},
                workdir=STAGING,
                timeout=600.0,
                name="prepare_staging_root",
                log=self._log,
            )
            session.engine.check(step, session.emit, self._case.display_name)

        return self._fetch(Kind.OVERLAY, key, build, "the prepared staging root").path

    def _apk(self) -> Path:
        """apk and what it needs, out of the guest that the image of that name is made of; made once, kept in the store."""
        guest = guests.alpine(images.GUEST_ARCH, self._session.store.root, offline=self._session.offline, emit=self._session.emit)
        made_of = {"kind": "apk", "recipe": prebuild.recipe(), "guest": guest.digests["rootfs.img"]}

        def build(path: Path) -> None:
            prebuild.unpack_apk(guest.rootfs, path)

        return self._fetch(Kind.OVERLAY, keys.key(made_of), build, "apk").path

    def _download(self, key: keys.Key, name: str, fetch: Callable[[Path], None]) -> Path:
        """What was fetched from a network, kept in the store."""
        return self._fetch(Kind.DOWNLOAD, key, fetch, name).path

    def _merge(self, overlays: list[_Overlay]) -> Path:
        """One folder of all overlays. Two that bring the same path with different content are an error that names both."""
        if len(overlays) == 1:
            return overlays[0].entry.path
        merged = self._emptied("overlay")
        owner: dict[str, tuple[str, list[str]]] = {}
        for overlay in overlays:
            for row in keys.overlay_listing(overlay.entry.path):
                path = row[0]
                name, known = owner.setdefault(path, (overlay.name, row))
                if known != row:
                    raise BuildError(
                        f"{name} and {overlay.name} both install {path}, and not the same",
                        where=self._case.display_name,
                        hint="let each subcase install under names of its own",
                    )
            copy_tree(overlay.entry.path, merged, there=True)
        return merged

    def _inject(self, path: Path, overlay: Path) -> None:
        """Write an overlay into a copy of the base image, `path`, in a container, and check what came of it."""
        from qcase.containers import Mount, Step, verdict_of

        session = self._session
        build = path.parent
        before = set(build.iterdir())
        with Ext4Image.open(session.guest.rootfs) as base:
            plan = rootfs.plan(base, overlay)
        job = rootfs.injection_job(plan)
        rootfs.stage(job, session.guest.rootfs, build)
        step = Step(
            image=self._toolchain(INJECTOR),
            argv=("sh", "-euc", rootfs.shell(job)),
            mounts=(Mount(build, BUILD, False), Mount(overlay, OVERLAY, True)),
            workdir=BUILD,
            timeout=600.0,
            name="inject",
            log=self._scratch() / "inject.log",
        )
        result = session.engine.run(step, session.emit, self._case.display_name)
        if result.exit_status != 0:
            what, hint = verdict_of(step, result)
            raise InfraError(f"{what}\n{result.output.strip()[-2000:]}", where=self._case.display_name, hint=hint)
        rootfs.verify(build, plan, overlay)
        for leftover in set(build.iterdir()) - before - {path}:
            leftover.unlink()
