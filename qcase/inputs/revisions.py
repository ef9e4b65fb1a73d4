"""Changes since a git revision, for `--changed`.

Git reports tracked files that differ, and new files. Of all other files (ignored ones, those that git does not compare, and those
outside of the repository) only the times are known: a file counts as changed if it was written after the revision was committed.
So a kernel that is built into an ignored folder counts, and errors are on the side of too many cases.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from qcase.errors import InfraError, UsageError
from qcase.host import git
from qcase.host.git import Git
from qcase.text import printable

_DIFF = ("diff", "--name-only", "-z", "--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty")
_OTHERS = ("ls-files", "-z", "--others")


@dataclass(frozen=True)
class Changes:
    """Changes of a repository since a revision, as absolute link-free paths.

    `paths`: changed or new files. `unknown`: paths in the repository whose changes git does not track. `at`: time of the
    revision's commit, in seconds since 1970.
    """

    repository: Path
    at: int
    paths: frozenset[str]
    unknown: frozenset[str]

    def touch(self, path: Path, besides: Collection[Path] = ()) -> bool:
        """Tell whether a file, a folder above it, or something in a folder has changed, not counting `besides`."""
        if any(str(above) in self.paths for above in (path, *path.parents)):
            return True
        if self._below.get(str(path), frozenset()) - {str(one) for one in besides}:
            return True
        return not self._is_known(path) and _newest(path) > self.at

    @cached_property
    def _below(self) -> Mapping[str, set[str]]:
        """Map each folder above a changed path to the changed paths below it."""
        folders: dict[str, set[str]] = {}
        for path in self.paths:
            for above in Path(path).parents:
                folders.setdefault(str(above), set()).add(path)
        return folders

    def _is_known(self, path: Path) -> bool:
        if not path.is_relative_to(self.repository):
            return False
        return not any(str(above) in self.unknown for above in (path, *path.parents))


def changes_since(root: Path, revision: str) -> Changes:
    """Find everything added, edited or removed in the repository around `root`, committed or not.

    Raises `UsageError` outside of a repository, and for an unknown revision.
    """
    repository = git.repository_of(os.path.realpath(root), {})
    if repository is None:
        what = f"git says: not a git repository (or any of the folders above): {printable(str(root))}"
        raise UsageError(what, where="--changed", hint="name the cases instead")
    with git.asked(repository, revisions=True) as answers:
        return _changes(answers, revision)


def _changes(answers: Git, revision: str) -> Changes:
    try:
        top = answers.run("rev-parse", "--git-dir", check=False)
    except InfraError as error:
        raise UsageError(f"git cannot be asked: {error.what}", where="--changed", hint="install git, or name the cases") from None
    if top.returncode != 0:
        said = top.output.removeprefix("fatal: ").splitlines()
        raise UsageError(f"git says: {said[0] if said else 'nothing'}", where="--changed", hint="name the cases instead")
    wanted = f"{revision}^{{commit}}"
    known = answers.run("rev-parse", "--verify", "--quiet", "--end-of-options", wanted, check=False)
    if known.returncode != 0:
        raise UsageError(
            f"git knows no revision '{printable(revision)}' here",
            where="--changed",
            hint="without a revision it is HEAD; cases to be named beside it go before it, or after --",
        )
    commit = known.stdout.decode().strip()
    absolute = partial(_absolute, answers.repository)
    ignored = answers.names(*_OTHERS, "--ignored", "--exclude-standard", "--directory")
    return Changes(
        answers.repository,
        int(answers.run("show", "-s", "--format=%ct", commit).stdout),
        frozenset(absolute([*_differing(answers, commit), *_edited_submodules(answers)])),
        frozenset(absolute([*ignored, *_unwatched(answers)])),
    )


def _differing(answers: Git, commit: str) -> list[bytes]:
    """Return the paths that differ from a commit, and new ones. A nested repository is a name with a slash at the end."""
    return [*answers.names(*_DIFF, commit, "--"), *answers.names(*_OTHERS, "--exclude-standard")]


def _edited_submodules(answers: Git) -> Iterator[bytes]:
    """Find submodules that differ from their own commit; git itself would use their untrusted configurations for that."""
    for row in answers.names("ls-files", "-z", "--stage"):
        about, _, name = row.partition(b"\t")
        inner = answers.repository / os.fsdecode(name)
        if about.startswith(b"160000 ") and os.path.lexists(inner / ".git"):
            with git.asked(inner) as within:
                known = within.run("rev-parse", "--verify", "--quiet", "HEAD", check=False).returncode == 0
                if not known or _differing(within, "HEAD") or any(_edited_submodules(within)):
                    yield name


def _unwatched(answers: Git) -> Iterator[bytes]:
    """Yield tracked files that git does not compare: `assume-unchanged`, `skip-worktree`."""
    for row in answers.names("ls-files", "-z", "-v"):
        if row[:1].islower() or row[:1] == b"S":
            yield row[2:]


def _absolute(repository: Path, names: Iterable[bytes]) -> Iterator[str]:
    for name in names:
        yield str(repository / os.fsdecode(name))


def _newest(path: Path) -> float:
    """Return the time when a file, or anything in a folder, was last written or renamed. A missing path counts as never."""
    found = _written(path)
    if path.is_dir() and not path.is_symlink():
        for folder, folders, names in os.walk(path):
            found = max([found, *(_written(Path(folder, name)) for name in (*folders, *names))])
    return found


def _written(path: Path) -> float:
    try:
        return path.lstat().st_ctime
    except OSError:
        return 0.0
