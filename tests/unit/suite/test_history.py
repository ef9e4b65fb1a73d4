"""What is remembered from run to run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qcase import events
from qcase.arch import Arch
from qcase.model import CaseResult, Fault, SubtestResult, SubtestStatus, Verdict
from qcase.suite import history

TARGET = "x86_64-unknown-none"


def result(case: str, verdict: Verdict = Verdict.PASS, boot: float | None = 3.0, command: float | None = 0.5) -> CaseResult:
    return CaseResult(case, Arch.X86_64, verdict, Fault.NONE, boot=boot, command=command, total=4.0)


def run(workspace: Path, *results: CaseResult, target: str = TARGET) -> list[str]:
    warnings: list[str] = []
    history.Memory(workspace, dict.fromkeys(Arch, target), warnings.append)(events.RunFinished(results, 1.0))
    return warnings


def test_a_run_replaces_what_was_known_of_its_own_cases(tmp_path: Path) -> None:
    run(tmp_path, result("normal/a", Verdict.FAIL), result("normal/b"))
    run(tmp_path, result("normal/b", Verdict.PANIC))
    known = history.recall(tmp_path, Arch.X86_64, TARGET)
    assert {name: one.verdict for name, one in known.items()} == {"normal/a": Verdict.FAIL, "normal/b": Verdict.PANIC}
    assert known["normal/a"].in_guest == 3.5
    assert known["normal/b"].at >= known["normal/a"].at > 0


def test_of_repetitions_one_that_did_not_pass_counts(tmp_path: Path) -> None:
    verdicts = [Verdict.PASS, Verdict.FAIL, Verdict.PASS]
    repeated = [replace(result(f"normal/a#{n}", verdict), repetition=n) for n, verdict in enumerate(verdicts, 1)]
    run(tmp_path, *repeated, result("normal/b#1"))
    known = history.recall(tmp_path, Arch.X86_64, TARGET)
    assert {name: one.verdict for name, one in known.items()} == {"normal/a": Verdict.FAIL, "normal/b#1": Verdict.PASS}


def test_the_tests_inside_are_remembered_where_one_can_be_run_alone(tmp_path: Path) -> None:
    subtests = tuple(SubtestResult(name, "", SubtestStatus.PASS) for name in ("links/hard", "links", "zeros"))
    both = tuple(replace(result(case), subtests=subtests) for case in ("normal/a", "normal/b"))
    memory = history.Memory(tmp_path, {Arch.X86_64: TARGET}, pytest.fail, selectable={"normal/a"})
    memory(events.RunFinished(both, 1.0))
    known = history.recall(tmp_path, Arch.X86_64, TARGET)
    assert (known["normal/a"].tests, known["normal/b"].tests) == (("links/hard", "links", "zeros"), ())


def test_arches_and_targets_are_told_apart(tmp_path: Path) -> None:
    run(tmp_path, result("normal/a"))
    assert history.recall(tmp_path, Arch.AARCH64, TARGET) == {}
    assert history.recall(tmp_path, Arch.X86_64, "another") == {}


def test_what_was_skipped_is_not_a_result_and_a_timeout_is_no_measure(tmp_path: Path) -> None:
    run(tmp_path, result("normal/a"))
    run(tmp_path, result("normal/a", Verdict.SKIPPED), result("normal/b", Verdict.TIMEOUT))
    known = history.recall(tmp_path, Arch.X86_64, TARGET)
    assert known["normal/a"].passed
    assert known["normal/b"].in_guest is None


def test_a_skip_that_made_the_run_fail_is_among_what_failed(tmp_path: Path) -> None:
    run(tmp_path, result("normal/a"), replace(result("normal/b", Verdict.SKIPPED), fault=Fault.CASE))
    assert history.recall(tmp_path, Arch.X86_64, TARGET)["normal/b"].red


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 99, "runs": {}}', '{"format": 1, "runs": []}', '{"format": 1, "runs": {"x": 3}}']
)
def test_a_broken_file_knows_nothing_and_is_written_anew(text: str, tmp_path: Path) -> None:
    path = history.place(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert history.recall(tmp_path, Arch.X86_64, TARGET) == {}
    assert run(tmp_path, result("normal/a")) == []
    assert list(history.recall(tmp_path, Arch.X86_64, TARGET)) == ["normal/a"]


def test_a_broken_entry_hides_no_other(tmp_path: Path) -> None:
    path = history.place(tmp_path)
    path.parent.mkdir(parents=True)
    good = {"verdict": "pass", "boot": None, "command": None, "prepare": None, "total": 1}
    cases = {"a": {"verdict": "splendid"}, "b": 7, "c": {**good, "boot": "soon"}, "d": good}
    path.write_text(json.dumps({"format": 1, "runs": {f"x86_64 {TARGET}": cases}}))
    assert list(history.recall(tmp_path, Arch.X86_64, TARGET)) == ["d"]


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("in the way")
    (warning,) = run(tmp_path, result("normal/a"))
    assert "could not be noted" in warning


def test_a_known_failure_is_not_among_what_failed(tmp_path: Path) -> None:
    known = replace(result("normal/a", Verdict.KNOWN_FAIL), excused=Verdict.FAIL)
    run(tmp_path, known, result("normal/b", Verdict.FAIL))
    recalled = history.recall(tmp_path, Arch.X86_64, TARGET)
    assert {name: (one.red, one.passed) for name, one in recalled.items()} == {
        "normal/a": (False, False),
        "normal/b": (True, False),
    }
    for verdicts, red in (((Verdict.PASS, Verdict.KNOWN_FAIL), False), ((Verdict.KNOWN_FAIL, Verdict.FAIL, Verdict.PASS), True)):
        run(tmp_path, *(replace(result(f"normal/c#{n}", one), repetition=n) for n, one in enumerate(verdicts, 1)))
        last = history.recall(tmp_path, Arch.X86_64, TARGET)["normal/c"]
        assert (last.passed, last.red) == (False, red)
