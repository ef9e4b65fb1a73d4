"""Ideas that have one place in the code: architectures, proxies."""

from __future__ import annotations

import ast

from tests.conftest import ROOT

PACKAGE = ROOT / "qcase"
MODULES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def test_no_module_has_a_table_of_architectures_of_its_own() -> None:
    """Only data of a guest's release may be keyed by architecture outside of `qcase.arch`."""
    found = {
        name
        for name, text in MODULES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Dict) and any(key is not None and ast.unparse(key).startswith("Arch.") for key in node.keys)
    }
    assert found == {"guests/alpine.py", "guests/debian.py"}


def test_no_other_module_lists_proxies() -> None:
    found = {
        name
        for name, text in MODULES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lower().endswith("_proxy")
    }
    assert found <= {"host/proxies.py", "crates/registries.py"}  # `CARGO_HTTP_PROXY` is cargo's own setting


def test_every_step_with_network_gets_all_proxies() -> None:
    """A step with network is made in a function that asks for the proxies of the user's environment."""
    functions = {
        (name, node.name): ast.unparse(node)
        for name, text in MODULES.items()
        for top in ast.parse(text).body
        for node in (top.body if isinstance(top, ast.ClassDef) else [top])
        if isinstance(node, ast.FunctionDef) and "network=True" in ast.unparse(node)
    }
    assert functions
    for place, text in functions.items():
        assert "proxies_of(" in text or "_user_environment(" in text, place


def test_texts_of_others_are_parsed_in_one_place() -> None:
    """`qcase.parsing` turns all faults of a text into one exception. The other modules read what qcase itself has written, or are
    programs of their own.
    """
    parsers = ("json.loads", "json.load", "tomli.loads", "tomli.load", "tomllib.loads", "tomllib.load")
    found = {
        name
        for name, text in MODULES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in parsers
    }
    own = {"canonical.py", "console/steps.py"}
    programs = {"host/crash_cleanup.py", "vm/confine.py"}
    assert found == {"parsing.py", *own, *programs}
