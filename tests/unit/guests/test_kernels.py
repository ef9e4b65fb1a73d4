"""Kernels that a command makes: really run, in a workspace on disk. What QEMU does with them: tests/vm/test_kernel_builds.py."""

from __future__ import annotations

import os
import shutil
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from qcase.arch import Arch
from qcase.config.workspace_file import KernelBuild
from qcase.errors import KernelError, UsageError
from qcase.guests import kernel_copies, kernel_files
from qcase.guests.kernel_build import Builder, Group, Tools
from qcase.guests.kernel_files import Kernel


def elf(machine: int, bits: int = 2) -> bytes:
    """The first bytes of an ELF file for a machine."""
    return struct.pack("<4sBBB9xHH", b"\x7fELF", bits, 1, 1, 2, machine) + bytes(100)


AARCH64 = elf(183)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "kernel.elf").write_bytes(AARCH64)
    (tmp_path / "suite/normal/one").mkdir(parents=True)
    (tmp_path / "suite/normal/one/build-none.toml").touch()
    return tmp_path


def group(workspace: Path, name: str = "normal/one") -> Group:
    config = workspace / "suite" / name / "build-none.toml"
    return Group(name, config if config.is_file() else None, Arch.AARCH64, "none")


def builder(workspace: Path, build: str, output: str = "out/kernel", **more: object) -> Builder:
    def nobody() -> NoReturn:
        raise AssertionError("a build on the host needs no engine")

    recipe = KernelBuild.model_validate({"build": build, "output": output, **more})
    environment = {"PATH": os.environ["PATH"], "FLAVOUR": "plain"}
    return Builder(recipe, Tools(workspace, environment, nobody, lambda _: nobody()))


def quiet(_: str) -> None:
    """Somebody who does not listen."""


def test_a_build_runs_in_the_workspace_with_its_placeholders_and_environment(workspace: Path) -> None:
    build = """
        mkdir -p out
        printf '%s\\n' '${arch}|${target}|${build_group}|${build_config}|${workspace}|${env:FLAVOUR}' "$MODE|$FLAVOUR|$PWD" >said
        cp kernel.elf out/kernel-${arch}
        """
    made = builder(workspace, build, "out/kernel-${arch}", env={"MODE": "m-${target}"})
    kernel = made.kernel(group(workspace), quiet, quiet)
    config = workspace / "suite/normal/one/build-none.toml"
    assert (workspace / "said").read_text().splitlines() == [
        f"aarch64|none|normal/one|{config}|{workspace}|plain",
        f"m-none|plain|{workspace}",
    ]
    assert kernel.path.read_bytes() == AARCH64
    assert kernel == Kernel(
        workspace / "target/qcase/kernels" / kernel.sha256 / "kernel-aarch64", kernel_files.digest(kernel.path)
    )


