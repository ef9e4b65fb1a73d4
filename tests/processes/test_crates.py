"""Crates without a container: lock files, registries, git, and what strangers put into them.

Registries and repositories are servers of the tests on this machine. What `fetch` does needs no engine: a build has none here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qcase.crates import git_crates, manifests, pool, registries
from qcase.crates.registries import Brought, Directory, Index, LocalRegistry, User
from qcase.errors import BuildError, InfraError
from qcase.host import process
from qcase.host.trees import Tree
from qcase.pipelines import rust_crates
from qcase.pipelines.pipeline import BuildContext
from qcase.store import collect, keys
from qcase.store.store import Store
from tests.processes.test_pipelines import build_context
from tests.services import Services

CRATES_IO = pool.CRATES_IO
PROOFS = {collect.COMMIT: pool.commit_of}
TINY = b"what a registry serves as the crate tiny"
CHECKSUM = hashlib.sha256(TINY).hexdigest()
TOKEN = "a-token-that-nobody-else-has"


def row(name: str = "tiny", version: str = "1.0.0", source: str = CRATES_IO, checksum: str = CHECKSUM) -> str:
    return f'[[package]]\nname = "{name}"\nversion = "{version}"\nsource = "{source}"\nchecksum = "{checksum}"\n'


def locked(*rows: str) -> str:
    return "\n".join(("version = 4\n", *(rows or (row(),)), '[[package]]\nname = "user"\nversion = "0.1.0"\n'))


# --- lock files -----------------------------------------------------------------------------------------------------------


def test_a_lock_file_names_what_has_to_be_fetched() -> None:
    commit = "0123456789" * 4
    git = f'[[package]]\nname = "small"\nversion = "0.1.0"\nsource = "git+https://example.org/small?branch=main#{commit}"\n'
    lock = pool.read_lock(locked(row(), git).encode(), "rust/Cargo.lock", "normal/x")
    assert lock.names == {"tiny", "small", "user"}
    small, tiny = lock.crates
    assert (tiny.title, tiny.checksum, tiny.source.index) == (
        "tiny 1.0.0",
        CHECKSUM,
        "https://github.com/rust-lang/crates.io-index",
    )
    assert small.source == pool.Source("git", "https://example.org/small", "branch=main", commit)


def test_the_first_format_has_its_checksums_in_another_place() -> None:
    old = f'[[package]]\nname = "tiny"\nversion = "1.0.0"\nsource = "{CRATES_IO}"\n'
    old += f'[metadata]\n"checksum tiny 1.0.0 ({CRATES_IO})" = "{CHECKSUM}"\n'
    assert pool.read_lock(old.encode(), "", "").crates[0].checksum == CHECKSUM


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (row(name="../../escape"), "the name '../../escape' cannot be a crate's"),
        (row(name="a/b"), "the name 'a/b' cannot be a crate's"),
        (row(name=".cargo"), "cannot be a crate's"),
        (row(name="-rf"), "cannot be a crate's"),
        (row(name="tiny\\n0 x"), "cannot be a crate's"),
        (row(version="1.0.0/../.."), "the version '1.0.0/../..' of tiny is none"),
        (row(version="1.0.0\\n"), "of tiny is none"),
        (row(version="$(id)"), "of tiny is none"),
        (row(checksum="../../../etc/passwd"), "tiny 1.0.0 has no checksum"),
        (row(checksum=CHECKSUM.upper()), "has no checksum"),
        (row(checksum=""), "has no checksum"),
        (row(source="registry+file:///etc"), "only https://, http://, git:// is"),
        (row(source="registry+/etc"), "is not fetched"),
        (row(source="sparse+ftp://example.org/"), "is not fetched"),
        (row(source="git+ext::sh -c id#" + "0" * 40), "is not fetched"),
        (row(source="git+ssh://git@example.org/x#" + "0" * 40), "only https://, http://, git:// is"),
        (row(source="git+file:///home#" + "0" * 40), "is not fetched"),
        (row(source="git+https://example.org/x#--upload-pack=id"), "has no commit"),
        (row(source="git+https://example.org/x"), "has no commit"),
        (row(source="path+file:///home"), "of no known kind"),
        (row(source='registry+https://example.org/\\"]'), "is not fetched"),
        (row() + row(checksum="0" * 64), "tiny 1.0.0 has two checksums"),
        ("package = 3\n[[x]]\n", ""),
    ],
)
def test_what_no_cargo_writes_into_a_lock_file(bad: str, what: str) -> None:
    data = ("version = 4\n" + bad).encode()
    if not what:
        assert pool.read_lock(data, "rust/Cargo.lock", "normal/x").crates == ()
        return
    with pytest.raises(BuildError) as caught:
        pool.read_lock(data, "rust/Cargo.lock", "normal/x")
    assert what in caught.value.what
    assert caught.value.what.startswith("rust/Cargo.lock is not what cargo writes: ")


@pytest.mark.parametrize("data", [b"\xff", b"[[package", b"[" * 100_000, b"a = " + b"[" * 50_000])
def test_a_lock_file_that_is_no_toml(data: bytes) -> None:
    with pytest.raises(BuildError, match=r"rust/Cargo\.lock cannot be read"):
        pool.read_lock(data, "rust/Cargo.lock", "normal/x")


# --- where they come from -------------------------------------------------------------------------------------------------


def user(home: Path, config: str = "", credentials: str = "", **environ: str) -> User:
    (home / ".cargo").mkdir(parents=True, exist_ok=True)
    (home / ".cargo/config.toml").write_text(config)
    (home / ".cargo/credentials.toml").write_text(credentials)
    return User({"HOME": str(home), **environ})


MIRROR = """\
[source.crates-io]
replace-with = "mirror"
[registries.mirror]
index = "sparse+https://mirror.example.org/index/"
"""


@pytest.mark.parametrize(
    ("mine", "theirs", "found"),
    [
        ("", "", Index("sparse+https://index.crates.io/")),
        (MIRROR, "", Index("sparse+https://mirror.example.org/index/")),
        (MIRROR, MIRROR.replace("mirror.", "evil."), Index("sparse+https://mirror.example.org/index/")),
        ("", MIRROR, Index("sparse+https://mirror.example.org/index/")),
        ("", MIRROR.replace("https://mirror.example.org", "file:///etc"), None),
        (MIRROR, '[source.crates-io]\nreplace-with = "v"\n[source.v]\ndirectory = "vendor"\n', Brought()),
        ("", '[source.crates-io]\nreplace-with = "v"\n[source.v]\nlocal-registry = "/etc"\n', Brought()),
        (
            '[source.crates-io]\nreplace-with = "l"\n[source.l]\nlocal-registry = "/srv/crates"\n',
            "",
            LocalRegistry(Path("/srv/crates")),
        ),
        ('[source.crates-io]\nreplace-with = "l"\n[source.l]\ndirectory = "/srv/crates"\n', "", Directory(Path("/srv/crates"))),
        ('[source.crates-io]\nreplace-with = "nobody"\n', "", None),
        ('[source.crates-io]\nreplace-with = "a"\n[source.a]\nreplace-with = "crates-io"\n', "", None),
        ("", '[source.crates-io]\nreplace-with = "crates-io"\n', None),
    ],
)
def test_where_crates_io_is(mine: str, theirs: str, found: object, tmp_path: Path) -> None:
    configured = user(tmp_path, mine)
    case = manifests.parse(theirs.encode())
    if found is not None:
        assert configured.resolve(pool.parse_source(CRATES_IO), case) == found
        return
    with pytest.raises(BuildError, match="cargo's configuration"):
        configured.resolve(pool.parse_source(CRATES_IO), case)


def test_a_token_belongs_to_an_address_and_not_to_a_name(tmp_path: Path) -> None:
    mine = user(tmp_path, MIRROR, f'[registries.mirror]\ntoken = "{TOKEN}"\n')
    assert mine.token("sparse+https://mirror.example.org/index") == TOKEN
    assert mine.token("sparse+https://evil.example.org/index/") is None
    by_variable = user(
        tmp_path, MIRROR, CARGO_REGISTRIES_MIRROR_INDEX="sparse+https://new.example.org/", CARGO_REGISTRIES_MIRROR_TOKEN="t"
    )
    assert by_variable.token("sparse+https://new.example.org/") == "t"
    assert by_variable.token("sparse+https://mirror.example.org/index/") is None


# --- downloads ------------------------------------------------------------------------------------------------------------


class Server:
    """Answers by path: a body, a status, or where to go instead. `asked` has all requests, with their tokens."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | int | str] = {}
        self.asked: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.path, self.headers.get("Authorization")))
                answer = server.answers.get(self.path, 404)
                self.send_response(answer if isinstance(answer, int) else 302 if isinstance(answer, str) else 200)
                if isinstance(answer, str):
                    self.send_header("Location", answer)
                body = answer if isinstance(answer, bytes) else b""
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's own name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.index = f"sparse+{self.url}/index/"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.serve("tiny", "1.0.0", TINY)

    def serve(self, name: str, version: str, content: bytes, secret: bool = False) -> None:
        about = {"dl": f"{self.url}/dl", "auth-required": secret}
        self.answers["/index/config.json"] = json.dumps(about).encode()
        self.answers[f"/dl/{name}/{version}/download"] = content

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


