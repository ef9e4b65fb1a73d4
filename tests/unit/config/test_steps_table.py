"""Steps in a case's file: what they become, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.config.case_file import CaseConfig, Placeholders
from qcase.config.load import load_case_config
from qcase.errors import ConfigError, Problem

OWN = "[[qcase.steps]]\n"
THEIRS = "[[shell_check_steps]]\n"
ENDS = "success_regex = ['^ok$']\n"


def case(folder: Path, text: str, **more: object) -> CaseConfig:
    path = folder / "qemu-x86_64.toml"
    path.write_text(text)
    return load_case_config(path, placeholders=Placeholders(folder, **more))  # type: ignore[arg-type]


def problems(folder: Path, text: str, **more: object) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        case(folder, text, **more)
    return list(caught.value.problems)


def test_steps_of_ostool(tmp_path: Path) -> None:
    text = f"""
[[shell_check_steps]]
{ENDS}
[[shell_check_steps]]
shell_prefix = " root@x: "
shell_cmd = "a ${{workspace}}"
[[shell_check_steps]]
shell_cmd = "b"
success_regex = ["x", "y"]
fail_regex = ["z"]
timeout = 5
"""
    first, second, third = case(tmp_path, text).steps
    assert (first.name, first.prompt, first.command, first.success) == ("wait for ^ok$", None, None, ("^ok$",))
    assert (second.prompt, second.command, second.success) == ("root@x:", f"a {tmp_path}", ())
    assert (third.prompt, third.command, third.success, third.fail, third.timeout) == ("root@x:", "b", ("x", "y"), ("z",), 5.0)


def test_steps_as_tables_over_several_lines(tmp_path: Path) -> None:
    """TOML 1.1, which ostool reads: such tables stand in suites."""
    text = """
shell_check_steps = [
    {
        shell_prefix = "root@x:",
        shell_cmd = "a",
        success_regex = ["^x$"],
    },
]
"""
    (step,) = case(tmp_path, text).steps
    assert (step.prompt, step.command, step.success) == ("root@x:", "a", ("^x$",))


def test_steps_of_ones_own(tmp_path: Path) -> None:
    text = f"""
