"""Rules of `[qcase] results` and `[qcase.markers]`: what lets the tests inside a command decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qcase.config.case_file import CaseFile, Wrong
from qcase.config.patterns import compile_pattern

TEST: Final = "{test}"  # stands for the name of a test in `[qcase] select`, quoted for the shell
COUNTS: Final = ("total", "passed", "failed", "skipped")  # groups of the pattern `summary`


def is_there(data: Mapping[str, Any]) -> bool:
    """Tell whether a file asks for the results of inner tests, however well."""
    table = data.get("qcase")
    return isinstance(table, dict) and not table.keys().isdisjoint({"results", "markers"})


def checked(file: CaseFile, test_commands: tuple[str, ...], command: str | None, wrong: Wrong) -> tuple[str, tuple[str, ...]]:
    """Return the dialect and the patterns of the markers, each as `<key>\\t<pattern>`. Both are empty without inner tests."""
    given = file.qcase.markers.model_dump(by_alias=True, exclude_none=True)
    results = file.qcase.results or ("markers" if given else "")
    key = "results" if file.qcase.results else "markers"
    if not results:
        return "", ()
    if file.qcase.results and given:
        wrong(("qcase", "markers"), f"cannot stand beside results = {file.qcase.results!r}", "leave one of them out")
    if test_commands:
        hint = "a group's commands are its tests; make a case of the command that has tests of its own"
        wrong(("qcase", key), "cannot stand beside test_commands", hint)
    elif command and "\n" in command:
        wrong(("shell_init_cmd",), f"must be one line where [qcase] {key} is set", "join the lines with && or ;")
    if not given:
        return results, ()
    for needed, why in (("pass", "no test can pass"), ("summary", "nothing tells whether all tests came")):
        if needed not in given:
            wrong(("qcase", "markers"), f"needs {needed}: without it {why}")
    if "summary" in given and not set(compile_pattern(given["summary"]).groupindex) & set(COUNTS):
        wrong(("qcase", "markers", "summary"), f"needs a group that counts: {', '.join(COUNTS)}", r"such as (?P<passed>\d+)")
    return results, tuple(f"{name}\t{pattern}" for name, pattern in given.items())
