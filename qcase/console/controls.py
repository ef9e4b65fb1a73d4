"""Escape sequences of a terminal: each is an operation of a screen.

A sequence that no terminal of today gives a meaning to changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from qcase.console.cells import MOVE_MAX
from qcase.console.screen import LOST_ROWS, Screen

# Controls of the current row alone. Arguments: the screen, the first number (at least 1), all numbers.
_ON_ROW: Final[dict[str, Callable[[Screen, int, list[int]], None]]] = {
    "C": lambda screen, first, _: screen.move(first),
    "a": lambda screen, first, _: screen.move(first),
    "D": lambda screen, first, _: screen.move(-first),
    "G": lambda screen, first, _: screen.move(first - 1 - screen.column),
    "`": lambda screen, first, _: screen.move(first - 1 - screen.column),
    "I": lambda screen, first, _: screen.move(8 * first - screen.column % 8),
    "Z": lambda screen, first, _: screen.move(-((screen.column - 1) % 8 + 1) - 8 * (first - 1)),
    "K": lambda screen, _, numbers: screen.erase_line(numbers[0]),
    "P": lambda screen, first, _: screen.delete(first),
    "X": lambda screen, first, _: screen.blank(screen.column, screen.column + first),
    "@": lambda screen, first, _: screen.insert_blanks(first),
    "b": lambda screen, first, _: screen.repeat(first),
    "m": lambda screen, _, numbers: _set_attributes(screen, numbers),
    "s": lambda screen, _first, _: screen.save(),
    "h": lambda screen, _, numbers: _set_mode(screen, numbers, on=True),
    "l": lambda screen, _, numbers: _set_mode(screen, numbers, on=False),
}


def execute(screen: Screen, sequence: str, at: int) -> bool:
    """Execute an escape sequence. Return True if the text behind it stands on another row.

    `at`: position in the written text of the start of a row that begins.
    """
    kind = sequence[1:2]
    if kind == "[":
        return _csi(screen, sequence[2:-1], sequence[-1], at)
    if kind in ("D", "E"):
        screen.line_feed(at, column=None if kind == "D" else 0)
    elif kind == "M":
        screen.up(1)
    elif kind == "c":
        screen.start_over()
    elif kind == "7":
        screen.save()
    elif kind == "8":
        screen.restore()
    elif kind == "(":
        screen.modes.graphics = sequence[2:3] == "0"
    elif kind == ")":
        screen.modes.g1_graphics = sequence[2:3] == "0"
    elif kind == "#":
        screen.lose_screen(0)
    return kind in ("D", "E", "M", "c", "8", "#")


def _csi(screen: Screen, parameters: str, final: str, at: int) -> bool:
    if parameters[:1] in ("?", "<", "=", ">"):
        return _private(screen, parameters, final, at)
    if parameters.strip("0123456789;:"):
        return False
    parts = parameters.replace(":", ";").split(";")
    numbers = [min(int(part or 0), MOVE_MAX) if len(part) < 9 else MOVE_MAX for part in parts]
    first = max(numbers[0], 1)
    if action := _ON_ROW.get(final):
        action(screen, first, numbers)
        return False
    return _across_rows(screen, final, numbers, first, at)


def _across_rows(screen: Screen, final: str, numbers: list[int], first: int, at: int) -> bool:
    """Execute controls that go to, or change, rows other than the current one."""
    if final in "AF":
        screen.rows_up(first, to_start=final == "F")
    elif final in "BEe":
        for _ in range(min(first, LOST_ROWS)):
            screen.line_feed(at, column=0 if final == "E" else None)
    elif final in "Hf":
        return screen.address(first, max(numbers[1] if len(numbers) > 1 else 1, 1) - 1)
    elif final in "dr":
        screen.address_unknown_row(screen.column if final == "d" else 0)
    elif final in "LST":
        screen.lose_screen(screen.column, cleared=False)
    elif final == "M":
        screen.delete_rows(first, at)
    elif final == "J":
        screen.erase_screen(numbers[0])
        return numbers[0] != 0
    elif final == "u":
        screen.restore()
    else:
        return False
    return True


def _private(screen: Screen, parameters: str, final: str, at: int) -> bool:
    if parameters[0] != "?" or final not in "hl":
        return False
    numbers = parameters[1:].split(";")
    if "3" in numbers:
        screen.lose_screen(0)
        return True
    if not {"47", "1047", "1049"}.intersection(numbers):
        return False
    # Only 1049 puts the cursor back where it was.
    return screen.show_alternate(at) if final == "h" else screen.show_main(restores="1049" in numbers)


def _set_mode(screen: Screen, numbers: list[int], *, on: bool) -> None:
    if 4 in numbers:
        screen.modes.insert = on


def _set_attributes(screen: Screen, numbers: list[int]) -> None:
    """Set what colours and styles change of a row: concealed text."""
    rest = list(numbers)
    while rest:
        number = rest.pop(0)
        if number in (38, 48, 58) and rest:
            kind = rest.pop(0)
            del rest[: {5: 1, 2: 3}.get(kind, 0)]
        elif number in (0, 28):
            screen.modes.concealed = False
        elif number == 8:
            screen.modes.concealed = True
