"""The toy pipeline of tests/toys, a distribution of its own with an image of its own: built in containers and booted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from qcase.arch import Arch
from tests import toys
from tests.vm import workspaces
from tests.vm.workspaces import Workspace

pytestmark = [pytest.mark.vm, pytest.mark.container]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.install_zig(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, test_cache: Path) -> Path:
    """A store of its own for the image that is built here, with the records of those that are there."""
    return workspaces.fresh_store(tmp_path_factory.mktemp("store") / "store", test_cache)


@pytest.fixture
def workspace(tmp_path: Path, site: Path) -> Workspace:
    """A workspace with one case, as `qcase new` writes it."""
    made = Workspace.make(tmp_path / "w")
    done = qcase(made, site, "new", "hello", "--pipeline", "zig", "--arch", "x86_64")
    assert done.returncode == 0, done.stderr
    return made


def qcase(workspace: Workspace, site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = workspaces.environment(workspace.root.parent / "home", {"PYTHONPATH": str(site)})
    return subprocess.run([workspaces.QCASE, *words], cwd=workspace.root, env=env, capture_output=True, text=True, check=False)


def test_a_new_case_is_built_in_the_plug_ins_image_and_passes(workspace: Workspace, site: Path, store: Path) -> None:
    env = {"PYTHONPATH": str(site)}
    outcome = workspaces.run(workspace, store=store, env=env, arch=Arch.X86_64)
    assert outcome.verdicts == {"hello": "pass"}, outcome.said
    assert outcome.case("hello")["pipeline"] == "zig"
    again = workspaces.run(workspace, store=store, env=env, arch=Arch.X86_64)
    assert (again.case("hello")["verdict"], again.case("hello")["cache"]) == ("pass", "hit")

    (workspace.path("hello") / "zig/src/main.c").write_text("int main(void) { return nothing; }\n")
    broken = workspaces.run(workspace, store=store, env=env, arch=Arch.X86_64)
    assert broken.verdicts == {"hello": "build-error"}
    assert "main.c:1:" in broken.said


def test_the_plug_ins_image_is_listed_and_pinned_like_any_other(workspace: Workspace, site: Path, store: Path) -> None:
    at = ("--cache-dir", str(store))
    built = qcase(workspace, site, "images", "build", "zig", *at)
    assert built.returncode == 0, built.stderr
    assert "zig" in qcase(workspace, site, "images", "list", *at).stdout
    explained = json.loads(qcase(workspace, site, "explain", "hello", "--json", *at).stdout)
    assert "normal/hello" in explained
    locked = qcase(workspace, site, "images", "lock", "zig", "--own", *at)
    assert locked.returncode == 0, locked.stderr
    assert "[zig]" in (workspace.root / "qcase-images.lock").read_text()
    env = {"PYTHONPATH": str(site), "CI": "1"}
    outcome = workspaces.run(workspace, store=store, env=env, arch=Arch.X86_64)
    assert outcome.verdicts == {"hello": "pass"}, outcome.said
    assert "pinned" not in outcome.said
