"""Random consoles: the judge against a reference that is slow and simple, and echo in any disguise."""

from __future__ import annotations

import itertools
import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from qcase.console.judge import DRAIN, QUIET, Judge
from qcase.console.keyboard import ECHO_PATIENCE
from qcase.console.rules import Rules
from qcase.console.text import WINDOW, Pattern
from qcase.console.transcript import Transcript
from qcase.model import Verdict
from tests.unit.console.test_console import PROMPT, Guest

steady = settings(derandomize=True, deadline=None, max_examples=150, database=None)

TOKENS = [
    "PASS",
    "FAIL",
    "ED",
    "x",
    "xx",
    " ",
    "\n",
    "\r\n",
    "\r",
    "é",
    "\x1b[1m",
    "\x1b[K",
    "\x1b]0;PASS\x07",
    "\x00",
    "\x08",
    "\x1b",
    "\x1b[",
]
streams = st.lists(st.sampled_from(TOKENS), max_size=25).map(lambda tokens: "".join(tokens).encode())
cuts = st.lists(st.integers(0, 120), max_size=12)
PATTERNS = ["^PASS$", r"PASS\b", r"x\s*PASS", "PASS\nx", "(?s:x.*é)", "^x+$", r"^\s*é", "[^x]PASS", "PASSED", r"^PASS\s*$"]


def pieces(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in at)})
    return [data[low:high] for low, high in itertools.pairwise(places)]


def readings(parts: list[bytes]) -> tuple[bytes, ...]:
    """All readings of what a guest wrote in these pieces."""
    transcript = Transcript()
    for part in parts:
        transcript.feed(part)
        transcript.readings.update()
    transcript.finish()
    transcript.readings.update()
    texts = (
        transcript.written,
        transcript.readings.shown,
        transcript.readings.states,
        transcript.readings.joined.text,
        transcript.readings.shown_joined.text,
    )
    return tuple(bytes(text.raw) for text in texts)


def shown(data: bytes) -> str:
    return readings([data])[1].decode()


@steady
@given(streams, cuts)
@example(b"a\r\x1b[0m\nb", [2, 5])
@example(b"\x1b]0;\r\nx", [4, 5])
@example(b"\x1bPASS\x1b]0;x\x07y", [9])
@example(b"\x1b[12\x1b[0mPASS", [6])
def test_clean_text_does_not_depend_on_how_bytes_are_split(data: bytes, at: list[int]) -> None:
    assert readings(pieces(data, at)) == readings([data])


@steady
@given(streams, cuts, st.sampled_from(PATTERNS), st.sampled_from(PATTERNS))
@example(b"PASS\nx", [5], "PASS\nx", "PASSED")
@example(b"x\n \nPASS", [2, 4], r"x\s*PASS", "PASSED")
def test_the_verdict_is_that_of_a_search_in_the_whole_text(data: bytes, at: list[int], success: str, fail: str) -> None:
    data += b"\n"
    written, shown, states, joined, shown_joined = (text.decode() for text in readings([data]))
    expected = None
    if any(re.search(fail, text, re.MULTILINE | re.ASCII) for text in (written, states, joined, shown_joined)):
        expected = Verdict.FAIL
    elif any(re.search(success, text, re.MULTILINE | re.ASCII) for text in (shown, shown_joined)):
        expected = Verdict.PASS
    judge = Judge(Rules(success=(success,), fail=(fail,)), started=0.0)
    now = 0.0
    for piece in pieces(data, at):
        now += 0.01  # all of it comes before any drain is over
        judge.feed(piece, now)
    for _ in range(10):
        if (wake := judge.next_wake()) is not None:
            now = max(now, wake)
            judge.tick(now)
    assert (judge.ruling.verdict if judge.ruling else None) is expected


@steady
@given(streams, cuts, st.sampled_from(PATTERNS), st.lists(st.sampled_from([0.01, 0.3, 0.6]), min_size=13, max_size=13))
def test_pauses_make_no_pass_of_lines_that_do_not_match(data: bytes, at: list[int], success: str, pauses: list[float]) -> None:
    """A line that pauses may pass as it stands, but only after it stood so for the quiet time and the drain."""
    guest = Guest(Rules(success=(success,)))
    quiet = [b""]
    raw = b""
    for piece, pause in zip(pieces(data + b"\n", at), pauses, strict=False):
        guest.prints(piece)
        raw += piece
        quiet.append(raw)
        guest.waits(pause)
    guest.waits(QUIET + DRAIN + 0.1)
    texts = [shown(part) for part in quiet]
    if guest.verdict() is Verdict.PASS:
        assert any(re.search(success, text, re.MULTILINE | re.ASCII) for text in texts)
    if re.search(success, texts[-1], re.MULTILINE | re.ASCII):
        assert guest.verdict() is Verdict.PASS


WORDS = ["echo", "PASS", "&&", "PASS;", "'a b'", "é", "日本", "\t", "x" * 30, "true", "#", "> PASS", PROMPT.strip(), "\\"]
commands = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join).filter(lambda c: c.strip() and c != "PASS")
kernel_lines = st.sampled_from(["", "", "[    2.125000] eth0: up\r\n", "[   12.000001][   T45] random: crng init done\r\n"])
breaks = st.sampled_from(["\r\n", " \r", "\r\n\r"])


