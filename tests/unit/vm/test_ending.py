"""What QEMU's end says of the guest."""

from __future__ import annotations

import pytest

from qcase.vm.ending import word_of
from qcase.vm.monitor import Monitor, Standstill

STATUSES = (None, -15, -6, 0, 1, 33, 255)
CAUSES = (
    *("", "guest-shutdown", "guest-reset", "guest-panic", "host-signal", "host-qmp-quit", "host-qmp-system-reset", "host-ui"),
    *("host-error", "subsystem-reset", "snapshot-load"),
)


@pytest.mark.parametrize("semihosting", [False, True])
@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("status", STATUSES)
def test_an_end_is_a_word_only_where_the_guest_ended_its_machine(status: int | None, cause: str, semihosting: bool) -> None:
    expected = ""
    if status is not None and status > 0 and cause in ("", "guest-shutdown", "guest-panic"):
        expected = str(status)
    elif status == 0 and cause == "guest-shutdown":
        expected = "poweroff"
    elif status == 0 and cause == "":
        expected = "0" if semihosting else "poweroff"
    assert word_of(status, Monitor(started=True, shutdown=cause), semihosting=semihosting) == expected
    assert word_of(status, Monitor(started=False, shutdown=cause), semihosting=semihosting) == ""


def test_a_machine_that_stood_still_says_nothing() -> None:
    for whose in ("host", "guest", "panic"):
        heard = Monitor(started=True, standstill=Standstill(whose, "why"))
        assert word_of(33, heard, semihosting=False) == ""


def test_a_watchdog_that_powers_off_is_nobodys_word() -> None:
    heard = Monitor(started=True)
    heard.hear(b'{"event": "WATCHDOG", "data": {"action": "poweroff"}}\n')
    assert word_of(0, heard, semihosting=False) == ""
