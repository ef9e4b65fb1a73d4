"""The terminal report of a run.

On a terminal: a live line for each running case at the bottom, a result line for each finished one above it, the details of each
case that did not pass, a summary. Elsewhere the same without the live lines, never wrapped, never coloured.

    pass         normal/smoke            plain              prepare 0.01 s   boot 3.91 s   command 0.62 s
    fail         normal/futex            c, miss            prepare 9.20 s   boot 3.88 s   command 0.71 s
                 matched the fail pattern '^FAIL'
                 > FAIL: woken 2 of 3
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from qcase import events
from qcase.arch import Arch
from qcase.model import Cache, CaseResult, Fault, KernelBuildResult, LimitUse, Phase, SubtestResult, SubtestStatus, Verdict
from qcase.report import ci, inert, kernel_lines, left_out
from qcase.text import seconds, without_controls

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.text import Text


_STYLES = {
    Verdict.PASS: "green",
    Verdict.KNOWN_FAIL: "yellow",
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
    SubtestStatus.KNOWN_FAIL: "yellow",
    SubtestStatus.SKIP: "cyan",
    SubtestStatus.TODO: "cyan",
    SubtestStatus.BROKEN: "bold yellow",
    SubtestStatus.NOT_RUN: "dim",
}
_WORD = 12  # columns of the verdict; the longest is `build-error`
_INDENT = " " * (_WORD + 1)
_CONSOLE_LINES = 12
_BLOCK_LINES = 20  # lines shown of a kernel's report
_BLOCK_TAIL = 4  # of these, lines from its end
_SUBTEST_LINES = 12
_STATUS = 8  # columns of a subtest's status at least
_ALL_SUBTESTS = 20  # maximum number of subtests that are all listed; of more, those that passed or did not run are counted
_MANY_SUBTESTS = 50  # maximum number of further subtests that are listed
_TIED = "\u00a0"  # a space at which no line is broken
_KERNEL = "\0"  # before the names of kernels, among those of cases
_SLOWEST = 3  # number of cases that the summary names


@dataclass
class _Running:
    case: str
    phase: Phase = Phase.PREPARE
    detail: str = ""
    line: str = ""
    began: float = field(default_factory=time.monotonic)


class TerminalReport:
    """Listens to events and writes for a person. `repeat(cases, arch)` returns the command that runs just these cases again.

    `verbosity`: -1 only cases that did not pass, and the summary; 1 also reasons for builds, and skipped cases; 2 also phases,
    and the guests' output.
    """

    def __init__(self, stream: TextIO, repeat: Callable[[Sequence[str], Arch], str], *, verbosity: int = 0) -> None:
        self._verbosity = verbosity
        self._folding = ci.detect()
        self._workspace = ""
        self._wanted = 0  # number of cases to run
        self._counts: Counter[str] = Counter()  # number of finished cases by displayed word
        self._stream = stream = inert.stream(stream)
        self._repeat = repeat
        self._running: dict[str, _Running] = {}
        self._progress = ""
        self._waits: set[str] = set()  # what a case was said to wait for: each is said once
        self._faults: dict[str, str] = {}  # for each fault of the machine, the first case that reported it
        self._name_width = 0
        self._live: Live | None = None
        self._tty = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._console: Console | None = None
        if self._tty or os.environ.get("FORCE_COLOR"):
            from rich.console import Console  # the import takes 20 ms, which output to a pipe does not need

            self._console = Console(file=stream, highlight=False, soft_wrap=not self._tty, emoji=False, markup=False)

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.RunStarted():
                self._start(event)
            case events.AccelChosen(accel, why):
                self._print(f"{_INDENT}accel auto: {accel}{', since ' + without_controls(why) if why else ''}", "dim")
            case events.CaseStarted(case):
                self._running[case] = _Running(case)
            case events.PhaseStarted(case, phase, detail):
                self._enter(case, phase, detail)
            case events.Missed(case, what, reasons):
                if self._verbosity > 0:
                    self._print(f"{_INDENT}{case}: {without_controls(what)} is built: {_in_one_line(reasons)}", "dim")
            case events.KernelBuildStarted(kernel):
                self._build(kernel)
            case events.KernelBuildFinished(build):
                self._built(build)
            case events.ConsoleLine(case, line):
                if case in self._running:
                    self._running[case].line = line
                if self._verbosity > 1:
                    self._print(f"{_INDENT}{case} | {without_controls(line)}", "dim")
                return  # live lines are redrawn often enough
            case events.Retried(case, attempt, result):
                self._running[case] = _Running(case)
                self._print(f"{_INDENT}{case}: attempt {attempt} ended with {result.verdict}, another one begins", "yellow")
            case events.Progress(message):
                self._progress = message
                if not self._tty and self._verbosity >= 0:
                    self._print(f"{_INDENT}{without_controls(message)}", "dim")
            case events.Warned(message, case):
                self._print(f"{'warning':<{_WORD}} {case + ': ' if case else ''}{without_controls(message)}", "yellow")
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
        """Remove the live lines, however the run ended."""
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
            where = ", ".join(f"{arch}, target {target}" for arch, target in event.every)
            what = f"{count} case{'' if count == 1 else 's'} on {where}, accel {event.accel}{shard}"
            self._print(what, "bold")
            for line in left_out.lines(event.not_run, everything=self._verbosity > 0):
                self._print(f"{_INDENT}{line}", "dim")
        if self._tty:
            from rich.live import Live

            self._live = Live(console=self._console, get_renderable=self._live_lines, refresh_per_second=8, transient=True)
            self._live.start()

    def _enter(self, case: str, phase: Phase, detail: str) -> None:
        running = self._running.get(case)
        if running is None:
            return
        running.phase, running.detail, running.line = phase, detail, ""
        told = detail in self._waits
        if detail.startswith("waiting for "):
            self._waits.add(detail)
        if (detail and not told and not self._tty and self._verbosity >= 0) or self._verbosity > 1:
            self._print(f"{_INDENT}{case}: {without_controls(detail or phase)}", "dim")

    def _build(self, kernel: str) -> None:
        self._running[f"{_KERNEL}{kernel}"] = _Running(f"the kernel of {kernel}")
        if not self._tty and self._verbosity >= 0:
            self._print(f"{_INDENT}building the kernel of {kernel}", "dim")

    def _built(self, build: KernelBuildResult) -> None:
        self._running.pop(f"{_KERNEL}{build.label}", None)
        if build.error or self._verbosity >= 0:
            self._print_parts(*kernel_lines.head(build, _WORD, self._name_width))
            with self._folding.verbatim(self._command):
                for line, style in kernel_lines.rest(build, everything=self._verbosity > 0):
                    self._print(f"{_INDENT}{line}", style)

    def _live_lines(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        assert self._console is not None
        cases = list(self._running.values())  # other threads add and remove cases meanwhile
        room = max(self._console.height - 2, 1)
        shown = cases if len(cases) <= room else cases[: room - 1]
        width = min(max((len(running.case) for running in shown), default=0), self._console.width // 2)
        texts = []
        for running in shown:
            passed = f"{time.monotonic() - running.began:.0f} s"
            said = running.line or running.detail or (self._progress if running.phase is Phase.PREPARE else "")
            texts.append(f"{running.phase:<{_WORD}} {running.case:<{width}}  {passed:>5}  {without_controls(said)}")
        if len(shown) < len(cases):
            texts.append(f"{'':<{_WORD}} … and {len(cases) - len(shown)} more")
        if self._progress and not cases:
            texts.append(without_controls(self._progress))
        lines = [Text(text, style="cyan", no_wrap=True, overflow="ellipsis") for text in texts]
        if self._wanted > 1:
            lines.append(self._so_far())
        return Group(*lines)

    def _so_far(self) -> Text:
        """Return the line with the number of finished cases, by result."""
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
            f"{name} {seconds(value)}"
            for name, value in (("prepare", result.prepare), ("boot", result.boot), ("command", result.command))
            if value is not None
        )
        if result.verdict is Verdict.SKIPPED and not result.red and self._verbosity < (1 if result.phase is None else 0):
            return
        if not (result.red or result.flaky or result.kernel_trouble or result.stale) and self._verbosity < 0:
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
        if self._verbosity > 1 and result.booted and (origin := result.booted.origin):
            self._print(f"{_INDENT}{without_controls(origin)}", "dim")
        if not result.red and any(one.status is not SubtestStatus.PASS for one in result.subtests):
            self._print(f"{_INDENT}{_by_status(result.subtests)}", "dim")
        self._warn(result)
        for number, attempt in enumerate(result.earlier, 1):
            self._print(f"{_INDENT}attempt {number} of {len(result.earlier) + 1} ended with {attempt.verdict}:", "yellow")
            self._warn(attempt, seen=result)
            self._explain(attempt)
        for known in result.known:
            self._print(f"{_INDENT}known: {without_controls(known.told)}", "yellow")
        if result.red or (result.verdict is Verdict.KNOWN_FAIL and self._verbosity > 0):
            self._explain(result)
        elif not result.passed:
            self._print(f"{_INDENT}{without_controls(result.reason.partition(chr(10))[0])}", "dim")
        if result.red or ci.worth_a_note(result):
            self._folding.annotate(result, self._workspace, self._command)

    def _warn(self, result: CaseResult, seen: CaseResult | None = None) -> None:
        """Print the warnings of an attempt, except the file's warnings, which the last attempt repeats."""
        known = seen.warnings if seen else ()
        for warning in result.warnings:
            if warning not in known:
                self._print(f"{_INDENT}warning: {without_controls(warning)}", "yellow")
        for trouble in result.kernel_trouble:
            with self._folding.verbatim(self._command):
                self._print(f"{_INDENT}warning: {without_controls(trouble.told)}", "yellow")
                self._block(trouble.block, result)

    def _block(self, block: Sequence[str], result: CaseResult) -> None:
        """Print the lines of a kernel's report. The middle of a long one is printed only with `verbosity` above 0."""
        whole = len(block) <= _BLOCK_LINES or self._verbosity > 0
        head, tail = (block, ()) if whole else (block[: _BLOCK_LINES - _BLOCK_TAIL], block[-_BLOCK_TAIL:])
        if len(block) == 1:
            return  # the warning has the same text
        for line in head:
            self._print(f"{_INDENT}| {without_controls(line)}", "dim")
        if tail:
            where = f", all of them in {result.console_log}" if result.console_log else ""
            self._print(f"{_INDENT}  {len(block) - _BLOCK_LINES} more lines{where}", "dim")
        for line in tail:
            self._print(f"{_INDENT}| {without_controls(line)}", "dim")

    def _explain(self, result: CaseResult) -> None:
        known = self._faults.setdefault(result.reason, result.label) if result.fault is Fault.INFRA else result.label
        if known != result.label:  # a fault of the machine affects every case
            self._print(f"{_INDENT}the same as {known}", "dim")
            return
        with self._folding.verbatim(self._command):
            self._say_why(result)
        tail = _squeezed(result.console_tail)[-_CONSOLE_LINES:]
        if result.verdict is Verdict.PANIC and result.details:
            tail = []  # the block is usually the same as the last lines
        if result.details or tail:
            with self._folding.fold(f"{result.label}: what it said last", self._command):
                for line in result.details.splitlines():
                    self._print(f"{_INDENT}| {without_controls(line)}", "dim")
                if tail:
                    self._print(f"{_INDENT}the console's last lines:", "dim")
                for line in tail:
                    self._print(f"{_INDENT}| {without_controls(line)}", "dim")
        if result.console_log:
            self._print_whole(f"{_INDENT}all of it: {result.console_log}", "dim")

    def _say_why(self, result: CaseResult) -> None:
        for line in result.reason.splitlines():
            self._print(f"{_INDENT}{without_controls(line)}")
        if result.verdict is Verdict.TIMEOUT and len(result.limits) > 1:
            self._print(f"{_INDENT}limits: {', '.join(_used(use) for use in result.limits)}", "dim")
        for line in (result.excerpt or "").splitlines():
            self._print(f"{_INDENT}> {without_controls(line)}", "red")
        listed = self._listed(result)
        width = max([_STATUS, *(len(subtest.status) for subtest in listed)])
        for subtest in listed:
            took = f"  {seconds(subtest.duration)}" if subtest.duration is not None else ""
            status = f" (status {subtest.exit_status})" if subtest.exit_status else ""
            why = f": {subtest.reason}" if subtest.reason else ""
            self._print(
                f"{_INDENT}{subtest.status:<{width}} {without_controls(subtest.name)}{status}{without_controls(why)}{took}",
                _SUBTEST_STYLES[subtest.status],
            )
            for line in _squeezed(subtest.output)[-_SUBTEST_LINES:]:
                self._print(f"{_INDENT}{'':<{width}} | {without_controls(line)}", "dim")

    def _listed(self, result: CaseResult) -> Sequence[SubtestResult]:
        """Print how many subtests there are of each status if they are many, and return those to list."""
        subtests = result.subtests
        if len(subtests) <= _ALL_SUBTESTS:
            return subtests
        self._print(f"{_INDENT}{_by_status(subtests)}")
        untold = (SubtestStatus.PASS, SubtestStatus.NOT_RUN, *(() if self._verbosity > 0 else (SubtestStatus.KNOWN_FAIL,)))
        telling = [one for one in subtests if one.status not in untold]
        if len(telling) > _MANY_SUBTESTS:
            self._print(f"{_INDENT}the first {_MANY_SUBTESTS} that did not pass; a report has all (--json, --html)", "dim")
        return telling[:_MANY_SUBTESTS]

    def _summary(self, event: events.RunFinished) -> None:
        counts = Counter(result.verdict for result in event.results)
        parts = [f"{counts[verdict]} {_SUMMARY_WORDS[verdict]}" for verdict in Verdict if counts[verdict]]
        count = len(event.results)
        if flaky := sum(result.flaky for result in event.results):
            parts[0] += f", {flaky} of them flaky"
        if trouble := sum(bool(result.kernel_trouble) for result in event.results):
            parts.append(f"{trouble} with kernel trouble")
        self._repetitions(event.results)
        if event.interrupted:
            missing = self._wanted - len(event.results)
            left = f"; {missing} of {self._wanted} did not end" if missing > 0 else ""
            self._print(f"interrupted{left}; this had finished by then:", "bold yellow")
        good = not event.interrupted and not any(result.red for result in event.results)
        tested = any(result.verdict is not Verdict.SKIPPED for result in event.results) or not event.results
        said = ", ".join(parts) or "nothing ran"
        slowest = sorted((r for r in event.results if r.total), key=lambda r: -r.total)[:_SLOWEST]
        if count > 2 * _SLOWEST and self._verbosity >= 0:
            named = (f"{r.label} {seconds(r.total)}".replace(" ", _TIED) for r in slowest)
            self._print(f"slowest: {', '.join(named)}", "dim")
        self._print(
            f"{count} case{'' if count == 1 else 's'} in {seconds(event.seconds)}: {said}",
            ("bold green" if tested else "bold yellow") if good else "bold red",
        )
        if not tested:
            self._print(f"nothing was tested: {'all cases were' if count > 1 else 'the case was'} skipped", "bold yellow")
        for told in events.stale(event.results):
            self._print(f"a known failure passes now: {without_controls(told)}", "bold yellow")
        again: dict[Arch, list[str]] = {}
        for result in event.results:
            if result.red and result.verdict is not Verdict.SKIPPED:
                again.setdefault(result.arch, []).append(result.case)
        whose = "failures" if any(r.fault is Fault.CASE for r in event.results) else "cases"
        for arch, cases in again.items():
            self._print_whole(f"repeat just the {whose}: {self._repeat(list(dict.fromkeys(cases)), arch)}")

    def _repetitions(self, results: Sequence[CaseResult]) -> None:
        """Print for each case that ran several times how often it did not pass at its first attempt."""
        rows = events.flake_rates(results)
        if not rows:
            return
        width = max(len(row.case) for row in rows)
        known = any(row.known for row in rows)
        self._print(f"{'':<{width}}  {'runs':>5}  {'failed':>6}  {'rate':>7}{'  known' if known else ''}", "bold")
        for row in rows:
            style = "green" if row.failed == 0 else "bold red"
            rate = f"{row.rate:>7.1%}".replace("%", " %") + (f"  {row.known:>5}" if known else "")
            self._print(f"{row.case:<{width}}  {row.runs:>5}  {row.failed:>6}  {rate}", style)

    # --- output --------------------------------------------------------------------------------------------------------

    @property
    def _width(self) -> int | None:
        """Columns of the terminal; None without a terminal."""
        return self._console.width if self._console is not None and self._tty else None

    def _print(self, line: str, style: str = "") -> None:
        """Print a line. On a terminal it is wrapped between words, and the rest is indented like its start."""
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
        """Print a line that a person will copy: only the terminal may wrap it."""
        self._print_parts((line, style))

    def _command(self, line: str) -> None:
        """Write a command line for the CI service."""
        inert.command(self._stream, line)

    def _print_parts(self, *parts: tuple[str, str]) -> None:
        if self._console is None:
            self._stream.write("".join(text for text, _ in parts) + "\n")
            self._stream.flush()
            return
        from rich.text import Text

        self._console.print(Text.assemble(*parts), soft_wrap=True)


