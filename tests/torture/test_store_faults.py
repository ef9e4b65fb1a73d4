"""The store, killed and failed at hundreds of points: `make soak` in short (`tests.tools.faults`, `tests.tools.storm`)."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcase.host.crash_cleanup import remove_tree
from tests.conftest import ROOT
from tests.tools import faults, soak

PUT = ("store an overlay", "store an image")


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory, where there is some: thousands of flushes."""
    folder = Path(tempfile.mkdtemp(prefix="qcase-test-", dir=soak.workplace()))
    yield folder
    remove_tree(folder)


def run(*argv: object) -> str:
    """In a process of its own, which forks: ours may have threads."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, argv)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_put_that_is_killed_at_any_point(place: Path) -> None:
    out = run("tests.tools.faults", place, *PUT)
    tried = [tuple(map(int, found)) for found in re.findall(r"(\d+) of (\d+) points", out)]
    assert len(tried) == len(PUT)
    assert all(some == total for some, total in tried)
    assert sum(some for some, _ in tried) >= 400, out


@pytest.mark.parametrize("scenario", [name for name in faults.SCENARIOS if name not in (*PUT, *faults.BESIDE)])
def test_whatever_else_is_killed(scenario: str, place: Path) -> None:
    seed = random.randrange(1 << 30)
    out = run("tests.tools.faults", place, scenario, "--sample", 25, "--seed", seed)
    assert f"25 points, seed {seed}" in out


@pytest.mark.parametrize("fault", [name for name in faults.FAULTS if name != "kill"])
def test_a_call_that_fails_at_any_point_of_a_put(fault: str, place: Path) -> None:
    """The disk is full, broken, read-only, or somebody else's: a right entry, or one message."""
    out = run("tests.tools.faults", place, *PUT, "--fault", fault)
    points = re.search(r"^(\d+) points", out, re.MULTILINE)
    assert points is not None
    assert int(points[1]) >= 100, out


def test_guests_packages_and_kernels_are_killed_at_any_point(place: Path) -> None:
    out = run("tests.tools.faults", place, *faults.BESIDE)
    tried = [tuple(map(int, found)) for found in re.findall(r"(\d+) of (\d+) points", out)]
    assert len(tried) == len(faults.BESIDE)
    assert all(some == total for some, total in tried)


def test_a_call_that_fails_at_guests_packages_and_kernels(place: Path) -> None:
    seed = random.randrange(1 << 30)
    failing = [word for name in faults.FAULTS if name != "kill" for word in ("--fault", name)]
    out = run("tests.tools.faults", place, *faults.BESIDE, *failing, "--sample", 5, "--seed", seed)
    assert out.endswith(f" points, seed {seed}\n")


def test_many_processes_that_are_killed_at_random(place: Path) -> None:
    seed = random.randrange(1 << 30)
    out = run("tests.tools.storm", place, "--seed", seed, "--rounds", 150)
    assert "150 kills, operations" in re.sub(r"\d+ operations", "operations", out), out
