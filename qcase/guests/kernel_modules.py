"""Modules of a Linux kernel: dependencies, load order, and which ones a guest keeps."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from qcase.arch import Arch
from qcase.config.disk_kinds import USUAL, Kind
from qcase.errors import InfraError

# Modules to keep, by their folder. Those that the initramfs loads are among them.
KEPT = (
    r"(arch|block|crypto|fs|lib|mm|net|virt)/",
    r"drivers/(block|char/hw_random|virtio|vhost)/",
    r"drivers/net/[^/]+$",
    r"drivers/.*/virtio[^/]*$",
    r"drivers/nvme/host/nvme\.",
    r"drivers/ata/(ahci|ata_piix)\.",
    r"drivers/scsi/sd_mod\.",
    r"drivers/mmc/(core/mmc_block|host/sdhci-pci)\.",
    r"drivers/usb/(host/(xhci|ehci)-pci|storage/uas)\.",
)


# --- modules ------------------------------------------------------------------------------------------------------------


def keep_modules(folder: Path) -> None:
    """Remove the modules that a guest does not need from `/lib/modules/<version>`, and write the index of the others."""
    paths = {module_name(path.name): path for path in sorted((folder / "kernel").rglob("*.ko*"))}
    wanted = [
        name
        for name, path in paths.items()
        if any(re.match(pattern, path.relative_to(folder / "kernel").as_posix()) for pattern in KEPT)
    ]
    facts: dict[str, dict[str, list[str]]] = {}
    while wanted:
        name = wanted.pop()
        if name not in facts and name in paths:
            path = paths[name]
            facts[name] = module_facts(unpack(path.name, path.read_bytes()), path.name)
            wanted += needs(facts[name])
    for name in paths.keys() - facts.keys():
        paths[name].unlink()
    for found, folders, names in os.walk(folder, topdown=False):
        if not names and not any((Path(found) / name).exists() for name in folders):
            Path(found).rmdir()
    by_alias = {alias: name for name in sorted(facts) for alias in facts[name].get("alias", ())}
    direct = {name: [*first(facts[name], by_alias), *needs(facts[name])] for name in facts}
    relative = {name: paths[name].relative_to(folder).as_posix() for name in facts}
    (folder / "modules.dep").write_text(index(relative, direct), encoding="ascii")
    aliases = [f"alias {alias} {name}\n" for name in sorted(facts) for alias in facts[name].get("alias", ())]
    (folder / "modules.alias").write_text("".join(aliases), encoding="ascii")
    for name in ("modules.dep", "modules.alias"):
        (folder / name).chmod(0o644)  # whatever our umask is


def module_facts(module: bytes, where: str) -> dict[str, list[str]]:
    """Read a module's metadata: its section `.modinfo`, `name=value` with a NUL behind each."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(io.BytesIO(module)).get_section_by_name(".modinfo")
        data = section.data() if section is not None else b""
    except ELFError as error:
        raise InfraError(f"is no kernel module: {error}", where=where) from None
    facts: dict[str, list[str]] = {}
    for word in data.decode("utf-8", "replace").split("\0"):
        name, equals, value = word.partition("=")
        if equals:
            facts.setdefault(name, []).append(value)
    return facts


def needs(facts: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names of the modules that a module with these facts depends on."""
    return [name.replace("-", "_") for value in facts.get("depends", ()) for name in value.split(",") if name]


def first(facts: Mapping[str, Sequence[str]], by_alias: Mapping[str, str]) -> list[str]:
    """Return the modules of its soft dependencies: ext4 asks for `crc32c`, an alias, and mounts nothing without.

    depmod keeps them in a file of their own, which busybox does not read. In modules.dep every modprobe uses them.
    """
    words = [word for value in facts.get("softdep", ()) for word in value.partition("post:")[0].partition("pre:")[2].split()]
    return [by_alias.get(word, word.replace("-", "_")) for word in words]


def index(paths: Mapping[str, str], direct: Mapping[str, Sequence[str]]) -> str:
    """Build modules.dep: for each module's path the paths of all its dependencies, to be loaded last to first."""

    path: list[str] = []  # on the way: two modules may each want the other to be there first

    def visit(name: str, order: dict[str, None]) -> None:
        for needed in direct[name]:
            if needed in paths and needed not in order and needed not in path:
                path.append(needed)
                visit(needed, order)
                path.pop()
                order[needed] = None

    lines = []
    for name in sorted(paths, key=lambda name: paths[name]):
        order: dict[str, None] = {}
        path = [name]
        visit(name, order)
        needed = [paths[other] for other in reversed(order)]
        lines.append(" ".join([f"{paths[name]}:", *needed]) + "\n")
    return "".join(lines)


NET_MODULES = ("virtio_net",)


_DISK_MODULES: Mapping[Kind, tuple[str, ...]] = {
    Kind.VIRTIO: ("virtio_blk",),
    Kind.NVME: ("nvme",),
    Kind.AHCI: ("ahci", "sd_mod"),
    Kind.IDE: ("ata_piix", "sd_mod"),
    Kind.SCSI: ("virtio_scsi", "sd_mod"),
    Kind.USB: ("xhci_pci", "ehci_pci", "uas", "sd_mod"),
    Kind.SD: ("sdhci_pci", "mmc_block"),
}


def disk_modules(arch: Arch, kinds: Sequence[Kind] = USUAL.kinds) -> tuple[str, ...]:
    """Return the modules that mount a root disk, and find all disks of these kinds."""
    of_kinds = (name for kind in kinds for name in _DISK_MODULES[kind])
    return tuple(dict.fromkeys((*arch.spec.virtio_modules, *of_kinds, "ext4")))


def parse_dependencies(text: str) -> dict[str, list[str]]:
    """Parse modules.dep: from each module's path to the paths of all its dependencies. modprobe loads them last to first."""
    lines = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {path.strip(): needed.split() for path, _, needed in lines}


def load_order(dependencies: Mapping[str, Sequence[str]], wanted: Iterable[str], builtin: frozenset[str] | set[str]) -> list[str]:
    """Return the paths of the modules to load, each once and after its dependencies. Raises `KeyError` with an unknown name."""
    by_name = {module_name(path): path for path in dependencies}
    order: dict[str, None] = {}
    for name in wanted:
        if name in builtin:
            continue
        if name not in by_name:
            raise KeyError(name)
        for path in (*reversed(dependencies[by_name[name]]), by_name[name]):
            if path not in dependencies:
                raise KeyError(module_name(path))
            order.setdefault(path)
    return list(order)


def module_name(path: str) -> str:
    """Return the kernel's name of a module: without folder and endings, and `_` for `-`."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def unpack(path: str, data: bytes) -> bytes:
    """Return a module's content, decompressed by its ending. Raises `InfraError` for a compression that Python does not know."""
    import gzip
    import lzma

    try:
        if path.endswith(".ko"):
            return data
        if path.endswith(".ko.gz"):
            return gzip.decompress(data)
        if path.endswith(".ko.xz"):
            return lzma.decompress(data)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InfraError(f"cannot decompress the kernel module: {error}", where=path) from None
    raise InfraError("do not know how to decompress this kernel module", where=path, hint="gzip and xz are known")
