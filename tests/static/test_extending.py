"""The plug-ins of docs/extending.md, installed beside qcase as a distribution of its own."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli

from qcase import events, plugins
from qcase.arch import Arch
from qcase.config.load import load_workspace_config
from qcase.config.workspace_file import BUILT_IN_GUESTS
from qcase.errors import ConfigError, UsageError
from qcase.guests import guest
from qcase.host.trees import Tree
from qcase.inputs import trust
from qcase.model import CaseResult, Fault, Pipeline, Verdict
from qcase.pipelines import group_installs
from qcase.pipelines.registry import PIPELINES
from qcase.report import added
from qcase.suite import cases, completion, discover
from qcase.toolchains import recipes
from tests import toys
from tests.processes.test_ext4 import mkfs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r'^```(?:toml|python) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def ignore(_: object) -> None:
    """Nobody listens."""


Install = Callable[..., Path]
# What qcase makes an initramfs of: a kernel with all drivers built in, and a program of no segments.
BARE_ROOT = {
    "lib/modules/1.0/modules.dep": "",
    "lib/modules/1.0/modules.builtin": "".join(
        f"kernel/{name}.ko\n" for name in ("virtio_pci", "virtio_mmio", "virtio_blk", "ext4", "virtio_net")
    ),
}
STATIC_PROGRAM = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, 0, 0, 64, 56, 0, 64, 0, 0)


def blocks() -> dict[str, str]:
    """The files of the page by name; the parts of one file are joined."""
    found: dict[str, str] = {}
    for name, text in BLOCK.findall(PAGE):
        found[name] = found.get(name, "") + text
    return found


def write(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def make(site: Path, files: dict[str, str], name: str = "qcase-toys") -> Path:
    """Lay out an installed distribution, as pip does."""
    entries = tomli.loads(files.get("pyproject.toml", ""))["project"]["entry-points"]
    write(site, files)
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = (f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in items.items()) for group, items in entries.items())
    (info / "entry_points.txt").write_text("\n".join(groups))
    return site


def forget() -> None:
    plugins.forget()
    cases.source_folders.cache_clear()
    PIPELINES.forget()
    for module in [name for name in sys.modules if name.startswith(("qcase_toys", "qcase_zig", "broken_toys"))]:
        del sys.modules[module]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    def install(files: dict[str, str] | None = None, name: str = "qcase-toys") -> Path:
        site = make(tmp_path / f"site-{name}", blocks() if files is None else files, name)
        monkeypatch.syspath_prepend(site)
        forget()
        return site

    yield install
    monkeypatch.undo()
    forget()


def entry(group: str, line: str) -> dict[str, str]:
    return {"pyproject.toml": f'[project.entry-points."qcase.{group}"]\n{line}\n'}


def workspace(root: Path, config: str = "") -> Path:
    case = root / "suite" / "normal" / "greet"
    (case / "copy").mkdir(parents=True)
    (case / "copy" / "greet").write_text("#!/bin/sh\necho 'PASS: greet'\n")
    (case / "qemu-x86_64.toml").write_text("shell_prefix = '#'\nshell_init_cmd = 'greet'\nsuccess_regex = ['^PASS: greet$']\n")
    (root / "qcase.toml").write_text(f'[suite]\nroot = "suite"\n{config}')
    return root


def qcase(site: Path, root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": f"{site}:{ROOT}"}
    return subprocess.run([sys.executable, "-m", "qcase", *words], cwd=root, env=environ, capture_output=True, text=True)


def test_a_case_with_the_folder_is_of_the_pipeline(install: Install, tmp_path: Path) -> None:
    install()
    opened = cases.Workspace.open(workspace(tmp_path / "w"))
    (case,) = discover.discover(opened, Arch.X86_64, Arch.X86_64.default_target).cases
    assert isinstance(case, cases.Case)
    assert case.pipeline is Pipeline("copy")
    assert case.pipeline == "copy"
    (tmp_path / "overlay").mkdir()
    context: Any = type("Context", (), {"case": "greet"})
    PIPELINES[case.pipeline].build(Tree(case.path), Tree(tmp_path / "overlay"), context)
    program = tmp_path / "overlay" / "usr" / "bin" / "greet"
    assert program.read_text() == (case.path / "copy" / "greet").read_text()
    assert program.stat().st_mode & 0o777 == 0o755


def test_without_the_distribution_the_folder_means_nothing(tmp_path: Path) -> None:
    opened = cases.Workspace.open(workspace(tmp_path / "w"))
    (case,) = discover.discover(opened, Arch.X86_64, Arch.X86_64.default_target).cases
    assert isinstance(case, cases.Case)
    assert case.pipeline is Pipeline.PLAIN
    assert list(PIPELINES) == [Pipeline.C, Pipeline.SH, Pipeline.PYTHON, Pipeline.RUST]


def test_commands_know_the_pipeline(install: Install, tmp_path: Path) -> None:
    site, root = install(), workspace(tmp_path / "w")
    assert "greet" in qcase(site, root, "list", "--pipeline", "copy").stdout
    made = qcase(site, root, "new", "other", "--pipeline", "copy", "--arch", "x86_64")
    assert made.returncode == 0, made.stderr
    assert (root / "suite/normal/other/copy/other").stat().st_mode & 0o111
    checked = qcase(site, root, "lint")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    config = root / "suite/normal/other/qemu-x86_64.toml"
    config.write_text(config.read_text().replace('shell_init_cmd = "other', 'shell_init_cmd = "another-one'))
    (root / "suite/normal/greet/copy/greet").rename(root / "suite/normal/greet/copy/renamed")
    assert "the command names no program that the case installs (renamed)" in qcase(site, root, "lint").stdout
    unknown = qcase(site, root, "list", "--pipeline", "cop")
    assert unknown.returncode == 2
    assert "did you mean 'copy'?" in unknown.stderr


def test_several_folders_are_an_error_that_names_all(install: Install, tmp_path: Path) -> None:
    install()
    root = workspace(tmp_path / "w")
    (root / "suite/normal/greet/sh").mkdir()
    (broken,) = discover.discover(cases.Workspace.open(root), Arch.X86_64, Arch.X86_64.default_target).cases
    assert isinstance(broken, cases.BrokenCase)
    assert "more than one pipeline: sh, copy" in str(broken.error)
    assert isinstance(broken.error, ConfigError)
    assert broken.error.problems[0].hint == "keep one of test_commands, c/, sh/, python/, rust/ and copy/"


def test_a_toolchain_table_of_the_pipelines_name(install: Install, tmp_path: Path) -> None:
    image = f"copy@sha256:{'0' * 64}"
    root = workspace(tmp_path / "w", f'[toolchain.copy]\nimage = "{image}"\n')
    with pytest.raises(ConfigError, match="unknown key"):
        load_workspace_config(root / "qcase.toml")
    install()
    loaded = load_workspace_config(root / "qcase.toml")
    assert loaded.toolchain.image("copy") == image
    assert loaded.toolchain.image("c") is None
    (root / "qcase.toml").write_text('[toolchain.copy]\nimage = "copy"\nimagee = 1\n[toolchain.cop]\n')
    with pytest.raises(ConfigError) as caught:
        load_workspace_config(root / "qcase.toml")
    found = [problem.key for problem in caught.value.problems]
    assert found == [
        "toolchain.copy.image",
        "toolchain.copy.imagee",
        "toolchain.cop",
    ]


def test_the_schema_has_the_tables_and_guests_of_plug_ins(install: Install, tmp_path: Path) -> None:
    site, root = install(), workspace(tmp_path / "w")
    written = json.loads(qcase(site, root, "schema", "qcase").stdout)
    definitions = written["$defs"]
    tables = definitions[written["properties"]["toolchain"]["$ref"].rpartition("/")[2]]["properties"]
    assert tables["copy"]["description"] == "The tools of the pipeline `copy`."
    assert definitions["GuestConfig"]["properties"]["rootfs"]["description"].startswith('"alpine", "debian", "tiny", a path')
    jsonschema.validate({"toolchain": {"copy": {"image": f"x@sha256:{'0' * 64}"}}}, written)
    assert "[toolchain.copy]" in qcase(site, root, "schema", "qcase", "--toml").stdout
    # Whoever has no plug-in reads what `qcase init` wrote.
    (tmp_path / "new").mkdir()
    assert qcase(site, tmp_path / "new", "init").returncode == 0
    assert "[toolchain.copy]" not in (tmp_path / "new/qcase.toml").read_text()


def test_hints_name_the_guests_of_plug_ins(install: Install, tmp_path: Path) -> None:
    install()
    root = workspace(tmp_path / "w", '[guest.x86_64]\nrootfs = ""\n')
    with pytest.raises(ConfigError, match='must be "alpine", "debian", "tiny", a path, or'):
        load_workspace_config(root / "qcase.toml")


def test_a_strangers_image_for_a_plug_ins_steps_is_refused(install: Install, tmp_path: Path) -> None:
    """They may have a network."""
    install()
    root = workspace(tmp_path / "w", f'[toolchain.copy]\nimage = "x@sha256:{"0" * 64}"\n[run]\ntrust = "sandboxed"\n')
    with pytest.raises(ConfigError, match=r"toolchain\.copy\.image"):
        trust.check(cases.Workspace.open(root))


def test_a_group_leaves_out_a_subcase_by_the_proof_of_its_pipeline(install: Install, tmp_path: Path) -> None:
    install()
    group = tmp_path / "group"
    write(group, {"one/copy/greet": "#!/bin/sh\n", "two/copy/other": "#!/bin/sh\n"})
    kind = Pipeline("copy")
    assert group_installs.programs(kind, group / "one") == frozenset({"greet"})
    assert group_installs.cannot_matter(["other --now"], "one", kind, group)
    assert not group_installs.cannot_matter(["greet --now"], "one", kind, group)
    assert set(group_installs.scripts({"one": kind, "two": kind}, group)) == {"greet", "other"}


def test_the_recipe_of_a_plug_ins_image_is_one_like_all_others(install: Install) -> None:
    top = toys.TOYS / "zig"
    site = install({str(path.relative_to(top)): path.read_text() for path in top.rglob("*") if path.is_file()}, "qcase-zig")
    assert recipes.names() == ["alpine", "c", "rust", "zig"]
    folder = recipes.folder_of("zig")
    assert folder == site / "qcase_zig/images/zig"
    assert recipes.base_definition(folder).image == "c"
    before = recipes.recipe_digest("zig")
    (folder / "zig").write_text("#!/bin/sh\n")
    assert recipes.recipe_digest("zig") != before
    assert PIPELINES[Pipeline("zig")].template is not None


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('copy = "qcase_gone:SPEC"', "cannot be loaded: ModuleNotFoundError: No module named 'qcase_gone'"),
        ('copy = "json:SPEC"', "cannot be loaded: AttributeError"),
        ('copy = "json:dumps"', "json:dumps is function, and must be PipelineSpec"),
        ('Copy = "json:dumps"', "its name must consist of a-z"),
        ('rust = "json:dumps"', "qcase has a pipeline of this name itself"),
    ],
)
def test_a_broken_plug_in_is_one_error_that_names_its_distribution(install: Install, line: str, what: str) -> None:
    install(entry("pipelines", line), "broken-toys")
    with pytest.raises(UsageError) as caught:
        PIPELINES[Pipeline("copy")]
    assert caught.value.what.startswith(what)
    assert caught.value.where.startswith("broken-toys 1.0, entry point")


# Each plug-in here is of one distribution, `broken-toys`, with one module.
HEAD = """
import sys
from pathlib import Path
from qcase.arch import Arch
from qcase.guests.guest import GuestSpec
from qcase.pipelines.pipeline import PipelineSpec

