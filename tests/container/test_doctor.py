"""What `qcase doctor` says of the engine and the images that are here."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.cli import doctor
from qcase.cli.doctor_lines import State
from qcase.toolchains.records import Image
from tests.conftest import ROOT

pytestmark = pytest.mark.container


def test_what_is_here_is_well(toolchain_c: Image, test_cache: Path) -> None:
    lines = {line.what: line for line in doctor.examine(ROOT / "examples" / "linux", Arch.X86_64, test_cache)}
    for what in ("engine", "image c", "step"):
        assert lines[what].state is State.GOOD, lines[what]
    assert f"{len(toolchain_c.packages)} packages" in lines["image c"].says
    assert doctor.works(list(lines.values())), lines
    assert ("registries" in lines) == (lines["guest x86_64"].state is State.GOOD)


def test_an_image_that_is_not_built_yet_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcase.toolchains import images, recipes

    for module in (images, recipes):
        monkeypatch.setattr(module, "recipe_digest", lambda *_: "0" * 64)
    lines = {line.what: line for line in doctor.examine(ROOT / "examples" / "linux", Arch.X86_64, tmp_path)}
    assert lines["image c"].state is State.WARNING
    assert "qcase images build c" in lines["image c"].hint
    assert lines["base"].state is State.GOOD
    assert "step" not in lines
