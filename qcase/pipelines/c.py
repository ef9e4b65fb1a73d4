"""The pipeline `c`: sources in C and C++, built with musl for the guest's architecture in the toolchain image `c`.

After packages and `prebuild.sh` (`qcase.pipelines.prebuild`), one step in one container, as the project's build system
has it (`qcase.pipelines.build_systems`):

    configure  ►  build  ►  install with DESTDIR = overlay
"""

from __future__ import annotations

import functools
import hashlib
import posixpath
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.arch import Arch
from qcase.canonical import JSON
from qcase.config.workspace_file import WorkspaceConfig
from qcase.errors import BuildError
from qcase.host import beneath
from qcase.host.trees import Tree
from qcase.model import Pipeline
from qcase.pipelines import build_choice, build_systems, cmake_installs
from qcase.pipelines.build_choice import System
from qcase.pipelines.build_systems import Tools
from qcase.pipelines.pipeline import (
    BUILD,
    OVERLAY,
    SRC,
    STAGING,
    STEP_MEMORY,
    STEP_PIDS,
    STEP_TIMEOUT,
    BuildContext,
    PipelineSpec,
    hint_without,
    in_own_paths,
    require_folder,
    stage_of,
)
from qcase.suite import templates
from qcase.suite.discover import BUILD_FILES

if TYPE_CHECKING:
    from qcase.containers.step import Step

IMAGE = "c"
_OF_MESON = posixpath.relpath(SRC, build_systems.BUILT[System.MESON])  # Meson names sources by paths from its build folder


def tools_of(arch: Arch, config: WorkspaceConfig) -> Tools:
    """Return the compilers that the workspace's configuration selects for `arch`."""
    return Tools(arch, config.toolchain.c.compiler)


@functools.cache
def recipe(tools: Tools) -> str:
    """Return the digest of the programs that the steps run, so that an edit of their text changes every key automatically."""
    return hashlib.sha256(build_systems.recipe(tools).encode()).hexdigest()


def build(source: Tree, overlay: Tree, context: BuildContext) -> None:
    """Build `source/c`, a writable copy, into `overlay`. Raises `BuildError` with the compiler's output."""
    require_folder(source / "c", context.case)
    _build(source, "c", overlay, context)


def build_project(source: Tree, overlay: Tree, context: BuildContext) -> None:
    """Build the project of a whole group, whose `CMakeLists.txt` is in the case's own folder. Raises as `build`."""
    _build(source, "", overlay, context)


def _build(source: Tree, folder: str, overlay: Tree, context: BuildContext) -> None:
    try:
        system = build_choice.system_of(source, folder, context.options)
    except BuildError as error:
        error.where = context.case
        raise
    if system is None:
        hint = hint_without(BUILD_FILES, (source / folder if folder else source).names())
        raise BuildError(f"there is no {f'{folder}/' if folder else ''}{BUILD_FILES[0]}", where=context.case, hint=hint)
    with in_own_paths(context, *([_OF_MESON] if system is System.MESON else [])):
        _build_by(system, source, folder, overlay, context)


def _build_by(system: System, source: Tree, folder: str, overlay: Tree, context: BuildContext) -> None:
    from qcase.containers.step import verdict_of
    from qcase.pipelines import build_hints, elf_libraries, extra_files, make_habits, prebuild

    own = source / folder if folder else source
    tools = tools_of(context.arch, context.config)
    out = context.folder("build")
    build_systems.prepare(system, tools, out)
    root = prebuild.staging_root(context, own)
    prebuild.run(source, folder, IMAGE, root, out, overlay, context)
    context.services.say("compiling")
    habits = make_habits.of(own) if System.MAKE.value in system.options else make_habits.PLAIN
    program = build_systems.program(system, tools, habits)
    step = _step(system, tools, program, source, folder, root, out, overlay, context)
    run = context.services.run if root == context.services.staging() else context.services.engine().run
    result = run(step)
    if result.exit_status != 0:
        stage = stage_of(out / build_systems.STAGE)
        what, hint = verdict_of(replace(step, name=stage), result)
        said = _said_in(stage, result.output)
        if stage in (extra_files.BESIDES, extra_files.WRAPPED) and result.exit_status == 1:
            what = f"{stage}: {said.strip().rpartition(chr(10))[2]}"
        hint = hint or build_hints.hint(system, result.output)
        if not hint and stage == "configure":
            hint = build_hints.another(build_choice.others(system, source, folder))
        raise BuildError(what, where=context.case, hint=hint, log=said)
    if not overlay.names():
        hint = f"{_INSTALL[system]}; or name in [qcase] install what it builds"
        raise BuildError("the build installed nothing", where=context.case, hint=hint)
    elf_libraries.complete(overlay, context.base, context.arch, context.case, toolchain=out / "libraries", staging=root)


