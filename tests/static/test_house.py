"""The house itself: what imports what, that the linters are content, and that names of machines stay out."""

from __future__ import annotations

import ast
import contextlib
import graphlib
import importlib
import os
import re
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qcase.host import process
from tests.conftest import ROOT

MODULES = sorted(path for path in (ROOT / "qcase").rglob("*.py") if path.name != "__init__.py" or path.parent.name != "qcase")


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules of qcase that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "qcase":
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def test_imports_point_downwards() -> None:
    """The contracts are in pyproject.toml: layers, and what else a package may not know."""
    program = Path(sys.executable).with_name("lint-imports")
    done = process.run([str(program), "--no-cache", "--no-logo"], cwd=ROOT, check=False, timeout=600)
    assert done.returncode == 0, done.output


def test_no_module_imports_itself_through_others() -> None:
    """Imports at the top of modules have an order: what `graphlib` cannot sort is a cycle."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {
            target
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module
            for target in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        }
        graph[name] = found & set(names) - {name}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_no_private_name_crosses_a_file() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {alias.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qcase")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert wrong == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_name_of_another_module_is_reached_by_a_dot(path: Path) -> None:
    """Nor through `getattr`, nor by a module's name in a string, which the contracts do not see."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    ours = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "qcase"
        for alias in node.names
    }
    wrong = {
        ast.unparse(node)
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours
        if node.attr.startswith("_") and not node.attr.startswith("__")
    }
    assert wrong == set()
    assert not [node for node in nodes if isinstance(node, ast.Import) for alias in node.names if alias.name.startswith("qcase.")]
    by_string = [ast.unparse(node) for node in nodes if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func)]
    assert len(by_string) == (1 if path.name == "registry.py" else 0)


LARGEST_FILE = 500  # lines
LARGEST_FUNCTION = 60
# ext4.py is one format, which reads best as one.
FILES_THAT_MAY_BE_LARGER = {"disk/ext4"}


def test_files_and_functions_are_small_enough_to_read() -> None:
    large = set()
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        name = str(path.relative_to(ROOT / "qcase").with_suffix(""))
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        longest = max(((node.end_lineno or 0) - node.lineno + 1 for node in functions), default=0)
        if len(text.splitlines()) > LARGEST_FILE or longest > LARGEST_FUNCTION:
            large.add(name)
    assert large - FILES_THAT_MAY_BE_LARGER == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_but_the_gateway_starts_processes(path: Path) -> None:
    if path.name in ("process.py", "confine.py"):  # which becomes another program, and starts none
        return
    text = path.read_text(encoding="utf-8")
    for call in ("subprocess.Popen(", "subprocess.run(", "subprocess.check_", "os.system(", "os.fork(", "os.exec", "os.spawn"):
        assert call not in text


# Where the path of a `Tree` is asked for: to mount it, to show it, or of what was looked at and no step can change any more.
PATHS_OF_TREES = {
    "containers/step": 1,
    "disk/inject": 2,
    "guests/debian": 1,
    "guests/kernel_build": 1,
    "host/workspace_folders": 2,
    "prepare/run_folders": 1,
    "store/content": 3,
}
# Modules that know trees handle folders of steps: they have no use for what follows links. These two read what is ours by path.
READ_OURS = {"guests/debian", "pipelines/sources"}
BY_PATH = {"walk", "fwalk", "rmtree", "copytree", "copy2", "copyfileobj", "move", "rglob", "unpack_archive", "extractall"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_folders_that_a_step_can_write_to_are_reached_by_trees_alone(path: Path) -> None:
    """Types do the rest: a `Tree` is no path, so mypy finds who hands it to a function that opens, lists or removes paths."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    asked = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "host"]
    name = str(path.relative_to(ROOT / "qcase").with_suffix(""))
    if name != "host/trees":
        assert len(asked) == PATHS_OF_TREES.get(name, 0), "who needs a tree's path? see qcase.host.trees"
    if "qcase.host.trees" in imports(path) and name not in READ_OURS:
        called = {
            node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert called & BY_PATH - {"walk"} == set()
        walks = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr == "walk"
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        ]
        assert walks == []


def test_a_tree_is_no_path() -> None:
    from qcase.host.trees import Tree

    with pytest.raises(TypeError):
        os.fspath(Tree(ROOT))  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        Path(Tree(ROOT))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "argv",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
    ],
    ids=" ".join,
)
def test_the_linters_are_content(argv: tuple[str, ...]) -> None:
    done = process.run([sys.executable, "-m", *argv], cwd=ROOT, check=False, timeout=600)
    assert done.returncode == 0, done.output


def test_what_the_tests_install_is_pinned() -> None:
    lines = (ROOT / "tests" / "requirements.txt").read_text(encoding="ascii").splitlines()
    assert lines
    assert all("==" in line for line in lines)


NAMED = re.compile(r"`(qcase(?:\.[a-z_]+)+(?:\.\w+)?|[a-z_]+\.\w+)`")
# Files, labels, and variables that are named as a module is.
NO_MODULES = re.compile(r".*\.(toml|lock|sealed|img|sh|list)|(text|session)\..*")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_that_a_docstring_names_is_there(path: Path) -> None:
    stems = {module.stem: module for module in MODULES}
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    texts = [ast.get_docstring(n) for n in nodes if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    for name in (name for text in texts if text for name in NAMED.findall(text) if not NO_MODULES.fullmatch(name)):
        first, *rest = name.split(".")
        if first != "qcase" and first not in stems:
            continue  # a variable, or a key of a configuration
        found: Any = importlib.import_module(
            "qcase" if first == "qcase" else ".".join(stems[first].relative_to(ROOT).with_suffix("").parts)
        )
        for part in rest:
            if not hasattr(found, part) and isinstance(found, types.ModuleType):
                with contextlib.suppress(ImportError):
                    importlib.import_module(f"{found.__name__}.{part}")
            assert hasattr(found, part), name
            found = getattr(found, part)


NO_SUBJECT = re.compile(
    r"(What|Who|Whom|Whose|It|That|Those|Where|How|Whether|Which|When|They|This|These|There|Whoever|Whatever|All (that|those|of)"
    r"|Everything|Anything|Something|Nothing|Nobody|Somebody|Each|Of|For|As|In|On|At|By|With|Without|Until|After|Before|If)\b"
)
# A function's docstring begins with a verb: a noun says nothing of what it does.
NO_VERB = re.compile(r"(The|A|An|All|One|No|Both|Another)\b|`|\w+s,|Names\b|Tags\b")
# What is still to be written anew. The list becomes shorter.
STILL_WITHOUT_SUBJECT: set[str] = set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_docstring_begins_with_what_the_thing_is_or_does(path: Path) -> None:
    """A verb or a noun, in plain technical English: no clause without a subject."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    texts = [ast.get_docstring(n) for n in nodes if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    wrong = [line for text in texts if text and NO_SUBJECT.match(line := text.splitlines()[0])]
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef) and n.name != "__init__"]
    values = [n for n in functions if not any("property" in ast.unparse(one) for one in n.decorator_list)]
    wrong += [line for n in values if (text := ast.get_docstring(n)) and NO_VERB.match(line := text.splitlines()[0])]
    assert bool(wrong) == (str(path.relative_to(ROOT / "qcase").with_suffix("")) in STILL_WITHOUT_SUBJECT), wrong
