"""The disks of a machine: finds the root disk, and keeps every guest from writing into a file of the host. Pure functions.

    options ── drives ──► Drive …     -drive, -hda … -hdd, -cdrom, -fda, -fdb, -sd, -mtdblock, -pflash, a word without a dash,
                                      and each -blockdev chain of a format over a file
            ── attach ──► options     the root disk holds the case's image, a managed image replaces the file of its name,
                                      every drive is a temporary overlay (`-snapshot`)

The root disk is (COMPAT, "Machines") the drive with the id `disk0`, else the one with `if=sd`, else the first one whose id a
device names, else the one that QEMU attaches by itself. If two drives are possible, the arguments are refused.

A drive's own `snapshot` would win over `-snapshot`, and `-blockdev` knows no snapshot at all: `attach` drops the first, and turns
the second into a `-drive` of the same name, which devices find just the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qcase.config.qemu_options import ArgumentError, Option, Opts, is_on

ROOT = "disk0"

_SHORT: Mapping[str, str] = {
    "": "index=0,media=disk",
    **{f"hd{letter}": f"index={at},media=disk" for at, letter in enumerate("abcd")},
    "cdrom": "index=2,media=cdrom",
    "fda": "if=floppy,index=0",
    "fdb": "if=floppy,index=1",
    "sd": "if=sd",
    "mtdblock": "if=mtd",
    "pflash": "if=pflash",
}
SEMIHOSTING = ("semihosting", "semihosting-config")  # options by which a guest asks QEMU to open files, and to end
UNSEEN = ("none", "pflash", "floppy", "mtd")  # interfaces that attach nothing, or nothing that could be a root disk

# Keys of the drive itself, independent of its content. All other keys belong to the file or the format that it named.
_OF_THE_DRIVE = frozenset(
    (
        *("id", "if", "bus", "unit", "index", "media", "file", "format", "readonly", "read-only", "cache", "aio"),
        *("discard", "detect-zeroes", "werror", "rerror", "copy-on-read", "node-name", "serial"),
    )
)
_OF_A_FORMAT = frozenset(
    ("driver", "node-name", "file", "read-only", "auto-read-only", "discard", "detect-zeroes", "force-share", "cache")
)
_OF_A_FILE = _OF_A_FORMAT - {"file"} | {"filename", "aio", "locking"}
_FORMATS = frozenset(("raw", "qcow2", "qcow", "qed", "vdi", "vmdk", "vhdx", "vpc"))
_REMOVABLE = ("-cd", "floppy")
_FILES = frozenset(("file", "host_device"))
_CHILDREN = ("file", "backing", "data-file", "image", "raw", "test")


@dataclass(frozen=True)
class Drive:
    """One disk. `positions`: indexes of its options, ending with the written one. `opts`: its value in `-drive` syntax."""

    positions: tuple[int, ...]
    opts: Opts
    written: str

    @property
    def id(self) -> str | None:
        return self.opts.get("id")

    @property
    def interface(self) -> str:
        """Interface of the drive; empty for the machine's default."""
        return self.opts.get("if") or ""

    @property
    def file(self) -> str | None:
        """File that the drive names; None if it names none."""
        found = self.opts.get("file") or self.opts.get("file.filename") or self.opts.get("filename")
        return found or None

    @property
    def is_first(self) -> bool:
        """Tell whether the drive has the first place of its bus."""
        return self.opts.get("index") == "0" or (self.opts.get("unit") == "0" and self.opts.get("bus") in (None, "0"))


@dataclass(frozen=True)
class Attached:
    """Arguments in which the root disk holds the image. `attached`: it has a device; `usual`: it is virtio's `disk0`."""

    options: tuple[Option, ...]
    attached: bool
    usual: bool


def root(options: Sequence[Option]) -> Drive | None:
    """Return the root disk; None if the arguments have none. Raises `ArgumentError` if the choice is ambiguous."""
    found = drives(options)
    return _root(options, found)


def others(options: Sequence[Option]) -> list[Drive]:
    """Return the disks other than the root disk. Raises as `root`."""
    found = drives(options)
    chosen = _root(options, found)
    return [drive for drive in found if drive != chosen]


def named(file: str | None) -> str:
    """Return the name under which a file may be one of the workspace's images."""
    return PurePosixPath(file).name if file else ""


def drives(options: Sequence[Option]) -> list[Drive]:
    """Return all disks, in order. Raises `ArgumentError` for a `-blockdev` into which a guest could write."""
    found = []
    for at, option in enumerate(options):
        if option.kind == "drive":
            found.append(Drive((at,), option.opts(), option.shown))
        elif option.kind in _SHORT and option.value is not None:
            short = Option("drive", _SHORT[option.kind]).opts().set("file", option.value)
            found.append(Drive((at,), short, option.shown))
    found += _Blockdevs(options).drives()
    return sorted(found, key=lambda drive: drive.positions[-1])


