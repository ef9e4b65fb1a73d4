"""The wheel, as people install it: by pip on each Python that is here, by pipx, and by uv; what they install runs a case.

All of them resolve what the wheel depends on; they find it in a folder, fetched once, and need no network from then on. That is
what is newest where the tests were pinned, and, once, the least that the wheel says is enough.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from filelock import FileLock

from qcase import __version__
from qcase.arch import Arch
from qcase.guests import guest
from tests.conftest import ROOT
from tests.processes.test_wheel import COMMIT, build, copy_of_the_sources

pytestmark = pytest.mark.vm

OURS = f"{sys.version_info.major}.{sys.version_info.minor}"
NEWEST, LOWEST, INSTALLERS = (ROOT / "tests" / f"{name}.txt" for name in ("requirements", "lowest", "installers"))


def pythons() -> dict[str, str]:
    """Version to program, of each Python here that qcase is for: the one of these tests, and those of the search path."""
    found = {OURS: sys.executable}
    for version in ("3.11", "3.12", "3.13", "3.14"):
        program = shutil.which(f"python{version}")
        if program is None or version in found:
            continue
        asked = subprocess.run(
            [program, "-c", "import sys, venv, ensurepip; print(sys.executable)"], capture_output=True, text=True, check=False
        )
        if asked.returncode == 0:
            found[version] = asked.stdout.strip()
    return found


def folder_for(version: str, wheel: Path, test_cache: Path, versions: Path = NEWEST) -> Path:
    """All that the wheel and, with the newest versions, the installers need on that Python."""
    pinned = (NEWEST, LOWEST, INSTALLERS, ROOT / "pyproject.toml")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in pinned)).hexdigest()
    folder = test_cache / "installers" / digest[:16] / (version if versions == NEWEST else f"{version}-{versions.stem}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            for old in folder.parent.parent.iterdir():
                if old != folder.parent:
                    shutil.rmtree(old)
            part = folder.with_name(f"{folder.name}.part")
            argv = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--disable-pip-version-check",
                "--no-input",
                "--only-binary=:all:",
            ]
            argv += ["--implementation", "cp", "--python-version", version, "--dest", str(part)]
            for tag in ("manylinux_2_17", "manylinux_2_28"):
                argv += ["--platform", f"{tag}_{platform.machine()}"]
            argv += ["--platform", "any", "--constraint", str(versions), str(wheel)]
            if versions == NEWEST:
                argv += ["-r", str(INSTALLERS)]
            subprocess.run(argv, check=True)
            (part / wheel.name).unlink()
            part.rename(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(copy_of_the_sources(tmp_path_factory.mktemp("sources") / "qcase"), tmp_path_factory.mktemp("built"))


def environment(home: Path, folder: Path) -> dict[str, str]:
    """A home of one's own, and the folder in place of an index."""
    return {
        "PATH": f"{home}/.local/bin:{os.environ['PATH']}",
        "HOME": str(home),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(folder),
        "UV_OFFLINE": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        **{name: os.environ[name] for name in ("DOCKER_HOST", "TMPDIR") if name in os.environ},
    }


