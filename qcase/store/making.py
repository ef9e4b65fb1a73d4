"""Entries made and removed by the holder of the builder's lock."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qcase import canonical
from qcase.errors import InfraError
from qcase.host import locks
from qcase.host.crash_cleanup import remove_tree
from qcase.host.file_state import Stat, settle
from qcase.host.files import flush, flush_tree, write_aside, write_flushed
from qcase.host.trees import Tree
from qcase.store import keys
from qcase.store.checking import Checker, Say
from qcase.store.content import Entry, Kind, Manifest, digest_of, disarm, facts_of
from qcase.store.full_disk import full_disk, full_is_no_failure, guarded, is_full
from qcase.store.layout import Layout, content_in
from qcase.store.staging import Staging

if TYPE_CHECKING:
    from filelock import FileLock

_COURTESY = 0.5  # seconds after which a holder without a name is reported: it writes its name a moment after it took the lock
Build = Callable[[Tree], None]


class Maker:
    """Makes and removes entries, one process per key at a time. `trace` is called with the name of each step."""

    def __init__(self, layout: Layout, checker: Checker, staging: Staging, trace: Say) -> None:
        self.added = 0  # entries that this process has stored
        self._layout = layout
        self._checker = checker
        self._staging = staging
        self._trace = trace

    def make(self, kind: Kind, key: keys.Key, build: Build, made_for: str, on_wait: Say, warn: Say) -> Entry:
        """Build and store an entry, or wait for the process that does. Raises `StoreFullError` where the disk is full."""
        with full_is_no_failure(self._layout.root, kind, key), guarded(self._layout.root):
            self._staging.prepare()
            lock, found, broken = self._become_builder(kind, key, on_wait, warn)
        if found is not None:
            return found
        assert lock is not None
        try:
            with full_is_no_failure(self._layout.root, kind, key), guarded(self._layout.root):
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

    def remove(self, kind: Kind, key: str, *, even_if_used: bool = False) -> bool:
        """Remove an entry. False if a process uses or builds it, or there is none. `even_if_used`: see `Store.remove`."""
        self._staging.prepare()
        lock = self._builders_lock(kind, key)
        if not locks.try_lock(lock):
            return False
        broken = None
        try:
            if even_if_used:
                broken = locks.open_lock(self._layout.lock(kind, key))
                if not self._checker.verify(kind, key):
                    return True
            return self._staging.throw_away(kind, key, broken=broken)
        finally:
            locks.close(broken)
            lock.release()

    # --- the builder's lock -----------------------------------------------------------------------------------------------

    def _become_builder(
        self, kind: Kind, key: keys.Key, on_wait: Say, warn: Say
    ) -> tuple[FileLock | None, Entry | None, int | None]:
        """Take the builder's lock; or return the entry that another process made meanwhile.

        Returns the lock, that entry, and the broken entry's lock descriptor from `Checker.inspect`.
        """
        lock = self._builders_lock(kind, key.digest)
        began = time.monotonic()

        def holder() -> str:
            unknown = f"another process, which builds this {kind}" if time.monotonic() - began > _COURTESY else ""
            return self._describe_holder(kind, key.digest) or unknown

        for got in locks.attempts(lock, holder, on_wait):
            try:
                # Checked even without the lock: when the builder is done, all waiting processes go on at once and not one by one.
                found, broken = self._checker.inspect(kind, key.digest, warn)
            except BaseException:
                lock.release()
                raise
            if found is not None:
                lock.release()
                return None, found, None
            if got:
                return lock, None, broken
            locks.close(broken)
        raise AssertionError("unreachable")

    def _builders_lock(self, kind: Kind, key: str) -> FileLock:
        from filelock import FileLock  # 40 ms that a warm run does not need

        return FileLock(self._layout.locks / f"{kind}-{key}.lock")

    def _holder(self, kind: Kind, key: str) -> Path:
        return self._layout.locks / f"{kind}-{key}.holder"

    def _announce(self, kind: Kind, key: str, made_for: str) -> None:
        about: dict[str, canonical.JSON] = {
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "case": made_for,
            "since": time.time(),
        }
        with contextlib.suppress(OSError):  # a courtesy
            write_aside(self._holder(kind, key), canonical.canonical(about))

    def _describe_holder(self, kind: Kind, key: str) -> str:
        try:
            about = canonical.parse(self._holder(kind, key).read_bytes())
            since = time.strftime("%H:%M:%S", time.localtime(about["since"]))
            host = "" if about["host"] == os.uname().nodename else f" on {about['host']}"
            case = f" ({about['case']})" if about["case"] else ""
            who = "another build of this run" if about["pid"] == os.getpid() and not host else f"process {about['pid']}"
            return f"{who}{host}{case}, which builds this {kind} since {since}"
        except (OSError, ValueError, TypeError, KeyError):
            return ""

    # --- steps of making --------------------------------------------------------------------------------------------------

    def _make_room(self, kind: Kind, key: str, broken: int | None, warn: Say) -> Entry | None:
        """Remove the broken entry, and nothing else.

        If the builders' locks were lost, another builder may have installed the entry since, and it may be in use: then that
        entry is returned. The lock's inode identifies an entry; the broken one's is kept open, so that its inode is not used
        again.
        """
        lock = self._layout.lock(kind, key)
        with ExitStack() as stack:
            while not (locks.is_at(broken, lock) if broken is not None else not lock.exists()):
                winner, broken = self._checker.inspect(kind, key, warn)
                stack.callback(locks.close, broken)
                if winner is not None:
                    return winner
            self._staging.throw_away(kind, key, broken=broken)
        return None

    def _put(self, kind: Kind, key: keys.Key, build: Build, made_for: str, warn: Say) -> Entry:
        """Store a new entry: stage, build, seal, flush, digest, write the manifest, rename."""
        with ExitStack() as cleanup:
            with full_is_no_failure(self._layout.root, kind, key), guarded(self._layout.root):
                staged, lock_fd = self._staging.stage(kind, key.digest, cleanup)
                content = content_in(staged, kind)
                if kind.is_folder:
                    make_content(content)
                self._trace("staged")
            began = time.monotonic()
            with full_is_no_failure(self._layout.root, kind, key):
                build(content)
            seconds = time.monotonic() - began
            self._trace("built")
            with full_is_no_failure(self._layout.root, kind, key), guarded(self._layout.root):
                facts_of(kind, content)  # it exists, and has the right type
                for other in Tree(staged).names():
                    if other != kind.content:
                        (Tree(staged) / other).remove()  # other files that the build left beside it
                digest, listing, facts = self._seal(kind, content)
                manifest = Manifest(
                    kind, key.digest, key.parts, digest, listing, facts, made_for, round(time.time(), 3), round(seconds, 3)
                )
                # From here on the lock belongs to the entry; it was held under its first name, so no sweeper can come between.
                self._staging.lock(staged).rename(staged / "lock")
                write_flushed(staged / "manifest.json", manifest.encode())
                staged.chmod(0o755)  # regardless of the umask: another user's reader reads it
                flush(staged)
                self._trace("manifest")
                lost = self._install(staged, kind, key.digest, warn)
                if lost is not None:
                    return lost
                self._trace("renamed")
                folder = self._layout.folder(kind, key.digest)
                for parent in (folder, folder.parent, folder.parent.parent):
                    flush(parent)
                self._trace("installed")
            cleanup.pop_all()
            self.added += 1
            return Entry(kind, key.digest, content_in(folder, kind), manifest, hit=False, lock_fd=lock_fd)

    def _seal(self, kind: Kind, content: Tree) -> tuple[str, list[list[str]], Stat]:
        """Seal a build's result and flush it. Read it once every later change would show. Returns digest, listing and facts."""
        modes: dict[str, int] = {}
        if kind is Kind.IMAGE:
            content.chmod(0o444)
        else:
            modes = disarm(content)
        self._trace("sealed")
        flush_tree(content)
        self._trace("flushed")
        facts = facts_of(kind, content)
        settle(facts)
        digest, listing = digest_of(kind, content, modes)
        self._trace("digested")
        return digest, listing, facts

    def _install(self, staged: Path, kind: Kind, key: str, warn: Say) -> Entry | None:
        """Rename an entry into place.

        If another process was faster, which takes a lost builder's lock, return its equivalent entry.
        """
        folder = self._layout.folder(kind, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(3):
            try:
                staged.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == 2:
                    raise
                winner, broken = self._checker.inspect(kind, key, warn)
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


def make_content(content: Tree) -> None:
    """Make the folder that a build fills, without default access lists inherited from the folders above."""
    content.mkdir()
    with content.folder() as fd, contextlib.suppress(OSError):
        os.removexattr(fd, "system.posix_acl_default")


# --- without the store --------------------------------------------------------------------------------------------------


@contextmanager
def unstored(kind: Kind, key: keys.Key, build: Build, scratch: Path, made_for: str) -> Iterator[Entry]:
    """Build for this run alone, outside the store."""
    folder = scratch / f"{kind}-{key.short}-{os.urandom(4).hex()}"
    content = content_in(folder, kind)
    try:
        try:
            _make_folder(folder)
            if kind.is_folder:
                make_content(content)
            build(content)
            facts_of(kind, content)  # it exists, and has the right type
            listing = digest_of(kind, content, disarm(content))[1] if kind.is_folder else []
        except OSError as error:
            if not is_full(error, scratch):
                raise
            raise full_disk(f"the {kind} for {made_for or key.short} does not fit", scratch) from error
        digest = canonical.digest(listing) if kind.is_folder else ""
        yield Entry(
            kind, key.digest, content, Manifest(kind, key.digest, key.parts, digest, listing, made_for=made_for), False, None
        )
    finally:
        remove_tree(folder)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        if is_full(error, folder):
            raise
        raise InfraError(f"cannot build in this folder: {error.strerror}", where=str(folder)) from error
