"""Grouped cases: several commands, each a subtest, run by a script in the guest.

The script prints a marker before and after each command and goes on to the end whatever fails:

    <BEGIN>: CMD
    … what the command prints …
    <PASSED>: CMD            or  <FAILED>: CMD status=N
    …
    <ALL_PASSED>             or  <ALL_FAILED>

The script takes two arguments, both optional: a word, which it says right before the last marker, so that no program which
prints markers of its own (the script itself, or an old log) can end the group; and a limit in seconds. A command that takes
longer is killed, with all that it started, and has failed with status 124:

    <FAILED>: CMD status=124 limit=N

The command runs in the foreground all the same, as a child of the script with nothing beside it: what would run in the
background would have SIGINT ignored, no terminal to read from, or children that it never made. So it is the watchdog that runs
in the background, and finds the command as what the script has started besides; without /proc in the guest it finds nothing,
and qcase gives up a little later.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.config import CaseConfig, GroupedRunner
from qcase.errors import UsageError
from qcase.pipelines import make_folders

if TYPE_CHECKING:
    from qcase.console import Rules

RECIPE = 2
_LABEL = 72  # characters of a label, at most


# Only shell, and what a small guest has: `sleep`, and /proc where something is to be killed.
_LIMIT = r"""
word=${1:-}
limit=${2:-}
# What this script has started, and what that has started, but for the watchdog itself.
started_here() {
	read -r self rest </proc/self/stat
	found=" $$ "
	more=1
	while [ "$more" = 1 ]; do
		more=0
		for stat in /proc/[0-9]*/stat; do
			line=
			{ read -r line <"$stat"; } 2>/dev/null
			pid=${line%% *}
			set -- ${line##*) }
			case "$found" in
			*" $pid "*) continue ;;
			*" ${2:-none} "*) ;;
			*) continue ;;
			esac
			[ "$pid" != "$self" ] || continue
			found="$found$pid "
			more=1
		done
	done
	found=${found#" $$ "}
}
watch() {
	sleep "$limit" &
	nap=$!
	trap 'kill "$nap"; exit 1' TERM
	wait "$nap"
	trap '' TERM
	started_here
	[ -n "$found" ] && kill -KILL $found
}
started() {
	[ -n "$limit" ] || return
	watch 2>/dev/null &
	watchdog=$!
}
ended() {
	status=$1
	[ -n "$limit" ] || return "$status"
	kill "$watchdog" 2>/dev/null
	{ wait "$watchdog"; } 2>/dev/null && status="124 limit=$limit"
	[ "$status" = 0 ]
}
"""


def label(command: str) -> str:
    """What names a command in markers and reports: the command itself, or the first line of one that has several."""
    first, *rest = command.splitlines() or [""]
    return f"{first[: _LABEL - 4].rstrip()} ..." if rest else command


def runner_script(commands: Sequence[str], runner: GroupedRunner) -> str:
    """The script that runs in the guest. Commands and markers are quoted for the shell; a command runs under `sh -c`."""
    assert commands
    body = ["#!/bin/sh", "set -u", "failed=0", *_LIMIT.strip().splitlines()]
    for command in commands:
        name = label(command)
        body += [
            f"printf '%s\\n' {quoted(f'{runner.begin_marker}: {name}')}",
            "started",
            f"sh -c {quoted(command)}",
            "if ended $?; then",
            f"\tprintf '%s\\n' {quoted(f'{runner.passed_marker}: {name}')}",
            "else",
            f"\tprintf '%s status=%s\\n' {quoted(f'{runner.failed_marker}: {name}')} \"$status\"",
            "\tfailed=1",
            "fi",
        ]
    body += [
        f'[ -z "$word" ] || printf \'%s %s\\n\' {quoted(done_marker(runner))} "$word"',
        'if [ "$failed" -eq 0 ]; then',
        f"\tprintf '%s\\n' {quoted(runner.all_passed_marker)}",
        "\texit 0",
        "fi",
        f"printf '%s\\n' {quoted(runner.all_failed_marker)}",
        "exit 1",
    ]
    return "\n".join(body) + "\n"


def done_marker(runner: GroupedRunner) -> str:
    return f"{runner.runner_name}: done"


def write_runner_script(overlay: Path, commands: Sequence[str], runner: GroupedRunner) -> Path:
    """Put the script into an overlay, 0755, at `/usr/bin/<runner_name>`. Returns where it is."""
    path = make_folders(overlay, "usr/bin") / runner.runner_name
    path.write_text(runner_script(commands, runner), encoding="utf-8")
    path.chmod(0o755)
    return path


def commands_of(subcase: str, commands: Sequence[str], programs: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """The commands that name a program which `subcase` installs. `programs`: the paths in the guest, by subcase.

    A command belongs to all subcases of which it names a program, by path or by name, wherever in it. Raises `UsageError`
    where there is none, and where one cannot be told: a command that was left out by mistake would be a pass that means
    nothing.
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