def case(
    tmp_path: Path, server: Server | None, lock: str | None, files: Mapping[str, str] | None = None
) -> tuple[Path, BuildContext]:
    """A case, and the context of a build whose user has `server` in place of crates.io."""
    home, source = tmp_path / "home", tmp_path / "case"
    mirror = MIRROR.replace("sparse+https://mirror.example.org/index/", server.index) if server else ""
    mine = user(home, mirror, CARGO_NET_RETRY="0")
    both = {"rust/Cargo.toml": '[package]\nname = "user"\nversion = "0.1.0"\n', **(files or {})}
    if lock is not None:
        both["rust/Cargo.lock"] = lock
    for path, text in both.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text)
    shutil.rmtree(tmp_path / "scratch", ignore_errors=True)
    return source, replace(build_context(tmp_path), environ=mine.environ)


def again(context: BuildContext) -> BuildContext:
    """The same with an empty scratch folder."""
    scratch = context.scratch.with_name(f"scratch-{os.urandom(4).hex()}")
    scratch.mkdir()
    return replace(context, scratch=scratch)


def test_a_crate_is_fetched_once_and_checked_whenever_it_is_used(tmp_path: Path, server: Server) -> None:
    source, context = case(tmp_path, server, locked())
    fetched = rust_crates.fetch(Tree(source), context)
    assert fetched.folder is not None
    assert (fetched.folder / "0/tiny-1.0.0.crate").read_bytes() == TINY
    assert (fetched.folder / "list").read_text() == f"0 tiny-1.0.0 {CHECKSUM}\n"
    replaced = manifests.parse((fetched.folder / "sources.toml").read_bytes())["source"]
    assert replaced == {"crates-io": {"replace-with": "qcase-0"}, "qcase-0": {"directory": "/qcase/build/crates/0"}}
    asked = len(server.asked)
    offline = replace(again(context), offline=True)
    assert rust_crates.fetch(Tree(source), offline).folder is not None
    assert len(server.asked) == asked
    # Somebody writes other bytes into the cache, under the name of what another case needs.
    kept = context.pool.path(pool.Blob("crates", CHECKSUM, ".crate"))
    kept.chmod(0o644)
    kept.write_bytes(b"poisoned")
    repaired = rust_crates.fetch(Tree(source), again(context))
    assert repaired.folder is not None
    assert (repaired.folder / "0/tiny-1.0.0.crate").read_bytes() == TINY == kept.read_bytes()


