"""The alignment of what came with what was typed."""

from __future__ import annotations

import pytest

from qcase.console.alignment import SURE, Came, Typed, compare


def told(typed: str, came: str, *, parts: tuple[int, ...] = (0,), over: bool = False) -> str:
    """For each character: `#` for echo, `.` for output, `?` for either."""
    text, back = typed.encode(), came.encode()
    lines = [0, *(n + 1 for n, char in enumerate(text[:-1]) if char == 10)]
    starts = {0, *(n + 1 for n, char in enumerate(back) if char == 10)}
    prompts = {n + 2 for n in range(len(back)) if back[n : n + 2] == b"# "}
    prices, *_ = compare(
        Typed(text, [0] * len(text), list(parts), lines), Came(back, list(range(len(back))), starts, prompts, True), over=over
    )
    marks = "".join("." if price >= SURE else "#" if price <= -SURE else "?" for price in prices)
    return "".join(char if char == "\n" else mark for char, mark in zip(came, marks, strict=True))


@pytest.mark.parametrize(
    ("typed", "came", "right"),
    [
        ("echo PASS\n", "echo PASS\nPASS\n", "#########\n....\n"),
        ("echo PASS\n", "PASS\n", "....\n"),
        ("echo PASS\n", "ECHO PASS\nPASS\n", "#########\n....\n"),
        ("echo PASS\n", "ech PASS\nPASS\n", "########\n....\n"),
        ("echo PASS\n", "test x\nPASS\n", "......\n....\n"),
        ("cat <<Q\nPASS\nQ\n", "cat <<Q\nPASS\nQ\nPASS\n", "#######\n####\n#\n....\n"),
        ("say F, then A, I, L\n", "say F, then\nFAIL\n A, I, L\nx\n", "###########\n....\n########\n.\n"),
    ],
)
def test_echo_is_told_from_output(typed: str, came: str, right: str) -> None:
    assert told(typed, came) == right


def test_what_comes_twice_is_echo_both_times() -> None:
    assert told("cat <<Q\nPASS\nQ\n", "cat <<Qcat <<Q\nPASS\nPASS\n", parts=(0, 7, 12, 14)) == "##############\n####\n####\n"


def test_an_echo_that_has_begun_may_go_on_until_nothing_more_comes() -> None:
    assert told("FAIL=1 ./t\n", "FAIL\n") == "####\n"
    assert told("FAIL=1 ./t\n", "FAIL\n", over=True) == "....\n"


def test_nothing_is_echo_before_it_was_typed() -> None:
    came = Came(b"PASS\n", [0, 1, 2, 3, 4], {0}, set(), True)
    assert all(price >= SURE for price in compare(Typed(b"PASS\n", [9] * 5, [0], [0]), came)[0])
