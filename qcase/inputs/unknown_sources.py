"""Findings of lint about folders that look like sources of a pipeline that is not installed: the case would boot without them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from qcase.errors import Problem
from qcase.inputs.findings import Finding, warning
from qcase.model import Pipeline
from qcase.suite.cases import Workspace, source_folders
from qcase.suite.catalogue import CatalogueEntry
from qcase.suite.scan import PROJECT_FILE
from qcase.text import printable


def findings(workspace: Workspace, entry: CatalogueEntry) -> Iterator[Finding]:
    """Report folders with files beside the files of a plain case that do not name them, and such folders of would-be subcases."""
    with suppress(OSError):  # said where the folder is read
        yield from _findings(workspace, entry)


def _findings(workspace: Workspace, entry: CatalogueEntry) -> Iterator[Finding]:
    kinds = set(entry.pipelines.values())
    if kinds == {Pipeline.PLAIN} and not entry.is_group:
        files = [path for path in entry.path.glob("qemu-*.toml") if path.is_file()]
        text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
        for folder in _folders(entry.path):
            if folder.name not in text and _has_file(folder) and not _is_case(folder):
                yield _finding(workspace, folder, "the case is built of nothing")
    elif Pipeline.GROUPED in kinds and not (entry.path / PROJECT_FILE).is_file():
        for child in _folders(entry.path):
            inside = os.listdir(child)  # noqa: PTH208 - names alone
            if len(inside) == 1 and inside[0] not in source_folders() and _has_file(child / inside[0]) and not _is_case(child):
                yield _finding(workspace, child / inside[0], f"{printable(child.name)} is no subcase")


def _finding(workspace: Workspace, folder: Path, result: str) -> Finding:
    what = f"no pipeline that is installed has this name: {result}"
    hint = f"there are: {', '.join(f'{name}/' for name in source_folders())}; install the plug-in of {printable(folder.name)}/"
    return warning("sources", Problem(what, workspace.relative(folder), hint=hint))


def _folders(path: Path) -> list[Path]:
    """Return the folders in a case that hold no sources of a pipeline."""
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return [path / name for name in sorted(names) if not name.startswith(".") and name not in source_folders()]


def _has_file(folder: Path) -> bool:
    """Tell whether a folder has a file of its own, and no folder of sources: that one is of another mistake."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        found = list(entries)
    return any(entry.is_file() for entry in found) and not any(entry.name in source_folders() for entry in found)


def _is_case(folder: Path) -> bool:
    """Tell whether a folder is a case, or has one below it."""
    return any(name.startswith("qemu-") and name.endswith(".toml") for _, _, names in os.walk(folder) for name in names)
