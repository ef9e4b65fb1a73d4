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
from qcase.host import beneath
from qcase.model import Pipeline
from qcase.suite import untranslated
from qcase.suite.cases import ARCHES, Workspace
from qcase.suite.templates import Plan

SUITE_FOLDER = "test-suit"  # axbuild's
_RESULTS = "/target/qcase/"  # where runs leave logs and results, as `.gitignore` names it
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
    """Proposed settings of `qcase.toml`. `values`: by dotted key; `reasons`: explanations for the user.

    `untranslated`: what the tree has and the settings do not say.
    """

    values: Mapping[str, object]
    reasons: tuple[str, ...] = ()
    arches: tuple[Arch, ...] = ()  # those that most cases are for first
    untranslated: tuple[str, ...] = ()


def propose(root: Path) -> Proposal | None:
    """Propose the configuration that runs the tree of cases in `root`; None if there are no cases."""
    tree = _look_through(root)
    if not tree.cases:
        return None
    first, *others = _suites(tree)
    values: dict[str, object] = {}
    reasons: list[str] = []
    found = _Suite(root, tree, first, others_like_it=bool(others))
    found.propose(values, reasons, "")
    for folder in others:
        name = folder.rpartition("/")[2]
        if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_+-]*", name):
            _Suite(root, tree, folder, others_like_it=True).propose(values, reasons, f"suites.{name}.")
    if found.regions.winner:
        values["cache.env"] = [found.regions.winner]
        why = f"{found.regions.why()}; builds see it, and its value is part of every key"
        reasons.append(f"[cache] env = {found.regions.winner}: {why}")
    within = [path for path in (*tree.configs, *tree.scripts) if any(_below(path, suite) for suite in (first, *others))]
    if clang := _built_with_clang(root, tree, within):
        values["toolchain.c.compiler"] = "clang"
        reasons.append(f"[toolchain.c] compiler = clang: {clang}")
    if online := next((path for path in within if _NETWORK.search(_text(root / path)) and _CARD.search(_text(root / path))), ""):
        values["run.network"] = "user"
        reasons.append(f"[run] network = user: guests of axbuild reach the network, and {online} uses it")
    counts = Counter(arch for arches in found.inside.values() for arch in arches)
    configs = [path for path in within if path in set(tree.configs)]
    for arch, name in untranslated.small_disks(root, configs):
        values[f"guest.{arch}.disks"] = {name: "debian"}
        reasons.append(f"[guest.{arch}] disks: {name} = debian, which is busybox and nothing else")
    left = untranslated.find(root, configs, [path for path in tree.boards if any(_below(path, s) for s in (first, *others))])
    outside = Counter(folder.partition("/")[0] for folder in tree.cases if not any(_below(folder, s) for s in (first, *others)))
    left += [f"not looked at: {count} more below {folder or '.'}" for folder, count in outside.items()]
    return Proposal(values, tuple(reasons), tuple(arch for arch, _ in counts.most_common()), tuple(left))


# What a guest does in a network, and the card that it does it with. `10.0.2.2` is this machine.
_NETWORK = re.compile(r"\b(?:apk\s+(?:add|update|fetch)|wget|curl|ping|nslookup|git\s+clone|10\.0\.2\.2)\b")
_CARD = re.compile(r"\buser,id=|-netdev")


def _built_with_clang(root: Path, tree: _Tree, within: Iterable[str]) -> str:
    """Return the sign that axbuild, which compiles with clang, builds programs of this tree; empty without one."""
    if not any(path.endswith("CMakeLists.txt") for path in within):
        return ""
    return next(
        (f"axbuild has it so, and {path} names axbuild" for path in tree.manifests if "axbuild" in _text(root / path)), ""
    )


