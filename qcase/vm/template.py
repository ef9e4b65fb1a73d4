"""A template: the state of a machine at its first read of its root disk, and machines that go on from there.

    make     QEMU, memory in a file ─► first read fails, the machine stops, the read waits in its device ─► state, console
    branch   QEMU, memory as a private copy of that file ─► state ─► `go`: the read is made again, of the case's own disk

Memory and state lie in no folder: the memory is an anonymous file, which is sealed against writes when the template's QEMU has
ended; the state is in our own memory. Both go away with the processes that have them open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcase.arch import Arch
from qcase.config import case_file
from qcase.host.process import Deadline
from qcase.vm import branching
from qcase.vm.machine import CallError, Machine, start

_PATIENCE = 20.0  # seconds for QEMU to save or load a state, on a busy machine
_STATE_LIMIT = 256 << 20
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_IGNORE_SHARED = [{"capability": "x-ignore-shared", "state": True}]


class NoTemplateError(Exception):
    """Raised if a machine has no template, or if its template cannot be used. The text is the reason."""


@dataclass(frozen=True)
class Start:
    """Arguments for the start of a QEMU, see `qcase.vm.machine.start`."""

    arch: Arch
    argv: tuple[str, ...]
    keep_open: tuple[int, ...] = ()
    cwd: Path | None = None
    alone: Path | None = None


@dataclass(frozen=True)
class Template:
    """State of a machine. `memory`: descriptor of its memory. `console`: what it wrote, each with the seconds since its start.

    `seconds`: from the start of QEMU to the first read.
    """

    memory: int
    state: bytes
    console: tuple[tuple[float, bytes], ...]
    seconds: float

    @property
    def size(self) -> int:
        """Bytes of the host's memory that it takes."""
        return os.fstat(self.memory).st_blocks * 512 + len(self.state)

    def close(self) -> None:
        os.close(self.memory)


