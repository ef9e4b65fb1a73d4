"""The layouts that the suite of StarryOS and ArceOS had: with axbuild 0.4.6, in July 2026 and in September 2026.

Each tree has the shapes and the keys of the files of its time, and small programs of our own. `qcase init` writes the
configuration, and everything is found: the numbers of suites, cases and subcases are asserted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.inputs import lint
from qcase.inputs.findings import Severity
from qcase.model import Pipeline
from qcase.suite import catalogue, new_workspace
from qcase.suite.cases import Case, Workspace
from qcase.suite.discover import discover
from qcase.suite.select import select

ARCHES = (Arch.X86_64, Arch.AARCH64, Arch.RISCV64, Arch.LOONGARCH64)
ROOT_DISK = "id=disk0,if=none,format=raw,file=${workspace}/tmp/axbuild/rootfs/rootfs-ARCH-alpine.img"


def put(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def quoted(words: list[str]) -> str:
    return "args = [\n" + "".join(f'    "{word}",\n' for word in words) + "]\n"


def case_file(root: Path, folder: str, arch: Arch, text: str, *more: str, name: str = "") -> None:
    args = ["-nographic", "-m", "512M", "-smp", "4", *more]
    put(root, f"{folder}/{name or f'qemu-{arch}.toml'}", quoted(args).replace("ARCH", arch.value) + text)


def build_files(root: Path, folder: str, *variants: str) -> None:
    for arch in ARCHES:
        for variant in ("", *variants):
            put(root, f"{folder}/build-{arch.default_target}{variant}.toml", f'target = "{arch.default_target}"\nlog = "Warn"\n')


def program(root: Path, folder: str, name: str, to: str = "usr/bin") -> None:
    put(root, f"{folder}/CMakeLists.txt", f"project({name} C)\nadd_executable({name} src/main.c)\n")
    with (root / folder / "CMakeLists.txt").open("a") as file:
        file.write(f"install(TARGETS {name} RUNTIME DESTINATION {to})\n")
    put(root, f"{folder}/src/main.c", "int main(void) { return 0; }\n")


PROMPT = 'shell_prefix = "root@starry:"\nfail_regex = ["(?m)^STARRY_GROUPED_TEST_FAILED:"]\ntimeout = 300\n'
PLAIN = PROMPT + 'shell_init_cmd = "pwd && echo done"\nsuccess_regex = ["(?m)^done\\\\s*$"]\n'
LOOP = "for bin in /usr/bin/starry-test-suit/*; do $bin || exit 1; done"
XTASK = '[workspace]\nmembers = ["os/*"]\n[workspace.dependencies]\naxbuild = "0.4.6"\n'


def tree_of_046(root: Path) -> None:
    """Groups `normal` and `stress`, build groups in them, cases with sources of their own, and another system beside it."""
    put(root, "Cargo.toml", XTASK)
    base = "test-suit/starryos/normal/qemu-smp1"
    build_files(root, base)
    build_files(root, "test-suit/starryos/normal/qemu-smp4")
    for arch in ARCHES:
        disk = ("-device", "virtio-blk-pci,drive=disk0", "-drive", ROOT_DISK, "-netdev", "user,id=net0")
        case_file(root, f"{base}/smoke", arch, PLAIN, *disk)
        case_file(root, f"{base}/net", arch, PLAIN.replace("pwd", "wget -q http://example.org"), *disk)
        case_file(root, f"{base}/syscall", arch, PROMPT + 'test_commands = ["/usr/bin/test-brk", "/usr/bin/test-pipe"]\n', *disk)
        case_file(root, "test-suit/starryos/normal/qemu-smp4/affinity", arch, PLAIN, *disk)
        case_file(root, "test-suit/starryos/stress/stress-ng", arch, PLAIN, *disk)
    case_file(root, f"{base}/usb", Arch.AARCH64, PLAIN)
    for name in ("test-brk", "test-pipe"):
        program(root, f"{base}/syscall/{name}/c", name)
    program(root, f"{base}/usb/c", "usb")
    put(
        root,
        f"{base}/usb/c/prebuild.sh",
        '#!/bin/sh\napk add libusb-dev --root "$STARRY_STAGING_ROOT" # ${STARRY_APK_REGION:-us}\n',
    )
    case_file(root, "test-suit/arceos/rust/display", Arch.X86_64, 'success_regex = ["ok"]\ntimeout = 60\n')
    put(root, "os/StarryOS/configs/qemu-x86_64.toml", PLAIN)


def tree_of_july(root: Path) -> None:
    """No groups: build wrappers below the system, a project of many flat programs, an NVMe root, variants with own kernels."""
    put(root, "Cargo.toml", XTASK)
    for name in ("StarryOS", "arceos", "axvisor"):
        put(root, f"os/{name}/README.md", name)
    wrapper = "test-suit/starryos/qemu"
    build_files(root, wrapper)
    put(root, f"{wrapper}-rga/build-{Arch.AARCH64.default_target}.toml")
    nvme = ("-device", "nvme,serial=deadbeef,drive=nvm", "-drive", ROOT_DISK.replace("disk0", "nvm"))
    usb = ("-drive", "id=usb,if=none,format=raw,snapshot=on,file=${workspace}/tmp/axbuild/rootfs/rootfs-ARCH-busybox.img")
    grouped = PROMPT + f"test_commands = ['''{LOOP}''']\nsuccess_regex = [\"(?m)^STARRY_GROUPED_TESTS_PASSED\"]\n"
    for arch in ARCHES:
        second = () if arch is Arch.LOONGARCH64 else (*usb, "-device", "qemu-xhci", "-device", "usb-storage,drive=usb")
        text = "uefi = true\nto_bin = true\n" if arch is Arch.X86_64 else "to_bin = true\n"
        case_file(root, f"{wrapper}/system", arch, text + grouped, *nvme, *second)
        case_file(root, f"{wrapper}/tty-burst", arch, PLAIN, *nvme)
        arceos = 'success_regex = ["suite run OK!"]\ntimeout = 120\n'
        for path in ("rust", "c", "axtest/smoke"):
            case_file(root, f"test-suit/arceos/{path}", arch, arceos)
    case_file(root, f"{wrapper}-rga/system", Arch.AARCH64, grouped, *nvme)
    project(root, f"{wrapper}/system", [f"syscall-test-{number}" for number in range(40)])
    put(root, f"{wrapper}/system/common/filter.cmake")
    put(root, f"{wrapper}/system/prebuild.sh", "#!/bin/sh\nset -eu\napk add curl\n")
    project(root, f"{wrapper}-rga/system", ["rga-blit", "rga-copy"])
    put(root, f"{wrapper}/tty-burst/sh/burst.sh", "#!/bin/sh\necho done\n")
    for path in ("rust", "c", "axtest/smoke"):
        build_files(root, f"test-suit/arceos/{path}")
    put(root, "test-suit/arceos/rust/src/main.rs", "fn main() {}\n")
    axvisor = "test-suit/axvisor/normal/qemu"
    build_files(root, axvisor, "-svm", "-vmx")
    for arch in ARCHES[1:]:
        case_file(root, f"{axvisor}/smoke", arch, PLAIN)
    for variant in ("svm", "vmx"):
        case_file(root, f"{axvisor}/smoke", Arch.X86_64, PLAIN, name=f"qemu-x86_64-{variant}.toml")
    case_file(root, "test-suit/axvisor/uefi/qemu-nimbos", Arch.X86_64, PLAIN)
    put(root, "test-suit/starryos/board-orangepi/boot/board-orangepi.toml")


def project(root: Path, folder: str, names: list[str]) -> None:
    put(
        root,
        f"{folder}/CMakeLists.txt",
        """\
