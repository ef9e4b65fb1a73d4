"""Play what a guest wrote on a terminal emulator.

writes ─► characters with authors ─► Token ─► Screen (avt) ─► rows, and each state of a row before it was lost
                                          └─► the text as it came
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import avt
from avt.parser import Parser

from tests.fuzz.log import By, Log

ECHO_MASK = "\ue000"  # stands for a character of echo: in no pattern
HIDDEN_MASK = "\ue001"  # for concealed text
QUIET = 0.5  # seconds after which a prompt is taken as one

_VERTICAL = frozenset(["Cuu", "Cud", "Cup", "Vpa", "Vpr", "Cnl", "Cpl", "Ri", "Decrc", "Scorc", "Su", "Sd", "Il", "Dl"])
_ERASING = frozenset(["Cr", "Bs", "El", "Ed", "Ech", "Dch", "Ich", "Cub", "Cha", "Decset", "Decrst", "Ris", "Ht", "Cuf"])


@dataclass(frozen=True)
class Token:
    """A run of characters, or one function of the terminal. `kind` is the emulator's name of it."""

    kind: str  # Print, Lf, Vt, Cr, …; String: a string sequence; Noise: what a terminal does nothing with
    by: By
    raw: str
    at: float  # when its last byte came
    swapped: bool = False  # echo that a program printed the same of before it came
    doubtful: bool = False  # a program's, and may be echo for all that anyone can tell; or echo that cannot be told as such


def switches(token: Token) -> bool:
    """Whether a token goes to the alternate screen, or back."""
    return token.kind in ("Decset", "Decrst") and token.raw.endswith(("47h", "49h", "47l", "49l"))


# --- from bytes to tokens ---------------------------------------------------------------------------------------------


def characters(log: Log) -> Iterator[tuple[str, By, float]]:
    """The decoded writes. A character that comes in parts belongs to the write that completes it."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    by, at = By.OUT, log.at
    for write in log.writes:
        by, at = write.by, write.at
        if text := decoder.decode(write.data):
            yield text, by, at
    if text := decoder.decode(b"", True):
        yield text, by, at


def tokens(log: Log) -> list[Token]:
    """What the emulator's parser makes of the log."""
    feed = Parser().feed
    found: list[Token] = []
    swallowed = ""
    printed: list[str] = []
    last = (By.OUT, 0.0)

    def flush() -> None:
        if printed:
            found.append(Token("Print", last[0], "".join(printed), last[1]))
            printed.clear()

    for text, by, at in characters(log):
        if (by, at) != last:
            flush()
            last = (by, at)
        for char in text:
            function = feed(char)
            if function is None:
                if not swallowed:
                    flush()
                swallowed += char
                if char == "\x07" or (char < " " and char != "\x1b" and len(swallowed) == 1) or swallowed.endswith("\x1b\\"):
                    found.append(Token("String" if swallowed[0] == "\x1b" else "Noise", by, swallowed, at))
                    swallowed = ""
                continue
            kind = type(function).__name__
            if kind == "Print" and not swallowed and char != "\x7f":
                printed.append(char)
                continue
            flush()
            if swallowed[1:2] in ("]", "P", "X", "^", "_") and (begins := swallowed.rfind("\x1b")) > 0:
                found.append(Token("Noise", by, swallowed[:begins], at))  # a string that another sequence breaks off
                swallowed = swallowed[begins:]
            if char == "\x7f":
                kind = "Noise"
            elif char in "\x0b\x0c":
                kind = "Vt"
            if kind == "Print":
                found.append(Token("Noise", by, swallowed, at))
                printed.append(char)
            else:
                found.append(Token(kind, by, swallowed + char, at))
            swallowed = ""
    flush()
    if swallowed:
        found.append(Token("Noise", last[0], swallowed, last[1]))
    return found


def in_order(wanted: str, text: str) -> bool:
    """Whether `wanted` is a subsequence of `text`."""
    rest = iter(text)
    return all(char in rest for char in wanted)


