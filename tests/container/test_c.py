"""The pipeline `c`: projects as people write them, built in the toolchain image. Programs for x86_64 run right here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config.workspace_file import WorkspaceConfig
from qcase.errors import BuildError
from qcase.host import process
from qcase.host.trees import Tree
from qcase.pipelines import c, compiler_checks
from qcase.toolchains.records import Image
from tests.container.builds import Case

pytestmark = pytest.mark.container

FALSE_ASSERT = """\
#include <assert.h>
#include <stdio.h>
static int f(void) { return 41; }
int main(void) { assert(f() == 42); puts("PASS"); return 0; }
"""


def project(*lines: str, program: str = "main.c", languages: str = "C") -> str:
    """A CMakeLists.txt of one static program, `/usr/bin/prog`."""
    return "\n".join(
        [
            "cmake_minimum_required(VERSION 3.16)",
            f"project(prog {languages})",
            *lines,
            f"add_executable(prog {program})",
            "target_link_options(prog PRIVATE -static)",
            "install(TARGETS prog DESTINATION usr/bin)",
            "",
        ]
    )


@pytest.mark.parametrize(
    ("lines", "aborts"),
    [
        ((), True),
        (('set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "" FORCE)',), True),
        (("set(CMAKE_BUILD_TYPE MinSizeRel)",), True),
        (('set(CMAKE_C_FLAGS_RELEASE "-O2 -DNDEBUG")',), False),
        (("add_compile_definitions(NDEBUG)",), False),
    ],
)
def test_a_false_assertion_aborts_unless_the_project_itself_removes_it(case: Case, lines: tuple[str, ...], aborts: bool) -> None:
    overlay = case.build({"c/CMakeLists.txt": project(*lines), "c/main.c": FALSE_ASSERT}, made=c.build)
    ran = process.run([str(overlay / "usr/bin/prog")], check=False, timeout=20)
    assert (ran.returncode != 0) == aborts, ran.output
    assert ("Assertion failed: f() == 42" in ran.output) == aborts
    assert ("PASS" in ran.output) != aborts


def test_programs_are_optimised(case: Case) -> None:
    source = "#ifndef __OPTIMIZE__\n#error not optimised\n#endif\nint main(void) { return 0; }\n"
    case.build({"c/CMakeLists.txt": project(), "c/main.c": source}, made=c.build)


CHECKS = """\
include(CheckFunctionExists)
include(CheckLibraryExists)
include(CheckSymbolExists)
include(CheckCSourceCompiles)
check_function_exists(no_such_function_anywhere HAVE_NOSUCH)
check_function_exists(backtrace HAVE_BACKTRACE)
check_library_exists(nosuchlib foo "" HAVE_NOSUCHLIB)
check_library_exists(m sin "" HAVE_M)
check_function_exists(getrandom HAVE_GETRANDOM)
check_symbol_exists(gnu_get_libc_version gnu/libc-version.h HAVE_GLIBC)
set(CMAKE_REQUIRED_DEFINITIONS -D_GNU_SOURCE)
check_symbol_exists(memfd_create sys/mman.h HAVE_MEMFD)
check_c_source_compiles("int nowhere(void); int main(void) { return nowhere(); }" HAVE_NOWHERE)
file(WRITE ${CMAKE_BINARY_DIR}/found "")
foreach(name NOSUCH BACKTRACE NOSUCHLIB M GETRANDOM GLIBC MEMFD NOWHERE)
    if(HAVE_${name})
        file(APPEND ${CMAKE_BINARY_DIR}/found "${name}\\n")
    endif()
