"""Digest, copy, and the plan of an injection. That the plan does what it says is shown in tests/container/test_inject.py."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from qcase.disk import image_digest, inject, inject_plan, sparse_files
from qcase.disk.ext4 import Ext4Image, Kind
from qcase.disk.inject_plan import Action, InjectionPlan, Operation
from qcase.errors import BuildError, InfraError
from qcase.host import file_state, process
from qcase.host.trees import Tree
from tests.processes.test_ext4 import SBIN, mkfs, pattern
from tests.processes.test_store import finish, in_namespace

# --- digest ---


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds from now. A file's ctime cannot be set back, so the clock goes forward."""
    clock = SimpleNamespace(time=lambda: time.time() + 10, monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr(file_state, "time", clock)


@pytest.fixture
def on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the folder for temporary files is on: of what is in memory nothing is remembered."""
    monkeypatch.setattr(file_state, "_filesystem", lambda _device: "ext4")


def sparse(path: Path, *pieces: tuple[int, bytes], size: int) -> Path:
    with path.open("wb") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        file.truncate(size)
    return path


def test_how_a_file_is_sparse_makes_no_difference(tmp_path: Path) -> None:
    pieces = [(100_000, b"x"), (3_000_000, pattern(70_000)), (9_999_999, b"y")]
    one = sparse(tmp_path / "one", *pieces, size=10_500_000)
    other = tmp_path / "other"
    other.write_bytes(one.read_bytes())
    assert other.stat().st_blocks > one.stat().st_blocks
    assert image_digest.digest(one) == image_digest.digest(other)


def test_every_byte_and_the_size_count(tmp_path: Path) -> None:
    size = 300_000
    seen = {image_digest.digest(sparse(tmp_path / "zero", size=size))}
    for position in (0, 1, 4095, 65535, 65536, 131072, 262143, size - 1):
        seen.add(image_digest.digest(sparse(tmp_path / "f", (position, b"\1"), size=size)))
    for other in (0, 1, size - 1, size + 1, size + 65536):
        seen.add(image_digest.digest(sparse(tmp_path / "f", size=other)))
    assert len(seen) == 14


def test_the_digest_stays_the_same_between_versions(tmp_path: Path) -> None:
    """Keys of stored images hold it. If this fails, the tag in the digest has to change too."""
    path = sparse(tmp_path / "f", (65536, b"data"), size=200_000)
    expected = hashlib.sha256()
    expected.update(b"qcase image digest 1\0" + (200_000).to_bytes(8, "little"))
    expected.update((65536).to_bytes(8, "little") + b"data" + bytes(65532))
    assert image_digest.digest(path) == expected.hexdigest()


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="cannot read: No such file"):
        image_digest.digest(tmp_path / "missing")
    with pytest.raises(InfraError, match="cannot read"):
        image_digest.remembered_digest(tmp_path / "missing", tmp_path / "memory")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the content of a file was digested."""
    count: list[int] = []
    real = image_digest.digest_of_descriptor

    def counting(descriptor: int) -> str:
        count.append(1)
        return real(descriptor)

    monkeypatch.setattr(image_digest, "digest_of_descriptor", counting)
    return count


def test_an_old_file_is_read_once(tmp_path: Path, reads: list[int], later: None, on_a_disk: None) -> None:
    path, memory = tmp_path / "image", tmp_path / "not there yet" / "memory"
    path.write_bytes(b"one")
    first = image_digest.remembered_digest(path, memory)
    assert image_digest.remembered_digest(path, memory) == first == image_digest.digest(path)
    assert len(reads) == 2  # one of them by `digest` itself
    # The same size, and mtime set back: ctime gives it away.
    before = path.stat()
    path.write_bytes(b"two")
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # until the filesystem's clock has ticked
        os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert image_digest.remembered_digest(path, memory) != first
    # A memory that was damaged is not believed.
    second = image_digest.remembered_digest(path, memory)
    (note,) = memory.iterdir()
    for damage in ("", "[]", "{}", "null", note.read_text().replace(second, "0"), note.read_text().replace("mtime_ns", "x")):
        note.write_text(damage)
        assert image_digest.remembered_digest(path, memory) == second
    assert [entry.name for entry in memory.iterdir()] == [note.name]


def test_a_fresh_file_is_not_remembered(tmp_path: Path, reads: list[int]) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"one")
    image_digest.remembered_digest(path, tmp_path / "memory")
    image_digest.remembered_digest(path, tmp_path / "memory")
    assert len(reads) == 2
    assert not (tmp_path / "memory").exists()


