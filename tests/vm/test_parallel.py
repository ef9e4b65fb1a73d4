"""Many cases at once: what they share, how they wait, and what another attempt is.

A case that is flaky for certain: QEMU is started by a script that gives the guest less memory from the second start on, and
the case fails where there is much.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from qcase import events
from qcase.arch import Arch
from qcase.host import process
from qcase.model import Verdict
from qcase.prepare import explain
from qcase.prepare.session import Session
from qcase.run import run_cases
from qcase.run.run_cases import Plan
from qcase.store.content import Kind
from qcase.store.store import Store
from qcase.suite import cases as cases_module
from qcase.suite import discover, select
from qcase.suite.cases import Case
from tests.vm import workspaces
from tests.vm.workspaces import Workspace, run

pytestmark = pytest.mark.vm

TARGET = Arch.AARCH64.default_target


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace.make(tmp_path_factory.mktemp("parallel") / "w")
    made.case("script", {"sh/hello": "#!/bin/sh\necho hello\n"}, shell_init_cmd="hello", success_regex=["^hello$"])
    made.case("plain", shell_init_cmd="echo hel''lo", success_regex=["^hello$"])
    made.case(
        "flaky",
        shell_init_cmd='awk \'/^MemTotal/ { print $2 < 200000 ? "sma" "ll" : "la" "rge" }\' /proc/meminfo',
        success_regex=["^small$"],
        fail_regex=["^large$"],
        qcase={"retries": 1},
    )
    return made


@pytest.fixture
def store(tmp_path: Path, test_cache: Path) -> Path:
    return workspaces.fresh_store(tmp_path / "store", test_cache)


@pytest.fixture
def stingy(tmp_path: Path) -> Mapping[str, str]:
    """An environment in which QEMU gives a guest less memory from its second start on."""
    real = shutil.which("qemu-system-aarch64")
    script = tmp_path / "bin" / "qemu-system-aarch64"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\n[ ! -e {tmp_path}/began ] || set -- "$@" -m 160M\n: >{tmp_path}/began\nexec {real} "$@"\n')
    script.chmod(0o755)
    return {"PATH": f"{script.parent}:{os.environ['PATH']}"}


def test_a_case_that_passes_at_the_second_attempt_is_flaky(workspace: Workspace, store: Path, stingy: Mapping[str, str]) -> None:
    outcome = run(workspace, "flaky", store=store, env=stingy)
    assert outcome.exit_code == 0, outcome.said
    case = outcome.case("flaky")
    assert (case["verdict"], case["flaky"]) == ("pass", True)
    (first,) = case["earlier"]
    assert (first["verdict"], first["excerpt"]) == ("fail", "large")
    logs = workspace.root / "target/qcase/logs/aarch64/normal/flaky"
    assert b"\nlarge" in (logs / "console.log.attempt-1").read_bytes()
    assert b"\nsmall" in (logs / "console.log").read_bytes()
    assert first["console_log"].endswith("flaky/console.log.attempt-1")
    assert re.search(r"(?m)^flaky +normal/flaky ", outcome.stdout), outcome.stdout
    assert outcome.stdout.splitlines()[-1].endswith("1 passed, 1 of them flaky")


def test_without_retries_it_fails_and_its_old_logs_are_gone(workspace: Workspace, store: Path, stingy: Mapping[str, str]) -> None:
    logs = workspace.root / "target/qcase/logs/aarch64/normal/flaky"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "console.log.attempt-1").write_text("of an earlier run")
    outcome = run(workspace, "flaky", "--retries", "0", store=store, env=stingy)
    assert outcome.exit_code == 1
    assert outcome.verdicts == {"flaky": "fail"}
    assert sorted(path.name for path in logs.iterdir()) == ["console.log", "qemu.sh"]


def test_repetitions_have_logs_of_their_own_and_a_table(workspace: Workspace, store: Path, stingy: Mapping[str, str]) -> None:
    outcome = run(workspace, "flaky", "--repeat", "3", "--retries", "0", "-j1", store=store, env=stingy)
    assert outcome.exit_code == 1
    assert outcome.report is not None
    rows = [(case["case"], case["repetition"], case["verdict"]) for case in outcome.report["cases"]]
    assert rows == [("normal/flaky", 1, "fail"), ("normal/flaky", 2, "pass"), ("normal/flaky", 3, "pass")]
    assert b"\nsmall" in (workspace.root / "target/qcase/logs/aarch64/normal/flaky#3/console.log").read_bytes()
    assert re.search(r"(?m)^normal/flaky +3 +1 +33\.3 %", outcome.stdout), outcome.stdout
    assert re.search(r"(?m)^repeat just the failures: .* normal/flaky$", outcome.stdout), outcome.stdout


def test_a_case_that_waits_for_another_process_holds_up_no_other(workspace: Workspace, store: Path) -> None:
    opened = cases_module.Workspace.open(workspace.root)
    found = discover.discover(opened, Arch.AARCH64, TARGET)
    (script,) = select.select(found, ["script"])
    assert isinstance(script, Case)
    with Session(opened, Arch.AARCH64, TARGET, Store(store), events.ignore, read_only_inspection=True) as session:
        (wanted,) = explain.wanted(script, session)
    lock = FileLock(store / "v2" / "locks" / f"{Kind.OVERLAY}-{wanted.key.digest}.lock")
    (store / "v2" / "locks").mkdir(parents=True, exist_ok=True)
    with lock:
        running = workspaces.start(workspace, "script", "plain", "-j2", store=store)
        running.until("waiting for another process")
        running.until("pass ")  # the plain one, while the other waits
    outcome = running.outcome()
    assert outcome.verdicts == {"plain": "pass", "script": "pass"}, outcome.said
    assert re.findall(r"(?m)^pass +(\S+)", outcome.stdout) == ["normal/plain", "normal/script"]


def test_cases_run_in_another_process(workspace: Workspace, test_cache: Path) -> None:
    """A case is a function of arguments that can be pickled: any executor will do."""
    workspaces.provide(test_cache)
    opened = cases_module.Workspace.open(workspace.root)
    cases = select.select(discover.discover(opened, Arch.AARCH64, TARGET), ["plain"])
    with (
        Session(opened, Arch.AARCH64, TARGET, Store(test_cache), events.ignore) as session,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
    ):
        finished = run_cases.run_cases(cases, session, Plan(jobs=1), pool)
        pool.submit(process.dismiss_guardian).result()
    assert [result.verdict for result in finished.results] == [Verdict.PASS], finished.results


def test_a_missing_program_is_met_once_and_before_anything_is_fetched(tmp_path: Path) -> None:
    workspace = Workspace.make(tmp_path / "w")
    for number in range(5):
        workspace.case(f"case{number}", shell_init_cmd="true", success_regex=["x"])
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("qemu-system-aarch64", "pip", "pip3", "python3"):
        if path := shutil.which(name):
            (programs / name).symlink_to(path)
    outcome = run(workspace, "-j3", store=tmp_path / "store", env={"PATH": str(programs)})
    assert outcome.exit_code == 3
    assert set(outcome.verdicts.values()) == {"error"}
    assert outcome.stdout.count("qemu-img is not installed") == 1, outcome.stdout
    assert outcome.stdout.count("Debian: apt-get install qemu-utils") == 1
    assert "fetching" not in outcome.said
    assert not list((tmp_path / "store").rglob("*.whl"))


def test_what_had_finished_survives_a_kill(workspace: Workspace, store: Path, tmp_path: Path) -> None:
    slow = workspace.case("slow", shell_init_cmd="echo be''gun; sleep 1000", success_regex=["^never$"])
    happened = tmp_path / "events.jsonl"
    running = workspaces.start(workspace, "plain", "slow", "-j2", "--events", str(happened), store=store)
    try:
        running.until("pass ")
        workspaces.eventually("the report", lambda: json.loads(running.json_file.read_text())["cases"])
        workspaces.eventually("its event", lambda: '"case-finished"' in happened.read_text())  # which is written after the report
    finally:
        workspaces.kill(running, signal.SIGKILL)
        outcome = running.outcome()
        shutil.rmtree(slow)
    assert outcome.report is not None
    assert (outcome.report["complete"], outcome.report["exit_code"]) == (False, None)
    assert outcome.verdicts == {"plain": "pass"}
    lines = [json.loads(line) for line in happened.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["event"] == "run-started"
    assert [line["case"] for line in lines if line["event"] == "case-finished"] == ["normal/plain"]
    page = tmp_path / "later.html"
    done = process.run([str(workspaces.QCASE), "report", str(running.json_file), "--html", str(page)])
    assert done.output == "warning: the run was killed: 1 case did not end"
    assert "This run was killed" in page.read_text(encoding="utf-8")


def test_two_architectures_in_one_run(tmp_path: Path, store: Path) -> None:
    """The one that fails decides the exit code, and is remembered; nothing of the other is taken for it."""
    made = Workspace.make(tmp_path / "w")
    for arch, machine in ((Arch.X86_64, "x86_64"), (Arch.AARCH64, "nosuch")):
        files = {"sh/machine": "#!/bin/sh\necho it is $(uname -m)\n"}
        made.case(
            "same",
            files,
            arch=arch,
            shell_init_cmd="machine",
            success_regex=[f"^it is {machine}$"],
            fail_regex=["^it is aarch64$"],
        )
    outcome = run(made, "--arch", "x86_64", "--arch", "aarch64", store=store, arch=None)
    assert outcome.exit_code == 1, outcome.said
    assert outcome.report is not None
    assert {(case["arch"], case["verdict"]) for case in outcome.report["cases"]} == {("x86_64", "pass"), ("aarch64", "fail")}
    assert len({case["console_log"] for case in outcome.report["cases"]}) == 2
    assert "normal/same@x86_64" in outcome.stdout
    assert re.search(r"repeat just the failures: qcase run --arch aarch64 .*normal/same$", outcome.stdout, re.MULTILINE)
    assert "--arch x86_64" not in outcome.stdout
    assert run(made, "--failed", "--arch", "x86_64", store=store, arch=None).exit_code == 0
