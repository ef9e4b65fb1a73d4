"""qcase.toml and qemu-<arch>.toml become models, or errors that say file, line, key and what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from qcase.arch import Arch
from qcase.config.case_file import CaseConfig, Placeholders, smp
from qcase.config.load import find_workspace, load_case_config, load_workspace_config
from qcase.config.patterns import PatternError, compile_pattern
from qcase.config.toml_document import dotted, key_lines
from qcase.config.workspace_file import GroupedRunner, WorkspaceConfig
from qcase.errors import ConfigError, Problem, UsageError


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], WorkspaceConfig]:
    root = tmp_path / "kernel"
    root.mkdir()
    monkeypatch.chdir(root)

    def load(text: str) -> WorkspaceConfig:
        (root / "qcase.toml").write_text(text)
        return load_workspace_config(root / "qcase.toml")

    return load


@pytest.fixture
def case(tmp_path: Path) -> Callable[..., CaseConfig]:
    def load(text: str, **environment: str) -> CaseConfig:
        path = tmp_path / "suite" / "smoke" / "qemu-x86_64.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        where = Placeholders(tmp_path, package=tmp_path / "crate", tmp_dir=Path("/tmp"), environment=environment)
        return load_case_config(path, placeholders=where)

    return load


def problems(load: Callable[[str], object], text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as e:
        load(text)
    return e.value.problems


OK = 'success_regex = ["^ok$"]\n'

# ---- the workspace


def test_nearest_workspace_upwards_is_found(tmp_path: Path) -> None:
    (tmp_path / "qcase.toml").touch()
    inner = tmp_path / "inner"
    deep = inner / "a" / "b"
    deep.mkdir(parents=True)
    (inner / "qcase.toml").touch()
    assert find_workspace(deep) == inner.resolve()
    assert find_workspace(tmp_path) == tmp_path.resolve()


def test_no_workspace_is_a_usage_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no qcase\.toml in") as e:
        find_workspace(tmp_path)
    assert "--workspace" in e.value.hint


def test_folder_called_qcase_toml_is_no_workspace(tmp_path: Path) -> None:
    (tmp_path / "qcase.toml").touch()
    (tmp_path / "sub" / "qcase.toml").mkdir(parents=True)
    assert find_workspace(tmp_path / "sub") == tmp_path.resolve()


def test_empty_file_gives_the_defaults(workspace: Callable[[str], WorkspaceConfig]) -> None:
    config = workspace("")
    assert (config.suite.name, config.suite.root, config.suite.default_group) == ("kernel", "test-suit", "normal")
    assert (config.run.accel, config.run.network, config.run.timeout_scale) == ("tcg", "restricted", 1.0)
    assert (config.cache.env, config.cache.write) == ((), "auto")
    assert (config.toolchain.c.compiler, config.toolchain.c.image) == ("gcc", None)
    guest = config.guest[Arch.AARCH64]
    assert (guest.rootfs, guest.kernel, guest.initrd, guest.hostname, guest.append) == ("alpine", "alpine", None, "qcase", "")
    assert config.grouped.runner_name == "qcase-run-case-tests"
    assert config.script_env.staging_root == "QCASE_STAGING_ROOT"


def test_every_section_is_read(workspace: Callable[[str], WorkspaceConfig]) -> None:
    digest = "a" * 64
    config = workspace(
        f"""
        [suite]
        name = "starry"
        root = "suite"
        default_group = "stress"
        [cache]
        env = ["FEATURES", "LOG"]
        write = "never"
        [toolchain.c]
        compiler = "clang"
        image = "registry.example/c@sha256:{digest}"
        [run]
        accel = "auto"
        network = "none"
        timeout_scale = 3
        [guest.riscv64]
        rootfs = "images/root.img"
        kernel = "images/Image"
        initrd = "images/initrd"
        hostname = "star-1"
        append = "quiet loglevel=3"
        """
    )
    assert (config.suite.name, config.suite.root, config.suite.default_group) == ("starry", "suite", "stress")
    assert (config.cache.env, config.cache.write) == (("FEATURES", "LOG"), "never")
    assert (config.toolchain.c.compiler, config.toolchain.c.image) == ("clang", f"registry.example/c@sha256:{digest}")
    assert (config.run.accel, config.run.network, config.run.timeout_scale) == ("auto", "none", 3.0)
    guest = config.guest[Arch.RISCV64]
    assert (guest.rootfs, guest.kernel, guest.initrd) == ("images/root.img", "images/Image", "images/initrd")
    assert (guest.hostname, guest.append) == ("star-1", "quiet loglevel=3")
    assert config.guest[Arch.X86_64].kernel == "alpine"


def test_models_are_frozen(workspace: Callable[[str], WorkspaceConfig]) -> None:
    config = workspace("")
    with pytest.raises(ValueError, match="frozen"):
        config.run.accel = "kvm"  # type: ignore[misc]


def test_grouped_fields_follow_from_the_prefix() -> None:
    runner = GroupedRunner(prefix="SUITE")
    assert runner.model_dump() == {
        "prefix": "SUITE",
        "runner_name": "suite-run-case-tests",
        "runner_path": "/usr/bin/suite-run-case-tests",
        "begin_marker": "SUITE_GROUPED_TEST_BEGIN",
        "passed_marker": "SUITE_GROUPED_TEST_PASSED",
        "failed_marker": "SUITE_GROUPED_TEST_FAILED",
        "all_passed_marker": "SUITE_GROUPED_TESTS_PASSED",
        "all_failed_marker": "SUITE_GROUPED_TESTS_FAILED",
        "success_regex": r"(?m)^SUITE_GROUPED_TESTS_PASSED\s*$",
        "fail_regex": r"(?m)^SUITE_GROUPED_TEST_FAILED:",
    }


def test_grouped_patterns_follow_from_markers_set_by_name(workspace: Callable[[str], WorkspaceConfig]) -> None:
    grouped = workspace('[grouped]\nprefix = "P"\nall_passed_marker = "all (5) ok."\nrunner_name = "go"').grouped
    assert grouped.runner_path == "/usr/bin/go"
    assert grouped.failed_marker == "P_GROUPED_TEST_FAILED"
    pattern = compile_pattern(grouped.success_regex)
    assert pattern.search("noise\nall (5) ok.\n")
    assert not pattern.search("all 5 okk")


def test_each_grouped_field_can_be_set(workspace: Callable[[str], WorkspaceConfig]) -> None:
    names = [name for name in GroupedRunner.model_fields if name not in ("prefix", "runner_path")]
    text = "\n".join(f'{name} = "value_{name}"' for name in names)
    grouped = workspace(f'[grouped]\nrunner_path = "/opt/run"\n{text}').grouped
    assert {name: getattr(grouped, name) for name in names} == {name: f"value_{name}" for name in names}
    assert grouped.runner_path == "/opt/run"


def test_each_script_variable_can_be_set(workspace: Callable[[str], WorkspaceConfig]) -> None:
    env = workspace('[script_env]\nprefix = "STARRY"\ncase_c_dir = "SRC"').script_env
    assert env.model_dump() == {
        "prefix": "STARRY",
        "staging_root": "STARRY_STAGING_ROOT",
        "case_dir": "STARRY_CASE_DIR",
        "case_c_dir": "SRC",
        "case_work_dir": "STARRY_CASE_WORK_DIR",
        "case_build_dir": "STARRY_CASE_BUILD_DIR",
        "case_overlay_dir": "STARRY_CASE_OVERLAY_DIR",
        "grouped_c_subcases": "STARRY_GROUPED_C_SUBCASES",
    }


def test_two_markers_of_one_value_are_refused(workspace: Callable[[str], WorkspaceConfig]) -> None:
    (problem,) = problems(workspace, '[grouped]\nbegin_marker = "X"\npassed_marker = "X"')
    assert problem.what == "begin_marker and passed_marker are both 'X'"
    assert (problem.key, problem.line) == ("grouped", 1)


def test_all_errors_come_at_once_with_line_and_key(workspace: Callable[[str], WorkspaceConfig]) -> None:
    text = """[suit]
