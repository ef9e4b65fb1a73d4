"""A registry that answers over HTTP on this machine, and what it may not do: a real client, a server that lies as it is told."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qcase.errors import InfraError, UsageError
from qcase.toolchains import oci, registry_client
from qcase.toolchains.oci import Packed
from qcase.toolchains.registry_client import Registry
from tests.unit.toolchains.test_oci import FILES, layer, seal

DIGEST = f"sha256:{'0123456789abcdef' * 4}"


@dataclass
class Served:
    """What a server has and does. `odd` may answer a request in place of it; it returns whether it did."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, authorization
    odd: Callable[[Any], bool] = lambda _: False
    user: str = ""  # name:password, if it wants one
    bearer: bool = False
    host: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def served(self) -> Served:
        return self.server.served  # type: ignore[attr-defined, no-any-return]

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_any(self) -> None:
        served = self.served
        authorization = self.headers.get("Authorization", "")
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        served.asked.append((self.command, self.path, authorization))
        if self.path.startswith("/token"):
            basic = f"Basic {base64.b64encode(served.user.encode()).decode()}"
            if authorization == basic and "scope=repository" in self.path:
                self.answer(200, json.dumps({"token": "t0k3n"}).encode())
            else:
                self.answer(401, json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "who are you"}]}).encode())
            return
        if served.user:
            wanted = "Bearer t0k3n" if served.bearer else f"Basic {base64.b64encode(served.user.encode()).decode()}"
            if authorization != wanted:
                scope = 'service="here",scope="repository:team/own:pull,push"'
                challenge = f'Bearer realm="http://{served.host}/token",{scope}' if served.bearer else 'Basic realm="x"'
                self.answer(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}', WWW_Authenticate=challenge)
                return
        if served.odd(self):
            return
        if (found := re.fullmatch(r"/v2/team/own/(manifests|blobs)/([^/?]+)", self.path)) and self.command in ("GET", "HEAD"):
            content = getattr(served, found[1]).get(found[2])
            missing = b'{"errors": [{"code": "UNKNOWN", "message": "not known"}]}'
            self.answer(*((404, missing) if content is None else (200, content)))
        elif self.command == "POST":
            self.answer(202, Location="/v2/team/own/blobs/uploads/1?state=x")
        elif self.command == "PUT" and "/blobs/uploads/" in self.path:
            served.blobs[oci.sha256(self.content)] = self.content
            self.answer(201)
        elif self.command == "PUT":
            served.manifests |= {self.path.rpartition("/")[2]: self.content, oci.sha256(self.content): self.content}
            self.answer(201)
        else:
            self.answer(404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def log_message(self, *_: object) -> None: ...


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None: ...  # a client that has seen enough goes away


@pytest.fixture
def served() -> Iterator[Served]:
    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.served = Served(host=f"localhost:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.served  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No waiting between attempts, and no configuration of whoever runs the tests."""
    monkeypatch.setattr("qcase.host.process.pause", lambda _: None)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def log_in(tmp_path: Path, host: str, user: str) -> None:
    (tmp_path / "docker").mkdir()
    auth = base64.b64encode(user.encode()).decode()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


@pytest.fixture
def image(tmp_path: Path) -> Packed:
    return seal(tmp_path / "layout", layer(*FILES))


def registry(served: Served) -> Registry:
    return Registry(served.host, "team/own", plain=True, environ={})


def arrive(served: Served, digest: str, target: Path) -> Packed:
    with registry(served) as opened:
        return oci.arrive(opened, digest, target, lambda _: None)


def test_an_image_goes_there_and_comes_back(served: Served, image: Packed, tmp_path: Path) -> None:
    with registry(served) as opened:
        assert opened.push(image, "tag") == sum(blob.size for blob in image.blobs)
        assert opened.push(image, "tag") == 0
    assert served.manifests["tag"] == image.manifest
    arrived = arrive(served, image.digest, tmp_path / "there")
    assert (arrived.manifest, arrived.config, arrived.layers) == (image.manifest, image.config, image.layers)


def stock(served: Served, image: Packed) -> None:
    served.manifests[image.digest] = image.manifest
    served.blobs |= {blob.digest: (image.folder / blob.path).read_bytes() for blob in image.blobs}


def test_what_a_registry_has_lost(served: Served, image: Packed, tmp_path: Path) -> None:
    with pytest.raises(InfraError, match=f"the image {image.digest} is not there") as caught:
        arrive(served, image.digest, tmp_path / "there")
    assert caught.value.where == f"{served.host}/team/own"
    stock(served, image)
    del served.blobs[image.layers[0].digest]
    with pytest.raises(InfraError, match=f"a part of the image, {image.layers[0].digest}, is missing"):
        arrive(served, image.digest, tmp_path / "there")


def another_manifest(handler: Handler) -> bool:
    if "/manifests/" in handler.path:
        handler.answer(200, b'{"schemaVersion": 2}')
    return "/manifests/" in handler.path


def another_blob(handler: Handler) -> bool:
    if wanted := handler.served.blobs.get(handler.path.rpartition("/")[2]):
        handler.answer(200, wanted[:-1] + bytes([wanted[-1] ^ 1]))
    return bool(wanted)


def too_short(handler: Handler) -> bool:
    if wanted := handler.served.blobs.get(handler.path.rpartition("/")[2]):
        handler.answer(200, wanted[:-5])
    return bool(wanted)


def broken_off(handler: Handler) -> bool:
    if wanted := handler.served.blobs.get(handler.path.rpartition("/")[2]):
        handler.close_connection = True
        handler.answer(200, wanted[:-5], Content_Length=str(len(wanted)))
    return bool(wanted)


def without_an_end(handler: Handler) -> bool:
    if wanted := handler.served.blobs.get(handler.path.rpartition("/")[2]):
        handler.close_connection = True
        try:
            handler.answer(200, wanted * 10000, Content_Length=str(1 << 60))
        except ConnectionError:
            return True
    return bool(wanted)


def large_manifest(handler: Handler) -> bool:
    handler.answer(200, bytes(oci.LARGEST_DOCUMENT + oci.PIECE))
    return True


def elsewhere(handler: Handler) -> bool:
    if handler.path.startswith("/v2/"):
        handler.answer(307, Location=f"http://127.0.0.1:{handler.served.host.rpartition(':')[2]}/other{handler.path}")
    else:
        handler.answer(200, b"x")
    return True


def blobs_elsewhere(handler: Handler) -> bool:
    return "/blobs/" in handler.path and elsewhere(handler)


def manifest_elsewhere_safely(handler: Handler) -> bool:
    handler.answer(307, Location=f"https://other.example{handler.path}")
    return True


def round_and_round(handler: Handler) -> bool:
    handler.answer(307, Location=handler.path)
    return True


def broken(handler: Handler) -> bool:
    handler.answer(503, b'{"errors": [{"code": "UNAVAILABLE", "message": "the disk is gone"}]}')
    return True


def denied(handler: Handler) -> bool:
    handler.answer(403, b'{"errors": [{"code": "DENIED", "message": "not you"}]}')
    return True


def odd_challenge(handler: Handler) -> bool:
    handler.answer(401, b"", WWW_Authenticate="Negotiate")
    return True


def token_elsewhere(handler: Handler) -> bool:
    handler.answer(401, b"", WWW_Authenticate='Bearer realm="http://other.example/token"')
    return True


ODD: list[tuple[Callable[[Handler], bool], str]] = [
    (another_manifest, "its manifest is another one"),
    (another_blob, "is another one, of the digest|is not compressed as it says"),
    (too_short, "its configuration breaks off after"),
    (broken_off, "its configuration breaks off after"),
    (without_an_end, "its configuration is longer than"),
    (large_manifest, "is larger than 4 MiB"),
    (elsewhere, "is redirected elsewhere, to http://127.0.0.1"),
    (blobs_elsewhere, "is redirected elsewhere, to http://127.0.0.1"),
    (manifest_elsewhere_safely, "is redirected elsewhere, to https://other.example"),
    (round_and_round, "is redirected more than 5 times"),
    (broken, "says 503 Service Unavailable: UNAVAILABLE the disk is gone"),
    (denied, "says 403 Forbidden: DENIED not you"),
    (odd_challenge, "wants to know who asks in a way that is not known here, 'Negotiate'"),
    (token_elsewhere, "sends for a token to http://other.example/token, which is not reached by HTTPS"),
]


@pytest.mark.parametrize(("odd", "said"), ODD, ids=lambda one: getattr(one, "__name__", ""))
def test_a_registry_that_lies(odd: Callable[[Handler], bool], said: str, served: Served, image: Packed, tmp_path: Path) -> None:
    stock(served, image)
    served.odd = odd
    with pytest.raises(InfraError, match=said) as caught:
        arrive(served, image.digest, tmp_path / "there")
    assert f"{served.host}/team/own" in caught.value.where
    assert not any((tmp_path / "there").glob("blobs/sha256/*"))


def test_a_hiccup_is_asked_again(served: Served, image: Packed, tmp_path: Path) -> None:
    stock(served, image)
    left = [broken, broken]
    served.odd = lambda handler: bool(left) and left.pop()(handler)
    assert arrive(served, image.digest, tmp_path / "there").digest == image.digest


def test_a_blob_may_lie_elsewhere_on_the_same_server(served: Served, image: Packed, tmp_path: Path) -> None:
    stock(served, image)

    def odd(handler: Handler) -> bool:
        if found := re.fullmatch(r"/storage/(.+)", handler.path):
            handler.answer(200, served.blobs[found[1]])
        elif "/blobs/" in handler.path:
            handler.answer(307, Location=f"/storage/{handler.path.rpartition('/')[2]}")
        else:
            return False
        return True

    served.odd = odd
    assert arrive(served, image.digest, tmp_path / "there").digest == image.digest


@pytest.mark.parametrize("bearer", [False, True], ids=["basic", "token"])
def test_a_registry_that_knows_its_users(bearer: bool, served: Served, image: Packed, tmp_path: Path) -> None:
    stock(served, image)
    served.user, served.bearer = "ann:secret", bearer
    with pytest.raises(InfraError, match="says 401") as caught:
        arrive(served, image.digest, tmp_path / "there")
    assert f"docker login {served.host}" in caught.value.hint
    log_in(tmp_path, served.host, "ann:secret")
    assert arrive(served, image.digest, tmp_path / "there").digest == image.digest
    with registry(served) as opened:
        opened.push(image, "tag")
    assert "secret" not in str(caught.value)


def test_a_configuration_of_docker_that_is_none(served: Served, image: Packed, tmp_path: Path) -> None:
    served.user = "ann:secret"
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text('{"auths": {"' + served.host + '": {"auth": "%%%"}}}')
    with pytest.raises(InfraError, match=r"the credentials for it cannot be read|says 401"):
        arrive(served, image.digest, tmp_path / "there")


def test_uploads_go_nowhere_else(served: Served, image: Packed) -> None:
    def odd(handler: Handler) -> bool:
        if handler.command == "POST":
            handler.answer(202, Location="http://other.example/upload")
        return handler.command == "POST"

    served.odd = odd
    with registry(served) as opened, pytest.raises(InfraError, match=r"wants the image to be sent elsewhere, to other\.example"):
        opened.push(image, "tag")
    assert not served.manifests


def test_a_registry_that_takes_an_image_and_does_not_have_it(served: Served, image: Packed) -> None:
    def odd(handler: Handler) -> bool:
        if handler.command == "PUT" and "/manifests/" in handler.path:
            handler.answer(201)
            return True
        return False

    served.odd = odd
    with registry(served) as opened, pytest.raises(InfraError, match=f"has none of its digest, {image.digest}"):
        opened.push(image, "tag")


def test_nobody_there(image: Packed, tmp_path: Path) -> None:
    with (
        Registry("localhost:9", "team/own", plain=True, environ={}) as opened,
        pytest.raises(InfraError, match=r"no registry answers: .*refused") as caught,
    ):
        oci.arrive(opened, image.digest, tmp_path / "there", lambda _: None)
    assert caught.value.hint


def test_plain_http_is_not_spoken_with_others(served: Served, image: Packed, tmp_path: Path) -> None:
    stock(served, image)
    with Registry(served.host, "team/own", plain=False, environ={}) as opened, pytest.raises(InfraError, match="no registry"):
        oci.arrive(opened, image.digest, tmp_path / "there", lambda _: None)
    assert served.asked == []


INFO = {
    "RegistryConfig": {
        "IndexConfigs": {"docker.io": {"Secure": True}, "old.example:5000": {"Secure": False}},
        "InsecureRegistryCIDRs": ["127.0.0.0/8", "10.1.0.0/16"],
    }
}


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("[::1]:5000", True),
        ("old.example:5000", True),
        ("10.1.2.3:5000", True),
        ("10.2.2.3", False),
        ("old.example", False),
        ("docker.io", False),
        ("localhost.example", False),
    ],
)
def test_with_whom_plain_http_is_spoken(host: str, plain: bool) -> None:
    assert registry_client.speaks_plain(host, INFO) is plain
    assert registry_client.speaks_plain("old.example:5000", {}) is False


