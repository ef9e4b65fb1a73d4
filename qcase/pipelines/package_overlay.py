"""Overlays of packages: one for a case's `[qcase] packages`, and one for Python.

    staging root ─► copy ─► packages installed ─► new or different files ─► overlay

apk's own files are left out: the guest's package database does not list the contents of an overlay.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator

from qcase.errors import BuildError
from qcase.guests.packages import apk, install_step
from qcase.host.planted import printable
from qcase.host.trees import SPECIAL, Tree
from qcase.pipelines import prebuild
from qcase.pipelines.pipeline import BuildContext

OVERLAY_RECIPE = 2


def install_packages(overlay: Tree, context: BuildContext) -> None:
    """Fill an empty overlay with the files that the build's packages add to the staging root."""
    shared = context.services.staging()
    own = context.folder("staging", "the staging root")
    context.services.say("installing packages")
    prebuild.copy(shared, own)
    install_step.install(
        context.services.supply(), context.case, context.packages, own, context.scratch / "packages", context.log
    )
    taken: dict[tuple[int, int], Tree] = {}
    before, after = apk.unusual(shared), apk.unusual(own)
    otherwise = {path for path in after if after[path] != before.get(path)}
    for path in new_paths(shared, own, otherwise):
        mode, attributes = after.get(path, (0, False))
        if attributes:
            raise BuildError(
                f"{printable(path)} has an extended attribute in its package, which does not get into the guest",
                hint="take another package, or copy the file in a prebuild script and set the attribute in the guest",
            )
        _take(own, overlay, path, taken)
        if mode & SPECIAL:
            place = overlay / path
            place.chmod(_mode(place) | mode & SPECIAL, special=True)


def new_paths(before: Tree, after: Tree, otherwise: Collection[str] = ()) -> Iterator[str]:
    """Yield the paths of `after` that `before` lacks or has differently, and those in `otherwise`.

    A folder comes before its contents; each level is sorted.
    """
    pending = [""]
    while pending:
        folder = pending.pop()
        found = []
        for name, new in (after / folder if folder else after).listing():
            path = f"{folder}/{name}" if folder else name
            if path in apk.OWN_FILES:
                continue
            old = (before / path).facts()
            kind = stat.S_IFMT(new.st_mode)
            known = old is not None and stat.S_IFMT(old.st_mode) == kind
            if kind == stat.S_IFDIR:
                if not known or path in otherwise:
                    yield path
                found.append(path)
            elif not known or path in otherwise or not _same(before / path, after / path):
                yield path
        pending += reversed(found)


def _same(old: Tree, new: Tree) -> bool:
    """Tell whether two files or two links are equal but for setuid and setgid, which a staging root in the store has not."""
    before, after = old.facts(), new.facts()
    assert before is not None
    assert after is not None
    if stat.S_ISLNK(after.st_mode):
        return old.readlink() == new.readlink()
    if (before.st_mode | SPECIAL) != (after.st_mode | SPECIAL) or before.st_size != after.st_size:
        return False
    return old.sha256() == new.sha256()


def _take(root: Tree, overlay: Tree, path: str, taken: dict[tuple[int, int], Tree]) -> None:
    """Copy one path into the overlay, with the modes of its parent folders.

    `taken`: copied files by device and inode, for hard links.
    """
    missing = []
    above = path.rpartition("/")[0]
    while above and not (overlay / above).is_dir():
        missing.append(above)
        above = above.rpartition("/")[0]
    for folder in reversed(missing):
        (overlay / folder).mkdir(_mode(root / folder))
    source, target = root / path, overlay / path
    about = source.facts()
    assert about is not None
    if stat.S_ISLNK(about.st_mode):
        target.symlink_to(source.readlink())
    elif stat.S_ISDIR(about.st_mode):
        target.mkdir(_mode(source))
    elif (first := taken.get((about.st_dev, about.st_ino))) is not None:
        target.hardlink_to(first)
    else:
        with source.opened() as file:
            target.copy_in(file, _mode(source))
        taken[about.st_dev, about.st_ino] = target


def _mode(place: Tree) -> int:
    about = place.facts()
    return stat.S_IMODE(about.st_mode) if about is not None else 0o755
