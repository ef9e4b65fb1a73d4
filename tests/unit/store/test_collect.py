"""Collection: what goes, in which order, what never goes, and what is swept. Real stores, real locks, real children."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from qcase.errors import UsageError
from qcase.host import locks
from qcase.host.crash_cleanup import remove_tree
from qcase.host.trees import Tree
from qcase.store import collect, describe, keys
from qcase.store.content import Kind
from qcase.store.store import Store
from qcase.text import parse_age
from tests.processes import test_store

MIB = 1 << 20
DAY = 86400.0


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "cache"
    remove_tree(tmp_path / "cache")


def key(name: str) -> keys.Key:
    return keys.key({"case": name})


def put(root: Path, name: str, *, used: float, kind: Kind = Kind.IMAGE) -> Path:
    """An entry of one MiB of data, last used so many seconds ago. An image has a hole of a GiB, too."""

    def build(path: Tree) -> None:
        file = path / "data" if kind is Kind.OVERLAY else path
        file.write_bytes(os.urandom(MIB))
        if kind is Kind.IMAGE:
            os.truncate(file.host, 1 << 30)

    with Store(root).get_or_build(kind, key(name), build, scratch=root.parent / "run", made_for=f"normal/{name} x86_64") as entry:
        pass
    moment = time.time() - used
    os.utime(Store(root).folder(kind, key(name).digest) / "lock", (moment, moment))
    return entry.content.host


def put_guest(root: Path, name: str, *, used: float) -> Path:
    folder = root / "guests" / name
    folder.mkdir(parents=True)
    (folder / "rootfs.img").write_bytes(b"x" * MIB)
    moment = time.time() - used
    os.utime(folder, (moment, moment))
    return folder


def names(found: collect.Collected) -> list[str]:
    by_digest = {key(name).digest: name for name in ("old", "middle", "new", "a", "b")}
    return [by_digest.get(gone.item.name, gone.item.name) for gone in found.gone]


# --- sizes --------------------------------------------------------------------------------------------------------------


def test_holes_do_not_count(root: Path) -> None:
    path = put(root, "a", used=0)
    assert path.stat().st_size == 1 << 30
    (item,) = collect.items(Store(root))
    assert MIB <= item.size < 2 * MIB
    assert item.made_for == "normal/a x86_64"


def test_a_file_with_two_names_counts_once_and_a_link_does_not_lead_on(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "one").write_bytes(b"x" * MIB)
    before = collect.disk_size(folder)
    os.link(folder / "one", folder / "two")
    (folder / "three").symlink_to("one")
    (tmp_path / "outside").write_bytes(b"x" * MIB)
    (folder / "out").symlink_to(tmp_path / "outside")
    assert collect.disk_size(folder) < before + 16384


# --- what goes ----------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_goes_first_until_the_size_is_kept(root: Path) -> None:
    for name, used in (("new", 10.0), ("old", 3 * DAY), ("middle", DAY)):
        put(root, name, used=used)
    size = collect.disk_size(root)
    done = collect.collect(Store(root), collect.Limits(max_size=size - MIB - MIB // 2))
    assert names(done) == ["old", "middle"]
    assert done.size == collect.disk_size(root) <= size - MIB - MIB // 2
    assert [item.name for item in collect.items(Store(root))] == [key("new").digest]
    assert collect.collect(Store(root), collect.Limits(max_size=size)).gone == ()


def test_another_format_does_not_count(root: Path) -> None:
    """It may not be touched, so everything of ours would go, and the store be too big all the same."""
    put(root, "a", used=DAY)
    assert "other formats" not in "".join(describe.sizes(Store(root)))
    before = collect.disk_size(root)
    for other in ("v0", "v1"):
        (root / other / "images").mkdir(parents=True)
        (root / other / "images" / "theirs.img").write_bytes(b"x" * 4 * MIB)
    done = collect.collect(Store(root), collect.Limits(max_size=before + MIB))
    assert done.gone == ()
    assert done.size == before
    lines = list(describe.sizes(Store(root)))
    assert re.fullmatch(r"other formats +8\.0 MiB", lines[-3])
    assert re.fullmatch(r"the rest +\d+\.\d KiB", lines[-2])
    assert re.fullmatch(r"all +1 +9\.\d MiB", lines[-1])
    assert names(collect.clear(Store(root), everything=True)) == ["a"]
    assert collect.disk_size(root) > 8 * MIB


def test_age(root: Path) -> None:
    put(root, "old", used=3 * DAY)
    put(root, "new", used=10)
    assert names(collect.collect(Store(root), collect.Limits(max_age=2 * DAY))) == ["old"]


def test_the_free_space_floor_is_at_most_a_tenth_of_the_disk(root: Path) -> None:
    put(root, "a", used=0)
    about = os.statvfs(root)
    if about.f_bavail < about.f_blocks // 10:  # a nearly full disk: then it does go
        assert names(collect.collect(Store(root), collect.Limits(min_free=1 << 60))) == ["a"]
    else:
        assert collect.collect(Store(root), collect.Limits(min_free=1 << 60)).gone == ()


def test_a_disk_that_is_too_full(root: Path, tmp_path: Path) -> None:
    """Ten MiB, of which two entries take two: with a floor of one MiB, and less than that left, the older one goes."""
    root.mkdir()
    script = """
    from qcase.store import collect
    def build(path):
        path.write_bytes(os.urandom(1 << 20))
    store = Store(root)
    for name in ("old", "new"):
        key = keys.key({"case": name})
        with store.get_or_build(Kind.IMAGE, key, build, scratch=scratch) as entry:
            pass
        used = 1e9 if name == "old" else 2e9
        os.utime(store.folder(Kind.IMAGE, key.digest) / "lock", (used, used))
    free = os.statvfs(root)
    (root / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - (1 << 19)))
    done = collect.collect(store, collect.Limits(min_free=1 << 30))
    print(len(done.gone), done.gone[0].why, done.gone[0].item.used)
    """
    child = test_store.in_namespace(f'mount -t tmpfs -o size=10m none "{root}"', script, root, tmp_path / "run")
    assert test_store.finish(child) == "1 the disk is too full 1000000000.0\n"


def test_a_clock_that_jumped(root: Path) -> None:
    """Set back, it leaves uses in the future; those count as now. Set forward, all is old, and only what is asked for goes."""
    put(root, "old", used=3 * DAY)
    put(root, "new", used=-1000 * DAY)
    assert names(collect.collect(Store(root), collect.Limits(max_age=2 * DAY))) == ["old"]
    assert [line for line in describe.listing(Store(root)) if "just now" in line]
    ahead = time.time() + 10000 * DAY
    assert collect.collect(Store(root), collect.Limits(max_size=1 << 40), now=ahead).gone == ()
    assert names(collect.collect(Store(root), collect.Limits(max_age=DAY), now=ahead)) == ["new"]


def test_a_dry_run_says_the_same_and_takes_nothing(root: Path) -> None:
    put(root, "old", used=DAY)
    put(root, "new", used=0, kind=Kind.OVERLAY)
    before = sorted(root.rglob("*"))
    said = collect.collect(Store(root), collect.Limits(max_size=0), dry_run=True)
    assert sorted(root.rglob("*")) == before
    done = collect.collect(Store(root), collect.Limits(max_size=0))
    assert names(said) == names(done) == ["old", "new"]
    assert said.size <= done.size + MIB


def test_guests_go_last_and_only_when_nobody_boots_one(root: Path) -> None:
    fetched = put_guest(root, "alpine-3.23.6-x86_64", used=9 * DAY)
    derived = put_guest(root, "initramfs-0123456789abcdef-x86_64", used=5 * DAY)
    put(root, "new", used=0)
    store = Store(root)
    with store.leases.guests_in_use():
        done = collect.collect(Store(root), collect.Limits(max_size=0))
        assert names(done) == ["new"]
        assert [item.path for item in done.busy] == [derived, fetched]
    done = collect.collect(Store(root), collect.Limits(max_size=0))
    assert [gone.item.path for gone in done.gone] == [derived, fetched]
    assert not fetched.exists()


def test_a_run_may_start_while_a_collection_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting takes its time, and who uses guests waits for seconds only."""
    put_guest(root, "initramfs-0123456789abcdef-x86_64", used=5 * DAY)
    put(root, "new", used=0)
    with Store(root).leases.guests_in_use():
        pass  # as each run does: the lock is there
    remove = Store.remove
    started: list[bool] = []

    def while_it_deletes(store: Store, kind: Kind, name: str) -> bool:
        with Store(root).leases.guests_in_use():
            started.append(True)
        return remove(store, kind, name)

    monkeypatch.setattr(Store, "remove", while_it_deletes)
    done = collect.collect(Store(root), collect.Limits(max_size=0))
    assert names(done) == ["initramfs-0123456789abcdef-x86_64", "new"]
    assert started == [True]


