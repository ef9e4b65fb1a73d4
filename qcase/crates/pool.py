"""Crate cache, and the parser of `Cargo.lock`. The name of each cached file proves its content.

    <store>/downloads/
      crates/<sha256>.crate    a crate as a registry serves it; the lock file has this digest
      git/<commit>.pack        a commit of git with its folders and files, see `qcase.crates.git_crates`
      lock                     shared with the packages: shared by users, exclusive for the garbage collector

A file is copied out, and hashed on the way, on each use: a cached file serves a case only if its digest is the one in that case's
lock file, regardless of the writer of the file. A lock file is untrusted input: its names become names of files, so they are
checked on parsing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import sys
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qcase import parsing
from qcase.errors import BuildError, InfraError
from qcase.host import process
from qcase.host.files import replacing
from qcase.host.proxies import PROXIES

CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"

LARGEST_LOCK = 16 << 20  # bytes
GIT_TIMEOUT = 1800.0  # seconds
_CHUNK = 1 << 20

# As qcase finds its own modules, however it was installed.
_START = """\
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from qcase.crates.git_crates import main
sys.exit(main(sys.argv[1:]))
"""

# crates.io has names of ASCII alone; a version is one of https://semver.org.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,127}")
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_SCHEMES = {"registry": ("https", "http", "git"), "sparse": ("https", "http"), "git": ("https", "http", "git")}


@dataclass(frozen=True, order=True)
class Source:
    """Origin of a crate in a lock file: `kind` is "registry", "sparse" or "git", `url` is the address without the kind.

    For git, `reference` is `branch=…`, `tag=…`, `rev=…` or empty, and `commit` the commit to which the reference was resolved in
    the lock file.
    """

    kind: str
    url: str
    reference: str = ""
    commit: str = ""

    @property
    def index(self) -> str:
        """Address of a registry as in cargo's configuration; a sparse one with its kind."""
        return f"sparse+{self.url}" if self.kind == "sparse" else self.url


@dataclass(frozen=True, order=True)
class Crate:
    """A crate to fetch. `checksum`: sha256 of the file that the registry serves; empty for git."""

    name: str
    version: str
    source: Source
    checksum: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.version}"


@dataclass(frozen=True)
class Lock:
    """Content of a lock file: the names of all packages, and the crates to fetch."""

    names: frozenset[str]
    crates: tuple[Crate, ...]


def read_lock(data: bytes, path: str, case: str, local: Collection[str] | None = None) -> Lock:
    """Parse a lock file. `path`: its name in messages. Raises `BuildError` with all its faults.

    `local`: names of the case's own packages, if the lock file belongs to a workspace with others: only their dependencies count.
    """
    try:
        table = parsing.toml(data)
    except ValueError as error:
        raise BuildError(f"{path} cannot be read: {error}", where=case) from None
    rows = table.get("package", [])
    older = table.get("metadata", {})  # lock files of the first format have the checksums here
    found: dict[tuple[str, str, Source], Crate] = {}
    names, faults = set(), []
    for row in rows if isinstance(rows, list) else []:
        try:
            crate = _crate(row, older if isinstance(older, dict) else {})
        except ValueError as error:
            faults.append(str(error))
            continue
        names.add(str(row.get("name")))
        if crate is not None and found.setdefault((crate.name, crate.version, crate.source), crate) != crate:
            faults.append(f"{crate.title} has two checksums")
    if faults:
        raise BuildError(
            f"{path} is not what cargo writes: {'; '.join(faults[:5])}",
            where=case,
            hint="`cargo generate-lockfile` writes it anew",
        )
    crates = sorted(found.values())
    if local is not None:
        needed = _needed([row for row in rows if isinstance(row, dict)], local)
        crates = [crate for crate in crates if (crate.name, crate.version) in needed]
    return Lock(frozenset(names), tuple(crates))


