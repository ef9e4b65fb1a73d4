"""A command that is typed: what went out when, and what is known of where it came back."""

from __future__ import annotations

import re
from typing import Final

from qcase.console.echo_text import TypedLine, as_line
from qcase.console.joined import KERNEL_LINE
from qcase.console.text import Text

PROMPT_END: Final = re.compile(rb"[^\s]*[ \t]*")
_KERNEL_ENDED: Final = re.compile(KERNEL_LINE.pattern + rb"(?:\n|\Z)")
_LINE_OVER: Final = re.compile(rb" ?\n")


class TypedCommand:
    """The lines of a command, and the traces that typing them left."""

    def __init__(self, command: str, prompt: str, text: Text, now: float, *, as_is: bool = False) -> None:
        self.prompt = prompt.encode()
        self.as_is = as_is  # keys: nothing is added, and nothing is typed again
        said = command.removesuffix("\n") if as_is else command.rstrip("\r\n")
        self.ends = not as_is or said != command  # the last line gets a line end
        self.lines: list[TypedLine] = [as_line(line) for line in said.split("\n")]
        self.line_end_typed = False  # from now on the guest runs something
        self.may_repeat = not as_is  # the first line may be typed once more
        self.began = text.end  # from here to `ran` is echo, whatever it is
        self.ran = text.end
        self.again_from = 0  # where the text ended when the line was erased
        self.echoes = False  # some of what was typed came back
        self.sure: list[tuple[int, int]] = []  # where the chunks of the first line came back
        self.sure_from = 0  # the chunks that came back before the line was typed again
        self.log: list[tuple[bytes, int]] = []  # what was typed, and where the text ended then
        self.typed_at = now
        # A kernel's line, and what begins with the program's name and a colon: `sh: not found`.
        name = re.escape((command.split() or [" "])[0].encode())
        self.kernels = not KERNEL_LINE.search(command.encode())  # what looks like a kernel's line is one
        kernels = b"|" + _KERNEL_ENDED.pattern if self.kernels else b""
        self.others = re.compile(rb"(?m)^" + name + rb": [^\n]*(?:\n|\Z)" + kernels)
        self._text = text

    def note(self, keys: bytes, now: float) -> None:
        """Record what is typed now."""
        self.log.append((keys, self._text.end))
        self.typed_at = now

    @property
    def rounds(self) -> int:
        """Count how often the command was typed."""
        return 1 if self.may_repeat or self.as_is else 2

    def without_kernels(self, came: bytes) -> bytes:
        """Return text without the kernel's lines, so that what one of them tore is whole, if the command holds none."""
        return _KERNEL_ENDED.sub(b"", came) if self.kernels else came

    def unprompted(self, row: bytes) -> bytes:
        """Return a row without the prompt that it begins with, and without blanks around it."""
        at = row.rfind(self.prompt) if self.prompt else -1
        rest = PROMPT_END.match(row, at + len(self.prompt)) if at >= 0 else re.match(rb"> ", row)
        return row[rest.end() if rest else 0 :].strip(b" ")

    def painted(self, row: bytes) -> bool:
        """Tell whether a row shows a part of a typed line behind a prompt."""
        shown = self.unprompted(row)
        return shown != row.strip(b" ") and shown != b"" and any(line.text.startswith(shown) for line in self.lines)

    def said_more(self, said: bytes, came: bytes) -> bool:
        """Tell whether a text came more often than the echo can have written it: a line but the first may come back twice.

        Only rows that hold nothing else count, and those that are a typed line.
        """
        lines = [line.text.strip(b" ") for line in self.lines]
        times = sum(line.count(said) for line in lines)
        rows = came.split(b"\n")
        if said in lines[0]:
            rows = [row for row in rows if not self.painted(row)]
            whole = any(row.strip(b" ") == lines[0] for row in rows)
            times *= 1 if whole else 2
        else:
            times *= 2
        count = sum(row.count(said) for row in map(self.unprompted, rows) if row == said or row in lines)
        return 0 < times * self.rounds < count

    def plainly_back(self) -> int:
        """Return the end of an echo that is exactly what was typed, one line, with its end right behind; else behind all text."""
        text = self._text
        never = text.end + 1
        sure = self.sure[self.sure_from :]
        if len(self.lines) > 1 or not self.line_end_typed or len(sure) != len(self.lines[0].chunks):
            return never
        at = max(self.began, self.again_from)
        for low, high in sure:
            if low < at or not self._only_paints(text.slice(at, low)):
                return never
            at = high
        if at >= text.end or text.match(_LINE_OVER, at) is None:
            return never
        return at

    def came_back(self) -> int:
        """Return the end of an echo of the first line of which each part was seen when it came; behind all text if none was."""
        sure = self.sure[self.sure_from :]
        return sure[-1][1] if sure and len(sure) == len(self.lines[0].chunks) else self._text.end + 1

    def _only_paints(self, between: bytes) -> bool:
        """Tell whether two parts of an echo are parted only by breaks, a kernel's lines, and what is painted anew."""
        for row in KERNEL_LINE.sub(b"", between).split(b"\n"):
            at = row.rfind(self.prompt) if self.prompt else -1
            rest = PROMPT_END.match(row, at + len(self.prompt)) if at >= 0 else None
            if not self.lines[0].text.startswith(row[rest.end() if rest else 0 :].rstrip(b" ")):
                return False
        return True

    def echo_goes_on(self) -> bool:
        """Tell whether the line on which the first line's echo stands, or has still to come, has not ended."""
        return self.echo_ends() < 0

    def echo_ends(self) -> int:
        """Return the end of the line on which the first line's echo stands or may come: the first not a kernel's; or -1."""
        text = self._text
        start = max(self.sure[-1][1] if self.sure else self.began, text.base)
        while (end := text.find(b"\n", start)) >= 0:
            line = text.slice(start, end)
            if self.sure or not KERNEL_LINE.search(line) or KERNEL_LINE.sub(b"", line).strip():
                break
            start = end + 1
        return end
