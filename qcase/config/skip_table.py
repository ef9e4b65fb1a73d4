"""`[qcase] requires` and `[qcase.skip]`: when a case is skipped for want of something.

    requires = ["kvm", "network", "nvme", "memory >= 4 GiB", "cpus >= 4", "qemu >= 8.2"]

A word that is none of the names here is a device that this machine's QEMU has to know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from qcase.config.fields import Model, Strings, error, parse_size
from qcase.config.patterns import PatternError, compile_pattern

KVM: Final = "kvm"
NETWORK: Final = "network"
_AMOUNT: Final = re.compile(r"(memory|cpus|qemu)\s*>=\s*(.+)")
_DEVICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,+-]*")


@dataclass(frozen=True)
class Amount:
    """A quantity that has to be there: bytes of `memory`, a number of `cpus`, a version of `qemu`. `shown`: as it is written."""

    of: str
    least: tuple[int, ...]
    shown: str


def amount(word: str) -> Amount | None:
    """Parse a quantity; None for another requirement. Raises `ValueError` for one that makes no sense."""
    if (found := _AMOUNT.fullmatch(word)) is None:
        return None
    of, text = found[1], found[2].strip()
    if of == "memory":
        return Amount(of, (parse_size(text),), text)
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?" if of == "qemu" else r"[1-9][0-9]{0,5}", text):
        raise ValueError(text)
    return Amount(of, tuple(int(part) for part in text.split(".")), text)


def _requirement(value: str) -> str:
    try:
        known = amount(value)
    except ValueError:
        raise error(f"is no quantity: {value!r}", 'such as "memory >= 4 GiB", "cpus >= 4", "qemu >= 8.2"') from None
    if known is None and (value in ("memory", "cpus", "qemu") or not _DEVICE.fullmatch(value)):
        hint = 'kvm, network, a device of QEMU such as nvme, "memory >= 4 GiB", "cpus >= 4", "qemu >= 8.2"'
        raise error(f"is no requirement: {value!r}", hint)
    if known is None and value not in (KVM, NETWORK) and (near := _meant(value)):
        raise error(f"is no requirement: {value!r}", f"did you mean '{near}'?")
    return value


def _meant(word: str) -> str:
    """Return the name that a word nearly is, else nothing: no device is called so, and the case would be skipped for good."""
    import difflib  # only where a device is required

    return next(iter(difflib.get_close_matches(word.lower(), (KVM, NETWORK), n=1, cutoff=0.66)), "")


def _listed(value: object) -> object:
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


Requirements = Annotated[tuple[Annotated[str, AfterValidator(_requirement)], ...], Strict(False)]
_Status = Annotated[int, Field(ge=1, le=125)]


class SkipTable(Model):
    """Table `[qcase.skip]`: what the guest says when a case, or a command of a group, cannot run there."""

    regex: Strings = ()
    status: Annotated[tuple[_Status, ...], Strict(False), BeforeValidator(_listed)] = ()


def checked(
    table: SkipTable,
    replaced: Callable[[str], str],
    wrong: Callable[[tuple[str | int, ...], str, str], None],
    *,
    is_group: bool,
    has_results: bool,
    success: Collection[str],
) -> tuple[str, ...]:
    """Return the patterns. `replaced` replaces placeholders, `wrong` notes a fault."""
    patterns = tuple(replaced(pattern) for pattern in table.regex)
    for index, pattern in enumerate(patterns):
        try:
            compile_pattern(pattern, would="be skipped")
        except PatternError as e:
            wrong(("qcase", "skip", "regex", index), e.what, e.hint)
        if pattern in success:
            wrong(("qcase", "skip", "regex", index), "is a success pattern as well", "a case cannot be both")
    if patterns and is_group:
        wrong(("qcase", "skip", "regex"), "cannot stand beside test_commands", "a command is skipped by its status, see status")
    elif patterns and has_results:
        wrong(("qcase", "skip", "regex"), "cannot stand beside results", "the tests say themselves what is skipped")
    if table.status and not is_group:
        hint = "only the status of a group's command is known; let the command print a line, see regex"
        wrong(("qcase", "skip", "status"), "needs test_commands", hint)
    return patterns
