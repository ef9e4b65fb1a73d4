"""How makefiles name their tools, and what make is told about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.host.trees import Tree
from qcase.pipelines import build_systems, make_habits
from qcase.pipelines.build_choice import System
from qcase.pipelines.build_systems import Tools
from qcase.pipelines.make_habits import Habits

HABITS = {
    "CC = gcc\nprog: prog.o\n\t$(CC) -o $@ $^\n": Habits(),
    "CC = gcc -std=c89\n": Habits(frozenset({"CC"})),
    "CC := \\\n\tgcc \\\n\t-pthread\n": Habits(frozenset({"CC"})),
    "export CC ?= clang -Wall # quiet\n": Habits(frozenset({"CC"})),
    "CC = $(CROSS_COMPILE)gcc -m64\n": Habits(frozenset({"CC"})),
    "CC = gcc # -m64\n": Habits(),
    "CC = icc -fast\n": Habits(),
    "CC += -Wall\n": Habits(),
    "AR= ar rcu\nRANLIB= ranlib\n": Habits(frozenset({"AR"})),
    "LD = ld\n": Habits(),
    "LD = gcc\n": Habits(frozenset({"LD"})),
    "LD ?= $(CC)\n": Habits(frozenset({"LD"})),
    "LD = ld -r\n": Habits(frozenset({"LD"})),
    "arm:\n\tCC=gcc MORE=-static $(MAKE) prog\n": Habits(),
    "ifdef X\n  AR = ar cr\nendif\n": Habits(frozenset({"AR"})),
    "prog: prog.c\n\tgcc -o prog prog.c\n": Habits(by_name=True),
    "prog: prog.c\n\t@gcc -o prog prog.c\ntool:\n\t$(HOSTCC) tool.c\n": Habits(),
    "tool: tool.c\n\tgcc -o tool tool.c\nprog: prog.c\n\t$(CC) prog.c\n": Habits(),
    "install:\n\tcp prog $(PREFIX)/bin\n": Habits(only_prefix=True),
    "install:\n\tcp prog $(DESTDIR)$(PREFIX)/bin\n": Habits(),
    "install:\n\tcp prog /opt\n": Habits(),
}


@pytest.mark.parametrize("text", HABITS)
@pytest.mark.parametrize("name", ["Makefile", "src/GNUmakefile", "rules.mk", "Makefile.inc"])
def test_the_habits_of_makefiles(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    (tmp_path / "Makefile~").write_text("AR = ar q\n")
    (tmp_path / "main.c").write_text("CC = gcc -x\n")
    assert make_habits.of(Tree(tmp_path)) == HABITS[text]


SCRIPTS = {
    "scripts/make.sh": ('"$CROSS_COMPILE$CC" -o prog prog.c\n', Habits(joined=True)),
    "configure": ("${CROSS_COMPILE}${CC} -E - </dev/null\n", Habits(joined=True)),
    "rules.mk": ("prog:\n\t$(CROSS_COMPILE)$(CC) -o $@ $^\n", Habits(joined=True)),
    "scripts/cross.sh": ("CC=${CROSS_COMPILE}gcc\n", Habits()),
    "scripts/install.sh": ('cp prog "$PREFIX/bin"\n', Habits(only_prefix=True)),
    "scripts/do-install.sh": ('cp prog "$DESTDIR${PREFIX}/bin"\n', Habits()),
    "scripts/start.sh": ('exec "$PREFIX/bin/prog"\n', Habits()),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_habits_of_scripts_that_makefiles_call(name: str, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    text, habits = SCRIPTS[name]
    (tmp_path / name).write_text(text)
    (tmp_path / "Makefile").write_text("all:\n\tscripts/make.sh\n")
    assert make_habits.of(Tree(tmp_path)) == habits


def test_where_names_are_put_together_the_first_is_empty() -> None:
    told = build_systems.program(System.MAKE, Tools(Arch.RISCV64, "gcc"), Habits(joined=True))
    assert " CROSS_COMPILE= " in told
    assert "exec /usr/local/bin/riscv64-linux-musl-gcc" in told


def test_a_tool_that_a_makefile_sets_with_an_option_is_left_to_it() -> None:
    tools = Tools(Arch.AARCH64, "gcc")
    plain = build_systems.program(System.MAKE, tools)
    told = build_systems.program(System.MAKE, tools, Habits(frozenset({"CC", "LD"})))
    begin, kept = (text.partition("set -- ")[2].splitlines()[0] for text in (plain, told))
    assert " CC_FOR_BUILD=" in f" {kept}"
    assert " HOSTCC=" not in f" {begin}"
    assert begin.startswith("CC=/usr/local/bin/aarch64-linux-musl-gcc CXX=")
    assert kept.startswith("CXX=/usr/local/bin/aarch64-linux-musl-g++ AR=")
    assert "exec /usr/local/bin/aarch64-linux-musl-gcc" in told
    assert "exec /usr/local/bin/aarch64-linux-musl-gcc" not in plain


@pytest.mark.parametrize("system", [System.MAKE, System.KSELFTEST, System.CONFIGURE])
def test_install_strips_by_the_guests_own(system: System) -> None:
    assert "exec /usr/local/bin/aarch64-linux-musl-strip" in build_systems.program(system, Tools(Arch.AARCH64, "gcc"))
