"""Garbage collection of the store: its items, their disk usage, and their removal when limits are exceeded.

    item          is kept or removed as a whole: an image, an overlay, a download, a guest, a guest's initramfs
    leftover      is of no further use: unfinished files of killed processes, records of removed items

Items go by age, by the size of the store and by the free space on its disk, least recently used first; downloads, and guests that
have to be fetched, go after all items that can be made again without a network. An item in use never goes: an entry's readers
hold its own lock (see `qcase.store`), a process that boots a guest holds `guests.lock`, QEMU holds both, and a process that looks
packages up holds their lock until a step has them. A leftover goes only when its owner is gone. The lock that the owner held
shows that, never a process id: ids are used again, and containers have their own.

A folder below the root that is a symbolic link belongs to others and is left alone. So is the folder of another format (`v0/`),
which does not count against the size either: it may not be touched, so every collection would remove all other items for its
sake.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qcase.host.files import listed
from qcase.store.leftovers import disk_size as disk_size
from qcase.store.leftovers import sweep_hidden, sweep_notes
from qcase.store.shelves import COMMIT as COMMIT
from qcase.store.shelves import CRATE as CRATE
from qcase.store.shelves import GUEST as GUEST
from qcase.store.shelves import INITRAMFS as INITRAMFS
from qcase.store.shelves import PACKAGE as PACKAGE
from qcase.store.shelves import WRITING, Guests, ImageRecords, Item, Shelf, shelves
from qcase.store.shelves import Proof as Proof
from qcase.store.store import Store

LARGEST_FLOOR = 0.1  # of the disk: on a small one a floor of gigabytes would leave nothing


@dataclass(frozen=True)
class Limits:
    """Limits of the store: its size, the free space on its disk, and the age of unused items. None: no limit."""

    max_size: int | None = None
    min_free: int = 0
    max_age: float | None = None


@dataclass(frozen=True)
class Gone:
    """An item that was removed, or would be, and the reason."""

    item: Item
    why: str


@dataclass(frozen=True)
class Collected:
    """Result of a collection.

    `size`: bytes that the store takes afterwards, less those of other formats; `busy`: items in use that should have been
    removed.
    """

    gone: tuple[Gone, ...]
    busy: tuple[Item, ...]
    size: int
    leftovers: int = 0

    @property
    def freed(self) -> int:
        return sum(gone.item.size for gone in self.gone)


@dataclass(frozen=True)
class Broken:
    """An item that differs from its stored state. `repaired`: it was removed, and will be made anew when it is needed."""

    item: Item
    why: str
    repaired: bool = False


def items(store: Store) -> list[Item]:
    """List all items of the store, in the order of their removal."""
    found = [item for shelf in _distinct(shelves(store)) for item in shelf.items()]
    return sorted(found, key=lambda item: (item.is_fetched, item.used, item.name))


def _distinct(by_kind: Mapping[str, Shelf]) -> list[Shelf]:
    return list(dict.fromkeys(by_kind.values()))


def others(store: Store) -> list[Path]:
    """List the folders of other formats, older or newer."""
    return [path for path in listed(store.root) if re.fullmatch("v[0-9]+", path.name) and path != store.base]


def _own_size(store: Store) -> int:
    """Return the disk usage of this format's files, in bytes."""
    return disk_size(store.root) - sum(disk_size(path) for path in others(store))


def collect(store: Store, limits: Limits, *, dry_run: bool = False, now: float | None = None) -> Collected:
    """Sweep leftovers, then remove items until the store keeps to its limits. `dry_run`: only list them."""
    moment = time.time() if now is None else now
    leftovers = 0 if dry_run else sweep(store, now=moment)
    kept, on = items(store), shelves(store)
    size = _own_size(store)
    free, floor = _free_and_floor(store.root, limits.min_free)
    gone: list[Gone] = []
    busy: list[Item] = []
    for item in kept:
        why = _why(item, size, free, floor, limits, moment)
        if not why:
            continue
        if on[item.what].take(item, dry_run=dry_run):
            gone.append(Gone(item, why))
            size -= item.size
            free += item.size
        else:
            busy.append(item)
    return Collected(tuple(gone), tuple(busy), size if dry_run else _own_size(store), leftovers)


def clear(store: Store, *, everything: bool = False, dry_run: bool = False) -> Collected:
    """Remove overlays and images; with `everything`, downloads, guests and the records of toolchain images too.

    Items in use stay.
    """
    patience = 60 if everything else WRITING  # a run that is fetching continues
    leftovers = 0 if dry_run else sweep(store, patience=patience)
    on = shelves(store)
    gone: list[Gone] = []
    busy: list[Item] = []
    for item in items(store):
        if (item.is_entry and not item.is_fetched) or everything:
            if on[item.what].take(item, dry_run=dry_run):
                gone.append(Gone(item, "all of it"))
            else:
                busy.append(item)
    if everything and not dry_run:
        leftovers += ImageRecords(store).clear()
    return Collected(tuple(gone), tuple(busy), _own_size(store), leftovers)


def verify(store: Store, proofs: Mapping[str, Proof], *, repair: bool = False) -> Iterator[tuple[Item, Broken | None]]:
    """Read every item in full, and yield it with its fault. With repair, broken items are removed.

    `proofs`: by kind of download, where it is not the SHA-256 of the file.
    """
    on = shelves(store, proofs)
    for item in items(store):
        why = on[item.what].verify(item)
        if why and item.is_entry and not item.path.exists():
            continue  # another process removed it meanwhile
        yield item, Broken(item, why, repair and on[item.what].repair(item)) if why else None


# --- leftovers ----------------------------------------------------------------------------------------------------------


def sweep(store: Store, *, now: float | None = None, patience: float = WRITING) -> int:
    """Remove leftovers, also files that have been half-written for `patience` seconds. Returns their number."""
    moment = time.time() if now is None else now
    swept = sum(shelf.sweep(moment, patience) for shelf in _distinct(shelves(store)))
    return swept + _sweep_memory(store, moment, patience)


def sweep_unfinished(store: Store, now: float | None = None) -> int:
    """Remove half-made guests and scratch folders of dead builders. Where there are none, it reads two folders."""
    return Guests(store).sweep_half_made() + ImageRecords(store).sweep_unfinished(time.time() if now is None else now)


def _sweep_memory(store: Store, now: float, patience: float) -> int:
    """Remove unfinished and long unused notes about files of the host."""
    memory = store.root / "memory"
    folders = [memory, *([] if memory.is_symlink() else [memory / "accel"])]
    return sum(sweep_hidden(folder, now, patience) for folder in folders) + sweep_notes(memory, now)


# --- limits -------------------------------------------------------------------------------------------------------------


def _free_and_floor(root: Path, floor: int) -> tuple[int, int]:
    about = os.statvfs(root)
    return about.f_bavail * about.f_frsize, min(floor, int(about.f_blocks * about.f_frsize * LARGEST_FLOOR))


def _why(item: Item, size: int, free: int, floor: int, limits: Limits, now: float) -> str:
    """Return the reason for removing an item; empty if it may stay."""
    # A time from the future, after the clock was set back, counts as now.
    if limits.max_age is not None and now - min(item.used, now) > limits.max_age:
        return "not used for a long time"
    if limits.max_size is not None and size > limits.max_size:
        return "the store is too big"
    if free < floor:
        return "the disk is too full"
    return ""
