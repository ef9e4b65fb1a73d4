"""Commands with tests of their own, in a real guest: each inner test is in every report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.vm.workspaces import Workspace, run

pytestmark = pytest.mark.vm

SUITE = r"""#!/bin/sh
# Prints KTAP; the kernel writes its own lines in between, and in the middle of a result.
printf 'KTAP version 1\n1..4\n  KTAP version 1\n  # Subtest: files\n  1..2\n'
echo '<1>a line of the kernel' >/dev/kmsg; sleep 0.3
echo '  ok 1 open'
printf '  ok '
echo '<1>another one' >/dev/kmsg; sleep 0.3
echo '2 close'
echo 'ok 1 files'
echo 'ok 2 net # SKIP no card'
echo "$1 3 time"
[ "$2" ] && sleep 100
echo '# about the last one'
echo 'not ok 4 sound # TODO not there yet'
"""
UNITS = r"""#!/bin/sh
printf 'test/ring.c:12:test_push:PASS\ntest/ring.c:20:test_pop:PASS\n\n-----\n2 Tests 0 Failures 0 Ignored\nOK\n'
"""


def test_each_inner_test_is_in_every_report(tmp_path: Path, test_cache: Path) -> None:
    made = Workspace.make(tmp_path / "w")
    ktap: dict[str, Any] = {"qcase": {"results": "ktap"}, "success_regex": []}
    made.case("passes", {"sh/suite": SUITE}, shell_init_cmd="suite ok", **ktap)
    made.case("fails", {"sh/suite": SUITE}, shell_init_cmd="suite 'not ok'", **ktap)
    made.case("cut", {"sh/suite": SUITE}, shell_init_cmd="suite ok | head -n 8", **ktap)
    slow = {"results": "ktap", "command_timeout": 20}
    made.case("hangs", {"sh/suite": SUITE}, shell_init_cmd="suite ok hang", success_regex=[], qcase=slow)
    made.case("units", {"sh/units": UNITS}, shell_init_cmd="units", success_regex=[], qcase={"results": "auto"})
    reports = [f"--{name}={tmp_path / name}" for name in ("junit", "html", "events")]
    outcome = run(made, "-j", "2", *reports, store=test_cache)
    assert outcome.verdicts == {"passes": "pass", "fails": "fail", "cut": "fail", "hangs": "timeout", "units": "pass"}, (
        outcome.said
    )

    def inner(case: str) -> list[str]:
        return [f"{one['status']} {one['name']}" for one in outcome.case(case)["subtests"]]

    nested = ["pass files/open", "pass files/close", "pass files", "skip net"]
    assert inner("passes") == [*nested, "pass time", "todo sound"]
    assert inner("fails") == [*nested, "fail time", "todo sound"]
    assert inner("cut") == [*nested[:3], "not-run 2", "not-run 3", "not-run 4"]
    assert inner("hangs") == [*nested, "pass time", "not-run 4"]
    assert inner("units") == ["pass test_push", "pass test_pop"]
    assert outcome.case("fails")["reason"] == "1 of 6 tests failed: time"
    assert outcome.case("cut")["reason"] == "the plan says 4 tests, 1 came"
    assert "6 subtests: 4 pass, 1 skip, 1 todo" in outcome.said
    assert all(one["seconds"] is not None for one in outcome.case("passes")["subtests"])

    console = (made.root / outcome.case("passes")["console_log"]).read_text()
    assert re.search(r"ok \[ *\d+\.\d+\] another one", console), console

    junit = ElementTree.parse(tmp_path / "junit")
    ours = [test for test in junit.iter("testcase") if str(test.get("classname")).endswith(".passes")]
    assert [test.get("name") for test in ours] == ["files/open", "files/close", "files", "net", "time", "sound"]
    skipped = [found.get("message") for test in ours if (found := test.find("skipped")) is not None]
    assert skipped == ["skip: no card", "todo: not there yet"]
    assert "6 tests: 4 pass, 1 skip, 1 todo" in (tmp_path / "html").read_text()
    assert (tmp_path / "events").read_text().count('"event":"subtest-finished"') == 6 + 6 + 3 + 5 + 2


KNOWN = """\
[[known]]
case = "known"
test = "time"
reason = "the clock is late"
link = "https://example.org/7"

[[known]]
case = "normal/new"
test = "time"
reason = "the clock is late"

[[known]]
case = "passes"
reason = "it failed once"

[[known]]
case = "gone"
reason = "nobody knows"
"""


def test_known_failures_are_green_and_counted_apart(tmp_path: Path, test_cache: Path) -> None:
    made = Workspace.make(tmp_path / "w")
    (made.root / "known.toml").write_text(KNOWN)
    one = "echo 'KTAP version 1'; echo 1..2; echo '{} 1 files'; echo '{} 2 time'"
    ktap: dict[str, Any] = {"qcase": {"results": "ktap"}, "success_regex": []}
    for name, words in {"passes": ("ok", "ok"), "known": ("ok", "not ok"), "new": ("not ok", "not ok")}.items():
        made.case(name, shell_init_cmd=one.format(*words), **ktap)
    made.case("none", shell_init_cmd="echo '1..1'; echo 'ok 1 nvme # SKIP no such device'", **ktap)
    outcome = run(made, "-j", "2", "--junit", str(tmp_path / "junit"), store=test_cache)
    assert outcome.exit_code == 1
    assert outcome.verdicts == {"passes": "pass", "known": "known-fail", "new": "fail", "none": "skipped"}, outcome.said
    known = outcome.case("known")
    assert (known["excused"], known["fault"], known["known"][0]["entry"]) == ("fail", "none", "known.toml:1")
    assert [one["status"] for one in known["subtests"]] == ["pass", "known-fail"]
    assert outcome.case("new")["reason"] == "1 of 2 tests failed: files; 1 more is known to fail"
    assert "4 cases in" in outcome.said
    assert "1 passed, 1 known to fail, 1 failed, 1 skipped" in outcome.said
    assert "known: the clock is late (https://example.org/7) [known.toml:1]" in outcome.said
    assert "a known failure passes now: normal/passes [known.toml:12]" in outcome.said
    assert "known.toml:16: no case is called 'gone'" in outcome.said
    assert re.search(r"repeat just the failures: .* normal/new\n", outcome.said)

    junit = ElementTree.parse(tmp_path / "junit")
    assert {test.get("name") for test in junit.iter("testcase") if test.find("failure") is not None} == {"files", "new"}
    strict = run(made, "passes", "none", "--strict-known", "--strict-skips", store=test_cache)
    assert (strict.exit_code, strict.verdicts) == (1, {"passes": "fail", "none": "skipped"})
    assert strict.case("none")["fault"] == "case"
    assert "known.toml:12: the case passes now, take the entry out (it failed once)" in strict.said


def test_one_inner_test_is_run_alone(tmp_path: Path, test_cache: Path) -> None:
    made = Workspace.make(tmp_path / "w")
    qcase = {"results": "ktap", "select": "echo 1..1; echo ok 1 {test}"}
    made.case("files", shell_init_cmd="echo 1..1; echo not ok 1 all", success_regex=[], qcase=qcase)
    outcome = run(made, "files::it's; not all", store=test_cache)
    assert outcome.verdicts == {"files::it's; not all": "pass"}, outcome.said
    (inner,) = outcome.case("files::it's; not all")["subtests"]
    assert inner["name"] == "it's; not all"