endforeach()
install(FILES ${CMAKE_BINARY_DIR}/found DESTINATION usr/share)"""


@pytest.mark.parametrize("arch", Arch)
def test_checks_of_functions_and_libraries_tell_the_truth(case: Case, arch: Arch) -> None:
    files = {"c/CMakeLists.txt": project(CHECKS), "c/main.c": "int main(void) { return 0; }\n"}
    overlay = case.build(files, arch, c.build)
    found = set((overlay / "usr/share/found").read_text().split())
    assert found == {"M", "GETRANDOM", "MEMFD"}


# ---- C++

EXCEPTIONS = """\
#include <atomic>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>
int main()
{
    std::atomic<int> sum{0};
    std::vector<std::thread> threads;
    for (int i = 1; i <= 8; i++)
        threads.emplace_back([i, &sum] { try { throw std::runtime_error(std::to_string(i)); }
                                         catch (const std::exception &e) { sum += std::stoi(e.what()); } });
    for (auto &thread : threads)
        thread.join();
    try { std::vector<int>(3).at(7); } catch (const std::out_of_range &) { sum += 6; }
    std::printf("sum %d\\n", sum.load());
    return sum == 42 ? 0 : 1;
}
"""
# Whatever the architecture, the program is run by the build itself, and what it says is installed.
RUNS = """\
cmake_minimum_required(VERSION 3.16)
project(prog CXX)
set(CMAKE_CXX_STANDARD 17)
find_package(Threads REQUIRED)
add_executable(prog main.cpp)
target_link_libraries(prog PRIVATE Threads::Threads)
target_link_options(prog PRIVATE LINK)
add_custom_command(OUTPUT said COMMAND prog > said DEPENDS prog)
add_custom_target(say ALL DEPENDS said)
install(TARGETS prog DESTINATION usr/bin)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/said DESTINATION usr/share)
"""


def with_compiler(case: Case, compiler: str) -> Case:
    case.config = WorkspaceConfig.model_validate({"toolchain": {"c": {"compiler": compiler}}})
    return case


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("arch", Arch)
def test_cplusplus_static(case: Case, arch: Arch, compiler: str) -> None:
    files = {"c/CMakeLists.txt": RUNS.replace("LINK", "-static"), "c/main.cpp": EXCEPTIONS}
    overlay = with_compiler(case, compiler).build(files, arch, c.build)
    assert (overlay / "usr/share/said").read_text() == "sum 42\n"
    assert sorted(path.name for path in overlay.rglob("*") if path.is_file()) == ["prog", "said"]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("arch", Arch)
def test_cplusplus_dynamic(case: Case, arch: Arch, compiler: str) -> None:
    """The guest has neither musl nor libstdc++: both come along, and nothing else does."""
    files = {"c/CMakeLists.txt": RUNS.replace("LINK", "-pie"), "c/main.cpp": EXCEPTIONS}
    overlay = with_compiler(case, compiler).build(files, arch, c.build)
    assert (overlay / "usr/share/said").read_text() == "sum 42\n"
    assert sorted(path.name for path in (overlay / "usr/lib").iterdir()) == ["libstdc++.so.6"]
    assert sorted(path.name for path in (overlay / "lib").iterdir()) == [arch.musl_loader, f"libc.musl-{arch}.so.1"]


def test_a_project_that_names_no_language(case: Case) -> None:
    case.build({"c/CMakeLists.txt": project(languages=""), "c/main.c": "int main(void) { return 0; }\n"}, made=c.build)


def test_host_tools_in_c_and_cplusplus(case: Case) -> None:
    """What is to run on the machine that builds is compiled by the compilers of that machine, which the image has."""
    lines = ("echo '#include <vector>' | g++ -fsyntax-only -x c++ -", "echo 'int main() {}' | gcc -x c -o tool - && ./tool")
    prebuild = "\n".join(("#!/bin/bash", *lines, ""))
    files = {"c/CMakeLists.txt": project(), "c/main.c": "int main(void) { return 0; }\n", "c/prebuild.sh": prebuild}
    case.build(files, made=c.build)


# ---- what a project builds for itself, what it downloads, and its options


@pytest.mark.parametrize("arch", Arch)
def test_a_tool_that_a_project_builds_and_calls(case: Case, arch: Arch) -> None:
    lines = (
        "add_executable(mktable mktable.c)",
        "add_custom_command(OUTPUT table.h COMMAND mktable > table.h DEPENDS mktable)",
        "include_directories(${CMAKE_CURRENT_BINARY_DIR})",
    )
    files = {
        "c/CMakeLists.txt": project(*lines, program="main.c table.h"),
        "c/mktable.c": '#include <stdio.h>\nint main(void) { puts("#define ANSWER 42"); return 0; }\n',
        "c/main.c": '#include "table.h"\n_Static_assert(ANSWER == 42, "");\nint main(void) { return 0; }\n',
    }
    case.build(files, arch, c.build)


EXTERNAL = """\
include(ExternalProject)
ExternalProject_Add(part SOURCE_DIR ${CMAKE_CURRENT_SOURCE_DIR}/part
    CMAKE_ARGS -DCMAKE_INSTALL_PREFIX=${CMAKE_BINARY_DIR}/its BUILD_BYPRODUCTS ${CMAKE_BINARY_DIR}/its/libpart.a)
