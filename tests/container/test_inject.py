"""Injection as it really runs: plan on the host, one step in a container, verification on the host."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qcase.disk import image_digest, inject_plan, sparse_files
from qcase.disk.ext4 import Ext4Image, Kind
from qcase.disk.inject import BUILD_DIR, IMAGE, OVERLAY_DIR, InjectionJob, injection_job, shell, stage, verify
from qcase.errors import InfraError
from qcase.host import process
from qcase.host.trees import Tree
from qcase.toolchains.records import Image
from tests.processes.test_ext4 import SBIN, debugfs, mkfs, pattern

pytestmark = pytest.mark.container

USER = 12345 if os.getuid() == 0 else os.getuid()
GROUP = 12345 if os.getuid() == 0 else os.getgid()

Inject = Callable[..., Path]


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    import docker

    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="module")
def toolchain(toolchain_c: Image) -> str:
    """An image with e2fsprogs."""
    return toolchain_c.id


def run_step(engine: Any, toolchain: str, job: InjectionJob, build: Path, overlay: Path, user: int) -> None:
    """The container contract: calling user, no network, no capabilities, read-only root."""
    for path in (build, *build.iterdir()):
        os.chown(path, user, GROUP)
    engine.containers.run(
        toolchain,
        ["sh", "-eu", "-c", shell(job)],
        user=f"{user}:{GROUP}",
        network_mode="none",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        read_only=True,
        tmpfs={"/tmp": ""},
        volumes={
            str(build): {"bind": BUILD_DIR, "mode": "rw"},
            str(overlay): {"bind": OVERLAY_DIR, "mode": "ro"},
        },
        remove=True,
    )


@pytest.fixture
def inject(engine: Any, toolchain: str, tmp_path: Path) -> Inject:
    """Write an overlay into a base, the way that `prepare` does it."""
    count = 0

    def run(base: Path, overlay: Path, *, user: int = USER, plan: inject_plan.InjectionPlan | None = None) -> Path:
        nonlocal count
        count += 1
        build = tmp_path / f"build-{count}"
        build.mkdir()
        if plan is None:
            with Ext4Image.open(base) as image:
                plan = inject_plan.plan(image, Tree(overlay))
        job = injection_job(plan)
        stage(job, base, Tree(build))
        run_step(engine, toolchain, job, build, overlay, user)
        verify(Tree(build), plan, Tree(overlay))
        return build / IMAGE

    return run


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """What cases bring, and what is known to go wrong with debugfs."""
    root = tmp_path / "overlay"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/plain").write_text("#!/bin/sh\n")
    (root / "usr/bin/plain").chmod(0o755)
    (root / "usr/bin/setuid").write_bytes(pattern(70_000))
    (root / "usr/bin/setuid").chmod(0o4755)
    (root / "usr/bin/secret").write_text("")
    (root / "usr/bin/secret").chmod(0o2644)
    names = ["with space", " lead", "trail ", "-dash", "--help", "<12>", "#hash", "!bang", "quo'te", "back\\slash\\", "tab\there"]
    names += ["ünïcode", "$HOME `id`", "*", "n" * 255, os.fsdecode(b"not utf-8 \xff")]
    for name in names:
        (root / "names" / name).parent.mkdir(exist_ok=True)
        (root / "names" / name).write_text(f"file {name!r}")
        (root / "folders" / name).mkdir(parents=True)
        (root / "folders" / name / "x").write_text("x")
        (root / "links").mkdir(exist_ok=True)
        (root / "links" / name).symlink_to(f"../names/{name}")
    (root / "lib").mkdir()
    (root / "lib/libnew.so").write_text("lands in usr/lib")
    (root / "lib/libold.so").write_text("replaced")
    (root / "links/short").symlink_to("/usr/bin/plain")
    (root / "links/long").symlink_to("/" + "long/" * 100)
    for length in (59, 60, 61):
        (root / f"links/{length}").symlink_to("t" * length)
    (root / "replace").mkdir()
    (root / "replace/file").write_text("over a file")
    (root / "replace/hard").write_text("over one of two hard links")
    (root / "replace/link").write_text("over a link")
    (root / "replace/link-by-link").symlink_to("elsewhere")
    (root / "replace/file-by-link").symlink_to("elsewhere")
    (root / "replace/empty").symlink_to("elsewhere")
    (root / "var/run").mkdir(parents=True)
    (root / "var/run/pid").write_text("below a dangling link")
    (root / "many").mkdir()
    for index in range(1200):
        (root / f"many/added-{index:04}").write_text(str(index))
    deep = root / "/".join(["deep"] * 40)
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("bottom")
    (root / "private").mkdir()
    (root / "private").chmod(0o2750)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    (root / "zeros").write_bytes(bytes(10_000))
    (root / "few zeros").write_bytes(bytes(50))
    (root / "tail").write_bytes(b"x" + bytes(9_999))
    with (root / "sparse").open("wb") as file:
        file.seek(30 << 20)
        file.write(b"end")
        file.truncate(40 << 20)
    (root / "one").write_bytes(pattern(5000))
    os.link(root / "one", root / "other")
    return root


def base_tree(root: Path) -> Path:
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib").chmod(0o751)
    (root / "usr/lib/libold.so").write_text("old")
    (root / "lib").symlink_to("usr/lib")
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run/deeper")
    (root / "many").mkdir()
    for index in range(1500):
        (root / f"many/{index:04}-{'n' * (index % 50)}").touch()
    (root / "replace/empty").mkdir(parents=True)
    for name in ("file", "file-by-link"):
        (root / "replace" / name).write_bytes(pattern(20_000))
    (root / "replace/hard").write_text("shared")
    os.link(root / "replace/hard", root / "replace/other")
    (root / "target").write_text("not to be written")
    (root / "replace/link").symlink_to("/target")
    (root / "replace/link-by-link").symlink_to("/target")
    return root


VARIANTS = {
    "ext4 4k": ("-t", "ext4", "-b", "4096", "-O", "^metadata_csum,^64bit"),
    "ext4 checksums": ("-t", "ext4", "-b", "4096", "-O", "metadata_csum,64bit"),
    "ext4 1k": ("-t", "ext4", "-b", "1024"),
    "ext4 inline": ("-t", "ext4", "-b", "4096", "-O", "inline_data", "-I", "256"),
    "ext3": ("-t", "ext3", "-b", "1024"),
    "ext2 small inodes": ("-t", "ext2", "-b", "4096", "-I", "128"),
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_an_overlay_arrives_as_it_is(options: tuple[str, ...], overlay: Path, tmp_path: Path, inject: Inject) -> None:
    base = mkfs(tmp_path / "base.img", 48 << 20, base_tree(tmp_path / "base"), *options, "-N", "9000")
    process.run(["e2fsck", "-fyD", str(base)], env=SBIN, check=False)  # hashes the large folder
    before, stamp = hashlib.sha256(base.read_bytes()).digest(), base.stat().st_mtime_ns
    written = inject(base, overlay)
    assert hashlib.sha256(base.read_bytes()).digest() == before
    assert base.stat().st_mtime_ns == stamp
    # Not by the verification that is under test: e2fsprogs of the host reads the image.
    process.run(["e2fsck", "-fn", str(written)], env=SBIN)
    out = tmp_path / "out"
    out.mkdir()
    process.run(["debugfs", "-R", f"rdump / {out}", str(written)], env=SBIN)
    for source in sorted(overlay.rglob("*")):
        inside = out / source.relative_to(overlay)
        if source.is_symlink():
            assert inside.readlink() == source.readlink()
        elif source.is_file() and "var/run" not in str(source):
            assert not inside.is_symlink()
            # debugfs reads an inline file to the end of its 60 bytes, whatever its size says.
            end = source.stat().st_size if "inline_data" in options else None
            same = inside.read_bytes()[:end] == source.read_bytes()
            assert same, source
            assert inside.stat().st_mode & 0o777 == source.stat().st_mode & 0o777  # rdump loses the upper bits
    with Ext4Image.open(written) as image, Ext4Image.open(base) as old:
        assert image.superblock.size == old.superblock.size  # there was room
        for path in ("/lib", "/usr/lib", "/many", "/", "/replace"):
            was, now = old.lookup(path, follow=False), image.lookup(path, follow=False)
            assert was is not None
            assert now is not None
            assert (now.kind, now.mode, now.uid, now.gid, now.mtime_ns) == (was.kind, was.mode, was.uid, was.gid, was.mtime_ns)
        for path, content in {
            "/usr/lib/libnew.so": b"lands in usr/lib",
            "/usr/lib/libold.so": b"replaced",
            "/target": b"not to be written",
            "/replace/other": b"shared",
            "/run/deeper/pid": b"below a dangling link",
        }.items():
            node = image.lookup(path, follow=False)
            assert node is not None
            assert (node.kind, image.read(node), node.links) == (Kind.FILE, content, 1)
        for path, mode in {"/usr/bin/setuid": 0o4755, "/usr/bin/secret": 0o2644, "/private": 0o2750, "/sticky": 0o1777}.items():
            node = image.lookup(path)
            assert node is not None
            assert (node.mode, node.uid, node.gid, node.mtime) == (mode, 0, 0, inject_plan.EPOCH)


def test_the_same_overlay_gives_the_same_bytes(overlay: Path, tmp_path: Path, inject: Inject) -> None:
    """Other paths, times, user, and files that are sparse in another way."""
    base = mkfs(tmp_path / "base.img", 48 << 20, base_tree(tmp_path / "base"), "-t", "ext4")
    elsewhere = tmp_path / "else where/over,lay"
    elsewhere.mkdir(parents=True)
    shutil.copytree(overlay, elsewhere, symlinks=True, dirs_exist_ok=True)
    (elsewhere / "other").unlink()
    os.link(elsewhere / "one", elsewhere / "other")
    (elsewhere / "sparse").unlink()
    (elsewhere / "sparse").write_bytes((overlay / "sparse").read_bytes())
    assert (elsewhere / "sparse").stat().st_blocks > (overlay / "sparse").stat().st_blocks
    moved = tmp_path / "moved.img"
    sparse_files.copy_file_fast(base, moved)
    one = inject(base, overlay)
    other = inject(moved, elsewhere, user=USER + 1 if os.getuid() == 0 else USER)
    assert image_digest.digest(one) == image_digest.digest(other)
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()


def test_an_overlay_larger_than_the_free_space(tmp_path: Path, inject: Inject) -> None:
    base = mkfs(tmp_path / "base.img", 24 << 20, base_tree(tmp_path / "base"), "-t", "ext4", "-b", "4096", "-N", "3000")
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "large").write_bytes(pattern(70 << 20))
    first, second = inject(base, overlay), inject(base, overlay)
    with Ext4Image.open(first) as image, Ext4Image.open(base) as old:
        assert image.superblock.size == 128 << 20
        assert image.superblock.free_blocks >= old.superblock.free_blocks
    assert image_digest.digest(first) == image_digest.digest(second)
    assert base.stat().st_size == 24 << 20


def test_more_files_than_free_inodes(tmp_path: Path, inject: Inject) -> None:
    base = mkfs(tmp_path / "base.img", 16 << 20, None, "-t", "ext4", "-b", "1024", "-N", "200")
    overlay = tmp_path / "overlay/many"
    overlay.mkdir(parents=True)
    for index in range(700):
        (overlay / str(index)).touch()
    with Ext4Image.open(inject(base, overlay.parent)) as image:
        assert image.superblock.free_inodes >= 8
        node = image.lookup("/many")
        assert node is not None
        assert len(image.listdir(node)) == 700


def test_a_file_that_is_mostly_holes_needs_no_room(tmp_path: Path, inject: Inject) -> None:
    base = mkfs(tmp_path / "base.img", 24 << 20, None, "-t", "ext4", "-b", "4096")
    (tmp_path / "overlay").mkdir()
    with (tmp_path / "overlay/sparse").open("wb") as file:
        file.seek(1 << 30)
        file.write(b"end")
    assert inject(base, tmp_path / "overlay").stat().st_size == 24 << 20


def test_an_empty_overlay(tmp_path: Path, inject: Inject) -> None:
    base = mkfs(tmp_path / "base.img", 8 << 20, None, "-t", "ext4")
    (tmp_path / "overlay").mkdir()
    with Ext4Image.open(inject(base, tmp_path / "overlay")) as image:
        assert [path for path, _ in image.walk()] == ["/", "/lost+found"]


# --- what goes wrong is seen ---


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, Path]:
    base = mkfs(tmp_path / "base.img", 8 << 20, None, "-t", "ext4", "-b", "1024")
    overlay = tmp_path / "overlay"
    (overlay / "folder").mkdir(parents=True)
    (overlay / "folder/file").write_bytes(pattern(5000))
    (overlay / "link").symlink_to("folder")
    return base, overlay


def test_a_full_image_is_an_error_although_debugfs_says_0(tiny: tuple[Path, Path], inject: Inject) -> None:
    base, overlay = tiny
    (overlay / "large").write_bytes(pattern(10 << 20))
    with Ext4Image.open(base) as image:
        plan = inject_plan.plan(image, Tree(overlay))
    assert plan.grow_to_bytes == 64 << 20
    with pytest.raises(InfraError, match="Could not allocate block"):
        inject(base, overlay, plan=replace(plan, grow_to_bytes=None))


def test_a_source_that_went_away(tiny: tuple[Path, Path], inject: Inject) -> None:
    base, overlay = tiny
    with Ext4Image.open(base) as image:
        plan = inject_plan.plan(image, Tree(overlay))
    (overlay / "folder/file").unlink()
    with pytest.raises(InfraError, match="No such file"):
        inject(base, overlay, plan=plan)


def test_a_damaged_base(tiny: tuple[Path, Path], inject: Inject) -> None:
    base, overlay = tiny
    debugfs(base, "freei <11>", "sif <2> links_count 7")
    with pytest.raises(InfraError, match="the base image is damaged") as caught:
        inject(base, overlay)
    assert caught.value.hint == "repair it with e2fsck -fy"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sif /folder/file mode 0100600", r"'/folder/file' was not written as it should be: its mode is 0600, not 0644"),
        ("sif /folder/file uid 7", r"its owner is 7:0, not 0:0"),
        ("sif /folder/file mtime @5", r"its times are"),
        ("sif /folder/file size 4999", r"it has 4999 bytes, not 5000"),
        ("rm /folder/file", r"it is not there"),
        ("punch /folder/file 1 1", r"its content differs, at or after byte 1024"),
        ("zap_block -f /folder/file -o 7 -l 1 -p 0 4", r"its content differs, at or after byte 0"),
    ],
)
def test_every_difference_is_found(command: str, message: str, tiny: tuple[Path, Path], tmp_path: Path, inject: Inject) -> None:
    base, overlay = tiny
    with Ext4Image.open(base) as image:
        plan = inject_plan.plan(image, Tree(overlay))
    written = inject(base, overlay)
    debugfs(written, command)
    with pytest.raises(InfraError, match=message):
        verify(Tree(written.parent), plan, Tree(overlay))


def test_every_complaint_is_found(tiny: tuple[Path, Path], inject: Inject) -> None:
    base, overlay = tiny
    with Ext4Image.open(base) as image:
        plan = inject_plan.plan(image, Tree(overlay))
    build = inject(base, overlay).parent
    for log, addition, message in (
        ("write.err", "./x: File not found by ext2_lookup\n", "debugfs: ./x: File not found"),
        ("write.out", "strange\n", "said something unexpected"),
        ("write.out", "debugfs: rm x\n", "a command that was not given"),
    ):
        content = (build / log).read_text()
        (build / log).write_text(content + addition)
        with pytest.raises(InfraError, match=message):
            verify(Tree(build), plan, Tree(overlay))
        (build / log).write_text(content)
    lines = (build / "write.out").read_text().splitlines(keepends=True)
    (build / "write.out").write_text("".join(lines[:-1]))
    with pytest.raises(InfraError, match="stopped before the command"):
        verify(Tree(build), plan, Tree(overlay))
    (build / "write.out").write_text("".join(lines))
    (build / "steps.log").write_text("base-check 0\nwrite 0\n")
    with pytest.raises(InfraError, match="step 'check' did not end"):
        verify(Tree(build), plan, Tree(overlay))
