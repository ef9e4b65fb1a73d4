// QEMU enters an ELF kernel of `virt` at its entry, at EL1, without an MMU.

    .section .text.start, "ax"
    .globl start
start:
    mrs x0, mpidr_el1
    and x0, x0, #0xff
    cbnz x0, 1f
    adrp x0, stack_top
    add x0, x0, :lo12:stack_top
    mov sp, x0
    mov x0, #0x40000000         // where `virt` puts the device tree of what is no Linux
    bl kernel_main
1:  wfi
    b 1b

    .section .bss
    .align 12
    .skip 16384
    .globl stack_top
stack_top:
