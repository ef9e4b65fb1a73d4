"""Pipelines without a container: scripts, labels, rules, libraries."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest

from qcase import keys, process, suite
from qcase.config import CaseConfig, GroupedRunner, WorkspaceConfig
from qcase.errors import BuildError
from qcase.model import Arch
from qcase.pipelines import Workshop, c, crates, grouped, libraries, sh, sources, staging


def workshop(tmp_path: Path, base: Path = Path("/none")) -> Workshop:
    def refuse() -> Path:
        raise AssertionError("this build must not need it")

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Workshop(
        case="normal/x",
        arch=Arch.X86_64,
        scratch=scratch,
        log=tmp_path / "log",
        config=WorkspaceConfig(),
        base=base,
        staging=refuse,
        supply=refuse,  # type: ignore[arg-type]
        apk=refuse,
        engine=refuse,  # type: ignore[arg-type]
        image=refuse,  # type: ignore[arg-type]
        environment={},
        environ={},
        offline=False,
        download=refuse,  # type: ignore[arg-type]
        say=lambda _: None,
        warn=lambda _: None,
    )


# --- sh ---------------------------------------------------------------------------------------------------------------


def test_sh_installs_every_regular_file_executable(tmp_path: Path) -> None:
    folder = tmp_path / "case" / "sh"
    (folder / "nested").mkdir(parents=True)
    (folder / "nested" / "not-me").write_text("x")
    (folder / "a script").write_bytes(b"#!/bin/sh\n\xff")
    (folder / "a script").chmod(0o600)
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    sh.build(tmp_path / "case", overlay, workshop(tmp_path))
    assert [p.name for p in (overlay / "usr" / "bin").iterdir()] == ["a script"]
    assert (overlay / "usr/bin/a script").read_bytes() == b"#!/bin/sh\n\xff"
    assert stat.S_IMODE((overlay / "usr/bin/a script").stat().st_mode) == 0o755


def test_sh_installs_through_links_that_stay_in_the_case(tmp_path: Path) -> None:
    folder = tmp_path / "case" / "sh"
    folder.mkdir(parents=True)
    (tmp_path / "case/data").write_text("one")
    (folder / "link").symlink_to("../data")
    (folder / "folder").symlink_to("..")
    (tmp_path / "overlay").mkdir()
    sh.build(tmp_path / "case", tmp_path / "overlay", workshop(tmp_path))
    assert [path.name for path in (tmp_path / "overlay/usr/bin").iterdir()] == ["link"]
    assert (tmp_path / "overlay/usr/bin/link").read_text() == "one"
    assert not (tmp_path / "overlay/usr/bin/link").is_symlink()


@pytest.mark.parametrize("target", ["/etc/passwd", "nothing", "passwd"])
def test_sh_refuses_a_link_to_nothing_of_the_case_by_name(target: str, tmp_path: Path) -> None:
    folder = tmp_path / "case" / "sh"
    folder.mkdir(parents=True)
    (folder / "passwd").symlink_to(target)
    (tmp_path / "overlay").mkdir()
    with pytest.raises(BuildError, match="sh/passwd is a symbolic link to nothing"):
        sh.build(tmp_path / "case", tmp_path / "overlay", workshop(tmp_path))


def test_c_without_cmakelists_says_so_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "case" / "c").mkdir(parents=True)
    (tmp_path / "overlay").mkdir()
    with pytest.raises(BuildError, match=r"no c/CMakeLists\.txt"):
        c.build(tmp_path / "case", tmp_path / "overlay", workshop(tmp_path))


def test_crates_without_a_lock_are_of_the_cases_own_configuration_of_cargo(tmp_path: Path) -> None:
    """It may name other registries, or have cargo choose other versions."""
    asked: list[str] = []

    def download(key: keys.Key, _name: str, _fetch: object) -> Path:
        asked.append(key.digest)
        return tmp_path

    (tmp_path / "case/rust/.cargo").mkdir(parents=True)
    (tmp_path / "case/rust/Cargo.toml").write_text('[dependencies]\nlog = "0.4"\n')
    shop = replace(workshop(tmp_path), download=download, warn=lambda _: None)
    for text in ("", "", "[registries]\n"):
        (tmp_path / "case/rust/.cargo/config.toml").write_text(text)
        crates.fetch(tmp_path / "case", shop)
    assert len(asked) == 3
    assert asked[0] == asked[1] != asked[2]


# --- sources ----------------------------------------------------------------------------------------------------------


def listed(
    case: Path, folder: str, workspace: Path, copy: Path, others: frozenset[Path] = frozenset()
) -> dict[str, tuple[str, str]]:
    """Path, type and content of what a build sees, which is what a copy has."""
    found = sources.find(case, folder, workspace, others)
    sources.copy(found, copy)
    assert keys.tree_listing(copy) == tuple(source.entry for source in found)
    return {source.entry.path: (source.entry.type, source.entry.content) for source in found}


def test_a_copy_of_sources_keeps_links_and_executable_bits_and_nothing_else(tmp_path: Path) -> None:
    case = tmp_path / "case"
    case.mkdir(mode=0o700)
    (case / "run.sh").write_text("x")
    (case / "run.sh").chmod(0o700)
    (case / "data").write_text("y")
    (case / "data").chmod(0o440)
    (case / "link").symlink_to("data")
    assert listed(case, "c", tmp_path, tmp_path / "copy").keys() == {"run.sh", "data", "link"}
    assert stat.S_IMODE((tmp_path / "copy/run.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "copy/data").stat().st_mode) == 0o644
    assert (tmp_path / "copy/link").readlink() == Path("data")


def test_a_build_sees_everything_of_a_case_but_its_configuration(tmp_path: Path) -> None:
    case = tmp_path / "case"
    for name in ("c/deep/qemu-board.toml", "data", "c/empty/x", "qemu-x86_64.toml", "qemu-aarch64.toml"):
        (case / name).parent.mkdir(parents=True, exist_ok=True)
        (case / name).write_text(name)
    (case / "c/empty/x").unlink()
    (case / os.fsdecode(b"no text \xff")).write_text("")
    seen = listed(case, "c", tmp_path, tmp_path / "copy")
    assert seen.keys() == {"c/deep/qemu-board.toml", "c/empty", "data", "no text \udcff"}


def test_a_link_out_of_the_case_is_what_it_leads_to_if_that_is_in_the_workspace(tmp_path: Path) -> None:
    workspace, case = tmp_path / "workspace", tmp_path / "workspace/suite/case"
    (case / "c").mkdir(parents=True)
    (workspace / "common/inner").mkdir(parents=True)
    (workspace / "common/tool").write_text("tool")
    (workspace / "common/tool").chmod(0o755)
    (workspace / "common/inner/back").symlink_to("../tool")
    (workspace / "common/inner/out").symlink_to("../../else")
    (workspace / "else").write_text("else")
    (tmp_path / "secret").write_text("not in the workspace")
    links = {
        "tool": "../../../common/tool",
        "common": "../../../common",
        "absolute": str(workspace / "else"),
        "outside": "../../../../secret",
        "up": "..",
        "upper": "../..",
        "self": "self",
        "dangling": "../../../nothing",
    }
    for name, target in links.items():
        (case / "c" / name).symlink_to(target)
    seen = listed(case, "c", workspace, tmp_path / "copy")
    assert {path: kind for path, (kind, _) in seen.items()} == {
        "c/tool": "exec",
        "c/common/tool": "exec",
        "c/common/inner/back": "link",
        "c/common/inner/out": "file",
        **{f"c/{name}": "link" for name in ("absolute", "outside", "up", "upper", "self", "dangling")},
    }
    assert (tmp_path / "copy/c/common/inner/back").read_text() == "tool"
    assert (tmp_path / "copy/c/common/inner/out").read_text() == "else"
    (workspace / "common/tool").write_text("edited")
    assert sources.find(case, "c", workspace) != sources.find(tmp_path / "copy", "c", workspace)
    assert listed(case, "c", workspace, tmp_path / "again") != seen


CONFIG = 'shell_prefix = "#"\nsuccess_regex = ["x"]\n'


def group_with_cases(root: Path) -> suite.Case:
    """A case that is a build group: a child is a case with two configurations, another one is not."""
    own = ("build-t.toml", "qemu-x86_64.toml", "sh/run.sh", "data/qemu-base-x.toml", "data/x")
    others = ("child/qemu-x86_64.toml", "child/qemu-aarch64.toml", "child/c/CMakeLists.txt", "deep/er/child/qemu-riscv64.toml")
    for name in (*own, *others):
        (root / "suite/normal" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "suite/normal" / name).write_text(CONFIG if name == own[1] else "")
    (root / "qcase.toml").write_text('[suite]\nroot = "suite"\n')
    case = suite.discover(suite.Workspace.open(root), Arch.X86_64, "t").cases[0]
    assert isinstance(case, suite.Case), case
    assert case.display_name == "normal"
    return case


def test_other_cases_are_no_sources_of_a_case_that_is_a_group(tmp_path: Path) -> None:
    case = group_with_cases(tmp_path)
    found = listed(case.path, "sh", tmp_path, tmp_path / "one", suite.others_within(case, case.path))
    assert set(found) == {"data/qemu-base-x.toml", "data/x", "sh/run.sh"}
    (case.path / "alias").symlink_to("child")
    (case.path / "sh/shared").symlink_to("../child/c/CMakeLists.txt")
    found = listed(case.path, "sh", tmp_path, tmp_path / "two", suite.others_within(case, case.path))
    assert set(found) == {"data/qemu-base-x.toml", "data/x", "sh/run.sh", "sh/shared"}
    assert found["sh/shared"][0] == "file"  # what it leads to is not in the copy


def test_subcases_that_are_cases_too_are_sources_of_a_groups_project(tmp_path: Path) -> None:
    case = group_with_cases(tmp_path)
    others = suite.others_within(case, case.path, project=True)
    found = listed(case.path, "", tmp_path, tmp_path / "copy", others)
    assert set(found) == {"child/c/CMakeLists.txt", "data/qemu-base-x.toml", "data/x", "sh/run.sh"}


def test_a_case_that_is_no_group_has_no_other_cases_in_it(tmp_path: Path) -> None:
    case = replace(group_with_cases(tmp_path), is_group=False)
    assert suite.others_within(case, case.path) == frozenset()


def test_the_folder_of_sources_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "case/c").symlink_to(tmp_path / "shared")  # even an absolute one
    assert listed(tmp_path / "case", "c", tmp_path / "case", tmp_path / "copy") == {"c": ("dir", "")}
    (tmp_path / "shared/main.c").write_text("x")
    assert listed(tmp_path / "case", "c", tmp_path / "case", tmp_path / "again").keys() == {"c/main.c"}


# --- grouped ----------------------------------------------------------------------------------------------------------


def run_script(tmp_path: Path, *commands: str, words: tuple[str, ...] = (), shell: str = "sh") -> tuple[int, list[str]]:
    path = grouped.write_runner_script(tmp_path, commands, GroupedRunner())
    done = process.run([shell, str(path), *words], check=False, timeout=60)
    return done.returncode, done.output.splitlines()


def test_the_script_is_at_its_place_and_executable(tmp_path: Path) -> None:
    path = grouped.write_runner_script(tmp_path, ["true"], GroupedRunner(runner_name="suite-run"))
    assert path == tmp_path / "usr/bin/suite-run"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert path.read_text().startswith("#!/bin/sh\nset -u\n")


def test_the_script_runs_to_its_end_and_says_each_status(tmp_path: Path) -> None:
    status, lines = run_script(tmp_path, "echo one", "exit 7", "echo three")
    assert status == 1
    assert lines == [
        "QCASE_GROUPED_TEST_BEGIN: echo one",
        "one",
        "QCASE_GROUPED_TEST_PASSED: echo one",
        "QCASE_GROUPED_TEST_BEGIN: exit 7",
        "QCASE_GROUPED_TEST_FAILED: exit 7 status=7",
        "QCASE_GROUPED_TEST_BEGIN: echo three",
        "three",
        "QCASE_GROUPED_TEST_PASSED: echo three",
        "QCASE_GROUPED_TESTS_FAILED",
    ]


def test_the_script_says_its_word_before_the_last_marker(tmp_path: Path) -> None:
    status, lines = run_script(tmp_path, "true", words=("1a2b",))
    assert (status, lines[-2:]) == (0, ["qcase-run-case-tests: done 1a2b", "QCASE_GROUPED_TESTS_PASSED"])


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_the_script_kills_what_takes_too_long_with_all_that_it_started(tmp_path: Path, shell: str) -> None:
    began = time.monotonic()
    commands = ("sleep 971 & sleep 972; echo no", "trap '' TERM INT; while :; do :; done", "sh -c 'sleep 973; echo no'", "exit 3")
    status, lines = run_script(tmp_path, *commands, words=("1a2b", "1"), shell=shell)
    assert time.monotonic() - began < 30
    ends = [line.removeprefix("QCASE_GROUPED_TEST_FAILED: ") for line in lines if "FAILED: " in line]
    assert ends == [f"{command} status=124 limit=1" for command in commands[:3]] + ["exit 3 status=3"]
    assert (status, "no" in lines) == (1, False)
    left = [entry.read_bytes() for entry in Path("/proc").glob("[0-9]*/cmdline") if entry.exists()]
    assert [line for line in left if b"sleep\x0097" in line] == []


def test_a_limit_changes_nothing_for_a_command_that_is_in_time(tmp_path: Path) -> None:
    """It runs in the foreground: signals have their usual effect, it has no children, and reads what the script reads."""
    commands = ("kill -INT $$; echo no", "cat /proc/self/task/*/children | wc -w", "cat; echo read")
    path = grouped.write_runner_script(tmp_path, commands, GroupedRunner())
    done = process.run(["sh", "-c", f"echo typed | sh {path} 1a2b 30"], check=False, timeout=60)
    lines = done.output.splitlines()
    assert "QCASE_GROUPED_TEST_FAILED: kill -INT $$; echo no status=130" in lines
    assert lines[lines.index("typed") :][:2] == ["typed", "read"]
    assert "0" in lines


def test_a_script_of_which_all_pass_exits_with_0(tmp_path: Path) -> None:
    status, lines = run_script(tmp_path, "true", "test 1 = 1")
    assert (status, lines[-1]) == (0, "QCASE_GROUPED_TESTS_PASSED")


@pytest.mark.parametrize("command", ["echo 'it'\\''s'", 'echo "$HOME" `true` %s \\n', "x=1; echo ${x}", "false || true"])
def test_commands_reach_the_shell_as_they_are(tmp_path: Path, command: str) -> None:
    status, lines = run_script(tmp_path, command)
    assert status == 0
    assert lines[0] == f"QCASE_GROUPED_TEST_BEGIN: {command}"
    assert lines[1:-2] == process.run(["sh", "-c", command]).output.splitlines()


def test_a_multi_line_command_has_a_short_label(tmp_path: Path) -> None:
    status, lines = run_script(tmp_path, "for i in 1 2; do\n  echo $i\ndone")
    assert status == 0
    assert lines == [
        "QCASE_GROUPED_TEST_BEGIN: for i in 1 2; do ...",
        "1",
        "2",
        "QCASE_GROUPED_TEST_PASSED: for i in 1 2; do ...",
        "QCASE_GROUPED_TESTS_PASSED",
    ]


def test_a_groups_rules_replace_command_and_success_and_keep_the_cases_fail_patterns() -> None:
    runner = GroupedRunner(prefix="SUITE")
    config = CaseConfig(
        shell_prefix="#", test_commands=("/bin/a",), success_regex=("ignored",), fail_regex=("Oops", runner.fail_regex)
    )
    rules = grouped.rules(config, runner)
    assert (rules.command, rules.done) == ("/usr/bin/suite-run-case-tests", "")
    rules = grouped.rules(config, runner, "1a2b", 1.5)
    assert (rules.command, rules.done) == ("/usr/bin/suite-run-case-tests 1a2b 2", "suite-run-case-tests: done 1a2b")
    rules = grouped.rules(config, GroupedRunner(prefix="SUITE", runner_path="/own/way"), "1a2b", 1.5)
    assert (rules.command, rules.done) == ("/own/way", "")
    rules = grouped.rules(config, runner)
    assert rules.success == (r"(?m)^SUITE_GROUPED_TESTS_PASSED\s*$",)
    assert rules.fail == ("Oops",)
    custom = grouped.rules(config, GroupedRunner(prefix="SUITE", fail_regex="my own"))
    assert "my own" in custom.fail


# --- libraries --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 image with a musl loader and one library."""
    folder = tmp_path_factory.mktemp("base")
    root = folder / "root"
    (root / "lib").mkdir(parents=True)
    (root / "usr" / "lib").mkdir(parents=True)
    (root / "lib" / "ld-musl-x86_64.so.1").write_bytes(b"\x7fELF")
    (root / "usr" / "lib" / "libthere.so.1").write_bytes(b"")
    (root / "etc").mkdir()
    (root / "etc" / "shadow").write_text("secret")
    (root / "lib" / "link").symlink_to("/etc/shadow")
    image = folder / "base.img"
    process.run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(image), "8M"])
    process.run(["debugfs", "-w", "-R", "set_inode_field /etc/shadow mode 0100000", str(image)])  # as nobody could read it
    return image


