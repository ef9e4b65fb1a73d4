#!/bin/sh
# Builds the test kernel for all architectures: build.sh SOURCES OUTPUT. Runs in the toolchain image `c`.
set -eu
for arch in x86_64 aarch64 riscv64; do
    case $arch in
        x86_64) options="-mno-red-zone -mgeneral-regs-only -mcmodel=small" ;;
        aarch64) options="-mgeneral-regs-only -mstrict-align" ;;
        riscv64) options="-march=rv64imac_zicsr -mabi=lp64 -mcmodel=medany" ;;
    esac
    # shellcheck disable=SC2086
    clang --target=$arch-unknown-none-elf $options -O2 -std=c17 -Wall -Wextra -Werror -ffreestanding -fno-pic -fno-builtin \
        -fno-stack-protector -nostdlib -static -fuse-ld=lld -Wl,-T,"$1/kernel-$arch.ld" -Wl,--build-id=none -Wl,-z,norelro \
        -o "$2/kernel-$arch" "$1/start-$arch.S" "$1/kernel.c"
done
