#!/bin/sh
# Runs the suite of this folder in CI, the same way in every service; it needs qcase, QEMU and an engine.
#
#   ARCH    the architecture; default: x86_64
#   STORE   the folder that the service saves and restores; default: .qcase here
#
# The toolchain images are the engine's. They go into the same folder, as one file: a machine that does not have them loads them and
# need not build them, and new ones are saved. A team with a container registry has `qcase images push` and `pull` in place of that.
set -eu

: "${ARCH:=x86_64}" "${STORE:=$PWD/.qcase}"
export QCASE_CACHE_DIR="$STORE/store"
images=$STORE/images
mkdir -p "$QCASE_CACHE_DIR" "$images"

# What the engine has already is not loaded again. A file of other recipes, which another version of qcase saved, is refused.
for file in "$images"/*.tar; do
    [ ! -f "$file" ] || qcase images load "$file" || rm -f "$file"
done

status=0
qcase run --arch "$ARCH" --junit junit.xml --json results.json || status=$?

# What was not used for longest goes, so that the folder does not grow for ever.
qcase cache gc --max-size "${STORE_SIZE:-2 GiB}" || true

# The file is named after the images in it, by their identities.
built=$(qcase images list | awk '$2 != "not" { print $1, $2 }')
file=$images/$(printf '%s' "$built" | cksum | tr ' ' -).tar
if [ -n "$built" ] && [ ! -f "$file" ] && qcase images save "$file"; then
    for old in "$images"/*.tar; do
        [ "$old" = "$file" ] || rm -f "$old"
    done
fi
exit $status
