"""The reader against images that e2fsprogs made, sound ones and damaged ones."""

from __future__ import annotations

import io
import os
import random
import re
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcase.disk.ext4 import Ext4Image, Kind, UnresolvedError
from qcase.errors import InfraError
from qcase.host import process

SBIN = {"PATH": f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"}


def mkfs(image: Path, size: int, tree: Path | None, *options: str) -> Path:
    """An image made by the host's mke2fs, filled with `tree`."""
    image.unlink(missing_ok=True)
    with image.open("xb") as file:
        file.truncate(size)
    fill = [] if tree is None else ["-d", str(tree)]
    process.run(["mke2fs", "-q", "-F", *options, *fill, str(image)], env=SBIN, timeout=120)
    return image


def debugfs(image: Path, *commands: str) -> str:
    """Run commands of the host's debugfs on an image."""
    script = image.with_suffix(".debugfs")
    script.write_bytes(os.fsencode("".join(f"{command}\n" for command in commands)))
    return process.run(["debugfs", "-w", "-f", str(script), str(image)], env=SBIN, timeout=120).output


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes without a zero block among them."""
    return random.Random(seed).randbytes(min(size, 65536)).ljust(size, b"x") if size else b""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of file, size and name that makes a difference in how it is stored."""
    root = tmp_path_factory.mktemp("ext4") / "tree"
    (root / "deep/er/and/deep er").mkdir(parents=True)
    for size in (0, 1, 59, 60, 61, 150, 1023, 1024, 1025, 4095, 4096, 4097, 12 * 1024, 13 * 1024, 300_000, 3_000_000):
        (root / f"deep/size-{size}").write_bytes(pattern(size, size))
    (root / "deep/er/and/deep er/name with ünïcode and space").write_text("x")
    Path(os.fsdecode(os.fsencode(root) + b"/not utf-8 \xff\xfe")).write_text("y")
    # Data far out needs triple indirect blocks where blocks have 1 KiB and there are no extents.
    with (root / "sparse").open("wb") as file:
        for position in (0, 5_000_000, 80_000_000, 90_000_000):
            file.seek(position)
            file.write(b"data" * 2000)
    # Every second block is a hole: an extent for each block, a tree of depth 2.
    with (root / "comb").open("wb") as file:
        for index in range(0, 1600, 2):
            file.seek(index * 1024)
            file.write(pattern(1024, index))
    many = root / "many"
    many.mkdir()
    for index in range(1500):
        (many / f"{index:05}-{'n' * (index % 60)}").touch()
    (root / "small").mkdir()
    (root / "small/one").write_text("one")
    for length in (1, 59, 60, 61, 500, 1000):
        (root / f"link-{length}").symlink_to("t" * length)
    (root / "setuid").write_text("s")
    (root / "setuid").chmod(0o4751)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    os.link(root / "setuid", root / "hard link")
    os.utime(root / "small/one", (1, 1_000_000_000))
    return root


# The option has another name since e2fsprogs 1.47.1, and takes no `-O` beside it, not even "none".
(RELEASE,) = re.findall(r"^mke2fs (\d+)\.(\d+)\.(\d+)", process.run(["mke2fs", "-V"], env=SBIN).output, re.MULTILINE)
REVISION_0 = ("-E", "revision=0") if tuple(map(int, RELEASE)) >= (1, 47, 1) else ("-r", "0", "-O", "none")
VARIANTS = {
    "ext2 1k": ("-t", "ext2", "-b", "1024"),
    "ext2 4k": ("-t", "ext2", "-b", "4096", "-I", "128"),
    "ext2 revision 0": ("-t", "ext2", "-b", "1024", *REVISION_0),
    "ext3 1k": ("-t", "ext3", "-b", "1024"),
    "ext4 1k": ("-t", "ext4", "-b", "1024"),
    "ext4 4k": ("-t", "ext4", "-b", "4096"),
    "ext4 64k": ("-t", "ext4", "-b", "65536", "-N", "4096"),
    "plain": ("-t", "ext4", "-b", "1024", "-O", "^64bit,^metadata_csum,^flex_bg,^extents"),
    "checksums": ("-t", "ext4", "-b", "4096", "-O", "64bit,metadata_csum,metadata_csum_seed"),
    "meta_bg": ("-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,64bit"),
    "meta_bg 32": ("-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,^64bit,^metadata_csum,^flex_bg"),
    "inline_data": ("-t", "ext4", "-b", "4096", "-O", "inline_data", "-I", "256"),
    "inline_data 1k": ("-t", "ext4", "-b", "1024", "-O", "inline_data", "-I", "512"),
    "bigalloc": ("-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "16384"),
    "backups": ("-t", "ext4", "-b", "1024", "-O", "sparse_super2,large_dir,quota,project"),
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_whole_tree_arrives(options: tuple[str, ...], tree: Path, tmp_path: Path) -> None:
    path = mkfs(tmp_path / "image", 48 << 20, tree, *options)
    if REVISION_0[0] not in options:
        process.run(["e2fsck", "-fyD", str(path)], env=SBIN, check=False)  # hashes the large folder
    with Ext4Image.open(path) as image:
        found = dict(image.walk())
        assert list(found) == sorted(found, key=lambda name: name.split("/") if name != "/" else [])
        expected = {"/", "/lost+found"}
        # (Path.rglob before Python 3.11.4 fails at a link whose target is too long for a name.)
        for host in sorted(Path(folder, name) for folder, folders, files in os.walk(tree) for name in (*folders, *files)):
            inside = "/" + str(host.relative_to(tree))
            expected.add(inside)
            node, facts = found[inside], host.lstat()
            assert node == image.lookup(inside, follow=False)
            assert (node.mode, node.uid, node.gid) == (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid)
            if host.is_symlink():
                assert node.kind is Kind.SYMLINK
                assert image.readlink(node) == str(host.readlink())
            elif host.is_dir():
                assert node.kind is Kind.DIR
            else:
                assert node.kind is Kind.FILE
                assert (node.size, node.links) == (facts.st_size, facts.st_nlink)
                if node.size < 5_000_000:
                    same = image.read(node) == host.read_bytes()  # by itself: pytest's diff of megabytes takes minutes
                    assert same, inside
        assert set(found) == expected
        assert found["/small/one"].mtime == 1_000_000_000
        with (tmp_path / "copy").open("wb") as copy:
            image.copy_out(found["/sparse"], copy)
        same = (tmp_path / "copy").read_bytes() == (tree / "sparse").read_bytes()
        assert same
        assert sum(len(piece) for _, piece in image.segments(found["/sparse"])) < 1 << 20
        small = io.BytesIO()
        image.copy_out(found["/small/one"], small)
        assert small.getvalue() == b"one"


def test_the_superblock_in_figures(tmp_path: Path) -> None:
    options = ("-t", "ext4", "-b", "4096", "-N", "1000", "-L", "label", "-U", "11111111-2222-3333-4444-555555555555")
    path = mkfs(tmp_path / "image", 64 << 20, None, *options)
    listed = process.run(["dumpe2fs", "-h", str(path)], env=SBIN).stdout.decode()
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in listed.splitlines())}
    with Ext4Image.open(path) as image:
        facts = image.superblock
    assert facts.block_size == int(said["Block size"]) == 4096
    assert facts.block_count == int(said["Block count"])
    assert facts.free_blocks == int(said["Free blocks"])
    assert facts.inode_count == int(said["Inode count"])
    assert facts.free_inodes == int(said["Free inodes"])
    assert facts.inodes_per_group == int(said["Inodes per group"])
    assert (facts.label, str(facts.uuid)) == ("label", said["Filesystem UUID"])
    assert facts.size == 64 << 20
    assert facts.features == set(said["Filesystem features"].split())


def test_devices_and_special_files(tmp_path: Path) -> None:
    path = mkfs(tmp_path / "image", 4 << 20, None, "-t", "ext4")
    debugfs(path, "mknod null c 1 3", "mknod disk b 253 17", "mknod pipe p", "mknod far c 1 1")
    # Numbers of more than 8 bits are in the second word: 12 bits of major between 8 and 12 bits of minor.
    debugfs(path, "sif far block[0] 0", f"sif far block[1] {70000 & 0xFF | 300 << 8 | (70000 & 0xFFF00) << 12:#x}")
    with Ext4Image.open(path) as image:
        nodes = image.listdir(image.node(2))
        assert (nodes["null"].kind, nodes["null"].major, nodes["null"].minor) == (Kind.CHAR, 1, 3)
        assert (nodes["disk"].kind, nodes["disk"].major, nodes["disk"].minor) == (Kind.BLOCK, 253, 17)
        assert nodes["pipe"].kind is Kind.FIFO
        assert (nodes["far"].major, nodes["far"].minor) == (300, 70000)
        with pytest.raises(InfraError, match="not a file"):
            image.read(nodes["null"])


def test_allocated_but_never_written_is_zero(tmp_path: Path) -> None:
    path = mkfs(tmp_path / "image", 4 << 20, None, "-t", "ext4", "-b", "1024")
    (tmp_path / "empty").touch()
    debugfs(path, f"write {tmp_path}/empty f", "fallocate f 0 99", "sif f size 102400")
    assert "Uninit" in debugfs(path, "ex f")
    with Ext4Image.open(path) as image:
        node = image.lookup("/f")
        assert node is not None
        assert image.read(node) == bytes(102400)
        assert list(image.segments(node)) == []


# --- paths ---


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ext4Image]:
    where = tmp_path_factory.mktemp("links")
    root = where / "root"
    (root / "usr/lib/sub").mkdir(parents=True)
    (root / "usr/bin").mkdir()
    (root / "usr/lib/libc.so").write_text("libc")
    (root / "usr/bin/busybox").write_text("busybox")
    for link, target in {
        "lib": "usr/lib",
        "usr/lib/back": "../../lib",
        "usr/bin/sh": "/usr/bin/busybox",
        "absolute": "/lib/sub",
        "dangling": "/run/some/where",
        "loop": "loop2",
        "loop2": "/loop",
        "up": "../../../../usr",
        "via-file": "usr/bin/busybox/x",
        "out-of-nothing": "missing/../usr",
        "chain0": "usr",
        **{f"chain{i}": f"chain{i - 1}" for i in range(1, 45)},
    }.items():
        (root / link).symlink_to(target)
    with Ext4Image.open(mkfs(where / "image", 4 << 20, root, "-t", "ext4")) as image:
        yield image


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        ("/", "/"),
        ("", "/"),
        ("..", "/"),
        ("/lib", "/usr/lib"),
        ("lib/libc.so", "/usr/lib/libc.so"),
        ("/lib/back/back/libc.so", "/usr/lib/libc.so"),
        ("/lib/./sub//../new/er", "/usr/lib/new/er"),
        ("/absolute/x", "/usr/lib/sub/x"),
        ("/usr/bin/sh", "/usr/bin/sh"),  # a link to a file is what is replaced
        ("/dangling", "/dangling"),
        ("/dangling/x", "/run/some/where/x"),
        ("/loop", "/loop"),
        ("/up/x", "/usr/x"),
        ("/new/folder/x", "/new/folder/x"),
        ("/chain39/x", "/usr/x"),
    ],
)
def test_where_something_new_lands(links: Ext4Image, path: str, canonical: str) -> None:
    assert links.resolve(path) == canonical


