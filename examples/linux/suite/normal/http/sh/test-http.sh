#!/bin/sh
# HTTP with the host, under a network that is restricted: a server of the case is reached, nothing else is.
set -u

fail() {
	echo "FAIL: $*"
	exit 1
}

same() { # WHAT GOT WANTED
	[ "$2" = "$3" ] || fail "$1: got '$2', wanted '$3'"
}

work=$(mktemp -d /tmp/http.XXXXXX) || fail "no work folder"

same "one request" "$(wget -q -O - http://10.0.2.2:8000/)" greetings
for number in 1 2 3; do
	wget -q -O "$work/$number" "http://10.0.2.2:8000/$number" &
done
wait
same "three at once" "$(cat "$work/1" "$work/2" "$work/3" | uniq -c | tr -d ' ')" 3greetings

# kept on the host, as dropped-machine.txt beside the console's log
uname -a >"$work/machine.txt"
same "a file for the host" "$(wget -q -O - --post-file="$work/machine.txt" http://10.0.2.2:8001/machine.txt)" kept

! wget -q -T 5 -O - http://10.0.2.2:8002/ 2>/dev/null || fail "another port of the host answers"
! wget -q -T 5 -O - http://10.0.2.4:22/ 2>/dev/null || fail "the host answers at its own address"

echo "PASS: http"
