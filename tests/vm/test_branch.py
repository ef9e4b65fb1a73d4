"""Cases that go on from a template of their machine get the verdicts of those that boot cold."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

from qcase.host import crash_cleanup
from qcase.run.booting import MARK
from tests.vm import workspaces
from tests.vm.workspaces import Outcome, Workspace, eventually

pytestmark = pytest.mark.vm

CASES = {"boots": "pass", "script": "pass", "fails": "fail", "panics": "panic", "hangs": "timeout", "again": "pass"}
LEFT_FOR = 90.0


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace.make(tmp_path_factory.mktemp("branch") / "w", '\n[run]\nbranch = "auto"\n')
    made.case("boots", shell_init_cmd="echo hel''lo", success_regex=["^hello$"])
    made.case(
        "script", {"sh/hello": "#!/bin/sh\necho hello from a disk of its own\n"}, shell_init_cmd="hello", success_regex=["own$"]
    )
    made.case("fails", shell_init_cmd="echo b''ad", success_regex=["^good$"], fail_regex=["^bad$"])
    made.case("panics", shell_init_cmd="echo c > /proc/sysrq-trigger", success_regex=["^never$"])
    made.case("hangs", shell_init_cmd="sleep 1000", success_regex=["^never$"], qcase={"command_timeout": 1})
    made.case("again", shell_init_cmd="echo hel''lo", success_regex=["^hello$"], qcase={"branch": False})
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, test_cache: Path) -> Path:
    return workspaces.fresh_store(tmp_path_factory.mktemp("branch-store") / "store", test_cache)


@pytest.fixture(scope="module")
def cold(workspace: Workspace, store: Path) -> Outcome:
    return workspaces.run(workspace, *CASES, "-j1", "--cold", store=store)


@pytest.fixture(scope="module")
def outcome(workspace: Workspace, store: Path, cold: Outcome) -> Outcome:  # the logs are those of the later run
    return workspaces.run(workspace, *CASES, "-j1", "-vv", store=store)


def test_the_verdicts_are_those_of_cold_boots(cold: Outcome, outcome: Outcome) -> None:
    assert outcome.verdicts == CASES
    assert cold.verdicts == CASES
    for name in CASES:
        assert cold.case(name)["booted"]["template"] is None
        assert cold.case(name)["reason"] == outcome.case(name)["reason"]


def test_one_case_boots_cold_and_the_others_from_the_template(outcome: Outcome) -> None:
    booted = {name: outcome.case(name)["booted"] for name in CASES}
    assert {name for name in CASES if booted[name]["template"] is None} == {"boots", "again"}
    assert booted["boots"]["cold"] == "the first case of its machine boots cold"
    assert booted["again"]["cold"] == "[qcase] branch = false"
    assert "from a template of " in outcome.stdout
    assert "booted cold: [qcase] branch = false" in outcome.stdout
    for name in set(CASES) - {"boots", "again"}:
        assert outcome.case(name)["times"]["boot"] > booted[name]["template"]


def test_the_console_begins_with_that_of_the_template(workspace: Workspace, outcome: Outcome) -> None:
    def console(name: str) -> bytes:
        return (workspace.root / str(outcome.case(name)["console_log"])).read_bytes()

    before, mark, after = console("fails").partition(MARK)
    assert mark
    assert b"bad" in after
    assert console("panics").startswith(before)
    assert MARK not in console("boots")


@pytest.mark.parametrize("sign", ["blkdebug", "-incoming"])
def test_kill_while_a_template_is_made_or_used(sign: str, workspace: Workspace, store: Path) -> None:
    started = workspaces.start(workspace, "boots", "hangs", "fails", "-j1", store=store)
    try:
        run_id = str(eventually("the run's mark", lambda: started.run_id))
        eventually("the machine", lambda: _line_with(run_id, sign))
        workspaces.kill(started, signal.SIGKILL)
        started.child.communicate()
        eventually("no process of the run", lambda: not crash_cleanup.marked_processes(run_id), LEFT_FOR)
        eventually("no folder of the run", lambda: not workspace.run_folders, LEFT_FOR)
    finally:
        started.child.kill()
        started.child.wait()


def _line_with(run_id: str, sign: str) -> bool:
    for pid in workspaces.qemu_of(run_id):
        with contextlib.suppress(OSError):
            if sign.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
    return False
