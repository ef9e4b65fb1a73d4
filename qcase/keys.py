"""What goes into a key, and why two keys differ.

A key is the sha256 of canonical JSON of named parts. The parts are kept beside the stored result (see `qcase.store`), so that
whoever asks can be told which of them changed, down to a file of the case.

    overlay key   format, pipeline, recipe, arch, target, toolchain, sources, config, env, base, lock, extra
    image key     format, base, overlays (digests of their contents, in the order they are laid), injector

`parts["sources"]` is `{"digest": …, "files": [[path, type, sha256 or target], …]}`: relative path, type ("file", "exec", "link",
"dir") and bytes of each file below a folder, and nothing else of it: no times, no owners, no other mode bits, no place.
Folders are named only where they are empty; the others are told by what is in them.

File names are bytes on Linux. In JSON they are UTF-8 with what is none as lone surrogates (Python's `surrogateescape`), whatever
the locale says, and JSON is written with `surrogatepass`: two different names are always two different strings and bytes.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import math
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

from qcase.errors import BuildError, InfraError, QcaseError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

FORMAT = 1  # of the parts. To be raised when their meaning changes: every key moves.

_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)


@dataclass(frozen=True)
class Key:
    """The name of a result, and what it was computed from."""

    digest: str
    parts: Mapping[str, JSON]

    def __str__(self) -> str:
        return self.digest

    @property
    def short(self) -> str:
        """Enough of it for a person."""
        return self.digest[:12]


@dataclass(frozen=True)
class TreeEntry:
    """One thing below a folder. `type` is "file", "exec" (a file with its owner's executable bit), "link" or "dir" (an empty
    folder); `content` the sha256 of a file, the target of a link, and empty for a folder."""

    path: str
    type: str
    content: str


def canonical(parts: JSON) -> bytes:
    """JSON that is the same bytes for the same value, and never for another one.

    Sorted, without spaces. Raises `TypeError` or `ValueError` for what JSON would have to bend: bytes, NaN, keys that are no
    strings.
    """
    plain = _plain(parts)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def parse(data: bytes) -> Any:
    """The value that `canonical` wrote. Raises `ValueError` for anything that is not JSON."""
    return json.loads(data.decode("utf-8", "surrogatepass"))


def digest(parts: JSON) -> str:
    """sha256 of `canonical(parts)`, in hex."""
    return hashlib.sha256(canonical(parts)).hexdigest()


def key(parts: Mapping[str, JSON]) -> Key:
    """The key of named parts."""
    plain: dict[str, JSON] = _plain(parts)
    return Key(digest(plain), plain)


def overlay_key(
    *,
    pipeline: str,
    recipe_version: int | str,
    arch: str,
    target: str,
    sources: Sequence[TreeEntry],
    toolchain_identity: str | None = None,
    config_fields: Mapping[str, JSON] | None = None,
    env: Mapping[str, str | None] | None = None,
    base_digest: str | None = None,
    lock: str | None = None,
    extra: Mapping[str, JSON] | None = None,
) -> Key:
    """The key of an overlay.

    `sources` as `tree_listing` gives them. `config_fields`: what of this arch's configuration reaches the overlay (never
    timeouts or patterns). `env`: the variables of `[cache] env`, None for one that is not set (which is not the same as
    empty). `base_digest` and `lock` only where the pipeline reads the staging root.
    """
    return key(
        {
            "format": FORMAT,
            "kind": "overlay",
            "pipeline": pipeline,
            "recipe": recipe_version,
            "arch": arch,
            "target": target,
            "toolchain": toolchain_identity,
            "sources": {"digest": listing_digest(sources), "files": [_row(entry) for entry in sources]},
            "config": config_fields or {},
            "env": env or {},
            "base": base_digest,
            "lock": lock,
            "extra": extra or {},
        }
    )


def image_key(*, base_digest: str, overlays: Sequence[str], injector: int | str) -> Key:
    """The key of a case image. `overlays`: the digests of their contents in the order in which they are laid over the base."""
    return key({"format": FORMAT, "kind": "image", "base": base_digest, "overlays": list(overlays), "injector": injector})


def tree_listing(path: Path, *, ignore: Sequence[str] = (), without: Collection[Path] = ()) -> tuple[TreeEntry, ...]:
    """Everything below `path` that can matter to a build, sorted by the bytes of its name.

    Links are never followed. `ignore` holds shell patterns for names (not paths) that are passed over, with a slash before them
    only where they are right below `path`; a folder in which nothing is left counts as empty. What is in `without`, as it is
    called below this `path`, counts as if it was not there, and so does a folder that holds nothing else. Raises `BuildError`
    for a socket, a device or a fifo, and for what cannot be read.
    """
    rows = []
    for name, full, info in _walk(path, ignore, without=frozenset(map(os.fsencode, without))):
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFDIR:
            rows.append((name, "dir", ""))
        elif kind == stat.S_IFLNK:
            rows.append((name, "link", _target(full)))
        else:
            rows.append((name, "exec" if info.st_mode & stat.S_IXUSR else "file", _sha256(full)))
    rows.sort()
    return tuple(TreeEntry(_text(name), type_, content) for name, type_, content in rows)


def file_entry(name: str, path: Path) -> TreeEntry:
    """What `tree_listing` would say of one regular file, under another name. Raises as that does."""
    try:
        executable = path.stat().st_mode & stat.S_IXUSR
    except OSError as error:
        raise _unreadable(os.fsencode(path), error) from None
    return TreeEntry(name, "exec" if executable else "file", _sha256(os.fsencode(path)))


def listing_digest(listing: Sequence[TreeEntry]) -> str:
    """The digest of what `tree_listing` found."""
    return digest([_row(entry) for entry in listing])


def tree_digest(path: Path, *, ignore: Sequence[str] = ()) -> str:
    """The digest of a folder of sources, see `tree_listing`."""
    return listing_digest(tree_listing(path, ignore=ignore))


def overlay_listing(path: Path) -> list[list[str]]:
    """What an overlay puts into the guest: `[path, type, mode, content]`, sorted by the bytes of the path.

    `type` is "file", "link" or "dir"; `mode` all twelve permission bits in octal (empty for a link, which has none); `content`
    as in `TreeEntry`. All folders are named, for their modes, save the overlay's own: the guest's `/` stays as it is. Owners
    and times are the injector's to set and do not count. Raises `BuildError` as `tree_listing` does.
    """
    rows = []
    for name, full, info in _walk(path, (), every_folder=True):
        kind = stat.S_IFMT(info.st_mode)
        mode = f"{stat.S_IMODE(info.st_mode):04o}"
        if kind == stat.S_IFDIR:
            rows.append((name, "dir", mode, ""))
        elif kind == stat.S_IFLNK:
            rows.append((name, "link", "", _target(full)))
        else:
            rows.append((name, "file", mode, _sha256(full)))
    rows.sort()
    return [[_text(name), type_, mode, content] for name, type_, mode, content in rows]


def overlay_content_digest(path: Path) -> str:
    """The digest of an overlay as it will be in the guest, see `overlay_listing`."""
    return digest(overlay_listing(path))


def file_digest(path: Path) -> str:
    """A digest of every byte of one file, made for images: the time it takes goes with the data, not with the size.

    It is the sha256 over a header, the size and, for each block of 64 KiB that is not all zeros, its number and its sha256.
    Holes are not read (`SEEK_DATA`), and a hole counts as the zeros that it reads as, so a copy that fills or digs holes keeps
    its digest. Raises `InfraError` if the file cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InfraError(f"cannot read: {error.strerror}", where=str(path)) from None
    try:
        size = os.fstat(fd).st_size
        whole = hashlib.sha256(b"qcase file digest 1\0" + size.to_bytes(8, "big"))
        spans = [(start, min(start + 256, last)) for first, last in _data_blocks(fd, size) for start in range(first, last, 256)]
        if len(spans) < 2:
            hashed: Iterator[bytes] = (_hash_blocks(fd, span, size) for span in spans)
            for piece in hashed:
                whole.update(piece)
        else:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashlib lets other threads run
                for piece in pool.map(lambda span: _hash_blocks(fd, span, size), spans):
                    whole.update(piece)
    except OSError as error:
        raise InfraError(f"cannot read: {error.strerror}", where=str(path)) from None
    finally:
        os.close(fd)
    return whole.hexdigest()


