"""`accel` on the machine that runs the tests, whatever its KVM is worth."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.vm import accelerator
from tests.vm import workspaces
from tests.vm.workspaces import Workspace

pytestmark = pytest.mark.vm

HOST = Arch.AARCH64 if platform.machine() == "aarch64" else Arch.X86_64
OTHER = Arch.AARCH64 if HOST is Arch.X86_64 else Arch.X86_64
SLACK = 60.0  # seconds that a busy machine may take beside


def test_auto_tries_kvm_once_and_says_what_came_of_it(test_cache: Path, tmp_path: Path) -> None:
    made = Workspace.make(tmp_path / "w", '[run]\naccel = "auto"\n')
    made.case("one", arch=HOST, success_regex=["root@qcase:"], shell_init_cmd="", shell_prefix="")
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    (store / "memory").unlink()  # what this machine's KVM is worth may be known there
    began = time.monotonic()
    running = workspaces.start(made, store=store, arch=HOST)
    running.until("accel auto: ")
    took = time.monotonic() - began
    first = running.outcome()
    assert first.verdicts == {"one": "pass"}, first.said
    used = first.case("one")["booted"]["accel"]
    reason = f"accel auto: {used}" + (", since " if used == "tcg" else "")
    assert reason in first.said
    assert took < accelerator.LIMIT + 2 + SLACK
    began = time.monotonic()
    again = workspaces.start(made, store=store, arch=HOST)
    again.until("accel auto: ")
    assert time.monotonic() - began < SLACK
    second = again.outcome()
    assert second.case("one")["booted"]["accel"] == used
    assert reason in second.said

    (made.root / "qcase.toml").write_text((made.root / "qcase.toml").read_text().replace('"auto"', '"kvm"'))
    forced = workspaces.run(made, store=store, arch=HOST)
    if used == "kvm":
        assert forced.verdicts == {"one": "pass"}
    else:
        assert forced.verdicts == {"one": "error"}
        assert forced.exit_code == 3
        assert 'accel = "kvm": KVM does not work here: ' in forced.case("one")["reason"]


def test_kvm_for_another_architecture_is_an_error_and_auto_is_tcg(test_cache: Path, tmp_path: Path) -> None:
    made = Workspace.make(tmp_path / "w", '[run]\naccel = "kvm"\n')
    made.case("one", arch=OTHER, success_regex=["root@qcase:"], shell_init_cmd="", shell_prefix="")
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    outcome = workspaces.run(made, store=store, arch=OTHER)
    assert outcome.exit_code == 3
    reason = f"KVM runs guests of the host's own architecture, {platform.machine()}, and not {OTHER}"
    assert reason in outcome.case("one")["reason"]
    (made.root / "qcase.toml").write_text((made.root / "qcase.toml").read_text().replace('"kvm"', '"auto"'))
    outcome = workspaces.run(made, store=store, arch=OTHER)
    assert outcome.verdicts == {"one": "pass"}
    assert outcome.case("one")["booted"]["accel"] == "tcg"
