#!/bin/sh
# Compiles Rust's standard library for musl on each architecture, puts it where rustc looks for it, and leaves nothing else
# behind. Runs once, as root, while the image is built. The sources, and the few crates that the library needs, are those of
# Debian's source package of rustc: nothing comes from a crate registry.
set -eu

architectures="x86_64 aarch64 riscv64 loongarch64"
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive

# Always the same folder: its name enters the names of all symbols, and so the bytes of every program.
work=/tmp/qcase-std

main() {
    mkdir "$work"
    fetch_source
    unpack
    prepare
    compile
    install_libraries
    remove_traces
    write_package_list
}

# Two files of the source package, by deb-src lines like the deb lines that the base has. Their digests are those of the archive's
# signed index.
fetch_source() {
    sed -n 's/^deb[[:space:]]/deb-src /p' /etc/apt/sources.list >/etc/apt/sources.list.d/qcase-source.list
    apt-get update -q --error-on=any
    installed >"$work/before"
    apt-get install -q -y --no-install-recommends xz-utils
    installed >"$work/after"
    version=$(dpkg-query -W -f '${Version}' rustc)
    cd "$work"
    apt-get source -q --only-source --print-uris "rustc=$version" |
        sed -n "s/^'\(.*\)' \([^ ]*\.\(orig\|debian\)\.tar\.xz\) [0-9]* \(SHA256:.*\)/\1 \2 \4/p" >"$work/files"
    while read -r address name digest; do
        /usr/lib/apt/apt-helper download-file "$address" "$name" "$digest"
    done <"$work/files"
}

# The library and its crates, of 105,000 files that there are, with what Debian's patches change in them.
unpack() {
    mkdir "$work/rust"
    cd "$work/rust"
    crates="addr2line adler allocator-api2 cc cfg-if compiler_builtins getopts gimli hashbrown libc memchr miniz_oxide object
        rustc-demangle shlex unicode-width unwinding"
    # shellcheck disable=SC2046
    tar -xJf ../*.orig.tar.xz --strip-components=1 --wildcards '*/library' $(printf '*/vendor/%s-[0-9]* ' $crates)
    tar -xJf ../*.debian.tar.xz
    grep -v '^#' debian/patches/series | while read -r patch; do
        awk '/^--- /{keep = $2 ~ /^[^\/]+\/library\//} /^(diff |Index: )/{keep = 0} keep' "debian/patches/$patch" >"$work/patch"
        [ ! -s "$work/patch" ] || patch -p1 --batch <"$work/patch"
    done
}

# The library, that of tests and proc_macro, without what they need on other systems and for its own tests.
prepare() {
    cd "$work/rust/library"
    sed -i 's/^  "sysroot",/  "proc_macro",\n  "test",/' Cargo.toml
    sed -i -e '/^\[dev-dependencies\]/,/^\[features\]/{/^\[features\]/!d}' -e 's/^crate-type = .*/crate-type = ["rlib"]/' std/Cargo.toml
    for manifest in */Cargo.toml stdarch/crates/*/Cargo.toml; do
        awk '/^\[/{keep = $0 != "[dev-dependencies]"} keep || NR == 1' "$manifest" >"$work/manifest"
        cp "$work/manifest" "$manifest"
    done
    mkdir "$work/home"
    {
        printf '[source.crates-io]\nreplace-with = "debian"\n[source.debian]\ndirectory = "%s"\n' "$work/rust/vendor"
        for arch in $architectures; do
            flags="\"-Zforce-unstable-if-unmarked\", \"-Cembed-bitcode=yes\", \"--remap-path-prefix=$work/rust=/rustc\""
            [ "$arch" != loongarch64 ] || flags="$flags, \"-Ctarget-feature=-lsx\""
            printf '[target.%s]\nrustflags = [%s]\n' "$(target)" "$flags"
        done
    } >"$work/home/config.toml"
}

# As rustc's own build does it: its crates are marked as part of the compiler, and named apart from a case's crates; panic_abort
# alone is compiled to abort, else no program with `panic = "abort"` links. `test` is for the tests of crates, `proc_macro`
# for programs that parse Rust. loongarch64 is without its vector unit: a kernel has to switch that on for its programs, and QEMU
# before 8.1 has none.
compile() {
    cat >"$work/rustc" <<'END'
#!/bin/sh
rustc=$1
shift
case " $* " in *" --crate-name panic_abort "*) set -- "$@" -Cpanic=abort ;; esac
exec "$rustc" "$@"
END
    chmod +x "$work/rustc"
    cd "$work/rust/library"
    targets=
    for arch in $architectures; do targets="$targets --target $(target)"; done
    # shellcheck disable=SC2086
    RUSTC_BOOTSTRAP=1 __CARGO_DEFAULT_LIB_METADATA=stablestd CARGO_HOME=$work/home CARGO_INCREMENTAL=0 \
        RUSTC_WRAPPER=$work/rustc \
        cargo build --offline --release -p std -p proc_macro -p test --features std/panic-unwind,std/backtrace \
        --target-dir "$work/target" $targets
}

# The unwinder is the one of the C image, under the name by which Rust's library asks for it.
install_libraries() {
    for arch in $architectures; do
        folder=/usr/lib/rustlib/$(target)/lib
        mkdir -p "$folder"
        cp "$work/target/$(target)"/release/deps/*.rlib "$folder/"
        cp /opt/qcase/gcc/"$arch"/lib/gcc/"$arch"-linux-musl/*/libgcc_eh.a "$folder/libunwind.a"
    done
}

remove_traces() {
    cd /
    comm -13 "$work/before" "$work/after" | xargs -r apt-get purge -q -y
    rm -rf "$work" /etc/apt/sources.list.d/qcase-source.list
    apt-get clean
    rm -rf /var/lib/apt/lists/* /var/cache/ldconfig/* /var/log/*
}

write_package_list() {
    {
        dpkg-query -W -f '${Package} ${Architecture} ${Version}\n'
        grep -e '-source all ' /opt/qcase/packages.txt
        echo "rustc-source all $version"
    } | sort >/opt/qcase/packages.new
    mv /opt/qcase/packages.new /opt/qcase/packages.txt
}

target() {
    case $arch in riscv64) echo riscv64gc-unknown-linux-musl ;; *) echo "$arch-unknown-linux-musl" ;; esac
}

installed() {
    dpkg-query -W -f '${Package}\n' | sort
}

main