cmake_minimum_required(VERSION 3.20)
project(system C)
file(GLOB parts RELATIVE "${CMAKE_CURRENT_LIST_DIR}" CONFIGURE_DEPENDS "*" "*/*")
if(DEFINED STARRY_GROUPED_C_SUBCASES)
    set(parts ${STARRY_GROUPED_C_SUBCASES})
endif()
foreach(part IN LISTS parts)
    if(EXISTS "${CMAKE_CURRENT_LIST_DIR}/${part}/CMakeLists.txt")
        add_subdirectory("${part}")
    endif()
endforeach()
""",
    )
    for name in names:
        program(root, f"{folder}/{name}", name.rpartition("/")[2], "usr/bin/starry-test-suit")


def tree_of_september(root: Path) -> None:
    """Deeper folders of programs, steps in place of a prompt and a command, groups that start themselves, more variants."""
    put(root, "Cargo.toml", XTASK)
    put(root, "os/StarryOS/README.md")
    wrapper = "test-suit/starryos/qemu"
    build_files(root, wrapper, "-smp1")
    disk = ("-device", "nvme,drive=disk0,serial=root", "-drive", ROOT_DISK.replace("tmp/axbuild/rootfs", ".tgos-images"))
    steps = """\
timeout = 300
fail_regex = ["panicked at"]

