"""A group's real script in a real shell on a pseudoterminal, judged as a guest's console is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from qcase.config.case_file import CaseConfig
from qcase.config.workspace_file import GroupedRunner
from qcase.console.judge import Judge
from qcase.console.rules import Limits, Ruling
from qcase.host.trees import Tree
from qcase.model import SubtestResult, SubtestStatus
from qcase.pipelines import group_script
from qcase.run import boot_plan

PROMPT = "root@here:"
WORD = "1a2b3c4"
LIMITS = Limits(whole=60)


@dataclass
class Played:
    """What became of a group. `text`: the console, as it came; `typed`: what was typed on it."""

    ruling: Ruling
    subtests: tuple[SubtestResult, ...]
    text: str
    typed: str
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def statuses(self) -> list[SubtestStatus]:
        return [test.status for test in self.subtests]


@dataclass
class Place:
    """Where a group is played: a login shell, what runs scripts, and what the console is like.

    `terminal`: the shell has the console as its controlling terminal. `echo`: the console echoes. `path`: where programs are.
    """

    shell: Sequence[str] = ("dash",)
    terminal: bool = True
    echo: bool = True
    path: str = os.environ.get("PATH", "/usr/bin:/bin")
    environment: dict[str, str] = field(default_factory=dict)

    def play(self, folder: Path, *commands: str, fail: tuple[str, ...] = (), limits: Limits = LIMITS) -> Played:
        """Run a group of these commands to its verdict, in the folder."""
        runner = GroupedRunner()
        path = group_script.write_runner_script(Tree(folder), commands, runner).host
        config = CaseConfig(shell_prefix=PROMPT, test_commands=commands, fail_regex=fail)
        rules = boot_plan.group_rules(config, runner, WORD, limits.command)
        assert rules.command is not None
        called = rules.command.replace(f"/usr/bin/{runner.runner_name}", f"{' '.join(self.shell)} {path}")
        judge = Judge(replace(rules, command=called), started=time.monotonic(), limits=limits)
        with self._shell(folder) as console:
            text, typed = _converse(judge, console)
        assert judge.ruling is not None
        seconds = time.monotonic() - judge.started
        return Played(judge.ruling, judge.subtests(), text, typed, seconds, judge.warnings)

    @contextmanager
    def _shell(self, folder: Path) -> Iterator[int]:
        """An interactive shell on a console of its own. Whatever has that console is killed at the end."""
        ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (24, 10000))  # as in qcase's own guests: a line editor does not break lines
        if not self.echo:
            mode = termios.tcgetattr(theirs)
            mode[3] &= ~termios.ECHO
            termios.tcsetattr(theirs, termios.TCSANOW, mode)

        def take_terminal() -> None:
            if self.terminal:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        environment = {"PATH": self.path, "PS1": f"{PROMPT}/# ", "HOME": str(folder), "TERM": "dumb", "MARK": str(folder)}
        child = subprocess.Popen(
            [*self.shell, "-i"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=take_terminal,
            cwd=folder,
            env=environment | self.environment,
        )
        os.close(theirs)
        try:
            yield ours
        finally:
            os.close(ours)
            for pid in _marked(str(folder)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            child.kill()
            child.wait()


def _marked(mark: str) -> list[int]:
    """The processes that have the mark of a test in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"MARK={mark}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def _converse(judge: Judge, console: int) -> tuple[str, str]:
    text, typed = bytearray(), bytearray()
    while True:
        now = time.monotonic()
        judge.tick(now)
        if judge.ruling is not None:
            return text.decode(errors="replace"), typed.decode()
        keys = judge.input()
        typed += keys
        os.write(console, keys)
        wake = judge.next_wake()
        if select.select([console], [], [], None if wake is None else max(0.0, wake - now))[0]:
            try:
                data = os.read(console, 1 << 16)
            except OSError:  # nobody has the console any more
                judge.ended(time.monotonic(), "the console was closed")
                continue
            text += data
            judge.feed(data, time.monotonic())
