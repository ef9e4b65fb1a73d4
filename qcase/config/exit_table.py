"""`[qcase.exit]`: the meaning of QEMU's end for a case.

pass = [33]        isa-debug-exit with 0x10, a test finisher or semihosting with that status
fail = [35]
skip = [37]        "poweroff" in place of a status: the guest powers off its machine
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, Strict

from qcase.config.fields import Model, error

POWEROFF: Final = "poweroff"
OUTCOMES: Final = ("pass", "fail", "skip")
_FAILED_QEMU: Final = "1"  # QEMU's own status where it fails itself


def _word(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255:
        return str(value)
    if value == POWEROFF:
        return value
    raise error(f"must be a status from 0 to 255 or {POWEROFF!r}, not {value!r}")


def _listed(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else [value]


_Word = Annotated[str, BeforeValidator(_word, json_schema_input_type=int | str)]
_Words = Annotated[tuple[_Word, ...], Strict(False), BeforeValidator(_listed, json_schema_input_type=list[int | str] | int | str)]


class ExitTable(Model):
    """Table `[qcase.exit]`: statuses of QEMU, or "poweroff", by what they say."""

    passed: _Words = Field(default=(), alias="pass")
    fail: _Words = ()
    skip: _Words = ()

    @property
    def words(self) -> tuple[tuple[str, str], ...]:
        """Pairs of an outcome and a word that means it."""
        lists = zip(OUTCOMES, (self.passed, self.fail, self.skip), strict=True)
        return tuple((outcome, word) for outcome, words in lists for word in words)


def is_there(data: Mapping[str, Any]) -> bool:
    """Tell whether a file says what an end of QEMU means, however well."""
    table = data.get("qcase")
    return isinstance(table, dict) and bool(table.get("exit"))


def checked(
    table: ExitTable,
    wrong: Callable[[tuple[str | int, ...], str, str], None],
    *,
    beside: str,
    has_skip: bool,
    on_console: bool,
    semihosting: bool,
) -> tuple[str, ...]:
    """Return the words, each as `<outcome>\\t<word>`. `wrong` notes a fault.

    `beside`: the key of a group or of steps; `on_console`: the console decides as well; `semihosting`: the guest can end QEMU
    with any status.
    """
    words = table.words
    if not words:
        return ()
    place = ("qcase", "exit")
    if beside:
        wrong(place, f"cannot stand beside {beside}", "an end of QEMU tells nothing of its parts; make a case of its own of it")
    if has_skip:
        wrong(("qcase", "skip", "regex"), "cannot stand beside [qcase.exit]", "a status skips the case, see [qcase.exit] skip")
    if not table.passed:
        wrong(place, "needs pass: without it the case can never pass", "say which status the kernel ends with when all is well")
    seen: dict[str, str] = {}
    for outcome, word in words:
        if word in seen:
            wrong((*place, outcome), f"has {word}, as {seen[word]} has", "a status has one meaning")
        seen[word] = outcome
        if word == _FAILED_QEMU and outcome != "fail":
            wrong(
                (*place, outcome), "must not have 1: QEMU ends with it where it fails itself", "let the kernel end with another"
            )
        if word == "0" and not semihosting:
            what = "must not have 0: QEMU ends with it whenever somebody ends it, and no device gives it"
            wrong((*place, outcome), what, f"a power-off is {POWEROFF!r}")
    if POWEROFF in table.skip:
        wrong((*place, "skip"), f"must not have {POWEROFF!r}", "a kernel that has given up may power off as well")
    if {POWEROFF, "0"} & {*table.passed} and not on_console:
        what = f"has {POWEROFF!r}, which is how a kernel that has given up ends as well"
        wrong((*place, "pass"), what, "let the console decide too: success_regex, [qcase] results or markers")
    return tuple(f"{outcome}\t{word}" for outcome, word in words)
