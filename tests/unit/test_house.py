"""The house itself: what imports what, that the linters are content, and that names of machines stay out."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from qcase import process
from tests.conftest import ROOT

# DESIGN, "The house": imports point downwards in this list.
ROOMS = [
    "cli",
    "shell",
    "runner",
    "report",
    "completion",
    "doctor",
    "explain",
    "lint",
    "prepare",
    "selection",
    "scaffold",
    "schedule",
    "runs",
    "pipelines",
    "suite",
    "cache",
    "gc",
    "packages",
    "images",  # above the guests: one of the images is made from a guest
    "guests",
    "debian",
    "initramfs",
    "firmware",
    "fat",
    "kernels",
    "containers",
    "outside",
    "rootfs",
    "ext4",
    "accel",
    "qemu",
    "console",
    "keyboard",
    "transcript",
    "store",
    "kept",
    "content",
    "locks",
    "keys",
    "schema",
    "parsed",
    "config",
    "history",
    "version",
    "events",
    "model",
    "errors",
    "process",
    "guardian",
]
# The lowest rooms know each other: an event carries a result, a process raises an error.
FOUNDATION = {"events", "model", "errors", "process", "guardian"}


def room(path: Path) -> str:
    return path.relative_to(ROOT / "qcase").parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The rooms that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "qcase":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("qcase."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("qcase.")}
    return found & set(ROOMS)


MODULES = sorted(path for path in (ROOT / "qcase").rglob("*.py") if path.name != "__init__.py" or path.parent.name != "qcase")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    here = room(path)
    assert here in ROOMS, f"{here} has no place in the list of rooms"
    for other in imported(path):
        if other == here or {here, other} <= FOUNDATION:
            continue
        assert ROOMS.index(other) > ROOMS.index(here), f"{here} imports {other}, which is above it"


def test_a_listener_knows_events_never_the_runner() -> None:
    for path in (ROOT / "qcase" / "report").glob("*.py"):
        assert imported(path) <= {"report", *FOUNDATION}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_but_the_gateway_starts_processes(path: Path) -> None:
    if path.name == "process.py":
        return
    text = path.read_text(encoding="utf-8")
    for call in ("subprocess.Popen(", "subprocess.run(", "subprocess.check_", "os.system(", "os.fork(", "os.exec", "os.spawn"):
        assert call not in text


@pytest.mark.parametrize(
    "argv",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
    ],
    ids=" ".join,
)
def test_the_linters_are_content(argv: tuple[str, ...]) -> None:
    done = process.run([sys.executable, "-m", *argv], cwd=ROOT, check=False, timeout=600)
    assert done.returncode == 0, done.output


def test_what_the_tests_install_is_pinned() -> None:
    lines = (ROOT / "tests" / "requirements.txt").read_text(encoding="ascii").splitlines()
    assert lines
    assert all("==" in line for line in lines)
