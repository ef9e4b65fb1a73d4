"""Listings of folders, and their digests."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qcase.canonical import digest
from qcase.disk.image_digest import digest_of_file
from qcase.errors import BuildError, InfraError, QcaseError
from qcase.host.planted import PlantedError, kind_of, printable
from qcase.host.trees import LARGEST, Tree


@dataclass(frozen=True)
class TreeEntry:
    """A file, link or empty folder below a folder.

    `type` is "file", "exec" (a file with its owner's executable bit), "link" or "dir" (an empty folder); `content` the sha256 of
    a file, the target of a link, and empty for a folder.
    """

    path: str
    type: str
    content: str


def tree_listing(
    path: Path,
    *,
    ignore: Sequence[str] = (),
    without: Collection[Path] = (),
    digests: bool = True,
    caches: bool = True,
) -> tuple[TreeEntry, ...]:
    """List every entry below `path` that can matter to a build, sorted by the bytes of its name.

    Links are never followed. `ignore` holds shell patterns for names (not paths) that are passed over, with a slash before them
    only where they are right below `path`; a folder whose entries are all ignored counts as empty. Paths in `without`, relative
    to this `path`, count as missing, and so does a folder that holds nothing else. Without `digests` no file is read, and its
    content stays empty. Without `caches` folders below it that carry a CACHEDIR.TAG do not count. Raises `BuildError` for a
    socket, a device or a fifo, and for unreadable files.
    """
    rows = []
    for name, full, info in _walk(path, ignore, without=frozenset(map(os.fsencode, without)), caches=caches):
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFDIR:
            rows.append((name, "dir", ""))
        elif kind == stat.S_IFLNK:
            rows.append((name, "link", _target(full)))
        else:
            rows.append((name, "exec" if info.st_mode & stat.S_IXUSR else "file", _sha256(full) if digests else ""))
    rows.sort()
    return tuple(TreeEntry(_text(name), type_, content) for name, type_, content in rows)


def file_entry(name: str, path: Path) -> TreeEntry:
    """Return the `tree_listing` entry of one regular file, under another name. Raises as `tree_listing` does."""
    try:
        executable = path.stat().st_mode & stat.S_IXUSR
    except OSError as error:
        raise _unreadable(os.fsencode(path), error) from None
    return TreeEntry(name, "exec" if executable else "file", _sha256(os.fsencode(path)))


def listing_digest(listing: Sequence[TreeEntry]) -> str:
    """Return the digest of a result of `tree_listing`."""
    return digest([row(entry) for entry in listing])


def tree_digest(path: Path, *, ignore: Sequence[str] = ()) -> str:
    """Return the digest of a folder of sources, see `tree_listing`."""
    return listing_digest(tree_listing(path, ignore=ignore))


def overlay_listing(tree: Tree) -> list[list[str]]:
    """List the entries that an overlay puts into the guest: `[path, type, mode, content]`, sorted by the bytes of the path.

    `type` is "file", "link", "dir", or "hard" for another name of a file that is above in the list; `mode` all twelve permission
    bits in octal (empty for a link, which has none); `content` as in `TreeEntry`, for a hard link the first name. All folders are
    named, for their modes, save the overlay's own: the guest's `/` stays as it is. Owners and times are set by the injector and
    do not count. Raises `BuildError` as `tree_listing` does, and for entries that no image can hold: attributes, sizes above
    limits.
    """
    found = sorted((os.fsencode(path), path, about) for path, about in tree.walk())
    if sum(about.st_blocks for _, _, about in found if stat.S_ISREG(about.st_mode)) * 512 > _DATA:
        raise PlantedError(f"{tree.what} has more than {_DATA >> 30} GiB of data")
    rows: list[list[str]] = []
    first: dict[tuple[int, int], str] = {}
    for _, path, about in found:
        place, kind = tree / path, stat.S_IFMT(about.st_mode)
        mode = f"{stat.S_IMODE(about.st_mode):04o}"
        if kind == stat.S_IFDIR:
            with place.folder() as fd:
                _refuse_attributes(fd, place)
            rows.append([path, "dir", mode, ""])
        elif kind == stat.S_IFLNK:
            rows.append([path, "link", "", place.readlink()])
        elif kind != stat.S_IFREG:
            raise PlantedError(f"{place.shown} is {kind_of(kind)}; only files, links and folders can be stored")
        elif about.st_nlink > 1 and (known := first.setdefault((about.st_dev, about.st_ino), path)) != path:
            rows.append([path, "hard", mode, known])
        else:
            with place.opened() as fd:
                _refuse_attributes(fd, place)
                rows.append([path, "file", mode, _content(fd, place)])
    return rows


def overlay_content_digest(tree: Tree) -> str:
    """Return the digest of an overlay as it will be in the guest, see `overlay_listing`."""
    return digest(overlay_listing(tree))


_LARGE = 64 << 20  # bytes; of larger files holes are not read
_DATA = 16 << 30  # bytes on the disk of one overlay
# Attributes that no step can set, or that the host's own file system adds to every file, do not count.
_ATTRIBUTES = re.compile(r"user\.(?!overlay\.|fuseoverlayfs\.|containers\.).*|security\.capability|system\.posix_acl_.*")


def _refuse_attributes(fd: int, place: Tree) -> None:
    """Raise for an extended attribute that the guest would not see: a file capability, an access list, one of the user's."""
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):  # the file system has none
            return
        raise PlantedError(f"{place.shown} has extended attributes that cannot be listed: {error.strerror}") from None
    for name in sorted(names):
        if _ATTRIBUTES.fullmatch(name):
            raise PlantedError(
                f"{place.shown} has the extended attribute {printable(name)}, which does not get into the guest",
                hint="set it in the guest, by a command of the case",
            )


