"""Kernel panics in the console's text: patterns, suspects and the lines of a panic's block.

A panic's first line is certain at the start of a line, behind a time stamp, and behind the case's own prompt. In the middle
of another line it may be a program's: `grep: Kernel panic - not syncing: no such file`. Then it is a suspect, and the text
behind it decides: a kernel that panicked repeats the words at the end of its block, and nothing runs on it any more.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from qcase.console.joined import KERNEL_LINE
from qcase.console.text import Pattern, Text

PANIC_LINES: Final = 80  # maximum lines of a panic's block
_LINE_SEEN: Final = 1 << 12  # bytes searched again of an unfinished line, and before the words of a panic
_SUSPECTS: Final = 64  # maximum suspects kept: the first ones and the last ones
LINE_SHOWN: Final = 400  # characters kept of a line for the report

# The first line of a kernel's panic. Linux puts it behind a timestamp, possibly in the middle of a line that a program has
# begun. ArceOS and StarryOS print core's PanicInfo, Asterinas a line of its own, the rCore family `[kernel] Panicked at`.
PANIC_PATTERNS: Final = (
    r"(?:^|\[ *\d+\.\d+\](?:\[[^\]\n]*\])? *|^<\d>)Kernel panic - not syncing.*",
    r"panicked at .*",
    r"\[kernel\] (?i:panicked)(?: at |: ).*",
    r"\bUncaught panic:$|\bNon-resettable panic! .*",
)
LINUX: Final = b"Kernel panic - not syncing"
_LINUX_END: Final = b"---[ end Kernel panic"
_BEFORE_END: Final = re.compile(rb"(?:\[ *\d+\.\d+\](?:\[[^\]\n]*\])? *|<\d>)*")  # before it, on a kernel's line
# A panic of a program: Rust's std begins it with the thread's name. It is not the kernel's.
# Its first letters may be hidden, as those that were typed as well.
_PROGRAM_PANIC: Final = re.compile(rb"[t\0][h\0][r\0][e\0][a\0][d\0][ \0]['\0][^\n]*'(?: \(\d+\))? \Z")
# Line with which kernels of the rCore family end normally.
_ORDERLY_END: Final = b"All applications completed!"
# Beginnings of the reports that lead to a Linux panic.
_OOPS: Final = re.compile(
    rb"cut here \]|\bBUG: |\bOops\b|Unable to handle kernel|Internal error: |general protection fault|kernel BUG at |"
    rb"double fault|invalid opcode|Unhandled fault|unhandled exception",
)
# Text between a prompt's text and its end: a folder, for instance.
_PROMPT_REST: Final = re.compile(rb"[^\s]*[ \0]*\Z")


class PanicPattern(Pattern):
    """One of `PANIC_PATTERNS`, each of which matches within one line."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.spans_lines = False

    def search(self, text: bytes | bytearray, start: int = 0, end: int | None = None) -> tuple[int, int] | None:
        """Return the first match that is a kernel's; see `Pattern.search`."""
        programs, line_end = 0, -1
        while found := super().search(text, start, end):
            line = max(text.rfind(b"\n", max(found[0] - _LINE_SEEN, 0), found[0]) + 1, found[0] - _LINE_SEEN, 0)
            if not _PROGRAM_PANIC.search(text[line : found[0]]) and _ORDERLY_END not in text[found[0] : found[1]]:
                return found
            programs = programs + 1 if found[1] == line_end else 1
            line_end = found[1]
            start = found[0] + 1 if programs < _SUSPECTS else found[1]  # each search runs to the line's end
        return None


@dataclass(frozen=True)
class Suspect:
    """The words of a Linux panic in the middle of a line. `start`, `end`: positions of the words and of the line's end."""

    start: int
    end: int


