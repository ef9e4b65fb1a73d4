"""Entries added to `known.toml` for what failed in the last run. What stands in the file already is left as it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from qcase import parsing
from qcase.arch import Arch
from qcase.config.known_file import KNOWN_FILE, KnownFile
from qcase.config.load import load_known
from qcase.config.toml_document import toml_value
from qcase.errors import UsageError
from qcase.host.files import write_aside
from qcase.host.workspace_folders import own_folder
from qcase.suite import history, scan
from qcase.suite.cases import Workspace
from qcase.suite.known_failures import matches
from qcase.text import printable

_PATIENCE = 10.0  # seconds for another `qcase known add` to write the file


@dataclass(frozen=True)
class Addition:
    """An entry to add. `test` is a glob, empty for the case as a whole."""

    case: str
    test: str
    excuses: tuple[str, ...]
    arch: Arch
    reason: str
    link: str = ""
    until: date | None = None

    def toml(self) -> str:
        """Format the entry as TOML."""
        keys: dict[str, object] = {"case": self.case, "test": self.test, "arch": self.arch.value, "reason": self.reason}
        keys["link"] = self.link
        lines = [f"{key} = {toml_value(value)}" for key, value in keys.items() if value]
        lines += [f"until = {self.until.isoformat()}"] if self.until else []
        lines += [f"excuses = {toml_value(list(self.excuses))}"] if self.excuses != ("fail",) else []
        return "\n".join(["[[known]]", *lines]) + "\n"


def additions(
    workspace: Workspace, arch: Arch, target: str, patterns: Sequence[str], reason: str, link: str, until: date | None
) -> tuple[list[Addition], list[str]]:
    """Return the entries for what failed in the last run, and the cases that no entry could excuse.

    `patterns`: names of cases or globs; all cases that failed if there are none. Raises `UsageError` for a name of which no
    failure is remembered.
    """
    known = history.recall(workspace.root, arch, target)
    if not known:
        raise UsageError("no run is remembered", hint="run the cases once: qcase run")
    failed = {case: one for case, one in known.items() if one.red}
    chosen: dict[str, None] = {}
    for pattern in patterns or ("*",):
        named = [case for case in failed if case.endswith(f"/{pattern}") or matches(pattern, case)]
        if not named and patterns:
            what = f"no failure of '{printable(pattern)}' on {arch} is remembered"
            raise UsageError(what, hint="`qcase list --failed` shows them")
        chosen |= dict.fromkeys(named)
    cases = [case for case in sorted(chosen) if not any(_is_again(case, other, failed) for other in chosen)]
    whole = _whole_names(workspace)
    found = [
        Addition(whole(case), test, excuses, arch, reason, link, until)
        for case in cases
        for test, excuses in failed[case].excuses
    ]
    return list(dict.fromkeys(found)), [case for case in cases if not failed[case].excuses]


def _is_again(case: str, other: str, failed: Mapping[str, history.Remembered]) -> bool:
    """Tell whether a result is remembered under a shorter name, too, as that of a run of several groups is."""
    return case.endswith(f"/{other}") and failed[case] == failed[other]


def _whole_names(workspace: Workspace) -> Callable[[str], str]:
    """Return a function from the name of a case, or of a part of a group, to that of the whole case."""
    names = {name for group in scan.groups(workspace) for found in scan.names(workspace, [group]) for name in found[:2]}

    def whole(case: str) -> str:
        case = case.partition("::")[0]  # a run of one test inside
        above = case.rpartition("/")[0]
        return above if case not in names and above in names else case

    return whole


def write(workspace: Workspace, added: Sequence[Addition]) -> Path:
    """Add entries at the end of the workspace's file, whole or not at all, and return its path.

    Raises `ConfigError` for a file that is wrong, and `UsageError` if the entries cannot stand in it.
    """
    from filelock import FileLock

    path = workspace.root / KNOWN_FILE
    workspace.check_target()
    if workspace.sandboxed and not workspace.keeps(path):
        raise UsageError('leads out of the workspace: refused under trust = "sandboxed"', where=KNOWN_FILE)
    lock = own_folder(workspace.root) / "known.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, timeout=_PATIENCE):
        load_known(path, workspace.root)
        before = path.read_bytes().decode() if path.exists() else ""
        ending = "\r\n" if "\r\n" in before else "\n"
        blank = "" if not before else ending if before.endswith("\n") else 2 * ending
        text = before + blank + "\n".join(one.toml() for one in added).replace("\n", ending)
        try:
            KnownFile.model_validate(parsing.toml(text.removeprefix("\ufeff").replace("\r\n", "\n")))
        except ValueError as error:
            hint = "write each entry below [[known]]; a reason is one line"
            raise UsageError(f"the entries cannot be added: {error}".splitlines()[0], where=KNOWN_FILE, hint=hint) from None
        write_aside(Path(os.path.realpath(path)), text.encode(), flushed=True)
    return path
