"""Pipelines without a container: scripts, labels, rules, libraries."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config.case_file import CaseConfig
from qcase.config.workspace_file import GroupedRunner, WorkspaceConfig
from qcase.crates.pool import Pool
from qcase.errors import BuildError, InfraError
from qcase.host import process
from qcase.host.trees import Tree
from qcase.model import Pipeline
from qcase.pipelines import c, elf_libraries, group_commands, group_installs, group_script, sh, sources, staging_root
from qcase.pipelines.pipeline import BuildContext, stage_of
from qcase.run import boot_plan
from qcase.store import listings
from qcase.suite import cases, discover
from tests.services import Services


def build_context(tmp_path: Path, base: Path = Path("/none"), services: Services | None = None) -> BuildContext:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return BuildContext(
        case="normal/x",
        arch=Arch.X86_64,
        scratch=scratch,
        log=tmp_path / "log",
        config=WorkspaceConfig(),
        base=base,
        environment={},
        environ={},
        offline=False,
        services=services or Services(),
        pool=Pool(tmp_path / "downloads"),
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
    sh.build(Tree(tmp_path / "case"), Tree(overlay), build_context(tmp_path))
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
    sh.build(Tree(tmp_path / "case"), Tree(tmp_path / "overlay"), build_context(tmp_path))
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
        sh.build(Tree(tmp_path / "case"), Tree(tmp_path / "overlay"), build_context(tmp_path))


def test_c_without_cmakelists_says_so_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "case" / "c").mkdir(parents=True)
    (tmp_path / "overlay").mkdir()
    with pytest.raises(BuildError, match=r"no c/CMakeLists\.txt"):
        c.build(Tree(tmp_path / "case"), Tree(tmp_path / "overlay"), build_context(tmp_path))


# --- sources ----------------------------------------------------------------------------------------------------------


def listed(
    case: Path, folder: str, workspace: Path, copy: Path, others: frozenset[Path] = frozenset()
) -> dict[str, tuple[str, str]]:
    """Path, type and content of what a build sees, which is what a copy has."""
    found = sources.find(case, folder, workspace, others)
    sources.copy(found, copy)
    assert listings.tree_listing(copy) == tuple(source.entry for source in found)
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


def group_with_cases(root: Path) -> cases.Case:
    """A case that is a build group: a child is a case with two configurations, another one is not."""
    own = ("build-t.toml", "qemu-x86_64.toml", "sh/run.sh", "data/qemu-base-x.toml", "data/x")
    others = ("child/qemu-x86_64.toml", "child/qemu-aarch64.toml", "child/c/CMakeLists.txt", "deep/er/child/qemu-riscv64.toml")
    for name in (*own, *others):
        (root / "suite/normal" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "suite/normal" / name).write_text(CONFIG if name == own[1] else "")
    (root / "qcase.toml").write_text('[suite]\nroot = "suite"\n')
    case = discover.discover(cases.Workspace.open(root), Arch.X86_64, "t").cases[0]
    assert isinstance(case, cases.Case), case
    assert case.display_name == "normal"
    return case


def test_other_cases_are_no_sources_of_a_case_that_is_a_group(tmp_path: Path) -> None:
    case = group_with_cases(tmp_path)
    found = listed(case.path, "sh", tmp_path, tmp_path / "one", discover.others_within(case, case.path))
    assert set(found) == {"data/qemu-base-x.toml", "data/x", "sh/run.sh"}
    (case.path / "alias").symlink_to("child")
    (case.path / "sh/shared").symlink_to("../child/c/CMakeLists.txt")
    found = listed(case.path, "sh", tmp_path, tmp_path / "two", discover.others_within(case, case.path))
    assert set(found) == {"data/qemu-base-x.toml", "data/x", "sh/run.sh", "sh/shared"}
    assert found["sh/shared"][0] == "file"  # what it leads to is not in the copy


def test_subcases_that_are_cases_too_are_sources_of_a_groups_project(tmp_path: Path) -> None:
    case = group_with_cases(tmp_path)
    others = discover.others_within(case, case.path, project=True)
    found = listed(case.path, "", tmp_path, tmp_path / "copy", others)
    assert set(found) == {"child/c/CMakeLists.txt", "data/qemu-base-x.toml", "data/x", "sh/run.sh"}


def test_a_case_that_is_no_group_has_no_other_cases_in_it(tmp_path: Path) -> None:
    case = replace(group_with_cases(tmp_path), is_group=False)
    assert discover.others_within(case, case.path) == frozenset()


def test_the_folder_of_sources_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "case/c").symlink_to(tmp_path / "shared")  # even an absolute one
    assert listed(tmp_path / "case", "c", tmp_path / "case", tmp_path / "copy") == {"c": ("dir", "")}
    (tmp_path / "shared/main.c").write_text("x")
    assert listed(tmp_path / "case", "c", tmp_path / "case", tmp_path / "again").keys() == {"c/main.c"}


# --- grouped ----------------------------------------------------------------------------------------------------------


def run_script(tmp_path: Path, *commands: str, words: tuple[str, ...] = (), shell: str = "sh") -> tuple[int, list[str]]:
    path = group_script.write_runner_script(Tree(tmp_path), commands, GroupedRunner()).host
    done = process.run([shell, str(path), *words], check=False, timeout=60)
    return done.returncode, done.output.splitlines()


def test_the_script_is_at_its_place_and_executable(tmp_path: Path) -> None:
    path = group_script.write_runner_script(Tree(tmp_path), ["true"], GroupedRunner(runner_name="suite-run")).host
    assert path == tmp_path / "usr/bin/suite-run"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert path.read_text().startswith("#!/bin/sh\nset -u\nset +a\n")


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


def cmdlines() -> Iterator[bytes]:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield entry.read_bytes()


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_the_script_kills_what_takes_too_long_with_all_that_it_started(tmp_path: Path, shell: str) -> None:
    began = time.monotonic()
    commands = ("sleep 971 & sleep 972; echo no", "trap '' TERM INT; while :; do :; done", "sh -c 'sleep 973; echo no'", "exit 3")
    status, lines = run_script(tmp_path, *commands, words=("1",), shell=shell)
    assert time.monotonic() - began < 30
    ends = [line.removeprefix("QCASE_GROUPED_TEST_FAILED: ") for line in lines if "FAILED: " in line]
    assert ends == [f"{command} status=124 limit=1" for command in commands[:3]] + ["exit 3 status=3"]
    assert (status, "no" in lines) == (1, False)
    until = time.monotonic() + 10  # what was killed may take a moment to be gone
    while any(b"sleep\x0097" in cmdline for cmdline in cmdlines()):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_limit_changes_nothing_for_a_command_that_is_in_time(tmp_path: Path) -> None:
    """It runs in the foreground: signals have their usual effect, it has no children, and reads what the script reads."""
    commands = ("kill -INT $$; echo no", "cat /proc/self/task/*/children | wc -w", "cat; echo read")
    path = group_script.write_runner_script(Tree(tmp_path), commands, GroupedRunner()).host
    done = process.run(["sh", "-c", f"echo typed | sh {path} 30"], check=False, timeout=60)
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
    rules = boot_plan.group_rules(config, runner)
    assert rules.group is not None
    assert (rules.command, rules.group.word) == ("/usr/bin/suite-run-case-tests", "")
    rules = boot_plan.group_rules(config, runner, "1a2b", 1.5)
    assert rules.group is not None
    assert (rules.command, rules.group.word, rules.group.runner) == (
        "/usr/bin/suite-run-case-tests ask 2",
        "1a2b",
        "suite-run-case-tests",
    )
    rules = boot_plan.group_rules(config, GroupedRunner(prefix="SUITE", runner_path="/own/way"), "1a2b", 1.5)
    assert rules.group is not None
    assert (rules.command, rules.group.word) == ("/own/way", "")
    rules = boot_plan.group_rules(config, runner)
    assert rules.success == (r"(?m)^SUITE_GROUPED_TESTS_PASSED\s*$",)
    assert rules.fail == ("Oops",)
    custom = boot_plan.group_rules(config, GroupedRunner(prefix="SUITE", fail_regex="my own"))
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
        elf_libraries.complete(Tree(tmp_path / "overlay"), base, Arch.X86_64, "normal/x")


def test_the_search_path_is_written_for_an_overlay_with_a_loader(tmp_path: Path, base: Path) -> None:
    overlay = tmp_path / "overlay"
    (overlay / "lib").mkdir(parents=True)
    (overlay / "lib" / "ld-musl-x86_64.so.1").write_bytes(b"")
    elf_libraries.complete(Tree(overlay), base, Arch.X86_64, "normal/x")
    assert (overlay / "etc" / "ld-musl-x86_64.path").read_text() == "/lib\n/usr/lib\n/usr/local/lib\n"


# --- staging ----------------------------------------------------------------------------------------------------------


def test_a_base_image_is_unpacked_with_links_and_readable_files(tmp_path: Path, base: Path) -> None:
    root = tmp_path / "staging"
    root.mkdir()
    staging_root.unpack(base, Tree(root))
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
    assert group_commands.names(commands) == wanted


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
    assert group_commands.may_install(tmp_path, frozenset({"test-pipe"})) is expected


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
    assert group_commands.in_doubt([command], there.__contains__) is doubtful


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ("a b", "a,b"),
        ("a a b a", "a,a (2),b,a (3)"),
        ("a|a (2)|a|a (2)", "a,a (2),a (3),a (2) (2)"),
        ("a|a|a (2)|a (3)", "a,a (4),a (2),a (3)"),
    ],
)
def test_commands_of_one_label_have_names_of_their_own(labels: str, names: str) -> None:
    found = group_commands.distinct(labels.split("|" if "|" in labels else " "))
    assert found == tuple(names.split(","))
    assert len(set(found)) == len(found)


def test_a_file_of_any_number_of_names_is_not_unpacked_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of a few MB, whose files would be as large as any disk: names cost it nothing."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "one").write_bytes(os.urandom(1 << 20))
    for number in range(50):
        os.link(root / "one", root / f"name{number}")
    image = tmp_path / "image"
    process.run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(image), "8M"])
    monkeypatch.setattr(staging_root, "_DATA", 20 << 20)
    (tmp_path / "unpacked").mkdir()
    with pytest.raises(InfraError, match="more than can be unpacked"):
        staging_root.unpack(image, Tree(tmp_path / "unpacked"))
    monkeypatch.setattr(staging_root, "_DATA", 60 << 20)
    (tmp_path / "all").mkdir()
    staging_root.unpack(image, Tree(tmp_path / "all"))


def test_a_source_that_became_a_link_is_not_copied(tmp_path: Path) -> None:
    """Nor one in a folder that did, however short a time ago: a kernel's build may run meanwhile."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_text("secret")
    (tmp_path / "w/case/sh").mkdir(parents=True)
    (tmp_path / "w/case/sh/file").write_text("plain")
    found = sources.find(tmp_path / "w/case", "sh", tmp_path / "w")
    (tmp_path / "w/case/sh").rename(tmp_path / "w/aside")
    (tmp_path / "w/case/sh").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        sources.copy(found, tmp_path / "copy")
    assert not (tmp_path / "copy/sh/file").exists()


