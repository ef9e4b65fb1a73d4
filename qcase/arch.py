"""Architectures: one row for each, with everything that differs between them.

To add an architecture, write its row here. A row has no defaults: a forgotten field does not import. Data of one release of a
guest, such as digests, stays beside that guest; `docs/extending.md` has the rest.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class UefiSpec(NamedTuple):
    """UEFI of an architecture.

    `package`: Debian's package of the firmware. `since`: the first QEMU that starts it from flash on the default machine.
    `program`: path of the program that firmware starts by default. `pe_machine`: the architecture's number in PE files.
    """

    package: str
    since: tuple[int, int]
    program: str
    pe_machine: int


DEBUG_EXIT = "isa-debug-exit"
SEMIHOSTING = "semihosting"
FINISHER = "finisher"


class ArchSpec(NamedTuple):
    """The row of an architecture: its differences from others, beside its name.

    QEMU. `machine`: the `-machine` for a case that names none. `virtio`: the bus in the names of virtio devices, and
    `virtio_modules` the modules of Linux for it. `qemu_package`: Debian's package of the program. `args`: the `args` of a case
    that `qcase new` writes. `tcg_single_thread`: TCG runs several processors in one host thread, see `qcase.vm.arguments`.
    `tells_resets`: `-d cpu_reset` shows resets of the guest.

    `exit_device`: the way in which a guest ends QEMU with a status: `DEBUG_EXIT`, a device that `args` adds; `SEMIHOSTING`, an
    option; `FINISHER`, a part of the default machine; empty if there is none.

    KVM. `kvm_host`: value of `platform.machine()` on a host that runs such guests. `kvm_needs_host_cpu`: under KVM a guest
    has the host's processor only, whatever a case's file names.

    Kernels. `target`: the Rust target triple that axbuild uses for kernels. `console`: parameters of the command line of
    built-in guests. `elf_machines`: values of `e_machine` in ELF kernels. `image_magic`: offset and bytes that tell a raw
    kernel image, None if the format has none. `makefiles`: the value of `ARCH` in the kernel's makefiles.

    UEFI. `uefi`: None for an architecture without it.

    Programs. `musl_target`: the Rust target triple of programs in the guest. `rust_flags`: flags of rustc for all of them.
    `elf_name`: the name in pyelftools, without `EM_`.

    Guests. `rootfs`: the built-in guest that is the default.
    """

    machine: str
    virtio: str
    virtio_modules: tuple[str, ...]
    qemu_package: str
    args: str
    tcg_single_thread: bool
    tells_resets: bool
    exit_device: str
    kvm_host: str
    kvm_needs_host_cpu: bool
    target: str
    console: str
    elf_machines: tuple[int, ...]
    image_magic: tuple[int, bytes] | None
    makefiles: str
    uefi: UefiSpec | None
    musl_target: str
    rust_flags: tuple[str, ...]
    elf_name: str
    rootfs: str


class Arch(StrEnum):
    """A guest architecture. What differs between architectures is here, and nowhere else."""

    _value_: str
    spec: ArchSpec

    def __new__(cls, name: str, spec: ArchSpec | None = None) -> Arch:
        assert spec is not None, f"{name} has no row"
        member = str.__new__(cls, name)
        member._value_ = name
        member.spec = spec
        return member

    # `no_timer_check`: on a busy host an emulated processor can miss the few timer ticks that Linux waits for, and then it dies
    # with "IO-APIC + timer doesn't work". Linux leaves that check out by itself under a hypervisor that it knows; QEMU's TCG is
    # none. x86 kernels that a multiboot loader starts are ELF files of 32 bits, of machine 3.
    X86_64 = (
        "x86_64",
        ArchSpec(
            machine="q35",
            virtio="pci",
            virtio_modules=("virtio_pci", "virtio_mmio"),
            qemu_package="qemu-system-x86",
            args='["-nographic", "-m", "256M"]',
            tcg_single_thread=True,
            tells_resets=True,
            exit_device=DEBUG_EXIT,
            kvm_host="x86_64",
            kvm_needs_host_cpu=False,
            target="x86_64-unknown-none",
            console="console=ttyS0 no_timer_check",
            elf_machines=(62, 3),
            image_magic=(0x202, b"HdrS"),
            makefiles="x86",
            uefi=UefiSpec(
                package="ovmf",
                since=(0, 0),
                program="EFI/BOOT/BOOTX64.EFI",
                pe_machine=0x8664,
            ),
            musl_target="x86_64-unknown-linux-musl",
            rust_flags=(),
            elf_name="X86_64",
            rootfs="alpine",
        ),
    )
    AARCH64 = (
        "aarch64",
        ArchSpec(
            machine="virt",
            virtio="pci",
            virtio_modules=("virtio_pci", "virtio_mmio"),
            qemu_package="qemu-system-arm",
            args='["-nographic", "-cpu", "cortex-a72", "-m", "256M"]',
            tcg_single_thread=False,
            tells_resets=False,
            exit_device=SEMIHOSTING,
            kvm_host="aarch64",
            kvm_needs_host_cpu=True,
            target="aarch64-unknown-none-softfloat",
            console="console=ttyAMA0",
            elf_machines=(183,),
            image_magic=(56, b"ARM\x64"),
            makefiles="arm64",
            uefi=UefiSpec(
                package="qemu-efi-aarch64",
                since=(0, 0),
                program="EFI/BOOT/BOOTAA64.EFI",
                pe_machine=0xAA64,
            ),
            musl_target="aarch64-unknown-linux-musl",
            rust_flags=(),
            elf_name="AARCH64",
            rootfs="alpine",
        ),
    )
    # QEMU 7.2 was tried with UEFI firmware of riscv64, and prints nothing at all.
    RISCV64 = (
        "riscv64",
        ArchSpec(
            machine="virt",
            virtio="pci",
            virtio_modules=("virtio_pci", "virtio_mmio"),
            qemu_package="qemu-system-riscv64",
            args='["-nographic", "-m", "256M"]',
            tcg_single_thread=False,
            tells_resets=False,
            exit_device=FINISHER,
            kvm_host="riscv64",
            kvm_needs_host_cpu=False,
            target="riscv64gc-unknown-none-elf",
            console="console=ttyS0",
            elf_machines=(243,),
            image_magic=(56, b"RSC\x05"),
            makefiles="riscv",
            uefi=UefiSpec(
                package="qemu-efi-riscv64",
                since=(8, 1),
                program="EFI/BOOT/BOOTRISCV64.EFI",
                pe_machine=0x5064,
            ),
            musl_target="riscv64gc-unknown-linux-musl",
            rust_flags=(),
            elf_name="RISCV",
            rootfs="debian",
        ),
    )
    # Its vector unit: a kernel has to switch that on for its programs, and QEMU before 8.1 has none.
    LOONGARCH64 = (
        "loongarch64",
        ArchSpec(
            machine="virt",
            virtio="pci",
            virtio_modules=("virtio_pci", "virtio_mmio"),
            qemu_package="qemu-system-misc",
            args='["-nographic", "-m", "1G"]',
            tcg_single_thread=False,
            tells_resets=False,
            exit_device="",
            kvm_host="loongarch64",
            kvm_needs_host_cpu=False,
            target="loongarch64-unknown-none-softfloat",
            console="console=ttyS0",
            elf_machines=(258,),
            image_magic=None,
            makefiles="loongarch",
            uefi=UefiSpec(
                package="qemu-efi-loongarch64",
                since=(9, 0),
                program="EFI/BOOT/BOOTLOONGARCH64.EFI",
                pe_machine=0x6264,
            ),
            musl_target="loongarch64-unknown-linux-musl",
            rust_flags=("-Ctarget-feature=-lsx",),
            elf_name="LOONGARCH",
            rootfs="debian",
        ),
    )

    @property
    def qemu(self) -> str:
        """The name of QEMU's program."""
        return f"qemu-system-{self.value}"

    @property
    def install_hint(self) -> str:
        """Command that installs the program of QEMU, for a hint."""
        return f"Debian: apt-get install {self.spec.qemu_package}"

    @property
    def machine(self) -> str:
        """QEMU's default `-machine` for a case that names none."""
        return self.spec.machine

    @property
    def default_target(self) -> str:
        """The Rust target triple that axbuild uses for kernels of this architecture."""
        return self.spec.target

    @property
    def musl_loader(self) -> str:
        """The file name of musl's dynamic loader."""
        return f"ld-musl-{self.value}.so.1"


DEFAULT = Arch.X86_64  # of a command without --arch

# Names of machines that qcase has no guests for, for messages about files: numbers in ELF and in PE files.
OTHER_ELF_MACHINES = {8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "S390", 40: "ARM", 43: "SPARC"}
OTHER_PE_MACHINES = {0x014C: "i386", 0x01C0: "arm"}


def names() -> str:
    """Return the names of all architectures for a person: `x86_64, aarch64, riscv64 or loongarch64`."""
    *first, last = Arch
    return f"{', '.join(first)} or {last}"
