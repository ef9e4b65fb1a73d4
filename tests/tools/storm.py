"""Many processes on one store at once, killed at random, for `make test` and, longer, for `make soak`.

Workers take entries, read them, remove, collect, sweep and verify, as a seed has it. The parent kills one now and then and starts
another. Whatever a worker gets must be whole, and must still be there at the end of its use. In the end the store must pass a
full reading, and nothing may be left of the killed ones.

    python -m tests.tools.storm FOLDER [--seed S] [--rounds N]      # N kills
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import traceback
from pathlib import Path

from qcase.store import collect, keys
from qcase.store.content import Kind
from qcase.store.store import Store
from tests.tools import faults

KEYS = tuple(keys.key({"case": f"case {number}"}) for number in range(4))
WORKERS = 6


def storm(folder: Path, seed: int, kills: int) -> int:
    """Returns how many operations were begun. Raises `AssertionError` for what must not be."""
    root = folder / "cache"
    root.mkdir(parents=True)
    Store(root)
    chance = random.Random(seed)
    log_read, log_write = os.pipe()
    workers = {_start(root, chance.randrange(1 << 30), log_write) for _ in range(WORKERS)}
    operations = 0
    try:
        for _ in range(kills):
            for _ in range(chance.randrange(1, 12)):  # so many operations later
                assert os.read(log_read, 1), "no worker lives"
                operations += 1
            victim = chance.choice(sorted(workers))
            os.kill(victim, signal.SIGKILL)
            _reap(victim)
            workers.remove(victim)
            workers.add(_start(root, chance.randrange(1 << 30), log_write))
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        ended = [_reap(worker) for worker in workers]
        os.close(log_read)
        os.close(log_write)
    assert all(status == -signal.SIGKILL for status in ended), "a worker found something wrong, see above"
    _check(root)
    return operations


def _reap(worker: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])


def _start(root: Path, seed: int, log: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        chance = random.Random(seed)
        while True:
            os.write(log, b".")
            _operate(root, chance)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def _operate(root: Path, chance: random.Random) -> None:
    store = Store(root)
    kind, key = chance.choice(list(Kind)), chance.choice(KEYS)
    scratch = root.parent / f"run-{os.getpid()}"
    match chance.randrange(10):
        case 0:
            store.remove(kind, key.digest)
        case 1:
            collect.collect(store, collect.Limits(max_size=chance.randrange(1 << 20)))
        case 2:
            store.sweep()
        case 3:
            # What another worker is just taking away may be missed; what is read is right, or said to be broken.
            assert not [found for _, found in collect.verify(store, {}) if found is not None and "no " not in found.why]
        case 4:
            with store.reader(kind, key.digest) as entry:
                assert entry is None or faults.same(kind, entry.content.host)
        case _:
            with store.get_or_build(kind, key, faults.BUILDS[kind], scratch=scratch, made_for="normal/storm") as entry:
                for _ in range(chance.randrange(1, 4)):
                    assert faults.same(kind, entry.content.host), "an entry in use is not what was stored"


def _check(root: Path) -> None:
    store = Store(root)
    for kind in Kind:
        for key in KEYS:
            with store.get_or_build(kind, key, faults.BUILDS[kind], scratch=root.parent / "run") as entry:
                assert entry.stored
                assert faults.same(kind, entry.content.host)
    collect.sweep(store)
    assert [found for _, found in collect.verify(store, {}) if found is not None] == []
    assert list((root / "v2/staging").iterdir()) == []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    operations = storm(options.folder, options.seed, options.rounds)
    print(f"storm: {WORKERS} processes, {options.rounds} kills, {operations} operations, seed {options.seed}")


if __name__ == "__main__":
    main()
