"""What `qcase shell` takes back of the user's terminal when the guest is gone."""

from __future__ import annotations

import random

import avt
import pytest

from qcase.run.terminal_modes import TerminalModes

# What a guest may send; text and movements leave no mode behind.
SENT = [f"\x1b[?{mode}{way}" for mode in (1, 6, 7, 25, 47, 1000, 1047, 1049, 2004) for way in "hl"]
SENT += ["\x1b[4h", "\x1b[4l"]
SENT += ["\x1b=", "\x1b>", "\x1b(0", "\x1b(B", "\x0e", "\x0f", "\x1b[2;9r", "\x1b[r", "\x1b[1;31m", "\x1b[0m"]
SENT += ["\x1bc", "\x1b[!p", "\x1b[?7;25l", "\x1b[?1;2004h", "\x1b[H", "\x1b[2J"]


def left(text: str, size: int) -> tuple[str, str, str]:
    """What an emulator shows of a text that is written behind what the guest has sent."""
    modes = TerminalModes()
    data = text.encode()
    for at in range(0, len(data), size):
        modes.write(data[at : at + size])
    terminal = avt.Vt(40, 12, 0)
    terminal.feed_str(
        text + modes.restoration().decode() + "\x1b7\x1b[2J\x1b[Hlqk\x1b[4Dxy" + "wide " * 10 + "\x1b[12;1Hend\n\rend"
    )
    return str(terminal.text()), str(terminal.cursor), str(terminal.cursor_key_app_mode)


@pytest.mark.parametrize("size", [1, 3, 4096])
def test_a_terminal_is_as_it_was_whatever_a_guest_has_sent(size: int) -> None:
    chance = random.Random(size)
    new = left("", 1)
    for _ in range(500):
        text = "".join(chance.choice(SENT) for _ in range(chance.randrange(1, 12)))
        assert left(text, size) == new, repr(text)


def test_a_guest_that_changes_nothing_costs_nothing() -> None:
    modes = TerminalModes()
    modes.write(b"SeaBIOS\r\n\x1b[1mx\x1b[0m\x1b[2J\x1b[1;1H# \x1b[6n\x1b[?7h\x1b[?25h")
    assert modes.restoration() == b""
    modes.write(b"\x1b[?7l\x1b[?25l")
    assert modes.restoration() == b"\x1b[?7h\x1b[?25h"
    modes.write(b"\x1b[?1000;2004h\x1b[?1049h")
    assert modes.restoration() == b"\x1b[?1049l\x1b[?7h\x1b[?25h\x1b[?1000l\x1b[?2004l"