[[qcase.steps]]
name = "log in"
prompt = "login:"
command = "root"
[[qcase.steps]]
send = "\\u0003"
[[qcase.steps]]
command = "reboot"
expect = "reboot"
[[qcase.steps]]
qmp = {{ execute = "device_del", arguments = {{ id = "x" }} }}
silence = 2
[[qcase.steps]]
prompt = "$"
send = "q"
{ENDS}
"""
    config = case(tmp_path, text)
    names = [(step.name, step.prompt) for step in config.steps]
    assert names == [
        ("log in", "login:"),
        ('send "\\u0003"', None),
        ("reboot", "login:"),
        ("qmp device_del", None),
        ('send "q"', "$"),
    ]
    assert config.steps[1].keys == "\x03"
    assert config.steps[3].qmp == '{"execute": "device_del", "arguments": {"id": "x"}}'
    assert config.stops_at_reset
    assert config.first_prompt == "login:"
    tests = case(tmp_path, OWN + "prompt = '#'\ncommand = 'x'\nresults = 'ktap'\n" + OWN + "command = 'y'")
    assert [step.results for step in tests.steps] == ["ktap", ""]
    assert case(tmp_path, OWN + "expect = 'poweroff'\n" + OWN + ENDS).stops_at_reset
    assert not case(tmp_path, OWN + ENDS + OWN + "expect = 'poweroff'").stops_at_reset
    assert not case(tmp_path, OWN + ENDS).stops_at_reset


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        (THEIRS + "shell_cmd = 'a'\n" + ENDS, "shell_check_steps[0].shell_cmd", "needs shell_prefix"),
        (THEIRS + "shell_prefix = ' '\n" + ENDS, "shell_check_steps[0].shell_prefix", "must not be empty"),
        (THEIRS + "shell_prefix = '#'\nshell_cmd = ' '\n" + ENDS, "shell_check_steps[0].shell_cmd", "must not be empty"),
        (THEIRS + "success_regex = []", "shell_check_steps[0].success_regex", "must not be empty"),
        (THEIRS + "success_regex = ['(']", "shell_check_steps[0].success_regex[0]", "pattern '('"),
        (THEIRS + "success_regex = ['']", "shell_check_steps[0].success_regex[0]", "pattern '' matches the empty string"),
        (THEIRS + ENDS + "sucess_regex = ['x']", "shell_check_steps[0].sucess_regex", "unknown key"),
        (THEIRS + ENDS + "timeout = 3", "shell_check_steps[0].timeout", "cannot stand in a step without shell_cmd"),
        (THEIRS + ENDS + THEIRS + "fail_regex = ['x']", "shell_check_steps[1]", "does nothing and waits for nothing"),
        (THEIRS + ENDS + THEIRS + "shell_prefix = '#'", "shell_check_steps[1]", "does nothing and waits for nothing"),
        (THEIRS + "shell_prefix = '#'\nshell_cmd = 'a'", "shell_check_steps", "no step has success_regex"),
        ("success_regex = ['x']\n" + THEIRS + ENDS, "success_regex", "cannot stand beside [[shell_check_steps]]"),
        ("shell_check_steps = []", "success_regex", "no success_regex"),
        (THEIRS + ENDS + OWN + ENDS, "shell_check_steps", "cannot stand beside [[qcase.steps]]"),
        (OWN + ENDS + "comand = 'x'", "qcase.steps[0].comand", "unknown key"),
        (OWN + ENDS + "prompt = '#'\ncommand = 'x'\nsend = 'y'", "qcase.steps[0].send", "cannot stand beside command"),
        (OWN + ENDS + "expect = 'reboot'", "qcase.steps[0].expect", "cannot stand beside success_regex"),
        (OWN + ENDS + "timeout = 0", "qcase.steps[0].timeout", "must be greater than 0"),
        (OWN + "results = 'ktap'", "qcase.steps[0].results", "needs command"),
        (OWN + "results = 'ktap'\nprompt = '#'\nsend = 'x'", "qcase.steps[0].results", "needs command"),
        (OWN + 'results = "ktap"\nprompt = "#"\ncommand = "a\\nb"', "qcase.steps[0].command", "must be one line"),
        (OWN + "results = 'katp'\nprompt = '#'\ncommand = 'x'", "qcase.steps[0].results", "must be"),
        (
            OWN + "results = 'ktap'\nprompt = '#'\ncommand = 'x'\nsilence = 2",
            "qcase.steps[0].results",
            "cannot stand beside silence",
        ),
        (THEIRS + ENDS + "results = 'ktap'", "shell_check_steps[0].results", "unknown key"),
        (OWN + "expect = 'halt'", "qcase.steps[0].expect", 'must be "reboot" or "poweroff"'),
        (OWN + ENDS + "qmp = { execute = 'migrate' }", "qcase.steps[0].qmp.execute", "must be"),
        (OWN + ENDS + "send = ''", "qcase.steps[0].send", "must not be empty"),
        ("[qcase]\nreset = true\n" + OWN + "expect = 'reboot'", "qcase.reset", "cannot stand beside a step"),
        ("[qcase]\nresults = 'tap'\n" + OWN + ENDS, "qcase.results", "cannot stand beside [[qcase.steps]]"),
    ],
)
def test_what_is_wrong_with_steps(tmp_path: Path, text: str, key: str, what: str) -> None:
    found = problems(tmp_path, text)
    assert (key, True) in [(problem.key, problem.what.startswith(what)) for problem in found], found


def test_a_step_on_a_further_console(tmp_path: Path) -> None:
    step = f"{OWN}console = 'second'\nprompt = '2#'\ncommand = 'a'\n{ENDS}"
    main = f"{OWN}prompt = '1#'\ncommand = 'b'\n{OWN}console = 'second'\ncommand = 'c'\n"
    for arg in (
        "-serial', 'chardev:second",
        "-device', 'virtconsole,chardev=second",
        "-device', 'isa-serial,chardev=second,index=1",
    ):
        config = case(tmp_path, f"args = ['-serial', 'mon:stdio', '{arg}']\n{step}{main}")
        assert [(one.console, one.prompt) for one in config.steps] == [("second", "2#"), ("", "1#"), ("second", "2#")]
    (none,) = problems(tmp_path, f"args = ['-serial', 'chardev:seconds']\n{step}")
    assert (none.key, none.what) == ("qcase.steps[0].console", "no device in args has the chardev second")
    (twice,) = problems(tmp_path, f"args = ['-chardev', 'null,id=second', '-serial', 'chardev:second']\n{step}")
    assert twice.what == "second is defined in args"
    assert problems(tmp_path, f"{OWN}{ENDS}console = 'a b'")[0].key == "qcase.steps[0].console"


def test_a_strangers_steps_do_not_read_the_environment(tmp_path: Path) -> None:
    text = OWN + ENDS + "prompt = '#'\ncommand = 'echo ${env:HOME}'\n"
    assert problems(tmp_path, text, environment=None)[0].key == "qcase.steps[0].command"
