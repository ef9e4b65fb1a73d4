"""Root filesystem images: their digest, a fast copy, and writing an overlay into one.

Writing has four steps, so that only the third one needs a container:

    plan(base, overlay)       host       overlay folder + base image  → operations with canonical paths, sorted
    stage(job, base, build)   host       build/image.img (a copy of the base), build/write.debugfs
    shell(job)                container  grow (resize2fs), write (debugfs -w), check (e2fsck -fn); logs into build/
    verify(build, plan, …)    host       logs, then every file with `qcase.disk.ext4`, which shares no code with e2fsprogs

    /qcase/build/                        the step's view of the folder
      image.img  write.debugfs           in
      steps.log                          "<step> <exit status>" for each step that ran
      <step>.out  <step>.err             of base-check, resize, write, check

debugfs exits with 0 when the image is full, when it cannot read a name, and when a command fails. Therefore: names are quoted, or
refused where it has no quoting; every line that it prints is expected or an error; every file is read back.

The same overlay on the same base gives the same bytes, on every machine: operations are sorted, owner is 0:0, all times are one
constant, and nothing that decides the layout is read from the host, such as how many blocks a sparse file has there.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.disk.sparse_files import all_zero, copy_file_fast
from qcase.errors import InfraError
from qcase.host.trees import SPECIAL, Tree

if TYPE_CHECKING:
    from qcase.disk.ext4 import Ext4Image, Node
    from qcase.disk.inject_plan import InjectionPlan, Operation

BUILD_DIR = "/qcase/build"
OVERLAY_DIR = "/qcase/overlay"
IMAGE = "image.img"
SCRIPT = "write.debugfs"
INJECTOR_VERSION = 2  # part of every image key: increment it when the same overlay would give other bytes
_PRINTED = 256 << 10  # bytes of a step's output, besides the echo of its commands


@dataclass(frozen=True)
class InjectionJob:
    """The container's part of a plan: the commands for debugfs, the size to grow to first, the time to write."""

    script: str
    grow_to_bytes: int | None
    epoch: int


# --- the step in the container -------------------------------------------------------------------------------------------


def script(plan: InjectionPlan) -> str:
    """Build the commands for `debugfs -w -f`, one a line.

    Bytes that are not UTF-8 are surrogates: write it with `os.fsencode`.
    """
    from qcase.disk.ext4 import Kind
    from qcase.disk.inject_plan import Action

    lines: list[str] = []
    folder = ""
    for operation in plan.operations:
        # `write` takes a bare name, which it would not split at slashes. A name such as <12> means inode 12 to the commands
        # that take a path, hence `./`.
        if operation.parent != folder:
            folder = operation.parent
            lines.append(f'cd "{folder}"')
        name, itself = f'"{operation.name}"', f'"./{operation.name}"'
        if operation.replaces is not None:
            lines.append(f"{'rmdir' if operation.replaces is Kind.DIR else 'rm'} {itself}")
        if operation.action is Action.WRITE:
            lines.append(f'write "{OVERLAY_DIR}/{operation.source}" {name}')  # takes the source's mode
            if operation.mode & SPECIAL:  # in the guest alone: the host's file lacks these bits
                lines.append(f"sif {itself} mode 0{stat.S_IFREG | operation.mode:o}")
            if operation.links > 1:
                lines.append(f"sif {itself} links_count {operation.links}")
            if plan.inline_data:
                # debugfs makes each file inline at first, and ends it after its last block that is not zero. One without any
                # such block stays inline, whatever its size, so it has to become a file that is one hole.
                if operation.blank:
                    lines += [f"ea_rm {itself} system.data", f"sif {itself} flags 0"]
                lines.append(f"sif {itself} size {operation.size}")
        elif operation.action is Action.SYMLINK:
            lines.append(f'symlink {name} "{operation.target}"')
        elif operation.action is Action.LINK:
            # `ln` does not enlarge a full folder, but `symlink` does: its entry is removed again, and the room stays.
            lines += [f'symlink {name} "x"', f"rm {itself}", f'ln "{operation.target}" {name}']
        else:
            lines.append(f"mkdir {name}")
            if operation.mode != 0o755:
                lines.append(f"sif {itself} mode 0{stat.S_IFDIR | operation.mode:o}")
    return "".join(f"{line}\n" for line in lines)


