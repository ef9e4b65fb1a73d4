"""The first error in what a build said."""

from __future__ import annotations

import pytest

from qcase.guests.build_errors import first_error

CARGO = """\
   Compiling kernel v0.1.0 (/w/kernel)
warning: unused variable: `error`
 --> src/main.rs:1:1
\x1b[1m\x1b[38;5;9merror[E0425]\x1b[0m\x1b[1m: cannot find value `x` in this scope\x1b[0m
  \x1b[38;5;12m-->\x1b[0m src/main.rs:3:5
   |
error: could not compile `kernel` (bin "kernel") due to 1 previous error
make: *** [Makefile:3: all] Error 101
"""


@pytest.mark.parametrize(
    ("said", "first"),
    [
        (CARGO, "error[E0425]: cannot find value `x` in this scope (src/main.rs:3:5)"),
        (
            "cc -c a.c\nIn file included from a.c:1:\na.h:3:2: error: #error no\nmake: *** [a.o] Error 1\n",
            "a.h:3:2: error: #error no",
        ),
        ("a.c:1:10: fatal error: x.h: No such file or directory\n", "a.c:1:10: fatal error: x.h: No such file or directory"),
        ("start.S: Assembler messages:\nstart.S:4: Error: no such instruction\n", "start.S:4: Error: no such instruction"),
        ("ld.lld: error: undefined symbol: main\n", "ld.lld: error: undefined symbol: main"),
        ("a.o: in function `f':\na.c:(.text+0x1): undefined reference to `g'\n", "a.c:(.text+0x1): undefined reference to `g'"),
        ("/usr/bin/ld: cannot find -lx: No such file\n", "/usr/bin/ld: cannot find -lx: No such file"),
        ("CMake Error at CMakeLists.txt:3 (project):\n  no\n", "CMake Error at CMakeLists.txt:3 (project):"),
        ("make: *** No rule to make target 'x'.  Stop.\nbye\n", "make: *** No rule to make target 'x'.  Stop."),
        ("sh: 1: cargoo: not found\n", "sh: 1: cargoo: not found"),
        ("checking for error... none\n\nit was not to be\n\n", "it was not to be"),
        ("warning: 3 errors were found in x\nerror: real\n", "error: real"),
        ("", ""),
        ("\n \n", ""),
    ],
)
def test_the_compilers_first_error(said: str, first: str) -> None:
    assert first_error(said.splitlines(keepends=True)) == first
