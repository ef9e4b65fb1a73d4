"""Words for a person: sizes, ages, lists of names, near misses, and text that a terminal can show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from qcase.errors import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_age(text: str) -> float:
    """Parse an age to seconds: "30d", "12 h", "90m". Raises `UsageError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smhdw])", text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no age", hint='write a number and one of s, m, h, d, w: "30d"')
    return float(found[1]) * _UNITS[found[2]]


def size(count: int) -> str:
    """Format a number of bytes for display."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def age(seconds: float) -> str:
    """Format an age for display."""
    if seconds < 60:
        return "just now"
    for limit, unit, word in ((3600, 60, "min"), (2 * 86400, 3600, "h"), (float("inf"), 86400, "d")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {word} ago"
    raise AssertionError("unreachable")


_TOML_KINDS: tuple[tuple[type, str], ...] = ((list, "an array"), (dict, "a table"))


def shown(value: object) -> str:
    """Format a value as in the file if that is short; else return its kind."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 40 and value.isprintable() else "this string"
    return next((name for kind, name in _TOML_KINDS if isinstance(value, kind)), str(value)[:40])


def nearest(name: str, known: Iterable[str], *, fallback: bool = True) -> str:
    """Return a hint: the known name closest to `name`, else all of them."""
    import difflib  # only where something is wrong

    known = list(known)
    lower = {key.lower(): key for key in known}
    if near := difflib.get_close_matches(name.lower(), lower, n=1):
        return f"did you mean '{lower[near[0]]}'?"
    return f"known here: {', '.join(known)}" if fallback else ""


def any_of(choices: Sequence[str]) -> str:
    quoted = [f'"{choice}"' for choice in choices]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else quoted[0]


def printable(text: str) -> str:
    """Make `text` fit for a terminal: unprintable characters (line ends, bytes that are not UTF-8) are escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def without_controls(text: str) -> str:
    """Return text of a guest or a compiler with control characters replaced by U+FFFD."""
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text)


def seconds(value: float) -> str:
    """Format seconds: `0.004 s`, `3.91 s`, `74.2 s`, `3 min 20 s`."""
    if value < 0.1:
        return f"{value:.3f} s"
    if value < 10:
        return f"{value:.2f} s"
    if value < 100:
        return f"{value:.1f} s"
    return f"{int(value) // 60} min {int(value) % 60} s"
