"""The program: arguments in, exit code out. Errors become one message here."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import typer

from qcase.cli import known_commands, machine_commands, run_commands, suite_commands  # noqa: F401  each registers its commands
from qcase.cli.app import COMPLETE, HELP, app, strict_parser
from qcase.cli.output import INTERRUPTED, PATIENCE
from qcase.report import inert

_interrupted_at = float("-inf")
# What stands at the end of each command's help. A test parses every line.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "qcase run",
        "qcase run futex 'fs/*' --arch aarch64",
        "qcase run syscalls/eventfd",
        "qcase run --failed",
        "qcase run --changed main --tag '!slow'",
        "qcase run -j 4 --retries 1 --junit junit.xml",
        "qcase run --json results.json --events events.jsonl",
        "qcase run futex --repeat 100",
    ),
    "report": ("qcase report results.json --junit junit.xml --html report.html",),
    "list": ("qcase list", "qcase list --arch aarch64 --tag fs", "qcase list --pipeline c --json"),
    "explain": ("qcase explain futex", "qcase explain 'fs/*' --arch aarch64 --json"),
    "argv": ("qcase argv futex",),
    "shell": ("qcase shell futex", "qcase shell futex --arch riscv64 --gdb"),
    "init": ("qcase init", "qcase init --pipeline sh --case first", "qcase init ../kernel --dry-run"),
    "new": ("qcase new futex --pipeline c", "qcase new fs/rename --pipeline grouped --arch x86_64 --arch riscv64"),
    "doctor": ("qcase doctor", "qcase doctor --arch aarch64 --json"),
    "lint": ("qcase lint", "qcase lint --strict --json"),
    "schema": ("qcase schema qcase", "qcase schema qemu --toml"),
    "completion": ("source <(qcase completion bash)", "qcase completion fish"),
    "cache path": ("qcase cache path",),
    "cache list": ("qcase cache list",),
    "cache size": ("qcase cache size",),
    "cache gc": ("qcase cache gc --dry-run", "qcase cache gc --max-size '10 GiB' --max-age 30d"),
    "cache verify": ("qcase cache verify", "qcase cache verify --repair"),
    "cache clear": ("qcase cache clear --dry-run", "qcase cache clear --all"),
    "lock": ("qcase lock", "qcase lock --arch x86_64"),
    "known add": (
        "qcase known add --reason 'FUTEX_REQUEUE is not there yet'",
        "qcase known add futex 'fs/*' --reason later --link https://example.org/12 --until 2027-01-31",
        "qcase known add --reason later --arch aarch64 --dry-run",
    ),
    "known list": ("qcase known list", "qcase known list --json"),
    "images build": ("qcase images build c", "qcase images build c --fresh"),
    "images list": ("qcase images list",),
    "images lock": ("qcase images lock", "qcase images lock c --own", "qcase images lock --snapshot 20261122T120000Z"),
    "images verify": ("qcase images verify",),
    "images save": ("qcase images save images.tar", "qcase images save layout c rust"),
    "images load": ("qcase images load images.tar", "qcase images load layout c"),
    "images push": ("qcase images push registry.example/team", "qcase images push localhost:5000 c"),
    "images pull": (f"qcase images pull registry.example/team/c@sha256:{'0123456789abcdef' * 4}",),
}


# Summaries of commands in the list of all: a verb first, and one uncut line even on a narrow terminal.
SUMMARIES: dict[str, str] = {
    "run": "Build, boot and judge cases.",
    "report": "Make other reports of results.",
    "list": "Show the suite as a tree.",
    "explain": "Show the parts of a case's keys.",
    "argv": "Print a case's QEMU command.",
    "shell": "Boot a case with its console here.",
    "init": "Make a workspace.",
    "new": "Make a case.",
    "doctor": "Check whether a run would work.",
    "lint": "Check all files of the suite.",
    "schema": "Print JSON Schemas of files.",
    "completion": "Print a shell's completion script.",
    "cache path": "Print the folder of the store.",
    "cache list": "List the entries of the store.",
    "cache size": "Show the store's size on the disk.",
    "cache gc": "Remove leftovers and old entries.",
    "cache verify": "Read and check every entry.",
    "cache clear": "Remove all entries not in use.",
    "lock": "Pin the packages of all cases.",
    "known add": "Record what failed in the last run.",
    "known list": "List known failures and reasons.",
    "images build": "Build a toolchain image.",
    "images list": "List images, and compare with pins.",
    "images lock": "Pin the images as they are.",
    "images verify": "Check the images against their pins.",
    "images save": "Write images as an OCI layout.",
    "images load": "Load images from an OCI layout.",
    "images push": "Push images to a registry.",
    "images pull": "Pull images from a registry.",
}


def _add_examples(commands: typer.Typer, above: str = "") -> None:
    for command in commands.registered_commands:
        command.short_help = SUMMARIES.get(f"{above}{command.name}")
        if lines := EXAMPLES.get(f"{above}{command.name}"):
            command.epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
    for group in commands.registered_groups:
        assert group.typer_instance is not None
        _add_examples(group.typer_instance, f"{above}{group.typer_instance.info.name} ")


_LISTS = [[], *([option] for option in HELP)]  # words for which qcase lists its commands
# As `qcase --help` lists them.
_ORDER = ["run", "report", "list", "explain", "argv", "shell", "lock", "init", "new", "doctor", "lint", "schema", "completion"]
app.registered_commands.sort(key=lambda command: _ORDER.index(str(command.name)))
_add_examples(app)


def program() -> NoReturn:
    """Run `main`, then leave with `os._exit`: everything is closed by then, and the shutdown of the interpreter takes 30 ms.

    After an interrupt Python would also wait for each thread, even one that waits for the engine. The guardian comes behind us.
    """
    gc.set_threshold(50_000)  # imports make many things and drop few: looking through them over and over takes 20 ms
    code: object = 0
    try:
        main()
    except SystemExit as leaving:
        code = leaving.code or 0
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError:
        if code != INTERRUPTED:
            sys.exit(code)  # type: ignore[arg-type]  # Python has words for it
    if not isinstance(code, int):
        sys.exit(str(code))
    os._exit(code)


def main() -> None:
    """Run the program with its arguments. Ends with `SystemExit`."""
    if COMPLETE in os.environ:  # a shell asks what may stand here
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    _fill_standard_streams()
    # What ends a run from outside is an interrupt like Ctrl-C: everything is put away, and what had finished is reported.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` and a shell's background jobs have it
            signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a guest's words must not fail on a terminal that has no such characters
    # Nor may they, a compiler's, or the name of a file be a command of the CI service that reads this.
    sys.stdout, sys.stderr = inert.stream(sys.stdout), inert.stream(sys.stderr)
    try:
        words = arguments(sys.argv[1:])
        listed = words in _LISTS and COMPLETE not in os.environ  # a shell gives its words by the environment
        program, name, words = _helped(command(words[:1], names=listed), words)
        program(words, prog_name=name, help_option_names=HELP)
    finally:
        if _interrupted_at > 0:  # while Python ends, it takes our handlers away
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)


def command(words: Sequence[str] = (), *, names: bool = False) -> Any:
    """Build all commands, or the one that `words` begin with: typer takes a millisecond for each.

    Their help names an argument by what it is, without Python's type behind it, and no option of one value is given twice.
    `names`: only their names and summaries, for the list of all.
    """
    commands, groups = app.registered_commands, app.registered_groups
    try:
        if words and any(one.name == words[0] for one in commands):
            app.registered_commands = [one for one in commands if one.name == words[0]]
            app.registered_groups = []
        whole = typer.main.get_command(_names(app) if names else app)
    finally:
        app.registered_commands, app.registered_groups = commands, groups
    pending: list[Any] = [whole]
    while pending:
        one = pending.pop()
        pending += getattr(one, "commands", {}).values()
        one.make_parser = partial(strict_parser, one.make_parser)
        for parameter in one.params:
            if parameter.param_type_name == "argument":
                parameter.display_type_rich = lambda ctx: None  # noqa: ARG005
    return whole


def _names(commands: typer.Typer) -> typer.Typer:
    """Copy the commands without their options."""
    listed = copy.copy(commands)
    listed.registered_commands = [copy.copy(one) for one in commands.registered_commands]
    for one in listed.registered_commands:
        one.callback, one.help = _nothing, inspect.getdoc(one.callback) if one.help is None else one.help
    listed.registered_groups = [copy.copy(group) for group in commands.registered_groups]
    for group in listed.registered_groups:
        assert group.typer_instance is not None
        group.typer_instance = _names(group.typer_instance)
    return listed


def _nothing() -> None:
    """Do nothing: the callback of a command that is only listed."""


def _helped(whole: Any, words: list[str]) -> tuple[Any, str, list[str]]:
    """Find the program to call, its name and its words: the command itself if only its help is asked for.

    On the way through the program typer makes values of its options, and imports pydantic to do so: a tenth of a second.
    """
    one, path = whole, ["qcase"]
    for word in words:
        if word not in getattr(one, "commands", {}):
            break
        one = one.commands[word]
        path.append(word)
    if words[len(path) - 1 :] in [[option] for option in HELP]:
        return one, " ".join(path), ["--help"]
    return whole, "qcase", words


def arguments(argv: Sequence[str]) -> list[str]:
    """Fill in values of options that may have none, and return the words: `--changed` becomes `--changed=HEAD`."""
    words = list(argv)
    for index, word in enumerate(words):
        if word == "--":
            break
        following = words[index + 1] if index + 1 < len(words) else "-"
        if word == "--changed" and following.startswith("-"):
            words[index] = "--changed=HEAD"
    return words


def _fill_standard_streams() -> None:
    """Replace missing standard streams by ones that lead nowhere.

    Else the next file that is opened takes its number, and a lock that is called 0 would be closed by QEMU's own standard input.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _interrupt(*_: object) -> None:
    """Interrupt the run at the first signal. Signals that follow within `PATIENCE` must not stop the clean-up."""
    global _interrupted_at
    now = time.monotonic()
    if now >= _interrupted_at + PATIENCE:
        _interrupted_at = now
        raise KeyboardInterrupt
