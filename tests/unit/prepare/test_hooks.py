"""What a build finds in the staging root and in repositories is what its key has. The engine is a stand-in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from qcase.arch import Arch
from qcase.containers.step import Step
from qcase.guests.packages.fetch_step import IMAGE
from qcase.guests.packages.lock import Package
from qcase.host.crash_cleanup import remove_tree
from qcase.host.trees import Tree
from qcase.inputs.ingredients import Place
from qcase.model import Pipeline
from qcase.pipelines.pipeline import BUILD, STAGING, BuildContext, PipelineSpec
from qcase.pipelines.registry import PIPELINES
from qcase.prepare import base_guest, build, overlays, prepare_case, run_folders
from qcase.prepare.session import Session
from qcase.store.content import Kind
from qcase.store.store import Store
from qcase.suite import cases, discover
from tests.processes.test_ext4 import mkfs
from tests.unit.prepare.test_explain import TARGET

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
        assert step.argv[-1] == f"{BUILD}/hook.sh"
        env |= {"PATH": os.environ["PATH"]}
        subprocess.run([*step.argv[:-1], f"{at[BUILD]}/hook.sh"], env=env, check=True)

    def close(self) -> None:
        pass


def look(_source: Tree, overlay: Tree, build_context: BuildContext) -> None:
    """A build that takes what the script left in the staging root."""
    (overlay / "word").write_text((build_context.services.staging() / "word").read_text())


class Hooked:
    """A workspace with a script of its own, and a case whose build looks into the staging root."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        self.spec = PipelineSpec(name=Pipeline.SH, recipe=1, reads_staging=True, build=look)
        self._monkeypatch = monkeypatch
        self.reopen()

    def reopen(self) -> None:
        self.session = Session(cases.Workspace.open(self.root), Arch.X86_64, TARGET, self.store, lambda _: None)
        self.session.once.get("engine", lambda: self.engine)
        self.session.once.get(f"toolchain {IMAGE}", lambda: SimpleNamespace(id="id", identity="0" * 64))
        (found,) = discover.discover(self.session.workspace, Arch.X86_64, TARGET).cases
        assert isinstance(found, cases.Case)
        self.case = found

    def work(self, packages: tuple[str, ...] = ()) -> overlays.OverlayPlan:
        config = replace(self.case.config, packages=packages)
        self._monkeypatch.setitem(PIPELINES.loaded, Pipeline.SH, self.spec)
        config = replace(self.case.config, packages=packages)
        return overlays.pipeline_plan("normal/x", Place(self.case.path, Pipeline.SH, frozenset()), config, self.session)

    def build(self, work: overlays.OverlayPlan) -> str:
        with ExitStack() as stack:
            layout = run_folders.case_asset_layout(self.root, TARGET, self.case.display_name)
            bench = build.CaseBuilder(self.case, layout, self.session, self.root / "build.log", stack)
            return (bench.overlay(work).entry.content.host / "word").read_text()

    def write(self, word: str) -> None:
        self.hook.write_text(SCRIPT.format(word=word))


@pytest.fixture
def hooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooked]:
    yield Hooked(tmp_path, monkeypatch)
    remove_tree(tmp_path / "cache")


def test_a_script_that_is_edited_between_key_and_build(hooked: Hooked) -> None:
    hooked.write("one")
    early = hooked.work()
    hooked.write("two")
    with pytest.raises(base_guest.InputsMovedError, match=MOVED):
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
    with pytest.raises(base_guest.InputsMovedError, match="a repository of packages"):
        hooked.build(early)
    assert hooked.build(hooked.work(packages=("zlib",))) == "one"
    index.write_text("one")
    assert hooked.work(packages=("zlib",)).key.digest == early.key.digest
    assert hooked.store.manifest(Kind.OVERLAY, early.key.digest) is None


def test_packages_are_recorded_of_a_script_that_is_edited_meanwhile(hooked: Hooked, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = hooked.session.record_into = {}
    words = iter(("two", "three"))

    def works(*_: object, **__: object) -> list[overlays.OverlayPlan]:
        work = replace(hooked.work(), may_ask=True)
        hooked.write(next(words, "three"))  # once more than the key knows of, and then no more
        return [work]

    def note(_source: Tree, overlay: Tree, build_context: BuildContext) -> None:
        look(_source, overlay, build_context)
        word = Package((overlay / "word").read_text(), "1", "x86_64", "a" * 64)
        recorded[Arch.X86_64, build_context.case] = (*recorded.get((Arch.X86_64, build_context.case), ()), word)

    monkeypatch.setattr(prepare_case, "overlay_plans", works)
    hooked.spec = replace(hooked.spec, build=note)
    hooked.write("one")
    prepare_case.record_packages(hooked.case, hooked.session, hooked.root / "build.log")
    assert [package.name for package in recorded[Arch.X86_64, "normal/x"]] == ["three"]


def test_a_build_takes_the_staging_root_of_its_key_whatever_the_script_is_by_now(hooked: Hooked) -> None:
    for word in ("two", "one"):
        hooked.write(word)
        hooked.build(hooked.work())
    again = replace(hooked.work(), key=replace(hooked.work().key, digest="1" * 64))  # which nobody has built
    hooked.write("two")
    assert hooked.build(again) == "one"
    assert hooked.engine.steps == 2
