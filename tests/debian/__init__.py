"""A small Debian archive with two states, served as a mirror of each and as snapshots of both, and signed by a key of its own.

    /first/debian/, /second/debian/           mirrors, as they were and as they are
    /archive/debian/<time>/                   snapshots: the newest state at that time, whose Release files have expired
    …/debian-security/                        likewise, and empty
    …/pool/own/                               packages that differ between the states, and the keyring
    …/pool/…                                  all other packages, handed on from this machine's own mirror and kept

The suite's index is that of this machine's mirror, and our packages are its updates.
"""

from __future__ import annotations

import functools
import hashlib
import lzma
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from qcase.config import image_lock

SUITE = "trixie"
TOOL = "qcase-tool"
VERSIONS = {"first": "1.0-1", "second": "1.0-1+deb13u1"}


@dataclass(frozen=True)
class Archive:
    """`times`: when a state came to be, by its name; `packages`: the folder of ours; `served`: what was asked for."""

    address: str
    keyring: Path
    packages: Path
    times: dict[str, datetime]
    served: list[str]

    def sources(self, state: str) -> str:
        """The apt sources of a machine whose mirror has this state."""
        main, security = f"{self.address}/{state}/debian", f"{self.address}/{state}/debian-security"
        lines = [(main, SUITE), (main, f"{SUITE}-updates"), (security, f"{SUITE}-security")]
        return "".join(f"deb {uri} {suite} main\n" for uri, suite in lines)


def fetched(address: str, kept: Path) -> bytes:
    """A file by its address, from where it was kept before if it was. Raises `OSError` where it cannot be had."""
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(address, timeout=60) as answer:
            staged = kept.with_name(f".{kept.name}.{datetime.now().timestamp()}")
            staged.write_bytes(answer.read())
        staged.rename(kept)
    return kept.read_bytes()


@contextmanager
def archive(folder: Path, kept: Path, mirror: str, host: str, times: dict[str, datetime]) -> Iterator[Archive]:
    """Serve it at an address of this machine. `kept`: where files of the real mirror are kept from run to run."""
    # Not in a test's folder: apt reads the keyring as another user, and the path of gpg's socket has to be short.
    with tempfile.TemporaryDirectory(prefix="qcase-debian-") as home:
        Path(home).chmod(0o755)
        try:
            with _archive(Path(home), folder, kept, mirror, host, times) as served:
                yield served
        finally:
            subprocess.run(["gpgconf", "--homedir", f"{home}/gpg", "--kill", "gpg-agent"], check=False, capture_output=True)


