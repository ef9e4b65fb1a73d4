#!/bin/sh
# Runs qcase as the one whose folder it works in, so that what it makes is theirs: as root only if that folder is root's, or if the
# engine's socket lets nobody else in. With `docker run --user`, nothing is changed.
set -eu

case ${1:-} in
    sh | bash | /*) ;; # a CI service wants a shell, or something else by its path
    *) set -- qcase "$@" ;;
esac

if [ "$(id -u)" = 0 ]; then
    user=$(stat -c %u .)
    group=$(stat -c %g .)
    socket=${DOCKER_HOST:-unix:///var/run/docker.sock}
    socket=${socket#unix://}
    groups=$group
    if [ -S "$socket" ]; then
        case $(stat -L -c %A "$socket") in
            s???rw*) groups=$group,$(stat -L -c %g "$socket") ;;
            s??????rw?) ;;
            *) [ "$(stat -L -c %u "$socket")" = "$user" ] || user=0 ;;
        esac
    fi
    if [ "$user" != 0 ]; then
        export HOME=/tmp
        exec setpriv --reuid "$user" --regid "$group" --groups "$groups" --inh-caps=-all --bounding-set=-all --no-new-privs -- "$@"
    fi
fi
[ -w "${HOME:-/}" ] || export HOME=/tmp
exec "$@"
