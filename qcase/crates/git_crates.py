"""Crates from git: fetches and proves commits and packs them as folders of crates, in a child process.

    python -m qcase.crates.git_crates fetch URL COMMIT PACK     fetch a commit; prints its submodules, as JSON
    python -m qcase.crates.git_crates config URL                print `config.json` of a registry whose index is a git repository
    python -m qcase.crates.git_crates prove PACK                print the commit that a pack holds in full
    python -m qcase.crates.git_crates vendor ORDER              write a tar of folders of crates, see `Order`

The input is untrusted, and a small pack can contain an object of gigabytes. Therefore this module runs as a child process with
limits of its own, with git's protocols from `dulwich`, without git and without the user's git configuration. A commit's id is the
digest of its tree, which contains the digests of all files: the commit of a pack is computed from the pack's bytes. No files are
checked out on the host.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import posixpath
import re
import resource
import sys
import tarfile
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qcase import parsing
from qcase.crates import manifests

MEMORY = 3 << 30  # bytes
LARGEST = 2 << 30  # bytes of a file that is written
DEEPEST = 64  # folders in folders
FILES = 1_000_000  # of a commit, and folders; a few objects can name one another for any number
PATIENCE = 60.0  # seconds without an answer
CERTIFICATES = "QCASE_CERTIFICATES"  # the variable with the file of trusted certificates

_TREE, _LINK, _SUBMODULE = 0o040000, 0o120000, 0o160000


class GitError(Exception):
    """An error with a message for the user."""


@dataclass(frozen=True)
class Submodule:
    path: str
    url: str
    commit: str


@dataclass(frozen=True)
class Order:
    """Contents of a tar: `packs` are (folder in the checkout, pack, commit), the repository itself first, at "".

    `packages` are (name, version). In the tar, `git/` is the checkout, `vendor/<name>-<version>` a link to a package in it.
    """

    packs: tuple[tuple[str, str, str], ...]
    packages: tuple[tuple[str, str], ...]
    target: str


@dataclass(frozen=True)
class _Row:
    """A file, link, or submodule of a commit."""

    path: str
    mode: int
    sha: bytes


class _Pack:
    """Objects of a pack by their digests, which are computed from the objects' bytes."""

    def __init__(self, path: Path) -> None:
        from dulwich.object_format import DEFAULT_OBJECT_FORMAT
        from dulwich.pack import MemoryPackIndex, Pack, PackData

        try:
            data = PackData(str(path), object_format=DEFAULT_OBJECT_FORMAT)
            index = MemoryPackIndex.for_pack(data)
            self._pack = Pack.from_objects(data, index)
        except (OSError, ValueError, KeyError, AssertionError) as error:
            raise GitError(f"the pack cannot be read: {error}") from None

    def object(self, sha: bytes) -> Any:
        from dulwich.objects import ObjectID

        try:
            return self._pack[ObjectID(sha)]
        except KeyError:
            raise GitError(f"the pack lacks the object {sha.decode()}") from None

    def commits(self) -> list[bytes]:
        return [sha for sha in self._pack if self._pack.get_raw(sha)[0] == 1]

    def tree_of(self, commit: str) -> bytes:
        found = self.object(commit.encode())
        if found.type_name != b"commit":
            raise GitError(f"{commit} is no commit")
        tree: bytes = found.tree
        return tree

    def rows(self, tree: bytes) -> Iterator[_Row]:
        """Yield everything in a folder and below it.

        Raises `GitError` for names that no checkout may have, and for too many rows.
        """
        return self._rows(tree, "", 0, itertools.count(1))

    def _rows(self, tree: bytes, above: str, depth: int, counted: Iterator[int]) -> Iterator[_Row]:
        if depth > DEEPEST:
            raise GitError(f"its folders are more than {DEEPEST} deep")
        for entry in self.object(tree).items():
            if next(counted) > FILES:
                raise GitError(f"it has more than {FILES} files and folders")
            try:
                name = entry.path.decode("utf-8")
            except UnicodeDecodeError:
                raise GitError(f"the name {entry.path!r} is not UTF-8") from None
            if name in ("", ".", "..") or "/" in name or "\0" in name or name.lower() == ".git":
                raise GitError(f"it has a file of the name {name!r}")
            if entry.mode == _TREE:
                yield from self._rows(entry.sha, f"{above}{name}/", depth + 1, counted)
            else:
                yield _Row(f"{above}{name}", entry.mode, entry.sha)

    def trees(self, tree: bytes) -> set[bytes]:
        """Return a folder and all folders below it, each once."""
        found, pending = {tree}, [tree]
        while pending:
            below = {entry.sha for entry in self.object(pending.pop()).items() if entry.mode == _TREE} - found
            found |= below
            pending += below
        return found

    def blob(self, sha: bytes) -> bytes:
        found = self.object(sha)
        if found.type_name != b"blob":
            raise GitError(f"{sha.decode()} is no file")
        content: bytes = found.as_raw_string()
        return content


