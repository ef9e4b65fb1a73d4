"""How files get to the disk and away again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qcase import content
from tests.unit.test_store import finish, in_namespace


def test_a_copy_on_a_full_disk_says_so_in_one_line(tmp_path: Path) -> None:
    """`shutil.copytree` makes a list of all that failed, in which errors are text: nobody would know that the disk is full."""
    script = """
    from qcase import content
    for number in range(4):
        (root / "source" / str(number)).mkdir(parents=True)
        (root / "source" / str(number) / "file").write_bytes(bytes(300 << 10))
    try:
        content.copy_tree(root / "source", root / "copy")
    except OSError as error:
        print(error.errno, type(error).__name__, error)
    """
    said = finish(in_namespace(f'mount -t tmpfs -o size=2m none "{tmp_path}"', script, tmp_path, tmp_path))
    assert said.startswith(f"{errno.ENOSPC} OSError [Errno {errno.ENOSPC}] No space left on device: '{tmp_path}/")
    assert len(said.splitlines()) == 1


def test_a_copy_has_symlinks_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "link").symlink_to("/nowhere")
    (tmp_path / "source" / "file").write_text("new")
    with pytest.raises(FileNotFoundError):
        content.copy_tree(tmp_path / "missing", tmp_path / "copy")
    (tmp_path / "copy").mkdir()
    with pytest.raises(FileExistsError):
        content.copy_tree(tmp_path / "source", tmp_path / "copy")
    (tmp_path / "copy" / "file").write_text("old")
    content.copy_tree(tmp_path / "source", tmp_path / "copy", there=True)
    assert str((tmp_path / "copy" / "link").readlink()) == "/nowhere"
    assert (tmp_path / "copy" / "file").read_text() == "new"


def test_a_file_that_cannot_be_copied_is_named(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    os.mkfifo(tmp_path / "source" / "pipe")
    with pytest.raises(OSError, match="is a named pipe") as caught:
        content.copy_tree(tmp_path / "source", tmp_path / "copy")
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path / "copy" / "pipe"))
