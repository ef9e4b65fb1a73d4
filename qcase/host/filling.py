"""Fill a new tree, folder by folder: each folder on the way stays open until all of it is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final

from qcase.host.trees import SPECIAL, Tree

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Filling:
    """Makes folders, files and links in an empty tree, to which no step can write yet. A folder comes before what is in it.

    It does what the methods of `Tree` do, without resolving each path from the root: a base image has a thousand files.
    Used in a `with`.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._open: list[tuple[str, int]] = []  # the folders on the way to the last place, each with its descriptor

    def __enter__(self) -> Filling:
        with self._tree.folder() as fd:
            self._open.append(("", os.dup(fd)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._open:
            os.close(self._open.pop()[1])

    def mkdir(self, path: str, mode: int) -> None:
        """Make a folder, with exactly these permissions, and go into it."""
        above, name = self._above(path)
        with (self._tree / path).fault():
            os.mkdir(name, 0o700, dir_fd=above)
            fd = os.open(name, _FOLDER, dir_fd=above)
            self._open.append((f"{path}/", fd))
            os.fchmod(fd, mode & ~SPECIAL)

    def symlink_to(self, path: str, target: str) -> None:
        above, name = self._above(path)
        with (self._tree / path).fault():
            os.symlink(target, name, dir_fd=above)

    @contextmanager
    def created(self, path: str, mode: int) -> Iterator[int]:
        """Create a file, and give its descriptor to write. It gets exactly these permissions, regardless of the umask."""
        above, name = self._above(path)
        with (self._tree / path).fault():
            fd = os.open(name, _NEW, 0o600, dir_fd=above)
        try:
            yield fd
            os.fchmod(fd, mode & ~SPECIAL)
        finally:
            os.close(fd)

    def _above(self, path: str) -> tuple[int, str]:
        """Return the descriptor of the folder above a place, which has to be open, and the name in it."""
        while not path.startswith(self._open[-1][0]):
            os.close(self._open.pop()[1])
        above, fd = self._open[-1]
        name = path[len(above) :]
        assert "/" not in name, path
        return fd, name
