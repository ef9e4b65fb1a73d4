"""Real guests that pass, fail, panic, hang, power off and play tricks, and the verdicts that come of it.

All cases of a workspace run in one `qcase run`, and each test looks at one of them. Those that wait for a timeout run beside
the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qcase.arch import Arch
from tests.vm import workspaces
from tests.vm.workspaces import Outcome, Workspace

pytestmark = pytest.mark.vm

PANICKED_FOR = 10.0  # seconds, two on a quiet machine, from the panic's line to the end of the case
FORTY_TWO = "$((6 * 7))"  # so that the command does not hold what its output does


def quick(workspace: Workspace) -> None:
    case = workspace.case
    case("passes", shell_init_cmd=f"uname -m; echo sum-{FORTY_TWO}", success_regex=["^sum-42$"])
    case(
        "wrong-expectation",
        shell_init_cmd="echo result: $((2 + 3))",
        success_regex=["^result: 4$"],
        fail_regex=["^result: [^4]"],
    )
    case("panics", shell_init_cmd="echo before; echo c > /proc/sysrq-trigger", success_regex=["^never$"])
    case("powers-off", shell_init_cmd="echo going; poweroff -f", success_regex=["^never$"])
    # The typed line ends in PASS, what it prints does not. The fail pattern comes long after a pass on the echo had been ruled.
    case(
        "echo",
        shell_init_cmd=f"echo PA''SS-not; sleep 2; echo ended-{FORTY_TWO} # PASS",
        success_regex=["PASS$"],
        fail_regex=["^ended-42$"],
    )
    case(
        "echo-of-a-failure",
        shell_init_cmd=f"echo fine-{FORTY_TWO} # FAILED",
        success_regex=["^fine-42$"],
        fail_regex=["FAILED"],
    )
    # Each part is written by a process of its own, a second after the last.
    case("split", shell_init_cmd="printf SUC; sleep 1; printf CE''SS; sleep 1; echo", success_regex=["^SUCCESS$"])
    case(
        "long-line",
        shell_init_cmd=f"head -c 204800 /dev/zero | tr '\\0' x; echo -{FORTY_TWO}; echo last-{FORTY_TWO}",
        success_regex=["^x+-42$", "^last-42$"],
        qcase={"match": "all"},
    )
    case(
        "panic-after-success",
        shell_init_cmd=f"echo done-{FORTY_TWO}; echo c > /proc/sysrq-trigger",
        success_regex=["^done-42$"],
    )
    case(
        "oops",
        shell_init_cmd=f"echo '<1>Oops [#1]' > /dev/kmsg; sleep 5; echo done-{FORTY_TWO}",
        success_regex=["^done-42$"],
        qcase={"kernel_trouble": "fail"},
    )
    case("no-command", shell_prefix="", shell_init_cmd="", success_regex=[r"root@qcase:/root# $"])


def limited(workspace: Workspace) -> None:
    commands = ["echo one", "sleep 1000", "sleep 1001 & sleep 1002", "trap '' TERM INT HUP; while :; do :; done", "echo $0 two"]
    workspace.case("group", test_commands=commands, qcase={"command_timeout": 2})


def slow(workspace: Workspace) -> None:
    case = workspace.case
    case("hangs", shell_init_cmd=f"echo asleep-{FORTY_TWO}; sleep 1000", success_regex=["^never$"], timeout=25)
    case("no-prompt", shell_prefix="some-other-prompt>", success_regex=["^never$"], timeout=10)


def on_x86(workspace: Workspace) -> None:
    def case(name: str, **keys: Any) -> None:
        workspace.case(name, arch=Arch.X86_64, **keys)

    case("passes", shell_init_cmd=f"uname -m; echo sum-{FORTY_TWO}", success_regex=["^x86_64\\nsum-42$"])
    case("panics", shell_init_cmd="echo c > /proc/sysrq-trigger", success_regex=["^never$"])
    case("powers-off", shell_init_cmd="poweroff -f", success_regex=["^never$"])
    big = r"""x=$(head -c 20000000 /dev/zero | tr "\0" x); echo f > /proc/sysrq-trigger; sleep 9"""
    printed = "echo BUG: kernel NULL pointer dereference, address: 0000000000000008; echo Call Trace:"
    case(
        "out-of-memory",
        shell_init_cmd=f"dmesg -n 8; {printed}; sh -c '{big}'; sleep 1; echo alive-{FORTY_TWO}",
        success_regex=["^alive-42$"],
    )
    case(
        "split-and-long",
        shell_init_cmd=f"head -c 204800 /dev/zero | tr '\\0' x; printf -; sleep 1; echo SUC''CESS-{FORTY_TWO} # SUCCESS-42",
        success_regex=["^x+-SUCCESS-42$"],
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, test_cache: Path) -> dict[str, Outcome]:
    workspaces.provide(test_cache)
    folder = tmp_path_factory.mktemp("verdicts")
    made = {}
    for name, fill in (("quick", quick), ("slow", slow), ("x86", on_x86), ("limited", limited)):
        made[name] = Workspace.make(folder / name)
        fill(made[name])
    sleeping = workspaces.start(made["slow"], store=test_cache)
    try:
        outcomes = {
            "quick": workspaces.run(made["quick"], store=test_cache),
            "x86": workspaces.run(made["x86"], store=test_cache, arch=Arch.X86_64),
            "limited": workspaces.run(made["limited"], store=test_cache),
        }
        outcomes["slow"] = sleeping.outcome()
    finally:
        sleeping.child.kill()
        sleeping.child.wait()
    return outcomes


@pytest.fixture(scope="module")
def quickly(outcomes: dict[str, Outcome]) -> Outcome:
    return outcomes["quick"]


def took_after_the_match(case: dict[str, Any]) -> float:
    times = case["times"]
    return float(times["total"] - times["prepare"] - times["boot"] - times["command"])


def test_all_of_them(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["quick"].verdicts == {
        "echo": "fail",
        "echo-of-a-failure": "pass",
        "long-line": "pass",
        "no-command": "pass",
        "oops": "fail",
        "panic-after-success": "panic",
        "panics": "panic",
        "passes": "pass",
        "powers-off": "exited",
        "split": "pass",
        "wrong-expectation": "fail",
    }
    assert outcomes["slow"].verdicts == {"hangs": "timeout", "no-prompt": "timeout"}
    assert outcomes["x86"].verdicts == {
        "out-of-memory": "pass",
        "panics": "panic",
        "passes": "pass",
        "powers-off": "exited",
        "split-and-long": "pass",
    }
    for outcome in outcomes.values():
        assert outcome.exit_code == 1
        assert outcome.report is not None
        assert outcome.report["exit_code"] == 1
        assert outcome.report["interrupted"] is False
        for case in outcome.report["cases"]:
            assert case["fault"] == ("none" if case["verdict"] == "pass" else "case")
            if case["case"] != "normal/group":
                assert (case["pipeline"], case["cache"]) == ("plain", "none")


def test_a_wrong_expectation(quickly: Outcome) -> None:
    case = quickly.case("wrong-expectation")
    assert case["pattern"] == "^result: [^4]"
    assert case["excerpt"] == "result: 5"
    assert case["reason"] == "matched the fail pattern '^result: [^4]'"
    assert case["phase"] == "command"
    assert "result: 5" in case["console_tail"]
    shown = quickly.stdout[quickly.stdout.index("fail         normal/wrong-expectation") :]
    assert "matched the fail pattern '^result: [^4]'\n             > result: 5\n" in shown
    assert "target/qcase/logs/aarch64/normal/wrong-expectation/console.log" in shown


def test_the_command_that_repeats_the_failures(quickly: Outcome) -> None:
    line = next(line for line in quickly.stdout.splitlines() if line.startswith("repeat just the failures: "))
    words = line.partition(": ")[2].split()
    assert words[:2] == ["qcase", "run"]
    assert [word for word in words if word.startswith("normal/")] == [
        f"normal/{name}" for name in ("echo", "oops", "panic-after-success", "panics", "powers-off", "wrong-expectation")
    ]


@pytest.mark.parametrize("which", ["quick", "x86"])
def test_a_panic(which: str, outcomes: dict[str, Outcome]) -> None:
    case = outcomes[which].case("panics")
    assert "Kernel panic - not syncing: sysrq triggered crash" in case["excerpt"]
    assert case["reason"] == "the guest's kernel panicked"
    assert case["phase"] == "command"
    assert took_after_the_match(case) < PANICKED_FOR


def test_a_panic_right_after_the_success(quickly: Outcome) -> None:
    assert "Kernel panic" in quickly.case("panic-after-success")["excerpt"]


def test_what_a_kernel_reports_of_itself(outcomes: dict[str, Outcome]) -> None:
    """A real OOM kill is told with its lines; what the program prints beside it is not."""
    case = outcomes["x86"].case("out-of-memory")
    (trouble,) = case["kernel_trouble"]
    assert trouble["kind"] == "out-of-memory"
    assert "invoked oom-killer" in trouble["line"]
    assert any("Out of memory: Killed process" in line for line in trouble["block"])
    assert case["warnings"] == [f"kernel trouble (out-of-memory): {trouble['line']}"]
    assert case["warnings"][0] in outcomes["x86"].stdout
    case = outcomes["quick"].case("oops")
    assert case["reason"] == "the guest's kernel reported trouble: Oops [#1]"
    assert case["times"]["command"] < 4
    assert outcomes["quick"].case("panics")["kernel_trouble"] == []


def test_a_hang(outcomes: dict[str, Outcome]) -> None:
    case = outcomes["slow"].case("hangs")
    assert case["phase"] == "command"
    assert "'^never$' within 25 s" in case["reason"]
    assert 25 <= case["times"]["boot"] + case["times"]["command"] < 60
    assert case["console_tail"][-1] == "asleep-42"


def test_a_prompt_that_never_comes(outcomes: dict[str, Outcome]) -> None:
    case = outcomes["slow"].case("no-prompt")
    assert case["phase"] == "boot"
    assert case["reason"] == "the prompt 'some-other-prompt>' did not come within 10 s"
    assert case["times"]["command"] is None


@pytest.mark.parametrize("which", ["quick", "x86"])
def test_a_power_off(which: str, outcomes: dict[str, Outcome]) -> None:
    case = outcomes[which].case("powers-off")
    assert case["reason"] == "QEMU ended before a verdict, status 0: the guest powered off"
    assert case["phase"] == "command"


def test_a_command_of_a_group_that_takes_too_long_is_killed_in_the_guest_and_the_rest_runs(outcomes: dict[str, Outcome]) -> None:
    case = outcomes["limited"].case("group")
    assert case["verdict"] == "fail"
    assert case["reason"].startswith("3 of 5 commands failed: sleep 1000 (status 124), ")
    assert [s["status"] for s in case["subtests"]] == ["pass", "fail", "fail", "fail", "pass"]
    for subtest in case["subtests"][1:4]:
        assert (subtest["exit_status"], subtest["reason"]) == (124, "killed after its limit of 2 s")
        assert subtest["seconds"] >= 1.5


def test_the_echo_of_a_command_does_not_decide(quickly: Outcome) -> None:
    assert quickly.case("echo")["pattern"] == "^ended-42$"
    assert quickly.case("echo-of-a-failure")["pattern"] == "^fine-42$"


def test_a_line_of_200_kib_reaches_the_log_whole(outcomes: dict[str, Outcome], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = next(tmp_path_factory.getbasetemp().glob("verdicts*"))
    for which, arch, name in (("quick", "aarch64", "long-line"), ("x86", "x86_64", "split-and-long")):
        case = outcomes[which].case(name)
        assert case["console_log"] == f"target/qcase/logs/{arch}/normal/{name}/console.log"
        log = (root / which / case["console_log"]).read_bytes()
        assert b"x" * 204_800 + b"-" in log
        assert len(case["excerpt"]) <= 240