link_libraries(${CMAKE_BINARY_DIR}/its/libpart.a)"""


@pytest.mark.parametrize("arch", [Arch.X86_64, Arch.AARCH64])
def test_a_project_that_a_project_configures_is_for_the_guest(case: Case, arch: Arch) -> None:
    """Also where its authors hand no toolchain on: on x86_64 what the builder's compiler made would link, for another libc."""
    part = (
        "cmake_minimum_required(VERSION 3.16)\nproject(part C)\nadd_library(part part.c)\ninstall(TARGETS part DESTINATION .)\n"
    )
    files = {
        "c/CMakeLists.txt": project(EXTERNAL) + "add_dependencies(prog part)\n",
        "c/main.c": "int part(void);\nint main(void) { return part(); }\n",
        "c/part/CMakeLists.txt": part,
        "c/part/part.c": '#include <features.h>\n#ifdef __GLIBC__\n#error "glibc"\n#endif\nint part(void) { return 0; }\n',
    }
    case.build(files, arch, c.build)


FETCHES = """\
include(FetchContent)
FetchContent_Declare(thing GIT_REPOSITORY https://example.org/thing.git)
FetchContent_MakeAvailable(thing)"""


@pytest.mark.parametrize("arch", Arch)
def test_fetch_content_without_a_network_says_so(case: Case, arch: Arch) -> None:
    files = {"c/CMakeLists.txt": project(FETCHES), "c/main.c": "int main(void) { return 0; }\n"}
    with pytest.raises(BuildError) as caught:
        case.build(files, arch, c.build)
    assert "a build has no network" in caught.value.hint
    assert "-DFETCHCONTENT_SOURCE_DIR_THING=/qcase/src/" in caught.value.hint
    case.options = {"cmake": ("-DFETCHCONTENT_SOURCE_DIR_THING=/qcase/src/c/thing",)}
    case.build({**files, "c/thing/CMakeLists.txt": "set(FOUND 1)\n"}, arch, c.build)


@pytest.mark.parametrize("build_file", ["CMakeLists.txt", "meson.build", "Makefile"])
def test_errors_name_files_by_their_paths_in_the_workspace(case: Case, build_file: str) -> None:
    text = {
        "CMakeLists.txt": project(),
        "meson.build": "project('prog', 'c')\nexecutable('prog', 'main.c', install: true)\n",
        "Makefile": 'install:\n\t$(CC) -c "$(CURDIR)/main.c"\n',
    }
    with pytest.raises(BuildError) as caught:
        case.build(
            {f"c/{build_file}": text[build_file], "c/main.c": "int main(void) { error }\n"}, made=c.build, origin="suite/x"
        )
    assert "\nsuite/x/c/main.c:1:" in caught.value.log
    assert "/qcase/src" not in caught.value.log


def test_a_project_that_puts_the_prefix_before_its_folders(case: Case) -> None:
    lines = """\
        cmake_minimum_required(VERSION 3.20)
        project(prefixed C)
        add_executable(prog prog.c)
        install(TARGETS prog DESTINATION "${CMAKE_INSTALL_PREFIX}/usr/bin")
        install(FILES prog.c DESTINATION "${CMAKE_INSTALL_PREFIX}/lib/cmake/prog")
        """
    overlay = case.build({"c/CMakeLists.txt": lines, "c/prog.c": "int main(void) { return 0; }\n"}, Arch.X86_64, c.build)
    assert (overlay / "usr/bin/prog").is_file()
    assert (overlay / "lib/cmake/prog/prog.c").is_file()


