"""QEMU's command line, read and written as QEMU does it. Pure functions.

    words ── split ──► Option(name, value) …        -drive and --drive are one option; a word without a dash is a disk
    value ── parse ──► Opts: (key, value) …         QemuOpts: -drive, -device, -netdev, -nic, -net, -chardev
          ── keyval ─► Opts                         keyval: -blockdev, -machine, -object
          ── json ───► Opts with nested keys        a value that begins with `{`

Rules, with their place in QEMU's sources (`util/qemu-option.c`, `util/keyval.c`, `softmmu/vl.c`):

* A comma in a value is doubled. The first part may leave out its key, where the option has an implied one.
* A part without `=` is a switch: `readonly` is `readonly=on`, `noreadonly` is `readonly=off`. Only QemuOpts has that.
* Of a key that is given twice the last value counts, but of `id` the first one.
* QEMU ends at an option that it does not know, and nothing shows whether an unknown option takes a value. qcase refuses it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcase import parsing

# Options of QEMU 7.2 to 11. An option that only some of these versions have may be listed: QEMU itself refuses it.
_WITH_VALUE = """
    D L M accel acpitable action add-fd append audio audiodev bios blockdev boot cdrom chardev chroot compat cpu d debugcon
    device dfilter display drive dtb dump-vmstate echr fda fdb fsdev fw_cfg g gdb global hda hdb hdc hdd icount incoming initrd
    iscsi k kernel loadvm m machine mem-path mon monitor msg mtdblock name net netdev nic numa object option-rom overcommit
    parallel pflash pidfile plugin prom-env qmp qmp-pretty qtest qtest-log readconfig rotate rtc run-with runas sandbox sd seed
    semihosting-config serial set shim smbios smp spice tb-size tpmdev trace usbdevice uuid vga virtfs vnc watchdog
    watchdog-action xen-domid
"""
_SWITCHES = """
    S async-teardown audio-help daemonize enable-kvm enable-sync-profile full-screen h help jitdump mem-prealloc no-acpi
    no-fd-bootchk no-hpet no-reboot no-shutdown no-user-config nodefaults nographic old-param one-insn-per-tb only-migratable
    perfmap portrait preconfig s semihosting singlestep snapshot usb version win2k-hack xen-attach xen-domid-restrict
"""
WITH_VALUE = frozenset(_WITH_VALUE.split())
SWITCHES = frozenset(_SWITCHES.split())
_SAME = {"M": "machine"}
_IMPLIED = {
    "machine": "type",
    "netdev": "type",
    "nic": "type",
    "net": "type",
    "tpmdev": "type",
    "blockdev": "driver",
    "device": "driver",
    "audiodev": "driver",
    "fsdev": "fsdriver",
    "virtfs": "fsdriver",
    "chardev": "backend",
    "object": "qom-type",
    "accel": "accel",
    "smp": "cpus",
    "m": "size",
    "mon": "chardev",
    "fw_cfg": "name",
    "name": "guest",
    "icount": "shift",
    "boot": "order",
}


class ArgumentError(ValueError):
    """An argument that has no meaning to QEMU, or one that qcase cannot allow. `option`: the words as written."""

    def __init__(self, what: str, option: str = "", hint: str = "") -> None:
        super().__init__(f"{option}: {what}" if option else what)
        self.what = what
        self.option = option
        self.hint = hint


@dataclass(frozen=True)
class Option:
    """One option of a command line. `name`: without dashes; empty for a word without dashes, which is the file of a disk.

    `value` is None for a switch. `number`: index of its first word, from 0.
    """

    name: str
    value: str | None = None
    dashes: str = "-"
    number: int = 0

    @property
    def kind(self) -> str:
        """Name of the option, the same for two spellings of one option."""
        return _SAME.get(self.name, self.name)

    @property
    def words(self) -> list[str]:
        first = [self.dashes + self.name] if self.name else []
        return first + ([] if self.value is None else [self.value])

    @property
    def shown(self) -> str:
        """Text of the option for a message, at most 120 characters."""
        text = " ".join(self.words)
        return text if len(text) <= 120 else f"{text[:117]}…"

    def with_value(self, value: str) -> Option:
        return Option(self.name, value, self.dashes, self.number)

    def opts(self) -> Opts:
        """Parse the value by the option's own syntax. Raises `ArgumentError` if the value does not follow it."""
        assert self.value is not None
        try:
            if self.value.startswith("{") and self.kind in ("blockdev", "device", "netdev", "object"):
                return from_json(self.value)
            implied = _IMPLIED.get(self.kind, "")
            return keyval(self.value, implied) if self.kind in ("blockdev", "object") else parse(self.value, implied)
        except ArgumentError as error:
            raise ArgumentError(error.what, self.shown, error.hint) from None


