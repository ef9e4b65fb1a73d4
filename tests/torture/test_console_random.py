"""Guests that lose characters of what is typed, and a thousand random groups.

Random guests with single commands are in `test_fuzz_console.py`. `QCASE_FUZZ_SEED` and `QCASE_FUZZ_RUNS` choose other groups.
"""

from __future__ import annotations

import os
import random

import pytest

from qcase.config.case_file import CaseConfig
from qcase.config.workspace_file import GroupedRunner
from qcase.console.echo_text import CHUNK
from qcase.console.judge import Judge
from qcase.console.rules import Rules
from qcase.model import SubtestStatus, Verdict
from qcase.pipelines import group_script
from qcase.run import boot_plan

RUNS = int(os.environ.get("QCASE_FUZZ_RUNS", "1000"))
SEED = int(os.environ.get("QCASE_FUZZ_SEED", "20260729"))

PROMPT = "root@q:/# "
KERNEL = ["[    2.125000] eth0: up\r\n", "[   12.000001][   T45] random: crng init done\r\n"]


class Loser:
    """A guest with a terminal that loses some of the bytes that are typed: those at the places `lost`, from 0."""

    def __init__(self, command: str, lost: set[int], *, echoes: bool = True) -> None:
        self.rules = Rules(prompt=PROMPT.strip(), command=command, success=("^PASS$",), fail=("^FAIL",))
        self.judge = Judge(self.rules, started=0.0)
        self.lost, self.echoes = lost, echoes
        self.received = 0
        self.line = b""
        self.lines: list[bytes] = []
        self.now = 0.0

    def runs(self) -> Loser:
        self.judge.feed(PROMPT.encode(), 0.0)
        while self.now < 30 and not self.lines:
            self.now = max(self.now + 0.001, self.judge.next_wake() or 0.0)
            self.judge.tick(self.now)
            while data := self.judge.input():
                self.judge.feed(self._takes(data), self.now)
        return self

    def _takes(self, data: bytes) -> bytes:
        out = b""
        for byte in data:
            self.received += 1
            if self.received - 1 in self.lost:
                continue
            if byte == 0x7F:
                out += b"\b \b" if self.line else b""
                self.line = self.line[:-1]
            elif byte == 0x0A:
                self.lines.append(self.line)
                out += b"\r\n"
                self.line = b""
            else:
                self.line += bytes([byte])
                out += bytes([byte])
        return out if self.echoes else b""


@pytest.mark.parametrize("command", ["go", "echo PASS", "test --all && echo PASS || echo FAIL # " + "y" * 40])
@pytest.mark.parametrize("losses", [1, 2])
def test_a_line_of_which_characters_were_lost_is_typed_again_before_it_runs(command: str, losses: int) -> None:
    for place in range(len(command) - losses + 1):
        lost = set(range(place, place + losses))
        guest = Loser(command, lost).runs()
        if len(lost) * 2 < len(command):  # of less than half a line nothing can be told
            assert guest.lines == [command.encode()], place
            assert "typed again" in guest.judge.warnings[0]
        guest.judge.feed(b"PASS\r\n", guest.now + 0.01)
        guest.judge.tick(guest.now + 1)
        assert guest.judge.ruling is not None
        assert guest.judge.ruling.verdict is Verdict.PASS


def test_a_line_is_typed_twice_at_most() -> None:
    guest = Loser("echo something or other", {3, 69, 70}).runs()
    assert guest.received == 2 * len("echo something or other") + len("echo something or other") + CHUNK + 1
    assert len(guest.lines) == 1
    assert "only a part" in guest.judge.warnings[0]


def test_a_line_that_came_back_whole_or_not_at_all_is_typed_once() -> None:
    for guest in (Loser("echo PASS", set()), Loser("echo PASS", {2}, echoes=False)):
        assert guest.runs().received == len("echo PASS\n")
        assert guest.judge.warnings == ()


# --- groups -----------------------------------------------------------------------------------------------------------

