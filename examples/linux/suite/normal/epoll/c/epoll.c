// epoll: level, edge and one-shot reports, hang-ups, an epoll in an epoll, a wake-up from another thread, refusals.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define CHECK(that)                                                                        \
	do {                                                                               \
		if (!(that)) {                                                             \
			printf("FAIL: %s:%d: %s (errno: %s)\n", __func__, __LINE__, #that, \
			       strerror(errno));                                           \
			exit(1);                                                           \
		}                                                                          \
	} while (0)

static int control(int epoll, int op, int fd, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.fd = fd };

	return epoll_ctl(epoll, op, fd, &event);
}

// The events that are ready at `epoll` within `timeout` ms; 0 for none. `fd` must be the only one that is.
static uint32_t ready(int epoll, int fd, int timeout)
{
	struct epoll_event events[4];
	int count = epoll_wait(epoll, events, 4, timeout);

	CHECK(count == 0 || (count == 1 && events[0].data.fd == fd));
	return count ? events[0].events : 0;
}

static void level_edge_and_oneshot(void)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC), fd = eventfd(0, EFD_NONBLOCK);
	eventfd_t value;

	CHECK(epoll >= 0 && fd >= 0);
	CHECK(control(epoll, EPOLL_CTL_ADD, fd, EPOLLIN) == 0);
	CHECK(ready(epoll, fd, 0) == 0);
	CHECK(eventfd_write(fd, 1) == 0);
	CHECK(ready(epoll, fd, 0) == EPOLLIN);
	CHECK(ready(epoll, fd, 0) == EPOLLIN); // as long as there is something to read
	CHECK(eventfd_read(fd, &value) == 0);
	CHECK(ready(epoll, fd, 0) == 0);

	CHECK(control(epoll, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLET) == 0);
	CHECK(eventfd_write(fd, 1) == 0);
	CHECK(ready(epoll, fd, 0) == EPOLLIN);
	CHECK(ready(epoll, fd, 0) == 0); // once for each change
	CHECK(eventfd_write(fd, 1) == 0);
	CHECK(ready(epoll, fd, 0) == EPOLLIN);

	CHECK(control(epoll, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT) == 0);
	CHECK(ready(epoll, fd, 0) == EPOLLIN);
	CHECK(eventfd_write(fd, 1) == 0);
	CHECK(ready(epoll, fd, 0) == 0); // not before it is armed again
	CHECK(control(epoll, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT) == 0);
	CHECK(ready(epoll, fd, 0) == EPOLLIN);

	CHECK(control(epoll, EPOLL_CTL_MOD, fd, EPOLLIN) == 0);
	close(fd); // the last descriptor of the file: it leaves the set by itself
	CHECK(ready(epoll, fd, 0) == 0);
	close(epoll);
}

static void hang_up(void)
{
	int epoll = epoll_create1(0), pipes[2];

	CHECK(pipe(pipes) == 0);
	CHECK(control(epoll, EPOLL_CTL_ADD, pipes[0], EPOLLIN) == 0);
	CHECK(write(pipes[1], "x", 1) == 1);
	close(pipes[1]);
	CHECK(ready(epoll, pipes[0], 0) == (EPOLLIN | EPOLLHUP));
	close(pipes[0]);
	close(epoll);
}

static void *write_one(void *fd)
{
	CHECK(eventfd_write(*(int *)fd, 1) == 0);
	return NULL;
}

// An inner epoll is readable when something in it is; the thread writes before or while we wait, both must wake us.
static void nested_and_woken(void)
{
	int outer = epoll_create1(0), inner = epoll_create1(0), fd = eventfd(0, 0);
	struct itimerspec soon = { .it_value.tv_nsec = 10 * 1000 * 1000 };
	int timer = timerfd_create(CLOCK_MONOTONIC, 0);
	eventfd_t value;
	pthread_t thread;

	CHECK(control(inner, EPOLL_CTL_ADD, fd, EPOLLIN) == 0);
	CHECK(control(outer, EPOLL_CTL_ADD, inner, EPOLLIN) == 0);
	CHECK(control(inner, EPOLL_CTL_ADD, outer, EPOLLIN) == -1 && errno == ELOOP);
	CHECK(ready(outer, inner, 0) == 0);
	CHECK(pthread_create(&thread, NULL, write_one, &fd) == 0);
	CHECK(ready(outer, inner, -1) == EPOLLIN);
	CHECK(ready(inner, fd, 0) == EPOLLIN);
	CHECK(pthread_join(thread, NULL) == 0);
	CHECK(eventfd_read(fd, &value) == 0);
	CHECK(ready(outer, inner, 0) == 0);

	CHECK(control(inner, EPOLL_CTL_ADD, timer, EPOLLIN) == 0);
	CHECK(timerfd_settime(timer, 0, &soon, NULL) == 0);
	CHECK(ready(outer, inner, -1) == EPOLLIN);
	CHECK(ready(inner, timer, 0) == EPOLLIN);
	close(timer);
	close(fd);
	close(inner);
	close(outer);
}

static void refusals(void)
{
	int epoll = epoll_create1(0), fd = eventfd(0, 0), file = open("/proc/self/exe", O_RDONLY);

	CHECK(control(epoll, EPOLL_CTL_MOD, fd, EPOLLIN) == -1 && errno == ENOENT);
	CHECK(control(epoll, EPOLL_CTL_DEL, fd, 0) == -1 && errno == ENOENT);
	CHECK(control(epoll, EPOLL_CTL_ADD, fd, EPOLLIN) == 0);
	CHECK(control(epoll, EPOLL_CTL_ADD, fd, EPOLLIN) == -1 && errno == EEXIST);
	CHECK(control(epoll, EPOLL_CTL_ADD, epoll, EPOLLIN) == -1 && errno == EINVAL);
	CHECK(control(epoll, EPOLL_CTL_ADD, file, EPOLLIN) == -1 && errno == EPERM);
	CHECK(epoll_wait(epoll, &(struct epoll_event){ 0 }, 0, 0) == -1 && errno == EINVAL);
	CHECK(epoll_wait(fd, &(struct epoll_event){ 0 }, 1, 0) == -1 && errno == EINVAL);
}

int main(void)
{
	alarm(30); // a wake-up that is lost ends here
	level_edge_and_oneshot();
	hang_up();
	nested_and_woken();
	refusals();
	puts("PASS: epoll");
	return 0;
}
