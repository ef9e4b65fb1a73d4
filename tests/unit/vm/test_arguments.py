"""QEMU's argument list, without QEMU."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config import qemu_options
from qcase.config.fields import TcgThreads
from qcase.vm import machine
from qcase.vm.arguments import MachineSpec, arguments
from qcase.vm.network import Network

IMAGE = Path("/store/image.img")
KERNEL = Path("/store/kernel")


def argv(
    *args: str, arch: Arch = Arch.X86_64, network: Network = "restricted", image: Path = IMAGE, append: str = ""
) -> list[str]:
    return arguments(MachineSpec(arch, args, image, KERNEL, Path("/store/initrd"), append, network=network))


def pairs(line: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(line) if name == option]


@pytest.mark.parametrize(
    ("args", "muxed"),
    [
        (("-nographic",), True),
        (("-nographic", "-monitor", "none"), False),
        (("-nographic", "-serial", "stdio"), False),
        (("-nographic", "-serial", "mon:stdio"), True),
        (("-display", "none", "-serial", "mon:stdio"), True),
        (("-chardev", "stdio,id=c,mux=on", "-serial", "chardev:c"), True),
        (("-chardev", "stdio,id=c", "-serial", "chardev:c"), False),
    ],
)
def test_ctrl_a_is_doubled_only_where_qemu_takes_it(args: tuple[str, ...], muxed: bool) -> None:
    assert machine._is_muxed(qemu_options.split(args)) is muxed


def test_the_order_is_file_rootfs_snapshot_machine_kernel() -> None:
    line = argv("-nographic", "-m", "256M", append="console=ttyS0")
    assert line == [
        "qemu-system-x86_64",
        *("-nographic", "-m", "256M"),
        *("-device", "virtio-blk-pci,drive=disk0"),
        *("-drive", "id=disk0,if=none,format=raw,file=/store/image.img"),
        *("-device", "virtio-net-pci,netdev=net0"),
        *("-netdev", "user,id=net0,restrict=on"),
        *("-accel", "tcg"),
        "-no-reboot",
        "-snapshot",
        *("-machine", "q35"),
        *("-kernel", "/store/kernel", "-initrd", "/store/initrd", "-append", "console=ttyS0"),
    ]


@pytest.mark.parametrize("arch", [Arch.AARCH64, Arch.RISCV64, Arch.LOONGARCH64])
def test_other_architectures_get_the_machine_virt(arch: Arch) -> None:
    line = argv(arch=arch)
    assert line[0] == f"qemu-system-{arch}"
    assert pairs(line, "-machine") == ["virt"]


@pytest.mark.parametrize("option", ["-machine", "-M"])
def test_a_machine_that_is_named_stays(option: str) -> None:
    line = argv(option, "microvm")
    assert pairs(line, option) == ["microvm"]
    assert line.count("-machine") + line.count("-M") == 1


def test_the_drive_is_pointed_at_the_image_whatever_it_named() -> None:
    line = argv(
        "-device", "virtio-blk-pci,drive=disk0", "-drive", "id=disk0,if=none,format=raw,file=/old,,place.img,cache=unsafe"
    )
    assert pairs(line, "-drive") == ["id=disk0,if=none,format=raw,file=/store/image.img,cache=unsafe"]
    assert pairs(line, "-device").count("virtio-blk-pci,drive=disk0") == 1


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (",snapshot=off", ""),
        (",snapshot=off,cache=unsafe,snapshot=no", ",cache=unsafe"),
        (",,,serial=a,,snapshot=b,snapshot=off", ",serial=a,,snapshot=b"),
        (",file=/another.img", ""),
    ],
)
def test_a_drive_cannot_undo_the_snapshot_nor_name_another_file(options: str, kept: str) -> None:
    """QEMU lets a drive's own word win over `-snapshot`; the guest would write into the store."""
    line = argv("-drive", f"id=disk0,if=none,format=raw,file=/old{options}")
    assert pairs(line, "-drive") == [f"id=disk0,if=none,format=raw,file=/store/image.img{kept}"]
    assert "-snapshot" in line


def test_a_comma_in_a_path_is_doubled() -> None:
    assert pairs(argv(image=Path("/a,b/i.img")), "-drive") == ["id=disk0,if=none,format=raw,file=/a,,b/i.img"]


@pytest.mark.parametrize(
    "device", ["virtio-blk-pci,drive=disk0", "virtio-blk-device,drive=disk0", "virtio-blk-pci,serial=x,drive=disk0"]
)
def test_a_disk_device_that_is_there_is_not_added(device: str) -> None:
    assert [d for d in pairs(argv("-device", device), "-device") if d.startswith("virtio-blk")] == [device]


@pytest.mark.parametrize(
    "device", ["virtio-net-pci,netdev=net0", "virtio-net-device,netdev=net0", "virtio-net-pci,mac=1,netdev=net0"]
)
def test_a_network_card_that_is_there_is_not_added(device: str) -> None:
    assert [d for d in pairs(argv("-device", device), "-device") if d.startswith("virtio-net")] == [device]


def test_a_netdev_with_forwarded_ports_counts_as_present() -> None:
    line = argv("-netdev", "user,id=net0,hostfwd=tcp::5555-:22")
    assert pairs(line, "-netdev") == ["user,id=net0,hostfwd=tcp::5555-:22,restrict=on"]


def test_snapshot_is_always_there_and_once() -> None:
    assert argv().count("-snapshot") == 1
    assert argv("-snapshot").count("-snapshot") == 1


