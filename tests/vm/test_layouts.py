"""The shape of today's suites, run: a group of many flat programs in one project, and one case on several machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm import workspaces
from tests.vm.workspaces import Workspace, run

pytestmark = pytest.mark.vm

LOOP = """\
found=0
for bin in /usr/bin/starry-test-suit/*; do
    [ -x "$bin" ] || continue
    found=1
    "$bin" || exit 1
done
[ "$found" = 1 ]
"""
PROJECT = """\
cmake_minimum_required(VERSION 3.20)
project(system C)
set(CMAKE_EXE_LINKER_FLAGS "-static")
file(GLOB parts RELATIVE "${CMAKE_CURRENT_LIST_DIR}" "*")
if(DEFINED STARRY_GROUPED_C_SUBCASES)
    set(parts ${STARRY_GROUPED_C_SUBCASES})
endif()
foreach(part IN LISTS parts)
    if(EXISTS "${CMAKE_CURRENT_LIST_DIR}/${part}/CMakeLists.txt")
        add_subdirectory("${part}")
    endif()
endforeach()
"""


def flat(name: str, line: str) -> dict[str, str]:
    built = f"project({name} C)\nadd_executable({name} src/main.c)\n"
    return {
        f"{name}/CMakeLists.txt": f"{built}install(TARGETS {name} RUNTIME DESTINATION usr/bin/starry-test-suit)\n",
        f"{name}/src/main.c": f'#include <stdio.h>\nint main(void) {{ puts("ran {name}"); return {line}; }}\n',
    }


def test_parts_of_a_flat_project_together_and_alone(tmp_path: Path, test_cache: Path) -> None:
    """The loop of the group fails where the failing part is in the image, and passes with the good part alone."""
    workspace = Workspace.make(tmp_path / "w", 'default_group = "*"\n[script_env]\nprefix = "STARRY"\n')
    files = {"CMakeLists.txt": PROJECT, "common/readme": ""} | flat("brk", "0") | flat("futex", "1")
    workspace.case("system", files, test_commands=[LOOP, "ls /usr/bin/starry-test-suit"])
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    whole = run(workspace, store=store)
    assert whole.report is not None, whole.said
    (case,) = whole.report["cases"]
    assert [test["status"] for test in case["subtests"]] == ["fail", "pass"], whole.said
    parts = run(workspace, "system/brk", "system/futex", store=store)
    assert parts.verdicts == {"system/brk": "pass", "system/futex": "fail"}, parts.said
    for part, status in (("brk", "pass"), ("futex", "fail")):
        assert [test["status"] for test in parts.case(f"system/{part}")["subtests"]] == [status]


def test_a_case_on_several_machines(tmp_path: Path, test_cache: Path) -> None:
    workspace = Workspace.make(tmp_path / "w")
    command = "nproc; grep -c qcase.marker /proc/cmdline; echo do''ne"
    folder = workspace.case("machine", shell_init_cmd=command, success_regex=["^done$"])
    with (folder / "qemu-aarch64.toml").open("a") as file:
        file.write("""
[[qcase.matrix]]
axis = "machine"
name = "gic2"
machine = "virt,gic-version=2"

[[qcase.matrix]]
axis = "machine"
name = "gic3"
machine = "virt,gic-version=3"
cmdline = "qcase.marker"

[[qcase.matrix]]
axis = "processors"
name = "smp"
smp = 2
""")
    done = run(workspace, store=workspaces.fresh_store(tmp_path / "store", test_cache))
    assert done.verdicts == {"machine-gic2-smp": "pass", "machine-gic3-smp": "pass"}, done.said
    for name, marked in (("gic2", "0"), ("gic3", "1")):
        log = workspace.root / f"target/qcase/logs/aarch64/normal/machine-{name}-smp/console.log"
        assert f"2\n{marked}\ndone" in log.read_text().replace("\r", "")