def _content(fd: int, place: Tree) -> str:
    """Return the sha256 of a file, of a large one by `digest_of_file`."""
    about = os.fstat(fd)
    if about.st_size > _LARGE:
        if about.st_size > _DATA and about.st_blocks * 512 < about.st_size and os.lseek(fd, 0, os.SEEK_HOLE) == about.st_size:
            raise PlantedError(f"{place.shown} has {about.st_size} bytes, and the file system does not tell its holes")
        return f"blocks {digest_of_file(fd)}"
    whole = hashlib.sha256()
    while data := os.read(fd, 1 << 20):
        whole.update(data)
    return whole.hexdigest()


# --- the file tree ----------------------------------------------------------------------------------------------------------


def row(entry: TreeEntry) -> list[str]:
    return [entry.path, entry.type, entry.content]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _walk(
    path: Path,
    ignore: Sequence[str],
    *,
    without: Collection[bytes] = (),
    caches: bool = True,
) -> Iterator[tuple[bytes, bytes, os.stat_result]]:
    """Yield `(relative name, full name, lstat)` of files, links and empty folders below `path`, in no order."""
    root = os.fsencode(path)
    pending: list[tuple[bytes, bytes, os.stat_result | None]] = [(b"", root, None)]
    while pending:
        prefix, folder, info = pending.pop()
        if not caches and prefix and is_cache(folder):
            continue
        empty = True
        try:
            with os.scandir(folder) as found:
                for item in found:
                    if any(_is_ignored(item.name, pattern, top=not prefix) for pattern in ignore):
                        continue
                    empty = False
                    if item.path in without:
                        continue
                    name = prefix + item.name
                    about = item.stat(follow_symlinks=False)
                    kind = stat.S_IFMT(about.st_mode)
                    if kind == stat.S_IFDIR:
                        pending.append((name + b"/", item.path, about))
                    elif kind in (stat.S_IFREG, stat.S_IFLNK):
                        yield name, item.path, about
                    else:
                        what = {stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket"}.get(kind, "a device")
                        raise BuildError(
                            f"{printable(_text(name))} is {what}; only files, links and folders can be stored", where=str(path)
                        )
        except OSError as error:
            raise _unreadable(folder, error) from None
        if info is not None and empty:
            yield prefix[:-1], folder, info


_CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55"


def is_cache(folder: bytes | str | Path) -> bool:
    """Tell whether a folder is tagged as a cache: https://bford.info/cachedir/."""
    tag = os.path.join(os.fsencode(folder), b"CACHEDIR.TAG")  # noqa: PTH118 - a Path cannot hold bytes
    try:
        fd = os.open(tag, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return os.read(fd, len(_CACHE_TAG)) == _CACHE_TAG
    except OSError:
        return False
    finally:
        os.close(fd)


def _is_ignored(name: bytes, pattern: str, *, top: bool) -> bool:
    anchored = pattern.startswith("/")
    return (top or not anchored) and fnmatch.fnmatchcase(_text(name), pattern[anchored:])


def _target(link: bytes) -> str:
    try:
        return _text(os.readlink(link))  # noqa: PTH115 - a Path cannot hold bytes
    except OSError as error:
        raise _unreadable(link, error) from None


def _sha256(path: bytes) -> str:
    try:
        # Not hashlib.file_digest: most sources are of a few KiB, and one read serves them.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            whole = hashlib.sha256()
            if (size := os.fstat(fd).st_size) > LARGEST:
                what = f"has {size} bytes, and a file of a case's sources may have {LARGEST}"
                raise BuildError(f"{printable(_text(path))} {what}")
            while data := os.read(fd, 1 << 20):
                whole.update(data)
        finally:
            os.close(fd)
    except OSError as error:
        raise _unreadable(path, error) from None
    return whole.hexdigest()


def _unreadable(path: bytes, error: OSError) -> QcaseError:
    """Make the error for an unreadable file. A missing file or permission is the case's fault, others are the machine's."""
    fault = BuildError if error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ELOOP, errno.ENXIO) else InfraError
    return fault(f"cannot read: {error.strerror}", where=printable(_text(path)))
