// All four processors: each runs a thread that is bound to it, and they see each other's stores and wake each other.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(that)                                                                        \
	do {                                                                               \
		if (!(that)) {                                                             \
			printf("FAIL: %s:%d: %s (errno: %s)\n", __func__, __LINE__, #that, \
			       strerror(errno));                                           \
			exit(1);                                                           \
		}                                                                          \
	} while (0)

#define CPUS 4
#define ROUNDS 100

static sem_t turn[CPUS];
static long token; // plain: whoever has the turn changes it
static atomic_long together;

static void bind_to(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	CHECK(sched_setaffinity(0, sizeof(set), &set) == 0);
	CHECK(sched_getcpu() == cpu);
}

static void *run(void *number)
{
	int cpu = (int)(long)number;

	bind_to(cpu);
	for (int i = 0; i < 100 * ROUNDS; i++)
		atomic_fetch_add(&together, 1);
	for (long round = 0; round < ROUNDS; round++) { // the token goes round, from processor to processor
		while (sem_wait(&turn[cpu]) == -1)
			CHECK(errno == EINTR);
		CHECK(token == round * CPUS + cpu && sched_getcpu() == cpu);
		token++;
		CHECK(sem_post(&turn[(cpu + 1) % CPUS]) == 0);
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[CPUS];
	cpu_set_t nowhere;

	alarm(30); // a wake-up that is lost ends here
	CHECK(sysconf(_SC_NPROCESSORS_CONF) == CPUS && sysconf(_SC_NPROCESSORS_ONLN) == CPUS);
	for (int cpu = 0; cpu < CPUS; cpu++)
		bind_to(cpu); // moves from each to the next
	CPU_ZERO(&nowhere);
	CPU_SET(CPUS, &nowhere);
	CHECK(sched_setaffinity(0, sizeof(nowhere), &nowhere) == -1 && errno == EINVAL);

	for (int cpu = 0; cpu < CPUS; cpu++)
		CHECK(sem_init(&turn[cpu], 0, cpu == 0) == 0);
	for (long cpu = 0; cpu < CPUS; cpu++)
		CHECK(pthread_create(&threads[cpu], NULL, run, (void *)cpu) == 0);
	for (int cpu = 0; cpu < CPUS; cpu++)
		CHECK(pthread_join(threads[cpu], NULL) == 0);
	CHECK(token == CPUS * ROUNDS);
	CHECK(together == CPUS * 100 * ROUNDS);
	puts("PASS: smp");
	return 0;
}
