"""Guests: the systems that QEMU boots.

A guest is a base rootfs image, a kernel, an optional initrd and a kernel command line, for one architecture.

Two guests are built in. `alpine` is fetched from the package index that pip is configured for, `debian` made of packages from
Debian's archive (see `qcase.guests.debian`), once, and kept in the store:

    <store>/guests/alpine-3.23.6-<arch>/     fetched
    <store>/guests/debian-<kernel>-<key>-<arch>/     made; <key> from the packages and how it is made
        rootfs.img                           raw, sparse: one bare ext4 of 1 GiB
        kernel                               as QEMU starts it at once: x86_64 an ELF (PVH), else an Image
        manifest.json                        sha256, size and stat facts of the files beside it
    <store>/guests/initramfs-<key>-<arch>/   made from rootfs.img by `qcase.guests.initramfs`; <key> from both, and the kinds of
                                             disks that a machine has
        initramfs.cpio
        manifest.json
    <store>/guests/.staging-<name>-<unique>/ being made, or taken out of the way
    <store>/locks/guest-<name>.lock          held by the process that makes the entry; others wait

An entry is staged, flushed, given its manifest and renamed into place. Its files are 0444 and never written again. Each use
compares device, inode, size, mtime and ctime of each file with the manifest, which reads nothing. Where they differ (the store
was copied, or a process wrote to it) the file is read in full: with the same sha256 the new facts are noted, with another one the
whole entry is made anew, with a warning. So a file that QEMU boots has been read since it last changed.

Kernels are unpacked here from the distribution's files. QEMU before 8 does not take arm64's EFI zboot file. The x86_64 bzImage
boots, but unpacks itself in the emulated machine, which takes half a second of every boot.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from qcase import plugins
from qcase.arch import Arch
from qcase.config.disk_kinds import USUAL, Disks
from qcase.config.workspace_file import BUILT_IN_GUESTS, Download, is_guest
from qcase.errors import InfraError, UsageError
from qcase.events import Emit, Progress
from qcase.guests import initramfs
from qcase.guests.alpine import (
    ALPINE,
    ALPINE_VERSION,
    ASK_TIMEOUT,
    PIP_ENVIRONMENT,
    RELEASES,
    alpine_name,
    maker,
    not_there,
    pip,
    refusal,
    to_raw,
)
from qcase.host import file_state, process
from qcase.store.file_set import FileSet, digests_of, read_manifest

if TYPE_CHECKING:
    from qcase.containers.engine import Engine


DEBIAN = "debian"
DEFAULT_HOSTNAME = "qcase"


@dataclass(frozen=True)
class Guest:
    """A bootable guest.

    `append`: the kernel's command line. `digests`: sha256 by file name, of the files in the store. `looks`: the stat facts of the
    store's files when they were checked.

    `kernel`: None if a command makes it, for each build group (see `qcase.guests.kernel_build`). `source`: the image that has the
    modules of qcase's own initramfs, and its sha256; None if `initrd` is not qcase's.
    """

    name: str
    arch: Arch
    rootfs: Path
    kernel: Path | None
    initrd: Path | None
    append: str
    digests: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    looks: Mapping[Path, file_state.Facts] = field(default_factory=lambda: MappingProxyType({}))
    source: tuple[Path, str] | None = None

    @property
    def is_as_checked(self) -> bool:
        """Tell whether the store's files still have the stat facts recorded at their check."""
        return all(file_state.facts(path) == facts for path, facts in self.looks.items())


@dataclass(frozen=True)
class GuestChoice:
    """`[guest.<arch>]`. `rootfs` and `kernel`: "alpine", "debian", a path that is relative to the workspace, or an address.

    `kernel`: None if it is none of these, and made later. `initrd`: None means qcase's own initramfs with a built-in kernel, and
    none at all with another kernel. `append` is added to the command line.
    """

    rootfs: str | Download = ALPINE
    kernel: str | Download | None = ALPINE
    initrd: str | Download | None = None
    hostname: str = DEFAULT_HOSTNAME
    append: str | None = None


@dataclass(frozen=True)
class Tools:
    """Tools for making a guest, found on first need: the engine, the base image, and the id of an image with e2fsprogs."""

    engine: Callable[[], Engine]
    base: Callable[[], str]
    toolchain: Callable[[], str]
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True)
class Making:
    """The way in which a guest's files are made. `name`: of its entry in the store. `tools`: None if they must be there."""

    name: str
    offline: bool
    tools: Tools | None
    emit: Emit