def read_fully(fd: int, length: int, offset: int) -> bytes:
    """Read exactly `length` bytes, in however many pieces. Raises `OSError` where the file has become shorter meanwhile."""
    piece = os.pread(fd, length, offset)
    while len(piece) < length:
        more = os.pread(fd, length - len(piece), offset + len(piece))
        if not more:
            raise OSError(errno.EIO, "the file became shorter while it was read")
        piece += more
    return piece


def differences(old: Mapping[str, JSON], new: Mapping[str, JSON]) -> list[str]:
    """Which parts differ, one line each, down to the names of files. Empty when nothing does."""
    lines: list[str] = []
    for name in sorted({*old, *new}):
        if name not in old:
            lines.append(f"{name}: new")
        elif name not in new:
            lines.append(f"{name}: gone")
        else:
            lines += _differing(name, old[name], new[name])
    return lines


def nearest(key: Key, earlier: Sequence[Key]) -> tuple[Key, list[str]] | None:
    """The earlier key that differs least from `key`, and how; the first of several. None where there is no earlier key."""
    compared = [(old, differences(old.parts, key.parts)) for old in earlier]
    return min(compared, key=lambda pair: len(pair[1]), default=None)


# --- differences ------------------------------------------------------------------------------------------------------------


def _differing(name: str, old: JSON, new: JSON) -> list[str]:
    if canonical(old) == canonical(new):
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if "files" in old and "files" in new:
            return _differing_files(name, old["files"], new["files"])
        lines = []
        for member in sorted({*old, *new}):
            if member not in old:
                lines.append(f"{name}.{member}: new, {_brief(new[member])}")
            elif member not in new:
                lines.append(f"{name}.{member}: gone, was {_brief(old[member])}")
            else:
                lines += _differing(f"{name}.{member}", old[member], new[member])
        return lines
    if _is_list(old) and _is_list(new) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for at, (was, now) in pairs for line in _differing(f"{name}[{at}]", was, now)]
    return [f"{name}: {_brief(old)} → {_brief(new)}"]