def test_what_is_in_the_cache_is_no_link(tmp_path: Path, server: Server) -> None:
    source, context = case(tmp_path, server, locked())
    kept = context.pool.path(pool.Blob("crates", CHECKSUM, ".crate"))
    kept.parent.mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_bytes(TINY)
    for plant in ("link", "fifo", "folder"):
        if plant == "link":
            kept.symlink_to(secret)
        elif plant == "fifo":
            os.mkfifo(kept)
        else:
            kept.mkdir()
        with pytest.raises(InfraError, match="fetching is switched off"):
            rust_crates.fetch(Tree(source), replace(again(context), offline=True))
        kept.rmdir() if kept.is_dir() and not kept.is_symlink() else kept.unlink()
    assert secret.read_bytes() == TINY


def test_a_registry_that_gives_something_else(tmp_path: Path, server: Server) -> None:
    source, context = case(tmp_path, server, locked())
    server.serve("tiny", "1.0.0", b"something else")
    with pytest.raises(
        BuildError, match=r"the checksum of tiny 1\.0\.0 from sparse\+http.* is .*, rust/Cargo\.lock says"
    ) as caught:
        rust_crates.fetch(Tree(source), context)
    assert caught.value.where == "normal/x"
    assert not list(context.pool.root.glob("crates/*"))


def test_a_lock_with_the_checksum_of_another_crate_gets_nothing_of_it(tmp_path: Path, server: Server) -> None:
    """What it gets is what was asked for by its digest; the build finds that it is no crate of that name."""
    other = b"another crate"
    digest = hashlib.sha256(other).hexdigest()
    source, context = case(tmp_path, server, locked(row(checksum=digest)))
    with pytest.raises(BuildError, match="checksum"):
        rust_crates.fetch(Tree(source), context)
    assert "there is no folder $folder in the crate" in rust_crates.UNPACK


