"""A run that is ended from outside: by KILL, TERM, Ctrl-C, during a build and while a guest runs. Nothing of it stays.

the case `builds`    its prebuild.sh sleeps until the test is over
the case `runs`      its command sleeps, and so does that of `runs-too`
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qcase.host import crash_cleanup
from tests.vm import workspaces
from tests.vm.workspaces import PATIENCE, Outcome, Running, Workspace, c_program, containers_of, eventually, says

pytestmark = pytest.mark.vm

LEFT_FOR = 90.0  # seconds that anything of a run may outlive it: five are promised, and a busy engine takes longer to remove
GRACEFUL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace.make(tmp_path_factory.mktemp("endings") / "w")
    program = c_program(says("hello"), prebuild_sh="#!/bin/sh\nsleep 1000\n")
    made.case("builds", program, shell_init_cmd="prog", success_regex=["^hello$"])
    for name in ("runs", "runs-too"):  # which end by what a test does, however slow the machine is
        made.case(name, shell_init_cmd="echo be''gun; sleep 1000", success_regex=["^never$"], timeout=2 * PATIENCE)
    made.case("first", shell_init_cmd="echo hel''lo", success_regex=["^hello$"])
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, test_cache: Path) -> Path:
    return workspaces.fresh_store(tmp_path_factory.mktemp("endings-store") / "store", test_cache)


@contextmanager
def running(workspace: Workspace, *cases: str, store: Path) -> Iterator[Running]:
    shutil.rmtree(workspace.root / "target/qcase/logs", ignore_errors=True)  # so that a console.log is this run's
    started = workspaces.start(workspace, *cases, store=store)
    try:
        yield started
    finally:
        started.child.kill()
        started.child.wait()
        for pipe in (started.child.stdout, started.child.stderr):
            assert pipe is not None
            pipe.close()


def building(run: Running) -> str:
    """Wait until the sleep of a build runs in its container; the run's id."""
    (run_id,) = eventually("a container", lambda: containers_of(run.pid))
    return str(run_id)


def booted(run: Running, workspace: Workspace, case: str = "runs") -> str:
    """Wait until the guest's command runs; the run's id."""
    run_id = str(eventually("the run's mark", lambda: run.run_id))
    log = workspace.root / "target/qcase/logs/aarch64/normal" / case / "console.log"
    eventually("QEMU", lambda: workspaces.qemu_of(run_id))
    eventually("the command", lambda: log.exists() and b"\nbegun" in log.read_bytes())
    return run_id


def nothing_left(run: Running, run_id: str, workspace: Workspace) -> None:
    eventually("no process of the run", lambda: not crash_cleanup.marked_processes(run_id), LEFT_FOR)
    eventually("no container of the run", lambda: not containers_of(run.pid), LEFT_FOR)
    eventually("no folder of the run", lambda: not workspace.run_folders, LEFT_FOR)


@pytest.mark.alone  # it measures
def test_kill_during_a_build(workspace: Workspace, store: Path) -> None:
    with running(workspace, "builds", store=store) as run:
        run_id = building(run)
        assert workspace.run_folders
        workspaces.kill(run, signal.SIGKILL)
        assert run.child.wait() == -signal.SIGKILL
        nothing_left(run, run_id, workspace)
    assert not list((store / "v2/images").glob("*/*"))


@pytest.mark.parametrize("number", GRACEFUL)
def test_an_interrupt_during_a_build(number: signal.Signals, workspace: Workspace, store: Path) -> None:
    """The build is the one that others were killed in: their locks are free."""
    with running(workspace, "builds", "first", "-j1", store=store) as run:
        run_id = building(run)
        workspaces.kill(run, number)
        outcome = run.outcome()
        nothing_left(run, run_id, workspace)
    interrupted(outcome, [])


