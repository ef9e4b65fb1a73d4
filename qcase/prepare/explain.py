"""Explanation of a case's cache hits and misses: its keys, their parts, and the changes since the nearest earlier keys.

Output for each overlay and the image:

    overlay of normal/futex: miss, key 4f1c09aa21d3…
      arch     5f86c7a2a1b0  "aarch64"
      sources  91b2d55e0c1f  3 files
      since the nearest earlier key, 07aa31c9e5f4:
        sources: c/main.c changed
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qcase import canonical
from qcase.prepare.case_work import named_for
from qcase.prepare.image import image_key, stored_digests
from qcase.prepare.overlays import alone, has_overlays, overlay_plans
from qcase.prepare.session import Session
from qcase.store import keys
from qcase.store.content import Kind
from qcase.suite.cases import Case


@dataclass(frozen=True)
class Wanted:
    """A store entry that a case needs. `made_for`: the name of its key history in the store.

    `left_out`: files beside the sources that do not enter the build (git-ignored files and caches). `unread`: files above the
    case that do not either (toolchain files, cargo configurations).
    """

    kind: Kind
    name: str
    made_for: str
    key: keys.Key
    left_out: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def wanted(case: Case, session: Session) -> list[Wanted]:
    """Return the store entries that a case needs: its overlays, then its image if all overlays are stored. The image's key
    depends on the contents of the overlays.
    """
    if not has_overlays(case):
        return []
    session = session.for_case(case)
    if case.only:  # the image's script names the programs of the subcase, which are known only after its build
        reduced = alone(case, session.workspace)
        plans = [plan for plan in overlay_plans(reduced or case, session) if reduced or plan.name == case.stored_as]
        plans = [plan for plan in plans if plan.is_part]
    else:
        plans = overlay_plans(case, session)
    found = [
        Wanted(Kind.OVERLAY, plan.name, named_for(plan.name, session.arch), plan.key, plan.left_out(), plan.unread())
        for plan in plans
    ]
    digests = stored_digests([plan.key for plan in plans], session.store)
    if digests is not None and not case.only:
        name = case.display_name
        found.append(Wanted(Kind.IMAGE, name, named_for(name, session.arch), image_key(digests, session.base_guest.digest)))
    return found


@dataclass(frozen=True)
class Explained:
    """State of one store entry that a case needs. `nearest`: digest of the earlier key with the fewest differences, which are
    in `changes`. `trouble`: the reason why a stored entry is unusable.
    """

    wanted: Wanted
    hit: bool
    path: str
    nearest: str = ""
    changes: tuple[str, ...] = ()
    trouble: str = ""


def explain(case: Case, session: Session) -> list[Explained]:
    """Return the hits and misses of a run of this case, with reasons. Builds, fetches and writes nothing."""
    return [_explained(wanted, session) for wanted in wanted(case, session)]


def lines(case: Case, session: Session) -> Iterator[str]:
    """Yield the explanation as lines of text."""
    found = explain(case, session)
    if case.config.ktest:
        yield f"{case.display_name}: {case.pipeline}, boots its kernel alone, and nothing is stored for it"
        return
    if not found:
        yield f"{case.display_name}: {case.pipeline}, boots the base image itself, and nothing is stored for it"
        yield f"  {session.for_case(case).guest.rootfs}"
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
        if wanted.left_out:
            yield f"  no sources: {', '.join(wanted.left_out)} (ignored by git, or a cache)"
        if wanted.unread:
            yield f"  not read: {', '.join(wanted.unread)} (above the case; a copy in its folder is)"
        yield from (f"  {line}" for line in _since(one))
    if found[-1].wanted.kind is not Kind.IMAGE and not case.only:
        yield f"image of {case.display_name}: miss, its key is not known before its overlays are built"


def as_json(explained: Explained) -> dict[str, canonical.JSON]:
    """Return the explanation of one entry as JSON."""
    return {
        "kind": explained.wanted.kind.value,
        "name": explained.wanted.name,
        "hit": explained.hit,
        "key": explained.wanted.key.digest,
        "path": explained.path,
        "parts": explained.wanted.key.parts,
        "left_out": list(explained.wanted.left_out),
        "unread": list(explained.wanted.unread),
        "digests": {name: _digest(value) for name, value in explained.wanted.key.parts.items()},
        "nearest": explained.nearest,
        "changes": list(explained.changes),
        "trouble": explained.trouble,
    }


def _explained(wanted: Wanted, session: Session) -> Explained:
    trouble: list[str] = []
    with session.store.reader(wanted.kind, wanted.key.digest, warn=trouble.append) as entry:
        hit = entry is not None
        path = str(entry.content) if entry is not None else ""
    earlier = [
        old for old in session.store.notes.history(wanted.kind, wanted.made_for) if not hit or old.digest != wanted.key.digest
    ]
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


def _digest(value: canonical.JSON) -> str:
    """Return the digest of a key part."""
    if isinstance(value, Mapping) and isinstance(digest := value.get("digest"), str):
        return digest
    return value if isinstance(value, str) and len(value) == 64 else canonical.digest(value)


def _shown(value: canonical.JSON) -> str:
    """Format a key part in one line: its digest, and its value if that is short."""
    text = "" if isinstance(value, Mapping) and "files" in value else canonical.canonical(value).decode("utf-8", "replace")
    if isinstance(value, Mapping) and isinstance(files := value.get("files"), list):
        text = f"{len(files)} file{'' if len(files) == 1 else 's'}"
    digest = _digest(value)
    return digest if digest == value or len(text) > 80 else f"{digest[:12]}  {text}"
