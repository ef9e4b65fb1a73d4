"""Which cases a suite has, what they are called, and which ones a command means."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config.case_file import CaseConfig
from qcase.errors import ConfigError, UsageError
from qcase.inputs import case_filters
from qcase.inputs.ingredients import build_configurations, of_case, other_configurations
from qcase.inputs.not_run import not_run
from qcase.model import Pipeline
from qcase.suite.cases import BrokenCase, Case, Discovery, Subcase, Workspace
from qcase.suite.catalogue import catalogue, listing
from qcase.suite.discover import discover, resolve_pipeline
from qcase.suite.history import other_names
from qcase.suite.select import named, select

TARGET = Arch.X86_64.default_target
PLAIN = 'success_regex = ["^ok$"]\n'
GROUPED = 'shell_prefix = "#"\ntest_commands = ["/usr/bin/a"]\n'


class Suite:
    """A workspace in a scratch folder. Paths are relative to the suite's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "qcase.toml").write_text('[suite]\nname = "demo"\nroot = "suite"\n')
        (root / "suite").mkdir()

    def file(self, path: str, text: str = "") -> Path:
        file = self.root / "suite" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def folder(self, path: str) -> Path:
        folder = self.root / "suite" / path
        folder.mkdir(parents=True)
        return folder

    def case(self, path: str, *arches: str, text: str = PLAIN) -> None:
        for arch in arches or ("x86_64",):
            self.file(f"{path}/qemu-{arch}.toml", text)

    def link(self, path: str, to: str | Path) -> None:
        link = self.root / "suite" / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(to)

    def open(self) -> Workspace:
        return Workspace.open(self.root)

    def discover(self, arch: Arch = Arch.X86_64, target: str = "", group: str | None = None) -> Discovery:
        return discover(self.open(), arch, target or arch.default_target, group)

    def names(self, arch: Arch = Arch.X86_64, group: str | None = None) -> list[str]:
        return [case.display_name for case in self.discover(arch, group=group).cases]

    def only(self) -> Case:
        (case,) = self.discover().cases
        assert isinstance(case, Case), case
        return case

    def only_broken(self) -> BrokenCase:
        (case,) = self.discover().cases
        assert isinstance(case, BrokenCase), case
        return case

    def list(self, group: str | None = None) -> list[str]:
        return listing(catalogue(self.open(), group))


@pytest.fixture
def tree(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


@pytest.fixture
def groups(tree: Suite) -> Suite:
    """Three groups: two with cases of one name, and one that is itself a build group."""
    for group in ("normal/qemu", "stress/qemu", "arceos"):
        tree.file(f"{group}/build-{TARGET}.toml")
        tree.case(f"{group}/smoke")
    tree.case("stress/alone", "x86_64", "aarch64")
    tree.case("arceos", "aarch64")
    return tree


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (["normal"], ["qemu/smoke"]),
        (["stress"], ["qemu/smoke", "stress/alone"]),
        (["normal", "stress"], ["normal/qemu/smoke", "stress/alone", "stress/qemu/smoke"]),
        (["stress", "stress"], ["qemu/smoke", "stress/alone"]),
        (["s*"], ["stress/alone", "stress/qemu/smoke"]),
        (["*"], ["arceos/smoke", "normal/qemu/smoke", "stress/alone", "stress/qemu/smoke"]),
        (["arceos"], ["arceos/smoke"]),
    ],
)
def test_cases_of_several_groups_are_named_by_their_path(groups: Suite, wanted: list[str], names: list[str]) -> None:
    assert [case.display_name for case in discover(groups.open(), Arch.X86_64, TARGET, wanted).cases] == names


def test_cases_of_several_groups_are_chosen_by_every_name(groups: Suite) -> None:
    found = discover(groups.open(), Arch.X86_64, TARGET, "*")
    assert chosen(found, "stress/qemu/smoke") == ["stress/qemu/smoke"]
    assert chosen(found, "qemu/smoke") == ["normal/qemu/smoke", "stress/qemu/smoke"]
    assert chosen(found, "stress") == ["stress/alone", "stress/qemu/smoke"]
    with pytest.raises(UsageError, match="unknown case 'x' in the groups arceos, normal, stress"):
        select(found, ["x"])
    with pytest.raises(UsageError, match="case 'arceos' is not for riscv64"):
        select(discover(groups.open(), Arch.RISCV64, Arch.RISCV64.default_target, "*"), ["arceos"])


def test_a_default_group_may_be_a_pattern(groups: Suite) -> None:
    (groups.root / "qcase.toml").write_text('[suite]\nroot = "suite"\ndefault_group = "*"\n')
    assert len(groups.names()) == 4
    assert groups.names(group="normal") == ["qemu/smoke"]
    with pytest.raises(UsageError, match="unknown group 'x\\*'"):
        groups.names(group="x*")


def test_names_for_lock_and_store_are_the_same_in_a_run_of_several_groups(groups: Suite) -> None:
    alone = {case.path: case for case in groups.discover(group="stress").cases if isinstance(case, Case)}
    for case in discover(groups.open(), Arch.X86_64, TARGET, "s*").cases:
        assert isinstance(case, Case)
        assert case.stored_as == alone[case.path].stored_as == alone[case.path].display_name


def test_a_run_of_several_groups_is_remembered_under_the_names_of_each(groups: Suite) -> None:
    every = discover(groups.open(), Arch.X86_64, TARGET, "*").cases
    assert other_names(every) == {
        "arceos/smoke": (),
        "normal/qemu/smoke": (),
        "stress/alone": (),
        "stress/qemu/smoke": (),
    }
    assert other_names(discover(groups.open(), Arch.X86_64, TARGET, ["s*"]).cases)["stress/qemu/smoke"] == ("qemu/smoke",)
    assert other_names(groups.discover().cases) == {"qemu/smoke": ("normal/qemu/smoke",)}


def chosen(discovery: Discovery, *patterns: str) -> list[str]:
    return [case.display_name for case in select(discovery, patterns)]


# ---- workspace and groups


def test_workspace_is_found_from_below(tree: Suite) -> None:
    tree.case("normal/a")
    workspace = Workspace.open(tree.root / "suite" / "normal")
    assert workspace.root == tree.root.resolve()
    assert workspace.suite_root == tree.root.resolve() / "suite"


def test_the_default_group_is_taken_without_a_group(tree: Suite) -> None:
    tree.case("normal/a")
    tree.case("stress/b")
    assert tree.names() == ["normal/a"]
    assert tree.names(group="stress") == ["stress/b"]


def test_unknown_group_lists_the_known_ones_sorted(tree: Suite) -> None:
    for group in ("stress", "normal", ".git"):
        tree.case(f"{group}/a")
    with pytest.raises(UsageError, match="unknown group 'sress'") as e:
        tree.discover(group="sress")
    assert e.value.hint == "did you mean 'stress'? known groups: normal, stress"


