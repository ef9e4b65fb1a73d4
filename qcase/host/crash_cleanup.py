"""The guardian of one run: cleans up after a qcase that was killed with KILL.

It runs as a process, `python -I -S crash_cleanup.py RUN_ID`, with the standard library alone, and blocks on its standard
input. Only qcase holds the other end, so the end of input means that qcase has died. A qcase that has cleaned up itself kills it.
Messages to the guardian, each ended by a NUL, the one byte that no path can hold:

    engine SOCKET     containers with the label `qcase.run=RUN_ID` on the engine behind this unix socket are to be removed,
                      and the names `qcase/arriving:RUN_ID-…` of images, with each image that has no other name
    dir PATH          a folder to be removed, if it carries our mark
    drop PATH         … that has been removed already
    terminal TTY A    a terminal that was made raw, and the attributes that it had
    terminal-restored it has them again

Then it kills each process whose environment says `QCASE_RUN_ID=RUN_ID`, until there is none, and removes containers and folders.
A folder's mark is the file `.qcase-run` in it, which holds RUN_ID. A folder without it is only removed if it is empty. Whoever
removes a folder therefore removes its mark last (`remove_tree` does): qcase may be killed while it removes it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LABEL = "qcase.run"
ARRIVING = "qcase/arriving"  # the name of images that are still being imported
MARK = ".qcase-run"  # the file that marks a folder as one of a run
PATIENCE = 60.0  # seconds; a container that was being created when qcase died appears a moment later


def _request(engine: str, method: str, path: str) -> bytes:
    # Most guardians never contact an engine, and qcase itself imports a function from here: neither needs HTTP.
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
    """List the process ids, other than our own, whose environment carries the mark of this run."""
    mark = f"QCASE_RUN_ID={run_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue  # ended meanwhile, or another user's
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
    """Remove the containers of this run, running or not. Returns their number, or one where the engine gave no answer."""

    def remove() -> int:
        listing = _listed(engine, "containers", {"label": [f"{LABEL}={run_id}"]})
        for container in listing:
            _request(engine, "DELETE", f"/containers/{container['Id']}?force=true&v=true")
        return len(listing)

    return _counted(remove)


def remove_images(engine: str, run_id: str) -> int:
    """Remove the names of this run's arriving images. Returns their number, as `remove_containers` does."""

    def remove() -> int:
        listing = _listed(engine, "images", {"reference": [f"{ARRIVING}:{run_id}-*"]})
        names = [name for image in listing for name in image["RepoTags"] or () if name.startswith(f"{ARRIVING}:{run_id}-")]
        for name in names:
            _request(engine, "DELETE", f"/images/{name}")
        return len(names)

    return _counted(remove)


def _listed(engine: str, kind: str, filters: dict[str, list[str]]) -> list[dict[str, Any]]:
    import json
    import urllib.parse

    listing: list[dict[str, Any]] = json.loads(
        _request(engine, "GET", f"/{kind}/json?all=true&filters={urllib.parse.quote(json.dumps(filters))}")
    )
    return listing


def _counted(remove: Callable[[], int]) -> int:
    try:
        return remove()
    except (FileNotFoundError, ConnectionRefusedError):
        return 0  # the engine is gone
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 1


def restore_terminal(terminal: str) -> None:
    """Restore a terminal's attributes: six numbers, then the codes of its special characters."""
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


# --- removing folders ---------------------------------------------------------------------------------------------------

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BATCH = 1000  # names that are held in memory at once: a step may have made millions


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a file or a folder, also one whose folders are not writable. A missing path is no error.

    All goes by descriptors and no link is followed, so that nothing outside is removed, even if files are swapped meanwhile.
    Neither the depth nor the number of names matters. Raises `OSError` for a file that cannot be removed.
    """
    parent, name = os.path.split(os.path.abspath(os.fsencode(path)))  # noqa: PTH100 - bytes
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        above = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_at(above, name)
        finally:
            os.close(above)


def remove_at(above: int, name: bytes) -> None:
    """Remove a name in the folder of a descriptor. See `remove_tree`."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=above)
            return
        fd = open_folder(above, name)
        try:
            _empty(fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=above)


def open_folder(above: int, name: bytes) -> int:
    """Open a folder, after making it readable and writable for its owner. Raises `OSError` for anything else."""
    with contextlib.suppress(OSError):
        # Through /proc, because a folder without any permission can only be opened by a descriptor that reads nothing.
        handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)  # noqa: PTH101
        finally:
            os.close(handle)
    return os.open(name, _FOLDER, dir_fd=above)


