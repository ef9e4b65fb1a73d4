// OpenSBI enters the kernel in supervisor mode, one hart, without an MMU.

    .section .text.start, "ax"
    .globl start
start:
    la sp, stack_top
    mv a0, a1                   // the device tree
    call kernel_main
1:  wfi
    j 1b

    .section .bss
    .align 12
    .skip 16384
    .globl stack_top
stack_top:
