"""QEMU: its argument list, which is computed, and its process, which is owned.

The order of the arguments is axbuild's (COMPAT, "qemu-<arch>.toml"): what the case's file says, what the root disk and the
network card need, `-snapshot`, the machine, the kernel. Everything in here but `Machine` is a pure function.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from qcase import process
from qcase.errors import InfraError
from qcase.model import Arch

if TYPE_CHECKING:
    from qcase.console import Judge

Network = Literal["restricted", "user", "none"]
Accel = Literal["tcg", "kvm"]

_DISK = "disk0"
_NET = "net0"
_ESP = "qcase-esp"
_DRIVE_PREFIX = f"id={_DISK},if=none,format=raw,file="
_MONITOR = "qcase-monitor"
CONSOLE_LIMIT = 256 << 20  # bytes of a console that are kept, beside its end
_END_KEPT = 1 << 20
_GRACE = 0.3  # seconds for QEMU to end; on a busy machine it takes long, and it has nothing to put away
_LAST_WORDS = 2.0  # seconds for QEMU to end after it closed its console

INSTALL_HINT = {
    Arch.X86_64: "Debian: apt-get install qemu-system-x86",
    Arch.AARCH64: "Debian: apt-get install qemu-system-arm",
    Arch.RISCV64: "Debian: apt-get install qemu-system-riscv64",
    Arch.LOONGARCH64: "Debian: apt-get install qemu-system-misc",
}


@dataclass(frozen=True)
class Spec:
    """What a machine is made of. `args` are those of the case's file, placeholders replaced."""

    arch: Arch
    args: tuple[str, ...]
    image: Path
    kernel: Path
    initrd: Path | None = None
    append: str = ""
    accel: Accel = "tcg"
    network: Network = "restricted"
    processors: int = 1
    reset: bool = False  # the guest may reset its machine; else that ends QEMU
    flash: tuple[Path, ...] = ()  # UEFI firmware: its code, and the template of its variables
    system_partition: Path | None = None  # what the firmware boots from; it starts the kernel, not QEMU


def arguments(spec: Spec) -> list[str]:
    """QEMU's whole command line."""
    args, append = _take_append(spec.args)
    args = _point_drive(args, spec.image)
    args = _limit_network(args, spec.network)
    if spec.accel == "kvm":
        args = _own_processor(args, spec.arch)
    patch: list[str] = []
    if not _names(args, "-device", ("virtio-blk-pci", "virtio-blk-device"), f"drive={_DISK}"):
        patch += ["-device", f"virtio-blk-pci,drive={_DISK}"]
    if not any(option == "-drive" and f"id={_DISK}" in value.split(",") for option, value in _pairs(args)):
        patch += ["-drive", f"{_DRIVE_PREFIX}{_quoted(spec.image)}"]
    has_card = _names(args, "-device", ("virtio-net-pci", "virtio-net-device"), f"netdev={_NET}")
    has_net = any(option == "-netdev" and f"id={_NET}" in value.split(",") for option, value in _pairs(args))
    if spec.network == "none" and not has_card and not has_net:
        patch += ["-nic", "none"]
    else:
        if not has_card:
            patch += ["-device", f"virtio-net-pci,netdev={_NET}"]
        if not has_net:
            patch += _limit_network(["-netdev", f"user,id={_NET}"], spec.network)
    if not any(a in ("-nographic", "-serial", "-display", "-chardev") for a in args):
        patch += ["-nographic"]
    if not names_accelerator(args):
        patch += ["-accel", _accelerator(spec)]
    if not spec.reset and not any(a in ("-no-reboot", "-action") for a in args):
        patch += ["-no-reboot"]
    for unit, path in enumerate(spec.flash):
        lock = ",readonly=on" if unit == 0 else ""
        patch += ["-drive", f"if=pflash,unit={unit},format=raw{lock},file={_quoted(path)}"]
    kernel = ["-kernel", str(spec.kernel)]
    if spec.system_partition is not None:
        patch += ["-drive", f"id={_ESP},if=none,format=raw,readonly=on,file={_quoted(spec.system_partition)}"]
        patch += ["-device", f"virtio-blk-pci,drive={_ESP},bootindex=0"]
        kernel = []
    if spec.initrd is not None:
        kernel += ["-initrd", str(spec.initrd)]
    whole = " ".join(part for part in (spec.append, append) if part)
    if whole:
        kernel += ["-append", whole]
    snapshot = [] if "-snapshot" in args else ["-snapshot"]
    machine = [] if any(a in ("-machine", "-M") for a in args) else ["-machine", spec.arch.machine]
    return [spec.arch.qemu, *args, *patch, *snapshot, *machine, *kernel]


