"""The pipeline `python`: every regular file directly in `python/` goes to `/usr/bin`, 0755.

`python3` itself, with all that it depends on, is an overlay of its own (`qcase.pipelines.brought`), made once for all cases.
Nothing is compiled to bytes here: Python itself never caches what it is given as a program.
"""

from __future__ import annotations

from pathlib import Path

from qcase.pipelines import Craft, Workshop, sh

PACKAGES = ("python3",)


def build(source: Path, overlay: Path, workshop: Workshop) -> None:
    """Fill `overlay` from `source/python`."""
    sh.install(source / "python", overlay, workshop)


CRAFT = Craft(recipe=1, packages=PACKAGES, build=build)
