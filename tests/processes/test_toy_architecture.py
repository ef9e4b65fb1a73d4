"""An architecture that is added as docs/extending.md says, to a copy of the package: one row, and nothing else."""

from __future__ import annotations

import ast
import inspect
import os
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from qcase import arch
from tests.conftest import ROOT
from tests.processes.test_ext4 import mkfs
from tests.toys import s390x

# An ELF file of 64 bits, big-endian, for machine 22; it is loaded nowhere and starts nothing.
KERNEL = b"\x7fELF\x02\x02\x01" + bytes(9) + bytes([0, 2, 0, 22, 0, 0, 0, 1]) + bytes(40)
CASE = """\
args = ["-nographic", "-m", "512M"]
shell_prefix = "#"
shell_init_cmd = "true"
success_regex = ["ok"]
"""
ROW = inspect.getsource(s390x).partition("\nS390X = ")[2]


def module(row: str) -> str:
    """The text of `qcase/arch.py` with one more row behind the others."""
    own = Path(arch.__file__).read_text(encoding="utf-8")
    before, mark, after = own.partition("\n    @property\n")
    indented = "".join(f"    {line}" for line in f"S390X = {row}".splitlines(keepends=True))
    return f"{before}\n{indented}{mark}{after}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of qcase with the row."""
    top = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "qcase", top / "qcase", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "images", top / "images")
    (top / "qcase" / "arch.py").write_text(module(ROW), encoding="utf-8")
    return top


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one case for the architecture. It has no built-in guest, so root and kernel are files."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "suite/normal/boot").mkdir(parents=True)
    (root / "suite/normal/boot/qemu-s390x.toml").write_text(CASE)
    (root / "qcase.toml").write_text('[suite]\nroot = "suite"\n[guest.s390x]\nrootfs = "root.img"\nkernel = "vmlinux"\n')
    (root / "tree/bin").mkdir(parents=True)
    mkfs(root / "root.img", 4 << 20, root / "tree")
    (root / "vmlinux").write_bytes(KERNEL)
    return root


def qcase(site: Path, root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-P", "-m", "qcase", *words]
    environ = {**os.environ, "PYTHONPATH": str(site), "QCASE_CACHE_DIR": str(site / "store")}
    return subprocess.run(argv, cwd=root, env=environ, capture_output=True, text=True, check=False)


def test_a_forgotten_field_is_an_error_at_import_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = types.ModuleType("arch_with_row")
    monkeypatch.setitem(sys.modules, imported.__name__, imported)
    exec(compile(module(ROW), "arch.py", "exec"), imported.__dict__)
    assert imported.Arch("s390x").spec.virtio == "ccw"
    call = ast.parse(ROW, mode="eval").body.elts[1]  # type: ignore[attr-defined]
    lines = ROW.splitlines(keepends=True)
    assert {keyword.arg for keyword in call.keywords} == set(arch.ArchSpec._fields)
    for keyword in call.keywords:
        without = "".join([*lines[: keyword.lineno - 1], *lines[keyword.end_lineno :]])
        with pytest.raises(TypeError, match=f"missing 1 required positional argument: '{keyword.arg}'"):
            exec(compile(module(without), "arch.py", "exec"), imported.__dict__)


def test_commands_know_the_architecture(site: Path, workspace: Path) -> None:
    assert "x86_64, aarch64, riscv64, loongarch64 or s390x" in " ".join(qcase(site, workspace, "run", "--help").stdout.split())
    assert "boot  plain  s390x" in qcase(site, workspace, "list", "--arch", "s390x").stdout
    assert '"s390x": {' in qcase(site, workspace, "schema", "qcase").stdout
    checked = qcase(site, workspace, "lint")
    assert checked.returncode == 0, checked.stderr
    made = qcase(site, workspace, "new", "other", "--pipeline", "plain", "--arch", "s390x")
    assert made.returncode == 0, made.stderr
    written = workspace / "suite/normal/other/qemu-s390x.toml"
    assert 'args = ["-nographic", "-m", "512M"]' in written.read_text()
    shutil.rmtree(written.parent)


def test_qemu_takes_the_arguments_of_a_case(site: Path, workspace: Path) -> None:
    done = qcase(site, workspace, "argv", "boot", "--arch", "s390x")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    command = shlex.split(line)
    assert command[0] == "qemu-system-s390x"
    assert command[command.index("-machine") + 1] == "s390-ccw-virtio"
    assert command[command.index("-kernel") + 1] == str(workspace / "vmlinux")
    assert [word for word in command if word.startswith("virtio-")] == [
        "virtio-blk-ccw,drive=disk0",
        "virtio-net-ccw,netdev=net0",
    ]
    # QEMU makes the machine with all of its devices, and a monitor ends it before the first instruction. No kernel is loaded.
    at = command.index("-kernel")
    machine = [*command[:at], *command[at + 2 :], "-S", "-monitor", "stdio", "-serial", "none"]
    ran = subprocess.run(machine, input="info qtree\nquit\n", capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "dev: virtio-blk-ccw" in ran.stdout


def test_the_checks_of_files_follow_the_row(site: Path, workspace: Path) -> None:
    foreign = workspace / "foreign"
    foreign.write_bytes(KERNEL[:18] + bytes([0, 183]) + KERNEL[20:])
    done = qcase(site, workspace, "argv", "boot", "--arch", "s390x", "--kernel", str(foreign))
    assert done.returncode == 2
    assert "is for aarch64, not for s390x" in done.stderr
    case = workspace / "suite/normal/boot/qemu-s390x.toml"
    case.write_text(f"{CASE}uefi = true\n")
    done = qcase(site, workspace, "argv", "boot", "--arch", "s390x")
    case.write_text(CASE)
    assert done.returncode == 2
    assert "s390x has no UEFI" in done.stderr


def test_without_a_guest_of_its_own_the_error_says_so(site: Path, workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace, tmp_path / "w")
    (tmp_path / "w/qcase.toml").write_text('[suite]\nroot = "suite"\n')
    done = qcase(site, tmp_path / "w", "argv", "boot", "--arch", "s390x")
    assert done.returncode == 2
    assert "there is no guest 'debian' for s390x, only for" in done.stderr