def test_what_only_begins_like_an_elf_file_is_an_error_with_its_name(tmp_path: Path, base: Path) -> None:
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "broken").write_bytes(b"\x7fELF garbage")
    with pytest.raises(BuildError, match="broken begins like an ELF file"):
        libraries.complete(tmp_path / "overlay", base, Arch.X86_64, "normal/x")


def test_the_search_path_is_written_for_an_overlay_with_a_loader(tmp_path: Path, base: Path) -> None:
    overlay = tmp_path / "overlay"
    (overlay / "lib").mkdir(parents=True)
    (overlay / "lib" / "ld-musl-x86_64.so.1").write_bytes(b"")
    libraries.complete(overlay, base, Arch.X86_64, "normal/x")
    assert (overlay / "etc" / "ld-musl-x86_64.path").read_text() == "/lib\n/usr/lib\n/usr/local/lib\n"


# --- staging ----------------------------------------------------------------------------------------------------------


def test_a_base_image_is_unpacked_with_links_and_readable_files(tmp_path: Path, base: Path) -> None:
    root = tmp_path / "staging"
    root.mkdir()
    staging.unpack(base, root)
    assert (root / "etc" / "shadow").read_text() == "secret"
    assert stat.S_IMODE((root / "etc" / "shadow").stat().st_mode) == 0o400
    assert (root / "lib" / "link").readlink() == Path("/etc/shadow")


