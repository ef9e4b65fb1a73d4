"""Services of the host for a case: axbuild's `[host_http_server]`, and `[[qcase.services]]`.

kind = "http"    a body, `body_size` times a byte, or the files of a folder
kind = "echo"    every connection gets back what it sends
kind = "tftp"    the files of a folder, from QEMU's own TFTP server
kind = "drop"    the guest sends files with PUT or POST; they are kept beside the console's log
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, Strict

from qcase import parsing
from qcase.config.fields import Model, Network, PathString, Size, error, parse_size

if TYPE_CHECKING:
    from qcase.config.case_file import Wrong

LARGEST_BODY: Final = 1 << 30
LARGEST_DROP: Final = 1 << 30
_DEFAULT_BODY = "ArceOS local HTTP fixture\n"  # axbuild's
_DEFAULT_BIND = "127.0.0.1"
_DEFAULT_BYTE = 97

Kind = Literal["http", "echo", "tftp", "drop"]
Port = Annotated[int, Field(ge=1, le=65535)]
Byte = Annotated[int, Field(ge=0, le=255)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Service:
    """One service of the host. `port`: in the guest, 0 for tftp. `body`: None where `size` bytes or a folder are served.

    `folder`: relative to the workspace. `limit`: bytes of all files that a guest may send.
    """

    kind: Kind
    port: int = 0
    body: str | None = None
    size: int | None = None
    byte: int = _DEFAULT_BYTE
    folder: str | None = None
    limit: int = 0

    @property
    def text(self) -> str:
        """The service as one line of text, for `CaseConfig`."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Service:
        return cls(**parsing.from_json(text))


class HostHttpServer(Model):
    """Table `[host_http_server]`. `bind` is read and not used: qcase listens on no port of the host."""

    bind: str = _DEFAULT_BIND
    port: Port | None = None
    body: str | None = None
    body_size: Count | None = None
    body_byte: Byte = _DEFAULT_BYTE
    dir: PathString | None = None


class ServiceTable(Model):
    """One table of `[[qcase.services]]`."""

    kind: Kind
    port: Port | None = None
    body: str | None = None
    body_size: Count | None = None
    body_byte: Byte | None = None
    folder: PathString | None = None
    limit: Size | None = None


def _check_tables(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not all(isinstance(item, dict | ServiceTable) for item in value):
        raise error("must be tables", 'write [[qcase.services]], and below it kind = "http"')
    return value


ServiceTables = Annotated[tuple[ServiceTable, ...], Strict(False), BeforeValidator(_check_tables)]

_NEEDS: Final = {"http": ("port",), "echo": ("port",), "tftp": ("folder",), "drop": ("port",)}
_TAKES: Final = {
    "http": ("port", "body", "body_size", "body_byte", "folder"),
    "echo": ("port",),
    "tftp": ("folder",),
    "drop": ("port", "limit"),
}


def checked(host: HostHttpServer, tables: Iterable[ServiceTable], network: Network | None, wrong: Wrong) -> tuple[str, ...]:
    """Return the services of a case, each as `Service.text`."""
    found: list[Service] = []
    if host != HostHttpServer():
        found += _of_axbuild(host, wrong)
    ports = {service.port: "host_http_server" for service in found}
    for at, table in enumerate(tables):
        loc = ("qcase", "services", at)
        given = table.model_dump(exclude_none=True).keys() - {"kind"}
        for key in sorted(given - set(_TAKES[table.kind])):
            wrong((*loc, key), f'means nothing for kind = "{table.kind}"', f"it takes {', '.join(_TAKES[table.kind])}")
        for key in _NEEDS[table.kind]:
            if key not in given:
                wrong(loc, f'needs {key} for kind = "{table.kind}"')
        if table.kind == "http" and len(given & {"body", "body_size", "folder"}) != 1:
            wrong(loc, "needs one of body, body_size and folder")
        if "body_byte" in given and "body_size" not in given:
            wrong((*loc, "body_byte"), "needs body_size")
        if table.port is not None and table.port in ports:
            wrong((*loc, "port"), f"{table.port} is the port of {ports[table.port]} already", "give each service its own")
        if table.kind == "tftp" and any(service.kind == "tftp" for service in found):
            wrong(loc, "a machine has one TFTP server")
        if table.port is not None:
            ports.setdefault(table.port, f"qcase.services[{at}]")
        limit = parse_size(table.limit or "64 MiB")
        if limit > LARGEST_DROP:
            wrong((*loc, "limit"), "must be 1 GiB or less")
        _check_size(table.body_size, (*loc, "body_size"), wrong)
        byte = _DEFAULT_BYTE if table.body_byte is None else table.body_byte
        found.append(Service(table.kind, table.port or 0, table.body, table.body_size, byte, table.folder, limit))
    if found and network == "none":
        wrong(("qcase", "network"), '"none" leaves no way to the services of the host', '"restricted" does')
    return tuple(service.text for service in found)


def _of_axbuild(host: HostHttpServer, wrong: Wrong) -> list[Service]:
    """Return the server of `[host_http_server]`: a folder comes before a size, and that before a body, as axbuild has it."""
    if host.port is None:
        wrong(("host_http_server",), "needs port: the one that the guest connects to, at 10.0.2.2")
        return []
    _check_size(host.body_size, ("host_http_server", "body_size"), wrong)
    if host.dir is not None:
        return [Service("http", host.port, folder=host.dir)]
    if host.body_size is not None:
        return [Service("http", host.port, size=host.body_size, byte=host.body_byte)]
    return [Service("http", host.port, body=_DEFAULT_BODY if host.body is None else host.body)]


def _check_size(size: int | None, loc: tuple[str | int, ...], wrong: Wrong) -> None:
    if size is not None and size > LARGEST_BODY:
        wrong(loc, f"must be {LARGEST_BODY} or less", "a guest reads about 1 MB a second")
