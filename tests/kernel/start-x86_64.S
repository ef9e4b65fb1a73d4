// From where QEMU leaves a PVH kernel (32 bits, no paging) to 64 bits, and to C.

    .section .note.pvh, "a", @note
    .align 4
    .long 4, 4, 18              // "Xen", a word, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start

    .section .text.start, "ax"
    .code32
    .globl start
start:
    cli
    movl $stack_top, %esp
    movl 24(%ebx), %edi         // of PVH's start_info: the command line
    movl $level3, %eax
    orl $3, %eax
    movl %eax, level4
    movl $0x83, level3          // the first GiB, as one page, writable
    movl %cr4, %eax
    orl $0x20, %eax             // PAE
    movl %eax, %cr4
    movl $level4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      // EFER
    rdmsr
    orl $0x100, %eax            // LME
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax       // PG, PE
    movl %eax, %cr0
    lgdt gdt_register
    ljmp $8, $start64

    .code64
start64:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movabsq $stack_top, %rsp
    xorl %ebp, %ebp
    movl %edi, %edi
    call kernel_main
1:  hlt
    jmp 1b

    .section .data
    .align 8
gdt:
    .quad 0
    .quad 0x00af9a000000ffff    // code, 64 bits
    .quad 0x00cf92000000ffff    // data
gdt_register:
    .word gdt_register - gdt - 1
    .quad gdt

    .section .bss
    .align 4096
level4: .skip 4096
level3: .skip 4096
    .skip 16384
    .globl stack_top
stack_top:
