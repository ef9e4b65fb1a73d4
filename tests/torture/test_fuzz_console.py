"""The console's judge against an oracle that shares nothing with it (`tests.fuzz`), and the oracle itself."""

from __future__ import annotations

import ast
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.conftest import ROOT
from tests.fuzz.guest import DAMAGED, ECHOES, HONEST
from tests.fuzz.log import By, Script, Wants, Write
from tests.fuzz.oracle import Opinion
from tests.fuzz.play import Recorded, play
from tests.fuzz.run import Kind, batch, examine, guest, kind_of
from tests.fuzz.shrink import shown, shrink
from tests.unit.console.console_cases import CASES, Case

VERDICTS = ("pass", "fail", "panic", "timeout", "exited")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_verdict_is_right(case: Case) -> None:
    log, _ = play(Recorded(case.script))
    assert log.verdict == case.right
    assert Opinion(log).complaint() == ""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_oracle_would_see_any_other_verdict(case: Case) -> None:
    log, _ = play(Recorded(case.script))
    for verdict in VERDICTS:
        if verdict != case.right and {verdict, case.right} != {"timeout", "exited"}:
            other = replace(log, verdict=verdict, at=log.at + 2, over=log.over or verdict in ("timeout", "exited"))
            assert Opinion(other).complaint(), verdict


@pytest.mark.parametrize("module", ["group", "guest", "log", "oracle", "oracle_group", "screen", "screens", "serial", "words"])
def test_the_oracle_shares_nothing_with_the_judge(module: str) -> None:
    tree = ast.parse((ROOT / "tests" / "fuzz" / f"{module}.py").read_text(encoding="utf-8"))
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not [name for name in names if name.split(".")[0] in ("qcase", "re2") or name == "tests.fuzz.play"]


def test_a_guest_is_the_same_again() -> None:
    for seed in range(100):
        log, script = play(guest(seed))
        assert play(guest(seed))[0] == log
        assert play(Recorded(script))[0] == log


UNDECIDED = {"honest": 10, "damaged": 40}  # guests in a thousand, at most; 2 and 13 were measured
ECHO_SETS = {"honest": HONEST, "damaged": DAMAGED}


def seed() -> int:
    """Return where the guests of this commit begin: each commit has others, and a failure of one comes again."""
    if given := os.environ.get("QCASE_FUZZ_SEED"):
        return int(given)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return int(done.stdout[:10], 16) if done.returncode == 0 else random.randrange(1 << 40)


def figures_of(first: int, count: int, echoes: Sequence[str]) -> tuple[list[str], int]:
    """Wrong verdicts of some guests, with a reproduction of each, and the number of undecided ones."""
    wrong, undecided = [], 0
    for found in batch((range(first, first + count), echoes)).found:
        if found.kind is Kind.UNDECIDED:
            undecided += 1
        else:
            small, said = shrink(found.script)
            wrong.append(f"{found.kind}, seed {found.seed}: {said}\n{shown(small)}")
    return wrong, undecided


@pytest.mark.parametrize(
    ("echoes", "first", "count"),
    [("honest", 0, 500), ("honest", 5000, 500), ("damaged", 0, 200)],
    ids=["honest from 0", "honest from 5000", "damaged from 0"],
)
def test_the_same_random_guests_each_time(echoes: str, first: int, count: int) -> None:
    """No guest passes or fails that must not, and nearly all are decided.

    Capitals, lost characters, everything twice: what cannot be told from echo decides nothing.
    """
    wrong, undecided = figures_of(first, count, ECHO_SETS[echoes])
    assert not wrong, f"seeds from {first}, echoes {echoes}\n" + "\n".join(wrong)
    assert undecided <= UNDECIDED[echoes] * count / 1000


@pytest.mark.parametrize(("echoes", "count"), [("honest", 600), ("damaged", 200)])
def test_other_random_guests_in_each_commit(echoes: str, count: int) -> None:
    """`QCASE_FUZZ_SEED` repeats a run. So few guests may by chance be undecided more often than many are."""
    first = seed()
    said = f"QCASE_FUZZ_SEED={first}, echoes {echoes}"
    print(said)
    wrong, undecided = figures_of(first, count, ECHO_SETS[echoes])
    assert not wrong, f"{said}\n" + "\n".join(wrong)
    assert undecided <= 10 + UNDECIDED[echoes] * count / 1000, said


def complains(script: Script, verdict: str) -> bool:
    """Tell whether the oracle complains of a verdict at the end of the time."""
    log, _ = play(Recorded(script))
    return bool(Opinion(replace(log, verdict=verdict, at=20.0, over=True)).complaint())


def heard(*writes: Write, success: str = "^PASS$", fail: str = r"\bFAIL\b", command: str = "echo x") -> Script:
    """Write a guest's script behind a prompt, where a command is echoed."""
    wants = Wants(prompt="root@x:/#", command=command, success=(success,), fail=(fail,), whole=20.0)
    echoed = Write(0.3, By.ECHO, f"{command}\r\n".encode())
    return Script(wants, (Write(0.1, By.PROMPT, b"root@x:/# "), echoed, *writes))


def test_the_oracle_leaves_open_what_stood_on_a_row_that_was_addressed() -> None:
    """The cursor goes home: on a screen of 24 lines the prompt stands below, on one that nothing left it is written over."""
    over = b"\x1b[H\nx\x1b[1Gfail 1"
    for verdict in ("fail", "timeout"):
        assert not complains(heard(Write(0.5, By.OUT, over), fail="^fail 1$"), verdict)
    assert complains(heard(Write(0.5, By.OUT, over), Write(0.5, By.OUT, b"0\n"), fail="^fail 1$"), "fail")
    assert complains(heard(Write(0.5, By.OUT, b"\x1b[H\n  fail 1\n"), fail="^fail 1$"), "fail")


