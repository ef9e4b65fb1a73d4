"""A reading without the kernel's lines and without echo, in which lines torn by them are whole again."""

from __future__ import annotations

import re
from collections import deque
from typing import Final

from qcase.console.records import RECORDS_MAX
from qcase.console.text import Text

_CARRY_MAX: Final = 1 << 13  # bytes of a torn line; one is kept for each of the last records

# A line that a kernel wrote, possibly in the middle of another. Linux and ArceOS print six digits behind the point; text of a
# program such as `[0.53 s]` is not a kernel's line.
KERNEL_LINE: Final = re.compile(rb"(?:<\d>)?\[ *\d+\.\d+(?:\]|(?<=\.\d{6}) [^\]\n]{0,200}\])[^\n]*")

UNARMED: Final = b"\1"  # stands for text written before the case's patterns begin to search
# Text that an echo tore: whose the line end behind it is cannot be told, so no success may reach into it. A word's end stays one.
_NO_EVIDENCE: Final = re.compile(rb"[^\0\1\n #$>](?!\Z)|[^\0\1\w\n #$>]\Z")
_WORD_END: Final = re.compile(rb"\w\Z")
# The part of a line that a kernel wrote, with the line end, and all whole kernel lines that follow.
_KERNEL_RUN: Final = re.compile(KERNEL_LINE.pattern.removeprefix(rb"(?:<\d>)?") + rb"\n(?:" + KERNEL_LINE.pattern + rb"\n)*+")
_PROMPT_LEAST: Final = 4  # minimum characters of a prompt that hardly occurs by chance
_PROMPT_WHOLE: Final = re.compile(rb"[^\s\0]*[ \t]*")
_LEVEL: Final = re.compile(rb"<\d>")


class KernelRuns:
    """Finds the runs of kernel lines in a block and remembers the last block: two readings ask for the same block in turn."""

    def __init__(self) -> None:
        self._block = b""
        self._runs: list[tuple[int, int, int]] = []

    def of(self, block: bytes) -> list[tuple[int, int, int]]:
        """Return for each run: start of its first line, start of the kernel's part of that line, end of the run."""
        if block == self._block:
            return self._runs
        self._block, self._runs = block, []
        for found in _KERNEL_RUN.finditer(block):
            start, end = found.span()
            if block[start - 1 : start] == b">" and _LEVEL.match(block, max(start - 3, 0), start):
                start -= 3
            self._runs.append((block.rfind(b"\n", 0, start) + 1, start, end))
        return self._runs


