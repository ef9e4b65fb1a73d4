"""Make random guests that run a group: a script that says how each command ended, and commands that lie, die, fork and signal.

The script does as the one of `qcase.pipelines.group_commands`, whose docstring draws its lines. Programs say all that the script
says but for the secret word, which no program knows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tests.fuzz import words
from tests.fuzz.log import By, Wants
from tests.fuzz.serial import Actor, Piece, Serial, kernel_log, panic

NAME = "qcase-run-case-tests"
PREFIX = "QCASE_GROUPED_TEST"
LABELS = (
    "/usr/bin/t",
    "./a --all",
    "echo PASS",
    "grep -q QCASE_GROUPED_TESTS_PASSED log",
    "printf 'x y\\n' | wc -l",
    "cat <<E ...",
    "/usr/bin/t",
    "sh -c 'kill -TERM $$'",
    "true # QCASE_GROUPED_TEST_PASSED: /usr/bin/t",
)
STATUSES = (0, 0, 0, 0, 0, 1, 2, 124, 126, 127, 137, 143)


@dataclass
class Command:
    label: str
    ends: str  # how: "ends", "hangs", "kills" the script, "exits" the guest
    status: int


class GroupGuest(Serial):
    """A guest with a shell in which the group's script runs."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        chance = self.random
        labels = tuple(chance.choice(LABELS) for _ in range(chance.choice((1, 2, 2, 3, 4))))
        self.fail = chance.sample(words.FAIL, chance.choice((0, 1, 1, 2)))
        self.word = f"{chance.getrandbits(64):016x}"
        self.limit = chance.choice((0, 0, 5, 20))
        literal, self.prompt = chance.choice(words.PROMPTS)
        called = f"/usr/bin/{NAME} ask" + (f" {self.limit}" if self.limit else "")
        self.wants = Wants(
            prompt=literal,
            command=called,
            success=(rf"(?m)^{PREFIX}S_PASSED\s*$",),
            fail=tuple(w.pattern for w in self.fail),
            from_prompt=chance.random() < 0.25,
            labels=labels,
            word=self.word,
            whole=60.0,
            command_limit=float(self.limit) or None,
        )
        self.commands = [
            Command(label, chance.choices(("ends", "hangs", "kills", "exits"), (90, 3, 4, 2))[0], chance.choice(STATUSES))
            for label in labels
        ]
        if chance.random() < 0.5:  # a good part of all groups passes
            self.commands = [Command(label, "ends", 0) for label in labels]
        self.echo = chance.random() < 0.85
        self.hidden = chance.random() < 0.85  # the script asks without echo
        self.state = "boots"  # then: prompt, asks, runs, dead
        self.typed: deque[str] = deque()
        self.line = ""
        self.pid = chance.randrange(100, 999)
        self.start(self._boot(), 0.0)
        if chance.random() < 0.5:
            self.start(kernel_log(self), chance.uniform(0.0, 4.0))
        if chance.random() < 0.3:
            self.start(self._service(), chance.uniform(0.5, 4.0))
        if chance.random() < 0.05:
            self.start(panic(self), chance.uniform(0.5, 6.0))

    # --- keys -----------------------------------------------------------------------------------------------------------

    def keys(self, data: bytes, now: float) -> None:
        text = data.decode()
        if self.echo and not (self.state == "asks" and self.hidden):
            self.start(self._echo(text), now + 0.001)
        for char in text:
            if char == "\x7f":
                self.line = self.line[:-1]
            elif char == "\n":
                self.typed.append(self.line)
                self.line = ""
            else:
                self.line += char
        self._read(now + 0.002)

    def _echo(self, text: str) -> Actor:
        yield Piece(0.0, By.ECHO, text.replace("\n", "\r\n").encode())

    def _read(self, at: float) -> None:
        """Let whoever reads the console read the next line."""
        if self.typed and self.state == "prompt":
            self.state = "busy"
            self.start(self._shell(self.typed.popleft()), at)
        elif self.typed and self.state == "asks":
            self.state = "busy"
            self.start(self._answered(self.typed.popleft()), at)

    # --- the shell ------------------------------------------------------------------------------------------------------

    def _boot(self) -> Actor:
        yield from self.say(By.OUT, self.random.choice(words.NOISE) + "\r\n")
        yield from self._prompts()

    def _prompts(self) -> Actor:
        yield from self.say(By.PROMPT, self.prompt)
        self.state = "prompt"
        while self.typed and self.state == "prompt":
            self.state = "busy"
            yield from self._shell(self.typed.popleft())

    def _shell(self, line: str) -> Actor:
        if line.startswith(f"/usr/bin/{NAME}"):
            yield from self._asks()
            return
        if "g''one" in line:
            yield from self.cut(By.SCRIPT, f"{NAME}: gone\r\n".encode(), whole=True)
        elif line.strip():
            yield from self.say(By.OUT, "sh: not found\r\n")
        yield from self._prompts()

    def _asks(self) -> Actor:
        yield Piece(self.random.choice((0.0, 0.05, 0.5)), By.SCRIPT, b"")
        yield from self._say(f"ask {self.pid}")
        self.state = "asks"
        if self.typed:
            self.state = "busy"
            yield from self._answered(self.typed.popleft())

    def _answered(self, line: str) -> Actor:
        if line.split() != [self.word, self.word]:
            yield from self._asks()
            return
        self.state = "runs"
        yield from self._run()

    def _say(self, text: str) -> Actor:
        """A line of the script's own, behind a line end."""
        yield from self._mark(f"\r\n{NAME}: {text}")

    def _mark(self, text: str) -> Actor:
        """A line of the script's in one go, which only the kernel can tear."""
        chance = self.random
        line = f"{text}\r\n".encode()
        if chance.random() < 0.05:
            at = chance.randrange(3, len(line) - 2)
            yield Piece(self.pause(), By.SCRIPT, line[:at], True)
            yield Piece(0.0, By.KERNEL, f"{chance.choice(words.STAMPS)}{chance.choice(words.KERNEL[:2])}\r\n".encode(), True)
            yield Piece(self.pause(), By.SCRIPT, line[at:])
        else:
            yield from self.cut(By.SCRIPT, line, whole=True)

    def _run(self) -> Actor:
        for number, command in enumerate(self.commands, start=1):
            yield from self._say(f"{self.word} begin {number}")
            yield from self._mark(f"{PREFIX}_BEGIN: {command.label}")
            yield from self._program(number)
            if command.ends == "hangs":
                return
            if command.ends == "exits":
                yield Piece(0.1, By.OUT, b"")
                self.end(0.0)
                return
            if command.ends == "kills":
                yield from self._prompts()
                return
            late = f" limit={self.limit}" if command.status == 124 and self.limit else ""
            yield from self._say(f"{self.word} end {number} {command.status}{late}")
            if command.status:
                yield from self._mark(f"{PREFIX}_FAILED: {command.label} status={command.status}{late}")
            else:
                yield from self._mark(f"{PREFIX}_PASSED: {command.label}")
        statuses = [command.status for command in self.commands]
        yield from self._say(f"{self.word} done {' '.join(map(str, statuses))}")
        yield from self._mark(f"{PREFIX}S_{'FAILED' if any(statuses) else 'PASSED'}")
        yield from self._prompts()

    # --- what programs do -------------------------------------------------------------------------------------------------

    def _program(self, number: int) -> Actor:
        chance = self.random
        for _ in range(chance.choice((0, 1, 2, 4))):
            text = self._line(number)
            if chance.random() < 0.1:
                self.start(self._late(text), self.now + chance.uniform(0.1, 3.0))
                continue
            yield from self.say(By.OUT, text.replace("\n", "\r\n"))
            if chance.random() < 0.1:
                yield Piece(chance.choice((0.3, 0.7, 2.0)), By.OUT, b"")
            if chance.random() < 0.9:
                yield from self.say(By.OUT, "\r\n")

    def _line(self, number: int) -> str:
        chance = self.random
        lot = chance.random()
        if lot < 0.06 and self.fail:
            return chance.choice(chance.choice(self.fail).hits)
        if lot < 0.2 and self.fail:
            return chance.choice(chance.choice(self.fail).misses)
        if lot < 0.55:
            return chance.choice(words.NOISE)
        return self._lie(number)

    def _lie(self, number: int) -> str:
        """What the script would say, or a shell, or a kernel."""
        chance = self.random
        label = self.commands[number - 1].label
        other = chance.choice(self.commands).label
        wrong = f"{chance.getrandbits(64):016x}"
        return chance.choice(
            (
                f"{PREFIX}_PASSED: {label}",
                f"{PREFIX}_FAILED: {label} status=1",
                f"{PREFIX}_BEGIN: {other}",
                f"{PREFIX}S_PASSED",
                f"{PREFIX}S_FAILED",
                f"{NAME}: {wrong} end {number} 0",
                f"{NAME}: {wrong} done 0",
                f"{NAME}: ask 1",
                f"{NAME}: gone",
                f"{NAME}:  end {number} 0",
                f"x {self.prompt}",
                self.prompt,
                "[    2.040000] usb 1-1: new device",
                "\x1b[?1049hx\x1b[?1049l",
                "\x1b]0;x",
                "\x1b[8mx\x1b[0m",
            )
        )

    def _late(self, text: str) -> Actor:
        """A child that goes on when its command has ended."""
        yield Piece(0.0, By.OUT, f"{text}\r\n".replace("\n", "\r\n").replace("\r\r\n", "\r\n").encode())

    def _service(self) -> Actor:
        chance = self.random
        for _ in range(chance.choice((1, 2))):
            text = chance.choice((*words.NOISE, *(w.misses[0] for w in self.fail)))
            yield Piece(chance.choice((0.02, 0.3, 1.0)), By.OUT, f"{text}\r\n".encode())
