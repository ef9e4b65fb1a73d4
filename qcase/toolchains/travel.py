"""Toolchain images between machines: `qcase images save`, `load`, `push` and `pull`.

    built here ─► docker save ─► sealed: normalised layers, one manifest ─► a layout (save), a registry (push)
    a layout, a registry ─► checked in full ─► docker load ─► its packages read back ─► recorded, as if built here

See `qcase.toolchains.oci` for sealed images. Keys name an image by its identity, which is that of its recipe and its packages: it
is the same wherever the image was built, and however it was transferred. An image that was made from another recipe than the
local one is refused. An image that fails a check is neither recorded nor kept by the engine.
"""

from __future__ import annotations

import tarfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcase.config.image_lock import Lock
from qcase.containers.engine import Engine
from qcase.errors import InfraError, UsageError
from qcase.events import Emit, Warned
from qcase.host import crash_cleanup, process
from qcase.toolchains import image_contents, images, oci, oci_layout, oci_seal, records, registry_client
from qcase.toolchains import recipes as recipes_module
from qcase.toolchains.build_log import Heartbeat
from qcase.toolchains.oci import Packed
from qcase.toolchains.recipes import recipe_digest
from qcase.toolchains.records import Image

PATIENCE = 1800  # seconds for one answer of the engine: it writes whole images to its disk before it answers


@dataclass(frozen=True)
class Travelled:
    """An image that was saved or pushed. `reference`: its name for others; `sent`: bytes transferred."""

    image: Image
    digest: str
    reference: str = ""
    sent: int = 0


def save(
    path: Path,
    names: Sequence[str],
    engine: Engine,
    cache: Path,
    emit: Emit | None = None,
    recipes: Path | None = None,
    lock: Lock | None = None,
) -> list[Travelled]:
    """Write images as an OCI image layout: a tar file if `path` ends in `.tar`, else a folder. `path` must not exist."""
    if path.exists() or path.is_symlink():
        raise UsageError("is there already", where=str(path), hint="take it away, or choose another name")
    if not path.absolute().parent.is_dir():
        raise UsageError("there is no folder to write it to", where=str(path.absolute().parent))
    beside = process.temporary_folder(f".{path.name}.", path.absolute().parent)
    with _writing(path), beside as staged, records.scratch_folder(cache) as scratch:
        whole = path.suffix == ".tar"
        folder = scratch / "layout" if whole else staged / "layout"
        packed = seal(names, engine, cache, folder, emit, recipes, lock)
        tags = {name: image_contents.tag_of(name, image.labels[oci.RECIPE_LABEL]) for name, (_, image) in packed.items()}
        oci_layout.write_index(folder, {name: image for name, (_, image) in packed.items()}, tags)
        if whole:
            with (staged / "layout").open("wb") as out:
                out.writelines(oci_layout.archive_of(folder))
        (staged / "layout").rename(path)
    return [Travelled(image, one.digest) for image, one in packed.values()]


def load(
    path: Path, names: Sequence[str], engine: Engine, cache: Path, emit: Emit | None = None, recipes: Path | None = None
) -> list[Image]:
    """Load images from an OCI image layout: those of these names, or all of them."""
    with oci_layout.layout(path) as layout:
        known = {entry.name: entry for entry in layout.entries}
        for name in names:
            if name not in known:
                there = ", ".join(sorted(filter(None, known))) or "none that has a name"
                raise UsageError(f"there is no image {name} in it", where=str(path), hint=f"there are: {there}")
        wanted = [known[name] for name in names] if names else layout.entries
        if not wanted:
            raise UsageError("there is no image in it", where=str(path))
        return [take_over(layout, entry.digest, engine, cache, emit, recipes) for entry in wanted]


def push(
    place: str,
    names: Sequence[str],
    engine: Engine,
    cache: Path,
    emit: Emit | None = None,
    recipes: Path | None = None,
    lock: Lock | None = None,
) -> list[Travelled]:
    """Push images to a registry, each to `<place>/<name>`, with a tag there: the beginning of their identity."""
    import os

    host, prefix = registry_client.parse_place(place)
    plain = registry_client.speaks_plain(host, _info(engine))
    done: list[Travelled] = []
    with _writing(cache / "images"), records.scratch_folder(cache) as scratch:
        for name, (image, packed) in seal(names, engine, cache, scratch / "layout", emit, recipes, lock).items():
            repository = f"{prefix}/{name}".lstrip("/")
            shared = done[-1].reference.partition("/")[2].partition("@")[0] if done else ""
            with (
                registry_client.Registry(host, repository, plain=plain, environ=os.environ) as registry,
                Heartbeat(f"image {name}", emit) as heartbeat,
            ):
                heartbeat.say(f"pushing to {host}/{repository}")
                sent = registry.push(packed, image.identity[:12], shared=shared)
            done.append(Travelled(image, packed.digest, f"{host}/{repository}@{packed.digest}", sent))
    return done


