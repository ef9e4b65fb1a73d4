"""Proof, without a build, that a subcase of a group cannot matter for the commands that run.

A subcase may be for another architecture and not build for this one. It is left out, unbuilt, if its installed programs are known
and nothing in the group can run them:

* its sources are of a kind that is understood completely: CMake of a few literal commands, a crate without a workspace, a folder
  of scripts; no script runs before the build; it installs programs alone, into folders of programs;
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

import tomli

from qcase.host import beneath
from qcase.model import Pipeline
from qcase.pipelines import group_commands

_LARGE = 1 << 20  # bytes; larger files are not searched
_FOLDERS = frozenset(
    f"{root}{folder}" for root in ("", "/", "usr/", "/usr/", "usr/local/", "/usr/local/") for folder in ("bin", "sbin")
)
# Commands of CMake that install nothing, name no target and run nothing.
_INERT = frozenset(
    {
        *("cmake_minimum_required", "project", "enable_language", "if", "elseif", "else", "endif", "message"),
        *("add_compile_options", "add_compile_definitions", "add_definitions", "add_link_options"),
        *("target_compile_options", "target_compile_definitions", "target_compile_features", "target_link_options"),
        *("target_include_directories", "target_link_libraries", "target_sources", "include_directories", "link_libraries"),
    }
)
# Variables that change the name or the place of a target's file, or the files that CMake reads.
_STEERING = re.compile(
    r"SUFFIX|POSTFIX|PREFIX|OUTPUT|INCLUDE|MODULE|DIR|FILE|LAUNCHER|RULE|COMMAND|PROGRAM|EXECUTABLE|\{|\$", re.IGNORECASE
)
_TOKEN = re.compile(r'\s+|#[^\n]*|(?P<word>"(?:[^"\\]|\\.)*"|[^\s()"#]+)|(?P<paren>[()])')
_LITERAL = re.compile(r"[A-Za-z0-9_.+-]+")
_REFERENCE = re.compile(r"\$\{(\w+)\}")
# Calls in C, Rust, Python and scripts that run a program by a computed name, or that search for programs.
_RUNS = re.compile(
    rb"\bexec[lv]p?e?\b|\bf?execveat?\b|\bsystem\s*\(|\bpopen\s*\(|posix_spawn|Command::new|\bsubprocess\b|os\.exec|os\.spawn|"
    rb"\bglob\s*\(|\bopendir\s*\(|read_dir|os\.listdir|os\.walk|iterdir|bin/[^\s\"']*[*?\[$`]"
)
_LOOKS = re.compile(rb"bin/[^\s\"']*[*?\[$`]|\b(?:eval|xargs|find|ls)\b")


def programs(kind: Pipeline, source: Path) -> frozenset[str] | None:
    """Return the names of the programs that a subcase installs; None if that is unknown or if it installs other files too."""
    folder = source / kind.value
    if not folder.is_dir() or folder.is_symlink() or (folder / "prebuild.sh").exists():
        return None
    try:
        if kind is Pipeline.C:
            return _of_cmake(_text(folder / "CMakeLists.txt"))
        if kind is Pipeline.RUST:
            return _of_crate(folder, tomli.loads(_text(folder / "Cargo.toml")))
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return None
    return frozenset(path.name for path in folder.iterdir()) if kind in (Pipeline.SH, Pipeline.PYTHON) else None


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
        if kind in (Pipeline.SH, Pipeline.PYTHON) and folder.is_dir():
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


def _text(path: Path) -> str:
    if path.is_symlink() or path.stat().st_size > _LARGE:
        raise ValueError
    return path.read_text(encoding="utf-8")


# --- crates -------------------------------------------------------------------------------------------------------------


def _of_crate(folder: Path, manifest: Mapping[str, object]) -> frozenset[str] | None:
    """Return the names of all binaries of a package: those of cargo's own rules and those named in its manifest."""
    package = manifest["package"]
    bins = manifest.get("bin", [])
    if "workspace" in manifest or not isinstance(package, dict) or not isinstance(bins, list):
        return None
    found = {str(package["name"]), *(str(one["name"]) for one in bins)}
    extra = folder / "src" / "bin"
    if extra.is_dir():
        found |= {path.name.removesuffix(".rs") for path in extra.iterdir()}
    return frozenset(found)


