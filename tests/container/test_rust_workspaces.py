"""Workspaces and crates of Rust as their authors build them."""

from __future__ import annotations

import pytest

from qcase.arch import Arch
from qcase.errors import BuildError
from tests.container.builds import Case

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

PACKAGE = '[package]\nname = "{}"\nversion = "0.1.0"\nedition = "2024"\n'


def test_a_workspace_that_names_default_members(case: Case) -> None:
    files = {"rust/Cargo.toml": '[workspace]\nresolver = "3"\nmembers = ["crates/*"]\ndefault-members = ["crates/guest"]\n'}
    for name, body in (("guest", "fn main() {}"), ("builder", 'compile_error!("not for the guest");')):
        files |= {f"rust/crates/{name}/Cargo.toml": PACKAGE.format(name), f"rust/crates/{name}/src/main.rs": body}
    assert [path.name for path in (case.build(files, Arch.AARCH64) / "usr/bin").iterdir()] == ["guest"]
    case.options = {"cargo_options": ("--package=builder",)}
    with pytest.raises(BuildError, match="cargo build"):
        case.build(files)


def test_tests_of_one_name_in_several_packages(case: Case) -> None:
    one = "#[test]\nfn passes() {}\n"
    files = {"rust/Cargo.toml": '[workspace]\nresolver = "3"\nmembers = ["crates/*"]\n'}
    for name in ("left", "right"):
        files |= {f"rust/crates/{name}-er/{path}": one for path in ("src/lib.rs", "all of it.rs", f"tests/{name}.rs")}
        files[f"rust/crates/{name}-er/Cargo.toml"] = PACKAGE.format(name) + '[[test]]\nname = "all"\npath = "all of it.rs"\n'
    case.cargo = "test"
    programs = sorted(path.name for path in (case.build(files, Arch.AARCH64) / "usr/bin").iterdir())
    assert programs == ["left", "left-all", "left-lib-tests", "right", "right-all", "right-lib-tests"]


def test_a_case_that_asks_for_rusts_own_musl_gets_that_of_the_image(case: Case) -> None:
    flags = '["-C", "target-feature=+crt-static", "-C", "link-self-contained=yes", "--cfg", "asked"]'
    config = f"[target.x86_64-unknown-linux-musl]\nrustflags = {flags}\n"
    body = '#[cfg(not(asked))]\ncompile_error!("no flag");\nfn main() {}\n'
    case.build({"rust/Cargo.toml": PACKAGE.format("own"), "rust/src/main.rs": body, "rust/.cargo/config.toml": config})


@pytest.mark.parametrize(
    ("manifest", "body"),
    [('rust-version = "1.999"\n', ""), ("", "#![feature(never_type)]\n")],
    ids=["rust-version", "feature"],
)
def test_a_crate_for_a_newer_rust_is_told_where_that_comes_from(manifest: str, body: str, case: Case) -> None:
    with pytest.raises(BuildError) as caught:
        case.build({"rust/Cargo.toml": PACKAGE.format("new") + manifest, "rust/src/main.rs": f"{body}fn main() {{}}\n"})
    assert "[toolchain.rust] image in qcase.toml" in caught.value.hint
