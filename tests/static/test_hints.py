"""Every command that a message of qcase names works as it is printed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcase.config import image_lock
from tests.conftest import ROOT
from tests.static.test_docs import test_a_command_is_one as parsed

# What stands in the place of an expression in a message.
SAMPLES = {
    "name": "c",
    "image.name": "c",
    "known": "x86_64",
    "now": "20261122T120000Z",
    "time": "20261122T120000Z",
    "' --own' if own else ''": " --own",
    "one.arch": "x86_64",
    "shlex.quote(one.display_name)": "futex",
    "image_lock.stamp(datetime.now(UTC))": "20261122T120000Z",
}


def text_of(node: ast.expr) -> str:
    """A string of the sources, with a sample for each expression in it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.FormattedValue):
        return SAMPLES.get(ast.unparse(node.value), f"<{ast.unparse(node.value)}>")
    return "".join(text_of(part) for part in node.values) if isinstance(node, ast.JoinedStr) else ""


def strings(tree: ast.AST) -> Iterator[ast.expr]:
    """All strings but docstrings, and parts of other strings."""
    passed = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            assert isinstance(first, ast.Expr)
            passed.add(first.value)
        if isinstance(node, ast.JoinedStr):
            passed |= {part for part in ast.walk(node) if isinstance(part, ast.expr)} - {node}
        if isinstance(node, ast.JoinedStr | ast.Constant) and node not in passed:
            yield node


def named() -> list[tuple[str, str]]:
    """The commands that messages name between backticks, and where."""
    found = []
    for path in sorted((ROOT / "qcase").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in strings(tree):
            for command in re.findall(r"`(qcase [^`]+)`", text_of(node)):
                found.append((f"{path.name}:{node.lineno} {command}", command))
    return found


COMMANDS = named()


@pytest.mark.parametrize("command", [c for _, c in COMMANDS], ids=[n for n, _ in COMMANDS])
def test_a_command_that_a_message_names_works_as_it_is_printed(command: str) -> None:
    assert not re.search(r"…|<[^>]*>|\b[A-Z]{2,}\b", command), "a placeholder: print what works, or add a sample to SAMPLES"
    parsed(command)


def test_the_messages_are_found() -> None:
    texts = {command for _, command in COMMANDS}
    assert {"qcase images build c --fresh", "qcase lock", "qcase init", "qcase images lock --own"} <= texts


def test_a_message_that_lacks_an_argument_is_found() -> None:
    with pytest.raises(Exception, match="Missing parameter: name"):
        parsed("qcase images build --fresh")
    tree = ast.parse('def f():\n    """`qcase doc`"""\n    hint = f"see `qcase images build {name}`"\n')
    assert [text_of(node) for node in strings(tree)] == ["see `qcase images build c`"]


@pytest.mark.parametrize("own", [True, False])
def test_the_command_that_pins_an_image(own: bool) -> None:
    parsed(image_lock.Lock(Path(image_lock.FILE), own=own).command("c"))


@pytest.mark.parametrize("path", sorted((ROOT / "qcase").rglob("*.py")), ids=lambda path: path.name)
def test_a_hint_that_is_a_command_stands_between_backticks(path: Path) -> None:
    """Or this file would not find it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "hint":
            assert not re.match(r"(run )?qcase [a-z]+( |$)", text_of(node.value)), node.value.lineno
