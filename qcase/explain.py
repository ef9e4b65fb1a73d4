"""Why a case is or is not built again: its keys, what is in them, and what changed since the nearest earlier ones.

Lines like these, for each overlay and the image:

    overlay of normal/futex: miss, key 4f1c09aa21d3…
      arch     5f86c7a2a1b0  "aarch64"
      sources  91b2d55e0c1f  3 files
      since the nearest earlier key, 07aa31c9e5f4:
        sources: c/main.c changed
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qcase import keys, prepare
from qcase.content import Kind
from qcase.prepare import Session, Wanted
from qcase.suite import Case


@dataclass(frozen=True)
class Explained:
    """One thing that a case takes from the store. `nearest`: the digest of the earlier key that differs least, and how."""

    wanted: Wanted
    hit: bool
    path: str
    nearest: str = ""
    changes: tuple[str, ...] = ()
    trouble: str = ""


def explain(case: Case, session: Session) -> list[Explained]:
    """What a run of this case would find in the store, and why. Nothing is built, fetched or written."""
    return [_explained(wanted, session) for wanted in prepare.wanted(case, session)]


def lines(case: Case, session: Session) -> Iterator[str]:
    """The same for a person."""
    found = explain(case, session)
    if not found:
        yield f"{case.display_name}: {case.pipeline}, boots the base image itself, and nothing is stored for it"
        yield f"  {session.guest.rootfs}"
        return
    for one in found:
        wanted = one.wanted
        yield f"{wanted.kind} of {wanted.name}: {'hit' if one.hit else 'miss'}, key {wanted.key.digest}"
        if one.trouble:
            yield f"  what is stored cannot be used: {one.trouble}"
        if one.hit:
            yield f"  {one.path}"
        width = max(len(name) for name in wanted.key.parts)
        for name, value in wanted.key.parts.items():
            yield f"  {name:<{width}}  {_shown(value)}"
        yield from (f"  {line}" for line in _since(one))
    if found[-1].wanted.kind is not Kind.IMAGE and not case.only:
        yield f"image of {case.display_name}: miss, its key is not known before its overlays are built"


def as_json(explained: Explained) -> dict[str, keys.JSON]:
    """The same for a program."""
    return {
        "kind": explained.wanted.kind.value,
        "name": explained.wanted.name,
        "hit": explained.hit,
        "key": explained.wanted.key.digest,
        "path": explained.path,
        "parts": explained.wanted.key.parts,
        "digests": {name: _digest(value) for name, value in explained.wanted.key.parts.items()},
        "nearest": explained.nearest,
        "changes": list(explained.changes),
        "trouble": explained.trouble,
    }


def _explained(wanted: Wanted, session: Session) -> Explained:
    trouble: list[str] = []
    with session.store.reader(wanted.kind, wanted.key.digest, warn=trouble.append) as entry:
        hit = entry is not None
        path = str(entry.path) if entry is not None else ""
    earlier = [old for old in session.store.history(wanted.kind, wanted.made_for) if not hit or old.digest != wanted.key.digest]
    found = keys.nearest(wanted.key, earlier)
    nearest, changes = ("", []) if found is None else (found[0].digest, found[1])
    return Explained(wanted, hit, path, nearest, tuple(changes), "; ".join(trouble))


def _since(one: Explained) -> Iterator[str]:
    if not one.nearest:
        yield "no other key of it is known" if one.hit else "it was not built before"
    elif one.changes:
        yield f"since the nearest earlier key, {one.nearest[:12]}:"
        yield from (f"  {change}" for change in one.changes)
    else:
        yield "it was built before, and is not in the store any more"


def _digest(value: keys.JSON) -> str:
    """The digest that stands for a part."""
    if isinstance(value, Mapping) and isinstance(digest := value.get("digest"), str):
        return digest
    return value if isinstance(value, str) and len(value) == 64 else keys.digest(value)


def _shown(value: keys.JSON) -> str:
    """A part in one line: its digest, and what it says where that is short."""
    text = "" if isinstance(value, Mapping) and "files" in value else keys.canonical(value).decode("utf-8", "replace")
    if isinstance(value, Mapping) and isinstance(files := value.get("files"), list):
        text = f"{len(files)} file{'' if len(files) == 1 else 's'}"
    digest = _digest(value)
    return digest if digest == value or len(text) > 80 else f"{digest[:12]}  {text}"
