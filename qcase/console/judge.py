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

from dataclasses import replace
from typing import Final

from qcase.console.all_readings import EXCERPT, excerpt_of
from qcase.console.console import Console, ConsoleReader
from qcase.console.doubts import Doubts
from qcase.console.echo_text import CHUNK
from qcase.console.exit_watch import ExitWatch
from qcase.console.group import Group, Subtests
from qcase.console.group_watch import GroupWatch
from qcase.console.inner_tests import InnerTests
from qcase.console.keyboard import Keyboard
from qcase.console.panics import BANNER, PANIC_PATTERNS, PanicPattern, panic_block, shown
from qcase.console.pending import DRAIN, Evidence, Pending, ruling_on
from qcase.console.prompt import Prompt
from qcase.console.rules import Limits, Rules, Ruling
from qcase.console.search import Lines, TornLines
from qcase.console.skip_watch import SkipWatch
from qcase.console.tests_watch import TestsWatch
from qcase.console.text import WINDOW, Pattern
from qcase.console.times import limit_reached
from qcase.model import LimitUse, Phase, SubtestResult, Verdict

__all__ = ["CHUNK", "DRAIN", "EXCERPT", "PROMPT_DELAY", "QUIET", "WINDOW", "Group", "Judge", "Limits", "Rules", "Ruling"]

PROMPT_DELAY: Final = 0.1  # seconds from the prompt to the first key (axbuild)
SILENT: Final = 3.0  # seconds of silence at the end after which an echo that has begun is taken for complete
QUIET: Final = 0.5  # seconds of silence after which an unfinished line is taken as it stands

_TRIES: Final = 8  # searches for another match when the deciding match does not stand


