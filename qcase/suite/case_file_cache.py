"""Cache of parsed case files, so that ten thousand unchanged files need not be parsed again.

    <workspace>/target/qcase/memory/cases.json      {"made_by": …, "cases": {<digest of a file's bytes>: [fields of CaseConfig]}}

Every file is still read in full: a cache entry depends on the file's bytes, and on the version of the parser (`made_by`), never
on times or names. Only valid files are cached, and only files that depend on nothing else: a file with placeholders, with
warnings, or with known failures, whose places in the file are told, is parsed each time. A small suite leaves no cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import re2

from qcase import parsing
from qcase.config import (
    case_file,
    exit_table,
    ktest_table,
    load,
    matrix,
    qemu_options,
    results_table,
    root_disk,
    services_table,
    skip_table,
    steps_table,
    workspace_file,
)
from qcase.config.case_file import CaseConfig, Placeholders
from qcase.config.load import load_case_config
from qcase.host import beneath
from qcase.host.files import write_aside
from qcase.host.workspace_folders import own_folder

_REMEMBERED = 256 << 20  # bytes of a suite's cache
_WORTH = 300  # newly parsed files from which writing the cache pays: a tenth of a second
_FIELDS = tuple(field.name for field in fields(CaseConfig))


class Reader:
    """Loader of case files with a cache; returns the same models as `load_case_config`."""

    def __init__(self, placeholders: Placeholders, known: dict[str, list[Any]]) -> None:
        self._placeholders = placeholders
        self.known = known
        self.new: dict[str, list[Any]] = {}
        self.used: set[str] = set()

    def load(self, path: Path) -> CaseConfig:
        """Return the model of a file. Raises `ConfigError` with all its faults."""
        digest = _digest(str(path))
        row = None if digest is None else self.known.get(digest)
        if row is not None:
            assert digest is not None
            self.used.add(digest)
            return _config(row)
        loaded = load_case_config(path, placeholders=self._placeholders)
        if digest is not None and not loaded.warnings and not loaded.known and _digest(str(path)) == digest:
            self.new[digest] = [getattr(loaded, name) for name in _FIELDS]
        return loaded

    def load_over(self, base: Path, path: Path) -> CaseConfig:
        """Return the model of a file whose missing keys are those of `base`. Raises as `load`."""
        return load_case_config(path, placeholders=self._placeholders, base=base)


@contextmanager
def reader(workspace: Path, placeholders: Placeholders) -> Iterator[Reader]:
    """Open a reader with a workspace's cache. At the end the cache is written if enough files were newly parsed."""
    place = own_folder(workspace) / "memory" / "cases.json"
    opened = Reader(placeholders, _recall(place))
    yield opened
    if len(opened.new) >= _WORTH:
        kept = opened.known if len(opened.known) <= 4 * (len(opened.used) + len(opened.new)) else {}
        _remember(place, {**kept, **opened.new})


def _digest(path: str) -> str | None:
    """Return the digest of a file's bytes; None if the file is unreadable, not regular, or depends on the environment."""
    try:
        data = beneath.read(path)
    except OSError:
        return None
    return None if b"${" in data else hashlib.blake2b(data, digest_size=20).hexdigest()


def _config(row: list[Any]) -> CaseConfig:
    """Build a frozen model from its fields directly; a constructor would set each field separately."""
    made = object.__new__(CaseConfig)
    made.__dict__.update(zip(_FIELDS, [tuple(value) if type(value) is list else value for value in row], strict=True))
    return made


def _made_by() -> str:
    """Return the identity of the parser: qcase's code, and the library that compiles patterns."""
    modules = (
        case_file,
        exit_table,
        ktest_table,
        load,
        matrix,
        results_table,
        services_table,
        skip_table,
        steps_table,
        workspace_file,
        root_disk,
        qemu_options,
    )
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in modules)
    return f"{hashlib.blake2b(code, digest_size=20).hexdigest()} {Path(re2.__file__).stat().st_mtime_ns}"


def _recall(place: Path) -> dict[str, list[Any]]:
    try:
        document = parsing.from_json(beneath.read(place, _REMEMBERED))
        if document["made_by"] == _made_by():
            return {digest: row for digest, row in document["cases"].items() if len(row) == len(_FIELDS)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def _remember(place: Path, cases: dict[str, list[Any]]) -> None:
    """Write the cache. On failure the files are parsed again next time."""
    with contextlib.suppress(OSError, ValueError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_aside(place, json.dumps({"made_by": _made_by(), "cases": cases}, separators=(",", ":")).encode())
