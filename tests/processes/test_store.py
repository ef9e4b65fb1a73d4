"""The store with real processes, real locks, real kills and a disk that is really full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from qcase import canonical
from qcase.disk import image_digest
from qcase.errors import BuildError, InfraError, UsageError
from qcase.host import file_state, files
from qcase.host.crash_cleanup import remove_tree
from qcase.host.trees import Tree
from qcase.store import keys, listings
from qcase.store.content import Entry, Kind
from qcase.store.policy import CacheWrite, Policy, default_root, policy
from qcase.store.store import Store

STEPS = ("locked", "staged", "built", "sealed", "flushed", "digested", "manifest", "renamed", "installed")
KEY = keys.key({"case": "smoke"})
LABEL = "normal/smoke x86_64"
REPOSITORY = Path(__file__).parents[2]


def build_image(path: Tree) -> None:
    path.write_bytes(b"\1" * (1 << 20))


def build_overlay(path: Tree) -> None:
    (path / "usr/bin").mkdir(parents=True)
    (path / "usr/bin/tool").write_bytes(b"#!/bin/sh\n")
    (path / "usr/bin/tool").host.chmod(0o4775)  # as a step can
    (path / "usr/bin/with space").symlink_to("tool")
    (path / "tmp").mkdir()
    (path / "tmp").chmod(0o1777)


BUILDS = {Kind.IMAGE: build_image, Kind.OVERLAY: build_overlay, Kind.DOWNLOAD: build_overlay}


def must_not_build(path: Tree) -> None:
    raise AssertionError("built again")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "cache"
    remove_tree(tmp_path / "cache")  # entries are not writable, and pytest's own clean-up minds


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "run"


@contextmanager
def stored(root: Path, scratch: Path, kind: Kind = Kind.IMAGE) -> Iterator[Entry]:
    with Store(root).get_or_build(kind, KEY, BUILDS[kind], scratch=scratch, made_for=LABEL) as entry:
        yield entry


def put(root: Path, scratch: Path, kind: Kind = Kind.IMAGE) -> Path:
    with stored(root, scratch, kind) as entry:
        assert not entry.hit
        return entry.content.host


def staging(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "v2/staging").iterdir())


@pytest.mark.parametrize("release", ["6.1.0-31-amd64", "5.4.0"])
def test_everything_of_an_entry_is_flushed(release: str, root: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: set[int] = set()
    whole: list[Tree] = []
    fsync, flush_file_system = os.fsync, files._flush_file_system

    def noted(fd: int) -> None:
        fsync(fd)
        flushed.add(os.fstat(fd).st_ino)

    def noted_whole(tree: Tree) -> bool:
        done = flush_file_system(tree)
        whole.extend([tree] * done)
        return done

    def build(path: Tree) -> None:
        (path / "lib").mkdir()
        for number in range(files.FEW_FILES + 1):
            (path / f"lib/{number}").write_text("x")

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(files, "_flush_file_system", noted_whole)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", release, "#1", "x86_64")))
    with Store(root).get_or_build(Kind.OVERLAY, KEY, build, scratch=scratch) as entry:
        inodes = {path.stat().st_ino for path in (entry.content.host, *entry.content.host.rglob("*"))}
        about = entry.content.host.parent
        assert {(about / "manifest.json").stat().st_ino, about.stat().st_ino, about.parent.stat().st_ino} <= flushed
    if release.startswith("5.4"):  # whose syncfs does not tell of errors
        assert not whole
        assert inodes <= flushed
    else:
        assert len(whole) == 1
        assert not inodes & flushed


# --- other processes --------------------------------------------------------------------------------------------------------

PRELUDE = """
import os, signal, sys, time
from pathlib import Path
from qcase.errors import BuildError, QcaseError
from qcase.store import keys
from qcase.store.content import *
from qcase.store.store import *
KEY = keys.key({"case": "smoke"})
root, scratch = Path(sys.argv[1]), Path(sys.argv[2])
"""


def start(script: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def finish(child: subprocess.Popen[str]) -> str:
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    return out


# --- the seed's two tests, and the table behind them ------------------------------------------------------------------------


def test_save_rootfs_cache_image_is_noop_in_ci(root: Path, scratch: Path) -> None:
    store = Store(root, writes=policy({"CI": "1"}))
    with store.get_or_build(Kind.IMAGE, KEY, build_image, scratch=scratch) as entry:
        assert entry.content.host.stat().st_size == 1 << 20
        assert entry.content.host.is_relative_to(scratch)
        assert not entry.stored
        assert entry.pass_fds == ()
    assert not store.folder(Kind.IMAGE, KEY.digest).exists()
    assert list(store.entries()) == []
    assert list(scratch.iterdir()) == []


def test_save_rootfs_cache_image_writes_when_enabled(root: Path, scratch: Path) -> None:
    store = Store(root, writes=policy({}))
    with store.get_or_build(Kind.IMAGE, KEY, build_image, scratch=scratch) as entry:
        assert entry.content.host == store.folder(Kind.IMAGE, KEY.digest) / "image.img"
        assert entry.stored
        assert not entry.hit
    with store.get_or_build(Kind.IMAGE, KEY, must_not_build, scratch=scratch) as entry:
        assert entry.content.host.read_bytes() == b"\1" * (1 << 20)
        assert entry.hit
    assert not scratch.exists()


@pytest.mark.parametrize(
    ("write", "environ", "images", "overlays"),
    [
        ("auto", {}, True, True),
        ("auto", {"CI": "true"}, False, True),
        ("auto", {"CI": ""}, False, True),
        ("auto", {"QCASE_DISABLE_ROOTFS_CACHE": "1"}, False, True),
        ("auto", {"QCASE_DISABLE_ROOTFS_CACHE": "", "CI": "1"}, False, True),
        ("always", {}, True, True),
        ("always", {"CI": "1"}, True, True),
        ("always", {"QCASE_DISABLE_ROOTFS_CACHE": "1"}, True, True),
        ("never", {}, False, False),
        ("never", {"CI": "1"}, False, False),
    ],
)
def test_policy(write: str, environ: dict[str, str], images: bool, overlays: bool) -> None:
    assert policy(environ, write) == policy(environ, CacheWrite(write)) == Policy(images=images, overlays=overlays)
    assert policy(environ, write, keep_images=False) == Policy(images=False, overlays=overlays)


def test_ci_still_stores_overlays_and_reads_images(root: Path, scratch: Path) -> None:
    put(root, scratch)
    store = Store(root, writes=policy({"CI": "1"}))
    with store.get_or_build(Kind.IMAGE, KEY, must_not_build, scratch=scratch) as entry:
        assert entry.hit
    with store.get_or_build(Kind.OVERLAY, KEY, build_overlay, scratch=scratch) as entry:
        assert entry.stored


# --- where the store is -----------------------------------------------------------------------------------------------------


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    home = {"HOME": "/home/me"}
    assert default_root(home) == Path("/home/me/.cache/qcase")
    assert default_root({**home, "XDG_CACHE_HOME": "/c"}) == Path("/c/qcase")
    assert default_root({**home, "XDG_CACHE_HOME": "c"}) == Path("/home/me/.cache/qcase")
    assert default_root({**home, "XDG_CACHE_HOME": "/c", "QCASE_CACHE_DIR": "~/q"}) == Path("/home/me/q")
    assert default_root({**home, "QCASE_CACHE_DIR": "here/../q"}) == tmp_path / "q"
    assert default_root({**home, "QCASE_CACHE_DIR": ""}) == Path("/home/me/.cache/qcase")


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "x"}, {"QCASE_CACHE_DIR": "~/q"}, {"QCASE_CACHE_DIR": "a\0b"}])
def test_default_root_that_is_unusable(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        default_root(environ)


def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(InfraError, match="cannot be used") as caught:
        Store(tmp_path / "cache")
    assert "QCASE_CACHE_DIR" in caught.value.hint


def test_a_store_that_may_not_be_written(root: Path, scratch: Path) -> None:
    put(root, scratch)
    # A read-only mount, because a folder's mode does not keep root out.
    script = """
    try:
        Store(root)
    except QcaseError as error:
        print("refused", error)
    with Store(root, writes=Policy(False, False)).reader(Kind.IMAGE, KEY.digest) as entry:
        print("read", entry.content.host.stat().st_size)
    """
    out = finish(in_namespace(f'mount --bind "{root}" "{root}" && mount -o remount,ro,bind "{root}"', script, root, scratch))
    assert "refused" in out
    assert "may not be written" in out
    assert "read 1048576" in out


def test_another_format_is_left_alone(root: Path, scratch: Path) -> None:
    old = root / "v0/images/ab/abcd/image.img"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    put(root, scratch)
    assert old.read_text() == "old"
    assert [key for _, key, _ in Store(root).entries()] == [KEY.digest]


# --- an entry ---------------------------------------------------------------------------------------------------------------


def test_an_overlay_keeps_its_modes_and_links(root: Path, scratch: Path) -> None:
    with stored(root, scratch, Kind.OVERLAY) as entry:
        assert stat.S_IMODE((entry.content.host / "usr/bin/tool").stat().st_mode) == 0o775  # nobody runs it as somebody else
        assert ["usr/bin/tool", "file", "4775"] in [row[:3] for row in entry.manifest.listing]
        assert stat.S_IMODE((entry.content.host / "tmp").stat().st_mode) == 0o1777
        assert (entry.content.host / "usr/bin/with space").readlink() == Path("tool")
        assert entry.digest == canonical.digest(entry.manifest.listing) != listings.overlay_content_digest(entry.content)
        assert ["usr/bin/tool", "file", "4775"] in [row[:3] for row in entry.manifest.listing]


def test_an_entry_is_read_only_and_says_what_made_it(root: Path, scratch: Path) -> None:
    path = put(root, scratch)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert stat.S_IMODE((path.parent / "manifest.json").stat().st_mode) == 0o444
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    written = (path.parent / "manifest.json").read_bytes()
    assert canonical.canonical(json.loads(written)) == written
    manifest = Store(root).manifest(Kind.IMAGE, KEY.digest)
    assert manifest is not None
    assert manifest.parts == KEY.parts
    assert manifest.made_for == LABEL
    assert manifest.digest == image_digest.file_digest(path)
    assert manifest.encode() == written


def test_what_a_build_leaves_beside_the_image_is_not_stored(root: Path, scratch: Path) -> None:
    def untidy(path: Tree) -> None:
        build_image(path)
        path.sibling("commands.txt").write_text("x")

    with Store(root).get_or_build(Kind.IMAGE, KEY, untidy, scratch=scratch) as entry:
        assert sorted(other.name for other in entry.content.host.parent.iterdir()) == ["image.img", "lock", "manifest.json"]


def test_the_parts_of_the_previous_key_of_a_case(root: Path, scratch: Path) -> None:
    store = Store(root)
    assert store.notes.history(Kind.IMAGE, LABEL) == []
    put(root, scratch)
    previous = store.notes.history(Kind.IMAGE, LABEL)
    assert [key.digest for key in previous] == [KEY.digest]
    assert keys.differences(previous[0].parts, {"case": "other"}) == ['case: "smoke" → "other"']
    assert store.notes.history(Kind.OVERLAY, LABEL) == []


# --- broken entries ---------------------------------------------------------------------------------------------------------


def cut(entry: Path) -> None:
    (entry / "image.img").chmod(0o644)
    os.truncate(entry / "image.img", 100)


def edit(entry: Path) -> None:
    """One byte, with size and mtime as they were: only ctime tells."""
    image = entry / "image.img"
    before = image.stat()
    image.chmod(0o644)
    with image.open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    image.chmod(0o444)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))


def lose_image(entry: Path) -> None:
    entry.chmod(0o755)
    (entry / "image.img").unlink()


def cut_manifest(entry: Path) -> None:
    (entry / "manifest.json").chmod(0o644)
    os.truncate(entry / "manifest.json", 60)


def edit_manifest(entry: Path) -> None:
    manifest = entry / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes().replace(b"smoke", b"smokf"))


def swap_manifest(entry: Path) -> None:
    """A manifest that is whole, but another entry's."""
    other = keys.key({"case": "other"})
    store = Store(entry.parents[3])
    with store.get_or_build(Kind.IMAGE, other, build_image, scratch=entry) as made:
        manifest = made.content.host.with_name("manifest.json").read_bytes()
    (entry / "manifest.json").chmod(0o644)
    (entry / "manifest.json").write_bytes(manifest)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut, "has 100 bytes, not 1048576"),
        (edit, "changed after it was stored"),
        (lose_image, "cannot be read"),
        (cut_manifest, "edited or cut off"),
        (edit_manifest, "edited or cut off"),
        (swap_manifest, "is that of the image"),
    ],
)
def test_a_broken_entry_is_thrown_away_with_a_warning(harm: Callable[[Path], None], said: str, root: Path, scratch: Path) -> None:
    harm(put(root, scratch).parent)
    warnings: list[str] = []
    with Store(root).reader(Kind.IMAGE, KEY.digest, warn=warnings.append) as nothing:
        assert nothing is None
    with Store(root).get_or_build(Kind.IMAGE, KEY, build_image, scratch=scratch, warn=warnings.append) as entry:
        assert not entry.hit
        assert entry.content.host.read_bytes() == b"\1" * (1 << 20)
    assert len(warnings) == 2  # one each
    assert all(said in warning for warning in warnings), warnings
    assert staging(root) == []
    with Store(root).get_or_build(Kind.IMAGE, KEY, must_not_build, scratch=scratch) as entry:
        assert entry.hit


def test_an_overlay_with_an_edited_file_is_named_and_thrown_away(root: Path, scratch: Path) -> None:
    with (put(root, scratch, Kind.OVERLAY) / "usr/bin/tool").open("ab") as file:
        file.write(b"more")
    warnings: list[str] = []
    with Store(root).get_or_build(Kind.OVERLAY, KEY, build_overlay, scratch=scratch, warn=warnings.append) as entry:
        assert not entry.hit
    assert "usr/bin/tool has 14 bytes, not 10" in warnings[0]


def test_a_folder_without_manifest_is_rubbish(root: Path, scratch: Path) -> None:
    folder = Store(root).folder(Kind.IMAGE, KEY.digest)
    (folder / "deep").mkdir(parents=True)
    build_image(Tree(folder / "image.img"))
    (folder / "deep").chmod(0o555)
    assert put(root, scratch).parent == folder
    assert not (folder / "deep").exists()


def relocate(root: Path, to: Path, *, modes: bool = True) -> None:
    """As an archive would: other inodes, other times, without `modes` those that a umask leaves."""

    def copy(source: str, destination: str) -> str:
        shutil.copyfile(source, destination)
        mode = stat.S_IMODE(Path(source).stat().st_mode)
        Path(destination).chmod(mode if modes else mode & 0o755)
        return destination

    shutil.copytree(root, to, symlinks=True, copy_function=copy)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("modes", [True, False])