def make(how: Start, image_size: int, prompts: Collection[str], limit: Callable[[], float]) -> Template:
    """Boot a machine to its first read of its root disk. `prompts`: of its cases. `limit`: seconds that this may take, asked
    again and again.

    Raises `NoTemplateError` if it does not come to that, or cannot be saved there.
    """
    argv = branching.with_unreadable_disk(how.argv, image_size)
    memory = os.memfd_create("qcase-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, case_file.memory(how.argv))
        more = branching.memory_arguments(how.argv, memory, shared=True)
        started = time.monotonic()
        keep_open = (*how.keep_open, memory)
        with start(how.arch, argv, keep_open=keep_open, cwd=how.cwd, alone=how.alone, more=more) as machine:
            console, seconds = _to_first_read(machine, started, prompts, limit)
            state = _saved(machine)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except CallError as error:
        os.close(memory)
        raise NoTemplateError(f"its state cannot be saved: {error}") from None
    except BaseException:
        os.close(memory)
        raise
    return Template(memory, state, console, seconds)


def _to_first_read(
    machine: Machine, started: float, prompts: Collection[str], limit: Callable[[], float]
) -> tuple[tuple[tuple[float, bytes], ...], float]:
    console: list[tuple[float, bytes]] = []
    written = bytearray()
    signs = [prompt.encode() for prompt in prompts]
    heard = machine.heard
    while heard.disk_error is None:
        if (allowed := limit()) < time.monotonic() - started:
            raise NoTemplateError(f"the guest did not read its disk within {allowed:.3g} s")
        data = machine.exchange(0.1)
        if data is None:
            said = machine.said().splitlines()[-1:]
            raise NoTemplateError(": ".join(["the machine ended before the guest read its disk", *said]))
        if data:
            console.append((time.monotonic() - started, data))
            written += data
            if any(sign in written[-len(data) - len(sign) :] for sign in signs):
                raise NoTemplateError("the guest shows its prompt before it reads its disk")
        if heard.take_resets():
            raise NoTemplateError("the guest resets its machine before it reads its disk")
        if heard.disk_error is None and heard.standstill is not None:
            raise NoTemplateError(f"the machine stands still before the guest reads its disk: {heard.standstill.why}")
    seconds = time.monotonic() - started
    if heard.disk_error.get("action") != "stop":
        raise NoTemplateError("its root disk does not stop the machine at an error")
    if heard.disk_error.get("operation") != "read":
        raise NoTemplateError("the guest writes to its disk before it reads it")
    while data := machine.exchange(0.0):
        console.append((seconds, data))
    return tuple(console), seconds


def _saved(machine: Machine) -> bytes:
    """Return the state of a machine that stands at its first read, without its memory. Raises `CallError`, `NoTemplateError`."""
    deadline = Deadline.after(_PATIENCE)
    while (status := machine.call("query-status", deadline=deadline)["status"]) != "io-error":
        if status != "running":
            raise NoTemplateError(f"the machine does not stand at its first read, its state is {status}")
        time.sleep(0.002)
    for disk in machine.call("query-blockstats", deadline=deadline):
        counts = disk["stats"]
        if counts["wr_operations"] or counts.get("unmap_operations"):
            raise NoTemplateError("the guest writes to a disk before it reads its root disk")
    machine.call("migrate-set-capabilities", deadline=deadline, capabilities=_IGNORE_SHARED)
    out, into = os.pipe()
    state = bytearray()
    reader = threading.Thread(target=_read_all, args=(out, state), daemon=True)
    reader.start()
    try:
        machine.call("getfd", deadline=deadline, fds=(into,), fdname="state")
    finally:
        os.close(into)  # QEMU has its own by now, or the reader ends
    machine.call("migrate", deadline=deadline, uri="fd:state")
    _wait_for_migration(machine, deadline)
    reader.join(deadline.remaining())
    if reader.is_alive() or len(state) > _STATE_LIMIT:
        raise NoTemplateError("its state does not end")
    return bytes(state)


def _read_all(descriptor: int, into: bytearray) -> None:
    with open(descriptor, "rb", buffering=0) as stream:
        while len(into) <= _STATE_LIMIT and (data := stream.read(1 << 18)):
            into += data


def _write_all(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(OSError), open(descriptor, "wb", buffering=0) as stream:
        left = memoryview(data)
        while left:
            left = left[stream.write(left) :]


def _wait_for_migration(machine: Machine, deadline: Deadline) -> None:
    while True:
        found: dict[str, Any] = machine.call("query-migrate", deadline=deadline)
        if found.get("status") == "completed":
            return
        if found.get("status") in ("failed", "cancelled"):
            raise CallError(found.get("error-desc") or "the migration failed")
        time.sleep(0.002)


@contextmanager
def branch(how: Start, template: Template) -> Iterator[Machine]:
    """Start QEMU with the state of a template. The guest waits for `Machine.go`. Raises `NoTemplateError` if that fails."""
    with ExitStack() as stack:
        out, into = os.pipe()
        writer = threading.Thread(target=_write_all, args=(into, template.state), daemon=True)  # ends with QEMU at the latest
        try:
            more = [*branching.memory_arguments(how.argv, template.memory, shared=False), "-incoming", "defer"]
            keep_open = (*how.keep_open, template.memory, out)
            machine = stack.enter_context(
                start(how.arch, how.argv, keep_open=keep_open, cwd=how.cwd, alone=how.alone, more=more, runs=False)
            )
        except BaseException:
            os.close(into)
            raise
        finally:
            os.close(out)
        writer.start()
        deadline = Deadline.after(_PATIENCE)
        try:
            machine.call("migrate-set-capabilities", deadline=deadline, capabilities=_IGNORE_SHARED)
            machine.call("migrate-incoming", deadline=deadline, uri=f"fd:{out}")
            _wait_for_migration(machine, deadline)
        except CallError as error:
            raise NoTemplateError(f"its template cannot be loaded: {error}") from None
        yield machine
