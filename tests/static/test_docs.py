"""Docs are run: every TOML block is loaded, every command line is parsed by the program it names."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import sys
from pathlib import Path

import jsonschema
import pytest
import tomli
import typer

from qcase.arch import Arch
from qcase.cli.app import app
from qcase.cli.main import EXAMPLES, SUMMARIES, arguments
from qcase.config import case_file, load, schema
from qcase.host import process
from tests.conftest import ROOT
from tests.tools import docs_site, reference

DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """Fenced blocks of a language: a name for the test, and the text."""
    found = []
    for path in DOCS:
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            found.append((f"{path.name}:{path.read_text(encoding='utf-8')[: match.start()].count(chr(10)) + 1}", match[1]))
    return found


def commands() -> list[tuple[str, str]]:
    """Lines behind a prompt, and those that the recipes for CI run."""
    shown = [(name, line[2:]) for name, text in blocks("console") for line in text.splitlines() if line.startswith("$ ")]
    recipes = [(name, line) for name, text in blocks("yaml") for line in re.findall(r"(?m)^\s*- (?:run: )?(qcase .*)$", text)]
    return [(f"{name} {line}", line) for name, line in shown + recipes]


@pytest.mark.parametrize("text", [b for _, b in blocks("toml")], ids=[n for n, _ in blocks("toml")])
def test_a_toml_block_is_valid(text: str, tmp_path: Path) -> None:
    name = text.splitlines()[0].removeprefix("# ")
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    if name == "qcase.toml":
        load.load_workspace_config(path)
        return
    if name == "known.toml":
        assert load.load_known(path, tmp_path)
        return
    assert re.fullmatch(rf"qemu-({'|'.join(Arch)}|<arch>)\.toml", name), "a block's first line names the file that it is"
    if not tomli.loads(text).get("success_regex", True):
        return  # all keys with their defaults: no case by itself
    assert load.load_case_config(path, placeholders=case_file.Placeholders(tmp_path)).warnings == ()


def test_what_is_made_from_the_models_is_what_stands_in_the_docs() -> None:
    for path, text in reference.files().items():
        assert path.is_file(), "make reference"
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not what the models say: make reference"


def test_every_key_has_a_meaning() -> None:
    known = {schema.twin(key.path): key.meaning for model in schema.MODELS.values() for key in schema.keys(model)}
    assert [path for path, meaning in known.items() if not meaning] == [], "say in qcase/config/schema.py what these mean"
    assert set(schema.MEANING) - set(known) == set(), "these are gone from the models"


@pytest.mark.parametrize("name", list(schema.MODELS))
def test_the_keys_with_their_defaults_are_what_an_empty_file_means(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "linux"
    folder.mkdir()
    if name == "qcase":
        written, empty = folder / "written.toml", folder / "empty.toml"
        written.write_text(schema.toml(name), encoding="utf-8")
        empty.write_text("", encoding="utf-8")
        assert load.load_workspace_config(written) == load.load_workspace_config(empty)
    else:
        data = tomli.loads(schema.toml(name))
        assert schema.MODELS[name].model_validate(data) == schema.MODELS[name]()


@pytest.mark.parametrize("name", list(schema.MODELS))
def test_the_schemas_take_the_examples_and_refuse_what_is_wrong(name: str) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(schema.json_schema(name)))
    validator.check_schema(validator.schema)
    files = sorted((ROOT / "examples").rglob("qemu-*.toml" if name == "qemu" else f"{name}.toml"))
    assert files
    for path in files:
        validator.validate(tomli.loads(path.read_text(encoding="utf-8")))
    validator.validate(tomli.loads(schema.toml(name)))
    for wrong in ("unknown = 1", "[qcase]\nmatch = 3", "[run]\nnetwork = 'all'", "args = 'x'"):
        assert not validator.is_valid(tomli.loads(wrong))


def test_an_option_that_may_go_without_its_value() -> None:
    assert arguments(["run", "--changed"]) == ["run", "--changed=HEAD"]
    assert arguments(["run", "--changed", "--failed"]) == ["run", "--changed=HEAD", "--failed"]
    assert arguments(["run", "--changed", "main", "x"]) == ["run", "--changed", "main", "x"]
    assert arguments(["run", "x", "--", "--changed"]) == ["run", "x", "--", "--changed"]


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


def test_every_command_has_examples_that_parse() -> None:
    found = {name.removeprefix("qcase "): text for name, text in docs_site.helps()}
    groups = {name for name in found if any(other.startswith(f"{name} ") for other in found)} | {"qcase"}
    assert set(found) - groups == set(EXAMPLES) == set(SUMMARIES)
    assert all(len(summary) <= 45 for summary in SUMMARIES.values())
    for name, lines in EXAMPLES.items():
        assert all(f"\n    {line}\n" in f"{found[name]}\n" for line in lines), found[name]
        for line in lines:
            text = line.removeprefix("source <(").removesuffix(")")
            assert text.startswith(f"qcase {name}")
            test_a_command_is_one(text)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "--site-dir", str(tmp_path / "site")]
    done = process.run(argv, cwd=ROOT, check=False, timeout=300)
    assert done.returncode == 0, done.output
    assert done.output == ""
    page = (tmp_path / "site" / "commands.html").read_text(encoding="utf-8")
    assert "qcase cache gc --dry-run" in page
    assert (tmp_path / "site" / "schemas" / "qemu.json").is_file()


def test_files_that_the_docs_link_to_are_there() -> None:
    for path in DOCS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_examples_load_without_a_warning() -> None:
    from qcase.suite import cases, discover

    workspace = cases.Workspace.open(ROOT / "examples" / "linux")
    for arch in (Arch.X86_64, Arch.AARCH64, Arch.RISCV64):
        discovery = discover.discover(workspace, arch, arch.default_target)
        assert len(discovery.cases) >= 10
        assert not discovery.warnings
        assert all(isinstance(case, cases.Case) and not case.warnings for case in discovery.cases)


def test_the_page_of_the_code_names_every_package_as_its_docstring_does() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE))
    packages = {}
    for path in (ROOT / "qcase").glob("*/__init__.py"):
        packages[path.parent.name] = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert {name: table.get(name) for name in packages} == packages
    for path in re.findall(r"`([a-z_]+/[a-z_]+\.py|[a-z]+\.py)`", page):
        assert (ROOT / "qcase" / path).is_file(), path


def test_the_page_of_the_code_draws_the_layers_of_the_contract() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    drawn = page.partition("## Layers")[2].split("```")[1].split("\n")[1:-1]
    tools = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    contract = tools["importlinter"]["contracts"][0]["layers"]
    assert [set(re.findall(r"\w+", line)) for line in drawn] == [set(re.findall(r"\w+", line)) for line in contract]
    beside = {path.stem for path in (ROOT / "qcase").glob("*.py")} - {"__init__", "__main__"}
    modules = re.search(r"^Modules that all packages use .*?^$", page, re.MULTILINE | re.DOTALL)
    assert modules is not None
    assert set(re.findall(r"`(\w+)`", modules[0])) == beside


def test_make_help_names_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    assert targets is not None
    said = process.run(["make", "-s", "help"], cwd=ROOT).output
    assert re.findall(r"^make (\S+)", said, re.MULTILINE) == re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE)
    assert set(re.findall(r"^make (\S+)", said, re.MULTILINE)) == set(targets[1].split())


def test_make_demo_names_the_example_workspace() -> None:
    assert (ROOT / "examples" / "linux" / "qcase.toml").is_file()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("text", [b for _, b in blocks("sh")], ids=[n for n, _ in blocks("sh")])
def test_a_shell_block_parses(text: str) -> None:
    """Those are run by the tests of what they install: wheel, Nix, image, recipes of CI."""
    done = process.run(["sh", "-n", "-c", text], check=False, timeout=30)
    assert done.returncode == 0, done.output


@pytest.mark.parametrize("words", [["--help"], ["run", "-h"], ["cache", "gc", "--help"]])
def test_help_needs_no_model(words: list[str]) -> None:
    """A tenth of a second that a person waits for."""
    code = f"import sys; sys.argv[1:] = {words!r}\nfrom qcase.cli.main import main\n"
    code += "try: main()\nfinally: print('pydantic' in sys.modules)"
    done = process.run([sys.executable, "-c", code], timeout=60)
    assert done.output.endswith("False")
    assert "-h, --help" in done.output
    assert f"qcase {' '.join(words[:-1])}".strip() in done.output
