"""Toolchain images: built once from a recipe, identified by the packages installed in them.

A recipe is a folder with a `Containerfile` whose `ARG BASE` names the base image. The recipes are `images/<name>/` in a checkout,
and `qcase/_images/<name>/` in an installed qcase; `base.toml` beside them defines the base, and one inside a recipe's folder
defines it for that recipe.

    <cache>/images/<name>.json     the latest image of this recipe: {format, recipe, image, identity, snapshot, …}
    <cache>/images/<name>.<identity>.json    the same for each identity, of which a lock may name one
    <cache>/images/<image>.json    the contents of an image: {format, identity, packages}
    <cache>/images/<name>.log      the output of its last build
    <cache>/images/<name>.lock     held by the process that builds it; <name>.owner names that process
    <cache>/images/base.lock       likewise for the base

The *identity* is a sha256 over the recipe (paths, executable bits, bytes) and the list of the installed packages with their
versions, which is read back from the image: `/opt/qcase/packages.txt` where the recipe wrote one, else dpkg's list. The image's
id is no part of it, for it differs from build to build, nor is the mirror, nor a proxy. The identity enters every key, so it has
to be known without an engine: `known_identity`.

The base is Debian, from a registry by digest where `base.toml` names one that answers, else made by mmdebstrap and imported: from
the snapshot of Debian's archive that the lock names, where that can be reached, else from the mirror that the host's own apt
uses. Its `sources.list` names the same, so recipes need not. A recipe can start from a built-in guest's root filesystem instead
(`guest = "alpine"`), or from another recipe's image (`image = "c"`).
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from qcase.config import image_lock
from qcase.config.image_lock import Lock, identity
from qcase.errors import InfraError
from qcase.events import Emit, Warned
from qcase.host.proxies import proxies_of
from qcase.toolchains.image_contents import installed_packages, record_name, tag_of, take_in
from qcase.toolchains.recipes import base_definition, folder_of, names, recipe_digest
from qcase.toolchains.records import Image, alone, read_record, shipped_lock, short_digest, write_record

if TYPE_CHECKING:
    from qcase.containers.engine import Engine


@dataclass(frozen=True)
class Standing:
    """Recorded state of an image that was built from the current recipe. It is read from the cache without an engine.

    `pinned`: the identity is the lock's, or the lock has no entry for the image. `retry`: the identity is another one, and the
    snapshot that the lock names may have the pinned packages.
    """

    identity: str
    pinned: bool
    retry: bool


def standing(name: str, cache: Path, recipes: Path | None = None, lock: Lock | None = None) -> Standing | None:
    """Return the recorded state of an image; None if none was built from the current recipe.

    If the engine no longer has the image, `ensure` builds it again, and the new build may have another identity.
    """
    recipe = recipe_digest(name, recipes)
    lock = lock or shipped_lock(recipes)
    record = next(iter(_records(name, cache, recipe, lock)), None)
    if record is None:
        return None
    wanted = lock.pins.get(name)
    pinned = wanted is None or wanted.identity == record["identity"]
    return Standing(record["identity"], pinned, _may_be_pinned(name, record, recipes, lock))


def known_identity(name: str, cache: Path, recipes: Path | None = None, lock: Lock | None = None) -> str | None:
    """Return the identity of an image, see `standing`."""
    found = standing(name, cache, recipes, lock)
    return found.identity if found else None


def find(name: str, engine: Engine, cache: Path, recipes: Path | None = None, lock: Lock | None = None) -> Image | None:
    """Return the image built from the current recipe: the pinned one, else another one that exists. None if there is none.

    An image that the user built with `--fresh` goes before the pinned one. Nothing is built.
    """
    return _find(name, engine, cache, recipes, lock or shipped_lock(recipes))


def ensure(
    name: str, engine: Engine, cache: Path, emit: Emit | None = None, recipes: Path | None = None, lock: Lock | None = None
) -> Image:
    """Return the image of this name; build it first if it is missing. Other processes that want it wait and report the builder.

    An image that is not the pinned one is built anew where the snapshot that the lock names can be reached.
    """
    lock = lock or shipped_lock(recipes)
    found = _find(name, engine, cache, recipes, lock)
    if found is not None and not _better(name, cache, found, recipes, lock, emit):
        return found
    with alone(cache, name, emit):
        found = _find(name, engine, cache, recipes, lock)
        if found is not None and not _better(name, cache, found, recipes, lock, emit):
            return found
        return _build(name, engine, cache, emit, recipes, lock, fresh=False)


def build_anew(
    name: str,
    engine: Engine,
    cache: Path,
    emit: Emit | None = None,
    recipes: Path | None = None,
    lock: Lock | None = None,
    *,
    fresh: bool = False,
) -> Image:
    """Build an image from the engine's layer cache. With `fresh`, build every layer anew, from today's mirror."""
    with alone(cache, name, emit):
        return _build(name, engine, cache, emit, recipes, lock or shipped_lock(recipes), fresh=fresh)


def build_from(
    name: str, snapshot: str, engine: Engine, cache: Path, emit: Emit | None = None, recipes: Path | None = None
) -> Image:
    """Build the image of this name with the packages of a snapshot. Raises `InfraError` where the snapshot cannot be reached."""
    from qcase.guests import debian_archive

    suite = debian_suite(name, recipes)
    if suite:
        base = debian_archive.snapshots(os.environ)
        if not base:
            hint = f"unset {debian_archive.MIRROR_VARIABLE}, and {debian_archive.SNAPSHOT_VARIABLE}=off"
            raise InfraError("snapshots are switched off", where=f"the image {name}", hint=hint)
        if trouble := debian_archive.snapshot_trouble(base, snapshot, suite):
            where = f"{base}/debian/{snapshot}"
            hint = f"{debian_archive.SNAPSHOT_VARIABLE} names another archive of snapshots"
            raise InfraError(f"cannot be reached: {trouble}", where=where, hint=hint)
    with alone(cache, name, emit):
        return _with_origin(name, engine, cache, emit, recipes, snapshot if suite else "")


def take_pinned(name: str, cache: Path) -> None:
    """Clear the record's mark that the last image was built with `--fresh`, and the time of the last attempt at its snapshot."""
    record = read_record(cache, name)
    if record is not None and (record.get("fresh") or record.get("asked")):
        write_record(cache, name, {**record, "fresh": False, "asked": 0})


