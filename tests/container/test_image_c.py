"""The image `c`: both compilers make programs for musl on all four architectures, and never see glibc.

One container stays open for all tests. It runs as every build step will: no network, no capabilities, no home, a read-only root.

  /qcase/src      read-only, the sources of SOURCES below
  /qcase/build    writable, a folder for each test
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from qcase.arch import Arch
from qcase.toolchains.records import Image

pytestmark = pytest.mark.container

MACHINE = {Arch.X86_64: "EM_X86_64", Arch.AARCH64: "EM_AARCH64", Arch.RISCV64: "EM_RISCV", Arch.LOONGARCH64: "EM_LOONGARCH"}
COMPILERS = ("gcc", "clang")
BOTH = list(product(Arch, COMPILERS))
# `-c -static` and the like are what build systems write that put all flags into one variable.
QUIET = ("-c", "-S", "-E", "-M", "-r", "-fsyntax-only", "-c -pthread", "-c -fPIC", "-c -O2 -g", "-c -static", "-shared -fPIC")

SOURCES = {
    "threads.c": r"""
        #define _GNU_SOURCE
        #include <sys/epoll.h>
        #include <sys/socket.h>
        #include <linux/netlink.h>
        #include <pthread.h>
        #include <stdatomic.h>
        #include <stdio.h>
        static _Thread_local int mine = 7;
        static _Atomic int sum;
        static void *work(void *number) {
            mine += (int)(long)number;
            atomic_fetch_add(&sum, mine);
            return NULL;
        }
        int main(void) {
            pthread_t threads[4];
            struct sockaddr_nl address = {.nl_family = AF_NETLINK};
            for (long i = 0; i < 4; i++)
                if (pthread_create(&threads[i], NULL, work, (void *)i))
                    return 1;
            for (int i = 0; i < 4; i++)
                pthread_join(threads[i], NULL);
            long double wide = sum; /* libgcc's arithmetic on three of the four */
            printf("%d %d %d %.1Lf\n", sum, mine, address.nl_family, wide * 1.5L);
            return epoll_create1(EPOLL_CLOEXEC) < 0;
        }
        """,
    "unwind.c": r"""
        #include <stdio.h>
        #include <stdlib.h>
        #include <unwind.h>
        static struct _Unwind_Exception exception;
        static void leave(int *number) { printf("leaving %d\n", *number); }
        static _Unwind_Reason_Code stop(int version, _Unwind_Action action, _Unwind_Exception_Class class,
                                        struct _Unwind_Exception *e, struct _Unwind_Context *c, void *data) {
            (void)version; (void)class; (void)e; (void)c; (void)data;
            if (action & _UA_END_OF_STACK) {
                puts("end");
                exit(0);
            }
            return _URC_NO_REASON;
        }
        __attribute__((noinline)) static void inner(void) { _Unwind_ForcedUnwind(&exception, stop, NULL); }
        __attribute__((noinline)) static void outer(void) {
            __attribute__((cleanup(leave))) int number = 3;
            inner();
            printf("not reached %d\n", number);
        }
        int main(void) { outer(); return 1; }
        """,
    "hello.c": r"""
        #include <stdio.h>
        #include <string.h>
        int main(int count, char **arguments) {
            char text[64];
            (void)count;
            strcpy(text, arguments[0]);
            return printf("%s %s %s\n", text, __DATE__, __TIME__) < 0;
        }
        """,
    "library.c": '#include <stdio.h>\nint answer(void) { return puts("from the library") < 0 ? 0 : 42; }\n',
    "syscall.c": "#include <linux/unistd.h>\n#include <asm/ptrace.h>\nint number = __NR_futex;\n",
    "glibc.c": "#include <gnu/libc-version.h>\n",
    "start.c": "void _start(void) { for (;;); }\n",
    "project/CMakeLists.txt": """
        cmake_minimum_required(VERSION 3.20)
        project(project C)
        find_package(PkgConfig REQUIRED)
        find_package(Threads REQUIRED)
        pkg_check_modules(PACKAGE REQUIRED IMPORTED_TARGET package)
        find_library(FOUND package REQUIRED)
        find_library(OF_THE_HOST NAMES LLVM LLVM-19 z)
        if(OF_THE_HOST)
          message(FATAL_ERROR "the image's own ${OF_THE_HOST} was found")
        endif()
        add_library(thing SHARED thing.c)
        target_link_libraries(thing PRIVATE PkgConfig::PACKAGE)
        add_library(archive STATIC archive.c)
        add_executable(program program.c)
        target_compile_options(program PRIVATE -Wall -Wextra -Werror)
        target_link_libraries(program PRIVATE thing archive Threads::Threads)
        install(TARGETS program thing)
        """,
    "project/thing.c": "#include <package.h>\nint thing(void) { return from_package() + PACKAGE; }\n",
    "project/archive.c": "int archived(void) { return 1; }\n",
    "project/program.c": "int thing(void);\nint archived(void);\nint main(void) { return thing() + archived() != 42; }\n",
    "habit/CMakeLists.txt": """
        cmake_minimum_required(VERSION 3.20)
        project(habit)
        add_executable(habit ../hello.c)
        """,
}


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    with contextlib.closing(docker.from_env(timeout=1800)) as client:
        yield client


@dataclass(frozen=True)
class Box:
    """A container, and the folder that it sees as /qcase/build."""

    container: Container
    build: Path

    def __call__(self, script: str) -> tuple[int, str]:
        # By a file: an engine sometimes loses what a short command of `exec` prints.
        program = f"unset HOME; exec >/qcase/build/.said 2>&1; {script}"
        status, output = self.container.exec_run(["sh", "-euc", program], workdir="/qcase/build")
        assert status is not None
        assert isinstance(output, bytes)
        said = self.build / ".said"
        assert said.is_file(), output
        text = said.read_text()
        said.unlink()
        return status, text

    def ok(self, script: str) -> str:
        status, output = self(script)
        assert status == 0, f"{script}\n{output}"
        return output


@pytest.fixture(scope="module")
def box(client: docker.DockerClient, toolchain_c: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    root = tmp_path_factory.mktemp("image_c")
    for name, text in SOURCES.items():
        path = root / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    build = root / "build"
    build.mkdir()
    build.chmod(0o777)
    user = "12345:12345" if os.geteuid() == 0 else f"{os.getuid()}:{os.getgid()}"
    container = client.containers.run(
        toolchain_c.id,
        ["sleep", "infinity"],
        detach=True,
        init=True,
        user=user,
        network_mode="none",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        read_only=True,
        tmpfs={"/tmp": ""},
        environment={"LC_ALL": "C.UTF-8", "TZ": "UTC", "SOURCE_DATE_EPOCH": "1"},
        volumes={str(root / "src"): {"bind": "/qcase/src", "mode": "ro"}, str(build): {"bind": "/qcase/build", "mode": "rw"}},
    )
    try:
        yield Box(container, build)
    finally:
        container.remove(force=True)
        shutil.rmtree(build)


@dataclass(frozen=True)
class Elf:
    machine: str
    kind: str
    interpreter: str
    needed: tuple[str, ...]


def elf(path: Path) -> Elf:
    with path.open("rb") as stream:
        file = ELFFile(stream)
        interpreter, needed = "", []
        for segment in file.iter_segments():
            if isinstance(segment, InterpSegment):
                interpreter = segment.get_interp_name()
        for section in file.iter_sections():
            if isinstance(section, DynamicSection):
                needed += [tag.needed for tag in section.iter_tags("DT_NEEDED")]  # type: ignore[attr-defined] # set by name
        return Elf(file["e_machine"], file["e_type"], interpreter, tuple(needed))


def loader(arch: Arch) -> str:
    return f"/opt/qcase/musl/{arch}/lib/{arch.musl_loader}"


EXPECTED: dict[str, Callable[[Arch], Elf]] = {
    "": lambda arch: Elf(MACHINE[arch], "ET_DYN", f"/lib/{arch.musl_loader}", ("libc.so",)),
    "-no-pie": lambda arch: Elf(MACHINE[arch], "ET_EXEC", f"/lib/{arch.musl_loader}", ("libc.so",)),
    "-static": lambda arch: Elf(MACHINE[arch], "ET_EXEC", "", ()),
    "-static-pie": lambda arch: Elf(MACHINE[arch], "ET_DYN", "", ()),
}


@pytest.mark.parametrize("mode", EXPECTED, ids=lambda mode: mode or "dynamic")
@pytest.mark.parametrize(("arch", "compiler"), BOTH)
def test_a_program_with_threads_and_kernel_headers(box: Box, arch: Arch, compiler: str, mode: str) -> None:
    name = f"threads-{arch}-{compiler}{mode}"
    said = box.ok(f"{arch}-linux-musl-{compiler} -O2 -Wall -Wextra -Werror -pthread {mode} /qcase/src/threads.c -o {name}")
    assert said == ""
    assert elf(box.build / name) == EXPECTED[mode](arch)
    if arch is Arch.X86_64:
        assert box.ok(f"{loader(arch) if elf(box.build / name).interpreter else ''} ./{name}") == "34 7 16 51.0\n"


@pytest.mark.parametrize("mode", ["", "-static", "-static-pie"], ids=lambda mode: mode or "dynamic")
@pytest.mark.parametrize(("arch", "compiler"), BOTH)
def test_the_stack_unwinds(box: Box, arch: Arch, compiler: str, mode: str) -> None:
    """libgcc_eh.a was made for glibc; here it gets by with musl."""
    name = f"unwind-{arch}-{compiler}{mode}"
    box.ok(f"{arch}-linux-musl-{compiler} -O1 -Wall -Werror -fexceptions {mode} /qcase/src/unwind.c -o {name}")
    assert elf(box.build / name).needed == EXPECTED[mode](arch).needed
    if arch is Arch.X86_64:
        assert box.ok(f"{'' if mode else loader(arch)} ./{name}") == "leaving 3\nend\n"


@pytest.mark.parametrize(("arch", "compiler"), BOTH)
def test_a_shared_library_and_its_user(box: Box, arch: Arch, compiler: str) -> None:
    cc, stem = f"{arch}-linux-musl-{compiler}", f"{arch}-{compiler}"
    box.ok(f"mkdir {stem}; cd {stem}; {cc} -Werror -shared -fPIC /qcase/src/library.c -o libanswer.so")
    box.ok(f"cd {stem}; echo 'int answer(void); int main(void) {{ return answer() != 42; }}' > user.c")
    box.ok(f"cd {stem}; {cc} -Wall -Werror user.c -L. -lanswer -o user")
    assert elf(box.build / stem / "libanswer.so") == Elf(MACHINE[arch], "ET_DYN", "", ("libc.so",))
    assert elf(box.build / stem / "user").needed in {("libanswer.so", "libc.so"), ("libanswer.so",)}
    if arch is Arch.X86_64:
        assert box.ok(f"cd {stem}; LD_LIBRARY_PATH=. {loader(arch)} ./user") == "from the library\n"


@pytest.mark.parametrize(("arch", "compiler"), BOTH)
def test_flags_are_honoured_without_a_word(box: Box, arch: Arch, compiler: str) -> None:
    cc = f"{arch}-linux-musl-{compiler} -Wall -Wextra -Werror"
    said = box.ok("".join(f"echo '# {flags}'; {cc} {flags} /qcase/src/library.c -o /tmp/out.o 2>&1\n" for flags in QUIET))
    assert said.splitlines() == [f"# {flags}" for flags in QUIET]
    box.ok(f"{cc} -nostdlib -static /qcase/src/start.c -o start-{arch}-{compiler}")
    assert elf(box.build / f"start-{arch}-{compiler}").needed == ()
    box.ok(f"{cc} /qcase/src/threads.c -lm -lpthread -ldl -lrt -lcrypt -lutil -lresolv -o /tmp/out")


@pytest.mark.parametrize(("arch", "compiler"), BOTH)
def test_hardened_and_optimised(box: Box, arch: Arch, compiler: str) -> None:
    cc = f"{arch}-linux-musl-{compiler} -Wall -Werror"
    for flags in ("-O2 -D_FORTIFY_SOURCE=2 -fstack-protector-all", "-O3 -flto", "-O2 -ffunction-sections -Wl,--gc-sections -g"):
        box.ok(f"{cc} {flags} -static-pie /qcase/src/hello.c -o hello-{arch}-{compiler}")
        if arch is Arch.X86_64:
            assert box.ok(f"./hello-{arch}-{compiler}").endswith("Jan  1 1970 00:00:01\n"), "SOURCE_DATE_EPOCH"


@pytest.mark.parametrize(("arch", "compiler"), BOTH)
def test_glibc_is_out_of_sight(box: Box, arch: Arch, compiler: str) -> None:
    cc = f"{arch}-linux-musl-{compiler}"
    status, said = box(f"{cc} -fsyntax-only /qcase/src/glibc.c")
    assert status != 0
    assert "gnu/libc-version.h" in said
    libraries = ("anl", "gcc_s", "mvec", "thread_db", "atomic", "LLVM")
    status, said = box(f"{cc} /qcase/src/hello.c {' '.join(f'-l{library}' for library in libraries)} -o /tmp/out")
    assert status != 0
    missed = re.findall(r"(?:cannot find|unable to find library) -l([\w+]+)", said)
    assert tuple(missed) == libraries, said


@pytest.mark.parametrize(("arch", "compiler"), BOTH)
def test_the_kernel_headers_are_of_the_architecture(box: Box, arch: Arch, compiler: str) -> None:
    text = box.ok(f"{arch}-linux-musl-{compiler} -E -P /qcase/src/syscall.c")
    assert text.splitlines()[-1] == f"int number = {202 if arch is Arch.X86_64 else 98};"


@pytest.mark.parametrize(("arch", "compiler"), BOTH)
def test_a_staging_root_goes_in_front_and_a_sysroot_can_be_replaced(box: Box, arch: Arch, compiler: str) -> None:
    cc, stage = f"{arch}-linux-musl-{compiler}", f"stage-{arch}-{compiler}"
    box.ok(f"mkdir -p {stage}/usr/include; echo '#define MINE \"staged\"' > {stage}/usr/include/stdio.h")
    box.ok(f"printf '#include <stdio.h>\\nconst char *text = MINE;\\n' > {stage}/use.c")
    box.ok(f"{cc} -Werror -isystem {stage}/usr/include -c {stage}/use.c -o /tmp/out.o")
    box.ok(f"{cc} -Werror --sysroot=$PWD/{stage} -c {stage}/use.c -o /tmp/out.o")
    status, said = box(f"{cc} --sysroot=$PWD/{stage} /qcase/src/start.c -o /tmp/out")
    assert status != 0, "the C library of another sysroot was linked"
    assert "crt1.o" in said


def test_binutils_and_what_else_the_pipelines_call(box: Box) -> None:
    for arch in Arch:
        prefix = f"{arch}-linux-musl"
        box.ok(f"{prefix}-gcc -c -g /qcase/src/library.c -o /tmp/l.o")
        box.ok(f"{prefix}-ar rcs /tmp/l.a /tmp/l.o; {prefix}-ranlib /tmp/l.a; {prefix}-nm /tmp/l.a | grep -q 'T answer'")
        box.ok(f"{prefix}-ld -r /tmp/l.o -o /tmp/m.o; {prefix}-readelf -h /tmp/m.o; {prefix}-objdump -d /tmp/m.o")
        box.ok(f"{prefix}-objcopy --only-keep-debug /tmp/l.o /tmp/d.o; {prefix}-strip /tmp/l.o; rm /tmp/l.a")
        box.ok(f"{prefix}-ld /tmp/m.o -e answer -lc -o ld-{arch}")
        assert elf(box.build / f"ld-{arch}").needed == ("libc.so",)
        box.ok(f"llvm-objcopy -O binary ld-{arch} /tmp/raw")
    for tool in ("cmake", "make", "pkg-config", "file", "patch", "clang", "ld.lld", "llvm-ar"):
        box.ok(f"{tool} --version")
    box.ok("PATH=$PATH:/usr/sbin:/sbin; debugfs -V; e2fsck -V; resize2fs /nowhere 2>&1 | grep -q resize2fs; mke2fs -V")


@pytest.mark.parametrize(("arch", "compiler"), BOTH)
def test_a_cmake_project(box: Box, arch: Arch, compiler: str) -> None:
    """Configure, build and install as the C pipeline does, with a package in the staging root."""
    cc, stem = f"{arch}-linux-musl-{compiler}", f"cmake-{arch}-{compiler}"
    staging = f"/qcase/build/{stem}/staging"
    folder = box.build / stem
    box.ok(f"mkdir -p {staging}/usr/include {staging}/usr/lib/pkgconfig {staging}/lib; chmod -R a+rwX {stem}")
    (folder / "toolchain.cmake").write_text(toolchain_file(arch, compiler, staging))
    (folder / "package.c").write_text("int from_package(void) { return 40; }\n")
    (folder / "staging/usr/include/package.h").write_text("int from_package(void);\n")
    (folder / "staging/usr/lib/pkgconfig/package.pc").write_text(
        "prefix=/usr\nName: package\nDescription: p\nVersion: 1\n"
        "Cflags: -I${prefix}/include -DPACKAGE=1\nLibs: -L${prefix}/lib -lpackage\n"
    )
    box.ok(f"{cc} -shared -fPIC {stem}/package.c -Wl,-soname,libpackage.so.1 -o {staging}/usr/lib/libpackage.so")
    box.ok(f"cp {staging}/usr/lib/libpackage.so {staging}/usr/lib/libpackage.so.1")
    box.ok(
        f"cmake -G 'Unix Makefiles' -S /qcase/src/project -B {stem}/build -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/ "
        f"-DCMAKE_TOOLCHAIN_FILE=/qcase/build/{stem}/toolchain.cmake"
    )
    box.ok(f"cmake --build {stem}/build --parallel 2; DESTDIR=/qcase/build/{stem}/overlay cmake --install {stem}/build")
    program, thing = elf(folder / "overlay/bin/program"), elf(folder / "overlay/lib/libthing.so")
    assert (program.machine, program.interpreter) == (MACHINE[arch], f"/lib/{arch.musl_loader}")
    assert "libthing.so" in program.needed
    assert thing.machine == MACHINE[arch]
    assert thing.needed[0] == "libpackage.so.1"
    if arch is Arch.X86_64:
        box.ok(f"LD_LIBRARY_PATH={stem}/overlay/lib:{staging}/usr/lib {loader(arch)} {stem}/overlay/bin/program")


@pytest.mark.parametrize("arch", Arch)
def test_a_cmake_project_that_asks_for_cpp_by_habit(box: Box, arch: Arch) -> None:
    stem = f"habit-{arch}"
    box.ok(f"mkdir {stem}; chmod a+rwx {stem}")
    (box.build / stem / "toolchain.cmake").write_text(toolchain_file(arch, "gcc", "/qcase/build"))
    box.ok(f"cmake -S /qcase/src/habit -B {stem}/build -DCMAKE_TOOLCHAIN_FILE=/qcase/build/{stem}/toolchain.cmake")
    box.ok(f"cmake --build {stem}/build")
    assert elf(box.build / stem / "build/habit").machine == MACHINE[arch]
    for compiler in ("c++", "g++", "clang++"):
        said = box.ok(f"echo '#include <vector>' | {arch}-linux-musl-{compiler} -H -fsyntax-only -x c++ - 2>&1")
        headers = {line.lstrip(". ") for line in said.splitlines() if line.startswith(".")}
        assert f"/opt/qcase/musl/{arch}/include/c++/14/vector" in headers
        assert not [header for header in headers if header.startswith("/usr/include/")], "headers of the machine that builds"


def toolchain_file(arch: Arch, compiler: str, staging: str) -> str:
    """What the C pipeline will generate. The wrappers know their sysroot, so CMAKE_SYSROOT stays unset."""
    return f"""
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR {arch})
set(CMAKE_C_COMPILER /usr/local/bin/{arch}-linux-musl-{compiler})
set(CMAKE_CXX_COMPILER /usr/local/bin/{arch}-linux-musl-c++)
set(CMAKE_C_FLAGS_INIT "-isystem {staging}/usr/include")
foreach(kind EXE SHARED MODULE)
  set(CMAKE_${{kind}}_LINKER_FLAGS_INIT
    "-L{staging}/usr/lib -L{staging}/lib -Wl,-rpath-link,{staging}/usr/lib:{staging}/lib")
