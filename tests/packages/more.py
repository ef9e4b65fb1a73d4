"""Another repository beside the tests' own, with a package for programs that link statically, as Alpine's `-static` packages."""

from __future__ import annotations

import shutil
from pathlib import Path

from qcase.containers.engine import Engine
from qcase.containers.step import Mount, Step
from tests.packages import HERE, Repository

_COMPILE = """\
mkdir -p root/usr/lib
"$ARCH-linux-musl-gcc" -O2 -fPIC -c /qcase/src/tally.c -o tally.o
"$ARCH-linux-musl-ar" rcs root/usr/lib/libtally.a tally.o
"""
_INDEX = """\
file=tally-static-1.0-r0.apk
apk mkpkg -I name:tally-static -I version:1.0-r0 -I "arch:$ARCH" -I license:none -I description:tally -F root -o "$file"
apk adbsign --sign-key key.rsa --allow-untrusted "$file"
apk mkndx --quiet --sign-key key.rsa --allow-untrusted -o APKINDEX.tar.gz "$file"
"""


def make(folder: Path, arch: str, repository: Repository, engine: Engine, compiler: str, alpine: str) -> None:
    """Fill `folder/<arch>` with `tally-static`, signed with the key of `repository`. `compiler` and `alpine`: ids of images."""
    here = folder / arch
    here.mkdir(parents=True)
    shutil.copyfile(repository.private, here / "key.rsa")
    mounts = (Mount(here, "/qcase/build", False), Mount(HERE, "/qcase/src"))
    for image, program in ((compiler, _COMPILE), (alpine, _INDEX)):
        argv = ("sh", "-euc", program)
        step = Step(
            image=image, argv=argv, mounts=mounts, env={"ARCH": arch}, workdir="/qcase/build", timeout=60, name="tally-static"
        )
        engine.check(step)
