"""Random streams of TAP on a console, with the kernel's lines in between: the judge's verdict against a slow reference.

python -m tests.fuzz.results [--count N] [--seed S] [--seconds T]

One stream, again: --seed S --count 1. Prints its seed, its figures, and each stream of which judge and reference disagree.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass

from qcase.console.judge import Judge
from qcase.console.rules import Rules
from qcase.model import Verdict
from tests.fuzz.tap_reference import Meaning, meaning_of

PROMPT = "root@qcase:/root# "
DIALECTS = ("ktap", "tap", "kselftest")
COMMANDS = ("./run", "run-tests --all", "sh -c 'echo ok 1 a; run'", "printf '1..1\\nok 1 a\\n' >/tmp/x; ./run")
NAMES = (
    "open",
    "epoll wait",
    "a - b",
    "- dash",
    "opens #1",
    r"hash \# kept",
    "time",
    "x: y",
    "é",
    "ok",
    "not ok",
    "1",
    "",
    "open",
)
DIRECTIVES = (
    "# SKIP",
    "# SKIP no card",
    "# skip: none",
    "# SKIPPED",
    "# TODO",
    "# TODO later",
    "# todo",
    "# XFAIL",
    "# TIMEOUT 3",
)
COMMENTS = ("# ERROR no memory", "# exit=1", "# skips one", "# note # TODO", "# TODOs", "#TODO")
OUTPUT = (
    "hello", "# a comment", "#", "", "  indented", "okay", "not okay", "ok: 1", "1.. 2", "# 1..2", "# ok 1 no result", "Bail in!",
    "    # Subtest", "[1/2] building", "    deep", "\ttab ok 1", "# Totals of nothing", "FAIL", "...", "---", "# # ok 1 x",
)  # fmt: skip
KERNELS = ("eth0: link becomes ready", "ok 1 of the kernel", "not ok 2 # TODO", "random: crng init done", "1..5", "Bail out!")


class Writer:
    """Writes a random stream of a dialect, mostly well-formed."""

    def __init__(self, chance: random.Random, dialect: str) -> None:
        self.chance = chance
        self.dialect = dialect
        self.lines: list[str] = []
        self.clean = chance.random() < 0.6  # no mistakes of purpose

    def odd(self, share: float) -> bool:
        """Tell whether to make a mistake here."""
        return not self.clean and self.chance.random() < share

    def put(self, prefix: str, text: str) -> None:
        self.lines.append(prefix + text)
        while self.chance.random() < 0.15:
            self.lines.append(
                self.chance.choice(OUTPUT) if self.chance.random() < 0.7 else prefix + self.chance.choice(OUTPUT[:9])
            )

    def document(self, prefix: str, depth: int) -> None:
        chance = self.chance
        count = chance.choice((0, 1, 1, 2, 2, 3, 5, 11)) if depth or not self.clean else chance.randint(1, 6)
        late = chance.random() < (0.4 if self.dialect == "tap" else 0.1)
        if self.dialect != "tap" or chance.random() < 0.7:
            self.put(prefix, chance.choice(("KTAP version 1", "TAP version 13", "TAP version 14")))
        if depth and chance.random() < 0.5:
            self.put(prefix, "# Subtest: " + chance.choice(NAMES))
        if not late and not self.odd(0.1):
            self.put(
                prefix, f"1..{count + (self.odd(0.1) and chance.choice((-1, 1, 5)))}" + chance.choice(("", "", " # SKIP none"))
            )
        statuses = [self.test(prefix, number, depth) for number in range(1, count + 1)]
        if late and not self.odd(0.1):
            self.put(prefix, f"1..{count}")
        if self.dialect == "kselftest" and chance.random() < 0.5:
            self.totals(prefix, statuses)

    def test(self, prefix: str, number: int, depth: int) -> str:
        chance = self.chance
        if self.dialect == "tap" and chance.random() < 0.1:
            self.put(prefix, "# Subtest: " + chance.choice(NAMES))
        nests = depth < 3 and chance.random() < 0.2
        if nests:
            inner = "# " if self.dialect == "kselftest" and chance.random() < 0.8 else chance.choice(("  ", "    "))
            self.document(prefix + inner, depth + 1)
        if self.odd(0.05):
            return ""  # a result that is lost
        shown = number + (self.odd(0.05) and chance.choice((-1, 1, 7)))
        figure = "" if (self.dialect == "tap" and chance.random() < 0.2) or self.odd(0.03) else f" {max(shown, 0)}"
        good = chance.random() < (0.97 if self.clean else 0.8)
        dash = chance.choice((" ", " - "))
        text = f"{'ok' if good else 'not ok'}{figure}{dash}{chance.choice(NAMES)}".rstrip()
        status = "pass" if good else "fail"
        if chance.random() < 0.15:
            directive = chance.choice(DIRECTIVES)
            text += f" {directive}"
            word = directive.strip("# ").partition(" ")[0].upper()
            status = "skip" if word.startswith("SKIP") else "todo" if word in ("TODO", "XFAIL") else "fail"
        elif chance.random() < 0.05:
            text += f" {chance.choice(COMMENTS)}"
        self.put(prefix, text) if chance.random() < 0.8 else self.lines.append(prefix + text)
        if chance.random() < 0.07 and not prefix.startswith("#"):
            self.yaml(prefix)
        if self.odd(0.04):
            self.lines.append(prefix + text)  # twice
        if self.odd(0.02):
            self.put(chance.choice((prefix, "")), "Bail out! no memory")
        return status

    def yaml(self, prefix: str) -> None:
        self.lines += [f"{prefix}  ---", f"{prefix}  message: x", f"{prefix}  ok 1", ""][: self.chance.randint(1, 4)]
        if not self.odd(0.3):
            self.lines.append(f"{prefix}  ...")

    def totals(self, prefix: str, statuses: list[str]) -> None:
        passed, failed = statuses.count("pass"), statuses.count("fail")
        expected, skipped = statuses.count("todo"), statuses.count("skip")
        passed += self.odd(0.2)
        self.put(prefix, f"# Totals: pass:{passed} fail:{failed} xfail:{expected} xpass:0 skip:{skipped} error:0")

    def stream(self) -> list[str]:
        for _ in range(self.chance.choice((1, 1, 1, 1, 2, 3))):
            self.document("", 0)
        lines = self.lines
        for _ in range(0 if self.clean else self.chance.choice((0, 0, 1, 2))):
            self.spoil(lines)
        return lines

    def spoil(self, lines: list[str]) -> None:
        """Damage a stream: a line is lost, twice there, elsewhere, indented, or the rest is missing."""
        chance = self.chance
        if not lines:
            return
        at, to = chance.randrange(len(lines)), chance.randrange(len(lines))
        match chance.randrange(6):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[at])
            case 2:
                lines.insert(to, lines.pop(at))
            case 3:
                del lines[at:]
            case 4:
                lines[at] = chance.choice((" ", "  ", "    ", "# ")) + lines[at]
            case 5:
                lines[at] = lines[at].lstrip()


@dataclass(frozen=True)
class Stream:
    dialect: str
    command: str
    lines: list[str]  # of the program; the last one may have no line end
    whole: bool  # the last line has its end
    ends: bool  # QEMU ends, in place of the prompt
    pieces: list[bytes]


def stream_of(seed: int) -> Stream:
    chance = random.Random(seed)
    dialect = chance.choice(DIALECTS)
    lines = Writer(chance, dialect).stream()
    whole = chance.random() < 0.9
    if lines and not whole:
        lines[-1] = lines[-1][: chance.randint(0, len(lines[-1]))]
    noise = chance.choice((0.0, 0.1, 0.5))
    said = "".join(on_console(chance, line, noise) for line in lines)
    said = said if whole else said.removesuffix("\r\n")
    return Stream(dialect, chance.choice(COMMANDS), lines, whole, chance.random() < 0.15, cut(chance, said.encode()))


def on_console(chance: random.Random, line: str, noise: float) -> str:
    """A program's line as the console has it: the kernel writes before it and into it, colours, a progress bar before it."""
    before = "".join(kernels(chance) for _ in range(3) if chance.random() < noise / 2)
    style = chance.random()
    shown = line
    if style < 0.05 and line:
        shown = f"\x1b[32m{line}\x1b[0m"
    elif style < 0.1:
        shown = f"running {'x' * chance.randint(0, 9)}\r\x1b[K{line}"
    elif style < 0.1 + noise / 2 and line:
        at = chance.randrange(len(line) + 1)
        shown = line[:at] + "".join(kernels(chance) for _ in range(chance.randint(1, 3))) + line[at:]
    return f"{before}{shown}\r\n"


