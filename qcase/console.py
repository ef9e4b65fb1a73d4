"""From the text of a guest to a verdict.

    bytes ─► Terminal ─► Text ─► Judge ─► Ruling
                          ▲        │
               hides echo └─ Keyboard ─► what is typed

Nothing in here reads, writes or asks for the time: the caller feeds bytes together with the monotonic time at which they came,
types what `Judge.input()` hands out, and looks at `Judge.ruling`. So the same bytes at the same times give the same verdict.

The rules, and what they are for (COMPAT, "The console"):

* The prompt is a literal substring. It fires once; 100 ms later the command is typed. Its echo is no output (`keyboard`).
* Patterns see real lines: `^` and `$` are the ends of lines. A line that is not complete yet can match only if no
  continuation could undo the match, or if it has been quiet for a while, as a prompt is; if it then goes on, what it became
  has to match.
* A pattern sees at least the last 1 MiB.
* Fail patterns come before success patterns. After the match that decides, output is read for another 500 ms: a panic or a
  fail pattern in it wins over a pass.
* The lines with which kernels panic are looked for whether or not a case asks for them.
* A grouped case ends when its script does. Its verdict comes from the markers of every single command.
* Time is limited as a whole, until the prompt, from there on (each command of a group by itself), and between two bytes. What
  has already decided is drained to its end first.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from qcase.keyboard import CHUNK, KERNEL_LINE, Keyboard
from qcase.model import LimitUse, Phase, SubtestResult, SubtestStatus, Verdict
from qcase.transcript import WINDOW, Pattern, Terminal, Text

__all__ = ["CHUNK", "DRAIN", "EXCERPT", "PROMPT_DELAY", "QUIET", "WINDOW", "Group", "Judge", "Limits", "Rules", "Ruling"]

PROMPT_DELAY: Final = 0.1  # seconds from the prompt to the first key (axbuild)
DRAIN: Final = 0.5  # seconds of output read after the match that decides (axbuild)
PANIC_DRAIN: Final = 1.5  # seconds of output read at most after a panic, as long as more of it comes
QUIET: Final = 0.5  # seconds after which an unfinished line is taken as it stands
EXCERPT: Final = 240  # characters of an excerpt (axbuild)
TAIL_LINES: Final = 200  # lines kept for the person who reads the failure
LINE_SHOWN: Final = 400  # characters of a kept line
PANIC_LINES: Final = 80  # lines of a panic's block, at most
RESETS: Final = 3  # resets that are no loop, where a case allows any
RESET_BURST: Final = 0.25  # seconds; and with nothing said in between, RESET_SILENCE: resets within it are one
RESET_SILENCE: Final = 1.0
_MARKER_MAX: Final = 1 << 16  # bytes of a line that may be a group's marker

# The first line of a kernel's panic. Linux puts it behind a timestamp, possibly in the middle of a line that a program has
# begun. ArceOS and StarryOS print core's PanicInfo, Asterinas a line of its own, the rCore family `[kernel] Panicked at`.
PANIC_PATTERNS: Final = (
    r"(?:^|\[ *\d+\.\d+\](?:\[[^\]\n]*\])? *|^<\d>)Kernel panic - not syncing.*",
    r"\bpanicked at .*",
    r"\[kernel\] (?i:panicked)(?: at |: ).*",
    r"\bUncaught panic:$|\bNon-resettable panic! .*",
)
# A program's panic, which std begins with the thread's name, is the program's affair, not the kernel's.
_PROGRAM_PANIC: Final = b"thread '"
# Firmware says so once for each start of the machine. A whole line, so that a program that reports on firmware is none.
_BANNER: Final = re.compile(rb"^(?:SeaBIOS \(version [^\n]*\)|OpenSBI v\d[^\n]*|UEFI firmware \(version [^\n]*)$", re.MULTILINE)
# Where what leads to a Linux panic begins, and where its block ends.
_OOPS: Final = re.compile(
    rb"cut here \]|\bBUG: |\bOops\b|Unable to handle kernel|Internal error: |general protection fault|kernel BUG at |"
    rb"double fault|invalid opcode|Unhandled fault|unhandled exception",
)
_PANIC_END: Final = b"---[ end Kernel panic"
# How kernels of the rCore family end when all is well.
_ORDERLY_END: Final = b"All applications completed!"


@dataclass(frozen=True)
class Group:
    """The markers of a grouped case and the labels of its commands, in the order in which the script runs them."""

    begin: str
    passed: str
    failed: str
    all_passed: str
    all_failed: str
    commands: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """What to wait for, what to type, and what decides. Patterns are RE2."""

    prompt: str | None = None
    command: str | None = None
    success: tuple[str, ...] = ()
    fail: tuple[str, ...] = ()
    match_all: bool = False
    from_prompt: bool = False
    group: Group | None = None
    resets: bool = False  # the machine may be reset, and starts again
    done: str = ""  # the line without which a group's last marker is not its script's


@dataclass(frozen=True)
class Limits:
    """Seconds, already scaled; None for none. `command` is from the prompt on, or for each command of a group."""

    whole: float | None = None
    boot: float | None = None
    command: float | None = None
    idle: float | None = None

    @property
    def given_up(self) -> float | None:
        """How long a group's command may go on that the guest itself should have ended."""
        return None if self.command is None else self.command * 1.5 + 15