@pytest.mark.parametrize("path", ["/usr/bin/busybox/x", "/usr/bin/sh/x", "/loop/x", "/chain40/x", "/via-file/y"])
def test_no_way_through_a_file_or_a_circle(links: Ext4Image, path: str) -> None:
    with pytest.raises(UnresolvedError):
        links.resolve(path)
    assert links.lookup(path) is None


def test_lookup_follows_as_linux_does(links: Ext4Image) -> None:
    def content(path: str) -> bytes | None:
        node = links.lookup(path)
        return None if node is None else links.read(node)

    assert content("/lib/libc.so") == b"libc"
    assert content("/usr/bin/sh") == b"busybox"
    assert content("/up/bin/sh") == b"busybox"
    assert content("/nothing") is content("/dangling") is content("/loop") is None
    assert links.lookup("/out-of-nothing") is None
    assert links.lookup("/missing/../usr") is None
    link = links.lookup("/usr/bin/sh", follow=False)
    assert link is not None
    assert links.readlink(link) == "/usr/bin/busybox"
    assert [name for name, _ in links.walk("/lib")] == [
        *("/usr/lib", "/usr/lib/back", "/usr/lib/libc.so", "/usr/lib/sub"),
    ]
    assert list(links.walk("/nothing")) == []


# --- what is no image, or not a sound one ---


