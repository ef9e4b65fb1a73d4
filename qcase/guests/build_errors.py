"""The first error in what a build said: that of the compiler, before all that follows from it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_LONGEST: Final = 400  # characters of a line that is told
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# rustc and cargo (`error[E0425]: …`), gcc and clang (`file:1:2: error: …`), linkers, CMake, assemblers (`file:1: Error: …`).
_COMPILER: Final = re.compile(
    r"^\s*(?:fatal )?error(?:\[[A-Z]\d+\])?: |: (?:fatal )?error: |:\d+: Error: |^CMake Error\b"
    r"|: undefined reference to |: multiple definition of |\berror LNK\d+|^\S*\bld: .*(?:cannot find|undefined)"
)
# Programs that only say that another one failed, or that there is none.
_OTHERS: Final = re.compile(
    r"^\S*make(?:\[\d+\])?: \*\*\* |(?:: not found|: command not found|: No such file or directory|: Permission denied)\s*$"
    r"|^(?:error|fatal|ERROR|FATAL|Error)\b"
)
_PLACE: Final = re.compile(r"^\s*--> (\S+)")


def first_error(lines: Iterable[str]) -> str:
    """Return the first line of a compiler's error, with its place if that stands on the next line, as rustc prints it.

    Without one, the first line in which another program says that it failed; else the last line that is not blank; else nothing.
    """
    other = last = found = ""
    for written in lines:
        line = _COLOUR.sub("", written).rstrip()[:_LONGEST]
        if found:
            place = _PLACE.match(line)
            return f"{found} ({place[1]})" if place else found
        if _COMPILER.search(line):
            found = line.strip()
        elif not other and _OTHERS.search(line):
            other = line.strip()
        last = line.strip() or last
    return found or other or last