@dataclass(frozen=True, kw_only=True)
class GuestSpec:
    """Specification of a guest that `[guest.<arch>] rootfs` and `kernel` can name.

    `entries`: for each of its architectures the name of its entry in the store, which has to change with the content. `make`
    fills a folder with `rootfs.img`, one bare ext4, and `kernel`. `obstacle`: the reason why a missing guest cannot be had, for
    `qcase doctor`; it fetches nothing. `needs_engine`: `make` runs containers.
    """

    name: str
    entries: Callable[[], Mapping[Arch, str]]
    make: Callable[[Arch, Path, Making], None]
    obstacle: Callable[[Arch, Path], InfraError | None] = lambda _arch, _cache: None
    needs_engine: bool = False


def built_in(
    name: str,
    arch: Arch,
    cache: Path,
    *,
    offline: bool = False,
    notes: Path | None = None,
    tools: Tools | None = None,
    emit: Emit,
) -> Guest:
    """Return a built-in guest from the store `cache`. Fetch or make it if it is missing, unless `offline`.

    Only debian needs `tools`.

    With `notes`, the store is only read: the guest has to be there already, and the facts found out about its files are noted in
    that folder.

    Raises `UsageError` for an architecture that it does not have, `InfraError` if it cannot be fetched or made.
    """
    spec = spec_of(name)
    known = spec.entries()
    if arch not in known:
        others = [other for other, one in GUESTS.items() if arch in one.entries()]
        raise UsageError(
            f"there is no guest '{name}' for {arch}, only for {', '.join(known)}",
            where=f"[guest.{arch}]",
            hint=f'take "{others[0]}"' if others else "set rootfs and kernel to paths",
        )
    entry_name = known[arch]
    making = Making(entry_name, offline, tools, emit)

    def make(staged: Path) -> None:
        spec.make(arch, staged, making)

    fetched = FileSet(cache, entry_name, ("rootfs.img", "kernel"), notes)
    records = fetched.records(make, emit)
    rootfs = fetched.folder / "rootfs.img"

    plain = Guest(
        name=fetched.name,
        arch=arch,
        rootfs=rootfs,
        kernel=fetched.folder / "kernel",
        initrd=None,
        append=command_line(arch, DEFAULT_HOSTNAME),
        digests=MappingProxyType(digests_of(records)),
        looks=MappingProxyType(fetched.looks(records)),
        source=(rootfs, records["rootfs.img"]["sha256"]),
    )
    return for_disks(plain, USUAL, cache, notes=notes, emit=emit)


def for_disks(guest: Guest, disks: Disks, cache: Path, *, notes: Path | None = None, emit: Emit) -> Guest:
    """Return a guest with the initramfs for a machine with these disks; a guest whose initrd is not qcase's, as it is.

    The initramfs is made if it is missing; `notes` as with `built_in`. Raises `UsageError` if the kernel has no driver for them.
    """
    if guest.source is None:
        return guest
    image, digest = guest.source
    flavour = "" if disks == USUAL else f" {' '.join(disks.kinds)} {bool(disks.serial)}"
    made_of = hashlib.sha256(f"{digest} {initramfs.recipe()}{flavour}".encode()).hexdigest()
    derived = FileSet(cache, f"initramfs-{made_of[:16]}-{guest.arch}", ("initramfs.cpio",), notes)
    more = derived.records(lambda staged: _derive(image, guest.arch, disks, staged), emit)
    looks = {path: facts for path, facts in guest.looks.items() if path != guest.initrd} | derived.looks(more)
    return replace(
        guest,
        initrd=derived.folder / "initramfs.cpio",
        digests=MappingProxyType({**guest.digests, **digests_of(more)}),
        looks=MappingProxyType(looks),
    )


def alpine_guest(arch: Arch, cache: Path, *, offline: bool = False, notes: Path | None = None, emit: Emit) -> Guest:
    """Return the built-in guest `alpine`, see `built_in`."""
    return built_in(ALPINE, arch, cache, offline=offline, notes=notes, emit=emit)


