"""A grouped case on the console: takes whole lines, returns the results of single commands and the keys to type for the group.

Where qcase asked the group's script to ask for a word, the script's lines are those that contain the word (drawn in
`qcase.pipelines.group_commands`), and markers mean nothing. Where a suite calls its runner in a way of its own, markers are read
as they come, and each marker is believed only as far as it fits the sequence.

The word is typed in answer to the script's question and never after a command has begun: a program could ask, too. If the guest
is back at its prompt although the group has not ended, something may have killed the script. A program can print a prompt, so
qcase types a line that makes a shell report whether the script still exists:

    kill -CONT PID 2>/dev/null || echo <runner_name>: g''one

This module knows no patterns and no time limits: the judge feeds lines and matches, and asks for results.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field, replace

from qcase.console.joined import KERNEL_LINE
from qcase.model import SubtestResult, SubtestStatus

OUTPUT_LINES = 20  # last lines of a command's output kept for the report
OUTPUT_LINE = 240  # characters of such a line
_MARKER_MAX = 1 << 16  # maximum bytes of a line that may be a group's marker
_ANSWERS = 5  # maximum answers with the word; twice seven characters fit into a UART's FIFO
PROBE_DELAY = 0.5  # seconds from a prompt to the line that asks for the script
_PROBES = 3  # maximum number of such lines
_UNFINISHED = "began and did not end"
_ENDED_SCRIPT = "it ended the group's script"


@dataclass(frozen=True)
class Group:
    """The markers of a grouped case and the labels of its commands, in the order in which the script runs them.

    `names`: the names of the commands in reports, each one unique; the labels, unless given. `runner`: the script's name. `word`:
    the secret for a script that asks; empty for a script that does not ask. `skips`: the statuses by which a command says that it
    was skipped.
    """

    begin: str
    passed: str
    failed: str
    all_passed: str
    all_failed: str
    commands: tuple[str, ...]
    labels: tuple[str, ...]
    names: tuple[str, ...] = ()
    runner: str = ""
    word: str = ""
    skips: tuple[int, ...] = ()


@dataclass(frozen=True)
class End:
    """End of a group's script. `line`: its last marker. `broken_off`: the reason why it did not reach its end, else empty."""

    line: str = ""
    said_passed: bool = False
    broken_off: str = ""


@dataclass
class _Subtest:
    name: str
    label: str
    command: str
    began: float | None = None
    span: tuple[int, int | None] | None = None  # start and end of its output in the text
    result: SubtestResult | None = None
    blamed: str = ""  # the reason why it failed whatever its status
    excerpt: str = ""  # the text that a fail pattern matched
    output: deque[str] = field(default_factory=lambda: deque(maxlen=OUTPUT_LINES + 1))  # the last one is usually blank

    def said(self, rest: str) -> tuple[str, ...]:
        """Return the last lines of its output, preceded by the line for which it is blamed if that line is further up."""
        lines = [*self.output, rest] if rest.strip() else list(self.output)
        while lines and not lines[-1].strip():
            lines.pop()
        while lines and not lines[0].strip():
            del lines[0]
        above = [line[:OUTPUT_LINE] for line in self.excerpt.splitlines()]
        seen = all(any(shown.startswith(line) for shown in lines) for line in above)  # it may have matched before its line ended
        return tuple(lines[-OUTPUT_LINES:]) if seen else (*above, "…", *lines[-OUTPUT_LINES:])

    def outcome(self, broken: str, rest: str) -> SubtestResult:
        """Return its result as far as known. `broken`: the reason to give where the command began and did not end."""
        if self.result is not None:
            result = self.result
            if self.blamed and result.status in (SubtestStatus.PASS, SubtestStatus.SKIP):
                result = replace(result, status=SubtestStatus.FAIL, reason=self.blamed)
            elif self.blamed and result.status is SubtestStatus.FAIL:
                result = replace(result, reason=f"{result.reason}; {self.blamed}" if result.reason else self.blamed)
        elif self.began is not None:
            result = SubtestResult(self.name, self.command, SubtestStatus.BROKEN, reason=self.blamed or broken)
        else:
            return SubtestResult(self.name, self.command, SubtestStatus.NOT_RUN)
        open_end = rest if self.span is not None and self.span[1] is None else ""
        return result if result.status is SubtestStatus.PASS else replace(result, output=self.said(open_end))


