"""The pipeline `sh`: every regular file directly in `sh/` goes to `/usr/bin`, 0755.

Nothing is built, so no container is needed.
"""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

from qcase.errors import BuildError
from qcase.pipelines import Craft, Workshop, make_folders, require_folder


def build(source: Path, overlay: Path, workshop: Workshop) -> None:
    """Fill `overlay` from `source/sh`."""
    install(source / "sh", overlay, workshop)


def install(folder: Path, overlay: Path, workshop: Workshop) -> None:
    """Put every regular file directly in `folder` into `/usr/bin`. Folders in it are passed over, as axbuild does."""
    require_folder(folder, workshop.case)
    bin_dir = make_folders(overlay, "usr/bin")
    for path in sorted(folder.iterdir()):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise BuildError(
                f"{folder.name}/{path.name} is a symbolic link",
                where=workshop.case,
                hint="only regular files are installed: what a link points to is not part of the case's sources",
            )
        if stat.S_ISREG(mode):
            shutil.copyfile(path, bin_dir / path.name)
            (bin_dir / path.name).chmod(0o755)


CRAFT = Craft(recipe=1, build=build)
