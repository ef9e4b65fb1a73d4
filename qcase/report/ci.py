"""Folding and annotations in the logs of CI services.

    GitHub Actions   GITHUB_ACTIONS set   `::group::` … `::endgroup::`, `::error title=…,file=…::…`
    GitLab CI        GITLAB_CI set        `section_start:<time>:<name>[collapsed=true]`, between escapes that its viewer hides

GitHub obeys such commands anywhere in a log, also commands that a guest prints. So all other text in the log is made inert
(`qcase.report.inert`). Text of a case also stands between `::stop-commands::<token>` and `::<token>::`, with a new random token
each time, which no guest can know.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from qcase.model import CaseResult, Verdict
from qcase.report import inert

Say = Callable[[str], None]


def worth_a_note(result: CaseResult) -> bool:
    """Tell whether a case that makes no run fail is to be annotated: flaky, with kernel trouble, a known failure, skipped."""
    skipped = result.verdict is Verdict.SKIPPED and result.phase is not None
    known = result.verdict is Verdict.KNOWN_FAIL or bool(result.stale)
    return result.flaky or bool(result.kernel_trouble) or known or skipped


class Folding:
    """A log without folding and annotations: all text stays as it is."""

    @contextmanager
    def fold(self, title: str, say: Say) -> Iterator[None]:  # noqa: ARG002
        """Make the lines written within foldable."""
        yield

    @contextmanager
    def verbatim(self, say: Say) -> Iterator[None]:  # noqa: ARG002
        """Mark the lines written within as a guest's text, in which the service obeys no commands."""
        yield

    def annotate(self, result: CaseResult, workspace: str, say: Say) -> None:
        """Annotate a case that is `worth_a_note`, or did not pass, if the service shows annotations."""


class GitHub(Folding):
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._root = environ.get("GITHUB_WORKSPACE", "")

    @contextmanager
    def fold(self, title: str, say: Say) -> Iterator[None]:
        say(f"::group::{inert.log(title)}")
        try:
            with self.verbatim(say):
                yield
        finally:
            say("::endgroup::")

    @contextmanager
    def verbatim(self, say: Say) -> Iterator[None]:
        token = secrets.token_hex(16)
        say(f"::stop-commands::{token}")
        try:
            yield
        finally:
            say(f"::{token}::")

    def annotate(self, result: CaseResult, workspace: str, say: Say) -> None:
        word = "flaky" if result.flaky else result.verdict.value
        attempt = result.earlier[-1] if result.flaky else result
        path = Path(workspace, result.path, result.config or f"qemu-{result.arch}.toml")
        if self._root and path.is_relative_to(self._root):
            path = path.relative_to(self._root)
        told = [trouble.told for trouble in result.kernel_trouble]
        if result.stale and not result.red:
            told += [f"a known failure passes now: {entry.told}" for entry in result.stale]
        known = (f"known: {entry.told}" for entry in result.known)
        text = "\n".join(part for part in (*known, attempt.reason, attempt.excerpt or "", *told) if part)
        title = _property(f"{word}: {result.name} ({result.arch})")
        level = "error" if result.red else "warning" if result.passed or result.stale else "notice"
        say(f"::{level} title={title},file={_property(str(path))}::{_data(text)}")


class GitLab(Folding):
    @contextmanager
    def fold(self, title: str, say: Say) -> Iterator[None]:
        name = f"qcase_{re.sub('[^a-z0-9]+', '_', title.lower())}_{secrets.token_hex(4)}"
        say(f"\x1b[0Ksection_start:{int(time.time())}:{name}[collapsed=true]\r\x1b[0K{title}")
        try:
            yield
        finally:
            say(f"\x1b[0Ksection_end:{int(time.time())}:{name}\r\x1b[0K")


def detect(environ: Mapping[str, str] = os.environ) -> Folding:
    """Return the folding of the CI service that shows this log."""
    if environ.get("GITHUB_ACTIONS") == "true":
        return GitHub(environ)
    return GitLab() if environ.get("GITLAB_CI") == "true" else Folding()


def _data(text: str) -> str:
    return inert.log(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
