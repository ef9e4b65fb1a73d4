// timerfd: never too early, expirations that add up, absolute times, disarming.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
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

#define MS 1000000L

static long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000 * MS + time.tv_nsec;
}

static int set(int fd, int flags, long first, long every)
{
	struct itimerspec spec = {
		.it_value = { first / (1000 * MS), first % (1000 * MS) },
		.it_interval = { every / (1000 * MS), every % (1000 * MS) },
	};

	return timerfd_settime(fd, flags, &spec, NULL);
}

// How often it has expired since the last read; 0 for not yet.
static uint64_t expired(int fd)
{
	uint64_t count = 0;

	CHECK(read(fd, &count, sizeof(count)) == sizeof(count) || errno == EAGAIN);
	return count;
}

int main(void)
{
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	struct pollfd one = { .fd = fd, .events = POLLIN };
	struct itimerspec left;
	long start;

	alarm(30); // a timer that never expires ends here
	CHECK(fd >= 0);
	CHECK(expired(fd) == 0);

	start = now();
	CHECK(set(fd, 0, 30 * MS, 0) == 0);
	CHECK(poll(&one, 1, -1) == 1);
	CHECK(now() - start >= 30 * MS);
	CHECK(expired(fd) == 1 && expired(fd) == 0);
	CHECK(timerfd_gettime(fd, &left) == 0 && left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0);

	// Each expiration is counted, none is counted twice. They are due at 5, 10, 15, … ms after `start` at the earliest.
	start = now();
	CHECK(set(fd, 0, 5 * MS, 5 * MS) == 0);
	while (now() - start < 40 * MS)
		;
	uint64_t least = 7, count = expired(fd), most = (now() - start) / (5 * MS);
	CHECK(count >= least && count <= most);

	CHECK(set(fd, 0, 3600 * 1000 * MS, 0) == 0);
	CHECK(timerfd_gettime(fd, &left) == 0 && left.it_value.tv_sec >= 3500 && left.it_value.tv_sec <= 3600);
	CHECK(left.it_interval.tv_nsec == 0);
	CHECK(expired(fd) == 0);
	CHECK(set(fd, TFD_TIMER_ABSTIME, now() - MS, 0) == 0); // in the past: at once
	CHECK(poll(&one, 1, -1) == 1 && expired(fd) == 1);
	CHECK(set(fd, 0, 0, 0) == 0);
	CHECK(expired(fd) == 0);

	CHECK(set(fd, 0, -1, 0) == -1 && errno == EINVAL);
	CHECK(timerfd_create(99, 0) == -1 && errno == EINVAL);
	CHECK(read(fd, &left, 4) == -1 && errno == EINVAL);
	puts("PASS: timerfd");
	return 0;
}
