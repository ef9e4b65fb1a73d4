"""One test inside a case's command, selected as `<case>::<test>`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config.case_file import CaseConfig
from qcase.config.known_file import Known
from qcase.errors import UsageError
from qcase.model import Pipeline
from qcase.prepare.run_folders import folder_of
from qcase.suite.cases import Case, Discovery
from qcase.suite.inner_selection import select_with_tests
from qcase.suite.known_failures import KnownFailures


def case(name: str, select: str = "", *commands: str) -> Case:
    config = CaseConfig(shell_init_cmd="run", results="ktap", select=select, test_commands=commands)
    path, shown = Path("/w/suite/normal") / name, f"normal/{name}"
    return Case(name, shown, "normal", "", path, Arch.X86_64, path / "qemu-x86_64.toml", config, Pipeline.PLAIN, below=name)


CASES = (case("futex", "run --only {test} -v"), case("mute"), case("syscalls", "", "a", "b"))
FOUND = Discovery(groups=("normal",), scope="group normal", arch=Arch.X86_64, target="x86_64-unknown-none", cases=CASES)


def selected(*patterns: str) -> list[Case]:
    return [one for one in select_with_tests(FOUND, patterns) if isinstance(one, Case)]


def commands(*patterns: str) -> dict[str, str | None]:
    return {one.display_name: one.config.shell_init_cmd for one in selected(*patterns)}


def test_the_name_of_the_test_is_in_the_command_quoted_for_the_shell() -> None:
    assert commands("futex::wait") == {"normal/futex::wait": "run --only wait -v"}
    assert commands("normal/futex::wait [1]; reboot") == {"normal/futex::wait [1]; reboot": "run --only 'wait [1]; reboot' -v"}
    assert commands("futex::it's") == {"normal/futex::it's": "run --only 'it'\"'\"'s' -v"}
    assert commands("futex::tests::ring::push", "mute", "futex::b") == {
        "normal/futex::b": "run --only b -v",
        "normal/futex::tests::ring::push": "run --only tests::ring::push -v",
        "normal/mute": "run",
    }
    assert commands("futex") == {"normal/futex": "run"}


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("mute::a", "case 'normal/mute' does not say how one of its tests is run alone"),
        ("syscalls::a", "case 'normal/syscalls' does not say how one of its tests is run alone"),
        ("nope::a", "unknown case 'nope'"),
        ("futex::", "is no name of a test"),
        ("futex::a\nb", "is no name of a test"),
        ("::a", "an empty name selects no case"),
    ],
)
def test_what_cannot_be_selected_is_one_clear_error(pattern: str, what: str) -> None:
    with pytest.raises(UsageError) as found:
        selected(pattern)
    assert what in str(found.value)


def test_its_files_lie_in_a_folder_of_its_own_whatever_its_name_is() -> None:
    folders = {folder_of(f"normal/futex::{test}") for test in ("../../x", "a/b", "a_b", "a b", "", "#", "é" * 500)}
    assert len(folders) == 7
    for folder in folders:
        assert folder.startswith("normal/futex::")
        assert len(folder) < 100
        assert "/" not in folder.removeprefix("normal/")
        assert folder.isascii()
    assert folder_of("normal/futex") == "normal/futex"


def test_it_is_remembered_and_excused_apart_from_its_case() -> None:
    (one,) = selected("futex::wait")
    assert (one.plain_name, one.whole, one.stored_as, one.other_names) == ("normal/futex", "normal/futex", "normal/futex", ())
    again = replace(one, display_name=f"{one.display_name}#2", repetition=2)
    assert (again.plain_name, again.stored_as) == ("normal/futex", "normal/futex")
    entry = Known("known.toml:1", "later", "normal/futex", "wait")
    assert KnownFailures((entry,)).of(one) == KnownFailures((entry,)).of(again) == (entry,)
