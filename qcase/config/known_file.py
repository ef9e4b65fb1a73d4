"""Known failures: the file `known.toml`, and the table `[qcase.known]` of a case's file.

[[known]]
case = "normal/futex"          a name, a display name, or a glob for them
test = "requeue/*"             a test inside, or a command of a group; without it the entry is about the case as a whole
reason = "FUTEX_REQUEUE is not there yet"
until = 2027-01-31             the last day on which the entry excuses
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, Strict, WithJsonSchema, model_validator

from qcase.arch import Arch
from qcase.config.fields import Model, error, matching
from qcase.text import nearest

KNOWN_FILE: Final = "known.toml"
Excuses = Literal["fail", "broken", "panic", "timeout", "exited", "build-error"]
OF_TESTS: Final = ("fail", "broken")  # what an entry about tests may excuse
OF_CASES: Final = ("fail", "panic", "timeout", "exited", "build-error")


@dataclass(frozen=True)
class Known:
    """A known failure. `place`: file and line of the entry. `case`, `test`: globs; an empty `case` is the case whose file has the
    entry, an empty `test` the case as a whole. `arches`: empty for all. `until`: the last day on which the entry excuses.
    """

    place: str
    reason: str
    case: str = ""
    test: str = ""
    arches: tuple[Arch, ...] = ()
    link: str = ""
    until: date | None = None
    excuses: frozenset[str] = field(default_factory=lambda: frozenset({"fail"}))

    def expired(self, today: date) -> bool:
        return self.until is not None and today > self.until


def _known_arch(value: str) -> str:
    if value not in list(Arch):
        raise error(f"unknown architecture '{value}'", nearest(value, list(Arch)))
    return value


def _listed(value: object) -> object:
    return [value] if isinstance(value, (str, dict)) else value


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise error("must not be empty", "leave it out for the default")
    return value


def _tables(value: object) -> object:
    if not isinstance(value, (list, tuple)):
        raise error("must be an array of tables", "write [[known]] above each entry")
    return value


def _own_tables(value: object) -> object:
    if not isinstance(value, (list, tuple, dict)):
        raise error("must be a table or an array of tables", "write [qcase.known], or [[qcase.known]] above each entry")
    return _listed(value)


def _one_or_more(*words: str) -> list[Any]:
    word = {"type": "string", "enum": list(words)}
    schema = {"anyOf": [word, {"type": "array", "items": word, "minItems": 1}]}
    return [Strict(False), BeforeValidator(_listed), AfterValidator(_not_empty), WithJsonSchema(schema)]


_LINE = r"(?=.*\S)[^\x00-\x1f\x7f\x85\u2028\u2029]+"
_Line = Annotated[str, matching(_LINE, "must be a text in one line")]
_Glob = Annotated[str, matching(_LINE, "must be a name or a glob")]
_Link = Annotated[str, matching(r"[^\s\x00-\x1f\x7f]+", "must be an address without blanks")]


class KnownTable(Model):
    """Keys of an entry, wherever it stands."""

    reason: _Line = Field(description="why it fails; shown wherever it does")
    test: _Glob | None = Field(default=None, description="a test inside the case, by name or glob; default: the case as a whole")
    link: _Link | None = Field(default=None, description="where to read about it")
    until: date | None = Field(default=None, description="the last day (UTC) on which the entry excuses: 2027-01-31")
    excuses: Annotated[tuple[Excuses, ...], *_one_or_more(*get_args(Excuses))] = Field(
        default=("fail",), description="of a case: fail, panic, timeout, exited, build-error; of a test: fail, broken"
    )

    @model_validator(mode="after")
    def _check(self) -> KnownTable:
        allowed = OF_CASES if self.test is None else OF_TESTS
        for one in self.excuses:
            if one not in allowed:
                whose = "with `test` excuses" if self.test else "without `test` excuses"
                hint = "a case as a whole ends that way" if self.test else "a test is broken"
                raise error(f"an entry {whose} {', '.join(allowed)}, and not {one}", hint)
        return self


class KnownEntry(KnownTable):
    """An entry of `known.toml`."""

    case: _Glob = Field(description="the case, by name, display name or glob")
    arch: Annotated[tuple[Annotated[str, AfterValidator(_known_arch)], ...], *_one_or_more(*Arch)] | None = Field(
        default=None, description="one architecture or several; default: all"
    )


class KnownFile(Model):
    """Content of `known.toml`."""

    known: Annotated[tuple[KnownEntry, ...], Strict(False), BeforeValidator(_tables)] = ()


# In a case's file: one table, or an array of them.
Tables = Annotated[tuple[KnownTable, ...], Strict(False), BeforeValidator(_own_tables)]


def known_of(table: KnownTable, place: str) -> Known:
    """Return the entry of a table that stands at `place`."""
    case, arches = (table.case, table.arch or ()) if isinstance(table, KnownEntry) else ("", ())
    return Known(
        place,
        table.reason,
        case,
        table.test or "",
        tuple(Arch(name) for name in arches),
        table.link or "",
        table.until,
        frozenset(table.excuses),
    )
