"""Folders as a hostile build step leaves them, and a home that nothing of it may reach.

A `Planter` fills a folder from a seed. It is told at which paths qcase will look there, and puts links (relative, absolute, in
chains, in circles, into /proc, to siblings, to the canary), fifos, devices, sockets, huge sparse files, odd names, deep folders,
very many names, closed folders, setuid files, attributes and garbage at some of them, and at the folders above. A `Swapper` is
another process that exchanges a folder and a link all the time.

The `Canary` is a home with secrets: nothing in it may change, and no secret may turn up anywhere.
"""

# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH118, PTH119, PTH120, PTH123, PTH211 - names here are bytes

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

SECRET = "canary-4f1d9c2b7e"
ODD_NAMES = (b"a\nb", b"\xff\xfe", b"-rf", b"n" * 255, b"'\"$(id)`", b" ", b"\t", b"...", b"*", b"\x01\x02", b"..b", "ü".encode())
MANY = 120_000  # names in one folder, more than qcase takes
HUGE = 1 << 40  # bytes of a sparse file


class Canary:
    """A home that no run may read from or write to. The environment of the process has the secret, too: links lead there."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for name in (".ssh/id_rsa", ".bashrc", "docs/thesis.txt", "apk/repositories", "apk/keys/own.rsa.pub"):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(f"{SECRET} {name}\n")
        (home / ".ssh/id_rsa").chmod(0o600)
        os.environ["QCASE_CANARY"] = SECRET
        self._before = self._looks()

    def double(self, path: str, *, folder: bool) -> str:
        """A folder outside in which a path exists as well, with a secret there, so that a link above it leads to something."""
        home = self.home / f"double-{hashlib.sha256(f'{path} {folder}'.encode()).hexdigest()[:12]}"
        if not home.exists():
            place = home / path / "own.rsa.pub" if folder else home / path
            place.parent.mkdir(parents=True)
            place.write_text(f"{SECRET} {path}\n")
            self._before = self._looks()
        return str(home)

    def _looks(self) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        for path in sorted(self.home.rglob("*")):
            about = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(about.st_mode) else ""
            rows.append((str(path), about.st_mode, about.st_uid, about.st_size, about.st_mtime_ns, about.st_ctime_ns, content))
        return rows

    def check(self) -> None:
        assert self._looks() == self._before, "something outside was changed"


def leaks(place: Path) -> list[str]:
    """Files below a folder that hold the secret; no link is followed."""
    found = []
    for folder, names, files in os.walk(os.fsencode(place)):
        names[:] = names if folder.count(b"/") < 100 else []
        for name in files:
            full = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                about = os.lstat(full)
                if not stat.S_ISREG(about.st_mode) or about.st_blocks * 512 > 64 << 20 or about.st_size > 1 << 30:
                    continue
                fd = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    while data := os.read(fd, 1 << 20):
                        if SECRET.encode() in data:
                            found.append(os.fsdecode(full))
                            break
                finally:
                    os.close(fd)
    return found


class Planter:
    """Fills folders. The same seed fills them the same way."""

    def __init__(self, seed: int, canary: Canary) -> None:
        self.random = random.Random(seed)
        self._canary = canary
        self._below = ""  # what is looked at below the place that is planted
        self.planted: list[str] = []

    def fill(self, folder: Path, targets: Sequence[str]) -> None:
        """Plant one to four things in a folder that a step could write to."""
        for _ in range(self.random.randint(1, 4)):
            with contextlib.suppress(OSError):  # two plants in each other's way, or one that this user may not make
                self._plant(folder, self._place(targets))

    def _place(self, targets: Sequence[str]) -> bytes:
        """A path that is looked at, one above it, or one that nobody expects."""
        self._below = ""
        if targets and self.random.random() < 0.8:
            parts = self.random.choice(targets).split("/")
            count = self.random.randint(1, len(parts))
            self._below = "/".join(parts[count:])
            return os.fsencode("/".join(parts[:count]))
        return b"/".join(self.random.choice(ODD_NAMES) for _ in range(self.random.randint(1, 3)))

    def _plant(self, folder: Path, place: bytes) -> None:
        here = os.path.join(os.fsencode(folder), place)
        kinds: list[Callable[[bytes], None]] = [
            *(self._link, self._link, self._chain, self._loop, self._sibling, self._fifo, self._socket, self._device),
            *(self._sparse, self._deep, self._closed, self._setuid, self._garbage, self._folder, self._elf, self._hard),
            *(self._attribute, self._odd, self._large),
        ]
        if self.random.random() < 0.01:
            kinds = [self._many]
        kind = self.random.choice(kinds)
        if not os.path.realpath(os.path.dirname(here)).startswith(os.path.realpath(os.fsencode(folder))):
            return  # a step is held in its container, and so are we: no writing through our own links
        os.makedirs(os.path.dirname(here), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            aside = os.path.dirname(here) + b"/.aside" + str(self.random.random()).encode()
            os.rename(here, aside)
        kind(here)
        self.planted.append(f"{kind.__name__.strip('_')} at {os.fsdecode(place)!a}")

    def _outside(self) -> str:
        if self._below and self.random.random() < 0.6:
            return self._canary.double(self._below, folder=self.random.random() < 0.5)
        home = self._canary.home
        return self.random.choice(
            [
                *(f"{home}/.ssh/id_rsa", f"{home}/.bashrc", f"{home}", f"{home}/docs", f"{home}/apk", f"{home}/new"),
                *("/proc/self/environ", "/proc/self/fd/0", "/proc/self/root", "/dev/zero", "/dev/full", "/dev/stdin", "/"),
                *("../" * 30 + str(home).lstrip("/"), "..", "../..", "/etc/passwd"),
            ]
        )

    def _link(self, here: bytes) -> None:
        os.symlink(os.fsencode(self._outside()), here)

    def _chain(self, here: bytes) -> None:
        target = os.fsencode(self._outside())
        for number in range(self.random.randint(1, 50)):
            link = here + b".%d" % number
            os.symlink(target, link)
            target = os.path.basename(link)
        os.symlink(target, here)

    def _loop(self, here: bytes) -> None:
        os.symlink(os.path.basename(here), here)

    def _sibling(self, here: bytes) -> None:
        os.symlink(b"../" + os.path.basename(os.path.dirname(here)), here)

    def _fifo(self, here: bytes) -> None:
        os.mkfifo(here)

    def _socket(self, here: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            fd = os.open(os.path.dirname(here), os.O_PATH | os.O_DIRECTORY)
            try:
                server.bind(f"/proc/self/fd/{fd}/".encode() + os.path.basename(here)[:60])
            finally:
                os.close(fd)

    def _device(self, here: bytes) -> None:
        """/dev/zero, which has no end; an ordinary user makes a fifo."""
        if os.geteuid() == 0:
            with contextlib.suppress(PermissionError):
                os.mknod(here, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
                return
        os.mkfifo(here)

    def _sparse(self, here: bytes) -> None:
        with open(here, "wb") as file:
            for size in (HUGE, 1 << 34):  # the largest that the file system takes
                with contextlib.suppress(OSError):
                    os.truncate(file.fileno(), size)
                    return

    def _deep(self, here: bytes) -> None:
        os.mkdir(here)
        fd = os.open(here, os.O_RDONLY)
        for _ in range(self.random.choice([40, 300, 2100])):
            os.mkdir(b"dd", dir_fd=fd)
            below = os.open(b"dd", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)

    def _many(self, here: bytes) -> None:
        os.mkdir(here)
        fd = os.open(here, os.O_RDONLY)
        for number in range(MANY):
            os.close(os.open(b"%d" % number, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd))
        os.close(fd)

    def _closed(self, here: bytes) -> None:
        if self.random.random() < 0.5:
            os.mkdir(here)
        else:
            self._garbage(here)
        os.chmod(here, self.random.choice([0o000, 0o111, 0o222, 0o333, 0o444]))

    def _setuid(self, here: bytes) -> None:
        self._garbage(here)
        os.chmod(here, self.random.choice([0o4755, 0o2755, 0o6777, 0o4111]))

    def _garbage(self, here: bytes) -> None:
        with open(here, "wb") as file:
            file.write(
                self.random.choice([b"", b"\0" * 5000, b"P:../../x\nV:1\nC:Q1\n\n", b"\xff" * 3000, b"[[[\n", b"A" * 300_000])
            )

    def _large(self, here: bytes) -> None:
        with open(here, "wb") as file:
            file.write(b"P:a\nV:1\n\n" * 2_200_000)  # 20 MB

    def _elf(self, here: bytes) -> None:
        with open(here, "wb") as file:
            file.write(b"\x7fELF" + self.random.randbytes(self.random.choice([0, 12, 60, 4000])))

    def _folder(self, here: bytes) -> None:
        os.mkdir(here)

    def _hard(self, here: bytes) -> None:
        self._garbage(here)
        os.link(here, here + b".too")

    def _attribute(self, here: bytes) -> None:
        self._garbage(here)
        os.setxattr(here, "user.qcase", b"x")

    def _odd(self, here: bytes) -> None:
        os.mkdir(here)
        for name in ODD_NAMES:
            self._garbage(here + b"/" + name)


class Swapper:
    """A process that exchanges a folder of a tree and a link to the canary for as long as it lives."""

    def __init__(self, folder: Path, name: str, canary: Canary) -> None:
        self._folder, self._name, self._target = folder, name, canary.home
        self._pid = 0

    def __enter__(self) -> Swapper:
        self._pid = os.fork()
        if self._pid == 0:
            with contextlib.suppress(BaseException):
                self._swap()
            os._exit(0)
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _swap(self) -> None:
        here, aside = self._folder / self._name, self._folder / f"{self._name}.aside"
        while True:
            with contextlib.suppress(OSError):
                here.rename(aside)
                here.symlink_to(self._target)
                here.unlink()
                aside.rename(here)
            with contextlib.suppress(OSError):
                aside.mkdir()


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` where something hangs."""

    def late(*_: object) -> None:
        raise TimeoutError(f"it took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