def debian_suite(name: str, recipes: Path | None = None) -> str:
    """Return the Debian suite of an image's packages; empty for an image whose base is a guest."""
    definition = base_definition(folder_of(name, recipes))
    return debian_suite(definition.image, _recipes_of(definition.image, recipes)) if definition.image else definition.suite


def origin(name: str, cache: Path, recipes: Path | None = None, lock: Lock | None = None) -> str:
    """Return the time of Debian's archive from which an image's packages come: its snapshot's, else the mirror's at the build.

    Empty if that is not known.
    """
    for record in _records(name, cache, recipe_digest(name, recipes), lock or shipped_lock(recipes)):
        return str(record.get("snapshot") or record.get("date") or "")
    return ""


def time_of(before: Lock, after: Lock, cache: Path, recipes: Path | None = None) -> tuple[str, list[str]]:
    """Compute the snapshot for a new lock: the newest package time of its images.

    Also returns the images whose packages may differ.

    Where neither a record nor a lock has the time (an image that was adopted from the engine), the time is that of the current
    mirror's release file, if it has one.
    """
    from qcase.guests import debian_archive

    times: dict[str, str] = {}
    guessed = []
    locks = [before, shipped_lock(recipes)]
    for name, one in after.pins.items():
        if not (name in names(recipes) and (suite := debian_suite(name, recipes))):
            continue
        pinned = [lock.snapshot for lock in locks if name in lock.pins and lock.pins[name].identity == one.identity]
        times[name] = next(filter(None, pinned), "") or origin(name, cache, recipes, after)
        if not times[name]:
            guessed.append(name)
            times[name] = debian_archive.release_time(debian_archive.host_mirrors(debian_archive.APT, os.environ), suite)
    newest = max(times.values(), default="")
    return newest, [name for name, time in sorted(times.items()) if newest and (time != newest or name in guessed)]


