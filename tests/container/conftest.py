"""What the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.containers import Engine
from qcase.images import Image
from tests.container.builds import Case


@pytest.fixture
def case(tmp_path: Path, shared_engine: Engine, toolchain_c: Image, toolchain_rust: Image) -> Case:
    return Case(tmp_path / "case", shared_engine, {"c": toolchain_c.id, "rust": toolchain_rust.id}, {"HOME": str(tmp_path)})
