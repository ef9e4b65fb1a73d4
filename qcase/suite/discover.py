"""The suite: discovery of its cases, their names, and their selection by patterns.

    <suite root>/<group>/…/<build group>/…/<case>/qemu-<arch>.toml, qemu-<arch>-<variant>.toml
                 │          │               │     c/ sh/ python/ rust/        at most one of them, or test_commands
                 │          │               └ a grouped case's children with c/, rust/, sh/ or python/ are its subcases
                 │          └ the first folder going down with build-<target>.toml; may be a case itself; may be missing
                 └ a folder right below the suite's root

Names: a case is called by its path below its build group, and shown as `<build group>/<name>`, the build group being its path
below the group. A build group that is a case has one name for both. Without a build group around it, a case is called by its path
below the group and shown as `<group>/<name>`. A group that is itself a build group, or a case, lends its own name.
`qemu-<arch>-<variant>.toml` makes a case of its own, `<name>-<variant>`, in the same folder; its kernel is that of
`build-<target>-<variant>.toml` if there is one.

A folder below a build group of another target only is for that target, just as a case without this arch's file is for another
arch: it is skipped, and named in the error if the user asks for it.

One scan of a group reads every folder once; nothing below a case, nor `c`, `sh`, `python`, `rust`, is entered. A symbolic link to
a folder is followed after the real folders, and only to folders that were not visited. An error in one place becomes a
`BrokenCase` there and affects no other case.
"""

from __future__ import annotations

import difflib
import gc
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qcase.arch import Arch
from qcase.config.case_file import CaseConfig, Placeholders
from qcase.config.workspace_file import KernelBuild
from qcase.errors import ConfigError, Problem, QcaseError
from qcase.model import Pipeline
from qcase.suite import case_file_cache, profiles
from qcase.suite.cases import ARCHES, BrokenCase, Case, Discovery, OtherCase, Subcase, Workspace, keep_one_folder, source_folders
from qcase.suite.scan import PROJECT_FILE, Found, flat_folders, ignored, scan_group, sorted_entries, wanted_groups
from qcase.text import printable

# Build files of a folder c/. A folder without any of them is no program of the guest if a command builds the kernel: its sources
# may be linked into the kernel.
MAKEFILES = ("GNUmakefile", "makefile", "Makefile")
BUILD_FILES = ("CMakeLists.txt", "meson.build", "configure", *MAKEFILES)
_LINK = 4096  # bytes of a link's target


def discover(workspace: Workspace, arch: Arch, target: str, group: str | Sequence[str] | None = None) -> Discovery:
    """Find the cases of groups, by name or glob (none: `[suite] default_group`) for `arch`, with the build groups of `target`.

    Raises `UsageError` for a missing suite and for an unknown group; every other error is in the result.
    """
    wanted = wanted_groups(workspace, group)
    cases: list[Case | BrokenCase] = []
    others: list[OtherCase] = []
    warnings: list[Problem] = []
    with case_reader(workspace) as reader:
        for name in wanted.names:
            scan = scan_group(workspace, name, arch, target)
            here: list[Case | BrokenCase] = [broken.in_suite(workspace.prefix) for broken in scan.broken]
            loaded: list[tuple[Path, tuple[Case | BrokenCase, ...]]] = []
            for found in scan.found:
                strays = stray_warnings(workspace, found)
                if arch in found.configs and not found.foreign_targets:
                    loaded.append((found.path / found.configs[arch], load(workspace, found, arch, reader, strays)))
                else:
                    prefix = workspace.prefix
                    own = prefix + found.display_name
                    shown, in_group = (prefix + found.path_name, own) if wanted.several else (own, "")
                    others.append(OtherCase(found.name, shown, tuple(found.configs), found.foreign_targets, in_group, prefix))
                    warnings += strays
            here += (case for _, found_here in profiles.without_doubles(loaded) for case in found_here)
            cases += (case.by_path() for case in here) if wanted.several else here
    is_ignored = ignored(workspace)
    return Discovery(
        wanted.names,
        str(wanted),
        arch,
        target,
        tuple(_unique(workspace, cases)),
        tuple(sorted(others, key=lambda case: case.display_name)),
        frozenset(case.display_name for case in cases if is_ignored(case.path)),
        tuple(warnings),
    )