_INSTALL = {
    System.CMAKE: "add install(TARGETS … DESTINATION usr/bin) to CMakeLists.txt",
    System.MESON: "add install: true to the executables in meson.build",
    System.CONFIGURE: "have the target install put programs into $(DESTDIR)$(prefix)/bin",
    System.MAKE: "have the target install put programs into $(DESTDIR)$(prefix)/bin",
    System.KSELFTEST: "name programs in TEST_GEN_PROGS or TEST_PROGS",
}


def _step(
    system: System,
    tools: Tools,
    program: str,
    source: Tree,
    folder: str,
    root: Tree,
    out: Tree,
    overlay: Tree,
    context: BuildContext,
) -> Step:
    from qcase.containers.step import Mount, Step
    from qcase.pipelines import prebuild

    mounts = [
        Mount(source, SRC, False),
        Mount(out, BUILD, False),
        Mount(overlay, OVERLAY, False),
        Mount(root, STAGING, True),
    ]
    if system is System.CMAKE and (checks := context.services.checks()) is not None:
        mounts.append(Mount(checks, build_systems.CHECKS, True))
    return Step(
        image=context.services.image(IMAGE),
        argv=("sh", "-euc", program, system.value, *context.options.get(system.options[0], ())),
        mounts=tuple(mounts),
        env={
            **build_systems.environment(system, tools, context.options),
            **context.environment,
            **prebuild.script_variables(context.config.script_env, folder),
            "STAGING_VARIABLE": context.config.script_env.staging_root,
            "SYSROOT": f"/opt/qcase/musl/{context.arch}",
        },
        workdir=f"{SRC}/{folder}" if folder else SRC,
        timeout=STEP_TIMEOUT,
        memory=STEP_MEMORY,
        pids=STEP_PIDS,
        name="c",
        log=context.log,
    )


def _said_in(stage: str, output: str) -> str:
    """Return the part of a step's output that was printed since the given stage began."""
    _, found, said = output.rpartition(f"-- {stage}\n")
    return said if found else output


def _settings(arch: Arch, config: WorkspaceConfig) -> Mapping[str, JSON]:
    """Settings that enter the key: the compiler, its recipe and image, and the names of the variables that scripts read."""
    return {
        "compiler": config.toolchain.c.compiler,
        "recipe": recipe(tools_of(arch, config)),
        "image": config.toolchain.c.image,
        "script_env": config.script_env.model_dump(mode="json", exclude={"grouped_c_subcases"}),
    }


def programs(folder: Path) -> set[str]:
    """Return the executables that a `CMakeLists.txt` names; an empty set if commands in it may name others."""
    text = beneath.read(folder / "CMakeLists.txt").decode("utf-8", "replace")
    if re.search(
        r"\b(?:foreach|function|macro|include|add_subdirectory|OUTPUT_NAME|install\s*\(\s*(?:FILES|PROGRAMS|DIRECTORY|SCRIPT|CODE))\b",
        text,
        re.I,
    ):
        return set()
    names = set(re.findall(r"\badd_executable\s*\(\s*([^\s)]+)", text, re.I))
    return set() if any("$" in name for name in names) else names


SPEC = PipelineSpec(
    name=Pipeline.C,
    recipe=2,
    image=IMAGE,
    reads_staging=True,
    prebuild="c",
    settings=_settings,
    options=build_systems.OPTIONS,
    project_files=BUILD_FILES,
    programs=programs,
    installs=cmake_installs.installs,
    template=templates.c,
    build=build,
)
PROJECT = replace(
    SPEC,
    prebuild=".",
    build=build_project,
    settings=lambda arch, config: {**_settings(arch, config), "folder": "."},
)
