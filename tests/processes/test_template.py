"""Templates of a real machine whose guest is a boot sector: the firmware reads it from the disk, and it writes one line."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.host import process
from qcase.vm import template
from qcase.vm.arguments import MachineSpec
from qcase.vm.machine import Machine
from qcase.vm.template import NoTemplateError, Start, Template
from qcase.vm.templates import FIRST, Templates

LIMIT = 20.0
SIZE = 8 << 20  # the firmware reads no disk of less than a cylinder

# mov ds, 0; each byte of the line to the serial port; hlt for ever
_PROGRAM = bytes.fromhex("31c08ed8be157cac84c07406baf803eeebf5f4ebfd")


def boot_sector(path: Path, text: str) -> Path:
    code = _PROGRAM + text.encode() + b"\r\n\0"
    path.write_bytes(code + bytes(510 - len(code)) + b"\x55\xaa")
    os.truncate(path, SIZE)
    return path


def start(image: Path, *args: str) -> Start:
    line = ["qemu-system-x86_64", "-nographic", "-m", "16M", "-nic", "none", "-accel", "tcg", "-snapshot", *args]
    return Start(Arch.X86_64, (*line, "-drive", f"id=disk0,if=virtio,format=raw,file={image}"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return boot_sector(tmp_path_factory.mktemp("disk") / "a.img", "this is image A")


@pytest.fixture(scope="module")
def made(image: Path) -> Iterator[Template]:
    found = template.make(start(image), SIZE, (), lambda: LIMIT)
    yield found
    found.close()


def written(machine: Machine, word: bytes) -> bytes:
    """What a machine writes up to a word."""
    text, until = b"", time.monotonic() + LIMIT
    while word not in text and time.monotonic() < until:
        text += machine.exchange(1.0) or b""
    return text


def test_each_machine_goes_on_with_its_own_disk(image: Path, made: Template, tmp_path: Path) -> None:
    assert b"SeaBIOS" in b"".join(data for _, data in made.console)
    assert b"image A" not in b"".join(data for _, data in made.console)
    other = boot_sector(tmp_path / "b.img", "this is image B")
    for disk, word in ((image, b"image A"), (other, b"image B"), (image, b"image A")):
        with template.branch(start(disk), made) as machine:
            machine.go()
            text = written(machine, word)
        assert word in text
        assert b"SeaBIOS" not in text


def test_the_memory_of_a_template_cannot_be_written_to(made: Template) -> None:
    for how in (os.O_WRONLY, os.O_RDWR):
        fd = os.open(f"/proc/self/fd/{made.memory}", how)
        try:
            with pytest.raises(PermissionError):
                os.pwrite(fd, b"x", 0)
        finally:
            os.close(fd)


def test_a_template_of_another_machine_is_not_loaded(image: Path, made: Template) -> None:
    how = start(image)
    larger = replace(how, argv=tuple("32M" if word == "16M" else word for word in how.argv))
    for other in (larger, start(image, "-device", "virtio-rng-pci")):
        with pytest.raises(NoTemplateError, match="cannot be loaded"), template.branch(other, made):
            pass


def test_a_device_that_cannot_be_saved_is_the_reason(image: Path) -> None:
    how = start(image, "-device", "nvme,drive=other,serial=x", "-drive", f"id=other,if=none,format=raw,file={image}")
    with pytest.raises(NoTemplateError, match=r"cannot be saved: .*nvme"):
        template.make(how, SIZE, (), lambda: LIMIT)


def test_a_guest_that_does_not_read_or_asks_before_has_no_template(image: Path) -> None:
    with pytest.raises(NoTemplateError, match="within 0 s"):
        template.make(start(image), SIZE, (), lambda: 0.0)
    with pytest.raises(NoTemplateError, match="shows its prompt"):
        template.make(start(image), SIZE, ("login:", "SeaBIOS"), lambda: LIMIT)
    with pytest.raises(NoTemplateError, match=r"ended before .*no-such-device"):
        template.make(start(image, "-device", "no-such-device"), SIZE, (), lambda: LIMIT)


def test_the_first_case_of_a_machine_boots_cold_and_the_second_makes_the_template(image: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.img"  # an image without a boot signature: the firmware reads it all the same
    plain.write_bytes(bytes(SIZE))
    spec = MachineSpec(Arch.X86_64, (), plain, tmp_path / "kernel")
    how, program = start(plain), Path("/usr/bin/env")
    templates = Templates("auto")
    assert templates.choose(spec, how, program, None).cold == FIRST
    second = templates.choose(spec, how, program, None)
    assert second.template is not None, second.cold
    assert templates.choose(spec, how, program, None).template is second.template
    assert templates.choose(spec, start(plain, "-usb"), program, None).cold == FIRST
    templates.refuse(second.key, "it is broken")
    assert templates.choose(spec, how, program, None).cold == "it is broken"
    assert "partitions" in templates.choose(replace(spec, image=image), start(image), program, None).cold
    templates.close()

    small = Templates("auto", limit=1 << 20)
    small.choose(spec, how, program, None)
    assert "more than 1 MiB" in small.choose(spec, how, program, None).cold
    assert not process.stopped()