@steady
@given(
    commands,
    st.integers(10, 100),
    breaks,
    st.lists(st.tuples(st.integers(0, 200), kernel_lines, st.sampled_from([0.01, 0.4, 0.9, 2.5])), max_size=4),
    st.sampled_from([0.0, 0.5, 3.0, 10.0]),
    st.booleans(),
)
@example("echo PASS", 80, "\r\n", [(5, "[    2.1] eth0: up\r\n", 0.01)], 10.0, False)
def test_an_echo_in_no_disguise_passes(
    command: str,
    width: int,
    line_break: str,
    interrupted: list[tuple[int, str, float]],
    late: float,
    painted_again: bool,
) -> None:
    """Broken at the terminal's width, with kernel lines and pauses in between, late, and painted again behind the prompt."""
    rules = Rules(prompt=PROMPT.strip(), command=command, success=("PASS",), fail=("^FAIL",))
    guest = Guest(rules, echo=False).prints(PROMPT).waits(0.15 + late)
    typed = command.rstrip("\r\n")
    shown = [(line_break if at and at % width == 0 else "") + char for at, char in enumerate(typed)]
    stops = sorted((at % (len(shown) + 1), line, pause) for at, line, pause in interrupted)
    begin = 0
    for stop, line, pause in stops:
        echoes(guest, typed, shown, begin, stop).prints(line).waits(pause)
        begin = stop
    echoes(guest, typed, shown, begin, len(shown)).waits(12)
    assert guest.verdict() is None
    assert guest.typed.endswith(b"\n")
    guest.prints("\r\n")
    if painted_again:
        guest.prints(PROMPT, typed + "\r\n")
    guest.waits(3)
    assert guest.verdict() is None
    ruled = guest.prints("PASS\r\n").waits(1).verdict()
    # Behind an echo that others tore, or that came when it was not waited for any more, a part of what was typed may be its rest.
    disguised = bool(interrupted) or late > ECHO_PATIENCE
    assert ruled is Verdict.PASS or (ruled is None and "PASS" in typed and disguised)


def echoes(guest: Guest, typed: str, shown: list[str], begin: int, end: int) -> Guest:
    """Print the echo of some of the characters, each one when it was typed."""
    while begin < end:
        arrived = len(guest.typed.rstrip(b"\n").decode())
        if arrived > begin:
            guest.prints("".join(shown[begin : min(arrived, end)]))
            begin = min(arrived, end)
        else:
            assert typed.startswith(guest.typed.decode())
            guest.waits(0.02)
    return guest


@steady
@given(commands, st.integers(10, 100), breaks, st.sampled_from([0.02, 0.5, 5.0]))
def test_a_complete_echo_of_a_command_takes_nothing_from_its_output(
    command: str, width: int, line_break: str, runs_for: float
) -> None:
    """A terminal echoes each key and breaks lines at its width: output passes though the pattern stands in the command."""
    rules = Rules(prompt=PROMPT.strip(), command=command, success=("PASS",), fail=("^FAIL",))
    guest = Guest(rules, echo=False).prints(PROMPT).waits(0.15)
    seen = column = 0
    while not guest.typed.endswith(b"\n"):
        keys = guest.typed[seen:].decode()
        seen = len(guest.typed)
        shown = ""
        for char in keys:
            shown += line_break * (column > 0 and column % width == 0) + char
            column += 1
        guest.prints(shown).waits(0.1)
    guest.prints("\r\n").waits(runs_for)
    assert guest.verdict() is None
    assert guest.prints("PASS\r\n", PROMPT).waits(1).verdict() is Verdict.PASS


@steady
@given(
    st.lists(
        st.sampled_from(["x", "\\n", "\n", r"\s", r"\W", r"[^x]", r"\x0a", r"\012", r"\pC", "(?s:.)", r"\Q\E", "."]), max_size=4
    )
)
def test_a_pattern_that_can_match_a_line_end_is_known_to(parts: list[str]) -> None:
    pattern = Pattern("a" + "".join(parts) + "b")
    for filling in (b"\n", b"x\n", b"\nx", b"x\nx", b"\n\n"):
        if pattern.search(b"a" + filling + b"b") is not None:
            assert pattern.spans_lines


def test_text_that_is_dropped_moves_nothing() -> None:
    """A flood of several windows, then evidence that begins just inside of the last one."""
    judge = Judge(Rules(success=("(?s)^BEGIN$.*^END$",), fail=("^FAIL",)), started=0.0)
    filler = b"y" * 63 + b"\n"
    for i in range(200):
        judge.feed(filler * 512, i * 0.001)
    judge.feed(b"BEGIN\n", 1.0)
    for i in range((WINDOW - 100_000) // (64 * 512)):
        judge.feed(filler * 512, 1.0 + i * 0.001)
    judge.feed(b"END\n", 2.0)
    judge.tick(3.0)
    judge.tick(4.0)
    assert judge.ruling is not None
    assert judge.ruling.verdict is Verdict.PASS