@dataclass(frozen=True)
class Ruling:
    """`limit`: which one ended the case. `block`: the lines that belong to a panic."""

    verdict: Verdict
    reason: str
    phase: Phase
    pattern: str | None = None
    excerpt: str | None = None
    limit: str | None = None
    block: tuple[str, ...] = ()


class PanicPattern(Pattern):
    """One of `PANIC_PATTERNS`, which are of one line each."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.spans_lines = False

    def search(self, text: bytes | bytearray, start: int = 0, end: int | None = None) -> tuple[int, int] | None:
        while found := super().search(text, start, end):
            line = text.rfind(b"\n", 0, found[0]) + 1
            if _PROGRAM_PANIC not in text[line : found[0]] and _ORDERLY_END not in text[found[0] : found[1]]:
                return found
            start = found[1]
        return None


class _Gate:
    """Lets through at once what is small, and so much of the rest that all of a flood's looks cost a multiple of its size."""

    SMALL: Final = 1 << 16
    SHARE: Final = 16
    PAUSE: Final = 0.1

    def __init__(self) -> None:
        self._at = 0.0
        self._to = 0

    def opens(self, now: float, size: int, end: int) -> bool:
        if size > self.SMALL and (end - self._to) * self.SHARE < size and now < self._at + self.PAUSE:
            return False
        self._at, self._to = now, end
        return True


@dataclass(frozen=True)
class _Unconfirmed:
    """A match on an unfinished line that was quiet. If the line goes on, what it becomes has to match."""

    pattern: Pattern
    verdict: Verdict
    start: int
    line: int  # where the line began
    sure: bool  # no continuation could undo it


@dataclass
class _Subtest:
    label: str
    command: str
    began: float | None = None
    span: tuple[int, int | None] | None = None  # where its output is in the text
    result: SubtestResult | None = None
    reason: str = ""

    def blame(self, reason: str) -> None:
        """A fail pattern matched in this command's output."""
        if self.result is not None and self.result.status is SubtestStatus.PASS:
            self.result = replace(self.result, status=SubtestStatus.FAIL, reason=reason)
        elif self.result is None:
            self.reason = reason


