"""The toy architecture: its row, as it would stand in `qcase/arch.py`. Nothing else of qcase is written for it."""

from __future__ import annotations

from qcase.arch import ArchSpec

# Big-endian; virtio devices are on the channel bus, there is no UEFI, and QEMU's first console is that of a service element.
S390X = (
    "s390x",
    ArchSpec(
        machine="s390-ccw-virtio",
        virtio="ccw",
        virtio_modules=("virtio_ccw",),
        qemu_package="qemu-system-misc",
        args='["-nographic", "-m", "512M"]',
        tcg_single_thread=False,
        tells_resets=False,
        exit_device="",
        kvm_host="s390x",
        kvm_needs_host_cpu=False,
        target="s390x-unknown-none-softfloat",
        console="console=ttysclp0",
        elf_machines=(22,),
        image_magic=None,
        makefiles="s390",
        uefi=None,
        musl_target="s390x-unknown-linux-musl",
        rust_flags=(),
        elf_name="S390",
        rootfs="debian",
    ),
)
