"""Scripts of a case are run by what their first line names."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.host import process
from qcase.pipelines import prebuild

SAYS = 'echo "${BASH_VERSION:+bash} $-"\nset -- "$UNSET_VARIABLE"\necho went on\n'


def run(path: Path, text: str, shell: str = "sh") -> tuple[int, str]:
    path.write_text(text)
    done = process.run([shell, "-euc", prebuild.run_script(), "prebuild", str(path)], check=False, timeout=20)
    return done.returncode, done.output


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    ("first", "bash"),
    [
        ("", False),
        ("# a comment\n", False),
        ("#!/bin/sh\n", False),
        ("#! /bin/sh\n", False),
        ("#!/bin/bash\n", True),
        ("#!/usr/bin/env bash\n", True),
        ("#!/usr/bin/env -S bash -x\n", True),
        ("#!/bin/bash -x\n", True),
        ("#!/usr/bin/env LANG=C bash\n", True),
    ],
)
def test_a_shell_script_is_run_by_its_shell_with_eu(first: str, bash: bool, shell: str, tmp_path: Path) -> None:
    """An unset variable ends it, whichever shell it is (but for `env` with assignments, which is handed on as it is)."""
    status, said = run(tmp_path / "prebuild.sh", first + SAYS, shell)
    assert ("bash" in said.split("\n")[0]) == bash or "-x" in first
    assert ("BASH_VERSION" in said or "bash" in said) == bash
    if "LANG" not in first:
        assert (status != 0, "went on" in said) == (True, False), said


def test_a_script_of_another_language(tmp_path: Path) -> None:
    assert run(tmp_path / "prebuild.sh", "#!/usr/bin/env python3\nprint(6 * 7)\n") == (0, "42")


def test_an_awk_script_keeps_its_argument(tmp_path: Path) -> None:
    assert run(tmp_path / "prebuild.sh", "#!/usr/bin/awk -f\nBEGIN { print 6 * 7 }\n") == (0, "42")


@pytest.mark.parametrize("first", ["#!/usr/bin/env nosuchshell", "#!/nosuch/nosuchshell", "#!nosuchshell -x"])
def test_what_the_image_does_not_have_is_named(first: str, tmp_path: Path) -> None:
    status, said = run(tmp_path / "prebuild.sh", f"{first}\necho it runs\n")
    assert status == 127
    assert "prebuild.sh: its first line asks for" in said
    assert "nosuchshell, which this toolchain image does not have" in said
    assert "it runs" not in said


def test_a_script_without_a_line_end_is_run(tmp_path: Path) -> None:
    assert run(tmp_path / "prebuild.sh", "echo 42") == (0, "42")
    assert run(tmp_path / "prebuild.sh", "") == (0, "")


def test_a_pattern_in_the_first_line_is_no_glob(tmp_path: Path) -> None:
    status, said = run(tmp_path / "prebuild.sh", "#!/bin/*\necho it runs\n")
    assert (status, "it runs" in said) == (127, False)
