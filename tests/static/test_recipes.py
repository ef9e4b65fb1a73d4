"""CI recipes: valid for their services, and their shell steps are sound. `tests/vm/test_recipes.py` runs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qcase.host import process
from tests.conftest import ROOT

CI = ROOT / "examples" / "ci"
PROJECT = ROOT / ".github" / "workflows" / "ci.yml"
SCRIPTS = [
    ROOT / ".ci" / "run",
    ROOT / ".ci" / "setup",
    ROOT / ".ci" / "image",
    ROOT / "container" / "entrypoint.sh",
    CI / "ci.sh",
]
SCHEMAS = {
    PROJECT: "vendor.github-workflows",
    CI / "github.yml": "vendor.github-workflows",
    CI / "gitlab-ci.yml": "vendor.gitlab-ci",
}
YAML = "{extends: default, rules: {line-length: {max: 140}}}"


def shell_steps(path: Path) -> list[str]:
    """The shell programs of a recipe, in its order. What the service replaces, `${{ … }}`, becomes a plain word."""
    recipe: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "jobs" in recipe:
        return [step["run"] for job in recipe["jobs"].values() for step in job["steps"] if "run" in step]
    return ["\n".join(job["script"]) for job in recipe.values()]


def checked(*argv: str) -> None:
    done = process.run(argv, check=False, timeout=120)
    assert done.returncode == 0, done.output


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_a_recipe_is_what_its_service_takes(path: Path) -> None:
    checked(sys.executable, "-m", "yamllint", "--strict", "-d", YAML, str(path))
    checked(sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[path], str(path))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(path: Path) -> None:
    checked(str(Path(sys.executable).with_name("shellcheck")), str(path))


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_a_recipes_shell_steps_are_sound(path: Path, tmp_path: Path) -> None:
    for number, step in enumerate(shell_steps(path)):
        assert "${{" not in step, "what a service puts in comes by an environment variable: it may hold anything"
        script = tmp_path / f"{number}.sh"
        script.write_text(f"#!/bin/bash\nset -e\n{step}\n")
        # SC2046: a list of packages is meant to be split.
        checked(str(Path(sys.executable).with_name("shellcheck")), "-e", "SC2046", str(script))


def test_setup_says_what_is_missing_and_does_nothing() -> None:
    assert process.run([str(ROOT / ".ci" / "setup"), "--packages", "tests"], timeout=60).output == ""
