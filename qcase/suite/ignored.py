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
from dataclasses import dataclass
from pathlib import Path

from qcase.errors import BuildError, InfraError
from qcase.host import git, process
from qcase.host.beneath import open_beneath

MOST = 500  # repositories below one folder; git takes 20 to 50 ms for each

_SUBMODULE = b"160000 "  # begins its row of `ls-files --stage`
_OTHERS = ("ls-files", "-z", "--others", "--exclude-per-directory=.gitignore")


@dataclass(frozen=True)
class _Answer:
    """Git's answer for a repository: the ignored paths, and the folders in it that may be repositories of their own."""

    paths: frozenset[Path] = frozenset()
    inner: tuple[Path, ...] = ()


class Ignored:
    """Lookup of ignored files, which asks git once for each repository. Without git or a repository nothing is ignored.

    A repository at which git hangs is an error, and then git is not asked again: each one may hang. Thread-safe.
    """

    def __init__(self) -> None:
        self._answers: dict[Path, _Answer] = {}
        self._repositories: dict[str, Path | None] = {}
        self._lock = threading.Lock()
        self._hangs: InfraError | None = None

    def within(self, folder: Path) -> frozenset[Path]:
        """Return the ignored files and folders below a link-free folder. An ignored folder stands for all its contents.

        A folder that is ignored itself, or lies in an ignored one, is treated as a folder outside of git.

        Raises `BuildError` where there are more than `MOST` repositories below the folder, `InfraError` if git hangs.
        """
        with self._lock:
            repository = git.repository_of(str(folder), self._repositories)
            pending = _repositories_in(folder) if repository is None else [repository, *_folders(folder)]
            found: set[Path] = set()
            asked: set[Path] = set()
            while pending:
                place = pending.pop()
                if place in asked or not os.path.lexists(place / ".git"):
                    continue
                asked.add(place)
                if len(asked) > MOST:
                    hint = "keep what the case does not need outside of its folder"
                    raise BuildError(
                        f"there are more than {MOST} repositories of git in this folder", where=str(folder), hint=hint
                    )
                answer = self._ask(place)
                found |= answer.paths
                pending += [inner for inner in answer.inner if folder in inner.parents]
        return frozenset(path for path in found if folder in path.parents)

    def _ask(self, place: Path) -> _Answer:
        if self._hangs is not None:
            raise self._hangs
        if place not in self._answers:
            try:
                self._answers[place] = _ask(place)
            except process.OverdueError:
                self._hangs = InfraError(
                    f"git did not say within {git.TIMEOUT:g} s which files it ignores",
                    where=str(place),
                    hint="it waits where a .gitignore, or a file of its own, is a fifo: remove that",
                )
                raise self._hangs from None
        return self._answers[place]


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            return [folder / entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _ask(repository: Path) -> _Answer:
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
    except process.OverdueError:
        raise
    except (InfraError, OSError):  # no git here, or one that cannot read this repository
        return _Answer()
    paths = [repository / os.fsdecode(name).rstrip("/") for name in found]
    submodules = [row.partition(b"\t")[2] for row in tracked if row.startswith(_SUBMODULE)]
    inner = [repository / os.fsdecode(name) for name in _inside(repository, [*submodules, *found])]
    inner += [path for name in _inside(repository, new) for path in _repositories_in(repository / os.fsdecode(name))]
    return _Answer(frozenset(path for path in paths if not _is_lock(path)), tuple(inner))


def _inside(repository: Path, names: list[bytes]) -> list[bytes]:
    """Return those of some names that are folders in a repository, reached through no link.

    An index can be a stranger's: its names may go up, be absolute, or lead through a link to any folder of the user's.
    """
    try:
        root = os.open(repository, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return [name for name in (name.rstrip(b"/") for name in names) if _is_folder(root, name)]
    finally:
        os.close(root)


def _is_folder(root: int, name: bytes) -> bool:
    if any(part in (b"", b".", b"..") for part in name.split(b"/")):
        return False
    try:
        os.close(open_beneath(root, name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


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
