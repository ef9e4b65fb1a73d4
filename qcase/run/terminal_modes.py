"""Modes of the user's terminal that a guest has changed, and the sequences that take them back.

Firmware and programs of a guest write to the terminal of `qcase shell` as to their own: SeaBIOS switches line wrap off,
an editor that is killed leaves the alternate screen. The kernel's settings of a terminal (`termios`) know nothing of that.
"""

from __future__ import annotations

import re
from typing import Final

_USUAL: Final = {"7": "h", "25": "h"}  # line wrap and the cursor are on by default, all other private modes are off
# By the number of the mode: cursor and keypad keys, reverse video, origin, mouse, focus, alternate screens, bracketed paste.
_PRIVATE: Final = frozenset(map(str, (1, 5, 6, 7, 25, 47, 66, 1000, 1002, 1003, 1004, 1005, 1006, 1015, 1047, 1049, 2004)))
_SCREENS: Final = frozenset(("47", "1047", "1049"))
_CHANGE: Final = re.compile(
    rb"\x1b(?:\[\?(?P<private>[0-9;]{1,64})(?P<way>[hl])|\[4(?P<insert>[hl])|\[(?P<region>[0-9;]{0,16})r|\[(?P<colour>[0-9;:]{0,64})m"
    rb"|\[(?P<shape>[0-9]{0,2}) q|(?P<charset>\([0-2AB])|(?P<keypad>[=>])|(?P<reset>c|\[!p))|(?P<shift>[\x0e\x0f])"
)
_BEGUN: Final = re.compile(rb"\x1b(?:[\[(][^@-~\x1b]{0,64})?\Z")
# Takes back what is on, in this order. The margins go last but for the cursor, which they send home.
_BACK: Final = {
    "insert": b"\x1b[4l",
    "keypad": b"\x1b>",
    "charset": b"\x1b(B",
    "shift": b"\x0f",
    "shape": b"\x1b[0 q",
    "region": b"\x1b7\x1b[r\x1b8",
    "colour": b"\x1b[0m",
}


class TerminalModes:
    """Watches what a guest writes to a terminal."""

    def __init__(self) -> None:
        self._on: set[str] = set()  # names of `_BACK`, and numbers of private modes that are not as usual
        self._held = b""  # the beginning of a sequence

    def write(self, data: bytes) -> None:
        """Note the modes that these bytes change. A sequence may come in pieces."""
        data = self._held + data
        begun = _BEGUN.search(data)
        self._held = data[begun.start() :] if begun else b""
        if b"\x1b" not in data and b"\x0e" not in data and b"\x0f" not in data:
            return
        for found in _CHANGE.finditer(data):
            kind = str(found.lastgroup)
            if kind == "reset":  # of which terminals make different things
                self._set("7", on=True)
            elif kind == "way":
                for number in found["private"].decode().split(";"):
                    if number in _PRIVATE:
                        self._set(number, on=found["way"].decode() != _USUAL.get(number, "l"))
            else:
                usual = {"insert": b"l", "keypad": b">", "charset": b"(B", "shift": b"\x0f"}
                is_usual = found[kind] == usual[kind] if kind in usual else not found[kind].strip(b"0;")
                self._set(kind, on=not is_usual)

    def _set(self, name: str, *, on: bool) -> None:
        (self._on.add if on else self._on.discard)(name)

    def restoration(self) -> bytes:
        """Return the bytes that take back all that is changed now; none if nothing is."""
        screens = sorted(self._on & _SCREENS, key=int)
        others = sorted(self._on - _SCREENS - set(_BACK), key=int)
        back = [b"\x1b[?%s%s" % (number.encode(), _USUAL.get(number, "l").encode()) for number in [*screens, *others]]
        return b"".join([*back, *(sequence for name, sequence in _BACK.items() if name in self._on)])
