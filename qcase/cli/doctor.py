"""`qcase doctor`: check whether `qcase run` would work here, and advise if not. Nothing is fetched, built or removed.

    Line(what, state, says, hint)      good; warning: works, with a limitation; bad: `run` would not work

A line is bad only if a run needs the missing thing. Cases of the pipeline `plain` need no container engine, so for a suite of
those alone a missing engine is a warning. Anything that a run would fetch or build by itself is a warning too, if it is
available: doctor asks the package index for the guest, the mirror for Debian. An architecture that the user did not ask for is
examined if the suite has cases for it, and is never bad.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qcase import __version__
from qcase.arch import Arch
from qcase.cli.doctor_engine import engine_lines
from qcase.cli.doctor_lines import ABSENT, PATIENCE, UNBUILT, Line, State, Subject, bad_line, guarded, version_of
from qcase.config.fields import parse_size
from qcase.config.workspace_file import WorkspaceConfig, is_guest
from qcase.errors import InfraError, QcaseError, UsageError
from qcase.guests.guest import obstacle
from qcase.host import locks, process
from qcase.prepare.session import Session
from qcase.store import collect
from qcase.store.store import Store
from qcase.suite import catalogue, discover
from qcase.suite.cases import Case, Workspace
from qcase.text import size
from qcase.vm import accelerator, firmware, machine
from qcase.vm.arguments import MachineSpec

if TYPE_CHECKING:
    pass


DOCTOR_FORMAT = 1  # of `qcase doctor --json`

_OLDEST_QEMU = (7, 2)
_ROOM = 5 << 30  # bytes free below which a store fills soon: an image takes some 50 MiB, the toolchain images 2 GiB


def examine(workspace: Path | None, arch: Arch, store: Path) -> Iterator[Line]:
    """Run all checks one after the other. `workspace`: the folder to start the search from, None for the current one."""
    yield _program()
    subject = Subject(None, arch, store)
    for line, found in _workspace(workspace or Path.cwd(), subject):
        subject = found
        yield line
    checks: list[tuple[str, Callable[[Subject], Iterator[Line]]]] = [
        ("store", _store),
        ("engine", engine_lines),
        (f"qemu {arch}", partial(_qemu, arch=arch)),
        (f"guest {arch}", partial(_guest, arch=arch)),
        ("firmware", _firmware),
        ("kvm", _kvm),
    ]
    asked = False
    for what, check in checks:
        for line in guarded(what, check, subject):
            asked |= line.says.startswith((ABSENT, UNBUILT)) or line.what == "mirror"
            yield line
    if not asked:
        says = "not asked: guest and images are here; packages and crates are fetched when a case first needs them"
        yield Line("registries", State.GOOD, says)
    for other in subject.others:
        lines = [*guarded(f"qemu {other}", partial(_qemu, arch=other), subject)]
        lines += guarded(f"guest {other}", partial(_guest, arch=other), subject)
        for line in lines:
            yield replace(line, state=State.WARNING) if line.state is State.BAD else line


def works(lines: Sequence[Line]) -> bool:
    return all(line.state is not State.BAD for line in lines)


def document(lines: Sequence[Line], arch: Arch) -> dict[str, object]:
    """Return the lines as JSON for `qcase doctor --json`."""
    rows = [{"what": one.what, "state": one.state.value, "says": one.says, "hint": one.hint or None} for one in lines]
    return {"format": DOCTOR_FORMAT, "arch": arch.value, "works": works(lines), "lines": rows}


# ---- this machine


def _program() -> Line:
    python = platform.python_version()
    return Line("qcase", State.GOOD, f"{__version__}, Python {python}, {platform.system()} {platform.machine()}")


def _workspace(start: Path, subject: Subject) -> Iterator[tuple[Line, Subject]]:
    try:
        opened = Workspace.open(start)
    except QcaseError as error:
        yield bad_line("workspace", error), subject
        return
    subject = replace(subject, workspace=opened)
    try:
        found = discover.discover(opened, subject.arch, subject.arch.default_target)
        everything = catalogue.catalogue(opened, found.groups)
    except QcaseError as error:
        yield bad_line("workspace", error), subject
        return
    cases = tuple(case for case in found.cases if isinstance(case, Case))
    broken = len(found.cases) - len(cases)
    entries = [entry for group in everything.groups.values() for entry in group]
    others = [arch for arch in Arch if arch is not subject.arch and any(arch in entry.cases for entry in entries)]
    subject = replace(subject, cases=cases, others=tuple(others))
    count = f"{len(cases)} case{'' if len(cases) == 1 else 's'}"
    said = f"{opened.root}: {count} on {subject.arch} in {found.scope}"
    if broken:
        line = Line("workspace", State.WARNING, f"{said}, and {broken} that are broken", "`qcase lint` says what is wrong")
    elif not cases:
        known = f"there are cases for {', '.join(others)}" if others else "`qcase new hello --pipeline plain` makes one"
        line = Line("workspace", State.BAD, said, known)
    else:
        line = Line("workspace", State.GOOD, said)
    yield line, subject
    target = opened.root / "target"
    there = next(path for path in (target, *target.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        hint = "run folders and logs go to target/: give yourself the right to write there"
        yield Line("workspace", State.BAD, f"{there} cannot be written to", hint), subject


def _store(subject: Subject) -> Iterator[Line]:
    root = subject.store
    there = next(path for path in (root, *root.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        hint = f"set {locks.CACHE_DIR_VARIABLE} to a folder that is yours, or take --cache-dir"
        yield Line("store", State.BAD, f"{there} is no folder that can be written to", hint)
        return
    if reason := _lock_trouble(there):
        yield reason
        return
    cache = subject.config.cache
    items = collect.items(Store(root, readonly=True)) if root.is_dir() else []
    taken = sum(item.size for item in items)
    free = shutil.disk_usage(there).free
    said = f"{root}: {size(taken)} of {cache.max_size}, {size(free)} free on its disk"
    if free < parse_size(cache.min_free):
        hint = f"make room: `qcase cache gc --max-size '1 GiB'`, or set {locks.CACHE_DIR_VARIABLE} to a larger disk"
        yield Line("store", State.BAD, f"{said}, less than [cache] min_free = {cache.min_free}", hint)
    elif free < _ROOM:
        yield Line("store", State.WARNING, said, "it is soon full; `qcase cache gc` makes room")
    else:
        yield Line("store", State.GOOD, said)


def _lock_trouble(folder: Path) -> Line | None:
    """Try a file lock and return the fault: some network file systems have no locks."""
    import fcntl
    import tempfile

    with tempfile.NamedTemporaryFile(prefix=".qcase-doctor-", dir=folder) as file:
        try:
            locks.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB, folder)
        except InfraError as error:
            return bad_line("store", error)
    return None


# ---- QEMU and guests


def _qemu(_: Subject, arch: Arch) -> Iterator[Line]:
    what = f"qemu {arch}"
    try:
        said = process.run([arch.qemu, "--version"], timeout=PATIENCE, hint=arch.install_hint).output
    except InfraError as error:
        yield bad_line(what, error)
        return
    version = re.search(r"version (\d+(?:\.\d+)+)", said)
    path = shutil.which(arch.qemu) or arch.qemu
    if version is None:
        yield Line(what, State.WARNING, f"{path} does not say its version: {said.splitlines()[0] if said else 'nothing'}")
    elif version_of(version[1]) < _OLDEST_QEMU:
        yield Line(what, State.WARNING, f"{version[1]} at {path}", "the oldest that is known to work is 7.2")
    else:
        yield Line(what, State.GOOD, f"{version[1]} at {path}")


def _guest(subject: Subject, arch: Arch) -> Iterator[Line]:
    what = f"guest {arch}"
    workspace = subject.workspace or Workspace(Path.cwd(), WorkspaceConfig())
    looked = Store(subject.store, readonly=True)
    try:
        with Session(workspace, arch, arch.default_target, looked, lambda _: None, read_only_inspection=True) as session:
            guest = session.guest
    except InfraError:
        yield from guarded(what, lambda _: _fetchable(what, subject, arch), subject)
        return
    except UsageError as error:
        yield bad_line(what, error)
        return
    missing = [path for path in (guest.rootfs, guest.kernel, guest.initrd) if path is not None and not path.is_file()]
    if missing:
        yield Line(what, State.BAD, f"there is no file {missing[0]}", f"[guest.{arch}] in qcase.toml names it")
    else:
        ours = guest.rootfs.is_relative_to(subject.store)
        yield Line(what, State.GOOD, guest.name if ours else f"{workspace.relative(guest.rootfs)}, {guest.name}")


def _fetchable(what: str, subject: Subject, arch: Arch) -> Iterator[Line]:
    """Report whether a run could get a guest that is not in the store."""
    trouble = obstacle(subject.config.guest[arch].rootfs, arch, subject.store)
    if trouble is None:
        yield Line(what, State.WARNING, f"{ABSENT}; nothing is known to be in the way", "the first run fetches or makes it")
    else:
        yield Line(what, State.BAD, f"{ABSENT}, and cannot be had: {trouble.what}", trouble.hint)


def _firmware(subject: Subject) -> Iterator[Line]:
    """Report the UEFI firmware, if a case boots with it."""
    if not any(case.config.uefi for case in subject.cases):
        return
    firmware.check_qemu(subject.arch, machine.version(subject.arch))
    named = subject.guest.firmware
    if named is None:
        found = firmware.find(subject.arch, dict(os.environ))
    else:
        root = subject.workspace.root if subject.workspace else Path.cwd()
        variables = subject.guest.firmware_vars
        found = firmware.named(root / named, root / variables if variables else None, subject.arch)
    yield Line("firmware", State.GOOD, str(found.code))


def _kvm(subject: Subject) -> Iterator[Line]:
    """Try KVM with the guest itself: a KVM that opens, and even runs the firmware, can still hang a kernel."""
    wanted = subject.config.run.accel
    state = {"kvm": State.BAD, "auto": State.WARNING}.get(wanted, State.GOOD)
    asked = "" if wanted in ("kvm", "auto") else 'not asked for by [run] accel = "tcg"; '
    consequence = "; TCG is used" if wanted == "auto" else ""
    hint = 'accel = "auto" or "tcg" does without' if wanted == "kvm" else ""
    if why := accelerator.obstacle(subject.arch):
        yield Line("kvm", state, f"{asked}{why}{consequence}", hint)
        return
    workspace = subject.workspace or Workspace(Path.cwd(), WorkspaceConfig())
    looked = Store(subject.store, readonly=True)
    with Session(
        workspace, subject.arch, subject.arch.default_target, looked, lambda _: None, read_only_inspection=True
    ) as session:
        try:
            guest = session.guest
        except QcaseError:
            yield Line("kvm", State.GOOD, f"{asked}there, and not tried: the guest is not here yet")
            return
    if guest.kernel is None or not is_guest(subject.guest.kernel) or subject.guest.initrd is not None:
        # Only a case knows the prompt of the user's own kernel. The kernel is tried when a case runs.
        yield Line("kvm", State.GOOD, f"{asked}there, and tried when a case boots a kernel of your own")
        return
    arguments = ("-nographic", "-m", "256M")
    spec = MachineSpec(subject.arch, arguments, guest.rootfs, guest.kernel, guest.initrd, guest.append, network="none")
    memory = subject.store / "memory"
    prompt = f"root@{subject.guest.hostname}:"
    proof = accelerator.prove(spec, guest.digests["kernel"], prompt, memory if os.access(memory, os.W_OK) else Path(os.devnull))
    if proof.works:
        yield Line("kvm", State.GOOD, f"{asked}boots the guest to its prompt")
    else:
        yield Line("kvm", state, f"{asked}does not work: {proof.why}{consequence}", hint)
