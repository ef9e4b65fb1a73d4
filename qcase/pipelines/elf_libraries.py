"""Shared libraries that an overlay's programs need.

axbuild copies all libraries from the staging root. Here the guest usually has them already, so only libraries that packages added
to the staging root, or changed there, are copied. musl itself comes from the toolchain if the guest has none. A missing library
is an error of the build, in place of "not found" in the guest.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from qcase.arch import Arch
from qcase.disk.ext4 import Ext4Image
from qcase.errors import BuildError
from qcase.host.planted import printable
from qcase.host.trees import Tree
from qcase.pipelines.elf import ElfError, wants
from qcase.pipelines.pipeline import make_folders

FOLDERS = ("lib", "usr/lib", "usr/local/lib")
# musl provides these libraries itself, whatever file its loader is.
_LIBC = ("libc.so", "libc.musl-")
_LOOKS = 300_000  # places at which libraries of one overlay are looked for
_SAID = 20  # missing libraries that an error names
_MUSL = "libc.so"  # of the toolchain, for a guest that has none
_CPLUSPLUS = "libstdc++.so.6"  # likewise; the toolchain's needs nothing but musl


@dataclass(frozen=True)
class Elf:
    """An ELF file and its requirements. `interpreter` is None for a static program and for most libraries."""

    path: str
    machine: str
    interpreter: str | None
    needed: tuple[str, ...]
    search: tuple[str, ...]


def complete(
    overlay: Tree, base: Path, arch: Arch, case: str, toolchain: Tree | None = None, staging: Tree | None = None
) -> None:
    """Check that each ELF file of the overlay finds its loader and its libraries in the guest.

    Libraries of the staging root that the guest lacks, or has differently, are copied into the overlay first, with their own
    dependencies. `toolchain`: a folder with its `libc.so` and its `libstdc++.so.6`, which go into the overlay if a program needs
    them and the guest has none.

    Also writes `etc/ld-musl-<arch>.path` when the overlay brings a loader, as axbuild does. Raises `BuildError` that names each
    missing library with the file that needs it, and each file for another architecture.
    """
    if staging is not None:
        with Ext4Image.open(base) as image:
            bring(overlay, staging, image)
    files = list(elf_files(overlay))
    _check_amount(files)
    wrong = [f"{printable(elf.path)} is for {elf.machine}" for elf in files if elf.machine != arch.spec.elf_name]
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
            if toolchain is not None:
                if wanted and (toolchain / _MUSL).is_file():
                    add_musl(overlay, toolchain / _MUSL, arch)
                if any(_lacks(elf, _CPLUSPLUS, overlay, image) for elf in files) and (toolchain / _CPLUSPLUS).is_file():
                    _add_library(overlay, toolchain / _CPLUSPLUS)
                    files = list(elf_files(overlay))
            missing = sorted({why for elf in _inheriting(files) for why in _missing(elf, overlay, image)})
        if missing:
            raise BuildError(
                "; ".join((*missing[:_SAID], *([f"and {len(missing) - _SAID} more"] if len(missing) > _SAID else []))),
                where=case,
                hint="link statically (-static), or install the library into usr/lib with the program",
            )
    if (overlay / "lib" / arch.musl_loader).is_file():
        paths = make_folders(overlay, "etc") / f"ld-musl-{arch}.path"
        text = "".join(f"/{folder}\n" for folder in FOLDERS)
        if paths.is_file():
            paths.replace_bytes(text.encode())
        else:  # a link, which the build has planted, is an error
            paths.write_text(text)


def _lacks(elf: Elf, library: str, overlay: Tree, base: Ext4Image) -> bool:
    return library in elf.needed and not any(_there(f"{folder}/{library}", overlay, base) for folder in _folders(elf))


def _add_library(overlay: Tree, library: Tree) -> None:
    with library.opened() as file:
        (make_folders(overlay, "usr/lib") / library.name).copy_in(file, 0o755)


def add_musl(overlay: Tree, musl: Tree, arch: Arch) -> None:
    """Install musl's one file as the loader, with a link of the name under which Alpine's libraries need it."""
    folder = make_folders(overlay, "lib")
    with musl.opened() as file:
        (folder / arch.musl_loader).copy_in(file, 0o755)
    (folder / f"libc.musl-{arch}.so.1").symlink_to(arch.musl_loader)


def elf_files(overlay: Tree) -> Iterator[Elf]:
    """Yield the ELF programs and libraries of an overlay, sorted by path. Relocatable objects are skipped."""
    for shown, about in sorted(overlay.walk(), key=lambda found: os.fsencode(found[0])):
        if stat.S_ISREG(about.st_mode) and (found := _read(overlay, shown)) is not None:
            yield found


def _read(overlay: Tree, path: str) -> Elf | None:
    with (overlay / path).opened() as fd:
        try:
            found = wants(fd)
        except ElfError as error:
            raise BuildError(f"{printable(path)} begins like an ELF file and is none: {error}") from None
    return None if found is None else Elf(path, found.machine, found.interpreter, found.needed, found.search)


def _check_amount(files: Sequence[Elf]) -> None:
    """Raise `BuildError` if the files would need more than 300,000 path look-ups."""
    asked = sum(len(elf.needed) * (len(elf.search) + len(FOLDERS)) for elf in files)
    if asked > _LOOKS:
        raise BuildError(f"the ELF files of the overlay ask for libraries at {asked} places, and qcase looks at {_LOOKS}")


def bring(overlay: Tree, staging: Tree, base: Ext4Image) -> None:
    """Copy the libraries that packages installed into the staging root and that the overlay needs, until none is missing."""
    done: set[tuple[str, ...]] = set()
    files = list(elf_files(overlay))
    asked: list[Elf] = []
    while files:
        asked += files
        _check_amount(asked)
        wanted = {library for elf in files for library in _wanted(elf)} - done
        files = []
        for paths in sorted(wanted):
            if any((overlay / path).exists() for path in paths):
                continue
            for path in paths:
                found = staging.followed(path)
                if found is None or not found.is_file():
                    continue
                if not _same(found, base, path):
                    target = make_folders(overlay, str(PurePosixPath(path).parent)) / PurePosixPath(path).name
                    with found.opened() as file:
                        target.copy_in(file, 0o755)
                    if (brought := _read(overlay, target.below)) is not None:
                        files.append(brought)
                break
        done |= wanted


def _wanted(elf: Elf) -> Iterator[tuple[str, ...]]:
    """Yield the candidate paths of a file's loader and of each library, each as a tuple in search order."""
    if elf.interpreter is not None:
        yield (os.path.normpath(elf.interpreter).lstrip("/"),)
    for library in elf.needed:
        if not (library.startswith(_LIBC) and (elf.interpreter is None or "ld-musl" in elf.interpreter)):
            yield tuple(os.path.normpath(f"/{folder}/{library}").lstrip("/") for folder in _folders(elf))


