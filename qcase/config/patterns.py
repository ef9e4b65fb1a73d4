"""Regular expressions of a case: compiled by RE2, with a hint where axbuild's engine read them differently."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import re2

# ---- patterns


class PatternError(ValueError):
    """A pattern that RE2 refuses, would read differently than its author meant, or that matches any text."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


@functools.lru_cache(maxsize=256)  # the cases of a suite share most of their fail patterns
def compile_pattern(pattern: str, *, would: str = "") -> Any:
    """Compile `pattern` with RE2; `^` and `$` match at the ends of a line. Raises `PatternError`.

    Suites are written for Rust's regex dialect. A pattern that RE2 refuses gets a hint; a construct that RE2 would silently read
    differently is refused here, and so is a pattern that matches the empty string: it would always `would` ("pass", "fail").
    """
    for construct, meaning, at in _read_differently(pattern):
        raise PatternError(f"pattern {pattern!r}: {construct} has another meaning in RE2, at character {at + 1}", meaning)
    try:
        compiled = re2.compile("(?m)" + pattern, _RE2_OPTIONS)
    except re2.error as e:
        said = e.args[0].decode(errors="replace") if e.args and isinstance(e.args[0], bytes) else str(e)
        said = said.replace("(?m)" + pattern, pattern)  # the fragment is at times the whole
        place = _place_of_error(pattern, said)
        where = "" if place is None else f", at character {place + 1}"
        raise PatternError(f"pattern {pattern!r}: {said}{where}", _hint_for(said)) from None
    except UnicodeEncodeError:
        raise PatternError(f"pattern {pattern!r}: not UTF-8", "a placeholder stands for a name that is not UTF-8") from None
    if compiled.search("") is not None:
        consequence = f"so it would always {would}" if would else "so it would match everything"
        raise PatternError(f"pattern {pattern!r} matches the empty string, {consequence}")
    return compiled


def _re2_options() -> Any:
    options = re2.Options()
    options.log_errors = False  # RE2 writes to standard error by default
    return options


_RE2_OPTIONS = _re2_options()

_CONSTRUCTS = re.compile(
    r"""
    (?P<quote>\\Q.*?(?:\\E|\Z))           # RE2's literal text
    | (?P<boundary>\\b\{[a-z-]+\})        # Rust: \b{start} and friends
    | (?P<word>\\[<>])                    # Rust: start and end of a word
    | (?P<escape>\\.)
    | (?P<open>\[\^?\]?)
    """,
    re.VERBOSE | re.DOTALL,
)
_IN_CLASS = re.compile(
    r"(?P<escape>\\.)|(?P<posix>\[:\^?[a-z]+:\])|(?P<operation>&&|--|~~)|(?P<nested>\[)|(?P<close>\])|(?P<other>.)", re.DOTALL
)


def _place_of_error(pattern: str, said: str) -> int | None:
    """Locate RE2's error in a pattern, from 0. RE2 names a fragment, or the whole pattern for a wrong parenthesis."""
    kind, _, fragment = said.partition(": ")
    if fragment and fragment != pattern and pattern.count(fragment) == 1:
        return pattern.index(fragment)
    opened: list[int] = []
    position = 0
    while position < len(pattern):
        if found := _CONSTRUCTS.match(pattern, position):
            start, position = position, found.end()
            if found.lastgroup == "open":
                while (inner := _IN_CLASS.match(pattern, position)) and inner.lastgroup != "close":
                    position = inner.end()
                if inner is None:
                    return start  # a class that is not closed
                position = inner.end()
            continue
        if pattern[position] == "(":
            opened.append(position)
        elif pattern[position] == ")":
            if not opened:
                return position
            opened.pop()
        position += 1
    if opened and ("missing )" in kind or "parenthesis" in kind):
        return opened[-1]
    if kind.startswith("trailing"):
        return len(pattern) - 1
    return pattern.index(fragment) if fragment and fragment in pattern else None


def _read_differently(pattern: str) -> Iterable[tuple[str, str, int]]:
    """Find constructs that RE2 reads differently from Rust's regex crate, each with a hint and its position."""
    position = 0
    while found := _CONSTRUCTS.search(pattern, position):
        position = found.end()
        if found.lastgroup == "boundary":
            yield found[0], r"write \b", found.start()
        elif found.lastgroup == "word":
            yield found[0], rf"write \b for the edge of a word, {found[0][1]} for the character", found.start()
        elif found.lastgroup == "open":
            while inner := _IN_CLASS.match(pattern, position):
                position = inner.end()
                if inner.lastgroup == "operation":
                    sign = inner[0][0]
                    yield (
                        f"{inner[0]} in a character class",
                        rf"write the class out; write \{sign} for the character",
                        inner.start(),
                    )
                elif inner.lastgroup == "nested":
                    yield "[ in a character class", r"RE2 has no nested classes; write \[ for the character", inner.start()
                elif inner.lastgroup == "close":
                    break


