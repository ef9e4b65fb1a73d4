"""Folders that a build step can write to: reached by descriptor, never by path.

A step may leave anything in the folders that are mounted into it: links to files of the host, fifos, devices, a folder that it
swaps for a link during a read. So all access to such a folder goes through a `Tree`, which is no `Path` and cannot be given to
any function that takes one:

    Tree(root)            a folder of qcase: a step has it as a mount, so it cannot replace it
    Tree(root) / "a/b"    a place in it, which need not exist; never above it

    resolve   one openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS) from the root's descriptor; on kernels
              before 5.6 component by component with O_NOFOLLOW | O_DIRECTORY
    read      regular files alone, opened with O_NONBLOCK and looked at by fstat, up to a number of bytes
    write     new files alone (O_EXCL), or a new file renamed over the old one
    list      up to a number of names; walks up to a number of entries and a depth

An unexpected kind of file raises `PlantedError`, which is a `BuildError`: the build is at fault. A missing file raises
`FileNotFoundError`; a full disk and the like stay an `OSError`. Names are bytes on Linux; here they are text with
`surrogateescape`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qcase.host.beneath import open_beneath
from qcase.host.crash_cleanup import remove_at, remove_tree
from qcase.host.holes import copy_data, write_all
from qcase.host.planted import HINT, PLANTED, kind_of, obstacle, printable
from qcase.host.planted import PlantedError as PlantedError

LIMIT = 16 << 20  # bytes of a file that are read into memory
LARGEST = 4 << 30  # bytes of a file that are read in pieces
NAMES = 100_000  # entries of one tree; an overlay or a staging root has thousands
DEPTH = 256  # folders in folders
SPECIAL = stat.S_ISUID | stat.S_ISGID  # bits that are dangerous on the host

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Tree:
    """A folder that a step can write to, or a place in it. `what`: the name of the whole folder in messages.

    Mounts take the folder itself; see `host`.
    """

    root: Path
    below: str = ""
    what: str = "the build's folder"

    def __post_init__(self) -> None:
        if self.below and any(part in ("", ".", "..") for part in self.below.split("/")):
            raise PlantedError(f"{printable(self.below)} is no path in {self.what}")
        if "\0" in self.below:
            raise PlantedError(f"{self.below!a} is no path in {self.what}")
        if self.below.count("/") >= DEPTH:
            raise PlantedError(f"{self.what} has folders in more than {DEPTH} folders", hint=HINT)

    def __truediv__(self, path: str) -> Tree:
        return Tree(self.root, f"{self.below}/{path}" if self.below else path, self.what)

    def called(self, what: str) -> Tree:
        """Return the same tree under another name in messages."""
        return Tree(self.root, self.below, what)

    @property
    def host(self) -> Path:
        """Return the path on the host: for mounts, and before a step begins.

        `tests/static/test_house.py` lists the permitted callers.
        """
        return self.root / self.below if self.below else self.root

    def __str__(self) -> str:
        """Return the path on the host, for display."""
        return str(self.host)

    @property
    def name(self) -> str:
        return self.below.rpartition("/")[2] or self.root.name

    @property
    def shown(self) -> str:
        """Return the name of this place in messages."""
        return f"{printable(self.below)} in {self.what}" if self.below else self.what

    # --- looking ------------------------------------------------------------------------------------------------------------

    def facts(self) -> os.stat_result | None:
        """Return `lstat` of this place; None if it is missing, or if a link or a file is on the way."""
        try:
            with self._parent() as (above, name):
                return os.stat(name, dir_fd=above, follow_symlinks=False)
        except (FileNotFoundError, PlantedError):
            return None

    def exists(self) -> bool:
        return self.facts() is not None

    def is_file(self) -> bool:
        return _is(self.facts(), stat.S_IFREG)

    def is_dir(self) -> bool:
        return _is(self.facts(), stat.S_IFDIR)

    def is_symlink(self) -> bool:
        return _is(self.facts(), stat.S_IFLNK)

    def readlink(self) -> str:
        with self._parent() as (above, name):
            return os.readlink(name, dir_fd=above)

    def followed(self, path: str, *, outside: bool = False) -> Tree | None:
        """Resolve a path through links, as after chroot to this folder; None where it leads to nothing.

        With `outside`, absolute links and those that go up too far lead to nothing. Each component is checked by itself, and the
        result has to be opened like any other place.
        """
        pending = path.split("/")
        here: list[str] = []
        links = 0
        while pending:
            name = pending.pop(0)
            if name in ("", "."):
                continue
            if name == "..":
                if outside and not here:
                    return None
                del here[-1:]
                continue
            place = self / "/".join((*here, name))
            about = place.facts()
            if about is None:
                return None
            if not stat.S_ISLNK(about.st_mode):
                here.append(name)
                continue
            links += 1
            target = place.readlink()
            if links > 40 or (outside and target.startswith("/")):  # as Linux has it
                return None
            if target.startswith("/"):
                here = []
            pending = [*target.split("/"), *pending]
        return self / "/".join(here) if here else self

    def leads_to(self, path: str) -> bool:
        """Tell whether a path exists, as after chroot; a link at its end counts as existing."""
        above, _, name = path.strip("/").rpartition("/")
        found = self.followed(above)
        return found is not None and (found / name).exists()

    def names(self, limit: int = NAMES) -> list[str]:
        """List the names in the folder, sorted by bytes."""
        with self.folder() as fd:
            return [os.fsdecode(name) for name, _ in self._listed(fd, limit)]

    def listing(self, limit: int = NAMES) -> list[tuple[str, os.stat_result]]:
        """List the entries of the folder with their `lstat`, sorted by bytes."""
        with self.folder() as fd:
            return [(os.fsdecode(name), about) for name, about in self._listed(fd, limit)]

    def each(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the entries of the folder with their `lstat`, without a limit, and in no order."""
        with self.folder() as fd, self.fault(), os.scandir(fd) as found:
            for item in found:
                with contextlib.suppress(FileNotFoundError):
                    yield item.name, item.stat(follow_symlinks=False)

    def iterdir(self) -> list[Tree]:
        return [self / name for name in self.names()]

    def walk(self, limit: int = NAMES) -> Iterator[tuple[str, os.stat_result]]:
        """Yield everything below the folder as (path in it, lstat): a folder before its entries, names sorted by bytes."""
        pending: list[bytes] = [b""]
        count = 0
        while pending:
            here = pending.pop()
            place = self / os.fsdecode(here) if here else self
            with place.folder() as fd:
                rows = place._listed(fd, limit - count)
            count += len(rows)
            folders = []
            for name, about in rows:
                path = here + b"/" + name if here else name
                yield os.fsdecode(path), about
                if stat.S_ISDIR(about.st_mode):
                    folders.append(path)
            pending += reversed(folders)

    def _listed(self, fd: int, limit: int) -> list[tuple[bytes, os.stat_result]]:
        rows = []
        with self.fault(), os.scandir(fd) as found:
            for count, item in enumerate(found):
                if count == limit:
                    raise PlantedError(f"{self.what} has more than the {NAMES} files that qcase takes", hint=HINT)
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                    rows.append((os.fsencode(item.name), item.stat(follow_symlinks=False)))
        rows.sort()
        return rows

    # --- reading ------------------------------------------------------------------------------------------------------------

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Open a regular file to read, and give its descriptor. It never blocks; any other kind of file is an error."""
        with self.fault():
            fd = self._open(_FILE)
        try:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                raise self.planted(f"is {kind_of(about.st_mode)}, where a file is wanted")
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def folder(self) -> Iterator[int]:
        """Open a folder, to list or to work in, and give its descriptor."""
        with self.fault():
            fd = self._open(_FOLDER)
        try:
            yield fd
        finally:
            os.close(fd)

    def read_bytes(self, limit: int = LIMIT) -> bytes:
        """Read a file. More than `limit` bytes are an error."""
        pieces = []
        left = limit + 1
        with self.opened() as fd:
            while left > 0 and (piece := os.read(fd, min(left, _CHUNK))):
                pieces.append(piece)
                left -= len(piece)
        if left <= 0:
            raise self.planted(f"has more than the {limit} bytes that qcase reads of it")
        return b"".join(pieces)

    def read_text(self, limit: int = LIMIT) -> str:
        return self.read_bytes(limit).decode("utf-8", "surrogateescape")

    def sha256(self, limit: int = LARGEST) -> str:
        """Return the digest of a file. A file larger than `limit`, which may be one huge hole, is an error."""
        whole = hashlib.sha256()
        with self.opened() as fd:
            if os.fstat(fd).st_size > limit:
                raise self.planted(f"has more than the {limit} bytes that qcase reads of it")
            while data := os.read(fd, _CHUNK):
                whole.update(data)
        return whole.hexdigest()

    # --- writing ------------------------------------------------------------------------------------------------------------

    @contextmanager
    def created(self, mode: int = 0o644) -> Iterator[int]:
        """Create a file, and give its descriptor to write. It gets exactly these permissions, regardless of the umask."""
        with self._parent() as (above, name):
            fd = os.open(name, _NEW, 0o600, dir_fd=above)
        try:
            yield fd
            os.fchmod(fd, mode & ~SPECIAL)
        finally:
            os.close(fd)

    def write_bytes(self, data: bytes, mode: int = 0o644) -> None:
        """Write a new file. An existing file is an error."""
        with self.created(mode) as fd:
            write_all(fd, data)

    def appended(self) -> int:
        """Open a file to append, and return its descriptor. The file and the folders above it are made if they are missing."""
        if self.parent is not None:
            self.parent.mkdir(parents=True, exist_ok=True)
        with self._parent() as (above, name):
            fd = os.open(name, _APPEND, 0o644, dir_fd=above)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise self.planted("is in the way of a log")

    def write_text(self, text: str, mode: int = 0o644) -> None:
        self.write_bytes(text.encode("utf-8", "surrogateescape"), mode)

    def replace_bytes(self, data: bytes, mode: int = 0o644) -> None:
        """Replace a file atomically. An existing file or link of that name is replaced, and never written through."""
        aside = self.sibling(f".{self.name[:40]}.{os.urandom(6).hex()}")
        aside.write_bytes(data, mode)
        try:
            aside.rename(self)
        except BaseException:
            with contextlib.suppress(OSError, PlantedError):
                aside.unlink()
            raise

    def mkdir(self, mode: int = 0o755, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a folder, with exactly these permissions. `parents`: the folders above it too, with 0755."""
        if parents and (above := self.parent) is not None:
            above.mkdir(parents=True, exist_ok=True)
        if exist_ok and self.is_dir():
            return
        with self._parent() as (above_fd, name):
            try:
                os.mkdir(name, 0o700, dir_fd=above_fd)
            except FileExistsError:
                if exist_ok and self.is_dir():  # another process made it just now
                    return
                raise
        self.chmod(mode)

    def symlink_to(self, target: str) -> None:
        with self._parent() as (above, name):
            os.symlink(target, name, dir_fd=above)

    def hardlink_to(self, other: Tree) -> None:
        """Hard-link a file of a tree, or any other node but a folder, to this place."""
        with other._parent() as (source, old), self._parent() as (above, name):
            os.link(old, name, src_dir_fd=source, dst_dir_fd=above, follow_symlinks=False)

    def rename(self, target: Tree) -> None:
        with self._parent() as (source, old), target._parent() as (above, name):
            os.rename(old, name, src_dir_fd=source, dst_dir_fd=above)

    def chmod(self, mode: int, *, special: bool = False) -> None:
        """Set the permissions of a file or a folder, also of an unreadable one. A link's target is never changed.

        Setuid and setgid are dropped: they are for the guest alone, and recorded in the manifest. `special`: they are set, in an
        overlay that is being built, for the store to record.
        """
        with self.fault():
            handle = self._open(_HANDLE)
            try:
                if stat.S_ISLNK(os.fstat(handle).st_mode):
                    raise self.planted("is a symbolic link, where a file is wanted")
                os.chmod(f"/proc/self/fd/{handle}", mode if special else mode & ~SPECIAL)  # noqa: PTH101
            finally:
                os.close(handle)

    def unlink(self, *, missing_ok: bool = False) -> None:
        try:
            with self._parent() as (above, name):
                os.unlink(name, dir_fd=above)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove(self) -> None:
        """Remove this place and everything below it. A missing place is no error."""
        if not self.below:
            remove_tree(self.root)
            return
        with contextlib.suppress(FileNotFoundError), self._parent() as (above, name):
            remove_at(above, os.fsencode(name))

    def empty(self) -> None:
        """Remove everything in the folder."""
        for name in self.names():
            (self / name).remove()

    # --- copying ------------------------------------------------------------------------------------------------------------

    def copy_in(self, source: int, mode: int = 0o644) -> None:
        """Write a new file with the content of a descriptor. Holes stay holes where the file system reports them."""
        with self.created(mode) as fd:
            copy_data(source, fd)

    def copy_to(self, target: Tree, *, limit: int = NAMES) -> None:
        """Copy the folder into an existing one: files, links and folders, and nothing else.

        Modes, times of files, and hard links among them are kept; folders stay writable for their owner. An existing entry of the
        same type is left as it is.
        """
        known: dict[tuple[int, int], Tree] = {}
        for path, about in self.walk(limit):
            source, copy = self / path, target / path
            kind = stat.S_IFMT(about.st_mode)
            there = copy.facts()
            if there is not None and stat.S_IFMT(there.st_mode) == kind:
                pass
            elif kind == stat.S_IFDIR:
                copy.mkdir(stat.S_IMODE(about.st_mode) | 0o700)
            elif kind == stat.S_IFLNK:
                copy.symlink_to(source.readlink())
            elif kind != stat.S_IFREG:
                raise source.planted(f"is {kind_of(kind)}, and cannot be copied")
            elif (first := known.get((about.st_dev, about.st_ino))) is not None:
                copy.hardlink_to(first)
            else:
                with source.opened() as fd, copy.created(stat.S_IMODE(about.st_mode)) as new:
                    copy_data(fd, new)
                    os.utime(new, ns=(about.st_atime_ns, about.st_mtime_ns))
            if kind == stat.S_IFREG and about.st_nlink > 1:
                known.setdefault((about.st_dev, about.st_ino), copy)

    # --- resolving ----------------------------------------------------------------------------------------------------------

    @property
    def parent(self) -> Tree | None:
        """Return the folder above this place; None for the root, so that no path leads out of the tree."""
        return Tree(self.root, self.below.rpartition("/")[0], self.what) if self.below else None

    def sibling(self, name: str) -> Tree:
        above = self.parent
        assert above is not None
        return above / name

    def _open(self, flags: int) -> int:
        """Open this place. Returns its descriptor. Raises `OSError`."""
        root = os.open(self.root, (_FOLDER & ~os.O_RDONLY) | os.O_PATH if self.below else flags | os.O_NOFOLLOW)
        if not self.below:
            return root
        try:
            return open_beneath(root, os.fsencode(self.below), flags)
        finally:
            os.close(root)

    @contextmanager
    def _parent(self) -> Iterator[tuple[int, str]]:
        """Open the folder above this place. Gives its descriptor and the name in it. Errors name this place."""
        with self.fault():
            above = self.parent
            if above is None:
                fd = os.open(self.root.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                name = self.root.name or "."
            else:
                fd = above._open(_FOLDER)
                name = self.name
            try:
                yield fd, name
            finally:
                os.close(fd)

    @contextmanager
    def fault(self) -> Iterator[None]:
        """Tell what is wrong at this place where an error of the `with` block says that something was planted there."""
        try:
            yield
        except OSError as error:
            error.filename = str(self.host)
            if error.errno not in PLANTED:
                raise
            raise self.planted(self._why(error)) from None

    def _why(self, error: OSError) -> str:
        """Describe the fault at this place in words, or the obstacle on the way to it."""
        parts = self.below.split("/") if self.below else []
        for count in range(1, len(parts) + 1):
            place = Tree(self.root, "/".join(parts[:count]), self.what)
            try:
                handle = place._open(_HANDLE)
            except OSError:
                break
            try:
                about = os.fstat(handle)
            finally:
                os.close(handle)
            if said := obstacle(error, about, "" if count == len(parts) else place.below):
                return said
        return f"cannot be used: {error.strerror}"

    def planted(self, what: str) -> PlantedError:
        """Return the error that this place is not as qcase needs it."""
        name = printable(self.below) if self.below else self.what
        place = f" in {self.what}" if self.below else ""
        return PlantedError(f"{name}{place} {what}", hint=HINT)


def _is(about: os.stat_result | None, kind: int) -> bool:
    return about is not None and stat.S_IFMT(about.st_mode) == kind