def test_an_entry_that_was_moved_by_other_means_is_read_once(
    kind: Kind, modes: bool, root: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, scratch, kind)
    moved = root.with_name("moved")
    relocate(root, moved, modes=modes)
    reads: list[Path] = []
    for module, name in ((image_digest, "digest_of_file"), (listings, "overlay_listing")):
        real = getattr(module, name)

        def counted(path: Path, real: Callable[[Path], object] = real) -> object:
            reads.append(path)
            return real(path)

        monkeypatch.setattr(module, name, counted)
    warnings: list[str] = []
    for _ in range(2):
        with Store(moved).get_or_build(kind, KEY, must_not_build, scratch=scratch, warn=warnings.append) as entry:
            assert entry.hit
            if kind is Kind.OVERLAY:
                assert stat.S_IMODE((entry.content.host / "usr/bin/tool").stat().st_mode) == 0o775
    # Once; twice for an overlay that had lost its modes.
    assert len(reads) == (1 if modes or kind is Kind.IMAGE else 2)
    assert warnings == []
    remove_tree(moved)


def test_files_from_the_future_are_read_once(root: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their mtime is what the build wanted; ctime tells of changes."""

    def build(path: Tree) -> None:
        build_overlay(path)
        os.utime(path.host / "usr/bin/tool", (4102444800, 4102444800))

    with Store(root).get_or_build(Kind.OVERLAY, KEY, build, scratch=scratch) as entry:
        tool = entry.content.host / "usr/bin/tool"
    tool.chmod(0o700)
    tool.chmod(0o775)  # another ctime, as after a restore
    for _ in range(2):
        with Store(root).reader(Kind.OVERLAY, KEY.digest) as found:
            assert found is not None
        monkeypatch.setattr(listings, "overlay_listing", must_not_build)


@pytest.mark.parametrize("kind", [Kind.IMAGE, Kind.OVERLAY])
def test_an_entry_whose_times_tell_nothing_is_read_at_each_use(
    kind: Kind, root: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, scratch, kind)
    reads: list[str] = []
    for module, name in ((image_digest, "digest_of_file"), (listings, "overlay_listing")):
        real = getattr(module, name)

        def counted(*given: object, real: Any = real, name: str = name) -> object:
            reads.append(name)
            return real(*given)

        monkeypatch.setattr(module, name, counted)
    for filesystem, expected in (("ext4", 0), ("tmpfs", 1), ("fuse.sshfs", 2)):
        monkeypatch.setattr(file_state, "_filesystem", lambda _device, name=filesystem: name)
        with Store(root).reader(kind, KEY.digest) as entry:
            assert entry is not None
        assert len(reads) >= expected
        assert bool(reads) == bool(expected)


def test_a_hit_reads_no_content(root: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, scratch)
    put(root, scratch, Kind.OVERLAY)
    put(root, scratch, Kind.DOWNLOAD)
    monkeypatch.setattr(image_digest, "file_digest", must_not_build)
    monkeypatch.setattr(listings, "overlay_listing", must_not_build)
    for kind in Kind:
        with Store(root).reader(kind, KEY.digest) as entry:
            assert entry is not None


def test_a_hit_imports_nothing_heavy(root: Path, scratch: Path) -> None:
    put(root, scratch)
    script = """
    with Store(root).get_or_build(Kind.IMAGE, KEY, None, scratch=scratch) as entry:
        print(entry.hit, *sorted({"filelock", "pydantic", "docker", "tenacity", "concurrent.futures"} & {*sys.modules}))
    """
    assert finish(start(script, root, scratch)) == "True\n"


# --- many processes ---------------------------------------------------------------------------------------------------------


def test_fifty_processes_build_one_key_once(root: Path, scratch: Path, tmp_path: Path) -> None:
    log = tmp_path / "builds"
    script = """
    def build(path):
        with open(sys.argv[3], "a") as log:
            log.write(f"{os.getpid()}\\n")
        while len(list(Path(sys.argv[4]).iterdir())) < 49:  # until all the others wait for us
            time.sleep(0.01)
        path.write_bytes(b"x" * 100000)
        (Path(sys.argv[5])).write_text(str(time.monotonic()))
    waits = []
    def on_wait(text):
        waits.append(text)
        (Path(sys.argv[4]) / str(os.getpid())).touch()
    with Store(root).get_or_build(Kind.IMAGE, KEY, build, scratch=scratch, made_for="normal/a", on_wait=on_wait) as entry:
        print(entry.hit, entry.content.host.stat().st_size, time.monotonic(), *waits)
    """
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    children = [start(script, root, scratch, log, waiting, tmp_path / "built") for _ in range(50)]
    said = [finish(child) for child in children]
    builder = log.read_text().split()
    assert len(builder) == 1
    assert sorted(line.split()[0] for line in said) == ["False"] + ["True"] * 49
    assert {line.split()[1] for line in said} == {"100000"}
    waits = [line for line in said if line.startswith("True")]
    built = float((tmp_path / "built").read_text())
    late = sorted(float(line.split()[2]) - built for line in waits)
    assert late[-1] < 60.0  # seconds; less than one where fifty processes have the processors to themselves
    assert all(f"waiting for process {builder[0]} (normal/a), which builds this image since " in line for line in waits)
    assert staging(root) == []
    assert not list((root / "v2/locks").glob("*.holder"))


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("step", [*STEPS, "in build"])
def test_a_builder_that_is_killed_frees_the_key(step: str, kind: Kind, root: Path, scratch: Path) -> None:
    script = """
    def kill(step):
        if step == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)
    def build(path):
        target = path / "half" if path.is_dir() else path
        target.write_bytes(b"half")
        kill("in build")
    Store(root, trace=kill).get_or_build(Kind(sys.argv[4]), KEY, build, scratch=scratch).__enter__()
    """
    child = start(script, root, scratch, step, kind.value)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    done = step in ("renamed", "installed")
    with Store(root).reader(kind, KEY.digest) as entry:  # what is served is whole
        assert (entry is not None) == done
    with Store(root).get_or_build(kind, KEY, BUILDS[kind], scratch=scratch) as entry:
        assert entry.hit == done
    Store(root).sweep()
    assert staging(root) == []


def test_a_waiter_goes_on_when_the_builder_is_killed(root: Path, scratch: Path) -> None:
    script = """
    def build(path):
        print("building", flush=True)
        sys.stdin.read()
    with Store(root).get_or_build(Kind.IMAGE, KEY, build, scratch=scratch): pass
    """
    builder = start(script, root, scratch)
    assert builder.stdout is not None
    assert builder.stdout.readline() == "building\n"

    def on_wait(text: str) -> None:
        assert f"process {builder.pid}" in text
        builder.kill()

    with Store(root).get_or_build(Kind.IMAGE, KEY, build_image, scratch=scratch, on_wait=on_wait) as entry:
        assert not entry.hit
        assert entry.stored
    builder.communicate(timeout=60)
    assert builder.returncode == -signal.SIGKILL


def test_the_loser_of_a_race_accepts_the_winner(root: Path, scratch: Path) -> None:
    """Somebody who does not share our builder's lock, as on a filesystem that loses locks, installs the same key before we do."""
    winner: list[str] = []

    def trace(step: str) -> None:
        if step == "manifest" and not winner:
            locks = root / "v2/locks"
            locks.rename(root / "v2/lost")  # as if we held another lock
            locks.mkdir()
            with Store(root).get_or_build(Kind.IMAGE, KEY, build_image, scratch=scratch) as entry:
                winner.append(str(entry.content.host.stat().st_ino))

    with Store(root, trace=trace).get_or_build(Kind.IMAGE, KEY, build_image, scratch=scratch) as entry:
        assert [str(entry.content.host.stat().st_ino)] == winner
        assert not entry.hit
    assert staging(root) == []


