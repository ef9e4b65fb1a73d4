"""Cases that QEMU's end decides: every end beside every console, and the verdict that a slow reference gives."""

from __future__ import annotations

import itertools
import random

import pytest

from qcase.console.rules import Limits, Rules
from qcase.model import Verdict
from tests.unit.console.test_console import Guest

EXITS = (("pass", "33"), ("pass", "poweroff"), ("fail", "35"), ("skip", "37"))
WORDS = {"33": "pass", "poweroff": "pass", "35": "fail", "37": "skip", "39": "", "1": "", "0": "", "": ""}

# What a console shows, and what it is to the patterns ^ALL and ^BAD.
CONSOLES = {
    "hello\r\n": "",
    "ALL\r\n": "pass",
    "ALL": "pass",
    "BAD\r\n": "fail",
    "BAD": "fail",
    "ALL\r\nBAD\r\n": "fail",
    "[ 1.5] Kernel panic - not syncing: x\r\n": "panic",
    "Kernel panic - not syncing: x": "panic",
    "ALL\r\nKernel panic - not syncing: x": "panic",
    "BAD\r\nKernel panic - not syncing: x\r\n": "panic",
    "ALL\rnot\r\n": "",
}
# The same for results in KTAP.
RESULTS = {
    "": "none",
    "hello\r\n": "none",
    "KTAP version 1\r\n1..2\r\nok 1 a\r\nok 2 b\r\n": "pass",
    "KTAP version 1\r\n1..2\r\nok 1 a\r\nnot ok 2 b\r\n": "fail",
    "KTAP version 1\r\n1..2\r\nok 1 a\r\n": "open",
    "KTAP version 1\r\n1..1\r\nok 1 a # SKIP no card\r\n": "skip",
    "KTAP version 1\r\n1..2\r\nok 1 a\r\nok 2 b\r\nBAD\r\n": "fail",
    "KTAP version 1\r\n1..2\r\nok 1 a\r\nok 2 b\r\nKernel panic - not syncing: x\r\n": "panic",
}


def by_patterns(console: str, end: str, *, wanted: bool) -> Verdict:
    """The reference: what patterns and an end give. `wanted`: a success pattern has to match."""
    if console == "panic":
        return Verdict.PANIC
    if console == "fail" or end == "fail":
        return Verdict.FAIL
    if end == "skip":
        return Verdict.SKIPPED
    return Verdict.PASS if end == "pass" and (console == "pass" or not wanted) else Verdict.EXITED


def by_results(results: str, end: str) -> Verdict:
    """The reference: what results and an end give."""
    if results == "panic":
        return Verdict.PANIC
    if results == "fail":
        return Verdict.FAIL
    if end == "":
        return Verdict.EXITED
    if end == "fail":
        return Verdict.FAIL
    if results in ("none", "open"):
        return Verdict.SKIPPED if end == "skip" and results == "none" else Verdict.EXITED
    return Verdict.SKIPPED if end == "skip" or results == "skip" else Verdict.PASS


def ended(rules: Rules, console: str, word: str, wait: float) -> Verdict | None:
    guest = Guest(rules)
    for part in console.splitlines(keepends=True):
        guest.prints(part)
    guest.waits(wait)
    guest.judge.ended(guest.now, "status x", word=word)
    return guest.verdict()


@pytest.mark.parametrize("wait", [0.0, 0.2, 9.0])
@pytest.mark.parametrize("wanted", [False, True])
def test_an_end_beside_patterns(wait: float, wanted: bool) -> None:
    rules = Rules(success=("^ALL",) if wanted else (), fail=("^BAD",), exits=EXITS)
    for (console, shown), (word, end) in itertools.product(CONSOLES.items(), WORDS.items()):
        assert ended(rules, console, word, wait) is by_patterns(shown, end, wanted=wanted), (console, word)


