"""Types of fields: patterns, sizes, names and paths, each with its check and its message."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Strict
from pydantic_core import PydanticCustomError

from qcase.config.patterns import PatternError, compile_pattern

Accel = Literal["tcg", "kvm", "auto"]
Network = Literal["restricted", "user", "none"]
KernelTroubleIs = Literal["warn", "fail", "ignore"]
TcgThreads = Literal["auto", "single", "multi"]
Branch = Literal["auto", "never"]
Trust = Literal["suite", "sandboxed"]
CacheWrite = Literal["auto", "always", "never"]
Match = Literal["any", "all"]
MatchFrom = Literal["start", "prompt"]
Build = Literal["named", "all"]
Results = Literal["ktap", "tap", "kselftest", "ltp", "kunit", "libtest", "unity", "auto"]
Cargo = Literal["build", "test"]
BuildSystem = Literal["cmake", "meson", "configure", "make"]


# ---- qcase.toml


def error(what: str, hint: str = "") -> PydanticCustomError:
    return PydanticCustomError("qcase", "{what}", {"what": what, "hint": hint})


def matching(pattern: str, what: str, hint: str = "") -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):  # compiled at the first use: most files set few of these keys
            raise error(what, hint)
        return value

    return AfterValidator(check)


def only_string(what: str | Callable[[], str], hint: str = "") -> BeforeValidator:
    def check(value: object) -> object:
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise error(what if isinstance(what, str) else what(), hint)
        return value

    return BeforeValidator(check)


def _check_pattern(value: str) -> str:
    try:
        compile_pattern(value)
    except PatternError as e:
        raise error(e.what, e.hint) from None
    return value


def check_append(value: str) -> str:
    if not value.isprintable():
        raise error("must be one line of printable characters")
    if re.search(r"\bpanic\b", value):
        raise error("must not contain the word 'panic': the guest prints its command line, and cases look for that word")
    return value


# TOML has arrays, our models have tuples; the items stay strict.
Strings = Annotated[tuple[str, ...], Strict(False)]

VariableName = Annotated[
    str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "must be a variable's name: letters, digits and '_', no digit first")
]
Prefix = Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "must consist of letters, digits and '_', no digit first")]
Marker = Annotated[str, matching(r"[!-~]([ -~]*[!-~])?", "must be one line of printable ASCII, without blanks around it")]
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_size(text: str) -> int:
    """Parse a size into bytes: "20 GiB", "1.5GB", "0 B". Raises `ValueError` for anything else."""
    found = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no size")
    return int(float(found[1]) * _UNITS[found[2]])


def parse_scale(text: str) -> float:
    """Parse a factor for timeouts: "2", "0.5". Raises `ValueError` unless it is a finite number greater than 0."""
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 0 < scale < math.inf:
        raise ValueError(f"{text!r} is no factor")
    return scale


def _check_size(value: str) -> str:
    try:
        parse_size(value)
    except ValueError:
        raise error("must be a size with its unit", 'such as "20 GiB" or "500 MB"') from None
    return value


Pattern = Annotated[str, AfterValidator(_check_pattern)]
Size = Annotated[str, AfterValidator(_check_size)]
PackageName = Annotated[
    str,
    matching(
        r"[A-Za-z0-9_][A-Za-z0-9._+:/-]*((?:[<>]=?|[=~])[A-Za-z0-9._+~-]+)?",
        "must name a package",
        'as apk takes it: "zlib-dev", "python3~3.12"',
    ),
]
FileName = Annotated[str, matching(r"[A-Za-z0-9_][A-Za-z0-9._-]*", "must be a file name of letters, digits, '.', '_' and '-'")]
GuestPath = Annotated[str, matching(r"/[!-~]+", "must be an absolute path in the guest, without blanks")]
FolderName = Annotated[str, matching(r"(?!\.\.?$)[^/\0]+", "must be the name of a folder right below the suite's root")]
SuiteName = Annotated[str, matching(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", "must be a word of letters, digits and . _ + -")]
DiskName = Annotated[str, matching(r"(?!\.\.?$)[^/\0]+", "must be a file name, without its folder")]
PathString = Annotated[str, matching(r"[^\0]+", "must be a path")]
Hostname = Annotated[
    str,
    matching(
        r"(?=.{1,63}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*",
        "is no valid hostname",
        "letters, digits and '-', at most 63 of them",
    ),
]
PinnedImage = Annotated[
    str,
    matching(
        r"[^\s@]+@sha256:[0-9a-f]{64}",
        "a foreign image must be pinned by its digest",
        "write name@sha256:<64 hex digits>",
    ),
]


class Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", defer_build=True)


def require_distinct(model: BaseModel, names: Sequence[str]) -> None:
    """Raise unless all of these names have distinct values: two equal markers or variables would be ambiguous."""
    first: dict[str, str] = {}
    for name in names:
        value = getattr(model, name)
        if value in first:
            raise error(f"{first[value]} and {name} are both {value!r}", "give each a value of its own")
        first[value] = name


Word = Annotated[str, matching(r"[^\0\n]+", "must be a word of a command line, in one line")]
Words = Annotated[tuple[Word, ...], Strict(False)]
_PLACE = r"(?!/)(?!(?:.*/)?\.\.?(?:/|$))[^\0\n\t]+"
GuestFolder = Annotated[str, matching(_PLACE, "must be a folder of the guest without the first slash, like usr/bin")]
PlacePattern = Annotated[str, matching(_PLACE, "must be a path in the build folder or the sources, like tests/test-*")]