def test_options_and_presets(case: Case) -> None:
    lines = ('option(X "" OFF)', "if(NOT X)", 'message(FATAL_ERROR "X is off")', "endif()")
    files = {"c/CMakeLists.txt": project(*lines), "c/main.c": "int main(void) { return 0; }\n"}
    with pytest.raises(BuildError, match="configure"):
        case.build(files, made=c.build)
    case.options = {"cmake": ("-DX=ON",)}
    case.build(files, made=c.build)
    preset = """{"version": 3, "configurePresets": [{"name": "x", "cacheVariables": {"X": "ON"}}]}"""
    case.options = {"cmake": ("--preset=x",)}
    case.build({**files, "c/CMakePresets.json": preset}, made=c.build)


# ---- other build systems

MAKEFILE = """\
CC = gcc
CFLAGS += -Wall
PREFIX ?= /usr/local
prog: main.o
\t$(CC) $(CFLAGS) $(LDFLAGS) -static -o $@ $^ $(LDLIBS)
install: prog
\tinstall -D prog $(DESTDIR)$(PREFIX)/bin/prog
"""
CHECKED = """\
#include <assert.h>
#include <stdio.h>
#ifndef __OPTIMIZE__
#error not optimised
#endif
int main(void) { assert(ANSWER == 42); puts("PASS"); return 0; }
"""
MESON = """\
project('prog', 'c', default_options: ['b_ndebug=if-release'])
answer = get_option('answer')
executable('prog', 'main.c', c_args: '-DANSWER=@0@'.format(answer), link_args: '-static', install: true)
mktable = executable('mktable', 'mktable.c')
custom_target('table', output: 'table.h', command: mktable, capture: true, build_by_default: true)
"""
OPTIONS = "option('answer', type: 'integer', value: 41)\n"


def runs(overlay: Path) -> tuple[bool, str]:
    done = process.run([str(overlay / "usr/bin/prog")], check=False, timeout=20)
    return done.returncode == 0, done.output


@pytest.mark.parametrize("arch", Arch)
def test_a_makefile(case: Case, arch: Arch) -> None:
    case.options = {"make": ("CPPFLAGS=-DANSWER=42",)}
    overlay = case.build({"c/Makefile": MAKEFILE, "c/main.c": CHECKED}, arch, c.build)
    assert [str(path.relative_to(overlay)) for path in overlay.rglob("*") if path.is_file()] == ["usr/bin/prog"]
    if arch is Arch.X86_64:
        assert runs(overlay) == (True, "PASS")


def test_a_makefile_finds_what_is_staged(case: Case) -> None:
    staging = case.root / "staging/usr"
    (staging / "include").mkdir(parents=True)
    (staging / "include/staged.h").write_text("#define ANSWER 42\n")
    overlay = case.build({"c/Makefile": MAKEFILE, "c/main.c": f"#include <staged.h>\n{CHECKED}"}, made=c.build)
    assert runs(overlay) == (True, "PASS")


def test_a_makefile_without_install_is_told_what_it_lacks(case: Case) -> None:
    with pytest.raises(BuildError, match="install") as caught:
        case.build({"c/Makefile": "prog:\n\ttrue\n"}, made=c.build)
    assert "needs a target `install`" in caught.value.hint


def test_a_makefile_without_install_whose_programs_are_named(case: Case) -> None:
    case.options = {"install": ("usr/bin\tprog",), "make": ("CPPFLAGS=-DANSWER=42",)}
    makefile = MAKEFILE.partition("install:")[0]
    assert runs(case.build({"c/Makefile": makefile, "c/main.c": CHECKED}, made=c.build)) == (True, "PASS")
    with pytest.raises(BuildError, match="install"):  # one that is there, and fails
        case.build({"c/Makefile": f"{makefile}install:\n\tfalse\n", "c/main.c": CHECKED}, made=c.build)


# As Automake writes it: `all` is a make of its own, which makes what the other target needs, too.
RECURSES = """\
all:
\t$(MAKE) -f own.mk prog
prog: main.o
\t$(CC) $(LDFLAGS) -static -o $@ main.o
main.o: main.c
\ttest ! -e started && touch started && sleep 1
\t$(CC) $(CFLAGS) -DANSWER=42 -c -o $@ main.c
check: prog
\tcp prog $@
install: prog
\tinstall -D -t $(DESTDIR)/usr/bin prog check
"""


