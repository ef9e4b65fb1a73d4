"""Build systems of the pipeline `c`: their settings for compiler and packages, and the programs that run them.

    CMakeLists.txt        CMake   a toolchain file; Ninja
    meson.build           Meson   a cross file; Ninja
    configure             itself  CC, CXX, AR, … in the environment, and --host= where Autoconf made it; then Make
    Makefile, …           Make    CC=, CXX=, AR=, … on the command line; install with DESTDIR
    the same, with        Make    as the kernel builds its selftests; where its lib.mk is not there, one of ours
      TEST_GEN_PROGS

`qcase.pipelines.build_choice` takes one of several. All of them install into the overlay, and find headers, libraries and .pc
files of the staging root and of musl's sysroot, and no others.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from qcase.arch import Arch
from qcase.host.trees import Tree
from qcase.pipelines import make_habits, run_built
from qcase.pipelines.build_choice import CHOICE, System
from qcase.pipelines.make_habits import PLAIN, Habits
from qcase.pipelines.pipeline import BUILD, OVERLAY, STAGING

STAGE = "stage"  # the file to which a step writes its current stage
CHECKS = "/qcase/checks"  # CMake's compiler checks in a step, see `qcase.pipelines.compiler_checks`

INSTALL = "install"  # the key of `[qcase]` with additional files to install
OPTIONS = (*dict.fromkeys(option for system in System for option in system.options), INSTALL, CHOICE)


@dataclass(frozen=True)
class Tools:
    """The compilers of an architecture in the image: `gcc` or `clang`, and their C++."""

    arch: Arch
    compiler: str

    @property
    def prefix(self) -> str:
        return f"/usr/local/bin/{self.arch}-linux-musl"

    @property
    def cc(self) -> str:
        return f"{self.prefix}-{self.compiler}"

    @property
    def cxx(self) -> str:
        return f"{self.prefix}-{'g++' if self.compiler == 'gcc' else 'clang++'}"

    @property
    def run(self) -> str:
        """Path of the program that runs programs of the guest's architecture, for builds that run their own programs."""
        return f"{self.prefix}-run"


_INCLUDES = f"{STAGING}/usr/include"
_LINK = (f"-L{STAGING}/usr/lib", f"-L{STAGING}/lib", f"-Wl,-rpath-link,{STAGING}/usr/lib:{STAGING}/lib")
_PKG_CONFIG = ":".join(f"{STAGING}/usr/{folder}/pkgconfig" for folder in ("lib", "share", "local/lib"))


def toolchain_file(tools: Tools) -> str:
    """Return CMake's toolchain file: the wrappers of the image, and packages of the staging root alone.

    Headers of the staging root come first, ahead of musl's own. The flags of optimised build types omit CMake's `-DNDEBUG`, which
    removes a test's `assert`: CMake takes cache entries from before a language is enabled as its defaults, and a project's own
    `set` wins.
    """
    flags = "".join(
        f'set(CMAKE_{language}_FLAGS_{kind} "{value}" CACHE STRING "assertions stay")\n'
        for language in ("C", "CXX", "ASM")
        for kind, value in (("RELEASE", "-O3"), ("RELWITHDEBINFO", "-O2 -g"), ("MINSIZEREL", "-Os"))
    )
    return f"""\
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR {tools.arch})
set(CMAKE_C_COMPILER {tools.cc})
set(CMAKE_CXX_COMPILER {tools.cxx})
set(CMAKE_ASM_COMPILER {tools.cc})
if(NOT EXISTS {tools.cxx})
    set(CMAKE_CXX_COMPILER {tools.prefix}-c++)
endif()
if(EXISTS {tools.run})
    set(CMAKE_CROSSCOMPILING_EMULATOR {tools.run})
endif()
set(CMAKE_C_FLAGS_INIT "-isystem {_INCLUDES}")
set(CMAKE_CXX_FLAGS_INIT "-isystem {_INCLUDES}")
{flags}foreach(kind EXE SHARED MODULE)
    set(CMAKE_${{kind}}_LINKER_FLAGS_INIT "{" ".join(_LINK)}")
endforeach()
set(CMAKE_FIND_ROOT_PATH {STAGING} /opt/qcase/musl/{tools.arch})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(ENV{{PKG_CONFIG_PATH}} "")
set(ENV{{PKG_CONFIG_LIBDIR}} "{_PKG_CONFIG}")
set(ENV{{PKG_CONFIG_SYSROOT_DIR}} "{STAGING}")
"""


