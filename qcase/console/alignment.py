"""Tells which characters of a guest's output are echo: an alignment of what came back with what was typed.

Each character that came is output, or it is the echo of a typed character: of each one in the order in which they were typed,
and of none before it was typed. Echo may begin anew behind a prompt, and be torn by lines of others; some guests lose characters,
or echo in capitals, or everything twice. Each of these has a price, and so has each character that would be output. The cheapest
account of all that came says where echo stands; a character for which the two readings cost nearly the same can be either.

    typed  e c h o _ P A S S                  prices, in bits: 4 for a character of output or one that was lost, 14 for
    came   e c h _ P A S S ⏎ P A S S ⏎        going from output to echo in the middle of a line, 18 for losing any, ...
           echo ──────────── output ─
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from typing import Final

SURE: Final = 8.0  # bits that the other reading has to cost more
_NEVER: Final = 1e9
_DEAR: Final = 1e4  # what no account does, in a sum of so many
_OUT: Final = 4.0  # a character of output
_OUT_COPY: Final = 0.25  # one that goes on with what it repeats of the typed text: a program says what it was told to say
_COPY: Final = 4  # characters before that
_BEGUN: Final = 2  # characters at the start of what was typed that show that an echo has begun
_EARLY: Final = 0.5  # one that comes before something that was typed has come back
_FIRST: Final = 32  # as far as there are no more of them: a guest that echoes nothing may print much
_OUT_BLANK: Final = 1.0
_OUT_END: Final = 0.5
_MORE_BLANK: Final = 0.3  # one more blank than was typed, as of a tab
_LOST_BLANK: Final = 0.5  # a blank that was typed, or what has no form of its own
_NEARLY: Final = 1.0  # as much of it may be lost at the end of what was typed where all else has come back
_SWITCH: Final = 14.0  # between output and echo in the middle of a line
_LEAVE: Final = 0.5  # the same at a line's end
_ENTER: Final = 1.0  # and at a line's start, or behind a prompt
_AGAIN_PROMPT: Final = 4.0  # to begin a line anew behind a prompt
_PENDING: Final = 5.0  # that something has still to come back
_MISSING: Final = 40.0  # that it never will


@dataclass(frozen=True)
class Typed:
    """Typed text, as it comes back.

    `since`: where the text ended when each character was. `parts`, `lines`: where those begin that were typed at once, and lines.
    """

    text: bytes
    since: list[int]
    parts: list[int]
    lines: list[int]


@dataclass(frozen=True)
class Came:
    """Output. `at`: where each character stands in the text. `starts`, `prompts`: those at a line's start, behind a prompt."""

    text: bytes
    at: list[int]
    starts: set[int]
    prompts: set[int]
    whole: bool  # nothing came before that could be echo


@dataclass(frozen=True)
class _Style:
    """Way to echo: what it costs to assume it, and what a lost character, a capital, and a part that comes again do."""

    price: float
    lost: float = _DEAR
    capital: float = _DEAR
    again: float = _DEAR


_EXACT: Final = _Style(0.0)
_DAMAGED: Final = _Style(18.0, lost=4.0, capital=0.7, again=24.0)
_DOUBLED: Final = _Style(20.0)


def compare(typed: Typed, came: Came, *, over: bool = False) -> tuple[list[float], bool, bool, bool]:
    """Return for each character that came how much more it costs to take it for echo than for output. `over`: nothing more comes.

    And whether the cheapest account is one of an echo that is not what was typed: with losses, in capitals, or twice; whether
    all that was typed has come back by it; and whether all of that but blanks and line ends has.
    """
    pending = _MISSING if over else _PENDING
    prices = _output_prices(typed, came)
    tables = [_Table(typed, came, style, prices, pending) for style in (_EXACT, _DAMAGED)]
    if came.text.count(typed.text[:3]) > 1:
        spans = itertools.pairwise([*typed.parts, len(typed.text)])
        tables.append(_Table(_twice(typed, list(spans)), came, _DOUBLED, prices, pending))
    if bytes(char for char in typed.text[:3] for _ in range(2)) in came.text:
        tables.append(_Table(_twice(typed, [(n, n + 1) for n in range(len(typed.text))]), came, _DOUBLED, prices, pending))
    cheapest = min(table.cheapest for table in tables)
    found = [table.costs() for table in tables if table.cheapest < cheapest + SURE]
    damaged = tables[0].cheapest > cheapest
    prices = [min(e) - min(o) for e, o in zip(*((zip(*(pair[n] for pair in found), strict=True)) for n in (0, 1)), strict=True)]
    best = min(tables, key=lambda table: table.cheapest)
    return prices, damaged, best.complete, best.nearly