def with_doubts(found: list[Token], log: Log) -> list[Token]:
    """Mark what a program wrote and what could be echo, and echo that could be a program's.

    The first is a segment of a line that is a subsequence of what was typed, while echo may still come; or that begins right
    behind an echo with a character that was typed. The second is a
    segment that is no such subsequence, because a guest echoes twice or in capitals.
    """
    if not log.typed:
        return found
    typed = f"{log.wants.command}\n"
    echoes = [t for t in found if t.by is By.ECHO and t.kind == "Print"]
    came = "".join(t.raw for t in echoes)
    lossy = bool(echoes) and not in_order("".join(c for c in typed if c > " "), came)
    complete = max((t.at for t in echoes), default=0.0)
    ended = next((at for at, data in log.typed if b"\n" in data), float("inf"))
    until = float("inf") if lossy else max(complete, ended)
    marked = list(found)
    lines = [line.strip() for line in typed.splitlines()]
    said: set[str] = set()
    for segment in _segments(found):
        text = "".join(found[i].raw for i in segment).strip()
        last = found[segment[-1]]
        before, after = _neighbour(found, segment[0], -1), _neighbour(found, segment[-1], 1)
        if last.by is By.ECHO:
            beside = any(token is not None and token.by is By.OUT and token.kind == "Print" for token in (before, after))
            doubtful = beside or not in_order(text.replace("^A", "").replace(" ", ""), typed)
        elif not echoes and (after is None or after.kind not in ("Lf", "Cr")):
            doubtful = in_order(text, typed)  # an unfinished line
        elif not echoes:
            doubtful = text in lines  # a late echo loses nothing
        else:
            behind = before is not None and before.by is By.ECHO and before.kind == "Print" and text[:1] in typed
            doubtful = log.typed[0][0] <= last.at <= until and (behind or in_order(text, typed))
        if last.by is By.OUT and doubtful and text in lines:
            said.add(text)
        for i in segment:
            swapped = last.by is By.ECHO and text in said
            if doubtful or swapped:
                marked[i] = replace(found[i], doubtful=doubtful, swapped=swapped)
    return marked


def _neighbour(found: list[Token], at: int, step: int) -> Token | None:
    """What stands beside a token when the kernel's lines are left out."""
    at += step
    while 0 <= at < len(found) and found[at].by is By.KERNEL:
        at += step
    return found[at] if 0 <= at < len(found) else None


def _segments(found: list[Token]) -> Iterator[list[int]]:
    """Runs of text of programs or of echo, up to the line's end, a backspace or another's text. Kernel lines are in none."""
    segment: list[int] = []
    for i, token in enumerate(found):
        if token.by is By.KERNEL:
            continue
        if segment and (token.kind in ("Lf", "Cr", "Vt", "Bs") or token.by is not found[segment[0]].by):
            yield segment
            segment = []
        if token.kind == "Print" and token.by in (By.OUT, By.ECHO):
            segment.append(i)
    if segment:
        yield segment


# --- the screen -------------------------------------------------------------------------------------------------------


class Echo(Enum):
    MASKED = "each character of it is one that is in no pattern"
    TEXT_OUT = "its text is left out, its line ends stay"
    OUT = "all of it is left out"


@dataclass(frozen=True)
class View:
    """A way to read a log. Doubtful text of programs is text (`outputs`), so is doubtful echo (`echoes`); a program's line end
    behind an echo that is left out is left out, too (`ends`). A kernel's text is masked like echo (`masked_kernel`)."""

    kernel: bool = True
    echo: Echo = Echo.MASKED
    outputs: bool = False
    echoes: bool = False
    ends: bool = False
    masked_kernel: bool = False


