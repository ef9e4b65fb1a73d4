"""Services of the host by their real relay: what a guest gets, and what a hostile one does not."""

from __future__ import annotations

import io
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qcase.config.services_table import Service
from qcase.errors import ConfigError, InfraError
from qcase.host.trees import Tree
from qcase.vm import services
from qcase.vm.services import Forwards, running

GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"


def relay(command: str, connection: socket.socket) -> None:
    """Start a program for a connection as QEMU does."""
    fd = connection.fileno()
    subprocess.run(shlex.split(command), stdin=fd, stdout=fd, stderr=fd, check=True)


class Host:
    """Running services. Connects as QEMU does: a socket as the standard input of the program."""

    def __init__(self, forwards: Forwards, drops: Path, log: io.BytesIO) -> None:
        self.forwards, self.drops, self.log = forwards, drops, log

    def connect(self, port: int) -> socket.socket:
        guest, theirs = socket.socketpair()
        guest.settimeout(60)
        with theirs:
            relay(dict(self.forwards.commands)[port], theirs)
        return guest

    def ask(self, port: int, request: bytes) -> bytes:
        """Everything that is answered to a request, up to the end of the connection."""
        with self.connect(port) as guest:
            guest.sendall(request)
            pieces = []
            while data := guest.recv(1 << 16):
                pieces.append(data)
        return b"".join(pieces)

    def status(self, port: int, request: bytes) -> int:
        return int(self.ask(port, request).split(b" ", 2)[1])


@contextmanager
def host(tmp_path: Path, *wanted: Service) -> Iterator[Host]:
    drops, log = tmp_path / "logs", io.BytesIO()
    drops.mkdir(exist_ok=True)
    with running(wanted, tmp_path, Tree(drops), log) as forwards:
        yield Host(forwards, drops, log)


