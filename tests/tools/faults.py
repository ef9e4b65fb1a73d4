"""Break the store at every step, and see what is left.

    python -m tests.tools.faults FOLDER [SCENARIO…] [--fault kill] [--sample N] [--seed S]

A scenario (store an overlay, replace a broken image, collect, make a guest …) runs in a child that counts its calls into the
system: every open, write, flush, rename, lock and so on, seen by a profile function right before they happen. At the chosen one
the child kills itself with KILL, or the call fails with an error of the system's. Then the parent looks:

  - the store opens, and an entry that it serves is, byte for byte, what was built;
  - an entry that can be seen was flushed, all of it, before it could be seen: it survives a power cut;
  - the next run completes, and after it nothing is left in `staging/`;
  - with an error in place of death: the child ends with a right entry, or with one clear message.

Guests, packages and kernels are kept in other ways than entries are, and looked at in their own: what is served is whole, the
next use completes, and the one after that makes nothing. Of these, calls that change nothing are no points: to be killed before
one is to be killed before the next one that does.

One child for each point, and each point in a store of its own.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from qcase.errors import BuildError, InfraError, QcaseError
from qcase.guests import kernel_copies, kernel_files
from qcase.guests.packages.downloads import Downloads
from qcase.guests.packages.lock import Package
from qcase.host.crash_cleanup import remove_tree
from qcase.host.trees import Tree
from qcase.store import collect, file_set, keys
from qcase.store.content import Kind
from qcase.store.store import Store

KEY = keys.key({"case": "faulty"})
OTHER = keys.key({"case": "other"})
MADE_FOR = "normal/faulty x86_64"

# Calls that can fail where the disk is full or may not be written to.
WRITING = {"open", "mkdir", "write", "rename", "fsync", "fchmod", "chmod", "utime", "flush", "unlink", "rmdir", "ftruncate"}
WRITING |= {"replace", "sendfile"}


def build_image(path: Tree) -> None:
    fd = os.open(path.host, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for number in range(4):
        os.write(fd, bytes([number]) * 20000)
    os.ftruncate(fd, 300000)
    os.close(fd)


def build_overlay(path: Tree) -> None:
    (path / "usr/bin").mkdir(parents=True)
    for name in ("one", "two"):
        (path / "usr/bin" / name).write_bytes(name.encode() * 1000)
        (path / "usr/bin" / name).chmod(0o755)
    (path / "usr/bin/link").symlink_to("one")
    (path / "secret").mkdir(mode=0o700)


BUILDS = {Kind.IMAGE: build_image, Kind.OVERLAY: build_overlay, Kind.DOWNLOAD: build_overlay}


@dataclass(frozen=True)
class Scenario:
    """What is there before, what the child does, and of which kind the entry is that all is about.

    `check`: looks at what is no entry. It is given the inodes that were flushed, where all that can be seen has to be.
    """

    kind: Kind
    before: Callable[[Path], None]
    act: Callable[[Path], None]
    check: Callable[[Path, set[int] | None], None] | None = None
    fresh: bool = False

    @property
    def is_fresh(self) -> bool:
        """Whether nothing is there before of what all is about."""
        return self.fresh or self.before is _nothing


def _get(root: Path, kind: Kind, key: keys.Key = KEY) -> None:
    def build(path: Tree) -> None:
        try:
            BUILDS[kind](path)
        except OSError as error:  # as a pipeline says it
            raise InfraError("cannot build") from error

    with Store(root).get_or_build(kind, key, build, scratch=root.parent / "run", made_for=MADE_FOR) as entry:
        watching = sys.getprofile()
        sys.setprofile(None)  # how the test looks at it is none of the store's points
        if not same(kind, entry.content.host):
            raise AssertionError("got something else than was built")
        sys.setprofile(watching)


def _nothing(root: Path) -> None:
    """Not even a store."""


def _stored(kind: Kind) -> Callable[[Path], None]:
    return lambda root: _get(root, kind)


def _broken(kind: Kind) -> Callable[[Path], None]:
    def before(root: Path) -> None:
        _get(root, kind)
        content = Store(root).folder(kind, KEY.digest) / kind.content
        file = content if kind is Kind.IMAGE else content / "usr/bin/one"
        file.chmod(0o644)
        os.truncate(file, 10)

    return before


def _edited(root: Path) -> None:
    """An image that is whole, but looks as if it were not: it is read in full."""
    _get(root, Kind.IMAGE)
    os.utime(Store(root).folder(Kind.IMAGE, KEY.digest) / "image.img", (1, 1))


def _leftovers(root: Path) -> None:
    _get(root, Kind.OVERLAY, OTHER)
    staged = root / "v2/staging/overlay-left-1-abc"
    staged.mkdir()
    build_overlay(Tree(staged))
    (root / "v2/staging/overlay-left-1-abc.lock").touch()


def _remove(kind: Kind) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        Store(root).remove(kind, KEY.digest)

    return act


def _collect(root: Path) -> None:
    collect.collect(Store(root), collect.Limits(max_size=1))


def _verify(root: Path) -> None:
    for _ in collect.verify(Store(root), {}, repair=True):
        pass


SCENARIOS = {
    "store an overlay": Scenario(Kind.OVERLAY, _nothing, _stored(Kind.OVERLAY)),
    "store an image": Scenario(Kind.IMAGE, _nothing, _stored(Kind.IMAGE)),
    "store beside another": Scenario(Kind.IMAGE, lambda root: _get(root, Kind.IMAGE, OTHER), _stored(Kind.IMAGE)),
    "use an overlay": Scenario(Kind.OVERLAY, _stored(Kind.OVERLAY), _stored(Kind.OVERLAY)),
    "use an image that looks edited": Scenario(Kind.IMAGE, _edited, _stored(Kind.IMAGE)),
    "replace a broken overlay": Scenario(Kind.OVERLAY, _broken(Kind.OVERLAY), _stored(Kind.OVERLAY)),
    "replace a broken image": Scenario(Kind.IMAGE, _broken(Kind.IMAGE), _stored(Kind.IMAGE)),
    "remove an overlay": Scenario(Kind.OVERLAY, _stored(Kind.OVERLAY), _remove(Kind.OVERLAY)),
    "collect": Scenario(Kind.IMAGE, _stored(Kind.IMAGE), _collect),
    "sweep and store": Scenario(Kind.OVERLAY, _leftovers, _stored(Kind.OVERLAY)),
    "verify and repair": Scenario(Kind.OVERLAY, _broken(Kind.OVERLAY), _verify),
}


# --- beside the entries ---------------------------------------------------------------------------------------------------

GUEST = {"rootfs.img": b"root" * 5000, "kernel": b"kernel" * 5000}
CONTENT = b"content" * 5000
PACKAGE = Package("tally", "1-r0", "x86_64", hashlib.sha256(CONTENT).hexdigest())


@dataclass
class _Maker:
    """Makes things, and counts how often."""

    made: int = 0

    def guest(self, staged: Path) -> None:
        self.made += 1
        for name, content in GUEST.items():
            (staged / name).write_bytes(content)

    def file(self, staged: Path) -> None:
        self.made += 1
        staged.write_bytes(CONTENT)


def _guest(root: Path) -> file_set.FileSet:
    return file_set.FileSet(root, "guest-1", tuple(GUEST))


def _esp(root: Path) -> Path:
    return root / "kernels" / PACKAGE.sha256 / "esp.img"


def _make_guest(root: Path) -> None:
    _guest(root).use(_Maker().guest, lambda _: None)


def _take_package(root: Path) -> None:
    Downloads(root / "downloads").take(root / "got", PACKAGE)


def _take_kernel(root: Path) -> None:
    kernel_copies.take(root / "got", root / "kernels")


def _keep_esp(root: Path) -> None:
    kernel_copies.keep(_esp(root), _Maker().file, lambda _: None)


def _got(root: Path) -> None:
    """What is to be taken into the store."""
    (root / "kernels").mkdir(parents=True)
    (root / "got").write_bytes(CONTENT)


def _spoilt(act: Callable[[Path], None], name: str) -> Callable[[Path], None]:
    def before(root: Path) -> None:
        _got(root)
        act(root)
        for path in root.glob(name):
            path.chmod(0o644)
            os.truncate(path, 10)

    return before


def _looks_edited(root: Path) -> None:
    _make_guest(root)
    os.utime(_guest(root).folder / "kernel", (1, 1))


def _flushed_all(paths: Sequence[Path], flushed: set[int] | None) -> None:
    lost = [str(path) for path in paths if path.exists() and flushed is not None and path.lstat().st_ino not in flushed]
    if lost:
        raise ViolatedError(f"could be seen before it was flushed: {lost}")


def _expect_left(folder: Path, names: set[str]) -> None:
    if left := {path.name for path in folder.iterdir()} - names:
        raise ViolatedError(f"left in {folder}: {sorted(left)}")


def _check_guest(root: Path, flushed: set[int] | None) -> None:
    entry, maker = _guest(root), _Maker()
    if (entry.folder / "manifest.json").exists():
        _flushed_all(list(_all(entry.folder)), flushed)
    for _ in range(2):
        entry.use(maker.guest, lambda _: None)
        if {name: (entry.folder / name).read_bytes() for name in GUEST} != GUEST:
            raise ViolatedError("serves a broken guest")
        if maker.made > 1:
            raise ViolatedError("it is made again at each use")
    collect.sweep_unfinished(Store(root))
    _expect_left(entry.folder.parent, {entry.name})
    _expect_left(entry.folder, {*GUEST, "manifest.json"})


def _check_package(root: Path, flushed: set[int] | None) -> None:
    downloads = Downloads(root / "downloads")
    path = downloads.path(PACKAGE)
    _flushed_all([path], flushed)
    if downloads.has(PACKAGE) and path.read_bytes() != CONTENT:
        raise ViolatedError("serves a broken package")
    if not downloads.has(PACKAGE):
        _take_package(root)
    if not downloads.has(PACKAGE) or path.read_bytes() != CONTENT:
        raise ViolatedError("the next run stores nothing")


def _check_kernel(root: Path, flushed: set[int] | None) -> None:
    path = root / "kernels" / PACKAGE.sha256 / "got"
    _flushed_all([path], flushed)
    if kernel_copies.is_whole(kernel_files.Kernel(path, PACKAGE.sha256)) and path.read_bytes() != CONTENT:
        raise ViolatedError("serves a broken kernel")
    kernel = kernel_copies.take(root / "got", root / "kernels")
    if not kernel_copies.is_whole(kernel) or kernel.path.read_bytes() != CONTENT:
        raise ViolatedError("the next run serves a broken kernel")
    _expect_left(root / "kernels", {PACKAGE.sha256})


def _check_esp(root: Path, flushed: set[int] | None) -> None:
    target, maker = _esp(root), _Maker()
    _flushed_all([target], flushed)
    for _ in range(2):
        kernel_copies.keep(target, maker.file, lambda _: None)
        if target.read_bytes() != CONTENT:
            raise ViolatedError("serves a broken file")
        if maker.made > 1:
            raise ViolatedError("it is made again at each use")
    if left := [path.name for path in target.parent.glob(".making-*")]:
        raise ViolatedError(f"left: {left}")


def _beside(
    before: Callable[[Path], None], act: Callable[[Path], None], check: Callable[[Path, set[int] | None], None], fresh: bool
) -> Scenario:
    return Scenario(Kind.DOWNLOAD, before, act, check, fresh)


BESIDE = {
    "make a guest": _beside(_nothing, _make_guest, _check_guest, True),
    "make a broken guest anew": _beside(_spoilt(_make_guest, "guests/*/kernel"), _make_guest, _check_guest, False),
    "use a guest that looks edited": _beside(_looks_edited, _make_guest, _check_guest, False),
    "take a package": _beside(_got, _take_package, _check_package, True),
    "take a package for a broken one": _beside(
        _spoilt(_take_package, "downloads/packages/*"), _take_package, _check_package, False
    ),
    "take a kernel": _beside(_got, _take_kernel, _check_kernel, True),
    "take a kernel for a broken one": _beside(_spoilt(_take_kernel, "kernels/*/got"), _take_kernel, _check_kernel, False),
    "keep an EFI disk": _beside(_got, _keep_esp, _check_esp, True),
    "make a broken EFI disk anew": _beside(_spoilt(_keep_esp, "kernels/*/esp.img"), _keep_esp, _check_esp, False),
}
SCENARIOS |= BESIDE

FAULTS = {"kill": 0, "full": errno.ENOSPC, "io": errno.EIO, "readonly": errno.EROFS, "denied": errno.EACCES}


class ViolatedError(AssertionError):
    """The store broke a promise."""


def sweep(
    folder: Path, scenario: str, fault: str = "kill", *, sample: int | None = None, chance: random.Random | None = None
) -> tuple[int, int]:
    """Break a scenario at all points, or at `sample` of them. Returns how many there are, and how many were tried.

    Raises `ViolatedError` with the scenario, the point and what was wrong.
    """
    plan = SCENARIOS[scenario]
    template = folder / "before" / "cache"
    template.parent.mkdir(parents=True)
    plan.before(template)
    total = _count(folder, plan, template, fault)
    points: Sequence[int] = range(1, total + 1)
    if sample is not None and sample < total:
        points = sorted((chance or random.Random(0)).sample(points, sample))
    for point in points:
        try:
            with _fresh(folder, template) as root:
                _one(root, plan, fault, point)
        except (AssertionError, QcaseError, OSError) as error:
            raise ViolatedError(f"{scenario}, {fault} at {point} of {total}: {error}") from error
    remove_tree(folder / "before")
    return total, len(points)


class _fresh:  # noqa: N801 - used like a function
    """A store as it is before, in a folder of its own."""

    def __init__(self, folder: Path, template: Path) -> None:
        self._place = folder / "now"
        self._template = template

    def __enter__(self) -> Path:
        self._place.mkdir()
        root = self._place / "cache"
        if self._template.exists():
            # Hard links would share the inodes that manifests tell apart; moved entries are read in full, as they should be.
            shutil.copytree(self._template, root, symlinks=True)
        return root

    def __exit__(self, *_: object) -> None:
        remove_tree(self._place)


def _count(folder: Path, plan: Scenario, template: Path, fault: str) -> int:
    with _fresh(folder, template) as root:
        status, points, _ = _child(plan, root, 0, fault)
        if status != 0:
            raise ViolatedError(f"it fails by itself, with status {status}")
        return points


def _one(root: Path, plan: Scenario, fault: str, point: int) -> None:
    status, passed, flushed = _child(plan, root, point, fault)
    # It waits for the clock to tick, now in more steps and now in fewer: then there is no such point, and nothing was broken.
    if fault == "kill" and status != -signal.SIGKILL and not (status == 0 and passed < point):
        raise ViolatedError(f"it was not killed but ended with status {status}")
    if fault != "kill" and status != 0:
        raise ViolatedError("it ended with something else than an entry or a message, see above")
    known = flushed if plan.is_fresh else None
    if plan.check is not None:
        plan.check(root, known)
    else:
        _check(root, plan.kind, known)


def _check(root: Path, kind: Kind, flushed: set[int] | None) -> None:
    """What must hold after any accident."""
    store = Store(root)
    folder = store.folder(kind, KEY.digest)
    if flushed is not None and (folder / "manifest.json").exists():
        lost = sorted(str(path.relative_to(folder)) for path in _all(folder) if path.lstat().st_ino not in flushed)
        if lost:
            raise ViolatedError(f"could be seen before it was flushed: {lost}")
    for found, key, _ in list(store.entries()):
        with store.reader(found, key) as entry:
            if entry is not None and not same(found, entry.content.host):
                raise ViolatedError(f"serves a broken {found}")
    _get(root, kind)
    with store.reader(kind, KEY.digest) as entry:
        if entry is None:
            raise ViolatedError("the next run stores nothing")
    store.sweep()
    for place in (root / "v2/staging", root.parent / "run"):
        if left := sorted(path.name for path in place.glob("*")):
            raise ViolatedError(f"left in {place}: {left}")
    if broken := [found for _, found in collect.verify(store, {}) if found is not None]:
        raise ViolatedError(f"a full reading finds {broken}")


def _all(folder: Path) -> Iterator[Path]:
    """Files and folders of an entry that have to be on the disk; a link is in its folder, and the lock is empty."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink() and path != folder / "lock":
            yield path


