"""`python -m tests.tools.bench_builds`: what it costs to build a group of small subcases in C cold, beside the bare compiler.

bare compiler   the same programs in one container, compiled and linked by a line of shell, as many at once as processors
qcase           the group prepared in an empty store: checks of the compiler, the subcases in a few containers, the image
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qcase.containers.engine import Engine
from qcase.containers.step import Mount, Step
from qcase.host.trees import Tree
from qcase.toolchains import images
from tests.vm import workspaces
from tests.vm.workspaces import Workspace, c_program

SUBCASES = 52
AIM = 0.4  # seconds for each above the bare compiler
SOURCE = """\
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int check(int number)
{
    int ends[2];
    char byte = (char)number;

    if (pipe(ends) < 0 || write(ends[1], &byte, 1) != 1 || read(ends[0], &byte, 1) != 1) {
        printf("FAIL: %s\\n", strerror(errno));
        return 1;
    }
    return byte != (char)number;
}

int main(void)
{
    return check(NUMBER);
}
"""
BARE = """\
ls -d /qcase/src/*/ | xargs -n 1 basename | xargs -P "$(nproc)" -I{} sh -euc 'mkdir -p /qcase/overlay/{};
    aarch64-linux-musl-gcc -O3 -static /qcase/src/{}/c/main.c -o /qcase/overlay/{}/{}'
"""


def main() -> None:
    cache = Path(os.environ.get("QCASE_TEST_CACHE") or Path.home() / ".cache" / "qcase-tests")
    workspaces.provide(cache)
    with tempfile.TemporaryDirectory(dir=os.environ.get("QCASE_BENCH_DIR")) as name:
        root = Path(name)
        made = Workspace.make(root / "w")
        names = [f"t{number:02}" for number in range(SUBCASES)]
        files: dict[str, str] = {}
        for number, one in enumerate(names):
            files |= c_program(SOURCE.replace("NUMBER", str(number)), one, f"{one}/c")
        case = made.case("group", files, test_commands=names)
        store = workspaces.fresh_store(root / "store", cache)
        bare = compile_all(case, root / "out", cache)
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "tests.tools.prepared", str(made.root), str(store), "aarch64"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        whole = time.monotonic() - began
    above = (whole - bare) / SUBCASES
    print(f"\na group of {SUBCASES} small subcases in C, cold, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(f"    bare compiler {bare:.1f} s, qcase {whole:.1f} s: {above:.2f} s each above it; aim: {AIM} s")


def compile_all(case: Path, out: Path, cache: Path) -> float:
    """Seconds that the compiler takes for all programs."""
    out.mkdir()
    mounts = (Mount(Tree(case), "/qcase/src", True), Mount(Tree(out), "/qcase/overlay", False))
    with Engine.connect() as engine:
        image = images.ensure("c", engine, cache).id
        step = Step(image=image, argv=("sh", "-euc", BARE), mounts=mounts, timeout=600.0, name="bare compiler")
        began = time.monotonic()
        engine.check(step)
        return time.monotonic() - began


if __name__ == "__main__":
    main()
