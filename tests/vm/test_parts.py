"""A subcase by itself, and what failed the last time: chosen by name, run in a guest, remembered."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm import workspaces
from tests.vm.workspaces import Workspace, run

pytestmark = pytest.mark.vm


def test_a_subcase_runs_alone_and_what_failed_is_remembered(tmp_path: Path, test_cache: Path) -> None:
    workspace = Workspace.make(tmp_path / "w")
    scripts = {
        "good/sh/good": "#!/bin/sh\necho fine\n",
        "bad/sh/bad": "#!/bin/sh\nexit 3\n",
        "vague/sh/vague": "#!/bin/sh\n",
    }
    workspace.case("group", scripts, test_commands=["good", "bad", "good --twice && true"])
    workspace.case("plain", shell_init_cmd="echo hel''lo", success_regex=["^hello$"])
    store = workspaces.fresh_store(tmp_path / "store", test_cache)

    alone = run(workspace, "group/good", store=store)
    assert alone.exit_code == 0, alone.said
    assert [test["command"] for test in alone.case("group/good")["subtests"]] == ["good", "good --twice && true"]
    assert "normal/group/good" in alone.stdout

    whole = run(workspace, store=store)
    assert whole.exit_code == 1
    assert whole.verdicts == {"group": "fail", "plain": "pass"}

    again = run(workspace, "--failed", store=store)
    assert again.verdicts == {"group": "fail"}
    both = run(workspace, "group/good", "group/bad", store=store)
    assert both.verdicts == {"group/good": "pass", "group/bad": "fail"}
    assert "qcase run" in both.stdout
    assert both.stdout.rstrip().endswith("normal/group/bad")

    unclear = run(workspace, "group/vague", store=store)
    assert unclear.exit_code == 2
    assert "no command of the group names a program of this subcase" in unclear.stdout

    none = run(workspace, "plain", "--failed", store=store)
    assert none.exit_code == 0
    assert "nothing to run" in none.said
