"""Output of `qcase cache …`: text lines made from the results of `qcase.store.collect`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from qcase.store import collect
from qcase.store.content import Kind
from qcase.store.store import Store
from qcase.text import age, size


def listing(store: Store, *, now: float | None = None, narrow: bool = False) -> Iterator[str]:
    """Yield one line for each item: kind, size on the disk, last use, name, its case. Least recently used first.

    `narrow`: without the name, which is a key, where there is a case.
    """
    moment = time.time() if now is None else now
    for item in collect.items(store):
        used = age(moment - item.used) if item.used else "never used"
        name = item.made_for if narrow and item.made_for else f"{item.short:<12}  {item.made_for}"
        yield f"{item.what:<9}  {size(item.size):>10}  {used:<10}  {name}".rstrip()


def sizes(store: Store) -> Iterator[str]:
    """Yield the disk usage of each kind of item, and the total."""
    found = collect.items(store)
    whole = collect.disk_size(store.root) if store.root.exists() else 0
    for what, many in (
        (Kind.IMAGE, "images"),
        (Kind.OVERLAY, "overlays"),
        (Kind.DOWNLOAD, "downloads"),
        (collect.PACKAGE, "packages"),
        (collect.CRATE, "crates"),
        (collect.COMMIT, "commits"),
        (collect.GUEST, "guests"),
        (collect.INITRAMFS, "initramfs"),
    ):
        some = [item for item in found if item.what == what]
        yield f"{many:<10} {len(some):>6}  {size(sum(item.size for item in some)):>10}"
    # Owned by other modules: they do not count against `[cache] max_size`.
    others = sum(collect.disk_size(path) for path in collect.others(store))
    if others:
        yield f"{'other formats':<17}  {size(others):>10}"
    rest = whole - others - sum(item.size for item in found)
    yield f"{'the rest':<10} {'':>6}  {size(max(rest, 0)):>10}"
    yield f"{'all':<10} {len(found):>6}  {size(whole):>10}"


def collected(done: collect.Collected, *, dry_run: bool) -> Iterator[str]:
    """Yield lines about the removed items, the items in use, and the freed space."""
    word = "would go" if dry_run else "gone"
    for gone in done.gone:
        yield f"{word}: {gone.item.what} {gone.item.short}, {size(gone.item.size)}, {gone.item.made_for or '-'}: {gone.why}"
    for item in done.busy:
        yield f"in use, stays: {item.what} {item.short}, {size(item.size)}, {item.made_for or '-'}"
    if done.leftovers:
        yield f"{done.leftovers} leftovers swept"
    yield f"{len(done.gone)} {word}, {size(done.freed)}; the store {'would take' if dry_run else 'takes'} {size(done.size)}"


def verify(store: Store, proofs: Mapping[str, collect.Proof], *, repair: bool) -> Iterator[tuple[str, bool]]:
    """Yield lines, each with a flag: the line reports a broken item that is still stored."""
    good = broken = 0
    for item, found in collect.verify(store, proofs, repair=repair):
        if found is None:
            good += 1
            continue
        broken += 1
        end = ": thrown away" if found.repaired else ": somebody uses or builds it, try again" if repair else ""
        made_for = f" ({item.made_for})" if item.made_for else ""
        yield f"broken: {item.what} {item.short}{made_for}: {found.why}{end}", not found.repaired
    yield f"{good} whole, {broken} broken", False