RUNNER = GroupedRunner()
GROUP_COMMANDS = ("/usr/bin/a", "/usr/bin/a --again", "sh -c 'exit 3' | cat", "x=1\necho $x")
BENIGN = [
    "x\n",
    "half",
    "PASS\n",
    "é\n",
    "\x1b[1mred\x1b[0m",
    "y" * 90,
    "\r\n",
    "status=1\n",
    "QCASE_GROUPED\n",
    "/usr/bin/a\n",
    "\xff",
]
NASTY = [
    f"{RUNNER.passed_marker}: /usr/bin/a\n",
    f"{RUNNER.failed_marker}: /usr/bin/a status=1\n",
    f"{RUNNER.begin_marker}: /usr/bin/a --again\n",
    f"{RUNNER.all_passed_marker}\n",
    f"{RUNNER.all_failed_marker}\n",
    "qcase-run-case-tests: done 0000\n",
]


def random_group(seed: int) -> tuple[Judge, list[int], bool, bool]:
    """A group as its script plays it: the judge, the statuses, whether the script ended, whether programs could deceive it.

    They print markers, which deceives nobody if the script has a word.
    """
    rng = random.Random(seed)
    config = CaseConfig(shell_prefix="root@q:/#", test_commands=GROUP_COMMANDS)
    told = rng.random() < 0.6
    rules = boot_plan.group_rules(config, RUNNER, "1a2b3c4" if told else "")
    judge = Judge(rules, started=0.0)
    statuses = [rng.choice([0, 0, 0, 0, 1, 124, 139]) for _ in GROUP_COMMANDS]
    nasty = rng.random() < 0.3
    script = "\nqcase-run-case-tests: ask 77\n" if told else ""

    def says(what: str) -> str:
        return f"\nqcase-run-case-tests: 1a2b3c4 {what}\n" if told else ""

    for number, (command, status) in enumerate(zip(GROUP_COMMANDS, statuses, strict=True), start=1):
        name = group_script.label(command)
        printed = "".join(rng.choice(NASTY if nasty and rng.random() < 0.4 else BENIGN) for _ in range(rng.randint(0, 4)))
        if nasty and not told and not printed.endswith("\n"):
            printed += "\n"
        marker = f"{RUNNER.passed_marker}: {name}" if status == 0 else f"{RUNNER.failed_marker}: {name} status={status}"
        script += f"{says(f'begin {number}')}{RUNNER.begin_marker}: {name}\n{printed}{says(f'end {number} {status}')}{marker}\n"
    script += says(f"done {' '.join(map(str, statuses))}")
    script += f"{RUNNER.all_failed_marker if any(statuses) else RUNNER.all_passed_marker}\n"
    data = script.replace("\n", "\r\n").encode("latin-1" if "\xff" in script else "utf-8")
    ends = rng.random() < 0.8
    if not ends:
        data = data[: rng.randint(0, len(data) - len(RUNNER.all_passed_marker) - 2)]
    now = 0.2
    judge.feed(PROMPT.encode(), now)
    for _ in range(40):
        now = max(now, judge.next_wake() or now)
        judge.tick(now)
        if typed := judge.input():
            judge.feed(typed.replace(b"\n", b"\r\n"), now)
        if judge.command_at is not None:
            break
    judge.feed(judge.input().replace(b"\n", b"\r\n"), now)
    at = 0
    while at < len(data):
        size = rng.choice([1, 3, 20, 200, 2000])
        piece = data[at : at + size]
        at += size
        if rng.random() < 0.15:
            piece += rng.choice(KERNEL).encode()
        now += rng.choice([0.0, 0.01, 0.3])
        judge.feed(piece, now)
        if typed := judge.input():
            judge.feed(typed.replace(b"\n", b"\r\n"), now)
    for _ in range(10):
        if judge.ruling is None and (wake := judge.next_wake()) is not None:
            now = max(now, wake)
            judge.tick(now)
    if judge.ruling is None:
        judge.ended(now + 1, "status 0")
    return judge, statuses, ends, nasty and not told


def test_a_thousand_random_groups_are_judged_by_what_their_commands_did() -> None:
    passed = 0
    for seed in range(SEED, SEED + RUNS):
        judge, statuses, ends, nasty = random_group(seed)
        assert judge.ruling is not None
        said = f"seed {seed}: {judge.ruling} {judge.subtests()}"
        if judge.ruling.verdict is Verdict.PASS:
            passed += 1
            assert ends, said
            assert not any(statuses), said
            assert all(test.status is SubtestStatus.PASS for test in judge.subtests()), said
        elif ends and not nasty:
            assert any(statuses), said
        if ends and not nasty:
            assert [test.exit_status for test in judge.subtests()] == statuses, said
    assert passed > RUNS // 20
