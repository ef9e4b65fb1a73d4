"""Keys of whole cases: what moves them, what does not, and that `explain` says which. Without a guest or an engine."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from qcase.arch import Arch
from qcase.events import Missed
from qcase.host.crash_cleanup import remove_tree
from qcase.host.trees import Tree
from qcase.prepare import explain, prepare_case, run_folders
from qcase.prepare.session import Session
from qcase.store.content import Kind
from qcase.store.policy import Policy
from qcase.store.store import Store
from qcase.suite import discover, select
from qcase.suite.cases import Case, Workspace

TARGET = Arch.X86_64.default_target
ENVIRONMENT = {"FEATURES": "a"}
Edit: TypeAlias = Callable[[Path], object]

CONFIG = 'shell_prefix = "#"\nshell_init_cmd = "{command}"\nsuccess_regex = ["ok"]\ntimeout = {timeout}\n'
PACKED = CONFIG.replace("{command}", "true") + '[qcase]\npackages = ["{package}"]\n'
WORKSPACE = """\
[suite]
root = "suite"
[cache]
env = ["FEATURES"]
[script_env]
staging_root = "{variable}"
[hooks]
prepare_staging_root = "hook.sh"
guest_package_env = {{ REGION = "{region}" }}
[toolchain.c]
image = "c@sha256:{c}"
[toolchain.alpine]
image = "alpine@sha256:{alpine}"
[guest.x86_64]
rootfs = "rootfs.img"
kernel = "kernel"
"""
GROUP = 'shell_prefix = "#"\ntest_commands = ["{command}"]\ntimeout = {timeout}\n'


def make_workspace(root: Path) -> Path:
    """Four cases: `shell`, of one file and a link, `group`, of one command and a subcase in C, `packed`, with a package, and
    `normal`, of one file, in whose folder the others are.

    A script of the workspace prepares the staging root.
    """
    (root / "suite/normal/shell/sh").mkdir(parents=True)
    (root / "suite/normal/group/one/c").mkdir(parents=True)
    (root / "suite/normal/packed").mkdir()
    (root / "suite/normal/sh").mkdir()
    (root / "suite/normal/sh/all.sh").write_text("#!/bin/sh\necho ok\n")
    (root / "suite/normal/qemu-x86_64.toml").write_text(CONFIG.format(command="all.sh", timeout=5))
    (root / f"suite/normal/build-{TARGET}.toml").write_text("features = []\n")
    (root / "qcase.toml").write_text(WORKSPACE.format(c="0" * 64, alpine="1" * 64, variable="ROOT", region="eu"))
    (root / "hook.sh").write_text("touch $ROOT/here\n")
    (root / "rootfs.img").write_bytes(b"a base image")
    (root / "kernel").write_bytes(b"a kernel")
    (root / "suite/normal/shell/qemu-x86_64.toml").write_text(CONFIG.format(command="/usr/bin/test.sh", timeout=5))
    (root / "suite/normal/shell/sh/test.sh").write_text("#!/bin/sh\necho ok\n")
    (root / "suite/normal/shell/sh/link").symlink_to("test.sh")
    (root / "suite/normal/group/qemu-x86_64.toml").write_text(GROUP.format(command="/usr/bin/one", timeout=5))
    (root / "suite/normal/packed/qemu-x86_64.toml").write_text(PACKED.format(package="zlib", timeout=5))
    (root / "suite/normal/group/one/c/CMakeLists.txt").write_text("project(one)\n")
    (root / "suite/normal/group/one/c/one.c").write_text("int main(void) { return 0; }\n")
    return root


def case_of(root: Path, name: str) -> Case:
    (case,) = select.select(discover.discover(Workspace.open(root), Arch.X86_64, TARGET), [name])
    assert isinstance(case, Case), case
    return case


@contextmanager
def session_of(root: Path, store: Store, environ: dict[str, str] | None = None) -> Iterator[Session]:
    workspace = Workspace.open(root)
    with Session(
        workspace, Arch.X86_64, TARGET, store, lambda _: None, environ or ENVIRONMENT, read_only_inspection=True
    ) as session:
        yield session


def keys_of(root: Path, environ: dict[str, str] | None = None) -> dict[str, str]:
    """The keys of all cases' overlays, by what they are for."""
    store = Store(root.parent / "no-store", readonly=True)
    with session_of(root, store, environ) as session:
        cases = discover.discover(session.workspace, Arch.X86_64, TARGET).cases
        return {
            wanted.name: wanted.key.digest for case in cases if isinstance(case, Case) for wanted in explain.wanted(case, session)
        }


