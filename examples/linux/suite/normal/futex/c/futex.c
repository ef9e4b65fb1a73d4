// Futexes: refusal, time limit, how many a wake and a requeue reach, a lock made of one, and one shared by two processes.
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(that)                                                                        \
	do {                                                                               \
		if (!(that)) {                                                             \
			printf("FAIL: %s:%d: %s (errno: %s)\n", __func__, __LINE__, #that, \
			       strerror(errno));                                           \
			exit(1);                                                           \
		}                                                                          \
	} while (0)

#define THREADS 4
#define ROUNDS 2000

static atomic_int here, there, lock;
static long counter;

static int futex(atomic_int *word, int op, int value, const void *timeout_or_count, atomic_int *to, int expected)
{
	return syscall(SYS_futex, word, op, value, timeout_or_count, to, expected);
}

static int wake(atomic_int *word, int count)
{
	return futex(word, FUTEX_WAKE, count, NULL, NULL, 0);
}

static void refuses_and_times_out(void)
{
	struct timespec limit = { .tv_nsec = 20 * 1000 * 1000 }, start, end;

	CHECK(futex(&here, FUTEX_WAIT, 1, NULL, NULL, 0) == -1 && errno == EAGAIN);
	CHECK(futex((atomic_int *)((char *)&here + 1), FUTEX_WAIT, 0, NULL, NULL, 0) == -1 && errno == EINVAL);
	CHECK(wake(&here, INT_MAX) == 0);

	clock_gettime(CLOCK_MONOTONIC, &start);
	CHECK(futex(&here, FUTEX_WAIT, 0, &limit, NULL, 0) == -1 && errno == ETIMEDOUT);
	clock_gettime(CLOCK_MONOTONIC, &end);
	CHECK((end.tv_sec - start.tv_sec) * 1000000000L + end.tv_nsec - start.tv_nsec >= limit.tv_nsec);
}

static void *waiter(void *unused)
{
	CHECK(futex(&here, FUTEX_WAIT, 0, NULL, NULL, 0) == 0);
	return unused;
}

// Who was requeued does wait: after that the kernel must count exactly.
static void counts_whom_it_wakes(void)
{
	pthread_t threads[THREADS];
	int moved = 0;

	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, waiter, NULL) == 0);
	CHECK(futex(&here, FUTEX_CMP_REQUEUE, 0, (void *)INT_MAX, &there, 1) == -1 && errno == EAGAIN);
	while (moved < THREADS) {
		int now = futex(&here, FUTEX_CMP_REQUEUE, 0, (void *)INT_MAX, &there, 0);

		CHECK(now >= 0);
		moved += now;
		sched_yield();
	}
	CHECK(moved == THREADS);
	CHECK(wake(&here, INT_MAX) == 0);
	CHECK(wake(&there, 1) == 1);
	CHECK(wake(&there, INT_MAX) == THREADS - 1);
	CHECK(wake(&there, INT_MAX) == 0);
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
}

// 0: free, 1: held, 2: held, and someone may wait
static void *locker(void *unused)
{
	for (int i = 0; i < ROUNDS; i++) {
		int seen = 0;

		if (!atomic_compare_exchange_strong(&lock, &seen, 1))
			while (atomic_exchange(&lock, 2) != 0)
				futex(&lock, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
		long old = counter;
		if (i % 16 == 0)
			sched_yield(); // so that the others find it held
		counter = old + 1;
		if (atomic_exchange(&lock, 0) == 2)
			futex(&lock, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	}
	return unused;
}

static void makes_a_lock(void)
{
	pthread_t threads[THREADS];

	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, locker, NULL) == 0);
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	CHECK(counter == THREADS * ROUNDS);
}

static void works_between_processes(void)
{
	atomic_int *word = mmap(NULL, sizeof(*word), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;

	CHECK(word != MAP_FAILED);
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0)
		_exit(futex(word, FUTEX_WAIT, 0, NULL, NULL, 0) == 0 ? 0 : 1);
	while (wake(word, 1) == 0)
		sched_yield();
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

int main(void)
{
	alarm(30); // a wake-up that is lost ends here
	refuses_and_times_out();
	counts_whom_it_wakes();
	makes_a_lock();
	works_between_processes();
	puts("PASS: futex");
	return 0;
}
