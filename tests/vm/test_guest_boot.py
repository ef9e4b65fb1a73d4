"""The built-in guest, fetched for real and booted: what is at the prompt, and what the guest can do as any Linux can.

The store that these tests fetch into is kept between runs: `QCASE_TEST_CACHE`, else `~/.cache/qcase-tests`.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.disk.ext4 import Ext4Image
from qcase.errors import InfraError
from qcase.events import Event, Warned
from qcase.guests import initramfs
from qcase.guests.guest import DEBIAN, Guest, GuestChoice, Tools, alpine_guest, built_in, resolve
from qcase.host.process import Deadline, spawn
from qcase.toolchains import base
from tests.conftest import ROOT
from tests.vm import workspaces

pytestmark = pytest.mark.vm

ARCHES = (Arch.X86_64, Arch.AARCH64)
PATIENCE = 400.0  # seconds for anything that a guest does; only a failing test waits that long
ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1bc")


@pytest.fixture(scope="session")
def cache() -> Path:
    configured = os.environ.get("QCASE_TEST_CACHE")
    path = Path(configured) if configured else Path.home() / ".cache" / "qcase-tests"
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(params=ARCHES)
def guest(request: pytest.FixtureRequest, cache: Path) -> Guest:
    """An architecture stands for its `alpine`; `debian-<arch>` is the other one, for which the image `c` is needed."""
    if isinstance(request.param, Arch):
        return alpine_guest(request.param, cache, emit=ignore)
    return debian(Arch(request.param.partition("-")[2]), request)


def debian(arch: Arch, request: pytest.FixtureRequest) -> Guest:
    cache, engine = request.getfixturevalue("test_cache"), request.getfixturevalue("shared_engine")
    tools = Tools(lambda: engine, lambda: base.base(engine, cache), lambda: request.getfixturevalue("toolchain_c").id)
    return built_in(DEBIAN, arch, cache, tools=tools, emit=ignore)


def in_guests(*names: Arch | str) -> pytest.MarkDecorator:
    """Run a test in these guests."""
    marked = [name if isinstance(name, Arch) else pytest.param(name, marks=pytest.mark.container) for name in names]
    return pytest.mark.parametrize("guest", marked, indirect=True)


def ignore(event: Event) -> None:
    """Somebody who does not listen."""


class Console:
    """A guest's serial console. `raw` is all that it said, `unread` where the part begins that nobody has waited for yet."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        self.raw = b""
        self.unread = 0

    def until(self, pattern: str) -> str:
        """What the guest said since the last call up to a match's end, as text without escape sequences."""
        wanted = re.compile(pattern.encode())
        deadline = Deadline.after(PATIENCE)
        while (found := wanted.search(text := ESCAPE.sub(b"", self.raw), self.unread)) is None:
            assert self._more(deadline), f"no {pattern!r} in {text[self.unread :]!r}"
        said, self.unread = text[self.unread : found.end()], found.end()
        return said.decode(errors="replace").replace("\r\n", "\n")

    def prompt(self, name: str = "[a-z.]+") -> str:
        # After Ctrl-C Linux signals first and echoes then: "^C" may come between the shell's line feed and its prompt.
        return self.until(rf"\n(?:\^C)?root@{name}:/[^\r\n]*# $")

    def type(self, data: bytes) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(data)
        self.child.stdin.flush()

    def run(self, command: str) -> str:
        """Run one line at the prompt and return what it printed."""
        self.type(command.encode() + b"\n")
        said = self.until(r"\r\n(?s:.*\n)?root@[a-z.]+:/[^\r\n]*# $")
        echoed, _, output = said.partition("\n")
        assert echoed == command
        return output.rpartition("root@")[0].rstrip("\n")

    def end(self) -> int:
        """Wait for QEMU to end by itself."""
        deadline = Deadline.after(PATIENCE)
        while self._more(deadline):
            continue
        return self.child.wait(PATIENCE)

    def _more(self, deadline: Deadline) -> bool:
        assert self.child.stdout is not None
        ready, _, _ = select.select([self.child.stdout], [], [], deadline.remaining())
        data = os.read(self.child.stdout.fileno(), 1 << 16) if ready else b""
        self.raw += data
        return bool(data)


