// clone, fork and the waits: what a child shares, namespaces of its own, and what its parent learns of it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

static char stack[1 << 16] __attribute__((aligned(16)));
static volatile int memory;
static int fd;

static int child(void *unused)
{
	(void)unused;
	memory = getpid();
	close(fd);
	return 7;
}

// Runs child() with `flags`: what it left of `memory` and `fd` here, as two bits.
static int shared(int flags)
{
	int status;

	memory = 0;
	fd = open("/dev/null", O_RDONLY);
	CHECK(fd >= 0);
	pid_t pid = clone(child, stack + sizeof(stack), flags | SIGCHLD, NULL);
	CHECK(pid > 0);
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 7);
	CHECK(memory == 0 || memory == (flags & CLONE_NEWPID ? 1 : pid));
	return (memory != 0) + 2 * (fcntl(fd, F_GETFD) == -1);
}

static void waits(void)
{
	siginfo_t info;
	int status, go[2];

	CHECK(pipe(go) == 0);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		close(go[1]);
		raise(SIGSTOP);
		_exit(read(go[0], &status, 1) == 0 ? 5 : 1);
	}
	close(go[0]);
	CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	CHECK(waitpid(pid, &status, WNOHANG) == 0);
	CHECK(kill(pid, SIGCONT) == 0);
	CHECK(waitpid(pid, &status, WCONTINUED) == pid && WIFCONTINUED(status));
	close(go[1]);
	CHECK(waitid(P_PID, pid, &info, WEXITED | WNOWAIT) == 0); // looks, and leaves it
	CHECK(info.si_pid == pid && info.si_code == CLD_EXITED && info.si_status == 5);
	CHECK(waitpid(-1, &status, 0) == pid && WEXITSTATUS(status) == 5);
	CHECK(waitpid(pid, &status, 0) == -1 && errno == ECHILD);
	CHECK(kill(pid, 0) == -1 && errno == ESRCH);
}

int main(void)
{
	alarm(30); // a wait that hangs ends here
	CHECK(shared(0) == 0);
	CHECK(shared(CLONE_VM) == 1);
	CHECK(shared(CLONE_FILES) == 2);
	CHECK(shared(CLONE_VM | CLONE_FILES) == 3);
	CHECK(shared(CLONE_VM | CLONE_NEWPID) == 1);
	CHECK(clone(child, stack + sizeof(stack), CLONE_SIGHAND | SIGCHLD, NULL) == -1 && errno == EINVAL);
	waits();
	puts("PASS: clone");
	return 0;
}