name = "x"

[run]
acel = "kvm"
network = "open"
timeout_scale = 0

[guest.x86_64]
kernel = { build = "make" }

[guest.x68_64]
"""
    assert [(p.file, p.line, p.key) for p in problems(workspace, text)] == [
        ("qcase.toml", 1, "suit"),
        ("qcase.toml", 5, "run.acel"),
        ("qcase.toml", 6, "run.network"),
        ("qcase.toml", 7, "run.timeout_scale"),
        ("qcase.toml", 10, "guest.x86_64.kernel.output"),
        ("qcase.toml", 12, "guest.x68_64"),
    ]


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("suit = 1", "suit", "did you mean 'suite'?"),
        ("[grouped]\nprefx = 'A'", "grouped.prefx", "did you mean 'prefix'?"),
        ("[script_env]\ncase_dirr = 'A'", "script_env.case_dirr", "did you mean 'case_dir'?"),
        ("[toolchain.c]\nCompiler = 'gcc'", "toolchain.c.Compiler", "did you mean 'compiler'?"),
        ("[toolchain.tcl]", "toolchain.tcl", "known here: c, rust, alpine"),
        ("[guest.x86]", "guest.x86", "did you mean 'x86_64'?"),
        ("[guest.x86_64]\nkernal = 'k'", "guest.x86_64.kernal", "did you mean 'kernel'?"),
        ("[cache]\nzzz = 1", "cache.zzz", "known here: env, write, keep_images, max_size, min_free"),
        ("[zebra]", "zebra", "known here: suites, suite, grouped, script_env, cache, toolchain, packages, hooks, run, guest"),
        ("['a.b']", '"a.b"', "known here: suites, suite, grouped, script_env, cache, toolchain, packages, hooks, run, guest"),
    ],
)
def test_unknown_key_names_the_nearest_one(workspace: Callable[[str], WorkspaceConfig], text: str, key: str, hint: str) -> None:
    (problem,) = problems(workspace, text)
    assert (problem.what, problem.key, problem.hint) == ("unknown key", key, hint)
    assert problem.line == text.count("\n") + 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("run = 1", "must be a table, not 1"),
        ("run = []", "must be a table, not an array"),
        ("[suite]\nname = 5", "must be a string, not 5"),
        ("[run]\ntimeout_scale = '1'", 'must be a number, not "1"'),
        ("[run]\ntimeout_scale = true", "must be a number, not true"),
        ("[run]\ntimeout_scale = -1", "must be greater than 0, not -1"),
        ("[run]\ntimeout_scale = 0.0", "must be greater than 0, not 0.0"),
        ("[run]\ntimeout_scale = nan", "must be a finite number, not nan"),
        ("[run]\ntimeout_scale = inf", "must be a finite number, not inf"),
        ("[run]\naccel = 'KVM'", 'must be "tcg", "kvm" or "auto", not "KVM"'),
        ("[toolchain.c]\ncompiler = 'tcc'", 'must be "gcc" or "clang", not "tcc"'),
        ("[cache]\nenv = 'A'", 'must be an array of strings, not "A"'),
        ("[cache]\nenv = [1]", "must be a string, not 1"),
        ("[cache]\nmax_size = 20", "must be a string, not 20"),
        ("[cache]\nmax_size = '20'", "must be a size with its unit"),
        ("[cache]\nmin_free = '-1 GB'", "must be a size with its unit"),
        ("[cache]\nkeep_images = 'no'", 'must be true or false, not "no"'),
        ("[cache]\nenv = ['A B']", "must be a variable's name: letters, digits and '_', no digit first"),
        ("[guest.x86_64]\nkernel = 7", 'must be "alpine", "debian", a path, { build, output }, or { url, sha256 }'),
        ("[guest.x86_64]\nrootfs = 7", 'must be "alpine", "debian", a path, or { url, sha256 }'),
        ("[guest.x86_64]\nrootfs = ''", 'must be "alpine", "debian", a path, or { url, sha256 }'),
        ("[guest.x86_64]\ninitrd = false", "must be a path, or { url, sha256 }"),
        ("[guest.x86_64]\nkernel = { build = 'make' }", "is missing"),
        ("[guest.x86_64]\nkernel = { build = 'make ${ach}', output = 'k' }", "unknown placeholder ${ach}"),
        ("[guest.x86_64]\nkernel = { build = 'make', output = '${out}/k' }", "unknown placeholder ${out}"),
        ("[guest.x86_64.kernel]\nbuild = 'make'\noutput = 'k'\nenv = { A = '${no}' }", "unknown placeholder ${no}"),
        ("[guest.x86_64.kernel]\nbuild = 'make'\noutput = 'k'\nenv = { 'A B' = 'x' }", "must be a variable's name"),
        ("[guest.x86_64.kernel]\noutput = 'k'\nbuild = ' '", "must not be empty"),
        ("[guest.x86_64.kernel]\nbuild = 'make'\noutput = 'k'\nwhere = 'moon'", 'must be "host", "c"'),
        ("[guest.x86_64.kernel]\nurl = 'https://x/k'\nsha256 = '5'", "must be 64 hexadecimal digits"),
        (f"[guest.x86_64.rootfs]\nsha256 = '{'0' * 64}'\nurl = 'x'", "must be an address"),
        (f"[guest.x86_64.initrd]\nurl = 'https://x'\nsha256 = '{'0' * 64}'\nsize = 3", "unknown key"),
        ("[guest.x86_64]\nhostname = 'a_b'", "is no valid hostname"),
        ("[guest.x86_64]\nhostname = '-a'", "is no valid hostname"),
        (f"[guest.x86_64]\nhostname = '{'a' * 64}'", "is no valid hostname"),
        ("[guest.x86_64]\nappend = 'a\\nb'\n", ""),
        ("[guest.x86_64]\nappend = 'panic=-1'", "must not contain the word 'panic'"),
        ('[guest.x86_64]\nappend = "a\\nb"', "must be one line of printable characters"),
        ("[toolchain.c]\nimage = 'registry.example/c:latest'", "a foreign image must be pinned by its digest"),
        ("[toolchain.c]\nimage = 'c@sha256:abc'", "a foreign image must be pinned by its digest"),
        ("[grouped]\nprefix = 'a-b'", "must consist of letters, digits and '_', no digit first"),
        ("[grouped]\nrunner_name = '../sh'", "must be a file name"),
        ("[grouped]\nrunner_path = 'run'", "must be an absolute path in the guest"),
        ("[grouped]\nbegin_marker = ''", "must be one line of printable ASCII"),
        ("[grouped]\nfail_regex = '('", "pattern '(': missing ): ("),
        ("[suite]\ndefault_group = 'a/b'", "must be the name of a folder right below the suite's root"),
        ("[suite]\nroot = ''", "must be a path"),
    ],
)
def test_wrong_value_says_what_it_must_be(workspace: Callable[[str], WorkspaceConfig], text: str, what: str) -> None:
    if not what:  # a single-quoted backslash is just a backslash
        assert workspace(text).guest[Arch.X86_64].append == r"a\nb"
        return
    (problem,) = problems(workspace, text)
    assert problem.what.startswith(what)
    assert problem.line == text.count("\n") + 1


def test_broken_prefix_is_one_error_not_ten(workspace: Callable[[str], WorkspaceConfig]) -> None:
    assert [p.key for p in problems(workspace, "[grouped]\nprefix = 1\n[script_env]\nprefix = '1'")] == [
        "grouped.prefix",
        "script_env.prefix",
    ]


# ---- files that cannot be read


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("[run]\naccel = = 1\n", 2, "is not TOML: Invalid value, column 9"),
        ("a = 1\na = 2\n", 2, "is not TOML: Cannot overwrite a value"),
        ("\n\na = [1,", 3, "is not TOML: "),
        ("a = " + "[" * 5000, 0, "is not TOML: nested too deeply"),
    ],
)
def test_syntax_error_names_the_line(workspace: Callable[[str], WorkspaceConfig], text: str, line: int, what: str) -> None:
    (problem,) = problems(workspace, text)
    assert (problem.file, problem.line) == ("qcase.toml", line)
    assert problem.what.startswith(what)
    assert "(at " not in problem.what


def test_file_that_is_not_utf8_names_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "qcase.toml"
    path.write_bytes(b"# fine\nname = '\xff'\n")
    with pytest.raises(ConfigError) as e:
        load_workspace_config(path)
    (problem,) = e.value.problems
    assert (problem.what, problem.line) == ("is not UTF-8: byte 0xff", 2)


def test_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "qcase.toml"
    path.write_bytes(b'\xef\xbb\xbf[suite]\r\nname = "w"\r\n')
    assert load_workspace_config(path).suite.name == "w"


@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("gone"), lambda path: path.symlink_to(path)]
)
def test_what_is_no_file_is_a_clear_error(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "qcase.toml"
    make(path)
    with pytest.raises(ConfigError, match=r"qcase\.toml: (is not a file|cannot be read: )"):
        load_workspace_config(path)


def test_file_is_shown_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "qcase.toml").write_text("x = 1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as e:
        load_workspace_config(tmp_path / "w" / "qcase.toml")
    assert str(e.value).startswith("w/qcase.toml:1: x: unknown key (known here: suite")


# ---- a case


def test_case_file_is_read(case: Callable[..., CaseConfig]) -> None:
    config = case(
        """
        args = ["-nographic", "-smp", "4"]
        uefi = false
        to_bin = false
        shell_prefix = "  root@qcase:~# "
        shell_init_cmd = "\\n  echo hi  \\n"
        success_regex = ["^one$", "^two$"]
        fail_regex = ["^bad$"]
        timeout = 12.5
        [qcase]
        match = "all"
        match_from = "prompt"
        network = "user"
        tags = ["slow"]
        """
    )
    assert config == CaseConfig(
        args=("-nographic", "-smp", "4"),
        shell_prefix="root@qcase:~#",
        shell_init_cmd="echo hi",
        success_regex=("^one$", "^two$"),
        fail_regex=("^bad$",),
        timeout=12.5,
        match="all",
        match_from="prompt",
        network="user",
        tags=("slow",),
        smp=4,
    )


@pytest.mark.parametrize("text", ["../x", "/usr/bin", "a/../b", ".", "a\tb"])
def test_places_of_what_is_installed_besides(case: Callable[..., CaseConfig], text: str) -> None:
    good = case(OK + '[qcase]\ninstall = { "usr/bin/" = ["a b", "t/..x*"], "data" = ["[c]"] }\n')
    assert good.install == ("usr/bin\ta b", "usr/bin\tt/..x*", "data\t[c]")
    for table in ({text: ["x"]}, {"x": [text]}):
        with pytest.raises(ConfigError, match="install"):
            case(OK + f"[qcase]\ninstall = {{ {json.dumps(*table)} = {json.dumps(*table.values())} }}\n")


def test_case_defaults(case: Callable[..., CaseConfig]) -> None:
    assert case(OK) == CaseConfig(success_regex=("^ok$",))


@pytest.mark.parametrize(
    ("text", "timeout"), [("", None), ("timeout = 0", None), ("timeout = 0.0", None), ("timeout = 90", 90.0)]
)
def test_timeout_absent_or_zero_is_none(case: Callable[..., CaseConfig], text: str, timeout: float | None) -> None:
    assert case(OK + text).timeout == timeout


def test_blank_prefix_and_command_mean_none(case: Callable[..., CaseConfig]) -> None:
    config = case(OK + 'shell_prefix = "  "\nshell_init_cmd = "\\n"')
    assert (config.shell_prefix, config.shell_init_cmd) == (None, None)


def test_prefix_without_command_is_allowed(case: Callable[..., CaseConfig]) -> None:
    assert case(OK + 'shell_prefix = "#"').shell_prefix == "#"


def test_inner_newlines_of_a_command_are_kept(case: Callable[..., CaseConfig]) -> None:
    assert case(OK + 'shell_prefix = "#"\nshell_init_cmd = "a\\nb\\n"').shell_init_cmd == "a\nb"


def test_placeholders_are_replaced_in_five_keys(case: Callable[..., CaseConfig], tmp_path: Path) -> None:
    config = case(
        """
        args = ["-drive", "file=${workspace}/a,${workspaceFolder},${package},${tmpDir}"]
        shell_prefix = "${env:WHO}#"
        shell_init_cmd = "echo ${env:WHO} ${HOME} ${env:UNSET}."
        success_regex = ["hello ${env:WHO}"]
        fail_regex = ["bye ${env:WHO}"]
        """,
        WHO="me",
    )
    assert config.args[1] == f"file={tmp_path}/a,{tmp_path},{tmp_path}/crate,/tmp"
    assert (config.shell_prefix, config.shell_init_cmd) == ("me#", "echo me ${HOME} .")
    assert (config.success_regex, config.fail_regex) == (("hello me",), ("bye me",))


def test_placeholders_elsewhere_stay(case: Callable[..., CaseConfig]) -> None:
    config = case('shell_prefix = "#"\ntest_commands = ["echo ${workspace}"]')
    assert config.test_commands == ("echo ${workspace}",)


def test_a_value_that_looks_like_a_placeholder_is_not_replaced_again() -> None:
    where = Placeholders(Path("/w"), environment={"A": "${workspace}"})
    assert where.replace("${env:A} ${package} ${env:} ${nope} $workspace") == "${workspace} /w ${env:} ${nope} $workspace"


def test_command_from_an_unset_variable_is_none(case: Callable[..., CaseConfig]) -> None:
    assert case(OK + 'shell_init_cmd = "${env:NOTHING}"').shell_init_cmd is None


def test_test_commands_are_trimmed(case: Callable[..., CaseConfig]) -> None:
    config = case('shell_prefix = "#"\ntest_commands = ["  /usr/bin/a  ", "b\\n"]')
    assert config.test_commands == ("/usr/bin/a", "b")
    assert config.is_grouped
    assert not case(OK).is_grouped


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        (OK + 'shell_init_cmd = "x"', "shell_init_cmd", "needs shell_prefix"),
        ('shell_prefix = "#"\ntest_commands = ["a", " "]', "test_commands[1]", "must not be empty"),
        (
            'shell_prefix = "#"\ntest_commands = ["a"]\nshell_init_cmd = "b"',
            "shell_init_cmd",
            "cannot stand beside test_commands",
        ),
        ("timeout = 5", "success_regex", "no success_regex: the case can never pass"),
        ("success_regex = []", "success_regex", "no success_regex: the case can never pass"),
        (OK + "uefi = 1", "uefi", "must be true or false, not 1"),
        (OK + 'timeout = "5"', "timeout", 'must be a number, not "5"'),
        (OK + "timeout = true", "timeout", "must be a number, not true"),
        (OK + "timeout = -1", "timeout", "must be 0 or more, not -1"),
        (OK + "timeout = inf", "timeout", "must be a finite number"),
        (OK + "args = '-smp 4'", "args", 'must be an array of strings, not "-smp 4"'),
        (OK + "args = ['-smp', 4]", "args[1]", "must be a string, not 4"),
        (OK + 'args = ["a\\u0000"]', "args[0]", "must not contain a NUL character"),
        ("success_regex = 'x'", "success_regex", 'must be an array of strings, not "x"'),
        (OK + "[qcase]\nmatch = 'one'", "qcase.match", 'must be "any" or "all", not "one"'),
        (OK + "[qcase]\ntags = ['a b']", "qcase.tags[0]", "must be a word without blanks"),
        (OK + "[qcase]\nretry = 2", "qcase.retry", "unknown key"),
        (OK + "qcase = 2", "qcase", "must be a table, not 2"),
    ],
)
def test_wrong_case_file_says_key_and_reason(case: Callable[..., CaseConfig], text: str, key: str, what: str) -> None:
    (problem,) = problems(case, text)
    assert problem.key == key
    assert problem.what.startswith(what)
    assert problem.file == "suite/smoke/qemu-x86_64.toml"


def test_all_errors_of_a_case_come_at_once(case: Callable[..., CaseConfig]) -> None:
    text = """