def _twice(typed: Typed, spans: list[tuple[int, int]]) -> Typed:
    """Return the text that comes back where each of these spans does twice."""
    text = b"".join(2 * typed.text[low:high] for low, high in spans)
    since = [at for low, high in spans for at in 2 * typed.since[low:high]]
    starts = list(itertools.accumulate((2 * (high - low) for low, high in spans), initial=0))[:-1]
    return Typed(text, since, starts, starts)


def _output_prices(typed: Typed, came: Came) -> list[float]:
    """Return the cost of each character as output.

    What begins as a typed line does is rather that line's echo; so is what goes on with it on the next one; and before the first
    line end was typed nothing ran that could repeat anything.
    """
    ran = typed.since[typed.text.index(b"\n")] if b"\n" in typed.text else _NEVER
    found = []
    begun = typed.text[:_BEGUN] in came.text
    run = 0  # how many characters up to here stand in the typed text as they stand here
    for number, char in enumerate(came.text):
        place = typed.text.find(came.text[number - run : number + 1]) if char != 10 else -1
        run = run + 1 if place >= 0 else 0
        price = _OUT_END if char == 10 else _OUT_BLANK if char in b" \t" else _OUT
        copied = run > _COPY and place not in typed.lines and came.at[number] >= ran
        if copied and begun:  # an echo that has begun goes on: only what came before is said again
            copied = came.text.find(came.text[number - run + 1 : number + 1], 0, number) >= 0
        found.append(min(price, _OUT_COPY) if copied else price)
    return found


