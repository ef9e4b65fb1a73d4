// A program with an interpreter and a library of its own: what the kernel maps and tells, and what the loader makes of it.
#define _GNU_SOURCE
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tally.h"

#define CHECK(that)                                                                        \
	do {                                                                               \
		if (!(that)) {                                                             \
			printf("FAIL: %s:%d: %s (errno: %s)\n", __func__, __LINE__, #that, \
			       strerror(errno));                                           \
			exit(1);                                                           \
		}                                                                          \
	} while (0)

#define THREADS 4
#define ROUNDS 1000

// Whether a line of /proc/self/maps covers `at`, names `file` and has protection `want`.
static int mapped(const void *at, const char *file, const char *want)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512], protection[5];
	unsigned long from, to;
	int found = 0;

	CHECK(maps);
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx %4s", &from, &to, protection) == 3 && (unsigned long)at >= from &&
		    (unsigned long)at < to)
			found = strstr(line, file) && strcmp(protection, want) == 0;
	fclose(maps);
	return found;
}

static void *count(void *unused)
{
	for (long i = 1; i <= ROUNDS; i++)
		CHECK(tally() == i);
	return unused;
}

int main(void)
{
	const ElfW(Ehdr) *loader = (void *)getauxval(AT_BASE);
	pthread_t threads[THREADS];
	int status;

	CHECK(tally_loaded == 42);
	CHECK(loader && memcmp(loader->e_ident, ELFMAG, SELFMAG) == 0 && loader->e_type == ET_DYN);
	CHECK(mapped((char *)loader + loader->e_entry, "/lib/", "r-xp"));
	CHECK(mapped((void *)getauxval(AT_ENTRY), "/test-dynamic", "r-xp"));
	CHECK(mapped((void *)(uintptr_t)tally, "/libtally.so.1", "r-xp"));

	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, count, NULL) == 0);
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	CHECK(tally_total == THREADS * ROUNDS);
	CHECK(tally() == 1); // this thread's first

	pid_t child = fork(); // its copy of the library's data is its own
	CHECK(child >= 0);
	if (child == 0)
		_exit(tally() == 2 && tally_total == THREADS * ROUNDS + 2 ? 0 : 1);
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(tally_total == THREADS * ROUNDS + 1);

	puts("PASS: dynamic");
	return 0;
}
