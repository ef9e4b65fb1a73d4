"""Container registries: pulls and pushes images by digest.

    GET /v2/<repository>/manifests/<digest>           pull
    GET /v2/<repository>/blobs/<digest>
    HEAD /v2/<repository>/blobs/<digest>              push: missing blobs, the manifest last
    POST /v2/<repository>/blobs/uploads/, PUT …
    PUT /v2/<repository>/manifests/<tag>              for registries that delete untagged manifests

See https://github.com/opencontainers/distribution-spec. Credentials come from Docker's configuration (`docker login`), its
credential helpers included. They go to the registry itself, and to the token server that it names, over HTTPS; redirections are
followed without them. Plain HTTP is used with this machine, and with the engine's insecure registries.

The package `oras` checks no digest of its downloads, and `python-dxf` none of a manifest that is requested by digest.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
import urllib.parse
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qcase import parsing
from qcase.crates.registries import certificates, reason
from qcase.errors import InfraError, UsageError
from qcase.host.retry import retry_after_momentary
from qcase.toolchains import oci
from qcase.toolchains.oci import Blob, Packed

CONNECT = 20.0  # seconds
PATIENCE = 300.0  # seconds without a byte; a registry reads an upload in full before it answers
REDIRECTS = 5
ATTEMPTS = 4
TOLD = 300  # characters of a registry's error message

# As https://github.com/distribution/reference has them.
_HOST = r"(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|\[[0-9a-fA-F:]+\]|[A-Za-z0-9-]+(?=:))(?::[0-9]{1,5})?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(rf"(?P<host>{_HOST})/(?P<repository>{_PART}(?:/{_PART})*)@(?P<digest>sha256:[0-9a-f]{{64}})")
_PLACE = re.compile(rf"(?P<host>{_HOST})(?P<prefix>(?:/{_PART})*)")


@dataclass(frozen=True)
class Reference:
    """An image in a registry: `<host>[:<port>]/<repository>@sha256:<digest>`."""

    registry: str
    repository: str
    digest: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}@{self.digest}"


def parse(reference: str) -> Reference:
    """Parse a reference by digest. Raises `UsageError` for any other."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        hint = "pushing an image prints it: <registry>/<repository>@sha256:<64 digits>"
        raise UsageError("is no image of a registry by its digest", where=repr(reference), hint=hint)
    return Reference(match["host"], match["repository"], match["digest"])


def parse_place(place: str) -> tuple[str, str]:
    """Parse a registry's host and the repository prefix of the images, which may be empty. Raises `UsageError`."""
    match = _PLACE.fullmatch(place.rstrip("/"))
    if match is None:
        raise UsageError("is no place in a registry", where=repr(place), hint="<registry>[:<port>][/<repository>], in lower case")
    return match["host"], match["prefix"].strip("/")


def speaks_plain(host: str, info: Mapping[str, Any]) -> bool:
    """Tell whether plain HTTP is allowed with a registry: on this machine, or by the engine's configuration (`docker info`)."""
    name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    registries = info.get("RegistryConfig") or {}
    own = (registries.get("IndexConfigs") or {}).get(host) or {}
    if own.get("Secure") is False:
        return True
    try:
        address = ipaddress.ip_address(name)
        networks = [ipaddress.ip_network(str(one)) for one in registries.get("InsecureRegistryCIDRs") or ()]
    except ValueError:
        return False
    return address.is_loopback or any(address in network for network in networks if network.version == address.version)


class _MomentaryError(InfraError):
    """A fault that a retry may resolve."""


