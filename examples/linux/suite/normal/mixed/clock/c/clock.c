/* Clocks that only go forwards do, and a sleep takes at least as long as was asked for. */
#include <stdio.h>
#include <time.h>

static long long now(clockid_t clock)
{
    struct timespec time;
    if (clock_gettime(clock, &time) != 0)
        return -1;
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(void)
{
    const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME};
    for (unsigned which = 0; which < sizeof clocks / sizeof *clocks; which++) {
        long long last = now(clocks[which]);
        for (int round = 0; round < 1000; round++) {
            long long next = now(clocks[which]);
            if (last < 0 || next < last) {
                printf("FAIL: clock %d went from %lld to %lld\n", clocks[which], last, next);
                return 1;
            }
            last = next;
        }
    }
    long long before = now(CLOCK_MONOTONIC);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    long long slept = now(CLOCK_MONOTONIC) - before;
    if (slept < 20000000) {
        printf("FAIL: slept %lld ns instead of 20000000\n", slept);
        return 1;
    }
    puts("PASS: clock");
    return 0;
}