timeout = "x"
shell_init_cmd = "y"
succes_regex = [
    "ok"]
fail_regex = [
    "fine",
    "(",
]
[qcase]
mach = "all"
"""
    assert [(p.line, p.key) for p in problems(case, text)] == [
        (0, "success_regex"),
        (2, "timeout"),
        (3, "shell_init_cmd"),
        (4, "succes_regex"),
        (8, "fail_regex[1]"),
        (11, "qcase.mach"),
    ]


def test_unknown_key_of_a_case_warns_with_the_nearest_one(case: Callable[..., CaseConfig]) -> None:
    config = case(OK + 'timout = 5\nboard = "x"')
    assert [str(w) for w in config.warnings] == [
        "suite/smoke/qemu-x86_64.toml:2: timout: unknown key (did you mean 'timeout'?)",
        "suite/smoke/qemu-x86_64.toml:3: board: unknown key (known here: args, cmdline, uefi, to_bin, shell_prefix, "
        "shell_init_cmd, test_commands, grouped_qemu_profiles, grouped_command_selection, success_regex, fail_regex, timeout, "
        "shell_check_steps, snapshot, rootfs_write_policy, host_http_server, qcase)",
    ]
    assert config.timeout is None


@pytest.mark.parametrize(
    ("args", "count"),
    [
        ((), 1),
        (("-m", "4"), 1),
        (("-smp", "4"), 4),
        (("-smp", "cpus=3,maxcpus=8"), 3),
        (("-smp", "4,sockets=2,cores=2"), 4),
        (("-smp", "sockets=2,cores=3,threads=2"), 12),
        (("-smp", "2", "-smp", "8"), 8),
        (("-smp",), 1),
        (("-smp", "0"), 1),
        (("-smp", "many"), 1),
    ],
)
def test_smp_is_read_from_the_arguments(args: tuple[str, ...], count: int) -> None:
    assert smp(args) == count


# ---- patterns


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("^ok$", "a\nok\nb", True),
        ("^ok$", "not ok\n", False),
        (r"(?m)^DONE\s*$", "DONE \n", True),
        (r"(?i)\bpanic(?:ked)?\b", "Kernel Panic", True),
        (r"(?s)a.b", "a\nb", True),
        ("(?<name>x)", "x", True),
        (r"\x{41}", "A", True),
        (r"[\[&a-z-]{3}", "[&-", True),
        (r"[[:digit:]]x", "5x", True),
        (r"\Q[a&&b]\E", "[a&&b]", True),
        ("[]a]b", "]b", True),
    ],
)
def test_patterns_match_on_lines(pattern: str, text: str, found: bool) -> None:
    assert bool(compile_pattern(pattern).search(text)) is found


@pytest.mark.parametrize(
    ("pattern", "what", "hint"),
    [
        ("(", "pattern '(': missing ): (", ""),
        (r"a(?=b)", "invalid perl operator: (?=", "neither RE2 nor Rust's regex has look-around"),
        (r"(?<!a)b", "invalid perl operator: (?<", "neither RE2 nor Rust's regex has look-around"),
        (r"(a)\1", r"invalid escape sequence: \1", "neither RE2 nor Rust's regex has back-references"),
        ("(?x) a b", "invalid perl operator: (?x", "no verbose mode"),
        ("(?-u:a)", "invalid perl operator: (?-u", "no flags u and R"),
        (r"\u{41}", r"invalid escape sequence: \u", r"\x{"),
        (r"\h+", r"invalid escape sequence: \h", "[0-9A-Fa-f]"),
        (r"a\Z", r"invalid escape sequence: \Z", r"write \z"),
        ("a{1001}", "invalid repetition size: {1001}", "at most 1000"),
        (r"\p{Alphabetic}", "invalid character class range", "general categories"),
        ("[a-z&&[^b]]", "&& in a character class has another meaning in RE2", "write the class out"),
        ("[a-z--b]", "-- in a character class", "write the class out"),
        ("[a~~b]", "~~ in a character class", "write the class out"),
        ("x[[a]b]", "[ in a character class", "no nested classes"),
        (r"\b{start}x", r"\b{start} has another meaning", r"write \b"),
        (r"\<x", r"\< has another meaning", r"write \b"),
    ],
)
def test_what_re2_cannot_or_reads_differently_is_refused_with_a_hint(pattern: str, what: str, hint: str) -> None:
    with pytest.raises(PatternError) as e:
        compile_pattern(pattern)
    assert repr(pattern) in e.value.what
    assert what in e.value.what
    assert hint in e.value.hint


def test_bad_pattern_says_nothing_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PatternError):
        compile_pattern("(")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("pattern", ["", ".*", "x?", "^", "$", "^$", "(a|)", r"\s*"])
def test_pattern_that_matches_nothing_at_all_is_refused(case: Callable[..., CaseConfig], pattern: str) -> None:
    (passing,) = problems(case, f"success_regex = ['{pattern}']")
    assert (passing.key, passing.what.split(", ")[1]) == ("success_regex[0]", "so it would always pass")
    (failing,) = problems(case, f"{OK}fail_regex = ['a', '{pattern}']")
    assert (failing.key, failing.what.split(", ")[1]) == ("fail_regex[1]", "so it would always fail")


def test_pattern_with_bytes_that_are_not_utf8_is_a_problem(case: Callable[..., CaseConfig]) -> None:
    with pytest.raises(ConfigError, match="not UTF-8"):
        case("success_regex = ['${env:ODD}']", ODD=os.fsdecode(b"\xff"))


# ---- lines of keys


def test_key_lines_of_every_kind_of_key() -> None:
    text = '''top = 1 # [no]
"quoted.key" = """
[not.a.table]
x = \\""" 1
"""
[table]
dotted . inner = '#'
'single' = "a\\"b = ["
many = [ # comment ]
    "one, ]",
    { x = 1 },

    \'\'\'
]\'\'\', 2,
]
inline = { a = { b = 1 }, c.d = [1] }
[[list]]
name = 1
[list.sub]
deep = 1
[[list]]
name = 2979-05-27 07:32:00
["x y"."z"]
last = true'''
    tomli.loads(text)
    assert key_lines(text) == {
        ("top",): 1,
        ("quoted.key",): 2,
        ("table",): 6,
        ("table", "dotted"): 7,
        ("table", "dotted", "inner"): 7,
        ("table", "single"): 8,
        ("table", "many"): 9,
        ("table", "many", 0): 10,
        ("table", "many", 1): 11,
        ("table", "many", 1, "x"): 11,
        ("table", "many", 2): 13,
        ("table", "many", 3): 14,
        ("table", "inline"): 16,
        ("table", "inline", "a"): 16,
        ("table", "inline", "a", "b"): 16,
        ("table", "inline", "c"): 16,
        ("table", "inline", "c", "d"): 16,
        ("table", "inline", "c", "d", 0): 16,
        ("list",): 17,
        ("list", 0): 17,
        ("list", 0, "name"): 18,
        ("list", 0, "sub"): 19,
        ("list", 0, "sub", "deep"): 20,
        ("list", 1): 21,
        ("list", 1, "name"): 22,
        ("x y",): 23,
        ("x y", "z"): 23,
        ("x y", "z", "last"): 24,
    }


NAMES = st.sampled_from(["a", "b-1", '"q.k"', "'s # ]'", '"e\\"s"'])
VALUES = st.recursive(
    st.sampled_from(
        [
            "1",
            "-0.5",
            "true",
            '"#"',
            "'='",
            '"""\n[x]\n"a""""',
            "'''\n]\n''a'''",
            '"""\\\n"""',
            "1979-05-27 07:32:00Z",
            '""',
            "''",
        ]
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: "[\n # ]\n" + " ,\n".join(items) + "]"),
    max_leaves=6,
)


@given(st.lists(st.tuples(NAMES, VALUES, st.sampled_from(["", "# c = 1\n", "\n"])), unique_by=lambda item: item[0], max_size=5))
def test_scanner_finds_the_keys_that_the_parser_finds(items: list[tuple[str, str, str]]) -> None:
    text = "".join(f"{blank}{name} = {value} # c\n" for name, value, blank in items)
    lines = key_lines(text)
    assert [loc[0] for loc in lines if len(loc) == 1] == list(tomli.loads(text))
    for name, _, _ in items:
        (key,) = tomli.loads(f"{name} = 0")
        assert text.splitlines()[lines[key,] - 1].startswith(f"{name} = ")


@given(st.text())
def test_scanner_never_fails_on_valid_toml(text: str) -> None:
    text = text.replace("\r\n", "\n")
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError:
        return
    assert {loc[0] for loc in key_lines(text)} == set(data)


def test_dotted_key_is_written_as_in_toml() -> None:
    assert dotted(("guest", "x86_64", "a.b", 3)) == 'guest.x86_64."a.b"[3]'


@pytest.mark.parametrize(
    ("pattern", "place"),
    [
        ("a(b", 2),
        ("a)b", 2),
        ("(a|b))c", 6),
        (r"\(a[)](b", 7),
        ("x[abc", 2),
        ("[z-a]", 2),
        (r"x\q", 2),
        ("x\\", 2),
        ("a(?=x)", 2),
        ("x{1001}", 2),
        ("*a", 1),
        (r"ab\b{start}", 3),
        ("[a&&b]", 3),
    ],
)
def test_a_bad_pattern_is_told_with_its_place(pattern: str, place: int) -> None:
    with pytest.raises(PatternError, match=f", at character {place}$"):
        compile_pattern(pattern)


def test_a_number_that_no_parser_takes_is_an_error_of_its_file(case: Callable[..., CaseConfig]) -> None:
    with pytest.raises(ConfigError, match="is not TOML: Exceeds the limit"):
        case(f"timeout = {'1' * 5000}\n")


def test_arguments_in_json_that_are_nested_too_deeply(case: Callable[..., CaseConfig]) -> None:
    device = json.dumps('{"driver":' + "[" * 20_000)
    (problem,) = problems(case, f'args = ["-device", {device}]\nsuccess_regex = ["x"]\n')
    assert "is no JSON: nested too deeply" in problem.what


@pytest.mark.parametrize("table", ["", "[qcase]\n"])
def test_of_very_many_faults_of_one_kind_some_are_told(table: str, case: Callable[..., CaseConfig]) -> None:
    text = 'success_regex = ["x"]\n' + table + "".join(f"unknown{number} = 1\n" for number in range(2000))
    found = problems(case, text) if table else case(text).warnings
    assert len(found) == 51
    assert "has 1950 more of these" in [problem.what for problem in found]
