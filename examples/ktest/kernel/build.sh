#!/bin/sh
# build.sh ARCHITECTURE OUTPUT TESTS: the kernel with the tests of one file, tests/TESTS.c.
set -eu
here=$(dirname "$0")
case $1 in
    x86_64) base=0x100000 options="--target=i386-unknown-none-elf -mgeneral-regs-only" ;;
    aarch64) base=0x40200000 options="--target=aarch64-unknown-none-elf -mgeneral-regs-only -mstrict-align" ;;
    riscv64) base=0x80200000 options="--target=riscv64-unknown-none-elf -march=rv64imac -mabi=lp64 -mcmodel=medany" ;;
    *) echo "error: this kernel does not know $1" >&2; exit 1 ;;
esac
mkdir -p "$(dirname "$2")"
# shellcheck disable=SC2086
clang $options -O2 -std=c17 -Wall -Wextra -Werror -ffreestanding -fno-pic -fno-builtin -fno-stack-protector -nostdlib -static \
    -I"$here" -fuse-ld=lld -Wl,-T,"$here/kernel.ld" -Wl,--defsym=BASE=$base -Wl,--build-id=none \
    -o "$2" "$here/machine.c" "$here/heap.c" "$here/words.c" "$here/tests/$3.c"
