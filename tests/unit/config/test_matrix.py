"""`[[qcase.matrix]]`: the machines of a case, and the faults of its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config.case_file import CaseConfig, Placeholders
from qcase.config.load import load_case_config
from qcase.errors import ConfigError
from qcase.vm.arguments import MachineSpec, arguments

CASE = """
args = ["-machine", "q35", "-m", "256M", "-smp", "2",
        "-device", "virtio-blk-pci,drive=disk0", "-drive", "id=disk0,if=none,file=x.img"]
success_regex = ["ok"]
"""
DISKS = """
[[qcase.matrix]]
axis = "disk"
name = "virtio"

[[qcase.matrix]]
axis = "disk"
name = "nvme"
device = "nvme,serial=q"

[[qcase.matrix]]
axis = "disk"
name = "scsi"
args = ["-device", "virtio-scsi-pci"]
device = "scsi-hd"
"""
MACHINES = """
[[qcase.matrix]]
axis = "machine"
name = "pc"
machine = "pc"

[[qcase.matrix]]
axis = "machine"
name = "big"
smp = 4
memory = "1G"
cpu = "max"
cmdline = "nosmp debug=${workspace}"
"""


def load(tmp_path: Path, text: str, **placeholders: object) -> CaseConfig:
    file = tmp_path / "qemu-x86_64.toml"
    file.write_text(text)
    return load_case_config(file, placeholders=Placeholders(Path("/w"), **placeholders))  # type: ignore[arg-type]


def rows(config: CaseConfig) -> dict[str, list[str]]:
    return {name: args for name, *args in (row.split("\0") for row in config.matrix)}


def test_axes_multiply_and_their_rows_are_alternatives(tmp_path: Path) -> None:
    config = load(tmp_path, CASE + DISKS + MACHINES)
    assert list(rows(config)) == ["virtio-pc", "virtio-big", "nvme-pc", "nvme-big", "scsi-pc", "scsi-big"]
    assert list(rows(load(tmp_path, CASE + DISKS.replace('axis = "disk"', "")))) == ["virtio", "nvme", "scsi"]
    assert load(tmp_path, CASE).matrix == ()


def test_a_row_replaces_options_and_the_device_of_the_root_disk(tmp_path: Path) -> None:
    found = rows(load(tmp_path, CASE + DISKS + MACHINES))
    drive = ["-drive", "id=disk0,if=none,file=x.img"]
    assert found["virtio-pc"] == [*("-m", "256M", "-smp", "2", "-device", "virtio-blk-pci,drive=disk0"), *drive, "-machine", "pc"]
    assert found["nvme-big"] == [
        *("-machine", "q35", *drive, "-device", "nvme,serial=q,drive=disk0"),
        *("-cpu", "max", "-smp", "4", "-m", "1G", "-append", "nosmp debug=/w"),
    ]
    assert found["scsi-pc"][-6:] == ["-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk0", "-machine", "pc"]


def test_a_root_disk_that_the_arguments_do_not_name_has_the_device_of_the_row(tmp_path: Path) -> None:
    config = load(tmp_path, 'args = ["-nographic"]\nsuccess_regex = ["ok"]\n' + DISKS)
    args = tuple(rows(config)["nvme"])
    command = arguments(MachineSpec(Arch.X86_64, args, Path("/i.img"), Path("/k")))
    assert "nvme,serial=q,drive=disk0" in command
    assert not any("virtio-blk" in word for word in command)
    assert any(word.startswith("id=disk0,if=none") and "/i.img" in word for word in command)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (CASE + DISKS + DISKS, "qcase.matrix[3]: two machines are called 'virtio'"),
        (CASE + '[[qcase.matrix]]\nname = "a/b"\n', "must be a word of letters, digits and . _ + -"),
        (CASE + '[[qcase.matrix]]\nname = "a"\nmachin = "pc"\n', "machin: unknown key (did you mean 'machine'?)"),
        (CASE + "[[qcase.matrix]]\nsmp = 2\n", "is missing"),
        (CASE + '[[qcase.matrix]]\nname = "a"\nargs = ["-nonsense", "x"]\n', "-nonsense"),
        (CASE + '[[qcase.matrix]]\nname = "a"\nsmp = 0\n', "must be 1 or more, not 0"),
        (
            'args = ["-drive", "if=sd,file=x"]\nsuccess_regex = ["ok"]\n[[qcase.matrix]]\nname = "a"\ndevice = "nvme"\n',
            "the root disk has no device that another one could replace",
        ),
        (
            CASE + "".join(f'[[qcase.matrix]]\naxis = "{axis}"\nname = "n{n}"\n' for axis in "abc" for n in range(7)),
            "describes more than 256 machines",
        ),
    ],
)
def test_faults_of_rows_are_told_with_their_place(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(ConfigError) as e:
        load(tmp_path, text)
    assert what in str(e.value)
    assert "qemu-x86_64.toml:" in str(e.value)


def test_a_strangers_row_may_not_name_the_environment(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"qcase\.matrix.*names a variable of the environment"):
        load(tmp_path, CASE + '[[qcase.matrix]]\nname = "a"\ncmdline = "${env:HOME}"\n', environment=None)


def test_defaults_of_variables_the_name_of_the_case_and_its_command_line(tmp_path: Path) -> None:
    text = """
        args = ["-m", "${env:MEMORY:-256M}", "-name", "${case}", "-append", "one"]
        cmdline = "root=${env:ROOT:-/dev/vda} ${env:NONE:-}"
        success_regex = ["ok"]
    """
    (tmp_path / "smoke").mkdir()
    args = load(tmp_path / "smoke", text, environment={"ROOT": "/dev/sda", "MEMORY": ""}).args
    assert args == ("-m", "256M", "-name", "smoke", "-append", "one", "-append", "root=/dev/sda ")
    command = arguments(MachineSpec(Arch.X86_64, args, Path("/i.img"), Path("/k"), append="console=ttyS0"))
    assert "console=ttyS0 one root=/dev/sda " in command
