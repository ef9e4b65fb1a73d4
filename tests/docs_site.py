"""What `make docs` adds to the pages: one that shows the help of every command, as it is."""

from __future__ import annotations

import os
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from qcase.cli import app


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "commands.md", content=commands_page()))
    return files


def commands_page() -> str:
    parts = ["# Commands\n"]
    for name, text in helps():
        parts.append(f"## {name}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def helps() -> list[tuple[str, str]]:
    """The help of the program and of each command, at a width of 100 columns."""
    os.environ["COLUMNS"] = "100"
    found: list[tuple[str, str]] = []

    def visit(name: str, command: Any, parent: Any) -> None:
        context = command.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=100)
        found.append((context.command_path, command.get_help(context)))
        for child in command.list_commands(context) if hasattr(command, "list_commands") else []:
            visit(child, command.get_command(context, child), context)

    visit("qcase", typer.main.get_command(app), None)
    return found
