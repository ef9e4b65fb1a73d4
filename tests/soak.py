"""`make soak`: the store broken at every point there is, then many processes killed at random, with seeds that are printed.

python -m tests.soak [--seeds N] [--first S]      # to repeat a storm: --first S --seeds 1
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qcase.content import remove_tree
from tests import faults, storm


def workplace() -> str | None:
    """A folder in memory where there is one: the points are about order, and a disk takes five times as long to flush."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    points = 0
    for fault in faults.FAULTS:
        for scenario in faults.SCENARIOS:
            with _place() as place:
                total, tried = faults.sweep(place, scenario, fault)
            points += tried
            print(f"{fault:<9} {scenario:<32} {tried:>5} of {total} points", flush=True)
    print(f"{points} points, all of them", flush=True)
    for seed in range(options.first, options.first + options.seeds):
        with _place() as place:
            operations = storm.storm(place, seed, 400)
        print(f"storm     seed {seed}: {storm.WORKERS} processes, 400 kills, {operations} operations", flush=True)


@contextmanager
def _place() -> Iterator[Path]:
    """A folder of our own. What is in there when something was wrong stays, to be looked at."""
    folder = Path(tempfile.mkdtemp(prefix="qcase-soak-", dir=workplace()))
    yield folder
    remove_tree(folder)


if __name__ == "__main__":
    main()
