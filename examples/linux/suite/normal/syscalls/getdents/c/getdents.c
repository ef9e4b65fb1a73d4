// getdents64 and the *at calls: each entry of a folder once, however small the buffer; paths relative to a descriptor.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHECK(that)                                                                        \
	do {                                                                               \
		if (!(that)) {                                                             \
			printf("FAIL: %s:%d: %s (errno: %s)\n", __func__, __LINE__, #that, \
			       strerror(errno));                                           \
			exit(1);                                                           \
		}                                                                          \
	} while (0)

#define FILES 150

struct entry { // struct linux_dirent64
	uint64_t ino;
	int64_t off;
	unsigned short reclen;
	unsigned char type;
	char name[];
};

// Reads all of `dir` in pieces of `size` bytes: the number of files that were there exactly once.
static int once(int dir, int size)
{
	_Alignas(struct entry) char buffer[4096];
	int seen[FILES] = { 0 }, dots = 0, files = 0, number;
	struct stat status;
	long got;

	CHECK(lseek(dir, 0, SEEK_SET) == 0);
	while ((got = syscall(SYS_getdents64, dir, buffer, size)) > 0)
		for (long at = 0; at < got;) {
			struct entry *entry = (struct entry *)(buffer + at);

			at += entry->reclen;
			CHECK(at <= got && fstatat(dir, entry->name, &status, AT_SYMLINK_NOFOLLOW) == 0);
			CHECK(entry->ino == status.st_ino || strcmp(entry->name, "..") == 0);
			if (strcmp(entry->name, ".") == 0 || strcmp(entry->name, "..") == 0) {
				CHECK(entry->type == DT_DIR);
				dots++;
			} else {
				CHECK(sscanf(entry->name, "file-%d", &number) == 1 && number < FILES);
				CHECK(entry->type == (number % 2 ? DT_LNK : DT_REG));
				CHECK(seen[number]++ == 0);
				files++;
			}
		}
	CHECK(got == 0 && dots == 2);
	return files;
}

int main(void)
{
	char path[] = "/tmp/getdents.XXXXXX", name[32];
	struct stat by_path, by_fd;

	CHECK(mkdtemp(path));
	int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(dir >= 0);
	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "file-%d", i);
		if (i % 2)
			CHECK(symlinkat("nowhere", dir, name) == 0);
		else
			CHECK(close(openat(dir, name, O_CREAT | O_EXCL | O_WRONLY, 0600)) == 0);
	}
	CHECK(openat(dir, "file-0", O_CREAT | O_EXCL | O_WRONLY, 0600) == -1 && errno == EEXIST);
	CHECK(openat(dir, "file-1", O_RDONLY) == -1 && errno == ENOENT);
	CHECK(syscall(SYS_getdents64, dir, name, 8) == -1 && errno == EINVAL); // not room for one

	CHECK(once(dir, 4096) == FILES);
	CHECK(once(dir, 64) == FILES);
	for (int i = 0; i < FILES; i += 3) {
		snprintf(name, sizeof(name), "file-%d", i);
		CHECK(unlinkat(dir, name, 0) == 0);
	}
	CHECK(once(dir, 256) == FILES - FILES / 3);

	CHECK(stat(path, &by_path) == 0 && fstat(dir, &by_fd) == 0 && by_path.st_ino == by_fd.st_ino);
	CHECK(unlinkat(AT_FDCWD, path, AT_REMOVEDIR) == -1 && errno == ENOTEMPTY);
	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "file-%d", i);
		CHECK(unlinkat(dir, name, 0) == 0 || (i % 3 == 0 && errno == ENOENT));
	}
	CHECK(unlinkat(AT_FDCWD, path, AT_REMOVEDIR) == 0);
	CHECK(openat(dir, "late", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT); // the folder is gone
	puts("PASS: getdents");
	return 0;
}