def _accelerator(spec: Spec) -> str:
    """QEMU's `-accel`.

    x86 kernels patch their own code while they boot. With a host thread for each processor, TCG at times executes a half-patched
    instruction, which the kernel reports as "Oops: int3" (seen in 2 of 12 boots with four processors under QEMU 7.2, in none
    of 12 with one thread).
    """
    if spec.accel == "tcg" and spec.arch is Arch.X86_64 and spec.processors > 1:
        return "tcg,thread=single"
    return spec.accel


def accelerator(argv: Sequence[str]) -> str:
    """What a command line runs QEMU with: "tcg", "kvm", or another one that a case's file names."""
    named = ["kvm"] if "-enable-kvm" in argv else []
    for option, value in _pairs(argv):
        if option == "-accel":
            named.append(value.partition(",")[0])
        elif option in ("-machine", "-M") and (found := re.search(r"(?:^|,)accel=([a-z:]+)", value)):
            named.append(found[1])
    return named[0] if named else "tcg"


def _pairs(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(args, [*args[1:], ""], strict=False)


def _names(args: Sequence[str], option: str, drivers: Sequence[str], property_: str) -> bool:
    """Is there an `option` whose value begins with one of `drivers` and has `property_` among its comma-separated parts?"""
    for name, value in _pairs(args):
        parts = value.split(",")
        if name == option and parts[0] in drivers and property_ in parts[1:]:
            return True
    return False


def _quoted(path: Path) -> str:
    """QEMU reads commas as separators, so a comma in a path is doubled."""
    return str(path).replace(",", ",,")


def _point_drive(args: Sequence[str], image: Path) -> list[str]:
    """Point the drive of the root disk at the case's image, whatever file it named."""
    return [
        f"{_DRIVE_PREFIX}{_quoted(image)}{_options_behind_file(value)}"
        if option == "-drive" and value.startswith(_DRIVE_PREFIX)
        else value
        for option, value in zip(["", *args[:-1]], args, strict=False)
    ]


def _options_behind_file(value: str) -> str:
    """What follows the file in a drive's value, with its comma: a comma of the file's name is doubled.

    A drive's own `snapshot=off` would win over `-snapshot`, and the guest would write into the store, or into the base image. And
    a second `file=` would win over ours.
    """
    options = value[len(_DRIVE_PREFIX) :].replace(",,", "\0").split(",")[1:]
    kept = [option for option in options if option.partition("=")[0] not in ("snapshot", "file")]
    return "".join(f",{option}" for option in kept).replace("\0", ",,")


def _limit_network(args: Sequence[str], network: Network) -> list[str]:
    """Apply the network policy to each `-netdev user` that does not say `restrict` itself.

    `restricted`: the guest reaches nothing outside, forwarded ports still reach the guest. `none`: the card has no cable.
    """
    out = list(args)
    for i, (option, value) in enumerate(_pairs(args)):
        parts = value.split(",")
        if option != "-netdev" or parts[0] != "user":
            continue
        if network == "restricted" and not any(part.startswith("restrict=") for part in parts):
            out[i + 1] = f"{value},restrict=on"
        elif network == "none":
            name = next((part for part in parts if part.startswith("id=")), f"id={_NET}")
            out[i + 1] = f"hubport,{name},hubid=0"
    return out


def _own_processor(args: Sequence[str], arch: Arch) -> list[str]:
    """Under KVM an arm64 guest has the host's processor and no other, whatever the case's file names."""
    if arch is not Arch.AARCH64:
        return list(args)
    if "-cpu" not in args:
        return [*args, "-cpu", "host"]
    return ["host" if option == "-cpu" else value for option, value in zip(["", *args[:-1]], args, strict=False)]


def _take_append(args: Sequence[str]) -> tuple[list[str], str]:
    """The arguments without `-append`, and what it said: QEMU takes only the last one, and the guest has its own."""
    rest: list[str] = []
    said: list[str] = []
    following = iter(args)
    for arg in following:
        if arg == "-append":
            said.append(next(following, ""))
        else:
            rest.append(arg)
    return rest, " ".join(said)


def names_accelerator(args: Sequence[str]) -> bool:
    """Does a case say itself what it is to be run with?"""
    return any(a in ("-accel", "-enable-kvm") for a in args) or any(
        o in ("-machine", "-M") and re.search(r"(?:^|,)accel=", v) for o, v in _pairs(args)
    )


def version(arch: Arch) -> tuple[int, int]:
    """Of the QEMU on this machine. Raises `InfraError` where there is none, or one that does not say."""
    said = process.run([arch.qemu, "--version"], timeout=30.0, hint=INSTALL_HINT[arch]).output
    found = re.search(r"version (\d+)\.(\d+)", said)
    if found is None:
        raise InfraError("does not say its version", where=f"{arch.qemu} --version")
    return int(found[1]), int(found[2])


def pasteable(argv: Sequence[str]) -> str:
    """The command line as a shell takes it."""
    return shlex.join(argv)


# --- the process --------------------------------------------------------------------------------------------------------


class Machine:
    """A running QEMU, its console on pipes. `stderr` holds what QEMU itself said, apart from the guest.

    Its monitor (QMP) is on a socket that has no name. It is only listened to: it says that QEMU took its arguments, that the
    guest reset its machine, and why QEMU ended. `log` is where QEMU writes of a triple fault.
    """

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        stderr: IO[bytes],
        monitor: socket.socket,
        log: IO[bytes],
        *,
        muxed: bool,
        runs: bool,
    ) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._child = child
        self._in = child.stdin
        self._out = child.stdout
        self._stderr = stderr
        self._log = log
        self._muxed = muxed
        self._monitor = monitor
        self._heard = bytearray()
        self._selector = selectors.DefaultSelector()
        self._sending = False
        for stream in (self._in, self._out):
            os.set_blocking(stream.fileno(), False)
        monitor.setblocking(False)
        self._selector.register(self._out, selectors.EVENT_READ)
        self._selector.register(monitor, selectors.EVENT_READ)
        self._unsent = bytearray()
        self.started = False  # QEMU took its arguments, and runs the guest
        self.shutdown = ""  # QEMU's word for why it ends, as `guest-reset`
        self._resets = 0
        with contextlib.suppress(OSError):  # it is gone already; reading tells
            monitor.send(b'{"execute": "qmp_capabilities"}\n' + b'{"execute": "cont"}\n' * runs)

    def close(self) -> None:
        self._selector.close()

    @property
    def pid(self) -> int:
        return self._child.pid

    def type(self, data: bytes) -> None:
        """Queue keys for the guest. QEMU's multiplexer, if there is one, takes Ctrl-A as its own; twice is one for the guest."""
        self._unsent += data.replace(b"\x01", b"\x01\x01") if self._muxed else data

    def send(self, data: bytes) -> None:
        """Queue keys as a person types them: QEMU's multiplexer takes its own."""
        self._unsent += data

    def listen_to(self, selector: selectors.BaseSelector) -> None:
        """Have a selector wake up when the console has something."""
        selector.register(self._out, selectors.EVENT_READ)

    @property
    def patience(self) -> float | None:
        """Seconds after which what is still to be sent should be tried again; None: there is nothing."""
        return 0.02 if self._unsent else None

    def exchange(self, timeout: float | None) -> bytes | None:
        """Send what is queued and read what comes, for at most `timeout` seconds. None: the console is closed."""
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
            else:
                data = os.read(self._out.fileno(), 1 << 18) or None
        return data

    def _send(self) -> None:
        try:
            sent = os.write(self._in.fileno(), self._unsent)
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent.clear()  # gone: reading tells
            return
        del self._unsent[:sent]

    def _listen(self) -> None:
        """Take what the monitor says, up to what is there by now."""
        try:
            while data := self._monitor.recv(1 << 16):
                self._heard += data
            self._forget_monitor()
        except BlockingIOError:
            pass
        except OSError:
            self._forget_monitor()
        *lines, rest = self._heard.split(b"\n")
        self._heard = bytearray(rest)
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                continue
            self.started = self.started or "return" in said
            if said.get("event") == "RESET":
                self._resets += bool(said["data"].get("guest"))
            elif said.get("event") == "SHUTDOWN":
                self.shutdown = str(said["data"].get("reason", ""))

    def _forget_monitor(self) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(self._monitor)

    def take_resets(self) -> int:
        """How often the guest reset its machine since the last call."""
        resets, self._resets = self._resets, 0
        return resets

    def wait(self) -> str:
        """How QEMU ended, once its console is closed."""
        try:
            status = self._child.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            return "its console closed while it went on"
        finally:
            self._listen()
        why = {"guest-shutdown": ": the guest powered off", "guest-reset": ": the guest reset its machine"}.get(self.shutdown, "")
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}{why}"

    @property
    def failed(self) -> bool:
        return self._child.poll() not in (None, 0)

    @property
    def triple_fault(self) -> bool:
        self._log.seek(0)
        return b"Triple fault" in self._log.read(1 << 20)

    def said(self) -> str:
        """What QEMU itself wrote to its standard error."""
        self._stderr.seek(0)
        return self._stderr.read(65536).decode(errors="replace").strip()