endforeach()

set(CMAKE_FIND_ROOT_PATH {staging} /opt/qcase/musl/{arch})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

set(ENV{{PKG_CONFIG_PATH}} "")
set(ENV{{PKG_CONFIG_LIBDIR}} "{staging}/usr/lib/pkgconfig:{staging}/usr/share/pkgconfig:{staging}/usr/local/lib/pkgconfig")
set(ENV{{PKG_CONFIG_SYSROOT_DIR}} "{staging}")
"""


def test_the_list_of_packages_is_what_is_installed(box: Box) -> None:
    listed = box.ok("cat /opt/qcase/packages.txt").splitlines()
    installed = box.ok("dpkg-query -W -f '${Package} ${Architecture} ${Version}\\n'").splitlines()
    made = [line for line in listed if line.startswith(("musl-source all ", "libstdc++-source all "))]
    assert len(made) == 2
    assert listed == sorted(installed + made)


def test_nothing_of_the_build_is_left(box: Box) -> None:
    assert box.ok("ls -A /opt/qcase") == "gcc\nmusl\npackages.txt\n"
    assert box.ok("ls -A /var/lib/apt/lists /etc/apt/sources.list.d | grep -v : || true").strip() == ""
    assert not [line for line in box.ok("dpkg-query -W -f '${Package}\\n'").splitlines() if line in {"dpkg-dev", "perl"}]
    assert "deb-src" not in box.ok("cat /etc/apt/sources.list")
