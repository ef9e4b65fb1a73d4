"""`qcase doctor`: whether `qcase run` would work here, and if not, what to do. Nothing is fetched, built or cleared away.

    Line(what, state, says, hint)      good; warning: works, and somebody should know; bad: `run` would not work

What is bad depends on what a run would need. Cases of the pipeline `plain` need no container engine, so for a suite of those
alone a missing engine is a warning. What a run would fetch or build by itself is a warning too, if it can be had: the package
index is asked for the guest, the mirror for Debian. An architecture that was not asked for is looked at where the suite has
cases for it, and is never bad.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qcase import __version__, accel, firmware, gc, guests, images, locks, packages, process, qemu, suite
from qcase.cache import size
from qcase.config import GuestConfig, KernelBuild, WorkspaceConfig, parse_size
from qcase.errors import InfraError, QcaseError, UsageError
from qcase.model import Arch, Pipeline
from qcase.pipelines.crafts import CRAFTS
from qcase.prepare import INJECTOR, Session
from qcase.store import Store
from qcase.suite import Case, Workspace

if TYPE_CHECKING:
    from qcase.containers import Engine

FORMAT = 1  # of `qcase doctor --json`

_OLDEST_QEMU = (7, 2)
_OLDEST_ENGINE = (20, 10)
_ROOM = 5 << 30  # bytes free below which a store fills soon: an image takes some 50 MiB, the toolchain images 2 GiB
_ABSENT = "is not whole in the store yet"
_UNBUILT = "is not built yet"
_PATIENCE = 20.0  # seconds for an index or a mirror


class State(StrEnum):
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True)
class Line:
    what: str
    state: State
    says: str
    hint: str = ""


@dataclass(frozen=True)
class Patient:
    """What is looked at. `arch`: what `run` would be asked for. `workspace` is None where there is none."""

    workspace: Workspace | None
    arch: Arch
    store: Path
    cases: tuple[Case, ...] = ()
    others: tuple[Arch, ...] = ()

    @property
    def config(self) -> WorkspaceConfig:
        return self.workspace.config if self.workspace else WorkspaceConfig()

    @property
    def kinds(self) -> set[Pipeline]:
        """The pipelines of the cases, those of subcases included; all that there are without a workspace."""
        if self.workspace is None:
            return {Pipeline.PLAIN, *CRAFTS}
        return {case.pipeline for case in self.cases} | {sub.kind for case in self.cases for sub in case.subcases}

    @property
    def needs_engine(self) -> bool:
        kernel = self.guest.kernel
        in_container = isinstance(kernel, KernelBuild) and kernel.where != "host"
        made = any(case.config.to_bin or case.config.packages for case in self.cases)
        return bool(self.kinds - {Pipeline.PLAIN}) or guests.DEBIAN in (self.guest.rootfs, kernel) or in_container or made

    @property
    def images(self) -> list[str]:
        """The toolchain images that a run would use."""
        crafts = [craft for kind, craft in CRAFTS.items() if kind in self.kinds]
        wanted = {craft.image for craft in crafts if craft.image} | {INJECTOR}
        if any(craft.packages for craft in crafts) or any(case.config.packages for case in self.cases):
            wanted.add(packages.IMAGE)
        return sorted(wanted)

    @property
    def guest(self) -> GuestConfig:
        return self.config.guest[self.arch]


def examine(workspace: Path | None, arch: Arch, store: Path) -> Iterator[Line]:
    """Looks at one thing after the other. `workspace`: where to look for it from, None for the current folder."""
    yield _program()
    patient = Patient(None, arch, store)
    for line, found in _workspace(workspace or Path.cwd(), patient):
        patient = found
        yield line
    checks: list[tuple[str, Callable[[Patient], Iterator[Line]]]] = [
        ("store", _store),
        ("engine", _engine),
        (f"qemu {arch}", partial(_qemu, arch=arch)),
        (f"guest {arch}", partial(_guest, arch=arch)),
        ("firmware", _firmware),
        ("kvm", _kvm),
    ]
    asked = False
    for what, check in checks:
        for line in _guarded(what, check, patient):
            asked |= line.says.startswith((_ABSENT, _UNBUILT)) or line.what == "mirror"
            yield line
    if not asked:
        says = "not asked: guest and images are here; packages and crates are fetched when a case first needs them"
        yield Line("registries", State.GOOD, says)
    for other in patient.others:
        lines = [*_guarded(f"qemu {other}", partial(_qemu, arch=other), patient)]
        lines += _guarded(f"guest {other}", partial(_guest, arch=other), patient)
        for line in lines:
            yield replace(line, state=State.WARNING) if line.state is State.BAD else line


def works(lines: Sequence[Line]) -> bool:
    return all(line.state is not State.BAD for line in lines)


def document(lines: Sequence[Line], arch: Arch) -> dict[str, object]:
    """The same for a program."""
    rows = [{"what": one.what, "state": one.state.value, "says": one.says, "hint": one.hint or None} for one in lines]
    return {"format": FORMAT, "arch": arch.value, "works": works(lines), "lines": rows}


def _guarded(what: str, check: Callable[[Patient], Iterator[Line]], patient: Patient) -> Iterator[Line]:
    """A check that itself fails is a bad line, and no end of all checks."""
    try:
        yield from check(patient)
    except QcaseError as error:
        yield _bad(what, error)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        yield Line(what, State.BAD, f"{place}{error.strerror or error}")


def _bad(what: str, error: QcaseError) -> Line:
    return Line(what, State.BAD, str(error), error.hint)


# ---- what is here


def _program() -> Line:
    python = platform.python_version()
    return Line("qcase", State.GOOD, f"{__version__}, Python {python}, {platform.system()} {platform.machine()}")


def _workspace(start: Path, patient: Patient) -> Iterator[tuple[Line, Patient]]:
    try:
        opened = Workspace.open(start)
    except QcaseError as error:
        yield _bad("workspace", error), patient
        return
    patient = replace(patient, workspace=opened)
    try:
        found = suite.discover(opened, patient.arch, patient.arch.default_target)
        everything = suite.catalogue(opened, found.group)
    except QcaseError as error:
        yield _bad("workspace", error), patient
        return
    cases = tuple(case for case in found.cases if isinstance(case, Case))
    broken = len(found.cases) - len(cases)
    entries = [entry for group in everything.groups.values() for entry in group]
    others = [arch for arch in Arch if arch is not patient.arch and any(arch in entry.cases for entry in entries)]
    patient = replace(patient, cases=cases, others=tuple(others))
    count = f"{len(cases)} case{'' if len(cases) == 1 else 's'}"
    said = f"{opened.root}: {count} on {patient.arch} in the group {found.group}"
    if broken:
        line = Line("workspace", State.WARNING, f"{said}, and {broken} that are broken", "`qcase lint` says what is wrong")
    elif not cases:
        known = f"there are cases for {', '.join(others)}" if others else "`qcase new` makes one"
        line = Line("workspace", State.BAD, said, known)
    else:
        line = Line("workspace", State.GOOD, said)
    yield line, patient
    target = opened.root / "target"
    there = next(path for path in (target, *target.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        hint = "run folders and logs go to target/: give yourself the right to write there"
        yield Line("workspace", State.BAD, f"{there} cannot be written to", hint), patient


def _store(patient: Patient) -> Iterator[Line]:
    root = patient.store
    there = next(path for path in (root, *root.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        hint = f"set {locks.CACHE_DIR_VARIABLE} to a folder that is yours, or take --cache-dir"
        yield Line("store", State.BAD, f"{there} is no folder that can be written to", hint)
        return
    if reason := _lock_trouble(there):
        yield reason
        return
    cache = patient.config.cache
    items = gc.items(Store(root, readonly=True)) if root.is_dir() else []
    taken = sum(item.size for item in items)
    free = shutil.disk_usage(there).free
    said = f"{root}: {size(taken)} of {cache.max_size}, {size(free)} free on its disk"
    if free < parse_size(cache.min_free):
        hint = f"make room: `qcase cache gc --max-size …`, or set {locks.CACHE_DIR_VARIABLE} to a larger disk"
        yield Line("store", State.BAD, f"{said}, less than [cache] min_free = {cache.min_free}", hint)
    elif free < _ROOM:
        yield Line("store", State.WARNING, said, "it is soon full; `qcase cache gc` makes room")
    else:
        yield Line("store", State.GOOD, said)


def _lock_trouble(folder: Path) -> Line | None:
    """Locks are tried, not presumed: some network file systems have none."""
    import fcntl
    import tempfile

    with tempfile.NamedTemporaryFile(prefix=".qcase-doctor-", dir=folder) as file:
        try:
            locks.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB, folder)
        except InfraError as error:
            return _bad("store", error)
    return None


# ---- the engine and its images


def _engine(patient: Patient) -> Iterator[Line]:
    lines = list(_guarded("engine", _engine_lines, patient))
    if patient.needs_engine:
        yield from lines
        return
    for line in lines:
        if line.state is State.BAD:
            yield replace(line, state=State.WARNING, hint=f"no case here needs it. {line.hint}".strip())
        else:
            yield line


def _engine_lines(patient: Patient) -> Iterator[Line]:
    from qcase.containers import Engine

    with Engine.connect(patient.workspace.root if patient.workspace else None) as engine:
        facts = engine.facts
        said = f"{facts.version} at {engine.socket}{', rootless' if facts.rootless else ''}"
        if _version(facts.version) < _OLDEST_ENGINE:
            hint = "the oldest that is known to work is 20.10"
            yield Line("engine", State.WARNING, said, hint)
        elif missing := facts.missing_limits():
            yield Line("engine", State.WARNING, f"{said}; {'; '.join(missing)}")
        else:
            yield Line("engine", State.GOOD, said)
        for folder in (patient.workspace.root if patient.workspace else None, patient.store):
            if folder is not None:
                engine.places.seen(folder)
        step: images.Image | None = None
        missing_images = []
        for name in patient.images:
            found = _image(name, engine, patient)
            if isinstance(found, Line):
                missing_images.append(name)
                yield found
            else:
                step = found
                yield Line(f"image {name}", State.GOOD, f"identity {found.identity[:12]}, {len(found.packages)} packages")
        if missing_images:
            yield from _guarded("base", lambda _: _base(engine), patient)
        if step is not None:
            yield from _guarded("step", lambda _: _step(engine, step, patient), patient)


def _image(name: str, engine: Engine, patient: Patient) -> images.Image | Line:
    foreign = patient.config.toolchain.image(name)
    if foreign is not None:
        images.foreign_identity(foreign)
        known = engine.image_id(foreign)
        if known is None:
            return Line(f"image {name}", State.WARNING, f"{foreign} is not here yet, and is pulled when it is needed")
        return images.Image(foreign, known, images.foreign_identity(foreign))
    found = images.find(name, engine, patient.store)
    if found is None:
        hint = f"`qcase images build {name}` builds it now; else the first case that needs it does, which takes minutes"
        return Line(f"image {name}", State.WARNING, _UNBUILT, hint)
    return found


def _base(engine: Engine) -> Iterator[Line]:
    """Whether an image could be built: from a base that is there, from a registry, or from a mirror."""
    if images.has_base(engine):
        yield Line("base", State.GOOD, "the base of the images is there")
        return
    definition = images.base_definition()
    if definition.registry:
        yield Line(
            "base", State.GOOD, f"the base of the images comes from a registry, {definition.registry}, which was not tried"
        )
        return
    if shutil.which("mmdebstrap") is None:
        yield Line(
            "base", State.BAD, "mmdebstrap is not installed, which makes the base of the images", "apt-get install mmdebstrap"
        )
        return
    if os.geteuid() != 0 and shutil.which("newuidmap") is None:
        what = "newuidmap is not installed, which mmdebstrap needs without root to make the base of the images"
        yield Line("base", State.BAD, what, "apt-get install uidmap")
        return
    main = images.host_mirrors(Path("/etc/apt"), os.environ).main
    if main is None:
        yield Line("mirror", State.GOOD, "the base of the images comes from mmdebstrap's own mirror, which was not tried")
        return
    where = f"{main.uri.rstrip('/')}/dists/{definition.suite}/Release"
    if trouble := _unreachable(where):
        hint = "images cannot be built without it; set http_proxy if there is one"
        yield Line("mirror", State.BAD, f"{main.uri} does not answer: {trouble}", hint)
    else:
        yield Line("mirror", State.GOOD, f"{main.uri} answers")


def _unreachable(address: str) -> str:
    if not address.startswith(("http://", "https://")):
        return ""
    try:
        request = urllib.request.Request(address, method="HEAD")  # noqa: S310
        with urllib.request.urlopen(request, timeout=_PATIENCE):  # noqa: S310
            return ""
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.reason}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def _step(engine: Engine, image: images.Image, patient: Patient) -> Iterator[Line]:
    """A step as confined as all are: rights, mounts, limits and the clean-up behind it."""
    import tempfile

    from qcase.containers import Mount, Step, verdict_of

    place = patient.workspace.root if patient.workspace else Path.cwd()
    with tempfile.TemporaryDirectory(prefix=".qcase-doctor-", dir=place) as name:
        folder = Path(name)
        step = Step(
            image=image.id,
            argv=("sh", "-euc", "echo well >/qcase/build/said"),
            mounts=(Mount(folder, "/qcase/build", False),),
            timeout=60.0,
            name="doctor",
        )
        began = time.monotonic()
        result = engine.run(step)
        seconds = time.monotonic() - began
        if result.exit_status != 0:
            what, hint = verdict_of(step, result)
            yield Line("step", State.BAD, f"{what}: {result.output.strip()[-300:]}", hint)
        elif not (folder / "said").is_file():
            hint = "an engine on another machine, or in another mount namespace, cannot be used"
            yield Line("step", State.BAD, "what a step writes does not arrive here: the engine does not share our folders", hint)
        else:
            yield Line("step", State.GOOD, f"a confined step ran in {seconds:.1f} s")


# ---- QEMU and guests


def _qemu(_: Patient, arch: Arch) -> Iterator[Line]:
    what = f"qemu {arch}"
    try:
        said = process.run([arch.qemu, "--version"], timeout=_PATIENCE, hint=qemu.INSTALL_HINT[arch]).output
    except InfraError as error:
        yield _bad(what, error)
        return
    version = re.search(r"version (\d+(?:\.\d+)+)", said)
    path = shutil.which(arch.qemu) or arch.qemu
    if version is None:
        yield Line(what, State.WARNING, f"{path} does not say its version: {said.splitlines()[0] if said else 'nothing'}")
    elif _version(version[1]) < _OLDEST_QEMU:
        yield Line(what, State.WARNING, f"{version[1]} at {path}", "the oldest that is known to work is 7.2")
    else:
        yield Line(what, State.GOOD, f"{version[1]} at {path}")


def _guest(patient: Patient, arch: Arch) -> Iterator[Line]:
    what = f"guest {arch}"
    workspace = patient.workspace or Workspace(Path.cwd(), WorkspaceConfig())
    looked = Store(patient.store, readonly=True)
    try:
        with Session(workspace, arch, arch.default_target, looked, lambda _: None, looking=True) as session:
            guest = session.guest
    except InfraError:
        yield from _guarded(what, lambda _: _fetchable(what, patient, arch), patient)
        return
    except UsageError as error:
        yield _bad(what, error)
        return
    missing = [path for path in (guest.rootfs, guest.kernel, guest.initrd) if path is not None and not path.is_file()]
    if missing:
        yield Line(what, State.BAD, f"there is no file {missing[0]}", f"[guest.{arch}] in qcase.toml names it")
    else:
        ours = guest.rootfs.is_relative_to(patient.store)
        yield Line(what, State.GOOD, guest.name if ours else f"{workspace.relative(guest.rootfs)}, {guest.name}")


def _fetchable(what: str, patient: Patient, arch: Arch) -> Iterator[Line]:
    """A guest that is not in the store: whether a run could get it."""
    trouble = guests.obstacle(patient.config.guest[arch].rootfs, arch, patient.store)
    if trouble is None:
        yield Line(what, State.WARNING, f"{_ABSENT}; nothing is known to be in the way", "the first run fetches or makes it")
    else:
        yield Line(what, State.BAD, f"{_ABSENT}, and cannot be had: {trouble.what}", trouble.hint)


def _firmware(patient: Patient) -> Iterator[Line]:
    """UEFI firmware, where a case boots with it."""
    if not any(case.config.uefi for case in patient.cases):
        return
    firmware.check_qemu(patient.arch, qemu.version(patient.arch))
    named = patient.guest.firmware
    if named is None:
        found = firmware.find(patient.arch, dict(os.environ))
    else:
        root = patient.workspace.root if patient.workspace else Path.cwd()
        variables = patient.guest.firmware_vars
        found = firmware.named(root / named, root / variables if variables else None, patient.arch)
    yield Line("firmware", State.GOOD, str(found.code))


def _kvm(patient: Patient) -> Iterator[Line]:
    """KVM is tried with the guest itself: one that opens, and even runs the firmware, can still hang a kernel."""
    wanted = patient.config.run.accel
    state = {"kvm": State.BAD, "auto": State.WARNING}.get(wanted, State.GOOD)
    asked = "" if wanted in ("kvm", "auto") else 'not asked for by [run] accel = "tcg"; '
    consequence = "; TCG is used" if wanted == "auto" else ""
    hint = 'accel = "auto" or "tcg" does without' if wanted == "kvm" else ""
    if why := accel.obstacle(patient.arch):
        yield Line("kvm", state, f"{asked}{why}{consequence}", hint)
        return
    workspace = patient.workspace or Workspace(Path.cwd(), WorkspaceConfig())
    looked = Store(patient.store, readonly=True)
    with Session(workspace, patient.arch, patient.arch.default_target, looked, lambda _: None, looking=True) as session:
        try:
            guest = session.guest
        except QcaseError:
            yield Line("kvm", State.GOOD, f"{asked}there, and not tried: the guest is not here yet")
            return
    if guest.kernel is None or patient.guest.kernel not in guests.BUILT_IN or patient.guest.initrd is not None:
        # What prompt a kernel of somebody's own comes to, only a case knows. It is tried when one is run.
        yield Line("kvm", State.GOOD, f"{asked}there, and tried when a case boots a kernel of your own")
        return
    arguments = ("-nographic", "-m", "256M")
    spec = qemu.Spec(patient.arch, arguments, guest.rootfs, guest.kernel, guest.initrd, guest.append, network="none")
    memory = patient.store / "memory"
    prompt = f"root@{patient.guest.hostname}:"
    proof = accel.prove(spec, guest.digests["kernel"], prompt, memory if os.access(memory, os.W_OK) else Path(os.devnull))
    if proof.works:
        yield Line("kvm", State.GOOD, f"{asked}boots the guest to its prompt")
    else:
        yield Line("kvm", state, f"{asked}does not work: {proof.why}{consequence}", hint)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
