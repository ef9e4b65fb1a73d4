"""The wheel: the same bytes wherever and whenever it is built, with everything inside, and it works where it is installed."""

from __future__ import annotations

import hashlib
import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from qcase import __version__
from qcase.cli import version
from qcase.toolchains import recipes
from tests.conftest import ROOT
from tests.tools import manpage

COMMIT = "0123456789ab"
SOURCES = ("qcase", "images", "share", "hatch_build.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore")


def build(sources: Path, out: Path, target: str = "wheel", commit: str = COMMIT, umask: int = 0o022) -> Path:
    environment = {**os.environ, "QCASE_COMMIT": commit}
    argv = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    subprocess.run(argv, cwd=sources, env=environment, check=True, capture_output=True, umask=umask)
    (built,) = out.iterdir()
    return built


def copy_of_the_sources(place: Path) -> Path:
    place.mkdir(parents=True)
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, copy_function=shutil.copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)
    return place


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(copy_of_the_sources(tmp_path_factory.mktemp("one") / "qcase"), tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel. What it depends on is taken from ours, so that no network is needed."""
    place = tmp_path_factory.mktemp("venv") / "v"
    venv.create(place, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    (packages,) = (place / "lib").glob("python3.*/site-packages")
    ours = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in ours))
    return place


def run(installed: Path, *arguments: str) -> str:
    argv = [str(installed / "bin" / "qcase"), *arguments]
    return subprocess.run(argv, cwd="/", capture_output=True, text=True, check=True).stdout


def test_two_builds_give_one_sha256(wheel: Path, tmp_path: Path) -> None:
    """In another place, at another time, under another umask, and through the source archive."""
    elsewhere = copy_of_the_sources(tmp_path / "a place" / "of another name")
    for path in sorted(elsewhere.rglob("*")):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o700 if path.is_dir() else 0o600 | (path.stat().st_mode & 0o100))
    again = build(elsewhere, tmp_path / "again", umask=0o077)
    archive = build(elsewhere, tmp_path / "archive", target="sdist")
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path / "unpacked"], check=True)
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    from_archive = build(unpacked, tmp_path / "third", commit="")
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (wheel, again, from_archive)}
    assert len(digests) == 1


def test_what_is_inside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "images").rglob("*"):
        if path.is_file():
            assert f"qcase/_images/{path.relative_to(ROOT / 'images')}" in names
    for path in (ROOT / "qcase").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT)) in names
    assert {"qcase/py.typed", "qcase/_commit"} <= names
    shared = {"share/man/man1/qcase.1", *(f"share/{path}" for path in manpage.COMPLETIONS.values())}
    assert {name.partition(".data/data/")[2] for name in names if ".data/data/" in name} == shared
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "examples/")) or "__pycache__" in name]


def test_an_installed_qcase_says_its_commit_and_has_the_same_toolchain_images(installed: Path) -> None:
    assert run(installed, "--version") == f"qcase {__version__} (commit {COMMIT})\n"
    program = (
        "from qcase.toolchains import recipes; import qcase; "
        "print(qcase.__file__, *(f'{name}={recipes.recipe_digest(name)}' for name in recipes.names()))"
    )
    said = subprocess.run([installed / "bin" / "python", "-c", program], cwd="/", capture_output=True, text=True, check=True)
    place, *digests = said.stdout.split()
    assert Path(place).is_relative_to(installed)
    assert digests == [f"{name}={recipes.recipe_digest(name)}" for name in recipes.names()]


def test_an_installed_qcase_brings_schemas_a_man_page_and_completions(installed: Path) -> None:
    for name in ("qcase", "qemu"):
        assert run(installed, "schema", name) == (ROOT / "docs" / "schemas" / f"{name}.json").read_text(encoding="utf-8")
    for shell, path in manpage.COMPLETIONS.items():
        assert (installed / "share" / path).read_text() == run(installed, "completion", shell)
    assert '.SS "qcase run"' in (installed / "share" / "man" / "man1" / "qcase.1").read_text()


def test_an_installed_qcase_reads_a_suite(installed: Path) -> None:
    assert "smoke" in run(installed, "list", "--workspace", str(ROOT / "examples" / "linux"))


def test_the_commit_of_a_checkout_is_that_of_git(tmp_path: Path) -> None:
    package = tmp_path / "qcase"
    package.mkdir()
    assert version.commit(package) == ""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    assert version.commit(package) == ""  # no commit yet
    (package / "file").write_text("one")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert len(version.commit(package)) == 12
    assert head.startswith(version.commit(package))
    (package / "file").write_text("two")
    assert version.commit(package).endswith("-edited")
    (package / "_commit").write_text("fedcba987654\n")
    assert version.commit(package) == "fedcba987654"


def test_the_changelog_has_this_version() -> None:
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
