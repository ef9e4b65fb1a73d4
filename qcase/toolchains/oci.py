"""OCI images for transport between machines: normalised layers, and image layouts, which are written and checked here.

    oci-layout, index.json          https://github.com/opencontainers/image-spec/blob/main/image-layout.md
    blobs/sha256/<digest>           manifests, configurations, layers
    manifest.json                   for `docker load` of engines before Docker 25; names the same blobs

A *sealed* image has layers that are the same bytes after each build of one recipe with the same packages:

    order           by path; of the names of one file the first is the file, the others are links to it
    times           all are `SOURCE_DATE_EPOCH`, also those that compiled Python files carry
    left out        logs, caches, lists of available packages, their mirror, ids of a machine, old copies
    passwords       the day on which one was set: the day of the build

The configuration of a sealed image has no dates and no history. Its label `qcase.sealed` is a digest of the configuration and the
layers' digests, so that a derived image is not taken for it: labels are inherited. Layers are compressed with zlib's first level
in members of 4 MiB, on all processors. The compressed bytes, and with them the digest of the manifest, are those of zlib itself:
zlib-ng, which replaces it on some systems, produces others (see `usual_zlib`). An image's identity and the engine's id of it do
not depend on the compression.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from qcase import canonical, parsing
from qcase.errors import InfraError
from qcase.host.files import replacing

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
# Media types of the same documents in other tools, and in Docker.
MANIFESTS = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
CONFIGS = (CONFIG, "application/vnd.docker.container.image.v1+json")
LAYERS = (
    LAYER,
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar",
)

SEAL = "qcase.sealed"  # the label
NAME_LABEL = "qcase.image"
RECIPE_LABEL = "qcase.recipe"
IDENTITY_LABEL = "qcase.identity"

LARGEST_DOCUMENT = 4 << 20  # bytes of a manifest or a configuration; registries have the same limit
LARGEST_IMAGE = 64 << 30  # bytes of all layers, not compressed
MOST_LAYERS = 127  # Docker's own limit
PIECE = 1 << 20

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Blob:
    """Entry of a blob in a manifest: media type, digest (`sha256:…`) and size in bytes."""

    media: str
    digest: str
    size: int

    @property
    def path(self) -> str:
        return blob_path(self.digest)

    def as_json(self) -> dict[str, object]:
        return {"mediaType": self.media, "digest": self.digest, "size": self.size}


def blob_path(digest: str) -> str:
    assert DIGEST.fullmatch(digest)
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True)
class Packed:
    """An image in a folder of blobs: the bytes of its manifest and configuration, and its layers."""

    folder: Path
    manifest: bytes
    config: bytes
    layers: tuple[Blob, ...]

    @property
    def digest(self) -> str:
        """Digest of the manifest, by which registries know the image."""
        return sha256(self.manifest)

    @property
    def blobs(self) -> tuple[Blob, ...]:
        return (Blob(CONFIG, sha256(self.config), len(self.config)), *self.layers)

    @property
    def labels(self) -> dict[str, str]:
        labels = (parsing.from_json(self.config).get("config") or {}).get("Labels") or {}
        return {str(key): str(value) for key, value in labels.items()}


# Fields of a configuration that affect a step. Fields without a value are left out: engines encode an empty value differently.
_EFFECTIVE = ("Cmd", "Entrypoint", "Env", "OnBuild", "Shell", "User", "Volumes", "WorkingDir")


def effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an image's configuration that affect a step and have a value."""
    fields = {name: config[name] for name in _EFFECTIVE if config.get(name)}
    if fields.get("WorkingDir") == "/":  # some engines encode an empty value like this
        del fields["WorkingDir"]
    return fields


def seal_of(architecture: str, system: str, config: Mapping[str, Any], diff_ids: Sequence[str]) -> str:
    """Return the value of the label `qcase.sealed` for an image of this configuration and these layers."""
    labels = {key: value for key, value in (config.get("Labels") or {}).items() if key != SEAL}
    parts: canonical.JSON = [architecture, system, effective(config), labels, list(diff_ids)]
    return canonical.digest(parts)


def sealed_identity(image: Mapping[str, Any]) -> str | None:
    """Return the identity of an image. `image`: the engine's description of it.

    None for an image that is not sealed, and for one derived from a sealed image.
    """
    config = image.get("Config") or {}
    labels = config.get("Labels") or {}
    diff_ids = (image.get("RootFS") or {}).get("Layers") or ()
    found = labels.get(SEAL)
    if not found or found != seal_of(str(image.get("Architecture")), str(image.get("Os")), config, diff_ids):
        return None
    identity = labels.get(IDENTITY_LABEL)
    return str(identity) if identity else None


