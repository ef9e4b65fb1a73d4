"""The meaning of QEMU's end. Pure.

isa-debug-exit, test finishers, semihosting    QEMU ends with a status that the guest has set: the word is that number
a power-off (ACPI, PSCI, SBI)                  status 0, and QEMU's monitor tells of it, or the device says nothing: "poweroff"
a signal, a reset, a watchdog, a failed QEMU    nobody's word: the empty one
"""

from __future__ import annotations

from qcase.config.exit_table import POWEROFF
from qcase.vm.monitor import Monitor

_BY_GUEST = ("", "guest-shutdown", "guest-panic")  # reasons of the monitor; "" for a device that ends QEMU without asking it


def word_of(status: int | None, heard: Monitor, *, semihosting: bool) -> str:
    """Return the word that an end of QEMU is. `status`: None while it runs, below 0 for a signal.

    `semihosting`: the guest can end QEMU with any status, also with 0. A watchdog may power off a machine that hangs. A device
    that ends QEMU by itself gives no reason; so a status of 1, with which QEMU also ends where it fails, is a word, and the
    caller must not take it for a good one.
    """
    if status is None or status < 0 or not heard.started or heard.standstill is not None or heard.barked:
        return ""
    if heard.shutdown not in _BY_GUEST:
        return ""
    if status:
        return str(status)
    if heard.shutdown == "guest-panic":
        return ""
    return "0" if semihosting and not heard.shutdown else POWEROFF
