"""A run as one page without anything around it: it can be sent by mail or kept by CI. The template is `page.html.jinja`."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from qcase import events
from qcase.report import files, json, results
from qcase.report.results import Results

_ORDER = ("error", "build-error", "panic", "fail", "timeout", "exited", "flaky", "skipped", "pass")


class HtmlReport:
    """Listens to events; writes the file when the run ends. Raises `UsageError` at once where it could not."""

    def __init__(self, path: Path) -> None:
        files.check(path, "--html")
        self._path = path
        self._started: events.RunStarted | None = None

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            self._started = event
        elif isinstance(event, events.RunFinished):
            assert self._started is not None
            document = results.of_document(json.results_document(self._started, event))
            write(document, self._path)


def write(run: Results, path: Path) -> None:
    """Write the page of a run. Raises `InfraError` where it cannot be written."""
    files.write(path, render(run), "--html")


def render(run: Results) -> str:
    """The page. What a guest said is escaped, and cannot do anything in it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found = Counter(case.word for case in run.cases)
    counts = [(word, found[word]) for word in _ORDER if found[word]]
    good = run.complete and not run.interrupted and set(found) <= {"pass", "flaky"} and found
    said = "all passed" if good else ", ".join(f"{count} {word}" for word, count in counts) or "nothing ran"
    when = datetime.fromtimestamp(run.started, UTC).strftime("%Y-%m-%d %H:%M UTC") if run.started else ""
    name = Path(run.workspace).name or "qcase"
    page = environment.get_template("page.html.jinja")
    return page.render(run=run, counts=counts, said=said, when=when, name=name, seconds=_seconds)


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} s" if value < 60 else f"{int(value) // 60} min {int(value) % 60} s"
