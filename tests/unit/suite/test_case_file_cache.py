"""What case files meant when they were last read: the same models, never those of other bytes, code or surroundings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config.case_file import CaseConfig, Placeholders
from qcase.config.load import load_case_config
from qcase.errors import ConfigError
from qcase.suite import case_file_cache, discover
from qcase.suite.cases import BrokenCase, Case, Workspace

FULL = """args = ["-nographic", "-smp", "4"]
shell_prefix = "root@qcase:"
shell_init_cmd = "run"
success_regex = ['^ok$', "ü\\n"]
fail_regex = ["bad"]
timeout = 1.5
[qcase]
match = "all"
match_from = "prompt"
network = "none"
tags = ["a", "b"]
"""


@pytest.fixture(autouse=True)
def _always_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_file_cache, "_WORTH", 1)


def load(workspace: Path, path: Path, **environment: str) -> tuple[CaseConfig, bool]:
    """A file's model, and whether it was remembered."""
    with case_file_cache.reader(workspace, Placeholders(workspace, environment=environment)) as reader:
        return reader.load(path), bool(reader.used)


@pytest.mark.parametrize("text", [FULL, 'success_regex = ["x"]\n', 'shell_prefix = "#"\ntest_commands = ["a", "b"]\n'])
def test_what_is_remembered_is_what_was_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "qemu-x86_64.toml"
    path.write_text(text)
    first, remembered = load(tmp_path, path)
    assert not remembered
    again, remembered = load(tmp_path, path)
    assert remembered
    assert again == first == load_case_config(path, placeholders=Placeholders(tmp_path))
    assert hash(again) == hash(first)
    assert [type(value) for value in vars(again).values()] == [type(value) for value in vars(first).values()]


def test_an_edit_is_seen_whatever_the_times_say(tmp_path: Path) -> None:
    path = tmp_path / "qemu-x86_64.toml"
    path.write_text('success_regex = ["x"]\n')
    facts = path.stat()
    load(tmp_path, path)
    path.write_text('success_regex = ["y"]\n')
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    config, remembered = load(tmp_path, path)
    assert config.success_regex == ("y",)
    assert not remembered


def test_other_code_understands_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "qemu-x86_64.toml"
    path.write_text('success_regex = ["x"]\n')
    load(tmp_path, path)
    monkeypatch.setattr(case_file_cache, "_made_by", lambda: "other code")
    assert load(tmp_path, path)[1] is False


def test_what_depends_on_its_surroundings_or_warns_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "qemu-x86_64.toml"
    path.write_text('success_regex = ["${env:WORD}"]\n')
    assert load(tmp_path, path, WORD="one")[0].success_regex == ("one",)
    assert load(tmp_path, path, WORD="two")[0].success_regex == ("two",)
    path.write_text('success_regex = ["x"]\nunknown = 1\n')
    for _ in range(2):
        config, remembered = load(tmp_path, path)
        assert config.warnings
        assert not remembered
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"made_by": 1}', '{"cases": []}', '{"made_by": "MINE", "cases": {"x": 3}}'])
def test_a_broken_memory_is_none(text: str, tmp_path: Path) -> None:
    place = tmp_path / "target" / "qcase" / "memory" / "cases.json"
    place.parent.mkdir(parents=True)
    place.write_text(text.replace("MINE", case_file_cache._made_by()))
    path = tmp_path / "qemu-x86_64.toml"
    path.write_text('success_regex = ["x"]\n')
    assert load(tmp_path, path)[0].success_regex == ("x",)
    assert json.loads(place.read_text())["cases"]


def test_what_cannot_be_read_is_the_same_error_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "qemu-x86_64.toml"
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path, path)
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="is not a file"):
        load(tmp_path, path)


def test_a_workspace_that_may_not_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("in the way")
    path = tmp_path / "qemu-x86_64.toml"
    path.write_text('success_regex = ["x"]\n')
    assert load(tmp_path, path)[0].success_regex == ("x",)


def test_a_small_suite_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = tmp_path / "qemu-x86_64.toml"
    path.write_text('success_regex = ["x"]\n')
    load(tmp_path, path)
    assert not (tmp_path / "target").exists()


def test_a_suite_is_discovered_the_same_with_and_without_memory(tmp_path: Path) -> None:
    (tmp_path / "qcase.toml").write_text('[suite]\nroot = "suite"\n')
    for name, text in (("a", FULL), ("b", "="), ("d", 'shell_prefix = "#"\ntest_commands = ["x"]\n'), ("e", FULL)):
        (tmp_path / "suite" / "normal" / name).mkdir(parents=True)
        (tmp_path / "suite" / "normal" / name / "qemu-x86_64.toml").write_text(text)
    workspace = Workspace.open(tmp_path)
    first = discover.discover(workspace, Arch.X86_64, "t")
    assert (tmp_path / "target" / "qcase" / "memory" / "cases.json").is_file()
    again = discover.discover(workspace, Arch.X86_64, "t")
    assert [case for case in first.cases if isinstance(case, Case)] == [case for case in again.cases if isinstance(case, Case)]
    assert sum(isinstance(case, BrokenCase) for case in again.cases) == 1
