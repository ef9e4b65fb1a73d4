"""Try what qcase does on the host on hostile trees, one seed a tree: `python -m tests.hostile --trees 500 [--first SEED]`.

Of each tree: nothing outside changes, no secret turns up in what was read, stored, logged or said, nothing takes longer than 60
seconds, it ends in a result or in one error of the right kind, and all of it can be removed. Prints the seeds, and at the end how
many trees were refused and how much memory that took.
"""

from __future__ import annotations

import argparse
import collections
import encodings.utf_8_sig
import errno
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import elftools.elf.elffile
import filelock.asyncio

from qcase.errors import BuildError, InfraError, KernelError, QcaseError
from qcase.host import process
from qcase.host.crash_cleanup import remove_tree
from tests.hostile import SECRET, Canary, Planter, Swapper, leaks, limited
from tests.hostile.steps import STEPS, World
from tests.processes.test_ext4 import mkfs

SECONDS = 60
MEMORY = 300  # MiB
ORDINARY = 65534  # the user nobody
# Whose fault it may be besides the case's: a kernel's authors', and ours in folders to which no part of a case writes.
ALLOWED: dict[str, tuple[type[QcaseError], ...]] = {
    "kernel": (BuildError, KernelError),
    "raw_kernel": (BuildError, KernelError),
    "injected": (BuildError, InfraError),
    "fetch_step": (BuildError, InfraError),
    "logs_in_target": (BuildError, InfraError),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trees", type=int, default=500)
    parser.add_argument("--first", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--seconds", type=int, default=SECONDS, help="how long one may take; more on a machine that is busy")
    parser.add_argument("--user", action="store_true", help="as an ordinary user, where it is root who calls")
    options = parser.parse_args()
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="qcase-hostile-", dir=memory if memory.is_dir() else None))
    try:
        folder.chmod(0o755)
        mkfs(folder / "base.img", 4 << 20, None)
        process.dismiss_guardian()
        (folder / "work").mkdir()
        if options.user and os.geteuid() == 0:
            for path in (folder / "work", folder):
                os.chown(path, ORDINARY, ORDINARY)
            os.setgroups([])
            os.setgid(ORDINARY)
            os.setuid(ORDINARY)
        outcomes = run(folder, options.first, options.trees, options.seconds)
    finally:
        remove_tree(folder / "work")
        shutil.rmtree(folder, ignore_errors=True)
    # Not `ru_maxrss`, which begins with what the process that started this one had.
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
    whose = "root" if os.geteuid() == 0 else "an ordinary user"
    last = options.first + options.trees - 1
    print(f"seeds {options.first} to {last} as {whose}: {sum(outcomes.values())} trees, {dict(outcomes)}, {peak} MiB at most")
    assert peak < MEMORY, f"{peak} MiB of memory"


def run(folder: Path, first: int, trees: int, seconds: int = SECONDS) -> collections.Counter[str]:
    canary = Canary(folder / "work/home")
    outcomes: collections.Counter[str] = collections.Counter()
    for seed in range(first, first + trees):
        place = folder / "work" / f"tree-{seed}"
        place.mkdir()
        planter = Planter(seed, canary)
        try:
            outcomes[one(seed, place, folder / "base.img", planter, canary, seconds)] += 1
        except BaseException:
            print(f"seed {seed}, {STEPS[seed % len(STEPS)].__name__}: {'; '.join(planter.planted)}", file=sys.stderr)
            raise
    return outcomes


def one(seed: int, place: Path, base: Path, planter: Planter, canary: Canary, limit: int = SECONDS) -> str:
    """Try one tree. How it ended: "taken" or "refused"."""
    step = STEPS[seed % len(STEPS)]
    world = World(place, base, planter.fill, lambda where, name: Swapper(where, name, canary))
    began = time.monotonic()
    with limited(limit):
        try:
            said, outcome = repr(step(world)), "taken"
        except ALLOWED.get(step.__name__, (BuildError,)) as error:
            said, outcome = f"{error} {error.hint} {getattr(error, 'log', '')}", "refused"
            if step.__name__ != "injected" and len(error.what.splitlines()) != 1:  # that has what e2fsprogs said
                raise AssertionError(error.what) from error
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            said, outcome = str(error), "full"
        seconds = time.monotonic() - began
        assert SECRET not in said, "a secret was told"
        assert leaks(place) == [], "a secret was written down"
        canary.check()
        remove_tree(place)
    assert not place.exists()
    assert seconds < limit
    return outcome


_ = (elftools.elf.elffile, encodings.utf_8_sig, filelock.asyncio)

if __name__ == "__main__":
    main()
