"""Crates of crates.io in two guests: `bindgen`, `cc` and `pkg-config` around C of the staging root, and `proc-macro2`."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.containers.engine import Engine
from qcase.toolchains import images
from qcase.toolchains.records import Image
from tests import packages
from tests.conftest import ROOT
from tests.packages import more
from tests.vm import workspaces
from tests.vm.workspaces import Workspace, run

pytestmark = [pytest.mark.vm, pytest.mark.container, pytest.mark.timeout(900)]


def sources(name: str) -> dict[str, str]:
    """One of the crates beside this file: what it needs comes from crates.io, by its Cargo.lock."""
    folder = ROOT / "tests" / "vm" / name
    return {f"rust/{path.relative_to(folder)}": path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def config(repository: packages.Repository, shared_engine: Engine, toolchain_c: Image, tmp_path: Path, test_cache: Path) -> str:
    """Packages of the tests, and a static library in a second repository."""
    alpine = images.ensure("alpine", shared_engine, test_cache)
    for arch in packages.ARCHITECTURES:
        more.make(tmp_path / "more", arch, repository, shared_engine, toolchain_c.id, alpine.id)
    return repository.config.replace('repositories = ["', f'repositories = ["{tmp_path / "more"}", "')


@pytest.mark.usefixtures("toolchain_rust")
def test_bindgen_cc_and_pkg_config(config: str, tmp_path: Path, test_cache: Path) -> None:
    made = Workspace.make(tmp_path / "w", config)
    for arch in (Arch.X86_64, Arch.AARCH64):
        asked = {"packages": ["tally-dev", "tally-static"]}
        made.case("counts", sources("counts"), arch=arch, shell_init_cmd="counts", success_regex=["^82 true 6$"], qcase=asked)
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    outcome = run(made, "--arch", "x86_64", "--arch", "aarch64", store=store, arch=None)
    assert outcome.report is not None, outcome.said
    found = {case["arch"]: case["verdict"] for case in outcome.report["cases"]}
    assert found == {"x86_64": "pass", "aarch64": "pass"}, outcome.said


@pytest.mark.usefixtures("toolchain_rust")
def test_a_program_that_parses_rust(tmp_path: Path, test_cache: Path) -> None:
    """It links `proc_macro` for the guest, which the standard library of the image has to bring."""
    made = Workspace.make(tmp_path / "w")
    for arch in (Arch.X86_64, Arch.AARCH64):
        made.case("tokens", sources("tokens"), arch=arch, shell_init_cmd="tokens", success_regex=[r"^3 a \+ b$"])
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    outcome = run(made, "--arch", "x86_64", "--arch", "aarch64", store=store, arch=None)
    assert outcome.report is not None, outcome.said
    found = {case["arch"]: case["verdict"] for case in outcome.report["cases"]}
    assert found == {"x86_64": "pass", "aarch64": "pass"}, outcome.said
