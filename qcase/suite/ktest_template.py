"""Template of a case of the pipeline `ktest`: a small kernel in C that tests itself, and how it is built."""

from __future__ import annotations

from collections.abc import Mapping

from qcase.arch import DEBUG_EXIT, FINISHER, Arch
from qcase.config.exit_table import POWEROFF
from qcase.suite.templates import File

# Architectures that the template's kernel has code for: where QEMU loads it, and how clang builds it.
KERNELS: Mapping[Arch, str] = {
    Arch.X86_64: 'base=0x100000 options="--target=i386-unknown-none-elf -mgeneral-regs-only"',
    Arch.AARCH64: 'base=0x40200000 options="--target=aarch64-unknown-none-elf -mgeneral-regs-only -mstrict-align"',
    Arch.RISCV64: 'base=0x80200000 options="--target=riscv64-unknown-none-elf -march=rv64imac -mabi=lp64 -mcmodel=medany"',
}
_DEVICE = f"{DEBUG_EXIT},iobase=0xf4,iosize=0x04"


def sources() -> dict[str, File]:
    return {"kernel/kernel.c": File(_KERNEL), "kernel/kernel.ld": File(_LINKER_SCRIPT), "kernel/build.sh": File(_BUILD, True)}


def case_file(name: str, arch: Arch) -> str:
    """Return the text of `qemu-<arch>.toml`."""
    args = arch.spec.args
    if arch.spec.exit_device == DEBUG_EXIT:
        args = f'{args.removesuffix("]")}, "-device", "{_DEVICE}"]'
    ends = ["pass = [33]", "fail = [35]"] if arch.spec.exit_device in (DEBUG_EXIT, FINISHER) else [f'pass = ["{POWEROFF}"]']
    output = f"target/ktest/{name}-${{arch}}"
    lines = [
        "# How this kernel is booted, and what decides. `qcase schema qemu --toml` shows all keys.",
        f"args = {args}",
        "",
        "# Seconds from QEMU's start to its end.",
        "timeout = 60",
        "",
        "[qcase]",
        'pipeline = "ktest"',
        "tags = []",
        "# What its tests print.",
        'results = "ktap"',
        "",
        "[qcase.kernel]",
        '# This runs in the workspace, in the toolchain image `c`; where = "host" runs it on this machine.',
        f'build = "sh ${{case_dir}}/kernel/build.sh ${{arch}} {output}"',
        f'output = "{output}"',
        'where = "c"',
        "",
        "[qcase.exit]",
        "# What QEMU's end says. The results have to hold besides.",
        *ends,
    ]
    return "\n".join(lines) + "\n"


_CASES = "\n".join(f"    {arch}) {words} ;;" for arch, words in KERNELS.items())
_BUILD = f"""#!/bin/sh
# build.sh ARCHITECTURE OUTPUT
set -eu
case $1 in
{_CASES}
    *) echo "error: this kernel does not know $1" >&2; exit 1 ;;
esac
here=$(dirname "$0")
mkdir -p "$(dirname "$2")"
# shellcheck disable=SC2086
clang $options -O2 -std=c17 -Wall -Wextra -ffreestanding -fno-pic -fno-builtin -fno-stack-protector -nostdlib -static \\
    -fuse-ld=lld -Wl,-T,"$here/kernel.ld" -Wl,--defsym=BASE=$base -Wl,--build-id=none -o "$2" "$here/kernel.c"
"""

_LINKER_SCRIPT = """ENTRY(start)
SECTIONS
{
    . = BASE;
    .text : { KEEP(*(.multiboot)) *(.text.start) *(.text .text.*) }
    .rodata : { *(.rodata .rodata.*) }
    .data : { *(.data .data.*) }
    .bss : { *(.bss .bss.*) *(COMMON) }
    /DISCARD/ : { *(.comment) *(.eh_frame*) *(.note*) }
}
"""

_KERNEL = r"""/* A kernel that tests itself. QEMU enters it at `start`; it prints results in KTAP, and ends QEMU. */

typedef unsigned char u8;
typedef unsigned int u32;

char stack[16384] __attribute__((aligned(16)));

#if defined(__i386__) /* x86_64: QEMU starts a multiboot kernel in 32 bits */

__asm__(".section .multiboot, \"a\"\n\t.long 0x1badb002, 0, -0x1badb002\n"
        ".section .text.start, \"ax\"\n.globl start\nstart:\tmovl $stack + 16384, %esp\n\tcall kernel_main\n");

static void out(u32 port, u8 value) { __asm__ volatile("outb %0, %w1" ::"a"(value), "Nd"(port)); }
static void put(char c) { out(0x3f8, (u8)c); }
static void end(int failed) { out(0xf4, failed ? 0x11 : 0x10); } /* isa-debug-exit: 35 or 33 */

#elif defined(__aarch64__)

__asm__(".section .text.start, \"ax\"\n.globl start\nstart:\tadrp x0, stack\n\tadd x0, x0, :lo12:stack\n\tadd x0, x0, #16384\n"
        "\tmov sp, x0\n\tbl kernel_main\n");

static void put(char c) { *(volatile u32 *)0x09000000 = (u8)c; }
static void end(int failed) /* PSCI: a power-off, whatever failed */
{
    register unsigned long x0 __asm__("x0") = 0x84000008;
    (void)failed;
    __asm__ volatile("hvc #0" : "+r"(x0)::"memory");
}

#elif defined(__riscv)

__asm__(".section .text.start, \"ax\"\n.globl start\nstart:\tla sp, stack + 16384\n\tcall kernel_main\n");

static void put(char c) { *(volatile u8 *)0x10000000 = (u8)c; }
static void end(int failed) { *(volatile u32 *)0x100000 = (failed ? 35u : 33u) << 16 | 0x3333; } /* the test finisher */

#else
#error "say here how this machine starts a kernel, prints a byte and ends"
#endif

static void print(const char *text)
{
    for (; *text; text++)
        put(*text);
}

/* ---- tests */

static int adds(void)
{
    volatile u32 one = 1;
    return one + one == 2;
}

static int remembers(void)
{
    static volatile u32 words[64];
    for (u32 n = 0; n < 64; n++)
        words[n] = n * n;
    for (u32 n = 0; n < 64; n++)
        if (words[n] != n * n)
            return 0;
    return 1;
}

static const struct { const char *name; int (*run)(void); } tests[] = {{"adds", adds}, {"remembers", remembers}};

void kernel_main(void)
{
    int failed = 0;
    print("KTAP version 1\n1..2\n"); /* the number of tests */
    for (u32 n = 0; n < sizeof tests / sizeof *tests; n++) {
        int passed = tests[n].run();
        char number[] = {' ', (char)('1' + n), ' ', 0};
        print(passed ? "ok" : "not ok"), print(number), print(tests[n].name), put('\n');
        failed |= !passed;
    }
    end(failed);
    for (;;)
        ;
}
"""
