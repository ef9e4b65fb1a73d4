"""Paths of a store, and who may read and write them."""

from __future__ import annotations

import errno
import functools
import os
import stat
from pathlib import Path

from qcase.errors import InfraError, UsageError
from qcase.host.locks import CACHE_DIR_VARIABLE
from qcase.host.trees import Tree
from qcase.store.content import ENTRY_FORMAT, Kind

GROUP_VARIABLE = "QCASE_CACHE_GROUP"
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache made by qcase. It can be deleted at any time.\n"


class Layout:
    """Paths of a store, as `qcase.store.store` draws them. `notes` replaces `checked/` in a store that is only read."""

    def __init__(self, root: Path, notes: Path | None = None) -> None:
        self.root = root
        self.base = root / f"v{ENTRY_FORMAT}"
        self.staging = self.base / "staging"
        self.locks = self.base / "locks"
        self.checked = self.base / "checked" if notes is None else notes
        self.last = self.base / "last"
        self.runs = self.base / "runs"
        self.guests_lock = self.base / "guests.lock"

    def folder(self, kind: Kind, key: str) -> Path:
        """Return the folder of a key's entry, which may not exist."""
        return _folder(self.base, kind, key)

    def content(self, kind: Kind, key: str) -> Tree:
        """Return the content of a key's entry, which may not exist."""
        return content_in(self.folder(kind, key), kind)

    def lock(self, kind: Kind, key: str) -> Path:
        """Return the lock file of an entry, which readers hold shared."""
        return self.folder(kind, key) / "lock"

    def checked_facts(self, kind: Kind, key: str) -> Path:
        """Return the note about an entry that was read in full since it was stored."""
        return self.checked / f"{kind}-{key}.json"

    def make(self) -> None:
        """Make the folders, once. For an existing store this costs two system calls."""
        if not (self.last.is_dir() and self.staging.is_dir()):  # `last` is made last; archives may have lost the empty ones
            make_private(self.root, self.base)
            for folder in (*(self.base / f"{kind}s" for kind in Kind), self.staging, self.locks, self.checked, self.last):
                folder.mkdir(parents=True, exist_ok=True)
            tag = self.root / "CACHEDIR.TAG"
            if not tag.exists():
                tag.write_text(_TAG)
        check_private(self.root, self.base)
        if not os.access(self.staging, os.W_OK):
            raise PermissionError(errno.EACCES, "may not be written to", str(self.staging))


@functools.lru_cache(maxsize=256)  # a case that hits asks a dozen times for two of them
def _folder(base: Path, kind: Kind, key: str) -> Path:
    return base / f"{kind}s/{key[:2]}/{key}"


def content_in(folder: Path, kind: Kind) -> Tree:
    """Return the content below an entry's folder, in its place or staged."""
    return Tree(folder / kind.content, what=f"the {kind}") if kind.is_folder else Tree(folder, kind.content, f"the {kind}")


# --- whose it is --------------------------------------------------------------------------------------------------------


def make_private(root: Path, base: Path) -> None:
    """Make the folders of a store for their owner alone, or readable for the members of `QCASE_CACHE_GROUP`."""
    group = _group()
    if not root.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700 if group is None else 0o755)  # whatever the umask says
    base.mkdir(exist_ok=True)
    if base.stat().st_uid == os.geteuid():
        if group is not None:
            os.chown(base, -1, group)
        base.chmod(0o700 if group is None else 0o750)


def check_private(root: Path, base: Path) -> None:
    """Refuse a store whose entries other users could replace. On the caller's own folders the permission is removed instead."""
    for folder in (root, base):
        about = folder.stat()
        foreign = about.st_uid not in (0, os.geteuid()) and os.geteuid() != 0
        if about.st_mode & 0o022 and os.geteuid() in (0, about.st_uid):
            folder.chmod(stat.S_IMODE(about.st_mode) & ~0o022)
        elif foreign or about.st_mode & 0o022:
            whose = f"belongs to the user {about.st_uid}" if foreign else f"has the mode {stat.S_IMODE(about.st_mode):04o}"
            raise InfraError(
                f"others may write to the store: it {whose}",
                where=str(folder),
                hint=f"set {CACHE_DIR_VARIABLE} to a folder of your own; --cache-readonly reads another user's store",
            )


def check_not_writable(root: Path, base: Path) -> None:
    """Refuse to read a store, maybe another user's, that more than one user may write to."""
    for folder in (root, base):
        about = folder.stat()
        if about.st_mode & 0o022:
            raise InfraError(
                f"others may write to the store: it has the mode {stat.S_IMODE(about.st_mode):04o}",
                where=str(folder),
                hint="its owner has to take that away: chmod go-w",
            )


def _group() -> int | None:
    """Return the group that may read the store, configured by its name or its number."""
    named = os.environ.get(GROUP_VARIABLE, "")
    if not named:
        return None
    import grp

    try:
        return int(named) if named.isdecimal() else grp.getgrnam(named).gr_gid
    except KeyError:
        raise UsageError("there is no such group", where=f"{GROUP_VARIABLE}={named}") from None