def test_the_oracle_leaves_open_what_only_stands_where_an_echo_s_line_end_is_left_out() -> None:
    """The cursor returns to the start of its row, which is not that of the prompt."""
    returns = Write(0.5, By.OUT, b"xxx\x1b[1GFAIL")
    assert not complains(heard(returns, Write(0.6, By.OUT, b"FAIL\nPASS\n")), "pass")
    torn = (Write(0.7, By.OUT, b"\nFAI"), Write(0.8, By.ECHO, b"echo y\r\n"), Write(0.9, By.OUT, b"L!\n"))
    assert complains(heard(returns, *torn, command="echo x\necho y"), "timeout")


# Each was a wrong verdict once; by the kind.
ONCE_WRONG = {
    "a-chunk-of-the-echo-is-torn-in-the-middle": (201000717, 200000387, 201000737, 200006265, 201003504),
    "output-between-two-chunks-that-could-be-echo": (201001906, 200003232, 200005329, 201004568, 200015580),
    "a-line-echoed-again-behind-one-typed-anew": (201001825, 200002334, 207000645),
    "a-match-that-was-echo-and-a-later-one-that-is-not": (201004082, 200008649),
    "a-row-that-the-prompt-ended-is-overwritten": (200000412, 201007724),
    "a-row-behind-a-kernel-line-where-the-cursor-goes-back": (201013553, 200004361),
    "a-text-that-an-echo-tears-is-no-success": (204004053, 204007761, 205002654),
    "a-panic-on-a-line-that-never-ends": (204001904,),
    "a-word-s-border-beside-an-echo": (204009821,),
    "a-panic-by-the-echo-of-its-words": (200008917, 200019836),
    "a-fail-before-the-echo-of-a-group-s-probe": (201006623,),
    "a-control-character-that-comes-back-as-a-caret": (770000011130, 770000016691, 770000018827),
    "an-echo-that-was-erased-and-typed-again": (770000011201,),
    "a-success-that-is-cleared-beside-an-echo-that-comes-twice": (770000013217,),
    "a-fail-of-two-lines-with-a-kernel-line-between": (770000017809,),
    "a-fail-behind-a-visit-to-the-alternate-screen": (204008268,),
}


@pytest.mark.parametrize("kind", ONCE_WRONG)
def test_what_was_wrong_once_is_not_wrong_again(kind: str) -> None:
    for seed in ONCE_WRONG[kind]:
        _, complaint, _ = examine(seed, HONEST)
        assert not complaint or kind_of(complaint) is Kind.UNDECIDED, seed


# The same of guests of which some damage the echo.
ONCE_WRONG_OF_DAMAGED: dict[str, tuple[Sequence[str], tuple[int, ...]]] = {
    "the-whole-line-once-more-torn-by-a-program": (DAMAGED, (960000001164, 141000002049)),
    "a-fail-text-behind-what-may-be-echo-does-not-begin-its-row": (DAMAGED, (141000002571,)),
    "the-same-at-a-row-whose-prompt-was-erased": (ECHOES, (131000012177, 131000018019)),
    "an-echo-that-was-erased-and-is-longer-than-one-look": (DAMAGED, (141000002660,)),
    "a-fail-text-torn-by-a-kernel-line-on-an-unfinished-row": (ECHOES, (980000001099,)),
    "a-kernel-line-in-a-string-that-never-ends": (DAMAGED, (141000002839,)),
    "a-success-in-an-echo-that-lost-a-character-before": (ECHOES, (175000028412,)),
}


@pytest.mark.parametrize("kind", ONCE_WRONG_OF_DAMAGED)
def test_what_was_wrong_with_a_damaged_echo_is_not_wrong_again(kind: str) -> None:
    echoes, seeds = ONCE_WRONG_OF_DAMAGED[kind]
    for seed in seeds:
        _, complaint, _ = examine(seed, echoes)
        assert not complaint or kind_of(complaint) is Kind.UNDECIDED, seed


@pytest.mark.parametrize(
    ("complaint", "kind"),
    [
        ("pass, but no success stands", Kind.WRONG_PASS),
        ("a group passes that did not", Kind.WRONG_PASS),
        ("command 4 is pass, not fail", Kind.WRONG_PASS),
        ("fail, but no fail pattern was written", Kind.WRONG_FAIL),
        ("panic, but no kernel panicked", Kind.WRONG_FAIL),
        ("a group panics, but no kernel did", Kind.WRONG_FAIL),
        ("a group fails in which nothing failed", Kind.WRONG_FAIL),
        ("command 1 is broken, not pass", Kind.WRONG_FAIL),
        ("timeout, but a success stands", Kind.UNDECIDED),
        ("exited, but 'FAIL' was written", Kind.UNDECIDED),
        ("a group's verdict is timeout, but it passed", Kind.UNDECIDED),
        ("pass, but only when the time was up", Kind.UNDECIDED),
    ],
)
def test_disagreements_are_told_apart(complaint: str, kind: Kind) -> None:
    assert kind_of(complaint) is kind


def test_make_fuzz_examines_guests_in_other_processes() -> None:
    arguments = [sys.executable, "-m", "tests.fuzz", "--count", "600", "--seed", "5000", "--jobs", "2"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("seed 5000\n")
    assert "\n600 guests in " in done.stdout, done.stderr
    assert "seeds 5000 to 5599" in done.stdout
    assert "\n0 wrong passes, 0 wrong fails, " in done.stdout
    assert done.returncode == 0
