"""HTTP for a guest: a body, the files of a folder, or a place for its files. One request for each connection."""

from __future__ import annotations

import contextlib
import html
import os
import re
import socket
import stat
import urllib.parse
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from qcase.config.services_table import Service
from qcase.errors import QcaseError
from qcase.host.holes import write_all
from qcase.host.trees import Tree
from qcase.vm.services import DROPPED, Log, Room

_CHUNK = 1 << 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def serve(connection: socket.socket, service: Service, workspace: Path, room: Room | None, log: Log) -> None:
    """Answer one request. Raises `OSError` if the connection breaks."""

    class Handler(_Handler):
        def setup(self) -> None:
            self.service, self.workspace, self.room, self.log = service, workspace, room, log
            super().setup()

    Handler(connection, ("guest", 0), None)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "qcase"
    sys_version = ""
    service: Service
    workspace: Path
    room: Room | None
    log: Log

    def handle(self) -> None:
        self.close_connection = True
        self.handle_one_request()

    def _answer(self) -> None:
        self.close_connection = True
        if self.room is not None:
            self._take(self.room)
        elif self.service.folder is not None:
            self._folder(self.service.folder)
        elif self.service.body is not None:
            body = self.service.body.encode()
            self._head(200, len(body), "text/plain; charset=utf-8")
            self._send(body)
        else:
            self._generated(self.service.size or 0, bytes([self.service.byte]))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = _answer  # noqa: N815 - names of http.server

    def _head(self, status: int, length: int, kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()

    def _send(self, data: bytes) -> None:
        if self.command != "HEAD":
            self.wfile.write(data)

    def _say(self, status: int, text: str) -> None:
        data = f"{text}\n".encode()
        self._head(status, len(data), "text/plain; charset=utf-8")
        self._send(data)

    def _generated(self, size: int, byte: bytes) -> None:
        self._head(200, size)
        chunk = byte * _CHUNK
        for at in range(0, size, _CHUNK):
            self._send(chunk[: size - at])

    # --- a folder -----------------------------------------------------------------------------------------------------------

    def _folder(self, folder: str) -> None:
        if self.command not in ("GET", "HEAD"):
            self._say(405, "GET or HEAD")
            return
        asked = urllib.parse.unquote(self.path.partition("?")[0].partition("#")[0], errors="surrogateescape")
        parts = [part for part in asked.split("/") if part not in ("", ".")]
        place = Tree(self.workspace / folder, what=f"the folder {folder}")
        try:
            place = place / "/".join(parts) if parts else place
            about = place.facts()
            if (about is not None and stat.S_ISDIR(about.st_mode)) or not parts:
                self._index(place)
            else:
                self._file(place)
        except ConnectionError:
            raise
        except (QcaseError, OSError):
            self._say(404, "not found")

    def _index(self, place: Tree) -> None:
        names = [
            f"{name}/" if stat.S_ISDIR(about.st_mode) else name
            for name, about in place.listing()
            if stat.S_ISDIR(about.st_mode) or stat.S_ISREG(about.st_mode)
        ]
        links = [f'<a href="{urllib.parse.quote(name, errors="surrogateescape")}">{html.escape(name)}</a>' for name in names]
        text = "\n".join(["<!DOCTYPE html><html><body>", *links, "</body></html>", ""])
        data = text.encode("utf-8", "replace")
        self._head(200, len(data), "text/html; charset=utf-8")
        self._send(data)

    def _file(self, place: Tree) -> None:
        with place.opened() as fd:
            left = os.fstat(fd).st_size
            self._head(200, left)
            while left > 0 and self.command != "HEAD" and (data := os.read(fd, min(left, _CHUNK))):
                self.wfile.write(data)
                left -= len(data)

    # --- files of the guest -------------------------------------------------------------------------------------------------

    def _take(self, room: Room) -> None:
        if self.command not in ("PUT", "POST"):
            self._say(405, "PUT or POST")
            return
        name = self.path.removeprefix("/")
        if not _NAME.fullmatch(name) or re.search(r"\.attempt-\d+$", name):
            self._say(400, "the name of a file is at most 100 letters, digits, '.', '_' and '-'")
            return
        length = self.headers.get("Content-Length") or ""
        if not re.fullmatch(r"\d{1,15}", length) or "Transfer-Encoding" in self.headers:
            self._say(411, "the request needs a Content-Length")
            return
        if not room.take(int(length)):
            self._say(413, "too large, or too many files")
            return
        place = room.folder / f"{DROPPED}{name}"
        staged = room.folder / f".{DROPPED}{os.urandom(6).hex()}"
        try:
            with staged.created() as fd:
                left = int(length)
                while left > 0:
                    data = self.rfile.read(min(left, _CHUNK))
                    if not data:
                        self.log.say(f"{self.service.port}: {name} was cut off, and is not kept")
                        return
                    write_all(fd, data)
                    left -= len(data)
            staged.rename(place)
        except ConnectionError:
            raise
        except (QcaseError, OSError) as error:
            self._say(507, f"cannot be written: {error}")
            return
        finally:
            with contextlib.suppress(OSError, QcaseError):
                staged.unlink(missing_ok=True)
        self._say(201, "kept")

    # --- the log ------------------------------------------------------------------------------------------------------------

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002 - http.server's
        status = code.value if hasattr(code, "value") else code
        self.log.say(f"{self.service.port}: {self.requestline} -> {status}")

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name of http.server
        self.log.say(f"{self.service.port}: {format % arguments}")
