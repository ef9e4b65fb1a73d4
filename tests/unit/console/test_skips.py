"""A line of the guest that says that a case cannot run there: evidence by the rules of a pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qcase.console.judge import DRAIN
from qcase.console.rules import Rules
from qcase.model import Verdict
from tests.unit.console.test_console import PROMPT, Guest, booted, shell

RULES = replace(shell(), skip=("^SKIP: ",))


def end(*parts: str, rules: Rules = RULES, seconds: float = DRAIN + 2) -> Guest:
    return booted(rules).prints(*parts).waits(seconds)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("SKIP: no card\r\n", Verdict.SKIPPED),
        ("SKIP: no card\r\nPASS\r\n", Verdict.SKIPPED),
        ("PASS\r\nSKIP: no card\r\n", Verdict.SKIPPED),
        ("FAIL\r\nSKIP: no card\r\n", Verdict.FAIL),
        ("SKIP: no card\r\nFAIL\r\n", Verdict.FAIL),
        ("SKIP: no card\r\nKernel panic - not syncing: x\r\n", Verdict.PANIC),
        ("Kernel panic - not syncing: x\r\nSKIP: no card\r\n", Verdict.PANIC),
        ("PASS\r\n", Verdict.PASS),
        ("SKIP no card\r\n", None),
        ("SKIP: no card\rPASS        \r\n", None),
        ("SKIP: no card\r\n\x1b[A\x1b[2KPASS\r\n", Verdict.PASS),
        ("SKIP: no card\r\n\x1b[A\x1b[2K\r\n", None),
        ("\x1b[8mSKIP: no card\x1b[0m\r\n", None),
        ("PASS\r\nSKIP: no card\r\n\x1b[A\x1b[2K\r\n", Verdict.PASS),
    ],
)
def test_a_skip_wins_over_a_pass_and_a_fail_or_a_panic_over_a_skip(said: str, verdict: Verdict | None) -> None:
    guest = end(said)
    assert guest.verdict() is verdict
    if verdict is Verdict.SKIPPED:
        assert guest.judge.ruling is not None
        assert guest.judge.ruling.reason == "matched the skip pattern '^SKIP: '"
        assert "SKIP: no card" in (guest.judge.ruling.excerpt or "")


def test_the_echo_of_what_is_typed_skips_nothing() -> None:
    rules = replace(shell(command="echo 'SKIP: not me'; true"), skip=("SKIP: not",))
    assert end("\r\n", PROMPT, rules=rules, seconds=30).verdict() is None
    assert end("SKIP: not me\r\n", PROMPT, rules=rules, seconds=30).verdict() is Verdict.SKIPPED


def test_a_line_that_has_not_ended_skips_nothing() -> None:
    guest = end("SKIP: no ca", seconds=0.3)
    assert guest.verdict() is None
    assert guest.prints("rd\r\n").waits(DRAIN + 1).verdict() is Verdict.SKIPPED


def test_where_every_pattern_has_to_match_one_skip_is_enough() -> None:
    rules = replace(RULES, success=("^PASS$", "^DONE$"), match_all=True)
    assert end("PASS\r\nSKIP: no card\r\n", rules=rules).verdict() is Verdict.SKIPPED
    assert end("PASS\r\nDONE\r\n", rules=rules).verdict() is Verdict.PASS


def test_a_case_without_a_command_is_skipped_too() -> None:
    guest = Guest(Rules(success=("^PASS$",), skip=("^SKIP",)))
    assert guest.prints("SKIP\r\n").waits(DRAIN + 1).verdict() is Verdict.SKIPPED