@pytest.mark.parametrize("name", ["registry.example/c", "localhost/c", "localhost:5000/team/c", "[::1]:5000/a/b_c", "host:1/c"])
def test_a_reference_is_read(name: str) -> None:
    reference = registry_client.parse(f"{name}@{DIGEST}")
    assert str(reference) == f"{name}@{DIGEST}"
    assert reference.registry == name.partition("/")[0]


@pytest.mark.parametrize(
    "reference",
    [
        *("c", "c:1", f"c@{DIGEST}", f"team/c@{DIGEST}", "registry.example/c:1", f"registry.example/C@{DIGEST}"),
        *(f"registry.example/c@{DIGEST[:-1]}", f"https://registry.example/c@{DIGEST}", f"registry.example/../c@{DIGEST}"),
    ],
)
def test_what_is_no_reference(reference: str) -> None:
    with pytest.raises(UsageError, match="is no image of a registry by its digest"):
        registry_client.parse(reference)


def test_places() -> None:
    assert registry_client.parse_place("registry.example") == ("registry.example", "")
    assert registry_client.parse_place("localhost:5000/team/os/") == ("localhost:5000", "team/os")
    for place in ("team", "registry.example/Team", "https://registry.example/team", "registry.example/team:1", ""):
        with pytest.raises(UsageError, match="is no place in a registry"):
            registry_client.parse_place(place)


def test_the_digests_that_are_compared_are_sha256() -> None:
    assert oci.sha256(b"x") == f"sha256:{hashlib.sha256(b'x').hexdigest()}"
