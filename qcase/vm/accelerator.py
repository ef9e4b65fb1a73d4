"""Choice of QEMU's accelerator. TCG is the same everywhere; KVM is used only after a test boot.

A `/dev/kvm` that opens, and that even runs the firmware, can still hang a Linux guest (seen under nested virtualisation), and a
processor that the host does not have makes QEMU abort. So qcase uses KVM only after it has booted the very kernel to its prompt,
within `LIMIT` seconds. The result is stored, per QEMU, kernel and host, in

    <memory>/accel/<key>.json     {"why": "" or the reason against KVM, "at": time of the test}

A refusal is valid for a week: somebody may have repaired the machine in a way that no file shows.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from qcase import parsing
from qcase.arch import Arch
from qcase.errors import InfraError
from qcase.events import AccelChosen, Emit
from qcase.host import file_state
from qcase.host.files import write_aside
from qcase.vm import arguments
from qcase.vm.arguments import MachineSpec

PROOF_FORMAT = 1
LIMIT = 8.0  # seconds for a boot to the prompt; a real machine with KVM takes one or two
REFUSED = 7 * 86_400.0  # seconds for which a refusal is valid
DEVICE = Path("/dev/kvm")


@dataclass(frozen=True)
class Proof:
    """Result of a test of KVM. `why`: the reason why KVM cannot be used; empty if it can. `tried`: tested just now."""

    why: str
    tried: bool = False

    @property
    def works(self) -> bool:
        return not self.why


def obstacle(arch: Arch, device: Path = DEVICE, host: str | None = None) -> str:
    """Return the reason why a test of KVM would be pointless; empty if there is none."""
    host = host or platform.machine()
    if host != arch.spec.kvm_host:
        return f"KVM runs guests of the host's own architecture, {host}, and not {arch}"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{device} cannot be opened: {error.strerror}"
    return ""


class AcceleratorChoice:
    """Chooses the accelerator of a run's machines, as configured: "tcg", "kvm" or "auto". KVM is tested once per kernel."""

    def __init__(self, asked: str, emit: Emit) -> None:
        self.asked = asked
        self._emit = emit
        self._lock = threading.Lock()
        self._proofs: dict[str, Proof] = {}

    def choose(self, kernel_sha256: str, test: Callable[[], Proof | None]) -> arguments.Accel:
        """Return the accelerator for a machine with this kernel. `test` tests KVM; it returns None if no test is possible.

        Raises `InfraError` if the configuration requires KVM and KVM does not work.
        """
        if self.asked == "tcg":
            return "tcg"
        with self._lock:
            proof = self._proofs.get(kernel_sha256)
            if proof is None:
                proof = test()
                if proof is None:
                    return "kvm" if self.asked == "kvm" else "tcg"
                self._proofs[kernel_sha256] = proof
                if self.asked == "auto":
                    self._emit(AccelChosen("kvm" if proof.works else "tcg", proof.why))
        if proof.works:
            return "kvm"
        if self.asked == "auto":
            return "tcg"
        raise InfraError(
            f"KVM does not work here: {proof.why}", where='accel = "kvm"', hint='"auto" takes TCG where KVM does not work'
        )


def prove(spec: MachineSpec, kernel_sha256: str, prompt: str, memory: Path, limit: float = LIMIT) -> Proof:
    """Test whether KVM boots a machine to its prompt: by the stored result, else by a boot."""
    if why := obstacle(spec.arch):
        return Proof(why)
    note = memory / "accel" / f"{_key(spec.arch, kernel_sha256)}.json"
    known = _recall(note)
    if known is not None:
        return Proof(known)
    why = boot(replace(spec, accel="kvm"), prompt, limit)
    _remember(note, why)
    return Proof(why, tried=True)


def boot(spec: MachineSpec, prompt: str, limit: float = LIMIT) -> str:
    """Boot a machine. Return the reason why it did not come to its prompt, empty if it did."""
    from qcase.console.judge import Judge
    from qcase.console.rules import Limits, Rules
    from qcase.vm.console_log import ConsoleLog
    from qcase.vm.machine import converse, start

    rules = Rules(prompt=None, command=None, success=(re.escape(prompt),), fail=())
    judge = Judge(rules, started=time.monotonic(), limits=Limits(limit))
    try:
        with start(spec.arch, arguments.arguments(spec), cwd=spec.stranger, alone=spec.stranger) as machine:
            converse(machine, judge, ConsoleLog(io.BytesIO()), lambda: None)
    except InfraError as error:
        return error.what.splitlines()[0]
    assert judge.ruling is not None
    if judge.matched_at is not None:
        return ""
    last = next(iter(judge.tail(1)), "")
    said = f'; its last line was "{last}"' if last else "; it said nothing"
    if judge.ruling.verdict == "timeout":
        return f"under KVM the guest did not come to its prompt within {limit:g} s{said}"
    return f"under KVM: {judge.ruling.reason}{said}"


# --- stored results ------------------------------------------------------------------------------------------------------


def _key(arch: Arch, kernel_sha256: str) -> str:
    """Return the key of a QEMU, a kernel and a host: 32 hex digits of a sha256."""
    program = shutil.which(arch.qemu) or arch.qemu
    program = f"{program} {file_state.facts(Path(program).resolve())}"
    system = os.uname()
    host = [system.sysname, system.release, system.version, system.machine, _processor()]
    return hashlib.sha256(json.dumps([PROOF_FORMAT, program, kernel_sha256, host]).encode()).hexdigest()[:32]


def _processor() -> str:
    """Return the model name of the host's processor; empty if unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "CPU part", "uarch"):
                return value.strip()
    return ""


def _recall(note: Path) -> str | None:
    try:
        known = parsing.from_json(note.read_bytes())
        why, at = str(known["why"]), float(known["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if why and not 0 <= time.time() - at < REFUSED else why


def _remember(note: Path, why: str) -> None:
    with contextlib.suppress(OSError):  # on an error the next run tests again
        note.parent.mkdir(parents=True, exist_ok=True)
        write_aside(note, (json.dumps({"why": why, "at": time.time()}) + "\n").encode())
