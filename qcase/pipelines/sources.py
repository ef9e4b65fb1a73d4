"""Sources of a case, as they enter its key and as they are copied for a build. The two are the same, file by file.

A build sees its case's folder and nothing else of the host. A link that leads out of the folder is replaced by its target, so
that cases may share files, if the target is in the workspace. Other links are kept as they are: links within the case, and
absolute ones, which mean a path of the container. The folder that a pipeline is named after may be any link.

The neighbours of a Rust case, which its manifests name, are sources too, see `qcase.pipelines.rust_neighbours`. Then the sources
are those of the common parent folder, and the case's folder has its place in it.

Files that git ignores, git's own files, and folders with a CACHEDIR.TAG are no sources, unless a link names them. The folder that
a pipeline is named after is one even if git ignores it: a script may fetch it.

A case's configuration is no source: timeouts and patterns must not change a key, so no build sees them, nor the configuration of
a kernel. If a case is a group as well, the other cases in its folder are no sources either.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qcase.errors import BuildError
from qcase.host.beneath import open_beneath
from qcase.host.holes import copy_data
from qcase.host.planted import printable
from qcase.store import listings
from qcase.suite.ignored import Ignored

_LINKS = 40  # that Linux follows on the way to a file
_RUST = "rust"
_TIME = 315_619_200  # seconds since 1970, of every file; as SOURCE_DATE_EPOCH in a step
_COMPILED_TIME = _TIME - 86_400
_COMPILED = (b"\x7fELF", b"!<arch>\n", b"!<thin>\n")  # objects, programs, libraries; archives of objects
_CONFIGURATIONS = ("/qemu-*.toml", "/build-*.toml")


@dataclass(frozen=True)
class Source:
    """One file, folder or link that a build sees, and its origin on the host."""

    entry: listings.TreeEntry
    origin: Path


def find(
    case: Path, folder: str, workspace: Path, others: Collection[Path] = (), ignored: Ignored | None = None
) -> tuple[Source, ...]:
    """Return the sources of a case whose own folder of sources is `case/folder`, sorted by the bytes of their paths.

    `others`: the paths in the folder that belong to other cases, from `discover.others_within`. A link to one of them counts as a
    link out of the case. Raises `BuildError` for a path that can be neither copied nor read.
    """
    top = Path(os.path.realpath(case))
    bounds = _Bounds(Path(os.path.realpath(workspace)), others, ignored or Ignored())
    found = list(_walk(top, "", folder, bounds, (top,)))
    if folder == _RUST and (taken := _neighbours(top, bounds.workspace)):
        above = _above(top, taken)
        found = [Source(replace(one.entry, path=f"{top.relative_to(above)}/{one.entry.path}"), one.origin) for one in found]
        found += [row for path in taken for row in _taken(path, str(path.relative_to(above)), bounds)]
    found.sort(key=lambda source: source.entry.path.encode("utf-8", "surrogateescape"))
    return tuple(found)


def _neighbours(top: Path, workspace: Path) -> tuple[Path, ...]:
    from qcase.pipelines import rust_neighbours

    return tuple(rust_neighbours.of_case(top, workspace).taken)


def check_inside(found: Iterable[Source], workspace: Path) -> None:
    """Raise `BuildError` if a source of a stranger's workspace lies outside of that workspace."""
    root = Path(os.path.realpath(workspace))
    for source in found:
        if not source.origin.is_relative_to(root):
            raise BuildError(f"{printable(source.entry.path)} is outside of the workspace", where=str(root))


def place(case: Path, folder: str, workspace: Path) -> str:
    """Return the case's folder, relative to the sources that `find` returns; empty if no neighbours are among them."""
    if folder != _RUST:
        return ""
    top = Path(os.path.realpath(case))
    taken = _neighbours(top, Path(os.path.realpath(workspace)))
    return str(top.relative_to(_above(top, taken))) if taken else ""


def _above(top: Path, taken: Collection[Path]) -> Path:
    """Return the folder that contains a case and all its neighbours."""
    return Path(os.path.commonpath([top, *(path.parent for path in taken)]))


def _taken(path: Path, name: str, bounds: _Bounds) -> Iterator[Source]:
    """Yield the sources of one file or folder beside the case."""
    real = Path(os.path.realpath(path))
    if real.is_dir():
        yield from _walk(real, f"{name}/", "", bounds, (real,))
    elif real.is_file():
        yield Source(listings.file_entry(name, real), real)


def reach(case: Path, folder: str, workspace: Path, others: Collection[Path] = (), ignored: Ignored | None = None) -> set[Path]:
    """Return the files and folders that `find` reads, links to them, and targets of dangling links, as `steps` returns them.

    A folder stands for all of its contents, since `find` would read new files in it too. Only Rust's files are read, for the
    paths that they name. Raises as `find`.
    """
    from qcase.pipelines import rust_neighbours

    seen = set(steps(case))
    bounds = _Bounds(Path(os.path.realpath(workspace)), others, ignored or Ignored(), seen)
    top = Path(os.path.realpath(case))
    for source in _walk(top, "", folder, bounds, (top,)):
        if not source.origin.is_relative_to(top):
            seen |= steps(source.origin)
    if folder == _RUST:
        beside = rust_neighbours.of_case(top, bounds.workspace)
        for path in (*beside.taken, *beside.looked):
            seen |= steps(path)
            if path in beside.taken and path.is_dir():
                list(_taken(path, path.name, bounds))  # for the links in it
    return seen


