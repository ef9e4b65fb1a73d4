"""Grouped cases: several commands, each a subtest, run by a script in the guest.

The script prints a marker before and after each command and goes on to the end whatever fails:

    <BEGIN>: CMD
    … what the command prints …
    <PASSED>: CMD            or  <FAILED>: CMD status=N
    …
    <ALL_PASSED>             or  <ALL_FAILED>

Its arguments, all optional: `ask`, and a limit in seconds. A command that takes longer is killed, with all that it started, and
has failed with status 124:

    <FAILED>: CMD status=124 limit=N

With `ask` the script asks for a secret word on the console, and says it with each marker, in a line of its own before it. Any
program can print a marker; these lines no other program can print, and qcase goes by them alone (`qcase.console.group`):

    <runner_name>: ask PID            typed in answer: the word, twice, so that a damaged one is noticed
    <runner_name>: WORD begin 1
    <runner_name>: WORD end 1 STATUS [limit=N]
    <runner_name>: WORD done STATUS …

The word comes after the question, since a line editor can swallow what is typed ahead. It is in a variable of the script's shell
that no child inherits, and only builtin commands see it, so it is in no file, command line or environment. Each of these lines
begins with a line end, so that neither an unfinished line nor an open escape sequence of a program takes it in.

A command runs in the foreground, under `sh -c`, in a process group of its own (`set -m`), or in a session of its own if there is
no job control, so that a signal to its group does not reach the script. The script itself survives all signals that can be
caught. A command in the background would have SIGINT ignored and no terminal to read from. Therefore the watchdog runs in the
background, and finds the command among the script's other descendants. Without /proc in the guest the watchdog finds nothing, and
qcase stops the case a little later.

The whole script is one function: a shell reads its script bit by bit, and a command could overwrite what was not read yet.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from qcase.errors import UsageError
from qcase.pipelines.group_script import label


def distinct(labels: Sequence[str]) -> tuple[str, ...]:
    """Make labels unique for reports: the second `flip` becomes `flip (2)`, unless another command has that name."""
    taken = set(labels)
    count: dict[str, int] = {}
    found = []
    for one in labels:
        name = one
        count[one] = count.get(one, 0) + 1
        while count[one] > 1 and (name := f"{one} ({count[one]})") in taken:
            count[one] += 1
        taken.add(name)
        found.append(name)
    return tuple(found)


def commands_of(subcase: str, commands: Sequence[str], programs: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """Select the commands that name a program of `subcase`. `programs`: the installed paths in the guest, by subcase.

    A command belongs to each subcase whose program it names, by path or by name, anywhere in its text. Raises `UsageError` if no
    command is found, and if the owner of a command is ambiguous: a test without a command that belongs to it would pass wrongly.
    """
    owners: dict[str, set[str]] = {}
    for name, paths in programs.items():
        for path in paths:
            owners.setdefault(path, set()).add(name)
            owners.setdefault(path.rpartition("/")[2], set()).add(name)
    chosen = []
    for command in commands:
        named: set[str] = set()
        for word in _WORDS.findall(command):
            found = owners.get(word) or owners.get(word.rpartition("/")[2], set())
            if len(found) > 1 and subcase in found:
                raise UsageError(
                    f"which subcase the command {label(command)!r} belongs to cannot be told: "
                    f"{' and '.join(sorted(found))} both install {word}",
                    where=subcase,
                    hint="run the whole group",
                )
            named |= found
        if subcase in named:
            chosen.append(command)
        elif not named and _COMPUTED.search(command):
            raise UsageError(
                f"which subcase the command {label(command)!r} belongs to cannot be told: what it runs is computed in the guest",
                where=subcase,
                hint="name the program in the command, or run the whole group",
            )
    if not chosen:
        installed = ", ".join(sorted(programs.get(subcase, ()))[:6]) or "none"
        raise UsageError(
            "no command of the group names a program of this subcase",
            where=subcase,
            hint=f"programs that it installs: {installed}",
        )
    return tuple(chosen)


def commands_for(subcase: str, commands: Sequence[str], programs: Collection[str]) -> tuple[str, ...]:
    """Select the commands that run a program of `subcase`, which alone is installed. `programs`: its paths in the guest.

    A command runs one if it names it, or if a pattern of the shell in it matches its path: `for test in /usr/bin/tests/*`.
    Raises `UsageError` if no command does: the case would pass without a test.
    """
    names = {*programs, *(path.rpartition("/")[2] for path in programs)}
    chosen = tuple(
        command
        for command in commands
        if any(word in names or any(_fits(word, path) for path in programs) for word in _WORDS.findall(command))
    )
    if not chosen:
        installed = ", ".join(sorted(programs)[:6]) or "none"
        raise UsageError(
            "no command of the group names a program of this subcase, or a pattern that matches one",
            where=subcase,
            hint=f'programs that it installs: {installed}; grouped_command_selection = "preserve_all" runs all commands',
        )
    return chosen


def _fits(pattern: str, path: str) -> bool:
    """Tell whether a shell's pattern matches a path. There `*` stands for no `/`."""
    parts = (pattern.split("/"), path.split("/"))
    return len(parts[0]) == len(parts[1]) and all(map(fnmatch.fnmatchcase, parts[1], parts[0]))