def test_a_token_goes_to_its_registry_and_not_along_a_redirection(tmp_path: Path, server: Server) -> None:
    other = Server()
    try:
        source, context = case(tmp_path, server, locked())
        (tmp_path / "home/.cargo/credentials.toml").write_text(f'[registries.mirror]\ntoken = "{TOKEN}"\n')
        server.serve("tiny", "1.0.0", b"", secret=True)
        server.answers["/dl/tiny/1.0.0/download"] = f"{other.url}/elsewhere"
        other.answers["/elsewhere"] = TINY
        assert rust_crates.fetch(Tree(source), context).folder is not None
        assert ("/dl/tiny/1.0.0/download", TOKEN) in server.asked
        assert other.asked == [("/elsewhere", None)]
    finally:
        other.close()


def test_a_case_cannot_have_the_token_of_the_user_sent_to_itself(tmp_path: Path, server: Server) -> None:
    """Its own configuration gives another address to the name of the user's registry, or replaces it."""
    evil = Server()
    try:
        evil.serve("tiny", "1.0.0", TINY, secret=True)
        theirs = f'[registries.mirror]\nindex = "{evil.index}"\n[source.mirror]\nregistry = "{evil.index}"\n'
        lock = locked(row(source=evil.index), row(name="tinier"))
        server.serve("tinier", "1.0.0", TINY)
        source, context = case(tmp_path, server, lock, {"rust/.cargo/config.toml": theirs})
        (tmp_path / "home/.cargo/credentials.toml").write_text(f'[registries.mirror]\ntoken = "{TOKEN}"\n')
        rust_crates.fetch(Tree(source), context)
        assert {token for _, token in evil.asked} == {None}
    finally:
        evil.close()


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x", "/dl/tiny/1.0.0/download"])
def test_redirections_that_are_not_followed(place: str, tmp_path: Path, server: Server) -> None:
    source, context = case(tmp_path, server, locked())
    server.answers["/dl/tiny/1.0.0/download"] = place
    with pytest.raises(InfraError, match="is redirected"):
        rust_crates.fetch(Tree(source), context)


def test_https_is_not_redirected_to_http() -> None:
    registries._check_redirection("http://a/x", "http://b/x", "i")
    registries._check_redirection("http://a/x", "https://b/x", "i")
    with pytest.raises(InfraError):
        registries._check_redirection("https://a/x", "http://b/x", "i")


@pytest.mark.parametrize("answer", [b"no JSON", b"[]", b'{"dl": "file:///etc"}', b"{}", 500])
def test_a_registry_that_is_none(answer: bytes | int, tmp_path: Path, server: Server) -> None:
    source, context = case(tmp_path, server, locked())
    server.answers["/index/config.json"] = answer
    with pytest.raises(InfraError, match="its crates could not be fetched"):
        rust_crates.fetch(Tree(source), context)


def test_a_crate_that_the_registry_does_not_have(tmp_path: Path, server: Server) -> None:
    source, context = case(tmp_path, server, locked(row(name="nobodys")))
    with pytest.raises(BuildError, match=r"its crates cannot be had: sparse\+http.* has no nobodys 1\.0\.0"):
        rust_crates.fetch(Tree(source), context)


def test_a_crate_that_never_ends(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "LARGEST", 10)
    source, context = case(tmp_path, server, locked())
    with pytest.raises(InfraError, match="is larger than"):
        rust_crates.fetch(Tree(source), context)


@pytest.mark.parametrize(
    ("template", "address"),
    [
        ("https://x/y", "https://x/y/Tiny/1.0.0/download"),
        ("https://x/{prefix}/{crate}-{version}.crate", "https://x/Ti/ny/Tiny-1.0.0.crate"),
        ("https://x/{lowerprefix}/{sha256-checksum}", f"https://x/ti/ny/{CHECKSUM}"),
    ],
)
def test_the_address_of_a_crate(template: str, address: str) -> None:
    crate = pool.Crate("Tiny", "1.0.0", pool.parse_source(CRATES_IO), CHECKSUM)
    assert registries._address(template, crate) == address


def test_what_cases_say_in_their_own_configuration_is_not_run(tmp_path: Path, server: Server) -> None:
    """Neither for what they fetch nor by any program: the build has no engine, and `evil.sh` leaves a trace."""
    trace = tmp_path / "trace"
    evil = f"#!/bin/sh\ntouch {trace}\n"
    config = """\
        [build]
        rustc = "./evil.sh"
        rustc-wrapper = "./evil.sh"
        [registry]
        global-credential-providers = ["./evil.sh"]
        [net]
        git-fetch-with-cli = true
        [env]
        PATH = "."
        [alias]
        vendor = "run"
        """
    source, context = case(tmp_path, server, locked(), {"rust/.cargo/config.toml": config, "rust/evil.sh": evil})
    (source / "rust/evil.sh").chmod(0o755)
    fetched = rust_crates.fetch(Tree(source), context)
    assert fetched.folder is not None
    assert not trace.exists()
    assert sorted(str(p.relative_to(fetched.folder)) for p in fetched.folder.rglob("*")) == [
        "0",
        "0/tiny-1.0.0.crate",
        "list",
        "sources.toml",
    ]


