"""Containers of a run that was killed together with its guardian are removed by the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.containers.container import LABELS, RUN_LABEL
from qcase.containers.engine import Engine
from qcase.prepare import run_folders
from qcase.store.store import Store
from qcase.toolchains.records import Image

pytestmark = pytest.mark.container


def test_containers_of_a_dead_run_are_removed_and_no_others(tmp_path: Path, toolchain_c: Image) -> None:
    store = Store(tmp_path / "cache")
    (tmp_path / "cache/v2/runs").mkdir()
    (tmp_path / "cache/v2/runs/1-feedfacefeed.lock").write_text("containers\n")
    with Engine.connect() as engine:
        made = [
            engine.api.create_container(toolchain_c.id, command=["true"], labels={**LABELS, RUN_LABEL: run})["Id"]
            for run in ("1-feedfacefeed", "1-0123456789ab")
        ]
        try:
            assert run_folders.sweep_runs(store) == 1
            left = {found["Id"] for found in engine.api.containers(all=True, filters={"label": RUN_LABEL})}
            assert made[0] not in left
            assert made[1] in left
        finally:
            engine.remove_run("1-0123456789ab")
    assert list((tmp_path / "cache/v2/runs").iterdir()) == []