def kernels(chance: random.Random) -> str:
    return f"[{chance.randint(0, 99):>5}.{chance.randrange(10**6):06}] {chance.choice(KERNELS)}\r\n"


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    """Data in random pieces."""
    size = chance.choice((1 << 20, 100, 17, 3))
    pieces = []
    while data:
        count = chance.randint(1, size)
        pieces.append(data[:count])
        data = data[count:]
    return pieces


def play(stream: Stream) -> tuple[Verdict | None, list[tuple[str, str]], str]:
    """Let the judge see a stream; return its verdict, the tests that ended, and the reason."""
    judge = Judge(Rules(prompt=PROMPT.strip(), command=stream.command, results=stream.dialect), started=0.0)
    now = 1.0

    def wait(seconds: float) -> None:
        nonlocal now
        until = now + seconds
        while judge.ruling is None and (wake := judge.next_wake()) is not None and wake <= until:
            now = max(now, wake)
            judge.tick(now)
            while keys := judge.input():
                now += 0.001
                judge.feed(keys.replace(b"\n", b"\r\n"), now)
        now = until

    judge.feed(f"Run /init\r\n{PROMPT}".encode(), now)
    wait(1.0)
    for piece in stream.pieces:
        now += 0.001
        judge.feed(piece, now)
    if stream.ends:
        judge.ended(now, "with status 0")
    else:
        judge.feed(PROMPT.encode(), now)
        wait(6.0)
    ruling = judge.ruling
    ended = [(str(one.status), one.name) for one in judge.subtests() if one.duration is not None]
    return (ruling.verdict if ruling else None), ended, ruling.reason if ruling else ""


