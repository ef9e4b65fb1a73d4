"""Requirements of cases: the part of them that this machine lacks."""

from __future__ import annotations

import difflib
import functools
import re
from pathlib import Path

from qcase.arch import Arch
from qcase.config.case_file import CaseConfig
from qcase.config.skip_table import KVM, NETWORK, Amount, amount
from qcase.host import process
from qcase.prepare.session import Session
from qcase.run import schedule
from qcase.suite.cases import Case
from qcase.text import size
from qcase.vm import arguments, machine
from qcase.vm.accelerator import obstacle

_ROUTES = Path("/proc/net/route")
_ENDINGS = ("", "-pci", "-device")  # of QEMU's names for the devices of one kind


def missing(case: Case, session: Session) -> str:
    """Return what the case requires and this machine lacks, as far as that is known before anything is built; else empty.

    Raises `InfraError` if QEMU is missing.
    """
    found = (_missing(word, case, session) for word in case.config.requires)
    return "; ".join(what for what in found if what)


def lacks_kvm(config: CaseConfig, argv: list[str]) -> str:
    """Return that a machine is not run by KVM, if its case requires that; else empty."""
    used = arguments.accelerator(argv)
    return f"needs KVM, and this run uses {used}" if KVM in config.requires and used != "kvm" else ""


def _missing(word: str, case: Case, session: Session) -> str:
    if word == KVM:
        return _without_kvm(case, session)
    if word == NETWORK:
        return _without_network(case, session)
    if (wanted := amount(word)) is not None:
        return _too_little(wanted, case.arch)
    if any(f"{word}{ending}" in devices(case.arch) for ending in _ENDINGS):
        return ""
    near = difflib.get_close_matches(word, devices(case.arch), n=1, cutoff=0.7)
    return f"needs the device {word}, which {case.arch.qemu} does not have" + (f" (it has {near[0]})" if near else "")


def _without_kvm(case: Case, session: Session) -> str:
    if arguments.names_accelerator(case.config.args):
        return ""  # the machine's own arguments tell
    if session.accelerators.asked == "tcg":
        return 'needs KVM, and this run uses tcg: see [run] accel = "auto"'
    why = obstacle(case.arch)
    return f"needs KVM: {why}" if why else ""


def _without_network(case: Case, session: Session) -> str:
    policy = case.config.network or session.workspace.config.run.network
    if policy != "user":
        return f'needs a network, and its network is "{policy}"'
    return "" if _is_connected() else "needs a network, and this machine has none"


def _is_connected() -> bool:
    try:
        lines = _ROUTES.read_text(encoding="ascii").splitlines()[1:]
    except (OSError, ValueError):
        return True  # no Linux that tells
    return any(line.split()[0] != "lo" for line in lines if line.split())


def _too_little(wanted: Amount, arch: Arch) -> str:
    if wanted.of == "qemu":
        has = machine.version(arch)
        return "" if has >= wanted.least else f"needs QEMU {wanted.shown}, and this one is {'.'.join(map(str, has))}"
    ours = schedule.machine()
    if wanted.of == "cpus":
        return "" if ours.processors >= wanted.least[0] else f"needs {wanted.shown} processors, and there are {ours.processors}"
    return "" if ours.memory >= wanted.least[0] else f"needs {wanted.shown} of free memory, and there are {size(ours.memory)}"


@functools.cache
def devices(arch: Arch) -> frozenset[str]:
    """Return the names of the devices that QEMU knows for an architecture, other names among them."""
    said = process.run([arch.qemu, "-device", "help"], timeout=60.0, hint=arch.install_hint).output
    return frozenset(re.findall(r'(?m)\b(?:name|alias) "([^"]+)"', said))
