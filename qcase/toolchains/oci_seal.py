"""Sealed images: layers of an engine, normalised so that they are the same bytes after each build.

See `qcase.toolchains.oci` for the rules.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

from qcase import parsing
from qcase.containers.container import SOURCE_DATE_EPOCH
from qcase.errors import InfraError
from qcase.toolchains.oci import (
    CONFIG,
    LARGEST_DOCUMENT,
    LAYER,
    MANIFEST,
    PIECE,
    SEAL,
    Blob,
    Packed,
    canonical_json,
    effective,
    put,
    seal_of,
)

MEMBER = 4 << 20  # bytes that are compressed by themselves


LEVEL = 1


_CREATED = "1980-01-02T00:00:00Z"  # SOURCE_DATE_EPOCH


Folders = dict[str, tuple[int, int, int]]  # mode, owner and group by path


Done = dict[tuple[str, ...], tuple[tuple[Blob, str] | None, Folders]]


def seal(saved: tarfile.TarFile, labels: Mapping[str, str], folder: Path, done: Done) -> Packed:
    """Write an image into a folder of blobs with normalised layers, from an archive that the engine saved.

    `done`: layers that were written there already, by the engine's digests of them and of all below.
    """
    where = "what the engine saved"
    description = parsing.from_json(_member(saved, "manifest.json", where))
    if len(description) != 1:
        raise InfraError(f"{len(description)} images, and not one", where=where)
    config = parsing.from_json(_member(saved, description[0]["Config"], where))
    layers, diff_ids = [], []
    below: Folders = {}
    for number, name in enumerate(description[0]["Layers"], 1):
        key = tuple(config["rootfs"]["diff_ids"][:number])
        if key not in done:
            opened = saved.extractfile(name)
            assert opened is not None
            with opened, tarfile.open(fileobj=opened, mode="r:*") as archive:
                done[key] = _normalised(archive, below, folder), dict(below)
        layer, below = done[key][0], dict(done[key][1])
        if layer is not None:
            layers.append(layer[0])
            diff_ids.append(layer[1])
    own = effective(config.get("config") or {})
    own["Labels"] = dict(labels)
    own["Labels"][SEAL] = seal_of(config["architecture"], config["os"], own, diff_ids)
    document = {
        "architecture": config["architecture"],
        "os": config["os"],
        "created": _CREATED,
        "config": own,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": _CREATED, "created_by": "qcase"} for _ in layers],
    }
    content = canonical_json(document)
    blob = Blob(CONFIG, put(folder, content), len(content))
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blob.as_json(),
            "layers": [layer.as_json() for layer in layers],
        }
    )
    put(folder, manifest)
    return Packed(folder, manifest, content, tuple(layers))


def _member(archive: tarfile.TarFile, name: str, where: str) -> bytes:
    try:
        opened = archive.extractfile(name)
    except KeyError:
        opened = None
    if opened is None:
        raise InfraError(f"there is no {name} in it", where=where)
    with opened:
        content = opened.read(LARGEST_DOCUMENT + 1)
    if len(content) > LARGEST_DOCUMENT:
        raise InfraError(f"{name} is larger than {LARGEST_DOCUMENT >> 20} MiB", where=where)
    return content


# Files that differ from build to build and that no step reads, or that say where and when an image was built.
_LEFT_OUT = re.compile(
    r"""
      (run | tmp | var/(cache | log | tmp))/.+
    | var/lib/apt/(lists | mirrors)/.+
    | etc/(machine-id | hostname | hosts | resolv\.conf)
    | etc/apt/(sources\.list | sources\.list\.d/.+ | apt\.conf\.d/99mmdebstrap)
    | etc/(passwd | group | shadow | gshadow | subuid | subgid)-
    | var/lib/dpkg/(available | .+-old)
    | root/\.(cache | cargo/registry | wget-hsts)(/.+)?
    | \.dockerenv
    """,
    re.VERBOSE,
)


_WHITEOUT = ".wh."


_SHADOW = ("etc/shadow",)


_XATTR = "SCHILY.xattr."


def member_path(name: str) -> str:
    while name.startswith(("./", "/")):
        name = name.removeprefix("./").lstrip("/")
    return name.rstrip("/")


def left_out(path: str) -> bool:
    """Tell whether a sealed image omits a path, or the whiteout of a path."""
    folder, slash, name = path.rpartition("/")
    if name.startswith(_WHITEOUT) and name != f"{_WHITEOUT}{_WHITEOUT}.opq":
        path = f"{folder}{slash}{name.removeprefix(_WHITEOUT)}"
    return _LEFT_OUT.fullmatch(path) is not None


def _normalised(archive: tarfile.TarFile, below: Folders, folder: Path) -> tuple[Blob, str] | None:
    """Write a layer as a blob. Returns the blob and the digest of its uncompressed bytes; None for a layer without changes.

    `below`: the folders of the layers below, to which those of this one are added.
    """
    everything = {path: member for member in archive if (path := member_path(member.name))}
    members = {path: member for path, member in everything.items() if not left_out(path)}
    if not _anything_new(members, below):
        return None
    first = _first_names(members, everything)
    with (
        LayerWriter(folder) as out,
        tarfile.open(fileobj=cast(IO[bytes], out), mode="w|", format=tarfile.PAX_FORMAT, bufsize=PIECE) as tar,
    ):
        for path in sorted(members, key=os.fsencode):
            member = members[path]
            plain = tarfile.TarInfo(path)
            plain.mode, plain.uid, plain.gid, plain.mtime = _mode(member), member.uid, member.gid, SOURCE_DATE_EPOCH
            plain.type = member.type if member.type != tarfile.AREGTYPE else tarfile.REGTYPE
            plain.pax_headers = {key: value for key, value in member.pax_headers.items() if key.startswith(_XATTR)}
            if member.isreg() or member.islnk():
                source = _target(member, everything)
                if (chosen := first[member_path(source.name)]) != path:
                    plain.type, plain.linkname = tarfile.LNKTYPE, chosen
                    tar.addfile(plain)
                    continue
                plain.type = tarfile.REGTYPE
                opened = archive.extractfile(source)
                assert opened is not None
                with opened:
                    _add(tar, plain, path, opened, source.size)
                continue
            plain.linkname = member.linkname
            plain.devmajor, plain.devminor = member.devmajor, member.devminor
            tar.addfile(plain)
    return Blob(LAYER, out.digest, out.size), out.diff_id


def _anything_new(members: Mapping[str, tarfile.TarInfo], below: Folders) -> bool:
    """Tell whether a layer has anything but folders of `below`. Updates `below`: adds the layer's folders, drops deleted ones."""
    folders = {path: (_mode(member), member.uid, member.gid) for path, member in members.items() if member.isdir()}
    new = any(path not in folders or below.get(path) != folders[path] for path in members)
    gone = [path.replace(_WHITEOUT, "", 1) for path in members if path not in folders]
    for path in [path for path in below if any(path == one or path.startswith(f"{one}/") for one in gone if one)] if gone else ():
        del below[path]
    below |= folders
    return new


