"""Child processes: what they see, and that nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qcase import process
from qcase.errors import InfraError
from qcase.guardian import marked_processes


def eventually(what: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_childs_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("PIP_INDEX_URL", "y")
    seen = process.run(["env"]).stdout.decode()
    assert "SECRET_TOKEN" not in seen
    assert "PIP_INDEX_URL" not in seen
    assert "PIP_INDEX_URL=y" in process.run(["env"], allow=["PIP_*"]).stdout.decode()


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(InfraError, match="no-such-program is not installed"):
        process.run(["no-such-program", "-x"])


def test_a_failure_says_the_command_and_its_last_words() -> None:
    with pytest.raises(InfraError, match=r"(?s)sh -c.*ended with status 3.*it broke"):
        process.run(["sh", "-c", "echo it broke >&2; exit 3"])


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="took longer than"):
        process.run(["sh", "-c", f"sleep 1000 & echo $! > {tmp_path}/pid; wait"], timeout=0.5)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_nothing_of_the_process_group_is_left_after_the_with(tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 1000 & echo $! > {tmp_path}/pid; wait; sleep 1000"
    with process.spawn(["sh", "-c", script]) as child:
        assert eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
        sleeper = int((tmp_path / "pid").read_text())
        assert alive(sleeper)
    assert not alive(child.pid)
    assert not alive(sleeper)


PARENT = """
import sys, time
from qcase import process
process.tell_guardian("dir " + sys.argv[1])
with process.spawn(["sh", "-c", "setsid sleep 1000 & sleep 1000"]):
    print(process.run_id(), flush=True)
    time.sleep(1000)
"""


def test_the_guardian_clears_away_what_a_killed_qcase_left(tmp_path: Path) -> None:
    """Also a grandchild that left the process group, and the run folder."""
    folder = tmp_path / "runs" / "1-0"
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    run_id = parent.stdout.readline().strip()
    assert eventually(lambda: len(marked_processes(run_id)) >= 3)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: not marked_processes(run_id), 5)
    assert eventually(lambda: not folder.exists(), 5)


def test_a_deadline_counts_down_and_none_never_comes() -> None:
    assert process.Deadline.after(None).remaining() is None
    assert not process.Deadline.after(None).passed
    assert process.Deadline.after(0).passed


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_standard_stream_that_is_closed_is_no_fault_and_its_number_is_taken(closed: tuple[int, ...], tmp_path: Path) -> None:
    program = f"import sys, os; sys.argv = ['qcase', 'cache', 'path', '--cache-dir', {str(tmp_path)!r}]\n" + (
        "from qcase import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        f"with open({str(tmp_path / 'told')!r}, 'w') as told: print(code, told.fileno() > 2, file=told)\n"
    )

    def close() -> None:
        for number in closed:
            os.close(number)

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, preexec_fn=close, timeout=60)
    assert done.stderr == ""
    assert done.stdout == ("" if 1 in closed else f"{tmp_path}\n")
    assert (tmp_path / "told").read_text() == "0 True\n"
