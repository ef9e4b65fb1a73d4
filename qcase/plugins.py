"""Plug-ins: code of other distributions, which declare it by entry points.

    [project.entry-points."qcase.pipelines"]    a pipeline: a PipelineSpec      name = folder of a case's sources
    [project.entry-points."qcase.guests"]       a guest: a GuestSpec            name = value of [guest.<arch>] rootfs
    [project.entry-points."qcase.reports"]      a report: a function            name = NAME of --report NAME=PATH

The names are read from the metadata of installed distributions, without an import of their code; `load` imports one of them.
Nothing is read before the first question for a name. `importlib.metadata` costs 20 ms, so it is asked only about distributions
whose `entry_points.txt` names one of the groups.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from qcase.errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PIPELINES = "qcase.pipelines"
GUESTS = "qcase.guests"
REPORTS = "qcase.reports"

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
T = TypeVar("T")


@dataclass(frozen=True)
class Plugin:
    """An entry point, and the distribution that declares it."""

    group: str
    name: str
    distribution: str  # name and version
    entry: EntryPoint

    def error(self, what: str, hint: str = "") -> UsageError:
        place = f"{self.distribution}, entry point {self.name} of {self.group}"
        return UsageError(what, where=place, hint=hint or f"repair or uninstall {self.distribution.partition(' ')[0]}")


def names(group: str, built_in: Collection[str]) -> tuple[str, ...]:
    """Return the names that distributions add to a group, sorted.

    Raises `UsageError` for a name that is none, or that two distributions or qcase itself have.
    """
    return tuple(_declared(group, tuple(built_in)))


def load(group: str, name: str, built_in: Collection[str], kind: type[T]) -> T:
    """Import a plug-in and return its object, of type `kind`. Raises `UsageError` that names the distribution if it cannot."""
    plugin = _declared(group, tuple(built_in))[name]
    try:
        found = plugin.entry.load()
    except Exception as error:
        raise plugin.error(f"cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(found, kind):
        raise plugin.error(f"{plugin.entry.value} is {type(found).__name__}, and must be {kind.__name__}")
    return found


def forget() -> None:
    """Read the installed distributions anew at the next question. For tests, which install some."""
    _installed.cache_clear()
    _declared.cache_clear()


@functools.cache
def _declared(group: str, built_in: tuple[str, ...]) -> dict[str, Plugin]:
    found: dict[str, Plugin] = {}
    for plugin in _installed():
        if plugin.group != group:
            continue
        if not _NAME.fullmatch(plugin.name):
            raise plugin.error("its name must consist of a-z, 0-9, _ and -, a letter first")
        if plugin.name in built_in:
            raise plugin.error(f"qcase has a {group.removeprefix('qcase.').removesuffix('s')} of this name itself")
        if plugin.name in found:
            raise plugin.error(f"{found[plugin.name].distribution} declares the same name", "uninstall one of them")
        found[plugin.name] = plugin
    return dict(sorted(found.items()))


@functools.cache
def _installed() -> tuple[Plugin, ...]:
    plugins: list[Plugin] = []
    seen: set[str] = set()
    for folder in _folders():
        from importlib.metadata import Distribution

        distribution = Distribution.at(folder)
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or folder.stem).lower()
        if name in seen:
            continue  # as for imports, the first folder of sys.path counts
        seen.add(name)
        title = f"{name} {distribution.metadata['Version'] or ''}".strip()
        plugins += [
            Plugin(entry.group, entry.name, title, entry)
            for entry in distribution.entry_points
            if entry.group in (PIPELINES, GUESTS, REPORTS)
        ]
    return tuple(plugins)


def _folders() -> Iterator[Path]:
    """Yield the metadata folders of distributions with entry points for qcase, in the order of `sys.path`."""
    for top in dict.fromkeys(os.path.realpath(path) for path in sys.path):
        try:
            entries = sorted(os.listdir(top))  # noqa: PTH208 - in each run: names alone
        except OSError:
            continue  # a zip archive, or a folder that is not there
        for name in entries:
            if not name.endswith((".dist-info", ".egg-info")):
                continue
            try:
                text = Path(top, name, "entry_points.txt").read_bytes()
            except OSError:
                continue
            if b"[qcase." in text:
                yield Path(top, name)
