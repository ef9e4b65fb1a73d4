"""Packages without a network: what a script may say to apk, what a lock says, where packages come from."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Never, cast

import pytest

from qcase.arch import Arch
from qcase.config.workspace_file import Hooks, PackagesConfig, WorkspaceConfig
from qcase.containers.step import Step, StepResult
from qcase.errors import BuildError, ConfigError, InfraError, UsageError
from qcase.guests.packages import apk, repositories
from qcase.guests.packages.downloads import Downloads
from qcase.guests.packages.lock import LOCK_FILE, Lock, Package, file_sha256, lock_differences, read_lock, write_lock
from qcase.guests.packages.repositories import Sources
from qcase.guests.packages.supply import PackageSupplier
from qcase.host.trees import Tree
from qcase.pipelines import apk_requests, package_overlay
from qcase.pipelines.apk_requests import Answer
from qcase.store import collect as store_collect
from qcase.store.collect import PACKAGE, Limits, clear, disk_size, items, verify
from qcase.store.store import Store
from tests.hostile import steps
from tests.services import Services

A = Package("zlib-dev", "1.3.2-r0", "x86_64", "a" * 64)
B = Package("python3", "3.12.1-r0", "x86_64", "b" * 64)
CASES = {(Arch.X86_64, "normal/one"): (A,), (Arch.X86_64, "normal/two"): (A, B), (Arch.AARCH64, "normal/one"): (A,)}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("add zlib-dev", Answer("add", ("zlib-dev",), ("zlib-dev",))),
        ("-q add --no-cache a b>1 so:libz.so.1", Answer("add", ("a", "b>1", "so:libz.so.1"), ("a", "b>1", "so:libz.so.1"))),
        ("add -t .tools a", Answer("add", ("--virtual", ".tools", "a"), ("a",))),
        ("--root /qcase/staging add a", Answer("add", ("a",), ("a",))),
        ("add --virtual=.tools -u a", Answer("add", ("--virtual", ".tools", "--upgrade", "a"), ("a",))),
        ("update", Answer("nothing")),
        ("add", Answer("nothing")),
        ("info -e zlib", Answer("run", ("info", "-e", "zlib"))),
        ("del .tools", Answer("run", ("del", "--no-scripts", ".tools"))),
    ],
)
def test_what_a_script_asks_apk(words: str, answer: Answer) -> None:
    found = apk_requests.answer_to(words.split())
    assert found == answer or (answer.verb == "add" and "-u" in found.words and found.asked == answer.asked)


@pytest.mark.parametrize(
    "words", ["add -X http://x a", "--root / add a", "upgrade", "add ../a", "add --allow-untrusted a", "", "add -t", "add a;b"]
)
def test_what_a_script_may_not_ask_apk(words: str) -> None:
    found = apk_requests.answer_to(words.split())
    assert found.verb == "refused"
    assert found.words


def test_a_lock_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write_lock(tmp_path, CASES)
    lock = read_lock(tmp_path)
    assert lock is not None
    assert lock.cases == {key: tuple(sorted(found)) for key, found in CASES.items()}
    before = path.read_bytes()
    write_lock(tmp_path, lock.cases)
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match="it has no packages for the case normal/three on x86_64"):
        lock.of(Arch.X86_64, "normal/three")


def test_no_lock(tmp_path: Path) -> None:
    assert read_lock(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("format = ", "is not TOML"),
        ("format = 2", "is of the format 2"),
        ("format = 1\n[x86_64]\npackages = [{ name = 'a' }]", "'version' is missing"),
        ("format = 1\n[x86_64]\npackages = [{ name = 'a', version = '1', arch = 'x', sha256 = 'no' }]", "has no sha256"),
        ("format = 1\n[x86_64.cases]\n'n/a' = ['a-1']", "is missing"),
        ("format = 1\nx86_64 = 1", "is no lock"),
    ],
)
def test_a_lock_that_is_wrong_is_one_error(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_lock(tmp_path)


def test_what_a_new_lock_changes_is_named_package_by_package(tmp_path: Path) -> None:
    write_lock(tmp_path, CASES)
    new = {
        (Arch.X86_64, "normal/one"): (Package("zlib-dev", "1.4-r0", "x86_64", "c" * 64),),
        (Arch.AARCH64, "normal/one"): (Package("zlib-dev", "1.3.2-r0", "x86_64", "d" * 64), B),
    }
    assert lock_differences(read_lock(tmp_path), new) == [
        "x86_64: python3 3.12.1-r0 is gone",
        "x86_64: zlib-dev 1.3.2-r0 → 1.4-r0",
        "aarch64: python3 3.12.1-r0 is new",
        "aarch64: zlib-dev 1.3.2-r0 has another content",
    ]


def sources(workspace: Path, environ: dict[str, str] | None = None, **table: tuple[str, ...]) -> Sources:
    return Sources.of(WorkspaceConfig(packages=PackagesConfig(**table)), workspace, environ or {})


def test_where_packages_come_from(tmp_path: Path) -> None:
    (tmp_path / "repo" / "x86_64").mkdir(parents=True)
    (tmp_path / "me.pub").write_text("key")
    assert sources(tmp_path) == Sources(None, None)
    found = sources(tmp_path, repositories=("https://example.org/main", "repo"), keys=("me.pub",))
    assert found.repositories == ("https://example.org/main", str(tmp_path / "repo"))
    assert found.lines() == ("https://example.org/main", "/qcase/repositories/0")
    other = sources(tmp_path, {repositories.REPOSITORIES_VARIABLE: "http://a http://b"}, repositories=("repo",))
    assert other.repositories == ("http://a", "http://b")
    with pytest.raises(UsageError, match="no such folder"):
        sources(tmp_path, repositories=("nowhere",))
    with pytest.raises(UsageError, match="no such key"):
        sources(tmp_path, keys=("nowhere.pub",))


def test_of_a_folder_the_index_enters_the_key_and_not_its_place(tmp_path: Path) -> None:
    parts = []
    for place in ("a", "b"):
        (tmp_path / place / "repo" / "x86_64").mkdir(parents=True)
        index = tmp_path / place / "repo" / "x86_64" / "APKINDEX.tar.gz"
        index.write_text("index")
        found = sources(tmp_path / place, repositories=("repo",))
        parts.append(found.part(Arch.X86_64))
        index.write_text("another")
        assert found.part(Arch.X86_64) != parts[-1]
    assert parts[0] == parts[1]


def test_a_damaged_download_is_none(tmp_path: Path) -> None:
    downloads = Downloads(tmp_path / "downloads")
    file = tmp_path / "a.apk"
    file.write_bytes(b"content")
    package = Package("a", "1-r0", "x86_64", hashlib.sha256(b"content").hexdigest())
    assert not downloads.has(package)
    downloads.take(file, package)
    assert downloads.has(package)
    downloads.remember("key", ["a"], [package])
    assert downloads.remembered("key") == [package]
    downloads.path(package).chmod(0o644)
    downloads.path(package).write_bytes(b"contenT")
    assert downloads.remembered("key") is None
    assert not downloads.path(package).exists()


def test_a_guest_without_apk(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no package database of apk"):
        apk.installed(Tree(tmp_path))


def test_what_is_new_in_a_root(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for root in (before, after):
        (root / "usr/lib").mkdir(parents=True)
        (root / "lib/apk/db").mkdir(parents=True)
        (root / "usr/lib/same").write_text("same")
        (root / "usr/lib/other").write_text(f"of {root.name[0]}")
        (root / "lib/apk/db/installed").write_text(root.name)
        (root / "link").symlink_to(root.name)
    (after / "usr/share/new").mkdir(parents=True)
    (after / "usr/share/new/file").write_text("new")
    (after / "usr/lib/same").chmod(0o755)
    assert sorted(package_overlay.new_paths(Tree(before), Tree(after))) == [
        "link",
        "usr/lib/other",
        "usr/lib/same",
        "usr/share",
        "usr/share/new",
        "usr/share/new/file",
    ]


def test_what_a_package_says_of_a_file_is_read_from_the_database(tmp_path: Path) -> None:
    """Setuid, setgid and attributes: an apk without privileges notes them, and does not give them to the file."""
    root = tmp_path / "root"
    (root / "usr/lib/apk/db").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "usr/lib/apk/db/installed").write_text(
        "P:a\nV:1\nF:\nR:top\na:0:0:4755\nF:usr/bin\nM:0:0:2755\nR:plain\nZ:Q1x=\nR:mine\na:0:0:755:Q1y=\n\n"
        "P:b\nV:1\nF:lib\nR:helper\na:0:42:2711\nZ:Q1z=\nR:odd\na:0:0:640\nF:gone\nR:x\na:0:0:4755\nR:..\na:0:0:4755\n"
        "F:../..\nR:up\na:0:0:4755\nF:usr/bin\nR:wrong\na:0:0:99999\na::\n"
    )
    (root / "usr/bin").mkdir()
    expected = {"top": (0o4755, False), "usr/bin": (0o2755, False), "usr/bin/mine": (0o755, True)}
    expected["usr/lib/helper"] = (0o2711, False)
    found = apk.unusual(Tree(root))
    assert found.pop("up") == (0o4755, False)  # as after chroot: there is nothing above a root
    assert found == expected
    assert apk.unusual(Tree(tmp_path, "root"))["usr/lib/helper"] == (0o2711, False)


def test_links_of_a_root_do_not_lead_out_of_it(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("secret")
    root = tmp_path / "root"
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/liba.so.1.0").write_text("a")
    (root / "usr/lib/liba.so.1").symlink_to("liba.so.1.0")
    (root / "lib").symlink_to("/usr/lib")
    (root / "usr/lib/libb.so").symlink_to(outside)
    (root / "usr/lib/libc.so").symlink_to("../../../../../secret")
    (root / "usr/lib/loop").symlink_to("loop")
    assert Tree(root).followed("lib/liba.so.1") == Tree(root) / "usr/lib/liba.so.1.0"
    assert Tree(root).followed("usr/lib/libb.so") is None
    assert Tree(root).followed("usr/lib/libc.so") is None
    assert Tree(root).followed("usr/lib/loop") is None
    assert Tree(root).leads_to("lib/loop")
    assert not Tree(root).leads_to("lib/liba.so.2")


def test_downloads_are_collected_verified_and_listed_like_all_else(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    downloads = Downloads(store.root / "downloads")
    files = []
    for age, name in enumerate(("new", "old")):
        (tmp_path / name).write_bytes(name.encode() * 10_000)
        package = Package(name, "1-r0", "x86_64", hashlib.sha256(name.encode() * 10_000).hexdigest())
        downloads.take(tmp_path / name, package)
        files.append(downloads.path(package))
        os.utime(files[-1], (1000 - age, 1000 - age))
    assert [(item.what, item.path) for item in items(store)] == [(PACKAGE, files[1]), (PACKAGE, files[0])]
    assert [found for _, found in verify(store, {})] == [None, None]
    done = store_collect.collect(store, Limits(max_size=disk_size(store.root) - 1), now=2000.0)
    assert [gone.item.path for gone in done.gone] == [files[1]]
    files[0].chmod(0o644)
    files[0].write_bytes(b"rotten")
    ((_, broken),) = verify(store, {}, repair=True)
    assert broken is not None
    assert broken.why == "it is not what was downloaded"
    assert not files[0].exists()


def test_what_a_request_came_to_is_of_its_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the root names them: a script of the workspace that prepares it may name others tomorrow."""
    root = tmp_path / "root"
    (root / "lib/apk/db").mkdir(parents=True)
    (root / "lib/apk/db/installed").write_text("P:musl\nV:1\nA:x86_64\nC:Q1\n\n")
    (root / "etc/apk/keys").mkdir(parents=True)
    fetched: list[str] = []

    def supply(*, offline: bool = False, region: str = "eu") -> PackageSupplier:
        def needless(*_: object) -> Never:
            raise AssertionError

        config = WorkspaceConfig(hooks=Hooks(guest_package_env={"REGION": region}))
        downloads = Downloads(tmp_path / "downloads")
        return PackageSupplier(Arch.X86_64, config, Sources(), downloads, None, needless, needless, lambda _: None, {}, offline)

    def fetch(*_: object) -> list[Package]:
        fetched.append((root / "etc/apk/repositories").read_text())
        return []

    def provide(supply: PackageSupplier) -> list[Package]:
        return supply._downloaded("normal/x", ["zlib"], Tree(root), tmp_path / "scratch", tmp_path / "log")

    monkeypatch.setattr(PackageSupplier, "_fetch", fetch)
    online = supply()
    for line in ("https://one", "https://one", "https://two"):
        (root / "etc/apk/repositories").write_text(line)
        assert provide(online) == []
        assert provide(supply(offline=True)) == []
    assert fetched == ["https://one", "https://two"]
    (root / "etc/apk/repositories").write_text("https://three")
    with pytest.raises(InfraError, match="have not been downloaded"):
        provide(supply(offline=True))
    (root / "etc/apk/repositories").write_text("https://one")
    with pytest.raises(InfraError, match="have not been downloaded"):
        provide(supply(offline=True, region="asia"))
    (root / "etc/apk/keys/new.rsa.pub").write_text("a key")
    with pytest.raises(InfraError, match="have not been downloaded"):
        provide(supply(offline=True))


