"""The content-addressed store: what was built once is never built again, and never served half.

    <root>/                          $QCASE_CACHE_DIR, else $XDG_CACHE_HOME/qcase, else ~/.cache/qcase
      CACHEDIR.TAG                   tells backup programs to pass over all of it
      guests/  toolchains/           other rooms'
      v1/                            this format; another one lives in a folder of its own and is not even looked at
        overlays/<ke>/<key>/         an entry: <ke> are the first two digits of <key>
          manifest.json              what it is made of and holds; written last, so a folder without it is rubbish
          content/                   the overlay, with the guest's modes
          lock                       readers hold it shared; it is the entry's own, and goes where the entry goes
        images/<ke>/<key>/           the same, with `image.img` in place of `content/`
        staging/<unique>/            an entry that is being made (or, `trash-…`, taken away)
        staging/<unique>.lock        held by its maker; becomes the entry's `lock`
        locks/<kind>-<key>.lock      held by the one process that builds this key, or takes its entry away
        locks/<kind>-<key>.holder    who that is, for those who wait
        checked/<kind>-<key>.json    an entry that was moved here by other means, and was read in full since
        last/<name>.json             digest and parts of the newest keys of a case, newest first, to say what changed
        guests.lock                  held shared by whoever boots a guest, and by its QEMU
        runs/<run id>.lock           held by a process that may have containers running

Two locks, and why. *Building* is exclusive for a key and guarded by filelock. *Using* is shared: a reader holds
`flock(LOCK_SH)` on the entry's own `lock` and hands the descriptor to QEMU (`pass_fds`), so that the entry stays for as long as
QEMU lives, also when qcase was killed. (filelock's reader/writer lock sits in SQLite and cannot be handed on.) Whoever waits to
build never blocks a reader. An entry appears and goes away by one rename, done by the holder of the builder's lock alone; a whole
one is taken away only while nobody uses it, which an exclusive `flock` on its `lock` proves. A descriptor that is handed on must
only ever be closed: an explicit unlock would unlock it for everyone who has it.

An entry is made in this order, with its maker's shared lock held throughout, so it is in use before anyone can see it:

    staged → built → sealed (read-only) → flushed → digested → manifest → renamed → installed (rename flushed)

An image is 0444. An entry's folder is 0755 (of older ones 0555), so that its owner can delete the store with `rm -rf`. An
overlay's files and folders keep the modes that they will have in the guest (a setuid bit is part of the content, and root is not
kept out by modes anyway); the manifest lists them, so that a copy which lost some gets them back.

On use an entry is checked against its manifest by name, size, mode, mtime, ctime and inode of every file. Where they differ, as
they do after the store was restored from an archive, it is read in full once and the new facts go to `checked/`. What QEMU boots
has been read since it last changed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcase import keys, locks, process
from qcase.content import (
    Kind,
    digest_of,
    facts_of,
    first_change,
    flush,
    flush_tree,
    listed,
    remove_tree,
    restore_modes,
    settle,
    write_aside,
    write_flushed,
)
from qcase.errors import BuildError, InfraError, QcaseError, UsageError
from qcase.locks import CACHE_DIR_VARIABLE

if TYPE_CHECKING:
    from filelock import FileLock

FORMAT = 1
DISABLE_VARIABLE = "QCASE_DISABLE_ROOTFS_CACHE"

HISTORY = 4  # keys of a case that are remembered
POLL = 0.05  # seconds between two looks of a waiter
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache made by qcase. It can be deleted at any time.\n"
_ROOM = 64 << 20  # bytes; with less than that the disk counts as full
_FULL = (errno.ENOSPC, errno.EDQUOT)

Say = Callable[[str], None]
Build = Callable[[Path], None]


class CacheWrite(StrEnum):
    """`[cache] write`."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True)
class Policy:
    """Which kinds are written to the store. What is in it is read in any case."""

    images: bool = True
    overlays: bool = True

    def writes(self, kind: Kind) -> bool:
        return self.images if kind is Kind.IMAGE else self.overlays


def policy(environ: Mapping[str, str], write: CacheWrite | str = CacheWrite.AUTO, *, keep_images: bool = True) -> Policy:
    """What is written, by `[cache] write` and the environment.

        write    nothing set     CI set           QCASE_DISABLE_ROOTFS_CACHE set
        auto     both            overlays only    overlays only
        always   both            both             both
        never    neither         neither          neither

    Set means set, to whatever value, as in the original. Without `keep_images` no image is written in any case.
    """
    chosen = CacheWrite(write)
    if chosen is CacheWrite.NEVER:
        return Policy(images=False, overlays=False)
    asked_not_to = chosen is CacheWrite.AUTO and ("CI" in environ or DISABLE_VARIABLE in environ)
    return Policy(images=keep_images and not asked_not_to, overlays=True)


