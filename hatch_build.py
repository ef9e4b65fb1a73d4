"""Writes the commit into what is built, as `qcase/_commit`: `$QCASE_COMMIT`, else what git says, else what a source archive has.

Where none of them knows, there is no such file, and `qcase --version` says the version alone.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

DESCRIBE = ("git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=-edited")


class CommitHook(BuildHookInterface):  # type: ignore[type-arg]
    """hatchling's hook. An editable build asks git at run time."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        archived = root / "qcase" / "_commit"
        commit = os.environ.get("QCASE_COMMIT", "") or _asked_of_git(root)
        if not commit and archived.is_file():
            commit = archived.read_text(encoding="utf-8").strip()
        if version == "editable" or not commit:
            return
        self._folder = tempfile.TemporaryDirectory(prefix="qcase-build-")
        written = Path(self._folder.name) / "_commit"
        written.write_text(commit + "\n", encoding="utf-8")
        build_data["force_include"][str(written)] = "qcase/_commit"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def _asked_of_git(root: Path) -> str:
    """The commit of this very checkout, not of one that it happens to lie in."""
    if not (root / ".git").exists():
        return ""
    try:
        return subprocess.run(DESCRIBE, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
