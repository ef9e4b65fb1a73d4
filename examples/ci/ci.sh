#!/bin/sh
# Runs the suite of this folder in CI, the same way in every service; it needs qcase, QEMU and an engine.
#
#   ARCH    the architecture; default: x86_64
#   STORE   the folder that the service saves and restores; default: .qcase here
#
# The toolchain images are the engine's. They go into the same folder, so that a new machine need not build them: a saved one is
# loaded, and one that is new is saved.
set -eu

: "${ARCH:=x86_64}" "${STORE:=$PWD/.qcase}"
export QCASE_CACHE_DIR="$STORE/store"
images=$STORE/images
mkdir -p "$QCASE_CACHE_DIR" "$images"

for archive in "$images"/*.tar; do
    [ ! -f "$archive" ] || docker load -q -i "$archive"
done

status=0
qcase run --arch "$ARCH" --junit junit.xml --json results.json || status=$?

# What was not used for longest goes, so that the folder does not grow for ever.
qcase cache gc --max-size "${STORE_SIZE:-2 GiB}" || true

# The base, and what was built upon it.
for label in ${IMAGES:-qcase.base qcase.image}; do
    docker images --filter "label=$label" --format '{{.Repository}}:{{.Tag}}'
done | grep -v '<none>' | sort -u | while read -r name; do
    id=$(docker image inspect -f '{{.Id}}' "$name")
    archive=${id#sha256:}.tar
    [ -f "$images/$archive" ] || docker save -o "$images/$archive" "$name"
    echo "$archive"
done >"$images/keep" || true
for archive in "$images"/*.tar; do
    grep -qx "${archive##*/}" "$images/keep" || rm -f "$archive"
done
exit $status