def write(path: str, text: str) -> Edit:
    def edit(root: Path) -> None:
        (root / path).write_text(text)

    return edit


def replace_link(root: Path) -> None:
    (root / "suite/normal/shell/sh/link").unlink()
    (root / "suite/normal/shell/sh/link").symlink_to("other")


def configure(old: str, new: str) -> Edit:
    def edit(root: Path) -> None:
        config = root / "qcase.toml"
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))

    return edit


SH, SCRIPT, ONE, PACKAGES = "normal/shell", "normal/group: the group's script", "normal/group/one", "normal/packed: packages"
NORMAL = "normal"

MOVES: dict[str, tuple[Edit, set[str]]] = {
    "a source": (write("suite/normal/shell/sh/test.sh", "#!/bin/sh\n"), {SH}),
    "a new source": (write("suite/normal/shell/sh/new.sh", ""), {SH}),
    "a source that is named like a configuration": (write("suite/normal/shell/sh/qemu-x86_64.toml", "x"), {SH}),
    "an executable bit": (lambda root: (root / "suite/normal/shell/sh/test.sh").chmod(0o755), {SH}),
    "a link's target": (replace_link, {SH}),
    "an empty folder": (lambda root: (root / "suite/normal/shell/sh/empty").mkdir(), {SH}),
    "a source of a subcase": (write("suite/normal/group/one/c/one.c", "int main(void) { return 1; }\n"), {ONE}),
    "a command of a group": (
        write("suite/normal/group/qemu-x86_64.toml", GROUP.format(command="/usr/bin/one --again", timeout=5)),
        {SCRIPT},
    ),
    "a source of a case with others in it": (write("suite/normal/sh/all.sh", "#!/bin/sh\n"), {NORMAL}),
    "a file between cases": (write("suite/normal/common.h", "x"), {NORMAL}),
    "the base image": (write("rootfs.img", "another base image"), {ONE, PACKAGES}),
    "a package": (write("suite/normal/packed/qemu-x86_64.toml", PACKED.format(package="bzip2", timeout=5)), {PACKAGES}),
    "the script that prepares the staging root": (write("hook.sh", "touch $ROOT/there\n"), {ONE, PACKAGES}),
    "the variable by which scripts find the staging root": (configure('"ROOT"', '"STAGING"'), {ONE, PACKAGES}),
    "a variable that scripts see": (configure('"eu"', '"asia"'), {ONE, PACKAGES}),
    "the image that packages are installed in": (configure("1" * 64, "2" * 64), {ONE, PACKAGES}),
    "the image that C is built in": (configure("0" * 64, "3" * 64), {ONE}),
}
STAYS: dict[str, Edit] = {
    "a timeout": write("suite/normal/shell/qemu-x86_64.toml", CONFIG.format(command="/usr/bin/test.sh", timeout=9)),
    "a timeout of a case with packages": write("suite/normal/packed/qemu-x86_64.toml", PACKED.format(package="zlib", timeout=9)),
    "an executable bit of that script": lambda root: (root / "hook.sh").chmod(0o755),
    "a timeout of a group": write("suite/normal/group/qemu-x86_64.toml", GROUP.format(command="/usr/bin/one", timeout=9)),
    "the command that is typed": write("suite/normal/shell/qemu-x86_64.toml", CONFIG.format(command="sh", timeout=5)),
    "another architecture's file": write("suite/normal/shell/qemu-aarch64.toml", CONFIG.format(command="x", timeout=5)),
    "an mtime": lambda root: os.utime(root / "suite/normal/shell/sh/test.sh", (1, 1)),
    "a mode that is no executable bit": lambda root: (root / "suite/normal/shell/sh/test.sh").chmod(0o600),
    "the kernel": write("kernel", "another kernel"),
    "what the kernel is built by": write(f"suite/normal/build-{TARGET}.toml", "features = [1]\n"),
    "what another target's kernel is built by": write("suite/normal/build-other.toml", ""),
    "a timeout of a case with others in it": write("suite/normal/qemu-x86_64.toml", CONFIG.format(command="all.sh", timeout=9)),
    "something beside the cases": write("suite/README", "x"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_workspace(tmp_path / "workspace")


@pytest.mark.parametrize("edit", MOVES)
def test_an_edit_moves_the_keys_that_it_concerns_and_no_others(edit: str, root: Path) -> None:
    before = keys_of(root)
    assert set(before) == {SH, SCRIPT, ONE, PACKAGES, NORMAL}
    change, concerned = MOVES[edit]
    change(root)
    after = keys_of(root)
    assert {name for name in before if before[name] != after[name]} == concerned


@pytest.mark.parametrize("edit", STAYS)
def test_an_edit_that_concerns_nothing_moves_no_key(edit: str, root: Path) -> None:
    before = keys_of(root)
    STAYS[edit](root)
    assert keys_of(root) == before


def test_a_new_case_moves_no_key(root: Path) -> None:
    before = keys_of(root)
    shutil.copytree(root / "suite/normal/shell", root / "suite/normal/more/deep/shell", symlinks=True)
    shutil.copytree(root / "suite/normal/shell", root / "suite/stress/shell", symlinks=True)
    (root / "suite/normal/link").symlink_to("../stress/shell")
    after = keys_of(root)
    assert {name: after[name] for name in before} == before
    assert set(after) == {*before, "normal/more/deep/shell", "normal/link"}


def test_the_place_of_the_workspace_moves_no_key(root: Path, tmp_path: Path) -> None:
    before = keys_of(root)
    shutil.copytree(root, tmp_path / "other place" / "deep", symlinks=True)
    assert keys_of(tmp_path / "other place" / "deep") == before


def test_a_variable_of_cache_env_moves_every_key_and_no_other_variable_does(root: Path) -> None:
    before = keys_of(root)
    assert keys_of(root, {**ENVIRONMENT, "HOME": "/nowhere", "TZ": "Asia/Tokyo"}) == before
    for environ in ({"FEATURES": "b"}, {"FEATURES": ""}, {"X": ""}):
        after = keys_of(root, environ)
        assert all(after[name] != before[name] for name in before)


# --- explain ------------------------------------------------------------------------------------------------------------


def build(store: Store, wanted: explain.Wanted, scratch: Path) -> None:
    def fill(path: Tree) -> None:
        (path / "file").write_text(wanted.key.digest) if wanted.kind is Kind.OVERLAY else path.write_text("an image")

    with store.get_or_build(wanted.kind, wanted.key, fill, scratch=scratch, made_for=wanted.made_for):
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield Store(tmp_path / "cache")
    remove_tree(tmp_path / "cache")


def explained(root: Path, store: Store, name: str) -> str:
    with session_of(root, store) as session:
        return "\n".join(explain.lines(case_of(root, name), session))


def prepared(root: Path, store: Store, name: str, tmp_path: Path) -> None:
    """As a run would, without a container."""
    for _ in range(2):  # the image's key is known once its overlays are there
        with session_of(root, store) as session:
            for wanted in explain.wanted(case_of(root, name), session):
                build(store, wanted, tmp_path / "run")


def test_explain_before_and_after_and_after_an_edit(root: Path, store: Store, tmp_path: Path) -> None:
    said = explained(root, store, "shell")
    assert f"overlay of {SH}: miss, key {keys_of(root)[SH]}" in said
    assert "it was not built before" in said
    assert "image of normal/shell: miss, its key is not known before its overlays are built" in said
    prepared(root, store, "shell", tmp_path)
    said = explained(root, store, "shell")
    assert re.findall(r"^(\w+) of .*: (\w+), key [0-9a-f]{64}$", said, re.MULTILINE) == [("overlay", "hit"), ("image", "hit")]
    for part in ("pipeline", "recipe", "arch", "target", "toolchain", "sources", "config", "env", "base", "lock", "injector"):
        assert re.search(rf"^  {part} +[0-9a-f]{{12}}", said, re.MULTILINE), part
    MOVES["a source"][0](root)
    MOVES["a new source"][0](root)
    said = explained(root, store, "shell")
    assert f"overlay of {SH}: miss" in said
    assert "sources: sh/test.sh changed" in said
    assert "sources: sh/new.sh is new" in said


def test_explain_of_a_group_names_the_subcase(root: Path, store: Store, tmp_path: Path) -> None:
    prepared(root, store, "group", tmp_path)
    MOVES["a source of a subcase"][0](root)
    said = explained(root, store, "group")
    assert re.findall(r"^overlay of (.*): (hit|miss)", said, re.MULTILINE) == [(SCRIPT, "hit"), (ONE, "miss")]
    assert "sources: c/one.c changed" in said


def test_explain_lists_what_lies_beside_the_sources_and_above_the_case(root: Path, store: Store) -> None:
    """A cache is no source. A toolchain file above the case, a kernel's for instance, is not read; the case's own hides it."""
    case = root / "suite/normal/crate"
    for name, text in {
        "suite/normal/crate/qemu-x86_64.toml": CONFIG.format(command="crate", timeout=5),
        "suite/normal/crate/rust/Cargo.toml": '[package]\nname = "crate"\n',
        "suite/normal/crate/rust/out/CACHEDIR.TAG": "Signature: 8a477f597d28d172789f06886806bc55\n",
        "rust-toolchain.toml": '[toolchain]\nchannel = "nightly-2025-01-01"\n',
        "suite/.cargo/config.toml": "[build]\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    configure("[toolchain.c]", f'[toolchain.rust]\nimage = "rust@sha256:{"2" * 64}"\n[toolchain.c]')(root)
    key = keys_of(root)["normal/crate"]
    said = explained(root, store, "crate")
    assert "  no sources: rust/out/ (ignored by git, or a cache)" in said
    assert "  not read: suite/.cargo/config.toml, rust-toolchain.toml (above the case; a copy in its folder is)" in said
    (root / "rust-toolchain.toml").unlink()
    assert keys_of(root)["normal/crate"] == key
    (root / "rust-toolchain.toml").touch()
    (case / "rust-toolchain").write_text("stable\n")
    assert "  not read: suite/.cargo/config.toml (above" in explained(root, store, "crate")
    (root / "suite/normal/shell/sh/.cargo").mkdir()
    assert "not read" not in explained(root, store, "shell")


def test_explain_says_that_an_entry_is_broken(root: Path, store: Store, tmp_path: Path) -> None:
    prepared(root, store, "shell", tmp_path)
    (store.folder(Kind.OVERLAY, keys_of(root)[SH]) / "content" / "file").write_text("x")
    assert "what is stored cannot be used: " in explained(root, store, "shell")


def test_a_run_says_why_it_builds(root: Path, store: Store, tmp_path: Path) -> None:
    """The event of a real preparation, up to where it would need a container."""
    heard: list[object] = []
    (root / "suite/normal/shell/sh/link").unlink()  # which no image could hold
    case = case_of(root, "shell")
    prepared(root, store, "shell", tmp_path)
    MOVES["a source"][0](root)
    layout = run_folders.case_asset_layout(root, TARGET, case.display_name)
    with (
        pytest.raises(Exception, match="ext"),  # the base is no file system
        Session(Workspace.open(root), Arch.X86_64, TARGET, store, heard.append, ENVIRONMENT) as session,
        prepare_case.prepare_case_assets(case, layout, session, tmp_path / "build.log"),
    ):
        pytest.fail("it is prepared")
    missed = [event for event in heard if isinstance(event, Missed)]
    assert missed[0] == Missed(SH, f"the overlay of {SH}", ("sources: sh/test.sh changed",))
    assert missed[1].what == f"the image of {SH}"
    assert re.fullmatch(r"overlays\[0\]: [0-9a-f]{12} → [0-9a-f]{12}", missed[1].reasons[0])
    assert not layout.runs_dir.exists()


def test_images_that_are_not_kept(root: Path, store: Store, tmp_path: Path) -> None:
    """Without images in the store, a second run builds the image, and says that it had been built."""
    wanted_keys: list[explain.Wanted] = []
    for _ in range(2):
        frugal = Store(store.root, writes=Policy(images=False))
        prepared(root, frugal, "shell", tmp_path)
        assert {kind for kind, _, _ in store.entries()} == {Kind.OVERLAY}
    with session_of(root, store) as session:
        wanted_keys = explain.wanted(case_of(root, "shell"), session)
    image = wanted_keys[-1]
    assert store.notes.why_missed(Kind.IMAGE, image.key, image.made_for) == ["built before, and not kept"]
