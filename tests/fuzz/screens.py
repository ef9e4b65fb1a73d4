"""Write a line as programs do that know a terminal: overwritten, erased, corrected, coloured, moved, or out of sight."""

from __future__ import annotations

import random
from collections.abc import Callable


def _overstruck(chance: random.Random, text: str) -> str:
    return "".join(f"{char}\b{char}" if char.isascii() and char != "\n" else char for char in text)


def _corrected(chance: random.Random, text: str) -> str:
    at = chance.randrange(len(text) + 1)
    return f"{text[:at]}X\b{text[at:]}" if at < len(text) else f"{text}X\b \b"


def _returned(chance: random.Random, text: str) -> str:
    """Another text first, then this one over it; or this one first."""
    other = chance.choice(("working", "10%", "x" * len(text)))
    if chance.random() < 0.5:
        return f"{other}\r{text}{' ' * max(0, len(other) - len(text))}"
    return f"{text}\r{other}{' ' * max(0, len(text) - len(other))}"


def _erased(chance: random.Random, text: str) -> str:
    return (
        text
        + chance.choice(("\x1b[2K\r", "\r\x1b[K", "\x1b[1K", "\b" * len(text) + "\x1b[K", "\r\x1b[J"))
        + chance.choice(("", "x"))
    )


def _coloured(chance: random.Random, text: str) -> str:
    at = chance.randrange(len(text) + 1)
    return f"\x1b[1;32m{text[:at]}\x1b[0m{text[at:]}"


def _titled(chance: random.Random, text: str) -> str:
    other = chance.choice(("x", "ok"))
    begin = chance.choice(("\x1b]0;", "\x1bP1$r", "\x1b_", "\x1b^", "\x1b]8;;"))
    end = "\x1b\\" if begin[1] != "]" else chance.choice(("\x07", "\x1b\\"))
    if "\n" in text:
        return f"{begin}{other}{end}{text}"
    return f"{begin}{text}{end}{other}" if chance.random() < 0.5 else f"{begin}{other}{end}{text}"


def _alternate(chance: random.Random, text: str) -> str:
    other = chance.choice(("", "x"))
    if chance.random() < 0.5:
        return f"\x1b[?1049h\x1b[H{text}\r\n\x1b[?1049l{other}"
    return f"\x1b[?1049h\x1b[2J{other}\x1b[?1049l{text}"


def _moved(chance: random.Random, text: str) -> str:
    at = chance.randrange(len(text) + 1)
    n = chance.randrange(1, 4)
    return chance.choice(
        (
            f"{text[:at]}\x1b[{n}C{text[at:]}",
            f"{text}\x1b[{n}Dx",
            f"{text[:at]}\x1b[{n}D{text[at:]}",
            f"\x1b[{n + 1}G{text}",
            f"{text}\x1b[1Gx",
            f"xxx\x1b[1G{text}",
        )
    )


def _climbing(chance: random.Random, text: str) -> str:
    return chance.choice(
        (
            f"x\r\n\x1b[A\r{text}",
            f"{text}\r\n\x1b[A\rxxxxxxxxxxxx",
            f"{text}\x1b[Bx",
            f"\x1b[H{text}",
            f"\x1b[2J\x1b[H{text}",
            f"{text}\r\n\x1b[H\x1b[J",
            f"{text}\r\n\x1b[1A\x1b[2K",
            f"{text}\x1b7\x1b[{chance.randrange(1, 9)};1Hxx\x1b8",
            f"\x1b7\x1b[Hx\r\n\x1b8{text}",
            f"\x1b[Hx\r\n\x1b[{chance.randrange(1, 5)};1H{text}",
            f"\x1b[H\x1b[?1049h\x1b[2Jx\x1b[?1049l{text}",
        )
    )


def _fed(chance: random.Random, text: str) -> str:
    return chance.choice((f"x\v\r{text}", f"x\f\r{text}", f"{text}\vx", f"x\v{text}", f"{text}\fx"))


def _concealed(chance: random.Random, text: str) -> str:
    return f"\x1b[8m{text}\x1b[0mx"


def _broken(chance: random.Random, text: str) -> str:
    at = chance.randrange(len(text) + 1)
    return text[:at] + chance.choice(("\udcff", "\udcc3", "\udce2\udc82", "\a", "\0")) + text[at:]


def _spaced(chance: random.Random, text: str) -> str:
    return text + " " * chance.randrange(1, 3)


def _rewritten(chance: random.Random, text: str) -> str:
    """A counter: the same line with each new state over the last one."""
    states = [text[:at] for at in range(1, len(text), 2)]
    return "".join(f"\r{state}" for state in states) + f"\r{text}"


WAYS: tuple[Callable[[random.Random, str], str], ...] = (
    _overstruck,
    _corrected,
    _returned,
    _returned,
    _erased,
    _coloured,
    _coloured,
    _titled,
    _alternate,
    _moved,
    _moved,
    _climbing,
    _fed,
    _concealed,
    _broken,
    _spaced,
    _rewritten,
)


def decorated(chance: random.Random, text: str) -> str:
    return chance.choice(WAYS)(chance, text)