def cross_file(tools: Tools) -> str:
    """Return Meson's cross file."""

    def listed(words: tuple[str, ...]) -> str:
        return f"[{', '.join(repr(word) for word in words)}]"

    includes = listed(("-isystem", _INCLUDES))
    return f"""\
[binaries]
c = '{tools.cc}'
cpp = '{tools.cxx}'
ar = '{tools.prefix}-gcc-ar'
ranlib = '{tools.prefix}-gcc-ranlib'
nm = '{tools.prefix}-gcc-nm'
strip = '{tools.prefix}-strip'
objcopy = '{tools.prefix}-objcopy'
pkg-config = 'pkg-config'
exe_wrapper = '{tools.run}'

[host_machine]
system = 'linux'
cpu_family = '{tools.arch}'
cpu = '{tools.arch}'
endian = 'little'

[properties]
needs_exe_wrapper = true
sys_root = '{STAGING}'
pkg_config_libdir = '{_PKG_CONFIG}'

[built-in options]
c_args = {includes}
cpp_args = {includes}
c_link_args = {listed(_LINK)}
cpp_link_args = {listed(_LINK)}
"""


def make_environment() -> dict[str, str]:
    """Environment variables for makefiles, which may extend or override them."""
    return {
        "CFLAGS": "-O2",
        "CXXFLAGS": "-O2",
        "LDFLAGS": " ".join(_LINK),
        "C_INCLUDE_PATH": _INCLUDES,
        "CPLUS_INCLUDE_PATH": _INCLUDES,
        "PKG_CONFIG_PATH": "",
        "PKG_CONFIG_LIBDIR": _PKG_CONFIG,
        "PKG_CONFIG_SYSROOT_DIR": STAGING,
        "CC_FOR_BUILD": "gcc",
        "HOSTCC": "gcc",
    }


_BINUTILS = ("ar", "ranlib", "nm", "strip", "objcopy", "objdump")


def _binaries(tools: Tools, without: Collection[str] = ()) -> str:
    """Assignments of the tools to the variable names that makefiles and `configure` scripts use, less those of `without`."""
    binaries = {"CC": tools.cc, "CXX": tools.cxx, "LD": f"{tools.prefix}-ld"}
    binaries |= {name.upper(): f"{tools.prefix}-{name}" for name in _BINUTILS}
    return " ".join(f"{name}={value}" for name, value in binaries.items() if name not in without)


def _make_variables(tools: Tools, habits: Habits) -> str:
    """Variables for make's command line, where they override a makefile's own `CC = gcc`."""
    before = "" if habits.joined else f"{tools.arch}-linux-musl-"
    found = f"{_binaries(tools, habits.own)} CROSS_COMPILE={before} ARCH={tools.arch.spec.makefiles}"
    return f"{found} {_OF_BUILDER}" if habits.named else found


# Names of the building machine's compiler in makefiles.
_OF_BUILDER = " ".join(
    [f'{name}="$own_cc"' for name in ("HOSTCC", "HOST_CC", "BUILD_CC", "BUILDCC", "CC_FOR_BUILD", "NATIVE_CC")]
    + [f'{name}="$own_cxx"' for name in ("HOSTCXX", "HOST_CXX", "BUILD_CXX", "CXX_FOR_BUILD")]
)


