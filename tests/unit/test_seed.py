"""The five unit tests of the module that this project began with, and what became of each of its functions."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config.workspace_file import GroupedRunner
from qcase.events import Event
from qcase.host.crash_cleanup import remove_tree
from qcase.host.trees import Tree
from qcase.model import Cache, Pipeline
from qcase.pipelines import group_script
from qcase.prepare import prepare_case, run_folders
from qcase.prepare.session import Session
from qcase.store.store import Store
from qcase.suite import cases, discover
from tests.conftest import ROOT
from tests.processes import test_store

STARRY = GroupedRunner(prefix="STARRY")


def test_resolve_target_dir_uses_workspace_target_directory(tmp_path: Path) -> None:
    assert run_folders.resolve_target_dir(tmp_path, "x86_64-unknown-none") == tmp_path / "target" / "x86_64-unknown-none"


def test_prepare_case_assets_plain_case_uses_shared_rootfs_with_snapshot(tmp_path: Path) -> None:
    for name in ("rootfs.img", "kernel"):
        (tmp_path / name).write_bytes(b"not read")
    (tmp_path / "qcase.toml").write_text('[suite]\nroot = "suite"\n[guest.x86_64]\nrootfs = "rootfs.img"\nkernel = "kernel"\n')
    folder = tmp_path / "suite" / "normal" / "case"
    folder.mkdir(parents=True)
    (folder / "qemu-x86_64.toml").write_text('shell_prefix = "#"\nshell_init_cmd = "true"\nsuccess_regex = ["x"]\n')
    workspace = cases.Workspace.open(tmp_path)
    target = Arch.X86_64.default_target
    discovery = discover.discover(workspace, Arch.X86_64, target)
    case = discovery.cases[0]
    assert isinstance(case, cases.Case)
    heard: list[Event] = []
    layout = run_folders.case_asset_layout(tmp_path, target, case.display_name)
    with (
        Session(workspace, Arch.X86_64, target, Store(tmp_path / "store"), heard.append) as session,
        prepare_case.prepare_case_assets(case, layout, session, tmp_path / "build.log") as prepared,
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
    path = group_script.write_runner_script(Tree(tmp_path), commands, STARRY).host
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


# Every function of the original module, what it is called here, and a test that shows it.
TABLE = {
    "prepare_case_assets": (
        "prepare.prepare_case.prepare_case_assets",
        "container/test_edits.py::test_sources_that_are_edited_between_key_and_build",
    ),
    "prepare_case_assets_sync": (
        "prepare.explain.wanted",
        "unit/prepare/test_explain.py::test_an_edit_moves_the_keys_that_it_concerns_and_no_others",
    ),
    "resolve_case_pipeline": (
        "suite.discover.resolve_pipeline",
        "unit/suite/test_suite.py::test_more_than_one_pipeline_is_an_error_that_names_them_all",
    ),
    "resolve_target_dir": (
        "prepare.run_folders.resolve_target_dir",
        "unit/test_seed.py::test_resolve_target_dir_uses_workspace_target_directory",
    ),
    "case_asset_layout": (
        "prepare.run_folders.case_asset_layout",
        "unit/test_seed.py::test_a_run_folder_has_a_name_of_its_own_each_time",
    ),
    "next_case_run_id": (
        "prepare.run_folders.next_case_run_id",
        "unit/test_seed.py::test_a_run_folder_has_a_name_of_its_own_each_time",
    ),
    "rootfs_cache_image_path": (
        "store.store.Store.folder",
        "unit/test_seed.py::test_save_rootfs_cache_image_is_noop_in_ci_and_writes_when_enabled",
    ),
    "case_asset_cache_key": (
        "store.keys.overlay_key",
        "unit/store/test_keys.py::test_each_part_of_an_overlays_key_counts_and_is_named",
    ),
    "hash_tree": ("store.listings.tree_listing", "torture/test_keys.py::test_a_digest_is_that_of_the_same_files_and_no_others"),
    "hash_token": ("canonical.canonical", "unit/store/test_keys.py::test_two_values_never_share_their_bytes"),
    "hash_rootfs_fingerprint": (
        "disk.image_digest.remembered_digest",
        "processes/test_rootfs.py::test_every_byte_and_the_size_count",
    ),
    "save_rootfs_cache_image": (
        "store.store.Store.get_or_build",
        "processes/test_store.py::test_save_rootfs_cache_image_writes_when_enabled",
    ),
    "is_valid_rootfs_cache_image": (
        "store.store.Store.reader",
        "processes/test_store.py::test_a_broken_entry_is_thrown_away_with_a_warning",
    ),
    "rootfs_cache_write_enabled": ("store.policy.policy", "processes/test_store.py::test_policy"),
    "is_no_space_left": ("store.store.Store.get_or_build", "processes/test_store.py::test_a_full_store_is_no_failure"),
    "copy_file_fast": ("disk.sparse_files.copy_file_fast", "processes/test_rootfs.py::test_a_copy_has_the_content_and_the_holes"),
    "write_grouped_case_runner_script": (
        "pipelines.group_script.write_runner_script",
        "unit/test_seed.py::test_grouped_runner_script_runs_all_commands_and_reports_summary",
    ),
    "apply_grouped_qemu_config": (
        "run.boot_plan.group_rules",
        "processes/test_pipelines.py::test_a_groups_rules_replace_command_and_success_and_keep_the_cases_fail_patterns",
    ),
    "prepare_sh_case_assets_sync": (
        "pipelines.sh.build",
        "processes/test_pipelines.py::test_sh_installs_every_regular_file_executable",
    ),
    "prepare_c_case_assets_sync": ("pipelines.c.build", "vm/test_run.py::test_the_first_run"),
    "prepare_grouped_case_assets_sync": (
        "prepare.prepare_case.prepare_case_assets",
        "vm/test_run.py::test_every_command_of_a_group_is_a_subtest",
    ),
    "run_qemu_with_prepared_case_assets": ("run.run_case.run_case", "vm/test_run.py::test_the_second_run_builds_nothing"),
    "remove_case_rootfs_copy": (
        "store.store.Store.get_or_build",
        "processes/test_store.py::test_save_rootfs_cache_image_is_noop_in_ci",
    ),
    "remove_case_run_dir": (
        "prepare.run_folders.remove",
        "processes/test_runs.py::test_a_folder_that_cannot_be_removed_is_a_warning",
    ),
    "GroupedCaseRunnerConfig": (
        "config.workspace_file.GroupedRunner",
        "unit/config/test_config.py::test_each_grouped_field_can_be_set",
    ),
    "CaseScriptEnvConfig": (
        "config.workspace_file.ScriptEnv",
        "unit/config/test_config.py::test_each_script_variable_can_be_set",
    ),
    "cache_env_vars": (
        "config.workspace_file.CacheConfig",
        "unit/prepare/test_explain.py::test_a_variable_of_cache_env_moves_every_key_and_no_other_variable_does",
    ),
}


@pytest.mark.parametrize("original", TABLE)
def test_a_function_of_the_original_has_a_name_and_a_test(original: str) -> None:
    ours, shown_by = TABLE[original]
    module, *attributes = ours.rsplit(".", 2 if ".Store." in ours else 1)
    found = importlib.import_module(f"qcase.{module}")
    for attribute in attributes:
        found = getattr(found, attribute)
    file, _, test = shown_by.partition("::")
    assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_a_run_folder_has_a_name_of_its_own_each_time(tmp_path: Path) -> None:
    layouts = [run_folders.case_asset_layout(tmp_path, "x86_64-unknown-none", "normal/smoke") for _ in range(2)]
    names = [layout.run_dir.name for layout in layouts]
    assert re.fullmatch(rf"{os.getpid()}-\d+ {os.getpid()}-\d+", " ".join(names))
    assert names[0] != names[1]
    assert layouts[0].runs_dir == tmp_path / "target/x86_64-unknown-none/qemu-cases/normal/smoke/runs"
    assert list(tmp_path.iterdir()) == []
