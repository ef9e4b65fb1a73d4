"""A small kernel of our own, to play any guest: it boots at once and does on its console what it is told (see kernel.c).

kernels = kernel.build(engine_of, cache)            built once, in the toolchain image `c`, for each state of the sources
workspace = kernel.workspace(folder, kernels)       whose guests it is; a case costs about half a second
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from qcase.arch import Arch
from qcase.containers.engine import Engine
from qcase.containers.step import Mount, Step
from qcase.toolchains import images
from tests.vm.workspaces import Workspace

SOURCES = Path(__file__).parent
ARCHES = (Arch.X86_64, Arch.AARCH64, Arch.RISCV64)
PROMPT = "qk>"
ARGS = {
    Arch.X86_64: ["-nographic", "-m", "32M"],
    Arch.AARCH64: ["-nographic", "-m", "32M", "-cpu", "cortex-a72"],
    Arch.RISCV64: ["-nographic", "-m", "32M"],
}


def digest() -> str:
    """The state of the sources."""
    whole = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".c", ".h", ".S", ".ld", ".sh"):
            whole.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def build(connect: Callable[[], Engine], cache: Path) -> Mapping[Arch, Path]:
    """The kernel of each architecture, an ELF file. Once built, no engine is needed."""
    folder = cache / "kernel" / digest()
    kernels = {arch: folder / f"kernel-{arch}" for arch in ARCHES}
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.parent / "lock"):
        if folder.is_dir():
            return kernels
        engine = connect()
        staged = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        staged.mkdir()
        try:
            engine.check(
                Step(
                    image=images.ensure("c", engine, cache).id,
                    argv=("sh", "/qcase/src/build.sh", "/qcase/src", "/qcase/build"),
                    mounts=(Mount(SOURCES, "/qcase/src"), Mount(staged, "/qcase/build", read_only=False)),
                    timeout=300,
                    name="build the test kernel",
                )
            )
            staged.rename(folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return kernels


def workspace(root: Path, kernels: Mapping[Arch, Path], config: str = "") -> Workspace:
    """A workspace whose guests are the kernel, without a network card. Its cases need no store and no engine."""
    made = Workspace.make(root, '\n[run]\nnetwork = "none"\n' + config)
    (root / "root.img").write_bytes(bytes(1 << 16))
    with (root / "qcase.toml").open("a") as file:
        for arch, path in kernels.items():
            file.write(f'\n[guest.{arch}]\nrootfs = "root.img"\nkernel = "{path}"\n')
    return made


def case(made: Workspace, name: str, command: str | None, *, arch: Arch = Arch.AARCH64, **keys: Any) -> None:
    """A case that types `command` at the kernel's prompt; it passes on a line `PASS` unless `keys` say otherwise."""
    whole: dict[str, Any] = {"args": ARGS[arch], "shell_prefix": PROMPT, "success_regex": ["^PASS$"], "timeout": 30, **keys}
    if command is None:
        whole |= {"shell_prefix": "", "shell_init_cmd": ""}
    else:
        whole["shell_init_cmd"] = command
    made.case(name, arch=arch, **whole)
