"""Lock of the toolchain images: the packages of each, and the time of the Debian archive that they come from.

    <workspace>/qcase-images.lock    the workspace's own, where it has one
    images/lock.toml                 the one that qcase ships, for all others

    format = 1
    snapshot = "20261122T120000Z"    the time of Debian's archive, in UTC; a lock need not name one
    [c]                              one table an image
    recipe = "…"                     digest of the recipe, which holds that of the base
    base = "Debian trixie, minbase"  for people
    packages = "…"                   digest of the list
    list = ["name architecture version", …]

An image is as pinned if its identity is the pin's: the same recipe, the same packages in the same versions.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from qcase import canonical, parsing
from qcase.config.toml_document import toml_value
from qcase.errors import ConfigError, InfraError, Problem
from qcase.host import beneath
from qcase.host.files import write_aside

LOCK_FORMAT = 1  # of the lock, of the records of images, and part of every identity
FILE = "qcase-images.lock"  # beside qcase.toml
SHIPPED = "lock.toml"  # beside the recipes

_TIME = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class Pin:
    """Entry of one image in the lock. `base` is for people: it is part of the recipe's digest."""

    name: str
    recipe: str
    base: str
    packages: tuple[str, ...]

    @property
    def identity(self) -> str:
        return identity(self.recipe, self.packages)


@dataclass(frozen=True)
class Lock:
    """Pinned images by name. `snapshot`: a time of Debian's archive, empty if the lock names none.

    `own`: it is a workspace's own, and not the one that qcase ships.
    """

    path: Path
    pins: Mapping[str, Pin] = field(default_factory=dict)
    snapshot: str = ""
    own: bool = False

    def pin(self, name: str, recipe: str) -> Pin | None:
        """Return the entry of an image; None if there is none for this recipe."""
        found = self.pins.get(name)
        return found if found is not None and found.recipe == recipe else None

    def command(self, name: str) -> str:
        """Return the command that pins an image in the workspace's own lock, and creates that lock if necessary."""
        return f"qcase images lock {name}" if self.own else f"qcase images lock {name} --own"


def identity(recipe: str, packages: Sequence[str]) -> str:
    """Compute the identity of an image from its recipe's digest and the lines of its package list."""
    parts: canonical.JSON = {"format": LOCK_FORMAT, "recipe": recipe, "packages": packages_digest(packages)}
    return canonical.digest(parts)


def packages_digest(packages: Sequence[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in sorted(packages)).encode()).hexdigest()


def at(snapshot: str) -> datetime:
    """Parse the time of a snapshot, `YYYYMMDDTHHMMSSZ`. Raises `ValueError` for any other text."""
    if not re.fullmatch(r"[0-9]{8}T[0-9]{6}Z", snapshot):
        raise ValueError(f"{snapshot!r} is no time of the form 20261122T120000Z")
    try:
        return datetime.strptime(snapshot, _TIME).replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"{snapshot!r} is no time: there is no such day or hour") from None


def stamp(when: datetime) -> str:
    """Format a time as the name of a snapshot."""
    return when.astimezone(UTC).strftime(_TIME)


def of_workspace(root: Path, shipped: Path, *, trusted: bool = True) -> Lock:
    """Return the lock that applies to a workspace. `shipped`: the folder of the recipes.

    A stranger's lock does not count: it would have images made for as many times of the archive as it likes.
    """
    own = root / FILE
    return read(own, own=True) if trusted and os.path.lexists(own) else read(shipped / SHIPPED)


def read(path: Path, *, own: bool = False) -> Lock:
    """Read a lock; an empty one if there is no file. Raises `ConfigError` for a file that qcase did not write."""

    def wrong(what: str) -> ConfigError:
        hint = f"restore it, or remove it and let `qcase images lock{' --own' if own else ''}` write it anew"
        return ConfigError([Problem(what, str(path), hint=hint)])

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise wrong("is not a file")
        table = parsing.toml(beneath.read(path))
        if table.pop("format", None) != LOCK_FORMAT:
            raise wrong(f"is not of the format {LOCK_FORMAT}")
        snapshot = table.pop("snapshot", "")
        if snapshot:
            at(snapshot)
        pins = {name: _pin(name, part) for name, part in table.items()}
        for name, part in table.items():
            if packages_digest(part["list"]) != part["packages"]:
                raise wrong(f"the digest of the packages of {name} is not that of their list")
    except FileNotFoundError:
        if path.is_symlink():
            raise wrong("is a link to nothing") from None
        return Lock(path, own=own)
    except OSError as error:
        raise wrong(f"cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise wrong(f"is no lock: {error}") from None
    return Lock(path, pins, snapshot, own)


def _pin(name: str, part: Mapping[str, object]) -> Pin:
    recipe, base, packages = part["recipe"], part["base"], part["list"]
    if not (isinstance(recipe, str) and isinstance(base, str) and isinstance(packages, list)):
        raise TypeError(f"recipe, base or list of {name} is not what it should be")
    if not all(isinstance(line, str) for line in packages):
        raise TypeError(f"the list of {name} has something else than lines")
    return Pin(name, recipe, base, tuple(packages))


def write(lock: Lock) -> Path:
    """Write a lock, completely or not at all. Returns its path."""
    lines = ["# What each toolchain image is made of. Written by `qcase images lock`.", "", f"format = {LOCK_FORMAT}"]
    if lock.snapshot:
        lines.append(f"snapshot = {toml_value(lock.snapshot)}")
    for name in sorted(lock.pins):
        one = lock.pins[name]
        lines += ["", f"[{name}]", f"recipe = {toml_value(one.recipe)}", f"base = {toml_value(one.base)}"]
        lines += [f'packages = "{packages_digest(one.packages)}"', "list = ["]
        lines += [f"    {toml_value(line)}," for line in sorted(one.packages)] + ["]"]
    try:
        write_aside(lock.path, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise InfraError(f"cannot be written: {error.strerror}", where=str(lock.path)) from None
    return lock.path


@dataclass(frozen=True)
class Change:
    """A package that differs from its pin: `name:architecture`, the pinned version and the present one; one may be empty."""

    package: str
    pinned: str
    found: str

    def __str__(self) -> str:
        if not self.found:
            return f"{self.package} is missing, pinned is {self.pinned}"
        if not self.pinned:
            return f"{self.package} {self.found} is not pinned"
        return f"{self.package} is {self.found}, pinned is {self.pinned}"


def changes(wanted: Pin, packages: Sequence[str]) -> list[Change]:
    """Return the packages of an image that differ from their pins."""
    before, after = _by_name(wanted.packages), _by_name(packages)
    names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return [Change(name, before.get(name, ""), after.get(name, "")) for name in names]


def differences(wanted: Pin, recipe: str, packages: Sequence[str]) -> list[str]:
    """Describe each difference of an image from its pin, one a line; empty without any. `recipe`, `packages`: the image's."""
    lines = [] if recipe == wanted.recipe else [f"the recipe is another: {recipe[:12]}, pinned is {wanted.recipe[:12]}"]
    return lines + [str(change) for change in changes(wanted, packages)]


def _by_name(packages: Sequence[str]) -> dict[str, str]:
    """Parse `name architecture version` lines into versions by `name:architecture`."""
    found = {}
    for line in packages:
        name, _, rest = line.partition(" ")
        architecture, _, version = rest.partition(" ")
        found[f"{name}:{architecture}"] = version
    return found
