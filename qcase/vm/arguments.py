"""QEMU's arguments for a machine. Pure functions."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from qcase.arch import Arch
from qcase.config import disk_kinds, qemu_options, root_disk
from qcase.config.fields import TcgThreads
from qcase.config.qemu_options import ArgumentError, Option
from qcase.vm import consoles, network
from qcase.vm.network import Network
from qcase.vm.services import NONE, Forwards

Accel = Literal["tcg", "kvm"]

# Parameters of qcase's initramfs on the kernel's command line.
SERIAL_PARAMETER = "qcase.serial"
DNS_PARAMETER = "qcase.dns"

_ESP = "qcase-esp"
_DRIVE_PREFIX = f"id={root_disk.ROOT},if=none,format=raw,file="


@dataclass(frozen=True)
class MachineSpec:
    """The parts of a machine. `args`: arguments of the case's file, placeholders replaced. `image`: on its root disk; None for a
    kernel that is tested alone, without a root disk.

    `images`: managed images that replace the files of its other disks, by file name. `stranger`: the workspace, if its suite is
    not trusted; else None.
    """

    arch: Arch
    args: tuple[str, ...]
    image: Path | None
    kernel: Path
    initrd: Path | None = None
    append: str = ""
    accel: Accel = "tcg"
    network: Network = "restricted"
    processors: int = 1
    tcg_threads: TcgThreads = "auto"
    reset: bool = False  # the guest may reset its machine; else a reset ends QEMU
    stays: bool = False  # QEMU goes on where a reset or a power-off would end it; its machine stands still
    flash: tuple[Path, ...] = ()  # UEFI firmware: its code, and the template of its variables
    system_partition: Path | None = None  # disk from which the firmware boots; it starts the kernel, not QEMU
    images: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    stranger: Path | None = None
    own_init: bool = False  # qcase's initramfs boots, and reads its parameters on the kernel's command line
    forwards: Forwards = NONE  # services of the host
    consoles: tuple[str, ...] = ()  # names of further consoles, on chardevs that `args` do not define
    root_serial: str = ""  # serial number by which that initramfs finds the root disk; empty if it needs none


def arguments(spec: MachineSpec) -> list[str]:
    """Return QEMU's whole command line.

    Raises `qemu_options.ArgumentError` for arguments that have no meaning, that leave open which disk is the root disk, or that
    bypass the network policy.
    """
    from qcase.vm import sandbox

    args, append = _take_append(spec.args)
    if spec.forwards and spec.network == "none":
        raise ArgumentError('network = "none" leaves no way to the services of the host', hint='"restricted" does')
    attached = root_disk.attach(qemu_options.split(args), spec.image, spec.images)
    options = network.limit(attached.options, spec.network)
    if spec.root_serial:
        options = disk_kinds.with_serial(options, spec.root_serial)
    if spec.stranger is not None:
        if spec.network == "user":
            raise ArgumentError('network = "user" is refused under trust = "sandboxed": it reaches whatever this machine reaches')
        sandbox.check(options, [*([spec.image] if spec.image else []), *spec.images.values()], spec.stranger)
    if spec.accel == "kvm":
        options = _own_processor(options, spec.arch)
    if spec.forwards and (network.has_backend(options) or network.has_own_cards(options)):
        options = _with_services(options, spec)
    patch = [*_root(options, spec, attached.attached), *_card(options, spec, attached.usual and spec.image is not None)]
    kinds = {option.kind for option in options}
    if not kinds & {"nographic", "serial", "display", "chardev"}:
        patch += ["-nographic"]
    if not names_accelerator(args):
        patch += ["-accel", _accelerator(spec)]
    if not spec.reset and not kinds & {"no-reboot", "action"}:
        patch += ["-no-reboot"]
    if spec.stays and not kinds & {"no-shutdown", "action"}:
        patch += ["-no-shutdown"]
    patch += [word for name in spec.consoles for word in consoles.placeholder(name)]
    for unit, path in enumerate(spec.flash):
        lock = ",readonly=on" if unit == 0 else ""
        patch += ["-drive", f"if=pflash,unit={unit},format=raw{lock},file={_quoted(path)}"]
    kernel = ["-kernel", str(spec.kernel)]
    if spec.system_partition is not None:
        patch += ["-drive", f"id={_ESP},if=none,format=raw,readonly=on,file={_quoted(spec.system_partition)}"]
        patch += ["-device", f"virtio-blk-{spec.arch.spec.virtio},drive={_ESP},bootindex=0"]
        kernel = []
    if spec.initrd is not None:
        kernel += ["-initrd", str(spec.initrd)]
    parameters = _parameters(spec, [*options, *qemu_options.split(patch)]) if spec.own_init else ()
    whole = " ".join(part for part in (spec.append, *parameters, append) if part)
    if whole:
        kernel += ["-append", whole]
    snapshot = [] if "snapshot" in kinds else ["-snapshot"]
    machine = [] if "machine" in kinds else ["-machine", spec.arch.machine]
    return [spec.arch.qemu, *qemu_options.join(options), *patch, *snapshot, *machine, *kernel]


def check_added(device: str, spec: MachineSpec) -> None:
    """Raise `ArgumentError` for a device (JSON) that a step of the case adds, where `args` could not name it."""
    from qcase.vm import sandbox

    option = Option("device", device)
    root_disk.refuse_writers([option])
    network.limit([option], spec.network)
    if spec.stranger is not None:
        sandbox.check([option], (), spec.stranger)


def _root(options: Sequence[Option], spec: MachineSpec, attached: bool) -> Iterator[str]:
    """Yield the arguments of the root disk, as far as the case's own lack them. Raises `ArgumentError` as `arguments`."""
    missing = root_disk.root(options) is None
    if spec.image is None:
        if missing and any(device.get("drive") == root_disk.ROOT for device in root_disk.devices(options)):
            what = "a case that tests its kernel alone has no root disk"
            raise ArgumentError(what, f"drive={root_disk.ROOT}", "a disk of its own takes a -drive with its id and file")
        return
    if not attached:
        serial = f",serial={spec.root_serial}" if spec.root_serial else ""
        yield from ("-device", f"virtio-blk-{spec.arch.spec.virtio},drive={root_disk.ROOT}{serial}")
    if missing:
        yield from ("-drive", f"{_DRIVE_PREFIX}{_quoted(spec.image)}")


