"""`qcase lint`: find errors and likely mistakes in a suite, all at once, without running any of it.

Errors are faults at which `qcase run` would stop, and cases with a meaningless verdict. Warnings are likely mistakes:

    unknown-key      a key without any effect
    echo             a pattern that matches the typed command itself
    prompt           a pattern that matches the prompt: the case is decided before its command runs
    never            a pattern that cannot match any output of a guest
    contradiction    the text that passes the case also matches a fail pattern
    same-command     two commands of a group whose names in reports differ by a number alone
    unread           a success pattern of a grouped case, replaced by the runner's
    sources          a folder that looks like sources of a pipeline that is not installed
    unreachable      sources that no command names, and cases outside of the searched folders
    results          a fail pattern that takes a test that is todo or skipped for a failed one
    kernel-trouble   a fail pattern for kernel reports, which `kernel_trouble` finds anyway
    known            an entry of known.toml that has expired, or matches no case or test
    machine          a disk without an image, a card that bypasses the network policy, no device for a status of QEMU
    timeout          no timeout, or one below the duration of the case's last run
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from qcase.arch import Arch
from qcase.config import qemu_options
from qcase.config.case_file import CaseConfig
from qcase.config.load import find_workspace, load_workspace_config
from qcase.config.patterns import compile_pattern, never_matches, only_text
from qcase.config.toml_document import key_lines, read_toml
from qcase.config.workspace_file import SuiteConfig, WorkspaceConfig
from qcase.errors import ConfigError, Problem, UsageError
from qcase.host import beneath
from qcase.inputs import kernel_tests, known_lint, trust, unknown_sources
from qcase.inputs.findings import Finding, Severity
from qcase.inputs.findings import error as _error
from qcase.inputs.findings import problems as _problems
from qcase.inputs.findings import warning as _warning
from qcase.model import Pipeline
from qcase.pipelines import group_commands, group_script
from qcase.pipelines.pipeline import hint_without
from qcase.pipelines.registry import PIPELINES
from qcase.suite import catalogue, history, root_images, scan
from qcase.suite.cases import Case, Workspace, source_folders
from qcase.vm import network

FINDINGS_FORMAT = 1  # of `qcase lint --json`


def lint(start: Path) -> list[Finding]:
    """Return all findings of the workspace around `start`, by file and line. Raises `UsageError` if there is no workspace."""
    root = find_workspace(start)
    found: list[Finding] = []
    workspace = _workspace(root, found)
    if workspace is not None:
        try:
            listed = [(part, _suite(part, found)) for part in workspace.suites]
            found += known_lint.findings(listed)
        except UsageError as error:
            found.append(_error("suite", Problem(error.what, error.where or suite_file(root), hint=error.hint)))
    unique = dict.fromkeys(found)
    return sorted(unique, key=lambda f: (f.problem.file, f.problem.line, f.problem.key, f.severity, f.problem.what))


def document(found: Sequence[Finding]) -> dict[str, object]:
    """Return the findings as JSON for `qcase lint --json`."""
    return {
        "format": FINDINGS_FORMAT,
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


# ---- the workspace


def _workspace(root: Path, found: list[Finding]) -> Workspace | None:
    """Load the workspace. From an invalid file, load the part that locates the cases."""
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


def _suite(workspace: Workspace, found: list[Finding]) -> catalogue.Catalogue:
    try:
        trust.check(workspace)
    except ConfigError as error:
        found += [_error("config", problem) for problem in error.problems]
    listed = catalogue.catalogue(workspace)
    found += [_warning("unknown-arch", problem) for problem in listed.warnings]
    default = workspace.config.suite.default_group
    table = f"suites.{workspace.suite}" if workspace.suite else "suite"
    if not any(fnmatch.fnmatchcase(group, default) for group in listed.groups):
        hint = f"known groups: {', '.join(listed.groups)}"
        found.append(
            _error("suite", Problem(f"there is no group '{default}'", "qcase.toml", key=f"{table}.default_group", hint=hint))
        )
    arches: set[Arch] = set()
    known = {arch: history.recall(workspace.root, arch, arch.default_target) for arch in Arch}
    for group, entries in listed.groups.items():
        found += [_error("place", p) for error in scan.misplaced(workspace, group) for p in _problems(error, group)]
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
            found += unknown_sources.findings(workspace, entry)
            for case in entry.cases.values():
                arches.add(case.arch)
                found += _Case(workspace, case, known[case.arch]).findings()
    found += _guests(workspace, arches)
    return listed


def _guests(workspace: Workspace, arches: set[Arch]) -> Iterator[Finding]:
    for arch in sorted(arches):
        guest = workspace.config.guest[arch]
        for key in ("rootfs", "kernel", "initrd"):
            name = getattr(guest, key)
            if isinstance(name, str) and ("/" in name or "." in name) and not (workspace.root / name).is_file():
                yield _warning("guest", Problem(f"there is no file {name!r}", "qcase.toml", key=f"guest.{arch}.{key}"))


# ---- a case's folder, for all architectures


def _folder(workspace: Workspace, entry: catalogue.CatalogueEntry) -> Iterator[Finding]:
    is_grouped = Pipeline.GROUPED in entry.pipelines.values()
    for name, pipeline in source_folders().items():
        if (entry.path / name).is_dir():
            yield from _sources(workspace, entry.path, pipeline)
    heads_build_group = entry.build_group == entry.display_name or any(case.is_group for case in entry.cases.values())
    has_project = (entry.path / "CMakeLists.txt").is_file()  # it replaces the build files of subcases in C
    for child in _folders(entry.path):
        if child.name in source_folders() or child.name.startswith("."):
            continue
        shown = workspace.relative(child)
        kinds = [name for name in source_folders() if (child / name).is_dir()]
        if is_grouped:
            for kind in kinds:
                if not (kind == Pipeline.C and has_project):
                    yield from _sources(workspace, child, source_folders()[kind])
        elif kinds and not heads_build_group:
            what = f"has {kinds[0]}/, and is no subcase: the case has no test_commands"
            yield _warning("unreachable", Problem(what, shown, hint="subcases belong to grouped cases"))
    if heads_build_group:
        return
    for below in _configs_below(entry.path):
        what = "is below a case, where nothing is searched"
        yield _warning("unreachable", Problem(what, workspace.relative(below), hint="move its folder beside the case"))


def _sources(workspace: Workspace, folder: Path, pipeline: Pipeline) -> Iterator[Finding]:
    """Report a folder of sources that has nothing for its pipeline to build."""
    wanted = PIPELINES[pipeline].project_files
    place = folder / pipeline.value
    if wanted and not any((place / name).is_file() for name in wanted):
        hint = hint_without(wanted, [path.name for path in place.iterdir()])
        yield _error("sources", Problem(f"has no {wanted[0]}", workspace.relative(place), hint=hint))
    if not wanted and not any(path.is_file() for path in place.iterdir()):
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
        return key_lines(beneath.read(self.case.config_path).decode("utf-8-sig").replace("\r\n", "\n"))

    def problem(self, key: str, index: int | None, what: str, hint: str = "") -> Problem:
        loc: tuple[str | int, ...] = (key,) if index is None else (key, index)
        line = self.lines.get(loc) or self.lines.get(loc[:1], 0)
        return Problem(what, self.file, line, key if index is None else f"{key}[{index}]", hint)

    def findings(self) -> Iterator[Finding]:
        yield from (_warning("unknown-key", problem) for problem in self.case.warnings)
        yield from self._never()
        yield from self._typed()
        yield from self._steps()
        yield from self._prompt()
        yield from self._contradictions()
        yield from self._unread()
        yield from self._same_command()
        yield from self._results()
        yield from self._kernel_trouble()
        yield from self._timeout()
        yield from self._unreached()
        yield from self._machine()

    def _machine(self) -> Iterator[Finding]:
        """Report the disks and cards of a machine that `qcase run` would refuse."""
        try:
            trust.check_case(self.case, self.workspace)
            root_images.root(self.case, self.workspace)
            root_images.others(self.case, self.workspace)
        except ConfigError as error:
            yield from (_error("machine", problem) for problem in error.problems)
        try:
            policy = self.config.network or self.workspace.config.run.network
            network.limit(qemu_options.split(self.config.args), policy)
        except qemu_options.ArgumentError as error:
            yield _error("machine", self.problem("args", None, str(error), error.hint))
            return
        for key, what, hint in kernel_tests.faults(self.config, self.workspace.config, self.case.arch):
            place = Problem(what, self.file, self.lines.get(("qcase", key), 0), f"qcase.{key}", hint)
            yield _error("machine", place)

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
        """Report patterns that match the typed command. qcase hides its echo; a person and other tools see it."""
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

    def _steps(self) -> Iterator[Finding]:
        """Report patterns of steps that can never match, or that match the step's own command as it is typed."""
        table: tuple[str, ...] = ("shell_check_steps",) if ("shell_check_steps", 0) in self.lines else ("qcase", "steps")
        for index, step in enumerate(self.config.steps):
            shown = f"{'.'.join(table)}[{index}]"
            for key, patterns in (("success_regex", step.success), ("fail_regex", step.fail)):
                line = self.lines.get((*table, index, key), 0)
                for pattern in patterns:
                    if why := never_matches(pattern):
                        what = f"{pattern!r} can never match: {why}"
                        yield _warning("never", Problem(what, self.file, line, f"{shown}.{key}"))
                    elif step.command is not None and compile_pattern(pattern).search(f"{step.prompt} {step.command}"):
                        what = f"{pattern!r} matches the command as it is typed, whatever that does"
                        hint = "break the word in the command, as in echo PA''SS, or anchor the pattern with ^"
                        yield _warning("echo", Problem(what, self.file, line, f"{shown}.{key}", hint))

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
                other = re.search(r"\b(\w+)_GROUPED_TESTS_PASSED", pattern)
                hint = (
                    f'set [grouped] prefix = "{other[1]}" in qcase.toml'
                    if other
                    else "a group passes when each of its commands did"
                )
                what = f"{pattern!r} is not read: the case is a group, and passes by its script's own marker"
                yield _warning("unread", self.problem("success_regex", index, what, hint))

    def _same_command(self) -> Iterator[Finding]:
        """Report commands of one label: their names in reports depend on their order."""
        commands = self.config.test_commands
        labels = [group_script.label(command) for command in commands]
        for index, (command, name) in enumerate(zip(commands, group_commands.distinct(labels), strict=True)):
            first = labels.index(labels[index])
            if first != index:
                what = "the same command as" if commands[first] == command else "the same first line as"
                hint = "say in the command what differs, so that a failure tells which it was"
                yield _warning(
                    "same-command",
                    self.problem("test_commands", index, f"{what} test_commands[{first}]: reports call it {name!r}", hint),
                )

    def _results(self) -> Iterator[Finding]:
        """Report fail patterns for lines of inner tests that are no failures: `results` reads these lines."""
        if self.config.results not in ("ktap", "tap", "kselftest", "kunit", "auto"):
            return
        for index, pattern in enumerate(self.config.fail_regex):
            if compile_pattern(pattern).search("not ok 1 - x # TODO y"):
                what = f"{pattern!r} also fails the case by a test that is todo or skipped (not ok 1 # TODO)"
                hint = f"leave it out: results = {self.config.results!r} finds the tests that failed"
                yield _warning("results", self.problem("fail_regex", index, what, hint))

    def _kernel_trouble(self) -> Iterator[Finding]:
        """Report fail patterns that duplicate a part of `kernel_trouble`: they mistake a program's output for the kernel's."""
        judged = self.config.kernel_trouble or self.workspace.config.run.kernel_trouble
        if judged == "ignore":
            return
        for index, pattern in enumerate(self.config.fail_regex):
            if names_trouble(pattern):
                done = 'kernel_trouble = "fail" does' if judged == "fail" else "qcase looks for that and warns"
                hint = "leave it out" if judged == "fail" else 'set [qcase] kernel_trouble = "fail" instead of it'
                what = f"{pattern!r} looks for reports of the kernel, and would take a program's text for one: {done}"
                yield _warning("kernel-trouble", self.problem("fail_regex", index, what, hint))

    def _timeout(self) -> Iterator[Finding]:
        config, known = self.config, self.known
        if config.timeout is None and config.boot_timeout is None and config.idle_timeout is None:
            what = "no timeout: a guest that hangs is waited for until somebody notices"
            yield _warning("timeout", Problem(what, self.file, key="timeout", hint="set it to some times what the case takes"))
        if known is None or known.in_guest is None:
            return
        scale = self.workspace.config.run.timeout_scale
        command = known.command if not config.is_grouped else None  # in a group, the timeout limits each command
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
        """Yield the commands of all architectures, since a subcase may be for some of them alone."""
        for path in sorted(self.case.path.glob("qemu-*.toml")):
            with suppress(ConfigError, OSError):  # said where that file is looked at
                commands = read_toml(path).get("test_commands", [])
                yield from (str(command) for command in commands if isinstance(commands, list))

    def _unreached(self) -> Iterator[Finding]:
        """Report programs that no command starts, as far as their names are visible in the sources."""
        if self.case.pipeline is Pipeline.GROUPED:
            text = "\n".join(self._commands_on_any_architecture())
            for subcase in self.case.subcases:
                names = programs(subcase.sources, subcase.kind)
                if names and not any(_names(text, name) for name in names):
                    what = f"no command names a program of the subcase '{subcase.name}' ({', '.join(sorted(names)[:4])})"
                    yield _warning("unreachable", self.problem("test_commands", None, what))
        elif self.case.pipeline in PIPELINES and self.config.shell_init_cmd is not None:
            names = programs(self.case.path / self.case.pipeline.value, self.case.pipeline)
            if names and not any(_names(self.config.shell_init_cmd, name) for name in names):
                what = f"the command names no program that the case installs ({', '.join(sorted(names)[:4])})"
                yield _warning("unreachable", self.problem("shell_init_cmd", None, what))