_SUMMARY_WORDS = {
    Verdict.PASS: "passed",
    Verdict.KNOWN_FAIL: "known to fail",
    Verdict.FAIL: "failed",
    Verdict.PANIC: "panicked",
    Verdict.TIMEOUT: "timed out",
    Verdict.EXITED: "exited early",
    Verdict.BUILD_ERROR: "did not build",
    Verdict.SKIPPED: "skipped",
    Verdict.ERROR: "in error",
}


def _by_status(subtests: Sequence[SubtestResult]) -> str:
    """Return the number of subtests of each status, such as `12 subtests: 10 pass, 2 skip`."""
    counts = Counter(one.status for one in subtests)
    parts = ", ".join(f"{counts[status]} {status}" for status in SubtestStatus if counts[status])
    return f"{len(subtests)} subtests: {parts}"


def _squeezed(lines: Sequence[str]) -> list[str]:
    """Return lines without repeated blank lines: firmware prints many."""
    return [line for line, before in zip(lines, ("", *lines), strict=False) if line.strip() or before.strip()]


def _made(result: CaseResult) -> str:
    if result.pipeline is None:
        return ""
    return result.pipeline.value if result.cache in (None, Cache.NONE) else f"{result.pipeline}, {result.cache}"


def _word(result: CaseResult) -> str:
    """Return the displayed word of a case: its verdict, or `flaky`."""
    return "flaky" if result.flaky else result.verdict.value


def _word_style(word: str) -> str:
    return "bold yellow" if word == "flaky" else _STYLES[Verdict(word)]


def _used(use: LimitUse) -> str:
    """Return the used part of a limit, such as `idle_timeout 5 of 5 s`."""
    return f"{use.name} {min(use.used, use.limit):.3g} of {use.limit:g} s"


def _in_one_line(reasons: Sequence[str]) -> str:
    """Return the first three reasons, and the number of the others."""
    shown = "; ".join(without_controls(reason) for reason in reasons[:3])
    return f"{shown}; {len(reasons) - 3} more" if len(reasons) > 3 else shown