def departure(image: Image, lock: Lock, recipes: Path | None = None) -> str:
    """Describe in one sentence, with the packages, how an image differs from its pin. Empty if it does not, or has no pin."""
    from qcase.toolchains.build_log import SAID

    wanted = lock.pins.get(image.name)
    recipe = recipe_digest(image.name, recipes)
    if wanted is None or wanted.identity == image.identity:
        return ""
    parts = [
        f"{one.package} {one.pinned or '(none)'} → {one.found or '(none)'}" for one in image_lock.changes(wanted, image.packages)
    ]
    if recipe != wanted.recipe:
        parts.insert(0, "its recipe is another")
    more = [f"and {len(parts) - SAID} more"] if len(parts) > SAID else []
    return (
        f"the toolchain image {image.name} is not as {lock.path.name} pins it ({', '.join([*parts[:SAID], *more])}): "
        "keys are not those of machines that have the pinned one; `qcase doctor` says what to do"
    )


def known(name: str, cache: Path, recipes: Path | None = None, lock: Lock | None = None) -> Image | None:
    """Return the recorded image with its packages, without an engine; None if there is no complete record.

    See `known_identity`.
    """
    record = next(iter(_records(name, cache, recipe_digest(name, recipes), lock or shipped_lock(recipes))), None)
    if record is None:
        return None
    content = read_record(cache, short_digest(record["image"]))
    if not content or content.get("identity") != record["identity"]:
        return None
    return Image(name, record["image"], record["identity"], tuple(content["packages"]))


def reread(name: str, engine: Engine, cache: Path, recipes: Path | None = None, lock: Lock | None = None) -> Image | None:
    """Return an image with its package list read from the engine again; None if no image was built from this recipe."""
    found = _find(name, engine, cache, recipes, lock or shipped_lock(recipes))
    if found is None:
        return None
    packages = installed_packages(engine, cache, found.id)
    return Image(name, found.id, identity(recipe_digest(name, recipes), packages), packages)


# --- one image ----------------------------------------------------------------------------------------------------------


def _records(name: str, cache: Path, recipe: str, lock: Lock) -> list[dict[str, Any]]:
    """Return the records of images of this recipe in order of preference: a fresh one, the pinned one, the latest."""
    latest = read_record(cache, name)
    found = [latest] if latest is not None and latest.get("recipe") == recipe else []
    wanted = lock.pin(name, recipe)
    if wanted is None or (found and (found[0].get("fresh") or found[0]["identity"] == wanted.identity)):
        return found
    exact = read_record(cache, record_name(name, wanted.identity))
    return [exact, *found] if exact is not None and exact["identity"] == wanted.identity else found


def _find(name: str, engine: Engine, cache: Path, recipes: Path | None, lock: Lock) -> Image | None:
    """Find an image of the current recipe that the engine still has. The pinned one goes first, see `_records`.

    Without a record, adopt an image that another store on this machine had built from this recipe.
    """
    from qcase.toolchains import oci

    recipe = recipe_digest(name, recipes)
    wanted = lock.pin(name, recipe)
    records = [record for record in _records(name, cache, recipe, lock) if engine.image_exists(record["image"])]
    first = records[0] if records else None
    if wanted is not None and not (first and (first.get("fresh") or first["identity"] == wanted.identity)):
        others = engine.labelled_image(tag_of(name, wanted.identity), oci.RECIPE_LABEL, recipe)
        if others is not None:
            taken = take_in(name, engine, cache, recipe, others)
            if taken.identity == wanted.identity:
                return taken
    if first is None:
        others = engine.labelled_image(tag_of(name, recipe), oci.RECIPE_LABEL, recipe)
        return None if others is None else take_in(name, engine, cache, recipe, others)
    return _of_record(name, engine, cache, first)


