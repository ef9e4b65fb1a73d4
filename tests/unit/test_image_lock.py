"""`images/lock.toml`: what it says of an image, and what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase import images
from qcase.errors import ConfigError, InfraError
from qcase.images import Image, Pin

PACKAGES = ("gcc amd64 14.2-1", "make amd64 4.4-2", "musl all 1.2.5")


def recipes(folder: Path) -> Path:
    (folder / "own").mkdir(parents=True)
    (folder / "own" / "Containerfile").write_text("ARG BASE\nFROM ${BASE}\n")
    return folder


def image(folder: Path, packages: tuple[str, ...] = PACKAGES) -> Image:
    return Image("own", "sha256:1", images.identity(images.recipe_digest("own", folder), packages), packages)


def test_the_lock_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = recipes(tmp_path)
    assert images.read_lock(folder) == {}
    pin = images.pin(image(folder), folder)
    path = images.write_lock({"own": pin}, folder)
    assert images.read_lock(folder) == {"own": pin}
    assert pin.identity == image(folder).identity
    assert pin.base == "Debian trixie, minbase"
    path.write_text(path.read_text().replace("14.2", "14.3"))
    with pytest.raises(ConfigError, match="the digest of the packages of own"):
        images.read_lock(folder)


def test_the_committed_lock_has_all_images_with_their_recipes() -> None:
    pins = images.read_lock()
    assert sorted(pins) == images.names()
    assert {name: pin.recipe for name, pin in pins.items()} == {name: images.recipe_digest(name) for name in pins}


def test_a_difference_is_named_package_by_package(tmp_path: Path) -> None:
    folder = recipes(tmp_path)
    images.write_lock({"own": images.pin(image(folder), folder)}, folder)
    images.refuse_other(image(folder, tuple(reversed(PACKAGES))), folder)
    other = image(folder, ("gcc amd64 14.3-1", "musl all 1.2.5", "perl amd64 5"))
    with pytest.raises(InfraError) as caught:
        images.refuse_other(other, folder)
    assert caught.value.what.splitlines() == [
        "the toolchain image own is not the one that is pinned",
        "gcc:amd64 is 14.3-1, pinned is 14.2-1",
        "make:amd64 is missing, pinned is 4.4-2",
        "perl:amd64 5 is not pinned",
    ]


def test_another_recipe_and_no_pin(tmp_path: Path) -> None:
    folder = recipes(tmp_path)
    with pytest.raises(InfraError, match="own is not pinned"):
        images.refuse_other(image(folder), folder)
    images.write_lock({"own": Pin("own", "0" * 64, "Debian", PACKAGES)}, folder)
    with pytest.raises(InfraError, match="the recipe is another"):
        images.refuse_other(image(folder), folder)


def test_a_recipe_of_another_image_or_of_a_guest(tmp_path: Path) -> None:
    folder = recipes(tmp_path)
    digests = {images.recipe_digest("own", folder)}
    for base in ('guest = "alpine"', 'image = "c"'):
        (folder / "own" / "base.toml").write_text(f"[base]\n{base}\n")
        digests.add(images.recipe_digest("own", folder))
    assert len(digests) == 3
    (folder / "own" / "base.toml").write_text('[base]\nguest = "plan9"\n')
    with pytest.raises(InfraError, match="no built-in guest"):
        images.recipe_digest("own", folder)
