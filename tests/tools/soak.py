"""`make soak`: the store broken at every point there is, many processes killed at random, and hostile trees; it prints its seeds.

python -m tests.tools.soak [--seeds N] [--first S] [--trees N]      # to repeat a storm: --first S --seeds 1
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qcase.host.crash_cleanup import remove_tree
from tests.tools import faults, storm


def workplace() -> str | None:
    """A folder in memory where there is one: the points are about order, and a disk takes five times as long to flush."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--trees", type=int, default=20_000)
    options = parser.parse_args()
    # A fifth as an ordinary user; a process each, for memory that grows shows in its own.
    for trees, user in ((options.trees * 4 // 5, []), (options.trees // 5, ["--user"])):
        subprocess.run(
            [sys.executable, "-m", "tests.hostile", "--trees", str(trees), "--first", str(options.first), *user], check=True
        )
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
