"""Output of commands: messages, warnings, errors, columns and colour."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from qcase.arch import Arch
from qcase.errors import QcaseError, UsageError
from qcase.host import process

if TYPE_CHECKING:
    from pathlib import Path

    from qcase.events import Emit, Event


INTERRUPTED = 130
INTERNAL = 3
CLOSED_PIPE = 141  # as a shell shows programs that SIGPIPE ends
debugging = False
PATIENCE = 5.0  # seconds in which one interrupt is enough


def terminal_report(
    listeners: Sequence[Emit],
    repeat: Callable[[Sequence[str], Arch], str] = lambda *_: "",
    *,
    verbosity: int = 0,
    to_the_end: bool = False,
) -> Emit:
    """Say events to the terminal and to the other listeners.

    `to_the_end`: somebody waits for what the others write, so a terminal that is gone does not end the run before it is over.
    """
    from qcase.events import RunFinished
    from qcase.report.terminal import TerminalReport

    # The person first: a file that cannot be written must not hide the summary.
    person = TerminalReport(sys.stdout, repeat, verbosity=verbosity)
    gone: list[OSError] = []

    def emit(event: Event) -> None:
        try:
            if not gone:
                person(event)
        except OSError as error:
            if not to_the_end:
                raise
            gone.append(error)
        trouble: QcaseError | BrokenPipeError | None = None
        for listener in listeners:
            try:
                listener(event)
            except (QcaseError, BrokenPipeError) as error:
                trouble = trouble or error  # that of one report must not cost the others
        if trouble is not None:
            raise trouble
        if gone and isinstance(event, RunFinished):
            raise gone[0]

    return emit


def warn(emit: Emit, message: str) -> None:
    from qcase.events import Warned

    emit(Warned(message))


@contextmanager
def reported() -> Iterator[None]:
    """Print an error once, in one form, and leave with its exit code."""
    interrupted = False
    try:
        yield
    except typer.Exit as leaving:
        interrupted = leaving.exit_code == INTERRUPTED
        raise
    except QcaseError as error:
        if debugging:
            raise
        _print_error(error)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _stop_writing()
        raise typer.Exit(CLOSED_PIPE) from None
    except OSError as error:
        if debugging:
            raise
        _stop_writing()
        place = f"{error.filename}: " if error.filename else ""
        _print_error(QcaseError(f"{place}{error.strerror or error}"))
        raise typer.Exit(INTERNAL) from None
    finally:
        process.dismiss_guardian(sweep=interrupted)


SEVERITIES = {"error": "31;1", "bad": "31;1", "warning": "33;1", "good": "32;1"}


def coloured(text: str, code: str) -> str:
    """Colour a text if standard output is a terminal that wants colours."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def columns_of() -> int | None:
    """Return the terminal's width in columns; None without a terminal: then no line is broken."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def is_narrow() -> bool:
    columns = columns_of()
    return columns is not None and columns < 80


def wrapped(line: str, indent: str) -> str:
    """Break a line between words if the terminal is too narrow for it. Continuation lines begin with `indent`."""
    import textwrap

    columns = columns_of()
    if columns is None or len(line) <= columns:
        return line
    return textwrap.fill(
        line, max(columns, 40), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


def counted(number: object, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def give_to_reports(files: Iterable[tuple[str, Path | None]]) -> None:
    """Print for people on standard error from here on if a report, a pair of its option and its file, goes to standard output."""
    from qcase.report.output_file import STANDARD

    options = [option for option, file in files if file == STANDARD]
    if len(options) > 1:
        raise UsageError("standard output takes one report", where=f"{options[0]} -", hint=f"name a file for {options[1]}")
    if options:
        sys.stdout = sys.stderr


def _stop_writing() -> None:
    """Point standard output at nothing after its reader has gone or its disk is full: the flush at exit would fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(error: QcaseError) -> None:
    from qcase.report.error_text import print_error

    print_error(error)
