"""CMake's compiler checks, made once for each toolchain and kept in the store.

The checks take a second, most of the build time of a small program, and their results depend on the toolchain alone: the
compiler, the size of its pointers, its search folders. The store keeps the files of results, which CMake reads if they exist, and
from CMake's cache the entries about the checks and the paths of the tools:

    CMakeFiles/<CMake's version>/CMake<language>Compiler.cmake
    CMakeCache.txt

The checks run without any source of a case.
"""

from __future__ import annotations

import hashlib

from qcase import canonical
from qcase.containers.engine import Engine
from qcase.containers.step import Mount, Step
from qcase.host.trees import Tree
from qcase.pipelines import build_systems
from qcase.pipelines.build_systems import Tools
from qcase.pipelines.pipeline import BUILD, STAGING
from qcase.store import keys

CHECKS_RECIPE = 1

# Checks of a language without a compiler in the image are left to each project.
_PROGRAM = f"""\
exec 2>&1
{build_systems.GENERATOR}
for languages in 'C CXX ASM' 'C ASM' 'C'; do
    rm -rf /tmp/project /tmp/made
    mkdir /tmp/project
    printf 'cmake_minimum_required(VERSION 3.10)\nproject(checks %s)\n' "$languages" >/tmp/project/CMakeLists.txt
    cmake -S /tmp/project -B /tmp/made -G "$generator" -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/ \
        -DCMAKE_TOOLCHAIN_FILE={BUILD}/toolchain.cmake || continue
    for file in /tmp/made/CMakeFiles/*/CMake*Compiler.cmake; do
        folder=$(basename "$(dirname "$file")")
        mkdir -p "/qcase/checks/CMakeFiles/$folder"
        cp "$file" "/qcase/checks/CMakeFiles/$folder/"
    done
    {{
        printf '%s\\n' "CMAKE_GENERATOR:INTERNAL=$generator" CMAKE_PLATFORM_INFO_INITIALIZED:INTERNAL=1
        grep -E '^(CMAKE_CACHE_(MAJOR|MINOR|PATCH)_VERSION|CMAKE_EXECUTABLE_FORMAT|CMAKE_[A-Z0-9_]+-ADVANCED):' \\
            /tmp/made/CMakeCache.txt
        grep -E '^CMAKE_[A-Z0-9_]+:FILEPATH=' /tmp/made/CMakeCache.txt | grep -v '^CMAKE_TOOLCHAIN_FILE:'
    }} >/qcase/checks/CMakeCache.txt
    break
done
"""


def key(tools: Tools, toolchain: str) -> keys.Key:
    """Return the key of the checks of a toolchain image. `toolchain`: the image's identity."""
    text = f"{_PROGRAM}\0{build_systems.toolchain_file(tools)}"
    program = hashlib.sha256(text.encode()).hexdigest()
    parts: dict[str, canonical.JSON] = {"kind": "checks", "recipe": CHECKS_RECIPE, "program": program, "toolchain": toolchain}
    return keys.key({**parts, "arch": tools.arch.value, "compiler": tools.compiler})


def make(tools: Tools, image: str, engine: Engine, scratch: Tree, folder: Tree) -> None:
    """Fill an empty folder with the checks. It stays empty if CMake finds no compiler; each project then reports the reason."""
    staging = scratch / "staging"
    for name in ("usr/include", "usr/lib", "lib"):  # as in a guest: the compiler leaves out folders that are not there
        (staging / name).mkdir(parents=True)
    (scratch / "toolchain.cmake").write_text(build_systems.toolchain_file(tools))
    step = Step(
        image=image,
        argv=("sh", "-uc", _PROGRAM),
        mounts=(Mount(scratch, BUILD, True), Mount(staging, STAGING, True), Mount(folder, build_systems.CHECKS, False)),
        workdir="/tmp",  # noqa: S108 - in the container
        timeout=120.0,
        name="checks of the compiler",
    )
    engine.run(step)
