"""Files that are known by their looks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from qcase import kept


def test_a_record_is_a_files_sha256_and_how_it_looks(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    record = kept.read(file)
    assert record == {"sha256": kept.sha256(file), "facts": kept.facts(file)}
    assert kept.is_record(record)
    file.write_bytes(b"CONTENT")
    assert kept.facts(file) != record["facts"]
    assert kept.facts(tmp_path / "none") is None
    (tmp_path / "link").symlink_to("file")
    assert kept.facts(tmp_path / "link") != kept.facts(file)
    with pytest.raises(FileNotFoundError):
        kept.read(tmp_path / "none")


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    read = kept.sha256

    def interrupted(path: Path) -> str:
        found = read(path)
        path.write_bytes(b"damaged")
        return found

    monkeypatch.setattr(kept, "sha256", interrupted)
    assert kept.read(file)["facts"] == {}


def test_a_file_that_says_it_is_from_the_future_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    os.utime(file, (time.time() + 1000,) * 2)
    assert kept.read(file)["facts"] == kept.facts(file)
