"""The pipeline `rust`: programs for every architecture, crates from a registry of our own, and what goes wrong with them.

The registry is a web server of the tests, on the address at which containers see this machine, which gives its crates to who has
the token.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import ipaddress
import json
import os
import signal
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.containers.engine import Engine
from qcase.containers.step import Step
from qcase.errors import BuildError, InfraError, QcaseError
from qcase.host import process
from qcase.host.trees import Tree
from qcase.pipelines import c
from qcase.pipelines.elf_libraries import elf_files
from qcase.toolchains.records import Image
from tests.container.builds import Case, write

TOKEN = "a-token-that-nobody-else-has"


PACKAGE = '[package]\nname = "{}"\nversion = "0.1.0"\nedition = "2021"\n'

WORKSPACE = {
    "rust/Cargo.toml": '[workspace]\nmembers = ["one", "two"]\nresolver = "2"\n',
    "rust/one/Cargo.toml": PACKAGE.format("one") + '[dependencies]\ntwo = { path = "../two" }\n',
    "rust/one/src/main.rs": 'fn main() { println!("one {}", two::add(40, 2)); }\n',
    "rust/one/src/bin/other.rs": """\
        fn main() {
            let caught = std::panic::catch_unwind(|| panic!("{}", file!())).is_err();
            let thread = std::thread::spawn(|| 7).join().unwrap();
            println!("other {caught} {thread}");
        }
        """,
    "rust/two/Cargo.toml": PACKAGE.format("two"),
    "rust/two/src/lib.rs": "pub fn add(left: u32, right: u32) -> u32 { left + right }\n",
}

C_PROGRAM = {
    "c/CMakeLists.txt": """\
        cmake_minimum_required(VERSION 3.16)
        project(hello C)
        add_executable(hello main.c)
        target_link_options(hello PRIVATE -static)
        install(TARGETS hello DESTINATION usr/bin)
        """,
    "c/main.c": '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n',
}

FILE_SAYS = {
    Arch.X86_64: "x86-64",
    Arch.AARCH64: "ARM aarch64",
    Arch.RISCV64: "UCB RISC-V",
    Arch.LOONGARCH64: "LoongArch",
}


def run_program(program: Path, arch: Arch) -> str:
    """What a program of another architecture prints, in QEMU's user mode."""
    return process.run([f"qemu-{arch}", str(program)], timeout=60).stdout.decode()


def check_programs(overlay: Path, arch: Arch) -> None:
    """That the programs of `WORKSPACE` are there, need nothing, and run."""
    programs = overlay / "usr/bin"
    assert sorted(path.name for path in programs.iterdir()) == ["one", "other"]
    assert all(elf.interpreter is None and not elf.needed for elf in elf_files(Tree(overlay)))
    assert run_program(programs / "one", arch) == "one 42\n"
    if arch is not Arch.LOONGARCH64:  # its unwinder, Debian's, uses the vector unit, which QEMU has from 8.1 on
        assert run_program(programs / "other", arch) == "other true 7\n"


@pytest.mark.parametrize("arch", list(Arch))
def test_programs_for_every_architecture(arch: Arch, case: Case) -> None:
    overlay = case.build(WORKSPACE, arch)
    case.build(C_PROGRAM, arch, c.build)
    check_programs(overlay, arch)
    programs = overlay / "usr/bin"
    assert run_program(case.root / "2/overlay/usr/bin/hello", arch) == "hello\n"
    for program in (programs / "one", case.root / "2/overlay/usr/bin/hello"):
        said = process.run(["file", "-b", str(program)], timeout=60).stdout.decode()
        assert FILE_SAYS[arch] in said
        assert "static" in said


def test_nothing_of_where_it_was_built_is_in_a_program(case: Case) -> None:
    first, second = (case.build(WORKSPACE) / "usr/bin/other" for _ in range(2))
    program = first.read_bytes()
    assert program == second.read_bytes()
    for path in (b"/qcase", b"/tmp/qcase", str(case.root).encode()):
        assert path not in program


# --- crates ---------------------------------------------------------------------------------------------------------------


