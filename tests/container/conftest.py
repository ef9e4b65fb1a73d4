"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qcase.containers.engine import Engine
from qcase.host import process
from qcase.toolchains import base
from qcase.toolchains.records import Image
from tests import registry as registry_module
from tests.container.builds import Case
from tests.registry import Registry


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine for one file of tests, whose guardian ends with them."""
    with Engine.connect() as engine:
        yield engine
    process.dismiss_guardian()


@pytest.fixture(scope="module")
def image(engine: Engine, test_cache: Path) -> str:
    """The id of the base image."""
    found = engine.image_id(base.base(engine, test_cache))
    assert found is not None
    return found


@pytest.fixture
def case(tmp_path: Path, shared_engine: Engine, toolchain_c: Image, toolchain_rust: Image) -> Case:
    return Case(tmp_path / "case", shared_engine, {"c": toolchain_c.id, "rust": toolchain_rust.id}, {"HOME": str(tmp_path)})


@pytest.fixture(scope="module")
def registry(shared_engine: Engine, test_cache: Path) -> Iterator[Registry]:
    with registry_module.running(shared_engine, test_cache) as running:
        yield running
