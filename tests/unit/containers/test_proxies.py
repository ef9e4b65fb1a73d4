"""One list of proxies for everything that has network."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.crates.registries import User
from qcase.host import process, proxies
from qcase.pipelines import rust_crates

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


def test_cargo_gets_the_same_proxies_as_all_others(tmp_path: Path) -> None:
    given = rust_crates._user_environment(User({**ALL, "CARGO_NET_RETRY": "1", "HOME": str(tmp_path)}))
    assert {name: value for name, value in given.items() if name in ALL} == ALL


def test_child_processes_that_fetch_get_all_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ALL.items():
        monkeypatch.setenv(name, value)
    given = process.environment(allow=proxies.PROXIES)
    assert {name: value for name, value in given.items() if name in ALL} == ALL
