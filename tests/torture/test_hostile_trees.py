"""500 hostile trees, each through what qcase does on the host after some step: see `tests.hostile`. `make soak` takes 20,000."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(("trees", "arguments"), [(400, []), (100, ["--user"])], ids=["as we are", "as an ordinary user"])
def test_nothing_gets_out_of_a_hostile_tree(trees: int, arguments: list[str]) -> None:
    """The seeds are others each time; a failure names the one to be tried again with `--first SEED --trees 1`."""
    command = [sys.executable, "-m", "tests.hostile", "--trees", str(trees), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"{trees} trees" in done.stdout
