"""Who edits what a build is made of while qcase works on it gets what he sees, and nobody a stale entry afterwards."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.disk.ext4 import Ext4Image
from qcase.errors import InfraError
from qcase.model import Cache
from qcase.prepare import prepare_case, run_folders
from qcase.prepare.session import Session
from qcase.store.content import Kind
from qcase.store.store import Store
from qcase.suite import cases, discover
from qcase.toolchains.records import Image
from tests.container.builds import write
from tests.processes.test_ext4 import mkfs
from tests.vm import workspaces

pytestmark = pytest.mark.container

TARGET = Arch.AARCH64.default_target


def read(image: Ext4Image, path: str) -> str:
    node = image.lookup(path)
    assert node is not None
    return image.read(node).decode()


class Edited:
    """A workspace with one case of the pipeline `sh` and a base image of its own; `prepare` is hooked at a line of the store."""

    def __init__(self, tmp_path: Path, store: Path) -> None:
        self.root = tmp_path / "workspace"
        self.script = self.root / "suite/normal/x/sh/x.sh"
        self.script.parent.mkdir(parents=True)
        self.script.write_text("one")
        (self.root / "suite/normal/x/qemu-aarch64.toml").write_text('shell_prefix = "#"\nsuccess_regex = ["x"]\n')
        (self.root / "kernel").write_text("not read")
        (self.root / "qcase.toml").write_text(
            '[suite]\nroot = "suite"\n[guest.aarch64]\nrootfs = "base.img"\nkernel = "kernel"\n'
        )
        self.tree = tmp_path / "tree"
        self.tree.mkdir()
        self.store = store
        self.base("first")

    def base(self, marker: str) -> None:
        """A new base image, renamed into its place."""
        (self.tree / "marker").write_text(marker)
        mkfs(self.root / "new.img", 4 << 20, self.tree).rename(self.root / "base.img")

    def prepare(self, edit: Callable[[str], None] = lambda _: None) -> tuple[str, str, bool]:
        """What the image holds of the script and of the base, and whether it was there. `edit` is told of the store's steps."""
        with self.prepared(edit) as (image, hit):
            return read(image, "/usr/bin/x.sh"), read(image, "/marker"), hit

    @contextmanager
    def prepared(self, edit: Callable[[str], None]) -> Iterator[tuple[Ext4Image, bool]]:
        workspace = cases.Workspace.open(self.root)
        (case,) = discover.discover(workspace, Arch.AARCH64, TARGET).cases
        assert isinstance(case, cases.Case)
        layout = run_folders.case_asset_layout(self.root, TARGET, case.display_name)
        store = Store(self.store, trace=edit)
        with (
            Session(workspace, Arch.AARCH64, TARGET, store, lambda _: None) as session,
            prepare_case.prepare_case_assets(case, layout, session, self.root / "build.log") as prepared,
            Ext4Image.open(str(prepared.image)) as image,
        ):
            yield image, prepared.cache is Cache.HIT


@pytest.fixture
def edited(tmp_path: Path, test_cache: Path, toolchain_c: Image) -> Edited:
    return Edited(tmp_path, workspaces.fresh_store(tmp_path / "cache", test_cache))


def once_at(step: str, number: int, edit: Callable[[], object]) -> Callable[[str], None]:
    """Edit when a step is reached for the `number`-th time."""
    left = [number]

    def reached(name: str) -> None:
        left[0] -= name == step
        if left[0] == 0 and name == step:
            edit()

    return reached


def test_sources_that_are_edited_between_key_and_build(edited: Edited) -> None:
    assert edited.prepare(once_at("staged", 1, lambda: edited.script.write_text("two"))) == ("two", "first", False)
    assert edited.prepare() == ("two", "first", True)
    edited.script.write_text("one")
    assert edited.prepare()[0] == "one"


def test_a_base_image_that_is_replaced_between_key_and_build(edited: Edited) -> None:
    # The first entry is the overlay, the second one the image.
    assert edited.prepare(once_at("staged", 2, lambda: edited.base("second"))) == ("one", "second", False)
    assert edited.prepare() == ("one", "second", True)
    edited.base("first")
    assert edited.prepare() == ("one", "first", False)


def test_a_base_image_that_is_replaced_after_it_was_copied(edited: Edited) -> None:
    """`sealed` comes after the build, which has its last look at the base at its end: the image is of the first one."""
    assert edited.prepare(once_at("sealed", 2, lambda: edited.base("second"))) == ("one", "first", False)
    assert edited.prepare() == ("one", "second", False)


HOOK = """\
mkdir -p "$QCASE_STAGING_ROOT/usr/include"
echo '#define WORD "word: {word}"' >"$QCASE_STAGING_ROOT/usr/include/word.h"
"""
PROJECT = """\
cmake_minimum_required(VERSION 3.20)
project(x C)
add_executable(x x.c)
install(TARGETS x RUNTIME DESTINATION usr/bin)
"""


@pytest.mark.timeout(1800)  # it may be the first that needs the image of packages
def test_a_script_that_prepares_the_staging_root_is_edited_between_key_and_build(edited: Edited) -> None:
    shutil.rmtree(edited.script.parent)
    sources = {"c/CMakeLists.txt": PROJECT, "c/x.c": "#include <word.h>\n#include <stdio.h>\nint main(void) { puts(WORD); }\n"}
    write(edited.script.parent.parent, sources)
    with (edited.root / "qcase.toml").open("a") as config:
        config.write('[hooks]\nprepare_staging_root = "hook.sh"\n')
    hook = edited.root / "hook.sh"

    def word(edit: Callable[[str], None] = lambda _: None) -> tuple[str, bool]:
        with edited.prepared(edit) as (image, hit):
            node = image.lookup("/usr/bin/x")
            assert node is not None
            return re.findall(r"word: (\w+)", image.read(node).decode("latin-1"))[0], hit

    hook.write_text(HOOK.format(word="one"))
    # The first entry is the overlay, the second the base as it is unpacked, the third that with what the script does to it.
    assert word(once_at("staged", 3, lambda: hook.write_text(HOOK.format(word="two")))) == ("two", False)
    assert word() == ("two", True)
    hook.write_text(HOOK.format(word="one"))
    assert word() == ("one", False)


def test_sources_that_never_hold_still(edited: Edited) -> None:
    said = iter(range(1000))

    def write(_step: str) -> None:
        edited.script.write_text(f"{next(said)}")

    with pytest.raises(InfraError, match="its sources changed 5 times while it was built"):
        edited.prepare(write)
    assert [kind for kind, _, _ in Store(edited.store).entries() if kind is Kind.OVERLAY] == []
