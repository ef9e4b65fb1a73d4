"""Locks that processes wait for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from qcase.errors import StoppedError
from qcase.host import locks, process


def test_a_waiter_says_once_for_whom_and_goes_on_when_the_lock_is_free(tmp_path: Path) -> None:
    said: list[str] = []
    names = iter(["", "one", "one", "two"])
    order = []

    def wait() -> None:
        with locks.held(tmp_path / "lock", lambda: next(names, "two"), said.append):
            order.append("held")

    waiter = threading.Thread(target=wait)
    with locks.held(tmp_path / "lock"):
        waiter.start()
        until = time.monotonic() + 20
        while len(said) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        order.append("released")
    waiter.join(20)
    assert said == ["waiting for one", "waiting for two"]
    assert order == ["released", "held"]


def test_a_lock_that_is_free_is_taken_in_silence(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        with locks.held(tmp_path / "lock", lambda: "another", said.append):
            pass
    assert said == []


def test_a_waiter_ends_with_the_run(tmp_path: Path) -> None:
    with locks.held(tmp_path / "lock"):
        process.stop()
        try:
            with pytest.raises(StoppedError), locks.held(tmp_path / "lock"):
                raise AssertionError("held twice")
        finally:
            process.go_on()
