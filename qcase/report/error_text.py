"""One error on the terminal: what, where, what to do."""

from __future__ import annotations

import sys
from typing import TextIO

from qcase.report import inert
from qcase.text import without_controls


def print_error(error: Exception, stream: TextIO | None = None) -> None:
    """Print one error: what, where, what to do."""
    from rich.console import Console
    from rich.text import Text

    stream = inert.stream(stream or sys.stderr)
    console = Console(file=stream, highlight=False, emoji=False, markup=False)
    text = Text("error: ", style="bold red")
    text.append(_printable_lines(str(error)), style="not bold default")
    # On a terminal lines are wrapped between words; elsewhere not at all, so that text search finds whole lines.
    whole = not stream.isatty()
    console.print(text, soft_wrap=whole)
    hint = getattr(error, "hint", "")
    if hint:
        console.print(Text(f"hint: {_printable_lines(hint)}", style="cyan"), soft_wrap=whole)


def _printable_lines(text: str) -> str:
    return "\n".join(without_controls(line) for line in text.split("\n"))
