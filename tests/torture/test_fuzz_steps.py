"""Generated guests in steps, beside a slow reference: no pass that it does not give, and none lost where all is tame."""

from __future__ import annotations

import random

import pytest

from qcase.console.rules import Limits, Rules, Step
from qcase.console.steps import StepsJudge
from qcase.model import Verdict

PROMPT = "root@x:/# "
KERNEL = "[    2.040000] a line of the kernel\r\n"
WORDS = ("UP", "OK", "DONE", "READY")


class Played:
    """A guest that reads lines at its prompt and prints what it is told to, and the record of what came from whom.

    `said`: each whole line of a program, with the number of lines that were typed when it came, and the boot, in order. `bad`: a
    panic or a fail text came. In `out`, None is a reset, of which some come by themselves.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.tame = self.random.random() < 0.5
        self.said: list[tuple[str, int, int]] = []
        self.boot = 0
        self.bad = False
        self.lines = 0
        self.out: list[str | None] = []
        self._keys = ""

    def boots(self) -> None:
        for _ in range(self.random.randrange(3)):
            self._line()
        self.out.append(PROMPT)

    def hears(self, keys: str) -> None:
        """Echo keys, now or with their line, and run the lines that they end."""
        late = not self.tame and self.random.random() < 0.2
        silent = not self.tame and self.random.random() < 0.1
        for key in keys:
            if not late and not silent:
                self.out.append("\r\n" if key == "\n" else key)
            self._keys += key
            if key == "\n":
                self.lines += 1
                if late:
                    self.out.append(self._keys.replace("\n", "\r\n"))
                self._runs(self._keys.strip())
                self._keys = ""

    def _resets(self) -> None:
        self.out.append(None)
        self.boot += 1
        self._keys = ""
        self.boots()

    def _runs(self, line: str) -> None:
        if line == "reboot" or (not self.tame and self.random.random() < 0.03):
            for _ in range(self.random.randrange(3)):
                self._line()
            self._resets()
            return
        for _ in range(self.random.randrange(3)):
            self._line()
        if self.tame or self.random.random() < 0.7:
            self._says(line.removeprefix("echo "))
        for _ in range(self.random.randrange(2)):
            self._line()
        if not self.tame and self.random.random() < 0.05:
            self.out.append(self.random.choice(("FAIL: x\r\n", "FAIL: x\r       \r", "Kernel panic - not syncing: x\r\n")))
            self.bad = True
        self.out.append(PROMPT)
        if not self.tame and self.random.random() < 0.1:
            self.out.append("\r\n" + PROMPT)

    def _line(self) -> None:
        if self.random.random() < 0.4:
            self.out.append(KERNEL)
        elif not self.tame and self.random.random() < 0.3:
            self.out.append(f"{self.random.choice(WORDS)}\rxxxxxxxx\r\n")
        else:
            self._says(self.random.choice((*WORDS, "x", "OK not", "UP and")) if not self.tame else "x")

    def _says(self, text: str) -> None:
        self.said.append((text, self.lines, self.boot))
        if not self.tame and self.random.random() < 0.1:
            cut = self.random.randrange(len(text) + 1)
            self.out.append(f"{text[:cut]}{KERNEL}{text[cut:]}\r\n")
        else:
            self.out.append(f"{text}\r\n")

    def pieces(self) -> list[bytes | None]:
        """What is to come now, in pieces as large as chance has it, and resets."""
        found: list[bytes | None] = []
        while self.out:
            if (part := self.out.pop(0)) is None:
                found.append(None)
                continue
            while self.out and self.out[0] is not None:
                part += self.out.pop(0) or ""
            whole = part.encode()
            while whole:
                size = self.random.choice((1, 3, 7, 40, 1000))
                found.append(whole[:size])
                whole = whole[size:]
        return found


def steps_of(chance: random.Random) -> tuple[Step, ...]:
    """Up to five steps; each waits for a word, and some type it, in a command whose echo has it."""
    steps = [Step("0", prompt=PROMPT.strip(), command=f"echo {(word := chance.choice(WORDS))}", success=(f"^{word}$",))]
    for number in range(1, chance.randrange(2, 6)):
        word = chance.choice(WORDS)
        kind = chance.choice(("types", "types", "waits", "types only", "reboots"))
        if kind == "reboots":
            steps.append(Step(str(number), prompt=PROMPT.strip(), command="reboot", expect="reboot"))
            continue
        success = () if kind == "types only" else (f"^{word}$",)
        command = None if kind == "waits" else f"echo {word}"
        steps.append(Step(str(number), prompt=PROMPT.strip() if command else None, command=command, success=success))
    return tuple(steps)


def could_pass(steps: tuple[Step, ...], said: list[tuple[str, int, int]]) -> bool:
    """The reference: whether each step's word came in order, each line once; for those that type, behind what they typed."""
    at, typed, boot = 0, 0, 0
    for step in steps:
        typed += step.command is not None
        boot += step.expect == "reboot"
        if not step.success:
            continue
        wanted = step.success[0][1:-1]
        # What came while the step's line was being typed counts as well: one line less may have been read then.
        least = typed - 1 if step.command is not None else 0
        found = next(
            (n for n in range(at, len(said)) if said[n][0] == wanted and said[n][1] >= least and said[n][2] == boot), None
        )
        if found is None:
            return False
        at = found + 1
    return True


@pytest.mark.parametrize("seed", range(200))
def test_no_pass_that_the_reference_does_not_give(seed: int) -> None:
    guest = Played(seed)
    steps = steps_of(guest.random)
    if guest.tame and any(step.command is None for step in steps):
        steps = tuple(step for step in steps if step.command is not None)
    judge = StepsJudge(Rules(steps=steps, fail=("^FAIL",), resets=True), started=0.0, limits=Limits(whole=60.0))
    guest.boots()
    now = 0.0
    while judge.ruling is None and now < 200.0:
        for piece in guest.pieces():
            now += guest.random.choice((0.0, 0.001, 0.02)) if piece is not None else 0.3
            if piece is None:
                judge.reset(now)
            else:
                judge.feed(piece, now)
            if keys := judge.input():
                guest.hears(keys.decode())
        if not guest.out and judge.ruling is None:
            wake = judge.next_wake()
            assert wake is not None
            now = max(now, wake)
            judge.tick(now)
            if keys := judge.input():
                guest.hears(keys.decode())
    assert judge.ruling is not None
    passed = judge.ruling.verdict is Verdict.PASS
    if passed:
        assert could_pass(steps, guest.said), (steps, guest.said)
        assert not guest.bad
    if guest.tame:
        assert passed, (judge.ruling, steps, guest.said)
