"""A file system of hundreds of megabytes."""

from __future__ import annotations

from qcase.disk import fat
from tests.unit.disk.test_fat import Volume


def test_a_file_that_fat16_cannot_hold_makes_fat32() -> None:
    files = {"EFI/BOOT/BOOTX64.EFI": bytes(270 << 20), "B": b"b"}
    volume = Volume(fat.image(files))
    assert volume.wide
    assert volume.files() == files