def default_root(environ: Mapping[str, str]) -> Path:
    """Where the store is when the command line does not say. Raises `UsageError` if the environment names no usable place."""
    if named := environ.get(CACHE_DIR_VARIABLE):
        return resolve_root(named, environ, what=CACHE_DIR_VARIABLE)
    # The XDG base directory specification: a relative value is invalid and to be ignored.
    if (base := environ.get("XDG_CACHE_HOME", "")).startswith("/"):
        return resolve_root(f"{base}/qcase", environ, what="XDG_CACHE_HOME")
    return resolve_root("~/.cache/qcase", environ, what="HOME")


def resolve_root(value: str, environ: Mapping[str, str], *, what: str = "--cache-dir") -> Path:
    """An absolute path from what somebody wrote: `~` is the home folder, a relative path starts at the current folder."""
    if "\0" in value or not value:
        raise UsageError("no usable folder for the cache", where=f"{what}={value!r}")
    if value == "~" or value.startswith("~/"):
        home = environ.get("HOME", "")
        if not home.startswith("/"):
            raise UsageError("there is no home folder to keep the cache in", where=what, hint=f"set {CACHE_DIR_VARIABLE}")
        return Path(os.path.normpath(home + value[1:]))
    return Path(os.path.normpath(Path.cwd() / value))


@dataclass(frozen=True)
class Manifest:
    """What an entry is made of (`parts`), what it holds (`digest`, `listing`), and how its files looked then (`facts`).

    `digest`: for an overlay `keys.overlay_content_digest`, for an image `keys.file_digest` (empty where it was not stored).
    `listing`: an overlay's `keys.overlay_listing`; empty for an image. `facts`: see `_facts`.
    """

    kind: Kind
    key: str
    parts: Mapping[str, keys.JSON]
    digest: str
    listing: list[list[str]] = field(default_factory=list)
    facts: list[list[keys.JSON]] = field(default_factory=list)
    made_for: str = ""
    made_at: float = 0.0  # seconds since 1970, for people: nothing is decided by it
    seconds: float = 0.0  # how long it took

    def encode(self) -> bytes:
        """Canonical JSON, with the sha256 of itself as `seal`."""
        plain: dict[str, keys.JSON] = {
            "format": FORMAT,
            "kind": self.kind.value,
            "key": self.key,
            "parts": self.parts,
            "digest": self.digest,
            "listing": self.listing,
            "facts": self.facts,
            "made_for": self.made_for,
            "made_at": self.made_at,
            "seconds": self.seconds,
        }
        return keys.canonical({**plain, "seal": keys.digest(plain)})

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Raises `ValueError` for anything that `encode` has not written."""
        try:
            plain = keys.parse(data)
        except ValueError:
            plain = None
        if not isinstance(plain, dict) or plain.pop("seal", None) != keys.digest(plain):
            raise ValueError("its manifest was edited or cut off")
        if plain.pop("format") != FORMAT:
            raise ValueError("its manifest is of another format")
        return cls(**{**plain, "kind": Kind(plain["kind"])})


@dataclass(frozen=True)
class Entry:
    """A result that may be read as long as the `with` lasts that gave it, and by a child with `lock_fd` as long as that lives.

    `path` is the overlay's folder or the image. `hit`: it was there already. `lock_fd` is None where nothing was stored; pass it
    on as `pass_fds`, never unlock it.
    """

    kind: Kind
    key: str
    path: Path
    manifest: Manifest
    hit: bool
    lock_fd: int | None

    @property
    def stored(self) -> bool:
        return self.lock_fd is not None

    @property
    def digest(self) -> str:
        """The digest of the content: what an image's key takes of its overlays."""
        return self.manifest.digest

    @property
    def pass_fds(self) -> tuple[int, ...]:
        return () if self.lock_fd is None else (self.lock_fd,)


class _StoreFullError(Exception):
    """The store's disk is full: nothing is stored, the run goes on."""


def _ignore(_message: str) -> None:
    """A listener that does not listen."""