def _mode(member: tarfile.TarInfo) -> int:
    """Return the mode without the type of file, which some engines include."""
    return member.mode & 0o7777


def _target(member: tarfile.TarInfo, everything: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo:
    """Return the file to which a hard link leads."""
    seen = set()
    while member.islnk():
        path = member_path(member.linkname)
        if path in seen or path not in everything:
            raise InfraError(f"{member_path(member.name)} is a link to {path}, which is not there", where="a layer of an image")
        seen.add(path)
        member = everything[path]
    return member


def _first_names(members: Mapping[str, tarfile.TarInfo], everything: Mapping[str, tarfile.TarInfo]) -> dict[str, str]:
    """Return the first name of each file, by the name under which the archive stores the content."""
    first: dict[str, str] = {}
    for path in sorted(members, key=os.fsencode):
        if members[path].isreg() or members[path].islnk():
            first.setdefault(member_path(_target(members[path], everything).name), path)
    return first


def _add(tar: tarfile.TarFile, plain: tarfile.TarInfo, path: str, content: IO[bytes], size: int) -> None:
    import io

    if path.endswith(".pyc"):
        content = io.BytesIO(_timeless_python(content.read()))
    elif path in _SHADOW:
        content = io.BytesIO(_timeless_passwords(content.read()))
        size = len(content.getvalue())
    plain.size = size
    tar.addfile(plain, content)


def _timeless_python(compiled: bytes) -> bytes:
    """Replace the source's time in a compiled Python file by `SOURCE_DATE_EPOCH`; see PEP 552."""
    if len(compiled) < 16 or compiled[4:8] != bytes(4):
        return compiled
    return compiled[:8] + SOURCE_DATE_EPOCH.to_bytes(4, "little") + compiled[12:]


def _timeless_passwords(shadow: bytes) -> bytes:
    """Remove the days of password changes from `/etc/shadow`; see shadow(5)."""
    return re.sub(rb"(?m)^([^:\n]*:[^:\n]*:)\d+:", rb"\1:", shadow)


class LayerWriter:
    """Writer of a layer: compresses, computes both digests, and names the blob at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "blobs" / "sha256"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._staged = self._folder / f".layer-{os.getpid()}-{id(self)}"
        self._plain, self._packed = hashlib.sha256(), hashlib.sha256()
        self._waiting = bytearray()
        self._workers = ThreadPoolExecutor(thread_name_prefix="layer")
        self._running: list[Any] = []
        self.size = 0
        self.digest = self.diff_id = ""

    def __enter__(self) -> LayerWriter:
        self._file = self._staged.open("xb")
        return self

    def write(self, data: bytes) -> int:
        self._plain.update(data)
        self._waiting += data
        while len(self._waiting) >= MEMBER:
            self._hand_on(bytes(self._waiting[:MEMBER]))
            del self._waiting[:MEMBER]
        return len(data)

    def _hand_on(self, piece: bytes) -> None:
        self._running.append(self._workers.submit(compressed, piece))
        if len(self._running) > 2 * (os.cpu_count() or 1):  # bounds the memory
            self._take()

    def _take(self) -> None:
        piece = self._running.pop(0).result()
        self._packed.update(piece)
        self._file.write(piece)
        self.size += len(piece)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                if self._waiting:
                    self._hand_on(bytes(self._waiting))
                while self._running:
                    self._take()
        finally:
            self._workers.shutdown(cancel_futures=True)
            self._file.close()
            if kind is not None:
                self._staged.unlink(missing_ok=True)
        if kind is None:
            self.digest = f"sha256:{self._packed.hexdigest()}"
            self.diff_id = f"sha256:{self._plain.hexdigest()}"
            self._staged.rename(self._folder / self._packed.hexdigest())


def compressed(piece: bytes) -> bytes:
    """Compress a piece as one gzip member, without a name or a time."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)
    return packer.compress(piece) + packer.flush()


# Digest of the sample of `usual_zlib`, compressed with zlib 1.2.13 and 1.3.1.
_USUAL = "99fe142bf1749d3439c1fe82f3389a9793c5fbe6eb7fe867ac95bee2652111ac"


def usual_zlib() -> bool:
    """Tell whether this Python's zlib compresses as zlib itself does, so that digests of manifests match other machines'."""
    sample = " ".join(str(number * number % 9973) for number in range(60000)).encode()
    return hashlib.sha256(compressed(sample)).hexdigest() == _USUAL
