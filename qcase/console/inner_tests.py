"""The tests inside a case's command, as its console shows them: rows go to a reader, the reader's account becomes a ruling.

    final rows without kernel lines and echo ─► Reader ─► tests, faults ─► pass or fail, once the command has ended

Rows can still change: echo may be found late, and a cursor may go up. So the rows in the window of patterns are kept. They are
read again from a copy of the reader that has seen only the rows before them.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from qcase.config.patterns import compile_pattern
from qcase.console.joined import KERNEL_LINE, UNARMED
from qcase.console.readings import Readings
from qcase.console.rules import Rules, Ruling
from qcase.console.text import NOWHERE, Text
from qcase.console.transcript import Transcript
from qcase.model import Phase, SubtestResult, Verdict
from qcase.results.dialects import reader_of
from qcase.results.reader import BAD, Reader

AT_PROMPT: Final = 2.0  # seconds of silence at the prompt after which results that are not complete fail the case
COMPLETE: Final = 0.5  # the same for complete results, also of a case that types no command
_KEPT: Final = 50_000  # maximum number of rows that can still change
_NAMED: Final = 5  # failed tests that a reason names
_AGAIN: Final = 20  # share of the time that reading rows again may take
_PROMPT_REST: Final = re.compile(rb"[^\s]{0,64}[ \t]*")
_STAMP: Final = re.compile(r"(?:<\d>)?\[ *\d+\.\d+[^\]]{0,200}\] ?")
_NO_TEXT: Final = (b"\0", UNARMED, b"\2")  # stand for echo, for text that does not count, for text that echo tore


class _Rows:
    """The whole rows of one reading, from a position on, each with the time at which it came."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._from = self._to = 0
        self.kept: deque[tuple[int, str, float]] = deque()  # rows that can still change, by their starts

    def begin(self) -> None:
        """Let only the rows from here on count."""
        self._from = self._to = self._text.line_start
        self.kept.clear()

    def take(self, now: float) -> tuple[list[tuple[str, float]], bool]:
        """Return the new rows, and whether rows before them have changed since."""
        text = self._text
        changed = text.undone < self._to
        if changed:
            self._to = max(text.undone, self._from)
            while self.kept and self.kept[-1][0] >= self._to:
                self.kept.pop()
        text.undone = NOWHERE
        start = max(self._to, text.base)
        new = []
        if start < text.line_start:
            block = text.view_slice(start, text.line_start)
            marked = any(mark in block for mark in _NO_TEXT)
            for row in block[:-1].split(b"\n"):
                shown = "" if marked and any(mark in row for mark in _NO_TEXT) else row.decode(errors="replace")
                self.kept.append((start, shown, now))
                new.append((shown, now))
                start += len(row) + 1
        self._to = max(self._to, text.line_start)
        return new, changed

    def settled(self) -> Iterator[tuple[str, float]]:
        """Remove and return the rows that no longer change."""
        while self.kept and (self.kept[0][0] < self._text.base or len(self.kept) > _KEPT):
            _, row, at = self.kept.popleft()
            yield row, at


