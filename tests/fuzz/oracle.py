"""Read the log of a guest on a terminal emulator, and say which verdicts are right.

The oracle sees the whole log at once, knows the author of each byte, and uses an emulator that many people look at
(asciinema's `avt`). It shares no code and no technique with `qcase.console`: that one has to decide byte by byte, without
knowing who wrote what.

    writes ─► characters with authors ─► Token ─► Screen (avt) ─► rows, and each state of a row before it was lost
                                              └─► the text as it came

Each text is read four times: with and without the kernel's lines, with echo masked and with echo left out. `must`: a careful
person is sure. `may`: a careful person accepts it. Everything else is wrong. Where the contract leaves a choice, a verdict
is neither demanded nor forbidden:

* Rows to which the cursor went up: a success there may count if it stands. So with any row once the cursor was sent to an
  absolute address, or the screen was cleared.
* A success that is gone at the ruling (screen cleared) demands nothing; of `match_all` it may still count.
* Trailing blanks: a person does not see whether they were written.
* The text as it came with a backspace in it, and an unterminated string sequence.
* VT and FF as the end of a row that a success stands on, and the column in which they leave the cursor.
* A prompt behind an unfinished line before anything was typed.
* An unfinished line, if it is a subsequence of what was typed and nothing else came back of that.
* What a program prints right behind an echo that is not complete, on the same line, if it begins with a character that was
  typed; and `\\b` at the border of an echo.
* Blank lines beside an echo or a kernel's line in a success of several lines.
* A program's line end right behind an echo: it can be the echo's.
* Blank lines in a fail text of several lines: an echo's line end can be one.
* What a guest prints while its echo is not complete, or if its echo loses characters, and that is a subsequence of what was
  typed: it can be echo for all that anyone can tell.
* A panic without a time stamp in the middle of a line, without the line that ends a panic, if a success was there.
* A prompt-like end of an unfinished line that a continuation could undo.
* Echo that is no subsequence of what was typed (twice on one line, in capitals), or stands right beside a program's text: FAIL
  and PANIC by it; never PASS.
* A line that was typed, printed by a program before that line's echo came: the two are taken for each other.
* A text that an echo tears, unless the echo is exactly what was typed.
* Everything behind a prompt that a kernel's line tears, where patterns begin to look behind the prompt.
* FAIL and PANIC, where the log has both.
* A reset of the machine behind a prompt that a kernel's line tears: a judge may not have seen the prompt.
* The rest of a line of a program that a kernel's line or an echo tore, as a row of its own: nobody sees that it is one, so no
  success is demanded there. So with the row behind a program's text and an echo: whose its line end is nobody can tell. So with
  a rest that does not go on where the line was torn, but returns.
* A success that holds a whole line that was typed, where the echo is not exactly what was typed: the two are taken for each
  other.
* A success where a fail text is that may be echo for all that anyone can tell: neither is demanded.
* An unfinished line that came less than half a second before the end: a judge waits so long to see whether it goes on.
* A prompt of fewer than four characters between a program's unfinished text and a kernel's line.
* FAIL by a program's text that looks like a kernel's line, `[2.0]`, and by a text behind blanks that an echo may have ended with.
* A text that was overwritten, or that overwrites, where only a reading without an echo's line end has it: its columns are not
  the terminal's.
* FAIL by a text that is written over a row of a screen that was addressed and that goes on behind it: whether something stood
  there depends on the screen's size.
* FAIL by a text on the alternate screen, or behind a switch of the screen, whatever the column it begins in.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property, lru_cache

from tests.fuzz.log import By, Log
from tests.fuzz.screen import ECHO_MASK, HIDDEN_MASK, QUIET, Echo, Reading, Screen, View, switches, tokens, with_doubts

CONTINUATIONS = ("", "x", "0", " ", ",", "\n", "é", "%")
DRAIN = 0.5
LATE = 8.0  # seconds: a judge may wait for echo and calm, but not for the end of the time where all is clear
PHRASES = ("Kernel panic - not syncing", "panicked at ", "Panicked at ", "Uncaught panic:", "Non-resettable panic! ")
LIKE_KERNELS = r"(?:<\d>)?\[ *\d+\.\d+\][^\n]*"
PANIC_ENDS = "---[ end Kernel panic"


@lru_cache(maxsize=512)
def pattern(source: str) -> re.Pattern[str]:
    return re.compile(source, re.MULTILINE | re.ASCII)


class Opinion:
    """The verdicts that a careful person accepts for a log."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.tokens = with_doubts(tokens(log), log)
        self.screen = Screen(log, self.tokens)
        self.kernel = any(t.by is By.KERNEL for t in self.tokens)
        self.echo = any(t.by is By.ECHO for t in self.tokens)
        self.outputs = any(t.swapped or (t.doubtful and t.by is not By.ECHO) for t in self.tokens)
        self.ends = any(
            one.by is By.ECHO
            and one.kind == "Print"
            and next_one.by is By.OUT
            and (next_one.kind in ("Cr", "Lf") or next_one.raw[:1] == " ")
            for one, next_one in itertools.pairwise(self.tokens)
        )
        self.echoes = any(t.doubtful and t.by is By.ECHO for t in self.tokens)
        self.plain_echo = self._plain_echo()
        self.last_at = log.writes[-1].at if log.writes else 0.0
        self._kept: dict[View, Reading] = {}

    def _plain_echo(self) -> bool:
        """Whether the echo is exactly what was typed, line by line, so that anyone can tell it from output."""
        typed = b"".join(data for _, data in self.log.typed).decode(errors="replace")
        for token, following in itertools.pairwise(self.tokens):
            if token.by is By.ECHO and token.kind != "Lf" and following.by is not By.ECHO:
                return False  # something stands between a line's echo and its end
        return "".join(t.raw for t in self.tokens if t.by is By.ECHO).replace("\r\n", "\n") == typed

    def reading(self, view: View) -> Reading:
        """A reading; those that cannot differ are made once."""
        view = View(
            kernel=view.kernel or not self.kernel,
            echo=view.echo if self.echo else Echo.MASKED,
            outputs=view.outputs and self.outputs,
            echoes=view.echoes and self.echoes,
            masked_kernel=view.masked_kernel and self.kernel,
            ends=view.ends and self.ends and view.echo is Echo.OUT,
        )
        if view not in self._kept:
            self._kept[view] = self.screen.play(self.tokens, view)
        return self._kept[view]

    def readings(self, ways: Iterable[Echo], **doubts: bool) -> Iterator[Reading]:
        """Readings with and without the kernel's lines, with each of these ways to treat echo."""
        seen = set()
        for echo in ways:
            for kernel in (True, False):
                reading = self.reading(View(kernel=kernel, echo=echo, **doubts))
                if id(reading) not in seen:
                    seen.add(id(reading))
                    yield reading

    def sure(self) -> Iterator[Reading]:
        """Readings in which nothing is doubtful: an echo that is not plain is masked, but never left out."""
        return self.readings(Echo if self.plain_echo else (Echo.MASKED,))

    def doubtful(self) -> Iterator[Reading]:
        """All readings but those in which echo is text."""
        for outputs in (False, True) if self.outputs else (False,):
            yield from self.readings(Echo, outputs=outputs)
            if self.ends:
                yield from self.readings((Echo.OUT,), outputs=outputs, ends=True)

    def generous(self) -> Iterator[Reading]:
        """All readings, also those in which an echo that nobody can tell from output is text."""
        yield from self.doubtful()
        if self.echoes:
            yield from self.readings(Echo, echoes=True, outputs=True)

    # --- fail ---------------------------------------------------------------------------------------------------------

    @cached_property
    def must_fail(self) -> str:
        """The fail pattern that surely was written; empty if none was."""
        for source in self.log.wants.fail:
            for reading in self.sure():
                if self._surely_written(pattern(source), reading):
                    return source
        return ""

    @cached_property
    def may_fail(self) -> bool:
        for source in self.log.wants.fail:
            for reading in self.generous():
                if any(pattern(source).search(text, start) for text, start in self._texts(reading)):
                    return True
        return False

    @cached_property
    def _alternate(self) -> bool:
        """Whether a program went to the alternate screen."""
        return any(map(switches, self.tokens))

    @cached_property
    def _parts_by_screen(self) -> list[tuple[str, int]]:
        """The programs' text as if each switch of the screen ended a line, with and without the kernel's lines."""
        parts = [
            (t.by, t.raw if t.kind == "Print" else "\n" if t.kind in ("Lf", "Vt") or switches(t) else "")
            for t in self.tokens
            if t.by is not By.ECHO
        ]
        return [("".join(raw for by, raw in parts if kernel or by is not By.KERNEL), 0) for kernel in (True, False)]

    def _start(self, reading: Reading) -> int | None:
        """Where the case's patterns begin to look in the text as it came."""
        if not self.log.wants.from_prompt:
            return 0
        return None if reading.armed is None else reading.armed[0]

    def _texts(self, reading: Reading) -> Iterator[tuple[str, int]]:
        """All in which anything may be found."""
        start = self._start(reading)
        if start is None:
            return
        yield reading.came, start
        if reading.broken:
            yield reading.bare, 0
        for state in reading.states:
            yield state, 0
            yield state.rstrip(), 0
        yield reading.came.replace("\n\n", "\n").replace("\n\n", "\n"), 0
        for line_end in ("", "\n", "\n+"):
            yield re.sub(LIKE_KERNELS + line_end, "", reading.came), 0
            if reading.broken:  # a string that never ends holds the kernel's lines behind it, too
                yield re.sub(LIKE_KERNELS + line_end, "", reading.bare), 0
        if self._alternate:
            yield from self._parts_by_screen
        yield from ((state.lstrip(), 0) for state in reading.aside)
        # Who sends the cursor home does not know what stands there: a screen of 24 lines has scrolled it away, this one has not.
        yield from ((state, 0) for state in reading.over)
        yield "\n".join(reading.rows), 0
        yield "\n".join(row.rstrip() for row in reading.rows), 0
        yield "\n".join(row.rstrip() for row in reading.rows if row.strip()), 0
        cuts = [mark.quiet if mark.prompt is None else mark.prompt for mark in reading.marks]
        if any(cuts):
            yield "\n".join(row[:cut].rstrip() if cut else row for row, cut in zip(reading.rows, cuts, strict=True)), 0
        for text, _ in reading.strings:
            yield text, 0
            yield from ((part, 0) for part in text.split(";"))

    @cached_property
    def _prompted(self) -> bool:
        """Whether the prompt stands there in one piece, if patterns begin to look behind it."""
        return not self.log.wants.from_prompt or self.reading(View()).armed is not None

    def _surely_written(self, wanted: re.Pattern[str], reading: Reading) -> bool:
        start = self._start(reading)
        if start is None or not self._prompted:
            return False
        if not reading.broken and self._sure(wanted, reading.came, start):
            return True
        if self.log.wants.from_prompt:
            return False  # states before and behind the prompt are not told apart
        for state in () if reading.joins else reading.lost:
            if wanted.search(state) and wanted.search(state.rstrip().replace(ECHO_MASK, "_")):
                return True
        # Where an echo's line end is left out, a CR goes to the prompt's row: no terminal shows what is written over that.
        rows = [HIDDEN_MASK if reading.joins and m.struck else r for r, m in zip(reading.rows, reading.marks, strict=True)]
        text = "" if reading.addressed else "\n".join(rows)
        if self._sure(wanted, text, 0) and self._sure(wanted, "\n".join(row.rstrip() for row in rows), 0):
            return True
        return any(closed and wanted.search(f"x;{text};x") for text, closed in reading.strings)

    def _sure(self, wanted: re.Pattern[str], text: str, start: int) -> bool:
        """Whether a match is there whatever comes next."""
        found = wanted.search(text, start)
        if found is None or not wanted.search(text.replace(ECHO_MASK, "_"), start):  # `\b` beside an echo
            return False
        line = text.rfind("\n") + 1
        if found.end() < line or self.log.over:
            return True
        return all(wanted.search(text + more, start) for more in CONTINUATIONS)

    # --- success ------------------------------------------------------------------------------------------------------

    @cached_property
    def must_pass(self) -> bool:
        """Whether every success that is needed surely stands."""
        if not self.log.wants.success or not self._prompted:
            return False
        one = all if self.log.wants.match_all else any
        readings = list(self.readings((Echo.MASKED,)))
        if self.may_fail and self.log.typed:
            return False
        return one(any(self._surely_stands(pattern(s), r) for r in readings) for s in self.log.wants.success)

    @cached_property
    def may_pass(self) -> bool:
        readings = list(self.doubtful())
        stands = [any(self._may_stand(pattern(s), r) for r in readings) or self._stands_bare(s) for s in self.log.wants.success]
        if not self.log.wants.match_all:
            return any(stands)
        once = [
            stood or any(pattern(s).search(text) for r in readings for row in r.ever for text in (row, row.rstrip()))
            for s, stood in zip(self.log.wants.success, stands, strict=True)
        ]
        return any(stands) and all(once)

    def _matches(
        self, wanted: re.Pattern[str], rows: list[str], reading: Reading, *, lenient: bool = False
    ) -> Iterator[tuple[int, int, bool]]:
        """Matches on the rows as they stand: the first row, the last row, and whether it reaches to that one's end."""
        start = 0
        if self.log.wants.from_prompt:
            if reading.armed is None:
                return
            _, row, column = reading.armed
            if not lenient or not (reading.marks[row].moved or reading.marks[row].struck):
                start = sum(len(r) + 1 for r in rows[:row]) + column
        text = "\n".join(rows)
        for found in wanted.finditer(text, min(start, len(text))):
            first = text.count("\n", 0, found.start())
            last = text.count("\n", 0, max(found.end() - 1, found.start()))
            yield first, last, found.end() == len(text) or text[found.end() - 1 : found.end() + 1].find("\n") >= 0

    def _variants(self, reading: Reading) -> Iterator[list[str]]:
        yield reading.rows
        yield [row.rstrip() for row in reading.rows]

    def _lenient(self, reading: Reading) -> Iterator[list[str]]:
        """Rows as they may be read: indented by VT or FF, and as they were when a prompt stood behind them for a while."""
        yield from self._variants(reading)
        if any(mark.fed for mark in reading.marks):
            yield [row.strip() if mark.fed else row for row, mark in zip(reading.rows, reading.marks, strict=True)]
        if any(mark.quiet for mark in reading.marks):
            cut = [row[: mark.quiet] if mark.quiet else row for row, mark in zip(reading.rows, reading.marks, strict=True)]
            yield cut
            yield [row.strip() if mark.fed else row.rstrip() for row, mark in zip(cut, reading.marks, strict=True)]

    def _may_stand(self, wanted: re.Pattern[str], reading: Reading) -> bool:
        unfinished = self._unfinished(least=QUIET)
        for rows in self._lenient(reading):
            for first, last, _ in self._matches(wanted, rows, reading, lenient=True):
                marks = list(enumerate(reading.marks[first : last + 1], first))
                open_rows = [n for n, mark in marks if not (mark.ended or mark.moved or mark.quiet)]
                if not open_rows or (self.log.over and open_rows == [last]):
                    return True
                if open_rows == [last] == [reading.cursor] and unfinished and self._prompts(wanted, reading):
                    return True
            cut = self._before_prompt(reading)
            if unfinished and cut is not None:
                shortened = [*rows[: reading.cursor], rows[reading.cursor][:cut], *rows[reading.cursor + 1 :]]
                for variant in (
                    shortened,
                    [row.strip() if mark.fed else row.rstrip() for row, mark in zip(shortened, reading.marks, strict=True)],
                ):
                    for first, last, _ in self._matches(wanted, variant, reading, lenient=True):
                        if all(reading.marks[n].ended or n == reading.cursor for n in range(first, last + 1)):
                            return True
        return False

    def _stands_bare(self, source: str) -> bool:
        """Whether a match stands on the rows when echo and the kernel's lines are taken away, and rows that are blank then."""
        for outputs in (True, False):
            reading = self.reading(View(outputs=outputs, masked_kernel=True))
            bare = [(row.replace(ECHO_MASK, "").rstrip(), mark) for row, mark in zip(reading.rows, reading.marks, strict=True)]
            if self.log.wants.from_prompt:
                bare = bare[reading.armed[1] + 1 :] if reading.armed else []
            text = "\n".join(row for row, _ in bare if row)
            waits = reading.marks[reading.cursor] if self._unfinished(least=QUIET) and self._before_prompt(reading) else None
            over = [mark.ended or mark.moved or (mark.quiet is not None) or mark is waits for row, mark in bare if row]
            for found in pattern(source).finditer(text):
                last = text.count("\n", 0, max(found.end() - 1, 0))
                if all(over[text.count("\n", 0, found.start()) : last]) and (over[last] or self.log.over):
                    return True
        return False

    def _surely_stands(self, wanted: re.Pattern[str], reading: Reading) -> bool:
        if reading.addressed:
            return False
        rows, stripped = self._variants(reading)
        if self._stands_in(wanted, rows, reading) and self._stands_in(wanted, stripped, reading):
            return True
        cut = self._before_prompt(reading)
        if cut is None or not self._unfinished(least=2 * QUIET + 0.1):
            return False
        last = reading.cursor
        mark = reading.marks[last]
        if mark.moved or mark.struck or not self._ran_before() or not rows[last][:cut].strip():
            return False
        shortened = [*rows[:last], rows[last][:cut]]
        return all(
            any(
                all((reading.marks[n].ended or n == last) and not reading.marks[n].moved for n in range(first, end + 1))
                for first, end, _ in self._matches(wanted, variant, reading)
            )
            for variant in (shortened, [row.rstrip() for row in shortened])
        )

    def _ran_before(self) -> bool:
        """Whether the last prompt came when the command had been typed: at the first one nothing has run."""
        prompts = [t.at for t in self.tokens if t.by is By.PROMPT and t.kind == "Print"]
        return any(b"\n" in data and at < prompts[-1] for at, data in self.log.typed)

    @cached_property
    def _typed_lines(self) -> list[str]:
        """The lines that were typed, where an echo is not what was typed."""
        if self.plain_echo or not self.log.typed:
            return []
        return [line for line in str(self.log.wants.command).split("\n") if len(line.strip()) > 1]

    def _stands_in(self, wanted: re.Pattern[str], rows: list[str], reading: Reading) -> bool:
        for first, last, _ in self._matches(wanted, rows, reading):
            marks = reading.marks[first : last + 1]
            if any(mark.rest for mark in marks):
                continue
            if not wanted.search("\n".join(rows[first : last + 1]).replace(ECHO_MASK, "_")):
                continue  # `\b` beside an echo
            if any(line in row for line in self._typed_lines for row in rows[first : last + 1]):
                continue
            if any(mark.moved for mark in marks) or any(HIDDEN_MASK in row for row in rows[first : last + 1]):
                continue
            if all(mark.ended for mark in marks):
                return True
            late = not self._unfinished(least=QUIET + 0.1)
            if self.log.over and all(mark.ended for mark in marks[:-1]) and last == reading.cursor and not late:
                return True
        return False

    def _unfinished(self, *, least: float) -> bool:
        """Whether the unfinished line has been quiet for so long."""
        return self.log.at >= self.last_at + least - 1e-6

    def _before_prompt(self, reading: Reading) -> int | None:
        """Where the case's prompt stands behind something on the unfinished row."""
        mark = reading.marks[reading.cursor]
        return mark.prompt if self.log.wants.prompt else None

    def _prompts(self, wanted: re.Pattern[str], reading: Reading) -> bool:
        """Whether a match reaches to the end of an unfinished row that looks like a prompt."""
        row = reading.rows[reading.cursor].rstrip()
        if not row.endswith((":", "#", "$", ">")) or reading.marks[reading.cursor].struck:
            return False
        return any(m.end() >= len(row) for m in wanted.finditer(reading.rows[reading.cursor])) or any(
            m.end() >= len(row) for m in wanted.finditer(row)
        )

    # --- panic --------------------------------------------------------------------------------------------------------

    @cached_property
    def must_panic(self) -> bool:
        everything = "".join(t.raw for t in self.tokens if t.by is By.PANIC)
        if not self._said(everything.replace(PANIC_ENDS, "")):
            return False
        if PANIC_ENDS in everything or (self.log.over and self.log.verdict in ("timeout", "exited")):
            return True
        return any(self._said(said) and self._in_place(line, said) for line, said in self._panic_lines())

    def _panic_lines(self) -> Iterator[tuple[str, str]]:
        """For each line: what stands on it before the kernel panics, and what the kernel says then."""
        line = said = ""
        for token in self.tokens:
            if token.kind in ("Lf", "Cr", "Vt"):
                yield line, said
                line = said = ""
            elif token.kind == "Print" and token.by is By.PANIC:
                said += token.raw
            elif token.kind == "Print" and not said:
                line += token.raw
        yield line, said

    def _said(self, text: str) -> bool:
        """Whether a phrase stands there with what makes it sure behind it."""
        return any(phrase in text and len(text) > text.index(phrase) + len(phrase) + 8 for phrase in PHRASES)

    def _in_place(self, line: str, said: str) -> bool:
        if not line.strip() or said.lstrip().startswith(("[", "<")):
            return True
        prompt = self.log.wants.prompt
        return bool(prompt) and line.rstrip() == str(prompt).rstrip()

    @cached_property
    def may_panic(self) -> bool:
        for reading in self.generous():
            for text, _ in [*self._texts(reading), (reading.came, 0)]:
                if any(phrase in text and not self._only_threads(text) for phrase in PHRASES):
                    return True
        return False

    def _only_threads(self, text: str) -> bool:
        """Whether all that panics in a text is a thread of a Rust program."""
        rest = pattern(r"thread '[^'\n]*'(?: \(\d+\))? panicked at ").sub("", text)
        return not any(phrase in rest for phrase in PHRASES)

    @cached_property
    def _drained(self) -> bool:
        """Whether the success was there a while before the pass."""
        until = self.log.at - DRAIN + 1e-6
        return Opinion(replace(self.log, writes=tuple(w for w in self.log.writes if w.at <= until), at=until)).may_pass

    # --- all of it ----------------------------------------------------------------------------------------------------

    def complaint(self) -> str:
        """What is wrong with the verdict; empty if nothing is."""
        verdict = self.log.verdict
        ended = bool(self.tokens) and self.tokens[-1].kind == "Lf"
        clear = not self.log.typed or self.plain_echo
        if clear and self.log.over and ended and self.log.at > self.last_at + LATE and verdict in ("pass", "fail", "panic"):
            sooner = Opinion(replace(self.log, over=False))
            if {"pass": sooner.must_pass, "fail": sooner.must_fail, "panic": sooner.must_panic}[verdict]:
                return f"{verdict}, but only when the time was up"
        if verdict == "pass":
            if self.must_panic:
                return "pass, but the kernel panicked"
            if self.must_fail:
                return f"pass, but {self.must_fail!r} was written"
            if not self.may_pass:
                return "pass, but no success stands"
            return "" if self.log.over or self._drained else "pass, but the output was not drained"
        if verdict == "panic":
            booting = self.log.reset and any(reading.armed is None for reading in self.sure())
            return "" if self.may_panic or booting else "panic, but no kernel panicked"
        if verdict == "fail":
            return "" if self.may_fail else "fail, but no fail pattern was written"
        if self.must_panic:
            return f"{verdict}, but the kernel panicked"
        if self.must_fail:
            return f"{verdict}, but {self.must_fail!r} was written"
        return f"{verdict}, but a success stands" if self.must_pass else ""