@dataclass
class Row:
    ended: bool = False  # by a line feed, and untouched since
    moved: bool = False  # the cursor came to it other than by a line feed from above, or left it so
    struck: bool = False  # something on it was overwritten or erased
    extent: int = 0  # columns that were written
    fed: bool = False  # the cursor came to it and stayed in its column (VT, FF, the alternate screen)
    quiet: int | None = None  # the same of a prompt behind which nothing came for a while
    prompt: int | None = None  # how many characters stand before a prompt that is at its end
    rest: bool = False  # a kernel's line or an echo stands between it and a program's text that had no line end of its own


@dataclass
class Reading:
    """One reading of the log: the text as it came, the rows as they stand, and the states that were lost."""

    came: str
    states: list[str]  # each state of a row, also those that only went on
    lost: list[str]  # those that were overwritten or erased
    strings: list[tuple[str, bool]]
    rows: list[str]
    marks: list[Row]
    cursor: int
    armed: tuple[int, int, int] | None  # the end of the prompt: offset in `came`, row, column
    bare: str  # all of the text, escape sequences as text without their escape characters
    broken: bool  # a backspace, or an unterminated string: the text as it came is doubtful
    addressed: bool  # the cursor was sent to a place on the screen
    joins: bool  # a line end of an echo is left out: columns behind it are not those of the terminal
    ever: list[str] = field(default_factory=list)  # rows at the moments at which they ended
    aside: list[str] = field(default_factory=list)  # what stood on the alternate screen
    over: list[str] = field(default_factory=list)  # rows up to the cursor as it left them, once the screen was addressed


class Screen:
    """Plays tokens on an emulator of a size that nothing can leave."""

    def __init__(self, log: Log, found: Sequence[Token]) -> None:
        whole = "".join(token.raw for token in found)
        lines = whole.split("\n")
        self.columns = 2 * max(map(len, lines)) + 120
        self.lines = len(lines) + whole.count("\x0b") + whole.count("\x0c") + 30
        self.log = log

    def play(self, found: Sequence[Token], view: View) -> Reading:
        return _Play(self, found, view).reading()


