// Memory maps: shared and private across fork, protection and its faults, a file seen both ways, mremap, madvise, fixed places.
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(that)                                                                        \
	do {                                                                               \
		if (!(that)) {                                                             \
			printf("FAIL: %s:%d: %s (errno: %s)\n", __func__, __LINE__, #that, \
			       strerror(errno));                                           \
			exit(1);                                                           \
		}                                                                          \
	} while (0)

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#define RW (PROT_READ | PROT_WRITE)

static long page;
static sigjmp_buf escape;
static siginfo_t fault;

static char *map(long size, int protection, int flags, int fd)
{
	char *at = mmap(NULL, size, protection, flags | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);

	CHECK(at != MAP_FAILED);
	return at;
}

static void on_fault(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	fault = *info;
	siglongjmp(escape, 1);
}

// The signal with which writing to `at` ends, 0 for none. Its si_code and address must be right too.
static int write_fault(volatile char *at, int code)
{
	fault = (siginfo_t){ 0 };
	if (sigsetjmp(escape, 1) == 0)
		*at = 1;
	CHECK(fault.si_signo == 0 || (fault.si_code == code && fault.si_addr == at));
	return fault.si_signo;
}

static void across_fork(void)
{
	char *shared = map(page, RW, MAP_SHARED, -1), *private = map(page, RW, MAP_PRIVATE, -1);
	int status;

	CHECK(shared[0] == 0 && private[page - 1] == 0);
	private[0] = 'p';
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		shared[0] = private[0];
		private[0] = 'c';
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(shared[0] == 'p');
	CHECK(private[0] == 'p');
}

static void protection(void)
{
	char *at = map(3 * page, RW, MAP_PRIVATE, -1);

	memset(at, 'x', 3 * page);
	CHECK(mprotect(at + page, page, PROT_READ) == 0);
	CHECK(write_fault(at + 2 * page - 1, SEGV_ACCERR) == SIGSEGV);
	CHECK(at[page] == 'x');
	CHECK(write_fault(at + page - 1, 0) == 0 && write_fault(at + 2 * page, 0) == 0);
	CHECK(mprotect(at + page, page, RW) == 0);
	CHECK(write_fault(at + page, 0) == 0);
	CHECK(munmap(at + page, page) == 0);
	CHECK(write_fault(at + page, SEGV_MAPERR) == SIGSEGV);
	CHECK(mprotect(at, 3 * page, RW) == -1 && errno == ENOMEM); // there is a hole
}

static void file(void)
{
	char name[] = "/tmp/mmap.XXXXXX", text[6] = "";
	int fd = mkstemp(name);

	CHECK(fd >= 0 && unlink(name) == 0 && ftruncate(fd, page) == 0);
	char *shared = map(2 * page, RW, MAP_SHARED, fd), *private = map(page, RW, MAP_PRIVATE, fd);
	CHECK(pwrite(fd, "write", 5, 0) == 5);
	CHECK(memcmp(shared, "write", 5) == 0 && memcmp(private, "write", 5) == 0);
	memcpy(shared, "store", 5);
	CHECK(msync(shared, page, MS_SYNC) == 0);
	CHECK(pread(fd, text, 5, 0) == 5 && strcmp(text, "store") == 0);
	memcpy(private, "other", 5);
	CHECK(memcmp(shared, "store", 5) == 0);
	CHECK(write_fault(shared + page, BUS_ADRERR) == SIGBUS); // mapped, but behind the end of the file
	CHECK(ftruncate(fd, 2 * page) == 0);
	CHECK(write_fault(shared + page, 0) == 0);
	close(fd);
	CHECK(shared[page] == 1); // a map keeps its file
}

static void move_and_forget(void)
{
	char *at = map(2 * page, RW, MAP_PRIVATE, -1);

	memset(at, 'x', 2 * page);
	CHECK(mmap(at, page, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED && errno == EEXIST);
	CHECK(madvise(at, page, MADV_DONTNEED) == 0);
	CHECK(at[0] == 0 && at[page - 1] == 0 && at[page] == 'x');
	char *far = map(64 * page, PROT_NONE, MAP_PRIVATE, -1);
	char *now = mremap(at, 2 * page, 4 * page, MREMAP_MAYMOVE | MREMAP_FIXED, far + page);
	CHECK(now == far + page);
	CHECK(now[0] == 0 && now[page] == 'x' && now[2 * page - 1] == 'x' && now[2 * page] == 0);
	CHECK(write_fault(at, SEGV_MAPERR) == SIGSEGV);
	CHECK(mremap(now, 4 * page, 8 * page, 0) == MAP_FAILED && errno == ENOMEM); // no room to grow in place
	CHECK(mremap(now, 4 * page, page, 0) == now);
	CHECK(write_fault(now + page, SEGV_MAPERR) == SIGSEGV);
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };

	page = sysconf(_SC_PAGESIZE);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	across_fork();
	protection();
	file();
	move_and_forget();
	puts("PASS: mmap");
	return 0;
}