def boom(*_):
    raise KeyError("boom")

def leave(*_):
    sys.exit(0)

def build(source, overlay, context):
    pass

def make(arch, folder, making):
    pass
"""


def broken(install: Install, group: str, name: str, text: str) -> Path:
    forget()
    return install(entry(group, f'{name} = "broken_toys:IT"') | {"broken_toys.py": f"{HEAD}IT = {text}\n"}, "broken-toys")


@pytest.mark.parametrize(
    ("text", "words", "what"),
    [
        ("leave()", ["explain", "greet"], "cannot be loaded: SystemExit: 0 (broken_toys.py:12)"),
        ('PipelineSpec(name="copy", recipe=1, bild=build)', ["lint"], "cannot be loaded: TypeError"),
        ('PipelineSpec(name="other", recipe=1, build=build)', ["lint"], "describes one that is named other"),
        ('PipelineSpec(name="copy", recipe=None, build=build)', ["lint"], "IT.recipe is None, and must be int or str"),
        ('PipelineSpec(name="copy", recipe=1, build=7)', ["lint"], "IT.build is 7, and must be a function"),
        ('PipelineSpec(name="copy", recipe=1, build=build, packages="gcc")', ["lint"], "must be a tuple of strings"),
        ('PipelineSpec(name="copy", recipe=1, build=build, programs=boom)', ["lint"], "programs failed: KeyError: 'boom'"),
        ('PipelineSpec(name="copy", recipe=1, build=build, programs=leave)', ["lint"], "programs failed: SystemExit: 0"),
        ('PipelineSpec(name="copy", recipe=1, build=build, programs=str)', ["lint"], "programs returned str: it must be"),
        (
            'PipelineSpec(name="copy", recipe=1, build=build, settings=boom)',
            ["explain", "greet"],
            "settings failed: KeyError: 'boom' (broken_toys.py:9)",
        ),
        (
            'PipelineSpec(name="copy", recipe=1, build=build, settings=lambda *_: {"x": object()})',
            ["explain", "greet"],
            "settings returned dict: <object",
        ),
        (
            'PipelineSpec(name="copy", recipe=1, build=build, template=lambda name: 7)',
            ["new", "other", "--pipeline", "copy"],
            "template returned int: cannot unpack",
        ),
    ],
)
def test_a_fault_of_a_pipeline_is_one_error_of_its_distribution(
    install: Install, tmp_path: Path, text: str, words: list[str], what: str
) -> None:
    site, root = broken(install, "pipelines", "copy", text), workspace(tmp_path / "w")
    done = qcase(site, root, *words)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "error: broken-toys 1.0, entry point copy of qcase.pipelines: " in said
    assert what in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('GuestSpec(name="other", entries=dict, make=make)', "describes one that is named other"),
        ('GuestSpec(name="tiny", entries=boom, make=make)', "entries failed: KeyError: 'boom'"),
        ('GuestSpec(name="tiny", entries=lambda: 7, make=make)', "entries returned int"),
        ('GuestSpec(name="tiny", entries=lambda: {Arch.X86_64: "tiny-../../../x"}, make=make)', "is no name of an entry: tiny-"),
        ('GuestSpec(name="tiny", entries=lambda: {Arch.X86_64: "alpine-3-x86_64"}, make=make)', "is no name of an entry: tiny-"),
        ('GuestSpec(name="tiny", entries=lambda: {"z80": "tiny-1"}, make=make)', "'z80' is not a valid Arch"),
        ('GuestSpec(name="tiny", entries=lambda: {Arch.X86_64: "tiny-1"}, make=boom)', "make failed: KeyError: 'boom'"),
    ],
)
def test_a_fault_of_a_guest_is_one_error_of_its_distribution(install: Install, tmp_path: Path, text: str, what: str) -> None:
    broken(install, "guests", "tiny", text)
    with pytest.raises(UsageError) as caught:
        guest.built_in("tiny", Arch.X86_64, tmp_path / "store", emit=ignore)
    assert what in caught.value.what
    assert caught.value.where == "broken-toys 1.0, entry point tiny of qcase.guests"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("7", "broken_toys:IT is int, and must be a function"),
        ("boom", "broken_toys:IT failed: KeyError: 'boom'"),
        ("make", "broken_toys:IT failed: TypeError"),
        ("print", "broken_toys:IT returned NoneType, and must return a listener"),
    ],
)
def test_a_fault_of_a_report_is_one_error_of_its_distribution(install: Install, tmp_path: Path, text: str, what: str) -> None:
    broken(install, "reports", "lines", text)
    with pytest.raises(UsageError) as caught:
        added.listener(f"lines={tmp_path / 'out.txt'}")
    assert caught.value.what.startswith(what)
    assert caught.value.where == "broken-toys 1.0, entry point lines of qcase.reports"


def test_a_fault_of_a_listener_is_an_error_of_its_distribution(install: Install, tmp_path: Path) -> None:
    broken(install, "reports", "lines", "lambda path: boom")
    listen = added.listener(f"lines={tmp_path / 'out.txt'}")
    with pytest.raises(UsageError, match="the listener of broken_toys:IT failed: KeyError: 'boom'"):
        listen(events.Progress("anything"))


@pytest.mark.parametrize(("group", "name"), [("pipelines", "alpine"), ("pipelines", "host"), ("guests", "initramfs")])
def test_names_with_another_meaning_are_refused(install: Install, group: str, name: str) -> None:
    broken(install, group, name, "7")
    with pytest.raises(UsageError, match="its name means something of qcase itself"):
        plugins.names(f"qcase.{group}", ())


def test_the_keys_cover_the_distribution_and_its_code(install: Install) -> None:
    """Two distributions with a pipeline of one name, or two versions of one, do not take each other's results."""
    text = 'PipelineSpec(name="copy", recipe=1, build=build)'
    site = broken(install, "pipelines", "copy", text)
    first = PIPELINES.plugin(Pipeline("copy"))
    assert first is not None
    assert first["distribution"] == "broken-toys 1.0"
    (site / "broken_toys.py").write_text(f"{HEAD}# another build\nIT = {text}\n")
    forget()
    second = PIPELINES.plugin(Pipeline("copy"))
    assert second is not None
    assert second["files"] != first["files"]
    assert all(PIPELINES.plugin(one) is None for one in Pipeline)


