"""`python -m tests.tools.bench_console`: cost of the console's judge by kind of output, beside an older commit.

Two processes, one with each commit's judge, are handed the same bytes in turns. Figures are their processor time for 100 MB,
which a machine that others use changes less than the time that goes by; ratios are medians of the pairs.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
BASELINE = "ca95536"  # the judge before it knew rows; without history there is nothing to compare with
AIM = 1.2  # of the baseline's time, where that has a figure worth keeping
SLOWEST = 1.0  # MB a second: no guest may make the judge slower
WORST = 50_000  # bytes of each candidate for the slowest output
PIECE = 1 << 16  # bytes that a guest is heard with at once: what a pipe holds
SPEED = 20e6  # bytes a second, as the judge is told
WORDS = [
    "loading",
    "kernel",
    "module",
    "test",
    "passed",
    "file",
    "memory",
    "cpu",
    "page",
    "error-free",
    "init",
    "thread",
    "network",
    "ready",
    "mount",
]

Kind = Callable[[random.Random], str]


def _words(chance: random.Random, count: int = 7) -> str:
    return " ".join(chance.choices(WORDS, k=count))


def _plain(chance: random.Random) -> str:
    return f"{_words(chance)}\r\n"


def _colour(chance: random.Random) -> str:
    return f"[ \x1b[1;32m OK \x1b[0m ] \x1b[{chance.randrange(30, 38)}m{_words(chance, 5)}\x1b[0m\r\n"


def _kernel(chance: random.Random) -> str:
    return f"[{chance.random() * 100:12.6f}] {_words(chance)}\r\n"


def _utf8(chance: random.Random) -> str:
    return f"{_words(chance, 3)} — prüfe “{_words(chance, 2)}” ✓\r\n"


def _mixed(chance: random.Random) -> str:
    return chance.choice((_plain, _colour, _kernel, _utf8))(chance)


def _counter(chance: random.Random) -> str:
    name = _words(chance, 2)
    return "".join(f"\r{name} {percent}%" for percent in range(0, 101, 5)) + "\r\n"


def _wget(chance: random.Random) -> str:
    size = chance.randrange(1000)
    rows = (f"\rfile.bin {p:13}% |{'*' * (p // 3):33}| {size * p // 100:5}k  0:00:0{9 - p // 12} ETA" for p in range(0, 101, 9))
    return "".join(rows) + "\r\n"


def _pip(chance: random.Random) -> str:
    whole = chance.randrange(10, 99) / 10
    rows = []
    for n in range(0, 21, 2):
        bar = f"\x1b[38;5;197m{'━' * n}\x1b[0m\x1b[38;5;237m╺{'━' * (20 - n)}\x1b[0m"
        rows.append(f"\r\x1b[2K   {bar} \x1b[32m{whole * n / 20:.1f}/{whole} MB\x1b[0m")
    return f"\x1b[?25l{''.join(rows)}\r\n\x1b[?25h"


def _apk(chance: random.Random) -> str:
    bars = (f"\x1b7\r{p:3}% {'#' * (p // 3)}\x1b8\x1b[0K" for p in range(0, 101, 7))
    return f"{''.join(bars)}\r({chance.randrange(50)}/50) Installing {_words(chance, 1)}\r\n"


def _backspaces(chance: random.Random) -> str:
    return f"{_words(chance, 2)} " + "".join(f"{c}\b" for c in r"|/-\\" * 6) + f"done {chance.randrange(9)}\b \b\r\n"


def _cursor(chance: random.Random) -> str:
    moves = (
        "\x1b[3A",
        "\x1b[2B",
        "\x1b[10C",
        "\x1b[4D",
        "\x1b[K",
        "\x1b[1K",
        "\x1b[2J",
        "\x1b[5;9H",
        "\x1b7",
        "\x1b8",
        "\x1b[2P",
    )
    return "".join(f"{_words(chance, 1)}{chance.choice(moves)}" for _ in range(6)) + "\r\n"


def _bytes(chance: random.Random) -> str:
    return chance.randbytes(64).decode("latin-1")


KINDS: Mapping[str, Kind] = {
    "plain": _plain,
    "colour": _colour,
    "kernel": _kernel,
    "utf8": _utf8,
    "mixed": _mixed,
    "counters": _counter,
    "wget": _wget,
    "pip": _pip,
    "apk": _apk,
    "backspaces": _backspaces,
    "cursor": _cursor,
    "random bytes": _bytes,
}
KEPT = ("plain", "colour", "kernel", "utf8", "mixed", "counters", "wget", "pip", "apk")  # what guests write by the megabyte


def output(kind: str, size: int, seed: int) -> bytes:
    """Output of a kind, of about a size."""
    chance, made = random.Random(seed), bytearray()
    encoding = "latin-1" if kind == "random bytes" else "utf-8"
    while len(made) < min(size, 1 << 20):
        made += KINDS[kind](chance).encode(encoding)
    return bytes(made) * max(1, size // len(made))


def judged(data: bytes) -> float:
    """Seconds of processor time that the judge takes for output."""
    judge_of, rules_of = "qcase.console.judge", "qcase.console.rules"
    if not hasattr(importlib.import_module("qcase.console"), "__path__"):  # a commit from before the packages
        judge_of = rules_of = "qcase.console"
    Judge, Rules = importlib.import_module(judge_of).Judge, importlib.import_module(rules_of).Rules  # noqa: N806

    fail = ("^FAIL", r"(?i)\bfatal\b")
    rules = Rules(prompt="root@qcase:", command="run-tests --all", success=("^ALL TESTS PASSED$",), fail=fail)
    judge, now = Judge(rules, started=0.0), 1.0
    judge.feed(b"booting\r\nroot@qcase:/# ", now)
    while judge.command_at is None:
        now += 0.2
        judge.tick(now)
        judge.feed(judge.input().replace(b"\n", b"\r\n"), now)
    began = time.process_time()
    for at in range(0, len(data), PIECE):
        now += PIECE / SPEED
        judge.feed(data[at : at + PIECE], now)
        judge.input()
    used = time.process_time() - began
    assert judge.ruling is None, judge.ruling
    return used


class Side:
    """A process with the judge of one tree."""

    def __init__(self, tree: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        self._child = subprocess.Popen(
            [sys.executable, "-P", __file__, "--serve"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._child.kill()
        self._child.communicate()

    def seconds(self, kind: str, size: int, seed: int) -> float:
        """For 100 MB."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps([kind, size, seed]) + "\n")
        self._child.stdin.flush()
        return float(self._child.stdout.readline()) * 1e8 / size