@dataclass(frozen=True)
class Opts:
    """The parts of a value, in order. `nested`: written as JSON. A nested key is written with dots: `file.filename`."""

    parts: tuple[tuple[str, Any], ...]
    implied: str = ""
    nested: bool = False

    def get(self, key: str) -> str | None:
        """Return the effective value of a key as text (`on` and `off` for JSON's booleans); None without the key."""
        values = [value for name, value in self.parts if name == key]
        if not values:
            return None
        value = values[0] if key == "id" else values[-1]
        return ("on" if value else "off") if isinstance(value, bool) else str(value)

    def __contains__(self, key: str) -> bool:
        return any(name == key for name, _ in self.parts)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name, _ in self.parts))

    def below(self, key: str) -> Opts:
        """Return the keys nested below a key, without its prefix."""
        return Opts(tuple((n.removeprefix(f"{key}."), v) for n, v in self.parts if n.startswith(f"{key}.")))

    def without(self, *keys: str) -> Opts:
        """Return the parts without some keys and everything nested below them."""
        kept = [(n, v) for n, v in self.parts if n not in keys and not any(n.startswith(f"{key}.") for key in keys)]
        return Opts(tuple(kept), self.implied, self.nested)

    def set(self, key: str, value: str | bool) -> Opts:
        """Return the parts with a single value for a key, at the place of its first value, else at the end."""
        parts: list[tuple[str, Any]] = []
        for name, old in self.parts:
            if name != key:
                parts.append((name, old))
            elif not any(n == key for n, _ in parts):
                parts.append((key, value))
        if key not in self:
            parts.append((key, value))
        return Opts(tuple(parts), self.implied, self.nested)

    @property
    def text(self) -> str:
        """The value as QEMU reads it."""
        if self.nested:
            return json.dumps(_tree(self.parts), separators=(",", ":"))
        said = []
        for at, (name, value) in enumerate(self.parts):
            word = escaped(("on" if value else "off") if isinstance(value, bool) else str(value))
            said.append(word if at == 0 and name == self.implied and "=" not in word.partition(",")[0] else f"{name}={word}")
        return ",".join(said)


def escaped(value: str) -> str:
    """Return a value with its commas doubled."""
    return value.replace(",", ",,")


def is_on(value: str | None) -> bool:
    """Tell whether QEMU reads a word as a true boolean."""
    return value in ("on", "yes", "true", "y")


def split(words: Sequence[str]) -> list[Option]:
    """Parse the words of a command line, without the program, into options. Raises `ArgumentError` for an unknown option."""
    options = []
    following = iter(enumerate(words))
    for number, word in following:
        if not word.startswith("-"):
            options.append(Option("", word, "", number))
            continue
        dashes = "--" if word.startswith("--") else "-"
        name = word.removeprefix(dashes)
        if name in SWITCHES:
            options.append(Option(name, None, dashes, number))
        elif name in WITH_VALUE:
            value = next(following, None)
            if value is None:
                raise ArgumentError("requires an argument", word)
            options.append(Option(name, value[1], dashes, number))
        else:
            raise ArgumentError("is no option of QEMU that qcase knows", word, _hint_for(word, name))
    return options


def _hint_for(word: str, name: str) -> str:
    first = name.partition("=")[0].partition(" ")[0]
    if first != name and first in WITH_VALUE:
        dashes = word.removesuffix(name)
        return f'an option and its value are two words: "{dashes}{first}", "{name[len(first) + 1 :]}"'
    return ""


def join(options: Iterable[Option]) -> list[str]:
    """Return the words of options."""
    return [word for option in options for word in option.words]


def parse(value: str, implied: str = "") -> Opts:
    """Parse a value by the rules of QemuOpts."""
    parts = []
    rest, first = value, implied
    while rest:
        name, has_value, _ = _name(rest)
        if has_value:
            text, rest = _value(rest[len(name) + 1 :])
        elif first:
            name = first
            text, rest = _value(rest)
        else:
            rest = rest[len(name) + 1 :]
            name, text = (name[2:], "off") if name.startswith("no") else (name, "on")
        parts.append((name, text))
        first = ""
    return Opts(tuple(parts), implied)


def keyval(value: str, implied: str = "") -> Opts:
    """Parse a value by the rules of keyval, which has no switches. Raises `ArgumentError` for a part without a value."""
    parts = []
    rest, first = value, implied
    while rest:
        name, has_value, _ = _name(rest)
        if has_value and name:
            text, rest = _value(rest[len(name) + 1 :])
        elif first and name:
            text, rest, name = name, rest[len(name) + 1 :], first
        else:
            raise ArgumentError(f"expects '=' after {name!r}")
        parts.append((name, text))
        first = ""
    return Opts(tuple(parts), implied)


def from_json(value: str) -> Opts:
    """Parse a value that is JSON. Raises `ArgumentError` if it is not a JSON object."""
    try:
        data = parsing.from_json(value, _once)
    except ValueError as error:
        raise ArgumentError(f"is no JSON: {error}") from None
    if not isinstance(data, Mapping):
        raise ArgumentError("is no JSON object")
    return Opts(tuple(_flat(data)), nested=True)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object. Raises `ValueError` for a duplicate key, as QEMU does, and for a key with a dot."""
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a key is there twice")
    if any("." in name for name, _ in pairs):
        raise ValueError("a key with a dot in it")
    return dict(pairs)


def _flat(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _tree(parts: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for name, value in parts:
        *above, last = name.split(".")
        place = whole
        for step in above:
            place = place.setdefault(step, {})
        place[last] = value
    return whole


def _name(text: str) -> tuple[str, bool, str]:
    """Return the text before the first `=` or `,`, whether that is a `=`, and the rest."""
    for at, letter in enumerate(text):
        if letter in "=,":
            return text[:at], letter == "=", text[at + 1 :]
    return text, False, ""


def _value(text: str) -> tuple[str, str]:
    """Return a value up to a single comma, with doubled commas undone, and the rest."""
    found: list[str] = []
    at = 0
    while at < len(text):
        if text[at] == ",":
            if text[at + 1 : at + 2] != ",":
                return "".join(found), text[at + 1 :]
            at += 1
        found.append(text[at])
        at += 1
    return "".join(found), ""
