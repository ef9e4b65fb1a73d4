"""Subcases that cannot matter, by proof, and commands that could have run what did not build."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.model import Pipeline
from qcase.pipelines import group_installs

C, RUST, SH = Pipeline.C, Pipeline.RUST, Pipeline.SH
PLAIN = """\
cmake_minimum_required(VERSION 3.16)   # a comment (with a paren
project(rdtsc C)
set(CMAKE_EXE_LINKER_FLAGS "-static -s")
if(NOT (DEFINED X AND Y))
  add_compile_options(-O2 "-DX=(1)")
endif()
add_executable(${PROJECT_NAME} main.c)
target_link_options(rdtsc PRIVATE -static)
install(TARGETS rdtsc RUNTIME DESTINATION usr/bin)
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLAIN, {"rdtsc"}),
        ("PROJECT(a C)\nadd_executable(a a.c)\nINSTALL(TARGETS a DESTINATION bin)", {"a"}),
        ("add_executable(a a.c)\nadd_executable(b b.c)\ninstall(TARGETS a b DESTINATION /usr/sbin)", {"a", "b"}),
        ("set(N x)\nadd_executable(t-${N} a.c)\ninstall(TARGETS t-${N} DESTINATION bin)", {"t-x"}),
        ("include(GNUInstallDirs)\nadd_executable(a a.c)\ninstall(TARGETS a DESTINATION ${CMAKE_INSTALL_BINDIR})", {"a"}),
        ("install(PROGRAMS tools/run.sh DESTINATION bin)", {"run.sh"}),
        ("add_executable(a a.c)", set()),
        # What computes a name, renames a target, brings more than programs, or is not known.
        ("set(N u)\nstring(CONCAT P ${N} name)\nadd_executable(prog a.c)\ninstall(TARGETS prog DESTINATION bin)", None),
        (f"{PLAIN}set_target_properties(rdtsc PROPERTIES OUTPUT_NAME uname)", None),
        (f"{PLAIN}set_property(TARGET rdtsc PROPERTY OUTPUT_NAME uname)", None),
        ("set(N x)\nset(N y)\nadd_executable(${N} a.c)\ninstall(TARGETS ${N} DESTINATION bin)", None),
        ("set(N x y)\nadd_executable(${N} a.c)\ninstall(TARGETS ${N} DESTINATION bin)", None),
        ("add_executable(${UNSET} a.c)", None),
        ("set(CMAKE_EXECUTABLE_SUFFIX name)\nadd_executable(u a.c)\ninstall(TARGETS u DESTINATION bin)", None),
        ("set(CMAKE_PROJECT_INCLUDE x.cmake)\nproject(a C)", None),
        ("set(CMAKE_TOOLCHAIN_FILE x.cmake)\nproject(a C)", None),
        ("set(ENV{DESTDIR} /x)", None),
        (f"{PLAIN}install(PROGRAMS a DESTINATION bin RENAME uname)", None),
        (f"{PLAIN}install(FILES ld.so.preload DESTINATION etc)", None),
        (f"{PLAIN}install(TARGETS rdtsc DESTINATION lib)", None),
        (f'{PLAIN}install(CODE "file(WRITE x)")', None),
        (f"{PLAIN}include(more.cmake)", None),
        (f"{PLAIN}add_subdirectory(more)", None),
        (f"{PLAIN}add_custom_command(OUTPUT x COMMAND y)", None),
        (f"{PLAIN}foreach(n a b)\nendforeach()", None),
        (f"{PLAIN}#[[ a comment\n]] include(more.cmake)", None),
        (f"{PLAIN}message([[install(x)]])", None),
        (f"{PLAIN}find_package(Mine)", None),
        ("install(TARGETS nobody DESTINATION bin)", None),
        ("install()", None),
        ("add_executable(a a.c", None),
        ("add_executable(a a.c))", None),
        ("(a)", None),
        ("a", None),
        ('message("no end)', None),
    ],
)
def test_the_programs_of_a_cmake_project(text: str, expected: set[str] | None, tmp_path: Path) -> None:
    write(tmp_path, {"c/CMakeLists.txt": text})
    assert group_installs.programs(C, tmp_path) == (None if expected is None else frozenset(expected))


