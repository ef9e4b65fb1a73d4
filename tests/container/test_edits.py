"""Who edits sources or the base image while qcase works on them gets what he sees, and nobody a stale entry afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qcase import prepare, suite
from qcase.content import Kind
from qcase.errors import InfraError
from qcase.ext4 import Ext4Image
from qcase.images import Image
from qcase.model import Arch, Cache
from qcase.store import Store
from tests.unit.test_ext4 import mkfs
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
        workspace = suite.Workspace.open(self.root)
        (case,) = suite.discover(workspace, Arch.AARCH64, TARGET).cases
        assert isinstance(case, suite.Case)
        layout = prepare.case_asset_layout(self.root, TARGET, case.display_name)
        store = Store(self.store, trace=edit)
        with (
            prepare.Session(workspace, Arch.AARCH64, TARGET, store, lambda _: None) as session,
            prepare.prepare_case_assets(case, layout, session, self.root / "build.log") as prepared,
            Ext4Image.open(prepared.image) as image,
        ):
            return read(image, "/usr/bin/x.sh"), read(image, "/marker"), prepared.cache is Cache.HIT


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


def test_sources_that_never_hold_still(edited: Edited) -> None:
    said = iter(range(1000))

    def write(_step: str) -> None:
        edited.script.write_text(f"{next(said)}")

    with pytest.raises(InfraError, match="its sources changed 5 times while it was built"):
        edited.prepare(write)
    assert [kind for kind, _, _ in Store(edited.store).entries() if kind is Kind.OVERLAY] == []
