"""Which flags cargo would take for a target."""

from __future__ import annotations

import pytest

from qcase.arch import Arch
from qcase.crates import manifests
from qcase.pipelines import rust_flags

TRIPLE = "aarch64-unknown-linux-musl"


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("unix", True),
        ("windows", False),
        ('target_arch = "aarch64"', True),
        ('target_arch="x86_64"', False),
        ('target_env = "musl"', True),
        ("all()", True),
        ("any()", False),
        ("not(windows)", True),
        ('all(unix, any(target_os = "macos", target_os = "linux"), not(target_env = "gnu"),)', True),
        ("all(unix, windows)", False),
        ("unix windows", False),
        ("all(unix", False),
        ("not(unix, windows)", False),
        ("none(unix)", False),
        ("unix)", False),
        ('"unix"', False),
        ("target_os =", False),
        ("§", False),
        ("", False),
        ("not(" * 50 + "unix" + ")" * 50, True),
    ],
)
def test_what_holds_for_a_guest(expression: str, holds: bool) -> None:
    assert rust_flags.applies(expression, Arch.AARCH64) is holds


def test_the_first_place_that_has_flags_counts() -> None:
    config = manifests.parse(b"""
        [build]
        rustflags = ["build"]
        [target.aarch64-unknown-linux-musl]
        rustflags = ["triple"]
        [target.'cfg(unix)']
        rustflags = "cfg -C x"
        [target.'cfg(windows)']
        rustflags = ["never"]
        """)

    def flags(environment: dict[str, str]) -> list[str]:
        return list(rust_flags.of_case(config, environment, TRIPLE, Arch.AARCH64))

    assert flags({}) == ["triple", "cfg", "-C", "x"]
    assert flags({"CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUSTFLAGS": "more"}) == ["triple", "cfg", "-C", "x", "more"]
    assert flags({"RUSTFLAGS": "-C y"}) == ["-C", "y"]
    assert flags({"RUSTFLAGS": "-C y", "CARGO_ENCODED_RUSTFLAGS": "a b\x1fc"}) == ["a b", "c"]
    del config["target"]
    assert flags({"CARGO_BUILD_RUSTFLAGS": "more"}) == ["build", "more"]
    config["build"]["rustflags"] = 3
    assert flags({}) == []
