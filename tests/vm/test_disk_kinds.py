"""Built-in guests on every bus that has a driver: the root is found, also among other disks with names like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.arch import Arch
from tests.vm import workspaces
from tests.vm.workspaces import Workspace

pytestmark = pytest.mark.vm

ROOT = ["-drive", "id=disk0,if=none,format=raw,file=disk.img"]
OTHER = ["-drive", "id=b,if=none,format=raw,snapshot=on,file=second.img"]
# The other disk comes first, so that it has the first name.
MACHINES: dict[str, tuple[list[str], str]] = {
    "nvme": (["-device", "nvme,drive=b,serial=other", "-device", "nvme,drive=disk0,serial=deadbeef"], "nvme.n1"),
    "ahci": (["-device", "ich9-ahci,id=a", "-device", "ide-hd,bus=a.0,drive=b", "-device", "ide-hd,bus=a.1,drive=disk0"], "sd."),
    "scsi": (
        ["-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=b", "-device", "scsi-hd,drive=disk0,serial=abcdefghij"],
        "sd.",
    ),
    "usb": (["-device", "virtio-blk-pci,drive=b", "-device", "qemu-xhci", "-device", "usb-storage,drive=disk0"], "sda"),
    "virtio": (["-device", "virtio-blk-pci,drive=b", "-device", "virtio-blk-pci,drive=disk0"], "vd."),
}


@pytest.mark.parametrize(
    ("arch", "kinds"), [(Arch.AARCH64, ("nvme", "ahci", "scsi", "usb", "virtio")), (Arch.X86_64, ("nvme", "ahci"))]
)
def test_a_guest_finds_its_root_on_any_bus(arch: Arch, kinds: tuple[str, ...], test_cache: Path, tmp_path: Path) -> None:
    made = Workspace.make(tmp_path / "w")
    (made.root / "second.img").write_bytes(b"second disk".ljust(1 << 20, b"\0"))
    look = "grep -o '^/dev/[a-z0-9]* / ext4' /proc/mounts; for disk in /dev/vd? /dev/sd? /dev/nvme?n1; do"
    look += " head -c 11 $disk; echo; done 2>/dev/null"
    for kind in kinds:
        devices, name = MACHINES[kind]
        made.case(
            kind,
            arch=arch,
            args=[*workspaces.ARGS[arch], *OTHER, *ROOT, *devices],
            shell_init_cmd=look,
            success_regex=[f"^/dev/{name} / ext4$", "^second disk$"],
            qcase={"match": "all"},
            timeout=300,
        )
    sd = ["-device", "sdhci-pci", "-device", "sd-card,drive=disk0"]
    made.case("sd", arch=arch, args=[*workspaces.ARGS[arch], *ROOT, *sd], success_regex=["x"])
    outcome = workspaces.run(made, store=workspaces.fresh_store(tmp_path / "store", test_cache), arch=arch)
    assert outcome.verdicts == {**dict.fromkeys(kinds, "pass"), "sd": "error"}, outcome.said
    assert "the guest's kernel has no driver for one of these disks: sd" in outcome.case("sd")["reason"]
    assert outcome.exit_code == 2
