"""Which build system a folder has, and what it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.host.trees import Tree
from qcase.model import Pipeline
from qcase.pipelines import build_hints, build_systems
from qcase.pipelines.build_systems import System, Tools
from qcase.suite import discover
from qcase.suite.cases import BrokenCase, Case, Workspace

KSELFTEST = "TEST_GEN_PROGS := a\ninclude ../lib.mk\n"


@pytest.mark.parametrize(
    ("files", "system"),
    [
        ({"CMakeLists.txt": "", "meson.build": "", "Makefile": ""}, System.CMAKE),
        ({"meson.build": "", "Makefile": ""}, System.MESON),
        ({"Makefile": "all:\n"}, System.MAKE),
        ({"makefile": "all:\n"}, System.MAKE),
        ({"GNUmakefile": "all:\n", "Makefile": KSELFTEST}, System.MAKE),
        ({"Makefile": KSELFTEST}, System.KSELFTEST),
        ({"Makefile": "include ../lib.mk\n"}, System.MAKE),
        ({"Makefile": "TEST_GEN_PROGS = a\n"}, System.MAKE),
        ({"Makefile": "# TEST_GEN_PROGS\ninclude ../lib.mk\n"}, System.MAKE),
        ({"configure": "#!/bin/sh\n", "Makefile": "all:\n"}, System.CONFIGURE),
        ({"meson.build": "", "configure": "#!/bin/sh\n"}, System.MESON),
        ({"main.c": ""}, None),
        ({}, None),
    ],
)
def test_the_build_system_of_a_folder(files: dict[str, str], system: System | None, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for name, text in files.items():
        (tmp_path / "c" / name).write_text(text)
    assert build_systems.system_of(Tree(tmp_path), "c") is system


@pytest.mark.parametrize(
    ("options", "system"),
    [
        ((), System.CMAKE),
        (("cmake", "meson"), System.CMAKE),
        (("meson",), System.MESON),
        (("configure", "make"), System.CONFIGURE),
        (("make",), System.CONFIGURE),
        (("install",), System.CMAKE),
    ],
)
def test_of_several_build_systems_the_one_that_has_options(options: tuple[str, ...], system: System, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for name in ("CMakeLists.txt", "meson.build", "configure", "Makefile"):
        (tmp_path / "c" / name).write_text("")
    assert build_systems.system_of(Tree(tmp_path), "c", options) is system


def test_a_build_file_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/Makefile").symlink_to("../shared.mk")
    assert build_systems.system_of(Tree(tmp_path), "c") is None
    (tmp_path / "shared.mk").write_text("all:\n")
    assert build_systems.system_of(Tree(tmp_path), "c") is System.MAKE


@pytest.mark.parametrize("arch", Arch)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("system", System)
def test_what_each_is_told_names_the_tools_of_the_architecture(system: System, compiler: str, arch: Arch, tmp_path: Path) -> None:
    tools = Tools(arch, compiler)
    build_systems.prepare(system, tools, Tree(tmp_path))
    told = build_systems.program(system, tools) + str(dict(build_systems.files(system, tools)))
    others = [other for other in Arch if other is not arch]
    assert f"/usr/local/bin/{arch}-linux-musl-{compiler}" in told
    assert f"/usr/local/bin/{arch}-linux-musl-{'g++' if compiler == 'gcc' else 'clang++'}" in told
    assert not any(f"{other}-linux-musl" in told for other in others)
    assert "NDEBUG" not in told
    assert "STATIC_LIBRARY" not in told
    assert "@" not in build_systems.program(system, tools).replace('"$@"', "")


SAYS = [
    (
        System.CMAKE,
        "error: could not find git for clone of zlib-populate",
        "…SOURCE_DIR_ZLIB=",
    ),
    (System.CMAKE, "FetchContent\nCould not resolve host: github.com\n_deps/googletest-subbuild", "…SOURCE_DIR_GOOGLETEST="),
    (System.MESON, "meson.build:3:6: ERROR: Automatic wrap-based subproject downloading is disabled", "a build has no network"),
    (System.MAKE, "make: *** No rule to make target 'install'.  Stop.", "needs a target `install`"),
    (System.MAKE, "/bin/sh: 1: ./mktable: Exec format error", "was run by the build"),
    (
        System.MAKE,
        "bison p.y\nmake: bison: No such file or directory\nmake: *** [Makefile:3: p] Error 127",
        "has no bison",
    ),
    (System.MESON, 'meson.build:80:11: ERROR: Dependency "libffi" not found, tried pkgconfig', "has libffi, in Alpine"),
    (System.CMAKE, "CMake Error at F.cmake:233 (message):\n  Could NOT find ZLIB (missing: ZLIB_LIBRARY)", "has ZLIB, in Alpine"),
    (System.CMAKE, "The following required packages were not found:\n\n   - expat>=2\n", "has expat, in Alpine"),
    (System.CMAKE, "-- Could NOT find Doxygen (missing: DOXYGEN_EXECUTABLE)\nmain.c:1:1: error: expected", ""),
    (System.CONFIGURE, "configure: error: Package requirements (expat) were not met:\n\nNo package 'expat' found", "has expat"),
    (System.CONFIGURE, "./configure: 12: m4: not found\n", "has no m4: keep what it makes"),
    (System.MAKE, "utf8.h:30:1: error: unknown type name ‘__BEGIN_DECLS’", "musl has no __BEGIN_DECLS"),
    (System.MAKE, "a.c:1:10: fatal error: execinfo.h: No such file or directory", "musl has no execinfo.h"),
    (System.MAKE, "mkdir: cannot create directory ‘/usr/local/man’: Read-only file system", "heeds no DESTDIR"),
    (System.MAKE, "a.c:1:10: fatal error: mine.h: No such file or directory", ""),
    (System.CMAKE, "main.c:3:1: error: unknown type name 'in'", ""),
]


@pytest.mark.parametrize(("system", "said", "wanted"), SAYS)
def test_what_to_do_about_a_build_that_failed(system: System, said: str, wanted: str) -> None:
    hint = build_hints.hint(system, said)
    assert wanted.removeprefix("…") in hint
    assert bool(hint) == bool(wanted)


# ---- sources that are linked into the kernel


def cases(root: Path, kernel: str) -> dict[str, Case | BrokenCase]:
    config = f'[suite]\nroot = "suite"\n[guest.x86_64]\nrootfs = "rootfs.img"\nkernel = {kernel}\n'
    (root / "qcase.toml").write_text(config)
    workspace = Workspace.open(root)
    found = discover.discover(workspace, Arch.X86_64, Arch.X86_64.default_target).cases
    return {case.name: case for case in found}


def test_c_without_a_build_file_belongs_to_the_kernel_that_a_command_builds(tmp_path: Path) -> None:
    def case(name: str, text: str, *files: str) -> None:
        for file in files:
            (tmp_path / "suite/normal" / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "suite/normal" / name / file).write_text("")
        (tmp_path / "suite/normal" / name / "qemu-x86_64.toml").write_text(text)

    plain = 'success_regex = ["ok"]\n'
    case("linked", plain, "c/main.c", "c/axbuild.mk")
    case("program", plain, "c/main.c", "c/Makefile")
    case("both", plain, "c/main.c", "sh/run")
    case("group", 'shell_prefix = "#"\ntest_commands = ["x"]\n', "one/c/main.c", "two/c/meson.build", "three/sh/x")
    by_command = cases(tmp_path, '{ build = "true", output = "kernel" }')
    assert {name: case.pipeline for name, case in by_command.items() if isinstance(case, Case)} == {
        "linked": Pipeline.PLAIN,
        "program": Pipeline.C,
        "both": Pipeline.SH,
        "group": Pipeline.GROUPED,
    }
    group = by_command["group"]
    assert isinstance(group, Case)
    assert [subcase.name for subcase in group.subcases] == ["three", "two"]
    by_file = cases(tmp_path, '"kernel"')
    linked = by_file["linked"]
    assert isinstance(linked, Case)
    assert linked.pipeline is Pipeline.C  # and no build file is an error that says so
    assert isinstance(by_file["both"], BrokenCase)
