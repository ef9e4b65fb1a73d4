"""On which bus a guest finds its root disk, by QEMU's arguments. What Linux makes of it is in tests/vm/test_disk_kinds.py."""

from __future__ import annotations

import pytest

from qcase.config import disk_kinds, qemu_options
from qcase.config.disk_kinds import SERIAL, Disks, Kind
from qcase.config.qemu_options import ArgumentError

ROOT = "-drive id=disk0,if=none,file=a"
OTHER = "-drive id=b,if=none,file=b"


def of(words: str, machine: str = "virt") -> Disks:
    return disk_kinds.of(qemu_options.split(words.split()), machine)


@pytest.mark.parametrize(
    ("words", "machine", "kind"),
    [
        ("", "virt", Kind.VIRTIO),
        (ROOT, "q35", Kind.VIRTIO),
        ("-device virtio-blk-pci,drive=disk0", "virt", Kind.VIRTIO),
        (f"{ROOT} -device virtio-blk-device,drive=disk0", "virt", Kind.VIRTIO),
        (f'-device {{"driver":"nvme","drive":"disk0","serial":"x"}} {ROOT}', "virt", Kind.NVME),
        ("-device nvme,serial=x,id=n -device nvme-ns,bus=n,drive=d -drive if=none,id=d,file=a", "virt", Kind.NVME),
        ("-blockdev raw,node-name=r,file.driver=file,file.filename=x -device nvme,drive=r,serial=q", "virt", Kind.NVME),
        (f"-device ich9-ahci,id=a -device ide-hd,bus=a.0,drive=disk0 {ROOT}", "virt", Kind.AHCI),
        (f"-device ide-hd,drive=disk0 {ROOT}", "q35", Kind.AHCI),
        (f"-device ide-hd,drive=disk0 {ROOT} -M pc", "q35", Kind.IDE),
        (f"-device ide-hd,drive=disk0,bus=a.1 {ROOT} -device ahci,id=a -M pc-i440fx-7.2", "q35", Kind.AHCI),
        ("-hda a", "q35", Kind.AHCI),
        ("-hda a -machine pc", "q35", Kind.IDE),
        ("-drive file=a", "virt", Kind.VIRTIO),
        ("-drive file=a,if=sd", "virt", Kind.SD),
        ("-sd a", "virt", Kind.SD),
        (f"-device sdhci-pci -device sd-card,drive=disk0 {ROOT}", "virt", Kind.SD),
        (f"-device virtio-scsi-pci -device scsi-hd,drive=disk0 {ROOT}", "virt", Kind.SCSI),
        (f"-device lsi53c895a -device virtio-scsi-pci,id=v -device scsi-hd,bus=v.0,drive=disk0 {ROOT}", "virt", Kind.SCSI),
        (f"-device qemu-xhci -device usb-storage,drive=disk0 {ROOT}", "virt", Kind.USB),
        (f"-device qemu-xhci -device usb-uas,id=u -device scsi-hd,bus=u.0,drive=disk0 {ROOT}", "virt", Kind.USB),
    ],
)
def test_the_kind_of_the_root_disk(words: str, machine: str, kind: Kind) -> None:
    assert of(words, machine) == Disks((kind,))


@pytest.mark.parametrize(
    "words",
    [
        f"-device ide-hd,drive=disk0 {ROOT}",  # a machine without such a bus
        f"-device scsi-hd,drive=disk0 {ROOT}",
        f"-device lsi53c895a,id=v -device scsi-hd,bus=v.0,drive=disk0 {ROOT}",
        f"-device floppy,drive=disk0 {ROOT}",
        "-drive if=scsi,file=a",
    ],
)
def test_a_root_disk_without_a_driver_is_refused(words: str) -> None:
    with pytest.raises(ArgumentError, match="is a root disk that a built-in guest has no driver for"):
        of(words)


def test_other_disks_are_known_and_one_of_the_same_kind_takes_a_serial_number() -> None:
    assert of(f"{OTHER} {ROOT} -device nvme,drive=b,serial=x") == Disks((Kind.VIRTIO, Kind.NVME))
    assert of(f"{OTHER} {ROOT} -device virtio-blk-pci,drive=b") == Disks((Kind.VIRTIO,), SERIAL)
    words = f"{OTHER} {ROOT} -device qemu-xhci -device usb-storage,drive=b -device nvme,drive=disk0,serial=x"
    assert of(words) == Disks((Kind.NVME, Kind.USB))
    ahci = f"{OTHER} {ROOT} -device virtio-scsi-pci -device scsi-hd,drive=b -device ahci,id=a -device ide-hd,bus=a.0,drive=disk0"
    assert of(ahci) == Disks((Kind.AHCI, Kind.SCSI), SERIAL), "both are called sda"
    own = f"{OTHER} {ROOT} -device virtio-blk-pci,drive=b,serial=x -device virtio-blk-pci,drive=disk0,serial=" + "r" * 30
    assert of(own) == Disks((Kind.VIRTIO,), "r" * 20), "more does not reach the guest"
    assert of(f"{ROOT} -cdrom c -drive if=pflash,file=f -fda d") == Disks()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (f"{OTHER} {ROOT} -device virtio-blk-pci,drive=b,serial=ax -device virtio-blk-pci,drive=disk0,serial=x", "with this end"),
        (f"{OTHER} {ROOT} -device virtio-blk-pci,drive=b -device virtio-blk-pci,drive=disk0,serial=a/b", "letters and digits"),
        (f"{OTHER} {ROOT} -device qemu-xhci -device usb-storage,drive=b -device usb-storage,drive=disk0", "cannot be told"),
        ("-drive if=virtio,index=0,file=a -drive if=virtio,index=1,file=b", "cannot be told"),
    ],
)
def test_a_root_disk_that_cannot_be_told_from_others_is_refused(words: str, why: str) -> None:
    with pytest.raises(ArgumentError, match=why):
        of(words)


def test_a_serial_number_is_written_where_there_is_none() -> None:
    options = qemu_options.split(f"{ROOT} -device virtio-blk-pci,drive=b -device virtio-blk-pci,drive=disk0".split())
    written = qemu_options.join(disk_kinds.with_serial(options, "s"))
    assert written[-3:] == ["virtio-blk-pci,drive=b", "-device", "virtio-blk-pci,drive=disk0,serial=s"]
    assert qemu_options.join(disk_kinds.with_serial(qemu_options.split(written), "t")) == written
