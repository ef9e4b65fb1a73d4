"""Folders of a workspace that qcase writes to."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from pathlib import Path

from qcase.host.planted import PlantedError, kind_of, printable
from qcase.host.trees import Tree


@functools.cache
def target_of(workspace: Path) -> Tree:
    """Return the folder `target/` of a workspace, in which logs and run folders are. A kernel's build may write there.

    A link in its place is followed if it leads to a cache (a folder with `CACHEDIR.TAG`, as cargo writes it) or to an empty
    folder before anything is built: it may have been committed, and lead anywhere. Later on no link is followed.
    """
    place = workspace / "target"
    if place.is_symlink():
        real = Path(os.path.realpath(place))
        with contextlib.suppress(OSError):
            if (real / "CACHEDIR.TAG").is_file() or not any(real.iterdir()):
                return Tree(real, what="target/")
        raise PlantedError(
            "target in the workspace is a symbolic link, and what it leads to is no cache",
            hint="let it lead to an empty folder, or to one with a file CACHEDIR.TAG",
        )
    return Tree(workspace, "target", "the workspace")


_FOLDERS_KEPT, _FILES_KEPT = ("kernels", "memory", "logs"), ("last-run.json",)


@functools.cache
def own_folder(workspace: Path) -> Path:
    """Return the folder `target/qcase` of a workspace, for data that qcase keeps by path: kernels, caches, results of cases.

    A workspace may be a stranger's, and bring this folder with links in it. qcase makes none there: raises `PlantedError` for a
    link, and for anything else that is neither file nor folder. Logs are reached beneath it.
    """
    above = target_of(workspace)
    whole = above / "qcase"
    if above.is_file():  # below which nothing can be, nor be made: who writes there is told so by the system
        return whole.host
    if above.exists() and not above.is_dir():
        raise above.planted("has to be a folder, and is none")
    pending = [whole]
    while pending:
        place = pending.pop()
        for name, about in place.listing() if place.exists() else ():
            folder = stat.S_ISDIR(about.st_mode)
            if folder and (place / name) != whole / "logs":
                pending.append(place / name)
            wrong = place == whole and folder != (name in _FOLDERS_KEPT) and name in (*_FOLDERS_KEPT, *_FILES_KEPT)
            if wrong or (not folder and not stat.S_ISREG(about.st_mode)):
                shown = f"target/qcase/{(place / name).below.partition('qcase/')[2]}"
                raise PlantedError(
                    f"{printable(shown)} in the workspace is {kind_of(about.st_mode)}, and qcase makes none there",
                    hint="remove it, or all of target/qcase",
                )
    return whole.host