def injection_job(plan: InjectionPlan) -> InjectionJob:
    """Return the container's part of a plan."""
    return InjectionJob(script(plan), plan.grow_to_bytes, plan.epoch)


def stage(job: InjectionJob, base: Path, build: Tree) -> None:
    """Put the inputs of the container step into the folder `build`. Raises `OSError` (`ENOSPC`: the disk is full)."""
    copy_file_fast(base, (build / IMAGE).host)  # no step has had the folder yet
    (build / SCRIPT).write_bytes(os.fsencode(job.script))


def shell(job: InjectionJob) -> str:
    """Build the program for `sh -eu -c` in the container.

    `/qcase/build` is the staged folder, `/qcase/overlay` the read-only overlay.

    It exits with 0 also when a step failed: `verify` finds the failure in the logs, which say more than an exit status.
    """
    grow = ""
    if job.grow_to_bytes is not None:
        # -f: resize2fs wants a fresh e2fsck, which would write the time of the check; base-check has just found it clean.
        grow = f"truncate -s {job.grow_to_bytes} {IMAGE}\nstep resize resize2fs -f {IMAGE}\n"
    return (
        f"cd {shlex.quote(BUILD_DIR)}\n"
        f"export E2FSPROGS_FAKE_TIME={job.epoch} SOURCE_DATE_EPOCH={job.epoch} LC_ALL=C.UTF-8 TZ=UTC\n"
        "step() {\n"
        "  name=$1 status=0\n"
        "  shift\n"
        '  "$@" >"$name.out" 2>"$name.err" || status=$?\n'
        '  echo "$name $status" >>steps.log\n'
        '  [ "$status" -eq 0 ] || exit 0\n'
        "}\n"
        f"step base-check e2fsck -fn {IMAGE}\n"
        f"{grow}"
        f"step write debugfs -w -f {SCRIPT} {IMAGE}\n"
        f"step check e2fsck -fn {IMAGE}\n"
    )


# --- verification ---------------------------------------------------------------------------------------------------------


def verify(build: Tree, plan: InjectionPlan, overlay: Tree) -> None:
    """Check that the image holds exactly the plan's result.

    Reads the output of every step, then each file in the image: type, mode, owner, times, size, content. Raises `InfraError` that
    names the first difference.
    """
    from qcase.disk.ext4 import Ext4Image

    _verify_steps(build, plan)
    _verify_output(build, script(plan))
    with (build / IMAGE).opened():
        image = (build / IMAGE).host  # a regular file, and the step is over
    with Ext4Image.open(image) as written:
        if plan.grow_to_bytes is not None and image.stat().st_size != plan.grow_to_bytes:
            raise InfraError(f"the image has not the size {plan.grow_to_bytes} that was asked for", where=str(image))
        for operation in plan.operations:
            wrong = _difference(written, operation, overlay, plan.epoch)
            if wrong:
                raise InfraError(f"{operation.path!r} was not written as it should be: {wrong}", where=str(image))


def step_output(build: Tree, name: str, limit: int = _PRINTED) -> bytes:
    """Read a file that a step has written; empty if there is no such file."""
    with contextlib.suppress(FileNotFoundError):
        return (build / name).read_bytes(limit)
    return b""


def _verify_steps(build: Tree, plan: InjectionPlan) -> None:
    expected = ["base-check", *(["resize"] if plan.grow_to_bytes is not None else []), "write", "check"]
    seen = [line.rpartition(" ") for line in step_output(build, "steps.log").decode(errors="replace").splitlines()]
    for name, (step, _, status) in zip(expected, seen, strict=False):
        if (step, status) == (name, "0"):
            continue
        what = {
            "base-check": "the base image is damaged",
            "resize": "the image could not be made larger",
            "write": "debugfs could not open the image",
            "check": "the image is damaged after writing",
        }[name]
        raise InfraError(
            f"{what}\n{_tail(build, name)}",
            where=f"injection, step {name} (status {status})",
            hint="repair it with e2fsck -fy" if name == "base-check" else "",
        )
    if len(seen) < len(expected):
        missing = expected[len(seen)]
        raise InfraError(f"step {missing!r} did not end\n{_tail(build, missing)}".strip(), where="injection")