class InnerTests:
    """Inner tests of one case. Does nothing where the rules name no dialect of results."""

    def __init__(self, rules: Rules, transcript: Transcript) -> None:
        self.wanted = bool(rules.results)
        self.over = False  # QEMU has ended
        self._waits = bool(rules.exits)  # nothing is ruled before that
        self._transcript = transcript
        self._prompt = (rules.prompt or "").encode()
        self._typed = rules.command is not None
        self._begun_at: int | None = None if self._typed else 0  # end of the console when the command was typed
        self._last: Ruling | None = None
        self._told = 0  # number of tests that `finished` has returned
        self._behind = False  # rows have changed and were not read again
        self._again_at = 0.0
        self._rest = ""  # the row that the prompt ended behind a kernel's line
        self._looked = float("-inf")  # time of the last call of `ruling`
        if self.wanted:
            compiled = {key: compile_pattern(pattern) for key, pattern in rules.markers}
            self._reader = reader_of(rules.results, compiled)
            self._settled, self._fresh = self._reader.copy(), self._reader.copy()
            self._rows = self._sources(transcript.readings, self._reader)

    @staticmethod
    def _sources(readings: Readings, reader: Reader) -> list[tuple[_Rows, bool]]:
        """Return the rows to read, each with whether the kernel's lines are among them."""
        rows = [(_Rows(readings.shown_joined.text), False)]
        return [*rows, (_Rows(readings.shown), True)] if reader.reads_kernel else rows

    # --- input from the judge ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Record that the command was typed: output counts from here on."""
        if self.wanted:
            self._begun_at = self._transcript.written.end
            for rows, _ in self._rows:
                rows.begin()

    def take(self, now: float) -> None:
        """Read the new rows."""
        if not self.wanted or self._begun_at is None:
            return
        for rows, kernels in self._rows:
            for row, at in rows.settled():
                _read(self._settled, row, at, kernels=kernels)
            new, changed = rows.take(now)
            self._behind = self._behind or changed or bool(new and self._rest)
            self._rest = "" if new else self._rest
            if not self._behind:
                for row, at in new:
                    _read(self._reader, row, at, kernels=kernels)
        if self._behind and now >= self._again_at:
            self._read_again(now)

    def _read_again(self, now: float) -> None:
        self._reader = self._settled.copy()
        count = 0
        for rows, kernels in self._rows:
            count += len(rows.kept)
            for _, row, at in rows.kept:
                _read(self._reader, row, at, kernels=kernels)
        if self._rest:
            _read(self._reader, self._rest, now, kernels=False)
        self._behind = False
        self._again_at = now + count * _AGAIN / 500_000  # about 500,000 rows a second

    # --- queries -------------------------------------------------------------------------------------------------------

    def finished(self) -> list[SubtestResult]:
        """Return the tests that ended since the last call. Results that were taken back are not told again."""
        if not self.wanted or self._behind:
            return []
        listed = self._reader.listed()
        new = listed[self._told :]
        self._told = max(self._told, len(listed))
        return new

    def results(self) -> tuple[SubtestResult, ...]:
        """Return all tests, also those that did not end, and those that a plan promised."""
        if not self.wanted:
            return ()
        self._up_to_date()
        return (*self._reader.listed(), *self._reader.open_tests())

    @property
    def began(self) -> bool:
        """Tell whether a result of a test came, or a test began."""
        if not self.wanted:
            return False
        self._up_to_date()
        return bool(self._reader.counted() or self._reader.running)

    @property
    def end(self) -> int:
        """The position in the written text of the prompt behind the tests; -1 if it did not come."""
        written = self._transcript.written
        at = written.slice(self._begun_at or 0, written.end).rfind(b"\n" + self._prompt) if self._prompt else -1
        return -1 if at < 0 else max(self._begun_at or 0, written.base) + at + 1

    def progress(self) -> str:
        """Return what is known of results that are not complete, in words."""
        if not self.wanted:
            return ""
        self._up_to_date()
        ended = sum(self._reader.counted().values())
        faults = "; ".join(fault.what for fault in self._reader.faults()[:_NAMED])
        parts = [f"{ended} test{'' if ended == 1 else 's'} ended"]
        if failed := self._failed():
            parts.append(failed)
        if self._reader.running:
            parts.append(f"{self._reader.running} was running")
        return "; ".join([*parts, *([faults] if faults else [])])

    def next_wake(self, last_data: float) -> float | None:
        """Return the time at which silence decides, if nothing comes before it; None if it will not."""
        if not self.wanted or self._begun_at is None or self._looked >= last_data + AT_PROMPT:
            return None
        return last_data + (AT_PROMPT if self._looked >= last_data + COMPLETE else COMPLETE)

    def ruling(self, now: float, last_data: float, *, typed: bool, lacks: str) -> Ruling | None:
        """Rule on the results if the command has ended, else return None.

        `last_data`: time of the last byte. `typed`: the whole command was typed. `lacks`: a pattern that has to match besides and
        did not.
        """
        if not self.wanted or self._begun_at is None:
            return None
        self._looked = now
        self.take(now)
        settles = self._last is not None and self._last.good
        self._up_to_date()
        reader = self._reader
        if self._waits and not self.over:
            return None
        if self.over:
            return self._judged(lacks) if reader.finished else None
        if not self._typed:
            return self._judged(lacks) if reader.finished and now >= last_data + COMPLETE else None
        if settles and reader.finished:  # a daemon may have written behind the prompt
            return self._judged(lacks)
        if not typed or now < last_data + COMPLETE:
            return None
        if not self._back_at_prompt():
            # A daemon, or a kernel without time stamps, may have written behind the prompt, which does not come again.
            over = reader.finished and now >= last_data + AT_PROMPT and self._prompt_came()
            return self._judged(lacks) if over else None
        self._end_torn_row(now)
        return self._judged(lacks) if self._reader.finished or now >= last_data + AT_PROMPT else None

    def is_own(self, ruling: Ruling | None) -> bool:
        """Tell whether a ruling is the last one by the results."""
        return ruling is not None and ruling is self._last

    def _up_to_date(self) -> None:
        if self._behind:
            self._read_again(0.0)

    def _judged(self, lacks: str) -> Ruling:
        faults = self._reader.faults()
        if skipped := self._reader.all_skipped():
            self._last = Ruling(Verdict.SKIPPED, skipped, Phase.COMMAND)
            return self._last
        reasons = [fault.what for fault in faults]
        line = next((fault.line for fault in faults if fault.line), None)
        if failed := self._failed():
            reasons.insert(0, failed)
        if lacks and not reasons:
            reasons.append(f"the tests passed, and {lacks!r} did not match")
        if not reasons:
            self._last = Ruling(Verdict.PASS, "", Phase.COMMAND)
        else:
            by_tests = bool(failed) and not faults and not lacks
            self._last = Ruling(Verdict.FAIL, "; ".join(reasons), Phase.COMMAND, excerpt=line, by_tests=by_tests)
        return self._last

    def _failed(self) -> str:
        """Return which tests failed, in words; empty if none did."""
        counts = self._reader.counted()
        if not any(counts.get(status, 0) for status in BAD):
            return ""
        return told_failed(self._reader.listed(), sum(counts.values()))

    def _end_torn_row(self, now: float) -> None:
        """Read the row that a kernel's line tore and that has no other end than the prompt."""
        torn = self._transcript.readings.shown_joined.carry
        rest = "" if torn.startswith(self._prompt) or any(mark in torn for mark in _NO_TEXT) else torn.decode(errors="replace")
        if rest != self._rest:
            self._rest = rest
            self._read_again(now)

    def _prompt_came(self) -> bool:
        """Tell whether a row behind the command's own row begins with the prompt, and no line of results came behind it."""
        written = self._transcript.written
        if not self._prompt or self._begun_at is None:
            return False
        _, prompt, behind = written.slice(self._begun_at, written.end).rpartition(b"\n" + self._prompt)
        reader = self._fresh.copy()
        for row in behind.decode(errors="replace").split("\n"):
            for _, kernels in self._rows:
                _read(reader, row.rstrip("\r"), 0.0, kernels=kernels)
        return bool(prompt) and not reader.begun

    def _back_at_prompt(self) -> bool:
        """Tell whether the shell waits for input: its prompt stands alone on a row that began behind the command's own row."""
        transcript, written = self._transcript, self._transcript.written
        if not self._prompt or self._begun_at is None or written.line_start <= self._begun_at:
            return False
        row = transcript.open_row()[0]
        joined = transcript.readings.shown_joined.open_line(row)  # a kernel's line may stand behind the prompt
        for line in (row, joined):
            at = line.rfind(self._prompt)
            if at == 0 and _PROMPT_REST.fullmatch(line, len(self._prompt)):
                return transcript.at_row_end or line is joined
        return False


def told_failed(tests: Sequence[SubtestResult], count: int) -> str:
    """Return which of `count` tests failed, in words."""
    names = [one.name for one in tests if one.status in BAD]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} of {count} tests failed: {', '.join(names[:_NAMED])}{more}"


def _read(reader: Reader, row: str, at: float, *, kernels: bool) -> None:
    if not kernels:
        reader.take(row, at)
        return
    found = KERNEL_LINE.search(row.encode()) if "[" in row else None
    if found is None:
        reader.take_kernel(row, at, stamped=False)
    else:
        reader.take_kernel(_STAMP.sub("", found[0].decode(errors="replace"), count=1), at, stamped=True)
