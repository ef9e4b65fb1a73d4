"""Several architectures in one run, and options that are given twice."""

from __future__ import annotations

import io
import json
import operator
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qcase import events
from qcase.arch import Arch, ArchSpec
from qcase.cli import main
from qcase.errors import ConfigError, Problem, UsageError
from qcase.inputs import case_filters
from qcase.inputs.case_filters import Filters
from qcase.model import CaseResult, Fault, Verdict
from qcase.prepare.session import Session
from qcase.report import results
from qcase.report.html_report import render as html
from qcase.report.json_report import EventsReport, JsonReport
from qcase.report.junit_report import render as junit
from qcase.report.terminal import TerminalReport
from qcase.run import run_cases, schedule
from qcase.run.run_cases import Batch, Plan
from qcase.store.policy import Policy
from qcase.store.store import Store
from qcase.suite import catalogue, discover, history
from qcase.suite.cases import BrokenCase, Workspace

BOTH = (Arch.X86_64, Arch.AARCH64)


def broken(name: str) -> BrokenCase:
    return BrokenCase(name, f"normal/{name}", "normal", "", Path("/w/suite/normal") / name, ConfigError([Problem("bad", "x")]))


def run(root: Path, listeners: list[events.Emit], **plan: Any) -> events.RunFinished:
    (root / "qcase.toml").write_text("")

    def emit(event: events.Event) -> None:
        for listener in listeners:
            listener(event)

    store = Store(root / "store", writes=Policy(images=False, overlays=False))
    batches: list[Batch] = []
    for arch in BOTH:
        session = Session(
            Workspace.open(root),
            arch,
            arch.default_target,
            store,
            events.of_variant(emit, arch.value),
            beside=batches[0].session if batches else None,
        )
        batches.append(Batch(session, [broken("a"), broken("b")], arch.value))
    return run_cases.run_batches(batches, emit, Plan(**plan))


def test_every_report_tells_architectures_apart(tmp_path: Path) -> None:
    said: list[events.Event] = []
    shown = io.StringIO()
    terminal = TerminalReport(shown, lambda cases, arch: f"qcase run --arch {arch} {' '.join(cases)}")
    lines = EventsReport(tmp_path / "events")
    finished = run(tmp_path, [said.append, terminal, JsonReport(tmp_path / "json"), lines], jobs=2)
    lines.close()
    labels = [f"normal/{case}@{arch}" for arch in BOTH for case in ("a", "b")]
    assert [result.label for result in finished.results] == labels
    assert finished.exit_code == 2
    assert {event.case for event in said if isinstance(event, events.CaseStarted)} == set(labels)
    (started,) = (event for event in said if isinstance(event, events.RunStarted))
    assert started.cases == tuple(labels)
    assert dict(started.targets) == {arch: arch.default_target for arch in BOTH}

    text = shown.getvalue()
    assert "4 cases on x86_64, target x86_64-unknown-none, aarch64, target aarch64-unknown-none-softfloat" in text
    assert all(label in text for label in labels)
    assert "qcase run --arch x86_64 normal/a normal/b\n" in text
    assert "qcase run --arch aarch64 normal/a normal/b\n" in text

    document = json.loads((tmp_path / "json").read_text())
    assert document["targets"] == {arch.value: arch.default_target for arch in BOTH}
    assert [(case["case"], case["arch"], case["variant"]) for case in document["cases"]] == [
        (f"normal/{case}", arch, arch) for arch in BOTH for case in ("a", "b")
    ]
    told = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert {line["case"] for line in told if line["event"] == "case-finished"} == set(labels)

    read = results.load(tmp_path / "json")
    tests = [(test.get("classname"), test.get("name")) for test in ET.fromstring(junit(read)).iter("testcase")]
    assert sorted(tests) == sorted((f"{arch}.normal", case) for arch in BOTH for case in ("a", "b"))
    page = html(read)
    assert all(label in page for label in labels)
    assert "aarch64-unknown-none-softfloat" in page


def test_repetitions_and_what_is_not_run(tmp_path: Path) -> None:
    finished = run(tmp_path, [], jobs=1, repeat=2, max_failures=1)
    assert [(result.label, result.verdict) for result in finished.results][:3] == [
        ("normal/a#1@x86_64", Verdict.ERROR),
        ("normal/a#2@x86_64", Verdict.SKIPPED),
        ("normal/b#1@x86_64", Verdict.SKIPPED),
    ]
    assert len({result.label for result in finished.results}) == 8
    assert [rate.case for rate in events.flake_rates(finished.results)] == ["normal/a@x86_64"]


def test_what_happens_in_a_session_goes_by_the_label() -> None:
    said: list[Any] = []
    emit = events.of_variant(said.append, "aarch64")
    emit(events.CaseStarted("normal/a#2"))
    emit(events.Retried("normal/a", 1, CaseResult("normal/a", Arch.AARCH64, Verdict.FAIL, Fault.CASE)))
    emit(events.Warned("of the run"))
    emit(events.Progress("fetching"))
    assert [getattr(event, "case", None) for event in said] == ["normal/a#2@aarch64", "normal/a@aarch64", "", None]
    assert said[1].result.label == "normal/a@aarch64"


def test_each_architecture_is_remembered_by_itself(tmp_path: Path) -> None:
    found = (
        CaseResult("normal/a", Arch.X86_64, Verdict.PASS, Fault.NONE, variant="x86_64"),
        CaseResult("normal/a", Arch.AARCH64, Verdict.FAIL, Fault.CASE, variant="aarch64"),
    )
    memory = history.Memory(tmp_path, {arch: arch.default_target for arch in BOTH}, pytest.fail)
    memory(events.RunFinished(found, 1.0))
    known = [history.recall(tmp_path, arch, arch.default_target)["normal/a"].verdict for arch in BOTH]
    assert known == [Verdict.PASS, Verdict.FAIL]


