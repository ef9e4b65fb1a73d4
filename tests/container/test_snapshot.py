"""Toolchain images from a snapshot of Debian's archive: an archive of two states, and machines that see one or the other.

A machine here is a store of its own, with apt sources of its own, after the engine has forgotten all images of the one before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import json
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import qcase.cli.main  # noqa: F401 - it registers the commands
from qcase.arch import Arch
from qcase.cli import app, doctor
from qcase.cli.doctor_lines import State
from qcase.config import image_lock
from qcase.containers.engine import Engine
from qcase.errors import InfraError
from qcase.events import Event, Warned
from qcase.guests import debian_archive
from qcase.guests.debian import Package, Release, fetch
from qcase.host import process
from qcase.prepare.session import Session
from qcase.store.store import Store
from qcase.suite.cases import Workspace
from qcase.toolchains import base as base_module
from qcase.toolchains import recipes as recipes_module
from qcase.toolchains.base import make_base
from qcase.toolchains.recipes import BaseDefinition, base_definition, base_digest, recipe_digest
from tests import debian
from tests.debian import TOOL, VERSIONS, Archive

pytestmark = pytest.mark.container

NOW = datetime.now(UTC).replace(microsecond=0)
TIMES = {"first": NOW - timedelta(days=40), "second": NOW - timedelta(days=2)}
FIRST = image_lock.stamp(TIMES["first"] + timedelta(hours=3))  # what a lock names of the first state
RECIPE = f"""\
ARG BASE
FROM ${{BASE}}
RUN apt-get update -q --error-on=any && apt-get install -q -y --no-install-recommends {TOOL} && rm -rf /var/lib/apt/lists/*
"""
CASE = 'args = []\nshell_prefix = "#"\nshell_init_cmd = "run"\nsuccess_regex = ["ok"]\n'


@pytest.fixture(scope="module")
def served(shared_engine: Engine, test_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    main = debian_archive.host_mirrors(debian_archive.APT, {}).main
    mirror = main.uri if main is not None else "http://deb.debian.org/debian"
    (config,) = shared_engine.api.inspect_network("bridge")["IPAM"]["Config"]
    host = config.get("Gateway") or str(ipaddress.ip_network(config["Subnet"])[1])
    kept = test_cache / "archive" / urllib.parse.urlsplit(mirror).netloc
    try:
        debian.fetched(f"{mirror}/dists/{debian.SUITE}/main/binary-amd64/Packages.xz", kept / f"{debian.SUITE}-Packages.xz")
    except OSError as error:
        pytest.skip(f"{mirror} cannot be reached, and was not before: {error}")
    with debian.archive(tmp_path_factory.mktemp("debian"), kept, mirror, host, TIMES) as found:
        yield found


@pytest.fixture
def recipes(tmp_path: Path, shared_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An image `c` that has one small package beside the base's, in place of qcase's own."""
    folder = tmp_path / "recipes"
    (folder / "c").mkdir(parents=True)
    (folder / "base.toml").write_text(f'[base]\nsuite = "{debian.SUITE}"\nvariant = "apt"\n')
    (folder / "c" / "Containerfile").write_text(f"# {tmp_path}\n{RECIPE}")
    monkeypatch.setattr(recipes_module, "recipes_dir", lambda: folder)
    yield folder
    forget(shared_engine)


def forget(engine: Engine, *, bases: bool = True) -> None:
    """Remove the images of the recipe, and their bases."""
    labels = [f"qcase.recipe={recipe_digest('c')}"]
    if bases:
        labels.append(f"qcase.base={base_digest(base_definition())[:12]}")
    for label in labels:
        for image in engine.api.images(filters={"label": label}):
            engine.api.remove_image(image["Id"], force=True)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    case = folder / "suite/normal/program"
    (case / "c").mkdir(parents=True)
    (case / "c/CMakeLists.txt").write_text("project(run C)\n")
    (case / "qemu-x86_64.toml").write_text(CASE)
    process.run(["mke2fs", "-q", "-t", "ext4", "-U", "clear", str(folder / "root.img"), "4M"], timeout=60)
    (folder / "kernel").write_text("a kernel")
    (folder / "qcase.toml").write_text('[suite]\nroot = "suite"\n[guest.x86_64]\nrootfs = "root.img"\nkernel = "kernel"\n')
    return folder


class Machine:
    """A store, apt's sources and an address of snapshots."""

    def __init__(self, workspace: Path, store: Path, sources: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workspace = workspace
        self.store = store
        apt = store.with_name(f"{store.name}-apt")
        apt.mkdir()
        (apt / "sources.list").write_text(sources)
        monkeypatch.setattr(debian_archive, "APT", apt)

    def qcase(self, *words: str) -> Result:
        return CliRunner().invoke(app.app, [*words, "--workspace", str(self.workspace), "--cache-dir", str(self.store)])

    def toolchain(self, *, locked: bool = False) -> tuple[str, list[str]]:
        """The image's identity as a run finds it, and the warnings of that run."""
        heard: list[Event] = []
        arch = Arch.X86_64
        opened = Workspace.open(self.workspace)
        with Session(opened, arch, arch.default_target, Store(self.store), heard.append, locked=locked) as session:
            found = session.toolchains.identity("c")
        return found, [event.message for event in heard if isinstance(event, Warned)]

    def keys(self) -> object:
        """The keys of all cases, from `qcase explain`."""
        done = self.qcase("explain", "program", "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)


@pytest.mark.timeout(900)
def test_a_later_machine_builds_the_pinned_image_from_the_snapshot(
    served: Archive, recipes: Path, workspace: Path, tmp_path: Path, shared_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QCASE_DEBIAN_KEYRING", str(served.keyring))
    monkeypatch.delenv("QCASE_DEBIAN_MIRROR", raising=False)
    nowhere, snapshots = f"{served.address}/nowhere", f"{served.address}/archive"

    # The first machine, in its time: it has no lock, builds from its mirror, and pins what came.
    monkeypatch.setenv("QCASE_DEBIAN_SNAPSHOT", nowhere)
    first = Machine(workspace, tmp_path / "first", served.sources("first"), monkeypatch)
    done = first.qcase("images", "lock", "--own")
    assert done.exit_code == 0, done.output
    lock = image_lock.read(workspace / image_lock.FILE, own=True)
    assert lock.snapshot == FIRST
    assert f"{TOOL} all {VERSIONS['first']}" in lock.pins["c"].packages
    identity, warnings = first.toolchain(locked=True)
    assert (identity, warnings) == (lock.pins["c"].identity, [])
    keys = first.keys()

    # A machine of today that does not reach the snapshot takes its mirror, says what differs, and shares no key.
    forget(shared_engine)
    second = Machine(workspace, tmp_path / "second", served.sources("second"), monkeypatch)
    other, warnings = second.toolchain()
    assert other != identity
    assert len(warnings) == 1
    assert f"{TOOL}:all {VERSIONS['first']} → {VERSIONS['second']}" in warnings[0]
    assert second.toolchain() == (other, warnings)  # of each run that uses it
    assert second.keys() != keys
    with pytest.raises(InfraError, match=rf"{TOOL}:all is {VERSIONS['second'].replace('+', '.')}, pinned is"):
        second.toolchain(locked=True)
    line = next(line for line in doctor.examine(workspace, Arch.X86_64, second.store) if line.what == "image c")
    assert line.state is State.WARNING
    assert f"{TOOL}:all is {VERSIONS['second']}, pinned is {VERSIONS['first']}" in line.says
    assert "QCASE_DEBIAN_SNAPSHOT" in line.hint

    # The same machine, once it reaches the snapshot: what doctor says brings them together.
    monkeypatch.setenv("QCASE_DEBIAN_SNAPSHOT", snapshots)
    lines = {line.what: line for line in doctor.examine(workspace, Arch.X86_64, second.store)}
    assert "`qcase images build c` makes the pinned one" in lines["image c"].hint
    assert "37 days old" in lines["pin"].says or "39 days old" in lines["pin"].says
    assert f"{snapshots} has it" in lines["pin"].says
    served.served.clear()
    done = second.qcase("images", "build", "c")
    assert done.exit_code == 0, done.output
    assert "warning" not in done.output
    assert any(f"/archive/debian/{FIRST}/" in path for path in served.served)
    assert not any(path.startswith("/second/") for path in served.served)
    assert second.toolchain(locked=True) == (identity, [])
    assert second.keys() == keys
    assert second.qcase("images", "verify", "c").exit_code == 0

    # A third one, new, with the newer state as its mirror: nobody has to tell it anything.
    forget(shared_engine, bases=False)
    third = Machine(workspace, tmp_path / "third", served.sources("second"), monkeypatch)
    assert third.toolchain(locked=True) == (identity, [])
    assert third.keys() == keys

    # Today's packages are there for who asks for them, until the pinned ones are asked for again.
    done = third.qcase("images", "build", "c", "--fresh")
    assert done.exit_code == 0, done.output
    assert VERSIONS["second"] in done.output
    assert third.toolchain()[0] == other
    assert third.qcase("images", "build", "c").exit_code == 0
    assert third.toolchain(locked=True) == (identity, [])


def test_a_snapshot_that_somebody_else_signed_is_not_used(
    served: Archive, tmp_path: Path, shared_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QCASE_DEBIAN_SNAPSHOT", f"{served.address}/archive")
    monkeypatch.delenv("QCASE_DEBIAN_MIRROR", raising=False)
    monkeypatch.setenv("QCASE_DEBIAN_KEYRING", "/usr/share/keyrings/debian-archive-keyring.gpg")
    with pytest.raises(InfraError, match="could not be made"):
        make_base(shared_engine, tmp_path, None, BaseDefinition(debian.SUITE, "essential"), FIRST)


def test_a_snapshot_that_is_asked_for_has_to_be_there(
    served: Archive, recipes: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QCASE_DEBIAN_SNAPSHOT", f"{served.address}/nowhere")
    machine = Machine(workspace, tmp_path / "store", served.sources("second"), monkeypatch)
    done = machine.qcase("images", "lock", "--own", "--snapshot", FIRST)
    assert done.exit_code != 0
    assert not (workspace / image_lock.FILE).exists()
    assert "404" in str(done.exception) + done.output


def test_a_guests_package_that_the_mirror_has_dropped_comes_from_a_snapshot(
    served: Archive, tmp_path: Path, shared_engine: Engine, test_cache: Path
) -> None:
    base = base_module.base(shared_engine, test_cache)
    file = served.packages / f"{TOOL}_{VERSIONS['first']}_all.deb"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    package = Package(f"pool/own/{file.name}", digest, file.stat().st_size)
    since = (TIMES["first"] + timedelta(days=1)).date().isoformat()
    release = Release("6.12", "boot/vmlinuz", (package,), since)
    dropped = f"{served.address}/nowhere"
    environ = {"QCASE_DEBIAN_SNAPSHOT": f"{served.address}/archive"}
    heard: list[Event] = []
    fetch(release, tmp_path, shared_engine, base, dropped, environ, heard.append)
    assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    assert any(f"taking it from the archive of {since}" in str(event) for event in heard)

    # A mirror of the user's choice is the only one; and what is not as pinned is not used, wherever it comes from.
    (tmp_path / file.name).unlink()
    with pytest.raises(InfraError, match="does not have it"):
        fetch(release, tmp_path, shared_engine, base, dropped, environ | {"QCASE_DEBIAN_MIRROR": dropped}, heard.append)
    other = dataclasses.replace(release, packages=(dataclasses.replace(package, sha256="0" * 64),))
    with pytest.raises(InfraError, match="has another file of this name"):
        fetch(other, tmp_path, shared_engine, base, dropped, environ, heard.append)
    assert list(tmp_path.glob("*.deb")) == []
