"""A prepared case: all that a boot needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from qcase.errors import QcaseError
from qcase.guests.guest import Guest
from qcase.guests.kernel_files import Kernel
from qcase.model import Cache, Pipeline
from qcase.vm.firmware import Firmware

SNAPSHOT = "-snapshot"


@dataclass(frozen=True)
class BrokenBuild:
    """A subcase without an overlay: its sources do not build, or a dependency is not available. The other subcases still run.

    `name`: the name of the subcase's folder.
    """

    subcase: str
    error: QcaseError
    name: str = ""
    optional: bool = False  # no test command names a program of this subcase


@dataclass(frozen=True)
class Uefi:
    """UEFI boot settings. `partition`: image of the EFI system partition; None where QEMU passes the kernel to the firmware."""

    firmware: Firmware
    partition: Path | None


@dataclass(frozen=True)
class PreparedCase:
    """A case's disk image, kernel and boot settings for QEMU. Valid inside the `with` of `prepare_case_assets`, which holds the
    image's lock in the store.

    `keep_open`: descriptors that hold the image's shared lock; QEMU inherits them. `seconds`: duration of the preparation.
    `commands`: the test commands that the image's script runs, if they are only a part of the grouped case's; None for all.
    `image`, `guest`: None for a kernel that is tested alone. `disks`: see `Session.disks`. `unbuilt`:
    subcases that do not build and that no command names; `untrusted`: the commands that could have run a program of such
    a subcase.
    """

    image: Path | None
    guest: Guest | None
    kernel: Kernel
    pipeline: Pipeline
    cache: Cache
    seconds: float = 0.0
    keep_open: tuple[int, ...] = ()
    broken: tuple[BrokenBuild, ...] = ()
    commands: tuple[str, ...] | None = None
    extra_args: tuple[str, ...] = (SNAPSHOT,)
    uefi: Uefi | None = None
    disks: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    unbuilt: tuple[BrokenBuild, ...] = ()
    untrusted: tuple[str, ...] = ()
