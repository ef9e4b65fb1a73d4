"""From a prepared case to a machine and the rules of its console."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from qcase.config import qemu_options, steps_table
from qcase.config.case_file import CaseConfig
from qcase.config.services_table import Service
from qcase.config.steps_table import StepConfig
from qcase.config.workspace_file import GroupedRunner, is_guest
from qcase.errors import ConfigError, InfraError, Problem
from qcase.host import process
from qcase.host.trees import Tree
from qcase.host.workspace_folders import target_of
from qcase.model import Booted, CaseResult
from qcase.prepare.prepare_case import disks_of, prepare_case_assets
from qcase.prepare.prepared import PreparedCase
from qcase.prepare.run_folders import case_asset_layout, folder_of
from qcase.prepare.session import Session
from qcase.suite.cases import Case
from qcase.vm import arguments
from qcase.vm.services import DROPPED, NONE, Forwards, check_folders, planned, running

if TYPE_CHECKING:
    from qcase.console.rules import Limits, Rules, Step


def group_rules(config: CaseConfig, runner: GroupedRunner, nonce: str = "", limit: float | None = None) -> Rules:
    """Return the console rules of a grouped case: the runner is the command, its summary is the success pattern.

    The runner asks for `nonce`, its secret word, and gets the limit of each command in seconds, unless the suite sets its own
    command for the runner.

    The runner's success pattern replaces the case's own ones, as in axbuild. The runner's fail pattern is the marker of a single
    command, which the judge reads for each command; a fail pattern that the suite changed is searched for as well.
    """
    from qcase.console.group import Group
    from qcase.console.rules import Rules
    from qcase.pipelines.group_commands import distinct
    from qcase.pipelines.group_script import label

    default_fail = GroupedRunner.model_validate({**runner.model_dump(exclude={"fail_regex"})}).fail_regex
    fail = [pattern for pattern in config.fail_regex if pattern not in (default_fail, runner.fail_regex)]
    if runner.fail_regex != default_fail:
        fail.append(runner.fail_regex)
    labels = tuple(label(command) for command in config.test_commands)
    words = [runner.runner_path]
    typed = config.shell_prefix is not None  # else the guest itself starts the script
    word = nonce if typed and runner.runner_path == f"/usr/bin/{runner.runner_name}" else ""
    if word:
        words += ["ask"] if limit is None else ["ask", str(math.ceil(limit))]
    return Rules(
        prompt=config.shell_prefix,
        command=" ".join(words) if typed else None,
        resets=config.reset,
        success=(runner.success_regex,),
        fail=tuple(fail),
        from_prompt=config.match_from == "prompt",
        group=Group(
            begin=runner.begin_marker,
            passed=runner.passed_marker,
            failed=runner.failed_marker,
            all_passed=runner.all_passed_marker,
            all_failed=runner.all_failed_marker,
            commands=config.test_commands,
            labels=labels,
            names=distinct(labels),
            runner=runner.runner_name,
            word=word,
            skips=config.skip_status,
        ),
    )


_CONSOLES = r"console-[^/]+\.log"  # of further consoles
_LOG_NAMES = ("build.log", "console.log", "qemu.sh", "services.log")


@dataclass(frozen=True)
class Logs:
    """The log folder of a case, `target/qcase/logs/<arch>/<display name>/`. It outlives the run."""

    folder: Tree
    shown: str  # the folder's path in messages

    @property
    def build(self) -> Tree:
        return self.folder / "build.log"

    def clear(self) -> None:
        """Remove the logs of earlier runs, by name: the folder may contain the log folder of a case below this one."""
        for old in self.folder.iterdir() if self.folder.is_dir() else ():
            known = rf"({'|'.join(map(re.escape, _LOG_NAMES))}|{_CONSOLES}|{DROPPED}.*)(\.attempt-\d+)?"
            if re.fullmatch(known, old.name, re.DOTALL) and not old.is_dir():
                old.unlink(missing_ok=True)

    def put_by(self, result: CaseResult, attempt: int) -> CaseResult:
        """Rename the logs of an attempt, so that the next attempt keeps them. Return the result with the log's new name."""
        names = [name for name in self.folder.names() if not re.search(r"\.attempt-\d+$", name)]
        sent = [name for name in names if name.startswith(DROPPED) or re.fullmatch(_CONSOLES, name)]
        for name in (*_LOG_NAMES, *sent):
            with contextlib.suppress(FileNotFoundError):
                (self.folder / name).rename(self.folder / f"{name}.attempt-{attempt}")
        kept = f"{result.console_log}.attempt-{attempt}" if result.console_log else None
        return replace(result, console_log=kept)

    @contextmanager
    def fresh(self, name: str) -> Iterator[IO[bytes]]:
        """Open a new log file that replaces an old one of the same name. A parallel run of the case still writes to its own file.

        Raises `InfraError` if the disk is full.
        """
        staged = self.folder / f".{name}.{process.run_id()}"
        staged.unlink(missing_ok=True)
        with staged.created() as fd, os.fdopen(fd, "wb", buffering=0, closefd=False) as file:
            staged.rename(self.folder / name)
            try:
                yield file
            except OSError as error:
                # The error of a write has no file name. Only the writes to the log can fill a disk here.
                if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise InfraError(f"cannot be written: {error.strerror}", where=f"{self.shown}/{name}") from None


