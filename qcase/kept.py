"""Files that are known by their looks: read in full once, and from then on only where they look different.

What is known of a file is a *record*: its sha256, and the facts that cannot all stay the same when it is written to. As long as
they do, nobody has changed it since it was read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypedDict

from qcase.content import settle

Facts = dict[str, int]


class Record(TypedDict):
    """What is known of a file. `facts`: empty where they would tell nothing."""

    sha256: str
    facts: Facts


def facts(path: Path) -> Facts | None:
    """What changes when a file does. None if there is no such regular file."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return {
        "device": found.st_dev,
        "inode": found.st_ino,
        "mode": found.st_mode,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }


def read(path: Path) -> Record:
    """A file's record, by reading all of it. Raises `OSError`.

    The facts are those from before it was read, so that a change meanwhile shows. What changed meanwhile, or could change without
    looking different because the clock was set back since, gets none: then it is read again at its next use.
    """
    before = facts(path)
    settled = before is not None and settle([["", 0, 0, before["mtime_ns"], before["ctime_ns"], 0]])
    digest = sha256(path)
    return {"sha256": digest, "facts": before if before is not None and settled and before == facts(path) else {}}


def is_record(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("sha256"), str) and isinstance(value.get("facts"), dict)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
