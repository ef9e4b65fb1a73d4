#!/bin/sh
# /proc/sys: a value that is written is read back and takes effect; one out of bounds is refused and changes nothing.
set -u
cd /proc/sys || exit 1

fail() {
	echo "FAIL: $*"
	exit 1
}

put() { sh -c 'echo "$2" >"$1"' - "$@" 2>/dev/null; }

accepts() { # KEY VALUE
	put "$1" "$2" || fail "$1 refuses $2"
	[ "$(cat "$1")" = "$2" ] || fail "$1 is $(cat "$1") after writing $2"
}

refuses() { # KEY VALUE
	before=$(cat "$1")
	! put "$1" "$2" || fail "$1 takes $2"
	[ "$(cat "$1")" = "$before" ] || fail "$1 was $before and is $(cat "$1") after refusing $2"
}

old=$(cat vm/swappiness)
accepts vm/swappiness 7
accepts vm/swappiness 200
refuses vm/swappiness 201
refuses vm/swappiness -1
refuses vm/swappiness seven
accepts vm/swappiness "$old"
refuses kernel/ostype Other

# effect: where the stack lies, with and without randomisation
stacks() { # how many different places three new processes see
	for _ in 1 2 3; do grep -F '[stack]' /proc/self/maps; done | sort -u | wc -l
}
old=$(cat kernel/randomize_va_space)
accepts kernel/randomize_va_space 0
[ "$(stacks)" -eq 1 ] || fail "stacks move without randomisation"
accepts kernel/randomize_va_space 2
[ "$(stacks)" -gt 1 ] || fail "stacks stay with randomisation"
accepts kernel/randomize_va_space "$old"

# effect: no process number at or above pid_max
old=$(cat kernel/pid_max)
accepts kernel/pid_max 1000
i=0
while [ $i -lt 20 ]; do
	pid=$(sh -c 'echo $$')
	[ "$pid" -lt 1000 ] || fail "process $pid with a pid_max of 1000"
	i=$((i + 1))
done
accepts kernel/pid_max "$old"

# effect: the host name, in this UTS namespace and in no other
old=$(hostname)
unshare -u sh -c 'echo inner >kernel/hostname && [ "$(hostname)" = inner ]' || fail "the host name cannot be set"
[ "$(hostname)" = "$old" ] || fail "a host name left its namespace"

echo "PASS: sysctl"
