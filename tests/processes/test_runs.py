"""Run folders: claimed by locks, swept when their owner is gone, and only then."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qcase.host import process
from qcase.prepare import run_folders
from qcase.store.store import Store
from tests.conftest import ROOT
from tests.processes.test_store import finish, in_namespace

CASES = Path("target/x86_64-unknown-none/qemu-cases")


def ids() -> Callable[[], str]:
    counter = itertools.count(100)
    return lambda: f"1-{next(counter)}"


def start(script: str, *argv: object) -> subprocess.Popen[str]:
    prelude = "import os, signal, sys\nfrom pathlib import Path\nfrom qcase.host import process\n"
    prelude += "from qcase.prepare import run_folders\nfrom qcase.store.store import Store\n"
    command = [sys.executable, "-c", prelude + textwrap.dedent(script), *map(str, argv)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.fixture
def dead(tmp_path: Path) -> Iterator[Path]:
    """A run folder whose run was killed, and its guardian with it."""
    folder = tmp_path / CASES / "normal" / "smoke" / "runs" / "1-0"
    script = """
    process.tell_guardian = lambda word, rest="": None
    with run_folders.claimed(Path(sys.argv[1]), lambda: "1-1", print) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("x")
        (folder / "deep").chmod(0o555)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    child = start(script, folder)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert (folder / "deep" / "file").exists()
    yield folder
    subprocess.run(["chmod", "-R", "u+w", tmp_path], check=True)


def test_a_run_folder_is_there_and_gone(tmp_path: Path) -> None:
    folder = tmp_path / CASES / "normal" / "smoke" / "runs" / "1-0"
    with run_folders.claimed(folder, ids(), pytest.fail) as claimed:
        assert claimed == folder
        assert claimed.is_dir()
        assert run_folders.sweep_folders(tmp_path) == 0
        assert claimed.is_dir()
    assert not folder.parent.parent.exists()
    assert (tmp_path / CASES / "normal").is_dir()


def test_two_runs_of_one_process_id_do_not_share_a_folder(tmp_path: Path) -> None:
    """Two containers with one workspace: both are process 1."""
    folder = tmp_path / CASES / "smoke" / "runs" / "1-0"
    with run_folders.claimed(folder, ids(), pytest.fail) as one:
        with run_folders.claimed(folder, ids(), pytest.fail) as two:
            assert (one.name, two.name) == ("1-0", "1-100")
        assert one.is_dir()


def test_what_a_killed_run_left_is_swept(dead: Path, tmp_path: Path) -> None:
    assert run_folders.sweep_folders(tmp_path) == 1
    assert not dead.parent.parent.exists()
    assert run_folders.sweep_folders(tmp_path) == 0


def test_a_process_id_that_is_used_again_makes_no_difference(tmp_path: Path, dead: Path) -> None:
    """The folder carries the id of a process that lives, our own: it is a leftover all the same."""
    ours = dead.with_name(f"{os.getpid()}-0")
    dead.rename(ours)
    dead.with_name("1-0.lock").rename(ours.with_name(f"{ours.name}.lock"))
    assert run_folders.sweep_folders(tmp_path) == 1
    assert not ours.exists()


def test_what_lives_or_is_somebody_elses_stays(tmp_path: Path, dead: Path) -> None:
    living = dead.parent / "1-7"
    foreign = dead.parent / "4711-0"  # without a lock: of another tool, which shares the layout
    inside = tmp_path / CASES / "odd" / "runs" / "1-3" / "content" / "runs"
    foreign.mkdir()
    inside.mkdir(parents=True)
    (inside / "1-0.lock").touch()  # a file of an overlay
    with run_folders.claimed(living, ids(), pytest.fail):
        assert run_folders.sweep_folders(tmp_path) == 1
        assert living.is_dir()
    assert foreign.is_dir()
    assert (inside / "1-0.lock").exists()


def test_a_case_named_runs(tmp_path: Path) -> None:
    lock = tmp_path / CASES / "runs" / "runs" / "1-0.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert run_folders.sweep_folders(tmp_path) == 1
    assert not lock.exists()


def test_a_workspace_without_runs(tmp_path: Path) -> None:
    assert run_folders.sweep_folders(tmp_path) == 0


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    from qcase.errors import InfraError

    (tmp_path / "target").write_text("a file")
    with (
        pytest.raises(InfraError, match="cannot make the run folder"),
        run_folders.claimed(tmp_path / CASES / "a/runs/1-0", ids(), print),
    ):
        pytest.fail("made")


def test_processes_of_a_dead_run_are_ended(tmp_path: Path) -> None:
    """A run whose guardian was killed first: its child lives on, and is ended by the next run."""
    script = """
    import subprocess
    store = Store(Path(sys.argv[1]))
    with store.leases.announced_run(process.run_id()):
        marked = {**os.environ, "QCASE_RUN_ID": process.run_id()}
        child = subprocess.Popen(["sleep", "600"], env=marked, stdout=subprocess.DEVNULL)
        print(child.pid, process.run_id(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    parent = start(script, tmp_path / "cache")
    assert parent.stdout is not None
    child, run = parent.stdout.readline().split()
    parent.wait(timeout=60)
    handle = os.pidfd_open(int(child))
    store = Store(tmp_path / "cache")
    with store.leases.announced_run(process.run_id()):
        assert run_folders.sweep_runs(store) == 1
        assert run_folders.sweep_runs(store) == 0
    import select

    assert select.select([handle], [], [], 60)[0]
    os.close(handle)
    assert run.startswith(f"{parent.pid}-")
    parent.communicate(timeout=60)


def test_a_folder_that_cannot_be_removed_is_a_warning(tmp_path: Path) -> None:
    """Something is mounted in it, so that not even root can; the run's own result is told all the same."""
    script = """
    import subprocess
    from qcase.host import process
    from qcase.prepare import run_folders
    with run_folders.claimed(root / "runs" / "1-0", lambda: "1-1", print) as folder:
        subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    process.dismiss_guardian()
    print("the result")
    """
    out = finish(in_namespace("true", script, tmp_path, tmp_path))
    assert out == f"the run folder {tmp_path}/runs/1-0 could not be removed: Device or resource busy\nthe result\n"
