#!/bin/sh
# What /proc says of a process, of memory and of mounts must agree with what we know by other means.
set -u

fail() {
	echo "FAIL: $*"
	exit 1
}

field() { # FILE NAME: the first word behind "NAME:"
	awk -v name="$2:" '$1 == name { print $2 }' "$1"
}

same() { # WHAT GOT WANTED
	[ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"
}

work=$(mktemp -d /tmp/proc.XXXXXX) && cd "$work" || fail "no work folder"
me=/proc/$$
umask 027

same "Pid" "$(field $me/status Pid)" $$
same "PPid" "$(field $me/status PPid)" $PPID
same "Name" "$(field $me/status Name)" "${0##*/}"
same "Threads" "$(field $me/status Threads)" 1
same "Umask" "$(field $me/status Umask)" 0027
same "cwd" "$(readlink $me/cwd)" "$work"
same "a reader's own state" "$(field /proc/self/status State)" R

printf 12345 >data
exec 7<data
read -r word <&7
same "fd/7" "$(readlink $me/fd/7)" "$work/data"
same "offset of fd 7" "$(field $me/fdinfo/7 pos)" 5
exec 7<&-
[ ! -e $me/fd/7 ] || fail "fd/7 outlived its close"

sleep 60 &
child=$!
same "PPid of a child" "$(field /proc/$child/status PPid)" $$
kill $child
wait $child
[ ! -e /proc/$child ] || fail "/proc/$child outlived its process"

total=$(field /proc/meminfo MemTotal)
available=$(field /proc/meminfo MemAvailable)
[ "$available" -gt 0 ] && [ "$available" -lt "$total" ] || fail "$available kB of $total kB available"
before=$(field /proc/meminfo Shmem)
dd if=/dev/zero of=/dev/shm/proc.$$ bs=1M count=16 2>/dev/null || fail "cannot fill /dev/shm"
grown=$(($(field /proc/meminfo Shmem) - before))
rm /dev/shm/proc.$$
[ $grown -ge 12288 ] && [ $grown -le 20480 ] || fail "16 MiB in tmpfs count as $grown kB of Shmem"

same "cpus in /proc/stat" "$(grep -c '^cpu[0-9]' /proc/stat)" "$(nproc)"
for place in / /proc /sys /dev; do
	awk -v place=$place '$2 == place { found = 1 } END { exit !found }' /proc/mounts || fail "$place is no mount"
done
same "boot_id, read twice" "$(cat /proc/sys/kernel/random/boot_id)" "$(cat /proc/sys/kernel/random/boot_id)"
[ "$(cat /proc/sys/kernel/random/uuid)" != "$(cat /proc/sys/kernel/random/uuid)" ] || fail "the same uuid twice"

echo "PASS: proc"