@contextmanager
def booted(
    guest: Guest, extra: Sequence[str] = (), *, disk: bool = True, network: bool = True, bus: str = "pci", snapshot: bool = True
) -> Iterator[Console]:
    """A guest with the arguments that a case usually has."""
    # One thread for all processors, as `qemu.arguments` has it on x86_64: with one for each, TCG may run half-patched code.
    accel = "tcg,thread=single" if guest.arch is Arch.X86_64 else "tcg"
    argv = [guest.arch.qemu, "-nographic", "-no-reboot", "-m", "256M", "-accel", accel, "-machine", guest.arch.machine]
    argv += ["-cpu", "cortex-a72"] if guest.arch is Arch.AARCH64 else []
    argv += ["-device", f"virtio-blk-{bus},drive=disk0"] if disk else []
    argv += ["-drive", f"id=disk0,if=none,format=raw,file={guest.rootfs}"]
    argv += ["-device", f"virtio-net-{bus},netdev=net0", "-netdev", "user,id=net0"] if network else ["-nic", "none"]
    argv += ["-snapshot"] if snapshot else []
    argv += ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", guest.append, *extra]
    with spawn(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        yield Console(child)


def sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


@in_guests(*ARCHES, "debian-riscv64", "debian-x86_64", "debian-aarch64")
def test_a_guest_is_at_its_prompt_like_any_linux_and_leaves_its_image_as_it_was(guest: Guest) -> None:
    with booted(guest) as console:
        before = console.prompt("qcase")
        assert before.endswith("root@qcase:/root# ")
        assert "panic" not in before
        assert console.run("hostname; tty; id -u; echo $HOME $TERM") == "qcase\n/dev/console\n0\n/root dumb"
        assert console.run("cat /proc/cmdline") == guest.append
        assert console.run("cut -d' ' -f1-3 /proc/mounts | sort") == (
            "/dev/vda / ext4\ndev /dev devtmpfs\ndevpts /dev/pts devpts\nproc /proc proc\nrun /run tmpfs\n"
            "shm /dev/shm tmpfs\nsys /sys sysfs"
        )
        assert console.run("ls -A /root") == ""
        assert console.run("cat /proc/1/comm; stat -L -c %d:%i /proc/1/root/. /. | uniq | wc -l") == "init\n1"
        # Signals as a process has them by default: nothing is ignored.
        assert re.search(r"SigIgn:\s0+$", console.run("grep SigIgn /proc/self/status"))
        # The shell leads a session whose controlling terminal is the console, so Ctrl-C reaches what it runs.
        console.type(b"sh -c 'echo run''ning; exec sleep 1000'\n")
        console.until("running\r\n")
        console.type(b"\x03")
        console.prompt()
        assert console.run("echo $?") == "130"
        # The kernel finds modprobe in the guest's own root.
        assert console.run("grep -c ^overlay /proc/modules") == "0"
        assert console.run("mount -t overlay none /mnt 2>/dev/null; grep -c ^overlay /proc/modules") == "1"
        assert console.run("echo x > /dev/stderr; cat < /dev/fd/0 < /etc/hostname > /dev/null && echo $?") == "x\n0"
        # It may be written: QEMU keeps that to itself.
        assert console.run("touch /written && sync && ls /written; cd /tmp") == "/written"
        # A line comes back as it was typed: neither broken at a width nor repainted.
        typed = "echo " + "0123456789" * 30 + " 'é'"
        assert console.run(typed) == typed.removeprefix("echo ").replace("'", "")
        # At an idle prompt busybox asks the terminal where its cursor is; nobody has to answer.
        assert re.search(rb"\nroot@qcase:/tmp# (\x1b\[6n)?" + re.escape(typed.encode()) + rb"\r\n", console.raw)
    assert sha256(guest.rootfs) == guest.digests["rootfs.img"]


@in_guests(*ARCHES, "debian-riscv64")
def test_the_network_card_has_its_address(guest: Guest) -> None:
    with booted(guest) as console:
        console.prompt()
        assert re.search(r"inet 10\.0\.2\.15/24 .*eth0", console.run("ip -4 addr show dev eth0"))
        assert console.run("ip route | head -n 1") == "default via 10.0.2.2 dev eth0 "
        assert "1 packets received" in console.run("ping -c 1 -w 60 10.0.2.2")


@pytest.mark.parametrize("guest", [Arch.AARCH64], indirect=True)
def test_two_processors_and_devices_without_a_pci_bus(guest: Guest) -> None:
    with booted(guest, ["-smp", "2"], bus="device") as console:
        console.prompt()
        assert console.run("nproc; ls /sys/class/net") == "2\neth0  lo"


@pytest.mark.parametrize("guest", [Arch.X86_64], indirect=True)
def test_two_processors_and_no_network_card(guest: Guest) -> None:
    with booted(guest, ["-smp", "2"], network=False) as console:
        console.prompt()
        assert console.run("nproc; ls /sys/class/net; cat /sys/class/net/lo/flags") == "2\nlo\n0x9"


@pytest.mark.parametrize("guest", [Arch.AARCH64], indirect=True)
def test_a_guest_without_its_disk_says_so_and_ends(guest: Guest) -> None:
    with booted(guest, disk=False) as console:
        console.until("qcase: there is no disk /dev/vda")
        assert console.end() == 0


def test_a_kernel_that_dies_is_seen_on_the_console(guest: Guest) -> None:
    with booted(guest) as console:
        console.prompt()
        console.type(b"echo c >/proc/sysrq-trigger\n")
        console.until("Kernel panic - not syncing: sysrq triggered crash")


@pytest.mark.parametrize("command", ["poweroff", "reboot"])
def test_poweroff_and_reboot_end_the_machine(guest: Guest, command: str) -> None:
    with booted(guest) as console:
        console.prompt()
        console.type(command.encode() + b"\n")
        assert console.end() == 0
        assert b"reboot: " in console.raw
        assert b"Kernel panic" not in console.raw


@pytest.mark.parametrize("guest", [Arch.AARCH64], indirect=True)
def test_there_is_always_a_shell(guest: Guest) -> None:
    with booted(guest) as console:
        console.prompt()
        # Orphans are reaped, also one that ends after its parent.
        assert console.run("sh -c 'sleep 0.1 & exit'; sleep 1; ps | grep -c '[s]leep\\|[Z]ombie'") == "0"
        console.type(b"kill -9 -1\n")
        console.prompt()
        console.type(b"exit 3\n")
        console.prompt()
        assert console.run("ps | grep -c 'bin/[s]h'") == "1"
        console.type(b"poweroff -f\n")
        assert console.end() == 0


@in_guests(*ARCHES, "debian-riscv64")
def test_an_image_of_ones_own_boots_with_the_built_in_kernel(guest: Guest, cache: Path, tmp_path: Path) -> None:
    """Also one whose `/sbin/init` is somebody else's, and under a name of its own."""
    image = tmp_path / "disk.img"
    subprocess.run(["cp", "--sparse=always", guest.rootfs, image], check=True)
    image.chmod(0o644)
    kernel = guest.name.partition("-")[0]
    spec = GuestChoice(rootfs="disk.img", kernel=kernel, hostname="my.box", append="loglevel=6")
    mine = resolve(spec, guest.arch, tmp_path, cache, emit=ignore)
    assert mine.rootfs == image
    assert (mine.kernel, mine.initrd) == (guest.kernel, guest.initrd)
    assert mine.append == guest.append.replace("=qcase", "=my.box") + " loglevel=6"
    with booted(mine, snapshot=False) as console:
        console.prompt("my.box")
        assert console.run("rm /sbin/init && ln -s /lib/other/init /sbin/init && sync && echo done") == "done"
        console.type(b"poweroff -f\n")
        console.end()
    with booted(mine) as console:
        console.prompt("my.box")
        assert console.run("readlink /sbin/init; hostname") == "/lib/other/init\nmy.box"
        console.type(b"poweroff\n")
        assert console.end() == 0


@pytest.mark.container
def test_examples_run_on_riscv64_and_bring_the_c_library_that_the_guest_does_not_have(
    request: pytest.FixtureRequest, test_cache: Path, tmp_path: Path
) -> None:
    debian(Arch.RISCV64, request)
    examples = tmp_path / "linux"
    shutil.copytree(ROOT / "examples" / "linux", examples, ignore=shutil.ignore_patterns("target"))
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    outcome = workspaces.run(examples, "smoke", "dynamic", store=store, arch=Arch.RISCV64)
    assert outcome.verdicts == {"smoke": "pass", "dynamic": "pass"}, outcome.said


@in_guests(*ARCHES, "debian-riscv64")
def test_the_initramfs_is_the_same_bytes_each_time(guest: Guest) -> None:
    assert guest.initrd is not None
    with Ext4Image.open(guest.rootfs) as image:
        assert initramfs.archive(image, guest.arch) == guest.initrd.read_bytes()


@pytest.mark.parametrize("guest", [Arch.AARCH64], indirect=True)
def test_a_store_may_be_moved_but_not_changed(guest: Guest, cache: Path, wheels: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    subprocess.run(["cp", "-r", "--sparse=always", cache / "guests", store], check=True)
    events: list[Event] = []
    moved = alpine_guest(guest.arch, store, offline=True, emit=events.append)
    assert moved.digests == guest.digests
    assert not events

    assert moved.kernel is not None
    moved.kernel.chmod(0o644)
    with moved.kernel.open("r+b") as kernel:
        kernel.seek(1 << 20)
        kernel.write(b"worm")
    with pytest.raises(InfraError, match="not in the store"):
        alpine_guest(guest.arch, store, offline=True, emit=events.append)
    assert isinstance(events[0], Warned)
    assert str(moved.kernel) in events[0].message

    assert moved.initrd is not None
    shutil.rmtree(moved.kernel.parent)
    again = alpine_guest(guest.arch, store, emit=events.append)
    assert again.digests == guest.digests
