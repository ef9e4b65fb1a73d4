"""What `make docs` adds to the pages: one that shows the help of every command, as it is."""

from __future__ import annotations

from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from qcase.cli.main import command


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "commands.md", content=commands_page()))
    return files


def commands_page() -> str:
    parts = ["# Commands\n"]
    for name, text in helps():
        parts.append(f"## {name}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def helps(width: int = 100) -> list[tuple[str, str]]:
    """The help of the program and of each command, at a width of so many columns."""
    found: list[tuple[str, str]] = []

    def visit(name: str, one: Any, parent: Any) -> None:
        context = one.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=width)
        found.append((context.command_path, one.get_help(context)))
        for child in one.list_commands(context) if hasattr(one, "list_commands") else []:
            visit(child, one.get_command(context, child), context)

    visit("qcase", command(), None)
    return found
