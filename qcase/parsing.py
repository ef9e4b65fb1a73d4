"""TOML and JSON that others wrote, as data. Everything that is wrong with such a text is a `ValueError`.

The parsers themselves raise more: `RecursionError` for a text that is nested too deeply, and `tomli` a plain `ValueError` for
a huge integer. How deep a text may be depends on Python's version and on the depth of the caller; here it does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

DEEPEST = 100  # levels of tables and arrays


def toml(text: str | bytes) -> dict[str, Any]:
    """Parse TOML into a table. Raises `ValueError`: `tomli.TOMLDecodeError`, whose text ends with the place, or another one."""
    import tomli

    try:
        table = tomli.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(table)
    return table


def from_json(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse JSON. `pairs`: makes an object of its members. Raises `ValueError`."""
    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(value)
    return value


_TOO_DEEP = "nested too deeply"


def _check_depth(value: object) -> None:
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [
            below
            for one in level
            if isinstance(one, dict | list)
            for below in (one.values() if isinstance(one, dict) else one)
            if isinstance(below, dict | list)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)