class Store:
    """One store, for all threads of a process. Opening it makes its folders and reads nothing else.

    Raises `InfraError` if it cannot be used as `writes` asks. `readonly`: nothing below `root` is written, made or touched, and
    what is built is not stored; what was found out about entries that look different than their manifest says is noted in the
    folder `notes` instead. `trace` is called with the name of each step of making an entry: tests stop or kill there.
    """

    def __init__(
        self,
        root: Path,
        *,
        writes: Policy | None = None,
        readonly: bool = False,
        notes: Path | None = None,
        trace: Say = _ignore,
    ) -> None:
        self.root = root
        self.readonly = readonly
        self.writes = Policy(False, False) if readonly else Policy() if writes is None else writes
        self.added = 0  # entries that this process has stored
        self.base = root / f"v{FORMAT}"
        self._staging = self.base / "staging"
        self._locks = self.base / "locks"
        self._checked = notes if readonly and notes is not None else self.base / "checked"
        self._last = self.base / "last"
        self._runs = self.base / "runs"
        self._trace = trace
        self._prepared = False
        if self.writes.images or self.writes.overlays:
            with _guarded(root):
                self._open()

    # --- public -----------------------------------------------------------------------------------------------------------

    def folder(self, kind: Kind, key: str) -> Path:
        """Where the entry of a key is, if there is one."""
        return self.base / f"{kind}s" / key[:2] / key

    def manifest(self, kind: Kind, key: str) -> Manifest | None:
        """The manifest alone, without a lock: it says nothing about the content now. Enough to compute an image's key."""
        try:
            return self._read_manifest(kind, key)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @contextmanager
    def reader(self, kind: Kind, key: str, *, warn: Say = _ignore) -> Iterator[Entry | None]:
        """The entry of a key, checked and held by a shared lock; None where there is none that is whole."""
        with _guarded(self.root):
            entry = self._look(kind, key, warn)
        try:
            yield entry
        finally:
            if entry is not None:
                locks.close(entry.lock_fd)

    @contextmanager
    def get_or_build(
        self,
        kind: Kind,
        key: keys.Key,
        build: Build,
        *,
        scratch: Path,
        made_for: str = "",
        on_wait: Say = _ignore,
        warn: Say = _ignore,
    ) -> Iterator[Entry]:
        """The entry of a key, built if it is not there. One process builds, the others wait and then use what it built.

        `build` gets the path to fill: an empty folder for an overlay, the path of a file that does not exist yet for an image.
        What it raises is raised here, and nothing is left of its work. Where nothing is to be written, or the disk of the
        store is full, it builds below the folder `scratch`, and that is removed when the `with` ends. `made_for` names the case.
        `on_wait` is told for whom one waits and since when, `warn` what was broken.

        Raises `InfraError` when the store cannot be used or the disk below `scratch` is full as well.
        """
        said: set[str] = set()

        def warn_once(message: str) -> None:
            if message not in said:
                said.add(message)
                warn(message)

        with ExitStack() as stack:
            with _guarded(self.root):
                entry = self._look(kind, key.digest, warn_once)
            if entry is None and self.writes.writes(kind):
                try:
                    entry = self._make(kind, key, build, made_for, on_wait, warn_once)
                except _StoreFullError as full:
                    warn_once(str(full))
            if entry is None:
                entry = stack.enter_context(_unstored(kind, key, build, scratch, made_for))
            stack.callback(locks.close, entry.lock_fd)
            if not entry.hit:
                self._note(kind, key, made_for)
            yield entry

    def history(self, kind: Kind, made_for: str) -> list[keys.Key]:
        """The keys that were last built for a case, newest first, to compare with `keys.differences`."""
        try:
            return [keys.Key(digest, parts) for digest, parts in keys.parse(self._note_path(kind, made_for).read_bytes())]
        except (OSError, ValueError, TypeError):
            return []

    def why_missed(self, kind: Kind, key: keys.Key, made_for: str) -> list[str]:
        """Why an entry that is not there has to be built: what changed since the nearest key of the same case."""
        found = keys.nearest(key, self.history(kind, made_for))
        if found is None:
            return ["not built before"]
        return found[1] or ["built before, and not kept"]

    def verify(self, kind: Kind, key: str) -> str:
        """Read an entry in full. What is wrong with it, in words; empty if nothing is."""
        with _guarded(self.root):
            lock_fd = locks.share(self.folder(kind, key) / "lock")
            try:
                if lock_fd is None:
                    return "it has no lock file"
                return self._problem(self._read_manifest(kind, key), in_full=True)
            except FileNotFoundError:
                return "it has no manifest"
            except (ValueError, TypeError, KeyError) as error:
                return str(error) if isinstance(error, ValueError) else "its manifest is no manifest"
            finally:
                locks.close(lock_fd)

    @contextmanager
    def guests_in_use(self) -> Iterator[int | None]:
        """Hold `guests.lock`, so that no guest is collected. Its descriptor is for QEMU; None where none can be made.

        Whoever cannot make one has no right to write here; and it is not there, so nobody else has collected guests yet.
        """
        lock = self.base / "guests.lock"
        with _guarded(self.root):
            fd = locks.share(lock)
            while fd is None and not self.readonly:
                try:
                    lock.parent.mkdir(parents=True, exist_ok=True)
                    os.close(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                        raise
                    break
                fd = locks.share(lock)
        try:
            yield fd
        finally:
            locks.close(fd)

    @contextmanager
    def take_guests(self) -> Iterator[bool]:
        """Hold `guests.lock` for ourselves alone. False, and not held, while a run or a QEMU uses guests."""
        fd = None
        with _guarded(self.root):
            try:
                fd = locks.sole(self.base / "guests.lock")
                free = fd is not None
            except FileNotFoundError:
                free = False  # nobody has ever booted one from here, or not with a right to write
        try:
            yield free
        finally:
            locks.close(fd)

    @contextmanager
    def announced_run(self, run_id: str) -> Iterator[Callable[[], None]]:
        """Let whoever comes after us find out that this run is over: see `dead_runs`. To be called before its first container."""
        lock = self._runs / f"{run_id}.lock"
        fd = None
        if not self.readonly:
            with contextlib.suppress(OSError, InfraError):  # a full disk must not end a run that might need no containers
                self._runs.mkdir(parents=True, exist_ok=True)
                while fd is None and not lock.exists():  # a sweeper may take it for a leftover before we hold it
                    fd = locks.claim(lock)

        def has_containers() -> None:
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.pwrite(fd, b"containers\n", 0)

        try:
            yield has_containers
        finally:
            if fd is not None:
                with contextlib.suppress(OSError):
                    lock.unlink()
                os.close(fd)

    @contextmanager
    def dead_runs(self) -> Iterator[dict[str, bool]]:
        """Runs that were announced, and ended without a word; and whether they may have left containers.

        They are forgotten at the end of the `with`, if it ends well.
        """
        with ExitStack() as stack:
            dead: dict[str, bool] = {}
            for path in listed(self._runs):
                with contextlib.suppress(OSError, InfraError):
                    fd = locks.sole(path)
                    if fd is not None:
                        stack.callback(os.close, fd)
                        dead[path.stem] = os.fstat(fd).st_size > 0
            yield dead
            for run_id in dead:
                with contextlib.suppress(OSError):
                    (self._runs / f"{run_id}.lock").unlink()

    def entries(self) -> Iterator[tuple[Kind, str, Path]]:
        """Kind, key and folder of everything that is stored, whole or not."""
        for kind in Kind:
            for shard in listed(self.base / f"{kind}s"):
                for folder in listed(shard):
                    yield kind, folder.name, folder

    def last_used(self, kind: Kind, key: str) -> float | None:
        """Seconds since 1970, kept as the mtime of the entry's lock. None where there is no entry."""
        try:
            return (self.folder(kind, key) / "lock").stat().st_mtime
        except OSError:
            return None

    def touch(self, kind: Kind, key: str) -> None:
        """Note that an entry was of use, although nobody read it."""
        if not self.readonly:
            with contextlib.suppress(OSError):
                os.utime(self.folder(kind, key) / "lock")

    def remove(self, kind: Kind, key: str, *, even_if_used: bool = False) -> bool:
        """Take an entry away. False if somebody uses or builds it, or there is none.

        `even_if_used` is for what was found broken: nobody new gets it, and it is deleted once nobody has it any more. Where it
        has been replaced since by one that is whole, that one stays.
        """
        with _guarded(self.root):
            self._prepare()
            lock = self._builders_lock(kind, key)
            if not locks.try_lock(lock):
                return False
            broken = None
            try:
                if even_if_used:
                    broken = locks.open_lock(self.folder(kind, key) / "lock")
                    if not self.verify(kind, key):
                        return True
                return self._throw_away(kind, key, broken=broken)
            finally:
                locks.close(broken)
                lock.release()

    def in_use(self, kind: Kind, key: str) -> bool:
        """Whether somebody reads an entry just now. It may be otherwise a moment later."""
        with _guarded(self.root):
            try:
                fd = locks.sole(self.folder(kind, key) / "lock")
            except FileNotFoundError:
                return False
            locks.close(fd)
            return fd is None

    def trash(self, path: Path) -> bool:
        """Rename something else that is below the root out of the way, and delete it. False if it is not there."""
        name = f"trash-{path.name[:40]}-{os.getpid()}-{os.urandom(6).hex()}"
        with _guarded(self.root):
            self._prepare()
            try:
                path.rename(self._staging / name)
            except FileNotFoundError:
                return False
            self._sweep_one(name)
        return True

    def sweep(self) -> int:
        """Clear away what makers left who are gone. Returns how many leftovers there were."""
        swept = self.sweep_staged()
        with _guarded(self.root):
            for folder in (self._locks, self._checked, self._last):
                for path in folder.glob(".*"):  # see `write_aside`; it takes a moment, not an hour
                    with contextlib.suppress(OSError):
                        if path.stat().st_mtime < time.time() - 3600:
                            path.unlink()
        return swept

    def sweep_staged(self) -> int:
        """As `sweep`, of entries alone, which may be large. Where there are none, it looks into one folder."""
        with _guarded(self.root):
            names = {path.name.removesuffix(".lock") for path in listed(self._staging)}
            return sum(self._sweep_one(name) for name in sorted(names))

    # --- looking ----------------------------------------------------------------------------------------------------------

    def _look(self, kind: Kind, key: str, warn: Say) -> Entry | None:
        """The entry of a key if it is there and whole, with its shared lock held."""
        entry, broken = self._inspect(kind, key, warn)
        locks.close(broken)
        return entry

    def _inspect(self, kind: Kind, key: str, warn: Say) -> tuple[Entry | None, int | None]:
        """As `_look`; where something else is there, a descriptor of its lock, not held: open, it tells that one from others."""
        folder = self.folder(kind, key)
        lock_fd = locks.share(folder / "lock")
        if lock_fd is None:
            return None, None
        try:
            try:
                manifest = self._read_manifest(kind, key)
                problem = self._problem(manifest)
            except FileNotFoundError:
                fcntl.flock(lock_fd, fcntl.LOCK_UN)  # nobody else has this descriptor
                return None, lock_fd  # no manifest: rubbish
            except (ValueError, TypeError, KeyError) as error:
                problem = str(error) if isinstance(error, ValueError) else "its manifest is no manifest"
            if problem:
                warn(f"the stored {kind} {key[:12]} is not used, {problem}")
                fcntl.flock(lock_fd, fcntl.LOCK_UN)
                return None, lock_fd
            self.touch(kind, key)
            return Entry(kind, key, folder / kind.content, manifest, hit=True, lock_fd=lock_fd), None
        except BaseException:
            locks.close(lock_fd)
            raise

    def _read_manifest(self, kind: Kind, key: str) -> Manifest:
        manifest = Manifest.decode((self.folder(kind, key) / "manifest.json").read_bytes())
        if (manifest.kind, manifest.key) != (kind, key):
            raise ValueError(f"its manifest is that of the {manifest.kind} {manifest.key[:12]}")
        return manifest

    def _problem(self, manifest: Manifest, *, in_full: bool = False) -> str:
        """What is wrong with an entry's content; empty if nothing is. Read in full only if it looks different, or `in_full`."""
        content = self.folder(manifest.kind, manifest.key) / manifest.kind.content
        try:
            facts = facts_of(content)
            known = facts == manifest.facts or facts == self._checked_facts(manifest)
            if known and not in_full:
                return ""
            # Other names or sizes: no need to read anything.
            if changed := first_change([row[:2] for row in manifest.facts], [row[:2] for row in facts]):
                return changed
            for attempt in range(2):
                facts = facts_of(content)
                settled = settle(facts)
                if digest_of(manifest.kind, content)[0] == manifest.digest:
                    # What is not settled may have changed since without looking different.
                    if not known and settled and facts == facts_of(content):
                        self._record_facts(manifest, facts)
                    return ""
                if attempt == 0 and not self.readonly:
                    restore_modes(content, manifest.listing)
            return first_change(manifest.facts, facts) or "its content is not what was stored"
        except (OSError, QcaseError) as error:
            if _errno(error) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise  # our own trouble, not the entry's
            return f"it cannot be read: {error}"

    def _checked_path(self, kind: Kind, key: str) -> Path:
        return self._checked / f"{kind}-{key}.json"

    def _checked_facts(self, manifest: Manifest) -> Any:
        try:
            digest, facts = keys.parse(self._checked_path(manifest.kind, manifest.key).read_bytes())
        except (OSError, ValueError, TypeError):
            return None
        return facts if digest == manifest.digest else None

    def _record_facts(self, manifest: Manifest, facts: list[list[keys.JSON]]) -> None:
        if self.readonly and self._checked.is_relative_to(self.base):
            return  # it is read in full each time
        with contextlib.suppress(OSError):
            self._checked.mkdir(parents=True, exist_ok=True)
            write_aside(self._checked_path(manifest.kind, manifest.key), keys.canonical([manifest.digest, facts]))

    # --- making -----------------------------------------------------------------------------------------------------------

    def _make(self, kind: Kind, key: keys.Key, build: Build, made_for: str, on_wait: Say, warn: Say) -> Entry:
        """Build and store; or wait for the one who does. Raises `_StoreFullError` where the disk is full."""
        with _full_is_no_failure(self.root, kind, key), _guarded(self.root):
            self._prepare()
            lock, found, broken = self._become_builder(kind, key, on_wait, warn)
        if found is not None:
            return found
        assert lock is not None
        try:
            with _full_is_no_failure(self.root, kind, key), _guarded(self.root):
                self._announce(kind, key.digest, made_for)
                self._trace("locked")
                winner = self._make_room(kind, key.digest, broken, warn)
                if winner is not None:
                    return winner
            return self._put(kind, key, build, made_for, warn)
        finally:
            locks.close(broken)
            with contextlib.suppress(OSError):
                self._holder(kind, key.digest).unlink()
            lock.release()

    def _become_builder(
        self, kind: Kind, key: keys.Key, on_wait: Say, warn: Say
    ) -> tuple[FileLock | None, Entry | None, int | None]:
        """The builder's lock, and what `_inspect` found broken; or the entry that somebody else made in the meantime."""
        lock = self._builders_lock(kind, key.digest)
        told = ""
        began = time.monotonic()
        while True:
            got = locks.try_lock(lock)
            try:
                # Looked at even without the lock: when the builder is done, all who wait go on at once and not one by one.
                found, broken = self._inspect(kind, key.digest, warn)
            except BaseException:
                lock.release()
                raise
            if found is not None:
                lock.release()
                return None, found, None
            if got:
                return lock, None, broken
            locks.close(broken)
            holder = self._describe_holder(kind, key.digest)
            if not holder and time.monotonic() - began > 0.5:  # it says so a moment after it took the lock
                holder = f"another process, which builds this {kind}"
            if holder not in ("", told):
                told = holder
                on_wait(f"waiting for {holder}")
            process.pause(POLL)

    def _make_room(self, kind: Kind, key: str, broken: int | None, warn: Say) -> Entry | None:
        """Throw away what was found broken, and nothing else.

        Where the builders' locks were lost, another builder may have installed the entry since, and somebody boots it: then it
        is returned. Which one is there tells the lock; that of the broken one is open, so that its inode is not used again.
        """
        lock = self.folder(kind, key) / "lock"
        with ExitStack() as stack:
            while not (locks.is_at(broken, lock) if broken is not None else not lock.exists()):
                winner, broken = self._inspect(kind, key, warn)
                stack.callback(locks.close, broken)
                if winner is not None:
                    return winner
            self._throw_away(kind, key, broken=broken)
        return None

    def _put(self, kind: Kind, key: keys.Key, build: Build, made_for: str, warn: Say) -> Entry:
        """Stage, build, seal, flush, digest, write the manifest, rename."""
        with ExitStack() as cleanup:
            with _full_is_no_failure(self.root, kind, key), _guarded(self.root):
                staged, lock_fd = self._stage(kind, key.digest, cleanup)
                content = staged / kind.content
                if kind.is_folder:
                    content.mkdir()
                self._trace("staged")
            began = time.monotonic()
            with _full_is_no_failure(self.root, kind, key):
                build(content)
            seconds = time.monotonic() - began
            self._trace("built")
            with _full_is_no_failure(self.root, kind, key), _guarded(self.root):
                with _modes_are_the_builds(content, made_for):
                    facts_of(content)  # it is there, and what it should be
                for other in listed(staged):
                    if other != content:
                        remove_tree(other)  # what the build left beside it
                if kind is Kind.IMAGE:
                    content.chmod(0o444)
                self._trace("sealed")
                with _modes_are_the_builds(content, made_for):
                    flush_tree(content)
                self._trace("flushed")
                facts = facts_of(content)
                settle(facts)
                digest, listing = digest_of(kind, content)
                self._trace("digested")
                manifest = Manifest(
                    kind, key.digest, key.parts, digest, listing, facts, made_for, round(time.time(), 3), round(seconds, 3)
                )
                # From here on the lock is the entry's own; it was held under its first name, so no sweeper can come between.
                (self._staging / f"{staged.name}.lock").rename(staged / "lock")
                write_flushed(staged / "manifest.json", manifest.encode())
                staged.chmod(0o755)  # whatever the umask says: another user's reader looks into it
                flush(staged)
                self._trace("manifest")
                lost = self._install(staged, kind, key.digest, warn)
                if lost is not None:
                    return lost
                self._trace("renamed")
                folder = self.folder(kind, key.digest)
                for parent in (folder, folder.parent, folder.parent.parent):
                    flush(parent)
                self._trace("installed")
            cleanup.pop_all()
            self.added += 1
            return Entry(kind, key.digest, folder / kind.content, manifest, hit=False, lock_fd=lock_fd)

    def _stage(self, kind: Kind, key: str, cleanup: ExitStack) -> tuple[Path, int]:
        """A folder of our own in `staging/`, and the descriptor of its lock, held shared. `cleanup` removes both."""
        while True:
            # The process id is for people; another host or container may have the same.
            staged = self._staging / f"{kind}-{key[:12]}-{os.getpid()}-{os.urandom(6).hex()}"
            lock = self._staging / f"{staged.name}.lock"
            fd = locks.claim(lock)
            if fd is None:
                continue
            cleanup.callback(os.close, fd)
            cleanup.callback(lock.unlink, missing_ok=True)
            cleanup.callback(remove_tree, staged)
            staged.mkdir(mode=0o755)
            return staged, fd

    def _install(self, staged: Path, kind: Kind, key: str, warn: Say) -> Entry | None:
        """Rename into place. If somebody was faster, which takes a lost builder's lock, theirs is returned, as good as ours."""
        folder = self.folder(kind, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(3):
            try:
                staged.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == 2:
                    raise
                winner, broken = self._inspect(kind, key, warn)
                try:
                    if winner is None:
                        winner = self._make_room(kind, key, broken, warn)
                finally:
                    locks.close(broken)
                if winner is not None:
                    return replace(winner, hit=False)
            else:
                return None
        raise AssertionError("unreachable")

    def _throw_away(self, kind: Kind, key: str, *, broken: int | None = None) -> bool:
        """Rename an entry out of the way, and delete it once nobody uses it. The builder's lock must be held.

        False if there is none, or if somebody uses it: one whose lock `broken` is a descriptor of goes even so.
        """
        folder = self.folder(kind, key)
        with ExitStack() as stack:
            fd = locks.open_lock(folder / "lock")
            if fd is not None:
                stack.callback(os.close, fd)
                is_broken = broken is not None and os.path.sameopenfile(fd, broken)
                if not is_broken and not locks.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, folder):
                    return False
            trash = f"trash-{kind}-{key[:12]}-{os.getpid()}-{os.urandom(6).hex()}"
            try:
                if not folder.is_symlink() and folder.is_dir():
                    folder.chmod(0o755)  # one that is not writable cannot be renamed into another one
                folder.rename(self._staging / trash)
            except FileNotFoundError:
                return False
            with contextlib.suppress(OSError):
                self._checked_path(kind, key).unlink()
        self._sweep_one(trash)
        return True

    def _sweep_one(self, name: str) -> bool:
        """Remove one leftover from `staging/` unless somebody holds its lock."""
        folder = self._staging / name
        lock = self._staging / f"{name}.lock"
        with ExitStack() as stack:
            for path in (lock, folder / "lock"):  # in this order: the lock moves from the first to the second
                if (fd := locks.open_lock(path)) is None:
                    continue
                stack.callback(os.close, fd)
                if not locks.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, path):
                    return False
                break
            try:
                remove_tree(folder)
                lock.unlink(missing_ok=True)
            except PermissionError:
                return False  # another user's, who will sweep it
        return True

    # --- the store's own folders and files ----------------------------------------------------------------------------------

    def _open(self) -> None:
        """Make the folders, once: a store that is there costs two system calls."""
        if not (self._last.is_dir() and self._staging.is_dir()):  # `last` is made last; archives may have lost the empty ones
            for folder in (*(self.base / f"{kind}s" for kind in Kind), self._staging, self._locks, self._checked, self._last):
                folder.mkdir(parents=True, exist_ok=True)
            tag = self.root / "CACHEDIR.TAG"
            if not tag.exists():
                tag.write_text(_TAG)
        if not os.access(self._staging, os.W_OK):
            raise PermissionError(errno.EACCES, "may not be written to", str(self._staging))

    def _prepare(self) -> None:
        """Before the first entry is made: does the filesystem have locks, and did somebody leave something behind?"""
        if self._prepared:
            return
        self._open()
        probe = self._locks / "probe"
        fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            locks.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, probe)
        finally:
            os.close(fd)
        self.sweep()
        self._prepared = True

    def _builders_lock(self, kind: Kind, key: str) -> FileLock:
        from filelock import FileLock  # 40 ms that a warm run does not need

        return FileLock(self._locks / f"{kind}-{key}.lock")

    def _holder(self, kind: Kind, key: str) -> Path:
        return self._locks / f"{kind}-{key}.holder"

    def _announce(self, kind: Kind, key: str, made_for: str) -> None:
        about: dict[str, keys.JSON] = {"pid": os.getpid(), "host": os.uname().nodename, "case": made_for, "since": time.time()}
        with contextlib.suppress(OSError):  # a courtesy
            write_aside(self._holder(kind, key), keys.canonical(about))

    def _describe_holder(self, kind: Kind, key: str) -> str:
        try:
            about = keys.parse(self._holder(kind, key).read_bytes())
            since = time.strftime("%H:%M:%S", time.localtime(about["since"]))
            host = "" if about["host"] == os.uname().nodename else f" on {about['host']}"
            case = f" ({about['case']})" if about["case"] else ""
            who = "another build of this run" if about["pid"] == os.getpid() and not host else f"process {about['pid']}"
            return f"{who}{host}{case}, which builds this {kind} since {since}"
        except (OSError, ValueError, TypeError, KeyError):
            return ""

    def _note_path(self, kind: Kind, made_for: str) -> Path:
        return self._last / f"{kind}-{keys.digest(made_for)[:32]}.json"

    def _note(self, kind: Kind, key: keys.Key, made_for: str) -> None:
        if made_for and self.writes.overlays:  # also of an image that was not stored: why was it built?
            newer = [key, *(old for old in self.history(kind, made_for) if old.digest != key.digest)]
            with contextlib.suppress(OSError):
                note = keys.canonical([[old.digest, old.parts] for old in newer[:HISTORY]])
                write_aside(self._note_path(kind, made_for), note)


