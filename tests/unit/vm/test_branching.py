"""When a machine branches from a template, and when two machines are the same. Without QEMU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config import qemu_options
from qcase.config.qemu_options import ArgumentError
from qcase.vm import branching
from qcase.vm.arguments import MachineSpec, arguments
from qcase.vm.branching import Surroundings
from qcase.vm.services import Forwards

IMAGE = "/store/a,b/image.img"
AROUND = Surroundings(
    qemu="7.2 sha-of-qemu",
    image_size=1 << 30,
    digests={"/store/kernel": "sha-of-kernel", "/store/initrd": "sha-of-initrd", "fw.bin": "sha-of-bios", "b.dtb": "sha-of-dtb"},
    disks={"second.img": "1 2 3"},
)
ARGS = "-nographic -m 256M -smp 2 -cpu max -bios fw.bin -dtb b.dtb -drive file=second.img,format=raw,if=none,id=second"


def spec(args: str = "-nographic -m 256M", image: str = IMAGE, arch: Arch = Arch.X86_64) -> MachineSpec:
    return MachineSpec(arch, tuple(args.split()), Path(image), Path("/store/kernel"), Path("/store/initrd"), "quiet")


def line(args: str = ARGS, image: str = IMAGE) -> list[str]:
    return arguments(spec(args, image))


def test_two_machines_that_differ_in_their_image_alone_are_one() -> None:
    assert branching.key(line(), AROUND) == branching.key(line(image="/elsewhere/other.img"), AROUND)


def test_the_path_of_a_kernel_does_not_count_its_content_does() -> None:
    moved = replace(AROUND, digests={**AROUND.digests, "/other/kernel": "sha-of-kernel"})
    argv = [word.replace("/store/kernel", "/other/kernel") for word in line()]
    assert branching.key(argv, moved) == branching.key(line(), AROUND)


def test_every_word_of_the_command_line_counts() -> None:
    argv, found = line(), {branching.key(line(), AROUND)}
    for at, word in enumerate(argv):
        for other in (f"{word}1", f"{word},x=1", word[:-1]):
            try:
                changed = branching.key([*argv[:at], other, *argv[at + 1 :]], AROUND)
            except ArgumentError:
                continue
            if IMAGE.replace(",", ",,") not in word:
                assert changed not in found, f"{word} and {other} are the same machine"
            found.add(changed)
        gone = [*argv[:at], *argv[at + 1 :]]
        if word.startswith("-") and word.lstrip("-") in qemu_options.SWITCHES:
            assert branching.key(gone, AROUND) != branching.key(argv, AROUND)
    for option in ("-no-fd-bootchk", "-usb"):
        assert branching.key([*argv, option], AROUND) not in found


@pytest.mark.parametrize(
    "other",
    [
        replace(AROUND, qemu="10.0 sha-of-qemu"),
        replace(AROUND, qemu="7.2 another"),
        replace(AROUND, image_size=(1 << 30) + 512),
        replace(AROUND, disks={"second.img": "1 2 4"}),
        replace(AROUND, disks={}),
        *(replace(AROUND, digests={**AROUND.digests, name: "another"}) for name in AROUND.digests),
    ],
)
def test_whatever_else_the_guest_could_see_counts(other: Surroundings) -> None:
    assert branching.key(line(), other) != branching.key(line(), AROUND)


@pytest.mark.parametrize("arch", list(Arch))
def test_a_usual_machine_branches(arch: Arch) -> None:
    usual = spec(arch=arch)
    assert branching.refusal(usual, arguments(usual)) == ""


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ("-nographic", "no size"),
        ("-nographic -m 100000K", "no whole number of MiB"),
        ("-nographic -m 256M -enable-kvm", "accelerator is kvm"),
        ("-nographic -m 256M -machine q35,accel=kvm", "accelerator is kvm"),
        ("-nographic -m 256M -device vfio-pci,host=01:00.0", "is no device that is known to be emulated alone"),
        ("-nographic -m 256M -device vhost-vsock-pci,guest-cid=3", "is no device that is known to be emulated alone"),
        ("-nographic -m 256M -fsdev local,id=f,path=/,readonly=on,security_model=none", "not allowed"),
        ("-nographic -m 256M -netdev user,id=net0,hostfwd=tcp::2222-:22", "hostfwd"),
        ("-nographic -m 256M -netdev user,id=net0,guestfwd=tcp:10.0.2.9:1-cmd:true", "guestfwd"),
        ("-nographic -m 256M -serial file:/tmp/x", "not allowed"),
        ("-nographic -m 256M -S", "debugger"),
        ("-nographic -m 256M -gdb tcp::1234", "not allowed"),
        ("-nographic -m 256M -icount 3", "counts instructions"),
        ("-nographic -m 256M,slots=2,maxmem=1G", "memory of its own"),
        ("-nographic -m 256M -object memory-backend-ram,id=ram,size=256M", "memory of its own"),
        ("-nographic -m 256M -drive id=disk0,if=sd,file=x", "does not stop the machine"),
        ("-nographic -m 256M -drive id=disk0,if=none,rerror=report,file=x", "rerror="),
    ],
)
def test_what_is_not_known_to_go_on_from_a_state_is_refused(args: str, why: str) -> None:
    refused = replace(spec(args), network="user")
    assert why in branching.refusal(refused, arguments(refused))


def test_machines_that_deal_with_the_host_or_restart_are_refused() -> None:
    usual = spec()
    for changed, why in (
        (replace(usual, forwards=Forwards(((80, "relay"),))), "services of the host"),
        (replace(usual, reset=True), "restarts"),
        (replace(usual, stays=True), "restarts"),
        (replace(usual, flash=(Path("/fw/code"),), system_partition=Path("/esp")), "UEFI"),
    ):
        assert why in branching.refusal(changed, arguments(usual))


def test_a_templates_disk_has_nothing_of_the_image() -> None:
    argv = branching.with_unreadable_disk(line(), 1 << 30)
    drive = next(word for word in argv if "id=disk0" in word)
    assert "image.img" not in " ".join(argv)
    assert "file.image.driver=null-co,file.image.size=1073741824" in drive
    assert drive.endswith("rerror=stop,werror=stop")
    assert "-snapshot" in argv


def test_an_image_with_a_table_of_partitions_is_refused(tmp_path: Path) -> None:
    """QEMU takes the geometry of the disk from there, and tells the guest before it reads."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1024))
    assert branching.image_fault(image) == ""
    image.write_bytes(bytes(510) + branching.BOOT_SIGNATURE + bytes(512))
    assert "partitions" in branching.image_fault(image)
    image.write_bytes(bytes(1000))
    assert "sectors" in branching.image_fault(image)
