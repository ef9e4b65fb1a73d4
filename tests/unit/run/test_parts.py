"""Subcases of a group fail by themselves, whatever one of them lacks; a group of which nothing is there is not booted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from qcase.arch import Arch
from qcase.errors import BuildError, ConfigError, InfraError, Problem, QcaseError, StoppedError
from qcase.host.crash_cleanup import remove_tree
from qcase.host.trees import Tree
from qcase.model import CaseResult, Fault, Pipeline, SubtestResult, SubtestStatus, Verdict
from qcase.pipelines import sh
from qcase.pipelines.pipeline import BuildContext
from qcase.pipelines.registry import PIPELINES
from qcase.prepare import overlays, prepare_case, run_folders
from qcase.prepare.build import CaseBuilder
from qcase.prepare.case_kernel import CaseKernels
from qcase.prepare.prepared import BrokenBuild, PreparedCase
from qcase.prepare.session import Session
from qcase.run import run_case
from qcase.store.store import Store
from qcase.suite import cases, discover, select
from tests.processes.test_ext4 import mkfs

TARGET = Arch.X86_64.default_target
FETCH = InfraError("no repository answers", hint="is there a network?")


class Group:
    """A group of the subcases one, two and three, and what building each of them comes to."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "w"
        self.faults: dict[str, QcaseError] = {}
        self.folder = self.root / "suite/normal/g"
        for name in ("one", "two", "three"):
            (self.folder / name / "sh").mkdir(parents=True)
            (self.folder / name / "sh" / name).write_text("#!/bin/sh\n")
        (self.folder / "qemu-x86_64.toml").write_text('shell_prefix = "#"\ntest_commands = ["one", "two", "three"]\n')
        (root / "tree").mkdir()
        mkfs(self.root / "base.img", 4 << 20, root / "tree")
        (self.root / "kernel").write_text("not read")
        config = '[suite]\nroot = "suite"\n[guest.x86_64]\nrootfs = "base.img"\nkernel = "kernel"\n'
        (self.root / "qcase.toml").write_text(config)
        self.store = Store(root / "cache")

        def build(source: Tree, overlay: Tree, build_context: BuildContext) -> None:
            if error := self.faults.get(build_context.case.rpartition("/")[2]):
                raise error
            sh.build(source, overlay, build_context)

        monkeypatch.setitem(PIPELINES.loaded, Pipeline.SH, replace(PIPELINES[Pipeline.SH], build=build))
        image = SimpleNamespace(image=root / "image", hit=False, pass_fds=())
        monkeypatch.setattr(CaseBuilder, "image", lambda *_: image)
        monkeypatch.setattr(CaseKernels, "kernel", lambda *_: None)

    def prepared(self, only: str = "") -> PreparedCase:
        session = Session(cases.Workspace.open(self.root), Arch.X86_64, TARGET, self.store, lambda _: None)
        wanted = [f"g/{only}"] if only else []
        (case,) = select.select(discover.discover(session.workspace, Arch.X86_64, TARGET), wanted)
        assert isinstance(case, cases.Case)
        with ExitStack() as stack:
            layout = run_folders.case_asset_layout(self.root, TARGET, case.display_name)
            bench = CaseBuilder(case, layout, session, self.root / "build.log", stack)
            return prepare_case._prepare(bench, case, session)

    @property
    def broken(self) -> Mapping[str, QcaseError]:
        return {one.subcase: one.error for one in self.prepared().broken}


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    yield Group(tmp_path, monkeypatch)
    remove_tree(tmp_path / "cache")


@pytest.mark.parametrize(
    "error", [BuildError("does not compile"), FETCH, ConfigError([Problem("it has no packages for the case", "qcase.lock")])]
)
def test_what_one_lacks_costs_that_one(error: QcaseError, group: Group) -> None:
    assert group.broken == {}
    (group.folder / "two/sh/two").write_text("#!/bin/sh\n# edited\n")
    group.faults["two"] = error
    assert group.broken == {"normal/g/two": error}


def test_sources_that_cannot_be_read_cost_one(group: Group) -> None:
    os.mkfifo(group.folder / "three/sh/pipe")
    (found,) = group.broken.items()
    assert found[0] == "normal/g/three"
    assert "is a fifo" in found[1].what


def test_a_subcase_alone_runs_although_another_one_lacks_something(group: Group) -> None:
    os.mkfifo(group.folder / "three/sh/pipe")
    group.faults["two"] = FETCH
    assert group.prepared("one").commands == ("one",)
    with pytest.raises(InfraError, match="no repository answers"):
        group.prepared("two")


def test_a_group_of_which_nothing_is_there_is_not_booted(group: Group) -> None:
    group.faults = {name: BuildError("does not compile", log=f"error in {name}") for name in ("one", "two", "three")}
    with pytest.raises(BuildError, match=r"nothing of it was built, so it was not booted: does not compile") as caught:
        group.prepared()
    assert "error in three" in caught.value.log
    group.faults["two"] = FETCH
    with pytest.raises(InfraError, match="no repository answers") as unfetched:
        group.prepared()
    assert unfetched.value.hint == FETCH.hint


def test_an_interrupt_is_no_fault_of_a_subcase(group: Group) -> None:
    group.faults["two"] = StoppedError("the run ends")
    with pytest.raises(StoppedError):
        group.prepared()