# --- without the store ------------------------------------------------------------------------------------------------------


@contextmanager
def _unstored(kind: Kind, key: keys.Key, build: Build, scratch: Path, made_for: str) -> Iterator[Entry]:
    """Build for this run alone."""
    folder = scratch / f"{kind}-{key.short}-{os.urandom(4).hex()}"
    content = folder / kind.content
    try:
        try:
            _make_folder(content if kind.is_folder else folder)
            build(content)
            listing = keys.overlay_listing(content) if kind.is_folder else []
            facts_of(content)  # it is there, and what it should be
        except OSError as error:
            if not _is_full(error, scratch):
                raise
            raise _full_disk(f"the {kind} for {made_for or key.short} does not fit", scratch) from error
        digest = keys.digest(listing) if kind.is_folder else ""
        yield Entry(
            kind, key.digest, content, Manifest(kind, key.digest, key.parts, digest, listing, made_for=made_for), False, None
        )
    finally:
        remove_tree(folder)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        if _is_full(error, folder):
            raise
        raise InfraError(f"cannot build in this folder: {error.strerror}", where=str(folder)) from error


# --- errors -----------------------------------------------------------------------------------------------------------------


@contextmanager
def _guarded(root: Path) -> Iterator[None]:
    """Turn what the system says about the store into one message."""
    try:
        yield
    except OSError as error:
        if _is_full(error, root):
            raise _full_disk("the store cannot be written", root) from error
        where = error.filename2 or error.filename or root
        raise InfraError(
            f"the store cannot be used: {error.strerror or error}",
            where=os.fsdecode(where) if isinstance(where, (str, bytes, os.PathLike)) else str(root),
            hint=f"set {CACHE_DIR_VARIABLE} to a folder on a local disk that you may write to, or use --cache-readonly",
        ) from error


