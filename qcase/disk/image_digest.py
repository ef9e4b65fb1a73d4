"""Digests of sparse images, remembered together with the file's state.

Two digests are taken over the same blocks. Their formats stay: `digest_of_file` is in the manifests of the store, and `digest`,
that of a base image, is in keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from qcase import parsing
from qcase.disk.sparse_files import opened
from qcase.errors import InfraError
from qcase.host.file_state import flushed, times_tell
from qcase.host.file_state import is_young as is_young
from qcase.host.files import write_aside
from qcase.host.holes import data_ranges, read_fully

_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)


def file_digest(path: Path) -> str:
    """Return a digest of every byte of one file, see `digest_of_file`. Raises `InfraError` if the file cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InfraError(f"cannot read: {error.strerror}", where=str(path)) from None
    try:
        return digest_of_file(fd)
    except OSError as error:
        raise InfraError(f"cannot read: {error.strerror}", where=str(path)) from None
    finally:
        os.close(fd)


def digest_of_file(fd: int) -> str:
    """Return a digest of every byte of one file, made for images: its time depends on the data, not on the size.

    It is the sha256 over a header, the size and, for each block of 64 KiB that is not all zeros, its number and its sha256. Holes
    are not read (`SEEK_DATA`), and a hole counts as the zeros that it reads as, so a copy that fills or digs holes keeps its
    digest. Raises `OSError`.
    """
    size = os.fstat(fd).st_size
    whole = hashlib.sha256(b"qcase file digest 1\0" + size.to_bytes(8, "big"))
    spans = [(start, min(start + 256, last)) for first, last in _data_blocks(fd, size) for start in range(first, last, 256)]
    if len(spans) < 2:
        for span in spans:
            whole.update(_hash_blocks(fd, span, size))
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashlib lets other threads run
            for piece in pool.map(lambda span: _hash_blocks(fd, span, size), spans):
                whole.update(piece)
    return whole.hexdigest()


def _data_blocks(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of block numbers, in order and disjoint, that may hold something else than zeros."""
    done = 0  # blocks before this one have been named
    for start, end in data_ranges(fd, 0, size):
        first = max(done, start // _BLOCK)
        done = -(-end // _BLOCK)
        if first < done:
            yield first, done


def _blocks(fd: int, span: tuple[int, int], size: int) -> Iterator[tuple[int, bytes]]:
    """Read a range of blocks, and yield those that are not all zeros with their numbers."""
    for number in range(*span):
        block = read_fully(fd, min(_BLOCK, size - number * _BLOCK), number * _BLOCK)
        if block != _ZEROS[: len(block)]:
            yield number, block


def _hash_blocks(fd: int, span: tuple[int, int], size: int) -> bytes:
    """Return number and sha256 of each block in a range that is not all zeros."""
    return b"".join(number.to_bytes(8, "big") + hashlib.sha256(block).digest() for number, block in _blocks(fd, span, size))


# --- digest -------------------------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    """Return a sha256 over a file's size and every byte of it, as hex.

    It is taken over a tag, the size, and each 64 KiB block that is not all zero, with its offset. So holes need not be read, and
    the file's sparseness makes no difference.
    """
    try:
        with opened(path) as descriptor:
            return digest_of_descriptor(descriptor)
    except OSError as error:
        raise InfraError(f"cannot read: {error.strerror}", where=str(path)) from None


def remembered_digest(path: Path, memory: Path) -> str:
    """Return `digest`, cached in the folder `memory` by device, inode, size, mtime and ctime: the second call reads nothing.

    Every later run trusts a cached digest, so these files are not cached:

    - a file that changed less than two seconds ago, see `is_young`;
    - a file on a filesystem with unreliable times, see `times_tell`;
    - a file with dirty pages of a mapping that are not on the disk yet: the times move at the first store
      into a clean page and not at the next. So these are flushed first. Of a file that is cached already no page is
      dirty, unless the times have moved since.
    """
    try:
        with opened(path) as descriptor:
            before = os.fstat(descriptor)
            note = memory / f"{before.st_dev:x}-{before.st_ino:x}.json"
            known = _recall(note, _identity(before))
            if known is not None:
                return known
            rests = not is_young(before) and times_tell(before.st_dev, before.st_ctime_ns) and flushed(descriptor)
            before = os.fstat(descriptor)
            rests = rests and not is_young(before)
            result = digest_of_descriptor(descriptor)
            after = os.fstat(descriptor)
    except OSError as error:
        raise InfraError(f"cannot read: {error.strerror}", where=str(path)) from None
    if rests and _identity(before) == _identity(after):
        # A cache that cannot be written (full disk, read-only) costs time, nothing else.
        with contextlib.suppress(OSError):
            _note(note, {**_identity(before), "digest": result})
    return result


def identity(path: Path) -> dict[str, int]:
    """Return the stat facts that change when a file is changed or replaced. Raises `InfraError` if the file is missing."""
    return identity_of(facts_of(path))


def identity_of(facts: os.stat_result) -> dict[str, int]:
    return {"device": facts.st_dev, "inode": facts.st_ino, **_identity(facts)}


def facts_of(path: Path) -> os.stat_result:
    """Return `stat` of a file. Raises `InfraError` if it is missing."""
    try:
        return path.stat()
    except OSError as error:
        raise InfraError(f"cannot read: {error.strerror}", where=str(path)) from None


def _identity(facts: os.stat_result) -> dict[str, int]:
    """Return the stat facts that change with a file. Device and inode are in the note's name."""
    return {"format": 1, "size": facts.st_size, "mtime_ns": facts.st_mtime_ns, "ctime_ns": facts.st_ctime_ns}


def digest_of_descriptor(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    sha = hashlib.sha256(b"qcase image digest 1\0" + size.to_bytes(8, "little"))
    for span in _data_blocks(descriptor, size):
        for number, block in _blocks(descriptor, span, size):
            sha.update((number * _BLOCK).to_bytes(8, "little"))
            sha.update(block)
    return sha.hexdigest()


def _recall(note: Path, identity: dict[str, int]) -> str | None:
    """Read the digest that was noted for this state of a file. None where the note is missing or malformed."""
    try:
        known = parsing.from_json(note.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(known, dict):
        return None
    found = known.pop("digest", None)
    return found if known == identity and isinstance(found, str) and re.fullmatch("[0-9a-f]{64}", found) else None


def _note(note: Path, facts: dict[str, int | str]) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    write_aside(note, json.dumps(facts).encode())
