"""Advice about builds in C and C++ that failed, by what their tools said."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qcase.pipelines.build_choice import System

_NO_NETWORK = re.compile(
    r"could not find git for clone of |[Cc]ould(?:n't| not) resolve host|[Nn]ame resolution|unable to access|"
    r"Each download failed|wrap-based subproject downloading is disabled"
)
_NO_LIBRARY = re.compile(
    r"ERROR: Dependency [\"']([\w+.-]+)[\"'] not found|ERROR: C(?:\+\+)? (?:shared or static )?library '([\w+.-]+)' not found|"
    r"(?m:^ +Could NOT find (?!Python|Perl|Git|Doxygen|BISON|FLEX)([\w+.-]+)(?:, [^()]{0,400}| )\(missing)|"
    r"CMake Error.*\n +Could not find a package configuration file provided by \"([\w+.-]+)\"|"
    r"required packages were not found:\s+- ([\w+.-]+)|(?m:^No package '([\w+.-]+)' found)|"
    r"(?:[Cc]annot|[Cc]ould not|[Uu]nable to) find (?:the )?([\w+.-]+) librar(?:y|ies)\b"
)
_NO_TOOL = re.compile(
    r"(?m)\b([\w+.-]+): (?:command )?not found$|^make(?:\[\d+\])?: ([\w+.-]+): No such file or directory$|"
    r"^ +Could NOT find (Perl|BISON|FLEX|Python\d?)\b|Neither ([\w+.-]+) nor [^\n]{0,100} (?:was|were) found|"
    r"ERROR: Program '([\w+.-]+)[^'\n]*' not found|(?:exec: |env: |sh: )[‘']?([\w+.-]+)[’']?: No such file or directory$|"
    r"[Cc]ould not find a? ?(?:working )?(?:GNU )?(m4|bison|flex|perl|gperf|yacc|lex)\b|"
    r"(?:no acceptable|GNU)(?: version of)? ([mM]4)\b.{0,100}(?:could be found|is required|not found)|"
    r"(?:[`‘'](bison|flex|yacc|lex|gperf|help2man|makeinfo)['’] is missing on your system)|"
    r"Can't locate (\S+)\.pm in @INC"
)
_NO_SUBMODULE = re.compile(r"The source directory\s+(\S+)\s+does not contain a CMakeLists\.txt file")
_NOT_IN_MUSL = re.compile(
    r"fatal error: ((?:sys/(?:cdefs|queue|tree)|fts|argp|obstack|execinfo|error|gnu/\w+|printf|bits/\w+)\.h):"
    r"|unknown type name [‘']((?:__BEGIN_DECLS|off64_t|comparison_fn_t|sigval_t|error_t)\b)"
)
_DEPENDENCY = re.compile(r"clone of (\S+?)-populate|_deps/([\w-]+?)-(?:subbuild|src|build)\b")


def another(systems: Sequence[str]) -> str:
    """Return advice about a build by one of several build systems; empty without others. `systems`: the names of the others."""
    if not systems:
        return ""
    return f'the project may be built otherwise: [qcase] build_system = "{systems[0]}"'


def hint(system: System, said: str) -> str:
    """Return advice about a failed build if its output contains a known message; else the empty string."""
    if _NO_NETWORK.search(said):
        what = "a build has no network: keep what it downloads among the case's sources"
        if system is not System.CMAKE:
            return what
        found = _DEPENDENCY.search(said)
        name = (found[1] or found[2]).upper() if found else "<NAME>"
        return f'{what}, and say where: [qcase] cmake = ["-DFETCHCONTENT_SOURCE_DIR_{name}=/qcase/src/…"]'
    if "No rule to make target 'install'" in said:
        return 'the makefile needs a target `install`; or name what it builds: [qcase] install = { "usr/bin" = ["…"] }'
    if re.search(r"(?:install|cp|mkdir|ln|mv)\b.{0,1000}?(?:Read-only file system|Permission denied)", said):
        return (
            "the target install heeds no DESTDIR; a variable of the makefile says where: "
            '[qcase] make = ["<VARIABLE>=$(DESTDIR)/usr"]'
        )
    if absent := _NO_LIBRARY.search(said):
        name = next(found for found in absent.groups() if found)
        return f"[qcase] packages names the package of the guest's distribution that has {name}, in Alpine with -dev at its end"
    if empty := _NO_SUBMODULE.search(said):
        return (
            f"{empty[1]} has no sources, as a submodule that was not fetched: `git submodule update --init` does,"
            " and [qcase] cmake may switch off what needs them"
        )
    if missing := _NO_TOOL.search(said):
        name = next(found for found in missing.groups() if found)
        name = f"module {name.replace('/', '::')} of Perl" if missing[0].endswith("@INC") else name.lower()
        return (
            f"the toolchain image has no {name}: keep what it makes among the sources, as releases do; or [toolchain.c] image in"
            f" qcase.toml names an image that has it (docs: 'Tools that the image lacks')"
        )
    if lacking := _NOT_IN_MUSL.search(said):
        return f"musl has no {lacking[1] or lacking[2]}, which is glibc's: Alpine has patches and packages for what needs it"
    if "works in the build folder alone" in said:
        return "have the target install call libtool --mode=install; or name it in [qcase] install, for the program itself"
    if "Exec format error" in said and "check-TESTS" in said:
        return 'the target check runs the tests; [qcase] make = ["check", "TESTS="] builds them, for [qcase] install'
    if "Exec format error" in said:
        return "a program for the guest was run by the build; $(CROSS_COMPILE)run runs it in an emulator"
    return ""
