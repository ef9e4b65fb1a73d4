"""Selection of one test inside a case's command: `<case>::<test>`. The case says how its command is asked for one test."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from qcase.config.results_table import TEST
from qcase.errors import UsageError
from qcase.suite.cases import BrokenCase, Case, Discovery
from qcase.suite.select import select
from qcase.text import printable

SIGN = "::"


def select_with_tests(discovery: Discovery, patterns: Sequence[str]) -> tuple[Case | BrokenCase, ...]:
    """Select cases as `select` does, and single tests of cases. Raises `UsageError` for a test that cannot be selected."""
    inner = [pattern for pattern in patterns if SIGN in pattern]
    found = {case.display_name: case for case in select(discovery, patterns)} if not inner else {}
    if inner and len(inner) < len(patterns):
        found = {case.display_name: case for case in select(discovery, [one for one in patterns if SIGN not in one])}
    for pattern in inner:
        wanted, _, test = pattern.partition(SIGN)
        for case in select(discovery, [wanted]):
            one = case if isinstance(case, BrokenCase) else _of_test(case, test)
            found[one.display_name] = one
    return tuple(sorted(found.values(), key=lambda case: case.display_name))


def _of_test(case: Case, test: str) -> Case:
    """Return a case whose command is asked for one test alone."""
    if not test.strip() or not test.isprintable():
        raise UsageError(f"'{printable(test)}' is no name of a test", where=f"{case.display_name}{SIGN}{printable(test)}")
    if not case.config.select:
        hint = "a part of a group is chosen as <group>/<subcase>"
        if not case.config.is_grouped:
            hint = f'say in its file how its command is asked for one test: [qcase] select = "prog --only {TEST}"'
        what = f"case '{case.display_name}' does not say how one of its tests is run alone"
        raise UsageError(what, where=f"{case.display_name}{SIGN}{test}", hint=hint)
    config = replace(case.config, shell_init_cmd=case.config.select.replace(TEST, shlex.quote(test)))
    return replace(case, display_name=f"{case.display_name}{SIGN}{test}", test=test, config=config)