def crate(name: str, text: str, *more: tarfile.TarInfo) -> bytes:
    """A crate of one file as a registry serves it. `more`: what else is in it, before all of that."""
    files = {
        "Cargo.toml": f'[package]\nname = "{name}"\nversion = "1.0.0"\nedition = "2021"\n',
        "src/lib.rs": text,
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for member in more:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
        for path, content in files.items():
            member = tarfile.TarInfo(f"{name}-1.0.0/{path}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content.encode()))
    return gzip.compress(packed.getvalue(), mtime=0)


TINY = crate("tiny", 'pub fn text() -> &\'static str { "from the registry" }\n')
CHECKSUM = hashlib.sha256(TINY).hexdigest()


class Registry:
    """A registry with one crate, `tiny`, behind a token. `asked`: the paths that were asked for, and whether with the token."""

    def __init__(self, address: str) -> None:
        self.asked: list[tuple[str, bool]] = []
        self.tiny = TINY
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's own name
                pass

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self.url = f"http://{address}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        allowed = request.headers.get("Authorization") == TOKEN
        self.asked.append((request.path, allowed))
        row = {"name": "tiny", "vers": "1.0.0", "deps": [], "cksum": CHECKSUM, "features": {}, "yanked": False}
        too_new = {"vers": "1.1.0", "rust_version": "1.999", "cksum": "0" * 64}
        answers = {
            "/index/config.json": json.dumps({"dl": f"{self.url}/crates/{{crate}}", "auth-required": True}).encode(),
            "/index/ti/ny/tiny": f"{json.dumps(row)}\n{json.dumps(row | too_new)}\n".encode(),
            "/crates/tiny": self.tiny,
        }
        body = answers.get(request.path, b"")
        status = 404 if request.path not in answers else 200 if allowed else 401
        request.send_response(status)
        if status == 401:
            request.send_header("WWW-Authenticate", f'Cargo login_url="{self.url}/me"')
        request.send_header("Content-Length", str(len(body) if status == 200 else 0))
        request.end_headers()
        if status == 200:
            request.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="session")
def host_address(shared_engine: Engine, toolchain_c: Image) -> str:
    """This machine, as a container with a network sees it: its default route."""
    step = Step(image=toolchain_c.id, argv=("cat", "/proc/net/route"), network=True, timeout=60, name="route")
    rows = [line.split() for line in shared_engine.check(step).output.splitlines()]
    (gateway,) = {row[2] for row in rows if row[1] == "00000000"}
    return str(ipaddress.ip_address(bytes.fromhex(gateway)[::-1]))


@pytest.fixture
def registry(host_address: str) -> Iterator[Registry]:
    found = Registry(host_address)
    yield found
    found.close()


def uses(*crates: str, lock: str | None = None) -> dict[str, str]:
    """A case that uses crates of the registry that stands in for crates.io."""
    asked = "".join(f'{name} = "1"\n' for name in crates)
    files = {
        "rust/Cargo.toml": f'[package]\nname = "user"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\n{asked}',
        "rust/src/main.rs": 'fn main() { println!("{}", tiny::text()); }\n',
    }
    return files if lock is None else {**files, "rust/Cargo.lock": lock}


def lock(checksum: str = CHECKSUM) -> str:
    return f"""\
version = 4

[[package]]
name = "tiny"
version = "1.0.0"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "{checksum}"

[[package]]
name = "user"
version = "0.1.0"
dependencies = [
 "tiny",
]
"""


@pytest.fixture
def mirrored(case: Case, registry: Registry, tmp_path: Path) -> Case:
    """A case of a user whose own cargo configuration names the registry as a mirror of crates.io, and has its token."""
    write(
        tmp_path / ".cargo",
        {
            "config.toml": f"""\
                [registry]
                global-credential-providers = ["cargo:token"]
                [source.crates-io]
                replace-with = "mirror"
                [registries.mirror]
                index = "sparse+{registry.url}/index/"
                """,
            "credentials.toml": f'[registries.mirror]\ntoken = "{TOKEN}"\n',
        },
    )
    (tmp_path / ".cargo/credentials.toml").chmod(0o600)
    return case


def downloads(case: Case) -> list[str]:
    """The names of all files of the store."""
    return [str(path.relative_to(case.store.root)) for path in case.store.root.rglob("*") if path.is_file()]


def test_a_crate_comes_from_the_users_own_mirror_and_no_build_sees_the_token(mirrored: Case, registry: Registry) -> None:
    # A build script that looks for the token, and for a network, and would fail if it found one of them.
    nosy = {
        "rust/build.rs": f"""\
            fn main() {{
                for (name, value) in std::env::vars() {{
                    assert!(!value.contains("{TOKEN}"), "{{name}}");
                }}
                let home = std::env::var("CARGO_HOME").unwrap();
                for entry in std::fs::read_dir(&home).unwrap() {{
                    let path = entry.unwrap().path();
                    let text = std::fs::read_to_string(&path).unwrap_or_default();
                    assert!(!text.contains("{TOKEN}"), "{{path:?}}");
                }}
                let server = "{registry.url.removeprefix("http://")}";
                assert!(std::net::TcpStream::connect(server).is_err(), "there is a network");
            }}
            """
    }
    overlay = mirrored.build({**uses("tiny", lock=lock()), **nosy})
    assert run_program(overlay / "usr/bin/user", Arch.X86_64) == "from the registry\n"
    assert ("/crates/tiny", True) in registry.asked
    for name in downloads(mirrored):
        assert TOKEN.encode() not in (mirrored.store.root / name).read_bytes(), name
    # What was fetched is there for good: offline, and though its sources are others.
    registry.asked.clear()
    mirrored.offline = True
    overlay = mirrored.build({**uses("tiny", lock=lock()), "rust/src/main.rs": 'fn main() { print!("{}!", tiny::text()); }'})
    assert run_program(overlay / "usr/bin/user", Arch.X86_64) == "from the registry!"
    assert registry.asked == []
    assert mirrored.warnings == []


def test_without_a_lock_file_the_crates_are_those_of_today_and_that_is_said(mirrored: Case) -> None:
    """Of each the newest that the image's Rust builds."""
    overlay = mirrored.build(uses("tiny"))
    assert run_program(overlay / "usr/bin/user", Arch.X86_64) == "from the registry\n"
    assert mirrored.warnings == ["there is no rust/Cargo.lock, so its crates are those of the day on which they were fetched"]


def test_a_crate_of_a_registry_that_has_a_name(mirrored: Case, registry: Registry) -> None:
    files = uses("tiny")
    files["rust/Cargo.toml"] = files["rust/Cargo.toml"].replace('tiny = "1"', 'tiny = { version = "1", registry = "mirror" }')
    source = f"sparse+{registry.url}/index/"
    files["rust/Cargo.lock"] = lock().replace("registry+https://github.com/rust-lang/crates.io-index", source)
    assert run_program(mirrored.build(files) / "usr/bin/user", Arch.X86_64) == "from the registry\n"
    registry.asked.clear()
    mirrored.offline = True
    files["rust/src/main.rs"] = 'fn main() { print!("{}!", tiny::text()); }\n'
    assert run_program(mirrored.build(files) / "usr/bin/user", Arch.X86_64) == "from the registry!"
    assert registry.asked == []


@pytest.fixture
def repository_of_git(host_address: str, tmp_path: Path) -> Iterator[str]:
    """A crate in a git repository, by a real `git daemon`: its address and the commit, as a lock file has them."""
    crate = tmp_path / "repositories" / "small"
    write(crate, {"Cargo.toml": PACKAGE.format("small"), "src/lib.rs": 'pub fn text() -> &\'static str { "from git" }\n'})
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(crate), *who, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "a crate")
    with socket.create_server((host_address, 0)) as free:
        port = free.getsockname()[1]
    argv = ["git", "daemon", "--export-all", "--reuseaddr", f"--listen={host_address}", f"--port={port}"]
    argv += [f"--base-path={crate.parent}", str(crate.parent)]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL, start_new_session=True) as daemon:
        try:
            deadline = process.Deadline.after(60)
            while True:
                try:
                    socket.create_connection((host_address, port), 5).close()
                    break
                except OSError:
                    assert not deadline.passed
                    time.sleep(0.05)
            yield f"git://{host_address}:{port}/small#{git('rev-parse', 'HEAD')}"
        finally:
            os.killpg(daemon.pid, signal.SIGKILL)