@pytest.mark.parametrize("path", ["rust/Cargo.lock", "rust/Cargo.toml", "rust/.cargo/config.toml"])
def test_links_out_of_the_case_are_not_read(path: str, tmp_path: Path, server: Server) -> None:
    source, context = case(tmp_path, server, locked(), {path: ""})
    (tmp_path / "secret").write_text("secret")
    (source / path).unlink()
    (source / path).symlink_to(tmp_path / "secret")
    with pytest.raises(BuildError, match=f"{path} is a symbolic link that leads out of the case"):
        rust_crates.fetch(Tree(source), context)
    (source / path).unlink()
    os.mkfifo(source / path)
    with pytest.raises(BuildError, match=f"{path} is no file"):
        rust_crates.fetch(Tree(source), again(context))


def test_what_the_case_brings_is_not_fetched(tmp_path: Path, server: Server) -> None:
    config = '[source.crates-io]\nreplace-with = "v"\n[source.v]\ndirectory = "vendor"\n'
    source, context = case(tmp_path, server, locked(), {"rust/.cargo/config.toml": config})
    fetched = rust_crates.fetch(Tree(source), replace(context, offline=True))
    assert fetched.folder is not None
    assert manifests.parse((fetched.folder / "sources.toml").read_bytes()).get("source", {}) == {}
    assert server.asked == []


def test_verification_computes_digests_and_repairs(tmp_path: Path, server: Server) -> None:
    source, context = case(tmp_path, server, locked())
    rust_crates.fetch(Tree(source), context)
    store = Store(tmp_path)
    ((item, broken),) = collect.verify(store, PROOFS)
    assert (item.what, item.name, broken) == (collect.CRATE, CHECKSUM, None)
    item.path.chmod(0o644)
    item.path.write_bytes(TINY[:-1])
    ((_, broken),) = collect.verify(store, PROOFS)
    assert broken is not None
    assert broken.why == "it is not what was downloaded"
    assert not broken.repaired
    ((_, broken),) = collect.verify(store, PROOFS, repair=True)
    assert broken is not None
    assert broken.repaired
    assert not item.path.exists()


# --- without a lock file --------------------------------------------------------------------------------------------------


def test_versions_of_the_day_are_kept_for_what_decides_about_them(tmp_path: Path) -> None:
    asked: list[str] = []

    def download(key: keys.Key, _name: str, _fetch: object) -> Tree:
        asked.append(key.digest)
        return Tree(tmp_path)

    files = {"rust/Cargo.toml": '[dependencies]\nlog = "0.4"\n'}
    source, context = case(tmp_path, None, None, files)
    context = replace(context, services=Services(download=download))
    registry = '[registries.own]\nindex = "sparse+https://example.org/"\n'
    for text in ("", "[build]\nrustflags = []\n", registry, registry + '[patch.crates-io]\nlog = { path = "log" }\n'):
        (source / "rust/.cargo").mkdir(exist_ok=True)
        (source / "rust/.cargo/config.toml").write_text(text)
        rust_crates.fetch(Tree(source), again(context))
    assert asked[0] == asked[1]
    assert len(set(asked)) == 3
    rust_crates.fetch(
        Tree(source), replace(again(context), services=Services(download=download, identity=lambda name: f"another {name}"))
    )
    assert len(set(asked)) == 4, "crates that another toolchain's Rust can build are taken for those of this one"


def test_what_cargo_sees_of_a_case_while_it_has_a_network() -> None:
    """Nothing that it could run."""
    manifest = manifests.parse(b"""
        [package]
        name = "user"
        version = "0.1.0"
        edition = "2021"
        build = "evil.rs"
        links = "z"
        [lib]
        proc-macro = true
        [[bin]]
        name = "user"
        path = "/etc/passwd"
        [dependencies]
        log = "0.4"
        [target.'cfg(unix)'.dev-dependencies]
        libc = "0.2"
        [workspace]
        members = ["a"]
        metadata = { x = 1 }
        [profile.release]
        panic = "abort"
        """)
    assert manifests.for_resolving(manifest) == {
        "package": {"name": "user", "version": "0.1.0", "edition": "2021"},
        "lib": {"path": manifests.STUB},
        "features": {},
        "dependencies": {"log": "0.4"},
        "target": {"cfg(unix)": {"dev-dependencies": {"libc": "0.2"}}},
        "workspace": {"members": ["a"], "package": {}, "dependencies": {}},
    }
    theirs = manifests.parse(b"""
        [build]
        rustc = "./evil"
        [registries.mine]
        index = "sparse+https://evil.example.org/"
        credential-provider = ["./evil"]
        [registries.theirs]
        index = "sparse+https://theirs.example.org/"
        token = "x"
        credential-provider = ["./evil"]
        [source.crates-io]
        replace-with = "theirs"
        [source.v]
        directory = "/etc"
        """)

    class Mine(User):
        @property
        def config(self) -> dict[str, object]:
            return {"registries": {"mine": {"index": "sparse+https://mine.example.org/"}}}

    assert rust_crates._for_resolving(theirs, Mine({})) == {
        "registries": {"theirs": {"index": "sparse+https://theirs.example.org/"}},
        "source": {"crates-io": {"replace-with": "theirs"}, "v": {}},
    }


