"""From the text of a guest to a verdict.

    bytes ─► Transcript ─► readings ─► Judge ─► Ruling
                  ▲                      │
       hides echo └────── Keyboard ──────┴─► keys to type

This module does no I/O and never asks for the time: the caller feeds bytes together with the monotonic time at which they came,
types the bytes that `Judge.input()` returns, and reads `Judge.ruling`. So the same bytes at the same times give the same verdict.

The rules, and their reasons (COMPAT, "The console"):

* The prompt is a literal substring. It fires once; 100 ms later the command is typed. Its echo is no output (`keyboard`).
* Patterns see real lines: `^` and `$` are the ends of lines. Fail patterns and panics search everything that was ever written,
  success patterns the final text of rows that have ended, as a terminal shows it (`transcript`). A row that could still go on
  decides nothing before it ends, the prompt is back behind it and waits, QEMU ends, or the time is up. A fail that no more text
  could undo decides at once; so does a prompt that waits for input, such as `login:`.
* A pattern sees at least the last 1 MiB.
* Fail patterns come before success patterns. After the match that decides, output is read for another 500 ms: a panic or a
  fail pattern in it wins over a pass.
* The judge searches for the lines of kernel panics whether or not a case asks for them.
* A grouped case ends when its script does. Its verdict comes from the markers of every single command.
* Time is limited as a whole, until the prompt, from there on (each command of a group by itself), and between two bytes. Once a
  match has decided, its output is drained to the end first.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import replace
from typing import Final

from qcase.console.all_readings import EXCERPT, PROMPT_LIKE, AllReadings, excerpt_of
from qcase.console.echo_text import CHUNK
from qcase.console.group import Group, Subtests
from qcase.console.inner_tests import InnerTests
from qcase.console.keyboard import Keyboard
from qcase.console.panics import BANNER, LINE_SHOWN, PANIC_PATTERNS, PanicPattern, Suspects, panic_block, shown
from qcase.console.pending import Evidence, Pending
from qcase.console.rules import Limits, Rules, Ruling
from qcase.console.search import Lines, TornLines
from qcase.console.text import WINDOW, Pattern, Text
from qcase.console.transcript import Transcript
from qcase.console.trouble import TroubleWatch
from qcase.model import KernelTrouble, LimitUse, Phase, SubtestResult, Verdict

__all__ = ["CHUNK", "DRAIN", "EXCERPT", "PROMPT_DELAY", "QUIET", "WINDOW", "Group", "Judge", "Limits", "Rules", "Ruling"]

PROMPT_DELAY: Final = 0.1  # seconds from the prompt to the first key (axbuild)
DRAIN: Final = 0.5  # seconds of output read after the match that decides (axbuild)
PANIC_DRAIN: Final = 1.5  # maximum seconds of output read after a panic, as long as more of it comes
SILENT: Final = 3.0  # seconds of silence at the end after which an echo that has begun is taken for complete
QUIET: Final = 0.5  # seconds of silence after which an unfinished line is taken as it stands
TAIL_LINES: Final = 200  # last lines kept for the failure report
RESETS: Final = 3  # resets that do not count as a loop, where a case allows resets
RESET_BURST: Final = 0.25  # seconds within which several resets count as one; RESET_SILENCE if no output came in between
RESET_SILENCE: Final = 1.0

_PROMPT_REST: Final = re.compile(rb"[^\s]*[ \t]*")
_TYPED_LEAST: Final = 2  # a typed line of at most so many characters may occur anywhere by chance
_PROMPT_FOLDER: Final = 64  # maximum bytes of a prompt behind the part that the case names: a folder
# Last character of a prompt, and maximum length of a prompt behind the part that the case names.
_PROMPT: Final = re.compile(rb"[#$>%]")
_PROMPT_MAX: Final = 80
_PANIC_WORDS: Final = 12  # bytes of a panic that tell whether its words were typed
_TRIES: Final = 8  # searches for another match when the deciding match does not stand
_BLAMES: Final = 1000  # maximum matches blamed in one piece of text


class Judge:
    """Reads one guest's console and comes to a ruling. `ruling` is None while it is open."""

    def __init__(self, rules: Rules, *, started: float, limits: Limits = Limits()) -> None:
        self.rules = rules
        self.limits = limits
        self.ruling: Ruling | None = None
        self.started = started
        self.prompt_at: float | None = None
        self.command_at: float | None = None  # time at which the first line end was typed
        self.warnings: tuple[str, ...] = ()
        self._transcript = Transcript((rules.prompt or "").encode(), resets=rules.resets)
        self._readings = self._transcript.readings
        self._text = self._transcript.written
        typed = (rules.command or "", *(rules.group.labels if rules.group else ()))
        self._trouble = TroubleWatch(typed, stamped=rules.time_stamps or None)
        self._taken = 0  # end of the written text at the last search for kernel trouble
        self._tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._panic = [PanicPattern(p) for p in PANIC_PATTERNS]
        self._fail = [Pattern(p) for p in rules.fail]
        self._success = [Pattern(p) for p in rules.success]
        self._armed = not rules.from_prompt  # True once the case's own patterns search
        self._search = AllReadings(self._transcript)
        self._suspects = Suspects(rules.prompt)
        self._looked_at = (-1, False)  # end of the text at the last search, and whether the text was taken as quiet
        self._last_data = started
        self._longest_silence = 0.0
        self._resets = 0
        self._reset_at = float("-inf")
        self._banners = 0
        self._keyboard: Keyboard | None = None
        self._prompt_end = 0
        self._prompt_sought = 0  # end of the written text at the last search for the prompt
        self._outbox = bytearray()
        self._pending = Pending(self._success, self._search, self._transcript)
        self._sure_to = 0  # the text from here on may still turn out to be echo
        self._doubted = ""  # the fail pattern that matches possible echo, for which a success did not count
        self._said_on_row = b""  # what a fail pattern matched on a row that had not ended
        self._group_fail: Ruling | None = None
        self._group = Subtests(rules.group)
        self._inner = InnerTests(rules, self._transcript)
        self._muted: dict[Pattern, int] = {}  # position up to which a fail pattern has been blamed on a command of a group
        self._prompts_from = 0  # start of the next search for a prompt, once the command of a group was typed

    # --- queries of the caller -----------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        return Phase.BOOT if self.prompt_at is None else Phase.COMMAND

    @property
    def matched_at(self) -> float | None:
        """Time at which the deciding match was seen."""
        return self._pending.matched_at

    def input(self) -> bytes:
        """Return the bytes to type now; each byte is returned once."""
        data = bytes(self._outbox)
        self._outbox.clear()
        return data

    def finished_subtests(self) -> list[SubtestResult]:
        """Return the subtests that ended since the last call."""
        return self._inner.finished() or self._group.finished()

    def subtests(self) -> tuple[SubtestResult, ...]:
        """Return all subtests of a case, also those that did not end or never began."""
        rest = self._text.slice(max(self._text.line_start, self._text.end - 4 * LINE_SHOWN), self._text.end)
        return self._inner.results() or self._group.results(shown(rest))

    def kernel_trouble(self) -> tuple[KernelTrouble, ...]:
        """Return the kernel's reports short of a panic, except those that led to a panic."""
        panicked = self.ruling is not None and self.ruling.verdict is Verdict.PANIC
        return () if self.rules.kernel_trouble == "ignore" else self._trouble.found(panicked=panicked)

    @property
    def more_trouble(self) -> int:
        """Number of further such reports that are not kept (a lower bound)."""
        return 0 if self.rules.kernel_trouble == "ignore" else self._trouble.more

    def tail(self, lines: int) -> tuple[str, ...]:
        """Return the last lines of the console, including an unfinished one."""
        rest = self._text.slice(max(self._text.line_start, self._text.end - 4 * LINE_SHOWN), self._text.end)
        kept = [*self._tail, rest] if rest.strip() else list(self._tail)
        return tuple(shown(line) for line in kept[-lines:]) if lines else ()

    def next_wake(self) -> float | None:
        """Return the time at which `tick` has work even if no byte came; None if only bytes can change anything."""
        times = []
        if self._pending.ruling is not None:
            times.append(self._drained_at)
        else:
            times += [at for _, at, _ in self._deadlines()]
        if self.rules.command is not None and self.prompt_at is not None:
            if self._keyboard is None:
                times.append(self.prompt_at + PROMPT_DELAY)
            elif self._keyboard.next_wake is not None:
                times.append(self._keyboard.next_wake)
        if self._group.next_wake is not None and self._pending.ruling is None:
            times.append(self._group.next_wake)
        if self._looked_at != (self._text.end, True):
            times.append(self._last_data + QUIET)
        if (wake := self._inner.next_wake(self._last_data)) is not None and self._pending.ruling is None:
            times.append(wake)
        return min(times, default=None)

    # --- input from the caller -----------------------------------------------------------------------------------------

    def feed(self, data: bytes, now: float) -> None:
        """Process bytes from the guest, in the order in which they came."""
        if self.ruling is not None:
            return
        self._longest_silence = max(self._longest_silence, now - self._last_data)
        self._last_data = now
        self._keep_evidence(now)
        self._take(self._transcript.feed(data), now)
        self.tick(now)

    def tick(self, now: float) -> None:
        """Process the passing of time."""
        if self.ruling is not None:
            return
        self._type(now)
        self._look(now, quiet=now >= self._last_data + QUIET)
        self._heed_inner_tests(now)
        if self._pending.ruling is not None and now >= self._drained_at:
            self._settle(now)
        if self.ruling is None and self._pending.ruling is None:
            for name, at, limit in self._deadlines():
                if now >= at:
                    self.timed_out(now, limit, name)
                    break

    def timed_out(self, now: float, limit: float, name: str = "timeout") -> None:
        """Rule on the text so far because a limit of `limit` seconds is up; a timeout if the text decides nothing."""
        if self.ruling is None:
            self._last_words(now, quiet=now >= self._last_data + QUIET)
        if self.ruling is not None:
            return
        running = self._group.running
        if name == "idle_timeout":
            what = f"nothing was printed for {limit:g} s" + (f"; {running} was running" if running else "")
        elif self.rules.prompt is not None and self.prompt_at is None:
            what = f"the prompt {self.rules.prompt!r} did not come within {limit:g} s"
        elif self.rules.group is not None and name == "command_timeout":
            what = f"{running or 'the next command'} did not end within {limit:g} s, nor could the guest end it"
        elif self.rules.group is not None:
            what = f"the group did not end within {limit:g} s" + (f"; {running} was running" if running else "")
        elif self._inner.wanted:
            what = f"the tests did not end within {limit:g} s: {self._inner.progress()}"
        else:
            missing = " and ".join(repr(p.source) for p in self._success)
            what = f"no match of {missing} within {limit:g} s"
            if self._doubted:
                what = f"within {limit:g} s nothing told whether what matches {self._doubted!r} is echo or output"
        self.ruling = self._group_fail or Ruling(Verdict.TIMEOUT, what, self.phase, limit=name)

    def ended(self, now: float, how: str, *, reset: bool = False, fault: str = "") -> None:
        """Rule because QEMU ended by itself with status `how`. `reset`: the guest's machine was reset; `fault`: its cause."""
        if self.ruling is not None:
            return
        self._inner.over = True
        self._last_words(now, quiet=True)
        if fault and not (self.ruling and self.ruling.verdict is Verdict.PANIC):
            self.ruling = Ruling(Verdict.PANIC, f"the guest's machine was reset by a {fault}", self.phase, excerpt=self._last())
        if self.ruling is not None:
            return
        if reset and self.rules.prompt is not None and self.prompt_at is None:
            self.ruling = Ruling(Verdict.PANIC, "the guest's machine was reset while it booted", self.phase, excerpt=self._last())
        else:
            known = f"; {self._inner.progress()}" if self._inner.wanted else ""
            self.ruling = self._group_fail or Ruling(Verdict.EXITED, f"QEMU ended before a verdict, {how}{known}", self.phase)

    def reset(self, now: float) -> None:
        """Count a reset of the guest's machine, which starts again.

        After a reset that a PC's guest asked for, SeaBIOS finds that it has run before and asks for more resets, by each way that
        it knows: QEMU 7.2 reports two to six in a row, before the firmware prints anything (seen in a quarter of all reboots).
        """
        since = now - self._reset_at
        if since < RESET_BURST or (since < RESET_SILENCE and self._last_data <= self._reset_at):
            return
        self._reset_at = now
        self._resets += 1
        self._watch_resets()

    def _last(self) -> str | None:
        """Return the last line that is not blank."""
        return next((line for line in reversed(self.tail(TAIL_LINES)) if line.strip()), None)

    # --- limits --------------------------------------------------------------------------------------------------------

    def _deadlines(self) -> list[tuple[str, float, float]]:
        """Return the running limits as (name, time at which it is up, seconds), the earliest first."""
        limits = self.limits
        found = [("timeout", self.started, limits.whole), ("idle_timeout", self._last_data, limits.idle)]
        if self.prompt_at is None:
            found.append(("boot_timeout", self.started, limits.boot))
        elif self.rules.group is None:
            found.append(("command_timeout", self.prompt_at, limits.command))
        elif self.command_at is not None:
            found.append(("command_timeout", max(self.command_at, self._group.command_began or 0.0), limits.given_up))
        return sorted(((name, since + limit, limit) for name, since, limit in found if limit is not None), key=lambda x: x[1])

    def limits_used(self, now: float) -> tuple[LimitUse, ...]:
        """Return the used part of each limit, in the order of the documentation."""
        end = now if self._pending.matched_at is None else self._pending.matched_at
        limits = self.limits
        command = 0.0 if self.prompt_at is None else end - self.prompt_at
        if self.rules.group is not None:
            command = self._group.longest_by(end)
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

    def _take(self, lines: list[bytes], now: float) -> None:
        """Process new text: echo, the prompt, kernel trouble, and these whole lines for the group."""
        text = self._text
        self._trouble.feed(text.slice(self._taken, text.end), booting=self.prompt_at is None)
        self._taken = text.end
        self._heed_trouble(now)
        for line in lines[-TAIL_LINES:]:
            self._tail.append(line[: 4 * LINE_SHOWN])
        if self.rules.resets and any(BANNER.match(line) for line in lines if line[:1] in (b"S", b"O", b"U")):
            self._banners += 1
            self._watch_resets()
        if self._keyboard is not None:
            self._keyboard.find_echo(now)
        if self.rules.prompt is not None and self.prompt_at is None:
            self._find_prompt(self.rules.prompt.encode(), now)
        self._heed_echo()
        if self.rules.group is not None and self.command_at is not None:
            position = text.line_start - sum(len(line) + 1 for line in lines)
            for line in lines:
                echo = 0 if self._group.is_label(line) else self._group.echo_at(line)
                self._group.take(line, position, now)
                self._watch_group(now)
                if echo >= 0:
                    self._text.blank(position + echo, position + len(line))
                position += len(line) + 1
            self._readings.update()
        self._inner.take(now)

    def _heed_echo(self) -> None:
        """Bring the readings up to date with the echo found so far."""
        if self._keyboard is not None and (restored := self._keyboard.restored) is not None:
            start = self._text.start_of_line(restored)
            self._search.written.again(start)
            self._suspects.again(start)
            self._keyboard.restored = None
            self._looked_at = (-1, False)
        self._readings.update()

    def _find_prompt(self, prompt: bytes, now: float) -> None:
        text = self._text
        at = text.find(prompt, max(self._prompt_sought - len(prompt), text.base))
        self._prompt_sought = text.end
        if at < 0:
            return
        self.prompt_at = now
        self._prompt_end = at + len(prompt)
        if not self._armed:
            self._armed = True
            self._search.arm(self._prompt_end)

    def _heed_trouble(self, now: float) -> None:
        """Fail a case that asks for it if its kernel reports trouble; a group still runs to its end."""
        if self.rules.kernel_trouble != "fail" or not self._trouble.first:
            return
        reason = f"the guest's kernel reported trouble: {self._trouble.first}"
        if self.rules.group is not None:
            self._group_fail = self._group_fail or Ruling(Verdict.FAIL, reason, self.phase)
        elif self._pending.ruling is None or self._pending.ruling.verdict is Verdict.PASS:
            self._said_on_row = b""
            self._pending.replace_by(Ruling(Verdict.FAIL, reason, self.phase), [], now)

    def _type(self, now: float) -> None:
        if self.rules.command is None or self.prompt_at is None:
            return
        if self._keyboard is None:
            if now < self.prompt_at + PROMPT_DELAY:
                return
            typed = self.rules.command.encode().split(b"\n")
            self._readings.note_typed(tuple(line.strip() for line in typed if len(line.strip()) > _TYPED_LEAST))
            self._keyboard = Keyboard(self.rules.command, self.rules.prompt or "", self._text, now)
        self._outbox += self._keyboard.type(now)
        if self.rules.group is not None and self.command_at is not None and self._pending.ruling is None:
            self._watch_prompt(now)
            self._outbox += self._group.input(now)
        self._heed_echo()
        if self.command_at is None and self._keyboard.line_end_typed:
            self.command_at = now
            self._inner.begin()
            self._prompts_from = self._text.end
        if self._keyboard.warning:
            self.warnings = (self._keyboard.warning,)

    def _last_words(self, now: float, *, quiet: bool) -> None:
        """Rule on the final text. Unfinished rows count as they are, unless the guest was about to continue them."""
        self._take(self._transcript.finish() if quiet else self._transcript.feed(b"", final=True), now)
        if quiet:
            self._readings.flush_torn()
        if self._keyboard is not None:
            self._keyboard.show_mixed()
            self._heed_echo()
        self._trouble.finish()
        self._heed_trouble(now)
        self._look(now, quiet=quiet, last=True)
        if self._pending.ruling is None and self._review(over=now >= self._last_data + SILENT):
            self._look(now, quiet=quiet, last=True)
        self._heed_inner_tests(now)
        if self._pending.ruling is not None:
            self._settle(now, last=True)
        if self.ruling is None and (silent := self._suspects.silent(self._text, None)):
            self._rule_panic((silent[0].start, silent[0].end), now)
            self._settle(now, last=True)

    # --- search --------------------------------------------------------------------------------------------------------

    def _look(self, now: float, *, quiet: bool, last: bool = False) -> None:
        """Try all patterns on the new text."""
        text = self._text
        if self._looked_at in ((text.end, quiet), (text.end, True)) and not last:
            return
        self._looked_at = (text.end, quiet)
        if quiet and not last:
            self._end_row_at_prompt()
        every = last or quiet
        line = self._search.begin(now, every=every)
        sure_to = self._keyboard.unsure_from(quiet=quiet) if self._keyboard else text.end
        if not last and self._group.may_be_label(text.slice(text.line_start, text.end)):
            sure_to = text.line_start
        self._look_for_panic(sure_to if line else 0, now)
        if self._armed and not (self._pending.ruling and self._pending.ruling.verdict is Verdict.PANIC):
            self._look_for_fail(sure_to if line else 0, now, quiet=every)
            if self._pending.ruling is None:
                self._look_for_success(now, quiet=quiet)
        self._search.end()

    def _look_for_panic(self, sure_to: int, now: float) -> None:
        for pattern in self._panic:
            if found := self._search.find_panic(pattern, sure_to):
                self._rule_panic(found, now)
                return
        if found := self._suspects.find(self._text):
            self._rule_panic(found, now)

    def _look_for_fail(self, sure_to: int, now: float, *, quiet: bool) -> None:
        """Search everything ever written for a fail: as it came, in earlier states of rows, or torn by kernel lines or echo."""
        torn = self._search.torn_line(sure_to)
        for pattern in list(self._fail):
            if match := self._search.find_fail(pattern, sure_to, quiet=quiet):
                self._rule_fail(pattern, *match, now)
            elif self._search.finds_open_fail(pattern, torn, sure_to, quiet=quiet):
                self._rule_fail(pattern, self._search.written, (self._text.line_start, sure_to), now, sure=True)

    def _rule_fail(
        self, pattern: Pattern, lines: Lines | TornLines, found: tuple[int, int], now: float, *, sure: bool = False
    ) -> None:
        if self.rules.group is not None:
            self._blame(pattern, lines, found)
            return
        evidence = [] if sure else [Evidence(lines, pattern, found[0])]
        if sure:
            line = self._text.slice(*found)
            said = pattern.search(line)
            self._said_on_row = line[said[0] : said[1]] if said else b""
        self._pending.replace_by(self._ruling(Verdict.FAIL, pattern, lines.text, found), evidence, now)

    def _look_for_success(self, now: float, *, quiet: bool) -> None:
        """Search rows that have ended for a success, and the unfinished row if it is a prompt that waits for input."""
        for pattern in list(self._success):
            match = self._search.find_success(pattern, quiet=quiet)
            if match is None:
                continue
            lines, found = match
            ruling = self._ruling(Verdict.PASS, pattern, lines.text, found)
            evidence = Evidence(lines, pattern, found[0], now)
            if self.rules.match_all or self.rules.group is not None or self._inner.wanted:
                self._success.remove(pattern)
                self._pending.matched[pattern.source] = evidence
                if self._success or self.rules.group is not None or self._inner.wanted:
                    continue
                self._pending.replace_by(ruling, list(self._pending.matched.values()), now)
            else:
                self._pending.replace_by(ruling, [evidence], now)
            return

    def _blame(self, pattern: Pattern, lines: Lines | TornLines, first: tuple[int, int]) -> None:
        """Blame each command whose output a fail pattern matches. The group itself runs to its end."""
        found: tuple[int, int] | None = first
        for _ in range(_BLAMES):
            if found is None:
                return
            at = lines.source(found[0])
            following = self._group.after(self._muted[pattern]) if pattern in self._muted else 0
            if following is None:
                return
            if at >= following:
                self._muted[pattern] = at
                ruling = self._ruling(Verdict.FAIL, pattern, lines.text, found)
                self._group_fail = self._group_fail or ruling
                self._group.blame(at, ruling.reason, ruling.excerpt or "")
                following = self._group.after(at)
            start = max(found[1], found[0] + 1)
            if lines is self._search.written:
                if following is None:
                    return
                start = max(found[0] + 1, following)
            found = lines.find(pattern, start)

    def _end_row_at_prompt(self) -> None:
        """End the text before the case's prompt on its row, if the prompt is back behind that text and waits."""
        if self._keyboard is None or not self._keyboard.all_typed or self._pending.ruling is not None:
            return
        self._readings.end_torn_at_prompt()
        prompt = (self.rules.prompt or "").encode()
        row = self._transcript.open_row()[0]
        at = row.rfind(prompt) if prompt else -1
        if at <= 0 or not self._transcript.at_row_end:
            return
        rest = _PROMPT_REST.fullmatch(row, at + len(prompt))
        if rest and len(rest[0]) < _PROMPT_FOLDER and PROMPT_LIKE.search(row, at):
            self._transcript.split(at)
            self._readings.update()

    # --- ruling --------------------------------------------------------------------------------------------------------

    def _ruling(self, verdict: Verdict, pattern: Pattern, text: Text, found: tuple[int, int]) -> Ruling:
        excerpt = excerpt_of(text, *found) or excerpt_of(self._text, self._text.line_start, self._text.end)
        reason = "" if verdict is Verdict.PASS else f"matched the fail pattern {pattern.source!r}"
        return Ruling(verdict, reason, self.phase, pattern.source, excerpt)

    def _rule_panic(self, found: tuple[int, int], now: float) -> None:
        """Rule on a kernel's panic: it wins over everything else."""
        if self._pending.ruling is not None and self._pending.ruling.verdict is Verdict.PANIC:
            return
        self._pending.note_panic(found)
        excerpt = excerpt_of(self._text, *found)
        self._pending.replace_by(Ruling(Verdict.PANIC, "the guest's kernel panicked", self.phase, None, excerpt), [], now)

    @property
    def _drained_at(self) -> float:
        """Time at which enough output was read behind the deciding match. A panic's lines are read as long as they come."""
        if self._pending.ruling is not None and self._pending.ruling.verdict is Verdict.PANIC:
            return min(max(self._last_data, self._pending.since) + DRAIN, self._pending.since + PANIC_DRAIN)
        if self._suspicious():
            return self._pending.since + PANIC_DRAIN
        return self._pending.since + DRAIN

    def _suspicious(self) -> bool:
        """Tell whether words of a panic came behind the deciding match, and nothing since shows that the guest goes on."""
        if self._pending.ruling is None or self._pending.ruling.verdict is not Verdict.PASS or not self._suspects.open:
            return False
        rows = [evidence.lines.source(evidence.start) for evidence in self._pending.evidence]
        return bool(self._suspects.silent(self._text, max(rows, default=None)))

    def _settle(self, now: float, *, last: bool = False) -> None:
        """Turn the pending ruling into the ruling if it still stands: the output is drained."""
        self._transcript.heed_split()
        self._transcript.tell_strings()
        self._look(now, quiet=now >= self._last_data + QUIET or not last, last=True)
        if self._suspicious():
            silent = self._suspects.silent(self._text, None)
            self._rule_panic((silent[0].start, silent[0].end), now)
        self._heed_unfinished_panic(now)
        if self._review(over=last and now >= self._last_data + SILENT):
            self._look(now, quiet=now >= self._last_data + QUIET or not last, last=True)
        for _ in range(_TRIES):
            taken_back = False
            while self._pending.ruling is not None and not self._pending.stands():
                self._pending.take_back()
                taken_back = True
            if not taken_back:
                break
            self._look(now, quiet=now >= self._last_data + QUIET or not last, last=True)
        self._doubt_pass()
        self._doubt_fail(now, over=last and now >= self._last_data + SILENT)
        if self._pending.ruling is None or (now < self._drained_at and not last):
            return
        self._trouble.finish()
        self._heed_trouble(now)
        if self.rules.group is not None and self._pending.ruling.verdict is Verdict.PASS:
            self._end_group(now)  # a fail pattern may have matched a command since
            if self._success:
                missing = self._success[0].source
                self._pending.ruling = Ruling(Verdict.FAIL, f"no match of {missing!r}", Phase.COMMAND, missing)
        if self._pending.ruling.verdict is Verdict.PANIC and self._pending.panic_at is not None:
            self._pending.ruling = replace(self._pending.ruling, block=panic_block(self._text, self._pending.panic_at))
        if self._inner.is_own(self._pending.ruling):
            self._pending.ruling = self._ruling_by_tests(now)  # the results may have changed since
            if self._pending.ruling is None:
                self._pending.drop()
        self.ruling = self._pending.ruling

    def _heed_unfinished_panic(self, now: float) -> None:
        """Look for a panic on a line that has not ended: a kernel that panicked may not come to its end."""
        if self._pending.ruling is None or self._pending.ruling.verdict is not Verdict.PASS:
            return
        text = self._text
        sure_to = self._keyboard.unsure_from(quiet=True) if self._keyboard else text.end
        start = max(text.line_start, text.end - EXCERPT * 16)
        line = text.view_slice(start, sure_to)
        for pattern in self._panic:
            if found := pattern.search(line):
                self._rule_panic((start + found[0], start + found[1]), now)
                return

    def _review(self, *, over: bool = False) -> bool:
        """Tell echo from output once more, before a ruling counts. Return whether that changed anything."""
        if self._keyboard is None or self.rules.group is not None or not self._keyboard.review(over=over):
            return False
        self._heed_echo()
        self._suspects.drop_hidden(self._text)
        self._suspects.again(self._prompt_end)
        self._search_again()
        return True

    def _search_again(self) -> None:
        self._search.again()
        self._looked_at = (-1, False)

    def _doubt_pass(self) -> None:
        """Drop a success while a fail pattern or a panic matches what may be output as well as echo."""
        self._doubted = ""
        if self._pending.ruling is None or self._pending.ruling.verdict is not Verdict.PASS or self._keyboard is None:
            return
        patterns = [*(self._fail if self._armed else ()), *self._panic]
        for line, doubtful in self._keyboard.doubtful_lines():
            for pattern in patterns:
                if (found := pattern.search(line)) and any(doubtful[found[0] : found[1]]):
                    self._doubted = pattern.source
                    self._pending.want_again()
                    self._pending.drop()
                    self._search_again()
                    self._looked_at = (self._text.end, True)
                    return

    def _doubt_fail(self, now: float, *, over: bool) -> None:
        """Drop a failure or a panic by a text that was typed and that may be its echo, or by the border of what may be one."""
        if (
            self._pending.ruling is None
            or self._pending.ruling.verdict is Verdict.PASS
            or self._keyboard is None
            or self.rules.group is not None
        ):
            return
        if self._pending.ruling.verdict is Verdict.PANIC and self._pending.panic_at is not None:
            said = self._text.slice(self._pending.panic_at, min(self._pending.panic_to, self._pending.panic_at + _PANIC_WORDS))
            doubt = self._keyboard.may_be_echo(said, now, over=over)
        elif self._pending.evidence:
            doubt = any(self._may_be_echo(evidence, now, over=over) for evidence in self._pending.evidence)
        else:
            doubt = self._keyboard.may_be_echo(self._said_on_row, now, over=over)
        if doubt:
            self._doubted = self._pending.ruling.pattern or "a panic"
            self._pending.drop()
            self._search_again()
            self._looked_at = (self._text.end, True)

    def _may_be_echo(self, evidence: Evidence, now: float, *, over: bool) -> bool:
        text = evidence.lines.text
        start = max(text.start_of_line(evidence.start), text.base)
        line = text.view_slice(start, text.end)
        found = evidence.pattern.search(line, evidence.start - start)
        if found is None or self._keyboard is None:
            return False
        if self._keyboard.may_be_echo(line[found[0] : found[1]], now, over=over):
            return True
        if line[found[0] - 1 : found[0]] != b"\0" and line[found[1] : found[1] + 1] != b"\0":
            return False
        return evidence.pattern.search(line.replace(b"\0", b"_"), evidence.start - start) is None

    def _keep_evidence(self, now: float) -> None:
        """Keep each match that stood until its output was drained, where all patterns have to match, whatever comes later."""
        due = self._pending.due(now, DRAIN)
        if due:
            self._transcript.heed_split()
            self._review()
        self._pending.keep(due)

    def _heed_inner_tests(self, now: float) -> None:
        """Rule on the tests inside the command once it has ended."""
        if self._pending.ruling is None and (ruling := self._ruling_by_tests(now)) is not None:
            self._said_on_row = b""
            self._pending.replace_by(ruling, list(self._pending.matched.values()), now)
            self._pending.matched_at = self._last_data

    def _ruling_by_tests(self, now: float) -> Ruling | None:
        typed = self._keyboard is not None and self._keyboard.all_typed
        lacks = self._success[0].source if self._success and (self.rules.match_all or not self._pending.matched) else ""
        return self._inner.ruling(now, self._last_data, typed=typed, lacks=lacks)

    # --- groups --------------------------------------------------------------------------------------------------------

    def _watch_group(self, now: float) -> None:
        """End the case at the group's last marker; no marker may come behind it."""
        passing = self._pending.ruling is not None and self._pending.ruling.verdict is Verdict.PASS
        if self._group.end is not None and (self._pending.ruling is None or (passing and self._group.end.broken_off)):
            line = f"{self._group.end.line}\n".encode()  # the script prints this line, even if it has not come yet
            self._success[:] = [p for p in self._success if p.search(line) is None]
            self._end_group(now)

    def _watch_prompt(self, now: float) -> None:
        """Tell the group about each prompt of the guest that came while it ran: its script may be gone."""
        prompt = (self.rules.prompt or "").encode()
        text = self._text
        while prompt and (at := text.find(prompt, self._prompts_from)) >= 0:
            row = text.slice(at, min(at + len(prompt) + _PROMPT_MAX, text.end)).partition(b"\n")
            if _PROMPT.search(row[0], len(prompt) - 1):
                self._group.prompted(now)
            elif not row[1] and len(row[0]) < len(prompt) + _PROMPT_MAX:
                self._prompts_from = at  # the rest of the prompt is still to come
                return
            self._prompts_from = at + len(prompt)
        self._prompts_from = max(self._prompts_from, text.end - len(prompt) + 1)

    def _end_group(self, now: float) -> None:
        fail = self._group_fail
        if reason := self._group.failure():
            pattern, excerpt = (fail.pattern, fail.excerpt) if fail else (None, None)
            self._pending.pend(Ruling(Verdict.FAIL, reason, Phase.COMMAND, pattern, excerpt), now)
        else:
            self._pending.pend(fail or Ruling(Verdict.PASS, "", Phase.COMMAND), now)
