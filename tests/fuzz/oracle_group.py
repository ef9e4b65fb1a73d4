"""Say which verdicts and which results of single commands are right for a group.

What the script said is what `By.SCRIPT` wrote, and that alone: who wrote a byte is known here. A command's output is what was
written between its begin and its end; late output of a child that its command left behind belongs to the command that runs.

Choices: a group in which a program says on its own that the script is gone breaks off or not. A command in whose output a fail
pattern may stand (`Opinion.may_fail`) is `pass` or `fail`. A fail text that reaches from one command's output into another's, or
that stands between two commands, makes the group fail or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.fuzz.group import NAME
from tests.fuzz.log import By, Log, Write
from tests.fuzz.oracle import Opinion


@dataclass
class Told:
    """What the script told of its commands. `spans`: from which write to which a command's output goes."""

    statuses: dict[int, int | None] = field(default_factory=dict)  # None: it began
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    done: bool = False
    gone: bool = False


def told(log: Log) -> Told:
    found = Told()
    text = b""
    began: dict[int, int] = {}
    for place, write in enumerate(log.writes):
        if write.by is not By.SCRIPT:
            continue
        text += write.data.replace(b"\r", b"\n")
        while b"\n" in text:
            line, _, text = text.partition(b"\n")
            words = line.decode().split()
            if words[:2] == [f"{NAME}:", "gone"]:
                found.gone = True
            if words[:2] != [f"{NAME}:", log.wants.word]:
                continue
            if words[2] == "begin":
                found.statuses[int(words[3])] = None
                began[int(words[3])] = place
            elif words[2] == "end":
                found.statuses[int(words[3])] = int(words[4])
                found.spans[int(words[3])] = (began[int(words[3])], place)
            else:
                found.done = True
    for number, status in found.statuses.items():
        if status is None:
            found.spans[number] = (began[number], len(log.writes))
    return found


class GroupOpinion:
    """The verdicts and results that a careful person accepts for the log of a group."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.told = told(log)
        self.whole = Opinion(log)
        self.forged = b"gone" in b"".join(w.data for w in log.writes if w.by is By.OUT)
        self.count = len(log.wants.labels)
        self.outputs = {n: Opinion(self._output(*span)) for n, span in self.told.spans.items()}

    def _output(self, low: int, high: int) -> Log:
        """The part of the log that holds a command's output, without the script's lines, with the shape of a log of its own."""
        writes = tuple(
            Write(w.at, w.by, b"\r\n" if w.by is By.SCRIPT and b"\n" in w.data else w.data)
            for w in self.log.writes[low : high + 1]
            if w.by is not By.SCRIPT or b"\n" in w.data
        )
        wants = replace(self.log.wants, from_prompt=False, success=())
        return replace(self.log, wants=wants, writes=writes)

    def complaint(self) -> str:
        """What is wrong with the verdict or with a result; empty if nothing is."""
        return self._verdict() or self._results()

    def _verdict(self) -> str:
        verdict = self.log.verdict
        statuses = self.told.statuses
        all_well = self.told.done and all(statuses.get(n) == 0 for n in range(1, self.count + 1))
        broken = any(statuses.values()) or self.told.gone or self.forged
        if verdict == "pass":
            if not all_well:
                return "a group passes that did not"
            if self.whole.must_panic:
                return "a group passes, but the kernel panicked"
            return "a group passes, but a fail pattern was written" if self._must_fail() else ""
        if verdict == "panic":
            return "" if self.whole.may_panic else "a group panics, but no kernel did"
        if verdict == "fail":
            return "" if broken or self.whole.may_fail else "a group fails in which nothing failed"
        if self.whole.must_panic:
            return f"a group's verdict is {verdict}, but the kernel panicked"
        if self.told.done and all_well and not self.whole.may_fail and not self.forged:
            return f"a group's verdict is {verdict}, but it passed"
        if (self.told.done and broken) or self._must_fail():
            return f"a group's verdict is {verdict}, but it failed"
        return ""

    def _must_fail(self) -> bool:
        return any(opinion.must_fail for opinion in self.outputs.values())

    def _results(self) -> str:
        for number in range(1, self.count + 1):
            result = self.log.results[number - 1]
            if number not in self.told.statuses:
                accepted = {"not-run"}
            elif (status := self.told.statuses[number]) is None:
                accepted = {"broken"}
            elif status:
                accepted = {"fail"}
            else:
                output = self.outputs[number]
                accepted = {"fail"} if output.must_fail else {"pass", "fail"} if output.may_fail else {"pass"}
            if self.forged:
                accepted |= {"broken", "not-run"}
            if result not in accepted:
                return f"command {number} is {result}, not {' or '.join(sorted(accepted))}"
        return ""


def opinion(log: Log) -> Opinion | GroupOpinion:
    return GroupOpinion(log) if log.wants.labels else Opinion(log)
