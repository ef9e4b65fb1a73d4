"""Advice about builds of crates that failed."""

from __future__ import annotations

import pytest

from qcase.pipelines import rust_crates, rust_hints

SAYS = [
    ("/usr/bin/ld: cannot find -lz: No such file or directory\n", "with a libz.a: [qcase] packages names"),
    ("  The system library `zlib` required by crate `z-sys` was not found.\n", "and beside it the one with -static"),
    (
        "error: rustc 1.85.1 is not supported by the following packages:\n  new@2.0.0 requires rustc 1.88\n",
        "`cargo update --precise`",
    ),
    ("  feature `edition2024` is required\n", "`cargo update --precise`"),
    (
        "failed to execute command: No such file or directory (os error 2)\nis `cmake` not installed?\n",
        "the image has no such program",
    ),
    ("Can't locate FindBin.pm in @INC (you may need to install the FindBin module)\n", "the image has no such program"),
    ("error: couldn't read `src/../../data`: No such file or directory (os error 2)\n", "a relative link in the case"),
    ("error[E0308]: mismatched types\n", ""),
]


@pytest.mark.parametrize(("said", "wanted"), SAYS)
def test_what_to_do_about_a_crate_that_does_not_build(said: str, wanted: str) -> None:
    found = rust_hints.hint(said)
    assert wanted in found
    assert bool(found) == bool(wanted)


def test_a_crate_that_the_lock_file_lacks_is_named() -> None:
    said = """\
error: no matching package found
searched package name: `tiny`
location searched: directory source `/crates/0` (which is replacing registry `crates-io`)
required by package `member v0.1.0 (suite/x/rust/member)`
"""
    error = rust_crates.unresolved(said, "normal/x")
    assert error is not None
    assert error.what == "its crates cannot be had: no matching package found: tiny, for member"
    assert "cargo generate-lockfile" in error.hint
