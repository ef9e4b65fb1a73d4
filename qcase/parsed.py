"""What the files of a large suite meant when they were last read, so that ten thousand of them need not be parsed again.

    <workspace>/target/qcase/memory/cases.json      {"made_by": …, "cases": {<digest of a file's bytes>: [fields of CaseConfig]}}

Every file is still read in full: what is remembered hangs on its bytes, and on the code that understood them (`made_by`), never
on times or names. Only what was well is remembered, and only what does not depend on anything else: a file with placeholders, or
with warnings, is parsed each time. A suite that is parsed in a moment leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import re2

from qcase import config
from qcase.config import CaseConfig, Placeholders, load_case_config

_WORTH = 300  # files parsed anew that are worth writing down: a tenth of a second
_FIELDS = tuple(field.name for field in fields(CaseConfig))


class Reader:
    """Loads case files as `load_case_config` does."""

    def __init__(self, placeholders: Placeholders, known: dict[str, list[Any]]) -> None:
        self._placeholders = placeholders
        self.known = known
        self.new: dict[str, list[Any]] = {}
        self.used: set[str] = set()

    def load(self, path: Path) -> CaseConfig:
        """The model of a file. Raises `ConfigError` with all that is wrong."""
        digest = _digest(str(path))
        row = None if digest is None else self.known.get(digest)
        if row is not None:
            assert digest is not None
            self.used.add(digest)
            return _config(row)
        loaded = load_case_config(path, placeholders=self._placeholders)
        if digest is not None and not loaded.warnings and _digest(str(path)) == digest:
            self.new[digest] = [getattr(loaded, name) for name in _FIELDS]
        return loaded


@contextmanager
def reader(workspace: Path, placeholders: Placeholders) -> Iterator[Reader]:
    """A reader that knows what was remembered in a workspace, and at the end remembers what it read, where that is worth it."""
    place = workspace / "target" / "qcase" / "memory" / "cases.json"
    opened = Reader(placeholders, _recall(place))
    yield opened
    if len(opened.new) >= _WORTH:
        kept = opened.known if len(opened.known) <= 4 * (len(opened.used) + len(opened.new)) else {}
        _remember(place, {**kept, **opened.new})


def _digest(path: str) -> str | None:
    """The digest of a file's bytes; None where it cannot be read, is no file, or means something else in another environment."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a FIFO would wait for ever
    except OSError:
        return None
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            return None
        data = b""
        while part := os.read(fd, facts.st_size + 1):
            data += part
    except OSError:
        return None
    finally:
        os.close(fd)
    return None if b"${" in data else hashlib.blake2b(data, digest_size=20).hexdigest()


def _config(row: list[Any]) -> CaseConfig:
    """A frozen model from its fields, without the detour through a constructor that sets each of them apart."""
    made = object.__new__(CaseConfig)
    made.__dict__.update(zip(_FIELDS, [tuple(value) if type(value) is list else value for value in row], strict=True))
    return made


def _made_by() -> str:
    """What understood the files: our code, and the library that compiled their patterns."""
    code = Path(config.__file__).read_bytes()
    return f"{hashlib.blake2b(code, digest_size=20).hexdigest()} {Path(re2.__file__).stat().st_mtime_ns}"


def _recall(place: Path) -> dict[str, list[Any]]:
    try:
        document = json.loads(place.read_bytes())
        if document["made_by"] == _made_by():
            return {digest: row for digest, row in document["cases"].items() if len(row) == len(_FIELDS)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def _remember(place: Path, cases: dict[str, list[Any]]) -> None:
    """Write it down. Where that cannot be, the files are parsed again the next time."""
    staged = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        staged.write_text(json.dumps({"made_by": _made_by(), "cases": cases}, separators=(",", ":")), encoding="utf-8")
        staged.replace(place)
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)
