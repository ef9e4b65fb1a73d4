#ifndef KERNEL_H
#define KERNEL_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef __SIZE_TYPE__ usize;

/* heap.c: blocks of an arena, the first that is large enough. A size of 0, and one that does not fit, give 0. */
void heap_init(void *arena, usize size);
void *heap_take(usize size);
void heap_give(void *block);
usize heap_free(void);

/* words.c */
usize length(const char *text);
int same(const char *a, const char *b);
int number(const char *text, u32 *value); /* decimal; 0 for what is none, or is too large */

/* A test returns 0 if it passed, else the line of what did not hold. */
struct test {
    const char *name;
    int (*run)(void);
};
extern const struct test tests[];
extern const u32 test_count;

#define CHECK(what) do { if (!(what)) return __LINE__; } while (0)
#define TESTS(...) const struct test tests[] = {__VA_ARGS__}; const u32 test_count = sizeof tests / sizeof *tests

#endif
