"""Types a case's command, and finds what comes back of it.

What a guest echoes is no output: a pattern that also stands in the command must not match there. So echo is blanked out of
the text that patterns see. There are three kinds of it:

* Until the first line end is out, a part of a line whose characters are a subsequence of what was typed so far may be echo
  and is hidden; a line of which nothing was typed is output. What came back elsewhere is shown again. (`_hide_typing`)
* A command goes out in chunks that a UART's FIFO holds, the next one when the echo of the last has come back, the line
  end last. So each later line's echo is known by its chunks. (`_echoed`)
* An echo that comes after its line end, because the guest was busy, and the second one that a line editor paints of lines
  that were typed ahead: these begin at the start of a line or behind a prompt and hold the whole line. They are followed
  byte by byte (`_Trace`), and hidden already while they may still become one.

These follow the text as it comes. Before anything that was found counts, and when it is quiet, all that came since the first
key is laid beside what was typed (`review`, `alignment`): what may be echo by that is evidence of nothing, and what is surely
output is seen, whatever the rules above made of it.

What comes back of the first line also shows whether it arrived. If characters of it are missing, the line is erased and typed
once more, before its line end makes the guest run something else. A guest that echoes nothing is believed.

Between two characters of an echo a terminal may break the line, and a kernel may write a line of its own. A character that
is not plain ASCII may come back as something else, or not at all.
"""

from __future__ import annotations

import difflib
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from qcase.console.alignment import SURE, Came, Typed, compare
from qcase.console.echo_text import (
    BETWEEN,
    CARET,
    CHUNK,
    SURELY_ECHO,
    TypedLine,
    anywhere,
    as_line,
    common_start,
    folded,
    is_subsequence,
    plain,
    shown_control,
    shown_typed,
    stretches,
    typed_runs,
    with_carets,
)
from qcase.console.joined import KERNEL_LINE
from qcase.console.text import Text

ECHO_PATIENCE: Final = 1.0  # seconds to wait for an echo before going on without
CALM: Final = 0.3  # seconds without a byte after which a guest is taken to have echoed what it will
CALM_PATIENCE: Final = 5.0  # seconds to wait for that
LATEST: Final = 1 << 18  # bytes of output after which no echo is missed any more
_SPACE: Final = 1 << 15  # bytes between an echo and another one, which is no repaint then
ERASE: Final = b"\x7f"  # what a terminal and every line editor take for it
ERASE_PAUSE: Final = 0.05  # seconds between two chunks of erasing: what comes back of that is not looked at
_SHORT: Final = 3  # typed characters that may stand in a word by chance are fewer
_ECHO_PLACE: Final = re.compile(rb"[ >]*")
_COMES: Final = 15.0  # seconds behind the last key in which the rest of an echo that has begun may come
_BEGUN: Final = 2  # typed characters that show that an echo has begun
_RUN: Final = 4  # typed characters in a row that are no chance
_PROMPT_END: Final = re.compile(rb"[^\s]*[ \t]*")
_TRACES: Final = 64  # places that are watched at a time
_PANIC_END: Final = b"---[ end "
_CELLS: Final = 1 << 15  # pairs of a typed character and one that came, in one review
_CELLS_ALL: Final = 1 << 22  # in all of them
_CAME_LEAST: Final = 256  # characters that came, at least, in one review

_BREAKS: Final = 3  # line ends that a terminal may make of one break: busybox writes CR, CR LF
_KERNEL_ENDED: Final = re.compile(KERNEL_LINE.pattern + rb"(?:\n|\Z)")
_LINE_OVER: Final = re.compile(rb" ?\n")
_KERNEL_WHOLE: Final = re.compile(KERNEL_LINE.pattern + rb"\n")
_MAYBE_BETWEEN: Final = re.compile(rb"(?: |" + KERNEL_LINE.pattern + rb"|(?:<\d?>?)?\[[ \d.]*)\Z")
_AFTER: Final = re.compile(rb" ?\n| ?" + KERNEL_LINE.pattern)
_MAYBE_AFTER: Final = re.compile(rb" ?(?:(?:<\d?>?)?\[[ \d.]*)?\Z")
# Where an echo may begin: at the start of a line, and behind what looks like a prompt.
_PLACE: Final = rb"(?:^|[#$>%])[ >]*"


@dataclass
class _Trace:
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


