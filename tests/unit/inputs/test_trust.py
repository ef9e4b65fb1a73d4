"""What a stranger's workspace and its cases may ask of the host (`trust = "sandboxed"`)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config import qemu_options
from qcase.config.qemu_options import ArgumentError
from qcase.config.schema import literal
from qcase.config.steps_table import StepConfig
from qcase.errors import ConfigError, InfraError, UsageError
from qcase.guests.alpine import to_raw
from qcase.inputs import new_case, trust
from qcase.model import Pipeline
from qcase.prepare.session import Session
from qcase.store.store import Store
from qcase.suite import discover, known_additions
from qcase.suite.cases import BrokenCase, Case, Workspace
from qcase.vm import arguments as arguments_module
from qcase.vm import sandbox
from qcase.vm.arguments import MachineSpec
from qcase.vm.network import Network
from tests.conftest import ROOT

TARGET = Arch.X86_64.default_target


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace with a case and some files; beside it a canary that nobody may reach."""
    made = tmp_path / "w"
    (made / "suite/normal/one/sh").mkdir(parents=True)
    (made / "suite/normal/one/sh/run").write_text("#!/bin/sh\n")
    (made / "second.img").write_bytes(bytes(512))
    for address in (
        "fat:/etc",
        "nbd:/x/y",
        "nbd:localhost:10809",
        "http:/localhost/x",
    ):  # for QEMU no files, though there are such
        (made / address).parent.mkdir(parents=True, exist_ok=True)
        (made / address).write_bytes(bytes(512))
    (tmp_path / "canary").write_text("canary")
    (made / "link").symlink_to(tmp_path / "canary")
    case(made)
    configure(made, "")
    return made


def case(root: Path, lines: str = "") -> None:
    text = 'shell_prefix = "#"\nshell_init_cmd = "run"\nsuccess_regex = ["ok"]\n'
    (root / "suite/normal/one/qemu-x86_64.toml").write_text(text + lines)


def configure(root: Path, text: str, run: str = 'trust = "sandboxed"') -> None:
    (root / "qcase.toml").write_text(f'[suite]\nroot = "suite"\n[run]\n{run}\n{text}\n')


def found(root: Path) -> tuple[Case | BrokenCase, Workspace]:
    opened = Workspace.open(root)
    (one,) = discover.discover(opened, Arch.X86_64, TARGET).cases
    return one, opened


# --- the workspace ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ('[guest.x86_64]\nrootfs = "../canary"', "guest.x86_64.rootfs", "outside of the workspace"),
        ('[guest.x86_64]\nkernel = "link"', "guest.x86_64.kernel", "outside of the workspace"),
        ('[guest.x86_64]\ninitrd = "/etc/passwd"', "guest.x86_64.initrd", "outside of the workspace"),
        ('[guest.x86_64]\nfirmware = "/etc/passwd"', "guest.x86_64.firmware", "outside of the workspace"),
        ('[guest.aarch64]\ndisks = { "a.img" = "/etc/passwd" }', "guest.aarch64.disks.a.img", "outside of the workspace"),
        ('[guest.x86_64]\nrootfs = { url = "file:///etc/passwd", sha256 = "%s" }' % ("0" * 64), "guest.x86_64.rootfs", "outside"),
        ('[guest.riscv64]\nkernel = { build = "make", output = "k" }', "guest.riscv64.kernel", "would run on the host"),
        ('[guest.x86_64]\nkernel = { build = "${env:TOKEN}", output = "k", where = "c" }', "guest.x86_64.kernel", "environment"),
        ('[cache]\nenv = ["TOKEN"]', "cache.env", "environment"),
        ('[hooks]\nprepare_staging_root = "../hook.sh"', "hooks.prepare_staging_root", "outside of the workspace"),
        ('[packages]\nrepositories = ["/srv/packages"]', "packages.repositories", "outside of the workspace"),
        ('[packages]\nkeys = ["link"]', "packages.keys", "outside of the workspace"),
        ('[toolchain.rust]\nimage = "i@sha256:%s"' % ("0" * 64), "toolchain.rust.image", "foreign image with a network"),
    ],
)
def test_what_a_strangers_workspace_must_not_have(text: str, key: str, what: str, root: Path) -> None:
    configure(root, text)
    with pytest.raises(ConfigError, match=r'under trust = "sandboxed"') as caught:
        trust.check(Workspace.open(root))
    (problem,) = caught.value.problems
    assert problem.key == key
    assert what in problem.what
    with pytest.raises(ConfigError):  # and so for every command that prepares something
        Session(Workspace.open(root), Arch.X86_64, TARGET, Store(root.parent / "store", readonly=True), lambda _: None)
    configure(root, text, run="")
    trust.check(Workspace.open(root))