def test_a_crate_of_a_git_repository_at_the_commit_of_the_lock(case: Case, repository_of_git: str) -> None:
    address = repository_of_git.partition("#")[0]
    small = f'[[package]]\nname = "small"\nversion = "0.1.0"\nsource = "git+{repository_of_git}"\n'
    user = '[[package]]\nname = "user"\nversion = "0.1.0"\ndependencies = [\n "small",\n]\n'
    files = {
        "rust/Cargo.toml": PACKAGE.format("user") + f'[dependencies]\nsmall = {{ git = "{address}" }}\n',
        "rust/src/main.rs": 'fn main() { println!("{}", small::text()); }\n',
        "rust/Cargo.lock": f"version = 4\n\n{small}\n{user}",
    }
    assert run_program(case.build(files) / "usr/bin/user", Arch.X86_64) == "from git\n"
    case.offline = True
    files["rust/src/main.rs"] = 'fn main() { print!("{}!", small::text()); }\n'
    assert run_program(case.build(files) / "usr/bin/user", Arch.X86_64) == "from git!"
    assert case.warnings == []


def fails(case: Case, files: Mapping[str, str]) -> QcaseError:
    with pytest.raises((BuildError, InfraError)) as caught:
        case.build(files)
    # Nothing half-fetched is kept.
    assert not [name for name in downloads(case) if "/downloads/" in name and "manifest" in name]
    return caught.value


