/*
 * _dl_find_object() for musl, made of dl_iterate_phdr().
 *
 * Debian's libgcc_eh.a was built against glibc 2.41, and asks its loader for the unwind table of an address with this
 * function, which musl does not have. Without it, a program that unwinds its stack does not link. The interface is in the
 * glibc manual, "Dynamic Linker Introspection"; the layout below is the one that it has on 64-bit machines.
 */
#define _GNU_SOURCE
#include <link.h>
#include <stdint.h>
#include <string.h>

struct dl_find_object {
    unsigned long long flags;
    void *map_start;
    void *map_end; /* behind the last byte */
    struct link_map *link_map;
    void *eh_frame; /* the PT_GNU_EH_FRAME segment */
    unsigned long long reserved[7];
};

struct search {
    uintptr_t address;
    struct dl_find_object *result;
};

static int look(struct dl_phdr_info *object, size_t size, void *data)
{
    struct search *search = data;
    uintptr_t start = UINTPTR_MAX, end = 0;
    void *eh_frame = NULL;
    int inside = 0;

    (void)size;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
        uintptr_t first = object->dlpi_addr + segment->p_vaddr;

        if (segment->p_type == PT_GNU_EH_FRAME)
            eh_frame = (void *)first;
        if (segment->p_type != PT_LOAD)
            continue;
        if (first < start)
            start = first;
        if (first + segment->p_memsz > end)
            end = first + segment->p_memsz;
        inside |= search->address - first < segment->p_memsz;
    }
    if (!inside || !eh_frame)
        return inside;
    search->result->map_start = (void *)start;
    search->result->map_end = (void *)end;
    search->result->eh_frame = eh_frame;
    return 1;
}

__attribute__((visibility("hidden"))) int _dl_find_object(void *address, struct dl_find_object *result)
{
    struct search search = {(uintptr_t)address, result};

    memset(result, 0, sizeof *result);
    dl_iterate_phdr(look, &search);
    return result->eh_frame ? 0 : -1;
}
