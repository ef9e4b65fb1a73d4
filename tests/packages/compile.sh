# Compiles what the packages hold, for each of $ARCHITECTURES, in /qcase/build, without network:
#
#   roots/<arch>/<package>/    what a package installs
#   key.rsa, qcase-tests.rsa.pub
#
# CPython is cut down to what a test of the pipeline needs: without its tests, IDLE, Tk, pip, and modules of other libraries.
set -eu
exec 2>&1
cd /qcase/build
source=/opt/source/python

configure_python() {
    mkdir -p "$1/Modules"
    cat >"$1/Modules/Setup.local" <<END
*disabled*
_codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw _multibytecodec _decimal _lsprof pyexpat _elementtree
_tkinter _curses _curses_panel _dbm _gdbm _sqlite3 _ssl _hashlib _ctypes _ctypes_test readline nis _uuid _bz2 _lzma zlib
_interpreters _interpchannels _interpqueues xxlimited xxlimited_35 xxsubtype _xxtestfuzz ossaudiodev
END
    # Debian's gcc names glibc's triplet, and configure does not believe in two.
    printf '#!/bin/sh\n[ "$1" = --print-multiarch ] && exec echo %s-linux-musl\nexec %s-linux-musl-gcc "$@"\n' "$1" "$1" >"$1/cc"
    chmod 755 "$1/cc"
    cd "$1"
    "$source/configure" -q --host="$1-linux-musl" --build=x86_64-linux-gnu --prefix=/usr --with-build-python=/usr/bin/python3.13 \
        --without-ensurepip --disable-test-modules --disable-ipv6 --without-static-libpython --with-pkg-config=no \
        ac_cv_file__dev_ptmx=no ac_cv_file__dev_ptc=no \
        CC="$PWD/cc" AR="$1-linux-musl-ar" READELF="$1-linux-musl-readelf" CFLAGS='-O1 -g0 -w' >configure.out 2>&1 ||
        { tail -n 20 configure.out; exit 1; }
}

install_python() {
    root=/qcase/build/roots/$1/python3
    library=$root/usr/lib/python3.13
    mkdir -p "$root/usr/bin" "$library/lib-dynload"
    cp python "$root/usr/bin/python3.13"
    ln -s python3.13 "$root/usr/bin/python3"
    cp Modules/*.cpython-313-*.so "$library/lib-dynload/"
    "$1-linux-musl-strip" "$root/usr/bin/python3.13" "$library"/lib-dynload/*.so
    (cd "$source/Lib" && tar -c --exclude=test --exclude=tests --exclude=idlelib --exclude=idle_test --exclude=tkinter \
        --exclude=turtledemo --exclude=turtle.py --exclude=ensurepip --exclude=pydoc_data --exclude=lib2to3 --exclude=__pycache__ \
        --exclude=__phello__ --exclude=venv .) | tar -x -C "$library"
    cp build/lib.linux*/_sysconfigdata_*.py "$library/"
    # Bytes that say of themselves that they are good, whatever the time of the source is: the guest's times are fixed.
    python3.13 -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$root" "$library"
}

libraries() {
    root=/qcase/build/roots/$1
    lz4=/opt/source/lz4/lib
    mkdir -p "$root/lz4-libs/usr/lib" "$root/lz4-dev/usr/include" "$root/lz4-dev/usr/lib/pkgconfig"
    (cd "$lz4" && "$1-linux-musl-gcc" -O2 -shared -fPIC -DXXH_NAMESPACE=LZ4_ -Wl,-soname,liblz4.so.1 \
        -o "$root/lz4-libs/usr/lib/liblz4.so.1.10.0" lz4.c lz4hc.c lz4frame.c xxhash.c)
    ln -s liblz4.so.1.10.0 "$root/lz4-libs/usr/lib/liblz4.so.1"
    ln -s liblz4.so.1 "$root/lz4-dev/usr/lib/liblz4.so"
    cp "$lz4/lz4.h" "$lz4/lz4hc.h" "$lz4/lz4frame.h" "$root/lz4-dev/usr/include/"
    sed -e 's,@PREFIX@,/usr,; s,@LIBDIR@,${prefix}/lib,; s,@INCLUDEDIR@,${prefix}/include,; s,@VERSION@,1.10.0,; s, -lxxhash,,' \
        "$lz4/liblz4.pc.in" >"$root/lz4-dev/usr/lib/pkgconfig/liblz4.pc"
    mkdir -p "$root/tally/usr/lib" "$root/tally-dev/usr/include" "$root/tally-dev/usr/lib/pkgconfig"
    "$1-linux-musl-gcc" -O2 -shared -fPIC -Wl,-soname,libtally.so.1 -o "$root/tally/usr/lib/libtally.so.1.0" /qcase/src/tally.c
    ln -s libtally.so.1.0 "$root/tally/usr/lib/libtally.so.1"
    ln -s libtally.so.1 "$root/tally-dev/usr/lib/libtally.so"
    cp /qcase/src/tally.h "$root/tally-dev/usr/include/"
    cp /qcase/src/tally.pc "$root/tally-dev/usr/lib/pkgconfig/"
}

scripts() {
    root=/qcase/build/roots/$1
    for name in greeting greeting-words greeting-voice; do mkdir -p "$root/$name/usr/share/greeting"; done
    # Debian's Python looks for modules of packages there.
    mkdir -p "$root/greeting/usr/bin" "$root/py3-greeting/usr/lib/python3/dist-packages"
    printf '#!/bin/sh\necho "$(cat /usr/share/greeting/voice): $(cat /usr/share/greeting/words)"\n' >"$root/greeting/usr/bin/greeting"
    chmod 755 "$root/greeting/usr/bin/greeting"
    echo 'hello from a package' >"$root/greeting-words/usr/share/greeting/words"
    echo 'loud' >"$root/greeting-voice/usr/share/greeting/voice"
    echo 'WORDS = "hello from a module"' >"$root/py3-greeting/usr/lib/python3/dist-packages/greeting.py"
}

rm -rf roots
for arch in $ARCHITECTURES; do
    (configure_python "$arch") &
    configured="${configured:-} $!"
done
for job in $configured; do wait "$job"; done
for arch in $ARCHITECTURES; do
    cd "/qcase/build/$arch"
    make -s -j"$(nproc)" python sharedmods platform >make.out || { tail -n 20 make.out; exit 1; }
    install_python "$arch"
    libraries "$arch"
    scripts "$arch"
done
cd /qcase/build
find roots -exec touch -h -d @"$SOURCE_DATE_EPOCH" {} +
openssl genrsa -out key.rsa 2048
openssl rsa -in key.rsa -pubout -out qcase-tests.rsa.pub
