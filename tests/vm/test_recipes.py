"""The shell steps of the CI recipes, run in their order as a service would, in a workspace with one plain case."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcase.containers.engine import Engine
from qcase.toolchains import image_contents, oci, recipes
from tests.conftest import ROOT
from tests.processes.test_wheel import build, copy_of_the_sources
from tests.static.test_recipes import CI, shell_steps
from tests.vm.workspaces import Workspace, fresh_store

pytestmark = [pytest.mark.vm, pytest.mark.container]


@dataclass(frozen=True)
class Built:
    """A toolchain image of a qcase of its own, whose recipe nobody else has. `name`: the engine's name for it."""

    sources: Path
    name: str


@pytest.fixture
def built(tmp_path: Path, shared_engine: Engine) -> Iterator[Built]:
    """Sources of qcase in which the small image `alpine` is the only one, and another one than elsewhere."""
    sources = copy_of_the_sources(tmp_path / "sources")
    for name in ("c", "rust"):
        shutil.rmtree(sources / "images" / name)
    recipe = sources / "images/alpine/Containerfile"
    recipe.write_text(f"{recipe.read_text()}RUN echo {uuid.uuid4().hex} >/opt/qcase/own\n")
    digest = recipes.recipe_digest("alpine", sources / "images")
    yield Built(sources, image_contents.tag_of("alpine", digest))
    for image in shared_engine.api.images(filters={"label": f"{oci.RECIPE_LABEL}={digest}"}):
        shared_engine.api.remove_image(image["Id"], force=True)


@pytest.fixture
def checkout(tmp_path: Path, test_cache: Path, built: Built) -> dict[str, str]:
    """A workspace as a service checks it out, and the environment that it gives its steps."""
    workspace = Workspace.make(tmp_path / "project")
    workspace.case("smoke", shell_init_cmd="echo it $((40 + 2)) runs", success_regex=["^it 42 runs$"])
    shutil.copy(CI / "ci.sh", workspace.root)
    store = fresh_store(tmp_path / "saved" / "store", test_cache)
    shutil.rmtree(store / "images")  # the records of all toolchain images of the tests
    (tmp_path / "temp").mkdir()
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    return {
        "CI": "true",
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ARCH": "aarch64",
        "STORE": str(store.parent),
        "STORE_SIZE": "1000 GiB",  # guests in this store are the other tests' too
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


def test_the_steps_for_github(checkout: dict[str, str], built: Built, tmp_path: Path) -> None:
    wheel = build(built.sources, tmp_path / "dist")
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


def test_images_are_saved_and_restored_and_a_failure_is_told(
    checkout: dict[str, str], built: Built, shared_engine: Engine
) -> None:
    (script,) = shell_steps(CI / "gitlab-ci.yml")
    checkout = {**checkout, "PYTHONPATH": f"{built.sources}:{checkout['PYTHONPATH']}"}
    saved = Path(checkout["STORE"]) / "images"
    step(script, checkout)
    assert list(saved.iterdir()) == []  # the case needed no image
    step("QCASE_CACHE_DIR=$STORE/store qcase images build alpine", checkout)
    for broken in ("0123.tar", "4567.tar"):  # of another recipe, or damaged: they do not load, and go
        (saved / broken).write_bytes(b"no layout")
    step(script, checkout)
    (archive,) = saved.iterdir()
    known, written = shared_engine.image_id(built.name), archive.stat()
    assert known is not None
    step(script, checkout)  # the engine has it, and it is not saved again
    assert (archive.stat().st_ino, archive.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    shared_engine.api.remove_image(known, force=True)
    toml = Path(checkout["PWD"]) / "suite" / "normal" / "smoke" / "qemu-aarch64.toml"
    toml.write_text(toml.read_text().replace("it 42 runs", "it 43 runs").replace("timeout", "timeout = 20\n#"))
    step(script, checkout, status=1)
    assert shared_engine.image_exists(built.name)
    assert list(saved.iterdir()) == [archive]
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