def _folders(elf: Elf) -> list[str]:
    origin = str(PurePosixPath("/", elf.path).parent)
    return [part.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) for part in elf.search if part] + list(FOLDERS)


def _inheriting(files: Sequence[Elf]) -> list[Elf]:
    """Add the programs' run paths to those of the libraries: musl's loader searches those of each file that led to one."""
    inherited = {
        folder: None for elf in files if "ld-musl" in (elf.interpreter or "") for folder in _folders(elf)[: -len(FOLDERS)]
    }
    return [elf if elf.interpreter else replace(elf, search=(*elf.search, *inherited)) for elf in files]


def _same(file: Tree, base: Ext4Image, path: str) -> bool:
    """Tell whether the guest has an identical file at a path."""
    node = base.lookup("/" + path)
    about = file.facts()
    if node is None or about is None or node.size != about.st_size:
        return False
    content = io.BytesIO()
    base.copy_out(node, content)
    return hashlib.sha256(content.getbuffer()).hexdigest() == file.sha256()


def _missing(elf: Elf, overlay: Tree, base: Ext4Image) -> Iterator[str]:
    if elf.interpreter is not None and not _there(elf.interpreter, overlay, base):
        yield f"{printable(elf.path)} needs the loader {printable(elf.interpreter)}, which the guest does not have"
    for library in elf.needed:
        if library.startswith(_LIBC) and (elf.interpreter is None or "ld-musl" in elf.interpreter):
            continue
        if not any(_there(f"{folder}/{library}", overlay, base) for folder in _folders(elf)):
            yield f"{printable(elf.path)} needs {printable(library)}, which neither its overlay nor the guest has"


def _there(path: str, overlay: Tree, base: Ext4Image) -> bool:
    """Tell whether a path is in the overlay (as a file, or a link to anything) or in the base image."""
    relative = os.path.normpath("/" + path.lstrip("/"))[1:]
    return overlay.leads_to(relative) or base.lookup("/" + relative) is not None
