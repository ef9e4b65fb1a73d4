"""What a case is made of: whatever its keys or its verdict depend on is named, and `--changed` compares it with git."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config.services_table import Service
from qcase.errors import QcaseError
from qcase.guests.kernel_files import Kernel
from qcase.guests.packages import lock
from qcase.host import process
from qcase.inputs import case_filters, ingredients
from qcase.inputs.case_filters import Filters
from qcase.inputs.ingredients import Place
from qcase.model import Cache
from qcase.pipelines import sources
from qcase.prepare import explain
from qcase.prepare.prepared import PreparedCase
from qcase.prepare.session import Session
from qcase.run import boot_plan
from qcase.store.store import Store
from qcase.suite import discover
from qcase.suite.cases import Case, Workspace
from qcase.suite.known_failures import KnownFailures
from qcase.vm import arguments

TARGET = Arch.X86_64.default_target
CONFIG = 'shell_prefix = "#"\nshell_init_cmd = "run"\nsuccess_regex = ["ok"]\ntimeout = 5\nargs = {args}\n'
GROUP = 'shell_prefix = "#"\ntest_commands = ["one", "two"]\n[qcase]\nbuild = "all"\n'
WORKSPACE = """\
[suite]
root = "suite"
[hooks]
prepare_staging_root = "hook.sh"
[packages]
repositories = ["repository"]
keys = ["keys/own.rsa.pub"]
[toolchain.c]
image = "c@sha256:{zeros}"
[toolchain.rust]
image = "rust@sha256:{zeros}"
[toolchain.alpine]
image = "alpine@sha256:{zeros}"
[guest.x86_64]
rootfs = "guest/rootfs.img"
kernel = "guest/kernel"
initrd = "guest/initrd"
firmware = "guest/code.fd"
firmware_vars = "guest/vars.fd"
"""
FILES = {
    "qcase.toml": WORKSPACE.format(zeros="0" * 64),
    "hook.sh": "true\n",
    "keys/own.rsa.pub": "key\n",
    "repository/x86_64/APKINDEX.tar.gz": "index\n",
    "guest/rootfs.img": "a base image",
    "guest/kernel": "a kernel",
    "guest/initrd": "an initrd",
    "guest/code.fd": "code",
    "guest/vars.fd": "variables",
    "disks/data.img": "data",
    "common/check.h": "#define CHECK\n",
    "common/lib/a.sh": "a\n",
    "common/lib/deep/b.sh": "b\n",
    "common/README": "of nobody\n",
    "known.toml": '[[known]]\ncase = "normal/plain"\nreason = "not yet"\n',
    "suite/known.toml": '[[known]]\ncase = "normal/disk"\nreason = "not yet"\n',
    "served/index.html": "hello\n",
    "suite/normal/served/qemu-x86_64.toml": CONFIG.format(args=[]) + '[host_http_server]\nport = 80\ndir = "served"\n',
    "elsewhere/moved/qemu-x86_64.toml": CONFIG.format(args=[]),
    "elsewhere/moved/sh/run": "echo ok\n",
    "suite/normal/plain/qemu-x86_64.toml": CONFIG.format(args=[]),
    "suite/normal/plain/qemu-aarch64.toml": CONFIG.format(args=[]),
    "suite/normal/disk/qemu-x86_64.toml": CONFIG.format(args=["-drive", "id=d,file=${workspace}/disks/data.img,if=none"]),
    "suite/normal/script/qemu-x86_64.toml": CONFIG.format(args=[]),
    "suite/normal/script/sh/run": "echo ok\n",
    "suite/normal/packed/qemu-x86_64.toml": CONFIG.format(args=[]) + '[qcase]\npackages = ["zlib"]\n',
    "suite/normal/program/qemu-x86_64.toml": CONFIG.format(args=[]),
    "suite/normal/program/c/CMakeLists.txt": "project(run)\n",
    "suite/normal/program/c/prebuild.sh": "apk add zlib\n",
    "suite/normal/group/qemu-x86_64.toml": GROUP,
    "suite/normal/group/one/c/CMakeLists.txt": "project(one)\n",
    "suite/normal/group/two/rust/Cargo.toml": "[package]\n",
    "suite/normal/group/three/python/two": "print()\n",
    "suite/normal/whole/qemu-x86_64.toml": GROUP,
    "suite/normal/whole/CMakeLists.txt": "project(whole)\n",
    "suite/normal/whole/one/c/one.c": "one\n",
    f"suite/normal/smp/build-{TARGET}.toml": "features = []\n",
    "suite/normal/smp/booted/qemu-x86_64.toml": CONFIG.format(args=[]) + "uefi = true\n",
}
LINKS = {
    "suite/normal/script/sh/lib": "../../../../common/lib",
    "suite/normal/program/c/check.h": "one-more.h",
    "suite/normal/program/c/one-more.h": "../../../../common/check.h",
    "suite/normal/group/one/c/check.h": "../../../../../common/check.h",
    "suite/normal/linked": "../../elsewhere/moved",
}
UNUSED = {"common/README", "suite/normal/plain/qemu-aarch64.toml"}


def make(root: Path) -> Path:
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name, target in LINKS.items():
        (root / name).symlink_to(target)
    packed = {(Arch.X86_64, f"normal/{name}"): [lock.Package("zlib", "1", "x86_64", "0" * 64)] for name in ("packed", "program")}
    (root / "qcase.lock").write_text(lock.lock_text(packed))
    return root


def git(root: Path, *words: str, **environ: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    process.run(["git", *who, "-C", str(root), *words], env={**os.environ, **environ})


def commit(root: Path, after: float = 3600.0) -> None:
    """Commit everything, so many seconds from now: what git does not keep is older than that."""
    git(root, "add", "-A")
    git(root, "commit", "-qm", "all", "--allow-empty", GIT_COMMITTER_DATE=f"@{int(time.time() + after)} +0000")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make(tmp_path / "w")
    git(root, "init", "-q")
    commit(root)
    return root


@contextmanager
def opened(root: Path) -> Iterator[tuple[Session, list[Case]]]:
    workspace = Workspace.open(root)
    store = Store(root.parent / "no-store", readonly=True)
    with Session(workspace, Arch.X86_64, TARGET, store, lambda _: None, {}, read_only_inspection=True) as session:
        found = discover.discover(workspace, Arch.X86_64, TARGET).cases
        yield session, [case for case in found if isinstance(case, Case)]


def inputs(root: Path) -> dict[str, str]:
    """Of each case a digest over its keys and all else that its verdict depends on. An error is as good as another digest."""
    found = {}
    try:
        with opened(root) as (session, cases):
            for case in cases:
                try:
                    parts = [f"{wanted.name} {wanted.key.digest}" for wanted in explain.wanted(case, session)]
                    parts += verdict_inputs(case, session)
                except QcaseError as error:
                    parts = [str(error)]
                found[case.display_name] = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    except QcaseError as error:
        return dict.fromkeys(everything(root), str(error))
    return found


def verdict_inputs(case: Case, session: Session) -> Iterator[str]:
    """What QEMU and the console get: the case's own file, and the bytes of every file of the workspace that is booted by."""
    yield repr(case)
    guest = session.guest
    kernel = Kernel(guest.kernel or Path("none"), "")
    machine = boot_plan.machine_spec(case, PreparedCase(guest.rootfs, guest, kernel, case.pipeline, Cache.NONE), session)
    for word in (",".join(arguments.arguments(machine)) + f",{case.build_group}").split(","):
        path = Path(word.rpartition("=")[2])
        yield f"{word} {path.read_bytes().hex() if path.is_file() else ''}"
    for service in map(Service.parse, case.config.services):
        folder = session.workspace.root / (service.folder or "")
        yield from (repr((path.is_symlink(), path.stat().st_mode, path.read_bytes())) for path in folder.glob("*.html"))
    yield repr(KnownFailures.load(session.workspace).of(case))
    group = session.kernels.build_group(case)
    yield repr(group) + (group.config.read_text() if group.config else "")
    if case.config.uefi:
        for path in ingredients.guest_files(session.workspace, case.arch).values():
            yield path.read_bytes().hex() if path.is_file() else "gone"


