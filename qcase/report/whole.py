"""A report that is made of the results of a whole run, once it has ended: JUnit, HTML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qcase import events
from qcase.report import files, json, results
from qcase.report.results import Results


class WholeReport:
    """Listens to events; writes the file when the run ends. Raises `UsageError` at once where it could not.

    `render` makes the report's text. `option` is what a person asked for it by.
    """

    def __init__(self, path: Path, option: str, render: Callable[[Results], str]) -> None:
        files.check(path, option)
        self._path = path
        self._option = option
        self._render = render
        self._started: events.RunStarted | None = None

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            self._started = event
        elif isinstance(event, events.RunFinished):
            assert self._started is not None
            self.write(results.of_document(json.results_document(self._started, event)))

    def write(self, run: Results) -> None:
        """Write the report of a run. Raises `InfraError` where it cannot be written."""
        files.write(self._path, self._render(run), self._option)


def junit(path: Path) -> WholeReport:
    """`--junit FILE`."""
    from qcase.report.junit import render

    return WholeReport(path, "--junit", render)


def html(path: Path) -> WholeReport:
    """`--html FILE`."""
    from qcase.report.html import render

    return WholeReport(path, "--html", render)
