#!/bin/sh
# Pipes, exit statuses, process groups and job control, as a shell uses them.
set -u

fail() {
	echo "FAIL: $*"
	exit 1
}

same() { # WHAT GOT WANTED
	[ "$2" = "$3" ] || fail "$1: got '$2', wanted '$3'"
}

status() { # COMMAND...: its exit status
	"$@" >/dev/null 2>&1
	echo $?
}

stat_field() { # PID FIELD of /proc/PID/stat; 3: state, 5: process group
	cut -d ' ' -f "$2" /proc/"$1"/stat
}

reaches() { # PID STATE, within ten seconds
	tries=0
	until [ "$(stat_field "$1" 3)" = "$2" ]; do
		[ $((tries += 1)) -lt 1000 ] || fail "process $1 is in state $(stat_field "$1" 3), not $2"
		sleep 0.01
	done
}

work=$(mktemp -d /tmp/jobs.XXXXXX) || fail "no work folder"

# exit statuses
same "exit" "$(status sh -c 'exit 3')" 3
same "death by a signal" "$(status sh -c 'kill -KILL $$')" 137
same "an ignored signal" "$(status sh -c 'trap "" TERM; kill -TERM $$; exit 5')" 5
same "ignored across exec" "$(status sh -c 'trap "" TERM; exec sh -c "kill -TERM \$\$; exit 6"')" 6

# pipes
same "five stages" "$(seq 1 2000 | cat | tac | cat | sort -n | md5sum)" "$(seq 1 2000 | md5sum)"
{ yes; echo $? >"$work/status"; } | head -n 1 >/dev/null
same "a writer whose reader went" "$(cat "$work/status")" 141
mkfifo "$work/fifo"
seq 1 1000 >"$work/fifo" &
same "lines through a fifo" "$(wc -l <"$work/fifo")" 1000
wait $! || fail "the writer of a fifo failed"

# stop and continue
sleep 60 &
pid=$!
kill -STOP $pid
reaches $pid T
kill -TERM $pid # stays pending while it is stopped
reaches $pid T
kill -CONT $pid
wait $pid
same "terminated after it went on" $? 143

# with job control a job has a process group of its own, and a signal to the group reaches all of it
set -m
sleep 60 | sleep 60 &
last=$!
set +m
group=$(stat_field $last 5)
[ "$group" != "$(stat_field $$ 5)" ] || fail "a job runs in the shell's process group"
members=$(awk -v group="$group" '$5 == group' /proc/[0-9]*/stat 2>/dev/null | wc -l)
same "members of the job's group" "$members" 2
kill -TERM -"$group"
wait $last 2>/dev/null
same "the job's status" $? 143
! kill -0 -"$group" 2>/dev/null || fail "the group outlived its processes"

echo "PASS: jobs"
