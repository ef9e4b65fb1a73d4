"""What `qcase lint` says of known failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.inputs import lint

GOOD = 'timeout = 9\nshell_prefix = "#"\n'
GROUP = f'{GOOD}test_commands = ["one", "two", "two"]\n'
RESULTS = f'{GOOD}shell_init_cmd = "all"\n[qcase]\nresults = "ktap"\n'
PLAIN = f'{GOOD}success_regex = ["^x$"]\nshell_init_cmd = "echo \'\'x"\n'
STEPS = 'timeout = 9\n[[qcase.steps]]\nname = "boots"\nsuccess_regex = ["^x$"]\n'
MATRIX = """\
[[qcase.matrix]]
axis = "memory"
name = "small"
memory = "64M"

[[qcase.matrix]]
axis = "memory"
name = "large"
memory = "256M"
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "qcase.toml").write_text('[suite]\nroot = "suite"\n[suites.more]\nroot = "more"\n')
    cases = {"group": GROUP, "results": RESULTS, "plain": PLAIN, "steps": STEPS, "machines": f"{PLAIN}[qcase]\n{MATRIX}"}
    for name, text in cases.items():
        file(tmp_path, f"suite/normal/{name}/qemu-x86_64.toml", text)
    file(tmp_path, "suite/normal/plain/qemu-aarch64.toml", PLAIN)
    file(tmp_path, "suite/normal/qemu/build-x86_64-unknown-none.toml", "")
    file(tmp_path, "suite/normal/qemu/inner/qemu-x86_64.toml", PLAIN)
    file(tmp_path, "suite/normal/broken/qemu-x86_64.toml", "= 1\n")
    file(tmp_path, "more/normal/other/qemu-x86_64.toml", PLAIN)
    return tmp_path


def file(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def known(root: Path, *entries: str, path: str = "known.toml") -> list[str]:
    """What lint says of the file of known failures and of the cases' own."""
    file(root, path, "".join(f'[[known]]\nreason = "r"\n{entry}\n' for entry in entries))
    return [str(one) for one in lint.lint(root) if one.check == "known" or path in one.problem.file]


@pytest.mark.parametrize(
    "entry",
    [
        *(f'case = "{name}"' for name in ("plain", "normal/plain", "pl*", "*", "inner", "qemu/inner", "normal/qemu/inner")),
        *(f'case = "{name}"' for name in ("machines-small", "normal/machines-*", "broken", "other", "more/normal/other")),
        'case = "plain"\narch = "aarch64"',
        'case = "broken"\narch = "aarch64"',
        'case = "group"\ntest = "two (2)"',
        'case = "g*"\ntest = "t*"',
        'case = "*"\ntest = "anything"',
        'case = "results"\ntest = "anything"',
        'case = "steps"\ntest = "boots"',
        'case = "plain"\nuntil = 9999-01-01',
    ],
)
def test_entries_that_are_well(root: Path, entry: str) -> None:
    assert known(root, entry) == []


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('case = "plane"', "known.toml:1: case: no case is called 'plane' (did you mean 'plain'?)"),
        ('case = "stress/*"', "known.toml:1: case: no case is called 'stress/*'"),
        ('case = "group/one"', "known.toml:1: case: no case is called 'group/one' (did you mean 'group'?)"),
        ('case = "group"\narch = "aarch64"', "known.toml:1: arch: 'group' is not for aarch64 (it is for x86_64)"),
        (
            'case = "group"\ntest = "tow"',
            "known.toml:1: test: there is no test 'tow' in normal/group (did you mean 'two'?)",
        ),
        ('case = "steps"\ntest = "boot"', "known.toml:1: test: there is no test 'boot' in normal/steps (did you mean 'boots'?)"),
        (
            'case = "plain"\ntest = "x"',
            "known.toml:1: test: there is no test 'x' in normal/plain (leave `test` out: the case as a whole is known to fail)",
        ),
        (
            'case = "plain"\nuntil = 2020-01-01',
            "known.toml:1: until: has expired on 2020-01-01, and excuses nothing (mend what it says, or take it out)",
        ),
    ],
)
def test_an_entry_that_excuses_nothing_is_a_warning(root: Path, entry: str, said: str) -> None:
    assert known(root, entry) == [f"warning: {said}"]


def test_faults_of_the_file_are_errors(root: Path) -> None:
    said = known(root, 'cases = "plain"', 'case = "plain"\nuntil = "soon"', 'case = "plane"')
    assert [one.partition(" (")[0] for one in said] == [
        "error: known.toml:1: known[0].case: is missing",
        "error: known.toml:3: known[0].cases: unknown key",
        'error: known.toml:7: known[1].until: must be a date such as 2027-01-31, not "soon"',
    ]


def test_two_entries_about_the_same(root: Path) -> None:
    said = known(root, 'case = "plain"', 'case = "plain"\nlink = "x"', 'case = "plain"\nexcuses = ["timeout"]')
    assert said == ["warning: known.toml:4: case: is about the same as known.toml:1 (keep one of them)"]


def test_a_file_in_a_suites_root_is_about_that_suite(root: Path) -> None:
    assert known(root, 'case = "other"', path="more/known.toml") == []
    assert known(root, 'case = "plain"', path="more/known.toml") == [
        "warning: more/known.toml:1: case: no case is called 'plain'"
    ]


def test_entries_of_a_cases_own_file(root: Path) -> None:
    table = '[[qcase.known]]\nreason = "r"\ntest = "tow"\n[[qcase.known]]\nreason = "r"\nuntil = 2020-01-01\n'
    file(root, "suite/normal/group/qemu-x86_64.toml", GROUP + table)
    assert known(root, 'case = "plain"') == [
        "warning: suite/normal/group/qemu-x86_64.toml:4: test: there is no test 'tow' in normal/group (did you mean 'two'?)",
        "warning: suite/normal/group/qemu-x86_64.toml:7: until: has expired on 2020-01-01, and excuses nothing "
        "(mend what it says, or take it out)",
    ]
