"""The case's own rustc flags, to be combined with qcase's.

cargo takes flags from one place alone, the first of these that has any: `CARGO_ENCODED_RUSTFLAGS`, `RUSTFLAGS`,
`[target.<triple>]` together with all `[target.'cfg(…)']` that apply, `[build]`. qcase has flags for the linker, and in any of
these places they would hide the flags of a later one. Therefore this module finds the flags that cargo would take, and the build
passes both in the first place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qcase.arch import Arch
from qcase.crates.manifests import Table, table

SEPARATOR = "\x1f"
ENCODED = "CARGO_ENCODED_RUSTFLAGS"
PLAIN = "RUSTFLAGS"

_TOKEN = re.compile(r'\s*(?:(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>[(),=])|"(?P<text>[^"]*)")')
_NAMES = frozenset({"unix", "true", "debug_assertions"})


def of_case(config: Table, environment: Mapping[str, str], triple: str, arch: Arch) -> tuple[str, ...]:
    """Return the flags that cargo would pass to rustc for a target, without qcase's. `config`: the case's configuration."""
    if encoded := environment.get(ENCODED):
        return tuple(encoded.split(SEPARATOR))
    if plain := environment.get(PLAIN):
        return tuple(plain.split())
    targets = table(config, "target")
    variable = f"CARGO_TARGET_{triple.upper().replace('-', '_')}_RUSTFLAGS"
    found = list(_flags(targets.get(triple)))
    for key in sorted(targets):
        if key.startswith("cfg(") and key.endswith(")") and applies(key[4:-1], arch):
            found += _flags(targets[key])
    found += environment.get(variable, "").split()
    if found:
        return tuple(found)
    return (*_flags(config.get("build")), *environment.get("CARGO_BUILD_RUSTFLAGS", "").split())


def _flags(place: Any) -> tuple[str, ...]:
    flags = place.get("rustflags") if isinstance(place, dict) else None
    if isinstance(flags, str):
        return tuple(flags.split())
    return tuple(flag for flag in flags if isinstance(flag, str)) if isinstance(flags, list) else ()


def applies(expression: str, arch: Arch) -> bool:
    """Tell whether a `cfg` expression holds for a guest's target. False for an invalid expression: cargo itself reports that."""
    values = {
        "target_arch": {arch.value},
        "target_os": {"linux"},
        "target_family": {"unix"},
        "target_env": {"musl"},
        "target_vendor": {"unknown"},
        "target_endian": {"little"},
        "target_pointer_width": {"64"},
        "target_feature": {"crt-static"},
        "target_has_atomic": {"8", "16", "32", "64", "ptr"},
        "panic": {"unwind"},
    }
    try:
        tokens = _tokens(expression)
        held = _evaluate(tokens, values)
    except ValueError:
        return False
    return held and not tokens


def _tokens(expression: str) -> list[tuple[str, str]]:
    found = []
    place = 0
    while expression[place:].strip():
        match = _TOKEN.match(expression, place)
        if match is None:
            raise ValueError(expression)
        assert match.lastgroup is not None
        found.append((match.lastgroup, match[match.lastgroup]))
        place = match.end()
    return found


def _evaluate(tokens: list[tuple[str, str]], values: Mapping[str, set[str]]) -> bool:
    """Evaluate one predicate at the front of `tokens` and consume it. Raises `ValueError` for anything else."""
    kind, word = _take(tokens)
    if kind != "word":
        raise ValueError(word)
    if tokens[:1] == [("sign", "=")]:
        _take(tokens)
        kind, text = _take(tokens)
        if kind != "text":
            raise ValueError(text)
        return text in values.get(word, set())
    if tokens[:1] != [("sign", "(")]:
        return word in _NAMES
    _take(tokens)
    held = []
    while tokens[:1] != [("sign", ")")]:
        held.append(_evaluate(tokens, values))
        if tokens[:1] == [("sign", ",")]:
            _take(tokens)
    _take(tokens)
    if word == "not" and len(held) == 1:
        return not held[0]
    if word not in ("all", "any"):
        raise ValueError(word)
    return all(held) if word == "all" else any(held)


def _take(tokens: list[tuple[str, str]]) -> tuple[str, str]:
    if not tokens:
        raise ValueError("it ends too early")
    return tokens.pop(0)
