"""Toys that are added to qcase as a newcomer would, by docs/extending.md alone: an architecture, and a pipeline with an image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOYS = Path(__file__).parent


def install_zig(site: Path) -> Path:
    """Install the distribution of the toy pipeline into a folder for `PYTHONPATH`, with what the tests have and no network."""
    argv = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*argv, "--no-build-isolation", "--target", str(site), str(TOYS / "zig")], check=True)
    return site
