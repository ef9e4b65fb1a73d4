"""Streams of TAP on a console against a reference that shares nothing with the readers (`tests.fuzz.results`)."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import ROOT
from tests.fuzz.results import figures, stream_of
from tests.fuzz.tap_reference import meaning_of


@pytest.mark.parametrize("first", [0, 1_000])
def test_judge_and_reference_agree(first: int) -> None:
    counts, found = figures(first, 250)
    assert found == []
    assert min(counts[kind] for kind in ("pass", "fail", "faulty")) > 25  # streams of each kind


def test_the_reference_shares_nothing_with_the_readers() -> None:
    tree = ast.parse((ROOT / "tests" / "fuzz" / "tap_reference.py").read_text(encoding="utf-8"))
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not [name for name in names if name.split(".")[0] in ("qcase", "re", "re2")]


def test_a_stream_is_the_same_again() -> None:
    assert [stream_of(seed) for seed in range(50)] == [stream_of(seed) for seed in range(50)]


def test_the_reference_sees_what_is_wrong() -> None:
    good = ["KTAP version 1", "1..2", "  1..1", "  ok 1 x", "ok 1 a", "ok 2 b"]
    assert meaning_of(good, "ktap").passes
    for at in range(1, len(good)):
        assert not meaning_of(good[:at] + good[at + 1 :], "ktap").passes, good[at]
        assert not meaning_of(good[:at] + good[at : at + 1] + good[at:], "ktap").passes, good[at]