def test_a_kernel_is_built_once_for_each_group_however_many_ask_at_once(workspace: Path) -> None:
    made = builder(workspace, "echo built ${build_group} >>count; sleep 0.2; mkdir -p out; cp kernel.elf out/kernel")
    found: list[Kernel] = []

    def ask(name: str) -> None:
        found.append(made.kernel(group(workspace, name), quiet, quiet))

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("a", "b", "a", "b", "a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert sorted((workspace / "count").read_text().split("\n")) == ["", "built a", "built b"]


def test_groups_that_build_into_one_file_each_boot_their_own(workspace: Path) -> None:
    made = builder(workspace, "mkdir -p out; cp kernel.elf out/kernel; echo ${build_group} >>out/kernel")
    one, two = (made.kernel(group(workspace, name), quiet, quiet) for name in ("one", "two"))
    assert one.path.read_bytes() == AARCH64 + b"one\n"
    assert two.path.read_bytes() == AARCH64 + b"two\n"
    assert one.sha256 != two.sha256


def test_a_build_that_leaves_what_was_written_for_another_group_is_a_warning(workspace: Path) -> None:
    """As `make | tee log` does where make fails: the shell's status is that of tee."""
    build = "[ ${build_group} = two ] || { mkdir -p out; cp kernel.elf out/kernel; }"
    warnings: list[str] = []

    def make(name: str) -> None:
        made = builder(workspace, build)  # as another run does
        made.tools = replace(made.tools, warn=warnings.append)
        made.kernel(group(workspace, name), quiet, quiet)

    make("one")
    make("one")
    assert warnings == []
    make("two")
    (warning,) = warnings
    assert warning.startswith(f"the build of the kernel of two left {workspace}/out/kernel as it was written for one, none")
    # What nobody here has written, or somebody by hand, may be anybody's.
    (workspace / "out/kernel").write_bytes(AARCH64 + b"by hand")
    make("two")
    make("two")
    assert len(warnings) == 1
    for note in ("", "[]", f'{{"{workspace}/out/kernel": 1}}'):
        (workspace / "target/qcase/kernels/outputs.json").write_text(note)
        make("two")
    assert len(warnings) == 1


def test_what_a_build_says_goes_to_a_log_as_it_says_it(workspace: Path) -> None:
    (workspace / "go").unlink(missing_ok=True)
    build = "echo compiling; until [ -e go ]; do sleep 0.02; done; mkdir out; cp kernel.elf out/kernel; echo done >&2"
    log = workspace / "target/qcase/logs/aarch64/normal/one/kernel.log"
    lines: list[str] = []

    def heard(line: str) -> None:
        lines.append(line)
        assert log.read_text() == "compiling\n"
        (workspace / "go").touch()

    builder(workspace, build).kernel(group(workspace), quiet, heard)
    assert lines[0] == "compiling"
    assert log.read_text() == "compiling\ndone\n"


@pytest.mark.parametrize(
    ("build", "output", "what", "hint", "log"),
    [
        ("echo no such crate; exit 7", "k", "its build ended with status 7", "kernel.log", "no such crate"),
        ("no-such-command", "k", "its build ended with status 127", "a command was not found", "no-such-command"),
        ("kill -9 $$", "k", "its build was killed by signal 9", "kernel.log", ""),
        ("echo fine", "out/${arch}", "its build succeeded and left no out/${arch}", "out/aarch64", "fine"),
        ("mkdir k", "k", "its build succeeded and left no k", "/k", ""),
        (": >k", "k", "its build left k, which is empty", "", ""),
        (
            "printf '\\177ELF\\2\\1\\1%09d\\2\\0\\076\\0' 0 >k",
            "k",
            "its build left k, which is for x86_64, not for aarch64",
            "",
            "",
        ),
    ],
)
def test_a_kernel_that_cannot_be_had(workspace: Path, build: str, output: str, what: str, hint: str, log: str) -> None:
    made = builder(workspace, f"echo >>count\n{build}", output)
    for _ in range(2):  # each case of the group is told, and the command is run once
        with pytest.raises(KernelError) as caught:
            made.kernel(group(workspace), quiet, quiet)
        assert caught.value.what == what
        assert caught.value.where == "the kernel of normal/one"
        assert hint in caught.value.hint
        assert log in caught.value.log
    assert (workspace / "count").read_text() == "\n"


def test_a_build_that_asks_for_the_configuration_of_no_group(workspace: Path) -> None:
    with pytest.raises(KernelError, match=r"\$\{build_config\} stands for nothing: no build-none.toml is above the case"):
        builder(workspace, "make C=${build_config}").kernel(group(workspace, ""), quiet, quiet)
    assert not (workspace / "target").exists()


def test_a_failure_is_one_groups_alone(workspace: Path) -> None:
    made = builder(workspace, "[ ${build_group} != bad ]; mkdir -p out; cp kernel.elf out/kernel")
    with pytest.raises(KernelError):
        made.kernel(group(workspace, "bad"), quiet, quiet)
    assert made.kernel(group(workspace, "good"), quiet, quiet).path.is_file()


def test_a_copy_goes_a_day_after_its_last_use(workspace: Path) -> None:
    made = builder(workspace, "mkdir -p out; cp kernel.elf out/kernel; echo ${build_group} >>out/kernel")
    old, recent = (made.kernel(group(workspace, name), quiet, quiet) for name in ("old", "recent"))
    os.utime(old.path.parent, (0, time.time() - kernel_copies.KEPT - 60))
    made.kernel(group(workspace, "new"), quiet, quiet)
    assert not old.path.exists()
    assert recent.path.exists()


def test_a_run_of_days_keeps_its_copies(workspace: Path) -> None:
    made = builder(workspace, "mkdir -p out; cp kernel.elf out/kernel; echo ${build_group} >>out/kernel")
    used = made.kernel(group(workspace, "used"), quiet, quiet)
    os.utime(used.path.parent, (0, time.time() - kernel_copies.KEPT - 60))
    assert made.kernel(group(workspace, "used"), quiet, quiet) == used
    made.kernel(group(workspace, "new"), quiet, quiet)
    assert used.path.exists()


def spoilt(path: Path, how: str) -> None:
    """Damage a file as a power cut or somebody would."""
    before = path.stat()
    if how == "gone":
        path.unlink()
    elif how == "cut off":
        os.truncate(path, 0)
    else:  # as long as before, and dated back
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("how", ["gone", "cut off", "edited"])
def test_a_copy_that_is_damaged_is_built_anew(how: str, workspace: Path) -> None:
    warnings: list[str] = []
    made = builder(workspace, "mkdir -p out; cp kernel.elf out/kernel; echo built >>count")
    made.tools = replace(made.tools, warn=warnings.append)
    first = made.kernel(group(workspace), quiet, quiet)
    spoilt(first.path, how)
    assert made.kernel(group(workspace), quiet, quiet) == first
    assert first.path.read_bytes() == AARCH64
    assert (workspace / "count").read_text() == "built\n" * 2
    (warning,) = warnings
    assert f"{first.path} was changed or is gone" in warning
    spoilt(first.path, how)  # and by another run, which has built the same
    assert builder(workspace, "true").kernel(group(workspace), quiet, quiet) == first
    assert first.path.read_bytes() == AARCH64


@pytest.mark.parametrize("how", ["gone", "cut off", "edited"])
def test_what_is_made_of_a_kernel_is_looked_at_at_each_use(how: str, tmp_path: Path) -> None:
    target = tmp_path / "kernels" / "sha" / "esp.img"
    made: list[Path] = []
    warnings: list[str] = []

    def make(staged: Path) -> None:
        made.append(staged)
        staged.write_bytes(b"right" * 100)

    def keep() -> str:
        return kernel_copies.keep(target, make, warnings.append)

    first = keep()
    assert keep() == first == kernel_files.digest(target)
    os.utime(target, (1, 1))  # looks different, and is not
    assert keep() == first
    assert (len(made), warnings) == (1, [])
    spoilt(target, how)
    assert keep() == first
    assert target.read_bytes() == b"right" * 100
    (warning,) = warnings
    assert f"{target} was changed or is gone" in warning
    for content in (None, b"", b"[]", b'{"format": 1, "file": {}}', b'{"format": 0}'):  # nothing is known of it
        note = target.parent / ".esp.img.json"
        note.unlink()
        if content is not None:
            note.write_bytes(content)
        spoilt(target, "cut off")
        assert keep() == first
        assert target.read_bytes() == b"right" * 100
    assert len(made) == 7
    # Some releases of filelock take the file of a lock away with the lock.
    assert {path.name for path in target.parent.iterdir()} - {".esp.img.lock"} == {".esp.img.json", "esp.img"}


def test_many_make_one_file_of_a_kernel_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(staged: Path) -> None:
        made.append(staged)
        time.sleep(0.1)  # long enough for the others to come
        staged.write_bytes(b"content")

    target = tmp_path / "kernels" / "sha" / "raw"
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: kernel_copies.keep(target, make, quiet), range(8)))) == 1
    assert len(made) == 1