class Keyboard:
    """Types one command, from the moment at which it is made on. `restored` is the start of text that came into view again."""

    def __init__(self, command: str, prompt: str, text: Text, now: float) -> None:
        self.warning = ""
        self.line_end_typed = False  # from now on the guest runs something
        self.restored: int | None = None
        self._prompt = prompt.encode()
        self._text = text
        self._lines = [as_line(line) for line in command.rstrip("\r\n").split("\n")]
        self._at = 0  # the line that is being typed
        self._waiting: int | None = None  # the chunk whose echo is waited for
        self._until = 0.0
        self._patience = ECHO_PATIENCE
        self._calm_by: float | None = None
        self._to_erase: int | None = None  # characters of a line that did not arrive
        self._may_repeat = True
        self._began = text.end  # from here to `_ran` is echo, whatever it is
        self._ran = text.end
        self._again_from = 0  # where the text ended when the line was erased
        self._line_open = True  # what comes may still be echo of the first line, which has not ended
        self._echo_from = text.end
        self._echoes = False  # some of what was typed came back
        self._grown_at = now
        self._seen = text.end
        self._traces: dict[tuple[int, int], _Trace] = {}  # by line and place
        self._hidden: deque[tuple[int, int]] = deque(maxlen=_TRACES)  # the last stretches that surely were echo
        # A kernel's line, and what begins with the program's name and a colon: `sh: not found`.
        name = re.escape((command.split() or [" "])[0].encode())
        self._kernels = not KERNEL_LINE.search(command.encode())  # what looks like a kernel's line is one
        kernels = b"|" + _KERNEL_ENDED.pattern if self._kernels else b""
        self._others = re.compile(rb"(?m)^" + name + rb": [^\n]*(?:\n|\Z)" + kernels)
        self._mixed: list[tuple[int, int]] = []  # hidden stretches of lines that hold more than echo
        self._whole: dict[int, int] = {}  # parts of lines that may be echo as a whole
        self._most = 0  # chunks of the first line that were typed so far
        self._part: dict[int, int] = {}  # those that stay hidden
        self._soft_runs: list[int] = []  # where runs of typed characters begin that are no evidence until it is known better
        self._printed = -1, -1  # an end of the first line's echo, and a place before which something was printed since
        self._sure: list[tuple[int, int]] = []  # where the chunks of the first line came back
        self._typed_at = now
        self._log: list[tuple[bytes, int]] = []  # what was typed, and where the text ended then
        self._reviewed = -1, -1  # the end of the text at the last review, and the keys that were typed by then
        self._reviewed_to = -1, -1
        self._sure_from = 0  # the chunks that came back before the line was typed again
        self._cells = 0
        self._damaged = False  # the echo is not what was typed: with losses, in capitals, or twice
        self._folded = b""  # what was typed then, without blanks and capitals
        self._doubts: list[tuple[int, int]] = []  # what may be echo, by that
        self._either: list[tuple[int, int]] = []  # and what may be output as well
        self._repeated: list[tuple[int, int]] = []  # rows that are the whole typed line once more
        self._outputs: list[tuple[int, int]] = []  # what surely is output
        self._watch(text.end, [(line, line.chars) for line in self._lines[:1]], repaint=False)

    @property
    def all_typed(self) -> bool:
        """Tell whether the last line end is out."""
        return self._at >= len(self._lines)

    @property
    def next_wake(self) -> float | None:
        return self._until if self._at < len(self._lines) else None

    def type(self, now: float) -> bytes:
        """Return what is to be typed now."""
        if out := self._type(now):
            self._log.append((out, self._text.end))
            self._typed_at = now
        return out

    def _type(self, now: float) -> bytes:
        out = bytearray()
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if self._to_erase is not None:
                if now < self._until:
                    break
                out += self._erase(line, now)
                continue
            if self._waiting is not None:
                if self._echoed(line, self._waiting):
                    if not line.doubtful:
                        line.missing.remove(self._waiting)
                    self._patience = ECHO_PATIENCE
                elif now < self._until:
                    break
                else:
                    # It does not echo, or is busy. Waiting again for each chunk would not make that better.
                    self._patience = 0.02
                self._waiting = None
            if line.at < len(line.typed):
                self._waiting = line.at
                line.missing.append(line.at)
                out += line.typed[line.at]
                line.since = self._text.end
                line.at += 1
                self._until = now + self._patience
                continue
            if self._wait_for_calm(line, now):
                break
            if self._may_repeat and self._arrived_damaged(line):
                self._may_repeat = False
                self._to_erase = len(line.text) + CHUNK
                self._until = now
                self.warning = f"the guest lost characters of what was typed, so it was typed again: {shown_typed(line.text)}"
                continue
            if line.missing and not line.doubtful and (len(line.missing) < len(line.chunks) or not self._may_repeat):
                self.warning = f"the guest echoed only a part of what was typed: {shown_typed(line.text)}"
            out += b"\n"
            line.ended = True
            line.ended_at = self._text.end
            if line.missing:
                self._watch(self._text.end, [(line, line.rest)], repaint=False, late=True)
            if not self.line_end_typed:
                self._ran = self._text.end
                self.line_end_typed = True
                self.show_mixed()
                self._line_open = self._echo_goes_on()
            self._at += 1
        return bytes(out)

    def find_echo(self, now: float) -> None:
        """Blank out what came back in the text that is new."""
        text = self._text
        if text.end == self._seen:
            return
        self._grown_at = now
        if self._line_open:
            self._hide_typing()
            self._line_open = not self.line_end_typed or self._echo_goes_on()
        self._find_places()
        self._find_whole()
        self._seen = text.end
        undone: list[_Trace] = []
        self._traces = {key: trace for key, trace in self._traces.items() if self._follow(trace, undone)}
        for key, trace in list(self._traces.items()):
            if trace.late and not trace.line.missing:
                undone.append(self._traces.pop(key))
        if len(self._traces) > _TRACES:
            keys = sorted(self._traces, key=lambda key: self._traces[key].matched)
            undone += [self._traces.pop(key) for key in keys[:-_TRACES]]
        self._show(undone)

    def unsure_from(self, *, quiet: bool) -> int:
        """Return where the echo of a typed line may have begun at the end of the text; `text.end` if none has.

        One or two characters that stand alone for a while are the end of a word: a guest that does not echo would else never
        pass on a last line that ends in the letter with which the command begins.
        """
        least = 3 if quiet else 1
        rest = self._text.slice(max(self._text.line_start, self._text.end - 4096), self._text.end)
        longest = 0
        for line in self._lines:
            if line.ended and not line.missing:
                continue
            for n in range(min(len(line.text), len(rest)), max(longest, min(least, len(line.text)) - 1), -1):
                if rest.endswith(line.text[:n]):
                    longest = n
                    break
        return self._text.end - longest

    # --- by alignment -------------------------------------------------------------------------------------------------

    def review(self, low: int | None = None, *, over: bool = False) -> bool:
        """Look at all that came since the first key once more, where something is believed to stand from a position on.

        What may be echo is hidden, what surely is output is shown. Returns whether that changed anything. `over`: no more comes.
        """
        text = self._text
        if not self._log or self._cells > _CELLS_ALL or (self._reviewed == (text.end, len(self._log)) and not over):
            return False
        back = self._plainly_back()
        if low is not None and (low >= self._log[-1][1] + LATEST or low >= back):
            return False
        self._reviewed = text.end, len(self._log)
        repeated = self._hide_repeats(back)
        typed = self._all_typed()
        end = min(text.end, back, self._log[-1][1] + LATEST)
        if self._reviewed_to == (end, len(self._log)) and not over:
            return repeated
        self._reviewed_to = end, len(self._log)
        if not typed.text or end <= self._began:
            return repeated
        came = self._all_came(end, max(_CELLS // len(typed.text), _CAME_LEAST))
        if not came.text:
            return repeated
        self._cells += len(typed.text) * len(came.text)
        prices, self._damaged, complete = compare(typed, came, over=over)
        self._folded = folded(typed.text) if self._damaged else b""
        if not self._damaged:
            self._settle_by_count(prices, came)
        if back > text.end:
            self._doubt_tails(prices, came)
        doubts, outputs = stretches(prices, came)
        capitals = came.text.upper().startswith(typed.text.upper())  # nothing is lost, and nothing stands in between
        sure = (complete or end == back) and (not self._damaged or capitals)
        self._either, _ = stretches([SURELY_ECHO if sure and price <= -SURE else price for price in prices], came)
        changed = repeated
        if doubts != self._doubts:
            before, self._doubts = self._doubts, doubts
            for stretch in before:
                if stretch not in doubts and stretch[0] >= came.at[0]:
                    changed |= self._restore_line(*stretch)
        for stretch in doubts:
            if text.slice(stretch[0] - len(_PANIC_END), stretch[0]) == _PANIC_END:
                continue  # what nobody types
            view = text.view_slice(*stretch)
            if view.strip(b"\0 \n"):
                text.blank(*stretch)
                changed = True
        self._outputs = outputs
        for stretch in outputs:
            changed |= self._show_output(*stretch)
        return changed

    def _hide_repeats(self, back: int) -> bool:
        """Hide each row behind an echo's end that is the whole line of several words: a guest may echo it twice."""
        text, line = self._text, self._lines[0].text.strip()
        if b" " not in line:
            return False
        start = self._repeated[-1][1] if self._repeated else back
        changed = False
        while 0 <= (at := text.find(line, start)) < back + LATEST:
            start = at + len(line)
            end = text.find(b"\n", start)
            if end >= 0 and self._unprompted(text.slice(text.start_of_line(at), end)) == line:
                self._repeated.append((at, start))
                self._hide_surely(at, start)
                changed = True
        return changed

    def _settle_by_count(self, prices: list[float], came: Came) -> None:
        """Take the last of several equal texts for output if they are more than the echo can have written."""
        at = 0
        for row in came.text.split(b"\n"):
            end = at + len(row)
            doubtful = [n for n in range(at, end) if prices[n] < SURE and came.text[n] != 0x20]
            if doubtful:
                said = came.text[doubtful[0] : doubtful[-1] + 1]
                if len(said) > 1 and said not in came.text[end:] and self._said_more(said, came.text):
                    prices[doubtful[0] : doubtful[-1] + 1] = [SURE] * len(said)
            at = end + 1

    def _doubt_tails(self, prices: list[float], came: Came) -> None:
        """Doubt a row's end that is the end of a typed line: of some words behind a program's text, or torn off its start."""
        at = 0
        for row in came.text.split(b"\n"):
            shown = row.rstrip(b" ")
            for line in self._lines:
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

    def _said_more(self, said: bytes, came: bytes) -> bool:
        """Tell whether a text came more often than the echo can have written it: a line but the first may come back twice.

        Only rows that hold nothing else count, and those that are a typed line.
        """
        lines = [line.text.strip(b" ") for line in self._lines]
        times = sum(line.count(said) for line in lines)
        rows = came.split(b"\n")
        if said in lines[0]:
            rows = [row for row in rows if not self._painted(row)]
            whole = any(row.strip(b" ") == lines[0] for row in rows)
            times *= 1 if whole else 2
        else:
            times *= 2
        count = sum(row.count(said) for row in map(self._unprompted, rows) if row == said or row in lines)
        return 0 < times * self._rounds < count

    def may_be_echo(self, said: bytes, now: float, *, over: bool) -> bool:
        """Tell whether a text was typed, and each place where it came may be the echo of that, for all that anyone can tell."""
        said = said.strip()
        if (
            not self._log
            or not said
            or all(said not in line.text for line in self._lines)
            or self._plainly_back() <= self._text.end
        ):
            return False
        came = self._text.slice(max(self._began, self._text.base), min(self._text.end, self._log[-1][1] + LATEST))
        came = KERNEL_LINE.sub(b"", came) if self._kernels else came
        if self._lines[0].text[:_BEGUN] not in came or self._said_more(said, came):
            return False
        return (not over and now < self._typed_at + _COMES) or self._goes_on(said, came)

    def _goes_on(self, said: bytes, came: bytes) -> bool:
        """Tell whether what was typed behind a text came behind it, too: an echo that loses nothing does."""
        at = came.find(said)
        while at >= 0:
            for line in self._lines:
                rest = iter(came[at + len(said) :])
                if said in line.text and all(char in rest for char in line.text.rpartition(said)[2] if 0x20 < char < 0x7F):
                    return True
            at = came.find(said, at + 1)
        return False

    def _unprompted(self, row: bytes) -> bytes:
        """Return a row without the prompt that it begins with, and without blanks around it."""
        at = row.rfind(self._prompt) if self._prompt else -1
        rest = _PROMPT_END.match(row, at + len(self._prompt)) if at >= 0 else re.match(rb"> ", row)
        return row[rest.end() if rest else 0 :].strip(b" ")

    def _painted(self, row: bytes) -> bool:
        """Tell whether a row shows a part of a typed line behind a prompt."""
        shown = self._unprompted(row)
        return shown != row.strip(b" ") and shown != b"" and any(line.text.startswith(shown) for line in self._lines)

    @property
    def _rounds(self) -> int:
        """Count how often the command was typed."""
        return 1 if self._may_repeat else 2

    def may_have_typed(self, found: bytes) -> bool:
        """Tell whether a text stands in what was typed, of which the echo is such that nobody can tell where it stands."""
        return bool(self._folded) and folded(found) in self._folded

    def doubtful_lines(self) -> list[tuple[bytes, bytes]]:
        """The lines that hold what may be echo as well as output: with that shown, and with a 1 for each of its characters."""
        text = self._text
        found: dict[int, tuple[bytearray, bytearray]] = {}
        for low, high in (*self._either, *self._repeated):
            if low < text.base or not text.slice(low, high).strip():
                continue
            start = text.start_of_line(low)
            end = text.find(b"\n", start)
            end = text.end if end < 0 else end
            line, doubtful = found.setdefault(start, (bytearray(text.view_slice(start, end)), bytearray(end - start)))
            high = min(high, end)
            line[low - start : high - start] = text.slice(low, high)
            doubtful[low - start : high - start] = b"\1" * (high - low)
        return [(bytes(line), bytes(doubtful)) for line, doubtful in found.values()]

    def _restore_line(self, start: int, end: int) -> bool:
        self._show_again(start, end)
        low = max(start, self._text.base)
        self.restored = low if self.restored is None else min(self.restored, low)
        return True

    def _show_output(self, start: int, end: int) -> bool:
        """Show what surely is output, where it was hidden since it might have been echo."""
        changed = False
        for low, high in list(self._text.soft.items()):
            if start <= low and high <= end:
                self._text.harden(low)
                changed = True
        for low, high in [*self._part.items(), *self._mixed, *self._whole.items()]:
            low, high = max(low, start), min(high, end)
            if low < high and 0 in self._text.view_slice(low, high):
                self._text.restore(low, high)
                self.restored = low if self.restored is None else min(self.restored, low)
                changed = True
        for key, trace in list(self._traces.items()):
            if any(low < end and start < high for low, high in trace.hidden):
                del self._traces[key]
                self._show([trace])
                changed = True
        return changed

    def _plainly_back(self) -> int:
        """Return the end of an echo that is exactly what was typed, one line, with its end right behind; else behind all text."""
        text = self._text
        never = text.end + 1
        sure = self._sure[self._sure_from :]
        if len(self._lines) > 1 or not self.line_end_typed or len(sure) != len(self._lines[0].chunks):
            return never
        at = max(self._began, self._again_from)
        for low, high in sure:
            if low < at or not self._only_paints(text.slice(at, low)):
                return never
            at = high
        if at >= text.end or text.match(_LINE_OVER, at) is None:
            return never
        return at

    def _only_paints(self, between: bytes) -> bool:
        """Tell whether two parts of an echo are parted only by breaks, a kernel's lines, and what is painted anew."""
        for row in KERNEL_LINE.sub(b"", between).split(b"\n"):
            at = row.rfind(self._prompt) if self._prompt else -1
            rest = _PROMPT_END.match(row, at + len(self._prompt)) if at >= 0 else None
            if not self._lines[0].text.startswith(row[rest.end() if rest else 0 :].rstrip(b" ")):
                return False
        return True

    def _all_typed(self) -> Typed:
        """Return what was typed, as most guests show it."""
        out = bytearray()
        since: list[int] = []
        parts: list[int] = []
        for keys, at in self._log:
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
        start = max(self._began, text.base, end - 4 * most)
        raw = text.slice(start, end)
        came = bytearray()
        at: list[int] = []
        low = 0
        for kernels in self._others.finditer(raw):
            came += raw[low : kernels.start()]
            at += range(start + low, start + kernels.start())
            low = kernels.end()
        came += raw[low:]
        at += range(start + low, start + len(raw))
        if CARET.search(came):
            pairs = [(char, place) for raw, place in zip(came, at, strict=True) for char in shown_control(raw)]
            came, at = bytearray(char for char, _ in pairs), [place for _, place in pairs]
        whole = start == self._began and len(came) <= most
        came, at = came[-most:], at[-most:]
        starts = {0} | {n + 1 for n, char in enumerate(came) if char == 10}
        prompts = set()
        for prompt in (self._prompt, b">"):
            found = came.find(prompt) if prompt else -1
            while found >= 0:
                if rest := _PROMPT_END.match(came, found + len(prompt)):
                    prompts.add(rest.end())
                found = came.find(prompt, found + 1)
        return Came(bytes(came), at, starts, prompts, whole)

    # --- while keys are pressed ----------------------------------------------------------------------------------------

    def _wait_for_calm(self, line: TypedLine, now: float) -> bool:
        """Before the first line end: what came back is not what was typed, so wait until no more of it comes."""
        if self.line_end_typed or not line.missing or self._text.end == self._began:
            return False
        if self._calm_by is None:
            self._calm_by = now + CALM_PATIENCE
        self._until = min(self._grown_at + CALM, self._calm_by)
        return now < self._until

    def _arrived_damaged(self, line: TypedLine) -> bool:
        """Tell whether what came back is the first line, but for characters that were lost."""
        if self.line_end_typed or not line.missing:
            return False
        came = KERNEL_LINE.sub(b"", self._text.slice(self._began, self._text.end))
        typed = plain(line.text)
        back = plain(came)
        rest = iter(back)
        if not typed or all(char in rest for char in typed):
            return False  # all of it is there, with something in between
        return len(back) <= 2 * len(typed) and difflib.SequenceMatcher(None, typed, back, autojunk=False).ratio() > 0.6

    def _erase(self, line: TypedLine, now: float) -> bytes:
        """Take back a part of the line; when all is gone and it is calm, begin anew."""
        assert self._to_erase is not None
        if self._to_erase > 0:
            count = min(CHUNK, self._to_erase)
            self._to_erase -= count
            self._until = now + (ERASE_PAUSE if self._to_erase else CALM)
            return ERASE * count
        self._to_erase = None
        line.at = 0
        line.missing.clear()
        self._waiting = None
        self._patience = ECHO_PATIENCE
        self._calm_by = None
        self._echo_from = self._again_from = self._text.end
        self._sure_from = len(self._sure)
        return b""

    def _hide_typing(self) -> None:
        """Hide what may be echo of the text that came since the first key.

        That is each part of a line whose characters are a subsequence of what was typed. A part that holds something else is
        output, but for what goes on with the echo at its start or its end.
        """
        text = self._text
        start = max(self._began, self._again_from, text.start_of_line(self._ran), text.base)
        limit = text.end
        if self.line_end_typed:  # the line that is open then, and no other
            ended = self._echo_ends()
            limit = text.end if ended < 0 else ended
        else:
            self._ran = text.end
        self._most = max(self._most, self._lines[0].at)
        typed = with_carets(b"".join(self._lines[0].typed[: self._most]))
        while start < limit:
            end = text.find(b"\n", start)
            end = limit if end < 0 else min(end, limit)
            self._hide_part(start, end, typed)
            start = end + 1
        for stretch in self._outputs:
            if stretch[1] > text.base:
                self._show_output(*stretch)

    def _echo_goes_on(self) -> bool:
        """Tell whether the line on which the first line's echo stands, or has still to come, has not ended."""
        return self._echo_ends() < 0

    def _echo_ends(self) -> int:
        """Return the end of the line on which the first line's echo stands or may come: the first not a kernel's; or -1."""
        text = self._text
        start = max(self._sure[-1][1] if self._sure else self._began, text.base)
        while (end := text.find(b"\n", start)) >= 0:
            line = text.slice(start, end)
            if self._sure or not KERNEL_LINE.search(line) or KERNEL_LINE.sub(b"", line).strip():
                break
            start = end + 1
        return end

    def _hide_part(self, start: int, end: int, typed: bytes) -> None:
        text = self._text
        line = text.slice(start, end)
        kernels = KERNEL_LINE.search(line) if self._kernels else None
        if kernels is not None:
            line = line[: kernels.start()]
        if self._prompt and (at := line.rfind(self._prompt)) >= 0:
            skip = at + len(self._prompt)
            rest = _PROMPT_END.match(line, skip)
            start += rest.end() if rest else skip
            line = line[rest.end() if rest else skip :]
        end = start + len(line)
        # Where nothing has come back so far, what stands behind the prompt may as well be a command's output.
        late = self.line_end_typed and not self._sure and start >= self._ran
        self._part.pop(start, None)
        if not late:
            self._show_again(start, end)
            text.soft.pop(start, None)
        if late and line[:_RUN] != typed[: min(_RUN, len(line))]:
            if len(line) >= CHUNK // 2 and is_subsequence(line, typed):
                text.soften(start, end)
            return
        capitals = typed.upper()
        if is_subsequence(line, typed):
            text.blank(start, end)
            self._part[start] = end
            self._whole[start] = end
        elif late:
            return
        elif capitals != typed and len(line) > 1 and capitals.startswith(line):
            text.blank(start, end)
        elif len(line) >= _RUN and line.lower() in typed.lower():
            text.soften(start, end)  # an echo that was altered
        else:
            self._hide_ends(start, line, typed)

    def _hide_ends(self, start: int, line: bytes, typed: bytes) -> None:
        """Hide the echo at the start of a line with something else on it, and what of the same chunk stands at its end."""
        for low, high in self._sure:
            self._text.blank(max(low, start), max(start, min(high, start + len(line))))
        before = sum(high <= start for _, high in self._sure)
        came = sum(len(chunk) for chunk in self._lines[0].typed[:before])
        first = common_start(line, typed[came:])
        if first > 1 or (first and not came):
            self._hide_mixed(start, start + first)
            chunk = typed[came + first : came + CHUNK]
            last = next((n for n in range(len(chunk), 0, -1) if line[first:].endswith(chunk[:n])), 0)
            if last:
                self._hide_mixed(start + len(line) - last, start + len(line))
        for low, high in typed_runs(line, typed, max(_RUN, len(line) // 2)):
            self._text.soften(start + low, start + high)
            self._soft_runs.append(start + low)

    def _hide_mixed(self, start: int, end: int) -> None:
        self._text.blank(start, end)
        self._mixed.append((start, end))

    def show_mixed(self) -> None:
        """Show what only looked like a part of what was typed: all of that has come back elsewhere, or nothing has."""
        if self._lines[0].missing and self._sure:
            return
        if not self._lines[0].missing:
            self._text.harden()
            if self._may_repeat and len(self._sure) == len(self._lines[0].chunks):
                self._show_rest()
        elif 2 * sum(high - low for low, high in self._whole.items()) < len(self._lines[0].text):
            # So little of what was typed is no echo of it; but no evidence either.
            for low, high in self._whole.items():
                self._text.soften(low, high)
                self._mixed.append((low, high))
                self._part.pop(low, None)
        self._whole.clear()
        for low in self._soft_runs:
            self._text.harden(low)
        self._soft_runs.clear()
        shown = [(low, high) for low, high in self._mixed if all(high <= a or b <= low for a, b in self._sure)]
        self._mixed.clear()
        for low, high in shown:
            self._text.restore(low, high)
            self.restored = low if self.restored is None else min(self.restored, low)

    def _show_rest(self) -> None:
        """Each chunk came back where it belongs: what only could be echo is output, but for what is painted behind a prompt."""
        for low, high in self._whole.items():
            prompted = self._prompt and self._prompt in self._text.slice(self._text.start_of_line(low), low)
            if not prompted and all(high <= a or b <= low for a, b in self._sure):
                self._text.soften(low, high)
                self._mixed.append((low, high))
                self._part.pop(low, None)

    def _echoed(self, line: TypedLine, number: int) -> bool:
        """Tell whether a chunk of a line has come back. It is hidden where it is no chance that it stands there."""
        text = self._text
        chunk = line.chunks[number]
        since = 0 if self.line_end_typed else line.since
        found = text.search(anywhere(chunk), max(self._echo_from, since, text.base))
        if found is None:
            return False
        if not self.line_end_typed:
            if line.missing[0] == number:  # all before it came back
                self._sure.append(found)
        else:
            placed = text.match(_ECHO_PLACE, text.start_of_line(found[0])) == found[0] or number > 0
            if number == len(line.chunks) - 1 and found[1] < text.end and text.match(_AFTER, found[1]) is None:
                placed = False
            if placed or found[1] - found[0] >= _SHORT:
                self._hide_surely(*found)
            if not placed:
                line.doubtful = True  # the echo may still come where it belongs
        self._echo_from = found[1]
        self._echoes = True
        return True

    # --- late, and again -----------------------------------------------------------------------------------------------

    def _find_places(self) -> None:
        """Watch the places in the new text at which an echo may begin."""
        text = self._text
        every = [(line, line.chars) for line in self._lines]
        at = text.find(self._prompt, max(self._seen - len(self._prompt) + 1, text.base)) if self._prompt else -1
        while at >= 0:
            self._watch(at + len(self._prompt), every[self._has_run(at) :], repaint=False)
            at = text.find(self._prompt, at + 1)
        # The first line is typed at the case's prompt, and can come again only there.
        prompted = self._prompt and text.find(self._prompt, text.start_of_line(self._seen)) >= 0
        late = [(line, line.rest) for line in self._lines if line.missing and text.end < line.ended_at + LATEST]
        again = [
            (line, line.chars)
            for line in self._lines
            if line.at and line.repaints and (line is not self._lines[0] or (prompted and not self._has_run(text.line_start)))
        ]
        if not late and not again:
            return
        first = {chars[0].pattern for _, chars in late + again if chars}
        begins = rb"(?=" + rb"|".join(sorted(first)) + rb"|\Z)"
        # A place at the end of the text is watched before anything stands there, so none begins in what was seen.
        for place in re.compile(rb"(?m)" + _PLACE + begins).finditer(text.raw, self._seen - text.base):
            start = text.base + place.end()
            prompted = place.end() > place.start()
            self._watch(start, late, repaint=False, late=True, prompted=prompted)
            if prompted:
                self._watch(start, again, repaint=True)

    def _has_run(self, at: int) -> bool:
        """Tell whether something was printed between the first line, which came back, and a prompt: no repaint follows then."""
        line = self._lines[0]
        if not line.ended or line.missing or line.found_to < 0:
            return False
        if at - line.found_to > _SPACE or (self._printed[0] == line.found_to and self._printed[1] <= at):
            return True
        between = KERNEL_LINE.sub(b"", self._text.slice(line.found_to, at)).replace(self._prompt, b"")
        if not between.strip(b"\0 \r\n#$>"):
            return False
        self._printed = line.found_to, at
        return True

    def _find_whole(self) -> None:
        """Look for missing echo as a whole: a trace, which never goes back, can take a break's blank for one that was typed.

        The late echo of a line that was typed while something ran stands in the middle of that's output.
        """
        for line in self._lines:
            if not line.missing or not line.ended or self._text.end >= line.ended_at + LATEST:
                continue
            place = rb"" if self._echoes and line is not self._lines[0] else _PLACE
            whole = re.compile(rb"(?m)" + place + rb"(" + anywhere(line.rest).pattern + rb")(?:" + _AFTER.pattern + rb"|\Z)")
            start = max(self._ran, self._text.base, self._seen - 4 * len(line.text) - 256)
            start = max(self._text.start_of_line(start), self._began)
            if found := whole.search(self._text.raw, max(start - self._text.base, 0)):
                self._hide_surely(self._text.base + found.start(1), self._text.base + found.end(1))
                if found.end(1) < len(self._text.raw):
                    line.missing.clear()

    def _watch(
        self,
        start: int,
        wanted: list[tuple[TypedLine, list[re.Pattern[bytes]]]],
        *,
        repaint: bool,
        late: bool = False,
        prompted: bool = True,
    ) -> None:
        ahead = self._text.slice(start, start + 8)
        for line, chars in wanted:
            if chars and (len(ahead) < 8 or chars[0].match(ahead) or ahead[0] in b" >"):
                self._traces.setdefault((id(line), start), _Trace(line, chars, repaint, late, prompted, at=start))

    def _follow(self, trace: _Trace, undone: list[_Trace]) -> bool:
        """Follow a trace through the new text. True if more of it may come."""
        text = self._text
        if trace.at < text.base:
            return False
        began = trace.at
        more = False
        while trace.matched < len(trace.chars) and not more:
            char = trace.chars[trace.matched]
            end = text.match(char, trace.at)
            # A character that may be lost is looked for behind a break first.
            between = None if end is not None and end > trace.at else self._pass_over(trace)
            if trace.at >= text.end or (end == text.end and len(char.pattern) > 2):
                more = True  # also of a character: an echo of `^A` may be there as far as `^`
            elif between is not None:
                self._hide(trace, began, trace.at)
                trace.breaks += text.match(_KERNEL_WHOLE, trace.at) is None
                trace.at = began = between
            elif trace.breaks and end in (None, trace.at) and text.raw[trace.at - text.base] in b" >":
                trace.at += 1  # a shell's `> `; or the blank of a break was taken for one that was typed
            elif end is not None:
                trace.begun = trace.begun or end > trace.at
                trace.breaks = trace.breaks if end == trace.at else 0
                trace.at = end
                trace.matched += 1
            elif not trace.begun and text.raw[trace.at - text.base] in b" >":
                trace.at = began = trace.at + 1
            elif trace.begun and text.match(_MAYBE_BETWEEN, trace.at) is not None:
                more = True
            else:
                # A line editor may paint a part of a line. It stays hidden if all of the text's line fits.
                if not (trace.prompted and trace.breaks):
                    undone.append(trace)
                else:
                    self._hidden.extend(trace.hidden)
                return False
        self._hide(trace, began, trace.at)
        if more:
            return True
        if trace.line.ended and text.match(_AFTER, trace.at) is None:
            if text.match(_MAYBE_AFTER, trace.at) is not None:
                return True
            undone.append(trace)
            return False
        if trace.at > trace.line.found_to:  # not from two places at once
            if trace.repaint and trace.line.repaints == 0:
                undone.append(trace)
                return False
            trace.line.found_to = trace.at
            if trace.repaint:
                trace.line.repaints -= 1
            if trace.line.ended:
                trace.line.missing.clear()
        self._hidden.extend(trace.hidden)
        return False

    def _pass_over(self, trace: _Trace) -> int | None:
        """Return the end of a line end or a kernel's line in the middle of an echo."""
        if not trace.begun or trace.at >= self._text.end:
            return None
        return self._text.match(_KERNEL_WHOLE if trace.breaks == _BREAKS else BETWEEN, trace.at)

    def _hide(self, trace: _Trace, start: int, end: int) -> None:
        if end > start:
            self._text.blank(start, end)
            trace.hidden.append((start, end))

    def _hide_surely(self, start: int, end: int) -> None:
        self._text.blank(start, end)
        self._hidden.append((start, end))

    def _show(self, undone: list[_Trace]) -> None:
        """These were no echo: patterns may see them after all, but for what is echo for another reason."""
        shown: list[tuple[int, int]] = []
        for low, high in (span for trace in undone for span in trace.hidden):
            # What came while keys were pressed stays hidden whatever it is.
            shown += [(low, min(high, self._began)), (max(low, self._ran), high)]
        shown = [(low, high) for low, high in shown if low < high]
        if not shown:
            return
        self.restored = min(low for low, _ in shown)
        for low, high in shown:
            self._show_again(low, high)

    def _show_again(self, start: int, end: int) -> None:
        """Show a stretch, but for what is echo for another reason."""
        self._text.restore(start, end)
        for low, high in (
            *self._hidden,
            *self._part.items(),
            *self._doubts,
            *(span for trace in self._traces.values() for span in trace.hidden),
        ):
            if low < end and start < high:
                self._text.blank(max(low, start), min(high, end))