def test_a_crate_that_is_not_in_the_lock(mirrored: Case, registry: Registry) -> None:
    error = fails(mirrored, uses("tiny", "huge", lock=lock()))
    assert isinstance(error, BuildError)
    assert error.what == "rust/Cargo.toml asks for huge, which rust/Cargo.lock does not have"
    assert registry.asked == []


def test_a_lock_that_does_not_fit(mirrored: Case) -> None:
    files = uses("tiny", lock=lock())
    error = fails(mirrored, {**files, "rust/Cargo.toml": files["rust/Cargo.toml"].replace("0.1.0", "0.2.0")})
    assert isinstance(error, BuildError)
    assert error.what == "rust/Cargo.lock does not fit rust/Cargo.toml"
    error = fails(mirrored, {**files, "rust/Cargo.toml": files["rust/Cargo.toml"].replace('"1"', '"2"')})
    assert isinstance(error, BuildError)
    assert error.what.startswith('its crates cannot be had: failed to select a version for the requirement `tiny = "^2"`')


def test_a_crate_that_is_not_what_the_lock_says(mirrored: Case) -> None:
    error = fails(mirrored, uses("tiny", lock=lock("0" * 64)))
    assert isinstance(error, BuildError)
    assert "checksum" in error.what
    assert "tiny" in error.what


