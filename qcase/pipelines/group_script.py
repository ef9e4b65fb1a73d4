"""The script that runs a group's commands in the guest."""

from __future__ import annotations

from collections.abc import Sequence

from qcase.config.workspace_file import GroupedRunner
from qcase.host.trees import Tree
from qcase.pipelines.pipeline import make_folders

SCRIPT_RECIPE = 3
_LABEL = 72  # characters of a label, at most
# By number, since not every shell knows every name: HUP INT QUIT ABRT USR1 USR2 PIPE ALRM TERM and the other signals that end a
# process, except those with which the kernel reports a fault of the shell itself.
_SURVIVED = "1 2 3 6 10 12 13 14 15 16 24 25 27 29 30"
# SIGVTALRM calls the watchdog off. The script does not trap it: a signal that comes before a subshell has traps of its own is
# lost if its parent has one.
_CALLED = "26"


# Uses the shell alone, and two things of a small guest: `sleep`, and /proc for kills. NAME is the runner's name.
_FUNCTIONS = r"""
word=
limit=
watchdog=
failed=0
statuses=
# A variable that the guest's environment has would be handed to each command.
unset word again rest
word=
# Say a line that no other program can say. A program may leave the console in a state in which a line is refused.
say() {
	[ -n "$word" ] || return 0
	for attempt in 1 2 3 4 5; do
		echo "
NAME: $word $1" && return
		sleep 1
	done
}
mark() {
	for attempt in 1 2 3 4 5; do
		printf '%s\n' "$1" && return
		sleep 1
	done
}
# Ask for the word, without echo where there is `stty`.
ask() {
	saved=$(stty -g 2>/dev/null) || saved=
	[ -z "$saved" ] || stty -echo 2>/dev/null
	for attempt in 1 2 3 4 5; do
		echo "
NAME: ask $$"
		read -r word again rest || break
		[ "$word" != "$again" ] || break
		word=
	done
	[ -z "$saved" ] || stty "$saved" 2>/dev/null
	[ -z "$word" ] || return 0
	echo "NAME: no answer"
	exit 1
}
# What this script has started, what that has started, and the process groups of all these, but for the watchdog itself.
started_here() {
	read -r self rest </proc/self/stat
	read -r line </proc/$$/stat
	set -- ${line##*) }
	ours=$3
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
			*" ${3:-none} "*) [ "$3" != "$ours" ] || continue ;;
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
	trap 'kill "$nap"; exit 1' CALLED
	wait "$nap"
	trap '' CALLED
	started_here
	[ -n "$found" ] && kill -KILL $found
}
# A command's group or session. A shell that says it has job control may still fail to run anything with it.
separate() {
	set -m 2>/dev/null
	case $- in
	*m*) sh -c 'exit 7' 2>/dev/null; [ $? = 7 ] && return ;;
	esac
	set +m 2>/dev/null
	setsid sh -c 'exit 7' 2>/dev/null
	[ $? != 7 ] || session=setsid
}
survive() {
	for signal in SURVIVED; do trap : $signal; done
}
run() {
	if [ -n "${BASH_VERSION:-}" ]; then
		# With job control bash ends itself behind a command that SIGINT has ended.
		(survive; sh -c "$1"; exit $?)
	else
		$session sh -c "$1"
	fi
}
begin() {
	say "begin $1"
	mark "$2"
	[ -n "$limit" ] || return 0
	watch 2>/dev/null &
	watchdog=$!
}
end() {
	status=$2
	late=
	if [ -n "$limit" ]; then
		kill -CALLED "$watchdog" 2>/dev/null
		{ wait "$watchdog"; } 2>/dev/null && status=124 late=" limit=$limit"
	fi
	statuses="$statuses $status"
	say "end $1 $status$late"
	if [ "$status" = 0 ]; then
		mark "$3"
	else
		mark "$4 status=$status$late"
		failed=1
	fi
}
"""


def label(command: str) -> str:
    """Return the name of a command in markers and reports: the command itself, or its first line if it has several."""
    first, *rest = command.splitlines() or [""]
    return f"{first[: _LABEL - 4].rstrip()} ..." if rest else command


def runner_script(commands: Sequence[str], runner: GroupedRunner) -> str:
    """Return the script for the guest. Commands and markers are quoted for the shell; each command runs under `sh -c`."""
    assert commands
    body = [
        "#!/bin/sh",
        "set -u",
        "set +a",
        *_FUNCTIONS.replace("NAME", runner.runner_name)
        .replace("SURVIVED", _SURVIVED)
        .replace("CALLED", _CALLED)
        .strip()
        .splitlines(),
        "main() {",
    ]
    body += [
        "session=",
        "for argument; do",
        "\tcase $argument in ask) ask ;; *) limit=$argument ;; esac",
        "done",
        "survive",
        "separate",
    ]
    for number, command in enumerate(commands, start=1):
        name = label(command)
        body += [
            f"begin {number} {quoted(f'{runner.begin_marker}: {name}')}",
            f"run {quoted(command)}",
            f"end {number} $? {quoted(f'{runner.passed_marker}: {name}')} {quoted(f'{runner.failed_marker}: {name}')}",
        ]
    body += [
        'say "done$statuses"',
        'if [ "$failed" -eq 0 ]; then',
        f"\tmark {quoted(runner.all_passed_marker)}",
        "\texit 0",
        "fi",
        f"mark {quoted(runner.all_failed_marker)}",
        "exit 1",
        "}",
        'main "$@"',
    ]
    return "\n".join(body) + "\n"


def write_runner_script(overlay: Tree, commands: Sequence[str], runner: GroupedRunner) -> Tree:
    """Write the script into an overlay, mode 0755, at `/usr/bin/<runner_name>`. Returns its path."""
    place = make_folders(overlay, "usr/bin") / runner.runner_name
    place.write_text(runner_script(commands, runner), 0o755)
    return place


def quoted(text: str) -> str:
    """Quote `text` as one word for the shell."""
    return "'" + text.replace("'", "'\\''") + "'"
