"""Kernels: the files that QEMU starts, their formats, and their builds.

A kernel that a command makes is made once for each build group and run, before the first case of the group boots:

    <workspace>/target/qcase/logs/<arch>/<build group>/kernel.log     the command's output, unbuffered
    <workspace>/target/qcase/kernels/<sha256>/<name>                  its kernel, by content; removed a day after its last use
    <workspace>/target/qcase/kernels/<sha256>/<name>-<image>.bin …    files made of a kernel: unpacked, raw, on a disk
    <workspace>/target/qcase/kernels/<sha256>/.<file>.json            a file's stat facts when it was read, and its sha256
    <workspace>/target/qcase/kernels/<sha256>/.<file>.lock            held while a file is made of a kernel
    <workspace>/target/qcase/kernels/lock                             held while a command runs and its output is taken
    <workspace>/target/qcase/kernels/outputs.json                     each output's group, and the output's stat facts

QEMU boots the copy: two groups may build into the same file, and so may a user who builds by hand meanwhile. Commands run one at
a time, since nothing is known of the files that they share.

A file is staged, flushed and renamed into place; then its note is written, whose loss would not matter. Each use compares the
file's stat facts with the note, which reads nothing of it. Where they differ it is read in full, and made anew if its sha256 is
not the stored one.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from qcase import parsing
from qcase.arch import Arch
from qcase.config.case_file import Placeholders
from qcase.config.workspace_file import KernelBuild
from qcase.containers.step import Mount, Step, verdict_of
from qcase.errors import InfraError, KernelError
from qcase.guests.build_errors import first_error
from qcase.guests.kernel_copies import LOOK, is_whole, take
from qcase.guests.kernel_files import WORKSPACE, Kernel, Say, folder, mismatch
from qcase.host import beneath, file_state, locks, process
from qcase.host.files import write_aside
from qcase.host.trees import LARGEST, PlantedError, Tree
from qcase.host.workspace_folders import target_of
from qcase.text import printable

if TYPE_CHECKING:
    from qcase.containers.engine import Engine


BUILD_TIMEOUT = 3600.0  # seconds
BUILD_MEMORY = 8 << 30  # bytes, in a container
BUILD_PIDS = 4096
_LINE, _LINES = 4096, 1_000_000  # bytes of a line, and lines, in which the first error is looked for
_TAIL = 16_384  # bytes of a log that an error carries


@dataclass(frozen=True)
class Group:
    """Target of a kernel build. `name` is the build group's, empty where there is none; `config` its build-<target>.toml.

    `env`: variables of a case with a kernel of its own, each as `<name>=<value>`. `case`: the name of the one case that the
    kernel is built for, `folder` its folder and `args` its words for the command; empty and None for a kernel of several cases.
    """

    name: str
    config: Path | None
    arch: Arch
    target: str
    env: tuple[str, ...] = ()
    case: str = ""
    folder: Path | None = None
    args: tuple[str, ...] = ()

    def variables(self, recipe: KernelBuild) -> dict[str, str]:
        """Return the variables of a build: those of the recipe, and over them those of the case."""
        return {**recipe.env, **dict(pair.split("=", 1) for pair in self.env)}

    @property
    def variant(self) -> str:
        """The variant in `build-<target>-<variant>.toml`; empty for a build file without one."""
        return self.config.stem.removeprefix(f"build-{self.target}").removeprefix("-") if self.config else ""

    @property
    def shown(self) -> str:
        if self.case:
            return self.case
        shown = (self.name or "the suite") + (f", variant {self.variant}" if self.variant else "")
        return f"{shown}, {printable(' '.join(self.env))}" if self.env else shown

    @property
    def log(self) -> str:
        """The name of the log file of a build."""
        if self.case:
            return "own-kernel.log"
        words = [self.variant, hashlib.sha256("\0".join(self.env).encode()).hexdigest()[:8] if self.env else ""]
        return "-".join(filter(None, ("kernel", *words))) + ".log"


@dataclass(frozen=True)
class Tools:
    """Tools of a kernel build. `engine` and `image` (by a toolchain's name) are found when they are needed.

    `warn`: called for a copy that differs from its stored state. `began` and `ended`: called for each build, with its seconds and
    its error.
    """

    workspace: Path
    environ: Mapping[str, str]
    engine: Callable[[], Engine]
    image: Callable[[str], str]
    warn: Say = lambda _: None
    began: Callable[[Group], None] = lambda _: None
    ended: Callable[[Group, float, KernelError | InfraError | None], None] = lambda *_: None
    strangers: bool = False  # the workspace is untrusted
    closed: Callable[[], Collection[Path]] = tuple  # paths of an untrusted workspace that no build may write to, without links


@dataclass
class Builder:
    """Builder of kernels, each once. Several threads may call `kernel` at once; the later ones wait."""

    recipe: KernelBuild
    tools: Tools
    _made: dict[Group, Kernel | KernelError | InfraError] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def kernel(self, group: Group, say: Say, line: Say) -> Kernel:
        """Return the kernel of a group. `say`: called with the current activity; `line`: with the build's output.

        Raises `KernelError` if it cannot be made, again for each case of the group; the command is run once, and again only if
        the copy of its kernel is damaged meanwhile.
        """
        made = self._made.get(group)
        if made is None or (isinstance(made, Kernel) and not is_whole(made)):
            made = self._make(group, say, line)
        if isinstance(made, Kernel):
            return made
        raise made

    def _make(self, group: Group, say: Say, line: Say) -> Kernel | KernelError | InfraError:
        if not self._lock.acquire(blocking=False):
            say(f"waiting for the kernel of {group.shown}")
            self._lock.acquire()
        try:
            made = self._made.get(group)
            if isinstance(made, Kernel) and not is_whole(made):
                self.tools.warn(f"{made.path} was changed or is gone: it is not used, and built anew")
                made = None
            if made is None:
                self._made[group] = self._build(group, say, line)
            return self._made[group]
        finally:
            self._lock.release()

    def _build(self, group: Group, say: Say, line: Say) -> Kernel | KernelError | InfraError:
        """Run the command and tell how it went. The time in which the command of another kernel runs does not count."""
        began: list[float] = []

        def begin(group: Group) -> None:
            began.append(time.monotonic())
            self.tools.began(group)

        made: Kernel | KernelError | InfraError
        try:
            made = run_build(self.recipe, group, replace(self.tools, began=begin), say, line)
        except (KernelError, InfraError) as error:
            made = error
        self.tools.ended(group, time.monotonic() - began[0] if began else 0.0, None if isinstance(made, Kernel) else made)
        return made


def log_of(group: Group, workspace: Path) -> tuple[Tree, str]:
    """Return the log file of a group's build, and its path in messages."""
    parts = ("qcase/logs", group.arch, group.case or group.name, group.log)
    log = target_of(workspace) / "/".join(part for part in parts if part)
    return log, f"target/{log.below.removeprefix('target/')}"


def first_error_in(log: Tree) -> str:
    """Return the first error in the log of a build, see `build_errors`; empty if it cannot be read."""
    try:
        with log.opened() as fd, os.fdopen(fd, "rb", closefd=False) as file:
            lines = itertools.islice(iter(lambda: file.readline(_LINE), b""), _LINES)
            return first_error(line.decode(errors="replace") for line in lines)
    except (OSError, PlantedError):
        return ""


def run_build(recipe: KernelBuild, group: Group, tools: Tools, say: Say, line: Say) -> Kernel:
    """Run the command of a group and take its kernel. Raises `KernelError`, or `InfraError` for faults of the machine."""
    _check_placeholders(recipe, group, tools)
    log, shown = log_of(group, tools.workspace)
    output = Path(_placeholders(group, tools, tools.workspace).replace(recipe.output))
    output = tools.workspace / output
    log.unlink(missing_ok=True)
    os.close(log.appended())
    with _alone(folder(tools.workspace), say):
        tools.began(group)
        before = file_state.facts(output.resolve())
        if recipe.where == "host":
            what, hint = _on_host(recipe, group, tools, log, line)
        else:
            what, hint = _in_container(recipe, group, tools, log)
            output = output if what else _left_by_container(output, tools.workspace, recipe.output)
        if what:
            raise KernelError(
                what, where=f"the kernel of {group.shown}", hint=hint or f"all that it said: {shown}", log=_tail(log)
            )
        if not os.path.isfile(output):  # noqa: PTH113 - false where it cannot be looked at
            raise KernelError(
                f"its build succeeded and left no {recipe.output}",
                where=f"the kernel of {group.shown}",
                hint=f"looked for {output}; output is relative to the workspace",
                log=_tail(log),
            )
        if tools.strangers and not output.resolve().is_relative_to(tools.workspace.resolve()):
            what = f"its build left {recipe.output}, which is outside of the workspace"
            raise KernelError(what, where=f"the kernel of {group.shown}")
        if wrong := mismatch(output, group.arch):
            raise KernelError(f"its build left {recipe.output}, which {wrong}", where=f"the kernel of {group.shown}")
        _note_output(output, before, group, tools)
        return take(output, folder(tools.workspace))


def _check_placeholders(recipe: KernelBuild, group: Group, tools: Tools) -> None:
    """Check that each placeholder of a build stands for something that the build can read. Raises `KernelError`."""
    where = f"[guest.{group.arch}] kernel" if not group.case else f"the kernel of {group.shown}"
    for text in (recipe.build, recipe.output, *group.variables(recipe).values()):
        if group.config is None and "${build_config}" in text:
            raise KernelError(
                f"${{build_config}} stands for nothing: no build-{group.target}.toml is above the case",
                where=where,
                hint=f"make one in the folder of the build group, or choose another --target than {group.target}",
            )
        if not group.case and (name := next((name for name in ("case", "case_dir") if f"${{{name}}}" in text), None)):
            raise KernelError(
                f"${{{name}}} stands for nothing: the kernel of {group.shown} is for several cases",
                where=where,
                hint='[qcase] pipeline = "ktest" makes a case with a kernel of its own; a set of variables is [qcase] kernel_env',
            )
    if group.args and "${args}" not in recipe.build:
        raise KernelError(
            "the args of the case are not used: the command has no ${args}",
            where=where,
            hint="write ${args} where they are to stand",
        )
    for path in (group.config, group.folder):
        if recipe.where != "host" and path is not None and not path.is_relative_to(tools.workspace):
            raise KernelError(
                "is outside of the workspace, which is all that a build in a container sees",
                where=str(path),
                hint='where = "host" builds it on this machine',
            )


def _note_output(output: Path, before: file_state.Facts | None, group: Group, tools: Tools) -> None:
    """Record the group for which an output was written. Warn if a command succeeds and leaves the output of another group.

    That may be right, if nothing differs between the two. It may also be a command whose failure its last part hides, as a pipe
    into `tee` does, and then another kernel is tested than the one that is named.
    """
    notes = folder(tools.workspace) / "outputs.json"
    known: dict[str, dict[str, object]] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a malformed note counts as none
        known = {name: note for name, note in parsing.from_json(beneath.read(notes)).items() if isinstance(note, dict)}
    facts = file_state.facts(output.resolve())
    last = known.get(str(output))
    owner = f"{group.shown}, {group.target}"
    if facts != before or last is None or last.get("facts") != facts:
        known[str(output)] = {"facts": facts, "owner": owner if facts != before else None}
    elif last.get("owner") not in (None, owner):
        tools.warn(
            f"the build of the kernel of {group.shown} left {output} as it was written for {last['owner']}: "
            "is it the same kernel, or did the command fail and end with status 0?"
        )
    with contextlib.suppress(OSError):  # the next build of this output is not compared then
        write_aside(notes, json.dumps(known).encode())


def _placeholders(group: Group, tools: Tools, workspace: Path) -> Placeholders:
    def seen(path: Path | None) -> str:
        if path is None:
            return ""
        within = path.is_relative_to(tools.workspace)
        return str(workspace / path.relative_to(tools.workspace) if within else path)

    more = {
        "arch": group.arch.value,
        "target": group.target,
        "build_group": group.name,
        "build_config": seen(group.config),
        "case": group.case,
        "case_dir": seen(group.folder),
        "args": shlex.join(group.args),
    }
    inside = workspace != tools.workspace
    return Placeholders(
        workspace,
        tmp_dir=Path("/tmp") if inside else Path(tempfile.gettempdir()),  # noqa: S108 - the container's
        environment=tools.environ,
        more=more,
    )


def _on_host(recipe: KernelBuild, group: Group, tools: Tools, log: Tree, line: Say) -> tuple[str, str]:
    """Run the command as its author does: in the workspace, with all of the environment. Returns the fault and a hint."""
    names = _placeholders(group, tools, tools.workspace)
    environment = {**tools.environ, **{name: names.replace(value) for name, value in group.variables(recipe).items()}}
    with (
        os.fdopen(log.appended(), "wb") as out,
        log.opened() as reading,
        os.fdopen(reading, "rb", closefd=False) as said,
        process.spawn(
            ["sh", "-euc", names.replace(recipe.build)],
            env=environment,
            cwd=tools.workspace,
            stdout=out,
            stderr=subprocess.STDOUT,
        ) as child,
    ):
        deadline = process.Deadline.after(BUILD_TIMEOUT)
        while True:
            try:
                status = child.wait(LOOK)
                break
            except subprocess.TimeoutExpired:
                _follow(said, line)
            if deadline.passed:
                return f"its build took longer than {BUILD_TIMEOUT:g} s and was stopped", ""
    if status == 0:
        return "", ""
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return f"its build {how}", "a command was not found" if status == 127 else ""


def _kept_from_strangers(tools: Tools) -> dict[str, bool]:
    """List the places of an untrusted workspace to mount over, each with a flag: read-only for the build. Parents are writable.

    The places are the repository, since people run git in it, and qcase's inputs: a build that replaces a case's sources or a
    disk by a link to a file of the host would have that file read.
    """
    if not tools.strangers:
        return {}
    found: dict[str, bool] = {}
    for path in (tools.workspace / ".git", *tools.closed()):
        if path.exists() and path.is_relative_to(tools.workspace) and path != tools.workspace:
            inside = path.relative_to(tools.workspace)
            for above in list(inside.parents)[:-1]:
                found.setdefault(str(above), False)
            found[str(inside)] = True
    return found


def _in_container(recipe: KernelBuild, group: Group, tools: Tools, log: Tree) -> tuple[str, str]:
    names = _placeholders(group, tools, Path(WORKSPACE))
    step = Step(
        image=tools.image(recipe.where),
        argv=("sh", "-euc", "exec 2>&1\n" + names.replace(recipe.build)),
        mounts=(Mount(tools.workspace, WORKSPACE, False), *_shields(tools, group)),
        env={name: names.replace(value) for name, value in group.variables(recipe).items()},
        workdir=WORKSPACE,
        timeout=BUILD_TIMEOUT,
        memory=BUILD_MEMORY,
        pids=BUILD_PIDS,
        name="its build",
        log=log,
    )
    result = tools.engine().run(step)
    return ("", "") if result.exit_status == 0 and not result.timed_out else verdict_of(step, result)


def _shields(tools: Tools, group: Group) -> Iterator[Mount]:
    """Yield mounts over places that a kernel's build must not touch: qcase's folders, and those of an untrusted workspace.

    A mount point cannot be renamed or replaced; hence the folders above those places are mounted too.
    """
    closed = _kept_from_strangers(tools)
    if not (tools.workspace / "target").is_symlink():  # else it leads out of the workspace, and the build does not see it
        runs = f"/{group.target}/qemu-cases"
        for name, read_only in (("", False), ("/qcase", True), (f"/{group.target}", False), (runs, True)):
            Tree(tools.workspace, f"target{name}", "the workspace").mkdir(parents=True, exist_ok=True)
            closed[f"target{name}"] = read_only
    for name in sorted(closed, key=lambda name: (name.count("/"), name)):
        above = name.rpartition("/")[0]
        while above and not closed.get(above):
            above = above.rpartition("/")[0]
        if not above:  # a closed folder covers everything in it
            yield Mount(Tree(tools.workspace, name, "the workspace"), f"{WORKSPACE}/{name}", closed[name])


def _left_by_container(output: Path, workspace: Path, named: str) -> Path:
    """Find the file that a container build left: a regular one in the workspace, through links that stay in the workspace."""
    if not output.is_relative_to(workspace):
        return output  # a container build cannot have written it
    tree = Tree(workspace, what="the workspace")
    place = tree.followed(str(output.relative_to(workspace)), outside=True)
    if place is None or not place.is_file():
        if os.path.lexists(output):
            raise KernelError(f"its build left {named}, which is outside of the workspace or no file", where=str(output))
        return output
    try:
        with place.opened() as fd:
            size = os.fstat(fd).st_size
    except PlantedError as error:
        raise KernelError(f"its build left {named}, which cannot be read: {error.what}", where=str(output)) from None
    if size > LARGEST:
        raise KernelError(f"its build left {named}, which has more than {LARGEST >> 30} GiB", where=str(output))
    return place.host


def _follow(said: IO[bytes], line: Say) -> None:
    """Report the last line of the output written since the previous call."""
    new = said.read().decode(errors="replace").splitlines()
    if new and new[-1].strip():
        line(new[-1])


def _tail(log: Tree) -> str:
    try:
        with log.opened() as fd:
            return os.pread(fd, _TAIL, max(0, os.fstat(fd).st_size - _TAIL)).decode(errors="replace")
    except (OSError, PlantedError):
        return ""


@contextmanager
def _alone(folder: Path, say: Say) -> Iterator[None]:
    """Hold the lock of this workspace's kernel builds, so that one command runs at a time."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locks.held(folder / "lock", lambda: "another qcase, which builds a kernel here", say))
        except OSError as error:
            raise InfraError(f"cannot be written: {error.strerror}", where=str(folder)) from None
        yield
