"""Which cases a command means: subcases by name, tags, pipelines, what failed, what git says has changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from qcase import events
from qcase.arch import Arch
from qcase.errors import UsageError
from qcase.host import process
from qcase.inputs import case_filters
from qcase.inputs.case_filters import Filters
from qcase.model import CaseResult, Fault, Verdict
from qcase.pipelines import group_commands
from qcase.suite import discover, history
from qcase.suite.cases import BrokenCase, Case, Discovery, Workspace

PLAIN = 'success_regex = ["^ok$"]\n'
GROUPED = 'shell_prefix = "#"\ntest_commands = ["/usr/bin/a", "b --fast"]\n'
TARGET = Arch.X86_64.default_target


class Suite:
    """A workspace in a scratch folder; paths are relative to the group `normal`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file("../../qcase.toml", '[suite]\nname = "demo"\nroot = "suite"\n')

    def file(self, path: str, text: str = "") -> Path:
        (self.root / "suite" / "normal").mkdir(parents=True, exist_ok=True)
        file = self.root / "suite" / "normal" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def case(self, path: str, text: str = PLAIN, *, tags: Sequence[str] = (), arch: str = "x86_64") -> None:
        self.file(f"{path}/qemu-{arch}.toml", text + (f"[qcase]\ntags = {list(tags)}\n" if tags else ""))

    def group(self) -> None:
        self.case("g", GROUPED)
        self.file("g/one/sh/a")
        self.file("g/two/sh/b")

    @property
    def workspace(self) -> Workspace:
        return Workspace.open(self.root)

    def discovery(self) -> Discovery:
        return discover.discover(self.workspace, Arch.X86_64, TARGET)

    def chosen(self, *patterns: str, **filters: object) -> list[str]:
        chosen = case_filters.choose(self.workspace, self.discovery(), patterns, Filters(**filters))  # type: ignore[arg-type]
        return [case.display_name.removeprefix("normal/") for case in chosen.cases]

    def note(self, **filters: object) -> str:
        return case_filters.choose(self.workspace, self.discovery(), (), Filters(**filters)).note  # type: ignore[arg-type]

    def ran(self, **verdicts: Verdict) -> None:
        results = tuple(
            CaseResult(f"normal/{case.replace('__', '/')}", Arch.X86_64, verdict, Fault.NONE)
            for case, verdict in verdicts.items()
        )
        history.Memory(self.root, {Arch.X86_64: TARGET}, lambda message: pytest.fail(message))(events.RunFinished(results, 1.0))

    def git(self, *arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return process.run(["git", *who, "-C", str(self.root), *arguments]).output


@pytest.fixture
def tree(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


# ---- subcases


def test_a_subcase_is_named_below_its_group(tree: Suite) -> None:
    tree.group()
    tree.case("other")
    assert tree.chosen("g/one") == ["g/one"]
    assert tree.chosen("normal/g/two", "other") == ["g/two", "other"]
    (part,) = case_filters.choose(tree.workspace, tree.discovery(), ["g/one"], Filters()).cases
    assert isinstance(part, Case)
    assert (part.only, part.whole, part.name) == ("one", "normal/g", "g/one")
    assert [subcase.name for subcase in part.subcases] == ["one", "two"]


def test_a_pattern_that_means_the_group_means_no_subcase_of_it(tree: Suite) -> None:
    tree.group()
    assert tree.chosen("g") == ["g"]
    assert tree.chosen("*") == ["g"]
    assert tree.chosen("normal/*") == ["g"]
    assert tree.chosen("*one") == ["g/one"]
    assert tree.chosen("g/one", "g") == ["g"]


def test_a_subcase_that_is_not_there(tree: Suite) -> None:
    tree.group()
    with pytest.raises(UsageError, match="unknown case 'g/onne'") as e:
        tree.chosen("g/onne")
    assert e.value.hint == "did you mean 'g/one'?"


def test_a_subcase_of_a_group_that_is_broken_or_not_for_this_arch(tree: Suite) -> None:
    tree.case("bad", "= 1\n")
    tree.file("bad/one/sh/a")
    tree.case("arm", GROUPED, arch="aarch64")
    (broken,) = case_filters.choose(tree.workspace, tree.discovery(), ["bad/one"], Filters()).cases
    assert isinstance(broken, BrokenCase)
    with pytest.raises(UsageError, match="is not for x86_64"):
        tree.chosen("arm/one")


PROGRAMS = {"one": ["/usr/bin/a", "/usr/bin/shared"], "two": ["/usr/bin/b", "/opt/a", "/usr/bin/shared"], "none": []}


@pytest.mark.parametrize(
    ("subcase", "commands", "wanted"),
    [
        ("one", ["/usr/bin/a", "b --fast", "mount -t tmpfs x /mnt"], ["/usr/bin/a"]),
        ("two", ["/usr/bin/a", "b --fast", "/opt/a"], ["b --fast", "/opt/a"]),
        ("two", ["timeout 5 b;true", 'sh -c "b"', "cd / && ./b $HOME"], ["timeout 5 b;true", 'sh -c "b"', "cd / && ./b $HOME"]),
        ("one", ["/bin/a", "b $(nproc)"], None),
        ("two", ["b", "/usr/bin/a `nproc`"], ["b"]),
    ],
)
def test_the_commands_of_a_subcase(subcase: str, commands: list[str], wanted: list[str] | None) -> None:
    if wanted is None:  # /bin may be a link to /usr/bin, so `a` is either
        with pytest.raises(UsageError, match=r"one and two both install /bin/a"):
            group_commands.commands_of(subcase, commands, PROGRAMS)
        return
    assert group_commands.commands_of(subcase, commands, PROGRAMS) == tuple(wanted)


@pytest.mark.parametrize(
    ("commands", "wanted"),
    [
        (["b", "for i in p q; do test-$i; done"], "what it runs is computed"),
        (["b", "find /usr/bin -name 'test-*'"], "what it runs is computed"),
        (["b", "sh /root/all.sh"], "what it runs is computed"),
        (["b", "shared"], "both install shared"),
        (["/usr/bin/a"], "no command of the group names a program of this subcase"),
    ],
)
def test_commands_of_a_subcase_that_cannot_be_told(commands: list[str], wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted):
        group_commands.commands_of("two", commands, PROGRAMS)


# ---- tags and pipelines


def test_tags(tree: Suite) -> None:
    tree.case("a", tags=["fs", "slow"])
    tree.case("b", tags=["fs"])
    tree.case("n", tags=["net"])
    tree.case("d")
    assert tree.chosen(tags=("fs",)) == ["a", "b"]
    assert tree.chosen(tags=("fs", "net")) == ["a", "b", "n"]
    assert tree.chosen(tags=("!slow",)) == ["b", "d", "n"]
    assert tree.chosen(tags=("fs", "!slow")) == ["b"]
    assert tree.chosen("a", tags=("fs",)) == ["a"]
    with pytest.raises(UsageError, match="no case here has the tag 'slw'") as e:
        tree.chosen(tags=("slw",))
    assert e.value.hint == "did you mean 'slow'? known tags: fs, net, slow"
    with pytest.raises(UsageError, match="no case has all that was asked for"):
        tree.chosen("a", "n", tags=("!slow", "!net"))


def test_a_broken_case_is_never_left_out_for_what_cannot_be_known_of_it(tree: Suite) -> None:
    tree.case("a", tags=["fs"])
    tree.case("bad", "= 1\n")
    assert tree.chosen(tags=("fs",)) == ["a", "bad"]
    assert tree.chosen(tags=("fs", "any")) == ["a", "bad"]
    assert tree.chosen(pipelines=("sh",)) == ["bad"]


def test_pipelines(tree: Suite) -> None:
    tree.case("a")
    tree.case("b")
    tree.file("b/sh/run")
    tree.group()
    assert tree.chosen(pipelines=("plain",)) == ["a"]
    assert tree.chosen(pipelines=("sh", "grouped")) == ["b", "g"]
    with pytest.raises(UsageError, match="unknown pipeline 'shh'") as e:
        tree.chosen(pipelines=("shh",))
    assert e.value.hint.startswith("did you mean 'sh'?")


# ---- what failed


def test_failed_is_what_did_not_pass_when_it_last_ran(tree: Suite) -> None:
    for name in ("a", "b", "n"):
        tree.case(name)
    with pytest.raises(UsageError, match="no run is remembered"):
        tree.chosen(failed=True)
    tree.ran(a=Verdict.FAIL, b=Verdict.PASS, n=Verdict.TIMEOUT)
    assert tree.chosen(failed=True) == ["a", "n"]
    assert tree.chosen("n", failed=True) == ["n"]
    tree.ran(a=Verdict.PASS)
    assert tree.chosen(failed=True) == ["n"]
    tree.ran(n=Verdict.PASS)
    assert tree.chosen(failed=True) == []
    assert tree.note(failed=True).startswith("nothing to run")


def test_what_failed_of_a_subcase_holds_until_its_group_has_run(tree: Suite) -> None:
    tree.group()
    tree.case("a")
    tree.ran(g__one=Verdict.FAIL, a=Verdict.PASS)
    assert tree.chosen(failed=True) == ["g/one"]
    tree.ran(g=Verdict.FAIL)
    assert tree.chosen(failed=True) == ["g"]


def test_a_case_that_is_gone_is_nothing_that_failed(tree: Suite) -> None:
    tree.case("a")
    tree.ran(gone=Verdict.FAIL)
    assert tree.chosen(failed=True) == []


# ---- what changed


@pytest.fixture
def repository(tree: Suite) -> Suite:
    tree.case("a")
    tree.case("a", arch="aarch64")
    tree.case("b")
    tree.file("b/sh/run", "1")
    tree.file("smp/build-x86_64-unknown-none.toml")
    tree.case("smp/x")
    tree.group()
    tree.file("g/one/sh/läuft gut", "1")
    tree.git("init", "-q")
    tree.file("../../.gitignore", "*.o\n")
    tree.git("add", "-A")
    tree.git("commit", "-qm", "one")
    return tree


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("b/sh/run", ["b"]),
        ("b/sh/new", ["b"]),
        ("b/sh/new.o", []),
        ("g/one/sh/läuft gut", ["g"]),
        ("a/qemu-x86_64.toml", ["a"]),
        ("a/qemu-aarch64.toml", []),
        ("smp/build-x86_64-unknown-none.toml", ["smp/x"]),
        ("smp/README", []),
        ("../../README", []),
        ("../../qcase.toml", ["a", "b", "g", "smp/x"]),
    ],
)
def test_changed_is_what_git_says(path: str, wanted: list[str], repository: Suite) -> None:
    repository.file(path, '[suite]\nroot = "suite"\n' if path.endswith("qcase.toml") else f"{PLAIN}timeout = 9\n")
    assert repository.chosen(changed="HEAD") == wanted
    if not wanted:
        assert repository.note(changed="HEAD") == "nothing to run: no case that was asked for differs from HEAD"