def everything(root: Path) -> list[str]:
    return [
        f"normal/{name}" for name in ("disk", "group", "linked", "packed", "plain", "program", "script", "served", "whole")
    ] + ["smp/booted"]


def chosen(root: Path, **filters: object) -> set[str]:
    workspace = Workspace.open(root)
    discovery = discover.discover(workspace, Arch.X86_64, TARGET)
    picked = case_filters.choose(workspace, discovery, (), Filters(changed="HEAD", **filters))  # type: ignore[arg-type]
    return {case.display_name for case in picked.cases}


def rewritten(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
        path.symlink_to("/nowhere")
    elif path.name == "qcase.toml" or path.name == "qcase.lock":
        path.write_text(path.read_text().replace("0" * 64, "1" * 64))
    elif path.name == "known.toml":
        path.write_text(path.read_text().replace("not yet", "not at all"))
    elif path.suffix == ".toml":
        path.write_text(path.read_text().replace("timeout = 5", "timeout = 6").replace('"two"', '"zwei"') + "# edited\n")
    else:
        path.write_bytes(path.read_bytes() + b" ")


def removed(path: Path) -> None:
    path.unlink()


def executable(path: Path) -> None:
    if not path.is_symlink():
        path.chmod(path.stat().st_mode ^ 0o111)


def replaced_by_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("edit", [rewritten, removed, executable, replaced_by_a_link])
def test_whatever_changes_a_key_or_a_verdict_selects_the_case(edit: Callable[[Path], None], locked: bool, root: Path) -> None:
    locks = ["qcase.lock"] if locked else []
    if not locked:
        (root / "qcase.lock").unlink()
        commit(root)
    before = inputs(root)
    assert set(before) == set(everything(root))
    moved_at_all: set[str] = set()
    for name in [*FILES, *LINKS, *locks]:
        edit(root / name)
        after = inputs(root)
        moved = {case for case in {*before, *after} if before.get(case) != after.get(case)}
        if (root / "qcase.toml").is_file():
            try:
                left = set(everything(root)) & set(after)
                assert moved & left <= chosen(root), f"{name}: {edit.__name__}"
            except QcaseError:
                assert name == "qcase.toml"  # nothing can be selected, which is an error and no "nothing to run"
        moved_at_all |= {name} if moved else set()
        git(root, "checkout", "-q", "-f", "HEAD")
        git(root, "clean", "-fdq")
    assert inputs(root) == before
    # The lock says which packages come, so keys do not ask where from.
    from_where = {"keys/own.rsa.pub", "repository/x86_64/APKINDEX.tar.gz"}
    if edit is rewritten:
        assert moved_at_all == {*FILES, *LINKS, *locks} - UNUSED - (from_where if locked else set())


def test_a_file_of_nobody_selects_nothing(root: Path) -> None:
    for name in UNUSED:
        rewritten(root / name)
    assert chosen(root) == set()


ADDED: Mapping[str, set[str]] = {
    "common/lib/new.sh": {"normal/script"},
    "common/lib/deep/new.sh": {"normal/script"},
    "common/new.h": set(),
    "suite/normal/program/c/new.c": {"normal/program"},
    f"suite/normal/group/build-{TARGET}.toml": {"normal/group"},
}


@pytest.mark.parametrize(("name", "wanted"), ADDED.items())
def test_a_new_file_selects_who_would_find_it(name: str, wanted: set[str], root: Path) -> None:
    (root / name).write_text("")
    try:
        assert chosen(root) == wanted
    except AssertionError:
        assert name.endswith(".toml")
        assert {case.rpartition("/")[2] for case in chosen(root)} == {"group"}  # named after itself now


@pytest.mark.parametrize("name", ["hook.sh", "keys/own.rsa.pub", "guest/kernel", "guest/code.fd", "qcase.lock"])
def test_of_what_git_does_not_keep_the_time_counts(name: str, root: Path) -> None:
    (root / ".gitignore").write_text(f"/{name}\n")
    git(root, "rm", "-q", "--cached", name)
    commit(root)
    assert chosen(root) == set()
    commit(root, after=-3600.0)
    assert chosen(root) == set(everything(root))


def test_what_git_was_told_not_to_look_at_is_compared_by_time(root: Path) -> None:
    git(root, "update-index", "--assume-unchanged", "hook.sh")
    assert chosen(root) == set()
    commit(root, after=-3600.0)
    assert chosen(root) == set(everything(root))


def test_a_kernel_of_the_command_line_counts(root: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_text("kernel")
    assert chosen(root, kernel=kernel) == set()
    commit(root, after=-3600.0)
    assert chosen(root, kernel=kernel) == set(everything(root))
    assert chosen(root) == set()


def test_a_repository_that_is_reached_through_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("w")
    (root / "common/check.h").write_text("#define OTHER\n")
    assert chosen(tmp_path / "link") == {"normal/program", "normal/group"}


def test_a_repository_within_the_repository(root: Path) -> None:
    shutil.rmtree(root / "common")
    commit(root)
    make_again = root / "common/lib"
    make_again.mkdir(parents=True)
    (make_again / "a.sh").write_text("a\n")
    git(root / "common", "init", "-q")
    assert chosen(root) == {"normal/program", "normal/group", "normal/script"}


def test_all_that_is_read_for_keys_and_machines_is_an_ingredient(root: Path, opens: list[str]) -> None:
    with opened(root) as (session, cases):
        for case in cases:
            opens.clear()
            explain.wanted(case, session)
            list(verdict_inputs(case, session))
            made_of = ingredients.of_case(case, session.workspace, {})
            read = {Path(os.path.realpath(path)) for path in opens if path.startswith(f"{root}/")}
            read = {
                path for path in read if path.relative_to(root).parts[0] not in ("target", ".git")
            }  # memories of qcase and of git
            assert read
            for path in read:
                assert ingredients.covers(made_of, path), f"{case.display_name} reads {path}"


_opened: list[str] | None = None


@pytest.fixture
def opens() -> Iterator[list[str]]:
    """The paths that are opened for reading. A hook for audits stays for good, so there is one, and it is switched off."""
    global _opened
    if not hasattr(sys, "_qcase_hook"):

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if _opened is not None and event == "open" and isinstance(arguments[0], (str, bytes)):
                _opened.append(os.fsdecode(arguments[0]))

        sys.addaudithook(hook)
        sys._qcase_hook = True  # type: ignore[attr-defined]
    _opened = []
    yield _opened
    _opened = None


def test_the_steps_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "real/sub").mkdir(parents=True)
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to(tmp_path / "real")
    (tmp_path / "real/gone").symlink_to("sub/../nowhere/x")
    (tmp_path / "round").symlink_to("round")
    top = Path(os.path.realpath(tmp_path))
    assert sources.steps(tmp_path / "a/sub") == {top / "a", top / "b", top / "real/sub"}
    assert sources.steps(tmp_path / "a/gone") == {top / "a", top / "b", top / "real/gone", top / "real/nowhere/x"}
    assert sources.steps(tmp_path / "round") == {top / "round"}


def test_reach_and_find_agree(root: Path) -> None:
    """What a build sees is in what is compared, without reading a byte of it."""
    with opened(root) as (session, cases):
        for case in cases:
            for place in ingredients.source_places(case):
                reached = place.reach(session.workspace, session.ignored)
                for source in place.sources(session.workspace, session.ignored):
                    assert ingredients.covers(reached, Path(os.path.realpath(source.origin.parent), source.origin.name))
                assert isinstance(place, Place)