def pull(
    references: Sequence[str], engine: Engine, cache: Path, emit: Emit | None = None, recipes: Path | None = None
) -> list[Image]:
    """Pull images from registries, each by its digest."""
    parsed = [registry_client.parse(reference) for reference in references]
    done = []
    for one in parsed:
        with registry_client.registry_of(one, _info(engine)) as registry:
            done.append(take_over(registry, one.digest, engine, cache, emit, recipes))
    return done


# --- out ----------------------------------------------------------------------------------------------------------------


def seal(
    names: Sequence[str],
    engine: Engine,
    cache: Path,
    folder: Path,
    emit: Emit | None,
    recipes: Path | None,
    lock: Lock | None = None,
) -> dict[str, tuple[Image, Packed]]:
    """Write locally built images into a folder of blobs, by name. Shared layers are written once."""
    if not oci_seal.usual_zlib() and emit is not None:
        what = "this Python compresses with another library than zlib: digests of images differ from other machines', keys do not"
        emit(Warned(what, ""))
    found = {}
    for name in dict.fromkeys(names):
        image = images.find(name, engine, cache, recipes, lock)
        if image is None:
            raise UsageError(f"the toolchain image {name} is not built", hint=f"`qcase images build {name}` builds it")
        found[name] = image
    done: oci_seal.Done = {}
    return {name: (image, _sealed(image, engine, folder, emit, recipes, done)) for name, image in found.items()}


def _sealed(image: Image, engine: Engine, folder: Path, emit: Emit | None, recipes: Path | None, done: oci_seal.Done) -> Packed:
    recipe = recipe_digest(image.name, recipes)
    labels = {"qcase": "1", oci.NAME_LABEL: image.name, oci.RECIPE_LABEL: recipe, oci.IDENTITY_LABEL: image.identity}
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder / ".saved.tar"
    doing = f"saving the image {image.name}"
    with ExitStack() as stack:
        stack.callback(saved.unlink, missing_ok=True)
        heartbeat = stack.enter_context(Heartbeat(f"image {image.name}", emit))
        stack.enter_context(_patiently(engine))
        heartbeat.say("the engine saves it")
        with engine.faults(doing), saved.open("wb") as out:
            out.writelines(engine.api.get_image(image.id))
        heartbeat.say("normalising its layers")
        try:
            with tarfile.open(saved, "r:") as archive:
                return oci_seal.seal(archive, labels, folder, done)
        except (tarfile.TarError, EOFError) as error:
            raise InfraError(f"the engine saved something that is not understood: {error}", where=doing) from None


# --- in -----------------------------------------------------------------------------------------------------------------


class _ThereError(Exception):
    """Raised for an image that the engine has already, with the engine's id of it."""