def others_within(case: Case, folder: Path, *, project: bool = False) -> frozenset[Path]:
    """Return the paths in `folder`, a case's own or a subcase's, that belong to other cases: their folders, and links to those.

    None of these paths has a link in it. Cases of every arch and target count here, since the key of one arch must not depend on
    the cases of another. With `project` the folders of subcases belong to the case itself, except the configurations in them.
    """
    if not case.is_group:
        return frozenset()
    top = os.path.realpath(folder)
    found: set[Path] = set()
    seen = {top}
    todo = [] if top != os.path.realpath(case.path) and _configurations(top) else [top]
    while todo:
        here = todo.pop()
        try:
            with os.scandir(here) as entries:
                folders, _ = sorted_entries(entries)
        except OSError:
            continue  # the reader of the sources reports it
        for name in folders:
            path = f"{here}/{name}"
            real = os.path.realpath(path)
            if name in source_folders() or f"{top}/".startswith(f"{real.rstrip('/')}/"):
                continue
            configurations = _configurations(real)
            if not configurations:
                todo += {real} - seen
                seen.add(real)
            elif project and here == top and any(Path(path, kind).is_dir() for kind in source_folders()):
                found |= {Path(real, file) for file in configurations}
            else:
                found |= {Path(path), Path(real)}
    return frozenset(found)


def _configurations(folder: str) -> list[str]:
    """Return the configuration files that make a folder a case; an empty list if it is none."""
    try:
        with os.scandir(folder) as entries:
            _, files = sorted_entries(entries)
    except OSError:
        return []
    return files if any(name.startswith("qemu-") and not name.startswith("qemu-base-") for name in files) else []


def resolve_pipeline(name: str, config: CaseConfig, folders: Collection[str], *, path: Path, workspace: Workspace) -> Pipeline:
    """Return the pipeline of a case with these child folders.

    Raises `ConfigError`, which names all of them, if there are several.
    """
    pipelines = [Pipeline.GROUPED] if config.is_grouped else [Pipeline.KTEST] if config.ktest else []
    pipelines += [pipeline for folder, pipeline in source_folders().items() if folder in folders]
    if len(pipelines) > 1:
        raise ConfigError(
            [
                Problem(
                    f"case '{name}' has more than one pipeline: {', '.join(pipelines)}",
                    workspace.relative(path),
                    hint=keep_one_folder("pipeline" if config.ktest else "test_commands"),
                )
            ]
        )
    return pipelines[0] if pipelines else Pipeline.PLAIN


# ---- from a folder to a case


def load(
    workspace: Workspace, found: Found, arch: Arch, reader: case_file_cache.Reader, warnings: Sequence[Problem]
) -> tuple[Case | BrokenCase, ...]:
    """Load a case with one architecture's file: several cases if that has a matrix."""
    config_path = found.path / found.configs[arch]
    try:
        config = reader.load(config_path)
        in_kernel = config.ktest or isinstance(workspace.config.guest[arch].kernel, KernelBuild)
        if problems := [problem for name in source_folders() for problem in _leads_nowhere(workspace, found.path / name)]:
            raise ConfigError(problems)
        folders = [name for name in found.folders if not (in_kernel and _is_for_kernel(found.path, name))]
        pipeline = resolve_pipeline(found.display_name, config, folders, path=config_path, workspace=workspace)
        subcases = _subcases(workspace, found) if pipeline is Pipeline.GROUPED else ()
        if in_kernel:
            subcases = tuple(one for one in subcases if not _is_for_kernel(one.path, one.kind.value, project=found.path))
        case = _case(found, arch, config_path, config, pipeline, subcases, warnings)
        return tuple(
            one.in_suite(workspace.prefix) for part in profiles.of_group(case, workspace, reader) for one in part.machines()
        )
    except QcaseError as e:
        broken = BrokenCase(found.name, found.display_name, found.group, found.build_group, found.path, e, below=found.below)
        return (broken.in_suite(workspace.prefix),)


def _case(
    found: Found,
    arch: Arch,
    config_path: Path,
    config: CaseConfig,
    pipeline: Pipeline,
    subcases: tuple[Subcase, ...],
    warnings: Sequence[Problem],
) -> Case:
    return Case(
        found.name,
        found.display_name,
        found.group,
        found.build_group,
        found.path,
        arch,
        config_path,
        config,
        pipeline,
        subcases,
        (*config.warnings, *warnings),
        variant=found.variant,
        is_group=found.name == found.display_name,
        below=found.below,
    )


def _is_for_kernel(path: Path, folder: str, *, project: Path | None = None) -> bool:
    """Tell whether sources in C lack a build file for a program. `project`: a folder above that may have one."""
    if folder != Pipeline.C or (project is not None and (project / BUILD_FILES[0]).is_file()):
        return False
    return not any((path / folder / name).is_file() for name in BUILD_FILES)


