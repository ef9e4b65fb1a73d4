"""Steps of a case: `[[shell_check_steps]]` as ostool has them, and qcase's own `[[qcase.steps]]`, become one model.

A step types at a prompt, sends keys, asks QEMU's monitor or does none of that, and then waits for what ends it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import Field, Strict

from qcase import parsing
from qcase.config.fields import Model, Results, Strings, matching
from qcase.config.patterns import PatternError, compile_pattern

_NAME: Final = 60  # characters of a step's name that is made of what it does

# Commands of QEMU's monitor that a step may give: they change the machine and its state, and write to no file of the host.
MONITOR_COMMANDS: Final = (
    "balloon", "block_resize", "blockdev-close-tray", "blockdev-open-tray", "blockdev-remove-medium", "cont", "cpu-add",
    "device_add", "device_del", "eject", "inject-nmi", "input-send-event", "netdev_del", "object-del", "send-key", "set_link",
    "stop", "system_powerdown", "system_reset", "system_wakeup", "watchdog-set-action",
)  # fmt: skip

Expect = Literal["reboot", "poweroff"]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Console = Annotated[str, matching(r"[A-Za-z][A-Za-z0-9_.-]{0,30}", "must be the id of a chardev: letters, digits and _ . -")]
_Patterns = Annotated[Strings, Field(min_length=1)]


class Wrong(Protocol):
    """See `case_file.Wrong`."""

    def __call__(self, loc: tuple[str | int, ...], what: str, hint: str = "") -> None: ...


class ShellCheckStep(Model):
    """One of `[[shell_check_steps]]`, as ostool 0.29 and later read them."""

    shell_prefix: str | None = Field(default=None, description="the prompt to wait for; default: that of the step before")
    shell_cmd: str | None = Field(default=None, description="what is typed at it; without, the step waits")
    success_regex: _Patterns | None = Field(default=None, description="patterns (RE2), any of which ends the step")
    fail_regex: _Patterns | None = Field(default=None, description="patterns that fail the case while this step waits")
    timeout: _Positive | None = Field(default=None, description="seconds from the typing on")


class MonitorCommand(Model):
    """A command of QEMU's monitor (QMP)."""

    execute: Literal[MONITOR_COMMANDS]  # type: ignore[valid-type]
    arguments: dict[str, Any] = Field(default={})


class StepTable(Model):
    """One of `[[qcase.steps]]`."""

    name: str | None = Field(default=None, description="the step's name in reports; default: what it does")
    console: _Console | None = Field(default=None, description="the chardev of a further console; default: the first console")
    prompt: str | None = Field(default=None, description="the literal text to wait for; default: that of the step before")
    command: str | None = Field(default=None, description="what is typed at the prompt, with a line end")
    send: str | None = Field(default=None, description='keys, sent as they are: "\\u0003" is Ctrl-C')
    qmp: MonitorCommand | None = Field(default=None, description="a command for QEMU's monitor")
    success_regex: _Patterns | None = Field(default=None, description="patterns (RE2), any of which ends the step")
    fail_regex: _Patterns | None = Field(default=None, description="patterns that fail the case until the step has ended")
    results: Results | None = Field(default=None, description="the dialect of the command's own tests, which decide then")
    silence: _Positive | None = Field(default=None, description="seconds without output that end the step")
    expect: Expect | None = Field(default=None, description="reboot | poweroff: what the guest does to end the step")
    timeout: _Positive | None = Field(default=None, description="seconds from the typing on, or from the step before")


ShellCheckSteps = Annotated[tuple[ShellCheckStep, ...], Strict(False)]
Steps = Annotated[tuple[StepTable, ...], Strict(False)]


@dataclass(frozen=True)
class StepConfig:
    """One step: placeholders are replaced, the prompt is that which it waits for. `qmp`: JSON. See `console.rules.Step`."""

    name: str
    prompt: str | None = None
    command: str | None = None
    keys: str | None = None
    qmp: str = ""
    success: tuple[str, ...] = ()
    fail: tuple[str, ...] = ()
    results: str = ""
    silence: float | None = None
    expect: str = ""
    timeout: float | None = None
    console: str = ""

    @property
    def added_devices(self) -> tuple[str, ...]:
        """The device that the step's command adds to the machine, as the value (JSON) of QEMU's `-device`; none for others."""
        command = parsing.from_json(self.qmp) if self.qmp else {}
        return (json.dumps(command.get("arguments", {})),) if command.get("execute") == "device_add" else ()

    def encoded(self) -> str:
        """Return the step as JSON, by which a case's model keeps it."""
        return json.dumps(asdict(self))


