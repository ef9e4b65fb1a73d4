"""Kernels: the files that QEMU starts, what they are, and how they are made.

A kernel that a command makes is made once for each build group and run, before the first case of the group boots:

    <workspace>/target/qcase/logs/<arch>/<build group>/kernel.log     what the command says, as it says it
    <workspace>/target/qcase/kernels/<sha256>/<name>                  what it left, by content; a day after its last use it goes
    <workspace>/target/qcase/kernels/<sha256>/<name>-<image>.bin …    what is made of a kernel: unpacked, raw, on a disk
    <workspace>/target/qcase/kernels/<sha256>/.<file>.json            how a file looked when it was read, and its sha256
    <workspace>/target/qcase/kernels/<sha256>/.<file>.lock            held while a file is made of a kernel
    <workspace>/target/qcase/kernels/lock                             held while a command runs and its output is taken
    <workspace>/target/qcase/kernels/outputs.json                     for which group each output was written, and how it looked

What is booted is the copy: two groups may build into the same file, and so may somebody who builds by hand meanwhile. Commands
run one at a time, since nothing is known of what they share.

A file is staged, flushed and renamed into place; then its note is written, whose loss would not matter. Each use compares how
the file looks with the note, which reads nothing of it. Where they differ it is read in full, and made anew if it is not what was
stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from qcase import containers, kept, locks, process
from qcase.config import KernelBuild, Placeholders
from qcase.containers import Mount, Step
from qcase.content import flush, write_aside
from qcase.errors import InfraError, KernelError, UsageError
from qcase.model import Arch

if TYPE_CHECKING:
    from qcase.containers import Engine

BUILD_TIMEOUT = 3600.0  # seconds
BUILD_MEMORY = 8 << 30  # bytes, in a container
BUILD_PIDS = 4096
KEPT = 86_400.0  # seconds after its last use for which a copy is kept
WORKSPACE = "/qcase/workspace"  # where a step finds the workspace
FORMAT = 1  # of a note; raised also when the same kernel gives another file
_COPIES = 5  # attempts at copying what somebody writes to meanwhile
_LOOK = 0.1  # seconds between two looks at what a build says
_TAIL = 16_384  # bytes of a log that an error carries


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot. `sha256` of the file."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Group:
    """What a kernel is built for. `name` is the build group's, empty where there is none; `config` its build-<target>.toml."""

    name: str
    config: Path | None
    arch: Arch
    target: str

    @property
    def shown(self) -> str:
        return self.name or "the suite"


Say = Callable[[str], None]


@dataclass(frozen=True)
class Tools:
    """What a build works with. `engine` and `image` (by a toolchain's name) are found when they are needed. `warn`: who is told
    of a copy that is not what was stored."""

    workspace: Path
    environ: Mapping[str, str]
    engine: Callable[[], Engine]
    image: Callable[[str], str]
    warn: Say = lambda _: None


@dataclass
class Builder:
    """Builds kernels, each once. `kernel` may be called by several threads at once; those who come second wait."""

    recipe: KernelBuild
    tools: Tools
    _made: dict[Group, Kernel | KernelError | InfraError] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def kernel(self, group: Group, say: Say, line: Say) -> Kernel:
        """The kernel of a group. `say`: what is being done; `line`: what the build says.

        Raises `KernelError` if it cannot be had, again for each case of the group; the command is run once, and again only if
        the copy of what it left is damaged meanwhile.
        """
        made = self._made.get(group)
        if made is None or (isinstance(made, Kernel) and not _is_whole(made)):
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
            if isinstance(made, Kernel) and not _is_whole(made):
                self.tools.warn(f"{made.path} was changed or is gone: it is not used, and built anew")
                made = None
            if made is None:
                try:
                    self._made[group] = build(self.recipe, group, self.tools, say, line)
                except (KernelError, InfraError) as error:
                    self._made[group] = error
            return self._made[group]
        finally:
            self._lock.release()


