"""The version of this qcase, and the commit that it was built from.

A wheel, an image and the Nix package carry the commit in the file `_commit` (see `hatch_build.py`); a checkout asks git.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from qcase import __version__
from qcase.host import process

DESCRIBE = ("git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=-edited")


def commit(package: Path | None = None) -> str:
    """Return the commit, followed by `-edited` if the checkout has uncommitted changes; empty if it is unknown."""
    package = package or Path(__file__).resolve().parent.parent
    written = package / "_commit"
    if written.is_file():
        return written.read_text(encoding="utf-8").strip()
    if not (package.parent / ".git").exists() or shutil.which(DESCRIBE[0]) is None:
        return ""
    done = process.run(DESCRIBE, cwd=package.parent, timeout=30, check=False)
    return done.stdout.decode().strip() if done.returncode == 0 else ""


def describe() -> str:
    """Describe the version, as in `qcase 0.1.0 (commit 0123456789ab)`."""
    known = commit()
    return f"qcase {__version__}" + (f" (commit {known})" if known else "")
