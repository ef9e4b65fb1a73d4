"""Lays all that came since the first key beside what was typed, before anything that was found counts.

What may be echo by that (`alignment`) is evidence of nothing, and what is surely output is seen, whatever was made of it while
it came.
"""

from __future__ import annotations

import re
from typing import Final

from qcase.console.alignment import SURE, Came, Typed, compare
from qcase.console.echo_text import CARET, ERASE, LATEST, SURELY_ECHO, anywhere, common_start, shown_control, stretches
from qcase.console.hidden import Hidden
from qcase.console.text import Text
from qcase.console.typed_command import PROMPT_END, TypedCommand

_COMES: Final = 15.0  # seconds behind the last key in which the rest of an echo that has begun may come
_BEGUN: Final = 2  # typed characters that show that an echo has begun
_PANIC_END: Final = b"---[ end "
_CELLS: Final = 1 << 15  # pairs of a typed character and one that came, in one review
_CELLS_ALL: Final = 1 << 22  # in all of them
_CAME_LEAST: Final = 512  # characters that came, at least, in one review
_HIDDEN: Final = re.compile(rb"\0+")
_DOUBTFUL: Final = re.compile(rb"[\1]+")
_ERASED: Final = re.compile(rb" {4,}")  # a guest erases a character by a blank over it


