"""The guardian of one run: clears away what a qcase leaves behind that was killed with KILL.

It runs as a process of its own, `python -I -S guardian.py RUN_ID`, with the standard library alone, and blocks on its standard
input, whose other end only qcase holds: its end means that qcase is gone. A qcase that has cleared away itself kills it. Lines
that it takes:

    engine SOCKET     containers with the label `qcase.run=RUN_ID` on the engine behind this unix socket are to be removed
    dir PATH          a folder to be removed
    drop PATH         … that has been removed already
    terminal TTY A    a terminal that was made raw, and the attributes that it had
    terminal-restored it has them again

Then it kills each process whose environment says `QCASE_RUN_ID=RUN_ID`, until there is none, and removes containers and folders.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

LABEL = "qcase.run"
PATIENCE = 20.0  # seconds; a container that was being created when qcase died appears a moment later


def _request(engine: str, method: str, path: str) -> bytes:
    # Most guardians have nothing to say to an engine, and qcase itself takes a function from here: they need no HTTP.
    import http.client
    import socket

    class UnixConnection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(engine)

    connection = UnixConnection("localhost", timeout=PATIENCE)
    try:
        connection.request(method, path)
        return connection.getresponse().read()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from None
    finally:
        connection.close()


def marked_processes(run_id: str) -> list[int]:
    """Process ids, other than our own, whose environment carries the mark of this run."""
    mark = f"QCASE_RUN_ID={run_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue  # ended meanwhile, or not ours
    return found


def kill_processes(run_id: str) -> int:
    killed = 0
    for _ in range(200):
        pids = marked_processes(run_id)
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        time.sleep(0.02)
    return killed


def remove_containers(engine: str, run_id: str) -> int:
    """Remove the containers of this run, running or not. Returns how many there were; one where the engine gave no answer."""
    import json
    import urllib.parse

    filters = urllib.parse.quote(json.dumps({"label": [f"{LABEL}={run_id}"]}))
    try:
        listing = json.loads(_request(engine, "GET", f"/containers/json?all=true&filters={filters}"))
        for container in listing:
            _request(engine, "DELETE", f"/containers/{container['Id']}?force=true&v=true")
    except (FileNotFoundError, ConnectionRefusedError):
        return 0  # the engine is gone
    except (OSError, ValueError, KeyError, TypeError):
        return 1
    return len(listing)


def restore_terminal(terminal: str) -> None:
    """Give a terminal back the attributes that it had: six numbers, then the codes of its special characters."""
    path, _, packed = terminal.rpartition(" ")
    if not path:
        return
    import termios

    numbers = [int(number) for number in packed.split(",")]
    codes: Any = [bytes([code]) for code in numbers[6:]]
    if not numbers[3] & termios.ICANON:
        codes[termios.VMIN], codes[termios.VTIME] = numbers[6 + termios.VMIN], numbers[6 + termios.VTIME]
    with contextlib.suppress(OSError, termios.error):
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            termios.tcsetattr(fd, termios.TCSANOW, [*numbers[:6], codes])
        finally:
            os.close(fd)


def main() -> None:
    run_id = sys.argv[1]
    # Ctrl-C on the terminal is for qcase; we are told by the end of our input.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    engines: set[str] = set()
    folders: set[str] = set()
    terminal = ""
    for raw in sys.stdin.buffer:
        word, _, rest = raw.decode(errors="surrogateescape").rstrip("\n").partition(" ")
        if word == "engine":
            engines.add(rest)
        elif word == "dir":
            folders.add(rest)
        elif word == "drop":
            folders.discard(rest)
        elif word == "terminal":
            terminal = rest
        elif word == "terminal-restored":
            terminal = ""
    kill_processes(run_id)
    restore_terminal(terminal)
    quiet = 0
    deadline = time.monotonic() + PATIENCE
    # A create that was under way when qcase died is carried out by the engine all the same: look until it is quiet.
    while quiet < 4:
        found = sum(remove_containers(engine, run_id) for engine in engines)
        quiet = quiet + 1 if found == 0 else 0
        # At once, and again at the end: nobody should wait for us to be sure, and what came late may have written something.
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        if not engines or time.monotonic() > deadline:
            break
        time.sleep(0.5)


if __name__ == "__main__":
    main()