@pytest.mark.parametrize("harm", [None, cut, lose_image])
def test_a_winner_in_use_stays_where_it_is(harm: Callable[[Path], None] | None, root: Path, scratch: Path) -> None:
    """As above, but the winner comes before the loser has begun: where it found nothing, or a broken one, a whole one is now."""
    if harm is not None:
        harm(put(root, scratch).parent)

    def trace(step: str) -> None:
        if step == "locked" and not held:
            locks = root / "v2/locks"
            locks.rename(root / "v2/lost")
            locks.mkdir()
            held.append(stack.enter_context(stored(root, scratch)))

    held: list[Entry] = []
    with contextlib.ExitStack() as stack:
        with Store(root, trace=trace).get_or_build(Kind.IMAGE, KEY, must_not_build, scratch=scratch) as entry:
            assert entry.hit
        lock_fd = held[0].lock_fd
        assert lock_fd is not None
        assert os.fstat(lock_fd).st_ino == (held[0].content.host.parent / "lock").stat().st_ino
        assert staging(root) == []


def test_threads_of_one_process_build_once(root: Path, scratch: Path) -> None:
    store = Store(root)
    builds: list[int] = []
    waiting = threading.Barrier(4)

    def build(path: Tree) -> None:
        builds.append(1)
        waiting.wait(timeout=60)
        build_image(path)

    def on_wait(text: str) -> None:
        waiting.wait(timeout=60)

    def ask() -> None:
        with store.get_or_build(Kind.IMAGE, KEY, build, scratch=scratch, on_wait=on_wait) as entry:
            assert entry.stored

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert builds == [1]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BuildError("does not build"), OSError(errno.EIO, "broken")])
def test_a_build_that_fails_leaves_nothing(error: BaseException, root: Path, scratch: Path) -> None:
    def build(path: Tree) -> None:
        (path / "dir").mkdir()
        (path / "dir/file").write_text("x")
        (path / "dir").chmod(0o555)
        raise error

    store = Store(root)
    for _ in range(2):
        with pytest.raises(type(error)), store.get_or_build(Kind.OVERLAY, KEY, build, scratch=scratch):
            raise AssertionError("unreachable")
    assert staging(root) == []
    assert list(store.entries()) == []
    assert store.notes.history(Kind.OVERLAY, "") == []


