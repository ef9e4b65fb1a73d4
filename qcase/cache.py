"""What `qcase cache …` says: lines for a person, made from what `qcase.gc` found and did."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from qcase import gc
from qcase.content import Kind
from qcase.errors import UsageError
from qcase.store import Store

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_age(text: str) -> float:
    """Seconds, from "30d", "12 h", "90m". Raises `UsageError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smhdw])", text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no age", hint='write a number and one of s, m, h, d, w: "30d"')
    return float(found[1]) * _UNITS[found[2]]


def listing(store: Store, *, now: float | None = None, narrow: bool = False) -> Iterator[str]:
    """One line for each item: what, size on the disk, last use, name, the case that made it. Least recently used first.

    `narrow`: without the name, which is a key, where there is a case.
    """
    moment = time.time() if now is None else now
    for item in gc.items(store):
        used = age(moment - item.used) if item.used else "never used"
        name = item.made_for if narrow and item.made_for else f"{item.short:<12}  {item.made_for}"
        yield f"{item.what:<9}  {size(item.size):>10}  {used:<10}  {name}".rstrip()


def sizes(store: Store) -> Iterator[str]:
    """How much of the disk each kind of thing takes, and all of it."""
    found = gc.items(store)
    whole = gc.disk_size(store.root) if store.root.exists() else 0
    for what, many in (
        (Kind.IMAGE, "images"),
        (Kind.OVERLAY, "overlays"),
        (Kind.DOWNLOAD, "downloads"),
        (gc.PACKAGE, "packages"),
        (gc.GUEST, "guests"),
        (gc.INITRAMFS, "initramfs"),
    ):
        some = [item for item in found if item.what == what]
        yield f"{many:<10} {len(some):>6}  {size(sum(item.size for item in some)):>10}"
    # Not ours to collect: they do not count against `[cache] max_size`.
    others = sum(gc.disk_size(path) for path in gc.others(store))
    if others:
        yield f"{'other formats':<17}  {size(others):>10}"
    rest = whole - others - sum(item.size for item in found)
    yield f"{'the rest':<10} {'':>6}  {size(max(rest, 0)):>10}"
    yield f"{'all':<10} {len(found):>6}  {size(whole):>10}"


def collected(done: gc.Collected, *, dry_run: bool) -> Iterator[str]:
    """What went, what had to stay, and what that gave."""
    word = "would go" if dry_run else "gone"
    for gone in done.gone:
        yield f"{word}: {gone.item.what} {gone.item.short}, {size(gone.item.size)}, {gone.item.made_for or '-'}: {gone.why}"
    for item in done.busy:
        yield f"in use, stays: {item.what} {item.short}, {size(item.size)}, {item.made_for or '-'}"
    if done.leftovers:
        yield f"{done.leftovers} leftovers swept"
    yield f"{len(done.gone)} {word}, {size(done.freed)}; the store {'would take' if dry_run else 'takes'} {size(done.size)}"


def verify(store: Store, *, repair: bool) -> Iterator[tuple[str, bool]]:
    """Lines, and for each whether it tells of something that is broken and still there."""
    good = broken = 0
    for item, found in gc.verify(store, repair=repair):
        if found is None:
            good += 1
            continue
        broken += 1
        end = ": thrown away" if found.repaired else ": somebody uses or builds it, try again" if repair else ""
        made_for = f" ({item.made_for})" if item.made_for else ""
        yield f"broken: {item.what} {item.short}{made_for}: {found.why}{end}", not found.repaired
    yield f"{good} whole, {broken} broken", False


def size(count: int) -> str:
    """Bytes for a person."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def age(seconds: float) -> str:
    """How long ago, for a person."""
    if seconds < 60:
        return "just now"
    for limit, unit, word in ((3600, 60, "min"), (2 * 86400, 3600, "h"), (float("inf"), 86400, "d")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {word} ago"
    raise AssertionError("unreachable")
