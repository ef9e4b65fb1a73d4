"""Makefiles as they are: tools with options, compilers by their names, and installation without DESTDIR."""

from __future__ import annotations

import os

import pytest

from qcase.arch import Arch
from qcase.host import process
from qcase.pipelines import c
from tests.container.builds import Case

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

OLD = """\
CC = gcc -DWANTED=1
LD = gcc
AR = ar rcu
HOSTCC = gcc
PREFIX = /usr/local
all: prog
table.h: table
\t./table > $@
table: table.c
\t$(HOSTCC) -o $@ $<
prog.o: table.h
prog: prog.o lib.a
\t$(LD) -static -o $@ prog.o lib.a
lib.a: lib.o
\t$(AR) $@ $^
install: prog
\tmkdir -p $(PREFIX)/bin
\tinstall -s prog $(PREFIX)/bin
\tln -s $(PREFIX)/bin/prog $(PREFIX)/bin/other
"""
BY_NAME = """\
prog: prog.c
\tgcc -DWANTED=1 -include no-table.h -static -o prog prog.c lib.c
install: prog
\tinstall -D prog $(DESTDIR)/usr/bin/prog
"""
SOURCES = {
    "c/prog.c": '#ifndef TABLE\n#include "table.h"\n#endif\nint two(void);\nint main(void) { return TABLE + WANTED - two(); }\n',
    "c/lib.c": "int two(void) { return 2; }\n",
    "c/no-table.h": "#define TABLE 1\n",
    "c/table.c": '#include <stdio.h>\nint main(void) { puts("#define TABLE 1"); }\n',
}


@pytest.mark.parametrize("makefile", [OLD, BY_NAME], ids=["old", "by name"])
def test_a_makefile_that_knows_nothing_of_other_machines(makefile: str, case: Case) -> None:
    programs = case.build({**SOURCES, "c/Makefile": makefile}, Arch.AARCH64, c.build) / "usr/bin"
    process.run(["qemu-aarch64", str(programs / "prog")], timeout=60)
    if makefile is OLD:
        assert os.readlink(programs / "other") == "/usr/bin/prog"  # noqa: PTH115


# A script `configure` by habit alone, tools whose names are put together by scripts, and a script that installs below PREFIX.
OPTIONAL = {
    "c/configure": """\
#!/bin/sh
# The Makefile does the work.
if [ "${0##*/}" = configure ]; then echo "make defconfig is what you want"; exit 1; fi
: ${CC:=cc} ${HOSTCC:=cc}
""",
    "c/Makefile": """\
all: prog
defconfig:
\techo '#define WANTED 1' >config.h
prog: prog.c lib.c
\tsh scripts/make.sh
install: prog
\tsh scripts/install.sh
""",
    "c/scripts/make.sh": """\
. ./configure
$HOSTCC -o table table.c
./table >table.h
"$CROSS_COMPILE$CC" -include config.h -static -o prog prog.c lib.c
""",
    "c/scripts/install.sh": 'mkdir -p "$PREFIX/bin"\ncp prog "$PREFIX/bin/"\n',
    **{name: text for name, text in SOURCES.items() if name != "c/no-table.h"},
}


def test_a_project_with_a_configure_that_makes_nothing(case: Case) -> None:
    case.options = {"make": ("defconfig", "all")}
    programs = case.build(OPTIONAL, Arch.RISCV64, c.build) / "usr/bin"
    process.run(["qemu-riscv64", str(programs / "prog")], timeout=60)


# What the compiler made for the guest, run by rules of all kinds: by make itself, by a shell, by a script, and by name.
RUNS = """\
all: prog
one.h: table
\t./table 1 >$@
two.h: table
\t./table 2 | cat >$@ && [ -s $@ ]
three.h: table
\tsh -c 'cd .. && c/table 3' >$@
four.h: table
\tPATH=$$PWD:$$PATH; table 4 >$@
five.h: table
\tpython3 -c 'import subprocess; subprocess.run(["./table", "5"], check=True)' >$@
six.h: table
\t$(CROSS_COMPILE)run ./table 6 >$@
seven.h: table
\tprintf 7 | xargs ./table >$@
hello: table
\t./table
prog: prog.c one.h two.h three.h four.h five.h six.h seven.h hello
\t$(CC) -static -o $@ prog.c
install: prog
\tinstall -D prog $(DESTDIR)/usr/bin/prog
"""
TABLE = """\
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv)
{
    return getenv("LD_PRELOAD") || (argc > 1 && printf("%s + %d +\\n", argv[1], argc - 2) < 0);
}
"""
COUNTS = """\
int main(void)
{
    return
#include "one.h"
#include "two.h"
#include "three.h"
#include "four.h"
#include "five.h"
#include "six.h"
#include "seven.h"
        0 - 28;
}
"""


@pytest.mark.parametrize("arch", [Arch.X86_64, Arch.AARCH64, Arch.LOONGARCH64])
def test_a_makefile_runs_what_it_made(arch: Arch, case: Case) -> None:
    files = {"c/Makefile": RUNS, "c/table.c": TABLE, "c/prog.c": COUNTS}
    programs = case.build(files, arch, c.build) / "usr/bin"
    process.run([f"qemu-{arch}", str(programs / "prog")], timeout=60)
