"""New workspaces and new cases: `qcase init` and `qcase new`. Existing files are never changed.

    propose(root)      the settings of `qcase.toml` for a tree that was written for axbuild, with their reasons
    plan_workspace     the files of a new workspace
    plan_case          the files of a new case
    write              write them, all or none

axbuild has its names built in, and a suite contains them: the prefix of the grouped runner's markers in patterns, the prefix of
the variables in scripts, the hostname in prompts. Therefore they can be read from the tree.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qcase.arch import Arch
from qcase.config import schema
from qcase.config.workspace_file import WorkspaceConfig
from qcase.errors import InfraError, UsageError
from qcase.model import Pipeline
from qcase.suite.cases import ARCHES, Workspace
from qcase.suite.templates import Plan

SUITE_FOLDER = "test-suit"  # axbuild's
_MOST_FILES = 200_000  # files of a tree that are searched; a kernel's tree has a tenth of that


def usual_arches(workspace: Workspace) -> list[Arch]:
    """Return the architectures of most cases of a suite; x86_64 and aarch64 for an empty suite."""
    tree = _look_through(workspace.suite_root) if workspace.suite_root.is_dir() else _Tree()
    counts = Counter(arch for case in tree.cases.values() for arch in case)
    most = max(counts.values(), default=0)
    return [arch for arch in Arch if counts[arch] * 2 > most] or [Arch.X86_64, Arch.AARCH64]


# ---- a workspace


@dataclass(frozen=True)
class Proposal:
    """Proposed settings of `qcase.toml`. `values`: by dotted key; `reasons`: explanations for the user."""

    values: Mapping[str, object]
    reasons: tuple[str, ...] = ()
    arches: tuple[Arch, ...] = ()  # those that most cases are for first


def propose(root: Path) -> Proposal | None:
    """Propose the configuration that runs the tree of cases in `root`; None if there are no cases."""
    tree = _look_through(root)
    if not tree.cases:
        return None
    suite, others = _suite_root(tree)
    inside = {folder: arches for folder, arches in tree.cases.items() if _below(folder, suite)}
    groups = Counter(folder[len(suite) :].strip("/").partition("/")[0] for folder in inside)
    groups.pop("", None)
    folders = "1 folder" if len(inside) == 1 else f"{len(inside)} folders"
    reasons = [f"{folders} with qemu-<arch>.toml below {suite or '.'}: {_counted(groups)}"]
    reasons += [f"not looked at: {count} more below {other}" for other, count in others.items()]
    values: dict[str, object] = {"suite.root": suite or "."}
    if groups and "normal" not in groups:
        values["suite.default_group"] = groups.most_common(1)[0][0]
        reasons.append(f"default_group = {values['suite.default_group']}: there is no group 'normal', and it has the most cases")

    markers = _Votes(r"\b([A-Za-z_][A-Za-z0-9_]*?)_GROUPED_TESTS?_(?:BEGIN|PASSED|FAILED)\b")
    variables = _Votes(
        r"\b([A-Z][A-Z0-9_]*?)_(?:STAGING_ROOT|CASE_DIR|CASE_C_DIR|CASE_WORK_DIR|CASE_BUILD_DIR|CASE_OVERLAY_DIR)\b"
    )
    hostnames = {arch: _Votes(r"^\s*shell_prefix\s*=\s*['\"]root@([A-Za-z0-9-]+):") for arch in Arch}
    regions = _Votes(r"\$\{?([A-Z][A-Z0-9_]*_APK_REGION)\b")
    for path in (*tree.configs, *tree.scripts):
        if not _below(path, suite):
            continue
        text = _text(root / path)
        markers.count(path, text)
        variables.count(path, text)
        regions.count(path, text)
        arch = _arch_of(path.rpartition("/")[2])
        if arch is not None:
            hostnames[arch].count(path, text)
    for key, votes in (("grouped.prefix", markers), ("script_env.prefix", variables)):
        if votes.winner and votes.winner != "QCASE":
            values[key] = votes.winner
            reasons.append(f"[{key.partition('.')[0]}] prefix = {votes.winner}: {votes.why()}")
    if regions.winner:
        values["cache.env"] = [regions.winner]
        reasons.append(f"[cache] env = {regions.winner}: {regions.why()}; builds see it, and its value is part of every key")
    for arch, votes in hostnames.items():
        if votes.winner and votes.winner != WorkspaceConfig().guest[arch].hostname:
            values[f"guest.{arch}.hostname"] = votes.winner
            reasons.append(f"[guest.{arch}] hostname = {votes.winner}: {votes.why()}")
    counts = Counter(arch for arches in inside.values() for arch in arches)
    return Proposal(values, tuple(reasons), tuple(arch for arch, _ in counts.most_common()))


_KERNEL = """
# Without a word about it the built-in Linux is booted, which shows whether the cases themselves work. A command that builds your
# kernel, once for each build group, goes here; `[guest.<arch>] kernel` can also be a path.
#
# [guest.{arch}.kernel]
# build = "make ARCH=${{arch}} CONFIG=${{build_config}}"
# output = "target/${{target}}/release/kernel"
"""


def workspace_file(values: Mapping[str, object], *, kernel: Arch | None = None) -> str:
    """Return a `qcase.toml` with these values, and every other key commented out with its default.

    `kernel`: an architecture for which the file shows the build of the user's own kernel.
    """
    lines = [
        "# The workspace of qcase. Every key is here; those that are commented out show their defaults.",
        "# `qcase lint` checks this file and all of the suite.",
        "",
    ]
    tables: dict[str, list[str]] = {}
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        tables.setdefault(table, []).append(f"{name} = {schema.literal(value)}")
    for line in schema.commented("qcase", leave_out=lambda path: path in values):
        header = re.match(r"\[([a-z0-9_.]+)\]", line)
        lines += [line, *(tables.pop(header[1], []) if header else [])]
    for table, given in tables.items():
        lines += ["", f"[{table}]", *given]
    text = "\n".join(lines).rstrip() + "\n"
    return text if kernel is None else text + _KERNEL.format(arch=kernel)


# ---- writing


def write(folder: Path, plan: Plan) -> list[Path]:
    """Write a new folder with these files, completely or not at all. Raises `UsageError` if the path exists by now."""
    made = _missing_parents(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
            staged = Path(name, "new")
            for path, file in plan.items():
                place = staged / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(file.text, encoding="utf-8")
                place.chmod(0o755 if file.executable else 0o644)
            if folder.exists():
                raise UsageError("is there already, and nothing is overwritten", where=str(folder))
            staged.rename(folder)  # onto a folder that came between: fails unless that one is empty
    except OSError as error:
        for above in made:
            shutil.rmtree(above, ignore_errors=True) if above.is_dir() and not any(above.rglob("*")) else None
        raise InfraError(f"cannot be written: {error.strerror}", where=str(folder)) from None
    return [folder / path for path in plan]


def write_new(path: Path, text: str) -> None:
    """Write a file that does not exist yet, completely or not at all."""
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix=f".{path.name}.", dir=path.parent) as staged:
            staged.write(text)
            staged.flush()
            Path(staged.name).chmod(0o644)
            os.link(staged.name, path)  # unlike a rename, it does not replace
    except FileExistsError:
        raise UsageError("is there already, and nothing is overwritten", where=str(path)) from None
    except OSError as error:
        raise InfraError(f"cannot be written: {error.strerror}", where=str(path)) from None


def _missing_parents(folder: Path) -> list[Path]:
    return [above for above in folder.parents if not above.exists()]


# ---- looking through a tree


@dataclass
class _Tree:
    """Contents of a tree by relative path, separated by `/`. `cases`: folders, each with its arches."""

    cases: dict[str, list[Arch]] = field(default_factory=dict)
    configs: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)


def _look_through(root: Path) -> _Tree:
    tree = _Tree()
    seen = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "target")
        seen += len(files)
        if seen > _MOST_FILES:
            break
        here = os.path.relpath(folder, root)
        prefix = "" if here == "." else f"{here}/"
        configs = {name: arch for name in sorted(files) if (arch := _arch_of(name)) is not None}
        if configs:
            tree.cases[prefix.rstrip("/")] = [arch for arch in Arch if arch in configs.values()]
            tree.configs += [f"{prefix}{name}" for name in configs]
        tree.scripts += [f"{prefix}{name}" for name in sorted(files) if name in ("prebuild.sh", "CMakeLists.txt")]
    return tree


def _arch_of(name: str) -> Arch | None:
    """Return the architecture of `qemu-<arch>.toml` or `qemu-<arch>-<variant>.toml`; None for another file's name."""
    found = re.fullmatch(r"qemu-([a-z0-9_]+)(-.+)?\.toml", name)
    return ARCHES.get(found[1]) if found else None


