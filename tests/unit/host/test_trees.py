"""Trees: what a step has left is never followed, never waited for, and told by its place."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.containers.step import Mount, Step, check_mounts
from qcase.errors import BuildError, InfraError
from qcase.guests import kernel_build, kernel_files
from qcase.host import beneath, trees
from qcase.host.trees import PlantedError, Tree
from qcase.host.workspace_folders import own_folder, target_of
from qcase.store import listings
from tests.conftest import ROOT
from tests.hostile import Canary, Swapper, limited


@pytest.fixture(params=["openat2", "component by component"])
def tree(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    """A folder with a file, a link that leads out, and what cannot be read; on a new kernel and on an old one."""
    monkeypatch.setattr(beneath, "_kernel_has_it", request.param == "openat2")
    root = tmp_path / "tree"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/file").write_text("text")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "usr/bin/link").symlink_to("../../../outside/secret")
    os.mkfifo(root / "usr/fifo")
    with limited(60):
        yield Tree(root, what="the overlay")
    assert (tmp_path / "outside/secret").read_text() == "secret"
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["secret"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("out/secret", "cannot be reached: out is a symbolic link"),
        ("out", "is a symbolic link"),
        ("usr/bin/link", "is a symbolic link"),
        ("usr/fifo", "is a fifo, where a file is wanted"),
        ("usr/bin", "is a folder, where a file is wanted"),
        ("usr/bin/file/x", "usr/bin/file is a file"),
    ],
)
def test_reading_tells_what_is_in_the_way(tree: Tree, path: str, said: str) -> None:
    with pytest.raises(PlantedError, match=rf"^{path} in the overlay .*{said}"):
        (tree / path).read_bytes()
    assert issubclass(PlantedError, BuildError)
    assert not (tree / path).is_file()


@pytest.mark.parametrize("path", ["out/secret", "out", "out/new", "usr/bin/link", "usr/fifo", "usr/bin/file"])
def test_writing_makes_new_files_and_follows_nothing(tree: Tree, path: str) -> None:
    with pytest.raises(PlantedError):
        (tree / path).write_text("mine")
    with pytest.raises(PlantedError):
        (tree / path).mkdir()
    if not path.startswith("out/"):
        (tree / path).replace_bytes(b"mine")
        assert (tree / path).read_text() == "mine"


@pytest.mark.parametrize("path", ["..", "a/../../b", "/etc/passwd", "a//b", "./a", "", "a\0b", "/".join("d" * 300)])
def test_a_path_is_below_its_tree_or_none(tree: Tree, path: str) -> None:
    with pytest.raises(PlantedError):
        tree / "x" / path


def test_what_is_not_there_is_no_fault_of_a_case(tree: Tree) -> None:
    with pytest.raises(FileNotFoundError):
        (tree / "usr/nothing/there").read_bytes()
    assert (tree / "usr/nothing").facts() is None
    (tree / "usr/nothing").remove()


def test_what_is_larger_than_wanted_is_not_read(tree: Tree) -> None:
    os.truncate(tree.host / "usr/bin/file", 1 << 38)
    began = time.monotonic()
    for read in ((tree / "usr/bin/file").read_bytes, (tree / "usr/bin/file").sha256):
        with pytest.raises(PlantedError, match=r"has more than the .* bytes"):
            read()
    assert time.monotonic() - began < 60


def test_modes_change_of_files_and_never_through_links_and_never_to_setuid(tree: Tree) -> None:
    (tree / "usr/bin/file").chmod(0o4700)
    assert (tree.host / "usr/bin/file").stat().st_mode & 0o7777 == 0o700
    with pytest.raises(PlantedError):
        (tree / "usr/bin/link").chmod(0o777)
    with (tree / "made").created(0o6755) as fd:
        os.write(fd, b"x")
    assert (tree.host / "made").stat().st_mode & 0o7777 == 0o755


def test_links_are_followed_in_the_tree_alone_where_that_is_asked_for(tree: Tree) -> None:
    (tree / "lib").symlink_to("usr/bin")
    (tree / "up").symlink_to("../../usr/bin/file")
    found = tree.followed("lib/file")
    assert found == tree / "usr/bin/file"
    assert tree.followed("up") == tree / "usr/bin/file"  # as after chroot
    assert tree.followed("up", outside=True) is None
    assert tree.followed("out/secret") is None
    assert tree.leads_to("lib/link")


def test_a_copy_keeps_names_of_one_file_and_has_no_setuid(tree: Tree, tmp_path: Path) -> None:
    (tree.host / "usr/fifo").unlink()
    os.link(tree.host / "usr/bin/file", tree.host / "other")
    (tree.host / "other").chmod(0o4755)
    copy = Tree(tmp_path / "copy")
    copy.mkdir()
    tree.copy_to(copy)
    assert (copy.host / "other").stat().st_ino == (copy.host / "usr/bin/file").stat().st_ino
    assert (copy.host / "other").stat().st_mode & 0o7777 == 0o755
    assert str((copy.host / "out").readlink()) == str(tmp_path / "outside")


def test_a_copy_on_a_full_disk_is_an_error_of_the_system(tree: Tree) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            (tree / "new").write_bytes(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.errno == errno.EFBIG
    assert not isinstance(caught.value, BuildError)


def test_nothing_of_a_swapped_folder_leads_out(tree: Tree, tmp_path: Path) -> None:
    canary = Canary(tmp_path / "home")
    (tree / "d").mkdir()
    (tree / "d/file").write_text("x")
    (tree.host / "usr/fifo").unlink()
    seen: set[str] = set()
    with Swapper(tree.host, "d", canary):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not ({"x", "PlantedError"} <= seen and len(seen) > 3):
            for call in ((tree / "d/file").read_text, (tree / "d").names, (tree / "d/docs/thesis.txt").read_text):
                try:
                    seen.add(str(call()))
                except (BuildError, FileNotFoundError) as error:
                    seen.add(type(error).__name__)
    assert "canary" not in "".join(seen)
    assert {"x", "PlantedError"} <= seen
    canary.check()


def test_more_names_than_fit_are_refused_before_they_are_looked_at(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "NAMES", 20)
    (tree.host / "usr/fifo").unlink()
    for number in range(30):
        (tree.host / "usr/bin" / str(number)).touch()
    with pytest.raises(PlantedError, match="more than the 20 files"):
        list(tree.walk(20))


@pytest.mark.parametrize("name", ["user.mine", "system.posix_acl_access"])
def test_an_attribute_that_would_be_lost_is_refused_by_name(tree: Tree, name: str) -> None:
    (tree.host / "usr/fifo").unlink()
    if name == "user.mine":
        os.setxattr(tree.host / "usr/bin/file", name, b"x")
    else:
        entries = [(1, 6, -1), (2, 4, 1), (4, 4, -1), (16, 4, -1), (32, 4, -1)]
        packed = (2).to_bytes(4, "little") + b"".join(
            tag.to_bytes(2, "little") + permissions.to_bytes(2, "little") + (who & 0xFFFFFFFF).to_bytes(4, "little")
            for tag, permissions, who in entries
        )
        os.setxattr(tree.host / "usr/bin/file", name, packed)
    with pytest.raises(PlantedError, match=f"usr/bin/file in the overlay has the extended attribute {name}"):
        listings.overlay_listing(tree)


def test_attributes_too_many_to_be_listed_are_refused() -> None:
    """On some file systems a file may have more names than Linux lists."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        file = Path(name, "file")
        file.touch()
        try:
            for number in range(400):
                os.setxattr(file, f"user.{number:0200}", b"x")
        except OSError as error:
            pytest.skip(f"a tmpfs takes no such attributes here: {error.strerror}")
        with pytest.raises(PlantedError, match="file in the overlay has extended attributes that cannot be listed"):
            listings.overlay_listing(Tree(Path(name), what="the overlay"))


