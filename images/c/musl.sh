#!/bin/sh
# Builds musl from Debian's source package for each architecture, puts the kernel's headers beside it, makes the compiler
# wrappers, and leaves nothing else behind. Runs once, as root, while the image is built. For each architecture:
#
#   /opt/qcase/musl/<arch>/     the sysroot; both compilers get it with --sysroot=, so a later --sysroot= replaces it as a whole
#     include/                  musl, linux/, asm/, asm-generic/, …
#     lib/                      libc.so, libc.a, crt1.o, …; ld-musl-<arch>.so.1 and Alpine's libc.musl-<arch>.so.1 link to libc.so
#     usr -> .
#   /opt/qcase/gcc/<arch>/
#     musl.specs                turns Debian's gcc from glibc to the sysroot
#     clang.cfg, clang++.cfg    the same for clang; options from a file are never "unused", which matters with -Werror
#     lib/gcc/<arch>-linux-musl/<version>/   a GCC installation as clang expects one, without any library made for glibc
set -eu

architectures="x86_64 aarch64 riscv64 loongarch64"
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
. "${0%/*}/libstdcxx.sh"

main() {
    work=$(mktemp -d)
    fetch_source
    for arch in $architectures; do
        set_names
        build_musl
        add_kernel_headers
        add_runtime
        write_specs
        write_clang_config
        write_wrappers
    done
    unpack_gcc
    build_all_libstdcxx
    remove_traces
    write_package_list
}

# The places of one architecture.
set_names() {
    sysroot=/opt/qcase/musl/$arch
    private=/opt/qcase/gcc/$arch
    gcc=/usr/bin/$arch-linux-gnu-gcc
    # Both compilers would use loongarch64's vector unit: a kernel has to switch it on for its programs, which a young one may
    # not do, and QEMU before 8.1 has none. -mlsx asks for it.
    case $arch in loongarch64) plain=" -msimd=none" ;; *) plain= ;; esac
    major=$($gcc -dumpversion)
    runtime=$private/lib/gcc/$arch-linux-musl/$major
    to_musl="$plain -mmusl --sysroot=$sysroot -specs=$private/musl.specs"
    cplusplus=$sysroot/include/c++/$major
}

# The source package, with Debian's patches, by deb-src lines like the deb lines that the base has.
fetch_source() {
    sed -n 's/^deb[[:space:]]/deb-src /p' /etc/apt/sources.list >/etc/apt/sources.list.d/qcase-source.list
    apt-get update -q --error-on=any
    installed >"$work/before"
    apt-get install -q -y --no-install-recommends dpkg-dev "gcc-$(gcc -dumpversion)-source"
    installed >"$work/after"
    cd "$work"
    apt-get source -q --only-source musl
    cd "$work"/musl-*/
    source=$PWD
    version=$(dpkg-parsechangelog -S Version)
    gcc_version=$(dpkg-query -W -f '${Version}' "gcc-$(gcc -dumpversion)-source")
}

# Debian's own musl package is for the host alone and lives with multiarch paths, so musl's own build is called.
build_musl() {
    mkdir "$work/$arch"
    cd "$work/$arch"
    "$source/configure" --target="$arch-linux-musl" --prefix=/ --syslibdir=/lib --disable-wrapper \
        CC="$gcc$plain" AR="$arch-linux-gnu-ar" RANLIB="$arch-linux-gnu-ranlib"
    make -s -j"$(nproc)"
    make -s install DESTDIR="$sysroot"
    rmdir "$sysroot/bin" 2>/dev/null || true
    ln -s . "$sysroot/usr"
    ln -sf libc.so "$sysroot/lib/ld-musl-$arch.so.1" # musl makes it absolute, which is for the guest, not for here
    ln -s libc.so "$sysroot/lib/libc.musl-$arch.so.1" # the name under which Alpine's libraries need it
}

# One package has the headers of all architectures. Copied once; the other sysroots get hard links, which cost nothing.
add_kernel_headers() {
    if [ ! -d "$work/headers" ]; then
        mkdir "$work/headers"
        cd /usr/include
        dpkg -L linux-libc-dev | sed -n 's,^/usr/include/,,p' | grep -v -e '-linux-gnu' >"$work/names"
        while read -r name; do [ -d "$name" ] || echo "$name"; done <"$work/names" >"$work/files"
        tar -c --dereference -T "$work/files" | tar -x -C "$work/headers"
    fi
    cd "$work/headers"
    find . -type f | while read -r name; do
        if [ -e "$sysroot/include/$name" ]; then
            echo "both musl and the kernel bring $name" >&2
            exit 1
        fi
    done
    cp -al . "$sysroot/include/"
    cp -rL "/usr/include/$arch-linux-gnu/asm" "$sysroot/include/asm"
}

