#include "kernel.h"

usize length(const char *text)
{
    usize count = 0;
    while (text[count])
        count++;
    return count;
}

int same(const char *a, const char *b)
{
    for (; *a && *a == *b; a++)
        b++;
    return *a == *b;
}

int number(const char *text, u32 *value)
{
    *value = 0;
    if (!*text)
        return 0;
    for (; *text; text++) {
        u32 digit = (u32)*text - '0';
        if (digit > 9 || *value > (~0u - digit) / 10)
            return 0;
        *value = *value * 10 + digit;
    }
    return 1;
}
