# Builds GCC's libstdc++ for musl, shared and static; a part of musl.sh, which see for the names. Into the sysroot go:
#
#   include/c++/<version>/    its headers
#   lib/                      libstdc++.so.6, libstdc++.a, libsupc++.a
#
# The shared library has GCC's unwinder in it, as each program has: none needs a libgcc_s. It has no symbol versions, for which musl
# does not ask.

# How compilers find the headers: ahead of what is given by -isystem, so that they can include a header of musl of the same name.
cplusplus_includes() {
    echo "-isystem $cplusplus -isystem $cplusplus/$arch-linux-musl -isystem $cplusplus/backward"
}

# Of GCC's sources what the library's own build reads. GCC's top level would name the thread model, and ask weakly for functions of
# threads, which are not there then in a static program: musl has them in its one library.
unpack_gcc() {
    gcc_source=$work/gcc
    mkdir "$gcc_source"
    tar -x -f "/usr/src/gcc-$(gcc -dumpversion)"/gcc-*.tar.xz -C "$gcc_source" --strip-components=1 --wildcards \
        --exclude='*/testsuite/*/*' '*/libstdc++-v3' '*/libgcc' '*/libiberty' '*/libbacktrace' '*/include' '*/config' \
        '*/config.*' '*/config-ml.in' '*/install-sh' '*/ltmain.sh' '*/mkinstalldirs' '*/missing' '*/depcomp' '*/compile' \
        '*/symlink-tree' '*/move-if-change' '*/gcc/BASE-VER' '*/gcc/DEV-PHASE' '*/gcc/DATESTAMP'
    ln -s gthr-posix.h "$gcc_source/libgcc/gthr-default.h"
    sed -i -e 's/^#ifndef GTHREAD_USE_WEAK$/#undef GTHREAD_USE_WEAK\n&/' -e 's/^#define GTHREAD_USE_WEAK 1$/#define GTHREAD_USE_WEAK 0/' \
        "$gcc_source/libgcc/gthr.h"
}

# All architectures at once: half of the time one of them configures.
build_all_libstdcxx() {
    started=
    for arch in $architectures; do
        set_names
        build_libstdcxx >"$work/libstdcxx-$arch.log" 2>&1 &
        started="$started $arch:$!"
    done
    for one in $started; do
        wait "${one#*:}" || {
            tail -n 40 "$work/libstdcxx-${one%:*}.log" >&2
            exit 1
        }
    done
}

build_libstdcxx() {
    mkdir "$work/libstdcxx-$arch"
    cd "$work/libstdcxx-$arch"
    tools=$arch-linux-gnu
    flags="-O2 -ffile-prefix-map=$work=/usr/src"
    "$gcc_source/libstdc++-v3/configure" -q --build="$(gcc -dumpmachine)" --host="$arch-linux-musl" --prefix=/ \
        --with-gxx-include-dir="/include/c++/$major" --with-pic --disable-multilib --disable-nls --disable-cet \
        --disable-libstdcxx-pch --disable-werror CC="$gcc$to_musl" CXX="/usr/bin/$tools-g++$to_musl" CFLAGS="$flags" CXXFLAGS="$flags" \
        AR="$tools-ar" AS="$tools-as" LD="$tools-ld" NM="$tools-nm" RANLIB="$tools-ranlib" STRIP="$tools-strip"
    make -s -j2
    make -s install DESTDIR="$PWD/installed"
    cp -a installed/include/c++ "$sysroot/include/"
    cp -a installed/lib/libstdc++.so.6 installed/lib/libstdc++.so.6.*.* installed/lib/libstdc++.so \
        installed/lib/libstdc++.a installed/lib/libsupc++.a "$sysroot/lib/"
    rm -f "$sysroot"/lib/libstdc++.so.*.py
    "$tools-strip" --strip-unneeded "$sysroot"/lib/libstdc++.so.6.*
}