def does(*argv: str | Path, env: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def works(qcase: Path, env: dict[str, str], place: Path, test_cache: Path, python: str) -> None:
    """It says what it is, is of that Python, and runs a plain case."""
    assert does(qcase, "--version", env=env, cwd=place) == f"qcase {__version__} (commit {COMMIT})\n"
    shown = does(
        qcase.resolve().with_name("python"), "-c", "import sys; print('%d.%d' % sys.version_info[:2])", env=env, cwd=place
    )
    assert shown == f"{python}\n"
    guest.alpine_guest(Arch.AARCH64, test_cache, emit=lambda _: None)
    suite = place / "linux"
    shutil.copytree(ROOT / "examples" / "linux", suite, ignore=shutil.ignore_patterns("target"))
    arguments = ("--cache-dir", str(test_cache), "--arch", "aarch64", "--json", str(place / "results.json"), "smoke")
    assert "1 passed" in does(qcase, "run", *arguments, env=env, cwd=suite)
    (case,) = json.loads((place / "results.json").read_text())["cases"]
    assert case["verdict"] == "pass"


def tools(home: Path, folder: Path) -> Path:
    """Where pipx and uv are installed."""
    does(sys.executable, "-m", "venv", home / "tools", env=environment(home, folder), cwd=home)
    does(home / "tools" / "bin" / "pip", "install", "-q", "pipx", "uv", env=environment(home, folder), cwd=home)
    return home / "tools" / "bin"


@pytest.mark.parametrize(("version", "program"), pythons().items(), ids=pythons())
def test_pip(version: str, program: str, wheel: Path, test_cache: Path, tmp_path: Path) -> None:
    folder = folder_for(version, wheel, test_cache)
    env = environment(tmp_path, folder)
    does(program, "-m", "venv", tmp_path / "v", env=env, cwd=tmp_path)
    does(tmp_path / "v" / "bin" / "pip", "install", "-q", wheel, env=env, cwd=tmp_path)
    works(tmp_path / "v" / "bin" / "qcase", env, tmp_path, test_cache, version)
    assert does(tmp_path / "v" / "bin" / "pip", "check", env=env, cwd=tmp_path) == "No broken requirements found.\n"


@pytest.mark.parametrize("backend", ["pip", "uv"])
def test_pipx(backend: str, wheel: Path, test_cache: Path, tmp_path: Path) -> None:
    folder = folder_for(OURS, wheel, test_cache)
    env = {**environment(tmp_path, folder), "PIPX_DEFAULT_BACKEND": backend}
    does(tools(tmp_path, folder) / "pipx", "install", wheel, env=env, cwd=tmp_path)
    works(tmp_path / ".local" / "bin" / "qcase", env, tmp_path, test_cache, OURS)
    assert list(tmp_path.glob(".local/share/man/man1/qcase.1"))


def test_uv(wheel: Path, test_cache: Path, tmp_path: Path) -> None:
    folder = folder_for(OURS, wheel, test_cache)
    env = environment(tmp_path, folder)
    does(tools(tmp_path, folder) / "uv", "tool", "install", "--python", sys.executable, wheel, env=env, cwd=tmp_path)
    works(tmp_path / ".local" / "bin" / "qcase", env, tmp_path, test_cache, OURS)


def test_the_lowest_versions(wheel: Path, test_cache: Path, tmp_path: Path) -> None:
    """What other distributions have lies between these and the newest."""
    direct = {line for line in LOWEST.read_text(encoding="utf-8").splitlines() if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in project["dependencies"]:
        name, least = requirement.split(">=")
        assert any(re.fullmatch(rf"{name}=={re.escape(least)}(\.0)*", line) for line in direct), requirement
    folder = folder_for(OURS, wheel, test_cache, LOWEST)
    env = environment(tmp_path, folder)
    does(sys.executable, "-m", "venv", tmp_path / "v", env=env, cwd=tmp_path)
    binaries = tmp_path / "v" / "bin"
    does(binaries / "python", "-m", "pip", "install", "-q", "--constraint", LOWEST, wheel, env=env, cwd=tmp_path)
    installed = does(binaries / "python", "-m", "pip", "freeze", "--all", env=env, cwd=tmp_path).replace("_", "-").lower()
    assert direct - set(installed.splitlines()) == set()
    works(binaries / "qcase", env, tmp_path, test_cache, OURS)
    reports = ("--junit", "junit.xml", "--html", "report.html")
    does(binaries / "qcase", "report", "results.json", *reports, env=env, cwd=tmp_path)
    assert 'tests="1"' in (tmp_path / "junit.xml").read_text()
    assert "smoke" in (tmp_path / "report.html").read_text()
    for command in ("run", "list", "report", "cache", "images", "init"):
        assert "Usage:" in does(binaries / "qcase", command, "--help", env=env, cwd=tmp_path)
    asked = {"_QCASE_COMPLETE": "complete_bash", "COMP_WORDS": "qcase run --workspace linux smo", "COMP_CWORD": "4"}
    assert does(binaries / "qcase", env={**env, **asked}, cwd=tmp_path).split() == ["smoke"]
    for name in ("qcase", "qemu", "results", "events"):
        assert json.loads(does(binaries / "qcase", "schema", name, env=env, cwd=tmp_path))
