#include "kernel.h"

static int lengths(void)
{
    CHECK(length("") == 0 && length("four") == 4);
    return 0;
}

static int comparisons(void)
{
    CHECK(same("", "") && same("one", "one"));
    CHECK(!same("one", "on") && !same("on", "one") && !same("one", "two"));
    return 0;
}

static int numbers(void)
{
    u32 value;
    CHECK(number("0", &value) && value == 0);
    CHECK(number("4294967295", &value) && value == 4294967295u);
    CHECK(!number("4294967296", &value) && !number("", &value) && !number("1x", &value));
    return 0;
}

TESTS({"lengths", lengths}, {"comparisons", comparisons}, {"numbers", numbers});