def test_a_body_answers_every_request(tmp_path: Path) -> None:
    with host(tmp_path, Service("http", 80, body="gr\u00fc\u00dfe\n"), Service("http", 81, size=200_000, byte=98)) as it:
        for method in (b"GET", b"POST", b"DELETE"):
            head, _, body = it.ask(80, method + b" /any?x HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
            assert body == "gr\u00fc\u00dfe\n".encode()
            assert b"Content-Length: 8" in head
            assert b"Connection: close" in head
        assert it.ask(80, b"HEAD / HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")
        assert it.ask(81, GET % b"/").endswith(b"\r\n\r\n" + b"b" * 200_000)
        assert b"Error code: 400" in it.ask(80, b"\0\xff nonsense\r\n\r\n"), "an answer of HTTP 0.9, without a head"
        assert it.status(80, b"BREW / HTTP/1.1\r\n\r\n") == 501
        assert it.status(80, b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n") == 414
        with it.connect(80) as guest:
            guest.shutdown(socket.SHUT_WR)
            assert guest.recv(1) == b""
    assert b"80: POST /any?x HTTP/1.0 -> 200\n" in it.log.getvalue()
    assert all(32 <= byte < 127 or byte == 10 for byte in it.log.getvalue())


def test_a_folder_gives_its_files_and_nothing_else(tmp_path: Path) -> None:
    served = tmp_path / "served"
    (served / "below").mkdir(parents=True)
    (served / "below" / "a b").write_text("found")
    (served / "<x>").write_text("")
    (served / "out").symlink_to("/etc/hostname")
    (served / "up").symlink_to("..")
    os.mkfifo(served / "fifo")
    (tmp_path / "secret").write_text("secret")
    with host(tmp_path, Service("http", 80, folder="served")) as it:
        assert it.ask(80, GET % b"/below/a%20b").endswith(b"\r\n\r\nfound")
        index = it.ask(80, GET % b"/").decode()
        assert '<a href="below/">below/</a>' in index
        assert '<a href="%3Cx%3E">&lt;x&gt;</a>' in index
        assert "out" not in index
        assert "fifo" not in index
        paths = (
            b"/out",
            b"/fifo",
            b"/up/secret",
            b"/../secret",
            b"/below/../../secret",
            b"/..%2fsecret",
            b"/%2e%2e/secret",
            b"/%00",
            b"/x",
        )
        for path in (*paths, b"//etc/passwd", b"/" + b"a/" * 400):
            assert it.status(80, GET % path) == 404, path
        assert it.status(80, b"PUT /x HTTP/1.1\r\nContent-Length: 1\r\n\r\nx") == 405


def put(name: bytes, data: bytes, length: int | None = None) -> bytes:
    return b"PUT /%s HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (name, len(data) if length is None else length, data)


def test_files_of_a_guest_are_kept_within_bounds(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("as it was")
    with host(tmp_path, Service("drop", 80, limit=100)) as it:
        (it.drops / "dropped-linked").symlink_to(outside)
        (it.drops / "dropped-folder").mkdir()
        assert it.status(80, put(b"a.txt", b"one")) == 201
        assert it.status(80, put(b"a.txt", b"two")) == 201
        assert it.status(80, put(b"linked", b"new")) == 201
        assert it.status(80, put(b"folder", b"x")) == 507
        for name in (b"", b"../x", b"a/b", b".hidden", b"%2e%2e", b"x" * 101, b"a.attempt-1", b"a?b"):
            assert it.status(80, put(name, b"x")) == 400, name
        assert it.status(80, b"PUT /x HTTP/1.1\r\n\r\n") == 411
        assert it.status(80, b"PUT /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n") == 411
        assert it.status(80, b"PUT /x HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n") == 411
        assert it.status(80, put(b"large", b"x" * 101)) == 413
        assert it.status(80, GET % b"/a.txt") == 405
        with it.connect(80) as guest:  # cut off in the middle
            guest.sendall(put(b"half", b"x" * 10, 20))
            guest.shutdown(socket.SHUT_WR)
            assert guest.recv(100) == b""
        assert it.status(80, put(b"more", b"x" * 90)) == 413, "all files together"
        assert sorted(path.name for path in it.drops.iterdir()) == ["dropped-a.txt", "dropped-folder", "dropped-linked"]
        assert (it.drops / "dropped-a.txt").read_bytes() == b"two"
    assert outside.read_text() == "as it was"


def test_an_echo_and_many_connections_at_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        it = stack.enter_context(stopping := ExitStack()).enter_context(host(tmp_path, Service("echo", 7)))
        several = [stack.enter_context(it.connect(7)) for _ in range(services.AT_ONCE)]
        for number, guest in enumerate(several):
            guest.sendall(b"%d" % number)
        for number, guest in enumerate(several):
            assert guest.recv(100) == b"%d" % number
        with it.connect(7) as guest:
            assert guest.recv(1) == b"", "one too many is closed"
        several[0].shutdown(socket.SHUT_WR)
        assert several[0].recv(1) == b""
        command = dict(it.forwards.commands)[7]
        stopping.close()
        assert several[1].recv(1) == b"", "the end of the case closes all"
    guest, theirs = socket.socketpair()
    with guest:
        with theirs:
            relay(command, theirs)
        assert guest.recv(1) == b"", "nobody is there any more"


def test_two_cases_with_one_port_do_not_meet(tmp_path: Path) -> None:
    with host(tmp_path, Service("http", 80, body="one")) as one, host(tmp_path, Service("http", 80, body="two")) as two:
        assert one.ask(80, GET % b"/").endswith(b"one")
        assert two.ask(80, GET % b"/").endswith(b"two")


def test_tftp_has_a_copy_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / "served"
    (served / "below").mkdir(parents=True)
    (served / "below" / "boot").write_text("x")
    (served / "out").symlink_to("/etc/hostname")
    with host(tmp_path, Service("tftp", folder="served")) as it:
        assert it.forwards.tftp is not None
        copy = Path(it.forwards.tftp)
        assert [str(path.relative_to(copy)) for path in sorted(copy.rglob("*"))] == ["below", "below/boot"]
    assert not copy.exists()
    monkeypatch.setattr(services, "TFTP_LIMIT", 0)
    with (
        pytest.raises(InfraError, match="the folder served has more than 0 MiB"),
        host(tmp_path, Service("tftp", folder="served")),
    ):
        pass


def test_a_missing_folder_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("missing", "file"):
        with pytest.raises(ConfigError, match=f"there is no folder '{name}'"):
            services.check_folders([Service("http", 80, folder=name)], tmp_path, "qemu-x86_64.toml")
