/* The machine: QEMU enters the kernel at `start`, which runs the tests, prints their results as KTAP, and ends QEMU. */
#include "kernel.h"

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

#endif

static void print(const char *text)
{
    for (; *text; text++)
        put(*text);
}

static void print_number(u32 value)
{
    char digits[11], *at = digits + sizeof digits - 1;
    for (*at = 0; value || !*at; value /= 10)
        *--at = (char)('0' + value % 10);
    print(at);
}

void kernel_main(void)
{
    int failed = 0;
    print("KTAP version 1\n1.."), print_number(test_count), put('\n');
    for (u32 n = 0; n < test_count; n++) {
        int line = tests[n].run();
        if (line)
            print("# does not hold: line "), print_number((u32)line), put('\n');
        print(line ? "not ok " : "ok "), print_number(n + 1), put(' '), print(tests[n].name), put('\n');
        failed |= line;
    }
    end(failed);
    for (;;)
        ;
}
