"""Findings of lint about a case that tests its kernel, and one that QEMU's end decides."""

from __future__ import annotations

from collections.abc import Iterator

from qcase.arch import DEBUG_EXIT, FINISHER, SEMIHOSTING, Arch
from qcase.config import qemu_options
from qcase.config.case_file import CaseConfig
from qcase.config.exit_table import POWEROFF
from qcase.config.root_disk import SEMIHOSTING as SEMIHOSTING_OPTIONS
from qcase.config.workspace_file import WorkspaceConfig, is_guest


def faults(config: CaseConfig, workspace: WorkspaceConfig, arch: Arch) -> Iterator[tuple[str, str, str]]:
    """Yield what keeps a case from ever passing: the key below `[qcase]`, the fault, and a hint."""
    if config.ktest and not config.own_kernel and is_guest(workspace.guest[arch].kernel):
        hint = f"[qcase.kernel] build and output, or [guest.{arch}] kernel = {{ build, output }}"
        yield "pipeline", "no kernel of its own: it would boot that of a built-in guest", hint
    statuses = [word for outcome, _, word in (one.partition("\t") for one in config.exits) if word != POWEROFF]
    if statuses and (hint := _lacks_device(config.args, arch)):
        yield "exit", f"no device in args lets a guest end QEMU with status {statuses[0]}", hint
    yield from _impossible(statuses, config.args)


def _lacks_device(args: tuple[str, ...], arch: Arch) -> str:
    """Return a hint to a device with which a guest ends QEMU; empty if the machine has one, or if that is not known."""
    options = qemu_options.split(args)
    if any(option.kind in SEMIHOSTING_OPTIONS for option in options):
        return ""
    drivers = [option.opts().get("driver") for option in options if option.kind == "device"]
    if arch.spec.exit_device == FINISHER or DEBUG_EXIT in drivers:
        return ""
    if arch.spec.exit_device == DEBUG_EXIT:
        return f'"-device", "{DEBUG_EXIT},iobase=0xf4,iosize=0x04": a write of N to port 0xf4 ends QEMU with 2 * N + 1'
    other = f'let it power off (pass = "{POWEROFF}") and say the rest on the console'
    return f'"-semihosting" is one; without, {other}' if arch.spec.exit_device == SEMIHOSTING else f"there is none: {other}"


def _impossible(statuses: list[str], args: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """Yield the statuses that isa-debug-exit never gives."""
    if not any(DEBUG_EXIT in arg for arg in args):
        return
    for status in statuses:
        if int(status) % 2 == 0:
            yield "exit", f"{status} cannot come: {DEBUG_EXIT} gives odd statuses alone", "a write of N gives 2 * N + 1"