# --- stores that may only be read, and stores that were moved ----------------------------------------------------------------


def snapshot(root: Path) -> list[tuple[str, int, int, int]]:
    """Everything in a store with its times: what must not change."""
    return sorted(
        (str(path), path.lstat().st_mtime_ns, path.lstat().st_ctime_ns, path.lstat().st_size) for path in root.rglob("*")
    )


def test_a_read_only_store_is_not_touched(root: Path, scratch: Path, tmp_path: Path) -> None:
    put(root, scratch)
    before = snapshot(root)
    store = Store(root, readonly=True, notes=tmp_path / "notes")
    with store.get_or_build(Kind.IMAGE, KEY, must_not_build, scratch=scratch) as entry, store.leases.guests_in_use() as fd:
        assert entry.hit
        assert entry.stored
        assert fd is None
    with store.get_or_build(Kind.OVERLAY, KEY, build_overlay, scratch=scratch, made_for=LABEL) as entry:
        assert not entry.stored
        assert entry.content.host.is_relative_to(scratch)
    with store.leases.announced_run("1-a") as has_containers:
        has_containers()
    assert snapshot(root) == before
    assert not (tmp_path / "notes").exists()


def test_a_read_only_store_that_was_moved_is_read_once(
    root: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, scratch)
    moved = tmp_path / "moved"
    relocate(root, moved)
    before = snapshot(moved)
    for _ in range(2):
        with Store(moved, readonly=True, notes=tmp_path / "notes").reader(Kind.IMAGE, KEY.digest) as entry:
            assert entry is not None
        monkeypatch.setattr(image_digest, "file_digest", must_not_build)
    assert snapshot(moved) == before
    remove_tree(moved)


def test_a_store_that_is_mounted_read_only(root: Path, scratch: Path) -> None:
    put(root, scratch)
    script = """
    store = Store(root, readonly=True, notes=scratch / "notes")
    with store.get_or_build(Kind.IMAGE, KEY, None, scratch=scratch) as entry, store.leases.guests_in_use():
        print(entry.hit, entry.stored)
    def build(path):
        path.write_bytes(b"other")
    with store.get_or_build(Kind.IMAGE, keys.key({"case": "other"}), build, scratch=scratch) as entry:
        print(entry.hit, entry.stored)
    """
    out = finish(in_namespace(f'mount --bind "{root}" "{root}" && mount -o remount,ro,bind "{root}"', script, root, scratch))
    assert out == "True True\nFalse False\n"


@pytest.mark.parametrize("way", ["cp -a", "tar", "tar without times and modes"])
@pytest.mark.parametrize("kind", list(Kind))
def test_a_store_is_saved_and_restored(way: str, kind: Kind, root: Path, scratch: Path, tmp_path: Path) -> None:
    """As CI services do it: other place, other inodes, perhaps other times and modes, and another user's umask."""
    put(root, scratch, kind)
    there = tmp_path / "elsewhere" / "deep"
    there.mkdir(parents=True)
    if way == "cp -a":
        subprocess.run(["cp", "-a", root, there / "cache"], check=True)
    else:
        archive = tmp_path / "saved.tar"
        subprocess.run(["tar", "-cf", archive, "-C", root.parent, root.name], check=True)
        options = ["-m", "--no-same-permissions", "--no-same-owner"] if "without" in way else []
        subprocess.run(["tar", "-xf", archive, "-C", there, *options], check=True, umask=0o077)
    remove_tree(root)
    warnings: list[str] = []
    with Store(there / "cache").get_or_build(kind, KEY, must_not_build, scratch=scratch, warn=warnings.append) as entry:
        assert entry.hit
        if kind is Kind.OVERLAY:
            assert stat.S_IMODE((entry.content.host / "usr/bin/tool").stat().st_mode) == 0o775
    assert warnings == []
    remove_tree(there)


def test_an_archive_that_lost_its_empty_folders(root: Path, scratch: Path) -> None:
    put(root, scratch)
    for name in ("staging", "last", "checked", "locks"):
        remove_tree(root / "v2" / name)
    with stored(root, scratch) as entry:
        assert entry.hit
    with stored(root, scratch, Kind.OVERLAY) as entry:
        assert entry.stored


@contextmanager
def reachable(place: Path) -> Iterator[None]:
    """Let everybody through to a folder, for one test of all that run at once: they share the folders above."""
    with FileLock(place.parents[-2] / f"qcase-tests-reachable-{os.getuid()}.lock"):
        yield from _reachable(place)


def _reachable(place: Path) -> Iterator[None]:
    opened = []
    for folder in (place, *place.parents[:-1]):
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & 0o001:
            opened.append((folder, mode))
            folder.chmod(mode | 0o011)
    try:
        yield
    finally:
        for folder, mode in opened:
            folder.chmod(mode)


