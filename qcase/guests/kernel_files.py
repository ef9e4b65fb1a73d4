"""Kernel files: what they are for, and their digest."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.arch import OTHER_ELF_MACHINES, Arch
from qcase.errors import InfraError, KernelError, UsageError
from qcase.host import file_state
from qcase.host.trees import LARGEST, Tree
from qcase.host.workspace_folders import own_folder

if TYPE_CHECKING:
    from qcase.containers.engine import Engine


WORKSPACE = "/qcase/workspace"  # path of the workspace in a step


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot. `sha256` of the file."""

    path: Path
    sha256: str


Say = Callable[[str], None]


def folder(workspace: Path) -> Path:
    """Return the folder of the kernels' copies."""
    return own_folder(workspace) / "kernels"


def of_file(path: Path, arch: Arch, where: str) -> Kernel:
    """Make a `Kernel` of a file. Raises `UsageError` if it cannot be read, or is for another architecture."""
    try:
        if wrong := mismatch(path, arch):
            raise UsageError(f"{path} {wrong}", where=where, hint="take another file, or another --arch")
        return Kernel(path, digest(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", where=where) from None


def digest(path: Path) -> str:
    return file_state.sha256(path, LARGEST)


def content(kernel: Kernel) -> bytes:
    """Read a kernel. Raises `KernelError` if its sha256 has changed: files made of it are stored under the old one."""
    try:
        data = kernel.path.read_bytes()
    except OSError as error:
        raise InfraError(f"cannot be read: {error.strerror}", where=str(kernel.path)) from None
    _expect(kernel, hashlib.sha256(data).hexdigest())
    return data


def _expect(kernel: Kernel, found: str) -> None:
    if found != kernel.sha256:
        raise KernelError("was written to just now", where=str(kernel.path), hint="run it again when it is built")


# --- to_bin -------------------------------------------------------------------------------------------------------------


def raw_name(kernel: Kernel, folder: Path, tool: str) -> Path:
    """Return the path of a kernel's raw binary; `tool`: the identity of the image that makes it."""
    return folder / kernel.sha256 / f"{kernel.path.name}-{tool[:8]}.bin"


def to_raw(kernel: Kernel, target: Path, engine: Engine, image: str, where: str) -> None:
    """Write an ELF kernel as it lies in memory, by the image's llvm-objcopy, which knows all architectures.

    Raises `KernelError` for a file that is no ELF.
    """
    from qcase.containers.step import Mount, Step, verdict_of

    with kernel.path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            raise KernelError(
                f"to_bin makes a raw binary of an ELF file, and {kernel.path} is none", where=where, hint="leave out to_bin"
            )
    staged = Tree(target.with_name(f"{target.name}.{uuid.uuid4().hex}"))
    target.parent.mkdir(parents=True, exist_ok=True)
    staged.mkdir()
    try:
        with kernel.path.open("rb") as file:
            (staged / "kernel").copy_in(file.fileno())
        _expect(kernel, (staged / "kernel").sha256())
        step = Step(
            image=image,
            argv=("llvm-objcopy", "--strip-all", "-O", "binary", "kernel", "kernel.bin"),
            mounts=(Mount(staged, WORKSPACE, False),),
            workdir=WORKSPACE,
            timeout=300.0,
            name="llvm-objcopy",
        )
        result = engine.run(step)
        if result.exit_status != 0 or not (staged / "kernel.bin").is_file():
            what, hint = verdict_of(step, result)
            raise KernelError(f"no raw binary could be made of it: {what}", where=str(kernel.path), hint=hint, log=result.output)
        about = (staged / "kernel.bin").facts()
        if about is None or about.st_size > LARGEST:
            raise KernelError(f"no raw binary could be made of it: it has more than {LARGEST >> 30} GiB", where=str(kernel.path))
        (staged / "kernel.bin").chmod(0o644)
        (staged / "kernel.bin").rename(Tree(target.parent, target.name))
    finally:
        with contextlib.suppress(OSError):
            staged.remove()


def mismatch(path: Path, arch: Arch) -> str:
    """Explain why a file cannot be the kernel of an architecture, judged by its first bytes; empty if it can."""
    with path.open("rb") as file:
        head = file.read(0x250)
    if not head:
        return "is empty"
    found = built_for(head)
    return f"is for {' or '.join(found)}, not for {arch}" if found and arch.value not in found else ""


def built_for(head: bytes) -> tuple[str, ...]:
    """List the architectures that a kernel's first bytes name; none if they name none."""
    if head[:4] == b"\x7fELF" and len(head) >= 20:
        machine = struct.unpack_from("<H" if head[5] == 1 else ">H", head, 18)[0]
        known = tuple(arch.value for arch in Arch if machine in arch.spec.elf_machines)
        return known or (OTHER_ELF_MACHINES.get(machine, f"ELF machine {machine}"),)
    return tuple(arch.value for arch in Arch if _has_magic(head, arch.spec.image_magic))[-1:]


def _has_magic(head: bytes, magic: tuple[int, bytes] | None) -> bool:
    return magic is not None and head.startswith(magic[1], magic[0])


# --- unpacking ----------------------------------------------------------------------------------------------------------


def is_zboot(path: Path) -> bool:
    """Tell whether a file is an EFI application that unpacks a kernel.

    Without firmware QEMU starts only arm64's, from QEMU 8 on.
    """
    with path.open("rb") as file:
        head = file.read(8)
    return head[:2] == b"MZ" and head[4:8] == b"zimg"


def unpack_zboot(data: bytes, where: str) -> bytes:
    """Unpack the kernel in an EFI zboot file (arm64).

    Layout: `zimg` at 4, offset and size of the payload at 8 and 12, its compression at 24. Raises `InfraError` for anything else.
    """
    if len(data) < 64 or data[:2] != b"MZ" or data[4:8] != b"zimg":
        raise InfraError("is no EFI zboot kernel", where=where)
    compression = data[24:56].partition(b"\0")[0]
    if compression != b"gzip":
        raise InfraError(f"is compressed with {compression.decode(errors='replace')!r}; only gzip is known", where=where)
    offset, size = struct.unpack_from("<II", data, 8)
    kernel = _gunzip(data, offset, size, where)
    if kernel[56:60] != b"ARM\x64":
        raise InfraError("holds no arm64 kernel", where=where)
    return kernel


def unpack_bzimage(data: bytes, where: str) -> bytes:
    """Unpack the ELF in an x86 bzImage. QEMU starts it directly by its PVH entry. Raises `InfraError` for anything else."""
    span = bzimage_payload(data)
    if span is None:
        raise InfraError("is no bzImage of boot protocol 2.08 or later", where=where)
    kernel = _gunzip(data, *span, where)
    if kernel[:5] != b"\x7fELF\x02":
        raise InfraError("holds no 64-bit ELF kernel", where=where)
    return kernel


_KERNEL_LIMIT = 512 << 20  # bytes, unpacked


def _gunzip(data: bytes, offset: int, size: int, where: str) -> bytes:
    import zlib

    if size == 0 or offset + size > len(data):
        raise InfraError(f"its payload ({size} bytes at {offset}) lies outside the file of {len(data)} bytes", where=where)
    unpacker = zlib.decompressobj(wbits=31)
    try:
        kernel = unpacker.decompress(data[offset : offset + size], _KERNEL_LIMIT)
    except zlib.error as error:
        raise InfraError(f"its payload is no gzip data: {error}", where=where) from None
    if not unpacker.eof:
        raise InfraError("its payload is cut short or too large", where=where)
    return kernel


def bzimage_payload(data: bytes) -> tuple[int, int] | None:
    """Find offset and size of an x86 bzImage's payload; None for another file, or one of a boot protocol before 2.08.

    Fields as the kernel's boot protocol has them (arch/x86/boot): setup_sects at 0x1f1, `HdrS` at 0x202, version at 0x206,
    payload's offset and size at 0x248 and 0x24c, counted from the end of the setup sectors.
    """
    if len(data) < 0x250 or data[0x202:0x206] != b"HdrS" or struct.unpack_from("<H", data, 0x206)[0] < 0x208:
        return None
    offset, size = struct.unpack_from("<II", data, 0x248)
    return ((data[0x1F1] or 4) + 1) * 512 + offset, size
