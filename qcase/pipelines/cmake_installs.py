"""Programs that a `CMakeLists.txt` of a few literal commands installs: known for certain, or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from qcase.host import beneath

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


def installs(folder: Path) -> frozenset[str] | None:
    """Return all programs that the project in a folder installs; None if that is unknown, or if it installs other files too."""
    return of_text(beneath.text(folder / "CMakeLists.txt"))


def of_text(text: str) -> frozenset[str] | None:
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
