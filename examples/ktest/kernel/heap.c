#include "kernel.h"

struct block {
    usize size; /* of what follows the header */
    usize taken;
    struct block *next;
    usize pad;
};

static struct block *first;

void heap_init(void *arena, usize size)
{
    first = arena;
    first->size = size - sizeof *first;
    first->taken = 0;
    first->next = 0;
}

void *heap_take(usize size)
{
    if (!size || size > (usize)-1 - 15)
        return 0;
    size = (size + 15) & ~(usize)15;
    for (struct block *at = first; at; at = at->next) {
        if (at->taken || at->size < size)
            continue;
        if (at->size >= size + sizeof *at + 16) {
            struct block *rest = (struct block *)((char *)(at + 1) + size);
            rest->size = at->size - size - sizeof *rest;
            rest->taken = 0;
            rest->next = at->next;
            at->size = size;
            at->next = rest;
        }
        at->taken = 1;
        return at + 1;
    }
    return 0;
}

void heap_give(void *block)
{
    if (block)
        ((struct block *)block - 1)->taken = 0;
    for (struct block *at = first; at; at = at->next)
        while (!at->taken && at->next && !at->next->taken) {
            at->size += sizeof *at + at->next->size;
            at->next = at->next->next;
        }
}

usize heap_free(void)
{
    usize sum = 0;
    for (struct block *at = first; at; at = at->next)
        sum += at->taken ? 0 : at->size;
    return sum;
}