@contextmanager
def _full_is_no_failure(root: Path, kind: Kind, key: keys.Key) -> Iterator[None]:
    try:
        yield
    except (OSError, QcaseError) as error:
        if not _is_full(error, root):
            raise
        free = _free(root)
        raise _StoreFullError(f"the disk of {root} is full ({free} free): the {kind} {key.short} is not stored") from error


@contextmanager
def _modes_are_the_builds(content: Path, made_for: str) -> Iterator[None]:
    """What a build has made and its owner may not read is no fault of the store's."""
    try:
        yield
    except PermissionError as error:
        path = os.fsencode(error.filename or "")
        if not path.startswith(os.fsencode(content)):
            raise
        while not os.access(os.path.dirname(path), os.X_OK):  # noqa: PTH120 - a Path cannot hold bytes
            path = os.path.dirname(path)  # noqa: PTH120
        name = keys.printable(os.fsdecode(os.path.relpath(path, os.fsencode(content))))
        raise BuildError(
            f"{name} has the mode {stat.S_IMODE(os.lstat(path).st_mode):04o}: it cannot be read, and so not be stored",
            where=made_for,
            hint="let its owner read it",
        ) from None


def _errno(error: BaseException | None) -> int | None:
    """The number of the system's error behind an error."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error.errno if isinstance(error, OSError) else None


def _is_full(error: BaseException | None, place: Path) -> bool:
    """Whether a full disk is behind an error. A step in a container can only say so in words.

    What a case's own build says may be about anything, a test of a full disk or a small /tmp: it is believed where the disk of
    the folder `place` has no room either.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if isinstance(error, QcaseError):
            said = error.what + (error.log if isinstance(error, BuildError) else "")
            says_so = os.strerror(errno.ENOSPC) in said or os.strerror(errno.EDQUOT) in said
            if says_so and not (isinstance(error, BuildError) and _has_room(place)):
                return True
        error = error.__cause__ or error.__context__
    return False


def _has_room(place: Path) -> bool:
    """Tried, so that a quota shows as well. The failed build's own files are still there, save what a compiler took back."""
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=place) as file:
            os.posix_fallocate(file.fileno(), 0, _ROOM)
    except OSError as error:
        return error.errno not in _FULL
    return True


def _full_disk(what: str, place: Path) -> InfraError:
    return InfraError(
        f"{os.strerror(errno.ENOSPC)}: {what}, {_free(place)} free",
        where=str(place),
        hint=f"free some, or set {CACHE_DIR_VARIABLE}",
    )


def _free(place: Path) -> str:
    while not place.exists() and place != place.parent:
        place = place.parent
    about = os.statvfs(place)
    return f"{about.f_bavail * about.f_frsize / 2**20:.1f} of {about.f_blocks * about.f_frsize / 2**20:.1f} MiB"
