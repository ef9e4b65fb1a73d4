"""Which accelerator QEMU is run with. TCG is the same everywhere; KVM has to prove itself.

A `/dev/kvm` that opens, and that even runs the firmware, can still hang a Linux guest (seen under nested virtualisation), and a
processor that the host does not have makes QEMU abort. So KVM is believed in only once it has booted the very kernel to its
prompt, within `LIMIT` seconds. What came of that is remembered, per QEMU, kernel and host, in

    <memory>/accel/<key>.json     {"why": "" or why not, "at": when}

A refusal is asked again after a week: somebody may have mended the machine in a way that no file tells.
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
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from qcase import qemu
from qcase.errors import InfraError
from qcase.model import Arch
from qcase.qemu import Spec

FORMAT = 1
LIMIT = 8.0  # seconds for a boot to the prompt; a real machine with KVM takes one or two
REFUSED = 7 * 86_400.0  # seconds for which a refusal is believed
DEVICE = Path("/dev/kvm")

# What `platform.machine()` says on a host that runs these guests by itself.
_HOSTS = {Arch.X86_64: "x86_64", Arch.AARCH64: "aarch64", Arch.RISCV64: "riscv64", Arch.LOONGARCH64: "loongarch64"}


@dataclass(frozen=True)
class Proof:
    """What is known of KVM. `why` it cannot be used; empty if it can. `tried`: it was tried just now."""

    why: str
    tried: bool = False

    @property
    def works(self) -> bool:
        return not self.why


def obstacle(arch: Arch, device: Path = DEVICE, host: str | None = None) -> str:
    """Why KVM need not even be tried; empty if there is no such reason."""
    host = host or platform.machine()
    if host != _HOSTS[arch]:
        return f"KVM runs guests of the host's own architecture, {host}, and not {arch}"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{device} cannot be opened: {error.strerror}"
    return ""


def prove(spec: Spec, kernel_sha256: str, prompt: str, memory: Path, limit: float = LIMIT) -> Proof:
    """Whether KVM boots a machine to its prompt: by what is remembered, else by a boot."""
    if why := obstacle(spec.arch):
        return Proof(why)
    note = memory / "accel" / f"{_key(spec.arch, kernel_sha256)}.json"
    known = _recall(note)
    if known is not None:
        return Proof(known)
    why = boot(replace(spec, accel="kvm"), prompt, limit)
    _remember(note, why)
    return Proof(why, tried=True)


def boot(spec: Spec, prompt: str, limit: float = LIMIT) -> str:
    """Boot a machine; why it did not come to its prompt, empty if it did."""
    from qcase.console import Judge, Limits, Rules

    rules = Rules(prompt=None, command=None, success=(re.escape(prompt),), fail=())
    judge = Judge(rules, started=time.monotonic(), limits=Limits(limit))
    try:
        with qemu.start(spec.arch, qemu.arguments(spec)) as machine:
            qemu.converse(machine, judge, qemu.ConsoleLog(io.BytesIO()), lambda: None)
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


# --- memory -------------------------------------------------------------------------------------------------------------


def _key(arch: Arch, kernel_sha256: str) -> str:
    """Names a QEMU, a kernel and a host."""
    program = shutil.which(arch.qemu) or arch.qemu
    with contextlib.suppress(OSError):
        facts = Path(program).stat()
        program = f"{program} {facts.st_size} {facts.st_mtime_ns}"
    system = os.uname()
    host = [system.sysname, system.release, system.version, system.machine, _processor()]
    return hashlib.sha256(json.dumps([FORMAT, program, kernel_sha256, host]).encode()).hexdigest()[:32]


def _processor() -> str:
    """What the host's processor calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "CPU part", "uarch"):
                return value.strip()
    return ""


def _recall(note: Path) -> str | None:
    try:
        known = json.loads(note.read_bytes())
        why, at = str(known["why"]), float(known["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if why and not 0 <= time.time() - at < REFUSED else why


def _remember(note: Path, why: str) -> None:
    staged = note.with_name(f".{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):  # then it is tried again the next time
        note.parent.mkdir(parents=True, exist_ok=True)
        staged.write_text(json.dumps({"why": why, "at": time.time()}) + "\n")
        staged.replace(note)
