"""What counts of rows that a guest comes back to, of what stood there before the prompt, and of bytes in any pieces."""

from __future__ import annotations

import time

import pytest

from qcase.console.joined import Bared
from qcase.console.judge import DRAIN, QUIET, Judge
from qcase.console.rules import Limits, Rules
from qcase.model import Verdict
from tests.unit.console.test_console import PROMPT, Guest, shell

TORN = "FAI[    2.040000] x\r\nL\r\n"
ROWS = "FxI\b\bA\x1b[CL\r\n"


def judged(rules: Rules, *parts: bytes) -> Verdict | None:
    """The verdict on bytes that all come at the same time, after which QEMU ends."""
    judge = Judge(rules, started=0.0, limits=Limits())
    for part in parts:
        judge.feed(part, 1.0)
    judge.tick(1.0 + QUIET + DRAIN)
    judge.ended(9.0, "status 0")
    return judge.ruling.verdict if judge.ruling else None


def in_pieces(rules: Rules, text: str) -> Verdict | None:
    """The verdict, which is the same for the whole and for single bytes."""
    data = text.encode()
    whole = judged(rules, data)
    assert judged(rules, *(data[i : i + 1] for i in range(len(data)))) is whole
    return whole


# --- from the prompt on -----------------------------------------------------------------------------------------------


def from_prompt(before: str, *behind: str) -> Verdict | None:
    guest = Guest(shell(from_prompt=True, fail="FAIL")).prints(before + PROMPT).waits(2)
    return guest.prints(*behind).waits(2).verdict()


@pytest.mark.parametrize("moves", ["\x1b[2A\x1b[2B", "\x1b[2A\r\n\r\n", "\x1b[2Ax\x1b[2B", "\x1b[2A\x1b[2K\x1b[2B"])
def test_text_from_before_the_prompt_that_the_cursor_comes_back_to_does_not_count(moves: str) -> None:
    assert from_prompt("PASS\r\n", moves) is None
    assert from_prompt("FAIL\r\n", moves, "\r\nPASS\r\n") is Verdict.PASS
    assert from_prompt("x\rFAIL\r\n", moves, "\r\nPASS\r\n") is Verdict.PASS


def test_what_is_written_over_the_row_of_the_prompt_counts() -> None:
    assert from_prompt("", "\x1b[A\r\x1b[2KPASS\r\n") is Verdict.PASS


def test_text_of_the_same_chunk_behind_the_prompt_counts() -> None:
    rules = Rules(prompt=PROMPT.strip(), success=("^PASS$",), fail=("FAIL",), from_prompt=True)
    assert in_pieces(rules, f"PASS\r\n{PROMPT}\r\nx\r\n") is Verdict.EXITED
    assert in_pieces(rules, f"FAIL\r\n{PROMPT}\r\nPASS\r\n") is Verdict.PASS
    for fail in ("FAIL\r\n", TORN, ROWS):
        assert in_pieces(rules, f"x\r\n{PROMPT}\r\n{fail}PASS\r\n") is Verdict.FAIL
        assert in_pieces(rules, f"{fail}{PROMPT}\r\nPASS\r\n") is Verdict.PASS
    assert in_pieces(rules, f"x FAI[    2.040000] x\r\n{PROMPT}L\r\nPASS\r\n") is Verdict.PASS


# --- panics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("x Kernel panic - not syncing: PASS\n", Verdict.PANIC),
        ("PASS Kernel panic - not syncing: x\n", Verdict.PANIC),
        ("x Kernel panic - not syncing: x\nPASS\n", Verdict.PASS),
        ("x Kernel panic - not syncing: x\nPA[    2.040000] x\nSS\n", Verdict.PASS),
    ],
)
def test_only_a_success_on_a_later_row_shows_that_a_guest_went_on_behind_the_words_of_a_panic(text: str, right: Verdict) -> None:
    assert in_pieces(Rules(success=("PASS",)), text) is right


def test_many_words_of_panics_cost_no_more_than_few() -> None:
    judge = Judge(Rules(success=("^PASS$",)), started=0.0)
    for number in range(50):
        judge.feed(b"grep: Kernel panic - not syncing: x\n" * 400, number / 1000)
    judge.feed(b"PASS\n", 1.0)
    judge.tick(3.0)
    assert judge.ruling is not None
    assert judge.ruling.verdict is Verdict.PASS
    assert len(judge._suspects.open) <= 64


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_character_that_is_repeated_by_a_control_counts() -> None:
    assert in_pieces(Rules(success=("^PASS$",), fail=("A{3}",)), "A\x1b[2b\r\nPASS\r\n") is Verdict.FAIL
    assert in_pieces(Rules(success=("^éé日日$",)), "é\x1b[b日\x1b[b\r\n") is Verdict.PASS


