"""Nothing that a guest, a compiler or a file of the suite says is a command to a CI service, in whatever qcase writes."""

from __future__ import annotations

import io
import itertools
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qcase import events
from qcase.arch import Arch
from qcase.cli import main
from qcase.errors import ConfigError, InfraError, Problem
from qcase.model import CaseResult, Fault, KernelBuildResult, KernelTrouble, Phase, SubtestResult, SubtestStatus, Verdict
from qcase.report import html_report, inert, junit_report, results
from qcase.report.error_text import print_error
from qcase.report.json_report import EventsReport, JsonReport, results_document
from qcase.report.terminal import TerminalReport
from tests.unit.report.test_reports import FAILED, GROUP, PASSED

COMMANDS = [
    "::error::x",
    "::set-output name=a::b",
    "::stop-commands::x",
    "::add-mask::pass",
    "##[error]x",
    "##[add-path]/tmp",
    "##vso[task.setvariable variable=a]b",
    "##teamcity[buildStatus status='SUCCESS']",
    "section_start:1700000000:a[collapsed=true]\r\x1b[0Kx",
    "section_end:1700000000:a\r\x1b[0K",
    "travis_fold:start:a\r",
]
BEFORE = [
    "",
    " ",
    "\t",
    "text ",
    "\r",
    "text\r",
    "\x1b[0K",
    "\x1b]0;t\x07",
    "\n",
    "\v",
    "\x85",
    "\u2028",
    "\u00a0",
    "#",
    ":",
    "\ufeff",
]


