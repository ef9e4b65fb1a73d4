"""When KVM is believed in. The boots are real, of our own kernel under TCG; what a machine's KVM does: tests/vm/test_accel.py."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.vm import accelerator, arguments
from qcase.vm.accelerator import Proof
from qcase.vm.arguments import MachineSpec
from tests import kernel


def test_other_architectures_and_a_device_that_is_not_there_need_no_boot(tmp_path: Path) -> None:
    assert accelerator.obstacle(Arch.AARCH64, host="x86_64") == (
        "KVM runs guests of the host's own architecture, x86_64, and not aarch64"
    )
    gone = accelerator.obstacle(Arch.X86_64, tmp_path / "kvm", host="x86_64")
    assert gone == f"{tmp_path}/kvm cannot be opened: No such file or directory"
    (tmp_path / "kvm").touch()
    assert accelerator.obstacle(Arch.X86_64, tmp_path / "kvm", host="x86_64") == ""


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    (tmp_path / "root.img").write_bytes(bytes(1 << 16))
    return MachineSpec(Arch.X86_64, ("-m", "32M"), tmp_path / "root.img", tmp_path / "kernel")


def tried(memory: Path) -> list[Path]:
    return list((memory / "accel").glob("*.json"))


def test_what_came_of_a_try_is_remembered_for_this_kernel(
    spec: MachineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "obstacle", lambda _: "")
    answers = ["it hung", "", "again"]
    monkeypatch.setattr(accelerator, "boot", lambda *_: answers.pop(0))
    assert accelerator.prove(spec, "a" * 64, "qk>", tmp_path) == Proof("it hung", tried=True)
    assert accelerator.prove(spec, "a" * 64, "qk>", tmp_path) == Proof("it hung")
    assert accelerator.prove(spec, "b" * 64, "qk>", tmp_path) == Proof("", tried=True)
    assert accelerator.prove(spec, "b" * 64, "qk>", tmp_path).works
    (note,) = [path for path in tried(tmp_path) if "hung" in path.read_text()]
    note.write_text(json.dumps({"why": "it hung", "at": time.time() - accelerator.REFUSED - 1}))
    assert accelerator.prove(spec, "a" * 64, "qk>", tmp_path) == Proof("again", tried=True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"why": "x"}', '{"why": "x", "at": "yesterday"}', '{"why": "x", "at": 1e300}'])
def test_a_memory_that_cannot_be_read_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "note").write_text(text)
    assert accelerator._recall(tmp_path / "note") is None


@pytest.mark.vm
def test_a_boot_to_the_prompt_proves_it(kernels: Mapping[Arch, Path], tmp_path: Path) -> None:
    def spec(*args: str) -> MachineSpec:
        return MachineSpec(
            Arch.AARCH64, (*kernel.ARGS[Arch.AARCH64], *args), tmp_path / "root.img", kernels[Arch.AARCH64], network="none"
        )

    (tmp_path / "root.img").write_bytes(bytes(1 << 16))
    assert accelerator.boot(spec(), kernel.PROMPT, 60) == ""
    hung = accelerator.boot(spec(), "another>", 1)
    assert hung.startswith("under KVM the guest did not come to its prompt within 1 s; its last line was ")
    # As a processor that the host does not have, or one that QEMU does not have for this accelerator.
    assert "unable to find CPU model 'none-such'" in accelerator.boot(spec("-cpu", "none-such"), kernel.PROMPT, 60)


@pytest.mark.parametrize(
    ("args", "used"),
    [
        (["-accel", "tcg,thread=single"], "tcg"),
        (["-accel", "kvm"], "kvm"),
        (["-enable-kvm"], "kvm"),
        (["-machine", "q35,accel=kvm:tcg"], "kvm:tcg"),
        (["-M", "virt"], "tcg"),
    ],
)
def test_what_a_command_line_is_run_with(args: list[str], used: str) -> None:
    assert arguments.accelerator(["qemu-system-x86_64", *args]) == used


def test_an_arm_guest_has_the_hosts_processor_under_kvm(tmp_path: Path) -> None:
    for args in ((), ("-cpu", "cortex-a72")):
        argv = arguments.arguments(MachineSpec(Arch.AARCH64, args, tmp_path / "i", tmp_path / "k", accel="kvm"))
        assert argv[argv.index("-cpu") + 1] == "host"
        assert argv[argv.index("-accel") + 1] == "kvm"
    assert "-cpu" not in arguments.arguments(MachineSpec(Arch.X86_64, (), tmp_path / "i", tmp_path / "k", accel="kvm"))
