"""Sources of crates: the user's cargo configuration, read as data, and downloads of single crates.

    a source of the lock  ─►  [source] … replace-with, [registries]  ─►  a registry's index, config.json  ─►  …/<crate>

The user's configuration is `config.toml` and `credentials.toml` of `CARGO_HOME`, and cargo's environment variables. The case's
own `.cargo/config.toml` has lower priority: it may name registries and mirrors, but cannot redirect a token of the user, since a
token belongs to the address of an index and not to a name. No program that a configuration names is run.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from qcase import parsing
from qcase.crates import manifests
from qcase.crates.pool import CRATES_IO, Crate, Source
from qcase.errors import BuildError, InfraError
from qcase.host.retry import retry_after_momentary

CRATES_IO_INDEX = "sparse+https://index.crates.io/"
LARGEST = 1 << 30  # bytes of a crate
ATTEMPTS = 4
PATIENCE = 60.0  # seconds without an answer
REDIRECTS = 5

_CRATES_IO_NAME = "crates-io"
_CONFIG = 1 << 20  # bytes of a registry's config.json
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_NETWORK = "is there a network? A mirror, and its token, are those of your own cargo configuration"


@dataclass(frozen=True)
class Index:
    """A registry, by the address of its index: `sparse+https://…/`, or a git repository."""

    url: str


@dataclass(frozen=True)
class LocalRegistry:
    """A folder of the user with `<name>-<version>.crate`."""

    path: Path


@dataclass(frozen=True)
class Directory:
    """A folder of the user with crates in folders, as `cargo vendor` writes it."""

    path: Path


@dataclass(frozen=True)
class Brought:
    """A folder in the case's own sources."""


Place = Index | LocalRegistry | Directory | Brought


def certificates(environ: Mapping[str, str], config: Mapping[str, Any] | None = None) -> Path | None:
    """Return the file of certificates that this machine trusts, often including an organisation's own; None if there is none."""
    own = manifests.table(config or {}, "http").get("cainfo")
    named = (environ.get("CARGO_HTTP_CAINFO"), own, environ.get("SSL_CERT_FILE"), *_BUNDLES)
    return next((Path(name).resolve() for name in named if isinstance(name, str) and name and Path(name).is_file()), None)


def cargo_home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("CARGO_HOME") or Path(environ.get("HOME") or "/nonexistent") / ".cargo")


def _read(folder: Path, *names: str) -> tuple[Path | None, dict[str, Any]]:
    """Parse the first existing file of the user's, and return its path too. Raises `InfraError` for invalid TOML."""
    for path in (folder / name for name in names):
        if path.is_file() and os.access(path, os.R_OK):
            try:
                return path, manifests.parse(path.read_bytes())
            except ValueError as error:
                raise InfraError(f"cannot be read: {error}", where=str(path)) from None
    return None, {}


def normal(url: str) -> str:
    """Normalise the address of a registry for comparison. crates.io has two addresses."""
    url = url.removeprefix("registry+").rstrip("/").removesuffix(".git")
    crates_io = {CRATES_IO.removeprefix("registry+"), CRATES_IO_INDEX.rstrip("/")}
    return _CRATES_IO_NAME if url in crates_io else url


@dataclass(frozen=True)
class User:
    """The user's cargo configuration, read on first use."""

    environ: Mapping[str, str] = field(repr=False)

    @cached_property
    def config(self) -> dict[str, Any]:
        return _read(cargo_home(self.environ), "config.toml", "config")[1]

    @cached_property
    def registries(self) -> dict[str, str]:
        """Indexes of the named registries; an environment variable overrides the file."""
        found = {name: str(one["index"]) for name, one in _tables(self.config, "registries").items() if "index" in one}
        for variable, value in self.environ.items():
            if variable.startswith("CARGO_REGISTRIES_") and variable.endswith("_INDEX"):
                named = variable.removeprefix("CARGO_REGISTRIES_").removesuffix("_INDEX")
                names = [name for name in found if _variable(name) == named] or [named.lower()]
                found |= dict.fromkeys(names, value)
        return found

    def token(self, index: str) -> str | None:
        """Return the token for an index, and for no other address."""
        credentials = _read(cargo_home(self.environ), "credentials.toml", "credentials")[1]
        for name, known in self.registries.items():
            if normal(known) == normal(index):
                own = [_tables(table, "registries").get(name, {}).get("token") for table in (credentials, self.config)]
                for found in (self.environ.get(f"CARGO_REGISTRIES_{_variable(name)}_TOKEN"), *own):
                    if isinstance(found, str) and found:
                        return found
        return None

    def resolve(self, source: Source, case: Mapping[str, Any]) -> Place:
        """Resolve a registry's source to the place of its crates. `case`: the case's own configuration.

        A folder in the case has priority: nothing is fetched for it. Otherwise the user's entry for a name has priority over the
        case's. Raises `BuildError` if the replacement of a source does not exist.
        """
        mine, theirs = _tables(self.config, "source"), _tables(case, "source")
        indexes = {**_indexes(case), **self.registries}
        name = _name_of(source.index, theirs)
        if name and isinstance(_follow(name, theirs, indexes)[1], dict):
            return Brought()
        theirs = {key: value for key, value in theirs.items() if key not in self.registries}
        name = _name_of(source.index, mine) or _name_of(source.index, theirs)
        name, found = _follow(name, {**theirs, **mine}, indexes) if name else ("", source.index)
        if isinstance(found, str):
            return Index(CRATES_IO_INDEX if normal(found) == _CRATES_IO_NAME else found)
        if name not in mine:
            return Brought()
        above = cargo_home(self.environ).parent
        return Directory(above / found["directory"]) if "directory" in found else LocalRegistry(above / found["local-registry"])

    def mirror(self, url: str) -> str:
        """Return the address of the user's mirror of a git repository; the repository's own without a mirror."""
        mine = _tables(self.config, "source")
        for entry in mine.values():
            replacement = mine.get(str(entry.get("replace-with")), {})
            if normal(str(entry.get("git", ""))) == normal(url) and isinstance(replacement.get("git"), str):
                return str(replacement["git"])
        return url


