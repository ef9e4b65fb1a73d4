# Makes packages of what was compiled, and a signed index of them, with apk's own tools:
#
#   /qcase/build/repository/<arch>/{APKINDEX.tar.gz, <name>-<version>.apk}
#
# Packages and index are of apk 3's format; the index has the name under which apk looks for one of either format.
set -eu
exec 2>&1
cd /qcase/build

# package NAME VERSION KEY:VALUE…
package() {
    name=$1 version=$2
    shift 2
    options=
    for field; do options="$options -I '$field'"; done
    eval "apk mkpkg -I name:$name -I version:$version -I arch:$arch -I license:none -I 'description:$name, for tests' $options \
        -F roots/$arch/$name -o $folder/$name-$version.apk"
    apk adbsign --sign-key key.rsa --allow-untrusted "$folder/$name-$version.apk"
}

for arch in $ARCHITECTURES; do
    folder=repository/$arch
    mkdir -p "$folder"
    package python3 3.13.5-r0 "depends:so:libc.musl-$arch.so.1"
    package py3-greeting 1.0-r0 depends:python3
    package lz4-libs 1.10.0-r0 "depends:so:libc.musl-$arch.so.1" provides:so:liblz4.so.1=1.10.0
    package lz4-dev 1.10.0-r0 depends:lz4-libs=1.10.0-r0
    package tally 1.0-r0 "depends:so:libc.musl-$arch.so.1" provides:so:libtally.so.1=1.0
    package tally-dev 1.0-r0 depends:tally=1.0-r0
    package greeting 1.2-r0 depends:greeting-words
    package greeting-words 1.1-r0 depends:greeting-voice
    package greeting-voice 1.0-r0
    apk mkndx --quiet --sign-key key.rsa --allow-untrusted -o "$folder/APKINDEX.tar.gz" "$folder"/*.apk
done
cp qcase-tests.rsa.pub repository/