class _Suite:
    """Findings in the files of one suite. `folder`: its root, relative to the tree."""

    def __init__(self, root: Path, tree: _Tree, folder: str, *, others_like_it: bool) -> None:
        self.folder = folder
        self.is_one_of_several = others_like_it
        self.inside = {path: arches for path, arches in tree.cases.items() if _below(path, folder)}
        self.markers = _Votes(r"\b([A-Za-z_][A-Za-z0-9_]*?)_GROUPED_TESTS?_(?:BEGIN|PASSED|FAILED)\b")
        names = "STAGING_ROOT|CASE_DIR|CASE_C_DIR|CASE_WORK_DIR|CASE_BUILD_DIR|CASE_OVERLAY_DIR|GROUPED_C_SUBCASES"
        self.variables = _Votes(rf"\b([A-Z][A-Z0-9_]*?)_(?:{names})\b")
        self.hostnames = {arch: _Votes(r"^\s*shell_prefix\s*=\s*['\"]root@([A-Za-z0-9-]+):") for arch in Arch}
        self.regions = _Votes(r"\$\{?([A-Z][A-Z0-9_]*_APK_REGION)\b")
        for path in (*tree.configs, *tree.scripts):
            if not _below(path, folder):
                continue
            text = _text(root / path)
            for votes in (self.markers, self.variables, self.regions):
                votes.count(path, text)
            arch = _arch_of(path.rpartition("/")[2])
            if arch is not None:
                self.hostnames[arch].count(path, text)

    def propose(self, values: dict[str, object], reasons: list[str], table: str) -> None:
        """Add the settings and their reasons. `table`: empty for `[suite]`, else `suites.<name>.`."""
        groups = Counter(path[len(self.folder) :].strip("/").partition("/")[0] for path in self.inside)
        groups.pop("", None)
        folders = "1 folder" if len(self.inside) == 1 else f"{len(self.inside)} folders"
        reasons.append(f"{folders} with qemu-<arch>.toml below {self.folder or '.'}: {_counted(groups)}")
        own = table or "suite."
        values[f"{own}root"] = self.folder or "."
        if groups and "normal" not in groups:
            chosen = "*" if self.is_one_of_several else groups.most_common(1)[0][0]
            why = "its folders are no groups" if chosen == "*" else "there is no group 'normal', and it has the most cases"
            values[f"{own}default_group"] = chosen
            reasons.append(f"default_group = {chosen}: {why}")
        for key, votes in (("grouped.prefix", self.markers), ("script_env.prefix", self.variables)):
            if votes.winner and votes.winner != values.get(key, "QCASE"):
                values[table + key] = votes.winner
                reasons.append(f"[{table}{key.partition('.')[0]}] prefix = {votes.winner}: {votes.why()}")
        for arch, votes in self.hostnames.items():
            usual = values.get(f"guest.{arch}.hostname", WorkspaceConfig().guest[arch].hostname)
            if votes.winner and votes.winner != usual:
                values[f"{table}guest.{arch}.hostname"] = votes.winner
                reasons.append(f"[{table}guest.{arch}] hostname = {votes.winner}: {votes.why()}")


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


def ignore_results(root: Path) -> str:
    """Let git ignore what runs leave in a new workspace. Return the line to print; empty if git ignores it already."""
    path = root / ".gitignore"
    if not os.path.lexists(path):
        write_new(path, f"{_RESULTS}\n")
        return f"{path.name}: written"
    try:
        lines = beneath.text(path).splitlines()
    except (OSError, ValueError):
        lines = []
    if any(line.strip().strip("/") in ("target", "target/qcase", "**/target", "target/*", "target/**") for line in lines):
        return ""
    return f"{path.name}: add the line {_RESULTS}, where runs leave their logs"


def _missing_parents(folder: Path) -> list[Path]:
    return [above for above in folder.parents if not above.exists()]


# ---- looking through a tree


@dataclass
class _Tree:
    """Contents of a tree by relative path, separated by `/`. `cases`: folders, each with its arches."""

    cases: dict[str, list[Arch]] = field(default_factory=dict)
    configs: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    boards: list[str] = field(default_factory=list)  # axbuild's files for machines that are no QEMU
    manifests: list[str] = field(default_factory=list)
    systems: set[str] = field(default_factory=set)  # the folders in os/, in lower case


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
        if here == "os":
            tree.systems = {name.lower() for name in folders}
        tree.boards += [f"{prefix}{name}" for name in sorted(files) if re.fullmatch(r"board-.+\.toml", name)]
        tree.manifests += [f"{prefix}Cargo.toml"] if "Cargo.toml" in files and prefix.count("/") <= 2 else []
        tree.scripts += [f"{prefix}{name}" for name in sorted(files) if name in ("prebuild.sh", "CMakeLists.txt")]
    return tree


def _arch_of(name: str) -> Arch | None:
    """Return the architecture of `qemu-<arch>.toml` or `qemu-<arch>-<variant>.toml`; None for another file's name."""
    found = re.fullmatch(r"qemu-([a-z0-9_]+)(-.+)?\.toml", name)
    return ARCHES.get(found[1]) if found else None


def _suites(tree: _Tree) -> list[str]:
    """Return the folders of the groups of each suite, that with the most cases first.

    axbuild's suites are `test-suit/<group>/…` or `test-suit/<os>/…`; its other qemu-<arch>.toml are no cases. A folder is that of
    a system if it has a group `normal`, or if its name is that of a folder in `os/`.
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
        return [top]
    systems = {parts[0] for parts in below if (len(parts) > 2 and parts[1] == "normal") or parts[0].lower() in tree.systems}
    if not systems:
        return [top]
    totals = Counter(parts[0] for parts in below)
    ordered = sorted(totals, key=lambda name: (name not in systems, -_weight(tree, f"{top}/{name}"), name))
    return [f"{top}/{name}".strip("/") for name in ordered]


def _weight(tree: _Tree, folder: str) -> int:
    """Return the number of folders with something to run or to build below a folder."""
    built = {path.rpartition("/")[0] for path in tree.scripts if path.endswith("CMakeLists.txt")}
    return sum(_below(path, folder) for path in {*tree.cases, *built})


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
