"""What a build finds in the staging root and in repositories is what its key has. The engine is a stand-in."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from qcase import prepare, suite
from qcase.containers import Step
from qcase.content import Kind, remove_tree
from qcase.model import Arch, Pipeline
from qcase.packages import IMAGE, Package
from qcase.pipelines import BUILD, STAGING, Craft, Workshop
from qcase.prepare import Session
from qcase.store import Store
from tests.unit.test_explain import TARGET
from tests.unit.test_ext4 import mkfs

SCRIPT = 'printf {word} >"$QCASE_STAGING_ROOT/word"\n'
MOVED = r"the script of \[hooks\] prepare_staging_root"


class StandIn:
    """Runs the script of a step on this machine."""

    def __init__(self) -> None:
        self.steps = 0

    def check(self, step: Step, _emit: object, _case: str) -> None:
        self.steps += 1
        at = {mount.target: str(mount.source) for mount in step.mounts}
        env = {name: at[STAGING] if value == STAGING else value for name, value in step.env.items()}
        assert step.argv == ("sh", "-eu", f"{BUILD}/hook.sh")
        subprocess.run(["sh", "-eu", f"{at[BUILD]}/hook.sh"], env=env, check=True)

    def close(self) -> None:
        pass


def look(_source: Path, overlay: Path, workshop: Workshop) -> None:
    """A build that takes what the script left in the staging root."""
    (overlay / "word").write_text((workshop.staging() / "word").read_text())


class Hooked:
    """A workspace with a script of its own, and a case whose build looks into the staging root."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "workspace"
        self.hook = self.root / "hook.sh"
        case = self.root / "suite/normal/x"
        (case / "sh").mkdir(parents=True)
        (case / "sh/x.sh").write_text("")
        (case / "qemu-x86_64.toml").write_text('shell_prefix = "#"\nsuccess_regex = ["x"]\n')
        (self.root / "kernel").write_text("not read")
        (self.root / "qcase.toml").write_text(
            '[suite]\nroot = "suite"\n[guest.x86_64]\nrootfs = "base.img"\nkernel = "kernel"\n'
            f'[hooks]\nprepare_staging_root = "hook.sh"\n[toolchain.alpine]\nimage = "a@sha256:{"0" * 64}"\n'
        )
        (tmp_path / "tree").mkdir()
        mkfs(self.root / "base.img", 4 << 20, tmp_path / "tree")
        self.store = Store(tmp_path / "cache")
        self.engine = StandIn()
        self.craft = Craft(recipe=1, reads_staging=True, build=look)
        self.reopen()

    def reopen(self) -> None:
        self.session = Session(suite.Workspace.open(self.root), Arch.X86_64, TARGET, self.store, lambda _: None)
        self.session.once("engine", lambda: self.engine)
        self.session.once(f"toolchain {IMAGE}", lambda: SimpleNamespace(id="id", identity="0" * 64))
        (found,) = suite.discover(self.session.workspace, Arch.X86_64, TARGET).cases
        assert isinstance(found, suite.Case)
        self.case = found

    def work(self, packages: tuple[str, ...] = ()) -> prepare._Work:
        return prepare._pipeline_work(
            "normal/x", self.case, Pipeline.SH, self.case.path, packages, self.session, craft=self.craft
        )

    def build(self, work: prepare._Work) -> str:
        with ExitStack() as stack:
            layout = prepare.case_asset_layout(self.root, TARGET, self.case.display_name)
            bench = prepare._Bench(self.case, layout, self.session, self.root / "build.log", stack)
            return (bench.overlay(work).entry.path / "word").read_text()

    def write(self, word: str) -> None:
        self.hook.write_text(SCRIPT.format(word=word))


@pytest.fixture
def hooked(tmp_path: Path) -> Iterator[Hooked]:
    yield Hooked(tmp_path)
    remove_tree(tmp_path / "cache")


def test_a_script_that_is_edited_between_key_and_build(hooked: Hooked) -> None:
    hooked.write("one")
    early = hooked.work()
    hooked.write("two")
    with pytest.raises(prepare._InputsMovedError, match=MOVED):
        hooked.build(early)
    assert hooked.engine.steps == 0
    assert len([kind for kind, _, _ in hooked.store.entries() if kind is Kind.OVERLAY]) == 1  # the base, as it was unpacked
    assert hooked.build(hooked.work()) == "two"  # in the same session, too
    hooked.write("one")
    assert hooked.work().key.digest == early.key.digest
    assert hooked.build(early) == "one"


def test_a_repository_that_is_filled_between_key_and_build(hooked: Hooked) -> None:
    index = hooked.root / "packages/x86_64/APKINDEX.tar.gz"
    index.parent.mkdir(parents=True)
    index.write_text("one")
    with (hooked.root / "qcase.toml").open("a") as config:
        config.write('[packages]\nrepositories = ["packages"]\n')
    hooked.reopen()
    hooked.write("one")
    early = hooked.work(packages=("zlib",))
    index.write_text("two")
    with pytest.raises(prepare._InputsMovedError, match="a repository of packages"):
        hooked.build(early)
    assert hooked.build(hooked.work(packages=("zlib",))) == "one"
    index.write_text("one")
    assert hooked.work(packages=("zlib",)).key.digest == early.key.digest
    assert hooked.store.manifest(Kind.OVERLAY, early.key.digest) is None


def test_packages_are_recorded_of_a_script_that_is_edited_meanwhile(hooked: Hooked, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = hooked.session.recorded = {}
    words = iter(("two", "three"))

    def works(*_: object, **__: object) -> list[prepare._Work]:
        work = replace(hooked.work(), may_ask=True)
        hooked.write(next(words, "three"))  # once more than the key knows of, and then no more
        return [work]

    def note(_source: Path, overlay: Path, workshop: Workshop) -> None:
        look(_source, overlay, workshop)
        word = Package((overlay / "word").read_text(), "1", "x86_64", "a" * 64)
        recorded[Arch.X86_64, workshop.case] = (*recorded.get((Arch.X86_64, workshop.case), ()), word)

    monkeypatch.setattr(prepare, "_works", works)
    hooked.craft = replace(hooked.craft, build=note)
    hooked.write("one")
    prepare.record_packages(hooked.case, hooked.session, hooked.root / "build.log")
    assert [package.name for package in recorded[Arch.X86_64, "normal/x"]] == ["three"]


def test_a_build_takes_the_staging_root_of_its_key_whatever_the_script_is_by_now(hooked: Hooked) -> None:
    for word in ("two", "one"):
        hooked.write(word)
        hooked.build(hooked.work())
    again = replace(hooked.work(), key=replace(hooked.work().key, digest="1" * 64))  # which nobody has built
    hooked.write("two")
    assert hooked.build(again) == "one"
    assert hooked.engine.steps == 2