def _names(text: str, program: str) -> bool:
    """Tell whether commands may name a program. A word that a shell computes may be any name."""
    return program in text or re.search(r"[$`*?\[]|\b(?:eval|xargs|find)\b", text) is not None


def programs(folder: Path, pipeline: Pipeline) -> set[str]:
    """Return the names of the programs that sources build, if the sources state them literally; else an empty set."""
    try:
        return PIPELINES[pipeline].programs(folder)
    except OSError:
        return set()


# Sample kernel reports, and other texts: a pattern that matches one of these is about more than kernel reports.
_REPORTS = (
    "[    2.043210] BUG: kernel NULL pointer dereference, address: 0000000000000008",
    "[    2.043210] Oops: Oops: 0000 [#1] SMP NOPTI",
    "[    2.043210] WARNING: CPU: 0 PID: 71 at kernel/softirq.c:1 handle_softirqs+0x1/0x2",
    "[    2.043210] Unable to handle kernel paging request at virtual address ffff800000000000",
    "[    2.043210] Internal error: Oops: 0000000096000004 [#1] PREEMPT SMP",
    "[    2.043210] general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
    "[    2.043210] kernel BUG at mm/slub.c:1!",
    "[    2.043210] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:71]",
    "[    2.043210] rcu: INFO: rcu_sched self-detected stall on CPU",
    "[    2.043210] INFO: task sh:71 blocked for more than 120 seconds.",
    "[    2.043210] BUG: KASAN: slab-out-of-bounds in foo+0x1/0x2",
    "[    2.043210] UBSAN: array-index-out-of-bounds in kernel/foo.c:1:2",
    "[    2.043210] Out of memory: Killed process 71 (sh) total-vm:1kB",
    "[    2.043210] ------------[ cut here ]------------",
    "[    2.043210] Call Trace:",
)
_OTHER_TEXTS = (
    "error: x", "ERROR", "Error 1", "FAIL: x", "failed", "fault", "Segmentation fault", "test 1: BUG", "bug 12", "[x] ok", "12",
    "warning: x", "WARNING", "Killed", "root@qcase:/# ", "task 1", "in foo.c:1", "PASS", "out of memory", "address", "CPU", "sh",
    "[    2.043210] eth0: link becomes ready", "INFO", "stall", "x dereference", "blocked", "Killed process", "kernel",
)  # fmt: skip


def names_trouble(pattern: str) -> bool:
    """Tell whether a pattern looks for a kernel's reports (`qcase.console.trouble`) and for nothing else."""
    compiled = compile_pattern(pattern)
    if any(compiled.search(text) for text in _OTHER_TEXTS):
        return False
    return any(compiled.search(text) for text in _REPORTS)
