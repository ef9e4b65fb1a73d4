"""What QEMU makes of disks and cards: the real QEMU is asked which file the root disk holds, and what it opened for writing."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from qcase.arch import Arch
from qcase.config import qemu_options
from qcase.vm import arguments

pytestmark = pytest.mark.vm

# How a root disk can be written: what is before its `file`, and the device for it.
DEVICES = {
    "virtio-pci": ["-device", "virtio-blk-pci,drive={id}"],
    "virtio-mmio": ["-device", "virtio-blk-device,drive={id}"],
    "json": ["-device", '{{"driver":"virtio-blk-pci","drive":"{id}"}}'],
    "nvme": ["-device", "nvme,drive={id},serial=x"],
    "nvme-ns": ["-device", "nvme,serial=x,id=n", "-device", "nvme-ns,bus=n,drive={id}"],
    "ahci": ["-device", "ich9-ahci,id=a", "-device", "ide-hd,bus=a.0,drive={id}"],
    "scsi": ["-device", "virtio-scsi-pci", "-device", "scsi-hd,drive={id}"],
    "usb": ["-device", "qemu-xhci", "-device", "usb-storage,drive={id}"],
}
OPTIONS = [["id={id}", "if=none", "format=raw", "file={old}"], ["id={id}", "if=none", "format=qcow2", "file.filename={old}"]]
NOISE = [[], ["snapshot=off"], ["nosnapshot"], ["snapshot=off", "cache=unsafe"], ["file={second}", "werror=report"]]
BLOCKDEVS = [
    ['{{"driver":"raw","node-name":"{id}","file":{{"driver":"file","filename":"{old}"}}}}'],
    ["raw,node-name={id},file.driver=file,file.filename={old}"],
    ["file,node-name=f,filename={old}", "driver=raw,node-name={id},file=f,cache.direct=off"],
    ["driver=file,filename={old},node-name={id}"],
]


def forms() -> Iterator[tuple[str, list[str]]]:
    """Machines and the arguments of their disks, in which names in braces stand for files."""
    chance = random.Random(13)
    for kind, device in DEVICES.items():
        for written, noise in itertools.product(OPTIONS, NOISE):
            name = chance.choice(["disk0", "disk0", "nvm", "d.1-x"])
            parts = [*written, *noise]
            if "file={second}" not in noise:
                chance.shuffle(parts)
            else:  # the last one would count: it is none of ours
                parts = [*noise, *written] if written is OPTIONS[0] else [*written, noise[1]]
            dash = chance.choice(["-", "--"])
            words = [f"{dash}drive", ",".join(parts).replace("{id}", name)]
            words = chance.choice([[*words, *device], [*device, *words]])
            if kind != "virtio-mmio" or name == "disk0":
                yield "virt", [word.replace("{id}", name).replace("{{", "{").replace("}}", "}") for word in words]
    for blockdev, kind in itertools.product(BLOCKDEVS, ("virtio-pci", "nvme", "scsi")):
        words = [word for value in blockdev for word in ("-blockdev", value)] + DEVICES[kind]
        yield "virt", [word.replace("{id}", "root").replace("{{", "{").replace("}}", "}") for word in words]
    for words in (["-hda", "{old}"], ["{old}"], ["-drive", "file={old}"], ["-drive", "if=virtio,file={old},snapshot=off"], []):
        yield "virt", words
    for words in (["-sd", "{old}"], ["-drive", "format=raw,if=sd,nosnapshot,file={old}"]):
        yield "raspi3b", words


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Disks that a case names, and the image that qcase prepared for it: one with commas in its name."""
    found = {"old": tmp_path / "old.img", "second": tmp_path / "second.img", "image": tmp_path / "im,,age,x.img"}
    for path in found.values():
        path.write_bytes(bytes(1 << 20))
    (tmp_path / "tmp").mkdir()
    return found