def test_the_files_of_a_package_are_all_of_its_identity(install: Install) -> None:
    site = install()
    before = PIPELINES.plugin(Pipeline("copy"))
    write(site, {"qcase_toys/part/helper.py": "NEW = 1\n"})
    forget()
    assert PIPELINES.plugin(Pipeline("copy")) != before


def test_a_recipe_that_is_its_own_base_is_an_error(install: Install) -> None:
    site = broken(
        install, "pipelines", "copy", 'PipelineSpec(name="copy", recipe=1, build=build, recipes=Path(__file__).parent / "images")'
    )
    write(site, {"images/copy/Containerfile": "FROM x\n", "images/copy/base.toml": '[base]\nimage = "copy"\n'})
    with pytest.raises(UsageError, match="its base is itself: copy → copy"):
        recipes.recipe_digest("copy")


def test_the_current_folder_brings_no_plug_ins(tmp_path: Path) -> None:
    """`python -m` looks for modules there first, and it is a workspace, perhaps a stranger's."""
    root = make(workspace(tmp_path / "w"), entry("pipelines", 'copy = "planted:SPEC"') | {"tomli.py": "raise SystemExit(77)\n"})
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "qcase", "list"], cwd=root, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "plain" in done.stdout


def test_a_broken_plug_in_stops_only_who_uses_it(install: Install, tmp_path: Path) -> None:
    site = install(entry("pipelines", 'other = "qcase_gone:SPEC"'))
    root = workspace(tmp_path / "w")
    assert qcase(site, root, "list").returncode == 0
    assert qcase(site, root, "--help").returncode == 0


