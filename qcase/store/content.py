"""Content of a store entry: its digest, the stat facts of its files, flushing it to the disk, and removing it.

An image is one file, `image.img`; an overlay is a folder, `content/`, with the guest's modes in it but for setuid and setgid, and
so is a download.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from qcase import canonical
from qcase.disk import image_digest
from qcase.errors import InfraError
from qcase.host import file_state
from qcase.host.crash_cleanup import remove_tree as remove_tree
from qcase.host.file_state import Stat
from qcase.host.planted import PlantedError, printable
from qcase.host.trees import SPECIAL, Tree
from qcase.store import listings


class Kind(StrEnum):
    OVERLAY = "overlay"
    IMAGE = "image"
    DOWNLOAD = "download"

    @property
    def content(self) -> str:
        """Return the file name of an entry's content."""
        return "image.img" if self is Kind.IMAGE else "content"

    @property
    def is_folder(self) -> bool:
        return self is not Kind.IMAGE


def digest_of(kind: Kind, content: Tree, modes: Mapping[str, int] | None = None) -> tuple[str, list[list[str]]]:
    """Return the digest of an entry's content, and for a folder the listing that it is taken over. `modes`: see `disarm`."""
    if kind is Kind.IMAGE:
        with content.opened() as fd:
            return image_digest.digest_of_file(fd), []
    listing = listings.overlay_listing(content)
    for row in listing if modes else ():
        row[2] = f"{modes[row[0]]:04o}" if modes and row[0] in modes else row[2]
    return canonical.digest(listing), listing


def on_disk(listing: list[list[str]]) -> list[list[str]]:
    """Return a listing as it is on the disk of the host: without setuid and setgid."""
    return [[path, type_, f"{int(mode, 8) & ~SPECIAL:04o}" if mode else "", content] for path, type_, mode, content in listing]


def disarm(content: Tree) -> dict[str, int]:
    """Remove setuid and setgid from the files of an overlay. Returns their previous modes, which are for the guest alone."""
    modes = {}
    for path, about in content.walk():
        if not stat.S_ISLNK(about.st_mode) and about.st_mode & SPECIAL:
            modes[path] = stat.S_IMODE(about.st_mode)
            (content / path).chmod(modes[path])
    return modes


def facts_of(kind: Kind, content: Tree) -> Stat:
    """Return `[name, size, mode, mtime, ctime, inode]` of each file in an entry, by name; times in nanoseconds. No byte is read.

    ctime, because no process can set it back: an edit that keeps size and mtime still shows. A folder's size depends on the
    filesystem, and its mtime follows from its entries; both are left out.
    """
    about = content.facts()
    if about is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(content.host))
    if stat.S_IFMT(about.st_mode) != (stat.S_IFDIR if kind.is_folder else stat.S_IFREG):
        raise InfraError("is not what was to be built", where=str(content.host))
    rows: Stat = [_row("", about)]
    if kind.is_folder:
        rows += [_row(path, about) for path, about in content.walk()]
        rows.sort(key=lambda row: str(row[0]).encode("utf-8", "surrogateescape"))
    return rows


def all_tell(content: Tree, facts: Stat) -> bool:
    """Tell whether an entry lies where its facts tell of every change: see `file_state.times_tell`."""
    about = content.facts()
    ctimes = {ctime for *_, ctime, _ in facts if isinstance(ctime, int)}
    return about is not None and all(file_state.times_tell(about.st_dev, ctime) for ctime in ctimes)


def _row(name: str, about: os.stat_result) -> list[canonical.JSON]:
    mode, ctime, inode = about.st_mode, about.st_ctime_ns, about.st_ino
    if stat.S_ISDIR(mode):
        return [name, 0, mode, 0, ctime, inode]
    return [name, about.st_size, mode, about.st_mtime_ns, ctime, inode]


