"""The shared libraries that an overlay's programs need.

axbuild copies them all from the staging root. Here the guest usually has them already, so what comes along is what packages have
added to the staging root or changed there; musl itself is taken from the toolchain where the guest has none. What is missing then
is an error now, instead of "not found" in the guest.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from qcase.errors import BuildError
from qcase.ext4 import Ext4Image
from qcase.model import Arch
from qcase.pipelines import make_folders

FOLDERS = ("lib", "usr/lib", "usr/local/lib")
# musl answers to these itself, whatever file its loader is.
_LIBC = ("libc.so", "libc.musl-")
_MACHINES = {
    Arch.X86_64: "EM_X86_64",
    Arch.AARCH64: "EM_AARCH64",
    Arch.RISCV64: "EM_RISCV",
    Arch.LOONGARCH64: "EM_LOONGARCH",
}
_ELF_MAGIC = b"\x7fELF"


@dataclass(frozen=True)
class Elf:
    """What the loader will ask for. `interpreter` is None for a static program and for most libraries."""

    path: str
    machine: str
    interpreter: str | None
    needed: tuple[str, ...]
    search: tuple[str, ...]


def complete(overlay: Path, base: Path, arch: Arch, case: str, musl: Path | None = None, staging: Path | None = None) -> None:
    """Check that each ELF file of the overlay finds its loader and its libraries in the guest.

    Those that the staging root has and the guest has not, or not the same, are copied into the overlay first, with what they
    need themselves. `musl`: the toolchain's C library, which goes into the overlay if a program needs it and the guest has none.
    Also writes `etc/ld-musl-<arch>.path` when the overlay brings a loader, as axbuild does. Raises `BuildError` that names each
    library that is missing, who needs it, and each file that is for another architecture.
    """
    if staging is not None:
        with Ext4Image.open(base) as image:
            bring(overlay, staging, image)
    files = list(elf_files(overlay))
    wrong = [f"{elf.path} is for {elf.machine.removeprefix('EM_')}" for elf in files if elf.machine != _MACHINES[arch]]
    if wrong:
        raise BuildError(
            f"the build made files for another architecture than {arch}: {', '.join(wrong)}",
            where=case,
            hint="compile with the compiler that the CMake toolchain file names (CMAKE_C_COMPILER)",
        )
    if any(elf.interpreter or elf.needed for elf in files):
        with Ext4Image.open(base) as image:
            loader = f"/lib/{arch.musl_loader}"
            wanted = any(elf.interpreter == loader for elf in files) and not _there(loader, overlay, image)
            if wanted and musl is not None and musl.is_file() and not musl.is_symlink():
                add_musl(overlay, musl, arch)
            missing = sorted({why for elf in files for why in _missing(elf, overlay, image)})
        if missing:
            raise BuildError(
                "; ".join(missing),
                where=case,
                hint="link statically (-static), or install the library into usr/lib with the program",
            )
    if (overlay / "lib" / arch.musl_loader).is_file():
        paths = make_folders(overlay, "etc") / f"ld-musl-{arch}.path"
        paths.write_text("".join(f"/{folder}\n" for folder in FOLDERS), encoding="ascii")
        paths.chmod(0o644)


def add_musl(overlay: Path, musl: Path, arch: Arch) -> None:
    """musl's one file, which is its loader, and the name under which Alpine's libraries need it."""
    folder = make_folders(overlay, "lib")
    shutil.copyfile(musl, folder / arch.musl_loader)
    (folder / arch.musl_loader).chmod(0o755)
    (folder / f"libc.musl-{arch}.so.1").symlink_to(arch.musl_loader)


def elf_files(overlay: Path) -> Iterator[Elf]:
    """The ELF programs and libraries of an overlay, sorted by path. Relocatable objects are nobody's business here."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    for folder, folders, names in os.walk(overlay):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if not stat.S_ISREG(path.lstat().st_mode):
                continue
            with path.open("rb") as file:
                if file.read(4) != _ELF_MAGIC:
                    continue
                shown = str(path.relative_to(overlay))
                try:
                    elf = ELFFile(file)
                    if elf["e_type"] not in ("ET_EXEC", "ET_DYN"):
                        continue
                    interpreter, needed, search = None, [], []
                    for segment in elf.iter_segments():
                        if isinstance(segment, InterpSegment):
                            interpreter = segment.get_interp_name()
                        elif isinstance(segment, DynamicSegment):
                            tag: Any  # pyelftools sets the attribute that the tag is about
                            for tag in segment.iter_tags():
                                if tag.entry.d_tag == "DT_NEEDED":
                                    needed.append(tag.needed)
                                elif tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                                    search += (tag.rpath if tag.entry.d_tag == "DT_RPATH" else tag.runpath).split(":")
                    yield Elf(shown, str(elf["e_machine"]), interpreter, tuple(needed), tuple(search))
                except (ELFError, UnicodeDecodeError, KeyError, IndexError, ValueError) as error:
                    raise BuildError(f"{shown} begins like an ELF file and is none: {error}") from None


