// memfd_create and its seals: what each forbids, and when it cannot be set.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHECK(that)                                                                        \
	do {                                                                               \
		if (!(that)) {                                                             \
			printf("FAIL: %s:%d: %s (errno: %s)\n", __func__, __LINE__, #that, \
			       strerror(errno));                                           \
			exit(1);                                                           \
		}                                                                          \
	} while (0)

#define SIZE 4096

int main(void)
{
	char link[64], path[64];
	int plain = memfd_create("plain", 0), fd = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	CHECK(plain >= 0 && fd >= 0);
	CHECK(fcntl(plain, F_ADD_SEALS, F_SEAL_GROW) == -1 && errno == EPERM);
	CHECK(fcntl(fd, F_GET_SEALS) == 0);
	CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(plain, F_GETFD) == 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	CHECK(readlink(path, link, sizeof(link)) == 23 && memcmp(link, "/memfd:sealed (deleted)", 23) == 0);

	CHECK(ftruncate(fd, SIZE) == 0 && pwrite(fd, "hello", 5, 0) == 5);
	char *map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED && memcmp(map, "hello", 5) == 0);

	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
	CHECK(ftruncate(fd, SIZE / 2) == -1 && errno == EPERM);
	CHECK(ftruncate(fd, SIZE * 2) == 0);
	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW) == 0);
	CHECK(ftruncate(fd, SIZE * 3) == -1 && errno == EPERM);
	CHECK(pwrite(fd, "x", 1, SIZE * 2) == -1 && errno == EPERM);

	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == -1 && errno == EBUSY); // while someone can write to its map
	map[0] = 'j';
	CHECK(munmap(map, SIZE) == 0);
	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0);
	CHECK(pwrite(fd, "x", 1, 0) == -1 && errno == EPERM);
	CHECK(mmap(NULL, SIZE, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM);
	map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(map != MAP_FAILED && memcmp(map, "jello", 5) == 0);
	map[0] = 'h'; // its own copy

	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL) == 0);
	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW) == -1 && errno == EPERM);
	CHECK(fcntl(fd, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL));
	CHECK(pread(fd, link, 5, 0) == 5 && memcmp(link, "jello", 5) == 0);
	puts("PASS: memfd");
	return 0;
}