def _of_record(name: str, engine: Engine, cache: Path, record: Mapping[str, Any]) -> Image:
    content = read_record(cache, short_digest(record["image"]))
    if not content or content.get("identity") != record["identity"]:
        notes = {key: record[key] for key in _NOTES if key in record}
        return take_in(name, engine, cache, record["recipe"], record["image"], notes)
    return Image(name, record["image"], record["identity"], tuple(content["packages"]))


_NOTES = ("fresh", "date", "asked")  # kept in a record, not in the image. `fresh`: the user asked for this image
_ASKED_AGAIN = 3600.0  # seconds after which a snapshot that could not be reached is looked for again


def _may_be_pinned(name: str, record: Mapping[str, Any], recipes: Path | None, lock: Lock) -> bool:
    """Tell whether the lock's snapshot may have the pinned packages of this image.

    False for `_ASKED_AGAIN` seconds after a failed attempt to reach it.
    """
    from qcase.guests import debian_archive

    wanted = lock.pins.get(name)
    if wanted is None or not lock.snapshot or wanted.identity == record["identity"] or record.get("fresh"):
        return False
    if record.get("snapshot") == lock.snapshot or time.time() - record.get("asked", 0) < _ASKED_AGAIN:
        return False
    return bool(debian_suite(name, recipes) and debian_archive.snapshots(os.environ))


def _better(name: str, cache: Path, image: Image, recipes: Path | None, lock: Lock, emit: Emit | None) -> bool:
    """Tell whether an existing image should be rebuilt: it is not the pinned one and the snapshot can be reached.

    A snapshot that cannot be reached is noted in the record, and not tried again within `_ASKED_AGAIN` seconds.
    """
    from qcase.toolchains.base import reached

    for record in _records(name, cache, recipe_digest(name, recipes), lock):
        if record["image"] != image.id or not _may_be_pinned(name, record, recipes, lock):
            continue
        if reached(lock.snapshot, debian_suite(name, recipes), emit):
            return True
        with contextlib.suppress(InfraError):  # the store may be read-only
            write_record(cache, name, {**record, "asked": time.time()})
    return False


def _build(name: str, engine: Engine, cache: Path, emit: Emit | None, recipes: Path | None, lock: Lock, *, fresh: bool) -> Image:
    """Build an image: from the snapshot that the lock names where that can be reached, else from today's mirror."""
    from qcase.toolchains.base import reached

    if not fresh and reached(lock.snapshot, debian_suite(name, recipes), emit):
        try:
            return build_image(name, engine, cache, emit, recipes, lock.snapshot)
        except InfraError as error:
            if not _NOT_FETCHED.search(str(error)):
                raise
            what = f"the image {name} cannot be made from the pinned snapshot, and is made from today's mirror: {error}"
            if emit is not None:
                emit(Warned(what))
    return build_image(name, engine, cache, emit, recipes, "", fresh=fresh)


_NOT_FETCHED = re.compile(
    r"(?i)failed to fetch|could ?n[o']t resolve|temporary failure resolving|(could not|unable to) connect"
    r"|connection (failed|timed out)"
)


def _with_origin(name: str, engine: Engine, cache: Path, emit: Emit | None, recipes: Path | None, snapshot: str) -> Image:
    """Return the image with the packages of a snapshot, or of a mirror where `snapshot` is empty. The caller holds its lock."""
    recipe = recipe_digest(name, recipes)
    # The latest first: of those that came from a mirror, it is the one of the newest packages.
    for path in sorted((cache / "images").glob(f"{name}*.json"), key=lambda path: (path.stem != name, path.name)):
        record = read_record(cache, path.stem)
        if record is None or record.get("recipe") != recipe or record.get("snapshot", "") != snapshot:
            continue
        if engine.image_exists(record["image"]):
            return _of_record(name, engine, cache, record)
    return build_image(name, engine, cache, emit, recipes, snapshot)


