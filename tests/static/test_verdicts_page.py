"""docs/verdicts.md is the contract of the verdicts: every sentence has a name, and tests that hold it (tests/verdicts.toml)."""

from __future__ import annotations

import ast
import re

import pytest
import tomli

from tests import mutants
from tests.conftest import ROOT
from tests.vm.test_situations import SITUATIONS

PAGE = ROOT / "docs" / "verdicts.md"
HELD: dict[str, list[str]] = tomli.loads((ROOT / "tests" / "verdicts.toml").read_text(encoding="utf-8"))
_SENTENCE = re.compile(r"(?:- )?([A-Z].*[.:]) <!-- ([a-z-]+) -->|(?:- )?(qcase .*\.) <!-- ([a-z-]+) -->")


def sentences() -> list[tuple[str, str]]:
    """Each sentence of the page, with its name."""
    found = []
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        match = _SENTENCE.fullmatch(line)
        assert match is not None, f"{PAGE.name}:{number}: no sentence on a line of its own, with its name in a comment: {line}"
        found.append((match[1] or match[3], match[2] or match[4]))
    return found


def test_every_sentence_has_a_name_of_its_own() -> None:
    names = [name for _, name in sentences()]
    assert len(names) > 50
    assert len(set(names)) == len(names)
    for sentence, name in sentences():
        assert not re.search(r"[.!?] [A-Z]", sentence), f"{name}: two sentences on one line"


def test_each_sentence_is_held_by_tests_that_exist() -> None:
    assert {name for _, name in sentences()} == set(HELD), "tests/verdicts.toml names the sentences of the page, and no others"
    assert [name for name, tests in HELD.items() if not tests] == []


@pytest.mark.parametrize("test", sorted({test for tests in HELD.values() for test in tests}))
def test_a_test_that_holds_a_sentence(test: str) -> None:
    kind, _, name = test.partition(":")
    if kind == "mutant":
        assert name in {row.name for row in mutants.every()}
    elif kind == "situation":
        assert name in SITUATIONS
    else:
        file, _, function = test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
