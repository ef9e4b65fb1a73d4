"""A repository in apk 2's format, which is what Alpine's mirrors have: one package, put together by hand, and its index.

A package is three gzip members: the signature of the second, `.PKGINFO`, and the files. An index is a signature and a tar file.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tarfile
from pathlib import Path

from qcase.containers.engine import Engine
from qcase.containers.step import Mount, Step
from tests.packages import Repository

NAME = "older-1.0-r0.apk"
TEXT = b"of the older format\n"


def make(folder: Path, arch: str, repository: Repository, engine: Engine, compiler: str, alpine: str) -> None:
    """Fill `folder/<arch>`, signed with the key of `repository`. `compiler` and `alpine`: ids of images."""
    here = folder / arch
    here.mkdir(parents=True)
    shutil.copyfile(repository.private, here / "key.rsa")

    def run(image: str, command: str) -> None:
        mounts = (Mount(here, "/qcase/build", False),)
        step = Step(image=image, argv=("sh", "-euc", command), mounts=mounts, workdir="/qcase/build", timeout=60, name=command)
        engine.check(step)

    def signed(content: bytes) -> bytes:
        (here / "content").write_bytes(content)
        run(compiler, "openssl dgst -sha1 -sign key.rsa -out signature content")
        return _tar({f".SIGN.RSA.{repository.key.name}": (here / "signature").read_bytes()}, whole=False) + content

    files = _tar({"usr": None, "usr/share": None, "usr/share/older": TEXT}, whole=True)
    fields = {"pkgname": "older", "pkgver": "1.0-r0", "pkgdesc": "older", "size": "20", "arch": arch, "license": "none"}
    fields["datahash"] = hashlib.sha256(files).hexdigest()
    info = "".join(f"{key} = {value}\n" for key, value in fields.items()).encode()
    (here / NAME).write_bytes(signed(_tar({".PKGINFO": info}, whole=False)) + files)
    run(alpine, f"apk index --allow-untrusted -o index {NAME}")
    (here / "APKINDEX.tar.gz").write_bytes(signed((here / "index").read_bytes()))


def _tar(files: dict[str, bytes | None], *, whole: bool) -> bytes:
    """A gzip member with a tar file; not `whole`: without its end, so that another one can follow. None: a folder."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.mode = 0o755 if content is None else 0o644
            if content is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(content)
                if whole:
                    member.pax_headers = {"APK-TOOLS.checksum.SHA1": hashlib.sha1(content).hexdigest()}
            tar.addfile(member, io.BytesIO(content or b""))
        end = tar.offset
    return gzip.compress(archive.getvalue() if whole else archive.getvalue()[:end], mtime=0)
