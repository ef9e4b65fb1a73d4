#!/bin/sh
# tmpfs, bind mounts, read-only remounts and mount namespaces: what each shows, and what each refuses.
set -u

fail() {
	echo "FAIL: $*"
	exit 1
}

refused() { # REASON COMMAND...: the command must fail, and say why
	reason=$1
	shift
	said=$("$@" 2>&1) && fail "'$*' was not refused"
	case $said in *"$reason"*) ;; *) fail "'$*' said '$said', not '$reason'" ;; esac
}

put() { sh -c 'echo "$2" >"$1"' - "$@"; }

work=$(mktemp -d /tmp/mounts.XXXXXX) && cd "$work" && mkdir a b || fail "no work folder"
put a/below hidden

# tmpfs: covers what is below, keeps its size limit
mount -t tmpfs -o size=1m none a || fail "cannot mount a tmpfs"
grep -q "^none $work/a tmpfs rw.*size=1024k" /proc/mounts || fail "/proc/mounts does not show the tmpfs"
[ -z "$(ls a)" ] || fail "a new tmpfs is not empty"
refused "No space left" dd if=/dev/zero of=a/big bs=64k count=32
[ "$(stat -c %s a/big)" -eq 1048576 ] || fail "a tmpfs of 1 MiB took $(stat -c %s a/big) bytes"
rm a/big

# bind: the same files at a second place, read-only there alone
mount -o bind a b || fail "cannot bind"
put a/file one
[ "$(cat b/file)" = one ] || fail "a bind mount shows other files"
[ "$(stat -c %d:%i a/file)" = "$(stat -c %d:%i b/file)" ] || fail "a bind mount has other inodes"
mount -o remount,bind,ro b || fail "cannot make a bind mount read-only"
refused "Read-only file system" put b/file two
refused "Read-only file system" mkdir b/dir
put a/file three || fail "a read-only bind mount made its source read-only"
[ "$(cat b/file)" = three ] || fail "a read-only bind mount shows old content"

# a file open for writing keeps the file system from going read-only
exec 7>a/open
refused "busy" mount -o remount,ro a
exec 7>&-
mount -o remount,ro a || fail "cannot remount read-only"
refused "Read-only file system" put a/file four
refused "Read-only file system" rm -f a/file
mount -o remount,rw a || fail "cannot remount read-write"
put a/file five || fail "read-only after a remount read-write"

# a mount in a namespace of its own stays there
unshare -m --propagation private sh -c 'mount -t tmpfs none a && [ ! -e a/file ]' || fail "no mount in a new namespace"
[ "$(cat a/file)" = five ] || fail "a mount left its namespace"

# umount: refused while in use, then uncovers what is below
refused "busy" sh -c 'cd a && umount ../a'
umount b || fail "cannot unmount a bind mount"
umount a || fail "cannot unmount a tmpfs"
[ "$(cat a/below)" = hidden ] || fail "umount did not uncover the folder"
! grep -q " $work/" /proc/mounts || fail "/proc/mounts still shows a mount"

echo "PASS: mounts"
