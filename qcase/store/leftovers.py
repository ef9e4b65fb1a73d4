"""Leftovers in a store's folders: how old and how large they are, and their removal."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from qcase.host.crash_cleanup import remove_tree
from qcase.host.files import listed
from qcase.host.trees import PlantedError, Tree

NOTES_KEPT = 180 * 86400.0  # seconds after which an unused note that can be made again is removed
LOCKS_KEPT = 86400.0


def disk_size(path: Path) -> int:
    """Return the disk usage of a file or folder in bytes: a file with two names counts once, a link as itself.

    Files that disappear meanwhile, or cannot be read, do not count. By descriptors: builds write to folders of the store.
    """
    total = 0
    seen: set[tuple[int, int]] = set()
    with contextlib.suppress(OSError):
        root = path.lstat()
        total = root.st_blocks * 512
        pending = [Tree(path)] if stat.S_ISDIR(root.st_mode) else []
        while pending:
            with contextlib.suppress(OSError, PlantedError):
                for name, about in (place := pending.pop()).each():
                    if about.st_nlink > 1 and not stat.S_ISDIR(about.st_mode):
                        if (about.st_dev, about.st_ino) in seen:
                            continue
                        seen.add((about.st_dev, about.st_ino))
                    total += about.st_blocks * 512
                    if stat.S_ISDIR(about.st_mode):
                        pending.append(place / name)
    return total


def hidden(folder: Path) -> list[Path]:
    if folder.is_symlink():
        return []
    try:
        with os.scandir(folder) as found:
            return sorted(folder / item.name for item in found if item.name.startswith("."))
    except OSError:
        return []


def sweep_hidden(folder: Path, now: float, patience: float) -> int:
    """Remove half-written files that have a hidden name. No lock is held for them; writing takes seconds, not hours."""
    return sum(forget(path) for path in hidden(folder) if older(path, now, patience))


def sweep_notes(folder: Path, now: float) -> int:
    """Remove notes that have been unused for long."""
    return 0 if folder.is_symlink() else sum(forget(path) for path in listed(folder) if older(path, now, NOTES_KEPT))


def older(path: Path, now: float, seconds: float) -> bool:
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime < now - seconds
    return False


def forget(path: Path) -> bool:
    with contextlib.suppress(OSError):
        path.lstat()
        remove_tree(path)
        return True
    return False