@pytest.mark.parametrize("group", ["", ".", "..", "normal/a", "/", ".git"])
def test_a_group_is_a_first_level_folder_and_nothing_else(tree: Suite, group: str) -> None:
    tree.case("normal/a")
    tree.folder(".git")
    with pytest.raises(UsageError, match="unknown group"):
        tree.discover(group=group)


def test_missing_default_group_lists_the_known_ones(tree: Suite) -> None:
    tree.case("stress/a")
    with pytest.raises(UsageError, match="the default group 'normal' is not there") as e:
        tree.discover()
    assert e.value.hint == "known groups: stress; choose one with --group"


def test_suite_without_groups_or_without_root_is_a_usage_error(tree: Suite) -> None:
    with pytest.raises(UsageError, match="suite: the suite has no groups"):
        tree.discover()
    (tree.root / "suite").rmdir()
    with pytest.raises(UsageError, match="suite: the suite's folder cannot be read: No such file or directory") as e:
        tree.discover()
    assert "[suite] root" in e.value.hint


# ---- names and build groups


def test_case_below_a_build_group_is_named_by_it(tree: Suite) -> None:
    tree.file(f"normal/smp1/build-{TARGET}.toml")
    tree.case("normal/smp1/net/ping")
    case = tree.only()
    assert (case.name, case.display_name, case.build_group, case.group) == ("net/ping", "smp1/net/ping", "smp1", "normal")
    assert case.path == tree.root.resolve() / "suite/normal/smp1/net/ping"
    assert case.config_path == case.path / "qemu-x86_64.toml"
    assert (case.arch, case.pipeline) == (Arch.X86_64, Pipeline.PLAIN)


def test_build_group_may_lie_deeper_and_is_named_by_its_path(tree: Suite) -> None:
    tree.file(f"normal/boards/smp4/build-{TARGET}.toml")
    tree.case("normal/boards/smp4/smoke")
    case = tree.only()
    assert (case.name, case.display_name, case.build_group) == ("smoke", "boards/smp4/smoke", "boards/smp4")


def test_first_build_group_going_down_wins(tree: Suite) -> None:
    tree.file(f"normal/outer/build-{TARGET}.toml")
    tree.file(f"normal/outer/inner/build-{TARGET}.toml")
    tree.case("normal/outer/inner/a")
    assert tree.only().build_group == "outer"


def test_build_group_that_is_a_case_still_has_its_children_searched(tree: Suite) -> None:
    tree.file(f"normal/smp1/build-{TARGET}.toml")
    tree.case("normal/smp1")
    tree.case("normal/smp1/child")
    tree.file("normal/smp1/c/CMakeLists.txt")
    own, child = tree.discover().cases
    assert (own.name, own.display_name, child.name, child.display_name) == ("smp1", "smp1", "child", "smp1/child")
    assert isinstance(own, Case)
    assert own.pipeline is Pipeline.C


def test_without_build_groups_the_group_gives_the_name(tree: Suite) -> None:
    tree.case("normal/net/ping")
    case = tree.only()
    assert (case.name, case.display_name, case.build_group) == ("net/ping", "normal/net/ping", "")


def test_cases_outside_build_groups_are_found_beside_them(tree: Suite) -> None:
    tree.file(f"normal/smp1/build-{TARGET}.toml")
    tree.case("normal/smp1/a")
    tree.case("normal/loose")
    assert tree.names() == ["normal/loose", "smp1/a"]


def test_group_may_itself_be_build_group_and_case(tree: Suite) -> None:
    tree.file(f"normal/build-{TARGET}.toml")
    tree.case("normal")
    tree.case("normal/a")
    own, child = tree.discover().cases
    assert (own.display_name, child.name, child.display_name) == ("normal", "a", "normal/a")
    assert isinstance(child, Case)
    assert child.build_group == "normal"


def test_group_without_build_file_may_be_a_case(tree: Suite) -> None:
    tree.case("normal")
    tree.case("normal/a")
    assert tree.names() == ["normal", "normal/a"]


def test_two_cases_of_one_display_name_are_an_error(tree: Suite) -> None:
    tree.file(f"normal/normal/build-{TARGET}.toml")
    tree.case("normal/normal/a")
    tree.case("normal/a")
    broken = tree.only_broken()
    assert broken.display_name == "normal/a"
    assert "two cases are called 'normal/a'" in str(broken.error)
    assert "suite/normal/a" in str(broken.error)
    assert "suite/normal/normal/a" in str(broken.error)


def test_cases_are_sorted_by_display_name(tree: Suite) -> None:
    for name in ("b", "a/z", "a-b", "d"):
        tree.case(f"normal/{name}")
    assert tree.names() == ["normal/a-b", "normal/a/z", "normal/b", "normal/d"]


@pytest.mark.parametrize("name", [f".build-{TARGET}.toml", "build-x86_64.toml", ".build-x86_64.toml"])
def test_legacy_build_file_is_an_error_for_its_tree_only(tree: Suite, name: str) -> None:
    tree.file(f"normal/old/{name}")
    tree.case("normal/old/a")
    tree.case("normal/new")
    new, old = tree.discover().cases
    assert isinstance(new, Case)
    assert isinstance(old, BrokenCase)
    assert (old.name, old.display_name, old.whole_tree) == ("old", "normal/old", True)
    assert str(old.error) == f"suite/normal/old/{name}: unsupported legacy name of a build file (call it build-{TARGET}.toml)"
    assert chosen(tree.discover(), "old/a") == ["normal/old"]


def test_legacy_build_file_beside_the_right_one_is_fine(tree: Suite) -> None:
    tree.file(f"normal/g/build-{TARGET}.toml")
    tree.file("normal/g/build-x86_64.toml")
    tree.case("normal/g/a")
    assert tree.names() == ["g/a"]


def test_build_group_of_another_target_is_passed_over_and_named(tree: Suite) -> None:
    tree.file("normal/arm/build-aarch64-other.toml")
    tree.case("normal/arm/a")
    tree.case("normal/b")
    found = tree.discover()
    assert [case.display_name for case in found.cases] == ["normal/b"]
    for name in ("a", "arm/a"):
        with pytest.raises(UsageError, match=f"case '{name}' belongs to a build group that has no build-{TARGET}.toml") as e:
            select(found, [name])
        assert e.value.hint == "it is for the target aarch64-other"


def test_build_group_of_this_target_below_one_of_another_is_found(tree: Suite) -> None:
    tree.file("normal/boards/build-other.toml")
    tree.case("normal/boards")
    tree.file(f"normal/boards/pc/build-{TARGET}.toml")
    tree.case("normal/boards/pc/a")
    assert tree.names() == ["boards/pc/a"]


