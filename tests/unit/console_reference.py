"""The rules of the console once more: slow, simple, and without a thought for memory.

It is told what the judge has to find out, namely which bytes are echo, and looks at the whole text again whenever anything
happens. Where the judge and this disagree, one of them is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from qcase.console import DRAIN, PANIC_DRAIN, QUIET, Limits, Rules
from qcase.model import Verdict


@dataclass(frozen=True)
class Heard:
    """Bytes that came from the guest at one time."""

    at: float
    data: bytes
    echo: bool = False


@dataclass
class _Found:
    verdict: Verdict
    pattern: str
    start: int
    line: int  # where the line begins that the match ended in, or -1 if that line was complete


CONTINUATIONS = ("a", " ", "\ufffd", "\n")
PANIC = r"(?:^|\[ *\d+\.\d+\] )Kernel panic - not syncing.*|\bpanicked at .*"
WEIGHT = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.PANIC: 2}


def clean(heard: Sequence[Heard], *, final: bool = False) -> tuple[str, str]:
    """What a person reads, and the same with echo blanked out: character by character."""
    read, seen = "", ""
    rest: list[tuple[int, bool]] = [(byte, part.echo) for part in heard for byte in part.data]
    escape = ""
    returned = False
    while rest:
        echo = rest[0][1]
        char, used = _decode(bytes(byte for byte, _ in rest[:4]), final=final)
        if not used:
            break  # the beginning of a character
        rest = rest[used:]
        chars = [char]
        while chars:
            char = chars.pop(0)
            if escape or char == "\x1b":
                ended = _escape_ends(escape, char)
                if ended is None:
                    escape += char
                elif ended:
                    escape = ""
                else:  # it was none, or ends before this character
                    gone = char == "\x1b" or escape[1:2] in ("]", "P", "X", "^", "_")
                    again = ["\x1b"] if len(escape) > 2 and escape.endswith("\x1b") else []
                    text, escape = ("" if gone else escape[1:]), ""
                    chars = [*text, *again, char, *chars]
                continue
            if char in "\0\a\b\x7f":
                continue
            if char == "\r":
                returned = True
                continue
            if returned:
                returned = False
                read += "\n"
                seen += "\n"
                if char == "\n":
                    continue
            read += char
            seen += char if char == "\n" or not echo else "\0" * len(char.encode())
    if final and returned:
        read, seen = read + "\n", seen + "\n"
    if final and escape:
        rest_of_it = "".join(c for c in escape if c not in "\0\a\b\x1b\x7f")
        read, seen = read + rest_of_it, seen + rest_of_it
    return read, seen


def _decode(data: bytes, *, final: bool) -> tuple[str, int]:
    """The first character, and how many bytes it took; 0 if more have to come."""
    for size in range(1, len(data) + 1):
        try:
            return data[:size].decode(), size
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data" or (final and size == len(data)):
                return "\ufffd", max(error.end, 1)
    return "", 0


def _escape_ends(before: str, char: str) -> bool | None:
    """True: with this character; False: before it; None: not yet."""
    whole = before + char
    if not before:
        return None
    if whole[1] == "[":
        if len(whole) == 2:
            return None
        middle = whole[2:-1]
        if "@" <= char <= "~":
            return True
        if "0" <= char <= "?" and not any(" " <= c <= "/" for c in middle):
            return None
        return None if " " <= char <= "/" else False
    if whole[1] in "]PX^_":
        if char == "\a" or whole.endswith("\x1b\\"):
            return True
        if before.endswith("\x1b") and len(before) > 1:
            return False
        return False if char == "\n" else None
    if " " <= char <= "/":
        return None
    return "0" <= char <= "~"


@dataclass
class Reference:
    """Play what was heard to it, in order; `ends` says how it ended."""

    rules: Rules
    limits: Limits
    heard: list[Heard] = field(default_factory=list)
    verdict: Verdict | None = None
    limit: str | None = None
    prompt_at: float | None = None
    armed: int | None = None
    pending: _Found | None = None
    outdone: _Found | None = None
    pended_at: float = 0.0
    doubts: list[_Found] = field(default_factory=list)
    done: set[str] = field(default_factory=set)

    @property
    def last(self) -> float:
        return self.heard[-1].at if self.heard else 0.0

    @property
    def drained_at(self) -> float:
        assert self.pending is not None
        if self.pending.verdict is Verdict.PANIC:
            return min(max(self.last, self.pended_at) + DRAIN, self.pended_at + PANIC_DRAIN)
        return self.pended_at + DRAIN

    def deadlines(self) -> list[tuple[float, str]]:
        ends = [(0.0, self.limits.whole, "timeout"), (self.last, self.limits.idle, "idle_timeout")]
        if self.prompt_at is None:
            ends.append((0.0, self.limits.boot, "boot_timeout"))
        else:
            ends.append((self.prompt_at, self.limits.command, "command_timeout"))
        return sorted(((since + limit, name) for since, limit, name in ends if limit is not None), key=lambda end: end[0])

    def play(self, parts: Sequence[Heard], until: float) -> None:
        """All that was heard, and the time after it."""
        for part in parts:
            self.pass_time(part.at)
            if self.verdict is not None:
                return
            self.heard.append(part)
            self.look(part.at)
        self.pass_time(until)

    def pass_time(self, until: float) -> None:
        """Look whenever something is due by `until`."""
        looked = -1.0
        while self.verdict is None:
            due = [self.last + QUIET, *(at for at, _ in self.deadlines()[:1])]
            if self.pending is not None:
                due.append(self.drained_at)
            due = [at for at in due if looked < at <= until]
            if not due:
                return
            looked = min(due)
            self.look(looked)

    def look(self, now: float, *, final: bool = False, quiet: bool | None = None) -> None:
        quiet = now >= self.last + QUIET if quiet is None else quiet
        read, seen = clean(self.heard, final=final)
        line = seen.rfind("\n") + 1
        if self.prompt_at is None and self.rules.prompt is not None and (at := read.find(self.rules.prompt)) >= 0:
            self.prompt_at = now
            if self.rules.from_prompt:
                self.armed = len(read[:at].encode()) + len(self.rules.prompt.encode())
        if not self.rules.from_prompt:
            self.armed = 0
        self.confirm(seen, line, at_end=False)
        self.try_all(seen, line, quiet, now)
        if self.pending is not None and (now >= self.drained_at or final):
            self.confirm(seen, line, at_end=True)
            self.try_all(seen, line, quiet or not final, now)
            if self.pending is not None and (now >= self.drained_at or final):
                self.verdict = self.pending.verdict
                return
        if self.verdict is None and self.pending is None and not final:
            for end, name in self.deadlines():
                if now >= end:
                    self.ends(now, timed_out=name)
                    return

    def ends(self, now: float, *, timed_out: str = "") -> None:
        """QEMU ended, or the time is up."""
        if self.verdict is not None:
            return
        self.look(now, final=True, quiet=True if not timed_out else now >= self.last + QUIET)
        if self.verdict is None:
            self.verdict = Verdict.TIMEOUT if timed_out else Verdict.EXITED
            self.limit = timed_out or None

    # --- patterns ------------------------------------------------------------------------------------------------------

    def try_all(self, seen: str, line: int, quiet: bool, now: float) -> None:
        if found := self.match(PANIC, Verdict.PANIC, 0, seen, line, quiet):
            self.rule(found, now)
        if self.armed is None or (self.pending is not None and self.pending.verdict is Verdict.PANIC):
            return
        armed = len(seen.encode()[: self.armed].decode(errors="replace"))
        for pattern in self.rules.fail:
            if found := self.match(pattern, Verdict.FAIL, armed, seen, line, quiet):
                self.doubt(found)
                self.rule(found, now)
                return
        for pattern in self.rules.success:
            if pattern in self.done:
                continue
            if found := self.match(pattern, Verdict.PASS, armed, seen, line, quiet):
                self.doubt(found)
                if self.rules.match_all:
                    self.done.add(pattern)
                    if not self.done.issuperset(self.rules.success):
                        continue
                self.rule(found, now)
                return

    def match(self, pattern: str, verdict: Verdict, armed: int, seen: str, line: int, quiet: bool) -> _Found | None:
        at = find(pattern, seen[:line], armed)
        if at is not None:
            return _Found(verdict, pattern, at[0], -1)
        if line == len(seen):
            return None
        if quiet:
            at = find(pattern, seen, armed)
        else:
            ends = [find(pattern, seen + more, max(line, armed)) for more in CONTINUATIONS]
            at = None if any(end is None or end[1] > len(seen) for end in ends) else ends[0]
        return None if at is None else _Found(verdict, pattern, at[0], line)

    def doubt(self, found: _Found) -> None:
        if found.line >= 0:
            self.doubts.append(found)

    def confirm(self, seen: str, line: int, *, at_end: bool) -> None:
        undone = []
        for found in [f for f in self.doubts if at_end or f.line < line]:
            self.doubts.remove(found)
            whole = seen[:line] if found.line < line else seen
            if find(found.pattern, whole, found.start) is None:
                undone.append(found)
        for found in undone:
            self.done.discard(found.pattern)
            if self.pending is not None and self.pending.verdict is found.verdict:
                self.pending, self.outdone = self.outdone, None

    def rule(self, found: _Found, now: float) -> None:
        if self.pending is not None and WEIGHT[self.pending.verdict] >= WEIGHT[found.verdict]:
            return
        self.outdone = self.pending
        if self.pending is None or found.verdict is Verdict.PANIC:
            self.pended_at = now
        self.pending = found


def find(pattern: str, text: str, start: int) -> tuple[int, int] | None:
    """The first match at or behind `start` that is not of blanked out text alone."""
    for found in re.compile(pattern, re.MULTILINE | re.ASCII).finditer(text, start):
        if "\0" not in found[0] or found[0].strip("\0 \t\n\v\f\r"):
            return found.span()
    return None