def _needed(rows: Sequence[dict[str, Any]], local: Collection[str]) -> set[tuple[str, str]]:
    """Return the local packages and everything that they depend on, by name and version."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(str(row.get("name")), []).append(row)
    pending = [row for name in sorted(local) for row in by_name.get(name, ()) if "source" not in row]
    found: set[tuple[str, str]] = set()
    while pending:
        row = pending.pop()
        key = (str(row.get("name")), str(row.get("version")))
        if key in found:
            continue
        found.add(key)
        asked = row.get("dependencies", [])
        for one in asked if isinstance(asked, list) else []:
            name, _, rest = str(one).partition(" ")
            version = rest.partition(" ")[0]
            pending += [other for other in by_name.get(name, ()) if version in ("", str(other.get("version")))]
    return found


def _crate(row: Any, older: dict[str, Any]) -> Crate | None:
    """Parse one package of a lock file; None for one of the case itself.

    Raises `ValueError` for an entry that cargo would not write.
    """
    if not isinstance(row, dict):
        raise ValueError("a package is no table")
    name, version, source = row.get("name"), row.get("version"), row.get("source")
    if source is None:
        return None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"the name {_quoted(name)} cannot be a crate's")
    if not isinstance(version, str) or not _VERSION.fullmatch(version) or len(version) > 128:
        raise ValueError(f"the version {_quoted(version)} of {name} is none")
    if not isinstance(source, str):
        raise ValueError(f"the source of {name} {version} is no text")
    parsed = parse_source(source)
    checksum = row.get("checksum", older.get(f"checksum {name} {version} ({source})"))
    if parsed.kind == "git":
        return Crate(name, version, parsed)
    if not isinstance(checksum, str) or not _SHA256.fullmatch(checksum):
        raise ValueError(f"{name} {version} has no checksum")
    return Crate(name, version, parsed, checksum)


def parse_source(text: str) -> Source:
    """Parse a source of a lock file. Raises `ValueError` for one that is not fetched from a network."""
    kind, plus, rest = text.partition("+")
    if not plus or kind not in _SCHEMES:
        raise ValueError(f"the source {_quoted(text)} is of no known kind")
    address, _, commit = rest.partition("#")
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in _SCHEMES[kind] or not parts.hostname or re.search(r"[\x00-\x20\x7f\"\\]", address):
        known = ", ".join(f"{scheme}://" for scheme in _SCHEMES[kind])
        raise ValueError(f"the source {_quoted(text)} is not fetched: only {known} is")
    if kind != "git":
        return Source(kind, address)
    if not _COMMIT.fullmatch(commit):
        raise ValueError(f"the source {_quoted(text)} has no commit")
    query = dict(urllib.parse.parse_qsl(parts.query))
    reference = next((f"{name}={query[name]}" for name in ("branch", "tag", "rev") if name in query), "")
    return Source(kind, urllib.parse.urlunsplit(parts._replace(query="")), reference, commit)


def _quoted(value: object) -> str:
    return repr(value)[:120]


# --- the cache ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blob:
    """A file of the cache, named by its digest."""

    folder: str
    digest: str
    suffix: str

    @property
    def name(self) -> str:
        return f"{self.digest}{self.suffix}"


def crate_blob(crate: Crate) -> Blob:
    return Blob("crates", crate.checksum, ".crate")


def pack_blob(commit: str) -> Blob:
    return Blob("git", commit, ".pack")


@dataclass(frozen=True)
class Pool:
    """The cache below `root`, the folder of downloads. A `readonly` cache is never written."""

    root: Path
    readonly: bool = False

    def path(self, blob: Blob) -> Path:
        return self.root / blob.folder / blob.name

    def copy(self, blob: Blob, target: Path, proves: Callable[[Path], str]) -> bool:
        """Copy a file to `target` and check the copy. False if there is none; a damaged file is removed."""
        path = self.path(blob)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return False
        with os.fdopen(descriptor, "rb") as file:
            _copy(file, target)
            if proves(target) == blob.digest:
                if not self.readonly:
                    with contextlib.suppress(OSError):
                        os.utime(descriptor)  # its last use
                return True
            target.unlink()
            with contextlib.suppress(OSError):
                if not self.readonly and os.path.samestat(os.fstat(descriptor), path.lstat()):
                    path.unlink()
        return False

    def take(self, blob: Blob, file: Path) -> None:
        """Add a copy of a checked file to the cache."""
        if self.readonly:
            return
        target = self.path(blob)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target, flushed=True) as staged:
                with file.open("rb") as source:
                    _copy(source, staged)
                staged.chmod(0o444)
        except OSError as error:
            raise InfraError(f"cannot keep a crate: {error.strerror}", where=str(error.filename or target)) from None


def _copy(source: IO[bytes], target: Path) -> None:
    with target.open("xb") as out:
        while chunk := source.read(_CHUNK):
            out.write(chunk)


# --- git ----------------------------------------------------------------------------------------------------------------


def git(*words: str, env: Mapping[str, str] | None = None) -> process.Completed:
    """Run the child process `qcase.crates.git_crates`. If it fails, its standard error is a line for the user."""
    argv = [sys.executable, "-I", "-c", _START, json.dumps(sys.path), *words]
    own = {"HOME": "/nonexistent", "XDG_CONFIG_HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", **(env or {})}
    return process.run(argv, env=own, allow=PROXIES, timeout=GIT_TIMEOUT, check=False)


def commit_of(path: Path) -> str:
    """Return the commit that a pack contains completely; empty if there is none."""
    done = git("prove", str(path))
    return done.stdout.decode().strip() if done.returncode == 0 else ""


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