def is_simple(command: str) -> bool:
    """Tell whether a command is one program with its arguments, without any other shell syntax."""
    return not re.search(r"[;|&<>()$`\n!{}]", command)


def names(commands: Sequence[str]) -> frozenset[str] | None:
    """Return every word of the commands that is no option, without folders; None if a command computes its program."""
    if any(_COMPUTED.search(command) for command in commands):
        return None
    words = {word.rpartition("/")[2] for command in commands for word in _WORDS.findall(command) if not word.startswith("-")}
    return frozenset(words - {""})


def may_install(source: Path, named: frozenset[str]) -> bool:
    """Tell whether the sources of a subcase could install a program with one of these names, judged without a build.

    They could if the parts of a name, letters and digits, all occur in the sources, in files or in names of files: a build can
    put `test-pipe` together from `test-${case}` and `pipe`. Names that a build computes in other ways are not detected; see
    `qcase.pipelines.group_installs`.
    """
    wanted = [[part.lower().encode() for part in _PARTS.findall(name)] for name in named]
    missing = {part for parts in wanted for part in parts}
    for folder, folders, files in os.walk(source):
        if any(Path(folder, name).is_symlink() for name in folders):
            return True  # files that several cases share are not looked through
        for name in (*folders, *files):
            missing -= {part for part in missing if part in os.fsencode(name).lower()}
        for name in files:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode) or path.stat().st_size > _LARGE:
                return True
            if not missing or not stat.S_ISREG(mode):
                continue
            text = path.read_bytes().lower()
            missing -= {part for part in missing if part in text}
    return any(not missing.intersection(parts) for parts in wanted)


def in_doubt(commands: Sequence[str], exists: Callable[[str], bool]) -> bool:
    """Tell whether a command may run a program that is not installed. `exists` checks a path of the guest."""
    for command in commands:
        for part in _SEPARATORS.split(_REDIRECTIONS.sub(" ", command)):
            words = [word for word in part.split() if not re.fullmatch(r"\w+=.*", word)]
            while words and words[0] in _KEYWORDS:
                del words[0]
            if not words or words[0] in _BUILTINS:
                continue
            program = words[0].strip("'\"")
            places = [program] if "/" in program else [f"{folder}/{program}" for folder in _PATH]
            if not any(exists(place) for place in places):
                return True
    return False


_LARGE = 4 << 20  # bytes; larger files are not searched
_PARTS = re.compile(r"[A-Za-z0-9]+")
_REDIRECTIONS = re.compile(r"(?<!\d)\d*(?:>>|[<>])(?:&\d|\s*[^\s;|&<>]+)")
_SEPARATORS = re.compile(r"[;|&\n(){}]+")
_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_KEYWORDS = frozenset(
    ["!", "if", "then", "elif", "else", "fi", "while", "until", "do", "done", "time", "exec", "command", "env", "nice", "nohup"]
)
_BUILTINS = frozenset(
    [
        ":",
        "cd",
        "echo",
        "exit",
        "export",
        "false",
        "kill",
        "printf",
        "pwd",
        "read",
        "return",
        "set",
        "shift",
        "test",
        "trap",
        "true",
        "ulimit",
        "umask",
        "unset",
        "wait",
    ]
)

# Words of a command, without the shell's separators and quotes.
_WORDS = re.compile(r"[^\s;|&<>()'\"`={}]+")
# Shell syntax that can run a program whose name is not in the command.
_COMPUTED = re.compile(r"[$`*?\[]|\b(?:eval|xargs|find|sh|source)\b|(?:^|[\s;])\.\s")
