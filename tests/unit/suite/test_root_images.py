"""Root filesystems that cases name. Without a guest or an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config.workspace_file import is_guest
from qcase.errors import ConfigError
from qcase.inputs import ingredients
from qcase.prepare import image
from qcase.prepare.session import Session
from qcase.store.store import Store
from qcase.suite import discover, root_images
from qcase.suite.cases import Case, Workspace

TARGET = Arch.X86_64.default_target
CASE = 'args = {args}\nshell_prefix = "#"\nshell_init_cmd = "run"\nsuccess_regex = ["ok"]\n[qcase]\n{table}\n'


def workspace(root: Path, args: list[str], *, table: str = "", guest: str = "") -> tuple[Case, Workspace]:
    """A workspace with one case, of a script; a guest of its own, and some files that drives may name."""
    folder = root / "suite/normal/one"
    (folder / "sh").mkdir(parents=True)
    (folder / "sh/run").write_text("#!/bin/sh\n")
    (folder / "disk.img").write_bytes(b"the case's own")
    (folder / "qemu-x86_64.toml").write_text(CASE.format(args=args, table=table))
    (root / "qcase.toml").write_text(
        f'[suite]\nroot = "suite"\n[guest.x86_64]\nrootfs = "images/root.img"\nkernel = "kernel"\n{guest}\n'
    )
    (root / "images").mkdir()
    for name in ("images/root.img", "images/debian.img", "old.img", "kernel"):
        (root / name).write_bytes(name.encode())
    opened = Workspace.open(root)
    (case,) = discover.discover(opened, Arch.X86_64, TARGET).cases
    assert isinstance(case, Case), case
    return case, opened


def drive(file: str) -> list[str]:
    return ["-drive", f"if=none,file={file},id=disk0"]


DEBIAN = 'disks = { "rootfs-x86_64-debian.img" = "images/debian.img", "b.img" = "alpine" }'


@pytest.mark.parametrize(
    ("args", "table", "guest", "expected"),
    [
        ([], "", "", None),
        (drive("${workspace}/tmp/axbuild/rootfs/rootfs-x86_64-alpine.img"), "", "", None),
        (drive("rootfs-x86_64.img"), "", "", None),
        (drive("somewhere/root.img"), "", "", None),  # the name that the guest's own has
        (drive("disk.img"), "", "", None),
        (["-nographic", "-hda", "rootfs.img"], "", "", None),
        (drive("${workspace}/old.img"), "", "", "old.img"),
        (drive("suite/normal/one/disk.img"), "", "", "suite/normal/one/disk.img"),
        (["-sd", "old.img"], "", "", "old.img"),
        (drive("/gone/rootfs-x86_64-debian.img"), "", DEBIAN, "images/debian.img"),
        (drive("disk.img"), 'rootfs = "rootfs-x86_64-debian.img"', DEBIAN, "images/debian.img"),
        (drive("disk.img"), 'rootfs = "old.img"', "", "old.img"),
        (drive("rootfs-x86_64-debian.img"), 'rootfs = "debian"', "", "debian"),
    ],
)
def test_the_root_filesystem_of_a_case(args: list[str], table: str, guest: str, expected: str | None, tmp_path: Path) -> None:
    case, opened = workspace(tmp_path / "w", args, table=table, guest=guest)
    found = root_images.root(case, opened)
    if expected is None or is_guest(expected):
        assert found == expected
        return
    assert isinstance(found, str)
    assert opened.root / found == opened.root / expected
    assert opened.root / expected in ingredients.of_case(case, opened, {})


@pytest.mark.parametrize(
    ("args", "table"),
    [
        (drive("rootfs-x86_64-debian.img"), ""),
        (drive("${workspace}/gone.img"), ""),
        (["-hda", "suite/disk.qcow2"], ""),
        ([], 'rootfs = "gone.img"'),
        ([*drive("disk.img"), "-drive", "if=virtio,file=rootfs-x86_64-busybox.img"], ""),
    ],
)
def test_a_name_that_nobody_knows_is_an_error_that_says_how(args: list[str], table: str, tmp_path: Path) -> None:
    case, opened = workspace(tmp_path / "w", args, table=table)
    with pytest.raises(ConfigError, match="nothing says what stands in for it") as caught:
        assert root_images.root(case, opened) or root_images.others(case, opened)
    (problem,) = caught.value.problems
    assert problem.file == "suite/normal/one/qemu-x86_64.toml"
    assert problem.key == ("qcase.rootfs" if table else "args")
    assert '[guest.x86_64] disks = { "' in problem.hint


def test_the_images_of_other_disks(tmp_path: Path) -> None:
    args = [*drive("disk.img"), "-drive", "if=virtio,file=/x/b.img", "-drive", "if=virtio,file=rootfs-x86_64.img"]
    args += ["-drive", "if=virtio,file=old.img", "-drive", "if=virtio,file=nbd://x/y", "-cdrom", "/dev/cdrom"]
    case, opened = workspace(tmp_path / "w", args, guest=DEBIAN)
    assert root_images.others(case, opened) == {"b.img": "alpine", "rootfs-x86_64.img": None}


def test_keys_and_guest_are_those_of_the_root_filesystem(tmp_path: Path) -> None:
    """Two cases that differ in it share no image, and a byte of the file moves the key."""

    def looked(root: Path) -> tuple[Path, bytes]:
        opened = Workspace.open(root)
        (case,) = discover.discover(opened, Arch.X86_64, TARGET).cases
        assert isinstance(case, Case)
        store = Store(root.parent / "store", readonly=True)
        with Session(opened, Arch.X86_64, TARGET, store, lambda _: None, {}, read_only_inspection=True) as session:
            view = session.for_case(case)
            key = image.image_key([], view.base_guest.digest).digest
            assert session.for_case(case).base_guest.digest == view.base_guest.digest
            return view.guest.rootfs, key.encode()

    named, key = looked(_of(workspace(tmp_path / "a", drive("old.img"))))
    assert named == tmp_path / "a/old.img"
    usual, other = looked(_of(workspace(tmp_path / "b", drive("disk.img"))))
    assert usual == tmp_path / "b/images/root.img"
    assert key != other
    (tmp_path / "a/old.img").write_bytes(b"another")
    assert looked(tmp_path / "a")[1] != key


def _of(made: tuple[Case, Workspace]) -> Path:
    return made[1].root
