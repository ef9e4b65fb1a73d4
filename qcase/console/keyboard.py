"""Types a case's command, and finds what comes back of it.

What a guest echoes is no output: a pattern that also stands in the command must not match there. So echo is blanked out of
the text that patterns see. There are three kinds of it:

* Until the first line end is out, what may be a part of the first line (`first_line`).
* A command goes out in chunks that a UART's FIFO holds, the next one when the echo of the last has come back, the line
  end last. So each later line's echo is known by its chunks.
* An echo that comes after its line end, and the second one that a line editor paints (`traces`).

These follow the text as it comes, and hide it (`hidden`). Before anything that was found counts, and when it is quiet, all that
came since the first key is laid beside what was typed (`review`).

What comes back of the first line also shows whether it arrived. If characters of it are missing, the line is erased and typed
once more, before its line end makes the guest run something else. A guest that echoes nothing is believed.

Between two characters of an echo a terminal may break the line, and a kernel may write a line of its own. A character that
is not plain ASCII may come back as something else, or not at all.
"""

from __future__ import annotations

import difflib
import re
from typing import Final

from qcase.console.echo_text import AFTER, CHUNK, ERASE, TypedLine, anywhere, plain, shown_typed
from qcase.console.first_line import FirstLine
from qcase.console.hidden import Hidden
from qcase.console.joined import KERNEL_LINE
from qcase.console.review import Review
from qcase.console.text import Text
from qcase.console.traces import Traces
from qcase.console.typed_command import TypedCommand

ECHO_PATIENCE: Final = 1.0  # seconds to wait for an echo before going on without
CALM: Final = 0.3  # seconds without a byte after which a guest is taken to have echoed what it will
CALM_PATIENCE: Final = 5.0  # seconds to wait for that
ERASE_PAUSE: Final = 0.05  # seconds between two chunks of erasing: what comes back of that is not looked at
_SHORT: Final = 3  # typed characters that may stand in a word by chance are fewer
_ECHO_PLACE: Final = re.compile(rb"[ >]*")