def attach(options: Sequence[Option], image: Path | None, images: Mapping[str, Path]) -> Attached:
    """Put the case's image on the root disk, if it has one, and managed images, by name, on the other disks.

    Raises `ArgumentError` if the root disk is ambiguous, or if a guest could write into a file of the host.
    """
    refuse_writers(options, semihosting=True)
    found = drives(options)
    chosen = _root(options, found)
    written: dict[int, Option] = {}
    gone: set[int] = set()
    for drive in found:
        gone |= set(drive.positions)
        opts = drive.opts.without("snapshot")
        if drive == chosen and image is not None:
            opts = _holding(drive, image)
        elif named(drive.file) in images:
            opts = opts.set("file", str(images[named(drive.file)])).without("filename").set("format", "raw").without("driver")
        at = drive.positions[-1]
        same = opts == drive.opts and len(drive.positions) == 1 and options[at].kind != "blockdev"
        written[at] = options[at] if same else Option("drive", opts.text, "-", options[at].number)
    kept = tuple(written.get(at, option) for at, option in enumerate(options) if at in written or at not in gone)
    by_device = [device for device in devices(options) if device.get("drive") == (chosen.id if chosen else ROOT)]
    itself = chosen is not None and chosen.interface != "none"
    virtio = all((device.get("driver") or "").startswith("virtio-blk-") for device in by_device)
    usual = (chosen is None or chosen.id == ROOT) and not itself and virtio
    return Attached(kept, bool(by_device) or itself, usual)


def devices(options: Sequence[Option]) -> list[Opts]:
    """Return the devices that the arguments name."""
    return [option.opts() for option in options if option.kind == "device"]


def refuse_writers(options: Sequence[Option], *, semihosting: bool = False) -> None:
    """Raise `ArgumentError` for an argument by which a guest could write into a file of the host without an overlay in between.

    `semihosting`: it is allowed, since QEMU then runs confined to its own files, see `qcase.vm.machine.start`.

    Also refuses an argument that changes the values of other arguments: the resulting disks could not be determined.
    """
    for option in options:
        if option.kind in _HIDING:
            raise ArgumentError(_HIDING[option.kind], option.shown, "say the same in the option itself")
        if semihosting and option.kind in SEMIHOSTING:
            continue
        if why := _writes(option):
            raise ArgumentError("lets the guest write into files of the host", option.shown, why)


_HIDING = {
    "set": "changes what other arguments say, so that nobody could tell which file a disk holds",
    "readconfig": "has arguments in a file, so that nobody could tell which file a disk holds",
}


def _writes(option: Option) -> str:
    """Return advice to replace an option that gives a guest files to write into; empty for any other option."""
    if option.kind == "global" and option.value is not None:
        opts = option.opts()
        names = {name.rpartition(".")[2] for name in opts.keys} | {opts.get("property")}
        return "name the drive where the device is named" if "drive" in names else ""
    if option.kind in ("fsdev", "virtfs"):
        opts = option.opts()
        harmless = opts.get("fsdriver") == "synth" or is_on(opts.get("readonly"))
        return "" if harmless else "readonly=on shares a folder that the guest cannot write to"
    if option.kind == "object":
        opts = option.opts()
        shared = "mem-path" in opts and is_on(opts.get("share")) and not is_on(opts.get("readonly"))
        return "share=off keeps what the guest writes to itself" if shared else ""
    if option.kind == "device":
        opts = option.opts()
        writes = opts.get("driver") == "usb-mtp" and "readonly" in opts and not is_on(opts.get("readonly"))
        return "leave out readonly=off" if writes else ""
    if option.kind in SEMIHOSTING:
        return "a guest opens any file by semihosting; with [qcase.exit], by which it ends QEMU, it is allowed, and QEMU confined"
    return ""


# --- choice of the root disk -------------------------------------------------------------------------------------------


def _root(options: Sequence[Option], found: Sequence[Drive]) -> Drive | None:
    for drive in found:
        if drive.id == ROOT:
            return drive
    for drive in found:
        if drive.interface == "sd":
            return drive
    users = {
        str(device.get("drive")): device.get("driver") or "" for device in devices(options) if device.get("drive") is not None
    }
    nodes = _Blockdevs(options).names
    for name, driver in users.items():
        if name in [ROOT, *(drive.id for drive in found)] or (name in nodes and driver.endswith(_REMOVABLE)):
            continue
        if name in nodes:  # a node that is only read and is no drive: QEMU would use it as the root disk
            raise ArgumentError(f"cannot put the image of a case on the node {name!r}", f"drive={name}", "use -drive")
        hint = f"the drive {ROOT} is made for you, any other one takes a -drive with its id"
        raise ArgumentError(f"there is no drive {name!r}", f"drive={name}", hint)
    for drive in found:
        if drive.id in users and not users[drive.id].endswith(_REMOVABLE) and drive.interface != "pflash":
            return drive
    if ROOT in users:
        return None
    own = [drive for drive in found if drive.interface not in UNSEEN and drive.opts.get("media") != "cdrom"]
    first = [drive for drive in own if drive.is_first] or own
    if len(first) > 1:
        shown = " and ".join(drive.written for drive in first[:2])
        raise ArgumentError("cannot tell which disk is the root disk", shown, f"give the root disk id={ROOT}")
    return first[0] if first else None