def _follow(name: str, sources: Mapping[str, Mapping[str, Any]], indexes: Mapping[str, str]) -> tuple[str, str | dict[str, str]]:
    """Follow a source's replacements. Returns its last name, and an index or an entry that names a folder."""
    passed: list[str] = []
    while name not in passed:
        passed.append(name)
        entry = sources.get(name, {})
        replacement = entry.get("replace-with")
        if isinstance(replacement, str):
            if replacement not in sources and replacement in indexes:
                return replacement, indexes[replacement]
            if replacement not in sources:
                raise BuildError(f"the source {name} is replaced with {replacement}, which cargo's configuration does not have")
            name = replacement
            continue
        for key in ("directory", "local-registry"):
            if isinstance(entry.get(key), str):
                return name, {key: entry[key]}
        return name, str(entry.get("registry", CRATES_IO_INDEX))
    raise BuildError(f"the sources {', '.join(passed)} replace each other in cargo's configuration")


def _variable(name: str) -> str:
    return name.upper().replace("-", "_").replace(".", "_")


def _tables(config: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    return {key: value for key, value in manifests.table(config, name).items() if isinstance(value, dict)}


def _indexes(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the case's registries; entries without a network address are dropped."""
    found = {name: str(one.get("index", "")) for name, one in _tables(config, "registries").items()}
    return {name: index for name, index in found.items() if index.removeprefix("sparse+").startswith(("https://", "http://"))}


def _name_of(url: str, sources: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of a source in a configuration; empty if it has none. crates.io always has one."""
    for name, entry in sources.items():
        if isinstance(entry.get("registry"), str) and normal(entry["registry"]) == normal(url):
            return name
    return _CRATES_IO_NAME if normal(url) == _CRATES_IO_NAME and _CRATES_IO_NAME in sources else ""


# --- downloads ----------------------------------------------------------------------------------------------------------


class _MomentaryError(InfraError):
    """A failed download that may succeed on the next attempt."""


class Client:
    """Downloader for one registry, shared by threads. `git_config` reads the `config.json` of an index in a git repository."""

    def __init__(self, index: str, user: User, git_config: Any) -> None:
        import threading

        self.index = index
        self._user = user
        self._git_config = git_config
        self._lock = threading.Lock()
        self._known: tuple[str, bool] | None = None
        self._proxy = user.environ.get("CARGO_HTTP_PROXY") or manifests.table(user.config, "http").get("proxy")
        self._bundle = certificates(user.environ, user.config)

    def download(self, crate: Crate, target: Path) -> None:
        """Fetch a crate's file; the caller checks its digest. Raises `BuildError` if the registry has no such crate."""
        template, secret = self._about()
        url = _address(template, crate)
        try:
            self._get(url, secret, target, LARGEST)
        except FileNotFoundError:
            raise BuildError(f"its crates cannot be had: {self.index} has no {crate.title}") from None

    def _about(self) -> tuple[str, bool]:
        """Return the registry's address of files, and whether downloads need the token too."""
        with self._lock:
            if self._known is None:
                self._known = self._ask()
            return self._known

    def _ask(self) -> tuple[str, bool]:
        import io

        if not self.index.startswith("sparse+"):
            raw = self._git_config(self.index)
        else:
            out = io.BytesIO()
            try:
                self._get(f"{self.index.removeprefix('sparse+').rstrip('/')}/config.json", False, out, _CONFIG)
            except FileNotFoundError:
                raise InfraError("its crates could not be fetched: there is no registry", where=self.index) from None
            raw = out.getvalue()
        try:
            plain = parsing.from_json(raw)
            return str(plain["dl"]), bool(plain.get("auth-required", False))
        except (ValueError, KeyError, TypeError):
            raise InfraError("its crates could not be fetched: config.json is not that of a registry", where=self.index) from None

    def _get(self, url: str, secret: bool, target: Any, largest: int) -> None:
        """Fetch `url` into a path or a file. `secret`: send the token at once; else only if the server demands it."""
        retry_after_momentary(
            lambda: self._get_once(url, secret, target, largest),
            lambda error: isinstance(error, _MomentaryError),
            attempts=self._attempts(),
            first=0.5,
        )

    def _attempts(self) -> int:
        asked = self._user.environ.get("CARGO_NET_RETRY") or manifests.table(self._user.config, "net").get("retry")
        return int(str(asked)) + 1 if str(asked).isdecimal() else ATTEMPTS

    def _get_once(self, url: str, secret: bool, target: Any, largest: int) -> None:
        import requests
        import urllib3

        with requests.Session() as session:
            session.trust_env = False  # no passwords out of ~/.netrc
            try:
                response = self._answer(session, url, secret)
                with response:
                    _raise_for(response, self.index)
                    _save(response, target, largest)
            except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
                what = f"its crates could not be fetched: {reason(error)}"
                raise _MomentaryError(what, where=self.index, hint=_NETWORK) from None

    def _answer(self, session: Any, url: str, secret: bool) -> Any:
        """Follow redirections to the final response: never to less than HTTPS, and with the token only within one server."""
        token = self._user.token(self.index)
        first = url
        for _ in range(REDIRECTS):
            own = urllib.parse.urlsplit(url)[:2] == urllib.parse.urlsplit(first)[:2]
            headers = {"Accept-Encoding": "identity", "User-Agent": "qcase"}
            if secret and own and token:
                headers["Authorization"] = token
            response = session.get(
                url,
                headers=headers,
                stream=True,
                timeout=PATIENCE,
                allow_redirects=False,
                proxies=self._proxies(url),
                verify=str(self._bundle) if self._bundle else True,
            )
            if response.status_code == 401 and own and token and not secret:
                secret = True
            elif response.is_redirect:
                url = urllib.parse.urljoin(url, response.headers["Location"])
                _check_redirection(first, url, self.index)
            else:
                return response
            response.close()
        raise InfraError(f"its crates could not be fetched: {first} is redirected more than {REDIRECTS} times", where=self.index)

    def _proxies(self, url: str) -> dict[str, str]:
        import requests

        if isinstance(self._proxy, str) and self._proxy:
            proxy = self._proxy if "://" in self._proxy else f"http://{self._proxy}"
            return {"http": proxy, "https": proxy}
        return dict(requests.utils.get_environ_proxies(url, no_proxy=None))


def _check_redirection(first: str, url: str, index: str) -> None:
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme != "https" and (scheme != "http" or first.startswith("https:")):
        raise InfraError(f"its crates could not be fetched: {first} is redirected to {url}", where=index)


def _address(template: str, crate: Crate) -> str:
    """Return the address of a crate's file, as https://doc.rust-lang.org/cargo/reference/registry-index.html defines it."""
    name = crate.name
    lower = name.lower()

    def prefix(text: str) -> str:
        return str(len(text)) if len(text) < 3 else f"3/{text[0]}" if len(text) == 3 else f"{text[:2]}/{text[2:4]}"

    values = {
        "{crate}": name,
        "{version}": urllib.parse.quote(crate.version, safe="+"),
        "{prefix}": prefix(name),
        "{lowerprefix}": prefix(lower),
        "{sha256-checksum}": crate.checksum,
    }
    if not any(marker in template for marker in values):
        template = f"{template.rstrip('/')}/{{crate}}/{{version}}/download"
    for marker, value in values.items():
        template = template.replace(marker, value)
    if urllib.parse.urlsplit(template).scheme not in ("http", "https"):
        raise InfraError(f"its crates could not be fetched: {template} is no address of the web", where=crate.source.index)
    return template


def _raise_for(response: Any, index: str) -> None:
    status = response.status_code
    what = f"its crates could not be fetched: {response.url} says {status} {response.reason}"
    if status in (404, 410, 451):
        raise FileNotFoundError(what)
    if status in (401, 403):
        hint = (
            "a token is read from credentials.toml of CARGO_HOME or CARGO_REGISTRIES_<NAME>_TOKEN, and sent to the index that"
            " config.toml names there; credential providers are not run"
        )
        raise InfraError(what, where=index, hint=hint)
    if status != 200:
        raise (_MomentaryError if status >= 500 or status == 429 else InfraError)(what, where=index, hint=_NETWORK)


def _save(response: Any, target: Any, largest: int) -> None:
    size = 0
    out = target.open("wb") if isinstance(target, Path) else target
    try:
        out.seek(0)
        out.truncate()
        for chunk in response.raw.stream(1 << 20, decode_content=False):
            size += len(chunk)
            if size > largest:
                raise InfraError(f"its crates could not be fetched: {response.url} is larger than {largest >> 20} MiB")
            out.write(chunk)
    finally:
        if isinstance(target, Path):
            out.close()
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and size < int(length):
        raise ConnectionError(f"the connection broke off after {size} of {length} bytes")


def reason(error: BaseException) -> str:
    """Return the innermost message of a library's error, which the system gave."""
    inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    if isinstance(inner, BaseException):
        return reason(inner)
    return f"{error}".strip() or type(error).__name__