_HINTS: tuple[tuple[str, str], ...] = (
    (r"invalid perl operator: \(\?<?[=!]", "neither RE2 nor Rust's regex has look-around"),
    (r"invalid escape sequence: \\[1-9]", "neither RE2 nor Rust's regex has back-references"),
    (r"invalid perl operator: \(\?[a-zA-Z-]*x", "RE2 has no verbose mode (?x): leave out its blanks and comments"),
    (r"invalid perl operator: \(\?[a-zA-Z-]*[uR]", "RE2 has no flags u and R: leave them out"),
    (r"invalid escape sequence: \\[uU]", r"write \x{…}"),
    (r"invalid escape sequence: \\h", r"write [0-9A-Fa-f] for a hex digit, [ \t] for a blank"),
    (r"invalid escape sequence: \\Z", r"write \z"),
    (r"invalid repetition size", "RE2 repeats at most 1000 times"),
    (r"invalid character class range: \\[pP]", r"RE2 knows general categories and scripts: \p{Lu}, \p{Greek}"),
)


def _hint_for(said: str) -> str:
    for sign, hint in _HINTS:
        if re.search(sign, said):
            return hint
    return ""


# ---- patterns
#
# RE2's syntax is close to that of Python's `re`, so Python's parser takes patterns apart. A pattern that it cannot parse is not
# checked.

# Characters that no pattern sees: escapes, and characters that `qcase.console.transcript` removes.
_IMPOSSIBLE = {0x00: "NUL", 0x07: "BEL", 0x08: "backspace", 0x0D: "a carriage return", 0x1B: "an escape", 0x7F: "DEL"}


def never_matches(pattern: str) -> str:
    """Return the reason why a pattern cannot match any output of a guest; empty if it may match."""
    tree = _parsed(pattern)
    return "" if tree is None else _impossible(tree)


def only_text(pattern: str) -> str | None:
    """Return the one text that a pattern without choices matches, anchors aside; None for every other pattern."""
    tree = _parsed(pattern)
    if tree is None:
        return None
    text = ""
    for operation, value in tree:
        name = str(operation)
        if name == "LITERAL":
            text += chr(value)
        elif name != "AT":
            return None
    return text or None


def _parsed(pattern: str) -> list[tuple[Any, Any]] | None:
    from re import _parser  # type: ignore[attr-defined]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(_parser.parse(pattern))
    except (re.error, OverflowError, RecursionError):
        return None


def _impossible(sequence: Sequence[tuple[Any, Any]]) -> str:
    """Return the reason why a sequence cannot match, from its parts and from the neighbours of an anchor; empty if it may."""
    for index, (operation, value) in enumerate(sequence):
        name = str(operation)
        before = _character(sequence[index - 1]) if index else None
        after = _character(sequence[index + 1]) if index + 1 < len(sequence) else None
        why = ""
        if name == "LITERAL" and value in _IMPOSSIBLE:
            why = f"{_IMPOSSIBLE[value]} is taken out of what the guest writes"
        elif name == "AT" and str(value) in ("AT_BEGINNING", "AT_BEGINNING_STRING") and before not in (None, "\n"):
            why = f"no line begins behind {before!r}"
        elif name == "AT" and str(value) in ("AT_END", "AT_END_STRING") and after not in (None, "\n"):
            why = f"no line ends before {after!r}"
        elif name == "IN" and all(str(kind) == "LITERAL" and item in _IMPOSSIBLE for kind, item in value):
            why = "its characters are taken out of what the guest writes"
        elif name == "SUBPATTERN":
            why = _impossible(list(value[-1]))
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and value[0] > 0:
            why = _impossible(list(value[2]))
        elif name == "BRANCH":
            reasons = [_impossible(list(branch)) for branch in value[1]]
            why = reasons[0] if all(reasons) else ""
        if why:
            return why
    return ""


def _character(item: tuple[Any, Any]) -> str | None:
    """Return the one character that a part of a pattern matches; None for any other part."""
    return chr(item[1]) if str(item[0]) == "LITERAL" else None
