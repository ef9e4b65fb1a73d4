"""A run as one self-contained HTML page: it can be sent by mail or kept by CI. The template is `page.html.jinja`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from qcase.report import inert
from qcase.report.results import Results, Subtest

_ORDER = ("error", "build-error", "panic", "fail", "timeout", "exited", "flaky", "known-fail", "skipped", "pass")


def render(run: Results) -> str:
    """Render the page. All text of a guest is escaped."""
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
    good = not run.broken_off and not run.unfinished and set(found) <= {"pass", "flaky"} and found
    said = "all passed" if good else ", ".join(f"{count} {word}" for word, count in counts) or "nothing ran"
    when = datetime.fromtimestamp(run.started, UTC).strftime("%Y-%m-%d %H:%M UTC") if run.started else ""
    name = Path(run.workspace).name or "qcase"
    page = environment.get_template("page.html.jinja")
    return inert.xml(page.render(run=run, counts=counts, said=said, when=when, name=name, seconds=_seconds, counted=_counted))


def _counted(subtests: Sequence[Subtest]) -> str:
    """Return such as `3 commands`, or `12 tests: 10 pass, 2 skip`."""
    if all(subtest.command for subtest in subtests):
        return f"{len(subtests)} commands"
    counts = Counter(subtest.status.value for subtest in subtests)
    return f"{len(subtests)} tests: {', '.join(f'{count} {status}' for status, count in counts.items())}"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} s" if value < 60 else f"{int(value) // 60} min {int(value) % 60} s"
