"""New cases from templates."""

from __future__ import annotations

import pytest

from qcase.arch import Arch
from qcase.errors import UsageError
from qcase.inputs import new_case
from qcase.model import Pipeline


def test_a_kernel_that_the_template_has_no_code_for_is_refused() -> None:
    """Its build script would refuse the architecture, at the first run."""
    with pytest.raises(UsageError, match="has no kernel for loongarch64") as caught:
        new_case.plan_case("boot", Pipeline.KTEST, {Arch.X86_64: "#", Arch.LOONGARCH64: "#"})
    assert "--arch x86_64 --arch aarch64 --arch riscv64" in caught.value.hint
    assert "kernel/build.sh" in new_case.plan_case("boot", Pipeline.KTEST, {Arch.RISCV64: "#"})
