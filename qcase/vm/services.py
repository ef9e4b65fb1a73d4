"""Services of the host for the time of a case: HTTP, echo, TFTP, and a place where the guest leaves files.

    guest ── 10.0.2.2:PORT ──► QEMU (guestfwd) ── starts ──► relay ── descriptor ──► services (a socket in a private folder)
                                                                                          │ a thread for each connection
                                                                                          ▼
                                                                                     http · echo · drop

No port of the host is opened, so cases with the same ports run side by side, and nobody else reaches a service. `restrict=on`
stays: QEMU forwards these ports alone. QEMU refuses to forward the address of its own host, 10.0.2.2; `network.forward` gives its
host another address, where the TFTP server is, too. It still answers for 10.0.2.2 as gateway.

Nothing outlives a case: the threads are qcase's own, the folder is the guardian's to remove, and a relay carries the run's mark.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from qcase.config.services_table import Service
from qcase.errors import ConfigError, InfraError, Problem
from qcase.host import process
from qcase.host.trees import Tree

DROPPED = "dropped-"  # the beginning of the names of files that a guest sent, among the case's logs
AT_ONCE = 64  # connections; a further one is closed
TFTP_LIMIT = 256 << 20  # bytes of a folder that is served by TFTP
_LOG_LIMIT = 1 << 20
_PATIENCE = 300.0  # seconds without a byte; an emulated guest on a busy machine is slow


@dataclass(frozen=True)
class Forwards:
    """The services as QEMU's arguments have them. `commands`: the program for connections to a port; `tftp`: a folder."""

    commands: tuple[tuple[int, str], ...] = ()
    tftp: str | None = None

    def __bool__(self) -> bool:
        return bool(self.commands) or self.tftp is not None


NONE = Forwards()


def planned(services: Sequence[Service]) -> Forwards:
    """Return forwards to services that do not run: their connections are closed."""
    ports = [(service.port, "false") for service in services if service.kind != "tftp"]
    folders = [service.folder for service in services if service.kind == "tftp"]
    return Forwards(tuple(ports), folders[0] if folders else None)


@dataclass
class Log:
    """Log of the services, a line for each request. Its size is limited, and its text is printable ASCII."""

    file: IO[bytes]
    _left: int = _LOG_LIMIT
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, line: str) -> None:
        data = line.encode("ascii", "backslashreplace").translate(_INERT)[:1000] + b"\n"
        with self._lock:
            if len(data) <= self._left:
                self._left -= len(data)
                with contextlib.suppress(OSError, ValueError):  # a full disk shows elsewhere; closed at the end of the case
                    self.file.write(data)


_INERT = bytes(byte if 32 <= byte < 127 else 63 for byte in range(256))


def check_folders(services: Sequence[Service], workspace: Path, file: str) -> None:
    """Raise `ConfigError` for a folder that is missing. `file`: the case's file, for the message."""
    problems = [
        Problem(f"there is no folder {service.folder!r}", file, key="folder", hint=f"looked for {workspace / service.folder}")
        for service in services
        if service.folder is not None and not (workspace / service.folder).is_dir()
    ]
    if problems:
        raise ConfigError(problems)


@contextmanager
def running(services: Sequence[Service], workspace: Path, drops: Tree, log: IO[bytes]) -> Iterator[Forwards]:
    """Run the services of a case. At the end of the `with` all connections are closed.

    `drops`: the folder for files of the guest. Raises `InfraError` if they cannot be started.
    """
    from qcase.vm import relay

    if not services:
        yield NONE
        return
    with ExitStack() as stack:
        folder = stack.enter_context(process.temporary_folder("qcase-services-"))
        tftp = None
        for service in services:
            if service.kind == "tftp" and service.folder is not None:
                tftp = folder / "tftp"
                _copy(Tree(workspace / service.folder, what=f"the folder {service.folder}"), tftp)
        server = _Server(services, workspace, drops, Log(log))
        stack.enter_context(server.listening(folder))
        program = [sys.executable, "-I", "-S", str(Path(relay.__file__)), str(folder)]
        ports = [(service.port, shlex.join([*program, str(service.port)])) for service in services if service.kind != "tftp"]
        yield Forwards(tuple(ports), None if tftp is None else str(tftp))