@pytest.mark.parametrize("number", GRACEFUL)
def test_an_interrupt_while_a_guest_runs(number: signal.Signals, workspace: Workspace, store: Path) -> None:
    with running(workspace, "first", "runs", "runs-too", "-j3", store=store) as run:
        run.until("pass ")
        booted(run, workspace, "runs-too")
        run_id = booted(run, workspace)
        workspaces.kill(run, number)
        outcome = run.outcome()
        nothing_left(run, run_id, workspace)
    interrupted(outcome, ["normal/first"])
    assert outcome.report is not None
    assert [case["verdict"] for case in outcome.report["cases"]] == ["pass"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_for_the_whole_job(number: signal.Signals, workspace: Workspace, store: Path) -> None:
    """Each process of a CI job that is cancelled gets the signal, QEMU as well: that is no failure of the case."""
    with running(workspace, "runs", store=store) as run:
        run_id = booted(run, workspace)
        for pid in (*workspaces.qemu_of(run_id), run.pid):
            os.kill(pid, number)
        outcome = run.outcome()
        nothing_left(run, run_id, workspace)
    interrupted(outcome, [])


def interrupted(outcome: Outcome, finished: list[str]) -> None:
    """The run says that it was interrupted and what had finished, to a person and to programs."""
    assert outcome.exit_code == 130
    assert "Traceback" not in outcome.said
    assert re.search("(?m)^interrupted", outcome.stdout)
    assert re.findall(r"(?m)^pass +(\S+)", outcome.stdout) == finished
    assert f"{len(finished)} case" in outcome.stdout.splitlines()[-1], outcome.stdout
    assert outcome.report is not None
    assert outcome.report["interrupted"] is True
    assert outcome.report["exit_code"] == 130
    assert len(outcome.report["cases"]) == len(finished)


def test_a_key_that_bounces_is_one_interrupt(workspace: Workspace, store: Path) -> None:
    with running(workspace, "runs", store=store) as run:
        run_id = booted(run, workspace)
        for _ in range(3):
            workspaces.kill(run, signal.SIGINT)
        outcome = run.outcome()
        nothing_left(run, run_id, workspace)
    interrupted(outcome, [])


@pytest.mark.alone  # it measures
def test_impatience_ends_it_at_once(workspace: Workspace, store: Path) -> None:
    """A second interrupt does not wait for what the first one began to clear away. All of it goes all the same."""
    with running(workspace, "builds", store=store) as run:
        run_id = building(run)
        while run.child.poll() is None:
            workspaces.kill(run, signal.SIGINT)
            time.sleep(0.01)
        outcome = run.outcome()
        assert outcome.exit_code == 130
        assert "Traceback" not in outcome.said
        nothing_left(run, run_id, workspace)


@pytest.mark.alone  # it measures
def test_kill_while_two_guests_run(workspace: Workspace, store: Path) -> None:
    with running(workspace, "runs", "runs-too", "-j2", store=store) as run:
        booted(run, workspace, "runs-too")
        run_id = booted(run, workspace)
        assert len(workspaces.qemu_of(run_id)) == 2
        workspaces.kill(run, signal.SIGKILL)
        run.child.wait()
        nothing_left(run, run_id, workspace)


def test_qemu_is_killed(workspace: Workspace, store: Path) -> None:
    with running(workspace, "runs", store=store) as run:
        (qemu,) = workspaces.qemu_of(booted(run, workspace))
        os.kill(qemu, signal.SIGKILL)
        outcome = run.outcome()
    assert outcome.exit_code == 1
    case = outcome.case("runs")
    assert case["verdict"] == "exited"
    assert case["reason"] == "QEMU ended before a verdict, killed by SIGKILL"
    assert case["console_tail"][-1] == "begun"


def test_the_run_after_them_all(workspace: Workspace, store: Path) -> None:
    (workspace.path("builds") / "c/prebuild.sh").write_text("#!/bin/sh\n")
    outcome = workspaces.run(workspace, "builds", "first", store=store)
    assert outcome.verdicts == {"builds": "pass", "first": "pass"}
    assert outcome.exit_code == 0
    assert workspace.runs == []
    assert list((store / "v2/staging").iterdir()) == []