def first_change(old: Stat, new: Stat) -> str:
    """Describe the first difference between two lists of facts."""
    before = {str(row[0]): row[1:] for row in old}
    after = {str(row[0]): row[1:] for row in new}
    for name in sorted({*before, *after}):
        shown = printable(name) if name else "its content"
        if name not in after:
            return f"{shown} is gone"
        if name not in before:
            return f"{shown} was added"
        if before[name][0] != after[name][0]:
            return f"{shown} has {after[name][0]} bytes, not {before[name][0]}"
        if before[name] != after[name]:
            return f"{shown} was changed after it was stored"
    return ""


def restore_modes(content: Tree, listing: list[list[str]]) -> None:
    """Restore an overlay's modes: an archive that was unpacked with a umask has lost some."""
    for path, type_, mode, _ in reversed(listing):  # a folder's entries before the folder itself
        if type_ != "link":
            with contextlib.suppress(PlantedError, FileNotFoundError):
                (content / path).chmod(int(mode, 8))


ENTRY_FORMAT = 2
_SEAL, _DIGITS = b',"seal":"', 64  # what is before the digits of a manifest's seal, and their number


@dataclass(frozen=True)
class Manifest:
    """Manifest of an entry: its inputs (`parts`), its content (`digest`, `listing`), and the stat facts of its files (`facts`).

    `digest`: for an overlay `listings.overlay_content_digest`, for an image `image_digest.file_digest` (empty where it was not
    stored). `listing`: an overlay's `listings.overlay_listing`; empty for an image. `facts`: see `_facts`.
    """

    kind: Kind
    key: str
    parts: Mapping[str, canonical.JSON]
    digest: str
    listing: list[list[str]] = field(default_factory=list)
    facts: list[list[canonical.JSON]] = field(default_factory=list)
    made_for: str = ""
    made_at: float = 0.0  # seconds since 1970, for display only
    seconds: float = 0.0  # how long it took

    def encode(self) -> bytes:
        """Encode as canonical JSON, with the sha256 of itself as `seal`."""
        plain: dict[str, canonical.JSON] = {
            "format": ENTRY_FORMAT,
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
        return canonical.canonical({**plain, "seal": canonical.digest(plain)})

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Decode a manifest. Raises `ValueError` for anything that `encode` has not written."""
        # Without its seal it is the text that was sealed. No string of JSON contains the mark: a quote in it has a backslash.
        before, _, after = data.rpartition(_SEAL)
        seal, rest = after[:_DIGITS], after[_DIGITS + 1 :]
        plain = None
        if hashlib.sha256(before + rest).hexdigest().encode() == seal:
            with contextlib.suppress(ValueError):
                plain = canonical.parse(data)
        if not isinstance(plain, dict) or plain.pop("seal", None) != seal.decode():
            raise ValueError("its manifest was edited or cut off")
        if plain.pop("format") != ENTRY_FORMAT:
            raise ValueError("its manifest is of another format")
        return cls(**{**plain, "kind": Kind(plain["kind"])})


@dataclass(frozen=True)
class Entry:
    """A result that may be read until its `with` block ends. A child that inherits `lock_fd` may read it for as long as it lives.

    `content` is the overlay's folder or the image. `hit`: the entry was in the store already. `lock_fd` is None where nothing was
    stored; pass it on as `pass_fds`, never unlock it.
    """

    kind: Kind
    key: str
    content: Tree
    manifest: Manifest
    hit: bool
    lock_fd: int | None

    @property
    def image(self) -> Path:
        """Return the path of an image, which is a file and was checked. Files in a folder are reached by `content` alone."""
        assert self.kind is Kind.IMAGE
        return self.content.host

    @property
    def stored(self) -> bool:
        return self.lock_fd is not None

    @property
    def digest(self) -> str:
        """Return the digest of the content: an image's key contains those of its overlays."""
        return self.manifest.digest

    @property
    def pass_fds(self) -> tuple[int, ...]:
        return () if self.lock_fd is None else (self.lock_fd,)
