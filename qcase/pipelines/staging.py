"""The staging root: the base image unpacked into a folder, for what a build wants to look up in it."""

from __future__ import annotations

from pathlib import Path

from qcase.ext4 import Ext4Image, Kind

RECIPE = 1


def unpack(base: Path, folder: Path) -> None:
    """Unpack an image's folders, files and links into an empty folder.

    Owners are the caller's and device nodes are left out: nobody boots a staging root. What its owner may not read is made
    readable for him, so that an ordinary user can look at what root could.
    """
    with Ext4Image.open(base) as image:
        for path, node in image.walk("/"):
            target = folder / path.lstrip("/")
            if node.kind is Kind.DIR:
                target.mkdir(exist_ok=True)
                target.chmod((node.mode & 0o777) | 0o700)
            elif node.kind is Kind.SYMLINK:
                target.symlink_to(image.readlink(node))
            elif node.kind is Kind.FILE:
                with target.open("wb") as file:
                    image.copy_out(node, file)
                target.chmod((node.mode & 0o777) | 0o400)
