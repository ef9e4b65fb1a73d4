"""Typed lines, the text in which they may come back, and tests of whether a piece of output may be such text."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import Final

from qcase.console.alignment import SURE, Came
from qcase.console.joined import KERNEL_LINE

CHUNK: Final = 16  # bytes typed at once: the FIFO of a 16550
LATEST: Final = 1 << 18  # bytes of output after which no echo is missed any more
ERASE: Final = b"\x7f"  # what a terminal and every line editor take for it
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f]")
CARET: Final = re.compile(rb"[\x00-\x08\x0b-\x1f]")
SURELY_ECHO: Final = -1e12

# Where a terminal breaks a line: readline writes a space and CR, busybox CR LF. A shell may go on behind `> `.
_BREAK: Final = rb" ?\n"
BETWEEN: Final = re.compile(rb"(?:" + _BREAK + rb"|" + KERNEL_LINE.pattern + rb"\n)")
AFTER: Final = re.compile(rb" ?\n| ?" + KERNEL_LINE.pattern)  # what stands behind an echo
_BLANKS: Final = re.compile(rb"[\t ]*")  # a tab, together with the blanks around it


@dataclass
class TypedLine:
    """A line that is typed. `chars[i]` is how its i-th character comes back."""

    chars: list[re.Pattern[bytes]]
    chunks: list[list[re.Pattern[bytes]]]
    typed: list[bytes]  # chunks that are still to be typed
    text: bytes
    missing: list[int] = field(default_factory=list)  # chunks whose echo has not come
    at: int = 0  # the chunk that is typed next
    since: int = 0  # where the text ended when the last chunk was typed
    ended: bool = False  # its line end has been typed
    ended_at: float = float("inf")  # where the text ended then
    found_to: int = -1  # where its last echo ended
    doubtful: bool = False  # it came back in the middle of a line, by chance perhaps
    repaints: int = 1  # how often it may come again behind a prompt that is not the case's

    @property
    def rest(self) -> list[re.Pattern[bytes]]:
        """Characters that have not come back, from the first to its last character."""
        return [char for chunk in self.chunks[self.missing[0] :] for char in chunk] if self.missing else []


@dataclass
class Trace:
    """A place at which an echo may stand, and how far it has been followed. Behind a whole line a line end must stand."""

    line: TypedLine
    chars: list[re.Pattern[bytes]]
    repaint: bool  # uses up one of the line's
    late: bool  # it is of interest only as long as the line's echo is missing
    prompted: bool  # it stands behind a prompt
    at: int = 0
    matched: int = 0
    begun: bool = False  # some text has matched
    breaks: int = 0  # line ends behind what matched last
    hidden: list[tuple[int, int]] = field(default_factory=list)


def shown_control(char: int) -> bytes:
    """Return a character in the form of a terminal that shows control characters."""
    return b"^" + bytes([char ^ 0x40]) if CARET.match(bytes([char])) else bytes([char])


def stretches(prices: list[float], came: Came) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return what may be echo, and what surely is output; `SURELY_ECHO` is left out."""
    doubts: list[tuple[int, int]] = []
    outputs: list[tuple[int, int]] = []
    for price, at in zip(prices, came.at, strict=True):
        if price == SURELY_ECHO:
            continue
        found = outputs if price >= SURE else doubts
        if found and found[-1][1] >= at:
            found[-1] = found[-1][0], at + 1
        else:
            found.append((at, at + 1))
    return doubts, outputs


def is_subsequence(part: bytes, typed: bytes) -> bool:
    """Tell whether the characters of a part are a subsequence of what was typed, each of which may come back twice.

    A character that is not ASCII may come back as something else.
    """
    ahead = iter(typed)
    last, again, repeated = -1, False, False
    found = 0
    others = b"" if typed.isascii() else b"?<\\0123456789ABCDEFU+"
    for char in part:
        if char in b" \t>\0" or (char > 0x7E and others) or char in others:
            continue
        if char == last and again:
            again = False
            continue
        if char not in ahead:
            if repeated or char != typed[0] or 2 * found < len(typed):
                return False
            repeated = True  # the whole of it comes back once more
            ahead = iter(typed[1:])
        found += 1
        last, again = char, True
    return True


def common_start(one: bytes, other: bytes) -> int:
    """Return the length of the common beginning of both texts."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def with_carets(typed: bytes) -> bytes:
    """Add to what was typed the form `^A` of each control character."""
    return _CONTROL.sub(lambda found: found[0] + b"^" + bytes([found[0][0] ^ 0x40]), typed)


def typed_runs(part: bytes, typed: bytes, least: int) -> list[tuple[int, int]]:
    """Return the runs of typed characters in a part, in their order, that are too long to be chance."""
    blocks = difflib.SequenceMatcher(None, part, typed, autojunk=False).get_matching_blocks()
    return [(block.a, block.a + block.size) for block in blocks if block.size >= min(least, len(typed))]


def as_line(line: str) -> TypedLine:
    chars = [_as_echoed(char) for char in line]
    for blank in re.finditer(r"(?<![\t ])[\t ]*\t[\t ]*", line):
        chars[blank.start() : blank.end()] = [_BLANKS] * len(blank[0])
    chunks: list[list[re.Pattern[bytes]]] = []
    typed: list[bytes] = []
    for char, echoed in zip(line, chars, strict=True):
        raw = char.encode()
        if not typed or len(typed[-1]) + len(raw) > CHUNK:  # never in the middle of a character
            typed.append(b"")
            chunks.append([])
        typed[-1] += raw
        chunks[-1].append(echoed)
    return TypedLine(chars, chunks, typed, line.encode())


def _as_echoed(char: str) -> re.Pattern[bytes]:
    """Return the ways to echo a character: Ctrl-A as `^A`, a letter that it does not know as `?` or `\\303`."""
    raw = re.escape(char.encode())
    if " " <= char <= "~":
        return re.compile(raw)
    if char < " ":
        return re.compile(rb"(?:" + raw + rb"|\^" + re.escape(bytes([ord(char) ^ 0x40])) + rb")?")
    return re.compile(rb"(?:" + raw + rb"|(?:\?|\xef\xbf\xbd|\\[0-7]{3}|<[0-9A-Fa-f+U]+>){0,4})")


def plain(text: bytes) -> bytes:
    """Return what every guest echoes as it is: printable ASCII."""
    return bytes(char for char in text if 0x20 <= char < 0x7F)


def shown_typed(text: bytes) -> str:
    return repr(text.decode(errors="replace"))


def anywhere(chars: list[re.Pattern[bytes]]) -> re.Pattern[bytes]:
    return re.compile((BETWEEN.pattern + rb"{0,3}(?:> )?").join(char.pattern for char in chars))