# What of GCC's own libraries works with musl. Two functions of glibc that libgcc.a and libgcc_eh.a call go into the latter, which
# both compilers link after the former. libgcc_s.so needs a whole glibc.
add_runtime() {
    mkdir -p "$runtime"
    for name in crtbegin.o crtbeginS.o crtbeginT.o crtend.o crtendS.o crtfastmath.o libgcc.a; do
        file=$($gcc -print-file-name=$name)
        [ "$file" = "$name" ] || ln -s "$file" "$runtime/$name" # riscv64 has no crtfastmath.o
    done
    cp "$($gcc -print-file-name=libgcc_eh.a)" "$runtime/libgcc_eh.a"
    cd "$work/$arch"
    for name in dl_find_object getauxval; do
        $gcc$plain -O2 -fPIC -fexceptions -Wall -Wextra -Werror -nostdinc \
            -isystem "$sysroot/include" -isystem "$($gcc -print-file-name=include)" -c "${0%/*}/$name.c" -o $name.o
        "$arch-linux-gnu-ar" rcs "$runtime/libgcc_eh.a" $name.o
    done
}

# %R is the sysroot, whichever --sysroot= came last. Headers are put at the very end of the search (-idirafter), so that any
# -isystem of the user's comes before them, and musl's before gcc's own, the order that gcc has in a build for musl.
# ld gets -nostdlib, which means: search the directories named here and no others. It does not search them for the
# libraries that libraries need, hence -rpath-link.
write_specs() {
    includes="-idirafter =/usr/include -idirafter $($gcc -print-file-name=include)"
    $gcc -dumpspecs >"$work/default.specs"
    {
        printf '*cpp:\n+ %%{!nostdinc:-nostdinc %s}\n\n' "$includes"
        printf '*link:\n+ -nostdlib -rpath-link %%R/usr/lib\n\n'
        printf '*link_libgcc:\n-L%%R/usr/lib -L%s\n\n' "$runtime"
        printf '*libgcc:\n-lgcc -lgcc_eh\n\n'
        for spec in startfile endfile; do
            printf '*%s:\n' $spec
            sed -n "/^\*$spec:\$/{n;p}" "$work/default.specs" | sed -E 's,\b(g?r?S?crt1|crti|crtn)\.o%s,%R/usr/lib/\1.o,g'
            echo
        done
    } >"$private/musl.specs"
}

write_clang_config() {
    cat >"$private/clang.cfg" <<END
--target=$arch-linux-musl
--sysroot=$sysroot
--gcc-install-dir=$runtime
--rtlib=libgcc
--unwindlib=libgcc
-static-libgcc
-fuse-ld=lld
END
    [ -z "$plain" ] || echo "${plain# }" >>"$private/clang.cfg"
    printf '%s\n' @clang.cfg -nostdinc++ -stdlib=libstdc++ $(cplusplus_includes) >"$private/clang++.cfg"
}

write_wrappers() {
    wrapper gcc "$gcc$to_musl" ''
    wrapper g++ "/usr/bin/$arch-linux-gnu-g++$to_musl $(cplusplus_includes)" ''
    ln -s "$arch-linux-musl-g++" "/usr/local/bin/$arch-linux-musl-c++"
    wrapper clang "/usr/bin/clang --config=$private/clang.cfg" ''
    wrapper clang++ "/usr/bin/clang++ --config=$private/clang++.cfg" ''
    wrapper run "/usr/bin/qemu-$arch -L $sysroot" ''
    wrapper ld "/usr/bin/$arch-linux-gnu-ld --sysroot=$sysroot -nostdlib" " -L=/usr/lib -rpath-link $sysroot/lib"
    for tool in ar ranlib strip objcopy objdump nm readelf gcc-ar gcc-nm gcc-ranlib; do
        ln -s "/usr/bin/$arch-linux-gnu-$tool" "/usr/local/bin/$arch-linux-musl-$tool"
    done
}

# wrapper NAME COMMAND TAIL
wrapper() {
    printf '#!/bin/sh\nexec %s "$@"%s\n' "$2" "$3" >"/usr/local/bin/$arch-linux-musl-$1"
    chmod 755 "/usr/local/bin/$arch-linux-musl-$1"
}

remove_traces() {
    cd /
    # Not --auto-remove: it keeps what any other package suggests, perl for one.
    comm -13 "$work/before" "$work/after" | xargs apt-get purge -q -y
    rm -rf "$work" /etc/apt/sources.list.d/qcase-source.list
    apt-get clean
    rm -rf /var/lib/apt/lists/* /var/cache/ldconfig/* /var/log/*
}

installed() {
    dpkg-query -W -f '${Package}\n' | sort
}

write_package_list() {
    {
        dpkg-query -W -f '${Package} ${Architecture} ${Version}\n'
        echo "musl-source all $version"
        echo "libstdc++-source all $gcc_version"
    } | sort >/opt/qcase/packages.txt
}

main