AS_ORDINARY_USER = """
if os.getuid() == 0:
    import qcase.store.collect, concurrent.futures, filelock, filelock.asyncio, tempfile  # where they lie, not everybody may look
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""


def test_its_owner_can_delete_a_store(root: Path, scratch: Path, tmp_path: Path) -> None:
    """As `rm -rf` does, for a user whom modes do keep out; whatever the umask was."""
    script = """
    import subprocess
    from qcase.store import collect
    def build(path):
        target = path / "usr" if path.is_dir() else path
        if path.is_dir():
            target.mkdir()
            (path / "proc").mkdir()
            (path / "proc").chmod(0o555)  # as in a base image
            target = target / "tool"
        target.write_bytes(b"x")
        target.chmod(0o444)
    for umask in (0o022, 0o077):
        os.umask(umask)
        for kind in Kind:
            with Store(root).get_or_build(kind, KEY, build, scratch=scratch) as entry:
                print(oct(entry.content.host.parent.stat().st_mode & 0o777))
        done = subprocess.run(["rm", "-rf", root], capture_output=True, text=True)
        print(done.returncode, done.stderr, root.exists())

    def stubborn(path):
        (path / "usr").mkdir()
        (path / "usr/tool").write_bytes(b"x")
        (path / "usr").chmod(0o555)
    with Store(root).get_or_build(Kind.OVERLAY, KEY, stubborn, scratch=scratch) as entry:
        pass
    print(subprocess.run(["rm", "-rf", root], capture_output=True).returncode, entry.content.host.exists())
    collect.clear(Store(root), everything=True)
    print(subprocess.run(["rm", "-rf", root], capture_output=True).returncode, root.exists())
    """
    place = tmp_path / "theirs"
    place.mkdir()
    place.chmod(0o777)
    with reachable(tmp_path):
        said = finish(start(AS_ORDINARY_USER + textwrap.dedent(script), place / "cache", scratch)).splitlines()
    assert said == [*(["0o755"] * len(Kind) + ["0  False"]) * 2, "1 True", "0 False"]


def test_what_its_owner_may_not_read_is_the_cases_fault(root: Path, scratch: Path, tmp_path: Path) -> None:
    script = """
    def build(path):
        (path / "usr").mkdir()
        (path / "usr/tool").write_text("x")
        (path / name).chmod(mode)
    for name, mode in (("usr/tool", 0o111), ("usr", 0o333), ("usr", 0o444)):
        try:
            with Store(root).get_or_build(Kind.OVERLAY, KEY, build, scratch=scratch, made_for="normal/smoke"):
                print("stored")
        except QcaseError as error:
            print(type(error).__name__, error)
    print(*Store(root).entries(), *(root / "v2/staging").iterdir())
    """
    place = tmp_path / "theirs"
    place.mkdir()
    place.chmod(0o777)
    with reachable(tmp_path):
        said = finish(start(AS_ORDINARY_USER + textwrap.dedent(script), place / "cache", scratch))
    assert said.splitlines() == [
        *(
            f"PlantedError {name} in the overlay has the mode {mode}: it cannot be read, and so not be stored"
            for name, mode in (("usr/tool", "0111"), ("usr", "0333"), ("usr", "0444"))
        ),
        "",
    ]


def test_an_entry_whose_folder_is_not_writable_is_as_good(root: Path, scratch: Path) -> None:
    """As they were made once."""
    put(root, scratch).parent.chmod(0o555)
    warnings: list[str] = []
    with Store(root).get_or_build(Kind.IMAGE, KEY, must_not_build, scratch=scratch, warn=warnings.append) as entry:
        assert entry.hit
    assert warnings == []
    assert Store(root).remove(Kind.IMAGE, KEY.digest)
    assert staging(root) == []


def test_a_store_of_another_user(root: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made by one, used by another of the group who may read it and nothing else. Without root there is no other user: then it
    is oneself without the right to write, which asks the same of the store."""
    monkeypatch.setenv("QCASE_CACHE_GROUP", "65534" if os.getuid() == 0 else str(os.getgid()))
    put(root, scratch)
    before = snapshot(root)
    script = """
    if os.getuid() == 0:
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
    try:
        Store(root)
        print("opened")
    except QcaseError as error:
        print(error.hint)
    with Store(root, readonly=True).get_or_build(Kind.IMAGE, KEY, None, scratch=scratch) as entry:
        print(entry.hit, len(entry.content.host.read_bytes()))
    """
    for folder in (root, *root.rglob("*")):
        if folder.is_dir():
            folder.chmod(0o555)
    with reachable(tmp_path):
        hint, found = finish(start(script, root, scratch)).splitlines()
    assert "--cache-readonly" in hint
    assert found == "True 1048576"
    assert [row[0] for row in snapshot(root)] == [row[0] for row in before]


def test_nobody_else_gets_at_what_is_in_a_store(root: Path, scratch: Path, tmp_path: Path) -> None:
    """Above all at no setuid program, also while it is built."""
    put(root, scratch, Kind.OVERLAY)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "v2").stat().st_mode) == 0o700
    for path in root.rglob("*"):
        assert path.is_symlink() or not path.stat().st_mode & 0o6000
    root.chmod(0o755)  # as it was made by 0.1.0
    script = AS_ORDINARY_USER + "try: print(os.listdir(root / 'v2'))\nexcept PermissionError: print('closed')"
    with reachable(tmp_path):
        assert finish(start(script, root, scratch)) == ("closed\n" if os.getuid() == 0 else "")


@pytest.mark.parametrize("mode", [0o775, 0o777])
def test_a_store_that_others_may_write_is_made_ones_own_or_refused(mode: int, root: Path, scratch: Path, tmp_path: Path) -> None:
    put(root, scratch)
    for folder in (root, root / "v2"):
        folder.chmod(mode)
    with (
        pytest.raises(InfraError, match=f"others may write to the store: it has the mode {mode:04o}"),
        Store(root, readonly=True).reader(Kind.IMAGE, KEY.digest),
    ):
        pass
    script = AS_ORDINARY_USER + "try: Store(root); print('opened')\nexcept QcaseError as error: print(error.what)"
    with reachable(tmp_path):
        said = finish(start(script, root, scratch))
    assert said == (f"others may write to the store: it has the mode {mode:04o}\n" if os.getuid() == 0 else "opened\n")
    Store(root)
    assert [stat.S_IMODE(folder.stat().st_mode) & 0o022 for folder in (root, root / "v2")] == [0, 0]


def test_a_store_of_0_1_0_is_left_alone(root: Path, scratch: Path) -> None:
    old = root / "v1" / "overlays" / KEY.digest[:2] / KEY.digest
    (old / "content").mkdir(parents=True)
    (old / "manifest.json").write_text("{}")
    before = snapshot(root / "v1")
    put(root, scratch, Kind.OVERLAY)
    assert snapshot(root / "v1") == before
    assert (old / "manifest.json").read_text() == "{}"
    assert {key for _, key, _ in Store(root).entries()} == {KEY.digest}