def read_everything(path: Path) -> None:
    with Ext4Image.open(path) as image:
        for name, node in image.walk():
            if node.kind is Kind.FILE:
                for _ in image.segments(node):
                    pass
            elif node.kind is Kind.SYMLINK:
                image.readlink(node)
            image.lookup(name)


@pytest.mark.parametrize("content", [b"", b"short", bytes(4096), b"\x7fELF" * 4096])
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "not an image"
    path.write_bytes(content)
    with pytest.raises(InfraError, match=r"not an image: this is no ext2, ext3 or ext4 image"):
        Ext4Image.open(path)


def test_no_file_a_folder_and_a_short_file(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="cannot open"):
        Ext4Image.open(tmp_path / "missing")
    with pytest.raises(InfraError, match="cannot read"):
        Ext4Image.open(tmp_path)
    path = mkfs(tmp_path / "image", 4 << 20, None, "-t", "ext4")
    os.truncate(path, 3 << 20)
    with pytest.raises(InfraError, match=r"cut short: its filesystem has 4194304 bytes, the file 3145728"):
        Ext4Image.open(path)


@pytest.mark.parametrize(
    ("bit", "message"),
    [
        (0x1, "uses compression"),
        (0x4, "not unmounted cleanly"),
        (0x8, "uses journal_dev"),
        (0x1000000, "uses incompat:0x1000000"),
    ],
)
def test_features_that_cannot_be_read_are_named(tmp_path: Path, bit: int, message: str) -> None:
    path = mkfs(tmp_path / "image", 4 << 20, None, "-t", "ext4")
    poke(path, 1024 + 0x60, "<I", word(path, 1024 + 0x60) | bit)
    with pytest.raises(InfraError, match=message):
        Ext4Image.open(path)