def test_changed_since_a_revision_has_what_was_committed_and_taken_away(repository: Suite) -> None:
    repository.file("b/sh/run", "2")
    (repository.root / "suite/normal/g/two/sh/b").unlink()
    repository.git("commit", "-qam", "two")
    assert repository.chosen(changed="HEAD") == []
    assert repository.chosen(changed="HEAD~1") == ["b", "g"]


def test_a_changed_file_of_the_guest_changes_every_case(repository: Suite) -> None:
    repository.file("../../qcase.toml", '[suite]\nroot = "suite"\n[guest.x86_64]\nkernel = "out/kernel"\n')
    repository.git("commit", "-qam", "two")
    repository.file("../../out/kernel", "new")
    assert repository.chosen(changed="HEAD") == ["a", "b", "g", "smp/x"]


def test_a_workspace_in_a_folder_of_the_repository(tmp_path: Path) -> None:
    below = Suite(tmp_path / "below")
    below.case("a")
    process.run(["git", "-C", str(tmp_path), "init", "-q"])
    below.git("add", "-A")
    below.git("commit", "-qm", "one")
    (tmp_path / "beside").write_text("new")
    assert below.chosen(changed="HEAD") == []
    below.file("a/x", "new")
    assert below.chosen(changed="HEAD") == ["a"]