class Joined:
    """A reading without the kernel's lines and without echo, so that lines torn by them are whole again.

    A line that nothing tore is the same in both readings and is not searched again: `fresh` has the ranges of lines that differ.
    A pattern that spans lines is tried on the whole text while `differs` is in the window.
    """

    def __init__(self, prompt: bytes, runs: KernelRuns, *, inside: bool) -> None:
        self._runs = runs
        self._inside = inside  # remove echo also in the middle of a line; such a line is no evidence of a success
        self.text = Text()
        self.text.view = self.text.raw  # nothing is hidden here: echo is removed
        self.fresh: list[tuple[int, int]] = []
        self.differs = -1  # last position at which this reading differs from the other one
        self.carry = b""  # the part of a line before the kernel's line or echo that tore it
        self.continued: list[tuple[int, int]] = []  # ranges in the other reading of the lines that end a torn line
        self._prompt = prompt
        self._marks: deque[tuple[int, int, int, bytes]] = deque(
            maxlen=RECORDS_MAX
        )  # source's range of keys, end of the text, carry

    def use_prompt(self, prompt: bytes) -> None:
        """See `Readings.use_prompt`."""
        self._prompt = prompt

    def take(self, block: bytes, key: int) -> None:
        """Add whole lines. `key`: position of the first one in the source reading."""
        if (hidden := block.rfind(0)) >= 0:
            end = block.find(b"\n", hidden) + 1
            for line in block[: end - 1].split(b"\n"):
                self._take_line(line, key)
                key += len(line) + 1
            block = block[end:]
        at = 0
        whole: list[bytes] = []  # lines without cuts
        text_end = self.text.end  # end of the text once these are added
        for low, start, end in self._runs.of(block):
            if self.carry:  # then `whole` is empty
                self._take_whole(block[at:low], key + at)
                text_end = self.text.end
            elif low > at:
                self._marks.append((key + at, key + low, text_end, b""))
                whole.append(block[at:low])
                text_end += low - at
            self.differs = text_end
            if start > low:
                self.text.extend_lines(b"".join(whole))
                whole.clear()
                self._marks.append((key + low, key + end, text_end, self.carry))
                self._tear(block[low:start])
                text_end = self.text.end
            at = end
        self.text.extend_lines(b"".join(whole))
        self._take_whole(block[at:], key + at)

    def _take_whole(self, block: bytes, key: int) -> None:
        """Add lines without cuts. The first one may end a torn line."""
        if self.carry and block:
            first, _, block = block.partition(b"\n")
            self._take_line(first, key)
            key += len(first) + 1
        if block:
            self._marks.append((key, key + len(block), self.text.end, b""))
            self.text.extend_lines(block)

    def _tear(self, rest: bytes) -> None:
        if len(self.carry) + len(rest) > _CARRY_MAX:
            self.text.extend_lines(self.carry + b"\n")
            self.carry = b""
        self.carry += rest

    def end_at_prompt(self) -> None:
        """End the text before the shell's prompt if a kernel's line stands behind that prompt."""
        at = self.carry.rfind(self._prompt) if len(self._prompt) >= _PROMPT_LEAST else -1
        if at > 0 and _PROMPT_WHOLE.fullmatch(self.carry, at + len(self._prompt)):
            start = self.text.end
            self.text.extend_lines(self.carry[:at] + b"\n")
            self.fresh.append((start, self.text.end))
            self.differs = start
            self.carry = self.carry[at:]

    def _take_line(self, line: bytes, key: int) -> None:
        self._marks.append((key, key + len(line) + 1, self.text.end, self.carry))
        rest, torn = self._cut(line)
        if torn or rest != line or self.carry:
            self.differs = self.text.end
        if torn:
            self._tear(rest if self._inside or 0 not in line else self._no_evidence(rest))
            return
        start = self.text.end
        if self._is_program(self.carry):
            self.continued.append((key, key + len(line)))
        self.text.extend_lines(self.carry + rest + b"\n")
        if self.carry or rest != line:
            self.fresh.append((start, self.text.end))
        self.carry = b""

    def arm(self) -> None:
        """Replace the torn parts so far: they do not count for patterns."""
        self.carry = UNARMED * len(self.carry)

    def _no_evidence(self, torn: bytes) -> bytes:
        """Return the part of a line that an echo tore, with a program's text in it replaced."""
        at = torn.rfind(self._prompt) + len(self._prompt) if self._prompt and self._prompt in torn else 0
        return torn[:at] + _WORD_END.sub(b"_", _NO_EVIDENCE.sub(b"\2", torn[at:]))

    def _is_program(self, torn: bytes) -> bool:
        """Tell whether a torn line has text besides a prompt and echo."""
        at = torn.rfind(self._prompt) + len(self._prompt) if self._prompt and self._prompt in torn else 0
        return bool(torn[at:].strip(b"\0\x01 #$>"))

    def flush(self) -> None:
        """End a torn line."""
        if self.carry:
            self._take_line(b"", self._marks[-1][1] if self._marks else 0)

    def _cut(self, line: bytes) -> tuple[bytes, bool]:
        """Return a line without the kernel's text and echo, and whether the program's line continues in the next one."""
        kernels = KERNEL_LINE.search(line) if b"[" in line else None
        rest = line if kernels is None else line[: kernels.start()]
        if 0 not in rest:
            return rest, kernels is not None
        echo_ends = rest.rstrip(b" ").endswith(b"\0")
        before = self.carry + rest  # a kernel's line may stand between the prompt and its echo
        torn = kernels is not None or (echo_ends and (not self._prompt or not (self._prompt in before or UNARMED in before)))
        return rest.replace(b"\0", b"") if self._inside else rest.rstrip(b"\0 ") if echo_ends and torn else rest, torn

    def open_line(self, line: bytes) -> bytes:
        """Return an unfinished line with the torn part before it; empty if the line is the same in the other reading."""
        rest, _ = self._cut(line)
        return self.carry + rest if self.carry or rest != line else b""

    def source(self, position: int) -> int:
        """Map a position in this reading to its position in the other reading, or to the line around that."""
        for key, end, at, carry in reversed(self._marks):
            if at <= position:
                return min(key + max(0, position - at - len(carry)), end - 1)
        return 0

    def rewind(self, key: int) -> int | None:
        """Remove lines from behind a position. Return the position from which on to take lines again."""
        again = None
        while self._marks and self._marks[-1][1] > key:
            again, _, end, self.carry = self._marks.pop()
            self.text.truncate(end)
        self.fresh = [(low, high) for low, high in self.fresh if high <= self.text.end]
        return again


class Bared:
    """Rows that hold echo, without it, each as a line of its own: a fail text that ends where an echo begins may be complete.

    What stands behind an echo at a row's start does not begin that row: a blank that is taken for echo may be output.
    """

    def __init__(self) -> None:
        self.text = Text()
        self.text.view = self.text.raw
        self.fresh: list[tuple[int, int]] = []
        self.differs = -1
        self._marks: deque[tuple[int, int, int]] = deque(maxlen=RECORDS_MAX)  # source's range of keys, end of the text

    def take(self, view: bytes, key: int) -> None:
        """Add rows that hold echo. `key`: position of the first one in the source reading."""
        for row in view[:-1].split(b"\n"):
            start, end = self.text.end, key + len(row) + 1
            bare = KERNEL_LINE.sub(b"", row)
            said = bare.lstrip(b"\0 ")
            if 0 in row and said:
                apart = bool(self._marks) and self._marks[-1][1] < key  # a text of several lines does not go on here
                self._marks.append((key, end, start))
                self.text.extend_lines(UNARMED + b"\n" if apart else b"")
                self.text.extend_lines(bare[: len(bare) - len(said)] + said.replace(b"\0", b"") + b"\n")
                self.fresh.append((start, self.text.end))
                self.differs = start
            key = end

    def source(self, position: int) -> int:
        """Map a position in this reading to the start of its row in the source reading."""
        return next((key for key, _, at in reversed(self._marks) if at <= position), 0)

    def rewind(self, key: int) -> None:
        """Remove the rows from behind a position."""
        while self._marks and self._marks[-1][1] > key:
            self.text.truncate(self._marks.pop()[2])
        self.fresh = [(low, high) for low, high in self.fresh if high <= self.text.end]
