"""Kernels: the files that QEMU starts, what they are, and how they are made."""

from __future__ import annotations

import struct

from qcase.errors import InfraError


def unpack_zboot(data: bytes, where: str) -> bytes:
    """The kernel in an EFI zboot file (arm64): `zimg` at 4, offset and size of the payload at 8 and 12, its compression at 24.

    Raises `InfraError` for anything else.
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
    """The ELF in an x86 bzImage, which QEMU starts directly by its PVH entry. Raises `InfraError` for anything else."""
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
    """Offset and size of what an x86 bzImage unpacks; None for another file, or one of a boot protocol before 2.08.

    Fields as the kernel's boot protocol has them (arch/x86/boot): setup_sects at 0x1f1, `HdrS` at 0x202, version at 0x206,
    payload's offset and size at 0x248 and 0x24c, counted from the end of the setup sectors.
    """
    if len(data) < 0x250 or data[0x202:0x206] != b"HdrS" or struct.unpack_from("<H", data, 0x206)[0] < 0x208:
        return None
    offset, size = struct.unpack_from("<II", data, 0x248)
    return ((data[0x1F1] or 4) + 1) * 512 + offset, size