class Judge(ConsoleReader):
    """Reads one guest's console and comes to a ruling. `ruling` is None while it is open."""

    def __init__(
        self,
        rules: Rules,
        *,
        started: float,
        limits: Limits = Limits(),
        console: Console | None = None,
        since: int = 0,
        keyboard: Keyboard | None = None,
    ) -> None:
        """`console`, `since` and `keyboard`: of a step, the console of its case, the position behind the step before, and that
        step's typed command if this one types none.
        """
        super().__init__(rules, console or Console(rules, started))
        self.limits = limits
        self.warnings: tuple[str, ...] = ()
        self._panic = [PanicPattern(p) for p in PANIC_PATTERNS]
        self._fail = [*(Pattern(p, always=True) for p in rules.fail_always), *map(Pattern, rules.fail)]
        self._success = [Pattern(p) for p in rules.success]
        # True once the case's own patterns search; those of a step that types from its first key on.
        self._armed = rules.typed is None if rules.part else not rules.from_prompt
        self._looked_at = (-1, False)  # end of the text at the last search, and whether the text was taken as quiet
        self.keyboard = keyboard
        self._prompt = Prompt(rules.prompt, self._transcript, since)
        self._outbox = bytearray()
        self._pending = Pending(self._success, self._search, self._transcript)
        self._doubts = Doubts(self._pending, self._suspects, self._search, self._text)
        self._group = Subtests(rules.group)
        self._inner = InnerTests(rules, self._transcript)
        self._exits = ExitWatch(rules, self._inner, self._pending, self._success)
        self._gathers = rules.group is not None or self._inner.wanted or self._exits.wanted  # a match alone decides nothing
        self._tests = TestsWatch(rules, self._inner, self._pending, self._success)
        self._script = GroupWatch(rules, self._group, self._pending, self._search, self._text, self._success)
        self._skip = SkipWatch(rules, self._search, self._pending, self._text)

    # --- queries of the caller -----------------------------------------------------------------------------------------

    @property
    def matched_at(self) -> float | None:
        """Time at which the deciding match was seen."""
        return self._pending.matched_at

    @property
    def typed_all(self) -> bool:
        """Tell whether all was typed."""
        return self.keyboard is not None and self.keyboard.all_typed

    @property
    def evidence_end(self) -> int:
        """The position in the text behind the deciding match, or of the prompt behind the tests; -1 if the ruling has none."""
        return self._inner.end if self._inner.wanted else self._pending.end()

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
        return self._inner.results() or self._group.results(shown(self._tail.open_line()))

    def next_wake(self) -> float | None:
        """Return the time at which `tick` has work even if no byte came; None if only bytes can change anything."""
        times = []
        if self._pending.ruling is not None:
            times.append(self._drained_at)
        else:
            times += [at for _, at, _ in self._deadlines()]
        if (at := self._types_at) is not None:
            wakes = at if self.keyboard is None else self.keyboard.next_wake
            times += [] if wakes is None else [wakes]
        if self._group.next_wake is not None and self._pending.ruling is None:
            times.append(self._group.next_wake)
        if self._looked_at != (self._text.end, True):
            times.append(self._times.last_data + QUIET)
        if (wake := self._inner.next_wake(self._times.last_data)) is not None and self._pending.ruling is None:
            times.append(wake)
        return min(times, default=None)

    # --- input from the caller -----------------------------------------------------------------------------------------

    def feed(self, data: bytes, now: float) -> None:
        """Process bytes from the guest, in the order in which they came."""
        if self.ruling is not None:
            return
        self._times.heard(now)
        self._keep_evidence(now)
        self._take(self._transcript.feed(data), now)
        self.tick(now)

    def tick(self, now: float) -> None:
        """Process the passing of time."""
        if self.ruling is not None:
            return
        self._type(now)
        self._look(now, quiet=now >= self._times.last_data + QUIET)
        self._tests.heed(now, self._times.last_data, typed=self.typed_all)
        if self._pending.ruling is not None and now >= self._drained_at:
            self._settle(now)
        if self.ruling is None and self._pending.ruling is None:
            for name, _, limit in [one for one in self._deadlines() if now >= one[1]][:1]:
                self.timed_out(now, limit, name)

    def begin(self, now: float) -> None:
        """Process the text that has come before the judge was made: a step begins behind another."""
        self._take([], now)
        self.tick(now)

    def complete(self, now: float) -> None:
        """Pass a step that has done what it is to do, unless what comes until its output is drained says otherwise."""
        if self.ruling is None and self._pending.ruling is None:
            self._pending.pend(Ruling(Verdict.PASS, "", self.phase), now)

    def close(self, now: float) -> None:
        """Rule on the text so far, if that decides anything: no more text comes of this boot."""
        if self.ruling is None:
            self._last_words(now, quiet=True)

    def timed_out(self, now: float, limit: float, name: str = "timeout") -> None:
        """Rule on the text so far because a limit of `limit` seconds is up; a timeout if the text decides nothing."""
        if self.ruling is None:
            self._last_words(now, quiet=now >= self._times.last_data + QUIET)
        if self.ruling is not None:
            return
        missing = " and ".join(repr(p.source) for p in self._success)
        tests = self._inner.progress() if self._inner.wanted else ""
        booting = self.prompt_at is None
        what = limit_reached(name, limit, self.rules, self._group.running, missing, self._doubts.pattern, tests, booting=booting)
        self.ruling = self._script.fail or Ruling(Verdict.TIMEOUT, what, self.phase, limit=name)

    def ended(self, now: float, how: str, *, reset: bool = False, fault: str = "", word: str = "") -> None:
        """Rule because QEMU ended by itself with status `how`. `reset`: the guest's machine was reset; `fault`: its cause.

        `word`: what the guest says by that end, as `Rules.exits` names it.
        """
        if self.ruling is not None:
            return
        self._inner.over = True
        self._exits.note(word)
        self._last_words(now, quiet=True)
        if fault and not (self.ruling and self.ruling.verdict is Verdict.PANIC):
            self._rule_reset(f"by a {fault}")
        self.ruling = self._exits.combined(self.ruling, how, self.phase)
        if self.ruling is not None:
            return
        if reset and self.rules.prompt is not None and self._booting:
            self._rule_reset("while it booted")
        else:
            known = f"; {self._inner.progress()}" if self._inner.wanted else ""
            self.ruling = self._script.fail or Ruling(Verdict.EXITED, f"QEMU ended before a verdict, {how}{known}", self.phase)

    def _rule_reset(self, how: str) -> None:
        self.ruling = Ruling(Verdict.PANIC, f"the guest's machine was reset {how}", self.phase, excerpt=self._tail.last_line())

    def _deadlines(self) -> list[tuple[str, float, float]]:
        """Return the running limits as (name, time at which it is up, seconds), the earliest first."""
        return self._times.deadlines(self.limits, group=self.rules.group is not None, command_began=self._group.command_began)

    def limits_used(self, now: float) -> tuple[LimitUse, ...]:
        """Return the used part of each limit, in the order of the documentation."""
        end = now if self._pending.matched_at is None else self._pending.matched_at
        longest = None if self.rules.group is None else self._group.longest_by(end)
        return self._times.used(self.limits, end, longest, None if self.ruling is None else self.ruling.limit)

    # --- text and time -------------------------------------------------------------------------------------------------

    def _take(self, lines: list[bytes], now: float) -> None:
        """Process new text: echo, the prompt, kernel trouble, and these whole lines for the group."""
        text = self._text
        self._trouble.feed(text.slice(self._console.taken, text.end), booting=self._booting)
        self._console.taken = text.end
        self._heed_trouble(now)
        self._tail.add(lines)
        if self.rules.resets and any(BANNER.match(line) for line in lines if line[:1] in (b"S", b"O", b"U")):
            self._resets.note_banner()
            self.watch_resets()
        if self.keyboard is not None:
            self.keyboard.find_echo(now)
        if self.rules.prompt is not None and self.prompt_at is None:
            self._find_prompt(now)
        self._heed_echo()
        if self.rules.group is not None and (self.command_at is not None or self.rules.typed is None):
            self._script.take(lines, now)
            self._readings.update()
            if self.command_at is None and self._group.command_began is not None:  # the guest itself has started the script
                self._times.prompt_at = self._times.command_at = now
        self._inner.take(now)

    def _heed_echo(self) -> None:
        """Bring the readings up to date with the echo found so far."""
        if self.keyboard is not None and (restored := self.keyboard.hidden.take_restored()) is not None:
            start = self._text.start_of_line(restored)
            self._search.written.again(start)
            self._suspects.again(start)
            self._looked_at = (-1, False)
        self._readings.update()

    def _find_prompt(self, now: float) -> None:
        if self._prompt.find():
            self._times.prompt_at = now
            self._console.booted = True
            self._armed = self._armed or not self.rules.part
            if not self._console.open:
                self._console.open = True
                self._search.arm(self._prompt.end, opens=True)

    def _heed_trouble(self, now: float) -> None:
        """Fail a case that asks for it if its kernel reports trouble; a group still runs to its end."""
        if self.rules.kernel_trouble != "fail" or not self._trouble.first:
            return
        reason = f"the guest's kernel reported trouble: {self._trouble.first}"
        if self.rules.group is not None:
            self._script.fail_whole(Ruling(Verdict.FAIL, reason, self.phase))
        elif (pending := self._pending.ruling) is None or pending.good or pending.by_tests:
            self._pending.replace_by(Ruling(Verdict.FAIL, reason, self.phase), [], now)

    @property
    def _types_at(self) -> float | None:
        """Time from which on there is something to type; None if there is nothing, or not yet."""
        if self.rules.typed is None or (self.rules.prompt is not None and self.prompt_at is None):
            return None
        return self._times.started if self.prompt_at is None else self.prompt_at + PROMPT_DELAY

    def _type(self, now: float) -> None:
        if (at := self._types_at) is None or self.rules.typed is None:
            return
        if self.keyboard is None:
            if now < at:
                return
            self._console.note_typed(self.rules.typed.encode())
            as_is = self.rules.keys is not None
            self.keyboard = Keyboard(self.rules.typed, self.rules.prompt or "", self._text, now, as_is=as_is)
            if not self._armed:
                self._armed = True
                self._search.arm(self._text.end)
        self._outbox += self.keyboard.type(now)
        if self.rules.group is not None and self.command_at is not None and self._pending.ruling is None:
            self._outbox += self._script.input(now)
        self._heed_echo()
        if self.command_at is None and self.keyboard.line_end_typed:
            self._times.command_at = now
            self._inner.begin()
            self._script.note_typed()
        if self.keyboard.warning:
            self.warnings = (self.keyboard.warning,)

    def _last_words(self, now: float, *, quiet: bool) -> None:
        """Rule on the final text. Unfinished rows count as they are, unless the guest was about to continue them."""
        self._take(self._transcript.finish() if quiet else self._transcript.feed(b"", final=True), now)
        if quiet:
            self._readings.flush_torn()
        if self.keyboard is not None:
            self.keyboard.show_mixed()
            self._heed_echo()
        self._trouble.finish()
        self._heed_trouble(now)
        self._look(now, quiet=quiet, last=True)
        if self._pending.ruling is None and self._review(over=now >= self._times.last_data + SILENT):
            self._look(now, quiet=quiet, last=True)
        self._tests.heed(now, self._times.last_data, typed=self.typed_all)
        self._exits.heed(now, self.phase)
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
        if quiet and not last and self.typed_all and self._pending.ruling is None:
            self._prompt.end_row_before()
        every = last or quiet
        line = self._search.begin(now, every=every)
        sure_to = self.keyboard.unsure_from(quiet=quiet) if self.keyboard else text.end
        if not last and self._group.may_be_label(text.slice(text.line_start, text.end)):
            sure_to = text.line_start
        self._look_for_panic(sure_to if line else 0, now)
        if not (self._pending.ruling and self._pending.ruling.verdict is Verdict.PANIC):
            self._look_for_fail(sure_to if line else 0, now, quiet=every)
            if self._armed:
                self._skip.look(now, self.phase, quiet=quiet)
            if self._pending.ruling is None and self._armed:
                self._look_for_success(now, quiet=quiet)
        self._search.end()

    def _look_for_panic(self, sure_to: int, now: float) -> None:
        if found := self._search.find_any_panic(self._panic, sure_to) or self._suspects.find(self._text):
            self._rule_panic(found, now)

    def _look_for_fail(self, sure_to: int, now: float, *, quiet: bool) -> None:
        """Search everything ever written for a fail: as it came, in earlier states of rows, or torn by kernel lines or echo."""
        torn = self._search.torn_line(sure_to)
        for pattern in self._searching():
            matches = self._search.find_fails(pattern, sure_to, quiet=quiet)
            for match in matches if self._gathers else matches[:1]:
                self._rule_fail(pattern, *match, now)
            if not matches and (said := self._search.find_open_fail(pattern, torn, sure_to, quiet=quiet)):
                self._rule_fail(pattern, self._search.written, (self._text.line_start, sure_to), now, said)

    def _searching(self) -> list[Pattern]:
        """Return the fail patterns that search already."""
        return [one for one in self._fail if (self._console.open if one.always else self._armed)]

    def _rule_fail(
        self, pattern: Pattern, lines: Lines | TornLines, found: tuple[int, int], now: float, said: bytes = b""
    ) -> None:
        """Fail by a match in a reading.

        `said`: a text with a match that no more text could undo; `found` is its unfinished line then.
        """
        if self.rules.group is not None:
            self._script.blame(pattern, lines, found, self.phase)
            return
        evidence = [] if said else [Evidence(lines, pattern, found[0])]
        ruling = ruling_on(Verdict.FAIL, self.phase, pattern, lines.text, found, self._text)
        self._pending.replace_by(ruling, evidence, now, (pattern, said) if said else None)

    def _look_for_success(self, now: float, *, quiet: bool) -> None:
        """Search rows that have ended for a success, and the unfinished row if it is a prompt that waits for input."""
        for pattern in list(self._success):
            if (match := self._search.find_success(pattern, quiet=quiet)) is None:
                continue
            lines, found = match
            ruling = ruling_on(Verdict.PASS, self.phase, pattern, lines.text, found, self._text)
            evidence = Evidence(lines, pattern, found[0], now)
            if self.rules.match_all or self._gathers:
                self._success.remove(pattern)
                self._pending.matched[pattern.source] = evidence
                if self._success or self._gathers:
                    continue
                self._pending.replace_by(ruling, list(self._pending.matched.values()), now)
            else:
                self._pending.replace_by(ruling, [evidence], now)
            return

    # --- ruling --------------------------------------------------------------------------------------------------------

    def _rule_panic(self, found: tuple[int, int], now: float) -> None:
        """Rule on a kernel's panic: it wins over everything else."""
        if self._pending.ruling is not None and self._pending.ruling.verdict is Verdict.PANIC:
            return
        self._pending.note_panic(found)
        excerpt = excerpt_of(self._text, *found)
        self._pending.replace_by(Ruling(Verdict.PANIC, "the guest's kernel panicked", self.phase, None, excerpt), [], now)

    @property
    def _drained_at(self) -> float:
        drained = self._pending.drained_at(self._times.last_data, suspicious=self._pending.suspicious(self._suspects))
        if self.rules.part and self.keyboard and self.keyboard.next_wake and self._pending.passes:
            return max(drained, self.keyboard.next_wake)  # a step does not end before it has typed all
        return drained

    def _settle(self, now: float, *, last: bool = False) -> None:
        """Turn the pending ruling into the ruling if it still stands: the output is drained."""
        self._transcript.heed_split()
        self._transcript.tell_strings()
        self._look(now, quiet=now >= self._times.last_data + QUIET or not last, last=True)
        if self._pending.suspicious(self._suspects):
            silent = self._suspects.silent(self._text, None)
            self._rule_panic((silent[0].start, silent[0].end), now)
        self._heed_unfinished_panic(now)
        if self._review(over=last and now >= self._times.last_data + SILENT):
            self._look(now, quiet=now >= self._times.last_data + QUIET or not last, last=True)
        for _ in range(_TRIES):
            taken_back = False
            while self._pending.ruling is not None and not self._pending.stands():
                self._pending.take_back()
                taken_back = True
            if not taken_back:
                break
            self._suspects.again(0)
            self._look(now, quiet=now >= self._times.last_data + QUIET or not last, last=True)
        self._doubt(now, over=last and now >= self._times.last_data + SILENT)
        if self._pending.ruling is None or (now < self._drained_at and not last):
            return
        if not self.rules.goes_on:
            self._trouble.finish()
        self._heed_trouble(now)
        if self.rules.group is not None and self._pending.ruling.good:
            self._script.end(now)  # a fail pattern may have matched a command since
            if self._success and self._pending.ruling.verdict is not Verdict.SKIPPED:
                missing = self._success[0].source
                self._pending.ruling = Ruling(Verdict.FAIL, f"no match of {missing!r}", Phase.COMMAND, missing)
        if self._pending.ruling.verdict is Verdict.PANIC and self._pending.panic_at is not None:
            self._pending.ruling = replace(self._pending.ruling, block=panic_block(self._text, self._pending.panic_at))
        self._tests.settle(now, self._times.last_data, typed=self.typed_all)
        self.ruling = self._pending.ruling and self._script.settled(self._pending.ruling)

    def _heed_unfinished_panic(self, now: float) -> None:
        """Look for a panic on a line that has not ended: a kernel that panicked may not come to its end."""
        if not self._pending.passes:
            return
        sure_to = self.keyboard.unsure_from(quiet=True) if self.keyboard else self._text.end
        if found := self._search.find_open_panic(self._panic, sure_to):
            self._rule_panic(found, now)

    def _review(self, *, over: bool = False) -> bool:
        """Tell echo from output once more, before a ruling counts. Return whether that changed anything."""
        if self.keyboard is None or self.rules.group is not None or not self.keyboard.echo.review(over=over):
            return False
        self._heed_echo()
        self._suspects.drop_hidden(self._text)
        self._suspects.again(self._prompt.end)
        self._search.again()
        self._looked_at = (-1, False)
        return True

    def _doubt(self, now: float, *, over: bool) -> None:
        """Drop a pending ruling that rests on what may be echo as well as output."""
        if self.keyboard is None:
            self._doubts.pattern = ""
            return
        dropped = self._doubts.drop_pass(self.keyboard, [*self._searching(), *self._panic], now, over=over)
        if not dropped and self.rules.group is None:
            dropped = self._doubts.drop_fail(self.keyboard, now, over=over)
        if dropped:
            self._search.again()
            self._suspects.again(self._prompt.end)
            self._looked_at = (self._text.end, True)

    def _keep_evidence(self, now: float) -> None:
        """Keep each match that stood until its output was drained, where all patterns have to match, whatever comes later."""
        due = self._pending.due(now, DRAIN)
        if due:
            self._transcript.heed_split()
            self._review()
        self._pending.keep(due)
