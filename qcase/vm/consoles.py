"""Further consoles of a machine, beside that on QEMU's standard streams: one unnamed socket for each chardev.

`-chardev null,id=NAME`  on the command line that reports show; here it becomes the socket that QEMU inherits
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Self

_READ = 1 << 18


def placeholder(name: str) -> list[str]:
    """Return the arguments of a console that nobody reads."""
    return ["-chardev", f"null,id={name}"]


class Consoles:
    """Our ends of the sockets. `theirs`: descriptors for QEMU, closed by `started`."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._stack = ExitStack()
        self._ours: dict[str, socket.socket] = {}
        self._theirs: dict[str, socket.socket] = {}
        self._unsent: dict[str, bytearray] = {}
        self._heard: list[tuple[str, bytes]] = []
        for name in names:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            self._ours[name] = self._stack.enter_context(ours)
            self._theirs[name] = self._stack.enter_context(theirs)

    @property
    def theirs(self) -> list[int]:
        return [end.fileno() for end in self._theirs.values()]

    @property
    def sockets(self) -> list[socket.socket]:
        """Return the sockets that are open, to select on."""
        return list(self._ours.values())

    def arguments(self, argv: Sequence[str]) -> list[str]:
        """Return QEMU's arguments with these sockets in place of the placeholders."""
        places = {placeholder(name)[1]: f"socket,id={name},fd={end.fileno()}" for name, end in self._theirs.items()}
        return [places.get(word, word) if before == "-chardev" else word for before, word in zip(["", *argv], argv, strict=False)]

    def started(self) -> None:
        """Close QEMU's ends, which it has inherited."""
        for end in self._theirs.values():
            end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def type(self, name: str, data: bytes) -> None:
        """Send keys to a console; what it does not take now goes with the next ones."""
        unsent = self._unsent.setdefault(name, bytearray())
        unsent += data
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while unsent and name in self._ours:
                del unsent[: self._ours[name].send(unsent)]

    def read(self, ready: socket.socket) -> bool:
        """Read a socket. Return whether it is still open; `heard` returns what came."""
        name = next(name for name, end in self._ours.items() if end is ready)
        try:
            data = ready.recv(_READ)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if data:
            self._heard.append((name, data))
        else:
            del self._ours[name]
        return bool(data)

    def heard(self) -> Iterator[tuple[str, bytes]]:
        """Yield what came since the last call, with the console's name, in the order in which it came."""
        while self._heard:
            yield self._heard.pop(0)

    def rest(self) -> Iterator[tuple[str, bytes]]:
        """Yield what has come and was not read, behind what was: QEMU stands still, or has ended."""
        for end in self.sockets:
            count = -1
            while count != len(self._heard):
                count = len(self._heard)
                if not self.read(end):
                    break
        yield from self.heard()
