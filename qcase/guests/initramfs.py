"""The initramfs that boots a guest from its own image: made of that image's files, the same bytes on every machine.

It needs neither root, a loop device nor a tool of the host: the image is read by `qcase.disk.ext4`, the archive is written here.

    init                       the script below, PID 1 until it hands over
    bin/busybox, bin/<applet>  the image's busybox, and links to it for the applets that the script calls
    lib/ld-musl-<arch>.so.1    its loader, which is its C library too; none of this with a busybox that is static
    lib/libc.musl-<arch>.so.1  the name under which busybox asks for that library
    dev/console, dev/null      device nodes that the kernel opens for PID 1
    links/                     /dev/fd and its kin, which devtmpfs does not have; copied there
    modules/disk, modules/net  kernel modules, unpacked, numbered in the order in which they have to go in: those of the disks
                               that a machine has, since the others would cost time in every boot
    newroot/                   mount point of the guest's disk

The archive is not compressed: unpacking it in an emulated machine takes longer than reading the bytes that it would save. It is
in the "newc" format of the kernel's documentation (driver-api/early-userspace/buffer-format).

The handover to the guest: `switch_root` makes the disk `/`, frees the initramfs and puts busybox's own `init` in its place, as
`init single`: without any inittab that starts a login shell on the console, a session of its own with the console as controlling
terminal, starts it again when it ends, reaps orphans, and carries out `poweroff`, `reboot` and `halt`. A supervising shell script
as PID 1 can do less: a shell starts background jobs with SIGINT and SIGQUIT ignored, for good and for all their children, and
does not look at signals while it waits for a foreground job. The root has to be switched for real: the kernel starts `modprobe`
and core dump handlers in PID 1's root. The shell's settings are in a file on the tmpfs `/run`, named by `ENV`, so the disk stays
as it was. An image whose `/sbin/init` is not busybox's is given ours, from the same tmpfs.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcase.arch import Arch
from qcase.config.disk_kinds import USUAL, Disks, Kind
from qcase.errors import InfraError, UsageError
from qcase.guests.kernel_modules import NET_MODULES, disk_modules, load_order, module_name, parse_dependencies, unpack
from qcase.vm.arguments import DNS_PARAMETER, SERIAL_PARAMETER

if TYPE_CHECKING:
    from qcase.disk.ext4 import Ext4Image


HOSTNAME_PARAMETER = "qcase.hostname"  # on the kernel's command line, so that one initramfs serves every name
_APPLETS = ("cp", "ifconfig", "insmod", "mkdir", "mount", "poweroff", "route", "sh", "sleep", "switch_root", "umount")

# Every command costs 10 to 20 ms in an emulated machine, so the shell uses its built-ins where it can.
INIT = """\
#!/bin/sh
export PATH=/bin
unset SHLVL

give_up() {
    echo "qcase: $1"
    poweroff -f
    while :; do sleep 3600; done # PID 1 must not end: the kernel would die of it
}