# --- file systems without locks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_a_file_system_without_locks_is_said_and_nothing_is_made(code: str, root: Path, scratch: Path) -> None:
    """As some NFS servers and FUSE file systems are: the system call itself fails, injected by strace."""
    script = """
    try:
        with Store(root).get_or_build(Kind.IMAGE, KEY, None, scratch=scratch):
            print("an entry")
    except QcaseError as error:
        print(type(error).__name__, error, error.hint)
    print(*Store(root).entries(), *(root / "v2/staging").iterdir())
    """
    argv = ["strace", "-f", "-o", "/dev/null", "-e", "trace=flock", "-e", f"inject=flock:error={code}"]
    argv += [sys.executable, "-c", PRELUDE + textwrap.dedent(script), str(root), str(scratch)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=REPOSITORY)
    first, second = done.stdout.split("\n")[:2]
    assert first.startswith("InfraError "), done.stderr
    assert "no file locks" in first
    assert "local disk" in first
    assert second == ""


# --- runs -------------------------------------------------------------------------------------------------------------------


def test_dead_runs_are_told_from_living_ones_whatever_their_process_id(root: Path, scratch: Path) -> None:
    store = Store(root)
    script = """
    store = Store(root)
    with store.leases.announced_run("1-dead") as has_containers:
        has_containers()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    start(script, root, scratch).communicate(timeout=60)
    with store.leases.announced_run("1-alive"):
        with store.leases.dead_runs() as dead:
            assert dead == {"1-dead": True}
        with store.leases.dead_runs() as dead:
            assert dead == {}
    assert list((root / "v2/runs").iterdir()) == []


def test_dead_runs_are_remembered_until_somebody_could_clear_up(root: Path) -> None:
    store = Store(root)
    (root / "v2/runs").mkdir()
    (root / "v2/runs/1-dead.lock").touch()
    with contextlib.suppress(InfraError), store.leases.dead_runs():
        raise InfraError("no engine")
    with store.leases.dead_runs() as dead:
        assert dead == {"1-dead": False}


# --- why ------------------------------------------------------------------------------------------------------------------------


def test_why_something_is_built(root: Path, scratch: Path) -> None:
    def build(path: Tree) -> None:
        build_image(path)

    def key(**parts: canonical.JSON) -> keys.Key:
        return keys.key({"base": "a", "sources": {"digest": "", "files": [["c/main.c", "file", "1"]]}, **parts})

    store = Store(root)
    first, other = key(), key(base="b", recipe=2)
    assert store.notes.why_missed(Kind.IMAGE, first, LABEL) == ["not built before"]
    for made in (first, other):
        with store.get_or_build(Kind.IMAGE, made, build, scratch=scratch, made_for=LABEL):
            pass
    edited = key(sources={"digest": "", "files": [["c/main.c", "file", "2"], ["c/new.c", "file", "3"]]})
    # Not against the newest but against the nearest.
    assert store.notes.why_missed(Kind.IMAGE, edited, LABEL) == ["sources: c/main.c changed", "sources: c/new.c is new"]
    store.remove(Kind.IMAGE, first.digest)
    assert store.notes.why_missed(Kind.IMAGE, first, LABEL) == ["built before, and not kept"]
    assert store.notes.why_missed(Kind.IMAGE, first, "another case") == ["not built before"]


# --- in use -----------------------------------------------------------------------------------------------------------------


def test_an_entry_in_use_is_not_removed(root: Path, scratch: Path) -> None:
    with stored(root, scratch) as entry:
        assert not Store(root).remove(Kind.IMAGE, KEY.digest)
        assert entry.content.host.exists()
    assert Store(root).remove(Kind.IMAGE, KEY.digest)
    assert list(Store(root).entries()) == []
    assert staging(root) == []
    assert not Store(root).remove(Kind.IMAGE, KEY.digest)


def test_a_child_keeps_the_lock_that_its_parent_has_closed(root: Path, scratch: Path) -> None:
    """What QEMU does for an image when qcase is killed."""
    with stored(root, scratch) as entry:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=entry.pass_fds)
    assert not Store(root).remove(Kind.IMAGE, KEY.digest)
    child.communicate(timeout=60)
    assert Store(root).remove(Kind.IMAGE, KEY.digest)


def test_a_child_keeps_the_lock_of_a_parent_that_was_killed(root: Path, scratch: Path) -> None:
    put(root, scratch)
    script = """
    import subprocess
    with Store(root).reader(Kind.IMAGE, KEY.digest) as entry:
        child = subprocess.Popen(["cat"], stdin=0, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=entry.pass_fds)
        print(child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    parent = start(script, root, scratch)
    assert parent.stdout is not None
    assert parent.stdin is not None
    child = int(parent.stdout.readline())
    parent.wait(timeout=60)
    handle = os.pidfd_open(child)
    assert not Store(root).remove(Kind.IMAGE, KEY.digest)
    parent.communicate(timeout=60)  # closes what `cat` reads
    assert select.select([handle], [], [], 60)[0], "cat does not end"
    os.close(handle)
    assert Store(root).remove(Kind.IMAGE, KEY.digest)


def test_readers_are_not_blocked_by_someone_who_builds_or_by_each_other(root: Path, scratch: Path) -> None:
    put(root, scratch)
    from filelock import FileLock

    with (
        FileLock(root / f"v2/locks/image-{KEY.digest}.lock"),
        Store(root).reader(Kind.IMAGE, KEY.digest) as one,
        Store(root).reader(Kind.IMAGE, KEY.digest) as two,
    ):
        assert one is not None
        assert two is not None
        assert not Store(root).remove(Kind.IMAGE, KEY.digest)  # nor is anything taken from a builder


def test_a_broken_entry_in_use_is_replaced_and_deleted_when_it_is_free(root: Path, scratch: Path) -> None:
    with stored(root, scratch) as entry, entry.content.host.open("rb") as held:
        cut(entry.content.host.parent)
        with stored(root, scratch) as again:
            assert not again.hit
        assert [name for name in staging(root) if name.startswith("trash-")]
        assert len(held.read()) == 100
    Store(root).sweep()
    assert staging(root) == []
    with stored(root, scratch) as again:
        assert again.hit


def test_a_sweep_takes_nothing_from_the_living(root: Path, scratch: Path) -> None:
    seen = []

    def trace(step: str) -> None:
        other = Store(root)
        assert other.sweep() == 0
        seen.append(step)

    with Store(root, trace=trace).get_or_build(Kind.IMAGE, KEY, build_image, scratch=scratch) as entry:
        assert entry.stored
    assert seen == list(STEPS)


# --- a full disk ------------------------------------------------------------------------------------------------------------


def in_namespace(mount: str, script: str, *args: object) -> subprocess.Popen[str]:
    """Run Python where something is mounted that nobody else sees."""
    may_mount = subprocess.run(["unshare", "-m", "true"], stderr=subprocess.DEVNULL).returncode == 0
    unshare = ["unshare", "-m"] if may_mount else ["unshare", "-r", "-m"]
    return subprocess.Popen(
        [
            *unshare,
            "sh",
            "-euc",
            f'{mount}; exec "$@"',
            "sh",
            sys.executable,
            "-c",
            PRELUDE + textwrap.dedent(script),
            *map(str, args),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


FULL = """
def build(path):
    path.write_bytes(b"x" * (1 << 20))
try:
    with Store(root).get_or_build(Kind.IMAGE, KEY, build, scratch=scratch, warn=print) as entry:
        print("stored" if entry.stored else "not stored", entry.content.host.stat().st_size)
except QcaseError as error:
    print(type(error).__name__, error)
left = [*(root / "v2/staging").iterdir(), *scratch.glob("*"), *Store(root).entries()]
print("left", *left)
"""


@pytest.mark.parametrize("size", ["8k", "1m", "1028k", "1032k"])  # the last one has no page for the manifest
def test_a_full_store_is_no_failure(size: str, root: Path, scratch: Path) -> None:
    root.mkdir()
    lines = finish(in_namespace(f'mount -t tmpfs -o size={size} none "{root}"', FULL, root, scratch)).splitlines()
    assert "is full" in lines[0]
    assert "MiB free" in lines[0]
    assert lines[1:] == ["not stored 1048576", "left"]


def test_a_disk_that_fills_at_random_points(root: Path, scratch: Path) -> None:
    """Of any size, and full again and again: a whole entry or none, and a run that goes on."""
    root.mkdir()
    seed = random.randrange(1 << 30)
    script = """
    import random, subprocess
    chance = random.Random(int(sys.argv[3]))
    def build(path):
        (path / "usr").mkdir()
        for number in range(40):
            (path / "usr" / str(number)).write_bytes(bytes([number]) * chance.randrange(20000))
    stored = 0
    for turn in range(30):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={chance.randrange(4096, 700000)}", "none", root], check=True)
        try:
            with Store(root).get_or_build(Kind.OVERLAY, KEY, build, scratch=scratch) as entry:
                files = list((entry.content.host / "usr").iterdir())
                assert len(files) == 40
                assert all(set(file.read_bytes()) <= {int(file.name)} for file in files)
                stored += entry.stored
            assert not list((root / "v2/staging").iterdir())
            assert len(list(Store(root).entries())) == entry.stored
        except QcaseError as error:
            assert "No space left on device" in str(error), error
        subprocess.run(["umount", root], check=True)
    print(stored)
    """
    out = finish(in_namespace("true", script, root, scratch, seed))
    assert 0 < int(out) < 30, f"seed {seed}"


def test_a_disk_that_is_full_everywhere(root: Path, tmp_path: Path) -> None:
    root.mkdir()
    script = f'mount -t tmpfs -o size=512k none "{root}"'
    lines = finish(in_namespace(script, FULL, root, root / "run")).splitlines()
    assert lines[1].startswith(f"InfraError {root}/run: No space left on device: the image for ")
    assert "of 0.5 MiB free" in lines[1]
    assert lines[2:] == ["left"]


def test_a_disk_too_full_to_open_the_store(root: Path, scratch: Path) -> None:
    root.mkdir()
    script = """
    try:
        Store(root)
    except QcaseError as error:
        print(type(error).__name__, error)
    """
    out = finish(in_namespace(f'mount -t tmpfs -o nr_inodes=3 none "{root}"', script, root, scratch))
    assert out.startswith(f"InfraError {root}: No space left on device: the store cannot be written")


def test_a_full_disk_that_only_a_container_saw(root: Path, scratch: Path) -> None:
    """A step in a container cannot hand us an errno, only words."""

    def build(path: Tree) -> None:
        if path.host.is_relative_to(root):
            raise InfraError("ended with status 1\nmke2fs: No space left on device")
        build_image(path)

    warnings: list[str] = []
    with Store(root).get_or_build(Kind.IMAGE, KEY, build, scratch=scratch, warn=warnings.append) as entry:
        assert not entry.stored
    assert len(warnings) == 1
    assert staging(root) == []


SAID = "cp: error writing '/tmp/big': No space left on device"


def test_a_build_that_speaks_of_a_full_disk_is_not_built_twice(root: Path, scratch: Path) -> None:
    """The disk has room: it was some /tmp in the container, or a test of what a full disk does."""
    builds: list[Tree] = []

    def build(path: Tree) -> None:
        builds.append(path)
        raise BuildError("ended with status 1", log=SAID)

    warnings: list[str] = []
    asked = Store(root).get_or_build(Kind.OVERLAY, KEY, build, scratch=scratch, warn=warnings.append)
    with pytest.raises(BuildError, match="status 1"), asked:
        raise AssertionError("unreachable")
    assert len(builds) == 1
    assert warnings == []


def test_a_build_that_met_a_full_disk_is_built_elsewhere(root: Path, scratch: Path) -> None:
    root.mkdir()
    script = """
    def build(path):
        if path.host.is_relative_to(root):
            raise BuildError("ended with status 1", log=sys.argv[3])
        path.write_bytes(b"x")
    with Store(root).get_or_build(Kind.IMAGE, KEY, build, scratch=scratch, warn=print) as entry:
        print(entry.stored, os.listdir(root / "v2/staging"))
    """
    out = finish(in_namespace(f'mount -t tmpfs -o size=8m none "{root}"', script, root, scratch, SAID))
    assert re.fullmatch(r"the disk of .* is full .*\nFalse \[\]\n", out)
