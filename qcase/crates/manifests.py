"""Manifests of Rust (`Cargo.toml`) as data: nothing here runs cargo.

A crate from git in a workspace takes parts of its manifest from the workspace's; `without_inheritance` merges them, as `cargo
vendor` does. `for_resolving` keeps the parts of a manifest that affect resolution.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qcase import parsing

Table = dict[str, Any]

DEPENDENCIES = ("dependencies", "dev-dependencies", "build-dependencies", "dev_dependencies", "build_dependencies")
STUB = "qcase-stub.rs"

_PACKAGE = ("name", "version", "edition", "rust-version", "resolver", "workspace", "autolib")
_WORKSPACE = ("members", "exclude", "default-members", "resolver")
_INHERITED = ("version", "edition", "rust-version")


def parse(data: bytes) -> Table:
    """Parse a TOML file into a table. Raises `ValueError` for invalid TOML."""
    return parsing.toml(data)


def table(parent: Mapping[str, Any], name: str) -> Table:
    """Return a table in a table; an empty one if there is none, or if the value is no table."""
    found = parent.get(name)
    return found if isinstance(found, dict) else {}


def sections(manifest: Mapping[str, Any]) -> Iterator[tuple[Table, str, Table]]:
    """Yield all tables of dependencies, each as its parent table, its name, and the table itself."""
    for place in (dict(manifest), *table(manifest, "target").values()):
        if isinstance(place, dict):
            for kind in DEPENDENCIES:
                if found := table(place, kind):
                    yield place, kind, found


def is_member(folder: str, manifest: Mapping[str, Any]) -> bool:
    """Tell whether a workspace names a folder as a member. `folder`: its path relative to the workspace's manifest."""
    workspace = table(manifest, "workspace")
    folder = posixpath.normpath(folder)
    if any(f"{folder}/".startswith(f"{posixpath.normpath(name)}/") for name in strings(workspace.get("exclude"))):
        return False
    return any(_matches(folder, posixpath.normpath(pattern)) for pattern in strings(workspace.get("members")))


def _matches(folder: str, pattern: str) -> bool:
    """Match a folder against a pattern: a star matches within one name, two stars match any number of names."""
    if "**" in pattern:
        return fnmatch.fnmatchcase(folder, pattern)
    names, patterns = folder.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(map(fnmatch.fnmatchcase, names, patterns))


def inherits(manifest: Mapping[str, Any]) -> bool:
    """Tell whether a manifest takes parts from that of its workspace."""
    values = [*table(manifest, "package").values(), table(manifest, "lints")]
    values += [asked for _, _, found in sections(manifest) for asked in found.values()]
    return any(isinstance(value, dict) and value.get("workspace") is True for value in values)


def without_inheritance(manifest: Mapping[str, Any], root: Mapping[str, Any]) -> Table:
    """Return a manifest that is valid without its workspace. `root`: the manifest of the workspace."""
    workspace = table(root, "workspace")
    shared = table(workspace, "package")
    made = {key: value for key, value in manifest.items() if key not in ("lints", "workspace", "patch", "replace", "profile")}
    package = {}
    for key, value in table(manifest, "package").items():
        if not (isinstance(value, dict) and value.get("workspace") is True):
            package[key] = value
        elif key in shared and key not in ("readme", "license-file"):  # those are paths from the workspace's folder
            package[key] = shared[key]
    package.pop("workspace", None)
    made["package"] = package
    known = table(workspace, "dependencies")

    def full(name: str, asked: Any) -> Any:
        return _inherited(asked, known.get(name)) if isinstance(asked, dict) and asked.get("workspace") is True else asked

    return _mapped(made, full)


def _inherited(asked: Table, base: Any) -> Any:
    """Merge a workspace's dependency with a member's request for it: features are joined."""
    found: Table = {"version": base} if isinstance(base, str) else dict(base) if isinstance(base, dict) else {}
    features = [*strings(found.get("features")), *strings(asked.get("features"))]
    if features:
        found["features"] = list(dict.fromkeys(features))
    for key in ("optional", "public"):
        if key in asked:
            found[key] = asked[key]
    if asked.get("default-features") is True:
        found["default-features"] = True
    return found


def strings(value: Any) -> list[str]:
    """Return the strings in a list; empty if the value is no list."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _mapped(manifest: Mapping[str, Any], change: Callable[[str, Any], Any]) -> Table:
    """Return a manifest with `change` applied to each dependency."""

    def changed(place: Mapping[str, Any]) -> Table:
        return {
            key: {name: change(name, asked) for name, asked in value.items()}
            if key in DEPENDENCIES and isinstance(value, dict)
            else value
            for key, value in place.items()
        }

    made = changed(manifest)
    if targets := table(manifest, "target"):
        made["target"] = {name: changed(place) if isinstance(place, dict) else place for name, place in targets.items()}
    return made


def for_resolving(manifest: Mapping[str, Any]) -> Table:
    """Return the part of a manifest that affects resolution. Its only target is a library, in the file `STUB` beside it."""
    made: Table = {}
    if package := table(manifest, "package"):
        made["package"] = {key: package[key] for key in _PACKAGE if key in package}
        made["lib"] = {"path": STUB}
        made["features"] = table(manifest, "features")
    if "workspace" in manifest:
        workspace = table(manifest, "workspace")
        shared = table(workspace, "package")
        made["workspace"] = {key: workspace[key] for key in _WORKSPACE if key in workspace}
        made["workspace"]["package"] = {key: shared[key] for key in _INHERITED if key in shared}
        made["workspace"]["dependencies"] = table(workspace, "dependencies")
    kept = (*DEPENDENCIES, "patch", "replace")
    made |= {key: manifest[key] for key in kept if isinstance(manifest.get(key), dict)}
    targets = {name: place for name, place in table(manifest, "target").items() if isinstance(place, dict)}
    if targets:
        made["target"] = {name: {key: place[key] for key in DEPENDENCIES if key in place} for name, place in targets.items()}
    return made


def render(manifest: Mapping[str, Any]) -> bytes:
    """Encode a manifest as TOML."""
    import tomli_w

    return tomli_w.dumps(manifest).encode("utf-8")
