"""Kinds of disks: the bus on which a guest finds a disk, read from QEMU's arguments. Pure functions.

    virtio   virtio-blk-*, if=virtio, the default of machines without IDE                 /dev/vd?
    nvme     nvme, nvme-ns                                                                /dev/nvme?n1
    ahci     ide-hd on ich9-ahci, and on q35's own controller; ide: on that of pc         /dev/sd?
    scsi     scsi-hd on virtio-scsi-*                                                     /dev/sd?
    usb      usb-storage, usb-uas                                                         /dev/sd?
    sd       sd-card, if=sd                                                               /dev/mmcblk?

A built-in guest loads the modules of these kinds, and mounts the first disk of the root disk's kind. Linux gives no order to
several disks of one name: then the root disk is known by the serial number of its device, which is set where it has none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from qcase.config import root_disk
from qcase.config.qemu_options import ArgumentError, Option, Opts

SERIAL = "qcase-root-disk"
_SERIAL_LENGTH = 20  # characters of it that reach a guest


class Kind(StrEnum):
    """The bus of a disk."""

    VIRTIO = "virtio"
    NVME = "nvme"
    AHCI = "ahci"
    IDE = "ide"
    SCSI = "scsi"
    USB = "usb"
    SD = "sd"

    @property
    def name_prefix(self) -> str:
        """The beginning of the names of such disks in /dev."""
        return {"virtio": "vd", "nvme": "nvme", "sd": "mmcblk"}.get(self.value, "sd")


@dataclass(frozen=True)
class Disks:
    """The disks of a machine, for a built-in guest. `kinds`: of all disks, that of the root disk first.

    `serial`: the serial number of the root disk, if other disks have names like it; else empty.
    """

    kinds: tuple[Kind, ...] = (Kind.VIRTIO,)
    serial: str = ""

    @property
    def root(self) -> Kind:
        return self.kinds[0]


USUAL = Disks()

_AHCI, _IDE, _USB = ("ahci", "ich9-ahci"), ("piix3-ide", "piix4-ide"), ("usb-uas", "usb-bot", "usb-storage")
_HINT = "qcase's guests find their root on virtio-blk, nvme, ide-hd, scsi-hd on virtio-scsi, usb-storage and sd-card"


def of(options: Sequence[Option], machine: str) -> Disks:
    """Return the disks of a machine. `machine`: the default value of `-machine`.

    Raises `ArgumentError` for a root disk that a built-in guest could not find.
    """
    machines = [option.opts().get("type") or "" for option in options if option.kind == "machine"]
    has_ide = next((name for name in (*machines[::-1], machine) if name), "")
    root = root_disk.root(options)
    name = root_disk.ROOT if root is None else root.id
    devices = root_disk.devices(options)
    drives = root_disk.drives(options)
    by_device = [device for device in devices if name is not None and device.get("drive") == name]
    if by_device:
        kind = _of_device(by_device[0], devices, has_ide)
    else:
        kind = Kind.VIRTIO if root is None or root.interface == "none" else _of_interface(root.interface, has_ide)
    if kind is None:
        shown = root.written if root is not None and not by_device else f"-device {by_device[0].text}"
        raise ArgumentError("is a root disk that a built-in guest has no driver for", shown, _HINT)
    others = [
        _of_device(device, devices, has_ide)
        for device in devices
        if device.get("drive") not in (None, name) and not (device.get("driver") or "").endswith(("-cd", "floppy"))
    ]
    others += [
        _of_interface(drive.interface, has_ide)
        for drive in drives
        if drive != root and drive.interface not in root_disk.UNSEEN and drive.opts.get("media") != "cdrom"
    ]
    found = [other for other in others if other is not None]
    serial = ""
    if any(other.name_prefix == kind.name_prefix for other in found):
        serial = _serial(by_device[0] if by_device else None, root, kind, devices)
    return Disks((kind, *sorted({*found} - {kind})), serial)


def with_serial(options: Sequence[Option], serial: str) -> list[Option]:
    """Return the options with a serial number on the root disk's device, if that has none."""
    root = root_disk.root(options)
    name = root_disk.ROOT if root is None else root.id
    return [
        option.with_value(opts.set("serial", serial).text)
        if option.kind == "device" and (opts := option.opts()).get("drive") == name and "serial" not in opts
        else option
        for option in options
    ]


def _serial(device: Opts | None, root: root_disk.Drive | None, kind: Kind, devices: Sequence[Opts]) -> str:
    """Return the serial number by which a guest finds the root disk among others of its kind."""
    by_itself = device is None and root is not None and root.interface != "none"
    if by_itself or kind in (Kind.USB, Kind.SD) or (device is not None and device.get("driver") == "nvme-ns"):
        shown = root.written if root is not None else f"drive={root_disk.ROOT}"
        raise ArgumentError("cannot be told from the other disks of its kind", shown, "put the other disks on another bus")
    serial = SERIAL if device is None or device.get("serial") is None else (device.get("serial") or "")[:_SERIAL_LENGTH]
    if not re.fullmatch(r"[A-Za-z0-9._-]+", serial):
        raise ArgumentError("needs a serial number of letters and digits", f"serial={serial}", "or none: then qcase sets one")
    for other in devices:
        if other is not device and (other.get("serial") or "")[:_SERIAL_LENGTH].endswith(serial):
            raise ArgumentError("two disks have serial numbers with this end", f"serial={serial}", "give each its own")
    return serial


def _of_device(device: Opts, devices: Sequence[Opts], machine: str) -> Kind | None:
    driver = device.get("driver") or ""
    if driver.startswith("virtio-blk-"):
        return Kind.VIRTIO
    if driver.startswith("nvme"):
        return Kind.NVME
    if driver == "sd-card":
        return Kind.SD
    if driver in _USB:
        return Kind.USB
    if driver.startswith("ide-"):
        return _of_controller(device, devices, (*_AHCI, *_IDE)) or _of_interface("ide", machine)
    return _of_controller(device, devices, ("virtio-scsi-", *_USB)) if driver.startswith("scsi-") else None


def _of_controller(device: Opts, devices: Sequence[Opts], known: tuple[str, ...]) -> Kind | None:
    """Return the kind of a disk by its controller: the one that `bus` names, else the only kind that there is."""
    bus = (device.get("bus") or "").partition(".")[0]
    named = [other.get("driver") or "" for other in devices if bus and other.get("id") == bus]
    drivers = named or [driver for other in devices if not bus and (driver := other.get("driver") or "").startswith(known)]
    for driver in drivers[:1]:
        if driver.startswith("virtio-scsi-"):
            return Kind.SCSI
        return Kind.AHCI if driver in _AHCI else Kind.IDE if driver in _IDE else Kind.USB if driver in _USB else None
    return None


def _of_interface(interface: str, machine: str) -> Kind | None:
    ide = Kind.AHCI if "q35" in machine else Kind.IDE if machine.startswith("pc") else None
    return {"virtio": Kind.VIRTIO, "sd": Kind.SD, "ide": ide, "": ide or Kind.VIRTIO}.get(interface)
