"""Shell completion of words: names of cases and groups, tags. Quick, quiet, and never an error.

No case's file is read but for tags: a shell waits, and a file that is broken somewhere must not matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from qcase.arch import Arch
from qcase.config.toml_document import read_toml
from qcase.errors import QcaseError
from qcase.model import Pipeline
from qcase.suite import history, scan
from qcase.suite.cases import Workspace, pipeline_names
from qcase.suite.inner_selection import SIGN


def cases(typed: str, workspace: Path | str | None, group: Sequence[str]) -> list[str]:
    """Return names that begin with `typed`: those of cases by themselves, with the build group before them if that is typed, and
    `<case>/<subcase>` once a case's name and a slash are, and `<case>::<test>` by the last run.
    """

    if SIGN in typed:
        case, _, begun = typed.partition(SIGN)
        return [f"{case}{SIGN}{test}" for test in tests(case, begun, workspace)]

    def look(opened: Workspace) -> Iterable[str]:
        for name, display_name, children in scan.names(opened, group or ()):
            for whole in (name, display_name):
                if whole.startswith(typed):
                    yield whole
                    break
                if typed.startswith(f"{whole}/"):
                    yield from (f"{whole}/{child}" for child in children() if f"{whole}/{child}".startswith(typed))

    return _quietly(workspace, look)


def tests(case: str, typed: str, workspace: Path | str | None) -> list[str]:
    """Return the names of the tests inside a case that begin with `typed`, as they last ran, on whatever architecture."""

    def look(opened: Workspace) -> Iterable[str]:
        found: dict[str, None] = {}
        for arch in Arch:
            known = history.recall(opened.root, arch, arch.default_target)
            names = (name for name in known if name == case or name.endswith(f"/{case}"))
            found |= dict.fromkeys(test for name in names for test in known[name].tests if test.startswith(typed))
        return found

    return _quietly(workspace, look)


def groups(typed: str, workspace: Path | str | None) -> list[str]:
    return _quietly(workspace, lambda opened: (name for name in scan.groups(opened) if name.startswith(typed)))


def pipelines(typed: str) -> list[str]:
    try:
        return [name for name in pipeline_names() if name.startswith(typed)]
    except QcaseError:  # of the plug-ins
        return [name for name in Pipeline if name.startswith(typed)]


def tags(typed: str, workspace: Path | str | None) -> list[str]:
    """Return tags; after a `!`, those that a case must not have."""
    sign = "!" if typed.startswith("!") else ""

    def look(opened: Workspace) -> Iterable[str]:
        found: set[str] = set()
        for group in scan.groups(opened):
            for path in (opened.suite_root / group).rglob("qemu-*.toml"):
                if "tags" in path.read_text(encoding="utf-8", errors="replace"):
                    found.update(_tags(path))
        return sorted(f"{sign}{tag}" for tag in found if f"{sign}{tag}".startswith(typed))

    return _quietly(workspace, look)


def _tags(path: Path) -> list[str]:
    try:
        given = read_toml(path).get("qcase", {}).get("tags", [])
    except (QcaseError, AttributeError):
        return []
    return [tag for tag in given if isinstance(tag, str) and re.fullmatch(r"\S+", tag)] if isinstance(given, list) else []


def _quietly(workspace: Path | str | None, look: Callable[[Workspace], Iterable[str]]) -> list[str]:
    try:
        return list(look(Workspace.open(Path(workspace or Path.cwd()))))
    except (QcaseError, OSError):
        return []
