"""A case by hand: `qcase shell` on a terminal and on pipes, with our own kernel as the guest."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import socket as sockets
import subprocess
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.host.process import Deadline
from tests import kernel
from tests.vm import workspaces
from tests.vm.workspaces import PATIENCE, QCASE, Workspace, eventually

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def workspace(kernels: Mapping[Arch, Path], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = kernel.workspace(tmp_path_factory.mktemp("shell") / "w", kernels)
    kernel.case(made, "one", "pass")
    kernel.case(made, "other", "pass", args=[*kernel.ARGS[Arch.AARCH64], "-device", "no-such-device"])
    return made


def command(workspace: Workspace, *words: str) -> list[str]:
    beside = workspace.root.parent / "store"
    return [str(QCASE), "shell", "-w", str(workspace.root), "-a", "aarch64", "--cache-dir", str(beside), *words]


class Terminal:
    """A terminal with the program on it."""

    def __init__(self, argv: list[str], home: Path) -> None:
        self.ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(self.ours)
        environment = workspaces.environment(home, {"TERM": "xterm"})
        self.child = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True)
        os.close(theirs)
        self.said = b""

    def until(self, wanted: bytes) -> None:
        deadline = Deadline.after(PATIENCE)
        while wanted not in self.said:
            assert select.select([self.ours], [], [], deadline.remaining())[0], self.said
            try:
                data = os.read(self.ours, 1 << 16)
            except OSError:
                data = b""
            assert data, self.said
            self.said += data

    def types(self, data: bytes) -> None:
        os.write(self.ours, data)

    @property
    def raw(self) -> bool:
        return not termios.tcgetattr(self.ours)[3] & termios.ICANON

    @property
    def restored(self) -> bool:
        return termios.tcgetattr(self.ours) == self.before


@contextlib.contextmanager
def terminal(argv: list[str], home: Path) -> Iterator[Terminal]:
    made = Terminal(argv, home)
    try:
        yield made
    finally:
        made.child.kill()
        made.child.wait()
        os.close(made.ours)


def test_keys_go_to_the_guest_and_the_terminal_is_given_back(workspace: Workspace, tmp_path: Path) -> None:
    with terminal(command(workspace, "one"), tmp_path) as shown:
        shown.until(b"qk> ")
        assert shown.raw
        shown.types(b"say it's me\r")
        shown.until(b"\r\nit's me\r\nqk> ")
        shown.types(b"\x03say Ctrl-C is the guest's\r")
        shown.until(b"\r\nCtrl-C is the guest's\r\n")
        shown.types(b"reboot\r")
        shown.until(b"reboot\r\n\r\nqcase test kernel on aarch64")
        shown.types(b"\x01x")
        shown.until(b"qcase: QEMU ended, status 0")
        assert shown.child.wait(PATIENCE) == 0
        assert shown.restored
    assert b"it's me" in (workspace.root / "target/qcase/logs/aarch64/normal/one/console.log").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_terminal_is_given_back_when_qcase_is_killed(number: signal.Signals, workspace: Workspace, tmp_path: Path) -> None:
    with terminal(command(workspace, "one"), tmp_path) as shown:
        shown.until(b"qk> ")
        assert shown.raw
        shown.child.send_signal(number)
        assert shown.child.wait(PATIENCE) == (-number if number == signal.SIGKILL else 130)
        eventually("the terminal is as it was", lambda: shown.restored, 10)


def test_a_debugger_attaches_to_what_waits_for_it(workspace: Workspace, tmp_path: Path) -> None:
    with terminal(command(workspace, "one", "--gdb"), tmp_path) as shown:
        shown.until(b"Ctrl-A X ends QEMU")
        line = re.search(rb"waiting for a debugger: gdb-multiarch -ex 'target remote (\S+)' (\S+kernel-aarch64)", shown.said)
        assert line is not None
        socket = Path(line[1].decode())
        eventually("the socket", socket.is_socket)
        assert b"test kernel" not in shown.said
        with sockets.socket(sockets.AF_UNIX) as debugger:
            debugger.connect(str(socket))
            debugger.sendall(b"$?#3f")
            assert debugger.recv(100).startswith(b"+")
            debugger.sendall(b"$c#63")
            shown.until(b"qk> ")
        shown.types(b"off\r")
        shown.until(b"the guest powered off")
        assert shown.child.wait(PATIENCE) == 0
        assert not socket.parent.exists()


def test_pipes_do_and_what_was_made_is_kept(workspace: Workspace, tmp_path: Path) -> None:
    argv = command(workspace, "one", "--keep")
    child = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=workspaces.environment(tmp_path)
    )
    assert child.stdin is not None
    child.stdin.write(b"say piped ; off\n")
    stdout, stderr = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0
    assert b"\r\npiped\r\n" in stdout
    kept = re.search(rb"(?m)^qcase: kept: (\S+)$", stderr)
    assert kept is not None
    folder = workspace.root / kept[1].decode()
    assert {path.name for path in folder.iterdir()} == {"qemu.sh", "console.log"}
    again = subprocess.run(
        ["sh", str(folder / "qemu.sh")], input=b"say again ; off\n", capture_output=True, timeout=PATIENCE, cwd=tmp_path
    )
    assert b"\r\nagain\r\n" in again.stdout
    shutil.rmtree(folder)


def test_what_cannot_be_shown_is_one_error(workspace: Workspace, tmp_path: Path) -> None:
    for words, code, wanted in (
        (["*"], 2, "error: *: 2 cases fit: normal/one, normal/other\nhint: name one\n"),
        (["other"], 3, "'no-such-device' is not a valid device model name"),
    ):
        done = subprocess.run(
            command(workspace, *words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=workspaces.environment(tmp_path),
        )
        assert done.returncode == code
        assert wanted in done.stderr
        assert done.stderr.count("error: ") == 1
