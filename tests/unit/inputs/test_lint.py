"""What `qcase lint` finds, each finding with its place, and that it says nothing about what is well."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase import events
from qcase.arch import Arch
from qcase.config import patterns
from qcase.errors import UsageError
from qcase.inputs import lint
from qcase.inputs.findings import Finding, Severity
from qcase.model import CaseResult, Fault, Verdict
from qcase.suite import history
from tests.conftest import ROOT

PROMPT = 'shell_prefix = "root@qcase:"\n'


class Suite:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.file("qcase.toml", '[suite]\nroot = "suite"\n')
        self.file("suite/normal/.keep")

    def file(self, path: str, text: str = "") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def case(self, text: str, path: str = "a", arch: str = "x86_64", *, timeout: str = "timeout = 9\n") -> None:
        self.file(f"suite/normal/{path}/qemu-{arch}.toml", timeout + text)

    def found(self) -> list[Finding]:
        return lint.lint(self.root)

    def said(self) -> list[str]:
        return [str(finding) for finding in self.found()]

    def only(self) -> str:
        (said,) = self.said()
        return said


@pytest.fixture
def tree(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


def test_the_examples_are_well() -> None:
    for name in ("linux", "ktest"):
        assert [f for f in lint.lint(ROOT / "examples" / name) if f.check != "timeout"] == []


def test_no_workspace(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no qcase\.toml"):
        lint.lint(tmp_path)


def test_a_machine_that_would_be_refused(tree: Suite) -> None:
    tree.file("qcase.toml", '[suite]\nroot = "suite"\n[run]\ntrust = "sandboxed"\n[cache]\nenv = ["HOME"]\n')
    drive = 'args = ["-drive", "if=none,id=disk0,file=rootfs-x86_64-debian.img", "-nic", "tap"]\n'
    tree.case(f'{drive}success_regex = ["^x$"]\n', "a")
    said = "\n".join(tree.said())
    assert "cache.env: would tell builds of the host's environment" in said
    assert "args: a disk names 'rootfs-x86_64-debian.img', which is not there" in said
    assert '-nic tap: is no network that keeps to network = "restricted"' in said


def test_all_errors_of_all_files_at_once(tree: Suite) -> None:
    tree.file("qcase.toml", '[suite]\nroot = "suite"\n[run]\naccell = "tcg"\nnetwork = "all"\n')
    tree.case("= 1\n", "a")
    tree.case('success_regex = ["("]\nshell_init_cmd = "x"\n', "b")
    tree.case('sucess_regex = ["x"]\n', "b", "aarch64")
    tree.case('success_regex = ["x"]\n', "d")
    tree.file("suite/normal/d/sh/x")
    tree.file("suite/normal/d/rust/Cargo.toml")
    tree.file("suite/stress/e/.build-x86_64.toml")
    said = "\n".join(tree.said())
    for wanted in (
        "qcase.toml:4: run.accell: unknown key (did you mean 'accel'?)",
        "qcase.toml:5: run.network: must be",
        "a/qemu-x86_64.toml:2: is not TOML",
        "b/qemu-x86_64.toml:2: success_regex[0]: pattern '('",
        "b/qemu-x86_64.toml:3: shell_init_cmd: needs shell_prefix",
        "b/qemu-aarch64.toml:2: sucess_regex: unknown key (did you mean 'success_regex'?)",
        "b/qemu-aarch64.toml: success_regex: no success_regex",
        "has more than one pipeline: sh, rust",
        "e/.build-x86_64.toml: unsupported legacy name",
    ):
        assert wanted in said, said


def test_a_workspace_file_that_is_no_toml(tree: Suite) -> None:
    tree.file("qcase.toml", "[suite\n")
    assert "qcase.toml:1: is not TOML" in tree.only()


def test_a_suite_that_is_not_there(tree: Suite) -> None:
    tree.file("qcase.toml", '[suite]\nroot = "elsewhere"\n')
    assert "the suite's folder cannot be read" in tree.only()
    tree.file("qcase.toml", '[suite]\nroot = "suite"\ndefault_group = "norml"\n')
    assert "qcase.toml: suite.default_group: there is no group 'norml' (known groups: normal)" in tree.only()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('shell_init_cmd = "x"\nsuccess_regex = ["^ok$"]\nfoo = 1\n', "warning: {}:5: foo: unknown key"),
        (
            'shell_init_cmd = "echo PASS"\nsuccess_regex = ["PASS"]\n',
            "warning: {}:4: success_regex[0]: 'PASS' matches the command as it is typed",
        ),
        (
            'shell_init_cmd = "run || echo FAIL"\nsuccess_regex = ["^ok"]\nfail_regex = [\n  "x",\n  "FAIL"]\n',
            "warning: {}:7: fail_regex[1]: 'FAIL' matches the command as it is typed",
        ),
        (
            "shell_init_cmd = '''\ncat <<E\nPASS\nE\n'''\nsuccess_regex = ['PASS$']\n",
            "warning: {}:8: success_regex[0]: 'PASS$' matches the command as it is typed",
        ),
        (
            'shell_init_cmd = "x"\nsuccess_regex = ["root@"]\n',
            "error: {}:4: success_regex[0]: 'root@' matches the prompt: the case passes as soon as the shell is there",
        ),
        (
            'shell_init_cmd = "x"\nsuccess_regex = ["^ok"]\nfail_regex = ["qcase"]\n',
            "error: {}:5: fail_regex[0]: 'qcase' matches the prompt: the case fails",
        ),
        (
            'shell_init_cmd = "x"\nsuccess_regex = ["\\r$"]\n',
            "warning: {}:4: success_regex[0]: '\\r$' can never match: a carriage return is taken out",
        ),
        (
            'shell_init_cmd = "x"\nsuccess_regex = ["a$b", "ok"]\n[qcase]\nmatch = "all"\n',
            "error: {}:4: success_regex[0]: 'a$b' can never match: no line ends before 'b'",
        ),
        (
            'shell_init_cmd = "x"\nsuccess_regex = ["3 passed, 0 FAILED"]\nfail_regex = ["FAILED"]\n',
            "error: {}:4: success_regex[0]: what '3 passed, 0 FAILED' matches, the fail pattern 'FAILED' matches too",
        ),
        (
            'test_commands = ["a"]\nsuccess_regex = ["^STARRY_GROUPED_TESTS_PASSED$"]\n',
            'is not read: the case is a group, and passes by its script\'s own marker (set [grouped] prefix = "STARRY"',
        ),
        (
            'test_commands = ["a", "b", "a"]\n',
            "warning: {}:3: test_commands[2]: the same command as test_commands[0]: reports call it 'a (2)' (say in the command",
        ),
        (
            'test_commands = ["for i in 1\\ndone", "for i in 1\\nend"]\n',
            "warning: {}:3: test_commands[1]: the same first line as test_commands[0]: reports call it 'for i in 1 ... (2)'",
        ),
        (
            'shell_init_cmd = "x"\nsuccess_regex = ["^ok"]\nfail_regex = ["^FAIL", "BUG:"]\n',
            "warning: {}:5: fail_regex[1]: 'BUG:' looks for reports of the kernel, and would take a program's text for one: "
            'qcase looks for that and warns (set [qcase] kernel_trouble = "fail" instead of it)',
        ),
        (
            'shell_init_cmd = "x"\nsuccess_regex = ["^ok"]\nfail_regex = ["Oops"]\n[qcase]\nkernel_trouble = "fail"\n',
            'and would take a program\'s text for one: kernel_trouble = "fail" does (leave it out)',
        ),
        (
            'success_regex = ["^ok"]\n[qcase]\nkernel_trouble = "warning"\n',
            """error: {}:5: qcase.kernel_trouble: must be "warn", "fail" or "ignore", not "warning" (did you mean 'warn'?)""",
        ),
        (
            'shell_init_cmd = "x"\nfail_regex = ["^not ok"]\n[qcase]\nresults = "ktap"\n',
            "warning: {}:4: fail_regex[0]: '^not ok' also fails the case by a test that is todo or skipped (not ok 1 # TODO)",
        ),
        (
            'test_commands = ["x"]\n[qcase]\nresults = "ktap"\n',
            "error: {}:5: qcase.results: cannot stand beside test_commands",
        ),
        (
            'shell_init_cmd = "a\\nb"\n[qcase]\nresults = "ktap"\n',
            "error: {}:3: shell_init_cmd: must be one line where [qcase] results is set (join the lines with && or ;)",
        ),
        (
            'shell_init_cmd = "x"\n[qcase]\nresults = "ktp"\n',
            "error: {}:5: qcase.results: must be ",
        ),
        (
            'shell_init_cmd = "x"\n[qcase]\nresults = "tap"\nmarkers = { pass = "^a", summary = "(?P<total>\\\\d+)" }\n',
            "error: {}:6: qcase.markers: cannot stand beside results = 'tap'",
        ),
        (
            'shell_init_cmd = "x"\n[qcase.markers]\npass = "^a"\n',
            "error: {}:4: qcase.markers: needs summary: without it nothing tells whether all tests came",
        ),
        (
            'shell_init_cmd = "x"\n[qcase.markers]\npass = "^a"\nsummary = "^b"\n',
            "error: {}:6: qcase.markers.summary: needs a group that counts: total, passed, failed, skipped",
        ),
    ],
    ids=lambda value: value[-40:],
)
def test_what_one_file_says(text: str, wanted: str, tree: Suite) -> None:
    tree.case(PROMPT + text)
    assert wanted.format("suite/normal/a/qemu-x86_64.toml") in tree.only()


@pytest.mark.parametrize(
    "text",
    [
        "shell_init_cmd = \"test-a || echo 'FAIL: status'\"\nsuccess_regex = ['^PASS: a$']\nfail_regex = ['^FAIL']\n",
        "shell_init_cmd = \"echo PA''SS\"\nsuccess_regex = ['PASS']\n",
        "shell_init_cmd = 'x'\nsuccess_regex = ['[0-9]+ ok, 0 failed']\nfail_regex = ['[1-9] failed']\n",
        "shell_init_cmd = 'x'\nsuccess_regex = ['^a\\n^b$', '\\x41$', '(?:a|b)+$']\n",
        "shell_init_cmd = 'x'\nsuccess_regex = ['^ok']\nfail_regex = ['Oops']\n[qcase]\nkernel_trouble = 'ignore'\n",
        "shell_init_cmd = 'x'\nfail_regex = ['^Segmentation']\n[qcase]\nresults = 'ktap'\n",
        "shell_init_cmd = 'x'\n[qcase.markers]\npass = '^a'\nsummary = '^b (?P<passed>[0-9]+)'\n",
        "test_commands = ['a']\nsuccess_regex = ['(?m)^QCASE_GROUPED_TESTS_PASSED\\s*$']\n",
    ],
)
def test_what_is_well(text: str, tree: Suite) -> None:
    tree.case(PROMPT + text)
    assert tree.said() == []


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("a^b", "no line begins behind 'a'"),
        ("a$b", "no line ends before 'b'"),
        (r"\x1b\[31mFAIL", "an escape is taken out"),
        (r"(?:\x07|\r)x", "its characters are taken out"),
        (r"(?:\x07a|\rb)x", "BEL is taken out"),
        (r"x(\r\n)+", "a carriage return"),
        (r"[\r\x00]", "its characters are taken out"),
        (r"PASS\r?$", ""),
        (r"a\n^b$\nc", ""),
        (r"^$", ""),
        (r"(a|\x1b)", ""),
        (r"\pN+", ""),
        (r"(?P<n>ok)\z", ""),
    ],
)
def test_patterns_that_can_never_match(pattern: str, why: str) -> None:
    assert why in patterns.never_matches(pattern)
    assert bool(patterns.never_matches(pattern)) == bool(why)


# ---- sources


GROUP = PROMPT + 'test_commands = ["/usr/bin/one", "two --fast"]\n'


def test_a_subcase_that_no_command_reaches(tree: Suite) -> None:
    tree.case(GROUP)
    tree.file("suite/normal/a/x/sh/one")
    tree.file("suite/normal/a/y/c/CMakeLists.txt", "add_executable(two main.c)\ninstall(TARGETS two)\n")
    assert tree.said() == []
    tree.file("suite/normal/a/z/rust/Cargo.toml", '[package]\nname = "three"\n')
    assert "no command names a program of the subcase 'z' (three)" in tree.only()


def test_a_project_in_the_case_takes_the_place_of_those_of_its_subcases(tree: Suite) -> None:
    tree.case(GROUP)
    tree.file("suite/normal/a/y/c/main.c")
    assert "suite/normal/a/y/c: has no CMakeLists.txt" in tree.only()
    tree.file("suite/normal/a/CMakeLists.txt")
    assert tree.said() == []


@pytest.mark.parametrize(
    "text",
    [
        "foreach(name a b)\nadd_executable(${name} x.c)\nendforeach()\n",
        "add_executable(lots x.c)\nset_target_properties(lots PROPERTIES OUTPUT_NAME one)\n",
        "install(PROGRAMS three DESTINATION usr/bin)\nadd_executable(helper x.c)\n",
    ],
)
def test_nothing_is_said_of_programs_whose_names_cannot_be_seen(text: str, tree: Suite) -> None:
    tree.case(GROUP)
    tree.file("suite/normal/a/y/c/CMakeLists.txt", text)
    assert tree.said() == []


def test_a_computed_command_may_reach_anything(tree: Suite) -> None:
    tree.case(PROMPT + 'test_commands = ["for t in /usr/bin/test-*; do $t; done"]\n')
    tree.file("suite/normal/a/x/sh/one")
    assert tree.said() == []


def test_a_command_that_does_not_name_what_the_case_installs(tree: Suite) -> None:
    tree.case(PROMPT + 'shell_init_cmd = "test-b"\nsuccess_regex = ["^ok"]\n')
    tree.file("suite/normal/a/sh/test-a")
    assert "3: shell_init_cmd: the command names no program that the case installs (test-a)" in tree.only()


def test_sources_of_a_pipeline_that_is_not_installed(tree: Suite) -> None:
    """The case would boot without them, and fail for want of a program."""
    tree.case(PROMPT + 'shell_init_cmd = "x"\nsuccess_regex = ["^ok"]\n')
    tree.file("suite/normal/a/zig/build.zig")
    said = tree.only()
    assert said.startswith(
        "warning: suite/normal/a/zig: no pipeline that is installed has this name: the case is built of nothing"
    )
    assert "c/, sh/, python/, rust/; install the plug-in of zig/" in said


def test_sources_of_a_subcase_of_a_pipeline_that_is_not_installed(tree: Suite) -> None:
    tree.case(PROMPT + 'test_commands = ["x"]\n')
    tree.file("suite/normal/a/part/zig/build.zig")
    tree.file("suite/normal/a/data/one")
    assert "suite/normal/a/part/zig: no pipeline that is installed has this name: part is no subcase" in tree.only()


def test_folders_that_a_plain_case_names_are_no_sources(tree: Suite) -> None:
    tree.case(PROMPT + 'shell_init_cmd = "x"\nsuccess_regex = ["^ok"]\nargs = ["-drive", "file=disks/one.img"]\n')
    tree.file("suite/normal/a/disks/one.img")
    tree.file("suite/normal/a/.git/one")
    tree.case(PROMPT + 'shell_init_cmd = "x"\nsuccess_regex = ["^ok"]\n', "b/inner")
    assert all(finding.check != "sources" for finding in tree.found())


def test_what_stands_where_nobody_searches(tree: Suite) -> None:
    tree.case(PROMPT + 'shell_init_cmd = "x"\nsuccess_regex = ["^ok"]\n')
    tree.file("suite/normal/a/part/sh/one")
    tree.file("suite/normal/a/deep/er/qemu-aarch64.toml")
    said = tree.said()
    assert "suite/normal/a/part: has sh/, and is no subcase: the case has no test_commands" in said[1]
    assert "suite/normal/a/deep/er/qemu-aarch64.toml: is below a case, where nothing is searched" in said[0]


def test_sources_with_nothing_in_them(tree: Suite) -> None:
    tree.case(PROMPT + 'shell_init_cmd = "x"\nsuccess_regex = ["^ok"]\n')
    tree.file("suite/normal/a/c/main.c")
    tree.case(PROMPT + 'shell_init_cmd = "x"\nsuccess_regex = ["^ok"]\n', "b")
    (tree.root / "suite/normal/b/sh").mkdir()
    assert [said.partition(": ")[2].partition(" (")[0] for said in tree.said()] == [
        "suite/normal/a/c: has no CMakeLists.txt",
        "suite/normal/b/sh: has no file to install",
    ]
    assert "a project is built by one of CMakeLists.txt, meson.build" in tree.said()[0]
    tree.file("suite/normal/a/c/configure.ac")
    assert "it has configure.ac: its authors' tools, run once outside (autoreconf -i)" in tree.said()[0]
    tree.file("suite/normal/a/c/meson.build")
    assert "suite/normal/b/sh" in tree.only()


# ---- timeouts


def test_a_timeout_below_what_the_case_took(tree: Suite) -> None:
    tree.case('success_regex = ["^ok"]\n')
    tree.case('success_regex = ["^ok"]\n', "b")
    results = [
        CaseResult(f"normal/{name}", Arch.X86_64, Verdict.PASS, Fault.NONE, boot=boot, command=None)
        for name, boot in (("a", 9.5), ("b", 8.0))
    ]
    memory = history.Memory(tree.root, {Arch.X86_64: Arch.X86_64.default_target}, pytest.fail)
    memory(events.RunFinished(tuple(results), 1.0))
    assert "a/qemu-x86_64.toml:1: timeout: 9 s are less than the 9.5 s that the case took when it last ran" in tree.only()
    tree.file("qcase.toml", '[suite]\nroot = "suite"\n[run]\ntimeout_scale = 2.0\n')
    assert tree.said() == []


def test_timeouts_of_boot_and_command(tree: Suite) -> None:
    table = "[qcase]\nboot_timeout = 5\ncommand_timeout = 1\n"
    tree.case(f'{PROMPT}shell_init_cmd = "x"\nsuccess_regex = ["^ok"]\n{table}', timeout="")
    assert tree.said() == []
    result = CaseResult("normal/a", Arch.X86_64, Verdict.PASS, Fault.NONE, boot=6.0, command=2.0)
    history.Memory(tree.root, {Arch.X86_64: Arch.X86_64.default_target}, pytest.fail)(events.RunFinished((result,), 1.0))
    said = tree.said()
    assert "5: qcase.boot_timeout: 5 s are less than the 6.0 s that its boot took" in said[0]
    assert "6: qcase.command_timeout: 1 s are less than the 2.0 s that its command took" in said[1]


def test_no_timeout(tree: Suite) -> None:
    tree.case('success_regex = ["^ok"]\n', timeout="")
    assert "no timeout" in tree.only()


# ---- the whole


def test_files_that_a_guest_names(tree: Suite) -> None:
    tree.file("qcase.toml", '[suite]\nroot = "suite"\n[guest.x86_64]\nkernel = "out/kernel"\n')
    tree.case('success_regex = ["^ok"]\n')
    assert "qcase.toml: guest.x86_64.kernel: there is no file 'out/kernel'" in tree.only()


def test_the_document(tree: Suite) -> None:
    tree.case('success_regex = ["^ok"]\nfoo = 1\n')
    tree.case("=\n", "b")
    document = lint.document(tree.found())
    assert (document["errors"], document["warnings"], document["format"]) == (1, 1, 1)
    findings = document["findings"]
    assert isinstance(findings, list)
    finding = findings[0]
    assert finding == {
        "severity": Severity.WARNING.value,
        "check": "unknown-key",
        "file": "suite/normal/a/qemu-x86_64.toml",
        "line": 3,
        "key": "foo",
        "what": "unknown key",
        "hint": finding["hint"],
    }


def test_patterns_of_steps(tree: Suite) -> None:
    step = "[[shell_check_steps]]\nshell_prefix = '#'\nshell_cmd = 'echo ok'\nsuccess_regex = ['ok']\nfail_regex = ['x^']\n"
    tree.case(step, "a")
    said = "\n".join(tree.said())
    assert "shell_check_steps[0].success_regex: 'ok' matches the command as it is typed" in said
    assert "shell_check_steps[0].fail_regex: 'x^' can never match" in said


@pytest.mark.parametrize(
    ("arch", "args", "status", "said"),
    [
        ("x86_64", "", 33, 'no device in args lets a guest end QEMU with status 33 ("-device", "isa-debug-exit'),
        ("x86_64", '"-device", "isa-debug-exit,iobase=0xf4"', 33, ""),
        ("x86_64", '"-device", "isa-debug-exit,iobase=0xf4"', 32, "32 cannot come: isa-debug-exit gives odd statuses alone"),
        ("aarch64", "", 33, "no device in args lets a guest end QEMU with status 33"),
        ("riscv64", "", 32, ""),
    ],
)
def test_a_status_that_cannot_come(arch: str, args: str, status: int, said: str, tree: Suite) -> None:
    kernel = '[qcase.kernel]\nbuild = "make"\noutput = "k"\n'
    tree.case(f'args = [{args}]\n[qcase]\npipeline = "ktest"\n{kernel}[qcase.exit]\npass = [{status}]\n', arch=arch)
    found = tree.said()
    assert all("error:" in one and "qcase.exit: " in one for one in found)
    assert (said in found[0]) if said else not found, found


def test_a_kernel_that_is_not_there_to_test(tree: Suite) -> None:
    tree.case('success_regex = ["^ALL"]\n[qcase]\npipeline = "ktest"\n')
    assert "qcase.pipeline: no kernel of its own: it would boot that of a built-in guest" in tree.only()


@pytest.mark.parametrize(
    ("arch", "hint"),
    [
        ("loongarch64", "there is none: let it power off"),
        ("aarch64", '"-semihosting" is one'),
        ("x86_64", '"isa-debug-exit'),
        ("riscv64", ""),
    ],
)
def test_a_status_that_the_machine_cannot_end_with(tree: Suite, arch: str, hint: str) -> None:
    tree.case(PROMPT + 'shell_init_cmd = "x"\nargs = []\n[qcase.exit]\npass = [33]\n', arch=arch)
    said = [one for one in tree.said() if "lets a guest end QEMU" in one]
    assert len(said) == (1 if hint else 0)
    assert all(hint in one for one in said)
