"""Checks of entries against their manifests: by stat facts, and in full where these differ."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from typing import Any

from qcase import canonical
from qcase.errors import QcaseError
from qcase.host import locks
from qcase.host.file_state import settle
from qcase.host.files import write_aside
from qcase.host.trees import Tree
from qcase.store.content import Entry, Kind, Manifest, all_tell, digest_of, facts_of, first_change, on_disk, restore_modes
from qcase.store.full_disk import errno_of
from qcase.store.layout import Layout, check_not_writable

Say = Callable[[str], None]


class Checker:
    """Finds intact entries. `readonly`: nothing of the store is written; facts are noted only outside of it."""

    def __init__(self, layout: Layout, *, readonly: bool) -> None:
        self._layout = layout
        self._readonly = readonly
        self._trusted = not readonly  # the folders of a store that is only read are checked at its first entry

    def manifest(self, kind: Kind, key: str) -> Manifest:
        """Read a manifest. Raises `OSError`, `ValueError`, `TypeError` or `KeyError` for any that is missing or damaged."""
        manifest = Manifest.decode((self._layout.folder(kind, key) / "manifest.json").read_bytes())
        if (manifest.kind, manifest.key) != (kind, key):
            raise ValueError(f"its manifest is that of the {manifest.kind} {manifest.key[:12]}")
        return manifest

    def touch(self, kind: Kind, key: str) -> None:
        """Mark an entry as used without reading it."""
        if not self._readonly:
            with contextlib.suppress(OSError):
                os.utime(self._layout.lock(kind, key))

    def look(self, kind: Kind, key: str, warn: Say) -> Entry | None:
        """Return the entry of a key if it exists and is intact, with its shared lock held."""
        entry, broken = self.inspect(kind, key, warn)
        locks.close(broken)
        return entry

    def inspect(self, kind: Kind, key: str, warn: Say) -> tuple[Entry | None, int | None]:
        """Do as `look`.

        For a broken entry, also return a descriptor of its lock, not held: while open, it identifies that entry.
        """
        lock_fd = locks.share(self._layout.lock(kind, key))
        if lock_fd is None:
            return None, None
        if not self._trusted:
            check_not_writable(self._layout.root, self._layout.base)
            self._trusted = True
        try:
            try:
                manifest = self.manifest(kind, key)
                problem = self._problem(manifest)
            except FileNotFoundError:
                fcntl.flock(lock_fd, fcntl.LOCK_UN)  # no other process has this descriptor
                return None, lock_fd  # no manifest: rubbish
            except (ValueError, TypeError, KeyError) as error:
                problem = str(error) if isinstance(error, ValueError) else "its manifest is no manifest"
            if problem:
                warn(f"the stored {kind} {key[:12]} is not used, {problem}")
                fcntl.flock(lock_fd, fcntl.LOCK_UN)
                return None, lock_fd
            self.touch(kind, key)
            return Entry(kind, key, self._layout.content(kind, key), manifest, hit=True, lock_fd=lock_fd), None
        except BaseException:
            locks.close(lock_fd)
            raise

    def _problem(self, manifest: Manifest, *, in_full: bool = False) -> str:
        """Describe the fault of an entry's content; empty if it has none.

        Reads in full only if facts differ, or with `in_full`.
        """
        content = self._layout.content(manifest.kind, manifest.key)
        try:
            facts = facts_of(manifest.kind, content)
            telling = all_tell(content, facts)
            known = telling and (facts == manifest.facts or facts == self._checked_facts(manifest))
            if known and not in_full:
                return ""
            # Other names or sizes: no need to read anything.
            if changed := first_change([row[:2] for row in manifest.facts], [row[:2] for row in facts]):
                return changed
            for attempt in range(2):
                facts = facts_of(manifest.kind, content)
                telling, settled = all_tell(content, facts), settle(facts)
                if _is_as_stored(manifest, content):
                    # Unsettled facts: the content may have changed without a change of the facts.
                    if not known and telling and settled and facts == facts_of(manifest.kind, content):
                        self._record_facts(manifest, facts)
                    return ""
                if attempt == 0 and not self._readonly:
                    restore_modes(content, manifest.listing)
            return first_change(manifest.facts, facts) or "its content is not what was stored"
        except (OSError, QcaseError) as error:
            if errno_of(error) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise  # a fault of this machine, not of the entry
            return f"it cannot be read: {error}"

    def verify(self, kind: Kind, key: str) -> str:
        """Read an entry in full and describe its fault; empty if it has none."""
        lock_fd = locks.share(self._layout.lock(kind, key))
        try:
            if lock_fd is None:
                return "it has no lock file"
            return self._problem(self.manifest(kind, key), in_full=True)
        except FileNotFoundError:
            return "it has no manifest"
        except (ValueError, TypeError, KeyError) as error:
            return str(error) if isinstance(error, ValueError) else "its manifest is no manifest"
        finally:
            locks.close(lock_fd)

    def _checked_facts(self, manifest: Manifest) -> Any:
        try:
            digest, facts = canonical.parse(self._layout.checked_facts(manifest.kind, manifest.key).read_bytes())
        except (OSError, ValueError, TypeError):
            return None
        return facts if digest == manifest.digest else None

    def _record_facts(self, manifest: Manifest, facts: list[list[canonical.JSON]]) -> None:
        if self._readonly and self._layout.checked.is_relative_to(self._layout.base):
            return  # it is read in full each time
        with contextlib.suppress(OSError):
            self._layout.checked.mkdir(parents=True, exist_ok=True)
            write_aside(self._layout.checked_facts(manifest.kind, manifest.key), canonical.canonical([manifest.digest, facts]))


def _is_as_stored(manifest: Manifest, content: Tree) -> bool:
    """Tell whether an entry's content, read in full, matches its manifest."""
    digest, listing = digest_of(manifest.kind, content)
    if manifest.kind is Kind.IMAGE:
        return digest == manifest.digest
    return listing == on_disk(manifest.listing) and canonical.digest(manifest.listing) == manifest.digest
