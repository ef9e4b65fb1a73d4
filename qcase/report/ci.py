"""What CI services read in a log: parts that fold away, and annotations.

    GitHub Actions   GITHUB_ACTIONS set   `::group::` … `::endgroup::`, `::error title=…,file=…::…`
    GitLab CI        GITLAB_CI set        `section_start:<time>:<name>[collapsed=true]`, between escapes that its viewer hides

GitHub obeys such commands wherever in a log they stand, also those that a guest prints. So what a case said stands between
`::stop-commands::<token>` and `::<token>::`, with another token each time, which no guest can know.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from qcase.model import CaseResult

Say = Callable[[str], None]


class Folding:
    """Somewhere that knows nothing of folding: all stands there as it is."""

    @contextmanager
    def fold(self, title: str, say: Say) -> Iterator[None]:  # noqa: ARG002
        """What is said within can be folded away."""
        yield

    @contextmanager
    def verbatim(self, say: Say) -> Iterator[None]:  # noqa: ARG002
        """What is said within are a guest's words, and never commands."""
        yield

    def annotate(self, result: CaseResult, workspace: str, say: Say) -> None:
        """Mark a case that did not pass, or is flaky, where the service shows such things."""


class GitHub(Folding):
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._root = environ.get("GITHUB_WORKSPACE", "")

    @contextmanager
    def fold(self, title: str, say: Say) -> Iterator[None]:
        say(f"::group::{title}")
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
        path = Path(workspace, result.path) / f"qemu-{result.arch}.toml"
        if self._root and path.is_relative_to(self._root):
            path = path.relative_to(self._root)
        text = "\n".join(part for part in (attempt.reason, attempt.excerpt or "") if part)
        title = _property(f"{word}: {result.label} ({result.arch})")
        level = "warning" if result.flaky else "error"
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
    """Where this log will be read."""
    if environ.get("GITHUB_ACTIONS") == "true":
        return GitHub(environ)
    return GitLab() if environ.get("GITLAB_CI") == "true" else Folding()


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