class Judge:
    """Reads one guest's console and comes to a ruling. `ruling` is None while it is open."""

    def __init__(self, rules: Rules, *, started: float, limits: Limits = Limits()) -> None:
        self.rules = rules
        self.limits = limits
        self.ruling: Ruling | None = None
        self.started = started
        self.prompt_at: float | None = None
        self.command_at: float | None = None  # when the first line end was typed
        self.warnings: tuple[str, ...] = ()
        self.matched_at: float | None = None  # when what decided was seen
        self._terminal = Terminal()
        self._text = Text()
        self._tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._panic = [PanicPattern(p) for p in PANIC_PATTERNS]
        self._fail = [Pattern(p) for p in rules.fail]
        self._success = [Pattern(p) for p in rules.success]
        self._armed: int | None = None if rules.from_prompt else 0  # where the case's own patterns begin to look
        self._scanned = 0  # up to here single-line patterns have looked
        self._looked_at = (-1, False)  # the end of the text at the last look, and whether it was taken as quiet
        self._last_data = started
        self._longest_silence = 0.0
        self._longest_command = 0.0
        self._command_began: float | None = None  # of a group: when the one that runs, or is to come, began
        self._resets = 0
        self._reset_at = float("-inf")
        self._banners = 0
        self._keyboard: Keyboard | None = None
        self._prompt_end = 0
        self._outbox = bytearray()
        self._pending: Ruling | None = None
        self._unconfirmed: list[_Unconfirmed] = []
        self._outdone: Ruling | None = None  # the pass that a fail pattern outdid while the output was drained
        self._sure_to = 0  # behind this an echo may stand at the end of the text
        self._whole_gate = _Gate()
        self._line_gate = _Gate()
        self._pended_at = 0.0
        self._panic_at: int | None = None  # where the panic's line begins
        self._group_fail: Ruling | None = None
        group = rules.group
        pairs = zip(group.labels, group.commands, strict=True) if group else ()
        self._subtests = [_Subtest(label, command) for label, command in pairs]
        self._current = -1
        self._done = rules.done
        self._tears = group is not None and not KERNEL_LINE.search("\n".join(group.labels).encode())
        self._torn = b""  # a line of the group's output, as far as it stands before a kernel's line
        self._new_subtests: list[SubtestResult] = []

    # --- what the caller asks ------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        return Phase.BOOT if self.prompt_at is None else Phase.COMMAND

    def input(self) -> bytes:
        """What is to be typed now; each byte is handed out once."""
        data = bytes(self._outbox)
        self._outbox.clear()
        return data

    def finished_subtests(self) -> list[SubtestResult]:
        """Subtests that ended since the last call."""
        new, self._new_subtests = self._new_subtests, []
        return new

    def subtests(self) -> tuple[SubtestResult, ...]:
        """All subtests of a grouped case, also those that did not end or never began."""
        results = []
        for test in self._subtests:
            status = SubtestStatus.NOT_RUN if test.began is None else SubtestStatus.BROKEN
            reason = "" if test.began is None else "began and did not end"
            results.append(test.result or SubtestResult(test.label, test.command, status, reason=reason))
        return tuple(results)

    def tail(self, lines: int) -> tuple[str, ...]:
        """The last lines of the console, an unfinished one included."""
        rest = self._text.slice(max(self._text.line_start, self._text.end - 4 * LINE_SHOWN), self._text.end)
        kept = [*self._tail, rest] if rest.strip() else list(self._tail)
        return tuple(_shown(line) for line in kept[-lines:]) if lines else ()

    def next_wake(self) -> float | None:
        """The time at which `tick` has something to do though no byte came; None: only bytes can change anything."""
        times = []
        if self._pending is not None:
            times.append(self._drained_at)
        else:
            times += [at for _, at, _ in self._deadlines()]
        if self.rules.command is not None and self.prompt_at is not None:
            if self._keyboard is None:
                times.append(self.prompt_at + PROMPT_DELAY)
            elif self._keyboard.next_wake is not None:
                times.append(self._keyboard.next_wake)
        if self._looked_at != (self._text.end, True):
            times.append(self._last_data + QUIET)
        return min(times, default=None)

    # --- what the caller tells -----------------------------------------------------------------------------------------

    def feed(self, data: bytes, now: float) -> None:
        """Bytes from the guest, in the order in which they came."""
        if self.ruling is not None:
            return
        self._longest_silence = max(self._longest_silence, now - self._last_data)
        self._last_data = now
        self._take(self._terminal.feed(data), now)
        self.tick(now)

    def tick(self, now: float) -> None:
        """Time went on."""
        if self.ruling is not None:
            return
        self._type(now)
        self._look(now, quiet=now >= self._last_data + QUIET)
        if self._pending is not None and now >= self._drained_at:
            self._settle(now)
        if self.ruling is None and self._pending is None:
            for name, at, limit in self._deadlines():
                if now >= at:
                    self.timed_out(now, limit, name)
                    break

    def timed_out(self, now: float, limit: float, name: str = "timeout") -> None:
        """The time is up, after `limit` seconds: what stands on the console by now decides, or it is a timeout."""
        if self.ruling is None:
            self._last_words(now, quiet=now >= self._last_data + QUIET)
        if self.ruling is not None:
            return
        running = next((t.label for t in self._subtests if t.began is not None and t.result is None), "")
        if name == "idle_timeout":
            what = f"nothing was printed for {limit:g} s" + (f"; {running} was running" if running else "")
        elif self.rules.prompt is not None and self.prompt_at is None:
            what = f"the prompt {self.rules.prompt!r} did not come within {limit:g} s"
        elif self.rules.group is not None and name == "command_timeout":
            what = f"{running or 'the next command'} did not end within {limit:g} s, nor could the guest end it"
        elif self.rules.group is not None:
            what = f"the group did not end within {limit:g} s" + (f"; {running} was running" if running else "")
        else:
            missing = " and ".join(repr(p.source) for p in self._success)
            what = f"no match of {missing} within {limit:g} s"
        self.ruling = self._group_fail or Ruling(Verdict.TIMEOUT, what, self.phase, limit=name)

    def ended(self, now: float, how: str, *, reset: bool = False, fault: str = "") -> None:
        """QEMU ended by itself; `how` says with what status. `reset`: the guest's machine was reset; `fault`: by what."""
        if self.ruling is not None:
            return
        self._last_words(now, quiet=True)
        if fault and not (self.ruling and self.ruling.verdict is Verdict.PANIC):
            self.ruling = Ruling(Verdict.PANIC, f"the guest's machine was reset by a {fault}", self.phase, excerpt=self._last())
        if self.ruling is not None:
            return
        if reset and self.rules.prompt is not None and self.prompt_at is None:
            self.ruling = Ruling(Verdict.PANIC, "the guest's machine was reset while it booted", self.phase, excerpt=self._last())
        else:
            self.ruling = self._group_fail or Ruling(Verdict.EXITED, f"QEMU ended before a verdict, {how}", self.phase)

    def reset(self, now: float) -> None:
        """The guest's machine was reset, and starts again.

        After one that a PC's guest asked for, SeaBIOS finds that it has run before and asks for others itself, by each way that
        it knows: QEMU 7.2 tells of two to six in a row, before the firmware says anything (seen in a quarter of all reboots).
        """
        since = now - self._reset_at
        if since < RESET_BURST or (since < RESET_SILENCE and self._last_data <= self._reset_at):
            return
        self._reset_at = now
        self._resets += 1
        self._watch_resets()

    def _last(self) -> str | None:
        """The last line that says something."""
        return next((line for line in reversed(self.tail(TAIL_LINES)) if line.strip()), None)

    # --- limits --------------------------------------------------------------------------------------------------------

    def _deadlines(self) -> list[tuple[str, float, float]]:
        """The limits that run: name, when it is up, seconds. The one that is up first comes first."""
        limits = self.limits
        found = [("timeout", self.started, limits.whole), ("idle_timeout", self._last_data, limits.idle)]
        if self.prompt_at is None:
            found.append(("boot_timeout", self.started, limits.boot))
        elif self.rules.group is None:
            found.append(("command_timeout", self.prompt_at, limits.command))
        elif self.command_at is not None:
            found.append(("command_timeout", max(self.command_at, self._command_began or 0.0), limits.given_up))
        return sorted(((name, since + limit, limit) for name, since, limit in found if limit is not None), key=lambda x: x[1])

    def limits_used(self, now: float) -> tuple[LimitUse, ...]:
        """How much of each limit was used, in the order of the documentation."""
        end = now if self.matched_at is None else self.matched_at
        limits = self.limits
        command = 0.0 if self.prompt_at is None else end - self.prompt_at
        if self.rules.group is not None:
            running = [end - t.began for t in self._subtests if t.began is not None and t.result is None]
            command = max([self._longest_command, *running])
        silence = max(self._longest_silence, end - self._last_data)
        boot = (end if self.prompt_at is None else self.prompt_at) - self.started
        ended = None if self.ruling is None else self.ruling.limit
        uses = (
            ("timeout", limits.whole, end - self.started),
            ("boot_timeout", limits.boot, boot),
            ("command_timeout", limits.command, command),
            ("idle_timeout", limits.idle, silence),
        )
        return tuple(LimitUse(name, limit, used, name == ended) for name, limit, used in uses if limit is not None)

    def _watch_resets(self) -> None:
        if self.ruling is None and max(self._resets, self._banners - 1) > RESETS:
            times = max(self._resets, self._banners - 1)
            self.ruling = Ruling(Verdict.PANIC, f"the guest's machine was reset {times} times", self.phase, excerpt=self._last())

    # --- text and time -------------------------------------------------------------------------------------------------

    def _take(self, text: str, now: float) -> None:
        lines = self._text.append(text.encode())
        for line in lines[-TAIL_LINES:]:
            self._tail.append(line[: 4 * LINE_SHOWN])
        if self.rules.resets and any(_BANNER.match(line) for line in lines if line[:1] in (b"S", b"O", b"U")):
            self._banners += 1
            self._watch_resets()
        if self._keyboard is not None:
            self._keyboard.find_echo(now)
            if (restored := self._keyboard.restored) is not None:
                self._scanned = min(self._scanned, self._text.start_of_line(restored))
                self._keyboard.restored = None
        if self.rules.prompt is not None and self.prompt_at is None:
            wanted = self.rules.prompt.encode()
            at = self._text.find(wanted, max(self._text.end - len(text.encode()) - len(wanted), 0))
            if at >= 0:
                self.prompt_at = now
                self._prompt_end = at + len(wanted)
                if self._armed is None:
                    self._armed = self._prompt_end
        if self._subtests and self.command_at is not None:
            position = self._text.line_start - sum(len(line) + 1 for line in lines)
            for line in lines:
                # The kernel may write in the middle of a marker.
                kernels = KERNEL_LINE.search(line) if self._tears else None
                self._torn = (self._torn + (line if kernels is None else line[: kernels.start()]))[-_MARKER_MAX:]
                if kernels is None:
                    self._read_marker(self._torn.decode(errors="replace"), position, now)
                    self._torn = b""
                position += len(line) + 1

    def _type(self, now: float) -> None:
        if self.rules.command is None or self.prompt_at is None:
            return
        if self._keyboard is None:
            if now < self.prompt_at + PROMPT_DELAY:
                return
            self._keyboard = Keyboard(self.rules.command, self.rules.prompt or "", self._prompt_end, self._text, now)
        self._outbox += self._keyboard.type(now)
        if self.command_at is None and self._keyboard.line_end_typed:
            self.command_at = now
        if self._keyboard.warning:
            self.warnings = (self._keyboard.warning,)

    def _last_words(self, now: float, *, quiet: bool) -> None:
        """Nothing more will come."""
        self._take(self._terminal.feed(b"", final=True), now)
        self._look(now, quiet=quiet, last=True)
        if self._pending is not None:
            self._settle(now, quiet=quiet, last=True)

    # --- looking -------------------------------------------------------------------------------------------------------

    def _look(self, now: float, *, quiet: bool, last: bool = False) -> None:
        """Try all patterns on what is new. A quiet text is taken as it ends, a text that still flows is not."""
        text = self._text
        if self._looked_at in ((text.end, quiet), (text.end, True)) and not last:
            return
        self._looked_at = (text.end, quiet)
        self._confirm(at_end=False)
        self._sure_to = self._keyboard.unsure_from(quiet=quiet) if self._keyboard else text.end
        every = last or quiet
        whole = self._whole_gate.opens(now, len(text.raw), text.end) or every
        line = text.end > text.line_start and (self._line_gate.opens(now, text.end - text.line_start, text.end) or every)
        for pattern in self._panic:
            if found := self._find(pattern, 0, whole=whole, line=line, quiet=quiet):
                self._rule(Verdict.PANIC, pattern, found, now)
                break
        if self._armed is not None and not (self._pending and self._pending.verdict is Verdict.PANIC):
            self._look_for_case(self._armed, whole=whole, line=line, quiet=quiet, now=now)
        self._scanned = max(self._scanned, text.line_start)
        if whole:
            text.trim()

    def _look_for_case(self, armed: int, *, whole: bool, line: bool, quiet: bool, now: float) -> None:
        for pattern in list(self._fail):
            found = self._find(pattern, armed, whole=whole, line=line, quiet=quiet)
            if found is None:
                continue
            if self.rules.group is None:
                self._doubt(pattern, Verdict.FAIL, found, sure=not quiet)
                self._rule(Verdict.FAIL, pattern, found, now)
                return
            # A group runs to its end; what failed here is not forgotten.
            self._fail.remove(pattern)
            ruling = self._ruling(Verdict.FAIL, pattern, found)
            self._group_fail = self._group_fail or ruling
            for test in self._subtests:
                if test.span is not None and test.span[0] <= found[0] and (test.span[1] is None or found[0] < test.span[1]):
                    test.blame(ruling.reason)
        for pattern in list(self._success):
            found = self._find(pattern, armed, whole=whole, line=line, quiet=quiet)
            if found is None:
                continue
            self._doubt(pattern, Verdict.PASS, found, sure=not quiet)
            if self.rules.match_all or self.rules.group is not None:
                self._success.remove(pattern)
                if self._success or self.rules.group is not None:
                    continue
            self._rule(Verdict.PASS, pattern, found, now)
            return

    def _find(self, pattern: Pattern, armed: int, *, whole: bool, line: bool, quiet: bool) -> tuple[int, int] | None:
        """Where a pattern matches in the complete lines or, if `line` and where that is safe, in the unfinished one.

        `whole`: look again at lines that were there before, if the pattern can span them.
        """
        text = self._text
        # Where the text was cut, in the middle of a line, its first byte is no start of one.
        oldest = text.base + 1 if text.base else 0
        begin = max(armed, oldest) if pattern.spans_lines else max(armed, oldest, self._scanned)
        if whole or not pattern.spans_lines:
            found = self._search(pattern, begin, text.line_start) if begin < text.line_start else None
            if found is not None:
                return found
        if not line:
            return None
        if quiet and pattern.spans_lines:
            start = max(begin, text.end - WINDOW)
        else:
            start = max(text.line_start, armed, oldest, text.end - WINDOW // 4)
        return self._search(pattern, start, self._sure_to, unfinished=not quiet) if start < self._sure_to else None

    def _search(self, pattern: Pattern, start: int, end: int, *, unfinished: bool = False) -> tuple[int, int] | None:
        """A match between two positions. The text ends at `end`; what stands before `start` is seen by `^`."""
        text = self._text
        if end == text.line_start:
            found = pattern.search(text.view, start - text.base, end - text.base)
            return None if found is None else (text.base + found[0], text.base + found[1])
        before = 1 if start > text.base else 0
        part = bytes(text.view[start - before - text.base : end - text.base])
        found = pattern.search_unfinished(part, before) if unfinished else pattern.search(part, before)
        return None if found is None else (start - before + found[0], start - before + found[1])

    def _doubt(self, pattern: Pattern, verdict: Verdict, found: tuple[int, int], *, sure: bool) -> None:
        """Remember a match that the rest of its line could undo."""
        line = self._text.line_start
        if found[1] > line:
            self._unconfirmed.append(_Unconfirmed(pattern, verdict, found[0], line, sure))

    def _confirm(self, *, at_end: bool) -> None:
        """Look again at matches on lines that have gone on: at those that are complete now, or at the end at all."""
        text = self._text
        undone = []
        for match in [m for m in self._unconfirmed if at_end or m.line < text.line_start]:
            self._unconfirmed.remove(match)
            if match.start < text.base and (match.sure or match.verdict is Verdict.FAIL):
                continue  # so much of its line has come since that where it began is not kept any more
            start = max(match.start, text.base + 1 if text.base else 0)
            end = text.line_start if match.line < text.line_start else text.end
            if start < end and self._search(match.pattern, start, end) is None:
                undone.append(match)
        for match in undone:
            if match.verdict is Verdict.PASS and match.pattern not in self._success:
                self._success.append(match.pattern)
            if self._pending is not None and self._pending.verdict is match.verdict:
                self._pending, self._outdone = self._outdone, None
                self.matched_at = None if self._pending is None else self.matched_at
            self._scanned = min(self._scanned, match.line)

    # --- ruling --------------------------------------------------------------------------------------------------------

    def _ruling(self, verdict: Verdict, pattern: Pattern, found: tuple[int, int]) -> Ruling:
        excerpt = _excerpt(self._text, *found)
        if verdict is Verdict.PANIC:
            return Ruling(verdict, "the guest's kernel panicked", self.phase, None, excerpt)
        reason = "" if verdict is Verdict.PASS else f"matched the fail pattern {pattern.source!r}"
        return Ruling(verdict, reason, self.phase, pattern.source, excerpt)

    def _rule(self, verdict: Verdict, pattern: Pattern, found: tuple[int, int], now: float) -> None:
        """Something decides; it stands if nothing worse comes while the output is drained."""
        weight = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.PANIC: 2}
        if self._pending is not None and weight[self._pending.verdict] >= weight[verdict]:
            return
        self._outdone = self._pending
        if verdict is Verdict.PANIC:
            self._panic_at = found[0]
        self._pend(self._ruling(verdict, pattern, found), now)

    def _pend(self, ruling: Ruling, now: float) -> None:
        if self._pending is None or ruling.verdict is Verdict.PANIC:
            self._pended_at = now
        if self._pending is None:
            self.matched_at = now
        self._pending = ruling

    @property
    def _drained_at(self) -> float:
        """When enough was read behind what decided. A panic's lines are read as long as they come."""
        if self._pending is not None and self._pending.verdict is Verdict.PANIC:
            return min(max(self._last_data, self._pended_at) + DRAIN, self._pended_at + PANIC_DRAIN)
        return self._pended_at + DRAIN

    def _settle(self, now: float, *, quiet: bool = True, last: bool = False) -> None:
        """The output is drained: what is pending becomes the ruling, if it still holds."""
        self._confirm(at_end=True)
        self._look(now, quiet=quiet, last=True)
        if self._pending is None or (now < self._drained_at and not last):
            return  # what was pending does not hold
        if self.rules.group is not None and self._pending.verdict is Verdict.PASS:
            self._end_group(True, now)  # a fail pattern may have matched a command since
            if self._success:
                missing = self._success[0].source
                self._pending = Ruling(Verdict.FAIL, f"no match of {missing!r}", Phase.COMMAND, missing)
        if self._pending.verdict is Verdict.PANIC and self._panic_at is not None:
            self._pending = replace(self._pending, block=_panic_block(self._text, self._panic_at))
        self.ruling = self._pending

    # --- groups --------------------------------------------------------------------------------------------------------

    def _read_marker(self, line: str, position: int, now: float) -> None:
        """One whole line of a group's output. A marker is found also behind what a program left on its line."""
        group = self.rules.group
        assert group is not None
        if self._pending is not None and self._pending.verdict is Verdict.PASS and f"{group.begin}: " in line:
            self._pend(Ruling(Verdict.FAIL, "markers came behind the group's last one", Phase.COMMAND), now)
            return
        if self._done and line.rstrip().endswith(self._done):
            self._done = ""
            return
        if self._done and (group.all_passed in line or group.all_failed in line):
            return  # some program's
        if group.all_passed in line or group.all_failed in line:
            if self._pending is None and line.rstrip().endswith((group.all_passed, group.all_failed)):
                self._success = [p for p in self._success if p.search(f"{line}\n".encode()) is None]
                self._end_group(group.all_passed in line, now)
            return
        for marker in (group.begin, group.passed, group.failed):
            at = line.find(f"{marker}: ")
            if at < 0:
                continue
            said = line[at + len(marker) + 2 :].rstrip()
            if marker == group.begin:
                following = self._current + 1
                if following < len(self._subtests) and said == self._subtests[following].label:
                    self._current = following
                    self._command_began = now
                    self._subtests[following].began = now
                    self._subtests[following].span = (position, None)
                return
            if self._current < 0:
                return
            test = self._subtests[self._current]
            if test.began is None:
                return
            duration = now - test.began
            if marker == group.passed and said == test.label:
                status = SubtestStatus.FAIL if test.reason else SubtestStatus.PASS
                if test.result is not None:
                    return
                test.result = SubtestResult(test.label, test.command, status, 0, duration, test.reason)
            elif marker == group.failed and (match := re.fullmatch(re.escape(test.label) + _FAILED_WITH, said)):
                number = int(match[1])
                reason = f"killed after its limit of {match[2]} s" if match[2] else ""
                reason = (
                    reason or _STATUS_MEANS.get(number, "") or (f"killed by signal {number - 128}" if 128 < number < 193 else "")
                )
                if test.result is not None and test.result.status is SubtestStatus.FAIL:
                    return
                known = test.result is not None  # a program printed the other marker: the script has the last word
                test.result = SubtestResult(test.label, test.command, SubtestStatus.FAIL, number, duration, test.reason or reason)
                if known:
                    return
            else:
                return
            assert test.span is not None
            test.span = (test.span[0], position)
            self._command_began = now
            self._longest_command = max(self._longest_command, duration)
            self._new_subtests.append(test.result)
            return

    def _end_group(self, said_passed: bool, now: float) -> None:
        results = self.subtests()
        failed = [r for r in results if r.status is SubtestStatus.FAIL]
        missing = [r for r in results if r.status in (SubtestStatus.BROKEN, SubtestStatus.NOT_RUN)]
        if failed:
            names = ", ".join(r.name if r.exit_status in (None, 0) else f"{r.name} (status {r.exit_status})" for r in failed)
            reason = f"{len(failed)} of {len(results)} commands failed: {names}"
        elif missing:
            reason = f"the markers of {len(missing)} of {len(results)} commands did not come: {missing[0].name}"
        elif not said_passed:
            reason = "the group's script says that a command failed, but none is known to"
        elif self._group_fail is not None:
            self._pend(self._group_fail, now)
            return
        else:
            self._pend(Ruling(Verdict.PASS, "", Phase.COMMAND, None, None), now)
            return
        pattern = self._group_fail.pattern if self._group_fail else None
        excerpt = self._group_fail.excerpt if self._group_fail else None
        self._pend(Ruling(Verdict.FAIL, reason, Phase.COMMAND, pattern, excerpt), now)


