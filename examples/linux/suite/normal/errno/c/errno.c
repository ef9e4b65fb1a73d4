// System calls that must fail, each with the one right error. The list is errno.txt; prebuild.sh makes cases.h of it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXPECT(error, call)                                            \
	do {                                                           \
		errno = 0;                                             \
		long result = (long)(call);                            \
		check(#call, #error, result, errno, result == -1 && errno == error); \
	} while (0)

static void *volatile bad_address = (void *)8; // volatile: compilers know better than to allow it
static int checked, failed;

static void check(const char *call, const char *wanted, long result, int error, int right)
{
	checked++;
	if (right)
		return;
	failed++;
	printf("FAIL: %s: %s wanted, got %ld (errno: %s)\n", call, wanted, result, strerror(error));
}

int main(void)
{
	char empty_file[] = "/tmp/errno.XXXXXX", fifo[32], long_name[NAME_MAX + 3] = "/";
	int null = open("/dev/null", O_RDONLY), empty = mkstemp(empty_file), pipes[2];
	struct winsize size;

	memset(long_name + 1, 'x', NAME_MAX + 1);
	if (pipe(pipes) || fchmod(empty, 0755) || close(empty))
		return 1;
	snprintf(fifo, sizeof(fifo), "%s.fifo", empty_file);
	if (mkfifo(fifo, 0600))
		return 1;

#include "cases.h"

	unlink(fifo);
	unlink(empty_file);
	if (failed || checked == 0)
		return 1;
	printf("%d calls fail as they must\n", checked);
	puts("PASS: errno");
	return 0;
}
