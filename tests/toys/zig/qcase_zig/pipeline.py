"""The toy pipeline `zig`: `zig build` in an image of its own. In that image a script stands in for the compiler."""

from __future__ import annotations

import re
from pathlib import Path

from qcase.containers.step import Mount, Step, verdict_of
from qcase.errors import BuildError
from qcase.host.trees import Tree
from qcase.model import Pipeline
from qcase.pipelines import elf_libraries
from qcase.pipelines.pipeline import (
    BUILD,
    OVERLAY,
    SRC,
    STEP_MEMORY,
    STEP_PIDS,
    STEP_TIMEOUT,
    BuildContext,
    PipelineSpec,
    require_folder,
)
from qcase.suite.templates import File, Sources


def build(source: Tree, overlay: Tree, context: BuildContext) -> None:
    """Build `zig/` and install it below /usr of the guest."""
    require_folder(source / "zig", context.case)
    step = Step(
        image=context.services.image("zig"),
        argv=("zig", "build", f"-Dtarget={context.arch}-linux-musl", "--prefix", f"{OVERLAY}/usr", "--cache-dir", BUILD),
        mounts=(Mount(source, SRC, False), Mount(context.folder("cache"), BUILD, False), Mount(overlay, OVERLAY, False)),
        env=context.environment,
        workdir=f"{SRC}/zig",
        timeout=STEP_TIMEOUT,
        memory=STEP_MEMORY,
        pids=STEP_PIDS,
        name="zig build",
        log=context.log,
    )
    context.services.say("compiling")
    result = context.services.run(step)
    if result.exit_status != 0:
        what, hint = verdict_of(step, result)
        raise BuildError(what, where=context.case, hint=hint, log=result.output)
    elf_libraries.complete(overlay, context.base, context.arch, context.case)


def programs(folder: Path) -> set[str]:
    """The programs that a `build.zig` names."""
    return set(re.findall(r'\.name = "([^"]+)"', (folder / "build.zig").read_text(encoding="utf-8")))


def template(name: str) -> Sources:
    """A new case of `qcase new`."""
    project = f'const program = b.addExecutable(.{{ .name = "test-{name}" }});\nb.installArtifact(program);\n'
    main = f'#include <stdio.h>\n\nint main(void)\n{{\n\tputs("PASS: {name}");\n\treturn 0;\n}}\n'
    return {"zig/build.zig": File(project), "zig/src/main.c": File(main)}, f"test-{name}", ()


SPEC = PipelineSpec(
    name=Pipeline("zig"),
    recipe=1,
    image="zig",
    project_files=("build.zig",),
    programs=programs,
    template=template,
    recipes=Path(__file__).parent / "images",
    build=build,
)