def is_simple(command: str) -> bool:
    """Whether a command is one program with its arguments, and nothing that a shell would do besides."""
    return not re.search(r"[;|&<>()$`\n!{}]", command)


def names(commands: Sequence[str]) -> frozenset[str] | None:
    """What the commands name: every word that is no option, without its folders. None where one computes what it runs."""
    if any(_COMPUTED.search(command) for command in commands):
        return None
    words = {word.rpartition("/")[2] for command in commands for word in _WORDS.findall(command) if not word.startswith("-")}
    return frozenset(words - {""})


def may_install(source: Path, named: frozenset[str]) -> bool:
    """Whether the sources of a subcase could install something of one of these names, as far as one can tell without a build.

    They could if the parts of a name, letters and digits, all stand somewhere in them, in files or in names of files: a build
    can put `test-pipe` together from `test-${case}` and `pipe`. What a build computes otherwise is not seen here; see
    `in_doubt`.
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
    """Whether a command may run something that is not there, as far as `exists` can tell of a path in the guest."""
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


_LARGE = 4 << 20  # bytes of a file that nobody looks through
_PARTS = re.compile(r"[A-Za-z0-9]+")
_REDIRECTIONS = re.compile(r"\d*(?:>>|[<>])(?:&\d|\s*[^\s;|&<>]+)")
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

# Words of a command, with all that a shell puts between and around them taken away.
_WORDS = re.compile(r"[^\s;|&<>()'\"`={}]+")
# What makes a shell run something that does not stand there.
_COMPUTED = re.compile(r"[$`*?\[]|\b(?:eval|xargs|find|sh|source)\b|(?:^|[\s;])\.\s")


def rules(config: CaseConfig, runner: GroupedRunner, nonce: str = "", limit: float | None = None) -> Rules:
    """What the console waits for in a grouped case: the runner is the command, its summary the success.

    It is given `nonce` and the limit of each command in seconds, unless a suite has its own way of calling it.

    The case's own success patterns are replaced, as axbuild does. The runner's fail pattern is the marker of a single
    command, which the judge reads for each command; one that a suite sets to something else is looked for as well.
    """
    from qcase.console import Group, Rules

    default_fail = GroupedRunner.model_validate({**runner.model_dump(exclude={"fail_regex"})}).fail_regex
    fail = [pattern for pattern in config.fail_regex if pattern not in (default_fail, runner.fail_regex)]
    if runner.fail_regex != default_fail:
        fail.append(runner.fail_regex)
    words = [runner.runner_path]
    done = ""
    if nonce and runner.runner_path == f"/usr/bin/{runner.runner_name}":
        words += [nonce] if limit is None else [nonce, str(math.ceil(limit))]
        done = f"{done_marker(runner)} {nonce}"
    return Rules(
        prompt=config.shell_prefix,
        command=" ".join(words),
        done=done,
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
            labels=tuple(label(command) for command in config.test_commands),
        ),
    )


def quoted(text: str) -> str:
    """A word of the shell that means `text`."""
    return "'" + text.replace("'", "'\\''") + "'"
