/*
 * __getauxval() for dynamic linking with musl on aarch64.
 *
 * libgcc.a asks at start whether the machine has LSE atomics, under a name that glibc exports and musl keeps to itself.
 * Weak, because musl's libc.a does have that name, and a static program takes it from there.
 */
#include <sys/auxv.h>

__attribute__((weak, visibility("hidden"))) unsigned long __getauxval(unsigned long type)
{
    return getauxval(type);
}
