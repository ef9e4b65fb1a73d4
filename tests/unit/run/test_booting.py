"""Cases that go on from a template, and those that do not."""

from __future__ import annotations

import pytest

from qcase.console.rules import Limits
from qcase.run.booting import has_room


@pytest.mark.parametrize(
    ("limits", "seconds", "room"),
    [
        (Limits(), 1000.0, True),
        (Limits(command=1, idle=1), 1000.0, True),
        (Limits(whole=20), 10.0, True),
        (Limits(whole=20), 10.1, False),
        (Limits(whole=200, boot=20), 10.1, False),
    ],
)
def test_a_limit_that_a_template_nearly_used_up_is_for_a_cold_boot(limits: Limits, seconds: float, room: bool) -> None:
    assert has_room(limits, seconds) is room
