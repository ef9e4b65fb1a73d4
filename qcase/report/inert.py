"""Makes text inert, so that no CI service takes it for a command: text of a guest, a compiler, or a file name of the suite.

    service                  a command in a log                             becomes
    GitHub Actions, Gitea    `::error::…` at the start of a line            `: :error::…`
    GitHub, Azure            `##[error]…`, `##vso[…]` anywhere              `# #[error]…`
    TeamCity                 `##teamcity[…]` anywhere                       `# #teamcity[…]`
    GitLab, Travis           `section_start:<time>:…`, `travis_fold:…`      `section _start:<time>:…`

A line may start behind blanks, escapes and every character at which some reader ends a line. In logs one blank is added. JSON,
XML and HTML keep the same text as before: one character is replaced with an escape of the format.
"""

from __future__ import annotations

import re
from typing import Any, TextIO, cast

_ESCAPE = r"\x1b\[[0-?]*[ -/]*[@-~]"  # an escape of a terminal; a service may remove it
_ENDS = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_COMMAND = re.compile(
    rf"(?P<before>(?:^|[{_ENDS}])(?:[^\S{_ENDS}]|[\u200b\ufeff]|{_ESCAPE})*)(?P<colon>:)(?=(?:{_ESCAPE})*:)"
    rf"|(?P<hash>\#)(?=(?:{_ESCAPE})*\#(?:{_ESCAPE}|[\w.-])*\[)"
    r"|(?P<word>section|travis)_(?=(?:start|end|fold|time):)"
)
_MAYBE = re.compile("[:#\x1b][:#\x1b]|section_|travis_")


def log(text: str) -> str:
    """Make text inert for a log: adds a blank."""
    return _replaced(text, ": ", "# ", " _")


def json(text: str) -> str:
    """Make a JSON document inert without changing its meaning."""
    return _replaced(text, r"\u003a", r"\u0023", r"\u005f")


def xml(text: str) -> str:
    """Make an XML or HTML document inert without changing its meaning."""
    return _replaced(text, "&#58;", "&#35;", "&#95;")


def _replaced(text: str, colon: str, number: str, line: str) -> str:
    if _MAYBE.search(text) is None:
        return text

    def replace(found: re.Match[str]) -> str:
        if found["hash"]:
            return number
        return f"{found['word']}{line}" if found["word"] else f"{found['before']}{colon}"

    return _COMMAND.sub(replace, text)


class _Stream:
    """A text stream that makes everything written to it inert."""

    def __init__(self, inner: TextIO) -> None:
        self.inner = inner

    def write(self, text: str) -> int:
        self.inner.write(log(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def stream(inner: TextIO) -> TextIO:
    """Return a stream that makes text inert and passes it to `inner`."""
    return inner if isinstance(inner, _Stream) else cast(TextIO, _Stream(inner))


def command(outer: TextIO, line: str) -> None:
    """Write a command of our own, and only that: a live display beside it must stay inert."""
    assert isinstance(outer, _Stream)
    outer.inner.write(f"{line}\n")
    outer.inner.flush()
