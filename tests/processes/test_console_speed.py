"""What rows with CR cost the console's judge, which takes many of them at once, and that they are read as one by one."""

from __future__ import annotations

import random
import unicodedata

import pytest

from qcase.console import row
from qcase.console.joined import Joined, KernelRuns
from qcase.console.rules import Rules
from qcase.console.transcript import Transcript
from qcase.model import Verdict
from tests.tools import bench_console
from tests.unit.console.test_console_rows import in_pieces


@pytest.mark.alone  # measures
def test_rows_with_cr_cost_little_more_than_plain_ones() -> None:
    """Two and a half times as much, and more, before many of them were taken at once."""
    data = {kind: bench_console.output(kind, 2_000_000, 1) for kind in ("plain", "counters")}
    pairs = [[bench_console.judged(data[kind]) for kind in data] for _ in range(4)]
    assert min(counters / plain for plain, counters in pairs[1:]) < 2.0


def shown(text: str, *cuts: int) -> tuple[bytes, list[int]]:
    """What a terminal shows of a text that comes in pieces, and where each row began in the written text."""
    transcript = Transcript()
    low = 0
    for cut in (*cuts, len(text)):
        transcript.feed(text[low:cut].encode())
        transcript.readings.update()
        low = cut
    view = transcript.readings.shown.view
    starts = [at for at in range(len(view)) if at == 0 or view[at - 1] == 10]
    return bytes(view), [transcript.readings.source_of_shown(at) for at in starts]


def test_rows_with_cr_are_shown_as_they_are_one_by_one() -> None:
    chance = random.Random(7)
    for _ in range(400):
        rows = ["".join(chance.choices("ab\r", (4, 4, chance.randrange(1, 5)), k=chance.randrange(12))) for _ in range(30)]
        text = "\n".join(row.replace("\r\r", "\r") for row in rows) + "\n"
        ends = [at + 1 for at, char in enumerate(text) if char == "\n"]
        assert shown(text) == shown(text, *ends[:-1])


def test_rows_with_cr_are_shown_as_they_are_however_they_are_split() -> None:
    chance = random.Random(8)
    for _ in range(400):
        rows = ["\r".join(chance.choices(("a", "ab", "abc", "b", "ca", ""), k=chance.randrange(1, 7))) for _ in range(6)]
        text = "\n".join(row.rstrip("\r") for row in rows) + "\n"
        assert shown(text) == shown(text, *sorted(chance.sample(range(1, len(text)), min(3, len(text) - 1)))), text


def test_rows_that_are_erased_behind_cr_are_shown_as_the_screen_has_them() -> None:
    """`ESC[2;K` is the same escape, and each of them is the screen's affair."""
    chance = random.Random(10)
    words = ("a", "ab", "\u2501", "\x1b[32mab\x1b[0m", "\t", "a\x1b[?25l")
    for _ in range(400):
        text = ""
        for _ in range(chance.randrange(1, 12)):
            text += chance.choice(words) + chance.choice(("\r\x1b[2K", "\r\x1b[2K", "\r\x1b[2K", "\r", "\n", "\r\n"))
        text += "\n"
        cuts = sorted(chance.sample(range(1, len(text)), min(chance.randrange(3), len(text) - 1)))
        assert shown(text, *cuts) == shown(text.replace("[2K", "[2;K")), (text, cuts)


def test_what_was_erased_behind_cr_is_no_success_and_may_be_a_fail() -> None:
    rules = Rules(success=("^PASS$",), fail=("^FAIL$",))
    assert in_pieces(rules, "PASS\r\x1b[2Kno\r\n") is Verdict.EXITED
    assert in_pieces(rules, "no\r\x1b[2KPASS\r\n") is Verdict.PASS
    assert in_pieces(rules, "\x1b[31mFAIL\x1b[0m\r\x1b[2Kok\r\nPASS\r\n") is Verdict.FAIL
    assert in_pieces(rules, "xxIL\rFA\r\x1b[2Kok\r\nPASS\r\n") is Verdict.FAIL
    assert in_pieces(rules, "ok\r\x1b[2KxxIL\rFA\r\nPASS\r\n") is Verdict.FAIL


