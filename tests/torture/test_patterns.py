"""No text makes a regular expression of qcase's search for minutes: Python's engine cannot be interrupted meanwhile.

Each pattern in the sources gets long texts of what it is made of, repeated, as the functions that use it would give them.
"""

from __future__ import annotations

import ast
import importlib
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import ROOT

LONG = 24_000  # characters: with a square of them, a search takes seconds
SECONDS = 0.5  # of the processor's time; linear ones take a few milliseconds
METHODS = ("match", "fullmatch", "search", "sub", "subn", "findall", "finditer", "split")
BOUNDED = {
    # In the last 4 KiB of a line.
    ("qcase.console.panics", "_PROGRAM_PANIC"),
}


def used() -> list[tuple[str, str, re.Pattern[Any], str]]:
    """The patterns of all modules with the methods that are called: (module, name or line, pattern, method)."""
    found: list[tuple[str, str, re.Pattern[Any], str]] = []
    for path in sorted((ROOT / "qcase").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name == "qcase.__main__":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
        methods: dict[str, set[str]] = {}
        for node in calls:
            if isinstance(node.value, ast.Name) and node.attr in METHODS:
                methods.setdefault(node.value.id, set()).add(node.attr)
        for key, value in vars(importlib.import_module(name)).items():
            if isinstance(value, re.Pattern) and key in methods:
                found += [(name, key, value, method) for method in sorted(methods[key])]
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in METHODS and call.args:
                first = call.args[0]
                if ast.unparse(call.func.value) == "re" and isinstance(first, ast.Constant):
                    found.append((name, f"line {call.lineno}", re.compile(first.value), call.func.attr))
    return found


def letters(pattern: re.Pattern[Any]) -> list[str]:
    """Characters that a pattern names."""
    text = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    return sorted({char for char in text if char not in "()|*+?{}^"} | {" ", "\t", "\n", "\v", "0", "a", '"', "\0"})


@contextmanager
def limited() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, 4 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def seconds(pattern: re.Pattern[Any], method: str, text: str) -> float:
    given: Any = text if isinstance(pattern.pattern, str) else text.encode("latin-1", "replace")
    began = time.process_time()
    try:
        with limited():
            if method in ("match", "fullmatch", "search"):
                getattr(pattern, method)(given)
            else:
                for _ in pattern.finditer(given):
                    pass
    except TimeoutError:
        pass
    return time.process_time() - began


def test_no_pattern_takes_the_square_of_its_text() -> None:
    slow = []
    for module, name, pattern, method in used():
        if (module, name) in BOUNDED:
            continue
        said = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
        words = re.findall(r"[A-Za-z_<$\[(]{2,}", said)[:4]
        units = [*letters(pattern), *words, *(f"{word} " for word in words), "a ", "\n "]
        for unit in units:
            for before in ("", *words[:2]):
                text = before + unit * (LONG // len(unit)) + "\x01!"
                if seconds(pattern, method, text) > SECONDS and seconds(pattern, method, text) > SECONDS:
                    slow.append(f"{module}, {name}: {said!r}, {method} in {before!r} and then {unit!r} repeated")
                    break
            else:
                continue
            break
    assert not slow, "\n".join(slow)


@pytest.mark.parametrize("char", ["\v", "\r", "\x1c", "\u2028", "\f"])
def test_line_ends_of_a_guest_do_not_keep_a_log_busy(char: str) -> None:
    from qcase.report import inert

    began = time.process_time()
    assert inert.log(char * 200_000 + "::error::x").endswith(": :error::x")
    assert time.process_time() - began < 5