# --- fetching -----------------------------------------------------------------------------------------------------------


class _Nothing:
    """Graph walker for dulwich that tells the server that no commit is present."""

    shallow: frozenset[bytes] = frozenset()
    unshallow: frozenset[bytes] = frozenset()

    def ack(self, sha: bytes) -> None: ...

    def nak(self) -> None: ...

    def __next__(self) -> None:
        return None

    def update_shallow(self, *_: object) -> None: ...


def _client(url: str) -> tuple[Any, Any]:
    """Return a client for a repository. It never runs a program, as for `ssh://` and `ext::`, and never reads a local folder."""
    from dulwich.client import HttpGitClient, TCPGitClient, default_urllib3_manager
    from dulwich.config import ConfigFile

    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "git" and parts.hostname:
        return TCPGitClient(parts.hostname, parts.port, thin_packs=False, quiet=True), parts.path
    if parts.scheme in ("http", "https") and parts.hostname:
        place = urllib.parse.urlunsplit((parts.scheme, parts.netloc, "", "", ""))
        config = ConfigFile()
        if bundle := os.environ.get(CERTIFICATES):
            config.set((b"http",), b"sslCAInfo", os.fsencode(bundle))
        pool = default_urllib3_manager(config, base_url=url, timeout=PATIENCE)
        return HttpGitClient(place, pool_manager=pool, config=config, thin_packs=False, quiet=True), parts.path
    raise GitError(f"{url} is not fetched: only https://, http:// and git:// are")


def _fetched(url: str, commit: str | None, target: Path) -> str:
    """Fetch a commit, or HEAD, into a pack, with as little else as the server allows. Returns the commit."""
    wanted: list[bytes] = []
    last: Exception | None = None
    for everything in (False, True):

        def wants(refs: Mapping[bytes, bytes], _depth: int | None = None, everything: bool = everything) -> list[bytes]:
            head = refs.get(b"HEAD")
            if commit is None and head is None:
                raise GitError(f"{url} has no HEAD")
            wanted[:] = [commit.encode() if commit else head or b""]
            if not everything:
                return wanted
            return sorted({sha for name, sha in refs.items() if sha and not name.endswith(b"^{}")})

        client, path = _client(url)
        try:
            with target.open("wb") as out:
                client.fetch_pack(path, wants, _Nothing(), out.write, depth=None if everything else 1)
            if _Pack(target).object(wanted[0]):
                return wanted[0].decode()
        except GitError as error:
            last = error
        except Exception as error:  # a server's answer can cause errors of many classes
            last = error
            if isinstance(error, OSError | MemoryError):
                break
    said = f"{last or ''}".strip() or type(last).__name__
    raise GitError(f"{url} cannot be fetched at {commit or 'HEAD'}: {said}") from None


