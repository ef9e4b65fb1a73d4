"""Keys of results: their parts, their computation, and the differences between two keys.

A key is the sha256 of canonical JSON of named parts. The parts are kept beside the stored result (see `qcase.store`), so that
qcase can report which of them changed, down to a file of the case.

    overlay key   format, pipeline, recipe, arch, target, toolchain, sources, config, env, base, lock, extra
    image key     format, base, overlays (digests of their contents, in the order they are laid), injector

`parts["sources"]` is `{"digest": …, "files": [[path, type, sha256 or target], …]}`: relative path, type ("file", "exec", "link",
"dir") and bytes of each file below a folder, and nothing else of it: no times, no owners, no other mode bits, no place. Folders
are named only where they are empty; the others are implied by their entries.

File names are bytes on Linux. In JSON they are UTF-8, with bytes that are not UTF-8 as lone surrogates (Python's
`surrogateescape`), in any locale, and JSON is written with `surrogatepass`: two different names are always two different strings
and bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from qcase.canonical import JSON, as_json, canonical, encoded
from qcase.host.planted import printable as printable
from qcase.store.listings import TreeEntry, listing_digest, row

KEY_FORMAT = 1  # of the parts. Increment when their meaning changes: every key changes.


@dataclass(frozen=True)
class Key:
    """The key of a result, and the parts that it was computed from."""

    digest: str
    parts: Mapping[str, JSON]

    def __str__(self) -> str:
        return self.digest

    @property
    def short(self) -> str:
        """Return the key's first digits, for display."""
        return self.digest[:12]


def key(parts: Mapping[str, JSON]) -> Key:
    """Compute the key of named parts."""
    plain: dict[str, JSON] = as_json(parts)
    return Key(hashlib.sha256(encoded(plain)).hexdigest(), plain)


def overlay_key(
    *,
    pipeline: str,
    recipe_version: int | str,
    arch: str,
    target: str,
    sources: Sequence[TreeEntry],
    toolchain_identity: str | None = None,
    config_fields: Mapping[str, JSON] | None = None,
    env: Mapping[str, str | None] | None = None,
    base_digest: str | None = None,
    lock: str | None = None,
    extra: Mapping[str, JSON] | None = None,
) -> Key:
    """Compute the key of an overlay.

    `sources`: from `tree_listing`. `config_fields`: the fields of this arch's configuration that affect the overlay (never
    timeouts or patterns). `env`: the variables of `[cache] env`, None for one that is not set (which is not the same as empty).
    `base_digest` and `lock` only where the pipeline reads the staging root.
    """
    return key(
        {
            "format": KEY_FORMAT,
            "kind": "overlay",
            "pipeline": pipeline,
            "recipe": recipe_version,
            "arch": arch,
            "target": target,
            "toolchain": toolchain_identity,
            "sources": {"digest": listing_digest(sources), "files": [row(entry) for entry in sources]},
            "config": config_fields or {},
            "env": env or {},
            "base": base_digest,
            "lock": lock,
            "extra": extra or {},
        }
    )


def image_key(*, base_digest: str, overlays: Sequence[str], injector: int | str) -> Key:
    """Compute the key of a case image.

    `overlays`: the digests of their contents, in the order in which they are laid over the base.
    """
    return key({"format": KEY_FORMAT, "kind": "image", "base": base_digest, "overlays": list(overlays), "injector": injector})


def differences(old: Mapping[str, JSON], new: Mapping[str, JSON]) -> list[str]:
    """List the parts that differ, one line each, down to the names of files. Empty when none does."""
    lines: list[str] = []
    for name in sorted({*old, *new}):
        if name not in old:
            lines.append(f"{name}: new")
        elif name not in new:
            lines.append(f"{name}: gone")
        else:
            lines += _differing(name, old[name], new[name])
    return lines


def nearest(key: Key, earlier: Sequence[Key]) -> tuple[Key, list[str]] | None:
    """Find the earlier key that differs least from `key`, with the differences. The first wins a tie.

    None without earlier keys.
    """
    compared = [(old, differences(old.parts, key.parts)) for old in earlier]
    return min(compared, key=lambda pair: len(pair[1]), default=None)


# --- differences ------------------------------------------------------------------------------------------------------------


def _differing(name: str, old: JSON, new: JSON) -> list[str]:
    if canonical(old) == canonical(new):
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if "files" in old and "files" in new:
            return _differing_files(name, old["files"], new["files"])
        lines = []
        for member in sorted({*old, *new}):
            if member not in old:
                lines.append(f"{name}.{member}: new, {_brief(new[member])}")
            elif member not in new:
                lines.append(f"{name}.{member}: gone, was {_brief(old[member])}")
            else:
                lines += _differing(f"{name}.{member}", old[member], new[member])
        return lines
    if _is_list(old) and _is_list(new) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for at, (was, now) in pairs for line in _differing(f"{name}[{at}]", was, now)]
    return [f"{name}: {_brief(old)} → {_brief(new)}"]


def _is_list(value: JSON) -> TypeGuard[Sequence[JSON]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _differing_files(name: str, old: Any, new: Any) -> list[str]:
    """List the differences of two lists of rows `[path, type, …, content]`, compared by path."""
    before = {row[0]: row[1:] for row in old}
    after = {row[0]: row[1:] for row in new}
    lines = []
    for path in sorted({*before, *after}):
        shown = printable(path)
        was, now = before.get(path), after.get(path)
        if was is None:
            lines.append(f"{name}: {shown} is new")
        elif now is None:
            lines.append(f"{name}: {shown} is gone")
        elif was != now:
            if was[-1] != now[-1]:
                lines.append(f"{name}: {shown} changed")
            if was[:-1] != now[:-1]:
                lines.append(f"{name}: {shown} is {'/'.join(now[:-1])}, was {'/'.join(was[:-1])}")
    return lines


def _brief(value: JSON) -> str:
    """Shorten a value for display; digests are cut."""
    if value is None:
        return "none"
    if isinstance(value, str):
        is_digest = len(value) == 64 and set(value) <= set("0123456789abcdef")
        return value[:12] if is_digest else json.dumps(value)
    text = json.dumps(as_json(value))
    return text if len(text) <= 60 else text[:57] + "…"
