"""Hands one connection of a guest over to qcase: a program that QEMU starts for each connection to a service of the host.

    python -I -S relay.py FOLDER PORT

QEMU's `guestfwd` gives it the connection as standard input. It sends the descriptor to the socket `FOLDER/services`, with the
port that the guest asked for, and ends; qcase then has the connection itself. If qcase is gone, the connection is closed. It
writes nothing: standard output and error are the connection, too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys

NAME = "services"


def main() -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as to:
        os.chdir(sys.argv[1])  # a socket's path must be short, and the folder's may be long
        to.connect(NAME)
        socket.send_fds(to, [sys.argv[2].encode()], [0])


if __name__ == "__main__":
    main()
