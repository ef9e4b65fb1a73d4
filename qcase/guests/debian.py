"""The built-in guest `debian`: kernel and modules from Debian's packages, and a small root with `busybox-static`.

    packages  ─ fetch, in a container, by apt's own downloader ─►  *.deb, each checked by its sha256
              ─ unpack, here ────────────────────────────────────►  a tree: busybox, /etc, modules and their index
              ─ mke2fs, then `qcase.disk.inject`, in a container ─────►  rootfs.img: one bare ext4 of 1 GiB, sparse

Nothing is run as root and no program of the guest's architecture is run at all. A package is named by its place in the archive
and its sha256, so neither the archive's index nor its signature is needed: a half-updated index does not matter, and a file that
is not the pinned one is not used.

Debian's archive holds a version until two point releases later. After that it comes from a snapshot of the archive, see
`qcase.guests.debian_archive`, unless `QCASE_DEBIAN_MIRROR` names the archive to be used.

Of the kernel's modules the root keeps those of file systems, network protocols and virtual devices, with their dependencies: a
fifth of the whole on riscv64. Debian's packages have no index of their modules (it is made at installation), so it is made here,
from the modules' own metadata.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import re
import shlex
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.arch import Arch
from qcase.errors import InfraError
from qcase.events import Emit, Progress
from qcase.guests.kernel_modules import KEPT, keep_modules
from qcase.host.crash_cleanup import remove_tree
from qcase.host.proxies import proxies_of
from qcase.host.trees import Tree

if TYPE_CHECKING:
    from qcase.containers.engine import Engine
    from qcase.containers.step import Step


SUITE = "trixie"
ROOT_RECIPE = 1  # to be incremented when the same packages would give another root
IMAGE_SIZE = "1G"
FETCH_TIMEOUT = 1200.0  # seconds
MAKE_TIMEOUT = 600.0

_OUT = "/qcase/out"
_FILESYSTEM_ID = "6a1cf5a5-2f46-4c3f-9d51-7163617365ff"  # fixed: the same packages give the same bytes


@dataclass(frozen=True)
class Package:
    """A package by its place in Debian's archive. `size` in bytes."""

    path: str
    sha256: str
    size: int

    @property
    def file(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Release:
    """Inputs of a guest. `version`: of the kernel, as its package is called; `kernel`: its path in a package.

    `since`: a day on which the archive had all of it.
    """

    version: str
    kernel: str
    packages: tuple[Package, ...]
    since: str

    @property
    def snapshot(self) -> str:
        """Return the snapshot of the archive at the end of that day."""
        return f"{self.since.replace('-', '')}T235959Z"

    @property
    def digest(self) -> str:
        """Return a digest of these packages and of this module's recipe."""
        parts = (ROOT_RECIPE, self.kernel, self.packages, IMAGE_SIZE, _FILESYSTEM_ID, KEPT, sorted(_FILES.items()), _FOLDERS)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


RELEASES = {
    Arch.X86_64: Release(
        version="6.12.117",
        kernel="boot/vmlinuz-6.12.117+deb13-cloud-amd64",
        packages=(
            Package(
                "pool/main/l/linux-signed-amd64/linux-image-6.12.117+deb13-cloud-amd64_6.12.117-1_amd64.deb",
                "e9893e5295d0549b8852611f12a4b8b5f6cc4b8128dcc2086b9847793b904ab7",
                34671208,
            ),
            Package(
                "pool/main/b/busybox/busybox-static_1.37.0-6+b9_amd64.deb",
                "598a3fd92bdafc34cd81196b2952ad36e910e47a4ecf162f8ce5e8e262598e53",
                955316,
            ),
        ),
        since="2026-11-22",
    ),
    Arch.AARCH64: Release(
        version="6.12.117",
        kernel="boot/vmlinuz-6.12.117+deb13-cloud-arm64",
        packages=(
            Package(
                "pool/main/l/linux-signed-arm64/linux-image-6.12.117+deb13-cloud-arm64_6.12.117-1_arm64.deb",
                "cc33e288505c3271539beab498aeb4f25e27b8f7c0c49ddb6c506b6d3c50c22f",
                28391960,
            ),
            Package(
                "pool/main/b/busybox/busybox-static_1.37.0-6+b9_arm64.deb",
                "c833be48abfa16bc19c4966ec93e289ff1ce5d2f1476cad3a57bd105378cd15c",
                847552,
            ),
        ),
        since="2026-11-22",
    ),
    Arch.RISCV64: Release(
        version="6.12.107",
        kernel="boot/vmlinux-6.12.107+deb13-riscv64",
        packages=(
            Package(
                "pool/main/l/linux/linux-image-6.12.107+deb13-riscv64_6.12.107-1_riscv64.deb",
                "abe9f65d74b434692149482b031db7a2aaf832921e09f69f775293c0e0c5799c",
                112012420,
            ),
            Package(
                "pool/main/b/busybox/busybox-static_1.37.0-6+b9_riscv64.deb",
                "4add476d2b185c5b487c285b38d790f0881a7e4a8e2ddde835f917e770eb8633",
                941532,
            ),
        ),
        since="2026-11-22",
    ),
}
_FOLDERS = (
    *("dev", "etc", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp"),
    *("usr/bin", "usr/lib", "usr/local/bin", "usr/local/lib", "usr/share", "var/cache", "var/lib", "var/log", "var/tmp"),
)
_LINKS = {
    "bin": "usr/bin",
    "lib": "usr/lib",
    "sbin": "usr/sbin",
    "usr/sbin": "bin",
    "etc/mtab": "/proc/self/mounts",
    "var/run": "/run",
    "var/lock": "/run/lock",
}
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/hostname": "qcase\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost\n",
    "etc/os-release": 'PRETTY_NAME="Debian 13, kernel and busybox"\nNAME="Debian GNU/Linux"\nVERSION_ID="13"\nID=debian\n',
    "etc/profile": "export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin\n",
    "etc/shells": "/bin/sh\n",
}


def make(
    release: Release,
    staged: Path,
    *,
    engine: Engine,
    base: str,
    toolchain: str,
    mirror: str,
    environ: Mapping[str, str],
    emit: Emit,
) -> None:
    """Fill the folder `staged` with rootfs.img and kernel.

    `base`: an image with apt, for the downloads; `toolchain`: one with e2fsprogs. `mirror`: the URL of Debian's archive; empty
    for the base's own. Raises `InfraError`.
    """
    size = sum(package.size for package in release.packages)
    emit(Progress(f"fetching Debian's kernel {release.version} and busybox ({size / 1e6:.0f} MB)"))
    debs = staged / "download"
    debs.mkdir()
    fetch(release, debs, engine, base, mirror, environ, emit)
    emit(Progress("making the guest's root"))
    tree, boot = staged / "tree", staged / "boot"
    tree.mkdir()
    for package in release.packages:
        extract(debs / package.file, release, tree, boot)
    remove_tree(debs)
    furnish(tree)
    for folder in sorted((tree / "usr/lib/modules").iterdir()):
        keep_modules(folder)
    write_image(tree, staged, engine, toolchain, emit)
    unpack_kernel(boot / Path(release.kernel).name, staged / "kernel", staged, engine, base, emit)
    remove_tree(tree)
    remove_tree(boot)


# --- fetching -----------------------------------------------------------------------------------------------------------

# The archive that the image's own apt uses: from the one-line style, else from the stanza style.
_FETCH = f"""\
exec 2>&1
mirror=$QCASE_MIRROR
if [ -z "$mirror" ]; then
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
        sed -n -E -e 's,^deb (\\[[^]]*\\] *)?([^ ]+) .*,\\2,p' -e 's,^URIs: *([^ ]+).*,\\1,p' | head -n 1)
fi
echo "from $mirror"
/usr/lib/apt/apt-helper -o APT::Sandbox::User= -o Acquire::Retries=3 download-file "$mirror/$1" "{_OUT}/$2" "SHA256:$3"
"""


def fetch(release: Release, folder: Path, engine: Engine, base: str, mirror: str, environ: Mapping[str, str], emit: Emit) -> None:
    """Download the packages into a folder by apt's downloader, which checks them: from the mirror, else from a snapshot."""
    from qcase.containers.step import Mount, Step, verdict_of
    from qcase.guests import debian_archive

    proxies = proxies_of(environ)

    def one(package: Package, origin: str) -> InfraError | None:
        step = Step(
            image=base,
            argv=("sh", "-euc", _FETCH, "fetch", package.path, package.file, package.sha256),
            mounts=(Mount(folder, _OUT, False),),
            env={**proxies, "QCASE_MIRROR": origin},
            workdir=_OUT,
            network=True,
            timeout=FETCH_TIMEOUT,
            name="fetch",
        )
        result = engine.run(step, emit)
        if result.exit_status == 0 and (folder / package.file).is_file():
            return None
        return refusal(package, release, result.output, verdict_of(step, result))

    for package in release.packages:
        if (trouble := one(package, mirror)) is None:
            continue
        place = debian_archive.snapshots(environ)
        if not place or debian_archive.snapshot_trouble(place, release.snapshot, SUITE):
            raise trouble
        emit(Progress(f"{trouble}; taking it from the archive of {release.since}"))
        if (trouble := one(package, f"{place}/debian/{release.snapshot}")) is not None:
            raise trouble


def refusal(package: Package, release: Release, said: str, verdict: tuple[str, str]) -> InfraError:
    """Return the error for a failed download."""
    from qcase.guests import debian_archive

    origin = found[1] if (found := re.search(r"^from (\S+)$", said, re.MULTILINE)) else "the mirror"
    snapshot = (
        f"the archive of {release.since} had it: {debian_archive.SNAPSHOT_VARIABLE} names where its snapshots can be reached, "
        f"or {debian_archive.MIRROR_VARIABLE} an archive that keeps old versions; or take a newer qcase"
    )
    if re.search(r"\b404\b", said):
        return InfraError(f"{origin} does not have it: a point release may have replaced it", where=package.file, hint=snapshot)
    if "Hash Sum mismatch" in said or "unexpected size" in said:
        return InfraError(
            f"{origin} has another file of this name; it is not used, expected is the sha256 {package.sha256}",
            where=package.file,
            hint=snapshot,
        )
    reasons = re.findall(r"^E: Failed to fetch \S+ +(.+)$", said, re.MULTILINE) or re.findall(r"^E: (.+)$", said, re.MULTILINE)
    what = reasons[0].strip(" :") if reasons else verdict[0]
    return InfraError(
        f"cannot be fetched: {what}",
        where=f"{origin}/{package.path}" if found else package.file,
        hint=verdict[1] or "is there a network, also from inside a container?",
    )


# --- the tree -----------------------------------------------------------------------------------------------------------


def members(deb: bytes, where: str) -> Iterator[tuple[str, bytes]]:
    """Yield the members of a package, which is an `ar` archive: name and content."""
    if deb[:8] != b"!<arch>\n":
        raise InfraError("is no Debian package", where=where)
    at = 8
    while at + 60 <= len(deb):
        name = deb[at : at + 16].decode("ascii", "replace").strip().rstrip("/")
        size = int(deb[at + 48 : at + 58])
        yield name, deb[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


def extract(deb: Path, release: Release, tree: Path, boot: Path) -> None:
    """Unpack busybox, modules and licences into the tree, the kernel into `boot`."""
    boot.mkdir(exist_ok=True)
    for name, data in members(deb.read_bytes(), deb.name):
        if not name.startswith("data.tar"):
            continue
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as tar:
                for member in tar:
                    path = member.name.removeprefix("./")
                    if path == release.kernel:
                        target = Tree(boot) / Path(path).name
                    elif re.match(r"usr/(bin/busybox|lib/modules/.*|share/doc/[^/]+/copyright)$", path):
                        target = Tree(tree, what="the guest's root") / path
                    else:
                        continue
                    source = tar.extractfile(member)
                    if source is None:  # a folder, or the links `build` and `source` to missing targets
                        continue
                    if target.parent is not None:
                        target.parent.mkdir(parents=True, exist_ok=True)
                    mode = 0o755 if member.mode & 0o100 else 0o644
                    with target.created(mode) as fd, os.fdopen(fd, "wb", closefd=False) as out:
                        shutil.copyfileobj(source, out, 1 << 20)
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise InfraError(f"cannot be unpacked: {error}", where=deb.name) from None


def furnish(tree: Path) -> None:
    """Write everything but programs and modules: folders, links, files of /etc, and a link for each busybox applet."""
    for name in _FOLDERS:
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name, target in _LINKS.items():
        (tree / name).symlink_to(target)
    for name, text in _FILES.items():
        (tree / name).write_text(text, encoding="utf-8")
    busybox = tree / "usr/bin/busybox"
    for applet in applets(busybox.read_bytes()):
        if applet != "busybox":
            (tree / "usr/bin" / applet).symlink_to("busybox")
    for folder, _, names in os.walk(tree):
        Path(folder).chmod(0o755)
        for name in names:
            path = Path(folder) / name
            if not path.is_symlink():
                path.chmod(0o755 if path == busybox else 0o644)
    for name in ("tmp", "var/tmp"):
        (tree / name).chmod(0o1777)
    (tree / "root").chmod(0o700)


def applets(busybox: bytes) -> list[str]:
    """List this busybox's applets, from a sorted list of names in its bytes, each ended by a NUL, that begins with `[` and `[[`.

    Read from its bytes, since it cannot be run here. Raises `InfraError` where there is no such list.
    """
    begin = busybox.find(b"[\0[[\0")
    names: list[str] = []
    for word in busybox[max(begin, 0) : max(begin, 0) + 65536].split(b"\0"):
        name = word.decode("ascii", "replace")
        if begin < 0 or not re.fullmatch(r"[a-z0-9_-]+|\[\[?", name) or (names and name < names[-1]):
            break
        names.append(name)
    if not {"sh", "mount", "init", "insmod", "switch_root"} <= set(names):
        raise InfraError("has no list of its applets", where="usr/bin/busybox")
    return names


# --- the image and the kernel -------------------------------------------------------------------------------------------


def write_image(tree: Path, staged: Path, engine: Engine, toolchain: str, emit: Emit) -> None:
    """Make an empty ext4, then write the tree with the injector, which sets owners and times and verifies its writes."""
    from qcase.containers.step import Mount, Step
    from qcase.disk import inject, inject_plan
    from qcase.disk.ext4 import Ext4Image

    empty, build, root = Tree(staged / "empty"), Tree(staged / "build"), Tree(tree, what="the guest's root")
    for folder in (empty, build):
        folder.mkdir()
    options = f"hash_seed={_FILESYSTEM_ID},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    argv = ["mke2fs", "-q", "-t", "ext4", "-L", "qcase", "-U", _FILESYSTEM_ID, "-E", options]
    _run(
        Step(
            image=toolchain,
            argv=(*argv, f"{inject.BUILD_DIR}/{inject.IMAGE}", IMAGE_SIZE),
            mounts=(Mount(empty, inject.BUILD_DIR, False),),
            workdir=inject.BUILD_DIR,
            env={"E2FSPROGS_FAKE_TIME": str(inject_plan.EPOCH)},
            timeout=MAKE_TIMEOUT,
            name="mke2fs",
        ),
        engine,
        emit,
    )
    with (empty / inject.IMAGE).opened():
        blank = (empty / inject.IMAGE).host  # a file
    with Ext4Image.open(blank) as image:
        plan = inject_plan.plan(image, root)
    job = inject.injection_job(plan)
    inject.stage(job, blank, build)
    _run(
        Step(
            image=toolchain,
            argv=("sh", "-euc", inject.shell(job)),
            mounts=(Mount(build, inject.BUILD_DIR, False), Mount(root, inject.OVERLAY_DIR, True)),
            workdir=inject.BUILD_DIR,
            timeout=MAKE_TIMEOUT,
            name="write the root",
        ),
        engine,
        emit,
    )
    inject.verify(build, plan, root)
    (build / inject.IMAGE).rename(Tree(staged, "rootfs.img"))
    empty.remove()
    build.remove()


_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def unpack_kernel(source: Path, target: Path, staged: Path, engine: Engine, base: str, emit: Emit) -> None:
    """Unpack the kernel to the form that QEMU starts fastest.

    arm64 and riscv64 have an Image; x86_64 has a bzImage with an ELF in it. Debian packs that ELF with zstd, for which Python
    before 3.14 has nothing and apt has. A kernel that is packed in another way is left as it is: it unpacks itself.
    """
    from qcase.containers.step import Mount, Step
    from qcase.guests.kernel_files import bzimage_payload

    data = source.read_bytes()
    offset, size = bzimage_payload(data) or (0, 0)
    payload = data[offset : offset + size]
    if not payload.startswith(_ZSTD_MAGIC):
        target.write_bytes(data)
        return
    packed = Tree(staged / "unpack")
    packed.mkdir()
    (packed / "kernel.zst").write_bytes(payload[:-4])  # the kernel's build appends the size
    step = Step(
        image=base,
        argv=("sh", "-euc", "/usr/lib/apt/apt-helper cat-file kernel.zst >kernel"),
        mounts=(Mount(packed, _OUT, False),),
        workdir=_OUT,
        timeout=MAKE_TIMEOUT,
        name="unpack the kernel",
    )
    _run(step, engine, emit)
    kernel = packed / "kernel"
    with kernel.opened() as fd:
        if os.read(fd, 4) != b"\x7fELF":
            raise InfraError("holds no ELF kernel", where=source.name)
    kernel.rename(Tree(target.parent, target.name))
    packed.remove()


def _run(step: Step, engine: Engine, emit: Emit) -> None:
    from qcase.containers.step import verdict_of

    result = engine.run(step, emit)
    if result.exit_status != 0 or result.timed_out:
        what, hint = verdict_of(step, result)
        raise InfraError(f"{what}\n{result.output.strip()[-2000:]}", where=shlex.join(step.argv[:1]), hint=hint)
