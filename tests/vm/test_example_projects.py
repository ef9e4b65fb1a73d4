"""`examples/projects`: what other people wrote, fetched by its digests, built as it is, and its own tests in the guests."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import ROOT
from tests.vm import workspaces
from tests.vm.workspaces import run

pytestmark = [pytest.mark.vm, pytest.mark.container]

EXAMPLE = ROOT / "examples" / "projects"


@pytest.fixture(scope="module")
def fetched(test_cache: Path) -> Path:
    """The projects' sources, kept from run to run: whether they are those of `sources.toml` is looked at each time."""
    into = test_cache / "projects"
    with FileLock(test_cache / "projects.lock"):
        subprocess.run([sys.executable, str(EXAMPLE / "fetch.py"), "--into", str(into)], check=True)
    return into


@pytest.mark.usefixtures("toolchain_rust")
def test_every_project_passes_its_own_tests(fetched: Path, tmp_path: Path, test_cache: Path) -> None:
    projects = tomllib.loads((EXAMPLE / "sources.toml").read_text())
    root = tmp_path / "w"
    shutil.copytree(EXAMPLE, root, symlinks=True, ignore=shutil.ignore_patterns("fetched", "target"))
    shutil.copytree(fetched, root / "fetched", symlinks=True)
    subprocess.run([sys.executable, str(root / "fetch.py")], check=True, cwd=ROOT)  # makes the links
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    outcome = run(root, "--arch", "x86_64", "--arch", "aarch64", store=store, arch=None, timeout=1500)
    assert outcome.report is not None, outcome.said
    found = {(case["case"].removeprefix("normal/"), case["arch"]): case["verdict"] for case in outcome.report["cases"]}
    assert found == {(name, arch): "pass" for name in projects for arch in ("x86_64", "aarch64")}, outcome.said
    assert not [case["warnings"] for case in outcome.report["cases"] if case["warnings"]], outcome.said


def test_a_project_that_is_another_one_is_not_unpacked(fetched: Path, tmp_path: Path) -> None:
    """Nor is what was there before taken away."""
    shutil.copy(EXAMPLE / "fetch.py", tmp_path)
    text = (EXAMPLE / "sources.toml").read_text()
    digest = tomllib.loads(text)["inih"]["sha256"]
    (tmp_path / "sources.toml").write_text(text.replace(digest, digest[::-1]))
    shutil.copytree(fetched / "inih", tmp_path / "fetched/inih", symlinks=True)
    done = subprocess.run([sys.executable, str(tmp_path / "fetch.py"), "inih"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 3
    assert f"error: {tmp_path}/sources.toml: inih is not what sources.toml says: its sha256 is {digest}" in done.stderr
    assert sorted(path.name for path in (tmp_path / "fetched").iterdir()) == ["inih"]
    assert (tmp_path / "fetched/inih/ini.c").is_file()