def _parameters(spec: MachineSpec, options: Sequence[Option]) -> Iterator[str]:
    """Yield the parameters of qcase's initramfs."""
    if spec.root_serial:
        yield f"{SERIAL_PARAMETER}={spec.root_serial}"
    dns = network.nameserver(options) if spec.network == "user" else None
    if dns is not None:
        yield f"{DNS_PARAMETER}={dns}"


def _card(options: Sequence[Option], spec: MachineSpec, usual: bool) -> list[str]:
    """Return the arguments of the network card and its backend, as far as the case does not define its own.

    A machine with an unusual root disk gets a card only if its arguments mention a network. Without `-nic none`, QEMU would give
    its machines a card with unrestricted network.
    """
    if network.has_own_cards(options):
        return []
    card, backend = network.has_card(options), network.has_backend(options)
    asked = bool(spec.forwards) or network.is_asked_for(options)
    wanted = card or backend or (spec.network != "none" and (usual or asked))
    if not wanted:
        return [] if network.is_asked_for(options) else ["-nic", "none"]
    made = [] if card else ["-device", f"virtio-net-{spec.arch.spec.virtio},netdev={network.CARD}"]
    if not backend:
        user = qemu_options.Option("netdev", f"user,id={network.CARD}")
        made += qemu_options.join(_with_services(network.limit([user], spec.network), spec))
    return made


def _with_services(options: Sequence[Option], spec: MachineSpec) -> list[Option]:
    """Return the arguments of networks with the services of the host."""
    if not spec.forwards:
        return list(options)
    return network.forward(options, spec.forwards.commands, spec.forwards.tftp)


def _accelerator(spec: MachineSpec) -> str:
    """Return the value of QEMU's `-accel`.

    x86 kernels patch their own code while they boot. With a host thread for each processor, TCG at times executes a half-patched
    instruction, which the kernel reports as "Oops: int3" (seen in 2 of 12 boots with four processors under QEMU 7.2, in none
    of 12 with one thread).
    """
    if spec.accel != "tcg" or spec.processors == 1:
        return spec.accel
    if spec.tcg_threads != "auto":
        return f"tcg,thread={spec.tcg_threads}"
    return "tcg,thread=single" if spec.arch.spec.tcg_single_thread else "tcg"


def accelerator(argv: Sequence[str]) -> str:
    """Return the accelerator of a command line: "tcg", "kvm", or another one that a case's file names."""
    named = _accelerators(qemu_options.split(argv[1:]))
    return named[0] if named else "tcg"


def _accelerators(options: Sequence[Option]) -> list[str]:
    """Return the accelerators that options name, `-enable-kvm` first."""
    named = ["kvm"] if any(option.kind == "enable-kvm" for option in options) else []
    for option in options:
        key = {"accel": "accel", "machine": "accel"}.get(option.kind)
        if key is not None and (found := option.opts().get(key)):
            named.append(found)
    return named


def _quoted(path: Path) -> str:
    """Return a path as QEMU's option value. QEMU reads commas as separators, so a comma in a path is doubled."""
    return qemu_options.escaped(str(path))


def _own_processor(options: Sequence[Option], arch: Arch) -> list[Option]:
    """Set `-cpu host` where a guest under KVM has the host's processor only, as on arm64, whatever the case's file names."""
    if not arch.spec.kvm_needs_host_cpu:
        return list(options)
    if not any(option.kind == "cpu" for option in options):
        return [*options, Option("cpu", "host")]
    return [option.with_value("host") if option.kind == "cpu" else option for option in options]


def _take_append(args: Sequence[str]) -> tuple[list[str], str]:
    """Return the arguments without `-append`, and its values joined: QEMU uses only the last one, and the guest has its own."""
    options = qemu_options.split(args)
    said = [option.value or "" for option in options if option.kind == "append"]
    return qemu_options.join(option for option in options if option.kind != "append"), " ".join(said)


def names_accelerator(args: Sequence[str]) -> bool:
    """Tell whether a case's arguments name an accelerator."""
    return bool(_accelerators(qemu_options.split(args)))


def pasteable(argv: Sequence[str]) -> str:
    """Return the command line quoted for a shell."""
    return shlex.join(argv)
