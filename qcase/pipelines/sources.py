"""A case's sources: what enters its key, and the copy that a build works in. The two are the same, file by file.

A build sees its case's folder and nothing else of the host. Of a link that leads out of it, what it leads to is taken in its
place, so that cases may share files, as long as that is in the workspace. Other links stay what they say: those that stay in the
case, and absolute ones, which mean a path of the container. The folder that a pipeline is named after may be any link.

A case's configuration is no source: timeouts and patterns must not move a key, so no build gets to see them, nor that of a
kernel. Of a case that is a group as well, neither are the other cases in its folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qcase import keys

_CONFIGURATIONS = ("/qemu-*.toml", "/build-*.toml")


@dataclass(frozen=True)
class Source:
    """One thing that a build sees, and where it comes from."""

    entry: keys.TreeEntry
    origin: Path


def find(case: Path, folder: str, workspace: Path, others: Collection[Path] = ()) -> tuple[Source, ...]:
    """What a build sees of a case whose sources are in `case/folder`, sorted by the bytes of its path.

    `others`: what of it belongs to other cases, as `suite.others_within` has it. A link to something in there is one that leads
    out of the case. Raises `BuildError` for what can be neither copied nor read.
    """
    top = Path(os.path.realpath(case))
    found = list(_walk(top, "", folder, _Bounds(Path(os.path.realpath(workspace)), others), (top,)))
    found.sort(key=lambda source: source.entry.path.encode("utf-8", "surrogateescape"))
    return tuple(found)


def copy(sources: Iterable[Source], target: Path) -> None:
    """Make the folder `target` of sources. Of the modes only the executable bit of files is kept, as in the key."""
    _make_folder(target)
    for source in sources:
        entry, path = source.entry, target / source.entry.path
        if not path.parent.is_dir():
            for missing in reversed([parent for parent in path.parents if not parent.exists()]):
                _make_folder(missing)
        if entry.type == "dir":
            _make_folder(path)
        elif entry.type == "link":
            path.symlink_to(entry.content)
        else:
            shutil.copyfile(source.origin, path)
            path.chmod(0o755 if entry.type == "exec" else 0o644)


def _make_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)  # whatever our umask is


@dataclass(frozen=True)
class _Bounds:
    """Where links may lead to, and what is left out."""

    workspace: Path
    others: Collection[Path]


def _walk(root: Path, prefix: str, folder: str, bounds: _Bounds, inside: tuple[Path, ...]) -> Iterator[Source]:
    """`prefix`: where `root` is in the case, with a slash. `inside`: the folders that are being walked, `root` the last one."""
    for row in keys.tree_listing(root, ignore=() if prefix else _CONFIGURATIONS, without=bounds.others):
        entry, origin = replace(row, path=f"{prefix}{row.path}"), root / row.path
        real = Path(os.path.realpath(origin)) if row.type == "link" else origin
        if entry.path != folder and not _is_shared(row, real, bounds, inside):
            yield Source(entry, origin)
        elif real.is_dir():
            below = list(_walk(real, f"{entry.path}/", folder, bounds, (*inside, real)))
            yield from below or [Source(keys.TreeEntry(entry.path, "dir", ""), real)]
        elif real.is_file():
            yield Source(keys.file_entry(entry.path, real), real)
        else:
            yield Source(entry, origin)


def _is_shared(row: keys.TreeEntry, real: Path, bounds: _Bounds, inside: tuple[Path, ...]) -> bool:
    """Whether a link leads out of the folder that is copied, but not out of the workspace, nor to a folder around us."""
    if row.type != "link" or row.content.startswith("/"):
        return False
    return (
        real.is_relative_to(bounds.workspace)
        and (not real.is_relative_to(inside[-1]) or _is_left_out(real, bounds, inside[-1]))
        and not any(outer.is_relative_to(real) for outer in inside)
    )


def _is_left_out(real: Path, bounds: _Bounds, root: Path) -> bool:
    """Whether something below `root` is not walked, because it is another case's."""
    return bool(bounds.others) and any(path in bounds.others for path in (real, *real.parents) if path.is_relative_to(root))