def build_image(
    name: str, engine: Engine, cache: Path, emit: Emit | None, recipes: Path | None, snapshot: str, *, fresh: bool = False
) -> Image:
    """Build an image from a snapshot of Debian's archive, or from today's mirror where `snapshot` is empty."""
    from qcase.containers.container import LABELS
    from qcase.guests import debian_archive
    from qcase.toolchains import oci
    from qcase.toolchains.base import build_hint
    from qcase.toolchains.build_log import BuildLog, Heartbeat, say

    recipe = recipe_digest(name, recipes)
    folder = folder_of(name, recipes)
    began = time.monotonic()
    base_name = _base_of(folder, engine, cache, emit, recipes, snapshot, fresh=fresh)
    suite = debian_suite(name, recipes)
    date = (
        debian_archive.release_time(debian_archive.host_mirrors(debian_archive.APT, os.environ), suite)
        if suite and not snapshot
        else ""
    )
    say(emit, f"building the image {name} (once; {folder / 'Containerfile'})")
    arguments = {"BASE": base_name, **proxies_of(os.environ)}
    tag = tag_of(name, recipe)
    with (
        ExitStack() as stack,
        engine.faults(f"building the image {name}"),
        Heartbeat(f"image {name}", emit) as heartbeat,
        BuildLog(cache / "images" / f"{name}.log", heartbeat) as said,
    ):
        # If qcase dies, the engine sees the connection close, kills the running step and, with forcerm, removes it.
        messages = engine.api.build(
            fileobj=stack.enter_context(_context(folder)),
            custom_context=True,
            dockerfile="Containerfile",
            tag=tag,
            buildargs=arguments,
            labels={**LABELS, oci.NAME_LABEL: name, oci.RECIPE_LABEL: recipe},
            nocache=fresh,
            rm=True,
            forcerm=True,
            decode=True,
        )
        try:
            for message in messages:
                said.take(message)
        finally:
            messages.close()
        if said.error:
            tail = "\n".join(said.last)
            raise InfraError(
                f"the image {name} could not be built: {said.error}\n{tail}",
                where=f"{folder / 'Containerfile'}, {said.step}" if said.step else str(folder / "Containerfile"),
                hint=build_hint(f"{said.error}\n{tail}", name) or f"all that it said is in {said.path}",
            )
    image_id = engine.image_id(tag)
    if image_id is None:
        raise InfraError("built, and not there", where=tag)
    image = take_in(name, engine, cache, recipe, image_id, {"fresh": fresh, "date": date})
    say(emit, f"image {name}: built in {time.monotonic() - began:.0f} s")
    return image


@contextmanager
def _context(folder: Path) -> Iterator[IO[bytes]]:
    """Pack a recipe's folder as the engine's build context.

    File modes are reduced to the executable bit, and the owner is root, so that the layer cache of one user serves the next.
    """
    import tarfile

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = 0
        return member

    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for path in sorted(folder.rglob("*")):
                tar.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=plain)
        file.seek(0)
        yield file


def _recipes_of(name: str, recipes: Path | None) -> Path | None:
    """Return the recipes folder that has this recipe: the caller's, else None for qcase's own."""
    return recipes if recipes is not None and (recipes / name).is_dir() else None


def _base_of(
    folder: Path, engine: Engine, cache: Path, emit: Emit | None, recipes: Path | None, snapshot: str, *, fresh: bool
) -> str:
    """Return the value of a recipe's `ARG BASE`: name or id of the image that it starts from. The base has the same snapshot."""
    from qcase.toolchains.base import base_from, guest_base, mirrors_of, own_sources, sources_list, with_mirror

    definition = base_definition(folder)
    if definition.guest:
        return guest_base(engine, cache, emit, definition)
    if definition.image:
        name = definition.image
        with alone(cache, name, emit):
            image = _with_origin(name, engine, cache, emit, _recipes_of(name, recipes), snapshot)
        suite = debian_suite(name, recipes)
        mirrors = mirrors_of(snapshot)
        return with_mirror(image.id, engine, sources_list(suite, mirrors) or own_sources(suite), mirrors) if suite else image.id
    return base_from(definition, snapshot, engine, cache, emit, fresh=fresh)