class Registry:
    """A repository of a registry; a `Source`. `plain`: HTTP is tried if the server lacks HTTPS. Methods raise `InfraError`."""

    def __init__(self, host: str, repository: str, *, plain: bool, environ: Mapping[str, str]) -> None:
        import requests

        self.name = host
        self.repository = repository
        self.where = f"{host}/{repository}"
        server = "registry-1.docker.io" if host == "docker.io" else host
        self._server = server
        self._plain = plain
        self._authorization = ""
        self._session = requests.Session()
        self._session.trust_env = False  # no passwords out of ~/.netrc
        own = Path("/etc/docker/certs.d") / host / "ca.crt"
        bundle = own if own.is_file() else certificates(environ)
        self._session.verify = str(bundle) if bundle else True

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    # pulling

    def manifest(self, digest: str) -> bytes:
        accept = ", ".join((*oci.MANIFESTS, oci.INDEX))
        with self._asked("GET", f"manifests/{digest}", headers={"Accept": accept}) as response:
            if response.status_code == 404:
                raise self._wrong(f"the image {digest} is not there", "was it pushed there, and is it the same registry?")
            self._expect(response, 200)
            with closing(self._pieces(response, oci.LARGEST_DOCUMENT)) as pieces:
                content = b"".join(pieces)
        if len(content) > oci.LARGEST_DOCUMENT:
            raise self._wrong(f"the manifest of {digest} is larger than {oci.LARGEST_DOCUMENT >> 20} MiB")
        return content

    def blob(self, blob: Blob) -> Generator[bytes, None, None]:
        with self._asked("GET", f"blobs/{blob.digest}") as response:
            if response.status_code == 404:
                raise self._wrong(f"a part of the image, {blob.digest}, is missing", "have it pushed again")
            self._expect(response, 200)
            yield from self._pieces(response, blob.size)

    def _pieces(self, response: Any, most: int) -> Generator[bytes, None, None]:
        """Yield a response's bytes, up to a little more than `most`.

        A broken connection yields fewer bytes; the digest check of the caller detects that.
        """
        import urllib3

        size = 0
        try:
            for piece in response.raw.stream(oci.PIECE, decode_content=False):
                yield piece
                size += len(piece)
                if size > most:
                    return
        except urllib3.exceptions.ProtocolError:
            return
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._wrong(f"the connection broke off after {size} bytes: {reason(error)}") from None

    # pushing

    def push(self, image: Packed, tag: str, *, shared: str = "") -> int:
        """Push an image: blobs that the registry lacks, then the manifest. Returns the number of bytes sent.

        `shared`: another repository of this registry, which may have some of them.
        """
        sent = 0
        for blob in dict.fromkeys(image.blobs):
            sent += self._push_blob(image.folder / blob.path, blob, shared)
        with self._asked("PUT", f"manifests/{tag}", body=image.manifest, headers={"Content-Type": oci.MANIFEST}) as response:
            self._expect(response, 201)
        with self._asked("HEAD", f"manifests/{image.digest}", headers={"Accept": oci.MANIFEST}) as response:
            if response.status_code != 200:
                raise self._wrong(f"took the image, and has none of its digest, {image.digest}")
        return sent

    def _push_blob(self, path: Path, blob: Blob, shared: str) -> int:
        with self._asked("HEAD", f"blobs/{blob.digest}") as response:
            if response.status_code == 200:
                return 0
            self._expect(response, 404)
        mount = f"?{urllib.parse.urlencode({'mount': blob.digest, 'from': shared})}" if shared else ""
        with self._asked("POST", f"blobs/uploads/{mount}", body=b"") as response:
            if response.status_code == 201 and mount:
                return 0
            self._expect(response, 202)
            place = urllib.parse.urljoin(response.url, response.headers.get("Location", ""))
        parts = urllib.parse.urlsplit(place)
        if parts.netloc != urllib.parse.urlsplit(self._base).netloc:
            raise self._wrong(f"wants the image to be sent elsewhere, to {parts.netloc or place}")
        query = "&".join(filter(None, (parts.query, urllib.parse.urlencode({"digest": blob.digest}))))
        address = urllib.parse.urlunsplit((urllib.parse.urlsplit(self._base).scheme, parts.netloc, parts.path, query, ""))
        with self._asked("PUT", address, body=path, headers={"Content-Type": "application/octet-stream"}) as response:
            self._expect(response, 201)
        return blob.size

    # requests

    @cached_property
    def _base(self) -> str:
        scheme = "https" if not self._plain or _speaks_tls(self._server) else "http"
        return f"{scheme}://{self._server}/v2/{self.repository}/"

    def _asked(
        self, method: str, path: str, *, body: bytes | Path | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Send a request and yield its response. GET and HEAD are retried after a momentary fault."""
        return retry_after_momentary(
            lambda: self._answer(method, path, body, headers or {}),
            lambda error: isinstance(error, _MomentaryError),
            attempts=ATTEMPTS if method in ("GET", "HEAD") else 1,
            first=0.5,
        )

    def _answer(self, method: str, path: str, body: bytes | Path | None, headers: Mapping[str, str]) -> Any:
        first = url = urllib.parse.urljoin(self._base, path)
        asked_who = False
        for _ in range(REDIRECTS + 2):
            response = self._send(method, url, body, headers)
            if response.status_code == 401 and not asked_who and _server_of(url) == _server_of(first):
                asked_who = True
                challenge = response.headers.get("WWW-Authenticate", "")
                response.close()
                self._introduce(challenge)
            elif response.is_redirect and method in ("GET", "HEAD"):
                url = urllib.parse.urljoin(url, response.headers["Location"])
                response.close()
                self._check_redirection(first, url, path)
            elif response.status_code >= 500 or response.status_code == 429:
                with response:
                    what = f"says {response.status_code} {response.reason}{_told(response)}"
                raise _MomentaryError(what, where=self.where, hint=_NETWORK)
            else:
                return response
        raise self._wrong(f"{first} is redirected more than {REDIRECTS} times")

    def _send(self, method: str, url: str, body: bytes | Path | None, headers: Mapping[str, str]) -> Any:
        import requests
        import urllib3

        full = {"Accept-Encoding": "identity", "User-Agent": "qcase", **headers}
        if self._authorization and _server_of(url) == _server_of(self._base):
            full["Authorization"] = self._authorization
        opened = body.open("rb") if isinstance(body, Path) else None
        content = body if not isinstance(body, Path) else opened
        try:
            return self._session.request(
                method,
                url,
                data=content,
                headers=full,
                stream=True,
                timeout=(CONNECT, PATIENCE),
                allow_redirects=False,
                proxies=dict(requests.utils.get_environ_proxies(url, no_proxy=None)),
            )
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _MomentaryError(f"no registry answers: {reason(error)}", where=self.where, hint=_NETWORK) from None
        finally:
            if opened is not None:
                opened.close()

    def _check_redirection(self, first: str, url: str, path: str) -> None:
        """Raise unless a redirection stays on the server, or leads from a blob to another server over HTTPS."""
        elsewhere = _server_of(url) != _server_of(first)
        if elsewhere and (not path.startswith("blobs/") or urllib.parse.urlsplit(url).scheme != "https"):
            raise self._wrong(f"{first} is redirected elsewhere, to {url}")

    def _expect(self, response: Any, status: int) -> None:
        if response.status_code == status:
            return
        what = f"says {response.status_code} {response.reason}{_told(response)}"
        if response.status_code in (401, 403):
            hint = f"`docker login {self.name}` keeps a name and a password for it; may that user do so there?"
            raise self._wrong(what, hint)
        raise self._wrong(what)

    def _wrong(self, what: str, hint: str = "") -> InfraError:
        return InfraError(what, where=self.where, hint=hint)

    # authorisation

    def _introduce(self, challenge: str) -> None:
        """Prepare the authorisation of later requests, as the registry's challenge demands."""
        from requests.utils import parse_dict_header

        kind, _, rest = challenge.partition(" ")
        user = self._credentials()
        if kind.lower() == "basic":
            if user.password:
                self._authorization = user.basic
            return
        if kind.lower() != "bearer":
            raise self._wrong(f"wants to know who asks in a way that is not known here, {kind or 'and does not say how'!r}")
        fields = parse_dict_header(rest)  # type: ignore[no-untyped-call]
        realm = str(fields.get("realm") or "")
        if _server_of(realm) != _server_of(self._base) and urllib.parse.urlsplit(realm).scheme != "https":
            raise self._wrong(f"sends for a token to {realm or 'nowhere'}, which is not reached by HTTPS")
        self._authorization = f"Bearer {self._token(realm, fields, user)}"

    def _token(self, realm: str, fields: Mapping[str, str | None], user: Credentials) -> str:
        import requests

        asked = {key: str(fields[key]) for key in ("service", "scope") if fields.get(key)}
        common: dict[str, Any] = {"timeout": (CONNECT, PATIENCE), "allow_redirects": False}
        common["proxies"] = dict(requests.utils.get_environ_proxies(realm, no_proxy=None))
        try:
            if user.identity:
                form = {**asked, "grant_type": "refresh_token", "client_id": "qcase", "refresh_token": user.identity}
                response = self._session.post(realm, data=form, **common)
            else:
                headers = {"Authorization": user.basic} if user.password else {}
                response = self._session.get(realm, params=asked, headers=headers, **common)
            self._expect(response, 200)
            answer = response.json()
            return str(answer.get("token") or answer["access_token"])
        except (requests.exceptions.RequestException, ValueError, KeyError, AttributeError) as error:
            raise self._wrong(f"no token could be had from {realm}: {reason(error)}") from None

    def _credentials(self) -> Credentials:
        import docker
        import docker.auth

        try:
            found = docker.auth.load_config().resolve_authconfig(self.name) or {}
        except (docker.errors.DockerException, OSError, ValueError) as error:
            hint = "it is Docker's: config.json of DOCKER_CONFIG, or of ~/.docker"
            raise self._wrong(f"the credentials for it cannot be read: {error}", hint) from None
        by_name = {str(key).lower(): str(value) for key, value in found.items() if value}
        return Credentials(by_name.get("username", ""), by_name.get("password", ""), by_name.get("identitytoken", ""))


@dataclass(frozen=True)
class Credentials:
    """A name and a password, or a token in place of both."""

    name: str
    password: str
    identity: str

    def __repr__(self) -> str:
        return f"Credentials({self.name!r})"

    @property
    def basic(self) -> str:
        import base64

        return f"Basic {base64.b64encode(f'{self.name}:{self.password}'.encode()).decode()}"


_NETWORK = "is there a network, and is it the right registry?"


def _speaks_tls(server: str) -> bool:
    """Tell whether a server that may be used without TLS supports TLS. Its certificate is checked later."""
    parts = urllib.parse.urlsplit(f"//{server}")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=CONNECT) as plain:
            context.wrap_socket(plain).close()
    except OSError:
        return False
    return True


def _server_of(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


def _told(response: Any) -> str:
    """Return a registry's error message as one line."""
    try:
        text = response.raw.read(64 << 10, decode_content=False)
        first = parsing.from_json(text)["errors"][0]
        said = " ".join(f"{first.get('code', '')} {first.get('message', '')} {first.get('detail') or ''}".split())
    except Exception:  # the text only explains an error
        return ""
    return f": {said[:TOLD]}" if said else ""


def registry_of(reference: Reference, info: Mapping[str, Any]) -> Registry:
    """Return the repository of a reference. `info`: the engine's `docker info`."""
    return Registry(reference.registry, reference.repository, plain=speaks_plain(reference.registry, info), environ=os.environ)
