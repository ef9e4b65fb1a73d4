"""Files that git ignores, such as the leftovers of tools beside the sources.

Only the `.gitignore` files of the tree count, not the user's own git settings, so that a key is the same for all users. A tracked
file is never ignored, whatever pattern it matches. Nor is the `Cargo.lock` beside a `Cargo.toml`: library crates often ignore it
in git, but it selects the crates to build, and cargo uses it if it exists.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from qcase.errors import InfraError
from qcase.host import git

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
            if repository is None:
                return frozenset()
            if repository not in self._found:
                self._found[repository] = _ask(repository)
            found = self._found[repository]
        return frozenset(path for path in found if folder in path.parents)


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
    except (InfraError, OSError):  # no git here, or one that cannot read this repository
        return frozenset()
    paths = (repository / os.fsdecode(name).rstrip("/") for name in found)
    return frozenset(path for path in paths if not _is_lock(path))


def _is_lock(path: Path) -> bool:
    return path.name == "Cargo.lock" and (path.parent / "Cargo.toml").is_file()
