"""What `qcase doctor` says of machines that lack something. What is here is really looked at; the engine in tests/container."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.cli import doctor
from qcase.cli.doctor_lines import Line, State
from qcase.errors import InfraError

PLAIN = 'success_regex = ["^ok$"]\n'


def put(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    root = tmp_path / "w"
    kernel = "".join(f'[guest.{arch}]\nrootfs = "disk"\nkernel = "kernel"\n' for arch in ("x86_64", "aarch64"))
    put(root, "qcase.toml", f'[suite]\nroot = "suite"\n{kernel}')
    put(root, "disk")
    put(root, "kernel")
    put(root, "suite/normal/a/qemu-x86_64.toml", PLAIN)
    return root


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody")


def examine(workspace: Path, store: Path, arch: Arch = Arch.X86_64) -> dict[str, Line]:
    return {line.what: line for line in doctor.examine(workspace, arch, store)}


def fake(folder: Path, name: str, says: str) -> None:
    put(folder, name, f"#!/bin/sh\necho '{says}'\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH on which there is nothing but what a test puts there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    fake(folder, "qemu-system-x86_64", "QEMU emulator version 9.1.0 (Debian)")
    return folder


@pytest.mark.usefixtures("no_engine", "programs")
def test_a_suite_of_plain_cases_needs_no_engine(workspace: Path, tmp_path: Path) -> None:
    lines = examine(workspace, tmp_path / "store")
    assert lines["engine"].state is State.WARNING
    assert "no case here needs it" in lines["engine"].hint
    assert lines["workspace"].says.endswith("1 case on x86_64 in group 'normal'")
    assert lines["qemu x86_64"] == Line("qemu x86_64", State.GOOD, f"9.1.0 at {tmp_path}/bin/qemu-system-x86_64")
    assert lines["guest x86_64"].state is State.GOOD
    assert doctor.works(list(lines.values()))
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("no_engine", "programs")
@pytest.mark.parametrize("kind", ["sh", "rust", "group"])
def test_other_cases_do(kind: str, workspace: Path, tmp_path: Path) -> None:
    if kind == "group":
        put(workspace, "suite/normal/g/qemu-x86_64.toml", 'shell_prefix = "#"\ntest_commands = ["x"]\n')
        put(workspace, "suite/normal/g/one/sh/x")
    else:
        put(workspace, f"suite/normal/a/{kind}/x")
    lines = examine(workspace, tmp_path / "store")
    assert lines["engine"].state is State.BAD
    assert lines["engine"].hint
    assert not doctor.works(list(lines.values()))


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("says", "state", "wanted"),
    [
        ("QEMU emulator version 6.2.0", State.WARNING, "6.2.0"),
        ("QEMU emulator version 10.0", State.GOOD, "10.0"),
        ("hello", State.WARNING, "does not say its version"),
        (None, State.BAD, "is not installed"),
    ],
)
def test_qemu(says: str | None, state: State, wanted: str, workspace: Path, programs: Path, tmp_path: Path) -> None:
    (programs / "qemu-system-x86_64").unlink()
    if says is not None:
        fake(programs, "qemu-system-x86_64", says)
    line = examine(workspace, tmp_path / "store")["qemu x86_64"]
    assert line.state is state
    assert wanted in line.says
    assert line.hint or state is State.GOOD or says == "hello"


@pytest.mark.usefixtures("no_engine", "programs")
def test_another_architecture_of_the_suite_is_never_bad(workspace: Path, tmp_path: Path) -> None:
    put(workspace, "suite/normal/a/qemu-aarch64.toml", PLAIN)
    lines = examine(workspace, tmp_path / "store")
    assert lines["qemu aarch64"].state is State.WARNING
    assert "qemu riscv64" not in lines
    assert doctor.works(list(lines.values()))
    assert examine(workspace, tmp_path / "store", Arch.AARCH64)["qemu aarch64"].state is State.BAD


@pytest.mark.usefixtures("no_engine", "programs")
def test_workspaces_in_which_no_run_would_work(workspace: Path, tmp_path: Path) -> None:
    assert examine(tmp_path, tmp_path / "store")["workspace"].state is State.BAD
    put(workspace, "suite/normal/b/qemu-x86_64.toml", "=")
    line = examine(workspace, tmp_path / "store")["workspace"]
    assert (line.state, line.hint) == (State.WARNING, "`qcase lint` says what is wrong")
    line = examine(workspace, tmp_path / "store", Arch.RISCV64)["workspace"]
    assert (line.state, line.hint) == (State.BAD, "there are cases for x86_64")
    (workspace / "qcase.toml").write_text("[suite]\nrot = 1\n")
    assert "did you mean 'root'?" in examine(workspace, tmp_path / "store")["workspace"].says


@pytest.mark.usefixtures("no_engine", "programs")
def test_files_of_a_guest_that_are_not_there(workspace: Path, tmp_path: Path) -> None:
    (workspace / "kernel").unlink()
    line = examine(workspace, tmp_path / "store")["guest x86_64"]
    assert line.state is State.BAD
    assert "there is no file 'kernel'" in line.says


@pytest.mark.usefixtures("no_engine", "programs")
def test_firmware_where_a_case_needs_it(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "firmware" not in examine(workspace, tmp_path / "store")
    put(workspace, "suite/normal/a/qemu-x86_64.toml", f"{PLAIN}uefi = true\n")
    monkeypatch.setattr("qcase.vm.firmware.search_path", lambda _: [])
    line = examine(workspace, tmp_path / "store")["firmware"]
    assert line.state is State.BAD
    assert "there is no UEFI firmware" in line.says
    config = (workspace / "qcase.toml").read_text()
    put(workspace, "qcase.toml", config.replace("[guest.x86_64]\n", '[guest.x86_64]\nfirmware = "disk"\n'))
    assert examine(workspace, tmp_path / "store")["firmware"].state is State.GOOD


@pytest.mark.usefixtures("no_engine", "programs")
@pytest.mark.parametrize("trouble", [None, InfraError("the package index does not answer", hint="look at pip's configuration")])
def test_a_guest_that_is_not_in_the_store(
    trouble: InfraError | None, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(workspace, "qcase.toml", '[suite]\nroot = "suite"\n')
    monkeypatch.setattr(doctor, "obstacle", lambda *_: trouble)
    line = examine(workspace, tmp_path / "store")["guest x86_64"]
    assert line.state is (State.WARNING if trouble is None else State.BAD)
    assert trouble is None or trouble.what in line.says


@pytest.mark.usefixtures("no_engine", "programs")
def test_the_store(workspace: Path, tmp_path: Path) -> None:
    put(tmp_path, "file", "in the way")
    assert examine(workspace, tmp_path / "file" / "store")["store"].state is State.BAD
    config = (workspace / "qcase.toml").read_text()
    (workspace / "qcase.toml").write_text(f'{config}[cache]\nmin_free = "900 TiB"\n')
    line = examine(workspace, tmp_path / "store")["store"]
    assert line.state is State.BAD
    assert "min_free" in line.says
