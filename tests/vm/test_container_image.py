"""The image of the Containerfile: the same suite on this machine and in it gives the same keys, overlays and images.

`python -m tests.tools.same_everywhere` prints a table of that for all examples.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcase import __version__
from qcase.arch import Arch
from qcase.containers.connection import socket_path
from qcase.containers.engine import Engine
from tests.conftest import ROOT
from tests.tools import same_everywhere
from tests.vm.workspaces import Workspace, c_program, fresh_store, run, says

pytestmark = [pytest.mark.vm, pytest.mark.container]

IMAGE = "qcase/test-image"
# Somebody who is not known here; only root can have another one's workspace.
CALLER = (1234, 1235) if os.geteuid() == 0 else (os.getuid(), os.getgid())


@pytest.fixture(scope="module")
def image() -> str:
    """Built once; the engine remembers its layers, and only what changed is made anew."""
    subprocess.run([str(ROOT / ".ci" / "image"), IMAGE], check=True, env={**os.environ, "PYTHON": sys.executable})
    return f"{IMAGE}:latest"


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace that `CALLER` may own meanwhile."""
    made = Workspace.make(tmp_path / "w")
    keys = {"success_regex": ["^fine$"]}
    made.case("compiled", c_program(says("fine")), shell_init_cmd="prog", **keys)  # type: ignore[arg-type]
    made.case("script", {"sh/say.sh": "#!/bin/sh\necho fine\n"}, shell_init_cmd="say.sh", **keys)  # type: ignore[arg-type]
    yield made
    subprocess.run(["chown", "-R", f"{os.getuid()}:{os.getgid()}", str(made.root)], check=True)


def docker_run(image: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = ["docker", "run", "--rm", "-v", f"{socket_path(os.environ)}:/var/run/docker.sock", *arguments[:-1]]
    argv += [image, *arguments[-1].split()]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)


def docker_shell(image: str, script: str) -> str:
    """As a CI service calls it: with a shell."""
    return subprocess.run(
        ["docker", "run", "--rm", image, "sh", "-euc", script], capture_output=True, text=True, check=True
    ).stdout


def test_it_says_its_version_and_has_what_it_needs(image: str) -> None:
    assert docker_run(image, "--version").stdout.startswith(f"qcase {__version__} (commit ")
    emulators = [f"qemu-system-{arch}" for arch in Arch]
    asked = "; ".join(f"{program} --version" for program in (*emulators, "qemu-img", "docker", "git", "python3"))
    said = docker_shell(image, asked)
    assert said.count("QEMU emulator version") == len(emulators)
    assert "Python 3.13" in said


def test_the_same_suite_here_and_there(
    image: str, workspace: Workspace, tmp_path: Path, test_cache: Path, shared_engine: Engine
) -> None:
    here = fresh_store(tmp_path / "here", test_cache)
    assert set(run(workspace, store=here).verdicts.values()) == {"pass"}
    there = tmp_path / "there"
    for guest in (test_cache / "guests").glob("*aarch64*"):
        same_everywhere.copy(guest, there / "guests" / guest.name)
    same_everywhere.copy(test_cache / "images", there / "images")
    shutil.rmtree(workspace.root / "target")
    for place in (workspace.root, there):
        subprocess.run(["chown", "-R", "{}:{}".format(*CALLER), str(place)], check=True)
    # Under another path than here, and the store under a third.
    mounts = ["-v", f"{workspace.root}:/elsewhere", "-w", "/elsewhere", "-v", f"{there}:/cache"]
    done = docker_run(image, *mounts, "run --arch aarch64")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    rows = same_everywhere.compared(here, there)
    assert {row.kind for row in rows} == {"overlay", "image"}
    assert len(rows) >= 4
    assert all(row.here == row.there for row in rows), same_everywhere.table(rows)
    # What it made belongs to the owner of the workspace, and not to root.
    made = [path for place in (workspace.root / "target", there / "v2") for path in place.rglob("*")]
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in made} == {CALLER}


def test_a_store_that_the_engine_does_not_see(image: str, workspace: Workspace, test_cache: Path) -> None:
    """One error before anything is built, for each case that needs the engine."""
    mounts = ["-v", f"{workspace.root}:/w", "-e", "QCASE_CACHE_DIR=/tmp/cache", "--tmpfs", "/tmp/cache:mode=1777"]
    mounts += ["-v", f"{test_cache}/guests:/tmp/cache/guests:ro"]
    done = docker_run(image, *mounts, "run --arch aarch64 compiled")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "/tmp/cache: the container engine, which sits outside of this container, does not see it" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