def bring(overlay: Path, staging: Path, base: Ext4Image) -> None:
    """Copy into the overlay what its ELF files need and packages brought into the staging root, until nothing is missing."""
    done: set[tuple[str, ...]] = set()
    while True:
        wanted = {library for elf in elf_files(overlay) for library in _wanted(elf)} - done
        if not wanted:
            return
        for paths in sorted(wanted):
            if any(os.path.lexists(overlay / path) for path in paths):
                continue
            for path in paths:
                found = inside(staging, path)
                if found is None:
                    continue
                if not _same(found, base, path):
                    target = make_folders(overlay, str(PurePosixPath(path).parent)) / PurePosixPath(path).name
                    shutil.copyfile(found, target)
                    target.chmod(0o755)
                break
        done |= wanted


def _wanted(elf: Elf) -> Iterator[tuple[str, ...]]:
    """Where a file's loader and its libraries may be, each as paths in the order in which they are looked at."""
    if elf.interpreter is not None:
        yield (os.path.normpath(elf.interpreter).lstrip("/"),)
    for library in elf.needed:
        if not (library.startswith(_LIBC) and (elf.interpreter is None or "ld-musl" in elf.interpreter)):
            yield tuple(os.path.normpath(f"/{folder}/{library}").lstrip("/") for folder in _folders(elf))


def _folders(elf: Elf) -> list[str]:
    origin = str(PurePosixPath("/", elf.path).parent)
    return [part.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) for part in elf.search if part] + list(FOLDERS)


def _same(file: Path, base: Ext4Image, path: str) -> bool:
    """Whether the guest has this very file at a path."""
    node = base.lookup("/" + path)
    if node is None or node.size != file.stat().st_size:
        return False
    content = io.BytesIO()
    base.copy_out(node, content)
    with file.open("rb") as source:
        return hashlib.sha256(content.getbuffer()).digest() == hashlib.file_digest(source, "sha256").digest()


def inside(root: Path, path: str) -> Path | None:
    """The regular file that a path leads to in a root of its own, as after chroot: links never lead out of it. None: nothing."""
    pending = path.split("/")
    here: list[str] = []
    links = 0
    while pending:
        name = pending.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            del here[-1:]
            continue
        full = root.joinpath(*here, name)
        if full.is_symlink():
            links += 1
            if links > 40:  # as Linux has it
                return None
            target = str(full.readlink())
            if target.startswith("/"):
                here = []
            pending = target.split("/") + pending
        else:
            here.append(name)
    found = root.joinpath(*here)
    return found if found.is_file() and not found.is_symlink() else None


def _missing(elf: Elf, overlay: Path, base: Ext4Image) -> Iterator[str]:
    if elf.interpreter is not None and not _there(elf.interpreter, overlay, base):
        yield f"{elf.path} needs the loader {elf.interpreter}, which the guest does not have"
    for library in elf.needed:
        if library.startswith(_LIBC) and (elf.interpreter is None or "ld-musl" in elf.interpreter):
            continue
        if not any(_there(f"{folder}/{library}", overlay, base) for folder in _folders(elf)):
            yield f"{elf.path} needs {library}, which neither its overlay nor the guest has"


def _there(path: str, overlay: Path, base: Ext4Image) -> bool:
    """Is a path in the overlay (as a file, or a link to anything) or in the base image?"""
    relative = os.path.normpath("/" + path.lstrip("/"))[1:]
    return os.path.lexists(overlay / relative) or base.lookup("/" + relative) is not None