def word(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        file.seek(offset)
        return int.from_bytes(file.read(4), "little")


def poke(path: Path, offset: int, layout: str, *values: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(layout, *values))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An image of 512 KiB without journal or checksums: a folder, files with extents and with a block map, symlinks."""
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "file").write_bytes(pattern(5000))
    with (root / "comb").open("wb") as file:
        for index in range(0, 40, 2):
            file.seek(index * 1024)
            file.write(pattern(1024, index))
    (root / "long").symlink_to("x" * 200)
    (root / "short").symlink_to("a")
    return mkfs(tmp_path / "image", 512 << 10, root, "-t", "ext4", "-b", "1024", "-O", "^has_journal,^metadata_csum,^64bit")


def inode_offset(path: Path, name: str) -> int:
    said = debugfs(path, f"imap {name}")
    block, offset = said.rpartition("located at block ")[2].split(", offset ")
    return int(block) * 1024 + int(offset.split()[0], 16)


def test_times_beyond_2038_and_nanoseconds(small: Path) -> None:
    inode = inode_offset(small, "/file")
    seconds = 4_102_444_800  # the year 2100
    poke(small, inode + 0x10, "<I", seconds & 0xFFFFFFFF)
    # Two bits of the extra word are added to the signed seconds, times 2^32: 2100 is a negative number and one such step.
    poke(small, inode + 0x88, "<I", 123_456_789 << 2 | 1)
    with Ext4Image.open(small) as image:
        node = image.lookup("/file")
        assert node is not None
        assert node.mtime_ns == seconds * 1_000_000_000 + 123_456_789


def test_an_impossible_size(small: Path) -> None:
    poke(small, inode_offset(small, "/file") + 0x6C, "<I", 1 << 28)  # 2^60
    with Ext4Image.open(small) as image:
        node = image.lookup("/file")
        assert node is not None
        assert node.size > 1 << 60
        with pytest.raises(InfraError, match="too large to hold"):
            image.read(node)
        with pytest.raises(InfraError, match="impossible size"):
            image.copy_out(node, io.BytesIO())


def test_a_folder_that_contains_itself(small: Path) -> None:
    debugfs(small, "link /a /a/b/again")
    with Ext4Image.open(small) as image, pytest.raises(InfraError, match="linked more than once"):
        list(image.walk())


def test_an_extent_tree_that_contains_itself(small: Path) -> None:
    inode = inode_offset(small, "/comb")
    leaf = word(small, inode + 0x28 + 12 + 4)
    # depth 5 above a block of depth 4 whose only child is that block again
    poke(small, inode + 0x28, "<HHHHI", 0xF30A, 1, 4, 5, 0)
    poke(small, leaf * 1024, "<HHHHIIIHH", 0xF30A, 1, 84, 4, 0, 0, leaf, 0, 0)
    with pytest.raises(InfraError, match=r"extent tree|circles"):
        read_everything(small)


def test_an_extent_list_that_repeats_the_same_blocks(small: Path) -> None:
    inode = inode_offset(small, "/file")
    start = word(small, inode + 0x28 + 12 + 8)
    poke(small, inode + 4, "<I", 4 * 400 * 1024)
    count = 400
    entries = [value for index in range(4) for value in (index * count, count, 0, min(start, 512 - count))]
    poke(small, inode + 0x28, "<HHHHI" + "IHHI" * 4, 0xF30A, 4, 4, 0, 0, *entries)
    with pytest.raises(InfraError, match="more blocks than the image"):
        read_everything(small)


def test_a_block_map_that_contains_itself(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(pattern(400_000))
    path = mkfs(tmp_path / "image", 2 << 20, root, "-t", "ext2", "-b", "1024")
    double = word(path, inode_offset(path, "/file") + 0x28 + 13 * 4)
    poke(path, double * 1024, "<I", double)
    with pytest.raises(InfraError, match=r"circles|block map"):
        read_everything(path)


def test_names_that_lead_out_of_a_folder(small: Path) -> None:
    raw = small.read_bytes()
    for bad in (b"f/le", b"\0ile", b"long"):
        small.write_bytes(raw.replace(b"\x04\x01file", b"\x04\x01" + bad))
        with Ext4Image.open(small) as image, pytest.raises(InfraError, match="invalid or repeated name"):
            list(image.walk())


@pytest.mark.parametrize(("flag", "word_"), [(0x800, "encrypted"), (0x4, "compressed")])
def test_an_encrypted_or_compressed_file(small: Path, flag: int, word_: str) -> None:
    offset = inode_offset(small, "/file") + 0x20
    poke(small, offset, "<I", word(small, offset) | flag)
    with Ext4Image.open(small) as image:
        node = image.lookup("/file")
        assert node is not None
        with pytest.raises(InfraError, match=word_):
            image.read(node)


def test_whatever_is_in_the_metadata_nothing_but_infra_error_comes_out(small: Path) -> None:
    """Random damage: no other exception, no endless walk, no giant allocation."""
    sound = small.read_bytes()
    table, first_folder = inode_offset(small, "<1>"), debugfs(small, "blocks /").split("\n")[1].split()[0]
    leaf = word(small, inode_offset(small, "/comb") + 0x28 + 12 + 4) * 1024
    places = [
        *range(1024, 1024 + 0x160),
        *range(2048, 2048 + 32),
        *range(table + 128, table + 20 * 256),
        *range(int(first_folder) * 1024, int(first_folder) * 1024 + 120),
        *range(leaf, leaf + 12 + 20 * 12),
    ]
    dice = random.Random(20260101)
    outcomes = {"fine": 0, "refused": 0}
    started = time.monotonic()
    for _ in range(800):
        damaged = bytearray(sound)
        for _ in range(dice.choice((1, 2, 8))):
            at = dice.choice(places)
            if dice.random() < 0.5:
                damaged[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
            else:
                at -= at % 4
                damaged[at : at + 4] = struct.pack("<I", dice.choice((0, 1, 2**31, 2**32 - 1, dice.randrange(2**32))))
        small.write_bytes(damaged)
        try:
            read_everything(small)
            outcomes["fine"] += 1
        except InfraError:
            outcomes["refused"] += 1
    assert outcomes["fine"] > 100
    assert outcomes["refused"] > 100
    assert time.monotonic() - started < 120
