#include "kernel.h"

static char arena[4096] __attribute__((aligned(16)));

static int gives_and_takes(void)
{
    heap_init(arena, sizeof arena);
    usize all = heap_free();
    void *one = heap_take(100), *two = heap_take(200);
    CHECK(one && two && one != two);
    CHECK((usize)one % 16 == 0 && (usize)two % 16 == 0);
    heap_give(one);
    heap_give(two);
    CHECK(heap_free() == all);
    return 0;
}

static int neighbours_become_one(void)
{
    heap_init(arena, sizeof arena);
    usize all = heap_free();
    void *blocks[3];
    for (u32 n = 0; n < 3; n++)
        CHECK((blocks[n] = heap_take(1000)));
    CHECK(!heap_take(2000));
    heap_give(blocks[0]);
    heap_give(blocks[2]);
    heap_give(blocks[1]);
    CHECK(heap_take(all));
    return 0;
}

static int refuses_what_does_not_fit(void)
{
    heap_init(arena, sizeof arena);
    CHECK(!heap_take(0));
    CHECK(!heap_take(sizeof arena));
    CHECK(!heap_take((usize)-1));
    CHECK(heap_take(heap_free()));
    CHECK(heap_free() == 0);
    return 0;
}

TESTS({"gives_and_takes", gives_and_takes}, {"neighbours_become_one", neighbours_become_one},
      {"refuses_what_does_not_fit", refuses_what_does_not_fit});
