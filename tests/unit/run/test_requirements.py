"""What cases require of this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import TypeAdapter, ValidationError

from qcase.arch import Arch
from qcase.config import skip_table
from qcase.config.case_file import CaseConfig
from qcase.config.known_file import Known
from qcase.model import CaseResult, Fault, Pipeline, SubtestResult, SubtestStatus, Verdict
from qcase.run import requirements, run_case, schedule
from qcase.suite.cases import Case
from qcase.suite.known_failures import excused
from qcase.vm import machine


def missing(*requires: str, accel: str = "tcg", network: str = "restricted", args: tuple[str, ...] = ()) -> str:
    config = CaseConfig(requires=requires, args=args)
    path = Path("/w/x")
    case = Case("x", "normal/x", "normal", "", path, Arch.X86_64, path / "qemu-x86_64.toml", config, Pipeline.PLAIN)
    run = SimpleNamespace(network=network)
    session: Any = SimpleNamespace(
        accelerators=SimpleNamespace(asked=accel), workspace=SimpleNamespace(config=SimpleNamespace(run=run))
    )
    return requirements.missing(case, cast(Any, session))


@pytest.fixture(autouse=True)
def qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "devices", lambda _: frozenset({"nvme", "sdhci-pci", "virtio-blk-device"}))
    monkeypatch.setattr(machine, "version", lambda _: (8, 2))
    monkeypatch.setattr(schedule, "machine", lambda: schedule.Need(4, 8 << 30))
    monkeypatch.setattr(requirements, "obstacle", lambda _: "")
    monkeypatch.setattr(requirements, "_is_connected", lambda: True)


def test_what_is_there_is_not_missing() -> None:
    assert missing("nvme", "sdhci", "virtio-blk", "qemu >= 8.2", "qemu >= 8", "cpus >= 4", "memory >= 8 GiB") == ""
    assert missing("kvm", accel="kvm") == missing("network", network="user") == ""
    assert missing("kvm", args=("-accel", "kvm")) == ""


def test_what_is_missing_is_told() -> None:
    assert missing("floppy") == "needs the device floppy, which qemu-system-x86_64 does not have"
    assert missing("nvmf") == "needs the device nvmf, which qemu-system-x86_64 does not have (it has nvme)"
    assert missing("qemu >= 9.0") == "needs QEMU 9.0, and this one is 8.2"
    assert missing("cpus >= 5") == "needs 5 processors, and there are 4"
    assert missing("memory >= 9 GiB") == "needs 9 GiB of free memory, and there are 8.0 GiB"
    assert missing("kvm") == 'needs KVM, and this run uses tcg: see [run] accel = "auto"'
    assert missing("network") == 'needs a network, and its network is "restricted"'
    assert missing("nvme", "nvmf", "cpus >= 5").count(";") == 1


def test_what_the_host_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "obstacle", lambda _: "/dev/kvm cannot be opened: No such file or directory")
    monkeypatch.setattr(requirements, "_is_connected", lambda: False)
    assert missing("kvm", accel="auto") == "needs KVM: /dev/kvm cannot be opened: No such file or directory"
    assert missing("network", network="user") == "needs a network, and this machine has none"


def test_a_machine_that_kvm_does_not_run_after_all() -> None:
    config = CaseConfig(requires=("kvm",))
    assert requirements.lacks_kvm(config, ["qemu", "-accel", "tcg"]) == "needs KVM, and this run uses tcg"
    assert requirements.lacks_kvm(config, ["qemu", "-accel", "kvm"]) == ""
    assert requirements.lacks_kvm(CaseConfig(), ["qemu", "-accel", "tcg"]) == ""


def test_a_selected_test_has_to_be_among_those_that_passed() -> None:
    tests = (SubtestResult("files/open", "", SubtestStatus.PASS), SubtestResult("shut", "", SubtestStatus.SKIP))
    passed = CaseResult("normal/x", Arch.X86_64, Verdict.PASS, Fault.NONE, subtests=tests)
    for test in ("", "open", "files/open", "f*n"):
        assert run_case.of_selected(passed, test) == passed
    for test in ("shut", "close"):
        found = run_case.of_selected(passed, test)
        assert (found.verdict, found.fault) == (Verdict.FAIL, Fault.CASE)


def test_a_selected_test_that_did_not_run_is_neither_skipped_nor_excused() -> None:
    shut = SubtestResult("shut", "", SubtestStatus.FAIL)
    failed = CaseResult("normal/x", Arch.X86_64, Verdict.FAIL, Fault.CASE, subtests=(shut,), by_tests=True)
    known = [Known("known.toml:1", "it is not there", test="shut")]
    assert excused(run_case.of_selected(failed, "shut"), known).verdict is Verdict.KNOWN_FAIL
    assert excused(run_case.of_selected(failed, "open"), known).verdict is Verdict.FAIL
    skipped = CaseResult(
        "normal/x", Arch.X86_64, Verdict.SKIPPED, Fault.NONE, subtests=(replace(shut, status=SubtestStatus.SKIP),)
    )
    assert run_case.of_selected(skipped, "shut") == skipped
    assert run_case.of_selected(skipped, "open").verdict is Verdict.FAIL
    assert run_case.of_selected(replace(skipped, subtests=()), "open").verdict is Verdict.SKIPPED  # 1..0 # SKIP
    out = replace(failed, verdict=Verdict.TIMEOUT, by_tests=False)
    assert run_case.of_selected(out, "open") == out


@pytest.mark.parametrize("word", ["KVM", "kmv", "Network", "netwrok", "memory", "cpus > 4"])
def test_a_requirement_that_is_misspelt_is_an_error_and_skips_nothing_for_good(word: str) -> None:
    with pytest.raises(ValidationError, match="is no requirement"):
        TypeAdapter(skip_table.Requirements).validate_python((word,))


def test_devices_are_requirements() -> None:
    words = ("kvm", "network", "nvme", "kvmclock", "virtio-net-pci", "e1000", "kvm-pit", "cpus >= 4")
    assert TypeAdapter(skip_table.Requirements).validate_python(words) == words