def test_the_state_of_a_root_knows_no_time(tmp_path: Path) -> None:
    states = []
    for place, version in (("a", "20240101.120000"), ("b", "20240101.120001")):
        (tmp_path / place / "lib/apk/db").mkdir(parents=True)
        (tmp_path / place / "etc/apk").mkdir(parents=True)
        stanzas = f"C:Q1x=\nP:musl\nV:1.2.5-r9\nA:x86_64\nF:lib\n\nC:Q1{place}=\nP:.tools\nV:{version}\nA:noarch\n\n"
        (tmp_path / place / "lib/apk/db/installed").write_text(stanzas)
        (tmp_path / place / "etc/apk/world").write_text(f"musl\n.tools={version}\n")
        states.append(apk.state(Tree(tmp_path / place)))
    assert states[0] == states[1]
    assert apk.installed(Tree(tmp_path / "a"))["musl"] == ("1.2.5-r9", "x86_64", "Q1x=")
    (tmp_path / "a/etc/apk/world").write_text("musl\nzlib\n")
    assert apk.state(Tree(tmp_path / "a")) != states[0]


# --- in use ---------------------------------------------------------------------------------------------------------------


def stored(root: Path, name: str = "tally") -> Package:
    """A package that is in the download cache."""
    (root / name).write_bytes(name.encode())
    package = Package(name, "1-r0", "x86_64", hashlib.sha256(name.encode()).hexdigest())
    Downloads(root / "store/downloads").take(root / name, package)
    return package


