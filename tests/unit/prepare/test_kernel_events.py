"""The builds of kernels in a session: their events, their one error, and the time that cases wait for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase import events
from qcase.arch import Arch
from qcase.errors import KernelError
from qcase.prepare.session import Session
from qcase.store.store import Store
from qcase.suite import discover
from qcase.suite.cases import Case, Workspace

TARGET = Arch.X86_64.default_target
BUILD = "echo 'a.c:1: error: no'; echo 'a.c:2: error: no'; exit 2"


def test_a_kernel_that_does_not_build_is_told_once_for_all_its_cases(tmp_path: Path) -> None:
    (tmp_path / "qcase.toml").write_text(
        f'[suite]\nroot = "suite"\n[guest.x86_64]\nkernel = {{ build = "{BUILD}", output = "k" }}\n'
    )
    for name, own in (("a", ""), ("b", ""), ("own", '[qcase]\npipeline = "ktest"\n')):
        (tmp_path / f"suite/normal/{name}").mkdir(parents=True)
        (tmp_path / f"suite/normal/{name}/qemu-x86_64.toml").write_text(f'success_regex = ["^ALL"]\n{own}')
    workspace = Workspace.open(tmp_path)
    cases = [case for case in discover.discover(workspace, Arch.X86_64, TARGET).cases if isinstance(case, Case)]
    said: list[events.Event] = []
    with Session(workspace, Arch.X86_64, TARGET, Store(tmp_path / "store"), said.append) as session:
        for case in cases:
            with pytest.raises(KernelError, match=r"was not built: see target/qcase/logs/") as caught:
                session.kernels.kernel(case)
            assert caught.value.of_case is (case.name == "own")
            assert caught.value.log == ""
            assert session.kernels.waited(case) > 0
    ended = [event.build for event in said if isinstance(event, events.KernelBuildFinished)]
    assert [build.kernel for build in ended] == ["the suite", "normal/own"]
    assert {build.first_error for build in ended} == {"a.c:1: error: no"}
    assert all(build.error == "its build ended with status 2" and build.seconds > 0 for build in ended)
    assert sum(isinstance(event, events.KernelBuildStarted) for event in said) == 2
