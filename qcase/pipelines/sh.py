"""The pipeline `sh`: every regular file directly in `sh/` goes to `/usr/bin`, 0755.

Nothing is built, so no container is needed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from qcase.errors import BuildError
from qcase.pipelines import Craft, Workshop, make_folders, require_folder


def build(source: Path, overlay: Path, workshop: Workshop) -> None:
    """Fill `overlay` from `source/sh`."""
    install(source / "sh", overlay, workshop)


def install(folder: Path, overlay: Path, workshop: Workshop) -> None:
    """Put every regular file directly in `folder` into `/usr/bin`, also through a link. Folders are passed over."""
    require_folder(folder, workshop.case)
    bin_dir = make_folders(overlay, "usr/bin")
    whole = folder.parent.resolve()
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not (path.exists() and path.resolve().is_relative_to(whole)):
            raise BuildError(
                f"{folder.name}/{path.name} is a symbolic link to nothing in the workspace",
                where=workshop.case,
                hint="only what is in there is part of a case's sources",
            )
        if path.is_file():
            shutil.copyfile(path, bin_dir / path.name)
            (bin_dir / path.name).chmod(0o755)


CRAFT = Craft(recipe=1, build=build)
