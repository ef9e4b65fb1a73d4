"""Filling a new tree: what comes out is what the methods of `Tree` make."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from qcase.host.filling import Filling
from qcase.host.trees import PlantedError, Tree


def made(folder: Path) -> dict[str, tuple[int, str]]:
    """Everything in a folder: its mode, and its text or where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        text = str(path.readlink()) if path.is_symlink() else path.read_text() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (about.st_mode, text)
    return found


def random_tree(chance: random.Random, above: str = "", depth: int = 0) -> list[tuple[str, str, int]]:
    """Places in the order in which a walk meets them: path, kind, mode."""
    places = []
    for name in sorted(chance.sample(["a", "a.b", "ab", "b", "b-c", "-", "é", "usr", "usr2"], chance.randrange(1, 6))):
        kind = chance.choice(["dir", "file", "link"] if depth < 4 else ["file", "link"])
        places.append((above + name, kind, chance.choice([0o755, 0o700, 0o4755, 0o2775, 0o600])))
        if kind == "dir":
            places += random_tree(chance, f"{above}{name}/", depth + 1)
    return places


@pytest.mark.parametrize("seed", range(20))
def test_a_tree_is_filled_as_its_own_methods_would(seed: int, tmp_path: Path) -> None:
    one, other = Tree(tmp_path / "one"), Tree(tmp_path / "other")
    for tree in (one, other):
        tree.root.mkdir()
    before = os.umask(0o077)
    try:
        with Filling(one) as filling:
            for path, kind, mode in random_tree(random.Random(seed)):
                if kind == "dir":
                    filling.mkdir(path, mode)
                    (other / path).mkdir(mode)
                elif kind == "link":
                    filling.symlink_to(path, "../" + path)
                    (other / path).symlink_to("../" + path)
                else:
                    with filling.created(path, mode) as fd:
                        os.write(fd, path.encode())
                    (other / path).write_text(path, mode)
    finally:
        os.umask(before)
    assert made(tmp_path / "one") == made(tmp_path / "other")
    assert not [mode for mode, _ in made(tmp_path / "one").values() if mode & (stat.S_ISUID | stat.S_ISGID)]


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Filling(Tree(tmp_path)) as filling:
        for path in ("a", "a/b", "a/b/c", "d"):
            filling.mkdir(path, 0o755)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_name_that_is_taken_is_an_error_and_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").symlink_to(tmp_path / "outside")
    with Filling(Tree(tmp_path / "tree")) as filling:
        with pytest.raises((PlantedError, FileExistsError)):
            filling.mkdir("a", 0o755)
        with pytest.raises((PlantedError, FileExistsError)), filling.created("a", 0o644):
            pass
        with pytest.raises(AssertionError):  # its folder was not made here
            filling.symlink_to("a/b", "c")
    assert not list((tmp_path / "outside").iterdir())
