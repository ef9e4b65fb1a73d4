"""What a person sees of a run.

On a terminal: a live line for each running case at the bottom, a result line for each finished one above it, what is known
about each case that did not pass, a summary. Elsewhere the same without the live lines, never wrapped, never coloured.

    pass         normal/smoke            plain              prepare 0.01 s   boot 3.91 s   command 0.62 s
    fail         normal/futex            c, miss            prepare 9.20 s   boot 3.88 s   command 0.71 s
                 matched the fail pattern '^FAIL'
                 > FAIL: woken 2 of 3
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from qcase import events
from qcase.model import Cache, CaseResult, Fault, LimitUse, Phase, SubtestStatus, Verdict
from qcase.report import ci

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text

_STYLES = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.PANIC: "bold magenta",
    Verdict.TIMEOUT: "bold yellow",
    Verdict.EXITED: "bold yellow",
    Verdict.BUILD_ERROR: "bold red",
    Verdict.SKIPPED: "cyan",
    Verdict.ERROR: "bold red",
}
_SUBTEST_STYLES = {
    SubtestStatus.PASS: "green",
    SubtestStatus.FAIL: "bold red",
    SubtestStatus.BROKEN: "bold yellow",
    SubtestStatus.NOT_RUN: "dim",
}
_WORD = 12  # columns of the verdict; the longest is `build-error`
_INDENT = " " * (_WORD + 1)
_CONSOLE_LINES = 12
_TIED = "\u00a0"  # a space at which a line is not broken
_SLOWEST = 3  # cases that the summary names


@dataclass
class _Running:
    case: str
    phase: Phase = Phase.PREPARE
    detail: str = ""
    line: str = ""
    began: float = field(default_factory=time.monotonic)


class TerminalReport:
    """Listens to events and writes for a person. `repeat(cases)` gives the command that runs just these cases again.

    `verbosity`: -1 only what did not pass, and the summary; 1 also why something is built, and what was skipped; 2 also phases,
    and what the guests say.
    """

    def __init__(self, stream: TextIO, repeat: Callable[[Sequence[str]], str], *, verbosity: int = 0) -> None:
        self._verbosity = verbosity
        self._folding = ci.detect()
        self._workspace = ""
        self._wanted = 0  # cases that are to run
        self._counts: Counter[str] = Counter()  # of those that have finished, by the word that they are shown with
        self._stream = stream
        self._repeat = repeat
        self._running: dict[str, _Running] = {}
        self._progress = ""
        self._faults: dict[str, str] = {}  # the first case that each fault of the machine was told of
        self._name_width = 0
        self._live: Live | None = None
        self._tty = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._console: Console | None = None
        if self._tty or os.environ.get("FORCE_COLOR"):
            from rich.console import Console  # 20 ms that a pipe does not need

            self._console = Console(file=stream, highlight=False, soft_wrap=not self._tty, emoji=False, markup=False)

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.RunStarted():
                self._start(event)
            case events.AccelChosen(accel, why):
                self._print(f"{_INDENT}accel auto: {accel}{', since ' + printable(why) if why else ''}", "dim")
            case events.CaseStarted(case):
                self._running[case] = _Running(case)
            case events.PhaseStarted(case, phase, detail):
                self._enter(case, phase, detail)
            case events.Missed(case, what, reasons):
                if self._verbosity > 0:
                    self._print(f"{_INDENT}{case}: {what} is built: {_in_one_line(reasons)}", "dim")
            case events.ConsoleLine(case, line):
                if case in self._running:
                    self._running[case].line = line
                if self._verbosity > 1:
                    self._print(f"{_INDENT}{case} | {printable(line)}", "dim")
                return  # live lines are drawn anew often enough
            case events.Retried(case, attempt, result):
                self._running[case] = _Running(case)
                self._print(f"{_INDENT}{case}: attempt {attempt} ended with {result.verdict}, another one begins", "yellow")
            case events.Progress(message):
                self._progress = message
                if not self._tty and self._verbosity >= 0:
                    self._print(f"{_INDENT}{message}", "dim")
            case events.Warned(message, case):
                self._print(f"{'warning':<{_WORD}} {case + ': ' if case else ''}{message}", "yellow")
            case events.CaseFinished(result):
                self._running.pop(result.label, None)
                self._progress = ""
                self._counts[_word(result)] += 1
                self._finish(result)
            case events.RunFinished():
                self.close()
                self._summary(event)
            case _:
                return
        self._refresh()

    def close(self) -> None:
        """Take the live lines away, however the run ended."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    # --- live lines ----------------------------------------------------------------------------------------------------

    def _start(self, event: events.RunStarted) -> None:
        self._name_width = max((len(case) for case in event.cases), default=0)
        self._workspace = event.workspace
        self._wanted = count = len(event.cases)
        shard = f", shard {event.shard} of the partition {event.partition}" if event.shard else ""
        if self._verbosity >= 0:
            what = f"{count} case{'' if count == 1 else 's'} on {event.arch}, target {event.target}, accel {event.accel}{shard}"
            self._print(what, "bold")
        if self._tty:
            from rich.live import Live

            self._live = Live(console=self._console, get_renderable=self._live_lines, refresh_per_second=8, transient=True)
            self._live.start()

    def _enter(self, case: str, phase: Phase, detail: str) -> None:
        running = self._running.get(case)
        if running is None:
            return
        running.phase, running.detail, running.line = phase, detail, ""
        if (detail and not self._tty and self._verbosity >= 0) or self._verbosity > 1:
            self._print(f"{_INDENT}{case}: {detail or phase}", "dim")

    def _live_lines(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        assert self._console is not None
        cases = list(self._running.values())  # other threads begin and end cases meanwhile
        room = max(self._console.height - 2, 1)
        shown = cases if len(cases) <= room else cases[: room - 1]
        width = min(max((len(running.case) for running in shown), default=0), self._console.width // 2)
        texts = []
        for running in shown:
            seconds = f"{time.monotonic() - running.began:.0f} s"
            said = running.line or running.detail or (self._progress if running.phase is Phase.PREPARE else "")
            texts.append(f"{running.phase:<{_WORD}} {running.case:<{width}}  {seconds:>5}  {printable(said)}")
        if len(shown) < len(cases):
            texts.append(f"{'':<{_WORD}} … and {len(cases) - len(shown)} more")
        if self._progress and not cases:
            texts.append(printable(self._progress))
        lines = [Text(text, style="cyan", no_wrap=True, overflow="ellipsis") for text in texts]
        if self._wanted > 1:
            lines.append(self._so_far())
        return Group(*lines)

    def _so_far(self) -> Text:
        """How many cases have finished, and how."""
        from rich.text import Text

        text = Text(f"{sum(self._counts.values())} of {self._wanted}", style="bold", no_wrap=True, overflow="ellipsis")
        for word, count in self._counts.items():
            text.append(f"  {count} {word}", style=_word_style(word))
        return text

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.refresh()

    # --- finished cases ------------------------------------------------------------------------------------------------

    def _finish(self, result: CaseResult) -> None:
        times = "   ".join(
            f"{name} {_seconds(value)}"
            for name, value in (("prepare", result.prepare), ("boot", result.boot), ("command", result.command))
            if value is not None
        )
        if result.verdict is Verdict.SKIPPED and self._verbosity < 1:
            return
        if result.passed and not result.flaky and self._verbosity < 0:
            return
        word = _word(result)
        verdict = (f"{word:<{_WORD}}", _word_style(word))
        made = _made(result)
        if self._width is not None and _WORD + 1 + self._name_width + 20 + 45 > self._width:
            self._print_parts(verdict, (f" {result.label}", ""))
            if made or times:
                tied = times.replace("   ", "\n").replace(" ", _TIED).replace("\n", "   ")  # a figure stays beside its name
                self._print(_INDENT + "  ".join(part for part in (made, tied) if part), "dim")
        else:
            facts = " " * (self._name_width - len(result.label)) + f"  {made:<15}  {times}"
            self._print_parts(verdict, (f" {result.label}", ""), (facts.rstrip(), "dim"))
        if self._verbosity > 0 and (booted := result.booted):
            flash = f", firmware {booted.firmware} ({(booted.firmware_sha256 or '')[:12]})" if booted.firmware else ""
            self._print(f"{_INDENT}kernel {booted.kernel} ({booted.kernel_sha256[:12]}), by {booted.accel}{flash}", "dim")
        for warning in result.warnings:
            self._print(f"{_INDENT}warning: {warning}", "yellow")
        for number, attempt in enumerate(result.earlier, 1):
            self._print(f"{_INDENT}attempt {number} of {len(result.earlier) + 1} ended with {attempt.verdict}:", "yellow")
            self._explain(attempt)
        if not result.passed:
            self._explain(result)
        if result.flaky or not (result.passed or result.verdict is Verdict.SKIPPED):
            self._folding.annotate(result, self._workspace, self._print_whole)

    def _explain(self, result: CaseResult) -> None:
        known = self._faults.setdefault(result.reason, result.label) if result.fault is Fault.INFRA else result.label
        if known != result.label:  # what is wrong with the machine is wrong for every case
            self._print(f"{_INDENT}the same as {known}", "dim")
            return
        with self._folding.verbatim(self._print_whole):
            self._say_why(result)
        tail = _squeezed(result.console_tail)[-_CONSOLE_LINES:]
        if result.verdict is Verdict.PANIC and result.details:
            tail = []  # its block is the last lines, most often
        if result.details or tail:
            with self._folding.fold(f"{result.label}: what it said last", self._print_whole):
                for line in result.details.splitlines():
                    self._print(f"{_INDENT}| {printable(line)}", "dim")
                if tail:
                    self._print(f"{_INDENT}the console's last lines:", "dim")
                for line in tail:
                    self._print(f"{_INDENT}| {printable(line)}", "dim")
        if result.console_log:
            self._print_whole(f"{_INDENT}all of it: {result.console_log}", "dim")

    def _say_why(self, result: CaseResult) -> None:
        for line in result.reason.splitlines():
            self._print(f"{_INDENT}{printable(line)}")
        if result.verdict is Verdict.TIMEOUT and len(result.limits) > 1:
            self._print(f"{_INDENT}limits: {', '.join(_used(use) for use in result.limits)}", "dim")
        for line in (result.excerpt or "").splitlines():
            self._print(f"{_INDENT}> {printable(line)}", "red")
        for subtest in result.subtests:
            took = f"  {_seconds(subtest.duration)}" if subtest.duration is not None else ""
            status = f" (status {subtest.exit_status})" if subtest.exit_status else ""
            why = f": {subtest.reason}" if subtest.reason else ""
            self._print(
                f"{_INDENT}{subtest.status:<8} {printable(subtest.name)}{status}{printable(why)}{took}",
                _SUBTEST_STYLES[subtest.status],
            )

    def _summary(self, event: events.RunFinished) -> None:
        counts = Counter(result.verdict for result in event.results)
        parts = [f"{counts[verdict]} {_SUMMARY_WORDS[verdict]}" for verdict in Verdict if counts[verdict]]
        count = len(event.results)
        if flaky := sum(result.flaky for result in event.results):
            parts[0] += f", {flaky} of them flaky"
        self._repetitions(event.results)
        if event.interrupted:
            self._print("interrupted; this had finished by then:", "bold yellow")
        good = not event.interrupted and all(result.passed for result in event.results)
        said = ", ".join(parts) or "nothing ran"
        slowest = sorted((r for r in event.results if r.total), key=lambda r: -r.total)[:_SLOWEST]
        if count > 2 * _SLOWEST and self._verbosity >= 0:
            named = (f"{r.label} {_seconds(r.total)}".replace(" ", _TIED) for r in slowest)
            self._print(f"slowest: {', '.join(named)}", "dim")
        self._print(
            f"{count} case{'' if count == 1 else 's'} in {_seconds(event.seconds)}: {said}",
            "bold green" if good else "bold red",
        )
        again = list(dict.fromkeys(r.case for r in event.results if not r.passed and r.verdict is not Verdict.SKIPPED))
        if again:
            whose = "failures" if any(r.fault is Fault.CASE for r in event.results) else "cases"
            self._print_whole(f"repeat just the {whose}: {self._repeat(again)}")

    def _repetitions(self, results: Sequence[CaseResult]) -> None:
        """How often each case that ran several times did not pass at its first attempt."""
        rows = events.flake_rates(results)
        if not rows:
            return
        width = max(len(row.case) for row in rows)
        self._print(f"{'':<{width}}  {'runs':>5}  {'failed':>6}  {'rate':>7}", "bold")
        for row in rows:
            style = "green" if row.failed == 0 else "bold red"
            self._print(f"{row.case:<{width}}  {row.runs:>5}  {row.failed:>6}  {row.rate:>7.1%}".replace("%", " %"), style)

    # --- output --------------------------------------------------------------------------------------------------------

    @property
    def _width(self) -> int | None:
        """The columns of the terminal; None where there is none."""
        return self._console.width if self._console is not None and self._tty else None

    def _print(self, line: str, style: str = "") -> None:
        """A line. On a terminal it is broken between words, and what follows stands below where it began."""
        if self._width is None or len(line) <= self._width // 2:  # no character is wider than two columns
            self._print_parts((line.replace(_TIED, " "), style))
            return
        from rich.text import Text

        assert self._console is not None
        margin = line[: len(line) - len(line.lstrip())]
        if line[len(margin) : len(margin) + 2] in ("| ", "> "):
            margin = line[: len(margin) + 2]
        for part in Text(line[len(margin) :]).wrap(self._console, max(self._width - len(margin), 20), tab_size=8):
            self._print_parts((margin + part.plain.rstrip().replace(_TIED, " "), style))

    def _print_whole(self, line: str, style: str = "") -> None:
        """A line that somebody will copy: only the terminal may break it."""
        self._print_parts((line, style))

    def _print_parts(self, *parts: tuple[str, str]) -> None:
        if self._console is None:
            self._stream.write("".join(text for text, _ in parts) + "\n")
            self._stream.flush()
            return
        from rich.text import Text

        self._console.print(Text.assemble(*parts), soft_wrap=True)


_SUMMARY_WORDS = {
    Verdict.PASS: "passed",
    Verdict.FAIL: "failed",
    Verdict.PANIC: "panicked",
    Verdict.TIMEOUT: "timed out",
    Verdict.EXITED: "exited early",
    Verdict.BUILD_ERROR: "did not build",
    Verdict.SKIPPED: "skipped",
    Verdict.ERROR: "in error",
}


def printable(text: str) -> str:
    """A guest's or a compiler's words without what would steer the terminal."""
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text)


def _squeezed(lines: Sequence[str]) -> list[str]:
    """Lines without runs of blank ones: firmware prints many."""
    return [line for line, before in zip(lines, ("", *lines), strict=False) if line.strip() or before.strip()]


def _made(result: CaseResult) -> str:
    if result.pipeline is None:
        return ""
    return result.pipeline.value if result.cache in (None, Cache.NONE) else f"{result.pipeline}, {result.cache}"


def _word(result: CaseResult) -> str:
    """What a case is shown with: its verdict, or that it is flaky."""
    return "flaky" if result.flaky else result.verdict.value


def _word_style(word: str) -> str:
    return "bold yellow" if word == "flaky" else _STYLES[Verdict(word)]


def _used(use: LimitUse) -> str:
    """`idle_timeout 5 of 5 s`, how near a limit came."""
    return f"{use.name} {min(use.used, use.limit):.3g} of {use.limit:g} s"


def _seconds(value: float) -> str:
    """`0.004 s`, `3.91 s`, `74.2 s`, `3 min 20 s`."""
    if value < 0.1:
        return f"{value:.3f} s"
    if value < 10:
        return f"{value:.2f} s"
    if value < 100:
        return f"{value:.1f} s"
    return f"{int(value) // 60} min {int(value) % 60} s"


def print_error(error: Exception, stream: TextIO | None = None) -> None:
    """One clear error: what, where, what to do."""
    from rich.console import Console
    from rich.text import Text

    stream = stream or sys.stderr
    console = Console(file=stream, highlight=False, emoji=False, markup=False)
    text = Text("error: ", style="bold red")
    text.append(str(error), style="not bold default")
    # On a terminal lines are broken between words; elsewhere not at all, for whoever looks for something in them.
    whole = not stream.isatty()
    console.print(text, soft_wrap=whole)
    hint = getattr(error, "hint", "")
    if hint:
        console.print(Text(f"hint: {hint}", style="cyan"), soft_wrap=whole)


def _in_one_line(reasons: Sequence[str]) -> str:
    """The first reasons, and how many more there are."""
    shown = "; ".join(printable(reason) for reason in reasons[:3])
    return f"{shown}; {len(reasons) - 3} more" if len(reasons) > 3 else shown
