"""A case's image by hand: what would be booted for a case, with its console on the terminal.

Keys go to the guest as they are, Ctrl-C too; Ctrl-A X ends QEMU, as QEMU has it. The terminal is raw meanwhile. It is as it was
afterwards, whatever happens: at the end, at an exception, at TERM and HUP, and by the guardian if qcase is killed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import selectors
import shlex
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from qcase.arch import Arch
from qcase.errors import InfraError, UsageError
from qcase.host import process
from qcase.host.trees import Tree
from qcase.prepare.prepare_case import prepare_case_assets
from qcase.prepare.run_folders import case_asset_layout
from qcase.prepare.session import Session
from qcase.run import boot_plan
from qcase.run.terminal_modes import TerminalModes
from qcase.suite.cases import BrokenCase, Case
from qcase.vm import arguments
from qcase.vm.console_log import ConsoleLog
from qcase.vm.machine import Machine, start


@dataclass(frozen=True)
class ShellOptions:
    """`gdb`: wait for a debugger. `keep`: leave what was made for this run."""

    gdb: bool = False
    keep: bool = False


def shell(case: Case | BrokenCase, session: Session, options: ShellOptions) -> int:
    """Boot a case's image with its console on the terminal, until QEMU ends. Returns the exit code."""
    if isinstance(case, BrokenCase):
        raise case.error
    logs = boot_plan.logs_of(case, session)
    layout = case_asset_layout(session.workspace.root, session.target, case.display_name)
    with ExitStack() as stack:
        prepared = stack.enter_context(prepare_case_assets(case, layout, session, logs.build))
        spec = replace(boot_plan.machine_spec(case, prepared, session), reset=True, stays=False)
        spec = replace(spec, forwards=stack.enter_context(boot_plan.services_running(case, session, logs)))
        argv = arguments.arguments(spec)
        extra: list[str] = []
        if options.gdb:
            folder = stack.enter_context(process.temporary_folder("qcase-"))  # a socket's path must be short
            socket = folder / "gdb"
            extra = ["-S", "-chardev", f"socket,id=qcase-gdb,path={socket},server=on,wait=off", "-gdb", "chardev:qcase-gdb"]
            _say(f"waiting for a debugger: {shlex.join(attach_line(case.arch, prepared.kernel.path, socket))}")
        if sys.stdin.isatty():
            _say("Ctrl-A X ends QEMU")
        with logs.fresh("qemu.sh") as file:
            file.write(arguments.pasteable(argv).encode() + b"\n")
        with logs.fresh("console.log") as file:
            log = ConsoleLog(file)
            alone = None if options.gdb else spec.stranger  # a debugger's socket is no file of QEMU's
            with start(
                case.arch, [*argv, *extra], keep_open=prepared.keep_open, cwd=session.workspace.root, alone=alone
            ) as machine:
                how = _connect(machine, log)
            log.close()
        if options.keep:
            kept = _keep(layout.runs_dir, logs, argv)
            _say(f"kept: {session.workspace.relative(kept)}")
        _say(f"QEMU ended, {how}")
        return 0


def attach_line(arch: Arch, kernel: Path, socket: Path) -> list[str]:
    """Return the command that attaches a debugger to QEMU."""
    program = "gdb" if platform.machine() == arch.value else "gdb-multiarch"
    return [program, "-ex", f"target remote {socket}", str(kernel)]


def _say(line: str) -> None:
    print(f"qcase: {line}", file=sys.stderr, flush=True)


def _connect(machine: Machine, log: ConsoleLog) -> str:
    """Hand on what is typed and what is printed until QEMU ends. Returns how it ended."""
    source, sink = sys.stdin.fileno(), sys.stdout.fileno()
    # Not epoll, which takes neither files nor /dev/null.
    with raw_terminal(source), modes_restored(sink) as modes, selectors.PollSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        machine.listen_to(selector)
        typing = True
        while True:
            for key, _ in selector.select(machine.patience):
                if key.fd == source:
                    data = os.read(source, 1 << 12)
                    if data:
                        machine.send(data)
                    elif typing:  # a pipe that has ended: the guest goes on
                        typing = False
                        selector.unregister(source)
            said = machine.exchange(0.0)
            if said is None:
                break
            if said:
                log.write(said)
                modes.write(said)
                _write(sink, said)
    how = machine.wait()
    if machine.failed:
        raise InfraError(f"QEMU ended, {how}: {machine.said() or 'it said nothing'}")
    return how


def _write(sink: int, data: bytes) -> None:
    while data:
        data = data[os.write(sink, data) :]


@contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Set a terminal to deliver each key at once, unchanged. Does nothing for a file that is no terminal."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    process.tell_guardian("terminal", f"{os.ttyname(fd)} {pack_attributes(before)}")
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        process.tell_guardian("terminal-restored")


@contextmanager
def modes_restored(fd: int) -> Iterator[TerminalModes]:
    """Take back at the end what was changed of a terminal by what was written to it. Does nothing with what is no terminal."""
    modes = TerminalModes()
    try:
        yield modes
    finally:
        if os.isatty(fd) and (back := modes.restoration()):
            with contextlib.suppress(OSError):  # it is gone
                _write(fd, back)


def pack_attributes(attributes: Sequence[object]) -> str:
    """Encode a terminal's attributes in one word, as the guardian takes them."""
    *numbers, characters = attributes
    assert isinstance(characters, list)
    codes = [c if isinstance(c, int) else c[0] for c in characters]
    return ",".join(str(number) for number in [*numbers, *codes])


def _keep(runs_dir: Path, logs: boot_plan.Logs, argv: Sequence[str]) -> Path:
    """Move what was made for this run to where no sweep finds it, with a command that boots it from there."""
    kept = runs_dir.parent / "kept" / process.run_id()
    try:
        kept.mkdir(parents=True)
        words = list(argv)
        for folder in runs_dir.glob(f"{os.getpid()}-*"):
            if folder.is_dir():
                for path in folder.iterdir():
                    path.rename(kept / path.name)
                words = [word.replace(str(folder), str(kept)) for word in words]
        (kept / "qemu.sh").write_text(arguments.pasteable(words) + "\n", encoding="utf-8", errors="surrogateescape")
        with (logs.folder / "console.log").opened() as said:
            Tree(kept, "console.log").copy_in(said)
    except OSError as error:
        raise UsageError(f"cannot be kept: {error.strerror}", where=str(kept)) from None
    return kept
