"""Kernels that are built in a toolchain image, raw binaries of them for all four architectures, and packages that do not come."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config.workspace_file import KernelBuild
from qcase.containers.engine import Engine
from qcase.errors import InfraError, KernelError
from qcase.guests import debian, kernel_files
from qcase.guests.kernel_build import Builder, Group, Tools
from qcase.inputs import ingredients
from qcase.suite.cases import Workspace
from qcase.toolchains import base as base_module
from qcase.toolchains.records import Image

pytestmark = pytest.mark.container

BUILD = """
echo ${workspace} $PWD ${build_config} $GREETING
mkdir -p out
printf '.globl _start\\n.section .text\\n_start: .byte 0x71, 0x63, 0x61, 0x73, 0x65\\n' >out/start.s
clang --target=${arch}-linux-gnu -nostdlib -static -fuse-ld=lld -Wl,-Ttext=0x200000 -o out/kernel-${arch} out/start.s
"""


@pytest.fixture
def tools(tmp_path: Path, shared_engine: Engine, toolchain_c: Image) -> Tools:
    (tmp_path / "build-none.toml").touch()
    return Tools(tmp_path, {"GREETING": "the host's"}, lambda: shared_engine, lambda name: {"c": toolchain_c.id}[name])


def quiet(_: str) -> None:
    """Somebody who does not listen."""


@pytest.mark.parametrize("arch", list(Arch))
def test_a_kernel_is_built_in_a_toolchain_image_and_made_a_raw_binary(arch: Arch, tools: Tools, tmp_path: Path) -> None:
    recipe = KernelBuild(build=BUILD, output="out/kernel-${arch}", env={"GREETING": "${build_group}"}, where="c")
    group = Group("g", tmp_path / "build-none.toml", arch, "none")
    kernel = Builder(recipe, tools).kernel(group, quiet, quiet)
    said = (tmp_path / f"target/qcase/logs/{arch}/g/kernel.log").read_text()
    assert said == "/qcase/workspace /qcase/workspace /qcase/workspace/build-none.toml g\n"
    assert kernel_files.built_for(kernel.path.read_bytes()[:64]) == (arch.value,)
    raw = kernel_files.raw_name(kernel, kernel_files.folder(tmp_path), "identity")
    kernel_files.to_raw(kernel, raw, tools.engine(), tools.image("c"), "normal/one")
    assert raw.read_bytes()[:5] == b"qcase"


def test_the_build_of_a_stranger_leaves_the_repository_alone(tools: Tools, tmp_path: Path) -> None:
    """Git would run on the host what is put into its hooks."""
    (tmp_path / ".git/hooks").mkdir(parents=True)
    hook = "sh -c 'echo touch pwned >.git/hooks/post-checkout'"
    recipe = KernelBuild(build=f"{hook} || echo refused; {BUILD}", output="out/kernel-${arch}", env={"GREETING": "x"}, where="c")
    kernel = Builder(recipe, replace(tools, strangers=True)).kernel(
        Group("g", tmp_path / "build-none.toml", Arch.AARCH64, "none"), quiet, quiet
    )
    assert kernel_files.built_for(kernel.path.read_bytes()[:64]) == ("aarch64",)
    assert "refused" in (tmp_path / "target/qcase/logs/aarch64/g/kernel.log").read_text()
    assert not list((tmp_path / ".git/hooks").iterdir())


def test_what_the_build_of_a_stranger_leaves_is_in_the_workspace(tools: Tools, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "secret").write_bytes(b"\x7fELF")
    recipe = KernelBuild(build="ln -s ../secret kernel", output="kernel", where="c")
    with pytest.raises(KernelError, match="left kernel, which is outside of the workspace"):
        Builder(recipe, replace(tools, workspace=tmp_path / "w", strangers=True)).kernel(
            Group("g", None, Arch.AARCH64, "none"), quiet, quiet
        )


RUST_BUILD = "cargo rustc --release --offline --target ${arch}-unknown-linux-musl -- -C linker=ld.lld -C link-self-contained=no"
RUST_MAIN = """
#![no_std]
#![no_main]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }
#[no_mangle]
pub extern "C" fn _start() -> ! { loop {} }
"""


def test_a_rust_kernel_is_built_in_the_rust_image(shared_engine: Engine, toolchain_rust: Image, tmp_path: Path) -> None:
    tools = Tools(tmp_path, {}, lambda: shared_engine, lambda name: {"rust": toolchain_rust.id}[name])
    (tmp_path / "src").mkdir()
    (tmp_path / "src/main.rs").write_text(RUST_MAIN)
    (tmp_path / "Cargo.toml").write_text(
        '[package]\nname = "kernel"\nversion = "0.1.0"\nedition = "2021"\n[profile.release]\npanic = "abort"\n'
    )
    recipe = KernelBuild(build=RUST_BUILD, output="target/${arch}-unknown-linux-musl/release/kernel", where="rust")
    kernel = Builder(recipe, tools).kernel(Group("g", None, Arch.AARCH64, "none"), quiet, quiet)
    assert kernel_files.built_for(kernel.path.read_bytes()[:64]) == ("aarch64",)
    assert (tmp_path / "target/aarch64-unknown-linux-musl").stat().st_uid == tmp_path.stat().st_uid


def test_a_build_in_an_image_that_fails_and_what_is_no_elf(tools: Tools, tmp_path: Path) -> None:
    group = Group("g", None, Arch.AARCH64, "none")
    recipe = KernelBuild(build="echo no such crate >&2; exit 3", output="k", where="c")
    with pytest.raises(KernelError, match="the kernel of g: its build ended with status 3") as caught:
        Builder(recipe, tools).kernel(group, quiet, quiet)
    assert "no such crate" in caught.value.log
    (tmp_path / "script").write_text("#!/bin/sh\n")
    kernel = kernel_files.of_file(tmp_path / "script", Arch.AARCH64, "--kernel")
    with pytest.raises(KernelError, match=r"to_bin makes a raw binary of an ELF file, and .*script is none"):
        kernel_files.to_raw(kernel, tmp_path / "raw", tools.engine(), tools.image("c"), "normal/one")


def test_a_mirror_that_does_not_answer_is_named(shared_engine: Engine, test_cache: Path, tmp_path: Path) -> None:
    base = base_module.base(shared_engine, test_cache)
    mirror = "http://127.0.0.1:9"  # of the container: nobody is there
    with pytest.raises(InfraError) as caught:
        debian.fetch(
            debian.RELEASES[Arch.RISCV64], tmp_path, shared_engine, base, mirror, {"QCASE_DEBIAN_SNAPSHOT": "off"}, lambda _: None
        )
    assert caught.value.where.startswith(f"{mirror}/pool/main/l/linux/linux-image-")
    assert re.match(r"cannot be fetched: (Unable|Could not) .*connect to 127\.0\.0\.1:9", caught.value.what)
    assert list(tmp_path.glob("*.deb")) == []


PLANT = """
cd /qcase/workspace
try() { if "$@" 2>/dev/null; then echo "could: $*"; fi; }
try mv suite aside
try mv suite/normal/one/sh suite/normal/one/gone
try ln -s SECRET suite/normal/one/sh/link
try sh -c 'echo x >>suite/normal/one/sh/run'
try mv images aside2
try mv images/root.img images/gone
try sh -c 'echo x >images/root.img'
try sh -c 'echo x >qcase.toml'
try rm qcase.toml
try mkdir -p suite/normal/one/.git
try ln -s SECRET target/qcase/kernels
try mv target elsewhere
echo here >free
mkdir -p images/more target/out
"""


def test_the_build_of_a_stranger_leaves_alone_what_qcase_reads(tools: Tools, tmp_path: Path) -> None:
    """A link to a file of the host in the place of sources or of a disk would have that read when the kernel is built."""
    (tmp_path / "suite/normal/one/sh").mkdir(parents=True)
    (tmp_path / "suite/normal/one/sh/run").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/root.img").touch()
    (tmp_path / "qcase.toml").write_text('[suite]\nroot = "suite"\n[guest.aarch64]\nrootfs = "images/root.img"\n')
    closed = ingredients.closed(Workspace.open(tmp_path), Arch.AARCH64)
    recipe = KernelBuild(build=PLANT + BUILD, output="out/kernel-${arch}", env={"GREETING": "x"}, where="c")
    stranger = replace(tools, strangers=True, closed=lambda: closed)
    kernel = Builder(recipe, stranger).kernel(Group("g", tmp_path / "build-none.toml", Arch.AARCH64, "none"), quiet, quiet)
    assert kernel_files.built_for(kernel.path.read_bytes()[:64]) == ("aarch64",)
    assert "could" not in (tmp_path / "target/qcase/logs/aarch64/g/kernel.log").read_text()
    assert (tmp_path / "free").read_text() == "here\n"
    assert (tmp_path / "images/more").is_dir()
