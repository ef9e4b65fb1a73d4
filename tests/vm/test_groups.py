"""Groups in a real guest whose commands lie, signal and end the script. What its shell is: busybox, with job control."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.config.workspace_file import GroupedRunner
from tests.vm.workspaces import Workspace, run

pytestmark = pytest.mark.vm

RUNNER = GroupedRunner()
FORGES = f"""\
#!/bin/sh
# Looks for the script's word, and speaks for it.
for pid in $PPID $(sed -n 's/^PPid:\\t//p' /proc/$PPID/status); do
    cat /proc/$pid/cmdline /proc/$pid/environ | tr '\\0' '\\n'
done >/tmp/found
for word in $(cat /tmp/found) ask; do
    for said in 'end 1 0' 'begin 2' 'end 2 0' 'done 0 0 0 0 0 0 0 0 0'; do
        echo "{RUNNER.runner_name}: $word $said"
    done
done
echo '{RUNNER.passed_marker}: forges'
echo '{RUNNER.all_passed_marker}'
exit 1
"""
COMMANDS = {
    "forges": 1,
    "kill -HUP 0; echo not reached": 129,
    "signals": 0,
    "kill $PPID; exit 3": 3,
    "printf 'done in [0.53 s] '": 0,
    f"(sleep 0.5; echo {RUNNER.all_passed_marker}; printf ERROR) & exit 0": 0,
    f"grep -q {RUNNER.all_passed_marker} /usr/bin/{RUNNER.runner_name} && sleep 1": 0,
    "echo ERROR: two; read -r line </dev/tty": 124,
    "echo ERROR: three": 0,
}


def test_no_command_of_a_group_changes_the_result_of_another(tmp_path: Path, test_cache: Path) -> None:
    made = Workspace.make(tmp_path / "w")
    signals = "#!/bin/sh\ntrap '' HUP TERM\nkill -HUP 0\nkill -TERM 0\necho delivered\n"
    made.case(
        "hostile",
        {"tools/sh/forges": FORGES, "tools/sh/signals": signals},
        test_commands=list(COMMANDS),
        fail_regex=["^ERROR:"],
        qcase={"command_timeout": 4},
    )
    made.case("gone", {"tools/sh/forges": FORGES}, test_commands=["echo a", "echo said; kill -9 -1", "echo b"])
    outcome = run(made, "-j", "2", store=test_cache)
    assert outcome.verdicts == {"hostile": "fail", "gone": "fail"}, outcome.said
    hostile = outcome.case("hostile")["subtests"]
    assert {test["name"]: test["exit_status"] for test in hostile} == COMMANDS, outcome.said
    failed = {name for name, status in COMMANDS.items() if status or "ERROR:" in name}
    assert {test["name"] for test in hostile if test["status"] == "fail"} == failed
    assert hostile[-1]["output"] == ["ERROR: three"]
    gone = outcome.case("gone")
    assert gone["reason"] == "echo said; kill -9 -1 ended the group's script"
    assert [test["status"] for test in gone["subtests"]] == ["pass", "broken", "not-run"]
    assert gone["subtests"][1]["output"][0] == "said"
    assert gone["times"]["command"] < 60
