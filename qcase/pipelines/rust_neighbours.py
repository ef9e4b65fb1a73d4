"""Neighbours of a Rust case: crates and files outside of its folder that its manifests and sources name.

    <case>/rust/Cargo.toml   path = "../../../../crates/wire"         the folder of that crate
                             version.workspace = true, members        Cargo.toml and Cargo.lock of the workspace above
    <case>/rust/.cargo/      paths, [patch], [source] … directory     those folders
    <case>/rust/src/*.rs     include_str!("../../../../data/a.txt")   that file

Neighbours are sources like those in the case: they are in its key, in the copy that is built, and in `--changed`. All must be in
the workspace of qcase. Files that a build script opens by itself cannot be known; a link in the case adds them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qcase.crates import manifests
from qcase.crates.manifests import Table, table
from qcase.errors import BuildError
from qcase.host import beneath
from qcase.store import listings

MANIFEST = "Cargo.toml"
TOOLCHAIN_FILES = ("rust-toolchain", "rust-toolchain.toml")  # in rustup's order
_CONFIGURATIONS = (".cargo/config", ".cargo/config.toml")
_LARGEST = 4 << 20  # bytes of a file that is searched
_PARTS = ("src", "build.rs", "Cargo.lock")  # of a crate around the case, beside its manifest: never all that is around it

_STRING = r'r?#*"([^"\n]+)"'
_NAMED = re.compile(rf"\b(?:include|include_str|include_bytes)!\s*[(\[{{]\s*{_STRING}|#\s*!?\[\s*path\s*=\s*{_STRING}\s*\]")
_FROM_MANIFEST = re.compile(rf'\bconcat!\s*\(\s*env!\s*\(\s*"CARGO_MANIFEST_DIR"\s*\)\s*,\s*{_STRING}')
_MODULE = re.compile(r"^[ \t]*(?:pub(?:\([^)\n]*\))?[ \t]+)?mod[ \t]+(\w+)[ \t]*;", re.MULTILINE)


def unread(case: Path, workspace: Path) -> list[str]:
    """List the toolchain files and cargo configurations above a case: a build does not read them, rustup and cargo would.

    In a kernel's tree they are the kernel's. A toolchain file of the case's own hides those above from rustup as well.
    Paths are relative to the workspace; the nearest first.
    """
    top, real = Path(os.path.realpath(workspace)), Path(os.path.realpath(case))
    own = any((real / folder / name).is_file() for folder in ("", "rust") for name in TOOLCHAIN_FILES)
    wanted = _CONFIGURATIONS if own else (*TOOLCHAIN_FILES, *_CONFIGURATIONS)
    above = [folder for folder in real.parents if folder.is_relative_to(top)]
    return [str((folder / name).relative_to(top)) for folder in above for name in wanted if (folder / name).is_file()]


@dataclass
class Neighbours:
    """Neighbours of a case. The paths are those that the case names; links in them are not resolved.

    `taken`: files and folders, none within another one or in the case. `looked`: manifests that would count if they existed.
    """

    taken: set[Path] = field(default_factory=set)
    looked: set[Path] = field(default_factory=set)


def of_case(case: Path, workspace: Path) -> Neighbours:
    """Find the neighbours of `case/rust`. Both paths are without links. Raises `BuildError` for one outside of the workspace."""
    search = _Search(case, workspace)
    search.crate(case / "rust", "rust/Cargo.toml", 1)
    for folder in (case, case / "rust"):
        search.configuration(folder)
    todo = [case / "rust", *sorted(search.found.taken)]
    seen = set(todo)
    for place in todo:  # which grows: files that are named name others
        search.sources(place)
        todo += sorted(search.found.taken - seen)
        seen |= search.found.taken
    taken = {path for path in search.found.taken if not any(above in search.found.taken for above in path.parents)}
    return Neighbours(taken, search.found.looked)


class _Search:
    def __init__(self, case: Path, workspace: Path) -> None:
        self.found = Neighbours()
        self._case = case
        self._workspace = workspace
        self._seen: set[Path] = set()

    def crate(self, folder: Path, named_in: str, line: int) -> None:
        """Take a crate and everything that it names. `named_in`, `line`: position for messages."""
        if folder in self._seen:
            return
        self._seen.add(folder)
        manifest = self._load(folder / MANIFEST)
        if manifest is None:
            if not folder.is_relative_to(self._case):
                self.found.looked.add(folder / MANIFEST)
            return
        self._take_crate(folder, named_in, line)
        root = self._root(folder, manifest)
        if root is not None and root != folder:
            self._workspace_of(root)
        self._dependencies(folder, manifest, root)
        if "workspace" in manifest and folder.is_relative_to(self._case):
            for member in _crates(folder):
                if manifests.is_member(os.path.relpath(member, folder), manifest):
                    self.crate(member, str(folder / MANIFEST), 1)

    def configuration(self, folder: Path) -> None:
        """Take the folders that a cargo configuration of the case names: crates, and replacements of registries."""
        for path in (folder / ".cargo/config", folder / ".cargo/config.toml"):
            config = self._load(path) or {}
            crates = [
                *manifests.strings(config.get("paths")),
                *(name for name, _ in _paths({"patch": config.get("patch")}, folder, {}, folder)),
            ]
            sources = [entry for entry in table(config, "source").values() if isinstance(entry, dict)]
            stores = [
                entry[key] for entry in sources for key in ("directory", "local-registry") if isinstance(entry.get(key), str)
            ]
            text = self._text(path)
            for name in (*crates, *stores):
                named = Path(os.path.normpath(folder / name))
                line = next((number for number, row in enumerate(text.splitlines(), 1) if name in row), 1)
                if name in crates:
                    self.crate(named, str(path), line)
                elif named.is_dir():
                    self._take(named, str(path), line)

    def _workspace_of(self, root: Path) -> None:
        """Take the manifest and the lock file of a workspace, and the sources of its root package if it has one."""
        if root in self._seen:
            return
        self._seen.add(root)
        manifest = self._load(root / MANIFEST) or {}
        for name in (MANIFEST, *(_PARTS if "package" in manifest else ("Cargo.lock",))):
            self.found.looked.add(root / name)
            if (root / name).exists():
                self._take(root / name, str(root), 1)
        self._dependencies(root, manifest, root)

    def _take_crate(self, folder: Path, named_in: str, line: int) -> None:
        if not self._case.is_relative_to(folder):
            self._take(folder, named_in, line)
            return
        for name in (MANIFEST, *_PARTS):
            if (folder / name).exists():
                self._take(folder / name, named_in, line)

    def _dependencies(self, folder: Path, manifest: Table, root: Path | None) -> None:
        shared = table(table(self._load(root / MANIFEST) or {}, "workspace"), "dependencies") if root else {}
        text = self._text(folder / MANIFEST)
        for path, above in _paths(manifest, folder, shared, root or folder):
            line = next((number for number, row in enumerate(text.splitlines(), 1) if f'"{path}"' in row), 1)
            self.crate(Path(os.path.normpath(above / path)), str(folder / MANIFEST), line)

    def _root(self, folder: Path, manifest: Table) -> Path | None:
        """Return the root of a crate's workspace, by cargo's rules; None if it has none."""
        if "workspace" in manifest:
            return folder
        pointed = table(manifest, "package").get("workspace")
        if isinstance(pointed, str):
            return Path(os.path.normpath(folder / pointed))
        for above in folder.parents:
            if not above.is_relative_to(self._workspace):
                return None
            if not above.is_relative_to(self._case):
                self.found.looked.add(above / MANIFEST)
            found = self._load(above / MANIFEST)
            if found is not None and "workspace" in found:
                inside = manifests.inherits(manifest) or manifests.is_member(os.path.relpath(folder, above), found)
                return above if inside else None
        return None

    def sources(self, folder: Path) -> None:
        """Take the files that the sources of a crate name by literal paths."""
        paths = [folder] if folder.suffix == ".rs" else sorted(_rust_files(folder))
        for path in paths:
            text = self._text(path)
            if path == folder:
                self._modules(path, text)
            for match in (*_NAMED.finditer(text), *_FROM_MANIFEST.finditer(text)):
                name = next(group for group in match.groups() if group is not None)
                if match.re is _FROM_MANIFEST:
                    name = f"{_crate_of(path)}{name}"
                elif name.startswith("/"):
                    continue  # a path of the container
                named = Path(os.path.normpath(path.parent / name))
                if named.is_file():
                    self._take(named, str(path), text.count("\n", 0, match.start()) + 1)

    def _modules(self, path: Path, text: str) -> None:
        """Take the modules of a file beside the case: they are beside the file, as if it were a `mod.rs`."""
        for match in _MODULE.finditer(text):
            for name in (f"{match[1]}.rs", f"{match[1]}/mod.rs"):
                if (path.parent / name).is_file():
                    self._take(path.parent / name, str(path), text.count("\n", 0, match.start()) + 1)

    def _take(self, path: Path, named_in: str, line: int) -> None:
        if path.is_relative_to(self._case) or path in self.found.taken:
            return
        real = Path(os.path.realpath(path))
        if not path.is_relative_to(self._workspace) or not real.is_relative_to(self._workspace):
            place = Path(named_in)
            shown = place.relative_to(self._workspace) if place.is_relative_to(self._workspace) else place
            raise BuildError(
                f"{path} is outside of the workspace, and a build sees nothing of what is there",
                where=f"{shown}:{line}",
                hint="move it into the workspace, or take the crate from a registry or from git",
            )
        self.found.taken.add(path)

    def _load(self, path: Path) -> Table | None:
        try:
            return manifests.parse(self._text(path).encode()) if path.is_file() else None
        except ValueError:
            return None  # cargo complains

    def _text(self, path: Path) -> str:
        try:
            return beneath.read(path, _LARGEST).decode("utf-8", "replace").replace("\r\n", "\n")
        except OSError:
            return ""


def _paths(manifest: Table, folder: Path, shared: Table, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield each path of a dependency with the folder that it is relative to."""
    places = [found for _, _, found in manifests.sections(manifest)]
    places += [found for found in table(manifest, "patch").values() if isinstance(found, dict)]
    places.append(table(manifest, "replace"))
    for place in places:
        for name, asked in place.items():
            if not isinstance(asked, dict):
                continue
            base, above = (shared.get(name), root) if asked.get("workspace") is True else (asked, folder)
            if isinstance(base, dict) and isinstance(base.get("path"), str):
                yield base["path"], above


def _crates(folder: Path) -> list[Path]:
    """Return the folders of all crates below a folder, sorted."""
    found = []
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and not listings.is_cache(os.path.join(here, name))]  # noqa: PTH118
        if MANIFEST in files and here != str(folder):
            found.append(Path(here))
    return sorted(found)


def _rust_files(folder: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and not listings.is_cache(os.path.join(here, name))]  # noqa: PTH118
        yield from (Path(here, name) for name in files if name.endswith(".rs"))


def _crate_of(path: Path) -> Path:
    return next((above for above in path.parents if (above / MANIFEST).is_file()), path.parent)