def build(recipe: KernelBuild, group: Group, tools: Tools, say: Say, line: Say) -> Kernel:
    """Run the command of a group and take what it leaves. Raises `KernelError`, or `InfraError` for what is not its fault."""
    for text in (recipe.build, recipe.output, *recipe.env.values()):
        if group.config is None and "${build_config}" in text:
            raise KernelError(
                f"${{build_config}} stands for nothing: no build-{group.target}.toml is above the case",
                where=f"[guest.{group.arch}] kernel",
                hint=f"make one in the folder of the build group, or choose another --target than {group.target}",
            )
    log = tools.workspace / "target" / "qcase" / "logs" / group.arch / group.name / "kernel.log"
    shown = str(log.relative_to(tools.workspace))
    output = Path(_placeholders(group, tools, tools.workspace).replace(recipe.output))
    output = tools.workspace / output
    log.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder(tools.workspace), say):
        say(f"building the kernel of {group.shown}")
        before = kept.facts(output.resolve())
        if recipe.where == "host":
            what, hint = _on_host(recipe, group, tools, log, line)
        else:
            what, hint = _in_container(recipe, group, tools, log)
        if what:
            raise KernelError(
                what, where=f"the kernel of {group.shown}", hint=hint or f"all that it said: {shown}", log=_tail(log)
            )
        if not output.is_file():
            raise KernelError(
                f"its build succeeded and left no {recipe.output}",
                where=f"the kernel of {group.shown}",
                hint=f"looked for {output}; output is relative to the workspace",
                log=_tail(log),
            )
        if wrong := mismatch(output, group.arch):
            raise KernelError(f"its build left {recipe.output}, which {wrong}", where=f"the kernel of {group.shown}")
        _note_output(output, before, group, tools)
        return _take(output, folder(tools.workspace))


def _note_output(output: Path, before: kept.Facts | None, group: Group, tools: Tools) -> None:
    """Note for whom an output was written. Warn where a command ends well and leaves what was written for somebody else.

    That may be right, if nothing differs between the two. It may also be a command whose failure its last part hides, as a pipe
    into `tee` does, and then another kernel is tested than the one that is named.
    """
    notes = folder(tools.workspace) / "outputs.json"
    known: dict[str, dict[str, object]] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a note that is none is no note
        known = {name: note for name, note in json.loads(notes.read_bytes()).items() if isinstance(note, dict)}
    facts = kept.facts(output.resolve())
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


def folder(workspace: Path) -> Path:
    """Where copies of kernels are kept."""
    return workspace / "target" / "qcase" / "kernels"


def _placeholders(group: Group, tools: Tools, workspace: Path) -> Placeholders:
    config = workspace / group.config.relative_to(tools.workspace) if group.config is not None else ""
    more = {"arch": group.arch.value, "target": group.target, "build_group": group.name, "build_config": str(config)}
    inside = workspace != tools.workspace
    return Placeholders(
        workspace,
        tmp_dir=Path("/tmp") if inside else Path(tempfile.gettempdir()),  # noqa: S108 - the container's
        environment=tools.environ,
        more=more,
    )


