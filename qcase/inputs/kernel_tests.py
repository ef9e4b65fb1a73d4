"""Findings of lint about a case that tests its kernel, and one that QEMU's end decides."""

from __future__ import annotations

from collections.abc import Iterator

from qcase.arch import Arch
from qcase.config import qemu_options
from qcase.config.case_file import CaseConfig
from qcase.config.exit_table import POWEROFF
from qcase.config.root_disk import SEMIHOSTING
from qcase.config.workspace_file import WorkspaceConfig, is_guest

_X86_DEVICE = "isa-debug-exit"


def faults(config: CaseConfig, workspace: WorkspaceConfig, arch: Arch) -> Iterator[tuple[str, str, str]]:
    """Yield what keeps a case from ever passing: the key below `[qcase]`, the fault, and a hint."""
    if config.ktest and not config.own_kernel and is_guest(workspace.guest[arch].kernel):
        hint = f"[qcase.kernel] build and output, or [guest.{arch}] kernel = {{ build, output }}"
        yield "pipeline", "no kernel of its own: it would boot that of a built-in guest", hint
    statuses = [word for outcome, _, word in (one.partition("\t") for one in config.exits) if word != POWEROFF]
    if statuses and (hint := _lacks_device(config.args, arch)):
        yield "exit", f"no device in args lets a guest end QEMU with status {statuses[0]}", hint
    yield from _impossible(statuses, config.args, arch)


def _lacks_device(args: tuple[str, ...], arch: Arch) -> str:
    """Return a hint to a device with which a guest ends QEMU; empty if the machine has one, or if that is not known."""
    options = qemu_options.split(args)
    if any(option.kind in SEMIHOSTING for option in options):
        return ""
    drivers = [option.opts().get("driver") for option in options if option.kind == "device"]
    if arch is Arch.X86_64 and _X86_DEVICE not in drivers:
        return f'"-device", "{_X86_DEVICE},iobase=0xf4,iosize=0x04": a write of N to port 0xf4 ends QEMU with 2 * N + 1'
    if arch is Arch.AARCH64:
        return f'"-semihosting" is one; without, let it power off (pass = "{POWEROFF}") and say the rest on the console'
    return ""  # riscv64's `virt` has a test finisher


def _impossible(statuses: list[str], args: tuple[str, ...], arch: Arch) -> Iterator[tuple[str, str, str]]:
    """Yield the statuses that isa-debug-exit never gives."""
    if arch is not Arch.X86_64 or not any(_X86_DEVICE in arg for arg in args):
        return
    for status in statuses:
        if int(status) % 2 == 0:
            yield "exit", f"{status} cannot come: {_X86_DEVICE} gives odd statuses alone", "a write of N gives 2 * N + 1"