@pytest.mark.parametrize("wait", [0.0, 0.2, 9.0])
def test_an_end_beside_results(wait: float) -> None:
    rules = Rules(fail=("^BAD",), results="ktap", exits=EXITS)
    for (console, shown), (word, end) in itertools.product(RESULTS.items(), WORDS.items()):
        assert ended(rules, console, word, wait) is by_results(shown, end), (console, word)


def test_random_consoles_and_ends() -> None:
    """Lines in any order, cut anywhere, and any end: the graver of the two decides."""
    lines = ["hello", "ALL", "BAD", "Kernel panic - not syncing: x", "not ALL", "ok 1 a", ""]
    for seed in range(3000):
        dice = random.Random(seed)
        chosen = dice.choices(lines, [9, 4, 1, 1, 3, 3, 3], k=dice.randint(0, 6))
        data = "".join(f"{line}\r\n" for line in chosen).encode()
        data = data[: len(data) - 2 * dice.randint(0, 1)] if data else data  # the last line may have no end
        wanted, word = dice.random() < 0.6, dice.choice(list(WORDS))
        guest = Guest(Rules(success=("^ALL",) if wanted else (), fail=("^BAD",), exits=EXITS))
        while data:
            piece = dice.randint(1, len(data))
            guest.prints(data[:piece], after=0.001)
            data = data[piece:]
        guest.judge.ended(guest.now, "status x", word=word)
        shown = "panic" if lines[3] in chosen else "fail" if "BAD" in chosen else "pass" if "ALL" in chosen else ""
        assert guest.verdict() is by_patterns(shown, WORDS[word], wanted=wanted), (seed, chosen, word)


def test_all_patterns_have_to_match_where_the_case_says_so() -> None:
    rules = Rules(success=("^ONE", "^TWO"), match_all=True, exits=EXITS)
    assert ended(rules, "ONE\r\n", "33", 1.0) is Verdict.EXITED
    assert ended(rules, "ONE\r\nTWO\r\n", "33", 1.0) is Verdict.PASS
    assert ended(Rules(success=("^ONE", "^TWO"), exits=EXITS), "TWO\r\n", "33", 1.0) is Verdict.PASS


def test_nothing_but_the_end_passes_it() -> None:
    for rules, console in (
        (Rules(success=("^ALL",), exits=EXITS), "ALL\r\n"),
        (Rules(results="ktap", exits=EXITS), "KTAP version 1\r\n1..1\r\nok 1 a\r\n"),
        (Rules(exits=EXITS), "ALL\r\n"),
    ):
        guest = Guest(rules, limits=Limits(whole=60)).prints(console).waits(59)
        assert guest.verdict() is None
        guest.waits(2)
        assert guest.verdict() is Verdict.TIMEOUT
        assert guest.judge.ruling is not None
        assert "QEMU did not end within 60 s, as [qcase.exit] waits for" in guest.judge.ruling.reason


def test_an_end_without_a_table_is_no_evidence() -> None:
    for word in WORDS:
        assert ended(Rules(success=("^ALL",)), "hello\r\n", word, 1.0) is Verdict.EXITED


def test_a_failed_test_alone_is_what_fails_it() -> None:
    guest = Guest(Rules(results="ktap", exits=EXITS)).prints("KTAP version 1\r\n1..1\r\nnot ok 1 a\r\n")
    guest.judge.ended(guest.now, "status 35", word="35")
    assert guest.judge.ruling is not None
    assert (guest.verdict(), guest.judge.ruling.by_tests) == (Verdict.FAIL, True)


def test_a_reset_by_a_fault_wins_over_any_end() -> None:
    guest = Guest(Rules(exits=EXITS)).prints("hello\r\n")
    guest.judge.ended(guest.now, "status 0", reset=True, fault="triple fault", word="33")
    assert guest.verdict() is Verdict.PANIC


def test_reasons_say_what_ended() -> None:
    guest = Guest(Rules(exits=EXITS))
    guest.judge.ended(1.0, "status 39", word="39")
    assert guest.judge.ruling is not None
    assert guest.judge.ruling.reason == (
        "QEMU ended with status 39, which is none of the ends in [qcase.exit] (33, poweroff, 35, 37)"
    )