def test_two_of_one_name_are_an_error(install: Install) -> None:
    install(entry("pipelines", 'copy = "json:dumps"'), "toys-a")
    install(entry("pipelines", 'copy = "json:dumps"'), "toys-b")
    with pytest.raises(UsageError, match="declares the same name") as caught:
        cases.source_folders()
    assert completion.pipelines("s") == ["sh"]
    assert {caught.value.what[:6], caught.value.where[:6]} == {"toys-a", "toys-b"}


def test_a_shadowed_distribution_does_not_count(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(entry("pipelines", 'copy = "json:dumps"'), "toys")
    monkeypatch.syspath_prepend(make(tmp_path / "newer", entry("pipelines", 'copy = "json:loads"'), "toys"))
    forget()
    assert list(cases.source_folders())[-1] == "copy"


def test_a_guest_is_made_once_and_booted_by_its_name(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = workspace(tmp_path / "w", '[guest.x86_64]\nrootfs = "tiny"\n')
    assert load_workspace_config(root / "qcase.toml").guest[Arch.X86_64].kernel == "alpine"
    install()
    choice = load_workspace_config(root / "qcase.toml").guest[Arch.X86_64]
    assert (choice.rootfs, choice.kernel) == ("tiny", "tiny")
    made = tmp_path / "tiny"
    write(made / "tree", BARE_ROOT)
    (made / "tree/bin").mkdir()
    (made / "tree/bin/busybox").write_bytes(STATIC_PROGRAM)
    mkfs(made / "rootfs.img", 4 << 20, made / "tree")
    (made / "kernel").write_bytes(b"kernel")
    monkeypatch.setenv("TINY_GUEST", str(made))
    with pytest.raises(UsageError, match="there is no guest 'tiny' for aarch64, only for x86_64"):
        guest.built_in("tiny", Arch.AARCH64, tmp_path / "store", emit=ignore)
    for _ in range(2):
        found = guest.built_in("tiny", Arch.X86_64, tmp_path / "store", emit=ignore)
        assert found.rootfs == tmp_path / "store/guests/tiny-1-x86_64@qcase-toys/rootfs.img"
        assert found.kernel is not None
        assert found.kernel.read_bytes() == b"kernel"
        assert found.initrd is not None
        assert STATIC_PROGRAM in found.initrd.read_bytes()
        (made / "kernel").write_bytes(b"another")
    assert guest.needs_engine("alpine", "tiny") is False
    assert guest.needs_engine("debian") is True
    assert guest.obstacle("tiny", Arch.X86_64, tmp_path / "store") is None


def test_the_names_of_built_in_guests_are_those_of_the_table() -> None:
    assert tuple(guest.GUESTS) == BUILT_IN_GUESTS
    assert all(spec.name == name for name, spec in guest.GUESTS.items())


def test_a_report_hears_the_run(install: Install, tmp_path: Path) -> None:
    install()
    listen = added.listener(f"lines={tmp_path / 'out.txt'}")
    result = CaseResult("greet", Arch.X86_64, Verdict.PASS, Fault.NONE)
    listen(events.CaseFinished(result))
    assert (tmp_path / "out.txt").read_text() == "greet pass\n"


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ("lines", "is not NAME=FILE"),
        ("lines=", "is not NAME=FILE"),
        ("line=out", "there is no report 'line'"),
        ("json=out", "is a report of qcase itself"),
        ("lines=gone/out", "its folder does not exist"),
    ],
)
def test_a_wrong_report_stops_the_run_before_it_begins(install: Install, tmp_path: Path, asked: str, what: str) -> None:
    site, root = install(), workspace(tmp_path / "w")
    done = qcase(site, root, "run", "--report", asked)
    assert done.returncode == 2
    assert what in done.stderr
