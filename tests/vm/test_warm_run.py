"""A warm run as the system sees it: what it opens, reads and writes. And runs on stores that may not be written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcase.host.crash_cleanup import remove_tree
from qcase.store.store import Store
from tests.vm import workspaces
from tests.vm.workspaces import Outcome, Workspace, run

pytestmark = pytest.mark.vm

CALLS = "openat,open,creat,read,pread64,write,pwrite64,copy_file_range,sendfile,ioctl,execve,ftruncate,rename,renameat,unlink"
LARGE = 1 << 20


@dataclass(frozen=True)
class Call:
    pid: str
    name: str
    arguments: str
    result: str


@dataclass(frozen=True)
class Traced:
    outcome: Outcome
    before_qemu: list[Call]
    qemu: list[Call]
    qcase: list[Call]
    store: Path
    guests: Path

    def entries(self, calls: list[Call], name: str) -> Iterator[tuple[str, Call]]:
        """Calls of a name on a file of an entry or a guest, with the file's place below the store."""
        for call in calls:
            for match in re.finditer(r'[<"](/[^>"]*)[>"]', call.arguments + call.result):
                for root in (self.store / "v2/images", self.store / "v2/overlays", self.store / "guests", self.guests):
                    if call.name == name and match[1].startswith(f"{root}/"):
                        yield match[1], call


def parse(log: str) -> Iterator[Call]:
    """The calls in what strace wrote. One that another thread's came between stands in two pieces."""
    begun: dict[str, str] = {}
    for line in log.splitlines():
        pid, _, text = line.partition(" ")
        text = text.strip()
        if text.endswith(" <unfinished ...>"):
            begun[pid] = text.removesuffix(" <unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", text):
            text = begun.pop(pid, "") + text[resumed.end() :]
        if match := re.fullmatch(r"(\w+)\((.*)\) += (.*)", text):
            yield Call(pid, *match.groups())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace.make(tmp_path_factory.mktemp("warm") / "workspace")
    made.case("script", {"sh/hello": "#!/bin/sh\necho hello\n"}, shell_init_cmd="hello", success_regex=["^hello$"])
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, test_cache: Path, workspace: Workspace) -> Iterator[Path]:
    folder = workspaces.fresh_store(tmp_path_factory.mktemp("warm-store") / "cache", test_cache)
    first = run(workspace, store=folder)
    assert first.exit_code == 0, first.said
    yield folder
    remove_tree(folder / "v2")