def complaint_of(seed: int) -> tuple[Stream, Meaning, str]:
    """The stream of a seed, its meaning, and what is wrong with the judge's verdict; empty if nothing is."""
    stream = stream_of(seed)
    meaning = meaning_of(stream.lines, stream.dialect)
    verdict, tests, reason = play(stream)
    if meaning.passes and verdict is not Verdict.PASS:
        return stream, meaning, f"a wrong fail: {verdict}, {reason}"
    if not meaning.passes and verdict is Verdict.PASS:
        return stream, meaning, f"a wrong pass: {meaning.faults}"
    if verdict is Verdict.SKIPPED and not meaning.skips:
        return stream, meaning, f"a wrong skip: {reason}"
    if meaning.skips and meaning.tests and verdict is not Verdict.SKIPPED:
        return stream, meaning, f"no skip: {verdict}, {reason}"
    if not meaning.passes and (verdict not in (Verdict.FAIL, Verdict.EXITED, Verdict.SKIPPED) or not reason):
        return stream, meaning, f"no failure: {verdict}, {reason}"
    if verdict is Verdict.EXITED and not (stream.ends and meaning.faults):
        return stream, meaning, f"exited, though nothing is missing: {reason}"
    if not meaning.faults and tests != meaning.tests:
        return stream, meaning, f"other tests: {tests} in place of {meaning.tests}"
    return stream, meaning, ""


def figures(first: int, count: int, seconds: float | None = None) -> tuple[Counter[str], list[str]]:
    """Judge streams; return the counts, and a text for each disagreement."""
    counts: Counter[str] = Counter()
    found = []
    until = None if seconds is None else time.monotonic() + seconds
    for seed in range(first, first + count):
        stream, meaning, wrong = complaint_of(seed)
        kind = "pass" if meaning.passes else "faulty" if meaning.faults else "fail"
        counts.update([kind, stream.dialect])
        if wrong:
            shown = "\n".join(f"  | {line}" for line in stream.lines)
            found.append(f"--- seed {seed}, {stream.dialect}, {stream.command}: {wrong}\n{shown}")
        if until is not None and time.monotonic() > until:
            break
    return counts, found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.results", description=__doc__)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 40))
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    began = time.monotonic()
    counts, found = figures(options.seed, options.count, options.seconds)
    for text in found[:20]:
        print(text)
    streams = sum(counts[kind] for kind in ("pass", "fail", "faulty"))
    each = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
    print(f"{streams} streams ({each}) in {time.monotonic() - began:.0f} s: {len(found)} disagreements")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
