"""What the store keeps, how much of the disk it takes, and what of it goes when there is too much.

    item          what is kept and goes as a whole: an image, an overlay, a download, a guest, a guest's initramfs
    leftover      what is of no use to anybody: half-made things of killed processes, records of what is gone

Items go by age, by the size of the store and by what is free on its disk, least recently used first; downloads, and guests that
have to be fetched, go after all that can be made again without a network. What is in use never goes: an entry's readers hold its
own lock (see `qcase.store`), whoever boots a guest holds `guests.lock`, QEMU holds both, and whoever looks packages up holds the
lock of these until a step has them. A leftover goes only when its owner is gone, and that is told by the lock which it held,
never by a process id: ids are used again, and containers have their own.

A folder below the root that is a symbolic link is somebody else's and left alone. So is the folder of another format (`v0/`),
which does not count against the size either: it may not be touched, so all of ours would go for its sake, each time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from qcase import guests, locks, packages
from qcase.content import Kind, listed
from qcase.errors import InfraError
from qcase.store import Store

NOTES_KEPT = 180 * 86400.0  # seconds after which a note that can be had again is forgotten
LOCKS_KEPT = 86400.0
WRITING = 3600.0  # what is written under a hidden name gets its own within a moment
LARGEST_FLOOR = 0.1  # of the disk: on a small one a floor of gigabytes would leave nothing

GUEST = "guest"
INITRAMFS = "initramfs"
PACKAGE = "package"


@dataclass(frozen=True)
class Item:
    """`what` is "image", "overlay", "download", "guest" or "initramfs", `name` its key or its folder's name. `size` in bytes as
    the disk sees them, so holes do not count; `used` in seconds since 1970."""

    what: str
    name: str
    path: Path
    size: int
    used: float
    made_for: str = ""

    @property
    def short(self) -> str:
        return self.name[:12] if self.is_entry or self.what == PACKAGE else self.name

    @property
    def is_entry(self) -> bool:
        """Whether it is an entry of the store, and no guest."""
        return self.what in tuple(Kind)

    @property
    def is_fetched(self) -> bool:
        """Whether a network is needed to have it again."""
        return self.what in (Kind.DOWNLOAD, GUEST, PACKAGE)


@dataclass(frozen=True)
class Limits:
    """How big the store may be, how much of its disk has to stay free, and how long what nobody uses is kept. None: no limit."""

    max_size: int | None = None
    min_free: int = 0
    max_age: float | None = None


@dataclass(frozen=True)
class Gone:
    """An item that was taken away, or would be, and why."""

    item: Item
    why: str


@dataclass(frozen=True)
class Collected:
    """What a collection did. `size`: bytes that the store takes afterwards, less those of other formats; `busy`: what had to stay
    although it should go."""

    gone: tuple[Gone, ...]
    busy: tuple[Item, ...]
    size: int
    leftovers: int = 0

    @property
    def freed(self) -> int:
        return sum(gone.item.size for gone in self.gone)


@dataclass(frozen=True)
class Broken:
    """An item that is not what was stored. `repaired`: it was thrown away, and will be made anew when it is needed."""

    item: Item
    why: str
    repaired: bool = False


def items(store: Store) -> list[Item]:
    """All that the store keeps, in the order in which it would go."""
    found = [*_entries(store), *_guests(store), *_packages(store)]
    return sorted(found, key=lambda item: (item.is_fetched, item.used, item.name))


def disk_size(path: Path) -> int:
    """Bytes on the disk of a file, or of a folder with all that is in it: a file with two names counts once, a link as itself.

    What goes away meanwhile, or may not be seen, does not count.
    """
    total = 0
    pending = [os.fsencode(path)]
    seen: set[tuple[int, int]] = set()
    while pending:
        here = pending.pop()
        with contextlib.suppress(OSError):
            about = os.lstat(here)
            if about.st_nlink > 1 and not stat.S_ISDIR(about.st_mode):
                if (about.st_dev, about.st_ino) in seen:
                    continue
                seen.add((about.st_dev, about.st_ino))
            total += about.st_blocks * 512
            if stat.S_ISDIR(about.st_mode):
                with os.scandir(here) as inside:
                    pending += [item.path for item in inside]
    return total


def others(store: Store) -> list[Path]:
    """The folders of other formats, older or newer."""
    return [path for path in listed(store.root) if re.fullmatch("v[0-9]+", path.name) and path != store.base]


def _own_size(store: Store) -> int:
    """Bytes on the disk of what is ours."""
    return disk_size(store.root) - sum(disk_size(path) for path in others(store))


def collect(store: Store, limits: Limits, *, dry_run: bool = False, now: float | None = None) -> Collected:
    """Sweep leftovers, then take items away until the store keeps to its limits. `dry_run`: only say what would go."""
    moment = time.time() if now is None else now
    leftovers = 0 if dry_run else sweep(store, now=moment)
    kept = items(store)
    size = _own_size(store)
    free, floor = _free_and_floor(store.root, limits.min_free)
    gone: list[Gone] = []
    busy: list[Item] = []
    for item in kept:
        why = _why(item, size, free, floor, limits, moment)
        if not why:
            continue
        if _take(store, item, dry_run=dry_run):
            gone.append(Gone(item, why))
            size -= item.size
            free += item.size
        else:
            busy.append(item)
    return Collected(tuple(gone), tuple(busy), size if dry_run else _own_size(store), leftovers)


def clear(store: Store, *, everything: bool = False, dry_run: bool = False) -> Collected:
    """Take overlays and images away, with `everything` what was downloaded, the guests and the records of toolchain images too.

    Nothing goes that is in use.
    """
    leftovers = 0 if dry_run else sweep(store)
    if everything and not dry_run:
        leftovers += _sweep_hidden(store, time.time(), patience=60)  # a run that fetches just now goes on
    gone: list[Gone] = []
    busy: list[Item] = []
    for item in items(store):
        if (item.is_entry and not item.is_fetched) or everything:
            if _take(store, item, dry_run=dry_run):
                gone.append(Gone(item, "all of it"))
            else:
                busy.append(item)
    with ExitStack() as stack:
        if everything and not dry_run and _alone_with_images(store, stack):
            leftovers += sum(_forget(path) for path in listed(store.root / "images") if path.suffix in (".json", ".log"))
    return Collected(tuple(gone), tuple(busy), _own_size(store), leftovers)


def verify(store: Store, *, repair: bool = False) -> Iterator[tuple[Item, Broken | None]]:
    """Read everything in full, one item after the other, and throw what is broken away if it is to be repaired."""
    for item in items(store):
        if item.is_entry:
            why = store.verify(Kind(item.what), item.name)
            if why and not item.path.exists():
                continue  # somebody took it away meanwhile
        elif item.what == PACKAGE:
            why = packages.verify(item.path)
        else:
            why = guests.verify(item.path)
        if not why:
            yield item, None
        elif not repair:
            yield item, Broken(item, why)
        elif item.is_entry:
            yield item, Broken(item, why, store.remove(Kind(item.what), item.name, even_if_used=True))
        elif item.what == PACKAGE:
            with packages.unused(item.path.parent.parent) as free:  # let go before anybody hears of it, however long that takes
                repaired = free and bool(packages.verify(item.path)) and _forget(item.path)
            yield item, Broken(item, why, repaired)
        else:  # a guest is made anew by its next user, who finds out by itself once it may not trust its facts
            with store.take_guests() as free:
                yield item, Broken(item, why, free and store.trash(item.path))


# --- leftovers ----------------------------------------------------------------------------------------------------------


def sweep(store: Store, *, now: float | None = None) -> int:
    """Remove what is of no use to anybody any more. Returns how many things that were."""
    moment = time.time() if now is None else now
    swept = store.sweep() + sweep_unfinished(store, moment) + _sweep_hidden(store, moment)
    return swept + _sweep_records(store, moment) + _sweep_locks(store, moment)


def sweep_unfinished(store: Store, now: float | None = None) -> int:
    """Remove half-made guests and scratch folders of builders that are gone. Where there are none, it looks into two folders."""
    swept = 0
    now = time.time() if now is None else now
    for left in _hidden(store.root / "guests"):
        if match := re.fullmatch(r"\.staging-(.+)-[0-9a-f]{12}", left.name):
            swept += _with_lock(store.root / "locks" / f"guest-{match[1]}.lock", left)
    # A record may be written by someone who holds no lock; it takes a moment, not a day.
    if lefts := [path for path in _hidden(store.root / "images") if path.is_dir() or _older(path, now, LOCKS_KEPT)]:
        with ExitStack() as stack:
            if _alone_with_images(store, stack):
                swept += sum(_forget(left) for left in lefts)
    return swept


def _hidden(folder: Path) -> list[Path]:
    if folder.is_symlink():
        return []
    try:
        with os.scandir(folder) as found:
            return sorted(folder / item.name for item in found if item.name.startswith("."))
    except OSError:
        return []


def _sweep_hidden(store: Store, now: float, patience: float = WRITING) -> int:
    """Half-written files beside those that they would have become. Nobody holds a lock for them; it takes seconds, not hours."""
    folders = [store.root / "memory"]
    for above, names in ((store.root / "memory", ["accel"]), (store.root / "downloads", ["asked", "packages"])):
        folders += [] if above.is_symlink() else [above / name for name in names]
    above = store.root / "guests"
    folders += [] if above.is_symlink() else [path for path in listed(above) if path.is_dir()]
    return sum(_forget(path) for folder in folders for path in _hidden(folder) if _older(path, now, patience))


def _with_lock(path: Path, left: Path) -> bool:
    from filelock import FileLock

    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        if locks.try_lock(lock):
            try:
                return _forget(left)
            finally:
                lock.release()
    return False


def _alone_with_images(store: Store, stack: ExitStack) -> bool:
    """Hold the locks of all toolchain images, so that nobody builds one. False if somebody does, or they are not ours."""
    from filelock import FileLock

    folder = store.root / "images"
    if folder.is_symlink():
        return False
    for path in sorted({*folder.glob("*.lock"), folder / "base.lock"} if folder.is_dir() else ()):
        lock = FileLock(path)
        if not locks.try_lock(lock):
            return False
        stack.callback(lock.release)
    return True


def _sweep_records(store: Store, now: float) -> int:
    """Lists of packages that no record of an image points to; notes that nobody has asked for in a long time."""
    swept = 0
    folder = store.root / "images"
    records = [] if folder.is_symlink() else [path for path in listed(folder) if path.suffix == ".json"]
    content = [path for path in records if re.fullmatch("[0-9a-f]{64}", path.stem)]
    if content:
        known = set()
        for path in set(records) - set(content):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                known.add(json.loads(path.read_bytes())["image"].removeprefix("sha256:"))
        swept += sum(_forget(path) for path in content if path.stem not in known and _older(path, now, LOCKS_KEPT))
    own = store.root / "downloads"
    caches = sorted((own / "apk").glob("*"))
    for notes in (store.root / "memory", store.base / "last", store.base / "checked", own / "asked", *caches):
        if not notes.is_symlink():
            swept += sum(_forget(path) for path in listed(notes) if _older(path, now, NOTES_KEPT))
    return swept


def _sweep_locks(store: Store, now: float) -> int:
    """Locks of keys that are not stored. A builder who has just opened one finds that it is gone, and takes a new one.

    Not by filelock: to release a lock, some of its versions remove the file of that name, which may be another's by then.
    """
    swept = 0
    stored = {f"{kind}-{key}.lock" for kind, key, _ in store.entries()}
    for path in listed(store.base / "locks"):
        if path.suffix == ".lock" and path.name not in stored and _older(path, now, LOCKS_KEPT):
            with contextlib.suppress(OSError, InfraError):
                fd = locks.sole(path)
                if fd is not None:
                    swept += _forget(path)
                    _forget(path.with_suffix(".holder"))
                    os.close(fd)
    return swept


def _older(path: Path, now: float, seconds: float) -> bool:
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime < now - seconds
    return False


def _forget(path: Path) -> bool:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        return True
    return False


# --- items --------------------------------------------------------------------------------------------------------------


def _entries(store: Store) -> Iterator[Item]:
    for kind, key, folder in store.entries():
        manifest = store.manifest(kind, key)
        used = store.last_used(kind, key)
        made_for = manifest.made_for if manifest is not None else ""
        yield Item(kind.value, key, folder, disk_size(folder), used or 0.0, made_for)


def _guests(store: Store) -> Iterator[Item]:
    folder = store.root / "guests"
    if folder.is_symlink():
        return
    for path in listed(folder):
        with contextlib.suppress(OSError):
            what = INITRAMFS if path.name.startswith("initramfs-") else GUEST
            yield Item(what, path.name, path, disk_size(path), path.lstat().st_mtime)


def _packages(store: Store) -> Iterator[Item]:
    folder = store.root / "downloads" / "packages"
    for path in listed(folder):
        with contextlib.suppress(OSError):
            yield Item(PACKAGE, path.stem, path, disk_size(path), path.lstat().st_mtime)


def _free_and_floor(root: Path, floor: int) -> tuple[int, int]:
    about = os.statvfs(root)
    return about.f_bavail * about.f_frsize, min(floor, int(about.f_blocks * about.f_frsize * LARGEST_FLOOR))


def _why(item: Item, size: int, free: int, floor: int, limits: Limits, now: float) -> str:
    """Why an item has to go; empty if it may stay."""
    # A time from the future, after the clock was set back, counts as now.
    if limits.max_age is not None and now - min(item.used, now) > limits.max_age:
        return "not used for a long time"
    if limits.max_size is not None and size > limits.max_size:
        return "the store is too big"
    if free < floor:
        return "the disk is too full"
    return ""


def _take(store: Store, item: Item, *, dry_run: bool) -> bool:
    """Take an item away, or only say whether it could be. False if somebody uses it.

    Locks that others wait for are held for this one item: a collection may take minutes, and a run that starts meanwhile gives up
    after seconds.
    """
    if item.is_entry:
        kind = Kind(item.what)
        return not store.in_use(kind, item.name) if dry_run else store.remove(kind, item.name)
    if item.what == PACKAGE:
        with packages.unused(item.path.parent.parent, looking=dry_run) as free:
            return free and (dry_run or _forget(item.path))
    with store.take_guests() as free:
        return free and (dry_run or store.trash(item.path))
