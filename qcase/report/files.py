"""Report files: written whole or not at all, and known to be writable before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

from qcase.errors import InfraError, UsageError


def check(path: Path, option: str) -> None:
    """Raises `UsageError` where a file cannot be at `path`. Nothing is written."""
    if not path.parent.is_dir():
        raise UsageError("its folder does not exist", where=f"{option} {path}", hint="make the folder first")
    if path.is_dir():
        raise UsageError("is a folder", where=f"{option} {path}", hint="name a file in it")


def special(path: Path) -> bool:
    """A device or a pipe is written to. As root, renaming over /dev/full would take the device away."""
    return path.exists() and not path.is_file()


def write(path: Path, text: str, option: str) -> None:
    """Put `text` at `path`: readers see the old file or the new one. Raises `InfraError`.

    A name that is not UTF-8 comes as lone surrogates: their escapes in Python are those of JSON.
    """
    staged = path if special(path) else path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        staged.write_text(text, encoding="utf-8", errors="backslashreplace")
        if staged != path:
            staged.replace(path)
    except OSError as error:
        if staged != path:
            staged.unlink(missing_ok=True)
        raise InfraError(f"cannot be written: {error.strerror}", where=f"{option} {path}") from None