def test_a_repeated_character_is_not_taken_for_echo() -> None:
    guest = Guest(shell("^xxxxxxxxx$", command="aaaaaaaaaaaaaa")).prints(PROMPT).waits(2)
    assert guest.prints("x\x1b[8b\r\n").waits(1).verdict() is Verdict.PASS
    guest = Guest(shell("^a{100}$")).prints(PROMPT).waits(2)
    assert guest.prints("a\x1b[99b\r\n").waits(1).verdict() is Verdict.PASS


@pytest.mark.parametrize("unit", ["line\r\n\x1b[A\x1b[A", "x\r\n\x1b[128A", "\x1b[HPASS\r\n"])
def test_rows_that_are_written_again_and_again_cost_no_more_the_more_there_were(unit: str) -> None:
    judge = Judge(Rules(success=("^x{9}$",)), started=0.0)
    data = (unit * (200_000 // len(unit))).encode()
    before = time.process_time()
    for at in range(0, len(data), 4096):
        judge.feed(data[at : at + 4096], at / 1e6)
    assert time.process_time() - before < 4  # a walk through all earlier states takes 6 to 15 s, else it is 0.4 s


OVER = "x\r\nPASS: 0 failed: 1\r\n"  # the top of a screen; its second row holds more than PASS behind it


@pytest.mark.parametrize(
    "moves",
    [
        "\x1b[Hy\r\n\r\n\r\n\x1b[H\r\n",
        "\x1b[Hy\r\n\r\n\r\n\x1b[H\x1b[H\r\n",
        "\x1b[Hy\r\ny\r\nz\r\nz\r\n\x1b[2;1H",
        "\x1b[Hy\r\n\r\n\r\n\x1b[2A",
        "\x1b[Hy\r\n\r\nnew\r\n\x1b[2A",
        "\x1b[H\x1b[?1049h\x1b[2Jy\r\ny\r\ny\x1b[?1049l\r\n",
        "\x1b[?1049h\x1b[2J\x1b[?1049l\x1b[Hx\r\n",
        "\x1b[H\x1b7\x1b[5;1Hy\x1b8\r\n",
        "y\r\n\x1b7\x1b[5;1Hy\x1b8\x1b[2;1H",
    ],
)
def test_a_row_that_a_guest_addresses_again_may_hold_text_behind_the_new_one(moves: str) -> None:
    rules = Rules(success=("(?m)^PASS$",))
    assert in_pieces(rules, f"{OVER}{moves}PASS\r\n") is Verdict.EXITED
    assert in_pieces(rules, f"{OVER}{moves}\x1b[2J\x1b[HPASS\r\n") is Verdict.PASS


def test_a_bar_at_the_bottom_makes_no_more_rows_uncertain_than_may_hold_it() -> None:
    rules = Rules(success=("(?m)^PASS$",))
    text = "".join(f"line {n}\r\n\x1b7\x1b[24;1H\x1b[30;42mProgress {n}\x1b[0m\x1b8" for n in range(40))
    assert in_pieces(rules, f"{text}PASS\r\n") is Verdict.EXITED  # the bar may stand behind it
    assert in_pieces(rules, f"{text}\r\n\r\nPASS\r\n") is Verdict.PASS


@pytest.mark.parametrize("text", ["\x1b[5;1HFA\x1b[5;3HIL", "\x1b[5;3HIL\x1b[5;1HFA", "\x1b[2J\x1b[HFx\x1b[1;3HIL\x1b[1;2HA"])
def test_a_fail_text_that_is_put_together_on_an_addressed_row_counts(text: str) -> None:
    assert in_pieces(Rules(success=("^PASS$",), fail=("FAIL",)), f"{text}\r\nPASS\r\n") is Verdict.FAIL


@pytest.mark.parametrize("between", ["\r\n", "\x1b[A", "\x1b[6;1H", "\x1b[M", "\x1b[?1049h", "\x1b7\x1b8", "\x1b[d"])
def test_a_row_that_the_cursor_has_left_is_another_one_when_it_is_addressed_again(between: str) -> None:
    assert in_pieces(Rules(success=("^PA",), fail=("FAIL",)), f"\x1b[5;1HFA{between}\x1b[5;3HIL\r\n") is Verdict.EXITED


@pytest.mark.parametrize("size", [300, 5_000, 15_990, 16_000, 20_000, 40_000])
@pytest.mark.parametrize(("begin", "end"), [("\x1b]0;", "\x07"), ("\x1bP", "\x1b\\"), ("\x1b[", "m")])
def test_a_long_sequence_is_read_alike_however_it_is_split(size: int, begin: str, end: str) -> None:
    data = f"{begin}{'1' * size}FAIL{end}PASS\r\n".encode()
    rules = Rules(success=("^PASS$",), fail=("FAIL",))
    whole = judged(rules, data)
    assert judged(rules, *(data[i : i + 999] for i in range(0, len(data), 999))) is whole
    assert begin == "\x1b[" or whole is Verdict.FAIL


@pytest.mark.parametrize("unit", ["\x1b[4096Cx", "x\r\x1b[4096@", "x\b\b", "\r\u0301", "a\x1b[4096b"])
def test_a_row_that_never_ends_takes_no_more_memory_the_longer_it_gets(unit: str) -> None:
    judge = Judge(Rules(success=("^x{9}$",)), started=0.0)
    judge.feed(b"x\r", 0.0)
    for number in range(20):
        judge.feed((unit * 100).encode(), number / 100)
    judge.feed(b"x" * 300_000, 1.0)
    row = judge._transcript._screen.current
    assert sum(map(len, row.chars)) < 1 << 18
    assert judge.ruling is None


def test_titles_without_end_are_told_before_the_row_ends() -> None:
    judge = Judge(Rules(success=("^PASS$",), fail=("FAIL",)), started=0.0)
    judge.feed(b"\b\x1b]0;FAIL\x07" + b"\x1b]0;x\x07" * 500, 0.0)
    judge.tick(1.0)
    assert judge.ruling is not None
    assert judge.ruling.verdict is Verdict.FAIL
    assert len(judge._transcript._strings) <= 256


def test_a_typed_line_behind_the_prompt_is_no_evidence_however_a_line_editor_paints_it() -> None:
    guest = Guest(shell("PASS", command="echo PASS"), echo=False).prints(PROMPT).waits(0.2)
    for _ in range(3):  # a suggestion behind each key
        typed, guest.typed = guest.typed, b""
        for key in typed.decode():
            guest.prints("\r\n" if key == "\n" else f"{key}\x1b[90mPASS\x1b[39m\b\b\b\b\x1b[K")
        guest.waits(1)
    assert guest.waits(2).verdict() is None
    assert guest.prints("PASS\r\n").waits(1).verdict() is Verdict.PASS


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[" + "1" * 400 + "x",
        "\x1b[" + ";" * 400 + "x",
        "\x1b[1m\x1b[" + "38;5" * 100 + "x",
        "\x1b[?" + ";" * 400 + "x",
        "x" + "\r" * 20_000,
        "x\x1b[1m" + "\r" * 20_000,
        "\b" + "\r" * 20_000,
        ("x" * 80 + "\r\r\n") * 500,
    ],
    ids=range(8),
)
def test_no_text_stops_the_judge(text: str) -> None:
    """Expressions that try each way to split a sequence or a run take exponential time, or that of the length's cube."""
    before = time.process_time()
    assert in_pieces(Rules(success=("^PASS$",)), text[:400] + "\n\r\r\nPASS\n") is Verdict.PASS
    assert judged(Rules(success=("^PASS$",)), text.encode() + b"\n\nPASS\n") is Verdict.PASS
    assert time.process_time() - before < 4


@pytest.mark.parametrize(
    "unit", ["[1.123456 ", PROMPT, "x Kernel panic - not syncing ", f"{PROMPT}x ", "thread 'x' panicked at y "]
)
def test_a_line_of_one_thing_again_and_again_costs_what_it_is_long(unit: str) -> None:
    guest = Guest(shell()).prints(PROMPT).waits(2)
    data = (unit * (400_000 // len(unit))).encode()
    before = time.process_time()
    for at in range(0, len(data), 4096):
        guest.prints(data[at : at + 4096])
    assert time.process_time() - before < 12  # 1 to 3 s, else more than 14 s


@pytest.mark.parametrize("erases", ["\r\x1b[K\r\n", "\r\x1b[0K\r\n", "\r\x1b[J\n", "\r\x1b[31m\x1b[K\r\n", "\r\x1b[2K\r\n"])
def test_a_row_that_is_erased_right_before_it_ends_is_no_success(erases: str) -> None:
    assert in_pieces(Rules(success=("^PASS$",)), f"PASS{erases}") is Verdict.EXITED
    assert in_pieces(Rules(success=("^PASS$",), fail=("^FAIL$",)), f"FAIL{erases}") is Verdict.FAIL


def test_what_stands_behind_an_echo_does_not_begin_its_row() -> None:
    """The blank that parts them may be the echo's or the program's; what an echo stands behind ends its row."""
    bared = Bared()
    bared.take(b"\0\0\0FAIL\nfail 1\0\0\n  x\0y\nplain\n\0\0\n", 0)
    assert bytes(bared.text.raw) == b"\0\0\0FAIL\nfail 1\n  xy\n"


def test_rows_with_echo_are_neighbours_only_where_they_are_on_the_console() -> None:
    bared = Bared()
    bared.take(b"BAD\0\nEND\0\nx\nEND\0\n", 0)
    assert [b"BAD\nEND" in part for part in bytes(bared.text.raw).split(b"\1")] == [True, False]
    bared.rewind(10)
    bared.take(b"x\nEND\0\n", 10)
    assert bytes(bared.text.raw) == b"BAD\nEND\n\1\nEND\n"
