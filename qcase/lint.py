"""`qcase lint`: what is wrong with a suite, and what is allowed and probably not meant. All of it at once, nothing is run.

Errors are what `qcase run` would stop at, and cases whose verdict would mean nothing. Warnings are what somebody should look at:

    unknown-key      a key that nobody reads
    echo             a pattern that matches the command that is typed
    prompt           a pattern that matches the prompt: the case is decided before its command runs
    never            a pattern that cannot match anything a guest writes
    contradiction    what passes the case matches a fail pattern, too
    unread           a success pattern of a grouped case, which the runner's replaces
    unreachable      sources that no command names, and cases where nobody searches
    timeout          no timeout, or one that is below the time that the case took when it last ran
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from qcase import history, suite
from qcase.config import (
    CaseConfig,
    SuiteConfig,
    WorkspaceConfig,
    compile_pattern,
    find_workspace,
    key_lines,
    load_workspace_config,
    read_toml,
)
from qcase.errors import ConfigError, Problem, QcaseError, UsageError
from qcase.model import Arch, Pipeline
from qcase.suite import SOURCE_FOLDERS, Case, Workspace

FORMAT = 1  # of `qcase lint --json`


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    severity: Severity
    check: str
    problem: Problem

    def __str__(self) -> str:
        return f"{self.severity}: {self.problem}"


def lint(start: Path) -> list[Finding]:
    """All findings of the workspace around `start`, by file and line. Raises `UsageError` where there is none."""
    root = find_workspace(start)
    found: list[Finding] = []
    workspace = _workspace(root, found)
    if workspace is not None:
        try:
            _suite(workspace, found)
        except UsageError as error:
            found.append(_error("suite", Problem(error.what, error.where or suite_file(root), hint=error.hint)))
    unique = dict.fromkeys(found)
    return sorted(unique, key=lambda f: (f.problem.file, f.problem.line, f.problem.key, f.severity, f.problem.what))


def document(found: Sequence[Finding]) -> dict[str, object]:
    """The same for a program."""
    return {
        "format": FORMAT,
        "errors": sum(f.severity is Severity.ERROR for f in found),
        "warnings": sum(f.severity is Severity.WARNING for f in found),
        "findings": [
            {
                "severity": f.severity.value,
                "check": f.check,
                "file": f.problem.file,
                "line": f.problem.line or None,
                "key": f.problem.key or None,
                "what": f.problem.what,
                "hint": f.problem.hint or None,
            }
            for f in found
        ],
    }


def suite_file(root: Path) -> str:
    return str(root / "qcase.toml")


def _error(check: str, problem: Problem) -> Finding:
    return Finding(Severity.ERROR, check, problem)


def _warning(check: str, problem: Problem) -> Finding:
    return Finding(Severity.WARNING, check, problem)


def _problems(error: QcaseError, where: str) -> Iterator[Problem]:
    if isinstance(error, ConfigError):
        yield from error.problems
    else:
        yield Problem(error.what, error.where or where, hint=error.hint)


# ---- the workspace


def _workspace(root: Path, found: list[Finding]) -> Workspace | None:
    """The workspace. Where its file is wrong, as much of it as tells where the cases are."""
    path = root / "qcase.toml"
    try:
        return Workspace(root, load_workspace_config(path))
    except ConfigError as error:
        found += [_error("config", problem) for problem in error.problems]
    try:
        given = read_toml(path).get("suite", {})
        return Workspace(root, WorkspaceConfig(suite=SuiteConfig.model_validate(given)))
    except (ConfigError, ValueError):
        return None


def _suite(workspace: Workspace, found: list[Finding]) -> None:
    listed = suite.catalogue(workspace)
    found += [_warning("unknown-arch", problem) for problem in listed.warnings]
    default = workspace.config.suite.default_group
    if default not in listed.groups:
        hint = f"known groups: {', '.join(listed.groups)}"
        found.append(
            _error("suite", Problem(f"there is no group '{default}'", "qcase.toml", key="suite.default_group", hint=hint))
        )
    arches: set[Arch] = set()
    known = {arch: history.recall(workspace.root, arch, arch.default_target) for arch in Arch}
    for group, entries in listed.groups.items():
        found += [_error("place", p) for error in suite.misplaced(workspace, group) for p in _problems(error, group)]
        names: dict[str, Path] = {}
        for entry in entries:
            shown = workspace.relative(entry.path)
            if entry.display_name in names:
                other = workspace.relative(names[entry.display_name])
                found.append(
                    _error("place", Problem(f"two cases are called '{entry.display_name}'", shown, hint=f"also {other}"))
                )
            names[entry.display_name] = entry.path
            for broken in entry.broken.values():
                found += [_error("config", problem) for problem in _problems(broken, shown)]
            found += _folder(workspace, entry)
            for case in entry.cases.values():
                arches.add(case.arch)
                found += _Case(workspace, case, known[case.arch]).findings()
    found += _guests(workspace, arches)


def _guests(workspace: Workspace, arches: set[Arch]) -> Iterator[Finding]:
    for arch in sorted(arches):
        guest = workspace.config.guest[arch]
        for key in ("rootfs", "kernel", "initrd"):
            name = getattr(guest, key)
            if isinstance(name, str) and ("/" in name or "." in name) and not (workspace.root / name).is_file():
                yield _warning("guest", Problem(f"there is no file {name!r}", "qcase.toml", key=f"guest.{arch}.{key}"))


# ---- a case's folder, whatever the architecture


def _folder(workspace: Workspace, entry: suite.CatalogueEntry) -> Iterator[Finding]:
    is_grouped = Pipeline.GROUPED in entry.pipelines.values()
    for name, pipeline in SOURCE_FOLDERS.items():
        if (entry.path / name).is_dir():
            yield from _sources(workspace, entry.path, pipeline)
    heads_build_group = entry.build_group == entry.display_name
    has_project = (entry.path / "CMakeLists.txt").is_file()  # it takes the place of what subcases have in C
    for child in _folders(entry.path):
        if child.name in SOURCE_FOLDERS or child.name.startswith("."):
            continue
        shown = workspace.relative(child)
        kinds = [name for name in SOURCE_FOLDERS if (child / name).is_dir()]
        if is_grouped:
            for kind in kinds:
                if not (kind == Pipeline.C and has_project):
                    yield from _sources(workspace, child, SOURCE_FOLDERS[kind])
        elif kinds and not heads_build_group:
            what = f"has {kinds[0]}/, and is no subcase: the case has no test_commands"
            yield _warning("unreachable", Problem(what, shown, hint="subcases belong to grouped cases"))
    if heads_build_group:
        return
    for below in _configs_below(entry.path):
        what = "is below a case, where nothing is searched"
        yield _warning("unreachable", Problem(what, workspace.relative(below), hint="move its folder beside the case"))


def _sources(workspace: Workspace, folder: Path, pipeline: Pipeline) -> Iterator[Finding]:
    """A folder of sources with nothing in it that its pipeline could build."""
    wanted = {Pipeline.C: "CMakeLists.txt", Pipeline.RUST: "Cargo.toml"}.get(pipeline)
    place = folder / pipeline.value
    if wanted is not None and not (place / wanted).is_file():
        yield _error("sources", Problem(f"has no {wanted}", workspace.relative(place)))
    if wanted is None and not any(path.is_file() for path in place.iterdir()):
        yield _error("sources", Problem("has no file to install", workspace.relative(place)))


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(child for child in path.iterdir() if child.is_dir() and not child.is_symlink())
    except OSError:
        return []


def _configs_below(path: Path) -> Iterator[Path]:
    for child in _folders(path):
        for folder, folders, files in os.walk(child):
            folders.sort()
            yield from (Path(folder, name) for name in sorted(files) if re.fullmatch(r"qemu-.*\.toml", name))


# ---- a case on one architecture


class _Case:
    def __init__(self, workspace: Workspace, case: Case, known: Mapping[str, history.Remembered]) -> None:
        self.workspace = workspace
        self.known = known.get(case.display_name)
        self.case = case
        self.config: CaseConfig = case.config
        self.file = workspace.relative(case.config_path)

    @cached_property
    def lines(self) -> Mapping[tuple[str | int, ...], int]:
        return key_lines(self.case.config_path.read_text(encoding="utf-8-sig").replace("\r\n", "\n"))

    def problem(self, key: str, index: int | None, what: str, hint: str = "") -> Problem:
        loc: tuple[str | int, ...] = (key,) if index is None else (key, index)
        line = self.lines.get(loc) or self.lines.get(loc[:1], 0)
        return Problem(what, self.file, line, key if index is None else f"{key}[{index}]", hint)

    def findings(self) -> Iterator[Finding]:
        yield from (_warning("unknown-key", problem) for problem in self.case.warnings)
        yield from self._never()
        yield from self._typed()
        yield from self._prompt()
        yield from self._contradictions()
        yield from self._unread()
        yield from self._timeout()
        yield from self._unreached()

    def _patterns(self) -> Iterator[tuple[str, int, str]]:
        for key, patterns in (("success_regex", self.config.success_regex), ("fail_regex", self.config.fail_regex)):
            for index, pattern in enumerate(patterns):
                yield key, index, pattern

    def _never(self) -> Iterator[Finding]:
        for key, index, pattern in self._patterns():
            if why := never_matches(pattern):
                make = _error if key == "success_regex" and self.config.match == "all" else _warning
                yield make("never", self.problem(key, index, f"{pattern!r} can never match: {why}"))

    def _typed(self) -> Iterator[Finding]:
        """qcase hides the echo of what it types. A person, and every other tool, does not."""
        command = self.config.shell_init_cmd
        if command is None:
            return
        prompt = self.config.shell_prefix or ""
        first, *rest = command.splitlines()
        echoed = "\n".join([f"{prompt} {first}", *(f"> {line}" for line in rest)])
        for key, index, pattern in self._patterns():
            if compile_pattern(pattern).search(echoed) and not self._matches_prompt(pattern):
                hint = "break the word in the command, as in echo PA''SS, or anchor the pattern with ^"
                what = f"{pattern!r} matches the command as it is typed, whatever that does"
                yield _warning("echo", self.problem(key, index, what, hint))

    def _matches_prompt(self, pattern: str) -> bool:
        prompt = self.config.shell_prefix
        return prompt is not None and compile_pattern(pattern).search(f"{prompt}\n") is not None

    def _prompt(self) -> Iterator[Finding]:
        if self.config.shell_init_cmd is None and not self.config.is_grouped:
            return
        for key, index, pattern in self._patterns():
            if not self._matches_prompt(pattern) or (self.config.is_grouped and key == "success_regex"):
                continue
            outcome = "passes" if key == "success_regex" else "fails"
            what = f"{pattern!r} matches the prompt: the case {outcome} as soon as the shell is there"
            yield _error("prompt", self.problem(key, index, what, "match what the command prints"))

    def _contradictions(self) -> Iterator[Finding]:
        if self.config.is_grouped:
            return
        for index, pattern in enumerate(self.config.success_regex):
            sample = only_text(pattern)
            for fail in self.config.fail_regex:
                if pattern == fail or (sample is not None and compile_pattern(fail).search(sample)):
                    what = f"what {pattern!r} matches, the fail pattern {fail!r} matches too, and that one comes first"
                    make = _error if len(self.config.success_regex) == 1 or self.config.match == "all" else _warning
                    yield make("contradiction", self.problem("success_regex", index, what, "make the fail pattern narrower"))
                    break

    def _unread(self) -> Iterator[Finding]:
        if not self.config.is_grouped:
            return
        runner = self.workspace.config.grouped
        for index, pattern in enumerate(self.config.success_regex):
            if pattern != runner.success_regex and runner.all_passed_marker not in pattern:
                other = re.search(r"(\w+)_GROUPED_TESTS_PASSED", pattern)
                hint = (
                    f'set [grouped] prefix = "{other[1]}" in qcase.toml'
                    if other
                    else "a group passes when each of its commands did"
                )
                what = f"{pattern!r} is not read: the case is a group, and passes by its script's own marker"
                yield _warning("unread", self.problem("success_regex", index, what, hint))

    def _timeout(self) -> Iterator[Finding]:
        config, known = self.config, self.known
        if config.timeout is None and config.boot_timeout is None and config.idle_timeout is None:
            what = "no timeout: a guest that hangs is waited for until somebody notices"
            yield _warning("timeout", Problem(what, self.file, key="timeout", hint="set it to some times what the case takes"))
        if known is None or known.in_guest is None:
            return
        scale = self.workspace.config.run.timeout_scale
        command = known.command if not config.is_grouped else None  # of a group it is the limit of each command
        limits = (
            ("timeout", config.timeout, known.in_guest, "the case took"),
            ("boot_timeout", config.boot_timeout, known.boot, "its boot took"),
            ("command_timeout", config.command_timeout, command, "its command took"),
        )
        for key, limit, took, what in limits:
            if limit is not None and took is not None and limit * scale < took:
                said = f"{limit * scale:g} s are less than the {took:.1f} s that {what} when it last ran"
                loc = (key,) if key == "timeout" else ("qcase", key)
                problem = Problem(said, self.file, self.lines.get(loc, 0), ".".join(loc), "set it to some times that")
                yield _warning("timeout", problem)

    def _commands_on_any_architecture(self) -> Iterator[str]:
        """A subcase may be for some architectures alone."""
        for path in sorted(self.case.path.glob("qemu-*.toml")):
            with suppress(ConfigError, OSError):  # said where that file is looked at
                commands = read_toml(path).get("test_commands", [])
                yield from (str(command) for command in commands if isinstance(commands, list))

    def _unreached(self) -> Iterator[Finding]:
        """Programs that nothing starts, as far as their names can be seen in the sources."""
        if self.case.pipeline is Pipeline.GROUPED:
            text = "\n".join(self._commands_on_any_architecture())
            for subcase in self.case.subcases:
                names = programs(subcase.path / subcase.kind.value, subcase.kind)
                if names and not any(_names(text, name) for name in names):
                    what = f"no command names a program of the subcase '{subcase.name}' ({', '.join(sorted(names)[:4])})"
                    yield _warning("unreachable", self.problem("test_commands", None, what))
        elif self.case.pipeline is not Pipeline.PLAIN and self.config.shell_init_cmd is not None:
            names = programs(self.case.path / self.case.pipeline.value, self.case.pipeline)
            if names and not any(_names(self.config.shell_init_cmd, name) for name in names):
                what = f"the command names no program that the case installs ({', '.join(sorted(names)[:4])})"
                yield _warning("unreachable", self.problem("shell_init_cmd", None, what))


def _names(text: str, program: str) -> bool:
    """Whether a program is named in commands. What a shell computes may name anything."""
    return program in text or re.search(r"[$`*?\[]|\b(?:eval|xargs|find)\b", text) is not None


def programs(folder: Path, pipeline: Pipeline) -> set[str]:
    """The names of the programs that sources make, as far as these say so plainly; empty where they do not."""
    try:
        if pipeline in (Pipeline.SH, Pipeline.PYTHON):
            return {path.name for path in folder.iterdir() if path.is_file()}
        if pipeline is Pipeline.C:
            text = (folder / "CMakeLists.txt").read_text(encoding="utf-8", errors="replace")
            if re.search(
                r"\b(?:foreach|function|macro|include|add_subdirectory|OUTPUT_NAME|install\s*\(\s*(?:FILES|PROGRAMS|DIRECTORY|SCRIPT|CODE))\b",
                text,
                re.I,
            ):
                return set()
            names = set(re.findall(r"\badd_executable\s*\(\s*([^\s)]+)", text, re.I))
            return set() if any("$" in name for name in names) else names
        if pipeline is Pipeline.RUST:
            text = (folder / "Cargo.toml").read_text(encoding="utf-8", errors="replace")
            names = set(re.findall(r"(?m)^\s*name\s*=\s*\"([^\"]+)\"", text))
            return names | {path.stem for path in (folder / "src" / "bin").glob("*.rs")}
    except OSError:
        return set()
    return set()


# ---- patterns
#
# RE2's syntax is near enough to that of Python's `re` that its parser can be asked what a pattern is made of. Of one that it
# cannot read, nothing is said.

# Characters that do not reach a pattern: escapes, and what is taken out of the text (`qcase.transcript`).
_IMPOSSIBLE = {0x00: "NUL", 0x07: "BEL", 0x08: "backspace", 0x0D: "a carriage return", 0x1B: "an escape", 0x7F: "DEL"}


def never_matches(pattern: str) -> str:
    """Why a pattern cannot match anything that a guest writes; empty if it may."""
    tree = _parsed(pattern)
    return "" if tree is None else _impossible(tree)


def only_text(pattern: str) -> str | None:
    """The one text that a pattern without choices matches, anchors aside; None for every other pattern."""
    tree = _parsed(pattern)
    if tree is None:
        return None
    text = ""
    for operation, value in tree:
        name = str(operation)
        if name == "LITERAL":
            text += chr(value)
        elif name != "AT":
            return None
    return text or None


def _parsed(pattern: str) -> list[tuple[Any, Any]] | None:
    from re import _parser  # type: ignore[attr-defined]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(_parser.parse(pattern))
    except (re.error, OverflowError, RecursionError):
        return None


def _impossible(sequence: Sequence[tuple[Any, Any]]) -> str:
    """Why a sequence cannot match, from its parts and from what stands beside an anchor."""
    for index, (operation, value) in enumerate(sequence):
        name = str(operation)
        before = _character(sequence[index - 1]) if index else None
        after = _character(sequence[index + 1]) if index + 1 < len(sequence) else None
        why = ""
        if name == "LITERAL" and value in _IMPOSSIBLE:
            why = f"{_IMPOSSIBLE[value]} is taken out of what the guest writes"
        elif name == "AT" and str(value) in ("AT_BEGINNING", "AT_BEGINNING_STRING") and before not in (None, "\n"):
            why = f"no line begins behind {before!r}"
        elif name == "AT" and str(value) in ("AT_END", "AT_END_STRING") and after not in (None, "\n"):
            why = f"no line ends before {after!r}"
        elif name == "IN" and all(str(kind) == "LITERAL" and item in _IMPOSSIBLE for kind, item in value):
            why = "its characters are taken out of what the guest writes"
        elif name == "SUBPATTERN":
            why = _impossible(list(value[-1]))
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and value[0] > 0:
            why = _impossible(list(value[2]))
        elif name == "BRANCH":
            reasons = [_impossible(list(branch)) for branch in value[1]]
            why = reasons[0] if all(reasons) else ""
        if why:
            return why
    return ""


def _character(item: tuple[Any, Any]) -> str | None:
    """The one character that a part of a pattern stands for."""
    return chr(item[1]) if str(item[0]) == "LITERAL" else None
