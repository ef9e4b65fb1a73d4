"""Actors that write on one serial line.

Each is a Python generator of `Piece`s; the line merges them by time. A piece that is `glued` to the next one cannot be torn by
another actor: a kernel's line never stands inside an escape sequence, a character or a line end here.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.fuzz import words
from tests.fuzz.log import By, Write


@dataclass(frozen=True)
class Piece:
    delay: float
    by: By
    data: bytes
    glued: bool = False


Actor = Iterator[Piece]


class Serial:
    """A serial line on which actors write. The same seed gives the same guest, if the judge types the same at the same times."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pace = self.random.choice((0.0, 0.0, 0.002, 0.02, 0.2))
        self.stop_share = self.random.choice((0.0, 0.0, 0.02, 0.1))
        self.split_share = self.random.choice((0.0, 0.05, 0.3))
        self.ends: float | None = None
        self.reset = False
        self.now = 0.0  # when the last write was
        self._queue: list[tuple[float, int, Piece, Actor]] = []
        self._count = 0
        self._holder: Actor | None = None
        self._held: list[tuple[Piece, Actor]] = []

    # --- what plays it asks for ---------------------------------------------------------------------------------------

    def next_at(self) -> float | None:
        while self._queue and self._holder is not None and self._queue[0][3] is not self._holder:
            _, _, piece, actor = heapq.heappop(self._queue)
            self._held.append((piece, actor))
        at = self._queue[0][0] if self._queue else None
        return self.ends if at is None or (self.ends is not None and self.ends <= at) else at

    def write(self) -> Write | None:
        """What is due at `next_at`. Those who have to wait for the end of a sequence write behind it."""
        due = self.next_at()
        if due is None or due == self.ends:
            self._queue.clear()
            self.ends = None
            return None
        at, _, piece, actor = heapq.heappop(self._queue)
        self._holder = actor if piece.glued else None
        if not piece.glued:
            for waiting, owner in self._held:
                self._push(at, waiting, owner)
            self._held.clear()
        self.now = at
        self._next(actor, at)
        return Write(at, piece.by, piece.data)

    # --- what actors do -----------------------------------------------------------------------------------------------

    def start(self, actor: Actor, at: float) -> None:
        self._next(actor, at)

    def end(self, at: float) -> None:
        self.ends = at if self.ends is None else min(self.ends, at)

    def silence(self) -> None:
        """The kernel is dead: nothing else is written any more."""
        self._queue.clear()
        self._held.clear()
        self._holder = None

    def _next(self, actor: Actor | None, at: float) -> None:
        if actor is not None and (piece := next(actor, None)) is not None:
            self._push(at + piece.delay, piece, actor)

    def _push(self, at: float, piece: Piece, actor: Actor) -> None:
        self._count += 1
        heapq.heappush(self._queue, (at, self._count, piece, actor))

    # --- pieces -------------------------------------------------------------------------------------------------------

    def pause(self) -> float:
        """A time between two bytes: mostly the pace of this guest, now and then a silence."""
        if self.random.random() < self.stop_share:
            return self.random.choice((0.05, 0.2, 0.45, 0.55, 0.7, 1.2, 3.0))
        return self.pace

    def cut(self, by: By, data: bytes, *, whole: bool = False) -> Iterator[Piece]:
        """Data as pieces. `whole`: no other actor may write in the middle."""
        at = 0
        while len(data) - at > 1 and self.random.random() < self.split_share:
            end = self.random.randrange(at + 1, len(data))
            torn = whole or data[end] & 0xC0 == 0x80 or data[end - 1 : end + 1] == b"\r\n"
            yield Piece(self.pause(), by, data[at:end], torn)
            at = end
        yield Piece(self.pause(), by, data[at:])

    def say(self, by: By, text: str) -> Iterator[Piece]:
        """Text in which each escape sequence stays in one."""
        for part in _parts(text):
            yield from self.cut(by, part, whole=part[:1] in (b"\x1b", b"\r"))


def _parts(text: str) -> list[bytes]:
    """Runs of text, escape sequences, and line ends."""
    found: list[bytes] = []
    data = text.encode("utf-8", errors="surrogateescape")
    at = 0
    while at < len(data):
        end = at + 1
        if data[at] == 0x1B:
            end = _sequence(data, at)
        elif data[at] == 0x0D:
            end = at + 2 if data[at + 1 : at + 2] == b"\n" else at + 1
        else:
            while end < len(data) and data[end] not in (0x1B, 0x0D):
                end += 1
        found.append(data[at:end])
        at = end
    return found


def atoms(data: bytes) -> list[bytes]:
    """Characters and escape sequences, as far as these are whole."""
    found = []
    for part in _parts(data.decode("utf-8", errors="surrogateescape")):
        found += [part] if part[:1] == b"\x1b" else [bytes([char]) for char in part]
    return found


def _sequence(data: bytes, at: int) -> int:
    if data[at + 1 : at + 2] == b"[":
        end = at + 2
        while end < len(data) and not 0x40 <= data[end] <= 0x7E:
            end += 1
        return end + 1
    if data[at + 1 : at + 2] in (b"]", b"P", b"_", b"^", b"X"):
        ends = [e + n for mark, n in ((b"\x07", 1), (b"\x1b\\", 2)) if (e := data.find(mark, at + 2)) >= 0]
        return min(ends, default=len(data))
    return at + 2


# --- what a kernel writes ---------------------------------------------------------------------------------------------


def kernel_log(guest: Serial) -> Actor:
    """The kernel's own lines, each written in one go, with or without time stamps."""
    chance = guest.random
    for _ in range(chance.choice((1, 2, 4))):
        text = f"{chance.choice(words.KERNEL)}\r\n"
        delay = chance.choice((0.01, 0.1, 0.4, 1.0, 2.5))
        if chance.random() < 0.85:
            yield Piece(delay, By.KERNEL, (chance.choice(words.STAMPS) + text).encode())
        else:
            yield Piece(delay, By.OUT, text.encode())


def panic(guest: Serial) -> Actor:
    """The kernel's last words; nothing else is written behind them."""
    chance = guest.random
    stamp = chance.choice((*words.STAMPS, "", "", ""))
    if chance.random() < 0.6:
        text = "\r\n".join(stamp + line for line in (chance.choice(words.PANICS), *words.LINUX_REST)) + "\r\n"
        if chance.random() < 0.7:
            text += f"{stamp}---[ end Kernel panic - not syncing: x ]---\r\n"
    else:
        text = chance.choice(words.RUST_PANICS) + "\r\n"
    yield Piece(0.0, By.PANIC, b"")
    guest.silence()
    if chance.random() < 0.3:
        guest.end(10.0 + chance.random())
    yield from guest.cut(By.PANIC, text.encode())