def logs_of(case: Case, session: Session) -> Logs:
    """Return the log folder of a case. Creates it."""
    logs = logs_below(session, case.display_name)
    logs.folder.mkdir(parents=True, exist_ok=True)
    return logs


def logs_below(session: Session, case: str) -> Logs:
    below = f"qcase/logs/{session.arch}/{folder_of(case)}"
    shown = session.workspace.relative(session.workspace.root / "target" / below)
    return Logs(target_of(session.workspace.root) / below, shown)


def rules_of(case: Case, session: Session) -> Rules:
    """Return the console rules of a case: its prompt, commands and patterns."""
    from qcase.console.rules import Rules

    config = case.config
    trouble = config.kernel_trouble or session.workspace.config.run.kernel_trouble
    if config.is_grouped:
        limit = limits_of(case, session).command
        rules = group_rules(config, session.workspace.config.grouped, secrets.token_hex(4)[1:], limit)
        return replace(rules, kernel_trouble=trouble, time_stamps=_time_stamps(case, session))
    scale = session.workspace.config.run.timeout_scale
    return Rules(
        prompt=config.shell_prefix,
        command=config.shell_init_cmd,
        steps=tuple(_step(step, scale) for step in config.steps),
        success=config.success_regex,
        fail=config.fail_regex,
        skip=config.skip,
        exits=tuple((outcome, word) for outcome, _, word in (one.partition("\t") for one in config.exits)),
        match_all=config.match == "all",
        results=config.results,
        markers=tuple((key, pattern) for key, _, pattern in (marker.partition("\t") for marker in config.markers)),
        from_prompt=config.match_from == "prompt",
        resets=config.reset or config.stops_at_reset,
        resets_freely=config.reset,
        kernel_trouble=trouble,
        time_stamps=_time_stamps(case, session),
    )


def _step(step: StepConfig, scale: float) -> Step:
    """Return the console rules of a step."""
    from qcase.console.rules import Step

    values = {field.name: getattr(step, field.name) for field in fields(step)}
    return Step(**{**values, "timeout": None if step.timeout is None else step.timeout * scale})


def _time_stamps(case: Case, session: Session) -> bool:
    """Tell whether the kernel's lines surely have time stamps: a built-in kernel writes them unless `printk.time` is set."""
    guest = session.workspace.config.guest[case.arch]
    said = (guest.append, *case.config.args)
    other = session.kernel_file is not None or not is_guest(guest.kernel) or "-kernel" in case.config.args
    return not other and not any("printk.time" in text for text in said)