def asked(argv: Sequence[str], folder: Path, *commands: str) -> list[Any]:
    """What QEMU answers. It does not run the guest."""
    options = [o for o in qemu_options.split(argv[1:]) if o.kind not in ("kernel", "nographic", "serial", "accel")]
    whole = [
        argv[0],
        *qemu_options.join(options),
        "-S",
        "-display",
        "none",
        "-serial",
        "none",
        "-monitor",
        "none",
        "-qmp",
        "stdio",
    ]
    lines = [json.dumps({"execute": command}) for command in ("qmp_capabilities", *commands, "quit")]
    environ = {**os.environ, "TMPDIR": str(folder / "tmp")}
    done = subprocess.run(whole, input="\n".join(lines), capture_output=True, text=True, timeout=60, env=environ, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (whole, done.stderr)
    return [answer["return"] for answer in answers if "return" in answer][1 : 1 + len(commands)]


def base_of(image: dict[str, Any]) -> str:
    """The file at the end of a chain of images."""
    while "backing-image" in image:
        image = image["backing-image"]
    return str(image["filename"])


def test_the_root_disk_holds_the_image_in_every_form_and_nothing_of_the_host_is_writable(
    files: dict[str, Path], tmp_path: Path
) -> None:
    seen = 0
    for machine, words in forms():
        args = [word.replace("{old}", str(files["old"])).replace("{second}", str(files["second"])) for word in words]
        args += ["-M", machine]
        if machine == "virt":
            args += ["-cpu", "cortex-a53", "-m", "64M"]
        spec = arguments.MachineSpec(Arch.AARCH64, tuple(args), files["image"], Path("kernel"), network="none")
        blocks, nodes = asked(arguments.arguments(spec), tmp_path, "query-block", "query-named-block-nodes")
        attached = [block for block in blocks if block.get("qdev") and "inserted" in block]
        assert [base_of(block["inserted"]["image"]) for block in attached] == [str(files["image"])], args
        for node in nodes:
            is_overlay = Path(node["image"]["filename"]).parent == tmp_path / "tmp" or node["image"]["filename"].startswith(
                "json:"
            )
            assert node["ro"] or is_overlay, (args, node)
            assert node["file"] not in (str(files["old"]), str(files["second"])), args
        seen += 1
    assert seen > 80


def test_other_disks_are_overlays_of_their_files(files: dict[str, Path], tmp_path: Path) -> None:
    args = [
        *(
            "-drive",
            f"if=none,id=disk0,file={files['old']}",
            "-drive",
            f"if=none,id=b,format=raw,file={files['second']},snapshot=off",
        ),
        *("-device", "virtio-blk-pci,drive=b", "-blockdev", f"raw,node-name=c,file.driver=file,file.filename={files['old']}"),
        *("-device", "nvme,drive=c,serial=x", "-cpu", "cortex-a53"),
    ]
    spec = arguments.MachineSpec(Arch.AARCH64, tuple(args), files["image"], Path("kernel"), network="none")
    (blocks,) = asked(arguments.arguments(spec), tmp_path, "query-block")
    held = {block["device"]: block["inserted"] for block in blocks if "inserted" in block}
    assert {name: base_of(inserted["image"]) for name, inserted in held.items()} == {
        "disk0": str(files["image"]),
        "b": str(files["second"]),
        "c": str(files["old"]),
    }
    assert all("backing-image" in inserted["image"] for inserted in held.values())


def test_flash_that_the_machine_names_is_an_overlay(files: dict[str, Path], tmp_path: Path) -> None:
    for path in (tmp_path / "code.fd", tmp_path / "vars.fd"):
        path.write_bytes(b"")
        os.truncate(path, 64 << 20)
    args = ["-M", "virt,pflash0=code,pflash1=vars", "-cpu", "cortex-a53"]
    args += ["-blockdev", f"raw,node-name=code,read-only=on,file.driver=file,file.filename={tmp_path}/code.fd"]
    args += ["-blockdev", f'{{"driver":"file","node-name":"vars","filename":"{tmp_path}/vars.fd"}}']
    spec = arguments.MachineSpec(Arch.AARCH64, tuple(args), files["image"], Path("kernel"), network="none")
    (nodes,) = asked(arguments.arguments(spec), tmp_path, "query-named-block-nodes")
    flash = [node for node in nodes if node["file"].endswith(".fd")]
    assert {Path(node["file"]).name for node in flash} == {"code.fd", "vars.fd"}
    assert all(node["ro"] for node in flash)


@pytest.mark.parametrize("arch", [Arch.AARCH64, Arch.X86_64])
def test_qemu_knows_the_options_as_we_do(arch: Arch) -> None:
    """Which options there are, and whether they take a value: asked by giving them none."""
    said = subprocess.run([arch.qemu, "-help"], capture_output=True, text=True, check=True).stdout
    known = {word.lstrip("-") for line in said.splitlines() for word in line.split(maxsplit=1)[:1] if word.startswith("-")}
    names = {name for word in known for name in word.split("/-")} - {"enable-kvm"}
    assert names <= qemu_options.WITH_VALUE | qemu_options.SWITCHES
    for name in sorted(names & qemu_options.WITH_VALUE):
        done = subprocess.run([arch.qemu, f"-{name}"], capture_output=True, text=True, check=False)
        assert "requires an argument" in done.stderr, name
    for name in sorted(
        names & qemu_options.SWITCHES - {"h", "help", "version", "daemonize"}
    ):  # the next word is read before it acts
        done = subprocess.run([arch.qemu, f"-{name}", "-no-such-option"], capture_output=True, text=True, check=False)
        assert "-no-such-option: invalid option" in done.stderr, name