def test_certificates_are_shown_to_cargo_from_a_place_that_the_engine_sees(tmp_path: Path) -> None:
    """Where qcase is in a container, its own /etc/ssl is not: the run folder, below the workspace, is."""
    bundle = tmp_path / "etc" / "bundle.pem"
    bundle.parent.mkdir()
    bundle.write_text("a certificate")
    home = tmp_path / "scratch" / "cargo"
    home.mkdir(parents=True)
    mounts = list(rust_crates._user_mounts(home, User({"SSL_CERT_FILE": str(bundle), "HOME": str(tmp_path)})))
    (shown,) = [mount.place for mount in mounts if mount.target == rust_crates._CERTIFICATES]
    assert shown.is_relative_to(tmp_path / "scratch")
    assert shown.read_text() == "a certificate"


# --- git ------------------------------------------------------------------------------------------------------------------


class Repositories:
    """Repositories of git below a folder, served by a real `git daemon`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        argv = ["git", "daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1", f"--port={self.port}"]
        argv += [f"--base-path={root}", str(root)]
        self._daemon = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        deadline = process.Deadline.after(60)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return
            except OSError:
                assert not deadline.passed
                time.sleep(0.02)

    def url(self, name: str) -> str:
        return f"git://127.0.0.1:{self.port}/{name}"

    def git(self, name: str, *words: str) -> str:
        who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "protocol.file.allow=always"]
        argv = ["git", "-C", str(self.root / name), *who, *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, name: str, files: Mapping[str, str], *more: tuple[str, ...]) -> str:
        """Make or go on with a repository; returns the commit. `more`: what else is done before the commit."""
        for path, text in files.items():
            (self.root / name / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name / path).write_text(text)
        if not (self.root / name / ".git").exists():
            self.git(name, "init", "-q", "-b", "main")
        self.git(name, "add", "-A")
        for words in more:
            self.git(name, *words)
        self.git(name, "commit", "-q", "--allow-empty", "-m", "a commit")
        return self.git(name, "rev-parse", "HEAD")

    def close(self) -> None:
        self._daemon.terminate()
        self._daemon.wait()


@pytest.fixture
def repositories(tmp_path: Path) -> Iterator[Repositories]:
    found = Repositories(tmp_path / "repositories")
    yield found
    found.close()


def git_row(name: str, url: str, commit: str, version: str = "0.1.0") -> str:
    return f'[[package]]\nname = "{name}"\nversion = "{version}"\nsource = "git+{url}#{commit}"\n'


WORKSPACE = {
    "Cargo.toml": """\
        [workspace]
        members = ["one", "two"]
        [workspace.package]
        version = "0.1.0"
        edition = "2021"
        readme = "README.md"
        [workspace.dependencies]
        two = { path = "two", default-features = false, features = ["a"] }
        log = "0.4"
        """,
    "README.md": "shared",
    "one/Cargo.toml": """\
        [package]
        name = "one"
        version.workspace = true
        edition = { workspace = true }
        readme.workspace = true
        [dependencies]
        two = { workspace = true, features = ["b"], optional = true }
        [target.'cfg(unix)'.dependencies]
        log.workspace = true
        [lints]
        workspace = true
        """,
    "one/src/lib.rs": 'pub const README: &str = include_str!("../../README.md");\n',
    "two/Cargo.toml": '[package]\nname = "two"\nversion = "0.1.0"\n',
    "two/src/lib.rs": "",
}


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    assert file is not None
    return file.read().decode()


def test_crates_of_a_commit(tmp_path: Path, repositories: Repositories) -> None:
    """Not the newest one, two of a workspace, and their manifests without it."""
    commit = repositories.commit("both", WORKSPACE)
    repositories.commit("both", {"two/src/lib.rs": "newer"})
    url = repositories.url("both")
    source, context = case(tmp_path, None, locked(git_row("one", url, commit), git_row("two", url, commit)))
    fetched = rust_crates.fetch(Tree(source), context)
    assert fetched.folder is not None
    assert (fetched.folder / "list").read_text() == "0 0.tar git\n"
    with tarfile.open(fetched.folder / "0.tar") as tar:
        links = {member.name: member.linkname for member in tar if member.issym()}
        assert links == {"vendor/one-0.1.0": "../git/one", "vendor/two-0.1.0": "../git/two"}
        content = {member.name: _content(tar, member) for member in tar if member.isfile()}
    assert content["git/two/src/lib.rs"] == ""
    assert content["git/README.md"] == "shared"
    assert json.loads(content["git/one/.cargo-checksum.json"]) == {"files": {}, "package": None}
    assert manifests.parse(content["git/one/Cargo.toml"].encode()) == {
        "package": {"name": "one", "version": "0.1.0", "edition": "2021"},
        "dependencies": {"two": {"path": "two", "default-features": False, "features": ["a", "b"], "optional": True}},
        "target": {"cfg(unix)": {"dependencies": {"log": {"version": "0.4"}}}},
    }
    # What was fetched is there, also for another case, and is what its name says.
    repositories.close()
    assert rust_crates.fetch(Tree(source), replace(again(context), offline=True)).folder is not None
    (item,) = [item for item in collect.items(Store(tmp_path)) if item.what == collect.COMMIT]
    assert item.name == commit
    assert pool.commit_of(item.path) == commit


def test_a_pack_of_another_commit_serves_nobody(tmp_path: Path, repositories: Repositories) -> None:
    first = repositories.commit("one", {"Cargo.toml": '[package]\nname = "one"\nversion = "0.1.0"\n'})
    second = repositories.commit("one", {"evil": "evil"})
    url = repositories.url("one")
    packs = [tmp_path / f"{commit}.pack" for commit in (first, second)]
    for commit, pack in zip((first, second), packs, strict=True):
        assert pool.git("fetch", url, commit, str(pack)).stdout == b"[]\n"
        assert pool.commit_of(pack) == commit
    kept = tmp_path / "downloads/git" / f"{first}.pack"
    kept.parent.mkdir(parents=True)
    damaged = packs[0].read_bytes()[:-25] + b"\0" * 25
    for content in (packs[1].read_bytes(), damaged, b"", b"PACK"):
        kept.write_bytes(content)
        assert pool.commit_of(kept) != first
        source, context = case(tmp_path, None, locked(git_row("one", url, first)))
        fetched = rust_crates.fetch(Tree(source), again(context))
        assert fetched.folder is not None
        with tarfile.open(fetched.folder / "0.tar") as tar:
            assert "git/evil" not in tar.getnames()
        assert pool.commit_of(kept) == first
        kept.chmod(0o644)


def test_submodules_come_from_a_network_too(tmp_path: Path, repositories: Repositories) -> None:
    below = repositories.commit("below", {"Cargo.toml": '[package]\nname = "below"\nversion = "0.1.0"\n', "src/lib.rs": ""})
    modules = '[submodule "below"]\n\tpath = dep/below\n\turl = {}\n'
    link = ("update-index", "--add", "--cacheinfo", f"160000,{below},dep/below")
    above = repositories.commit("above", {".gitmodules": modules.format("../below")}, link)
    source, context = case(tmp_path, None, locked(git_row("below", repositories.url("above"), above)))
    fetched = rust_crates.fetch(Tree(source), context)
    assert fetched.folder is not None
    with tarfile.open(fetched.folder / "0.tar") as tar:
        assert tar.getmember("vendor/below-0.1.0").linkname == "../git/dep/below"
    for evil in ("ext::sh -c id", f"{tmp_path}", f"file://{tmp_path}", "ssh://-oProxyCommand=id/x", "--upload-pack=id"):
        link = ("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},dep/below")
        above = repositories.commit("above", {".gitmodules": modules.format(evil)}, link)
        source, context = case(tmp_path, None, locked(git_row("below", repositories.url("above"), above)))
        with pytest.raises(BuildError, match="is not fetched: only https://, http:// and git:// are") as caught:
            rust_crates.fetch(Tree(source), again(context))
        assert caught.value.where == "normal/x"


def test_an_index_that_is_a_repository(tmp_path: Path, repositories: Repositories, server: Server) -> None:
    repositories.commit("index", {"config.json": json.dumps({"dl": f"{server.url}/dl"}), "ti/ny/tiny": "{}"})
    source, context = case(tmp_path, None, locked(row(source=f"registry+{repositories.url('index')}")))
    fetched = rust_crates.fetch(Tree(source), context)
    assert fetched.folder is not None
    assert (fetched.folder / "0/tiny-1.0.0.crate").read_bytes() == TINY
    repositories.commit("none", {"a": ""})
    source, context = case(tmp_path, None, locked(row(source=f"registry+{repositories.url('none')}", checksum="0" * 64)))
    with pytest.raises(InfraError, match=r"is no registry: it has no config\.json"):
        rust_crates.fetch(Tree(source), context)


def test_a_commit_that_is_not_there(tmp_path: Path, repositories: Repositories) -> None:
    repositories.commit("one", {"a": "a"})
    source, context = case(tmp_path, None, locked(git_row("one", repositories.url("one"), "0" * 40)))
    with pytest.raises(InfraError, match=f"cannot be fetched at {'0' * 40}"):
        rust_crates.fetch(Tree(source), context)
    source, context = case(tmp_path, None, locked(git_row("one", repositories.url("nobodys"), "0" * 40)))
    with pytest.raises(InfraError, match="cannot be fetched at"):
        rust_crates.fetch(Tree(source), again(context))


def test_a_commit_without_the_crate(tmp_path: Path, repositories: Repositories) -> None:
    commit = repositories.commit("one", {"Cargo.toml": '[package]\nname = "one"\nversion = "0.1.0"\n'})
    source, context = case(tmp_path, None, locked(git_row("one", repositories.url("one"), commit, "0.2.0")))
    with pytest.raises(BuildError, match=r"the commit has no crate one 0\.2\.0"):
        rust_crates.fetch(Tree(source), context)


@pytest.mark.parametrize("name", [b"..", b".git", b".GIT", b"a\xff"])
def test_names_of_files_that_no_checkout_may_have(name: bytes, tmp_path: Path) -> None:
    """git itself does not make such a tree: it is written by hand."""
    from dulwich.objects import Blob, Commit, Tree
    from dulwich.pack import write_pack_objects

    blob, tree, commit = Blob.from_string(b"x"), Tree(), Commit()
    tree.add(name, 0o100644, blob.id)
    commit.tree = tree.id
    commit.author = commit.committer = b"somebody <s@example.org>"
    commit.author_time = commit.commit_time = commit.author_timezone = commit.commit_timezone = 0
    commit.message = b"evil"
    pack = tmp_path / "evil.pack"
    with pack.open("wb") as out:
        write_pack_objects(out, [(thing, None) for thing in (blob, tree, commit)], object_format=git_crates._format())
    done = pool.git("prove", str(pack))
    assert done.returncode == 1
    assert b" name" in done.stderr


def test_an_object_that_is_larger_than_the_memory_ends_the_child_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack of 400 KiB with an object of 400 MiB."""
    size, number = 400 << 20, 3 << 4
    header = bytes([number | size & 15 | 0x80])
    rest = size >> 4
    while rest > 0x7F:
        header += bytes([rest & 0x7F | 0x80])
        rest >>= 7
    packer = zlib.compressobj(9)
    zeros = b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()
    content = b"PACK" + (2).to_bytes(4, "big") + (1).to_bytes(4, "big") + header + bytes([rest]) + zeros
    pack = tmp_path / "bomb.pack"
    pack.write_bytes(content + hashlib.sha1(content).digest())
    small = pool._START.replace(
        "import main", "import main; import qcase.crates.git_crates; qcase.crates.git_crates.MEMORY = 300 << 20"
    )
    monkeypatch.setattr(pool, "_START", small)
    done = pool.git("prove", str(pack))
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, b"it needs more than 0 GiB of memory")