# --- CMake --------------------------------------------------------------------------------------------------------------


def _of_cmake(text: str) -> frozenset[str] | None:
    """Return the programs that a `CMakeLists.txt` installs; None if it uses a command, or a form of one, that is unknown here."""
    commands = _commands(text)
    if commands is None:
        return None
    variables: dict[str, str] = {}
    targets: set[str] = set()
    installed: set[str] = set()
    for name, arguments in commands:
        values = [_expanded(argument, variables) for argument in arguments]
        if name == "project" and arguments:
            variables |= {"PROJECT_NAME": arguments[0], "CMAKE_PROJECT_NAME": arguments[0]}
        if name in _INERT:
            continue
        if name in ("set", "option") and arguments:
            if _STEERING.search(arguments[0]):
                return None
            # A second value, or one that is computed, is none that can be used in a name.
            literal = len(arguments) == 2 and arguments[0] not in variables
            variables[arguments[0]] = (values[1] or "$") if literal else "$"
        elif name == "find_package" and arguments[:1] == ["Threads"]:
            continue
        elif name == "include" and arguments == ["GNUInstallDirs"]:
            variables |= {"CMAKE_INSTALL_BINDIR": "bin", "CMAKE_INSTALL_SBINDIR": "sbin"}
        elif name == "add_executable" and values and values[0]:
            targets.add(values[0])
        elif name == "install" and values and (names := _installed(values, targets)) is not None:
            installed |= names
        else:
            return None
    return frozenset(installed)


def _installed(values: Sequence[str | None], targets: set[str]) -> set[str] | None:
    """Return the programs of `install(TARGETS|PROGRAMS … DESTINATION <folder of programs>)`; None for any other form."""
    what, names, rest = values[0], [value for value in values[1:-2] if value != "RUNTIME"], values[-2:]
    if what not in ("TARGETS", "PROGRAMS") or len(rest) != 2 or rest[0] != "DESTINATION" or rest[1] not in _FOLDERS:
        return None
    known = [name for name in names if name is not None]
    if len(known) != len(names) or (what == "TARGETS" and not targets.issuperset(known)):
        return None
    return {name.rpartition("/")[2] for name in known}


def _expanded(argument: str, variables: Mapping[str, str]) -> str | None:
    """Substitute variables in an argument; None if the result is no literal or a variable is unknown."""
    value = _REFERENCE.sub(lambda found: variables.get(found[1], "$"), argument)
    return value if _LITERAL.fullmatch(value.replace("/", "_")) else None


def _commands(text: str) -> list[tuple[str, list[str]]] | None:
    """Parse a CMake file into its commands and unexpanded arguments; None for syntax that is not supported here."""
    if re.search(r"\[=*\[", text):
        return None  # a bracket argument or comment, in which quotes and parentheses mean nothing
    tokens: list[str] = []
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            return None  # a quote without end
        at = token.end()
        if token["word"]:
            word = token["word"]
            tokens.append(word[1:-1] if word.startswith('"') else word)
        elif token["paren"]:
            tokens.append(f"\0{token['paren']}")
    found: list[tuple[str, list[str]]] = []
    depth = 0
    for number, item in enumerate(tokens):
        if item == "\0(" and found:
            depth += 1
        elif item == "\0)":
            depth -= 1
            if depth < 0:
                return None
        elif depth:
            found[-1][1].append(item)
        elif tokens[number + 1 : number + 2] == ["\0("] and item.replace("_", "").isalnum():
            found.append((item.lower(), []))
        else:
            return None
    return found if depth == 0 else None
