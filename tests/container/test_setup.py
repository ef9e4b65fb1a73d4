"""`make setup` on an empty Debian 13, as an ordinary user: what is missing, and the line to paste.

`make test-fresh` goes on from there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qcase.containers.engine import Engine
from qcase.toolchains import base as base_module
from tests.conftest import ROOT

pytestmark = pytest.mark.container


def setup(base: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = ["docker", "run", "--rm", "--network", "none", "--user", "1234:1234", "-v", f"{folder}:/project:ro", base]
    return subprocess.run([*argv, "/project/.ci/setup", *arguments], capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """As much of a checkout as setup looks at, where everybody may look."""
    folder = tmp_path / "project"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "setup", folder / ".ci")
    return folder


def test_an_ordinary_user_is_told_what_root_has_to_do(shared_engine: Engine, test_cache: Path, project: Path) -> None:
    base = base_module.base(shared_engine, test_cache)
    done = setup(base, project)
    assert done.returncode == 2
    missing, paste, elsewhere = done.stderr.splitlines()
    assert missing.startswith("setup: missing: qemu-system-x86 ")
    (packages,) = re.findall(r"^setup: on Debian or Ubuntu: +sudo apt-get install (.*)$", paste)
    # Debian 13 has the engine's client apart.
    assert {"docker.io", "docker-cli", "mmdebstrap", "python3", "python3-venv"} <= set(packages.split())
    assert "package manager" in elsewhere
    assert setup(base, project, "--packages").stdout.strip() == packages
    assert {"strace", "nix-bin"} <= set(setup(base, project, "--packages", "tests").stdout.split())
