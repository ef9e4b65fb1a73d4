"""Copies of kernels in the store's folder, so that a rebuild cannot change a running case."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qcase import parsing
from qcase.errors import InfraError, KernelError
from qcase.guests.kernel_files import Kernel, Say
from qcase.host import beneath, file_state, locks, process
from qcase.host.crash_cleanup import remove_tree
from qcase.host.files import flush, put, write_aside

KEPT = 86_400.0  # seconds after its last use for which a copy is kept
NOTE_FORMAT = 1  # of a note; incremented also when the same kernel gives another file
_COPIES = 5  # attempts at copying a file that is being written
LOOK = 0.1  # seconds between two polls of a build's output


def take(output: Path, folder: Path) -> Kernel:
    """Copy a kernel to a folder named by its sha256."""
    _sweep(folder)
    staged = folder / f".{uuid.uuid4().hex}"
    try:
        sha256 = _copy(output, staged)
        copy = Kernel(folder / sha256 / output.name, sha256)
        if not is_whole(copy):
            staged.chmod(0o644)
            _install(staged, copy.path)
        return copy
    except OSError as error:
        raise InfraError(f"cannot keep the kernel: {error.strerror}", where=str(folder)) from None
    finally:
        with contextlib.suppress(OSError):  # the next one sweeps it
            staged.unlink()


def _copy(output: Path, staged: Path) -> str:
    """Copy a kernel that another build may be writing to. Returns the sha256 of the copy, which has one consistent state."""
    for _ in range(_COPIES):
        before = file_state.facts(output.resolve())
        shutil.copyfile(output, staged)
        if before == file_state.facts(output.resolve()):
            return file_state.sha256(staged)
        process.pause(LOOK)
    raise KernelError("something wrote to it whenever it was copied", where=str(output), hint="is another build under way?")


def keep(target: Path, make: Callable[[Path], object], warn: Say) -> str:
    """Make a file beside a kernel's copy, unless an intact one exists. Returns its sha256.

    `make` writes to the path that it is given, where no file exists yet.
    """
    if sha256 := _whole(target):
        return sha256
    staged = target.with_name(f".making-{target.name}-{uuid.uuid4().hex}")
    try:
        with _making(target):
            if sha256 := _whole(target):  # another process has made it meanwhile
                return sha256
            if _noted(target) is not None:
                warn(f"{target} was changed or is gone: it is not used, and made anew")
            make(staged)
            return _install(staged, target)["sha256"]
    except OSError as error:
        raise InfraError(f"cannot be written: {error.strerror}", where=str(target)) from None
    finally:
        with contextlib.suppress(OSError):
            staged.unlink()


@contextmanager
def _making(target: Path) -> Iterator[None]:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.utime(target.parent)  # no sweeper removes it from here on
    with locks.held(target.with_name(f".{target.name}.lock")):
        for left in target.parent.glob(f".making-{target.name}-*"):  # left by a killed process
            remove_tree(left)
        yield


def _install(staged: Path, target: Path) -> file_state.Record:
    """Install a file atomically and flushed, so that it is complete or absent even after a crash of the machine."""
    target.parent.mkdir(exist_ok=True)
    put(staged, target)
    flush(target.parent.parent)
    record = file_state.read(target)  # a rename changes the facts of a file
    _note(target, record)
    return record


def is_whole(kernel: Kernel) -> bool:
    return _whole(kernel.path, kernel.sha256) != ""


def _whole(path: Path, sha256: str = "") -> str:
    """Return the sha256 of a kept file if it is still the stored one, or the given one. Empty if not."""
    with contextlib.suppress(OSError):
        os.utime(path.parent)  # its last use; first, so that no sweeper comes between
    known = _noted(path)
    wanted = sha256 or (known["sha256"] if known is not None else "")
    if not wanted:
        return ""
    if known is None or known["sha256"] != wanted or not file_state.is_as_recorded(path, known["facts"]):
        try:
            found = file_state.read(path)
        except OSError:
            return ""
        if found["sha256"] != wanted:
            return ""
        with contextlib.suppress(OSError):  # it is read again the next time
            _note(path, found)
    return wanted


def _note_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def _noted(path: Path) -> file_state.Record | None:
    try:
        note = parsing.from_json(beneath.read(_note_of(path)))
        record: file_state.Record = note["file"]
        good = note["format"] == NOTE_FORMAT and file_state.is_record(record)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if good else None


def _note(path: Path, record: file_state.Record) -> None:
    write_aside(_note_of(path), json.dumps({"format": NOTE_FORMAT, "file": record}).encode())


def _sweep(folder: Path) -> None:
    """Remove copies that were unused for a day, and unfinished ones. A running QEMU has read its kernel already."""
    for copy in folder.iterdir():
        with contextlib.suppress(OSError):
            half = copy.name.startswith(".")  # a process that copies holds the lock, and the caller has it now
            if copy.name != "lock" and (half or copy.stat().st_mtime < time.time() - KEPT):
                remove_tree(copy)