_FAILED_WITH = r" status=(\d+)(?: limit=(\d+))?"
_STATUS_MEANS = {126: "cannot be run", 127: "not found"}


def _shown(line: bytes) -> str:
    """A line as a person is shown it."""
    return line[: 4 * LINE_SHOWN].decode(errors="replace")[:LINE_SHOWN].rstrip()


def _panic_block(text: Text, at: int) -> tuple[str, ...]:
    """The lines of a panic: what led to it, where its kernel said so, its own line, and what it printed behind."""
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
        if _PANIC_END in line:
            break
    while behind and not behind[-1].strip():
        behind.pop()
    return tuple(_shown(line) for line in (*before, *behind))


def _excerpt(text: Text, start: int, end: int) -> str:
    """The line or lines of a match, at most `EXCERPT` characters, with the match inside."""
    low = text.raw.rfind(b"\n", 0, max(start - text.base, 0)) + 1
    high = text.raw.find(b"\n", max(end - text.base, 0))
    high = len(text.raw) if high < 0 else high
    low = max(low, start - text.base - EXCERPT)
    high = min(high, end - text.base + EXCERPT)
    whole = bytes(text.raw[low:high]).decode(errors="replace").strip("\n")
    if len(whole) <= EXCERPT:
        return whole
    at = len(bytes(text.raw[low : start - text.base]).decode(errors="replace"))
    begin = max(0, min(at - EXCERPT // 4, len(whole) - EXCERPT + 1))
    front = "…" if begin else ""
    back = "…" if begin + EXCERPT < len(whole) else ""
    return front + whole[begin : begin + EXCERPT - len(front) - len(back)] + back
