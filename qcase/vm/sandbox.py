"""QEMU for suites of strangers (`trust = "sandboxed"`): arguments by an allow-list, and a process with only its own files.

    case's arguments ── check ──► refused, unless every option, key and file is known to stay in the machine
    command line ── confined ──► launcher (`qcase.vm.confine`), rules, QEMU with `-sandbox`

The allow-list keeps a suite from naming files, programs and sockets of the host. The confinement still holds if a guest breaks
into QEMU itself. Neither depends on the other.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from qcase.arch import Arch
from qcase.config import qemu_options, root_disk
from qcase.config.qemu_options import ArgumentError, Option
from qcase.host import process

SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_HINT = 'trust = "sandboxed" allows what stays in the machine; for a suite of your own, trust = "suite"'

_SWITCHES = frozenset(
    (
        *("nographic", "no-reboot", "no-shutdown", "nodefaults", "no-user-config", "snapshot", "enable-kvm", "no-acpi"),
        *("no-hpet", "no-fd-bootchk", "usb", "only-migratable", "singlestep", "one-insn-per-tb"),
    )
)
_FREE = frozenset(("smp", "cpu", "vga", "uuid", "action", "watchdog-action", "seed", "numa", "append", "msg"))
_KEYS: Mapping[str, frozenset[str]] = {
    "m": frozenset(("size", "slots", "maxmem")),
    "accel": frozenset(("accel", "thread", "tb-size", "one-insn-per-tb", "split-wx", "kernel-irqchip", "dirty-ring-size")),
    "rtc": frozenset(("base", "clock", "driftfix")),
    "boot": frozenset(("order", "once", "menu", "strict", "reboot-timeout")),
    "name": frozenset(("guest", "debug-threads")),
    "icount": frozenset(("shift", "align", "sleep")),
    "chardev": frozenset(("backend", "id", "mux", "signal", "size")),
    "drive": frozenset(
        (
            *("id", "if", "bus", "unit", "index", "media", "file", "format", "readonly", "read-only", "cache", "aio"),
            *("discard", "detect-zeroes", "werror", "rerror", "copy-on-read", "serial", "cache.direct", "cache.no-flush"),
        )
    ),
    "netdev": frozenset(
        (
            *("type", "id", "restrict", "net", "host", "hostname", "dns", "dhcpstart", "domainname", "ipv4", "ipv6"),
            *("hubid", "model", "mac", "macaddr", "addr", "vectors", "name"),
        )
    ),
    "object": frozenset(("qom-type", "id", "size", "prealloc", "share", "poll-max-ns", "merge", "dump")),
}
_ONE_OF: Mapping[str, tuple[str, ...]] = {
    "display": ("none",),
    "monitor": ("none", "null"),
    "serial": ("none", "null", "stdio", "mon:stdio", "vc"),
    "parallel": ("none", "null", "stdio", "vc"),
    "debugcon": ("none", "null", "stdio", "vc"),
}
_TYPES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "chardev": ("backend", ("stdio", "null", "ringbuf")),
    "netdev": ("type", ("user", "hubport", "none", "nic")),
    "object": ("qom-type", ("rng-builtin", "iothread", "memory-backend-ram", "memory-backend-memfd")),
    "accel": ("accel", ("tcg", "kvm", "kvm:tcg", "tcg:kvm")),
}
_MAY_HAVE_SLASHES = (("drive", "file"), ("netdev", "net"))  # `_drive_fault` checks the file
_SAME = {"nic": "netdev", "net": "netdev"}

# Prefixes of the names of devices that QEMU emulates without resources of the host.
_DEVICES = (
    *("virtio-blk", "virtio-scsi", "virtio-net", "virtio-rng", "virtio-balloon", "virtio-serial", "virtserialport"),
    *(
        "virtconsole",
        "virtio-gpu",
        "virtio-vga",
        "virtio-keyboard",
        "virtio-mouse",
        "virtio-tablet",
        "virtio-iommu",
        "virtio-mem",
        "nvme",
    ),
    *("ahci", "ich9-ahci", "ide-hd", "ide-cd", "scsi-hd", "scsi-cd", "sd-card", "sdhci-pci", "lsi53c", "megasas", "am53c974"),
    *("usb-kbd", "usb-mouse", "usb-tablet", "usb-storage", "usb-hub", "usb-ehci", "usb-uhci", "ich9-usb", "piix3-usb"),
    *("qemu-xhci", "nec-usb-xhci", "e1000", "rtl8139", "pcnet", "ne2k", "vmxnet3", "i82550", "i82557", "igb", "usb-net"),
    *("pcie-", "pci-bridge", "pxb", "ioh3420", "x3130", "xio3130", "isa-debug-exit", "isa-debugcon", "isa-serial", "pci-serial"),
    *("pvpanic", "i6300esb", "ib700", "intel-iommu", "amd-iommu", "edu", "pci-testdev", "VGA", "bochs-display", "ramfb"),
    *("intel-hda", "hda-duplex", "vmgenid", "vmcoreinfo", "kvm-pit", "hpet", "pc-dimm"),
)
_WITH_THE_HOST = ("-gl", "rutabaga", "vfio")  # parts of names that begin as harmless ones do
_OF_THE_HOST = frozenset(("romfile", "rootdir", "filename", "path", "sysfsdev", "host", "fd", "vhost", "vhostfd", "vhostforce"))

# Keys of `-machine`, with dashes; QEMU takes underscores, too.
_MACHINE_KEYS = frozenset(
    (
        *("type", "accel", "acpi", "usb", "graphics", "dump-guest-core", "mem-merge", "suppress-vmdesc", "kernel-irqchip"),
        *("kvm-type", "nvdimm", "hmat", "gic-version", "virtualization", "secure", "mte", "ras", "its", "highmem", "iommu"),
        *("highmem-ecam", "highmem-mmio", "highmem-redists", "compact-highmem", "dtb-randomness", "dtb-kaslr-seed"),
        *("default-bus-bypass-iommu", "aclint", "aia", "aia-guests", "rtc", "pit", "pic", "hpet"),
        *("i8042", "sata", "smbus", "smm", "vmport", "fd-bootchk", "max-ram-below-4g", "max-fw-size", "smbios-entry-point-type"),
        *("auto-enable-numa-with-memhp", "auto-enable-numa-with-memdev", "v-eiointc", "iommu-sys", "ioapic2", "isa-serial"),
        *("pcie", "x-option-roms", "auto-kernel-cmdline"),
    )
)
_REFUSED_KEYS: Mapping[str, frozenset[str]] = {
    "device": _OF_THE_HOST,
    "smbios": frozenset(("file", "path")),
}


def check(options: Sequence[Option], files: Sequence[Path], workspace: Path) -> None:
    """Raise `ArgumentError` for arguments of a case that are not known to stay in the machine.

    `files`: files that qcase itself puts on disks. A disk may hold one of them, or a file of the workspace.
    """
    for option in options:
        if why := leaves_machine(option):
            raise ArgumentError(f'{why} under trust = "sandboxed"', option.shown, _HINT)
    for drive in root_disk.drives(options):
        if why := _drive_fault(drive, files, workspace):
            raise ArgumentError(f'{why} under trust = "sandboxed"', drive.written, _HINT)


def inside(path: Path, workspace: Path) -> bool:
    """Tell whether a file is in the workspace after all links are resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(workspace))