def fetch(url: str, commit: str, target: Path) -> list[Submodule]:
    """Fetch a commit into a pack that contains the commit and nothing else."""
    from dulwich.pack import write_pack_objects

    raw = target.with_name(f"{target.name}.raw")
    _fetched(url, commit, raw)
    pack = _Pack(raw)
    tree = pack.tree_of(commit)
    rows = list(pack.rows(tree))
    shas = {commit.encode(), *pack.trees(tree), *(row.sha for row in rows if row.mode != _SUBMODULE)}
    with target.open("wb") as out:
        write_pack_objects(out, [(pack.object(sha), None) for sha in sorted(shas)], object_format=_format())
    raw.unlink()
    return _submodules(url, pack, rows)


def _format() -> Any:
    from dulwich.object_format import DEFAULT_OBJECT_FORMAT

    return DEFAULT_OBJECT_FORMAT


def _submodules(url: str, pack: _Pack, rows: Sequence[_Row]) -> list[Submodule]:
    """Return the submodules of a commit. `_client` later refuses addresses that are not on a network."""
    asked = [row for row in rows if row.mode == _SUBMODULE]
    named = next((row for row in rows if row.path == ".gitmodules" and row.mode != _SUBMODULE), None)
    if not asked or named is None:
        return []
    text = pack.blob(named.sha).decode("utf-8", "replace")
    urls = {}
    for section in re.split(r"(?m)^[ \t]*\[submodule [^\n]*\][ \t\r]*$", text)[1:]:
        named_path, named_url = (re.search(rf"(?m)^[ \t]*{key}[ \t]*=(.*)$", section) for key in ("path", "url"))
        if named_path and named_url:
            urls[named_path[1].strip()] = named_url[1].strip()
    found = []
    for row in asked:
        place = urls.get(row.path, "")
        if place.startswith(("./", "../")):
            base = urllib.parse.urlsplit(url)
            place = urllib.parse.urlunsplit(base._replace(path=posixpath.normpath(posixpath.join(base.path, place))))
        if place:
            found.append(Submodule(row.path, place, row.sha.decode()))
    return found


def submodules(url: str, pack: Path, commit: str) -> list[Submodule]:
    """Return the submodules of a commit that was fetched before."""
    opened = _Pack(pack)
    return _submodules(url, opened, list(opened.rows(opened.tree_of(commit))))


def config(url: str, scratch: Path) -> bytes:
    """Return `config.json` of a registry whose index is a git repository."""
    commit = _fetched(url, None, scratch)
    pack = _Pack(scratch)
    for entry in pack.object(pack.tree_of(commit)).items():
        if entry.path == b"config.json":
            return pack.blob(entry.sha)
    raise GitError(f"{url} is no registry: it has no config.json")


def prove(path: Path) -> str:
    """Return the one commit of a pack, if the pack contains all of it."""
    pack = _Pack(path)
    commits = pack.commits()
    if len(commits) != 1:
        raise GitError(f"the pack has {len(commits)} commits")
    commit = commits[0].decode()
    for row in pack.rows(pack.tree_of(commit)):
        if row.mode != _SUBMODULE:
            pack.object(row.sha)
    return commit


# --- folders of crates --------------------------------------------------------------------------------------------------


