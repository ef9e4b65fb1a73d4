"""A thousand random guests: the judge against `console_reference`, which knows what is echo and does everything the slow way.

The seed of a run is printed when it disagrees; `QCASE_FUZZ_SEED` and `QCASE_FUZZ_RUNS` choose others.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field

import pytest

from qcase.config import CaseConfig, GroupedRunner
from qcase.console import CHUNK, Judge, Limits, Rules
from qcase.model import SubtestStatus, Verdict
from qcase.pipelines import grouped
from tests.unit.console_reference import Heard, Reference, clean

RUNS = int(os.environ.get("QCASE_FUZZ_RUNS", "1000"))
SEED = int(os.environ.get("QCASE_FUZZ_SEED", "20260729"))
TICK = 1 / 64  # seconds; sums of it are exact

PROMPT = "root@q:/# "
COMMANDS = ["run", "echo PASS", "run && echo PASS || echo FAIL", "echo FAIL #" + "x" * 40, "sh -c 'echo PASS'\ntrue PASS"]
SUCCESS = ["^PASS$", r"PASS\b", r"x\s*PASS", "PASS\nx", "(?s:x.*é)", "^x+$", r"^\s*é", "[^x]PASS", "PASSED", r"^PASS\s*$", "one$"]
FAIL = ["^FAIL", r"FAIL\b", "FAIL$", "xFAIL", r"(?i)\bpanic\b"]
TOKENS = ["PASS", "FAIL", "ED", "x", "xx", " ", "\n", "\r\n", "\r", "é", "one", "\r\nPASS\r\n", "y" * 70, "panic=-1"]
NOISE = ["\x1b[1m", "\x1b[K", "\x1b]0;PASS\x07", "\x00", "\x08", "\x1b[6n", "\x1b[?2004h", "\x1bM", "\x1b]0;x\x1b\\", "\x1b"]
PANICS = ["[    9.125000] Kernel panic - not syncing: x\r\n", "panicked at src/main.rs:1:2:\r\nno\r\n", "Kernel panic\r\n"]
KERNEL = ["[    2.125000] eth0: up\r\n", "[   12.000001][   T45] random: crng init done\r\n"]


@dataclass
class Play:
    """One guest, one judge, and what the judge heard, with what is echo."""

    rng: random.Random
    rules: Rules
    limits: Limits
    echoes: bool
    width: int
    judge: Judge
    now: float = 0.0
    heard: list[Heard] = field(default_factory=list)
    coming: list[Heard] = field(default_factory=list)  # echo that is under way

    def waits(self, ticks: int) -> None:
        until = self.now + ticks * TICK
        while self.judge.ruling is None:
            wake = self.judge.next_wake()
            echo = self.coming[0].at if self.coming else None
            nearest = min((at for at in (wake, echo) if at is not None and at <= until), default=None)
            if nearest is None:
                break
            self.now = max(self.now, nearest)
            if echo is not None and echo <= self.now:
                self._hear(self.coming.pop(0))
            else:
                self.judge.tick(self.now)
            self._type()
        self.now = max(self.now, until)

    def prints(self, data: bytes) -> None:
        if data:
            self._hear(Heard(self.now, data))
            self._type()

    def _hear(self, part: Heard) -> None:
        if self.judge.ruling is None:
            part = Heard(self.now, part.data, part.echo)
            self.heard.append(part)
            self.judge.feed(part.data, self.now)

    def _type(self) -> None:
        while data := self.judge.input():
            if not self.echoes:
                continue
            at = max(self.now, self.coming[-1].at if self.coming else 0.0)
            for line in data.splitlines(keepends=True):
                body = line.rstrip(b"\n")
                parts = [body[i : i + self.width] for i in range(0, len(body), self.width)] or [b""]
                for number, part in enumerate(parts):
                    at += self.rng.choice([0, 1, 3]) * TICK
                    if number:
                        self.coming.append(Heard(at, self.rng.choice([b"\r\n", b" \r"]), True))
                    if part:
                        self.coming.append(Heard(at, part, True))
                    if part and self.rng.random() < 0.1:
                        self.coming.append(Heard(at, self.rng.choice(KERNEL).encode()))
                    if self.rng.random() < 0.1:
                        self.coming.append(Heard(at, b"\x1b[6n", True))
                if line.endswith(b"\n"):
                    self.coming.append(Heard(at, b"\r\n", True))


def words(rng: random.Random, most: int) -> bytes:
    """What a guest prints at one time: words of the patterns, noise, now and then half a character or a panic."""
    out = b""
    for _ in range(rng.randint(1, most)):
        kind = rng.random()
        if kind < 0.78:
            out += rng.choice(TOKENS).encode()
        elif kind < 0.92:
            out += rng.choice(NOISE).encode()
        elif kind < 0.96:
            out += rng.choice([b"\xc3", b"\xff", b"\xe2\x82", b"\xa9"])
        elif kind < 0.985:
            out += rng.choice(KERNEL).encode()
        else:
            out += rng.choice(PANICS).encode()
    return out


def some(rng: random.Random, *choices: float | None) -> float | None:
    return rng.choice(choices)


def random_play(seed: int) -> tuple[Play, Reference, str]:
    """Play a guest to its end; the reference's verdict on what was heard; how it ended."""
    rng = random.Random(seed)
    with_prompt = rng.random() < 0.75
    rules = Rules(
        prompt=PROMPT.strip() if with_prompt else None,
        command=rng.choice(COMMANDS) if with_prompt else None,
        success=tuple(rng.sample(SUCCESS, rng.choice([1, 1, 2]))),
        fail=tuple(rng.sample(FAIL, rng.choice([0, 1, 2]))),
        match_all=rng.random() < 0.3,
        from_prompt=with_prompt and rng.random() < 0.3,
    )
    limits = Limits(
        whole=some(rng, None, 8, 20),
        boot=some(rng, None, None, 3),
        command=some(rng, None, None, 5),
        idle=some(rng, None, None, 2),
    )
    echoes = rng.random() < 0.8
    play = Play(rng, rules, limits, echoes, rng.choice([3, 10, 200]), Judge(rules, started=0.0, limits=limits))
    for _ in range(rng.randint(0, 4)):
        play.waits(rng.choice([0, 1, 5, 20, 40, 70]))
        play.prints(words(rng, 3))
    if with_prompt and rng.random() < 0.9:
        play.prints(rng.choice(["\r\n", "", "\x1b[0m"]).encode())
        for part in rng.choice([[PROMPT], [PROMPT[:4], PROMPT[4:]], ["\x1b[1m" + PROMPT + "\x1b[0m"]]):
            play.waits(rng.choice([0, 1, 9]))
            play.prints(part.encode())
        for _ in range(100):  # until the command was typed and has come back: what comes meanwhile is echo
            if play.judge.command_at is not None and not play.coming:
                break
            play.waits(8)
        if not echoes:
            play.prints(b"\r\n")
    for _ in range(rng.randint(0, 8)):
        play.waits(rng.choice([0, 0, 1, 5, 20, 31, 32, 33, 40, 70]))
        data = words(rng, 5)
        cut = rng.randint(0, len(data))
        play.prints(data[:cut])
        if rng.random() < 0.3:
            play.waits(rng.choice([1, 20, 40]))
        play.prints(data[cut:])
    play.waits(rng.choice([0, 10, 40, 100]))
    how = rng.choice(["ended", "timed out", "open"])
    if how == "ended":
        play.judge.ended(play.now, "status 0")
    elif how == "timed out":
        play.judge.timed_out(play.now, play.now)
    reference = Reference(rules, limits)
    reference.play(play.heard, play.now)
    if how != "open":
        reference.ends(play.now, timed_out="timeout" if how == "timed out" else "")
    return play, reference, how