def test_a_working_folder_that_is_a_link_is_the_cases_fault(tmp_path: Path) -> None:
    source = tmp_path / "sources"
    source.mkdir()
    (source / "c").symlink_to("/proc/self/fd/7")
    mounts = (Mount(Tree(source, what="the copy of the sources"), "/qcase/src", False),)
    step = Step(image="i", argv=("true",), mounts=mounts, workdir="/qcase/src/c", timeout=1, name="compile")
    with pytest.raises(PlantedError, match="c in the copy of the sources has to be a folder for the step compile"):
        check_mounts(step)
    (source / "c").unlink()
    (source / "c").mkdir()
    check_mounts(step)
    gone = Step(image="i", argv=("true",), mounts=(Mount(tmp_path / "no", "/x"),), timeout=1, name="compile")
    with pytest.raises(InfraError, match="not there"):
        check_mounts(gone)


def test_a_link_in_the_place_of_target_is_heeded_if_it_leads_to_a_cache(tmp_path: Path) -> None:
    (tmp_path / "home/docs").mkdir(parents=True)
    for name, there in (("a", "home"), ("b", "loop"), ("c", "/")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "target").symlink_to(tmp_path / there if there != "loop" else "target")
        with pytest.raises(PlantedError, match="what it leads to is no cache"):
            target_of(tmp_path / name)
    (tmp_path / "home/CACHEDIR.TAG").touch()
    assert target_of(tmp_path / "a").host == tmp_path / "home"
    (tmp_path / "d").mkdir()
    tree = target_of(tmp_path / "d")
    (tmp_path / "d/target").symlink_to(tmp_path / "home")  # later, by a kernel's build
    with pytest.raises(PlantedError, match="target in the workspace is a symbolic link, and"):
        (tree / "qcase/logs").mkdir(parents=True)


