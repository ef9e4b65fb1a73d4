"""The lock of the toolchain images: how it is read and written, which one counts, and how an image differs from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qcase.config import image_lock
from qcase.config.image_lock import Lock, Pin
from qcase.errors import ConfigError, InfraError
from qcase.toolchains import images, records
from qcase.toolchains.recipes import names, recipe_digest
from qcase.toolchains.records import Image

PACKAGES = ("gcc amd64 14.2-1", "make amd64 4.4-2", "musl all 1.2.5")


def recipes(folder: Path) -> Path:
    (folder / "own").mkdir(parents=True)
    (folder / "own" / "Containerfile").write_text("ARG BASE\nFROM ${BASE}\n")
    return folder


def image(folder: Path, packages: tuple[str, ...] = PACKAGES) -> Image:
    return Image("own", "sha256:1", image_lock.identity(recipe_digest("own", folder), packages), packages)


def lock(folder: Path) -> Lock:
    return Lock(folder / image_lock.FILE, {"own": records.pin(image(folder), folder)}, "20261122T120000Z", own=True)


def test_the_lock_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = recipes(tmp_path)
    assert records.shipped_lock(folder) == Lock(folder / "lock.toml")
    written = lock(folder)
    path = image_lock.write(written)
    assert image_lock.read(path, own=True) == written
    pin = written.pins["own"]
    assert pin.identity == image(folder).identity
    assert pin.base == "Debian trixie, minbase"
    path.write_text(path.read_text().replace("14.2", "14.3"))
    with pytest.raises(ConfigError, match="the digest of the packages of own"):
        image_lock.read(path)


def test_a_lock_without_a_snapshot_is_one_of_an_older_version(tmp_path: Path) -> None:
    written = replace(lock(recipes(tmp_path)), snapshot="")
    assert "snapshot" not in image_lock.write(written).read_text()
    assert image_lock.read(written.path, own=True) == written


@pytest.mark.parametrize("time", ["yesterday", "20261122", "20261322T120000Z", "20261122T120000Z/../..", 20261122])
def test_what_is_no_time_is_refused(tmp_path: Path, time: object) -> None:
    path = image_lock.write(lock(recipes(tmp_path)))
    path.write_text(path.read_text().replace('"20261122T120000Z"', f'"{time}"' if isinstance(time, str) else str(time)))
    with pytest.raises(ConfigError, match="is no lock: "):
        image_lock.read(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("format = 1", "<<<<<<< HEAD\nformat = 1"),
        ("format = 1", f"format = 1\ndeep = {'[' * 5000}{']' * 5000}"),
        ('recipe = "', 'base = "x"\nrecipe = 5\n# "'),
        ("list = [", f'packages = "{image_lock.packages_digest(("1",))}"\nlist = [1]\nrest = ['),
    ],
    ids=["a merge that was left", "nested too deeply", "a number for a recipe", "a number for a package"],
)
def test_a_lock_that_is_spoilt_is_refused_with_a_remedy_that_works(tmp_path: Path, before: str, after: str) -> None:
    path = image_lock.write(lock(recipes(tmp_path)))
    text = path.read_text()
    if "packages = " in after:
        text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("packages"))
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(ConfigError, match="is no lock: ") as caught:
        image_lock.read(path, own=True)
    assert caught.value.problems[0].hint == "restore it, or remove it and let `qcase images lock --own` write it anew"
    path.unlink()
    assert image_lock.read(path, own=True) == Lock(path, own=True)


@pytest.mark.parametrize(
    ("make", "said"), [(lambda path: path.symlink_to("nothing"), "is a link to nothing"), (os.mkfifo, "is not a file")]
)
def test_a_lock_that_is_no_file_does_not_give_way_to_the_shipped_one(
    tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    shipped = recipes(tmp_path / "images")
    image_lock.write(replace(lock(shipped), path=shipped / image_lock.SHIPPED))
    make(tmp_path / image_lock.FILE)
    with pytest.raises(ConfigError, match=said):
        image_lock.of_workspace(tmp_path, shipped)


def test_the_committed_lock_has_all_images_with_their_recipes_and_a_snapshot() -> None:
    lock = records.shipped_lock()
    assert sorted(lock.pins) == names()
    assert {name: pin.recipe for name, pin in lock.pins.items()} == {name: recipe_digest(name) for name in lock.pins}
    assert lock.snapshot
    assert image_lock.write(replace(lock, path=lock.path)).read_text() == lock.path.read_text()


def test_the_workspaces_own_lock_counts_unless_it_is_a_strangers(tmp_path: Path) -> None:
    shipped = recipes(tmp_path / "images")
    image_lock.write(Lock(shipped / image_lock.SHIPPED, {"own": Pin("own", "0" * 64, "Debian", PACKAGES)}))
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    assert image_lock.of_workspace(workspace, shipped) == image_lock.read(shipped / image_lock.SHIPPED)
    own = replace(lock(shipped), path=workspace / image_lock.FILE)
    image_lock.write(own)
    assert image_lock.of_workspace(workspace, shipped) == own
    assert image_lock.of_workspace(workspace, shipped, trusted=False) == image_lock.read(shipped / image_lock.SHIPPED)


def test_a_difference_is_named_package_by_package(tmp_path: Path) -> None:
    folder = recipes(tmp_path)
    wanted = lock(folder)
    records.refuse_other(image(folder, tuple(reversed(PACKAGES))), wanted, folder)
    assert images.departure(image(folder, tuple(reversed(PACKAGES))), wanted, folder) == ""
    other = image(folder, ("gcc amd64 14.3-1", "musl all 1.2.5", "perl amd64 5"))
    with pytest.raises(InfraError) as caught:
        records.refuse_other(other, wanted, folder)
    assert caught.value.what.splitlines() == [
        "the toolchain image own is not the one that is pinned",
        "gcc:amd64 is 14.3-1, pinned is 14.2-1",
        "make:amd64 is missing, pinned is 4.4-2",
        "perl:amd64 5 is not pinned",
    ]
    said = images.departure(other, wanted, folder)
    assert "gcc:amd64 14.2-1 → 14.3-1, make:amd64 4.4-2 → (none), perl:amd64 (none) → 5" in said


def test_another_recipe_and_no_pin(tmp_path: Path) -> None:
    folder = recipes(tmp_path)
    with pytest.raises(InfraError, match="own is not pinned") as caught:
        records.refuse_other(image(folder), records.shipped_lock(folder), folder)
    assert "`qcase images lock own --own`" in caught.value.hint
    assert images.departure(image(folder), records.shipped_lock(folder), folder) == ""
    other = Lock(folder / image_lock.FILE, {"own": Pin("own", "0" * 64, "Debian", PACKAGES)})
    with pytest.raises(InfraError, match="the recipe is another"):
        records.refuse_other(image(folder), other, folder)
    assert "its recipe is another" in images.departure(image(folder), other, folder)


def test_a_recipe_of_another_image_or_of_a_guest(tmp_path: Path) -> None:
    folder = recipes(tmp_path)
    digests = {recipe_digest("own", folder)}
    for base in ('guest = "alpine"', 'image = "c"'):
        (folder / "own" / "base.toml").write_text(f"[base]\n{base}\n")
        digests.add(recipe_digest("own", folder))
    assert len(digests) == 3
    (folder / "own" / "base.toml").write_text('[base]\nguest = "plan9"\n')
    with pytest.raises(InfraError, match="no built-in guest"):
        recipe_digest("own", folder)


def test_the_time_of_an_image_that_was_taken_in_is_that_of_a_lock_which_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QCASE_DEBIAN_MIRROR", "file:/none")  # it says no time
    folder = recipes(tmp_path / "images")
    cache = tmp_path / "store"
    after = replace(lock(folder), snapshot="")
    assert images.time_of(Lock(after.path), after, cache, folder) == ("", [])
    image_lock.write(replace(lock(folder), path=folder / image_lock.SHIPPED))
    assert images.time_of(Lock(after.path), after, cache, folder) == ("20261122T120000Z", [])


def test_images_of_two_times_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock has one snapshot: who sets up a machine later gets the older image with other packages."""
    monkeypatch.setenv("QCASE_DEBIAN_MIRROR", "file:/none")
    folder = recipes(tmp_path / "images")
    cache = tmp_path / "store"
    (folder / "new").mkdir()
    (folder / "new" / "Containerfile").write_text("ARG BASE\nFROM ${BASE}\n")
    recipe = recipe_digest("new", folder)
    pin = Pin("new", recipe, "Debian", PACKAGES)
    before = lock(folder)
    after = replace(before, pins={**before.pins, "new": pin})
    (cache / "images").mkdir(parents=True)
    record = {
        "format": image_lock.LOCK_FORMAT,
        "recipe": recipe,
        "image": "sha256:2",
        "identity": pin.identity,
        "date": "20261129T000000Z",
    }
    (cache / "images" / "new.json").write_text(json.dumps(record))
    assert images.time_of(before, after, cache, folder) == ("20261129T000000Z", ["own"])