def resolve(
    spec: GuestChoice,
    arch: Arch,
    workspace: Path,
    cache: Path,
    emit: Emit,
    *,
    offline: bool = False,
    notes: Path | None = None,
    tools: Tools | None = None,
) -> Guest:
    """Return the guest that a workspace configures; `offline`, `notes` and `tools` as with `built_in`.

    Raises `UsageError` for a missing file, else as `built_in`.
    """

    looks: dict[Path, file_state.Facts] = {}

    def ours(name: str) -> Guest:
        guest = built_in(name, arch, cache, offline=offline, notes=notes, tools=tools, emit=emit)
        looks.update(guest.looks)
        return guest

    def file(value: str | Download, key: str) -> Path:
        if isinstance(value, Download):
            path, facts = _fetched(value, cache, offline, notes, key == "rootfs", emit)
            looks[path] = facts
            return path
        return _own_file(value, arch, key, workspace)

    initrd = None if spec.initrd is None else file(spec.initrd, "initrd")
    rootfs = None if _is_built_in(spec.rootfs) else file(spec.rootfs, "rootfs")
    if not _is_built_in(spec.kernel):
        kernel = None if spec.kernel is None else file(spec.kernel, "kernel")
        if rootfs is not None:  # nothing of a built-in guest is needed
            return Guest("own", arch, rootfs, kernel, initrd, spec.append or "", looks=looks)
        base = ours(str(spec.rootfs))
        return Guest("own", arch, base.rootfs, kernel, initrd, spec.append or "", base.digests, looks)
    booted = ours(str(spec.kernel))
    append = command_line(arch, spec.hostname, spec.append or "")
    if rootfs is None and spec.rootfs != spec.kernel:
        rootfs = ours(str(spec.rootfs)).rootfs
    return Guest(
        name=booted.name if (rootfs, initrd) == (None, None) else "own",
        arch=arch,
        rootfs=rootfs or booted.rootfs,
        kernel=booted.kernel,
        initrd=initrd or booted.initrd,
        append=append,
        digests=booted.digests,
        looks=looks,
        source=booted.source if initrd is None else None,
    )


def _is_built_in(value: str | Download | None) -> bool:
    return is_guest(value)


def fetched(
    source: Download, cache: Path, *, offline: bool = False, notes: Path | None = None, raw: bool = False, emit: Emit
) -> Path:
    """Return a file by its address, from the store. Fetch it if needed, unless `offline`. `raw`: a qcow2 image is converted.

    Raises `InfraError` if it cannot be fetched, or its sha256 is not the configured one.
    """
    return _fetched(source, cache, offline, notes, raw, emit)[0]


def _fetched(
    source: Download, cache: Path, offline: bool, notes: Path | None, raw: bool, emit: Emit
) -> tuple[Path, file_state.Facts]:
    """Do the work of `fetched`; also return the file's stat facts."""
    from qcase.host.download import expect, fetch_url

    name = f"fetched-{source.sha256[:16]}{'-raw' if raw else ''}"
    what = source.url.rpartition("/")[2] or "file"
    entry = FileSet(cache, name, ("file",), notes, of=source.sha256)

    def make(staged: Path) -> None:
        if offline:
            raise InfraError(f"{what} is not in the store, and fetching is switched off", where=source.url)
        emit(Progress(f"fetching {source.url}"))
        file = staged / "file"
        fetch_url(source.url, file, emit)
        expect(file, source.sha256, source.url, "the address gives another file than the one that was meant; it is not used")
        with file.open("rb") as opened:
            qcow2 = raw and opened.read(4) == b"QFI\xfb"
        if qcow2:
            packed = file.rename(staged / "qcow2")
            to_raw(packed, file)
            packed.unlink()

    ((path, facts),) = entry.looks(entry.records(make, emit)).items()
    return path, facts


def obstacle(name: object, arch: Arch, cache: Path) -> InfraError | None:
    """Find the reason why a guest that is missing or incomplete cannot be obtained; None if none is known.

    Nothing is fetched. For guests that need the engine, engine and mirror are checked elsewhere.
    """
    return spec_of(str(name)).obstacle(arch, cache) if is_guest(name) else None


def _alpine_obstacle(arch: Arch, cache: Path) -> InfraError | None:
    """Ask the package index whether it has the wheel of `alpine`."""
    release = RELEASES.get(arch)
    if release is None or read_manifest(cache / "guests" / f"alpine-{ALPINE_VERSION}-{arch}") is not None:
        return None
    project, _, version = release.requirement.partition("==")
    argv = [*pip(), "index", "versions", "--no-input", "--disable-pip-version-check", "--only-binary=:all:"]
    argv += ["--platform", release.platform, project]
    try:
        done = process.run(argv, allow=PIP_ENVIRONMENT, timeout=ASK_TIMEOUT, check=False)
    except InfraError as error:
        return InfraError(error.what, hint="is the package index that pip is configured for reachable?")
    if done.returncode != 0:
        return refusal(done.output, release)
    if version not in done.output:
        return InfraError(f"the package index has no {release.requirement}", hint="is another index configured for pip?")
    return None