@pytest.mark.parametrize(
    ("network", "given", "netdev"),
    [
        ("restricted", (), ["user,id=net0,restrict=on"]),
        ("restricted", ("-netdev", "user,id=net0"), ["user,id=net0,restrict=on"]),
        ("restricted", ("-netdev", "user,id=net0,restrict=y"), ["user,id=net0,restrict=y"]),
        ("user", ("-netdev", "user,id=net0,restrict=off"), ["user,id=net0,restrict=off"]),
        ("user", (), ["user,id=net0"]),
        ("user", ("-netdev", "user,id=net0"), ["user,id=net0"]),
        ("none", (), []),
        ("none", ("-netdev", "user,id=net0"), ["hubport,id=net0,hubid=0", "hubport,id=qcase-sink-0,hubid=0"]),
    ],
)
def test_the_network_policy(network: Network, given: tuple[str, ...], netdev: list[str]) -> None:
    line = argv(*given, network=network)
    assert pairs(line, "-netdev") == netdev
    assert pairs(line, "-nic") == ([] if netdev else ["none"])


def test_a_console_without_nographic_is_brought_to_the_pipe() -> None:
    assert "-nographic" in argv()
    assert argv("-nographic").count("-nographic") == 1
    assert "-nographic" not in argv("-display", "none", "-serial", "stdio")


def test_what_a_case_appends_joins_the_guests_own_command_line() -> None:
    line = argv("-append", "loglevel=7", append="console=ttyS0")
    assert pairs(line, "-append") == ["console=ttyS0 loglevel=7"]


def test_an_accelerator_that_is_named_stays() -> None:
    assert pairs(argv("-accel", "tcg,thread=single"), "-accel") == ["tcg,thread=single"]
    assert "-accel" not in argv("-machine", "q35,accel=tcg")


def test_several_x86_processors_share_one_thread_of_tcg() -> None:
    spec = MachineSpec(Arch.X86_64, (), IMAGE, KERNEL, processors=4)
    assert pairs(arguments(spec), "-accel") == ["tcg,thread=single"]
    assert pairs(arguments(replace(spec, arch=Arch.AARCH64)), "-accel") == ["tcg"]
    assert pairs(arguments(replace(spec, accel="kvm")), "-accel") == ["kvm"]


@pytest.mark.parametrize(
    ("threads", "processors", "wanted"),
    [("auto", 4, "tcg,thread=single"), ("multi", 4, "tcg,thread=multi"), ("single", 4, "tcg,thread=single"), ("multi", 1, "tcg")],
)
def test_threads_of_tcg_as_configured(threads: TcgThreads, processors: int, wanted: str) -> None:
    spec = MachineSpec(Arch.X86_64, (), Path("/i"), Path("/k"), processors=processors, tcg_threads=threads)
    assert pairs(arguments(spec), "-accel") == [wanted]


def test_uefi_firmware_is_in_flash_and_boots_from_a_disk_of_its_own(tmp_path: Path) -> None:
    files = Path("/f,w/code"), Path("/fw/vars")
    argv = arguments(
        MachineSpec(Arch.AARCH64, ("-m", "1G"), tmp_path / "i", tmp_path / "k", flash=files, system_partition=tmp_path / "esp")
    )
    drives = [argv[at + 1] for at, word in enumerate(argv) if word == "-drive"]
    assert drives[1:] == [
        "if=pflash,unit=0,format=raw,readonly=on,file=/f,,w/code",
        "if=pflash,unit=1,format=raw,file=/fw/vars",
        f"id=qcase-esp,if=none,format=raw,readonly=on,file={tmp_path}/esp",
    ]
    assert "-kernel" not in argv
    assert "-snapshot" in argv  # so the variables are a copy
    disks = [argv[at + 1] for at, word in enumerate(argv) if word == "-device" and "blk" in argv[at + 1]]
    assert disks == ["virtio-blk-pci,drive=disk0", "virtio-blk-pci,drive=qcase-esp,bootindex=0"]
    handed = arguments(
        MachineSpec(Arch.AARCH64, (), tmp_path / "i", tmp_path / "k", tmp_path / "rd", append="quiet", flash=files)
    )
    assert handed[-6:] == ["-kernel", str(tmp_path / "k"), "-initrd", str(tmp_path / "rd"), "-append", "quiet"]


def test_loongarch64_has_a_command_line(tmp_path: Path) -> None:
    """As far as it goes: no QEMU at hand boots it."""
    argv = arguments(MachineSpec(Arch.LOONGARCH64, ("-nographic", "-m", "1G"), tmp_path / "root.img", tmp_path / "kernel"))
    assert argv[0] == "qemu-system-loongarch64"
    assert argv[argv.index("-machine") + 1] == "virt"
    assert argv[argv.index("-kernel") + 1] == str(tmp_path / "kernel")
    assert argv[argv.index("-accel") + 1] == "tcg"


def test_a_kernel_alone_has_neither_root_disk_nor_card() -> None:
    line = arguments(MachineSpec(Arch.X86_64, ("-m", "32M"), None, KERNEL))
    assert pairs(line, "-drive") == pairs(line, "-device") == pairs(line, "-netdev") == []
    assert pairs(line, "-nic") == ["none"]
    assert "-snapshot" in line
    own = arguments(
        MachineSpec(Arch.X86_64, ("-drive", "id=disk0,if=virtio,format=raw,file=/own.img,snapshot=off"), None, KERNEL)
    )
    assert pairs(own, "-drive") == ["id=disk0,if=virtio,format=raw,file=/own.img"]
    assert "-snapshot" in own
    with pytest.raises(qemu_options.ArgumentError, match="a case that tests its kernel alone has no root disk"):
        arguments(MachineSpec(Arch.X86_64, ("-device", "virtio-blk-pci,drive=disk0"), None, KERNEL))
