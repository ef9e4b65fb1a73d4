"""Files that git ignores, such as the leftovers of tools beside the sources.

Only the `.gitignore` files of the tree count, not the user's own git settings, so that a key is the same for all users. A tracked
file is never ignored, whatever pattern it matches. A repository within another one, a submodule or a clone, has its own word on
what is in it; so has one in a workspace without git, and one that is a case's folder of sources, which the other one may ignore.

Nor is the `Cargo.lock` beside a `Cargo.toml` ever ignored: library crates often ignore it in git, but it selects the crates to
build, and cargo uses it if it exists.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from qcase.errors import InfraError
from qcase.host import git

_SUBMODULE = b"160000 "  # begins its row of `ls-files --stage`
_OTHERS = ("ls-files", "-z", "--others", "--exclude-per-directory=.gitignore")


class Ignored:
    """Lookup of ignored files, which asks git once for each repository. Without git or a repository nothing is ignored.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._found: dict[Path, frozenset[Path]] = {}
        self._repositories: dict[str, Path | None] = {}
        self._lock = threading.Lock()

    def within(self, folder: Path) -> frozenset[Path]:
        """Return the ignored files and folders below a link-free folder. An ignored folder stands for all its contents.

        A folder that is ignored itself, or lies in an ignored one, is treated as a folder outside of git.
        """
        with self._lock:
            repository = git.repository_of(str(folder), self._repositories)
            found = self._of(repository or folder, is_repository=repository is not None)
            for child in _folders(folder):
                if os.path.lexists(child / ".git"):
                    found |= self._of(child, is_repository=True)
        return frozenset(path for path in found if folder in path.parents)

    def _of(self, place: Path, *, is_repository: bool) -> frozenset[Path]:
        if place not in self._found:
            self._found[place] = _ask(place) if is_repository else _ask_within(_repositories_in(place))
        return self._found[place]


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            return [folder / entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _ask(repository: Path) -> frozenset[Path]:
    """Ask git for all ignored paths of a repository; an ignored folder is one path.

    In a folder without any tracked file git lists files alone.
    """
    try:
        with git.asked(repository) as answers:
            found = answers.names(*_OTHERS, "--ignored", "--directory", "--no-empty-directory")
            new = [name for name in answers.names(*_OTHERS, "--directory", "--no-empty-directory") if name.endswith(b"/")]
            if new:
                found += answers.names(*_OTHERS, "--ignored", "--", *(f":(literal){os.fsdecode(name)}" for name in new))
            tracked = answers.names("ls-files", "-z", "--stage")
    except (InfraError, OSError):  # no git here, or one that cannot read this repository
        return frozenset()
    paths = [repository / os.fsdecode(name).rstrip("/") for name in found]
    within = [repository / os.fsdecode(row.partition(b"\t")[2]) for row in tracked if row.startswith(_SUBMODULE)]
    within += [path for name in new for path in _repositories_in(repository / os.fsdecode(name))]
    return frozenset(path for path in paths if not _is_lock(path)) | _ask_within([*within, *paths])


def _ask_within(folders: Iterable[Path]) -> frozenset[Path]:
    """Ask git for the ignored paths of those folders that are repositories."""
    return frozenset(path for folder in folders if os.path.lexists(folder / ".git") for path in _ask(folder))


def _repositories_in(folder: Path) -> list[Path]:
    """Find the outermost repositories in a folder that is in none."""
    found = []
    for here, folders, files in os.walk(folder):
        if ".git" in folders or ".git" in files:
            found.append(Path(here))
            folders.clear()
    return found


def _is_lock(path: Path) -> bool:
    return path.name == "Cargo.lock" and (path.parent / "Cargo.toml").is_file()
