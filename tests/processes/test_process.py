"""Child processes: what they see, and that nothing of them is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qcase.errors import InfraError
from qcase.host import process
from qcase.host.crash_cleanup import MARK, marked_processes, remove_tree


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
from pathlib import Path
from qcase.host import process
process.guard_folder(Path(sys.argv[1]))
with process.spawn(["sh", "-c", "setsid sleep 1000 & sleep 1000"]):
    print(process.run_id(), flush=True)
    time.sleep(1000)
"""


def test_the_guardian_clears_away_what_a_killed_qcase_left(tmp_path: Path) -> None:
    """Also a grandchild that left the process group, and the run folder."""
    folder = tmp_path / "runs" / "1-0"
    folder.parent.mkdir()
    killed_with(folder)
    assert eventually(lambda: not folder.exists(), 5)


def killed_with(folder: Path) -> None:
    """Kill a qcase that has a run folder, and wait until its guardian has ended."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    run_id = parent.stdout.readline().strip()
    assert eventually(lambda: len(marked_processes(run_id)) >= 3)
    (folder / "file").write_text("x")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: not marked_processes(run_id), 5)


def test_a_line_end_in_a_path_makes_the_guardian_remove_nothing_else(tmp_path: Path) -> None:
    """Messages were lines once: what stood before the line end was removed."""
    thesis = tmp_path / "docs" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("precious")
    folder = tmp_path / "docs\nws" / "1-0"
    folder.parent.mkdir()
    killed_with(folder)
    assert eventually(lambda: not folder.exists(), 5)
    assert thesis.read_text() == "precious"


def guarded(folder: Path, run_id: str = "1-abc") -> None:
    """A guardian that hears of a folder, and that its qcase is gone."""
    script = Path(process.__file__).with_name("crash_cleanup.py")
    message = b"dir " + os.fsencode(folder) + b"\0dir " + os.fsencode(folder.parent)  # the last one was cut off
    subprocess.run([sys.executable, "-I", "-S", script, run_id], input=message, check=True, timeout=30)


def test_the_guardian_removes_a_folder_with_the_mark_of_its_run_alone(tmp_path: Path) -> None:
    folder = tmp_path / "1-0"
    folder.mkdir()
    (folder / "file").write_text("x")
    guarded(folder)
    (folder / MARK).write_text("2-other")
    guarded(folder)
    (folder / MARK).unlink()
    (folder / MARK).symlink_to(tmp_path / "mark")
    (tmp_path / "mark").write_text("1-abc")
    guarded(folder)
    assert (folder / "file").exists()
    (tmp_path / "link").symlink_to(folder)
    (folder / MARK).unlink()
    (folder / MARK).write_text("1-abc")
    guarded(tmp_path / "link")
    assert (folder / "file").exists()
    guarded(folder)
    assert not folder.exists()
    folder.mkdir()  # killed before it could be marked
    guarded(folder)
    assert not folder.exists()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("steps", range(1, 30))
def test_the_guardian_removes_what_a_removal_that_was_killed_left(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each step of the removal, among them the one of the mark."""
    folder = tmp_path / "1-0"
    folder.mkdir()
    (folder / MARK).write_text("1-abc")
    for name in "ab":
        (folder / name / "deeper").mkdir(parents=True)
        for file in ("c", "d", "deeper/e"):
            (folder / name / file).write_text("x")
    done = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            nonlocal done
            if done == steps:
                raise Killed
            done += 1
            return function(*args, **kwargs)

        return step

    with monkeypatch.context() as patched:
        for name in ("unlink", "rmdir", "rename"):
            patched.setattr(os, name, counted(getattr(os, name)))
        with contextlib.suppress(Killed):
            remove_tree(folder)
    if steps < 13:  # 7 files, 5 folders, and 2 that are moved
        assert folder.exists()
    guarded(folder)
    assert not folder.exists()


def test_what_is_deep_or_closed_is_removed_and_no_link_is_followed(tmp_path: Path) -> None:
    """Deeper than Python recurses, and than a path can say; also as an ordinary user, who needs modes for it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("x")
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(tmp_path / "outside")
    fd = os.open(top, os.O_RDONLY)
    for number in range(1500):
        os.mkdir("deep", dir_fd=fd)
        below = os.open("deep", os.O_RDONLY, dir_fd=fd)
        if number % 100 == 0:
            os.symlink("/", "root", dir_fd=below)
            os.fchmod(fd, 0o000)
        os.close(fd)
        fd = below
    os.close(fd)
    for number in range(2500):
        (top / str(number)).touch()
    remove_tree(top)
    assert not top.exists()
    assert (tmp_path / "outside" / "file").exists()
    remove_tree(top)


def test_a_deadline_counts_down_and_none_never_comes() -> None:
    assert process.Deadline.after(None).remaining() is None
    assert not process.Deadline.after(None).passed
    assert process.Deadline.after(0).passed


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_standard_stream_that_is_closed_is_no_fault_and_its_number_is_taken(closed: tuple[int, ...], tmp_path: Path) -> None:
    program = f"import sys, os; sys.argv = ['qcase', 'cache', 'path', '--cache-dir', {str(tmp_path)!r}]\n" + (
        "from qcase.cli import main\n"
        "try: main.main()\n"
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
