"""What all tests share. CI's own environment must not change what a test sees: `CI` decides what the store keeps.

Tests run in several processes (`make test`): a file with guests or containers stays in one of them, since its tests share what
was made for the first; all others go to whoever is free. A test that measures is marked `alone`: nothing runs beside it.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from qcase.arch import Arch
from qcase.containers.engine import Engine
from qcase.guests import alpine
from qcase.host import process
from qcase.toolchains import images
from qcase.toolchains.records import Image
from tests import kernel, packages

ROOT = Path(__file__).resolve().parent.parent

for name in (
    "CI",
    "QCASE_DISABLE_ROOTFS_CACHE",
    "QCASE_CACHE_DIR",
    "NO_COLOR",
    "FORCE_COLOR",
    "COLUMNS",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
):
    os.environ.pop(name, None)

# Under nohup, and in the background of a script, these are ignored, which every child inherits; but tests send them.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


# No test depends on the clock: a busy machine takes its time.
settings.register_profile("qcase", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("qcase")


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out files with guests or containers as a whole, the largest first, and then all other tests one by one.

    (pytest-xdist's own marks for groups do nothing with pytest 9.2.)
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if re.search("/(vm|container)/", file) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hold `running` shared, or alone for a test that asks for it. Who waits for that holds `next`: nobody comes in between."""
    places = Path(tempfile.gettempdir()) / f"qcase-tests-{os.getuid()}-{zlib.crc32(os.fsencode(ROOT)):08x}"
    with Path(f"{places}.running").open("w") as running, Path(f"{places}.next").open("w") as following:
        alone = item.get_closest_marker("alone") is not None
        fcntl.flock(following, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(following, fcntl.LOCK_UN)
        return (yield)


@pytest.fixture(scope="session")
def test_cache() -> Path:
    """A store that the tests keep from run to run, so that guests are fetched and toolchain images recorded once."""
    cache = Path(os.environ.get("QCASE_TEST_CACHE") or Path.home() / ".cache" / "qcase-tests")
    cache.mkdir(parents=True, exist_ok=True)
    return cache


@pytest.fixture
def wheels(test_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The guests' wheels, fetched once, in place of the package index: who fetches a guest needs no network from then on."""
    folder = test_cache / "wheels"
    folder.mkdir(exist_ok=True)
    with FileLock(test_cache / "wheels.lock"):
        for release in alpine.RELEASES.values():
            if not any(folder.glob(f"*{release.platform}*.whl")):
                argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--no-input"]
                argv += ["--platform", release.platform, "--dest", str(folder), release.requirement]
                subprocess.run(argv, check=True)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _no_guardian_left() -> Iterator[None]:
    """Tests that start children in this process start a guardian for it."""
    yield
    process.dismiss_guardian()


@pytest.fixture(scope="session")
def shared_engine() -> Iterator[Engine]:
    with Engine.connect() as connected:
        yield connected


@pytest.fixture(scope="session")
def toolchain_c(shared_engine: Engine, test_cache: Path) -> Image:
    """The image `c`, built if it is not there."""
    return images.ensure("c", shared_engine, test_cache)


@pytest.fixture(scope="session")
def kernels(request: pytest.FixtureRequest, test_cache: Path) -> Mapping[Arch, Path]:
    """Our own test kernel for each architecture (see `tests.kernel`)."""

    def connect() -> Engine:
        engine: Engine = request.getfixturevalue("shared_engine")
        return engine

    return kernel.build(connect, test_cache)


@pytest.fixture(scope="session")
def toolchain_rust(shared_engine: Engine, test_cache: Path) -> Image:
    """The image `rust`, likewise."""
    return images.ensure("rust", shared_engine, test_cache)


@pytest.fixture(scope="session")
def repository(shared_engine: Engine, test_cache: Path) -> packages.Repository:
    """The package repository of the tests, made if it is not there. Who may wait for it needs a timeout of its own."""
    return packages.provide(shared_engine, test_cache)