# ---- what is a case


@pytest.mark.parametrize("inside", ["c", "c/a", "sh/a", "python/a/b", "rust/a", "x/c/a"])
@pytest.mark.parametrize("build_group", [True, False])
def test_a_case_in_a_folder_that_is_called_like_sources_is_an_error(tree: Suite, inside: str, build_group: bool) -> None:
    if build_group:
        tree.file(f"normal/g/build-{TARGET}.toml")
    tree.case("normal/g/case")
    tree.case(f"normal/g/{inside}")
    broken, case = sorted(tree.discover().cases, key=lambda one: isinstance(one, Case))
    assert isinstance(broken, BrokenCase)
    assert broken.display_name.endswith(f"g/{inside}")
    assert "is not searched" in str(broken.error)
    assert case.name.endswith("case")


def test_sources_with_a_configuration_of_another_architecture_are_no_error(tree: Suite) -> None:
    tree.file("normal/g/c/qemu-aarch64.toml")
    tree.file("normal/g/c/a/b/d/qemu-x86_64.toml")
    tree.case("normal/case/")
    tree.file("normal/case/c/qemu-x86_64.toml")
    assert tree.names() == ["normal/case"]


@pytest.mark.parametrize("inside", ["case/sub", "case/sub/deeper"])
@pytest.mark.parametrize("build_group", [True, False])
def test_nothing_is_found_below_a_case(tree: Suite, inside: str, build_group: bool) -> None:
    if build_group:
        tree.file(f"normal/g/build-{TARGET}.toml")
    tree.case("normal/g/case")
    tree.case(f"normal/g/{inside}")
    assert [name.rpartition("/")[2] for name in tree.names()] == ["case"]


def test_a_build_group_may_be_called_like_sources(tree: Suite) -> None:
    tree.file(f"normal/rust/build-{TARGET}.toml")
    tree.case("normal/rust/a")
    assert tree.names() == ["rust/a"]


def test_sources_without_a_configuration_are_no_case_and_no_error(tree: Suite) -> None:
    tree.file("normal/a/c/CMakeLists.txt")
    tree.case("normal/b")
    found = tree.discover()
    assert [case.display_name for case in found.cases] == ["normal/b"]
    assert (found.others, found.warnings) == ((), ())


def test_base_configurations_are_ignored(tree: Suite) -> None:
    tree.file("normal/base/qemu-base-x86_64.toml", "not = = toml")
    tree.case("normal/base/a")
    assert tree.names() == ["normal/base/a"]
    assert tree.discover().warnings == ()


def test_configuration_for_an_unknown_architecture_warns(tree: Suite) -> None:
    tree.case("normal/a")
    tree.file("normal/a/qemu-x86-64.toml")
    tree.file("normal/b/qemu-mips.toml")
    tree.file("normal/k/qemu-x86_64-.toml")
    found = tree.discover()
    (case,) = found.cases
    assert isinstance(case, Case)
    assert [str(w) for w in case.warnings] == [
        "suite/normal/a/qemu-x86-64.toml: ignored: 'x86-64' is no architecture (did you mean 'qemu-x86_64.toml'?)"
    ]
    assert [str(w) for w in found.warnings] == [
        "suite/normal/b/qemu-mips.toml: ignored: 'mips' is no architecture (known: x86_64, aarch64, riscv64, loongarch64)",
        "suite/normal/k/qemu-x86_64-.toml: ignored: 'x86_64-' is no architecture (did you mean 'qemu-x86_64.toml'?)",
    ]


def test_a_variant_is_a_case_of_its_own(tree: Suite) -> None:
    tree.case("normal/a")
    tree.file("normal/a/qemu-x86_64-nvme.toml", PLAIN)
    tree.file("normal/a/qemu-aarch64-nvme.toml", PLAIN)
    tree.file("normal/b/qemu-x86_64-only-this.toml", PLAIN)
    found = tree.discover()
    cases = [case for case in found.cases if isinstance(case, Case)]
    assert [(case.name, case.variant, case.config_path.name) for case in cases] == [
        ("a", "", "qemu-x86_64.toml"),
        ("a-nvme", "nvme", "qemu-x86_64-nvme.toml"),
        ("b-only-this", "only-this", "qemu-x86_64-only-this.toml"),
    ]
    assert {case.path.name for case in cases} == {"a", "b"}
    assert (found.warnings, [warning for case in cases for warning in case.warnings]) == ((), [])
    assert tree.names(Arch.AARCH64) == ["normal/a-nvme"]
    assert [case.display_name for case in select(found, ["a-nvme"])] == ["normal/a-nvme"]
    assert [case.display_name for case in select(found, ["a"])] == ["normal/a"]
    assert {entry.display_name: sorted(entry.cases) for entry in catalogue(tree.open()).groups["normal"]} == {
        "normal/a": ["x86_64"],
        "normal/a-nvme": ["aarch64", "x86_64"],
        "normal/b-only-this": ["x86_64"],
    }


def test_a_variant_whose_name_a_folder_has_is_an_error(tree: Suite) -> None:
    tree.case("normal/a")
    tree.file("normal/a/qemu-x86_64-b.toml", PLAIN)
    tree.case("normal/a-b")
    broken = [case for case in tree.discover().cases if isinstance(case, BrokenCase)]
    assert [str(case.error) for case in broken] == [
        "suite/normal/a-b: two cases are called 'normal/a-b' (the other one is suite/normal/a)"
    ]


def test_a_build_group_of_variants_alone_is_for_these(tree: Suite) -> None:
    """Upstream's axvisor suite: no kernel for the plain configuration, one for each variant."""
    target = Arch.X86_64.default_target
    tree.file(f"normal/qemu/build-{target}-svm.toml")
    tree.file(f"normal/qemu/build-{target}-vmx.toml")
    for name in ("x86_64-svm", "x86_64-vmx", "x86_64-other", "x86_64"):
        tree.file(f"normal/qemu/smoke/qemu-{name}.toml", PLAIN)
    found = tree.discover()
    assert [case.display_name for case in found.cases] == ["qemu/smoke-svm", "qemu/smoke-vmx"]
    assert [case.display_name for case in found.others] == ["qemu/smoke", "qemu/smoke-other"]
    case = found.cases[0]
    assert isinstance(case, Case)
    nearest = next(path for path in build_configurations(case, tree.open(), target) if path.is_file())
    assert nearest.name == f"build-{target}-svm.toml"


