"""`[[qcase.matrix]]`: one case on several machines. Each machine is a case of its own, `<case>-<name>`.

    rows of one axis     alternatives
    rows of several      every combination of them: `<case>-<name>-<name>`, in the order in which the axes come first

Pure functions: QEMU's arguments of the case in, those of each machine out.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

from pydantic import Field

from qcase.config import qemu_options, root_disk
from qcase.config.fields import Model, Strings, matching
from qcase.config.qemu_options import ArgumentError, Option

_MOST = 256  # machines of a case; more are a mistake in the axes
_Value = Annotated[str, matching(r"[^\0]*\S[^\0]*", "must not be empty")]


class MatrixRow(Model):
    """Table `[[qcase.matrix]]`: the differences of a machine from `args`.

    `machine`, `cpu`, `smp` and `memory` replace the options of QEMU; `device` is the device of the root disk; `args` are added,
    and `cmdline` is added to the kernel's command line.
    """

    name: Annotated[str, matching(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", "must be a word of letters, digits and . _ + -")]
    axis: str = ""
    args: Strings = ()
    machine: _Value | None = None
    cpu: _Value | None = None
    smp: Annotated[int, Field(ge=1)] | None = None
    memory: _Value | None = None
    device: _Value | None = None
    cmdline: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts that reach QEMU."""
        return (*self.args, *(text for text in (self.machine, self.cpu, self.memory, self.device, self.cmdline) if text))


def machines(
    rows: Sequence[MatrixRow], args: Sequence[str], replaced: Callable[[str], str], wrong: Callable[[int, str, str], None]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return name and QEMU's arguments of each machine. `replaced` replaces placeholders; `wrong` notes a fault of a row."""
    for at, row in enumerate(rows):
        if any("\0" in text for text in row.texts):
            wrong(at, "must not contain a NUL character", "")
            return ()
    axes: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        axes.setdefault(row.axis, []).append(at)
    found: dict[str, tuple[str, ...]] = {}
    for combination in itertools.product(*axes.values()) if rows else ():
        name = "-".join(rows[at].name for at in combination)
        if name in found:
            wrong(combination[-1], f"two machines are called {name!r}", "give them other names")
        elif len(found) >= _MOST:
            wrong(0, f"describes more than {_MOST} machines", "take away rows of an axis")
            break
        try:
            options = functools.reduce(lambda options, at: _applied(rows[at], options, replaced), combination, split(args))
            root_disk.refuse_writers(options, semihosting=True)
            root_disk.root(options)
        except ArgumentError as e:
            wrong(combination[-1], str(e), e.hint)
            break
        found[name] = tuple(qemu_options.join(options))
    return tuple(found.items())


def split(args: Sequence[str]) -> list[Option]:
    """Return the options of a case; an error in them is reported by the case itself."""
    try:
        return qemu_options.split(args)
    except ArgumentError:
        return []


def _applied(row: MatrixRow, options: Sequence[Option], replaced: Callable[[str], str]) -> list[Option]:
    smp = None if row.smp is None else str(row.smp)
    for kind, value in (("machine", row.machine), ("cpu", row.cpu), ("smp", smp), ("m", row.memory)):
        if value is not None:
            options = [*(option for option in options if option.kind != kind), Option(kind, replaced(value))]
    options = [*options, *qemu_options.split([replaced(text) for text in row.args])]  # a bus comes before its disk
    if row.device is not None:
        options = list(_on_device(options, replaced(row.device)))
    return [*options, Option("append", replaced(row.cmdline))] if row.cmdline else list(options)


def _on_device(options: Sequence[Option], device: str) -> Iterator[Option]:
    """Yield the options with another device for the root disk. Raises `ArgumentError` for a disk without a device of its own."""
    drive = root_disk.root(options)
    name = root_disk.ROOT if drive is None else drive.id or drive.opts.get("node-name")
    if name is None or (drive is not None and drive.interface not in ("", "none")):
        raise ArgumentError(
            "the root disk has no device that another one could replace",
            "" if drive is None else drive.written,
            f'"-drive", "if=none,id={root_disk.ROOT},…" is a disk with a device of its own',
        )
    yield from (option for option in options if not (option.kind == "device" and option.opts().get("drive") == name))
    yield Option("device", f"{device},drive={name}")
