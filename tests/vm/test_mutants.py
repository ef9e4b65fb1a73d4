"""Kernels, programs and suites that are broken on purpose, and the one verdict that is right for each (tests/mutants)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import pytest

from qcase.arch import Arch
from qcase.guests import guest
from tests import kernel, mutants
from tests.mutants import Mutant, Row, Suite
from tests.vm import workspaces
from tests.vm.test_errors import in_namespace
from tests.vm.workspaces import Outcome, Workspace

pytestmark = [pytest.mark.vm, pytest.mark.container]

KERNELS = mutants.mutants("kernels")
PROGRAMS = mutants.mutants("programs")
SUITES = mutants.suites()
AnyRow = TypeVar("AnyRow", bound=Row)


def test_the_tables() -> None:
    every = mutants.every()
    assert len(every) >= 60
    assert [name for name, count in Counter(row.name for row in every).items() if count > 1] == []
    assert all(row.broken.endswith(".") for row in every)
    kinds = Counter(row.kind for row in every)
    assert set(kinds) == {*mutants.LISTED, *mutants.OTHERS}
    assert [kind for kind in mutants.LISTED if kinds[kind] < 2] == [], "each listed kind has two mutants"


def selected(request: pytest.FixtureRequest, table: Sequence[AnyRow]) -> list[AnyRow]:
    """The rows of a table whose tests run: one that is looked at by itself boots alone."""
    chosen = {item.callspec.params.get("row") for item in request.session.items if hasattr(item, "callspec")}
    return [row for row in table if row in chosen]


def show(row: Row, case: Mapping[str, Any]) -> str:
    """What a person wants to see of a mutant that was judged wrong."""
    tail = "\n".join(f"  | {line}" for line in case["console_tail"][-25:])
    return f"{row.broken}\n{case['verdict']}: {case['reason']}\n{tail}"


# --- kernels --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernel_outcomes(
    request: pytest.FixtureRequest, kernels: Mapping[Arch, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Mapping[Arch, Outcome], Path]:
    """What came of the kernels, and where their workspaces are."""
    folder = tmp_path_factory.mktemp("kernels")
    outcomes = {}
    for arch in kernel.ARCHES:
        made = kernel.workspace(folder / arch, kernels)
        chosen = [row for row in selected(request, KERNELS) if row.arch is arch]
        for row in chosen:
            boot = ["-append", f"qk={row.boot}"] if row.boot else []
            args = [*kernel.ARGS[arch], *row.case.get("args", ()), *boot]
            kernel.case(made, row.name, row.types, arch=arch, **{"fail_regex": ["FAIL"], **row.case, "args": args})
        if chosen:
            outcomes[arch] = workspaces.run(made, "--jobs", "4", store=folder / "store", arch=arch)
    return outcomes, folder


@pytest.mark.parametrize("row", KERNELS, ids=lambda row: row.name)
def test_a_kernel(row: Mutant, kernel_outcomes: tuple[Mapping[Arch, Outcome], Path]) -> None:
    outcomes, folder = kernel_outcomes
    case = outcomes[row.arch].case(row.name)
    assert row.right.wrong(case) == [], show(row, case)
    if row.right.without:
        (command,) = folder.glob(f"{row.arch}/target/qcase/logs/*/normal/{row.name}/qemu.sh")
        assert row.right.without not in command.read_text()


# --- programs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs(request: pytest.FixtureRequest, test_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    workspaces.provide(test_cache)
    folder = tmp_path_factory.mktemp("programs")
    made = Workspace.make(folder / "w")
    for row in selected(request, PROGRAMS):
        keys = {"fail_regex": ["^FAIL"], **row.case}
        if "test_commands" not in keys:
            keys = {"shell_init_cmd": row.types, "success_regex": ["^PASS$"], **keys}
        made.case(row.name, row.files, **keys)
    junit = folder / "junit.xml"
    return workspaces.run(made, "--jobs", "3", "--junit", str(junit), store=test_cache), junit


@pytest.mark.parametrize("row", PROGRAMS, ids=lambda row: row.name)
def test_a_program(row: Mutant, programs: tuple[Outcome, Path]) -> None:
    outcome, junit = programs
    case = outcome.case(row.name)
    assert row.right.wrong(case) == [], show(row, case)
    tests = [test for test in ElementTree.parse(junit).iter("testcase") if row.name in test.get("classname", "").split(".")]
    names = {(test.get("classname"), test.get("name")) for test in tests}
    assert len(names) == len(tests), "JUnit has two tests of one name"
    if case["subtests"]:
        assert len(tests) >= len(case["subtests"])


# --- suites ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suites(
    request: pytest.FixtureRequest, kernels: Mapping[Arch, Path], test_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Future[tuple[Outcome, list[str]]]]:
    workspaces.provide(test_cache)
    folder = tmp_path_factory.mktemp("suites")
    with ThreadPoolExecutor(3) as several:
        return {row.name: several.submit(play, row, folder, kernels, test_cache) for row in selected(request, SUITES)}


def play(row: Suite, folder: Path, kernels: Mapping[Arch, Path], test_cache: Path) -> tuple[Outcome, list[str]]:
    """Make a suite and run it: what came of it, and which files it changed that it must not."""
    root = folder / row.name
    made = Workspace.make(root) if row.linux else kernel.workspace(root, kernels)
    for name, keys in row.cases.items():
        if row.linux:
            args = [*workspaces.ARGS[Arch.AARCH64], *keys.get("args", ())]
            made.case(name, **{"success_regex": ["^PASS$"], **keys, "args": args})
            continue
        for arch in kernel.ARCHES:
            typed = keys.get("shell_init_cmd", "pass")
            kernel.case(made, name, typed, arch=arch, **{key: value for key, value in keys.items() if key != "shell_init_cmd"})
    for path, text in row.files.items():
        put(root, path, text, kernels, test_cache)
    if row.guest:
        configure(root / "qcase.toml", row.guest)
    if row.edits:
        commit(root)
    for path, text in row.edits.items():
        with (root / path).open("a") as file:
            file.write(text)
    before = {path: written(root / path) for path in row.unchanged}
    prefix = in_namespace(f'mount -t tmpfs -o size={row.room} none "{root}.outside/tmp"') if row.room else ()
    outcome = workspaces.run(
        made, *row.arguments, store=test_cache, arch=None if "--arch" in row.arguments else Arch.AARCH64, prefix=prefix
    )
    return outcome, [path for path, state in before.items() if state != written(root / path)]


def put(root: Path, name: str, text: str, kernels: Mapping[Arch, Path], test_cache: Path) -> None:
    """Make a file of a workspace."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if text == "@guest":
        source = guest.alpine_guest(Arch.AARCH64, test_cache, emit=lambda _: None).rootfs
        subprocess.run(["cp", "--sparse=always", source, path], check=True)
        path.chmod(0o644)
    elif text == "@kernel":
        shutil.copyfile(kernels[Arch.AARCH64], path)
    elif text.startswith("@-> "):
        path.symlink_to(text.removeprefix("@-> "))
    elif text.startswith("@"):
        shutil.copyfile(root / text[1:], path)
    else:
        path.write_text(text, encoding="utf-8")