def test_a_network_of_the_host_is_refused(root: Path) -> None:
    configure(root, "", run='trust = "sandboxed"\nnetwork = "user"')
    with pytest.raises(ConfigError, match=r"run\.network"):
        trust.check(Workspace.open(root))


def test_all_that_a_workspace_of_its_own_has_is_allowed(root: Path) -> None:
    configure(root, '[guest.x86_64]\nrootfs = "second.img"\nkernel = { build = "make", output = "k", where = "c" }')
    trust.check(Workspace.open(root))


def test_the_environment_and_the_command_line_win_over_the_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(root, "", run='trust = "suite"')
    monkeypatch.setenv("QCASE_TRUST", "sandboxed")
    opened = Workspace.open(root)
    assert opened.config.run.trust == "sandboxed"
    assert opened.trusted("suite", "--trust").config.run.trust == "suite"
    monkeypatch.setenv("QCASE_TRUST", "sandbox")
    with pytest.raises(UsageError, match="'sandbox' is no trust"):
        Workspace.open(root)


@pytest.mark.parametrize("name", ["known.toml", "suite/known.toml", "qcase.lock", "qcase.toml"])
def test_files_of_a_strangers_workspace_that_lie_elsewhere(name: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text((root / "qcase.toml").read_text() if name == "qcase.toml" else "")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is outside of the workspace"):
        trust.check(Workspace.open(root))


def test_a_strangers_target_is_in_its_workspace(root: Path, tmp_path: Path) -> None:
    """An empty folder, and cargo's, are what a link in its place may lead to where the suite is one's own."""
    (tmp_path / "empty").mkdir()
    (root / "target").symlink_to(tmp_path / "empty")
    for use in (lambda: trust.check(Workspace.open(root)), lambda: found(root)):
        with pytest.raises(ConfigError, match="leads out of the workspace"):
            use()
    assert list((tmp_path / "empty").iterdir()) == []
    configure(root, "", run="")
    assert isinstance(found(root)[0], Case)
    (root / "target").unlink()
    (root / "in").mkdir()
    (root / "target").symlink_to("in")
    configure(root, "")
    trust.check(Workspace.open(root))


def test_nothing_is_written_elsewhere_for_a_stranger(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (root / "suite/other").symlink_to(tmp_path / "empty")
    (root / "known.toml").symlink_to(tmp_path / "new.toml")
    opened = Workspace.open(root)
    with pytest.raises(UsageError, match="is outside of the workspace"):
        new_case.new_case(opened, "other/one", Pipeline.SH, [Arch.X86_64])
    with pytest.raises(UsageError, match="leads out of the workspace"):
        known_additions.write(opened, [])
    assert not (tmp_path / "new.toml").exists()


# --- a case -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["args", "success_regex", "fail_regex"])
def test_a_strangers_case_is_told_nothing_of_the_environment(key: str, root: Path) -> None:
    case(root, f'{key} = ["x${{env:HOME}}"]\n'.replace("success_regex", "fail_regex"))
    one, _ = found(root)
    assert isinstance(one, BrokenCase)
    assert 'names a variable of the environment: refused under trust = "sandboxed"' in str(one.error)


def test_what_is_typed_is_told_nothing_either(root: Path) -> None:
    (root / "suite/normal/one/qemu-x86_64.toml").write_text(
        'shell_prefix = "#"\nshell_init_cmd = "echo ${env:HOME}"\nsuccess_regex = ["ok"]\n'
    )
    assert isinstance(found(root)[0], BrokenCase)


@pytest.mark.parametrize(
    "table",
    [
        "[host_http_server]\nport = 80",
        '[[qcase.services]]\nkind = "tftp"\nfolder = "suite"',
        '[[qcase.services]]\nkind = "echo"\nport = 7',
    ],
)
def test_services_of_the_host_are_refused(table: str, root: Path) -> None:
    case(root, f"{table}\n")
    one, workspace = found(root)
    assert isinstance(one, Case)
    with pytest.raises(ConfigError, match="services of the host need a QEMU that may start programs"):
        trust.check_case(one, workspace)


def test_a_kernel_of_a_case_is_not_built_on_the_host(root: Path) -> None:
    (root / "suite/normal/one/sh/run").unlink()
    (root / "suite/normal/one/sh").rmdir()
    for where, refused in (("host", True), ("c", False)):
        own = f'build = "make"\noutput = "k"\nwhere = "{where}"\n'
        case(root, f'[qcase]\npipeline = "ktest"\n[qcase.kernel]\n{own}')
        one, workspace = found(root)
        assert isinstance(one, Case)
        if refused:
            with pytest.raises(ConfigError, match="the build of its kernel would run on the host"):
                trust.check_case(one, workspace)
        else:
            trust.check_case(one, workspace)
    case(root, '[qcase]\npipeline = "ktest"\n[qcase.kernel]\nbuild = "echo ${env:HOME}"\noutput = "k"\nwhere = "c"\n')
    assert isinstance(found(root)[0], BrokenCase)


@pytest.mark.parametrize("name", ["sh", "disk", "rootfs"])
def test_nothing_of_a_strangers_case_lies_outside(name: str, root: Path, tmp_path: Path) -> None:
    if name == "sh":
        (root / "suite/normal/one/sh/run").unlink()
        (root / "suite/normal/one/sh").rmdir()
        (root / "suite/normal/one/sh").symlink_to(tmp_path)
    else:
        case(root, f'args = ["-hda", "{tmp_path}/canary"]\n' if name == "disk" else '[qcase]\nrootfs = "link"\n')
    one, opened = found(root)
    assert isinstance(one, Case)
    with pytest.raises(ConfigError, match="is outside of the workspace"):
        trust.check_case(one, opened)
    configure(root, "", run="")
    trust.check_case(*found(root))  # type: ignore[arg-type]


# --- QEMU's arguments ---------------------------------------------------------------------------------------------------

ALLOWED = [
    "-nographic -m 1G,slots=2 -smp 4,sockets=2 -cpu cortex-a72,pmu=off -M virt,gic-version=3",
    "-machine q35,accel=tcg -accel tcg,thread=multi -rtc base=utc,clock=vm -icount shift=auto -name guest,debug-threads=on",
    "-device nvme,drive=disk0,serial=x -drive if=none,id=disk0,file=/anywhere.img,snapshot=off",
    "-drive file=second.img,if=virtio,format=raw,index=1 -drive id=disk0,if=none",
    "-netdev user,id=net0,net=10.0.2.0/24 -device e1000,netdev=net0",
    "-nic user,model=virtio-net-pci",
    "-machine virt,dtb_randomness=off,smp.cpus=2,acpi=off -M q35,kernel-irqchip=split,smm=off",
    "-display none -serial mon:stdio -monitor none",
    "-chardev stdio,id=c,mux=on -serial chardev:c -device virtio-serial-pci -device virtconsole,chardev=c",
    "-device isa-debug-exit,iobase=0xf4,iosize=0x04 -no-reboot -boot order=c -append root=/dev/vda",
    "-object rng-builtin,id=r -device virtio-rng-pci,rng=r -smbios type=1,serial=x",
]
REFUSED = [
    "-netdev user,id=net0,hostfwd=tcp::5555-:22",
    "-netdev user,id=net0,tftp=/etc",
    "-netdev user,id=net0,bootfile=x",
    '-netdev {"type":"user","id":"n","tftp":"x"}',
    "-chardev file,id=c,path=x",
    "-chardev stdio,id=c,logfile=x",
    "-chardev socket,id=c,path=x",
    "-chardev pipe,id=c,path=x",
    "-serial file:x",
    "-serial tcp::1,server",
    "-serial pipe:x",
    "-parallel file:x",
    "-debugcon file:x",
    "-monitor unix:x,server",
    "-monitor stdio",
    "-mon chardev=c",
    "-qmp tcp::1",
    "-gdb tcp::1",
    "-s",
    "-virtfs local,path=/,mount_tag=x,security_model=none,readonly=on",
    "-fsdev local,path=/,id=x,security_model=none,readonly=on",
    "-drive id=disk0,if=none -drive if=virtio,index=1,file=/etc/passwd,format=raw",
    "-drive id=disk0,if=none -drive if=virtio,index=1,file=link,format=raw",
    "-drive id=disk0,if=none -drive if=virtio,index=1,file=second.img",
    "-drive id=disk0,if=none -drive if=virtio,index=1,file=second.img,format=qcow2",
    "-drive id=disk0,if=none -drive if=virtio,index=1,file=second.img,format=raw,backing.file.filename=/etc/passwd",
    "-drive id=disk0,if=none -drive if=virtio,index=1,file=nbd://x/y,format=raw",
    "-drive id=disk0,if=none -drive if=virtio,index=1,file=fat:/etc,format=raw",
    "-drive id=disk0,if=none -drive if=virtio,index=1,file=nbd:localhost:10809,format=raw",
    "-drive id=disk0,if=none -drive if=virtio,index=1,file=http://localhost/x,format=raw",
    "-drive id=disk0,if=none -drive if=virtio,index=1,file=./nbd:localhost:10809,format=qcow2",
    "-device virtio-gpu-rutabaga",
    "-device virtio-vga-rutabaga,wsi=surfaceless",
    "-device virtio-gpu-gl-pci",
    '-drive id=disk0,if=none -drive if=virtio,index=1,format=raw,file=json:{"driver":"file","filename":"/etc/passwd"}',
    "-drive id=disk0,if=none -hdb second.img",
    "-cdrom /etc/passwd",
    "-drive id=disk0,if=none -pflash /etc/passwd",
    "-blockdev file,node-name=x,filename=/etc/passwd",
    "-bios x",
    "-dtb x",
    "-initrd x",
    "-kernel x",
    "-option-rom x",
    "-acpitable file=x",
    "-fw_cfg name=opt/x,file=x",
    "-smbios file=x",
    "-smbios type=11,path=x",
    "-device loader,file=x",
    "-device vfio-pci,host=00:01.0",
    "-device usb-host,hostbus=1",
    "-device virtio-9p-pci,fsdev=x,mount_tag=x",
    "-device vhost-vsock-pci,guest-cid=3",
    "-device virtio-gpu-gl-pci",
    "-device e1000,netdev=net0,romfile=x",
    '-device {"driver":"e1000","romfile":"x"}',
    "-object memory-backend-file,id=m,size=1M,mem-path=x",
    "-object rng-random,id=r,filename=/etc/passwd",
    "-object filter-dump,id=f,netdev=net0,file=x",
    "-object secret,id=s,file=x",
    "-machine virt,dumpdtb=x",
    "-M q35,firmware=x",
    "-M q35,boot.splash=x",
    "-M virt,memory_backend=x",
    "-M virt,nosuchkey=x",
    "-cpu max,x=/etc/passwd",
    "-D x",
    "-d int",
    "-trace file=x",
    "-pidfile x",
    "-runas root",
    "-chroot x",
    "-daemonize",
    "-plugin x",
    "-L x",
    "-mem-path x",
    "-incoming exec:id",
    "-loadvm x",
    "-icount shift=auto,rr=record,rrfile=x",
    "-boot splash=x",
    "-vnc :1",
    "-display vnc=:1",
    "-spice port=1",
    "-audiodev wav,id=a,path=x",
    "-tpmdev passthrough,id=t",
    "-add-fd fd=3,set=1",
    "-qtest tcp::1",
    "-readconfig x",
    "-set drive.disk0.file=x",
    "-global virtio-net-pci.romfile=x",
    "-semihosting",
    "-sandbox off",
    "-nosuchoption",
]


def arguments(words: str, root: Path) -> list[str]:
    spec = MachineSpec(Arch.X86_64, tuple(words.split()), Path("/store/image"), Path("/store/kernel"), stranger=root)
    return arguments_module.arguments(spec)


@pytest.mark.parametrize("words", ALLOWED)
def test_what_stays_in_the_machine_is_allowed(words: str, root: Path) -> None:
    assert arguments(words, root)


@pytest.mark.parametrize("words", REFUSED)
def test_what_names_something_of_the_host_is_refused(words: str, root: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        arguments(words, root)
    assert caught.value.hint or "qcase knows" in caught.value.what


def test_every_option_of_qemu_is_either_known_to_be_harmless_or_refused(root: Path) -> None:
    """With a value that names a file, none of those that take one is allowed; new options are refused by themselves."""
    harmless = {"append"}
    for name in sorted(qemu_options.WITH_VALUE - harmless):
        for value in ("/etc/passwd", "file=/etc/passwd", "x,path=/etc/passwd", "id=x,filename=/etc/passwd"):
            options = [qemu_options.Option(name, value)]
            with pytest.raises(ArgumentError, match=f"-{name} "):
                sandbox.check(options, [], root)
    allowed = {name for name in qemu_options.SWITCHES if sandbox.leaves_machine(qemu_options.Option(name)) == ""}
    assert not allowed & {"daemonize", "s", "S", "semihosting", "preconfig", "jitdump", "perfmap"}


def test_the_files_that_qemu_may_read_are_those_that_it_is_given(root: Path) -> None:
    line = arguments("-drive file=second.img,if=virtio,format=raw,index=1 -drive id=disk0,if=none", root)
    assert sandbox.files_of(line) == ["/store/kernel", "second.img", "/store/image"]


# --- images -------------------------------------------------------------------------------------------------------------


def test_an_image_that_is_fetched_reads_no_file_of_this_machine(tmp_path: Path) -> None:
    """A qcow2 image may name another file that it continues; qemu-img would read that."""
    version_2 = b"QFI\xfb" + (2).to_bytes(4, "big") + (104).to_bytes(8, "big") + bytes(100)
    version_3 = b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(64) + (4).to_bytes(8, "big") + bytes(100)
    for name, header in (("backing", version_2), ("data", version_3)):
        (tmp_path / name).write_bytes(header)
        with pytest.raises(InfraError, match="takes parts of its content from another file"):
            to_raw(tmp_path / name, tmp_path / "raw")
    assert not os.path.lexists(tmp_path / "raw")


def test_every_promise_names_a_test_that_is_there() -> None:
    named = re.findall(r"tests/[a-z/_0-9]+\.py", (ROOT / "docs" / "security.md").read_text(encoding="utf-8"))
    assert len(set(named)) > 6
    assert all((ROOT / name).is_file() for name in named)


# --- devices that a step adds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "network", "stranger", "what"),
    [
        ({"driver": "vfio-pci", "host": "0000:00:00.0"}, "restricted", True, "is no device that is known"),
        ({"driver": "usb-host"}, "restricted", True, "is no device that is known"),
        ({"driver": "virtio-net-pci", "romfile": "/etc/passwd"}, "restricted", True, "romfile= is not allowed"),
        ({"driver": "vhost-vsock-pci", "guest-cid": 3}, "restricted", False, "connects the guest to the host"),
        ({"driver": "vhost-vsock-pci", "guest-cid": 3}, "none", False, "connects the guest to the host"),
        ({"driver": "usb-mtp", "rootdir": "/home", "readonly": False}, "user", False, "lets the guest write into files"),
    ],
)
def test_a_step_adds_no_device_that_arguments_could_not_name(
    device: dict[str, object], network: Network, stranger: bool, what: str, root: Path
) -> None:
    (step,) = _steps(root, device)
    (added,) = step.added_devices
    spec = MachineSpec(Arch.X86_64, (), root / "second.img", root / "k", network=network, stranger=root if stranger else None)
    with pytest.raises(ArgumentError, match=re.escape(what)):
        arguments_module.check_added(added, spec)


def test_a_step_adds_a_card(root: Path) -> None:
    (step,) = _steps(root, {"driver": "virtio-net-pci", "netdev": "net0", "id": "card"})
    (added,) = step.added_devices
    arguments_module.check_added(added, MachineSpec(Arch.X86_64, (), root / "second.img", root / "k", stranger=root))


def _steps(root: Path, device: dict[str, object]) -> tuple[StepConfig, ...]:
    given = ", ".join(f"{key} = {literal(value)}" for key, value in device.items())
    step = f'qmp = {{ execute = "device_add", arguments = {{ {given} }} }}\nsuccess_regex = ["ok"]\n'
    (root / "suite/normal/one/qemu-x86_64.toml").write_text(f"[[qcase.steps]]\n{step}")
    one, _ = found(root)
    assert isinstance(one, Case), one
    return one.config.steps