def test_targets_are_made_one_after_another(case: Case) -> None:
    """And what is no target, also where it looks like one, is there for each of them."""
    case.options = {"make": ("-f", "own.mk", "all", "V=1", "check", "-j", "2")}
    overlay = case.build({"c/Makefile": "", "c/own.mk": RECURSES, "c/main.c": CHECKED}, Arch.X86_64, c.build)
    assert sorted(path.name for path in (overlay / "usr/bin").iterdir()) == ["check", "prog"]


@pytest.mark.parametrize("arch", Arch)
def test_meson(case: Case, arch: Arch) -> None:
    files = {"c/meson.build": MESON, "c/meson_options.txt": OPTIONS, "c/main.c": CHECKED}
    files["c/mktable.c"] = "int main(void) { return 0; }\n"
    overlay = case.build(files, arch, c.build)
    if arch is Arch.X86_64:
        good, said = runs(overlay)
        assert (good, "Assertion failed" in said) == (False, True)
    case.options = {"meson": ("-Danswer=42",)}
    overlay = case.build(files, arch, c.build)
    if arch is Arch.X86_64:
        assert runs(overlay) == (True, "PASS")


# As Autoconf and Automake leave it: Makefile comes from Makefile.in, and what is older than its source is made again.
CONFIGURE = """\
#!/bin/sh
# Generated by GNU Autoconf 2.72 for prog 1.
host=
for option; do
    case $option in
    --host=*) host=${option#*=} ;;
    --build=* | --prefix=/usr) ;;
    --with-answer=*) answer=${option#*=} ;;
    *) echo "unrecognized option: $option"; exit 1 ;;
    esac
done
echo "checking for C compiler... $CC"
case $CC in *$host*) ;; *) exit 1 ;; esac
[ "$ac_cv_func_malloc_0_nonnull" = yes ] || exit 1 # else it would ask for a malloc of its own
sed -e "s|@CC@|$CC|" -e "s|@CFLAGS@|$CFLAGS|" -e "s|@ANSWER@|${answer:-0}|" Makefile.in >Makefile
"""
MAKEFILE_IN = """\
prefix = /usr
prog: main.c
\t@CC@ @CFLAGS@ -DANSWER=@ANSWER@ -static -o $@ main.c
tests/check: main.c
\t@CC@ @CFLAGS@ -DANSWER=42 -static -o $@ main.c
check: tests/check
configure: configure.ac
\tautoconf
Makefile: configure
install: prog
\tinstall -D prog $(DESTDIR)$(prefix)/bin/prog
"""


@pytest.mark.parametrize("arch", Arch)
def test_a_script_configure(case: Case, arch: Arch) -> None:
    case.options = {
        "configure": ("--with-answer=42",),
        "make": ("prog", "check"),
        "install": ("usr/bin\ttests/ch*", "usr/share/x y\ttests/data", "usr/share/x y\ttests/*.txt"),
    }
    files = {"c/configure": CONFIGURE, "c/configure.ac": "", "c/Makefile.in": MAKEFILE_IN, "c/main.c": CHECKED}
    files |= {"c/tests/data/one": "1", "c/tests/a b.txt": "2", "c/tests/checks.d/x": ""}
    overlay = case.build(files, arch, c.build)
    found = sorted(str(path.relative_to(overlay)) for path in overlay.rglob("*") if path.is_file())
    assert found == ["usr/bin/check", "usr/bin/prog", "usr/share/x y/a b.txt", "usr/share/x y/data/one"]
    assert (overlay / "usr/bin/check").stat().st_mode & 0o111
    if arch is Arch.X86_64:
        assert runs(overlay) == (True, "PASS")