class Review:
    """The account of all that came, and what it leaves in doubt."""

    def __init__(self, command: TypedCommand, hidden: Hidden, text: Text) -> None:
        self._command = command
        self._hidden = hidden
        self._text = text
        self._reviewed = -1, -1  # the end of the text at the last review, and the keys that were typed by then
        self._reviewed_to = -1, -1
        self._cells = 0
        self._either: list[tuple[int, int]] = []  # what may be echo, and output as well
        self._repeated: list[tuple[int, int]] = []  # the whole typed line once more
        self._echoes: list[tuple[int, int]] = []  # what surely is echo
        self.complete = False  # all that was typed has come back, by the last review
        self._known_from = text.end  # what was hidden before this position is echo

    def review(self, *, over: bool = False) -> bool:
        """Look at all that came since the first key once more.

        What may be echo is hidden, what surely is output is shown. Returns whether that changed anything. `over`: no more comes.
        """
        text = self._text
        log = self._command.log
        if not log or self._cells > _CELLS_ALL or (self._reviewed == (text.end, len(log)) and not over):
            return False
        back = self._command.plainly_back()
        self._reviewed = text.end, len(self._command.log)
        repeated = self._hide_repeats(back)
        typed = self._all_typed()
        end = min(text.end, back, self._command.log[-1][1] + LATEST)
        if self._reviewed_to == (end, len(self._command.log)) and not over:
            return repeated
        self._reviewed_to = end, len(self._command.log)
        if not typed.text or end <= self._command.began:
            return repeated
        came = self._all_came(end, max(_CELLS // len(typed.text), _CAME_LEAST))
        if not came.text:
            return repeated
        self._cells += len(typed.text) * len(came.text)
        prices, damaged, complete, nearly = compare(typed, came, over=over)
        if not damaged:
            self._settle_by_count(prices, came)
        if back > text.end:
            self._doubt_tails(prices, came)
        capitals = came.text.upper().startswith(typed.text.upper())  # nothing is lost, and nothing stands in between
        self.complete = (nearly or end == back) and (not damaged or capitals)
        sure = (complete or end == back) and (not damaged or capitals)
        echoes = [sure and price <= -SURE for price in prices]
        self._either, _ = stretches(
            [SURELY_ECHO if is_echo else price for is_echo, price in zip(echoes, prices, strict=True)], came
        )
        self._echoes, _ = stretches([0.0 if is_echo else SURELY_ECHO for is_echo in echoes], came)
        self._known_from = came.at[0]
        return self._take(prices, came) or repeated

    def _take(self, prices: list[float], came: Came) -> bool:
        """Hide what may be echo by these prices, and show what surely is output. Return whether that changed anything."""
        text = self._text
        doubts, outputs = stretches(prices, came)
        changed = False
        if doubts != self._hidden.doubts:
            before, self._hidden.doubts = self._hidden.doubts, doubts
            for stretch in before:
                if stretch not in doubts and stretch[0] >= came.at[0]:
                    changed |= self._hidden.restore_line(*stretch)
        for stretch in doubts:
            if text.slice(stretch[0] - len(_PANIC_END), stretch[0]) == _PANIC_END:
                continue  # what nobody types
            view = text.view_slice(*stretch)
            if view.strip(b"\0 \n"):
                text.blank(*stretch)
                changed = True
        self._hidden.outputs = outputs
        for stretch in outputs:
            changed |= self._hidden.show_output(*stretch)
        return changed

    def _settle_by_count(self, prices: list[float], came: Came) -> None:
        """Take the last of several equal texts for output if they are more than the echo can have written."""
        at = 0
        for row in came.text.split(b"\n"):
            end = at + len(row)
            doubtful = [n for n in range(at, end) if prices[n] < SURE and came.text[n] != 0x20]
            if doubtful:
                said = came.text[doubtful[0] : doubtful[-1] + 1]
                if len(said) > 1 and said not in came.text[end:] and self._command.said_more(said, came.text):
                    prices[doubtful[0] : doubtful[-1] + 1] = [SURE] * len(said)
            at = end + 1

    def _hide_repeats(self, back: int) -> bool:
        """Hide the whole line of several words where it stands once more behind its echo: a guest may echo it twice.

        Where a line end follows on an echo that is what was typed, another one stands on a row of its own; else anywhere.
        """
        text, line = self._text, self._command.lines[0]
        if b" " not in line.text.strip():
            return False
        alone = back <= text.end
        again = re.compile(re.escape(line.text.strip())) if alone else anywhere(line.chars)
        start = back if alone else self._command.came_back()
        limit, changed = start + LATEST, False
        start = max([start, *(end for _, end in self._repeated[-1:])])
        while start < limit and (found := text.search(again, start)):
            start = found[1]
            if not alone or self._is_row(*found):
                self._repeated.append(found)
                self._hidden.hide_surely(*found)
                changed = True
        return changed

    def _is_row(self, start: int, end: int) -> bool:
        """Tell whether a stretch is a whole row but for a prompt and blanks."""
        over = self._text.find(b"\n", end)
        row = self._text.slice(self._text.start_of_line(start), over)
        return over >= 0 and self._command.unprompted(row) == self._text.slice(start, end)

    def _doubt_tails(self, prices: list[float], came: Came) -> None:
        """Doubt a row's end that is the end of a typed line: of some words behind a program's text, or torn off its start."""
        at = 0
        for row in came.text.split(b"\n"):
            shown = row.rstrip(b" ")
            for line in self._command.lines:
                typed = line.text.rstrip(b" ")
                size = common_start(shown[::-1], typed[::-1])
                start = at + len(shown) - size
                words = shown[len(shown) - size :].rpartition(b" ")[0].strip()
                within = len(words) >= _BEGUN and size < len(shown) and start not in came.prompts
                head = typed[: len(typed) - size].rstrip(b" ")
                torn = size > 1 and size == len(shown) and head and head + b"\n" in came.text[:at].replace(b" \n", b"\n")
                if within or torn:
                    prices[start : start + size] = [min(price, 0.0) for price in prices[start : start + size]]
            at += len(row) + 1

    def may_be_echo(self, said: bytes, now: float, *, over: bool) -> bool:
        """Tell whether a text was typed, and each place where it came may be the echo of that, for all that anyone can tell."""
        said = said.strip()
        if (
            not self._command.log
            or not said
            or all(said not in line.text for line in self._command.lines)
            or self._command.plainly_back() <= self._text.end
        ):
            return False
        if self._came_too_soon(said):
            return False
        came = self._text.slice(max(self._command.began, self._text.base), min(self._text.end, self._command.log[-1][1] + LATEST))
        came = self._command.without_kernels(came)
        if self._command.lines[0].text[:_BEGUN] not in came or self._command.said_more(said, came):
            return False
        return (not over and now < self._command.typed_at + _COMES) or self._goes_on(said, came)

    def _came_too_soon(self, said: bytes) -> bool:
        """Tell whether a text came before it was typed: so it is output, there at least."""
        typed = self._all_typed()
        places = (n for n in range(len(typed.text)) if typed.text.startswith(said, n))
        first = self._text.find(said, self._command.began)
        return 0 <= first < min((typed.since[n] for n in places), default=0)

    def _goes_on(self, said: bytes, came: bytes) -> bool:
        """Tell whether what was typed behind a text came behind it, too: an echo that loses nothing does."""
        at = came.find(said)
        while at >= 0:
            for line in self._command.lines:
                rest = iter(came[at + len(said) :])
                if said in line.text and all(char in rest for char in line.text.rpartition(said)[2] if 0x20 < char < 0x7F):
                    return True
            at = came.find(said, at + 1)
        return False

    def hidden_doubts(self) -> list[tuple[int, int]]:
        """Return the hidden stretches that may be output as well as echo: by an alignment, or because none explains them."""
        base, doubtful = self._text.base, self._doubtful()
        found = (stretch.span() for stretch in _HIDDEN.finditer(self._text.view))
        return [
            (base + part.start(), base + part.end())
            for low, high in found
            for part in _DOUBTFUL.finditer(doubtful, low, high)
            if self._text.raw[part.start() : part.end()].strip()
        ]

    def in_doubt(self, start: int, end: int) -> bool:
        """Tell whether a stretch holds what may be echo as well as output."""
        return 1 in self._doubtful()[max(start - self._text.base, 0) : max(end - self._text.base, 0)]

    def _doubtful(self) -> bytearray:
        """Return a 1 for each character of the text that may be echo as well as output."""
        text = self._text
        doubtful = bytearray(text.end - text.base)
        if self._reviewed[0] >= 0:
            for found in _HIDDEN.finditer(text.view, max(self._known_from - text.base, 0)):
                doubtful[found.start() : found.end()] = b"\1" * len(found[0])
            for low, high in self._echoes:
                low, high = max(low - text.base, 0), max(high - text.base, 0)
                doubtful[low:high] = bytes(high - low)
        for low, high in (*self._either, *self._repeated):
            low, high = max(low - text.base, 0), max(high - text.base, 0)
            doubtful[low:high] = b"\1" * (high - low)
        return doubtful

    def _all_typed(self) -> Typed:
        """Return what was typed, as most guests show it."""
        out = bytearray()
        since: list[int] = []
        parts: list[int] = []
        for keys, at in self._command.log:
            shown = CARET.sub(lambda found: b"^" + bytes([found[0][0] ^ 0x40]), keys.strip(ERASE))
            if shown:
                parts.append(len(out))
                out += shown
                since += [at] * len(shown)
        lines = [0] + [n + 1 for n, char in enumerate(out[:-1]) if char == 10]
        return Typed(bytes(out), since, parts, lines)

    def _all_came(self, end: int, most: int) -> Came:
        """Return what came since the first key, the last `most` characters of it, without the kernel's lines."""
        text = self._text
        start = max(self._command.began, text.base, end - 4 * most)
        raw = text.slice(start, end)
        came = bytearray()
        at: list[int] = []
        low = 0
        for kernels in self._command.others.finditer(raw):
            came += raw[low : kernels.start()]
            at += range(start + low, start + kernels.start())
            low = kernels.end()
        came += raw[low:]
        at += range(start + low, start + len(raw))
        for blanks in reversed(list(_ERASED.finditer(came))):
            del came[blanks.start() : blanks.end() - 1], at[blanks.start() : blanks.end() - 1]
        if CARET.search(came):
            pairs = [(char, place) for raw, place in zip(came, at, strict=True) for char in shown_control(raw)]
            came, at = bytearray(char for char, _ in pairs), [place for _, place in pairs]
        whole = start == self._command.began and len(came) <= most
        came, at = came[-most:], at[-most:]
        starts = {0} | {n + 1 for n, char in enumerate(came) if char == 10}
        prompts = set()
        for prompt in (self._command.prompt, b">"):
            found = came.find(prompt) if prompt else -1
            while found >= 0:
                if rest := PROMPT_END.match(came, found + len(prompt)):
                    prompts.add(rest.end())
                found = came.find(prompt, found + 1)
        return Came(bytes(came), at, starts, prompts, whole)
