"""Habits of makefiles, and of scripts that they call: names of tools, and whether they install below `DESTDIR`.

    CC = gcc            make's command line has another: `CC=x86_64-linux-musl-gcc`
    CC = gcc -std=c89   stays, or the option would be lost: then `gcc` is a script that runs the guest's compiler
    AR = ar rcu         stays, and `ar` is the guest's
    LD = gcc            stays: on the command line stands a linker, and here the compiler links
    gcc -o prog prog.c  in a rule, and no makefile speaks of CC: `gcc` is the guest's

    $(CROSS_COMPILE)$(CC)   the two are put together, also by scripts: CROSS_COMPILE is empty, and names are the guest's tools

Where such scripts stand in the PATH, `HOSTCC` and its like are the building machine's compiler, with its whole path.
"""

from __future__ import annotations

import itertools
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from qcase.host.trees import PlantedError, Tree

_FILE = re.compile(r"(GNUm|[Mm])akefile([.-].*)?|.*\.(mk|mak|make)")
_INSTALLER = re.compile(r".*install.*\.sh")
_SCRIPT = re.compile(r".*\.sh|configure")
_FILES = 1_000_000  # of a project
_READ = 2_000  # makefiles that are read
_LARGE = 1 << 20  # bytes of a makefile that are read

_COMPILERS = frozenset(("gcc", "cc", "clang"))
_CPLUSPLUS = frozenset(("g++", "c++", "clang++"))
_NAMES = {
    "CC": _COMPILERS,
    "CXX": _CPLUSPLUS,
    "LD": frozenset(("ld",)),
    "AR": frozenset(("ar", "gcc-ar")),
    "RANLIB": frozenset(("ranlib", "gcc-ranlib")),
    "NM": frozenset(("nm", "gcc-nm")),
    **{name: frozenset((name.lower(),)) for name in ("STRIP", "OBJCOPY", "OBJDUMP")},
}
_SETS = re.compile(
    rf"^ *(?:(?:export|override) +)*({'|'.join(_NAMES)})[ \t]*(?::{{0,3}}|[?!])=[ \t]*([^#\n]*)",
    re.MULTILINE,
)
_REFERENCE = re.compile(r"\$[({]\w+[)}]")
_LINKS_BY_COMPILER = re.compile(r"\$[({](CC|CXX)[)}]$")
_ASKS = re.compile(r"\b(CC|CXX|CROSS_COMPILE|HOSTCC)\b")
_BY_NAME = re.compile(r"^\t[ \t@+-]*(gcc|cc|g\+\+|c\+\+|clang|clang\+\+)\s", re.MULTILINE)
_JOINED = re.compile(r"\$[({]?CROSS_COMPILE[)}]?\$[({]?(CC|CXX|LD|AR)\b")
_DESTDIR = re.compile(r"\bDESTDIR\b")
_PREFIX = re.compile(r"\$[({]?(prefix|PREFIX)\b")


@dataclass(frozen=True)
class Habits:
    """Habits of the makefiles of a project.

    `own`: variables of tools whose values in the makefiles count. `by_name`: rules call compilers by their names.
    `only_prefix`: files are installed below `prefix` or `PREFIX`, and `DESTDIR` is not heeded. `joined`: names of tools are
    appended to `CROSS_COMPILE`.
    """

    own: frozenset[str] = frozenset()
    by_name: bool = False
    only_prefix: bool = False
    joined: bool = False

    @property
    def named(self) -> bool:
        """Tell whether names such as `gcc` have to be the guest's tools."""
        return self.by_name or self.joined or bool(self.own)


PLAIN = Habits()
EVERY = Habits(frozenset(_NAMES), True, True, True)


def of(folder: Tree) -> Habits:
    """Read the habits of the makefiles in and below a folder. What cannot be read has none."""
    texts = list(_texts(folder, _FILE))
    own = {match[1] for text in texts for match in _SETS.finditer(text) if _counts(match[1], match[2].split())}
    installers = [*texts, *_texts(folder, _INSTALLER)]
    return Habits(
        frozenset(own),
        by_name=any(map(_BY_NAME.search, texts)) and not any(map(_ASKS.search, texts)),
        only_prefix=any(map(_PREFIX.search, installers)) and not any(map(_DESTDIR.search, installers)),
        joined=any(map(_JOINED.search, itertools.chain(texts, _texts(folder, _SCRIPT)))),
    )


def _counts(variable: str, words: list[str]) -> bool:
    """Tell whether a value says more than the name of a tool, which the guest's tool may replace."""
    if not words:
        return False
    tool = _REFERENCE.sub("", words[0])
    if variable == "LD" and (tool in _COMPILERS | _CPLUSPLUS or _LINKS_BY_COMPILER.match(words[0])):
        return True
    return tool in _NAMES[variable] and len(words) > 1


def _texts(folder: Tree, files: re.Pattern[str]) -> Iterator[str]:
    read = 0
    for name, about in folder.walk(_FILES):
        if stat.S_ISREG(about.st_mode) and files.fullmatch(name.rpartition("/")[2]) and read < _READ:
            read += 1
            try:
                yield (folder / name).read_text(_LARGE).replace("\\\n", " ")
            except (OSError, PlantedError, ValueError):
                continue