def test_a_strangers_sources_are_in_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_text("secret")
    (tmp_path / "w/case").mkdir(parents=True)
    (tmp_path / "w/case/sh").symlink_to(tmp_path / "secret")
    found = sources.find(tmp_path / "w/case", "sh", tmp_path / "w")
    assert [source.entry.path for source in found] == ["sh/file"]
    with pytest.raises(BuildError, match="sh/file is outside of the workspace"):
        sources.check_inside(found, tmp_path / "w")


def test_a_source_without_end_is_a_build_error(tmp_path: Path) -> None:
    (tmp_path / "case/sh").mkdir(parents=True)
    with (tmp_path / "case/sh/huge").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(BuildError, match="huge has 4398046511104 bytes"):
        sources.find(tmp_path / "case", "sh", tmp_path)


@pytest.mark.parametrize("said", ["", "a\nb", "::error::x\n", "\x1b[2J", "x" * 300])
def test_the_stage_of_a_build_is_a_word_of_ours(said: str, tmp_path: Path) -> None:
    (tmp_path / "stage").write_text(said)
    assert stage_of(Tree(tmp_path) / "stage") == "the container"
    (tmp_path / "stage").write_text("configure")
    assert stage_of(Tree(tmp_path) / "stage") == "configure"


def test_scripts_that_are_links_to_anything(tmp_path: Path) -> None:
    (tmp_path / "one/sh").mkdir(parents=True)
    (tmp_path / "one/sh/log").symlink_to("/proc/kmsg")
    (tmp_path / "one/sh/large").symlink_to(tmp_path / "huge")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 42)
    found = group_installs.scripts({"one": Pipeline.SH}, tmp_path)
    assert found["large"] == found.get("log", found["large"]) == b"#!/bin/sh\neval"
