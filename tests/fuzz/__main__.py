"""`make fuzz`: random guests, judged twice. Prints its seed, its figures, and a small reproduction of each wrong verdict.

python -m tests.fuzz [--count N] [--seed S] [--jobs J] [--seconds T] [--echoes listed|damaged|all]

One guest, again: --seed S --count 1, with the same echoes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import time
from collections import Counter

from tests.fuzz.guest import DAMAGED, ECHOES, HONEST
from tests.fuzz.run import Batch, Disagreement, Kind, batches, examine
from tests.fuzz.shrink import shown, shrink

SHOWN = 20  # reproductions that are printed, at most
SEEDS = 5  # seeds that are printed of each kind of disagreement, at most
LINE = 10_000  # guests between two lines of figures
SETS = {"listed": HONEST, "damaged": DAMAGED, "all": ECHOES}


class Figures:
    """Counts of all guests so far."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.guests: Counter[str] = Counter()
        self.kinds: Counter[tuple[str, Kind]] = Counter()
        self.seeds: dict[tuple[Kind, str], list[int]] = {}
        self.memory = 0
        self._shown = 0

    def add(self, done: Batch) -> None:
        self.verdicts += done.verdicts
        self.guests += done.guests
        self.memory = max(self.memory, done.memory)
        for found in done.found:
            self.kinds[found.echo, found.kind] += 1
            seeds = self.seeds.setdefault((found.kind, found.complaint.split("'")[0].strip()), [])
            if len(seeds) < SEEDS:
                seeds.append(found.seed)
            if found.kind is not Kind.UNDECIDED and self._shown < SHOWN:
                self._shown += 1
                _show(found)

    def count(self, kind: Kind) -> int:
        return sum(n for (_, one), n in self.kinds.items() if one is kind)

    def kinds_in_words(self) -> str:
        return f"{self.count(Kind.WRONG_PASS)} wrong passes, {self.count(Kind.WRONG_FAIL)} wrong fails, " + (
            f"{self.count(Kind.UNDECIDED)} undecided"
        )


def _show(found: Disagreement) -> None:
    small, said = shrink(found.script)
    print(
        f"--- {found.kind}, seed {found.seed}, echo {found.echo}: {found.complaint}; in short: {said}\n{shown(small)}", flush=True
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 40))
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--echoes", choices=SETS, default="all", help="how shells echo (default: all)")
    options = parser.parse_args()
    echoes = SETS[options.echoes]
    print(f"seed {options.seed}", flush=True)
    if options.count == 1:
        verdict, wrong, script = examine(options.seed, echoes)
        print(verdict, wrong)
        print(shown(shrink(script)[0] if wrong else script))
        return bool(wrong)
    began = mark = time.monotonic()
    figures = Figures()
    since = 0
    for done in batches(options.seed, options.count, options.jobs, options.seconds, echoes):
        figures.add(done)
        since += done.verdicts.total()
        if since >= LINE:
            now = time.monotonic()
            rate, memory = since / (now - mark), done.memory / 1024
            total = figures.verdicts.total()
            print(f"{total:>9} guests  {rate:6.0f}/s  {memory:4.0f} MiB  {figures.kinds_in_words()}", flush=True)
            mark, since = now, 0
    total = figures.verdicts.total()
    said = ", ".join(f"{verdict} {count}" for verdict, count in figures.verdicts.most_common())
    seeds = f"seeds {options.seed} to {options.seed + options.count - 1}, echoes {options.echoes}"
    print(f"{total} guests in {time.monotonic() - began:.0f} s, {seeds}, {figures.memory / 1024:.0f} MiB at most: {said}")
    for echo, count in sorted(figures.guests.items()):
        parts = ", ".join(f"{figures.kinds[echo, kind]} {kind}" for kind in Kind)
        print(f"  {echo:<10} {count:>8} guests: {parts}")
    for (kind, complaint), some in sorted(figures.seeds.items()):
        print(f"  {kind}: {complaint}: {', '.join(map(str, some))}")
    print(figures.kinds_in_words())
    return bool(figures.count(Kind.WRONG_PASS) or figures.count(Kind.WRONG_FAIL))


if __name__ == "__main__":
    raise SystemExit(main())
