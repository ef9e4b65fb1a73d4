"""Proof, without a build, that a subcase of a group cannot matter for the commands that run.

A subcase may be for another architecture and not build for this one. It is left out, unbuilt, if its installed programs are known
and nothing in the group can run them:

* its pipeline knows all that it installs (`PipelineSpec.installs`): CMake of a few literal commands, a crate without a
  workspace, a folder of scripts; no script runs before the build; it installs programs alone, into folders of programs;
* no command, and no other file of the group, has the name of one of these programs in it;
* no other file of the group looks for programs, or runs ones whose names it computes.

A subcase without this proof is built. If its build fails, `doubtful` returns the commands that could have run one of its
programs.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from qcase.host import beneath
from qcase.model import Pipeline
from qcase.pipelines import group_commands
from qcase.pipelines.pipeline import SCRIPT
from qcase.pipelines.registry import PIPELINES

_LARGE = 1 << 20  # bytes; larger files are not searched
# Calls in C, Rust, Python and scripts that run a program by a computed name, or that search for programs.
_RUNS = re.compile(
    rb"\bexec[lv]p?e?\b|\bf?execveat?\b|\bsystem\s*\(|\bpopen\s*\(|posix_spawn|Command::new|\bsubprocess\b|os\.exec|os\.spawn|"
    rb"\bglob\s*\(|\bopendir\s*\(|read_dir|os\.listdir|os\.walk|iterdir|bin/[^\s\"']*[*?\[$`]"
)
_LOOKS = re.compile(rb"bin/[^\s\"']*[*?\[$`]|\b(?:eval|xargs|find|ls)\b")


def programs(kind: Pipeline, source: Path) -> frozenset[str] | None:
    """Return the names of the programs that a subcase installs; None if that is unknown or if it installs other files too."""
    spec = PIPELINES.get(kind)
    folder = source / kind.value
    if spec is None or not folder.is_dir() or folder.is_symlink() or (folder / SCRIPT).exists():
        return None
    try:
        found = spec.installs(folder)
        return None if found is None else frozenset(found)
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return None


def cannot_matter(commands: Sequence[str], subcase: str, kind: Pipeline, group: Path) -> bool:
    """Tell whether no command can run a program of this subcase. `group`: the folder of the group."""
    installed = programs(kind, group / subcase)
    if installed is None or group_commands.names(commands) is None:
        return False
    wanted = [name.lower().encode() for name in installed]
    if any(name in command.lower().encode() for name in wanted for command in commands):
        return False
    others = (path for path in group.iterdir() if path.name != subcase and path.suffix not in (".toml", ".md"))
    for text in (text for other in others for text in _texts(other)):
        if text is None or _RUNS.search(text) or _reaches(text, wanted):
            return False
    return True


def doubtful(
    commands: Sequence[str],
    built: Callable[[str], bool],
    left_out: Iterable[Collection[str] | None],
    scripts: Mapping[str, bytes],
) -> list[str]:
    """Return the commands that could have run a program of a subcase that failed to build.

    `built`: tells whether the other subcases installed a path of the guest. `left_out`: the programs of each subcase that did not
    build, None if unknown. `scripts`: the scripts of the group that a command may name, by name.
    """
    return [command for command in commands if any(_could_run(command, built, one, scripts) for one in left_out)]


def _could_run(
    command: str, built: Callable[[str], bool], installed: Collection[str] | None, scripts: Mapping[str, bytes]
) -> bool:
    words = group_commands.names([command])
    if words is None:
        return True
    named = [scripts[word] for word in words if word in scripts]
    if installed is None:
        return bool(named) or group_commands.in_doubt([command], built)
    wanted = [name.lower().encode() for name in installed]
    return bool(words.intersection(installed)) or any(_reaches(text, wanted) for text in named)


def _reaches(text: bytes, wanted: Sequence[bytes]) -> bool:
    """Tell whether a text contains one of these names, or is a script that searches for programs."""
    looks = text.startswith(b"#!") and _LOOKS.search(text) is not None
    return looks or any(name in text.lower() for name in wanted)


def scripts(kinds: Mapping[str, Pipeline], group: Path) -> dict[str, bytes]:
    """Return the files that subcases install unchanged, by name."""
    found = {}
    for subcase, kind in kinds.items():
        folder = group / subcase / kind.value
        if kind in PIPELINES and PIPELINES[kind].copies and folder.is_dir():
            for path in folder.iterdir():
                if path.is_file():
                    found[path.name] = _script(path)
    return found


def _script(path: Path) -> bytes:
    """Read a script. A script too large to search is replaced by one that may run anything."""
    try:
        return beneath.read(path, _LARGE)
    except OSError:
        return b"#!/bin/sh\neval"


def _texts(top: Path) -> Iterable[bytes | None]:
    """Yield the content of a file, or of a folder's files; None for links, special files and files over 1 MiB."""
    within = [Path(place, name) for place, folders, files in os.walk(top) for name in (*folders, *files)]
    for path in (top, *within):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            yield path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size <= _LARGE else None
