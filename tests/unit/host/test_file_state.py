"""Files that are known by their looks."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest

from qcase.host import file_state


def test_a_record_is_a_files_sha256_and_how_it_looks(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    record = file_state.read(file)
    assert record == {"sha256": file_state.sha256(file), "facts": file_state.facts(file)}
    assert file_state.is_record(record)
    file.write_bytes(b"CONTENT")
    assert file_state.facts(file) != record["facts"]
    assert file_state.facts(tmp_path / "none") is None
    (tmp_path / "link").symlink_to("file")
    assert file_state.facts(tmp_path / "link") != file_state.facts(file)
    with pytest.raises(FileNotFoundError):
        file_state.read(tmp_path / "none")


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    read = file_state.sha256

    def interrupted(path: Path) -> str:
        found = read(path)
        path.write_bytes(b"damaged")
        return found

    monkeypatch.setattr(file_state, "sha256", interrupted)
    assert file_state.read(file)["facts"] == {}


def test_a_file_that_says_it_is_from_the_future_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    os.utime(file, (time.time() + 1000,) * 2)
    assert file_state.read(file)["facts"] == file_state.facts(file)


@pytest.mark.parametrize(("filesystem", "known"), [("ext4", True), ("", True), ("tmpfs", False), ("fuse", False), (None, False)])
def test_a_file_whose_times_tell_nothing_has_no_facts(
    filesystem: str | None, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    recorded = file_state.facts(file)
    assert recorded is not None
    monkeypatch.setattr(file_state, "_filesystem", lambda _device: filesystem)
    assert bool(file_state.read(file)["facts"]) == known
    assert file_state.is_as_recorded(file, recorded) == known


def test_a_file_that_is_written_through_a_mapping_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_state, "_filesystem", lambda _device: "ext4")
    file = tmp_path / "file"
    file.write_bytes(bytes(65536))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        for content in range(1, 5):
            mapped[0] = content  # from the second on into a page that is dirty, unless `read` has flushed it
            time.sleep(0.02)
            record = file_state.read(file)
            mapped[0] = content + 100
            assert not file_state.is_as_recorded(file, record["facts"])
