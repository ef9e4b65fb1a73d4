"""Our own kernel under every verdict, on three architectures, as whole runs of the program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qcase.model import Arch
from tests import kernel
from tests.vm import workspaces
from tests.vm.workspaces import Outcome

pytestmark = pytest.mark.vm

EXPECTED = {
    "passes": "pass",
    "boots": "pass",
    "fails": "fail",
    "panics": "panic",
    "hangs": "timeout",
    "never-prompts": "timeout",
    "powers-off": "exited",
    "floods": "pass",
    "garbles": "pass",
}


@pytest.fixture(scope="module", params=kernel.ARCHES)
def outcome(request: pytest.FixtureRequest, kernels: Mapping[Arch, Path], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    arch = request.param
    made = kernel.workspace(tmp_path_factory.mktemp("kernel") / "w", kernels)

    def case(name: str, command: str | None, **keys: Any) -> None:
        kernel.case(made, name, command, arch=arch, **{"fail_regex": ["^FAIL"], **keys})

    case("passes", "pass")
    case("boots", None, success_regex=[rf"qcase test kernel on {arch}$"])
    case("fails", "fail")
    case("panics", "panic")
    case("hangs", "say begun ; hang", timeout=3)
    case("never-prompts", "pass", shell_prefix="other>", timeout=3)
    case("powers-off", "off")
    case("floods", "flood 512 ; pass")
    case("garbles", "garble 64 ; pass")
    return workspaces.run(made, store=tmp_path_factory.mktemp("kernel-store"), arch=arch)


def test_every_verdict(outcome: Outcome) -> None:
    assert outcome.verdicts == EXPECTED
    assert outcome.exit_code == 1


def test_it_boots_at_once(outcome: Outcome) -> None:
    """What many tests rest on; the limit is generous, the machine may be busy."""
    assert outcome.case("passes")["times"]["boot"] < 3