def take_over(
    source: oci.Source, digest: str, engine: Engine, cache: Path, emit: Emit | None = None, recipes: Path | None = None
) -> Image:
    """Check an image completely, and load it into the engine. From then on it counts as built here.

    Where the engine has an image of the same recipe and identity already, no layer is fetched, and that one is taken.
    """
    where = f"{source.where}, {digest}"
    labels: dict[str, str] = {}

    def accept(config: Mapping[str, Any]) -> None:
        _accept(config, architecture, where, recipes)
        labels.update(config["config"]["Labels"])
        there = engine.labelled_image(
            image_contents.tag_of(labels[oci.NAME_LABEL], labels[oci.IDENTITY_LABEL]), oci.RECIPE_LABEL, labels[oci.RECIPE_LABEL]
        )
        if there is not None:
            raise _ThereError(there)

    with engine.faults("asking the engine for its architecture"):
        architecture = str(engine.api.version()["Arch"])
    with _writing(cache / "images"), records.scratch_folder(cache) as scratch, Heartbeat("image", emit) as heartbeat:
        heartbeat.say(f"fetching {where}")
        try:
            packed = oci.arrive(source, digest, scratch / "blobs", accept)
        except _ThereError as there:
            name, recipe, identity = (labels[label] for label in (oci.NAME_LABEL, oci.RECIPE_LABEL, oci.IDENTITY_LABEL))
            with records.alone(cache, name, emit):
                return image_contents.take_in(name, engine, cache, recipe, str(there), {"fresh": True}, expected=identity)
        name, recipe, identity = (packed.labels[label] for label in (oci.NAME_LABEL, oci.RECIPE_LABEL, oci.IDENTITY_LABEL))
        with records.alone(cache, name, emit), _patiently(engine), _loaded(packed, engine, where) as image_id:
            heartbeat.say("reading back what is installed in it")
            try:
                image = image_contents.take_in(name, engine, cache, recipe, image_id, {"fresh": True}, expected=identity)
            except InfraError as error:
                raise InfraError(error.what, where=where, hint=error.hint) from None
            repository, _, tag = image_contents.tag_of(name, recipe).partition(":")
            with engine.faults(f"naming the image {name}"):
                engine.api.tag(image_id, repository, tag, force=True)
    return image


def _accept(config: Mapping[str, Any], architecture: str, where: str, recipes: Path | None) -> None:
    """Raise `InfraError` for an image that is not qcase's, is for another machine, or was made from another recipe."""
    own = config.get("config") or {}
    labels = own.get("Labels") or {}
    parts = (str(config.get("architecture")), str(config.get("os")))
    if parts != (architecture, "linux"):
        raise InfraError(f"it is for {'/'.join(reversed(parts))}, and this engine runs linux/{architecture}", where=where)
    if labels.get(oci.SEAL) != oci.seal_of(*parts, own, config["rootfs"]["diff_ids"]) or not labels.get(oci.IDENTITY_LABEL):
        hint = "one of others is taken by `image` of [toolchain.<name>] in qcase.toml"
        raise InfraError("it is no image that qcase saved or pushed", where=where, hint=hint)
    name, recipe = str(labels.get(oci.NAME_LABEL)), str(labels.get(oci.RECIPE_LABEL))
    if name not in recipes_module.names(recipes):
        raise InfraError(f"it is an image {name!r}, for which there is no recipe here", where=where)
    if recipe != (ours := recipe_digest(name, recipes)):
        raise InfraError(
            f"it was made from another recipe of the image {name}: {recipe[:12]}, here it is {ours[:12]}",
            where=where,
            hint=f"take it from the same version of qcase, or build it here: `qcase images build {name}`",
        )


@contextmanager
def _loaded(packed: Packed, engine: Engine, where: str) -> Iterator[str]:
    """Load an image into the engine under a temporary name and yield its id. At the end the name is removed.

    If qcase is killed, the guardian removes the name.
    """
    tag = f"{crash_cleanup.ARRIVING}:{process.run_id()}-{uuid.uuid4().hex[:12]}"
    process.tell_guardian("engine", engine.socket)
    try:
        with engine.faults(f"handing the image to the engine ({where})"):
            for message in engine.api.load_image(oci_layout.for_engine(packed, tag)):  # type: ignore[no-untyped-call]
                if "error" in message:
                    raise InfraError(f"the engine refuses it: {message['error']}", where=where)
        image_id = engine.image_id(tag)
        if image_id is None:
            raise InfraError("the engine took it, and does not have it", where=where)
        yield image_id
    finally:
        if engine.image_exists(tag):
            with engine.faults("putting the image's own name away"):
                engine.api.remove_image(tag)


# --- helpers ------------------------------------------------------------------------------------------------------------


def _info(engine: Engine) -> Mapping[str, Any]:
    with engine.faults("asking the engine for its registries"):
        found: Mapping[str, Any] = engine.api.info()
    return found


@contextmanager
def _patiently(engine: Engine) -> Iterator[None]:
    """Raise the engine's timeout to `PATIENCE` for a `with` block."""
    before = engine.api.timeout
    engine.api.timeout = PATIENCE
    try:
        yield
    finally:
        engine.api.timeout = before


@contextmanager
def _writing(where: Path) -> Iterator[None]:
    """Turn an `OSError` of writing into an `InfraError`."""
    try:
        yield
    except OSError as error:
        raise InfraError(f"cannot be written: {error.strerror or error}", where=error.filename or str(where)) from None
