"""Programs for the guest that a build runs by their path: an emulator runs them.

Make and `configure` know no emulator, as CMake and Meson do, and rules like `./mktable >table.h` call what `$(CC)` made. So the
step compiles `SOURCE` into a library and loads it by LD_PRELOAD into the builder's shells, makes and scripts. It replaces
the functions that start programs, and puts the image's `<arch>-linux-musl-run` before a program that the builder cannot run.

    ./mktable -x    becomes    /usr/local/bin/<arch>-linux-musl-run -0 ./mktable ./mktable -x

On x86_64, a static program runs as it is, and one that asks for musl's loader is emulated. The emulator itself gets no
LD_PRELOAD, since a guest's loader would take it from there.
"""

from __future__ import annotations

from qcase.arch import Arch

FILE = "run-built.c"

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef char *const words[];

static int is_for_guest(const char *path)
{
    static const char musl[] = "/lib/ld-musl-";
    Elf64_Ehdr head;
    Elf64_Phdr part;
    char loader[sizeof musl - 1];
    int found = 0, file = open(path, O_RDONLY | O_CLOEXEC);

    if (file < 0)
        return 0;
    if (access(path, X_OK) == 0 && pread(file, &head, sizeof head, 0) == sizeof head
        && memcmp(head.e_ident, ELFMAG, SELFMAG) == 0 && head.e_ident[EI_CLASS] == ELFCLASS64
        && head.e_machine == MACHINE && (head.e_type == ET_EXEC || head.e_type == ET_DYN)) {
        found = MACHINE != EM_X86_64;
        for (int i = 0; !found && i < head.e_phnum; i++)
            found = pread(file, &part, sizeof part, head.e_phoff + i * sizeof part) == sizeof part && part.p_type == PT_INTERP
                && pread(file, loader, sizeof loader, part.p_offset) == sizeof loader && memcmp(loader, musl, sizeof loader) == 0;
    }
    close(file);
    return found;
}

static int count(words list)
{
    int n = 0;

    while (list && list[n])
        n++;
    return n;
}

/* The same with the emulator before it; `to` has four places more. */
static char **emulated(const char *path, words argv, char **to)
{
    int n = 0;

    to[n++] = RUN;
    to[n++] = "-0";
    to[n++] = argv && argv[0] ? argv[0] : (char *)path;
    to[n++] = (char *)path;
    for (int i = 1; i < count(argv); i++)
        to[n++] = argv[i];
    to[n] = NULL;
    return to;
}

static char **without_preload(words envp, char **to)
{
    int n = 0;

    for (int i = 0; i < count(envp); i++)
        if (strncmp(envp[i], "LD_PRELOAD=", 11) != 0)
            to[n++] = envp[i];
    to[n] = NULL;
    return to;
}

/* The path of a program by the rules of execvp; its name where there is none. */
static const char *in_path(const char *name, char *place, size_t size)
{
    const char *rest = getenv("PATH");

    if (strchr(name, '/') || !rest)
        return name;
    for (const char *end; *rest; rest = *end ? end + 1 : end) {
        end = strchrnul(rest, ':');
        if (snprintf(place, size, "%.*s/%s", (int)(end - rest), rest, name) < (int)size && access(place, X_OK) == 0)
            return place;
    }
    return name;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ROOM(list) ((char **)__builtin_alloca((count(list) + 5) * sizeof(char *)))

int execve(const char *path, words argv, words envp)
{
    if (is_for_guest(path))
        return NEXT(execve)(RUN, emulated(path, argv, ROOM(argv)), envp);
    if (strstr(path, "/qemu-"))
        return NEXT(execve)(path, argv, without_preload(envp, ROOM(envp)));
    return NEXT(execve)(path, argv, envp);
}

int execv(const char *path, words argv)
{
    return execve(path, argv, environ);
}

int execvpe(const char *name, words argv, words envp)
{
    char place[4096];
    const char *path = in_path(name, place, sizeof place);

    if (is_for_guest(path) || strstr(path, "/qemu-"))
        return execve(path, argv, envp);
    return NEXT(execvpe)(name, argv, envp);
}

int execvp(const char *name, words argv)
{
    return execvpe(name, argv, environ);
}

#define SPAWN(name, path) \
    int name(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *settings, \
        words argv, words envp) \
    { \
        char place[4096]; \
        const char *found = path; \
        (void)place; \
        if (is_for_guest(found)) \
            return NEXT(posix_spawn)(pid, RUN, actions, settings, emulated(found, argv, ROOM(argv)), envp); \
        if (strstr(found, "/qemu-")) \
            return NEXT(posix_spawn)(pid, found, actions, settings, argv, without_preload(envp, ROOM(envp))); \
        return NEXT(name)(pid, file, actions, settings, argv, envp); \
    }

SPAWN(posix_spawn, file)
SPAWN(posix_spawnp, in_path(file, place, sizeof place))
"""


def program(arch: Arch, run: str, build: str) -> str:
    """Return the part of a step's program that loads the library, where the image has an emulator and a compiler of its own.

    `run`: the path of the image's emulator. `build`: the folder of the step with the file `FILE`.
    """
    library = f"{build}/run-built.so"
    made = f"gcc -shared -fPIC -O1 -w -DMACHINE={arch.spec.elf_machines[0]} -DRUN='\"{run}\"' -o {library} {build}/{FILE}"
    return f"""\
if [ -z "${{LD_PRELOAD-}}" ] && [ -x {run} ] && {made} 2>/dev/null; then
    export LD_PRELOAD={library}
fi
"""
