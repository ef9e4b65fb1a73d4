"""From an empty folder to cases that pass, with what `qcase init` and `qcase new` write."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.vm import workspaces
from tests.vm.workspaces import QCASE, run

pytestmark = pytest.mark.vm


def qcase(folder: Path, *arguments: str) -> str:
    done = subprocess.run([QCASE, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_init_and_new_write_passes(tmp_path: Path, test_cache: Path) -> None:
    folder = tmp_path / "kernel"
    folder.mkdir()
    assert "qcase run hello" in qcase(folder, "init")
    for pipeline in ("sh", "c", "grouped"):
        qcase(folder, "new", f"new/{pipeline}-case", "--pipeline", pipeline)
    outcome = run(folder, store=workspaces.fresh_store(tmp_path / "store", test_cache))
    assert outcome.verdicts == {
        "hello": "pass",
        "new/c-case": "pass",
        "new/grouped-case": "pass",
        "new/sh-case": "pass",
    }, outcome.said
    assert outcome.exit_code == 0
