"""One list of proxies for everything that has network."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import qcase
from qcase.crates.registries import User
from qcase.host import process, proxies
from qcase.pipelines import rust_crates

ROOT = Path(qcase.__file__).parent
MODULES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
ALL = {name: f"http://{number}.example:3128" for number, name in enumerate(proxies.PROXIES)}


def test_proxies_are_taken_in_either_spelling() -> None:
    environ = {
        "http_proxy": "http://p:1",
        "HTTPS_PROXY": "http://p:2",
        "all_proxy": "socks5://p:3",
        "no_proxy": "",
        "PATH": "/bin",
    }
    del_empty = {"http_proxy": "http://p:1", "HTTPS_PROXY": "http://p:2", "all_proxy": "socks5://p:3"}
    assert proxies.proxies_of(environ) == del_empty


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


def test_cargo_gets_the_same_proxies_as_all_others(tmp_path: Path) -> None:
    given = rust_crates._user_environment(User({**ALL, "CARGO_NET_RETRY": "1", "HOME": str(tmp_path)}))
    assert {name: value for name, value in given.items() if name in ALL} == ALL


def test_child_processes_that_fetch_get_all_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ALL.items():
        monkeypatch.setenv(name, value)
    given = process.environment(allow=proxies.PROXIES)
    assert {name: value for name, value in given.items() if name in ALL} == ALL
