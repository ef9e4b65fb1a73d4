"""One step: its mounts, limits and result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from qcase.errors import InfraError
from qcase.host.trees import PlantedError, Tree

GIB = 1 << 30
DEFAULT_MEMORY = 2 * GIB
DEFAULT_PIDS = 1024
LOG_LIMIT = 16 << 20  # bytes of a step's output in its log file
TAIL_LIMIT = 64 << 10  # bytes of a step's output in its result

FREE_FLOOR = 256 << 20  # bytes that a step must leave free on each disk that it writes to; at most 1/20 of the disk
INODE_FLOOR = 20_000  # inodes that a step must leave free; at most 1/20 of the disk's inodes
SIGNALLED = 128  # exit status of a process that a signal ended, without the signal's number
KILLED = SIGNALLED + 9
DYING = 30.0  # timeout in seconds from kill to exit; the kernel frees memory, and the engine unmounts layers


@dataclass(frozen=True)
class Mount:
    """A bind mount of a host folder or file at a fixed path of the container. The source must exist before the step starts.

    The source of a writable mount is a `Tree`, so that later reads do not follow links that the step planted.
    """

    source: Path | Tree
    target: str
    read_only: bool = True

    @property
    def place(self) -> Path:
        return self.source.host if isinstance(self.source, Tree) else self.source


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command in one image. `image` is an image id; `timeout` in seconds, `memory` in bytes.

    `name` is for messages, e.g. "configure". The step's output goes to the file `log`; beyond `LOG_LIMIT` its middle is cut out.
    Standard output and standard error are separate streams, so a line of one can overtake a line of the other. A shell program
    keeps the order with `exec 2>&1`.
    """

    image: str
    argv: tuple[str, ...]
    mounts: tuple[Mount, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/"
    network: bool = False
    timeout: float
    memory: int = DEFAULT_MEMORY
    pids: int = DEFAULT_PIDS
    name: str
    log: Path | Tree | None = None


@dataclass(frozen=True)
class StepResult:
    """Result of a step. `exit_status` is 128 + n after signal n; `output` holds the last `TAIL_LIMIT` bytes of its output.

    `oom`: the kernel killed a process of the step for lack of memory; the step may still exit with status 0. Status 137 without
    `oom`: the step killed itself, or the engine missed the kernel's OOM event. A kill from outside raises an error and gives no
    result. `crowded`: qcase stopped the step because it stayed at a process limit, like a fork bomb.
    """

    exit_status: int
    output: str
    log: Path | Tree | None
    timed_out: bool
    oom: bool
    seconds: float
    crowded: bool = False
    filled: Path | None = None  # a mount on the disk that the step filled; the step was stopped or failed

    @property
    def out_of_processes(self) -> bool:
        """Tell whether the step hit its process limit, by its output: the engine has no flag for that limit."""
        return self.crowded or (self.exit_status != 0 and _FORK_FAILED.search(self.output) is not None)


_FORK_FAILED = re.compile(r"(?i)(can't|cannot|unable to) fork|fork: retry|fork failed|vfork: |pthread_create failed")


def check_mounts(step: Step) -> None:
    """Check that each mount's source exists, and each mount point inside another mount, which the engine would create as root.

    Raises `InfraError` if one is missing. Raises `PlantedError` if a mount point in a folder of an earlier step is no folder or
    file: an engine's handling of links there is not reliable.
    """
    assert step.argv
    for mount in step.mounts:
        if not mount.source.exists() or (isinstance(mount.source, Tree) and mount.source.is_symlink()):
            raise InfraError("to be mounted, and not there", where=str(mount.source), hint=f"the step {step.name} needs it")
        try:
            str(mount.source).encode()
        except UnicodeEncodeError:
            raise InfraError("a container engine takes paths in UTF-8 only", where=repr(str(mount.source))) from None
    for place in (*(mount.target for mount in step.mounts), step.workdir):
        inside = _on_host(place, step.mounts)
        if isinstance(inside, Tree) and not (inside.is_dir() or inside.is_file()):
            raise PlantedError(f"{inside.shown} has to be a folder for the step {step.name}, and is none")
        if isinstance(inside, Path) and not inside.exists():
            raise InfraError(
                f"the step {step.name} needs {place}, and not there, the engine would create it as root", where=str(inside)
            )


def _on_host(place: str, mounts: tuple[Mount, ...]) -> Path | Tree | None:
    """Return the host path of a container path, by the innermost mount strictly above it; None outside all mounts."""
    path = PurePosixPath(place)
    above = [m for m in mounts if PurePosixPath(m.target) in path.parents]
    if not above:
        return None
    innermost = max(above, key=lambda m: len(PurePosixPath(m.target).parts))
    return innermost.source / str(path.relative_to(innermost.target))


def verdict_of(step: Step, result: StepResult) -> tuple[str, str]:
    """Return the message and the hint for a failed step."""
    if result.timed_out:
        return f"{step.name} took longer than {step.timeout:g} s and was stopped", ""
    if result.crowded:
        return (
            f"{step.name} stayed at too many of the {step.pids} processes that it may have, as a fork bomb does; it was stopped",
            "",
        )
    if result.filled is not None:
        return (
            f"{step.name} filled the disk (status {result.exit_status})",
            f"the disk is that of {result.filled}; a step is stopped when less than {_size(FREE_FLOOR)}, {INODE_FLOOR} files,"
            " or a twentieth of either is left",
        )
    if result.oom and result.exit_status == KILLED:
        return f"{step.name} was killed, because it needs more than the {_size(step.memory)} of memory that it may use", ""
    if result.oom:
        return (
            f"{step.name} needed more than the {_size(step.memory)} of memory that it may use (status {result.exit_status})",
            "",
        )
    if result.out_of_processes:
        return f"{step.name} needed more than the {step.pids} processes that it may have (status {result.exit_status})", ""
    if result.exit_status == KILLED:
        what = f"{step.name} was killed by signal 9 from within, or because it needs more than the {_size(step.memory)} of memory"
        return f"{what} that it may use; the engine does not say", ""
    if result.exit_status == 127:
        return f"{step.name} ended with status 127", "a command was not found in the image"
    return f"{step.name} ended with status {result.exit_status}", ""


def _size(count: int) -> str:
    for unit, name in ((GIB, "GiB"), (1 << 20, "MiB")):
        if count >= unit:
            return f"{count / unit:g} {name}"
    return f"{count} bytes"