# Links as libtool does: a program of uninstalled libraries into .libs, and a script in its place.
LIBTOOL = """\
#!/bin/sh -e
link_library() { # NAME OTHER
    mkdir -p src/.libs
    $CC -shared -fPIC -Wl,-soname,lib$1.so.1 -o src/.libs/lib$1.so.1.0 src/$1.c \\
        ${2:+src/.libs/lib$2.so.1 -Wl,-rpath,/usr/lib/own}
    ln -sf lib$1.so.1.0 src/.libs/lib$1.so.1
    {
        printf '# lib%s.la - a libtool library file\\n# Generated by libtool (GNU libtool) 2.5.4\\n' $1
        printf "dlname='lib%s.so.1'\\ndependency_libs='%s -lm'\\nlibdir='/usr/lib/own'\\n" $1 "${2:+ $PWD/src/lib$2.la}"
    } >src/lib$1.la
}
link_library two
link_library one two
mkdir -p tests/.libs
$CC -o tests/.libs/prog tests/prog.c src/.libs/libone.so.1 -Wl,-rpath,/usr/lib/own -Wl,-rpath-link,src/.libs
printf '#! /bin/sh\\n\\n# %s - temporary wrapper script for %s\\n' tests/prog tests/.libs/prog >tests/prog
printf '# Generated by libtool (GNU libtool) 2.5.4\\n' >>tests/prog
printf "  notinst_deplibs=' src/libone.la'\\n" >>tests/prog
chmod 755 tests/prog
"""
WRAPPED = {
    "c/Makefile": "all:\n\tCC='$(CC)' sh ./link\ninstall:\n",
    "c/link": LIBTOOL,
    "c/src/two.c": "int two(void) { return 2; }\n",
    "c/src/one.c": "int two(void);\nint one(void) { return two() - 1; }\n",
    "c/tests/prog.c": '#include <stdio.h>\nint one(void);\nint main(void) { puts(one() == 1 ? "PASS" : "FAIL"); }\n',
    "c/tests/data": "1",
}


@pytest.mark.parametrize("arch", Arch)
def test_a_program_that_libtool_wraps_is_installed_with_its_libraries(case: Case, arch: Arch) -> None:
    """As one that is named, and as one of a folder."""
    case.options = {"install": ("usr/bin\ttests/pr*g", "usr/share\ttests")}
    overlay = case.build(WRAPPED, arch, c.build)
    for program in (overlay / "usr/bin/prog", overlay / "usr/share/tests/prog"):
        assert program.read_bytes()[:4] == b"\x7fELF"
        assert program.stat().st_mode & 0o777 == 0o755
    assert (overlay / "usr/share/tests/data").is_file()
    assert sorted(path.name for path in (overlay / "usr/lib/own").iterdir()) == ["libone.so.1", "libtwo.so.1"]


def test_a_script_of_libtools_in_place_of_a_program_is_an_error(case: Case) -> None:
    makefile = WRAPPED["c/Makefile"] + "\tinstall -D tests/prog $(DESTDIR)/usr/bin/prog\n"
    with pytest.raises(BuildError) as caught:
        case.build({**WRAPPED, "c/Makefile": makefile}, made=c.build)
    assert caught.value.what == (
        "libtool: /usr/bin/prog is a script that stands in for the program, and works in the build folder alone"
    )
    assert "--mode=install" in (caught.value.hint or "")


def test_a_script_configure_that_autoconf_did_not_make(case: Case) -> None:
    """It is told of the compiler by its environment alone."""
    text = "#!/usr/bin/env bash\n[[ $* == --prefix=/usr ]] && [[ $CC == /*/$CHOST-gcc ]] || exit\n"
    text += 'printf "CC = %s\\nPREFIX = %s\\n" "$CC" "${1#*=}" >config.mak\n'
    files = {"c/configure": text, "c/Makefile": f"include config.mak\n{MAKEFILE.replace('CC = gcc', '')}", "c/main.c": CHECKED}
    case.options = {"make": ("CPPFLAGS=-DANSWER=42",)}
    assert runs(case.build(files, made=c.build)) == (True, "PASS")


@pytest.mark.parametrize(
    ("install", "what"),
    [
        ("usr/bin\ttests/none", "[qcase] install: nothing that was built fits tests/none"),
        ("usr/bin\t*/same", "[qcase] install: there are two that would be /usr/bin/same"),
        ("usr/bin\t$(touch x)", "[qcase] install: nothing that was built fits $(touch x)"),
    ],
)
def test_what_is_to_be_installed_besides_and_cannot_be(case: Case, install: str, what: str) -> None:
    case.options = {"cmake": ("-DX=1",), "install": (install,)}
    files = {"c/CMakeLists.txt": project(), "c/main.c": "int main(void) { return 0; }\n"}
    files |= {"c/a/same": "1", "c/b/same": "2", "c/d/other": "3"}
    with pytest.raises(BuildError) as caught:
        case.build(files, made=c.build)
    assert caught.value.what == what


