// Pipes: writes of PIPE_BUF bytes are atomic, capacity and O_NONBLOCK, end of file, SIGPIPE and EPIPE, packets, tee and splice.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
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

#define WRITERS 4
#define RECORDS 64

static char block[PIPE_BUF];
static volatile sig_atomic_t broken;

static void on_sigpipe(int signal)
{
	(void)signal;
	broken++;
}

static void atomic_writes(void)
{
	int ends[2], records[WRITERS] = { 0 }, status;

	CHECK(pipe(ends) == 0);
	for (int writer = 0; writer < WRITERS; writer++) {
		pid_t child = fork();

		CHECK(child >= 0);
		if (child == 0) {
			memset(block, writer, PIPE_BUF);
			for (int i = 0; i < RECORDS; i++)
				CHECK(write(ends[1], block, PIPE_BUF) == PIPE_BUF);
			_exit(0);
		}
	}
	close(ends[1]);
	for (;;) {
		ssize_t got = 0, more;

		while (got < PIPE_BUF && (more = read(ends[0], block + got, PIPE_BUF - got)) > 0)
			got += more;
		if (got == 0)
			break; // no writer is left
		CHECK(got == PIPE_BUF);
		CHECK(block[0] >= 0 && block[0] < WRITERS);
		CHECK(memcmp(block, block + 1, PIPE_BUF - 1) == 0); // all bytes are the same
		records[(int)block[0]]++;
	}
	for (int writer = 0; writer < WRITERS; writer++) {
		CHECK(records[writer] == RECORDS);
		CHECK(wait(&status) > 0 && status == 0);
	}
	close(ends[0]);
}

static void capacity(void)
{
	int ends[2], size, written = 0;

	CHECK(pipe2(ends, O_NONBLOCK) == 0);
	CHECK(read(ends[0], block, 1) == -1 && errno == EAGAIN);
	size = fcntl(ends[1], F_GETPIPE_SZ);
	while (write(ends[1], block, PIPE_BUF) == PIPE_BUF)
		written += PIPE_BUF;
	CHECK(errno == EAGAIN);
	CHECK(written == size);
	CHECK(read(ends[0], block, PIPE_BUF - 1) == PIPE_BUF - 1);
	CHECK(write(ends[1], block, PIPE_BUF) == -1 && errno == EAGAIN); // all of it or nothing
	CHECK(read(ends[0], block, 1) == 1);
	CHECK(write(ends[1], block, PIPE_BUF) == PIPE_BUF);
	CHECK(fcntl(ends[1], F_SETPIPE_SZ, PIPE_BUF) == -1 && errno == EBUSY); // it holds more
	CHECK(fcntl(ends[1], F_SETPIPE_SZ, 2 * size) == 2 * size);
	CHECK(write(ends[1], block, PIPE_BUF) == PIPE_BUF);
	close(ends[0]);
	close(ends[1]);
}

static void no_reader(void)
{
	struct sigaction handle = { .sa_handler = on_sigpipe }, ignore = { .sa_handler = SIG_IGN };
	int ends[2];

	CHECK(pipe(ends) == 0);
	close(ends[0]);
	sigaction(SIGPIPE, &handle, NULL);
	CHECK(write(ends[1], "x", 1) == -1 && errno == EPIPE);
	CHECK(broken == 1);
	sigaction(SIGPIPE, &ignore, NULL);
	CHECK(write(ends[1], "x", 1) == -1 && errno == EPIPE);
	CHECK(broken == 1);
	close(ends[1]);
}

static void packets(void)
{
	int ends[2];

	CHECK(pipe2(ends, O_DIRECT) == 0);
	CHECK(write(ends[1], "one", 3) == 3);
	CHECK(write(ends[1], "three", 5) == 5);
	CHECK(read(ends[0], block, 2) == 2); // what does not fit is gone
	CHECK(read(ends[0], block, PIPE_BUF) == 5 && memcmp(block, "three", 5) == 0);
	close(ends[0]);
	close(ends[1]);
}

static void tee_and_splice(void)
{
	char name[] = "/tmp/pipes.XXXXXX", text[6] = "";
	int from[2], to[2], file = mkstemp(name);
	off_t at = 2;

	CHECK(file >= 0 && unlink(name) == 0);
	CHECK(pipe(from) == 0 && pipe(to) == 0);
	CHECK(write(from[1], "hello", 5) == 5);
	CHECK(tee(from[0], to[1], 5, 0) == 5);
	CHECK(read(to[0], text, 5) == 5 && strcmp(text, "hello") == 0);
	CHECK(splice(from[0], NULL, file, NULL, 5, 0) == 5); // tee took nothing away
	CHECK(pread(file, text, 5, 0) == 5 && strcmp(text, "hello") == 0);
	CHECK(splice(file, &at, to[1], NULL, 5, 0) == 3 && at == 5);
	CHECK(read(to[0], text, 5) == 3 && memcmp(text, "llo", 3) == 0);
	CHECK(splice(file, NULL, file, NULL, 5, 0) == -1 && errno == EINVAL); // one of the two must be a pipe
	close(file);
}

int main(void)
{
	alarm(30); // a read or a write that hangs ends here
	atomic_writes();
	capacity();
	no_reader();
	packets();
	tee_and_splice();
	puts("PASS: pipes");
	return 0;
}