def leaves_machine(option: Option) -> str:
    """Return the fault of an option that is not known to stay in the machine; empty if it has none. `_drive_fault` checks the
    content of disks.
    """
    kind = _SAME.get(option.kind, option.kind)
    value = option.value or ""
    if kind in _SWITCHES or kind in ("", "hda", "hdb", "hdc", "hdd", "cdrom", "sd", "pflash", "fda", "fdb", "mtdblock"):
        return ""
    if kind in _FREE:
        return "names a file" if "/" in value and kind != "append" else ""
    if kind in _ONE_OF:
        allowed = value in _ONE_OF[kind] or (value.startswith("chardev:") and kind != "monitor")
        return "" if allowed else "is not allowed"
    return next(_faults(kind, option), "")


def _faults(kind: str, option: Option) -> Iterator[str]:
    if kind not in _KEYS and kind not in _REFUSED_KEYS and kind != "machine":
        yield "is not allowed"
        return
    opts = option.opts()
    driver = opts.get("driver") or ""
    if kind == "device" and (not driver.startswith(_DEVICES) or any(part in driver for part in _WITH_THE_HOST)):
        yield "is no device that is known to be emulated alone, and so not allowed"
    if kind in _TYPES and opts.get(_TYPES[kind][0]) not in _TYPES[kind][1]:
        yield "is not allowed"
    for key, value in opts.parts:
        known = key.startswith("smp.") or key.replace("_", "-") in _MACHINE_KEYS if kind == "machine" else None
        if known is False or key in _REFUSED_KEYS.get(kind, ()) or key not in _KEYS.get(kind, (key,)):
            yield f"{key}= is not allowed"
        if "/" in key or ("/" in str(value) and (kind, key) not in _MAY_HAVE_SLASHES):
            yield f"{key}= names a file"