# --- which subcases a group needs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("commands", "wanted"),
    [
        (["/usr/bin/test-pipe --fast 3"], {"test-pipe", "3"}),
        (["timeout 5 test-pipe | grep -q 'ok'"], {"timeout", "5", "test-pipe", "grep", "ok"}),
        (["test-pipe", "run-$x"], None),
        (["test-*"], None),
        (["sh /root/all.sh"], None),
        (["find / -name pipe"], None),
    ],
)
def test_what_commands_name(commands: list[str], wanted: set[str] | None) -> None:
    assert grouped.names(commands) == wanted


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"c/CMakeLists.txt": "add_executable(test-pipe main.c)"}, True),
        ({"c/CMakeLists.txt": "foreach(n pipe fifo)\nadd_executable(test-${n} ${n}.c)"}, True),
        ({"rust/src/bin/test-pipe.rs": "fn main() {}"}, True),
        ({"c/CMakeLists.txt": "project(Test)", "c/pipe.c": ""}, True),
        ({"c/CMakeLists.txt": "add_executable(test-fifo main.c)", "c/main.c": "int main(void) { return 0; }"}, False),
        ({"c/blob": "x" * (5 << 20)}, True),
    ],
)
def test_what_a_subcase_may_install(files: dict[str, str], expected: bool, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert grouped.may_install(tmp_path, frozenset({"test-pipe"})) is expected


@pytest.mark.parametrize(
    ("command", "doubtful"),
    [
        ("/usr/bin/test-pipe 3", False),
        ("cd /tmp && A=1 test-pipe >/dev/null 2>&1", False),
        ("if test-pipe; then echo yes; fi", False),
        ("! grep -q x /etc/passwd", False),
        ("test-fifo", True),
        ("test-pipe || test-fifo", True),
        ("/opt/test-pipe", True),
        ("env A=1 test-fifo", True),
    ],
)
def test_a_program_that_is_nowhere_puts_the_choice_in_doubt(command: str, doubtful: bool) -> None:
    there = {"/usr/bin/test-pipe", "/bin/grep"}
    assert grouped.in_doubt([command], there.__contains__) is doubtful


def test_certificates_are_shown_to_cargo_from_a_place_that_the_engine_sees(tmp_path: Path) -> None:
    """Where qcase is in a container, its own /etc/ssl is not: the run folder, below the workspace, is."""
    bundle = tmp_path / "etc" / "bundle.pem"
    bundle.parent.mkdir()
    bundle.write_text("a certificate")
    home = tmp_path / "scratch" / "cargo"
    home.mkdir(parents=True)
    mounts = list(crates._user_mounts(home, {"SSL_CERT_FILE": str(bundle), "HOME": str(tmp_path)}))
    (shown,) = [mount.source for mount in mounts if mount.target == crates._CERTIFICATES]
    assert shown.is_relative_to(tmp_path / "scratch")
    assert shown.read_text() == "a certificate"