def _tools_by_name(tools: Tools, habits: Habits) -> str:
    """Return the part of a program that puts the guest's tools into the PATH, under the names of the building machine's.

    `strip` always: `install -s` calls it. A compiler looks for its linker in the PATH, too, and gets `-B` for that.
    """
    named = {"strip": f"{tools.prefix}-strip"}
    begin = ""
    if habits.named:
        named |= dict.fromkeys(("cc", "gcc", "musl-gcc"), tools.cc) | dict.fromkeys(("c++", "g++"), tools.cxx)
        named |= {name: f"{tools.prefix}-{name}" for name in ("clang", "clang++", "ld", "readelf", *_BINUTILS)}
        named |= {f"gcc-{name}": f"{tools.prefix}-gcc-{name}" for name in ("ar", "nm", "ranlib")}
        begin += "".join(
            f'own_{name}=$(command -v {program} || :)\nown_{name}="$own_{name} -B${{own_{name}%/*}}/"\n'
            for name, program in (("cc", "gcc"), ("cxx", "g++"))
        )
    begin += run_built.program(tools.arch, tools.run, BUILD)
    begin += f"mkdir {BUILD}/tools\n"
    begin += "".join(f"printf '#!/bin/sh\\nexec {path} \"$@\"\\n' >{BUILD}/tools/{name}\n" for name, path in named.items())
    return f"{begin}chmod 755 {BUILD}/tools/*\nPATH={BUILD}/tools:$PATH\n"


# For a folder of the kernel's selftests without the kernel around it: the rules that its makefiles count on.
_OWN_LIB_MK = """\
OUTPUT ?= $(CURDIR)
TEST_GEN_PROGS := $(addprefix $(OUTPUT)/,$(TEST_GEN_PROGS))
TEST_GEN_PROGS_EXTENDED := $(addprefix $(OUTPUT)/,$(TEST_GEN_PROGS_EXTENDED))
TEST_GEN_FILES := $(addprefix $(OUTPUT)/,$(TEST_GEN_FILES))
qcase_made := $(TEST_GEN_PROGS) $(TEST_GEN_PROGS_EXTENDED) $(TEST_GEN_FILES)
qcase_all := $(qcase_made) $(TEST_PROGS) $(TEST_PROGS_EXTENDED) $(TEST_FILES)
.DEFAULT_GOAL := all
.PHONY: all install
all: $(qcase_made)
install: all
	mkdir -p $(INSTALL_PATH)
	$(if $(strip $(qcase_all)),cp -R $(qcase_all) $(INSTALL_PATH)/)
$(OUTPUT)/%: %.c
	$(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(filter-out %.h,$^) $(LDLIBS) -o $@
$(OUTPUT)/%: %.S
	$(CC) $(CPPFLAGS) $(ASFLAGS) $(LDFLAGS) $(filter-out %.h,$^) $(LDLIBS) -o $@
"""
_SELFTESTS = f"{BUILD}/kselftest"

_BEGIN = f"""\
exec 2>&1
umask 022
stage() {{ printf '%s' "$1" > {BUILD}/{STAGE}; printf -- '-- %s\\n' "$1"; }}
"""
# Libraries for a guest that has no musl, or no libstdc++.
# A project that knows no DESTDIR makes links to where it was installed.
_END = f"""
find {OVERLAY} -type l | while IFS= read -r link; do
    target=$(readlink "$link")
    case $target in {OVERLAY}/*) ln -sfn "${{target#{OVERLAY}}}" "$link" ;; esac
done
for library in "$SYSROOT"/lib/libc.so "$SYSROOT"/lib/libstdc++.so.6; do
    if [ -f "$library" ]; then cp -L "$library" {BUILD}/libraries/; fi
done
"""


def program(system: System, tools: Tools, habits: Habits = PLAIN) -> str:
    """Return the program that `sh -eu` runs in the folder of the sources, with the user's options as its arguments.

    The `stage` file names the current stage, for errors. `$STAGING_VARIABLE`: the CMake variable with the path of the staging
    root.
    """
    from qcase.pipelines import extra_files

    text = _PROGRAMS[system].replace("@VARIABLES@", _make_variables(tools, habits)).replace("@BINARIES@", _binaries(tools))
    text = text.replace("@TOOLS@", _tools_by_name(tools, habits)).replace("@BELOW@", _BELOW_PREFIX if habits.only_prefix else "")
    return _BEGIN + text + extra_files.PROGRAM.replace("@BUILT@", BUILT.get(system, "")) + _END