def _suite_root(tree: _Tree) -> tuple[str, dict[str, int]]:
    """Return the folder of the groups, and the number of case folders in each other candidate.

    axbuild's suites are `test-suit/<group>/…` or `test-suit/<os>/<group>/…`; its other qemu-<arch>.toml are no cases.
    """
    suites = sorted((f for f in tree.cases if SUITE_FOLDER in f.split("/")), key=lambda f: f.split("/").index(SUITE_FOLDER))
    tops = Counter(folder.partition("/")[0] for folder in tree.cases if "/" in folder)
    if suites:
        parts = suites[0].split("/")
        top = "/".join(parts[: parts.index(SUITE_FOLDER) + 1])
    else:
        top = tops.most_common(1)[0][0] if tops else ""
    below = [folder[len(top) :].strip("/").split("/") for folder in tree.cases if _below(folder, top)]
    if any(parts[0] == "normal" for parts in below):
        return top, {}
    systems = Counter(parts[0] for parts in below if len(parts) > 2 and parts[1] == "normal")
    if not systems:
        return top, {}
    totals = Counter(parts[0] for parts in below)
    chosen = max(systems, key=lambda name: totals[name])
    return f"{top}/{chosen}".strip("/"), {f"{top}/{name}": count for name, count in totals.items() if name != chosen}


def _below(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")


class _Votes:
    """Count of the values that the first group of a pattern matches, by files."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern, re.MULTILINE)
        self._files: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def count(self, path: str, text: str) -> None:
        for name in set(self._pattern.findall(text)):
            self._files[name] += 1
            self._first.setdefault(name, path)

    @property
    def winner(self) -> str:
        return self._files.most_common(1)[0][0] if self._files else ""

    def why(self) -> str:
        winner, count = self._files.most_common(1)[0]
        others = [name for name in self._files if name != winner]
        also = f"; elsewhere {', '.join(others[:3])}" if others else ""
        say = "1 file says" if count == 1 else f"{count} files say"
        return f"{say} so, the first is {self._first[winner]}{also}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in counts.items()) or "none in a group"


def by_pipeline(pipelines: Iterable[Pipeline]) -> str:
    """Format the number of cases by pipeline: `12 c, 3 plain`."""
    counts = Counter(pipelines)
    known = (*Pipeline, *sorted(set(counts) - {*Pipeline}))
    return ", ".join(f"{counts[pipeline]} {pipeline}" for pipeline in known if counts[pipeline])