def _tail(build: Tree, step: str) -> str:
    """Return the last lines of a step's output."""
    printed = b"".join(step_output(build, f"{step}.{end}") for end in ("out", "err"))
    return "\n".join(printed.decode(errors="replace").strip().splitlines()[-12:])


def _verify_output(build: Tree, commands: str) -> None:
    """Check debugfs' output: it echoes each command, and `write` prints the inode that it took. Any other line is an error."""
    errors = step_output(build, "write.err").decode(errors="replace").splitlines()
    complaints = [line for line in errors if line.strip() and not re.fullmatch(r"debugfs \d+(\.\d+)+.* \(.*\)", line)]
    if complaints:
        raise InfraError("debugfs: " + "\n".join(complaints[:12]), where="injection, step write")
    echoed = iter(os.fsencode(commands).split(b"\n")[:-1])
    after_write = False
    printed = step_output(build, "write.out", _PRINTED + len(commands) * 4 + commands.count("\n") * 64)
    for line in io.BytesIO(printed):
        line = line.rstrip(b"\n")
        if line.startswith(b"debugfs: "):
            if line[len(b"debugfs: ") :] != next(echoed, None):
                raise InfraError(f"debugfs read a command that was not given: {line!r}", where="injection, step write")
            after_write = line.startswith(b"debugfs: write ")
        elif after_write and re.fullmatch(rb"Allocated inode: \d+", line):
            after_write = False
        elif line:
            raise InfraError(f"debugfs said something unexpected: {line!r}", where="injection, step write")
    left = next(echoed, None)
    if left is not None:
        raise InfraError(f"debugfs stopped before the command {left!r}", where="injection, step write")


def _difference(image: Ext4Image, operation: Operation, overlay: Tree, epoch: int) -> str:
    """Describe how a node differs from its planned operation; empty if it does not."""
    from qcase.disk.ext4 import Kind
    from qcase.disk.inject_plan import Action

    node = image.lookup(operation.path, follow=False)
    kind = {Action.MKDIR: Kind.DIR, Action.SYMLINK: Kind.SYMLINK}.get(operation.action, Kind.FILE)
    if node is None:
        return "it is not there"
    if node.kind is not kind:
        return f"it is a {node.kind}, not a {kind}"
    if node.mode != operation.mode:
        return f"its mode is {node.mode:04o}, not {operation.mode:04o}"
    if (node.uid, node.gid) != (0, 0):
        return f"its owner is {node.uid}:{node.gid}, not 0:0"
    times = {node.atime_ns, node.mtime_ns, node.ctime_ns} | ({node.crtime_ns} if node.crtime_ns else set())
    if times != {epoch * 1_000_000_000}:
        return f"its times are {sorted(times)} ns, not {epoch} s"
    if kind is not Kind.DIR and node.links != operation.links:
        return f"it has {node.links} links, not {operation.links}"
    if operation.action is Action.LINK and image.lookup(operation.target, follow=False) != node:
        return f"it is not the same file as {operation.target!r}"
    if node.acl_block:
        return "it has extended attributes"
    if kind is Kind.SYMLINK and image.readlink(node) != operation.target:
        return f"it points to {image.readlink(node)!r}, not {operation.target!r}"
    if kind is Kind.FILE:
        return _content_difference(image, node, operation, overlay)
    return ""


def _content_difference(image: Ext4Image, node: Node, operation: Operation, overlay: Tree) -> str:
    if node.size != operation.size:
        return f"it has {node.size} bytes, not {operation.size}"
    with (overlay / operation.source).opened() as source:
        position = 0
        for offset, piece in image.segments(node):
            if not all_zero(source, position, offset) or os.pread(source, len(piece), offset) != piece:
                return f"its content differs, at or after byte {position}"
            position = offset + len(piece)
        if not all_zero(source, position, operation.size):
            return f"its content differs, at or after byte {position}"
    return ""