def configure(path: Path, keys: Mapping[str, str]) -> None:
    """Set keys of the guest in a workspace's file, in place of those that it has."""
    begin, mark, rest = path.read_text().partition(f"[guest.{Arch.AARCH64}]\n")
    table, gap, others = rest.partition("\n\n")
    kept = [line for line in table.splitlines() if line.partition(" = ")[0] not in keys]
    lines = [*kept, *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    path.write_text(begin + mark + "\n".join(lines) + "\n" + gap + others)


def commit(root: Path) -> None:
    """Make a repository of a workspace."""
    git = ["git", "-C", str(root), "-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True, env={"PATH": os.environ["PATH"], "HOME": str(root)})


def written(path: Path) -> tuple[int, int]:
    """What changes when somebody writes into a file. Its blocks change by themselves, when the disk takes what was written."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


@pytest.mark.parametrize("row", SUITES, ids=lambda row: row.name)
def test_a_suite(row: Suite, suites: Mapping[str, Future[tuple[Outcome, list[str]]]]) -> None:
    outcome, changed = suites[row.name].result()
    cases = outcome.report["cases"] if outcome.report is not None else []
    names = [case["case"].removeprefix("normal/") for case in cases]
    if any(" " in name for name in row.right.verdicts):
        names = [f"{name} {case['arch']}" for name, case in zip(names, cases, strict=True)]
    verdicts = {name: case["verdict"] for name, case in zip(names, cases, strict=True)}
    assert (verdicts, outcome.exit_code) == (row.right.verdicts, row.right.exit_code), f"{row.broken}\n{outcome.said}"
    assert [row.right.reason in case["reason"] for case in cases] == [True] * len(cases), outcome.said
    assert changed == [], "written into"
