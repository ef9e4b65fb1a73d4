// Signals: queued values and their order, masks, SA_RESTART, an alternate stack after an overflow, what SIGCHLD tells.
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
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

static volatile sig_atomic_t count, ticks;
static char order[8];
static int wake_up[2];
static sigjmp_buf escape;
static char *volatile frame, *fault;
static char stack[1 << 16];

static void handle(int signal, void (*handler)(int, siginfo_t *, void *), int flags, int also_blocked)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags };

	if (also_blocked)
		sigaddset(&action.sa_mask, also_blocked);
	CHECK(sigaction(signal, &action, NULL) == 0);
}

static void note(int signal, siginfo_t *info, void *context)
{
	(void)info, (void)context;
	order[count++] = signal == SIGUSR1 ? 'a' : 'b';
	if (signal == SIGUSR1) {
		raise(SIGUSR2);
		order[count++] = 'c';
	}
}

// Realtime signals queue, the lowest number first, each number in the order sent; others are merged.
static void queue_and_mask(void)
{
	sigset_t set, pending;
	siginfo_t info;
	int wanted[] = { 3, 1, 2 };

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN);
	sigaddset(&set, SIGRTMIN + 1);
	CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	CHECK(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = 1 }) == 0);
	CHECK(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = 2 }) == 0);
	CHECK(sigqueue(getpid(), SIGRTMIN, (union sigval){ .sival_int = 3 }) == 0);
	CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGRTMIN) == 1);
	for (int i = 0; i < 3; i++) {
		CHECK(sigtimedwait(&set, &info, &(struct timespec){ 0 }) == (i ? SIGRTMIN + 1 : SIGRTMIN));
		CHECK(info.si_code == SI_QUEUE && info.si_pid == getpid() && info.si_int == wanted[i]);
	}
	CHECK(sigtimedwait(&set, &info, &(struct timespec){ 0 }) == -1 && errno == EAGAIN);

	// SIGUSR2 is blocked while the handler of SIGUSR1 runs, and comes right after it
	handle(SIGUSR1, note, 0, SIGUSR2);
	handle(SIGUSR2, note, 0, 0);
	CHECK(kill(getpid(), SIGUSR1) == 0 && kill(getpid(), SIGUSR1) == 0);
	CHECK(count == 0);
	CHECK(sigprocmask(SIG_UNBLOCK, &set, NULL) == 0);
	CHECK(strcmp(order, "acb") == 0);
}

static void tick(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	if (++ticks == 5)
		CHECK(write(wake_up[1], "x", 1) == 1);
}

// The timer ticks until the read is over: with SA_RESTART by the byte of the fifth tick, without it by a tick.
static void restart(void)
{
	struct itimerval every = { { .tv_usec = 10000 }, { .tv_usec = 10000 } }, off = { 0 };
	char byte;

	CHECK(pipe(wake_up) == 0);
	handle(SIGALRM, tick, SA_RESTART, 0);
	CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0);
	CHECK(read(wake_up[0], &byte, 1) == 1);
	CHECK(ticks >= 5);
	handle(SIGALRM, tick, 0, 0);
	CHECK(read(wake_up[0], &byte, 1) == -1 && errno == EINTR);
	CHECK(setitimer(ITIMER_REAL, &off, NULL) == 0);
}

static void overflown(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	frame = (char *)&info;
	fault = info->si_addr;
	siglongjmp(escape, 1);
}

static int overflow(volatile char *from)
{
	volatile char page[4096];

	page[0] = from ? from[0] : 0;
	return page[0] == 0 ? overflow(page) + page[0] : 0;
}

static void alternate_stack(void)
{
	stack_t alternate = { .ss_sp = stack, .ss_size = sizeof(stack) };
	struct rlimit small = { 1 << 20, 1 << 20 };
	char here;

	CHECK(setrlimit(RLIMIT_STACK, &small) == 0);
	CHECK(sigaltstack(&alternate, NULL) == 0);
	handle(SIGSEGV, overflown, SA_ONSTACK, 0);
	if (sigsetjmp(escape, 1) == 0)
		overflow(NULL);
	CHECK(frame >= stack && frame < stack + sizeof(stack));
	CHECK((uintptr_t)&here - (uintptr_t)fault < 2 << 20); // below us, by no more than the stack may grow
}

static void child_tells(int exits)
{
	siginfo_t info;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		if (exits)
			_exit(7);
		raise(SIGKILL);
	}
	CHECK(sigwaitinfo(&set, &info) == SIGCHLD && info.si_pid == child);
	CHECK(info.si_code == (exits ? CLD_EXITED : CLD_KILLED) && info.si_status == (exits ? 7 : SIGKILL));
	CHECK(waitpid(child, NULL, 0) == child);
}

int main(void)
{
	queue_and_mask();
	restart();
	alternate_stack();
	child_tells(1);
	child_tells(0);
	puts("PASS: signals");
	return 0;
}
