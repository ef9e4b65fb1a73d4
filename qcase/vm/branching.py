"""Rules for machines that branch from a template, and the key that two machines share if they are the same. Pure functions.

A template is the state of a machine at its first access to its root disk. Until then the guest has seen nothing of that disk but
its size, so the state serves every case whose machine is the same in all else. A machine of which that is not known boots cold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qcase import canonical
from qcase.config import case_file, qemu_options, root_disk
from qcase.config.qemu_options import ArgumentError, Option
from qcase.vm import arguments, sandbox
from qcase.vm.arguments import MachineSpec

FORMAT = 1
MEMORY = "qcase-memory"
BOOT_SIGNATURE = b"\x55\xaa"  # at the end of the first sector, before a table of partitions

_FILES = ("kernel", "initrd", "bios", "dtb")
_PLACES = ("default", "none")  # values of -bios that are no file
_INTERFACES = ("", "none", "ide", "virtio", "scsi")  # interfaces whose devices can stop the machine at an error
_GUESTS_DISK = "qcase:root-disk"  # in the place of the image's path
_REFUSED: Mapping[str, str] = {
    "icount": "counts instructions",
    "numa": "divides the memory",
    "S": "waits for a debugger",
}


def refusal(spec: MachineSpec, argv: Sequence[str]) -> str:
    """Return the reason why a machine cannot branch from a template; empty if it can, as far as its arguments tell."""
    try:
        options = qemu_options.split(argv[1:])
        root = root_disk.root(options)
    except ArgumentError as error:
        return str(error)
    if arguments.accelerator(argv) != "tcg":
        return f"its accelerator is {arguments.accelerator(argv)}, and only a machine under TCG is known to continue anywhere"
    if spec.flash or spec.system_partition is not None:
        return "its UEFI firmware reads disks"
    if spec.forwards:
        return "services of the host may be connected"
    if spec.reset or spec.stays:
        return "its case restarts the machine"
    if root is None or root.interface not in _INTERFACES or root.opts.get("media") == "cdrom":
        return "its root disk does not stop the machine at an error"
    for key in ("rerror", "werror", "copy-on-read"):
        if key in root.opts:
            return f"its root disk has {key}="
    return next(filter(None, map(_leaves, options)), "") or memory_fault(options, argv)


def _leaves(option: Option) -> str:
    """Return the reason why an option forbids a template; empty if it does not."""
    if option.kind in _REFUSED:
        return f"{option.shown}: {_REFUSED[option.kind]}"
    if option.kind in _FILES:
        return ""
    if option.kind in ("object", "machine", "m"):
        opts = option.opts()
        if any("memory" in f"{name} {value}" for name, value in opts.parts) or "maxmem" in opts or "slots" in opts:
            return f"{option.shown}: has memory of its own kind"
    why = sandbox.leaves_machine(option)
    return f"{option.shown}: {why}".removesuffix(", and so not allowed") if why else ""


def memory_fault(options: Sequence[Option], argv: Sequence[str]) -> str:
    """Return the reason why the size of the memory is not known; empty if it is."""
    if not any(option.kind == "m" for option in options):
        return "its memory has no size in the arguments"
    return "" if case_file.memory(argv) % (1 << 20) == 0 else "its memory is no whole number of MiB"


def files(argv: Sequence[str]) -> list[str]:
    """Return the files of a command line whose content the guest can see before it reads its root disk, without other disks."""
    options = qemu_options.split(argv[1:])
    return [option.value for option in options if option.kind in _FILES and option.value and option.value not in _PLACES]


def other_disks(argv: Sequence[str]) -> list[str]:
    """Return the files of all disks but the root disk."""
    return [drive.file for drive in root_disk.others(qemu_options.split(argv[1:])) if drive.file]


@dataclass(frozen=True)
class Surroundings:
    """Things that a guest can see besides QEMU's arguments. `qemu`: version and digest of the program; `image_size`: bytes of the
    root disk; `digests`: of the files in the arguments; `disks`: the state of the other disks' files.
    """

    qemu: str
    image_size: int
    digests: Mapping[str, str]
    disks: Mapping[str, str]


def key(argv: Sequence[str], around: Surroundings) -> str:
    """Return the key of a machine: two machines with the same key are the same until they read their root disks."""
    options = qemu_options.split(argv[1:])
    root = root_disk.root(options)
    assert root is not None
    words: list[list[str | None]] = []
    for at, option in enumerate(options):
        if at == root.positions[-1]:
            words.append([option.kind, root.opts.set("file", _GUESTS_DISK).text])
        elif option.kind in _FILES and option.value is not None and option.value in around.digests:
            words.append([option.kind, around.digests[option.value]])
        else:
            words.append([option.kind, option.value])
    return canonical.digest(
        {
            "format": FORMAT,
            "program": argv[0],
            "arguments": words,
            "qemu": around.qemu,
            "image": around.image_size,
            "files": [around.digests.get(name, "") for name in files(argv)],
            "disks": dict(around.disks),
        }
    )


def with_unreadable_disk(argv: Sequence[str], size: int) -> list[str]:
    """Return the command line of a template: a root disk of `size` bytes, at whose first read the machine stops."""
    options = qemu_options.split(argv[1:])
    root = root_disk.root(options)
    assert root is not None
    opts = root.opts.without("file")
    for name, value in (
        ("file.driver", "blkdebug"),
        ("file.image.driver", "null-co"),
        ("file.image.size", str(size)),
        ("file.image.read-zeroes", "on"),
        ("file.inject-error.0.event", "none"),
        ("file.inject-error.0.iotype", "read"),
        ("file.inject-error.0.errno", "5"),
        ("file.inject-error.0.once", "off"),
        ("rerror", "stop"),
        ("werror", "stop"),
    ):
        opts = opts.set(name, value)
    at = root.positions[-1]
    options[at] = Option("drive", opts.text, "-", options[at].number)
    return [argv[0], *qemu_options.join(options)]


def memory_arguments(argv: Sequence[str], descriptor: int, *, shared: bool) -> list[str]:
    """Return the arguments by which a machine's memory is a file that QEMU inherits, shared or as a private copy."""
    share = "on" if shared else "off"
    backend = f"id={MEMORY},size={case_file.memory(argv)},mem-path=/dev/fd/{descriptor},share={share}"
    return ["-object", f"memory-backend-file,{backend}", "-machine", f"memory-backend={MEMORY}"]


def image_fault(image: Path) -> str:
    """Return the reason why an image is none that a template serves; empty if there is none. Raises `OSError`."""
    with image.open("rb") as file:
        first = file.read(512)
    if image.stat().st_size % 512 or len(first) < 512:
        return "its image is no whole number of sectors"
    # QEMU itself takes the geometry of a disk from there, and tells the guest.
    return "its image begins with a table of partitions" if first.endswith(BOOT_SIGNATURE) else ""
