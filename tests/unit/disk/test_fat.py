"""The FAT image, read back by the letter of its format. That firmware boots from it is in tests/vm/test_uefi.py."""

from __future__ import annotations

import struct

import pytest

from qcase.disk import fat


class Volume:
    """A reader of FAT16 and FAT32 that shares nothing with the writer."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        (size, self.per_cluster, reserved, fats, roots, total16) = struct.unpack_from("<HBHBHH", image, 11)
        (fat16, total32, fat32) = (struct.unpack_from("<H", image, 22)[0], *struct.unpack_from("<II", image, 32))
        assert size == 512
        assert fats == 2
        assert image[510:512] == b"\x55\xaa"
        sectors = total16 or total32
        assert len(image) == sectors * 512
        length = fat16 or fat32
        self.table = image[reserved * 512 : (reserved + length) * 512]
        assert self.table == image[(reserved + length) * 512 : (reserved + 2 * length) * 512], "two equal tables"
        self.root_at = (reserved + 2 * length) * 512
        self.root_size = roots * 32
        self.first = self.root_at + self.root_size
        self.count = (sectors * 512 - self.first) // (self.per_cluster * 512)
        self.wide = self.count >= 65525
        assert self.count >= 4085, "else it would be FAT12"
        assert self.wide == (fat16 == 0)
        self.root = struct.unpack_from("<I", image, 44)[0] if self.wide else 0
        self.used: set[int] = set()

    def chain(self, number: int) -> bytes:
        data = []
        while number < (0x0FFFFFF8 if self.wide else 0xFFF8):
            assert number not in self.used, "a cluster belongs to one file"
            self.used.add(number)
            at = self.first + (number - 2) * self.per_cluster * 512
            data.append(self.image[at : at + self.per_cluster * 512])
            number = (
                struct.unpack_from("<I", self.table, number * 4)[0]
                if self.wide
                else struct.unpack_from("<H", self.table, number * 2)[0]
            )
        return b"".join(data)

    def files(self) -> dict[str, bytes]:
        top = self.chain(self.root) if self.wide else self.image[self.root_at : self.root_at + self.root_size]
        return dict(self._folder(top, ""))

    def _folder(self, data: bytes, above: str) -> list[tuple[str, bytes]]:
        found: list[tuple[str, bytes]] = []
        long = ""
        for at in range(0, len(data), 32):
            entry = data[at : at + 32]
            if entry[0] == 0:
                break
            if entry[11] == 0x0F:
                long = (entry[1:11] + entry[14:26] + entry[28:32]).decode("utf-16-le").split("\0")[0].rstrip("\uffff") + long
                continue
            short = entry[:8].decode().rstrip() + ("." + entry[8:11].decode().rstrip()).rstrip(".")
            name, long = long or short, ""
            number = struct.unpack_from("<H", entry, 20)[0] << 16 | struct.unpack_from("<H", entry, 26)[0]
            size = struct.unpack_from("<I", entry, 28)[0]
            if name in (".", ".."):
                continue
            if entry[11] & 0x10:
                found += self._folder(self.chain(number), f"{above}{name}/")
            else:
                whole = self.chain(number) if number else b""
                assert len(whole) - size < self.per_cluster * 512
                found.append((above + name, whole[:size]))
        return found


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"A": b""},
        {"EFI/BOOT/BOOTX64.EFI": b"x" * 4096, "startup.nsh": b"y" * 4097},
        {"EFI/BOOT/BOOTRISCV64.EFI": bytes(range(256)) * 40, "EFI/BOOT/BOOTAA64.EFI": b"1"},
        {"thirteenchars": b"13", "a name that is longer than one entry can hold": b"long", "lower.c": b"z"},
        {f"D/F{number}": bytes([number]) * number for number in range(200)},
        {"BIG": b"ab" * (20 << 20)},
    ],
    ids=["empty", "empty file", "short names", "long names", "odd names", "many files", "40 MB"],
)
def test_what_went_in_comes_out(files: dict[str, bytes]) -> None:
    assert Volume(fat.image(files)).files() == files


def test_the_same_files_give_the_same_bytes() -> None:
    assert fat.image({"B": b"1", "A/C": b"2"}) == fat.image({"A/C": b"2", "B": b"1"})