def steps(path: Path) -> frozenset[Path]:
    """Return every link on the way to a path, by its link-free location, and the final target, which may be missing."""
    found: set[Path] = set()
    here, pending = Path("/"), list(reversed((Path.cwd() / path).parts))
    followed = 0
    while pending:
        name = pending.pop()
        if name == "..":
            here = here.parent
            continue
        here /= name
        try:
            target = Path(here.readlink())
        except OSError:
            continue
        found.add(here)
        followed += 1
        if followed > _LINKS:
            return frozenset(found)
        here = here.parent
        pending += reversed(target.parts)  # of an absolute one the first part is the root
    return frozenset(found | {here})


def left_out(case: Path, folder: str, ignored: Ignored) -> list[str]:
    """List the paths in a case's folder that are no sources: ignored by git, or caches. `folder` as in `find`.

    Paths as in the key; folders end with a slash.
    """
    top = Path(os.path.realpath(case))
    found = {path: "/" if path.is_dir() else "" for path in ignored.within(top) - {top / folder}}
    for folder, folders, _ in os.walk(top):
        here = Path(folder)
        found |= {here / name: "/" for name in folders if listings.is_cache(here / name)}
        folders[:] = [name for name in folders if here / name not in found]
    return sorted(f"{path.relative_to(top)}{slash}" for path, slash in found.items())


def copy(sources: Iterable[Source], target: Path) -> None:
    """Copy sources into the new folder `target`. Of the modes only the executable bit of files is kept, as in the key.

    All files get the same time: a makefile would rebuild a file that seems older than its source, such as a parser or `configure`
    of a release, with a tool that the image lacks. Compiled files get an earlier one: those that another build left beside the
    sources, and git does not ignore, would hide every later edit.
    """
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
            _copy_file(source.origin, path, 0o755 if entry.type == "exec" else 0o644)


def _copy_file(origin: Path, target: Path, mode: int) -> None:
    """Copy a file whose path had no link in it when `find` saw it. A link that appeared since then is not followed."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_beneath(root, os.fsencode(origin).lstrip(b"/"), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(root)
    try:
        with target.open("xb") as file:
            copy_data(fd, file.fileno())
        begin = os.pread(fd, max(map(len, _COMPILED)), 0)
    finally:
        os.close(fd)
    target.chmod(mode)
    time = _COMPILED_TIME if begin.startswith(_COMPILED) else _TIME
    os.utime(target, (time, time))


def _make_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)  # regardless of qcase's umask


@dataclass(frozen=True)
class _Bounds:
    """Limits of a walk: the workspace for link targets, and paths to omit. `seen`: collects link steps; then no file is read."""

    workspace: Path
    others: Collection[Path]
    ignored: Ignored
    seen: set[Path] | None = None


def _walk(root: Path, prefix: str, folder: str, bounds: _Bounds, inside: tuple[Path, ...]) -> Iterator[Source]:
    """Yield the sources below `root`. `prefix`: the place of `root` in the case, with a slash.

    `inside`: the folders being walked, `root` last.
    """
    digests = bounds.seen is None
    ignored = bounds.ignored.within(root)
    without = {*bounds.others, *(ignored if prefix else ignored - {root / folder})}
    ignore = (*(() if prefix else _CONFIGURATIONS), ".git")
    for row in listings.tree_listing(root, ignore=ignore, without=without, digests=digests, caches=False):
        entry, origin = replace(row, path=f"{prefix}{row.path}"), root / row.path
        real = Path(os.path.realpath(origin)) if row.type == "link" else origin
        if bounds.seen is not None and row.type == "link" and not any(outer.is_relative_to(real) for outer in inside):
            bounds.seen.update(steps(origin))
        if entry.path != folder and not _is_shared(row, real, bounds, inside):
            yield Source(entry, origin)
        elif real.is_dir():
            below = list(_walk(real, f"{entry.path}/", folder, bounds, (*inside, real)))
            yield from below or [Source(listings.TreeEntry(entry.path, "dir", ""), real)]
        elif real.is_file():
            yield Source(listings.file_entry(entry.path, real) if digests else replace(entry, type="file"), real)
        else:
            yield Source(entry, origin)


def _is_shared(row: listings.TreeEntry, real: Path, bounds: _Bounds, inside: tuple[Path, ...]) -> bool:
    """Tell whether a link leads out of the copied folder, but neither out of the workspace nor to a folder around that one."""
    if row.type != "link" or row.content.startswith("/"):
        return False
    return (
        real.is_relative_to(bounds.workspace)
        and (not real.is_relative_to(inside[-1]) or _is_left_out(real, bounds, inside[-1]))
        and not any(outer.is_relative_to(real) for outer in inside)
    )


def _is_left_out(real: Path, bounds: _Bounds, root: Path) -> bool:
    """Tell whether a path below `root` is skipped because it belongs to another case."""
    return bool(bounds.others) and any(path in bounds.others for path in (real, *real.parents) if path.is_relative_to(root))