def _default_console(argv: Sequence[str]) -> bool:
    """Whether console and monitor share QEMU's standard streams by default; a monitor of ours would take that away."""
    return "-nographic" in argv and not any(a in ("-serial", "-monitor", "-mon", "-qmp", "-qmp-pretty") for a in argv)


def _is_muxed(argv: Sequence[str]) -> bool:
    named = any(o == "-serial" and v.startswith("mon:") for o, v in _pairs(argv))
    return named or _default_console(argv) or any(o == "-chardev" and "mux=on" in v.split(",") for o, v in _pairs(argv))


@contextmanager
def start(arch: Arch, argv: Sequence[str], *, keep_open: Sequence[int] = ()) -> Iterator[Machine]:
    """Start QEMU. Nothing of it is left at the end of the `with`. `keep_open`: locks that live as long as QEMU does."""
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile())
        log = stack.enter_context(tempfile.TemporaryFile())
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        with theirs:
            # Held until the monitor has been greeted: what a guest does before that, a reset for one, it does not tell.
            extra = ["-S"] if "-S" not in argv else []
            extra += ["-serial", "mon:stdio"] if _default_console(argv) else []
            # What `-mon` makes, too; since 11.1 that is deprecated, and says so.
            extra += ["-chardev", f"socket,id={_MONITOR},fd={theirs.fileno()}", "-qmp", f"chardev:{_MONITOR}"]
            if arch is Arch.X86_64 and not any(a in ("-d", "-D") for a in argv):
                extra += ["-d", "cpu_reset", "-D", f"/dev/fd/{log.fileno()}"]
            child = stack.enter_context(
                process.spawn(
                    [*argv, *extra],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    pass_fds=(*keep_open, theirs.fileno(), log.fileno()),
                    grace=_GRACE,
                    hint=INSTALL_HINT[arch],
                )
            )
        machine = Machine(child, errors, ours, log, muxed=_is_muxed(argv), runs="-S" not in argv)
        stack.callback(machine.close)
        yield machine