def test_a_repository_of_ten_objects_and_a_thousand_million_files(
    repositories: Repositories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders that name one another cost nothing to send, and all memory to list."""
    repositories.commit("bomb", {"file": "x"})
    mode, kind, sha = "100644", "blob", repositories.git("bomb", "rev-parse", "HEAD:file")
    for _ in range(9):
        rows = "".join(f"{mode} {kind} {sha}\t{name}\n" for name in "abcdefghij")
        argv = ["git", "-C", str(repositories.root / "bomb"), "mktree"]
        sha = subprocess.run(argv, input=rows, check=True, capture_output=True, text=True).stdout.strip()
        mode, kind = "040000", "tree"
    commit = repositories.git("bomb", "commit-tree", "-m", "bomb", sha)
    repositories.git("bomb", "update-ref", "HEAD", commit)
    small = pool._START.replace(
        "import main", "import main; import qcase.crates.git_crates; qcase.crates.git_crates.FILES = 20_000"
    )
    monkeypatch.setattr(pool, "_START", small)
    began = time.monotonic()
    done = pool.git("fetch", repositories.url("bomb"), commit, str(tmp_path / "pack"))
    assert done.returncode == 1
    assert done.output.splitlines() == ["it has more than 20000 files and folders"]
    assert time.monotonic() - began < 30