def command_line(arch: Arch, hostname: str, append: str = "") -> str:
    """Build the kernel's command line with our initramfs.

    `quiet` leaves errors on the console, and panics; the kernel prints those, and the stack of an oops, at any level. There is no
    timeout for a reboot: qcase itself ends a guest that died. Raises `UsageError` if the word `panic` were in it: the guest
    prints its command line, and suites look for that word.
    """
    line = f"{arch.spec.console} quiet {initramfs.HOSTNAME_PARAMETER}={hostname} {append}".strip()
    if re.search(r"\bpanic\b", line):
        raise UsageError(
            "the kernel's command line must not contain the word 'panic': cases look for it on the console",
            where=f"[guest.{arch}]",
            hint="change hostname or append",
        )
    return line


def _own_file(value: str, arch: Arch, key: str, workspace: Path) -> Path:
    path = workspace / value
    if not path.is_file():
        raise UsageError(f"there is no file {value!r}", where=f"[guest.{arch}] {key}", hint=f"looked for {path}")
    return path.absolute()


def _alpine_entries() -> Mapping[Arch, str]:
    return {arch: alpine_name(arch) for arch in RELEASES}


def _make_alpine(arch: Arch, staged: Path, making: Making) -> None:
    maker(RELEASES[arch], arch, making.offline, making.emit)(staged)


def _debian_entries() -> Mapping[Arch, str]:
    from qcase.guests import debian

    return {arch: f"debian-{one.version}-{one.digest[:8]}-{arch}" for arch, one in debian.RELEASES.items()}


def _make_debian(arch: Arch, staged: Path, making: Making) -> None:
    from qcase.guests import debian

    tools = making.tools
    if making.offline or tools is None:
        raise not_there(making.name, staged)
    engine = tools.engine()
    base = tools.base()
    mirror = tools.environ.get("QCASE_DEBIAN_MIRROR", "").partition(" ")[0].rstrip("/")
    debian.make(
        debian.RELEASES[arch],
        staged,
        engine=engine,
        base=base,
        toolchain=tools.toolchain(),
        mirror=mirror,
        environ=tools.environ,
        emit=making.emit,
    )


# To add a guest to qcase, write its specification here, and its name into `BUILT_IN_GUESTS`.
GUESTS: Mapping[str, GuestSpec] = {
    ALPINE: GuestSpec(name=ALPINE, entries=_alpine_entries, make=_make_alpine, obstacle=_alpine_obstacle),
    DEBIAN: GuestSpec(name=DEBIAN, entries=_debian_entries, make=_make_debian, needs_engine=True),
}


def spec_of(name: str) -> GuestSpec:
    """Return the specification of a guest; that of a plug-in is imported."""
    if name in GUESTS:
        return GUESTS[name]
    brought_by = plugins.declared(plugins.GUESTS, name, BUILT_IN_GUESTS).distribution.partition(" ")[0]

    def entries(found: Mapping[Arch, str]) -> Mapping[Arch, str]:
        """Check the names of entries. Two distributions with a guest of one name have entries of their own."""
        for entry in found.values():
            if re.fullmatch(rf"{re.escape(name)}-[A-Za-z0-9._+~-]+", entry) is None:
                raise ValueError(f"{entry!r} is no name of an entry: {name}-, then letters, digits and . _ + ~ -")
        return {Arch(arch): f"{entry}@{brought_by}" for arch, entry in found.items()}

    return plugins.load(plugins.GUESTS, name, BUILT_IN_GUESTS, GuestSpec, {"entries": entries})


def needs_engine(*chosen: object) -> bool:
    """Tell whether one of these values of `rootfs` and `kernel` is a guest that is made in containers."""
    return any(spec_of(str(name)).needs_engine for name in chosen if is_guest(name))


def _derive(rootfs: Path, arch: Arch, disks: Disks, staged: Path) -> None:
    """Fill the folder `staged` with initramfs.cpio."""
    from qcase.disk.ext4 import Ext4Image

    with Ext4Image.open(rootfs) as image:
        (staged / "initramfs.cpio").write_bytes(initramfs.archive(image, arch, disks))
