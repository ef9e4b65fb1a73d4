"""The pipeline `c`: `c/CMakeLists.txt`, built with musl for the guest's architecture in the toolchain image `c`.

After packages and `prebuild.sh` (`qcase.pipelines.prebuild`), one step in one container:

    cmake configure  ►  build  ►  install with DESTDIR = overlay
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qcase import containers
from qcase.config import WorkspaceConfig
from qcase.containers import Mount, Step
from qcase.errors import BuildError
from qcase.keys import JSON
from qcase.model import Arch
from qcase.pipelines import (
    BUILD,
    OVERLAY,
    SRC,
    STAGING,
    STEP_MEMORY,
    STEP_PIDS,
    STEP_TIMEOUT,
    Craft,
    Workshop,
    libraries,
    prebuild,
    read_plain,
    require_folder,
)

IMAGE = "c"
_MUSL = "libc.so"  # the toolchain's, for a guest that has none
_STAGE = "stage"  # the file in which the step says how far it is

# Run by `sh -eu`. The `stage` file names what was being done, should it fail.
_PROGRAM = f"""\
exec 2>&1
umask 022
stage() {{ printf '%s' "$1" > {BUILD}/{_STAGE}; printf -- '-- %s\\n' "$1"; }}
stage configure
cmake -S "$PWD" -B {BUILD}/cmake -G 'Unix Makefiles' --no-warn-unused-cli \
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/ -DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY \
    -DCMAKE_TOOLCHAIN_FILE={BUILD}/toolchain.cmake -D"$STAGING_VARIABLE"={STAGING}
stage build
cmake --build {BUILD}/cmake --parallel "$(nproc)"
stage install
DESTDIR={OVERLAY} cmake --install {BUILD}/cmake
if [ -f "$MUSL" ]; then cp "$MUSL" {BUILD}/{_MUSL}; fi
"""


def toolchain_file(arch: Arch, compiler: str) -> str:
    """CMake's toolchain file: the wrappers of the image, and packages of the staging root alone.

    What the staging root brings comes first, ahead of musl's own headers. The image has no C++ library; its `c++` is there so
    that a project whose `project()` names no language can be configured.
    """
    prefix = f"/usr/local/bin/{arch}-linux-musl"
    libraries_of = f"-L{STAGING}/usr/lib -L{STAGING}/lib -Wl,-rpath-link,{STAGING}/usr/lib:{STAGING}/lib"
    packages = ":".join(f"{STAGING}/usr/{folder}/pkgconfig" for folder in ("lib", "share", "local/lib"))
    return f"""\
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR {arch})
set(CMAKE_C_COMPILER {prefix}-{compiler})
set(CMAKE_CXX_COMPILER {prefix}-c++)
set(CMAKE_ASM_COMPILER {prefix}-{compiler})
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_C_FLAGS_INIT "-isystem {STAGING}/usr/include")
foreach(kind EXE SHARED MODULE)
    set(CMAKE_${{kind}}_LINKER_FLAGS_INIT "{libraries_of}")
endforeach()
set(CMAKE_FIND_ROOT_PATH {STAGING} /opt/qcase/musl/{arch})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(ENV{{PKG_CONFIG_PATH}} "")
set(ENV{{PKG_CONFIG_LIBDIR}} "{packages}")
set(ENV{{PKG_CONFIG_SYSROOT_DIR}} "{STAGING}")
"""


def recipe(arch: Arch, compiler: str) -> str:
    """The digest of what is run: an edit of this module's texts moves every key, without anybody having to count up."""
    return hashlib.sha256(f"{_PROGRAM}\0{toolchain_file(arch, compiler)}".encode()).hexdigest()


def build(source: Path, overlay: Path, workshop: Workshop) -> None:
    """Build `source/c`, a copy that is ours to write in, into `overlay`. Raises `BuildError` with what the compiler said."""
    require_folder(source / "c", workshop.case)
    _build(source, "c", overlay, workshop)


def build_project(source: Path, overlay: Path, workshop: Workshop) -> None:
    """Likewise the one project of a whole group, whose `CMakeLists.txt` is in the case's own folder."""
    _build(source, ".", overlay, workshop)


def _build(source: Path, folder: str, overlay: Path, workshop: Workshop) -> None:
    place = os.path.normpath(f"{SRC}/{folder}")
    if not (source / folder / "CMakeLists.txt").is_file():
        raise BuildError(f"there is no {os.path.normpath(f'{folder}/CMakeLists.txt')}", where=workshop.case)
    out = workshop.scratch / "build"
    out.mkdir()
    (out / "toolchain.cmake").write_text(toolchain_file(workshop.arch, workshop.config.toolchain.c.compiler), encoding="ascii")
    root = prebuild.staging_root(workshop, source / folder)
    prebuild.run(source, folder, IMAGE, root, out, overlay, workshop)
    workshop.say("compiling")
    step = Step(
        image=workshop.image(IMAGE),
        argv=("sh", "-euc", _PROGRAM),
        mounts=(
            Mount(source, SRC, False),
            Mount(out, BUILD, False),
            Mount(overlay, OVERLAY, False),
            Mount(root, STAGING, True),
        ),
        env={
            **workshop.environment,
            **prebuild.script_variables(workshop.config.script_env, folder),
            "STAGING_VARIABLE": workshop.config.script_env.staging_root,
            "MUSL": f"/opt/qcase/musl/{workshop.arch}/lib/libc.so",
        },
        workdir=place,
        timeout=STEP_TIMEOUT,
        memory=STEP_MEMORY,
        pids=STEP_PIDS,
        name="c",
        log=workshop.log,
    )
    result = workshop.engine().run(step)
    if result.exit_status != 0:
        stage = read_plain(out / _STAGE) or "the container"
        what, hint = containers.verdict_of(replace(step, name=stage), result)
        raise BuildError(what, where=workshop.case, hint=hint, log=_said_in(stage, result.output))
    if not any(overlay.iterdir()):
        raise BuildError(
            "the build installed nothing",
            where=workshop.case,
            hint="add install(TARGETS … DESTINATION usr/bin) to CMakeLists.txt",
        )
    libraries.complete(overlay, workshop.base, workshop.arch, workshop.case, musl=out / _MUSL, staging=root)


def _said_in(stage: str, output: str) -> str:
    """What was printed since a stage began."""
    _, found, said = output.rpartition(f"-- {stage}\n")
    return said if found else output


def _settings(arch: Arch, config: WorkspaceConfig) -> Mapping[str, JSON]:
    """The compiler, how it is called, and the names of the variables that scripts read."""
    return {
        "compiler": config.toolchain.c.compiler,
        "recipe": recipe(arch, config.toolchain.c.compiler),
        "image": config.toolchain.c.image,
        "script_env": config.script_env.model_dump(mode="json"),
    }


CRAFT = Craft(recipe=1, image=IMAGE, reads_staging=True, prebuild="c", settings=_settings, build=build)
PROJECT = replace(
    CRAFT,
    prebuild=".",
    build=build_project,
    settings=lambda arch, config: {**_settings(arch, config), "folder": "."},
)