class _Play:
    def __init__(self, screen: Screen, found: Sequence[Token], view: View) -> None:
        self.vt = avt.Vt(screen.columns, screen.lines, 0)
        self.columns = screen.columns
        self.marks: dict[int, Row] = {}
        self.aside: dict[int, Row] = {}  # of the other screen
        self.lowest = 0
        self.came: list[str] = []
        self.length = 0
        self.bare: list[str] = []
        self.returned = False
        self.states: list[str] = []
        self.lost: list[str] = []
        self.ever: list[str] = []
        self.beside: list[str] = []
        self.over: list[str] = []
        self.left: dict[int, str] = {}  # the last of these, by row
        self.strings: list[tuple[str, bool]] = []
        self.broken = False
        self.alternate = False
        self.hidden = False
        self.addressed = False
        self.joins = False
        self.wanted = screen.log.wants.prompt
        self.armed: tuple[int, int, int] | None = None
        self.last_at = 0.0
        self.text_by: By | None = None  # who wrote the last text
        self.tears = False  # a program's text is torn
        cut = False  # a kernel's line was left out on an unfinished line just now
        torn = False  # the text of an echo was left out just now
        for token in found:
            if token.by is By.KERNEL and not view.kernel:
                self.wait(token)
                cut = self.vt.cursor.col > 0
                continue
            if cut and token.kind != "Lf":
                self.row(self.vt.cursor.row).rest |= token.kind != "Print"
                cut = False
            if token.by is By.ECHO and not (token.doubtful and view.echoes) and not (token.swapped and view.outputs):
                torn = view.echo is Echo.OUT and token.kind == "Print"
                if view.echo is Echo.OUT or (view.echo is Echo.TEXT_OUT and token.kind == "Print"):
                    self.joins |= token.kind == "Lf"
                    continue
                self.take(token, masked=True)
                continue
            if torn and view.ends and token.kind in ("Cr", "Lf"):
                torn = token.kind != "Lf"
                continue  # it can be the echo's for all that anyone can tell
            if torn and view.ends and token.kind == "Print":
                token = replace(token, raw=token.raw.lstrip(" "))  # so with blanks
            torn = False
            if token.by is By.KERNEL and view.masked_kernel:
                self.take(token, masked=True)
                continue
            self.take(token, masked=token.doubtful and token.by is not By.ECHO and not view.outputs)

    def row(self, number: int) -> Row:
        return self.marks.setdefault(number, Row())

    def text(self, number: int) -> str:
        """A row with the blanks that were written at its end."""
        shown = str(self.vt[number].text).rstrip()
        row = self.marks.get(number)
        if row is None:
            return shown
        width = len(shown) if shown.isascii() else sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in shown)
        return shown + " " * (row.extent - width)

    def left_of(self, at: int, column: int) -> str:
        """What stands on a row to the left of a column."""
        text = self.text(at)
        width = 0
        for n, char in enumerate(text):
            if width >= column:
                return text[:n]
            width += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        return text

    def say(self, text: str) -> None:
        if self.returned:
            self.returned = False
            if text != "\n":
                self.came.append("\n")
                self.length += 1
        self.came.append(text)
        self.length += len(text)

    def wait(self, token: Token) -> None:
        """Note a prompt behind which nothing came for a while before a token."""
        if token.at >= self.last_at + QUIET and not self.alternate:
            row = self.row(self.vt.cursor.row)
            row.quiet = row.prompt if row.prompt is not None else row.quiet
        self.last_at = token.at

    def take(self, token: Token, *, masked: bool) -> None:
        kind = token.kind
        cursor = self.vt.cursor
        at = cursor.row
        self.wait(token)
        assert cursor.col < self.columns - 1
        self.bare.append(ECHO_MASK if masked else token.raw.replace("\x1b", ""))
        if kind == "Print":
            self.print(token, masked=masked, at=at, column=cursor.col)
        elif kind == "Lf":
            self.say("\n")
            self.end_row(at)
            self.vt.feed_str("\r\n")
            below = self.vt.cursor.row
            self.row(below).rest = self.tears
            if not self.alternate:
                self.row(below).moved |= below <= self.lowest
                self.lowest = max(self.lowest, below)
        elif kind == "String":
            if not masked:
                self.strings.append((token.raw[2:].rstrip("\x07\x1b\\"), True))
        elif kind == "Noise":
            if token.raw[:1] == "\x1b":
                self.broken = True
                self.strings.append((token.raw, False))
        else:
            self.function(token, at)
        if kind == "Print" and not masked:
            self.look_for_prompt(at)

    def print(self, token: Token, *, masked: bool, at: int, column: int) -> None:
        if token.by in (By.KERNEL, By.ECHO):
            self.tears |= self.text_by is By.OUT and column > 0
        else:
            self.tears = False
        self.text_by = token.by
        raw = ECHO_MASK * len(token.raw) if masked else token.raw
        self.say(raw)
        if self.hidden:
            raw = HIDDEN_MASK * len(raw)
        row = self.row(at)
        if token.by is By.PROMPT:
            row.prompt = len(self.left_of(at, column)) if row.prompt is None else row.prompt
        elif row.prompt is not None and column + len(raw) > row.prompt:
            row.prompt = None
        if column < row.extent:
            row.struck = True
            before = self.text(at)
            self.keep(at)
            self.vt.feed_str(raw)
            if not self.text(at).startswith(before.rstrip()):
                self.lost.append(before)
        else:
            self.vt.feed_str(raw)
        row.ended = False
        row.extent = max(row.extent, self.vt.cursor.col)

    def leave(self, at: int) -> None:
        """Note what stands up to the cursor: what is behind it on a row that was addressed depends on the screen's size."""
        if self.addressed and (left := self.left_of(at, self.vt.cursor.col)):
            self.over += [left, f"{self.left[at - 1]}\n{left}"] if at - 1 in self.left else [left]
            self.left[at] = left

    def keep(self, at: int) -> None:
        if (text := self.text(at)).strip():
            if self.states and text != self.states[-1]:
                self.states.append(f"{self.states[-1]}\n{text}")
            self.states.append(text)
            if self.alternate:
                self.beside.append(text)
            if at and (above := self.text(at - 1)).strip():
                self.states.append(f"{above}\n{text}")

    def end_row(self, at: int) -> None:
        self.keep(at)
        self.leave(at)
        if not self.alternate:
            row = self.row(at)
            row.ended = True
            self.ever.append(self.text(at))
            if at and self.row(at - 1).ended:
                self.ever.append(f"{self.text(at - 1)}\n{self.text(at)}")

    def function(self, token: Token, at: int) -> None:
        kind = token.kind
        row = self.row(at)
        if kind == "Vt":
            self.say("\n")
            self.keep(at)
            row.moved = True
        elif kind == "Cr":
            self.returned = True
        elif kind == "Bs":
            self.broken = True
        if kind == "Sgr":
            self.hidden = token.raw.endswith("[8m") or (self.hidden and not token.raw.endswith(("[0m", "[m", "[28m")))
        else:
            self.leave(at)
        if kind in _ERASING:
            self.keep(at)
            if kind in ("El", "Ed", "Ech", "Dch", "Ich", "Ris"):
                row.struck = True
                row.ended = False
                self.lost.append(self.text(at))
                if kind in ("Ed", "Ris"):
                    for number, other in self.marks.items():
                        if number > at or kind == "Ris" or not token.raw.endswith(("[J", "[0J")):
                            other.moved = True
        if kind in _VERTICAL or kind in ("Decset", "Decrst"):
            self.keep(at)
        self.vt.feed_str(token.raw)
        if switches(token):
            self.switch(kind == "Decset")
            return
        self.addressed |= kind in ("Cup", "Vpa", "Ed", "Ris") and not self.alternate
        below = self.vt.cursor.row
        if kind in _VERTICAL or kind == "Vt" or kind == "Ris":
            row.moved = True
            self.row(below).moved = True
            self.row(below).fed = kind == "Vt"
            if not self.alternate:
                self.lowest = max(self.lowest, below)
        if kind in ("El", "Ich", "Dch"):
            row.extent = len(str(self.vt[at].text).rstrip())

    def switch(self, alternate: bool) -> None:
        """Go to the alternate screen, or back. Its rows are no rows of the main one."""
        if alternate == self.alternate:
            return
        self.alternate = alternate
        self.aside, self.marks = self.marks, self.aside if not alternate else {}
        if not alternate:
            row = self.row(self.vt.cursor.row)
            row.struck = row.fed = True  # some terminals leave the cursor in its column
            row.moved |= self.vt.cursor.row < self.lowest

    def look_for_prompt(self, at: int) -> None:
        """Find where the case's prompt first ends, whoever wrote it."""
        if self.armed is None and self.wanted:
            text = "".join(self.came[-40:])
            found = text.rfind(self.wanted)
            if found >= 0:
                extra = len(text) - found - len(self.wanted)
                self.armed = (self.length - extra, at, len(self.left_of(at, self.vt.cursor.col - extra)))

    def reading(self) -> Reading:
        self.leave(self.vt.cursor.row)
        if self.alternate:
            self.keep(self.vt.cursor.row)
            self.vt.feed_str("\x1b[?1049l\x1b[?47l")
            self.switch(False)
        last = self.vt.cursor.row
        self.keep(last)
        high = max(self.lowest, last)
        return Reading(
            came="".join(self.came) + ("\n" if self.returned else ""),
            states=self.states,
            lost=self.lost,
            strings=self.strings,
            rows=[self.text(n) for n in range(high + 1)],
            marks=[self.row(n) for n in range(high + 1)],
            cursor=last,
            armed=self.armed,
            bare="".join(self.bare).replace("\r\n", "\n").replace("\r", "\n"),
            broken=self.broken,
            addressed=self.addressed,
            joins=self.joins,
            ever=self.ever,
            aside=self.beside,
            over=self.over,
        )
