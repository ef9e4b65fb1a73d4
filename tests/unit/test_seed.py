"""The five unit tests of the module that this project began with, under their own names.

The two about saving an image are in `test_store.py`, next to the store's other tests.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from qcase import prepare, suite
from qcase.config import GroupedRunner
from qcase.content import remove_tree
from qcase.events import Event
from qcase.model import Arch, Cache, Pipeline
from qcase.pipelines import grouped
from qcase.store import Store
from tests.unit import test_store

STARRY = GroupedRunner(prefix="STARRY")


def test_resolve_target_dir_uses_workspace_target_directory(tmp_path: Path) -> None:
    assert prepare.resolve_target_dir(tmp_path, "x86_64-unknown-none") == tmp_path / "target" / "x86_64-unknown-none"


def test_prepare_case_assets_plain_case_uses_shared_rootfs_with_snapshot(tmp_path: Path) -> None:
    for name in ("rootfs.img", "kernel"):
        (tmp_path / name).write_bytes(b"not read")
    (tmp_path / "qcase.toml").write_text('[suite]\nroot = "suite"\n[guest.x86_64]\nrootfs = "rootfs.img"\nkernel = "kernel"\n')
    folder = tmp_path / "suite" / "normal" / "case"
    folder.mkdir(parents=True)
    (folder / "qemu-x86_64.toml").write_text('shell_prefix = "#"\nshell_init_cmd = "true"\nsuccess_regex = ["x"]\n')
    workspace = suite.Workspace.open(tmp_path)
    target = Arch.X86_64.default_target
    discovery = suite.discover(workspace, Arch.X86_64, target)
    case = discovery.cases[0]
    assert isinstance(case, suite.Case)
    heard: list[Event] = []
    layout = prepare.case_asset_layout(tmp_path, target, case.display_name)
    with (
        prepare.Session(workspace, Arch.X86_64, target, Store(tmp_path / "store"), heard.append) as session,
        prepare.prepare_case_assets(case, layout, session, tmp_path / "build.log") as prepared,
    ):
        assert prepared.image == tmp_path / "rootfs.img"
        assert prepared.pipeline is Pipeline.PLAIN
        assert prepared.cache is Cache.NONE
        assert prepared.extra_args == ("-snapshot",)
        assert not layout.run_dir.exists()
    assert heard == []


def test_save_rootfs_cache_image_is_noop_in_ci_and_writes_when_enabled(tmp_path: Path) -> None:
    test_store.test_save_rootfs_cache_image_is_noop_in_ci(tmp_path / "ci", tmp_path / "ci-run")
    test_store.test_save_rootfs_cache_image_writes_when_enabled(tmp_path / "store", tmp_path / "run")
    remove_tree(tmp_path / "store")


def run_group(commands: list[str], tmp_path: Path) -> tuple[int, list[str]]:
    """Run a group's script with this machine's shell: exit status and lines."""
    path = grouped.write_runner_script(tmp_path, commands, STARRY)
    assert path == tmp_path / "usr/bin/starry-run-case-tests"
    assert path.stat().st_mode & 0o777 == 0o755
    done = subprocess.run([path], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_grouped_runner_script_runs_all_commands_and_reports_summary(tmp_path: Path) -> None:
    status, lines = run_group(["echo first", "exit 3", "echo 'it'\"'\"'s last'"], tmp_path)
    assert status == 1
    assert lines == [
        "STARRY_GROUPED_TEST_BEGIN: echo first",
        "first",
        "STARRY_GROUPED_TEST_PASSED: echo first",
        "STARRY_GROUPED_TEST_BEGIN: exit 3",
        "STARRY_GROUPED_TEST_FAILED: exit 3 status=3",
        "STARRY_GROUPED_TEST_BEGIN: echo 'it'\"'\"'s last'",
        "it's last",
        "STARRY_GROUPED_TEST_PASSED: echo 'it'\"'\"'s last'",
        "STARRY_GROUPED_TESTS_FAILED",
    ]


def test_grouped_runner_script_where_all_pass(tmp_path: Path) -> None:
    status, lines = run_group(["true", "x=1\necho $x"], tmp_path)
    assert status == 0
    assert lines == [
        "STARRY_GROUPED_TEST_BEGIN: true",
        "STARRY_GROUPED_TEST_PASSED: true",
        "STARRY_GROUPED_TEST_BEGIN: x=1 ...",
        "1",
        "STARRY_GROUPED_TEST_PASSED: x=1 ...",
        "STARRY_GROUPED_TESTS_PASSED",
    ]
