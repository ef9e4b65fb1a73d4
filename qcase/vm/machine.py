"""QEMU: computes its argument list, and owns its process.

The order of the arguments is axbuild's (COMPAT, "qemu-<arch>.toml"): the arguments of the case's file, those of the root disk and
the network card, `-snapshot`, the machine, the kernel. `arguments` and its helpers are pure functions.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from qcase.arch import Arch
from qcase.config import qemu_options
from qcase.config.qemu_options import ArgumentError, Option
from qcase.config.root_disk import SEMIHOSTING
from qcase.errors import InfraError
from qcase.host import process
from qcase.model import Verdict
from qcase.vm import sandbox
from qcase.vm.console_log import ConsoleLog
from qcase.vm.consoles import Consoles
from qcase.vm.ending import word_of
from qcase.vm.monitor import CONTINUE, GREETING, RESET_REASONS, REVIVE, Monitor, Standstill, asking, calling

if TYPE_CHECKING:
    from qcase.console.judge import Judge
    from qcase.console.steps import StepsJudge


_MONITOR = "qcase-monitor"
_TEMPORARY = "/var/tmp"  # noqa: S108 - QEMU's own choice: the data that a guest writes is too much for memory
_GRACE = 0.3  # seconds for QEMU to end after TERM; it has nothing to save, and on a busy machine its own end takes long
_READS = 3  # reads of a console that hold all that a pipe holds
_LAST_WORDS = 2.0  # seconds for QEMU to end after it closed its console


def version(arch: Arch) -> tuple[int, int]:
    """Return major and minor version of the installed QEMU. Raises `InfraError` if QEMU is missing or prints no version."""
    said = process.run([arch.qemu, "--version"], timeout=30.0, hint=arch.install_hint).output
    found = re.search(r"version (\d+)\.(\d+)", said)
    if found is None:
        raise InfraError("does not say its version", where=f"{arch.qemu} --version")
    return int(found[1]), int(found[2])


# --- the process --------------------------------------------------------------------------------------------------------


class CallError(Exception):
    """A command of the monitor that failed, with QEMU's words."""