def told(seed: int) -> str:
    """What a person needs to see of a run that they disagree on; empty if they agree."""
    play, reference, how = random_play(seed)
    ruling = play.judge.ruling
    mine = None if ruling is None else (ruling.verdict, ruling.limit)
    other = None if reference.verdict is None else (reference.verdict, reference.limit)
    if mine == other:
        return ""
    lines = [f"seed {seed}: judge {mine} {ruling}, reference {other}, {how} at {play.now}", f"{play.rules} {play.limits}"]
    lines += [f"  {part.at:.4f} {'echo ' if part.echo else ''}{part.data!r}" for part in play.heard]
    _, seen = clean(play.heard, final=True)
    lines += [f"  reference sees {seen!r}", f"  judge sees     {bytes(play.judge._text.view)!r}"]
    return "\n".join(lines)


def test_a_thousand_random_guests_get_the_same_verdict_from_the_reference() -> None:
    disagreements = [text for number in range(RUNS) if (text := told(SEED + number))]
    assert disagreements == [], f"{len(disagreements)} of {RUNS}:\n" + "\n".join(disagreements[:3])


def test_the_random_guests_come_to_every_verdict() -> None:
    seen: dict[str, int] = {}
    for number in range(150):
        play, _, _ = random_play(SEED + number)
        verdict = play.judge.ruling.verdict if play.judge.ruling else "open"
        seen[verdict] = seen.get(verdict, 0) + 1
    assert set(seen) == {Verdict.PASS, Verdict.FAIL, Verdict.PANIC, Verdict.TIMEOUT, Verdict.EXITED, "open"}
    assert min(seen.values()) >= 3, seen


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
    """A group as its script plays it: the judge, the statuses, whether the script ended, whether programs print markers."""
    rng = random.Random(seed)
    config = CaseConfig(shell_prefix="root@q:/#", test_commands=GROUP_COMMANDS)
    rules = grouped.rules(config, RUNNER, "1a2b3c4d")
    judge = Judge(rules, started=0.0)
    statuses = [rng.choice([0, 0, 0, 0, 1, 124, 139]) for _ in GROUP_COMMANDS]
    nasty = rng.random() < 0.3
    script = ""
    for command, status in zip(GROUP_COMMANDS, statuses, strict=True):
        name = grouped.label(command)
        printed = "".join(rng.choice(NASTY if nasty and rng.random() < 0.4 else BENIGN) for _ in range(rng.randint(0, 4)))
        if nasty and not printed.endswith("\n"):
            printed += "\n"
        marker = f"{RUNNER.passed_marker}: {name}" if status == 0 else f"{RUNNER.failed_marker}: {name} status={status}"
        script += f"{RUNNER.begin_marker}: {name}\n{printed}{marker}\n"
    script += "qcase-run-case-tests: done 1a2b3c4d\n"
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
    at = 0
    while at < len(data):
        size = rng.choice([1, 3, 20, 200, 2000])
        piece = data[at : at + size]
        at += size
        if rng.random() < 0.15:
            piece += rng.choice(KERNEL).encode()
        now += rng.choice([0.0, 0.01, 0.3])
        judge.feed(piece, now)
    for _ in range(10):
        if judge.ruling is None and (wake := judge.next_wake()) is not None:
            now = max(now, wake)
            judge.tick(now)
    if judge.ruling is None:
        judge.ended(now + 1, "status 0")
    return judge, statuses, ends, nasty


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