def _copy(source: Tree, target: Path) -> None:
    """Copy the regular files of a folder, since QEMU's TFTP server follows links. Raises `InfraError` for a folder too large."""
    kept = Tree(target)
    target.mkdir()
    left = TFTP_LIMIT
    for path, about in source.walk():
        place = source / path
        if place.is_dir():
            (kept / path).mkdir(exist_ok=True)
        elif place.is_file():
            left -= about.st_size
            if left < 0:
                raise InfraError(f"{source.what} has more than {TFTP_LIMIT >> 20} MiB", hint="TFTP is for small files")
            with place.opened() as fd:
                (kept / path).copy_in(fd)


class _Server:
    """Takes connections from relays, and has each one served in a thread."""

    def __init__(self, services: Sequence[Service], workspace: Path, drops: Tree, log: Log) -> None:
        self._services = {service.port: service for service in services if service.kind != "tftp"}
        self._workspace = workspace
        self._log = log
        self._room = {port: _room(service, drops) for port, service in self._services.items()}
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopped = False

    @contextmanager
    def listening(self, folder: Path) -> Iterator[None]:
        from qcase.vm import relay

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                listener.bind(f"/proc/self/fd/{fd}/{relay.NAME}")
            except OSError as error:
                raise InfraError(f"the services of the case cannot listen: {error.strerror}", where=str(folder)) from None
            finally:
                os.close(fd)
            listener.listen(AT_ONCE)
            thread = threading.Thread(target=self._accept, args=(listener,), name="qcase-services", daemon=True)
            thread.start()
            try:
                yield
            finally:
                with self._lock:
                    self._stopped = True
                    still_open = [*self._open]
                for connection in (listener, *still_open):
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                thread.join(5.0)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                came, _ = listener.accept()
            except OSError:
                if self._stopped:
                    return
                threading.Event().wait(0.1)  # too many open files: others may be closed meanwhile
                continue
            with came:
                came.settimeout(10.0)
                with contextlib.suppress(OSError, ValueError):
                    data, fds, _, _ = socket.recv_fds(came, 16, 4)
                    for fd in fds[1:]:
                        os.close(fd)
                    if fds:
                        self._begin(int(data), socket.socket(fileno=fds[0]))

    def _begin(self, port: int, connection: socket.socket) -> None:
        service = self._services.get(port)
        with self._lock:
            full = len(self._open) >= AT_ONCE
            if service is None or full or self._stopped:
                connection.close()
            else:
                self._open.add(connection)
        if service is None or full:
            self._log.say(f"{port}: refused: {AT_ONCE} connections are open" if full else f"{port}: refused")
            return
        threading.Thread(target=self._serve, args=(service, connection), name="qcase-service", daemon=True).start()

    def _serve(self, service: Service, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                connection.settimeout(_PATIENCE)
                if service.kind == "echo":
                    _echo(connection, self._log, service.port)
                else:
                    from qcase.vm.http_service import serve

                    serve(connection, service, self._workspace, self._room[service.port], self._log)
                _close(connection)
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


@dataclass
class Room:
    """The place for files that a guest sends. `left`: bytes and `names`: files that it may still send."""

    folder: Tree
    left: int
    names: int = 1000
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, size: int) -> bool:
        """Take room for a file. Tells whether there was enough."""
        with self.lock:
            if size > self.left or self.names < 1:
                return False
            self.left -= size
            self.names -= 1
            return True


def _room(service: Service, drops: Tree) -> Room | None:
    return Room(drops, service.limit) if service.kind == "drop" else None


def _echo(connection: socket.socket, log: Log, port: int) -> None:
    count = 0
    while data := connection.recv(1 << 16):
        connection.sendall(data)
        count += len(data)
    log.say(f"{port}: echo of {count} bytes")


def _close(connection: socket.socket) -> None:
    """End the output, and read what still comes: closing a socket with unread data would cut off what was sent last."""
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(2.0)
    for _ in range(64):
        if not connection.recv(1 << 14):
            return
