"""TOML and JSON of others: whatever is wrong with a text, it is a `ValueError`."""

from __future__ import annotations

import pytest

from qcase import parsing
from qcase.parsing import DEEPEST

DEEP = DEEPEST + 1
HUGE = "9" * 5000


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "a = 1\na = 2",
        "a = " + "[" * 50_000,
        f"a = {'[' * DEEP}{']' * DEEP}",
        f"a = {HUGE}",
        "a." * DEEP + "a = 1",
        b"a = '\xff'",
    ],
    ids=["no TOML", "twice", "without an end", "too deep", "a huge number", "too many dots", "no UTF-8"],
)
def test_toml_that_is_none(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parsing.toml(text)


@pytest.mark.parametrize(
    "text",
    ["", "[" * 50_000, "[" * DEEP + "1" + "]" * DEEP, HUGE, b"\xff", '{"a":' * DEEP + "1" + "}" * DEEP],
    ids=["empty", "without an end", "too deep", "a huge number", "no UTF-8", "objects"],
)
def test_json_that_is_none(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parsing.from_json(text)


def test_what_is_as_deep_as_may_be() -> None:
    levels = DEEPEST - 1
    assert parsing.toml(f"a = {'[' * levels}{']' * levels}")
    assert parsing.from_json("[" * DEEPEST + "]" * DEEPEST)
    assert parsing.from_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
