"""Choice of a build system for a folder of sources in C.

    CMakeLists.txt        CMake
    meson.build           Meson
    configure             itself, then Make
    Makefile, …           Make
    the same, with        Make, as the kernel builds its selftests
      TEST_GEN_PROGS

A `configure` that makes nothing for the makefile beside it comes last. The first of these that a folder has is taken. Of several,
the user's `build_system` goes before the first that the user has options for, and that before the order above.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum

from qcase.errors import BuildError
from qcase.host.trees import Tree
from qcase.suite.discover import MAKEFILES

_KSELFTEST = re.compile(r"^[ \t]*TEST_GEN_PROGS\b", re.MULTILINE)
_LIB_MK = re.compile(r"^[ \t]*-?include[ \t]+\S*lib\.mk\b", re.MULTILINE)
_LARGE = 1 << 20  # bytes of a makefile or of a script that are searched
CHOICE = "build_system"  # the key of `[qcase]` that names one of several


class System(StrEnum):
    """Build system of a project."""

    CMAKE = "cmake"
    MESON = "meson"
    CONFIGURE = "configure"
    KSELFTEST = "kselftest"
    MAKE = "make"

    @property
    def options(self) -> tuple[str, ...]:
        """Keys of `[qcase]` with the user's additions to the command lines of this build system."""
        if self is System.CONFIGURE:
            return (self.value, System.MAKE.value)
        return (System.MAKE.value,) if self is System.KSELFTEST else (self.value,)

    @property
    def choice(self) -> str:
        """Value of `[qcase] build_system` that selects this build system."""
        return self.options[0]


def system_of(source: Tree, folder: str, options: Mapping[str, tuple[str, ...]] | None = None) -> System | None:
    """Return the build system of a folder of sources; None if it has none.

    `options`: the keys of `[qcase]` that the user has set, with their words. Raises `BuildError` if the user chose one that is
    not among several.
    """
    options = options or {}
    found = systems(source, folder)
    if System.CONFIGURE in found and System.CONFIGURE in options:
        found.sort(key=list(System).index)
    if chosen := options.get(CHOICE):
        if wanted := next((system for system in found if system.choice == chosen[0]), None):
            return wanted
        if found[1:]:
            named = " and ".join(dict.fromkeys(system.choice for system in found))
            what = f'{folder or "."} has nothing for [qcase] {CHOICE} = "{chosen[0]}"'
            raise BuildError(what, hint=f"it has what {named} need")
    used = (system for system in found if any(option in options for option in system.options))
    return next(used, found[0] if found else None)


def others(taken: System, source: Tree, folder: str) -> list[str]:
    """Return the further values of `[qcase] build_system` that a folder of sources allows."""
    return [system.choice for system in systems(source, folder) if system is not taken]


def systems(source: Tree, folder: str) -> list[System]:
    """Return the build systems that a folder of sources has files for, in the order in which they are taken."""
    found = list(_systems(source, folder))
    if System.CONFIGURE in found[:-1] and not _has_effect(source, folder):
        found.remove(System.CONFIGURE)
        found.append(System.CONFIGURE)
    return found


def _systems(source: Tree, folder: str) -> Iterator[System]:
    for name, system in _FILES.items():
        if _file(source, folder, name) is not None:
            yield system
    if makefile := _makefile(source, folder):
        text = _text(source, folder, makefile)
        yield System.KSELFTEST if _KSELFTEST.search(text) and _LIB_MK.search(text) else System.MAKE


def _makefile(source: Tree, folder: str) -> str:
    """Return the name of the makefile that Make takes; the empty string if there is none."""
    return next((name for name in MAKEFILES if _file(source, folder, name) is not None), "")


_FILES = {"CMakeLists.txt": System.CMAKE, "meson.build": System.MESON, "configure": System.CONFIGURE}

# Files that a makefile reads, in the code of a script: `sed … >Makefile`, `mv $tmp config.mak`, `cat >config.h`.
_FOR_MAKE = re.compile(r"\b(?:GNUm|[Mm])akefile\b|\.(?:mak|mk|make|h)\b")
_COMMENT = re.compile(r"(?m)^[ \t]*#.*$")
_AUTOCONF = re.compile(r"GNU Autoconf|\bautosetup\b")


def _has_effect(source: Tree, folder: str) -> bool:
    """Tell whether the script `configure` of a folder does something for the makefile beside it.

    Some projects have one that only calls `make defconfig`, or that sets variables for other scripts, and is of no use before
    `make`.
    """
    script = _text(source, folder, "configure")
    makefile = _COMMENT.sub("", _text(source, folder, _makefile(source, folder)))
    return bool(_AUTOCONF.search(script) or _FOR_MAKE.search(_COMMENT.sub("", script)) or re.search(r"\bconfigure\b", makefile))


def _text(source: Tree, folder: str, name: str) -> str:
    """Read the beginning of a file of the sources; the empty string if there is none."""
    file = _file(source, folder, name)
    if file is None:
        return ""
    with file.opened() as fd:
        return os.read(fd, _LARGE).decode("utf-8", "replace")


def _file(source: Tree, folder: str, name: str) -> Tree | None:
    """Return a file of the sources, also through links within them; None if there is none."""
    found = source.followed(f"{folder}/{name}", outside=False)
    return found if found is not None and found.is_file() else None
