"""The guest `debian`: what is read out of packages, what becomes of it, and what a failed download means."""

from __future__ import annotations

import io
import lzma
import os
import struct
import tarfile
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.errors import InfraError
from qcase.guests import debian, kernel_modules
from qcase.guests.debian import RELEASES, Package


def package(files: dict[str, bytes], compression: str = "xz") -> bytes:
    """A .deb, by the letter of its format."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size, member.mode = len(content), 0o755 if "/bin/" in name else 0o644
            tar.addfile(member, io.BytesIO(content))
    deb = b"!<arch>\n"
    for part, content in ((b"debian-binary", b"2.0\n"), (b"control.tar.xz", b"odd"), (b"data.tar.xz", data.getvalue())):
        deb += b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (part, 0, 0, 0, b"100644", len(content)) + content + b"\n" * (len(content) % 2)
    return deb


BUSYBOX = b"\x7fELF code [\0[[\0ash\0busybox\0init\0insmod\0mount\0sh\0switch_root\0zcat\0\0other\0"


def test_a_package_gives_busybox_modules_licences_and_its_kernel(tmp_path: Path) -> None:
    release = RELEASES[Arch.RISCV64]
    kept = {
        "usr/bin/busybox": BUSYBOX,
        "usr/lib/modules/6/kernel/fs/a.ko.xz": b"module",
        "usr/share/doc/busybox-static/copyright": b"licence",
    }
    deb = tmp_path / "one.deb"
    deb.write_bytes(package({**kept, release.kernel: b"kernel", "usr/share/man/x": b"no", "etc/odd": b"no"}))
    debian.extract(deb, release, tmp_path / "tree", tmp_path / "boot")
    found = {str(p.relative_to(tmp_path / "tree")): p.read_bytes() for p in (tmp_path / "tree").rglob("*") if p.is_file()}
    assert found == kept
    assert (tmp_path / "boot" / Path(release.kernel).name).read_bytes() == b"kernel"


@pytest.mark.parametrize("bad", [b"", b"PK\3\4", package({}).replace(b"\xfd7zXZ", b"\xfd7zXY")])
def test_what_is_no_package_is_an_error(bad: bytes, tmp_path: Path) -> None:
    deb = tmp_path / "bad.deb"
    deb.write_bytes(bad)
    with pytest.raises(InfraError, match=r"is no Debian package|cannot be unpacked"):
        debian.extract(deb, RELEASES[Arch.RISCV64], tmp_path / "tree", tmp_path / "boot")


def test_a_root_has_folders_links_and_all_applets(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/busybox").write_bytes(BUSYBOX)
    debian.furnish(tmp_path)
    assert (tmp_path / "sbin/init").resolve() == (tmp_path / "usr/bin/busybox")
    assert (tmp_path / "bin/sh").read_bytes() == BUSYBOX
    assert oct((tmp_path / "tmp").stat().st_mode & 0o7777) == "0o1777"
    assert "root:x:0:0" in (tmp_path / "etc/passwd").read_text()


@pytest.mark.parametrize("bad", [b"", b"[\0[[\0ash\0", BUSYBOX.replace(b"mount", b"zzz!t")])
def test_a_busybox_without_its_applets_is_an_error(bad: bytes) -> None:
    with pytest.raises(InfraError, match="no list of its applets"):
        debian.applets(bad)


def test_the_index_of_modules_loads_the_deepest_first() -> None:
    paths = {name: f"kernel/{name}.ko.xz" for name in ("ext4", "jbd2", "crc32c_generic", "mbcache", "lone")}
    by_alias = {"crc32c": "crc32c_generic", "fs-ext4": "ext4"}
    facts = {
        "ext4": {"depends": ["jbd2,mbcache"], "softdep": ["pre: crc32c"]},
        "jbd2": {"depends": ["mbcache"]},
        "mbcache": {"depends": [""]},
    }
    direct = {
        name: [*kernel_modules.first(facts.get(name, {}), by_alias), *kernel_modules.needs(facts.get(name, {}))] for name in paths
    }
    assert kernel_modules.index(paths, direct).splitlines() == [
        "kernel/crc32c_generic.ko.xz:",
        "kernel/ext4.ko.xz: kernel/jbd2.ko.xz kernel/mbcache.ko.xz kernel/crc32c_generic.ko.xz",
        "kernel/jbd2.ko.xz: kernel/mbcache.ko.xz",
        "kernel/lone.ko.xz:",
        "kernel/mbcache.ko.xz:",
    ]


def test_modules_that_want_each_other_first_are_no_endless_loop() -> None:
    paths = {"a": "a.ko", "b": "b.ko"}
    assert kernel_modules.index(paths, {"a": ["b"], "b": ["a"]}) == "a.ko: b.ko\nb.ko: a.ko\n"


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ({"softdep": ["pre: a b-c post: d"]}, ["a", "b_c"]),
        ({"softdep": ["post: d"]}, []),
        ({"softdep": ["pre: crc32c"]}, ["crc32c_generic"]),
        ({}, []),
    ],
)
def test_soft_dependencies(facts: dict[str, list[str]], wanted: list[str]) -> None:
    assert kernel_modules.first(facts, {"crc32c": "crc32c_generic"}) == wanted


GONE = "from http://mirror.example/debian\nErr:1 http://mirror.example/debian/pool/x.deb\n  404  Not Found\nE: Download Failed\n"
OTHER = "from http://mirror.example/debian\nE: Failed to fetch x.deb  Hash Sum mismatch\n"
UNREACHABLE = "from http://mirror.example/debian\nE: Failed to fetch x.deb  Could not resolve 'mirror.example'\n"


@pytest.mark.parametrize(
    ("said", "what", "hint"),
    [
        (GONE, "http://mirror.example/debian does not have it: a point release may have replaced it", "QCASE_DEBIAN_MIRROR"),
        (OTHER, "has another file of this name; it is not used", "QCASE_DEBIAN_MIRROR"),
        (UNREACHABLE, "cannot be fetched: Could not resolve 'mirror.example'", "is there a network"),
    ],
)
def test_a_failed_download_says_what_to_do(said: str, what: str, hint: str) -> None:
    wanted = Package("pool/x.deb", "0" * 64, 1)
    error = debian.refusal(wanted, RELEASES[Arch.RISCV64], said, ("fetch ended with status 100", ""))
    assert what in str(error)
    assert "x.deb" in str(error)
    assert hint in error.hint


def test_each_release_is_pinned_whole_and_has_a_key_of_its_own() -> None:
    packages = [package for release in RELEASES.values() for package in release.packages]
    assert all(len(package.sha256) == 64 and package.size > 0 and package.file.endswith(".deb") for package in packages)
    assert len({release.digest for release in RELEASES.values()}) == len(RELEASES)


def module(**facts: str) -> bytes:
    """An ELF file with nothing but a section `.modinfo`."""
    info = b"".join(f"{name}={value}".encode() + b"\0" for name, value in facts.items())
    names = b"\0.modinfo\0.shstrtab\0"
    at = 64
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 1, 183, 1, 0, 0, at + len(info) + len(names), 0, 64, 0, 0, 64, 3, 2
    )
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, at, len(info), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, at + len(info), len(names), 0, 0, 1, 0)
    return header + info + names + sections


def test_modules_that_a_guest_needs_stay_with_an_index_whatever_the_umask(tmp_path: Path) -> None:
    folder = tmp_path / "6.12"
    for path, content in {
        "fs/ext4/ext4.ko.xz": module(depends="jbd2", softdep="pre: crc32c", alias="fs-ext4"),
        "fs/jbd2/jbd2.ko.xz": module(depends=""),
        "crypto/crc32c_generic.ko.xz": module(alias="crc32c"),
        "drivers/block/virtio_blk.ko.xz": module(depends=""),
        "drivers/net/virtio_net.ko.xz": module(depends="far-away"),
        "drivers/far/far-away.ko.xz": module(depends=""),
        "drivers/gpu/screen.ko.xz": module(depends=""),
    }.items():
        (folder / "kernel" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "kernel" / path).write_bytes(lzma.compress(content))
    before = os.umask(0o077)
    try:
        kernel_modules.keep_modules(folder)
    finally:
        os.umask(before)
    kept = sorted(path.name for path in folder.rglob("*.ko.xz"))
    assert kept == ["crc32c_generic.ko.xz", "ext4.ko.xz", "far-away.ko.xz", "jbd2.ko.xz", "virtio_blk.ko.xz", "virtio_net.ko.xz"]
    assert not (folder / "kernel/drivers/gpu").exists()
    index = (folder / "modules.dep").read_text().splitlines()
    assert "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/crypto/crc32c_generic.ko.xz" in index
    assert "kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/far/far-away.ko.xz" in index
    assert (folder / "modules.alias").read_text() == "alias crc32c crc32c_generic\nalias fs-ext4 ext4\n"
    assert {oct((folder / name).stat().st_mode & 0o777) for name in ("modules.dep", "modules.alias")} == {"0o644"}


@pytest.mark.parametrize("bad", [b"", b"no ELF file"])
def test_what_is_no_module_is_an_error(bad: bytes) -> None:
    with pytest.raises(InfraError, match="is no kernel module"):
        kernel_modules.module_facts(bad, "x.ko")