def test_a_variant_takes_the_common_kernel_where_it_has_none_of_its_own(tree: Suite) -> None:
    target = Arch.X86_64.default_target
    tree.file(f"normal/qemu/build-{target}.toml")
    tree.file(f"normal/qemu/build-{target}-big.toml")
    for name in ("x86_64-big", "x86_64-small"):
        tree.file(f"normal/qemu/smoke/qemu-{name}.toml", PLAIN)
    used = {}
    for case in tree.discover().cases:
        assert isinstance(case, Case)
        files = build_configurations(case, tree.open(), target)
        used[case.name] = next(path for path in files if path.is_file()).name
        assert {path.name for path in other_configurations(case)} >= {"qemu-aarch64.toml"}
        assert case.config_path not in other_configurations(case)
    assert used == {"smoke-big": f"build-{target}-big.toml", "smoke-small": f"build-{target}.toml"}


def test_cases_nested_deep_are_found(tree: Suite) -> None:
    path = "normal/" + "/".join(["d"] * 300)
    here = tree.root / "suite"
    fd = os.open(here, os.O_RDONLY)
    for part in path.split("/"):  # longer than a path may be for one call
        os.mkdir(part, dir_fd=fd)
        inner = os.open(part, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    config = os.open("qemu-x86_64.toml", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.write(config, PLAIN.encode())
    os.close(config)
    os.close(fd)
    assert tree.only().name == path.removeprefix("normal/")


def test_unknown_keys_become_warnings_of_the_case(tree: Suite) -> None:
    tree.case("normal/a", text=PLAIN + "timout = 1\n")
    (warning,) = tree.only().warnings
    assert (warning.file, warning.line, warning.key) == ("suite/normal/a/qemu-x86_64.toml", 2, "timout")


def test_placeholders_see_workspace_and_environment(tree: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCASE_TEST_WORD", "fine")
    tree.case("normal/a", text='args = ["${workspace}"]\nsuccess_regex = ["${env:QCASE_TEST_WORD}"]')
    config = tree.only().config
    assert config.args == (str(tree.root.resolve()),)
    assert config.success_regex == ("fine",)


# ---- symbolic links


def test_links_that_loop_end(tree: Suite) -> None:
    tree.case("normal/a/x")
    tree.link("normal/a/up", "..")
    tree.link("normal/a/self", ".")
    tree.link("normal/a/suite", tree.root / "suite")
    tree.link("normal/a/everything", "/")
    tree.link("normal/a/knot", "knot")
    tree.link("normal/a/gone", "nowhere")
    assert tree.names() == ["normal/a/x"]


def test_loop_through_a_linked_folder_outside_ends(tree: Suite, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "case").mkdir()
    (outside / "case" / "qemu-x86_64.toml").write_text(PLAIN)
    (outside / "again").symlink_to(outside)
    (outside / "back").symlink_to(tree.root / "suite" / "normal")
    tree.case("normal/a")
    tree.link("normal/ext", outside)
    assert tree.names() == ["normal/a", "normal/ext/case"]


def test_linked_case_is_found_once_under_its_own_name(tree: Suite) -> None:
    tree.case("normal/m")
    tree.link("normal/a", "m")
    tree.link("normal/z", "m")
    assert tree.names() == ["normal/m"]


def test_case_linked_twice_from_elsewhere_is_found_once(tree: Suite) -> None:
    tree.case("stress/m")
    tree.folder("normal")
    tree.link("normal/b", "../stress/m")
    tree.link("normal/a", "../stress/m")
    assert tree.names() == ["normal/a"]


def test_linked_case_keeps_the_build_group_of_the_link(tree: Suite) -> None:
    tree.case("stress/m")
    tree.file(f"normal/g/build-{TARGET}.toml")
    tree.link("normal/g/m", "../../stress/m")
    assert tree.names() == ["g/m"]


def test_group_may_be_a_link(tree: Suite) -> None:
    tree.case("stress/a")
    tree.link("normal", "stress")
    assert tree.names() == ["normal/a"]


# ---- broken cases


def test_unparsable_file_spoils_its_case_only(tree: Suite) -> None:
    tree.case("normal/bad", text="a = = 1\n")
    tree.case("normal/good")
    bad, good = tree.discover().cases
    assert isinstance(good, Case)
    assert isinstance(bad, BrokenCase)
    assert (bad.name, bad.display_name, bad.group, bad.whole_tree) == ("bad", "normal/bad", "normal", False)
    assert bad.error.exit_code == 2
    assert str(bad.error).startswith("suite/normal/bad/qemu-x86_64.toml:1: is not TOML: Invalid value")


def test_file_of_another_arch_is_not_read(tree: Suite) -> None:
    tree.case("normal/a", text=PLAIN)
    tree.file("normal/a/qemu-aarch64.toml", "broken = =")
    assert isinstance(tree.only(), Case)


def test_configuration_that_is_no_file_spoils_its_case(tree: Suite) -> None:
    tree.folder("normal/a/qemu-x86_64.toml")
    assert str(tree.only_broken().error) == "suite/normal/a/qemu-x86_64.toml: is not a file"


def test_unreadable_folder_spoils_its_tree_only(tree: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.case("normal/a")
    tree.case("normal/locked/b")
    real = os.scandir

    def refuse(path: str) -> object:  # tests may run as root, whom no mode keeps out
        if str(path).endswith("/locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = tree.discover()
    a, locked = found.cases
    assert isinstance(a, Case)
    assert isinstance(locked, BrokenCase)
    assert str(locked.error) == "suite/normal/locked: cannot be read: Permission denied"
    assert chosen(found, "locked/b") == ["normal/locked"]
    assert chosen(found, "a") == ["normal/a"]


@pytest.mark.parametrize("name", ["two\nlines", "bell\a", os.fsdecode(b"latin-\xe9")])
def test_unprintable_folder_name_is_refused_by_name(tree: Suite, name: str) -> None:
    tree.case(f"normal/{name}")
    tree.case("normal/a b")
    good, bad = sorted(tree.discover().cases, key=lambda case: isinstance(case, BrokenCase))
    assert isinstance(good, Case)
    assert isinstance(bad, BrokenCase)
    assert bad.display_name.isprintable()
    assert "cannot be printed" in str(bad.error)


# ---- pipelines and subcases


@pytest.mark.parametrize("folder", ["c", "sh", "python", "rust"])
def test_source_folder_decides_the_pipeline(tree: Suite, folder: str) -> None:
    tree.case("normal/a")
    tree.file(f"normal/a/{folder}/x")
    assert tree.only().pipeline == Pipeline(folder)


def test_plain_file_named_like_a_source_folder_is_no_pipeline(tree: Suite) -> None:
    tree.case("normal/a")
    tree.file("normal/a/sh")
    assert tree.only().pipeline is Pipeline.PLAIN


@pytest.mark.parametrize(
    ("grouped", "folders", "named"),
    [
        (False, ("sh", "c"), "c, sh"),
        (True, ("c",), "grouped, c"),
        (True, ("rust", "python", "sh", "c"), "grouped, c, sh, python, rust"),
    ],
)
def test_more_than_one_pipeline_is_an_error_that_names_them_all(
    tree: Suite, grouped: bool, folders: tuple[str, ...], named: str
) -> None:
    workspace = tree.open()
    config = CaseConfig(test_commands=("x",) if grouped else ())
    with pytest.raises(ConfigError, match=f"f: case 'n' has more than one pipeline: {named} \\("):
        resolve_pipeline("n", config, folders, path=workspace.root / "f", workspace=workspace)


def test_two_pipelines_spoil_their_case(tree: Suite) -> None:
    tree.case("normal/a", text=GROUPED)
    tree.file("normal/a/c/CMakeLists.txt")
    assert "more than one pipeline: grouped, c" in str(tree.only_broken().error)


def test_subcases_are_children_with_sources_sorted(tree: Suite) -> None:
    tree.case("normal/g", text=GROUPED)
    for path in ("z/c/CMakeLists.txt", "b/rust/Cargo.toml", "a/sh/x.sh", "d/python/x.py", "docs/readme", "e/f/c/CMakeLists.txt"):
        tree.file(f"normal/g/{path}")
    case = tree.only()
    assert case.pipeline is Pipeline.GROUPED
    assert case.subcases == tuple(
        Subcase(name, case.path / name, kind)
        for name, kind in (("a", Pipeline.SH), ("b", Pipeline.RUST), ("d", Pipeline.PYTHON), ("z", Pipeline.C))
    )


@pytest.fixture
def flat(tree: Suite) -> Suite:
    """A group whose CMake project has its parts in folders with a bare build file, two of them in a category."""
    tree.file(f"normal/qemu/build-{TARGET}.toml")
    tree.case("normal/qemu/system", text=GROUPED)
    for path in ("", "brk/", "futex/", "net/ping/", "net/tcp/", "net/tcp/vendored/"):
        tree.file(f"normal/qemu/system/{path}CMakeLists.txt")
    for path in ("common/helper.h", "scripts/sh/run", "net/readme"):
        tree.file(f"normal/qemu/system/{path}")
    return tree


def test_folders_with_a_bare_build_file_are_subcases_of_a_project(flat: Suite) -> None:
    case = flat.only()
    assert [(one.name, one.kind, one.flat) for one in case.subcases] == [
        ("brk", Pipeline.C, True),
        ("futex", Pipeline.C, True),
        ("net/ping", Pipeline.C, True),
        ("net/tcp", Pipeline.C, True),
        ("scripts", Pipeline.SH, False),
    ]
    assert case.subcases[2].sources == case.path / "net/ping"
    (case.path / "CMakeLists.txt").unlink()
    assert [one.name for one in flat.only().subcases] == ["scripts"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("system/brk", ["qemu/system/brk"]),
        ("qemu/system/brk", ["qemu/system/brk"]),
        ("system/net", ["qemu/system/net/ping", "qemu/system/net/tcp"]),
        ("system/net/tcp", ["qemu/system/net/tcp"]),
        ("system/*/t*", ["qemu/system/net/tcp"]),
        ("system", ["qemu/system"]),
    ],
)
def test_parts_of_a_project_are_selected_by_name(flat: Suite, pattern: str, names: list[str]) -> None:
    assert chosen(flat.discover(), pattern) == names


def test_an_unknown_part_of_a_project_is_told_with_the_nearest(flat: Suite) -> None:
    with pytest.raises(UsageError, match="unknown case 'system/net/tpc'") as e:
        select(flat.discover(), ["system/net/tpc"])
    assert e.value.hint == "did you mean 'system/net/tcp'?"


@pytest.mark.parametrize("place", ["normal/g/a", "normal/g"])
def test_sources_that_are_a_link_to_nothing_spoil_their_case(tree: Suite, place: str) -> None:
    """Such as fetched ones that nobody has fetched: the case without them would run, and what it says would be about nothing."""
    tree.case("normal/g", text=GROUPED)
    tree.file("normal/g/b/sh/x")
    folder = tree.open().suite_root / place
    folder.mkdir(exist_ok=True)
    (folder / "c").symlink_to("../fetched/zlib")
    error = str(tree.only_broken().error)
    assert f"suite/{place}/c: is a link to ../fetched/zlib, and nothing is there" in error
    (folder / "../fetched/zlib").resolve().mkdir(parents=True)
    if place == "normal/g/a":
        assert [subcase.name for subcase in tree.only().subcases] == ["a", "b"]


@pytest.mark.parametrize("place", ["normal/g/a", "normal/g"])
def test_sources_that_git_wrote_as_the_text_of_a_link_spoil_their_case(tree: Suite, place: str) -> None:
    tree.case("normal/g", text=GROUPED)
    tree.file("normal/g/b/sh/x")
    tree.file(f"{place}/c", "../fetched/zlib")
    assert f"suite/{place}/c: is a file in place of a link to ../fetched/zlib" in str(tree.only_broken().error)
    for text in ("../fetched/zlib\n", "#!/bin/sh", "zlib"):
        tree.file(f"{place}/c", text)
        assert [subcase.name for subcase in tree.only().subcases] == ["b"]


def test_children_of_a_case_that_is_not_grouped_are_no_subcases(tree: Suite) -> None:
    tree.case("normal/g")
    tree.file("normal/g/a/c/CMakeLists.txt")
    assert (tree.only().subcases, tree.only().pipeline) == ((), Pipeline.PLAIN)


def test_subcase_with_two_pipelines_is_an_error(tree: Suite) -> None:
    tree.case("normal/g", text=GROUPED)
    tree.file("normal/g/a/c/x")
    tree.file("normal/g/a/sh/x")
    assert "suite/normal/g/a: subcase 'a' has more than one pipeline: c, sh" in str(tree.only_broken().error)


# ---- profiles of a group


PROFILES = GROUPED + 'args = ["-smp", "4"]\n[[grouped_qemu_profiles]]\nname = "usb"\nsubcase_prefix = "usb-"\nconfig = "FILE"\n'


@pytest.mark.parametrize("file", ["qemu-x86_64-usb.toml", "usb.toml"])
def test_subcases_of_a_profile_run_with_its_file(tree: Suite, file: str) -> None:
    tree.case("normal/g", text=PROFILES.replace("FILE", file))
    tree.file(f"normal/g/{file}", 'args = ["-device", "qemu-xhci"]\n')
    tree.file("normal/g/CMakeLists.txt", "${QCASE_GROUPED_C_SUBCASES}")
    for name in ("brk", "usb-audio", "usb-disk"):
        tree.file(f"normal/g/{name}/CMakeLists.txt")
    tree.file("normal/g/usb-script/sh/run")
    rest, usb = tree.discover().cases
    assert isinstance(rest, Case)
    assert isinstance(usb, Case)
    assert [case.display_name for case in (rest, usb)] == ["normal/g", "normal/g-usb"]
    assert [[one.name for one in case.subcases] for case in (rest, usb)] == [["brk"], ["usb-audio", "usb-disk", "usb-script"]]
    assert (rest.config.args, usb.config.args) == (("-smp", "4"), ("-device", "qemu-xhci"))
    assert usb.config.test_commands == rest.config.test_commands
    assert [case.config.cmake for case in (rest, usb)] == [
        ("-DQCASE_GROUPED_C_SUBCASES=brk",),
        ("-DQCASE_GROUPED_C_SUBCASES=usb-audio;usb-disk",),
    ]
    assert chosen(tree.discover(), "g") == ["normal/g", "normal/g-usb"]
    for case, needed in ((rest, {"qemu-x86_64.toml"}), (usb, {"qemu-x86_64.toml", file})):
        made_of = of_case(case, tree.open(), {}) - other_configurations(case)
        assert {
            path.name for path in made_of if path.parent == case.path and path.name.endswith(("usb.toml", "64.toml"))
        } == needed
    assert chosen(tree.discover(), "g/usb-disk") == ["normal/g-usb/usb-disk"]
    assert [e.display_name for e in catalogue(tree.open()).groups["normal"]] == ["normal/g", "normal/g-usb"]


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda tree: (tree.root / "suite/normal/g/usb.toml").unlink(), "the profile 'usb' has no file 'usb.toml'"),
        (
            lambda tree: (tree.root / "suite/normal/g/usb-disk/CMakeLists.txt").unlink(),
            "no subcase is left for the profile 'usb'",
        ),
        (lambda tree: tree.file("normal/g/CMakeLists.txt", "all"), "CMakeLists.txt does not read QCASE_GROUPED_C_SUBCASES"),
        (lambda tree: tree.file("normal/g/usb.toml", "args = 5"), "args: must be an array"),
    ],
)
def test_a_profile_that_cannot_run_is_an_error_and_no_silence(tree: Suite, spoil: Callable[[Suite], object], what: str) -> None:
    tree.case("normal/g", text=PROFILES.replace("FILE", "usb.toml"))
    tree.file("normal/g/usb.toml")
    tree.file("normal/g/CMakeLists.txt", "${QCASE_GROUPED_C_SUBCASES}")
    for name in ("brk", "usb-disk"):
        tree.file(f"normal/g/{name}/CMakeLists.txt")
    assert len(tree.discover().cases) == 2
    spoil(tree)
    assert what in str(tree.only_broken().error)


def test_a_command_that_no_profile_has_is_no_silence(tree: Suite) -> None:
    tree.case("normal/g", text=PROFILES.replace("FILE", "usb.toml"))
    tree.file("normal/g/usb-disk/sh/run")
    tree.file("normal/g/usb.toml")
    assert tree.names() == ["normal/g-usb"]
    tree.file("normal/g/usb.toml", 'test_commands = ["/usr/bin/usb-disk"]\n')
    assert "no file of theirs has the command" in str(tree.only_broken().error)
    tree.file("normal/g/brk/sh/run")
    assert tree.names() == ["normal/g", "normal/g-usb"]


# ---- several suites


SUITES = """
[suite]
root = "suite"

[suites.arceos]
root = "arceos"
default_group = "*"
grouped = { prefix = "ARCEOS" }

[suites.arceos.guest.aarch64]
hostname = "ace"

[grouped]
prefix = "STARRY"

[guest.x86_64]
hostname = "starry"
"""


def test_each_suite_of_a_workspace_has_its_cases_and_its_tables(tree: Suite) -> None:
    (tree.root / "qcase.toml").write_text(SUITES)
    tree.case("normal/a")
    tree.file(f"../arceos/normal/build-{TARGET}.toml")
    for path in ("normal/a", "rust"):
        tree.case(f"../arceos/{path}")
    main = tree.open()
    other = main.of_suite("arceos")
    assert (main.config.grouped.prefix, main.config.guest[Arch.X86_64].hostname) == ("STARRY", "starry")
    assert (other.config.grouped.prefix, other.config.suite.name) == ("ARCEOS", "arceos")
    assert [other.config.guest[arch].hostname for arch in (Arch.X86_64, Arch.AARCH64)] == ["starry", "ace"]
    assert [one.suite for one in main.suites] == ["", "arceos"]
    assert tree.names() == ["normal/a"]
    found = discover(other, Arch.X86_64, TARGET)
    assert [case.display_name for case in found.cases] == ["arceos/normal/a", "arceos/rust"]
    assert [case.display_name for case in discover(other, Arch.X86_64, TARGET, "normal").cases] == ["arceos/normal/a"]
    for name in ("arceos/normal/a", "normal/a", "a"):
        assert chosen(found, name) == ["arceos/normal/a"]
    assert [e.display_name for entries in catalogue(other).groups.values() for e in entries] == ["arceos/normal/a", "arceos/rust"]
    with pytest.raises(UsageError, match="there is no suite 'ax'") as e:
        main.of_suite("ax")
    assert e.value.hint == "there are: arceos"


def test_a_fault_in_the_table_of_a_suite_has_its_place(tree: Suite) -> None:
    (tree.root / "qcase.toml").write_text(SUITES.replace('hostname = "ace"', 'hostnam = "ace"').replace("default_group", "group"))
    with pytest.raises(ConfigError) as e:
        tree.open()
    assert "suites.arceos.group: unknown key (did you mean 'grouped'?)" in str(e.value)
    assert "suites.arceos.guest.aarch64.hostnam: unknown key (did you mean 'hostname'?)" in str(e.value)


# ---- .ignore


def test_cases_of_an_ignore_file_run_only_by_name(tree: Suite) -> None:
    for path in ("normal/a", "normal/heavy/b", "normal/heavy/x", "normal/d"):
        tree.case(path)
    (tree.root / ".ignore").write_text("# left out\n\nsuite/normal/heavy/\n/suite/normal/none\n")
    tree.file(".ignore", "normal/[d-e]\n")
    found = tree.discover()
    assert chosen(found) == ["normal/a"]
    assert chosen(found, "heavy") == ["normal/heavy/b", "normal/heavy/x"]
    assert chosen(found, "d", "a") == ["normal/a", "normal/d"]
    chosen_now = case_filters.choose(tree.open(), found, [], case_filters.Filters())
    assert chosen_now.note == "3 of 4 cases on x86_64 are not run, as `.ignore` says: name them to run them"
    assert case_filters.choose(tree.open(), found, ["d"], case_filters.Filters()).note == ""


def test_what_a_run_without_names_leaves_out_is_told_with_its_reason(tree: Suite) -> None:
    tree.case("normal/a")
    tree.case("normal/b", "aarch64")
    tree.case("normal/g", "riscv64")
    tree.case("normal/d")
    tree.case("normal/none", "vax")
    tree.file("normal/smp/build-other-target.toml")
    tree.case("normal/smp/e")
    (tree.root / ".ignore").write_text("suite/normal/d\n")
    workspace = tree.open()

    def left_out(*arches: Arch) -> list[str]:
        found = [discover(workspace, arch, arch.default_target) for arch in arches]
        cases = [case for one in found for case in case_filters.choose(workspace, one, [], case_filters.Filters()).cases]
        return [f"{one.case} {one.why}" for one in not_run(found, cases)]

    target = Arch.X86_64.default_target
    here = ["normal/d in .ignore", "normal/none for no architecture", f"smp/e without a build-{target}.toml"]
    others = ["normal/b for aarch64 alone", "normal/g for riscv64 alone"]
    assert left_out(Arch.X86_64) == sorted([*here, *others])
    assert left_out(Arch.X86_64, Arch.AARCH64) == sorted([*here, others[1]])


def test_cases_for_other_targets_are_told_as_not_run(tree: Suite) -> None:
    tree.case("normal/a")
    tree.file("normal/smp/build-other-target.toml")
    tree.case("normal/smp/b")
    tree.case("normal/smp/c", "aarch64")
    note = case_filters.choose(tree.open(), tree.discover(), [], case_filters.Filters()).note
    assert note == f"there is 1 case on x86_64 that no build-{TARGET}.toml is for, not run: smp/b"
    assert case_filters.choose(tree.open(), tree.discover(), ["a"], case_filters.Filters()).note == ""


# ---- a suite outside of the workspace


def test_build_configurations_of_a_suite_outside_of_the_workspace_are_found(tree: Suite, tmp_path: Path) -> None:
    tree.file(f"normal/smp/build-{TARGET}.toml")
    tree.case("normal/smp/a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/qcase.toml").write_text('[suite]\nroot = "../suite"\n')
    workspace = Workspace.open(tmp_path / "elsewhere")
    (case,) = discover(workspace, Arch.X86_64, TARGET).cases
    found = [path for path in build_configurations(case, workspace, TARGET) if path.is_file()]
    assert found == [tmp_path.resolve() / f"suite/normal/smp/build-{TARGET}.toml"]
    assert all(path.is_relative_to(tmp_path.resolve() / "suite") for path in build_configurations(case, workspace, TARGET))


# ---- a matrix


MATRIX = PLAIN + "".join(f'[[qcase.matrix]]\nname = "{name}"\nsmp = {n}\n' for n, name in ((1, "up"), (4, "smp")))


def test_each_machine_of_a_matrix_is_a_case(tree: Suite) -> None:
    tree.case("normal/a", text=MATRIX)
    tree.case("normal/a", "aarch64")
    tree.case("normal/ab")
    up, smp, _ = sorted(tree.discover().cases, key=lambda case: case.name != "a-up")
    assert isinstance(smp, Case)
    assert [case.display_name for case in tree.discover().cases] == ["normal/a-smp", "normal/a-up", "normal/ab"]
    assert (smp.config.smp, smp.config.args) == (4, ("-smp", "4"))
    assert smp.path == up.path
    for pattern, names in (
        ("a", ["normal/a-smp", "normal/a-up"]),
        ("a-up", ["normal/a-up"]),
        ("normal/a", ["normal/a-smp", "normal/a-up"]),
    ):
        assert chosen(tree.discover(), pattern) == names
    assert tree.names(Arch.AARCH64) == ["normal/a"]
    shown = [e.display_name for e in named(catalogue(tree.open()), ["a"]).groups["normal"]]
    assert shown == ["normal/a", "normal/a-smp", "normal/a-up"]
    assert [line.strip(" │├└─") for line in tree.list()][2:] == [
        "a  plain  aarch64",
        "a-smp  plain  x86_64",
        "a-up  plain  x86_64",
        "ab  plain  x86_64",
    ]


def test_a_machine_of_a_matrix_and_a_variant_of_one_name_are_an_error(tree: Suite) -> None:
    tree.case("normal/a", text=MATRIX)
    tree.file("normal/a/qemu-x86_64-up.toml", PLAIN)
    (broken,) = (case for case in tree.discover().cases if isinstance(case, BrokenCase))
    assert "two cases are called 'normal/a-up'" in str(broken.error)


def test_a_group_in_a_matrix_has_parts_on_each_machine(tree: Suite) -> None:
    tree.case("normal/g", text=GROUPED + MATRIX)
    tree.file("normal/g/one/sh/one")
    assert chosen(tree.discover(), "g/one") == ["normal/g-smp/one", "normal/g-up/one"]
    assert chosen(tree.discover(), "g-up/one") == ["normal/g-up/one"]
    (part,) = select(discover(tree.open(), Arch.X86_64, TARGET, "n*"), ["g-up/one"])
    assert isinstance(part, Case)
    assert (part.display_name, part.stored_as, part.stored_whole) == ("normal/g-up/one", "normal/g-up/one", "normal/g-up")


# ---- selection


@pytest.fixture
def net(tree: Suite) -> Suite:
    tree.file(f"normal/smp1/build-{TARGET}.toml")
    tree.file(f"normal/smp4/build-{TARGET}.toml")
    for path in ("smp1/net/ping", "smp1/net/tcp", "smp1/network", "smp4/net/ping", "smp4/fs"):
        tree.case(f"normal/{path}")
    tree.case("normal/smp1/arm", "aarch64", "riscv64")
    return tree


def test_without_patterns_all_cases_of_the_arch_are_meant(net: Suite) -> None:
    assert chosen(net.discover()) == ["smp1/net/ping", "smp1/net/tcp", "smp1/network", "smp4/fs", "smp4/net/ping"]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (("network",), ["smp1/network"]),
        (("net",), ["smp1/net/ping", "smp1/net/tcp", "smp4/net/ping"]),
        (("net/",), ["smp1/net/ping", "smp1/net/tcp", "smp4/net/ping"]),
        (("net/ping",), ["smp1/net/ping", "smp4/net/ping"]),
        (("smp4/net/ping",), ["smp4/net/ping"]),
        (("smp4",), ["smp4/fs", "smp4/net/ping"]),
        (("smp1/net",), ["smp1/net/ping", "smp1/net/tcp"]),
        (("net/*",), ["smp1/net/ping", "smp1/net/tcp", "smp4/net/ping"]),
        (("smp?/net/p*",), ["smp1/net/ping", "smp4/net/ping"]),
        (("*/ping",), ["smp1/net/ping", "smp4/net/ping"]),
        (("n[e]t",), ["smp1/net/ping", "smp1/net/tcp", "smp4/net/ping"]),
        (("fs", "network", "fs"), ["smp1/network", "smp4/fs"]),
    ],
)
def test_patterns_select(net: Suite, patterns: tuple[str, ...], names: list[str]) -> None:
    assert chosen(net.discover(), *patterns) == names


