// eventfd: `test-eventfd counter` and `test-eventfd semaphore`, the two ways to read one.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CHECK(that)                                                                        \
	do {                                                                               \
		if (!(that)) {                                                             \
			printf("FAIL: %s:%d: %s (errno: %s)\n", __func__, __LINE__, #that, \
			       strerror(errno));                                           \
			exit(1);                                                           \
		}                                                                          \
	} while (0)

#define MOST (UINT64_MAX - 1)

static int poll_now(int fd)
{
	struct pollfd one = { .fd = fd, .events = POLLIN | POLLOUT };

	CHECK(poll(&one, 1, 0) >= 0);
	return one.revents;
}

static void *read_most(void *fd)
{
	eventfd_t value;

	CHECK(eventfd_read(*(int *)fd, &value) == 0 && value == MOST);
	return NULL;
}

static void counter(void)
{
	int fd = eventfd(3, EFD_NONBLOCK), blocking = eventfd(0, 0);
	eventfd_t value;
	pthread_t thread;

	CHECK(eventfd_write(fd, 4) == 0);
	CHECK(read(fd, &value, 4) == -1 && errno == EINVAL);
	CHECK(eventfd_read(fd, &value) == 0 && value == 7); // all of it at once
	CHECK(eventfd_read(fd, &value) == -1 && errno == EAGAIN);
	CHECK(poll_now(fd) == POLLOUT);
	CHECK(eventfd_write(fd, UINT64_MAX) == -1 && errno == EINVAL);
	CHECK(eventfd_write(fd, MOST) == 0);
	CHECK(poll_now(fd) == POLLIN);
	CHECK(eventfd_write(fd, 1) == -1 && errno == EAGAIN);

	// the second write fits only after the thread has read
	CHECK(eventfd_write(blocking, MOST) == 0);
	CHECK(pthread_create(&thread, NULL, read_most, &blocking) == 0);
	CHECK(eventfd_write(blocking, 1) == 0);
	CHECK(pthread_join(thread, NULL) == 0);
	CHECK(eventfd_read(blocking, &value) == 0 && value == 1);
}

static void semaphore(void)
{
	int fd = eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK);
	eventfd_t value;

	CHECK(eventfd_write(fd, 1) == 0);
	for (int i = 0; i < 3; i++) {
		CHECK(poll_now(fd) == (POLLIN | POLLOUT));
		CHECK(eventfd_read(fd, &value) == 0 && value == 1); // one at a time
	}
	CHECK(eventfd_read(fd, &value) == -1 && errno == EAGAIN);
}

int main(int count, char **arguments)
{
	alarm(30); // a read or a write that hangs ends here
	CHECK(count == 2);
	if (strcmp(arguments[1], "counter") == 0)
		counter();
	else if (strcmp(arguments[1], "semaphore") == 0)
		semaphore();
	else
		CHECK(!"counter or semaphore");
	printf("PASS: eventfd %s\n", arguments[1]);
	return 0;
}
