"""The archive and the order of kernel modules."""

from __future__ import annotations

import gzip
import lzma
import stat

import pytest

from qcase.errors import InfraError
from qcase.guests import initramfs, kernel_modules
from qcase.guests.initramfs import Member, cpio
from qcase.guests.kernel_modules import load_order, parse_dependencies, unpack


def members(archive: bytes) -> list[tuple[str, list[int], bytes]]:
    """Read an archive back by the letter of the format: name, the thirteen numbers, data."""
    found: list[tuple[str, list[int], bytes]] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110 : at + 110 + numbers[11]]
        assert name.endswith(b"\0")
        assert b"\0" not in name[:-1]
        start = (at + 110 + numbers[11] + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert not archive[start:].strip(b"\0")
            return found
        found.append((name[:-1].decode(), numbers, archive[start : start + numbers[6]]))
        at = (start + numbers[6] + 3) // 4 * 4


def test_an_archive_holds_what_went_in_sorted_and_with_the_folders_that_it_takes() -> None:
    archive = cpio(
        [
            Member("lib/modules/a.ko", stat.S_IFREG | 0o644, b"12345"),
            Member("bin/sh", stat.S_IFLNK | 0o777, b"busybox"),
            Member("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            Member("init", stat.S_IFREG | 0o755, b"#!/bin/sh\n"),
        ]
    )
    found = members(archive)
    assert [(name, oct(numbers[1]), data) for name, numbers, data in found] == [
        ("bin", "0o40755", b""),
        ("bin/sh", "0o120777", b"busybox"),
        ("dev", "0o40755", b""),
        ("dev/console", "0o20600", b""),
        ("init", "0o100755", b"#!/bin/sh\n"),
        ("lib", "0o40755", b""),
        ("lib/modules", "0o40755", b""),
        ("lib/modules/a.ko", "0o100644", b"12345"),
    ]
    by_name = {name: numbers for name, numbers, _ in found}
    assert by_name["dev/console"][9:11] == [5, 1]
    assert [numbers[0] for _, numbers, _ in found] == list(range(1, 9)), "one inode each: nothing is a hard link"
    assert all(numbers[2:4] == [0, 0] and numbers[5] == 0 for _, numbers, _ in found), "owner root, dated 1970"


def test_the_order_of_members_does_not_matter() -> None:
    some = [Member(name, stat.S_IFREG | 0o644, name.encode()) for name in ("b", "a/x", "a/y", "a.z")]
    assert cpio(some) == cpio(some[::-1])


DEPENDENCIES = """\
kernel/fs/ext4/ext4.ko.gz: kernel/lib/crc/crc16.ko.gz kernel/fs/mbcache.ko.gz kernel/fs/jbd2/jbd2.ko.gz
kernel/fs/jbd2/jbd2.ko.gz:
kernel/fs/mbcache.ko.gz:
kernel/lib/crc/crc16.ko.gz:
kernel/drivers/block/virtio_blk.ko.gz:
kernel/drivers/net/net-failover.ko.gz: kernel/net/core/failover.ko.gz
kernel/net/core/failover.ko.gz:
kernel/drivers/net/virtio_net.ko.gz: kernel/drivers/net/net-failover.ko.gz kernel/net/core/failover.ko.gz
"""


def test_modules_come_after_all_that_they_need_and_once() -> None:
    dependencies = parse_dependencies(DEPENDENCIES)
    order = load_order(dependencies, ("virtio_blk", "ext4", "virtio_net", "net_failover"), builtin=set())
    assert [kernel_modules.module_name(path) for path in order] == [
        "virtio_blk",
        "jbd2",
        "mbcache",
        "crc16",
        "ext4",
        "failover",
        "net_failover",
        "virtio_net",
    ]


def test_a_module_that_is_built_in_is_left_out_and_one_that_is_nowhere_is_named() -> None:
    dependencies = parse_dependencies(DEPENDENCIES)
    assert load_order(dependencies, ("virtio_pci",), builtin={"virtio_pci"}) == []
    with pytest.raises(KeyError, match="virtio_pci"):
        load_order(dependencies, ("virtio_pci",), builtin=set())
    with pytest.raises(KeyError, match="gone"):
        load_order({"a.ko": ["gone.ko"]}, ("a",), builtin=set())


def test_modules_are_decompressed_by_their_ending() -> None:
    assert unpack("a.ko", b"plain") == b"plain"
    assert unpack("a.ko.gz", gzip.compress(b"squeezed")) == b"squeezed"
    assert unpack("a.ko.xz", lzma.compress(b"squeezed")) == b"squeezed"
    for path, data in (("a.ko.zst", b"x"), ("a.ko.gz", b"x"), ("a.ko.gz", gzip.compress(b"cut")[:-3]), ("a.ko.xz", b"x")):
        with pytest.raises(InfraError):
            unpack(path, data)


def test_the_recipe_is_named_by_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    before = initramfs.recipe()
    assert before == initramfs.recipe()
    monkeypatch.setattr(initramfs, "INIT", initramfs.INIT + "# more\n")
    assert initramfs.recipe() != before


def test_the_script_never_says_what_suites_look_for() -> None:
    assert "panic" not in initramfs.INIT