echo # the firmware leaves its last line open
mount -t devtmpfs dev /dev
for module in /modules/disk/*; do
    insmod "$module" || give_up "cannot load $module"
done
FIND_ROOT
mount -t ext4 DISK /newroot || give_up "cannot mount DISK as ext4"
cd /newroot
for folder in proc sys dev run; do
    [ -d $folder ] || mkdir $folder
done

mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o nosuid,nodev,noexec sys sys
mount --move /dev dev
mount -t tmpfs -o mode=0755,nosuid,nodev run run
mkdir -p dev/pts dev/shm run/lock run/qcase
mount -t devpts -o gid=5,mode=0620,ptmxmode=0666,nosuid,noexec devpts dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev shm dev/shm
cp -d /links/* dev

name=qcase dns=
read -r line <proc/cmdline
for word in $line; do
    case $word in
    HOSTNAME_PARAMETER=*) name=${word#*=} ;;
    DNS_PARAMETER=*) dns=${word#*=} ;;
    esac
done
echo "$name" >proc/sys/kernel/hostname

ifconfig lo up
for kind in sys/bus/virtio/devices/*/device; do
    [ -e "$kind" ] || continue
    read -r number <"$kind"
    [ "$number" = 0x0001 ] || continue
    for module in /modules/net/*; do
        insmod "$module"
    done
    ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up && route add default gw 10.0.2.2
    [ -z "$dns" ] || [ -s etc/resolv.conf ] || echo "nameserver $dns" >etc/resolv.conf
    break
done

# A serial line has no size, and a shell that takes it for 80 columns wide breaks the line that is typed. XOFF and XON from the
# guest would be bytes in its output. $PWD, since \\w would say ~ for /root.
echo "unset ENV RUNLEVEL
export HOME=/root TERM=dumb PS1='root@$name:\\$PWD# '
HISTFILE=/dev/null
stty rows 24 cols 10000 -ixoff 2>/dev/null
cd 2>/dev/null
unset OLDPWD" >run/qcase/shell
export ENV=/run/qcase/shell

if [ sbin/init -ef bin/busybox ] || [ sbin/init -ef /bin/busybox ]; then # the second: a link to /bin/busybox, seen from here
    exec switch_root -c /dev/console /newroot /sbin/init single
fi
OWN_INIT
""".replace("HOSTNAME_PARAMETER", HOSTNAME_PARAMETER).replace("DNS_PARAMETER", DNS_PARAMETER)

# The first disk of its kind.
_BY_NAME = """\
tries=0
until [ -b DISK ]; do
    tries=$((tries + 1))
    [ $tries -le 200 ] || give_up 'there is no disk DISK'
    sleep 0.03
done"""

# One of several: the kernel names them in any order. Bytes of SCSI's page of the serial number come before it; its length may be
# that of a line feed.
_BY_SERIAL = """\
mkdir /proc /sys
mount -t proc proc /proc
mount -t sysfs sys /sys
read -r line </proc/cmdline
for word in $line; do
    case $word in SERIAL_PARAMETER=*) serial=${word#*=} ;; esac
done
umount /proc
disk= tries=0
until [ -b "$disk" ]; do
    for file in /sys/block/PREFIX*/PLACE; do
        first= second=
        { read -r first; read -r second; } 2>/dev/null <"$file"
        case $first$second in *"$serial") disk=${file#/sys/block/} disk=/dev/${disk%%/*} ;; esac
    done
    tries=$((tries + 1))
    [ $tries -le 200 ] || give_up "there is no disk with the serial number $serial"
    [ -b "$disk" ] || sleep 0.03
done
umount /sys""".replace("SERIAL_PARAMETER", SERIAL_PARAMETER)

_NAMES = {"vd": "vda", "nvme": "nvme0n1", "sd": "sda", "mmcblk": "mmcblk0"}
_SERIALS = {"vd": "serial", "nvme": "device/serial", "sd": "device/vpd_pg80"}

# Commands that make our busybox the init of an image with another init: with its loader, or, if static, alone.
_DYNAMIC_INIT = """\
cp /bin/busybox /lib/LOADER run/qcase
exec switch_root -c /dev/console /newroot /run/qcase/LOADER --argv0 init /run/qcase/busybox single"""
_STATIC_INIT = """\
cp /bin/busybox run/qcase/init
exec switch_root -c /dev/console /newroot /run/qcase/init single"""

_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}


@dataclass(frozen=True)
class Member:
    """One member of the archive. `mode` with the type bits; `data` is a file's content or a symlink's target."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def recipe() -> str:
    """Return a digest of this module's recipe: a different recipe makes a different initramfs."""
    disk = disk_modules(Arch.X86_64, tuple(Kind))  # of one architecture: each guest's name has its own
    parts = (
        INIT,
        _BY_NAME,
        _BY_SERIAL,
        sorted(_NAMES.items()),
        sorted(_SERIALS.items()),
        _DYNAMIC_INIT,
        _STATIC_INIT,
        disk,
        NET_MODULES,
        _APPLETS,
        sorted(_LINKS.items()),
        "cpio 1",
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def script(disks: Disks, own_init: str) -> str:
    """Return the script `init` for a machine with these disks. `own_init`: the commands that put our busybox in place of init."""
    prefix = disks.root.name_prefix
    if disks.serial:
        find, disk = _BY_SERIAL.replace("PREFIX", prefix).replace("PLACE", _SERIALS[prefix]), "$disk"
    else:
        find, disk = _BY_NAME, f"/dev/{_NAMES[prefix]}"
    return INIT.replace("FIND_ROOT", find).replace("DISK", disk).replace("OWN_INIT", own_init)


def archive(image: Ext4Image, arch: Arch, disks: Disks = USUAL) -> bytes:
    """Build the archive for a guest's image, in a machine with these disks.

    Raises `InfraError` if the image lacks a required file, `UsageError` if its kernel has no driver for a disk.
    """
    loader = arch.musl_loader
    busybox = _content(image, "/bin/busybox")
    libraries = []
    own_init = _STATIC_INIT
    if _is_dynamic(busybox, f"{image.path}: /bin/busybox"):
        own_init = _DYNAMIC_INIT.replace("LOADER", loader)
        libraries = [
            Member(f"lib/{loader}", stat.S_IFREG | 0o755, _content(image, f"/lib/{loader}")),
            Member(f"lib/libc.musl-{arch}.so.1", stat.S_IFLNK | 0o777, loader.encode()),
        ]
    members = [
        Member("init", stat.S_IFREG | 0o755, script(disks, own_init).encode()),
        Member("bin/busybox", stat.S_IFREG | 0o755, busybox),
        *(Member(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox") for applet in _APPLETS),
        *libraries,
        Member("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Member("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
        *(Member(f"links/{name}", stat.S_IFLNK | 0o777, target.encode()) for name, target in _LINKS.items()),
        Member("newroot", stat.S_IFDIR | 0o755),
        *_modules(image, arch, disks),
    ]
    return cpio(members)


def _is_dynamic(program: bytes, where: str) -> bool:
    """Tell whether a program names a loader."""
    import io

    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        return any(segment["p_type"] == "PT_INTERP" for segment in ELFFile(io.BytesIO(program)).iter_segments())
    except ELFError as error:
        raise InfraError(f"is no program: {error}", where=where) from None


def cpio(members: Iterable[Member]) -> bytes:
    """Encode a "newc" archive: sorted by path, missing folders added, everything owned by root and dated 1970.

    Each header is the magic and thirteen numbers of eight hexadecimal digits; name and data are padded to four bytes.
    """
    by_path = {member.path: member for member in members}
    for path in list(by_path):
        while "/" in path:
            path = path.rpartition("/")[0]
            by_path.setdefault(path, Member(path, stat.S_IFDIR | 0o755))
    out = bytearray()
    for number, path in enumerate(sorted(by_path), start=1):
        out += _record(number, by_path[path])
    out += _record(0, Member("TRAILER!!!", 0))
    out += bytes(-len(out) % 512)
    return bytes(out)


def _record(inode: int, member: Member) -> bytes:
    name = member.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(member.mode) else 1
    numbers = (inode, member.mode, 0, 0, links, 0, len(member.data), 0, 0, *member.device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name
    return head + bytes(-len(head) % 4) + member.data + bytes(-len(member.data) % 4)


# --- kernel modules -----------------------------------------------------------------------------------------------------


def _modules(image: Ext4Image, arch: Arch, disks: Disks) -> list[Member]:
    """Collect the modules with all their dependencies."""
    top = image.lookup("/lib/modules")
    versions = [] if top is None else list(image.listdir(top))
    if len(versions) != 1:
        raise InfraError(f"expected the modules of one kernel, found {versions}", where=f"{image.path}: /lib/modules")
    base = f"/lib/modules/{versions[0]}"
    dependencies = parse_dependencies(_content(image, f"{base}/modules.dep").decode())
    builtin = {module_name(path) for path in _content(image, f"{base}/modules.builtin").decode().split()}
    try:
        disk = load_order(dependencies, disk_modules(arch, disks.kinds), builtin)
        net = [path for path in load_order(dependencies, NET_MODULES, builtin) if path not in disk]
    except KeyError as error:
        if error.args[0] not in disk_modules(arch):
            kinds = ", ".join(disks.kinds)
            what = f"the guest's kernel has no driver for one of these disks: {kinds} (no module {error.args[0]})"
            raise UsageError(what, where=f"[guest.{arch}] kernel", hint="choose another disk or another kernel") from None
        raise InfraError(f"the kernel has no module {error.args[0]}", where=f"{image.path}: {base}") from None
    return [
        Member(f"modules/{group}/{number:02}-{module_name(path)}.ko", stat.S_IFREG | 0o644, unpack(path, content))
        for group, paths in (("disk", disk), ("net", net))
        for number, path in enumerate(paths)
        for content in [_content(image, f"{base}/{path}")]
    ]


def _content(image: Ext4Image, path: str) -> bytes:
    node = image.lookup(path)
    if node is None:
        raise InfraError(f"the guest's image has no {path}", where=str(image.path))
    return image.read(node)
