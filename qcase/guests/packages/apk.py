"""The package database of a root filesystem (`/lib/apk/db`)."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import stat
from collections.abc import Iterator

from qcase import canonical
from qcase.errors import BuildError
from qcase.guests.packages.lock import NAME, VERSION
from qcase.host.trees import SPECIAL, PlantedError, Tree

_DATABASE = ("lib/apk", "usr/lib/apk", "etc/apk")  # folders of apk's own data, by version
# Files that apk writes for itself, not part of any package.
OWN_FILES = (*_DATABASE, "var/cache/apk", "var/cache/misc", "var/log/apk.log")

INSTALLED = 64 << 20  # bytes of a package database
_INSTALLED_PACKAGES = 20_000
_OWNER = re.compile(r"[0-9]{1,10}:[0-9]{1,10}:([0-7]{1,4})(:.+)?")  # in it: owner, mode, digest of attributes
_CHECKSUM = re.compile(r"Q[12][A-Za-z0-9+/]{27,43}=?=?")


def installed(root: Tree) -> dict[str, tuple[str, str, str]]:
    """Return the packages of a root by name: version, architecture, and apk's checksum.

    Raises `BuildError` where there is no apk.

    The database is untrusted: a script may have written all of it.
    """
    return _stanzas(_database_of(root))


def _stanzas(database: Tree) -> dict[str, tuple[str, str, str]]:
    """Parse the packages of apk's database, line by line."""
    found: dict[str, tuple[str, str, str]] = {}
    fields: dict[str, str] = {}

    def end() -> None:
        if "P" in fields:
            name, version = fields["P"], fields.get("V", "")
            if not (NAME.fullmatch(name) and VERSION.fullmatch(version or "0")):
                raise PlantedError(f"{database.shown} has a package with the name {f'{name}-{version}'!a}")
            found[name] = (version, fields.get("A", ""), fields.get("C", ""))
            if len(found) > _INSTALLED_PACKAGES:
                raise _too_large(database)
        fields.clear()

    for text in _lines(database):
        if not text:
            end()
        elif text[1:2] == ":" and text[0] in "PVAC":
            fields.setdefault(text[0], text[2:])
    end()
    return found


def skeleton(root: Tree, target: Tree) -> None:
    """Copy the files that apk reads from a root into a new root."""
    for name in _DATABASE:
        place = root.followed(name)
        if place is not None and place.is_dir():
            (target / name).mkdir(parents=True)
            place.copy_to(target / name)
    for path, about in target.walk():
        if not stat.S_ISLNK(about.st_mode):
            (target / path).chmod(0o755 if stat.S_ISDIR(about.st_mode) else 0o644)


def state(root: Tree) -> str:
    """Return a digest of the packages that a root has installed and requested.

    Virtual packages (`apk add --virtual .tools`) are left out: apk gives them the time of day as their version.
    """
    rows = sorted([name, *facts] for name, facts in installed(root).items() if not name.startswith("."))
    world = root / "etc/apk/world"
    asked = world.read_text().splitlines() if world.exists() else []
    return canonical.digest({"installed": rows, "world": [line for line in asked if not line.startswith(".")]})


def cached_name(name: str, version: str, checksum: str) -> str:
    """Return the name of a package in apk's cache. It contains the first four bytes of its checksum."""
    if not _CHECKSUM.fullmatch(checksum):
        raise PlantedError(f"the package {name}-{version} has no checksum, but {checksum!a}")
    return f"{name}-{version}.{base64.b64decode(checksum[2:])[:4].hex()}.apk"


def unusual(root: Tree) -> dict[str, tuple[int, bool]]:
    """Return what packages say of files that are setuid or setgid or have extended attributes, by path: mode, and has attributes.

    apk notes it in its database, whether or not it could give it to the file: an ordinary user's apk cannot, nor can a step's.
    """
    found: dict[str, tuple[int, bool]] = {}
    folder = path = ""
    for text in _lines(_database_of(root)):
        kind, _, value = text.partition(":")
        if kind == "F":
            folder = path = value
        elif kind == "R":
            path = f"{folder}/{value}" if folder else value
        elif kind in ("a", "M") and (match := _OWNER.fullmatch(value)) and path:
            mode, attributes = int(match[1], 8), bool(match[2])
            above, _, name = path.rpartition("/")
            place = root.followed(above) if mode & SPECIAL or attributes else None
            if place is not None and name not in ("", ".", ".."):
                found[(place / name).below.removeprefix(root.below).lstrip("/")] = (mode, attributes)
    return found


def _database_of(root: Tree) -> Tree:
    """Return the file `installed` of apk's database. Raises `BuildError` where there is none."""
    for folder in ("lib/apk/db", "usr/lib/apk/db"):
        place = root.followed(folder)
        if place is not None and (place / "installed").exists():
            return place / "installed"
    for folder in ("lib/apk/db", "usr/lib/apk/db"):
        with contextlib.suppress(FileNotFoundError), (root / folder).folder():
            pass  # raises where another kind of file is in its place
    raise BuildError(
        "the guest's base image has no package database of apk, so nothing can be installed into it",
        hint="packages need a guest made of Alpine",
    )


def _lines(database: Tree) -> Iterator[str]:
    left = INSTALLED
    with database.opened() as fd, os.fdopen(fd, "rb", closefd=False) as file:
        while line := file.readline(1 << 16):
            left -= len(line)
            if left < 0:
                raise _too_large(database)
            yield line.decode("utf-8", "surrogateescape").rstrip("\n")


def _too_large(database: Tree) -> PlantedError:
    return PlantedError(f"{database.shown} is larger than the database of any guest")