def canonical_json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def put(folder: Path, content: bytes) -> str:
    """Write a small blob and return its digest."""
    digest = sha256(content)
    path = folder / blob_path(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return digest


class Source(Protocol):
    """A source of images. Both methods raise `InfraError` for unavailable content."""

    where: str

    def manifest(self, digest: str) -> bytes: ...

    def blob(self, blob: Blob) -> Generator[bytes, None, None]: ...


def arrive(source: Source, digest: str, folder: Path, accept: Callable[[Mapping[str, Any]], None]) -> Packed:
    """Copy an image into a folder of blobs, and check all of it.

    Checks digests and sizes of manifest, configuration and layers, and that the layers unpack to the digests in the
    configuration. `accept` sees the configuration before any layer is fetched, and may refuse the image.
    """

    def wrong(what: str) -> InfraError:
        return InfraError(what, where=f"{source.where}, {digest}", hint=DAMAGED)

    manifest = source.manifest(digest)
    if sha256(manifest) != digest:
        raise wrong(f"its manifest is another one, of the digest {sha256(manifest)}")
    config, layers = _parts(manifest, wrong)
    if config.size > LARGEST_DOCUMENT:
        raise wrong(f"its configuration is larger than {LARGEST_DOCUMENT >> 20} MiB")
    with closing(source.blob(config)) as pieces:
        content = b"".join(checked(pieces, config, "its configuration", wrong))
    diff_ids = _diff_ids(content, wrong)
    if len(diff_ids) != len(layers):
        raise wrong(f"it has {len(layers)} layers, and its configuration names {len(diff_ids)}")
    accept(parsing.from_json(content))
    put(folder, content)
    put(folder, manifest)
    left = LARGEST_IMAGE
    for number, (layer, diff_id) in enumerate(zip(layers, diff_ids, strict=True), 1):
        what = f"its layer {number} of {len(layers)}"
        plain = hashlib.sha256()
        with replacing(folder / layer.path) as staged:
            try:
                with staged.open("wb") as out, closing(source.blob(layer)) as pieces:
                    for piece in inflated(_written(checked(pieces, layer, what, wrong), out), layer.media):
                        plain.update(piece)
                        left -= len(piece)
                        if left < 0:
                            raise wrong(f"it unpacks to more than {LARGEST_IMAGE >> 30} GiB")
            except zlib.error as error:
                raise wrong(f"{what} is not compressed as it says: {error}") from None
            if f"sha256:{plain.hexdigest()}" != diff_id:
                raise wrong(f"{what} unpacks to something else than its configuration says")
    return Packed(folder, manifest, content, tuple(layers))


DAMAGED = "it is damaged there, or was on its way here; nothing was taken over. Try again, or have it saved or pushed anew"


def _parts(manifest: bytes, wrong: Callable[[str], InfraError]) -> tuple[Blob, list[Blob]]:
    """Parse a manifest into its configuration and its layers."""
    try:
        table = parsing.from_json(manifest)
        media = table.get("mediaType", MANIFEST)
        if media == INDEX or "manifests" in table:
            raise wrong("it is a list of images, and not one: name one by its own digest")
        if media not in MANIFESTS:
            raise wrong(f"its manifest is of a kind that is not known here, {media}")
        config, *layers = [_blob(table["config"]), *map(_blob, table["layers"])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise wrong(f"its manifest is not understood: {error!r}") from None
    if config.media not in CONFIGS:
        raise wrong(f"it is no image of a container, but {config.media}")
    for layer in layers:
        if layer.media not in LAYERS:
            raise wrong(f"a layer is packed in a way that is not known here, {layer.media}")
    if not 0 < len(layers) <= MOST_LAYERS:
        raise wrong(f"it has {len(layers)} layers")
    return config, layers


def _blob(entry: Mapping[str, Any]) -> Blob:
    blob = Blob(str(entry["mediaType"]), str(entry["digest"]), entry["size"])
    if not DIGEST.fullmatch(blob.digest) or type(blob.size) is not int or not 0 <= blob.size <= LARGEST_IMAGE:
        raise ValueError(f"{blob.digest} of {blob.size} bytes")
    return blob


def _diff_ids(config: bytes, wrong: Callable[[str], InfraError]) -> list[str]:
    try:
        table = parsing.from_json(config)
        found = [str(one) for one in table["rootfs"]["diff_ids"]]
        labels = (table.get("config") or {}).get("Labels") or {}
        if not all(map(DIGEST.fullmatch, found)) or not isinstance(labels, dict):
            raise ValueError("no digests")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise wrong(f"its configuration is not understood: {error!r}") from None
    return found


def checked(pieces: Iterable[bytes], blob: Blob, what: str, wrong: Callable[[str], InfraError]) -> Iterator[bytes]:
    """Pass a blob's pieces on and check them. Raises as soon as size or digest cannot match the manifest."""
    size, taken = 0, hashlib.sha256()
    for piece in pieces:
        size += len(piece)
        if size > blob.size:
            raise wrong(f"{what} is longer than the {blob.size} bytes that its manifest says")
        taken.update(piece)
        yield piece
    if size < blob.size:
        raise wrong(f"{what} breaks off after {size} of {blob.size} bytes")
    if f"sha256:{taken.hexdigest()}" != blob.digest:
        raise wrong(f"{what} is another one, of the digest sha256:{taken.hexdigest()}, and not {blob.digest}")


def _written(pieces: Iterable[bytes], out: IO[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        out.write(piece)
        yield piece


def inflated(pieces: Iterable[bytes], media: str) -> Iterator[bytes]:
    """Decompress pieces: gzip, of one member or several. Raises `zlib.error`."""
    if not media.endswith("gzip"):
        yield from pieces
        return
    unpacker = zlib.decompressobj(31)
    for piece in pieces:
        while piece:
            if unpacker.eof:
                unpacker = zlib.decompressobj(31)
            yield unpacker.decompress(piece, 16 * PIECE)
            piece = unpacker.unconsumed_tail or unpacker.unused_data
    if not unpacker.eof:
        raise zlib.error("it breaks off")
