"""New workspaces and cases; what is read out of a tree that was written for axbuild. Nothing is ever overwritten."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config import load, schema, workspace_file
from qcase.errors import UsageError
from qcase.inputs import lint, new_case
from qcase.model import Pipeline
from qcase.suite import catalogue, discover, ktest_template, new_workspace
from qcase.suite.cases import Case, Workspace

CASE = 'args = ["-nographic"]\nshell_prefix = "root@starry:"\n'


def put(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def workspace(root: Path, text: str = '[suite]\nroot = "suite"\n') -> Workspace:
    put(root, "qcase.toml", text)
    return Workspace.open(root)


# ---- new cases


@pytest.mark.parametrize("pipeline", list(Pipeline))
def test_a_new_case_is_one_of_its_pipeline_without_a_warning(pipeline: Pipeline, tmp_path: Path) -> None:
    opened = workspace(tmp_path, '[suite]\nroot = "suite"\n[guest.riscv64]\nhostname = "other"\n')
    arches = list(ktest_template.KERNELS) if pipeline is Pipeline.KTEST else list(Arch)
    made = new_case.new_case(opened, "fs/Some-test.2", pipeline, arches)
    written = new_workspace.write(made.folder, made.plan)
    assert all(path.is_file() for path in written)
    assert made.command == "qcase run fs/Some-test.2"
    for arch in arches:
        (case,) = discover.discover(opened, arch, arch.default_target).cases
        assert isinstance(case, Case), case
        assert (case.display_name, case.pipeline, case.warnings) == ("normal/fs/Some-test.2", pipeline, ())
        prompt = "root@other:" if arch is Arch.RISCV64 else "root@qcase:"
        assert case.config.shell_prefix == (None if pipeline is Pipeline.KTEST else prompt)  # a kernel alone has no shell
        assert len(case.subcases) == (2 if pipeline is Pipeline.GROUPED else 0)
    scripts = [path for path in written if path.parent.name in ("sh", "python")]
    assert all(os.access(path, os.X_OK) for path in scripts)


@pytest.mark.parametrize("pipeline", [Pipeline.PLAIN, Pipeline.SH, Pipeline.C, Pipeline.RUST, Pipeline.PYTHON])
def test_a_new_case_in_steps(pipeline: Pipeline, tmp_path: Path) -> None:
    opened = workspace(tmp_path)
    made = new_case.new_case(opened, "a", pipeline, [Arch.AARCH64], steps=True)
    new_workspace.write(made.folder, made.plan)
    (case,) = discover.discover(opened, Arch.AARCH64, Arch.AARCH64.default_target).cases
    assert isinstance(case, Case), case
    assert (case.pipeline, case.warnings, case.config.stops_at_reset) == (pipeline, (), True)
    assert [step.expect for step in case.config.steps] == ["", "reboot", ""]
    assert {step.prompt for step in case.config.steps} == {"root@qcase:"}
    assert [one for one in lint.lint(tmp_path) if one.problem.file.startswith("suite")] == []


@pytest.mark.parametrize("pipeline", [Pipeline.GROUPED, Pipeline.KTEST])
def test_a_pipeline_without_steps(pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--steps cannot stand beside --pipeline"):
        new_case.new_case(workspace(tmp_path), "a", pipeline, [Arch.AARCH64], steps=True)


@pytest.mark.parametrize(
    ("name", "group", "folder", "command"),
    [
        ("a", "", "normal/a", "qcase run a"),
        ("normal/a", "", "normal/a", "qcase run a"),
        ("fs/a", "", "normal/fs/a", "qcase run fs/a"),
        ("stress/a", "", "stress/a", "qcase run --group stress a"),
        ("a", "fresh", "fresh/a", "qcase run --group fresh a"),
    ],
)
def test_where_a_new_case_goes(name: str, group: str, folder: str, command: str, tmp_path: Path) -> None:
    opened = workspace(tmp_path)
    (tmp_path / "suite" / "stress").mkdir(parents=True)
    made = new_case.new_case(opened, name, Pipeline.PLAIN, [Arch.X86_64], group)
    assert made.folder == tmp_path.resolve() / "suite" / folder
    assert made.command == command


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("", "no name for a case"),
        ("/a", "no name for a case"),
        ("../a", "no name for a case"),
        ("a b", "no name for a case"),
        ("-a", "no name for a case"),
        ("a/sh/b", "no folder of a case's name may be called 'sh'"),
        ("old", "is there already, and nothing is overwritten"),
        ("old/a", "is a case, and below a case nothing is searched"),
        ("file", "is there already"),
    ],
)
def test_names_that_no_case_can_have(name: str, wanted: str, tmp_path: Path) -> None:
    opened = workspace(tmp_path)
    put(tmp_path, "suite/normal/old/qemu-x86_64.toml", "mine")
    put(tmp_path, "suite/normal/file", "mine")
    with pytest.raises(UsageError, match=wanted):
        new_case.new_case(opened, name, Pipeline.PLAIN, [Arch.X86_64])


def test_a_case_below_a_build_group_that_is_one_itself(tmp_path: Path) -> None:
    opened = workspace(tmp_path)
    put(tmp_path, "suite/normal/smp/qemu-x86_64.toml")
    put(tmp_path, "suite/normal/smp/build-x86_64-unknown-none.toml")
    assert new_case.new_case(opened, "smp/a", Pipeline.SH, [Arch.X86_64]).folder.name == "a"


def test_what_came_between_is_not_overwritten(tmp_path: Path) -> None:
    opened = workspace(tmp_path)
    made = new_case.new_case(opened, "a", Pipeline.SH, [Arch.X86_64])
    put(tmp_path, "suite/normal/a/mine", "mine")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        new_workspace.write(made.folder, made.plan)
    assert [path.name for path in (tmp_path / "suite" / "normal").rglob("*")] == ["a", "mine"]
    with pytest.raises(UsageError, match="nothing is overwritten"):
        new_workspace.write_new(tmp_path / "qcase.toml", "other")
    assert (tmp_path / "qcase.toml").read_text().startswith("[suite]")


def test_a_new_case_is_for_what_most_cases_are_for(tmp_path: Path) -> None:
    opened = workspace(tmp_path)
    assert new_workspace.usual_arches(opened) == [Arch.X86_64, Arch.AARCH64]
    put(tmp_path, "suite/normal/a/qemu-riscv64.toml")
    put(tmp_path, "suite/normal/b/qemu-riscv64.toml")
    put(tmp_path, "suite/normal/b/qemu-x86_64.toml")
    put(tmp_path, "suite/normal/d/qemu-riscv64.toml")
    assert new_workspace.usual_arches(opened) == [Arch.RISCV64]


# ---- new workspaces


def test_a_workspace_file_means_its_values_and_shows_every_other_key(tmp_path: Path) -> None:
    values: dict[str, object] = {"suite.root": "s", "grouped.prefix": "STARRY", "guest.aarch64.hostname": "starry"}
    values["cache.env"] = ["STARRY_APK_REGION"]
    text = new_workspace.workspace_file(values)
    put(tmp_path, "qcase.toml", text)
    loaded = load.load_workspace_config(tmp_path / "qcase.toml")
    assert loaded.suite.root == "s"
    assert loaded.grouped.all_passed_marker == "STARRY_GROUPED_TESTS_PASSED"
    assert loaded.guest[Arch.AARCH64].hostname == "starry"
    assert loaded.cache.env == ("STARRY_APK_REGION",)
    for key in schema.keys(workspace_file.WorkspaceConfig):
        if key.model is None:
            assert re.search(rf"(?m)^(# )?{key.name} =", text), key.path


def test_the_tree_of_a_kernel_that_uses_axbuild(tmp_path: Path) -> None:
    base = "test-suit/starryos/normal/qemu-smp1"
    put(tmp_path, f"{base}/build-x86_64-unknown-none.toml")
    for name in ("smoke", "syscall", "apk"):
        put(tmp_path, f"{base}/{name}/qemu-x86_64.toml", f'{CASE}fail_regex = ["(?m)^STARRY_GROUPED_TEST_FAILED:"]\n')
    put(tmp_path, f"{base}/apk/qemu-aarch64.toml", CASE.replace("starry", "qcase"))
    put(tmp_path, f"{base}/apk/c/prebuild.sh", 'apk add --root "$STARRY_STAGING_ROOT" "${STARRY_APK_REGION:-china}"\n')
    put(tmp_path, f"{base}/apk/c/CMakeLists.txt", "include_directories(${STARRY_STAGING_ROOT}/usr/include)\n")
    put(tmp_path, "test-suit/starryos/stress/long/qemu-x86_64.toml", CASE)
    put(tmp_path, "test-suit/arceos/rust/display/qemu-x86_64.toml", CASE)
    put(tmp_path, "os/StarryOS/configs/qemu-x86_64.toml", CASE.replace("starry", "elsewhere"))
    put(tmp_path, "target/qemu-x86_64.toml", CASE)
    found = new_workspace.propose(tmp_path)
    assert found is not None
    assert found.values == {
        "suite.root": "test-suit/starryos",
        "grouped.prefix": "STARRY",
        "script_env.prefix": "STARRY",
        "cache.env": ["STARRY_APK_REGION"],
        "guest.x86_64.hostname": "starry",
        "suites.arceos.root": "test-suit/arceos",
        "suites.arceos.default_group": "*",
    }
    said = "\n".join(found.reasons)
    assert "4 folders with qemu-<arch>.toml below test-suit/starryos: 3 in normal, 1 in stress" in said
    assert "1 folder with qemu-<arch>.toml below test-suit/arceos: 1 in rust" in said
    assert found.untranslated == ("not looked at: 1 more below os",)
    assert f"{base}/apk/qemu-x86_64.toml" in said
    assert found.arches == (Arch.X86_64, Arch.AARCH64)
    text = new_workspace.workspace_file(found.values, kernel=Arch.X86_64)
    _, _, kernel = text.partition("# [guest.x86_64.kernel]\n")
    uncommented = "\n".join(line.removeprefix("# ") for line in kernel.splitlines())
    put(tmp_path, "qcase.toml", f"{text}[guest.x86_64.kernel]\n{uncommented}\n")
    recipe = load.load_workspace_config(tmp_path / "qcase.toml").guest[Arch.X86_64].kernel
    assert isinstance(recipe, workspace_file.KernelBuild)
    put(tmp_path, "qcase.toml", text)
    opened = Workspace.open(tmp_path)
    assert [e.display_name for e in catalogue.catalogue(opened).groups["normal"]] == [
        "qemu-smp1/apk",
        "qemu-smp1/smoke",
        "qemu-smp1/syscall",
    ]


@pytest.mark.parametrize(
    ("paths", "root", "default"),
    [
        (["test-suit/normal/a"], "test-suit", None),
        (["tests/x/test-suit/normal/a"], "tests/x/test-suit", None),
        (["test-suit/rust/a", "test-suit/rust/b", "test-suit/c-lib/a"], "test-suit", "rust"),
        (["cases/normal/a", "other/x"], "cases", None),
        (["cases/quick/a"], "cases", "quick"),
    ],
)
def test_where_the_groups_are(paths: list[str], root: str, default: str | None, tmp_path: Path) -> None:
    for path in paths:
        put(tmp_path, f"{path}/qemu-x86_64.toml", CASE.replace("starry", "qcase"))
    found = new_workspace.propose(tmp_path)
    assert found is not None
    assert found.values.get("suite.root") == root
    assert found.values.get("suite.default_group") == default


def test_no_tree_no_proposal(tmp_path: Path) -> None:
    put(tmp_path, "src/main.rs")
    assert new_workspace.propose(tmp_path) is None


def test_git_ignores_what_runs_leave_in_a_new_workspace(tmp_path: Path) -> None:
    assert new_workspace.ignore_results(tmp_path) == ".gitignore: written"
    path = tmp_path / ".gitignore"
    assert path.read_text() == "/target/qcase/\n"
    for ours in ("/target/qcase/\n", "x\ntarget\n", "/target/\n", "/target/*\n"):
        path.write_text(ours)
        assert new_workspace.ignore_results(tmp_path) == ""
        assert path.read_text() == ours
    for ours in ("", "*.o\n", "/target/debug\n"):
        path.write_text(ours)
        assert "add the line /target/qcase/" in new_workspace.ignore_results(tmp_path)
        assert path.read_text() == ours
    path.unlink()
    path.symlink_to("/proc/kmsg")
    assert "add the line" in new_workspace.ignore_results(tmp_path)
