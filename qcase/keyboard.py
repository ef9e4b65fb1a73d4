"""Types a case's command, and finds what comes back of it.

What a guest echoes is no output: a pattern that also stands in the command must not match there. So echo is blanked out of
the text that patterns see. There are three kinds of it:

* Until the first line end is out the guest cannot have run anything. All text of that time is echo, however it looks;
  only the kernel's own lines are left standing. (`_hide_typing`)
* A command goes out in chunks that a UART's FIFO holds, the next one when the echo of the last has come back, the line
  end last. So each later line's echo is known by its chunks. (`_echoed`)
* An echo that comes after its line end, because the guest was busy, and the second one that a line editor paints of lines
  that were typed ahead: these begin at the start of a line or behind a prompt and hold the whole line. They are followed
  byte by byte (`_Trace`), and hidden already while they may still become one.

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

from qcase.transcript import Text

CHUNK: Final = 16  # bytes typed at once: the FIFO of a 16550
ECHO_PATIENCE: Final = 1.0  # seconds to wait for an echo before going on without
CALM: Final = 0.3  # seconds without a byte after which a guest is taken to have echoed what it will
CALM_PATIENCE: Final = 5.0  # seconds to wait for that
LATEST: Final = 1 << 18  # bytes of output after which no echo is missed any more
ERASE: Final = b"\x7f"  # what a terminal and every line editor take for it
ERASE_PAUSE: Final = 0.05  # seconds between two chunks of erasing: what comes back of that is not looked at
_TRACES: Final = 64  # places that are watched at a time

# A line that a kernel wrote, possibly in the middle of another.
KERNEL_LINE: Final = re.compile(rb"(?:<\d>)?\[ *\d+\.\d+[ \]][^\n]*")
_KERNEL_PANIC: Final = re.compile(rb"(?:Kernel panic - not syncing|\S*[Pp]anicked at )[^\n]*")
# Where a terminal breaks a line: readline writes a space and CR, busybox CR LF. A shell may go on behind `> `.
_BREAK: Final = rb" ?\n"
_BREAKS: Final = 3  # line ends that a terminal may make of one break: busybox writes CR, CR LF
_BETWEEN: Final = re.compile(rb"(?:" + _BREAK + rb"|" + KERNEL_LINE.pattern + rb"\n)")
_KERNEL_WHOLE: Final = re.compile(KERNEL_LINE.pattern + rb"\n")
_MAYBE_BETWEEN: Final = re.compile(rb"(?: |" + KERNEL_LINE.pattern + rb"|(?:<\d?>?)?\[[ \d.]*)\Z")
_AFTER: Final = re.compile(rb" ?\n| ?" + KERNEL_LINE.pattern)
_MAYBE_AFTER: Final = re.compile(rb" ?(?:(?:<\d?>?)?\[[ \d.]*)?\Z")
# Where an echo may begin: at the start of a line, and behind what looks like a prompt.
_PLACE: Final = rb"(?:^|[#$>%])[ >]*"


@dataclass
class _Line:
    """A line that is typed. `chars[i]` is how its i-th character comes back."""

    chars: list[re.Pattern[bytes]]
    chunks: list[list[re.Pattern[bytes]]]
    typed: list[bytes]  # chunks that are still to be typed
    text: bytes
    missing: list[int] = field(default_factory=list)  # chunks whose echo has not come
    at: int = 0  # the chunk that is typed next
    ended: bool = False  # its line end has been typed
    ended_at: float = float("inf")  # where the text ended then
    found_to: int = -1  # where its last echo ended
    repaints: int = 1  # how often it may come again behind a prompt that is not the case's

    @property
    def rest(self) -> list[re.Pattern[bytes]]:
        """What has not come back, from its first to its last character."""
        return [char for chunk in self.chunks[self.missing[0] :] for char in chunk] if self.missing else []


@dataclass
class _Trace:
    """A place at which an echo may stand, and how far it has been followed. Behind a whole line a line end must stand."""

    line: _Line
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

    def __init__(self, command: str, prompt: str, anchor: int, text: Text, now: float) -> None:
        self.warning = ""
        self.line_end_typed = False  # from now on the guest runs something
        self.restored: int | None = None
        self._prompt = prompt.encode()
        self._text = text
        self._lines = [_as_line(line) for line in command.rstrip("\r\n").split("\n")]
        self._at = 0  # the line that is being typed
        self._waiting: int | None = None  # the chunk whose echo is waited for
        self._until = 0.0
        self._patience = ECHO_PATIENCE
        self._calm_by: float | None = None
        self._to_erase: int | None = None  # characters of a line that did not arrive
        self._may_repeat = True
        self._began = text.end  # from here to `_ran` is echo, whatever it is
        self._ran = text.end
        self._echo_from = text.end
        self._echoes = False  # some of what was typed came back
        self._grown_at = now
        self._seen = text.end
        self._traces: dict[tuple[int, int], _Trace] = {}  # by line and place
        self._hidden: deque[tuple[int, int]] = deque(maxlen=_TRACES)  # the last stretches that surely were echo
        self._keep_kernel = not (KERNEL_LINE.search(command.encode()) or _KERNEL_PANIC.search(command.encode()))
        for start in (anchor, text.end):
            self._watch(start, [(line, line.chars) for line in self._lines[:1]], repaint=False)

    @property
    def next_wake(self) -> float | None:
        return self._until if self._at < len(self._lines) else None

    def type(self, now: float) -> bytes:
        """What is to be typed now."""
        out = bytearray()
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if self._to_erase is not None:
                if now < self._until:
                    break
                out += self._erase(line, now)
                continue
            if self._waiting is not None:
                if self._echoed(line.chunks[self._waiting]):
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
                line.at += 1
                self._until = now + self._patience
                continue
            if self._wait_for_calm(line, now):
                break
            if self._may_repeat and self._arrived_damaged(line):
                self._may_repeat = False
                self._to_erase = len(line.text) + CHUNK
                self._until = now
                self.warning = f"the guest lost characters of what was typed, so it was typed again: {_shown(line.text)}"
                continue
            if line.missing and (len(line.missing) < len(line.chunks) or not self._may_repeat):
                self.warning = f"the guest echoed only a part of what was typed: {_shown(line.text)}"
            out += b"\n"
            line.ended = True
            line.ended_at = self._text.end
            if not self.line_end_typed:
                self._ran = self._text.end
            self.line_end_typed = True
            self._at += 1
        return bytes(out)

    def find_echo(self, now: float) -> None:
        """Blank out what came back in the text that is new."""
        text = self._text
        if text.end == self._seen:
            return
        self._grown_at = now
        if not self.line_end_typed:
            self._hide_typing()
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
        """Where the echo of a typed line may have begun at the end of the text; `text.end` if none has.

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

    # --- while keys are pressed ----------------------------------------------------------------------------------------

    def _wait_for_calm(self, line: _Line, now: float) -> bool:
        """Before the first line end: what came back is not what was typed, so wait until no more of it comes."""
        if self.line_end_typed or not line.missing or self._text.end == self._began:
            return False
        if self._calm_by is None:
            self._calm_by = now + CALM_PATIENCE
        self._until = min(self._grown_at + CALM, self._calm_by)
        return now < self._until

    def _arrived_damaged(self, line: _Line) -> bool:
        """Whether what came back is the first line, but for characters that were lost."""
        if self.line_end_typed or not line.missing:
            return False
        came = KERNEL_LINE.sub(b"", self._text.slice(self._began, self._text.end))
        typed = _plain(line.text)
        back = _plain(came)
        rest = iter(back)
        if not typed or all(char in rest for char in typed):
            return False  # all of it is there, with something in between
        return len(back) <= 2 * len(typed) and difflib.SequenceMatcher(None, typed, back, autojunk=False).ratio() > 0.6

    def _erase(self, line: _Line, now: float) -> bytes:
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
        self._echo_from = self._text.end
        return b""

    def _hide_typing(self) -> None:
        """Hide all that came since the first key, but the kernel's lines."""
        text = self._text
        start = max(self._began, text.start_of_line(self._ran), text.base)
        self._ran = text.end
        text.blank(start, text.end)
        if not self._keep_kernel:
            return
        raw = text.slice(start, text.end)
        for kernels in (KERNEL_LINE, _KERNEL_PANIC):
            for found in kernels.finditer(raw):
                text.restore(start + found.start(), start + found.end())

    def _echoed(self, chunk: list[re.Pattern[bytes]]) -> bool:
        found = self._text.search(_anywhere(chunk), max(self._echo_from, self._text.base))
        if found is None:
            return False
        if self.line_end_typed:
            self._hide_surely(*found)
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
            self._watch(at + len(self._prompt), every, repaint=False)
            at = text.find(self._prompt, at + 1)
        # The first line is typed at the case's prompt, and can come again only there.
        prompted = self._prompt and text.find(self._prompt, text.start_of_line(self._seen)) >= 0
        late = [(line, line.rest) for line in self._lines if line.missing and text.end < line.ended_at + LATEST]
        again = [
            (line, line.chars) for line in self._lines if line.at and line.repaints and (prompted or line is not self._lines[0])
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

    def _find_whole(self) -> None:
        """Look for missing echo as a whole: a trace, which never goes back, can take a break's blank for one that was typed.

        The late echo of a line that was typed while something ran stands in the middle of that's output.
        """
        for line in self._lines:
            if not line.missing or not line.ended or self._text.end >= line.ended_at + LATEST:
                continue
            place = rb"" if self._echoes and line is not self._lines[0] else _PLACE
            whole = re.compile(rb"(?m)" + place + rb"(" + _anywhere(line.rest).pattern + rb")(?:" + _AFTER.pattern + rb"|\Z)")
            start = max(self._ran, self._text.base, self._seen - 4 * len(line.text) - 256)
            if found := whole.search(self._text.raw, max(self._text.start_of_line(start) - self._text.base, 0)):
                self._hide_surely(self._text.base + found.start(1), self._text.base + found.end(1))
                if found.end(1) < len(self._text.raw):
                    line.missing.clear()

    def _watch(
        self,
        start: int,
        wanted: list[tuple[_Line, list[re.Pattern[bytes]]]],
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
        """Where a line end or a kernel's line in the middle of an echo ends."""
        if not trace.begun or trace.at >= self._text.end:
            return None
        return self._text.match(_KERNEL_WHOLE if trace.breaks == _BREAKS else _BETWEEN, trace.at)

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
        for low, high in shown:
            self._text.restore(low, high)
        self.restored = min(low for low, _ in shown)
        still = [*self._hidden, *(span for trace in self._traces.values() for span in trace.hidden)]
        for low, high in still:
            if high > self.restored:
                self._text.blank(low, high)


# --- how what was typed comes back ------------------------------------------------------------------------------------


def _as_line(line: str) -> _Line:
    chars = [_as_echoed(char) for char in line]
    for blank in re.finditer(r"[\t ]*\t[\t ]*", line):
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
    return _Line(chars, chunks, typed, line.encode())


def _as_echoed(char: str) -> re.Pattern[bytes]:
    """How a guest may echo a character: Ctrl-A as `^A`, a letter that it does not know as `?` or `\\303`."""
    raw = re.escape(char.encode())
    if " " <= char <= "~":
        return re.compile(raw)
    if char < " ":
        return re.compile(rb"(?:" + raw + rb"|\^" + re.escape(bytes([ord(char) ^ 0x40])) + rb")?")
    return re.compile(rb"(?:" + raw + rb"|(?:\?|\xef\xbf\xbd|\\[0-7]{3}|<[0-9A-Fa-f+U]+>){0,4})")


def _plain(text: bytes) -> bytes:
    """What every guest echoes as it is: printable ASCII."""
    return bytes(char for char in text if 0x20 <= char < 0x7F)


def _shown(text: bytes) -> str:
    return repr(text.decode(errors="replace"))


_BLANKS: Final = re.compile(rb"[\t ]*")  # a tab, together with the blanks around it


def _anywhere(chars: list[re.Pattern[bytes]]) -> re.Pattern[bytes]:
    return re.compile((_BETWEEN.pattern + rb"{0,3}(?:> )?").join(char.pattern for char in chars))
