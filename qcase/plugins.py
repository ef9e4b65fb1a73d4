"""Plug-ins: code of other distributions, which declare it by entry points.

    [project.entry-points."qcase.pipelines"]    a pipeline: a PipelineSpec      name = folder of a case's sources
    [project.entry-points."qcase.guests"]       a guest: a GuestSpec            name = value of [guest.<arch>] rootfs
    [project.entry-points."qcase.reports"]      a report: a function            name = NAME of --report NAME=PATH

The names are read from the metadata of installed distributions, without an import of their code; `load` imports one of them.
Whatever a plug-in raises, here or later, is an error that names its distribution: see `Plugin.guarded`.

Nothing is read before the first question for a name. `importlib.metadata` costs 20 ms, so it is asked only about distributions
whose `entry_points.txt` names one of the groups.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qcase.errors import QcaseError, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PIPELINES = "qcase.pipelines"
GUESTS = "qcase.guests"
REPORTS = "qcase.reports"

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
# Names that mean something else where a plug-in's name stands: images and keys of qcase, and entries of its store.
_RESERVED: Mapping[str, tuple[str, ...]] = {PIPELINES: ("alpine", "host", "packages"), GUESTS: ("fetched", "initramfs")}
T = TypeVar("T")
Check = Callable[[Any], object]


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

    def guarded(self, function: Callable[..., Any], check: Check | None = None, *, what: str = "") -> Callable[..., Any]:
        """Return a function of the plug-in whose exceptions are errors that name the distribution.

        `QcaseError` and `OSError` are raised as they are: callers expect them. `check` converts the result; what it raises is the
        plug-in's fault too. `what`: the name of the function in messages.
        """

        @functools.wraps(function)
        def called(*args: object, **named: object) -> object:
            try:
                result = function(*args, **named)
            except (QcaseError, OSError, KeyboardInterrupt):
                raise
            except BaseException as error:  # an exit too: it would end the run, with any exit code
                raise self.error(f"{what or self.entry.value} failed: {_described(error)}") from error
            try:
                return result if check is None else check(result)
            except Exception as error:
                raise self.error(f"{what or self.entry.value} returned {type(result).__name__}: {error}") from error

        return called

    @property
    def identity(self) -> dict[str, str]:
        """The name, version and digest of the Python files of a plug-in that is loaded, for keys."""
        import hashlib

        module = self.entry.module
        top = getattr(sys.modules.get(module.partition(".")[0]), "__file__", None) or sys.modules[module].__file__
        digest = hashlib.sha256()
        if top is not None:
            folder = Path(top).parent
            in_package = Path(top).name == "__init__.py" or "." in module
            for path in sorted(folder.rglob("*.py")) if in_package else [Path(top)]:
                digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
        return {"distribution": self.distribution, "files": digest.hexdigest()}


def names(group: str, built_in: Collection[str]) -> tuple[str, ...]:
    """Return the names that distributions add to a group, sorted.

    Raises `UsageError` for a name that is none, or that two distributions or qcase itself have.
    """
    return tuple(_declared(group, tuple(built_in)))


def load(group: str, name: str, built_in: Collection[str], kind: type[T], checks: Mapping[str, Check] | None = None) -> T:
    """Import a plug-in and return its object, of type `kind`. Raises `UsageError` that names the distribution if it cannot.

    The functions in the fields of a specification are guarded, see `Plugin.guarded`; `checks`: of their results, by field.
    """
    plugin = declared(group, name, built_in)
    try:
        found = plugin.entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an exit too: it would end the program, with any exit code
        raise plugin.error(f"cannot be loaded: {_described(error)}") from error
    if not isinstance(found, kind):
        raise plugin.error(f"{plugin.entry.value} is {type(found).__name__}, and must be {kind.__name__}")
    if not is_dataclass(kind):
        return found
    spec: Any = found
    guarded = {}
    for field in fields(spec):
        value = getattr(spec, field.name)
        if wrong := _wrong(value, str(field.type)):
            raise plugin.error(f"{plugin.entry.value}.{field.name} is {wrong}")
        if callable(value):
            guarded[field.name] = plugin.guarded(value, (checks or {}).get(field.name), what=field.name)
    if spec.name != name:
        raise plugin.error(f"{plugin.entry.value} describes one that is named {spec.name}")
    described: T = replace(spec, **guarded)
    return described


def declared(group: str, name: str, built_in: Collection[str]) -> Plugin:
    """Return the declaration of a plug-in, without an import of its code."""
    return _declared(group, tuple(built_in))[name]


def forget() -> None:
    """Read the installed distributions anew at the next question. For tests, which install some."""
    _installed.cache_clear()
    _declared.cache_clear()


# The types that the annotation of a specification's field names. Checked by hand: mypy need not have seen a plug-in.
_TYPES: Mapping[str, type] = {"str": str, "int": int, "bool": bool, "Path": Path, "Pipeline": str, "None": type(None)}


def _wrong(value: object, annotation: str) -> str:
    """Describe a value that is not of the annotated type; empty if it is."""
    if annotation.startswith("Callable["):
        fits = callable(value) or (value is None and annotation.endswith("] | None"))
        wanted = "a function"
    elif annotation == "tuple[str, ...]":
        fits = isinstance(value, tuple) and all(isinstance(one, str) for one in value)
        wanted = "a tuple of strings"
    else:
        wanted = annotation.replace(" | ", " or ")
        fits = isinstance(value, tuple(_TYPES[one] for one in annotation.split(" | ")))
    return "" if fits else f"{value!r}, and must be {wanted}"


def _described(error: BaseException) -> str:
    """Describe an exception of a plug-in, with the line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
    return f"{type(error).__name__}: {error}{place}"


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
        if plugin.name in _RESERVED.get(group, ()):
            raise plugin.error("its name means something of qcase itself", "give it another name")
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