# An image of others may have no Ninja.
GENERATOR = "generator=Ninja; command -v ninja >/dev/null || generator='Unix Makefiles'"
# The results of CMake's compiler checks exist already, unless the user chooses another compiler.
_CMAKE = f"""\
stage configure
checked=1
for option; do
    case $option in *COMPILER* | *TOOLCHAIN* | --preset* | --fresh | -G* | -A*) checked= ;; esac
done
if [ -n "$checked" ] && [ -f {CHECKS}/CMakeCache.txt ]; then
    mkdir {BUILD}/cmake
    cp -R {CHECKS}/CMakeFiles {CHECKS}/CMakeCache.txt {BUILD}/cmake/
    printf '%s\\n' "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" CMAKE_CACHEFILE_DIR:INTERNAL={BUILD}/cmake >>{BUILD}/cmake/CMakeCache.txt
fi
{GENERATOR}
# For projects that this one configures by itself, as ExternalProject does.
export CMAKE_TOOLCHAIN_FILE={BUILD}/toolchain.cmake
cmake -S "$PWD" -B {BUILD}/cmake -G "$generator" --no-warn-unused-cli \\
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/ \\
    -DCMAKE_TOOLCHAIN_FILE={BUILD}/toolchain.cmake -D"$STAGING_VARIABLE"={STAGING} "$@"
stage build
if [ -f {BUILD}/cmake/build.ninja ]; then
    ninja -C {BUILD}/cmake -j "$(nproc)"
else
    cmake --build {BUILD}/cmake --parallel "$(nproc)"
fi
stage install
# With the prefix /, a project's own ${{CMAKE_INSTALL_PREFIX}}/lib is //lib, which CMake takes for a path in a network.
find {BUILD}/cmake -name cmake_install.cmake -exec sed -i 's|DESTINATION "///*|DESTINATION "/|' {{}} +
DESTDIR={OVERLAY} cmake --install {BUILD}/cmake
"""
_MESON = f"""\
stage configure
meson setup {BUILD}/meson "$PWD" --cross-file {BUILD}/cross.ini --prefix=/usr --wrap-mode=nodownload \\
    -Doptimization=2 -Ddebug=false "$@"
stage build
ninja -C {BUILD}/meson
stage install
DESTDIR={OVERLAY} meson install -C {BUILD}/meson --no-rebuild
"""
# Targets are made one after another, as by hand: in one call of a parallel make, two of them could build the same files at once,
# since `all` of a project by Automake is a make of its own. The variables and options stay for `install`.
_MAKE_TARGETS = """\
targets= taken=
for word; do
    shift
    case $taken$word in
    +*) taken= ;;
    -[CfIoW] | --directory | --file | --makefile | --include-dir) taken=+ ;;
    -* | *=* | [0-9] | [0-9][0-9]) ;;
    *) targets="$targets $word"; continue ;;
    esac
    set -- "$@" "$word"
done
set -f
if [ -z "$targets" ]; then make -j"$(nproc)" "$@"; fi
for target in $targets; do make -j"$(nproc)" "$@" "$target"; done
set +f
"""
# A makefile without `install` is enough if `[qcase] install` names the files to take.
_MAKE_INSTALL = f"""\
stage install
if [ -z "$QCASE_INSTALL" ] || ! make -n "$@" install 2>&1 | grep -q "No rule to make target 'install'\\."; then
    make DESTDIR={OVERLAY} "$@"@BELOW@ install
fi
"""
_BELOW_PREFIX = f" prefix={OVERLAY}/usr PREFIX={OVERLAY}/usr"  # the last one counts
_MAKE = f"""\
export @BINARIES@
@TOOLS@stage build
set -- @VARIABLES@ prefix=/usr PREFIX=/usr "$@"
{_MAKE_TARGETS}{_MAKE_INSTALL}"""
# One that Autoconf did not make knows neither --host nor --build, and may stop at an option that it does not know.
_CONFIGURE = f"""\
@TOOLS@stage configure
if grep -q 'GNU Autoconf' configure; then
    set -- --build="$(gcc -dumpmachine)" --host="$QCASE_HOST" "$@"
fi
shell=$(sed -n '1s|^#! *\\(/usr/bin/env  *\\)*||p; 1q' configure)
env @BINARIES@ CHOST="$QCASE_HOST" CROSS_COMPILE="$QCASE_HOST-" ${{shell:-sh}} ./configure --prefix=/usr "$@"
eval "set -- $QCASE_MAKE"
stage build
{_MAKE_TARGETS}{_MAKE_INSTALL}"""
_KSELFTESTS = f"""\
export @BINARIES@
@TOOLS@stage build
set -- @VARIABLES@ -I{_SELFTESTS}/a -I{_SELFTESTS}/a/b -I{_SELFTESTS}/a/b/c "$@"
{_MAKE_TARGETS}stage install
make INSTALL_PATH={OVERLAY}/usr/bin "$@" install
"""
_PROGRAMS = {
    System.CMAKE: _CMAKE,
    System.MESON: _MESON,
    System.CONFIGURE: _CONFIGURE,
    System.MAKE: _MAKE,
    System.KSELFTEST: _KSELFTESTS,
}
BUILT = {System.CMAKE: f"{BUILD}/cmake", System.MESON: f"{BUILD}/meson"}  # others build beside the sources