def test_what_is_made_of_a_kernel_is_made_of_no_other_one(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(AARCH64)
    kernel = kernel_files.of_file(tmp_path / "k", Arch.AARCH64, "--kernel")
    assert kernel_files.content(kernel) == AARCH64
    (tmp_path / "k").write_bytes(elf(183) + b"built anew")
    with pytest.raises(KernelError, match="was written to just now"):
        kernel_files.content(kernel)


def test_a_copy_is_of_one_state_of_what_a_build_left(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody builds by hand into the same file while it is copied."""
    copy = shutil.copyfile
    torn: list[str] = []

    def interrupted(source: Path, target: Path) -> None:
        copy(source, target)
        if not torn:
            torn.append("once")
            time.sleep(0.02)
            source.write_bytes(AARCH64 + b"by hand")
            target.write_bytes(AARCH64 + b"by h")

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    made = builder(workspace, "mkdir -p out; cp kernel.elf out/kernel").kernel(group(workspace), quiet, quiet)
    assert made.path.read_bytes() == AARCH64 + b"by hand"
    assert made.sha256 == kernel_files.digest(made.path)


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (elf(62), ("x86_64",)),
        (elf(3, bits=1), ("x86_64",)),
        (elf(183), ("aarch64",)),
        (elf(243), ("riscv64",)),
        (elf(258), ("loongarch64",)),
        (elf(8), ("MIPS",)),
        (elf(999), ("ELF machine 999",)),
        (bytes(56) + b"ARM\x64", ("aarch64",)),
        (bytes(56) + b"RSC\x05", ("riscv64",)),
        (bytes(0x202) + b"HdrS", ("x86_64",)),
        (b"\x7fELF", ()),
        (b"anything", ()),
        (b"", ()),
    ],
)
def test_what_a_kernel_is_for(head: bytes, found: tuple[str, ...]) -> None:
    assert kernel_files.built_for(head) == found


def test_a_file_for_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(AARCH64)
    assert kernel_files.of_file(tmp_path / "k", Arch.AARCH64, "--kernel").sha256 == kernel_files.digest(tmp_path / "k")
    with pytest.raises(UsageError, match=r"^--kernel: .*/k is for aarch64, not for riscv64$"):
        kernel_files.of_file(tmp_path / "k", Arch.RISCV64, "--kernel")
    with pytest.raises(UsageError, match="No such file"):
        kernel_files.of_file(tmp_path / "none", Arch.RISCV64, "--kernel")


def test_a_case_with_variables_of_its_own_has_a_kernel_of_its_own(workspace: Path) -> None:
    """Built once for each set of them, over the variables of the recipe; each build has its log."""
    build = 'mkdir -p out; echo "$SMP $LOG ${build_group}" >>built; cat kernel.elf >out/kernel; echo "$SMP" >>out/kernel'
    one = builder(workspace, build, env={"SMP": "1", "LOG": "warn"})
    plain = group(workspace)
    four = replace(plain, env=("PLACE=${build_group}", "SMP=4"))
    kernels = [one.kernel(each, quiet, quiet) for each in (plain, four, plain, four)]
    assert (workspace / "built").read_text() == "1 warn normal/one\n4 warn normal/one\n"
    assert kernels[0].sha256 == kernels[2].sha256 != kernels[1].sha256 == kernels[3].sha256
    assert (plain.log, plain.shown) == ("kernel.log", "normal/one")
    assert four.shown == "normal/one, PLACE=${build_group} SMP=4"
    logs = {path.name for path in (workspace / "target/qcase/logs/aarch64/normal/one").iterdir()}
    assert logs == {"kernel.log", four.log}


def test_a_kernel_of_terabytes_is_refused_at_once(tmp_path: Path) -> None:
    with (tmp_path / "kernel").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="File too large"):
        kernel_files.of_file(tmp_path / "kernel", Arch.X86_64, "kernel")
