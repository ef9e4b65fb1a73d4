"""What an overlay's programs need, told from real ELF files of the toolchain image."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.containers.engine import Engine
from qcase.containers.step import Mount, Step
from qcase.errors import BuildError
from qcase.host import process
from qcase.host.trees import Tree
from qcase.pipelines import elf_libraries
from qcase.toolchains.records import Image

pytestmark = pytest.mark.container

PROGRAM = """
cd /qcase/build
for name in there gone; do
    echo "int $name(void) { return 1; }" >$name.c
    x86_64-linux-musl-gcc -shared -o lib$name.so -Wl,-soname,lib$name.so.1 $name.c
done
echo 'int main(void) { return 0; }' >empty.c
echo 'int there(void), gone(void); int main(void) { return there() + gone(); }' >two.c
x86_64-linux-musl-gcc -static -o static empty.c
x86_64-linux-musl-gcc -o dynamic empty.c
x86_64-linux-musl-gcc -o two two.c -L. -lthere -lgone
x86_64-linux-musl-gcc -o rpath two.c -L. -lthere -lgone -Wl,-rpath,'$ORIGIN/../own'
x86_64-linux-musl-gcc -shared -o libuser.so -Wl,-soname,libuser.so.1 there.c -L. -Wl,--no-as-needed -lgone
x86_64-linux-musl-gcc -o through empty.c -L. -Wl,--no-as-needed -luser -Wl,-rpath,'$ORIGIN/../own' -Wl,-rpath-link,.
x86_64-linux-musl-gcc -o glibc empty.c -Wl,--dynamic-linker=/lib64/ld-linux-x86-64.so.2
aarch64-linux-musl-gcc -static -o foreign empty.c
riscv64-linux-musl-gcc -o riscv empty.c
cp /opt/qcase/musl/riscv64/lib/libc.so libc.so
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, shared_engine: Engine, toolchain_c: Image) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    shared_engine.check(
        Step(
            image=toolchain_c.id,
            argv=("sh", "-euc", PROGRAM),
            mounts=(Mount(folder, "/qcase/build", False),),
            workdir="/qcase/build",
            timeout=120,
            name="compile",
        )
    )
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest with a musl loader and one library."""
    folder = tmp_path_factory.mktemp("base")
    for name in ("lib/ld-musl-x86_64.so.1", "usr/lib/libthere.so.1"):
        (folder / "root" / name).parent.mkdir(parents=True)
        (folder / "root" / name).write_bytes(b"")
    process.run(["mke2fs", "-q", "-t", "ext4", "-d", str(folder / "root"), str(folder / "base.img"), "8M"])
    return folder / "base.img"


def overlay_of(program: Path, tmp_path: Path) -> Path:
    overlay = tmp_path / "overlay"
    (overlay / "usr" / "bin").mkdir(parents=True)
    shutil.copy(program, overlay / "usr" / "bin" / "x")
    return overlay


@pytest.mark.parametrize("name", ["static", "dynamic"])
def test_a_program_that_the_guest_can_load_needs_nothing(name: str, programs: Path, base: Path, tmp_path: Path) -> None:
    elf_libraries.complete(Tree(overlay_of(programs / name, tmp_path)), base, Arch.X86_64, "normal/x")


def test_a_library_that_the_guest_has_is_found_and_a_missing_one_is_reported(programs: Path, base: Path, tmp_path: Path) -> None:
    overlay = overlay_of(programs / "two", tmp_path)
    with pytest.raises(BuildError) as caught:
        elf_libraries.complete(Tree(overlay), base, Arch.X86_64, "normal/x")
    assert caught.value.what == "usr/bin/x needs libgone.so.1, which neither its overlay nor the guest has"
    (overlay / "usr" / "lib").mkdir()
    (overlay / "usr" / "lib" / "libgone.so.1").symlink_to("libgone.so.1.0")
    elf_libraries.complete(Tree(overlay), base, Arch.X86_64, "normal/x")


def test_a_library_beside_the_program_is_found_through_its_run_path(programs: Path, base: Path, tmp_path: Path) -> None:
    overlay = overlay_of(programs / "rpath", tmp_path)
    (overlay / "usr" / "own").mkdir()
    shutil.copy(programs / "libgone.so", overlay / "usr" / "own" / "libgone.so.1")
    elf_libraries.complete(Tree(overlay), base, Arch.X86_64, "normal/x")


def test_a_library_of_a_library_is_found_through_the_programs_run_path(programs: Path, base: Path, tmp_path: Path) -> None:
    """As musl's loader does it."""
    overlay = overlay_of(programs / "through", tmp_path)
    (overlay / "usr" / "own").mkdir()
    shutil.copy(programs / "libuser.so", overlay / "usr" / "own" / "libuser.so.1")
    with pytest.raises(BuildError, match=r"libuser\.so\.1 needs libgone\.so\.1, which neither"):
        elf_libraries.complete(Tree(overlay), base, Arch.X86_64, "normal/x")
    shutil.copy(programs / "libgone.so", overlay / "usr" / "own" / "libgone.so.1")
    elf_libraries.complete(Tree(overlay), base, Arch.X86_64, "normal/x")


def test_a_program_for_another_libc_is_told(programs: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"needs the loader /lib64/ld-linux-x86-64\.so\.2, which the guest does not have"):
        elf_libraries.complete(Tree(overlay_of(programs / "glibc", tmp_path)), base, Arch.X86_64, "normal/x")


def test_a_program_for_another_architecture_is_told(programs: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="another architecture than x86_64: usr/bin/x is for AARCH64"):
        elf_libraries.complete(Tree(overlay_of(programs / "foreign", tmp_path)), base, Arch.X86_64, "normal/x")


def test_musl_goes_along_to_a_guest_that_has_none(programs: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    shutil.copy(programs / "riscv", tmp_path / "usr/bin/riscv")
    with pytest.raises(BuildError, match=r"usr/bin/riscv needs the loader /lib/ld-musl-riscv64\.so\.1"):
        elf_libraries.complete(Tree(tmp_path), base, Arch.RISCV64, "case")
    elf_libraries.complete(Tree(tmp_path), base, Arch.RISCV64, "case", toolchain=Tree(programs))
    loader = tmp_path / "lib/ld-musl-riscv64.so.1"
    assert loader.read_bytes() == (programs / "libc.so").read_bytes()
    assert loader.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "lib/libc.musl-riscv64.so.1").readlink() == Path(loader.name)
    assert (tmp_path / "etc/ld-musl-riscv64.path").is_file()


def test_musl_does_not_go_to_a_guest_that_has_it(programs: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    shutil.copy(programs / "dynamic", tmp_path / "usr/bin/dynamic")
    elf_libraries.complete(Tree(tmp_path), base, Arch.X86_64, "case", toolchain=Tree(programs))
    assert not (tmp_path / "lib").exists()