def limits_of(case: Case, session: Session) -> Limits:
    """Return the timeouts of a case, multiplied by the configured scale."""
    from qcase.console.rules import Limits

    scale = session.workspace.config.run.timeout_scale
    config = case.config
    given = (config.timeout, config.boot_timeout, config.command_timeout, config.idle_timeout)
    return Limits(*(None if limit is None else limit * scale for limit in given))


def machine_spec(case: Case, prepared: PreparedCase, session: Session) -> arguments.MachineSpec:
    """Return the QEMU machine of a case.

    Raises `InfraError` if the configuration requires KVM and KVM does not work, `ConfigError` for unusable QEMU arguments.
    """
    initrd, append = session.kernels.beside(case) if prepared.guest is None else (prepared.guest.initrd, prepared.guest.append)
    spec = arguments.MachineSpec(
        arch=case.arch,
        args=case.config.args,
        image=prepared.image,
        kernel=prepared.kernel.path,
        initrd=initrd,
        append=append,
        network=case.config.network or session.workspace.config.run.network,
        processors=case.config.smp,
        tcg_threads=session.workspace.config.tcg_threads(case.arch),
        reset=case.config.reset,
        stays=case.config.stops_at_reset,
        consoles=steps_table.consoles(case.config.steps),
        images=prepared.disks,
        stranger=session.workspace.root if session.workspace.config.run.trust == "sandboxed" else None,
    )
    if prepared.uefi is not None:
        firmware = prepared.uefi.firmware
        flash = (firmware.code,) if firmware.variables is None else (firmware.code, firmware.variables)
        spec = replace(spec, flash=flash, system_partition=prepared.uefi.partition)
    if prepared.guest is not None and prepared.guest.source is not None:
        spec = replace(spec, own_init=True, root_serial=disks_of(case, session).serial)
    services = services_of(case)
    file = session.workspace.relative(case.config_path)
    check_folders(services, session.workspace.root, file)
    spec = replace(spec, forwards=planned(services))
    try:
        arguments.arguments(spec)
    except qemu_options.ArgumentError as error:
        raise ConfigError([Problem(str(error), file, key="args", hint=error.hint)]) from None
    for number, step in enumerate(case.config.steps):
        try:
            for device in step.added_devices:
                arguments.check_added(device, spec)
        except qemu_options.ArgumentError as error:
            raise ConfigError([Problem(str(error), file, key=f"qcase.steps[{number}].qmp", hint=error.hint)]) from None
    if arguments.names_accelerator(spec.args):
        return spec
    return replace(spec, accel=session.accelerator(case, prepared.kernel, spec))


def services_of(case: Case) -> list[Service]:
    """Return the services of the host that a case asks for."""
    return [Service.parse(text) for text in case.config.services]


@contextmanager
def services_running(case: Case, session: Session, logs: Logs) -> Iterator[Forwards]:
    """Run the services of a case; what its guest sends is kept with its logs."""
    services = services_of(case)
    if not services:
        yield NONE
        return
    with logs.fresh("services.log") as log, running(services, session.workspace.root, logs.folder, log) as forwards:
        yield forwards


def booted(case: Case, prepared: PreparedCase, session: Session) -> Booted:
    """Return the booted files and the accelerator of a case, for reports."""
    try:
        used = arguments.accelerator(arguments.arguments(machine_spec(case, prepared, session)))
    except InfraError:  # the required KVM does not work
        used = session.accelerators.asked
    firmware = prepared.uefi.firmware if prepared.uefi is not None else None
    return Booted(
        str(prepared.kernel.path),
        prepared.kernel.sha256,
        used,
        str(firmware.code) if firmware is not None else None,
        firmware.sha256 if firmware is not None else None,
    )


def command_of(case: Case, session: Session) -> tuple[list[str], Path | None]:
    """Prepare a case, and return its QEMU command and its image."""
    logs = logs_below(session, case.display_name)
    logs.folder.mkdir(parents=True, exist_ok=True)
    layout = case_asset_layout(session.workspace.root, session.target, case.display_name)
    with prepare_case_assets(case, layout, session, logs.build) as prepared:
        return arguments.arguments(machine_spec(case, prepared, session)), prepared.image