class Suspects:
    """Finds Linux's words for a panic anywhere on a line, and decides whether they are a kernel's."""

    def __init__(self, prompt: str | None) -> None:
        self._prompts = [prompt.encode()] if prompt else []
        self._seen = 0
        self._end_typed = False
        self.ended = False  # the words that end a panic stood on a line of their own
        self.open: list[Suspect] = []

    def add_prompt(self, prompt: str) -> None:
        """Record a further prompt of the guest."""
        if prompt.encode() not in self._prompts:
            self._prompts.append(prompt.encode())

    def note_typed(self, lines: Iterable[bytes]) -> None:
        """Record lines that are typed now."""
        self._end_typed = self._end_typed or any(_LINUX_END in line for line in lines)

    def again(self, position: int) -> None:
        """Search again from a position on, which is the start of a line."""
        self._seen = min(self._seen, position)

    def drop_hidden(self, text: Text) -> None:
        """Forget the suspects that are known to be no output by now."""
        self.open = [suspect for suspect in self.open if text.view_slice(suspect.start, suspect.start + len(LINUX)) == LINUX]

    def find(self, text: Text) -> tuple[int, int] | None:
        """Return a panic in the new part of the written text, including the unfinished line."""
        begin = max(self._seen, text.base)
        self._seen = max(text.line_start, begin, text.end - _LINE_SEEN)
        at = begin - text.base
        high = 0
        while (at := text.view.find(LINUX, at)) >= 0:
            low = text.view.rfind(b"\n", max(at - _LINE_SEEN, 0), at) + 1 or max(at - _LINE_SEEN, 0)
            if high < at:
                high = text.view.find(b"\n", at)
                high = len(text.view) if high < 0 else high
            found = text.base + at, text.base + high
            if self._behind_prompt(bytes(text.view[low:at])):
                return found
            if text.view[max(low, at - 9) : at].endswith(b"---[ end "):
                if self.open:
                    self.ended = self.ended or not self._end_typed
                    return self.open[0].start, self.open[0].end
            else:
                self._suspect(*found)
            at += len(LINUX)
        return self.find_end(text, begin)

    def find_end(self, text: Text, begin: int) -> tuple[int, int] | None:
        """Return the words that end a panic on a line of their own. Where nobody typed them, those before were no echo."""
        if self._end_typed:
            return None
        at = begin - text.base
        while (at := text.raw.find(_LINUX_END, at)) >= 0:
            low = text.raw.rfind(b"\n", max(at - _LINE_SEEN, 0), at) + 1 or max(at - _LINE_SEEN, 0)
            high = at + len(_LINUX_END)
            if _BEFORE_END.fullmatch(text.raw, low, at):
                self.ended = True
                return text.base + at, text.base + high
            at = high
        return None

    def _suspect(self, start: int, end: int) -> None:
        if self.open and self.open[-1].start == start:
            self.open.pop()  # its line has grown
        if all(suspect.start != start for suspect in self.open):
            self.open.append(Suspect(start, end))
        if len(self.open) > _SUSPECTS:
            del self.open[_SUSPECTS // 2]

    def _behind_prompt(self, before: bytes) -> bool:
        places = ((before.rfind(prompt), len(prompt)) for prompt in self._prompts)
        return any(at >= 0 and _PROMPT_REST.match(before, at + size) for at, size in places)

    def silent(self, text: Text, evidence: int | None) -> list[Suspect]:
        """Return the suspects behind which nothing shows that the guest went on: no prompt, and no success on a later row."""
        since = max([-1 if evidence is None else evidence, *map(text.rfind, self._prompts)])
        return [suspect for suspect in self.open if suspect.end > since]


def panic_block(text: Text, at: int) -> tuple[str, ...]:
    """Return the lines of a panic: reports that led to it (if its line has a kernel's mark), its own line, the lines behind."""
    start = text.start_of_line(at)
    first = text.slice(start, text.end).split(b"\n", 1)[0]
    before: list[bytes] = []
    if KERNEL_LINE.search(first):
        above = text.slice(max(text.base, start - (1 << 16)), max(start - 1, text.base)).split(b"\n")
        near = list(itertools.takewhile(KERNEL_LINE.search, reversed(above[-PANIC_LINES // 2 :])))
        led = max((n for n, line in enumerate(near) if _OOPS.search(line)), default=-1)
        before = near[: led + 1][::-1]
    behind: list[bytes] = []
    for line in text.slice(start, min(text.end, start + (1 << 17))).split(b"\n"):
        if len(before) + len(behind) >= PANIC_LINES:
            break
        behind.append(line)
        if _LINUX_END in line:
            break
    while behind and not behind[-1].strip():
        behind.pop()
    return tuple(shown(line) for line in (*before, *behind))


def shown(line: bytes) -> str:
    """Return a line as shown in reports: at most `LINE_SHOWN` characters."""
    return line[: 4 * LINE_SHOWN].decode(errors="replace")[:LINE_SHOWN].rstrip()


# Firmware prints this once for each start of the machine. It must be a whole line: a program may report on firmware.
BANNER: Final = re.compile(rb"^(?:SeaBIOS \(version [^\n]*\)|OpenSBI v\d[^\n]*|UEFI firmware \(version [^\n]*)$", re.MULTILINE)
