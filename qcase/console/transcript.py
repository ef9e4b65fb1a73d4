"""Bytes of a guest become the text that it wrote, and rows of a terminal.

    bytes ─► Transcript ─┬─► written          as it came: escape sequences removed, CR LF, CR, VT and FF made LF
                         ├─► shown            each row as a terminal shows it when the row has ended
                         ├─► states           rows before they were overwritten, and strings that are not shown
                         └─► *.joined         written and shown once more, without the kernel's lines and without echo

Each reading is a `Text`. `written` is UTF-8 with replacement characters. Its positions count bytes from the guest's first
one; they stay valid when old text is dropped. All other readings are derived from it row by row, and derived again from the
first change when echo is found late.
"""

from __future__ import annotations

import codecs
import re
from itertools import pairwise
from typing import Final

from qcase.console import controls
from qcase.console.readings import Readings
from qcase.console.records import Record
from qcase.console.row import Row
from qcase.console.screen import Screen
from qcase.console.text import Text

_STRINGS_MAX: Final = 256  # maximum strings of a row that are kept before they are reported
_ROW_MAX: Final = 1 << 16  # characters of a row that are kept when a control comes on it
_EASY_CONTROLS: Final = b"\0\a\x1b\x7f"  # controls that never or not always change a row that is written from left to right
_CONTROLS: Final = bytes(char for char in range(0x80) if char not in b"\t\n" and (char < 0x20 or char == 0x7F))
_HARD_CONTROLS: Final = bytes(char for char in _CONTROLS if char not in b"\r" + _EASY_CONTROLS)
_LONE_RETURN: Final = re.compile(rb"\r(?!\n)")
_C1: Final = re.compile("[\x80-\x9f]")
_LINE_ENDS: Final = re.compile(r"(?<!\r)\r+\n")
_PLAIN_SHARE: Final = 256  # maximum characters of text for each CR at which all its rows are treated as rows with CR
_SIMPLE_BEGIN: Final = re.compile(r"\x1b(?:\[[0-?]*)?")
_ERASED: Final = "\r\x1b[2K"
_ERASES_REST: Final = re.compile(r"\x1b\[0?[JK]")
_RETURNS: Final = re.compile(r"\r+")


