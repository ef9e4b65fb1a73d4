/* What the kernel asks of a machine. One of these is compiled in. */
#pragma once

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

#if defined(__x86_64__)

#define ARCH "x86_64"
#define WHERE_SIZE 1 /* the command line itself */
enum { COM1 = 0x3f8, PM_CONTROL = 0x604, PM_TIMER = 0x608 }; /* q35, as SeaBIOS sets it up */

static inline void out8(u32 port, u8 value) { __asm__ volatile("outb %0, %w1" ::"a"(value), "Nd"(port)); }
static inline u8 in8(u32 port)
{
    u8 value;
    __asm__ volatile("inb %w1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline u32 in32(u32 port)
{
    u32 value;
    __asm__ volatile("inl %w1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline void machine_init(void) { out8(COM1 + 2, 7); }
static inline void put_byte(u8 c)
{
    while (!(in8(COM1 + 5) & 0x20))
        ;
    out8(COM1, c);
}
static inline int get_byte(void) { return in8(COM1 + 5) & 1 ? in8(COM1) : -1; }
static inline void power_off(void) { __asm__ volatile("outw %w0, %w1" ::"a"(0x2000), "Nd"(PM_CONTROL)); }
static inline void reboot(void) { out8(0xcf9, 6); }
/* No interrupt has a handler, so the first one is a double fault, and that a triple fault. */
static inline void fault(void)
{
    struct { unsigned short limit; u64 base; } __attribute__((packed)) none = {0, 0};
    __asm__ volatile("lidt %0; int3" ::"m"(none));
}
static inline void out_byte(u32 port, u8 value) { out8(port, value); }
static inline void relax(void) { __asm__ volatile("pause"); }
static inline void halt(void) { __asm__ volatile("cli; hlt"); }
static inline void sleep_ms(u64 ms)
{
    for (u64 left = ms * 3580; left;) {
        u32 before = in32(PM_TIMER), passed;
        do
            passed = (in32(PM_TIMER) - before) & 0xffffff;
        while (passed < 3580);
        left = passed < left ? left - passed : 0;
    }
}

#elif defined(__aarch64__)

#define ARCH "aarch64"
#define WHERE_SIZE (1 << 16)
static volatile u32 *const pl011 = (u32 *)0x09000000;

static inline void machine_init(void) {}
static inline void put_byte(u8 c) { pl011[0] = c; } /* QEMU's takes each at once */
static inline int get_byte(void) { return pl011[6] & 0x10 ? -1 : (int)(pl011[0] & 0xff); }
static inline void psci(u64 function)
{
    register u64 x0 __asm__("x0") = function;
    __asm__ volatile("hvc #0" : "+r"(x0)::"memory");
}
static inline void power_off(void) { psci(0x84000008); }
static inline void reboot(void) { psci(0x84000009); }
static inline void fault(void) { reboot(); }
static inline u64 semihosting(u64 call, const void *block)
{
    register u64 x0 __asm__("x0") = call;
    register const void *x1 __asm__("x1") = block;
    __asm__ volatile("hlt #0xf000" : "+r"(x0) : "r"(x1) : "memory");
    return x0;
}
/* Semihosting: QEMU ends with this status. */
static inline void out_byte(u32 port, u8 value)
{
    u64 block[] = {0x20026, value};
    (void)port, semihosting(0x20, block);
}
static inline void relax(void) { __asm__ volatile("yield"); }
static inline void halt(void) { __asm__ volatile("wfi"); }
static inline void sleep_ms(u64 ms)
{
    u64 now, begin, frequency;
    __asm__ volatile("mrs %0, cntfrq_el0; mrs %1, cntvct_el0" : "=r"(frequency), "=r"(begin));
    do
        __asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(now));
    while (now - begin < frequency / 1000 * ms);
}

#elif defined(__riscv)

#define ARCH "riscv64"
#define WHERE_SIZE (1 << 14)
static volatile u8 *const uart = (u8 *)0x10000000;

static inline void machine_init(void) { uart[2] = 7; }
static inline void put_byte(u8 c)
{
    while (!(uart[5] & 0x20))
        ;
    uart[0] = c;
}
static inline int get_byte(void) { return uart[5] & 1 ? uart[0] : -1; }
static inline void reset_by_sbi(u64 kind)
{
    register u64 a0 __asm__("a0") = kind;
    register u64 a1 __asm__("a1") = 0;
    register u64 a6 __asm__("a6") = 0;
    register u64 a7 __asm__("a7") = 0x53525354;
    __asm__ volatile("ecall" : "+r"(a0), "+r"(a1) : "r"(a6), "r"(a7) : "memory");
}
static inline void power_off(void) { reset_by_sbi(0); }
static inline void reboot(void) { reset_by_sbi(1); }
static inline void fault(void) { reboot(); }
/* The test finisher of `virt`: QEMU ends with this status. */
static inline void out_byte(u32 port, u8 value) { (void)port, *(volatile u32 *)0x100000 = (u32)value << 16 | 0x3333; }
static inline void relax(void) { __asm__ volatile("nop"); }
static inline void halt(void) { __asm__ volatile("wfi"); }
static inline void sleep_ms(u64 ms)
{
    u64 now, begin;
    __asm__ volatile("rdtime %0" : "=r"(begin));
    do
        __asm__ volatile("rdtime %0" : "=r"(now));
    while (now - begin < 10000 * ms);
}

#endif
