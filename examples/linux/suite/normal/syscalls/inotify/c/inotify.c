// inotify: which events a folder and a file report, in which order, and when a watch ends.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHECK(that)                                                                        \
	do {                                                                               \
		if (!(that)) {                                                             \
			printf("FAIL: %s:%d: %s (errno: %s)\n", __func__, __LINE__, #that, \
			       strerror(errno));                                           \
			exit(1);                                                           \
		}                                                                          \
	} while (0)

static int queue;
static uint32_t cookie;

// The next event must be this one, of this name ("" for the watched thing itself).
static void expect(int watch, uint32_t mask, const char *name)
{
	static _Alignas(struct inotify_event) char buffer[4096];
	static ssize_t at, end;

	if (at == end) {
		at = 0;
		end = read(queue, buffer, sizeof(buffer));
		CHECK(end > 0);
	}
	struct inotify_event *event = (struct inotify_event *)(buffer + at);
	at += sizeof(*event) + event->len;
	cookie = event->cookie;
	if (event->wd != watch || event->mask != mask || strcmp(event->len ? event->name : "", name) != 0) {
		printf("FAIL: wanted %#x '%s', got %#x '%s'\n", mask, name, event->mask, event->len ? event->name : "");
		exit(1);
	}
}

int main(void)
{
	char dir[] = "/tmp/inotify.XXXXXX";
	uint32_t moved;

	CHECK(mkdtemp(dir) && chdir(dir) == 0);
	queue = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	CHECK(queue >= 0);
	int all = inotify_add_watch(queue, ".", IN_CREATE | IN_DELETE | IN_MOVE | IN_MODIFY | IN_CLOSE_WRITE | IN_DELETE_SELF);
	CHECK(all >= 0);
	CHECK(read(queue, dir, sizeof(dir)) == -1 && errno == EAGAIN);
	CHECK(inotify_add_watch(queue, "nowhere", IN_CREATE) == -1 && errno == ENOENT);

	int fd = open("old", O_CREAT | O_WRONLY, 0600);
	CHECK(fd >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0);
	CHECK(mkdir("sub", 0700) == 0);
	CHECK(rename("old", "new") == 0);
	expect(all, IN_CREATE, "old");
	expect(all, IN_MODIFY, "old");
	expect(all, IN_CLOSE_WRITE, "old");
	expect(all, IN_CREATE | IN_ISDIR, "sub");
	expect(all, IN_MOVED_FROM, "old");
	moved = cookie;
	expect(all, IN_MOVED_TO, "new");
	CHECK(moved != 0 && cookie == moved);

	// a watch on the file, for one event only; two equal events that follow each other are one
	int once = inotify_add_watch(queue, "new", IN_ATTRIB | IN_ONESHOT);
	CHECK(once >= 0 && once != all);
	CHECK(chmod("new", 0400) == 0 && chmod("new", 0600) == 0);
	expect(once, IN_ATTRIB, "");
	expect(once, IN_IGNORED, "");
	fd = open("new", O_WRONLY);
	CHECK(write(fd, "x", 1) == 1 && write(fd, "x", 1) == 1 && close(fd) == 0);
	expect(all, IN_MODIFY, "new");
	expect(all, IN_CLOSE_WRITE, "new");

	CHECK(unlink("new") == 0 && rmdir("sub") == 0 && rmdir(realpath(".", NULL)) == 0);
	expect(all, IN_DELETE, "new");
	expect(all, IN_DELETE | IN_ISDIR, "sub");
	CHECK(chdir("/") == 0); // the last to use the folder
	expect(all, IN_DELETE_SELF, "");
	expect(all, IN_IGNORED, "");
	CHECK(inotify_rm_watch(queue, all) == -1 && errno == EINVAL);
	CHECK(read(queue, dir, sizeof(dir)) == -1 && errno == EAGAIN);
	puts("PASS: inotify");
	return 0;
}
