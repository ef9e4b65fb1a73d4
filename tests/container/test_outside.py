"""qcase in a container, with the engine outside: real mounts, real volumes, and a real engine that is asked for them.

The container has this machine's own programs, by a mount of /usr, and nothing else of it: so no image has to be built for that.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcase.containers.connection import socket_path
from qcase.containers.engine import Engine
from qcase.toolchains import base as base_module
from tests.conftest import ROOT

pytestmark = pytest.mark.container

PROGRAM = """
import sys
from pathlib import Path
from qcase.containers.engine import Engine
from qcase.containers.step import Mount, Step
from qcase.errors import QcaseError
from qcase.host import process

image, workspace, store = sys.argv[1:]
try:
    with Engine.connect(Path(workspace)) as engine:
        for place in (workspace, store):
            engine.host_paths.seen(Path(place))
        for place in (workspace, store):
            (Path(place) / "given").write_text("given " + place)
            mounts = (Mount(Path(place), "/qcase/build", False),)
            for n in range(2):
                argv = ("cp", "/qcase/build/given", f"/qcase/build/made{n}")
                step = Step(image=image, argv=argv, mounts=mounts, timeout=60, name="copy")
                result = engine.run(step)
                print(place, result.exit_status, result.output, (Path(place) / f"made{n}").read_text())
except QcaseError as error:
    print(error, "|", error.hint)
process.dismiss_guardian()
"""


@pytest.fixture
def volume(shared_engine: Engine, test_cache: Path) -> Iterator[str]:
    name = f"qcase-test-{uuid.uuid4().hex[:8]}"
    shared_engine.api.create_volume(name, labels={"qcase": "1"})
    # The engine gives it to root; whoever runs the tests is to write there.
    open_it = [
        "docker",
        "run",
        "--rm",
        "-v",
        f"{name}:/cache",
        base_module.base(shared_engine, test_cache),
        "chmod",
        "1777",
        "/cache",
    ]
    subprocess.run(open_it, check=True)
    yield name
    shared_engine.api.remove_volume(name, force=True)


def run(engine: Engine, cache: Path, arguments: list[str], workspace: str, store: str) -> str:
    """The program in a container. Returns what it said."""
    base = base_module.base(engine, cache)
    own = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT}
    seen = [path for path in own if not path.is_relative_to("/usr")]
    group = Path(socket_path(os.environ)).stat().st_gid
    argv = ["docker", "run", "--rm", "--network", "none", "-v", "/usr:/usr:ro"]
    argv += ["--user", f"{os.getuid()}:{os.getgid()}", "--group-add", str(group)]
    argv += [part for path in seen for part in ("-v", f"{path}:{path}:ro")]
    argv += ["-v", f"{socket_path(os.environ)}:/var/run/docker.sock", *arguments]
    argv += [
        "--env",
        f"PYTHONPATH={ROOT}",
        base,
        sys.executable,
        "-c",
        PROGRAM,
        base_module.base(engine, cache),
        workspace,
        store,
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_mounts_and_volumes_are_found_by_themselves(shared_engine: Engine, test_cache: Path, tmp_path: Path, volume: str) -> None:
    said = run(shared_engine, test_cache, ["-v", f"{tmp_path}:/a place", "-v", f"{volume}:/cache"], "/a place", "/cache")
    assert said.splitlines() == [f"{place} 0  given {place}" for place in ("/a place", "/cache") for _ in range(2)]
    assert (tmp_path / "made0").read_text() == "given /a place"


def test_a_store_that_is_on_no_mount(shared_engine: Engine, test_cache: Path, tmp_path: Path) -> None:
    said = run(shared_engine, test_cache, ["-v", f"{tmp_path}:/w"], "/w", "/root")
    assert said.startswith(
        "/root: the container engine, which sits outside of this container, does not see it | mount the folder"
    )
    assert not list(tmp_path.iterdir())


def test_a_workspace_that_the_caller_names(shared_engine: Engine, test_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    arguments = ["-v", f"{tmp_path}:/w", "-e", f"QCASE_HOST_WORKSPACE={tmp_path}"]
    said = run(shared_engine, test_cache, arguments, "/w", "/w/store")
    assert said.splitlines()[-1] == "/w/store 0  given /w/store"


def test_a_workspace_that_the_caller_names_wrongly(shared_engine: Engine, test_cache: Path, tmp_path: Path) -> None:
    """There is such a folder outside, but it is another one: nothing may be built from it."""
    (tmp_path / "right").mkdir()
    (tmp_path / "wrong").mkdir()
    arguments = ["-v", f"{tmp_path / 'right'}:/w", "-e", f"QCASE_HOST_WORKSPACE={tmp_path / 'wrong'}"]
    said = run(shared_engine, test_cache, arguments, "/w", "/w")
    assert said.startswith("/w: the container engine has another folder there than qcase: it sits outside of this container | ")
    assert not list((tmp_path / "wrong").iterdir())