def serve() -> None:
    for line in sys.stdin:
        kind, size, seed = json.loads(line)
        data = output(kind, size, seed)
        print(judged(data) * size / len(data), flush=True)


def baseline(commit: str, folder: Path) -> Path | None:
    """The package as it was at a commit; None where there is no history."""
    made = subprocess.run(["git", "-C", ROOT, "archive", commit, "qcase"], capture_output=True)
    if made.returncode:
        return None
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def compare(commit: str, kinds: list[str], megabytes: float, pairs: int) -> None:
    size = int(megabytes * 1e6)
    with tempfile.TemporaryDirectory() as name:
        tree = baseline(commit, Path(name))
        with Side(ROOT) as ours, Side(tree or ROOT) as theirs:
            for kind in kinds:
                sides = [theirs, ours] if tree else [ours, ours]
                found = [tuple(side.seconds(kind, size, seed) for side in sides) for seed in range(pairs + 1)][1:]
                before, now = (statistics.median(side) for side in zip(*found, strict=True))
                ratio = statistics.median(new / old for old, new in found) if tree else 0.0
                beside = f"{commit} {before:6.1f} s, ratio {ratio:5.2f}" if tree else "nothing to compare with"
                aim = f" (aim: {AIM})" if kind in KEPT else f", {100 / now:.1f} MB/s (aim: over {SLOWEST:g})"
                print(f"    {kind:<13} {now:6.1f} s, {beside}{aim}", flush=True)


CONTROLS = (
    "\r",
    "\b",
    "\v",
    "\t",
    "\n",
    "\a",
    "\x0e",
    "\x1b7",
    "\x1b8",
    "\x1bM",
    "\x1bD",
    "\x1bc",
    "\x1b(0",
    "\x1b#8",
    "\x1b]0;x\a",
)
NUMBERED = "ABCDEFGHIJKLMPSTXZ@`abdefhlmrsu"


def worst(count: int, seed: int) -> list[tuple[float, str]]:
    """Units of one to three controls with text between them, each repeated: MB a second, the slowest first."""
    chance, found = random.Random(seed), []
    for _ in range(count):
        unit = ""
        for _ in range(chance.randrange(1, 4)):
            number = chance.choice(("", "1", "2", "4", "40", "4096", "5;9", "?1049"))
            control = chance.choice(CONTROLS) if chance.random() < 0.3 else f"\x1b[{number}{chance.choice(NUMBERED)}"
            unit += chance.choice(("", "x", "é", "\u5b57", "passed 7")) + control
        data = unit.encode() * (WORST // len(unit.encode()))
        found.append((len(data) / judged(data) / 1e6, unit))
    return sorted(found)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.bench_console", description=__doc__)
    parser.add_argument("--baseline", default=BASELINE, help=f"a commit (default: {BASELINE})")
    parser.add_argument("--megabytes", type=float, default=4.0, help="of output for each figure (default: 4)")
    parser.add_argument("--pairs", type=int, default=5, help="of figures, after one that is not counted (default: 5)")
    parser.add_argument("--worst", type=int, metavar="N", help="instead: so many random units of controls, the slowest of them")
    parser.add_argument("--seed", type=int, default=1, help="of these units (default: 1)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}")
    options = parser.parse_args(arguments)
    if options.serve:
        serve()
        return
    if options.worst:
        for speed, unit in worst(options.worst, options.seed)[:12]:
            print(f"    {speed:6.2f} MB/s  {unit!r}")
        return
    print(f"\n100 MB of output judged, processor time, beside {options.baseline}")
    compare(options.baseline, options.kinds or list(KINDS), options.megabytes, options.pairs)


if __name__ == "__main__":
    main()