def test_times_of_several_architectures(tmp_path: Path) -> None:
    cases = [
        {"case": "normal/a", "variant": "", "verdict": "pass", "times": {"total": 1.0}},
        {"case": "normal/b", "variant": "aarch64", "verdict": "pass", "times": {"total": 2.0}},
        {"case": "normal/c", "verdict": "pass", "times": {"total": 3.0}},
    ]
    (tmp_path / "times").write_text(json.dumps({"cases": cases}))
    assert schedule.read_times(tmp_path / "times") == {"normal/a": 1.0, "normal/b@aarch64": 2.0, "normal/c": 3.0}


# ---- choosing


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """`both` is for both architectures and has a tag on one, `intel` is for one."""
    (tmp_path / "qcase.toml").write_text('[suite]\nroot = "suite"\n')
    for case, arch, tags in (("both", "x86_64", []), ("both", "aarch64", ["arm"]), ("intel", "x86_64", [])):
        (tmp_path / "suite/normal" / case).mkdir(parents=True, exist_ok=True)
        text = f'success_regex = ["ok"]\n[qcase]\ntags = {tags}\n'
        (tmp_path / "suite/normal" / case / f"qemu-{arch}.toml").write_text(text)
    return Workspace.open(tmp_path)


def chosen(workspace: Workspace, *patterns: str, **filters: Any) -> list[list[str]]:
    discoveries = [discover.discover(workspace, arch, arch.default_target) for arch in BOTH]
    picked = case_filters.choose_all(workspace, discoveries, patterns, Filters(**filters))
    return [[case.name for case in one.cases] for one in picked]


def test_cases_are_chosen_for_each_architecture(workspace: Workspace) -> None:
    assert chosen(workspace) == [["both", "intel"], ["both"]]
    assert chosen(workspace, "both") == [["both"], ["both"]]
    assert chosen(workspace, tags=("arm",)) == [[], ["both"]]
    with pytest.raises(UsageError, match="'intel' is not for aarch64"):
        chosen(workspace, "intel")
    with pytest.raises(UsageError, match="no case here has the tag 'nosuch'"):
        chosen(workspace, tags=("nosuch",))


def test_list_and_explain_take_several(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert [entry.name for entry in catalogue.catalogue(workspace).only([Arch.AARCH64]).groups["normal"]] == ["both"]
    assert [entry.name for entry in catalogue.catalogue(workspace).only(BOTH).groups["normal"]] == ["both", "intel"]
    words = ["explain", "both", "--json", "--workspace", str(workspace.root), "--arch", "x86_64", "--arch", "aarch64"]
    with pytest.raises(SystemExit) as ended:
        main.command(words[:1])([*words, "--cache-dir", str(workspace.root / "store")], prog_name="qcase")
    assert ended.value.code == 0, capsys.readouterr().err
    assert set(json.loads(capsys.readouterr().out)) == {"normal/both@x86_64", "normal/both@aarch64"}


# ---- options that are given twice


def commands(one: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    one = one or main.command()
    yield path, one
    for name, below in getattr(one, "commands", {}).items():
        yield from commands(below, (*path, name))


SINGLE = [
    (path, parameter)
    for path, command in commands()
    for parameter in command.params
    if parameter.param_type_name == "option" and not (parameter.multiple or parameter.count or parameter.is_flag)
]


@pytest.mark.parametrize(("path", "option"), SINGLE, ids=str)
def test_an_option_of_one_value_is_refused_the_second_time(
    path: tuple[str, ...], option: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    spellings = [option.opts[0], option.opts[-1]]
    with pytest.raises(SystemExit) as ended:
        main.command()([*path, *(word for spelling in spellings for word in (spelling, "1"))], prog_name="qcase")
    assert ended.value.code == 2
    assert f"Option '{option.opts[0]}' is given twice" in capsys.readouterr().err


def test_there_are_options_of_one_value() -> None:
    assert len(SINGLE) > 40


def test_an_option_of_several_values_hands_on_all_of_them() -> None:
    """Typer makes a list of them; a command that takes the last one would not be given one."""
    for path, command in commands():
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.multiple:
                assert parameter.nargs == 1, path
                assert parameter.name in {"arch", "case", "group", "tag", "pipeline", "report"}, f"{path}: say that all count"


@pytest.mark.parametrize("words", [("-x", "--max-fail", "3"), ("-q", "-v")])
def test_options_of_which_one_would_not_count(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.command(["run"])(["run", *words], prog_name="qcase")
    assert ended.value.code == 2
    assert "are not for the same run" in capsys.readouterr().err


def test_a_target_is_that_of_one_architecture(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--arch", "x86_64", "--arch", "aarch64", "--target", "x", "--workspace", str(workspace.root)]
    with pytest.raises(SystemExit) as ended:
        main.command(["run"])(words, prog_name="qcase")
    assert ended.value.code == 2
    assert "a target is that of one architecture" in capsys.readouterr().err


def test_a_row_without_a_field_does_not_import() -> None:
    fields = {name: getattr(Arch.X86_64.spec, name) for name in ArchSpec._fields}
    assert ArchSpec(**fields) == Arch.X86_64.spec
    for name in fields:
        with pytest.raises(TypeError, match=name):
            ArchSpec(**{key: value for key, value in fields.items() if key != name})


@pytest.mark.parametrize(
    "field", ["elf_machines", "uefi.pe_machine", "uefi.program", "kvm_host", "target", "musl_target", "elf_name"]
)
def test_no_two_architectures_share(field: str) -> None:
    values = [operator.attrgetter(field)(arch.spec) for arch in Arch]
    assert len(set(values)) == len(values)