class ConsoleLog:
    """The console as it came, in a file: raw bytes, first of all. A console that never stops must not fill the disk."""

    def __init__(self, file: IO[bytes], limit: int = CONSOLE_LIMIT) -> None:
        self._file = file
        self._left = limit
        self._end = bytearray()
        self.cut = 0  # bytes that are not kept

    def write(self, data: bytes) -> None:
        if self._left > 0:
            self._file.write(data[: self._left])
        rest = data[max(self._left, 0) :]
        self._left -= len(data)
        if rest:
            self._end += rest
            if len(self._end) > 2 * _END_KEPT:
                self.cut += len(self._end) - _END_KEPT
                del self._end[:-_END_KEPT]

    def close(self) -> None:
        """Write what the console ended with, where not all of it was kept."""
        if self.cut:
            self._file.write(f"\n[qcase: {self.cut} bytes are left out here]\n".encode())
        self._file.write(self._end)
        self._end.clear()


_HINTS = {
    "Could not set up host forwarding rule": (
        "that port of this machine is taken, perhaps by another run of the same case; what runs at once needs ports of its own"
    ),
    "CPU model 'host'": "the processor of the host is for KVM alone; name one that QEMU emulates",
}


def _hint(said: str) -> str:
    """What to do about a QEMU that refuses to run."""
    return next((hint for sign, hint in _HINTS.items() if sign in said), "")


def converse(machine: Machine, judge: Judge, log: ConsoleLog, on_data: Callable[[], None]) -> str:
    """Let guest and judge talk until there is a ruling. Returns what QEMU itself said, if it ended.

    Raw bytes go to the log first. Raises `InfraError` if QEMU refused to run the guest.
    """
    silent = True
    while True:
        now = time.monotonic()
        for _ in range(machine.take_resets()):
            judge.reset(now)
        judge.tick(now)
        if judge.ruling is not None:
            return ""
        machine.type(judge.input())
        wake = judge.next_wake()
        data = machine.exchange(None if wake is None else max(0.0, wake - now))
        if data is None:
            how = machine.wait()
            said = machine.said()
            if machine.failed and not machine.started and silent:
                raise InfraError(f"QEMU did not start the guest ({how}): {said or 'it said nothing'}", hint=_hint(said))
            fault = "triple fault" if machine.shutdown == "guest-reset" and machine.triple_fault else ""
            how = f"{how}; it said: {said.splitlines()[-1]}" if said else how
            judge.ended(time.monotonic(), how, reset=machine.shutdown == "guest-reset", fault=fault)
            return said
        if data:
            silent = False
            log.write(data)
            judge.feed(data, time.monotonic())
        on_data()