def test_folders_of_others_are_left_alone(root: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs" / "guests" / "alpine"
    theirs.mkdir(parents=True)
    Store(root)
    (root / "guests").symlink_to(theirs.parent)
    collect.collect(Store(root), collect.Limits(max_size=0))
    collect.clear(Store(root), everything=True)
    assert theirs.is_dir()


# --- what never goes ----------------------------------------------------------------------------------------------------


def test_what_is_in_use_never_goes(root: Path) -> None:
    path = put(root, "a", used=DAY)
    with Store(root).reader(Kind.IMAGE, key("a").digest) as entry:
        assert entry is not None
        for dry_run in (True, False):
            done = collect.collect(Store(root), collect.Limits(max_size=0, max_age=0), dry_run=dry_run)
            assert done.gone == ()
            assert [item.path for item in done.busy] == [path.parent]
        assert collect.clear(Store(root)).gone == ()
        assert path.exists()
    assert names(collect.clear(Store(root))) == ["a"]


def test_what_a_killed_qcases_qemu_still_uses_never_goes(root: Path) -> None:
    """The child stands for QEMU: it has the two descriptors, its qcase is killed, and it takes its time to end."""
    path = put(root, "a", used=DAY)
    guest = put_guest(root, "alpine-3.23.6-x86_64", used=DAY)
    script = """
    import subprocess
    store = Store(root)
    with store.reader(Kind.IMAGE, sys.argv[3]) as entry, store.leases.guests_in_use() as guests:
        child = subprocess.Popen(["cat"], stdin=0, stdout=subprocess.DEVNULL, pass_fds=(*entry.pass_fds, guests))
        print(child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    parent = test_store.start(script, root, root, key("a").digest)
    assert parent.stdout is not None
    handle = os.pidfd_open(int(parent.stdout.readline()))
    assert parent.wait(timeout=60) == -signal.SIGKILL
    done = collect.collect(Store(root), collect.Limits(max_size=0, max_age=0))
    assert done.gone == ()
    assert path.exists()
    assert guest.exists()
    parent.communicate(timeout=60)
    assert select.select([handle], [], [], 60)[0]
    os.close(handle)
    assert len(collect.collect(Store(root), collect.Limits(max_size=0)).gone) == 2


# --- leftovers ----------------------------------------------------------------------------------------------------------


def test_half_made_guests_of_the_dead_are_swept(root: Path) -> None:
    Store(root)
    left = root / "guests" / ".staging-alpine-3.23.6-x86_64-0123456789ab"
    (left / "download").mkdir(parents=True)
    (left / "download" / "half.whl").write_bytes(b"x")
    (root / "locks").mkdir()
    with FileLock(root / "locks" / "guest-alpine-3.23.6-x86_64.lock"):
        assert collect.sweep(Store(root)) == 0
        assert left.exists()
    assert collect.sweep(Store(root)) == 1
    assert not left.exists()


def test_scratch_of_toolchain_builders_that_are_gone_is_swept(root: Path) -> None:
    images = root / "images"
    (images / ".scratch-abc").mkdir(parents=True)
    for name in (".c.123.abc", ".c.123.young"):
        (images / name).write_text("half a record")
    os.utime(images / ".c.123.abc", (1, 1))
    with FileLock(images / "c.lock"):
        assert collect.sweep_unfinished(Store(root)) == 0
    assert collect.sweep_unfinished(Store(root)) == 2
    assert sorted(path.name for path in images.iterdir() if path.suffix != ".lock") == [".c.123.young"]


def test_what_killed_processes_had_half_written_is_swept(root: Path) -> None:
    """A package that is copied, a note, a manifest: under a hidden name, and nothing else knows of it."""
    put(root, "a", used=0)
    folders = [
        root / name
        for name in (
            "downloads/packages",
            "downloads/crates",
            "downloads/git",
            "downloads/asked",
            "memory/accel",
            "memory",
            "guests/alpine",
        )
    ]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (".half.old", ".half.young", "whole"):
            (folder / name).write_text("half")
    for minutes, swept in ((50, 0), (70, len(folders))):
        for folder in folders:
            moment = time.time() - minutes * 60
            os.utime(folder / ".half.old", (moment, moment))
        assert collect.sweep(Store(root)) == swept
    assert sorted({path.name for folder in folders for path in folder.glob(".*")}) == [".half.young"]
    for folder in folders:
        os.utime(folder / ".half.young", (time.time() - 90, time.time() - 90))
    collect.clear(Store(root))
    assert [len(list(folder.glob(".*"))) for folder in folders] == [1] * len(folders)
    collect.clear(Store(root), everything=True)
    assert [path for folder in folders for path in folder.glob(".*")] == []


def test_records_of_toolchain_images_that_are_no_more(root: Path) -> None:
    images = root / "images"
    images.mkdir(parents=True)
    current, old, young = ("a" * 64, "b" * 64, "c" * 64)
    (images / "c.json").write_text(f'{{"format": 1, "image": "sha256:{current}", "identity": "x"}}')
    for name in (current, old, young):
        (images / f"{name}.json").write_text("{}")
    for name in (current, old):
        os.utime(images / f"{name}.json", (1, 1))
    assert collect.sweep(Store(root)) == 1
    assert {path.stem for path in images.glob("*.json")} == {"c", current, young}


def test_locks_and_notes_that_nobody_needs(root: Path) -> None:
    put(root, "a", used=0)
    put(root, "old", used=0)
    store = Store(root)
    store.remove(Kind.IMAGE, key("old").digest)
    folder = root / "v2" / "locks"
    needed, old = (folder / f"image-{key(name).digest}.lock" for name in ("a", "old"))
    for path in (needed, old):
        path.touch()  # some releases of filelock take the file away with the lock
    for path in (*folder.iterdir(), *(root / "v2" / "last").iterdir()):
        os.utime(path, (1, 1))
    with FileLock(old):
        collect.sweep(store)
        assert old.exists()
    old.touch()
    os.utime(old, (1, 1))
    collect.sweep(store)
    assert not old.exists()
    assert needed.exists()
    assert (folder / "probe").exists()
    assert list((root / "v2" / "last").iterdir()) == []


def test_a_builder_whose_lock_is_swept_away_takes_a_new_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has opened the file, and a sweep comes before it can lock it: what it holds has to be what all others look for."""
    path = root / "v2" / "locks" / f"image-{key('a').digest}.lock"
    store = Store(root)
    real = fcntl.flock
    swept = []

    def flock(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        os.utime(path, (1, 1))
        swept.append(collect.sweep(store))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.held(path):
        assert swept == [1]
        assert locks.sole(path) is None


# --- verify, clear ------------------------------------------------------------------------------------------------------


def test_verify_finds_what_facts_do_not_show(root: Path) -> None:
    """A disk that loses a byte by itself: size, times and inode are as they were."""
    path = put(root, "a", used=0)
    put(root, "b", used=0)
    store = Store(root)
    manifest = path.with_name("manifest.json")
    about = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"y")
    path.chmod(0o444)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    # As if it had looked like this from the beginning: ctime cannot be set back.
    from qcase.store import content

    facts = content.facts_of(Kind.IMAGE, Tree(path.parent, path.name))
    old = store.manifest(Kind.IMAGE, key("a").digest)
    assert old is not None
    forged = content.Manifest(old.kind, old.key, old.parts, old.digest, old.listing, facts)
    manifest.chmod(0o644)
    manifest.write_bytes(forged.encode())
    with store.reader(Kind.IMAGE, key("a").digest) as entry:
        assert entry is not None  # the cheap look sees nothing
    lines = list(describe.verify(store, {}, repair=False))
    assert [broken for _, broken in lines] == [True, False]
    assert re.search(r"broken: image \w+: its content is not what was stored", lines[0][0])
    assert lines[-1][0] == "1 whole, 1 broken"
    lines = list(describe.verify(store, {}, repair=True))
    assert [broken for _, broken in lines] == [False, False]
    assert "thrown away" in lines[0][0]
    assert not path.exists()
    assert list(describe.verify(store, {}, repair=False)) == [("1 whole, 0 broken", False)]


def test_verify_throws_away_what_is_broken_even_if_it_is_in_use(root: Path) -> None:
    path = put(root, "a", used=0)
    store = Store(root)
    with store.reader(Kind.IMAGE, key("a").digest) as entry, path.open("rb") as held:
        assert entry is not None
        path.chmod(0o644)
        os.truncate(path, 100)
        assert "thrown away" in next(describe.verify(store, {}, repair=True))[0]
        assert not path.exists()
        assert len(held.read()) == 100  # whoever has it keeps it until then
    assert store.sweep() == 1


def test_verify_leaves_what_somebody_has_replaced_meanwhile(root: Path) -> None:
    path = put(root, "a", used=0)
    store = Store(root)
    path.chmod(0o644)
    os.truncate(path, 100)
    assert store.verify(Kind.IMAGE, key("a").digest)
    put(root, "a", used=0)
    with store.reader(Kind.IMAGE, key("a").digest) as entry:
        assert entry is not None
        assert store.remove(Kind.IMAGE, key("a").digest, even_if_used=True)
        assert path.stat().st_size == 1 << 30


def test_verify_reads_guests(root: Path) -> None:
    Store(root)
    folder = put_guest(root, "alpine-3.23.6-x86_64", used=0)
    lines = list(describe.verify(Store(root), {}, repair=False))
    assert "it has no manifest" in lines[0][0]
    with Store(root).leases.guests_in_use():
        assert next(describe.verify(Store(root), {}, repair=True))[1]
    assert not next(describe.verify(Store(root), {}, repair=True))[1]
    assert not folder.exists()


def test_clear_keeps_guests_unless_asked(root: Path) -> None:
    guest = put_guest(root, "alpine-3.23.6-x86_64", used=0)
    put(root, "a", used=0)
    (root / "images").mkdir()
    (root / "images" / "c.json").write_text("{}")
    with Store(root).leases.guests_in_use():
        pass
    assert names(collect.clear(Store(root), dry_run=True)) == ["a"]
    assert names(collect.clear(Store(root))) == ["a"]
    assert guest.exists()
    assert [gone.item.path for gone in collect.clear(Store(root), everything=True).gone] == [guest]
    assert not (root / "images" / "c.json").exists()


# --- for people ---------------------------------------------------------------------------------------------------------


def test_listing_and_sizes(root: Path) -> None:
    put(root, "old", used=3 * DAY)
    put(root, "new", used=2 * 3600)
    old, new = describe.listing(Store(root))
    assert re.fullmatch(rf"image +1\.0 MiB  3 d ago +{key('old').short}  normal/old x86_64", old)
    assert re.fullmatch(rf"image +1\.0 MiB  2 h ago +{key('new').short}  normal/new x86_64", new)
    assert re.fullmatch(r"image +1\.0 MiB  3 d ago +normal/old x86_64", next(describe.listing(Store(root), narrow=True)))
    lines = list(describe.sizes(Store(root)))
    assert re.fullmatch(r"images +2 +2\.0 MiB", lines[0])
    assert re.fullmatch(r"all +2 +2\.\d MiB", lines[-1])
    assert list(describe.sizes(Store(root.parent / "nowhere", readonly=True)))[-1].split() == ["all", "0", "0", "B"]


@pytest.mark.parametrize(("text", "seconds"), [("30d", 30 * DAY), ("12 h", 12 * 3600.0), ("1.5w", 10.5 * DAY), ("90s", 90.0)])
def test_ages(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "3 years"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(UsageError, match="is no age"):
        parse_age(text)