class _Table:
    """The cheapest accounts in one style. Their states: how many typed characters are accounted for, and what came last."""

    def __init__(self, typed: Typed, came: Came, style: _Style, prices: list[float], pending: float) -> None:
        self._typed = typed
        self._came = came
        self._style = style
        self._out = prices
        self._size = len(typed.text) + 1
        self._sums = [0.0]  # what it costs that all up to a character are lost
        for char in typed.text:
            self._sums.append(self._sums[-1] + (_LOST_BLANK if char in b" \t\n" or not 0x20 < char < 0x7F else style.lost))
        self._places: dict[int, list[int]] = {}
        for place, char in enumerate(typed.text):
            for form in {char, *(bytes([char]).swapcase() if style.capital < _DEAR else b""), 0x20 if char == 9 else char}:
                self._places.setdefault(form, []).append(place)
        self._blanks = [place + 1 for place, char in enumerate(typed.text) if char in b" \t"]
        echo = [_NEVER] * self._size
        out = [_NEVER] * self._size if came.whole else [style.price] * self._size
        out[0] = style.price
        self._rows: list[tuple[list[float], list[float]]] = []
        for number in range(len(came.text)):
            echo, out = self._step(number, echo, out)
            self._rows.append((echo, out))
        self._ends = [min(pending, self._sums[-1] - lost) for lost in self._sums]
        self._ends[0] = 0.0 if came.whole else self._ends[0]  # a guest that echoes nothing has nothing to come
        self.cheapest = min(min(map(float.__add__, row, self._ends)) for row in (echo, out))
        self.complete = self.cheapest == min(echo[-1], out[-1]) + self._ends[-1]
        nearly = (n for n in range(self._size) if self._sums[-1] - self._sums[n] <= _NEARLY)
        self.nearly = any(self.cheapest == min(echo[n], out[n]) + self._ends[n] for n in nearly)

    def _prices(self, number: int) -> tuple[float, float, float, float]:
        """Return the costs of a character: as output, to begin output with it, to begin echo, to begin a part anew."""
        text = self._came.text
        char = text[number]
        ends = char == 10 or (char == 32 and text[number + 1 : number + 2] == b"\n")
        start, prompt = number in self._came.starts, number in self._came.prompts
        leave = _LEAVE if start or ends else _SWITCH
        enter = _ENTER if start or prompt else _SWITCH
        return self._out[number], leave, enter, _AGAIN_PROMPT if prompt else self._style.again

    def _step(self, number: int, echo: list[float], out: list[float]) -> tuple[list[float], list[float]]:
        price, leave, enter, again = self._prices(number)
        at = self._came.at[number]
        char = self._came.text[number]
        echoed = [_NEVER] * self._size
        if places := self._places.get(char):
            since, sums, text, style = self._typed.since, self._sums, self._typed.text, self._style
            before = [e if e < o + enter else o + enter for e, o in zip(echo, out, strict=True)]
            best = _NEVER  # the cheapest way to have come to a place, less what is lost up to there
            reached = 0
            for place in places:
                if since[place] > at:
                    break
                while reached <= place:
                    if (cost := before[reached] - sums[reached]) < best:
                        best = cost
                    reached += 1
                cost = best + sums[place]
                if text[place] != char and char != 32:
                    cost += style.capital
                echoed[place + 1] = cost
            if again < _DEAR:
                for start in self._anew(number):
                    echoed[start + 1] = min(echoed[start + 1], min(before[start + 1 :]) + again)
        if char == 32:
            for state in self._blanks:
                echoed[state] = min(echoed[state], echo[state] + _MORE_BLANK)
        printed = [(o if o < e + leave else e + leave) + price for e, o in zip(echo, out, strict=True)]
        early = bisect.bisect_right(self._typed.since, at) if number < _FIRST else 0
        printed[:early] = [o + _EARLY for o in printed[:early]]
        return echoed, printed

    def _anew(self, number: int) -> list[int]:
        """Return where the parts begin that may begin anew with a character; behind a prompt, the lines."""
        char, at = self._came.text[number], self._came.at[number]
        starts = self._typed.lines if number in self._came.prompts else self._typed.parts
        return [start for start in starts if self._typed.text[start] == char and self._typed.since[start] <= at]

    def costs(self) -> tuple[list[float], list[float]]:
        """Return for each character what the cheapest account costs in which it is echo, and in which it is output."""
        echo = list(self._ends)  # what the rest costs from each state on
        out = list(echo)
        as_echo, as_output = [], []
        for number in range(len(self._came.text) - 1, -1, -1):
            echoed, printed = self._rows[number]
            as_echo.append(min(map(float.__add__, echoed, echo)))
            as_output.append(min(map(float.__add__, printed, out)))
            echo, out = self._step_back(number, echo, out)
        return as_echo[::-1], as_output[::-1]

    def _step_back(self, number: int, echo: list[float], out: list[float]) -> tuple[list[float], list[float]]:
        price, leave, enter, again = self._prices(number)
        at = self._came.at[number]
        char = self._came.text[number]
        early = bisect.bisect_right(self._typed.since, at) if number < _FIRST else 0
        new_out = [o + price + _EARLY for o in out[:early]] + [o + price for o in out[early:]]
        new_echo = [o + leave for o in new_out]
        if char == 32:
            for state in self._blanks:
                new_echo[state] = min(new_echo[state], echo[state] + _MORE_BLANK)
        if not (places := self._places.get(char)):
            return new_echo, new_out
        sums, text, style = self._sums, self._typed.text, self._style
        onward = [_NEVER] * self._size  # from a state on, with this character as echo
        nearest = _NEVER
        reached = self._size - 1
        for place in reversed(places):
            if self._typed.since[place] > at:
                continue
            while reached > place:
                onward[reached] = nearest - sums[reached]
                reached -= 1
            cost = echo[place + 1] + (style.capital if text[place] != char and char != 32 else 0.0)
            nearest = min(nearest, cost + sums[place])
        for state in range(reached, -1, -1):
            onward[state] = nearest - sums[state]
        if again < _DEAR:
            for start in self._anew(number):
                anew = echo[start + 1] + again
                onward[start + 1 :] = [a if a < anew else anew for a in onward[start + 1 :]]
        new_echo = [a if a < b else b for a, b in zip(new_echo, onward, strict=True)]
        return new_echo, [o if o < e + enter else e + enter for o, e in zip(new_out, onward, strict=True)]
