"""The shell steps of the CI recipes, run in their order as a service would, in a workspace with one plain case."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcase.containers import Engine
from tests.conftest import ROOT
from tests.unit.test_recipes import CI, shell_steps
from tests.unit.test_wheel import build, copy_of_the_sources
from tests.vm.workspaces import Workspace, fresh_store

pytestmark = [pytest.mark.vm, pytest.mark.container]


@pytest.fixture
def image(shared_engine: Engine) -> Iterator[str]:
    """A small image with a label of its own, in the place of a toolchain image."""
    name = f"qcase/test-recipe-{uuid.uuid4().hex[:8]}"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a file"))
    changes = [f"LABEL {name}=1"]
    shared_engine.api.import_image_from_data(archive.getvalue(), repository=name, tag="1", changes=changes)
    yield name
    if shared_engine.image_exists(f"{name}:1"):
        shared_engine.api.remove_image(f"{name}:1", force=True)


@pytest.fixture
def checkout(tmp_path: Path, test_cache: Path, image: str) -> dict[str, str]:
    """A workspace as a service checks it out, and the environment that it gives its steps."""
    workspace = Workspace.make(tmp_path / "project")
    workspace.case("smoke", shell_init_cmd="echo it $((40 + 2)) runs", success_regex=["^it 42 runs$"])
    shutil.copy(CI / "ci.sh", workspace.root)
    store = tmp_path / "saved"
    store.mkdir()
    fresh_store(store / "store", test_cache)
    (tmp_path / "temp").mkdir()
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    return {
        "CI": "true",
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ARCH": "aarch64",
        "STORE": str(store),
        "STORE_SIZE": "1000 GiB",  # guests in this store are the other tests' too
        "IMAGES": image,
        "PWD": str(workspace.root),
        # What qcase depends on is there already: no network is needed.
        "PYTHONPATH": packages,
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def step(script: str, environment: dict[str, str], status: int = 0) -> str:
    argv = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script]
    done = subprocess.run(argv, cwd=environment["PWD"], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_the_steps_for_github(checkout: dict[str, str], tmp_path: Path, shared_engine: Engine) -> None:
    wheel = build(copy_of_the_sources(tmp_path / "sources"), tmp_path / "dist")
    given = {"QCASE": str(wheel), "RUNNER_TEMP": str(tmp_path / "temp"), "GITHUB_PATH": str(tmp_path / "path")}
    for script in shell_steps(CI / "github.yml"):
        # Packages are the machine's own: the tests have them.
        steps = "\n".join(line for line in script.splitlines() if not line.startswith("sudo "))
        path = Path(given["GITHUB_PATH"])
        added = path.read_text().strip() + ":" if path.exists() else ""
        said = step(steps, {**checkout, **given, "PATH": added + checkout["PATH"]})
    assert "1 case in" in said
    assert (tmp_path / "temp" / "qcase" / "bin" / "qcase").is_file()
    (case,) = json.loads((Path(checkout["PWD"]) / "results.json").read_text())["cases"]
    assert case["verdict"] == "pass"
    assert "smoke" in (Path(checkout["PWD"]) / "junit.xml").read_text()


def test_images_are_saved_and_restored_and_a_failure_is_told(checkout: dict[str, str], shared_engine: Engine) -> None:
    (script,) = shell_steps(CI / "gitlab-ci.yml")
    name = f"{checkout['IMAGES']}:1"
    known = shared_engine.image_id(name)
    assert known is not None
    saved = Path(checkout["STORE"]) / "images"
    saved.mkdir()
    (saved / "0123.tar").touch()  # one that is there no more is not kept either; this one does not load
    step(script, checkout, status=1)
    (saved / "0123.tar").unlink()
    step(script, checkout)
    assert [path.name for path in saved.glob("*.tar")] == [f"{known.removeprefix('sha256:')}.tar"]
    shared_engine.api.remove_image(name, force=True)
    toml = Path(checkout["PWD"]) / "suite" / "normal" / "smoke" / "qemu-aarch64.toml"
    toml.write_text(toml.read_text().replace("it 42 runs", "it 43 runs").replace("timeout", "timeout = 20\n#"))
    step(script, checkout, status=1)
    assert shared_engine.image_id(name) == known
    assert (Path(checkout["PWD"]) / "junit.xml").is_file()


def test_packages_of_the_recipe_are_those_that_setup_asks_for() -> None:
    (installed,) = [
        line
        for script in shell_steps(CI / "github.yml")
        for line in script.splitlines()
        if " install " in line and "sudo" in line
    ]
    setup = (ROOT / ".ci" / "setup").read_text(encoding="utf-8")
    for package in installed.split("--no-install-recommends ")[1].split():
        assert f" {package}\n" in setup
