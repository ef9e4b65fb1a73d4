"""Manifests, lock file and configuration of a Rust case, in the copy of its sources that qcase made.

No other process may write to that copy meanwhile. `place` of a build context is the case's folder in the copy. The copy includes
the case's neighbours, see `qcase.pipelines.rust_neighbours`.
"""

from __future__ import annotations

import posixpath
import stat

from qcase.crates import manifests, pool
from qcase.crates.manifests import Table, table
from qcase.errors import BuildError
from qcase.host.trees import PlantedError, Tree
from qcase.pipelines.pipeline import BuildContext

_FILES = 1_000_000  # of a case, whose vendored crates may be many
LOCK = "rust/Cargo.lock"
MANIFEST = "rust/Cargo.toml"


def case_configuration(source: Tree, case: str) -> Table:
    """Merge the case's own cargo configurations.

    As in cargo, the nearer file wins; lists are joined, the nearer file's part last.
    """
    merged: Table = {}
    for folder in ("", "rust/"):
        for name in ("config", "config.toml"):  # in cargo's order
            data = read_file(source, f"{folder}.cargo/{name}", case)
            if data is not None:
                try:
                    merged = _merged(merged, manifests.parse(data))
                except ValueError as error:
                    raise BuildError(f"{folder}.cargo/{name} cannot be read: {error}", where=case) from None
                break
    return merged


def _merged(far: Table, near: Table) -> Table:
    made = dict(far)
    for key, value in near.items():
        old = made.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            made[key] = _merged(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            made[key] = [*old, *value]
        else:
            made[key] = value
    return made


def root(source: Tree, context: BuildContext) -> str:
    """Return the folder of the cargo workspace that contains `rust/`, by cargo's rules; `rust/` itself if there is none."""
    folder = join(context.place, "rust")
    mine = load(source, join(folder, "Cargo.toml"))
    if "workspace" in mine:
        return folder
    pointed = table(mine, "package").get("workspace")
    if isinstance(pointed, str):
        found = posixpath.normpath(posixpath.join(folder, pointed))
        return folder if found.startswith("..") else found.removeprefix(".")
    above = folder
    while above:
        above = posixpath.dirname(above)
        found_there = load(source, join(above, "Cargo.toml"))
        if "workspace" in found_there:
            inside = manifests.is_member(posixpath.relpath(folder, above or "."), found_there)
            return above if inside or manifests.inherits(mine) else folder
    return folder


def narrow(source: Tree, root: str, context: BuildContext) -> None:
    """Reduce the members of a workspace around the case to the packages that are in the copy; the case needs no others."""
    whole = load(source, join(root, "Cargo.toml"))
    folders = [posixpath.relpath(posixpath.dirname(path) or ".", root or ".") for path in manifests_of(source, context)]
    there = sorted(folder for folder in folders if folder != "." and manifests.is_member(folder, whole))
    made = {**table(whole, "workspace"), "members": there}
    made.pop("default-members", None)
    (source / join(root, "Cargo.toml")).replace_bytes(manifests.render({**whole, "workspace": made}))


def package_names(source: Tree, context: BuildContext) -> list[str]:
    """Return the names of all packages in the case and among its neighbours."""
    return [str(table(found, "package").get("name")) for found in manifests_of(source, context).values()]


def read_file(source: Tree, path: str, case: str) -> bytes | None:
    """Read a file of the case; None if it does not exist.

    Raises `BuildError` for a link that leads out of the case, and for anything but a regular file.
    """
    if not source.leads_to(path):
        return None
    place = source.followed(path, outside=True)
    if place is None:
        raise BuildError(f"{path} is a symbolic link that leads out of the case", where=case)
    try:
        return place.read_bytes(pool.LARGEST_LOCK)
    except PlantedError:
        raise BuildError(f"{path} is no file of less than {pool.LARGEST_LOCK >> 20} MiB", where=case) from None


def manifest(source: Tree, case: str) -> Table:
    """Read the manifest of `rust/`. Raises `BuildError` for invalid TOML."""
    data = read_file(source, MANIFEST, case)
    try:
        return {} if data is None else manifests.parse(data)
    except ValueError as error:
        raise BuildError(f"{MANIFEST} cannot be read: {error}", where=case) from None


def manifests_of(source: Tree, context: BuildContext) -> dict[str, Table]:
    """Read every `Cargo.toml` of a case, by path. An unreadable one below is skipped: cargo reports it if it is used."""
    own = join(context.place, MANIFEST)
    found = {own: manifest(source / context.place if context.place else source, context.case)}
    for name, about in source.walk(_FILES):
        if name.rpartition("/")[2] != "Cargo.toml" or name == own or about.st_size > pool.LARGEST_LOCK:
            continue
        if stat.S_ISREG(about.st_mode):
            try:
                found[name] = manifests.parse((source / name).read_bytes(pool.LARGEST_LOCK))
            except ValueError:
                continue
    return found


def load(source: Tree, path: str) -> Table:
    try:
        return manifests.parse((source / path).read_bytes(pool.LARGEST_LOCK))
    except (OSError, BuildError, ValueError):
        return {}


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