class Keyboard:
    """Types one command, from the moment at which it is made on. `hidden`: its echo; `echo`: the account of that."""

    def __init__(self, command: str, prompt: str, text: Text, now: float, *, as_is: bool = False) -> None:
        self.warning = ""
        self._command = TypedCommand(command, prompt, text, now, as_is=as_is)
        self.hidden = Hidden(self._command, text)
        self._first = FirstLine(self._command, self.hidden, text)
        self._traces = Traces(self._command, self.hidden, text)
        self.echo = Review(self._command, self.hidden, text)
        self._text = text
        self._at = 0  # the line that is being typed
        self._waiting: int | None = None  # the chunk whose echo is waited for
        self._until = 0.0
        self._patience = ECHO_PATIENCE
        self._calm_by: float | None = None
        self._to_erase: int | None = None  # characters of a line that did not arrive
        self._line_open = True  # what comes may still be echo of the first line, which has not ended
        self._echo_from = text.end
        self._grown_at = now

    @property
    def line_end_typed(self) -> bool:
        """Tell whether the first line end is out: from then on the guest runs something."""
        return self._command.line_end_typed

    def show_mixed(self) -> None:
        """See `FirstLine`."""
        self._first.show_mixed()

    @property
    def all_typed(self) -> bool:
        """Tell whether the last line end is out."""
        return self._at >= len(self._command.lines)

    @property
    def next_wake(self) -> float | None:
        return self._until if self._at < len(self._command.lines) else None

    def hand_over(self) -> None:
        """Show what only might have become an echo: another command is typed from here on."""
        self.hidden.show(list(self.hidden.traces.values()))
        self.hidden.traces.clear()

    def type(self, now: float) -> bytes:
        """Return what is to be typed now."""
        if out := self._type(now):
            self._command.note(out, now)
        return out

    def _type(self, now: float) -> bytes:
        out = bytearray()
        while self._at < len(self._command.lines):
            line = self._command.lines[self._at]
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
            if self._command.may_repeat and self._arrived_damaged(line):
                self._command.may_repeat = False
                self._to_erase = len(line.text) + CHUNK
                self._until = now
                self.warning = f"the guest lost characters of what was typed, so it was typed again: {shown_typed(line.text)}"
                continue
            partly = len(line.missing) < len(line.chunks) or not self._command.may_repeat
            if line.missing and partly and not (line.doubtful or self._command.as_is):
                self.warning = f"the guest echoed only a part of what was typed: {shown_typed(line.text)}"
            out += b"\n" if self._command.ends or self._at + 1 < len(self._command.lines) else b""
            line.ended = True
            line.ended_at = self._text.end
            if line.missing:
                self._traces.watch_late(line)
            if not self._command.line_end_typed:
                self._command.ran = self._text.end
                self._command.line_end_typed = True
                self.show_mixed()
                self._line_open = self._command.echo_goes_on()
            self._at += 1
        return bytes(out)

    def find_echo(self, now: float) -> None:
        """Blank out what came back in the text that is new."""
        if self._text.end == self._traces.seen:
            return
        self._grown_at = now
        if self._line_open:
            self._first.hide_typing()
            self._line_open = not self._command.line_end_typed or self._command.echo_goes_on()
        self._traces.find()

    def unsure_from(self, *, quiet: bool) -> int:
        """Return where the echo of a typed line may have begun at the end of the text; `text.end` if none has.

        One or two characters that stand alone for a while are the end of a word: a guest that does not echo would else never
        pass on a last line that ends in the letter with which the command begins.
        """
        least = 3 if quiet else 1
        rest = self._text.slice(max(self._text.line_start, self._text.end - 4096), self._text.end)
        longest = 0
        for line in self._command.lines:
            if line.ended and not line.missing:
                continue
            for n in range(min(len(line.text), len(rest)), max(longest, min(least, len(line.text)) - 1), -1):
                if rest.endswith(line.text[:n]):
                    longest = n
                    break
        return self._text.end - longest

    def _wait_for_calm(self, line: TypedLine, now: float) -> bool:
        """Wait before the first line end until no more comes, if what came back is not what was typed."""
        if self._command.line_end_typed or self._command.as_is or not line.missing or self._text.end == self._command.began:
            return False
        if self._calm_by is None:
            self._calm_by = now + CALM_PATIENCE
        self._until = min(self._grown_at + CALM, self._calm_by)
        return now < self._until

    def _arrived_damaged(self, line: TypedLine) -> bool:
        """Tell whether what came back is the first line, but for characters that were lost."""
        if self._command.line_end_typed or not line.missing:
            return False
        came = KERNEL_LINE.sub(b"", self._text.slice(self._command.began, self._text.end))
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
        self._echo_from = self._command.again_from = self._text.end
        self._command.sure_from = len(self._command.sure)
        return b""

    def _echoed(self, line: TypedLine, number: int) -> bool:
        """Tell whether a chunk of a line has come back. It is hidden where it is no chance that it stands there."""
        text = self._text
        chunk = line.chunks[number]
        since = 0 if self._command.line_end_typed else line.since
        found = text.search(anywhere(chunk), max(self._echo_from, since, text.base))
        if found is None:
            return False
        if not self._command.line_end_typed:
            if line.missing[0] == number:  # all before it came back
                self._command.sure.append(found)
        else:
            placed = text.match(_ECHO_PLACE, text.start_of_line(found[0])) == found[0] or number > 0
            if number == len(line.chunks) - 1 and found[1] < text.end and text.match(AFTER, found[1]) is None:
                placed = False
            if placed or found[1] - found[0] >= _SHORT:
                self.hidden.hide_surely(*found)
            if not placed:
                line.doubtful = True  # the echo may still come where it belongs
        self._echo_from = found[1]
        self._command.echoes = True
        return True
