"""A TOML file as a document: its text, its values, and the line of each key for messages."""

from __future__ import annotations

import bisect
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qcase import parsing
from qcase.errors import ConfigError, Problem
from qcase.host import beneath
from qcase.text import printable


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file as data. Raises `ConfigError` if it cannot be read or parsed."""
    return read(path, Path.cwd()).data


@dataclass(frozen=True)
class Document:
    """A TOML file: its text, and the text as data. In messages its path is relative to `base`."""

    path: Path
    base: Path
    text: str
    data: dict[str, Any]

    @cached_property
    def file(self) -> str:
        return _human(self.path, self.base)

    @cached_property
    def lines(self) -> dict[tuple[str | int, ...], int]:
        return key_lines(self.text)

    def problem(self, loc: tuple[str | int, ...], what: str, hint: str = "") -> Problem:
        """Return a problem at `loc`; its line is that of the key, or of the nearest enclosing key with a line."""
        line = next((self.lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in self.lines), 0)
        return Problem(what, self.file, line, dotted(loc), hint)


def read(path: Path, base: Path) -> Document:
    def wrong(what: str, line: int = 0, hint: str = "") -> ConfigError:
        return ConfigError([Problem(what, _human(path, base), line, hint=hint)])

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise wrong("is not a file")
        raw = beneath.read(path)
    except OSError as e:
        raise wrong(f"cannot be read: {e.strerror}") from None
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise wrong(f"is not UTF-8: byte 0x{raw[e.start]:02x}", line, "save it as UTF-8") from None
    try:
        return Document(path, base, text, parsing.toml(text))
    except ValueError as e:
        what = str(e)
        place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", what)
        if place is None:
            raise wrong(f"is not TOML: {what}") from None
        line = int(place[1]) if place[1] else len(text.splitlines())
        where = f", column {place[2]}" if place[2] else ", at the end of the file"
        raise wrong(f"is not TOML: {what[: place.start()]}{where}", line) from None


def config_error(problems: Sequence[Problem]) -> ConfigError:
    return ConfigError(sorted(problems, key=lambda problem: problem.line))


def _human(path: Path, base: Path) -> str:
    """Return `path` relative to `base` if it lies below, else unchanged; always printable."""
    shown = str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
    return printable(shown)


def dotted(loc: Iterable[str | int]) -> str:
    """Format a key as TOML writes it: `guest.x86_64.kernel`, `success_regex[0]`."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        bare = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else '"' + printable(part) + '"'
        text += f".{bare}" if text else bare
    return text


# ---- where the keys of a TOML file stand


def key_lines(text: str) -> dict[tuple[str | int, ...], int]:
    """Return the line, from 1, of every key, table and array element of `text`, which must be valid TOML."""
    return _Scanner(text).run()


class _Scanner:
    """Scanner that notes the beginning of each key in valid TOML. Of values it finds only the end."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.newlines = [i for i, c in enumerate(text) if c == "\n"]
        self.lines: dict[tuple[str | int, ...], int] = {}
        self.elements: dict[tuple[str | int, ...], int] = {}  # how many [[tables]] an array has so far

    def run(self) -> dict[tuple[str | int, ...], int]:
        table: tuple[str | int, ...] = ()
        while self._skip_blank():
            start = self.at
            if self.text[self.at] == "[":
                double = self.text.startswith("[[", self.at)
                self.at += 2 if double else 1
                table = self._table(self._key(), double)
                self._note(table, start)
                self.at = self.text.index("]", self.at) + (2 if double else 1)
            else:
                self._pair(table)
        return self.lines

    def _table(self, key: tuple[str, ...], double: bool) -> tuple[str | int, ...]:
        """Return the place of a table's header. An array of tables on the way means its last element."""
        loc: tuple[str | int, ...] = ()
        for n, part in enumerate(key, 1):
            loc += (part,)
            if n == len(key) and double:
                index = self.elements.get(loc, 0)
                self.elements[loc] = index + 1
                loc += (index,)
            elif loc in self.elements:
                loc += (self.elements[loc] - 1,)
        return loc

    def _pair(self, table: tuple[str | int, ...]) -> None:
        start = self.at
        loc = table + self._key()
        self._note(loc, start, table)
        self.at = self.text.index("=", self.at) + 1
        self._value(loc)

    def _note(self, loc: tuple[str | int, ...], start: int, table: tuple[str | int, ...] = ()) -> None:
        """Record that `loc` begins at `start`, and the tables that only its dotted key names."""
        line = bisect.bisect_left(self.newlines, start) + 1
        for n in range(len(table) + 1, len(loc) + 1):
            self.lines.setdefault(loc[:n], line)

    def _key(self) -> tuple[str, ...]:
        """Parse a dotted key into its parts; stops at the text after it."""
        parts: list[str] = []
        while True:
            self._skip(" \t")
            if self.text[self.at] in "\"'":
                start = self.at
                self._string()
                parts.append(next(iter(parsing.toml(self.text[start : self.at] + " = 0"))))
            else:
                start = self.at
                while self.text[self.at].isalnum() or self.text[self.at] in "_-":
                    self.at += 1
                parts.append(self.text[start : self.at])
            self._skip(" \t")
            if self.text[self.at] != ".":
                return tuple(parts)
            self.at += 1

    def _value(self, loc: tuple[str | int, ...]) -> None:
        self._skip_blank()
        opening = self.text[self.at]
        if opening in "\"'":
            self._string()
        elif opening == "[":
            self.at += 1
            index = 0
            while self._inside("]"):
                self._note((*loc, index), self.at, loc)
                self._value((*loc, index))
                index += 1
        elif opening == "{":
            self.at += 1
            while self._inside("}"):
                self._pair(loc)
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\n":
                self.at += 1

    def _inside(self, closing: str) -> bool:
        """Tell whether another element follows; skips commas, and `closing`."""
        while True:
            self._skip_blank()
            self.at += 1
            if self.text[self.at - 1] == closing:
                return False
            if self.text[self.at - 1] != ",":
                self.at -= 1
                return True

    def _string(self) -> None:
        quote = self.text[self.at]
        fence = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.at += len(fence)
        while not self.text.startswith(fence, self.at):
            self.at += 2 if quote == '"' and self.text[self.at] == "\\" else 1
        self.at += len(fence)
        if len(fence) == 3:  # up to two quotes may stand right before the closing ones
            self._skip(quote)

    def _skip(self, characters: str) -> None:
        while self.at < len(self.text) and self.text[self.at] in characters:
            self.at += 1

    def _skip_blank(self) -> bool:
        """Skip blanks, line ends and comments; tell whether anything follows."""
        while True:
            self._skip(" \t\n")
            if not self.text.startswith("#", self.at):
                return self.at < len(self.text)
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end


def toml_value(value: object) -> str:
    """Format a value as TOML, on one line. A string so formatted is a key as well."""
    import tomli_w  # only where a file is written

    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    return tomli_w.dumps({"key": value}).removeprefix("key = ").removesuffix("\n")


def toml_key(key: str) -> str:
    """Format a key as TOML: bare if it can be."""
    import tomli_w

    return tomli_w.dumps({key: 0}).removesuffix(" = 0\n")
