"""JSON in one form, and digests of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


def canonical(parts: JSON) -> bytes:
    """Encode a value as canonical JSON: the same bytes for the same value, and different bytes for different values.

    Sorted, without spaces. Raises `TypeError` or `ValueError` for values that JSON cannot represent exactly: bytes, NaN, keys
    that are no strings.
    """
    return encoded(as_json(parts))


def parse(data: bytes) -> Any:
    """Parse JSON that `canonical` wrote. Raises `ValueError` for anything that is not JSON."""
    return json.loads(data.decode("utf-8", "surrogatepass"))


def digest(parts: JSON) -> str:
    """Return the sha256 of `canonical(parts)`, in hex."""
    return hashlib.sha256(canonical(parts)).hexdigest()


# --- canonical JSON ---------------------------------------------------------------------------------------------------------


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def encoded(plain: JSON) -> bytes:
    """Encode a result of `_plain`."""
    return _ENCODER.encode(plain).encode("utf-8", "surrogatepass")


def as_json(value: Any) -> Any:
    """Convert `value` to nothing but dicts, lists and JSON's own scalars.

    Checked here, because `json` would silently turn a key 1 into "1" and a NaN into invalid JSON.
    """
    kind = type(value)  # most values by far are of these types, and a warm run looks at thousands
    if kind is str or value is None or kind is int or kind is bool:
        return value
    if kind is list:
        return [member if type(member) is str else as_json(member) for member in value]
    if kind is dict or isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"a part is named {name!r}, which is no string")
        return {name: member if type(member) is str else as_json(member) for name, member in value.items()}
    if isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be part of a key")
        return value
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [as_json(member) for member in value]
    raise TypeError(f"{value!r} cannot be part of a key")
