"""Ideas that have one place in the code: architectures, proxies."""

from __future__ import annotations

import ast

from qcase.arch import Arch
from qcase.guests import debian
from qcase.suite import untranslated
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
    assert found == {"guests/alpine.py", "guests/debian.py", "suite/ktest_template.py"}


def test_no_module_asks_for_one_architecture() -> None:
    """A fact about an architecture is a field of its row: who adds one would not find a comparison elsewhere."""
    may = {
        "arch.py",
        "config/schema.py",  # the one that stands for all in the commented text
        "guests/alpine.py",
        "guests/debian.py",
        "guests/initramfs.py",  # one that stands for all in a digest
        "suite/ktest_template.py",
        "suite/new_workspace.py",  # those of a first case
        "suite/untranslated.py",
        "toolchains/recipes.py",  # that of the containers
    }
    members = set(Arch.__members__)
    found = {
        name
        for name, text in MODULES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and node.attr in members and ast.unparse(node.value) == "Arch"
    }
    assert found == may


def test_the_suite_knows_the_architectures_of_debian() -> None:
    assert set(untranslated.OF_DEBIAN) == set(debian.RELEASES)


def test_digests_of_json_are_made_in_one_form() -> None:
    """`qcase.canonical.digest` is that form, for keys and for identities."""
    found = {
        name
        for name, text in MODULES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hashlib.sha256" and "json.dumps(parts" in ast.unparse(node)
    }
    assert found == set()


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
