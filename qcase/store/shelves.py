"""Shelves of the store: entries, guests, downloads and records of images, each listed, removed, verified and swept in its way.

The collector knows nothing of a shelf but the protocol `Shelf`.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qcase import parsing
from qcase.errors import InfraError
from qcase.host import file_state, locks
from qcase.host.files import listed
from qcase.store import file_set, leases
from qcase.store.content import Kind
from qcase.store.leftovers import LOCKS_KEPT, disk_size, forget, hidden, older, sweep_hidden, sweep_notes
from qcase.store.store import Store

WRITING = 3600.0  # a file is renamed from its hidden name within a moment

GUEST = "guest"
INITRAMFS = "initramfs"
PACKAGE = "package"
CRATE = "crate"
COMMIT = "commit"
RECORD = "image record"

Proof = Callable[[Path], str]  # from a downloaded file to the digest that its content has

_POOLED = {PACKAGE: "packages", CRATE: "crates", COMMIT: "git"}  # folders of downloads, whose files have their digests as names


@dataclass(frozen=True)
class Item:
    """An item of the store.

    `what` is "image", "overlay", "download", "guest", "initramfs", "package", "crate" or "commit", `name` its key or its folder's
    name. `size` in bytes of disk usage, so holes do not count; `used` in seconds since 1970.
    """

    what: str
    name: str
    path: Path
    size: int
    used: float
    made_for: str = ""

    @property
    def short(self) -> str:
        return self.name[:12] if self.is_entry or self.what in _POOLED else self.name

    @property
    def is_entry(self) -> bool:
        """Tell whether the item is an entry of the store, not a guest."""
        return self.what in tuple(Kind)

    @property
    def is_fetched(self) -> bool:
        """Tell whether a network is needed to get the item again."""
        return self.what in (Kind.DOWNLOAD, GUEST, *_POOLED)


class Shelf(Protocol):
    """One kind of items of a store. No method waits for a lock that others hold."""

    def items(self) -> Iterator[Item]:
        """Yield the items, in any order."""

    def take(self, item: Item, *, dry_run: bool) -> bool:
        """Remove an item, or with `dry_run` only tell whether it could be removed. False if it is in use."""

    def verify(self, item: Item) -> str:
        """Read an item in full and describe its fault; empty if it has none."""

    def repair(self, item: Item) -> bool:
        """Remove a broken item, so that its next user makes it anew. False if it has to stay."""

    def sweep(self, now: float, patience: float = WRITING) -> int:
        """Remove leftovers, and return their number. `patience`: seconds after which an unfinished file is one."""


def shelves(store: Store, proofs: Mapping[str, Proof] | None = None) -> dict[str, Shelf]:
    """Return the shelves of a store, by what their items are. `proofs`: see `Downloads`."""
    entries, guests, downloads = Entries(store), Guests(store), Downloads(store, proofs or {})
    pooled = dict.fromkeys(_POOLED, downloads)
    return {**dict.fromkeys(Kind, entries), GUEST: guests, INITRAMFS: guests, **pooled, RECORD: ImageRecords(store)}


class Entries:
    """Images, overlays and downloads under a key: see `qcase.store.store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def items(self) -> Iterator[Item]:
        for kind, key, folder in self._store.entries():
            manifest = self._store.manifest(kind, key)
            used = self._store.last_used(kind, key)
            made_for = manifest.made_for if manifest is not None else ""
            yield Item(kind.value, key, folder, disk_size(folder), used or 0.0, made_for)

    def take(self, item: Item, *, dry_run: bool) -> bool:
        kind = Kind(item.what)
        return not self._store.in_use(kind, item.name) if dry_run else self._store.remove(kind, item.name)

    def verify(self, item: Item) -> str:
        return self._store.verify(Kind(item.what), item.name)

    def repair(self, item: Item) -> bool:
        return self._store.remove(Kind(item.what), item.name, even_if_used=True)

    def sweep(self, now: float, patience: float = WRITING) -> int:  # noqa: ARG002 - locks tell
        swept = self._store.sweep() + self._sweep_locks(now)
        return swept + sum(sweep_notes(self._store.base / name, now) for name in ("last", "checked"))

    def _sweep_locks(self, now: float) -> int:
        """Remove locks of keys that are not stored. A builder that has just opened one detects the removal, and takes a new one.

        Not by filelock: to release a lock, some of its versions remove the file of that name, which may be another's by then.
        """
        swept = 0
        stored = {f"{kind}-{key}.lock" for kind, key, _ in self._store.entries()}
        for path in listed(self._store.base / "locks"):
            if path.suffix == ".lock" and path.name not in stored and older(path, now, LOCKS_KEPT):
                with contextlib.suppress(OSError, InfraError):
                    fd = locks.sole(path)
                    if fd is not None:
                        swept += forget(path)
                        forget(path.with_suffix(".holder"))
                        os.close(fd)
        return swept


class Guests:
    """Guests, and what is derived of them: sets of files with a name. A process that boots one holds `guests.lock`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder = store.root / "guests"

    def items(self) -> Iterator[Item]:
        if self._folder.is_symlink():
            return
        for path in listed(self._folder):
            with contextlib.suppress(OSError):
                what = INITRAMFS if path.name.startswith("initramfs-") else GUEST
                yield Item(what, path.name, path, disk_size(path), path.lstat().st_mtime)

    def take(self, item: Item, *, dry_run: bool) -> bool:
        with self._store.leases.take_guests() as free:
            return free and (dry_run or self._store.trash(item.path))

    def verify(self, item: Item) -> str:
        return file_set.verify(item.path)

    def repair(self, item: Item) -> bool:
        return self.take(item, dry_run=False)

    def sweep(self, now: float, patience: float = WRITING) -> int:
        folders = [] if self._folder.is_symlink() else [path for path in listed(self._folder) if path.is_dir()]
        return self.sweep_half_made() + sum(sweep_hidden(folder, now, patience) for folder in folders)

    def sweep_half_made(self) -> int:
        """Remove staged folders of dead makers."""
        swept = 0
        for left in hidden(self._folder):
            if match := re.fullmatch(r"\.staging-(.+)-[0-9a-f]{12}", left.name):
                swept += _with_lock(self._store.root / "locks" / f"guest-{match[1]}.lock", left)
        return swept


class Downloads:
    """Packages, crates and commits: files whose names are the digests of their content.

    `proofs`: by kind of download, the digest of its content, where it is not the SHA-256 of the file.
    """

    def __init__(self, store: Store, proofs: Mapping[str, Proof]) -> None:
        self._folder = store.root / "downloads"
        self._proofs = proofs

    def items(self) -> Iterator[Item]:
        for what, name in _POOLED.items():
            for path in listed(self._folder / name):
                with contextlib.suppress(OSError):
                    yield Item(what, path.stem, path, disk_size(path), path.lstat().st_mtime)

    def take(self, item: Item, *, dry_run: bool) -> bool:
        with leases.unused(item.path.parent.parent, looking=dry_run) as free:
            return free and (dry_run or forget(item.path))

    def verify(self, item: Item) -> str:
        try:
            if not stat.S_ISREG(item.path.lstat().st_mode):
                return "it is no file"
            digest = self._proofs.get(item.what, file_state.sha256)(item.path)
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        return "" if digest == item.path.stem else "it is not what was downloaded"

    def repair(self, item: Item) -> bool:
        with leases.unused(item.path.parent.parent) as free:
            return free and bool(self.verify(item)) and forget(item.path)

    def sweep(self, now: float, patience: float = WRITING) -> int:
        own = [] if self._folder.is_symlink() else [self._folder / name for name in ("asked", *_POOLED.values())]
        swept = sum(sweep_hidden(folder, now, patience) for folder in own)
        return swept + sum(
            sweep_notes(notes, now) for notes in (self._folder / "asked", *sorted((self._folder / "apk").glob("*")))
        )


def _with_lock(path: Path, left: Path) -> bool:
    from filelock import FileLock

    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        if locks.try_lock(lock):
            try:
                return forget(left)
            finally:
                lock.release()
    return False


class ImageRecords:
    """Records of toolchain images, see `qcase.toolchains.records`. None is an item: the images belong to the engine.

    What no record points to is a leftover.
    """

    def __init__(self, store: Store) -> None:
        self._folder = store.root / "images"

    def items(self) -> Iterator[Item]:
        return iter(())

    def take(self, item: Item, *, dry_run: bool) -> bool:  # noqa: ARG002
        raise AssertionError(f"{item.name} is on no shelf of records")

    def verify(self, item: Item) -> str:
        raise AssertionError(f"{item.name} is on no shelf of records")

    def repair(self, item: Item) -> bool:
        raise AssertionError(f"{item.name} is on no shelf of records")

    def sweep(self, now: float, patience: float = WRITING) -> int:  # noqa: ARG002 - a record is written without a lock
        """Remove leftovers, and package lists that no record of an image points to."""
        swept = self.sweep_unfinished(now)
        records = [] if self._folder.is_symlink() else [path for path in listed(self._folder) if path.suffix == ".json"]
        content = [path for path in records if re.fullmatch("[0-9a-f]{64}", path.stem)]
        if content:
            known = set()
            for path in set(records) - set(content):
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    known.add(parsing.from_json(path.read_bytes())["image"].removeprefix("sha256:"))
            swept += sum(forget(path) for path in content if path.stem not in known and older(path, now, LOCKS_KEPT))
        return swept

    def sweep_unfinished(self, now: float) -> int:
        """Remove scratch folders and unfinished records."""
        # A record may be written by a process that holds no lock; it takes a moment, not a day.
        lefts = [path for path in hidden(self._folder) if path.is_dir() or older(path, now, LOCKS_KEPT)]
        with ExitStack() as stack:
            return sum(forget(left) for left in lefts) if lefts and self._alone(stack) else 0

    def clear(self) -> int:
        """Remove all records and logs, unless an image is being built. Returns their number."""
        with ExitStack() as stack:
            gone = listed(self._folder) if self._alone(stack) else []
            return sum(forget(path) for path in gone if path.suffix in (".json", ".log"))

    def _alone(self, stack: ExitStack) -> bool:
        """Hold the locks of all toolchain images, so that none is built meanwhile.

        False if one is being built, or the folder is a link.
        """
        from filelock import FileLock

        if self._folder.is_symlink():
            return False
        for path in sorted({*self._folder.glob("*.lock"), self._folder / "base.lock"} if self._folder.is_dir() else ()):
            lock = FileLock(path)
            if not locks.try_lock(lock):
                return False
            stack.callback(lock.release)
        return True
