"""Git queries about an untrusted repository: neither its configuration nor its hooks take effect.

A workspace may be a stranger's, and a kernel's build may write to it. A `.git` in it can name programs that git runs even when it
only lists ignored files: `core.fsmonitor`, filters, transports that fetch missing objects. Therefore git gets a temporary folder
with qcase's configuration, and of the repository only the data:

    HEAD, config                          qcase's
    index                                 by GIT_INDEX_FILE
    objects, refs, packed-refs, …         links to those of the repository

The user's own configuration, in the home folder, applies as usual. Nothing is written.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qcase.errors import InfraError
from qcase.host import beneath, process

TIMEOUT = 50.0  # seconds

_SMALL = 64 << 10  # bytes of a file of git's that is read here
_COMMON = ("objects", "refs", "packed-refs", "shallow", "info/exclude")
_OWN = ("logs", "info/sparse-checkout")
_HEADS = ("ORIG_HEAD", "FETCH_HEAD", "MERGE_HEAD")
_TRACKING = r"^(branch|remote)\..*\.(remote|merge|fetch)$"  # the settings behind `@{upstream}`
_CONFIG = """\
[core]
	repositoryformatversion = {version}
	bare = false
	fsmonitor = false
	untrackedCache = false
	quotePath = false
	fileMode = true
"""
_SHA256 = re.compile(r"(?im)^[ \t]*objectformat[ \t]*=[ \t]*\"?sha256\b")
_ENVIRONMENT = {
    "GIT_ALLOW_PROTOCOL": "",  # none: what is missing stays missing
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}


def repository_of(folder: str, known: dict[str, Path | None]) -> Path | None:
    """Return the work tree that contains a folder. (`.git` is a file in a submodule and in a linked work tree.)

    `known`: the answers so far, by folder. Folders have most of the folders above them in common.
    """
    if folder not in known:
        above = folder.rpartition("/")[0] or "/"
        if os.path.lexists(f"{folder}/.git"):
            known[folder] = Path(folder)
        else:
            known[folder] = None if above == folder else repository_of(above, known)
    return known[folder]


@contextmanager
def asked(repository: Path, *, revisions: bool = False) -> Iterator[Git]:
    """Open git for queries in a work tree, for a `with` block.

    `revisions`: resolve revisions by all their names, `@{upstream}` too.

    Raises `InfraError` where there is no repository, or git fails.
    """
    with tempfile.TemporaryDirectory(prefix="qcase-git-") as made:
        folder = Path(made)
        try:
            own = _own_folder(repository)
            if not (own / "HEAD").is_file():  # a linked work tree whose repository is missing: its tracked files are unknown
                raise InfraError("there is no repository of git", where=str(own))
            for path in (own / "index", repository / ".gitignore"):
                if os.path.lexists(path) and not path.is_file():  # git would wait for a fifo
                    raise InfraError("is no file", where=str(path))
            _fill(folder, own, revisions=revisions)
        except (OSError, ValueError) as error:  # a name that is too long, or has a NUL
            raise InfraError(f"git's folder cannot be read: {error}", where=str(repository)) from None
        yield Git(repository, folder, own / "index")


class Git:
    """Git in the work tree `repository`, run on qcase's own git folder."""

    def __init__(self, repository: Path, folder: Path, index: Path) -> None:
        self.repository = repository
        self._environment = {
            **_ENVIRONMENT,
            "GIT_DIR": str(folder),
            "GIT_WORK_TREE": str(repository),
            "GIT_INDEX_FILE": str(index),
        }

    def run(self, *words: str, check: bool = True) -> process.Completed:
        return process.run(["git", *words], env=self._environment, cwd=self.repository, check=check, timeout=TIMEOUT)

    def names(self, *words: str) -> list[bytes]:
        """Run a command and return its output, split at the NUL bytes of -z."""
        return [name for name in self.run(*words).stdout.split(b"\0") if name]


def _own_folder(repository: Path) -> Path:
    """Return git's folder for a work tree."""
    place = repository / ".git"
    said = "" if place.is_dir() else _text(place)
    return repository / said.removeprefix("gitdir:").strip() if said.startswith("gitdir:") else place


def _fill(folder: Path, own: Path, *, revisions: bool) -> None:
    named = _text(own / "commondir").strip()
    common = own / named if named else own
    sha256 = _SHA256.search(_text(common / "config")) is not None
    config = _CONFIG.format(version=int(sha256)) + ("[extensions]\n\tobjectFormat = sha256\n" if sha256 else "")
    (folder / "config").write_text(config + (_tracking(common) if revisions else ""), encoding="utf-8", errors="surrogateescape")
    for name in ("HEAD", *_HEADS):
        if text := _text(own / name):
            (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    (folder / "info").mkdir()
    # A split index has its larger part in a file beside it.
    shared = [path.name for path in own.glob("sharedindex.*")]
    for above, names in ((common, _COMMON), (own, (*_OWN, *shared))):
        for name in names:
            if (above / name).exists():
                (folder / name).symlink_to((above / name).resolve())
    for name in ("objects", "refs"):
        (folder / name).mkdir(exist_ok=True)


def _tracking(common: Path) -> str:
    """Read the upstreams of branches from a repository's configuration, as data."""
    words = ("git", "config", "--file", str(common / "config"), "--no-includes", "-z", "--get-regexp", _TRACKING)
    done = process.run(words, env=_ENVIRONMENT, check=False, timeout=TIMEOUT)
    rows = []
    for row in os.fsdecode(done.stdout).split("\0")[:-1]:
        key, _, value = row.partition("\n")
        section, _, rest = key.partition(".")
        name, _, key = rest.rpartition(".")
        rows.append(f'[{section} "{_quoted(name)}"]\n\t{key} = "{_quoted(value)}"\n')
    return "".join(rows)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _text(path: Path) -> str:
    """Read a small file; empty if it cannot be read."""
    try:
        return beneath.read(path, _SMALL).decode("utf-8", "surrogateescape")
    except OSError:
        return ""
