"""Docs are run: every TOML block is loaded, every command line is parsed by the program it names."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
import typer

from qcase import config, process
from qcase.cli import app, arguments
from qcase.model import Arch
from tests.conftest import ROOT

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """Fenced blocks of a language: a name for the test, and the text."""
    found = []
    for path in DOCS:
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            found.append((f"{path.name}:{path.read_text(encoding='utf-8')[: match.start()].count(chr(10)) + 1}", match[1]))
    return found


def commands() -> list[tuple[str, str]]:
    return [
        (f"{name} {line[2:]}", line[2:])
        for name, text in blocks("console")
        for line in text.splitlines()
        if line.startswith("$ ")
    ]


@pytest.mark.parametrize("text", [b for _, b in blocks("toml")], ids=[n for n, _ in blocks("toml")])
def test_a_toml_block_is_valid(text: str, tmp_path: Path) -> None:
    name = text.splitlines()[0].removeprefix("# ")
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    if name == "qcase.toml":
        config.load_workspace_config(path)
        return
    assert re.fullmatch(rf"qemu-({'|'.join(Arch)})\.toml", name), "a block's first line names the file that it is"
    assert config.load_case_config(path, placeholders=config.Placeholders(tmp_path)).warnings == ()


def test_the_configuration_page_shows_every_key_with_its_default(tmp_path: Path) -> None:
    (text,) = [b for n, b in blocks("toml") if n.startswith("configuration.md")]
    (tmp_path / "linux").mkdir()
    written, empty = tmp_path / "linux" / "qcase.toml", tmp_path / "linux" / "empty.toml"
    written.write_text(text, encoding="utf-8")
    empty.write_text("", encoding="utf-8")
    shown, default = config.load_workspace_config(written), config.load_workspace_config(empty)
    assert shown == default
    for table, model in default:
        for key in type(model).model_fields if hasattr(type(model), "model_fields") else ():
            assert re.search(rf"\b{key}\b", text), f"[{table}] {key} is not on the page"


@pytest.mark.parametrize("line", [c for _, c in commands()], ids=[n for n, _ in commands()])
def test_a_command_is_one(line: str) -> None:
    program, *words = shlex.split(line)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words) <= set(targets)
        return
    assert program == "qcase", "only commands that can be checked stand in the docs"
    command = typer.main.get_command(app)
    context = command.make_context("qcase", arguments(words), resilient_parsing=False)
    words = [*context._protected_args, *context.args]  # the group leaves its subcommand's words to it
    while words:
        name, found, words = command.resolve_command(context, words)  # type: ignore[attr-defined]
        assert found is not None, name
        context = found.make_context(name, words, parent=context)
        command, words = found, [*context._protected_args, *context.args] if hasattr(found, "resolve_command") else []


def test_files_that_the_docs_link_to_are_there() -> None:
    for path in DOCS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_examples_load_without_a_warning() -> None:
    from qcase import suite

    workspace = suite.Workspace.open(ROOT / "examples" / "linux")
    for arch in (Arch.X86_64, Arch.AARCH64):
        discovery = suite.discover(workspace, arch, arch.default_target)
        assert len(discovery.cases) >= 10
        assert not discovery.warnings
        assert all(isinstance(case, suite.Case) and not case.warnings for case in discovery.cases)


def test_make_demo_names_the_example_workspace() -> None:
    assert (ROOT / "examples" / "linux" / "qcase.toml").is_file()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "make -s test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("text", [b for _, b in blocks("sh")], ids=[n for n, _ in blocks("sh")])
def test_a_shell_block_parses(text: str) -> None:
    """Those are run by the tests of what they install: wheel, Nix, image, recipes of CI."""
    done = process.run(["sh", "-n", "-c", text], check=False, timeout=30)
    assert done.returncode == 0, done.output