def prepare(system: System, tools: Tools, out: Tree) -> None:
    """Write the files that a step's program reads into `out`, which the step sees as `/qcase/build`."""
    (out / "libraries").mkdir()
    if system is System.KSELFTEST:
        (out / "kselftest/a/b/c").mkdir(parents=True)  # `include ../lib.mk`, `../../lib.mk` and `../../../lib.mk` lead there
    for name, text in files(system, tools).items():
        (out / name).write_text(text)


def files(system: System, tools: Tools) -> Mapping[str, str]:
    """Return the files of a build folder, by name."""
    if system is System.CMAKE:
        return {"toolchain.cmake": toolchain_file(tools)}
    if system is System.MESON:
        return {"cross.ini": cross_file(tools)}
    found = {run_built.FILE: run_built.SOURCE}
    if system is System.KSELFTEST:
        found |= {f"kselftest/{folder}lib.mk": _OWN_LIB_MK for folder in ("", "a/", "a/b/")}
    return found


# Autoconf before 2.70 runs a program for these, and takes "no" where that is for another machine: then a project needs a function
# `rpl_malloc` of its own. musl's malloc(0) and realloc(0, 0) give memory.
_KNOWN_ANSWERS = {f"ac_cv_func_{name}_0_nonnull": "yes" for name in ("malloc", "realloc", "calloc")}


def environment(system: System, tools: Tools, options: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the extra environment variables of a build system's step. `options`: the user's options, by key."""
    found = {"QCASE_INSTALL": "".join(f"{line}\n" for line in options.get(INSTALL, ()))}
    if system in (System.MAKE, System.KSELFTEST, System.CONFIGURE):
        found |= make_environment()
    if system is System.CONFIGURE:
        found |= _KNOWN_ANSWERS
        found |= {"QCASE_HOST": f"{tools.arch}-linux-musl", "QCASE_MAKE": shlex.join(options.get(System.MAKE.value, ()))}
    return found


def recipe(tools: Tools) -> str:
    """Return the text of all programs and files that are used: an edit of it changes the keys of all cases in C."""
    parts = [program(system, tools) + str(environment(system, tools, {})) + str(files(system, tools)) for system in System]
    parts.append(program(System.MAKE, tools, make_habits.EVERY))
    return "\0".join(parts)