def test_a_kernels_lines_are_taken_out_of_a_block_as_out_of_each_line() -> None:
    chance = random.Random(9)
    lines = (
        b"x\n",
        b"yy\n",
        b"[    1.25] k\n",
        b"<6>[    2.000001] k\n",
        b"FA[    3.5] k\n",
        b"<4[    1.2] k\n",
        b"e\0\0 f\n",
        b"g\0\n",
    )
    for _ in range(400):
        block = chance.choices(lines, (4, 4, 6, 3, 3, 1, 1, 1), k=12)
        whole, single = (Joined(b"#", KernelRuns(), inside=True) for _ in range(2))
        whole.take(b"".join(block), 0)
        for number, line in enumerate(block):
            single.take(line, sum(map(len, block[:number])))
        assert (whole.text.raw, whole.carry, whole.continued) == (single.text.raw, single.carry, single.continued), block
        assert [whole.source(at) for at in range(whole.text.end)] == [single.source(at) for at in range(single.text.end)], block


def test_a_row_that_stands_below_one_with_cr_is_its_neighbour() -> None:
    rules = Rules(success=("^PASS$",), fail=("^not ok\nmemory$",))
    assert in_pieces(rules, "1 of 2\rnot ok\r\n2 of 2\rmemory\r\nPASS\r\n") is Verdict.FAIL


def test_the_cursor_comes_back_to_rows_with_cr() -> None:
    """Saved and restored: each row that ended counts, also one with CR."""
    rules = Rules(success=("^PASS$",), fail=("FAIL",))
    counted = "1\r22\r\n1\r22\r\n"
    assert in_pieces(rules, f"a\r\n\x1b7b\r\n{counted}\x1b8PASS\r\n") is Verdict.PASS
    assert in_pieces(rules, f"a\r\nb\r\n{counted}\x1b[3APASS\r\n\x1b[2B\r\n") is Verdict.PASS
    assert in_pieces(rules, f"a\r\nPASS\r\n{counted}\x1b[3A\x1b[2K\x1b[3B\r\n") is Verdict.EXITED


def test_characters_that_are_taken_for_one_cell_take_one() -> None:
    for code in range(0x80, 0x10000):
        char = chr(code)
        if row.NARROW.fullmatch(char):
            assert row.cells_of(char) == 1, unicodedata.name(char, hex(code))


def test_the_figures_are_printed_beside_an_older_judge(capsys: pytest.CaptureFixture[str]) -> None:
    bench_console.main(["--megabytes", "0.2", "--pairs", "1", "--baseline", "HEAD", "counters", "random bytes"])
    out = capsys.readouterr().out.splitlines()
    assert out[-2].split()[:1] == ["counters"]
    assert "aim: over 1" in out[-1]


@pytest.mark.alone  # measures
def test_rows_that_begin_below_the_end_of_the_last_one_do_not_grow_without_end() -> None:
    """Three times the bytes cost nine times as much."""
    few, many = (bench_console.judged(b"x\x1b[B" * count) / count for count in (2_000, 6_000))
    assert many < 2 * few


@pytest.mark.alone  # measures
@pytest.mark.parametrize("unit", ["é\x1b[1Jx\x1b[2I", "passed 7\x1b[2m\x1b[L", "xxxx\x1b7\x1b[S\x1b[?1049h"])
def test_a_cursor_that_goes_right_for_ever_costs_no_more_with_each_step(unit: str) -> None:
    """Rows as long as all that was written before, each time that the screen was cleared."""
    few, many = (bench_console.judged(unit.encode() * count) / count for count in (2_000, 8_000))
    assert many < 2 * few