class Machine:
    """A running QEMU with its console on pipes. `stderr`: QEMU's own messages, apart from the guest's output.

    Its monitor (QMP) is on an unnamed socket. qcase only listens to it: the monitor reports that QEMU accepted its arguments,
    that the guest reset its machine, and why QEMU ended. `log`: file in which QEMU records a triple fault. `runs`: the guest
    starts at once, else with `go`.
    """

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        stderr: IO[bytes],
        monitor: socket.socket,
        log: IO[bytes],
        options: Sequence[Option] = (),
        *,
        runs: bool = True,
        consoles: Consoles | None = None,
    ) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._child = child
        self._in = child.stdin
        self._out = child.stdout
        self._stderr = stderr
        self._log = log
        self._muxed = _is_muxed(options)
        self._semihosting = any(option.kind in SEMIHOSTING for option in options)
        self._monitor = monitor
        self.consoles = consoles or Consoles()
        self.heard = Monitor.of(options)
        self._selector = selectors.DefaultSelector()
        self._sending = False
        for stream in (self._in, self._out):
            os.set_blocking(stream.fileno(), False)
        monitor.setblocking(False)
        self._selector.register(self._out, selectors.EVENT_READ)
        for end in (monitor, *self.consoles.sockets):
            self._selector.register(end, selectors.EVENT_READ)
        self._unsent = bytearray()
        self._early = bytearray()  # console bytes that came during a call
        self._calls = 0
        runs = runs and not any(option.kind == "S" for option in options)
        with contextlib.suppress(OSError):  # QEMU has ended already; reading shows that
            monitor.send(GREETING + CONTINUE * runs)

    def close(self) -> None:
        self._selector.close()

    @property
    def pid(self) -> int:
        return self._child.pid

    def type(self, data: bytes) -> None:
        """Queue keys for the guest. Ctrl-A is doubled for QEMU's multiplexer, if there is one: the guest gets one Ctrl-A."""
        self._unsent += data.replace(b"\x01", b"\x01\x01") if self._muxed else data

    def send(self, data: bytes) -> None:
        """Queue keys as a person types them: QEMU's multiplexer interprets its own keys."""
        self._unsent += data

    def ask(self, command: str) -> None:
        """Give the monitor a command (JSON). `heard` takes its answer."""
        self.send_to_monitor(asking(command))

    def send_to_monitor(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # QEMU has ended; reading shows that
            self._monitor.send(message)

    def go(self) -> None:
        """Start a guest that waits."""
        self.send_to_monitor(CONTINUE)

    def call(self, command: str, *, deadline: process.Deadline, fds: Sequence[int] = (), **arguments: object) -> Any:
        """Give the monitor a command with descriptors, and return what it returns. Raises `CallError` if it fails or is late."""
        self._calls += 1
        name, message = calling(command, arguments, self._calls)
        with contextlib.suppress(OSError):  # QEMU has ended; reading shows that
            socket.send_fds(self._monitor, [message], list(fds))
        while name not in self.heard.replies:
            if deadline.passed:
                raise CallError(f"{command} took too long")
            data = self._read(deadline.remaining())
            if data is None:
                raise CallError(self.said().partition("\n")[0] or "QEMU ended")
            self._early += data
        reply = self.heard.replies.pop(name)
        if "error" in reply:
            raise CallError(str(reply["error"].get("desc", command)))
        return reply.get("return")

    def listen_to(self, selector: selectors.BaseSelector) -> None:
        """Register the console for reading on a selector."""
        selector.register(self._out, selectors.EVENT_READ)

    @property
    def patience(self) -> float | None:
        """Seconds after which to retry sending the queued keys; None if none are queued."""
        return 0.02 if self._unsent else None

    def exchange(self, timeout: float | None) -> bytes | None:
        """Send the queued keys and read the console, for at most `timeout` seconds. Return None if the console is closed."""
        if self._early:
            early = bytes(self._early)
            self._early.clear()
            return early
        return self._read(timeout)

    def _read(self, timeout: float | None) -> bytes | None:
        if bool(self._unsent) is not self._sending:
            self._sending = not self._sending
            if self._sending:
                self._selector.register(self._in, selectors.EVENT_WRITE)
            else:
                self._selector.unregister(self._in)
        data: bytes | None = b""
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._in:
                self._send()
            elif key.fileobj is self._monitor:
                self._listen()
            elif isinstance(key.fileobj, socket.socket):
                if not self.consoles.read(key.fileobj):
                    self._selector.unregister(key.fileobj)
            else:
                data = os.read(self._out.fileno(), 1 << 18) or None
        return data

    def _send(self) -> None:
        try:
            sent = os.write(self._in.fileno(), self._unsent)
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent.clear()  # QEMU has ended: reading shows that
            return
        del self._unsent[:sent]

    def _listen(self) -> None:
        """Process everything that the monitor has sent so far."""
        try:
            while data := self._monitor.recv(1 << 16):
                if answer := self.heard.hear(data):
                    self._monitor.send(answer)
            self._forget_monitor()
        except BlockingIOError:
            pass
        except OSError:
            self._forget_monitor()

    def _forget_monitor(self) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(self._monitor)

    def wait(self) -> str:
        """Wait for QEMU's end after its console closed; return a description of the end."""
        try:
            status = self._child.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            return "its console closed while it went on"
        finally:
            self._listen()
        why = f": {self.heard.why_ended}" if self.heard.why_ended else ""
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}{why}"

    @property
    def last_word(self) -> str:
        """Word of the guest that QEMU's end is, see `ending.word_of`."""
        return word_of(self._child.poll(), self.heard, semihosting=self._semihosting)

    @property
    def failed(self) -> bool:
        return self._child.poll() not in (None, 0)

    @property
    def triple_fault(self) -> bool:
        self._log.seek(0)
        return b"Triple fault" in self._log.read(1 << 20)

    @property
    def triple_fault_now(self) -> bool:
        """Tell whether a triple fault is the cause of the reset at which the machine stands."""
        self._log.seek(0)
        return b"Triple fault" in self._log.read(1 << 24).rpartition(b"CPU Reset")[2]

    @property
    def temporary_folder(self) -> str:
        """Folder of QEMU's temporary files with the guest's writes. The files are unlinked; `/proc` still shows their path."""
        for link in Path(f"/proc/{self.pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                target = link.readlink()
                if target.name.startswith("vl.") and target.name.endswith(" (deleted)"):
                    return str(target.parent)
        return process.environment().get("TMPDIR") or _TEMPORARY

    def said(self) -> str:
        """Return QEMU's messages on its standard error (at most 64 KiB)."""
        self._stderr.seek(0)
        return self._stderr.read(65536).decode(errors="replace").strip()


def _default_console(options: Sequence[Option]) -> bool:
    """Tell whether console and monitor share QEMU's standard streams by default. Our own monitor would switch that off."""
    kinds = {option.kind for option in options}
    return "nographic" in kinds and not kinds & {"serial", "monitor", "mon", "qmp", "qmp-pretty"}


def _is_muxed(options: Sequence[Option]) -> bool:
    named = any(option.kind == "serial" and (option.value or "").startswith("mon:") for option in options)
    by_name = any(option.kind == "chardev" and qemu_options.is_on(option.opts().get("mux")) for option in options)
    return named or by_name or _default_console(options)


def _monitor_on(descriptor: int) -> list[str]:
    """Return the arguments of our monitor. The same as `-mon`, which is deprecated since QEMU 11.1 and prints a warning."""
    return ["-chardev", f"socket,id={_MONITOR},fd={descriptor}", "-qmp", f"chardev:{_MONITOR}"]


@contextmanager
def start(
    arch: Arch,
    argv: Sequence[str],
    *,
    keep_open: Sequence[int] = (),
    cwd: Path | None = None,
    alone: Path | None = None,
    more: Sequence[str] = (),
    runs: bool = True,
    consoles: Sequence[str] = (),
) -> Iterator[Machine]:
    """Start QEMU. At the end of the `with`, its process is gone and its files are removed.

    `keep_open`: descriptors that QEMU inherits, such as those of locks that live as long as it does. `cwd`: folder of relative
    files in its arguments. `alone`: the workspace of a stranger: confine QEMU to its own files, see `qcase.vm.sandbox`; so is a
    QEMU with semihosting, by which its guest opens files. `more`: further arguments, of qcase. `runs`: see `Machine`.
    `consoles`: names of further consoles.
    """
    try:
        options = qemu_options.split(argv[1:])
    except ArgumentError:  # a program that replaces QEMU has its own options
        options = []
    kinds = {option.kind for option in options}
    if alone is None and kinds.intersection(SEMIHOSTING):
        alone = cwd or Path("/")
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile())
        folder = None if alone is None else stack.enter_context(_own_folder())
        log = stack.enter_context(tempfile.TemporaryFile(dir=folder))
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        others = stack.enter_context(Consoles(consoles))
        with theirs:
            # Stopped until the monitor has been greeted: before that, QEMU does not report events of the guest such as a reset.
            extra = [] if "S" in kinds else ["-S"]
            extra += ["-serial", "mon:stdio"] if _default_console(options) else []
            extra += _monitor_on(theirs.fileno())
            if arch.spec.tells_resets and not kinds & {"d", "D"}:
                extra += ["-d", "cpu_reset", "-D", f"/dev/fd/{log.fileno()}"]
            command = [*others.arguments(argv), *extra, *more]
            if alone is not None and folder is not None:
                seccomp = ["-sandbox", sandbox.SECCOMP] if sandbox.has_seccomp(arch) else []
                command = sandbox.confined([*command, *seccomp], folder, alone)
            child = stack.enter_context(
                process.spawn(
                    command,
                    env=None if folder is None else {"TMPDIR": str(folder)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    cwd=cwd,
                    pass_fds=(*keep_open, *others.theirs, theirs.fileno(), log.fileno()),
                    grace=_GRACE,
                    hint=arch.install_hint,
                )
            )
        others.started()
        machine = Machine(child, errors, ours, log, options, runs=runs, consoles=others)
        stack.callback(machine.close)
        yield machine


@contextmanager
def _own_folder() -> Iterator[Path]:
    """Make a folder for the files that one QEMU writes, and remove it at the end, also if qcase is killed."""
    parent = process.environment().get("TMPDIR") or _TEMPORARY
    with process.temporary_folder("qcase-machine-", Path(parent) if Path(parent).is_dir() else None) as folder:
        yield folder


_HINTS = {
    "cannot be confined": (
        'trust = "sandboxed", and semihosting, take Landlock: Linux 5.13 or later, with landlock among its security modules, '
        "and no container that forbids it"
    ),
    "Could not set up host forwarding rule": (
        "that port of this machine is taken, perhaps by another run of the same case; what runs at once needs ports of its own"
    ),
    "CPU model 'host'": "the processor of the host is for KVM alone; name one that QEMU emulates",
}


def _hint(said: str) -> str:
    """Return the hint for the message of a QEMU that refuses to run; empty for an unknown message."""
    return next((hint for sign, hint in _HINTS.items() if sign in said), "")


def converse(machine: Machine, judge: Judge | StepsJudge, log: ConsoleLog, on_data: Callable[[], None]) -> str:
    """Pass data between guest and judge until there is a ruling. Return QEMU's own messages if it ended, else an empty string.

    Raw bytes go to the log first. Raises `InfraError` if QEMU refused to run the guest, or does not let it go on.
    """
    silent = True
    while True:
        now = time.monotonic()
        if judge.steps is not None:
            machine.heard.by_hand |= judge.steps.asks_monitor
            machine.heard.revives = judge.steps.stops_at_reset
            for answer in machine.heard.take_answers():
                judge.steps.answered(answer, now)
        if judge.steps is not None and machine.heard.downs:
            _tell_of_downs(machine, judge.steps, log)
        for _ in range(machine.heard.take_resets()):
            judge.reset(now)
        judge.tick(now)
        if judge.ruling is not None:
            return ""
        for request in () if judge.steps is None else judge.steps.requests():
            machine.ask(request)
        if machine.heard.standstill is not None:
            _stand_still(machine, machine.heard.standstill, judge, log)
            return machine.said()
        machine.type(judge.input())
        if judge.steps is not None:
            for name in judge.steps.consoles:
                machine.consoles.type(name, judge.steps.input(name))
        wake = judge.next_wake()
        data = machine.exchange(None if wake is None else max(0.0, wake - now))
        _hear_others(machine.consoles.heard(), judge, log)
        if data is None:
            _hear_others(machine.consoles.rest(), judge, log)
            return _ended(machine, judge, silent)
        if data:
            silent = False
            log.write(data)
            judge.feed(data, time.monotonic())
        on_data()


def _hear_others(heard: Iterator[tuple[str, bytes]], judge: Judge | StepsJudge, log: ConsoleLog) -> None:
    """Tell the judge what came on further consoles."""
    for name, data in heard:
        log.others[name].write(data)
        if judge.steps is not None:
            judge.steps.feed(data, time.monotonic(), name)


def _tell_of_downs(machine: Machine, judge: StepsJudge, log: ConsoleLog) -> None:
    """Tell the judge that the machine has reset or powered off, behind all that the guest has written. Start it again."""
    fault = "triple fault" if machine.triple_fault_now else ""
    for _ in range(_READS):
        if data := machine.exchange(0.0):
            log.write(data)
            judge.feed(data, time.monotonic())
    _hear_others(machine.consoles.rest(), judge, log)
    for reason in machine.heard.take_downs():
        if reason in RESET_REASONS:
            judge.reset(time.monotonic(), fault=fault, by_guest=reason == "guest-reset")
        else:
            judge.powered_off(time.monotonic(), fault=fault)
        if judge.ruling is None:
            machine.send_to_monitor(REVIVE)


def _ended(machine: Machine, judge: Judge | StepsJudge, silent: bool) -> str:
    """Rule on a QEMU that ended by itself; return its messages. Raises `InfraError` if no guest started or the host failed."""
    how = machine.wait()
    said, heard = machine.said(), machine.heard
    if machine.failed and not heard.started and silent:
        raise InfraError(f"QEMU did not start the guest ({how}): {said or 'it said nothing'}", hint=_hint(said))
    if heard.standstill is not None and heard.standstill.whose == "host":
        raise _infra(machine, heard.standstill)
    reset = heard.shutdown == "guest-reset"
    fault = "triple fault" if reset and machine.triple_fault else ""
    how = f"{how}; it said: {said.splitlines()[-1]}" if said else how
    if judge.steps is not None:
        # Some devices end QEMU without a word of its monitor, such as that of riscv64's `virt` (seen with 7.2).
        off = heard.shutdown in ("guest-shutdown", "") and not machine.failed
        judge.steps.ended(time.monotonic(), how, reset=reset, fault=fault, off=off)
    else:
        judge.ended(time.monotonic(), how, reset=reset, fault=fault, word=machine.last_word)
    _tell_of_panic(heard.standstill, judge)
    return said


def _stand_still(machine: Machine, standstill: Standstill, judge: Judge | StepsJudge, log: ConsoleLog) -> None:
    """Rule on a machine that stands still. Raises `InfraError` if the host is at fault."""
    while data := machine.exchange(0.0):  # output of the guest before the standstill
        log.write(data)
        judge.feed(data, time.monotonic())
    if standstill.whose == "host":
        raise _infra(machine, standstill)
    judge.ended(time.monotonic(), standstill.why)
    _tell_of_panic(standstill, judge)
    if judge.ruling is not None and judge.ruling.verdict is Verdict.EXITED:
        judge.ruling = replace(judge.ruling, reason=f"the machine stands still: {standstill.why}")


def _tell_of_panic(standstill: Standstill | None, judge: Judge | StepsJudge) -> None:
    """Change a pass or an early exit to a panic if the guest reported a panic to its machine."""
    if standstill is None or standstill.whose != "panic" or judge.ruling is None:
        return
    if judge.ruling.good or judge.ruling.by_tests or judge.ruling.verdict is Verdict.EXITED:
        judge.ruling = replace(judge.ruling, verdict=Verdict.PANIC, reason=standstill.why, pattern=None, by_tests=False)


def _infra(machine: Machine, standstill: Standstill) -> InfraError:
    if not standstill.full:
        return InfraError(standstill.why)
    folder = machine.temporary_folder
    hint = "free some there, or set TMPDIR to a folder with more; `qcase run -j 1` needs least at once"
    return InfraError(f"{standstill.why}: {folder} is full", hint=hint)
