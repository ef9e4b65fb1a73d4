"""Staging root: the base image unpacked into a folder, for builds to read."""

from __future__ import annotations

import os
from pathlib import Path

from qcase.host.trees import Tree

STAGING_RECIPE = 1
_DATA = 16 << 30  # bytes of files; more cannot be stored


def unpack(base: Path, folder: Tree) -> None:
    """Unpack an image's folders, files and links into an empty folder.

    The files belong to the caller. Device nodes, setuid and setgid bits are left out: no machine boots a staging root. Every path
    is made readable for its owner, so that an unprivileged user can read files that only root could read.
    """
    from qcase.disk.ext4 import Ext4Image, Kind
    from qcase.host.filling import Filling

    left = _DATA
    with Ext4Image.open(base) as image, Filling(folder) as filling:
        for path, node in image.walk("/"):
            if path == "/":
                folder.chmod((node.mode & 0o777) | 0o700)
                continue
            place = path.lstrip("/")
            if node.kind is Kind.DIR:
                filling.mkdir(place, (node.mode & 0o777) | 0o700)
            elif node.kind is Kind.SYMLINK:
                filling.symlink_to(place, image.readlink(node))
            elif node.kind is Kind.FILE:
                with filling.created(place, (node.mode & 0o777) | 0o400) as fd, os.fdopen(fd, "wb", closefd=False) as file:
                    left -= image.copy_out(node, file, left)