def test_what_cmake_built_is_installed_besides(case: Case) -> None:
    case.options = {"install": ("usr/bin\textra", "usr/share\tmain.c")}
    files = {"c/CMakeLists.txt": project("add_executable(extra main.c)"), "c/main.c": "int main(void) { return 0; }\n"}
    overlay = case.build(files, made=c.build)
    assert {path.name for path in overlay.rglob("*")} >= {"extra", "main.c", "prog"}


KSELFTEST = """\
# SPDX-License-Identifier: none
CFLAGS += -DANSWER=42 -static
TEST_GEN_PROGS := prog
TEST_GEN_PROGS_EXTENDED := helper
TEST_PROGS := run.sh
TEST_FILES := settings
include ../lib.mk
$(OUTPUT)/prog: prog.c more.c
"""


@pytest.mark.parametrize("own", [False, True])
def test_a_folder_of_the_kernels_selftests(case: Case, own: bool) -> None:
    """With the kernel's rules around it, which need not be the ones that are known here, or by itself."""
    files = {
        "c/Makefile": KSELFTEST,
        "c/prog.c": CHECKED,
        "c/more.c": "int more;\n",
        "c/helper.c": "int main(void) { return 0; }\n",
        "c/run.sh": "#!/bin/sh\n",
        "c/settings": "timeout=0\n",
    }
    if own:
        names = "OUTPUT = $(CURDIR)\nTEST_GEN_PROGS := $(addprefix $(OUTPUT)/,$(TEST_GEN_PROGS))\nall: $(TEST_GEN_PROGS)\n"
        install = "install: all\n\tmkdir -p $(INSTALL_PATH)\n\tcp $(TEST_GEN_PROGS) $(INSTALL_PATH)/\n"
        files["lib.mk"] = f"{names}{install}$(OUTPUT)/%: %.c\n\t$(CC) $(CFLAGS) $^ -o $@\n"
    overlay = case.build(files, made=c.build)
    assert runs(overlay) == (True, "PASS")
    found = sorted(path.name for path in (overlay / "usr/bin").iterdir())
    assert found == (["prog"] if own else ["helper", "prog", "run.sh", "settings"])


# ---- checks that are kept


def known(overlay: Path) -> set[str]:
    """What CMake knows, without what it only needs to find that out."""
    lines = (overlay / "usr/share/known").read_text().splitlines()
    return {
        line for line in lines if not re.search(r"=$|_ID_(VENDOR|TEST|TOOL)|_NAMES=|_PRODUCED_|ASM_COMPILER_WORKS|_CACHE", line)
    }


def test_checks_that_are_kept_are_those_that_a_project_makes(case: Case, toolchain_c: Image) -> None:
    """What CMake then knows of the compilers is what it finds out by itself, and it does not look again."""
    files = {
        "c/CMakeLists.txt": project(
            "get_cmake_property(names VARIABLES)",
            "foreach(name ${names})",
            'string(FIND "${${name}}" "\\n" line_end)',
            'if(name MATCHES "^CMAKE_" AND NOT name MATCHES "^CMAKE_(MATCH|ARG|HOST_SYSTEM)" AND line_end EQUAL -1)',
            'file(APPEND ${CMAKE_BINARY_DIR}/known "${name}=${${name}}\\n")',
            "endif()",
            "endforeach()",
            "install(FILES ${CMAKE_BINARY_DIR}/known DESTINATION usr/share)",
            languages="C CXX ASM",
        ),
        "c/main.c": "int main(void) { return 0; }\n",
    }
    for name in ("usr/include", "usr/lib", "lib"):
        (case.root / "staging" / name).mkdir(parents=True)
    by_itself = case.build(files, made=c.build)
    kept = Tree(case.root / "checks")
    kept.mkdir()
    scratch = Tree(case.root / "making")
    scratch.mkdir()
    compiler_checks.make(c.tools_of(Arch.X86_64, case.config), toolchain_c.id, case.engine, scratch, kept)
    case.checks = kept
    with_checks = case.build(files, made=c.build)
    assert known(by_itself) == known(with_checks)
    assert "Detecting C compiler ABI info" in (case.root / "1/scratch/log").read_text()
    assert "Detecting C compiler ABI info" not in (case.root / "2/scratch/log").read_text()