def obeyed(log: str) -> list[str]:
    """What the services would obey, as their parsers read a log: rather too much than too little."""
    found = re.findall(r"##[\w.-]*\[|section_(?:start|end):\d|travis_(?:fold|time):", log)
    for line in re.split(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", log):
        bare = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", line).lstrip().lstrip("\u200b\ufeff").lstrip()
        found += [bare] if bare.startswith("::") else []
    return found


def hostile() -> Iterator[str]:
    yield from (before + command for before, command in itertools.product(BEFORE, COMMANDS))


EVERYTHING = "\n".join(hostile())
SOME = "\n".join(list(hostile())[::7])  # each command and each text before it is there; 7 divides neither number


def evil(text: str) -> tuple[CaseResult, ...]:
    trouble = KernelTrouble("oops", text, (text, text, *text.splitlines()))
    failed = replace(
        FAILED,
        reason=text,
        excerpt=text,
        details=text,
        console_tail=tuple(text.split("\n")),
        console_log=None,
        pattern=text,
        warnings=(text,),
        kernel_trouble=(trouble,),
    )
    return (
        failed,
        replace(PASSED, kernel_trouble=(trouble,), warnings=(text,)),
        replace(PASSED, case="normal/flaky", earlier=(failed,)),
        replace(GROUP, subtests=(SubtestResult(text, text, SubtestStatus.FAIL, 1, reason=text),)),
        replace(FAILED, case="normal/error", verdict=Verdict.ERROR, fault=Fault.INFRA, reason=text, details=text),
        CaseResult("normal/skipped", Arch.X86_64, Verdict.SKIPPED, Fault.NONE, text),
    )


def all_events(text: str) -> Iterator[events.Event]:
    found = evil(text)
    yield events.RunStarted(Arch.X86_64, "t", tuple(one.label for one in found), accel="auto")
    yield events.AccelChosen("tcg", text)
    yield events.Progress(text)
    yield events.Warned(text)
    for one in found:
        yield events.CaseStarted(one.label)
        yield events.PhaseStarted(one.label, Phase.PREPARE, text)
        yield events.Missed(one.label, text, (text,))
        yield events.KernelBuildStarted(one.label)
        yield events.KernelBuildFinished(KernelBuildResult(one.label, Arch.X86_64, 1.0, text, text, text, "k.log", text))
        yield events.ConsoleLine(one.label, text)
        yield events.Warned(text, one.label)
        yield events.SubtestFinished(one.label, SubtestResult(text, text, SubtestStatus.PASS, 0))
        yield events.Retried(one.label, 1, one)
        yield events.CaseFinished(one)
    yield events.RunFinished(found, 1.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("service", ["", "GITHUB_ACTIONS", "GITLAB_CI"])
@pytest.mark.parametrize(("verbosity", "stream"), [(-1, io.StringIO), (0, io.StringIO), (2, io.StringIO), (2, Terminal)])
def test_no_line_of_the_terminal_is_a_command_but_our_own(
    service: str, verbosity: int, stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    if service:
        monkeypatch.setenv(service, "true")
    monkeypatch.setenv("COLUMNS", "100")
    out = stream()
    report = TerminalReport(out, lambda *_: "", verbosity=verbosity)
    for event in all_events(SOME):
        report(event)
    said = obeyed(out.getvalue())
    if service == "GITHUB_ACTIONS":
        ours = re.compile(r"::(stop-commands::[0-9a-f]{32}|[0-9a-f]{32}::|(end)?group::.*|(error|warning) title=.*)")
        said = [line for line in said if not ours.fullmatch(line)]
    if service == "GITLAB_CI":
        said = [line for line in said if not line.startswith("section_")]
        assert len(re.findall("section_start:", out.getvalue())) == len(
            re.findall(r"\x1b\[0Ksection_start:\d+:qcase_", out.getvalue())
        )
    assert said == []
    report.close()


def test_files_say_the_same_and_no_line_of_them_is_a_command(tmp_path: Path) -> None:
    for text in (EVERYTHING, *list(hostile())[::7]):
        whole = results_document(events.RunStarted(Arch.X86_64, "t", ()), events.RunFinished(evil(text), 1.0))
        found = results.of_document(whole)
        page, xml = html_report.render(found), junit_report.render(found)
        assert obeyed(page) == obeyed(xml) == []
        ElementTree.fromstring(xml)
        report, lines = JsonReport(tmp_path / "r.json"), EventsReport(tmp_path / "e.jsonl")
        for event in all_events(text):
            report(event)
            lines(event)
        lines.close()
        for name in ("r.json", "e.jsonl"):
            assert obeyed((tmp_path / name).read_text(encoding="utf-8")) == []
        document = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
        assert document["cases"][0]["reason"] == text
        said = [json.loads(line) for line in (tmp_path / "e.jsonl").read_bytes().split(b"\n")[:-1]]
        assert {one["line"] for one in said if one["event"] == "console-line"} == {text}


@pytest.mark.parametrize("text", [*hostile(), EVERYTHING])
def test_documents_mean_what_they_meant(text: str) -> None:
    document = json.dumps([text, {text: f"\\{text}"}], ensure_ascii=False)
    assert json.loads(inert.json(document)) == json.loads(document)
    element = ElementTree.Element("a", {"b": "x ## :: x"})
    element.text = re.sub("[^\t\n -\ud7ff]", "?", text)
    written = ElementTree.tostring(element, encoding="unicode")
    assert ElementTree.tostring(ElementTree.fromstring(inert.xml(written)), encoding="unicode") == written
    assert obeyed(inert.xml(written)) == []


@pytest.mark.parametrize(
    "text", ["a::b", "std::vector<int> x;", "## heading", "a ## b", "section_one", "a: ::b", "C:\\x", "#[derive]"]
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert inert.log(text) == text


def test_generated_text() -> None:
    numbers = random.Random(7)
    parts = [
        "#",
        ":",
        "[",
        "error",
        "vso",
        "\n",
        "\r",
        " ",
        "\x1b[0m",
        "section_",
        "start:",
        "1",
        "::",
        "##",
        "x",
        "\t",
        "\u2028",
    ]
    for _ in range(20_000):
        text = "".join(numbers.choices(parts, k=numbers.randint(1, 12)))
        assert obeyed(inert.log(text)) == []
        assert inert.log(inert.log(text)) == inert.log(text)


def test_an_error_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(InfraError(EVERYTHING, where="::error::x", hint=EVERYTHING))
    print_error(ConfigError([Problem(EVERYTHING, "::error::x.toml")]))
    assert obeyed(capsys.readouterr().err) == []


def test_a_file_of_the_suite_is_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "qcase.toml").write_text('[suite]\nroot = "suite"\n')
    for name in ("::error::x", "##[error]x", "##vso[a]b"):
        folder = tmp_path / "suite" / "normal" / name
        folder.mkdir(parents=True)
        (folder / "qemu-x86_64.toml").write_text(f"'{name}' = 1\nsuccess_regex = ['x']\n[qcase]\ntags = ['{name}']\n")
    monkeypatch.chdir(tmp_path)
    for words in (
        ["list"],
        ["list", "--json"],
        ["list", "-v"],
        ["lint"],
        ["lint", "--json"],
        ["run", "nothing::error::y"],
        ["run", "x\n::error::"],
    ):
        with monkeypatch.context() as context:
            context.setattr(sys, "argv", ["qcase", *words])
            context.setattr(sys, "stdout", sys.stdout)
            context.setattr(sys, "stderr", sys.stderr)
            with pytest.raises(SystemExit):
                main.main()
        said = capsys.readouterr()
        assert obeyed(said.out + said.err) == []
        assert said.out + said.err