def test_a_kernels_build_gets_qcases_own_folders_read_only(tmp_path: Path) -> None:
    group = kernel_build.Group("normal", None, Arch.X86_64, "t")
    tools = kernel_build.Tools(tmp_path, {}, lambda: pytest.fail("no engine"), lambda _: "")
    shown = {mount.target: mount.read_only for mount in kernel_build._shields(tools, group)}
    workspace = kernel_files.WORKSPACE
    assert shown == {
        f"{workspace}/target": False,  # a mount point, so that it cannot be renamed
        f"{workspace}/target/qcase": True,
        f"{workspace}/target/t": False,
        f"{workspace}/target/t/qemu-cases": True,
    }


def test_an_old_kernel_is_found_out_by_itself(tmp_path: Path) -> None:
    """A filter of system calls, as old engines have it, answers EPERM."""
    script = (
        "import errno, os\nfrom pathlib import Path\nfrom qcase.host import beneath\nfrom qcase.host.trees import Tree\n"
        "def refuse(*_): raise OSError(errno.ENOSYS, 'no such call')\n"
        "beneath._openat2 = refuse\n"
        f"tree = Tree(Path({str(tmp_path)!r}))\n(tree / 'a/b').mkdir(parents=True)\n(tree / 'a/b/c').write_text('x')\n"
        "print((tree / 'a/b/c').read_text(), beneath._kernel_has_it)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "x False\n", done.stderr


# --- a workspace that is a stranger's ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["kernels", "memory", "last-run.json", "kernels/abc", "kernels/abc/kernel", "memory/cases.json"]
)
@pytest.mark.parametrize("what", ["a symbolic link", "a fifo"])
def test_what_qcase_keeps_in_a_workspace_is_of_its_own_making(place: str, what: str, tmp_path: Path) -> None:
    """Through a committed link to a home, its sweeper of kernels would have emptied that."""
    planted = tmp_path / "target/qcase" / place
    planted.parent.mkdir(parents=True)
    if what == "a fifo":
        os.mkfifo(planted)
    else:
        planted.symlink_to(tmp_path)
    with pytest.raises(PlantedError, match=f"target/qcase/{place} in the workspace is {what}"):
        own_folder(tmp_path)


def test_a_file_in_the_place_of_a_folder_of_qcases(tmp_path: Path) -> None:
    (tmp_path / "target/qcase").mkdir(parents=True)
    (tmp_path / "target/qcase/kernels").touch()
    with pytest.raises(PlantedError, match="target/qcase/kernels in the workspace is a file, and qcase makes none there"):
        own_folder(tmp_path)


def test_logs_in_a_workspace_may_be_anything(tmp_path: Path) -> None:
    """They are reached beneath their folder."""
    (tmp_path / "target/qcase/logs").mkdir(parents=True)
    (tmp_path / "target/qcase/logs/x").symlink_to("/")
    (tmp_path / "target/qcase/kernels").mkdir()
    assert own_folder(tmp_path) == tmp_path / "target/qcase"
    assert own_folder(tmp_path / "elsewhere") == tmp_path / "elsewhere/target/qcase"


@pytest.mark.parametrize("target", ["/dev/zero", "/proc/kmsg", "fifo", "huge", "/proc/self/mem"])
def test_files_of_a_workspace_are_read_up_to_a_limit_and_without_waiting(target: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 42)
    (tmp_path / "link").symlink_to(target)
    if not (tmp_path / "link").exists():
        pytest.skip("not here")
    began = time.monotonic()
    with pytest.raises(OSError, match=r"Not a file|too large|unavailable|denied|not permitted|Input/output"):
        beneath.read(tmp_path / "link")
    assert time.monotonic() - began < 60


def test_a_file_of_a_workspace_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert beneath.read(tmp_path / "x", 3) == b"abc"
    with pytest.raises(OSError, match="too large"):
        beneath.read(tmp_path / "x", 2)
    assert b"VmRSS" in beneath.read("/proc/self/status")