RESULT = CaseResult(
    "normal/g",
    Arch.X86_64,
    Verdict.FAIL,
    Fault.CASE,
    "1 of 2 failed",
    subtests=(
        SubtestResult("one", "one", SubtestStatus.PASS, 0),
        SubtestResult("two", "two", SubtestStatus.FAIL, 127),
    ),
)


@pytest.mark.parametrize(
    ("error", "verdict", "fault"),
    [(BuildError("does not compile"), Verdict.BUILD_ERROR, Fault.CASE), (FETCH, Verdict.ERROR, Fault.INFRA)],
)
def test_whose_fault_it_is_decides(error: QcaseError, verdict: Verdict, fault: Fault) -> None:
    found = run_case._with_broken_builds(RESULT, [BrokenBuild("normal/g/two", error)])
    assert (found.verdict, found.fault) == (verdict, fault)
    assert "did not build: normal/g/two" in found.reason
    assert found.subtests[0].status is SubtestStatus.PASS
    assert error.what in found.details


def test_a_test_that_failed_stays_failed_beside_what_could_not_be_fetched() -> None:
    failed = replace(RESULT, subtests=(replace(RESULT.subtests[1], exit_status=1),))
    found = run_case._with_broken_builds(failed, [BrokenBuild("normal/g/two", FETCH)])
    assert (found.verdict, found.fault) == (Verdict.FAIL, Fault.INFRA)


# --- subcases that no command names -----------------------------------------------------------------------------------


def unnamed(group: Group, monkeypatch: pytest.MonkeyPatch, *commands: str) -> None:
    """Only `one` must build, as if the others were in C."""
    monkeypatch.setattr(overlays, "_named_subcases", lambda _: iter(["one"]))
    text = f'shell_prefix = "#"\ntest_commands = {list(commands)}\n'
    (group.folder / "qemu-x86_64.toml").write_text(text)


def test_what_cannot_matter_is_not_built(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    unnamed(group, monkeypatch, "one", "uname")
    group.faults["two"] = BuildError("does not compile")
    prepared = group.prepared()
    assert (prepared.broken, prepared.unbuilt, prepared.untrusted) == ((), (), ())


@pytest.mark.parametrize("error", [BuildError("does not compile"), FETCH])
def test_what_could_matter_and_does_not_build_is_left_out_and_named(
    error: QcaseError, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    unnamed(group, monkeypatch, "one", "uname", "echo x")
    (group.folder / "two/sh/prebuild.sh").write_text("")  # so nobody knows what it installs
    assert group.prepared().unbuilt == ()
    (group.folder / "two/sh/two").write_text("#!/bin/sh\n# edited\n")
    group.faults["two"] = error
    prepared = group.prepared()
    assert (prepared.broken, [one.subcase for one in prepared.unbuilt]) == ((), ["normal/g/two"])
    assert prepared.untrusted == ("one", "uname")  # `one` is a script, which could run it


def without(error: QcaseError, *untrusted: str) -> PreparedCase:
    case = SimpleNamespace(unbuilt=(BrokenBuild("normal/g/two", error, "two", optional=True),), untrusted=untrusted)
    return cast(PreparedCase, case)


PASSED = replace(RESULT, verdict=Verdict.PASS, fault=Fault.NONE, reason="", subtests=RESULT.subtests[:1])


@pytest.mark.parametrize(
    ("error", "verdict", "fault"),
    [(BuildError("does not compile"), Verdict.BUILD_ERROR, Fault.CASE), (FETCH, Verdict.ERROR, Fault.INFRA)],
)
def test_a_command_that_could_have_run_what_was_left_out_is_broken(error: QcaseError, verdict: Verdict, fault: Fault) -> None:
    found = run_case._with_left_out(PASSED, without(error, "one"))
    assert (found.verdict, found.fault, found.reason) == (verdict, fault, "did not build: normal/g/two")
    assert found.subtests[0].status is SubtestStatus.BROKEN
    assert found.subtests[0].reason == "may run what normal/g/two installs, which does not build"


def test_what_was_left_out_and_could_not_matter_is_a_warning() -> None:
    found = run_case._with_left_out(PASSED, without(BuildError("does not compile")))
    assert (found.verdict, found.fault, found.subtests) == (Verdict.PASS, Fault.NONE, PASSED.subtests)
    assert found.warnings == ("normal/g/two, which no command names, is left out: does not compile",)


def test_a_command_that_failed_stays_failed_beside_what_was_left_out() -> None:
    found = run_case._with_left_out(RESULT, without(BuildError("does not compile"), "one", "two"))
    assert (found.verdict, [test.status for test in found.subtests]) == (
        Verdict.FAIL,
        [SubtestStatus.BROKEN, SubtestStatus.FAIL],
    )


def test_what_could_not_be_fetched_and_was_left_out_decides_whose_fault_it_is() -> None:
    found = run_case._with_left_out(RESULT, without(FETCH, "one", "two"))
    assert (found.verdict, found.fault) == (Verdict.FAIL, Fault.INFRA)
    assert "did not build: normal/g/two" in found.reason


def test_a_command_that_was_skipped_by_who_knows_what_is_broken() -> None:
    skipped = replace(PASSED, verdict=Verdict.SKIPPED, subtests=(replace(PASSED.subtests[0], status=SubtestStatus.SKIP),))
    found = run_case._with_left_out(skipped, without(BuildError("does not compile"), "one"))
    assert (found.verdict, found.subtests[0].status) == (Verdict.BUILD_ERROR, SubtestStatus.BROKEN)
    assert run_case._with_left_out(skipped, without(BuildError("does not compile"))).verdict is Verdict.SKIPPED
