"""New cases from templates."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qcase.arch import Arch
from qcase.config import schema
from qcase.errors import UsageError
from qcase.model import Pipeline
from qcase.pipelines.registry import PIPELINES
from qcase.suite import ktest_template, templates
from qcase.suite.cases import Workspace, source_folders
from qcase.suite.select import is_glob
from qcase.suite.templates import File, Plan, Sources
from qcase.text import printable

_NAME = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"


# ---- a case


def plan_case(name: str, pipeline: Pipeline, prompts: Mapping[Arch, str], *, steps: bool = False) -> Plan:
    """Return the files of a case. `name`: the name of its programs and in its messages. `prompts`: one for each of its arches.

    `steps`: it runs its command, restarts the machine, and runs it again. Raises `UsageError` if its pipeline has no
    steps, and for an architecture that the template has no code for.
    """
    if steps and pipeline in (Pipeline.KTEST, Pipeline.GROUPED):
        hint = "a group's commands are typed by its script, and a kernel alone has no prompt; take another pipeline"
        raise UsageError(f"--steps cannot stand beside --pipeline {pipeline}", hint=hint)
    if pipeline is Pipeline.KTEST:
        if unknown := [arch for arch in prompts if arch not in ktest_template.KERNELS]:
            what = f"the template of a case of the pipeline ktest has no kernel for {', '.join(unknown)}"
            hint = " ".join(f"--arch {arch}" for arch in ktest_template.KERNELS)
            raise UsageError(what, hint=f"take {hint}, or write the case's files by hand")
        own = {f"qemu-{arch}.toml": File(ktest_template.case_file(name, arch)) for arch in prompts}
        return ktest_template.sources() | own
    sources, command, commands = _template(pipeline)(name)
    files = dict(sources)
    for arch, prompt in prompts.items():
        success = arch.value if pipeline is Pipeline.PLAIN else f"PASS: {re.escape(name)}"
        text = _steps_file(arch, prompt, command, success) if steps else _case_file(arch, prompt, command, commands, success)
        files[f"qemu-{arch}.toml"] = File(text)
    return files


def _case_file(arch: Arch, prompt: str, command: str, commands: Sequence[str], success: str) -> str:
    lines = [
        "# How this case is booted, what is typed, and what decides. `qcase schema qemu --toml` shows all keys.",
        f"args = {arch.spec.args}",
        "",
        "# Once this has come out of the console, as it stands here …",
        f"shell_prefix = {schema.literal(prompt)}",
    ]
    if commands:
        lines += [
            "# … a script runs these, to the end, whatever fails. Each is a subtest that passes with exit status 0.",
            "test_commands = [",
            *(f"    {schema.literal(each)}," for each in commands),
            "]",
            "",
        ]
    else:
        lines += [
            "# … this is typed.",
            f"shell_init_cmd = {_one_line(command)}",
            "",
            "# A line like the first passes the case, one like the others fails it. ^ and $ are the ends of a line.",
            f"success_regex = ['^{success}$']",
            "fail_regex = ['^FAIL']",
            "",
        ]
    lines += ["# Seconds from QEMU's start to the verdict.", "timeout = 120", "", "[qcase]", "tags = []"]
    return "\n".join(lines) + "\n"


def _steps_file(arch: Arch, prompt: str, command: str, success: str) -> str:
    lines = [
        "# How this case is booted, and its steps, one after the other. `qcase schema qemu --toml` shows all keys.",
        f"args = {arch.spec.args}",
        "",
        "# A line like this fails the case at any time.",
        "fail_regex = ['^FAIL']",
        "",
        "# Seconds from QEMU's start to the verdict.",
        "timeout = 300",
        "",
        "[qcase]",
        "tags = []",
        "",
        "# Once the prompt has come, the command is typed; a line like the pattern ends the step.",
        "[[qcase.steps]]",
        f"prompt = {schema.literal(prompt)}",
        f"command = {_one_line(command)}",
        f"success_regex = ['^{success}$']",
        "",
        "[[qcase.steps]]",
        'command = "reboot -f"',
        'expect = "reboot"',
        "",
        "[[qcase.steps]]",
        'name = "behind the restart"',
        f"command = {_one_line(command)}",
        f"success_regex = ['^{success}$']",
    ]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return f"'{text}'" if '"' in text else schema.literal(text)


def _template(pipeline: Pipeline) -> Callable[[str], Sources]:
    """Return the template of a pipeline's cases. Raises `UsageError` for a pipeline without one."""
    own = {Pipeline.PLAIN: templates.plain, Pipeline.GROUPED: templates.grouped}
    found = own.get(pipeline) or (PIPELINES[pipeline].template if pipeline in PIPELINES else None)
    if found is None:
        raise UsageError(f"the pipeline {pipeline} has no template for a new case", hint="write its files by hand")
    return found


@dataclass(frozen=True)
class NewCase:
    """Location and files of a new case."""

    folder: Path
    command: str  # that runs it
    plan: Plan


def new_case(
    workspace: Workspace, case: str, pipeline: Pipeline, arches: Sequence[Arch], group: str = "", *, steps: bool = False
) -> NewCase:
    """Plan a case called `case`, below `group` (default: the group that it begins with, else `[suite] default_group`).

    Raises `UsageError` for an invalid name, for an existing place, and for a place that is never searched.
    """
    parts = [part for part in case.split("/") if part]
    bad = next((part for part in parts if not re.fullmatch(_NAME, part)), None)
    if bad is not None or not parts or case.startswith("/"):
        raise UsageError(f"{printable(case)!r} is no name for a case", hint="letters, digits and . _ + -, with / between folders")
    if taken := next((part for part in parts if part in source_folders()), None):
        raise UsageError(f"no folder of a case's name may be called {taken!r}", hint=f"a folder {taken}/ holds sources")
    suite = workspace.suite_root
    default = workspace.config.suite.default_group
    if group:
        parts = [group, *parts]
    elif is_glob(default):
        if len(parts) == 1:
            raise UsageError(
                f"in which group is {case!r} to be?", hint="name it with --group: the suite has no single default group"
            )
    elif len(parts) == 1 or (parts[0] != default and not (suite / parts[0]).is_dir()):
        parts = [default, *parts]
    folder = suite.joinpath(*parts)
    if workspace.sandboxed and not workspace.keeps(folder):
        what = 'is outside of the workspace: refused under trust = "sandboxed"'
        raise UsageError(what, where=workspace.relative(folder))
    for above in (suite.joinpath(*parts[:count]) for count in range(1, len(parts))):
        if _is_case(above) and not any(above.glob("build-*.toml")):
            raise UsageError(
                f"{workspace.relative(above)} is a case, and below a case nothing is searched", hint="choose another name"
            )
    if folder.exists() or folder.is_symlink():
        raise UsageError(
            "is there already, and nothing is overwritten", where=workspace.relative(folder), hint="choose another name"
        )
    prompts = {arch: f"root@{workspace.config.guest[arch].hostname}:" for arch in arches}
    name = "/".join(parts[1:])
    command = f"qcase run {name}" if fnmatch.fnmatchcase(parts[0], default) else f"qcase run --group {parts[0]} {name}"
    return NewCase(folder, command, plan_case(parts[-1], pipeline, prompts, steps=steps))


def _is_case(folder: Path) -> bool:
    return any(folder.glob("qemu-*.toml"))