def vendor(order: Order) -> None:
    """Write the tar of an order."""
    files: dict[str, tuple[int, _Pack, bytes]] = {}
    for folder, path, commit in order.packs:
        pack = _Pack(Path(path))
        for row in pack.rows(pack.tree_of(commit)):
            if row.mode != _SUBMODULE:
                files[f"{folder}{'/' if folder else ''}{row.path}"] = (row.mode, pack, row.sha)
    tables = {}
    for name, (mode, pack, sha) in files.items():
        if posixpath.basename(name) == "Cargo.toml" and mode != _LINK:
            with contextlib.suppress(ValueError):  # an invalid manifest matters only if its package is requested
                tables[name] = manifests.parse(pack.blob(sha))
    places, changed = _packages(order.packages, tables)
    with tarfile.open(order.target, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, (mode, pack, sha) in sorted(files.items()):
            content = changed.get(name) or pack.blob(sha)
            _add(tar, f"git/{name}", content, mode, link=mode == _LINK)
        for folder, place in sorted(places.items()):
            if f"{place}.cargo-checksum.json" not in files:
                _add(tar, f"git/{place}.cargo-checksum.json", b'{"files":{},"package":null}', 0o644)
                files[f"{place}.cargo-checksum.json"] = files[f"{place}Cargo.toml"]
            _add(tar, f"vendor/{folder}", f"../git/{place}".rstrip("/").encode(), _LINK, link=True)


def _packages(
    wanted: Sequence[tuple[str, str]], tables: Mapping[str, manifests.Table]
) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return the folders of packages, with a slash at the end, and the manifests that must differ from the repository's."""
    found: dict[tuple[str, str], str] = {}
    changed: dict[str, bytes] = {}
    for path in sorted(tables, key=lambda name: (name.count("/"), name)):
        manifest = full = tables[path]
        if manifests.inherits(manifest):
            full = manifests.without_inheritance(manifest, tables.get(_workspace_of(path, tables), {}))
        package = manifests.table(full, "package")
        key = (str(package.get("name")), str(package.get("version", "0.0.0")))
        if key in wanted and key not in found:
            found[key] = path.removesuffix("Cargo.toml")
            if full is not manifest:
                changed[path] = manifests.render(full)
    if missing := [f"{name} {version}" for name, version in wanted if (name, version) not in found]:
        raise GitError(f"the commit has no crate {', '.join(missing)}")
    return {f"{name}-{version}": place for (name, version), place in found.items()}, changed


def _workspace_of(path: str, tables: Mapping[str, manifests.Table]) -> str:
    """Return the path of the manifest of a package's workspace; empty if there is none."""
    folder = posixpath.dirname(path)
    named = manifests.table(tables[path], "package").get("workspace")
    if isinstance(named, str):
        return posixpath.normpath(posixpath.join(folder, named, "Cargo.toml"))
    while True:
        here = posixpath.join(folder, "Cargo.toml")
        if "workspace" in tables.get(here, {}):
            return here
        if not folder:
            return ""
        folder = posixpath.dirname(folder)


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int, *, link: bool = False) -> None:
    member = tarfile.TarInfo(name)
    if link:
        member.type, member.linkname = tarfile.SYMTYPE, content.decode("utf-8", "surrogateescape")
        tar.addfile(member)
        return
    member.size = len(content)
    member.mode = 0o755 if mode & 0o100 else 0o644
    tar.addfile(member, io.BytesIO(content))


# --- the process --------------------------------------------------------------------------------------------------------


def _limit() -> None:
    for what, bytes_ in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, LARGEST), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        soft = bytes_ if hard == resource.RLIM_INFINITY else min(bytes_, hard)
        resource.setrlimit(what, (soft, hard))


def main(argv: Sequence[str]) -> int:
    _limit()
    try:
        match list(argv):
            case ["fetch", url, commit, target]:
                print(json.dumps([asdict(one) for one in fetch(url, commit, Path(target))]))
            case ["submodules", url, commit, pack]:
                print(json.dumps([asdict(one) for one in submodules(url, Path(pack), commit)]))
            case ["config", url, scratch]:
                sys.stdout.buffer.write(config(url, Path(scratch)))
            case ["prove", pack]:
                print(prove(Path(pack)))
            case ["vendor", order]:
                plain = parsing.from_json(Path(order).read_bytes())
                packs = tuple((str(a), str(b), str(c)) for a, b, c in plain["packs"])
                vendor(Order(packs, tuple((str(a), str(b)) for a, b in plain["packages"]), str(plain["target"])))
            case _:
                raise GitError("no such work")
    except GitError as error:
        print(error, file=sys.stderr)
        return 1
    except MemoryError:
        print(f"it needs more than {MEMORY >> 30} GiB of memory", file=sys.stderr)
        return 1
    except OSError as error:
        print(error.strerror or error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