def test_a_file_of_the_future_is_read_once(tmp_path: Path, reads: list[int], later: None, on_a_disk: None) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"one")
    os.utime(path, (4e9, 4e9))  # anybody may set that
    for _ in range(3):
        image_digest.remembered_digest(path, tmp_path / "memory")
    assert len(reads) == 1


def test_a_file_that_is_written_through_a_mapping(tmp_path: Path, later: None) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(65536))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        for content in range(1, 5):
            mapped[0] = content  # from the second on into a page that is dirty, unless somebody has flushed it
            time.sleep(0.02)  # longer than a tick of the filesystem's clock
            assert image_digest.remembered_digest(path, tmp_path / "memory") == image_digest.digest(path)


@pytest.mark.parametrize(
    ("kind", "ctime", "read"),
    [
        ("ext4", 1_700_000_000_123_456_789, 1),
        ("", 1_700_000_000_123_456_789, 1),  # a subvolume of btrfs
        ("ext4", 1_700_000_000_000_000_000, 2),
        ("squashfs", 0, 2),
        ("erofs", 1_700_000_000_123_456_789, 2),
        ("vfat", 1_700_000_000_120_000_000, 2),
        ("fuse", 1_700_000_000_123_456_789, 2),
        ("fuse.sshfs", 1_700_000_000_123_456_789, 2),
        ("tmpfs", 1_700_000_000_123_456_789, 2),
        (None, 1_700_000_000_123_456_789, 2),
    ],
)
def test_a_file_whose_times_say_nothing_is_not_remembered(
    kind: str | None, ctime: int, read: int, tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images with one device, inode, size and times, as two builds of a squashfs have, mounted one after the other."""
    real = os.fstat

    def fstat(descriptor: int) -> SimpleNamespace:
        size = real(descriptor).st_size
        times = {"st_mtime_ns": 0, "st_ctime_ns": ctime, "st_ctime": ctime / 1e9}
        return SimpleNamespace(st_dev=0x700, st_ino=3, st_size=size, **times)

    monkeypatch.setattr(file_state, "_filesystem", lambda _device: kind)
    monkeypatch.setattr(os, "fstat", fstat)
    found = []
    for name in ("one", "two"):
        with (tmp_path / name).open("wb", buffering=0) as file:
            file.write(name.encode())
        found.append(image_digest.remembered_digest(tmp_path / name, tmp_path / "memory"))
    assert len(reads) == read
    assert len(set(found)) == read


def test_the_type_of_a_filesystem() -> None:
    assert file_state._filesystem(Path("/proc/self").stat().st_dev) == "proc"
    assert file_state._filesystem(os.makedev(4095, 1)) == ""


def test_a_file_that_changes_meanwhile_is_not_remembered(
    tmp_path: Path, later: None, on_a_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"one")
    real = image_digest.digest_of_descriptor

    def racing(descriptor: int) -> str:
        found = real(descriptor)
        path.write_bytes(b"two")
        return found

    monkeypatch.setattr(image_digest, "digest_of_descriptor", racing)
    image_digest.remembered_digest(path, tmp_path / "memory")
    assert not (tmp_path / "memory").exists()


def test_a_memory_that_cannot_be_written_does_no_harm(tmp_path: Path, later: None) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"one")
    (tmp_path / "memory").write_text("a file")
    assert image_digest.remembered_digest(path, tmp_path / "memory") == image_digest.digest(path)


# --- copy ---


def copies_in_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_files, "_clone", lambda *_: False)


def copies_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    copies_in_kernel(monkeypatch)

    def refuse(*arguments: object) -> int:
        raise OSError(errno.EXDEV, "other filesystem")

    monkeypatch.setattr(os, "copy_file_range", refuse)


def copies_by_hand_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    copies_in_kernel(monkeypatch)
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)


def as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    pass


Way = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("way", [as_it_comes, copies_in_kernel, copies_by_hand, copies_by_hand_silently])
def test_a_copy_has_the_content_and_the_holes(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way(monkeypatch)
    source = sparse(tmp_path / "source", (0, b"a"), (20_000_000, pattern(5_000_000)), (30_000_000, b"z"), size=50_000_000)
    source.chmod(0o444)
    sparse_files.copy_file_fast(source, tmp_path / "copy")
    same = (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert same
    assert (tmp_path / "copy").stat().st_blocks * 512 < 10_000_000
    assert os.access(tmp_path / "copy", os.W_OK)
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) & 0o600 == 0o600
    sparse_files.copy_file_fast(sparse(tmp_path / "empty", size=0), tmp_path / "empty copy")
    assert (tmp_path / "empty copy").stat().st_size == 0


def test_zeros_of_a_file_without_holes_become_holes(tmp_path: Path) -> None:
    """As it is with every file on a filesystem that does not tell holes: fuse-overlayfs, NFS before 4.2."""
    pieces = [(0, b"a"), (20_000_000, pattern(5_000_000)), (29_999_999, b"z"), (30_000_000 + (64 << 10), b"y")]
    data = bytearray(50_000_001)
    for position, piece in pieces:
        data[position : position + len(piece)] = piece
    (tmp_path / "source").write_bytes(data)
    assert (tmp_path / "source").stat().st_blocks * 512 >= 50_000_000
    sparse_files.copy_file_fast(tmp_path / "source", tmp_path / "copy")
    same = (tmp_path / "copy").read_bytes() == data
    assert same
    assert (tmp_path / "copy").stat().st_blocks * 512 < 6_000_000


def test_a_copy_shares_its_blocks_where_the_file_system_can(tmp_path: Path) -> None:
    """On a real XFS. Only root may mount one: without, the copy has to be one like any other."""
    if os.geteuid() == 0:
        with (tmp_path / "xfs.img").open("wb") as file:
            file.truncate(320 << 20)
        process.run(["mkfs.xfs", "-q", str(tmp_path / "xfs.img")], env=SBIN)
    mount = f'mount -o loop "{tmp_path}/xfs.img" "{tmp_path}"' if os.geteuid() == 0 else f'mount -t tmpfs none "{tmp_path}"'
    script = """
    from qcase.disk import sparse_files
    def used():
        about = os.statvfs(root)
        return (about.f_blocks - about.f_bfree) * about.f_frsize
    with (root / "source").open("wb") as file:
        file.truncate(1 << 28)
        for place in range(1, 1 << 28, 64 << 20):
            file.seek(place)
            file.write(os.urandom(1 << 20))
    before = used()
    sparse_files.copy_file_fast(root / "source", root / "copy")
    print((used() - before) >> 20, (root / "copy").stat().st_size >> 20)
    print((root / "copy").read_bytes() == (root / "source").read_bytes())
    """
    taken, size, same = finish(in_namespace(mount, script, tmp_path, tmp_path)).split()
    assert (size, same) == ("256", "True")
    assert int(taken) <= (1 if os.geteuid() == 0 else 5)


def test_a_copy_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("new")
    (tmp_path / "there").write_text("old")
    with pytest.raises(FileExistsError):
        sparse_files.copy_file_fast(tmp_path / "source", tmp_path / "there")
    assert (tmp_path / "there").read_text() == "old"
    with pytest.raises(FileNotFoundError):
        sparse_files.copy_file_fast(tmp_path / "missing", tmp_path / "copy")
    with pytest.raises(OSError, match="not a regular file"):
        sparse_files.copy_file_fast(tmp_path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("way", [copies_in_kernel, copies_by_hand])
def test_a_full_disk_is_told_and_leaves_nothing(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way(monkeypatch)

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for function in ("copy_file_range", "pwrite")[way is not copies_in_kernel :]:
        monkeypatch.setattr(os, function, full)
    sparse(tmp_path / "source", (0, b"content"), size=1 << 20)
    with pytest.raises(OSError, match="No space left") as caught:
        sparse_files.copy_file_fast(tmp_path / "source", tmp_path / "copy")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "copy").exists()


# --- plan ---


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ext4Image]:
    where = tmp_path_factory.mktemp("base")
    root = where / "root"
    for folder in ("usr/lib/sub", "usr/bin", "empty", "full/sub", "etc", "var"):
        (root / folder).mkdir(parents=True)
    for file in ("usr/lib/libc.so", "usr/bin/busybox", "full/file", "etc/passwd"):
        (root / file).write_text(file)
    for link, target in {
        "lib": "usr/lib",
        "lib64": "/usr/lib",
        "usr/bin/sh": "busybox",
        "dangling": "/run/far/away",
        "var/run": "/run",
        "full/here": "/usr/lib",
        "loop": "loop",
    }.items():
        (root / link).symlink_to(target)
    with Ext4Image.open(mkfs(where / "image", 16 << 20, root, "-t", "ext4", "-b", "1024", "-N", "600")) as image:
        yield image


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    root = tmp_path / "overlay"
    root.mkdir()
    return root


def put(overlay: Path, path: str, content: str = "content", mode: int = 0o644) -> None:
    file = overlay / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    file.chmod(mode)


def link(overlay: Path, path: str, target: str) -> None:
    (overlay / path).parent.mkdir(parents=True, exist_ok=True)
    (overlay / path).symlink_to(target)


def planned(base: Ext4Image, overlay: Path) -> dict[str, Operation]:
    plan = inject_plan.plan(base, Tree(overlay))
    assert [operation.path for operation in plan.operations] == sorted(
        (operation.path for operation in plan.operations), key=lambda path: path.split("/")
    )
    return {operation.path: operation for operation in plan.operations}


def refused(base: Ext4Image, overlay: Path) -> str:
    with pytest.raises(BuildError) as caught:
        inject_plan.plan(base, Tree(overlay))
    assert caught.value.where == "overlay"
    return f"{caught.value.what} ({caught.value.hint})"


def test_nothing_to_do(base: Ext4Image, overlay: Path) -> None:
    (overlay / "usr/lib").mkdir(parents=True)
    link(overlay, "lib", "usr/lib")  # it is there already
    assert inject_plan.plan(base, Tree(overlay)) == InjectionPlan((), None)
    assert inject.script(inject_plan.plan(base, Tree(overlay))) == ""


def test_new_things_in_new_and_old_folders(base: Ext4Image, overlay: Path) -> None:
    put(overlay, "usr/bin/tool", "12345", mode=0o4755)
    put(overlay, "opt/deep/file", mode=0o600)
    link(overlay, "opt/link", "deep/file")
    (overlay / "opt/deep").chmod(0o2770)
    (overlay / "usr/bin").chmod(0o700)  # an existing folder keeps the mode that it has in the base
    assert planned(base, overlay) == {
        "/opt": Operation(Action.MKDIR, "/opt", "opt", 0o755),
        "/opt/deep": Operation(Action.MKDIR, "/opt/deep", "opt/deep", 0o2770),
        "/opt/deep/file": Operation(Action.WRITE, "/opt/deep/file", "opt/deep/file", 0o600, size=7),
        "/opt/link": Operation(Action.SYMLINK, "/opt/link", "opt/link", 0o777, target="deep/file"),
        "/usr/bin/tool": Operation(Action.WRITE, "/usr/bin/tool", "usr/bin/tool", 0o4755, size=5),
    }


def test_a_folder_follows_the_symlinks_of_the_base(base: Ext4Image, overlay: Path) -> None:
    put(overlay, "lib/one")
    put(overlay, "lib64/sub/two")
    put(overlay, "full/here/new/three")
    found = planned(base, overlay)
    assert {path: operation.source for path, operation in found.items()} == {
        "/usr/lib/new": "full/here/new",
        "/usr/lib/new/three": "full/here/new/three",
        "/usr/lib/one": "lib/one",
        "/usr/lib/sub/two": "lib64/sub/two",
    }


def test_a_dangling_symlink_stands_for_the_folders_that_it_names(base: Ext4Image, overlay: Path) -> None:
    put(overlay, "dangling/x")
    assert list(planned(base, overlay)) == ["/run", "/run/far", "/run/far/away", "/run/far/away/x"]
    # The overlay may bring them itself, and then says their mode.
    put(overlay, "run/y")
    (overlay / "run").chmod(0o700)
    (overlay / "var/run").mkdir(parents=True)
    (overlay / "var/run").chmod(0o700)
    found = planned(base, overlay)
    assert list(found) == ["/run", "/run/far", "/run/far/away", "/run/far/away/x", "/run/y"]
    assert found["/run"].mode == 0o700


def test_files_and_symlinks_replace_files_and_symlinks(base: Ext4Image, overlay: Path) -> None:
    put(overlay, "etc/passwd")
    put(overlay, "usr/bin/sh")
    put(overlay, "loop")
    link(overlay, "usr/bin/busybox", "/bin/toybox")
    link(overlay, "lib", "usr/lib32")
    link(overlay, "empty", "full")
    found = planned(base, overlay)
    assert {path: operation.replaces for path, operation in found.items()} == {
        "/empty": Kind.DIR,
        "/etc/passwd": Kind.FILE,
        "/lib": Kind.SYMLINK,
        "/loop": Kind.SYMLINK,
        "/usr/bin/busybox": Kind.FILE,
        "/usr/bin/sh": Kind.SYMLINK,
    }


def test_a_symlink_over_a_folder(base: Ext4Image, overlay: Path) -> None:
    # It lands in /usr/lib and leads to where it would lie: the folder itself stays.
    link(overlay, "usr/lib/sub", "../../lib/sub")
    put(overlay, "lib64/sub/x")  # not empty by itself, so the base's folder being empty does not matter
    assert "below 'usr/lib/sub', which is no folder" in refused(base, overlay)
    (overlay / "lib64/sub/x").unlink()
    (overlay / "lib64/sub").rmdir()
    link(overlay, "full", "../full")
    assert "/full" not in planned(base, overlay)
    (overlay / "full").unlink()
    link(overlay, "full", "usr")
    said = refused(base, overlay)
    assert "'full' is a symlink to 'usr', and the base image has a folder with files at '/full'" in said
    assert "make it a folder" in said


def test_a_file_over_a_folder_and_a_folder_over_a_file(base: Ext4Image, overlay: Path) -> None:
    put(overlay, "full")
    assert "'full' is a file, and the base image has a folder at '/full'" in refused(base, overlay)
    (overlay / "full").unlink()
    (overlay / "etc/passwd").mkdir(parents=True)
    assert "'etc/passwd' is a folder, and the base image has a file at '/etc/passwd'" in refused(base, overlay)
    (overlay / "etc/passwd").rmdir()
    put(overlay, "usr/bin/sh/x")
    assert "'usr/bin/sh' is a folder, and the base image has a file at '/usr/bin/busybox'" in refused(base, overlay)
    (overlay / "usr/bin/sh/x").unlink()
    (overlay / "usr/bin/sh").rmdir()
    put(overlay, "loop/x")
    assert "'loop' cannot be a folder there: too many symlinks" in refused(base, overlay)


def test_two_paths_that_land_in_the_same_place(base: Ext4Image, overlay: Path) -> None:
    put(overlay, "lib/same", "x" * 10)
    put(overlay, "usr/lib/same", "x" * 10)
    (overlay / "lib/folder").mkdir()
    (overlay / "usr/lib/folder").mkdir()
    assert list(planned(base, overlay)) == ["/usr/lib/folder", "/usr/lib/same"]
    put(overlay, "usr/lib/same", "x" * 9 + "y")
    assert "'lib/same' and 'usr/lib/same' both land at '/usr/lib/same' in the image, and differ" in refused(base, overlay)
    put(overlay, "usr/lib/same", "x" * 10, mode=0o755)
    assert "and differ" in refused(base, overlay)
    put(overlay, "usr/lib/same", "x" * 10)
    (overlay / "usr/lib/folder").rmdir()
    put(overlay, "usr/lib/folder")
    assert "'lib/folder' and 'usr/lib/folder' both land at" in refused(base, overlay)


def test_what_is_there_already_can_be_contradicted(base: Ext4Image, overlay: Path) -> None:
    link(overlay, "full/here/libc.so", "x")
    put(overlay, "lib/libc.so")
    assert "both land at '/usr/lib/libc.so'" in refused(base, overlay)
    (overlay / "full/here/libc.so").unlink()
    (overlay / "lib/libc.so").unlink()
    link(overlay, "lib/sub", "elsewhere")  # /usr/lib/sub is empty
    (overlay / "lib64/sub").mkdir(parents=True)
    assert "'lib64/sub' and 'lib/sub' both land at '/usr/lib/sub' in the image, and only one" in refused(base, overlay)


def test_a_link_that_stays_and_a_file_in_its_place(base: Ext4Image, overlay: Path, tmp_path: Path) -> None:
    root = tmp_path / "other root"
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "usr/lib/libm.so").symlink_to("libc.so")
    link(overlay, "lib/libm.so", "libc.so")
    put(overlay, "usr/lib/libm.so")
    with Ext4Image.open(mkfs(tmp_path / "image", 4 << 20, root, "-t", "ext4")) as image:
        assert "'lib/libm.so' and 'usr/lib/libm.so' both land at '/usr/lib/libm.so'" in refused(image, overlay)
        (overlay / "usr/lib/libm.so").unlink()
        assert inject_plan.plan(image, Tree(overlay)).operations == ()


def test_a_symlink_that_is_replaced_under_the_feet_of_another_path(base: Ext4Image, overlay: Path, tmp_path: Path) -> None:
    root = tmp_path / "other root"
    (root / "a/real").mkdir(parents=True)
    (root / "b").symlink_to("a")
    (root / "c").symlink_to("b/real")
    with Ext4Image.open(mkfs(tmp_path / "image", 4 << 20, root, "-t", "ext4")) as image:
        link(overlay, "b", "elsewhere")
        put(overlay, "c/file")
        said = refused(image, overlay)
    assert "'b' replaces the symlink '/b', through which 'c' goes to its place" in said


@pytest.mark.parametrize(
    ("name", "what"),
    [("new\nline", "a newline"), ("carriage\rreturn", "a carriage return"), ('double"quote', "a double quote")],
)
def test_names_that_debugfs_cannot_quote(name: str, what: str, base: Ext4Image, overlay: Path) -> None:
    put(overlay, f"usr/{name}")
    assert f"{f'usr/{name}'!r} has {what} in its name" in refused(base, overlay)
    (overlay / "usr" / name).unlink()
    link(overlay, "usr/link", name)
    assert f"'usr/link' is a symlink whose target {name!r} has {what} in it" in refused(base, overlay)
    (overlay / "usr/link").unlink()
    (overlay / "usr" / name).mkdir()
    assert f"{f'usr/{name}'!r} has {what} in its name" in refused(base, overlay)


def test_what_is_neither_folder_nor_file_nor_symlink(base: Ext4Image, overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(overlay / "pipe")
    assert "'pipe' is a fifo" in refused(base, overlay)
    (overlay / "pipe").unlink()
    monkeypatch.chdir(overlay)  # the name of a socket must not be long
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    assert "'socket' is a socket" in refused(base, overlay)


def test_sizes_that_do_not_go(base: Ext4Image, overlay: Path) -> None:
    link(overlay, "long", "x" * 1023)
    assert planned(base, overlay)["/long"].target == "x" * 1023
    (overlay / "long").unlink()
    link(overlay, "long", "x" * 1024)  # the image has blocks of 1 KiB
    assert "a target of 1024 bytes, more than the image can hold" in refused(base, overlay)


def test_nothing_outside_the_overlay_is_read(base: Ext4Image, overlay: Path, tmp_path: Path) -> None:
    (tmp_path / "secret/sub").mkdir(parents=True)
    put(tmp_path, "secret/file")
    link(overlay, "folder", str(tmp_path / "secret"))
    link(overlay, "file", str(tmp_path / "secret/file"))
    found = planned(base, overlay)
    assert [operation.action for operation in found.values()] == [Action.SYMLINK, Action.SYMLINK]
    # Nor when a folder turns into a symlink after it was listed.
    for path in ("folder/file", "file"):
        with pytest.raises(BuildError, match="is a symbolic link"), (Tree(overlay) / path).opened():
            pass


def test_an_overlay_that_is_not_there(base: Ext4Image, tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="cannot read the overlay"):
        inject_plan.plan(base, Tree(tmp_path / "missing"))


def test_names_of_one_file_stay_names_of_one_file(base: Ext4Image, overlay: Path) -> None:
    put(overlay, "one")
    (overlay / "a").mkdir()
    os.link(overlay / "one", overlay / "two")
    os.link(overlay / "one", overlay / "a/three")
    found = planned(base, overlay)
    assert [(path, operation.action, operation.target, operation.links) for path, operation in found.items()] == [
        ("/a", Action.MKDIR, "", 1),
        ("/a/three", Action.WRITE, "", 3),
        ("/one", Action.LINK, "/a/three", 3),
        ("/two", Action.LINK, "/a/three", 3),
    ]
    lines = inject.script(inject_plan.plan(base, Tree(overlay))).splitlines()
    assert lines[-3:] == ['symlink "two" "x"', 'rm "./two"', 'ln "/a/three" "two"']
    assert 'sif "./three" links_count 3' in lines


def test_modes_of_the_guest_are_those_of_the_manifest(base: Ext4Image, overlay: Path) -> None:
    put(overlay, "su")
    plan = inject_plan.plan(base, Tree(overlay), {"su": 0o4755})
    assert [operation.mode for operation in plan.operations] == [0o4755]
    assert 'sif "./su" mode 0104755' in inject.script(plan)


# --- room ---


def test_growth_depends_on_contents_alone(base: Ext4Image, overlay: Path) -> None:
    size = 64 << 20
    sparse(overlay / "file", (size - 3, b"end"), size=size)
    assert inject_plan.plan(base, Tree(overlay)).grow_to_bytes is None
    (overlay / "file").write_bytes(bytes(size - 3) + b"end")  # now with blocks of zeros on the host
    assert inject_plan.plan(base, Tree(overlay)).grow_to_bytes is None
    (overlay / "file").write_bytes(pattern(size))
    assert inject_plan.plan(base, Tree(overlay)).grow_to_bytes == 128 << 20


def test_growth_for_inodes(base: Ext4Image, overlay: Path) -> None:
    free = base.superblock.free_inodes
    for index in range(free - 8):
        (overlay / str(index)).touch()
    assert inject_plan.plan(base, Tree(overlay)).grow_to_bytes is None
    (overlay / "one more").touch()
    assert inject_plan.plan(base, Tree(overlay)).grow_to_bytes == 64 << 20


# --- script and step ---


def test_the_script() -> None:
    operations = (
        Operation(Action.WRITE, "/top", "top", 0o644),
        Operation(Action.WRITE, "/usr/lib/a b", "lib/a b", 0o4755, replaces=Kind.FILE),
        Operation(Action.MKDIR, "/usr/lib/new", "lib/new", 0o755),
        Operation(Action.SYMLINK, "/usr/lib/new/<1>", "lib/new/<1>", 0o777, target="to here", replaces=Kind.DIR),
        Operation(Action.MKDIR, "/usr/lib/set", "lib/set", 0o2750),
    )
    plan = InjectionPlan(operations, None)
    assert inject.script(plan).splitlines() == [
        'cd "/"',
        'write "/qcase/overlay/top" "top"',
        'cd "/usr/lib"',
        'rm "./a b"',
        'write "/qcase/overlay/lib/a b" "a b"',
        'sif "./a b" mode 0104755',
        'mkdir "new"',
        'cd "/usr/lib/new"',
        'rmdir "./<1>"',
        'symlink "<1>" "to here"',
        'cd "/usr/lib"',
        'mkdir "set"',
        'sif "./set" mode 042750',
    ]
    inline = inject.script(replace(plan, operations=(replace(operations[0], size=9, blank=True),), inline_data=True))
    assert inline.splitlines()[2:] == ['ea_rm "./top" system.data', 'sif "./top" flags 0', 'sif "./top" size 9']


def test_the_step_is_a_shell_program(tmp_path: Path) -> None:
    plan = InjectionPlan((), 128 << 20)
    program = inject.shell(inject.injection_job(plan))
    process.run(["sh", "-n", "-c", program])
    assert program.index("e2fsck -fn") < program.index("truncate -s 134217728") < program.index("resize2fs -f")
    assert "resize2fs" not in inject.shell(inject.injection_job(replace(plan, grow_to_bytes=None)))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("", "step 'base-check' did not end"),
        ("base-check 4\n", "the base image is damaged\nit is broken"),
        ("base-check 0\n", "step 'write' did not end"),
        ("base-check 0\nwrite 1\n", "debugfs could not open the image"),
        ("base-check 0\nwrite 0\ncheck 4\n", "the image is damaged after writing"),
    ],
)
def test_a_step_that_failed_is_named(steps: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "steps.log").write_text(steps)
    (tmp_path / "base-check.out").write_text("it is broken\n")
    with pytest.raises(InfraError, match=message):
        inject.verify(Tree(tmp_path), InjectionPlan((), None), Tree(tmp_path))