def test_name_with_a_bracket_is_taken_literally_too(tree: Suite) -> None:
    tree.case("normal/odd[1]")
    assert chosen(tree.discover(), "odd[1]") == ["normal/odd[1]"]


@pytest.mark.parametrize(
    ("pattern", "what"), [("/net", "absolute"), ("../x", r"'\.\.'"), ("net/../fs", r"'\.\.'"), ("./fs", r"'\.'"), ("", "empty")]
)
def test_paths_that_leave_the_suite_are_refused(net: Suite, pattern: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        select(net.discover(), [pattern])


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("netwrk", "did you mean 'network'?"),
        ("smp1/netwrk", "did you mean 'smp1/network'?"),
        ("zzzzz", "`qcase list` shows them all"),
        ("net/pin", "did you mean 'net/ping'?"),
    ],
)
def test_unknown_case_suggests_the_nearest(net: Suite, pattern: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"unknown case '{pattern}' in group 'normal'") as e:
        select(net.discover(), [pattern])
    assert e.value.hint == hint


def test_one_unknown_pattern_among_good_ones_is_an_error(net: Suite) -> None:
    with pytest.raises(UsageError, match="no case matches 'z\\*' in group 'normal'"):
        select(net.discover(), ["fs", "z*"])


@pytest.mark.parametrize("pattern", ["arm", "smp1/arm", "ar*"])
def test_case_for_other_arches_says_for_which(net: Suite, pattern: str) -> None:
    with pytest.raises(UsageError, match="is not for x86_64") as e:
        select(net.discover(), [pattern])
    assert e.value.hint == "it is for aarch64, riscv64"