def same(kind: Kind, path: Path) -> bool:
    """Whether an entry holds what the builder makes."""
    if kind is Kind.IMAGE:
        return path.read_bytes() == b"".join(bytes([number]) * 20000 for number in range(4)) + bytes(220000)
    names = {"usr": "", "usr/bin": "", "usr/bin/one": "one", "usr/bin/two": "two", "usr/bin/link": "one", "secret": ""}
    found = {str(inner.relative_to(path)) for inner in path.rglob("*")}
    return found == set(names) and all((path / name).read_bytes() == text.encode() * 1000 for name, text in names.items() if text)


# --- the child ----------------------------------------------------------------------------------------------------------


def _child(plan: Scenario, root: Path, point: int, fault: str) -> tuple[int, int, set[int]]:
    """Fork, run a scenario, break it at `point` (0: never). Its status, how many points it passed, inodes that it flushed."""
    shared = mmap.mmap(-1, 1 << 16)  # outlives a kill: [points, flushed, inode, inode, …]
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            status = _run(plan, root, point, fault, shared)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, waited = os.waitpid(pid, 0)
    points, count = struct.unpack_from("QQ", shared)
    flushed = set(struct.unpack_from(f"{count}Q", shared, 16))
    return os.waitstatus_to_exitcode(waited), points, flushed


