"""`[toolchain.rust] image` with rustup's toolchains: rustup's own `cargo` and `rustc`, and Rust that links by itself.

The image is laid out as the one that Rust's project publishes: rustup below /usr/local/cargo, toolchains below
/usr/local/rustup. rustup is Debian's; the toolchain that it runs is Debian's too, given what rustup's targets bring and Debian's
do not: `rust-lld`, and the musl that Rust links by itself. Our C compilers for musl are not there.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.containers.engine import Engine
from qcase.containers.step import Step
from qcase.toolchains.records import Image
from tests.container.builds import Case
from tests.container.test_rust import (
    WORKSPACE,
    Registry,
    check_programs,
    host_address,
    lock,
    mirrored,
    registry,
    run_program,
    uses,
)

__all__ = ["host_address", "mirrored", "registry"]  # fixtures, with the image of this module

pytestmark = [pytest.mark.container, pytest.mark.timeout(1200)]

DOCKERFILE = r"""
FROM {rust}
RUN apt-get update -q --error-on=any \
 && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends libcurl4t64 \
 && cd /tmp && apt-get download rustup && dpkg-deb -x rustup_*.deb /tmp/rustup \
 && mkdir -p /usr/local/cargo/bin && cp -a /tmp/rustup/usr/bin/. /usr/local/cargo/bin/ \
 && rm -rf /tmp/rustup* /var/lib/apt/lists/*
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo
ENV PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN rustup toolchain link debian /usr && rustup default debian && chmod -R a+rX /usr/local/rustup \
 && mkdir /usr/lib/rustlib/x86_64-unknown-linux-gnu/bin \
 && ln -s /usr/bin/lld /usr/lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld \
 && for arch in x86_64 aarch64 riscv64 loongarch64; do \
        target=$arch-unknown-linux-musl; [ $arch != riscv64 ] || target=riscv64gc-unknown-linux-musl; \
        into=/usr/lib/rustlib/$target/lib/self-contained; mkdir $into; \
        cp /opt/qcase/musl/$arch/lib/*.o /opt/qcase/musl/$arch/lib/libc.a $into/; \
        cp /opt/qcase/gcc/$arch/lib/gcc/$arch-linux-musl/*/crt*.o $into/; \
        mv /usr/lib/rustlib/$target/lib/libunwind.a $into/; \
    done \
 && rm -r /usr/local/bin/*-linux-musl-* /opt/qcase
"""


@pytest.fixture(scope="module")
def toolchain_rustup(shared_engine: Engine, toolchain_rust: Image) -> str:
    """The image's id."""
    dockerfile = io.BytesIO(DOCKERFILE.replace("{rust}", toolchain_rust.id).encode())
    api = shared_engine.api
    said = list(api.build(fileobj=dockerfile, tag="qcase/rustup:tests", rm=True, forcerm=True, decode=True))
    assert not [line for line in said if "error" in line], said[-5:]
    made = shared_engine.image_id("qcase/rustup:tests")
    assert made is not None
    return made


@pytest.fixture
def case(tmp_path: Path, shared_engine: Engine, toolchain_c: Image, toolchain_rustup: str) -> Case:
    return Case(tmp_path / "case", shared_engine, {"c": toolchain_c.id, "rust": toolchain_rustup}, {"HOME": str(tmp_path)})


def test_cargo_and_rustc_are_rustups_and_our_compilers_are_not_there(shared_engine: Engine, toolchain_rustup: str) -> None:
    script = "[ ! -e /opt/qcase ]; command -v cargo; command -v rustc; readlink -f $(command -v cargo)"
    script += "; rustup show active-toolchain"
    said = shared_engine.check(Step(image=toolchain_rustup, argv=("sh", "-ec", script), timeout=60, name="who")).output
    expected = ["/usr/local/cargo/bin/cargo", "/usr/local/cargo/bin/rustc", "/usr/local/cargo/bin/rustup"]
    assert [line for line in said.splitlines() if line.startswith("/usr")] == expected
    assert "debian" in said


@pytest.mark.parametrize("arch", list(Arch))
def test_rust_links_by_itself_for_every_architecture(arch: Arch, case: Case) -> None:
    check_programs(case.build(WORKSPACE, arch), arch)


def test_crates_are_fetched_with_a_network_and_built_without(mirrored: Case, registry: Registry) -> None:
    # The build script is a program of the machine that builds, and is linked by the image's own compiler.
    script = {"rust/build.rs": 'fn main() { println!("cargo:rustc-env=MADE=by a build script"); }\n'}
    main = {"rust/src/main.rs": 'fn main() { println!("{}, {}", tiny::text(), env!("MADE")); }\n'}
    for offline in (False, True):
        mirrored.offline = offline
        overlay = mirrored.build({**uses("tiny", lock=lock()), **script, **main})
        assert run_program(overlay / "usr/bin/user", Arch.X86_64) == "from the registry, by a build script\n"
    assert ("/crates/tiny", True) in registry.asked