def test_case_without_this_arch_is_passed_over(net: Suite) -> None:
    assert "smp1/arm" not in net.names()
    assert [(case.display_name, case.arches) for case in net.discover().others] == [("smp1/arm", (Arch.AARCH64, Arch.RISCV64))]


@pytest.mark.parametrize("patterns", [(), ("zzz",)])
def test_nothing_at_all_for_this_arch_says_for_which_there_is(tree: Suite, patterns: tuple[str, ...]) -> None:
    tree.case("normal/a", "aarch64")
    found = tree.discover(Arch.RISCV64)
    if patterns:
        with pytest.raises(UsageError, match="unknown case 'zzz'"):
            select(found, patterns)
        return
    with pytest.raises(UsageError, match="group 'normal' has no case for riscv64") as e:
        select(found, patterns)
    assert e.value.hint == "there are cases for aarch64"


@pytest.mark.parametrize("patterns", [(), ("a",)])
def test_empty_group_says_so(tree: Suite, patterns: tuple[str, ...]) -> None:
    tree.folder("normal")
    with pytest.raises(UsageError, match="has no case for x86_64, nor for any other architecture"):
        select(tree.discover(), patterns)


def test_nothing_for_this_target_says_for_which_there_is(tree: Suite) -> None:
    tree.file("normal/g/build-other-target.toml")
    tree.case("normal/g/a")
    with pytest.raises(UsageError, match=f"no case for x86_64 and {TARGET}") as e:
        select(tree.discover(), ())
    assert e.value.hint == "there are cases for the target other-target"


