#include "tally.h"

int tally_loaded;
long tally_total;
static _Thread_local long mine;

__attribute__((constructor)) static void load(void)
{
	tally_loaded = 42;
}

long tally(void)
{
	__atomic_fetch_add(&tally_total, 1, __ATOMIC_RELAXED);
	return ++mine;
}
