"""Records of images that were built here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcase import parsing
from qcase.config import image_lock
from qcase.config.image_lock import LOCK_FORMAT, Lock, Pin
from qcase.errors import InfraError
from qcase.events import Emit
from qcase.host import locks, process
from qcase.host.files import write_aside
from qcase.toolchains.recipes import base_definition, folder_of, recipe_digest, recipes_dir


@dataclass(frozen=True)
class Image:
    """A toolchain image. `id` is the engine's (`sha256:…`), `packages` one line each: name, architecture, version."""

    name: str
    id: str
    identity: str
    packages: tuple[str, ...] = ()


# --- the lock ------------------------------------------------------------------------------------------------------------


def shipped_lock(recipes: Path | None = None) -> Lock:
    """Read the lock beside the recipes."""
    return image_lock.read((recipes or recipes_dir()) / image_lock.SHIPPED)


def lock_of(root: Path | None, *, trusted: bool = True) -> Lock:
    """Return the lock for a workspace, see `image_lock.of_workspace`; without a workspace, the lock that qcase ships."""
    return shipped_lock() if root is None else image_lock.of_workspace(root, recipes_dir(), trusted=trusted)


def pin(image: Image, recipes: Path | None = None) -> Pin:
    """Make the lock's entry for an image that was built from the current recipe."""
    base = str(base_definition(folder_of(image.name, recipes)))
    return Pin(image.name, recipe_digest(image.name, recipes), base, tuple(sorted(image.packages)))


def refuse_other(image: Image, lock: Lock, recipes: Path | None = None) -> None:
    """Raise `InfraError` if an image is not the one in the lock. The error lists each package that differs."""
    from qcase.toolchains.build_log import SAID

    wanted = lock.pins.get(image.name)
    if wanted is None:
        hint = f"`{lock.command(image.name)}` pins it as it is here"
        raise InfraError(f"the toolchain image {image.name} is not pinned", where=str(lock.path), hint=hint)
    lines = image_lock.differences(wanted, recipe_digest(image.name, recipes), image.packages)
    if lines:
        more = [f"… and {len(lines) - SAID} more"] if len(lines) > SAID else []
        said = "\n".join([*lines[:SAID], *more])
        raise InfraError(
            f"the toolchain image {image.name} is not the one that is pinned\n{said}",
            where=str(lock.path),
            hint=f"`qcase images build {image.name} --fresh` takes today's packages, "
            f"`{lock.command(image.name)}` pins what is there",
        )


# --- records, locks, scratch --------------------------------------------------------------------------------------------


def read_record(cache: Path, name: str) -> dict[str, Any] | None:
    """Read a record. None if it is missing, incomplete, or written by another version of qcase."""
    try:
        record = parsing.from_json((cache / "images" / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == LOCK_FORMAT and "identity" in record else None


def write_record(cache: Path, name: str, record: Mapping[str, object]) -> None:
    folder = cache / "images"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_aside(folder / f"{name}.json", json.dumps(record, indent=1).encode(), flushed=True)
    except OSError as error:
        raise InfraError(f"cannot be written: {error.strerror}", where=str(folder / f"{name}.json")) from None


@contextmanager
def alone(cache: Path, what: str, emit: Emit | None) -> Iterator[None]:
    """Hold the lock on an image. A process that has to wait reports the holder."""
    from qcase.toolchains.build_log import say

    folder = cache / "images"
    owner = folder / f"{what}.owner"

    def holder() -> str:
        pid = owner.read_text().strip() if owner.exists() else ""
        return f"{f'pid {pid}' if pid else 'another qcase'}, which builds the image {what}"

    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locks.held(folder / f"{what}.lock", holder, lambda message: say(emit, message)))
            owner.write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise InfraError(f"cannot be locked: {error.strerror}", where=str(folder / f"{what}.lock")) from None
        stack.callback(owner.unlink, missing_ok=True)
        yield


@contextmanager
def scratch_folder(cache: Path) -> Iterator[Path]:
    """Make a private scratch folder in the cache, on a disk and not in memory. The guardian removes it if qcase is killed."""
    parent = cache / "images"
    parent.mkdir(parents=True, exist_ok=True)
    with process.temporary_folder(".scratch-", parent) as folder:
        yield folder


def short_digest(image_id: str) -> str:
    return image_id.removeprefix("sha256:")