def test_broken_case_can_be_selected_and_left_out(net: Suite) -> None:
    net.case("normal/smp4/bad", text="= =")
    (bad,) = select(net.discover(), ["bad"])
    assert isinstance(bad, BrokenCase)
    (fs,) = select(net.discover(), ["fs"])
    assert isinstance(fs, Case)


# ---- listing


def test_listing_is_a_tree_of_everything(net: Suite) -> None:
    net.case("normal/smp4", "riscv64")
    net.file("normal/smp1/net/tcp/c/CMakeLists.txt")
    net.file("normal/arm/build-whatever.toml")
    net.case("normal/arm/g", "aarch64", "x86_64", text=GROUPED)
    net.file("normal/arm/g/one/c/CMakeLists.txt")
    net.file("normal/arm/g/two/sh/x")
    net.case("normal/bad", text="= 1\n")
    net.case("normal/bad", "aarch64")
    net.file("stress/mixed/sh/x")
    net.case("stress/mixed", "x86_64")
    net.case("stress/mixed", "aarch64", text=GROUPED)
    net.folder("void")
    net.file("normal/odd/qemu-mips.toml")
    assert net.list() == [
        "demo",
        "├── normal",
        "│   ├── arm  build group",
        "│   │   └── g  grouped  x86_64, aarch64",
        "│   │       ├── one  c",
        "│   │       └── two  sh",
        "│   ├── bad  plain  aarch64; broken  x86_64",
        "│   │       x86_64: suite/normal/bad/qemu-x86_64.toml:1: is not TOML: Invalid statement, column 1",
        "│   ├── odd  for no known architecture",
        "│   ├── smp1  build group",
        "│   │   ├── arm  plain  aarch64, riscv64",
        "│   │   ├── net/ping  plain  x86_64",
        "│   │   ├── net/tcp  c  x86_64",
        "│   │   └── network  plain  x86_64",
        "│   └── smp4  build group  plain  riscv64",
        "│       ├── fs  plain  x86_64",
        "│       └── net/ping  plain  x86_64",
        "├── stress",
        "│   └── mixed  sh  x86_64; broken  aarch64",
        "│           aarch64: suite/stress/mixed/qemu-aarch64.toml: case 'stress/mixed' has more than one pipeline: grouped, sh "
        "(keep one of test_commands, c/, sh/, python/ and rust/)",
        "└── void  no cases",
    ]
    assert [w.file for w in catalogue(net.open()).warnings] == ["suite/normal/odd/qemu-mips.toml"]


def test_listing_of_one_group(net: Suite) -> None:
    net.case("stress/a")
    assert net.list("stress") == ["demo", "└── stress", "    └── a  plain  x86_64"]
    with pytest.raises(UsageError, match="unknown group 'x'"):
        net.list("x")


# ---- one pass


def test_every_folder_is_read_once(net: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = os.scandir

    def count(path: str) -> Iterator[os.DirEntry[str]]:
        read.append(str(path))
        return real(path)

    workspace = net.open()
    monkeypatch.setattr(os, "scandir", count)
    discover(workspace, Arch.X86_64, TARGET)
    assert len(read) == len(set(read))
    assert len(read) == 1 + 1 + 2 + 6 + 2  # root, group, build groups, cases, the two folders `net`
