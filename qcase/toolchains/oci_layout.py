"""OCI image layouts, in folders and tar files: written for other machines, and read."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from qcase import parsing
from qcase.containers.container import SOURCE_DATE_EPOCH
from qcase.errors import InfraError
from qcase.toolchains.oci import (
    DAMAGED,
    DIGEST,
    INDEX,
    LARGEST_DOCUMENT,
    MANIFEST,
    PIECE,
    Blob,
    Packed,
    blob_path,
    canonical_json,
)
from qcase.toolchains.oci_seal import member_path


@dataclass(frozen=True)
class Entry:
    """An image of a layout: the digest of its manifest, and its name, if it has one."""

    digest: str
    name: str


_REF_NAME = "org.opencontainers.image.ref.name"


def write_index(folder: Path, images: Mapping[str, Packed], tags: Mapping[str, str]) -> None:
    """Turn a folder of blobs into a layout. `images` are by name; `tags`: their names for `docker load`."""
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [
            {
                **Blob(MANIFEST, image.digest, len(image.manifest)).as_json(),
                "platform": {key: parsing.from_json(image.config)[key] for key in ("architecture", "os")},
                "annotations": {_REF_NAME: name},
            }
            for name, image in images.items()
        ],
    }
    (folder / "index.json").write_bytes(canonical_json(index))
    (folder / "oci-layout").write_bytes(canonical_json({"imageLayoutVersion": "1.0.0"}))
    (folder / "manifest.json").write_bytes(canonical_json([_for_docker(image, tags[name]) for name, image in images.items()]))


def _for_docker(image: Packed, tag: str) -> dict[str, object]:
    config, *layers = image.blobs
    return {"Config": config.path, "RepoTags": [tag], "Layers": [layer.path for layer in layers]}


def archive_of(folder: Path) -> Iterator[bytes]:
    """Yield a layout as a tar file, with the same bytes each time."""
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file():
            yield from _tarred(path.relative_to(folder).as_posix(), path)
    yield bytes(2 * tarfile.BLOCKSIZE)


def for_engine(image: Packed, tag: str) -> Iterator[bytes]:
    """Yield an archive of one image for `docker load`."""
    description = canonical_json([_for_docker(image, tag)])
    yield from _tarred("manifest.json", description)
    for blob in dict.fromkeys(image.blobs):
        yield from _tarred(blob.path, image.folder / blob.path)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _tarred(name: str, content: Path | bytes) -> Iterator[bytes]:
    member = tarfile.TarInfo(name)
    member.mode, member.mtime = 0o644, SOURCE_DATE_EPOCH
    member.size = len(content) if isinstance(content, bytes) else content.stat().st_size
    yield member.tobuf(tarfile.PAX_FORMAT)
    if isinstance(content, bytes):
        yield content
    else:
        with content.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
    yield bytes(-member.size % tarfile.BLOCKSIZE)


@contextmanager
def layout(path: Path) -> Iterator[Layout]:
    """Open the layout in a folder or a tar file."""
    try:
        if path.is_dir():
            yield Layout(str(path), _Folder(path))
            return
        with open(_regular(path), "rb") as file, _tar(file) as archive:
            yield Layout(str(path), archive)
    except tarfile.TarError:
        what = "is neither a folder nor a tar file (one that is compressed has to be unpacked)"
        raise InfraError(what, where=str(path)) from None
    except OSError as error:
        raise InfraError(f"cannot be read: {error.strerror or error}", where=str(path)) from None


def _regular(path: Path) -> int:
    """Open a regular file and return its descriptor; `OSError` for any other, such as a pipe, where reading would block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "is no file")
    return descriptor


class _Files(Protocol):
    def opened(self, name: str) -> IO[bytes] | None: ...


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def opened(self, name: str) -> IO[bytes] | None:
        try:
            return open(_regular(self._path / name), "rb")
        except FileNotFoundError:
            return None


class _Archive:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._members = {member_path(member.name): member for member in archive if member.isreg()}

    def opened(self, name: str) -> IO[bytes] | None:
        member = self._members.get(name)
        return None if member is None else self._archive.extractfile(member)


@contextmanager
def _tar(file: IO[bytes]) -> Iterator[_Archive]:
    with ExitStack() as stack:
        try:
            files = _Archive(stack.enter_context(tarfile.open(fileobj=file, mode="r:")))
        except (ValueError, OverflowError) as error:  # of numbers in headers
            raise tarfile.ReadError(str(error)) from None
        yield files


class Layout:
    """An image layout opened for reading; a `Source`."""

    def __init__(self, where: str, files: _Files) -> None:
        self.where = where
        self._files = files
        try:
            version = parsing.from_json(self._document("oci-layout"))["imageLayoutVersion"]
            index = parsing.from_json(self._document("index.json"))
            self.entries = [
                Entry(str(one["digest"]), str((one.get("annotations") or {}).get(_REF_NAME, ""))) for one in index["manifests"]
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InfraError(f"is no OCI image layout: {error!r}", where=where) from None
        if not str(version).startswith("1."):
            raise InfraError(f"is an OCI image layout of the version {version}, which is not known here", where=where)
        for entry in self.entries:
            if not DIGEST.fullmatch(entry.digest):
                raise InfraError(f"names an image by {entry.digest!r}, which is no digest", where=where)

    def _document(self, name: str) -> bytes:
        opened = self._files.opened(name)
        if opened is None:
            raise InfraError(f"is no OCI image layout: there is no {name} in it", where=self.where)
        with opened:
            content = opened.read(LARGEST_DOCUMENT + 1)
        if len(content) > LARGEST_DOCUMENT:
            raise InfraError(f"{name} is larger than {LARGEST_DOCUMENT >> 20} MiB", where=self.where)
        return content

    def manifest(self, digest: str) -> bytes:
        try:
            return self._document(blob_path(digest))
        except InfraError as error:
            raise InfraError(f"the image {digest} is not in it", where=self.where, hint=DAMAGED) from error

    def blob(self, blob: Blob) -> Generator[bytes, None, None]:
        opened = self._files.opened(blob.path)
        if opened is None:
            raise InfraError(f"{blob.path} is missing", where=self.where, hint=DAMAGED)
        with opened:
            while piece := opened.read(PIECE):
                yield piece