def _is_list(value: JSON) -> TypeGuard[Sequence[JSON]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _differing_files(name: str, old: Any, new: Any) -> list[str]:
    """Rows of `[path, type, …, content]`, compared by path."""
    before = {row[0]: row[1:] for row in old}
    after = {row[0]: row[1:] for row in new}
    lines = []
    for path in sorted({*before, *after}):
        shown = printable(path)
        was, now = before.get(path), after.get(path)
        if was is None:
            lines.append(f"{name}: {shown} is new")
        elif now is None:
            lines.append(f"{name}: {shown} is gone")
        elif was != now:
            if was[-1] != now[-1]:
                lines.append(f"{name}: {shown} changed")
            if was[:-1] != now[:-1]:
                lines.append(f"{name}: {shown} is {'/'.join(now[:-1])}, was {'/'.join(was[:-1])}")
    return lines


def _brief(value: JSON) -> str:
    """A value in few characters; digests are cut."""
    if value is None:
        return "none"
    if isinstance(value, str):
        is_digest = len(value) == 64 and set(value) <= set("0123456789abcdef")
        return value[:12] if is_digest else json.dumps(value)
    text = json.dumps(_plain(value))
    return text if len(text) <= 60 else text[:57] + "…"


def printable(path: str) -> str:
    """A path from a listing, for a person and any terminal: what is not printable is escaped."""
    return path if path.isprintable() and path else ascii(path)


# --- canonical JSON ---------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """`value` with nothing but dicts, lists and JSON's own scalars in it.

    Checked here, because `json` would silently turn a key 1 into "1" and a NaN into what is no JSON.
    """
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be part of a key")
        return value
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"a part is named {name!r}, which is no string")
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_plain(member) for member in value]
    raise TypeError(f"{value!r} cannot be part of a key")


# --- the file tree ----------------------------------------------------------------------------------------------------------


def _row(entry: TreeEntry) -> list[str]:
    return [entry.path, entry.type, entry.content]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _walk(
    path: Path, ignore: Sequence[str], *, every_folder: bool = False, without: Collection[bytes] = ()
) -> Iterator[tuple[bytes, bytes, os.stat_result]]:
    """`(relative name, full name, lstat)` of files, links and empty (or all) folders below `path`, in no order."""
    root = os.fsencode(path)
    pending: list[tuple[bytes, bytes, os.stat_result | None]] = [(b"", root, None)]
    while pending:
        prefix, folder, info = pending.pop()
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
        if info is not None and (empty or every_folder):
            yield prefix[:-1], folder, info


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
            while data := os.read(fd, 1 << 20):
                whole.update(data)
        finally:
            os.close(fd)
    except OSError as error:
        raise _unreadable(path, error) from None
    return whole.hexdigest()


def _unreadable(path: bytes, error: OSError) -> QcaseError:
    """The case's own fault where its files may not be read or are gone; a disk that cannot be read is ours."""
    fault = BuildError if error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ELOOP, errno.ENXIO) else InfraError
    return fault(f"cannot read: {error.strerror}", where=printable(_text(path)))


def _data_blocks(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of block numbers, in order and apart, that may hold something else than zeros."""
    done = 0  # blocks before this one have been named
    offset = 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
            offset = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here to the end
                return
            start, offset = offset, size  # this filesystem cannot tell
        first = max(done, start // _BLOCK)
        done = -(-offset // _BLOCK)
        if first < done:
            yield first, done


def _hash_blocks(fd: int, span: tuple[int, int], size: int) -> bytes:
    """Number and sha256 of each block in a range that is not all zeros."""
    out = []
    for number in range(*span):
        block = read_fully(fd, min(_BLOCK, size - number * _BLOCK), number * _BLOCK)
        if block != _ZEROS[: len(block)]:
            out.append(number.to_bytes(8, "big") + hashlib.sha256(block).digest())
    return b"".join(out)