@pytest.fixture(scope="module")
def traced(workspace: Workspace, store: Path, test_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    log = tmp_path_factory.mktemp("strace") / "log"
    prefix = ["strace", "-f", "-y", "--seccomp-bpf", "-s", "4096", "-o", str(log), "-e", f"trace={CALLS}"]
    outcome = run(workspace, store=store, prefix=prefix)
    calls = list(parse(log.read_text(errors="replace")))
    begun = [at for at, call in enumerate(calls) if call.name == "execve" and call.result == "0"]
    started = next(at for at in begun if '/qemu-system-aarch64"' in calls[at].arguments)
    main = calls[0].pid
    return Traced(
        outcome,
        calls[:started],
        [call for call in calls[started:] if call.pid != main],  # its threads, too
        [call for call in calls if call.pid == main],
        store,
        (test_cache / "guests").resolve(),
    )


def test_a_warm_run_hits(traced: Traced) -> None:
    assert traced.outcome.exit_code == 0, traced.outcome.said
    assert traced.outcome.case("script")["cache"] == "hit"
    assert len(traced.before_qemu) > 100
    assert len(traced.qemu) > 100


def test_base_image_and_entries_are_opened_read_only(traced: Traced) -> None:
    opened = [*traced.entries(traced.before_qemu, "openat"), *traced.entries(traced.qemu, "openat")]
    assert {Path(path).name for path, _ in opened} >= {"image.img", "manifest.json", "lock", "rootfs.img", "kernel"}
    for path, call in opened:
        assert "O_RDONLY" in call.arguments, (path, call)
        assert not re.search("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", call.arguments), (path, call)


def test_not_more_than_manifests_is_read_before_qemu_starts(traced: Traced) -> None:
    read = {path for name in ("read", "pread64") for path, _ in traced.entries(traced.before_qemu, name)}
    assert read
    assert {Path(path).name for path in read} == {"manifest.json"}


def test_nothing_that_only_a_build_needs_is_imported(traced: Traced) -> None:
    """The imports are most of the time of a run that builds nothing."""
    opened = {
        match[1] for call in traced.before_qemu if (match := re.search(r"/(qcase/[a-z_/]+)\.(?:cpython|py\b)", call.arguments))
    }
    imported = {name.replace("/__pycache__", "") for name in opened}
    assert imported >= {"qcase/prepare/prepare_case", "qcase/pipelines/sh"}
    builds = {
        *("toolchains/base", "containers/engine", "containers/reuse", "disk/ext4", "disk/inject_plan"),
        *(
            "pipelines/c",
            "pipelines/build_systems",
            "pipelines/rust",
            "pipelines/prebuild",
            "crates/pool",
            "guests/packages/supply",
        ),
    }
    assert sorted(imported & {f"qcase/{name}" for name in builds}) == []


def test_nothing_is_copied(traced: Traced) -> None:
    assert [call for call in traced.qcase if call.name in ("copy_file_range", "sendfile")] == []
    assert [call for call in traced.qcase if call.name == "ioctl" and "FICLONE" in call.arguments] == []
    written: dict[str, int] = {}
    for call in traced.qcase:
        if call.name in ("write", "pwrite64") and (match := re.match(r"\d+<([^>]*)>", call.arguments)):
            written[match[1]] = written.get(match[1], 0) + int(call.result.split()[0])
    assert written
    assert max(written.values()) < LARGE
    assert [path for path in written if path.startswith((f"{traced.store}/", f"{traced.guests}/"))] == []


def test_a_read_only_store(workspace: Workspace, store: Path) -> None:
    """Nothing in it is touched; what it does not have is built for the run."""

    def seen() -> list[tuple[str, int, int]]:
        return sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_size) for path in store.rglob("*"))

    before = seen()
    warm = run(workspace, "--cache-readonly", store=store)
    assert warm.exit_code == 0, warm.said
    assert warm.case("script")["cache"] == "hit"
    assert seen() == before
    script = workspace.path("script") / "sh" / "hello"
    was = script.read_text()
    script.write_text(f"{was}echo bye\n")
    try:
        cold = run(workspace, "--cache-readonly", "-v", store=store)
    finally:
        script.write_text(was)
    assert cold.exit_code == 0, cold.said
    assert cold.case("script")["cache"] == "miss"
    assert "the overlay of normal/script is built: sources: sh/hello changed" in cold.stdout
    assert seen() == before
    assert workspace.runs == []


def test_images_that_are_not_kept(workspace: Workspace, store: Path, test_cache: Path, tmp_path: Path) -> None:
    config = workspace.root / "qcase.toml"
    was = config.read_text()
    frugal = workspaces.fresh_store(tmp_path / "cache", test_cache)
    config.write_text(f"{was}[cache]\nkeep_images = false\n")
    try:
        outcome = run(workspace, store=frugal)
    finally:
        config.write_text(was)
    assert outcome.exit_code == 0, outcome.said
    assert [kind.value for kind, _, _ in Store(frugal).entries()] == ["overlay"]
    assert workspace.runs == []
    remove_tree(frugal / "v2")


def test_a_run_that_adds_something_keeps_the_store_to_its_size(workspace: Workspace, test_cache: Path, tmp_path: Path) -> None:
    config = workspace.root / "qcase.toml"
    was = config.read_text()
    small = workspaces.fresh_store(tmp_path / "cache", test_cache)
    config.write_text(f'{was}[cache]\nmax_size = "1 MiB"\n')
    try:
        outcome = run(workspace, store=small)
    finally:
        config.write_text(was)
    assert outcome.exit_code == 0, outcome.said
    assert "of the store's entries are gone" in outcome.stdout
    assert list(Store(small).entries()) == []
    remove_tree(small / "v2")