def _empty(top: int) -> None:
    """Remove everything in a folder, its mark last. Nested folders are moved up into it first, so that none is deep."""
    failed: OSError | None = None
    while True:
        names = _some_names(top, but=MARK)
        removed = 0
        for name, is_folder in names:
            try:
                if is_folder:
                    _flatten(top, name)
                    os.rmdir(name, dir_fd=top)
                else:
                    os.unlink(name, dir_fd=top)
                removed += 1
            except FileNotFoundError:
                removed += 1
            except OSError as error:
                failed = error
        if not names:
            remove_at(top, os.fsencode(MARK))
            return
        if not removed:
            assert failed is not None
            raise failed


def _flatten(top: int, name: bytes) -> None:
    """Empty a folder in the folder `top`: remove its files, and move its folders into `top`."""
    fd = open_folder(top, name)
    try:
        while names := _some_names(fd):
            for below, is_folder in names:
                if not is_folder:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(below, dir_fd=fd)
                    continue
                os.close(open_folder(fd, below))  # a folder that is moved has to be writable itself
                try:
                    os.rename(below, b".qcase-" + os.urandom(12).hex().encode(), src_dir_fd=fd, dst_dir_fd=top)
                except OSError:  # some layered file systems move no folders
                    remove_at(fd, below)
    finally:
        os.close(fd)


def _some_names(fd: int, but: str = "") -> list[tuple[bytes, bool]]:
    """Read the first names in a folder other than `but`, each with a flag: it is a folder."""
    found: list[tuple[bytes, bool]] = []
    os.lseek(fd, 0, os.SEEK_SET)
    with os.scandir(fd) as items:
        for item in items:
            if item.name == but:
                continue
            found.append((os.fsencode(item.name), item.is_dir(follow_symlinks=False)))
            if len(found) == _BATCH:
                break
    return found


def remove_marked(path: bytes, run_id: str, known: dict[bytes, tuple[int, int]]) -> None:
    """Remove a folder if it carries the mark of this run.

    `known`: folders that had it at an earlier call, by device and inode.
    """
    parent, name = os.path.split(path)
    with contextlib.suppress(OSError):
        above = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=above)  # killed before it could be marked
                return
            fd = os.open(name, _FOLDER, dir_fd=above)
            try:
                about = os.fstat(fd)
                identity = about.st_dev, about.st_ino
                if known.get(path) != identity and _mark(fd) != run_id.encode():
                    return
                known[path] = identity
                os.fchmod(fd, 0o700)
                _empty(fd)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=above)
        finally:
            os.close(above)


def _mark(folder: int) -> bytes:
    """Read the run id in a folder's mark."""
    fd = os.open(MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(fd, 200) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


# --- the process --------------------------------------------------------------------------------------------------------


def messages(fd: int) -> Iterator[tuple[str, bytes]]:
    """Yield the messages from a descriptor, until its end. A message cut off by the sender's death is dropped."""
    pending = b""
    while data := os.read(fd, 1 << 16):
        *whole, pending = (pending + data).split(b"\0")
        for message in whole:
            word, _, rest = message.partition(b" ")
            yield word.decode("ascii", "replace"), rest


def main() -> None:
    run_id = sys.argv[1]
    # Ctrl-C on the terminal is for qcase; the guardian acts at the end of its input.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    engines: set[str] = set()
    folders: set[bytes] = set()
    terminal = ""
    for word, rest in messages(sys.stdin.fileno()):
        if word == "engine":
            engines.add(os.fsdecode(rest))
        elif word == "dir":
            folders.add(rest)
        elif word == "drop":
            folders.discard(rest)
        elif word == "terminal":
            terminal = os.fsdecode(rest)
        elif word == "terminal-restored":
            terminal = ""
    kill_processes(run_id)
    restore_terminal(terminal)
    known: dict[bytes, tuple[int, int]] = {}
    quiet = 0
    deadline = time.monotonic() + PATIENCE
    # The engine completes a create that was under way when qcase died: look until no more appear.
    while quiet < 4:
        found = sum(remove_containers(engine, run_id) + remove_images(engine, run_id) for engine in engines)
        quiet = quiet + 1 if found == 0 else 0
        # At once, and again at the end: a folder need not wait for the last check, and late processes may have written more.
        for folder in folders:
            remove_marked(folder, run_id, known)
        if not engines or time.monotonic() > deadline:
            break
        time.sleep(0.5)


if __name__ == "__main__":
    main()
