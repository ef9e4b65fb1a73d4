"""The content-addressed store: a stored result is not built again, and no partial entry is ever used.

    <root>/                          $QCASE_CACHE_DIR, else $XDG_CACHE_HOME/qcase, else ~/.cache/qcase
      CACHEDIR.TAG                   tells backup programs to pass over all of it
      guests/  toolchains/           of other modules
      v2/                            this format; another format has a folder of its own, which is not read
        overlays/<ke>/<key>/         an entry: <ke> are the first two digits of <key>
          manifest.json              the entry's inputs and content; written last, so a folder without it is incomplete
          content/                   the overlay, with the guest's modes but for setuid and setgid
          lock                       readers hold it shared; it belongs to the entry, and moves with it
        images/<ke>/<key>/           the same, with `image.img` in place of `content/`
        staging/<unique>/            an entry that is being made (or, `trash-…`, taken away)
        staging/<unique>.lock        held by its maker; becomes the entry's `lock`
        locks/<kind>-<key>.lock      held by the one process that builds this key, or takes its entry away
        locks/<kind>-<key>.holder    names that process, for processes that wait
        checked/<kind>-<key>.json    facts of an entry that was moved here by other means, and was read in full since
        last/<name>.json             digest and parts of the newest keys of a case, newest first, to report changes
        guests.lock                  held shared by each process that boots a guest, and by its QEMU
        runs/<run id>.lock           held by a process that may have containers running

There are two kinds of locks. *Building* is exclusive for a key and guarded by filelock. *Using* is shared: a reader holds
`flock(LOCK_SH)` on the entry's own `lock` and hands the descriptor to QEMU (`pass_fds`), so that the entry stays for as long as
QEMU lives, also when qcase was killed. (filelock's reader/writer lock sits in SQLite and cannot be handed on.) A process that
waits to build never blocks a reader. An entry appears and goes away by one rename, done by the holder of the builder's lock
alone; an intact entry is removed only while no process uses it, which an exclusive `flock` on its `lock` proves. A descriptor
that is handed on must only ever be closed: an explicit unlock would unlock it for every process that has it.

An entry is made in this order, with its maker's shared lock held throughout, so it is in use before any other process sees it:

    staged → built → sealed (read-only) → flushed → digested → manifest → renamed → installed (rename flushed)

Nothing in it is dangerous on the host. `v2/` is 0700 (0750 for the group of `QCASE_CACHE_GROUP`), so that no other user can read
its content, also while it is built. A store that others may write to is refused. An image is 0444. An entry's folder is 0755, so
that its owner can delete the store with `rm -rf`. An overlay's files and folders have the modes of the guest without setuid and
setgid; the manifest has all of them, and the injector uses those. A copy that lost some modes gets them back. There are no
devices, and no extended attributes but those that the file system adds by itself.

On use an entry is checked against its manifest by name, size, mode, mtime, ctime and inode of every file. Where they differ, as
they do after the store was restored from an archive, it is read in full once and the new facts go to `checked/`. So an image that
QEMU boots has been read since it last changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qcase.host import locks
from qcase.host.files import listed
from qcase.store import keys
from qcase.store.checking import Checker, Say
from qcase.store.content import Entry, Kind, Manifest
from qcase.store.full_disk import StoreFullError, guarded
from qcase.store.layout import Layout
from qcase.store.leases import Leases
from qcase.store.making import Build, Maker, unstored
from qcase.store.notes import Notes
from qcase.store.policy import Policy
from qcase.store.staging import Staging


def _ignore(_message: str) -> None:
    """Ignore a message."""


class Store:
    """A store, shared by all threads of a process. Opening it makes its folders and reads nothing else.

    Raises `InfraError` if it cannot be used as `writes` asks. `readonly`: nothing below `root` is written, made or touched, and
    built results are not stored; facts of entries that differ from their manifest are noted in the folder `notes` instead.
    `trace` is called with the name of each step of making an entry: tests stop or kill there.
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
        self._layout = Layout(root, notes if readonly else None)
        self.base = self._layout.base
        self.leases = Leases(self._layout, readonly=readonly)
        self.notes = Notes(self._layout.last, writes=self.writes.overlays)
        self._checker = Checker(self._layout, readonly=readonly)
        self._staging = Staging(self._layout)
        self._maker = Maker(self._layout, self._checker, self._staging, trace)
        if self.writes.images or self.writes.overlays:
            with guarded(root):
                self._layout.make()

    @property
    def added(self) -> int:
        """The number of entries that this process has stored."""
        return self._maker.added

    # --- reading and building ---------------------------------------------------------------------------------------------

    def folder(self, kind: Kind, key: str) -> Path:
        """Return the folder of a key's entry, which may not exist."""
        return self._layout.folder(kind, key)

    def manifest(self, kind: Kind, key: str) -> Manifest | None:
        """Read the manifest alone, without a lock: it does not vouch for the content. Enough to compute an image's key."""
        try:
            return self._checker.manifest(kind, key)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @contextmanager
    def reader(self, kind: Kind, key: str, *, warn: Say = _ignore) -> Iterator[Entry | None]:
        """Give the entry of a key, checked and held by a shared lock; None where there is no intact one."""
        with guarded(self.root):
            entry = self._checker.look(kind, key, warn)
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
        """Give the entry of a key; build it first if it is missing. One process builds, the others wait and then use its result.

        `build` gets the path to fill: an empty folder for an overlay, the path of a file that does not exist yet for an image.
        Its exceptions are raised here, and its partial result is removed. Where nothing is to be written, or the disk of the
        store is full, it builds below the folder `scratch`, and that is removed when the `with` ends. `made_for` names the case.
        `on_wait` is called with the builder's name and start time, `warn` with a description of a broken entry.

        Raises `InfraError` when the store cannot be used or the disk below `scratch` is full as well.
        """
        said: set[str] = set()

        def warn_once(message: str) -> None:
            if message not in said:
                said.add(message)
                warn(message)

        with ExitStack() as stack:
            with guarded(self.root):
                entry = self._checker.look(kind, key.digest, warn_once)
            if entry is None and self.writes.writes(kind):
                try:
                    entry = self._maker.make(kind, key, build, made_for, on_wait, warn_once)
                except StoreFullError as full:
                    warn_once(str(full))
            if entry is None:
                entry = stack.enter_context(unstored(kind, key, build, scratch, made_for))
            stack.callback(locks.close, entry.lock_fd)
            if not entry.hit:
                self.notes.add(kind, key, made_for)
            yield entry

    # --- entries ----------------------------------------------------------------------------------------------------------

    def verify(self, kind: Kind, key: str) -> str:
        """Read an entry in full and describe its fault; empty if it has none."""
        with guarded(self.root):
            return self._checker.verify(kind, key)

    def entries(self) -> Iterator[tuple[Kind, str, Path]]:
        """Yield kind, key and folder of every entry, intact or not."""
        for kind in Kind:
            for shard in listed(self.base / f"{kind}s"):
                for folder in listed(shard):
                    yield kind, folder.name, folder

    def last_used(self, kind: Kind, key: str) -> float | None:
        """Return the time of last use in seconds since 1970, kept as the mtime of the entry's lock.

        None where there is no entry.
        """
        try:
            return self._layout.lock(kind, key).stat().st_mtime
        except OSError:
            return None

    def touch(self, kind: Kind, key: str) -> None:
        """Mark an entry as used without reading it."""
        self._checker.touch(kind, key)

    def remove(self, kind: Kind, key: str, *, even_if_used: bool = False) -> bool:
        """Remove an entry. False if a process uses or builds it, or there is none.

        `even_if_used` is for a broken entry: no new reader gets it, and it is deleted when its last reader is gone. If it has
        been replaced since by an intact one, that one stays.
        """
        with guarded(self.root):
            return self._maker.remove(kind, key, even_if_used=even_if_used)

    def in_use(self, kind: Kind, key: str) -> bool:
        """Tell whether a process reads an entry at this moment."""
        with guarded(self.root):
            try:
                fd = locks.sole(self._layout.lock(kind, key))
            except FileNotFoundError:
                return False
            locks.close(fd)
            return fd is None

    # --- leftovers --------------------------------------------------------------------------------------------------------

    def trash(self, path: Path) -> bool:
        """Rename another file or folder below the root out of the way, and delete it. False if it does not exist."""
        with guarded(self.root):
            return self._staging.trash(path)

    def sweep(self) -> int:
        """Remove leftovers of dead makers. Returns their number."""
        with guarded(self.root):
            return self._staging.sweep()

    def sweep_staged(self) -> int:
        """Do as `sweep` for staged entries alone, which may be large. Where there are none, it reads one folder."""
        with guarded(self.root):
            return self._staging.sweep_staged()