def _subcases(workspace: Workspace, found: Found) -> tuple[Subcase, ...]:
    subcases: list[Subcase] = []
    problems: list[Problem] = []
    has_project = (found.path / PROJECT_FILE).is_file()
    for name in found.folders:
        path = found.path / name
        try:
            with os.scandir(path) as entries:
                named = [entry for entry in entries if entry.name in source_folders()]
                present = {entry.name for entry in named if entry.is_dir()}
        except OSError as e:
            problems.append(Problem(f"cannot be read: {e.strerror}", workspace.relative(path)))
            continue
        for entry in named:
            problems += _leads_nowhere(workspace, Path(entry.path))
        kinds = [pipeline for folder, pipeline in source_folders().items() if folder in present]
        if len(kinds) > 1:
            what = f"subcase '{printable(name)}' has more than one pipeline: {', '.join(kinds)}"
            problems.append(Problem(what, workspace.relative(path), hint=keep_one_folder()))
        elif kinds:
            subcases.append(Subcase(name, path, kinds[0]))
        elif has_project:
            subcases += (Subcase(relative, found.path / relative, Pipeline.C, flat=True) for relative in flat_folders(path, name))
    for subcase in subcases:
        if not subcase.name.isprintable():
            what = "the name of the subcase has characters that cannot be printed"
            problems.append(Problem(what, workspace.relative(subcase.path)))
    if problems:
        raise ConfigError(problems)
    return tuple(subcases)


def _leads_nowhere(workspace: Workspace, path: Path) -> list[Problem]:
    """Report sources that are a dangling link, or a link that git wrote as text. The case without them would be another one.

    Git writes links as text where `core.symlinks` is false: the file has the target of the link and no line end.
    """
    try:
        about = path.lstat()
        if stat.S_ISLNK(about.st_mode) and not path.exists():
            what = f"is a link to {printable(os.fspath(path.readlink()))}, and nothing is there"
            return [Problem(what, workspace.relative(path), hint="put the sources there, or take the link away")]
        if not stat.S_ISREG(about.st_mode) or about.st_size > _LINK:
            return []
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    if not text.isprintable() or "/" not in text or text.startswith("#"):
        return []
    what = f"is a file in place of a link to {text}"
    return [
        Problem(
            what, workspace.relative(path), hint="make it a link again: git wrote it as text, see core.symlinks of git config"
        )
    ]


def _unique(workspace: Workspace, cases: Iterable[Case | BrokenCase]) -> list[Case | BrokenCase]:
    """Make the cases unique by display name. Two cases of one name would share run folder and report: an error replaces both."""
    unique: dict[str, Case | BrokenCase] = {}
    for case in sorted(cases, key=lambda case: (case.display_name, case.path)):
        if other := unique.get(case.display_name):
            what = f"two cases are called '{case.display_name}'"
            problem = Problem(what, workspace.relative(case.path), hint=f"the other one is {workspace.relative(other.path)}")
            error = ConfigError([problem])
            unique[case.display_name] = BrokenCase(case.name, case.display_name, case.group, case.build_group, case.path, error)
        else:
            unique[case.display_name] = case
    return list(unique.values())


def stray_warnings(workspace: Workspace, found: Found) -> tuple[Problem, ...]:
    """Warn about files named like a configuration, for an unknown architecture."""
    warnings = []
    for file in found.strays:
        text = file[len("qemu-") : -len(".toml")]
        if near := difflib.get_close_matches(text, ARCHES, n=1):
            hint = f"did you mean 'qemu-{near[0]}.toml'?"
        else:
            hint = f"known: {', '.join(ARCHES)}"
        what = f"ignored: '{printable(text)}' is no architecture"
        warnings.append(Problem(what, workspace.relative(found.path / file), hint=hint))
    return tuple(warnings)


@contextmanager
def case_reader(workspace: Workspace) -> Iterator[case_file_cache.Reader]:
    """Open a reader of case files, with the garbage collector off: the parsed files of a large suite all stay alive."""
    resting = gc.isenabled()
    gc.disable()
    try:
        workspace.check_target()
        environment = None if workspace.sandboxed else os.environ
        with case_file_cache.reader(workspace.root, Placeholders(workspace.root, environment=environment)) as reader:
            yield reader
    finally:
        if resting:
            gc.enable()