def _holding(drive: Drive, image: Path) -> Opts:
    """Return the root disk's value with the image in it, without the keys of the file that it named."""
    opts = drive.opts
    for key in ("offset", "size", "file.offset", "file.size"):
        if key in opts:
            raise ArgumentError(f"{key}= on the root disk", drive.written, "the image of a case is booted as a whole")
    kept = tuple(
        (name, value)
        for name, value in opts.set("file", str(image)).parts
        if name.partition(".")[0] in _OF_THE_DRIVE and not name.startswith("file.")
    )
    return Opts(kept).set("format", "raw")


# --- -blockdev ----------------------------------------------------------------------------------------------------------


class _Blockdevs:
    """The nodes that `-blockdev` makes, and the chains that they form."""

    def __init__(self, options: Sequence[Option]) -> None:
        self._options = options
        self._nodes = {at: option.opts() for at, option in enumerate(options) if option.kind == "blockdev"}
        self._by_name = {opts.get("node-name"): at for at, opts in self._nodes.items()}
        self._used = [child for opts in self._nodes.values() for child in self._references(opts)]

    @property
    def names(self) -> frozenset[str]:
        """Names of all nodes, including nodes written inside another one."""
        parts = (part for opts in self._nodes.values() for part in opts.parts)
        return frozenset(str(value) for name, value in parts if name.rpartition(".")[2] == "node-name")

    def _references(self, opts: Opts) -> Iterator[int]:
        """Yield the indexes of the other nodes that a node refers to, at any depth."""
        for name, value in opts.parts:
            if name.rpartition(".")[2] in _CHILDREN and value in self._by_name:
                yield self._by_name[value]
            elif isinstance(value, list):
                yield from (self._by_name[item] for item in value if isinstance(item, str) and item in self._by_name)

    def drives(self) -> Iterator[Drive]:
        """Yield each chain that no other node uses, as a drive.

        Skips a read-only chain that is more than a format over a file. Raises `ArgumentError` for a writable one.
        """
        for at, opts in self._nodes.items():
            if at in self._used:
                continue
            drive = self._chain(at, opts)
            if drive is not None:
                yield drive
            elif opts.get("node-name") == ROOT or not self._reads_only(opts):
                raise ArgumentError(
                    "makes a disk of more than a format over a file, which qcase cannot turn into a temporary overlay",
                    self._options[at].shown,
                    "use -drive, or read-only=on down to the file",
                )

    def _chain(self, at: int, opts: Opts) -> Drive | None:
        """Return a format over a file, or a file alone, as a drive; None for anything else."""
        driver = opts.get("driver") or ""
        positions: tuple[int, ...] = (at,)
        leaf = opts
        if driver in _FORMATS:
            below = opts.get("file")
            if below in self._by_name:
                child = self._by_name[below]
                if self._used.count(child) > 1 or child == at:
                    return None
                positions, leaf = (child, at), self._nodes[child]
            else:
                leaf = opts.below("file")
            if not {name.partition(".")[0] for name in opts.keys} <= _OF_A_FORMAT:
                return None
        if leaf.get("driver") not in _FILES or not leaf.get("filename"):
            return None
        if not {name.partition(".")[0] for name in leaf.keys} <= _OF_A_FILE:
            return None
        parts = [("if", "none"), ("id", opts.get("node-name") or ""), ("format", driver if driver in _FORMATS else "raw")]
        parts.append(("file", leaf.get("filename") or ""))
        for key in ("discard", "detect-zeroes", "cache.direct", "cache.no-flush", "aio"):
            value = opts.get(key) or leaf.get(key)
            parts += [(key, value)] if value is not None else []
        parts += [("readonly", "on")] if is_on(opts.get("read-only")) else []
        return Drive(positions, Opts(tuple(parts)), self._options[at].shown)

    def _reads_only(self, opts: Opts) -> bool:
        """Tell whether a node and all nodes below it are opened read-only."""
        if not is_on(opts.get("read-only")):
            return False
        for name in _CHILDREN:
            inline = opts.below(name)
            if "driver" in inline and not self._reads_only(inline):
                return False
        return all(self._reads_only(self._nodes[child]) for child in self._references(opts) if child in self._nodes)