def _run(plan: Scenario, root: Path, point: int, fault: str, shared: mmap.mmap) -> int:
    number = FAULTS[fault]
    narrow = number or plan.check is not None
    passed = flushed = 0
    fsync = os.fsync

    def noted_fsync(fd: Any) -> None:
        nonlocal flushed
        fsync(fd)
        struct.pack_into("Q", shared, 16 + 8 * flushed, os.fstat(fd).st_ino)
        flushed += 1
        struct.pack_into("Q", shared, 8, flushed)

    def before_each_call(frame: FrameType, event: str, function: Any) -> None:
        nonlocal passed
        if event != "c_call" or not _reaches_the_system(function) or (narrow and function.__name__ not in WRITING):
            return
        passed += 1
        struct.pack_into("Q", shared, 0, passed)
        if passed == point:
            if not number:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(number, os.strerror(number))

    os.fsync = noted_fsync
    sys.setprofile(before_each_call)
    try:
        plan.act(root)
    except InfraError:
        return 0  # one clear message
    except BuildError:
        if fault != "denied":  # an overlay with a file that its owner may not read is the case's own fault
            raise
    finally:
        sys.setprofile(None)
    return 0


def _reaches_the_system(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    module = getattr(function, "__module__", None) or type(owner).__module__
    return module in ("posix", "fcntl", "_io", "io") or (owner is not None and type(owner).__module__ == "_io")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS))
    parser.add_argument("--fault", action="append", choices=list(FAULTS))
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    everything = 0
    for fault in options.fault or ["kill"]:
        for scenario in options.scenarios:
            options.folder.mkdir(parents=True, exist_ok=True)
            total, tried = sweep(options.folder, scenario, fault, sample=options.sample, chance=chance)
            everything += tried
            print(f"{fault:<9} {scenario:<32} {tried:>5} of {total} points", flush=True)
    print(f"{everything} points, seed {options.seed}")


if __name__ == "__main__":
    main()
