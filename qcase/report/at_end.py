"""Reports made from the results of a whole run after its end: JUnit, HTML."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from qcase import events
from qcase.errors import InfraError
from qcase.model import KernelBuildResult
from qcase.report import json_report, output_file, results
from qcase.report.results import Results


class WholeReport:
    """Listens to events; writes the file when the run ends. Raises `UsageError` at once if it could not.

    When the run starts, the file becomes the report of a killed run: a run that really is killed must not leave the green file of
    an earlier run in place.

    `render` makes the report's text. `option`: the command-line option that asked for it, for messages.
    """

    def __init__(self, path: Path, option: str, render: Callable[[Results], str]) -> None:
        output_file.check(path, option)
        self._path = path
        self._option = option
        self._render = render
        self._started: events.RunStarted | None = None
        self._kernels: list[KernelBuildResult] = []

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            self._started = event
            if not output_file.special(self._path):
                document = {**json_report.run_document(event), **json_report.unfinished_document(0.0), "cases": []}
                with contextlib.suppress(InfraError):  # the write at the end reports the error
                    self.write(results.of_document(document))
        elif isinstance(event, events.KernelBuildFinished):
            self._kernels.append(event.build)
        elif isinstance(event, events.RunFinished):
            assert self._started is not None
            self.write(results.of_document(json_report.results_document(self._started, event, self._kernels)))

    def write(self, run: Results) -> None:
        """Write the report of a run. Raises `InfraError` if it cannot be written."""
        output_file.write(self._path, self._render(run), self._option)


def junit(path: Path) -> WholeReport:
    """Return the JUnit report for `--junit FILE`."""
    from qcase.report.junit_report import render

    return WholeReport(path, "--junit", render)


def html(path: Path) -> WholeReport:
    """Return the HTML report for `--html FILE`."""
    from qcase.report.html_report import render

    return WholeReport(path, "--html", render)