def entry(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    member.size = 1 if kind == tarfile.REGTYPE else 0
    member.mode = 0o755
    return member


HOSTILE = {
    "above": [entry("../../../src/rust/src/main.rs")],
    "absolute": [entry("/qcase/src/rust/src/main.rs")],
    "through a link": [entry("tiny-1.0.0/out", tarfile.SYMTYPE, "/qcase/src/rust"), entry("tiny-1.0.0/out/src/main.rs")],
    "a link in place of the folder": [entry("tiny-1.0.0", tarfile.SYMTYPE, "/qcase/src/rust/src")],
    "a hard link": [entry("tiny-1.0.0/out", tarfile.LNKTYPE, "/qcase/src/rust/src/main.rs")],
    "a device": [entry("tiny-1.0.0/src/zero", tarfile.CHRTYPE)],
    "a fifo in place of the checksum": [entry("tiny-1.0.0/.cargo-checksum.json", tarfile.FIFOTYPE)],
    "a link in place of the checksum": [entry("tiny-1.0.0/.cargo-checksum.json", tarfile.SYMTYPE, "/qcase/src/rust/src/main.rs")],
    "another crate": [entry("other-1.0.0/Cargo.toml")],
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_crate_whose_archive_is_hostile(name: str, mirrored: Case, registry: Registry) -> None:
    """Nothing outside of its own folder changes: the program is that of the sources, or there is none."""
    registry.tiny = crate("tiny", 'pub fn text() -> &\'static str { "from the registry" }\n', *HOSTILE[name])
    files = uses("tiny", lock=lock(hashlib.sha256(registry.tiny).hexdigest()))
    try:
        overlay = mirrored.build(files)
    except BuildError as error:
        assert error.what.startswith("unpacking tiny-1.0.0 ended with status ")  # noqa: PT017 - either is right
    else:
        assert run_program(overlay / "usr/bin/user", Arch.X86_64) == "from the registry\n"
    assert (mirrored.root / "1/source/rust/src/main.rs").read_text() == files["rust/src/main.rs"]


def test_a_crate_of_another_name_under_a_checksum_of_the_lock(mirrored: Case, registry: Registry) -> None:
    registry.tiny = crate("other", "")
    with pytest.raises(BuildError, match=r"unpacking tiny-1\.0\.0 ended with status 1") as caught:
        mirrored.build(uses("tiny", lock=lock(hashlib.sha256(registry.tiny).hexdigest())))
    assert "there is no folder tiny-1.0.0 in the crate" in caught.value.log


EVIL = """\
#!/bin/sh
touch /qcase/src/rust/ran
if [ -e /qcase/cargo ] || [ -w /qcase/crates ]; then
    echo 'pub fn text() -> &'"'"'static str { "poisoned" }' >/qcase/crates/0/tiny-1.0.0.crate
    exit 9
fi
exec rustc "$@"
"""


def test_a_case_that_configures_cargo_runs_nothing_where_there_is_a_network_or_a_cache(
    mirrored: Case, registry: Registry
) -> None:
    """With a lock file and without: its compiler runs in its own build, which has neither, and the next case is not touched."""
    config = '[build]\nrustc = "/qcase/src/rust/evil.sh"\n[registries.mirror]\nindex = "sparse+http://127.0.0.1:9/"\n'
    evil = {"rust/.cargo/config.toml": config, "rust/evil.sh": EVIL, "rust/prebuild.sh": "chmod +x evil.sh\n"}
    for number, known in enumerate((lock(), None), 1):
        overlay = mirrored.build({**uses("tiny", lock=known), **evil})
        assert run_program(overlay / "usr/bin/user", Arch.X86_64) == "from the registry\n"
        assert (mirrored.root / f"{number}/source/rust/ran").is_file()
    victim = mirrored.build(uses("tiny", lock=lock()))
    assert run_program(victim / "usr/bin/user", Arch.X86_64) == "from the registry\n"
    assert all(allowed for path, allowed in registry.asked if path == "/crates/tiny")


@pytest.mark.parametrize("arch", [Arch.X86_64, Arch.AARCH64, Arch.RISCV64])
def test_crates_that_the_case_brings_need_no_network(arch: Arch, case: Case) -> None:
    """As `cargo vendor` leaves them, and a `[patch]` that stands in the configuration."""
    vendored = {
        "rust/.cargo/config.toml": """\
            [source.crates-io]
            replace-with = "vendored"
            [source.vendored]
            directory = "vendor"
            """,
        "rust/vendor/tiny/Cargo.toml": PACKAGE.format("tiny").replace("0.1.0", "1.0.0"),
        "rust/vendor/tiny/src/lib.rs": 'pub fn text() -> &\'static str { "vendored" }\n',
        "rust/vendor/tiny/.cargo-checksum.json": json.dumps({"files": {}, "package": CHECKSUM}),
    }
    case.offline = True
    overlay = case.build({**uses("tiny", lock=lock()), **vendored}, arch)
    assert run_program(overlay / "usr/bin/user", arch) == "vendored\n"
    overlay = case.build({**uses("tiny"), **vendored}, arch)
    assert run_program(overlay / "usr/bin/user", arch) == "vendored\n"
    patched = {
        "rust/.cargo/config.toml": '[patch.crates-io]\ntiny = { path = "mine" }\n',
        "rust/mine/Cargo.toml": PACKAGE.format("tiny").replace("0.1.0", "1.0.0"),
        "rust/mine/src/lib.rs": 'pub fn text() -> &\'static str { "patched" }\n',
    }
    without_source = "".join(row for row in lock().splitlines(keepends=True) if not row.startswith(("source", "checksum")))
    overlay = case.build({**uses("tiny", lock=without_source), **patched}, arch)
    assert run_program(overlay / "usr/bin/user", arch) == "patched\n"


def test_a_registry_that_wants_another_token(mirrored: Case, tmp_path: Path) -> None:
    (tmp_path / ".cargo/credentials.toml").write_text('[registries.mirror]\ntoken = "wrong"\n')
    error = fails(mirrored, uses("tiny", lock=lock()))
    assert isinstance(error, InfraError)
    assert error.what.startswith("its crates could not be fetched: ")


def test_a_registry_that_does_not_answer(mirrored: Case, registry: Registry) -> None:
    registry.close()
    mirrored.environ = {**mirrored.environ, "CARGO_NET_RETRY": "0"}
    error = fails(mirrored, uses("tiny", lock=lock()))
    assert isinstance(error, InfraError)
    assert error.what.startswith("its crates could not be fetched: ")
    assert "Connection refused" in error.what
    assert error.hint.startswith("is there a network")


def test_offline_and_never_fetched(mirrored: Case, registry: Registry) -> None:
    mirrored.offline = True
    error = fails(mirrored, uses("tiny", lock=lock()))
    assert (error.what, error.hint) == (
        "its crates have not been fetched, and fetching is switched off",
        "run it once without --offline",
    )
    assert registry.asked == []


# --- what else goes wrong -------------------------------------------------------------------------------------------------


def test_a_program_that_does_not_compile_shows_what_rustc_says(case: Case) -> None:
    files = {**uses(), "rust/src/main.rs": "fn main() { let x: u32 = true; }\n"}
    with pytest.raises(BuildError, match="cargo build ended with status 101") as caught:
        case.build(files)
    assert "mismatched types" in caught.value.log


def test_a_crate_without_a_program(case: Case) -> None:
    files = uses()
    del files["rust/src/main.rs"]
    with pytest.raises(BuildError) as caught:
        case.build({**files, "rust/src/lib.rs": ""})
    assert caught.value.what == "no program was built"


def test_a_prebuild_script_runs_in_rust_and_its_files_are_compiled(case: Case) -> None:
    files = {
        **uses(),
        "rust/prebuild.sh": 'pwd >src/place\nuname -m >"$QCASE_CASE_OVERLAY_DIR/machine"\n',
        "rust/src/main.rs": 'fn main() { print!("{}", include_str!("place")); }\n',
    }
    overlay = case.build(files)
    assert run_program(overlay / "usr/bin/user", Arch.X86_64) == "/qcase/src/rust\n"
    assert (overlay / "machine").is_file()


def test_links_that_a_build_plants_lead_nowhere(case: Case, tmp_path: Path) -> None:
    """A script that turns what qcase reads and writes afterwards into links to files of the host."""
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    plant = f"""\
        for name in stage programs messages own.toml; do ln -sf {secret} "$QCASE_CASE_WORK_DIR/$name"; done
        rm -rf "$QCASE_CASE_WORK_DIR/cargo"
        ln -s {tmp_path} "$QCASE_CASE_WORK_DIR/cargo"
        exit 3
        """
    with pytest.raises(BuildError) as caught:
        case.build({**uses(), "rust/prebuild.sh": plant})
    assert "secret" not in caught.value.what + caught.value.log
    assert secret.read_text() == "secret\n"
    assert not (tmp_path / "config.toml").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case", "secret"]
