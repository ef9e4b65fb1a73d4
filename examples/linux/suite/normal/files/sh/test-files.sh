#!/bin/sh
# Files, links and devices, told as KTAP: qcase reads each line of it as a test of its own. That reflink fails is
# known, see known.toml.

folder=$(mktemp -d)
cd "$folder" || exit 1

# result NUMBER NAME STATUS INDENTATION: prints a result and returns the status.
result() {
    if [ "$3" = 0 ]; then echo "$4ok $1 $2"; else echo "$4not ok $1 $2"; fi
    return "$3"
}

links() {
    failed=0
    echo '  KTAP version 1'
    echo '  # Subtest: links'
    echo '  1..3'
    echo text >one
    ln one two && [ "$(stat -c %h one)" = 2 ]
    result 1 hard $? '  ' || failed=1
    ln -s one three && [ "$(cat three)" = text ] && [ "$(readlink three)" = one ]
    result 2 symbolic $? '  ' || failed=1
    mv one four && [ "$(cat two)" = text ] && ! cat three 2>/dev/null
    result 3 dangling $? '  ' || failed=1
    return $failed
}

echo 'KTAP version 1'
echo '1..6'
links
result 1 links $?
head -c 4096 /dev/zero | cmp -s -n 4096 - /dev/zero
result 2 zeros $?
mkfifo pipe && { echo through >pipe & } && [ "$(cat pipe)" = through ]
result 3 fifo $?
truncate -s 1G sparse && [ "$(du -k sparse | cut -f 1)" -lt 64 ]
result 4 sparse $?
if [ -e /dev/fuse ]; then
    [ -c /dev/fuse ]
    result 5 fuse $?
else
    echo 'ok 5 fuse # SKIP this kernel has no FUSE loaded'
fi
cp --reflink=always two five 2>/dev/null
result 6 reflink $?
cd / && rm -r "$folder"
