"""Which disk is the root disk, and what is put on it. What QEMU makes of it is in tests/vm/test_disks.py."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from qcase.config import qemu_options, root_disk
from qcase.config.qemu_options import ArgumentError

IMAGE = Path("/store/image.img")
READS = "blkdebug,node-name=r,read-only=on,image.driver=file,image.filename=x,image.read-only=on"
RAW = '{"driver":"raw","node-name":"%s","file":{"driver":"file","filename":"old.img"}}'


def attached(*words: str, images: dict[str, Path] | None = None) -> tuple[list[str], bool]:
    made = root_disk.attach(qemu_options.split(words), IMAGE, images or {})
    return qemu_options.join(made.options), made.attached


def test_the_drive_disk0_is_found_whatever_the_order_of_its_options() -> None:
    for options in itertools.permutations(["if=none", "id=disk0", "format=qcow2", "file=old.img", "snapshot=off"]):
        words, there = attached("-drive", ",".join(options))
        assert qemu_options.parse(words[1]).without("snapshot").parts == qemu_options.parse(words[1]).parts
        assert dict(qemu_options.parse(words[1]).parts) == {"if": "none", "id": "disk0", "format": "raw", "file": str(IMAGE)}
        assert not there


@pytest.mark.parametrize(
    ("words", "written", "there"),
    [
        ("-device nvme,drive=nvm,serial=x -drive file=old.img,id=nvm,if=none,format=raw", 3, True),
        ("--drive file=second.img,id=a,if=none -drive id=disk0,if=none,file=old.img", 3, False),
        (
            "-drive file=cd.iso,id=a,if=none -device ide-cd,drive=a -drive file=old.img,id=b,if=none -device ide-hd,drive=b",
            5,
            True,
        ),
        ("-drive file=f.img,if=none,id=a -drive file=old.img,if=sd,format=raw", 3, True),
        ("-drive if=virtio,file=old.img", 1, True),
        ("-drive media=cdrom,file=cd.iso -drive file=old.img", 3, True),
        ("-drive if=virtio,file=second.img,index=1 -drive if=virtio,file=old.img,index=0", 3, True),
        ('-device {"driver":"nvme","drive":"n","serial":"x"} -drive id=n,if=none,file=old.img', 3, True),
        ("-drive if=none,id=disk0", 1, False),
        ("-drive if=none,id=disk0,format=qcow2,file.driver=file,file.filename=old.img,lazy-refcounts=on", 1, False),
    ],
)
def test_the_root_disk_is_found_by_reference(words: str, written: int, there: bool) -> None:
    before = words.split()
    after, is_there = attached(*before)
    assert is_there is there
    held = qemu_options.parse(after[written])
    assert (held.get("file"), held.get("format")) == (str(IMAGE), "raw")
    assert not {"file.driver", "file.filename", "lazy-refcounts"} & set(held.keys)
    assert "old.img" not in " ".join(after)
    assert [w for at, w in enumerate(after) if at != written] == [w for at, w in enumerate(before) if at != written]


@pytest.mark.parametrize(
    ("words", "drive"),
    [
        ("-hda old.img", f"index=0,media=disk,file={IMAGE},format=raw"),
        ("-hdb second.img -hda old.img", f"index=0,media=disk,file={IMAGE},format=raw"),
        ("old.img", f"index=0,media=disk,file={IMAGE},format=raw"),
        ("-sd old.img", f"if=sd,file={IMAGE},format=raw"),
        ("-cdrom cd.iso --hda old.img", f"index=0,media=disk,file={IMAGE},format=raw"),
    ],
)
def test_the_short_forms_become_a_drive(words: str, drive: str) -> None:
    after, there = attached(*words.split())
    assert drive in after
    assert "old.img" not in after
    assert there


@pytest.mark.parametrize(
    "blockdev",
    [
        [RAW % "root"],
        ["driver=raw,node-name=root,file.driver=file,file.filename=old.img"],
        ["raw,node-name=root,file=f", "file,node-name=f,filename=old.img"],
        ["driver=file,node-name=f,filename=old.img,aio=threads", "driver=qcow2,node-name=root,file=f,discard=unmap"],
        ["file,node-name=root,filename=old.img"],
    ],
)
def test_a_blockdev_becomes_a_drive_that_its_device_finds(blockdev: list[str]) -> None:
    words = [word for value in blockdev for word in ("-blockdev", value)]
    after, there = attached(*words, "-device", "nvme,drive=root,serial=x")
    assert there
    assert len(after) == 4
    held = qemu_options.parse(after[1])
    assert after[0] == "-drive"
    assert (held.get("id"), held.get("if"), held.get("format"), held.get("file")) == ("root", "none", "raw", str(IMAGE))


def test_other_disks_keep_their_files_and_become_overlays() -> None:
    words, _ = attached(
        *("-drive", "id=disk0,if=none,file=old.img", "-drive", "id=b,if=none,file=b,,1.img,snapshot=off,cache=none"),
        *(
            "-drive",
            "if=pflash,unit=1,file=vars.fd,nosnapshot",
            "-blockdev",
            "qcow2,node-name=q,file.driver=file,file.filename=q",
        ),
    )
    assert words[3] == "id=b,if=none,file=b,,1.img,cache=none"
    assert words[5] == "if=pflash,unit=1,file=vars.fd"
    assert words[6:] == ["-drive", "if=none,id=q,format=qcow2,file=q"]


def test_a_managed_image_stands_in_for_its_name_on_a_second_disk() -> None:
    words, _ = attached(
        *("-drive", "id=disk0,if=none,file=old.img", "-drive", "file=/x/rootfs-x86_64-busybox.img,if=none,id=b,format=qcow2"),
        images={"rootfs-x86_64-busybox.img": Path("/store/busy,box.img")},
    )
    assert words[3] == "file=/store/busy,,box.img,if=none,id=b,format=raw"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("-drive if=virtio,file=a.img -drive if=virtio,file=b.img", "cannot tell which disk is the root disk"),
        ("-device nvme,drive=nvm,serial=x", "there is no drive 'nvm'"),
        ("-drive id=disk0,if=none,format=raw,offset=512,file=x", "offset= on the root disk"),
        (
            f"-blockdev {READS} -device nvme,drive=r",
            "cannot put the image of a case on the node 'r'",
        ),
        ("-set drive.disk0.snapshot=off", "changes what other arguments say"),
        ("-readconfig x.cfg", "has arguments in a file"),
        ("-global virtio-blk-device.drive=x", "lets the guest write"),
        (
            "-blockdev throttle,node-name=disk0,file.driver=file,file.filename=x,throttle-group=t",
            "more than a format over a file",
        ),
        ("-blockdev file,node-name=a,filename=x,read-only=on -blockdev blkdebug,node-name=b,image=a", "more than a format"),
        ("-virtfs local,path=/x,mount_tag=t,security_model=none", "lets the guest write"),
        ("-fsdev local,path=/x,id=t,security_model=none,readonly=off", "lets the guest write"),
        ("-object memory-backend-file,id=m,mem-path=/x,size=1M,share=on", "lets the guest write"),
        ('-object {"qom-type":"memory-backend-file","id":"m","mem-path":"/x","size":1,"share":true}', "lets the guest write"),
    ],
)
def test_what_is_open_or_would_write_into_the_host_is_refused(words: str, what: str) -> None:
    with pytest.raises(ArgumentError, match=what) as caught:
        attached(*words.split())
    assert caught.value.hint


@pytest.mark.parametrize(
    "words",
    [
        "-blockdev file,node-name=a,filename=x,read-only=on -blockdev blkdebug,node-name=b,image=a,read-only=on",
        f"-blockdev {READS} -device scsi-cd,drive=r",
        "-fsdev local,path=/x,id=t,security_model=none,readonly=on",
        "-object memory-backend-file,id=m,mem-path=/x,size=1M",
        "-object memory-backend-memfd,id=m,size=1M,share=on",
    ],
)
def test_what_only_reads_stays(words: str) -> None:
    assert attached(*words.split())[0] == words.split()


@pytest.mark.parametrize("option", ["-semihosting", "-semihosting-config enable=on"])
def test_semihosting_is_refused_where_qemu_would_not_be_confined(option: str) -> None:
    options = qemu_options.split(option.split())
    with pytest.raises(ArgumentError, match="lets the guest write") as caught:
        root_disk.refuse_writers(options)
    assert "[qcase.exit]" in caught.value.hint
    root_disk.refuse_writers(options, semihosting=True)