def _on_host(recipe: KernelBuild, group: Group, tools: Tools, log: Path, line: Say) -> tuple[str, str]:
    """Run the command as its author does: in the workspace, with all of the environment. What went wrong, and what to do."""
    names = _placeholders(group, tools, tools.workspace)
    environment = {**tools.environ, **{name: names.replace(value) for name, value in recipe.env.items()}}
    with (
        log.open("wb") as out,
        log.open("rb") as said,
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
                status = child.wait(_LOOK)
                break
            except subprocess.TimeoutExpired:
                _follow(said, line)
            if deadline.passed:
                return f"its build took longer than {BUILD_TIMEOUT:g} s and was stopped", ""
    if status == 0:
        return "", ""
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return f"its build {how}", "a command was not found" if status == 127 else ""


def _in_container(recipe: KernelBuild, group: Group, tools: Tools, log: Path) -> tuple[str, str]:
    names = _placeholders(group, tools, Path(WORKSPACE))
    step = Step(
        image=tools.image(recipe.where),
        argv=("sh", "-euc", "exec 2>&1\n" + names.replace(recipe.build)),
        mounts=(Mount(tools.workspace, WORKSPACE, False),),
        env={name: names.replace(value) for name, value in recipe.env.items()},
        workdir=WORKSPACE,
        timeout=BUILD_TIMEOUT,
        memory=BUILD_MEMORY,
        pids=BUILD_PIDS,
        name="its build",
        log=log,
    )
    result = tools.engine().run(step)
    return ("", "") if result.exit_status == 0 and not result.timed_out else containers.verdict_of(step, result)


def _follow(said: IO[bytes], line: Say) -> None:
    """The last whole line that was written since the last look."""
    new = said.read().decode(errors="replace").splitlines()
    if new and new[-1].strip():
        line(new[-1])


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


@contextmanager
def _alone(folder: Path, say: Say) -> Iterator[None]:
    """Between all runs of this workspace, one command at a time."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("waiting for another qcase, which builds a kernel here")
        locks.wait(lock)
    try:
        yield
    finally:
        lock.release()


def _take(output: Path, folder: Path) -> Kernel:
    """A copy of a kernel under the name of its content."""
    _sweep(folder)
    staged = folder / f".{uuid.uuid4().hex}"
    try:
        sha256 = _copy(output, staged)
        copy = Kernel(folder / sha256 / output.name, sha256)
        if not _is_whole(copy):
            staged.chmod(0o644)
            _install(staged, copy.path)
        return copy
    except OSError as error:
        raise InfraError(f"cannot keep the kernel: {error.strerror}", where=str(folder)) from None
    finally:
        with contextlib.suppress(OSError):  # the next one sweeps it
            staged.unlink()


def _copy(output: Path, staged: Path) -> str:
    """Copy a kernel that somebody may build by hand meanwhile. The sha256 of the copy, which is of one state of it."""
    for _ in range(_COPIES):
        before = kept.facts(output.resolve())
        shutil.copyfile(output, staged)
        if before == kept.facts(output.resolve()):
            return kept.sha256(staged)
        process.pause(_LOOK)
    raise KernelError("something wrote to it whenever it was copied", where=str(output), hint="is another build under way?")


def keep(target: Path, make: Callable[[Path], object], warn: Say) -> str:
    """A file beside a kernel's copy, made of the kernel if it is not there, or not what was made. Returns its sha256.

    `make` writes the file that it is given. What it is given does not exist yet.
    """
    if sha256 := _whole(target):
        return sha256
    staged = target.with_name(f".making-{target.name}-{uuid.uuid4().hex}")
    try:
        with _making(target):
            if sha256 := _whole(target):  # somebody else has made it while we waited
                return sha256
            if _noted(target) is not None:
                warn(f"{target} was changed or is gone: it is not used, and made anew")
            make(staged)
            return _install(staged, target)["sha256"]
    except OSError as error:
        raise InfraError(f"cannot be written: {error.strerror}", where=str(target)) from None
    finally:
        with contextlib.suppress(OSError):
            staged.unlink()


@contextmanager
def _making(target: Path) -> Iterator[None]:
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    os.utime(target.parent)  # nobody sweeps it from here on
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    locks.wait(lock)
    try:
        for left in target.parent.glob(f".making-{target.name}-*"):  # by somebody who was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        lock.release()


def _install(staged: Path, target: Path) -> kept.Record:
    """Put a file in its place, so that it is there whole or not at all, whatever happens to the machine."""
    target.parent.mkdir(exist_ok=True)
    flush(staged)
    staged.replace(target)
    flush(target.parent)
    flush(target.parent.parent)
    record = kept.read(target)  # a rename changes the facts of a file
    _note(target, record)
    return record


def _is_whole(kernel: Kernel) -> bool:
    return _whole(kernel.path, kernel.sha256) != ""


def _whole(path: Path, sha256: str = "") -> str:
    """The sha256 of a file that is kept, if it is still the one that was stored, or the one that is given. Empty if not."""
    with contextlib.suppress(OSError):
        os.utime(path.parent)  # its last use; first, so that no sweeper comes between
    known = _noted(path)
    wanted = sha256 or (known["sha256"] if known is not None else "")
    if not wanted:
        return ""
    if known is None or known["sha256"] != wanted or known["facts"] != kept.facts(path):
        try:
            found = kept.read(path)
        except OSError:
            return ""
        if found["sha256"] != wanted:
            return ""
        with contextlib.suppress(OSError):  # it is read again the next time
            _note(path, found)
    return wanted


def _note_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def _noted(path: Path) -> kept.Record | None:
    try:
        note = json.loads(_note_of(path).read_bytes())
        record: kept.Record = note["file"]
        good = note["format"] == FORMAT and kept.is_record(record)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if good else None


def _note(path: Path, record: kept.Record) -> None:
    write_aside(_note_of(path), json.dumps({"format": FORMAT, "file": record}).encode())


def _sweep(folder: Path) -> None:
    """Copies that nobody used for a day, and half of those who were killed. QEMU has read its kernel when it has started."""
    for copy in folder.iterdir():
        with contextlib.suppress(OSError):
            half = copy.name.startswith(".")  # whoever copies holds the lock, which is ours
            if copy.name != "lock" and (half or copy.stat().st_mtime < time.time() - KEPT):
                shutil.rmtree(copy) if copy.is_dir() else copy.unlink()


def of_file(path: Path, arch: Arch, where: str) -> Kernel:
    """A kernel that is a file. Raises `UsageError` if it cannot be read, or is for another architecture."""
    try:
        if wrong := mismatch(path, arch):
            raise UsageError(f"{path} {wrong}", where=where, hint="take another file, or another --arch")
        return Kernel(path, digest(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", where=where) from None


def digest(path: Path) -> str:
    return kept.sha256(path)


def content(kernel: Kernel) -> bytes:
    """The bytes of a kernel. Raises `KernelError` where they are others by now: what is made of them is kept by its sha256."""
    try:
        data = kernel.path.read_bytes()
    except OSError as error:
        raise InfraError(f"cannot be read: {error.strerror}", where=str(kernel.path)) from None
    _expect(kernel, hashlib.sha256(data).hexdigest())
    return data


def _expect(kernel: Kernel, found: str) -> None:
    if found != kernel.sha256:
        raise KernelError("was written to just now", where=str(kernel.path), hint="run it again when it is built")


# --- to_bin -------------------------------------------------------------------------------------------------------------


def raw_name(kernel: Kernel, folder: Path, tool: str) -> Path:
    """Where the raw binary of a kernel is kept; `tool`: the identity of the image that makes it."""
    return folder / kernel.sha256 / f"{kernel.path.name}-{tool[:8]}.bin"


def to_raw(kernel: Kernel, target: Path, engine: Engine, image: str, where: str) -> None:
    """An ELF kernel as it lies in memory, by the image's llvm-objcopy, which knows all architectures.

    Raises `KernelError` for a file that is no ELF.
    """
    with kernel.path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            raise KernelError(
                f"to_bin makes a raw binary of an ELF file, and {kernel.path} is none", where=where, hint="leave out to_bin"
            )
    staged = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    staged.mkdir(parents=True)
    try:
        shutil.copyfile(kernel.path, staged / "kernel")
        _expect(kernel, kept.sha256(staged / "kernel"))
        step = Step(
            image=image,
            argv=("llvm-objcopy", "--strip-all", "-O", "binary", "kernel", "kernel.bin"),
            mounts=(Mount(staged, WORKSPACE, False),),
            workdir=WORKSPACE,
            timeout=300.0,
            name="llvm-objcopy",
        )
        result = engine.run(step)
        if result.exit_status != 0 or not (staged / "kernel.bin").is_file():
            what, hint = containers.verdict_of(step, result)
            raise KernelError(f"no raw binary could be made of it: {what}", where=str(kernel.path), hint=hint, log=result.output)
        (staged / "kernel.bin").replace(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


# --- what a kernel is for -----------------------------------------------------------------------------------------------

# e_machine of ELF files. x86 kernels that a multiboot loader starts are of 32 bits.
_MACHINES = {3: (Arch.X86_64,), 62: (Arch.X86_64,), 183: (Arch.AARCH64,), 243: (Arch.RISCV64,), 258: (Arch.LOONGARCH64,)}
_MACHINE_NAMES = {8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "S390", 40: "ARM", 43: "SPARC"}


def mismatch(path: Path, arch: Arch) -> str:
    """Why a file cannot be the kernel of an architecture, as far as its first bytes tell; empty if it can."""
    with path.open("rb") as file:
        head = file.read(0x250)
    if not head:
        return "is empty"
    found = built_for(head)
    return f"is for {' or '.join(found)}, not for {arch}" if found and arch.value not in found else ""


def built_for(head: bytes) -> tuple[str, ...]:
    """The architectures that a kernel's first bytes name; none if they say nothing."""
    if head[:4] == b"\x7fELF" and len(head) >= 20:
        machine = struct.unpack_from("<H" if head[5] == 1 else ">H", head, 18)[0]
        known = tuple(arch.value for arch in _MACHINES.get(machine, ()))
        return known or (_MACHINE_NAMES.get(machine, f"ELF machine {machine}"),)
    if head[56:60] == b"ARM\x64":
        return (Arch.AARCH64.value,)
    if head[56:60] == b"RSC\x05":
        return (Arch.RISCV64.value,)
    if head[0x202:0x206] == b"HdrS":
        return (Arch.X86_64.value,)
    return ()


# --- unpacking ----------------------------------------------------------------------------------------------------------


def is_zboot(path: Path) -> bool:
    """Is a file an EFI application that unpacks the kernel in it? Without firmware QEMU starts none, but from 8 on arm64's."""
    with path.open("rb") as file:
        head = file.read(8)
    return head[:2] == b"MZ" and head[4:8] == b"zimg"


def unpack_zboot(data: bytes, where: str) -> bytes:
    """The kernel in an EFI zboot file (arm64): `zimg` at 4, offset and size of the payload at 8 and 12, its compression at 24.

    Raises `InfraError` for anything else.
    """
    if len(data) < 64 or data[:2] != b"MZ" or data[4:8] != b"zimg":
        raise InfraError("is no EFI zboot kernel", where=where)
    compression = data[24:56].partition(b"\0")[0]
    if compression != b"gzip":
        raise InfraError(f"is compressed with {compression.decode(errors='replace')!r}; only gzip is known", where=where)
    offset, size = struct.unpack_from("<II", data, 8)
    kernel = _gunzip(data, offset, size, where)
    if kernel[56:60] != b"ARM\x64":
        raise InfraError("holds no arm64 kernel", where=where)
    return kernel


def unpack_bzimage(data: bytes, where: str) -> bytes:
    """The ELF in an x86 bzImage, which QEMU starts directly by its PVH entry. Raises `InfraError` for anything else."""
    span = bzimage_payload(data)
    if span is None:
        raise InfraError("is no bzImage of boot protocol 2.08 or later", where=where)
    kernel = _gunzip(data, *span, where)
    if kernel[:5] != b"\x7fELF\x02":
        raise InfraError("holds no 64-bit ELF kernel", where=where)
    return kernel


_KERNEL_LIMIT = 512 << 20  # bytes, unpacked


def _gunzip(data: bytes, offset: int, size: int, where: str) -> bytes:
    import zlib

    if size == 0 or offset + size > len(data):
        raise InfraError(f"its payload ({size} bytes at {offset}) lies outside the file of {len(data)} bytes", where=where)
    unpacker = zlib.decompressobj(wbits=31)
    try:
        kernel = unpacker.decompress(data[offset : offset + size], _KERNEL_LIMIT)
    except zlib.error as error:
        raise InfraError(f"its payload is no gzip data: {error}", where=where) from None
    if not unpacker.eof:
        raise InfraError("its payload is cut short or too large", where=where)
    return kernel


def bzimage_payload(data: bytes) -> tuple[int, int] | None:
    """Offset and size of what an x86 bzImage unpacks; None for another file, or one of a boot protocol before 2.08.

    Fields as the kernel's boot protocol has them (arch/x86/boot): setup_sects at 0x1f1, `HdrS` at 0x202, version at 0x206,
    payload's offset and size at 0x248 and 0x24c, counted from the end of the setup sectors.
    """
    if len(data) < 0x250 or data[0x202:0x206] != b"HdrS" or struct.unpack_from("<H", data, 0x206)[0] < 0x208:
        return None
    offset, size = struct.unpack_from("<II", data, 0x248)
    return ((data[0x1F1] or 4) + 1) * 512 + offset, size