class Subtests:
    """The commands of one group and their state, as read from the console. Empty without a group."""

    def __init__(self, group: Group | None) -> None:
        self.end: End | None = None
        self.longest = 0.0  # seconds of the longest command that ended
        self.command_began: float | None = None  # time at which the running or next command began
        self._group = group
        commands = zip(group.names or group.labels, group.labels, group.commands, strict=True) if group else ()
        self._subtests = [_Subtest(*command) for command in commands]
        self._current = -1
        self._expected = b""  # the script's next line, if that line only names a command
        self._torn = b""  # a line of the group's output, up to the kernel's line in its middle
        self._finished: list[int] = []
        self._outbox = bytearray()
        self._typed: list[bytes] = []
        self._answers = 0
        self._probes = 0
        self._prompted_at: float | None = None  # time of the last prompt; None if the script printed something since
        self._pid = ""
        self._spoken = re.compile(
            rf"{re.escape(group.runner)}: (?:ask (\d+)|{re.escape(group.word)} (begin|end|done) ([\d ]*)(?: limit=(\d+))?)\s*$"
            if group and group.word
            else r"(?!)"
        )
        # A label may look like a kernel's line. Then kernel lines are not cut out of the markers, unless a word marks the lines.
        labels = "\n".join(group.labels).encode() if group else b""
        self._tears = group is not None and bool(group.word or not KERNEL_LINE.search(labels))

    # --- queries of the judge ------------------------------------------------------------------------------------------

    def finished(self) -> list[SubtestResult]:
        """Return the subtests that ended since the last call."""
        new = [self._subtests[number].outcome("", "") for number in self._finished]
        self._finished.clear()
        return new

    def results(self, rest: str = "") -> tuple[SubtestResult, ...]:
        """Return all subtests, also those that did not end or never began. `rest`: the console's unfinished last line."""
        gone = self.end is not None and bool(self.end.broken_off)
        return tuple(test.outcome(_ENDED_SCRIPT if gone else _UNFINISHED, rest) for test in self._subtests)

    @property
    def running(self) -> str:
        """Name of the command that began and did not end; empty if there is none."""
        return next((t.name for t in self._subtests if t.began is not None and t.result is None), "")

    def longest_by(self, now: float) -> float:
        """Return the seconds of the longest command, including a command that still runs."""
        return max([self.longest, *(now - t.began for t in self._subtests if t.began is not None and t.result is None)])

    def failure(self) -> str:
        """Return the reason why the group did not pass according to its script; empty if it passed."""
        results = self.results()
        failed = [r for r in results if r.status is SubtestStatus.FAIL]
        missing = [r for r in results if r.status in (SubtestStatus.BROKEN, SubtestStatus.NOT_RUN)]
        reasons = []
        if self.end is not None and self.end.broken_off:
            reasons.append(self.end.broken_off)
        if failed:
            names = ", ".join(r.name if r.exit_status in (None, 0) else f"{r.name} (status {r.exit_status})" for r in failed)
            reasons.append(f"{len(failed)} of {len(results)} commands failed: {names}")
        elif missing and not reasons:
            reasons.append(f"the markers of {len(missing)} of {len(results)} commands did not come: {missing[0].name}")
        elif not reasons and (self.end is None or not self.end.said_passed):
            reasons.append("the group's script says that a command failed, but none is known to")
        return "; ".join(reasons)

    def fails_by_commands(self) -> bool:
        """Tell whether all commands ended, and the group's script reached its end."""
        ended = all(one.status not in (SubtestStatus.BROKEN, SubtestStatus.NOT_RUN) for one in self.results())
        return ended and self.end is not None and not self.end.broken_off

    def all_skipped(self) -> str:
        """Return the reason why no command decides anything if all of them were skipped; else empty."""
        results = self.results()
        if any(one.status is not SubtestStatus.SKIP for one in results):
            return ""
        return f"all {len(results)} commands were skipped" if len(results) > 1 else "the only command was skipped"

    def after(self, position: int) -> int | None:
        """Return the first position behind `position` at which a command's output begins or ends; None if there is none."""
        marks = (mark for test in self._subtests if test.span is not None for mark in test.span)
        return min((mark for mark in marks if mark is not None and mark > position), default=None)

    @property
    def next_wake(self) -> float | None:
        """Time at which there is something to type; None for nothing."""
        return None if self._prompted_at is None else self._prompted_at + PROBE_DELAY

    def input(self, now: float) -> bytes:
        """Return the bytes to type now."""
        if self._group is not None and self._prompted_at is not None and now >= self._prompted_at + PROBE_DELAY:
            self._prompted_at = None
            self._probes += 1
            there = f"kill -CONT {self._pid} 2>/dev/null || " if self._pid else ""
            self._type(f"{there}echo {self._group.runner}: g''one")
        data = bytes(self._outbox)
        self._outbox.clear()
        return data

    # --- input from the judge ------------------------------------------------------------------------------------------

    def blame(self, position: int, reason: str, excerpt: str) -> bool:
        """Mark the command whose output contains this position as failed: a fail pattern matched there. Tell if there is one."""
        found = False
        for test in self._subtests:
            if test.span is not None and test.span[0] <= position and (test.span[1] is None or position < test.span[1]):
                test.excerpt = test.excerpt if test.blamed else excerpt
                test.blamed = test.blamed or reason
                found = True
        return found

    def prompted(self, now: float) -> None:
        """Record that a prompt of the guest came. If the script prints nothing from here on, it may be dead."""
        if self._group is not None and self._group.word and self.end is None and self._probes < _PROBES:
            self._prompted_at = now

    def _type(self, line: str) -> None:
        self._outbox += f"{line}\n".encode()
        self._typed.append(line.encode())

    def is_echo(self, line: bytes) -> bool:
        """Tell whether a whole line is the echo of a line typed for the group, possibly behind something else."""
        return self.echo_at(line) >= 0

    def echo_at(self, line: bytes) -> int:
        """Return the offset in a whole line at which the echo of a line typed for the group begins; -1 if there is none."""
        line = line.rstrip()
        return min((len(line) - len(typed) for typed in self._typed if line.endswith(typed)), default=-1)

    def is_label(self, line: bytes) -> bool:
        """Tell whether a whole line is the script's own line that names a command: not output, whatever the command's text is.

        That line directly follows the line in which the script printed its word. After a failed command no such line is expected:
        patterns may search it.
        """
        expected, self._expected = self._expected, b""
        return bool(expected) and line.rstrip() == expected

    def may_be_label(self, line: bytes) -> bool:
        """Tell whether an unfinished line may become one of the script's own; see `is_label`."""
        return bool(self._expected) and self._expected.startswith(line.rstrip())

    def take(self, line: bytes, position: int, now: float) -> None:
        """Process one whole line of the console, without its line end. Kernel output may stand in the middle of a marker."""
        if not self._subtests or self.is_echo(line):
            return
        kernels = KERNEL_LINE.search(line) if self._tears else None
        self._torn = (self._torn + (line if kernels is None else line[: kernels.start()]))[-_MARKER_MAX:]
        if kernels is not None:
            self._keep(line)
            return
        text = self._torn.decode(errors="replace")
        whole = len(self._torn) == len(line)
        self._torn = b""
        assert self._group is not None
        if not (self._read_spoken if self._group.word else self._read_marker)(text, position, now) and whole:
            self._keep(line)

    def _keep(self, line: bytes) -> None:
        """Keep a line of output for the failure report."""
        if 0 <= self._current < len(self._subtests) and (test := self._subtests[self._current]).result is None:
            text = line[: 4 * OUTPUT_LINE].replace(b"\0", b"").decode(errors="replace")[:OUTPUT_LINE].rstrip()
            assert self._group is not None
            if text != f"{self._group.begin}: {test.label}":
                test.output.append(text)

    # --- a script that has a word --------------------------------------------------------------------------------------

    def _read_spoken(self, line: str, position: int, now: float) -> bool:
        """Read a line of the script. Return False if the line is not the script's."""
        assert self._group is not None
        if self._probes and self.end is None and line.rstrip().endswith(f"{self._group.runner}: gone"):
            self._break_off()
            return True
        if self._answers and self._current < 0 and line.rstrip().endswith(f"{self._group.runner}: no answer"):
            self.end = self.end or End(broken_off="the group's script asked for its word, and what was typed did not reach it")
            return True
        found = self._spoken.search(line)
        if found is None or self.end is not None:
            return found is not None
        self._prompted_at = None
        asking, what, numbers, limit = found.groups()
        statuses = [int(number) for number in (numbers or "").split()]
        if asking:
            if self._current < 0 and self._answers < _ANSWERS:
                self._answers += 1
                self._pid = asking
                self._type(f"{self._group.word} {self._group.word}")
        elif what == "begin" and len(statuses) == 1:
            self._begin(statuses[0] - 1, position, now)
            self._expect(self._group.begin, statuses[0] - 1)
        elif what == "end" and len(statuses) == 2:
            self._finish(statuses[0] - 1, statuses[1], limit, position, now)
            if statuses[1] == 0:
                self._expect(self._group.passed, statuses[0] - 1)
        elif what == "done" and len(statuses) == len(self._subtests):
            for number, status in enumerate(statuses):
                if self._subtests[number].result is None:
                    self._finish(number, status, None, position, now)
            passed = all(status == 0 or status in self._group.skips for status in statuses)
            self.end = End(self._group.all_passed if passed else self._group.all_failed, passed)
        return True

    def _expect(self, marker: str, number: int) -> None:
        if 0 <= number < len(self._subtests):
            self._expected = f"{marker}: {self._subtests[number].label}".encode().rstrip()

    def _break_off(self) -> None:
        """Record that the script is gone. A missing end of the script does not matter if every command has ended."""
        assert self._group is not None
        if all(test.result is not None for test in self._subtests):
            passed = all(test.result is not None and test.result.status is not SubtestStatus.FAIL for test in self._subtests)
            self.end = End(said_passed=passed)
        elif self.running:
            self.end = End(broken_off=f"{self.running} ended the group's script")
        elif self._current < 0:
            self.end = End(broken_off=f"the group's script {'ended' if self._pid else 'did not start'}")
        else:
            self.end = End(broken_off=f"the group's script ended after {self._subtests[self._current].name}")

    def _begin(self, number: int, position: int, now: float) -> None:
        if not self._current < number < len(self._subtests):
            return
        self._close(position)
        self._current = number
        self.command_began = now
        self._subtests[number].began = now
        self._subtests[number].span = (position, None)

    def _finish(self, number: int, status: int, limit: str | None, position: int, now: float) -> None:
        if not 0 <= number < len(self._subtests):
            return
        test = self._subtests[number]
        if test.result is not None:
            return
        if test.began is None:  # its begin marker was lost
            test.began = now if self.command_began is None else self.command_began
            test.span = (position, position)
        duration = now - test.began
        word, reason = SubtestStatus.FAIL if status else SubtestStatus.PASS, _reason(status, limit)
        if self._group is not None and status in self._group.skips and not reason:
            word, reason = SubtestStatus.SKIP, f"status {status}"
        test.result = SubtestResult(test.name, test.command, word, status, duration, reason)
        self._current = max(self._current, number)
        self._close(position)
        self.command_began = now
        self.longest = max(self.longest, duration)
        self._finished.append(number)

    def _close(self, position: int) -> None:
        """End the output of the command that ran until now at this position."""
        for test in self._subtests:
            if test.span is not None and test.span[1] is None:
                test.span = (test.span[0], position)

    # --- a runner without a word ---------------------------------------------------------------------------------------

    def _read_marker(self, line: str, position: int, now: float) -> bool:
        """Read a marker, also behind a program's text on the same line. Return False if the line holds no marker."""
        group = self._group
        assert group is not None
        line = line.rstrip()
        if self.end is not None:
            if not self.failure() and f"{group.begin}: " in line:
                self.end = replace(self.end, broken_off="markers came behind the group's last one")
            return False
        ends: list[tuple[int, str, int, str | None]] = []  # start of the marker, its kind, status, limit
        following = self._current + 1
        if following < len(self._subtests):
            ends += _ending(line, f"{group.begin}: {self._subtests[following].label}", "begin")
        if self._current >= 0:
            label = self._subtests[self._current].label
            ends += _ending(line, f"{group.passed}: {label}", "passed")
            failed = re.search(re.escape(f"{group.failed}: {label}") + r" status=([1-9]\d{0,8})(?: limit=(\d{1,9}))?$", line)
            ends += [(failed.start(), "failed", int(failed[1]), failed[2])] if failed else []
        if not ends:
            single = any(f"{marker}: " in line for marker in (group.begin, group.passed, group.failed))
            if line.endswith((group.all_passed, group.all_failed)) and not single:
                self.end = End(line, line.endswith(group.all_passed))
            return self.end is not None
        _, which, status, limit = min(ends)  # a command's own text may contain a marker
        if which == "begin":
            self._begin(following, position, now)
            return True
        test = self._subtests[self._current]
        if which == "failed" and test.result is not None and test.result.status is SubtestStatus.PASS:
            # A program printed the other marker: the script's later marker wins.
            test.result = replace(test.result, status=SubtestStatus.FAIL, exit_status=status, reason=_reason(status, limit))
        self._finish(self._current, status, limit, position, now)
        return True


def _ending(line: str, marker: str, which: str) -> list[tuple[int, str, int, str | None]]:
    return [(len(line) - len(marker), which, 0, None)] if line.endswith(marker) else []


def _reason(status: int, limit: str | None) -> str:
    if limit:
        return f"killed after its limit of {limit} s"
    if 128 < status < 193:
        return f"{'stopped' if status - 128 in _STOPS else 'killed'} by signal {status - 128}"
    return _STATUS_MEANS.get(status, "")


_STATUS_MEANS = {126: "cannot be run", 127: "not found"}
_STOPS = (19, 20, 21, 22)
