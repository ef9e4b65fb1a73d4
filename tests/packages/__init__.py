"""A package repository for the tests: signed, made with apk 3's own tools, and with a real python3 in it.

    <cache>/packages-<digest>/
        repository/<arch>/APKINDEX.tar.gz, *.apk
        repository/qcase-tests.rsa.pub      the key that it is signed with
        key.rsa                             to sign more

Made once, in containers, from Debian's source of CPython, and kept; the digest is that of everything it is made of. Packages:

    python3, py3-greeting                        CPython, cut down; a module
    lz4-libs, lz4-dev                            a library as Alpine has it; its headers, its link, its pkg-config file
    tally, tally-dev                             the same, of three lines
    greeting → greeting-words → greeting-voice   a chain

`python -m tests.packages` has it made if the repositories that the guest names do not answer, and prints what a shell has to set
for qcase to use it then; if they do, or the environment names others already, it does nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from qcase.containers.engine import Engine
from qcase.containers.step import Mount, Step
from qcase.events import Emit, Progress
from qcase.toolchains import images, recipes

HERE = Path(__file__).resolve().parent
ARCHITECTURES = ("x86_64", "aarch64")


@dataclass(frozen=True)
class Repository:
    """`folder`: for `[packages] repositories`; `key`: for `[packages] keys`; `private`: signs."""

    folder: Path
    key: Path
    private: Path

    @property
    def config(self) -> str:
        """The table of `qcase.toml`."""
        return f'[packages]\nrepositories = ["{self.folder}"]\nkeys = ["{self.key}"]\n'

    @property
    def environment(self) -> dict[str, str]:
        return {"QCASE_PACKAGE_REPOSITORIES": str(self.folder), "QCASE_PACKAGE_KEYS": str(self.key)}


def provide(engine: Engine, cache: Path, emit: Emit = lambda _: None) -> Repository:
    """The repository, made if it is not there. Others who want it meanwhile wait."""
    recipe = recipes.recipe_digest("packages", HERE / "images")
    parts = [recipe, *(path.read_text() for path in sorted(HERE.iterdir()) if path.suffix in (".sh", ".c", ".h", ".pc"))]
    folder = cache / f"packages-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"
    made = Repository(folder / "repository", folder / "repository" / "qcase-tests.rsa.pub", folder / "key.rsa")
    with FileLock(cache / "packages.lock"):
        if not made.key.is_file():
            _make(engine, cache, folder, emit)
    return made


def _make(engine: Engine, cache: Path, folder: Path, emit: Emit) -> None:
    build = folder.with_name(f".{folder.name}.{os.getpid()}")
    build.mkdir()
    try:
        emit(Progress("making a package repository, with a python3 for two architectures (once; two to three minutes)"))
        compiler = images.ensure("packages", engine, cache, emit, HERE / "images")
        alpine = images.ensure("alpine", engine, cache, emit)
        for image, script in ((compiler, "compile.sh"), (alpine, "index.sh")):
            step = Step(
                image=image.id,
                argv=("sh", f"/qcase/src/{script}"),
                mounts=(Mount(HERE, "/qcase/src"), Mount(build, "/qcase/build", False)),
                env={"ARCHITECTURES": " ".join(ARCHITECTURES)},
                timeout=3600,
                memory=4 << 30,
                name=script,
                log=build / f"{script}.log",
            )
            engine.check(step)
        for arch in ARCHITECTURES:
            shutil.rmtree(build / arch)
        shutil.rmtree(build / "roots")
        if folder.exists():
            shutil.rmtree(folder)
        build.rename(folder)
    finally:
        shutil.rmtree(build, ignore_errors=True)
