"""Projects of each build system, as their authors wrote them, built for two architectures, booted, and passing."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.arch import Arch
from tests.container.test_c import CHECKED, CONFIGURE, EXCEPTIONS, KSELFTEST, MAKEFILE, MAKEFILE_IN, WRAPPED
from tests.container.test_rust import PACKAGE
from tests.vm import workspaces
from tests.vm.test_guest_boot import debian
from tests.vm.workspaces import Workspace, run, says

pytestmark = [pytest.mark.vm, pytest.mark.container]

CPLUSPLUS = """\
    cmake_minimum_required(VERSION 3.16)
    project(prog CXX)
    add_executable(prog main.cpp)
    install(TARGETS prog DESTINATION usr/bin)
    """
CHOOSES = """\
    cmake_minimum_required(VERSION 3.20)
    project(prog C)
    add_executable(prog main.c)
    target_compile_definitions(prog PRIVATE ANSWER=${ANSWER})
    install(TARGETS prog DESTINATION usr/bin)
    """
PRESET = """{"version": 3, "configurePresets": [{"name": "x", "cacheVariables": {"ANSWER": "42"}}]}"""
MESON = "project('prog', 'c')\nexecutable('prog', 'main.c', install: true)\n"
SHAPES = {
    "cplusplus": ({"c/CMakeLists.txt": CPLUSPLUS, "c/main.cpp": EXCEPTIONS}, "^sum 42$"),
    "meson": ({"c/meson.build": MESON, "c/main.c": says("PASS")}, "^PASS$"),
    "make": ({"c/Makefile": MAKEFILE, "c/main.c": says("PASS")}, "^PASS$"),
    "kselftest": ({"c/Makefile": KSELFTEST, "c/prog.c": says("PASS")}, "^PASS$"),
    "preset": ({"c/CMakeLists.txt": CHOOSES, "c/CMakePresets.json": PRESET, "c/main.c": CHECKED}, "^PASS$"),
    "configure": ({"c/configure": CONFIGURE, "c/Makefile.in": MAKEFILE_IN, "c/configure.ac": "", "c/main.c": CHECKED}, "^PASS$"),
    "libtool": (WRAPPED, "^PASS$"),
}
SHAPES["kselftest"][0].update(
    {
        "c/more.c": "int more;\n",
        "c/helper.c": "int main(void) { return 0; }\n",
        "c/run.sh": "#!/bin/sh\n",
        "c/settings": "timeout=0\n",
    }
)
OPTIONS = {"preset": {"cmake": ["--preset=x"]}, "configure": {"configure": ["--with-answer=42"]}}
OPTIONS["libtool"] = {'install."usr/bin"': ["tests/prog"]}


def test_each_shape_of_a_project_runs_in_the_guest(tmp_path: Path, test_cache: Path) -> None:
    made = Workspace.make(tmp_path / "w")
    for name, (files, wanted) in SHAPES.items():
        for arch in (Arch.X86_64, Arch.AARCH64):
            made.case(name, files, arch=arch, shell_init_cmd="prog", success_regex=[wanted], qcase=OPTIONS.get(name, {}))
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    outcome = run(made, "--arch", "x86_64", "--arch", "aarch64", store=store, arch=None)
    assert outcome.report is not None, outcome.said
    found = {(case["case"].removeprefix("normal/"), case["arch"]): case["verdict"] for case in outcome.report["cases"]}
    assert found == {(name, arch): "pass" for name in SHAPES for arch in ("x86_64", "aarch64")}, outcome.said


def test_build_systems_in_one_guest_of_riscv64(tmp_path: Path, test_cache: Path, request: pytest.FixtureRequest) -> None:
    """A group has options for all of its projects, and one program of each name."""
    debian(Arch.RISCV64, request)
    made = Workspace.make(tmp_path / "w")
    systems = [name for name in SHAPES if name not in ("cplusplus", "libtool")]  # which have no preset, and nothing to install
    files = {
        f"{name}/{path.replace('prog', f'by-{name}')}": text.replace("prog", f"by-{name}")
        for name in systems
        for path, text in SHAPES[name][0].items()
    }
    options = {key: words for name in systems for key, words in OPTIONS.get(name, {}).items()}
    made.case("systems", files, arch=Arch.RISCV64, test_commands=[f"by-{name} | grep -x PASS" for name in systems], qcase=options)
    outcome = run(made, store=workspaces.fresh_store(tmp_path / "store", test_cache), arch=Arch.RISCV64)
    assert outcome.report is not None, outcome.said
    (case,) = outcome.report["cases"]
    assert case["verdict"] == "pass", outcome.said


TOOL = """\
    cmake_minimum_required(VERSION 3.16)
    project(tooled C)
    add_executable(mktable mktable.c)
    add_custom_command(OUTPUT table.h COMMAND mktable > table.h DEPENDS mktable)
    include_directories(${CMAKE_CURRENT_BINARY_DIR})
    add_executable(tooled main.c table.h)
    target_link_options(tooled PRIVATE -static)
    install(TARGETS tooled DESTINATION usr/bin)
    """
PRINTS_ANSWER = '#include <stdio.h>\n#include "{}"\nint main(void) {{ printf("%d\\n", ANSWER); return 0; }}\n'
MEMBER = """\
    [package]
    name = "member"
    version.workspace = true
    edition = "2021"
    [dependencies]
    wire.workspace = true
    """
ABOVE = """\
    [workspace]
    resolver = "2"
    members = ["crates/wire", "suite/normal/shapes/member/rust"]
    [workspace.package]
    version = "0.3.0"
    [workspace.dependencies]
    wire = { path = "crates/wire" }
    """
ANSWERS = """\
    use proc_macro::TokenStream;
    #[proc_macro]
    pub fn answer(_: TokenStream) -> TokenStream { "42".parse().unwrap() }
    """
VENDORED = """\
    [source.crates-io]
    replace-with = "vendored"
    [source.vendored]
    directory = "vendor"
    """
BASH = """\
    #!/usr/bin/env bash
    words=(one two 42)
    [[ ${#words[@]} == 3 ]] && echo "#define ANSWER ${words[2]}" >made.h
    """
# A subcase each: its files, a command of the guest, and what that prints.
PARTS = {
    "thrown": (
        {"c/CMakeLists.txt": CPLUSPLUS.replace("prog", "thrown"), "c/main.cpp": EXCEPTIONS},
        "thrown",
        "sum 42",
    ),
    "fixed": (
        {
            "c/CMakeLists.txt": CPLUSPLUS.replace("prog", "fixed") + "target_link_options(fixed PRIVATE -static)\n",
            "c/main.cpp": EXCEPTIONS,
        },
        "fixed",
        "sum 42",
    ),
    "tooled": (
        {
            "c/CMakeLists.txt": TOOL,
            "c/mktable.c": '#include <stdio.h>\nint main(void) { puts("#define ANSWER 42"); return 0; }\n',
            "c/main.c": PRINTS_ANSWER.format("table.h"),
        },
        "tooled",
        "42",
    ),
    "scripted": (
        workspaces.c_program(PRINTS_ANSWER.format("made.h"), "scripted") | {"c/prebuild.sh": BASH},
        "scripted",
        "42",
    ),
    "flags": (
        {
            "rust/Cargo.toml": PACKAGE.format("flags"),
            "rust/src/main.rs": 'fn main() { println!("{} {}", cfg!(fast), cfg!(far)); }\n',
            "rust/.cargo/config.toml": "[target.'cfg(unix)']\nrustflags = ['--cfg', 'far']\n[build]\nrustflags = '--cfg fast'\n",
        },
        "flags",
        "false true",
    ),
    "aborts": (
        {
            "rust/Cargo.toml": PACKAGE.format("aborts") + '[profile.release]\npanic = "abort"\n',
            "rust/src/main.rs": 'fn main() { let _ = std::panic::catch_unwind(|| panic!("gone")); println!("caught"); }\n',
        },
        "aborts 2>/dev/null; echo $?",
        "134",
    ),
    "macros": (
        {
            "rust/Cargo.toml": PACKAGE.format("macros") + '[dependencies]\nanswers = { path = "answers" }\n[workspace]\n',
            "rust/src/main.rs": 'fn main() { println!("{}", answers::answer!()); }\n',
            "rust/answers/Cargo.toml": PACKAGE.format("answers") + "[lib]\nproc-macro = true\n",
            "rust/answers/src/lib.rs": ANSWERS,
        },
        "macros",
        "42",
    ),
    "vendored": (
        {
            "rust/Cargo.toml": PACKAGE.format("vendored") + '[dependencies]\ntiny = "1"\n[workspace]\n',
            "rust/src/main.rs": 'fn main() { println!("{}", tiny::id()); }\n',
            "rust/.cargo/config.toml": VENDORED,
            "rust/vendor/tiny/Cargo.toml": PACKAGE.format("tiny").replace("0.1.0", "1.0.0"),
            "rust/vendor/tiny/src/lib.rs": "pub fn id() -> i32 { 12 }\n",
            "rust/vendor/tiny/.cargo-checksum.json": '{"files": {}, "package": null}',
        },
        "vendored",
        "12",
    ),
    "member": (
        {
            "rust/Cargo.toml": MEMBER,
            "rust/src/main.rs": 'fn main() { println!("{} {}", wire::id(), env!("CARGO_PKG_VERSION")); }\n',
        },
        "member",
        "11 0.3.0",
    ),
    "beside": (
        {
            "rust/Cargo.toml": PACKAGE.format("beside")
            + '[dependencies]\nwire = { path = "../../../../../crates/wire" }\n[workspace]\n',
            "rust/src/main.rs": 'fn main() { print!("{} {}", wire::id(), include_str!("../../../../../../data/a.txt")); }\n',
        },
        "beside",
        "11 from beside",
    ),
}


@pytest.mark.usefixtures("toolchain_rust")
def test_shapes_of_programs_run_in_one_guest_of_each_architecture(
    tmp_path: Path, test_cache: Path, request: pytest.FixtureRequest
) -> None:
    debian(Arch.RISCV64, request)
    made = Workspace.make(tmp_path / "w")
    files = {f"{name}/{path}": text for name, (part, _, _) in PARTS.items() for path, text in part.items()}
    commands = [f'test "$({command})" = "{said}"' for _, command, said in PARTS.values()]
    for arch in (Arch.X86_64, Arch.AARCH64, Arch.RISCV64):
        made.case("shapes", files, arch=arch, test_commands=commands)
    for path, text in {
        "Cargo.toml": ABOVE,
        "crates/wire/Cargo.toml": PACKAGE.format("wire"),
        "crates/wire/src/lib.rs": "pub fn id() -> i32 { 11 }\n",
        "data/a.txt": "from beside\n",
    }.items():
        (made.root / path).parent.mkdir(parents=True, exist_ok=True)
        (made.root / path).write_text(text)
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    outcome = run(made, "--arch", "x86_64", "--arch", "aarch64", "--arch", "riscv64", store=store, arch=None)
    assert outcome.report is not None, outcome.said
    found = {case["arch"]: case["verdict"] for case in outcome.report["cases"]}
    assert found == {"x86_64": "pass", "aarch64": "pass", "riscv64": "pass"}, outcome.said