def _drive_fault(drive: root_disk.Drive, files: Sequence[Path], workspace: Path) -> str:
    if drive.file is None:
        return ""
    if not set(drive.opts.keys) <= _KEYS["drive"]:
        return "is a disk of more than a file"
    path = workspace / drive.file
    if path not in files:
        if ":" in drive.file.partition("/")[0]:
            return "is an address and no file"  # for QEMU, also where a file of that name exists
        if not (path.is_relative_to(workspace) and path.is_file() and inside(path, workspace)):
            return "is no file of the workspace"
    return "" if drive.opts.get("format") == "raw" else "needs format=raw: any other format may name more files"


# --- the process --------------------------------------------------------------------------------------------------------

_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom"),
    *("/dev/random", "/sys/devices/system"),
)


def confined(argv: Sequence[str], folder: Path, workspace: Path) -> list[str]:
    """Return the command that runs QEMU with access to nothing but its own files. `folder`: for the files that QEMU writes.

    A file of the workspace is opened along a path without links: a kernel's build may exchange it for a link at any time.
    """
    program = shutil.which(argv[0])
    if program is None:
        return list(argv)  # the caller's start reports the missing program
    own, exact = [], []
    for path in (workspace / name for name in files_of(argv)):
        if not path.is_relative_to(workspace) and ".." not in path.parts:
            own.append(os.path.realpath(path))  # `check` leaves no other file outside of the workspace but those of qcase
        elif inside(path, workspace):
            exact.append(os.path.realpath(path))
    rules = {
        "read": [*_SYSTEM, *_around(Path(program)), *own],
        "exact": exact,
        "write": ["/dev/null", *(["/dev/kvm"] if _has_kvm(argv) else [])],
        "folders": [str(folder)],
    }
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("confine.py"))]
    return [*launcher, json.dumps(rules), program, *argv[1:]]


def files_of(argv: Sequence[str]) -> list[str]:
    """Return the files that QEMU's command line names: kernel, initrd and the files of its disks."""
    options = qemu_options.split(argv[1:])
    named = [option.value or "" for option in options if option.kind in ("kernel", "initrd")]
    return [*named, *(drive.file for drive in root_disk.drives(options) if drive.file is not None)]


def _around(program: Path) -> list[str]:
    """Return the paths of a program and the folders of its installation."""
    real = Path(os.path.realpath(program))
    above = real.parent.parent
    return [str(real), *(str(above / name) for name in ("share/qemu", "lib", "lib64", "libexec"))]


def _has_kvm(argv: Sequence[str]) -> bool:
    return any("kvm" in word for word in argv)


@functools.cache
def has_seccomp(arch: Arch) -> bool:
    """Tell whether the installed QEMU was built with its own sandbox (seccomp)."""
    done = process.run([arch.qemu, "-sandbox", SECCOMP, "-machine", "help"], timeout=30.0, check=False)
    return done.returncode == 0