def supply_of(root: Path, lock: Lock | None, *, readonly: bool = False) -> PackageSupplier:
    def nobody(*_: object) -> Never:
        raise InfraError("no engine")

    return PackageSupplier(
        arch=Arch.X86_64,
        config=WorkspaceConfig(),
        sources=Sources(),
        downloads=Downloads(root / "store/downloads", readonly),
        lock=lock,
        engine=nobody,
        image=nobody,
        emit=lambda _: None,
        environ={},
    )


@pytest.mark.parametrize("collect", ["gc", "gc --dry-run", "clear", "verify"])
@pytest.mark.parametrize("readonly", [False, True])
def test_packages_that_were_looked_up_stay_until_a_step_has_them(
    collect: str, readonly: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    package = stored(tmp_path)
    supply = supply_of(tmp_path, Lock(tmp_path / "qcase.lock", {(Arch.X86_64, "case"): (package,)}), readonly=readonly)
    with supply_of(tmp_path, None).downloads.in_use():
        """Somebody has used the store before, with a right to write."""
    lay_out = PackageSupplier._lay_out
    busy: list[str] = []

    def collected() -> list[str]:
        limits = Limits(max_size=1)
        if collect == "verify":
            found = verify(store, {PACKAGE: lambda _: "broken"}, repair=True)
            return [broken.item.what for _, broken in found if broken and not broken.repaired]
        if collect == "clear":
            return [item.what for item in clear(store, everything=True).busy]
        return [item.what for item in store_collect.collect(store, limits, dry_run=collect != "gc").busy]

    def interrupted(self: PackageSupplier, found: list[Package], folder: Path) -> None:
        busy.extend(collected())
        lay_out(self, found, folder)

    monkeypatch.setattr(PackageSupplier, "_lay_out", interrupted)
    supply.provide("case", ["tally"], Tree(tmp_path), tmp_path / "scratch", tmp_path / "log", tmp_path / "laid")
    assert (tmp_path / "laid" / package.file).read_bytes() == b"tally"
    assert busy == [PACKAGE]
    assert collected() == []
    assert supply.downloads.path(package).exists() == (collect == "gc --dry-run")


def test_looking_at_what_would_go_makes_no_lock(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stored(tmp_path)
    assert [gone.item.what for gone in store_collect.collect(store, Limits(max_size=1), dry_run=True).gone] == [PACKAGE]
    assert not (store.root / "downloads/lock").exists()


def test_what_was_asked_for_in_this_run_is_asked_for_again_if_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = stored(tmp_path)
    root = tmp_path / "root"
    (root / "lib/apk/db").mkdir(parents=True)
    (root / "lib/apk/db/installed").touch()
    supply = supply_of(tmp_path, None)

    def provide(number: int) -> None:
        supply.provide("case", ["tally"], Tree(root), tmp_path / f"scratch{number}", tmp_path / "log", tmp_path / f"laid{number}")

    with monkeypatch.context() as fetched:
        fetched.setattr(PackageSupplier, "_fetch", lambda *_: [package])
        provide(1)
    provide(2)
    supply.downloads.path(package).unlink()
    with pytest.raises(InfraError) as caught:  # a fetch step, and not "was taken away just now"
        provide(3)
    assert "taken away" not in str(caught.value)


def test_a_good_package_that_takes_the_place_of_a_damaged_one_is_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = stored(tmp_path)
    downloads = Downloads(tmp_path / "store/downloads")
    downloads.path(package).chmod(0o644)
    downloads.path(package).write_bytes(b"rotten")
    read = hashlib.file_digest

    def interrupted(file: Any, name: str) -> Any:
        found = read(file, name)
        monkeypatch.undo()
        downloads.take(tmp_path / "tally", package)  # as another process does
        return found

    monkeypatch.setattr(hashlib, "file_digest", interrupted)
    assert not downloads.has(package)
    assert downloads.has(package)


def test_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Never:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(InfraError, match="No space left"):
        stored(tmp_path)


SAID = {
    # What apk 2 and 3 say of a database that a script has written to, and of repositories that do not answer.
    "database": "ERROR: FDB format error (line 1, entry 'Z')\nERROR: Unable to read database: v2 database format error\n"
    "ERROR: Failed to open apk database: v2 database format error\n",
    "repository": "WARNING: updating https://example.org/main: network error\n",
}


@pytest.mark.parametrize(
    ("said", "edited", "fault", "what"),
    [
        ("database", False, BuildError, "the package database of the staging root cannot be read: v2 database format error"),
        ("repository", False, InfraError, "the repository cannot be reached: network error"),
        ("repository", True, BuildError, "the repository cannot be reached: network error"),
    ],
)
def test_a_script_that_breaks_the_root_is_to_blame_and_nobody_else(
    said: str, edited: bool, fault: type[Exception], what: str, tmp_path: Path
) -> None:
    class Refusing(steps.StandIn):
        def run(self, step: Step, *_: object) -> StepResult:
            (steps._at(step, "/qcase/build") / "stage").write_text("update\n")
            return StepResult(99, SAID[said], None, False, False, 0.0)

    world = steps.World(tmp_path, tmp_path / "no base", lambda *_: None, lambda *_: pytest.fail("no race"))
    engine = Refusing(lambda _: None)
    root, requests = Tree(steps._root(world)), Tree(world.folder("requests"))
    services = Services(supply=lambda: steps._supply(world, engine), engine=lambda: cast(Any, engine))
    context = SimpleNamespace(case="x", scratch=tmp_path, services=services)
    with apk_requests.ApkRequestServer(cast(Any, context), root, requests, tmp_path / "fetched") as server:
        if edited:
            (root / "etc/apk/repositories").replace_bytes(b"https://example.org/main\n# mine\n")
        (requests / "1.new").write_text("add\nzlib\n")
        (requests / "1.new").rename(requests / "1.ask")
        deadline = time.monotonic() + 20
        while not (requests / "1.answer").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert (requests / "1.answer").read_text().splitlines()[:2] == ["refused", what]
    assert isinstance(server.fault, InfraError) == (
        fault is InfraError
    )  # a build error is the script's own, whatever it makes of it


@pytest.mark.parametrize("name", ["normal/🦀-smoke", 'quo"ted', "back\\slash", "dot.ted", "é", "del\x7f", "smoke"])
def test_a_lock_of_an_odd_name_reads_back(tmp_path: Path, name: str) -> None:
    package = Package("musl", "1.2.5-r9", "x86_64", "0" * 64)
    write_lock(tmp_path, {(Arch.X86_64, name): [package]})
    lock = read_lock(tmp_path)
    assert lock is not None
    assert lock.cases == {(Arch.X86_64, name): (package,)}


def test_a_key_or_an_index_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "endless").symlink_to("/dev/zero")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(8 << 30)
    (tmp_path / "key").write_bytes(b"key")
    assert [file_sha256(tmp_path / name) for name in ("fifo", "endless", "huge")] == [None, None, None]
    assert file_sha256(tmp_path / "key") == hashlib.sha256(b"key").hexdigest()