[[shell_check_steps]]
shell_prefix = "root@starry:"
shell_cmd = "pwd && echo done"
success_regex = ["(?m)^done"]
"""
    selection = 'grouped_command_selection = "preserve_all"\n'
    for arch in ARCHES:
        case_file(root, f"{wrapper}/smoke", arch, steps, *disk)
        case_file(root, f"{wrapper}/system", arch, selection + PROMPT + f"test_commands = ['''{LOOP}''']\n", *disk)
        case_file(
            root, f"{wrapper}/system", arch, PROMPT + f"test_commands = ['''{LOOP}''']\n", *disk, name=f"qemu-{arch}-smp1.toml"
        )
    project(root, f"{wrapper}/system", [f"{area}/{area}-test-{number}" for area in ("syscall", "net") for number in range(5)])


def opened(root: Path, make: Callable[[Path], None]) -> tuple[Workspace, new_workspace.Proposal]:
    make(root)
    proposal = new_workspace.propose(root)
    assert proposal is not None
    put(root, "qcase.toml", new_workspace.workspace_file(proposal.values, kernel=proposal.arches[0]))
    return Workspace.open(root), proposal


def found(workspace: Workspace) -> dict[str, dict[str, int]]:
    """Every case of a suite by its name in the listing, with the number of subcases on each architecture."""
    entries = [entry for group in catalogue.catalogue(workspace).groups.values() for entry in group]
    assert not any(entry.broken for entry in entries), [entry.broken for entry in entries]
    return {entry.display_name: {arch.value: len(case.subcases) for arch, case in entry.cases.items()} for entry in entries}


def test_the_tree_of_axbuild_046(tmp_path: Path) -> None:
    workspace, proposal = opened(tmp_path, tree_of_046)
    main, arceos = workspace.suites
    assert (main.config.suite.root, main.config.suite.default_group) == ("test-suit/starryos", "normal")
    assert (main.config.grouped.prefix, main.config.script_env.prefix) == ("STARRY", "STARRY")
    assert (main.config.toolchain.c.compiler, main.config.run.network) == ("clang", "user")
    assert main.config.cache.env == ("STARRY_APK_REGION",)
    every = dict.fromkeys(map(str, ARCHES), 0)
    assert found(main) == {
        "qemu-smp1/net": every,
        "qemu-smp1/smoke": every,
        "qemu-smp1/syscall": dict.fromkeys(every, 2),
        "qemu-smp1/usb": {"aarch64": 0},
        "qemu-smp4/affinity": every,
        "stress/stress-ng": every,
    }
    assert [case.display_name for case in discover(main, Arch.X86_64, Arch.X86_64.default_target).cases] == [
        *("qemu-smp1/net", "qemu-smp1/smoke", "qemu-smp1/syscall", "qemu-smp4/affinity")
    ]
    assert found(arceos) == {"arceos/rust/display": {"x86_64": 0}}
    assert proposal.untranslated == ("not looked at: 1 more below os",)
    assert not [one for one in lint.lint(tmp_path) if one.severity is Severity.ERROR]


def test_the_tree_of_july(tmp_path: Path) -> None:
    workspace, proposal = opened(tmp_path, tree_of_july)
    main, arceos, axvisor = workspace.suites
    assert (main.config.suite.root, main.config.suite.default_group) == ("test-suit/starryos", "*")
    assert main.config.guest[Arch.X86_64].disks == {"rootfs-x86_64-busybox.img": "debian"}
    every = dict.fromkeys(map(str, ARCHES), 0)
    assert found(main) == {
        "qemu-rga/system": {"aarch64": 2},
        "qemu/system": dict.fromkeys(every, 40),
        "qemu/tty-burst": every,
    }
    names = [case.display_name for case in discover(main, Arch.AARCH64, Arch.AARCH64.default_target).cases]
    assert names == ["qemu-rga/system", "qemu/system", "qemu/tty-burst"]
    for pattern in ("qemu/system/syscall-test-7", "system/syscall-test-7"):
        (part,) = select(discover(main, Arch.X86_64, Arch.X86_64.default_target), [pattern])
        assert isinstance(part, Case)
        assert (part.display_name, part.only, part.pipeline) == ("qemu/system/syscall-test-7", "syscall-test-7", Pipeline.GROUPED)
    assert found(arceos) == {"arceos/smoke": every, "arceos/c": every, "arceos/rust": every}
    shown = [case.display_name for case in discover(arceos, Arch.X86_64, Arch.X86_64.default_target).cases]
    assert shown == ["arceos/axtest/smoke", "arceos/c", "arceos/rust"]
    assert found(axvisor) == {
        "axvisor/qemu/smoke": dict.fromkeys(list(every)[1:], 0),
        "axvisor/qemu/smoke-svm": {"x86_64": 0},
        "axvisor/qemu/smoke-vmx": {"x86_64": 0},
        "axvisor/uefi/qemu-nimbos": {"x86_64": 0},
    }
    boards = "test-suit/starryos/board-orangepi/boot/board-orangepi.toml"
    assert proposal.untranslated == (f"cases for boards are not run, only those for QEMU: {boards}",)


@pytest.mark.parametrize("arch", ARCHES)
def test_the_tree_of_september(tmp_path: Path, arch: Arch) -> None:
    workspace, _ = opened(tmp_path, tree_of_september)
    cases = discover(workspace, arch, arch.default_target).cases
    assert [case.display_name for case in cases] == ["qemu/smoke", "qemu/system", "qemu/system-smp1"]
    smoke, system, smp1 = cases
    assert isinstance(smoke, Case)
    assert [(step.prompt, step.command, step.success) for step in smoke.config.steps] == [
        ("root@starry:", "pwd && echo done", ("(?m)^done",))
    ]
    assert isinstance(system, Case)
    assert isinstance(smp1, Case)
    assert (len(system.subcases), len(smp1.subcases), smp1.variant) == (10, 10, "smp1")
    assert (system.config.preserve_commands, smp1.config.preserve_commands) == (True, False)
    parts = select(discover(workspace, arch, arch.default_target), ["system/net"])
    assert [part.name for part in parts] == [f"system/net/net-test-{number}" for number in range(5)]