def decoded(text: str) -> StepConfig:
    """Return the step that `StepConfig.encoded` gave."""
    values: dict[str, Any] = parsing.from_json(text)
    return StepConfig(**{**values, "success": tuple(values["success"]), "fail": tuple(values["fail"])})


def stops_at_reset(steps: Sequence[StepConfig]) -> bool:
    """Tell whether a machine is to stand still when it resets or powers off, since a step follows on it."""
    return any(step.expect == "reboot" or (step.expect and number < len(steps)) for number, step in enumerate(steps, 1))


def consoles(steps: Sequence[StepConfig]) -> tuple[str, ...]:
    """Return the names of the further consoles that steps have."""
    return tuple(dict.fromkeys(step.console for step in steps if step.console))


def is_there(data: Mapping[str, Any]) -> bool:
    """Tell whether a file has steps, however well."""
    table = data.get("qcase")
    return bool(data.get("shell_check_steps") or (isinstance(table, dict) and table.get("steps")))


def texts(theirs: Sequence[ShellCheckStep], own: Sequence[StepTable]) -> list[tuple[tuple[str | int, ...], str]]:
    """Return all texts in which placeholders are replaced, each with its place in the file."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    for table, steps in ((("shell_check_steps",), theirs), (("qcase", "steps"), own)):
        for index, step in enumerate(steps):
            for key, value in step.model_dump(exclude_none=True).items():
                values = [value] if isinstance(value, str) else value if isinstance(value, (tuple, list)) else []
                found += [((*table, index, key), text) for text in values]
    return found


def checked(
    theirs: Sequence[ShellCheckStep], own: Sequence[StepTable], replaced: Callable[[str], str], wrong: Wrong
) -> tuple[StepConfig, ...]:
    """Return the steps of a case, of one table or the other; faults go to `wrong`."""
    if theirs and own:
        wrong(("shell_check_steps",), "cannot stand beside [[qcase.steps]]", "write all steps in one of them")
    table: tuple[str, ...] = ("shell_check_steps",) if theirs else ("qcase", "steps")
    words = ("shell_prefix", "shell_cmd") if theirs else ("prompt", "command")
    given = [_of_theirs(step) for step in theirs] if theirs else list(own)
    steps: list[StepConfig] = []
    prompts: dict[str, str] = {}  # of each console
    for index, step in enumerate(given):
        place: tuple[str | int, ...] = (*table, index)
        for key, value in zip(words, (step.prompt, step.command), strict=True):
            if value is not None and (not value.strip() or "\0" in value):
                wrong((*place, key), "must not be empty" if not value.strip() else "must not contain a NUL character")
        if step.prompt is not None:
            prompts[step.console or ""] = replaced(step.prompt).strip()
        prompt = prompts.get(step.console or "")
        _check(step, place, words, prompt, theirs=bool(theirs), wrong=wrong)
        steps.append(_resolved(step, prompt, place, replaced, wrong))
    if given and not any(step.success_regex or step.expect or step.results for step in given):
        what = "no step has success_regex" + ("" if theirs else ", results or expect") + ": the case can never pass"
        wrong(table, what, "say what the guest prints when all is well")
    names: dict[str, int] = {}
    for number, made in enumerate(steps):
        names[made.name] = times = names.get(made.name, 0) + 1
        steps[number] = replace(made, name=f"{made.name} ({times})") if times > 1 else made
    return tuple(steps)


def _of_theirs(step: ShellCheckStep) -> StepTable:
    return StepTable(
        prompt=step.shell_prefix,
        command=step.shell_cmd,
        success_regex=step.success_regex,
        fail_regex=step.fail_regex,
        timeout=step.timeout,
    )


def _check(
    step: StepTable,
    place: tuple[str | int, ...],
    words: tuple[str, str],
    prompt: str | None,
    *,
    theirs: bool,
    wrong: Wrong,
) -> None:
    """Check what a step does, and what ends it."""
    acts = [key for key in ("command", "send", "qmp") if getattr(step, key) is not None]
    ends = [key for key in ("success_regex", "silence", "expect") if getattr(step, key) is not None]
    _check_results(step, place, words, wrong)
    if step.results is not None and "success_regex" not in ends:
        ends.append("results")
    if len(acts) > 1:
        wrong((*place, acts[1]), f"cannot stand beside {acts[0]}", "a step does one thing; make two steps")
    if step.send == "":
        wrong((*place, "send"), "must not be empty")
    if step.command is not None and prompt is None:
        wrong((*place, words[1]), f"needs {words[0]}, the prompt to wait for before it is typed")
    if not acts and not ends:
        kinds = "success_regex" if theirs else "success_regex, results, silence or expect"
        wrong(place, f"does nothing and waits for nothing: it needs {words[1]}, or {kinds}")
    if step.prompt is not None and step.qmp is not None:
        wrong((*place, words[0]), "cannot stand beside qmp, for which no prompt is waited for", "make two steps")
    if len(ends) > 1:
        wrong((*place, ends[1]), f"cannot stand beside {ends[0]}", "one thing ends a step; make two steps")
    if step.fail_regex is not None and not ends:
        wrong((*place, "fail_regex"), "needs success_regex in the same step: without, the step ends once it has typed")
    if theirs and step.timeout is not None and step.command is None:
        wrong((*place, "timeout"), "cannot stand in a step without shell_cmd", "the timeout of the file holds for it")


def _check_results(step: StepTable, place: tuple[str | int, ...], words: tuple[str, str], wrong: Wrong) -> None:
    """Check that a step whose tests decide has a command that can be seen to end: by the prompt behind it."""
    if step.results is None:
        return
    if step.command is None:
        hint = "the tests have ended when the prompt is back behind a command"
        wrong((*place, "results"), f"needs {words[1]}, which runs the tests", hint)
    elif "\n" in step.command.strip():
        wrong((*place, words[1]), "must be one line where results is set", "join the lines with && or ;")


def _resolved(
    step: StepTable, prompt: str | None, place: tuple[str | int, ...], replaced: Callable[[str], str], wrong: Wrong
) -> StepConfig:
    command = None if step.command is None else replaced(step.command).strip()
    qmp = "" if step.qmp is None else json.dumps(step.qmp.model_dump(exclude_defaults=True))
    patterns: dict[str, tuple[str, ...]] = {}
    for key, outcome in (("success_regex", "pass"), ("fail_regex", "fail")):
        patterns[key] = tuple(replaced(pattern) for pattern in getattr(step, key) or ())
        for index, pattern in enumerate(patterns[key]):
            try:
                compile_pattern(pattern, would=outcome)
            except PatternError as e:
                wrong((*place, key, index), e.what, e.hint)
    asks = step.command is not None or (step.send is not None and step.prompt is not None)
    return StepConfig(
        name=step.name or _name(step, command, patterns["success_regex"]),
        prompt=prompt if asks else None,
        command=command,
        keys=None if step.send is None else replaced(step.send),
        qmp=qmp,
        success=patterns["success_regex"],
        fail=patterns["fail_regex"],
        results=step.results or "",
        silence=step.silence,
        expect=step.expect or "",
        timeout=step.timeout,
        console=step.console or "",
    )


def check_consoles(steps: Sequence[StepConfig], args: Sequence[str], wrong: Wrong) -> None:
    """Check that the machine has the further consoles of steps, on a chardev that qcase is to add."""
    for index, step in enumerate(steps):
        name, place = step.console, ("qcase", "steps", index, "console")
        if not name:
            continue
        if not any(re.search(rf"(?:^|[,\s])chardev[:=]{re.escape(name)}(?:,|$)", arg) for arg in args):
            hint = f'such as "-serial", "mon:stdio", "-serial", "chardev:{name}"'
            wrong(place, f"no device in args has the chardev {name}", hint)
        if any(re.search(rf"(?:^|,)id={re.escape(name)}(?:,|$)", arg) for arg in args):
            wrong(place, f"{name} is defined in args", "leave -chardev out: qcase adds it")


def _name(step: StepTable, command: str | None, success: tuple[str, ...]) -> str:
    """Return a name for a step that has none: what it does, or what it waits for."""
    if command is not None:
        first, *rest = command.splitlines() or [""]
        return f"{first[:_NAME]} ..." if rest or len(first) > _NAME else first
    if step.send is not None:
        return f"send {json.dumps(step.send)}"
    if step.qmp is not None:
        return f"qmp {step.qmp.execute}"
    waits_for = step.expect or (success[0][:_NAME] if success else f"{step.silence or 0.0:g} s of silence")
    return f"wait for {waits_for}"
