"""The flake, by a real `nix`: every file parses, every output is evaluated and built, and what it makes runs a case.

Nixpkgs itself cannot be had without a network: `tests/nix/nixpkgs` stands in for it, with the same functions, and with packages
made of this machine's programs. What that does not show stands in docs/installing.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcase import __version__
from qcase.arch import Arch
from qcase.vm import firmware
from tests.conftest import ROOT
from tests.vm.workspaces import provide

pytestmark = pytest.mark.vm

STAND_IN = ROOT / "tests" / "nix" / "nixpkgs"
SYSTEMS = ("x86_64-linux", "aarch64-linux")
OUTPUTS = {
    "packages": {"qcase", "default"},
    "apps": {"qcase", "default"},
    "devShells": {"default"},
    "checks": {"package", "version", "examples"},
}
CONFIGURATION = """
experimental-features = nix-command flakes
build-users-group =
sandbox = false
substitute = false
"""


def dependencies() -> set[str]:
    """The Python packages that qcase and its build need, as PyPI names them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    required = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    return {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace(".", "-") for requirement in required}


@dataclass(frozen=True)
class Nix:
    """A Nix with a store of its own, and a copy of this tree with one commit."""

    checkout: Path
    nixpkgs: Path
    environment: dict[str, str]
    pinned: dict[str, str]

    def __call__(self, *argv: str, cwd: Path | None = None) -> str:
        done = subprocess.run(argv, cwd=cwd or self.checkout, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def nix(tmp_path_factory: pytest.TempPathFactory) -> Nix:
    place = tmp_path_factory.mktemp("nix")
    (place / "conf").mkdir()
    (place / "conf" / "nix.conf").write_text(CONFIGURATION)
    folders = {f"NIX_{name}_DIR": str(place / name.lower()) for name in ("STORE", "STATE", "LOG", "CONF")}
    environment = {"PATH": os.environ["PATH"], "HOME": str(place), "NIX_LOCALSTATE_DIR": str(place / "state"), **folders}
    shutil.copytree(STAND_IN, place / "nixpkgs")
    packages = ":".join(path for path in sys.path if path.endswith("site-packages"))
    names = " ".join(json.dumps(name) for name in sorted(dependencies()))
    (place / "nixpkgs" / "host.nix").write_text(
        f"{{ python = {json.dumps(sys.executable)}; pythonPath = {json.dumps(packages)}; pythonPackages = [ {names} ]; }}\n"
    )
    checkout = place / "checkout"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    found = Nix(checkout, place / "nixpkgs", environment, {})
    found("git", "init", "-q")
    found("git", "add", "-A")
    found.pinned.update(json.loads(found("nix", "flake", "metadata", "--json"))["locks"]["nodes"]["nixpkgs"]["locked"])
    # The stand-in is locked in the copy, and not only given on each command line: else this Nix has no revision for us.
    found("nix", "flake", "lock", "--override-input", "nixpkgs", f"path:{found.nixpkgs}")
    found("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "-a", "-m", "all")
    return found


def test_every_file_parses(nix: Nix) -> None:
    files = sorted(path for path in nix.checkout.rglob("*.nix"))
    assert len(files) >= 7
    for path in files:
        nix("nix-instantiate", "--parse", str(path))


def test_nixpkgs_is_pinned(nix: Nix) -> None:
    assert (nix.pinned["owner"], nix.pinned["repo"]) == ("NixOS", "nixpkgs")
    assert nix.pinned["rev"] == "241313f4e8e508cb9b13278c2b0fa25b9ca27163"
    assert nix.pinned["narHash"] == "sha256-vlHUuqAcbcH2RKmHbPiuQzbv1pnzzavXnI62RD0bqCU="


def test_every_output_is_evaluated_for_both_systems(nix: Nix) -> None:
    shown = json.loads(nix("nix", "flake", "show", "--json"))
    assert {kind: {system: set(found) for system, found in systems.items()} for kind, systems in shown.items()} == {
        kind: dict.fromkeys(SYSTEMS, names) for kind, names in OUTPUTS.items()
    }
    for system in SYSTEMS:
        for kind in ("packages", "devShells", "checks"):
            for name in OUTPUTS[kind]:
                assert nix("nix", "eval", "--raw", f".#{kind}.{system}.{name}.drvPath").endswith(".drv")
        for name in OUTPUTS["apps"]:
            assert nix("nix", "eval", "--raw", f".#apps.{system}.{name}.program").endswith("/bin/qcase")


def test_the_checks_pass(nix: Nix) -> None:
    nix("nix", "flake", "check")
    nix("nix", "build", ".#devShells.x86_64-linux.default", "--no-link")


def test_the_program_says_version_and_commit(nix: Nix) -> None:
    commit = nix("git", "rev-parse", "HEAD")[:12]
    assert nix("nix", "run", ".#qcase", "--", "--version") == f"qcase {__version__} (commit {commit})\n"


def test_a_plain_case_runs_with_the_packages_own_qemu(nix: Nix, test_cache: Path, tmp_path: Path) -> None:
    """Without an engine, and with a PATH on which there is no QEMU."""
    provide(test_cache)
    examples = tmp_path / "linux"
    shutil.copytree(ROOT / "examples" / "linux", examples, ignore=shutil.ignore_patterns("target"))
    arguments = ("--cache-dir", str(test_cache), "--arch", "aarch64", "--json", str(tmp_path / "results.json"), "smoke")
    said = nix("nix", "run", f"{nix.checkout}#qcase", "--", "run", *arguments, cwd=examples)
    assert "1 passed" in said
    (case,) = json.loads((tmp_path / "results.json").read_text())["cases"]
    assert case["verdict"] == "pass"
    (script,) = examples.glob("target/qcase/logs/aarch64/*/smoke/qemu.sh")
    assert "qemu-system-aarch64" in script.read_text()
    program = nix("nix", "eval", "--raw", ".#apps.x86_64-linux.qcase.program")
    wrapper = Path(program).read_text()
    assert re.search(r"^PATH='\S+-qemu/bin:\S+-mmdebstrap/bin'", wrapper, re.MULTILINE)
    (keyring,) = re.findall(r"^QCASE_DEBIAN_KEYRING=\$\{QCASE_DEBIAN_KEYRING-'([^']+)'\}", wrapper, re.MULTILINE)
    assert Path(keyring).read_bytes() == Path("/usr/share/keyrings/debian-archive-keyring.gpg").read_bytes()
    (folders,) = re.findall(r"^QCASE_FIRMWARE_PATH=\$\{QCASE_FIRMWARE_PATH-'([^']+)'\}", wrapper, re.MULTILINE)
    found = firmware.find(Arch.X86_64, {}, firmware.search_path({"QCASE_FIRMWARE_PATH": folders})[2:3])
    assert found.code.name == "OVMF_CODE.fd"
    assert found.variables is not None


def test_the_commands_of_the_docs_are_those_that_run_here() -> None:
    text = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    documented = {line for line in text.splitlines() if line.startswith("nix ")}
    # The shell is built above; entering it takes nixpkgs' own builder.
    assert documented == {"nix run .#qcase -- --version", "nix run .#qcase -- run smoke", "nix flake check", "nix develop"}