@pytest.mark.parametrize("revision", ["nosuch", "--help", "", "HEAD~7"])
def test_what_is_no_revision(revision: str, repository: Suite) -> None:
    with pytest.raises(UsageError, match="git knows no revision"):
        repository.chosen(changed=revision)


def test_no_repository(tree: Suite) -> None:
    tree.case("a")
    with pytest.raises(UsageError, match="not a git repository"):
        tree.chosen(changed="HEAD")


def test_submodules_count_and_run_nothing(repository: Suite, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Git itself would ask in each of them by its own configuration, which may name programs."""
    aside = tmp_path_factory.mktemp("aside")
    mark = aside / "ran"
    process.run(["git", "init", "-q", str(aside / "other")])
    one = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(aside / "other"), "commit", "-q"]
    process.run([*one, "--allow-empty", "-m", "one"])
    repository.git(
        "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(aside / "other"), "suite/normal/a/inner"
    )
    repository.git("commit", "-qm", "with a submodule")
    assert repository.chosen(changed="HEAD") == []
    inner = repository.root / "suite/normal/a/inner"
    hook = ("git", "-C", str(inner), "config", "core.fsmonitor", f"touch {mark}; false")
    process.run(hook)
    repository.git("config", "filter.x.clean", f"touch {mark}; cat")
    attributes = repository.root / ".git/info/attributes"
    attributes.parent.mkdir(exist_ok=True)
    attributes.write_text("* filter=x\n")
    assert repository.chosen(changed="HEAD") == []
    assert repository.chosen(changed="HEAD~1") == ["a"]
    (inner / "new").write_text("x")
    assert repository.chosen(changed="HEAD") == ["a"]
    (inner / "new").unlink()
    repository.file("b/sh/run", "touched")
    assert repository.chosen(changed="HEAD") == ["b"]
    assert not mark.exists()


def test_revisions_by_other_names(repository: Suite, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a branch follows, what HEAD was, and what was fetched last."""
    aside = tmp_path_factory.mktemp("aside")
    process.run(["git", "init", "-q", "--bare", str(aside / "origin")])
    repository.git("remote", "add", "origin", str(aside / "origin"))
    repository.git("push", "-q", "-u", "origin", "HEAD")
    repository.git("fetch", "-q", "origin", "HEAD:refs/heads/fetched")
    repository.file("b/sh/run", "new")
    repository.git("commit", "-qam", "two")
    for name in ("@{upstream}", "HEAD@{1}", "FETCH_HEAD", "fetched"):
        assert repository.chosen(changed=name) == ["b"], name


LOOP = "for test in /usr/bin/tests/*; do $test || exit 1; done"


@pytest.mark.parametrize(
    ("programs", "commands", "wanted"),
    [
        (["/usr/bin/tests/brk"], [LOOP], [LOOP]),
        (["/usr/bin/brk"], ["/usr/bin/brk -v", "futex", "brk"], ["/usr/bin/brk -v", "brk"]),
        (["/usr/bin/brk"], [LOOP], None),
        ([], [LOOP, "brk"], None),
        (["/usr/bin/brk"], ["echo *"], None),
    ],
)
def test_the_commands_for_a_subcase_that_alone_is_installed(
    programs: list[str], commands: list[str], wanted: list[str] | None
) -> None:
    """A loop over the programs of a folder counts if it would come to one of this subcase, else there is no test in it."""
    if wanted is None:
        with pytest.raises(UsageError, match="no command of the group names a program of this subcase"):
            group_commands.commands_for("brk", commands, programs)
    else:
        assert group_commands.commands_for("brk", commands, programs) == tuple(wanted)
