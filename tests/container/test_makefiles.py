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