@contextmanager
def _archive(home: Path, folder: Path, kept: Path, mirror: str, host: str, times: dict[str, datetime]) -> Iterator[Archive]:
    key = _key(home / "gpg")
    index = fetched(f"{mirror}/dists/{SUITE}/main/binary-amd64/Packages.xz", kept / f"{SUITE}-Packages.xz")
    keyring = _package(folder, "debian-archive-keyring", "9999", {"etc/apt/trusted.gpg.d/own.asc": key.read_bytes()})
    debs = {keyring.name: keyring}
    files: dict[str, bytes] = {}
    for state, version in VERSIONS.items():
        tool = _package(folder, TOOL, version, {"usr/share/qcase-tool": f"{version}\n".encode()})
        debs[tool.name] = tool
        own = lzma.compress(b"\n".join(map(_stanza, (keyring, tool))))
        nothing = lzma.compress(b"")
        for name, text in ((SUITE, index), (f"{SUITE}-updates", own), (f"{SUITE}-security", nothing)):
            files[f"{state}/dists/{name}/main/binary-amd64/Packages.xz"] = text
            for view, expires in (("mirror", ""), ("snapshot", "yes")):
                release = _release(name, times[state], text, expired=bool(expires))
                files[f"{state}/dists/{name}/Release.{view}"] = release
                files[f"{state}/dists/{name}/InRelease.{view}"] = _signed(home / "gpg", release)
    served: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            served.append(self.path)
            try:
                data = self._content(urllib.parse.unquote(self.path).strip("/").split("/"))
            except (OSError, ValueError):
                data = None
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if data is not None and self.command == "GET":
                self.wfile.write(data)

        def _content(self, parts: list[str]) -> bytes | None:
            view, archive, *rest = parts
            if view == "archive":
                time, *rest = rest
                state = max((name for name in times if times[name] <= image_lock.at(time)), key=lambda name: times[name])
            elif view in times:
                state = view
            else:
                return None
            if rest[:2] == ["pool", "own"]:
                return debs[rest[2]].read_bytes() if rest[2] in debs else None
            if rest[0] == "pool":
                return fetched(f"{mirror}/{'/'.join(rest)}", kept / "pool" / rest[-1])
            if archive == "debian-security" and rest[1] != f"{SUITE}-security":
                return None
            if rest[-1] in ("Release", "InRelease"):
                rest[-1] += ".snapshot" if view == "archive" else ".mirror"
            return files.get("/".join([state, *rest]))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((host, 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield Archive(f"http://{host}:{server.server_port}", _dearmoured(home), folder, times, served)
        finally:
            server.shutdown()


def _gpg(home: Path, *words: str, stdin: bytes = b"") -> bytes:
    argv = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", *words]
    return subprocess.run(argv, input=stdin, check=True, capture_output=True).stdout


def _key(home: Path) -> Path:
    home.mkdir(mode=0o700, parents=True)
    _gpg(home, "--quick-generate-key", "archive@qcase.example", "rsa3072", "sign", "never")
    path = home / "key.asc"
    path.write_bytes(_gpg(home, "--armor", "--export"))
    return path


def _dearmoured(home: Path) -> Path:
    path = home / "key.gpg"
    path.write_bytes(_gpg(home / "gpg", "--export"))
    path.chmod(0o644)
    return path


def _signed(home: Path, release: bytes) -> bytes:
    return _gpg(home, "--digest-algo", "SHA512", "--clearsign", stdin=release)


def _package(folder: Path, name: str, version: str, files: dict[str, bytes]) -> Path:
    root = folder / f"{name}_{version}"
    for path, data in {"DEBIAN/control": _control(name, version).encode(), **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    target = folder / f"{name}_{version}_all.deb"
    argv = ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", str(root), str(target)]
    subprocess.run(argv, check=True, capture_output=True)
    return target


def _control(name: str, version: str) -> str:
    fields = {"Package": name, "Version": version, "Architecture": "all", "Maintainer": "nobody <nobody@qcase.example>"}
    return "".join(f"{field}: {value}\n" for field, value in {**fields, "Description": "of qcase's tests"}.items())


def _stanza(deb: Path) -> bytes:
    name, version, _ = deb.name.split("_")
    data = deb.read_bytes()
    facts = {"Filename": f"pool/own/{deb.name}", "Size": len(data), "SHA256": hashlib.sha256(data).hexdigest()}
    return (_control(name, version) + "".join(f"{field}: {value}\n" for field, value in facts.items())).encode()


def _release(suite: str, when: datetime, packages: bytes, *, expired: bool) -> bytes:
    form = "%a, %d %b %Y %H:%M:%S UTC"
    lines = [f"Origin: Debian\nSuite: {suite}\nCodename: {suite}\nDate: {when.strftime(form)}"]
    lines += [f"Valid-Until: {(when + timedelta(hours=1)).strftime(form)}"] if expired else []
    lines += ["Architectures: amd64\nComponents: main\nSHA256:"]
    # Without the line of the one that is not compressed, apt passes over the other.
    lines += [f" {facts} main/binary-amd64/{name}" for name, facts in _facts(packages).items()]
    return ("\n".join(lines) + "\n").encode()


@functools.cache
def _facts(packages: bytes) -> dict[str, str]:
    """Digest and size of an index, unpacked and packed."""
    both = {"Packages": lzma.decompress(packages), "Packages.xz": packages}
    return {name: f"{hashlib.sha256(data).hexdigest()} {len(data)}" for name, data in both.items()}
