"""What QEMU's monitor says of a machine, and what is made of it."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qcase.config import qemu_options
from qcase.console.judge import Judge
from qcase.console.rules import Limits, Rules
from qcase.errors import InfraError
from qcase.vm.console_log import ConsoleLog
from qcase.vm.machine import Machine, converse
from qcase.vm.monitor import ASK, Monitor, asking


def event(name: str, **data: Any) -> bytes:
    return json.dumps({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}}).encode() + b"\r\n"


def status(name: str) -> bytes:
    return json.dumps({"return": {"running": name == "running", "status": name}, "id": "status"}).encode() + b"\r\n"


def heard(*said: bytes, args: str = "") -> Monitor:
    monitor = Monitor.of(qemu_options.split(args.split()))
    for one in said:
        monitor.hear(one)
    return monitor


IO_ERROR = {"device": "disk0", "node-name": "#block1", "operation": "write", "reason": "No space left on device"}


@pytest.mark.parametrize(
    ("said", "whose", "why"),
    [
        ([event("BLOCK_IO_ERROR", **IO_ERROR, action="stop", nospace=True)], "host", "no room on the host"),
        ([event("BLOCK_IO_ERROR", **IO_ERROR, action="report", nospace=True)], "host", "no room on the host"),
        ([event("BLOCK_IO_ERROR", operation="read", action="report", reason="Input/output error")], "host", "in reading"),
        ([event("BLOCK_IMAGE_CORRUPTED", msg="refcount", fatal=True)], "host", "damaged: refcount"),
        ([event("MEMORY_FAILURE", recipient="hypervisor", action="fatal")], "host", "memory has a fault"),
        ([event("MEMORY_FAILURE", recipient="guest", action="inject")], "host", "memory has a fault"),
        ([event("SHUTDOWN", guest=False, reason="host-error")], "host", "QEMU met an error"),
        ([event("GUEST_PANICKED", action="pause")], "panic", "told its machine of a panic"),
        ([event("GUEST_PANICKED", action="poweroff")], "panic", "told its machine of a panic"),
        ([event("WATCHDOG", action="pause"), event("STOP")], "guest", "watchdog ran out"),
        ([event("STOP"), status("internal-error")], "host", "internal error"),
        ([event("STOP"), status("io-error")], "host", "I/O error"),
        ([event("STOP"), status("watchdog")], "guest", "watchdog"),
        ([event("STOP"), status("guest-panicked")], "panic", "panic"),
        ([event("SHUTDOWN", guest=True, reason="guest-shutdown"), event("STOP"), status("shutdown")], "guest", "powered off"),
        ([event("STOP"), status("paused")], "host", "its state is paused"),
        ([event("STOP"), status("a-state-of-a-newer-qemu")], "host", "its state is a-state"),
        ([b'{"error": {"class": "GenericError", "desc": "not now"}, "id": "cont"}\n'], "host", "does not run the guest: not now"),
    ],
)
def test_words_that_mean_that_the_machine_stands_still(said: list[bytes], whose: str, why: str) -> None:
    standstill = heard(*said).standstill
    assert standstill is not None
    assert standstill.whose == whose
    assert why in standstill.why
    assert standstill.full is ("no room" in why)


@pytest.mark.parametrize(
    ("said", "args"),
    [
        ([event("RESUME"), event("RTC_CHANGE", offset=1), event("NIC_RX_FILTER_CHANGED", path="x")], ""),
        ([event("BLOCK_IO_ERROR", operation="write", action="ignore")], ""),
        ([event("BLOCK_IO_ERROR", operation="read", action="report", reason="x")], "-drive file=blkdebug::x,id=b"),
        ([event("MEMORY_FAILURE", recipient="guest", action="ignore")], ""),
        ([event("GUEST_PANICKED", action="run"), event("GUEST_CRASHLOADED", action="run")], ""),
        ([event("WATCHDOG", action="reset"), event("WATCHDOG", action="none")], ""),
        ([event("STOP"), event("RESUME"), status("running")], ""),
        ([event("SUSPEND"), event("STOP"), status("suspended")], ""),  # an alarm may wake it
        ([event("STOP"), status("paused")], "-monitor unix:/x,server"),
        ([event("STOP"), status("debug")], "-s"),
        ([b"no JSON\n", b"[]\n", b"{\n"], ""),
    ],
)
def test_words_that_do_not(said: list[bytes], args: str) -> None:
    assert heard(*said, args=args).standstill is None


def test_a_stop_alone_is_asked_about_and_words_come_in_pieces() -> None:
    monitor = Monitor()
    whole = event("RESET", guest=True) + event("STOP")
    assert [monitor.hear(whole[at : at + 1]) for at in range(len(whole))][-1] == ASK
    assert (monitor.take_resets(), monitor.take_resets()) == (1, 0)


# --- a machine ----------------------------------------------------------------------------------------------------------


@contextmanager
def machine(console: bytes, *said: bytes) -> Iterator[Machine]:
    """A QEMU that prints, says what it says on its monitor, and then stands still."""
    ours, theirs = socket.socketpair()
    script = f"import os, time; os.write(1, {console!r}); time.sleep(60)"
    with (
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
        ours,
        theirs,
    ):
        try:
            time.sleep(0.3)
            theirs.sendall(b"".join(said))
            made = Machine(child, io.BytesIO(), ours, io.BytesIO())
            yield made
            made.close()
        finally:
            child.kill()


def judged(console: bytes, *said: bytes) -> Any:
    rules = Rules(prompt=None, command=None, success=("^PASS$",), fail=("^FAIL",))
    judge = Judge(rules, started=time.monotonic(), limits=Limits(30.0))
    with machine(console, *said) as one:
        converse(one, judge, ConsoleLog(io.BytesIO()), lambda: None)
    return judge.ruling


def test_a_machine_without_room_is_an_error_at_once_that_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/a/small/folder")
    began = time.monotonic()
    with pytest.raises(InfraError, match="no room on the host for what the guest writes: /a/small/folder is full") as caught:
        judged(b"booted\n", event("BLOCK_IO_ERROR", **IO_ERROR, action="stop", nospace=True), event("STOP"))
    assert time.monotonic() - began < 20  # of 30
    assert "TMPDIR" in caught.value.hint


def test_a_panic_that_the_guest_tells_of_is_no_pass() -> None:
    ruling = judged(b"PASS", event("GUEST_PANICKED", action="pause"), event("STOP"))
    assert (ruling.verdict, ruling.reason) == ("panic", "the guest told its machine of a panic")


def test_a_machine_that_its_guest_stopped_has_ended() -> None:
    ruling = judged(b"bye\n", event("SHUTDOWN", guest=True, reason="guest-shutdown"), event("STOP"), status("shutdown"))
    assert ruling.verdict == "exited"
    assert ruling.reason == "the machine stands still: the guest powered off, and QEMU goes on"


def test_what_the_guest_said_before_counts() -> None:
    assert judged(b"FAIL: x\n", event("WATCHDOG", action="pause"), event("STOP")).verdict == "fail"


def test_the_folder_is_found_where_it_is(tmp_path: Any) -> None:
    """Linux tells it of a file without a name, wherever TMPDIR points by now."""
    script = "import os, sys, time; f = open(sys.argv[1], 'w'); os.unlink(sys.argv[1]); print(flush=True); time.sleep(60)"
    argv = [sys.executable, "-c", script, str(tmp_path / "vl.ABC123")]
    ours, theirs = socket.socketpair()
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child, ours, theirs:
        assert child.stdout is not None
        os.read(child.stdout.fileno(), 1)
        made = Machine(child, io.BytesIO(), ours, io.BytesIO())
        assert made.temporary_folder == str(tmp_path)
        made.close()
        child.kill()


def test_a_machine_that_stops_for_its_steps_is_started_again() -> None:
    monitor = Monitor()
    monitor.revives = True
    assert monitor.hear(event("SHUTDOWN", guest=True, reason="guest-reset") + event("STOP")) == ASK
    assert monitor.hear(b'{"return": {"status": "shutdown"}, "id": "status"}\n') == b""
    assert monitor.standstill is None
    assert (monitor.take_downs(), monitor.take_downs()) == (["guest-reset"], [])
    assert b'"reboot": "shutdown"' in monitor.hear(event("RESET", guest=False))
    assert monitor.take_resets() == 0


def test_the_answer_to_a_command_of_the_case() -> None:
    monitor = Monitor()
    assert asking('{"execute": "device_del"}') == b'{"execute": "device_del", "id": "case"}\n'
    monitor.hear(b'{"return": {}, "id": "case"}\n{"error": {"class": "x", "desc": "no x"}, "id": "case"}\n')
    assert (monitor.take_answers(), monitor.take_answers()) == (["", "no x"], [])