@pytest.mark.parametrize(
    ("kind", "files", "expected"),
    [
        (
            RUST,
            {"rust/Cargo.toml": '[package]\nname = "a"', "rust/src/bin/b.rs": "", "rust/src/bin/c/main.rs": ""},
            {"a", "b", "c"},
        ),
        (RUST, {"rust/Cargo.toml": '[package]\nname = "a"\n[[bin]]\nname = "uname"\npath = "x.rs"'}, {"a", "uname"}),
        (RUST, {"rust/Cargo.toml": '[workspace]\nmembers = ["x"]\n[package]\nname = "a"'}, None),
        (RUST, {"rust/Cargo.toml": "[[bin]]"}, None),
        (RUST, {"rust/Cargo.toml": "["}, None),
        (RUST, {"rust/Cargo.toml": '[package]\nname = "a"', "rust/prebuild.sh": ""}, None),
        (SH, {"sh/one": "", "sh/two.sh": ""}, {"one", "two.sh"}),
        (Pipeline.PYTHON, {"python/one.py": ""}, {"one.py"}),
        (C, {"c/CMakeLists.txt": PLAIN, "c/prebuild.sh": ""}, None),
        (C, {"c/main.c": ""}, None),
        (C, {}, None),
    ],
)
def test_the_programs_of_other_kinds(kind: Pipeline, files: dict[str, str], expected: set[str] | None, tmp_path: Path) -> None:
    assert group_installs.programs(kind, write(tmp_path, files)) == (None if expected is None else frozenset(expected))


@pytest.mark.parametrize(
    ("commands", "others", "matters"),
    [
        (["test-pipe", "ls /proc"], {"pipe/c/main.c": "int main(void) { return 0; }"}, False),
        (["test-pipe"], {"tool/sh/tool": "#!/bin/sh\necho fine\n"}, False),
        (["/opt/RDTSC --fast"], {}, True),
        (["test-pipe $X"], {}, True),
        (["sh -c test-pipe"], {}, True),
        (["test-pipe"], {"pipe/c/main.c": 'puts("rdtsc");'}, True),
        (["test-pipe"], {"pipe/c/main.c": "execvp(name, argv);"}, True),
        (["test-pipe"], {"pipe/c/main.c": "system(name);"}, True),
        (["test-pipe"], {"pipe/rust/src/main.rs": "Command::new(name)"}, True),
        (["run-all"], {"all/sh/run-all": "#!/bin/sh\nfor t in /usr/bin/r*; do $t; done\n"}, True),
        (["run-all"], {"all/sh/run-all": "#!/bin/sh\nls /usr | while read t; do $t; done\n"}, True),
        (["run-all"], {"all/sh/data": "x" * (2 << 20)}, True),
        (["test-pipe"], {"common/run.c": "execvp(name, argv);"}, True),
        (["test-pipe"], {"README.md": "rdtsc"}, False),
    ],
)
def test_a_subcase_cannot_matter_if_nothing_could_run_it(
    commands: list[str], others: dict[str, str], matters: bool, tmp_path: Path
) -> None:
    write(tmp_path, {"tsc/c/CMakeLists.txt": PLAIN, "qemu-x86_64.toml": 'test_commands = ["rdtsc"]', **others})
    assert group_installs.cannot_matter(commands, "tsc", C, tmp_path) is not matters


def test_a_subcase_cannot_be_told_where_a_link_leads_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, {"tsc/c/CMakeLists.txt": PLAIN, "pipe/c/main.c": ""})
    (tmp_path / "pipe/c/shared").symlink_to("/nowhere")
    assert not group_installs.cannot_matter(["test-pipe"], "tsc", C, tmp_path)


@pytest.mark.parametrize(
    ("command", "installed", "expected"),
    [
        ("uname", None, True),  # the guest has one, but nobody knows what was left out
        ("ls /proc | grep x", None, True),
        ("test-pipe", None, False),
        ("echo uname", None, False),
        ("uname", {"rdtsc"}, False),
        ("rdtsc", {"rdtsc"}, True),
        ("echo x; /opt/rdtsc", {"rdtsc"}, True),
        ("$X", {"rdtsc"}, True),
        ("run-one", None, True),
        ("run-one", {"rdtsc"}, False),
        ("run-one", {"other"}, True),
        ("run-all", {"rdtsc"}, True),
    ],
)
def test_commands_that_could_have_run_what_was_left_out(command: str, installed: set[str] | None, expected: bool) -> None:
    scripts = {"run-one": b"#!/bin/sh\nother --x\n", "run-all": b"#!/bin/sh\nfor t in /usr/bin/*; do $t; done\n"}
    built = {"/usr/bin/test-pipe", "/usr/bin/run-one", "/usr/bin/run-all"}.__contains__
    assert bool(group_installs.doubtful([command], built, [installed], scripts)) is expected
