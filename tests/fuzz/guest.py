"""Make random guests: firmware, a kernel, a shell with one of many echoes, programs, services, panics and ends."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence

from tests.fuzz import words
from tests.fuzz.log import By, Wants
from tests.fuzz.screens import decorated
from tests.fuzz.serial import Actor, Piece, Serial, kernel_log, panic
from tests.fuzz.words import Words

# How shells echo. The last ones change or lose what was typed.
HONEST = ("tty", "tty", "tty", "readline", "readline", "repaint", "busybox", "late", "none")
DAMAGED = ("doubled", "lossy", "upper")
ECHOES = (*HONEST, *DAMAGED)


class Guest(Serial):
    """A guest that boots, perhaps with a shell that runs one command."""

    def __init__(self, seed: int, echoes: Sequence[str] = ECHOES) -> None:
        super().__init__(seed)
        self.wants, self.success, self.fail = _wants(self.random)
        self.prompt = self.random.choice([shown for literal, shown in words.PROMPTS if literal == self.wants.prompt] or [""])
        self.column = 0
        self.shell = Shell(self, self.random.choice(echoes)) if self.wants.prompt else None
        self.shell_echo = self.shell.echo if self.shell else "no shell"
        self.start(boot(self), 0.0)
        if self.random.random() < 0.5:
            self.start(kernel_log(self), self.random.uniform(0.0, 3.0))
        for _ in range(self.random.choice((0, 0, 0, 1, 1, 2))):
            self.start(service(self), self.random.choice((0.5, 1.0, 1.5, 2.0, 3.0, 6.0)) * self.random.random())
        if self.random.random() < 0.08:
            self.start(panic(self), self.random.uniform(0.3, 8.0))
        if self.random.random() < 0.1:
            self.end(self.random.uniform(1.0, 12.0))
        self.reset = self.random.random() < 0.2

    def keys(self, data: bytes, now: float) -> None:
        if self.shell is not None:
            self.shell.keys(data, now)

    def silence(self) -> None:
        super().silence()
        self.shell = None


# --- rules ------------------------------------------------------------------------------------------------------------


def _wants(chance: random.Random) -> tuple[Wants, list[Words], list[Words]]:
    several = chance.random() < 0.12
    success = chance.sample(words.SUCCESS, 2 if several else 1)
    fail = chance.sample(words.FAIL, chance.choice((0, 1, 1, 2)))
    prompt = None if chance.random() < 0.15 else chance.choice(words.PROMPTS)[0]
    wants = Wants(
        prompt=prompt,
        command=chance.choice(words.COMMANDS) if prompt else None,
        success=tuple(w.pattern for w in success),
        fail=tuple(w.pattern for w in fail),
        match_all=several and chance.random() < 0.7,
        from_prompt=bool(prompt) and chance.random() < 0.25,
        whole=chance.choice((20.0, 30.0, 45.0)),
        command_limit=chance.choice((None, None, 8.0, 15.0)) if prompt else None,
        idle=chance.choice((None,) * 7 + (5.0,)),
    )
    return wants, list(success), list(fail)


# --- what is written --------------------------------------------------------------------------------------------------


def boot(guest: Guest) -> Actor:
    chance = guest.random
    for _ in range(chance.choice((0, 1, 3))):
        line = f"{chance.choice(words.STAMPS)}{chance.choice(words.KERNEL[:2])}\r\n"
        yield from guest.cut(By.KERNEL, line.encode(), whole=True)
    for _ in range(chance.choice((0, 1, 2))):
        yield from guest.say(By.OUT, chance.choice(words.NOISE) + "\r\n")
    if guest.shell is None:
        yield from program(guest)
        return
    yield from prompt(guest)
    guest.shell.ready = True


def prompt(guest: Guest) -> Actor:
    yield from guest.say(By.PROMPT, guest.prompt)
    if guest.shell is not None and guest.shell.echo == "busybox":
        yield from guest.say(By.PROMPT, "\x1b[6n")


def lines(guest: Guest, *, success: float, fail: float) -> Iterator[str]:
    """Some lines of a program: mostly noise and near misses."""
    chance = guest.random
    for _ in range(chance.choice((0, 1, 2, 4))):
        lot = chance.random()
        if lot < fail and guest.fail:
            yield chance.choice(chance.choice(guest.fail).hits)
        elif lot < fail + success:
            yield chance.choice(chance.choice(guest.success).hits)
        elif lot < 0.6:
            yield chance.choice(words.NOISE)
        else:
            yield chance.choice(chance.choice(guest.success + guest.fail).misses)


def program(guest: Guest) -> Actor:
    """A program: lines, now and then with what only a terminal makes sense of, then its result or none."""
    chance = guest.random
    texts = list(lines(guest, success=0.1, fail=0.08))
    if chance.random() < 0.75:
        texts += [chance.choice(w.hits) for w in guest.success]
    texts += list(lines(guest, success=0.02, fail=0.05)) if chance.random() < 0.3 else []
    for number, text in enumerate(texts):
        last = number == len(texts) - 1
        if chance.random() < 0.25:
            text = decorated(chance, text)
        yield from guest.say(By.OUT, text.replace("\n", "\r\n"))
        if last and chance.random() < 0.2:
            return
        if chance.random() < 0.1:
            yield Piece(chance.choice((0.3, 0.6, 1.5, 3.0)), By.OUT, b"")
        yield from guest.say(By.OUT, chance.choice(("\r\n", "\r\n", "\r\n", "\n")))
    if chance.random() < 0.03:
        yield from guest.say(By.CRATE, chance.choice(words.CRATES))


def service(guest: Guest) -> Actor:
    """Something in the background that prints while qcase types."""
    chance = guest.random
    for _ in range(chance.choice((1, 1, 2, 3))):
        lot = chance.random()
        if lot < 0.25 and guest.fail:
            text = chance.choice(chance.choice(guest.fail).hits)
        elif lot < 0.35:
            text = chance.choice(chance.choice(guest.success).hits)
        elif lot < 0.5:
            text = chance.choice(chance.choice(guest.success + guest.fail).misses)
        else:
            text = chance.choice(words.NOISE)
        front = chance.choice(("\r\n", "", ""))
        whole = front + text.replace("\n", "\r\n") + "\r\n"
        yield Piece(chance.choice((0.0, 0.02, 0.1, 0.3, 1.0)), By.OUT, whole.encode())


# --- the shell --------------------------------------------------------------------------------------------------------


class Shell:
    """Reads keys, echoes them in its way, and runs a program for each line."""

    def __init__(self, guest: Guest, echo: str) -> None:
        self.guest = guest
        self.echo = echo
        self.latency = guest.random.choice((0.0, 0.001, 0.02, 0.2, 0.6))
        if self.echo == "late":
            self.latency = guest.random.choice((0.8, 2.0, 6.0))
        self.width = guest.random.choice((20, 40, 80, 80))
        self.ready = False
        self.line = ""
        self.lines: deque[str] = deque()
        self.busy = False
        self.to_echo: deque[str] = deque()
        self.echoing = False

    def keys(self, data: bytes, now: float) -> None:
        guest = self.guest
        at = now + self.latency
        text = data.decode(errors="surrogateescape")
        self.to_echo.append(text)
        if not self.echoing:
            self.echoing = True
            guest.start(self._echo_all(), at)
        for char in text:
            if char == "\x7f":
                self.line = self.line[:-1]
            elif char == "\n":
                self.lines.append(self.line)
                self.line = ""
            else:
                self.line += char
        if self.lines and not self.busy:
            self.busy = True
            guest.start(self._run(), at + guest.random.choice((0.0, 0.001, 0.05)))

    def _run(self) -> Actor:
        guest = self.guest
        chance = guest.random
        while self.lines and guest.shell is self:
            self.lines.popleft()
            yield Piece(chance.choice((0.0, 0.01, 0.3)), By.OUT, b"")
            yield from program(guest)
            lot = chance.random()
            if lot < 0.06:
                return  # it hangs
            if lot < 0.12:
                yield Piece(chance.choice((0.0, 0.2, 1.0)), By.OUT, b"")
                guest.end(0.0)
                return
            yield from prompt(guest)
            if self.lines and self.echo == "readline":
                yield from guest.say(By.ECHO, self.lines[0].replace("\x01", "^A").replace("\t", "   ") + "\r\n")
        self.busy = False

    def _echo_all(self) -> Actor:
        """Echo what was typed, in the order in which it was."""
        while self.to_echo:
            yield from self._echoed(self.to_echo.popleft())
        self.echoing = False

    def _echoed(self, text: str) -> Actor:
        guest = self.guest
        if self.echo == "none":
            return
        if self.echo == "upper":
            text = text.upper()
        if self.echo == "lossy":
            text = "".join(char for char in text if char == "\n" or guest.random.random() > 0.1)
        said = self._painted(text)
        yield from guest.say(By.ECHO, said)
        if self.echo == "doubled":
            yield Piece(guest.pause(), By.ECHO, b"")
            yield from guest.say(By.ECHO, said)

    def _painted(self, text: str) -> str:
        found = []
        line = self.line
        for char in text:
            if char == "\n":
                found.append("\x1b[J\r\n" if self.echo == "busybox" else "\r\n")
                self.guest.column = 0
                line = ""
            elif char == "\x7f":
                found.append("\b \b")
                line = line[:-1]
            else:
                shown = "^A" if char == "\x01" else char
                found.append(shown)
                line += char
                self.guest.column += len(shown)
                if self.echo in ("readline", "busybox") and self.guest.column >= self.width:
                    found.append(" \r" if self.echo == "readline" else "\r\n")
                    self.guest.column = 0
        if self.echo == "repaint" and "\n" not in text:
            return f"\r\x1b[K{self.guest.prompt}{line}"
        return "".join(found)