class Transcript:
    """All readings of a guest's output. The result does not depend on how its bytes are split."""

    # A sequence that another escape, CAN or SUB breaks off is dropped as a whole; any other broken one loses only the escape
    # character.
    # A string sequence (OSC, DCS, …) ends at its terminator. A guest that forgets the terminator must not lose the text that
    # follows, so the sequence also ends at a line end, and a longer one than this is not taken for a sequence.
    _HELD_MAX = 1 << 14  # characters of an escape sequence
    _ESCAPE = re.compile(
        r"\x1b(?:\[[0-?]{0,1024}[ -/]{0,64}(?:[@-~\x18\x1a]|(?=\x1b))"
        r"|[\]PX^_][^\x07\x18\x1a\x1b\n]{0,16000}(?:[\x07\x18\x1a]|\x1b\\|(?=[\n\x1b]))"
        r"|[ -/]{1,64}(?:[0-~\x18\x1a]|(?=\x1b))|[0-OQ-WYZ\\`-~\x18\x1a]|(?=\x1b))|[\x00\x07\x08\x1b\x7f]"
    )
    _UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x18\x1a\x1b\n]*\x1b?|[ -/]*)?\Z")
    # Controls that change more than the colours of a row that is written from left to right.
    _HARD = re.compile(
        r"\x1b(?!\[(?:(?!0*8[;:m])[0-9]*(?:[;:](?!0*8[;:m])[0-9]*)*m|0?[JK]|[0-9;]*n|\?(?!(?:[0-9;]*;)?(?:3|47|1047|1049)[;hl])[0-9;]+[hl])|\(B|\Z)"
        r"|[\x08\x0b\x0c\x0e\x0f\x80-\x9f]|\r"
    )
    _EASY_ESCAPE = re.compile(
        r"\x1b(?:\[(?:[0-79;]|[1-79]8)*m|\[0?[JK]|\(B|\[\?(?!(?:[0-9;]*;)?(?:3|47|1047|1049)[;hl])[0-9;]+[hl])"
    )
    _HARD_ESCAPE = re.compile(_HARD.pattern.partition("|[\\x08")[0])
    # Rows of plain ASCII with CR and without tabs, with at most a few rows without CR between them.
    _RETURNED = re.compile(
        r"(?:[\x00-\x08\x0b\x0c\x0e-\x7f]*\r[\x00-\x08\x0b-\x1a\x1c-\x7f]*\n(?:[\x00-\x08\x0b\x0c\x0e-\x7f]*\n){0,8})+"
    )
    _TOKEN = re.compile(r"(?P<text>[^\x00-\x08\x0a-\x1f\x7f]+)|(?P<escape>" + _ESCAPE.pattern + r")|(?P<end>\n)|(?s:.)")

    def __init__(self, prompt: bytes = b"", *, resets: bool = False) -> None:
        self.written = Text()
        self.readings = Readings(self.written, prompt, resets=resets)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # the beginning of an escape sequence
        self._returned = False  # a CR was taken for a line end; its LF may still come
        self._screen = Screen(self.readings)
        self._odd = False  # the screen handles the row
        self._row_at = 0  # start of the row, if it is plain
        self.returned = False  # rows with CR were shown: neighbours there need not be neighbours in the written text
        self._split: tuple[int, int, Row] | None = None  # the text that the last split ended, and the row behind it
        self._strings: list[str] = []  # strings of OSC and similar sequences, until the line ends

    # --- bytes ----------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes, *, final: bool = False) -> list[bytes]:
        """Process bytes. Return the lines of the written text that they complete; `update` derives the other readings."""
        bare = b"" if self._held else data.translate(None, _CONTROLS)
        even = not self._held and len(data) - len(bare) == data.count(b"\r")
        simple = not self._held or _SIMPLE_BEGIN.fullmatch(self._held) is not None
        tame = even or (simple and len(data.translate(None, _HARD_CONTROLS)) == len(data))
        if tame and not _LONE_RETURN.search(data):  # each CR belongs to a line end
            data = bare if even else data.translate(None, b"\r")
        new = self._decoder.decode(data, final)
        text = self._held + new
        self._held = ""
        if not new.isascii() and (b"\xc2" in data or "\x80" <= new[0] <= "\x9f"):  # else the text has no C1 control
            text, found = _C1.subn(lambda found: f"\x1b{chr(ord(found[0]) - 0x40)}", text)
            even, tame = even and not found, tame and not found
        if "\r" in text:  # from here on no remaining CR belongs to a line end
            text = "\n".join(text.split("\r\n"))  # `replace` searches twice
            text = _LINE_ENDS.sub("\n", text) if "\r\n" in text else text
        last = -1 if final else text.rfind("\x1b")
        begun = self._UNFINISHED.search(text, max(text.rfind("\x1b", 0, last), 0)) if last >= 0 else None
        if begun and len(text) - begun.start() <= self._HELD_MAX:
            self._held = text[begun.start() :]
            text = text[: begun.start()]
        if tame and not even and not self._odd and not self._returned:
            text, even = self._without_colours(text)
        if self._held and not even:
            text += "\x1b"  # a broken sequence ends where the held one begins
        lines: list[bytes] = []
        at = 0
        if self._returned and text and not self._odd:
            at = self._after_return(text)
        again = tame and not even and self._odd  # the row that was begun goes on; behind it there may be colours alone
        while at < len(text):
            if self._odd:
                at = self._hard(text, at, lines)
                if again and not self._odd:
                    again = False
                    rest, even = self._without_colours(text[at : len(text) - bool(self._held)])
                    text, at = (rest, 0) if even else (text, at)
            elif even:
                at = self._even(text, at, lines)
            else:
                at = self._plain(text, at, lines, tame=tame)
        return lines

    def _without_colours(self, text: str) -> tuple[str, bool]:
        """Remove escapes that change no cell. Return the result and True.

        Return the unchanged text and False if any other escapes remain than those that erase a row behind a CR.
        """
        rest = self._EASY_ESCAPE.sub("", text)
        if ("\x1b" in rest and rest.count("\x1b") != rest.count(_ERASED)) or "\a" in rest or "\0" in rest or "\x7f" in rest:
            return text, False
        if "\r" in rest:
            if _ERASES_REST.search(text):
                return text, False  # the cursor may not have been at the end of its row
            rest = _LINE_ENDS.sub("\n", rest)
        return rest, True

    def _even(self, text: str, at: int, lines: list[bytes]) -> int:
        """Process text without controls other than line ends, CR, and escapes that erase a row behind a CR."""
        if text.find("\r", at) >= 0:
            return self._with_returns(text, at, lines)
        part = text[at:] if at else text
        lines += self.written.append(part.encode())
        if "\n" in part:
            self._end_plain()
        return len(text)

    def _with_returns(self, text: str, at: int, lines: list[bytes]) -> int:
        """Process text with CR in the middle of rows. Rows of plain ASCII are kept as they came; see `_overlay`."""
        while (lone := text.find("\r", at)) >= 0:
            end = text.find("\n", lone)
            erased = text.rfind(_ERASED, lone, len(text) if end < 0 else end)
            if end < 0 and erased < 0:
                break
            low = max(text.rfind("\n", at, lone) + 1, at)
            if low > at:
                lines += self.written.append(text[at:low].encode())
                self._end_plain()
            if erased >= 0 and "\r" not in (gone := text[low:erased].replace(_ERASED, "\n")):
                # The erased texts become lines of the written text; the text behind them begins a new row.
                lines += self.written.append(f"{gone}\n".encode())
                at, self._row_at = erased + len(_ERASED), self.written.end
                continue
            if erased >= 0 or self.written.end > self._row_at:
                at = low
            elif "\x1b" not in text and text.isascii() and "\t" not in text and text.count("\r") * _PLAIN_SHARE > len(text):
                at = text.rfind("\n") + 1
            else:
                found = self._RETURNED.match(text, low)
                at = found.end() if found else low
            if at == low:
                self._begin_odd(self.written.end)
                return low
            self._end_returned(text[low:at], lines)
        if at < len(text) and (begun := self._begin_returned(text[at:], lines)):
            return at + begun
        return self._plain(text, at, lines, tame=False) if at < len(text) else at

    def _end_returned(self, text: str, lines: list[bytes]) -> None:
        """Process whole rows of plain ASCII, some of them with CR."""
        if "\r\r" in text:
            text = _RETURNS.sub("\r", text)
        data, start, first = text.encode(), self.written.end, len(lines)
        before = self.written.slice(self.written.line_start, start)  # of a line that was erased before it ended
        self.written.extend_lines(data.replace(b"\r", b"\n"))
        self.returned = True
        rows = []
        for row in data[:-1].split(b"\n"):
            end = start + len(row) + 1
            parts = row.split(b"\r")
            lines += parts
            last = end - 1 - len(parts[-1])
            if last > start:
                sizes = list(map(len, parts))
                if sizes != sorted(sizes):
                    last = -1
                    self.readings.note(Record(start, end, None, shows=False))
            rows.append((last, end))
            start = end
        lines[first] = before + lines[first]
        if self._screen.counts:
            self._screen.pass_rows(len(rows))
        self.readings.note(Record(self._row_at, start, None, shows=True, returned=tuple(rows)))
        self._row_at = start

    def _begin_returned(self, text: str, lines: list[bytes]) -> int:
        """Process a row up to its last CR, and hand it to the screen, if each part covers those before it.

        Return the length of that; 0 if it is not such a row. The row's earlier states are lines of the written text.
        """
        parts = text.split("\r")[:-1]
        if len(parts) < 2 or not text.isascii() or "\x1b" in text or "\n" in text or "\t" in text or "\r\r" in text:
            return 0
        sizes = list(map(len, parts))
        if sizes != sorted(sizes) or sizes[-1] > _ROW_MAX or self.written.end > self._row_at:
            return 0
        end = text.rfind("\r")
        lines += self.written.append(text[:end].replace("\r", "\n").encode())
        rewritten = any(not two.startswith(one) for one, two in pairwise(parts))
        row = Row(self._row_at, rewritten=rewritten, moved=any(parts[:-1]))
        self._screen.begin(row, parts[-1], self.written.end - len(parts[-1]))
        self._odd = True
        return end

    def _after_return(self, text: str) -> int:
        """Continue behind a CR that was taken for a line end. An LF that follows belongs to it, else the row goes on."""
        returns = len(text) - len(text.lstrip("\r"))
        if text[returns : returns + 1] == "\n":
            self._returned = False
            self._end_plain()
            return returns + 1
        if returns < len(text):
            self._begin_odd(self.written.end - 1)
            self._screen.carriage_return()
        return returns

    def _plain(self, text: str, at: int, lines: list[bytes], *, tame: bool) -> int:
        """Process text of rows that are written from left to right, up to the first control that does something else.

        `tame`: only escapes and CR can be such controls.
        """
        if tame:
            hard = self._HARD_ESCAPE.search(text, at)
            lone = text.find("\r", at, len(text) if hard is None else hard.start())
            if lone >= 0:
                hard = self._HARD.search(text, lone)
        else:
            hard = self._HARD.search(text, at)
        end = len(text) if hard is None else hard.start()
        part = text[at:end]
        if "\x1b" in part or "\x07" in part or "\x00" in part or "\x7f" in part:
            part = self._ESCAPE.sub("", part)
        if part:
            lines += self.written.append(part.encode())
            if "\n" in part:
                self._end_plain()
        if hard is None:
            return len(text)
        if hard[0] == "\r" and not text[end:].strip("\r"):
            self._returned = True
            lines += self.written.append(b"\n")
            return len(text)
        self._begin_odd(self.written.end)
        return end

    def _hard(self, text: str, at: int, lines: list[bytes]) -> int:
        """Process text with controls, up to the end of the last row that they affect."""
        screen, written, match = self._screen, self.written, self._TOKEN.match
        while at < len(text):
            token = match(text, at)
            assert token is not None
            at, kind, said = token.end(), token.lastgroup, token[0]
            if kind == "text":
                self._returned = False
                start = written.end
                lines += written.append(said.encode())
                screen.write(said, start)
                continue
            if kind == "escape":
                if said == "\b":
                    screen.backspace()
                    if screen.current.chars:
                        continue
                elif self._escape(said):
                    lines += self._break_line()
            elif kind == "end" or said in "\v\f":
                lines += self._break_line(always=True)
                screen.line_feed(written.end)
                self._tell_strings()
            elif said == "\r":
                lines += self._break_line(always=True)
                self._returned = True
                screen.carriage_return()
                continue
            elif said in "\x0e\x0f":
                screen.shift(out=said == "\x0e")
            if screen.plain:
                self._leave_odd()
                break
        return at

    def _break_line(self, *, always: bool = False) -> list[bytes]:
        """End the written text's line, unless a CR ended it. Only a line feed or a CR ends an empty line."""
        ended = self._returned or (not always and self.written.line_start == self.written.end)
        self._returned = False
        return [] if ended else self.written.append(b"\n")

    def _escape(self, sequence: str) -> bool:
        """Execute an escape sequence; see `controls.execute`."""
        if sequence[1:2] in ("]", "P", "X", "^", "_"):
            self._strings.append(sequence[2:].rstrip("\x07\x18\x1a\x1b\\"))
            if len(self._strings) > _STRINGS_MAX:
                self._tell_strings()
        elif len(sequence) > 1 and sequence[-1] not in "\x18\x1a" and (sequence[1] != "[" or "@" <= sequence[2:][-1:] <= "~"):
            return controls.execute(self._screen, sequence, self.written.end)
        return False

    def _end_plain(self) -> None:
        """Record the end of the plain rows that begin before the written text's last line."""
        end = self.written.line_start
        if self._screen.counts:
            self._screen.pass_rows(self.written.slice(self._row_at, end).count(b"\n"))
        self.readings.note(Record(self._row_at, end, None, shows=True))
        self._row_at = end

    def _begin_odd(self, end: int) -> None:
        """Hand the current plain row to the screen."""
        start = max(self._row_at, self.written.base, end - _ROW_MAX)
        text = self.written.slice(start, end).decode(errors="replace")
        if start > self._row_at:  # the row is too long for its beginning to matter
            text = "\ufffd" + text
        self._screen.begin(Row(self._row_at), text, start)
        self._odd = True

    def _leave_odd(self) -> None:
        self._tell_strings()
        if self._screen.current.moved:
            self.readings.sent_back.append(self.written.end)
            self._screen.current.moved = False
        self._odd = False
        self._returned = False
        self._row_at = self.written.end

    def finish(self) -> list[bytes]:
        """End all rows as they stand: no more text comes."""
        lines = self.feed(b"", final=True)
        if not self._odd:
            if self._returned or self.written.line_start < self.written.end:
                lines += self._break_line(always=True)
                self._end_plain()
            return lines
        lines += self._break_line()
        self._screen.finish(self.written.end)
        self._leave_odd()
        return lines

    def tell_strings(self) -> None:
        """Add the strings so far to the states, though their row has not ended."""
        if self._strings:
            self._tell_strings()
            self.readings.update()

    def _tell_strings(self) -> None:
        for said in self._strings:
            self.readings.state(Row(self.written.end, list(said), [-1] * len(said)), 0, len(said))
        self._strings.clear()

    # --- readings -------------------------------------------------------------------------------------------------------

    def open_row(self) -> tuple[bytes, bytes, bool]:
        """Return the cursor's row: as it came, with echo blanked out, and whether a part of it was overwritten."""
        if self._odd:
            row = self._screen.current
            return (b"", b"", True) if self._screen.hidden else (*self.readings.render(row, soft=True), row.rewritten)
        start, end = self._row_at, self.written.end - self._returned
        start = max(start, self.written.base)
        view = self.readings.disarm(self.readings.hide_soft(self.written.view_slice(start, end), start), start)
        return self.written.slice(start, end), view, self._returned

    def place_on_open_row(self, offset: int) -> int:
        """Return the position in the written text behind a byte of the cursor's row."""
        if self._odd:
            return self.readings.place_on(self._screen.current, offset, self.written.end)
        return min(max(self._row_at, self.written.base) + offset, self.written.end)

    def open_moved_row(self) -> bytes:
        """Return the cursor's row with echo blanked out if it was not written from left to right; else empty."""
        if not self._odd or not self._screen.current.moved:
            return b""
        return self.readings.render(self._screen.current, soft=False)[1]

    def split(self, offset: int) -> None:
        """End the cursor's row before one of its bytes; the text from there on begins a new row."""
        if not self._odd:
            self._begin_odd(self.written.end - self._returned)
        column, size = 0, 0
        for char in self._screen.current.chars:
            if size >= offset:
                break
            size += len(char.encode(errors="replace"))
            column += 1
        before, rest = self._screen.split(column)
        places = [at for at in before.at if at >= 0]
        self._split = (min(places), max(places) + 1, rest) if places else None

    @property
    def at_row_end(self) -> bool:
        """Tell whether the cursor stands behind all text of its row."""
        return self._screen.at_row_end if self._odd else not self._returned

    def heed_split(self) -> None:
        """Take the text before a split for no evidence if the row behind it was returned over: it is one row on a terminal."""
        if self._split is not None and (self._split[2].rewritten or self._split[2].moved):
            self.written.gone[self._split[0]] = self._split[1]
            self.written.changed = min(self.written.changed, self._split[0])
            self._split = None
            self.readings.update()
