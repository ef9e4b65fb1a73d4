"""Report files: written whole or not at all, and checked before anything runs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

from qcase.errors import InfraError, UsageError
from qcase.host.files import create, replacing, write_aside

STANDARD = Path("-")  # standard output


def check(path: Path, option: str) -> None:
    """Check that a file can be at `path`, without writing. Raises `UsageError` if it cannot."""
    if path == STANDARD:
        return
    if not path.parent.is_dir():
        raise UsageError("its folder does not exist", where=f"{option} {path}", hint="make the folder first")
    if path.is_dir():
        raise UsageError("is a folder", where=f"{option} {path}", hint="name a file in it")


def special(path: Path) -> bool:
    """Tell whether `path` is a device, a pipe or standard output, which is written in place.

    As root, a rename over /dev/full would remove the device. Links count in /dev and /proc alone: elsewhere a link may have come
    with a stranger's tree, and is replaced by the report.
    """
    if path == STANDARD:
        return True
    if any(path.absolute().is_relative_to(folder) for folder in ("/dev", "/proc")):
        return path.exists()
    return not path.is_symlink() and path.exists() and not path.is_file()


def write(path: Path, text: str, option: str) -> None:
    """Put `text` at `path`: readers see the old file or the new one. Raises `InfraError`, and `BrokenPipeError`.

    A name that is not UTF-8 contains lone surrogates. Python's backslash escapes for them are valid in JSON, too.
    """
    data = text.encode("utf-8", "backslashreplace")
    try:
        if special(path):
            with _in_place(path) as file:
                while data:
                    data = data[file.write(data) :]
        else:
            write_aside(path, data)
    except BrokenPipeError:
        raise  # its reader has what it wants
    except OSError as error:
        raise InfraError(f"cannot be written: {error.strerror}", where=f"{option} {path}") from None


def _in_place(path: Path) -> BinaryIO:
    if path == STANDARD:
        return os.fdopen(os.dup(1), "wb", buffering=0)
    return path.open("wb", buffering=0)


def opened(path: Path) -> BinaryIO:
    """Open a report that is written piece by piece. What is at `path` is replaced, and no link followed. Raises `OSError`."""
    if special(path):
        return _in_place(path)
    with contextlib.ExitStack() as undo:
        with replacing(path) as new:
            file = undo.enter_context(os.fdopen(create(new), "wb", buffering=0))
        undo.pop_all()
        return file
