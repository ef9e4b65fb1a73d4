"""What packages bring into the guest: the overlay of a case's `[qcase] packages`, and of Python's own.

    staging root ─► copy ─► packages installed ─► whatever is new or different in it ─► overlay

What apk writes down for itself is left out: the guest's package database knows nothing of an overlay.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from qcase import packages
from qcase.pipelines import Workshop, prebuild

RECIPE = 1


def build(overlay: Path, workshop: Workshop) -> None:
    """Fill an empty overlay with what the packages of the workshop bring."""
    shared = workshop.staging()
    own = workshop.scratch / "staging"
    workshop.say("installing packages")
    prebuild.copy(shared, own)
    packages.install(workshop.supply(), workshop.case, workshop.packages, own, workshop.scratch / "packages", workshop.log)
    for path in new_paths(shared, own):
        _take(own, overlay, path)


def new_paths(before: Path, after: Path) -> Iterator[str]:
    """What is in one root and not, or not the same, in another; folders before what is in them, each sorted."""
    pending = [""]
    while pending:
        folder = pending.pop()
        found = []
        for name in sorted(os.listdir(after / folder)):  # noqa: PTH208 - names
            path = f"{folder}/{name}" if folder else name
            if path in packages.OWN_FILES:
                continue
            old, new = before / path, after / path
            kind = stat.S_IFMT(new.lstat().st_mode)
            known = os.path.lexists(old) and stat.S_IFMT(old.lstat().st_mode) == kind
            if kind == stat.S_IFDIR:
                if not known:
                    yield path
                found.append(path)
            elif kind == stat.S_IFLNK:
                if not known or old.readlink() != new.readlink():
                    yield path
            elif not known or old.lstat().st_mode != new.lstat().st_mode or not filecmp.cmp(old, new, shallow=False):
                yield path
        pending += reversed(found)


def _take(root: Path, overlay: Path, path: str) -> None:
    """Copy one thing into the overlay, with the modes of the folders above it."""
    folder = Path(path).parent
    for above in (*reversed(folder.parents), folder):
        if not (overlay / above).is_dir():
            (overlay / above).mkdir()
            (overlay / above).chmod(stat.S_IMODE((root / above).stat().st_mode))
    source, target = root / path, overlay / path
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        target.mkdir()
        target.chmod(stat.S_IMODE(source.stat().st_mode))
    else:
        shutil.copyfile(source, target)
        target.chmod(stat.S_IMODE(source.stat().st_mode))
